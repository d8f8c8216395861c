/* Features over a dataset: pictures are prepared on a ring of workers, in order, and encoded in batches. */
#include "cli/features.h"

#include <string.h>

#include "base/log.h"
#include "base/ring.h"
#include "base/stop.h"
#include "ingest/render.h"
#include "student/model.h"
#include "teachers/teacher.h"

enum { BATCH = 32 };

agglo_status agglo_encoder_open(agglo_encoder *out, agglo_backend *backend, const char *path, const char *head,
                                int size, int max_batch, agglo_err *err)
{
    agglo_weights *weights = NULL;
    agglo_teacher_options options = agglo_teacher_options_default();
    bool student;

    if (agglo_weights_open(&weights, path, err) != AGGLO_OK) {
        return err->status;
    }
    student = agglo_student_is(agglo_weights_file(weights, 0));
    agglo_weights_close(weights);
    if (student) {
        return agglo_student_open(out, backend, path, head, size, max_batch, err);
    }
    if (head != NULL) {
        agglo_fail(err, AGGLO_E_CONFIG, "--head '%s' asks for a student's head, and this is a teacher", head);
        return agglo_at(err, "%s", path);
    }
    options.weights = path;
    options.size = size;
    options.max_batch = max_batch;
    return agglo_teacher_open(out, backend, &options, err);
}

typedef struct job {
    agglo_sample sample;
    uint8_t *pixels; /* size * size * 3, the slot's own */
    agglo_extent extent;
    agglo_status status;
} job;

typedef struct workers {
    agglo_renderer **renderers;
    const agglo_preprocess *preprocess;
} workers;

/* A picture that cannot be read is not a failure of the evaluation: the job keeps its status. */
static agglo_status prepare(void *context, void *slot, int worker, agglo_err *err)
{
    workers *w = context;
    job *j = slot;
    size_t side = (size_t)w->preprocess->size;
    agglo_err reason = {0};

    if (j->pixels == NULL && (j->pixels = agglo_alloc(side * side, 3, err)) == NULL) {
        return err->status;
    }
    j->status =
        agglo_render_whole(w->renderers[worker], j->sample.image, w->preprocess, j->pixels, &j->extent, &reason);
    if (j->status != AGGLO_OK) {
        char line[512];

        agglo_log(AGGLO_LOG_WARN, "left out %s: %s", j->sample.key, agglo_err_line(&reason, line, sizeof line));
    }
    return AGGLO_OK;
}

static void clear_job(void *slot)
{
    agglo_free(((job *)slot)->pixels);
}

typedef struct collector {
    agglo_features *out;
    const agglo_encoder *encoder;
    uint8_t *pixels; /* [BATCH, size, size, 3] */
    agglo_extent extents[BATCH];
    int filled;
} collector;

static agglo_status flush(collector *c, agglo_err *err)
{
    int size = c->encoder->info.preprocess.size;
    const agglo_extent *extents = c->encoder->info.preprocess.fit == AGGLO_FIT_PAD ? c->extents : NULL;

    if (c->filled > 0 && c->encoder->encode(c->encoder->self, c->pixels, extents, c->filled, size, size,
                                            c->out->summary + c->out->n * c->out->dim, NULL, err) != AGGLO_OK) {
        return err->status;
    }
    c->out->n += c->filled;
    c->filled = 0;
    return AGGLO_OK;
}

static agglo_status collect(collector *c, const job *j, agglo_err *err)
{
    size_t n_bytes = (size_t)c->encoder->info.preprocess.size * (size_t)c->encoder->info.preprocess.size * 3;

    if (j->status != AGGLO_OK) {
        c->out->n_bad++;
        return AGGLO_OK;
    }
    memcpy(c->pixels + (size_t)c->filled * n_bytes, j->pixels, n_bytes);
    c->extents[c->filled] = j->extent;
    c->out->labels[c->out->n + c->filled] = j->sample.label;
    c->filled++;
    return c->filled == BATCH ? flush(c, err) : AGGLO_OK;
}

typedef struct cursor {
    uint32_t shard, ordinal;
    bool named; /* that this shard has samples that cannot be read */
} cursor;

