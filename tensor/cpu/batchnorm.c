/* Batch normalisation on the CPU, over the rows of x[m,c].
 *
 * Sums over rows: blocks of rows, fixed by shape, go to tasks; inside one, SOME_ROWS rows are summed as floats and these sums as doubles;
 * blocks are added in order. Variances are of x - x[0], so that a large mean does not cancel. A backward pass reads x and d_y twice, once for
 * the sums and once for d_x; the argument of the activation is worked out again from x.
 */
#include "tensor/cpu/storage_impl.h"
#include "tensor/math_inline.h"

#include <math.h>

#define SOME_ROWS  64
#define MAX_BLOCKS 64
#define PIECE      16384 /* elements of a task that goes row by row */

typedef struct bn_work {
    agglo_backend *be;
    int64_t m, c, block, n_blocks;
    const void *x, *d_y;
    agglo_dtype dtype;
    const float *w, *b, *mean, *rstd;
    agglo_act act;
    void *y;
    bool accumulate;
    double *partial;               /* [block][2][c] */
    const float *offset;           /* [c]: the first row */
    const float *scale, *shift;    /* [c]: y = act(x scale + shift) */
    const float *mean_g, *mean_gn; /* [c] */
} bn_work;

static size_t floats(int64_t n)
{
    return (size_t)n * sizeof(float);
}

static void cut_rows(bn_work *job)
{
    job->n_blocks = agglo_min(MAX_BLOCKS, agglo_ceil_div(job->m, SOME_ROWS));
    job->block = agglo_ceil_div(agglo_ceil_div(job->m, job->n_blocks), SOME_ROWS) * SOME_ROWS;
    job->n_blocks = agglo_ceil_div(job->m, job->block);
}

/* sums[2][c] += some[2][c], which starts again from zero */
static void promote(double *restrict sums, float *restrict some, int64_t n)
{
    for (int64_t j = 0; j < n; j++) {
        sums[j] += (double)some[j];
        some[j] = 0.0f;
    }
}

static void statistics_block(void *context, int64_t index, int worker)
{
    const bn_work *job = context;
    int64_t c = job->c, end = agglo_min((index + 1) * job->block, job->m);
    double *sums = job->partial + index * 2 * c;
    float *restrict some = agglo_cpu_worker(job->be, worker), *tmp = some + 2 * c;

    memset(sums, 0, (size_t)(2 * c) * sizeof *sums);
    memset(some, 0, floats(2 * c));
    for (int64_t i = index * job->block; i < end; i++) {
        const float *x = agglo_cpu_row(tmp, job->x, job->dtype, i * c, c);

#pragma omp simd
        for (int64_t j = 0; j < c; j++) {
            float d = x[j] - job->offset[j];

            some[j] += d;
            some[c + j] += d * d;
        }
        if ((i + 1) % SOME_ROWS == 0 || i + 1 == end) {
            promote(sums, some, 2 * c);
        }
    }
}

/* out[2c] = sums over blocks, in order, of partial */
static void add_blocks(const bn_work *job, double *out)
{
    for (int64_t j = 0; j < 2 * job->c; j++) {
        double sum = 0.0;

        for (int64_t i = 0; i < job->n_blocks; i++) {
            sum += job->partial[i * 2 * job->c + j];
        }
        out[j] = sum;
    }
}

static void apply_rows(void *context, int64_t index, int worker)
{
    const bn_work *job = context;
    int64_t c = job->c, end = agglo_min((index + 1) * job->block, job->m);
    float *tmp = agglo_cpu_worker(job->be, worker);

    for (int64_t i = index * job->block; i < end; i++) {
        const float *x = agglo_cpu_row(tmp, job->x, job->dtype, i * c, c);
        float *y = job->dtype == AGGLO_F32 ? (float *)job->y + i * c : tmp;

#pragma omp simd
        for (int64_t j = 0; j < c; j++) {
            y[j] = (x[j] - job->mean[j]) * job->scale[j] + job->b[j];
        }
        if (job->act != AGGLO_ACT_NONE) {
            AGGLO_CPU_NAME(bias_act)(job->act, c, y, NULL, NULL, y);
        }
        agglo_cpu_store(job->y, job->dtype, i * c, c, false, y);
    }
}

