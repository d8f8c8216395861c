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

/* Shards go to dir/NNNNNN.tar and into `index` (borrowed). max_bytes 0: no limit. */
agglo_status agglo_shard_writer_new(agglo_shard_writer **out, const char *dir, uint64_t max_samples, uint64_t max_bytes,
                                    agglo_index_builder *index, agglo_err *err);
/* Append a sample: members in ascending order of extension, `image` the number of the picture among them. Of `sample`, what the picture
 * decides is filled in (uid, key, size, format, orientation, label); places are set here. */
agglo_status agglo_shard_writer_add(agglo_shard_writer *writer, agglo_index_sample *sample,
                                    const agglo_out_member *members, size_t n_members, size_t image, agglo_err *err);
/* Close the last shard. */
agglo_status agglo_shard_writer_finish(agglo_shard_writer *writer, agglo_err *err);
/* Free; an open shard is dropped. NULL is fine. */
void agglo_shard_writer_free(agglo_shard_writer *writer);

/* Name of output shard k, "000012.tar", into out[32]. */
const char *agglo_shard_name(uint32_t k, char out[32]);

#ifdef __cplusplus
}
#endif
#endif
