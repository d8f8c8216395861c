/* Both versions of the head are one chain; they differ in activation, in the sum around an inner layer, and in
 * names. */
#include "student/head.h"

#include <stdio.h>

#define NORM_EPS 1e-5f

static agglo_act act_of(const agglo_head_shape *shape)
{
    return shape->version == 1 ? AGGLO_ACT_RELU : AGGLO_ACT_GELU;
}

static agglo_param *add(agglo_params *params, const char *prefix, const char *name, const char *leaf, int64_t rows,
                        int64_t cols, agglo_init init, agglo_err *err)
{
    char full[160];
    const int64_t shape[2] = {rows, cols};
    int rank = cols > 0 ? 2 : 1;
    int n = snprintf(full, sizeof full, "%s%s%s", prefix, name, leaf);

    AGGLO_ASSERT(n > 0 && (size_t)n < sizeof((agglo_param *)0)->name);
    return (rank == 2 ? agglo_params_add_matrix : agglo_params_add)(params, full, rank, shape, init, 0.02f, rank == 2,
                                                                    err);
}

/* A Linear [out, in] with bias, or with in 0 a LayerNorm over `out` channels. */
static bool add_pair(agglo_params *params, const char *prefix, const char *name, int64_t out, int64_t in,
                     agglo_param **w, agglo_param **b, agglo_err *err)
{
    *w = add(params, prefix, name, ".weight", out, in, in > 0 ? AGGLO_INIT_TRUNC_NORMAL : AGGLO_INIT_ONE, err);
    *b = *w != NULL ? add(params, prefix, name, ".bias", out, 0, AGGLO_INIT_ZERO, err) : NULL;
    return *b != NULL;
}

agglo_status agglo_head_declare(agglo_head *head, const agglo_head_shape *shape, const char *prefix,
                                agglo_params *params, agglo_err *err)
{
    int last = shape->inner;
    char norm[32], linear[32];

    AGGLO_ASSERT(shape->version == 1 || shape->version == 2);
    AGGLO_ASSERT(shape->inner >= 0 && shape->inner <= AGGLO_HEAD_INNER_MAX);
    head->shape = *shape;
    head->shape.dtype = agglo_params_storage(params);
    head->stages = agglo_alloc((size_t)last + 1, sizeof *head->stages, err);
    if (head->stages == NULL ||
        !add_pair(params, prefix, "fc1", shape->hidden, shape->in, &head->fc1_w, &head->fc1_b, err)) {
        return err->status;
    }
    for (int k = 0; k <= last; k++) {
        agglo_head_stage *stage = &head->stages[k];
        int64_t rows = k == last ? shape->out : shape->hidden;

        if (shape->version == 1) {
            snprintf(norm, sizeof norm, k == 0 ? "norm" : "inner.%d", 3 * k - 2);
            snprintf(linear, sizeof linear, k == last ? "fc2" : "inner.%d", 3 * k);
        } else {
            snprintf(norm, sizeof norm, k == last ? "final.0" : "blocks.%d.0", k);
            snprintf(linear, sizeof linear, k == last ? "final.2" : "blocks.%d.2", k);
        }
        if (!add_pair(params, prefix, norm, shape->hidden, 0, &stage->norm_w, &stage->norm_b, err) ||
            !add_pair(params, prefix, linear, rows, shape->hidden, &stage->linear_w, &stage->linear_b, err)) {
            return err->status;
        }
    }
    return AGGLO_OK;
}

void agglo_head_clear(agglo_head *head)
{
    agglo_free(head->stages);
    head->stages = NULL;
}

