/* The table's batch norms, pooling, layout and stochastic depth. */
#include "tensor/table/table_impl.h"

#include <string.h>

static int64_t windows(int64_t n, int64_t kernel, int64_t stride, int64_t pad)
{
    return (n + 2 * pad - kernel) / stride + 1;
}

static bool accumulates(const agglo_op_case *c)
{
    return agglo_op_has(c, AGGLO_OP_ACCUMULATE);
}

/* ---- batch norm: d = m, c; backward m, c, fixed ---- */

static double bn_flops(const agglo_op_case *c)
{
    return 7.0 * (double)c->d[0] * (double)c->d[1];
}

static double bn_infer_flops(const agglo_op_case *c)
{
    return 3.0 * (double)c->d[0] * (double)c->d[1];
}

static double bn_bwd_flops(const agglo_op_case *c)
{
    return 14.0 * (double)c->d[0] * (double)c->d[1];
}

/* arrays: x, w, b, running_mean, running_var, mean, rstd, y */
static void bn_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    ARRAY(0, IN, type, c->d[0], c->d[1]);
    for (int i = 1; i < 7; i++) {
        ARRAY(i, IN, AGGLO_F32, c->d[1]);
    }
    a[3].role = a[4].role = AGGLO_ARRAY_INOUT;
    a[4].draw = AGGLO_DRAW_SQUARE;
    a[5].role = a[6].role = AGGLO_ARRAY_OUT;
    ARRAY(7, OUT, type, c->d[0], c->d[1]);
}

static void bn_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    agglo_batchnorm(be, &t[0], &t[1], &t[2], AGGLO_TABLE_NORM_EPS, AGGLO_TABLE_MOMENTUM, agglo_op_act(c), &t[3], &t[4],
                    &t[5], &t[6], &t[7]);
}

/* arrays: x, w, b, mean, var, rstd, y */
static void bn_infer_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    ARRAY(0, IN, type, c->d[0], c->d[1]);
    for (int i = 1; i < 6; i++) {
        ARRAY(i, IN, AGGLO_F32, c->d[1]);
    }
    a[4].draw = AGGLO_DRAW_SQUARE;
    a[5].role = AGGLO_ARRAY_OUT;
    ARRAY(6, OUT, type, c->d[0], c->d[1]);
}

static void bn_infer_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    bool in_place = agglo_op_has(c, AGGLO_OP_IN_PLACE);

    if (in_place) {
        agglo_copy(be, t[6].data, t[0].data, agglo_tensor_bytes(&t[0]));
    }
    agglo_batchnorm_infer(be, in_place ? &t[6] : &t[0], &t[1], &t[2], &t[3], &t[4], AGGLO_TABLE_NORM_EPS,
                          agglo_op_act(c), &t[5], &t[6]);
}

/* arrays: d_y, x, w, b, mean, rstd, d_x, d_w, d_b */
static void bn_bwd_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    ARRAY(0, IN, type, c->d[0], c->d[1]);
    ARRAY(1, IN, type, c->d[0], c->d[1]);
    ARRAY(2, IN, AGGLO_F32, c->d[1]);
    ARRAY(3, IN, AGGLO_F32, c->d[1]);
    ARRAY(4, DERIVED, AGGLO_F32, c->d[1]);
    ARRAY(5, DERIVED, AGGLO_F32, c->d[1]);
    GRADIENT(6, type, c->d[0], c->d[1]);
    ARRAY(7, INOUT, AGGLO_F32, c->d[1]);
    ARRAY(8, INOUT, AGGLO_F32, c->d[1]);
}

static void bn_bwd_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    bool in_place = agglo_op_has(c, AGGLO_OP_IN_PLACE);

    if (in_place) {
        agglo_copy(be, t[6].data, t[0].data, agglo_tensor_bytes(&t[0]));
    }
    agglo_batchnorm_bwd(be, in_place ? &t[6] : &t[0], &t[1], &t[2], &t[3], &t[4], &t[5], agglo_op_act(c), c->d[2] != 0,
                        accumulates(c), &t[6], &t[7], &t[8]);
}

