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
 * Where all rows are one tile, packed B would be read once: a task packs FUSED_PANELS at a time beside A, and nothing is shared.
 * The order of an element's sum follows from k alone: within a block one chain, blocks added in order to C.
 */
#include "tensor/cpu/gemm_impl.h"

#define BLOCK_K      768                /* steps of k between stores to C */
#define SUPER_K      3072               /* steps of k for which B is packed at a time */
#define SUPER_FLOATS ((int64_t)5 << 19) /* elements of B that are packed at a time */
#define TILE_M       60                 /* a multiple of every GEMM_ROWS; with BLOCK_K, 180 KiB of A */
#define TASK_M       132                /* the same where a task has more rows: B is read less often */
#define TILE_N       1536
#define MIN_TASKS    24
#define PACK_PANELS  8 /* per task */
#define FUSED_PANELS 4
#define SHARED_A     ((int64_t)1 << 20) /* elements of an A that is packed once for all tiles of columns */

typedef struct gemm_work {
    const agglo_cpu_gemm *product;
    agglo_backend *be;
    int64_t block_k;
    int64_t n0, k0, n, k;     /* of B, what is packed now */
    int64_t super_n, super_k; /* of B, what is packed at a time */
    bool fused;               /* tasks pack what they read */
    float *b;                 /* where B is packed */
    const float *panels;      /* [panel][k][GEMM_COLS]; NULL: fused */
    int64_t tile_m, tile_n, n_tiles;
    float *a;          /* A in panels, [tile][block of k][panel]; NULL: tasks pack theirs */
    int64_t rows, own; /* floats of scratch: for A's rows where a_rows makes them, for panels of B that a task packs */
} gemm_work;

/* Columns j.. of `width` columns of what is packed now, k steps from k0 on of it, as panels [k][GEMM_COLS]. */
static void pack_b_panels(const gemm_work *job, int64_t j, int64_t width, int64_t k0, int64_t k, float *out)
{
    const agglo_cpu_operand *in = &job->product->b;
    int64_t first = job->n0 + j, whole = 0;

    k0 += job->k0;
    if (!in->k_fastest && in->dtype == AGGLO_F32) {
        whole = width / GEMM_COLS * GEMM_COLS;
        gemm_pack_panels(GEMM_COLS, in, first, whole / GEMM_COLS, k0, k, out);
    }
    for (int64_t i = whole; i < width; i += GEMM_COLS) {
        gemm_pack(GEMM_COLS, in, first + i, agglo_min(GEMM_COLS, width - i), k0, k, out + i * k);
    }
}

