/* What a backend is made of: the table that implements memory and operators. Only backends, ops.c and backend.c see this.
 *
 * The operators of the table have the signatures and meaning of tensor/ops.h. They are called with checked shapes, never while a
 * failure is latched, and one at a time. A backend embeds struct agglo_backend as its first member.
 */
#ifndef AGGLO_TENSOR_BACKEND_IMPL_H
#define AGGLO_TENSOR_BACKEND_IMPL_H

#include "tensor/async.h"
#include "tensor/ops.h"
#include "tensor/ops_attention_bias.h"
#include "tensor/ops_conv.h"
#include "tensor/ops_gather.h"
#include "tensor/ops_resample.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A convolution's shape: windows of kh x kw over an image [batch,h,w,c], one per pixel of the output [batch,oh,ow,o]. A transposed
 * convolution goes the other way: its input is the side called output here. */
typedef struct agglo_conv_shape {
    int64_t batch, h, w, c, oh, ow, o, kh, kw;
    int64_t stride_h, stride_w, pad_h, pad_w;
    bool depthwise; /* w[o,kh,kw,1], o == c; else w[o,kh,kw,c] */
} agglo_conv_shape;

/* The weights of one axis in the backend's memory; meaning of agglo_taps. */
typedef struct agglo_axis {
    int64_t n_in, n_out;
    int max_taps;
    bool identity; /* every output is its own input */
    const int32_t *first, *count;
    const float *weight;
} agglo_axis;

