/* Any bytes as a record: parsed or refused; what parses decodes within its bounds, and encoded again gives the very bytes. The checksum is
 * made right, so that what lies behind it is reached. */
#include "base/alloc.h"
#include "base/hash.h"
#include "cache/record.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void decode_and_encode(const agglo_record *record, agglo_bytes bytes)
{
    const size_t n_spatial = (size_t)record->info.grid_h * record->info.grid_w * record->info.spatial_dim;
    agglo_err err = {0};
    float *values = agglo_alloc(n_spatial + record->info.summary_dim, sizeof *values, &err);
    uint8_t *again = agglo_alloc(bytes.size, 1, &err);
    float *spatial;
    size_t n = 0;

    AGGLO_ASSERT(agglo_record_max_bytes(&record->info) == bytes.size);
    if (values != NULL && again != NULL) {
        spatial = values + record->info.summary_dim;
        if (agglo_record_decode(record, values, spatial, &err) == AGGLO_OK) {
            AGGLO_ASSERT(agglo_record_encode(&record->info, values, spatial, again, &n, &err) == AGGLO_OK);
            AGGLO_ASSERT(n == bytes.size && memcmp(again, bytes.data, n) == 0);
        }
    }
    agglo_free(again);
    agglo_free(values);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    agglo_err err = {0};
    uint8_t *bytes = agglo_alloc(size, 1, &err);
    agglo_record record;

    if (bytes == NULL) {
        return 0;
    }
    memcpy(bytes, data, size);
    agglo_record_parse((agglo_bytes){bytes, size}, &record, &err);
    if (size >= 8) {
        agglo_put_le64(bytes + size - 8, agglo_xxh3_64(bytes, size - 8));
        if (agglo_record_parse((agglo_bytes){bytes, size}, &record, &err) == AGGLO_OK) {
            decode_and_encode(&record, (agglo_bytes){bytes, size});
        }
    }
    agglo_free(bytes);
    return 0;
}
