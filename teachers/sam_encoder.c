/* SAM's image encoder; see sam_encoder.h.
 *
 * A block, x [B,h,w,d], S the side of its windows (tokens in raster order):
 *     windows:   x += unpartition(proj(attention(qkv(partition(norm1 x)))))     zeros that pad the last windows are not masked: they go through
 *                                                                              qkv, and so their keys are its bias
 *     global:    x += proj(attention(qkv(norm1 x)))
 *     both:      x += fc2(gelu(fc1(norm2 x)))
 * Two buffers hold all that is between: narrow [tokens, d] and wide [tokens, 3 d or mlp], whose contents take turns.
 */
#include "teachers/sam_encoder.h"

#include "teachers/pos_interp.h"
#include "teachers/tower_impl.h"
#include "tensor/ops_attention_bias.h"
#include "tensor/ops_conv.h"
#include "tensor/ops_gather.h"
#include "tensor/ops_resample.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* On the CPU more images at once gain nothing from here on. */
#define CPU_TOKENS 4096
/* Of the neck's two norms, whatever that of the blocks: segment_anything's LayerNorm2d and transformers' SamVisionNeck take no other. */
#define NECK_EPS 1e-6f

typedef struct sam_block {
    agglo_vit_block vit;
    agglo_param *rel_h, *rel_w;    /* [2 side - 1, head dim] */
    agglo_tensor table_h, table_w; /* what the planned shape takes: the parameters, or resampled */
} sam_block;

struct agglo_sam_encoder {
    agglo_tower tower;
    agglo_sam_encoder_config config;
    agglo_param *pos, *patch_w, *patch_b;
    agglo_param *conv1, *norm1_w, *norm1_b, *conv2, *norm2_w, *norm2_b; /* of the neck; NULL: none */
    sam_block *blocks;
    agglo_tensor positions; /* [h * w, dim] of the planned shape */
    void *tables;           /* resampled positions and tables of the planned shape; NULL: the checkpoint's own serve */
};

/* The tensors of one run, taken from the slab in this order. */
typedef struct run {
    agglo_tensor pixels, extents, patches, embedded, x, narrow, wide, mean, neck1, neck2;
    agglo_tensor f32; /* an output on its way to the host; only where they are not F32 already */
    int64_t batch, h, w;
} run;

static agglo_status declare(agglo_sam_encoder *e, agglo_err *err)
{
    const agglo_teacher_config *m = &e->config.model;
    int64_t d = m->dim, grid = m->image / m->patch, o = m->neck;
    const struct {
        agglo_param **at;
        const char *name;
        int64_t rows, cols;
        bool matrix; /* of a product: in the storage type */
    } table[] = {
        {&e->pos, "pos", grid * grid, d, false},
        {&e->patch_w, "patch.weight", d, 3 * (int64_t)m->patch * m->patch, true},
        {&e->patch_b, "patch.bias", d, 0, false},
        {&e->conv1, "neck.conv1.weight", o, d, true},
        {&e->norm1_w, "neck.norm1.weight", o, 0, false},
        {&e->norm1_b, "neck.norm1.bias", o, 0, false},
        {&e->conv2, "neck.conv2.weight", o, 9 * o, true},
        {&e->norm2_w, "neck.norm2.weight", o, 0, false},
        {&e->norm2_b, "neck.norm2.bias", o, 0, false},
    };

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
        sam_block *b = &e->blocks[i];
        int64_t rows = 2 * (agglo_teacher_is_global(m, i) ? grid : m->window) - 1;
        char prefix[32], name[64];

        snprintf(prefix, sizeof prefix, "blocks.%d.", i);
        if (agglo_vit_block_declare(&b->vit, &e->tower.block, prefix, e->tower.params, err) != AGGLO_OK) {
            return err->status;
        }
        snprintf(name, sizeof name, "%sattn.rel_pos_h", prefix);
        b->rel_h = agglo_tower_add(&e->tower, name, false, rows, d / m->heads, err);
        snprintf(name, sizeof name, "%sattn.rel_pos_w", prefix);
        b->rel_w = b->rel_h != NULL ? agglo_tower_add(&e->tower, name, false, rows, d / m->heads, err) : NULL;
        if (b->rel_w == NULL) {
            return err->status;
        }
    }
    return agglo_params_allocate(e->tower.params, err);
}

