/* References of the optimiser; arrays as in tensor/table/table_optim.c. */
#include "tests/parity/tensor/op_harness.h"

#include <math.h>

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

/* ---- lists ---- */

static double list_squares(const agglo_op_case *c, const double *g)
{
    double sum = 0.0;

    for (int64_t i = 0; i < agglo_table_list_count(c); i++) {
        int64_t first, n;
        bool large;

        agglo_table_list_entry(c, i, &first, &n, &large);
        sum += ref_sum_squares(n, g + first);
    }
    return sum;
}

static void many_ref(const agglo_op_case *c, double **v)
{
    const agglo_adamw_config *f = &agglo_table_adamw_config;
    double scale = (double)f->grad_scale, norm = sqrt(list_squares(c, v[1]));
    double most = (double)agglo_table_list_max_norm(c);

    if (agglo_op_has(c, AGGLO_OP_CLIP)) {
        assert_true(scale * norm > most); /* or the row shows nothing */
        scale *= most / (scale * norm);
    }
    for (int64_t i = 0; i < agglo_table_list_count(c); i++) {
        int64_t at, n;
        bool large;

        agglo_table_list_entry(c, i, &at, &n, &large);
        ref_adamw(&(ref_adamw_config){(double)f->lr, (double)f->beta1, (double)f->beta2, (double)f->eps,
                                      large ? (double)AGGLO_TABLE_LIST_DECAY : 0.0, scale, f->step},
                  n, v[0] + at, v[1] + at, v[2] + at, v[3] + at);
        for (int64_t j = at; v[4] != NULL && j < at + n; j++) {
            v[4][j] = v[0][j];
        }
    }
}

static void norm_ref(const agglo_op_case *c, double **v)
{
    v[1][0] = sqrt(list_squares(c, v[0]));
    v[1][1] = -1.0; /* no gradient that is not finite */
}

static void ema_ref(const agglo_op_case *c, double **v)
{
    for (int64_t i = 0; i < agglo_table_list_count(c); i++) {
        int64_t at, n;
        bool large;

        agglo_table_list_entry(c, i, &at, &n, &large);
        for (int64_t j = at; j < at + n; j++) {
            v[1][j] = (double)AGGLO_TABLE_EMA_DECAY * v[1][j] + (1.0 - (double)AGGLO_TABLE_EMA_DECAY) * v[0][j];
        }
    }
}

static const op_test tests[] = {
    {.name = "adamw", .ref = adamw_ref},     {.name = "sum_squares", .ref = squares_ref},
    {.name = "adamw_many", .ref = many_ref}, {.name = "grad_norm", .ref = norm_ref},
    {.name = "ema", .ref = ema_ref},
};

OP_TEST_FAMILY(optim, tests);
