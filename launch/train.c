/* The run loop: plans go to the feed, batches to the trainer, metrics and checkpoints to the run directory. */
#include "launch/train.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "base/hash.h"
#include "base/log.h"
#include "base/stop.h"
#include "launch/metrics.h"
#include "schedule/step.h"
#include "student/checkpoint.h"

typedef struct run {
    const agglo_recipe *recipe;
    const char *dir;
    agglo_backend *backend;
    int lock; /* file descriptor, -1: none */
    char recipe_hash[33];
    agglo_sources sources;
    agglo_head_config heads[AGGLO_MAX_HEADS];
    agglo_trainer *trainer;
    agglo_order *order;
    agglo_feed *feed;
    agglo_plan_sample *samples;
    agglo_metrics_file *metrics;
    agglo_schedule schedule;
} run;

static agglo_status lock_run(run *r, agglo_err *err)
{
    char *path;

    if (agglo_make_dirs(r->dir, err) != AGGLO_OK || (path = agglo_path_join(r->dir, ".lock", err)) == NULL) {
        return err->status;
    }
    r->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    agglo_free(path);
    if (r->lock < 0) {
        return agglo_fail(err, AGGLO_E_IO, "%s", strerror(errno));
    }
    if (flock(r->lock, LOCK_EX | LOCK_NB) != 0) {
        return agglo_fail(err, AGGLO_E_IO, "another process is training here");
    }
    return AGGLO_OK;
}

/* A copy of a map without some of its keys; anything else is returned as it is. */
static agglo_status without(const agglo_yaml *node, const char *const *keys, size_t n_keys, agglo_arena *arena,
                            agglo_yaml *out, agglo_err *err)
{
    *out = *node;
    if (node->kind != AGGLO_YAML_MAP) {
        return AGGLO_OK;
    }
    out->n = 0;
    out->items = agglo_arena_take(arena, node->n + 1, sizeof *out->items, err);
    out->keys = out->items != NULL ? agglo_arena_take(arena, node->n + 1, sizeof *out->keys, err) : NULL;
    if (out->keys == NULL) {
        return err->status;
    }
    for (size_t i = 0; i < node->n; i++) {
        bool drop = false;

        for (size_t k = 0; k < n_keys; k++) {
            drop |= strcmp(node->keys[i], keys[k]) == 0;
        }
        if (!drop) {
            out->keys[out->n] = node->keys[i];
            out->items[out->n++] = node->items[i];
        }
    }
    return AGGLO_OK;
}

/* The text that the hash is of: the recipe without what cannot change a parameter and without places, so that a project may move. */
static agglo_status essence(const agglo_recipe *recipe, char **out, agglo_err *err)
{
    static const char *const top[] = {"launch", "val", "val_cache", "dataset", "cache"};
    static const char *const train[] = {"checkpoint_every", "keep", "log_every", "init"};
    static const char *const teacher[] = {"weights", "batch"};
    agglo_arena *arena = recipe->arena;
    agglo_yaml tree;

    if (without(recipe->tree, top, AGGLO_COUNT(top), arena, &tree, err) != AGGLO_OK) {
        return err->status;
    }
    for (size_t i = 0; i < tree.n; i++) {
        agglo_yaml section = tree.items[i];

        if (strcmp(tree.keys[i], "train") == 0 &&
            without(&section, train, AGGLO_COUNT(train), arena, &tree.items[i], err) != AGGLO_OK) {
            return err->status;
        }
        if (strcmp(tree.keys[i], "teachers") == 0) {
            tree.items[i].items = agglo_arena_take(arena, section.n + 1, sizeof section, err);
            if (tree.items[i].items == NULL) {
                return err->status;
            }
            for (size_t k = 0; k < section.n; k++) {
                if (without(&section.items[k], teacher, AGGLO_COUNT(teacher), arena, &tree.items[i].items[k], err) !=
                    AGGLO_OK) {
                    return err->status;
                }
            }
        }
    }
    return agglo_yaml_print(&tree, arena, out, err);
}

