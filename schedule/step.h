/* Fills the plan of a training step: which samples, which learning rate, which loss weights. Pure arithmetic on (configuration, step). */
#ifndef AGGLO_SCHEDULE_STEP_H
#define AGGLO_SCHEDULE_STEP_H

#include "schedule/curve.h"
#include "schedule/order.h"
#include "student/step_plan.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct agglo_schedule {
    agglo_order *order; /* borrowed; shards as the dataset numbers them */
    agglo_curve curve;
    int batch; /* samples of the global batch */
    size_t n_teachers;
    double summary_weight[AGGLO_MAX_HEADS], spatial_weight[AGGLO_MAX_HEADS];
} agglo_schedule;

/* The plan of step t >= 0: slot i is the sample at position t * batch + i of the order, seen in the view that its uid and its epoch
 * give. samples[batch] is the caller's and is borrowed by the plan. */
void agglo_schedule_step(const agglo_schedule *schedule, int64_t t, agglo_plan_sample *samples, agglo_step_plan *out);

#ifdef __cplusplus
}
#endif
#endif
