/* Any bytes as a record: parsed or refused, and what parses decodes within its bounds. The checksum is made right, so that what lies
 * behind it is reached. */
#include "base/alloc.h"
#include "base/hash.h"
#include "cache/record.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    agglo_err err = {0};
    uint8_t *bytes = agglo_alloc(size + 1, 1, &err);
    agglo_record record;

    if (bytes == NULL) {
        return 0;
    }
    memcpy(bytes, data, size);
    agglo_record_parse((agglo_bytes){bytes, size}, &record, &err);
    if (size >= 8) {
        agglo_put_le64(bytes + size - 8, agglo_xxh3_64(bytes, size - 8));
        if (agglo_record_parse((agglo_bytes){bytes, size}, &record, &err) == AGGLO_OK) {
            size_t n = (size_t)record.info.grid_h * record.info.grid_w * record.info.spatial_dim;
            float *values = agglo_alloc(n + record.info.summary_dim, sizeof *values, &err);

            if (values != NULL) {
                agglo_record_decode(&record, values, values + record.info.summary_dim, &err);
            }
            agglo_free(values);
        }
    }
    agglo_free(bytes);
    return 0;
}