/* What a resumed run must share with the one that stopped: the recipe's essence, the shards and what the targets were made from. */
static agglo_status hash_recipe(run *r, agglo_err *err)
{
    agglo_hasher *hasher = NULL;
    uint8_t digest[16];
    char *text;

    if (essence(r->recipe, &text, err) != AGGLO_OK || agglo_hasher_new(&hasher, AGGLO_HASH_XXH3_128, err) != AGGLO_OK ||
        agglo_hasher_add(hasher, text, strlen(text), err) != AGGLO_OK) {
        goto done;
    }
    for (uint32_t i = 0; i < agglo_dataset_shards(r->sources.dataset); i++) {
        const agglo_shard_info *shard = agglo_dataset_shard(r->sources.dataset, i);

        if (agglo_hasher_add(hasher, shard->fingerprint, sizeof shard->fingerprint, err) != AGGLO_OK) {
            goto done;
        }
    }
    for (size_t i = 0; i < r->sources.n_teachers; i++) {
        const agglo_provenance *made_from = &r->sources.teachers[i].expected;

        if (agglo_hasher_add(hasher, made_from->weights, strlen(made_from->weights), err) != AGGLO_OK ||
            agglo_hasher_add(hasher, made_from->preprocess, strlen(made_from->preprocess), err) != AGGLO_OK) {
            goto done;
        }
    }
    if (agglo_hasher_end(hasher, digest, err) == AGGLO_OK) {
        agglo_hex(digest, sizeof digest, r->recipe_hash);
    }
done:
    agglo_hasher_free(hasher);
    return err->status;
}

static agglo_status write_recipe(run *r, agglo_err *err)
{
    char *path = agglo_path_join(r->dir, "recipe.yaml", err), *text;

    if (path == NULL) {
        return err->status;
    }
    if (agglo_recipe_text(r->recipe, &text, err) == AGGLO_OK) {
        agglo_file_write(path, text, strlen(text), err);
    }
    agglo_free(path);
    return err->status;
}

/* Start from the parameters of another run or student file: every parameter that both have must have the same shape. */
static agglo_status init_from(run *r, const char *path, agglo_err *err)
{
    agglo_safetensors *st = NULL;
    char *inside = NULL;

    if (agglo_path_is_dir(path)) {
        inside = agglo_path_join(path, "student.safetensors", err);
        if (inside == NULL) {
            return err->status;
        }
        path = inside;
    }
    if (agglo_safetensors_open(&st, path, err) == AGGLO_OK) {
        if (!agglo_student_is(st)) {
            agglo_fail(err, AGGLO_E_DATA, "not a student's weights");
            agglo_at(err, "%s", path);
        } else {
            agglo_params_load(agglo_student_params(agglo_trainer_student(r->trainer)), st, err);
        }
    }
    agglo_safetensors_close(st);
    agglo_free(inside);
    return err->status != AGGLO_OK ? agglo_doing(err, "cannot start from train.init") : AGGLO_OK;
}

static agglo_status make_trainer(run *r, int64_t *resumed_from, agglo_err *err)
{
    const agglo_recipe_train *train = &r->recipe->train;
    agglo_trainer_config config = r->recipe->trainer;
    bool found = false;

    config.precision = train->precision == AGGLO_PRECISION_BF16 ? AGGLO_BF16 : AGGLO_F32;

    for (size_t i = 0; i < r->sources.n_teachers; i++) {
        r->heads[i] = r->sources.teachers[i].head;
    }
    if (agglo_trainer_new(&r->trainer, r->backend, &r->recipe->student, r->heads, r->sources.n_teachers, &config,
                          err) != AGGLO_OK ||
        agglo_trainer_init(r->trainer, train->seed, err) != AGGLO_OK ||
        agglo_checkpoint_load(r->trainer, r->dir, r->recipe_hash, &found, err) != AGGLO_OK) {
        return err->status;
    }
    *resumed_from = found ? agglo_trainer_steps(r->trainer) : 0;
    return !found && train->init != NULL ? init_from(r, train->init, err) : AGGLO_OK;
}

