/* The one renderer: a view of a picture at a wanted size. The teacher pass, the trainer, inspect and embed all call it, so at equal
 * size their pixels are bit-identical.
 *
 * Crop first, then resize as Pillow does it (spec data.md sections 5 and 6): two separable passes, horizontal first, antialiased, 22-bit
 * fixed-point weights, rounded to u8 after each pass; then the flip. The result depends on picture, box, flip, size and agglo_view_decode
 * only.
 *
 * Only the pixels of the boxes are decoded. AGGLO_VIEW_EXACT gives Pillow's pixels bit for bit, and so does AGGLO_VIEW_SCALED unless the
 * picture is a JPEG and its box at least twice the result in both directions: then the largest reduction by 2, 4 or 8 that leaves no
 * side of the box smaller than the result is left to libjpeg's scaled inverse DCT, and the box is resized from there, its edges where
 * they fall within the reduced pixels. That differs from exact pixels by AGGLO_SCALED_MEAN levels on average and AGGLO_SCALED_P999 at
 * the 99.9th percentile at most, over photographs (a test holds it; measured: 1.12, 1.27, 1.52 and 15, 15, 18 for 1/2, 1/4, 1/8).
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

/* Of 255 levels. */
#define AGGLO_SCALED_MEAN 1.75
#define AGGLO_SCALED_P999 20

typedef struct agglo_renderer agglo_renderer; /* decoder + scratch; one per thread */

agglo_status agglo_renderer_new(agglo_renderer **out, const agglo_decode_options *options, agglo_err *err);
void agglo_renderer_free(agglo_renderer *renderer);

/* Render each of n_views views of `encoded` at out_w x out_h: pixels[n_views][out_h][out_w][3]. The picture must have the size width x
 * height that the boxes were drawn for, and the boxes lie in it (AGGLO_E_MISMATCH otherwise). It is decoded once for all views of one
 * reduction, over the smallest box around them; each view's pixels are those that it has alone. Damage that no view needs to read
 * may go unnoticed. */
agglo_status agglo_render_views(agglo_renderer *renderer, agglo_bytes encoded, int width, int height,
                                const agglo_view *views, int n_views, agglo_view_decode decode, agglo_filter filter,
                                int out_w, int out_h, uint8_t *pixels, agglo_err *err);

/* The reduction (1, 2, 4 or 8) at which a JPEG is decoded for a view of out_w x out_h. */
int agglo_render_reduce(const agglo_view *view, agglo_view_decode decode, int out_w, int out_h);

/* Decode and prepare a whole picture for a model: size x size x 3 (spec teachers.md; fit and filter from `pre`).
 * Where `pre` pads (AGGLO_FIT_PAD), *extent is what the picture fills, for agglo_encoder.encode: padding is 0 after normalisation,
 * which no u8 is. Its pixels are the mean colour, for whoever looks at them. With other fits *extent is all of it. */
agglo_status agglo_render_whole(agglo_renderer *renderer, agglo_bytes encoded, const agglo_preprocess *pre,
                                uint8_t *pixels, agglo_extent *extent, agglo_err *err);

/* The pieces, for tests and for pictures already decoded. Scratch is the renderer's. */
agglo_status agglo_render_image(agglo_renderer *renderer, const agglo_image *image, const agglo_view *view,
                                agglo_filter filter, int out_w, int out_h, uint8_t *pixels, agglo_err *err);
agglo_status agglo_render_whole_image(agglo_renderer *renderer, const agglo_image *image, const agglo_preprocess *pre,
                                      uint8_t *pixels, agglo_extent *extent, agglo_err *err);
agglo_status agglo_render_decode(agglo_renderer *renderer, agglo_bytes encoded, agglo_image *out, agglo_reason *reason,
                                 agglo_err *err);

/* xxh3-64 over width, height (le32) and the xxh3-64 of the pixels (le64): what a record stores of the pixels its teacher saw. */
uint64_t agglo_pixel_hash(const uint8_t *pixels, int width, int height);

#ifdef __cplusplus
}
#endif
#endif
