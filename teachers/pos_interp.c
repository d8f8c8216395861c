/* Position tables at another resolution; see pos_interp.h. */
#include "teachers/pos_interp.h"

#include "base/alloc.h"

#include <math.h>
#include <string.h>

/* Weights of one axis: output o is the sum over t < n_taps[o] of weight[o * max_taps + t] * in[index[o * max_taps + t]]. */
typedef struct axis {
    int max_taps;
    int *n_taps, *index;
    double *weight;
} axis;

/* Keys' cubic convolution kernel (1981) with parameter a. */
static double keys_cubic(double x, double a)
{
    x = fabs(x);
    if (x < 1.0) {
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
    }
    return x < 2.0 ? (((x - 5.0) * x + 8.0) * x - 4.0) * a : 0.0;
}

static void axis_clear(axis *ax)
{
    agglo_free(ax->n_taps);
    agglo_free(ax->index);
    agglo_free(ax->weight);
}

/* Four taps around (o + 0.5) * ratio - 0.5, clamped at the edges; the weights sum to 1 as they are. */
static void plain_taps(axis *ax, int o, int in, double ratio)
{
    double s = ((double)o + 0.5) * ratio - 0.5, i = floor(s), t = s - i;

    ax->n_taps[o] = 4;
    for (int k = 0; k < 4; k++) {
        int j = (int)i - 1 + k;

        ax->index[o * ax->max_taps + k] = j < 0 ? 0 : j >= in ? in - 1 : j;
        ax->weight[o * ax->max_taps + k] = keys_cubic(t + 1.0 - (double)k, -0.75);
    }
}

static void antialias_taps(axis *ax, int o, int in, double ratio)
{
    double f = ratio > 1.0 ? ratio : 1.0, support = 2.0 * f, c = ((double)o + 0.5) * ratio, sum = 0.0;
    int lo = (int)(c - support + 0.5), hi = (int)(c + support + 0.5); /* toward zero, as Pillow */

    lo = lo < 0 ? 0 : lo;
    hi = hi > in ? in : hi;
    ax->n_taps[o] = hi - lo;
    for (int j = lo; j < hi; j++) {
        double w = keys_cubic(((double)j - c + 0.5) / f, -0.5);

        ax->index[o * ax->max_taps + j - lo] = j;
        ax->weight[o * ax->max_taps + j - lo] = w;
        sum += w;
    }
    for (int k = 0; k < hi - lo; k++) {
        ax->weight[o * ax->max_taps + k] /= sum;
    }
}

static agglo_status axis_make(axis *ax, agglo_pos_rule rule, int in, int out, agglo_err *err)
{
    double ratio = (double)in / (double)out;

    ax->max_taps = 4;
    if (rule == AGGLO_POS_OFFSET) {
        ratio = (double)in / ((double)out + 0.1);
    } else if (rule == AGGLO_POS_ANTIALIAS) {
        ax->max_taps = (int)ceil(4.0 * (ratio > 1.0 ? ratio : 1.0)) + 2;
    }
    ax->n_taps = (int *)agglo_alloc((size_t)out, sizeof *ax->n_taps, err);
    ax->index = (int *)agglo_alloc((size_t)out * (size_t)ax->max_taps, sizeof *ax->index, err);
    ax->weight = (double *)agglo_alloc((size_t)out * (size_t)ax->max_taps, sizeof *ax->weight, err);
    if (ax->n_taps == NULL || ax->index == NULL || ax->weight == NULL) {
        return err->status;
    }
    for (int o = 0; o < out; o++) {
        if (rule == AGGLO_POS_ANTIALIAS) {
            antialias_taps(ax, o, in, ratio);
        } else {
            plain_taps(ax, o, in, ratio);
        }
    }
    return AGGLO_OK;
}

agglo_status agglo_pos_resample(agglo_pos_rule rule, const float *table, int in_h, int in_w, int dim, int out_h,
                                int out_w, float *out, agglo_err *err)
{
    axis across = {0}, down = {0};
    double *wide = NULL; /* [in_h, out_w, dim] */
    size_t d = (size_t)dim, n_wide;

    AGGLO_ASSERT(in_h > 0 && in_w > 0 && dim > 0 && out_h > 0 && out_w > 0);
    if (in_h == out_h && in_w == out_w) {
        memcpy(out, table, (size_t)in_h * (size_t)in_w * d * sizeof *out);
        return AGGLO_OK;
    }
    if (!agglo_size_mul((size_t)in_h * (size_t)out_w, d, &n_wide)) {
        agglo_fail(err, AGGLO_E_MEMORY, "a table of %d x %d x %d is too large", in_h, out_w, dim);
        goto fail;
    }
    wide = (double *)agglo_alloc(n_wide, sizeof *wide, err);
    if (wide == NULL || axis_make(&across, rule, in_w, out_w, err) != AGGLO_OK ||
        axis_make(&down, rule, in_h, out_h, err) != AGGLO_OK) {
        goto fail;
    }
    for (int y = 0; y < in_h; y++) {
        for (int o = 0; o < out_w; o++) {
            double *to = wide + ((size_t)y * (size_t)out_w + (size_t)o) * d;

            for (int k = 0; k < across.n_taps[o]; k++) {
                double w = across.weight[o * across.max_taps + k];
                const float *from =
                    table + ((size_t)y * (size_t)in_w + (size_t)across.index[o * across.max_taps + k]) * d;

                for (size_t c = 0; c < d; c++) {
                    to[c] += w * (double)from[c];
                }
            }
        }
    }
    for (int o = 0; o < out_h; o++) {
        for (int x = 0; x < out_w; x++) {
            float *to = out + ((size_t)o * (size_t)out_w + (size_t)x) * d;

            for (size_t c = 0; c < d; c++) {
                double sum = 0.0;

                for (int k = 0; k < down.n_taps[o]; k++) {
                    size_t row = (size_t)down.index[o * down.max_taps + k];

                    sum += down.weight[o * down.max_taps + k] * wide[(row * (size_t)out_w + (size_t)x) * d + c];
                }
                to[c] = (float)sum;
            }
        }
    }
    axis_clear(&across);
    axis_clear(&down);
    agglo_free(wide);
    return AGGLO_OK;
fail:
    axis_clear(&across);
    axis_clear(&down);
    agglo_free(wide);
    return agglo_doing(err, "cannot resample positions");
}
