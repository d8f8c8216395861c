/* The table's elementwise operators: activations, SwiGLU, residuals, axpy, casts. */
#include "tensor/table/table_impl.h"

/* ---- activations: d = n ---- */

static double activate_flops(const agglo_op_case *c)
{
    return (double)c->d[0];
}

static double activate_bwd_flops(const agglo_op_case *c)
{
    return 2.0 * (double)c->d[0];
}

static void activate_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    ARRAY(0, IN, type, c->d[0]);
    ARRAY(1, OUT, type, c->d[0]);
}

static void activate_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    if (agglo_op_has(c, AGGLO_OP_IN_PLACE)) {
        agglo_copy(be, t[1].data, t[0].data, agglo_tensor_bytes(&t[0]));
        agglo_activate(be, agglo_op_act(c), &t[1], &t[1]);
    } else {
        agglo_activate(be, agglo_op_act(c), &t[0], &t[1]);
    }
}

/* arrays: x, d_y, d_x */
static void activate_bwd_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    ARRAY(0, IN, type, c->d[0]);
    ARRAY(1, IN, type, c->d[0]);
    ARRAY(2, OUT, type, c->d[0]);
}

static void activate_bwd_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    if (agglo_op_has(c, AGGLO_OP_IN_PLACE)) {
        agglo_copy(be, t[2].data, t[1].data, agglo_tensor_bytes(&t[1]));
        agglo_activate_bwd(be, agglo_op_act(c), &t[0], &t[2], &t[2]);
    } else {
        agglo_activate_bwd(be, agglo_op_act(c), &t[0], &t[1], &t[2]);
    }
}

/* ---- swiglu: d = m, h ---- */

static double swiglu_flops(const agglo_op_case *c)
{
    return 2.0 * (double)c->d[0] * (double)c->d[1];
}

static double swiglu_bwd_flops(const agglo_op_case *c)
{
    return 6.0 * (double)c->d[0] * (double)c->d[1];
}

static void swiglu_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    ARRAY(0, IN, type, c->d[0], 2 * c->d[1]);
    ARRAY(1, OUT, type, c->d[0], c->d[1]);
}

static void swiglu_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    (void)c;
    agglo_swiglu(be, &t[0], &t[1]);
}

/* arrays: u, d_y, d_u */
static void swiglu_bwd_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    ARRAY(0, IN, type, c->d[0], 2 * c->d[1]);
    ARRAY(1, IN, type, c->d[0], c->d[1]);
    ARRAY(2, OUT, type, c->d[0], 2 * c->d[1]);
}

static void swiglu_bwd_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    (void)c;
    agglo_swiglu_bwd(be, &t[0], &t[1], &t[2]);
}

/* ---- residual: d = m, c ---- */

static double residual_flops(const agglo_op_case *c)
{
    return (agglo_op_has(c, AGGLO_OP_GAMMA) ? 2.0 : 1.0) * (double)c->d[0] * (double)c->d[1];
}

static double residual_bwd_flops(const agglo_op_case *c)
{
    return 3.0 * (double)c->d[0] * (double)c->d[1];
}

/* arrays: x, h, gamma, y */
static void residual_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    ARRAY(0, IN, type, c->d[0], c->d[1]);
    ARRAY(1, IN, type, c->d[0], c->d[1]);
    ARRAY_IF(agglo_op_has(c, AGGLO_OP_GAMMA), 2, IN, AGGLO_F32, c->d[1]);
    ARRAY(3, OUT, type, c->d[0], c->d[1]);
}

static void residual_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    if (agglo_op_has(c, AGGLO_OP_IN_PLACE)) {
        agglo_copy(be, t[3].data, t[1].data, agglo_tensor_bytes(&t[1]));
        agglo_residual(be, &t[0], &t[3], agglo_op_optional(&t[2]), &t[3]);
    } else {
        agglo_residual(be, &t[0], &t[1], agglo_op_optional(&t[2]), &t[3]);
    }
}

/* arrays: d_y, h, gamma, d_h, d_gamma */
static void residual_bwd_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    ARRAY(0, IN, type, c->d[0], c->d[1]);
    ARRAY(1, IN, type, c->d[0], c->d[1]);
    ARRAY(2, IN, AGGLO_F32, c->d[1]);
    ARRAY(3, OUT, type, c->d[0], c->d[1]);
    ARRAY(4, INOUT, AGGLO_F32, c->d[1]);
}

