/* The held-out cache through the feed, the student through the trainer's evaluation, sums added up. */
#include "student/eval_distill.h"

#include <string.h>

#include "base/log.h"
#include "student/model_impl.h"

/* The student's heads that the feed asks for, in the order of the feed. */
static agglo_status pick_heads(const agglo_feed_config *feed, const agglo_head_config *heads, size_t n_heads,
                               agglo_head_config *picked, agglo_err *err)
{
    for (size_t t = 0; t < feed->n_teachers; t++) {
        const agglo_head_config *wanted = &feed->teachers[t].head;
        const agglo_head_config *found = NULL;

        for (size_t i = 0; i < n_heads; i++) {
            found = strcmp(heads[i].name, wanted->name) == 0 ? &heads[i] : found;
        }
        if (found == NULL) {
            return agglo_fail(err, AGGLO_E_NOT_FOUND, "the student has no head '%s'", wanted->name);
        }
        if (found->summary_dim != wanted->summary_dim || found->spatial_dim != wanted->spatial_dim) {
            return agglo_fail(err, AGGLO_E_MISMATCH, "head '%s' has dims %lld, %lld, the cache's teacher %lld, %lld",
                              wanted->name, (long long)found->summary_dim, (long long)found->spatial_dim,
                              (long long)wanted->summary_dim, (long long)wanted->spatial_dim);
        }
        picked[t] = *found;
        picked[t].grid_h = wanted->grid_h;
        picked[t].grid_w = wanted->grid_w;
    }
    return AGGLO_OK;
}

/* All (sample, view) of the readable shards, shard by shard. */
typedef struct cursor {
    const agglo_dataset *dataset;
    int n_views;
    uint32_t shard, ordinal;
    int view;
    uint64_t index;
    int64_t n_unreadable; /* views of shards left out */
} cursor;

static bool next_view(cursor *at, agglo_plan_sample *out)
{
    while (at->shard < agglo_dataset_shards(at->dataset)) {
        uint32_t n_samples = agglo_dataset_shard(at->dataset, at->shard)->n_samples;
        agglo_err why = {0};

        if (at->ordinal == 0 && at->view == 0 && agglo_dataset_shard_status(at->dataset, at->shard, &why) != AGGLO_OK) {
            char line[512];

            agglo_log(AGGLO_LOG_WARN, "shard %u is left out: %s", at->shard, agglo_err_line(&why, line, sizeof line));
            at->n_unreadable += (int64_t)n_samples * at->n_views;
            at->shard++;
            continue;
        }
        if (at->ordinal >= n_samples) {
            at->shard++;
            at->ordinal = 0;
            continue;
        }
        *out = (agglo_plan_sample){.index = at->index++, .shard = at->shard, .ordinal = at->ordinal, .view = at->view};
        if (++at->view == at->n_views) {
            at->view = 0;
            at->ordinal++;
        }
        return true;
    }
    return false;
}

static void add_sums(agglo_loss_sums *to, const agglo_loss_sums *from)
{
    to->cos += from->cos;
    to->smooth_l1 += from->smooth_l1;
    to->n_tokens += from->n_tokens;
    to->n_samples += from->n_samples;
}

static agglo_status run(agglo_trainer *trainer, agglo_feed *feed, const agglo_feed_config *config,
                        agglo_plan_sample *samples, agglo_metrics *total, agglo_distill_result *out, agglo_err *err)
{
    cursor at = {.dataset = config->dataset, .n_views = config->views.count};
    int n_in_flight = 0;
    bool more = true;

    do {
        const agglo_batch *batch;
        agglo_metrics metrics;

        while (more && agglo_feed_room(feed) > 0) {
            agglo_step_plan plan = {.samples = samples};

            while (plan.n_samples < config->batch && (more = next_view(&at, &samples[plan.n_samples]))) {
                plan.n_samples++;
            }
            if (plan.n_samples > 0) {
                agglo_feed_submit(feed, &plan);
                n_in_flight++;
            }
        }
        if (n_in_flight == 0) {
            break;
        }
        if (agglo_feed_take(feed, &batch, err) != AGGLO_OK ||
            agglo_trainer_eval(trainer, batch, &metrics, err) != AGGLO_OK) {
            return err->status;
        }
        for (size_t t = 0; t < config->n_teachers; t++) {
            add_sums(&total->summary[t], &metrics.summary[t]);
            add_sums(&total->spatial[t], &metrics.spatial[t]);
        }
        out->n_views += batch->plan.n_samples;
        out->n_bad += batch->n_bad;
        agglo_feed_release(feed);
        n_in_flight--;
    } while (true);
    out->n_views += at.n_unreadable;
    out->n_bad += at.n_unreadable;
    return AGGLO_OK;
}