/* y = act((x - mean) scale + b); scale stands in shared scratch */
static void apply(bn_work *job)
{
    job->block = 1 + PIECE / job->c;
    agglo_pool_for(job->be->pool, agglo_ceil_div(job->m, job->block), apply_rows, job);
}

static bn_work work_of(agglo_backend *be, const agglo_tensor *x, const agglo_tensor *w, const agglo_tensor *b,
                       agglo_act act)
{
    bn_work job = {.be = be, .x = x->data, .dtype = x->dtype, .w = w->data, .b = b->data, .act = act};

    job.c = x->shape[x->rank - 1];
    job.m = agglo_tensor_count(x) / job.c;
    return job;
}

static void batchnorm(agglo_backend *be, const agglo_tensor *x, const agglo_tensor *w, const agglo_tensor *b, float eps,
                      float momentum, agglo_act act, agglo_tensor *running_mean, agglo_tensor *running_var,
                      agglo_tensor *mean, agglo_tensor *rstd, agglo_tensor *y)
{
    bn_work job = work_of(be, x, w, b, act);
    int64_t c = job.c;
    double *sums, m = (double)job.m;
    float *scale, *mean_out = mean->data, *rstd_out = rstd->data;

    cut_rows(&job);
    /* shared: partial [n_blocks][2][c], sums [2][c], scale [c], offset [c] */
    if (!agglo_cpu_reserve(be, (size_t)((job.n_blocks + 1) * 2 * c) * sizeof(double) + floats(2 * c), floats(3 * c))) {
        return;
    }
    job.partial = agglo_cpu_shared(be);
    sums = job.partial + job.n_blocks * 2 * c;
    scale = (float *)(sums + 2 * c);
    agglo_cpu_load(scale + c, x->data, x->dtype, 0, c);
    job.offset = scale + c;
    agglo_pool_for(be->pool, job.n_blocks, statistics_block, &job);
    add_blocks(&job, sums);
    for (int64_t j = 0; j < c; j++) {
        double shift = sums[j] / m, var = sums[c + j] / m - shift * shift;
        double centre = (double)job.offset[j] + shift;

        var = var > 0.0 ? var : (var <= 0.0 ? 0.0 : var); /* a NaN stays */
        mean_out[j] = (float)centre;
        rstd_out[j] = (float)(1.0 / sqrt(var + (double)eps));
        scale[j] = rstd_out[j] * job.w[j];
        if (running_mean != NULL) {
            float *to_mean = running_mean->data, *to_var = running_var->data;

            to_mean[j] = (float)((1.0 - (double)momentum) * (double)to_mean[j] + (double)momentum * centre);
            to_var[j] =
                (float)((1.0 - (double)momentum) * (double)to_var[j] + (double)momentum * (var * m / (m - 1.0)));
        }
    }
    job.mean = mean_out;
    job.scale = scale;
    job.y = y->data;
    apply(&job);
}

static void batchnorm_infer(agglo_backend *be, const agglo_tensor *x, const agglo_tensor *w, const agglo_tensor *b,
                            const agglo_tensor *mean, const agglo_tensor *var, float eps, agglo_act act,
                            agglo_tensor *rstd, agglo_tensor *y)
{
    bn_work job = work_of(be, x, w, b, act);
    const float *v = var->data;
    float *scale;

    if (!agglo_cpu_reserve(be, floats(job.c), floats(job.c))) {
        return;
    }
    scale = agglo_cpu_shared(be);
    for (int64_t j = 0; j < job.c; j++) {
        float r = 1.0f / sqrtf(v[j] + eps);

        scale[j] = r * job.w[j];
        if (rstd != NULL) {
            ((float *)rstd->data)[j] = r;
        }
    }
    job.mean = mean->data;
    job.scale = scale;
    job.y = y->data;
    apply(&job);
}

