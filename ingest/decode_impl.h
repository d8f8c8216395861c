/* What the decoders share: per format, opening (the header) and reading (pixels of a region), and the EXIF orientation that all three
 * containers can carry. */
#ifndef AGGLO_INGEST_DECODE_IMPL_H
#define AGGLO_INGEST_DECODE_IMPL_H

#include "ingest/decode.h"

/* Bytes that may be read behind the last pixel of a buffer. */
#define AGGLO_PIXEL_SLACK 64

/* What the header says, as stored: before it is turned upright. */
typedef struct agglo_stored_image {
    uint64_t width, height;
    int orientation; /* EXIF's, 1..8 */
    bool animated;   /* WebP: more than one frame */
    bool lossy;      /* WebP: with chroma at half resolution */
} agglo_stored_image;

/* Memory that grows and is kept; what was in it is forgotten when it does. */
typedef struct agglo_pixel_buffer {
    uint8_t *data;
    size_t n_bytes;
} agglo_pixel_buffer;

/* Room for `rows` rows of `stride` bytes and the slack. */
agglo_status agglo_pixels_reserve(agglo_pixel_buffer *buffer, uint64_t rows, uint64_t stride, agglo_reason *reason,
                                  agglo_err *err);

/* Pixels [x, x + w) x [y, y + h) of the stored picture at 1 / reduce of its size, where they lie: rows `stride` bytes apart. */
typedef struct agglo_stored_region {
    uint32_t x, y, w, h;
    int reduce;
    bool whole; /* asked by agglo_decode: read on to the end of the file */
    const uint8_t *rgb;
    size_t stride;
} agglo_stored_region;

/* Set status, text and *reason together: AGGLO_E_DATA, or AGGLO_E_MEMORY for "out_of_memory". */
agglo_status agglo_reject_image(agglo_reason *reason, const char *code, agglo_err *err, const char *why, ...)
    AGGLO_PRINTF(4, 5);

/* Each decoder: `new` once; `open` parses a header (and closes what was open); `read` fills region->rgb and stride for the wanted
 * pixels, checked by the caller to lie inside, with `buffer` as memory; `verify` reads all that can be wrong. One read or verify per
 * open. */
typedef struct agglo_jpeg agglo_jpeg;

agglo_status agglo_jpeg_new(agglo_jpeg **out, int max_scans, agglo_err *err);
void agglo_jpeg_free(agglo_jpeg *jpeg);
agglo_status agglo_jpeg_open(agglo_jpeg *jpeg, agglo_bytes encoded, agglo_stored_image *out, agglo_reason *reason,
                             agglo_err *err);
void agglo_jpeg_close(agglo_jpeg *jpeg);
agglo_status agglo_jpeg_read(agglo_jpeg *jpeg, agglo_stored_region *region, agglo_pixel_buffer *buffer,
                             agglo_reason *reason, agglo_err *err);
agglo_status agglo_jpeg_verify(agglo_jpeg *jpeg, agglo_reason *reason, agglo_err *err);

typedef struct agglo_png agglo_png;

agglo_status agglo_png_new(agglo_png **out, bool clip16, agglo_err *err);
void agglo_png_free(agglo_png *png);
agglo_status agglo_png_open(agglo_png *png, agglo_bytes encoded, agglo_stored_image *out, agglo_reason *reason,
                            agglo_err *err);
void agglo_png_close(agglo_png *png);
agglo_status agglo_png_read(agglo_png *png, agglo_stored_region *region, agglo_pixel_buffer *buffer,
                            agglo_reason *reason, agglo_err *err);
agglo_status agglo_png_verify(agglo_png *png, agglo_pixel_buffer *buffer, agglo_reason *reason, agglo_err *err);

agglo_status agglo_webp_open(agglo_bytes encoded, agglo_stored_image *out, agglo_reason *reason, agglo_err *err);
agglo_status agglo_webp_read(agglo_bytes encoded, const agglo_stored_image *image, agglo_stored_region *region,
                             agglo_pixel_buffer *buffer, agglo_reason *reason, agglo_err *err);
agglo_status agglo_webp_verify(agglo_bytes encoded, const agglo_stored_image *image, agglo_pixel_buffer *buffer,
                               agglo_reason *reason, agglo_err *err);

/* The orientation in an EXIF block (TIFF header and first directory, with or without "Exif\0\0" before it); 0 when it has none, 1 for a
 * value that is none of the eight. */
int agglo_exif_orientation(const uint8_t *data, size_t n_bytes);
/* The same of an XMP packet (tiff:Orientation as an attribute or an element), which counts where EXIF has none, as in Pillow. */
int agglo_xmp_orientation(const uint8_t *data, size_t n_bytes);

#endif
