/* The ViT student in RADIO's form (spec students.md section 1.2): CLIP's mean and std, patches by a linear without
 * bias, position table on patches only, CLS and registers in front, pre-norm blocks, no final norm unless asked
 * for.
 *
 * Position table: g x g. A grid of the same size uses it unchanged. For any other grid h x w (section 1.3; bilinear
 * with align_corners = false; the gradient takes the transpose):
 *     g other than image / patch (CPE)   resampled to m x m, m = max(h, w), then cut to its top left h x w
 *     g = image / patch                  cut to its top left min(h, g) x min(w, g), then resampled to h x w if need be
 */
#include <math.h>
#include <stdio.h>

#include "student/backbone.h"
#include "student/model.h"
#include "tensor/nn/vit_block.h"
#include "tensor/ops_resample.h"

const float agglo_student_mean[3] = {0.48145466f, 0.4578275f, 0.40821073f};
const float agglo_student_std[3] = {0.26862954f, 0.26130258f, 0.27577711f};

typedef struct vit {
    agglo_student_config config;
    agglo_vit_block_config block_config;
    int64_t n_prefix; /* CLS and registers */
    agglo_param *patch_w, *pos, *token, *norm_w, *norm_b;
    agglo_vit_block *blocks; /* [depth] */

    /* the plan: B pictures of h x w patches, n = h w, N = n_prefix + n */
    bool train;
    int64_t batch, grid_h, grid_w;
    agglo_tensor patches, embedded;    /* [B*n, 3pp], [B*n, d]; embedded holds its own gradient on the way back */
    int64_t mid_h, mid_w;              /* of the table between its two changes: m x m, or what is cut from it */
    agglo_tensor pos_mid, pos_out;     /* [1,mid_h,mid_w,d], [n,d]; not used where the table serves as it is */
    agglo_tensor d_pos_mid, d_pos_out; /* the same, in training */
    agglo_tensor *x; /* [depth + 1] of [B,N,d]: input of every block, output of the last; at inference all the same */
    agglo_vit_block_kept *kept; /* [depth] */
    agglo_vit_block_scratch scratch;
    agglo_tensor normed, mean, rstd; /* of the final norm */
    agglo_tensor summary, spatial, d, d_normed;
} vit;

static void vit_free(void *self)
{
    vit *v = self;

    if (v != NULL) {
        agglo_free(v->kept);
        agglo_free(v->x);
        agglo_free(v->blocks);
        agglo_free(v);
    }
}

static agglo_status vit_create(void **self, const agglo_student_config *config, agglo_params *params, agglo_err *err)
{
    int64_t d = config->dim, depth = config->depth;
    float scale = (float)(1.0 / sqrt((double)d));
    const int64_t patch_shape[2] = {d, 3 * config->patch * config->patch};
    const int64_t pos_shape[3] = {1, config->pos_grid * config->pos_grid, d};
    const int64_t norm_shape[1] = {d};
    vit *v = agglo_alloc(1, sizeof *v, err);

    *self = v;
    if (v == NULL) {
        return err->status;
    }
    v->config = *config;
    v->block_config = (agglo_vit_block_config){.dim = d,
                                               .heads = config->heads,
                                               .mlp_dim = config->mlp_dim,
                                               .act = AGGLO_ACT_GELU,
                                               .norm_eps = 1e-6f,
                                               .dtype = agglo_params_storage(params)};
    v->n_prefix = (config->summary == AGGLO_SUMMARY_CLS ? 1 : 0) + config->registers;
    v->blocks = agglo_alloc((size_t)depth, sizeof *v->blocks, err);
    v->x = v->blocks != NULL ? agglo_alloc((size_t)depth + 1, sizeof *v->x, err) : NULL;
    v->kept = v->x != NULL ? agglo_alloc((size_t)depth, sizeof *v->kept, err) : NULL;
    if (v->kept == NULL) {
        return err->status;
    }
    v->patch_w = agglo_params_add_matrix(params, "patch_embed.weight", 2, patch_shape, AGGLO_INIT_TRUNC_NORMAL, 0.02f,
                                         true, err);
    if (v->patch_w == NULL) {
        return err->status;
    }
    v->pos = agglo_params_add(params, "pos_embed", 3, pos_shape, AGGLO_INIT_NORMAL, scale, false, err);
    if (v->pos == NULL) {
        return err->status;
    }
    if (v->n_prefix > 0) {
        const int64_t token_shape[2] = {v->n_prefix, d};

        v->token = agglo_params_add(params, "token", 2, token_shape, AGGLO_INIT_NORMAL, scale, false, err);
        if (v->token == NULL) {
            return err->status;
        }
    }
    for (int64_t i = 0; i < depth; i++) {
        char prefix[32];

        snprintf(prefix, sizeof prefix, "blocks.%lld.", (long long)i);
        if (agglo_vit_block_declare(&v->blocks[i], &v->block_config, prefix, params, err) != AGGLO_OK) {
            return err->status;
        }
    }
    if (config->final_norm) {
        v->norm_w = agglo_params_add(params, "norm.weight", 1, norm_shape, AGGLO_INIT_ONE, 1.0f, false, err);
        v->norm_b = v->norm_w != NULL
                        ? agglo_params_add(params, "norm.bias", 1, norm_shape, AGGLO_INIT_ZERO, 0.0f, false, err)
                        : NULL;
        if (v->norm_b == NULL) {
            return err->status;
        }
    }
    return AGGLO_OK;
}

