/* The operators' front: shapes and types are checked here, once for every backend, then the backend's table is called, unless a
 * failure is latched. A violated shape or type is a bug in the caller.
 *
 * `real`, `matrix`, `like`, ... ask for a type that the backend computes with; tensors of one call that must share the storage type are
 * compared by `same`, and what is F32 always goes through `vector` or `f32`.
 */
#include "tensor/backend_impl.h"

static bool ready(const agglo_backend *be)
{
    return be->failed.status == AGGLO_OK;
}

/* A tensor with memory, no empty axis, and a dtype that this backend computes with. */
static bool real(const agglo_backend *be, const agglo_tensor *t)
{
    if (t == NULL || t->data == NULL || t->rank < 1 || t->rank > AGGLO_MAX_RANK ||
        !agglo_backend_supports(be, t->dtype)) {
        return false;
    }
    for (int i = 0; i < t->rank; i++) {
        if (t->shape[i] < 1) {
            return false;
        }
    }
    return true;
}

static bool f32(const agglo_tensor *t)
{
    return t->dtype == AGGLO_F32;
}

/* b is of a's type: the storage type of the call */
static bool same(const agglo_tensor *a, const agglo_tensor *b)
{
    return a->dtype == b->dtype;
}

static int64_t last(const agglo_tensor *t)
{
    return t->shape[t->rank - 1];
}

static int64_t rows(const agglo_tensor *t)
{
    return agglo_tensor_count(t) / last(t);
}

static bool matrix(const agglo_backend *be, const agglo_tensor *t, int64_t m, int64_t n)
{
    return real(be, t) && last(t) == n && rows(t) == m;
}

/* A vector of n, F32 always: a bias, a scale, row statistics, their gradients. */
static bool vector(const agglo_backend *be, const agglo_tensor *t, int64_t n)
{
    return real(be, t) && f32(t) && agglo_tensor_count(t) == n;
}

/* As many elements in rows of the same length, of the same type. */
static bool like(const agglo_backend *be, const agglo_tensor *t, const agglo_tensor *other)
{
    return real(be, t) && same(t, other) && agglo_tensor_count(t) == agglo_tensor_count(other) &&
           last(t) == last(other);
}

/* As many elements, of the same type. */
static bool as_many(const agglo_backend *be, const agglo_tensor *t, const agglo_tensor *other)
{
    return real(be, t) && same(t, other) && agglo_tensor_count(t) == agglo_tensor_count(other);
}

static bool floating(const agglo_tensor *t)
{
    return t->dtype == AGGLO_F32 || t->dtype == AGGLO_F16 || t->dtype == AGGLO_BF16;
}

static bool known(agglo_act act)
{
    return act >= AGGLO_ACT_NONE && act <= AGGLO_ACT_RELU;
}

void agglo_backend_product(agglo_backend *be, const agglo_tensor *a, const agglo_tensor *b, bool transpose_b,
                           agglo_tensor *c)
{
    int64_t n = transpose_b ? b->shape[0] : b->shape[1], k = transpose_b ? b->shape[1] : b->shape[0];

    AGGLO_ASSERT(real(be, a) && real(be, b) && a->rank == 2 && b->rank == 2 && a->shape[1] == k);
    AGGLO_ASSERT(matrix(be, c, a->shape[0], n) && c->data != a->data && c->data != b->data);
    AGGLO_ASSERT(a->dtype == b->dtype && a->dtype == c->dtype && (be->pool == NULL || f32(a)));
    if (ready(be)) {
        be->ops->product(be, a, b, transpose_b, c);
    }
}

void agglo_linear(agglo_backend *be, const agglo_tensor *x, const agglo_tensor *w, const agglo_tensor *b, agglo_act act,
                  agglo_tensor *pre, agglo_tensor *y)
{
    AGGLO_ASSERT(real(be, x) && real(be, w) && same(w, x) && w->rank == 2 && w->shape[1] == last(x));
    AGGLO_ASSERT(b == NULL || vector(be, b, w->shape[0]));
    AGGLO_ASSERT(known(act) && matrix(be, y, rows(x), w->shape[0]) && same(y, x) && y->data != x->data);
    AGGLO_ASSERT(pre == NULL || (like(be, pre, y) && pre->data != y->data));
    if (ready(be)) {
        be->ops->linear(be, x, w, b, act, pre, y);
    }
}

void agglo_linear_bwd_input(agglo_backend *be, const agglo_tensor *d_y, const agglo_tensor *w, bool accumulate,
                            agglo_tensor *d_x)
{
    AGGLO_ASSERT(real(be, d_y) && real(be, w) && same(w, d_y) && w->rank == 2 && w->shape[0] == last(d_y));
    AGGLO_ASSERT(matrix(be, d_x, rows(d_y), w->shape[1]) && same(d_x, d_y) && d_x->data != d_y->data);
    if (ready(be)) {
        be->ops->linear_bwd_input(be, d_y, w, accumulate, d_x);
    }
}

