/* The vision transformer that CLIP and DINOv2 share; see vit_encoder_impl.h. */
#include "teachers/vit_encoder_impl.h"

#include "teachers/load.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

struct agglo_vit_encoder {
    agglo_backend *backend;
    agglo_vit_encoder_config config;
    agglo_vit_block_config block_config;
    agglo_params *params;
    agglo_param *cls, *pos, *registers, *patch_w, *patch_b, *pre_w, *pre_b, *norm_w, *norm_b, *proj_w;
    agglo_vit_block *blocks;
    float *table;           /* host: rows 1.. of the position table [grid, grid, dim] */
    agglo_tensor prefix;    /* device [1 + registers, dim]: class token with its position, then the registers */
    agglo_tensor resampled; /* device [h * w, dim], of the planned shape */
    agglo_slab slab;
    int planned_batch, planned_height, planned_width; /* 0: nothing planned */
    int n_plans;
};

/* The tensors of one run, taken from the slab in this order. */
typedef struct run {
    agglo_tensor pixels, patches, embedded, x, normed, spatial, cls, projected;
    agglo_tensor f32; /* an output on its way to the host; only where they are not F32 already */
    agglo_vit_block_kept kept;
} run;

static agglo_param *add(agglo_vit_encoder *e, const char *name, int64_t rows, int64_t cols, agglo_err *err)
{
    const int64_t shape[2] = {rows, cols};

    return cols > 0 ? agglo_params_add(e->params, name, 2, shape, AGGLO_INIT_ZERO, 0.0f, false, err)
                    : agglo_params_add(e->params, name, 1, shape, AGGLO_INIT_ZERO, 0.0f, false, err);
}

static agglo_param *add_matrix(agglo_vit_encoder *e, const char *name, int64_t rows, int64_t cols, agglo_err *err)
{
    return agglo_params_add_matrix(e->params, name, 2, (const int64_t[]){rows, cols}, AGGLO_INIT_ZERO, 0.0f, false,
                                   err);
}