/* The 3 x 3 kernels from the checkpoint's order [o, c, 3, 3] to the operator's, [o, 3, 3, c]. */
static agglo_status pack_conv(agglo_sam_encoder *e, agglo_err *err)
{
    agglo_tensor *t = &e->conv2->stored;
    size_t n_bytes = agglo_tensor_bytes(t);
    uint8_t *checkpoint = (uint8_t *)agglo_alloc(2 * n_bytes, 1, err), *packed;
    int64_t o = t->shape[0];

    if (checkpoint == NULL) {
        return err->status;
    }
    packed = checkpoint + n_bytes;
    agglo_download(e->tower.backend, checkpoint, t->data, n_bytes);
    agglo_conv_weight_pack(packed, checkpoint, agglo_dtype_size(t->dtype), o, o, 3, 3);
    agglo_upload(e->tower.backend, t->data, packed, n_bytes);
    agglo_backend_check(e->tower.backend, err);
    agglo_free(checkpoint);
    return err->status;
}

agglo_status agglo_sam_encoder_new(agglo_sam_encoder **out, agglo_backend *backend,
                                   const agglo_sam_encoder_config *config, const agglo_weights *weights,
                                   const agglo_layout_tensor *tensors, size_t n_tensors, agglo_err *err)
{
    const agglo_teacher_config *m = &config->model;
    agglo_sam_encoder *e = (agglo_sam_encoder *)agglo_alloc(1, sizeof *e, err);

    *out = NULL;
    if (e == NULL) {
        return err->status;
    }
    e->config = *config;
    e->blocks = (sam_block *)agglo_alloc((size_t)m->depth, sizeof *e->blocks, err);
    if (agglo_tower_init(&e->tower, backend, m, false, config->precision, err) != AGGLO_OK || e->blocks == NULL ||
        declare(e, err) != AGGLO_OK ||
        agglo_load_params(e->tower.params, weights, tensors, n_tensors, err) != AGGLO_OK ||
        (e->conv2 != NULL && pack_conv(e, err) != AGGLO_OK)) {
        goto fail;
    }
    *out = e;
    return AGGLO_OK;
fail:
    agglo_sam_encoder_free(e);
    return err->status;
}

void agglo_sam_encoder_free(agglo_sam_encoder *e)
{
    if (e == NULL) {
        return;
    }
    agglo_backend_release(e->tower.backend, e->tables);
    agglo_tower_clear(&e->tower);
    agglo_free(e->blocks);
    agglo_free(e);
}

static int64_t windows_of(const agglo_teacher_config *m, int64_t h, int64_t w)
{
    int64_t s = m->window;

    return m->window == 0 ? 0 : ((h + s - 1) / s) * ((w + s - 1) / s);
}

/* Take all tensors of a run; the same walk measures and lays out. What comes before the blocks and behind them takes the two buffers' place. */
static void take(const agglo_sam_encoder *e, agglo_slab *slab, int64_t batch, int height, int width, run *r)
{
    const agglo_teacher_config *m = &e->config.model;
    agglo_dtype type = e->config.precision;
    int64_t d = m->dim, n, rows, padded, wide;
    size_t mark;

    r->batch = batch;
    r->h = height / m->patch;
    r->w = width / m->patch;
    n = batch * r->h * r->w;
    padded = batch * windows_of(m, r->h, r->w) * m->window * m->window;
    rows = padded > n ? padded : n;
    wide = 3 * rows * d > n * m->mlp_dim ? 3 * rows * d : n * m->mlp_dim;

    r->x = agglo_slab_take(slab, type, 4, (const int64_t[]){batch, r->h, r->w, d});
    mark = agglo_slab_mark(slab);
    r->pixels = agglo_slab_take(slab, AGGLO_U8, 4, (const int64_t[]){batch, height, width, 3});
    r->extents = agglo_slab_take(slab, AGGLO_I32, 2, (const int64_t[]){batch, 2});
    r->patches = agglo_slab_take(slab, type, 2, (const int64_t[]){n, 3 * (int64_t)m->patch * m->patch});
    r->embedded = agglo_slab_take(slab, type, 3, (const int64_t[]){batch, r->h * r->w, d});
    agglo_slab_rewind(slab, mark);
    r->narrow = agglo_slab_take(slab, type, 1, &(int64_t){rows * d});
    r->wide = agglo_slab_take(slab, type, 1, &wide);
    agglo_slab_rewind(slab, mark);
    r->mean = agglo_slab_take(slab, type, 2, (const int64_t[]){batch, d});
    if (e->config.neck) {
        r->neck1 = agglo_slab_take(slab, type, 4, (const int64_t[]){batch, r->h, r->w, m->neck});
        r->neck2 = agglo_slab_take(slab, type, 4, (const int64_t[]){batch, r->h, r->w, m->neck});
    }
    if (type != AGGLO_F32) {
        r->f32 = agglo_slab_take(slab, AGGLO_F32, 2, (const int64_t[]){n, e->config.neck && m->neck > d ? m->neck : d});
    }
}

