/* The feed over base/ring: one job per slot of a batch, so that all workers share the oldest batch and memory is
 * bounded by the batches in flight. A job writes only what its slot of the batch owns; what goes into counts and
 * log is written down in the job and read in order by the thread that takes.
 */
#include "student/feed.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/ring.h"

/* Bad samples that are logged as warnings; the rest is counted, and logged for -v. */
#define LOGGED_BAD 20

typedef struct teacher {
    agglo_head_config head;
    agglo_provenance expected; /* shard empty */
    agglo_dtype summary_dtype, spatial_dtype;
    size_t summary_bytes, spatial_bytes; /* of one view */
} teacher;

typedef struct worker {
    agglo_renderer *renderer;
    uint8_t *record; /* grown by agglo_cache_read */
    size_t record_capacity;
    uint8_t *pixels; /* of a check, grown when a larger input is met */
    size_t pixels_capacity;
} worker;

typedef struct slot {
    agglo_batch batch;
    agglo_plan_sample *samples; /* [batch] */
} slot;

typedef struct job {
    slot *slot;
    int index;
    /* what came of it */
    const char *key; /* of the sample, borrowed from the dataset; NULL when not even that could be had */
    bool bad;
    int n_checked;
    char reason[320];
} job;

struct agglo_feed {
    agglo_feed_config config;
    agglo_decode_options decode;
    teacher *teachers;
    worker *workers;
    slot *slots;
    agglo_ring *ring;
    atomic_bool closing; /* jobs not begun yet do nothing */
    uint64_t n_submitted, n_taken, n_released;
    uint64_t n_bad;
    bool failed;
};

agglo_feed_config agglo_feed_config_default(void)
{
    return (agglo_feed_config){.views = agglo_view_config_default(),
                               .filter = AGGLO_VIEW_FILTER,
                               .n_batches = 3,
                               .n_workers = 1,
                               .check_every = 64};
}

agglo_status agglo_head_config_of_cache(const agglo_cache *cache, const char *name, agglo_head_config *out,
                                        agglo_err *err)
{
    const agglo_cache_teacher *found = agglo_cache_find_teacher(cache, name);
    char known[160] = "";

    if (found == NULL) {
        for (size_t i = 0; i < agglo_cache_teachers(cache); i++) {
            size_t used = strlen(known);

            snprintf(known + used, sizeof known - used, "%s%s", i > 0 ? ", " : "",
                     agglo_cache_teacher_at(cache, i)->name);
        }
        agglo_fail(err, AGGLO_E_NOT_FOUND, "the cache has no teacher '%s'%s%s", name,
                   known[0] ? "; it has " : ", it has none", known);
        return agglo_at(err, "%s", agglo_cache_path(cache));
    }
    memset(out, 0, sizeof *out);
    snprintf(out->name, sizeof out->name, "%s", found->name);
    out->summary_dim = found->summary_dim;
    out->spatial_dim = found->spatial_dim;
    out->grid_h = found->grid_h;
    out->grid_w = found->grid_w;
    out->summary_weight = out->spatial_weight = 1.0;
    return AGGLO_OK;
}

/* ---- one sample ---- */

/* Failures that cost the sample alone: they are in the files, and come again in every run. All others stop the run: mismatches,
 * and what may pass (memory, descriptors, a disk or network that fails), where going on without the sample would make this run
 * another one than the next. */
static bool costs_the_sample(agglo_status status)
{
    return status == AGGLO_E_DATA || status == AGGLO_E_NOT_FOUND || status == AGGLO_E_UNSUPPORTED;
}

/* A shard that could not be had when the dataset was opened stays so, for whatever reason. */
static bool lost_shard(const agglo_feed *feed, uint32_t shard)
{
    agglo_err ignored = {0};

    return shard < agglo_dataset_shards(feed->config.dataset) &&
           agglo_dataset_shard_status(feed->config.dataset, shard, &ignored) != AGGLO_OK;
}

/* Write down why a sample is bad, and go on. */
static void note_bad(job *j, const char *what, agglo_err *err)
{
    char line[256];

    if (!j->bad) {
        agglo_err_line(err, line, sizeof line);
        snprintf(j->reason, sizeof j->reason, "%s%s%s", what, what[0] ? ": " : "", line);
    }
    j->bad = true;
    agglo_err_clear(err);
}

