/* The reference of tensor/ops_attention_bias.h; see ref.h. */
#ifndef AGGLO_TESTS_REF_REF_ATTENTION_BIAS_H
#define AGGLO_TESTS_REF_REF_ATTENTION_BIAS_H

#include <stdbool.h>
#include <stdint.h>

/* Of one kind, the other's arrays NULL. */
typedef struct ref_bias {
    int64_t n_prefix, grid_h, grid_w;
    const double *rel_h, *rel_w; /* [2 grid_h - 1, d], [2 grid_w - 1, d] */
    const double *table;         /* [h, n, n] */
} ref_bias;

void ref_attention_bias(int64_t b, int64_t n, int64_t h, int64_t d, const double *qkv, double scale,
                        const ref_bias *bias, double *out, double *lse);
/* d_qkv is written; d_rel_h, d_rel_w or d_table is added to, NULL not. */
void ref_attention_bias_bwd(int64_t b, int64_t n, int64_t h, int64_t d, const double *d_out, const double *qkv,
                            double scale, const ref_bias *bias, double *d_qkv, double *d_rel_h, double *d_rel_w,
                            double *d_table);

#endif