/* A table of relative positions for another side: [rows, head dim] to [2 side - 1, head dim], linear. */
static void resample_table(agglo_sam_encoder *e, const agglo_param *param, agglo_tensor *table)
{
    const agglo_resample_rule rule = {.mode = AGGLO_RESAMPLE_BILINEAR};
    agglo_tensor from = agglo_tensor_4d(param->value.data, AGGLO_F32, 1, param->value.shape[0], 1, table->shape[1]);
    agglo_tensor to = agglo_tensor_4d(table->data, AGGLO_F32, 1, table->shape[0], 1, table->shape[1]);

    agglo_resample(e->tower.backend, &rule, &from, &to);
}

/* Positions, absolute and relative. */
static agglo_status make_tables(void *self, int height, int width, agglo_err *err)
{
    agglo_sam_encoder *e = (agglo_sam_encoder *)self;
    const agglo_teacher_config *m = &e->config.model;
    agglo_backend *be = e->tower.backend;
    int grid = m->image / m->patch, h = height / m->patch, w = width / m->patch;
    int64_t head = m->dim / m->heads;
    size_t n_pos = (size_t)h * (size_t)w * (size_t)m->dim, n_old = (size_t)grid * (size_t)grid * (size_t)m->dim;
    size_t rel_h = (size_t)((2 * h - 1) * head), rel_w = (size_t)((2 * w - 1) * head), used = n_pos;
    float *host = NULL, *device;

    agglo_backend_release(be, e->tables);
    e->tables = NULL;
    e->positions = e->pos->value;
    for (int i = 0; i < m->depth; i++) {
        e->blocks[i].table_h = e->blocks[i].rel_h->value;
        e->blocks[i].table_w = e->blocks[i].rel_w->value;
    }
    if (h == grid && w == grid) {
        return AGGLO_OK;
    }
    host = (float *)agglo_alloc(n_old + n_pos, sizeof *host, err);
    e->tables =
        host != NULL ? agglo_backend_alloc(be, (n_pos + (size_t)m->depth * (rel_h + rel_w)) * sizeof *host, err) : NULL;
    if (e->tables == NULL) {
        goto done;
    }
    device = (float *)e->tables;
    agglo_download(be, host, e->pos->value.data, n_old * sizeof *host);
    if (agglo_pos_resample(AGGLO_POS_PLAIN, host, grid, grid, m->dim, h, w, host + n_old, err) != AGGLO_OK) {
        goto done;
    }
    agglo_upload(be, device, host + n_old, n_pos * sizeof *host);
    e->positions = agglo_tensor_2d(device, AGGLO_F32, (int64_t)h * w, m->dim);
    for (int i = 0; i < m->depth; i++) {
        sam_block *b = &e->blocks[i];

        if (agglo_teacher_is_global(m, i)) {
            b->table_h = agglo_tensor_2d(device + used, AGGLO_F32, 2 * (int64_t)h - 1, head);
            b->table_w = agglo_tensor_2d(device + used + rel_h, AGGLO_F32, 2 * (int64_t)w - 1, head);
            used += rel_h + rel_w;
            resample_table(e, b->rel_h, &b->table_h);
            resample_table(e, b->rel_w, &b->table_w);
        }
    }
    agglo_backend_check(be, err);
done:
    agglo_free(host);
    return err->status;
}

