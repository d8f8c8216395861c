/* The vision transformer that CLIP and DINOv2 share; see vit_encoder_impl.h. */
#include "teachers/vit_encoder_impl.h"

#include "teachers/load.h"
#include "teachers/tower_impl.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

struct agglo_vit_encoder {
    agglo_tower tower;
    agglo_vit_encoder_config config;
    agglo_param *cls, *pos, *registers, *patch_w, *patch_b, *pre_w, *pre_b, *norm_w, *norm_b, *proj_w;
    agglo_vit_block *blocks;
    float *table;           /* host: rows 1.. of the position table [grid, grid, dim] */
    agglo_tensor prefix;    /* device [1 + registers, dim]: class token with its position, then the registers */
    agglo_tensor resampled; /* device [h * w, dim], of the planned shape */
};

/* The tensors of one run, taken from the slab in this order. */
typedef struct run {
    agglo_tensor pixels, patches, embedded, x, normed, spatial, cls, projected;
    agglo_tensor f32; /* an output on its way to the host; only where they are not F32 already */
    agglo_vit_block_kept kept;
} run;

static agglo_status declare(agglo_vit_encoder *e, agglo_err *err)
{
    const agglo_teacher_config *m = &e->config.model;
    int64_t d = m->dim, grid = m->image / m->patch;
    const struct {
        agglo_param **at;
        const char *name;
        int64_t rows, cols; /* rows 0: not in this model */
        bool matrix;        /* of a product: in the storage type */
    } table[] = {
        {&e->cls, "cls", d, 0, false},
        {&e->pos, "pos", 1 + grid * grid, d, false},
        {&e->patch_w, "patch.weight", d, 3 * (int64_t)m->patch * m->patch, true},
        {&e->norm_w, "norm.weight", d, 0, false},
        {&e->norm_b, "norm.bias", d, 0, false},
        {&e->patch_b, "patch.bias", e->config.patch_bias ? d : 0, 0, false},
        {&e->registers, "registers", m->registers, d, false},
        {&e->pre_w, "pre_norm.weight", e->config.pre_norm ? d : 0, 0, false},
        {&e->pre_b, "pre_norm.bias", e->config.pre_norm ? d : 0, 0, false},
        {&e->proj_w, "proj.weight", m->proj, d, true},
    };
    char prefix[32];

    for (size_t i = 0; i < AGGLO_COUNT(table); i++) {
        if (table[i].rows > 0) {
            *table[i].at =
                agglo_tower_add(&e->tower, table[i].name, table[i].matrix, table[i].rows, table[i].cols, err);
            if (*table[i].at == NULL) {
                return err->status;
            }
        }
    }
    for (int i = 0; i < m->depth; i++) {
        snprintf(prefix, sizeof prefix, "blocks.%d.", i);
        if (agglo_vit_block_declare(&e->blocks[i], &e->tower.block, prefix, e->tower.params, err) != AGGLO_OK) {
            return err->status;
        }
    }
    return agglo_params_allocate(e->tower.params, err);
}

/* Class token with its position, then the registers (which have none): one device tensor for every batch. */
static agglo_status make_prefix(agglo_vit_encoder *e, agglo_err *err)
{
    const agglo_teacher_config *m = &e->config.model;
    size_t d = (size_t)m->dim, grid = (size_t)(m->image / m->patch), n_prefix = 1 + (size_t)m->registers;
    float *rows = (float *)agglo_alloc(n_prefix * d + d, sizeof *rows, err), *position;
    void *device;

    e->table = (float *)agglo_alloc(grid * grid * d, sizeof *e->table, err);
    if (rows == NULL || e->table == NULL) {
        goto fail;
    }
    device = agglo_backend_alloc(e->tower.backend, n_prefix * d * sizeof *rows, err);
    if (device == NULL) {
        goto fail;
    }
    e->prefix = agglo_tensor_2d(device, AGGLO_F32, (int64_t)n_prefix, m->dim);
    position = rows + n_prefix * d;
    agglo_download(e->tower.backend, rows, e->cls->value.data, d * sizeof *rows);
    if (e->registers != NULL) {
        agglo_download(e->tower.backend, rows + d, e->registers->value.data, (n_prefix - 1) * d * sizeof *rows);
    }
    agglo_download(e->tower.backend, position, e->pos->value.data, d * sizeof *rows);
    agglo_download(e->tower.backend, e->table, (const float *)e->pos->value.data + d, grid * grid * d * sizeof *rows);
    for (size_t c = 0; c < d; c++) {
        rows[c] += position[c];
    }
    agglo_upload(e->tower.backend, device, rows, n_prefix * d * sizeof *rows);
    if (agglo_backend_check(e->tower.backend, err) != AGGLO_OK) {
        goto fail;
    }
    agglo_free(rows);
    return AGGLO_OK;
fail:
    agglo_free(rows);
    return err->status;
}

