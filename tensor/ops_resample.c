/* The front of the resampling operators: checks of shapes, and the weights that a backend keeps. */
#include "tensor/ops_resample.h"

#include "base/alloc.h"
#include "tensor/ops_check.h"

#include <string.h>

typedef struct kept_axis {
    agglo_taps_key key;
    bool transposed;
    uint64_t last_used; /* 0: empty */
    agglo_axis axis;
    void *block; /* of the backend: first, count, weight */
} kept_axis;

struct agglo_resample_cache {
    uint64_t clock;
    kept_axis kept[AGGLO_RESAMPLE_CACHED];
};

void agglo_resample_cache_free(agglo_backend *be)
{
    for (int i = 0; be->resample_cache != NULL && i < AGGLO_RESAMPLE_CACHED; i++) {
        agglo_backend_release(be, be->resample_cache->kept[i].block);
    }
    agglo_free(be->resample_cache);
    be->resample_cache = NULL;
}

static bool same_key(const agglo_taps_key *a, const agglo_taps_key *b)
{
    return a->mode == b->mode && a->antialias == b->antialias && a->align_corners == b->align_corners &&
           a->n_in == b->n_in && a->n_out == b->n_out && a->scale == b->scale;
}

static bool is_identity(const agglo_taps *t)
{
    if (t->n_in != t->n_out) {
        return false;
    }
    for (int64_t o = 0; o < t->n_out; o++) {
        for (int32_t k = 0; k < t->count[o]; k++) {
            if (t->weight[o * t->max_taps + k] != (t->first[o] + k == o ? 1.0 : 0.0)) {
                return false;
            }
        }
        if (o < t->first[o] || o >= t->first[o] + t->count[o]) {
            return false;
        }
    }
    return true;
}

/* Put the weights of `taps` into the backend's memory. */
static agglo_status keep(agglo_backend *be, kept_axis *to, const agglo_taps *taps, agglo_err *err)
{
    size_t n = (size_t)taps->n_out, n_weights = n * (size_t)taps->max_taps, n_bytes = (2 * n + n_weights) * 4;
    uint8_t *host = agglo_alloc(n_bytes, 1, err);
    float *weight;

    if (host == NULL) {
        return err->status;
    }
    to->block = agglo_backend_alloc(be, n_bytes, err);
    if (to->block != NULL) {
        memcpy(host, taps->first, n * 4);
        memcpy(host + 4 * n, taps->count, n * 4);
        weight = (float *)(host + 8 * n);
        for (size_t i = 0; i < n_weights; i++) {
            weight[i] = (float)taps->weight[i];
        }
        agglo_upload(be, to->block, host, n_bytes);
        to->axis = (agglo_axis){.n_in = taps->n_in,
                                .n_out = taps->n_out,
                                .max_taps = taps->max_taps,
                                .identity = is_identity(taps),
                                .first = to->block,
                                .count = (const int32_t *)to->block + n,
                                .weight = (const float *)to->block + 2 * n};
    }
    agglo_free(host);
    return err->status;
}

/* NULL, failure latched, without memory. The result stays for the next AGGLO_RESAMPLE_CACHED - 1 other axes. */
static const agglo_axis *axis_of(agglo_backend *be, const agglo_taps_key *key, bool transposed)
{
    struct agglo_resample_cache *cache = be->resample_cache;
    kept_axis *at = NULL;
    agglo_taps taps = {0}, turned = {0};
    agglo_err err = {0};

    if (cache == NULL) {
        cache = agglo_alloc(1, sizeof *cache, &err);
        if (cache == NULL) {
            goto fail;
        }
        be->resample_cache = cache;
    }
    for (int i = 0; i < AGGLO_RESAMPLE_CACHED; i++) {
        kept_axis *k = &cache->kept[i];

        if (k->last_used > 0 && k->transposed == transposed && same_key(&k->key, key)) {
            k->last_used = ++cache->clock;
            return &k->axis;
        }
        at = at == NULL || k->last_used < at->last_used ? k : at;
    }
    agglo_backend_release(be, at->block);
    *at = (kept_axis){0};
    if (agglo_taps_make(&taps, key, &err) != AGGLO_OK ||
        (transposed && agglo_taps_transpose(&turned, &taps, &err) != AGGLO_OK) ||
        keep(be, at, transposed ? &turned : &taps, &err) != AGGLO_OK) {
        agglo_taps_clear(&taps);
        agglo_taps_clear(&turned);
        goto fail;
    }
    agglo_taps_clear(&taps);
    agglo_taps_clear(&turned);
    at->key = *key;
    at->transposed = transposed;
    at->last_used = ++cache->clock;
    return &at->axis;
fail:
    agglo_doing(&err, "cannot resample");
    agglo_backend_latch(be, &err);
    return NULL;
}