/* d = n, k; arrays: w, b, gamma, beta, mean, var, w_out, b_out */
static void fold_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    ARRAY(0, IN, AGGLO_F32, c->d[0], c->d[1]); /* masters */
    ARRAY_IF(agglo_op_has(c, AGGLO_OP_BIAS), 1, IN, AGGLO_F32, c->d[0]);
    for (int i = 2; i < 6; i++) {
        ARRAY(i, IN, AGGLO_F32, c->d[0]);
    }
    a[5].draw = AGGLO_DRAW_SQUARE;
    ARRAY(6, OUT, type, c->d[0], c->d[1]);
    ARRAY(7, OUT, AGGLO_F32, c->d[0]);
}

static void fold_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    bool in_place = agglo_op_has(c, AGGLO_OP_IN_PLACE);

    if (in_place) {
        agglo_cast(be, &t[0], &t[6]);
    }
    agglo_batchnorm_fold(be, in_place ? &t[6] : &t[0], agglo_op_optional(&t[1]), &t[2], &t[3], &t[4], &t[5],
                         AGGLO_TABLE_NORM_EPS, &t[6], &t[7]);
}

static double fold_flops(const agglo_op_case *c)
{
    return (double)c->d[0] * (double)c->d[1];
}

/* ---- pooling: d = b, h, w, c, kh, kw, stride, pad ---- */

static agglo_pool2d_config pool_config(const agglo_op_case *c)
{
    agglo_pool2d_config config = {(int)c->d[4], (int)c->d[5], (int)c->d[6], (int)c->d[6], (int)c->d[7], (int)c->d[7]};

    return config;
}

static double pool_flops(const agglo_op_case *c)
{
    return (double)(c->d[0] * c->d[3] * c->d[4] * c->d[5]) * (double)windows(c->d[1], c->d[4], c->d[6], c->d[7]) *
           (double)windows(c->d[2], c->d[5], c->d[6], c->d[7]);
}

#define IMAGE(i, role, dtype) ARRAY(i, role, dtype, c->d[0], c->d[1], c->d[2], c->d[3])
#define POOLED(i, role, dtype)                                                                                         \
    ARRAY(i, role, dtype, c->d[0], windows(c->d[1], c->d[4], c->d[6], c->d[7]),                                        \
          windows(c->d[2], c->d[5], c->d[6], c->d[7]), c->d[3])

static void avg_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    IMAGE(0, IN, type);
    POOLED(1, OUT, type);
}

static void avg_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    agglo_pool2d_config config = pool_config(c);

    agglo_avgpool2d(be, &config, &t[0], &t[1]);
}

/* arrays: d_y, d_x, x */
static void avg_bwd_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    POOLED(0, IN, type);
    GRADIENT(1, type, c->d[0], c->d[1], c->d[2], c->d[3]);
    IMAGE(2, ASIDE, type);
}

static void avg_bwd_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    agglo_pool2d_config config = pool_config(c);

    agglo_avgpool2d_bwd(be, &config, &t[0], accumulates(c), &t[1]);
}

static void max_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    IMAGE(0, IN, type);
    POOLED(1, OUT, type);
    POOLED(2, OUT, AGGLO_I32);
}

static void max_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    agglo_pool2d_config config = pool_config(c);

    agglo_maxpool2d(be, &config, &t[0], &t[1], &t[2]);
}

/* arrays: d_y, index, d_x, x */
static void max_bwd_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    POOLED(0, IN, type);
    POOLED(1, FIXED, AGGLO_I32);
    GRADIENT(2, type, c->d[0], c->d[1], c->d[2], c->d[3]);
    IMAGE(3, ASIDE, type);
}

/* Some place of each window, another for every channel. */
static void max_fill(const agglo_op_case *c, int i, void *data)
{
    int64_t oh = windows(c->d[1], c->d[4], c->d[6], c->d[7]), ow = windows(c->d[2], c->d[5], c->d[6], c->d[7]);
    int32_t *index = data;

    (void)i;
    for (int64_t at = 0; at < c->d[0] * oh * ow * c->d[3]; at++) {
        int64_t ox = at / c->d[3] % ow, oy = at / (c->d[3] * ow) % oh, tap = at * 7 % 11;
        int64_t iy = oy * c->d[6] - c->d[7] + tap % c->d[4], ix = ox * c->d[6] - c->d[7] + tap / 2 % c->d[5];

        iy = iy < 0 ? 0 : (iy < c->d[1] ? iy : c->d[1] - 1);
        ix = ix < 0 ? 0 : (ix < c->d[2] ? ix : c->d[2] - 1);
        index[at] = (int32_t)(iy * c->d[2] + ix);
    }
}

