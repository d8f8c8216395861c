/* Linear layers on the CPU: oneDNN products over tiles, with bias and activation applied while a tile is in cache.
 *
 * Tiles depend on the shape only. The reduction of a product stays whole inside one task: over K going forward, over N for the input gradient,
 * over M (all rows) for the weight gradient.
 */
#include "tensor/cpu/cpu_impl.h"

#define TILE_ROWS     256 /* rows per product: enough to pay for packing the weights again */
#define TILE_COLS     128 /* the least worth a product of its own */
#define MIN_TASKS     16  /* cut columns too when there are fewer row tiles than this */
#define WEIGHT_ROWS   128 /* rows of d_w per task */
#define PACKED_COLS   256 /* rows of d_y that are transposed at a time */
#define PACKED_STRIDE 272 /* not a power of two: rows of a block must not fall on the same cache sets */

/* A matrix cut into tiles of rows x cols. */
typedef struct tiling {
    int64_t m, n, tile_m, tile_n, n_m, n_n;
} tiling;

static tiling cut(int64_t m, int64_t n, int64_t tile_rows)
{
    tiling t = {m, n, agglo_min(m, tile_rows), n, 0, 0};

    t.n_m = agglo_ceil_div(m, t.tile_m);
    t.tile_m = agglo_ceil_div(m, t.n_m); /* even tiles */
    t.n_n = agglo_min(agglo_ceil_div(MIN_TASKS, t.n_m), agglo_ceil_div(n, TILE_COLS));
    t.tile_n = agglo_ceil_div(agglo_ceil_div(n, t.n_n), 16) * 16;
    t.n_n = agglo_ceil_div(n, t.tile_n);
    return t;
}

typedef struct tile {
    int64_t m0, m, n0, n;
} tile;

static tile tile_at(const tiling *t, int64_t index)
{
    tile out = {index / t->n_n * t->tile_m, 0, index % t->n_n * t->tile_n, 0};

    out.m = agglo_min(t->tile_m, t->m - out.m0);
    out.n = agglo_min(t->tile_n, t->n - out.n0);
    return out;
}

typedef struct linear_work {
    tiling tiles;
    int64_t k;
    const float *x, *w, *b;
    float *pre, *y;
    agglo_act act;
} linear_work;

static void linear_tile(void *context, int64_t index, int worker)
{
    const linear_work *job = context;
    tile at = tile_at(&job->tiles, index);
    int64_t n = job->tiles.n;
    float *y = job->y + at.m0 * n + at.n0;
    float *pre = job->pre == NULL ? NULL : job->pre + at.m0 * n + at.n0;

    (void)worker;
    agglo_cpu_sgemm(false, true, at.m, at.n, job->k, 1.0f, job->x + at.m0 * job->k, job->k, job->w + at.n0 * job->k,
                    job->k, 0.0f, y, n);
    if (job->b == NULL && job->act == AGGLO_ACT_NONE && pre == NULL) {
        return;
    }
    for (int64_t i = 0; i < at.m; i++) {
        AGGLO_CPU_NAME(bias_act)
        (job->act, at.n, y + i * n, job->b == NULL ? NULL : job->b + at.n0, pre == NULL ? NULL : pre + i * n,
         y + i * n);
    }
}

static void linear(agglo_backend *be, const agglo_tensor *x, const agglo_tensor *w, const agglo_tensor *b,
                   agglo_act act, agglo_tensor *pre, agglo_tensor *y)
{
    int64_t k = w->shape[1], n = w->shape[0], m = agglo_tensor_count(x) / k;
    linear_work job = {cut(m, n, TILE_ROWS),           k,       x->data, w->data, b == NULL ? NULL : b->data,
                       pre == NULL ? NULL : pre->data, y->data, act};

    agglo_pool_for(be->pool, job.tiles.n_m * job.tiles.n_n, linear_tile, &job);
}

typedef struct input_work {
    tiling tiles; /* of d_x[M,K] */
    int64_t n;
    const float *d_y, *w;
    float *d_x, beta;
} input_work;