static void measure(const void *self, agglo_slab *slab, int batch, int height, int width)
{
    run r;

    take((const agglo_sam_encoder *)self, slab, batch, height, width, &r);
}

static void linear(agglo_backend *be, const agglo_tensor *x, const agglo_param *w, const agglo_param *b, agglo_act act,
                   agglo_tensor *y)
{
    agglo_linear(be, x, &w->stored, b != NULL ? &b->value : NULL, act, NULL, y);
}

static void norm(const agglo_sam_encoder *e, const agglo_tensor *x, const agglo_param *w, const agglo_param *b,
                 float eps, agglo_tensor *y)
{
    agglo_layernorm(e->tower.backend, x, &w->value, &b->value, eps, y, NULL, NULL);
}

static void attend(const agglo_sam_encoder *e, int index, run *r)
{
    const agglo_teacher_config *m = &e->config.model;
    const sam_block *b = &e->blocks[index];
    agglo_backend *be = e->tower.backend;
    agglo_dtype type = r->x.dtype;
    bool global = agglo_teacher_is_global(m, index);
    int64_t d = m->dim, heads = m->heads, n = r->batch * r->h * r->w, s = m->window;
    int64_t images = global ? r->batch : r->batch * windows_of(m, r->h, r->w), tokens = global ? r->h * r->w : s * s;
    agglo_tensor x = agglo_tensor_2d(r->x.data, type, n, d);
    agglo_tensor map = agglo_tensor_4d(r->wide.data, type, r->batch, r->h, r->w, d);
    agglo_tensor in = agglo_tensor_3d(r->narrow.data, type, images, tokens, d);
    agglo_tensor out = agglo_tensor_3d(r->wide.data, type, images, tokens, d);
    agglo_tensor qkv = agglo_tensor_5d(r->wide.data, type, images, tokens, 3, heads, d / heads);
    agglo_tensor attended = agglo_tensor_4d(r->narrow.data, type, images, tokens, heads, d / heads);
    agglo_tensor in_rows = agglo_tensor_rows(&in), out_rows = agglo_tensor_rows(&out),
                 map_rows = agglo_tensor_rows(&map);
    agglo_tensor qkv_rows = agglo_tensor_2d(r->wide.data, type, images * tokens, 3 * d);
    agglo_bias bias = {
        .rel_h = &b->table_h, .rel_w = &b->table_w, .grid_h = global ? r->h : s, .grid_w = global ? r->w : s};

    norm(e, &x, b->vit.norm1_w, b->vit.norm1_b, m->norm_eps, global ? &in_rows : &map_rows);
    if (!global) {
        agglo_window_partition(be, &map, s, s, false, &in);
    }
    linear(be, &in_rows, b->vit.qkv_w, b->vit.qkv_b, AGGLO_ACT_NONE, &qkv_rows);
    agglo_attention_bias(be, &qkv, (float)(1.0 / sqrt((double)d / (double)heads)), &bias, &attended, NULL);
    linear(be, &in_rows, b->vit.proj_w, b->vit.proj_b, AGGLO_ACT_NONE, &out_rows);
    if (global) {
        agglo_residual(be, &x, &out_rows, NULL, &x);
    } else {
        agglo_window_merge(be, &out, s, s, true, &r->x);
    }
}

static void mlp(const agglo_sam_encoder *e, int index, run *r)
{
    const agglo_teacher_config *m = &e->config.model;
    const agglo_vit_block *b = &e->blocks[index].vit;
    int64_t n = r->batch * r->h * r->w;
    agglo_tensor x = agglo_tensor_2d(r->x.data, r->x.dtype, n, m->dim);
    agglo_tensor narrow = agglo_tensor_2d(r->narrow.data, r->x.dtype, n, m->dim);
    agglo_tensor hidden = agglo_tensor_2d(r->wide.data, r->x.dtype, n, m->mlp_dim);

    norm(e, &x, b->norm2_w, b->norm2_b, m->norm_eps, &narrow);
    linear(e->tower.backend, &narrow, b->fc1_w, b->fc1_b, m->act, &hidden);
    linear(e->tower.backend, &hidden, b->fc2_w, b->fc2_b, AGGLO_ACT_NONE, &narrow);
    agglo_residual(e->tower.backend, &x, &narrow, NULL, &x);
}

