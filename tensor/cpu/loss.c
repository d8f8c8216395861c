/* The distillation loss on the CPU: one pass over the stored target, a row (token) at a time.
 *
 * A row of the target is converted into scratch, its dot product, norms and smooth-L1 sum are taken, and, while pred and target are
 * still in cache, the gradient is written. The sums of rows are kept apart and added in order.
 */
#include "tensor/cpu/cpu_impl.h"
#include "tensor/math_inline.h"

#include <string.h>

#define LEAST_NORM 1e-8f

typedef struct loss_work {
    agglo_backend *be;
    const agglo_loss_config *config;
    int64_t n, c, m, step; /* tokens per sample, channels, rows, rows per task */
    const float *pred, *valid;
    const uint8_t *target;
    agglo_dtype dtype;
    float *d_pred;
    float cos_weight, l1_weight; /* of one valid token's terms in the gradient */
    float *rows;                 /* [m][2]: cos, mean smooth-L1 */
} loss_work;

static const float *target_row(const loss_work *job, int64_t i, float *buffer)
{
    int64_t c = job->c;
    const uint16_t *half = (const uint16_t *)(const void *)job->target + i * c;

    if (job->dtype == AGGLO_F32) {
        return (const float *)(const void *)job->target + i * c;
    }
    if (job->dtype == AGGLO_F16) {
#pragma omp simd
        for (int64_t j = 0; j < c; j++) {
            uint32_t h = half[j], magnitude = (h & 0x7fffu) << 13;
            float scaled = agglo_float_of(magnitude) * 0x1p112f; /* as agglo_f16_to_f32 */
            uint32_t bits = magnitude >= 0x0f800000u ? 0x7f800000u | (magnitude & 0x007fe000u) : agglo_bits_of(scaled);

            buffer[j] = agglo_float_of((h & 0x8000u) << 16 | bits);
        }
    } else {
#pragma omp simd
        for (int64_t j = 0; j < c; j++) {
            buffer[j] = agglo_float_of((uint32_t)half[j] << 16);
        }
    }
    return buffer;
}

static void loss_row(const loss_work *job, int64_t i, float *buffer)
{
    int64_t c = job->c;
    float threshold = job->config->threshold, inverse = 1.0f / threshold, half_inverse = 0.5f / threshold;
    const float *pred = job->pred + i * c, *target;
    float *d_pred = job->d_pred == NULL ? NULL : job->d_pred + i * c;
    float dot = 0.0f, pp = 0.0f, tt = 0.0f, l1 = 0.0f, norm_p, norm_t, cosine, from_target, from_pred;

    if (job->valid != NULL && job->valid[i / job->n] == 0.0f) {
        job->rows[2 * i] = job->rows[2 * i + 1] = 0.0f;
        if (d_pred != NULL) {
            memset(d_pred, 0, (size_t)c * sizeof *d_pred);
        }
        return;
    }
    target = target_row(job, i, buffer);
#pragma omp simd reduction(+ : dot, pp, tt, l1)
    for (int64_t j = 0; j < c; j++) {
        float p = pred[j], t = target[j];

        dot += p * t;
        pp += p * p;
        tt += t * t;
        l1 += agglo_smooth_l1(p - t, threshold, half_inverse);
    }
    norm_p = __builtin_sqrtf(pp);
    norm_t = __builtin_sqrtf(tt);
    norm_t = norm_t < LEAST_NORM ? LEAST_NORM : norm_t;
    /* d cos / d pred = target / (|p| |t|) - cos pred / |p|^2; below the least norm |p| is a constant */
    from_pred = norm_p < LEAST_NORM ? 0.0f : 1.0f / pp;
    norm_p = norm_p < LEAST_NORM ? LEAST_NORM : norm_p;
    cosine = dot / norm_p / norm_t;
    job->rows[2 * i] = cosine;
    job->rows[2 * i + 1] = l1 / (float)c;
    if (d_pred == NULL) {
        return;
    }
    from_target = -job->cos_weight / norm_p / norm_t;
    from_pred *= job->cos_weight * cosine;
#pragma omp simd
    for (int64_t j = 0; j < c; j++) {
        float p = pred[j], t = target[j];

        d_pred[j] = from_target * t + from_pred * p + job->l1_weight * agglo_smooth_l1_slope(p - t, threshold, inverse);
    }
}

static void loss_rows(void *context, int64_t index, int worker)
{
    const loss_work *job = context;
    int64_t end = agglo_min((index + 1) * job->step, job->m);
    float *buffer = agglo_cpu_worker(job->be, worker);

    for (int64_t i = index * job->step; i < end; i++) {
        loss_row(job, i, buffer);
    }
}

static void distill_loss(agglo_backend *be, const agglo_loss_config *config, const agglo_tensor *pred,
                         const agglo_tensor *target, const agglo_tensor *valid, float grad_scale, agglo_tensor *d_pred,
                         agglo_tensor *sums)
{
    int64_t batch = pred->shape[0], n = pred->shape[1], c = pred->shape[2], n_valid = 0;
    loss_work job = {
        .be = be, .config = config, .n = n, .c = c, .m = batch * n, .step = 1 + 16384 / c, .pred = pred->data};
    double cosine = 0.0, l1 = 0.0;
    float *out = sums->data;

    job.valid = valid == NULL ? NULL : valid->data;
    job.target = target->data;
    job.dtype = target->dtype;
    job.d_pred = d_pred == NULL ? NULL : d_pred->data;
    for (int64_t b = 0; b < batch; b++) {
        n_valid += job.valid == NULL || job.valid[b] != 0.0f;
    }
    if (n_valid > 0) {
        double per_token = (double)grad_scale * (double)config->lambda / (double)(n_valid * n);

        job.cos_weight = (float)(per_token * (double)config->alpha);
        job.l1_weight = (float)(per_token * (double)config->beta / (double)c);
    }
    if (!agglo_cpu_reserve(be, (size_t)(2 * job.m) * sizeof(float), (size_t)c * sizeof(float))) {
        return;
    }
    job.rows = agglo_cpu_shared(be);
    agglo_pool_for(be->pool, agglo_ceil_div(job.m, job.step), loss_rows, &job);
    for (int64_t i = 0; i < job.m; i++) {
        cosine += (double)job.rows[2 * i];
        l1 += (double)job.rows[2 * i + 1];
    }
    out[0] += (float)cosine;
    out[1] += (float)l1;
    out[2] += (float)(n_valid * n);
    out[3] += (float)n_valid;
}

void AGGLO_CPU_NAME(loss_ops)(agglo_backend_ops *ops)
{
    ops->distill_loss = distill_loss;
}
