/* The table's token operators: patches of pixels, joining, slicing and averaging tokens. They move bytes; flops are counted where they add. */
#include "tensor/table/table_impl.h"

static double no_flops(const agglo_op_case *c)
{
    (void)c;
    return 0.0;
}

/* ---- patchify: d = b, height, width, patch ---- */

const float agglo_table_pixel_mean[3] = {0.48145466f, 0.4578275f, 0.40821073f};
const float agglo_table_pixel_std[3] = {0.26862954f, 0.26130258f, 0.27577711f};

static double patchify_flops(const agglo_op_case *c)
{
    return 3.0 * 3.0 * (double)c->d[0] * (double)c->d[1] * (double)c->d[2];
}

/* arrays: pixels, patches, extents */
static void patchify_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    ARRAY(0, IN, AGGLO_U8, c->d[0], c->d[1], c->d[2], 3);
    ARRAY(1, OUT, type, c->d[0], c->d[1] / c->d[3] * (c->d[2] / c->d[3]), 3 * c->d[3] * c->d[3]);
    ARRAY_IF(agglo_op_has(c, AGGLO_OP_EXTENTS), 2, FIXED, AGGLO_I32, c->d[0], 2);
}

/* The first picture fills its input; of the others now the width falls short of it, now the height. */
static void patchify_fill(const agglo_op_case *c, int i, void *data)
{
    int32_t *extents = data;

    (void)i;
    for (int64_t b = 0; b < c->d[0]; b++) {
        extents[2 * b] = (int32_t)(b % 2 == 1 ? 1 + c->d[2] * b / (2 * c->d[0]) : c->d[2]);
        extents[2 * b + 1] = (int32_t)(b % 2 == 0 && b > 0 ? 1 + c->d[1] * b / (2 * c->d[0]) : c->d[1]);
    }
}

static void patchify_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    agglo_patchify(be, &t[0], agglo_op_optional(&t[2]), agglo_table_pixel_mean, agglo_table_pixel_std, (int)c->d[3],
                   &t[1]);
}

/* ---- join: d = b, prefix, n, c ---- */

static int64_t pos_images(const agglo_op_case *c)
{
    return agglo_op_has(c, AGGLO_OP_POS_PER_IMAGE) ? c->d[0] : 1;
}

static double join_flops(const agglo_op_case *c)
{
    return agglo_op_has(c, AGGLO_OP_POS) ? (double)c->d[0] * (double)c->d[2] * (double)c->d[3] : 0.0;
}

/* arrays: prefix, patches, pos, y */
static void join_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    ARRAY_IF(c->d[1] > 0, 0, IN, AGGLO_F32, c->d[1], c->d[3]);
    ARRAY(1, IN, type, c->d[0], c->d[2], c->d[3]);
    ARRAY_IF(agglo_op_has(c, AGGLO_OP_POS), 2, IN, AGGLO_F32, pos_images(c), c->d[2], c->d[3]);
    ARRAY(3, OUT, type, c->d[0], c->d[1] + c->d[2], c->d[3]);
}

static void join_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    agglo_tensor pos = pos_images(c) == 1 ? agglo_tensor_rows(&t[2]) : t[2];

    agglo_tokens_join(be, agglo_op_optional(&t[0]), &t[1], agglo_op_optional(&pos), &t[3]);
}

static double join_bwd_flops(const agglo_op_case *c)
{
    return (double)c->d[0] * (double)(c->d[1] + (agglo_op_has(c, AGGLO_OP_POS) ? c->d[2] : 0)) * (double)c->d[3];
}

/* arrays: d_y, d_prefix, d_patches, d_pos, prefix, patches, pos */
static void join_bwd_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    ARRAY(0, IN, type, c->d[0], c->d[1] + c->d[2], c->d[3]);
    ARRAY(2, OUT, type, c->d[0], c->d[2], c->d[3]);
    ARRAY(5, ASIDE, type, c->d[0], c->d[2], c->d[3]);
    if (c->d[1] > 0) {
        ARRAY(1, INOUT, AGGLO_F32, c->d[1], c->d[3]);
        ARRAY(4, ASIDE, AGGLO_F32, c->d[1], c->d[3]);
    }
    if (agglo_op_has(c, AGGLO_OP_POS)) {
        ARRAY(3, INOUT, AGGLO_F32, pos_images(c), c->d[2], c->d[3]);
        ARRAY(6, ASIDE, AGGLO_F32, pos_images(c), c->d[2], c->d[3]);
    }
}

