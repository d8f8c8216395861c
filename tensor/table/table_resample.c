/* The table's resampling: d = b, h_in, w_in, h_out, w_out, c, rule (mode, + 4 antialias, + 8 align_corners), scale (0: of the sizes, 1: that
 * of DINOv2's hub, 2: to a square of the larger output extent, cut). Boxes: d = b, rows, columns, h, w, c. */
#include "tensor/table/table_impl.h"

#define NEAREST       AGGLO_RESAMPLE_NEAREST
#define BILINEAR      AGGLO_RESAMPLE_BILINEAR
#define BICUBIC       AGGLO_RESAMPLE_BICUBIC
#define REFLECT       AGGLO_RESAMPLE_REFLECT
#define ANTIALIAS     4
#define ALIGN_CORNERS 8

agglo_resample_rule agglo_table_resample_rule(const agglo_op_case *c)
{
    agglo_resample_rule rule = {.mode = (agglo_resample_mode)(c->d[6] & 3),
                                .antialias = (c->d[6] & ANTIALIAS) != 0,
                                .align_corners = (c->d[6] & ALIGN_CORNERS) != 0};

    if (c->d[7] == 1) {
        rule.scale_h = ((double)c->d[3] + 0.1) / (double)c->d[1];
        rule.scale_w = ((double)c->d[4] + 0.1) / (double)c->d[2];
    } else if (c->d[7] == 2) {
        int64_t square = c->d[3] > c->d[4] ? c->d[3] : c->d[4];

        rule.scale_h = (double)square / (double)c->d[1];
        rule.scale_w = (double)square / (double)c->d[2];
    }
    return rule;
}

/* of the plain kernels: taps down, then across */
static double resample_flops(const agglo_op_case *c)
{
    double taps = (c->d[6] & 3) == BICUBIC ? 4.0 : (c->d[6] & 3) == BILINEAR ? 2.0 : 1.0;

    return 2.0 * taps * (double)c->d[0] * (double)c->d[5] * (double)c->d[3] * (double)(c->d[2] + c->d[4]);
}

static void resample_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    ARRAY(0, IN, type, c->d[0], c->d[1], c->d[2], c->d[5]);
    ARRAY(1, OUT, type, c->d[0], c->d[3], c->d[4], c->d[5]);
}

static void resample_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    agglo_resample_rule rule = agglo_table_resample_rule(c);

    agglo_resample(be, &rule, &t[0], &t[1]);
}

/* arrays: d_y, d_x, x */
static void resample_bwd_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    ARRAY(0, IN, type, c->d[0], c->d[3], c->d[4], c->d[5]);
    GRADIENT(1, type, c->d[0], c->d[1], c->d[2], c->d[5]);
    ARRAY(2, ASIDE, type, c->d[0], c->d[1], c->d[2], c->d[5]);
}

static void resample_bwd_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    agglo_resample_rule rule = agglo_table_resample_rule(c);

    agglo_resample_bwd(be, &rule, &t[0], agglo_op_has(c, AGGLO_OP_ACCUMULATE), &t[1]);
}

/* ---- boxes ---- */

static double crop_flops(const agglo_op_case *c)
{
    return 7.0 * (double)c->d[0] * (double)c->d[3] * (double)c->d[4] * (double)c->d[5];
}

/* Sizes from 0.2 to 1, inside; the third reaches over the edges, the fifth is one row. */
static void boxes_fill(const agglo_op_case *c, int i, void *data)
{
    float *box = data;

    (void)i;
    for (int64_t b = 0; b < c->d[0]; b++, box += 4) {
        box[2] = 0.2f + 0.8f * (float)(b * 5 % 7) / 6.0f;
        box[3] = b == 4 ? 0.0f : 0.2f + 0.8f * (float)(b * 3 % 7) / 6.0f;
        box[0] = (1.0f - box[2]) * (float)(b % 4) / 3.0f;
        box[1] = (1.0f - box[3]) * (float)(b % 3) / 2.0f;
        if (b == 2) {
            box[0] = -0.25f;
            box[3] = 1.5f;
        }
    }
}

/* arrays: table, boxes, y */
static void crop_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    ARRAY(0, IN, AGGLO_F32, c->d[1], c->d[2], c->d[5]);
    ARRAY(1, FIXED, AGGLO_F32, c->d[0], 4);
    ARRAY(2, OUT, type, c->d[0], c->d[3], c->d[4], c->d[5]);
}