static agglo_status make_schedule(run *r, agglo_err *err)
{
    const agglo_recipe_train *train = &r->recipe->train;
    uint32_t n_shards = agglo_dataset_shards(r->sources.dataset);
    uint32_t *counts = agglo_alloc(n_shards, sizeof *counts, err);

    if (counts == NULL) {
        return err->status;
    }
    for (uint32_t i = 0; i < n_shards; i++) {
        counts[i] = agglo_dataset_shard(r->sources.dataset, i)->n_samples;
    }
    agglo_order_new(&r->order, counts, n_shards, train->seed, (uint32_t)train->window, err);
    agglo_free(counts);
    if (err->status != AGGLO_OK) {
        return err->status;
    }
    r->schedule = (agglo_schedule){
        .order = r->order, .curve = train->curve, .batch = (int)train->batch, .n_teachers = r->sources.n_teachers};
    for (size_t i = 0; i < r->sources.n_teachers; i++) {
        r->schedule.summary_weight[i] = r->heads[i].summary_weight;
        r->schedule.spatial_weight[i] = r->heads[i].spatial_weight;
    }
    r->samples = agglo_alloc((size_t)train->batch, sizeof *r->samples, err);
    return r->samples != NULL ? AGGLO_OK : err->status;
}

static agglo_status make_feed(run *r, agglo_err *err)
{
    agglo_feed_config config = agglo_feed_config_default();
    agglo_pool *pool = agglo_backend_pool(r->backend);

    config.dataset = r->sources.dataset;
    config.cache = r->sources.cache;
    config.views = *r->sources.views;
    config.teachers = r->sources.teachers;
    config.n_teachers = r->sources.n_teachers;
    config.batch = (int)r->recipe->train.batch;
    config.size = (int)r->recipe->train.size;
    config.n_workers = pool != NULL ? agglo_pool_threads(pool) : agglo_cores();
    return agglo_feed_new(&r->feed, &config, err);
}

/* What the loop keeps between two lines of the log. */
typedef struct since_log {
    int64_t step;
    double time, waited;
} since_log;

/* The next batch into the trainer, and plans for those behind it into the feed. */
static agglo_status submit_step(run *r, int64_t *planned, since_log *last, double *waited, agglo_train_result *out,
                                agglo_err *err)
{
    const agglo_batch *batch = NULL;

    while (*planned < r->recipe->train.steps && agglo_feed_room(r->feed) > 0) {
        agglo_step_plan plan;

        agglo_schedule_step(&r->schedule, (*planned)++, r->samples, &plan);
        agglo_feed_submit(r->feed, &plan);
    }
    if (agglo_feed_take(r->feed, &batch, err) != AGGLO_OK) {
        return err->status;
    }
    *waited += batch->wait_s;
    last->waited += batch->wait_s;
    out->n_bad += (uint64_t)batch->n_bad;
    if (agglo_trainer_submit(r->trainer, batch, err) == AGGLO_OK) {
        agglo_feed_release(r->feed);
    }
    return err->status;
}

/* The oldest step under way: its metrics are taken, and logged where they are due. */
static agglo_status take_step(run *r, since_log *last, agglo_progress *progress, agglo_train_result *out,
                              agglo_err *err)
{
    const agglo_recipe_train *train = &r->recipe->train;
    agglo_metrics metrics;
    int64_t done;

    if (agglo_trainer_take(r->trainer, &metrics, err) != AGGLO_OK) {
        return err->status;
    }
    out->last = metrics;
    done = agglo_trainer_steps(r->trainer);
    agglo_progress_add(progress, 1);
    agglo_progress_note(progress, "loss %.4f", metrics.loss);
    if (done % train->log_every == 0 || done == train->steps) {
        double now = agglo_now(), span = now - last->time > 1e-9 ? now - last->time : 1e-9;

        agglo_metrics_file_add(r->metrics, &metrics, r->heads, (double)((done - last->step) * train->batch) / span,
                               last->waited / span, err);
        *last = (since_log){done, now, 0};
    }
    return err->status;
}

/* A step is submitted before the one before it is taken, so that a device always has work; where something is due that wants to know all,
 * the log, a checkpoint, the end, both are taken. */