static void max_bwd_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    agglo_pool2d_config config = pool_config(c);

    agglo_maxpool2d_bwd(be, &config, &t[0], &t[1], accumulates(c), &t[2]);
}

/* ---- layout: d = b, c, h, w ---- */

static double no_flops(const agglo_op_case *c)
{
    (void)c;
    return 0.0;
}

static void to_nhwc_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    ARRAY(0, IN, type, c->d[0], c->d[1], c->d[2], c->d[3]);
    ARRAY(1, OUT, type, c->d[0], c->d[2], c->d[3], c->d[1]);
}

static void to_nhwc_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    (void)c;
    agglo_nchw_to_nhwc(be, &t[0], &t[1]);
}

static void to_nchw_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    ARRAY(0, IN, type, c->d[0], c->d[2], c->d[3], c->d[1]);
    ARRAY(1, OUT, type, c->d[0], c->d[1], c->d[2], c->d[3]);
}

static void to_nchw_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    (void)c;
    agglo_nhwc_to_nchw(be, &t[0], &t[1]);
}

/* d = outer, whole, inner, first, n: a run of axis 1 */
static void slice_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    ARRAY(0, IN, type, c->d[0], c->d[1], c->d[2]);
    ARRAY(1, OUT, type, c->d[0], c->d[4], c->d[2]);
}

static void slice_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    agglo_slice(be, 1, &t[0], c->d[3], &t[1]);
}

/* d_x is drawn even when it is written: the rest of it is left alone. arrays: d_y, d_x */
static void slice_bwd_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    ARRAY(0, IN, type, c->d[0], c->d[4], c->d[2]);
    ARRAY(1, INOUT, type, c->d[0], c->d[1], c->d[2]);
}

static void slice_bwd_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    agglo_slice_bwd(be, 1, &t[0], c->d[3], accumulates(c), &t[1]);
}

/* d = outer, inner, n0, n1, n2; arrays: the parts, the whole */
static void concat_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    for (int i = 0; i < 3; i++) {
        ARRAY(i, IN, type, c->d[0], c->d[2 + i], c->d[1]);
    }
    ARRAY(3, OUT, type, c->d[0], c->d[2] + c->d[3] + c->d[4], c->d[1]);
}

static void concat_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    const agglo_tensor *const parts[] = {&t[0], &t[1], &t[2]};

    (void)c;
    agglo_concat(be, 1, 3, parts, &t[3]);
}

static void concat_bwd_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    for (int i = 0; i < 3; i++) {
        GRADIENT(i, type, c->d[0], c->d[2 + i], c->d[1]);
    }
    ARRAY(3, IN, type, c->d[0], c->d[2] + c->d[3] + c->d[4], c->d[1]);
}

static void concat_bwd_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    agglo_tensor *const parts[] = {&t[0], &t[1], &t[2]};

    agglo_concat_bwd(be, 1, &t[3], accumulates(c), 3, parts);
}

/* ---- stochastic depth: d = b, n, c ---- */

static double drop_flops(const agglo_op_case *c)
{
    return 3.0 * (double)c->d[0] * (double)c->d[1] * (double)c->d[2];
}

static void drop_fill(const agglo_op_case *c, int i, void *data)
{
    float *scale = data;

    (void)i;
    for (int64_t b = 0; b < c->d[0]; b++) {
        scale[b] = b % 3 == 1 ? 0.0f : 1.25f;
    }
}

/* arrays: x, h, gamma, scale, y */
static void drop_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    ARRAY(0, IN, type, c->d[0], c->d[1], c->d[2]);
    ARRAY(1, IN, type, c->d[0], c->d[1], c->d[2]);
    ARRAY_IF(agglo_op_has(c, AGGLO_OP_GAMMA), 2, IN, AGGLO_F32, c->d[2]);
    ARRAY(3, FIXED, AGGLO_F32, c->d[0]);
    ARRAY(4, OUT, type, c->d[0], c->d[1], c->d[2]);
}

