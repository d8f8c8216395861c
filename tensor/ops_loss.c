/* The losses' front: shapes and types are checked here, once for every backend; see ops.c. */
#include "tensor/backend_impl.h"

static bool shaped(const agglo_tensor *t, agglo_dtype dtype, int64_t n)
{
    return t != NULL && t->data != NULL && t->dtype == dtype && agglo_tensor_count(t) == n;
}

static bool absent_or(const agglo_tensor *t, int64_t n)
{
    return t == NULL || shaped(t, AGGLO_F32, n);
}

static bool usable(const agglo_target *t)
{
    return t->values != NULL && t->code >= AGGLO_CODE_F32 && t->code <= AGGLO_CODE_I4 && t->k >= 1 &&
           (t->token_scale_dtype == AGGLO_F32 || t->token_scale_dtype == AGGLO_F16) &&
           (t->map.matrix != NULL ? t->map.diagonal == NULL : t->map.c == t->k);
}

void agglo_target_loss(agglo_backend *be, const agglo_loss_config *config, const agglo_tensor *pred,
                       const agglo_target *target, const agglo_loss_weights *weights, float grad_scale,
                       agglo_tensor *d_pred, const agglo_loss_values *values, agglo_tensor *sums)
{
    int64_t batch = pred->shape[0], n = pred->shape[1], c = pred->shape[2];

    AGGLO_ASSERT(config->threshold >= 0 && pred->rank == 3 && batch >= 1 && n >= 1 && c >= 1);
    AGGLO_ASSERT(pred->dtype == AGGLO_F32 || pred->dtype == AGGLO_BF16);
    AGGLO_ASSERT(shaped(pred, pred->dtype, batch * n * c));
    AGGLO_ASSERT(usable(target) && target->batch == batch && target->n == n && target->map.c == c);
    if (weights != NULL) {
        AGGLO_ASSERT(absent_or(weights->valid, batch) && absent_or(weights->sample_weight, batch) &&
                     absent_or(weights->token_weight, batch * n) && absent_or(weights->lambda, 1));
    }
    AGGLO_ASSERT(d_pred == NULL || (shaped(d_pred, pred->dtype, batch * n * c) && d_pred->data != pred->data));
    if (values != NULL) {
        AGGLO_ASSERT(absent_or(values->cos, batch * n) && absent_or(values->smooth_l1, batch * n) &&
                     absent_or(values->squared, batch * n));
    }
    AGGLO_ASSERT(shaped(sums, AGGLO_F32, AGGLO_LOSS_SUMS) || shaped(sums, AGGLO_F32, AGGLO_LOSS_SAMPLES + 1));
    if (be->failed.status == AGGLO_OK) {
        be->ops->target_loss(be, config, pred, target, weights, grad_scale, d_pred, values, sums);
    }
}

void agglo_distill_loss(agglo_backend *be, const agglo_loss_config *config, const agglo_tensor *pred,
                        const agglo_tensor *target, const agglo_tensor *valid, float grad_scale, agglo_tensor *d_pred,
                        agglo_tensor *sums)
{
    agglo_loss_weights weights = {.valid = valid};
    agglo_target stored;

    AGGLO_ASSERT(target->rank == 3 &&
                 (target->dtype == AGGLO_F32 || target->dtype == AGGLO_F16 || target->dtype == AGGLO_BF16));
    stored = agglo_target_of(target);
    agglo_target_loss(be, config, pred, &stored, &weights, grad_scale, d_pred, NULL, sums);
}