void agglo_linear_bwd_weight(agglo_backend *be, const agglo_tensor *d_y, const agglo_tensor *x, agglo_tensor *d_w,
                             agglo_tensor *d_b)
{
    AGGLO_ASSERT(real(be, d_y) && real(be, x) && same(x, d_y) && rows(x) == rows(d_y));
    AGGLO_ASSERT(matrix(be, d_w, last(d_y), last(x)) && d_w->rank == 2 && f32(d_w));
    AGGLO_ASSERT(d_b == NULL || vector(be, d_b, last(d_y)));
    if (ready(be)) {
        be->ops->linear_bwd_weight(be, d_y, x, d_w, d_b);
    }
}

void agglo_activate(agglo_backend *be, agglo_act act, const agglo_tensor *x, agglo_tensor *y)
{
    AGGLO_ASSERT(known(act) && real(be, x) && as_many(be, y, x));
    if (ready(be)) {
        be->ops->activate(be, act, x, y);
    }
}

void agglo_activate_bwd(agglo_backend *be, agglo_act act, const agglo_tensor *x, const agglo_tensor *d_y,
                        agglo_tensor *d_x)
{
    AGGLO_ASSERT(known(act) && real(be, x) && as_many(be, d_y, x) && as_many(be, d_x, x));
    if (ready(be)) {
        be->ops->activate_bwd(be, act, x, d_y, d_x);
    }
}

void agglo_swiglu(agglo_backend *be, const agglo_tensor *u, agglo_tensor *y)
{
    AGGLO_ASSERT(real(be, u) && last(u) % 2 == 0 && matrix(be, y, rows(u), last(u) / 2) && same(y, u) &&
                 y->data != u->data);
    if (ready(be)) {
        be->ops->swiglu(be, u, y);
    }
}

void agglo_swiglu_bwd(agglo_backend *be, const agglo_tensor *u, const agglo_tensor *d_y, agglo_tensor *d_u)
{
    AGGLO_ASSERT(real(be, u) && last(u) % 2 == 0 && matrix(be, d_y, rows(u), last(u) / 2) && same(d_y, u));
    AGGLO_ASSERT(like(be, d_u, u) && d_u->data != d_y->data);
    if (ready(be)) {
        be->ops->swiglu_bwd(be, u, d_y, d_u);
    }
}

void agglo_layernorm(agglo_backend *be, const agglo_tensor *x, const agglo_tensor *w, const agglo_tensor *b, float eps,
                     agglo_tensor *y, agglo_tensor *mean, agglo_tensor *rstd)
{
    AGGLO_ASSERT(real(be, x) && vector(be, w, last(x)) && vector(be, b, last(x)) && like(be, y, x) && eps >= 0);
    AGGLO_ASSERT(mean == NULL || vector(be, mean, rows(x)));
    AGGLO_ASSERT(rstd == NULL || vector(be, rstd, rows(x)));
    if (ready(be)) {
        be->ops->layernorm(be, x, w, b, eps, y, mean, rstd);
    }
}

void agglo_layernorm_bwd(agglo_backend *be, const agglo_tensor *d_y, const agglo_tensor *x, const agglo_tensor *w,
                         const agglo_tensor *mean, const agglo_tensor *rstd, bool accumulate, agglo_tensor *d_x,
                         agglo_tensor *d_w, agglo_tensor *d_b)
{
    AGGLO_ASSERT(real(be, x) && like(be, d_y, x) && like(be, d_x, x) && vector(be, w, last(x)));
    AGGLO_ASSERT(vector(be, mean, rows(x)) && vector(be, rstd, rows(x)));
    AGGLO_ASSERT(vector(be, d_w, last(x)) && vector(be, d_b, last(x)));
    AGGLO_ASSERT(d_x->data != x->data && (!accumulate || d_x->data != d_y->data));
    if (ready(be)) {
        be->ops->layernorm_bwd(be, d_y, x, w, mean, rstd, accumulate, d_x, d_w, d_b);
    }
}

static bool packed_qkv(const agglo_backend *be, const agglo_tensor *qkv)
{
    return real(be, qkv) && qkv->rank == 5 && qkv->shape[2] == 3;
}

/* out[B,N,H,D], or the same folded to [B,N,H*D] */
static bool heads_of(const agglo_backend *be, const agglo_tensor *t, const agglo_tensor *qkv)
{
    return real(be, t) && same(t, qkv) && agglo_tensor_count(t) * 3 == agglo_tensor_count(qkv);
}