static void drop_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    bool in_place = agglo_op_has(c, AGGLO_OP_IN_PLACE);

    if (in_place) {
        agglo_copy(be, t[4].data, t[1].data, agglo_tensor_bytes(&t[1]));
    }
    agglo_residual_drop(be, &t[0], in_place ? &t[4] : &t[1], agglo_op_optional(&t[2]), &t[3], &t[4]);
}

/* arrays: d_y, h, gamma, scale, d_h, d_gamma */
static void drop_bwd_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    ARRAY(0, IN, type, c->d[0], c->d[1], c->d[2]);
    ARRAY(1, IN, type, c->d[0], c->d[1], c->d[2]);
    ARRAY_IF(agglo_op_has(c, AGGLO_OP_GAMMA), 2, IN, AGGLO_F32, c->d[2]);
    ARRAY(3, FIXED, AGGLO_F32, c->d[0]);
    GRADIENT(4, type, c->d[0], c->d[1], c->d[2]);
    ARRAY_IF(agglo_op_has(c, AGGLO_OP_GAMMA), 5, INOUT, AGGLO_F32, c->d[2]);
}

static void drop_bwd_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    bool in_place = agglo_op_has(c, AGGLO_OP_IN_PLACE);

    if (in_place) {
        agglo_copy(be, t[4].data, t[0].data, agglo_tensor_bytes(&t[0]));
    }
    agglo_residual_drop_bwd(be, in_place ? &t[4] : &t[0], &t[1], agglo_op_optional(&t[2]), &t[3], accumulates(c), &t[4],
                            agglo_op_optional(&t[5]));
}

#define OP(id, its_dims, its_flags, n, its_shape, its_fill, its_run, its_flops)                                        \
    static const agglo_op id = {.name = #id,                                                                           \
                                .dims = its_dims,                                                                      \
                                .flags = its_flags,                                                                    \
                                .n_arrays = n,                                                                         \
                                .shape = its_shape,                                                                    \
                                .fill = its_fill,                                                                      \
                                .run = its_run,                                                                        \
                                .flops = its_flops}

#define POOL_DIMS "b h w c kh kw stride pad"

OP(batchnorm, "m c", AGGLO_OP_ACT, 8, bn_shape, NULL, bn_run, bn_flops);
OP(batchnorm_infer, "m c", AGGLO_OP_ACT | AGGLO_OP_IN_PLACE, 7, bn_infer_shape, NULL, bn_infer_run, bn_infer_flops);
OP(batchnorm_bwd, "m c fixed", AGGLO_OP_ACT | AGGLO_OP_ACCUMULATE | AGGLO_OP_IN_PLACE, 9, bn_bwd_shape, NULL,
   bn_bwd_run, bn_bwd_flops);
OP(batchnorm_fold, "n k", AGGLO_OP_BIAS | AGGLO_OP_IN_PLACE, 8, fold_shape, NULL, fold_run, fold_flops);
OP(avgpool2d, POOL_DIMS, 0, 2, avg_shape, NULL, avg_run, pool_flops);
OP(avgpool2d_bwd, POOL_DIMS, AGGLO_OP_ACCUMULATE, 3, avg_bwd_shape, NULL, avg_bwd_run, pool_flops);
OP(maxpool2d, POOL_DIMS, 0, 3, max_shape, NULL, max_run, pool_flops);
OP(maxpool2d_bwd, POOL_DIMS, AGGLO_OP_ACCUMULATE, 4, max_bwd_shape, max_fill, max_bwd_run, pool_flops);
OP(nchw_to_nhwc, "b c h w", 0, 2, to_nhwc_shape, NULL, to_nhwc_run, no_flops);
OP(nhwc_to_nchw, "b c h w", 0, 2, to_nchw_shape, NULL, to_nchw_run, no_flops);
OP(slice, "outer whole inner first n", 0, 2, slice_shape, NULL, slice_run, no_flops);
OP(slice_bwd, "outer whole inner first n", AGGLO_OP_ACCUMULATE, 2, slice_bwd_shape, NULL, slice_bwd_run, no_flops);
OP(concat, "outer inner n0 n1 n2", 0, 4, concat_shape, NULL, concat_run, no_flops);
OP(concat_bwd, "outer inner n0 n1 n2", AGGLO_OP_ACCUMULATE, 4, concat_bwd_shape, NULL, concat_bwd_run, no_flops);
OP(residual_drop, "b n c", AGGLO_OP_GAMMA | AGGLO_OP_IN_PLACE, 5, drop_shape, drop_fill, drop_run, drop_flops);
OP(residual_drop_bwd, "b n c", AGGLO_OP_GAMMA | AGGLO_OP_ACCUMULATE | AGGLO_OP_IN_PLACE, 6, drop_bwd_shape, drop_fill,
   drop_bwd_run, drop_flops);