static void clear_target(slot *s, size_t t, int index, const teacher *of)
{
    agglo_batch_targets *targets = &s->batch.targets[t];

    memset((uint8_t *)targets->summary + (size_t)index * of->summary_bytes, 0, of->summary_bytes);
    memset((uint8_t *)targets->spatial + (size_t)index * of->spatial_bytes, 0, of->spatial_bytes);
    targets->valid[index] = 0.0f;
}

static uint8_t *pixels_of(slot *s, int index)
{
    return s->batch.pixels + (size_t)index * (size_t)s->batch.size * (size_t)s->batch.size * 3;
}

static void clear_picture(slot *s, int index)
{
    memset(pixels_of(s, index), 0, (size_t)s->batch.size * (size_t)s->batch.size * 3);
}

static bool to_be_checked(const agglo_feed *feed, uint64_t index)
{
    uint8_t bytes[8];

    if (feed->config.check_every == 0) {
        return false;
    }
    agglo_put_le64(bytes, index);
    return agglo_xxh3_64(bytes, sizeof bytes) % feed->config.check_every == 0;
}

/* The pixels that the teacher saw, rendered again, against the hash in its record. */
static agglo_status check_pixels(agglo_feed *feed, worker *w, job *j, const agglo_sample *sample,
                                 const agglo_view *view, const agglo_record_info *info, agglo_err *err)
{
    const uint8_t *pixels = pixels_of(j->slot, j->index);
    uint64_t hash;

    if (info->input_w != feed->config.size || info->input_h != feed->config.size) {
        size_t n_bytes = (size_t)info->input_w * info->input_h * 3;

        if (n_bytes > w->pixels_capacity) {
            uint8_t *grown = agglo_realloc(w->pixels, w->pixels_capacity, n_bytes, err);

            if (grown == NULL) {
                return err->status;
            }
            w->pixels = grown;
            w->pixels_capacity = n_bytes;
        }
        if (agglo_render_views(w->renderer, sample->image, sample->width, sample->height, view, 1,
                               (agglo_view_decode)feed->config.views.decode, feed->config.filter, info->input_w,
                               info->input_h, w->pixels, err) != AGGLO_OK) {
            return err->status;
        }
        pixels = w->pixels;
    }
    hash = agglo_pixel_hash(pixels, info->input_w, info->input_h);
    if (hash != info->pixel_hash) {
        return agglo_fail(err, AGGLO_E_MISMATCH,
                          "the teacher saw other pixels: their hash is %016llx, rendered again at %dx%d it is %016llx",
                          (unsigned long long)info->pixel_hash, info->input_w, info->input_h, (unsigned long long)hash);
    }
    j->n_checked++;
    return AGGLO_OK;
}

static agglo_status check_record(const teacher *of, const agglo_record *record, const agglo_view *view, agglo_err *err)
{
    const agglo_record_info *info = &record->info;

    if (info->summary_dim != of->head.summary_dim || info->spatial_dim != of->head.spatial_dim ||
        info->grid_h != of->head.grid_h || info->grid_w != of->head.grid_w) {
        return agglo_fail(
            err, AGGLO_E_MISMATCH, "the record has dims %d, %d and grid %dx%d, expected %lld, %lld and %lldx%lld",
            info->summary_dim, info->spatial_dim, info->grid_h, info->grid_w, (long long)of->head.summary_dim,
            (long long)of->head.spatial_dim, (long long)of->head.grid_h, (long long)of->head.grid_w);
    }
    if (record->summary_dtype != of->summary_dtype || record->spatial_dtype != of->spatial_dtype ||
        record->summary.size != of->summary_bytes || record->spatial.size != of->spatial_bytes) {
        return agglo_fail(err, AGGLO_E_MISMATCH, "the record is stored as %s and %s, expected %s and %s",
                          agglo_dtype_name(record->summary_dtype), agglo_dtype_name(record->spatial_dtype),
                          agglo_dtype_name(of->summary_dtype), agglo_dtype_name(of->spatial_dtype));
    }
    if (info->x != view->x || info->y != view->y || info->w != view->w || info->h != view->h ||
        info->flip != view->flip) {
        return agglo_fail(err, AGGLO_E_MISMATCH,
                          "the record is of the box %d,%d %dx%d%s, the view drawn now is %d,%d %dx%d%s", info->x,
                          info->y, info->w, info->h, info->flip ? " flipped" : "", view->x, view->y, view->w, view->h,
                          view->flip ? " flipped" : "");
    }
    return AGGLO_OK;
}

