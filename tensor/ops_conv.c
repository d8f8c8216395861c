/* The front of tensor/ops_conv.h: shapes and types are checked here, then the backend's table is called, unless a failure is latched. Every
 * backend computes these operators in F32 and BF16. A violated shape or type is a bug in the caller.
 */
#include "tensor/backend_impl.h"

#include <string.h>

static bool ready(const agglo_backend *be)
{
    return be->failed.status == AGGLO_OK;
}

/* A tensor of the storage types, with memory and no empty axis. */
static bool real(const agglo_tensor *t)
{
    if (t == NULL || t->data == NULL || t->rank < 1 || t->rank > AGGLO_MAX_RANK ||
        (t->dtype != AGGLO_F32 && t->dtype != AGGLO_BF16)) {
        return false;
    }
    for (int i = 0; i < t->rank; i++) {
        if (t->shape[i] < 1) {
            return false;
        }
    }
    return true;
}

static int64_t last(const agglo_tensor *t)
{
    return t->shape[t->rank - 1];
}

static int64_t rows(const agglo_tensor *t)
{
    return agglo_tensor_count(t) / last(t);
}

/* n values that are F32 always */
static bool vector(const agglo_tensor *t, int64_t n)
{
    return real(t) && t->dtype == AGGLO_F32 && agglo_tensor_count(t) == n;
}

static bool vector_or_null(const agglo_tensor *t, int64_t n)
{
    return t == NULL || vector(t, n);
}

/* As many elements in rows of the same length, of the same type. */
static bool like(const agglo_tensor *t, const agglo_tensor *other)
{
    return real(t) && t->dtype == other->dtype && agglo_tensor_count(t) == agglo_tensor_count(other) &&
           last(t) == last(other);
}

static bool map(const agglo_tensor *t)
{
    return real(t) && t->rank == 4;
}

static bool known(agglo_act act)
{
    return act >= AGGLO_ACT_NONE && act <= AGGLO_ACT_RELU;
}

/* ---- convolution ---- */

static int64_t windows(int64_t n, int64_t kernel, int64_t stride, int64_t pad)
{
    return n + 2 * pad < kernel ? 0 : (n + 2 * pad - kernel) / stride + 1;
}

/* The shape of a convolution from `image` to `output` with weights w[o,kh,kw,c or 1]; asserts that they fit. */
static agglo_conv_shape fit(const agglo_conv2d_config *config, const agglo_tensor *image, const agglo_tensor *w,
                            const agglo_tensor *output)
{
    agglo_conv_shape s = {0};

    AGGLO_ASSERT(map(image) && map(output) && output->dtype == image->dtype && image->data != output->data);
    AGGLO_ASSERT(real(w) && w->rank == 4);
    AGGLO_ASSERT(config->stride_h > 0 && config->stride_w > 0 && config->pad_h >= 0 && config->pad_w >= 0);
    s.batch = image->shape[0];
    s.h = image->shape[1];
    s.w = image->shape[2];
    s.c = image->shape[3];
    s.oh = output->shape[1];
    s.ow = output->shape[2];
    s.o = output->shape[3];
    s.kh = w->shape[1];
    s.kw = w->shape[2];
    s.stride_h = config->stride_h;
    s.stride_w = config->stride_w;
    s.pad_h = config->pad_h;
    s.pad_w = config->pad_w;
    s.depthwise = config->groups != 1;
    AGGLO_ASSERT(config->groups == 1 || (config->groups == s.c && s.o == s.c));
    AGGLO_ASSERT(w->shape[0] == s.o && w->shape[3] == (s.depthwise ? 1 : s.c));
    AGGLO_ASSERT(output->shape[0] == s.batch && s.pad_h < s.kh && s.pad_w < s.kw);
    AGGLO_ASSERT(s.oh == windows(s.h, s.kh, s.stride_h, s.pad_h) && s.ow == windows(s.w, s.kw, s.stride_w, s.pad_w));
    return s;
}

void agglo_conv2d(agglo_backend *be, const agglo_conv2d_config *config, const agglo_tensor *x, const agglo_tensor *w,
                  const agglo_tensor *b, agglo_act act, agglo_tensor *pre, agglo_tensor *y)
{
    agglo_conv_shape s = fit(config, x, w, y);

    AGGLO_ASSERT(w->dtype == x->dtype && vector_or_null(b, s.o) && known(act));
    AGGLO_ASSERT(pre == NULL || (like(pre, y) && pre->data != y->data && pre->data != x->data));
    if (ready(be)) {
        be->ops->conv_gather(be, &s, x, w, b, act, false, pre, y);
    }
}