static const agglo_op_case cases[] = {
    PARITY(&batchnorm, BOTH, 0, 2, 1),
    PARITY(&batchnorm, BOTH, AGGLO_ACT_RELU, 63, 17),
    PARITY(&batchnorm, BOTH, AGGLO_ACT_SILU, 1000, 65),
    PARITY(&batchnorm, BOTH, 0, 5000, 6),
    PARITY(&batchnorm, BOTH, AGGLO_ACT_GELU, 49, 1024),
    PARITY(&batchnorm_infer, BOTH, 0, 1, 1),
    PARITY(&batchnorm_infer, BOTH, AGGLO_ACT_RELU | AGGLO_OP_IN_PLACE, 63, 17),
    PARITY(&batchnorm_infer, BOTH, AGGLO_ACT_SILU, 1000, 65),
    DIFFER(&batchnorm_bwd, BOTH, 0, 3, 2, 0),
    DIFFER(&batchnorm_bwd, BOTH, AGGLO_ACT_SILU | AGGLO_OP_ACCUMULATE, 63, 17, 0),
    DIFFER(&batchnorm_bwd, BOTH, AGGLO_ACT_SILU | AGGLO_OP_ACCUMULATE, 63, 17, 1),
    DIFFER(&batchnorm_bwd, BOTH, AGGLO_ACT_GELU | AGGLO_OP_IN_PLACE, 300, 65, 0),
    PARITY(&batchnorm_bwd, BOTH, AGGLO_ACT_RELU, 5000, 6, 0), /* kinks: no differences */
    PARITY(&batchnorm_bwd, BOTH, AGGLO_ACT_QUICK_GELU | AGGLO_OP_IN_PLACE, 1000, 33, 1),
    PARITY(&batchnorm_fold, BOTH, AGGLO_OP_BIAS, 1, 1),
    PARITY(&batchnorm_fold, BOTH, 0, 33, 27),
    PARITY(&batchnorm_fold, BOTH, AGGLO_OP_BIAS | AGGLO_OP_IN_PLACE, 17, 65),
    PARITY(&avgpool2d, BOTH, 0, 1, 1, 1, 1, 1, 1, 1, 0),
    PARITY(&avgpool2d, BOTH, 0, 2, 9, 7, 33, 2, 2, 2, 0),
    PARITY(&avgpool2d, BOTH, 0, 2, 8, 6, 65, 8, 6, 1, 0), /* global */
    PARITY(&avgpool2d, BOTH, 0, 1, 9, 11, 5, 3, 2, 1, 0),
    DIFFER(&avgpool2d_bwd, BOTH, 0, 2, 9, 7, 33, 2, 2, 2, 0),
    DIFFER(&avgpool2d_bwd, BOTH, AGGLO_OP_ACCUMULATE, 1, 9, 11, 5, 3, 2, 1, 0),
    PARITY(&maxpool2d, BOTH, 0, 1, 1, 1, 1, 1, 1, 1, 0),
    PARITY(&maxpool2d, BOTH, 0, 2, 9, 7, 33, 3, 3, 2, 1),
    PARITY(&maxpool2d, BOTH, 0, 1, 8, 11, 65, 2, 3, 1, 0),
    DIFFER(&maxpool2d_bwd, BOTH, 0, 2, 9, 7, 33, 3, 3, 2, 1),
    DIFFER(&maxpool2d_bwd, BOTH, AGGLO_OP_ACCUMULATE, 1, 8, 11, 65, 2, 3, 1, 0),
    PARITY(&nchw_to_nhwc, BOTH, 0, 1, 1, 1, 1),
    PARITY(&nchw_to_nhwc, BOTH, 0, 2, 37, 9, 5),
    PARITY(&nchw_to_nhwc, BOTH, 0, 3, 3, 33, 34),
    PARITY(&nhwc_to_nchw, BOTH, 0, 2, 37, 9, 5),
    PARITY(&nhwc_to_nchw, BOTH, 0, 1, 130, 1, 7),
    PARITY(&slice, BOTH, 0, 3, 17, 33, 1, 16),
    PARITY(&slice, BOTH, 0, 70, 64, 1, 32, 32), /* the second half of the channels */
    PARITY(&slice_bwd, BOTH, 0, 3, 17, 33, 1, 16),
    PARITY(&slice_bwd, BOTH, AGGLO_OP_ACCUMULATE, 70, 64, 1, 31, 33),
    PARITY(&concat, BOTH, 0, 77, 1, 16, 5, 33),
    PARITY(&concat, BOTH, 0, 2, 20, 1, 4, 49),
    PARITY(&concat_bwd, BOTH, 0, 77, 1, 16, 5, 33),
    PARITY(&concat_bwd, BOTH, AGGLO_OP_ACCUMULATE, 2, 20, 1, 4, 49),
    PARITY(&residual_drop, BOTH, 0, 1, 1, 1),
    PARITY(&residual_drop, BOTH, AGGLO_OP_GAMMA, 5, 17, 65),
    PARITY(&residual_drop, BOTH, AGGLO_OP_GAMMA | AGGLO_OP_IN_PLACE, 4, 50, 96),
    DIFFER(&residual_drop_bwd, BOTH, AGGLO_OP_GAMMA, 5, 17, 65),
    DIFFER(&residual_drop_bwd, BOTH, AGGLO_OP_ACCUMULATE, 3, 7, 12),
    PARITY(&residual_drop_bwd, BOTH, AGGLO_OP_GAMMA | AGGLO_OP_IN_PLACE, 4, 350, 35),

    BENCH(&batchnorm, BOTH, AGGLO_ACT_SILU, "E-RADIO-B stage 1", EACH(3136), 128),
    BENCH(&batchnorm, BOTH, AGGLO_ACT_SILU, "E-RADIO-B stage 2", EACH(784), 256),
    BENCH(&batchnorm_infer, BOTH, AGGLO_ACT_SILU, "E-RADIO-B stage 1", EACH(3136), 128),
    BENCH(&batchnorm_bwd, BOTH, AGGLO_ACT_SILU, "E-RADIO-B stage 1", EACH(3136), 128, 0),
    BENCH(&batchnorm_bwd, BOTH, AGGLO_ACT_SILU, "E-RADIO-B stage 2", EACH(784), 256, 0),
    BENCH(&batchnorm_fold, BOTH, 0, "E-RADIO-B down 3", 1024, 4608),
    BENCH(&avgpool2d, BOTH, 0, "64x64 tokens by 2", EACH(1), 64, 64, 256, 2, 2, 2, 0),
    BENCH(&avgpool2d_bwd, BOTH, 0, "64x64 tokens by 2", EACH(1), 64, 64, 256, 2, 2, 2, 0),
    BENCH(&maxpool2d, BOTH, 0, "ResNet stem", EACH(1), 112, 112, 64, 3, 3, 2, 1),
    BENCH(&maxpool2d_bwd, BOTH, 0, "ResNet stem", EACH(1), 112, 112, 64, 3, 3, 2, 1),
    BENCH(&nchw_to_nhwc, BOTH, 0, "SAM neck", EACH(1), 256, 64, 64),
    BENCH(&nhwc_to_nchw, BOTH, 0, "SAM neck", EACH(1), 256, 64, 64),
    BENCH(&slice, BOTH, 0, "E-RADIO-B stage 1 half", EACH(3136), 128, 1, 64, 64),
    BENCH(&concat, BOTH, 0, "E-RADIO-B stage 1", EACH(3136), 1, 64, 64, 64),
    BENCH(&residual_drop, BOTH, AGGLO_OP_GAMMA, "ViT-B", EACH(1), 197, 768),
    BENCH(&residual_drop_bwd, BOTH, AGGLO_OP_GAMMA, "ViT-B", EACH(1), 197, 768),
};

const agglo_op_family agglo_family_maps = {"maps", cases, AGGLO_COUNT(cases)};
