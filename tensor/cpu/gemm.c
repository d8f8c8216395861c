/* C[m,n] (+)= A[m,k] B[k,n] over the pool.
 *
 *     for n, k, m in steps that bound the scratch:
 *         pack A and B into panels (shared scratch)                     all threads
 *         for tiles of C, for blocks of k, for panels of B, of A:       all threads
 *             gemm_kernel
 *             when the last block of k is done: finish(rows x GEMM_COLS of C)
 *
 * The order of an element's sum follows from k alone: within a block one chain, blocks added in order to C.
 */
#include "tensor/cpu/gemm_kernel.h"

#define BLOCK_K      768                /* steps of k between stores to C */
#define SUPER_K      3072               /* steps of k that are packed at a time */
#define SUPER_FLOATS ((int64_t)6 << 20) /* elements of A, and of B, that are packed at a time */
#define TILE_M       ((96 + GEMM_ROWS - 1) / GEMM_ROWS * GEMM_ROWS)
#define TILE_N       768
#define MIN_TASKS    32
#define PACK_PANELS  4 /* per task */

typedef struct gemm_work {
    const agglo_cpu_product *product;
    agglo_backend *be;
    int64_t block_k;
    /* what is packed now, from these places on */
    int64_t m0, n0, k0, m, n, k;
    int64_t n_a, n_b; /* panels to pack */
    float *a, *b;     /* [panel][k][GEMM_ROWS], [panel][k][GEMM_COLS] */
    int64_t tile_m, tile_n, n_tiles;
} gemm_work;

/* a_sums[i] += sum over k of A's row i, by blocks in order */
static void add_row_sums(const gemm_work *job, int64_t panel, const float *packed)
{
    float *out = job->product->a_sums + job->m0 + panel * GEMM_ROWS;
    int64_t n = agglo_min(GEMM_ROWS, job->m - panel * GEMM_ROWS);

    for (int64_t k0 = 0; k0 < job->k; k0 += job->block_k) {
        int64_t k1 = agglo_min(k0 + job->block_k, job->k);
        float sum[GEMM_ROWS] = {0};

        for (int64_t p = k0; p < k1; p++) {
#pragma omp simd
            for (int i = 0; i < GEMM_ROWS; i++) {
                sum[i] += packed[p * GEMM_ROWS + i];
            }
        }
        for (int64_t i = 0; i < n; i++) {
            out[i] += sum[i];
        }
    }
}

static void pack_task(void *context, int64_t index, int worker)
{
    const gemm_work *job = context;
    const agglo_cpu_product *product = job->product;

    (void)worker;
    for (int64_t i = index * PACK_PANELS; i < agglo_min((index + 1) * PACK_PANELS, job->n_a + job->n_b); i++) {
        if (i < job->n_a) {
            float *panel = job->a + i * job->k * GEMM_ROWS;
            int64_t n = agglo_min(GEMM_ROWS, job->m - i * GEMM_ROWS);

            gemm_pack(GEMM_ROWS, &product->a, job->m0 + i * GEMM_ROWS, n, job->k0, job->k, panel);
            if (product->a_sums != NULL && job->n0 == 0) {
                add_row_sums(job, i, panel);
            }
        } else {
            int64_t j = i - job->n_a;

            gemm_pack(GEMM_COLS, &product->b, job->n0 + j * GEMM_COLS, agglo_min(GEMM_COLS, job->n - j * GEMM_COLS),
                      job->k0, job->k, job->b + j * job->k * GEMM_COLS);
        }
    }
}

#define KERNEL(n_vec)                                                                                                  \
    static void kernel_##n_vec(int64_t k, const float *a, const float *b, float *c, int64_t ldc, bool accumulate)      \
    {                                                                                                                  \
        gemm_kernel(n_vec, k, a, 1, GEMM_ROWS, b, GEMM_COLS, c, ldc, accumulate);                                      \
    }

KERNEL(1)
KERNEL(2)
#if GEMM_VECS > 2
KERNEL(3)
#endif