/* ---- backward ---- */

/* g[j] = d_y[j] act'(n[j] w[j] + b[j]); n[j] = (x[j] - mean[j]) rstd[j] */
#define SLOPE_LOOP(slope)                                                                                              \
    do {                                                                                                               \
        _Pragma("omp simd") for (int64_t j = 0; j < c; j++)                                                            \
        {                                                                                                              \
            float v = n[j] * w[j] + b[j];                                                                              \
            g[j] = d_y[j] * (slope);                                                                                   \
        }                                                                                                              \
    } while (0)

static void row_slopes(const bn_work *job, const float *x, const float *d_y, float *restrict n, float *restrict g)
{
    const float *w = job->w, *b = job->b;
    int64_t c = job->c;

#pragma omp simd
    for (int64_t j = 0; j < c; j++) {
        n[j] = (x[j] - job->mean[j]) * job->rstd[j];
    }
    switch (job->act) {
    case AGGLO_ACT_NONE:
        memcpy(g, d_y, floats(c));
        break;
    case AGGLO_ACT_GELU:
        SLOPE_LOOP(agglo_gelu_slope(v));
        break;
    case AGGLO_ACT_QUICK_GELU:
        SLOPE_LOOP(agglo_quick_gelu_slope(v));
        break;
    case AGGLO_ACT_SILU:
        SLOPE_LOOP(agglo_silu_slope(v));
        break;
    case AGGLO_ACT_RELU:
        SLOPE_LOOP(v > 0.0f ? 1.0f : 0.0f);
        break;
    }
}

/* worker: some [2][c], n [c], g [c], and rows of x and d_y where they are converted */
static void gradient_block(void *context, int64_t index, int worker)
{
    const bn_work *job = context;
    int64_t c = job->c, end = agglo_min((index + 1) * job->block, job->m);
    double *sums = job->partial + index * 2 * c;
    float *restrict some = agglo_cpu_worker(job->be, worker), *restrict n = some + 2 * c, *restrict g = n + c;

    memset(sums, 0, (size_t)(2 * c) * sizeof *sums);
    memset(some, 0, floats(2 * c));
    for (int64_t i = index * job->block; i < end; i++) {
        row_slopes(job, agglo_cpu_row(g + c, job->x, job->dtype, i * c, c),
                   agglo_cpu_row(g + 2 * c, job->d_y, job->dtype, i * c, c), n, g);
#pragma omp simd
        for (int64_t j = 0; j < c; j++) {
            some[j] += g[j] * n[j];
            some[c + j] += g[j];
        }
        if ((i + 1) % SOME_ROWS == 0 || i + 1 == end) {
            promote(sums, some, 2 * c);
        }
    }
}

static void gradient_rows(void *context, int64_t index, int worker)
{
    const bn_work *job = context;
    int64_t c = job->c, end = agglo_min((index + 1) * job->block, job->m);
    float *restrict n = agglo_cpu_worker(job->be, worker), *restrict g = n + c;

    for (int64_t i = index * job->block; i < end; i++) {
        row_slopes(job, agglo_cpu_row(g + c, job->x, job->dtype, i * c, c),
                   agglo_cpu_row(g + 2 * c, job->d_y, job->dtype, i * c, c), n, g);
#pragma omp simd
        for (int64_t j = 0; j < c; j++) {
            g[j] = job->scale[j] * (g[j] - job->mean_g[j] - n[j] * job->mean_gn[j]);
        }
        agglo_cpu_store(job->y, job->dtype, i * c, c, job->accumulate, g);
    }
}

