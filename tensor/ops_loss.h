/* The distillation losses (AM-RADIO equations 2 and 3, and the squared error), against targets in their stored form. Included by ops.h.
 *
 *     L = lambda * sum_i s_b w_i (alpha (1 - cos_i) + beta l1_i + squared sq_i) / sum_i w_i,      i over tokens, b the sample of i
 *
 *     cos_i = p.t / (max(|p|,1e-8) max(|t|,1e-8))           p, t: row i of prediction and target
 *     l1_i  = mean over channels of smoothL1_t(p - t),      smoothL1_t(d) = |d| < t ? d^2 / 2t : |d| - t/2
 *     sq_i  = mean over channels of (p - t)^2
 *     w_i   = valid[b] token_weight[b,i]: what takes part in the mean, and how much;   s_b = sample_weight[b]: a factor of the sample's loss
 *
 * Tokens of weight zero (a bad sample that keeps its slot, tokens outside the overlap of two crops) give values and gradients of
 * zero whatever their slots hold; a batch of nothing else gives L = 0. The gradient treats a norm below 1e-8 as a constant. Values and
 * their sums are computed in F32, added in fixed order in double.
 */
#ifndef AGGLO_TENSOR_OPS_LOSS_H
#define AGGLO_TENSOR_OPS_LOSS_H

#include "tensor/backend.h"
#include "tensor/quant.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct agglo_loss_config {
    float lambda, alpha, beta, threshold;
    float squared;
} agglo_loss_config;

/* All F32 on the device; each may be NULL: 1. Not negative. */
typedef struct agglo_loss_weights {
    const agglo_tensor *valid;         /* [B]: 1, or 0 for a sample found bad */
    const agglo_tensor *sample_weight; /* [B] */
    const agglo_tensor *token_weight;  /* [B,n] */
    const agglo_tensor
        *lambda; /* [1]: a factor of the config's lambda, where a recorded step has a weight that changes */
} agglo_loss_weights;

/* Values of every token, F32 [B,n], written; each may be NULL. */
typedef struct agglo_loss_values {
    agglo_tensor *cos, *smooth_l1, *squared;
} agglo_loss_values;

/* Sums over tokens, without sample weights but for the last: F32, added to. */
enum {
    AGGLO_LOSS_COS,       /* sum of w cos */
    AGGLO_LOSS_SMOOTH_L1, /* sum of w l1 */
    AGGLO_LOSS_TOKENS,    /* sum of w */
    AGGLO_LOSS_SAMPLES,   /* samples with valid > 0 */
    AGGLO_LOSS_SQUARED,   /* sum of w sq */
    AGGLO_LOSS_TOTAL,     /* L */
    AGGLO_LOSS_SUMS,
};

/* Values and gradient at once.
 *   pred     [B,n,C] F32 or BF16
 *   target   B, n as pred, map.c = C
 *   weights  NULL: all 1
 *   d_pred   like pred, gets grad_scale * dL/dpred (written); NULL: values only
 *   values   NULL: sums alone
 *   sums     [AGGLO_LOSS_SUMS] F32
 * With a matrix, targets exist a tile at a time: on the CPU 256 rows a thread, on CUDA at most 64 MiB. BF16 predictions let CUDA
 * multiply in BF16 (integer codes of 8 bits are exact there), F32 accumulated; everything else is F32. */
void agglo_target_loss(agglo_backend *be, const agglo_loss_config *config, const agglo_tensor *pred,
                       const agglo_target *target, const agglo_loss_weights *weights, float grad_scale,
                       agglo_tensor *d_pred, const agglo_loss_values *values, agglo_tensor *sums);

/* The same for a target [B,n,C] of F32, F16 or BF16 and sums[4], the first four. */
void agglo_distill_loss(agglo_backend *be, const agglo_loss_config *config, const agglo_tensor *pred,
                        const agglo_tensor *target, const agglo_tensor *valid, float grad_scale, agglo_tensor *d_pred,
                        agglo_tensor *sums);

#ifdef __cplusplus
}
#endif
#endif
