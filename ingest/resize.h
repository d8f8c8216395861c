/* Pillow's resize of 8-bit RGB, bit for bit (spec data.md section 6): two separable passes, horizontal first, each with 22-bit fixed-point
 * weights and rounded to u8; a pass is left out where its dimension does not change.
 *
 * A resizer keeps weights and scratch, so that a loop over pictures allocates nothing once it has seen the largest. One per thread.
 * Newer Pillow versions take the vertical pass first for some shapes; the order here is fixed, because it decides roundings.
 */
#ifndef AGGLO_INGEST_RESIZE_H
#define AGGLO_INGEST_RESIZE_H

#include "base/alloc.h"
#include "tensor/encoder.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What to read: rgb[height][stride], 3 bytes a pixel; borrowed. The box is what becomes the result: Pillow's `box` argument, in pixels,
 * edges anywhere inside the source. A pixel that the box cuts counts whole; what lies outside the source counts for nothing. */
typedef struct agglo_resize_source {
    const uint8_t *rgb;
    int width, height;
    size_t stride;   /* bytes from row to row */
    size_t readable; /* bytes that may be read from `rgb` on: (height - 1) * stride + width * 3 at least */
    double box_x, box_y, box_w, box_h; /* box_w or box_h 0: the whole source along that axis */
} agglo_resize_source;

/* The part of the out_w x out_h result that is wanted; nothing else is computed. */
typedef struct agglo_resize_window {
    int x, y, w, h;
} agglo_resize_window;

typedef struct agglo_resizer agglo_resizer;

agglo_status agglo_resizer_new(agglo_resizer **out, agglo_err *err);
void agglo_resizer_free(agglo_resizer *resizer);

/* Resize `source` to out_w x out_h and write `window` of it to out[window.h][out_stride]. AGGLO_E_MEMORY only. */
agglo_status agglo_resize(agglo_resizer *resizer, const agglo_resize_source *source, agglo_filter filter, int out_w,
                          int out_h, agglo_resize_window window, uint8_t *out, size_t out_stride, agglo_err *err);

/* Tests: use no better loops than these, even where the machine has them. All give the same bits. */
typedef enum agglo_resizer_isa { AGGLO_RESIZER_PORTABLE, AGGLO_RESIZER_AVX2, AGGLO_RESIZER_AVX512 } agglo_resizer_isa;

void agglo_resizer_set_isa(agglo_resizer *resizer, agglo_resizer_isa isa);

#ifdef __cplusplus
}
#endif
#endif