void agglo_conv2d_bwd_input(agglo_backend *be, const agglo_conv2d_config *config, const agglo_tensor *d_y,
                            const agglo_tensor *w, bool accumulate, agglo_tensor *d_x)
{
    agglo_conv_shape s = fit(config, d_x, w, d_y);

    AGGLO_ASSERT(w->dtype == d_y->dtype);
    if (ready(be)) {
        be->ops->conv_scatter(be, &s, d_y, w, NULL, AGGLO_ACT_NONE, accumulate, NULL, d_x);
    }
}

void agglo_conv2d_bwd_weight(agglo_backend *be, const agglo_conv2d_config *config, const agglo_tensor *d_y,
                             const agglo_tensor *x, agglo_tensor *d_w, agglo_tensor *d_b)
{
    agglo_conv_shape s = fit(config, x, d_w, d_y);

    AGGLO_ASSERT(d_w->dtype == AGGLO_F32 && vector_or_null(d_b, s.o));
    if (ready(be)) {
        be->ops->conv_weight(be, &s, d_y, x, d_w, d_b, NULL);
    }
}

void agglo_conv_transpose2d(agglo_backend *be, const agglo_conv2d_config *config, const agglo_tensor *x,
                            const agglo_tensor *w, const agglo_tensor *b, agglo_act act, agglo_tensor *pre,
                            agglo_tensor *y)
{
    agglo_conv_shape s = fit(config, y, w, x);

    AGGLO_ASSERT(!s.depthwise && w->dtype == x->dtype && vector_or_null(b, s.c) && known(act));
    AGGLO_ASSERT(pre == NULL || (like(pre, y) && pre->data != y->data && pre->data != x->data));
    if (ready(be)) {
        be->ops->conv_scatter(be, &s, x, w, b, act, false, pre, y);
    }
}

void agglo_conv_transpose2d_bwd_input(agglo_backend *be, const agglo_conv2d_config *config, const agglo_tensor *d_y,
                                      const agglo_tensor *w, bool accumulate, agglo_tensor *d_x)
{
    agglo_conv_shape s = fit(config, d_y, w, d_x);

    AGGLO_ASSERT(!s.depthwise && w->dtype == d_y->dtype);
    if (ready(be)) {
        be->ops->conv_gather(be, &s, d_y, w, NULL, AGGLO_ACT_NONE, accumulate, NULL, d_x);
    }
}

void agglo_conv_transpose2d_bwd_weight(agglo_backend *be, const agglo_conv2d_config *config, const agglo_tensor *d_y,
                                       const agglo_tensor *x, agglo_tensor *d_w, agglo_tensor *d_b)
{
    agglo_conv_shape s = fit(config, d_y, d_w, x);

    AGGLO_ASSERT(!s.depthwise && d_w->dtype == AGGLO_F32 && vector_or_null(d_b, s.c));
    if (ready(be)) {
        be->ops->conv_weight(be, &s, x, d_y, d_w, NULL, d_b);
    }
}

/* to[i,k,j] = from[i,j,k] */
static void swap_last(uint8_t *to, const uint8_t *from, size_t size, int64_t n, int64_t n_j, int64_t n_k)
{
    for (int64_t i = 0; i < n; i++) {
        for (int64_t k = 0; k < n_k; k++) {
            for (int64_t j = 0; j < n_j; j++) {
                memcpy(to, from + (size_t)((i * n_j + j) * n_k + k) * size, size);
                to += size;
            }
        }
    }
}

void agglo_conv_weight_pack(void *packed, const void *checkpoint, size_t element_bytes, int64_t a, int64_t b,
                            int64_t kh, int64_t kw)
{
    swap_last(packed, checkpoint, element_bytes, a, b, kh * kw);
}

void agglo_conv_weight_unpack(void *checkpoint, const void *packed, size_t element_bytes, int64_t a, int64_t b,
                              int64_t kh, int64_t kw)
{
    swap_last(checkpoint, packed, element_bytes, a, kh * kw, b);
}

/* ---- batch normalisation ---- */