static bool lse_of(const agglo_backend *be, const agglo_tensor *lse, const agglo_tensor *qkv)
{
    return vector(be, lse, qkv->shape[0] * qkv->shape[1] * qkv->shape[3]);
}

void agglo_attention(agglo_backend *be, const agglo_tensor *qkv, float scale, agglo_tensor *out, agglo_tensor *lse)
{
    AGGLO_ASSERT(packed_qkv(be, qkv) && heads_of(be, out, qkv) && (lse == NULL || lse_of(be, lse, qkv)));
    if (ready(be)) {
        be->ops->attention(be, qkv, scale, out, lse);
    }
}

void agglo_attention_bwd(agglo_backend *be, const agglo_tensor *d_out, const agglo_tensor *qkv, const agglo_tensor *out,
                         const agglo_tensor *lse, float scale, agglo_tensor *d_qkv)
{
    AGGLO_ASSERT(packed_qkv(be, qkv) && heads_of(be, out, qkv) && heads_of(be, d_out, qkv) && lse_of(be, lse, qkv));
    AGGLO_ASSERT(like(be, d_qkv, qkv) && d_qkv->data != qkv->data && d_qkv->data != d_out->data);
    if (ready(be)) {
        be->ops->attention_bwd(be, d_out, qkv, out, lse, scale, d_qkv);
    }
}

void agglo_residual(agglo_backend *be, const agglo_tensor *x, const agglo_tensor *h, const agglo_tensor *gamma,
                    agglo_tensor *y)
{
    AGGLO_ASSERT(real(be, x) && like(be, h, x) && like(be, y, x) && (gamma == NULL || vector(be, gamma, last(x))));
    if (ready(be)) {
        be->ops->residual(be, x, h, gamma, y);
    }
}

void agglo_residual_bwd(agglo_backend *be, const agglo_tensor *d_y, const agglo_tensor *h, const agglo_tensor *gamma,
                        agglo_tensor *d_h, agglo_tensor *d_gamma)
{
    AGGLO_ASSERT(real(be, d_y) && like(be, h, d_y) && like(be, d_h, d_y) && vector(be, gamma, last(d_y)));
    AGGLO_ASSERT(vector(be, d_gamma, last(d_y)) && d_h->data != h->data);
    if (ready(be)) {
        be->ops->residual_bwd(be, d_y, h, gamma, d_h, d_gamma);
    }
}

void agglo_patchify(agglo_backend *be, const agglo_tensor *pixels, const agglo_tensor *extents, const float mean[3],
                    const float std[3], int patch, agglo_tensor *patches)
{
    AGGLO_ASSERT(pixels->data != NULL && pixels->dtype == AGGLO_U8 && pixels->rank == 4 && pixels->shape[3] == 3);
    AGGLO_ASSERT(patch > 0 && pixels->shape[0] > 0 && pixels->shape[1] > 0 && pixels->shape[2] > 0);
    AGGLO_ASSERT(pixels->shape[1] % patch == 0 && pixels->shape[2] % patch == 0);
    AGGLO_ASSERT(matrix(be, patches, pixels->shape[0] * (pixels->shape[1] / patch) * (pixels->shape[2] / patch),
                        (int64_t)3 * patch * patch));
    AGGLO_ASSERT(std[0] > 0 && std[1] > 0 && std[2] > 0);
    AGGLO_ASSERT(extents == NULL || (extents->data != NULL && extents->dtype == AGGLO_I32 && extents->rank == 2 &&
                                     extents->shape[0] == pixels->shape[0] && extents->shape[1] == 2));
    if (ready(be)) {
        be->ops->patchify(be, pixels, extents, mean, std, patch, patches);
    }
}

static bool tokens(const agglo_backend *be, const agglo_tensor *t)
{
    return real(be, t) && t->rank == 3;
}

/* pos[n,C], shared by all images, or pos[B,n,C] */
static bool positions(const agglo_backend *be, const agglo_tensor *pos, int64_t batch, int64_t n, int64_t c)
{
    return real(be, pos) && f32(pos) && last(pos) == c &&
           (rows(pos) == n || (pos->rank == 3 && pos->shape[0] == batch && rows(pos) == batch * n));
}

void agglo_tokens_join(agglo_backend *be, const agglo_tensor *prefix, const agglo_tensor *patches,
                       const agglo_tensor *pos, agglo_tensor *y)
{
    int64_t n_prefix = prefix == NULL ? 0 : rows(prefix);

    AGGLO_ASSERT(tokens(be, patches) && tokens(be, y) && same(y, patches));
    AGGLO_ASSERT(y->shape[0] == patches->shape[0] && last(y) == last(patches));
    AGGLO_ASSERT(prefix == NULL || (real(be, prefix) && f32(prefix) && last(prefix) == last(y)));
    AGGLO_ASSERT(y->shape[1] == n_prefix + patches->shape[1] && y->data != patches->data);
    AGGLO_ASSERT(pos == NULL || positions(be, pos, y->shape[0], patches->shape[1], last(y)));
    if (ready(be)) {
        be->ops->tokens_join(be, prefix, patches, pos, y);
    }
}