/* One teacher's target into the batch. A missing or damaged record leaves it invalid. */
static agglo_status fetch_target(agglo_feed *feed, worker *w, job *j, size_t t, const agglo_sample *sample,
                                 int view_index, const agglo_view *view, bool check, agglo_err *err)
{
    const teacher *of = &feed->teachers[t];
    agglo_batch_targets *targets = &j->slot->batch.targets[t];
    agglo_provenance expected = of->expected;
    agglo_record record;
    agglo_status status;

    memcpy(expected.shard, agglo_dataset_shard(feed->config.dataset, sample->shard)->fingerprint,
           sizeof expected.shard);
    status = agglo_cache_read(feed->config.cache, of->head.name, feed->config.views.group, sample->shard,
                              sample->ordinal, view_index, &expected, &w->record, &w->record_capacity, &record, err);
    if (costs_the_sample(status)) {
        note_bad(j, of->head.name, err);
        clear_target(j->slot, t, j->index, of);
        return AGGLO_OK;
    }
    if (status != AGGLO_OK || check_record(of, &record, view, err) != AGGLO_OK ||
        (check && check_pixels(feed, w, j, sample, view, &record.info, err) != AGGLO_OK)) {
        return agglo_at(err, "teacher %s", of->head.name);
    }
    memcpy((uint8_t *)targets->summary + (size_t)j->index * of->summary_bytes, record.summary.data, of->summary_bytes);
    memcpy((uint8_t *)targets->spatial + (size_t)j->index * of->spatial_bytes, record.spatial.data, of->spatial_bytes);
    targets->valid[j->index] = 1.0f;
    return AGGLO_OK;
}

/* Everything of one sample; without a picture no teacher is asked. */
static agglo_status fetch(agglo_feed *feed, worker *w, job *j, agglo_err *err)
{
    const agglo_feed_config *config = &feed->config;
    const agglo_plan_sample *place = &j->slot->samples[j->index];
    agglo_sample sample;
    agglo_view view;
    agglo_status status;
    int view_index = 0;
    bool check = to_be_checked(feed, place->index);

    AGGLO_ASSERT(place->view == AGGLO_VIEW_OF_EPOCH || (place->view >= 0 && place->view < config->views.count));
    status = agglo_dataset_sample(config->dataset, place->shard, place->ordinal, &sample, err);
    if (status == AGGLO_OK) {
        j->key = sample.key;
        view_index = place->view >= 0 ? place->view : agglo_view_of_epoch(&config->views, sample.uid, place->epoch);
        agglo_view_draw(&config->views, sample.uid, view_index, sample.width, sample.height, &view);
        status = agglo_render_views(w->renderer, sample.image, sample.width, sample.height, &view, 1,
                                    (agglo_view_decode)config->views.decode, config->filter, config->size, config->size,
                                    pixels_of(j->slot, j->index), err);
        if (status == AGGLO_E_MISMATCH) { /* another size than in the index: the shard is damaged here */
            status = err->status = AGGLO_E_DATA;
        }
    }
    if (costs_the_sample(status) || (status == AGGLO_E_IO && lost_shard(feed, place->shard))) {
        note_bad(j, "", err);
        clear_picture(j->slot, j->index);
        for (size_t t = 0; t < config->n_teachers; t++) {
            clear_target(j->slot, t, j->index, &feed->teachers[t]);
        }
        return AGGLO_OK;
    }
    for (size_t t = 0; status == AGGLO_OK && t < config->n_teachers; t++) {
        status = fetch_target(feed, w, j, t, &sample, view_index, &view, check, err);
    }
    if (status != AGGLO_OK && status != AGGLO_E_MEMORY) {
        agglo_at(err, "sample %s (%u/%u)", j->key != NULL ? j->key : "?", place->shard, place->ordinal);
    }
    return status;
}

static agglo_status work(void *context, void *ring_slot, int worker_index, agglo_err *err)
{
    agglo_feed *feed = context;
    job *j = ring_slot;

    if (atomic_load(&feed->closing)) {
        return AGGLO_OK;
    }
    return fetch(feed, &feed->workers[worker_index], j, err);
}

/* ---- making it ---- */

