/* The distillation losses on the CPU, against targets in their stored form.
 *
 * A row (token) at a time: its target is decoded into scratch, the sums of its values are taken and, while prediction and target are
 * still in cache, the gradient is written. Where the target's map has a matrix, a tile of rows is decoded and multiplied first: the
 * product's prologue is the decoding, and targets never exist beyond one tile per thread. The values of rows are kept apart and added in
 * order. Tiles depend on the shape only; a token's target does not depend on the others.
 */
#include "tensor/cpu/cpu_impl.h"
#include "tensor/loss_inline.h"

#include <string.h>

#define TILE_ROWS  256 /* of a product */
#define LEAST_ROWS 32  /* worth a product of its own */
#define MIN_TASKS  16  /* smaller tiles when there are fewer tasks than this */
#define VALUES     3   /* cos, smooth-L1, squared error */

typedef struct loss_work {
    agglo_backend *be;
    const agglo_loss_config *config;
    const agglo_target *target;
    int64_t n, c, m, step; /* tokens per sample, channels, rows, rows per task */
    const void *pred;
    void *d_pred;
    bool bf16; /* pred and d_pred */
    const float *valid, *sample_weight, *token_weight;
    double lambda; /* the config's and the weights' */
    agglo_loss_factors factors;
    float *values; /* [m][VALUES], of rows with weight */
    float *matrix; /* the target's, in panels */
} loss_work;

static float weight_of(const loss_work *job, int64_t i)
{
    float weight = job->valid == NULL ? 1.0f : job->valid[i / job->n];

    return job->token_weight == NULL ? weight : weight * job->token_weight[i];
}

static float sample_factor(const loss_work *job, int64_t i)
{
    return job->sample_weight == NULL ? 1.0f : job->sample_weight[i / job->n];
}

/* ---- targets ---- */

static void scale_row(const agglo_target *t, int64_t i, float *u)
{
    int64_t k = t->k;
    float scale = 1.0f;

    if (t->token_scale != NULL) {
        scale = t->token_scale_dtype == AGGLO_F16 ? agglo_f16_value(((const uint16_t *)t->token_scale)[i])
                                                  : ((const float *)t->token_scale)[i];
    }
    if (t->channel_scale != NULL) {
        const float *channel = t->channel_scale;
#pragma omp simd
        for (int64_t j = 0; j < k; j++) {
            u[j] *= scale * channel[j];
        }
    } else if (t->token_scale != NULL) {
#pragma omp simd
        for (int64_t j = 0; j < k; j++) {
            u[j] *= scale;
        }
    }
    if (t->map.centre != NULL) {
        const float *centre = t->map.centre;
#pragma omp simd
        for (int64_t j = 0; j < k; j++) {
            u[j] -= centre[j];
        }
    }
}

/* u[K] = row i of the stored values, with scales, less the centre. */
static void decode_row(const agglo_target *t, int64_t i, float *u)
{
    int64_t k = t->k;
    const uint8_t *row = (const uint8_t *)t->values + i * agglo_code_row_bytes(t->code, k);

    switch (t->code) {
    case AGGLO_CODE_F32:
        memcpy(u, row, (size_t)k * sizeof *u);
        break;
    case AGGLO_CODE_F16: {
        const uint16_t *half = (const uint16_t *)(const void *)row;
#pragma omp simd
        for (int64_t j = 0; j < k; j++) {
            u[j] = agglo_f16_value(half[j]);
        }
        break;
    }
    case AGGLO_CODE_BF16:
        agglo_cpu_from_bf16(k, (const uint16_t *)(const void *)row, u);
        break;
    case AGGLO_CODE_I8: {
        const int8_t *q = (const int8_t *)row;
#pragma omp simd
        for (int64_t j = 0; j < k; j++) {
            u[j] = (float)q[j];
        }
        break;
    }
    case AGGLO_CODE_I16: {
        const int16_t *q = (const int16_t *)(const void *)row;
#pragma omp simd
        for (int64_t j = 0; j < k; j++) {
            u[j] = (float)q[j];
        }
        break;
    }
    case AGGLO_CODE_I4:
#pragma omp simd
        for (int64_t j = 0; j < k / 2; j++) {
            u[2 * j] = (float)agglo_nibble(row[j], 0);
            u[2 * j + 1] = (float)agglo_nibble(row[j], 1);
        }
        if (k % 2 != 0) {
            u[k - 1] = (float)agglo_nibble(row[k / 2], 0);
        }
        break;
    }
    scale_row(t, i, u);
}

/* What follows the matrix, or stands in its place. */
static void finish_row(const agglo_map *map, float *t)
{
    int64_t c = map->c;
    float scale = map->scale;

    if (map->diagonal != NULL) {
        const float *diagonal = map->diagonal;
#pragma omp simd
        for (int64_t j = 0; j < c; j++) {
            t[j] *= diagonal[j];
        }
    }
    if (map->offset != NULL) {
        const float *offset = map->offset;
#pragma omp simd
        for (int64_t j = 0; j < c; j++) {
            t[j] = t[j] * scale + offset[j];
        }
    } else if (scale != 1.0f) {
#pragma omp simd
        for (int64_t j = 0; j < c; j++) {
            t[j] *= scale;
        }
    }
}

