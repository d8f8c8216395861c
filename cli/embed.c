/* The pipeline from pictures to features; see embed.h. */
#include "cli/embed.h"

#include <math.h>
#include <string.h>

#include "base/log.h"
#include "base/ring.h"
#include "base/stop.h"
#include "ingest/render.h"

enum { KEEP_BYTES = 4 << 20 /* of a slot's encoded bytes: memory must not follow the largest picture */ };

/* A picture on its way through the ring. */
typedef struct job {
    agglo_picture picture;
    uint8_t *encoded;
    size_t room;
    uint8_t *pixels; /* size * size * 3 */
    agglo_extent extent;
    agglo_err reason; /* why it is left out */
} job;

/* One thread's renderer, made for the decode options of the pictures that it meets. */
typedef struct worker {
    agglo_renderer *renderer;
    agglo_decode_options options;
} worker;

typedef struct embed {
    const agglo_encoder *encoder;
    const agglo_embed_options *options;
    agglo_pictures *pictures;
    agglo_embed_sink sink;
    void *context;
    worker *workers;
    agglo_ring *ring;
    agglo_progress *progress;
    int batch, filled;
    agglo_picture *waiting; /* [batch] */
    uint8_t *pixels;        /* [batch, size, size, 3] */
    agglo_extent *extents;  /* [batch]; NULL: the model never pads */
    float *summary, *spatial;
    size_t n_pixels, n_spatial;
    uint64_t n_done, n_expected;
} embed;

int agglo_embed_batch(const agglo_encoder *encoder)
{
    const int64_t side = encoder->info.preprocess.size, batch = 32 * (int64_t)224 * 224 / (side * side);

    return batch < 1 ? 1 : batch > 32 ? 32 : (int)batch;
}

static bool same_options(const agglo_decode_options *a, const agglo_decode_options *b)
{
    return a->max_pixels == b->max_pixels && a->max_scans == b->max_scans && a->ignore_exif == b->ignore_exif &&
           a->png16_clip == b->png16_clip;
}

static agglo_status renderer_for(worker *w, const agglo_picture *picture, agglo_err *err)
{
    agglo_decode_options wanted = picture->has_decode ? picture->decode : agglo_decode_options_default();

    if (w->renderer == NULL || !same_options(&w->options, &wanted)) {
        agglo_renderer_free(w->renderer);
        w->renderer = NULL;
        w->options = wanted;
        return agglo_renderer_new(&w->renderer, &wanted, err);
    }
    return AGGLO_OK;
}

/* A picture that cannot be read is not a failure of the run: the job keeps the reason. */
static agglo_status prepare(void *context, void *slot, int number, agglo_err *err)
{
    embed *e = context;
    worker *w = &e->workers[number];
    job *j = slot;
    agglo_bytes bytes;

    agglo_err_clear(&j->reason);
    if ((j->pixels == NULL && (j->pixels = agglo_alloc(e->n_pixels, 1, err)) == NULL) ||
        renderer_for(w, &j->picture, err) != AGGLO_OK) {
        return err->status;
    }
    if (agglo_picture_read(&j->picture, &j->encoded, &j->room, &bytes, &j->reason) == AGGLO_OK) {
        agglo_render_whole(w->renderer, bytes, &e->encoder->info.preprocess, j->pixels, &j->extent, &j->reason);
    }
    if (j->room > KEEP_BYTES) {
        agglo_free(j->encoded);
        j->encoded = NULL;
        j->room = 0;
    }
    return AGGLO_OK;
}

static void clear_job(void *slot)
{
    job *j = slot;

    agglo_picture_clear(&j->picture);
    agglo_free(j->encoded);
    agglo_free(j->pixels);
}

static void reject(embed *e, const agglo_picture *picture, const agglo_err *reason)
{
    agglo_pictures_reject(e->pictures, picture->source, picture->key, reason);
}

static bool all_finite(const float *values, size_t n)
{
    bool finite = true;

    for (size_t i = 0; i < n; i++) {
        finite &= isfinite(values[i]) != 0;
    }
    return finite;
}

static agglo_status hand_out(embed *e, int i, agglo_err *err)
{
    const float *summary = e->summary + (size_t)i * (size_t)e->encoder->info.summary_dim,
                *spatial = e->spatial != NULL ? e->spatial + (size_t)i * e->n_spatial : NULL;
    agglo_err reason = {0};
    bool refused = false;

    if (!all_finite(summary, (size_t)e->encoder->info.summary_dim) ||
        (spatial != NULL && !all_finite(spatial, e->n_spatial))) {
        refused = true;
        agglo_fail(&reason, AGGLO_E_DATA, "the model's features of it are not finite");
    } else if (e->sink(e->context, &e->waiting[i], summary, spatial, &refused, &reason) != AGGLO_OK) {
        *err = reason;
        return err->status;
    }
    if (refused) {
        reject(e, &e->waiting[i], &reason);
    } else {
        e->n_done++;
    }
    return AGGLO_OK;
}

