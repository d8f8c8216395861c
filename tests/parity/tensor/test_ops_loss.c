/* References of the distillation losses; arrays as in tensor/table/table_loss.c. */
#include "tests/parity/tensor/op_harness.h"
#include "tests/ref/ref_loss.h"

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

/* ---- stored targets ---- */

/* t[b n, c] of the arrays, malloced. */
static double *decoded(const agglo_op_case *c, double **v)
{
    int64_t m = c->d[0] * c->d[1], k = c->d[2];
    ref_target target = {.k = k,
                         .c = c->d[3],
                         .q = v[1],
                         .token_scale = v[2],
                         .channel_scale = v[3],
                         .scale = (double)agglo_table_target_scale(c),
                         .centre = v[5],
                         .matrix = v[4],
                         .offset = v[6]};
    double *t = op_scratch(m * c->d[3]), *q = NULL;

    if (strcmp(c->op->name, "target_loss_int4") == 0) {
        q = op_scratch(m * k);
        for (int64_t i = 0; i < m * k; i++) {
            int byte = (int)v[1][i / k * ((k + 1) / 2) + i % k / 2], value = i % k % 2 == 0 ? byte % 16 : byte / 16;

            q[i] = value < 8 ? value : value - 16;
        }
        target.q = q;
    }
    ref_target_decode(&target, m, t);
    free(q);
    return t;
}

static double target_value(const agglo_op_case *c, double **v, double *d_pred, double *const values[3], double *sums)
{
    const agglo_loss_config *f = &agglo_table_target_config;
    const ref_target_loss_config config = {(double)f->lambda, (double)f->alpha, (double)f->beta, (double)f->threshold,
                                           (double)f->squared};
    double *t = decoded(c, v), loss;

    loss = ref_target_loss(&config, c->d[0], c->d[1], c->d[3], v[0], t, v[7], v[8], v[9],
                           (double)AGGLO_TABLE_GRAD_SCALE, d_pred, values, sums);
    free(t);
    return (double)AGGLO_TABLE_GRAD_SCALE * loss;
}

static void target_ref(const agglo_op_case *c, double **v)
{
    double *const values[3] = {v[11], v[12], v[13]};

    target_value(c, v, v[10], values, v[14]);
}

static double target_loss(const agglo_op_case *c, double **v)
{
    return target_value(c, v, NULL, NULL, NULL);
}

#define TARGET(form)                                                                                                   \
    {                                                                                                                  \
        .name = "target_loss_" #form, .backward = true, .ref = target_ref, .loss = target_loss, .n_grads = 1,          \
        .grads = {{0, 10}},                                                                                            \
    }

static const op_test tests[] = {
    {.name = "distill_loss", .backward = true, .ref = loss_ref, .loss = loss_loss, .n_grads = 1, .grads = {{0, 3}}},
    TARGET(f16),
    TARGET(int8),
    TARGET(int4),
    TARGET(klt),
    TARGET(rotated),
    TARGET(phis),
};

OP_TEST_FAMILY(loss, tests);
