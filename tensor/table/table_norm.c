/* The table's norms: layernorm, d = m, c. */
#include "tensor/table/table_impl.h"

static double layernorm_flops(const agglo_op_case *c)
{
    return 7.0 * (double)c->d[0] * (double)c->d[1];
}

static double layernorm_bwd_flops(const agglo_op_case *c)
{
    return 14.0 * (double)c->d[0] * (double)c->d[1];
}

/* arrays: x, w, b, y, mean, rstd */
static void layernorm_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    ARRAY(0, IN, type, c->d[0], c->d[1]);
    ARRAY(1, IN, AGGLO_F32, c->d[1]);
    ARRAY(2, IN, AGGLO_F32, c->d[1]);
    ARRAY(3, OUT, type, c->d[0], c->d[1]);
    ARRAY(4, OUT, AGGLO_F32, c->d[0]);
    ARRAY(5, OUT, AGGLO_F32, c->d[0]);
}

static void layernorm_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    if (agglo_op_has(c, AGGLO_OP_IN_PLACE)) {
        agglo_layernorm(be, &t[0], &t[1], &t[2], AGGLO_TABLE_NORM_EPS, &t[3], &t[4], &t[5]); /* statistics */
        agglo_copy(be, t[3].data, t[0].data, agglo_tensor_bytes(&t[0]));
        agglo_layernorm(be, &t[3], &t[1], &t[2], AGGLO_TABLE_NORM_EPS, &t[3], NULL, NULL);
    } else {
        agglo_layernorm(be, &t[0], &t[1], &t[2], AGGLO_TABLE_NORM_EPS, &t[3], &t[4], &t[5]);
    }
}

/* arrays: d_y, x, w, mean, rstd, d_x, d_w, d_b, b */
static void layernorm_bwd_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    ARRAY(0, IN, type, c->d[0], c->d[1]);
    ARRAY(1, IN, type, c->d[0], c->d[1]);
    ARRAY(2, IN, AGGLO_F32, c->d[1]);
    ARRAY(3, DERIVED, AGGLO_F32, c->d[0]);
    ARRAY(4, DERIVED, AGGLO_F32, c->d[0]);
    GRADIENT(5, type, c->d[0], c->d[1]);
    ARRAY(6, INOUT, AGGLO_F32, c->d[1]);
    ARRAY(7, INOUT, AGGLO_F32, c->d[1]);
    ARRAY(8, ASIDE, AGGLO_F32, c->d[1]);
}

static void layernorm_bwd_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    agglo_layernorm_bwd(be, &t[0], &t[1], &t[2], &t[3], &t[4], agglo_op_has(c, AGGLO_OP_ACCUMULATE), &t[5], &t[6],
                        &t[7]);
}

static const agglo_op layernorm = {.name = "layernorm",
                                   .dims = "m c",
                                   .flags = AGGLO_OP_IN_PLACE,
                                   .n_arrays = 6,
                                   .shape = layernorm_shape,
                                   .run = layernorm_run,
                                   .flops = layernorm_flops};
static const agglo_op layernorm_bwd = {.name = "layernorm_bwd",
                                       .dims = "m c",
                                       .flags = AGGLO_OP_ACCUMULATE,
                                       .n_arrays = 9,
                                       .shape = layernorm_bwd_shape,
                                       .run = layernorm_bwd_run,
                                       .flops = layernorm_bwd_flops};

static const agglo_op_case cases[] = {
    PARITY(&layernorm, BOTH, 0, 1, 2),
    PARITY(&layernorm, BOTH, AGGLO_OP_IN_PLACE, 5, 17),
    PARITY(&layernorm, BOTH, 0, 300, 96),
    PARITY(&layernorm, BOTH, 0, 33, 768),
    PARITY(&layernorm, BOTH, AGGLO_OP_IN_PLACE, 20, 1408),
    DIFFER(&layernorm_bwd, BOTH, 0, 1, 3),
    DIFFER(&layernorm_bwd, BOTH, AGGLO_OP_ACCUMULATE, 19, 33),
    DIFFER(&layernorm_bwd, BOTH, 0, 300, 96),
    PARITY(&layernorm_bwd, BOTH, AGGLO_OP_ACCUMULATE, 1100, 40),
    PARITY(&layernorm_bwd, BOTH, 0, 5000, 21),
    PARITY(&layernorm_bwd, BOTH, 0, 33, 1280),

    BENCH(&layernorm, BOTH, 0, "ViT-B", EACH(197), 768),
    BENCH(&layernorm, BOTH, 0, "ViT-L", EACH(197), 1024),
    BENCH(&layernorm, BOTH, 0, "SAM-H", 4096, 1280),
    BENCH(&layernorm_bwd, BOTH, AGGLO_OP_ACCUMULATE, "ViT-B", EACH(197), 768),
    BENCH(&layernorm_bwd, BOTH, AGGLO_OP_ACCUMULATE, "ViT-L", EACH(197), 1024),
};

const agglo_op_family agglo_family_norm = {"norm", cases, AGGLO_COUNT(cases)};
