/* k-NN classification of summaries (spec students.md section 10.1; Wu et al., CVPR 2018, as DINO does it). */
#ifndef AGGLO_STUDENT_EVAL_KNN_H
#define AGGLO_STUDENT_EVAL_KNN_H

#include "tensor/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct agglo_knn_config {
    int k;              /* neighbours; all of the bank when it has fewer */
    double temperature; /* a neighbour votes exp(similarity / temperature) */
} agglo_knn_config;

/* k 20, temperature 0.07. */
agglo_knn_config agglo_knn_config_default(void);

/* Features of `dim` floats per row, host, borrowed; normalised here in F32 (a zero row stays zero). labels >= 0.
 * predicted[n_queries] gets the class with the most votes: equal votes go to the lowest class, equal similarities
 * to the lowest row of the bank. AGGLO_E_DATA for an empty bank, a negative label, or a feature that is not finite
 * (WHERE names the row). */
agglo_status agglo_eval_knn(agglo_backend *backend, const agglo_knn_config *config, const float *bank,
                            const int64_t *labels, int64_t n_bank, const float *queries, int64_t n_queries, int64_t dim,
                            int64_t *predicted, agglo_err *err);

#ifdef __cplusplus
}
#endif
#endif
