/* C[m,n] (+)= A[m,k] B[k,n] over the pool.
 *
 *     for n and k in steps that bound the scratch:
 *         pack B into panels, shared scratch                        all threads
 *         for tiles of C:                                           all threads
 *             for blocks of k:
 *                 pack the tile's rows of A, own scratch: it stays in the second-level cache
 *                 for panels of B (first-level cache), for panels of A:  gemm_kernel
 *             behind the last block of k: finish(rows x GEMM_COLS of C)
 *
 * The order of an element's sum follows from k alone: within a block one chain, blocks added in order to C.
 */
#include "tensor/cpu/gemm_impl.h"

#define BLOCK_K      768                /* steps of k between stores to C */
#define SUPER_K      3072               /* steps of k for which B is packed at a time */
#define SUPER_FLOATS ((int64_t)5 << 19) /* elements of B that are packed at a time */
#define TILE_M       60                 /* a multiple of every GEMM_ROWS; with BLOCK_K, 180 KiB of A */
#define TILE_N       1536
#define MIN_TASKS    24
#define PACK_PANELS  8 /* per task */

typedef struct gemm_work {
    const agglo_cpu_gemm *product;
    agglo_backend *be;
    int64_t block_k;
    int64_t n0, k0, n, k; /* of B, what is packed now */
    float *b;             /* [panel][k][GEMM_COLS] */
    int64_t tile_m, tile_n, n_tiles;
} gemm_work;

static void pack_b(void *context, int64_t index, int worker)
{
    const gemm_work *job = context;
    const agglo_cpu_operand *in = &job->product->b;
    int64_t j = index * PACK_PANELS * GEMM_COLS, end = agglo_min(j + PACK_PANELS * GEMM_COLS, job->n);

    (void)worker;
    if (!in->k_fastest && in->dtype == AGGLO_F32) {
        int64_t whole = (end - j) / GEMM_COLS;

        gemm_pack_panels(GEMM_COLS, in, job->n0 + j, whole, job->k0, job->k, job->b + j * job->k);
        j += whole * GEMM_COLS;
    }
    for (; j < end; j += GEMM_COLS) {
        gemm_pack(GEMM_COLS, in, job->n0 + j, agglo_min(GEMM_COLS, job->n - j), job->k0, job->k, job->b + j * job->k);
    }
}

/* sums[i] += sum over k of a packed panel's row i */
static void add_row_sums(int64_t n, int64_t k, const float *panel, float *sums)
{
    float sum[GEMM_ROWS] = {0};

    for (int64_t p = 0; p < k; p++) {
#pragma omp simd
        for (int i = 0; i < GEMM_ROWS; i++) {
            sum[i] += panel[p * GEMM_ROWS + i];
        }
    }
    for (int64_t i = 0; i < n; i++) {
        sums[i] += sum[i];
    }
}

/* Rows m0..m0+m of A, k steps from k0 on, as panels [k][GEMM_ROWS]. */
static void pack_a(const agglo_cpu_gemm *product, int64_t m0, int64_t m, int64_t k0, int64_t k, bool sum, float *out)
{
    int64_t whole = 0;

    if (!product->a.k_fastest && product->a.dtype == AGGLO_F32) {
        whole = m / GEMM_ROWS * GEMM_ROWS;
        gemm_pack_panels(GEMM_ROWS, &product->a, m0, whole / GEMM_ROWS, k0, k, out);
    }
    for (int64_t i = 0; i < m; i += GEMM_ROWS) {
        int64_t n = agglo_min(GEMM_ROWS, m - i);

        if (i >= whole) {
            gemm_pack(GEMM_ROWS, &product->a, m0 + i, n, k0, k, out + i * k);
        }
        if (sum) {
            add_row_sums(n, k, out + i * k, product->a_sums + m0 + i);
        }
    }
}

GEMM_KERNELS(kernel, 1, GEMM_ROWS)

/* The same at C's edge, by way of a whole tile. */
static void kernel_edge(int64_t m, int64_t n, int64_t k, const float *a, const float *b, float *c, int64_t ldc,
                        bool accumulate)
{
    float tile[GEMM_ROWS * GEMM_COLS];

    kernel(n, k, a, b, tile, GEMM_COLS, false);
    for (int64_t i = 0; i < m; i++) {
        for (int64_t j = 0; j < n; j++) {
            c[i * ldc + j] = accumulate ? c[i * ldc + j] + tile[i * GEMM_COLS + j] : tile[i * GEMM_COLS + j];
        }
    }
}

