/* Weights of resampling along one axis; see resample_axis.h. */
#include "tensor/resample_axis.h"

#include "base/alloc.h"

#include <math.h>
#include <string.h>

#define MOST_EXTENT ((int64_t)1 << 24)

/* Keys' cubic convolution kernel (1981) with parameter a. */
static double keys_cubic(double x, double a)
{
    x = fabs(x);
    if (x < 1.0) {
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
    }
    return x < 2.0 ? (((x - 5.0) * x + 8.0) * x - 4.0) * a : 0.0;
}

static double triangle(double x)
{
    x = fabs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
}

static agglo_status taps_alloc(agglo_taps *out, int64_t n_in, int64_t n_out, int max_taps, agglo_err *err)
{
    *out = (agglo_taps){.n_in = n_in, .n_out = n_out, .max_taps = max_taps};
    out->first = agglo_alloc((size_t)n_out, sizeof *out->first, err);
    out->count = agglo_alloc((size_t)n_out, sizeof *out->count, err);
    out->weight = agglo_alloc((size_t)n_out * (size_t)max_taps, sizeof *out->weight, err);
    if (out->first == NULL || out->count == NULL || out->weight == NULL) {
        agglo_taps_clear(out);
        return agglo_doing(err, "cannot make resampling weights");
    }
    return AGGLO_OK;
}

void agglo_taps_clear(agglo_taps *taps)
{
    agglo_free(taps->first);
    agglo_free(taps->count);
    agglo_free(taps->weight);
    *taps = (agglo_taps){0};
}

/* Inputs from, from + 1, ... with these weights; what lies outside goes to the edge. */
static void put_taps(agglo_taps *taps, int64_t o, double from, int n, const double *weight)
{
    double last = (double)(taps->n_in - 1);
    double lo = fmin(fmax(from, 0.0), last), hi = fmin(fmax(from + (double)(n - 1), 0.0), last);

    taps->first[o] = (int32_t)lo;
    taps->count[o] = (int32_t)(hi - lo) + 1;
    for (int k = 0; k < n; k++) {
        double j = fmin(fmax(from + (double)k, 0.0), last);

        taps->weight[o * taps->max_taps + (int64_t)(j - lo)] += weight[k];
    }
}

static void plain_taps(agglo_taps *taps, const agglo_taps_key *key, int64_t o, double ratio)
{
    double s = key->align_corners ? (double)o * ratio : ((double)o + 0.5) * ratio - 0.5, i, t, weight[4];

    if (key->mode == AGGLO_RESAMPLE_BILINEAR) {
        s = fmax(s, 0.0);
        i = floor(s);
        weight[1] = s - i;
        weight[0] = 1.0 - weight[1];
        put_taps(taps, o, i, 2, weight);
        return;
    }
    i = floor(s);
    t = s - i;
    for (int k = 0; k < 4; k++) {
        weight[k] = keys_cubic(t + 1.0 - (double)k, -0.75);
    }
    put_taps(taps, o, i - 1.0, 4, weight);
}

static void antialias_taps(agglo_taps *taps, const agglo_taps_key *key, int64_t o, double ratio)
{
    bool cubic = key->mode == AGGLO_RESAMPLE_BICUBIC;
    double f = ratio > 1.0 ? ratio : 1.0, support = cubic ? 2.0 * f : f, c = ((double)o + 0.5) * ratio, sum = 0.0;
    double n_in = (double)key->n_in;
    /* toward zero, as Pillow and PyTorch; a centre far outside reads the edge */
    int64_t lo = (int64_t)fmin(fmax(c - support + 0.5, 0.0), n_in - 1.0);
    int64_t hi = (int64_t)fmin(fmax(c + support + 0.5, 1.0), n_in);
    double *weight = taps->weight + o * taps->max_taps;

    for (int64_t j = lo; j < hi; j++) {
        double x = ((double)j - c + 0.5) / f;

        weight[j - lo] = cubic ? keys_cubic(x, -0.5) : triangle(x);
        sum += weight[j - lo];
    }
    if (hi <= lo || sum == 0.0) {
        hi = lo + 1;
        weight[0] = sum = 1.0;
    }
    taps->first[o] = (int32_t)lo;
    taps->count[o] = (int32_t)(hi - lo);
    for (int64_t k = 0; k < hi - lo; k++) {
        weight[k] /= sum;
    }
}

