/* Layer normalisation over rows of x[m,c].
 *
 *     forward     mean = sum x / c;  var = sum (x - mean)^2 / c;  rstd = 1 / sqrt(var + eps);  y = (x - mean) rstd w + b
 *     backward    n = (x - mean) rstd;  g = d_y w;  d_x (+)= rstd (g - mean(g) - n mean(g n));  d_w += sum_i d_y n;  d_b += sum_i d_y
 *
 * Mapping: a warp per row, eight rows to a block, lanes striding over the channels; a row is read three times forward and twice backward,
 * from the first-level cache after the first. The parameters' gradients are a second pass over x and d_y: 32 channels of one chunk of rows
 * to a block of 32 x 8 threads, then the chunks in order (reduce.cu).
 * Bytes moved: 8 an element forward, 12 backward (16 accumulating) and 8 for the parameters. Numerics: F32, two-pass variance, sums by a
 * fixed butterfly over the lanes; deterministic. y may be x: a lane writes only what it alone has still to read.
 */
#include "tensor/cuda/kernels.cuh"

#define ROWS     (BLOCK / WARP)
#define SUM_ROWS 8

static __global__ void layernorm_kernel(int64_t m, int64_t c, const float *x, const float *w, const float *b, float eps,
                                        float *y, float *mean_out, float *rstd_out)
{
    int lane = (int)threadIdx.x % WARP;
    float per_channel = 1.0f / (float)c;

    for (int64_t i = (int64_t)blockIdx.x * ROWS + threadIdx.x / WARP; i < m; i += (int64_t)gridDim.x * ROWS) {
        const float *row = x + i * c;
        float mean = 0.0f, variance = 0.0f, rstd;

        for (int64_t j = lane; j < c; j += WARP) {
            mean += row[j];
        }
        mean = warp_sum(mean) * per_channel;
        for (int64_t j = lane; j < c; j += WARP) {
            float d = row[j] - mean;

            variance += d * d;
        }
        rstd = 1.0f / sqrtf(warp_sum(variance) * per_channel + eps);
        for (int64_t j = lane; j < c; j += WARP) {
            y[i * c + j] = (row[j] - mean) * rstd * w[j] + b[j];
        }
        if (lane == 0 && mean_out != NULL) {
            mean_out[i] = mean;
        }
        if (lane == 0 && rstd_out != NULL) {
            rstd_out[i] = rstd;
        }
    }
}

static void layernorm(agglo_backend *be, const agglo_tensor *x, const agglo_tensor *w, const agglo_tensor *b, float eps,
                      agglo_tensor *y, agglo_tensor *mean, agglo_tensor *rstd)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    int64_t c = x->shape[x->rank - 1], m = agglo_tensor_count(x) / c;

    layernorm_kernel<<<agglo_cuda_grid(agglo_cuda_ceil_div(m, ROWS), MOST_GRID), BLOCK, 0, cuda->stream>>>(
        m, c, input(x), input(w), input(b), eps, output(y), output(mean), output(rstd));
    agglo_cuda_launched(cuda, "layernorm");
}

static __global__ void layernorm_bwd_kernel(int64_t m, int64_t c, const float *d_y, const float *x, const float *w,
                                            const float *mean_in, const float *rstd_in, bool accumulate, float *d_x)
{
    int lane = (int)threadIdx.x % WARP;
    float per_channel = 1.0f / (float)c;

    for (int64_t i = (int64_t)blockIdx.x * ROWS + threadIdx.x / WARP; i < m; i += (int64_t)gridDim.x * ROWS) {
        float mean = mean_in[i], rstd = rstd_in[i], sum_g = 0.0f, sum_gn = 0.0f;

        for (int64_t j = lane; j < c; j += WARP) {
            float n = (x[i * c + j] - mean) * rstd, g = d_y[i * c + j] * w[j];

            sum_g += g;
            sum_gn += g * n;
        }
        sum_g = warp_sum(sum_g) * per_channel;
        sum_gn = warp_sum(sum_gn) * per_channel;
        for (int64_t j = lane; j < c; j += WARP) {
            float n = (x[i * c + j] - mean) * rstd;
            float d = rstd * (d_y[i * c + j] * w[j] - sum_g - n * sum_gn);

            d_x[i * c + j] = accumulate ? d_x[i * c + j] + d : d;
        }
    }
}

/* partial[chunk][2][c]: d_w, d_b */
static __global__ void layernorm_params_kernel(int64_t m, int64_t c, int64_t chunk_rows, const float *d_y,
                                               const float *x, const float *mean, const float *rstd, float *partial)
{
    __shared__ float sums_w[SUM_ROWS][WARP], sums_b[SUM_ROWS][WARP];
    int64_t j = (int64_t)blockIdx.x * WARP + threadIdx.x;
    int64_t first = (int64_t)blockIdx.y * chunk_rows;
    int64_t end = first + chunk_rows < m ? first + chunk_rows : m;
    float d_w = 0.0f, d_b = 0.0f;

    if (j < c) {
        for (int64_t i = first + threadIdx.y; i < end; i += SUM_ROWS) {
            float d = d_y[i * c + j];

            d_w += d * ((x[i * c + j] - mean[i]) * rstd[i]);
            d_b += d;
        }
    }
    sums_w[threadIdx.y][threadIdx.x] = d_w;
    sums_b[threadIdx.y][threadIdx.x] = d_b;
    __syncthreads();
    if (threadIdx.y == 0 && j < c) {
        for (int r = 1; r < SUM_ROWS; r++) {
            d_w += sums_w[r][threadIdx.x];
            d_b += sums_b[r][threadIdx.x];
        }
        partial[2 * blockIdx.y * c + j] = d_w;
        partial[(2 * blockIdx.y + 1) * c + j] = d_b;
    }
}

/* The parameters' gradients first: d_x may be d_y. */
static void layernorm_bwd(agglo_backend *be, const agglo_tensor *d_y, const agglo_tensor *x, const agglo_tensor *w,
                          const agglo_tensor *mean, const agglo_tensor *rstd, bool accumulate, agglo_tensor *d_x,
                          agglo_tensor *d_w, agglo_tensor *d_b)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    int64_t c = x->shape[x->rank - 1], m = agglo_tensor_count(x) / c;
    agglo_cuda_chunks chunks = agglo_cuda_row_chunks(m);
    float *partial = (float *)agglo_cuda_reserve(cuda, (size_t)(2 * chunks.n * c) * sizeof(float));
    dim3 grid((unsigned)agglo_cuda_ceil_div(c, WARP), (unsigned)chunks.n);

    if (partial == NULL) {
        return;
    }
    layernorm_params_kernel<<<grid, dim3(WARP, SUM_ROWS), 0, cuda->stream>>>(m, c, chunks.n_rows, input(d_y), input(x),
                                                                             input(mean), input(rstd), partial);
    agglo_cuda_launched(cuda, "layernorm_bwd");
    agglo_cuda_add_partials(cuda, chunks.n, c, output(d_w), c, output(d_b), partial);
    layernorm_bwd_kernel<<<agglo_cuda_grid(agglo_cuda_ceil_div(m, ROWS), MOST_GRID), BLOCK, 0, cuda->stream>>>(
        m, c, input(d_y), input(x), input(w), input(mean), input(rstd), accumulate, output(d_x));
    agglo_cuda_launched(cuda, "layernorm_bwd");
}

void agglo_cuda_norm_ops(agglo_backend_ops *ops)
{
    ops->layernorm = layernorm;
    ops->layernorm_bwd = layernorm_bwd;
}