static void join_bwd_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    agglo_tensor d_pos = pos_images(c) == 1 ? agglo_tensor_rows(&t[3]) : t[3];

    agglo_tokens_join_bwd(be, &t[0], agglo_op_optional(&t[1]), &t[2], agglo_op_optional(&d_pos));
}

/* ---- slice: d = b, total, first, n, c ---- */

static void slice_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    ARRAY(0, IN, type, c->d[0], c->d[1], c->d[4]);
    ARRAY(1, OUT, type, c->d[0], c->d[3], c->d[4]);
}

static void slice_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    agglo_tokens_slice(be, &t[0], c->d[2], &t[1]);
}

static double slice_bytes(const agglo_op_case *c, agglo_dtype type)
{
    return (agglo_op_has(c, AGGLO_OP_ACCUMULATE) ? 3.0 : 2.0) * (double)agglo_dtype_size(type) * (double)c->d[0] *
           (double)c->d[3] * (double)c->d[4];
}

/* arrays: d_y, d_x: rows outside the slice are left alone, so d_x is drawn even when it is written */
static void slice_bwd_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    ARRAY(0, IN, type, c->d[0], c->d[3], c->d[4]);
    ARRAY(1, INOUT, type, c->d[0], c->d[1], c->d[4]);
}

static void slice_bwd_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    agglo_tokens_slice_bwd(be, &t[0], c->d[2], agglo_op_has(c, AGGLO_OP_ACCUMULATE), &t[1]);
}

/* ---- mean: d = b, n, c ---- */

static double mean_flops(const agglo_op_case *c)
{
    return (double)c->d[0] * (double)c->d[1] * (double)c->d[2];
}

static void mean_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    ARRAY(0, IN, type, c->d[0], c->d[1], c->d[2]);
    ARRAY(1, OUT, type, c->d[0], c->d[2]);
}

static void mean_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    (void)c;
    agglo_tokens_mean(be, &t[0], &t[1]);
}

/* arrays: d_y, d_x, x */
static void mean_bwd_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    ARRAY(0, IN, type, c->d[0], c->d[2]);
    GRADIENT(1, type, c->d[0], c->d[1], c->d[2]);
    ARRAY(2, ASIDE, type, c->d[0], c->d[1], c->d[2]);
}

static void mean_bwd_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    agglo_tokens_mean_bwd(be, &t[0], agglo_op_has(c, AGGLO_OP_ACCUMULATE), &t[1]);
}

static const agglo_op patchify = {.name = "patchify",
                                  .dims = "b height width patch",
                                  .flags = AGGLO_OP_EXTENTS,
                                  .n_arrays = 3,
                                  .shape = patchify_shape,
                                  .fill = patchify_fill,
                                  .run = patchify_run,
                                  .flops = patchify_flops};
static const agglo_op tokens_join = {.name = "tokens_join",
                                     .dims = "b prefix n c",
                                     .flags = AGGLO_OP_POS | AGGLO_OP_POS_PER_IMAGE,
                                     .n_arrays = 4,
                                     .shape = join_shape,
                                     .run = join_run,
                                     .flops = join_flops};
static const agglo_op tokens_join_bwd = {.name = "tokens_join_bwd",
                                         .dims = "b prefix n c",
                                         .flags = AGGLO_OP_POS | AGGLO_OP_POS_PER_IMAGE,
                                         .n_arrays = 7,
                                         .shape = join_bwd_shape,
                                         .run = join_bwd_run,
                                         .flops = join_bwd_flops};
static const agglo_op tokens_slice = {.name = "tokens_slice",
                                      .dims = "b total first n c",
                                      .n_arrays = 2,
                                      .shape = slice_shape,
                                      .run = slice_run,
                                      .flops = no_flops,
                                      .bytes = slice_bytes};
static const agglo_op tokens_slice_bwd = {.name = "tokens_slice_bwd",
                                          .dims = "b total first n c",
                                          .flags = AGGLO_OP_ACCUMULATE,
                                          .n_arrays = 2,
                                          .shape = slice_bwd_shape,
                                          .run = slice_bwd_run,
                                          .flops = no_flops,
                                          .bytes = slice_bytes};
