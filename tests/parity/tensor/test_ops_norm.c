/* References of the norms; arrays as in tensor/table/table_norm.c. */
#include "tests/parity/tensor/op_harness.h"

#define EPS ((double)AGGLO_TABLE_NORM_EPS)

static void layernorm_ref(const agglo_op_case *c, double **v)
{
    ref_layernorm(c->d[0], c->d[1], v[0], v[1], v[2], EPS, v[3], v[4], v[5]);
}

static void layernorm_bwd_prepare(const agglo_op_case *c, double **v)
{
    double *y = op_scratch(c->d[0] * c->d[1]);

    ref_layernorm(c->d[0], c->d[1], v[1], v[2], v[8], EPS, y, v[3], v[4]);
    free(y);
}

static void layernorm_bwd_ref(const agglo_op_case *c, double **v)
{
    ref_layernorm_bwd(c->d[0], c->d[1], v[0], v[1], v[2], EPS, agglo_op_has(c, AGGLO_OP_ACCUMULATE), v[5], v[6], v[7]);
}

static double layernorm_loss(const agglo_op_case *c, double **v)
{
    double *y = op_scratch(c->d[0] * c->d[1]), sum;

    ref_layernorm(c->d[0], c->d[1], v[1], v[2], v[8], EPS, y, NULL, NULL);
    sum = op_dot(c->d[0] * c->d[1], v[0], y);
    free(y);
    return sum;
}

static const op_test tests[] = {
    {.name = "layernorm", .ref = layernorm_ref},
    {.name = "layernorm_bwd",
     .backward = true,
     .prepare = layernorm_bwd_prepare,
     .ref = layernorm_bwd_ref,
     .loss = layernorm_loss,
     .n_grads = 3,
     .grads = {{1, 5}, {2, 6}, {8, 7}}},
};

OP_TEST_FAMILY(norm, tests);
