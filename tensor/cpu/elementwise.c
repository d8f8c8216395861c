/* Element by element on the CPU: activations, gated units, residuals, axpy and conversions.
 *
 * BF16 goes through F32 scratch, by blocks on the stack or by rows of a worker's.
 *
 * `#pragma omp simd` states that iterations are independent, which holds also where an output is an input (the same element).
 */
#include "tensor/cpu/cpu_impl.h"
#include "tensor/math_inline.h"

#include <string.h>

#define CHUNK 16384 /* elements per task */
#define BLOCK 1024  /* of a chunk that are converted at a time, where they are not F32 */

/* One loop per activation: the choice is made outside. */
#define ACT_LOOP(expr)                                                                                                 \
    do {                                                                                                               \
        _Pragma("omp simd") for (int64_t i = 0; i < n; i++)                                                            \
        {                                                                                                              \
            float v = x[i];                                                                                            \
            y[i] = (expr);                                                                                             \
        }                                                                                                              \
    } while (0)

static void act_range(agglo_act act, int64_t n, const float *x, float *y)
{
    switch (act) {
    case AGGLO_ACT_NONE:
        if (x != y) {
            memcpy(y, x, (size_t)n * sizeof *y);
        }
        break;
    case AGGLO_ACT_GELU:
        ACT_LOOP(agglo_gelu(v));
        break;
    case AGGLO_ACT_QUICK_GELU:
        ACT_LOOP(agglo_quick_gelu(v));
        break;
    case AGGLO_ACT_SILU:
        ACT_LOOP(agglo_silu(v));
        break;
    case AGGLO_ACT_RELU:
        ACT_LOOP(v < 0.0f ? 0.0f : v);
        break;
    }
}

void AGGLO_CPU_NAME(bias_act)(agglo_act act, int64_t n, const float *x, const float *b, float *pre, float *y)
{
    float *sum = pre != NULL ? pre : y;

    if (b != NULL) {
#pragma omp simd
        for (int64_t i = 0; i < n; i++) {
            sum[i] = x[i] + b[i];
        }
    } else if (sum != x) {
        memcpy(sum, x, (size_t)n * sizeof *sum);
    }
    act_range(act, n, sum, y);
}

/* Arrays of one loop over n elements; what an operator does not use is NULL. */
typedef struct range_work {
    int64_t n, c;
    const agglo_tensor *x, *other; /* of the storage type */
    agglo_tensor *out;
    agglo_backend *be;
    const float *a, *gamma;
    float *y, *m, *v;
    agglo_act act;
    float scale;
    const void *from;
    void *to;
    agglo_dtype from_dtype, to_dtype;
} range_work;

static void run_chunks(agglo_backend *be, range_work *job, void (*body)(void *, int64_t, int))
{
    agglo_pool_for(be->pool, agglo_ceil_div(job->n, CHUNK), body, job);
}

/* Elements per pass through a chunk. */
static int64_t step_of(const agglo_tensor *t)
{
    return t->dtype == AGGLO_F32 ? CHUNK : BLOCK;
}

static void activate_chunk(void *context, int64_t index, int worker)
{
    const range_work *job = context;
    int64_t end = agglo_min((index + 1) * CHUNK, job->n), step = step_of(job->x);
    float x_block[BLOCK], y_block[BLOCK];

    (void)worker;
    for (int64_t first = index * CHUNK; first < end; first += step) {
        int64_t n = agglo_min(step, end - first);
        float *y = agglo_cpu_out(job->out, first, y_block);

        act_range(job->act, n, agglo_cpu_in(job->x, first, n, x_block), y);
        agglo_cpu_put(job->out, first, n, y);
    }
}

static void activate(agglo_backend *be, agglo_act act, const agglo_tensor *x, agglo_tensor *y)
{
    range_work job = {.n = agglo_tensor_count(x), .x = x, .out = y, .act = act};

    run_chunks(be, &job, activate_chunk);
}