static void crop_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    (void)c;
    agglo_crop_grid(be, &t[0], &t[1], &t[2]);
}

/* arrays: d_y, boxes, d_table, table */
static void crop_bwd_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    ARRAY(0, IN, type, c->d[0], c->d[3], c->d[4], c->d[5]);
    ARRAY(1, FIXED, AGGLO_F32, c->d[0], 4);
    ARRAY(2, INOUT, AGGLO_F32, c->d[1], c->d[2], c->d[5]);
    ARRAY(3, ASIDE, AGGLO_F32, c->d[1], c->d[2], c->d[5]);
}

static void crop_bwd_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    (void)c;
    agglo_crop_grid_bwd(be, &t[0], &t[1], &t[2]);
}

#define RESAMPLE_DIMS "b h_in w_in h_out w_out c rule scale"
#define CROP_DIMS     "b rows columns h w c"

static const agglo_op resample = {.name = "resample",
                                  .dims = RESAMPLE_DIMS,
                                  .n_arrays = 2,
                                  .shape = resample_shape,
                                  .run = resample_run,
                                  .flops = resample_flops};
static const agglo_op resample_bwd = {.name = "resample_bwd",
                                      .dims = RESAMPLE_DIMS,
                                      .flags = AGGLO_OP_ACCUMULATE,
                                      .n_arrays = 3,
                                      .shape = resample_bwd_shape,
                                      .run = resample_bwd_run,
                                      .flops = resample_flops};
static const agglo_op crop_grid = {.name = "crop_grid",
                                   .dims = CROP_DIMS,
                                   .n_arrays = 3,
                                   .shape = crop_shape,
                                   .fill = boxes_fill,
                                   .run = crop_run,
                                   .flops = crop_flops};
static const agglo_op crop_grid_bwd = {.name = "crop_grid_bwd",
                                       .dims = CROP_DIMS,
                                       .n_arrays = 4,
                                       .shape = crop_bwd_shape,
                                       .fill = boxes_fill,
                                       .run = crop_bwd_run,
                                       .flops = crop_flops};

