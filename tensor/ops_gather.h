/* Moving whole rows: windows of feature maps, and rows by a list. Part of tensor/ops.h's operators; conventions there.
 *
 * Rows are of F32 or BF16 (both tensors of a call alike). What is added in BF16 is summed in F32 and rounded once.
 */
#ifndef AGGLO_TENSOR_OPS_GATHER_H
#define AGGLO_TENSOR_OPS_GATHER_H

#include "tensor/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Windows of wh x ww as ViTDet cuts them: x[B,H,W,C] -> y[B nh nw, wh ww, C], nh = ceil(H / wh), nw = ceil(W / ww), windows in raster
 * order, tokens in raster order within; the map is padded at the bottom and right with zeros. (Source: segment_anything's
 * window_partition, spec teachers.md section 3.1.) It is its own backward pass's opposite: d_x = merge(d_y). */
void agglo_window_partition(agglo_backend *be, const agglo_tensor *x, int64_t wh, int64_t ww, bool accumulate,
                            agglo_tensor *y);
/* The way back, padding dropped: y[B nh nw, wh ww, C] -> x[B,H,W,C]; d_y = partition(d_x). */
void agglo_window_merge(agglo_backend *be, const agglo_tensor *y, int64_t wh, int64_t ww, bool accumulate,
                        agglo_tensor *x);

/* y[b,i] = x[b, index[i]]: x[B,M,C], y[B,n,C], index I32 [n] (the same for every image) or [B,n], on the device. An index outside [0,M) gives
 * a row of zeros. */
void agglo_gather_rows(agglo_backend *be, const agglo_tensor *x, const agglo_tensor *index, agglo_tensor *y);
/* Its transpose: x[b,m] (+)= sum over i with index[i] = m of y[b,i], in order of i; without accumulate, rows that nothing
 * names become 0. An index outside [0,M) adds nothing. On a GPU each row of x looks through the whole list: n M comparisons an image. */
void agglo_scatter_rows(agglo_backend *be, const agglo_tensor *y, const agglo_tensor *index, bool accumulate,
                        agglo_tensor *x);

#ifdef __cplusplus
}
#endif
#endif