#define SLOPE_LOOP(expr)                                                                                               \
    do {                                                                                                               \
        _Pragma("omp simd") for (int64_t i = 0; i < n; i++)                                                            \
        {                                                                                                              \
            float v = x[i];                                                                                            \
            d_x[i] = d_y[i] * (expr);                                                                                  \
        }                                                                                                              \
    } while (0)

static void act_bwd_range(agglo_act act, int64_t n, const float *x, const float *d_y, float *d_x)
{
    switch (act) {
    case AGGLO_ACT_NONE:
        if (d_x != d_y) {
            memcpy(d_x, d_y, (size_t)n * sizeof *d_x);
        }
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

static void activate_bwd_chunk(void *context, int64_t index, int worker)
{
    const range_work *job = context;
    int64_t end = agglo_min((index + 1) * CHUNK, job->n), step = step_of(job->x);
    float x_block[BLOCK], d_y_block[BLOCK], d_x_block[BLOCK];

    (void)worker;
    for (int64_t first = index * CHUNK; first < end; first += step) {
        int64_t n = agglo_min(step, end - first);
        float *d_x = agglo_cpu_out(job->out, first, d_x_block);

        act_bwd_range(job->act, n, agglo_cpu_in(job->x, first, n, x_block),
                      agglo_cpu_in(job->other, first, n, d_y_block), d_x);
        agglo_cpu_put(job->out, first, n, d_x);
    }
}

static void activate_bwd(agglo_backend *be, agglo_act act, const agglo_tensor *x, const agglo_tensor *d_y,
                         agglo_tensor *d_x)
{
    range_work job = {.n = agglo_tensor_count(x), .x = x, .other = d_y, .out = d_x, .act = act};

    run_chunks(be, &job, activate_bwd_chunk);
}

/* Row-wise loops: rows per task so that a task is about a chunk. */
static int64_t rows_per_task(int64_t c)
{
    return 1 + CHUNK / c;
}

static void run_rows(agglo_backend *be, range_work *job, void (*body)(void *, int64_t, int))
{
    agglo_pool_for(be->pool, agglo_ceil_div(job->n, rows_per_task(job->c)), body, job);
}

/* Scratch of a worker that holds rows of `c` floats; only where rows are not F32. */
static float *scratch_of(const range_work *job, int worker)
{
    return job->x->dtype == AGGLO_F32 ? NULL : agglo_cpu_worker(job->be, worker);
}

static void swiglu_rows(void *context, int64_t index, int worker)
{
    const range_work *job = context;
    int64_t h = job->c, step = rows_per_task(h), end = agglo_min((index + 1) * step, job->n);
    float *scratch = scratch_of(job, worker);

    for (int64_t i = index * step; i < end; i++) {
        const float *gate = agglo_cpu_in(job->x, 2 * i * h, 2 * h, scratch), *value = gate + h;
        float *y = agglo_cpu_out(job->out, i * h, scratch); /* an element is read before it is written */

#pragma omp simd
        for (int64_t j = 0; j < h; j++) {
            y[j] = agglo_silu(gate[j]) * value[j];
        }
        agglo_cpu_put(job->out, i * h, h, y);
    }
}

static void swiglu(agglo_backend *be, const agglo_tensor *u, agglo_tensor *y)
{
    int64_t h = y->shape[y->rank - 1];
    range_work job = {.n = agglo_tensor_count(y) / h, .c = h, .x = u, .out = y, .be = be};

    if (agglo_cpu_reserve_rows(be, u, 2, h)) {
        run_rows(be, &job, swiglu_rows);
    }
}

static void swiglu_bwd_rows(void *context, int64_t index, int worker)
{
    const range_work *job = context;
    int64_t h = job->c, step = rows_per_task(h), end = agglo_min((index + 1) * step, job->n);
    float *scratch = scratch_of(job, worker), *d_y_scratch = scratch == NULL ? NULL : scratch + 2 * h;

    for (int64_t i = index * step; i < end; i++) {
        const float *gate = agglo_cpu_in(job->x, 2 * i * h, 2 * h, scratch), *value = gate + h;
        const float *d_y = agglo_cpu_in(job->other, i * h, h, d_y_scratch);
        float *d_gate = agglo_cpu_out(job->out, 2 * i * h, scratch), *d_value = d_gate + h;

#pragma omp simd
        for (int64_t j = 0; j < h; j++) {
            float g = gate[j], d = d_y[j], d_g = d * value[j] * agglo_silu_slope(g);

            d_value[j] = d * agglo_silu(g);
            d_gate[j] = d_g;
        }
        agglo_cpu_put(job->out, 2 * i * h, 2 * h, d_gate);
    }
}

static void swiglu_bwd(agglo_backend *be, const agglo_tensor *u, const agglo_tensor *d_y, agglo_tensor *d_u)
{
    int64_t h = d_y->shape[d_y->rank - 1];
    range_work job = {.n = agglo_tensor_count(d_y) / h, .c = h, .x = u, .other = d_y, .out = d_u, .be = be};

    if (agglo_cpu_reserve_rows(be, u, 3, h)) {
        run_rows(be, &job, swiglu_bwd_rows);
    }
}

static void residual_rows(void *context, int64_t index, int worker)
{
    const range_work *job = context;
    int64_t c = job->c, step = rows_per_task(c), end = agglo_min((index + 1) * step, job->n);
    float *scratch = scratch_of(job, worker), *h_scratch = scratch == NULL ? NULL : scratch + c;
    const float *gamma = job->gamma;

    for (int64_t i = index * step; i < end; i++) {
        const float *x = agglo_cpu_in(job->x, i * c, c, scratch), *h = agglo_cpu_in(job->other, i * c, c, h_scratch);
        float *y = agglo_cpu_out(job->out, i * c, scratch);

        if (gamma == NULL) {
#pragma omp simd
            for (int64_t j = 0; j < c; j++) {
                y[j] = x[j] + h[j];
            }
        } else {
#pragma omp simd
            for (int64_t j = 0; j < c; j++) {
                y[j] = x[j] + gamma[j] * h[j];
            }
        }
        agglo_cpu_put(job->out, i * c, c, y);
    }
}

static void residual(agglo_backend *be, const agglo_tensor *x, const agglo_tensor *h, const agglo_tensor *gamma,
                     agglo_tensor *y)
{
    int64_t c = x->shape[x->rank - 1];
    range_work job = {.n = agglo_tensor_count(x) / c, .c = c, .x = x, .other = h, .out = y, .be = be};

    job.gamma = gamma == NULL ? NULL : gamma->data;
    if (agglo_cpu_reserve_rows(be, x, 2, c)) {
        run_rows(be, &job, residual_rows);
    }
}

#define COLS       256 /* columns per task where columns are summed */
#define BLOCK_ROWS 256 /* rows summed in float before they go to a double */

/* d_gamma first: d_h may be d_y. */
static void residual_bwd_cols(void *context, int64_t index, int worker)
{
    const range_work *job = context;
    int64_t c = job->c, first = index * COLS, n = agglo_min(COLS, c - first);
    const float *gamma = job->gamma + first;
    double total[COLS] = {0};

    (void)worker;
    for (int64_t i0 = 0; i0 < job->n; i0 += BLOCK_ROWS) {
        int64_t i1 = agglo_min(i0 + BLOCK_ROWS, job->n);
        float block[COLS] = {0}, h_block[COLS], d_block[COLS];

        for (int64_t i = i0; i < i1; i++) {
            const float *d_y = agglo_cpu_in(job->x, i * c + first, n, d_block);
            const float *h = agglo_cpu_in(job->other, i * c + first, n, h_block);
            float *d_h = agglo_cpu_out(job->out, i * c + first, d_block);

#pragma omp simd
            for (int64_t j = 0; j < n; j++) {
                float d = d_y[j];

                block[j] += d * h[j];
                d_h[j] = gamma[j] * d;
            }
            agglo_cpu_put(job->out, i * c + first, n, d_h);
        }
        for (int64_t j = 0; j < n; j++) {
            total[j] += (double)block[j];
        }
    }
    for (int64_t j = 0; j < n; j++) {
        job->m[first + j] = (float)((double)job->m[first + j] + total[j]);
    }
}

static void residual_bwd(agglo_backend *be, const agglo_tensor *d_y, const agglo_tensor *h, const agglo_tensor *gamma,
                         agglo_tensor *d_h, agglo_tensor *d_gamma)
{
    int64_t c = d_y->shape[d_y->rank - 1];
    range_work job = {.n = agglo_tensor_count(d_y) / c, .c = c, .x = d_y, .other = h, .out = d_h, .gamma = gamma->data};

    job.m = d_gamma->data;
    agglo_pool_for(be->pool, agglo_ceil_div(c, COLS), residual_bwd_cols, &job);
}

static void axpy_chunk(void *context, int64_t index, int worker)
{
    const range_work *job = context;
    int64_t end = agglo_min((index + 1) * CHUNK, job->n), step = step_of(job->x);
    float x_block[BLOCK], y_block[BLOCK], scale = job->scale;

    (void)worker;
    for (int64_t first = index * CHUNK; first < end; first += step) {
        int64_t n = agglo_min(step, end - first);
        const float *x = agglo_cpu_in(job->x, first, n, x_block), *was = agglo_cpu_in(job->out, first, n, y_block);
        float *y = agglo_cpu_out(job->out, first, y_block);

#pragma omp simd
        for (int64_t i = 0; i < n; i++) {
            y[i] = was[i] + scale * x[i];
        }
        agglo_cpu_put(job->out, first, n, y);
    }
}

static void axpy(agglo_backend *be, float a, const agglo_tensor *x, agglo_tensor *y)
{
    range_work job = {.n = agglo_tensor_count(x), .x = x, .out = y, .scale = a};

    run_chunks(be, &job, axpy_chunk);
}

/* Through a small float buffer: 16-bit to 16-bit is rare, and the buffer stays in the first-level cache. */
static void cast_chunk(void *context, int64_t index, int worker)
{
    const range_work *job = context;
    int64_t first = index * CHUNK, end = agglo_min(first + CHUNK, job->n);
    size_t from_size = agglo_dtype_size(job->from_dtype), to_size = agglo_dtype_size(job->to_dtype);
    float block[BLOCK];

    (void)worker;
    for (int64_t i = first; i < end; i += BLOCK) {
        size_t n = (size_t)agglo_min(BLOCK, end - i);

        if (job->from_dtype == AGGLO_F32 && job->to_dtype == AGGLO_BF16) {
            agglo_cpu_to_bf16((int64_t)n, (const float *)job->from + i, (uint16_t *)job->to + i);
            continue;
        }
        if (job->from_dtype == AGGLO_BF16 && job->to_dtype == AGGLO_F32) {
            agglo_cpu_from_bf16((int64_t)n, (const uint16_t *)job->from + i, (float *)job->to + i);
            continue;
        }
        agglo_dtype_to_f32(block, (const uint8_t *)job->from + (size_t)i * from_size, job->from_dtype, n);
        agglo_dtype_from_f32((uint8_t *)job->to + (size_t)i * to_size, block, job->to_dtype, n);
    }
}

static void cast(agglo_backend *be, const agglo_tensor *x, agglo_tensor *y)
{
    range_work job = {
        .n = agglo_tensor_count(x), .from = x->data, .to = y->data, .from_dtype = x->dtype, .to_dtype = y->dtype};

    run_chunks(be, &job, cast_chunk);
}

void AGGLO_CPU_NAME(elementwise_ops)(agglo_backend_ops *ops)
{
    ops->activate = activate;
    ops->activate_bwd = activate_bwd;
    ops->swiglu = swiglu;
    ops->swiglu_bwd = swiglu_bwd;
    ops->residual = residual;
    ops->residual_bwd = residual_bwd;
    ops->axpy = axpy;
    ops->cast = cast;
}
