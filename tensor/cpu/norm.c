/* Layer normalisation on the CPU. A row is read twice, once for the mean and once for the variance about it, both times from cache
 * after the first; statistics are float32. Rows of BF16 are converted into scratch of the worker. */
#include "tensor/cpu/cpu_impl.h"

#define MAX_BLOCKS 64 /* row blocks whose weight gradients are kept apart and then added in order */

typedef struct norm_work {
    agglo_backend *be;
    int64_t m, c, block_rows;
    const agglo_tensor *x, *d_y;
    agglo_tensor *y, *d_x;
    const float *w, *b;
    float *mean, *rstd;
    const float *kept_mean, *kept_rstd;
    float eps;
    bool accumulate;
    float *partial; /* [block][2][c]: d_w, d_b */
    float *d_w, *d_b;
    int64_t n_blocks;
} norm_work;

static float *scratch_of(const norm_work *job, int worker)
{
    return job->x->dtype == AGGLO_F32 ? NULL : agglo_cpu_worker(job->be, worker);
}

static void forward_rows(void *context, int64_t index, int worker)
{
    const norm_work *job = context;
    int64_t c = job->c, end = agglo_min((index + 1) * job->block_rows, job->m);
    float per_channel = 1.0f / (float)c, *scratch = scratch_of(job, worker);

    for (int64_t i = index * job->block_rows; i < end; i++) {
        const float *x = agglo_cpu_in(job->x, i * c, c, scratch);
        float *y = agglo_cpu_out(job->y, i * c, scratch);
        float mean = 0.0f, variance = 0.0f, rstd;

#pragma omp simd reduction(+ : mean)
        for (int64_t j = 0; j < c; j++) {
            mean += x[j];
        }
        mean *= per_channel;
#pragma omp simd reduction(+ : variance)
        for (int64_t j = 0; j < c; j++) {
            float d = x[j] - mean;
            variance += d * d;
        }
        rstd = 1.0f / __builtin_sqrtf(variance * per_channel + job->eps);
#pragma omp simd
        for (int64_t j = 0; j < c; j++) {
            y[j] = (x[j] - mean) * rstd * job->w[j] + job->b[j];
        }
        agglo_cpu_put(job->y, i * c, c, y);
        if (job->mean != NULL) {
            job->mean[i] = mean;
        }
        if (job->rstd != NULL) {
            job->rstd[i] = rstd;
        }
    }
}

static void layernorm(agglo_backend *be, const agglo_tensor *x, const agglo_tensor *w, const agglo_tensor *b, float eps,
                      agglo_tensor *y, agglo_tensor *mean, agglo_tensor *rstd)
{
    int64_t c = x->shape[x->rank - 1], m = agglo_tensor_count(x) / c;
    norm_work job = {.be = be, .m = m, .c = c, .x = x, .w = w->data, .b = b->data, .y = y, .eps = eps};

    job.block_rows = 1 + 16384 / c;
    job.mean = mean == NULL ? NULL : mean->data;
    job.rstd = rstd == NULL ? NULL : rstd->data;
    if (agglo_cpu_reserve_rows(be, x, 1, c)) {
        agglo_pool_for(be->pool, agglo_ceil_div(m, job.block_rows), forward_rows, &job);
    }
}