static void resample(agglo_backend *be, const agglo_resample_rule *rule, const agglo_tensor *small,
                     const agglo_tensor *large, bool transposed, const agglo_tensor *x, bool accumulate,
                     agglo_tensor *y)
{
    agglo_taps_key key = {rule->mode,      rule->antialias, rule->align_corners,
                          small->shape[1], large->shape[1], rule->scale_h};
    const agglo_axis *down, *across;

    down = axis_of(be, &key, transposed);
    key.n_in = small->shape[2];
    key.n_out = large->shape[2];
    key.scale = rule->scale_w;
    across = down == NULL ? NULL : axis_of(be, &key, transposed);
    if (across != NULL && agglo_ops_ready(be)) {
        be->ops->resample(be, down, across, x, accumulate, y);
    }
}

static bool maps(const agglo_tensor *a, const agglo_tensor *b)
{
    return agglo_ops_stored(a) && agglo_ops_stored(b) && a->dtype == b->dtype && a->rank == 4 && b->rank == 4 &&
           a->shape[0] == b->shape[0] && a->shape[3] == b->shape[3] && a->data != b->data;
}

void agglo_resample(agglo_backend *be, const agglo_resample_rule *rule, const agglo_tensor *x, agglo_tensor *y)
{
    AGGLO_ASSERT(maps(x, y));
    if (agglo_ops_ready(be)) {
        resample(be, rule, x, y, false, x, false, y);
    }
}

void agglo_resample_bwd(agglo_backend *be, const agglo_resample_rule *rule, const agglo_tensor *d_y, bool accumulate,
                        agglo_tensor *d_x)
{
    AGGLO_ASSERT(maps(d_y, d_x));
    if (agglo_ops_ready(be)) {
        resample(be, rule, d_x, d_y, true, d_y, accumulate, d_x);
    }
}

static bool crop(const agglo_tensor *table, const agglo_tensor *boxes, const agglo_tensor *y)
{
    return agglo_ops_stored(table) && table->dtype == AGGLO_F32 && table->rank == 3 && agglo_ops_stored(boxes) &&
           boxes->dtype == AGGLO_F32 && boxes->rank == 2 && boxes->shape[1] == 4 && agglo_ops_stored(y) &&
           y->rank == 4 && y->shape[0] == boxes->shape[0] && y->shape[3] == table->shape[2] && y->data != table->data;
}

void agglo_crop_grid(agglo_backend *be, const agglo_tensor *table, const agglo_tensor *boxes, agglo_tensor *y)
{
    AGGLO_ASSERT(crop(table, boxes, y));
    if (agglo_ops_ready(be)) {
        be->ops->crop_grid(be, table, boxes, y);
    }
}

void agglo_crop_grid_bwd(agglo_backend *be, const agglo_tensor *d_y, const agglo_tensor *boxes, agglo_tensor *d_table)
{
    AGGLO_ASSERT(crop(d_table, boxes, d_y));
    if (agglo_ops_ready(be)) {
        be->ops->crop_grid_bwd(be, d_y, boxes, d_table);
    }
}