void agglo_head_plan(agglo_head_kept *kept, const agglo_head_shape *shape, int64_t rows, bool train, agglo_slab *slab)
{
    const int64_t wide[2] = {rows, shape->hidden}, narrow[1] = {rows};

    for (int k = 0; k <= shape->inner; k++) {
        if (!train && k > 0) {
            kept->u[k] = kept->u[0];
            kept->normed[k] = kept->normed[0];
            kept->g[k] = kept->g[0];
            continue;
        }
        kept->u[k] = agglo_slab_take(slab, shape->dtype, 2, wide);
        kept->normed[k] = agglo_slab_take(slab, shape->dtype, 2, wide);
        kept->g[k] = agglo_slab_take(slab, shape->dtype, 2, wide);
        if (train) {
            kept->mean[k] = agglo_slab_take(slab, AGGLO_F32, 1, narrow);
            kept->rstd[k] = agglo_slab_take(slab, AGGLO_F32, 1, narrow);
        }
    }
    if (train) {
        kept->d_u = agglo_slab_take(slab, shape->dtype, 2, wide);
        kept->d_g = agglo_slab_take(slab, shape->dtype, 2, wide);
    }
    kept->train = train;
}

void agglo_head_forward(agglo_backend *be, const agglo_head *head, const agglo_tensor *x, agglo_head_kept *kept,
                        agglo_tensor *y)
{
    int last = head->shape.inner;

    agglo_linear(be, x, &head->fc1_w->stored, &head->fc1_b->value, AGGLO_ACT_NONE, NULL, &kept->u[0]);
    for (int k = 0; k <= last; k++) {
        const agglo_head_stage *stage = &head->stages[k];
        agglo_tensor *next = k == last ? y : &kept->u[k + 1];

        agglo_layernorm(be, &kept->u[k], &stage->norm_w->value, &stage->norm_b->value, NORM_EPS, &kept->normed[k],
                        kept->train ? &kept->mean[k] : NULL, kept->train ? &kept->rstd[k] : NULL);
        agglo_activate(be, act_of(&head->shape), &kept->normed[k], &kept->g[k]);
        if (k < last && head->shape.version == 2) {
            /* in training u_k is needed again: the sum goes elsewhere, through `normed` of the next stage */
            agglo_tensor *branch = &kept->normed[k + 1];

            agglo_linear(be, &kept->g[k], &stage->linear_w->stored, &stage->linear_b->value, AGGLO_ACT_NONE, NULL,
                         branch);
            agglo_residual(be, &kept->u[k], branch, NULL, next);
        } else {
            agglo_linear(be, &kept->g[k], &stage->linear_w->stored, &stage->linear_b->value, AGGLO_ACT_NONE, NULL,
                         next);
        }
    }
}

void agglo_head_backward(agglo_backend *be, const agglo_head *head, const agglo_tensor *d_y, const agglo_tensor *x,
                         agglo_head_kept *kept, bool accumulate, agglo_tensor *d_x)
{
    int last = head->shape.inner;
    const agglo_tensor *d_next = d_y;

    AGGLO_ASSERT(kept->train);
    for (int k = last; k >= 0; k--) {
        const agglo_head_stage *stage = &head->stages[k];
        bool summed = k < last && head->shape.version == 2; /* d_u holds d u_{k+1}, which is part of d u_k */

        agglo_linear_bwd_weight(be, d_next, &kept->g[k], &stage->linear_w->grad, &stage->linear_b->grad);
        agglo_linear_bwd_input(be, d_next, &stage->linear_w->stored, false, &kept->d_g);
        agglo_activate_bwd(be, act_of(&head->shape), &kept->normed[k], &kept->d_g, &kept->d_g);
        agglo_layernorm_bwd(be, &kept->d_g, &kept->u[k], &stage->norm_w->value, &kept->mean[k], &kept->rstd[k], summed,
                            &kept->d_u, &stage->norm_w->grad, &stage->norm_b->grad);
        d_next = &kept->d_u;
    }
    agglo_linear_bwd_weight(be, &kept->d_u, x, &head->fc1_w->grad, &head->fc1_b->grad);
    agglo_linear_bwd_input(be, &kept->d_u, &head->fc1_w->stored, accumulate, d_x);
}
