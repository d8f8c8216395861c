/* References of moving rows; arrays as in tensor/table/table_gather.c. Partition and merge are each the other's backward pass, so
 * that each is checked against differences of the other. */
#include "tests/parity/tensor/op_harness.h"
#include "tests/ref/ref_resample.h"

static void partition_ref(const agglo_op_case *c, double **v)
{
    ref_window_partition(c->d[0], c->d[1], c->d[2], c->d[3], c->d[4], c->d[5], v[0],
                         agglo_op_has(c, AGGLO_OP_ACCUMULATE), v[1]);
}

static void merge_ref(const agglo_op_case *c, double **v)
{
    ref_window_merge(c->d[0], c->d[1], c->d[2], c->d[3], c->d[4], c->d[5], v[0], agglo_op_has(c, AGGLO_OP_ACCUMULATE),
                     v[1]);
}

static double merge_loss(const agglo_op_case *c, double **v)
{
    int64_t n = c->d[0] * c->d[1] * c->d[2] * c->d[5];
    double *x = op_scratch(n), sum;

    ref_window_merge(c->d[0], c->d[1], c->d[2], c->d[3], c->d[4], c->d[5], v[2], false, x);
    sum = op_dot(n, v[0], x);
    free(x);
    return sum;
}

static double partition_loss(const agglo_op_case *c, double **v)
{
    int64_t n = c->d[0] * ((c->d[1] + c->d[3] - 1) / c->d[3]) * ((c->d[2] + c->d[4] - 1) / c->d[4]) * c->d[3] *
                c->d[4] * c->d[5];
    double *y = op_scratch(n), sum;

    ref_window_partition(c->d[0], c->d[1], c->d[2], c->d[3], c->d[4], c->d[5], v[2], false, y);
    sum = op_dot(n, v[0], y);
    free(y);
    return sum;
}

static int64_t lists(const agglo_op_case *c)
{
    return agglo_op_has(c, AGGLO_OP_POS_PER_IMAGE) ? c->d[0] : 1;
}

static void gather_ref(const agglo_op_case *c, double **v)
{
    ref_gather_rows(c->d[0], c->d[1], c->d[2], c->d[3], v[0], v[1], lists(c), v[2]);
}

static void scatter_ref(const agglo_op_case *c, double **v)
{
    ref_scatter_rows(c->d[0], c->d[1], c->d[2], c->d[3], v[0], v[1], lists(c), agglo_op_has(c, AGGLO_OP_ACCUMULATE),
                     v[2]);
}

static double gather_loss(const agglo_op_case *c, double **v)
{
    int64_t n = c->d[0] * c->d[2] * c->d[3];
    double *y = op_scratch(n), sum;

    ref_gather_rows(c->d[0], c->d[1], c->d[2], c->d[3], v[3], v[1], lists(c), y);
    sum = op_dot(n, v[0], y);
    free(y);
    return sum;
}

static const op_test tests[] = {
    {.name = "window_partition", .ref = partition_ref, .loss = merge_loss, .n_grads = 1, .grads = {{2, 1}}},
    {.name = "window_merge", .ref = merge_ref, .loss = partition_loss, .n_grads = 1, .grads = {{2, 1}}},
    {.name = "gather_rows", .ref = gather_ref},
    {.name = "scatter_rows", .ref = scatter_ref, .loss = gather_loss, .n_grads = 1, .grads = {{3, 2}}},
};

OP_TEST_FAMILY(gather, tests);
