/* References of resampling by rules and boxes; arrays as in tensor/table/table_resample.c. */
#include "tests/parity/tensor/op_harness.h"
#include "tests/ref/ref_resample.h"

/* ref_resample_mode has the order of agglo_resample_mode */
static ref_resample_rule rule_of(const agglo_op_case *c)
{
    agglo_resample_rule rule = agglo_table_resample_rule(c);

    return (ref_resample_rule){(ref_resample_mode)rule.mode, rule.antialias, rule.align_corners, rule.scale_h,
                               rule.scale_w};
}

static void resample_ref(const agglo_op_case *c, double **v)
{
    ref_resample_rule rule = rule_of(c);

    ref_resample(&rule, c->d[0], c->d[1], c->d[2], c->d[3], c->d[4], c->d[5], v[0], v[1]);
}

static void resample_bwd_ref(const agglo_op_case *c, double **v)
{
    ref_resample_rule rule = rule_of(c);

    ref_resample_bwd(&rule, c->d[0], c->d[1], c->d[2], c->d[3], c->d[4], c->d[5], v[0],
                     agglo_op_has(c, AGGLO_OP_ACCUMULATE), v[1]);
}

static double resample_loss(const agglo_op_case *c, double **v)
{
    ref_resample_rule rule = rule_of(c);
    int64_t n = c->d[0] * c->d[3] * c->d[4] * c->d[5];
    double *y = op_scratch(n), sum;

    ref_resample(&rule, c->d[0], c->d[1], c->d[2], c->d[3], c->d[4], c->d[5], v[2], y);
    sum = op_dot(n, v[0], y);
    free(y);
    return sum;
}

static void crop_ref(const agglo_op_case *c, double **v)
{
    ref_crop_grid(c->d[0], c->d[1], c->d[2], c->d[3], c->d[4], c->d[5], v[0], v[1], v[2]);
}

static void crop_bwd_ref(const agglo_op_case *c, double **v)
{
    ref_crop_grid_bwd(c->d[0], c->d[1], c->d[2], c->d[3], c->d[4], c->d[5], v[0], v[1], v[2]);
}

static double crop_loss(const agglo_op_case *c, double **v)
{
    int64_t n = c->d[0] * c->d[3] * c->d[4] * c->d[5];
    double *y = op_scratch(n), sum;

    ref_crop_grid(c->d[0], c->d[1], c->d[2], c->d[3], c->d[4], c->d[5], v[3], v[1], y);
    sum = op_dot(n, v[0], y);
    free(y);
    return sum;
}

static const op_test tests[] = {
    {.name = "resample", .ref = resample_ref},
    {.name = "resample_bwd",
     .backward = true,
     .ref = resample_bwd_ref,
     .loss = resample_loss,
     .n_grads = 1,
     .grads = {{2, 1}}},
    {.name = "crop_grid", .ref = crop_ref},
    {.name = "crop_grid_bwd",
     .backward = true,
     .ref = crop_bwd_ref,
     .loss = crop_loss,
     .n_grads = 1,
     .grads = {{3, 2}}},
};

OP_TEST_FAMILY(resample, tests);
