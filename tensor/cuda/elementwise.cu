/* Element by element: activations, bias, gated units, residuals, axpy and casts.
 *
 *     activate        y = act(x)                           flat, 2 accesses an element (of 4 bytes, or 2 in BF16)
 *     activate_bwd    d_x = d_y act'(x)                    flat, 3
 *     bias_act        pre = y + b[j]; y = act(pre)         rows, 2 or 3
 *     swiglu          y = silu(u[0:H]) u[H:2H]             rows of H, 3; backward 5
 *     residual        y = x + gamma[j] h                   rows, 3; d_h = gamma[j] d_y, 2 (d_gamma: reduce.cu)
 *     axpy            y += a x                             flat, 3
 *     cast            y = x in another type                flat, 4 to 8 bytes
 *
 * Mapping: flat loops are grid-stride; loops over rows put columns on x and rows on y (kernels.cuh); 16 bytes at a time where aligned. A
 * thread reads and writes the same elements, so outputs may be inputs where ops.h says so. All are bound by memory.
 * Numerics: F32 with the elementary functions of tensor/math_inline.h, products and sums contracted to FMA; deterministic. BF16 is converted
 * as it is read and rounded once as it is written.
 */
#include "tensor/cuda/kernels.cuh"

/* v = act(v), the switch outside the loop: it is the same for a whole launch */
template <int N> static __device__ inline void act_values(agglo_act act, float v[N])
{
    switch (act) {
    case AGGLO_ACT_GELU:
#pragma unroll
        for (int k = 0; k < N; k++) {
            v[k] = agglo_gelu(v[k]);
        }
        break;
    case AGGLO_ACT_QUICK_GELU:
#pragma unroll
        for (int k = 0; k < N; k++) {
            v[k] = agglo_quick_gelu(v[k]);
        }
        break;
    case AGGLO_ACT_SILU:
#pragma unroll
        for (int k = 0; k < N; k++) {
            v[k] = agglo_silu(v[k]);
        }
        break;
    case AGGLO_ACT_RELU:
#pragma unroll
        for (int k = 0; k < N; k++) {
            v[k] = v[k] < 0.0f ? 0.0f : v[k];
        }
        break;
    default:
        break;
    }
}

/* d *= act'(v) */
template <int N> static __device__ inline void act_slopes(agglo_act act, const float v[N], float d[N])
{
    switch (act) {
    case AGGLO_ACT_GELU:
#pragma unroll
        for (int k = 0; k < N; k++) {
            d[k] *= agglo_gelu_slope(v[k]);
        }
        break;
    case AGGLO_ACT_QUICK_GELU:
#pragma unroll
        for (int k = 0; k < N; k++) {
            d[k] *= agglo_quick_gelu_slope(v[k]);
        }
        break;
    case AGGLO_ACT_SILU:
#pragma unroll
        for (int k = 0; k < N; k++) {
            d[k] *= agglo_silu_slope(v[k]);
        }
        break;
    case AGGLO_ACT_RELU:
#pragma unroll
        for (int k = 0; k < N; k++) {
            d[k] *= v[k] > 0.0f ? 1.0f : 0.0f;
        }
        break;
    default:
        break;
    }
}

/* ---- activations ---- */

template <typename T, int N> static __device__ inline void activate_some(agglo_act act, const T *x, T *y)
{
    float v[N];

    load<N>(v, x);
    act_values<N>(act, v);
    store<N>(y, v);
}

template <typename T, int N> static __global__ void activate_kernel(agglo_act act, int64_t n, const T *x, T *y)
{
    VECTOR_LOOP(i, n, N)
    {
        activate_some<T, N>(act, x + i, y + i);
    }
    TAIL_LOOP(i, n, N)
    {
        activate_some<T, 1>(act, x + i, y + i);
    }
}

