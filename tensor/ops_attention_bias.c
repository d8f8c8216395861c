/* The front of attention with a bias: checks of shapes. */
#include "tensor/ops_attention_bias.h"

#include "tensor/ops_check.h"

static bool packed(const agglo_tensor *t)
{
    return agglo_ops_stored(t) && t->rank == 5 && t->shape[2] == 3;
}

/* [B,N,H,D], or the same folded to [B,N,H D] */
static bool heads_of(const agglo_tensor *t, const agglo_tensor *qkv)
{
    return agglo_ops_stored(t) && t->dtype == qkv->dtype && agglo_tensor_count(t) * 3 == agglo_tensor_count(qkv);
}

static bool counted(const agglo_tensor *t, int64_t n)
{
    return agglo_ops_present(t) && t->dtype == AGGLO_F32 && agglo_tensor_count(t) == n;
}

static bool lse_of(const agglo_tensor *lse, const agglo_tensor *qkv)
{
    return counted(lse, qkv->shape[0] * qkv->shape[1] * qkv->shape[3]);
}

/* The three tables, of the bias or of its gradient. */
static bool tables(const agglo_bias *bias, const agglo_tensor *rel_h, const agglo_tensor *rel_w,
                   const agglo_tensor *table, const agglo_tensor *qkv)
{
    int64_t n = qkv->shape[1], h = qkv->shape[3], d = qkv->shape[4];

    if (bias->rel_h == NULL) {
        return rel_h == NULL && rel_w == NULL && counted(table, h * n * n);
    }
    return table == NULL && bias->n_prefix >= 0 && bias->grid_h >= 1 && bias->grid_w >= 1 &&
           bias->n_prefix + bias->grid_h * bias->grid_w == n && counted(rel_h, (2 * bias->grid_h - 1) * d) &&
           counted(rel_w, (2 * bias->grid_w - 1) * d);
}

void agglo_attention_bias(agglo_backend *be, const agglo_tensor *qkv, float scale, const agglo_bias *bias,
                          agglo_tensor *out, agglo_tensor *lse)
{
    AGGLO_ASSERT(packed(qkv) && heads_of(out, qkv) && (lse == NULL || lse_of(lse, qkv)));
    AGGLO_ASSERT(tables(bias, bias->rel_h, bias->rel_w, bias->table, qkv) && scale != 0.0f);
    if (agglo_ops_ready(be)) {
        be->ops->attention_bias(be, qkv, scale, bias, out, lse);
    }
}

void agglo_attention_bias_bwd(agglo_backend *be, const agglo_tensor *d_out, const agglo_tensor *qkv,
                              const agglo_tensor *out, const agglo_tensor *lse, float scale, const agglo_bias *bias,
                              agglo_tensor *d_qkv, const agglo_bias_gradient *d_bias)
{
    AGGLO_ASSERT(packed(qkv) && heads_of(out, qkv) && heads_of(d_out, qkv) && lse_of(lse, qkv));
    AGGLO_ASSERT(packed(d_qkv) && d_qkv->dtype == qkv->dtype && agglo_tensor_count(d_qkv) == agglo_tensor_count(qkv));
    AGGLO_ASSERT(d_qkv->data != qkv->data && d_qkv->data != d_out->data);
    AGGLO_ASSERT(tables(bias, bias->rel_h, bias->rel_w, bias->table, qkv) && scale != 0.0f);
    AGGLO_ASSERT((d_bias->rel_h == NULL && d_bias->rel_w == NULL && d_bias->table == NULL) ||
                 tables(bias, d_bias->rel_h, d_bias->rel_w, d_bias->table, qkv));
    if (agglo_ops_ready(be)) {
        be->ops->attention_bias_bwd(be, d_out, qkv, out, lse, scale, bias, d_qkv, d_bias);
    }
}
