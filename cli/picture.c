/* Principal components by LAPACK's symmetric eigensolver on the covariance of the tokens; see picture.h. */
#include "cli/picture.h"

#include <lapacke.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static int by_value(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;

    return (x > y) - (x < y);
}

/* The upper triangle of the covariance of feat, and its mean; row-major. */
static void covariance(const float *feat, int64_t n_tok, int64_t dim, double *mean, double *cov)
{
    for (int64_t t = 0; t < n_tok; t++) {
        for (int64_t c = 0; c < dim; c++) {
            mean[c] += (double)feat[t * dim + c] / (double)n_tok;
        }
    }
    for (int64_t t = 0; t < n_tok; t++) {
        const float *row = feat + t * dim;

        for (int64_t a = 0; a < dim; a++) {
            double x = ((double)row[a] - mean[a]) / (double)n_tok;

            for (int64_t b = a; b < dim; b++) {
                cov[a * dim + b] += x * ((double)row[b] - mean[b]);
            }
        }
    }
}

/* Values along one axis, stretched between percentiles to 0..255. */
static void colour(float *values, float *sorted, int64_t n, uint8_t *rgb, int channel)
{
    float lo, hi;

    memcpy(sorted, values, (size_t)n * sizeof *sorted);
    qsort(sorted, (size_t)n, sizeof *sorted, by_value);
    lo = sorted[n * 2 / 100];
    hi = sorted[n - 1 - n * 2 / 100];
    for (int64_t i = 0; i < n; i++) {
        float scaled = hi > lo ? (values[i] - lo) / (hi - lo) * 255.0f : 127.0f;

        rgb[3 * i + channel] = (uint8_t)(scaled < 0 ? 0 : scaled > 255 ? 255 : scaled + 0.5f);
    }
}

agglo_status agglo_picture_pca(const float *feat, int64_t n_tok, int64_t dim, uint8_t *rgb, agglo_err *err)
{
    size_t n = (size_t)dim;
    double *mean = agglo_alloc(n, sizeof *mean, err);
    double *cov = mean != NULL ? agglo_alloc(n * n, sizeof *cov, err) : NULL;
    double *values = cov != NULL ? agglo_alloc(n, sizeof *values, err) : NULL;
    float *along = values != NULL ? agglo_alloc((size_t)n_tok, 2 * sizeof *along, err) : NULL;
    lapack_int info;

    memset(rgb, 0, (size_t)n_tok * 3);
    if (along == NULL) {
        goto done;
    }
    covariance(feat, n_tok, dim, mean, cov);
    info = LAPACKE_dsyevd(LAPACK_ROW_MAJOR, 'V', 'U', (lapack_int)dim, cov, (lapack_int)dim, values);
    if (info != 0) {
        agglo_fail(err, AGGLO_E_DATA, "the features have no principal components (LAPACK dsyevd: %d)", (int)info);
        goto done;
    }
    for (int k = 0; k < 3 && k < dim && k < n_tok; k++) { /* eigenvalues ascend; column j of cov is eigenvector j */
        const double *vector = cov + (dim - 1 - k);
        double largest = 0, sign;

        for (int64_t c = 0; c < dim; c++) {
            largest = fabs(vector[c * dim]) > fabs(largest) ? vector[c * dim] : largest;
        }
        sign = largest < 0 ? -1 : 1;
        for (int64_t t = 0; t < n_tok; t++) {
            double sum = 0;

            for (int64_t c = 0; c < dim; c++) {
                sum += ((double)feat[t * dim + c] - mean[c]) * vector[c * dim];
            }
            along[t] = (float)(sign * sum);
        }
        colour(along, along + n_tok, n_tok, rgb, k);
    }
done:
    agglo_free(along);
    agglo_free(values);
    agglo_free(cov);
    agglo_free(mean);
    return err->status;
}

agglo_status agglo_picture_row(const agglo_tile *tiles, size_t n, int side, uint8_t **out, int *width, int *height,
                               agglo_err *err)
{
    enum { GAP = 8 };
    size_t w = n * (size_t)(side + GAP) + GAP, h = (size_t)side + 2 * GAP;
    uint8_t *rgb = agglo_alloc(w * h, 3, err);

    *out = rgb;
    if (rgb == NULL) {
        return err->status;
    }
    *width = (int)w;
    *height = (int)h;
    memset(rgb, 255, w * h * 3);
    for (size_t i = 0; i < n; i++) {
        for (int y = 0; y < side; y++) {
            uint8_t *row = rgb + (((size_t)y + GAP) * w + GAP + i * (size_t)(side + GAP)) * 3;
            const uint8_t *from = tiles[i].rgb + (size_t)(y * tiles[i].h / side) * (size_t)tiles[i].w * 3;

            for (int x = 0; x < side; x++) {
                memcpy(row + 3 * (size_t)x, from + (size_t)(x * tiles[i].w / side) * 3, 3);
            }
        }
    }
    return AGGLO_OK;
}