static void kernel(int64_t n, int64_t k, const float *a, const float *b, float *c, int64_t ldc, bool accumulate)
{
    if (n <= GEMM_LANES) {
        kernel_1(k, a, b, c, ldc, accumulate);
        return;
    }
#if GEMM_VECS > 2
    if (n > 2 * GEMM_LANES) {
        kernel_3(k, a, b, c, ldc, accumulate);
        return;
    }
#endif
    kernel_2(k, a, b, c, ldc, accumulate);
}

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
    const agglo_cpu_product *product = job->product;
    int64_t m0 = index / job->n_tiles * job->tile_m, m = agglo_min(job->tile_m, job->m - m0);
    int64_t n0 = index % job->n_tiles * job->tile_n, n1 = agglo_min(n0 + job->tile_n, job->n);
    int64_t ldc = product->c == NULL ? job->tile_n : product->ldc;
    float *c =
        product->c == NULL ? agglo_cpu_worker(job->be, worker) : product->c + (job->m0 + m0) * ldc + job->n0 + n0;

    for (int64_t k0 = 0; k0 < job->k; k0 += job->block_k) {
        int64_t k = agglo_min(job->block_k, job->k - k0);
        bool accumulate = (product->accumulate && product->c != NULL) || job->k0 + k0 > 0;
        bool done = job->k0 + k0 + k == product->k;

        for (int64_t j = n0; j < n1; j += GEMM_COLS) {
            const float *b = job->b + j * job->k + k0 * GEMM_COLS;
            int64_t n = agglo_min(GEMM_COLS, n1 - j);

            for (int64_t i = m0; i < m0 + m; i += GEMM_ROWS) {
                const float *a = job->a + i * job->k + k0 * GEMM_ROWS;
                float *at = c + (i - m0) * ldc + j - n0;

                if (n % GEMM_LANES == 0 && i + GEMM_ROWS <= m0 + m) {
                    kernel(n, k, a, b, at, ldc, accumulate);
                } else {
                    kernel_edge(agglo_min(GEMM_ROWS, m0 + m - i), n, k, a, b, at, ldc, accumulate);
                }
            }
            if (done && product->finish != NULL) {
                product->finish(product->context, job->m0 + m0, m, job->n0 + j, n, c + j - n0, ldc);
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

void AGGLO_CPU_NAME(product)(agglo_backend *be, const agglo_cpu_product *product)
{
    gemm_work job = {.product = product, .be = be};
    int64_t super_m, super_n, super_k;
    size_t a_floats, b_floats;

    job.block_k = part(product->k, BLOCK_K, 1);
    /* without a C to keep sums in, all of k at a time */
    super_k = agglo_min(product->k, product->c == NULL ? product->k : SUPER_K / job.block_k * job.block_k);
    super_m = part(product->m, SUPER_FLOATS / super_k / GEMM_ROWS * GEMM_ROWS, GEMM_ROWS);
    super_n = part(product->n, SUPER_FLOATS / super_k / GEMM_COLS * GEMM_COLS, GEMM_COLS);
    job.tile_m = part(agglo_min(super_m, product->m), TILE_M, GEMM_ROWS);
    job.tile_n = part(agglo_min(super_n, product->n), TILE_N, GEMM_COLS);
    while (job.tile_n > 4 * GEMM_COLS &&
           agglo_ceil_div(super_m, job.tile_m) * agglo_ceil_div(super_n, job.tile_n) < MIN_TASKS) {
        job.tile_n = part(job.tile_n, job.tile_n / 2, GEMM_COLS);
    }
    a_floats = (size_t)(super_m * super_k + 15) / 16 * 16;
    b_floats = (size_t)(super_n * super_k);
    if (!agglo_cpu_reserve(be, (a_floats + b_floats) * sizeof(float),
                           product->c == NULL ? (size_t)(job.tile_m * job.tile_n) * sizeof(float) : 0)) {
        return;
    }
    job.a = agglo_cpu_shared(be);
    job.b = job.a + a_floats;
    for (job.n0 = 0; job.n0 < product->n; job.n0 += super_n) {
        job.n = agglo_min(super_n, product->n - job.n0);
        for (job.k0 = 0; job.k0 < product->k; job.k0 += super_k) {
            job.k = agglo_min(super_k, product->k - job.k0);
            for (job.m0 = 0; job.m0 < product->m; job.m0 += super_m) {
                job.m = agglo_min(super_m, product->m - job.m0);
                job.n_a = agglo_ceil_div(job.m, GEMM_ROWS);
                job.n_b = job.m0 == 0 ? agglo_ceil_div(job.n, GEMM_COLS) : 0;
                job.n_tiles = agglo_ceil_div(job.n, job.tile_n);
                agglo_pool_for(be->pool, agglo_ceil_div(job.n_a + job.n_b, PACK_PANELS), pack_task, &job);
                agglo_pool_for(be->pool, agglo_ceil_div(job.m, job.tile_m) * job.n_tiles, tile_task, &job);
            }
        }
    }
}
