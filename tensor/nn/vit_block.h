/* The pre-norm transformer block that CLIP, DINOv2 and the ViT students share, forward and backward:
 *
 *     x = x + ls1 * proj(attention(norm1(x)));   x = x + ls2 * mlp(norm2(x))
 *     mlp(h) = fc2(act(fc1(h)))  or, swiglu,  fc2(silu(a) * b), [a, b] = fc1(h)
 *
 * (Dosovitskiy et al., ICLR 2021; LayerScale: Touvron et al., ICCV 2021; SwiGLU: Shazeer 2020, as in DINOv2 g.)
 *
 * Activations and their gradients, x, y and d among them, are of the storage type `dtype`, which must be that of the parameters' list
 * (agglo_params_set_storage); statistics and the parameters' gradients are F32.
 */
#ifndef AGGLO_TENSOR_NN_VIT_BLOCK_H
#define AGGLO_TENSOR_NN_VIT_BLOCK_H

#include "tensor/ops.h"
#include "tensor/param.h"
#include "tensor/slab.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct agglo_vit_block_config {
    int64_t dim, heads, mlp_dim;
    agglo_act act;    /* of the MLP; ignored with swiglu */
    bool swiglu;      /* fc1 has 2 * mlp_dim rows */
    bool layer_scale; /* ls1, ls2 exist */
    float norm_eps;
    agglo_dtype dtype; /* of activations: AGGLO_F32 (0) or AGGLO_BF16 */
} agglo_vit_block_config;

/* Parameters, declared under PREFIX as timm names them: norm1.weight, norm1.bias, attn.qkv.weight [3d,d], attn.qkv.bias,
 * attn.proj.weight, attn.proj.bias, ls1.gamma, norm2.*, mlp.fc1.*, mlp.fc2.*, ls2.gamma. Linear weights truncated normal 0.02, biases zero. */
typedef struct agglo_vit_block {
    agglo_param *norm1_w, *norm1_b, *qkv_w, *qkv_b, *proj_w, *proj_b, *ls1;
    agglo_param *norm2_w, *norm2_b, *fc1_w, *fc1_b, *fc2_w, *fc2_b, *ls2;
} agglo_vit_block;

agglo_status agglo_vit_block_declare(agglo_vit_block *block, const agglo_vit_block_config *config, const char *prefix,
                                     agglo_params *params, agglo_err *err);

/* What the forward pass of one block keeps for its backward pass. At inference only the scratch inside is used, and one `kept` can serve
 * all blocks. */
typedef struct agglo_vit_block_kept {
    agglo_tensor norm1, mean1, rstd1; /* [B,N,d], [B*N], [B*N] */
    agglo_tensor qkv, lse, attended;  /* [B,N,3,H,D], [B,H,N], [B,N,H,D] */
    agglo_tensor projected;           /* [B,N,d], only with layer_scale */
    agglo_tensor middle;              /* x after attention [B,N,d] */
    agglo_tensor norm2, mean2, rstd2;
    agglo_tensor pre, hidden; /* [B,N,mlp or 2 mlp], [B,N,mlp] */
    agglo_tensor mlp_out;     /* [B,N,d], only with layer_scale */
} agglo_vit_block_kept;

/* Take the memory of `kept` for batch x tokens. */
void agglo_vit_block_plan(agglo_vit_block_kept *kept, const agglo_vit_block_config *config, int64_t batch,
                          int64_t tokens, agglo_slab *slab);

/* Scratch that the backward pass of one block needs; one serves all blocks. */
typedef struct agglo_vit_block_scratch {
    agglo_tensor d_wide, d_qkv, d_narrow;
} agglo_vit_block_scratch;

void agglo_vit_block_plan_backward(agglo_vit_block_scratch *scratch, const agglo_vit_block_config *config,
                                   int64_t batch, int64_t tokens, agglo_slab *slab);

/* x[B,N,d] -> y[B,N,d]; y may be x at inference, and must not be in training (the backward pass reads x). */
void agglo_vit_block_forward(agglo_backend *be, const agglo_vit_block_config *config, const agglo_vit_block *block,
                             const agglo_tensor *x, agglo_vit_block_kept *kept, agglo_tensor *y);

/* d[B,N,d] holds dLoss/dy on entry and dLoss/dx on return; parameter gradients are added to. x is what forward was given. */
void agglo_vit_block_backward(agglo_backend *be, const agglo_vit_block_config *config, const agglo_vit_block *block,
                              const agglo_tensor *x, const agglo_vit_block_kept *kept, agglo_vit_block_scratch *scratch,
                              agglo_tensor *d);

#ifdef __cplusplus
}
#endif
#endif
