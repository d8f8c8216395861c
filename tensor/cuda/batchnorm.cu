/* Batch normalisation over the rows of x[m,c], the activation behind it included.
 *
 *     training    mean, var over rows;  rstd = 1 / sqrt(var + eps);  y = act((x - mean) rstd w + b);  running statistics move
 *     infer       the same with fixed mean and var
 *     backward    n = (x - mean) rstd;  g = d_y act'(n w + b);  d_w += sum g n;  d_b += sum g;
 *                 d_x (+)= w rstd (g - mean(g) - n mean(g n)), the means zero with fixed statistics
 *     fold        w[n,k] gamma / sqrt(var + eps), and the bias
 *
 * Mapping: sums over rows take two stages (reduce.cu): a block of 32 channels x 8 rows per chunk of rows, then a thread per channel adds the
 * chunks in order. Passes over elements have 16 bytes of channels on x and rows on y.
 * Bytes moved, F32: 12 an element in training (x twice, y), 8 with fixed statistics, 20 backward.
 * Numerics: F32 within a chunk, of x - x[0] so that a large mean does not cancel, chunks in double; deterministic.
 */
#include "tensor/cuda/storage.cuh"

#define SUM_ROWS 8

/* Two sums of each thread's channel over the block's rows; row 0 of threads writes them to partial[chunk][2][c]. All threads call. */
static __device__ inline void write_two_sums(float a, float b, int64_t c, int64_t j, float *partial)
{
    __shared__ float sums_a[SUM_ROWS][WARP], sums_b[SUM_ROWS][WARP];

    sums_a[threadIdx.y][threadIdx.x] = a;
    sums_b[threadIdx.y][threadIdx.x] = b;
    __syncthreads();
    if (threadIdx.y == 0 && j < c) {
        for (int r = 1; r < SUM_ROWS; r++) {
            a += sums_a[r][threadIdx.x];
            b += sums_b[r][threadIdx.x];
        }
        partial[2 * (int64_t)blockIdx.y * c + j] = a;
        partial[(2 * (int64_t)blockIdx.y + 1) * c + j] = b;
    }
}

static __device__ inline double sum_chunks(const float *partial, int64_t n_chunks, int64_t c, int64_t j, int which)
{
    double sum = 0.0;

    for (int64_t i = 0; i < n_chunks; i++) {
        sum += (double)partial[(2 * i + which) * c + j];
    }
    return sum;
}

static dim3 sums_grid(int64_t c, agglo_cuda_chunks chunks)
{
    return dim3((unsigned)agglo_cuda_ceil_div(c, WARP), (unsigned)chunks.n);
}

/* ---- forward ---- */

template <typename T>
static __global__ void statistics_kernel(int64_t m, int64_t c, int64_t chunk_rows, const T *x, float *partial)
{
    int64_t j = (int64_t)blockIdx.x * WARP + threadIdx.x;
    int64_t first = (int64_t)blockIdx.y * chunk_rows;
    int64_t end = first + chunk_rows < m ? first + chunk_rows : m;
    float sum = 0.0f, squares = 0.0f;

    if (j < c) {
        float origin = get(&x[j]);

        for (int64_t i = first + threadIdx.y; i < end; i += SUM_ROWS) {
            float d = get(&x[i * c + j]) - origin;

            sum += d;
            squares += d * d;
        }
    }
    write_two_sums(sum, squares, c, j, partial);
}

template <typename T>
static __global__ void finish_statistics_kernel(int64_t n_chunks, int64_t m, int64_t c, const float *partial,
                                                const T *x, float eps, float momentum, float *running_mean,
                                                float *running_var, float *mean, float *rstd)
{
    FLAT_LOOP(j, c)
    {
        double shift = sum_chunks(partial, n_chunks, c, j, 0) / (double)m;
        double var = sum_chunks(partial, n_chunks, c, j, 1) / (double)m - shift * shift;
        double centre = (double)get(&x[j]) + shift;

        var = var < 0.0 ? 0.0 : var; /* a NaN stays */
        mean[j] = (float)centre;
        rstd[j] = (float)(1.0 / sqrt(var + (double)eps));
        if (running_mean != NULL) {
            double keep = 1.0 - (double)momentum, step = (double)momentum;

            running_mean[j] = (float)(keep * (double)running_mean[j] + step * centre);
            running_var[j] = (float)(keep * (double)running_var[j] + step * (var * (double)m / (double)(m - 1)));
        }
    }
}

