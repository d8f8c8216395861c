/* A cache directory: cache.json (format, view groups), one directory per teacher, units in them.
 *
 * The reader keeps a bounded number of units open and verifies a file's hash when it first opens it.
 */
#ifndef AGGLO_CACHE_CACHE_H
#define AGGLO_CACHE_CACHE_H

#include "base/json.h"
#include "cache/unit.h"

#ifdef __cplusplus
extern "C" {
#endif

#define AGGLO_CACHE_FORMAT 1

/* One view group as cache.json states it; the fingerprint is agglo_view_fingerprint's, the parameters are for people. */
typedef struct agglo_cache_group {
    char name[32];
    char fingerprint[33];
    json_t *parameters; /* borrowed */
} agglo_cache_group;

/* One teacher as teacher.json states it. */
typedef struct agglo_cache_teacher {
    char name[AGGLO_TEACHER_NAME_MAX];
    char arch[64];
    char weights[65];
    char preprocess[33];
    char codec[16];
    char options[96];
    int input, patch; /* pixels */
    int grid_h, grid_w, summary_dim, spatial_dim;
} agglo_cache_teacher;

/* Make the directory and cache.json if they are missing; otherwise AGGLO_E_MISMATCH when a group of the same name differs. Groups that are
 * new are an error too (written once): AGGLO_E_MISMATCH names them. AGGLO_E_CONFIG: a name that is none, or stands there twice. Several processes may do this at once: first by link() wins. */
agglo_status agglo_cache_create(const char *path, const agglo_cache_group *groups, size_t n_groups, agglo_err *err);

/* The same for CACHE/TEACHER/teacher.json. AGGLO_E_CONFIG: a name that is none, or a geometry that no record holds. */
agglo_status agglo_cache_add_teacher(const char *path, const agglo_cache_teacher *teacher, agglo_err *err);

typedef struct agglo_cache agglo_cache;

/* Open for reading; lists teachers and finished units. max_open_units 0: 64. */
agglo_status agglo_cache_open(agglo_cache **out, const char *path, int max_open_units, agglo_err *err);
void agglo_cache_close(agglo_cache *cache);
const char *agglo_cache_path(const agglo_cache *cache);
size_t agglo_cache_teachers(const agglo_cache *cache);
const agglo_cache_teacher *agglo_cache_teacher_at(const agglo_cache *cache, size_t i);
const agglo_cache_teacher *agglo_cache_find_teacher(const agglo_cache *cache, const char *name); /* NULL: none */
size_t agglo_cache_groups(const agglo_cache *cache);
const agglo_cache_group *agglo_cache_group_at(const agglo_cache *cache, size_t i);
/* Manifests of all finished units, ordered by teacher, group, shard, first view. */
size_t agglo_cache_units(const agglo_cache *cache);
const agglo_manifest *agglo_cache_unit_at(const agglo_cache *cache, size_t i);

/* Manifests that could not be read when the cache was opened; each was logged, and its unit counts as not there. */
size_t agglo_cache_damaged(const agglo_cache *cache);

/* Copy one record's bytes into *buffer (grown with agglo_realloc; *capacity kept) and parse it. Thread-safe. The unit that holds `view` is
 * found among the finished ones; its provenance is compared with `expected` (NULL: not compared) in every call, its file hashed once.
 * AGGLO_E_NOT_FOUND: no unit, or no such record. */
agglo_status agglo_cache_read(agglo_cache *cache, const char *teacher, const char *group, uint32_t shard,
                              uint32_t ordinal, int view, const agglo_provenance *expected, uint8_t **buffer,
                              size_t *capacity, agglo_record *out, agglo_err *err);

#ifdef __cplusplus
}
#endif
#endif
