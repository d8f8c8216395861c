/* The yardstick of `agglo bench decode`: what libjpeg-turbo, libwebp and libspng themselves need for the pixels of a region. Their plain
 * calls and nothing else: no checks, no EXIF, no exact edges, no resize.
 */
#ifndef AGGLO_INGEST_BENCH_DECODE_H
#define AGGLO_INGEST_BENCH_DECODE_H

#include "ingest/decode.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct agglo_bench_decoder agglo_bench_decoder; /* memory for pixels; one per thread */

agglo_status agglo_bench_decoder_new(agglo_bench_decoder **out, agglo_err *err);
void agglo_bench_decoder_free(agglo_bench_decoder *bench);

/* `box` of an upright picture of width x height in the coordinates that its file stores (orientation: EXIF's, 1..8). */
agglo_box agglo_bench_stored_box(const agglo_box *box, int width, int height, int orientation);

/* Decode the region that holds `stored` at 1 / reduce of its size (JPEG only), into the bench's memory. AGGLO_E_DATA where the library
 * gives an error. */
agglo_status agglo_bench_decode(agglo_bench_decoder *bench, agglo_bytes encoded, const agglo_box *stored, int reduce,
                                agglo_err *err);

#ifdef __cplusplus
}
#endif
#endif