static void input_tile(void *context, int64_t index, int worker)
{
    const input_work *job = context;
    tile at = tile_at(&job->tiles, index);
    int64_t k = job->tiles.n;

    (void)worker;
    agglo_cpu_sgemm(false, false, at.m, at.n, job->n, 1.0f, job->d_y + at.m0 * job->n, job->n, job->w + at.n0, k,
                    job->beta, job->d_x + at.m0 * k + at.n0, k);
}

static void linear_bwd_input(agglo_backend *be, const agglo_tensor *d_y, const agglo_tensor *w, bool accumulate,
                             agglo_tensor *d_x)
{
    int64_t k = w->shape[1], n = w->shape[0], m = agglo_tensor_count(d_y) / n;
    input_work job = {cut(m, k, TILE_ROWS), n, d_y->data, w->data, d_x->data, accumulate ? 1.0f : 0.0f};

    agglo_pool_for(be->pool, job.tiles.n_m * job.tiles.n_n, input_tile, &job);
}

typedef struct weight_work {
    agglo_backend *be;
    tiling tiles; /* of d_w[N,K] */
    int64_t m;
    const float *d_y, *x;
    float *d_w, *d_b;
} weight_work;

/* out[j][i] = d_y[i][j] for m rows and n columns. */
static void transpose(int64_t m, int64_t n, const float *d_y, int64_t stride, float *out)
{
    for (int64_t i0 = 0; i0 < m; i0 += 16) {
        int64_t i1 = agglo_min(i0 + 16, m);

        for (int64_t j = 0; j < n; j++) {
            for (int64_t i = i0; i < i1; i++) {
                out[j * PACKED_STRIDE + i] = d_y[i * stride + j];
            }
        }
    }
}

/* A strided, transposed left operand makes oneDNN half as fast: blocks of d_y are transposed into scratch first, where their column
 * sums are row sums. Blocks are added in order of rows. */
static void weight_tile(void *context, int64_t index, int worker)
{
    const weight_work *job = context;
    tile at = tile_at(&job->tiles, index);
    int64_t n = job->tiles.m, k = job->tiles.n;
    float *packed = agglo_cpu_worker(job->be, worker);
    double sums[WEIGHT_ROWS] = {0};
    bool bias = job->d_b != NULL && at.n0 == 0;

    for (int64_t m0 = 0; m0 < job->m; m0 += PACKED_COLS) {
        int64_t m = agglo_min(PACKED_COLS, job->m - m0);

        transpose(m, at.m, job->d_y + m0 * n + at.m0, n, packed);
        agglo_cpu_sgemm(false, false, at.m, at.n, m, 1.0f, packed, PACKED_STRIDE, job->x + m0 * k + at.n0, k, 1.0f,
                        job->d_w + at.m0 * k + at.n0, k);
        for (int64_t j = 0; bias && j < at.m; j++) {
            const float *row = packed + j * PACKED_STRIDE;
            float sum = 0.0f;

#pragma omp simd reduction(+ : sum)
            for (int64_t i = 0; i < m; i++) {
                sum += row[i];
            }
            sums[j] += (double)sum;
        }
    }
    for (int64_t j = 0; bias && j < at.m; j++) {
        job->d_b[at.m0 + j] = (float)((double)job->d_b[at.m0 + j] + sums[j]);
    }
}

static void linear_bwd_weight(agglo_backend *be, const agglo_tensor *d_y, const agglo_tensor *x, agglo_tensor *d_w,
                              agglo_tensor *d_b)
{
    int64_t n = d_w->shape[0], k = d_w->shape[1], m = agglo_tensor_count(x) / k;
    weight_work job = {be, cut(n, k, WEIGHT_ROWS), m, d_y->data, x->data, d_w->data, d_b == NULL ? NULL : d_b->data};

    if (agglo_cpu_reserve(be, 0, WEIGHT_ROWS * PACKED_STRIDE * sizeof(float))) {
        agglo_pool_for(be->pool, job.tiles.n_m * job.tiles.n_n, weight_tile, &job);
    }
}

void AGGLO_CPU_NAME(linear_ops)(agglo_backend_ops *ops)
{
    ops->linear = linear;
    ops->linear_bwd_input = linear_bwd_input;
    ops->linear_bwd_weight = linear_bwd_weight;
}
