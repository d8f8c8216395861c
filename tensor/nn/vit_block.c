/* The pre-norm transformer block; see vit_block.h. */
#include "tensor/nn/vit_block.h"

#include <math.h>
#include <stdio.h>

static int64_t fc1_rows(const agglo_vit_block_config *config)
{
    return config->swiglu ? 2 * config->mlp_dim : config->mlp_dim;
}

agglo_status agglo_vit_block_declare(agglo_vit_block *block, const agglo_vit_block_config *config, const char *prefix,
                                     agglo_params *params, agglo_err *err)
{
    int64_t d = config->dim, h = config->mlp_dim, u = fc1_rows(config);
    const struct {
        agglo_param **at;
        const char *name;
        int rank;
        int64_t shape[2];
        agglo_init init;
        float scale;
        bool decay, layer_scale;
    } table[] = {
        {&block->norm1_w, "norm1.weight", 1, {d}, AGGLO_INIT_ONE, 0.0f, false, false},
        {&block->norm1_b, "norm1.bias", 1, {d}, AGGLO_INIT_ZERO, 0.0f, false, false},
        {&block->qkv_w, "attn.qkv.weight", 2, {3 * d, d}, AGGLO_INIT_TRUNC_NORMAL, 0.02f, true, false},
        {&block->qkv_b, "attn.qkv.bias", 1, {3 * d}, AGGLO_INIT_ZERO, 0.0f, false, false},
        {&block->proj_w, "attn.proj.weight", 2, {d, d}, AGGLO_INIT_TRUNC_NORMAL, 0.02f, true, false},
        {&block->proj_b, "attn.proj.bias", 1, {d}, AGGLO_INIT_ZERO, 0.0f, false, false},
        {&block->ls1, "ls1.gamma", 1, {d}, AGGLO_INIT_ONE, 0.0f, false, true},
        {&block->norm2_w, "norm2.weight", 1, {d}, AGGLO_INIT_ONE, 0.0f, false, false},
        {&block->norm2_b, "norm2.bias", 1, {d}, AGGLO_INIT_ZERO, 0.0f, false, false},
        {&block->fc1_w, "mlp.fc1.weight", 2, {u, d}, AGGLO_INIT_TRUNC_NORMAL, 0.02f, true, false},
        {&block->fc1_b, "mlp.fc1.bias", 1, {u}, AGGLO_INIT_ZERO, 0.0f, false, false},
        {&block->fc2_w, "mlp.fc2.weight", 2, {d, h}, AGGLO_INIT_TRUNC_NORMAL, 0.02f, true, false},
        {&block->fc2_b, "mlp.fc2.bias", 1, {d}, AGGLO_INIT_ZERO, 0.0f, false, false},
        {&block->ls2, "ls2.gamma", 1, {d}, AGGLO_INIT_ONE, 0.0f, false, true},
    };

    AGGLO_ASSERT(d > 0 && config->heads > 0 && d % config->heads == 0 && h > 0);
    AGGLO_ASSERT(config->dtype == agglo_params_storage(params));
    *block = (agglo_vit_block){0};
    for (size_t i = 0; i < AGGLO_COUNT(table); i++) {
        char name[sizeof((agglo_param *)0)->name];
        int n;

        if (table[i].layer_scale && !config->layer_scale) {
            continue;
        }
        n = snprintf(name, sizeof name, "%s%s", prefix, table[i].name);
        AGGLO_ASSERT(n > 0 && (size_t)n < sizeof name);
        *table[i].at = (table[i].rank == 2 ? agglo_params_add_matrix : agglo_params_add)(
            params, name, table[i].rank, table[i].shape, table[i].init, table[i].scale, table[i].decay, err);
        if (*table[i].at == NULL) {
            return err->status;
        }
    }
    return AGGLO_OK;
}

static agglo_tensor take3(agglo_slab *slab, agglo_dtype dtype, int64_t a, int64_t b, int64_t c)
{
    return agglo_slab_take(slab, dtype, 3, (const int64_t[]){a, b, c});
}

/* Statistics of rows. */
static agglo_tensor take1(agglo_slab *slab, int64_t n)
{
    return agglo_slab_take(slab, AGGLO_F32, 1, &n);
}