typedef struct agglo_backend_ops {
    void (*free)(agglo_backend *be);
    bool (*supports)(const agglo_backend *be, agglo_dtype dtype); /* floating dtypes only are asked for */
    void (*wait)(agglo_backend *be); /* for outstanding work; latches what failed meanwhile */

    void *(*alloc)(agglo_backend *be, size_t n_bytes, agglo_err *err);
    void (*release)(agglo_backend *be, void *block);
    void (*upload)(agglo_backend *be, void *dst, const void *src, size_t n_bytes);
    void (*download)(agglo_backend *be, void *dst, const void *src, size_t n_bytes);
    void (*copy)(agglo_backend *be, void *dst, const void *src, size_t n_bytes);
    void (*zero)(agglo_backend *be, void *dst, size_t n_bytes);
    void (*product)(agglo_backend *be, const agglo_tensor *a, const agglo_tensor *b, bool transpose_b, agglo_tensor *c);

    void (*linear)(agglo_backend *be, const agglo_tensor *x, const agglo_tensor *w, const agglo_tensor *b,
                   agglo_act act, agglo_tensor *pre, agglo_tensor *y);
    void (*linear_bwd_input)(agglo_backend *be, const agglo_tensor *d_y, const agglo_tensor *w, bool accumulate,
                             agglo_tensor *d_x);
    void (*linear_bwd_weight)(agglo_backend *be, const agglo_tensor *d_y, const agglo_tensor *x, agglo_tensor *d_w,
                              agglo_tensor *d_b);

    void (*activate)(agglo_backend *be, agglo_act act, const agglo_tensor *x, agglo_tensor *y);
    void (*activate_bwd)(agglo_backend *be, agglo_act act, const agglo_tensor *x, const agglo_tensor *d_y,
                         agglo_tensor *d_x);
    void (*swiglu)(agglo_backend *be, const agglo_tensor *u, agglo_tensor *y);
    void (*swiglu_bwd)(agglo_backend *be, const agglo_tensor *u, const agglo_tensor *d_y, agglo_tensor *d_u);

    void (*layernorm)(agglo_backend *be, const agglo_tensor *x, const agglo_tensor *w, const agglo_tensor *b, float eps,
                      agglo_tensor *y, agglo_tensor *mean, agglo_tensor *rstd);
    void (*layernorm_bwd)(agglo_backend *be, const agglo_tensor *d_y, const agglo_tensor *x, const agglo_tensor *w,
                          const agglo_tensor *mean, const agglo_tensor *rstd, bool accumulate, agglo_tensor *d_x,
                          agglo_tensor *d_w, agglo_tensor *d_b);

    void (*attention)(agglo_backend *be, const agglo_tensor *qkv, float scale, agglo_tensor *out, agglo_tensor *lse);
    void (*attention_bwd)(agglo_backend *be, const agglo_tensor *d_out, const agglo_tensor *qkv,
                          const agglo_tensor *out, const agglo_tensor *lse, float scale, agglo_tensor *d_qkv);

    void (*residual)(agglo_backend *be, const agglo_tensor *x, const agglo_tensor *h, const agglo_tensor *gamma,
                     agglo_tensor *y);
    void (*residual_bwd)(agglo_backend *be, const agglo_tensor *d_y, const agglo_tensor *h, const agglo_tensor *gamma,
                         agglo_tensor *d_h, agglo_tensor *d_gamma);

    void (*patchify)(agglo_backend *be, const agglo_tensor *pixels, const agglo_tensor *extents, const float mean[3],
                     const float std[3], int patch, agglo_tensor *patches);
    void (*tokens_join)(agglo_backend *be, const agglo_tensor *prefix, const agglo_tensor *patches,
                        const agglo_tensor *pos, agglo_tensor *y);
    void (*tokens_join_bwd)(agglo_backend *be, const agglo_tensor *d_y, agglo_tensor *d_prefix, agglo_tensor *d_patches,
                            agglo_tensor *d_pos);
    void (*tokens_slice)(agglo_backend *be, const agglo_tensor *x, int64_t first, agglo_tensor *y);
    void (*tokens_slice_bwd)(agglo_backend *be, const agglo_tensor *d_y, int64_t first, bool accumulate,
                             agglo_tensor *d_x);
    void (*tokens_mean)(agglo_backend *be, const agglo_tensor *x, agglo_tensor *y);
    void (*tokens_mean_bwd)(agglo_backend *be, const agglo_tensor *d_y, bool accumulate, agglo_tensor *d_x);

    void (*target_loss)(agglo_backend *be, const agglo_loss_config *config, const agglo_tensor *pred,
                        const agglo_target *target, const agglo_loss_weights *weights, float grad_scale,
                        agglo_tensor *d_pred, const agglo_loss_values *values, agglo_tensor *sums);
    void (*adamw)(agglo_backend *be, const agglo_adamw_config *config, agglo_tensor *p, const agglo_tensor *g,
                  agglo_tensor *m, agglo_tensor *v);
    void (*adamw_many)(agglo_backend *be, const agglo_adamw_config *config, float max_norm, bool guarded,
                       agglo_optim *optim);
    void (*adamw_many_at)(agglo_backend *be, const agglo_tensor *numbers, bool guarded, agglo_optim *optim);
    void (*ema)(agglo_backend *be, float decay, agglo_optim *optim);
    void (*grad_norm)(agglo_backend *be, agglo_optim *optim);
    void (*grad_hold)(agglo_backend *be, const agglo_tensor *values, agglo_optim *optim);
    void (*sum_squares)(agglo_backend *be, const agglo_tensor *x, agglo_tensor *out);
    void (*axpy)(agglo_backend *be, float a, const agglo_tensor *x, agglo_tensor *y);
    void (*cast)(agglo_backend *be, const agglo_tensor *x, agglo_tensor *y);

    /* y (+)= x resampled down its columns and across its rows: both directions of agglo_resample */
    void (*resample)(agglo_backend *be, const agglo_axis *down, const agglo_axis *across, const agglo_tensor *x,
                     bool accumulate, agglo_tensor *y);
    void (*crop_grid)(agglo_backend *be, const agglo_tensor *table, const agglo_tensor *boxes, agglo_tensor *y);
    void (*crop_grid_bwd)(agglo_backend *be, const agglo_tensor *d_y, const agglo_tensor *boxes, agglo_tensor *d_table);

    void (*window_partition)(agglo_backend *be, const agglo_tensor *x, int64_t wh, int64_t ww, bool accumulate,
                             agglo_tensor *y);
    void (*window_merge)(agglo_backend *be, const agglo_tensor *y, int64_t wh, int64_t ww, bool accumulate,
                         agglo_tensor *x);
    void (*gather_rows)(agglo_backend *be, const agglo_tensor *x, const agglo_tensor *index, agglo_tensor *y);
    void (*scatter_rows)(agglo_backend *be, const agglo_tensor *y, const agglo_tensor *index, bool accumulate,
                         agglo_tensor *x);

    void (*attention_bias)(agglo_backend *be, const agglo_tensor *qkv, float scale, const agglo_bias *bias,
                           agglo_tensor *out, agglo_tensor *lse);
    void (*attention_bias_bwd)(agglo_backend *be, const agglo_tensor *d_out, const agglo_tensor *qkv,
                               const agglo_tensor *out, const agglo_tensor *lse, float scale, const agglo_bias *bias,
                               agglo_tensor *d_qkv, const agglo_bias_gradient *d_bias);

    /* tensor/ops_conv.h. Six operators are made of three: windows gathered from an image, y (+)= act(conv(x) + b); windows scattered onto
     * one, x (+)= act(conv^T(y) + b); and d_w += , d_b += sums of d_y or of x over pixels (either NULL). b, act and pre come without
     * accumulate; depthwise scattering without b, act and pre, and its d_b_x is NULL. */
    void (*conv_gather)(agglo_backend *be, const agglo_conv_shape *shape, const agglo_tensor *x, const agglo_tensor *w,
                        const agglo_tensor *b, agglo_act act, bool accumulate, agglo_tensor *pre, agglo_tensor *y);
    void (*conv_scatter)(agglo_backend *be, const agglo_conv_shape *shape, const agglo_tensor *y, const agglo_tensor *w,
                         const agglo_tensor *b, agglo_act act, bool accumulate, agglo_tensor *pre, agglo_tensor *x);
    void (*conv_weight)(agglo_backend *be, const agglo_conv_shape *shape, const agglo_tensor *d_y,
                        const agglo_tensor *x, agglo_tensor *d_w, agglo_tensor *d_b_y, agglo_tensor *d_b_x);

    void (*batchnorm)(agglo_backend *be, const agglo_tensor *x, const agglo_tensor *w, const agglo_tensor *b, float eps,
                      float momentum, agglo_act act, agglo_tensor *running_mean, agglo_tensor *running_var,
                      agglo_tensor *mean, agglo_tensor *rstd, agglo_tensor *y);
    void (*batchnorm_infer)(agglo_backend *be, const agglo_tensor *x, const agglo_tensor *w, const agglo_tensor *b,
                            const agglo_tensor *mean, const agglo_tensor *var, float eps, agglo_act act,
                            agglo_tensor *rstd, agglo_tensor *y);
    void (*batchnorm_bwd)(agglo_backend *be, const agglo_tensor *d_y, const agglo_tensor *x, const agglo_tensor *w,
                          const agglo_tensor *b, const agglo_tensor *mean, const agglo_tensor *rstd, agglo_act act,
                          bool fixed_statistics, bool accumulate, agglo_tensor *d_x, agglo_tensor *d_w,
                          agglo_tensor *d_b);
    void (*batchnorm_fold)(agglo_backend *be, const agglo_tensor *w, const agglo_tensor *b, const agglo_tensor *gamma,
                           const agglo_tensor *beta, const agglo_tensor *mean, const agglo_tensor *var, float eps,
                           agglo_tensor *w_out, agglo_tensor *b_out);

    void (*avgpool2d)(agglo_backend *be, const agglo_pool2d_config *config, const agglo_tensor *x, agglo_tensor *y);
    void (*avgpool2d_bwd)(agglo_backend *be, const agglo_pool2d_config *config, const agglo_tensor *d_y,
                          bool accumulate, agglo_tensor *d_x);
    void (*maxpool2d)(agglo_backend *be, const agglo_pool2d_config *config, const agglo_tensor *x, agglo_tensor *y,
                      agglo_tensor *index);
    void (*maxpool2d_bwd)(agglo_backend *be, const agglo_pool2d_config *config, const agglo_tensor *d_y,
                          const agglo_tensor *index, bool accumulate, agglo_tensor *d_x);
    /* y[b][j][i] = x[b][i][j] for x of batch matrices [m,n]; elements of any type */
    void (*transpose)(agglo_backend *be, int64_t batch, int64_t m, int64_t n, const agglo_tensor *x, agglo_tensor *y);
    /* A block of `rows` x `cols` elements of matrices of x_stride and y_stride columns: y[i, y_first + j] (+)= x[i, x_first + j]. */
    void (*copy_block)(agglo_backend *be, int64_t rows, int64_t cols, const agglo_tensor *x, int64_t x_stride,
                       int64_t x_first, bool accumulate, agglo_tensor *y, int64_t y_stride, int64_t y_first);
    void (*residual_drop)(agglo_backend *be, const agglo_tensor *x, const agglo_tensor *h, const agglo_tensor *gamma,
                          const agglo_tensor *scale, agglo_tensor *y);
    void (*residual_drop_bwd)(agglo_backend *be, const agglo_tensor *d_y, const agglo_tensor *h,
                              const agglo_tensor *gamma, const agglo_tensor *scale, bool accumulate, agglo_tensor *d_h,
                              agglo_tensor *d_gamma);

    /* tensor/async.h */
    agglo_event *(*event_new)(agglo_backend *be, agglo_err *err);
    void (*event_free)(agglo_backend *be, agglo_event *event);
    void (*event_record)(agglo_backend *be, agglo_event *event);
    void (*event_join)(agglo_backend *be, const agglo_event *event);
    void (*event_wait)(agglo_backend *be, const agglo_event *event);
    bool (*event_is_done)(agglo_backend *be, const agglo_event *event);
    void *(*pinned_alloc)(agglo_backend *be, size_t n_bytes, agglo_err *err);
    void (*pinned_release)(agglo_backend *be, void *block);
    void (*upload_async)(agglo_backend *be, void *dst, const void *src, size_t n_bytes, const agglo_event *after,
                         agglo_event *done);
    void (*download_async)(agglo_backend *be, void *dst, const void *src, size_t n_bytes, agglo_event *done);
    void (*capture_begin)(
        agglo_backend *be); /* NULL: this backend records nothing, and the other three are never called */
    agglo_graph *(*capture_end)(agglo_backend *be); /* also after a failure, and where nothing was begun */
    void (*graph_replay)(agglo_backend *be, agglo_graph *graph);
    void (*graph_free)(agglo_backend *be, agglo_graph *graph);
} agglo_backend_ops;

struct agglo_backend {
    const agglo_backend_ops *ops;
    agglo_pool *pool;   /* NULL on a device */
    agglo_err failed;   /* the first failure since the last check; AGGLO_OK: none */
    char describe[128]; /* "cpu (avx2, 2 threads)" */
    struct agglo_resample_cache *resample_cache;
};

/* ops_resample.c: give back the weights that are kept; before the backend's memory goes. */
void agglo_resample_cache_free(agglo_backend *be);

/* Latch `err` unless an earlier failure stands. */
void agglo_backend_latch(agglo_backend *be, const agglo_err *err);

#ifdef __cplusplus
}
#endif
#endif
