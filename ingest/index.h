/* The index of a dataset: one little-endian file that says where every sample's bytes stand, so that nobody parses tars to read. Written
 * once, at the end of an ingest; mapped and validated completely on opening. Byte layout in docs/formats.md.
 */
#ifndef AGGLO_INGEST_INDEX_H
#define AGGLO_INGEST_INDEX_H

#include "base/fs.h"
#include "base/hash.h"

#ifdef __cplusplus
extern "C" {
#endif

#define AGGLO_INDEX_FILE "index.bin"

/* Offsets are from the start of the shard's tar; a side-car that is missing has size 0 and offset 0. */
typedef struct agglo_index_sample {
    uint8_t uid[16];
    uint64_t image_offset, json_offset, caption_offset;
    uint32_t image_bytes, json_bytes, caption_bytes;
    uint32_t width, height; /* upright */
    uint8_t format;         /* agglo_image_format */
    uint8_t orientation;    /* EXIF's, 1..8 */
    int64_t label;          /* -1: none */
    bool has_sha256;
    agglo_sha256
        sha256; /* as the json side-car says it (img2dataset: of the bytes as downloaded); zero when it says none */
    const char *key;
} agglo_index_sample;

typedef struct agglo_index_shard {
    uint32_t n_samples;
    uint64_t first_sample; /* number of its first sample in the dataset */
    uint64_t n_bytes;      /* of the tar */
    agglo_hash128 fingerprint;
} agglo_index_shard;

typedef struct agglo_index agglo_index;

/* Building: samples in order, each shard closed after its last one. Memory for n samples: 121 bytes and one and a half times its key
 * each; while it is written, 12 to 16 bytes more, and 24 again if the keys do not ascend. One thread. */
typedef struct agglo_index_builder agglo_index_builder;

agglo_status agglo_index_builder_new(agglo_index_builder **out, agglo_err *err);
void agglo_index_builder_free(agglo_index_builder *builder);
/* Copies what it is given. AGGLO_E_UNSUPPORTED beyond 2^32 - 1 samples. AGGLO_E_MEMORY leaves the builder as it was. */
agglo_status agglo_index_builder_add(agglo_index_builder *builder, const agglo_index_sample *sample, agglo_err *err);
agglo_status agglo_index_builder_shard(agglo_index_builder *builder, uint64_t n_bytes, agglo_hash128 fingerprint,
                                       agglo_err *err);
/* Add all shards and samples of an existing index behind those that are there, no shard being open; what is added later gets the
 * next numbers. The index is not needed afterwards. On failure a part of it may have been added. */
agglo_status agglo_index_builder_append_index(agglo_index_builder *builder, const agglo_index *index, agglo_err *err);
uint64_t agglo_index_builder_samples(const agglo_index_builder *builder);
uint32_t agglo_index_builder_shards(const agglo_index_builder *builder);
/* The k-th closed shard. */
agglo_index_shard agglo_index_builder_at(const agglo_index_builder *builder, uint32_t k);
/* Bytes of memory that the builder holds now. Constant time. */
uint64_t agglo_index_builder_bytes(const agglo_index_builder *builder);
/* The fingerprint that a file written now has; no shard is open. Sorts: what it makes is kept for agglo_index_builder_write, until
 * something is added. AGGLO_E_DATA when two samples have one uid; AGGLO_E_MEMORY. */
agglo_status agglo_index_builder_fingerprint(agglo_index_builder *builder, agglo_hash128 *out, agglo_err *err);
/* Write atomically; no shard is open. Equal samples give equal bytes. Errors as above, and AGGLO_E_IO. */
agglo_status agglo_index_builder_write(agglo_index_builder *builder, const char *path, agglo_err *err);

/* AGGLO_E_DATA, with what is wrong, unless every byte is as it must be; AGGLO_E_MISMATCH for another version. Time is that of reading the
 * whole file once. Any number of threads may read an open index. */
agglo_status agglo_index_open(agglo_index **out, const char *path, agglo_err *err);
/* The same over bytes in memory, borrowed until close. */
agglo_status agglo_index_parse(agglo_index **out, agglo_bytes bytes, agglo_err *err);
void agglo_index_close(agglo_index *index);

/* xxh3-128 of all that follows the header: equal for equal shards and samples. Constant time. */
agglo_hash128 agglo_index_fingerprint(const agglo_index *index);
uint32_t agglo_index_shards(const agglo_index *index);
uint64_t agglo_index_samples(const agglo_index *index);
agglo_index_shard agglo_index_shard_at(const agglo_index *index, uint32_t shard);
/* Sample `i` of the dataset, i below agglo_index_samples; the key is borrowed. */
void agglo_index_sample_at(const agglo_index *index, uint64_t i, agglo_index_sample *out);
/* Which shard holds sample i. */
uint32_t agglo_index_shard_of(const agglo_index *index, uint64_t i);
/* Constant time on average; against chosen uids a binary search. */
bool agglo_index_find_uid(const agglo_index *index, const uint8_t uid[16], uint64_t *i);
/* The samples of this key, in order: the k-th one; false behind the last. Binary search. */
bool agglo_index_find_key(const agglo_index *index, const char *key, uint64_t k, uint64_t *i);

#ifdef __cplusplus
}
#endif
#endif
