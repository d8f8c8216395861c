/* The middle of repeated measurements. */
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

double agglo_median(const double *values, int n, double *spread)
{
    double sorted[AGGLO_MEDIAN_MOST], middle;

    AGGLO_ASSERT(n >= 1 && n <= AGGLO_MEDIAN_MOST);
    memcpy(sorted, values, (size_t)n * sizeof *values);
    qsort(sorted, (size_t)n, sizeof *sorted, ascending);
    middle = n % 2 != 0 ? sorted[n / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
    *spread = 50 * (sorted[n - 1 - n / 4] - sorted[n / 4]) / middle;
    return middle;
}
