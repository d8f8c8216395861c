/* The table's optimiser: AdamW, sum of squares; d = n. */
#include "tensor/table/table_impl.h"

const agglo_adamw_config agglo_table_adamw_config = {1e-2f, 0.9f, 0.999f, 1e-8f, 0.05f, 0.7f, 3};

static double adamw_flops(const agglo_op_case *c)
{
    return 15.0 * (double)c->d[0];
}

static double squares_flops(const agglo_op_case *c)
{
    return 2.0 * (double)c->d[0];
}

/* arrays: p, g, m, v */
static void adamw_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    (void)type; /* masters, gradients and moments are F32 */
    ARRAY(0, INOUT, AGGLO_F32, c->d[0]);
    ARRAY(1, IN, AGGLO_F32, c->d[0]);
    ARRAY(2, INOUT, AGGLO_F32, c->d[0]);
    ARRAY(3, INOUT, AGGLO_F32, c->d[0]);
    a[3].draw = AGGLO_DRAW_SQUARE;
}

static void adamw_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    (void)c;
    agglo_adamw(be, &agglo_table_adamw_config, &t[0], &t[1], &t[2], &t[3]);
}

static void squares_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    ARRAY(0, IN, type, c->d[0]);
    ARRAY(1, INOUT, AGGLO_F32, 1);
}

static void squares_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    (void)c;
    agglo_sum_squares(be, &t[0], &t[1]);
}

static const agglo_op adamw = {"adamw", "n", 0, 4, adamw_shape, NULL, adamw_run, adamw_flops, NULL};
static const agglo_op sum_squares = {"sum_squares", "n", 0, 2, squares_shape, NULL, squares_run, squares_flops, NULL};

static const agglo_op_case cases[] = {
    PARITY(&adamw, F32, 0, 1),
    PARITY(&adamw, F32, 0, 40001),
    PARITY(&sum_squares, F32, 0, 1),
    PARITY(&sum_squares, F32, 0, 100003),

    BENCH(&adamw, F32, 0, "ViT-B fc1", 3072 * 768),
    BENCH(&adamw, F32, 0, "ViT-B", 85646592),
    BENCH(&sum_squares, F32, 0, "ViT-B", 85646592),
};

const agglo_op_family agglo_family_optim = {"optim", cases, AGGLO_COUNT(cases)};
