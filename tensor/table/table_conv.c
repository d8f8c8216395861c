/* The table's convolutions: d = b, h, w, c, o, kh, kw, stride, pad_h, pad_w with o = 0 for a depthwise one; transposed ones have square kernels
 * and `extra` rows and columns of output. */
#include "tensor/table/table_impl.h"

static int64_t windows(int64_t n, int64_t kernel, int64_t stride, int64_t pad)
{
    return (n + 2 * pad - kernel) / stride + 1;
}

static int64_t outputs(const agglo_op_case *c)
{
    return c->d[4] == 0 ? c->d[3] : c->d[4];
}

static agglo_conv2d_config conv_config(const agglo_op_case *c)
{
    agglo_conv2d_config config = {(int)c->d[7], (int)c->d[7], (int)c->d[8], (int)c->d[9],
                                  c->d[4] == 0 ? (int)c->d[3] : 1};

    return config;
}

static double conv_flops(const agglo_op_case *c)
{
    double pixels =
        (double)(c->d[0] * windows(c->d[1], c->d[5], c->d[7], c->d[8]) * windows(c->d[2], c->d[6], c->d[7], c->d[9]));

    return 2.0 * pixels * (double)(outputs(c) * c->d[5] * c->d[6] * (c->d[4] == 0 ? 1 : c->d[3]));
}

#define IMAGE(i, role, dtype) ARRAY(i, role, dtype, c->d[0], c->d[1], c->d[2], c->d[3])
#define OUTPUT(i, role, dtype)                                                                                         \
    ARRAY(i, role, dtype, c->d[0], windows(c->d[1], c->d[5], c->d[7], c->d[8]),                                        \
          windows(c->d[2], c->d[6], c->d[7], c->d[9]), outputs(c))
#define WEIGHT(i, role, dtype) ARRAY(i, role, dtype, outputs(c), c->d[5], c->d[6], c->d[4] == 0 ? 1 : c->d[3])

/* arrays: x, w, b, y, pre */
static void conv_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    IMAGE(0, IN, type);
    WEIGHT(1, IN, type);
    ARRAY_IF(agglo_op_has(c, AGGLO_OP_BIAS), 2, IN, AGGLO_F32, outputs(c));
    OUTPUT(3, OUT, type);
    if (agglo_op_has(c, AGGLO_OP_PRE)) {
        OUTPUT(4, OUT, type);
    }
}

static void conv_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    agglo_conv2d_config config = conv_config(c);

    agglo_conv2d(be, &config, &t[0], &t[1], agglo_op_optional(&t[2]), agglo_op_act(c), agglo_op_optional(&t[4]), &t[3]);
}

/* arrays: d_y, w, d_x, x */
static void conv_input_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    OUTPUT(0, IN, type);
    WEIGHT(1, IN, type);
    GRADIENT(2, type, c->d[0], c->d[1], c->d[2], c->d[3]);
    IMAGE(3, ASIDE, type);
}

static void conv_input_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    agglo_conv2d_config config = conv_config(c);

    agglo_conv2d_bwd_input(be, &config, &t[0], &t[1], agglo_op_has(c, AGGLO_OP_ACCUMULATE), &t[2]);
}

/* arrays: d_y, x, d_w, d_b, w, b */
static void conv_weight_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    OUTPUT(0, IN, type);
    IMAGE(1, IN, type);
    WEIGHT(2, INOUT, AGGLO_F32);
    WEIGHT(4, ASIDE, type);
    if (agglo_op_has(c, AGGLO_OP_BIAS)) {
        ARRAY(3, INOUT, AGGLO_F32, outputs(c));
        ARRAY(5, ASIDE, AGGLO_F32, outputs(c));
    }
}

static void conv_weight_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    agglo_conv2d_config config = conv_config(c);

    agglo_conv2d_bwd_weight(be, &config, &t[0], &t[1], &t[2], agglo_op_optional(&t[3]));
}

/* ---- transposed: d = b, h, w, c, o, k, stride, pad, extra ---- */

static int64_t grown(const agglo_op_case *c, int axis)
{
    return (c->d[axis] - 1) * c->d[6] - 2 * c->d[7] + c->d[5] + c->d[8];
}

