/* References of batch norms, pooling, layout and stochastic depth; arrays and extents as in tensor/table/table_maps.c. */
#include "tests/parity/tensor/op_harness.h"
#include "tests/ref/ref_conv.h"

#define EPS ((double)AGGLO_TABLE_NORM_EPS)

static bool accumulates(const agglo_op_case *c)
{
    return agglo_op_has(c, AGGLO_OP_ACCUMULATE);
}

/* ---- batch norm ---- */

static void bn_ref(const agglo_op_case *c, double **v)
{
    ref_batchnorm(c->d[0], c->d[1], v[0], v[1], v[2], EPS, (double)AGGLO_TABLE_MOMENTUM, op_ref_act(c), v[3], v[4],
                  v[5], v[6], v[7]);
}

static void bn_infer_ref(const agglo_op_case *c, double **v)
{
    ref_batchnorm_infer(c->d[0], c->d[1], v[0], v[1], v[2], v[3], v[4], EPS, op_ref_act(c), v[5], v[6]);
}

static void bn_bwd_prepare(const agglo_op_case *c, double **v)
{
    double *y = op_scratch(c->d[0] * c->d[1]);

    ref_batchnorm(c->d[0], c->d[1], v[1], v[2], v[3], EPS, 0.0, REF_NONE, NULL, NULL, v[4], v[5], y);
    for (int64_t j = 0; c->d[2] != 0 && j < c->d[1]; j++) {
        v[4][j] += 0.25; /* fixed statistics are not the batch's */
        v[5][j] *= 0.75;
    }
    free(y);
}

static void bn_bwd_ref(const agglo_op_case *c, double **v)
{
    ref_batchnorm_bwd(c->d[0], c->d[1], v[0], v[1], v[2], v[3], v[4], v[5], op_ref_act(c), c->d[2] != 0, accumulates(c),
                      v[6], v[7], v[8]);
}

static double bn_loss(const agglo_op_case *c, double **v)
{
    int64_t m = c->d[0], n = c->d[1];
    double *y = op_scratch(m * n), *mean = op_scratch(n), *rstd = op_scratch(n), sum;

    if (c->d[2] != 0) {
        double *var = op_scratch(n);

        for (int64_t j = 0; j < n; j++) {
            var[j] = 1.0 / (v[5][j] * v[5][j]);
        }
        ref_batchnorm_infer(m, n, v[1], v[2], v[3], v[4], var, 0.0, op_ref_act(c), NULL, y);
        free(var);
    } else {
        ref_batchnorm(m, n, v[1], v[2], v[3], EPS, 0.0, op_ref_act(c), NULL, NULL, mean, rstd, y);
    }
    sum = op_dot(m * n, v[0], y);
    free(y);
    free(mean);
    free(rstd);
    return sum;
}

static void fold_ref(const agglo_op_case *c, double **v)
{
    ref_batchnorm_fold(c->d[0], c->d[1], v[0], v[1], v[2], v[3], v[4], v[5], EPS, v[6], v[7]);
}

/* ---- pooling ---- */

static ref_conv pool_of(const agglo_op_case *c)
{
    ref_conv s = {.b = c->d[0], .h = c->d[1], .w = c->d[2], .c = c->d[3], .o = c->d[3], .kh = c->d[4], .kw = c->d[5]};

    s.stride_h = s.stride_w = c->d[6];
    s.pad_h = s.pad_w = c->d[7];
    s.oh = (s.h + 2 * s.pad_h - s.kh) / s.stride_h + 1;
    s.ow = (s.w + 2 * s.pad_w - s.kw) / s.stride_w + 1;
    return s;
}

static int64_t n_pooled(const ref_conv *s)
{
    return s->b * s->oh * s->ow * s->c;
}

static void avg_ref(const agglo_op_case *c, double **v)
{
    ref_conv s = pool_of(c);

    ref_avgpool2d(&s, v[0], v[1]);
}

static void avg_bwd_ref(const agglo_op_case *c, double **v)
{
    ref_conv s = pool_of(c);

    ref_avgpool2d_bwd(&s, v[0], accumulates(c), v[1]);
}

static double avg_loss(const agglo_op_case *c, double **v)
{
    ref_conv s = pool_of(c);
    double *y = op_scratch(n_pooled(&s)), sum;

    ref_avgpool2d(&s, v[2], y);
    sum = op_dot(n_pooled(&s), v[0], y);
    free(y);
    return sum;
}

static void max_ref(const agglo_op_case *c, double **v)
{
    ref_conv s = pool_of(c);

    ref_maxpool2d(&s, v[0], v[1], v[2]);
}

static void max_bwd_ref(const agglo_op_case *c, double **v)
{
    ref_conv s = pool_of(c);

    ref_maxpool2d_bwd(&s, v[0], v[1], accumulates(c), v[2]);
}

