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
    int max_scans; /* 64: of a progressive JPEG. Files of real encoders have about ten; more is work without pixels */
    bool ignore_exif; /* true: pixels as stored */
    bool png16_clip;  /* true: 16-bit gray as Pillow does it (clip) instead of the high byte */
} agglo_decode_options;

agglo_decode_options agglo_decode_options_default(void);

/* Hash of what decides pixels here (library majors, options but the limits, version of the decoder), hex into out[33]. */
void agglo_decode_fingerprint(const agglo_decode_options *options, char out[33]);

/* By its first bytes; AGGLO_IMAGE_UNKNOWN where they say nothing. The rest may be damaged. */
agglo_image_format agglo_image_format_of(agglo_bytes encoded);

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

/* As agglo_image_probe, without making a decoder for it. */
agglo_status agglo_decoder_probe(agglo_decoder *decoder, agglo_bytes encoded, agglo_image_info *out,
                                 agglo_reason *reason, agglo_err *err);

/* Accepts exactly what agglo_decode accepts and rejects the rest with the same reason, but gives no pixels and so may do less: a JPEG
 * is entropy-decoded only, a PNG inflated and its checksums compared, a lossy WebP not turned into RGB. */
agglo_status agglo_image_verify(agglo_decoder *decoder, agglo_bytes encoded, agglo_reason *reason, agglo_err *err);

/* A box of the upright picture, in its pixels. */
typedef struct agglo_box {
    int32_t x, y, w, h;
} agglo_box;

/* Part of an upright picture at 1 / reduce of its size: pixel (i, j) at rgb + j * stride + 3 * i, 0 <= i < width, 0 <= j < height,
 * covers [left + i * reduce, left + (i + 1) * reduce) x [top + j * reduce, ...) of the upright picture. Up to 64 bytes behind the last
 * pixel may be read. `left` and `top` may be negative, and the last pixels reach over the border, by less than `reduce`: DCT blocks do.
 * The decoder's, valid until its next call. */
typedef struct agglo_region {
    int reduce;
    int left, top;
    int width, height;
    size_t stride;
    const uint8_t *rgb;
} agglo_region;

/* Decode the pixels that overlap `box` and, as far as the format lets us, nothing else: of a JPEG the scan lines and columns of the box
 * at the DCT scale 1 / reduce (1, 2, 4 or 8); of a PNG the rows down to its last; of a WebP the box. Other formats than JPEG know no
 * scale and are decoded at 1: see out->reduce. Interlaced PNG and animated WebP are decoded whole.
 *
 * At reduce 1 the pixels are bit for bit those that agglo_decode gives for the box; at any reduce they depend on picture and place only,
 * not on the box that was asked for. The picture must have the upright size width x height that the box was made for and the box lie in
 * it (AGGLO_E_MISMATCH otherwise; *reason is left alone). Damage in what is read is an error as for agglo_decode; damage elsewhere,
 * behind the last row for example, may go unnoticed. */
agglo_status agglo_decode_region(agglo_decoder *decoder, agglo_bytes encoded, int width, int height,
                                 const agglo_box *box, int reduce, agglo_region *out, agglo_reason *reason,
                                 agglo_err *err);

const char *agglo_image_format_name(agglo_image_format format); /* "jpeg" */

/* Encode rgb[height * width * 3] as a PNG file, atomically. */
agglo_status agglo_png_write(const char *path, const uint8_t *rgb, int width, int height, agglo_err *err);

#ifdef __cplusplus
}
#endif
#endif