static agglo_status loop(run *r, agglo_train_result *out, agglo_err *err)
{
    const agglo_recipe_train *train = &r->recipe->train;
    int64_t begin = agglo_trainer_steps(r->trainer), submitted = begin, planned = begin;
    double start = agglo_now(), waited = 0;
    since_log last = {begin, start, 0};
    agglo_progress *progress = agglo_progress_begin("train", "steps", (uint64_t)(train->steps - begin));

    while (submitted < train->steps) {
        bool log, checkpoint;

        if (submit_step(r, &planned, &last, &waited, out, err) != AGGLO_OK) {
            break;
        }
        submitted++;
        log = submitted % train->log_every == 0;
        checkpoint = submitted % train->checkpoint_every == 0 || submitted == train->steps || agglo_stop_raised();
        while (err->status == AGGLO_OK && agglo_trainer_pending(r->trainer) > (log || checkpoint ? 0 : 1)) {
            take_step(r, &last, progress, out, err);
        }
        if (err->status != AGGLO_OK || (checkpoint && agglo_checkpoint_save(r->trainer, r->dir, r->recipe_hash,
                                                                            (int)train->keep, err) != AGGLO_OK)) {
            break;
        }
        if (checkpoint && submitted < train->steps && agglo_stop_check(err) != AGGLO_OK) {
            break;
        }
    }
    agglo_progress_end(progress);
    out->steps = agglo_trainer_steps(r->trainer);
    out->seconds = agglo_now() - start;
    out->images_per_s =
        (double)((out->steps - out->resumed_from) * train->batch) / (out->seconds > 1e-9 ? out->seconds : 1e-9);
    out->wait_share = out->seconds > 1e-9 ? waited / out->seconds : 0;
    return err->status;
}

/* The finished student, unless it is there already. */
static agglo_status finish(run *r, agglo_train_result *out, agglo_err *err)
{
    char *path = agglo_path_join(r->dir, "student.safetensors", err);

    if (path == NULL) {
        return err->status;
    }
    out->up_to_date = out->resumed_from == r->recipe->train.steps && agglo_path_exists(path);
    if (!out->up_to_date) {
        agglo_trainer_export(r->trainer, path, err);
    }
    agglo_free(path);
    return err->status;
}

agglo_status agglo_run_train(const agglo_recipe *recipe, const char *dir, agglo_backend *backend,
                             agglo_train_result *out, agglo_err *err)
{
    run r = {.recipe = recipe, .dir = dir, .backend = backend, .lock = -1};
    char *metrics_path = NULL;

    memset(out, 0, sizeof *out);
    if (agglo_sources_open(&r.sources, recipe, recipe->datasets, recipe->n_datasets, recipe->cache, err) != AGGLO_OK ||
        lock_run(&r, err) != AGGLO_OK || hash_recipe(&r, err) != AGGLO_OK ||
        make_trainer(&r, &out->resumed_from, err) != AGGLO_OK || make_schedule(&r, err) != AGGLO_OK) {
        goto done;
    }
    out->steps = out->resumed_from;
    out->lost_shards = agglo_dataset_lost_shards(r.sources.dataset);
    if (write_recipe(&r, err) != AGGLO_OK || (metrics_path = agglo_path_join(dir, "metrics.jsonl", err)) == NULL ||
        agglo_metrics_file_open(&r.metrics, metrics_path, out->resumed_from, err) != AGGLO_OK) {
        goto done;
    }
    if (out->resumed_from < recipe->train.steps && (make_feed(&r, err) != AGGLO_OK || loop(&r, out, err) != AGGLO_OK)) {
        goto done;
    }
    finish(&r, out, err);
done:
    agglo_feed_free(r.feed);
    agglo_metrics_file_close(r.metrics);
    agglo_free(metrics_path);
    agglo_free(r.samples);
    agglo_order_free(r.order);
    agglo_trainer_free(r.trainer);
    agglo_sources_close(&r.sources);
    if (r.lock >= 0) {
        close(r.lock);
    }
    if (err->status != AGGLO_OK) {
        agglo_at(err, "%s", dir);
        agglo_doing(err, "cannot train");
    }
    return err->status;
}