void agglo_batchnorm(agglo_backend *be, const agglo_tensor *x, const agglo_tensor *w, const agglo_tensor *b, float eps,
                     float momentum, agglo_act act, agglo_tensor *running_mean, agglo_tensor *running_var,
                     agglo_tensor *mean, agglo_tensor *rstd, agglo_tensor *y)
{
    int64_t c = real(x) ? last(x) : 0;

    AGGLO_ASSERT(real(x) && rows(x) >= 2 && like(y, x) && y->data != x->data && vector(w, c) && vector(b, c));
    AGGLO_ASSERT(eps >= 0 && momentum >= 0 && momentum <= 1 && known(act));
    AGGLO_ASSERT(vector(mean, c) && vector(rstd, c) && (running_mean == NULL) == (running_var == NULL));
    AGGLO_ASSERT(vector_or_null(running_mean, c) && vector_or_null(running_var, c));
    if (ready(be)) {
        be->ops->batchnorm(be, x, w, b, eps, momentum, act, running_mean, running_var, mean, rstd, y);
    }
}

void agglo_batchnorm_infer(agglo_backend *be, const agglo_tensor *x, const agglo_tensor *w, const agglo_tensor *b,
                           const agglo_tensor *mean, const agglo_tensor *var, float eps, agglo_act act,
                           agglo_tensor *rstd, agglo_tensor *y)
{
    int64_t c = real(x) ? last(x) : 0;

    AGGLO_ASSERT(real(x) && like(y, x) && vector(w, c) && vector(b, c) && vector(mean, c) && vector(var, c));
    AGGLO_ASSERT(eps >= 0 && known(act) && vector_or_null(rstd, c));
    if (ready(be)) {
        be->ops->batchnorm_infer(be, x, w, b, mean, var, eps, act, rstd, y);
    }
}

void agglo_batchnorm_bwd(agglo_backend *be, const agglo_tensor *d_y, const agglo_tensor *x, const agglo_tensor *w,
                         const agglo_tensor *b, const agglo_tensor *mean, const agglo_tensor *rstd, agglo_act act,
                         bool fixed_statistics, bool accumulate, agglo_tensor *d_x, agglo_tensor *d_w,
                         agglo_tensor *d_b)
{
    int64_t c = real(x) ? last(x) : 0;

    AGGLO_ASSERT(real(x) && like(d_y, x) && like(d_x, x) && vector(w, c) && vector(b, c) && known(act));
    AGGLO_ASSERT(vector(mean, c) && vector(rstd, c) && vector(d_w, c) && vector(d_b, c));
    AGGLO_ASSERT(d_x->data != x->data && (!accumulate || d_x->data != d_y->data));
    if (ready(be)) {
        be->ops->batchnorm_bwd(be, d_y, x, w, b, mean, rstd, act, fixed_statistics, accumulate, d_x, d_w, d_b);
    }
}

void agglo_batchnorm_fold(agglo_backend *be, const agglo_tensor *w, const agglo_tensor *b, const agglo_tensor *gamma,
                          const agglo_tensor *beta, const agglo_tensor *mean, const agglo_tensor *var, float eps,
                          agglo_tensor *w_out, agglo_tensor *b_out)
{
    int64_t n = real(w) ? w->shape[0] : 0;

    AGGLO_ASSERT(real(w) && real(w_out) && agglo_tensor_count(w_out) == agglo_tensor_count(w) && w_out->shape[0] == n);
    AGGLO_ASSERT(w_out->data != w->data || w_out->dtype == w->dtype);
    AGGLO_ASSERT(vector_or_null(b, n) && vector(gamma, n) && vector(beta, n) && vector(mean, n) && vector(var, n));
    AGGLO_ASSERT(vector(b_out, n) && eps >= 0);
    if (ready(be)) {
        be->ops->batchnorm_fold(be, w, b, gamma, beta, mean, var, eps, w_out, b_out);
    }
}

/* ---- pooling ---- */

static bool pools(const agglo_pool2d_config *p, const agglo_tensor *x, const agglo_tensor *y)
{
    return map(x) && map(y) && y->dtype == x->dtype && y->data != x->data && x->shape[0] == y->shape[0] &&
           last(x) == last(y) && p->kernel_h > 0 && p->kernel_w > 0 && p->stride_h > 0 && p->stride_w > 0 &&
           p->pad_h >= 0 && p->pad_h < p->kernel_h && p->pad_w >= 0 && p->pad_w < p->kernel_w &&
           y->shape[1] == windows(x->shape[1], p->kernel_h, p->stride_h, p->pad_h) &&
           y->shape[2] == windows(x->shape[2], p->kernel_w, p->stride_w, p->pad_w);
}

