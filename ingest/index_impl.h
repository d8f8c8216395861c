/* What the writer and the reader of an index share: the sizes of its parts, and where a uid is looked up. Layout: docs/formats.md. */
#ifndef AGGLO_INGEST_INDEX_IMPL_H
#define AGGLO_INGEST_INDEX_IMPL_H

#include "ingest/index.h"

#define AGGLO_INDEX_MAGIC "AGGLOIDX"

enum {
    AGGLO_INDEX_VERSION = 2,
    AGGLO_INDEX_HEADER_BYTES = 64,
    AGGLO_INDEX_SHARD_BYTES = 40,   /* n_samples u32, zero u32, first u64, bytes u64, fingerprint 16 */
    AGGLO_INDEX_SAMPLE_BYTES = 120, /* see put_sample in index_builder.c */
    AGGLO_INDEX_MAGIC_BYTES = 8,
    AGGLO_INDEX_UID_BYTES = 16,
    AGGLO_INDEX_KEY_AT = 48, /* in a sample record: offset of its key, u64 */
    AGGLO_INDEX_HAS_SHA256 = 1
};

/* The uid lookup has 2^bits buckets, the fewest that are no fewer than the samples; at most 32 bits for at most 2^32 - 1 samples. */
static inline unsigned agglo_index_bucket_bits(uint64_t n_samples)
{
    return n_samples <= 1 ? 0 : 64 - (unsigned)__builtin_clzll((unsigned long long)(n_samples - 1));
}

/* The bucket of a uid: the top bits of its hash, which is xxh3-64. Equal uids share one, and buckets ascend as the hashes do. */
static inline uint64_t agglo_index_bucket(uint64_t hash, unsigned bits)
{
    return bits == 0 ? 0 : hash >> (64 - bits);
}

static inline agglo_index_shard agglo_index_get_shard(const uint8_t *p)
{
    agglo_index_shard shard = {agglo_le32(p), agglo_le64(p + 8), agglo_le64(p + 16), {{0}}};

    memcpy(shard.fingerprint.bytes, p + 24, 16);
    return shard;
}

#endif
