/* The feed: plans in, batches out, in order. Worker threads decode and render pictures and copy stored targets out
 * of the cache, a bounded number of batches ahead; what a batch holds never depends on the number of workers.
 *
 *     while (agglo_feed_room(feed) > 0) agglo_feed_submit(feed, plan of the next step)
 *     agglo_feed_take(feed, &batch) ... use it ... agglo_feed_release(feed)
 *
 * A sample that cannot be decoded, or whose record or the file it stands in is missing or damaged, keeps its slot
 * with weight zero, is counted and logged by name: the same samples in every run over the same files. A record that
 * belongs to another view, other pixels or other provenance than expected stops the run, AGGLO_E_MISMATCH; so does
 * a failure that may pass (AGGLO_E_IO, AGGLO_E_MEMORY), after which the run is resumed. One thread submits, takes
 * and releases.
 */
#ifndef AGGLO_STUDENT_FEED_H
#define AGGLO_STUDENT_FEED_H

#include "cache/cache.h"
#include "ingest/dataset.h"
#include "ingest/render.h"
#include "student/step_plan.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One teacher's targets of a batch, as they are stored. */
typedef struct agglo_batch_targets {
    agglo_dtype summary_dtype, spatial_dtype;
    void *summary; /* [batch, summary_dim], 64-byte aligned; zero where not valid */
    void *spatial; /* [batch, grid_h, grid_w, spatial_dim] */
    float *valid;  /* [batch] 1 or 0 */
    int n_valid;
} agglo_batch_targets;

typedef struct agglo_batch {
    agglo_step_plan plan; /* the submitted one; samples are the batch's own copy */
    int batch, size;
    uint8_t *pixels; /* [batch, size, size, 3]; zero where the picture could not be had */
    size_t n_teachers;
    agglo_batch_targets targets[AGGLO_MAX_HEADS];
    int n_bad;     /* samples of the plan with a picture or a record missing */
    int n_checked; /* records whose pixel hash was compared */
    double wait_s; /* that agglo_feed_take waited for this batch */
} agglo_batch;

typedef struct agglo_feed_teacher {
    agglo_head_config head;    /* dims and grid must be the cache's: AGGLO_E_MISMATCH */
    agglo_provenance expected; /* `shard` is filled by the feed from the dataset */
} agglo_feed_teacher;

typedef struct agglo_feed_config {
    const agglo_dataset *dataset;
    agglo_cache *cache;
    agglo_view_config views;
    const agglo_feed_teacher *teachers; /* copied */
    size_t n_teachers;
    int batch, size;     /* pictures, pixels of a side */
    agglo_filter filter; /* of the renderer, for student and check alike */
    int n_batches;       /* in flight, counting the one taken (2 or more) */
    int n_workers;       /* 1 or more */
    /* The pixels of one sample in so many are rendered again at the teachers' sizes and compared with the hash in their
     * records; which ones is a function of the sample's index. 0: none. */
    uint32_t check_every;
} agglo_feed_config;

/* batch 0 and size 0 (to be set), bicubic, 3 batches, 1 worker, check one of 64. */
agglo_feed_config agglo_feed_config_default(void);

/* Dims and grid of a cached teacher (weights 1). AGGLO_E_NOT_FOUND names the teachers there are. */
agglo_status agglo_head_config_of_cache(const agglo_cache *cache, const char *teacher, agglo_head_config *out,
                                        agglo_err *err);

typedef struct agglo_feed agglo_feed;

/* Every readable shard of the dataset must have all `views.count` views of every teacher among the finished units
 * (AGGLO_E_NOT_FOUND names the first missing one), each of the expected provenance (AGGLO_E_MISMATCH). Dataset and
 * cache are borrowed until free. */
agglo_status agglo_feed_new(agglo_feed **out, const agglo_feed_config *config, agglo_err *err);
void agglo_feed_free(agglo_feed *feed); /* waits for the work in flight */

/* Plans that can be submitted now. */
int agglo_feed_room(const agglo_feed *feed);
/* Copies the plan. Room is required. */
void agglo_feed_submit(agglo_feed *feed, const agglo_step_plan *plan);
/* The oldest batch, complete (blocks); one must be in flight. Valid until agglo_feed_release, which must follow
 * unless it failed. After a failure only agglo_feed_free may be called. */
agglo_status agglo_feed_take(agglo_feed *feed, const agglo_batch **out, agglo_err *err);
void agglo_feed_release(agglo_feed *feed);

/* Bad samples met so far (batches taken). */
uint64_t agglo_feed_bad(const agglo_feed *feed);

#ifdef __cplusplus
}
#endif
#endif
