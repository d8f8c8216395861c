/* Image decoding: JPEG, PNG and WebP bytes to upright 8-bit RGB, told by content, bounded, as Pillow's exif_transpose and convert('RGB')
 * give it (spec data.md section 3). The bytes are hostile.
 */
#ifndef AGGLO_INGEST_DECODE_H
#define AGGLO_INGEST_DECODE_H

#include "base/alloc.h"
#include "base/bytes.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum agglo_image_format {
    AGGLO_IMAGE_UNKNOWN = 0,
    AGGLO_IMAGE_JPEG,
    AGGLO_IMAGE_PNG,
    AGGLO_IMAGE_WEBP,
    AGGLO_IMAGE_GIF, /* told apart, not decoded */
} agglo_image_format;

typedef struct agglo_decode_options {
    uint64_t max_pixels; /* 178956970 */
    bool ignore_exif;    /* true: pixels as stored */
    bool png16_clip;     /* true: 16-bit gray as Pillow does it (clip) instead of the high byte */
} agglo_decode_options;

agglo_decode_options agglo_decode_options_default(void);

/* Hash of what decides pixels here (library majors, options but the limit, version of the decoder), hex into out[33]. */
void agglo_decode_fingerprint(const agglo_decode_options *options, char out[33]);

/* What the header says. width and height are upright (EXIF applied); `orientation` is EXIF's 1..8. */
typedef struct agglo_image_info {
    agglo_image_format format;
    int width, height;
    int orientation;
} agglo_image_info;

/* Stable short reason of a rejected image, for rejects.jsonl: see the list in docs/formats.md. Static storage.
 *   "not_an_image" "unsupported_format" "truncated" "corrupt" "too_large" "zero_size" "out_of_memory" */
typedef const char *agglo_reason;

/* Parse the header only. On AGGLO_E_DATA *reason is set (reason may be NULL). */
agglo_status agglo_image_probe(agglo_bytes encoded, const agglo_decode_options *options, agglo_image_info *out,
                               agglo_reason *reason, agglo_err *err);

/* An upright picture: rgb[height * width * 3]. One decoder per thread; the pixels are the decoder's, valid until its next call. */
typedef struct agglo_image {
    int width, height;
    const uint8_t *rgb;
} agglo_image;

typedef struct agglo_decoder agglo_decoder;

agglo_status agglo_decoder_new(agglo_decoder **out, const agglo_decode_options *options, agglo_err *err);
void agglo_decoder_free(agglo_decoder *decoder);

/* Decode the whole picture. A picture that is cut off or damaged is an error with its reason, never a half-gray picture. */
agglo_status agglo_decode(agglo_decoder *decoder, agglo_bytes encoded, agglo_image *out, agglo_reason *reason,
                          agglo_err *err);

const char *agglo_image_format_name(agglo_image_format format); /* "jpeg" */

/* Encode rgb[height * width * 3] as a PNG file, atomically. */
agglo_status agglo_png_write(const char *path, const uint8_t *rgb, int width, int height, agglo_err *err);

#ifdef __cplusplus
}
#endif
#endif
