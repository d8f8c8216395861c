/* The table's matrix products: d = m, n, k. */
#include "tensor/table/table_impl.h"

static double product_flops(const agglo_op_case *c)
{
    return 2.0 * (double)c->d[0] * (double)c->d[1] * (double)c->d[2];
}

/* arrays: x, w, b, y, pre */
static void linear_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    ARRAY(0, IN, type, c->d[0], c->d[2]);
    ARRAY(1, IN, type, c->d[1], c->d[2]);
    ARRAY_IF(agglo_op_has(c, AGGLO_OP_BIAS), 2, IN, AGGLO_F32, c->d[1]);
    ARRAY(3, OUT, type, c->d[0], c->d[1]);
    ARRAY_IF(agglo_op_has(c, AGGLO_OP_PRE), 4, OUT, type, c->d[0], c->d[1]);
}

static void linear_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    agglo_linear(be, &t[0], &t[1], agglo_op_optional(&t[2]), agglo_op_act(c), agglo_op_optional(&t[4]), &t[3]);
}

/* arrays: d_y, w, d_x, x */
static void linear_input_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    ARRAY(0, IN, type, c->d[0], c->d[1]);
    ARRAY(1, IN, type, c->d[1], c->d[2]);
    GRADIENT(2, type, c->d[0], c->d[2]);
    ARRAY(3, ASIDE, type, c->d[0], c->d[2]);
}

static void linear_input_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    agglo_linear_bwd_input(be, &t[0], &t[1], agglo_op_has(c, AGGLO_OP_ACCUMULATE), &t[2]);
}

/* arrays: d_y, x, d_w, d_b, w, b */
static void linear_weight_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    ARRAY(0, IN, type, c->d[0], c->d[1]);
    ARRAY(1, IN, type, c->d[0], c->d[2]);
    ARRAY(2, INOUT, AGGLO_F32, c->d[1], c->d[2]);
    ARRAY(4, ASIDE, type, c->d[1], c->d[2]);
    if (agglo_op_has(c, AGGLO_OP_BIAS)) {
        ARRAY(3, INOUT, AGGLO_F32, c->d[1]);
        ARRAY(5, ASIDE, AGGLO_F32, c->d[1]);
    }
}

static void linear_weight_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    (void)c;
    agglo_linear_bwd_weight(be, &t[0], &t[1], &t[2], agglo_op_optional(&t[3]));
}

static const agglo_op linear = {.name = "linear",
                                .dims = "m n k",
                                .flags = AGGLO_OP_ACT | AGGLO_OP_BIAS | AGGLO_OP_PRE,
                                .n_arrays = 5,
                                .shape = linear_shape,
                                .run = linear_run,
                                .flops = product_flops};
static const agglo_op linear_bwd_input = {.name = "linear_bwd_input",
                                          .dims = "m n k",
                                          .flags = AGGLO_OP_ACCUMULATE,
                                          .n_arrays = 4,
                                          .shape = linear_input_shape,
                                          .run = linear_input_run,
                                          .flops = product_flops};
static const agglo_op linear_bwd_weight = {.name = "linear_bwd_weight",
                                           .dims = "m n k",
                                           .flags = AGGLO_OP_BIAS,
                                           .n_arrays = 6,
                                           .shape = linear_weight_shape,
                                           .run = linear_weight_run,
                                           .flops = product_flops};