template <typename T> static void activate_of(agglo_cuda *cuda, agglo_act act, int64_t n, const void *x, void *y)
{
    if (aligned(x, y)) {
        activate_kernel<T, LANES(T)>
            <<<flat_grid(cuda, n / LANES(T) + 1), BLOCK, 0, cuda->stream>>>(act, n, (const T *)x, (T *)y);
    } else {
        activate_kernel<T, 1><<<flat_grid(cuda, n), BLOCK, 0, cuda->stream>>>(act, n, (const T *)x, (T *)y);
    }
    agglo_cuda_launched(cuda, "activate");
}

static void activate(agglo_backend *be, agglo_act act, const agglo_tensor *x, agglo_tensor *y)
{
    BY_STORAGE(x, activate_of, agglo_cuda_enter(be), act, agglo_tensor_count(x), x->data, y->data);
}

template <typename T, int N>
static __device__ inline void activate_bwd_some(agglo_act act, const T *x, const T *d_y, T *d_x)
{
    float v[N], d[N];

    load<N>(v, x);
    load<N>(d, d_y);
    act_slopes<N>(act, v, d);
    store<N>(d_x, d);
}

template <typename T, int N>
static __global__ void activate_bwd_kernel(agglo_act act, int64_t n, const T *x, const T *d_y, T *d_x)
{
    VECTOR_LOOP(i, n, N)
    {
        activate_bwd_some<T, N>(act, x + i, d_y + i, d_x + i);
    }
    TAIL_LOOP(i, n, N)
    {
        activate_bwd_some<T, 1>(act, x + i, d_y + i, d_x + i);
    }
}

template <typename T>
static void activate_bwd_of(agglo_cuda *cuda, agglo_act act, const agglo_tensor *x, const agglo_tensor *d_y,
                            agglo_tensor *d_x)
{
    int64_t n = agglo_tensor_count(x);

    if (aligned(x->data, d_y->data, d_x->data)) {
        activate_bwd_kernel<T, LANES(T)><<<flat_grid(cuda, n / LANES(T) + 1), BLOCK, 0, cuda->stream>>>(
            act, n, input_of<T>(x), input_of<T>(d_y), output_of<T>(d_x));
    } else {
        activate_bwd_kernel<T, 1><<<flat_grid(cuda, n), BLOCK, 0, cuda->stream>>>(act, n, input_of<T>(x),
                                                                                  input_of<T>(d_y), output_of<T>(d_x));
    }
    agglo_cuda_launched(cuda, "activate_bwd");
}

static void activate_bwd(agglo_backend *be, agglo_act act, const agglo_tensor *x, const agglo_tensor *d_y,
                         agglo_tensor *d_x)
{
    BY_STORAGE(x, activate_bwd_of, agglo_cuda_enter(be), act, x, d_y, d_x);
}

/* v[0..N) = p[j..j+N), or `otherwise` where there is no p: a column's bias or scale, kept for all rows. */
template <int N> static __device__ inline void columns_of(float v[N], const float *p, int64_t j, float otherwise)
{
    if (p != NULL) {
        load<N>(v, p + j);
        return;
    }
#pragma unroll
    for (int k = 0; k < N; k++) {
        v[k] = otherwise;
    }
}

template <typename T, int N>
static __global__ void bias_act_kernel(agglo_act act, int64_t m, int64_t n, const float *b, T *pre, T *y)
{
    int64_t j = own_columns<N>();
    float bias[N];

    if (j >= n) {
        return;
    }
    columns_of<N>(bias, b, j, 0.0f);
    ROW_LOOP(i, m)
    {
        float v[N];

        load<N>(v, &y[i * n + j]);
#pragma unroll
        for (int k = 0; k < N; k++) {
            v[k] += bias[k];
        }
        if (pre != NULL) {
            store<N>(&pre[i * n + j], v);
        }
        act_values<N>(act, v);
        store<N>(&y[i * n + j], v);
    }
}

template <typename T>
static void bias_act_of(agglo_cuda *cuda, agglo_act act, int64_t m, int64_t n, const float *b, void *pre, void *y)
{
    if (wide<T>(n, b, pre, y)) {
        int64_t groups = n / LANES(T);

        bias_act_kernel<T, LANES(T)>
            <<<row_grid(1, m, groups), row_block(groups), 0, cuda->stream>>>(act, m, n, b, (T *)pre, (T *)y);
    } else {
        bias_act_kernel<T, 1><<<row_grid(1, m, n), row_block(n), 0, cuda->stream>>>(act, m, n, b, (T *)pre, (T *)y);
    }
    agglo_cuda_launched(cuda, "bias and activation");
}