/* Floats that stand for themselves need no copy. */
static bool as_stored(const agglo_target *t)
{
    return t->code == AGGLO_CODE_F32 && t->token_scale == NULL && t->channel_scale == NULL && t->map.centre == NULL &&
           t->map.diagonal == NULL && t->map.offset == NULL && t->map.scale == 1.0f;
}

/* ---- rows ---- */

static void no_weight_row(const loss_work *job, int64_t i)
{
    int64_t size = job->bf16 ? 2 : 4;

    memset(job->values + VALUES * i, 0, VALUES * sizeof *job->values);
    if (job->d_pred != NULL) {
        memset((uint8_t *)job->d_pred + i * job->c * size, 0, (size_t)(job->c * size));
    }
}

/* Of one row with weight; `buffer` [C] holds a BF16 prediction's floats, then its gradient. */
static void loss_row(const loss_work *job, int64_t i, const float *target, float *buffer)
{
    int64_t c = job->c;
    float threshold = job->config->threshold, inverse = 1.0f / threshold, half_inverse = 0.5f / threshold;
    float weight = weight_of(job, i) * sample_factor(job, i), l1_factor = weight * job->factors.l1,
          sq_factor = weight * job->factors.sq;
    float dot = 0.0f, pp = 0.0f, tt = 0.0f, l1 = 0.0f, sq = 0.0f;
    const float *pred = (const float *)job->pred + i * c;
    float *d_pred = job->d_pred == NULL ? NULL : (float *)job->d_pred + i * c, *value = job->values + VALUES * i;
    agglo_loss_row row;

    if (job->bf16) {
        agglo_cpu_from_bf16(c, (const uint16_t *)job->pred + i * c, buffer);
        pred = d_pred = buffer;
    }
#pragma omp simd reduction(+ : dot, pp, tt, l1, sq)
    for (int64_t j = 0; j < c; j++) {
        float p = pred[j], t = target[j], d = p - t;

        dot += p * t;
        pp += p * p;
        tt += t * t;
        l1 += agglo_smooth_l1(d, threshold, half_inverse);
        sq += d * d;
    }
    row = agglo_loss_row_of(dot, pp, __builtin_sqrtf(pp), __builtin_sqrtf(tt), weight * job->factors.cos);
    value[0] = row.cosine;
    value[1] = l1 / (float)c;
    value[2] = sq / (float)c;
    if (job->d_pred == NULL) {
        return;
    }
#pragma omp simd
    for (int64_t j = 0; j < c; j++) {
        float p = pred[j], t = target[j], d = p - t;

        d_pred[j] = row.from_target * t + row.from_pred * p + l1_factor * agglo_smooth_l1_slope(d, threshold, inverse) +
                    sq_factor * d;
    }
    if (job->bf16) {
        agglo_cpu_to_bf16(c, buffer, (uint16_t *)job->d_pred + i * c);
    }
}

static void loss_rows(void *context, int64_t index, int worker)
{
    const loss_work *job = context;
    const agglo_target *target = job->target;
    int64_t end = agglo_min((index + 1) * job->step, job->m);
    float *buffer = agglo_cpu_worker(job->be, worker), *decoded = buffer + job->c;
    bool stored = as_stored(target);

    for (int64_t i = index * job->step; i < end; i++) {
        if (weight_of(job, i) == 0.0f) {
            no_weight_row(job, i);
        } else if (stored) {
            loss_row(job, i, (const float *)target->values + i * job->c, buffer);
        } else {
            decode_row(target, i, decoded);
            finish_row(&target->map, decoded);
            loss_row(job, i, decoded, buffer);
        }
    }
}

static void product_rows(void *context, int64_t index, int worker)
{
    const loss_work *job = context;
    const agglo_target *target = job->target;
    int64_t first = index * job->step, rows = agglo_min(job->step, job->m - first), c = job->c, k = target->k;
    float *buffer = agglo_cpu_worker(job->be, worker), *tile = buffer + c, *decoded = tile + job->step * c,
          *scratch = decoded + job->step * k;
    int64_t n_used = 0; /* rows with weight come first in the tile */

    for (int64_t r = 0; r < rows; r++) {
        if (weight_of(job, first + r) != 0.0f) {
            decode_row(target, first + r, decoded + n_used * k);
            n_used++;
        }
    }
    if (n_used > 0) {
        agglo_cpu_operand left = {decoded, AGGLO_F32, k, true};

        AGGLO_CPU_NAME(gemm_tile)(n_used, c, k, &left, job->matrix, tile, c, scratch);
    }
    n_used = 0;
    for (int64_t r = 0; r < rows; r++) {
        if (weight_of(job, first + r) == 0.0f) {
            no_weight_row(job, first + r);
        } else {
            finish_row(&target->map, tile + n_used * c);
            loss_row(job, first + r, tile + n_used * c, buffer);
            n_used++;
        }
    }
}

