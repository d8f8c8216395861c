/* References of the elementwise operators; arrays as in tensor/table/table_elementwise.c. */
#include "tests/parity/tensor/op_harness.h"

static void activate_ref(const agglo_op_case *c, double **v)
{
    ref_activate(c->d[0], op_ref_act(c), v[0], v[1]);
}

static void activate_bwd_ref(const agglo_op_case *c, double **v)
{
    ref_activate_bwd(c->d[0], op_ref_act(c), v[0], v[1], v[2]);
}

static double activate_loss(const agglo_op_case *c, double **v)
{
    double sum = 0.0;

    for (int64_t i = 0; i < c->d[0]; i++) {
        sum += v[1][i] * ref_act_value(op_ref_act(c), v[0][i]);
    }
    return sum;
}

static void swiglu_ref(const agglo_op_case *c, double **v)
{
    ref_swiglu(c->d[0], c->d[1], v[0], v[1]);
}

static void swiglu_bwd_ref(const agglo_op_case *c, double **v)
{
    ref_swiglu_bwd(c->d[0], c->d[1], v[0], v[1], v[2]);
}

static double swiglu_loss(const agglo_op_case *c, double **v)
{
    double *y = op_scratch(c->d[0] * c->d[1]), sum;

    ref_swiglu(c->d[0], c->d[1], v[0], y);
    sum = op_dot(c->d[0] * c->d[1], v[1], y);
    free(y);
    return sum;
}

static void residual_ref(const agglo_op_case *c, double **v)
{
    ref_residual(c->d[0], c->d[1], v[0], v[1], v[2], v[3]);
}

static void residual_bwd_ref(const agglo_op_case *c, double **v)
{
    ref_residual_bwd(c->d[0], c->d[1], v[0], v[1], v[2], v[3], v[4]);
}

static double residual_loss(const agglo_op_case *c, double **v)
{
    double sum = 0.0;

    for (int64_t i = 0; i < c->d[0] * c->d[1]; i++) {
        sum += v[0][i] * v[2][i % c->d[1]] * v[1][i];
    }
    return sum;
}

static void axpy_ref(const agglo_op_case *c, double **v)
{
    for (int64_t i = 0; i < c->d[0]; i++) {
        v[1][i] += (double)AGGLO_TABLE_AXPY * v[0][i];
    }
}

static void cast_ref(const agglo_op_case *c, double **v)
{
    memcpy(v[1], v[0], (size_t)c->d[0] * sizeof(double));
}

static const op_test tests[] = {
    {.name = "activate", .ref = activate_ref},
    {.name = "activate_bwd",
     .backward = true,
     .ref = activate_bwd_ref,
     .loss = activate_loss,
     .n_grads = 1,
     .grads = {{0, 2}}},
    {.name = "swiglu", .ref = swiglu_ref},
    {.name = "swiglu_bwd",
     .backward = true,
     .ref = swiglu_bwd_ref,
     .loss = swiglu_loss,
     .n_grads = 1,
     .grads = {{0, 2}}},
    {.name = "residual", .ref = residual_ref},
    {.name = "residual_bwd",
     .backward = true,
     .ref = residual_bwd_ref,
     .loss = residual_loss,
     .n_grads = 2,
     .grads = {{1, 3}, {2, 4}}},
    {.name = "axpy", .ref = axpy_ref},
    {.name = "cast", .ref = cast_ref},
};

OP_TEST_FAMILY(elementwise, tests);