agglo_status agglo_vit_encoder_new(agglo_vit_encoder **out, agglo_backend *backend,
                                   const agglo_vit_encoder_config *config, const agglo_weights *weights,
                                   const agglo_layout_tensor *tensors, size_t n_tensors, agglo_err *err)
{
    const agglo_teacher_config *m = &config->model;
    agglo_vit_encoder *e = (agglo_vit_encoder *)agglo_alloc(1, sizeof *e, err);

    *out = NULL;
    if (e == NULL) {
        return err->status;
    }
    e->config = *config;
    e->blocks = (agglo_vit_block *)agglo_alloc((size_t)m->depth, sizeof *e->blocks, err);
    if (agglo_tower_init(&e->tower, backend, m, config->layer_scale, config->precision, err) != AGGLO_OK ||
        e->blocks == NULL || declare(e, err) != AGGLO_OK ||
        agglo_load_params(e->tower.params, weights, tensors, n_tensors, err) != AGGLO_OK ||
        make_prefix(e, err) != AGGLO_OK) {
        goto fail;
    }
    *out = e;
    return AGGLO_OK;
fail:
    agglo_vit_encoder_free(e);
    return err->status;
}

void agglo_vit_encoder_free(agglo_vit_encoder *e)
{
    if (e == NULL) {
        return;
    }
    agglo_backend_release(e->tower.backend, e->resampled.data);
    agglo_backend_release(e->tower.backend, e->prefix.data);
    agglo_tower_clear(&e->tower);
    agglo_free(e->table);
    agglo_free(e->blocks);
    agglo_free(e);
}

/* Take all tensors of a run; the same walk measures and lays out. Patches are needed only before x, so x's blocks reuse their memory. */
static void take(const agglo_vit_encoder *e, agglo_slab *slab, int64_t batch, int64_t height, int64_t width, run *r)
{
    const agglo_teacher_config *m = &e->config.model;
    int64_t d = m->dim, n = (height / m->patch) * (width / m->patch), tokens = e->prefix.shape[0] + n;
    int64_t shape[4] = {batch, tokens, d, 0};
    agglo_dtype type = e->config.precision;
    size_t mark;

    r->x = agglo_slab_take(slab, type, 3, shape);
    mark = agglo_slab_mark(slab);
    shape[1] = height;
    shape[2] = width;
    shape[3] = 3;
    r->pixels = agglo_slab_take(slab, AGGLO_U8, 4, shape);
    shape[1] = n;
    shape[2] = 3 * (int64_t)m->patch * m->patch;
    r->patches = agglo_slab_take(slab, type, 3, shape);
    shape[2] = d;
    r->embedded = agglo_slab_take(slab, type, 3, shape);
    agglo_slab_rewind(slab, mark);
    agglo_vit_block_plan(&r->kept, &e->tower.block, batch, tokens, slab);
    agglo_slab_rewind(slab, mark);
    r->spatial = agglo_slab_take(slab, type, 3, shape);
    if (type != AGGLO_F32) {
        r->f32 = agglo_slab_take(slab, AGGLO_F32, 2, (const int64_t[]){batch, n * d > m->proj ? n * d : m->proj});
    }
    shape[1] = 1;
    r->cls = agglo_slab_take(slab, type, 3, shape);
    if (m->proj > 0) {
        shape[1] = m->proj;
        r->projected = agglo_slab_take(slab, type, 2, shape);
    }
}

