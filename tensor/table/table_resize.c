/* The table's resampling of feature maps: d = b, h_in, w_in, h_out, w_out, c. */
#include "tensor/table/table_impl.h"

/* four taps in two steps */
static double resize_flops(const agglo_op_case *c)
{
    return 7.0 * (double)c->d[0] * (double)c->d[3] * (double)c->d[4] * (double)c->d[5];
}

static void resize_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    ARRAY(0, IN, type, c->d[0], c->d[1], c->d[2], c->d[5]);
    ARRAY(1, OUT, type, c->d[0], c->d[3], c->d[4], c->d[5]);
}

static void resize_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    (void)c;
    agglo_resize_bilinear(be, &t[0], &t[1]);
}

/* arrays: d_y, d_x, x */
static void resize_bwd_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    ARRAY(0, IN, type, c->d[0], c->d[3], c->d[4], c->d[5]);
    GRADIENT(1, type, c->d[0], c->d[1], c->d[2], c->d[5]);
    ARRAY(2, ASIDE, type, c->d[0], c->d[1], c->d[2], c->d[5]);
}

static void resize_bwd_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    agglo_resize_bilinear_bwd(be, &t[0], agglo_op_has(c, AGGLO_OP_ACCUMULATE), &t[1]);
}

static const agglo_op resize_bilinear = {.name = "resize_bilinear",
                                         .dims = "b h_in w_in h_out w_out c",
                                         .n_arrays = 2,
                                         .shape = resize_shape,
                                         .run = resize_run,
                                         .flops = resize_flops};
static const agglo_op resize_bilinear_bwd = {.name = "resize_bilinear_bwd",
                                             .dims = "b h_in w_in h_out w_out c",
                                             .flags = AGGLO_OP_ACCUMULATE,
                                             .n_arrays = 3,
                                             .shape = resize_bwd_shape,
                                             .run = resize_bwd_run,
                                             .flops = resize_flops};

static const agglo_op_case cases[] = {
    PARITY(&resize_bilinear, BOTH, 0, 1, 1, 1, 3, 2, 1),
    PARITY(&resize_bilinear, BOTH, 0, 2, 4, 5, 9, 7, 33),
    PARITY(&resize_bilinear, BOTH, 0, 2, 9, 7, 4, 5, 16),
    PARITY(&resize_bilinear, BOTH, 0, 1, 16, 16, 16, 16, 8),
    DIFFER(&resize_bilinear_bwd, BOTH, 0, 1, 1, 1, 3, 2, 1),
    PARITY(&resize_bilinear_bwd, BOTH, AGGLO_OP_ACCUMULATE, 1, 4, 5, 9, 7, 40),
    PARITY(&resize_bilinear_bwd, BOTH, AGGLO_OP_ACCUMULATE, 2, 4, 5, 9, 7, 150),
    DIFFER(&resize_bilinear_bwd, BOTH, 0, 2, 9, 7, 4, 5, 16),

    BENCH(&resize_bilinear, BOTH, 0, "ViT-B/16 to CLIP H", EACH(1), 14, 14, 16, 16, 1280),
    BENCH(&resize_bilinear, BOTH, 0, "ViT-B/16 to SAM", EACH(1), 14, 14, 64, 64, 256),
    BENCH(&resize_bilinear_bwd, BOTH, 0, "ViT-B/16 to CLIP H", EACH(1), 14, 14, 16, 16, 1280),
};

const agglo_op_family agglo_family_resize = {"resize", cases, AGGLO_COUNT(cases)};
