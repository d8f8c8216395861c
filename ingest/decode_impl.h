/* What the decoders share: one pair of functions per format, and the EXIF orientation that all three containers can carry. */
#ifndef AGGLO_INGEST_DECODE_IMPL_H
#define AGGLO_INGEST_DECODE_IMPL_H

#include "ingest/decode.h"

/* Pixels as stored, before they are turned upright. */
typedef struct agglo_stored_image {
    uint64_t width, height;
    int orientation; /* EXIF's, 1..8 */
    bool animated;   /* WebP */
} agglo_stored_image;

/* Set status, text and *reason together: AGGLO_E_DATA, or AGGLO_E_MEMORY for "out_of_memory". */
agglo_status agglo_reject_image(agglo_reason *reason, const char *code, agglo_err *err, const char *why, ...)
    AGGLO_PRINTF(4, 5);

/* Parse the header. */
agglo_status agglo_jpeg_probe(agglo_bytes encoded, agglo_stored_image *out, agglo_reason *reason, agglo_err *err);
agglo_status agglo_png_probe(agglo_bytes encoded, agglo_stored_image *out, agglo_reason *reason, agglo_err *err);
agglo_status agglo_webp_probe(agglo_bytes encoded, agglo_stored_image *out, agglo_reason *reason, agglo_err *err);

/* Decode into rgb[height][width][3], of the size that the probe of the same bytes gave and the caller has checked. */
agglo_status agglo_jpeg_pixels(agglo_bytes encoded, const agglo_stored_image *image, uint8_t *rgb, agglo_reason *reason,
                               agglo_err *err);
agglo_status agglo_png_pixels(agglo_bytes encoded, const agglo_stored_image *image, bool png16_clip, uint8_t *rgb,
                              agglo_reason *reason, agglo_err *err);
agglo_status agglo_webp_pixels(agglo_bytes encoded, const agglo_stored_image *image, uint8_t *rgb, agglo_reason *reason,
                               agglo_err *err);

/* The orientation in an EXIF block (TIFF header and first directory, with or without "Exif\0\0" before it), 1 when it has none. */
int agglo_exif_orientation(const uint8_t *data, size_t n_bytes);

#endif
