/* The parts of an ingest: one sample's check (ingest_sample.c), what is asked for (ingest_sources.c), what is known and written
 * (ingest_state.c), and the pipeline between sources and shards (ingest.c).
 */
#ifndef AGGLO_INGEST_INGEST_IMPL_H
#define AGGLO_INGEST_INGEST_IMPL_H

#include "base/journal.h"
#include "ingest/index.h"
#include "ingest/ingest.h"
#include "ingest/reencode.h"
#include "ingest/reject.h"
#include "ingest/sample.h"
#include "ingest/shard_writer.h"
#include "ingest/source.h"
#include "ingest/uid_set.h"

#define AGGLO_INGEST_MEMBERS 64 /* of a sample at most, as sample.c has it */

/* ---- ingest_sample.c: one sample, on a worker ---- */

typedef struct agglo_ingest_job {
    const agglo_source *source;
    const agglo_group *group;
    int64_t class_label;                            /* of a folder of pictures; -1: none */
    agglo_member members[AGGLO_INGEST_MEMBERS];     /* as chosen */
    agglo_out_member out[AGGLO_INGEST_MEMBERS + 1]; /* ascending by extension when the work is done */
    size_t n_members, image;
    uint8_t *buffer, *encoded; /* members as read; the picture when it was encoded again */
    size_t room, encoded_room;
    agglo_index_sample sample;
    uint8_t content[16]; /* under dedup: the first half of the picture's sha256 */
    char label_text[24]; /* the .cls that is made of class_label */
    bool bad_json;
    const char *reason; /* NULL: keep it */
    char detail[256];
} agglo_ingest_job;

typedef struct agglo_ingest_worker { /* scratch of one thread */
    agglo_decoder *decoder;
    agglo_reencoder *reencoder;
} agglo_ingest_worker;

/* Read, check, and make ready for writing. A failure of foreign data ends in job->reason; an error is one of our own. */
agglo_status agglo_ingest_check(const agglo_ingest_options *options, const agglo_uid_set *selected,
                                agglo_ingest_worker *worker, agglo_ingest_job *job, agglo_err *err);
/* Give back what the job holds when it is more than `keep` bytes. */
void agglo_ingest_job_clear(agglo_ingest_job *job, size_t keep);

/* ---- ingest_state.c: what has been done, on disk and in memory ---- */

typedef struct agglo_ingest_source {
    const char *path; /* borrowed */
    uint64_t n_bytes;
    char name[256];    /* base name; "?" when it is not UTF-8 */
    char identity[33]; /* empty: it cannot be read */
    agglo_source held; /* standard input, spooled; fd -1 otherwise */
} agglo_ingest_source;

typedef struct agglo_ingest_state {
    const agglo_ingest_options *options;
    agglo_ingest_report *report;
    char *dataset_path, *journal_path, *index_path, *rejects_path, *contents_path, *shards_dir;
    json_t *described; /* options, as dataset.json has them */
    json_t *sources;   /* finished ones: {name, bytes, identity} */
    json_t *classes;   /* names of the subfolders, in the order of their labels */
    json_t *numbers;   /* name -> label */
    agglo_index_builder *index;
    agglo_shard_writer *writer;
    agglo_rejects *rejects;
    agglo_uid_set *uids, *contents;
    uint8_t *content_list; /* 16 bytes per sample kept, under dedup */
    size_t contents_room;
    agglo_journal *journal;
    char base[33]; /* xxh3-128 of the dataset.json that is added to; empty: none */
    bool has_part; /* an open shard was taken up */
    uint32_t base_shards;
    uint64_t base_samples, base_reject_bytes;
    json_t *current;   /* the source in work: {name, bytes, identity}; NULL: none */
    uint64_t n_groups; /* of its samples that are done */
    double begun, seconds_before, committed;
} agglo_ingest_state;

/* Find out what is there, check that it belongs to these options, and take it up. *n_todo of the sources are to be done still, in this
 * order at the front of `sources` (the rest is dropped); none: report->up_to_date, and nothing else is open. */
agglo_status agglo_ingest_state_open(agglo_ingest_state *state, agglo_ingest_source *sources, size_t n_sources,
                                     size_t *n_todo, agglo_err *err);
void agglo_ingest_state_close(agglo_ingest_state *state);

/* The steps of a run. `begin` is left out for a source in which an earlier run stopped: state->n_groups of it are done. */
agglo_status agglo_ingest_begin_source(agglo_ingest_state *state, const agglo_ingest_source *source, agglo_err *err);
agglo_status agglo_ingest_end_source(agglo_ingest_state *state, agglo_err *err);
agglo_status agglo_ingest_reject(agglo_ingest_state *state, const char *source, const char *key, const char *reason,
                                 const char *detail, agglo_err *err);
/* The label of a class, new or known. */
agglo_status agglo_ingest_class(agglo_ingest_state *state, const char *name, size_t n_name, int64_t *label,
                                agglo_err *err);
/* A checked sample: kept or rejected. */
agglo_status agglo_ingest_finish_sample(agglo_ingest_state *state, const char *source, agglo_ingest_job *job,
                                        agglo_err *err);
/* Make all so far safe from a kill; every half second is enough. */
agglo_status agglo_ingest_commit(agglo_ingest_state *state, bool now, agglo_err *err);
/* Write rejects, index and dataset.json, in this order. */
agglo_status agglo_ingest_complete(agglo_ingest_state *state, agglo_err *err);

/* ---- ingest_sources.c: what is asked for, and what of it is in already ---- */

/* All options that decide what is kept and how it is cut, as dataset.json has them; a new reference, NULL and error on failure. */
json_t *agglo_ingest_describe_options(const agglo_ingest_options *options, agglo_err *err);
/* The options of what is there already must be ours: AGGLO_E_CONFIG names the one that is not. */
agglo_status agglo_ingest_same_options(const agglo_ingest_state *state, const json_t *found, agglo_err *err);
/* Whether every source is in already. */
agglo_status agglo_ingest_knows_all(const agglo_ingest_state *state, const agglo_ingest_source *sources, size_t n,
                                    bool *all, agglo_err *err);
/* Move the sources that are not done to the front, the one in which an earlier run stopped first; *n_todo of them. AGGLO_E_CONFIG when that
 * one is not among them. */
agglo_status agglo_ingest_match_sources(agglo_ingest_state *state, agglo_ingest_source *sources, size_t n,
                                        size_t *n_todo, agglo_err *err);
/* Describe one source; standard input is spooled into out_dir. Errors: the stop flag, standard input that cannot be read, memory. */
agglo_status agglo_ingest_describe(agglo_ingest_source *out, const char *path, const char *out_dir, agglo_err *err);

#endif