/* With `var` instead of rstd where rstd_in is NULL; rstd_out (optional) gets what was used. */
template <typename T, int N>
static __global__ void apply_kernel(int64_t m, int64_t c, const T *x, const float *w, const float *b, const float *mean,
                                    const float *rstd_in, const float *var, float eps, agglo_act act, float *rstd_out,
                                    T *y)
{
    int64_t j = own_columns<N>();
    float centre[N], scale[N], bias[N], r[N];

    if (j >= c) {
        return;
    }
    load<N>(centre, mean + j);
    load<N>(scale, w + j);
    load<N>(bias, b + j);
    load<N>(r, rstd_in != NULL ? rstd_in + j : var + j);
#pragma unroll
    for (int k = 0; k < N; k++) {
        r[k] = rstd_in != NULL ? r[k] : 1.0f / sqrtf(r[k] + eps);
        scale[k] *= r[k];
    }
    if (rstd_out != NULL && blockIdx.y == 0 && threadIdx.y == 0) {
        store<N>(rstd_out + j, r);
    }
    TALL_LOOP(i, m)
    {
        float v[N];

        load<N>(v, x + i * c + j);
#pragma unroll
        for (int k = 0; k < N; k++) {
            v[k] = (v[k] - centre[k]) * scale[k] + bias[k];
        }
        act_values<N>(act, v);
        store<N>(y + i * c + j, v);
    }
}

static void apply(agglo_cuda *cuda, const agglo_tensor *x, const agglo_tensor *w, const agglo_tensor *b,
                  const agglo_tensor *mean, const agglo_tensor *rstd, const agglo_tensor *var, float eps, agglo_act act,
                  agglo_tensor *rstd_out, agglo_tensor *y)
{
    int64_t c = x->shape[x->rank - 1], m = agglo_tensor_count(x) / c;

    WITH_STORAGE(
        x->dtype, T,
        TALL_LAUNCH(cuda, T, m, c, apply_kernel,
                    (c, x->data, input(w), input(b), input(mean), input(rstd), input(var), output(rstd_out), y->data),
                    m, c, input_of<T>(x), input(w), input(b), input(mean), input(rstd), input(var), eps, act,
                    output(rstd_out), output_of<T>(y)));
}

static void batchnorm(agglo_backend *be, const agglo_tensor *x, const agglo_tensor *w, const agglo_tensor *b, float eps,
                      float momentum, agglo_act act, agglo_tensor *running_mean, agglo_tensor *running_var,
                      agglo_tensor *mean, agglo_tensor *rstd, agglo_tensor *y)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    int64_t c = x->shape[x->rank - 1], m = agglo_tensor_count(x) / c;
    agglo_cuda_chunks chunks = agglo_cuda_row_chunks(m);
    float *partial = (float *)agglo_cuda_reserve(cuda, (size_t)(2 * chunks.n * c) * sizeof(float));

    if (partial == NULL) {
        return;
    }
    WITH_STORAGE(x->dtype, T,
                 statistics_kernel<T><<<sums_grid(c, chunks), dim3(WARP, SUM_ROWS), 0, cuda->stream>>>(
                     m, c, chunks.n_rows, (const T *)x->data, partial));
    agglo_cuda_launched(cuda, "batchnorm");
    WITH_STORAGE(x->dtype, T,
                 finish_statistics_kernel<T><<<flat_grid(cuda, c), BLOCK, 0, cuda->stream>>>(
                     chunks.n, m, c, partial, (const T *)x->data, eps, momentum, output(running_mean),
                     output(running_var), output(mean), output(rstd)));
    agglo_cuda_launched(cuda, "batchnorm");
    apply(cuda, x, w, b, mean, rstd, NULL, eps, act, NULL, y);
    agglo_cuda_launched(cuda, "batchnorm");
}