/* ---- the operator ---- */

static void write_values(const loss_work *job, int which, agglo_tensor *out)
{
    if (out != NULL) {
        float *to = out->data;

        for (int64_t i = 0; i < job->m; i++) {
            to[i] = job->values[VALUES * i + which];
        }
    }
}

static void add_sums(const loss_work *job, double weights, float *out, int64_t n_out)
{
    const agglo_loss_config *config = job->config;
    double cosine = 0.0, l1 = 0.0, sq = 0.0, total = 0.0, n_samples = 0.0;

    for (int64_t i = 0; i < job->m; i++) {
        const float *value = job->values + VALUES * i;
        double w = (double)weight_of(job, i);

        cosine += w * (double)value[0];
        l1 += w * (double)value[1];
        sq += w * (double)value[2];
        total += w * (double)sample_factor(job, i) *
                 ((double)config->alpha * (1.0 - (double)value[0]) + (double)config->beta * (double)value[1] +
                  (double)config->squared * (double)value[2]);
    }
    for (int64_t b = 0; b < job->m / job->n; b++) {
        n_samples += job->valid == NULL || job->valid[b] != 0.0f ? 1.0 : 0.0;
    }
    out[AGGLO_LOSS_COS] += (float)cosine;
    out[AGGLO_LOSS_SMOOTH_L1] += (float)l1;
    out[AGGLO_LOSS_TOKENS] += (float)weights;
    out[AGGLO_LOSS_SAMPLES] += (float)n_samples;
    if (n_out == AGGLO_LOSS_SUMS) {
        out[AGGLO_LOSS_SQUARED] += (float)sq;
        out[AGGLO_LOSS_TOTAL] += weights > 0.0 ? (float)(job->lambda * total / weights) : 0.0f;
    }
}

static void target_loss(agglo_backend *be, const agglo_loss_config *config, const agglo_tensor *pred,
                        const agglo_target *target, const agglo_loss_weights *weights, float grad_scale,
                        agglo_tensor *d_pred, const agglo_loss_values *values, agglo_tensor *sums)
{
    int64_t n = pred->shape[1], c = pred->shape[2], m = pred->shape[0] * n, worker_floats, packed = 0;
    bool product = target->map.matrix != NULL;
    loss_work job = {.be = be, .config = config, .target = target, .n = n, .c = c, .m = m, .pred = pred->data};
    double total = 0.0;

    job.lambda = (double)config->lambda;
    job.bf16 = pred->dtype == AGGLO_BF16;
    job.d_pred = d_pred == NULL ? NULL : d_pred->data;
    if (weights != NULL) {
        job.valid = weights->valid == NULL ? NULL : weights->valid->data;
        job.sample_weight = weights->sample_weight == NULL ? NULL : weights->sample_weight->data;
        job.token_weight = weights->token_weight == NULL ? NULL : weights->token_weight->data;
        job.lambda *= weights->lambda == NULL ? 1.0 : (double)*(const float *)weights->lambda->data;
    }
    for (int64_t i = 0; i < m; i++) {
        total += (double)weight_of(&job, i);
    }
    job.factors = agglo_loss_factors_of(total > 0.0 ? (double)grad_scale * job.lambda / total : 0.0, config->alpha,
                                        config->beta, config->squared, c);
    if (product) {
        job.step = agglo_min(TILE_ROWS, agglo_ceil_div(m, MIN_TASKS));
        job.step = agglo_min(m, job.step < LEAST_ROWS ? LEAST_ROWS : job.step);
        worker_floats = c + job.step * (c + target->k) + AGGLO_CPU_NAME(gemm_tile_floats)(job.step, target->k);
        packed = AGGLO_CPU_NAME(gemm_packed_floats)(c, target->k);
    } else {
        job.step = 1 + 16384 / c;
        worker_floats = 2 * c;
    }
    if (!agglo_cpu_reserve(be, (size_t)(packed + VALUES * m) * sizeof(float), (size_t)worker_floats * sizeof(float))) {
        return;
    }
    job.matrix = agglo_cpu_shared(be);
    job.values = job.matrix + packed;
    if (product) {
        agglo_cpu_operand right = {target->map.matrix, AGGLO_F32, c, false};

        AGGLO_CPU_NAME(gemm_pack_b)(be, &right, c, target->k, job.matrix);
    }
    agglo_pool_for(be->pool, agglo_ceil_div(m, job.step), product ? product_rows : loss_rows, &job);
    add_sums(&job, total, sums->data, agglo_tensor_count(sums));
    if (values != NULL) {
        write_values(&job, 0, values->cos);
        write_values(&job, 1, values->smooth_l1);
        write_values(&job, 2, values->squared);
    }
}

void AGGLO_CPU_NAME(loss_ops)(agglo_backend_ops *ops)
{
    ops->target_loss = target_loss;
}