void agglo_cuda_bias_act(agglo_cuda *cuda, agglo_act act, agglo_dtype dtype, int64_t m, int64_t n, const float *b,
                         void *pre, void *y)
{
    if (dtype == AGGLO_BF16) {
        bias_act_of<__nv_bfloat16>(cuda, act, m, n, b, pre, y);
    } else {
        bias_act_of<float>(cuda, act, m, n, b, pre, y);
    }
}

/* ---- swiglu ---- */

template <typename T, int N> static __global__ void swiglu_kernel(int64_t m, int64_t h, const T *u, T *y)
{
    int64_t j = own_columns<N>();

    if (j >= h) {
        return;
    }
    ROW_LOOP(i, m)
    {
        float gate[N], value[N];

        load<N>(gate, &u[2 * i * h + j]);
        load<N>(value, &u[(2 * i + 1) * h + j]);
#pragma unroll
        for (int k = 0; k < N; k++) {
            value[k] *= agglo_silu(gate[k]);
        }
        store<N>(&y[i * h + j], value);
    }
}

template <typename T> static void swiglu_of(agglo_cuda *cuda, const agglo_tensor *u, agglo_tensor *y)
{
    int64_t h = y->shape[y->rank - 1], m = agglo_tensor_count(y) / h;

    if (wide<T>(h, u->data, y->data)) {
        int64_t groups = h / LANES(T);

        swiglu_kernel<T, LANES(T)>
            <<<row_grid(1, m, groups), row_block(groups), 0, cuda->stream>>>(m, h, input_of<T>(u), output_of<T>(y));
    } else {
        swiglu_kernel<T, 1>
            <<<row_grid(1, m, h), row_block(h), 0, cuda->stream>>>(m, h, input_of<T>(u), output_of<T>(y));
    }
    agglo_cuda_launched(cuda, "swiglu");
}

static void swiglu(agglo_backend *be, const agglo_tensor *u, agglo_tensor *y)
{
    BY_STORAGE(u, swiglu_of, agglo_cuda_enter(be), u, y);
}

template <typename T, int N>
static __global__ void swiglu_bwd_kernel(int64_t m, int64_t h, const T *u, const T *d_y, T *d_u)
{
    int64_t j = own_columns<N>();

    if (j >= h) {
        return;
    }
    ROW_LOOP(i, m)
    {
        float gate[N], value[N], d[N];

        load<N>(gate, &u[2 * i * h + j]);
        load<N>(value, &u[(2 * i + 1) * h + j]);
        load<N>(d, &d_y[i * h + j]);
#pragma unroll
        for (int k = 0; k < N; k++) {
            value[k] *= d[k] * agglo_silu_slope(gate[k]); /* of the gate */
            d[k] *= agglo_silu(gate[k]);                  /* of the value */
        }
        store<N>(&d_u[2 * i * h + j], value);
        store<N>(&d_u[(2 * i + 1) * h + j], d);
    }
}

template <typename T>
static void swiglu_bwd_of(agglo_cuda *cuda, const agglo_tensor *u, const agglo_tensor *d_y, agglo_tensor *d_u)
{
    int64_t h = d_y->shape[d_y->rank - 1], m = agglo_tensor_count(d_y) / h;

    if (wide<T>(h, u->data, d_y->data, d_u->data)) {
        int64_t groups = h / LANES(T);

        swiglu_bwd_kernel<T, LANES(T)><<<row_grid(1, m, groups), row_block(groups), 0, cuda->stream>>>(
            m, h, input_of<T>(u), input_of<T>(d_y), output_of<T>(d_u));
    } else {
        swiglu_bwd_kernel<T, 1><<<row_grid(1, m, h), row_block(h), 0, cuda->stream>>>(
            m, h, input_of<T>(u), input_of<T>(d_y), output_of<T>(d_u));
    }
    agglo_cuda_launched(cuda, "swiglu_bwd");
}