/* As PyTorch: exact for sizes, in float for a prescribed scale. */
static int64_t nearest_of(const agglo_taps_key *key, int64_t o)
{
    int64_t i = key->scale > 0.0 ? (int64_t)floorf((float)o * (float)(1.0 / key->scale)) : o * key->n_in / key->n_out;

    return i < key->n_in ? i : key->n_in - 1;
}

/* Each output reads one input as it is. */
static bool copies(const agglo_taps_key *key)
{
    return key->mode == AGGLO_RESAMPLE_NEAREST || key->mode == AGGLO_RESAMPLE_REFLECT;
}

agglo_status agglo_taps_make(agglo_taps *out, const agglo_taps_key *key, agglo_err *err)
{
    double ratio = (double)key->n_in / (double)key->n_out;
    int max_taps = copies(key) ? 1 : key->mode == AGGLO_RESAMPLE_BILINEAR ? 2 : 4;

    AGGLO_ASSERT(key->n_in > 0 && key->n_out > 0 && key->n_in <= MOST_EXTENT && key->n_out <= MOST_EXTENT);
    AGGLO_ASSERT(key->scale >= 0.0 && key->scale < 1e9 && (key->scale == 0.0 || key->scale > 1e-9));
    AGGLO_ASSERT(!copies(key) || (!key->antialias && !key->align_corners));
    AGGLO_ASSERT(key->mode != AGGLO_RESAMPLE_REFLECT ||
                 (key->scale == 0.0 && key->n_in <= key->n_out && key->n_out < 2 * key->n_in));
    if (key->align_corners) {
        ratio = key->n_out > 1 ? (double)(key->n_in - 1) / (double)(key->n_out - 1) : 0.0;
    } else if (key->scale > 0.0) {
        ratio = 1.0 / key->scale;
    }
    if (key->antialias) {
        max_taps = (int)fmin(ceil((double)max_taps * fmax(ratio, 1.0)) + 2.0, (double)key->n_in);
    }
    if (taps_alloc(out, key->n_in, key->n_out, max_taps, err) != AGGLO_OK) {
        return err->status;
    }
    for (int64_t o = 0; o < key->n_out; o++) {
        if (copies(key)) {
            int64_t back = 2 * (key->n_in - 1) - o;

            out->first[o] = (int32_t)(key->mode == AGGLO_RESAMPLE_NEAREST ? nearest_of(key, o) : o < back ? o : back);
            out->count[o] = 1;
            out->weight[o] = 1.0;
        } else if (key->antialias) {
            antialias_taps(out, key, o, ratio);
        } else {
            plain_taps(out, key, o, ratio);
        }
    }
    return AGGLO_OK;
}

agglo_status agglo_taps_transpose(agglo_taps *out, const agglo_taps *taps, agglo_err *err)
{
    int32_t most = 1, *n_of, *from;
    agglo_status status;

    /* both ends of the runs only move forward, so the outputs that read one input are neighbours; with reflect they lie apart, and those
     * between have weight 0 */
    n_of = agglo_alloc((size_t)taps->n_in, sizeof *n_of, err);
    from = agglo_alloc((size_t)taps->n_in, sizeof *from, err);
    if (n_of == NULL || from == NULL) {
        agglo_doing(err, "cannot make resampling weights");
        goto done;
    }
    for (int64_t o = 0; o < taps->n_out; o++) {
        for (int32_t k = 0; k < taps->count[o]; k++) {
            int32_t i = taps->first[o] + k;

            if (n_of[i] == 0) {
                from[i] = (int32_t)o;
            }
            n_of[i] = (int32_t)o - from[i] + 1;
            most = n_of[i] > most ? n_of[i] : most;
        }
    }
    if (taps_alloc(out, taps->n_out, taps->n_in, most, err) == AGGLO_OK) {
        for (int64_t i = 0; i < taps->n_in; i++) {
            out->first[i] = from[i];
            out->count[i] = n_of[i];
        }
        for (int64_t o = 0; o < taps->n_out; o++) {
            for (int32_t k = 0; k < taps->count[o]; k++) {
                int64_t i = taps->first[o] + k;

                out->weight[i * most + o - from[i]] = taps->weight[o * taps->max_taps + k];
            }
        }
    }
done:
    status = err->status;
    agglo_free(n_of);
    agglo_free(from);
    return status;
}
