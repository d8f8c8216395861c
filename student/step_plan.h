/* What one training step does. `student` declares it and eats it; `schedule` fills it from (config, seed, step),
 * with no clock and no I/O; the run loop in `launch` hands it over.
 */
#ifndef AGGLO_STUDENT_STEP_PLAN_H
#define AGGLO_STUDENT_STEP_PLAN_H

#include "student/config.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The view that the sample's uid and the epoch give: agglo_view_of_epoch. */
#define AGGLO_VIEW_OF_EPOCH (-1)

/* One slot of the global batch. */
typedef struct agglo_plan_sample {
    uint64_t index; /* position in training: step * batch + slot; keys every random draw for this slot */
    uint64_t epoch;
    uint32_t shard, ordinal;
    int32_t view; /* a view index, or AGGLO_VIEW_OF_EPOCH */
} agglo_plan_sample;

typedef struct agglo_step_plan {
    int64_t step; /* from 0: the number of updates made before it */
    double lr;
    double summary_weight[AGGLO_MAX_HEADS]; /* per teacher, in the order of the trainer's heads */
    double spatial_weight[AGGLO_MAX_HEADS];
    const agglo_plan_sample *samples; /* in order of the batch; borrowed from whoever filled the plan */
    int n_samples;                    /* at most the feed's batch; slots behind them are empty (weight zero) */
} agglo_step_plan;

#ifdef __cplusplus
}
#endif
#endif
