/* The table's attention: d = batch (windows too), tokens, heads, head size. */
#include "tensor/table/table_impl.h"

/* two products of b h n n d; the exponentials are not counted */
static double attention_flops(const agglo_op_case *c)
{
    return 4.0 * (double)c->d[0] * (double)c->d[1] * (double)c->d[1] * (double)c->d[2] * (double)c->d[3];
}

/* five: the scores once more, dP, dQ, dK, dV */
static double attention_bwd_flops(const agglo_op_case *c)
{
    return 2.5 * attention_flops(c);
}

/* arrays: qkv, out, lse */
static void attention_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    ARRAY(0, IN, type, c->d[0], c->d[1], 3, c->d[2], c->d[3]);
    ARRAY(1, OUT, type, c->d[0], c->d[1], c->d[2], c->d[3]);
    ARRAY_IF(agglo_op_has(c, AGGLO_OP_LSE), 2, OUT, AGGLO_F32, c->d[0], c->d[2], c->d[1]);
}

static void attention_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    agglo_attention(be, &t[0], agglo_table_attention_scale(c->d[3]), &t[1], agglo_op_optional(&t[2]));
}

/* arrays: d_out, qkv, out, lse, d_qkv */
static void attention_bwd_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    ARRAY(0, IN, type, c->d[0], c->d[1], c->d[2], c->d[3]);
    ARRAY(1, IN, type, c->d[0], c->d[1], 3, c->d[2], c->d[3]);
    ARRAY(2, DERIVED, type, c->d[0], c->d[1], c->d[2], c->d[3]);
    ARRAY(3, DERIVED, AGGLO_F32, c->d[0], c->d[2], c->d[1]);
    ARRAY(4, OUT, type, c->d[0], c->d[1], 3, c->d[2], c->d[3]);
}

static void attention_bwd_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    agglo_attention_bwd(be, &t[0], &t[1], &t[2], &t[3], agglo_table_attention_scale(c->d[3]), &t[4]);
}

static const agglo_op attention = {.name = "attention",
                                   .dims = "b n h d",
                                   .flags = AGGLO_OP_LSE,
                                   .n_arrays = 3,
                                   .shape = attention_shape,
                                   .run = attention_run,
                                   .flops = attention_flops};
static const agglo_op attention_bwd = {.name = "attention_bwd",
                                       .dims = "b n h d",
                                       .n_arrays = 5,
                                       .shape = attention_bwd_shape,
                                       .run = attention_bwd_run,
                                       .flops = attention_bwd_flops};

static const agglo_op_case cases[] = {
    PARITY(&attention, BOTH, AGGLO_OP_LSE, 1, 1, 1, 1),
    PARITY(&attention, BOTH, AGGLO_OP_LSE, 2, 5, 3, 7),
    PARITY(&attention, BOTH, AGGLO_OP_LSE, 2, 65, 3, 32),
    PARITY(&attention, BOTH, 0, 1, 197, 2, 64),
    PARITY(&attention, BOTH, AGGLO_OP_LSE, 1, 257, 1, 80),
    PARITY(&attention, BOTH, AGGLO_OP_LSE, 1, 193, 1, 88),
    PARITY(&attention, BOTH, AGGLO_OP_LSE, 1, 301, 1, 104),
    PARITY(&attention, BOTH, AGGLO_OP_LSE, 2, 65, 1, 128),
    PARITY(&attention, F32, AGGLO_OP_LSE, 1, 4160, 1, 8),
    DIFFER(&attention_bwd, BOTH, 0, 1, 1, 1, 1),
    DIFFER(&attention_bwd, BOTH, 0, 2, 5, 3, 7),
    DIFFER(&attention_bwd, BOTH, 0, 2, 34, 3, 16),
    DIFFER(&attention_bwd, BOTH, 0, 1, 65, 2, 32),
    PARITY(&attention_bwd, BOTH, 0, 1, 197, 1, 64),
    PARITY(&attention_bwd, BOTH, 0, 1, 257, 1, 80),
    PARITY(&attention_bwd, BOTH, 0, 1, 70, 1, 88),
    PARITY(&attention_bwd, BOTH, 0, 1, 301, 1, 104),
    PARITY(&attention_bwd, BOTH, 0, 2, 33, 1, 128),
    PARITY(&attention, BF16, AGGLO_OP_LSE, 1, 1025, 1, 32),
    PARITY(&attention_bwd, F32, 0, 1, 4160, 1, 8),
    PARITY(&attention_bwd, BF16, 0, 1, 1025, 1, 16),

    /* SAM's whole picture, and 64 tokens more */
    SLOW(&attention, BOTH, AGGLO_OP_LSE, 1, 4160, 1, 64),
    SLOW(&attention_bwd, BOTH, 0, 1, 4160, 1, 64),

    /* a tile's edges, and head sizes that are padded or loaded one by one in BF16 */
    PARITY(&attention, BF16, AGGLO_OP_LSE, 3, 63, 2, 32),
    PARITY(&attention, BF16, AGGLO_OP_LSE, 2, 64, 2, 64),
    PARITY(&attention, BF16, AGGLO_OP_LSE, 1, 129, 2, 96),
    PARITY(&attention, BF16, AGGLO_OP_LSE, 2, 50, 3, 44),
    PARITY(&attention_bwd, BF16, 0, 3, 63, 2, 32),
    PARITY(&attention_bwd, BF16, 0, 2, 64, 2, 64),
    PARITY(&attention_bwd, BF16, 0, 1, 129, 2, 96),
    PARITY(&attention_bwd, BF16, 0, 2, 50, 3, 44),

    BENCH(&attention, BOTH, 0, "ViT-B", EACH(1), 197, 12, 64),
    BENCH(&attention, BOTH, AGGLO_OP_LSE, "ViT-B in training", EACH(1), 197, 12, 64),
    BENCH(&attention, BOTH, 0, "ViT-L", EACH(1), 197, 16, 64),
    BENCH(&attention, BOTH, 0, "ViT-Ti", EACH(1), 197, 3, 64),
    BENCH(&attention, BOTH, 0, "SAM-B, 25 windows", 25, 196, 12, 64),
    BENCH(&attention, BOTH, 0, "SAM-H, 25 windows", 25, 196, 16, 80),
    BENCH(&attention, BOTH, 0, "SAM-B, whole picture", 1, 4096, 12, 64),
    BENCH(&attention_bwd, BOTH, 0, "ViT-B", EACH(1), 197, 12, 64),
    BENCH(&attention_bwd, BOTH, 0, "ViT-L", EACH(1), 197, 16, 64),
    BENCH(&attention_bwd, BOTH, 0, "ViT-Ti", EACH(1), 197, 3, 64),
};

const agglo_op_family agglo_family_attention = {"attention", cases, AGGLO_COUNT(cases)};
