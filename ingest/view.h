/* Views: which box of a picture, flipped or not. A pure function of its arguments; every machine agrees.
 *
 * Random-resized crop as timm draws it (spec students.md section 8), from Philox4x32-10 with
 *     key     = views.seed
 *     counter = { draw, view index, low and high word of xxh3-64(uid bytes, group name) }
 * draw 0..9: one try each: word 0 area, 1 log-ratio, 2 top, 3 left; draw 0xffffffff: word 0 the flip. No libm and no contracted floating
 * point take part (own exp and log on IEEE operations; square roots are IEEE's). Golden vectors stand in the tests.
 */
#ifndef AGGLO_INGEST_VIEW_H
#define AGGLO_INGEST_VIEW_H

#include "base/hash.h"

#ifdef __cplusplus
extern "C" {
#endif

#define AGGLO_GROUP_NAME_MAX 32

/* How a JPEG is decoded for a view. No part of the boxes, but of the pixels, so of the fingerprint. */
typedef enum agglo_view_decode {
    AGGLO_VIEW_SCALED, /* at the smallest DCT scale that is no smaller than the result */
    AGGLO_VIEW_EXACT,  /* at full size */
} agglo_view_decode;

typedef struct agglo_view_config {
    char group[AGGLO_GROUP_NAME_MAX]; /* [a-z0-9_]+, "main" unless a recipe has several */
    uint64_t seed;
    int count;       /* views per sample, 1..255 */
    double scale[2]; /* of the area, 0 < lo <= hi <= 1 */
    double ratio[2]; /* width / height, 0 < lo <= hi */
    double flip;     /* probability */
    int decode;      /* agglo_view_decode */
} agglo_view_config;

/* In the upright image, integer pixels. The flip mirrors the crop left to right after it is cut. */
typedef struct agglo_view {
    int32_t x, y, w, h;
    bool flip;
} agglo_view;

/* group main, seed 0, count 4, scale 0.08..1, ratio 3/4..4/3, flip 0, scaled. */
agglo_view_config agglo_view_config_default(void);

/* View `index` of the picture `uid` of upright size width x height (both >= 1). */
void agglo_view_draw(const agglo_view_config *config, const uint8_t uid[16], int index, int width, int height,
                     agglo_view *out);

/* The view that a student takes in `epoch`: (xxh3-64(uid) + epoch) mod count. */
int agglo_view_of_epoch(const agglo_view_config *config, const uint8_t uid[16], uint64_t epoch);

/* Hash of all that decides boxes and their pixels (not the count: views may be added), hex into out[33]. */
void agglo_view_fingerprint(const agglo_view_config *config, char out[33]);

#ifdef __cplusplus
}
#endif
#endif