/* of the places that the indices name */
static double max_loss(const agglo_op_case *c, double **v)
{
    ref_conv s = pool_of(c);
    double sum = 0.0;

    for (int64_t i = 0; i < n_pooled(&s); i++) {
        sum += v[0][i] * v[3][(i / (s.oh * s.ow * s.c) * s.h * s.w + (int64_t)v[1][i]) * s.c + i % s.c];
    }
    return sum;
}

/* ---- layout ---- */

static void to_nhwc_ref(const agglo_op_case *c, double **v)
{
    ref_transpose(c->d[0], c->d[1], c->d[2] * c->d[3], v[0], v[1]);
}

static void to_nchw_ref(const agglo_op_case *c, double **v)
{
    ref_transpose(c->d[0], c->d[2] * c->d[3], c->d[1], v[0], v[1]);
}

static void slice_ref(const agglo_op_case *c, double **v)
{
    ref_tokens_slice(c->d[0], c->d[1], c->d[3], c->d[4], c->d[2], v[0], v[1]);
}

static void slice_bwd_ref(const agglo_op_case *c, double **v)
{
    ref_tokens_slice_bwd(c->d[0], c->d[1], c->d[3], c->d[4], c->d[2], v[0], accumulates(c), v[1]);
}

static void concat_ref(const agglo_op_case *c, double **v)
{
    int64_t total = c->d[2] + c->d[3] + c->d[4], first = 0;

    for (int i = 0; i < 3; i++) {
        ref_tokens_slice_bwd(c->d[0], total, first, c->d[2 + i], c->d[1], v[i], false, v[3]);
        first += c->d[2 + i];
    }
}

static void concat_bwd_ref(const agglo_op_case *c, double **v)
{
    int64_t total = c->d[2] + c->d[3] + c->d[4], first = 0;

    for (int i = 0; i < 3; i++) {
        int64_t n = c->d[0] * c->d[2 + i] * c->d[1];
        double *part = op_scratch(n);

        ref_tokens_slice(c->d[0], total, first, c->d[2 + i], c->d[1], v[3], part);
        for (int64_t j = 0; j < n; j++) {
            v[i][j] = accumulates(c) ? v[i][j] + part[j] : part[j];
        }
        first += c->d[2 + i];
        free(part);
    }
}

/* ---- stochastic depth ---- */

static void drop_ref(const agglo_op_case *c, double **v)
{
    ref_residual_drop(c->d[0], c->d[1], c->d[2], v[0], v[1], v[2], v[3], v[4]);
}

static void drop_bwd_ref(const agglo_op_case *c, double **v)
{
    ref_residual_drop_bwd(c->d[0], c->d[1], c->d[2], v[0], v[1], v[2], v[3], accumulates(c), v[4], v[5]);
}

static double drop_loss(const agglo_op_case *c, double **v)
{
    int64_t n = c->d[0] * c->d[1] * c->d[2];
    double *y = op_scratch(n), *x = op_scratch(n), sum;

    ref_residual_drop(c->d[0], c->d[1], c->d[2], x, v[1], v[2], v[3], y);
    sum = op_dot(n, v[0], y);
    free(y);
    free(x);
    return sum;
}

static const op_test tests[] = {
    {.name = "batchnorm", .ref = bn_ref},
    {.name = "batchnorm_infer", .ref = bn_infer_ref},
    {.name = "batchnorm_bwd",
     .backward = true,
     .prepare = bn_bwd_prepare,
     .ref = bn_bwd_ref,
     .loss = bn_loss,
     .n_grads = 3,
     .grads = {{1, 6}, {2, 7}, {3, 8}}},
    {.name = "batchnorm_fold", .ref = fold_ref},
    {.name = "avgpool2d", .ref = avg_ref},
    {.name = "avgpool2d_bwd", .backward = true, .ref = avg_bwd_ref, .loss = avg_loss, .n_grads = 1, .grads = {{2, 1}}},
    {.name = "maxpool2d", .ref = max_ref},
    {.name = "maxpool2d_bwd", .backward = true, .ref = max_bwd_ref, .loss = max_loss, .n_grads = 1, .grads = {{3, 2}}},
    {.name = "nchw_to_nhwc", .ref = to_nhwc_ref},
    {.name = "nhwc_to_nchw", .ref = to_nchw_ref},
    {.name = "slice", .ref = slice_ref},
    {.name = "slice_bwd", .backward = true, .ref = slice_bwd_ref},
    {.name = "concat", .ref = concat_ref},
    {.name = "concat_bwd", .backward = true, .ref = concat_bwd_ref},
    {.name = "residual_drop", .ref = drop_ref},
    {.name = "residual_drop_bwd",
     .backward = true,
     .ref = drop_bwd_ref,
     .loss = drop_loss,
     .n_grads = 2,
     .grads = {{1, 4}, {2, 5}}},
};

OP_TEST_FAMILY(maps, tests);