/* No window lies in the padding alone, and places fit into 32 bits. */
static bool maxpools(const agglo_pool2d_config *p, const agglo_tensor *x, const agglo_tensor *y)
{
    return pools(p, x, y) && (y->shape[1] - 1) * p->stride_h - p->pad_h < x->shape[1] &&
           (y->shape[2] - 1) * p->stride_w - p->pad_w < x->shape[2] && x->shape[1] * x->shape[2] <= INT32_MAX;
}

static bool places(const agglo_tensor *index, const agglo_tensor *y)
{
    return index != NULL && index->data != NULL && index->dtype == AGGLO_I32 &&
           agglo_tensor_count(index) == agglo_tensor_count(y);
}

void agglo_avgpool2d(agglo_backend *be, const agglo_pool2d_config *config, const agglo_tensor *x, agglo_tensor *y)
{
    AGGLO_ASSERT(pools(config, x, y) && config->pad_h == 0 && config->pad_w == 0);
    if (ready(be)) {
        be->ops->avgpool2d(be, config, x, y);
    }
}

void agglo_avgpool2d_bwd(agglo_backend *be, const agglo_pool2d_config *config, const agglo_tensor *d_y, bool accumulate,
                         agglo_tensor *d_x)
{
    AGGLO_ASSERT(pools(config, d_x, d_y) && config->pad_h == 0 && config->pad_w == 0);
    if (ready(be)) {
        be->ops->avgpool2d_bwd(be, config, d_y, accumulate, d_x);
    }
}

void agglo_maxpool2d(agglo_backend *be, const agglo_pool2d_config *config, const agglo_tensor *x, agglo_tensor *y,
                     agglo_tensor *index)
{
    AGGLO_ASSERT(maxpools(config, x, y) && (index == NULL || places(index, y)));
    if (ready(be)) {
        be->ops->maxpool2d(be, config, x, y, index);
    }
}

void agglo_maxpool2d_bwd(agglo_backend *be, const agglo_pool2d_config *config, const agglo_tensor *d_y,
                         const agglo_tensor *index, bool accumulate, agglo_tensor *d_x)
{
    AGGLO_ASSERT(maxpools(config, d_x, d_y) && places(index, d_y));
    if (ready(be)) {
        be->ops->maxpool2d_bwd(be, config, d_y, index, accumulate, d_x);
    }
}

/* ---- layout ---- */

static bool moves(const agglo_tensor *x, const agglo_tensor *y)
{
    return x->data != NULL && y->data != NULL && x->data != y->data && x->dtype == y->dtype && x->rank == 4 &&
           y->rank == 4 && (x->dtype == AGGLO_F32 || x->dtype == AGGLO_F16 || x->dtype == AGGLO_BF16) &&
           x->shape[0] == y->shape[0] && agglo_tensor_count(x) > 0;
}

void agglo_nchw_to_nhwc(agglo_backend *be, const agglo_tensor *x, agglo_tensor *y)
{
    AGGLO_ASSERT(moves(x, y) && x->shape[1] == y->shape[3] && x->shape[2] == y->shape[1] && x->shape[3] == y->shape[2]);
    if (ready(be)) {
        be->ops->transpose(be, x->shape[0], x->shape[1], x->shape[2] * x->shape[3], x, y);
    }
}

void agglo_nhwc_to_nchw(agglo_backend *be, const agglo_tensor *x, agglo_tensor *y)
{
    AGGLO_ASSERT(moves(x, y) && x->shape[3] == y->shape[1] && x->shape[1] == y->shape[2] && x->shape[2] == y->shape[3]);
    if (ready(be)) {
        be->ops->transpose(be, x->shape[0], x->shape[1] * x->shape[2], x->shape[3], x, y);
    }
}

/* Elements from one index of the axis to the next, and how many of those runs there are: the tensor seen as a matrix. */
static int64_t below(const agglo_tensor *t, int axis)
{
    int64_t n = 1;

    for (int i = axis + 1; i < t->rank; i++) {
        n *= t->shape[i];
    }
    return n;
}

