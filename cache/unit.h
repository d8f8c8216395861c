/* Units: the write-once LMDB files of a cache, one per (teacher, shard, group, range of views), each with a manifest beside it.
 *
 *     CACHE/TEACHER/GROUP-000123-v0-3.lmdb   keys: ordinal (u32 BE), view (u8); values: records
 *     CACHE/TEACHER/GROUP-000123-v0-3.json   manifest, renamed last: it exists, so the unit is complete
 *
 * One writer in a file's life. Killing it at any moment leaves at most temporary names. Equal work gives equal files.
 */
#ifndef AGGLO_CACHE_UNIT_H
#define AGGLO_CACHE_UNIT_H

#include "base/hash.h"
#include "cache/record.h"

#ifdef __cplusplus
extern "C" {
#endif

#define AGGLO_TEACHER_NAME_MAX 64

typedef struct agglo_unit_id {
    char teacher[AGGLO_TEACHER_NAME_MAX]; /* [A-Za-z0-9._-]+ */
    char group[32];
    uint32_t shard;
    int view_first, view_last; /* inclusive */
} agglo_unit_id;

/* What a unit was made from; texts are hex fingerprints or "" where nothing applies. Compared field by field, by name. */
typedef struct agglo_provenance {
    char shard[33];      /* xxh3-128 of the shard's tar */
    char views[33];      /* view parameters of the group */
    char preprocess[33]; /* input size, filter, mean and std, feature options */
    char decoder[33];
    char weights[65];   /* sha256 of the teacher's weights */
    char transform[65]; /* of the fitted codec, "" for plain ones */
    char codec[16];
} agglo_provenance;

/* AGGLO_OK, or AGGLO_E_MISMATCH naming the first field that differs, found and expected. */
agglo_status agglo_provenance_compare(const agglo_provenance *found, const agglo_provenance *expected, agglo_err *err);

typedef struct agglo_manifest {
    agglo_unit_id id;
    agglo_provenance provenance;
    uint64_t n_records;
    uint32_t first_ordinal, last_ordinal;
    uint32_t n_skipped;     /* samples of the shard that could not be rendered (named in the manifest) */
    uint64_t payload_bytes; /* sum of record sizes */
    uint64_t file_bytes;
    agglo_hash128 file_hash; /* xxh3-128 of the whole LMDB file */
} agglo_manifest;

/* ---- writing ---- */

typedef struct agglo_unit_writer agglo_unit_writer;

/* Begin a unit under CACHE (directories are made). scratch: directory for the LMDB file while it is written (NULL: beside its target).
 * max_record_bytes and max_records bound the map. */
agglo_status agglo_unit_writer_new(agglo_unit_writer **out, const char *cache, const char *scratch,
                                   const agglo_unit_id *id, const agglo_provenance *provenance, size_t max_record_bytes,
                                   uint64_t max_records, agglo_err *err);
/* Records in ascending order of (ordinal, view). */
agglo_status agglo_unit_writer_put(agglo_unit_writer *writer, uint32_t ordinal, int view, agglo_bytes record,
                                   agglo_err *err);
/* A sample that gives no record, with its reason; goes into the manifest. */
agglo_status agglo_unit_writer_skip(agglo_unit_writer *writer, uint32_t ordinal, const char *key, const char *reason,
                                    agglo_err *err);
/* Sync, hash, rename, manifest last. Frees the writer whatever happens. manifest may be NULL. */
agglo_status agglo_unit_writer_commit(agglo_unit_writer *writer, agglo_manifest *manifest, agglo_err *err);
/* Drop everything; NULL is fine. */
void agglo_unit_writer_abort(agglo_unit_writer *writer);

/* ---- reading ---- */

/* Read and validate a manifest. AGGLO_E_NOT_FOUND when the unit is not there (yet). */
agglo_status agglo_manifest_read(const char *cache, const agglo_unit_id *id, agglo_manifest *out, agglo_err *err);

typedef struct agglo_unit agglo_unit;

/* Open: manifest, provenance (NULL: not compared), then the whole file hashed before LMDB maps it (verify_hash; the first reader of a
 * process should). Read-only, no locks. Any number of threads may get from it. AGGLO_E_NOT_FOUND: no manifest; one without its file is AGGLO_E_DATA. */
agglo_status agglo_unit_open(agglo_unit **out, const char *cache, const agglo_unit_id *id,
                             const agglo_provenance *expected, bool verify_hash, agglo_err *err);
void agglo_unit_close(agglo_unit *unit);
const agglo_manifest *agglo_unit_manifest(const agglo_unit *unit);

/* The raw bytes of one record, in the map, valid until close. AGGLO_E_NOT_FOUND. */
agglo_status agglo_unit_get(const agglo_unit *unit, uint32_t ordinal, int view, agglo_bytes *out, agglo_err *err);

/* All records in key order. */
agglo_status agglo_unit_each(const agglo_unit *unit,
                             agglo_status (*visit)(void *context, uint32_t ordinal, int view, agglo_bytes record,
                                                   agglo_err *err),
                             void *context, agglo_err *err);

/* Everything there is to check: file hash, key order and range, count, every record's checksum and geometry. */
agglo_status agglo_unit_verify(const char *cache, const agglo_unit_id *id, agglo_err *err);

#ifdef __cplusplus
}
#endif
#endif
