/* Step plans from the order of samples and the curves; see step.h. */
#include "schedule/step.h"

void agglo_schedule_step(const agglo_schedule *schedule, int64_t t, agglo_plan_sample *samples, agglo_step_plan *out)
{
    *out = (agglo_step_plan){
        .step = t, .lr = agglo_curve_at(&schedule->curve, t), .samples = samples, .n_samples = schedule->batch};
    for (size_t i = 0; i < schedule->n_teachers; i++) {
        out->summary_weight[i] = schedule->summary_weight[i];
        out->spatial_weight[i] = schedule->spatial_weight[i];
    }
    for (int i = 0; i < schedule->batch; i++) {
        uint64_t position = (uint64_t)t * (uint64_t)schedule->batch + (uint64_t)i;
        agglo_place place = agglo_order_at(schedule->order, position);

        samples[i] = (agglo_plan_sample){position, place.epoch, place.shard, place.ordinal, AGGLO_VIEW_OF_EPOCH};
    }
}
