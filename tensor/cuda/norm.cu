/* Layer normalisation over rows of x[m,c].
 *
 *     forward     mean = sum x / c;  var = sum (x - mean)^2 / c;  rstd = 1 / sqrt(var + eps);  y = (x - mean) rstd w + b
 *     backward    n = (x - mean) rstd;  g = d_y w;  d_x (+)= rstd (g - mean(g) - n mean(g n));  d_w += sum_i d_y n;  d_b += sum_i d_y
 *
 * Mapping: a warp per row, eight rows to a block, lanes striding over the channels, 16 bytes at a time where aligned; a row is read
 * three times forward and twice backward, from the first-level cache after the first. The parameters' gradients are a second pass over x and
 * d_y: 32 channels (or vectors of them) of one chunk of rows to a block of 32 x 8 threads, then the chunks in order (reduce.cu).
 * Accesses an element, of 4 bytes or 2: 2 forward, 3 backward (4 accumulating) and 2 for the parameters. Numerics: F32, two-pass variance, sums
 * by a fixed butterfly over the lanes; deterministic. y may be x: a lane writes only what it alone has still to read.
 */
#include "tensor/cuda/kernels.cuh"

#define ROWS     (BLOCK / WARP)
#define SUM_ROWS 8

template <typename T, int N>
static __global__ void layernorm_kernel(int64_t m, int64_t c, const T *x, const float *w, const float *b, float eps,
                                        T *y, float *mean_out, float *rstd_out)
{
    int lane = (int)threadIdx.x % WARP;
    float per_channel = 1.0f / (float)c;

    for (int64_t i = (int64_t)blockIdx.x * ROWS + threadIdx.x / WARP; i < m; i += (int64_t)gridDim.x * ROWS) {
        const T *row = x + i * c;
        float mean = 0.0f, variance = 0.0f, rstd;

        for (int64_t j = lane * N; j < c; j += WARP * N) {
            float v[N];

            load<N>(v, row + j);
#pragma unroll
            for (int k = 0; k < N; k++) {
                mean += v[k];
            }
        }
        mean = warp_sum(mean) * per_channel;
        for (int64_t j = lane * N; j < c; j += WARP * N) {
            float v[N];

            load<N>(v, row + j);
#pragma unroll
            for (int k = 0; k < N; k++) {
                variance += (v[k] - mean) * (v[k] - mean);
            }
        }
        rstd = 1.0f / sqrtf(warp_sum(variance) * per_channel + eps);
        for (int64_t j = lane * N; j < c; j += WARP * N) {
            float v[N], scale[N], shift[N];

            load<N>(v, row + j);
            load<N>(scale, w + j);
            load<N>(shift, b + j);
#pragma unroll
            for (int k = 0; k < N; k++) {
                v[k] = (v[k] - mean) * rstd * scale[k] + shift[k];
            }
            store<N>(&y[i * c + j], v);
        }
        if (lane == 0 && mean_out != NULL) {
            mean_out[i] = mean;
        }
        if (lane == 0 && rstd_out != NULL) {
            rstd_out[i] = rstd;
        }
    }
}

template <typename T>
static void layernorm_of(agglo_cuda *cuda, const agglo_tensor *x, const float *w, const float *b, float eps,
                         agglo_tensor *y, float *mean, float *rstd)
{
    int64_t c = x->shape[x->rank - 1], m = agglo_tensor_count(x) / c;
    unsigned grid = agglo_cuda_grid(agglo_cuda_ceil_div(m, ROWS), MOST_GRID);

    if (wide<T>(c, x->data, w, b, y->data)) {
        layernorm_kernel<T, LANES(T)>
            <<<grid, BLOCK, 0, cuda->stream>>>(m, c, input_of<T>(x), w, b, eps, output_of<T>(y), mean, rstd);
    } else {
        layernorm_kernel<T, 1>
            <<<grid, BLOCK, 0, cuda->stream>>>(m, c, input_of<T>(x), w, b, eps, output_of<T>(y), mean, rstd);
    }
    agglo_cuda_launched(cuda, "layernorm");
}

static void layernorm(agglo_backend *be, const agglo_tensor *x, const agglo_tensor *w, const agglo_tensor *b, float eps,
                      agglo_tensor *y, agglo_tensor *mean, agglo_tensor *rstd)
{
    BY_STORAGE(x, layernorm_of, agglo_cuda_enter(be), x, input(w), input(b), eps, y, output(mean), output(rstd));
}

template <typename T, int N>
static __global__ void layernorm_bwd_kernel(int64_t m, int64_t c, const T *d_y, const T *x, const float *w,
                                            const float *mean_in, const float *rstd_in, bool accumulate, T *d_x)
{
    int lane = (int)threadIdx.x % WARP;
    float per_channel = 1.0f / (float)c;

    for (int64_t i = (int64_t)blockIdx.x * ROWS + threadIdx.x / WARP; i < m; i += (int64_t)gridDim.x * ROWS) {
        float mean = mean_in[i], rstd = rstd_in[i], sum_g = 0.0f, sum_gn = 0.0f;

        for (int64_t j = lane * N; j < c; j += WARP * N) {
            float v[N], d[N], scale[N];

            load<N>(v, &x[i * c + j]);
            load<N>(d, &d_y[i * c + j]);
            load<N>(scale, w + j);
#pragma unroll
            for (int k = 0; k < N; k++) {
                float g = d[k] * scale[k];

                sum_g += g;
                sum_gn += g * ((v[k] - mean) * rstd);
            }
        }
        sum_g = warp_sum(sum_g) * per_channel;
        sum_gn = warp_sum(sum_gn) * per_channel;
        for (int64_t j = lane * N; j < c; j += WARP * N) {
            float v[N], d[N], scale[N];

            load<N>(v, &x[i * c + j]);
            load<N>(d, &d_y[i * c + j]);
            load<N>(scale, w + j);
#pragma unroll
            for (int k = 0; k < N; k++) {
                d[k] = rstd * (d[k] * scale[k] - sum_g - (v[k] - mean) * rstd * sum_gn);
            }
            put<N>(&d_x[i * c + j], d, accumulate);
        }
    }
}