static bool run_of(int axis, const agglo_tensor *part, int64_t first, const agglo_tensor *whole)
{
    if (!real(part) || !real(whole) || part->dtype != whole->dtype || part->rank != whole->rank || axis < 0 ||
        axis >= whole->rank || first < 0 || first + part->shape[axis] > whole->shape[axis] ||
        part->data == whole->data) {
        return false;
    }
    for (int i = 0; i < whole->rank; i++) {
        if (i != axis && part->shape[i] != whole->shape[i]) {
            return false;
        }
    }
    return true;
}

/* from the run of `whole` to `part` */
static void take(agglo_backend *be, int axis, const agglo_tensor *whole, int64_t first, bool accumulate,
                 agglo_tensor *part)
{
    int64_t unit = below(whole, axis), cols = part->shape[axis] * unit;

    AGGLO_ASSERT(run_of(axis, part, first, whole));
    if (ready(be)) {
        be->ops->copy_block(be, agglo_tensor_count(part) / cols, cols, whole, whole->shape[axis] * unit, first * unit,
                            accumulate, part, cols, 0);
    }
}

static void put(agglo_backend *be, int axis, const agglo_tensor *part, int64_t first, bool accumulate,
                agglo_tensor *whole)
{
    int64_t unit = below(whole, axis), cols = part->shape[axis] * unit;

    AGGLO_ASSERT(run_of(axis, part, first, whole));
    if (ready(be)) {
        be->ops->copy_block(be, agglo_tensor_count(part) / cols, cols, part, cols, 0, accumulate, whole,
                            whole->shape[axis] * unit, first * unit);
    }
}

void agglo_slice(agglo_backend *be, int axis, const agglo_tensor *x, int64_t first, agglo_tensor *y)
{
    take(be, axis, x, first, false, y);
}

void agglo_slice_bwd(agglo_backend *be, int axis, const agglo_tensor *d_y, int64_t first, bool accumulate,
                     agglo_tensor *d_x)
{
    put(be, axis, d_y, first, accumulate, d_x);
}

void agglo_concat(agglo_backend *be, int axis, int n, const agglo_tensor *const *parts, agglo_tensor *y)
{
    int64_t first = 0;

    AGGLO_ASSERT(real(y) && axis >= 0 && axis < y->rank);
    for (int i = 0; i < n; i++) {
        put(be, axis, parts[i], first, false, y);
        first += parts[i]->shape[axis];
    }
    AGGLO_ASSERT(first == y->shape[axis]);
}

void agglo_concat_bwd(agglo_backend *be, int axis, const agglo_tensor *d_y, bool accumulate, int n,
                      agglo_tensor *const *d_parts)
{
    int64_t first = 0;

    AGGLO_ASSERT(real(d_y) && axis >= 0 && axis < d_y->rank);
    for (int i = 0; i < n; i++) {
        take(be, axis, d_y, first, accumulate, d_parts[i]);
        first += d_parts[i]->shape[axis];
    }
    AGGLO_ASSERT(first == d_y->shape[axis]);
}

/* ---- the residual of stochastic depth ---- */

void agglo_residual_drop(agglo_backend *be, const agglo_tensor *x, const agglo_tensor *h, const agglo_tensor *gamma,
                         const agglo_tensor *scale, agglo_tensor *y)
{
    AGGLO_ASSERT(real(x) && x->rank >= 2 && like(h, x) && like(y, x) && vector_or_null(gamma, last(x)));
    AGGLO_ASSERT(vector(scale, x->shape[0]));
    if (ready(be)) {
        be->ops->residual_drop(be, x, h, gamma, scale, y);
    }
}

void agglo_residual_drop_bwd(agglo_backend *be, const agglo_tensor *d_y, const agglo_tensor *h,
                             const agglo_tensor *gamma, const agglo_tensor *scale, bool accumulate, agglo_tensor *d_h,
                             agglo_tensor *d_gamma)
{
    AGGLO_ASSERT(real(d_y) && d_y->rank >= 2 && like(d_h, d_y) && vector_or_null(gamma, last(d_y)));
    AGGLO_ASSERT(vector(scale, d_y->shape[0]) && (!accumulate || d_h->data != d_y->data));
    AGGLO_ASSERT((d_gamma == NULL) == (gamma == NULL));
    AGGLO_ASSERT(gamma == NULL || (vector(d_gamma, last(d_y)) && like(h, d_y) && d_h->data != h->data));
    if (ready(be)) {
        be->ops->residual_drop_bwd(be, d_y, h, gamma, scale, accumulate, d_h, d_gamma);
    }
}