/* Activations. */
static agglo_tensor take2(const vit *v, agglo_slab *slab, int64_t a, int64_t b)
{
    const int64_t shape[2] = {a, b};

    return agglo_slab_take(slab, v->block_config.dtype, 2, shape);
}

static agglo_tensor take3(const vit *v, agglo_slab *slab, int64_t a, int64_t b, int64_t c)
{
    const int64_t shape[3] = {a, b, c};

    return agglo_slab_take(slab, v->block_config.dtype, 3, shape);
}

/* Whether the table is used as it is. */
static bool table_fits(const vit *v)
{
    return v->grid_h == v->config.pos_grid && v->grid_w == v->config.pos_grid;
}

/* Whether the table has a size of its own rather than the training grid's: resampled first, then cut. */
static bool is_cpe(const vit *v)
{
    return v->config.pos_grid != v->config.image / v->config.patch;
}

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static void plan_positions(vit *v, agglo_slab *slab)
{
    int64_t g = v->config.pos_grid, h = v->grid_h, w = v->grid_w, d = v->config.dim, m = h > w ? h : w;
    int64_t shape[4] = {1, 0, 0, d};
    const int64_t flat[2] = {h * w, d};

    if (table_fits(v)) {
        return;
    }
    v->mid_h = shape[1] = is_cpe(v) ? m : smaller(h, g);
    v->mid_w = shape[2] = is_cpe(v) ? m : smaller(w, g);
    v->pos_mid = agglo_slab_take(slab, AGGLO_F32, 4, shape);
    v->pos_out = agglo_slab_take(slab, AGGLO_F32, 2, flat);
    if (v->train) {
        v->d_pos_mid = agglo_slab_take(slab, AGGLO_F32, 4, shape);
        v->d_pos_out = agglo_slab_take(slab, AGGLO_F32, 2, flat);
    }
}

static void vit_plan(void *self, int64_t batch, int64_t height, int64_t width, bool train, agglo_slab *slab)
{
    vit *v = self;
    int64_t d = v->config.dim, p = v->config.patch, depth = v->config.depth, n, n_tok;

    AGGLO_ASSERT(height % p == 0 && width % p == 0 && height > 0 && width > 0);
    v->train = train;
    v->batch = batch;
    v->grid_h = height / p;
    v->grid_w = width / p;
    n = v->grid_h * v->grid_w;
    n_tok = v->n_prefix + n;

    v->patches = take2(v, slab, batch * n, 3 * p * p);
    v->embedded = take2(v, slab, batch * n, d);
    plan_positions(v, slab);
    v->x[0] = take3(v, slab, batch, n_tok, d);
    for (int64_t i = 0; i < depth; i++) {
        if (train || i == 0) {
            agglo_vit_block_plan(&v->kept[i], &v->block_config, batch, n_tok, slab);
        } else {
            v->kept[i] = v->kept[0];
        }
        v->x[i + 1] = train ? take3(v, slab, batch, n_tok, d) : v->x[0];
    }
    if (v->config.final_norm) {
        const int64_t rows[1] = {batch * n_tok};

        v->normed = take3(v, slab, batch, n_tok, d);
        v->mean = agglo_slab_take(slab, AGGLO_F32, 1, rows);
        v->rstd = agglo_slab_take(slab, AGGLO_F32, 1, rows);
    }
    v->summary = take2(v, slab, batch, d);
    v->spatial = take3(v, slab, batch, n, d);
    if (train) {
        v->d = take3(v, slab, batch, n_tok, d);
        if (v->config.final_norm) {
            v->d_normed = take3(v, slab, batch, n_tok, d);
        }
        agglo_vit_block_plan_backward(&v->scratch, &v->block_config, batch, n_tok, slab);
    }
}

