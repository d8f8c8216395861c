/* References of the matrix products; arrays as in tensor/table/table_linear.c. */
#include "tests/parity/tensor/op_harness.h"

static void linear_ref(const agglo_op_case *c, double **v)
{
    ref_linear(c->d[0], c->d[1], c->d[2], v[0], v[1], v[2], op_ref_act(c), v[4], v[3]);
}

static void linear_input_ref(const agglo_op_case *c, double **v)
{
    ref_linear_bwd_input(c->d[0], c->d[1], c->d[2], v[0], v[1], agglo_op_has(c, AGGLO_OP_ACCUMULATE), v[2]);
}

static double linear_input_loss(const agglo_op_case *c, double **v)
{
    double *y = op_scratch(c->d[0] * c->d[1]), sum;

    ref_linear(c->d[0], c->d[1], c->d[2], v[3], v[1], NULL, REF_NONE, NULL, y);
    sum = op_dot(c->d[0] * c->d[1], v[0], y);
    free(y);
    return sum;
}

static void linear_weight_ref(const agglo_op_case *c, double **v)
{
    ref_linear_bwd_weight(c->d[0], c->d[1], c->d[2], v[0], v[1], v[2], v[3]);
}

static double linear_weight_loss(const agglo_op_case *c, double **v)
{
    double *y = op_scratch(c->d[0] * c->d[1]), sum;

    ref_linear(c->d[0], c->d[1], c->d[2], v[1], v[4], v[5], REF_NONE, NULL, y);
    sum = op_dot(c->d[0] * c->d[1], v[0], y);
    free(y);
    return sum;
}

static const op_test tests[] = {
    {.name = "linear", .ref = linear_ref},
    {.name = "linear_bwd_input",
     .backward = true,
     .ref = linear_input_ref,
     .loss = linear_input_loss,
     .n_grads = 1,
     .grads = {{3, 2}}},
    {.name = "linear_bwd_weight",
     .backward = true,
     .ref = linear_weight_ref,
     .loss = linear_weight_loss,
     .n_grads = 2,
     .grads = {{4, 2}, {5, 3}}},
};

OP_TEST_FAMILY(linear, tests);