static double transposed_flops(const agglo_op_case *c)
{
    return 2.0 * (double)(c->d[0] * c->d[1] * c->d[2]) * (double)(c->d[3] * c->d[4] * c->d[5] * c->d[5]);
}

#define GROWN(i, role, dtype)         ARRAY(i, role, dtype, c->d[0], grown(c, 1), grown(c, 2), c->d[4])
#define TURNED_WEIGHT(i, role, dtype) ARRAY(i, role, dtype, c->d[3], c->d[5], c->d[5], c->d[4])

static void transposed_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    IMAGE(0, IN, type);
    TURNED_WEIGHT(1, IN, type);
    ARRAY_IF(agglo_op_has(c, AGGLO_OP_BIAS), 2, IN, AGGLO_F32, c->d[4]);
    GROWN(3, OUT, type);
    if (agglo_op_has(c, AGGLO_OP_PRE)) {
        GROWN(4, OUT, type);
    }
}

static void transposed_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    agglo_conv2d_config config = agglo_conv2d_square((int)c->d[6], (int)c->d[7]);

    agglo_conv_transpose2d(be, &config, &t[0], &t[1], agglo_op_optional(&t[2]), agglo_op_act(c),
                           agglo_op_optional(&t[4]), &t[3]);
}

static void transposed_input_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    GROWN(0, IN, type);
    TURNED_WEIGHT(1, IN, type);
    GRADIENT(2, type, c->d[0], c->d[1], c->d[2], c->d[3]);
    IMAGE(3, ASIDE, type);
}

static void transposed_input_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    agglo_conv2d_config config = agglo_conv2d_square((int)c->d[6], (int)c->d[7]);

    agglo_conv_transpose2d_bwd_input(be, &config, &t[0], &t[1], agglo_op_has(c, AGGLO_OP_ACCUMULATE), &t[2]);
}

static void transposed_weight_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    GROWN(0, IN, type);
    IMAGE(1, IN, type);
    TURNED_WEIGHT(2, INOUT, AGGLO_F32);
    TURNED_WEIGHT(4, ASIDE, type);
    if (agglo_op_has(c, AGGLO_OP_BIAS)) {
        ARRAY(3, INOUT, AGGLO_F32, c->d[4]);
        ARRAY(5, ASIDE, AGGLO_F32, c->d[4]);
    }
}

static void transposed_weight_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    agglo_conv2d_config config = agglo_conv2d_square((int)c->d[6], (int)c->d[7]);

    agglo_conv_transpose2d_bwd_weight(be, &config, &t[0], &t[1], &t[2], agglo_op_optional(&t[3]));
}

#define DIMS            "b h w c o kh kw stride pad_h pad_w"
#define TRANSPOSED_DIMS "b h w c o k stride pad extra"

static const agglo_op conv2d = {.name = "conv2d",
                                .dims = DIMS,
                                .flags = AGGLO_OP_ACT | AGGLO_OP_BIAS | AGGLO_OP_PRE,
                                .n_arrays = 5,
                                .shape = conv_shape,
                                .run = conv_run,
                                .flops = conv_flops};
static const agglo_op conv2d_bwd_input = {.name = "conv2d_bwd_input",
                                          .dims = DIMS,
                                          .flags = AGGLO_OP_ACCUMULATE,
                                          .n_arrays = 4,
                                          .shape = conv_input_shape,
                                          .run = conv_input_run,
                                          .flops = conv_flops};
static const agglo_op conv2d_bwd_weight = {.name = "conv2d_bwd_weight",
                                           .dims = DIMS,
                                           .flags = AGGLO_OP_BIAS,
                                           .n_arrays = 6,
                                           .shape = conv_weight_shape,
                                           .run = conv_weight_run,
                                           .flops = conv_flops};
static const agglo_op transposed = {.name = "conv_transpose2d",
                                    .dims = TRANSPOSED_DIMS,
                                    .flags = AGGLO_OP_ACT | AGGLO_OP_BIAS | AGGLO_OP_PRE,
                                    .n_arrays = 5,
                                    .shape = transposed_shape,
                                    .run = transposed_run,
                                    .flops = transposed_flops};
