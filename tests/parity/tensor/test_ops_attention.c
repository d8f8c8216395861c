/* References of attention; arrays as in tensor/table/table_attention.c. */
#include "tests/parity/tensor/op_harness.h"

static double scale(const agglo_op_case *c)
{
    return (double)agglo_table_attention_scale(c->d[3]);
}

static void attention_ref(const agglo_op_case *c, double **v)
{
    ref_attention(c->d[0], c->d[1], c->d[2], c->d[3], v[0], scale(c), v[1], v[2]);
}

static void attention_bwd_prepare(const agglo_op_case *c, double **v)
{
    ref_attention(c->d[0], c->d[1], c->d[2], c->d[3], v[1], scale(c), v[2], v[3]);
}

static void attention_bwd_ref(const agglo_op_case *c, double **v)
{
    ref_attention_bwd(c->d[0], c->d[1], c->d[2], c->d[3], v[0], v[1], scale(c), v[4]);
}

static double attention_loss(const agglo_op_case *c, double **v)
{
    int64_t n = c->d[0] * c->d[1] * c->d[2] * c->d[3];
    double *out = op_scratch(n), sum;

    ref_attention(c->d[0], c->d[1], c->d[2], c->d[3], v[1], scale(c), out, NULL);
    sum = op_dot(n, v[0], out);
    free(out);
    return sum;
}

static const op_test tests[] = {
    {.name = "attention", .ref = attention_ref},
    {.name = "attention_bwd",
     .backward = true,
     .prepare = attention_bwd_prepare,
     .ref = attention_bwd_ref,
     .loss = attention_loss,
     .n_grads = 1,
     .grads = {{1, 4}}},
};

OP_TEST_FAMILY(attention, tests);
