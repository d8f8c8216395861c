/* The losses of tensor/ops_loss.h against the stored targets of tensor/quant.h, in double. */
#ifndef AGGLO_TESTS_REF_LOSS_H
#define AGGLO_TESTS_REF_LOSS_H

#include <stdint.h>

/* Arrays that are absent are NULL. */
typedef struct ref_target {
    int64_t k, c;
    const double *q, *token_scale, *channel_scale; /* [m,k], [m], [k] */
    double scale;
    const double *centre, *matrix, *diagonal, *offset; /* [k], [k,c], [c], [c] */
} ref_target;

/* t[m,c] */
void ref_target_decode(const ref_target *target, int64_t m, double *t);

typedef struct ref_target_loss_config {
    double lambda, alpha, beta, threshold, squared;
} ref_target_loss_config;

/* Returns L. values: 3 arrays of [b,n], or NULL; sums[6] are added to, or NULL; d_pred NULL: none. */
double ref_target_loss(const ref_target_loss_config *config, int64_t b, int64_t n, int64_t c, const double *pred,
                       const double *target, const double *valid, const double *sample_weight,
                       const double *token_weight, double grad_scale, double *d_pred, double *const values[3],
                       double *sums);

#endif
