/* The operators that models call. Shapes are checked here (AGGLO_ASSERT); the backend's table does the work.
 *
 * The storage type: the activations and activation gradients of one call, and the weights of its matrix product, are all F32 or, where
 * agglo_backend_supports says so, all BF16 (weights as BF16 copies of their F32 masters). Everything else is F32 always: biases, norm and
 * LayerScale parameters, prefix tokens, position tables, row statistics (mean, rstd, lse), loss sums, optimiser state and every
 * parameter's gradient. Arithmetic is F32 in both; BF16 outputs are rounded once, to nearest even, from F32.
 *
 * Gradients: an argument named d_x is dLoss/dx. Weight gradients are *added to* what stands there; input gradients are written, or added
 * where `accumulate` says so. Optional arguments may be NULL. Outputs may alias inputs only where stated.
 * Reductions run over fixed trees: results do not depend on the number of threads. On the CPU backend a row (of products, norms and what is
 * done element by element) or an image (of attention, tokens and feature maps) moreover comes out the same, bit for bit, whatever else is in
 * the batch; sums over the batch, the parameters' gradients, of course depend on all of it.
 */
#ifndef AGGLO_TENSOR_OPS_H
#define AGGLO_TENSOR_OPS_H

#include "tensor/backend.h"
#include "tensor/ops_loss.h"
#include "tensor/ops_optim.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum agglo_act {
    AGGLO_ACT_NONE = 0,
    AGGLO_ACT_GELU,       /* exact: x/2 (1 + erf(x / sqrt 2)) */
    AGGLO_ACT_QUICK_GELU, /* x sigmoid(1.702 x) */
    AGGLO_ACT_SILU,       /* x sigmoid(x) */
    AGGLO_ACT_RELU,
} agglo_act;

/* y[M,N] = act(x[M,K] w[N,K]^T + b[N]); pre[M,N] (optional) keeps the argument of act for the backward pass. */
void agglo_linear(agglo_backend *be, const agglo_tensor *x, const agglo_tensor *w, const agglo_tensor *b, agglo_act act,
                  agglo_tensor *pre, agglo_tensor *y);
/* d_x[M,K] (+)= d_y[M,N] w[N,K] */
void agglo_linear_bwd_input(agglo_backend *be, const agglo_tensor *d_y, const agglo_tensor *w, bool accumulate,
                            agglo_tensor *d_x);
/* d_w[N,K] += d_y^T x;  d_b[N] += column sums of d_y (optional) */
void agglo_linear_bwd_weight(agglo_backend *be, const agglo_tensor *d_y, const agglo_tensor *x, agglo_tensor *d_w,
                             agglo_tensor *d_b);

/* y = act(x), any shape; y may be x. */
void agglo_activate(agglo_backend *be, agglo_act act, const agglo_tensor *x, agglo_tensor *y);
/* d_x = d_y * act'(x); d_x may be d_y. */
void agglo_activate_bwd(agglo_backend *be, agglo_act act, const agglo_tensor *x, const agglo_tensor *d_y,
                        agglo_tensor *d_x);

/* SwiGLU: y[M,H] = silu(u[M,0:H]) * u[M,H:2H] (DINOv2 g). */
void agglo_swiglu(agglo_backend *be, const agglo_tensor *u, agglo_tensor *y);
void agglo_swiglu_bwd(agglo_backend *be, const agglo_tensor *u, const agglo_tensor *d_y, agglo_tensor *d_u);

/* Over the last axis of x[M,C], biased variance: y = (x - mean) * rstd * w + b. mean[M] and rstd[M] are kept for the backward pass
 * (optional at inference). y may be x at inference. */
void agglo_layernorm(agglo_backend *be, const agglo_tensor *x, const agglo_tensor *w, const agglo_tensor *b, float eps,
                     agglo_tensor *y, agglo_tensor *mean, agglo_tensor *rstd);
void agglo_layernorm_bwd(agglo_backend *be, const agglo_tensor *d_y, const agglo_tensor *x, const agglo_tensor *w,
                         const agglo_tensor *mean, const agglo_tensor *rstd, bool accumulate, agglo_tensor *d_x,
                         agglo_tensor *d_w, agglo_tensor *d_b);