static void batchnorm_infer(agglo_backend *be, const agglo_tensor *x, const agglo_tensor *w, const agglo_tensor *b,
                            const agglo_tensor *mean, const agglo_tensor *var, float eps, agglo_act act,
                            agglo_tensor *rstd, agglo_tensor *y)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);

    apply(cuda, x, w, b, mean, NULL, var, eps, act, rstd, y);
    agglo_cuda_launched(cuda, "batchnorm_infer");
}

/* ---- backward ---- */

template <typename T>
static __global__ void gradient_sums_kernel(int64_t m, int64_t c, int64_t chunk_rows, const T *d_y, const T *x,
                                            const float *w, const float *b, const float *mean, const float *rstd,
                                            agglo_act act, float *partial)
{
    int64_t j = (int64_t)blockIdx.x * WARP + threadIdx.x;
    int64_t first = (int64_t)blockIdx.y * chunk_rows;
    int64_t end = first + chunk_rows < m ? first + chunk_rows : m;
    float sum_gn = 0.0f, sum_g = 0.0f;

    if (j < c) {
        float centre = mean[j], r = rstd[j], scale = w[j], bias = b[j];

        for (int64_t i = first + threadIdx.y; i < end; i += SUM_ROWS) {
            float n = (get(&x[i * c + j]) - centre) * r;
            float g = get(&d_y[i * c + j]) * act_slope(act, n * scale + bias);

            sum_gn += g * n;
            sum_g += g;
        }
    }
    write_two_sums(sum_gn, sum_g, c, j, partial);
}

/* d_w, d_b +=; means[2][c]: of g n, of g */
static __global__ void finish_gradients_kernel(int64_t n_chunks, int64_t m, int64_t c, const float *partial,
                                               bool fixed_statistics, float *means, float *d_w, float *d_b)
{
    FLAT_LOOP(j, c)
    {
        double sum_gn = sum_chunks(partial, n_chunks, c, j, 0), sum_g = sum_chunks(partial, n_chunks, c, j, 1);

        means[j] = fixed_statistics ? 0.0f : (float)(sum_gn / (double)m);
        means[c + j] = fixed_statistics ? 0.0f : (float)(sum_g / (double)m);
        d_w[j] = (float)((double)d_w[j] + sum_gn);
        d_b[j] = (float)((double)d_b[j] + sum_g);
    }
}

template <typename T, int N>
static __global__ void gradient_kernel(int64_t m, int64_t c, const T *d_y, const T *x, const float *w, const float *b,
                                       const float *mean, const float *rstd, agglo_act act, const float *means,
                                       bool accumulate, T *d_x)
{
    int64_t j = own_columns<N>();
    float centre[N], r[N], scale[N], bias[N], mean_gn[N], mean_g[N];

    if (j >= c) {
        return;
    }
    load<N>(centre, mean + j);
    load<N>(r, rstd + j);
    load<N>(scale, w + j);
    load<N>(bias, b + j);
    load<N>(mean_gn, means + j);
    load<N>(mean_g, means + c + j);
    TALL_LOOP(i, m)
    {
        float n[N], pre[N], g[N];

        load<N>(n, x + i * c + j);
        load<N>(g, d_y + i * c + j);
#pragma unroll
        for (int k = 0; k < N; k++) {
            n[k] = (n[k] - centre[k]) * r[k];
            pre[k] = n[k] * scale[k] + bias[k];
        }
        act_slopes<N>(act, pre, g);
#pragma unroll
        for (int k = 0; k < N; k++) {
            g[k] = scale[k] * r[k] * (g[k] - mean_g[k] - n[k] * mean_gn[k]);
        }
        put<N>(d_x + i * c + j, g, accumulate);
    }
}

