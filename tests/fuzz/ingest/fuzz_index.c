/* Index files: whatever is accepted can be read to its last field, looked up by every uid and key it lists, taken over into a builder, and is
 * then written as the same bytes. The checksum is made right, so that the checks behind it are reached.
 */
#include <stdlib.h>

#include "ingest/index.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void look_up(const agglo_index *index)
{
    for (uint64_t i = 0; i < agglo_index_samples(index); i++) {
        agglo_index_sample sample;
        uint64_t found, n_same = 0;
        bool has_self = false;
        uint8_t other[16];

        agglo_index_sample_at(index, i, &sample);
        AGGLO_ASSERT(agglo_index_find_uid(index, sample.uid, &found) && found == i);
        memcpy(other, sample.uid, 16);
        other[15] ^= 1;
        if (agglo_index_find_uid(index, other, &found)) {
            AGGLO_ASSERT(found != i && found < agglo_index_samples(index));
        }
        while (n_same < 64 && agglo_index_find_key(index, sample.key, n_same, &found)) {
            has_self = has_self || found == i;
            n_same++;
        }
        AGGLO_ASSERT(has_self || n_same == 64);
        AGGLO_ASSERT(agglo_index_shard_of(index, i) < agglo_index_shards(index));
    }
}

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
        agglo_index_builder *builder;
        agglo_hash128 was = agglo_index_fingerprint(index), now;

        look_up(index);
        /* one file for one set of samples: building them anew gives the hash of the same bytes */
        AGGLO_ASSERT(agglo_index_builder_new(&builder, &err) == AGGLO_OK);
        AGGLO_ASSERT(agglo_index_builder_append_index(builder, index, &err) == AGGLO_OK);
        AGGLO_ASSERT(agglo_index_builder_fingerprint(builder, &now, &err) == AGGLO_OK);
        AGGLO_ASSERT(memcmp(was.bytes, now.bytes, 16) == 0);
        agglo_index_builder_free(builder);
        agglo_index_close(index);
    }
    free(copy);
    return 0;
}
