/* References of the distillation losses; arrays as in tensor/table/table_loss.c. */
#include "tests/parity/tensor/op_harness.h"

static ref_loss_config config(void)
{
    const agglo_loss_config *f = &agglo_table_loss_config;

    return (ref_loss_config){(double)f->lambda, (double)f->alpha, (double)f->beta, (double)f->threshold};
}

static void loss_ref(const agglo_op_case *c, double **v)
{
    const ref_loss_config loss = config();

    ref_distill_loss(&loss, c->d[0], c->d[1], c->d[2], v[0], v[1], v[2], (double)AGGLO_TABLE_GRAD_SCALE, v[3], v[4]);
}

static double loss_loss(const agglo_op_case *c, double **v)
{
    const ref_loss_config loss = config();

    return (double)AGGLO_TABLE_GRAD_SCALE *
           ref_distill_loss(&loss, c->d[0], c->d[1], c->d[2], v[0], v[1], v[2], 1.0, NULL, NULL);
}

static const op_test tests[] = {
    {.name = "distill_loss", .backward = true, .ref = loss_ref, .loss = loss_loss, .n_grads = 1, .grads = {{0, 3}}},
};

OP_TEST_FAMILY(loss, tests);
