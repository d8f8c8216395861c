/* Resampling by dense matrices, and moving rows; see ref_resample.h. */
#include "tests/ref/ref_resample.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static double *zeros(int64_t n)
{
    double *block = calloc((size_t)n, sizeof *block);

    if (block == NULL) {
        fprintf(stderr, "out of memory\n");
        abort();
    }
    return block;
}

static int64_t clamp(int64_t i, int64_t n)
{
    return i < 0 ? 0 : i >= n ? n - 1 : i;
}

/* Keys 1981, equation 15 */
static double cubic(double x, double a)
{
    double s = fabs(x);

    if (s < 1.0) {
        return (a + 2.0) * s * s * s - (a + 3.0) * s * s + 1.0;
    }
    return s < 2.0 ? a * s * s * s - 5.0 * a * s * s + 8.0 * a * s - 4.0 * a : 0.0;
}

/* m[n_out, n_in] */
static double *matrix(const ref_resample_rule *rule, double scale, int64_t n_in, int64_t n_out)
{
    double *m = zeros(n_out * n_in), ratio = (double)n_in / (double)n_out;

    if (scale > 0.0) {
        ratio = 1.0 / scale;
    }
    if (rule->align_corners) {
        ratio = n_out == 1 ? 0.0 : ((double)n_in - 1.0) / ((double)n_out - 1.0);
    }
    for (int64_t o = 0; o < n_out; o++) {
        double *row = m + o * n_in, s = ((double)o + 0.5) * ratio - 0.5;

        if (rule->align_corners) {
            s = (double)o * ratio;
        }
        if (rule->mode == REF_NEAREST) {
            row[clamp(scale > 0.0 ? (int64_t)floor((double)o * ratio) : o * n_in / n_out, n_in)] = 1.0;
        } else if (rule->mode == REF_REFLECT) {
            row[o >= n_in ? 2 * n_in - 2 - o : o] = 1.0;
        } else if (rule->antialias) {
            double c = ((double)o + 0.5) * ratio, f = fmax(ratio, 1.0), sum = 0.0;
            double reach = (rule->mode == REF_BICUBIC ? 2.0 : 1.0) * f;

            for (int64_t j = 0; j < n_in; j++) {
                double x = ((double)j + 0.5 - c) / f;

                /* the window's ends are cut toward zero; all that is outside weighs nothing anyway */
                if ((double)j + 0.5 > c - reach && (double)j + 0.5 < c + reach) {
                    row[j] = rule->mode == REF_BICUBIC ? cubic(x, -0.5) : fmax(1.0 - fabs(x), 0.0);
                    sum += row[j];
                }
            }
            for (int64_t j = 0; j < n_in; j++) {
                row[j] /= sum;
            }
        } else if (rule->mode == REF_BILINEAR) {
            int64_t i;

            s = s < 0.0 ? 0.0 : s;
            i = (int64_t)floor(s);
            row[clamp(i, n_in)] += 1.0 - (s - (double)i);
            row[clamp(i + 1, n_in)] += s - (double)i;
        } else {
            int64_t i = (int64_t)floor(s);

            for (int64_t k = i - 1; k <= i + 2; k++) {
                row[clamp(k, n_in)] += cubic(s - (double)k, -0.75);
            }
        }
    }
    return m;
}

/* With d_x: its transpose. */
static void apply(const ref_resample_rule *rule, int64_t b, int64_t h, int64_t w, int64_t h_out, int64_t w_out,
                  int64_t c, const double *x, double *y, const double *d_y, double *d_x)
{
    double *down = matrix(rule, rule->scale_h, h, h_out), *across = matrix(rule, rule->scale_w, w, w_out);

    for (int64_t i = 0; i < b * h_out * w_out; i++) {
        int64_t image = i / (h_out * w_out), oy = i / w_out % h_out, ox = i % w_out;

        for (int64_t j = 0; j < h * w; j++) {
            double weight = down[oy * h + j / w] * across[ox * w + j % w];

            for (int64_t k = 0; weight != 0.0 && k < c; k++) {
                if (d_x != NULL) {
                    d_x[(image * h * w + j) * c + k] += weight * d_y[i * c + k];
                } else {
                    y[i * c + k] += weight * x[(image * h * w + j) * c + k];
                }
            }
        }
    }
    free(down);
    free(across);
}

void ref_resample(const ref_resample_rule *rule, int64_t b, int64_t h, int64_t w, int64_t h_out, int64_t w_out,
                  int64_t c, const double *x, double *y)
{
    memset(y, 0, (size_t)(b * h_out * w_out * c) * sizeof *y);
    apply(rule, b, h, w, h_out, w_out, c, x, y, NULL, NULL);
}

void ref_resample_bwd(const ref_resample_rule *rule, int64_t b, int64_t h, int64_t w, int64_t h_out, int64_t w_out,
                      int64_t c, const double *d_y, bool accumulate, double *d_x)
{
    if (!accumulate) {
        memset(d_x, 0, (size_t)(b * h * w * c) * sizeof *d_x);
    }
    apply(rule, b, h, w, h_out, w_out, c, NULL, NULL, d_y, d_x);
}