static void batchnorm_bwd(agglo_backend *be, const agglo_tensor *d_y, const agglo_tensor *x, const agglo_tensor *w,
                          const agglo_tensor *b, const agglo_tensor *mean, const agglo_tensor *rstd, agglo_act act,
                          bool fixed_statistics, bool accumulate, agglo_tensor *d_x, agglo_tensor *d_w,
                          agglo_tensor *d_b)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    int64_t c = x->shape[x->rank - 1], m = agglo_tensor_count(x) / c;
    agglo_cuda_chunks chunks = agglo_cuda_row_chunks(m);
    float *partial = (float *)agglo_cuda_reserve(cuda, (size_t)(2 * (chunks.n + 1) * c + 4) * sizeof(float)), *means;

    if (partial == NULL) {
        return;
    }
    means = partial + (2 * chunks.n * c + 3) / 4 * 4; /* of 16 bytes */
    WITH_STORAGE(x->dtype, T,
                 gradient_sums_kernel<T><<<sums_grid(c, chunks), dim3(WARP, SUM_ROWS), 0, cuda->stream>>>(
                     m, c, chunks.n_rows, (const T *)d_y->data, (const T *)x->data, input(w), input(b), input(mean),
                     input(rstd), act, partial));
    agglo_cuda_launched(cuda, "batchnorm_bwd");
    finish_gradients_kernel<<<flat_grid(cuda, c), BLOCK, 0, cuda->stream>>>(chunks.n, m, c, partial, fixed_statistics,
                                                                            means, output(d_w), output(d_b));
    agglo_cuda_launched(cuda, "batchnorm_bwd");
    WITH_STORAGE(x->dtype, T,
                 TALL_LAUNCH(cuda, T, m, c, gradient_kernel,
                             (c, d_y->data, x->data, input(w), input(b), input(mean), input(rstd), means, d_x->data), m,
                             c, input_of<T>(d_y), input_of<T>(x), input(w), input(b), input(mean), input(rstd), act,
                             means, accumulate, output_of<T>(d_x)));
    agglo_cuda_launched(cuda, "batchnorm_bwd");
}

/* ---- folding ---- */

template <typename FROM, typename TO>
static __global__ void fold_kernel(int64_t n, int64_t k, const FROM *w, const float *b, const float *gamma,
                                   const float *beta, const float *mean, const float *var, float eps, TO *w_out,
                                   float *b_out)
{
    int64_t j = own_column();

    if (j >= k) {
        return;
    }
    ROW_LOOP(i, n)
    {
        float scale = gamma[i] / sqrtf(var[i] + eps);

        put(&w_out[i * k + j], get(&w[i * k + j]) * scale);
        if (j == 0) {
            b_out[i] = beta[i] + ((b == NULL ? 0.0f : b[i]) - mean[i]) * scale;
        }
    }
}

static void batchnorm_fold(agglo_backend *be, const agglo_tensor *w, const agglo_tensor *b, const agglo_tensor *gamma,
                           const agglo_tensor *beta, const agglo_tensor *mean, const agglo_tensor *var, float eps,
                           agglo_tensor *w_out, agglo_tensor *b_out)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    int64_t n = w->shape[0], k = agglo_tensor_count(w) / n;

    WITH_STORAGE(w->dtype, FROM,
                 WITH_STORAGE(w_out->dtype, TO,
                              fold_kernel<FROM, TO><<<row_grid(1, n, k), row_block(k), 0, cuda->stream>>>(
                                  n, k, (const FROM *)w->data, input(b), input(gamma), input(beta), input(mean),
                                  input(var), eps, (TO *)w_out->data, output(b_out))));
    agglo_cuda_launched(cuda, "batchnorm_fold");
}

void agglo_cuda_batchnorm_ops(agglo_backend_ops *ops)
{
    ops->batchnorm = batchnorm;
    ops->batchnorm_infer = batchnorm_infer;
    ops->batchnorm_bwd = batchnorm_bwd;
    ops->batchnorm_fold = batchnorm_fold;
}