/* Self-attention of packed qkv[B,N,3,H,D]: out[B,N,H,D] = softmax(scale q k^T) v per head. lse[B,H,N] (log-sum-exp of the scaled logits,
 * optional at inference) is what the backward pass needs; the score matrix is never stored whole. */
void agglo_attention(agglo_backend *be, const agglo_tensor *qkv, float scale, agglo_tensor *out, agglo_tensor *lse);
void agglo_attention_bwd(agglo_backend *be, const agglo_tensor *d_out, const agglo_tensor *qkv, const agglo_tensor *out,
                         const agglo_tensor *lse, float scale, agglo_tensor *d_qkv);

/* y[M,C] = x + gamma[C] * h (LayerScale), or x + h without gamma. y may be x or h. */
void agglo_residual(agglo_backend *be, const agglo_tensor *x, const agglo_tensor *h, const agglo_tensor *gamma,
                    agglo_tensor *y);
/* Through gamma only: d_h = gamma * d_y, d_gamma[C] += sum over rows of d_y * h. (d_x of the residual is d_y itself.) d_h may be d_y. */
void agglo_residual_bwd(agglo_backend *be, const agglo_tensor *d_y, const agglo_tensor *h, const agglo_tensor *gamma,
                        agglo_tensor *d_h, agglo_tensor *d_gamma);

/* Pixels to patch vectors: u8 pixels[B,H,W,3] -> patches[B,(H/p)(W/p),3pp], vector order (channel, row, column), value
 * (x/255 - mean[c]) / std[c] in exactly that order of operations (float32), then rounded where patches is BF16. mean and std are host
 * arrays. extents (optional, I32 [B,2] on the device): width and height of each picture in the upper left of its input; what lies
 * outside is 0, whatever its pixels are. */
void agglo_patchify(agglo_backend *be, const agglo_tensor *pixels, const agglo_tensor *extents, const float mean[3],
                    const float std[3], int patch, agglo_tensor *patches);

/* y[B,P+n,C]: the P rows of prefix[P,C] for every image, then patches[B,n,C] + pos[n,C] (pos optional, also [B,n,C]: one table per
 * image). prefix is NULL when P is 0. */
void agglo_tokens_join(agglo_backend *be, const agglo_tensor *prefix, const agglo_tensor *patches,
                       const agglo_tensor *pos, agglo_tensor *y);
/* d_prefix[P,C] += , d_patches[B,n,C] = , d_pos += (each optional). */
void agglo_tokens_join_bwd(agglo_backend *be, const agglo_tensor *d_y, agglo_tensor *d_prefix, agglo_tensor *d_patches,
                           agglo_tensor *d_pos);

/* y[B,n,C] = x[B,first..first+n,C]; and its transpose: d_x rows first.. get d_y (written or added), others are left alone. */
void agglo_tokens_slice(agglo_backend *be, const agglo_tensor *x, int64_t first, agglo_tensor *y);
void agglo_tokens_slice_bwd(agglo_backend *be, const agglo_tensor *d_y, int64_t first, bool accumulate,
                            agglo_tensor *d_x);

/* y[B,C] = mean over tokens of x[B,n,C]; d_x (+)= d_y / n. */
void agglo_tokens_mean(agglo_backend *be, const agglo_tensor *x, agglo_tensor *y);
void agglo_tokens_mean_bwd(agglo_backend *be, const agglo_tensor *d_y, bool accumulate, agglo_tensor *d_x);

/* out[0] += sum of squares of x, F32 (fixed tree). */
void agglo_sum_squares(agglo_backend *be, const agglo_tensor *x, agglo_tensor *out);

/* y += a * x, both of one type */
void agglo_axpy(agglo_backend *be, float a, const agglo_tensor *x, agglo_tensor *y);
/* y = x converted to y's dtype (F32, F16, BF16). */
void agglo_cast(agglo_backend *be, const agglo_tensor *x, agglo_tensor *y);

#ifdef __cplusplus
}
#endif
#endif
