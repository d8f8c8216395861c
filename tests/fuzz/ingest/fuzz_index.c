/* Index files: whatever is accepted can be read to its last field. The checksum is made right, so that the checks behind it are reached. */
#include <stdlib.h>

#include "ingest/index.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *copy = malloc(size + 1);
    agglo_index *index;
    agglo_err err = {0};

    if (copy == NULL) {
        return 0;
    }
    memcpy(copy, data, size);
    if (size >= 64) {
        agglo_hash128 hash = agglo_xxh3_128(copy + 64, size - 64);

        memcpy(copy + 48, hash.bytes, 16);
    }
    if (agglo_index_parse(&index, (agglo_bytes){copy, size}, &err) == AGGLO_OK) {
        for (uint64_t i = 0; i < agglo_index_samples(index); i++) {
            agglo_index_sample sample;
            uint64_t found;

            agglo_index_sample_at(index, i, &sample);
            AGGLO_ASSERT(agglo_index_find_uid(index, sample.uid, &found) && found == i);
            AGGLO_ASSERT(agglo_index_find_key(index, sample.key, 0, &found) && found <= i);
            AGGLO_ASSERT(agglo_index_shard_of(index, i) < agglo_index_shards(index));
        }
        agglo_index_close(index);
    }
    free(copy);
    return 0;
}