void agglo_vit_block_plan(agglo_vit_block_kept *kept, const agglo_vit_block_config *config, int64_t batch,
                          int64_t tokens, agglo_slab *slab)
{
    int64_t d = config->dim, head_dim = d / config->heads, m = batch * tokens;
    agglo_dtype type = config->dtype;

    *kept = (agglo_vit_block_kept){0};
    kept->norm1 = take3(slab, type, batch, tokens, d);
    kept->mean1 = take1(slab, m);
    kept->rstd1 = take1(slab, m);
    kept->qkv = agglo_slab_take(slab, type, 5, (const int64_t[]){batch, tokens, 3, config->heads, head_dim});
    kept->lse = take3(slab, AGGLO_F32, batch, config->heads, tokens);
    kept->attended = agglo_slab_take(slab, type, 4, (const int64_t[]){batch, tokens, config->heads, head_dim});
    if (config->layer_scale) {
        kept->projected = take3(slab, type, batch, tokens, d);
        kept->mlp_out = take3(slab, type, batch, tokens, d);
    }
    kept->middle = take3(slab, type, batch, tokens, d);
    kept->norm2 = take3(slab, type, batch, tokens, d);
    kept->mean2 = take1(slab, m);
    kept->rstd2 = take1(slab, m);
    kept->pre = take3(slab, type, batch, tokens, fc1_rows(config));
    kept->hidden = take3(slab, type, batch, tokens, config->mlp_dim);
}

void agglo_vit_block_plan_backward(agglo_vit_block_scratch *scratch, const agglo_vit_block_config *config,
                                   int64_t batch, int64_t tokens, agglo_slab *slab)
{
    int64_t d = config->dim, wide = config->swiglu ? 3 * config->mlp_dim : config->mlp_dim;

    /* d_wide: the gradient of hidden and, behind it under swiglu, of pre; later that of attended */
    scratch->d_wide = take3(slab, config->dtype, batch, tokens, wide > d ? wide : d);
    scratch->d_qkv =
        agglo_slab_take(slab, config->dtype, 5, (const int64_t[]){batch, tokens, 3, config->heads, d / config->heads});
    scratch->d_narrow = take3(slab, config->dtype, batch, tokens, d);
}

/* [B,N,H,D] or [B,N,3,H,D] seen as [B,N,cols]: the same memory */
static agglo_tensor folded(const agglo_tensor *t, int64_t cols)
{
    return agglo_tensor_3d(t->data, t->dtype, t->shape[0], t->shape[1], cols);
}

static float attention_scale(const agglo_vit_block_config *config)
{
    return (float)(1.0 / sqrt((double)config->dim / (double)config->heads));
}

void agglo_vit_block_forward(agglo_backend *be, const agglo_vit_block_config *config, const agglo_vit_block *block,
                             const agglo_tensor *x, agglo_vit_block_kept *kept, agglo_tensor *y)
{
    int64_t d = config->dim;
    agglo_tensor qkv = folded(&kept->qkv, 3 * d), attended = folded(&kept->attended, d);
    /* without layer scale the backward pass does not need a branch's output: the sum may take its place */
    agglo_tensor *projected = config->layer_scale ? &kept->projected : &kept->middle;
    agglo_tensor *mlp_out = config->layer_scale ? &kept->mlp_out : y;

    agglo_layernorm(be, x, &block->norm1_w->value, &block->norm1_b->value, config->norm_eps, &kept->norm1, &kept->mean1,
                    &kept->rstd1);
    agglo_linear(be, &kept->norm1, &block->qkv_w->stored, &block->qkv_b->value, AGGLO_ACT_NONE, NULL, &qkv);
    agglo_attention(be, &kept->qkv, attention_scale(config), &kept->attended, &kept->lse);
    agglo_linear(be, &attended, &block->proj_w->stored, &block->proj_b->value, AGGLO_ACT_NONE, NULL, projected);
    agglo_residual(be, x, projected, config->layer_scale ? &block->ls1->value : NULL, &kept->middle);

    agglo_layernorm(be, &kept->middle, &block->norm2_w->value, &block->norm2_b->value, config->norm_eps, &kept->norm2,
                    &kept->mean2, &kept->rstd2);
    if (config->swiglu) {
        agglo_linear(be, &kept->norm2, &block->fc1_w->stored, &block->fc1_b->value, AGGLO_ACT_NONE, NULL, &kept->pre);
        agglo_swiglu(be, &kept->pre, &kept->hidden);
    } else {
        agglo_linear(be, &kept->norm2, &block->fc1_w->stored, &block->fc1_b->value, config->act, &kept->pre,
                     &kept->hidden);
    }
    agglo_linear(be, &kept->hidden, &block->fc2_w->stored, &block->fc2_b->value, AGGLO_ACT_NONE, NULL, mlp_out);
    agglo_residual(be, &kept->middle, mlp_out, config->layer_scale ? &block->ls2->value : NULL, y);
}

