/* Sums over rows, in fixed order.
 *
 *     column_sums    out[j] += sum_i a[i,j]            or sum_i a[i,j] b[i,j]       a, b [m,c]
 *
 * Two stages through scratch memory, no atomics. Column sums: the rows are cut into chunks by shape alone; a block of 32 x 8 threads takes
 * 32 columns (or vectors of them) of one chunk, each thread every eighth row in F32, eight threads meet in shared memory; then a thread per
 * column adds the chunks in order, in double.
 * Bytes moved: the inputs once, and 4 bytes per column and chunk of at least 32 rows. Deterministic.
 */
#include "tensor/cuda/kernels.cuh"

#define SUM_ROWS    8
#define LEAST_CHUNK 32
#define MOST_CHUNKS 128

agglo_cuda_chunks agglo_cuda_row_chunks(int64_t m)
{
    agglo_cuda_chunks out;

    out.n_rows = agglo_cuda_ceil_div(m, MOST_CHUNKS);
    out.n_rows = out.n_rows < LEAST_CHUNK ? LEAST_CHUNK : out.n_rows;
    out.n = agglo_cuda_ceil_div(m, out.n_rows);
    return out;
}

template <typename T, int N>
static __global__ void column_sums_kernel(int64_t m, int64_t c, int64_t chunk_rows, const T *a, const T *b,
                                          float *partial)
{
    __shared__ float sums[SUM_ROWS][WARP * N];
    int64_t j = own_columns<N>();
    int64_t first = (int64_t)blockIdx.y * chunk_rows;
    int64_t end = first + chunk_rows < m ? first + chunk_rows : m;
    float sum[N] = {};

    if (j < c) {
        for (int64_t i = first + threadIdx.y; i < end; i += SUM_ROWS) {
            float v[N], w[N];

            load<N>(v, &a[i * c + j]);
            if (b != NULL) {
                load<N>(w, &b[i * c + j]);
            }
#pragma unroll
            for (int k = 0; k < N; k++) {
                sum[k] += b == NULL ? v[k] : v[k] * w[k];
            }
        }
    }
#pragma unroll
    for (int k = 0; k < N; k++) {
        sums[threadIdx.y][k * WARP + threadIdx.x] = sum[k];
    }
    __syncthreads();
    if (threadIdx.y == 0 && j < c) {
        for (int r = 1; r < SUM_ROWS; r++) {
#pragma unroll
            for (int k = 0; k < N; k++) {
                sum[k] += sums[r][k * WARP + threadIdx.x];
            }
        }
        store<N>(&partial[blockIdx.y * c + j], sum);
    }
}

static __global__ void add_partials_kernel(int64_t n_chunks, int64_t n0, float *out0, int64_t n1, float *out1,
                                           const float *partial)
{
    FLAT_LOOP(j, n0 + n1)
    {
        float *out = j < n0 ? &out0[j] : &out1[j - n0];
        double sum = (double)*out;

        for (int64_t i = 0; i < n_chunks; i++) {
            sum += (double)partial[i * (n0 + n1) + j];
        }
        *out = (float)sum;
    }
}

void agglo_cuda_add_partials(agglo_cuda *cuda, int64_t n_chunks, int64_t n0, float *out0, int64_t n1, float *out1,
                             const float *partial)
{
    add_partials_kernel<<<flat_grid(cuda, n0 + n1), BLOCK, 0, cuda->stream>>>(n_chunks, n0, out0, n1, out1, partial);
    agglo_cuda_launched(cuda, "adding partial sums");
}

template <typename T>
static void column_sums_of(agglo_cuda *cuda, int64_t m, int64_t c, const T *a, const T *b, float *out)
{
    agglo_cuda_chunks chunks = agglo_cuda_row_chunks(m);
    float *partial = (float *)agglo_cuda_reserve(cuda, (size_t)(chunks.n * c) * sizeof(float));

    if (partial == NULL) {
        return;
    }
    if (wide<T>(c, a, b)) {
        dim3 grid((unsigned)agglo_cuda_ceil_div(c / LANES(T), WARP), (unsigned)chunks.n);

        column_sums_kernel<T, LANES(T)>
            <<<grid, dim3(WARP, SUM_ROWS), 0, cuda->stream>>>(m, c, chunks.n_rows, a, b, partial);
    } else {
        dim3 grid((unsigned)agglo_cuda_ceil_div(c, WARP), (unsigned)chunks.n);

        column_sums_kernel<T, 1><<<grid, dim3(WARP, SUM_ROWS), 0, cuda->stream>>>(m, c, chunks.n_rows, a, b, partial);
    }
    agglo_cuda_launched(cuda, "column sums");
    agglo_cuda_add_partials(cuda, chunks.n, c, out, 0, NULL, partial);
}

void agglo_cuda_column_sums(agglo_cuda *cuda, agglo_dtype dtype, int64_t m, int64_t c, const void *a, const void *b,
                            float *out)
{
    if (dtype == AGGLO_BF16) {
        column_sums_of(cuda, m, c, (const __nv_bfloat16 *)a, (const __nv_bfloat16 *)b, out);
    } else {
        column_sums_of(cuda, m, c, (const float *)a, (const float *)b, out);
    }
}
