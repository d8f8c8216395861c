/* A teacher or a student from one weights file, and its features over a whole dataset: what evaluation and inspection share. */
#ifndef AGGLO_CLI_FEATURES_H
#define AGGLO_CLI_FEATURES_H

#include "ingest/dataset.h"
#include "tensor/encoder.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Open whatever the file is: a student (told by its metadata) or a teacher. head: a student's head by name, NULL for its backbone
 * (AGGLO_E_CONFIG with a teacher). size 0: the model's own. */
agglo_status agglo_encoder_open(agglo_encoder *out, agglo_backend *backend, const char *path, const char *head,
                                int size, int max_batch, agglo_err *err);

/* Summaries of all labelled samples of a dataset, in order, each whole picture prepared as the model expects. */
typedef struct agglo_features {
    float *summary;  /* [n, dim] */
    int64_t *labels; /* [n] */
    int64_t n;
    int dim;
    int64_t n_unlabelled; /* left out */
    int64_t n_bad;        /* left out: picture or shard could not be read */
    uint32_t n_lost_shards;
} agglo_features;

/* n_workers threads decode and render. AGGLO_E_STOPPED on a signal. */
agglo_status agglo_features_of(agglo_features *out, const agglo_encoder *encoder, const agglo_dataset *dataset,
                               int n_workers, agglo_err *err);
void agglo_features_clear(agglo_features *features); /* safe on a zeroed one */

#ifdef __cplusplus
}
#endif
#endif
