/* References of the optimiser; arrays as in tensor/table/table_optim.c. */
#include "tests/parity/tensor/op_harness.h"

static void adamw_ref(const agglo_op_case *c, double **v)
{
    const agglo_adamw_config *f = &agglo_table_adamw_config;
    ref_adamw_config config = {(double)f->lr,           (double)f->beta1,      (double)f->beta2, (double)f->eps,
                               (double)f->weight_decay, (double)f->grad_scale, f->step};

    ref_adamw(&config, c->d[0], v[0], v[1], v[2], v[3]);
}

static void squares_ref(const agglo_op_case *c, double **v)
{
    v[1][0] += ref_sum_squares(c->d[0], v[0]);
}

static const op_test tests[] = {
    {.name = "adamw", .ref = adamw_ref},
    {.name = "sum_squares", .ref = squares_ref},
};

OP_TEST_FAMILY(optim, tests);