static agglo_status declare(agglo_vit_encoder *e, agglo_err *err)
{
    const agglo_teacher_config *m = &e->config.model;
    int64_t d = m->dim, grid = m->image / m->patch;
    char prefix[32];

    e->cls = add(e, "cls", d, 0, err);
    e->pos = e->cls != NULL ? add(e, "pos", 1 + grid * grid, d, err) : NULL;
    e->patch_w = e->pos != NULL ? add_matrix(e, "patch.weight", d, 3 * (int64_t)m->patch * m->patch, err) : NULL;
    e->norm_w = e->patch_w != NULL ? add(e, "norm.weight", d, 0, err) : NULL;
    e->norm_b = e->norm_w != NULL ? add(e, "norm.bias", d, 0, err) : NULL;
    if (e->norm_b == NULL || (e->config.patch_bias && (e->patch_b = add(e, "patch.bias", d, 0, err)) == NULL) ||
        (m->registers > 0 && (e->registers = add(e, "registers", m->registers, d, err)) == NULL) ||
        (e->config.pre_norm && ((e->pre_w = add(e, "pre_norm.weight", d, 0, err)) == NULL ||
                                (e->pre_b = add(e, "pre_norm.bias", d, 0, err)) == NULL)) ||
        (m->proj > 0 && (e->proj_w = add_matrix(e, "proj.weight", m->proj, d, err)) == NULL)) {
        return err->status;
    }
    for (int i = 0; i < m->depth; i++) {
        snprintf(prefix, sizeof prefix, "blocks.%d.", i);
        if (agglo_vit_block_declare(&e->blocks[i], &e->block_config, prefix, e->params, err) != AGGLO_OK) {
            return err->status;
        }
    }
    return agglo_params_allocate(e->params, err);
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
    device = agglo_backend_alloc(e->backend, n_prefix * d * sizeof *rows, err);
    if (device == NULL) {
        goto fail;
    }
    e->prefix = agglo_tensor_2d(device, AGGLO_F32, (int64_t)n_prefix, m->dim);
    position = rows + n_prefix * d;
    agglo_download(e->backend, rows, e->cls->value.data, d * sizeof *rows);
    if (e->registers != NULL) {
        agglo_download(e->backend, rows + d, e->registers->value.data, (n_prefix - 1) * d * sizeof *rows);
    }
    agglo_download(e->backend, position, e->pos->value.data, d * sizeof *rows);
    agglo_download(e->backend, e->table, (const float *)e->pos->value.data + d, grid * grid * d * sizeof *rows);
    for (size_t c = 0; c < d; c++) {
        rows[c] += position[c];
    }
    agglo_upload(e->backend, device, rows, n_prefix * d * sizeof *rows);
    if (agglo_backend_check(e->backend, err) != AGGLO_OK) {
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
    e->backend = backend;
    e->config = *config;
    e->block_config = (agglo_vit_block_config){
        .dim = m->dim,
        .heads = m->heads,
        .mlp_dim = m->mlp_dim,
        .act = m->act,
        .swiglu = m->swiglu,
        .layer_scale = config->layer_scale,
        .norm_eps = m->norm_eps,
        .dtype = config->precision,
    };
    e->blocks = (agglo_vit_block *)agglo_alloc((size_t)m->depth, sizeof *e->blocks, err);
    if (e->blocks == NULL || agglo_params_new(&e->params, backend, false, err) != AGGLO_OK ||
        agglo_params_set_storage(e->params, config->precision, err) != AGGLO_OK || declare(e, err) != AGGLO_OK ||
        agglo_load_params(e->params, weights, tensors, n_tensors, err) != AGGLO_OK || make_prefix(e, err) != AGGLO_OK) {
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
    agglo_slab_free(&e->slab);
    agglo_backend_release(e->backend, e->resampled.data);
    agglo_backend_release(e->backend, e->prefix.data);
    agglo_params_free(e->params);
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
    agglo_vit_block_plan(&r->kept, &e->block_config, batch, tokens, slab);
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

/* Memory and positions for this shape; nothing to do when they are planned. */
static agglo_status plan(agglo_vit_encoder *e, int batch, int height, int width, agglo_err *err)
{
    const agglo_teacher_config *m = &e->config.model;
    int grid = m->image / m->patch, h = height / m->patch, w = width / m->patch;
    size_t n_bytes = (size_t)h * (size_t)w * (size_t)m->dim * sizeof(float);
    bool same_size = height == e->planned_height && width == e->planned_width;
    agglo_slab measured = agglo_slab_measure(e->backend);
    float *positions = NULL;
    run r;

    if (same_size && batch <= e->planned_batch) {
        return AGGLO_OK;
    }
    agglo_slab_free(&e->slab);
    e->slab = (agglo_slab){0};
    e->planned_batch = 0;
    if (!same_size) {
        agglo_backend_release(e->backend, e->resampled.data);
        e->resampled.data = NULL;
        positions = (float *)agglo_alloc((size_t)h * (size_t)w * (size_t)m->dim, sizeof *positions, err);
        if (positions == NULL ||
            agglo_pos_resample(e->config.rule, e->table, grid, grid, m->dim, h, w, positions, err) != AGGLO_OK) {
            goto fail;
        }
        e->resampled =
            agglo_tensor_2d(agglo_backend_alloc(e->backend, n_bytes, err), AGGLO_F32, (int64_t)h * w, m->dim);
        if (e->resampled.data == NULL) {
            goto fail;
        }
        agglo_upload(e->backend, e->resampled.data, positions, n_bytes);
        agglo_free(positions);
        positions = NULL;
    }
    take(e, &measured, batch, height, width, &r);
    if (agglo_slab_allocate(&e->slab, &measured, err) != AGGLO_OK) {
        goto fail;
    }
    e->planned_batch = batch;
    e->planned_height = height;
    e->planned_width = width;
    e->n_plans++;
    return AGGLO_OK;
fail:
    agglo_free(positions);
    e->planned_height = e->planned_width = 0;
    return agglo_doing(err, "cannot plan the teacher for %d images of %d x %d", batch, width, height);
}

/* To the host, as floats. */
static void give(agglo_backend *be, run *r, const agglo_tensor *from, float *to)
{
    agglo_tensor f32 = *from;

    if (from->dtype != AGGLO_F32) {
        f32.data = r->f32.data;
        f32.dtype = AGGLO_F32;
        agglo_cast(be, from, &f32);
    }
    agglo_download(be, to, f32.data, agglo_tensor_bytes(&f32));
}

static void forward(agglo_vit_encoder *e, const uint8_t *pixels, int batch, int height, int width, float *summary,
                    float *spatial)
{
    const agglo_vit_encoder_config *c = &e->config;
    agglo_backend *be = e->backend;
    agglo_tensor rows, embedded, cls, *head;
    run r = {0};

    agglo_slab_rewind(&e->slab, 0);
    take(e, &e->slab, batch, height, width, &r);
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
        agglo_vit_block_forward(be, &e->block_config, &e->blocks[i], &r.x, &r.kept, &r.x);
    }
    if (spatial != NULL && c->spatial_raw) {
        agglo_tokens_slice(be, &r.x, e->prefix.shape[0], &r.spatial);
    }
    agglo_layernorm(be, &rows, &e->norm_w->value, &e->norm_b->value, c->model.norm_eps, &rows, NULL, NULL);
    if (spatial != NULL) {
        if (!c->spatial_raw) {
            agglo_tokens_slice(be, &r.x, e->prefix.shape[0], &r.spatial);
        }
        give(be, &r, &r.spatial, spatial);
    }
    if (summary != NULL) {
        agglo_tokens_slice(be, &r.x, 0, &r.cls);
        head = &r.cls;
        if (c->model.proj > 0 && !c->preproj) {
            cls = agglo_tensor_rows(&r.cls);
            agglo_linear(be, &cls, &e->proj_w->stored, NULL, AGGLO_ACT_NONE, NULL, &r.projected);
            head = &r.projected;
        }
        give(be, &r, head, summary);
    }
}

agglo_status agglo_vit_encoder_run(agglo_vit_encoder *e, const uint8_t *pixels, int batch, int height, int width,
                                   float *summary, float *spatial, agglo_err *err)
{
    const agglo_teacher_config *m = &e->config.model;
    size_t n_pixels = (size_t)height * (size_t)width * 3, n_summary, n_spatial;
    int most = e->config.max_batch;

    AGGLO_ASSERT(batch >= 1 && height >= m->patch && width >= m->patch);
    AGGLO_ASSERT(height % m->patch == 0 && width % m->patch == 0);
    n_summary = (size_t)(m->proj > 0 && !e->config.preproj ? m->proj : m->dim);
    n_spatial = (size_t)(height / m->patch) * (size_t)(width / m->patch) * (size_t)m->dim;
    for (int first = 0; first < batch; first += most) {
        int n = batch - first < most ? batch - first : most;
        size_t at = (size_t)first;

        if (plan(e, n, height, width, err) != AGGLO_OK) {
            return err->status;
        }
        forward(e, pixels + at * n_pixels, n, height, width, summary != NULL ? summary + at * n_summary : NULL,
                spatial != NULL ? spatial + at * n_spatial : NULL);
        if (agglo_backend_check(e->backend, err) != AGGLO_OK) {
            return agglo_doing(err, "cannot run the teacher");
        }
    }
    return AGGLO_OK;
}

int agglo_vit_encoder_plans(const agglo_vit_encoder *e)
{
    return e->n_plans;
}