static agglo_status add_teacher(agglo_feed *feed, size_t t, agglo_err *err)
{
    const agglo_feed_teacher *from = &feed->config.teachers[t];
    teacher *to = &feed->teachers[t];
    const agglo_cache_teacher *cached;
    agglo_head_config head;

    if (agglo_head_config_of_cache(feed->config.cache, from->head.name, &head, err) != AGGLO_OK) {
        return err->status;
    }
    cached = agglo_cache_find_teacher(feed->config.cache, from->head.name);
    if (head.summary_dim != from->head.summary_dim || head.spatial_dim != from->head.spatial_dim ||
        head.grid_h != from->head.grid_h || head.grid_w != from->head.grid_w) {
        agglo_fail(err, AGGLO_E_MISMATCH,
                   "the cache has dims %lld, %lld and grid %lldx%lld, expected %lld, %lld and %lldx%lld",
                   (long long)head.summary_dim, (long long)head.spatial_dim, (long long)head.grid_h,
                   (long long)head.grid_w, (long long)from->head.summary_dim, (long long)from->head.spatial_dim,
                   (long long)from->head.grid_h, (long long)from->head.grid_w);
        return agglo_at(err, "%s: teacher %s", agglo_cache_path(feed->config.cache), head.name);
    }
    to->head = from->head;
    to->expected = from->expected;
    switch (agglo_codec_of(cached->codec)) {
    case AGGLO_CODEC_FP32:
        to->summary_dtype = to->spatial_dtype = AGGLO_F32;
        break;
    case AGGLO_CODEC_FP16:
        to->summary_dtype = to->spatial_dtype = AGGLO_F16;
        break;
    case AGGLO_CODEC_BF16:
        to->summary_dtype = AGGLO_F16;
        to->spatial_dtype = AGGLO_BF16;
        break;
    default:
        agglo_fail(err, AGGLO_E_UNSUPPORTED, "targets stored as '%s' cannot be read", cached->codec);
        return agglo_at(err, "%s: teacher %s", agglo_cache_path(feed->config.cache), head.name);
    }
    to->summary_bytes = (size_t)head.summary_dim * agglo_dtype_size(to->summary_dtype);
    to->spatial_bytes =
        (size_t)head.grid_h * (size_t)head.grid_w * (size_t)head.spatial_dim * agglo_dtype_size(to->spatial_dtype);
    return AGGLO_OK;
}

/* Every view of every readable shard must have its finished unit, of the expected provenance. */
static agglo_status check_units(agglo_feed *feed, size_t t, agglo_err *err)
{
    const agglo_feed_config *config = &feed->config;
    const teacher *of = &feed->teachers[t];
    uint32_t n_shards = agglo_dataset_shards(config->dataset);
    size_t n_views = (size_t)config->views.count;
    uint8_t *covered = agglo_alloc(n_shards, n_views, err);

    if (covered == NULL) {
        return err->status;
    }
    for (size_t i = 0; i < agglo_cache_units(config->cache); i++) {
        const agglo_manifest *unit = agglo_cache_unit_at(config->cache, i);
        agglo_provenance expected = of->expected;
        int last = unit->id.view_last < config->views.count ? unit->id.view_last : config->views.count - 1;

        if (strcmp(unit->id.teacher, of->head.name) != 0 || strcmp(unit->id.group, config->views.group) != 0 ||
            unit->id.shard >= n_shards || unit->id.view_first > last) {
            continue;
        }
        memcpy(expected.shard, agglo_dataset_shard(config->dataset, unit->id.shard)->fingerprint,
               sizeof expected.shard);
        if (agglo_provenance_compare(&unit->provenance, &expected, err) != AGGLO_OK) {
            agglo_at(err, "%s: teacher %s, shard %u, views %d to %d", agglo_cache_path(config->cache), of->head.name,
                     unit->id.shard, unit->id.view_first, unit->id.view_last);
            goto done;
        }
        memset(covered + unit->id.shard * n_views + (size_t)unit->id.view_first, 1,
               (size_t)(last - unit->id.view_first) + 1);
    }
    for (uint32_t shard = 0; shard < n_shards; shard++) {
        const uint8_t *missing = memchr(covered + shard * n_views, 0, n_views);
        agglo_err unreadable = {0};

        if (missing != NULL && agglo_dataset_shard_status(config->dataset, shard, &unreadable) == AGGLO_OK) {
            agglo_fail(err, AGGLO_E_NOT_FOUND,
                       "shard %u, view %d of teacher %s is not in the cache; 'agglo teach' makes it", shard,
                       (int)(missing - (covered + shard * n_views)), of->head.name);
            agglo_at(err, "%s", agglo_cache_path(config->cache));
            goto done;
        }
    }
done:
    agglo_free(covered);
    return err->status;
}

