/* One unit of the teacher pass: render on all cores, encode in batches, write in key order; see pass.h. */
#include "base/log.h"
#include "base/pool.h"
#include "base/ring.h"
#include "base/stop.h"
#include "ingest/render.h"
#include "teachers/pass.h"

#include <stdio.h>
#include <string.h>

/* What the workers share; read-only but for each worker's renderer. */
typedef struct rendering {
    const agglo_dataset *dataset;
    const agglo_view_config *group;
    uint32_t shard;
    int view_first, n_views;
    int size;
    agglo_filter filter;
    agglo_renderer **renderers; /* one per worker */
} rendering;

/* One sample on its way through the ring. Buffers stay with the slot. */
typedef struct slot {
    uint32_t ordinal;
    agglo_sample sample;
    agglo_reason reason; /* why it could not be decoded, NULL if it was */
    bool is_sample_fault;
    agglo_view *views; /* [n_views] */
    uint64_t *hashes;  /* [n_views] */
    uint8_t *pixels;   /* [n_views, size, size, 3] */
} slot;

/* One view that waits in the batch. */
typedef struct item {
    uint32_t ordinal;
    int view;
    agglo_view box;
    uint64_t pixel_hash;
    const char *key; /* borrowed from the dataset */
} item;

typedef struct unit_run {
    const agglo_encoder *encoder;
    agglo_unit_writer *writer;
    agglo_teach_report *report;
    agglo_progress *progress;
    agglo_record_info info; /* all but the view */
    int n_batch, n_items;
    item *items;              /* [n_batch] */
    uint8_t *pixels;          /* [n_batch, size, size, 3] */
    float *summary, *spatial; /* [n_batch, ...] */
    uint8_t *record;
    size_t n_pixels, n_spatial; /* of one view */
    bool is_shard_fault;
} unit_run;

static void slot_clear(void *at)
{
    slot *s = (slot *)at;

    agglo_free(s->views);
    agglo_free(s->hashes);
    agglo_free(s->pixels);
}

/* A sample's own fault, by status: the others are the machine's, and leaving the sample out for them would make equal work unequal. */
static bool is_sample_fault(agglo_status status)
{
    return status == AGGLO_E_DATA || status == AGGLO_E_UNSUPPORTED || status == AGGLO_E_MISMATCH;
}

static agglo_status render(void *context, void *at, int worker, agglo_err *err)
{
    const rendering *r = (const rendering *)context;
    slot *s = (slot *)at;
    size_t n = (size_t)r->n_views, n_pixels = (size_t)r->size * (size_t)r->size * 3;
    agglo_reason reason = NULL;
    agglo_err ignored = {0};
    agglo_image image;
    agglo_status status;

    s->reason = NULL;
    s->is_sample_fault = false;
    if (s->pixels == NULL) {
        s->views = (agglo_view *)agglo_alloc(n, sizeof *s->views, err);
        s->hashes = (uint64_t *)agglo_alloc(n, sizeof *s->hashes, err);
        s->pixels = (uint8_t *)agglo_alloc(n, n_pixels, err);
        if (s->views == NULL || s->hashes == NULL || s->pixels == NULL) {
            slot_clear(s);
            s->views = NULL;
            s->hashes = NULL;
            s->pixels = NULL;
            return err->status;
        }
    }
    if (agglo_dataset_sample(r->dataset, r->shard, s->ordinal, &s->sample, err) != AGGLO_OK) {
        return err->status;
    }
    for (int v = 0; v < r->n_views; v++) {
        agglo_view_draw(r->group, s->sample.uid, r->view_first + v, s->sample.width, s->sample.height, &s->views[v]);
    }
    status = agglo_render_views(r->renderers[worker], s->sample.image, s->sample.width, s->sample.height, s->views,
                                r->n_views, (agglo_view_decode)r->group->decode, r->filter, r->size, r->size, s->pixels,
                                err);
    if (status != AGGLO_OK) {
        s->is_sample_fault = is_sample_fault(status);
        if (s->is_sample_fault) {
            /* once more for its stable short reason */
            agglo_render_decode(r->renderers[worker], s->sample.image, &image, &reason, &ignored);
            s->reason = reason != NULL ? reason : agglo_status_name(status);
        }
        return status;
    }
    for (size_t v = 0; v < n; v++) {
        s->hashes[v] = agglo_pixel_hash(s->pixels + v * n_pixels, r->size, r->size);
    }
    return AGGLO_OK;
}