/* A map of h x w positions, for resampling. */
static agglo_tensor as_map(const vit *v, const agglo_tensor *t, int64_t h, int64_t w)
{
    return agglo_tensor_4d(t->data, t->dtype, 1, h, w, v->config.dim);
}

/* The first n_rows rows of a map of width w as [n_rows, w, d], of which columns can be cut. */
static agglo_tensor top_rows(const vit *v, const agglo_tensor *t, int64_t n_rows, int64_t w)
{
    return agglo_tensor_3d(t->data, t->dtype, n_rows, w, v->config.dim);
}

static agglo_tensor positions(vit *v, agglo_backend *be)
{
    const agglo_resample_rule bilinear = agglo_resample_bilinear();
    int64_t g = v->config.pos_grid, h = v->grid_h, w = v->grid_w;
    const agglo_tensor *table = &v->pos->value;
    agglo_tensor from, to;

    if (table_fits(v)) {
        return agglo_tensor_2d(table->data, table->dtype, g * g, v->config.dim);
    }
    if (is_cpe(v)) {
        from = as_map(v, table, g, g);
        agglo_resample(be, &bilinear, &from, &v->pos_mid);
        from = top_rows(v, &v->pos_mid, h, v->mid_w);
        to = top_rows(v, &v->pos_out, h, w);
        agglo_tokens_slice(be, &from, 0, &to);
        return v->pos_out;
    }
    from = top_rows(v, table, v->mid_h, g);
    to = top_rows(v, &v->pos_mid, v->mid_h, v->mid_w);
    agglo_tokens_slice(be, &from, 0, &to);
    to = as_map(v, &v->pos_out, h, w);
    agglo_resample(be, &bilinear, &v->pos_mid, &to); /* of equal size: a copy */
    return v->pos_out;
}

/* d_pos_out, complete, back into the table's gradient. */
static void positions_backward(vit *v, agglo_backend *be)
{
    const agglo_resample_rule bilinear = agglo_resample_bilinear();
    int64_t g = v->config.pos_grid, h = v->grid_h, w = v->grid_w;
    const agglo_tensor *d_table = &v->pos->grad;
    agglo_tensor from, to;

    if (is_cpe(v)) {
        agglo_zero(be, v->d_pos_mid.data, agglo_tensor_bytes(&v->d_pos_mid));
        from = top_rows(v, &v->d_pos_out, h, w);
        to = top_rows(v, &v->d_pos_mid, h, v->mid_w);
        agglo_tokens_slice_bwd(be, &from, 0, false, &to);
        to = as_map(v, d_table, g, g);
        agglo_resample_bwd(be, &bilinear, &v->d_pos_mid, true, &to);
        return;
    }
    from = as_map(v, &v->d_pos_out, h, w);
    agglo_resample_bwd(be, &bilinear, &from, false, &v->d_pos_mid);
    from = top_rows(v, &v->d_pos_mid, v->mid_h, v->mid_w);
    to = top_rows(v, d_table, v->mid_h, g);
    agglo_tokens_slice_bwd(be, &from, 0, true, &to);
}