/* Back through y = act(x w^T + b), from d_y to d_x and the parameters' gradients. */
static void linear_back(agglo_backend *be, const agglo_tensor *d_y, const agglo_tensor *x, agglo_param *w,
                        agglo_param *b, agglo_tensor *d_x)
{
    agglo_linear_bwd_weight(be, d_y, x, &w->grad, &b->grad);
    agglo_linear_bwd_input(be, d_y, &w->stored, false, d_x);
}

void agglo_vit_block_backward(agglo_backend *be, const agglo_vit_block_config *config, const agglo_vit_block *block,
                              const agglo_tensor *x, const agglo_vit_block_kept *kept, agglo_vit_block_scratch *scratch,
                              agglo_tensor *d)
{
    int64_t batch = kept->middle.shape[0], n = kept->middle.shape[1], dim = config->dim, h = config->mlp_dim;
    agglo_tensor d_hidden = agglo_tensor_3d(scratch->d_wide.data, config->dtype, batch, n, h), d_pre = d_hidden;
    agglo_tensor d_attended = agglo_tensor_3d(scratch->d_wide.data, config->dtype, batch, n, dim);
    agglo_tensor d_qkv = folded(&scratch->d_qkv, 3 * dim), attended = folded(&kept->attended, dim);
    agglo_tensor *narrow = &scratch->d_narrow;
    const agglo_tensor *d_branch = d;

    /* the MLP's branch; d itself is the residual's other branch, to which the norm's gradient is added at the end */
    if (config->layer_scale) {
        agglo_residual_bwd(be, d, &kept->mlp_out, &block->ls2->value, narrow, &block->ls2->grad);
        d_branch = narrow;
    }
    linear_back(be, d_branch, &kept->hidden, block->fc2_w, block->fc2_b, &d_hidden);
    if (config->swiglu) {
        d_pre =
            agglo_tensor_3d((uint8_t *)d_hidden.data + agglo_tensor_bytes(&d_hidden), config->dtype, batch, n, 2 * h);
        agglo_swiglu_bwd(be, &kept->pre, &d_hidden, &d_pre);
    } else {
        agglo_activate_bwd(be, config->act, &kept->pre, &d_hidden, &d_pre);
    }
    linear_back(be, &d_pre, &kept->norm2, block->fc1_w, block->fc1_b, narrow);
    agglo_layernorm_bwd(be, narrow, &kept->middle, &block->norm2_w->value, &kept->mean2, &kept->rstd2, true, d,
                        &block->norm2_w->grad, &block->norm2_b->grad);

    /* attention's branch */
    d_branch = d;
    if (config->layer_scale) {
        agglo_residual_bwd(be, d, &kept->projected, &block->ls1->value, narrow, &block->ls1->grad);
        d_branch = narrow;
    }
    linear_back(be, d_branch, &attended, block->proj_w, block->proj_b, &d_attended);
    agglo_attention_bwd(be, &d_attended, &kept->qkv, &kept->attended, &kept->lse, attention_scale(config),
                        &scratch->d_qkv);
    linear_back(be, &d_qkv, &kept->norm1, block->qkv_w, block->qkv_b, narrow);
    agglo_layernorm_bwd(be, narrow, x, &block->norm1_w->value, &kept->mean1, &kept->rstd1, true, d,
                        &block->norm1_w->grad, &block->norm1_b->grad);
}
