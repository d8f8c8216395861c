/* How well a student matches its teachers on a held-out dataset with a cache of its own, in native feature space. */
#ifndef AGGLO_STUDENT_EVAL_DISTILL_H
#define AGGLO_STUDENT_EVAL_DISTILL_H

#include "student/trainer.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct agglo_distill_teacher {
    char name[AGGLO_HEAD_NAME_MAX];
    double summary_cos, spatial_cos;   /* means over all valid views (and tokens) */
    double summary_loss, spatial_loss; /* without the teacher's weights lambda and gamma */
    int64_t n_views;                   /* valid */
} agglo_distill_teacher;

typedef struct agglo_distill_result {
    size_t n_teachers;
    agglo_distill_teacher teachers[AGGLO_MAX_HEADS];
    double loss;     /* with the weights in the student's file */
    int64_t n_views; /* looked at */
    int64_t n_bad;   /* of them, with a picture or a record missing */
} agglo_distill_result;

/* All views of all samples of feed->dataset in order. feed->teachers name heads of the student (AGGLO_E_NOT_FOUND)
 * of the same dims (AGGLO_E_MISMATCH); a subset is fine; feed->size 0: the student's training size. `loss`
 * supplies alpha, beta and threshold. Shards that cannot be read are left out, logged, and counted in n_bad by
 * their samples. */
agglo_status agglo_eval_distill(agglo_backend *backend, const char *student_path, const agglo_feed_config *feed,
                                const agglo_trainer_config *loss, agglo_distill_result *out, agglo_err *err);

#ifdef __cplusplus
}
#endif
#endif
