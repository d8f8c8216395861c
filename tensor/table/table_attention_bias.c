/* The table's attention with a bias: d = b (windows too), heads, head size, then the decomposed kind's n_prefix, grid_h, grid_w or the
 * dense kind's n, 0, 0. */
#include "tensor/table/table_impl.h"

static bool dense(const agglo_op_case *c)
{
    return c->d[4] == 0;
}

int64_t agglo_table_bias_tokens(const agglo_op_case *c)
{
    return c->d[3] + c->d[4] * c->d[5];
}

/* two products of b h n n d; the decomposed kind two more of b h n (2 grid - 1) d */
static double bias_flops(const agglo_op_case *c)
{
    double n = (double)agglo_table_bias_tokens(c), rel = dense(c) ? 0.0 : (double)(c->d[4] + c->d[5]);

    return (double)c->d[0] * (double)c->d[1] * (double)c->d[2] * n * (4.0 * n + 2.0 * rel);
}

/* five and six */
static double bias_bwd_flops(const agglo_op_case *c)
{
    double n = (double)agglo_table_bias_tokens(c), rel = dense(c) ? 0.0 : (double)(c->d[4] + c->d[5]);

    return (double)c->d[0] * (double)c->d[1] * (double)c->d[2] * n * (10.0 * n + 6.0 * rel);
}

/* Three arrays of the bias, or its gradient, from a[i]: rel_h, rel_w, table. */
static void bias_arrays(const agglo_op_case *c, agglo_array_role role, agglo_op_array *a, int i)
{
    int64_t n = agglo_table_bias_tokens(c);

    if (dense(c)) {
        ARRAY(i + 2, IN, AGGLO_F32, c->d[1], n, n);
        a[i + 2].role = role;
    } else {
        ARRAY(i, IN, AGGLO_F32, 2 * c->d[4] - 1, c->d[2]);
        ARRAY(i + 1, IN, AGGLO_F32, 2 * c->d[5] - 1, c->d[2]);
        a[i].role = a[i + 1].role = role;
        a[i].draw = a[i + 1].draw = role == AGGLO_ARRAY_IN ? AGGLO_DRAW_SMALL : AGGLO_DRAW_NORMAL;
    }
}

static agglo_bias bias_of(const agglo_op_case *c, agglo_tensor *t)
{
    return (agglo_bias){.rel_h = agglo_op_optional(&t[0]),
                        .rel_w = agglo_op_optional(&t[1]),
                        .n_prefix = c->d[3],
                        .grid_h = c->d[4],
                        .grid_w = c->d[5],
                        .table = agglo_op_optional(&t[2])};
}

/* arrays: qkv, rel_h, rel_w, table, out, lse */
static void bias_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    int64_t n = agglo_table_bias_tokens(c);

    ARRAY(0, IN, type, c->d[0], n, 3, c->d[1], c->d[2]);
    bias_arrays(c, AGGLO_ARRAY_IN, a, 1);
    ARRAY(4, OUT, type, c->d[0], n, c->d[1], c->d[2]);
    ARRAY_IF(agglo_op_has(c, AGGLO_OP_LSE), 5, OUT, AGGLO_F32, c->d[0], c->d[1], n);
}

static void bias_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    agglo_bias bias = bias_of(c, &t[1]);

    agglo_attention_bias(be, &t[0], agglo_table_attention_scale(c->d[2]), &bias, &t[4], agglo_op_optional(&t[5]));
}

/* arrays: d_out, qkv, rel_h, rel_w, table, out, lse, d_qkv, d_rel_h, d_rel_w, d_table; without BIAS no gradient of the bias */
static void bias_bwd_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    int64_t n = agglo_table_bias_tokens(c);

    ARRAY(0, IN, type, c->d[0], n, c->d[1], c->d[2]);
    ARRAY(1, IN, type, c->d[0], n, 3, c->d[1], c->d[2]);
    bias_arrays(c, AGGLO_ARRAY_IN, a, 2);
    ARRAY(5, DERIVED, type, c->d[0], n, c->d[1], c->d[2]);
    ARRAY(6, DERIVED, AGGLO_F32, c->d[0], c->d[1], n);
    ARRAY(7, OUT, type, c->d[0], n, 3, c->d[1], c->d[2]);
    if (agglo_op_has(c, AGGLO_OP_BIAS)) {
        bias_arrays(c, AGGLO_ARRAY_INOUT, a, 8);
    }
}

static void bias_bwd_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    agglo_bias bias = bias_of(c, &t[2]);
    agglo_bias_gradient d_bias = {agglo_op_optional(&t[8]), agglo_op_optional(&t[9]), agglo_op_optional(&t[10])};

    agglo_attention_bias_bwd(be, &t[0], &t[1], &t[5], &t[6], agglo_table_attention_scale(c->d[2]), &bias, &t[7],
                             &d_bias);
}

#define DIMS "b h d prefix|n grid_h grid_w"

static const agglo_op attention_bias = {.name = "attention_bias",
                                        .dims = DIMS,
                                        .flags = AGGLO_OP_LSE,
                                        .n_arrays = 6,
                                        .shape = bias_shape,
                                        .run = bias_run,
                                        .flops = bias_flops};
static const agglo_op attention_bias_bwd = {.name = "attention_bias_bwd",
                                            .dims = DIMS,
                                            .flags = AGGLO_OP_BIAS,
                                            .n_arrays = 11,
                                            .shape = bias_bwd_shape,
                                            .run = bias_bwd_run,
                                            .flops = bias_bwd_flops};