static agglo_status make_slot(agglo_feed *feed, slot *s, agglo_err *err)
{
    size_t batch = (size_t)feed->config.batch, size = (size_t)feed->config.size;

    s->batch.batch = feed->config.batch;
    s->batch.size = feed->config.size;
    s->batch.n_teachers = feed->config.n_teachers;
    s->samples = agglo_alloc(batch, sizeof *s->samples, err);
    s->batch.pixels = s->samples != NULL ? agglo_alloc(batch, size * size * 3, err) : NULL;
    if (s->batch.pixels == NULL) {
        return err->status;
    }
    for (size_t t = 0; t < feed->config.n_teachers; t++) {
        agglo_batch_targets *targets = &s->batch.targets[t];

        targets->summary_dtype = feed->teachers[t].summary_dtype;
        targets->spatial_dtype = feed->teachers[t].spatial_dtype;
        if ((targets->summary = agglo_alloc(batch, feed->teachers[t].summary_bytes, err)) == NULL ||
            (targets->spatial = agglo_alloc(batch, feed->teachers[t].spatial_bytes, err)) == NULL ||
            (targets->valid = agglo_alloc(batch, sizeof *targets->valid, err)) == NULL) {
            return err->status;
        }
    }
    return AGGLO_OK;
}

static void clear_slot(slot *s)
{
    for (size_t t = 0; t < s->batch.n_teachers; t++) {
        agglo_free(s->batch.targets[t].valid);
        agglo_free(s->batch.targets[t].spatial);
        agglo_free(s->batch.targets[t].summary);
    }
    agglo_free(s->batch.pixels);
    agglo_free(s->samples);
}

agglo_status agglo_feed_new(agglo_feed **out, const agglo_feed_config *config, agglo_err *err)
{
    agglo_feed *feed = agglo_alloc(1, sizeof *feed, err);

    AGGLO_ASSERT(config->batch >= 1 && config->batch <= 1 << 20 && config->size >= 1 && config->size <= 16384);
    AGGLO_ASSERT(config->n_batches >= 2 && config->n_workers >= 1 && config->n_teachers <= AGGLO_MAX_HEADS);
    *out = NULL;
    if (feed == NULL) {
        goto fail;
    }
    feed->config = *config;
    feed->decode = agglo_dataset_decode_options(config->dataset);
    feed->teachers = agglo_alloc(config->n_teachers, sizeof *feed->teachers, err);
    feed->workers = feed->teachers != NULL ? agglo_alloc((size_t)config->n_workers, sizeof *feed->workers, err) : NULL;
    feed->slots = feed->workers != NULL ? agglo_alloc((size_t)config->n_batches, sizeof *feed->slots, err) : NULL;
    if (feed->slots == NULL) {
        goto fail;
    }
    for (size_t t = 0; t < config->n_teachers; t++) {
        if (add_teacher(feed, t, err) != AGGLO_OK || check_units(feed, t, err) != AGGLO_OK) {
            goto fail;
        }
    }
    feed->config.teachers = NULL; /* the caller's; copied above */
    for (int i = 0; i < config->n_batches; i++) {
        if (make_slot(feed, &feed->slots[i], err) != AGGLO_OK) {
            goto fail;
        }
    }
    for (int i = 0; i < config->n_workers; i++) {
        if (agglo_renderer_new(&feed->workers[i].renderer, &feed->decode, err) != AGGLO_OK) {
            goto fail;
        }
    }
    if (agglo_ring_new(&feed->ring, config->n_batches * config->batch, sizeof(job), config->n_workers, work, feed,
                       err) != AGGLO_OK) {
        goto fail;
    }
    *out = feed;
    return AGGLO_OK;
fail:
    agglo_feed_free(feed);
    return agglo_doing(err, "cannot feed training from the cache");
}

