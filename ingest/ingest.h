/* Ingest: dirty webdataset tars in, a clean dataset out. Sources are read in order, images checked on all cores, and what is kept is
 * written in order, so that equal input gives equal bytes at any number of jobs. Memory is bounded by jobs, not by shards.
 */
#ifndef AGGLO_INGEST_INGEST_H
#define AGGLO_INGEST_INGEST_H

#include "base/arena.h"
#include "ingest/dataset.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct agglo_ingest_options {
    const char *out;        /* dataset directory */
    uint64_t shard_samples; /* 10000 */
    uint64_t shard_bytes;   /* 0: no limit */
    int min_side;           /* 0: no limit */
    double max_aspect;      /* 0: no limit; long side / short side */
    bool header_only;       /* --verify header */
    agglo_decode_options decode;
    uint64_t max_image_bytes; /* encoded, 256 MiB */
    int jobs;                 /* 0: all cores */
} agglo_ingest_options;

agglo_ingest_options agglo_ingest_options_default(void);

typedef struct agglo_ingest_report {
    uint64_t samples_in, samples_kept, samples_rejected;
    uint64_t shards_in, shards_failed;
    uint64_t bytes_in;
    double seconds;
    json_t *rejected; /* object: reason -> count, keys sorted; owned: json_decref */
    bool up_to_date;  /* nothing was to be done */
} agglo_ingest_report;

/* Expand SRC arguments (files, globs, brace ranges {00000..00127}, directories of tars) into an ordered list of tar paths in `arena`.
 * AGGLO_E_CONFIG when a pattern matches nothing. */
agglo_status agglo_ingest_expand(const char *const *sources, size_t n_sources, agglo_arena *arena, char ***paths,
                                 size_t *n, agglo_err *err);

/* Ingest. AGGLO_OK even when shards failed: the report counts them (exit status 3). The report is filled on any return. */
agglo_status agglo_ingest(const char *const *paths, size_t n_paths, const agglo_ingest_options *options,
                          agglo_ingest_report *report, agglo_err *err);

#ifdef __cplusplus
}
#endif
#endif
