/* References of attention with a bias; arrays as in tensor/table/table_attention_bias.c. */
#include "tests/parity/tensor/op_harness.h"
#include "tests/ref/ref_attention_bias.h"

static double scale(const agglo_op_case *c)
{
    return (double)agglo_table_attention_scale(c->d[2]);
}

static ref_bias bias_of(const agglo_op_case *c, double **v)
{
    return (ref_bias){c->d[3], c->d[4], c->d[5], v[0], v[1], v[2]};
}

static void bias_ref(const agglo_op_case *c, double **v)
{
    ref_bias bias = bias_of(c, &v[1]);

    ref_attention_bias(c->d[0], agglo_table_bias_tokens(c), c->d[1], c->d[2], v[0], scale(c), &bias, v[4], v[5]);
}

static void bias_bwd_prepare(const agglo_op_case *c, double **v)
{
    ref_bias bias = bias_of(c, &v[2]);

    ref_attention_bias(c->d[0], agglo_table_bias_tokens(c), c->d[1], c->d[2], v[1], scale(c), &bias, v[5], v[6]);
}

static void bias_bwd_ref(const agglo_op_case *c, double **v)
{
    ref_bias bias = bias_of(c, &v[2]);

    ref_attention_bias_bwd(c->d[0], agglo_table_bias_tokens(c), c->d[1], c->d[2], v[0], v[1], scale(c), &bias, v[7],
                           v[8], v[9], v[10]);
}

static double bias_loss(const agglo_op_case *c, double **v)
{
    int64_t n = agglo_table_bias_tokens(c), size = c->d[0] * n * c->d[1] * c->d[2];
    ref_bias bias = bias_of(c, &v[2]);
    double *out = op_scratch(size), sum;

    ref_attention_bias(c->d[0], n, c->d[1], c->d[2], v[1], scale(c), &bias, out, NULL);
    sum = op_dot(size, v[0], out);
    free(out);
    return sum;
}

static const op_test tests[] = {
    {.name = "attention_bias", .ref = bias_ref},
    {.name = "attention_bias_bwd",
     .backward = true,
     .prepare = bias_bwd_prepare,
     .ref = bias_bwd_ref,
     .loss = bias_loss,
     .n_grads = 4,
     .grads = {{1, 7}, {2, 8}, {3, 9}, {4, 10}}},
};

OP_TEST_FAMILY(attention_bias, tests);
