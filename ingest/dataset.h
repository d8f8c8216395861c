/* A dataset on disk, read: shards as webdataset tars, mapped; an index with random access by (shard, ordinal) and by uid.
 *
 * Several directories may be opened as one: their shards are numbered through, in the order given, so that appending a dataset
 * changes no number. Safe to read from any number of threads once open; samples are borrowed until close.
 */
#ifndef AGGLO_INGEST_DATASET_H
#define AGGLO_INGEST_DATASET_H

#include "base/hash.h"
#include "base/json.h"
#include "ingest/decode.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct agglo_dataset agglo_dataset;

typedef struct agglo_shard_info {
    const char *path; /* of the tar */
    uint32_t n_samples;
    uint64_t n_bytes;     /* of the tar */
    char fingerprint[33]; /* xxh3-128 of the tar file, hex */
} agglo_shard_info;

typedef struct agglo_sample {
    uint32_t shard, ordinal;
    uint8_t uid[16];
    const char *key;
    agglo_bytes image;     /* encoded, in the mapped shard */
    uint64_t image_offset; /* of these bytes in the shard's tar */
    agglo_image_format format;
    int width, height;   /* upright */
    int64_t label;       /* -1: none */
    bool has_sha256;     /* the json side-car names one */
    agglo_sha256 sha256; /* what it names: with img2dataset, of the bytes as downloaded, not of `image`; else zero */
    agglo_bytes json, caption; /* side-cars in the shard; size 0: none */
} agglo_sample;

/* Does this folder look like a dataset: dataset.json beside shards? A failed allocation is an error, and false. */
bool agglo_dataset_is(const char *path, agglo_err *err);

/* Open one or more dataset directories. Index and shard sizes are checked; AGGLO_E_DATA names the file. A shard that is missing or whose
 * size differs is remembered as bad, not an error: agglo_dataset_shard_status tells. */
agglo_status agglo_dataset_open(agglo_dataset **out, const char *const *paths, size_t n_paths, agglo_err *err);
void agglo_dataset_close(agglo_dataset *dataset);

uint32_t agglo_dataset_shards(const agglo_dataset *dataset);
uint64_t agglo_dataset_samples(const agglo_dataset *dataset);
const agglo_shard_info *agglo_dataset_shard(const agglo_dataset *dataset, uint32_t shard);
/* AGGLO_OK, or why this shard cannot be read. */
agglo_status agglo_dataset_shard_status(const agglo_dataset *dataset, uint32_t shard, agglo_err *err);
/* How many shards cannot be read. */
uint32_t agglo_dataset_lost_shards(const agglo_dataset *dataset);
/* Hash the shard's tar file and compare with the index (AGGLO_E_MISMATCH). */
agglo_status agglo_dataset_shard_verify(const agglo_dataset *dataset, uint32_t shard, agglo_err *err);

/* Tell the system that a shard's pages need not stay in memory, so that a pass over many shards holds one at a time. Samples of it stay
 * valid: what is read again comes from the page cache. */
void agglo_dataset_shard_rest(const agglo_dataset *dataset, uint32_t shard);

/* Constant time. AGGLO_E_NOT_FOUND out of range, AGGLO_E_IO/DATA when its shard is bad. */
agglo_status agglo_dataset_sample(const agglo_dataset *dataset, uint32_t shard, uint32_t ordinal, agglo_sample *out,
                                  agglo_err *err);
/* By uid (32 hex digits), by key (AGGLO_E_DATA naming both places when the key is not unique), or "SHARD/ORDINAL", tried in this
 * order. A uid takes constant time for each directory, a key a binary search. */
agglo_status agglo_dataset_find(const agglo_dataset *dataset, const char *name, uint32_t *shard, uint32_t *ordinal,
                                agglo_err *err);
bool agglo_dataset_find_uid(const agglo_dataset *dataset, const uint8_t uid[16], uint32_t *shard, uint32_t *ordinal);

/* The decode options the dataset was ingested with (exif, png16, max_pixels): whoever renders from it must use them. */
agglo_decode_options agglo_dataset_decode_options(const agglo_dataset *dataset);
/* The k-th directory's dataset.json, borrowed; NULL behind the last. */
const json_t *agglo_dataset_json(const agglo_dataset *dataset, size_t k);

#ifdef __cplusplus
}
#endif
#endif
