#include "tests/ref/ref_conv.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- convolution: every operator visits all (output pixel, tap, channel) of the forward sum ---- */

typedef struct term {
    int64_t image, output, weight; /* flat places of the three factors */
} term;

/* Tap (ky, kx) at output pixel (oy, ox), from channel c to output o; false in the padding. */
static bool term_at(const ref_conv *s, int64_t b, int64_t oy, int64_t ox, int64_t ky, int64_t kx, int64_t c, int64_t o,
                    term *t)
{
    int64_t iy = oy * s->stride_h - s->pad_h + ky, ix = ox * s->stride_w - s->pad_w + kx;

    if (iy < 0 || iy >= s->h || ix < 0 || ix >= s->w) {
        return false;
    }
    t->image = ((b * s->h + iy) * s->w + ix) * s->c + c;
    t->output = ((b * s->oh + oy) * s->ow + ox) * s->o + o;
    t->weight = s->depthwise ? (o * s->kh + ky) * s->kw + kx : ((o * s->kh + ky) * s->kw + kx) * s->c + c;
    return true;
}

/* to[of] += sum of from_a from_b over all terms; `which` names the place that `to` is indexed by. */
enum { TO_OUTPUT, TO_IMAGE, TO_WEIGHT };

static void add_terms(const ref_conv *s, int which, const double *a, const double *b, double *to)
{
    for (int64_t image = 0; image < s->b; image++) {
        for (int64_t oy = 0; oy < s->oh; oy++) {
            for (int64_t ox = 0; ox < s->ow; ox++) {
                for (int64_t o = 0; o < s->o; o++) {
                    for (int64_t ky = 0; ky < s->kh; ky++) {
                        for (int64_t kx = 0; kx < s->kw; kx++) {
                            for (int64_t c = s->depthwise ? o : 0; c < (s->depthwise ? o + 1 : s->c); c++) {
                                term t;

                                if (!term_at(s, image, oy, ox, ky, kx, c, o, &t)) {
                                    continue;
                                }
                                if (which == TO_OUTPUT) {
                                    to[t.output] += a[t.image] * b[t.weight];
                                } else if (which == TO_IMAGE) {
                                    to[t.image] += a[t.output] * b[t.weight];
                                } else {
                                    to[t.weight] += a[t.output] * b[t.image];
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

static void finish(int64_t m, int64_t n, const double *bias, ref_act act, double *pre, double *y)
{
    for (int64_t i = 0; i < m * n; i++) {
        double v = y[i] + (bias == NULL ? 0.0 : bias[i % n]);

        if (pre != NULL) {
            pre[i] = v;
        }
        y[i] = ref_act_value(act, v);
    }
}

static void start(int64_t n, bool accumulate, double *y)
{
    if (!accumulate) {
        memset(y, 0, (size_t)n * sizeof *y);
    }
}

static void add_columns(int64_t m, int64_t n, const double *x, double *sums)
{
    for (int64_t i = 0; sums != NULL && i < m * n; i++) {
        sums[i % n] += x[i];
    }
}

void ref_conv2d(const ref_conv *s, const double *x, const double *w, const double *bias, ref_act act, double *pre,
                double *y)
{
    int64_t m = s->b * s->oh * s->ow;

    start(m * s->o, false, y);
    add_terms(s, TO_OUTPUT, x, w, y);
    finish(m, s->o, bias, act, pre, y);
}

void ref_conv2d_bwd_input(const ref_conv *s, const double *d_y, const double *w, bool accumulate, double *d_x)
{
    start(s->b * s->h * s->w * s->c, accumulate, d_x);
    add_terms(s, TO_IMAGE, d_y, w, d_x);
}

void ref_conv2d_bwd_weight(const ref_conv *s, const double *d_y, const double *x, double *d_w, double *d_b)
{
    add_terms(s, TO_WEIGHT, d_y, x, d_w);
    add_columns(s->b * s->oh * s->ow, s->o, d_y, d_b);
}

/* The transposed convolution by its own definition: pixel (iy, ix) of the input lays w times itself over the output. */
static void add_transposed(const ref_conv *s, int which, const double *a, const double *b, double *to)
{
    for (int64_t i = 0; i < s->b * s->h * s->w * s->c; i++) {
        int64_t c = i % s->c, ix = i / s->c % s->w, iy = i / (s->c * s->w) % s->h, image = i / (s->c * s->w * s->h);

        for (int64_t j = 0; j < s->kh * s->kw * s->o; j++) {
            int64_t o = j % s->o, kx = j / s->o % s->kw, ky = j / (s->o * s->kw);
            int64_t oy = iy * s->stride_h - s->pad_h + ky, ox = ix * s->stride_w - s->pad_w + kx;
            int64_t at = ((image * s->oh + oy) * s->ow + ox) * s->o + o, w = c * s->kh * s->kw * s->o + j;

            if (oy < 0 || oy >= s->oh || ox < 0 || ox >= s->ow) {
                continue;
            }
            if (which == TO_OUTPUT) {
                to[at] += a[i] * b[w];
            } else if (which == TO_IMAGE) {
                to[i] += a[at] * b[w];
            } else {
                to[w] += a[at] * b[i];
            }
        }
    }
}

void ref_conv_transpose2d(const ref_conv *s, const double *x, const double *w, const double *bias, ref_act act,
                          double *pre, double *y)
{
    int64_t m = s->b * s->oh * s->ow;

    start(m * s->o, false, y);
    add_transposed(s, TO_OUTPUT, x, w, y);
    finish(m, s->o, bias, act, pre, y);
}

void ref_conv_transpose2d_bwd_input(const ref_conv *s, const double *d_y, const double *w, bool accumulate, double *d_x)
{
    start(s->b * s->h * s->w * s->c, accumulate, d_x);
    add_transposed(s, TO_IMAGE, d_y, w, d_x);
}

void ref_conv_transpose2d_bwd_weight(const ref_conv *s, const double *d_y, const double *x, double *d_w, double *d_b)
{
    add_transposed(s, TO_WEIGHT, d_y, x, d_w);
    add_columns(s->b * s->oh * s->ow, s->o, d_y, d_b);
}

/* ---- batch normalisation ---- */

static void normalise(int64_t m, int64_t c, const double *x, const double *w, const double *b, const double *mean,
                      const double *rstd, ref_act act, double *y)
{
    for (int64_t i = 0; i < m * c; i++) {
        y[i] = ref_act_value(act, (x[i] - mean[i % c]) * rstd[i % c] * w[i % c] + b[i % c]);
    }
}

void ref_batchnorm(int64_t m, int64_t c, const double *x, const double *w, const double *b, double eps, double momentum,
                   ref_act act, double *running_mean, double *running_var, double *mean, double *rstd, double *y)
{
    for (int64_t j = 0; j < c; j++) {
        double var = 0.0;

        mean[j] = 0.0;
        for (int64_t i = 0; i < m; i++) {
            mean[j] += x[i * c + j] / (double)m;
        }
        for (int64_t i = 0; i < m; i++) {
            var += (x[i * c + j] - mean[j]) * (x[i * c + j] - mean[j]);
        }
        rstd[j] = 1.0 / sqrt(var / (double)m + eps);
        if (running_mean != NULL) {
            running_mean[j] = (1.0 - momentum) * running_mean[j] + momentum * mean[j];
            running_var[j] = (1.0 - momentum) * running_var[j] + momentum * var / (double)(m - 1);
        }
    }
    normalise(m, c, x, w, b, mean, rstd, act, y);
}

void ref_batchnorm_infer(int64_t m, int64_t c, const double *x, const double *w, const double *b, const double *mean,
                         const double *var, double eps, ref_act act, double *rstd, double *y)
{
    double *r = malloc((size_t)c * sizeof *r);

    for (int64_t j = 0; j < c; j++) {
        r[j] = 1.0 / sqrt(var[j] + eps);
        if (rstd != NULL) {
            rstd[j] = r[j];
        }
    }
    normalise(m, c, x, w, b, mean, r, act, y);
    free(r);
}

void ref_batchnorm_bwd(int64_t m, int64_t c, const double *d_y, const double *x, const double *w, const double *b,
                       const double *mean, const double *rstd, ref_act act, bool fixed_statistics, bool accumulate,
                       double *d_x, double *d_w, double *d_b)
{
    for (int64_t j = 0; j < c; j++) {
        double sum_g = 0.0, sum_gn = 0.0;

        for (int pass = 0; pass < 2; pass++) {
            for (int64_t i = 0; i < m; i++) {
                double n = (x[i * c + j] - mean[j]) * rstd[j];
                double g = d_y[i * c + j] * ref_act_slope(act, n * w[j] + b[j]), d;

                if (pass == 0) {
                    sum_g += g;
                    sum_gn += g * n;
                    continue;
                }
                d = w[j] * rstd[j] * (fixed_statistics ? g : g - sum_g / (double)m - n * sum_gn / (double)m);
                d_x[i * c + j] = accumulate ? d_x[i * c + j] + d : d;
            }
        }
        d_w[j] += sum_gn;
        d_b[j] += sum_g;
    }
}

void ref_batchnorm_fold(int64_t n, int64_t k, const double *w, const double *b, const double *gamma, const double *beta,
                        const double *mean, const double *var, double eps, double *w_out, double *b_out)
{
    for (int64_t i = 0; i < n; i++) {
        double s = gamma[i] / sqrt(var[i] + eps);

        for (int64_t j = 0; j < k; j++) {
            w_out[i * k + j] = w[i * k + j] * s;
        }
        b_out[i] = beta[i] + ((b == NULL ? 0.0 : b[i]) - mean[i]) * s;
    }
}

/* ---- pooling ---- */

void ref_avgpool2d(const ref_conv *s, const double *x, double *y)
{
    ref_conv depthwise = *s;
    int64_t taps = s->kh * s->kw;
    double *w = malloc((size_t)(s->c * taps) * sizeof *w);

    depthwise.o = s->c;
    depthwise.depthwise = true;
    for (int64_t i = 0; i < s->c * taps; i++) {
        w[i] = 1.0 / (double)taps;
    }
    ref_conv2d(&depthwise, x, w, NULL, REF_NONE, NULL, y);
    free(w);
}

void ref_avgpool2d_bwd(const ref_conv *s, const double *d_y, bool accumulate, double *d_x)
{
    ref_conv depthwise = *s;
    int64_t taps = s->kh * s->kw;
    double *w = malloc((size_t)(s->c * taps) * sizeof *w);

    depthwise.o = s->c;
    depthwise.depthwise = true;
    for (int64_t i = 0; i < s->c * taps; i++) {
        w[i] = 1.0 / (double)taps;
    }
    ref_conv2d_bwd_input(&depthwise, d_y, w, accumulate, d_x);
    free(w);
}

void ref_maxpool2d(const ref_conv *s, const double *x, double *y, double *index)
{
    for (int64_t i = 0; i < s->b * s->oh * s->ow * s->c; i++) {
        int64_t c = i % s->c, ox = i / s->c % s->ow, oy = i / (s->c * s->ow) % s->oh, b = i / (s->c * s->ow * s->oh);

        y[i] = -INFINITY;
        for (int64_t ky = 0; ky < s->kh; ky++) {
            for (int64_t kx = 0; kx < s->kw; kx++) {
                int64_t iy = oy * s->stride_h - s->pad_h + ky, ix = ox * s->stride_w - s->pad_w + kx;
                double v;

                if (iy < 0 || iy >= s->h || ix < 0 || ix >= s->w) {
                    continue;
                }
                v = x[((b * s->h + iy) * s->w + ix) * s->c + c];
                if (v > y[i]) {
                    y[i] = v;
                    if (index != NULL) {
                        index[i] = (double)(iy * s->w + ix);
                    }
                }
            }
        }
    }
}

void ref_maxpool2d_bwd(const ref_conv *s, const double *d_y, const double *index, bool accumulate, double *d_x)
{
    start(s->b * s->h * s->w * s->c, accumulate, d_x);
    for (int64_t i = 0; i < s->b * s->oh * s->ow * s->c; i++) {
        int64_t c = i % s->c, b = i / (s->c * s->ow * s->oh);

        d_x[(b * s->h * s->w + (int64_t)index[i]) * s->c + c] += d_y[i];
    }
}

/* ---- layout and residual ---- */

void ref_transpose(int64_t b, int64_t m, int64_t n, const double *x, double *y)
{
    for (int64_t i = 0; i < b * m * n; i++) {
        y[i / (m * n) * m * n + i % n * m + i / n % m] = x[i];
    }
}

void ref_residual_drop(int64_t samples, int64_t m, int64_t c, const double *x, const double *h, const double *gamma,
                       const double *scale, double *y)
{
    for (int64_t i = 0; i < samples * m * c; i++) {
        y[i] = x[i] + scale[i / (m * c)] * (gamma == NULL ? 1.0 : gamma[i % c]) * h[i];
    }
}

void ref_residual_drop_bwd(int64_t samples, int64_t m, int64_t c, const double *d_y, const double *h,
                           const double *gamma, const double *scale, bool accumulate, double *d_h, double *d_gamma)
{
    start(samples * m * c, accumulate, d_h);
    for (int64_t i = 0; i < samples * m * c; i++) {
        double s = scale[i / (m * c)] * d_y[i];

        d_h[i] += s * (gamma == NULL ? 1.0 : gamma[i % c]);
        if (gamma != NULL) {
            d_gamma[i % c] += s * h[i];
        }
    }
}
