/* References of resampling; arrays as in tensor/table/table_resize.c. */
#include "tests/parity/tensor/op_harness.h"

static void resize_ref(const agglo_op_case *c, double **v)
{
    ref_resize_bilinear(c->d[0], c->d[1], c->d[2], c->d[3], c->d[4], c->d[5], v[0], v[1]);
}

static void resize_bwd_ref(const agglo_op_case *c, double **v)
{
    ref_resize_bilinear_bwd(c->d[0], c->d[1], c->d[2], c->d[3], c->d[4], c->d[5], v[0],
                            agglo_op_has(c, AGGLO_OP_ACCUMULATE), v[1]);
}

static double resize_loss(const agglo_op_case *c, double **v)
{
    int64_t n = c->d[0] * c->d[3] * c->d[4] * c->d[5];
    double *y = op_scratch(n), sum;

    ref_resize_bilinear(c->d[0], c->d[1], c->d[2], c->d[3], c->d[4], c->d[5], v[2], y);
    sum = op_dot(n, v[0], y);
    free(y);
    return sum;
}

static const op_test tests[] = {
    {.name = "resize_bilinear", .ref = resize_ref},
    {.name = "resize_bilinear_bwd",
     .backward = true,
     .ref = resize_bwd_ref,
     .loss = resize_loss,
     .n_grads = 1,
     .grads = {{2, 1}}},
};

OP_TEST_FAMILY(resize, tests);