static const agglo_op_case cases[] = {
    PARITY(&linear, BOTH, 0, 1, 1, 1),
    PARITY(&linear, BOTH, AGGLO_OP_BIAS | AGGLO_ACT_GELU | AGGLO_OP_PRE, 1, 17, 5),
    PARITY(&linear, BOTH, AGGLO_OP_BIAS | AGGLO_ACT_QUICK_GELU | AGGLO_OP_PRE, 3, 300, 33),
    PARITY(&linear, BOTH, AGGLO_OP_BIAS, 65, 129, 70),
    PARITY(&linear, BOTH, AGGLO_ACT_SILU | AGGLO_OP_PRE, 257, 96, 48),
    PARITY(&linear, BOTH, AGGLO_OP_BIAS | AGGLO_ACT_RELU, 515, 131, 64),
    PARITY(&linear, BOTH, AGGLO_OP_BIAS | AGGLO_OP_PRE, 700, 40, 588),
    DIFFER(&linear_bwd_input, BOTH, 0, 1, 1, 1),
    DIFFER(&linear_bwd_input, BOTH, AGGLO_OP_ACCUMULATE, 7, 33, 19),
    PARITY(&linear_bwd_input, BOTH, 0, 300, 65, 130),
    PARITY(&linear_bwd_input, BOTH, AGGLO_OP_ACCUMULATE, 515, 40, 17),
    DIFFER(&linear_bwd_weight, BOTH, AGGLO_OP_BIAS, 1, 1, 1),
    DIFFER(&linear_bwd_weight, BOTH, AGGLO_OP_BIAS, 31, 19, 23),
    PARITY(&linear_bwd_weight, BOTH, 0, 600, 130, 33),
    PARITY(&linear_bwd_weight, BOTH, AGGLO_OP_BIAS, 130, 1030, 65),
    PARITY(&linear_bwd_weight, BOTH, AGGLO_OP_BIAS, 1000, 24, 300),

    BENCH(&linear, BOTH, AGGLO_OP_BIAS, "ViT-B qkv", EACH(197), 2304, 768),
    BENCH(&linear, BOTH, AGGLO_OP_BIAS, "ViT-B proj", EACH(197), 768, 768),
    BENCH(&linear, BOTH, AGGLO_OP_BIAS | AGGLO_ACT_GELU, "ViT-B fc1", EACH(197), 3072, 768),
    BENCH(&linear, BOTH, AGGLO_OP_BIAS | AGGLO_ACT_GELU | AGGLO_OP_PRE, "ViT-B fc1 in training", EACH(197), 3072, 768),
    BENCH(&linear, BOTH, AGGLO_OP_BIAS, "ViT-B fc2", EACH(197), 768, 3072),
    BENCH(&linear, BOTH, AGGLO_OP_BIAS, "ViT-L qkv", EACH(197), 3072, 1024),
    BENCH(&linear, BOTH, AGGLO_OP_BIAS | AGGLO_ACT_QUICK_GELU, "ViT-L fc1", EACH(197), 4096, 1024),
    BENCH(&linear, BOTH, AGGLO_OP_BIAS, "ViT-L fc2", EACH(197), 1024, 4096),
    BENCH(&linear, BOTH, AGGLO_OP_BIAS | AGGLO_ACT_GELU, "ViT-Ti fc1", EACH(197), 768, 192),
    BENCH(&linear, BOTH, AGGLO_OP_BIAS, "demo student qkv", EACH(65), 384, 128),
    BENCH(&linear_bwd_input, BOTH, 0, "ViT-B qkv", EACH(197), 2304, 768),
    BENCH(&linear_bwd_input, BOTH, 0, "ViT-B fc1", EACH(197), 3072, 768),
    BENCH(&linear_bwd_input, BOTH, 0, "ViT-B fc2", EACH(197), 768, 3072),
    BENCH(&linear_bwd_input, BOTH, 0, "ViT-L fc1", EACH(197), 4096, 1024),
    BENCH(&linear_bwd_weight, BOTH, AGGLO_OP_BIAS, "ViT-B qkv", EACH(197), 2304, 768),
    BENCH(&linear_bwd_weight, BOTH, AGGLO_OP_BIAS, "ViT-B fc1", EACH(197), 3072, 768),
    BENCH(&linear_bwd_weight, BOTH, AGGLO_OP_BIAS, "ViT-B fc2", EACH(197), 768, 3072),
    BENCH(&linear_bwd_weight, BOTH, AGGLO_OP_BIAS, "ViT-L fc1", EACH(197), 4096, 1024),
};

const agglo_op_family agglo_family_linear = {"linear", cases, AGGLO_COUNT(cases)};
