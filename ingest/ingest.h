/* Ingest: dirty webdataset tars and folders of pictures in, a clean dataset out. Sources are read in order, images checked on all cores, and
 * what is kept is written in order, so that equal input gives equal bytes at any number of jobs. Memory is bounded by jobs and by the names
 * in one source, not by its bytes.
 *
 * A run that was killed goes on where it was (half a second of work may be done twice), and ends with the bytes of an undisturbed one. More
 * sources may be added to a finished dataset: its shards are not touched.
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
    const char *select;     /* file of the uids to keep (ingest/select.h); NULL: all */
    uint64_t shard_samples; /* 10000 */
    uint64_t shard_bytes;   /* 0: no limit */
    int min_side;           /* 0: no limit */
    int max_side;           /* larger pictures are re-encoded so; 0: none is */
    double max_aspect;      /* 0: no limit; long side / short side */
    bool header_only;       /* --verify header */
    bool dedup;             /* of pictures with equal bytes the first is kept */
    bool check_sha256;      /* reject pictures whose bytes are not those that the json side-car names */
    agglo_decode_options decode;
    uint64_t max_image_bytes;  /* encoded, 256 MiB */
    uint64_t max_member_bytes; /* of a side-car, 16 MiB */
    uint64_t max_name;         /* bytes of a member's name, 4096 */
    int jobs;                  /* 0: all cores */
} agglo_ingest_options;

agglo_ingest_options agglo_ingest_options_default(void);

/* Of the whole dataset: runs that added to it, or were stopped, included. */
typedef struct agglo_ingest_report {
    uint64_t samples_in, samples_kept, samples_rejected;
    uint64_t shards_in, shards_failed; /* sources */
    uint64_t bytes_in;
    double seconds;
    json_t *rejected;         /* object: reason -> count, keys sorted; owned: json_decref */
    bool up_to_date;          /* nothing was to be done */
    uint64_t samples_resumed; /* samples that an earlier run, which was stopped, had done already */
    uint64_t samples_before;  /* samples that the dataset held before sources were added to it */
} agglo_ingest_report;

/* Expand SRC arguments (files, globs, brace ranges {00000..00127}, directories) into an ordered list of sources in `arena`. A directory
 * stands for the tars in it, for those of the dataset that it is, or for itself: a folder of pictures. AGGLO_E_CONFIG when a pattern
 * matches nothing. */
agglo_status agglo_ingest_expand(const char *const *sources, size_t n_sources, agglo_arena *arena, char ***paths,
                                 size_t *n, agglo_err *err);
/* The same, but a dataset stands for itself, not for its tars. */
agglo_status agglo_ingest_expand_whole(const char *const *sources, size_t n_sources, agglo_arena *arena, char ***paths,
                                       size_t *n, agglo_err *err);

/* Ingest. AGGLO_OK even when sources failed: the report counts them (exit status 3). The report is filled on any return. */
agglo_status agglo_ingest(const char *const *paths, size_t n_paths, const agglo_ingest_options *options,
                          agglo_ingest_report *report, agglo_err *err);

#ifdef __cplusplus
}
#endif
#endif