static agglo_status flush(embed *e, agglo_err *err)
{
    int size = e->encoder->info.preprocess.size;

    if (e->filled > 0) {
        e->encoder->encode(e->encoder->self, e->pixels, e->extents, e->filled, size, size, e->summary, e->spatial, err);
    }
    for (int i = 0; i < e->filled && err->status == AGGLO_OK; i++) {
        hand_out(e, i, err);
    }
    for (int i = 0; i < e->filled; i++) {
        agglo_picture_release(&e->waiting[i]);
    }
    e->filled = 0;
    return err->status;
}

static agglo_status collect(embed *e, job *j, agglo_err *err)
{
    agglo_picture swap;

    if (j->reason.status != AGGLO_OK) {
        reject(e, &j->picture, &j->reason);
        agglo_picture_release(&j->picture);
        return AGGLO_OK;
    }
    memcpy(e->pixels + (size_t)e->filled * e->n_pixels, j->pixels, e->n_pixels);
    if (e->extents != NULL) {
        e->extents[e->filled] = j->extent;
    }
    swap = e->waiting[e->filled]; /* the slot goes on with its memory */
    e->waiting[e->filled++] = j->picture;
    j->picture = swap;
    return e->filled == e->batch ? flush(e, err) : AGGLO_OK;
}

/* A folder's or a tar's number of pictures is known once it is open. */
static void show_total(embed *e)
{
    uint64_t n = agglo_pictures_expected(e->pictures);

    if (n != e->n_expected) {
        e->n_expected = n;
        agglo_progress_total(e->progress, n);
    }
}

static agglo_status run(embed *e, agglo_err *err)
{
    bool more = true;

    while (err->status == AGGLO_OK) {
        void *slot;

        while (more && err->status == AGGLO_OK && (slot = agglo_ring_claim(e->ring, false)) != NULL) {
            if (agglo_pictures_next(e->pictures, &((job *)slot)->picture, &more, err) == AGGLO_OK && more) {
                agglo_ring_submit(e->ring);
                show_total(e);
            } /* a claimed slot that is not submitted is simply claimed again */
        }
        if (err->status != AGGLO_OK || agglo_ring_take(e->ring, &slot, err) != AGGLO_OK || slot == NULL) {
            break;
        }
        collect(e, slot, err);
        agglo_ring_release(e->ring);
        agglo_progress_add(e->progress, 1);
        if (err->status == AGGLO_OK) {
            agglo_stop_check(err);
        }
    }
    return err->status == AGGLO_OK ? flush(e, err) : err->status;
}

static agglo_status make(embed *e, agglo_err *err)
{
    const agglo_encoder_info *info = &e->encoder->info;
    size_t side = (size_t)info->preprocess.size, grid = side / (size_t)info->patch, batch;

    e->batch = e->options->batch > 0 ? e->options->batch : agglo_embed_batch(e->encoder);
    batch = (size_t)e->batch;
    e->n_pixels = side * side * 3;
    e->n_spatial = grid * grid * (size_t)info->spatial_dim;
    if ((e->workers = agglo_alloc((size_t)e->options->n_workers, sizeof *e->workers, err)) == NULL ||
        (e->waiting = agglo_alloc(batch, sizeof *e->waiting, err)) == NULL ||
        (e->pixels = agglo_alloc(batch, e->n_pixels, err)) == NULL ||
        (info->preprocess.fit == AGGLO_FIT_PAD && (e->extents = agglo_alloc(batch, sizeof *e->extents, err)) == NULL) ||
        (e->summary = agglo_alloc(batch * (size_t)info->summary_dim, sizeof *e->summary, err)) == NULL ||
        (e->options->spatial && (e->spatial = agglo_alloc(batch * e->n_spatial, sizeof *e->spatial, err)) == NULL)) {
        return err->status;
    }
    /* while one batch is in the model the next one is decoded */
    return agglo_ring_new(&e->ring, e->batch + 2 * e->options->n_workers, sizeof(job), e->options->n_workers, prepare,
                          e, err);
}

agglo_status agglo_embed(const agglo_encoder *encoder, agglo_pictures *pictures, const agglo_embed_options *options,
                         agglo_embed_sink sink, void *context, uint64_t *n_done, agglo_err *err)
{
    embed e = {.encoder = encoder, .options = options, .pictures = pictures, .sink = sink, .context = context};

    AGGLO_ASSERT(options->n_workers >= 1 && options->batch >= 0);
    if (make(&e, err) == AGGLO_OK) {
        e.n_expected = agglo_pictures_expected(pictures);
        e.progress = agglo_progress_begin(options->label, "images", e.n_expected);
        run(&e, err);
        agglo_progress_end(e.progress);
    }
    agglo_ring_free(e.ring, clear_job);
    for (int i = 0; e.waiting != NULL && i < e.batch; i++) {
        agglo_picture_clear(&e.waiting[i]);
    }
    for (int i = 0; e.workers != NULL && i < options->n_workers; i++) {
        agglo_renderer_free(e.workers[i].renderer);
    }
    agglo_free(e.workers);
    agglo_free(e.waiting);
    agglo_free(e.pixels);
    agglo_free(e.extents);
    agglo_free(e.summary);
    agglo_free(e.spatial);
    *n_done = e.n_done;
    return err->status == AGGLO_OK ? AGGLO_OK : agglo_doing(err, "cannot embed the pictures");
}