/* partial[chunk][2][c]: d_w, d_b */
template <typename T, int N>
static __global__ void layernorm_params_kernel(int64_t m, int64_t c, int64_t chunk_rows, const T *d_y, const T *x,
                                               const float *mean, const float *rstd, float *partial)
{
    __shared__ float sums_w[SUM_ROWS][WARP * N], sums_b[SUM_ROWS][WARP * N];
    int64_t j = own_columns<N>();
    int64_t first = (int64_t)blockIdx.y * chunk_rows;
    int64_t end = first + chunk_rows < m ? first + chunk_rows : m;
    float d_w[N] = {}, d_b[N] = {};

    if (j < c) {
        for (int64_t i = first + threadIdx.y; i < end; i += SUM_ROWS) {
            float v[N], d[N], row_mean = mean[i], row_rstd = rstd[i];

            load<N>(v, &x[i * c + j]);
            load<N>(d, &d_y[i * c + j]);
#pragma unroll
            for (int k = 0; k < N; k++) {
                d_w[k] += d[k] * ((v[k] - row_mean) * row_rstd);
                d_b[k] += d[k];
            }
        }
    }
#pragma unroll
    for (int k = 0; k < N; k++) {
        sums_w[threadIdx.y][k * WARP + threadIdx.x] = d_w[k];
        sums_b[threadIdx.y][k * WARP + threadIdx.x] = d_b[k];
    }
    __syncthreads();
    if (threadIdx.y == 0 && j < c) {
        for (int r = 1; r < SUM_ROWS; r++) {
#pragma unroll
            for (int k = 0; k < N; k++) {
                d_w[k] += sums_w[r][k * WARP + threadIdx.x];
                d_b[k] += sums_b[r][k * WARP + threadIdx.x];
            }
        }
        store<N>(&partial[2 * blockIdx.y * c + j], d_w);
        store<N>(&partial[(2 * blockIdx.y + 1) * c + j], d_b);
    }
}

/* The parameters' gradients first: d_x may be d_y. */
template <typename T, int N>
static void layernorm_bwd_by(agglo_cuda *cuda, int64_t m, int64_t c, const T *d_y, const T *x, const float *w,
                             const float *mean, const float *rstd, bool accumulate, T *d_x, float *d_w, float *d_b)
{
    agglo_cuda_chunks chunks = agglo_cuda_row_chunks(m);
    float *partial = (float *)agglo_cuda_reserve(cuda, (size_t)(2 * chunks.n * c) * sizeof(float));
    dim3 grid((unsigned)agglo_cuda_ceil_div(c / N, WARP), (unsigned)chunks.n);

    if (partial == NULL) {
        return;
    }
    layernorm_params_kernel<T, N>
        <<<grid, dim3(WARP, SUM_ROWS), 0, cuda->stream>>>(m, c, chunks.n_rows, d_y, x, mean, rstd, partial);
    agglo_cuda_launched(cuda, "layernorm_bwd");
    agglo_cuda_add_partials(cuda, chunks.n, c, d_w, c, d_b, partial);
    layernorm_bwd_kernel<T, N><<<agglo_cuda_grid(agglo_cuda_ceil_div(m, ROWS), MOST_GRID), BLOCK, 0, cuda->stream>>>(
        m, c, d_y, x, w, mean, rstd, accumulate, d_x);
    agglo_cuda_launched(cuda, "layernorm_bwd");
}

template <typename T>
static void layernorm_bwd_of(agglo_cuda *cuda, const agglo_tensor *d_y, const agglo_tensor *x, const float *w,
                             const float *mean, const float *rstd, bool accumulate, agglo_tensor *d_x, float *d_w,
                             float *d_b)
{
    int64_t c = x->shape[x->rank - 1], m = agglo_tensor_count(x) / c;

    if (wide<T>(c, d_y->data, x->data, w, d_x->data)) {
        layernorm_bwd_by<T, LANES(T)>(cuda, m, c, input_of<T>(d_y), input_of<T>(x), w, mean, rstd, accumulate,
                                      output_of<T>(d_x), d_w, d_b);
    } else {
        layernorm_bwd_by<T, 1>(cuda, m, c, input_of<T>(d_y), input_of<T>(x), w, mean, rstd, accumulate,
                               output_of<T>(d_x), d_w, d_b);
    }
}

static void layernorm_bwd(agglo_backend *be, const agglo_tensor *d_y, const agglo_tensor *x, const agglo_tensor *w,
                          const agglo_tensor *mean, const agglo_tensor *rstd, bool accumulate, agglo_tensor *d_x,
                          agglo_tensor *d_w, agglo_tensor *d_b)
{
    BY_STORAGE(x, layernorm_bwd_of, agglo_cuda_enter(be), d_y, x, input(w), input(mean), input(rstd), accumulate, d_x,
               output(d_w), output(d_b));
}

void agglo_cuda_norm_ops(agglo_backend_ops *ops)
{
    ops->layernorm = layernorm;
    ops->layernorm_bwd = layernorm_bwd;
}
