/* Element by element: activations, bias, gated units, residuals, the optimiser's update, axpy and casts.
 *
 *     activate        y = act(x)                           flat, 8 bytes an element
 *     activate_bwd    d_x = d_y act'(x)                    flat, 12
 *     bias_act        pre = y + b[j]; y = act(pre)         rows, 8 to 12
 *     swiglu          y = silu(u[0:H]) u[H:2H]             rows of H, 12; backward 20
 *     residual        y = x + gamma[j] h                   rows, 12; d_h = gamma[j] d_y, 8 (d_gamma: reduce.cu)
 *     adamw           p, m, v from g (tensor/ops.h)        flat, 28
 *     axpy            y += a x                             flat, 12
 *     cast            y = x in another type                flat, 4 to 8
 *
 * Mapping: flat loops are grid-stride; loops over rows put columns on x and rows on y (kernels.cuh). A thread reads and writes the same
 * elements, so outputs may be inputs where ops.h says so. All are bound by memory.
 * Numerics: F32 with the elementary functions of tensor/math_inline.h, products and sums contracted to FMA; deterministic.
 */
#include <math.h>

#include "tensor/cuda/storage.cuh"

/* ---- activations ---- */

static __global__ void activate_kernel(agglo_act act, int64_t n, const float *x, float *y)
{
    FLAT_LOOP(i, n)
    {
        y[i] = act_value(act, x[i]);
    }
}

static void activate(agglo_backend *be, agglo_act act, const agglo_tensor *x, agglo_tensor *y)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    int64_t n = agglo_tensor_count(x);

    activate_kernel<<<flat_grid(cuda, n), BLOCK, 0, cuda->stream>>>(act, n, input(x), output(y));
    agglo_cuda_launched(cuda, "activate");
}

static __global__ void activate_bwd_kernel(agglo_act act, int64_t n, const float *x, const float *d_y, float *d_x)
{
    FLAT_LOOP(i, n)
    {
        d_x[i] = d_y[i] * act_slope(act, x[i]);
    }
}

static void activate_bwd(agglo_backend *be, agglo_act act, const agglo_tensor *x, const agglo_tensor *d_y,
                         agglo_tensor *d_x)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    int64_t n = agglo_tensor_count(x);

    activate_bwd_kernel<<<flat_grid(cuda, n), BLOCK, 0, cuda->stream>>>(act, n, input(x), input(d_y), output(d_x));
    agglo_cuda_launched(cuda, "activate_bwd");
}

static __global__ void bias_act_kernel(agglo_act act, int64_t m, int64_t n, const float *b, float *pre, float *y)
{
    int64_t j = own_column();

    if (j >= n) {
        return;
    }
    float bias = b == NULL ? 0.0f : b[j];

    ROW_LOOP(i, m)
    {
        float v = y[i * n + j] + bias;

        if (pre != NULL) {
            pre[i * n + j] = v;
        }
        y[i * n + j] = act_value(act, v);
    }
}

void agglo_cuda_bias_act(agglo_cuda *cuda, agglo_act act, int64_t m, int64_t n, const float *b, float *pre, float *y)
{
    bias_act_kernel<<<row_grid(1, m, n), row_block(n), 0, cuda->stream>>>(act, m, n, b, pre, y);
    agglo_cuda_launched(cuda, "bias and activation");
}

/* ---- swiglu ---- */

static __global__ void swiglu_kernel(int64_t m, int64_t h, const float *u, float *y)
{
    int64_t j = own_column();

    if (j >= h) {
        return;
    }
    ROW_LOOP(i, m)
    {
        y[i * h + j] = agglo_silu(u[2 * i * h + j]) * u[(2 * i + 1) * h + j];
    }
}

static void swiglu(agglo_backend *be, const agglo_tensor *u, agglo_tensor *y)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    int64_t h = y->shape[y->rank - 1], m = agglo_tensor_count(y) / h;

    swiglu_kernel<<<row_grid(1, m, h), row_block(h), 0, cuda->stream>>>(m, h, input(u), output(y));
    agglo_cuda_launched(cuda, "swiglu");
}

static __global__ void swiglu_bwd_kernel(int64_t m, int64_t h, const float *u, const float *d_y, float *d_u)
{
    int64_t j = own_column();

    if (j >= h) {
        return;
    }
    ROW_LOOP(i, m)
    {
        float gate = u[2 * i * h + j], value = u[(2 * i + 1) * h + j], d = d_y[i * h + j];

        d_u[2 * i * h + j] = d * value * agglo_silu_slope(gate);
        d_u[(2 * i + 1) * h + j] = d * agglo_silu(gate);
    }
}

static void swiglu_bwd(agglo_backend *be, const agglo_tensor *u, const agglo_tensor *d_y, agglo_tensor *d_u)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    int64_t h = d_y->shape[d_y->rank - 1], m = agglo_tensor_count(d_y) / h;

    swiglu_bwd_kernel<<<row_grid(1, m, h), row_block(h), 0, cuda->stream>>>(m, h, input(u), input(d_y), output(d_u));
    agglo_cuda_launched(cuda, "swiglu_bwd");
}

