/* Pictures of features: the first three principal components of a spatial grid as colours, and tiles side by side. */
#ifndef AGGLO_CLI_PICTURE_H
#define AGGLO_CLI_PICTURE_H

#include "base/alloc.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Project feat[n_tok][dim] on its first three principal components (centred over the tokens), each scaled to its 2nd..98th percentile, as
 * rgb[n_tok][3]. The sign of a component is fixed by its largest coefficient being positive. Fewer than three tokens or dims leave the missing
 * components black. */
agglo_status agglo_picture_pca(const float *feat, int64_t n_tok, int64_t dim, uint8_t *rgb, agglo_err *err);

/* A row of square tiles of `side` pixels with gaps, white behind; out[*height][*width][3] is new (agglo_free). Tiles are scaled by nearest
 * neighbour. */
typedef struct agglo_tile {
    const uint8_t *rgb; /* [h][w][3] */
    int w, h;
} agglo_tile;

agglo_status agglo_picture_row(const agglo_tile *tiles, size_t n, int side, uint8_t **out, int *width, int *height,
                               agglo_err *err);

#ifdef __cplusplus
}
#endif
#endif
