/* Resampling of feature maps and position grids, with gradients. Part of tensor/ops.h's operators; conventions there.
 *
 * Maps are [B,h,w,C], F32 or BF16 (both of a call alike), tables and their gradients F32. Weights are made on the host in double, once
 * per shape, and kept by the backend (AGGLO_RESAMPLE_CACHED of them, the least recently used goes); arithmetic is F32, rows first.
 */
#ifndef AGGLO_TENSOR_OPS_RESAMPLE_H
#define AGGLO_TENSOR_OPS_RESAMPLE_H

#include "tensor/backend.h"
#include "tensor/resample_axis.h"

#ifdef __cplusplus
extern "C" {
#endif

#define AGGLO_RESAMPLE_CACHED 32 /* axes; a call needs two */

/* PyTorch's F.interpolate: `scale_h` and `scale_w` 0 take the ratio from the sizes; otherwise they are scale_factor with
 * recompute_scale_factor=False, and the extent of y may be any. Two uses of that beyond PyTorch's:
 *   DINOv2's hub rule    bicubic, scale (n + 0.1) / grid per axis (spec teachers.md section 2.4)
 *   cropped result       scale m / grid with an extent n < m gives the first n outputs of a resampling to m (CPE in evaluation,
 *                        spec students.md section 1.3) */
typedef struct agglo_resample_rule {
    agglo_resample_mode mode;
    bool antialias, align_corners;
    double scale_h, scale_w;
} agglo_resample_rule;

/* Of feature maps and their grids (spec teachers.md section 4): no antialias, align_corners false, s = max((o + 0.5) in/out - 0.5, 0). */
static inline agglo_resample_rule agglo_resample_bilinear(void)
{
    agglo_resample_rule rule = {AGGLO_RESAMPLE_BILINEAR, false, false, 0.0, 0.0};

    return rule;
}

/* Reflection padding to the right and below (spec students.md section 3.5), H in [h, 2 h - 1], W likewise. */
static inline agglo_resample_rule agglo_resample_reflect(void)
{
    agglo_resample_rule rule = {AGGLO_RESAMPLE_REFLECT, false, false, 0.0, 0.0};

    return rule;
}

/* y[B,H,W,C] from x[B,h,w,C]: any size to any size. Either extent may be 1, so that a list of rows (relative positions) is [1,L,1,C]. */
void agglo_resample(agglo_backend *be, const agglo_resample_rule *rule, const agglo_tensor *x, agglo_tensor *y);
/* d_x (+)= transpose of the above, by gathering: each element of d_x has one writer. */
void agglo_resample_bwd(agglo_backend *be, const agglo_resample_rule *rule, const agglo_tensor *d_y, bool accumulate,
                        agglo_tensor *d_x);

/* A box of a table per image, resampled bilinearly to a grid with both ends on the box's edges (CPE in training, spec students.md
 * section 1.3):
 *   table [R,C,D] F32;  boxes [B,4] F32 on the device: left, top, width, height as fractions of the table's extent between first and
 *   last cell;  y [B,h,w,D] F32 or BF16
 *   y[b,r,c] = table sampled at ((left + width c/(w-1)) (C-1), (top + height r/(h-1)) ), clamped to the table; c/(w-1) is 0
 *   where w is 1 */
void agglo_crop_grid(agglo_backend *be, const agglo_tensor *table, const agglo_tensor *boxes, agglo_tensor *y);
/* d_table[R,C,D] (F32) += ; images, rows and columns in order. */
void agglo_crop_grid_bwd(agglo_backend *be, const agglo_tensor *d_y, const agglo_tensor *boxes, agglo_tensor *d_table);

#ifdef __cplusplus
}
#endif
#endif