static const agglo_op_case cases[] = {
    PARITY(&resample, BOTH, 0, 1, 1, 1, 3, 2, 1, BILINEAR),
    PARITY(&resample, BOTH, 0, 2, 4, 5, 9, 7, 33, BILINEAR),
    PARITY(&resample, BOTH, 0, 2, 9, 7, 4, 5, 16, BILINEAR),
    PARITY(&resample, BOTH, 0, 2, 9, 7, 9, 7, 16, BILINEAR),
    PARITY(&resample, F32, 0, 1, 5, 6, 1, 11, 20, BILINEAR | ALIGN_CORNERS),
    PARITY(&resample, BOTH, 0, 2, 13, 6, 5, 6, 20, BILINEAR | ANTIALIAS),
    PARITY(&resample, F32, 0, 2, 3, 16, 8, 5, 20, BILINEAR | ANTIALIAS | ALIGN_CORNERS),
    PARITY(&resample, F32, 0, 2, 8, 8, 5, 3, 20, BILINEAR, 2),
    PARITY(&resample, BOTH, 0, 1, 27, 1, 11, 1, 80, BILINEAR), /* relative positions */
    PARITY(&resample, BOTH, 0, 1, 1, 9, 1, 31, 32, BILINEAR),
    PARITY(&resample, BOTH, 0, 2, 37, 37, 16, 14, 9, BICUBIC),
    PARITY(&resample, F32, 0, 1, 2, 3, 7, 5, 9, BICUBIC),
    PARITY(&resample, BOTH, 0, 1, 37, 37, 16, 14, 9, BICUBIC, 1),
    PARITY(&resample, F32, 0, 1, 7, 5, 9, 12, 17, BICUBIC | ALIGN_CORNERS),
    PARITY(&resample, BOTH, 0, 1, 37, 37, 16, 14, 9, BICUBIC | ANTIALIAS),
    PARITY(&resample, F32, 0, 1, 5, 23, 8, 4, 9, BICUBIC | ANTIALIAS | ALIGN_CORNERS),
    PARITY(&resample, F32, 0, 1, 16, 16, 1, 1, 9, BICUBIC | ANTIALIAS),
    PARITY(&resample, BOTH, 0, 2, 7, 5, 14, 11, 12, NEAREST),
    PARITY(&resample, F32, 0, 2, 14, 11, 7, 5, 12, NEAREST),
    PARITY(&resample, BOTH, 0, 1, 1, 1, 1, 1, 1, REFLECT),
    PARITY(&resample, BOTH, 0, 2, 5, 7, 7, 7, 33, REFLECT),
    PARITY(&resample, BOTH, 0, 2, 4, 5, 7, 9, 20, REFLECT), /* as far as it goes */
    DIFFER(&resample_bwd, BOTH, 0, 1, 1, 1, 3, 2, 1, BILINEAR),
    DIFFER(&resample_bwd, BOTH, AGGLO_OP_ACCUMULATE, 2, 4, 5, 9, 7, 33, BILINEAR),
    DIFFER(&resample_bwd, BOTH, 0, 2, 9, 7, 4, 5, 16, BILINEAR),
    PARITY(&resample_bwd, BOTH, AGGLO_OP_ACCUMULATE, 2, 9, 7, 9, 7, 16, BILINEAR),
    DIFFER(&resample_bwd, F32, 0, 1, 5, 6, 1, 11, 20, BILINEAR | ALIGN_CORNERS),
    DIFFER(&resample_bwd, F32, 0, 2, 8, 8, 5, 3, 20, BILINEAR, 2),
    DIFFER(&resample_bwd, F32, 0, 2, 13, 6, 5, 6, 20, BILINEAR | ANTIALIAS),
    DIFFER(&resample_bwd, F32, AGGLO_OP_ACCUMULATE, 1, 27, 1, 11, 1, 80, BILINEAR),
    DIFFER(&resample_bwd, BOTH, 0, 1, 17, 17, 8, 7, 9, BICUBIC, 1),
    DIFFER(&resample_bwd, F32, 0, 1, 7, 5, 9, 12, 17, BICUBIC | ALIGN_CORNERS),
    DIFFER(&resample_bwd, F32, 0, 1, 17, 17, 8, 7, 9, BICUBIC | ANTIALIAS),
    DIFFER(&resample_bwd, BOTH, 0, 2, 14, 11, 7, 5, 12, NEAREST), /* most inputs are read by nobody */
    DIFFER(&resample_bwd, F32, 0, 2, 7, 5, 14, 11, 12, NEAREST),
    DIFFER(&resample_bwd, BOTH, 0, 2, 5, 7, 7, 7, 33, REFLECT),
    DIFFER(&resample_bwd, BOTH, AGGLO_OP_ACCUMULATE, 2, 4, 5, 7, 9, 20, REFLECT),
    PARITY(&crop_grid, BOTH, 0, 1, 1, 1, 1, 1, 1),
    PARITY(&crop_grid, BOTH, 0, 6, 8, 9, 5, 4, 33),
    PARITY(&crop_grid, F32, 0, 6, 4, 4, 9, 1, 16),
    DIFFER(&crop_grid_bwd, BOTH, 0, 6, 8, 9, 5, 4, 33),
    DIFFER(&crop_grid_bwd, F32, 0, 6, 4, 4, 9, 1, 16),

    BENCH(&resample, BOTH, 0, "DINOv2's positions, 518 to 224", 1, 37, 37, 16, 16, 1536, BICUBIC, 1),
    BENCH(&resample, BOTH, 0, "CLIP's positions, antialiased", 1, 24, 24, 16, 16, 1280, BICUBIC | ANTIALIAS),
    BENCH(&resample, BOTH, 0, "ViT-B/16 to CLIP H", EACH(1), 14, 14, 16, 16, 1280, BILINEAR),
    BENCH(&resample_bwd, BOTH, 0, "ViT-B/16 to CLIP H", EACH(1), 14, 14, 16, 16, 1280, BILINEAR),
    BENCH(&resample, BOTH, 0, "ViT-B/16 to SAM", EACH(1), 14, 14, 64, 64, 256, BILINEAR),
    BENCH(&crop_grid, F32, 0, "CPE of ViT-B/16", EACH(1), 64, 64, 14, 14, 768),
    BENCH(&crop_grid_bwd, F32, 0, "CPE of ViT-B/16", EACH(1), 64, 64, 14, 14, 768),
};

const agglo_op_family agglo_family_resample = {"resample", cases, AGGLO_COUNT(cases)};
