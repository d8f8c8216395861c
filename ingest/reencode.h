/* Re-encoding of pictures that are larger than wanted: decoded upright, resized bicubically (Pillow's definition), written as a JPEG.
 */
#ifndef AGGLO_INGEST_REENCODE_H
#define AGGLO_INGEST_REENCODE_H

#include "ingest/decode.h"

#ifdef __cplusplus
extern "C" {
#endif

#define AGGLO_REENCODE_QUALITY 95 /* img2dataset's default */

typedef struct agglo_reencoder agglo_reencoder; /* scratch; one per thread */

agglo_status agglo_reencoder_new(agglo_reencoder **out, agglo_err *err);
void agglo_reencoder_free(agglo_reencoder *reencoder);

/* `image` with its long side at max_side (the short one rounded, at least 1 pixel) as baseline JPEG, 4:2:0, quality
 * AGGLO_REENCODE_QUALITY, without metadata. *encoded is the re-encoder's until its next call. AGGLO_E_MEMORY, AGGLO_E_UNSUPPORTED. */
agglo_status agglo_reencode(agglo_reencoder *reencoder, const agglo_image *image, int max_side, agglo_bytes *encoded,
                            int *width, int *height, agglo_err *err);

#ifdef __cplusplus
}
#endif
#endif
