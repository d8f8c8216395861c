/* The weights of resampling along one axis: which inputs an output reads, and how much of each. The one implementation behind
 * agglo_resample, its backward pass and the teachers' position tables.
 *
 * Output o of n_out, r = in/out (or 1/scale where a scale is prescribed; with align_corners (in-1)/(out-1)):
 *   nearest    floor(o in/out)
 *   reflect    o, and behind the last input back from it: 2 (in - 1) - o. No resampling but padding to the right and below, PyTorch's
 *              F.pad(mode="reflect"); in <= out <= 2 in - 1
 *   bilinear   s = max((o + 0.5) r - 0.5, 0), two taps, clamped at the edge; with align_corners s = o r
 *   bicubic    s = (o + 0.5) r - 0.5, four taps of Keys' kernel with a = -0.75, clamped at the edges; with align_corners s = o r
 *   antialias  window of support max(r,1) (bilinear: triangle) or 2 max(r,1) (bicubic: Keys, a = -0.5) around (o + 0.5) r, weights
 *              normalised; with align_corners only r differs
 * All but reflect are PyTorch's F.interpolate in all its 2-D modes (spec teachers.md section 4; Keys 1981).
 */
#ifndef AGGLO_TENSOR_RESAMPLE_AXIS_H
#define AGGLO_TENSOR_RESAMPLE_AXIS_H

#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum agglo_resample_mode {
    AGGLO_RESAMPLE_NEAREST,
    AGGLO_RESAMPLE_BILINEAR,
    AGGLO_RESAMPLE_BICUBIC,
    AGGLO_RESAMPLE_REFLECT,
} agglo_resample_mode;

/* What the weights of an axis depend on. */
typedef struct agglo_taps_key {
    agglo_resample_mode mode;
    bool antialias;     /* not with nearest and reflect */
    bool align_corners; /* not with nearest and reflect; a scale is without effect then */
    int64_t n_in, n_out;
    double scale; /* out/in as prescribed, independent of n_out; 0: n_out / n_in, and with reflect */
} agglo_taps_key;

/* out[o] = sum over k < count[o] of weight[o * max_taps + k] * in[first[o] + k]. Runs never leave the input: what an edge clamps is
 * added to the edge's weight. */
typedef struct agglo_taps {
    int64_t n_in, n_out;
    int max_taps;
    int32_t *first, *count; /* [n_out] */
    double *weight;         /* [n_out, max_taps] */
} agglo_taps;

/* AGGLO_E_MEMORY, nothing to clear then. Both extents 1 to 2^24. */
agglo_status agglo_taps_make(agglo_taps *out, const agglo_taps_key *key, agglo_err *err);
/* The transpose: in[i] = sum over outputs, which is the backward pass. */
agglo_status agglo_taps_transpose(agglo_taps *out, const agglo_taps *taps, agglo_err *err);
void agglo_taps_clear(agglo_taps *taps);

#ifdef __cplusplus
}
#endif
#endif