static const agglo_op_case cases[] = {
    PARITY(&attention_bias, BOTH, AGGLO_OP_LSE, 1, 1, 1, 0, 1, 1),
    PARITY(&attention_bias, BOTH, AGGLO_OP_LSE, 2, 3, 7, 0, 3, 5),
    PARITY(&attention_bias, BOTH, AGGLO_OP_LSE, 2, 3, 32, 1, 8, 8),
    PARITY(&attention_bias, BOTH, 0, 2, 2, 64, 0, 14, 14),
    PARITY(&attention_bias, BOTH, AGGLO_OP_LSE, 1, 1, 80, 5, 9, 17),
    PARITY(&attention_bias, BOTH, AGGLO_OP_LSE, 1, 1, 88, 0, 1, 70),
    PARITY(&attention_bias, BOTH, AGGLO_OP_LSE, 1, 1, 128, 3, 33, 2),
    PARITY(&attention_bias, BOTH, AGGLO_OP_LSE, 1, 1, 1, 1, 0, 0),
    PARITY(&attention_bias, BOTH, AGGLO_OP_LSE, 3, 2, 32, 49, 0, 0),
    PARITY(&attention_bias, BOTH, 0, 1, 2, 104, 131, 0, 0),
    PARITY(&attention_bias, BOTH, AGGLO_OP_LSE, 2, 1, 104, 0, 7, 11),
    PARITY(&attention_bias, BOTH, AGGLO_OP_LSE, 2, 2, 64, 50, 0, 0),
    PARITY(&attention_bias, BOTH, 0, 1, 1, 80, 65, 0, 0),
    PARITY(&attention_bias, BOTH, AGGLO_OP_LSE, 1, 2, 88, 33, 0, 0),
    PARITY(&attention_bias, BOTH, AGGLO_OP_LSE, 2, 1, 128, 97, 0, 0),
    DIFFER(&attention_bias_bwd, BOTH, AGGLO_OP_BIAS, 1, 1, 1, 0, 1, 1),
    DIFFER(&attention_bias_bwd, BOTH, AGGLO_OP_BIAS, 2, 3, 7, 0, 3, 5),
    DIFFER(&attention_bias_bwd, BOTH, AGGLO_OP_BIAS, 2, 2, 32, 1, 6, 7),
    DIFFER(&attention_bias_bwd, BOTH, 0, 2, 2, 16, 2, 5, 5),
    PARITY(&attention_bias_bwd, BOTH, AGGLO_OP_BIAS, 2, 1, 64, 0, 14, 14),
    PARITY(&attention_bias_bwd, BOTH, AGGLO_OP_BIAS, 1, 1, 80, 5, 9, 17),
    /* rel_h's gradient is 0, of terms that are not: in BF16, what the rounding of out leaves of them */
    PARITY(&attention_bias_bwd, F32, AGGLO_OP_BIAS, 1, 1, 88, 0, 1, 70),
    PARITY(&attention_bias_bwd, BOTH, AGGLO_OP_BIAS, 1, 1, 88, 0, 6, 12),
    PARITY(&attention_bias_bwd, BOTH, AGGLO_OP_BIAS, 1, 1, 128, 3, 33, 2),
    DIFFER(&attention_bias_bwd, BOTH, AGGLO_OP_BIAS, 1, 1, 1, 1, 0, 0),
    DIFFER(&attention_bias_bwd, BOTH, AGGLO_OP_BIAS, 3, 2, 32, 49, 0, 0),
    DIFFER(&attention_bias_bwd, BOTH, 0, 2, 2, 20, 18, 0, 0),
    PARITY(&attention_bias_bwd, BOTH, AGGLO_OP_BIAS, 35, 2, 32, 16, 0, 0),
    PARITY(&attention_bias_bwd, BOTH, AGGLO_OP_BIAS, 1, 2, 104, 131, 0, 0),
    PARITY(&attention_bias_bwd, BOTH, AGGLO_OP_BIAS, 2, 1, 104, 0, 7, 11),
    PARITY(&attention_bias_bwd, BOTH, AGGLO_OP_BIAS, 2, 2, 64, 50, 0, 0),
    PARITY(&attention_bias_bwd, BOTH, AGGLO_OP_BIAS, 1, 1, 80, 65, 0, 0),
    PARITY(&attention_bias_bwd, BOTH, AGGLO_OP_BIAS, 1, 2, 88, 33, 0, 0),
    PARITY(&attention_bias_bwd, BOTH, AGGLO_OP_BIAS, 2, 1, 128, 97, 0, 0),

    /* SAM's whole picture */
    SLOW(&attention_bias, BOTH, AGGLO_OP_LSE, 1, 1, 64, 0, 64, 64),
    SLOW(&attention_bias_bwd, BOTH, AGGLO_OP_BIAS, 1, 1, 80, 0, 64, 64),

    BENCH(&attention_bias, BOTH, 0, "SAM-B, 25 windows", 25, 12, 64, 0, 14, 14),
    BENCH(&attention_bias, BOTH, 0, "SAM-H, 25 windows", 25, 16, 80, 0, 14, 14),
    BENCH(&attention_bias, BOTH, 0, "SAM-B, whole picture", 1, 12, 64, 0, 64, 64),
    BENCH(&attention_bias, BOTH, 0, "SAM-H, whole picture", 1, 16, 80, 0, 64, 64),
    BENCH(&attention_bias, BOTH, AGGLO_OP_LSE, "E-RADIO-L stage 3 at 224", EACH(1), 16, 32, 49, 0, 0),
    BENCH(&attention_bias_bwd, BOTH, AGGLO_OP_BIAS, "SAM-B, 25 windows", 25, 12, 64, 0, 14, 14),
    BENCH(&attention_bias_bwd, BOTH, AGGLO_OP_BIAS, "E-RADIO-L stage 3 at 224", EACH(1), 16, 32, 49, 0, 0),
};

const agglo_op_family agglo_family_attention_bias = {"attention_bias", cases, AGGLO_COUNT(cases)};