static void tile_task(void *context, int64_t index, int worker)
{
    const gemm_work *job = context;
    const agglo_cpu_gemm *product = job->product;
    int64_t m0 = index / job->n_tiles * job->tile_m, m = agglo_min(job->tile_m, product->m - m0);
    int64_t n0 = index % job->n_tiles * job->tile_n, n1 = agglo_min(n0 + job->tile_n, job->n);
    float *a = agglo_cpu_worker(job->be, worker);
    int64_t ldc = product->c == NULL ? job->tile_n : product->ldc;
    float *c = product->c == NULL ? a + job->tile_m * job->block_k : product->c + m0 * ldc + job->n0 + n0;

    for (int64_t k0 = 0; k0 < job->k; k0 += job->block_k) {
        int64_t k = agglo_min(job->block_k, job->k - k0);
        bool accumulate = (product->accumulate && product->c != NULL) || job->k0 + k0 > 0;
        bool done = job->k0 + k0 + k == product->k;

        pack_a(product, m0, m, job->k0 + k0, k, product->a_sums != NULL && job->n0 + n0 == 0, a);
        for (int64_t j = n0; j < n1; j += GEMM_COLS) {
            const float *b = job->b + j * job->k + k0 * GEMM_COLS;
            int64_t n = agglo_min(GEMM_COLS, n1 - j);

            for (int64_t i = 0; i < m; i += GEMM_ROWS) {
                float *at = c + i * ldc + j - n0;

                if (n % GEMM_LANES == 0 && i + GEMM_ROWS <= m) {
                    kernel(n, k, a + i * k, b, at, ldc, accumulate);
                } else {
                    kernel_edge(agglo_min(GEMM_ROWS, m - i), n, k, a + i * k, b, at, ldc, accumulate);
                }
            }
            if (done && product->finish != NULL) {
                product->finish(product->context, m0, m, job->n0 + j, n, c + j - n0, ldc);
            }
        }
    }
}

/* Even parts of at most `most`, in multiples of `unit`. */
static int64_t part(int64_t n, int64_t most, int64_t unit)
{
    int64_t parts = agglo_ceil_div(n, most < unit ? unit : most);

    return agglo_ceil_div(agglo_ceil_div(n, parts), unit) * unit;
}

void AGGLO_CPU_NAME(gemm)(agglo_backend *be, const agglo_cpu_gemm *product)
{
    gemm_work job = {.product = product, .be = be};
    int64_t super_n, super_k, worker_floats;

    job.block_k = part(product->k, BLOCK_K, 1);
    /* without a C to keep sums in, all of k at a time */
    super_k = agglo_min(product->k, product->c == NULL ? product->k : SUPER_K / job.block_k * job.block_k);
    super_n = part(product->n, SUPER_FLOATS / super_k / GEMM_COLS * GEMM_COLS, GEMM_COLS);
    job.tile_m = part(product->m, TILE_M, GEMM_ROWS);
    job.tile_n = part(super_n, TILE_N, GEMM_COLS);
    while (job.tile_n > 4 * GEMM_COLS &&
           agglo_ceil_div(product->m, job.tile_m) * agglo_ceil_div(super_n, job.tile_n) < MIN_TASKS) {
        job.tile_n = part(job.tile_n, job.tile_n / 2, GEMM_COLS);
    }
    worker_floats = job.tile_m * (job.block_k + (product->c == NULL ? job.tile_n : 0));
    if (!agglo_cpu_reserve(be, (size_t)(super_n * super_k) * sizeof(float), (size_t)worker_floats * sizeof(float))) {
        return;
    }
    job.b = agglo_cpu_shared(be);
    for (job.n0 = 0; job.n0 < product->n; job.n0 += super_n) {
        job.n = agglo_min(super_n, product->n - job.n0);
        job.n_tiles = agglo_ceil_div(job.n, job.tile_n);
        for (job.k0 = 0; job.k0 < product->k; job.k0 += super_k) {
            job.k = agglo_min(super_k, product->k - job.k0);
            agglo_pool_for(be->pool, agglo_ceil_div(job.n, PACK_PANELS * GEMM_COLS), pack_b, &job);
            agglo_pool_for(be->pool, agglo_ceil_div(product->m, job.tile_m) * job.n_tiles, tile_task, &job);
        }
    }
}