/* With n = (x - mean) rstd and g = d_y w:  d_x = rstd (g - mean(g) - n mean(g n)),  d_w = sum d_y n,  d_b = sum d_y. */
static void backward_rows(void *context, int64_t index, int worker)
{
    const norm_work *job = context;
    int64_t c = job->c, end = agglo_min((index + 1) * job->block_rows, job->m);
    float per_channel = 1.0f / (float)c, *scratch = scratch_of(job, worker);
    float *d_y_scratch = scratch == NULL ? NULL : scratch + c, *d_x_scratch = scratch == NULL ? NULL : scratch + 2 * c;
    float *restrict d_w = job->partial + 2 * index * c, *restrict d_b = d_w + c;

    for (int64_t j = 0; j < 2 * c; j++) {
        d_w[j] = 0.0f;
    }
    for (int64_t i = index * job->block_rows; i < end; i++) {
        const float *x = agglo_cpu_in(job->x, i * c, c, scratch);
        const float *d_y = agglo_cpu_in(job->d_y, i * c, c, d_y_scratch);
        const float *was = job->accumulate ? agglo_cpu_in(job->d_x, i * c, c, d_x_scratch) : NULL;
        float *d_x = agglo_cpu_out(job->d_x, i * c, d_x_scratch);
        float mean = job->kept_mean[i], rstd = job->kept_rstd[i], sum_g = 0.0f, sum_gn = 0.0f;

#pragma omp simd reduction(+ : sum_g, sum_gn)
        for (int64_t j = 0; j < c; j++) {
            float n = (x[j] - mean) * rstd, g = d_y[j] * job->w[j];

            d_w[j] += d_y[j] * n;
            d_b[j] += d_y[j];
            sum_g += g;
            sum_gn += g * n;
        }
        sum_g *= per_channel;
        sum_gn *= per_channel;
#pragma omp simd
        for (int64_t j = 0; j < c; j++) {
            float n = (x[j] - mean) * rstd;
            float d = rstd * (d_y[j] * job->w[j] - sum_g - n * sum_gn);

            d_x[j] = was != NULL ? was[j] + d : d;
        }
        agglo_cpu_put(job->d_x, i * c, c, d_x);
    }
}

static void add_partials(void *context, int64_t index, int worker)
{
    const norm_work *job = context;
    int64_t c = job->c, first = index * 256, n = agglo_min(256, c - first);
    float sum_w[256] = {0}, sum_b[256] = {0};

    (void)worker;
    for (int64_t block = 0; block < job->n_blocks; block++) {
        const float *d_w = job->partial + 2 * block * c + first, *d_b = d_w + c;

        for (int64_t j = 0; j < n; j++) {
            sum_w[j] += d_w[j];
            sum_b[j] += d_b[j];
        }
    }
    for (int64_t j = 0; j < n; j++) {
        job->d_w[first + j] += sum_w[j];
        job->d_b[first + j] += sum_b[j];
    }
}

static void layernorm_bwd(agglo_backend *be, const agglo_tensor *d_y, const agglo_tensor *x, const agglo_tensor *w,
                          const agglo_tensor *mean, const agglo_tensor *rstd, bool accumulate, agglo_tensor *d_x,
                          agglo_tensor *d_w, agglo_tensor *d_b)
{
    int64_t c = x->shape[x->rank - 1], m = agglo_tensor_count(x) / c;
    norm_work job = {.be = be, .m = m, .c = c, .x = x, .w = w->data, .d_y = d_y, .d_x = d_x, .accumulate = accumulate};

    job.kept_mean = mean->data;
    job.kept_rstd = rstd->data;
    job.d_w = d_w->data;
    job.d_b = d_b->data;
    job.block_rows = agglo_ceil_div(m, MAX_BLOCKS) > 16 ? agglo_ceil_div(m, MAX_BLOCKS) : 16;
    job.n_blocks = agglo_ceil_div(m, job.block_rows);
    if (!agglo_cpu_reserve_rows(be, x, 3, c) ||
        !agglo_cpu_reserve(be, (size_t)(2 * job.n_blocks * c) * sizeof(float), 0)) {
        return;
    }
    job.partial = agglo_cpu_shared(be);
    agglo_pool_for(be->pool, job.n_blocks, backward_rows, &job);
    agglo_pool_for(be->pool, agglo_ceil_div(c, 256), add_partials, &job);
}

void AGGLO_CPU_NAME(norm_ops)(agglo_backend_ops *ops)
{
    ops->layernorm = layernorm;
    ops->layernorm_bwd = layernorm_bwd;
}
