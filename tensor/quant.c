/* Maps of stored targets on the host: what is worked out once per teacher; see quant.h. */
#include "tensor/quant.h"

#include "base/alloc.h"

#include <string.h>

void agglo_map_rotate_mean(int64_t k, int64_t c, const float *rotation, const float *mean, float *out)
{
    for (int64_t i = 0; i < k; i++) {
        double sum = 0.0;

        for (int64_t j = 0; j < c; j++) {
            sum += (double)rotation[i * c + j] * (double)mean[j];
        }
        out[i] = (float)sum;
    }
}

/* out[C] = scale * x W, through the row of doubles `sums`. */
static void apply(int64_t c, const double *x, const float *matrix, const float *diagonal, float scale, double *sums,
                  float *out)
{
    if (matrix == NULL) {
        for (int64_t j = 0; j < c; j++) {
            out[j] = (float)((double)scale * x[j] * (diagonal == NULL ? 1.0 : (double)diagonal[j]));
        }
        return;
    }
    memset(sums, 0, (size_t)c * sizeof *sums);
    for (int64_t l = 0; l < c; l++) {
        const float *row = matrix + l * c;
        double factor = x[l];

        for (int64_t j = 0; j < c; j++) {
            sums[j] += factor * (double)row[j];
        }
    }
    for (int64_t j = 0; j < c; j++) {
        out[j] = (float)((double)scale * sums[j]);
    }
}

agglo_status agglo_map_compose(int64_t k, int64_t c, const float *rotation, const float *mean, const float *centre,
                               const float *matrix, const float *diagonal, float scale, float *rotation_out,
                               float *mean_out, agglo_err *err)
{
    double *rows = agglo_alloc((size_t)c, 2 * sizeof *rows, err);

    AGGLO_ASSERT(matrix == NULL || diagonal == NULL);
    if (rows == NULL) {
        return agglo_doing(err, "cannot compose transforms");
    }
    for (int64_t i = 0; i < k; i++) {
        for (int64_t j = 0; j < c; j++) {
            rows[j] = (double)rotation[i * c + j];
        }
        apply(c, rows, matrix, diagonal, scale, rows + c, rotation_out + i * c);
    }
    for (int64_t j = 0; j < c; j++) {
        rows[j] = (double)mean[j] - (centre == NULL ? 0.0 : (double)centre[j]);
    }
    apply(c, rows, matrix, diagonal, scale, rows + c, mean_out);
    agglo_free(rows);
    return AGGLO_OK;
}