static void residual_bwd_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    if (agglo_op_has(c, AGGLO_OP_IN_PLACE)) {
        agglo_copy(be, t[3].data, t[0].data, agglo_tensor_bytes(&t[0]));
        agglo_residual_bwd(be, &t[3], &t[1], &t[2], &t[3], &t[4]);
    } else {
        agglo_residual_bwd(be, &t[0], &t[1], &t[2], &t[3], &t[4]);
    }
}

/* ---- axpy, cast: d = n ---- */

static double axpy_flops(const agglo_op_case *c)
{
    return 2.0 * (double)c->d[0];
}

static void axpy_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    ARRAY(0, IN, type, c->d[0]);
    ARRAY(1, INOUT, type, c->d[0]);
}

static void axpy_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    (void)c;
    agglo_axpy(be, AGGLO_TABLE_AXPY, &t[0], &t[1]);
}

static double cast_flops(const agglo_op_case *c)
{
    (void)c;
    return 0.0;
}

/* A cast names both its types: the storage type has no part in it. */
static void cast_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    (void)type;
    ARRAY(0, IN, AGGLO_F32, c->d[0]);
    ARRAY(1, OUT, AGGLO_F32, c->d[0]);
    a[0].dtype = agglo_op_has(c, AGGLO_OP_FROM_F16)    ? AGGLO_F16
                 : agglo_op_has(c, AGGLO_OP_FROM_BF16) ? AGGLO_BF16
                                                       : AGGLO_F32;
    a[1].dtype = agglo_op_has(c, AGGLO_OP_TO_F16)    ? AGGLO_F16
                 : agglo_op_has(c, AGGLO_OP_TO_BF16) ? AGGLO_BF16
                                                     : AGGLO_F32;
}

static void cast_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    (void)c;
    agglo_cast(be, &t[0], &t[1]);
}

static const agglo_op activate = {.name = "activate",
                                  .dims = "n",
                                  .flags = AGGLO_OP_ACT | AGGLO_OP_IN_PLACE,
                                  .n_arrays = 2,
                                  .shape = activate_shape,
                                  .run = activate_run,
                                  .flops = activate_flops};
static const agglo_op activate_bwd = {.name = "activate_bwd",
                                      .dims = "n",
                                      .flags = AGGLO_OP_ACT | AGGLO_OP_IN_PLACE,
                                      .n_arrays = 3,
                                      .shape = activate_bwd_shape,
                                      .run = activate_bwd_run,
                                      .flops = activate_bwd_flops};
static const agglo_op swiglu = {
    .name = "swiglu", .dims = "m h", .n_arrays = 2, .shape = swiglu_shape, .run = swiglu_run, .flops = swiglu_flops};
static const agglo_op swiglu_bwd = {.name = "swiglu_bwd",
                                    .dims = "m h",
                                    .n_arrays = 3,
                                    .shape = swiglu_bwd_shape,
                                    .run = swiglu_bwd_run,
                                    .flops = swiglu_bwd_flops};
static const agglo_op residual = {.name = "residual",
                                  .dims = "m c",
                                  .flags = AGGLO_OP_GAMMA | AGGLO_OP_IN_PLACE,
                                  .n_arrays = 4,
                                  .shape = residual_shape,
                                  .run = residual_run,
                                  .flops = residual_flops};
static const agglo_op residual_bwd = {.name = "residual_bwd",
                                      .dims = "m c",
                                      .flags = AGGLO_OP_IN_PLACE,
                                      .n_arrays = 5,
                                      .shape = residual_bwd_shape,
                                      .run = residual_bwd_run,
                                      .flops = residual_bwd_flops};
static const agglo_op axpy = {
    .name = "axpy", .dims = "n", .n_arrays = 2, .shape = axpy_shape, .run = axpy_run, .flops = axpy_flops};
static const agglo_op cast = {.name = "cast",
                              .dims = "n",
                              .flags = AGGLO_OP_FROM_F16 | AGGLO_OP_FROM_BF16 | AGGLO_OP_TO_F16 | AGGLO_OP_TO_BF16,
                              .n_arrays = 2,
                              .shape = cast_shape,
                              .run = cast_run,
                              .flops = cast_flops};

