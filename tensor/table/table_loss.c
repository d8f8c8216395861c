/* The table's distillation losses: d = b, n, c. */
#include "tensor/table/table_impl.h"

const agglo_loss_config agglo_table_loss_config = {1.5f, 0.9f, 0.1f, 1.0f};

/* three dot products, the smooth-L1 value and both gradients */
static double loss_flops(const agglo_op_case *c)
{
    return 18.0 * (double)c->d[0] * (double)c->d[1] * (double)c->d[2];
}

/* arrays: pred, target, valid, d_pred, sums */
static void loss_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    agglo_dtype target = agglo_op_has(c, AGGLO_OP_FROM_F16)    ? AGGLO_F16
                         : agglo_op_has(c, AGGLO_OP_FROM_BF16) ? AGGLO_BF16
                                                               : AGGLO_F32;

    ARRAY(0, IN, type, c->d[0], c->d[1], c->d[2]);
    ARRAY(1, IN, target, c->d[0], c->d[1], c->d[2]);
    ARRAY_IF(agglo_op_has(c, AGGLO_OP_SOME_INVALID | AGGLO_OP_ALL_INVALID), 2, FIXED, AGGLO_F32, c->d[0]);
    ARRAY(3, OUT, type, c->d[0], c->d[1], c->d[2]);
    ARRAY(4, INOUT, AGGLO_F32, 4);
}

static void loss_fill(const agglo_op_case *c, int i, void *data)
{
    float *valid = data;

    (void)i;
    for (int64_t b = 0; b < c->d[0]; b++) {
        valid[b] = agglo_op_has(c, AGGLO_OP_ALL_INVALID) || b % 3 == 1 ? 0.0f : 1.0f;
    }
}

static void loss_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    (void)c;
    agglo_distill_loss(be, &agglo_table_loss_config, &t[0], &t[1], agglo_op_optional(&t[2]), AGGLO_TABLE_GRAD_SCALE,
                       &t[3], &t[4]);
}

static const agglo_op distill_loss = {"distill_loss",
                                      "b n c",
                                      AGGLO_OP_FROM_F16 | AGGLO_OP_FROM_BF16 | AGGLO_OP_SOME_INVALID |
                                          AGGLO_OP_ALL_INVALID,
                                      5,
                                      loss_shape,
                                      loss_fill,
                                      loss_run,
                                      loss_flops,
                                      NULL};

static const agglo_op_case cases[] = {
    DIFFER(&distill_loss, F32, 0, 1, 1, 5),
    DIFFER(&distill_loss, F32, AGGLO_OP_FROM_F16 | AGGLO_OP_SOME_INVALID, 5, 1, 513),
    DIFFER(&distill_loss, F32, AGGLO_OP_SOME_INVALID, 5, 17, 96),
    DIFFER(&distill_loss, F32, AGGLO_OP_FROM_F16, 4, 49, 65),
    DIFFER(&distill_loss, F32, AGGLO_OP_FROM_BF16 | AGGLO_OP_SOME_INVALID, 4, 49, 65),
    PARITY(&distill_loss, F32, AGGLO_OP_ALL_INVALID, 3, 4, 10),

    BENCH(&distill_loss, F32, AGGLO_OP_FROM_F16, "CLIP H patches", EACH(1), 256, 1280),
    BENCH(&distill_loss, F32, AGGLO_OP_FROM_F16, "DINOv2 g patches", EACH(1), 256, 1536),
};

const agglo_op_family agglo_family_loss = {"loss", cases, AGGLO_COUNT(cases)};
