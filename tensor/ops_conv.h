/* Operators over feature maps: convolution, transposed convolution, batch normalisation, pooling, layout, concatenation, and the residual
 * of stochastic depth. Part of tensor/ops.h; what it says of gradients, optional arguments and determinism holds here.
 *
 * Maps are channels-last, [B,H,W,C]. The storage type of a call is its first tensor's, F32 or BF16; activations, their gradients and the
 * weights of convolutions are of it. Biases, norm parameters, statistics and all gradients of parameters are F32. Accumulation is F32 at least.
 *
 * SAM's LayerNorm2d, over the channels of each pixel, is agglo_layernorm over the rows of a channels-last map. The mean over all pixels
 * is agglo_tokens_mean of the map seen as [B,HW,C].
 */
#ifndef AGGLO_TENSOR_OPS_CONV_H
#define AGGLO_TENSOR_OPS_CONV_H

#include "tensor/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- convolution ---- */

typedef struct agglo_conv2d_config {
    int stride_h, stride_w;
    int pad_h, pad_w; /* zeros on either side of each axis */
    int groups;       /* 1, or the number of channels (depthwise: as many outputs as inputs) */
} agglo_conv2d_config;

/* stride on both axes, pad on all four sides, one group */
static inline agglo_conv2d_config agglo_conv2d_square(int stride, int pad)
{
    agglo_conv2d_config config = {stride, stride, pad, pad, 1};

    return config;
}

/* y[B,OH,OW,O] = act(conv(x[B,H,W,C], w) + b[O]), OH = (H + 2 pad_h - kh) / stride_h + 1 rounded down, OW likewise; pre (optional, as y)
 * keeps the argument of act.
 *   y[b,oy,ox,o] = sum over ky,kx,c of x[b, oy stride_h - pad_h + ky, ox stride_w - pad_w + kx, c] w[o,ky,kx,c]
 * w is [O,kh,kw,C/groups]: agglo_conv_weight_pack makes it of a checkpoint's [O,C/groups,kh,kw]. */
void agglo_conv2d(agglo_backend *be, const agglo_conv2d_config *config, const agglo_tensor *x, const agglo_tensor *w,
                  const agglo_tensor *b, agglo_act act, agglo_tensor *pre, agglo_tensor *y);
/* d_x[B,H,W,C] (+)= the transpose of the convolution, applied to d_y[B,OH,OW,O] */
void agglo_conv2d_bwd_input(agglo_backend *be, const agglo_conv2d_config *config, const agglo_tensor *d_y,
                            const agglo_tensor *w, bool accumulate, agglo_tensor *d_x);
/* d_w[O,kh,kw,C/groups] += ; d_b[O] += sums of d_y over pixels (optional) */
void agglo_conv2d_bwd_weight(agglo_backend *be, const agglo_conv2d_config *config, const agglo_tensor *d_y,
                             const agglo_tensor *x, agglo_tensor *d_w, agglo_tensor *d_b);

/* y[B,OH,OW,O] = act(conv_transpose(x[B,H,W,C], w) + b[O]) with w[C,kh,kw,O], one group:
 *   y[b, iy stride_h - pad_h + ky, ix stride_w - pad_w + kx, o] += x[b,iy,ix,c] w[c,ky,kx,o]
 * OH is y's: (H - 1) stride_h - 2 pad_h + kh and up to stride_h - 1 more (PyTorch's output_padding). agglo_conv_weight_pack makes w of a
 * checkpoint's [C,O,kh,kw]. */
void agglo_conv_transpose2d(agglo_backend *be, const agglo_conv2d_config *config, const agglo_tensor *x,
                            const agglo_tensor *w, const agglo_tensor *b, agglo_act act, agglo_tensor *pre,
                            agglo_tensor *y);
void agglo_conv_transpose2d_bwd_input(agglo_backend *be, const agglo_conv2d_config *config, const agglo_tensor *d_y,
                                      const agglo_tensor *w, bool accumulate, agglo_tensor *d_x);
/* d_w[C,kh,kw,O] += ; d_b[O] += (optional) */
void agglo_conv_transpose2d_bwd_weight(agglo_backend *be, const agglo_conv2d_config *config, const agglo_tensor *d_y,
                                       const agglo_tensor *x, agglo_tensor *d_w, agglo_tensor *d_b);

/* On the host: packed[a,kh,kw,b] of a checkpoint's weights [a,b,kh,kw], elements of element_bytes; and back. No overlap. */
void agglo_conv_weight_pack(void *packed, const void *checkpoint, size_t element_bytes, int64_t a, int64_t b,
                            int64_t kh, int64_t kw);
void agglo_conv_weight_unpack(void *checkpoint, const void *packed, size_t element_bytes, int64_t a, int64_t b,
                              int64_t kh, int64_t kw);

/* ---- batch normalisation, over the rows of x[M,C] (a map's pixels) ---- */

/* Training: mean and biased variance over the rows;
 *   y = act((x - mean) rstd w + b),  rstd = 1 / sqrt(var + eps)
 * mean[C] and rstd[C] are kept for the backward pass. The running statistics (both or neither) move as PyTorch's do:
 *   running = (1 - momentum) running + momentum (mean, or the unbiased variance var M / (M - 1))
 * M is at least 2. The argument of act is not kept: the backward pass works it out again. */