static const agglo_op_case cases[] = {
    PARITY(&activate, BOTH, AGGLO_ACT_GELU, 1),
    PARITY(&activate, BOTH, AGGLO_ACT_NONE, 1000),
    PARITY(&activate, BOTH, AGGLO_ACT_GELU, 20011),
    PARITY(&activate, BOTH, AGGLO_ACT_GELU | AGGLO_OP_IN_PLACE, 20011),
    PARITY(&activate, BOTH, AGGLO_ACT_QUICK_GELU, 20011),
    PARITY(&activate, BOTH, AGGLO_ACT_SILU | AGGLO_OP_IN_PLACE, 777),
    PARITY(&activate, BOTH, AGGLO_ACT_RELU, 777),
    DIFFER(&activate_bwd, BOTH, AGGLO_ACT_GELU, 1),
    DIFFER(&activate_bwd, BOTH, AGGLO_ACT_NONE | AGGLO_OP_IN_PLACE, 1000),
    DIFFER(&activate_bwd, BOTH, AGGLO_ACT_GELU, 20011),
    DIFFER(&activate_bwd, BOTH, AGGLO_ACT_QUICK_GELU | AGGLO_OP_IN_PLACE, 20011),
    DIFFER(&activate_bwd, BOTH, AGGLO_ACT_SILU, 777),
    PARITY(&activate_bwd, BOTH, AGGLO_ACT_RELU, 777), /* not differentiable where differences might cross 0 */
    PARITY(&swiglu, BOTH, 0, 1, 1),
    PARITY(&swiglu, BOTH, 0, 37, 171),
    PARITY(&swiglu, BOTH, 0, 300, 96),
    DIFFER(&swiglu_bwd, BOTH, 0, 1, 1),
    DIFFER(&swiglu_bwd, BOTH, 0, 37, 171),
    PARITY(&residual, BOTH, 0, 1, 1),
    PARITY(&residual, BOTH, AGGLO_OP_GAMMA, 77, 65),
    PARITY(&residual, BOTH, AGGLO_OP_GAMMA | AGGLO_OP_IN_PLACE, 77, 65),
    PARITY(&residual, BOTH, AGGLO_OP_IN_PLACE, 300, 96),
    DIFFER(&residual_bwd, BOTH, 0, 1, 1),
    DIFFER(&residual_bwd, BOTH, 0, 77, 300),
    DIFFER(&residual_bwd, BOTH, AGGLO_OP_IN_PLACE, 600, 65),
    PARITY(&residual_bwd, BOTH, 0, 5000, 35),
    PARITY(&residual_bwd, BOTH, 0, 300, 264),
    PARITY(&axpy, BOTH, 0, 20011),
    PARITY(&cast, F32, 0, 20011),
    PARITY(&cast, F32, AGGLO_OP_FROM_F16, 20011),
    PARITY(&cast, F32, AGGLO_OP_FROM_BF16, 20011),
    PARITY(&cast, F32, AGGLO_OP_TO_F16, 20011),
    PARITY(&cast, F32, AGGLO_OP_TO_BF16, 20011),

    BENCH(&activate, BOTH, AGGLO_ACT_GELU, "ViT-B fc1", EACH(197 * 3072)),
    BENCH(&activate, BOTH, AGGLO_ACT_QUICK_GELU, "ViT-L fc1", EACH(197 * 4096)),
    BENCH(&activate_bwd, BOTH, AGGLO_ACT_GELU, "ViT-B fc1", EACH(197 * 3072)),
    BENCH(&swiglu, BOTH, 0, "DINOv2 g", EACH(257), 4096),
    BENCH(&swiglu_bwd, BOTH, 0, "DINOv2 g", EACH(257), 4096),
    BENCH(&residual, BOTH, 0, "ViT-B", EACH(197), 768),
    BENCH(&residual, BOTH, AGGLO_OP_GAMMA, "DINOv2 B", EACH(257), 768),
    BENCH(&residual_bwd, BOTH, 0, "DINOv2 B", EACH(257), 768),
    BENCH(&axpy, BOTH, 0, "ViT-B x", EACH(197 * 768)),
    BENCH(&cast, F32, AGGLO_OP_TO_BF16, "ViT-B weights", 85646592),
    BENCH(&cast, F32, AGGLO_OP_FROM_F16, "CLIP H targets", EACH(256 * 1280)),
};

const agglo_op_family agglo_family_elementwise = {"elementwise", cases, AGGLO_COUNT(cases)};
