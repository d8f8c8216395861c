/* A model over whole pictures: read, decoded and prepared on a ring of workers while the model runs, encoded in batches, handed out in
 * order. What `embed` and the evaluations share. Features depend on the picture and the model, not on the batch nor on the number of threads.
 */
#ifndef AGGLO_CLI_EMBED_H
#define AGGLO_CLI_EMBED_H

#include "ingest/pictures.h"
#include "tensor/encoder.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct agglo_embed_options {
    int batch;     /* pictures in one run of the model; 0: agglo_embed_batch */
    int n_workers; /* threads that decode */
    bool spatial;  /* also ask for spatial features */
    const char *label;
} agglo_embed_options;

/* 32 at 224 pixels, fewer at larger inputs, at least 1. */
int agglo_embed_batch(const agglo_encoder *encoder);

/* One picture's features: summary [summary_dim], spatial [size / patch, size / patch, spatial_dim] (NULL unless asked for), all finite. The
 * sink may refuse a picture: it sets *refused and says why in err, and returns AGGLO_OK. */
typedef agglo_status (*agglo_embed_sink)(void *context, const agglo_picture *picture, const float *summary,
                                         const float *spatial, bool *refused, agglo_err *err);

/* A picture that cannot be read, or whose features are not finite, is rejected (agglo_pictures_reject). *n_done: pictures that the sink took.
 * AGGLO_E_STOPPED on a signal. */
agglo_status agglo_embed(const agglo_encoder *encoder, agglo_pictures *pictures, const agglo_embed_options *options,
                         agglo_embed_sink sink, void *context, uint64_t *n_done, agglo_err *err);

#ifdef __cplusplus
}
#endif
#endif
