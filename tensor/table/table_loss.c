/* The table's distillation losses: of plain targets, d = b, n, c, and of targets in every stored form, d = b, n, k, c. */
#include "tensor/table/table_impl.h"

#include <string.h>

const agglo_loss_config agglo_table_loss_config = {1.5f, 0.9f, 0.1f, 1.0f, 0.0f};

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

static const agglo_op distill_loss = {.name = "distill_loss",
                                      .dims = "b n c",
                                      .flags = AGGLO_OP_FROM_F16 | AGGLO_OP_FROM_BF16 | AGGLO_OP_SOME_INVALID |
                                               AGGLO_OP_ALL_INVALID,
                                      .n_arrays = 5,
                                      .shape = loss_shape,
                                      .fill = loss_fill,
                                      .run = loss_run,
                                      .flops = loss_flops};

/* ---- stored targets ---- */

const agglo_loss_config agglo_table_target_config = {1.5f, 0.9f, 0.1f, 1.0f, 0.3f};

/* What an operator's targets have; all of them have values, and weights of samples and tokens where a case has invalid ones. */
typedef struct form {
    const char *op;
    agglo_code code;
    agglo_dtype dtype; /* of the codes as an array */
    bool scales, matrix, centre, offset;
} form;

static const form forms[] = {
    {"target_loss_f16", AGGLO_CODE_F16, AGGLO_F16, false, false, false, false},
    {"target_loss_int8", AGGLO_CODE_I8, AGGLO_I8, true, false, false, false},
    {"target_loss_int4", AGGLO_CODE_I4, AGGLO_U8, true, false, false, false},
    {"target_loss_klt", AGGLO_CODE_I8, AGGLO_I8, false, true, false, true},
    {"target_loss_rotated", AGGLO_CODE_I8, AGGLO_I8, false, false, false, true},
    {"target_loss_phis", AGGLO_CODE_F16, AGGLO_F16, false, true, true, false},
};

static const form *form_of(const agglo_op_case *c)
{
    const form *f = forms;

    while (strcmp(f->op, c->op->name) != 0) {
        f++;
    }
    return f;
}

static double target_flops(const agglo_op_case *c)
{
    double m = (double)c->d[0] * (double)c->d[1];

    return m * (double)c->d[3] * (24.0 + (form_of(c)->matrix ? 2.0 * (double)c->d[2] : 0.0));
}

/* arrays: pred, values, token and channel scales, matrix, centre, offset, valid, sample weights, token weights, d_pred, cos, smooth-L1,
 * squared error, sums */
static void target_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    const form *f = form_of(c);
    bool weights = agglo_op_has(c, AGGLO_OP_SOME_INVALID | AGGLO_OP_ALL_INVALID);
    int64_t b = c->d[0], n = c->d[1], k = c->d[2], channels = c->d[3];

    ARRAY(0, IN, type, b, n, channels);
    ARRAY(1, IN, f->dtype, b, n, f->code == AGGLO_CODE_I4 ? (k + 1) / 2 : k);
    ARRAY_IF(f->scales, 2, FIXED, AGGLO_F32, b, n);
    ARRAY_IF(f->scales, 3, FIXED, AGGLO_F32, k);
    ARRAY_IF(f->matrix, 4, IN, AGGLO_F32, k, channels);
    ARRAY_IF(f->centre, 5, IN, AGGLO_F32, k);
    ARRAY_IF(f->offset, 6, IN, AGGLO_F32, channels);
    ARRAY_IF(weights, 7, FIXED, AGGLO_F32, b);
    ARRAY_IF(weights, 8, FIXED, AGGLO_F32, b);
    ARRAY_IF(weights, 9, FIXED, AGGLO_F32, b, n);
    ARRAY(10, OUT, type, b, n, channels);
    ARRAY(11, OUT, AGGLO_F32, b, n);
    ARRAY(12, OUT, AGGLO_F32, b, n);
    ARRAY(13, OUT, AGGLO_F32, b, n);
    ARRAY(14, INOUT, AGGLO_F32, AGGLO_LOSS_SUMS);
}

static void target_fill(const agglo_op_case *c, int i, void *data)
{
    float *out = data;

    if (i == 7) {
        loss_fill(c, i, data);
        return;
    }
    for (int64_t j = 0; j < (i == 2 || i == 9 ? c->d[0] * c->d[1] : i == 3 ? c->d[2] : c->d[0]); j++) {
        switch (i) {
        case 2:
            out[j] = (form_of(c)->code == AGGLO_CODE_I4 ? 0.2f : 0.0125f) * (float)(1 + j % 3);
            break;
        case 3:
            out[j] = 0.75f + 0.125f * (float)(j % 5);
            break;
        case 8:
            out[j] = 0.5f + 0.25f * (float)(j % 4);
            break;
        default:
            out[j] = 0.25f * (float)(j % 5); /* of tokens, some of them none */
            break;
        }
    }
}

