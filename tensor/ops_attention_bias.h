/* Self-attention with an additive bias before the softmax. Part of tensor/ops.h's operators; conventions there.
 *
 *     S[i,j] = scale q_i . k_j + bias[i,j];  out = softmax(S) v
 *
 * Two kinds of bias, exactly one of which is given:
 *   decomposed   bias[i,j] = q_i . rel_h[y_i - y_j + grid_h - 1] + q_i . rel_w[x_i - x_j + grid_w - 1], q unscaled, tables shared by all
 *                heads (SAM, ViTDet; spec teachers.md section 3.1). Tokens are n_prefix without a place, which take and give no bias, then
 *                the grid in raster order. A table of another length is resampled first, outside: agglo_resample of [1,L,1,D] to
 *                [1,2 grid - 1,1,D], bilinear, which has a gradient.
 *   dense        bias[h,i,j], a table of every head shared by all images (Swin's and E-RADIO's windows; spec students.md section 3.5)
 * Windows are images here (agglo_window_partition). No [N,N] array is made but for the dense table itself and, where its gradient is
 * wanted on the CPU, sums of it (as many floats again, or 2^22): the CPU holds a tile of scores, a GPU's multiprocessor too, and the
 * decomposed kind the products q rel_h [B,H,N,grid_h] and q rel_w [B,H,N,grid_w] on a GPU. scale is not 0.
 * Head sizes to 128 and 46,340 tokens on a GPU (AGGLO_E_UNSUPPORTED is latched beyond), any on the CPU.
 */
#ifndef AGGLO_TENSOR_OPS_ATTENTION_BIAS_H
#define AGGLO_TENSOR_OPS_ATTENTION_BIAS_H

#include "tensor/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct agglo_bias {
    const agglo_tensor *rel_h, *rel_w; /* decomposed: [2 grid_h - 1, D] and [2 grid_w - 1, D] F32; otherwise NULL */
    int64_t n_prefix, grid_h, grid_w;  /* N = n_prefix + grid_h grid_w */
    const agglo_tensor *table;         /* dense: [H, N, N] F32; otherwise NULL */
} agglo_bias;

/* Where the bias's gradient is added, F32, of the kind that the bias is. NULL: it is not wanted (rel_h and rel_w together). */
typedef struct agglo_bias_gradient {
    agglo_tensor *rel_h, *rel_w;
    agglo_tensor *table;
} agglo_bias_gradient;

/* qkv[B,N,3,H,D] -> out[B,N,H,D], both of the storage type; lse[B,H,N] F32 (log-sum-exp of S, optional at inference) is for the backward
 * pass. */
void agglo_attention_bias(agglo_backend *be, const agglo_tensor *qkv, float scale, const agglo_bias *bias,
                          agglo_tensor *out, agglo_tensor *lse);
/* d_qkv[B,N,3,H,D] is written, with what comes through the decomposed bias; the gradient of the bias is added. */
void agglo_attention_bias_bwd(agglo_backend *be, const agglo_tensor *d_out, const agglo_tensor *qkv,
                              const agglo_tensor *out, const agglo_tensor *lse, float scale, const agglo_bias *bias,
                              agglo_tensor *d_qkv, const agglo_bias_gradient *d_bias);

#ifdef __cplusplus
}
#endif
#endif