void agglo_batchnorm(agglo_backend *be, const agglo_tensor *x, const agglo_tensor *w, const agglo_tensor *b, float eps,
                     float momentum, agglo_act act, agglo_tensor *running_mean, agglo_tensor *running_var,
                     agglo_tensor *mean, agglo_tensor *rstd, agglo_tensor *y);
/* With fixed statistics mean[C] and var[C]; rstd[C] (optional) is kept for a backward pass. y may be x. */
void agglo_batchnorm_infer(agglo_backend *be, const agglo_tensor *x, const agglo_tensor *w, const agglo_tensor *b,
                           const agglo_tensor *mean, const agglo_tensor *var, float eps, agglo_act act,
                           agglo_tensor *rstd, agglo_tensor *y);
/* With n = (x - mean) rstd and g = d_y act'(n w + b):  d_w += sum g n,  d_b += sum g,  d_x (+)= w rstd (g - mean(g) - n mean(g n)), or
 * w rstd g where the statistics were fixed. d_x may be d_y unless it accumulates. */
void agglo_batchnorm_bwd(agglo_backend *be, const agglo_tensor *d_y, const agglo_tensor *x, const agglo_tensor *w,
                         const agglo_tensor *b, const agglo_tensor *mean, const agglo_tensor *rstd, agglo_act act,
                         bool fixed_statistics, bool accumulate, agglo_tensor *d_x, agglo_tensor *d_w,
                         agglo_tensor *d_b);
/* A convolution and the batch norm (with fixed statistics) behind it as one convolution: with s = gamma / sqrt(var + eps) per output,
 *   w_out[O,...] = w[O,...] s,  b_out[O] = beta + (b - mean) s
 * b may be NULL (zeros). w_out may be w, b_out may be b; w may be F32 where w_out is BF16 (folded from masters). */
void agglo_batchnorm_fold(agglo_backend *be, const agglo_tensor *w, const agglo_tensor *b, const agglo_tensor *gamma,
                          const agglo_tensor *beta, const agglo_tensor *mean, const agglo_tensor *var, float eps,
                          agglo_tensor *w_out, agglo_tensor *b_out);

/* ---- pooling of maps: x[B,H,W,C] to y[B,OH,OW,C] ---- */

typedef struct agglo_pool2d_config {
    int kernel_h, kernel_w, stride_h, stride_w;
    int pad_h, pad_w; /* less than the kernel; average: 0 */
} agglo_pool2d_config;

/* Mean of each window; OH as for a convolution. */
void agglo_avgpool2d(agglo_backend *be, const agglo_pool2d_config *config, const agglo_tensor *x, agglo_tensor *y);
void agglo_avgpool2d_bwd(agglo_backend *be, const agglo_pool2d_config *config, const agglo_tensor *d_y, bool accumulate,
                         agglo_tensor *d_x);
/* Largest of each window, padding aside. index[B,OH,OW,C] I32 (optional at inference): where it stands, row W + column of the map; the first
 * of equals, and the first NaN where there is one. */
void agglo_maxpool2d(agglo_backend *be, const agglo_pool2d_config *config, const agglo_tensor *x, agglo_tensor *y,
                     agglo_tensor *index);
void agglo_maxpool2d_bwd(agglo_backend *be, const agglo_pool2d_config *config, const agglo_tensor *d_y,
                         const agglo_tensor *index, bool accumulate, agglo_tensor *d_x);

/* ---- layout ---- */

/* x[B,C,H,W] to y[B,H,W,C], and back; F32, F16 or BF16, both the same. */
void agglo_nchw_to_nhwc(agglo_backend *be, const agglo_tensor *x, agglo_tensor *y);
void agglo_nhwc_to_nchw(agglo_backend *be, const agglo_tensor *x, agglo_tensor *y);

/* y = x[..., first : first + y->shape[axis], ...]: a run of one axis (channels of a map, tokens of [B,N,C]), all others alike. */
void agglo_slice(agglo_backend *be, int axis, const agglo_tensor *x, int64_t first, agglo_tensor *y);
/* The run of d_x gets d_y (written or added), the rest of it is left alone. */
void agglo_slice_bwd(agglo_backend *be, int axis, const agglo_tensor *d_y, int64_t first, bool accumulate,
                     agglo_tensor *d_x);
/* y = the n parts one after another along the axis */
void agglo_concat(agglo_backend *be, int axis, int n, const agglo_tensor *const *parts, agglo_tensor *y);
/* Each part gets its run of d_y, written or added. */
void agglo_concat_bwd(agglo_backend *be, int axis, const agglo_tensor *d_y, bool accumulate, int n,
                      agglo_tensor *const *d_parts);

/* ---- the residual of stochastic depth ---- */

/* y[B,...,C] = x + scale[B] gamma[C] h, gamma optional; scale is 0 or 1 / (1 - rate), drawn by the caller. y may be x or h. */
void agglo_residual_drop(agglo_backend *be, const agglo_tensor *x, const agglo_tensor *h, const agglo_tensor *gamma,
                         const agglo_tensor *scale, agglo_tensor *y);
/* d_h (+)= scale gamma d_y, d_gamma[C] += sum of scale d_y h (with gamma only). (d_x is d_y itself.) d_h may be d_y unless it accumulates. */
void agglo_residual_drop_bwd(agglo_backend *be, const agglo_tensor *d_y, const agglo_tensor *h,
                             const agglo_tensor *gamma, const agglo_tensor *scale, bool accumulate, agglo_tensor *d_h,
                             agglo_tensor *d_gamma);

#ifdef __cplusplus
}
#endif
#endif
