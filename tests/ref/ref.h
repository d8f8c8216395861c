/* The reference: every operator of tensor/ops.h in slow, obvious, double-precision C. The arbiter when backends disagree.
 *
 * Arrays are row-major like the tensors. Meaning, aliasing aside, is that of tensor/ops.h: weight gradients are added to, input
 * gradients are written or, with accumulate, added to. Optional arrays may be NULL.
 */
#ifndef AGGLO_TESTS_REF_REF_H
#define AGGLO_TESTS_REF_REF_H

#include <stdbool.h>
#include <stdint.h>

typedef enum ref_act { REF_NONE, REF_GELU, REF_QUICK_GELU, REF_SILU, REF_RELU } ref_act;

double ref_act_value(ref_act act, double x);
double ref_act_slope(ref_act act, double x);

void ref_linear(int64_t m, int64_t n, int64_t k, const double *x, const double *w, const double *b, ref_act act,
                double *pre, double *y);
void ref_linear_bwd_input(int64_t m, int64_t n, int64_t k, const double *d_y, const double *w, bool accumulate,
                          double *d_x);
void ref_linear_bwd_weight(int64_t m, int64_t n, int64_t k, const double *d_y, const double *x, double *d_w,
                           double *d_b);

void ref_activate(int64_t n, ref_act act, const double *x, double *y);
void ref_activate_bwd(int64_t n, ref_act act, const double *x, const double *d_y, double *d_x);
void ref_swiglu(int64_t m, int64_t h, const double *u, double *y);
void ref_swiglu_bwd(int64_t m, int64_t h, const double *u, const double *d_y, double *d_u);

void ref_layernorm(int64_t m, int64_t c, const double *x, const double *w, const double *b, double eps, double *y,
                   double *mean, double *rstd);
void ref_layernorm_bwd(int64_t m, int64_t c, const double *d_y, const double *x, const double *w, double eps,
                       bool accumulate, double *d_x, double *d_w, double *d_b);

void ref_attention(int64_t b, int64_t n, int64_t h, int64_t d, const double *qkv, double scale, double *out,
                   double *lse);
void ref_attention_bwd(int64_t b, int64_t n, int64_t h, int64_t d, const double *d_out, const double *qkv, double scale,
                       double *d_qkv);

void ref_residual(int64_t m, int64_t c, const double *x, const double *h, const double *gamma, double *y);
void ref_residual_bwd(int64_t m, int64_t c, const double *d_y, const double *h, const double *gamma, double *d_h,
                      double *d_gamma);

/* extents: width and height of each picture, [b, 2]; NULL: whole */
void ref_patchify(int64_t b, int64_t height, int64_t width, int64_t p, const uint8_t *pixels, const double *extents,
                  const double mean[3], const double std[3], double *patches);
/* pos_images: 1 for one table [n,c], b for one per image */
void ref_tokens_join(int64_t b, int64_t n_prefix, int64_t n, int64_t c, const double *prefix, const double *patches,
                     const double *pos, int64_t pos_images, double *y);
void ref_tokens_join_bwd(int64_t b, int64_t n_prefix, int64_t n, int64_t c, const double *d_y, double *d_prefix,
                         double *d_patches, double *d_pos, int64_t pos_images);
void ref_tokens_slice(int64_t b, int64_t total, int64_t first, int64_t n, int64_t c, const double *x, double *y);
void ref_tokens_slice_bwd(int64_t b, int64_t total, int64_t first, int64_t n, int64_t c, const double *d_y,
                          bool accumulate, double *d_x);
void ref_tokens_mean(int64_t b, int64_t n, int64_t c, const double *x, double *y);
void ref_tokens_mean_bwd(int64_t b, int64_t n, int64_t c, const double *d_y, bool accumulate, double *d_x);

typedef struct ref_loss_config {
    double lambda, alpha, beta, threshold;
} ref_loss_config;

/* Returns L; sums[4] are added to. */
double ref_distill_loss(const ref_loss_config *config, int64_t b, int64_t n, int64_t c, const double *pred,
                        const double *target, const double *valid, double grad_scale, double *d_pred, double *sums);

typedef struct ref_adamw_config {
    double lr, beta1, beta2, eps, weight_decay, grad_scale;
    int64_t step;
} ref_adamw_config;

void ref_adamw(const ref_adamw_config *config, int64_t n, double *p, const double *g, double *m, double *v);
double ref_sum_squares(int64_t n, const double *x);

/* The block of tensor/nn/vit_block.h. */
typedef struct ref_block_config {
    int64_t dim, heads, mlp_dim;
    ref_act act;
    bool swiglu, layer_scale;
    double norm_eps;
} ref_block_config;

enum {
    REF_NORM1_W,
    REF_NORM1_B,
    REF_QKV_W,
    REF_QKV_B,
    REF_PROJ_W,
    REF_PROJ_B,
    REF_LS1,
    REF_NORM2_W,
    REF_NORM2_B,
    REF_FC1_W,
    REF_FC1_B,
    REF_FC2_W,
    REF_FC2_B,
    REF_LS2,
    REF_BLOCK_PARAMS
};

/* Elements of parameter `which`. */
int64_t ref_block_elements(const ref_block_config *config, int which);
void ref_block_forward(const ref_block_config *config, double *const params[REF_BLOCK_PARAMS], int64_t batch,
                       int64_t tokens, const double *x, double *y);
/* d: dL/dy on entry, dL/dx on return; grads are added to. */
void ref_block_backward(const ref_block_config *config, double *const params[REF_BLOCK_PARAMS], int64_t batch,
                        int64_t tokens, const double *x, double *d, double *const grads[REF_BLOCK_PARAMS]);

#endif
