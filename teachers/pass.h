/* The teacher pass: one teacher over a dataset, as write-once units of a cache.
 *
 * A unit is (teacher, shard, group, range of views). Views are rendered on all cores while the model runs; records go to the unit in
 * key order; a unit that exists is never touched. A record depends on its picture, its view and the teacher, not on the number of
 * threads nor, on the CPU, on the batch. Killing the process loses at most the unit in flight.
 */
#ifndef AGGLO_TEACHERS_PASS_H
#define AGGLO_TEACHERS_PASS_H

#include "base/log.h"
#include "cache/cache.h"
#include "ingest/dataset.h"
#include "ingest/view.h"
#include "tensor/encoder.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct agglo_teach_options {
    const char *cache;
    const char *scratch; /* directory for units in the making; NULL: beside their targets */
    const char *teacher; /* its name in the cache */
    agglo_codec_id codec;
    int batch;                       /* views in one run of the model; 0: 32 */
    int threads;                     /* that decode and render; 0: all cores */
    const agglo_view_config *groups; /* of the cache; the teacher sees all of them */
    size_t n_groups;
    int part, n_parts; /* this process does part 1..n_parts of the units, round-robin; 0, 0 or 1, 1: all */
    uint64_t
        first_slot; /* units (agglo_teach_slots) of the teachers before this one, so that parts stay even over teachers */
    bool verify;    /* units that exist are read and checked whole; a bad one counts as failed */
} agglo_teach_options;

/* Codec fp16, batch 32; cache, teacher and groups are to be filled. */
agglo_teach_options agglo_teach_options_default(void);

typedef struct agglo_teach_report {
    uint64_t units_done, units_present, units_failed; /* of this part; present: complete before */
    uint64_t units_elsewhere;                         /* left to other parts */
    uint64_t views;                                   /* records written */
    uint64_t samples_skipped;                         /* could not be decoded; named in the units' manifests */
    uint64_t bytes;                                   /* records written, headers and summaries included */
    uint64_t spatial_bytes, spatial_fp16_bytes;       /* their spatial payloads, and what these would be as fp16 */
    double seconds;
    char **failures; /* one line per failed unit */
    size_t n_failures;
} agglo_teach_report;

void agglo_teach_report_clear(agglo_teach_report *report);

/* hash (hex) of what a teacher does to a view before and behind its weights: input size, patch, filter, mean and std, options. */
void agglo_preprocess_fingerprint(const agglo_encoder_info *info, char out[33]);

/* What a unit of this shard and group must say that it was made from. */
agglo_status agglo_teach_provenance(const agglo_dataset *dataset, uint32_t shard, const agglo_view_config *group,
                                    const agglo_encoder_info *info, agglo_codec_id codec, agglo_provenance *out,
                                    agglo_err *err);

/* The teacher as teacher.json states it. AGGLO_E_CONFIG when the name or a dimension does not fit the format. */
agglo_status agglo_teach_describe(const char *name, const agglo_encoder_info *info, agglo_codec_id codec,
                                  agglo_cache_teacher *out, agglo_err *err);

/* Units of one teacher over this dataset, finished or not. */
uint64_t agglo_teach_slots(const agglo_dataset *dataset, size_t n_groups);

/* Make one unit: views first..last (inclusive) of every sample of the shard. The shard is verified against its fingerprint first. On any
 * failure nothing of the unit remains. *shard_fault (may be NULL) tells whether the shard's bytes or this teacher's features of them are to blame
 * (AGGLO_E_DATA names sample and view of a feature that is not finite), not the machine. AGGLO_E_STOPPED when the stop flag is up. Counters of
 * `report` are added to. progress: NULL or what to advance, as "views". */
agglo_status agglo_teach_unit(const agglo_dataset *dataset, const agglo_encoder *encoder,
                              const agglo_teach_options *options, const agglo_unit_id *id,
                              const agglo_view_config *group, agglo_progress *progress, agglo_teach_report *report,
                              bool *shard_fault, agglo_err *err);

/* All units of one teacher that are missing (or this part of them): for each group and shard the views 0..count-1 that no finished unit holds.
 * Makes cache.json and teacher.json where they are missing. Before any work every finished unit of these shards is compared:
 * AGGLO_E_MISMATCH names the unit and the field, nothing is overwritten. A bad shard costs itself: it is counted in the report, and the
 * status is AGGLO_OK; failures of the machine (disk, memory, device) and AGGLO_E_STOPPED end the pass. The report is filled on any return. */
agglo_status agglo_teach(const agglo_dataset *dataset, const agglo_encoder *encoder, const agglo_teach_options *options,
                         agglo_teach_report *report, agglo_err *err);

#ifdef __cplusplus
}
#endif
#endif