static void swiglu_bwd(agglo_backend *be, const agglo_tensor *u, const agglo_tensor *d_y, agglo_tensor *d_u)
{
    BY_STORAGE(u, swiglu_bwd_of, agglo_cuda_enter(be), u, d_y, d_u);
}

/* ---- residual ---- */

template <typename T, int N>
static __global__ void residual_kernel(int64_t m, int64_t c, const T *x, const T *h, const float *gamma, T *y)
{
    int64_t j = own_columns<N>();
    float scale[N];

    if (j >= c) {
        return;
    }
    columns_of<N>(scale, gamma, j, 1.0f);
    ROW_LOOP(i, m)
    {
        float v[N], w[N];

        load<N>(v, &x[i * c + j]);
        load<N>(w, &h[i * c + j]);
#pragma unroll
        for (int k = 0; k < N; k++) {
            v[k] += scale[k] * w[k];
        }
        store<N>(&y[i * c + j], v);
    }
}

template <typename T>
static void residual_of(agglo_cuda *cuda, const agglo_tensor *x, const agglo_tensor *h, const float *gamma,
                        agglo_tensor *y)
{
    int64_t c = x->shape[x->rank - 1], m = agglo_tensor_count(x) / c;

    if (wide<T>(c, x->data, h->data, gamma, y->data)) {
        int64_t groups = c / LANES(T);

        residual_kernel<T, LANES(T)><<<row_grid(1, m, groups), row_block(groups), 0, cuda->stream>>>(
            m, c, input_of<T>(x), input_of<T>(h), gamma, output_of<T>(y));
    } else {
        residual_kernel<T, 1><<<row_grid(1, m, c), row_block(c), 0, cuda->stream>>>(
            m, c, input_of<T>(x), input_of<T>(h), gamma, output_of<T>(y));
    }
    agglo_cuda_launched(cuda, "residual");
}

static void residual(agglo_backend *be, const agglo_tensor *x, const agglo_tensor *h, const agglo_tensor *gamma,
                     agglo_tensor *y)
{
    BY_STORAGE(x, residual_of, agglo_cuda_enter(be), x, h, input(gamma), y);
}

template <typename T, int N>
static __global__ void residual_bwd_kernel(int64_t m, int64_t c, const T *d_y, const float *gamma, T *d_h)
{
    int64_t j = own_columns<N>();
    float scale[N];

    if (j >= c) {
        return;
    }
    load<N>(scale, gamma + j);
    ROW_LOOP(i, m)
    {
        float d[N];

        load<N>(d, &d_y[i * c + j]);
#pragma unroll
        for (int k = 0; k < N; k++) {
            d[k] *= scale[k];
        }
        store<N>(&d_h[i * c + j], d);
    }
}

template <typename T>
static void residual_bwd_of(agglo_cuda *cuda, const agglo_tensor *d_y, const float *gamma, agglo_tensor *d_h)
{
    int64_t c = d_y->shape[d_y->rank - 1], m = agglo_tensor_count(d_y) / c;

    if (wide<T>(c, d_y->data, gamma, d_h->data)) {
        int64_t groups = c / LANES(T);

        residual_bwd_kernel<T, LANES(T)><<<row_grid(1, m, groups), row_block(groups), 0, cuda->stream>>>(
            m, c, input_of<T>(d_y), gamma, output_of<T>(d_h));
    } else {
        residual_bwd_kernel<T, 1>
            <<<row_grid(1, m, c), row_block(c), 0, cuda->stream>>>(m, c, input_of<T>(d_y), gamma, output_of<T>(d_h));
    }
    agglo_cuda_launched(cuda, "residual_bwd");
}

/* d_gamma first: d_h may be d_y. */
static void residual_bwd(agglo_backend *be, const agglo_tensor *d_y, const agglo_tensor *h, const agglo_tensor *gamma,
                         agglo_tensor *d_h, agglo_tensor *d_gamma)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    int64_t c = d_y->shape[d_y->rank - 1], m = agglo_tensor_count(d_y) / c;

    agglo_cuda_column_sums(cuda, d_y->dtype, m, c, d_y->data, h->data, output(d_gamma));
    BY_STORAGE(d_y, residual_bwd_of, cuda, d_y, input(gamma), d_h);
}