/* Encode the batch and write its records. */
static agglo_status flush(unit_run *u, agglo_err *err)
{
    int size = u->info.input_w;
    agglo_record_info info = u->info;
    agglo_record parsed;
    size_t n_bytes;

    if (u->n_items == 0) {
        return AGGLO_OK;
    }
    if (agglo_stop_check(err) != AGGLO_OK || u->encoder->encode(u->encoder->self, u->pixels, NULL, u->n_items, size,
                                                                size, u->summary, u->spatial, err) != AGGLO_OK) {
        return err->status;
    }
    for (int i = 0; i < u->n_items; i++) {
        const item *it = &u->items[i];
        agglo_bytes record;

        info.x = it->box.x;
        info.y = it->box.y;
        info.w = it->box.w;
        info.h = it->box.h;
        info.flip = it->box.flip;
        info.pixel_hash = it->pixel_hash;
        if (agglo_record_encode(&info, u->summary + (size_t)i * info.summary_dim, u->spatial + (size_t)i * u->n_spatial,
                                u->record, &n_bytes, err) != AGGLO_OK) {
            u->is_shard_fault = true;
            return agglo_at(err, "sample %s (%u), view %d", it->key, it->ordinal, it->view);
        }
        record = (agglo_bytes){u->record, n_bytes};
        if (agglo_unit_writer_put(u->writer, it->ordinal, it->view, record, err) != AGGLO_OK ||
            agglo_record_parse(record, &parsed, err) != AGGLO_OK) {
            return err->status;
        }
        u->report->bytes += n_bytes;
        u->report->spatial_bytes += parsed.spatial.size;
        u->report->spatial_fp16_bytes += 2 * u->n_spatial;
        u->report->views++;
    }
    agglo_progress_add(u->progress, (uint64_t)u->n_items);
    u->n_items = 0;
    return AGGLO_OK;
}

/* Views of a rendered sample into the batch, which is encoded as often as it is full. */
static agglo_status collect(unit_run *u, const rendering *r, const slot *s, agglo_err *err)
{
    for (int v = 0; v < r->n_views; v++) {
        memcpy(u->pixels + (size_t)u->n_items * u->n_pixels, s->pixels + (size_t)v * u->n_pixels, u->n_pixels);
        u->items[u->n_items++] = (item){
            .ordinal = s->ordinal,
            .view = r->view_first + v,
            .box = s->views[v],
            .pixel_hash = s->hashes[v],
            .key = s->sample.key,
        };
        if (u->n_items == u->n_batch && flush(u, err) != AGGLO_OK) {
            return err->status;
        }
    }
    return AGGLO_OK;
}

/* Hand samples out in order, take them back in order. */
static agglo_status run_samples(unit_run *u, agglo_ring *ring, const rendering *r, uint32_t n_samples, agglo_err *err)
{
    uint32_t next = 0;

    for (uint32_t taken = 0; taken < n_samples; taken++) {
        void *at;
        slot *s;
        agglo_status status;

        while (next < n_samples && (at = agglo_ring_claim(ring, false)) != NULL) {
            ((slot *)at)->ordinal = next++;
            agglo_ring_submit(ring);
        }
        status = agglo_ring_take(ring, &at, err);
        s = (slot *)at;
        if (status == AGGLO_OK) {
            status = collect(u, r, s, err);
        } else if (s->is_sample_fault) {
            agglo_err_clear(err);
            status = agglo_unit_writer_skip(u->writer, s->ordinal, s->sample.key, s->reason, err);
            u->report->samples_skipped++;
            agglo_progress_add(u->progress, (uint64_t)r->n_views);
        } else {
            u->is_shard_fault = status == AGGLO_E_IO || status == AGGLO_E_DATA || status == AGGLO_E_NOT_FOUND;
        }
        agglo_ring_release(ring);
        if (status == AGGLO_OK) {
            status = agglo_stop_check(err);
        }
        if (status != AGGLO_OK) {
            return status;
        }
    }
    return flush(u, err);
}

static void unit_run_clear(unit_run *u)
{
    agglo_unit_writer_abort(u->writer);
    agglo_free(u->items);
    agglo_free(u->pixels);
    agglo_free(u->summary);
    agglo_free(u->spatial);
    agglo_free(u->record);
}

