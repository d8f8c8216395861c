/* References of the token operators; arrays as in tensor/table/table_tokens.c. */
#include "tests/parity/tensor/op_harness.h"

static void patchify_ref(const agglo_op_case *c, double **v)
{
    int64_t n = c->d[0] * c->d[1] * c->d[2] * 3;
    double mean[3], std[3];
    uint8_t *pixels = malloc((size_t)n);

    assert_non_null(pixels);
    for (int64_t i = 0; i < n; i++) {
        pixels[i] = (uint8_t)v[0][i];
    }
    for (int i = 0; i < 3; i++) {
        mean[i] = (double)agglo_table_pixel_mean[i];
        std[i] = (double)agglo_table_pixel_std[i];
    }
    ref_patchify(c->d[0], c->d[1], c->d[2], c->d[3], pixels, agglo_op_has(c, AGGLO_OP_EXTENTS) ? v[2] : NULL, mean, std,
                 v[1]);
    free(pixels);
}

static int64_t pos_images(const agglo_op_case *c)
{
    return agglo_op_has(c, AGGLO_OP_POS_PER_IMAGE) ? c->d[0] : 1;
}

static void join_ref(const agglo_op_case *c, double **v)
{
    ref_tokens_join(c->d[0], c->d[1], c->d[2], c->d[3], v[0], v[1], v[2], pos_images(c), v[3]);
}

static void join_bwd_ref(const agglo_op_case *c, double **v)
{
    ref_tokens_join_bwd(c->d[0], c->d[1], c->d[2], c->d[3], v[0], v[1], v[2], v[3], pos_images(c));
}

static double join_loss(const agglo_op_case *c, double **v)
{
    int64_t n = c->d[0] * (c->d[1] + c->d[2]) * c->d[3];
    double *y = op_scratch(n), sum;

    ref_tokens_join(c->d[0], c->d[1], c->d[2], c->d[3], v[4], v[5], v[6], pos_images(c), y);
    sum = op_dot(n, v[0], y);
    free(y);
    return sum;
}

static void slice_ref(const agglo_op_case *c, double **v)
{
    ref_tokens_slice(c->d[0], c->d[1], c->d[2], c->d[3], c->d[4], v[0], v[1]);
}

static void slice_bwd_ref(const agglo_op_case *c, double **v)
{
    ref_tokens_slice_bwd(c->d[0], c->d[1], c->d[2], c->d[3], c->d[4], v[0], agglo_op_has(c, AGGLO_OP_ACCUMULATE), v[1]);
}

static void mean_ref(const agglo_op_case *c, double **v)
{
    ref_tokens_mean(c->d[0], c->d[1], c->d[2], v[0], v[1]);
}

static void mean_bwd_ref(const agglo_op_case *c, double **v)
{
    ref_tokens_mean_bwd(c->d[0], c->d[1], c->d[2], v[0], agglo_op_has(c, AGGLO_OP_ACCUMULATE), v[1]);
}

static double mean_loss(const agglo_op_case *c, double **v)
{
    double *y = op_scratch(c->d[0] * c->d[2]), sum;

    ref_tokens_mean(c->d[0], c->d[1], c->d[2], v[2], y);
    sum = op_dot(c->d[0] * c->d[2], v[0], y);
    free(y);
    return sum;
}

static const op_test tests[] = {
    {.name = "patchify", .ref = patchify_ref},
    {.name = "tokens_join", .ref = join_ref},
    {.name = "tokens_join_bwd",
     .backward = true,
     .ref = join_bwd_ref,
     .loss = join_loss,
     .n_grads = 3,
     .grads = {{4, 1}, {5, 2}, {6, 3}}},
    {.name = "tokens_slice", .ref = slice_ref},
    {.name = "tokens_slice_bwd", .backward = true, .ref = slice_bwd_ref},
    {.name = "tokens_mean", .ref = mean_ref},
    {.name = "tokens_mean_bwd",
     .backward = true,
     .ref = mean_bwd_ref,
     .loss = mean_loss,
     .n_grads = 1,
     .grads = {{2, 1}}},
};

OP_TEST_FAMILY(tokens, tests);