static const agglo_op transposed_bwd_input = {.name = "conv_transpose2d_bwd_input",
                                              .dims = TRANSPOSED_DIMS,
                                              .flags = AGGLO_OP_ACCUMULATE,
                                              .n_arrays = 4,
                                              .shape = transposed_input_shape,
                                              .run = transposed_input_run,
                                              .flops = transposed_flops};
static const agglo_op transposed_bwd_weight = {.name = "conv_transpose2d_bwd_weight",
                                               .dims = TRANSPOSED_DIMS,
                                               .flags = AGGLO_OP_BIAS,
                                               .n_arrays = 6,
                                               .shape = transposed_weight_shape,
                                               .run = transposed_weight_run,
                                               .flops = transposed_flops};

static const agglo_op_case cases[] = {
    PARITY(&conv2d, BOTH, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0),
    PARITY(&conv2d, BOTH, AGGLO_OP_BIAS | AGGLO_OP_PRE | AGGLO_ACT_SILU, 2, 7, 9, 5, 17, 3, 3, 1, 1, 1),
    PARITY(&conv2d, BOTH, AGGLO_OP_BIAS | AGGLO_ACT_RELU, 2, 17, 15, 3, 33, 3, 3, 2, 1, 1),
    PARITY(&conv2d, BOTH, AGGLO_OP_BIAS | AGGLO_ACT_GELU | AGGLO_OP_PRE, 3, 11, 5, 24, 40, 1, 1, 1, 0, 0),
    PARITY(&conv2d, BOTH, 0, 2, 8, 12, 19, 21, 2, 2, 2, 0, 0),
    PARITY(&conv2d, BOTH, AGGLO_OP_BIAS, 2, 28, 14, 3, 20, 7, 7, 7, 0, 0),   /* patch embedding */
    PARITY(&conv2d, BOTH, AGGLO_OP_PRE, 1, 6, 9, 4, 5, 1, 3, 1, 0, 1),       /* one axis alone */
    PARITY(&conv2d, BOTH, 0, 1, 5, 4, 6, 3, 5, 5, 3, 2, 4),                  /* windows wider than the map */
    PARITY(&conv2d, BOTH, AGGLO_OP_BIAS, 1, 16, 16, 200, 17, 3, 3, 1, 1, 1), /* rows in pieces */
    PARITY(&conv2d, BOTH, 0, 1, 9, 31, 12, 300, 3, 3, 1, 1, 1),              /* outputs in tiles */
    PARITY(&conv2d, BOTH, AGGLO_OP_BIAS | AGGLO_ACT_SILU, 1, 9, 7, 10, 9, 1, 1, 2, 0, 0),
    /* maps of several bands */
    PARITY(&conv2d, BOTH, AGGLO_OP_BIAS | AGGLO_OP_PRE | AGGLO_ACT_SILU, 2, 30, 31, 5, 11, 3, 3, 1, 1, 1),
    PARITY(&conv2d, BOTH, 0, 3, 61, 47, 3, 19, 3, 3, 2, 1, 1),
    PARITY(&conv2d, BOTH, AGGLO_OP_BIAS, 1, 23, 40, 17, 16, 5, 5, 1, 2, 2),
    PARITY(&conv2d, BOTH, AGGLO_ACT_RELU, 2, 45, 33, 16, 32, 2, 2, 2, 0, 0),
    PARITY(&conv2d, BOTH, AGGLO_OP_BIAS | AGGLO_OP_PRE | AGGLO_ACT_GELU, 2, 7, 9, 37, 0, 3, 3, 1, 1, 1),
    PARITY(&conv2d, BOTH, 0, 2, 8, 5, 16, 0, 3, 3, 2, 1, 1),
    PARITY(&conv2d, BOTH, AGGLO_OP_BIAS, 1, 4, 6, 65, 0, 5, 3, 1, 2, 0),
    DIFFER(&conv2d_bwd_input, BOTH, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0),
    DIFFER(&conv2d_bwd_input, BOTH, AGGLO_OP_ACCUMULATE, 2, 7, 9, 5, 17, 3, 3, 1, 1, 1),
    DIFFER(&conv2d_bwd_input, BOTH, 0, 2, 17, 15, 3, 33, 3, 3, 2, 1, 1),
    DIFFER(&conv2d_bwd_input, BOTH, AGGLO_OP_ACCUMULATE, 3, 11, 5, 24, 40, 1, 1, 1, 0, 0),
    DIFFER(&conv2d_bwd_input, BOTH, 0, 2, 9, 13, 19, 21, 2, 2, 2, 0, 0), /* pixels that no window holds */
    DIFFER(&conv2d_bwd_input, BOTH, AGGLO_OP_ACCUMULATE, 1, 5, 4, 6, 3, 5, 5, 3, 2, 4),
    PARITY(&conv2d_bwd_input, BOTH, AGGLO_OP_ACCUMULATE, 1, 30, 9, 12, 14, 3, 3, 1, 1, 1), /* blocks of image rows */
    PARITY(&conv2d_bwd_input, BOTH, 0, 1, 31, 16, 9, 14, 5, 5, 2, 2, 2),
    PARITY(&conv2d_bwd_input, BOTH, 0, 1, 16, 17, 300, 5, 3, 3, 1, 1, 1),
    PARITY(&conv2d_bwd_input, BF16, 0, 1, 11, 11, 1216, 240, 3, 3, 1, 1,
           1), /* weights beyond what is packed at a time */
    DIFFER(&conv2d_bwd_input, BOTH, AGGLO_OP_ACCUMULATE, 2, 7, 9, 37, 0, 3, 3, 1, 1, 1),
    PARITY(&conv2d_bwd_input, BOTH, 0, 2, 8, 5, 16, 0, 3, 3, 2, 1, 1),
    DIFFER(&conv2d_bwd_weight, BOTH, AGGLO_OP_BIAS, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0),
    DIFFER(&conv2d_bwd_weight, BOTH, AGGLO_OP_BIAS, 2, 7, 9, 5, 17, 3, 3, 1, 1, 1),
    DIFFER(&conv2d_bwd_weight, BOTH, 0, 2, 17, 15, 3, 33, 3, 3, 2, 1, 1),
    DIFFER(&conv2d_bwd_weight, BOTH, AGGLO_OP_BIAS, 3, 11, 5, 24, 40, 1, 1, 1, 0, 0),
    DIFFER(&conv2d_bwd_weight, BOTH, AGGLO_OP_BIAS, 1, 5, 4, 6, 3, 5, 5, 3, 2, 4),
    PARITY(&conv2d_bwd_weight, BOTH, AGGLO_OP_BIAS, 3, 40, 43, 3, 6, 3, 3, 1, 1, 1), /* blocks of pixels */
    PARITY(&conv2d_bwd_weight, BOTH, 0, 1, 9, 7, 40, 150, 3, 3, 1, 1, 1),
    PARITY(&conv2d_bwd_weight, BOTH, 0, 1, 13, 7, 190, 20, 3, 3, 2, 1, 1),
    DIFFER(&conv2d_bwd_weight, BOTH, AGGLO_OP_BIAS, 2, 7, 9, 37, 0, 3, 3, 1, 1, 1),
    PARITY(&conv2d_bwd_weight, BOTH, 0, 3, 50, 13, 16, 0, 3, 3, 2, 1, 1),

    PARITY(&transposed, BOTH, 0, 1, 1, 1, 1, 1, 1, 1, 0, 0),
    PARITY(&transposed, BOTH, AGGLO_OP_BIAS | AGGLO_OP_PRE | AGGLO_ACT_SILU, 2, 5, 7, 19, 13, 2, 2, 0, 0),
    PARITY(&transposed, BOTH, 0, 2, 6, 5, 16, 9, 3, 2, 1, 1),
    PARITY(&transposed, BOTH, AGGLO_OP_BIAS | AGGLO_ACT_GELU, 1, 17, 4, 7, 10, 4, 2, 1, 0),
    PARITY(&transposed, BOTH, AGGLO_OP_BIAS, 1, 4, 3, 5, 6, 2, 3, 0, 2), /* pixels that nothing reaches: the bias */
    DIFFER(&transposed_bwd_input, BOTH, AGGLO_OP_ACCUMULATE, 2, 5, 7, 19, 13, 2, 2, 0, 0),
    DIFFER(&transposed_bwd_input, BOTH, 0, 2, 6, 5, 16, 9, 3, 2, 1, 1),
    DIFFER(&transposed_bwd_weight, BOTH, AGGLO_OP_BIAS, 2, 5, 7, 19, 13, 2, 2, 0, 0),
    DIFFER(&transposed_bwd_weight, BOTH, 0, 2, 6, 5, 16, 9, 3, 2, 1, 1),
    DIFFER(&transposed_bwd_weight, BOTH, AGGLO_OP_BIAS, 1, 4, 3, 5, 6, 2, 3, 0, 2),

    BENCH(&conv2d, BOTH, 0, "E-RADIO stem 1", EACH(1), 224, 224, 3, 64, 3, 3, 2, 1, 1),
    BENCH(&conv2d, BOTH, 0, "E-RADIO-B stage 1 3x3", EACH(1), 56, 56, 64, 64, 3, 3, 1, 1, 1),
    BENCH(&conv2d, BOTH, 0, "E-RADIO-B stage 1 1x1", EACH(1), 56, 56, 320, 128, 1, 1, 1, 0, 0),
    BENCH(&conv2d, BOTH, 0, "E-RADIO-B stage 2 3x3", EACH(1), 28, 28, 128, 128, 3, 3, 1, 1, 1),
    BENCH(&conv2d, BOTH, 0, "E-RADIO-B down 2", EACH(1), 28, 28, 256, 512, 3, 3, 2, 1, 1),
    BENCH(&conv2d, BOTH, AGGLO_OP_BIAS, "E-RADIO-B stage 3 2x2", EACH(1), 14, 14, 512, 512, 2, 2, 2, 0, 0),
    BENCH(&conv2d, BOTH, AGGLO_OP_BIAS, "E-RADIO code neck", EACH(1), 14, 14, 512, 0, 3, 3, 1, 1, 1),
    BENCH(&conv2d, BOTH, 0, "SAM neck 3x3", EACH(1), 64, 64, 256, 256, 3, 3, 1, 1, 1),
    BENCH(&conv2d, BOTH, AGGLO_OP_BIAS, "ViT-B/16 patches", EACH(1), 224, 224, 3, 768, 16, 16, 16, 0, 0),
    BENCH(&conv2d_bwd_input, BOTH, 0, "E-RADIO-B stage 1 3x3", EACH(1), 56, 56, 64, 64, 3, 3, 1, 1, 1),
    BENCH(&conv2d_bwd_input, BOTH, 0, "E-RADIO-B stage 2 3x3", EACH(1), 28, 28, 128, 128, 3, 3, 1, 1, 1),
    BENCH(&conv2d_bwd_input, BOTH, 0, "E-RADIO-B down 2", EACH(1), 28, 28, 256, 512, 3, 3, 2, 1, 1),
    BENCH(&conv2d_bwd_weight, BOTH, 0, "E-RADIO stem 1", EACH(1), 224, 224, 3, 64, 3, 3, 2, 1, 1),
    BENCH(&conv2d_bwd_weight, BOTH, 0, "E-RADIO-B stage 1 3x3", EACH(1), 56, 56, 64, 64, 3, 3, 1, 1, 1),
    BENCH(&conv2d_bwd_weight, BOTH, 0, "E-RADIO-B stage 2 3x3", EACH(1), 28, 28, 128, 128, 3, 3, 1, 1, 1),
    BENCH(&conv2d_bwd_weight, BOTH, 0, "E-RADIO-B down 2", EACH(1), 28, 28, 256, 512, 3, 3, 2, 1, 1),
    BENCH(&transposed, BOTH, AGGLO_OP_BIAS, "E-RADIO-B stage 3 2x2", EACH(1), 7, 7, 512, 512, 2, 2, 0, 0),
    BENCH(&transposed, BOTH, 0, "E-RADIO-B paper neck", EACH(1), 7, 7, 1024, 512, 3, 2, 1, 1),
    BENCH(&transposed_bwd_input, BOTH, 0, "E-RADIO-B paper neck", EACH(1), 7, 7, 1024, 512, 3, 2, 1, 1),
    BENCH(&transposed_bwd_weight, BOTH, 0, "E-RADIO-B paper neck", EACH(1), 7, 7, 1024, 512, 3, 2, 1, 1),
};

const agglo_op_family agglo_family_conv = {"conv", cases, AGGLO_COUNT(cases)};
