/* RUN/metrics.jsonl: one JSON object per logged step, appended; what lies behind the step that a run resumes from is cut off. */
#ifndef AGGLO_LAUNCH_METRICS_H
#define AGGLO_LAUNCH_METRICS_H

#include "student/trainer.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct agglo_metrics_file agglo_metrics_file;

/* Open PATH for appending, keeping the lines of steps up to `resumed_from` (updates made). A damaged last line, as a killed process may leave
 * it, is cut too. */
agglo_status agglo_metrics_file_open(agglo_metrics_file **out, const char *path, int64_t resumed_from, agglo_err *err);
void agglo_metrics_file_close(agglo_metrics_file *file);

/* {"step", "loss", "lr", "grad_norm", "teachers": {NAME: {"summary_cos", "spatial_cos"}}, "images_per_s", "data_wait"}; `step` counts
 * updates made, data_wait is the share of the time since the last line. */
agglo_status agglo_metrics_file_add(agglo_metrics_file *file, const agglo_metrics *metrics,
                                    const agglo_head_config *heads, double images_per_s, double data_wait,
                                    agglo_err *err);

#ifdef __cplusplus
}
#endif
#endif