void agglo_feed_free(agglo_feed *feed)
{
    if (feed == NULL) {
        return;
    }
    atomic_store(&feed->closing, true);
    if (feed->ring != NULL) {
        agglo_ring_free(feed->ring, NULL);
    }
    for (int i = 0; feed->workers != NULL && i < feed->config.n_workers; i++) {
        agglo_renderer_free(feed->workers[i].renderer);
        agglo_free(feed->workers[i].pixels);
        agglo_free(feed->workers[i].record);
    }
    for (int i = 0; feed->slots != NULL && i < feed->config.n_batches; i++) {
        clear_slot(&feed->slots[i]);
    }
    agglo_free(feed->slots);
    agglo_free(feed->workers);
    agglo_free(feed->teachers);
    agglo_free(feed);
}

/* ---- running it ---- */

int agglo_feed_room(const agglo_feed *feed)
{
    return feed->config.n_batches - (int)(feed->n_submitted - feed->n_released);
}

void agglo_feed_submit(agglo_feed *feed, const agglo_step_plan *plan)
{
    slot *s = &feed->slots[feed->n_submitted % (uint64_t)feed->config.n_batches];

    AGGLO_ASSERT(agglo_feed_room(feed) > 0 && !feed->failed);
    AGGLO_ASSERT(plan->n_samples >= 1 && plan->n_samples <= feed->config.batch);
    memcpy(s->samples, plan->samples, (size_t)plan->n_samples * sizeof *s->samples);
    s->batch.plan = *plan;
    s->batch.plan.samples = s->samples;
    for (int i = plan->n_samples; i < feed->config.batch; i++) {
        clear_picture(s, i);
        for (size_t t = 0; t < feed->config.n_teachers; t++) {
            clear_target(s, t, i, &feed->teachers[t]);
        }
    }
    feed->n_submitted++;
    for (int i = 0; i < plan->n_samples; i++) {
        job *j = agglo_ring_claim(feed->ring, true);

        memset(j, 0, sizeof *j);
        j->slot = s;
        j->index = i;
        agglo_ring_submit(feed->ring);
    }
}

static void report_bad(agglo_feed *feed, const job *j)
{
    const agglo_plan_sample *place = &j->slot->samples[j->index];

    feed->n_bad++;
    agglo_log(feed->n_bad <= LOGGED_BAD ? AGGLO_LOG_WARN : AGGLO_LOG_DEBUG, "sample %s (%u/%u) counts nothing: %s",
              j->key != NULL ? j->key : "?", place->shard, place->ordinal, j->reason);
    if (feed->n_bad == LOGGED_BAD) {
        agglo_log(AGGLO_LOG_WARN, "further bad samples are counted, and named under -v");
    }
}

agglo_status agglo_feed_take(agglo_feed *feed, const agglo_batch **out, agglo_err *err)
{
    slot *s = &feed->slots[feed->n_taken % (uint64_t)feed->config.n_batches];
    double begin = agglo_now();

    *out = NULL;
    AGGLO_ASSERT(feed->n_taken < feed->n_submitted && feed->n_taken == feed->n_released && !feed->failed);
    s->batch.n_bad = 0;
    s->batch.n_checked = 0;
    for (int i = 0; i < s->batch.plan.n_samples; i++) {
        void *ring_slot;
        agglo_status status = agglo_ring_take(feed->ring, &ring_slot, err);
        const job *j = ring_slot;

        if (status != AGGLO_OK) {
            feed->failed = true;
            agglo_ring_release(feed->ring);
            return agglo_doing(err, "cannot make the batch of step %lld", (long long)s->batch.plan.step);
        }
        AGGLO_ASSERT(j->slot == s && j->index == i);
        if (j->bad) {
            s->batch.n_bad++;
            report_bad(feed, j);
        }
        s->batch.n_checked += j->n_checked;
        agglo_ring_release(feed->ring);
    }
    for (size_t t = 0; t < feed->config.n_teachers; t++) {
        agglo_batch_targets *targets = &s->batch.targets[t];

        targets->n_valid = 0;
        for (int i = 0; i < s->batch.plan.n_samples; i++) {
            targets->n_valid += targets->valid[i] > 0.0f;
        }
    }
    s->batch.wait_s = agglo_now() - begin;
    feed->n_taken++;
    *out = &s->batch;
    return AGGLO_OK;
}

void agglo_feed_release(agglo_feed *feed)
{
    AGGLO_ASSERT(feed->n_released < feed->n_taken);
    feed->n_released++;
}

uint64_t agglo_feed_bad(const agglo_feed *feed)
{
    return feed->n_bad;
}