float agglo_table_target_scale(const agglo_op_case *c)
{
    return form_of(c)->matrix || form_of(c)->offset ? 0.0078125f : 1.0f;
}

static void target_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    const form *f = form_of(c);
    agglo_target target =
        agglo_target_scaled(f->code, t[1].data, c->d[0], c->d[1], c->d[2], t[2].data, AGGLO_F32, t[3].data);
    agglo_loss_weights weights = {agglo_op_optional(&t[7]), agglo_op_optional(&t[8]), agglo_op_optional(&t[9]), NULL};
    agglo_loss_values values = {&t[11], &t[12], &t[13]};

    target.map = (agglo_map){c->d[3], agglo_table_target_scale(c), t[5].data, t[4].data, NULL, t[6].data};
    agglo_target_loss(be, &agglo_table_target_config, &t[0], &target, &weights, AGGLO_TABLE_GRAD_SCALE, &t[10], &values,
                      &t[14]);
}

#define TARGET(form)                                                                                                   \
    {                                                                                                                  \
        .name = "target_loss_" #form, .dims = "b n k c", .flags = AGGLO_OP_SOME_INVALID | AGGLO_OP_ALL_INVALID,        \
        .n_arrays = 15, .shape = target_shape, .fill = target_fill, .run = target_run, .flops = target_flops           \
    }
static const agglo_op target_f16 = TARGET(f16), target_int8 = TARGET(int8), target_int4 = TARGET(int4),
                      target_klt = TARGET(klt), target_rotated = TARGET(rotated), target_phis = TARGET(phis);

static const agglo_op_case cases[] = {
    DIFFER(&distill_loss, BOTH, 0, 1, 1, 5),
    DIFFER(&distill_loss, BOTH, AGGLO_OP_FROM_F16 | AGGLO_OP_SOME_INVALID, 5, 1, 513),
    DIFFER(&distill_loss, BOTH, AGGLO_OP_SOME_INVALID, 5, 17, 96),
    DIFFER(&distill_loss, BOTH, AGGLO_OP_FROM_F16, 4, 49, 65),
    DIFFER(&distill_loss, BOTH, AGGLO_OP_FROM_BF16 | AGGLO_OP_SOME_INVALID, 4, 49, 65),
    PARITY(&distill_loss, BOTH, AGGLO_OP_ALL_INVALID, 3, 4, 10),
    DIFFER(&target_f16, BOTH, 0, 1, 1, 5, 5),
    DIFFER(&target_f16, BOTH, AGGLO_OP_SOME_INVALID, 5, 17, 64, 64),
    PARITY(&target_f16, F32, 0, 1, 4160, 20, 20),
    DIFFER(&target_int8, BOTH, 0, 1, 1, 1, 1),
    DIFFER(&target_int8, BOTH, AGGLO_OP_SOME_INVALID, 4, 17, 77, 77),
    DIFFER(&target_int8, BOTH, 0, 2, 16, 96, 96),
    DIFFER(&target_int4, BOTH, AGGLO_OP_SOME_INVALID, 4, 9, 33, 33),
    DIFFER(&target_int4, BOTH, 0, 2, 16, 64, 64),
    DIFFER(&target_klt, BOTH, 0, 1, 1, 3, 8),
    DIFFER(&target_klt, BOTH, AGGLO_OP_SOME_INVALID, 4, 49, 40, 96),
    DIFFER(&target_klt, BOTH, 0, 3, 65, 63, 65),
    PARITY(&target_klt, BOTH, 0, 5, 257, 132, 260),
    PARITY(&target_klt, BOTH, AGGLO_OP_ALL_INVALID, 3, 4, 16, 16),
    DIFFER(&target_rotated, BOTH, AGGLO_OP_SOME_INVALID, 4, 16, 48, 48),
    DIFFER(&target_phis, BOTH, 0, 2, 49, 36, 36),
    PARITY(&target_phis, BOTH, AGGLO_OP_SOME_INVALID, 3, 65, 130, 130),

    BENCH(&distill_loss, BOTH, AGGLO_OP_FROM_F16, "CLIP H patches", EACH(1), 256, 1280),
    BENCH(&distill_loss, BOTH, AGGLO_OP_FROM_F16, "DINOv2 g patches", EACH(1), 256, 1536),
    BENCH(&target_int8, BOTH, 0, "CLIP H patches", EACH(1), 256, 1280, 1280),
    BENCH(&target_int4, BOTH, 0, "CLIP H patches", EACH(1), 256, 1280, 1280),
    BENCH(&target_klt, BOTH, 0, "CLIP H patches", EACH(1), 256, 1280, 1280),
    BENCH(&target_klt, BOTH, 0, "DINOv2 g, a third", EACH(1), 256, 512, 1536),
    BENCH(&target_rotated, BOTH, 0, "CLIP H patches", EACH(1), 256, 1280, 1280),
};

const agglo_op_family agglo_family_loss = {"loss", cases, AGGLO_COUNT(cases)};
