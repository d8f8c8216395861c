/* Records: one teacher's target for one view of one sample, as it stands in LMDB. Byte layout in docs/formats.md.
 *
 * A record carries its own geometry, the view it was made from, a hash of the pixels the teacher saw and an xxh3-64 over all of it. Bytes
 * are hostile: parse checks every size before it is used.
 */
#ifndef AGGLO_CACHE_RECORD_H
#define AGGLO_CACHE_RECORD_H

#include "base/bytes.h"
#include "base/dtype.h"
#include "base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Values are part of the format: never renumber. */
typedef enum agglo_codec_id {
    AGGLO_CODEC_FP32 = 1,
    AGGLO_CODEC_FP16 = 2,
    AGGLO_CODEC_BF16 = 3,
} agglo_codec_id;

/* "fp32", ...; NULL for an unknown id. And back: 0 for an unknown name. */
const char *agglo_codec_name(agglo_codec_id id);
agglo_codec_id agglo_codec_of(const char *name);

/* What a record says of itself. */
typedef struct agglo_record_info {
    agglo_codec_id codec; /* of the spatial payload; summaries are F16, or F32 under codec fp32 */
    uint16_t grid_h, grid_w;
    uint16_t summary_dim, spatial_dim;
    int32_t x, y, w, h; /* the view's box in the upright image */
    bool flip;
    uint16_t input_w, input_h; /* what the teacher was shown, pixels */
    uint64_t pixel_hash;       /* agglo_pixel_hash of that */
} agglo_record_info;

/* A parsed record; payloads borrowed from the bytes it was parsed from. Alignment of payloads is not guaranteed. */
typedef struct agglo_record {
    agglo_record_info info;
    agglo_dtype summary_dtype, spatial_dtype; /* F32, F16 or BF16 for the plain codecs */
    agglo_bytes summary, spatial;
} agglo_record;

/* Bytes that agglo_record_encode writes at most; 0 when no record can hold this geometry (unknown codec, 4 GiB or more). */
size_t agglo_record_max_bytes(const agglo_record_info *info);

/* Encode summary[summary_dim] and spatial[grid_h * grid_w * spatial_dim] into out; *n_bytes is set. AGGLO_E_DATA if a value is not finite, or
 * does not fit the codec (|x| > 65504 under fp16); WHERE names token and channel. */
agglo_status agglo_record_encode(const agglo_record_info *info, const float *summary, const float *spatial,
                                 uint8_t *out, size_t *n_bytes, agglo_err *err);

/* Parse and verify the checksum. AGGLO_E_DATA. */
agglo_status agglo_record_parse(agglo_bytes bytes, agglo_record *out, agglo_err *err);

/* Payloads to float: summary[summary_dim], spatial[grid_h * grid_w * spatial_dim]; either may be NULL. */
agglo_status agglo_record_decode(const agglo_record *record, float *summary, float *spatial, agglo_err *err);

#ifdef __cplusplus
}
#endif
#endif