/* ---- the rest ---- */

template <typename T, int N> static __device__ inline void axpy_some(float a, const T *x, T *y)
{
    float v[N], w[N];

    load<N>(v, x);
    load<N>(w, y);
#pragma unroll
    for (int k = 0; k < N; k++) {
        w[k] += a * v[k];
    }
    store<N>(y, w);
}

template <typename T, int N> static __global__ void axpy_kernel(float a, int64_t n, const T *x, T *y)
{
    VECTOR_LOOP(i, n, N)
    {
        axpy_some<T, N>(a, x + i, y + i);
    }
    TAIL_LOOP(i, n, N)
    {
        axpy_some<T, 1>(a, x + i, y + i);
    }
}

template <typename T> static void axpy_of(agglo_cuda *cuda, float a, const agglo_tensor *x, agglo_tensor *y)
{
    int64_t n = agglo_tensor_count(x);

    if (aligned(x->data, y->data)) {
        axpy_kernel<T, LANES(T)>
            <<<flat_grid(cuda, n / LANES(T) + 1), BLOCK, 0, cuda->stream>>>(a, n, input_of<T>(x), output_of<T>(y));
    } else {
        axpy_kernel<T, 1><<<flat_grid(cuda, n), BLOCK, 0, cuda->stream>>>(a, n, input_of<T>(x), output_of<T>(y));
    }
    agglo_cuda_launched(cuda, "axpy");
}

static void axpy(agglo_backend *be, float a, const agglo_tensor *x, agglo_tensor *y)
{
    BY_STORAGE(x, axpy_of, agglo_cuda_enter(be), a, x, y);
}

/* Between F32 and BF16 by vectors of 8 where aligned; what else there is (F16) one by one. */
static __global__ void cast_kernel(int64_t n, const void *x, agglo_dtype from, void *y, agglo_dtype to)
{
    FLAT_LOOP(i, n)
    {
        set_element(y, to, i, element(x, from, i));
    }
}

template <typename From, typename To> static __global__ void cast_wide_kernel(int64_t n, const From *x, To *y)
{
    VECTOR_LOOP(i, n, 8)
    {
        float v[8];

        load<8>(v, x + i);
        store<8>(y + i, v);
    }
    TAIL_LOOP(i, n, 8)
    {
        float v[1];

        load<1>(v, x + i);
        store<1>(y + i, v);
    }
}

static void cast(agglo_backend *be, const agglo_tensor *x, agglo_tensor *y)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    int64_t n = agglo_tensor_count(x);
    bool vectors = aligned(x->data, y->data);

    if (vectors && x->dtype == AGGLO_F32 && y->dtype == AGGLO_BF16) {
        cast_wide_kernel<<<flat_grid(cuda, n / 8 + 1), BLOCK, 0, cuda->stream>>>(n, input(x),
                                                                                 output_of<__nv_bfloat16>(y));
    } else if (vectors && x->dtype == AGGLO_BF16 && y->dtype == AGGLO_F32) {
        cast_wide_kernel<<<flat_grid(cuda, n / 8 + 1), BLOCK, 0, cuda->stream>>>(n, input_of<__nv_bfloat16>(x),
                                                                                 output(y));
    } else {
        cast_kernel<<<flat_grid(cuda, n), BLOCK, 0, cuda->stream>>>(n, x->data, x->dtype, y->data, y->dtype);
    }
    agglo_cuda_launched(cuda, "cast");
}

void agglo_cuda_elementwise_ops(agglo_backend_ops *ops)
{
    ops->activate = activate;
    ops->activate_bwd = activate_bwd;
    ops->swiglu = swiglu;
    ops->swiglu_bwd = swiglu_bwd;
    ops->residual = residual;
    ops->residual_bwd = residual_bwd;
    ops->axpy = axpy;
    ops->cast = cast;
}