static agglo_status unit_run_init(unit_run *u, const agglo_encoder *encoder, const agglo_teach_options *options,
                                  agglo_err *err)
{
    const agglo_encoder_info *info = &encoder->info;
    int size = info->preprocess.size, grid = size / info->patch;
    size_t n = (size_t)(options->batch > 0 ? options->batch : 32);

    u->encoder = encoder;
    u->n_batch = (int)n;
    u->n_pixels = (size_t)size * (size_t)size * 3;
    u->n_spatial = (size_t)grid * (size_t)grid * (size_t)info->spatial_dim;
    u->info = (agglo_record_info){
        .codec = options->codec,
        .grid_h = (uint16_t)grid,
        .grid_w = (uint16_t)grid,
        .summary_dim = (uint16_t)info->summary_dim,
        .spatial_dim = (uint16_t)info->spatial_dim,
        .input_w = (uint16_t)size,
        .input_h = (uint16_t)size,
    };
    u->items = (item *)agglo_alloc(n, sizeof *u->items, err);
    u->pixels = (uint8_t *)agglo_alloc(n, u->n_pixels, err);
    u->summary = (float *)agglo_alloc(n, (size_t)info->summary_dim * sizeof *u->summary, err);
    u->spatial = (float *)agglo_alloc(n, u->n_spatial * sizeof *u->spatial, err);
    u->record = (uint8_t *)agglo_alloc(1, agglo_record_max_bytes(&u->info), err);
    return u->items != NULL && u->pixels != NULL && u->summary != NULL && u->spatial != NULL && u->record != NULL
               ? AGGLO_OK
               : err->status;
}

agglo_status agglo_teach_unit(const agglo_dataset *dataset, const agglo_encoder *encoder,
                              const agglo_teach_options *options, const agglo_unit_id *id,
                              const agglo_view_config *group, agglo_progress *progress, agglo_teach_report *report,
                              bool *shard_fault, agglo_err *err)
{
    const agglo_shard_info *shard = agglo_dataset_shard(dataset, id->shard);
    agglo_decode_options decode = agglo_dataset_decode_options(dataset);
    int n_workers = options->threads > 0 ? options->threads : agglo_cores(), n_slots;
    agglo_teach_report counted = {0};
    unit_run u = {.report = &counted, .progress = progress};
    rendering r = {
        .dataset = dataset,
        .group = group,
        .shard = id->shard,
        .view_first = id->view_first,
        .n_views = id->view_last - id->view_first + 1,
        .size = encoder->info.preprocess.size,
        .filter = AGGLO_VIEW_FILTER,
    };
    agglo_ring *ring = NULL;
    agglo_provenance provenance;
    agglo_status status;

    if (agglo_dataset_shard_status(dataset, id->shard, err) != AGGLO_OK ||
        agglo_dataset_shard_verify(dataset, id->shard, err) != AGGLO_OK) {
        u.is_shard_fault = err->status != AGGLO_E_MEMORY; /* and the shard is named */
        goto done;
    }
    r.renderers = (agglo_renderer **)agglo_alloc((size_t)n_workers, sizeof(agglo_renderer *), err);
    if (r.renderers == NULL || unit_run_init(&u, encoder, options, err) != AGGLO_OK ||
        agglo_teach_provenance(dataset, id->shard, group, &encoder->info, options->codec, &provenance, err) !=
            AGGLO_OK) {
        goto fail;
    }
    for (int i = 0; i < n_workers; i++) {
        if (agglo_renderer_new(&r.renderers[i], &decode, err) != AGGLO_OK) {
            goto fail;
        }
    }
    /* the next batch is rendered while this one is encoded */
    n_slots = 2 * ((u.n_batch + r.n_views - 1) / r.n_views) + n_workers;
    if (agglo_unit_writer_new(&u.writer, options->cache, options->scratch, id, &provenance,
                              agglo_record_max_bytes(&u.info), (uint64_t)shard->n_samples * (uint64_t)r.n_views,
                              err) != AGGLO_OK ||
        agglo_ring_new(&ring, n_slots, sizeof(slot), n_workers, render, &r, err) != AGGLO_OK ||
        run_samples(&u, ring, &r, shard->n_samples, err) != AGGLO_OK) {
        goto fail;
    }
    status = agglo_unit_writer_commit(u.writer, NULL, err);
    u.writer = NULL;
    if (status != AGGLO_OK) {
        goto fail;
    }
    report->views += counted.views;
    report->samples_skipped += counted.samples_skipped;
    report->bytes += counted.bytes;
    report->spatial_bytes += counted.spatial_bytes;
    report->spatial_fp16_bytes += counted.spatial_fp16_bytes;
    goto done;
fail:
    agglo_at(err, "%s", shard->path);
done:
    agglo_ring_free(ring, slot_clear);
    for (int i = 0; r.renderers != NULL && i < n_workers; i++) {
        agglo_renderer_free(r.renderers[i]);
    }
    agglo_free(r.renderers);
    agglo_dataset_shard_rest(dataset, id->shard);
    unit_run_clear(&u);
    if (shard_fault != NULL) {
        *shard_fault = u.is_shard_fault;
    }
    if (err->status == AGGLO_OK) {
        return AGGLO_OK;
    }
    return agglo_doing(err, "cannot teach unit %s/%s-%06u-v%d-%d", id->teacher, id->group, id->shard, id->view_first,
                       id->view_last);
}