/* ---- residual ---- */

static __global__ void residual_kernel(int64_t m, int64_t c, const float *x, const float *h, const float *gamma,
                                       float *y)
{
    int64_t j = own_column();

    if (j >= c) {
        return;
    }
    float scale = gamma == NULL ? 1.0f : gamma[j];

    ROW_LOOP(i, m)
    {
        y[i * c + j] = x[i * c + j] + scale * h[i * c + j];
    }
}

static void residual(agglo_backend *be, const agglo_tensor *x, const agglo_tensor *h, const agglo_tensor *gamma,
                     agglo_tensor *y)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    int64_t c = x->shape[x->rank - 1], m = agglo_tensor_count(x) / c;

    residual_kernel<<<row_grid(1, m, c), row_block(c), 0, cuda->stream>>>(m, c, input(x), input(h), input(gamma),
                                                                          output(y));
    agglo_cuda_launched(cuda, "residual");
}

static __global__ void residual_bwd_kernel(int64_t m, int64_t c, const float *d_y, const float *gamma, float *d_h)
{
    int64_t j = own_column();

    if (j >= c) {
        return;
    }
    float scale = gamma[j];

    ROW_LOOP(i, m)
    {
        d_h[i * c + j] = scale * d_y[i * c + j];
    }
}

/* d_gamma first: d_h may be d_y. */
static void residual_bwd(agglo_backend *be, const agglo_tensor *d_y, const agglo_tensor *h, const agglo_tensor *gamma,
                         agglo_tensor *d_h, agglo_tensor *d_gamma)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    int64_t c = d_y->shape[d_y->rank - 1], m = agglo_tensor_count(d_y) / c;

    agglo_cuda_column_sums(cuda, m, c, input(d_y), input(h), output(d_gamma));
    residual_bwd_kernel<<<row_grid(1, m, c), row_block(c), 0, cuda->stream>>>(m, c, input(d_y), input(gamma),
                                                                              output(d_h));
    agglo_cuda_launched(cuda, "residual_bwd");
}

/* ---- optimiser and the rest ---- */

/* AdamW's step with what is the same for all elements worked out on the host, in double. */
typedef struct adamw_step {
    float beta1, beta2, eps, grad_scale;
    float keep;    /* 1 - lr wd */
    float size;    /* lr / (1 - beta1^t) */
    float inverse; /* 1 / sqrt(1 - beta2^t) */
} adamw_step;

static __global__ void adamw_kernel(adamw_step step, int64_t n, const float *g, float *p, float *m, float *v)
{
    FLAT_LOOP(i, n)
    {
        float d = g[i] * step.grad_scale;
        float m1 = step.beta1 * m[i] + (1.0f - step.beta1) * d;
        float v1 = step.beta2 * v[i] + (1.0f - step.beta2) * d * d;

        m[i] = m1;
        v[i] = v1;
        p[i] = p[i] * step.keep - step.size * m1 / (sqrtf(v1) * step.inverse + step.eps);
    }
}

static void adamw(agglo_backend *be, const agglo_adamw_config *config, agglo_tensor *p, const agglo_tensor *g,
                  agglo_tensor *m, agglo_tensor *v)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    int64_t n = agglo_tensor_count(p);
    double t = (double)config->step;
    adamw_step step;

    step.beta1 = config->beta1;
    step.beta2 = config->beta2;
    step.eps = config->eps;
    step.grad_scale = config->grad_scale;
    step.keep = 1.0f - config->lr * config->weight_decay;
    step.size = (float)((double)config->lr / (1.0 - pow((double)config->beta1, t)));
    step.inverse = (float)(1.0 / sqrt(1.0 - pow((double)config->beta2, t)));
    adamw_kernel<<<flat_grid(cuda, n), BLOCK, 0, cuda->stream>>>(step, n, input(g), output(p), output(m), output(v));
    agglo_cuda_launched(cuda, "adamw");
}

static __global__ void axpy_kernel(float a, int64_t n, const float *x, float *y)
{
    FLAT_LOOP(i, n)
    {
        y[i] += a * x[i];
    }
}

static void axpy(agglo_backend *be, float a, const agglo_tensor *x, agglo_tensor *y)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    int64_t n = agglo_tensor_count(x);

    axpy_kernel<<<flat_grid(cuda, n), BLOCK, 0, cuda->stream>>>(a, n, input(x), output(y));
    agglo_cuda_launched(cuda, "axpy");
}

static __global__ void cast_kernel(int64_t n, const void *x, agglo_dtype from, void *y, agglo_dtype to)
{
    FLAT_LOOP(i, n)
    {
        set_element(y, to, i, element(x, from, i));
    }
}

static void cast(agglo_backend *be, const agglo_tensor *x, agglo_tensor *y)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    int64_t n = agglo_tensor_count(x);

    cast_kernel<<<flat_grid(cuda, n), BLOCK, 0, cuda->stream>>>(n, x->data, x->dtype, y->data, y->dtype);
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
    ops->adamw = adamw;
    ops->axpy = axpy;
    ops->cast = cast;
}
