/* The optimiser on the CPU: a chunk of one tensor per task, vector loops over its elements; sums of chunks meet in order. */
#include "tensor/cpu/gemm_impl.h"
#include "tensor/optim_impl.h"
#include "tensor/optim_inline.h"

#define FLOAT_RUN 1024 /* elements whose squares are summed in float */

static void adamw_range(int64_t n, agglo_adamw_step step, const float *g, float *p, float *m, float *v)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        float m1 = m[i], v1 = v[i];

        p[i] = agglo_adamw_element(step, p[i], g[i], &m1, &v1);
        m[i] = m1;
        v[i] = v1;
    }
}

/* ---- one tensor ---- */

typedef struct adamw_work {
    int64_t n;
    agglo_adamw_step step;
    const float *g;
    float *p, *m, *v;
} adamw_work;

static void adamw_chunk(void *context, int64_t index, int worker)
{
    const adamw_work *job = context;
    int64_t first = index * AGGLO_OPTIM_CHUNK;

    (void)worker;
    adamw_range(agglo_min(AGGLO_OPTIM_CHUNK, job->n - first), job->step, job->g + first, job->p + first, job->m + first,
                job->v + first);
}

static void adamw(agglo_backend *be, const agglo_adamw_config *config, agglo_tensor *p, const agglo_tensor *g,
                  agglo_tensor *m, agglo_tensor *v)
{
    adamw_work job = {agglo_tensor_count(p), agglo_adamw_step_of(config), g->data, p->data, m->data, v->data};

    agglo_pool_for(be->pool, agglo_ceil_div(job.n, AGGLO_OPTIM_CHUNK), adamw_chunk, &job);
}

/* ---- many ---- */

typedef struct many_work {
    const agglo_optim *optim;
    agglo_adamw_step step;
    float lr, decay;
} many_work;

static void many_chunk(void *context, int64_t index, int worker)
{
    const many_work *job = context;
    const agglo_optim_chunk *at = &job->optim->chunks[index];
    const agglo_optim_tensor *t = &job->optim->tensors[at->tensor];
    int64_t n = agglo_min(AGGLO_OPTIM_CHUNK, t->n - at->first);
    agglo_adamw_step step = job->step;

    (void)worker;
    step.keep = agglo_adamw_keep(job->lr, t->weight_decay);
    adamw_range(n, step, t->g + at->first, t->p + at->first, t->m + at->first, t->v + at->first);
    if (t->copy != NULL) {
        agglo_cpu_to_bf16(n, t->p + at->first, t->copy + at->first);
    }
}

static void many(agglo_backend *be, const agglo_adamw_numbers *numbers, bool guarded, const agglo_optim *optim)
{
    many_work job = {optim, agglo_adamw_step_from(numbers), numbers->lr, 0.0f};

    if (guarded) {
        if (optim->state->first_bad >= 0) {
            return;
        }
        job.step.grad_scale = agglo_clip_scale(numbers->grad_scale, numbers->max_norm, optim->state->norm);
    }
    agglo_pool_for(be->pool, optim->n_chunks, many_chunk, &job);
}

static void adamw_many(agglo_backend *be, const agglo_adamw_config *config, float max_norm, bool guarded,
                       agglo_optim *optim)
{
    agglo_adamw_numbers numbers = agglo_adamw_numbers_of(config, max_norm);

    many(be, &numbers, guarded, optim);
}

static void adamw_many_at(agglo_backend *be, const agglo_tensor *numbers, bool guarded, agglo_optim *optim)
{
    many(be, numbers->data, guarded, optim);
}

static void ema_chunk(void *context, int64_t index, int worker)
{
    const many_work *job = context;
    const agglo_optim_chunk *at = &job->optim->chunks[index];
    const agglo_optim_tensor *t = &job->optim->tensors[at->tensor];
    int64_t n = agglo_min(AGGLO_OPTIM_CHUNK, t->n - at->first);
    const float *p = t->p + at->first;
    float *average = t->average, decay = job->decay, rest = 1.0f - decay;

    (void)worker;
    if (average == NULL) {
        return;
    }
    average += at->first;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        average[i] = decay * average[i] + rest * p[i];
    }
}