static void pack_b(void *context, int64_t index, int worker)
{
    const gemm_work *job = context;
    int64_t j = index * PACK_PANELS * GEMM_COLS;

    (void)worker;
    pack_b_panels(job, j, agglo_min(PACK_PANELS * GEMM_COLS, job->n - j), 0, job->k, job->b + j * job->k);
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

/* Rows m0..m0+m of A, k steps from k0 on, as panels [k][GEMM_ROWS]; `rows` is scratch for A that a_rows makes. */
static void pack_a(const agglo_cpu_gemm *product, int64_t m0, int64_t m, int64_t k0, int64_t k, bool sum, float *rows,
                   float *out)
{
    int64_t whole = 0;

    if (product->a_rows == NULL && !product->a.k_fastest && product->a.dtype == AGGLO_F32) {
        whole = m / GEMM_ROWS * GEMM_ROWS;
        gemm_pack_panels(GEMM_ROWS, &product->a, m0, whole / GEMM_ROWS, k0, k, out);
    }
    for (int64_t i = 0; i < m; i += GEMM_ROWS) {
        int64_t n = agglo_min(GEMM_ROWS, m - i);

        if (product->a_rows != NULL) {
            product->a_rows(product->rows, m0 + i, n, k0, k, rows);
            gemm_pack_rows(GEMM_ROWS, n, k, rows, k, out + i * k);
        } else if (i >= whole) {
            gemm_pack(GEMM_ROWS, &product->a, m0 + i, n, k0, k, out + i * k);
        }
        if (sum) {
            add_row_sums(n, k, out + i * k, product->a_sums + m0 + i);
        }
    }
}

GEMM_KERNELS(kernel, 1, GEMM_ROWS)

/* The same for fewer rows of a panel, where those that are left would be mostly zeros. */
#if GEMM_ROWS > 8
GEMM_KERNELS_OF(kernel_8, 8, 1, GEMM_ROWS)
#endif
#if GEMM_ROWS > 4
GEMM_KERNELS_OF(kernel_4, 4, 1, GEMM_ROWS)
#endif

static void kernel_rows(int64_t m, int64_t n, int64_t k, const float *a, const float *b, float *c)
{
#if GEMM_ROWS > 4
    if (m <= 4) {
        kernel_4(n, k, a, b, c, GEMM_COLS, false);
        return;
    }
#endif
#if GEMM_ROWS > 8
    if (m <= 8) {
        kernel_8(n, k, a, b, c, GEMM_COLS, false);
        return;
    }
#endif
    (void)m;
    kernel(n, k, a, b, c, GEMM_COLS, false);
}

/* The same at C's edge, by way of a whole tile. */
static void kernel_edge(int64_t m, int64_t n, int64_t k, const float *a, const float *b, float *c, int64_t ldc,
                        bool accumulate)
{
    float tile[GEMM_ROWS * GEMM_COLS];

    kernel_rows(m, n, k, a, b, tile);
    for (int64_t i = 0; i < m; i++) {
        for (int64_t j = 0; j < n; j++) {
            c[i * ldc + j] = accumulate ? c[i * ldc + j] + tile[i * GEMM_COLS + j] : tile[i * GEMM_COLS + j];
        }
    }
}

/* C of a panel of B and the panels of m rows of A */
static void panel(int64_t m, int64_t n, int64_t k, const float *a, const float *b, float *c, int64_t ldc,
                  bool accumulate)
{
    for (int64_t i = 0; i < m; i += GEMM_ROWS) {
        if (n % GEMM_LANES == 0 && i + GEMM_ROWS <= m) {
            kernel(n, k, a + i * k, b, c + i * ldc, ldc, accumulate);
        } else {
            kernel_edge(agglo_min(GEMM_ROWS, m - i), n, k, a + i * k, b, c + i * ldc, ldc, accumulate);
        }
    }
}

/* Where the panels of a tile's block of k stand in job->a: all rows but the last tile's fill whole panels. */
static float *shared_panels(const gemm_work *job, int64_t m0, int64_t m, int64_t k0)
{
    return job->a + m0 * job->product->k + agglo_ceil_div(m, GEMM_ROWS) * GEMM_ROWS * k0;
}

static void pack_a_task(void *context, int64_t index, int worker)
{
    const gemm_work *job = context;
    const agglo_cpu_gemm *product = job->product;
    int64_t n_k = agglo_ceil_div(product->k, job->block_k), k0 = index % n_k * job->block_k;
    int64_t m0 = index / n_k * job->tile_m, m = agglo_min(job->tile_m, product->m - m0);

    pack_a(product, m0, m, k0, agglo_min(job->block_k, product->k - k0), false, agglo_cpu_worker(job->be, worker),
           shared_panels(job, m0, m, k0));
}

static void tile_task(void *context, int64_t index, int worker)
{
    const gemm_work *job = context;
    const agglo_cpu_gemm *product = job->product;
    int64_t m0 = index / job->n_tiles * job->tile_m, m = agglo_min(job->tile_m, product->m - m0);
    int64_t n0 = index % job->n_tiles * job->tile_n, n1 = agglo_min(n0 + job->tile_n, job->n);
    float *a = agglo_cpu_worker(job->be, worker), *rows = a + job->tile_m * job->block_k, *own = rows + job->rows;
    int64_t ldc = product->c == NULL ? job->tile_n : product->ldc;
    float *c = product->c == NULL ? own + job->own : product->c + m0 * ldc + job->n0 + n0;

    for (int64_t k0 = 0; k0 < job->k; k0 += job->block_k) {
        int64_t k = agglo_min(job->block_k, job->k - k0);
        bool accumulate = (product->accumulate && product->c != NULL) || job->k0 + k0 > 0;
        bool done = job->k0 + k0 + k == product->k;

        if (job->a != NULL) {
            a = shared_panels(job, m0, m, job->k0 + k0);
        } else {
            pack_a(product, m0, m, job->k0 + k0, k, product->a_sums != NULL && job->n0 + n0 == 0, rows, a);
        }
        for (int64_t j = n0; j < n1; j += GEMM_COLS) {
            int64_t n = agglo_min(GEMM_COLS, n1 - j);
            const float *b;

            if (!job->fused) {
                b = job->panels + j * job->k + k0 * GEMM_COLS;
            } else {
                int64_t ahead = (j - n0) % (FUSED_PANELS * GEMM_COLS);

                if (ahead == 0) {
                    pack_b_panels(job, j, agglo_min(FUSED_PANELS * GEMM_COLS, n1 - j), k0, k, own);
                }
                b = own + ahead * k;
            }
            panel(m, n, k, a, b, c + j - n0, ldc, accumulate);
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

/* How a product is cut. */
static gemm_work work_of(agglo_backend *be, const agglo_cpu_gemm *product)
{
    gemm_work job = {.product = product, .be = be};

    job.block_k = part(product->k, BLOCK_K, 1);
    job.tile_m = part(product->m, TILE_M, GEMM_ROWS);
    job.super_k = product->k;
    job.super_n = product->n;
    job.fused = !product->b_packed && product->m <= job.tile_m;
    if (!job.fused && !product->b_packed) {
        /* without a C to keep sums in, all of k at a time */
        job.super_k = agglo_min(product->k, product->c == NULL ? product->k : SUPER_K / job.block_k * job.block_k);
        job.super_n = part(product->n, SUPER_FLOATS / job.super_k / GEMM_COLS * GEMM_COLS, GEMM_COLS);
    }
    job.tile_n = part(job.super_n, TILE_N, GEMM_COLS);
    while (job.tile_n > 4 * GEMM_COLS &&
           agglo_ceil_div(product->m, job.tile_m) * agglo_ceil_div(job.super_n, job.tile_n) < MIN_TASKS) {
        job.tile_n = part(job.tile_n, job.tile_n / 2, GEMM_COLS);
    }
    job.rows = product->a_rows != NULL ? GEMM_ROWS * job.block_k : 0;
    job.own = job.fused ? FUSED_PANELS * GEMM_COLS * job.block_k : 0;
    return job;
}

static int64_t worker_floats(const gemm_work *job)
{
    return job->tile_m * (job->block_k + (job->product->c == NULL ? job->tile_n : 0)) + job->rows + job->own;
}

int64_t AGGLO_CPU_NAME(gemm_worker_floats)(const agglo_cpu_gemm *product)
{
    gemm_work job = work_of(NULL, product);

    return worker_floats(&job);
}

void AGGLO_CPU_NAME(gemm)(agglo_backend *be, const agglo_cpu_gemm *product)
{
    gemm_work job = work_of(be, product);
    bool packs = !product->b_packed && !job.fused;
    int64_t shared_b = packs ? job.super_n * job.super_k : 0, rows = agglo_ceil_div(product->m, GEMM_ROWS) * GEMM_ROWS;
    bool share_a =
        !product->b_packed && product->a_sums == NULL && product->n > job.tile_n && rows * product->k <= SHARED_A;

    AGGLO_ASSERT(product->b_packed == (product->packed != NULL));
    if (!product->b_packed &&
        !agglo_cpu_reserve(be, (size_t)(shared_b + (share_a ? rows * product->k : 0)) * sizeof(float),
                           (size_t)worker_floats(&job) * sizeof(float))) {
        return;
    }
    AGGLO_ASSERT((size_t)worker_floats(&job) * sizeof(float) <= agglo_cpu_worker_bytes(be));
    job.b = packs ? agglo_cpu_shared(be) : NULL;
    job.panels = packs ? job.b : product->packed;
    if (share_a) {
        job.a = (float *)agglo_cpu_shared(be) + shared_b;
        agglo_pool_for(be->pool, agglo_ceil_div(product->m, job.tile_m) * agglo_ceil_div(product->k, job.block_k),
                       pack_a_task, &job);
    }
    for (job.n0 = 0; job.n0 < product->n; job.n0 += job.super_n) {
        job.n = agglo_min(job.super_n, product->n - job.n0);
        job.n_tiles = agglo_ceil_div(job.n, job.tile_n);
        for (job.k0 = 0; job.k0 < product->k; job.k0 += job.super_k) {
            job.k = agglo_min(job.super_k, product->k - job.k0);
            if (packs) {
                agglo_pool_for(be->pool, agglo_ceil_div(job.n, PACK_PANELS * GEMM_COLS), pack_b, &job);
            }
            agglo_pool_for(be->pool, agglo_ceil_div(product->m, job.tile_m) * job.n_tiles, tile_task, &job);
        }
    }
}

/* ---- inside a task ---- */

int64_t AGGLO_CPU_NAME(gemm_packed_floats)(int64_t n, int64_t k)
{
    return agglo_ceil_div(n, GEMM_COLS) * GEMM_COLS * k;
}

void AGGLO_CPU_NAME(gemm_pack_b)(agglo_backend *be, const agglo_cpu_operand *b, int64_t n, int64_t k, float *packed)
{
    agglo_cpu_gemm product = {.n = n, .k = k, .b = *b};
    gemm_work job = {.product = &product, .be = be, .n = n, .k = k, .b = packed};

    agglo_pool_for(be->pool, agglo_ceil_div(n, PACK_PANELS * GEMM_COLS), pack_b, &job);
}

int64_t AGGLO_CPU_NAME(gemm_tile_floats)(int64_t m, int64_t k)
{
    return agglo_ceil_div(agglo_min(m, TASK_M), GEMM_ROWS) * GEMM_ROWS * part(k, BLOCK_K, 1);
}

void AGGLO_CPU_NAME(gemm_tile)(int64_t m, int64_t n, int64_t k, const agglo_cpu_operand *a, const float *packed,
                               float *c, int64_t ldc, float *scratch)
{
    agglo_cpu_gemm product = {.m = m, .n = n, .k = k, .a = *a};
    int64_t block_k = part(k, BLOCK_K, 1);

    for (int64_t m0 = 0; m0 < m; m0 += TASK_M) {
        int64_t rows = agglo_min(TASK_M, m - m0);

        for (int64_t k0 = 0; k0 < k; k0 += block_k) {
            int64_t steps = agglo_min(block_k, k - k0);

            pack_a(&product, m0, rows, k0, steps, false, NULL, scratch);
            for (int64_t j = 0; j < n; j += GEMM_COLS) {
                panel(rows, agglo_min(GEMM_COLS, n - j), steps, scratch, packed + j * k + k0 * GEMM_COLS,
                      c + m0 * ldc + j, ldc, k0 > 0);
            }
        }
    }
}

void AGGLO_CPU_NAME(gemm_panels)(int64_t m, int64_t n, int64_t k, const float *a, const float *b, float *c, int64_t ldc,
                                 bool accumulate)
{
    for (int64_t j = 0; j < n; j += GEMM_COLS) {
        panel(m, agglo_min(GEMM_COLS, n - j), k, a, b + j * k, c + j, ldc, accumulate);
    }
}