static void vit_forward(void *self, agglo_backend *be, const agglo_tensor *pixels, agglo_tensor *summary,
                        agglo_tensor *spatial)
{
    vit *v = self;
    int64_t d = v->config.dim, p = v->config.patch, depth = v->config.depth, n = v->grid_h * v->grid_w;
    agglo_tensor patches = agglo_tensor_3d(v->patches.data, v->patches.dtype, v->batch, n, 3 * p * p);
    agglo_tensor embedded = agglo_tensor_3d(v->embedded.data, v->embedded.dtype, v->batch, n, d);
    agglo_tensor pos = positions(v, be);
    const agglo_tensor *out;

    agglo_patchify(be, pixels, NULL, agglo_student_mean, agglo_student_std, (int)p, &patches);
    agglo_linear(be, &v->patches, &v->patch_w->stored, NULL, AGGLO_ACT_NONE, NULL, &v->embedded);
    agglo_tokens_join(be, v->token != NULL ? &v->token->value : NULL, &embedded, &pos, &v->x[0]);
    for (int64_t i = 0; i < depth; i++) {
        agglo_vit_block_forward(be, &v->block_config, &v->blocks[i], &v->x[i], &v->kept[i], &v->x[i + 1]);
    }
    out = &v->x[depth];
    if (v->config.final_norm) {
        agglo_tensor x = agglo_tensor_rows(out), y = agglo_tensor_rows(&v->normed);

        agglo_layernorm(be, &x, &v->norm_w->value, &v->norm_b->value, v->block_config.norm_eps, &y, &v->mean, &v->rstd);
        out = &v->normed;
    }
    agglo_tokens_slice(be, out, v->n_prefix, &v->spatial);
    if (v->config.summary == AGGLO_SUMMARY_CLS) {
        agglo_tensor first = agglo_tensor_3d(v->summary.data, v->summary.dtype, v->batch, 1, d);

        agglo_tokens_slice(be, out, 0, &first);
    } else {
        agglo_tokens_mean(be, &v->spatial, &v->summary);
    }
    *summary = v->summary;
    *spatial = v->spatial;
}

static void vit_backward(void *self, agglo_backend *be, agglo_tensor *d_summary, agglo_tensor *d_spatial)
{
    vit *v = self;
    int64_t d = v->config.dim, g = v->config.pos_grid, depth = v->config.depth, n = v->grid_h * v->grid_w;
    agglo_tensor *d_out = v->config.final_norm ? &v->d_normed : &v->d;
    agglo_tensor d_embedded = agglo_tensor_3d(v->embedded.data, v->embedded.dtype, v->batch, n, d);
    agglo_tensor d_pos = agglo_tensor_2d(v->pos->grad.data, v->pos->grad.dtype, g * g, d);

    AGGLO_ASSERT(v->train);
    agglo_zero(be, d_out->data, agglo_tensor_bytes(d_out)); /* registers have no gradient of their own */
    if (v->config.summary == AGGLO_SUMMARY_CLS) {
        agglo_tensor first = agglo_tensor_3d(d_summary->data, d_summary->dtype, v->batch, 1, d);

        agglo_tokens_slice_bwd(be, &first, 0, false, d_out);
    } else {
        agglo_tokens_mean_bwd(be, d_summary, true, d_spatial);
    }
    agglo_tokens_slice_bwd(be, d_spatial, v->n_prefix, false, d_out);
    if (v->config.final_norm) {
        agglo_tensor d_y = agglo_tensor_rows(&v->d_normed), x = agglo_tensor_rows(&v->x[depth]);
        agglo_tensor d_x = agglo_tensor_rows(&v->d);

        agglo_layernorm_bwd(be, &d_y, &x, &v->norm_w->value, &v->mean, &v->rstd, false, &d_x, &v->norm_w->grad,
                            &v->norm_b->grad);
    }
    for (int64_t i = depth - 1; i >= 0; i--) {
        agglo_vit_block_backward(be, &v->block_config, &v->blocks[i], &v->x[i], &v->kept[i], &v->scratch, &v->d);
    }
    if (!table_fits(v)) {
        agglo_zero(be, v->d_pos_out.data, agglo_tensor_bytes(&v->d_pos_out));
        d_pos = v->d_pos_out;
    }
    agglo_tokens_join_bwd(be, &v->d, v->token != NULL ? &v->token->grad : NULL, &d_embedded, &d_pos);
    if (!table_fits(v)) {
        positions_backward(v, be);
    }
    agglo_linear_bwd_weight(be, &v->embedded, &v->patches, &v->patch_w->grad, NULL);
}

const agglo_backbone_class agglo_backbone_vit = {
    .family = "vit",
    .create = vit_create,
    .free = vit_free,
    .plan = vit_plan,
    .forward = vit_forward,
    .backward = vit_backward,
};
