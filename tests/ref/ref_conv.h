/* The reference of tensor/ops_conv.h, as tests/ref/ref.h is that of tensor/ops.h. */
#ifndef AGGLO_TESTS_REF_REF_CONV_H
#define AGGLO_TESTS_REF_REF_CONV_H

#include "tests/ref/ref.h"

/* From an image [b,h,w,c] to [b,oh,ow,o] with kernels kh x kw; depthwise: w[c,kh,kw,1] and o is c. A transposed convolution goes from
 * [b,h,w,c] to [b,oh,ow,o] too, with w[c,kh,kw,o]. */
typedef struct ref_conv {
    int64_t b, h, w, c, oh, ow, o, kh, kw, stride_h, stride_w, pad_h, pad_w;
    bool depthwise;
} ref_conv;

void ref_conv2d(const ref_conv *s, const double *x, const double *w, const double *bias, ref_act act, double *pre,
                double *y);
void ref_conv2d_bwd_input(const ref_conv *s, const double *d_y, const double *w, bool accumulate, double *d_x);
void ref_conv2d_bwd_weight(const ref_conv *s, const double *d_y, const double *x, double *d_w, double *d_b);
void ref_conv_transpose2d(const ref_conv *s, const double *x, const double *w, const double *bias, ref_act act,
                          double *pre, double *y);
void ref_conv_transpose2d_bwd_input(const ref_conv *s, const double *d_y, const double *w, bool accumulate,
                                    double *d_x);
void ref_conv_transpose2d_bwd_weight(const ref_conv *s, const double *d_y, const double *x, double *d_w, double *d_b);

/* running_* may be NULL */
void ref_batchnorm(int64_t m, int64_t c, const double *x, const double *w, const double *b, double eps, double momentum,
                   ref_act act, double *running_mean, double *running_var, double *mean, double *rstd, double *y);
void ref_batchnorm_infer(int64_t m, int64_t c, const double *x, const double *w, const double *b, const double *mean,
                         const double *var, double eps, ref_act act, double *rstd, double *y);
void ref_batchnorm_bwd(int64_t m, int64_t c, const double *d_y, const double *x, const double *w, const double *b,
                       const double *mean, const double *rstd, ref_act act, bool fixed_statistics, bool accumulate,
                       double *d_x, double *d_w, double *d_b);
/* w [n,k] */
void ref_batchnorm_fold(int64_t n, int64_t k, const double *w, const double *b, const double *gamma, const double *beta,
                        const double *mean, const double *var, double eps, double *w_out, double *b_out);

/* Of a ref_conv, the channels and windows (o, depthwise aside). index may be NULL. */
void ref_avgpool2d(const ref_conv *s, const double *x, double *y);
void ref_avgpool2d_bwd(const ref_conv *s, const double *d_y, bool accumulate, double *d_x);
void ref_maxpool2d(const ref_conv *s, const double *x, double *y, double *index);
void ref_maxpool2d_bwd(const ref_conv *s, const double *d_y, const double *index, bool accumulate, double *d_x);

/* y[b][j][i] = x[b][i][j] */
void ref_transpose(int64_t b, int64_t m, int64_t n, const double *x, double *y);

/* x of `samples` times m rows of c */
void ref_residual_drop(int64_t samples, int64_t m, int64_t c, const double *x, const double *h, const double *gamma,
                       const double *scale, double *y);
void ref_residual_drop_bwd(int64_t samples, int64_t m, int64_t c, const double *d_y, const double *h,
                           const double *gamma, const double *scale, bool accumulate, double *d_h, double *d_gamma);

#endif
