/* The one renderer: a view of a picture at a wanted size. The teacher pass, the trainer, inspect and embed all call it, so at equal
 * size their pixels are bit-identical.
 *
 * Crop first, then resize as Pillow does it (spec data.md sections 5 and 6): two separable passes, horizontal first, antialiased, 22-bit
 * fixed-point weights, rounded to u8 after each pass; then the flip. The result depends on picture, box, flip and size only.
 */
#ifndef AGGLO_INGEST_RENDER_H
#define AGGLO_INGEST_RENDER_H

#include "ingest/decode.h"
#include "ingest/view.h"
#include "tensor/encoder.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Views are resampled bicubically, whoever asks: teachers and students must see the same pixels. (Whole pictures follow their model.) */
#define AGGLO_VIEW_FILTER AGGLO_BICUBIC

typedef struct agglo_renderer agglo_renderer; /* decoder + scratch; one per thread */

agglo_status agglo_renderer_new(agglo_renderer **out, const agglo_decode_options *options, agglo_err *err);
void agglo_renderer_free(agglo_renderer *renderer);

/* Decode `encoded` and render each of n_views views at out_w x out_h: pixels[n_views][out_h][out_w][3]. The picture must have the size
 * width x height that the boxes were drawn for (AGGLO_E_MISMATCH otherwise). */
agglo_status agglo_render_views(agglo_renderer *renderer, agglo_bytes encoded, int width, int height,
                                const agglo_view *views, int n_views, agglo_filter filter, int out_w, int out_h,
                                uint8_t *pixels, agglo_err *err);

/* Decode and prepare a whole picture for a model: size x size x 3 (spec teachers.md; fit and filter from `pre`).
 * Padding (AGGLO_FIT_PAD) must be 0 after normalisation; pixels are u8, so it is the mean colour rounded to a level: off by at most
 * 0.5 / (255 std), under 0.01. */
agglo_status agglo_render_whole(agglo_renderer *renderer, agglo_bytes encoded, const agglo_preprocess *pre,
                                uint8_t *pixels, agglo_err *err);

/* The pieces, for tests and for pictures already decoded. Scratch is the renderer's. */
agglo_status agglo_render_image(agglo_renderer *renderer, const agglo_image *image, const agglo_view *view,
                                agglo_filter filter, int out_w, int out_h, uint8_t *pixels, agglo_err *err);
agglo_status agglo_render_whole_image(agglo_renderer *renderer, const agglo_image *image, const agglo_preprocess *pre,
                                      uint8_t *pixels, agglo_err *err);
agglo_status agglo_render_decode(agglo_renderer *renderer, agglo_bytes encoded, agglo_image *out, agglo_reason *reason,
                                 agglo_err *err);

/* xxh3-64 over width, height (le32) and the xxh3-64 of the pixels (le64): what a record stores of the pixels its teacher saw. */
uint64_t agglo_pixel_hash(const uint8_t *pixels, int width, int height);

#ifdef __cplusplus
}
#endif
#endif