static double mean_of(double sum, double n)
{
    return n > 0.0 ? sum / n : 0.0;
}

static void finish(const agglo_metrics *total, const agglo_head_config *heads, size_t n_heads,
                   const agglo_trainer_config *config, agglo_distill_result *out)
{
    out->n_teachers = n_heads;
    for (size_t t = 0; t < n_heads; t++) {
        const agglo_loss_sums *summary = &total->summary[t], *spatial = &total->spatial[t];
        agglo_distill_teacher *to = &out->teachers[t];

        memcpy(to->name, heads[t].name, sizeof to->name);
        to->summary_cos = mean_of(summary->cos, summary->n_tokens);
        to->spatial_cos = mean_of(spatial->cos, spatial->n_tokens);
        to->summary_loss = summary->n_tokens > 0.0 ? 1.0 - to->summary_cos : 0.0;
        to->spatial_loss = spatial->n_tokens > 0.0 ? config->cos * (1.0 - to->spatial_cos) +
                                                         config->smooth_l1 * spatial->smooth_l1 / spatial->n_tokens
                                                   : 0.0;
        to->n_views = (int64_t)summary->n_samples;
        out->loss += heads[t].summary_weight * to->summary_loss + heads[t].spatial_weight * to->spatial_loss;
    }
}

agglo_status agglo_eval_distill(agglo_backend *backend, const char *student_path, const agglo_feed_config *feed_config,
                                const agglo_trainer_config *loss, agglo_distill_result *out, agglo_err *err)
{
    agglo_feed_config config = *feed_config;
    agglo_safetensors *st = NULL;
    agglo_trainer *trainer = NULL;
    agglo_feed *feed = NULL;
    agglo_plan_sample *samples = NULL;
    agglo_student_config student;
    agglo_head_config heads[AGGLO_MAX_HEADS], picked[AGGLO_MAX_HEADS];
    agglo_metrics total = {0};
    size_t n_heads;

    memset(out, 0, sizeof *out);
    if (agglo_safetensors_open(&st, student_path, err) != AGGLO_OK ||
        agglo_student_read_config(st, &student, heads, &n_heads, err) != AGGLO_OK) {
        goto fail;
    }
    if (pick_heads(&config, heads, n_heads, picked, err) != AGGLO_OK) {
        agglo_at(err, "%s", student_path);
        goto fail;
    }
    config.size = config.size != 0 ? config.size : (int)student.image;
    if (config.size % student.patch != 0) {
        agglo_fail(err, AGGLO_E_CONFIG, "an input of %d pixels is not a multiple of the patch, %lld", config.size,
                   (long long)student.patch);
        goto fail;
    }
    samples = agglo_alloc((size_t)config.batch, sizeof *samples, err);
    if (samples == NULL || agglo_feed_new(&feed, &config, err) != AGGLO_OK ||
        agglo_trainer_new_eval(&trainer, backend, &student, picked, config.n_teachers, loss, st, err) != AGGLO_OK ||
        run(trainer, feed, &config, samples, &total, out, err) != AGGLO_OK) {
        goto fail;
    }
    finish(&total, picked, config.n_teachers, loss, out);
    agglo_feed_free(feed);
    agglo_trainer_free(trainer);
    agglo_free(samples);
    agglo_safetensors_close(st);
    return AGGLO_OK;
fail:
    agglo_feed_free(feed);
    agglo_trainer_free(trainer);
    agglo_free(samples);
    agglo_safetensors_close(st);
    return agglo_doing(err, "cannot evaluate the student");
}
