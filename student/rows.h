/* Rows of features on the host. */
#ifndef AGGLO_STUDENT_ROWS_H
#define AGGLO_STUDENT_ROWS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The first row of each kind, -1: there is none. */
typedef struct agglo_rows_found {
    int64_t not_finite, zero;
} agglo_rows_found;

/* to[n, dim] = the rows of from[n, dim], each divided by its L2 norm, worked out in double; `to` may be `from`. A row of zeros stays zero; what
 * becomes of rows that are not finite is not defined. */
agglo_rows_found agglo_rows_normalise(const float *from, int64_t n, int64_t dim, float *to);

#ifdef __cplusplus
}
#endif
#endif