/* Behind the blocks: convolutions of 1 x 1 and 3 x 3, a norm over the channels of every pixel behind each. */
static void run_neck(const agglo_sam_encoder *e, run *r)
{
    const agglo_conv2d_config same = agglo_conv2d_square(1, 1);
    int64_t o = e->config.model.neck, n = r->batch * r->h * r->w;
    agglo_tensor x = agglo_tensor_2d(r->x.data, r->x.dtype, n, e->config.model.dim);
    agglo_tensor first = agglo_tensor_2d(r->neck1.data, r->x.dtype, n, o);
    agglo_tensor second = agglo_tensor_2d(r->neck2.data, r->x.dtype, n, o);
    agglo_tensor kernels = agglo_tensor_4d(e->conv2->stored.data, e->conv2->stored.dtype, o, 3, 3, o);

    linear(e->tower.backend, &x, e->conv1, NULL, AGGLO_ACT_NONE, &first);
    norm(e, &first, e->norm1_w, e->norm1_b, NECK_EPS, &first);
    agglo_conv2d(e->tower.backend, &same, &r->neck1, &kernels, NULL, AGGLO_ACT_NONE, NULL, &r->neck2);
    norm(e, &second, e->norm2_w, e->norm2_b, NECK_EPS, &second);
}

static void forward(void *self, const uint8_t *pixels, const agglo_extent *extents, int batch, int height, int width,
                    float *summary, float *spatial)
{
    agglo_sam_encoder *e = (agglo_sam_encoder *)self;
    const agglo_teacher_config *m = &e->config.model;
    agglo_backend *be = e->tower.backend;
    agglo_tensor embedded, tokens;
    run r = {0};

    take(e, &e->tower.slab, batch, height, width, &r);
    tokens = agglo_tensor_3d(r.x.data, r.x.dtype, batch, r.h * r.w, m->dim);
    agglo_upload(be, r.pixels.data, pixels, agglo_tensor_bytes(&r.pixels));
    if (extents != NULL) {
        agglo_upload(be, r.extents.data, extents, agglo_tensor_bytes(&r.extents));
    }
    agglo_patchify(be, &r.pixels, extents != NULL ? &r.extents : NULL, m->mean, m->std, m->patch, &r.patches);
    embedded = agglo_tensor_rows(&r.embedded);
    linear(be, &r.patches, e->patch_w, e->patch_b, AGGLO_ACT_NONE, &embedded);
    agglo_tokens_join(be, NULL, &r.embedded, &e->positions, &tokens);
    for (int i = 0; i < m->depth; i++) {
        attend(e, i, &r);
        mlp(e, i, &r);
    }
    if (summary != NULL) {
        agglo_tokens_mean(be, &tokens, &r.mean);
        agglo_tower_give(&e->tower, &r.mean, &r.f32, summary);
    }
    if (spatial != NULL) {
        const agglo_tensor *out = &r.x;

        if (e->config.neck) {
            run_neck(e, &r);
            out = &r.neck2;
        }
        agglo_tower_give(&e->tower, out, &r.f32, spatial);
    }
}

agglo_status agglo_sam_encoder_run(agglo_sam_encoder *e, const uint8_t *pixels, const agglo_extent *extents, int batch,
                                   int height, int width, float *summary, float *spatial, agglo_err *err)
{
    static const agglo_tower_parts parts = {make_tables, measure, forward};
    const agglo_teacher_config *m = &e->config.model;
    int h = height / m->patch, w = width / m->patch, most = e->config.max_batch;
    size_t n_spatial = (size_t)h * (size_t)w * (size_t)(e->config.neck ? m->neck : m->dim);

    if (agglo_backend_pool(e->tower.backend) != NULL && (int64_t)most * h * w > CPU_TOKENS) {
        most = h * w < CPU_TOKENS ? CPU_TOKENS / (h * w) : 1;
    }
    return agglo_tower_run(&e->tower, &parts, e, m->patch, most, (size_t)m->dim, n_spatial, pixels, extents, batch,
                           height, width, summary, spatial, err);
}

int agglo_sam_encoder_plans(const agglo_sam_encoder *e)
{
    return e->tower.n_plans;
}