static const agglo_op tokens_mean = {
    .name = "tokens_mean", .dims = "b n c", .n_arrays = 2, .shape = mean_shape, .run = mean_run, .flops = mean_flops};
static const agglo_op tokens_mean_bwd = {.name = "tokens_mean_bwd",
                                         .dims = "b n c",
                                         .flags = AGGLO_OP_ACCUMULATE,
                                         .n_arrays = 3,
                                         .shape = mean_bwd_shape,
                                         .run = mean_bwd_run,
                                         .flops = mean_flops};

static const agglo_op_case cases[] = {
    PARITY(&patchify, BOTH, 0, 1, 4, 4, 4),
    PARITY(&patchify, BOTH, 0, 2, 12, 20, 4),
    PARITY(&patchify, BOTH, 0, 3, 28, 42, 14),
    PARITY(&patchify, BOTH, AGGLO_OP_EXTENTS, 5, 12, 20, 4),
    PARITY(&tokens_join, BOTH, 0, 1, 0, 1, 1),
    PARITY(&tokens_join, BOTH, AGGLO_OP_POS, 3, 1, 16, 33),
    PARITY(&tokens_join, BOTH, AGGLO_OP_POS | AGGLO_OP_POS_PER_IMAGE, 3, 5, 7, 20),
    PARITY(&tokens_join, BOTH, 0, 2, 2, 9, 12),
    DIFFER(&tokens_join_bwd, BOTH, AGGLO_OP_POS, 3, 1, 16, 33),
    DIFFER(&tokens_join_bwd, BOTH, AGGLO_OP_POS | AGGLO_OP_POS_PER_IMAGE, 3, 5, 7, 20),
    PARITY(&tokens_join_bwd, BOTH, 0, 2, 0, 9, 12),
    PARITY(&tokens_slice, BOTH, 0, 3, 17, 1, 16, 33),
    PARITY(&tokens_slice, BOTH, 0, 2, 9, 0, 1, 12),
    PARITY(&tokens_slice_bwd, BOTH, 0, 3, 17, 1, 16, 33),
    PARITY(&tokens_slice_bwd, BOTH, AGGLO_OP_ACCUMULATE, 2, 9, 0, 1, 12),
    PARITY(&tokens_mean, BOTH, 0, 1, 1, 1),
    PARITY(&tokens_mean, BOTH, 0, 3, 257, 65),
    DIFFER(&tokens_mean_bwd, BOTH, 0, 3, 31, 65),
    DIFFER(&tokens_mean_bwd, BOTH, AGGLO_OP_ACCUMULATE, 2, 9, 12),
    /* channels in vectors of 8 */
    PARITY(&tokens_join, BOTH, AGGLO_OP_POS, 2, 3, 7, 264),
    PARITY(&tokens_join_bwd, BOTH, AGGLO_OP_POS, 2, 3, 7, 264),
    PARITY(&tokens_slice, BOTH, 0, 2, 9, 2, 5, 40),
    PARITY(&tokens_slice_bwd, BOTH, AGGLO_OP_ACCUMULATE, 2, 9, 2, 5, 40),
    PARITY(&tokens_mean, BOTH, 0, 2, 33, 40),
    PARITY(&tokens_mean_bwd, BOTH, AGGLO_OP_ACCUMULATE, 2, 9, 40),

    BENCH(&patchify, BOTH, 0, "ViT-B/16", EACH(1), 224, 224, 16),
    BENCH(&patchify, BOTH, 0, "ViT-L/14", EACH(1), 224, 224, 14),
    BENCH(&tokens_join, BOTH, AGGLO_OP_POS, "ViT-B/16", EACH(1), 1, 196, 768),
    BENCH(&tokens_join_bwd, BOTH, AGGLO_OP_POS, "ViT-B/16", EACH(1), 1, 196, 768),
    BENCH(&tokens_slice, BOTH, 0, "ViT-B/16", EACH(1), 197, 1, 196, 768),
    BENCH(&tokens_slice_bwd, BOTH, 0, "ViT-B/16", EACH(1), 197, 1, 196, 768),
    BENCH(&tokens_mean, BOTH, 0, "ViT-B/16", EACH(1), 196, 768),
    BENCH(&tokens_mean_bwd, BOTH, 0, "ViT-B/16", EACH(1), 196, 768),
};

const agglo_op_family agglo_family_tokens = {"tokens", cases, AGGLO_COUNT(cases)};