/* The next labelled sample at or behind the cursor, which moves past it; false at the end. */
static bool next_sample(const agglo_dataset *dataset, cursor *at, agglo_features *out, agglo_sample *sample)
{
    for (; at->shard < agglo_dataset_shards(dataset); *at = (cursor){.shard = at->shard + 1}) {
        uint32_t n = agglo_dataset_shard(dataset, at->shard)->n_samples;

        while (at->ordinal < n) {
            agglo_err reason = {0};

            if (agglo_dataset_sample(dataset, at->shard, at->ordinal++, sample, &reason) != AGGLO_OK) {
                char line[512];

                if (!at->named) {
                    agglo_log(AGGLO_LOG_WARN, "left out: %s", agglo_err_line(&reason, line, sizeof line));
                }
                at->named = true;
                out->n_bad++;
            } else if (sample->label < 0) {
                out->n_unlabelled++;
            } else {
                return true;
            }
        }
    }
    return false;
}

agglo_status agglo_features_of(agglo_features *out, const agglo_encoder *encoder, const agglo_dataset *dataset,
                               int n_workers, agglo_err *err)
{
    agglo_decode_options decode = agglo_dataset_decode_options(dataset);
    size_t n_samples = (size_t)agglo_dataset_samples(dataset), side = (size_t)encoder->info.preprocess.size;
    workers w = {.preprocess = &encoder->info.preprocess};
    collector c = {.out = out, .encoder = encoder};
    agglo_ring *ring = NULL;
    agglo_progress *progress = NULL;
    cursor at = {0};
    bool more = true;

    memset(out, 0, sizeof *out);
    out->n_lost_shards = agglo_dataset_lost_shards(dataset);
    out->dim = encoder->info.summary_dim;
    if ((out->summary = agglo_alloc(n_samples * (size_t)out->dim, sizeof *out->summary, err)) == NULL ||
        (out->labels = agglo_alloc(n_samples, sizeof *out->labels, err)) == NULL ||
        (c.pixels = agglo_alloc(BATCH * side * side, 3, err)) == NULL ||
        (w.renderers = agglo_alloc((size_t)n_workers, sizeof *w.renderers, err)) == NULL) {
        goto done;
    }
    for (int i = 0; i < n_workers; i++) {
        if (agglo_renderer_new(&w.renderers[i], &decode, err) != AGGLO_OK) {
            goto done;
        }
    }
    if (agglo_ring_new(&ring, 4 * n_workers, sizeof(job), n_workers, prepare, &w, err) != AGGLO_OK) {
        goto done;
    }
    progress = agglo_progress_begin("embed", "images", n_samples);
    while (err->status == AGGLO_OK) {
        void *slot;

        while (more && (slot = agglo_ring_claim(ring, false)) != NULL) {
            more = next_sample(dataset, &at, out, &((job *)slot)->sample);
            if (!more) {
                break; /* a claimed slot that is not submitted is simply claimed again */
            }
            agglo_ring_submit(ring);
        }
        if (agglo_ring_take(ring, &slot, err) != AGGLO_OK || slot == NULL) {
            break;
        }
        collect(&c, slot, err);
        agglo_ring_release(ring);
        agglo_progress_add(progress, 1);
        if (err->status == AGGLO_OK) {
            agglo_stop_check(err);
        }
    }
    if (err->status == AGGLO_OK) {
        flush(&c, err);
    }
done:
    agglo_progress_end(progress);
    agglo_ring_free(ring, clear_job);
    for (int i = 0; w.renderers != NULL && i < n_workers; i++) {
        agglo_renderer_free(w.renderers[i]);
    }
    agglo_free(w.renderers);
    agglo_free(c.pixels);
    if (err->status != AGGLO_OK) {
        agglo_features_clear(out);
        agglo_doing(err, "cannot embed the dataset");
    }
    return err->status;
}

void agglo_features_clear(agglo_features *features)
{
    agglo_free(features->summary);
    agglo_free(features->labels);
    memset(features, 0, sizeof *features);
}