/* Where output o reads along an axis: between i and i + 1, by t. */
static void place(double start, double extent, int64_t o, int64_t n_in, int64_t n_out, int64_t *i, double *t)
{
    double part = n_out == 1 ? 0.0 : (double)o / ((double)n_out - 1.0);
    double s = fmin(fmax((start + extent * part) * ((double)n_in - 1.0), 0.0), (double)n_in - 1.0);

    *i = (int64_t)floor(s);
    *t = s - (double)*i;
}

static void crop(int64_t b, int64_t rows, int64_t columns, int64_t h, int64_t w, int64_t d, const double *table,
                 const double *boxes, double *y, const double *d_y, double *d_table)
{
    for (int64_t o = 0; o < b * h * w; o++) {
        const double *box = boxes + o / (h * w) * 4;
        int64_t yi, xi;
        double ty, tx;

        place(box[1], box[3], o / w % h, rows, h, &yi, &ty);
        place(box[0], box[2], o % w, columns, w, &xi, &tx);
        for (int corner = 0; corner < 4; corner++) {
            int64_t at = (clamp(yi + corner / 2, rows) * columns + clamp(xi + corner % 2, columns)) * d;
            double weight = (corner / 2 == 1 ? ty : 1.0 - ty) * (corner % 2 == 1 ? tx : 1.0 - tx);

            for (int64_t k = 0; k < d; k++) {
                if (d_table != NULL) {
                    d_table[at + k] += weight * d_y[o * d + k];
                } else {
                    y[o * d + k] += weight * table[at + k];
                }
            }
        }
    }
}

void ref_crop_grid(int64_t b, int64_t rows, int64_t columns, int64_t h, int64_t w, int64_t d, const double *table,
                   const double *boxes, double *y)
{
    memset(y, 0, (size_t)(b * h * w * d) * sizeof *y);
    crop(b, rows, columns, h, w, d, table, boxes, y, NULL, NULL);
}

void ref_crop_grid_bwd(int64_t b, int64_t rows, int64_t columns, int64_t h, int64_t w, int64_t d, const double *d_y,
                       const double *boxes, double *d_table)
{
    crop(b, rows, columns, h, w, d, NULL, boxes, NULL, d_y, d_table);
}

/* The place in y of a token of the map. */
static int64_t in_window(int64_t image, int64_t y, int64_t x, int64_t h, int64_t w, int64_t wh, int64_t ww)
{
    int64_t down = (h + wh - 1) / wh, across = (w + ww - 1) / ww;

    return ((image * down + y / wh) * across + x / ww) * wh * ww + y % wh * ww + x % ww;
}

void ref_window_partition(int64_t b, int64_t h, int64_t w, int64_t wh, int64_t ww, int64_t c, const double *x,
                          bool accumulate, double *y)
{
    if (!accumulate) {
        memset(y, 0, (size_t)(b * ((h + wh - 1) / wh) * ((w + ww - 1) / ww) * wh * ww * c) * sizeof *y);
    }
    for (int64_t i = 0; i < b * h * w; i++) {
        int64_t at = in_window(i / w / h, i / w % h, i % w, h, w, wh, ww);

        for (int64_t k = 0; k < c; k++) {
            y[at * c + k] = (accumulate ? y[at * c + k] : 0.0) + x[i * c + k];
        }
    }
}

void ref_window_merge(int64_t b, int64_t h, int64_t w, int64_t wh, int64_t ww, int64_t c, const double *y,
                      bool accumulate, double *x)
{
    for (int64_t i = 0; i < b * h * w; i++) {
        int64_t at = in_window(i / w / h, i / w % h, i % w, h, w, wh, ww);

        for (int64_t k = 0; k < c; k++) {
            x[i * c + k] = (accumulate ? x[i * c + k] : 0.0) + y[at * c + k];
        }
    }
}

void ref_gather_rows(int64_t b, int64_t m, int64_t n, int64_t c, const double *x, const double *index, int64_t n_lists,
                     double *y)
{
    memset(y, 0, (size_t)(b * n * c) * sizeof *y);
    for (int64_t i = 0; i < b * n; i++) {
        int64_t row = (int64_t)index[n_lists == 1 ? i % n : i];

        for (int64_t k = 0; row >= 0 && row < m && k < c; k++) {
            y[i * c + k] = x[(i / n * m + row) * c + k];
        }
    }
}

void ref_scatter_rows(int64_t b, int64_t m, int64_t n, int64_t c, const double *y, const double *index, int64_t n_lists,
                      bool accumulate, double *x)
{
    if (!accumulate) {
        memset(x, 0, (size_t)(b * m * c) * sizeof *x);
    }
    for (int64_t i = 0; i < b * n; i++) {
        int64_t row = (int64_t)index[n_lists == 1 ? i % n : i];

        for (int64_t k = 0; row >= 0 && row < m && k < c; k++) {
            x[(i / n * m + row) * c + k] += y[i * c + k];
        }
    }
}