void agglo_tokens_join_bwd(agglo_backend *be, const agglo_tensor *d_y, agglo_tensor *d_prefix, agglo_tensor *d_patches,
                           agglo_tensor *d_pos)
{
    int64_t n = 0;

    AGGLO_ASSERT(tokens(be, d_y));
    /* how many of the rows are prefix follows from any of the three */
    if (d_prefix != NULL) {
        AGGLO_ASSERT(real(be, d_prefix) && f32(d_prefix) && last(d_prefix) == last(d_y) &&
                     rows(d_prefix) <= d_y->shape[1]);
        n = d_y->shape[1] - rows(d_prefix);
    } else if (d_patches != NULL) {
        n = d_patches->shape[1];
    } else if (d_pos != NULL) {
        n = d_pos->shape[d_pos->rank - 2];
    }
    AGGLO_ASSERT(n <= d_y->shape[1]);
    AGGLO_ASSERT(d_patches == NULL ||
                 (tokens(be, d_patches) && same(d_patches, d_y) && d_patches->shape[0] == d_y->shape[0] &&
                  d_patches->shape[1] == n && last(d_patches) == last(d_y)));
    AGGLO_ASSERT(d_pos == NULL || positions(be, d_pos, d_y->shape[0], n, last(d_y)));
    if (ready(be)) {
        be->ops->tokens_join_bwd(be, d_y, d_prefix, d_patches, d_pos);
    }
}

static bool slice_of(const agglo_backend *be, const agglo_tensor *part, int64_t first, const agglo_tensor *whole)
{
    return tokens(be, part) && tokens(be, whole) && same(part, whole) && part->shape[0] == whole->shape[0] &&
           last(part) == last(whole) && first >= 0 && first + part->shape[1] <= whole->shape[1] &&
           part->data != whole->data;
}

void agglo_tokens_slice(agglo_backend *be, const agglo_tensor *x, int64_t first, agglo_tensor *y)
{
    AGGLO_ASSERT(slice_of(be, y, first, x));
    if (ready(be)) {
        be->ops->tokens_slice(be, x, first, y);
    }
}

void agglo_tokens_slice_bwd(agglo_backend *be, const agglo_tensor *d_y, int64_t first, bool accumulate,
                            agglo_tensor *d_x)
{
    AGGLO_ASSERT(slice_of(be, d_y, first, d_x));
    if (ready(be)) {
        be->ops->tokens_slice_bwd(be, d_y, first, accumulate, d_x);
    }
}

void agglo_tokens_mean(agglo_backend *be, const agglo_tensor *x, agglo_tensor *y)
{
    AGGLO_ASSERT(tokens(be, x) && matrix(be, y, x->shape[0], last(x)) && same(y, x));
    if (ready(be)) {
        be->ops->tokens_mean(be, x, y);
    }
}

void agglo_tokens_mean_bwd(agglo_backend *be, const agglo_tensor *d_y, bool accumulate, agglo_tensor *d_x)
{
    AGGLO_ASSERT(tokens(be, d_x) && matrix(be, d_y, d_x->shape[0], last(d_x)) && same(d_y, d_x));
    if (ready(be)) {
        be->ops->tokens_mean_bwd(be, d_y, accumulate, d_x);
    }
}

void agglo_sum_squares(agglo_backend *be, const agglo_tensor *x, agglo_tensor *out)
{
    AGGLO_ASSERT(real(be, x) && f32(x) && vector(be, out, 1));
    if (ready(be)) {
        be->ops->sum_squares(be, x, out);
    }
}

void agglo_axpy(agglo_backend *be, float a, const agglo_tensor *x, agglo_tensor *y)
{
    AGGLO_ASSERT(real(be, x) && as_many(be, y, x));
    if (ready(be)) {
        be->ops->axpy(be, a, x, y);
    }
}

void agglo_cast(agglo_backend *be, const agglo_tensor *x, agglo_tensor *y)
{
    AGGLO_ASSERT(x->data != NULL && y->data != NULL && floating(x) && floating(y));
    AGGLO_ASSERT(agglo_tensor_count(x) >= 1 && agglo_tensor_count(x) == agglo_tensor_count(y));
    if (ready(be)) {
        be->ops->cast(be, x, y);
    }
}
