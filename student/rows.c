/* L2 norms of rows; see rows.h. */
#include "student/rows.h"

#include <math.h>

agglo_rows_found agglo_rows_normalise(const float *from, int64_t n, int64_t dim, float *to)
{
    agglo_rows_found found = {-1, -1};

    for (int64_t i = 0; i < n; i++) {
        const float *x = from + i * dim;
        double sum = 0.0, scale; /* 1 / norm is beyond a float's range for rows of denormals */

        for (int64_t c = 0; c < dim; c++) {
            sum += (double)x[c] * (double)x[c];
        }
        if (!isfinite(sum) && found.not_finite < 0) {
            found.not_finite = i;
        }
        if (sum == 0.0 && found.zero < 0) {
            found.zero = i;
        }
        scale = sum > 0.0 ? 1.0 / sqrt(sum) : 0.0;
        for (int64_t c = 0; c < dim; c++) {
            to[i * dim + c] = (float)((double)x[c] * scale);
        }
    }
    return found;
}