static agglo_status place(void *self, int height, int width, agglo_err *err)
{
    agglo_vit_encoder *e = (agglo_vit_encoder *)self;
    const agglo_teacher_config *m = &e->config.model;
    agglo_backend *be = e->tower.backend;
    int grid = m->image / m->patch, h = height / m->patch, w = width / m->patch;
    size_t n = (size_t)h * (size_t)w * (size_t)m->dim;
    float *positions = (float *)agglo_alloc(n, sizeof *positions, err);

    agglo_backend_release(be, e->resampled.data);
    e->resampled.data = NULL;
    if (positions == NULL ||
        agglo_pos_resample(e->config.rule, e->table, grid, grid, m->dim, h, w, positions, err) != AGGLO_OK) {
        goto done;
    }
    e->resampled =
        agglo_tensor_2d(agglo_backend_alloc(be, n * sizeof *positions, err), AGGLO_F32, (int64_t)h * w, m->dim);
    if (e->resampled.data != NULL) {
        agglo_upload(be, e->resampled.data, positions, n * sizeof *positions);
    }
done:
    agglo_free(positions);
    return err->status;
}

static void measure(const void *self, agglo_slab *slab, int batch, int height, int width)
{
    run r;

    take((const agglo_vit_encoder *)self, slab, batch, height, width, &r);
}

/* Inputs are never padded: extents are not looked at. */
static void forward(void *self, const uint8_t *pixels, const agglo_extent *extents, int batch, int height, int width,
                    float *summary, float *spatial)
{
    agglo_vit_encoder *e = (agglo_vit_encoder *)self;
    const agglo_vit_encoder_config *c = &e->config;
    agglo_backend *be = e->tower.backend;
    agglo_tensor rows, embedded, cls, *head;
    run r = {0};

    (void)extents;
    take(e, &e->tower.slab, batch, height, width, &r);
    agglo_upload(be, r.pixels.data, pixels, agglo_tensor_bytes(&r.pixels));
    agglo_patchify(be, &r.pixels, NULL, c->model.mean, c->model.std, c->model.patch, &r.patches);
    rows = agglo_tensor_rows(&r.patches);
    embedded = agglo_tensor_rows(&r.embedded);
    agglo_linear(be, &rows, &e->patch_w->stored, e->patch_b != NULL ? &e->patch_b->value : NULL, AGGLO_ACT_NONE, NULL,
                 &embedded);
    agglo_tokens_join(be, &e->prefix, &r.embedded, &e->resampled, &r.x);
    rows = agglo_tensor_rows(&r.x);
    if (c->pre_norm) {
        agglo_layernorm(be, &rows, &e->pre_w->value, &e->pre_b->value, c->model.norm_eps, &rows, NULL, NULL);
    }
    for (int i = 0; i < c->model.depth; i++) {
        agglo_vit_block_forward(be, &e->tower.block, &e->blocks[i], &r.x, &r.kept, &r.x);
    }
    if (spatial != NULL && c->spatial_raw) {
        agglo_tokens_slice(be, &r.x, e->prefix.shape[0], &r.spatial);
    }
    agglo_layernorm(be, &rows, &e->norm_w->value, &e->norm_b->value, c->model.norm_eps, &rows, NULL, NULL);
    if (spatial != NULL) {
        if (!c->spatial_raw) {
            agglo_tokens_slice(be, &r.x, e->prefix.shape[0], &r.spatial);
        }
        agglo_tower_give(&e->tower, &r.spatial, &r.f32, spatial);
    }
    if (summary != NULL) {
        agglo_tokens_slice(be, &r.x, 0, &r.cls);
        head = &r.cls;
        if (c->model.proj > 0 && !c->preproj) {
            cls = agglo_tensor_rows(&r.cls);
            agglo_linear(be, &cls, &e->proj_w->stored, NULL, AGGLO_ACT_NONE, NULL, &r.projected);
            head = &r.projected;
        }
        agglo_tower_give(&e->tower, head, &r.f32, summary);
    }
}

agglo_status agglo_vit_encoder_run(agglo_vit_encoder *e, const uint8_t *pixels, int batch, int height, int width,
                                   float *summary, float *spatial, agglo_err *err)
{
    static const agglo_tower_parts parts = {place, measure, forward};
    const agglo_teacher_config *m = &e->config.model;
    size_t n_summary = (size_t)(m->proj > 0 && !e->config.preproj ? m->proj : m->dim);
    size_t n_spatial = (size_t)(height / m->patch) * (size_t)(width / m->patch) * (size_t)m->dim;

    return agglo_tower_run(&e->tower, &parts, e, m->patch, e->config.max_batch, n_summary, n_spatial, pixels, NULL,
                           batch, height, width, summary, spatial, err);
}

int agglo_vit_encoder_plans(const agglo_vit_encoder *e)
{
    return e->tower.n_plans;
}
