/* The output shards of an ingest: webdataset tars with equal bytes for equal samples, whose places go to the index.
 *
 * A shard is closed when it is full, and before a key that it already has: two samples of one key in one tar would be read as one.
 * The key stays as it is, and there is at most one such cut per source shard, because a source's members are joined by key.
 */
#ifndef AGGLO_INGEST_SHARD_WRITER_H
#define AGGLO_INGEST_SHARD_WRITER_H

#include "ingest/index.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct agglo_out_member {
    const char *ext;
    agglo_bytes data;
} agglo_out_member;

typedef struct agglo_shard_writer agglo_shard_writer;

/* Shards go to dir/NNNNNN.tar and into `index` (borrowed). max_bytes 0: no limit. The open shard is dir/.NNNNNN.tar.part: it stays when
 * the writer is freed or killed, so that a later one can go on with it. */
agglo_status agglo_shard_writer_new(agglo_shard_writer **out, const char *dir, uint64_t max_samples, uint64_t max_bytes,
                                    agglo_index_builder *index, agglo_err *err);
/* Make room for a sample: the open shard is closed when it is full, or has the key. *closed: it was (the index has it as its last one). */
agglo_status agglo_shard_writer_fit(agglo_shard_writer *writer, const char *key, const agglo_out_member *members,
                                    size_t n_members, bool *closed, agglo_err *err);
/* Append a sample for which room was made: members in ascending order of extension, `image` the number of the picture among them. Of
 * `sample`, what the picture decides is filled in (uid, key, size, format, orientation, label); places are set here. */
agglo_status agglo_shard_writer_add(agglo_shard_writer *writer, agglo_index_sample *sample,
                                    const agglo_out_member *members, size_t n_members, size_t image, agglo_err *err);
/* Close the open shard; *closed: there was one. */
agglo_status agglo_shard_writer_finish(agglo_shard_writer *writer, bool *closed, agglo_err *err);
/* Free. NULL is fine. */
void agglo_shard_writer_free(agglo_shard_writer *writer);

/* The open shard so far; all of it is in the file (not synced) afterwards. */
typedef struct agglo_shard_part {
    uint64_t n_bytes, n_samples; /* 0, 0: none is open */
    agglo_hash128 hash;          /* xxh3-128 of the bytes */
} agglo_shard_part;

agglo_status agglo_shard_writer_flush(agglo_shard_writer *writer, agglo_shard_part *out, agglo_err *err);

/* Going on with what an earlier writer left: tell of every sample and shard that the index has from it, in order, then resume.
 * *ok: the open shard is there and its first part->n_bytes bytes are the same; nothing else is decided when it is not. */
agglo_status agglo_shard_writer_had_sample(agglo_shard_writer *writer, const char *key, agglo_err *err);
void agglo_shard_writer_had_shard(agglo_shard_writer *writer);
agglo_status agglo_shard_writer_resume(agglo_shard_writer *writer, const agglo_shard_part *part, bool *ok,
                                       agglo_err *err);

/* Name of output shard k, "000012.tar", into out[32]. */
const char *agglo_shard_name(uint32_t k, char out[32]);

#ifdef __cplusplus
}
#endif
#endif
