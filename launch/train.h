/* The training run of one recipe in one directory: opens what it needs, hands plans to the trainer, keeps metrics and checkpoints.
 *
 *     RUN/recipe.yaml            as used, paths absolute
 *     RUN/metrics.jsonl          one object per logged step
 *     RUN/checkpoint-*.safetensors
 *     RUN/student.safetensors    at the end
 */
#ifndef AGGLO_LAUNCH_TRAIN_H
#define AGGLO_LAUNCH_TRAIN_H

#include "launch/recipe.h"
#include "tensor/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct agglo_train_result {
    int64_t steps;        /* updates made in all */
    int64_t resumed_from; /* updates found in RUN when it started; 0: a fresh run */
    bool up_to_date;      /* the run was finished already */
    uint64_t n_bad;       /* slots with a picture or a record missing, in this process */
    uint32_t lost_shards; /* of the dataset, missing or not what its index says */
    double seconds;       /* of the loop, in this process */
    double images_per_s;
    double wait_share;  /* of the loop's time spent waiting for data */
    agglo_metrics last; /* of the last step made here; n_teachers 0 when none was */
} agglo_train_result;

/* Train, or go on where RUN stopped. One process at a time per RUN (a lock on RUN/.lock; AGGLO_E_IO names who is refused). A run that is
 * stopped by a signal writes a checkpoint first and returns AGGLO_E_STOPPED. */
agglo_status agglo_run_train(const agglo_recipe *recipe, const char *run, agglo_backend *backend,
                             agglo_train_result *out, agglo_err *err);

/* What training and evaluation read of one dataset and its cache, opened and checked against the recipe: every teacher of the recipe must be
 * in the cache, made from the weights that the recipe names (compared when the file is there) with the same options, codec, views and decoder. */
typedef struct agglo_sources {
    agglo_dataset *dataset;
    agglo_cache *cache;
    agglo_feed_teacher teachers[AGGLO_MAX_TEACHERS];
    size_t n_teachers;
    const agglo_view_config *views; /* the one group of all teachers, in the recipe */
} agglo_sources;

agglo_status agglo_sources_open(agglo_sources *out, const agglo_recipe *recipe, const char *const *datasets,
                                size_t n_datasets, const char *cache, agglo_err *err);
void agglo_sources_close(agglo_sources *sources); /* safe on a zeroed one */

/* Whether the features of a cached teacher are those that the recipe asks for, by all that it says of how they are made: codec, size, summary,
 * spatial_norm, neck, pos_interp, act, precision, arch. What it leaves open (auto, no size, no arch) is as the cache has it; what has a
 * default is compared by that. AGGLO_E_MISMATCH names the key, what was found and what is asked for. */
agglo_status agglo_sources_check(const agglo_recipe_teacher *teacher, const agglo_cache_teacher *cached,
                                 agglo_err *err);

#ifdef __cplusplus
}
#endif
#endif