static void batchnorm_bwd(agglo_backend *be, const agglo_tensor *d_y, const agglo_tensor *x, const agglo_tensor *w,
                          const agglo_tensor *b, const agglo_tensor *mean, const agglo_tensor *rstd, agglo_act act,
                          bool fixed_statistics, bool accumulate, agglo_tensor *d_x, agglo_tensor *d_w,
                          agglo_tensor *d_b)
{
    bn_work job = work_of(be, x, w, b, act);
    int64_t c = job.c;
    double *sums, m = (double)job.m;
    float *scale, *to_w = d_w->data, *to_b = d_b->data;

    cut_rows(&job);
    /* shared: partial, sums [2][c], scale, mean_g, mean_gn [c] each */
    if (!agglo_cpu_reserve(be, (size_t)((job.n_blocks + 1) * 2 * c) * sizeof(double) + floats(3 * c), floats(6 * c))) {
        return;
    }
    job.d_y = d_y->data;
    job.mean = mean->data;
    job.rstd = rstd->data;
    job.partial = agglo_cpu_shared(be);
    sums = job.partial + job.n_blocks * 2 * c;
    scale = (float *)(sums + 2 * c);
    agglo_pool_for(be->pool, job.n_blocks, gradient_block, &job);
    add_blocks(&job, sums);
    for (int64_t j = 0; j < c; j++) {
        to_w[j] = (float)((double)to_w[j] + sums[j]);
        to_b[j] = (float)((double)to_b[j] + sums[c + j]);
        scale[j] = job.w[j] * job.rstd[j];
        scale[c + j] = fixed_statistics ? 0.0f : (float)(sums[c + j] / m);
        scale[2 * c + j] = fixed_statistics ? 0.0f : (float)(sums[j] / m);
    }
    job.scale = scale;
    job.mean_g = scale + c;
    job.mean_gn = scale + 2 * c;
    job.y = d_x->data;
    job.accumulate = accumulate;
    job.block = 1 + PIECE / c;
    agglo_pool_for(be->pool, agglo_ceil_div(job.m, job.block), gradient_rows, &job);
}

/* ---- folding ---- */

typedef struct fold_work {
    agglo_backend *be;
    const void *w;
    const float *scale;
    agglo_dtype from, to;
    void *out;
    int64_t k;
} fold_work;

static void fold_row(void *context, int64_t o, int worker)
{
    const fold_work *job = context;
    float *tmp = agglo_cpu_worker(job->be, worker);

    agglo_cpu_load(tmp, job->w, job->from, o * job->k, job->k);
    for (int64_t i = 0; i < job->k; i++) {
        tmp[i] *= job->scale[o];
    }
    agglo_cpu_store(job->out, job->to, o * job->k, job->k, false, tmp);
}

static void batchnorm_fold(agglo_backend *be, const agglo_tensor *w, const agglo_tensor *b, const agglo_tensor *gamma,
                           const agglo_tensor *beta, const agglo_tensor *mean, const agglo_tensor *var, float eps,
                           agglo_tensor *w_out, agglo_tensor *b_out)
{
    int64_t n = w->shape[0];
    fold_work job = {be, w->data, NULL, w->dtype, w_out->dtype, w_out->data, agglo_tensor_count(w) / n};
    const float *g = gamma->data, *shift = beta->data, *mu = mean->data, *v = var->data;
    const float *old = b == NULL ? NULL : b->data;
    float *scale, *to = b_out->data;

    if (!agglo_cpu_reserve(be, floats(n), floats(job.k))) {
        return;
    }
    scale = agglo_cpu_shared(be);
    for (int64_t o = 0; o < n; o++) {
        scale[o] = g[o] / sqrtf(v[o] + eps);
        to[o] = shift[o] + ((old == NULL ? 0.0f : old[o]) - mu[o]) * scale[o];
    }
    job.scale = scale;
    agglo_pool_for(be->pool, n, fold_row, &job);
}

void AGGLO_CPU_NAME(batchnorm_ops)(agglo_backend_ops *ops)
{
    ops->batchnorm = batchnorm;
    ops->batchnorm_infer = batchnorm_infer;
    ops->batchnorm_bwd = batchnorm_bwd;
    ops->batchnorm_fold = batchnorm_fold;
}
