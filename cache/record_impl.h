/* What records and codecs share inside the cache. */
#ifndef AGGLO_CACHE_RECORD_IMPL_H
#define AGGLO_CACHE_RECORD_IMPL_H

#include "cache/record.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Element types of the payloads under a plain codec; false for an unknown id. */
bool agglo_codec_plain_dtypes(agglo_codec_id codec, agglo_dtype *summary, agglo_dtype *spatial);

/* Convert n values, `n_channels` to a token, to `dtype` at out. AGGLO_E_DATA names the first value that is not finite or would not be
 * finite in `dtype`, as "NAME token T, channel C". */
agglo_status agglo_codec_plain_encode(agglo_dtype dtype, const float *values, size_t n, size_t n_channels,
                                      const char *name, uint8_t *out, agglo_err *err);

#ifdef __cplusplus
}
#endif
#endif
