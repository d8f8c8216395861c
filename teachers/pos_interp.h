/* Position tables at another resolution: the bicubic resamplers that published models use for their learned [g, g, dim] tables.
 *
 * Computed in double, width first, then height; both rules are separable. They differ enough to break parity, so the rule belongs
 * to the checkpoint and its layout (spec teachers.md sections 1.4 and 2.4).
 */
#ifndef AGGLO_TEACHERS_POS_INTERP_H
#define AGGLO_TEACHERS_POS_INTERP_H

#include "base/err.h"

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum agglo_pos_rule {
    AGGLO_POS_PLAIN, /* a = -0.75, edge-clamped taps, exact output size (transformers: CLIP, Dinov2) */
    AGGLO_POS_OFFSET, /* the same with scale factor (out + 0.1) / in instead of a size (torch-hub DINOv2 without registers) */
    AGGLO_POS_ANTIALIAS, /* a = -0.5, filter widened when shrinking, weights normalised (OpenCLIP; DINOv2 with registers) */
} agglo_pos_rule;

/* table [in_h, in_w, dim] -> out [out_h, out_w, dim]; all extents >= 1. Equal sizes are copied. AGGLO_E_MEMORY. */
agglo_status agglo_pos_resample(agglo_pos_rule rule, const float *table, int in_h, int in_w, int dim, int out_h,
                                int out_w, float *out, agglo_err *err);

#ifdef __cplusplus
}
#endif
#endif