static void ema(agglo_backend *be, float decay, agglo_optim *optim)
{
    many_work job = {.optim = optim, .decay = decay};

    agglo_pool_for(be->pool, optim->n_chunks, ema_chunk, &job);
}

/* ---- sums of squares ---- */

static double squares(int64_t n, const float *x)
{
    double total = 0.0;

    for (int64_t i0 = 0; i0 < n; i0 += FLOAT_RUN) {
        int64_t i1 = agglo_min(i0 + FLOAT_RUN, n);
        gemm_vec lanes[4] = {{0}};
        float sum = 0.0f;
        int64_t i = i0;

        /* four chains, or each addition waits for the one before */
        for (; i + 4 * GEMM_LANES <= i1; i += 4 * GEMM_LANES) {
            GEMM_UNROLL
            for (int l = 0; l < 4; l++) {
                gemm_vec v = gemm_load(x + i + l * GEMM_LANES);

                lanes[l] += v * v;
            }
        }
        lanes[0] = (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
        for (int l = 0; l < GEMM_LANES; l++) {
            sum += lanes[0][l];
        }
        for (; i < i1; i++) {
            sum += x[i] * x[i];
        }
        total += (double)sum;
    }
    return total;
}

static void norm_chunk(void *context, int64_t index, int worker)
{
    const agglo_optim *optim = context;
    const agglo_optim_chunk *at = &optim->chunks[index];
    const agglo_optim_tensor *t = &optim->tensors[at->tensor];

    (void)worker;
    optim->chunk_sums[index] = squares(agglo_min(AGGLO_OPTIM_CHUNK, t->n - at->first), t->g + at->first);
}

static void grad_norm(agglo_backend *be, agglo_optim *optim)
{
    double total = 0.0;
    int64_t bad = -1;

    agglo_pool_for(be->pool, optim->n_chunks, norm_chunk, optim);
    for (int64_t i = 0; i < optim->n; i++) {
        const agglo_optim_tensor *t = &optim->tensors[i];
        double sum = 0.0;

        for (int64_t k = 0; k < t->n_chunks; k++) {
            sum += optim->chunk_sums[t->first_chunk + k];
        }
        bad = bad < 0 && !isfinite(sum) ? i : bad;
        total += sum;
    }
    *optim->state = (agglo_grad_state){sqrt(total), bad};
}

static void grad_hold(agglo_backend *be, const agglo_tensor *values, agglo_optim *optim)
{
    const float *x = values->data;
    int64_t n = agglo_tensor_count(values), bad = optim->state->first_bad;

    (void)be;
    for (int64_t i = 0; i < n && bad < 0; i++) {
        bad = isfinite(x[i]) ? -1 : optim->n;
    }
    if (*optim->held < 0) {
        *optim->held = bad;
    }
    optim->state->first_bad = *optim->held;
}

typedef struct squares_work {
    int64_t n;
    const float *x;
    double *partial;
} squares_work;

static void squares_chunk(void *context, int64_t index, int worker)
{
    const squares_work *job = context;
    int64_t first = index * AGGLO_OPTIM_CHUNK;

    (void)worker;
    job->partial[index] = squares(agglo_min(AGGLO_OPTIM_CHUNK, job->n - first), job->x + first);
}

static void sum_squares(agglo_backend *be, const agglo_tensor *x, agglo_tensor *out)
{
    squares_work job = {agglo_tensor_count(x), x->data, NULL};
    int64_t n_chunks = agglo_ceil_div(job.n, AGGLO_OPTIM_CHUNK);
    float *to = out->data;
    double total = 0.0;

    if (!agglo_cpu_reserve(be, (size_t)n_chunks * sizeof(double), 0)) {
        return;
    }
    job.partial = agglo_cpu_shared(be);
    agglo_pool_for(be->pool, n_chunks, squares_chunk, &job);
    for (int64_t i = 0; i < n_chunks; i++) {
        total += job.partial[i];
    }
    *to = (float)((double)*to + total);
}

void AGGLO_CPU_NAME(optim_ops)(agglo_backend_ops *ops)
{
    ops->adamw = adamw;
    ops->adamw_many = adamw_many;
    ops->adamw_many_at = adamw_many_at;
    ops->ema = ema;
    ops->grad_norm = grad_norm;
    ops->grad_hold = grad_hold;
    ops->sum_squares = sum_squares;
}
