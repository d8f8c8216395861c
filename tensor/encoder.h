/* The encoder: pixels in, summary and spatial features out. Teachers and students both implement it, so that `teach`, `embed`,
 * `eval` and `inspect` need not know which one they hold.
 */
#ifndef AGGLO_TENSOR_ENCODER_H
#define AGGLO_TENSOR_ENCODER_H

#include "tensor/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum agglo_fit {
    AGGLO_FIT_CROP,   /* short side to resize_to, then the centre size x size (CLIP, DINOv2, students) */
    AGGLO_FIT_SQUASH, /* both sides to size (DFN) */
    AGGLO_FIT_PAD,    /* long side to size, padding below or right (SAM) */
} agglo_fit;

/* "crop", "squash", "pad". */
static inline const char *agglo_fit_name(agglo_fit fit)
{
    return fit == AGGLO_FIT_SQUASH ? "squash" : fit == AGGLO_FIT_PAD ? "pad" : "crop";
}

/* Where the centre crop of a picture begins when an odd number of pixels is left over. They part for 3, 7, 11... pixels: 1 pixel. */
typedef enum agglo_centre {
    AGGLO_CENTRE_EVEN, /* half of it, a half to the even neighbour: torchvision, so OpenCLIP, torch-hub's DINOv2, students */
    AGGLO_CENTRE_DOWN, /* half of it, rounded down: transformers */
} agglo_centre;

typedef enum agglo_filter { AGGLO_BICUBIC, AGGLO_BILINEAR } agglo_filter;

/* How a whole picture becomes this model's input. In distillation only mean and std apply: crops are square already. */
typedef struct agglo_preprocess {
    int size;      /* side of the input, pixels */
    int resize_to; /* short side before the centre crop, >= size */
    agglo_fit fit;
    agglo_centre centre;
    agglo_filter filter;
    float mean[3], std[3]; /* on the 0..1 scale, RGB */
} agglo_preprocess;

typedef struct agglo_encoder_info {
    char family[16]; /* "clip", "dinov2", "sam", "vit", "eradio" */
    char arch[64];   /* "clip-vit-huge-14", or the family and its size */
    int patch;       /* the grid is size / patch */
    int summary_dim, spatial_dim;
    int64_t n_params;
    double gmac; /* multiply-accumulates of one image at preprocess.size, in 1e9 */
    agglo_preprocess preprocess;
    char weights[65]; /* sha256 of the weights file, hex */
    char options[96]; /* what changes the features: "summary=proj,spatial_norm=1,pos=hf,gelu,h16,bf16" */
} agglo_encoder_info;

/* What of an input is picture, in its upper left, in pixels; the rest is padding (AGGLO_FIT_PAD). */
typedef struct agglo_extent {
    int32_t width, height;
} agglo_extent;

typedef struct agglo_encoder {
    agglo_encoder_info info;
    void *self;
    /* pixels: host, u8 [batch, height, width, 3], sides multiples of patch. extents: host [batch], 1 to the input's sides, NULL: every input
     * is all picture; padding is 0 behind the normalisation, whatever its pixels are. Models of another fit than AGGLO_FIT_PAD never pad,
     * and refuse extents with AGGLO_E_UNSUPPORTED. summary: host [batch, summary_dim]; spatial: host
     * [batch, height/patch, width/patch, spatial_dim]; either may be NULL. */
    agglo_status (*encode)(void *self, const uint8_t *pixels, const agglo_extent *extents, int batch, int height,
                           int width, float *summary, float *spatial, agglo_err *err);
    void (*free)(void *self);
} agglo_encoder;

static inline void agglo_encoder_clear(agglo_encoder *encoder)
{
    if (encoder->free != NULL) {
        encoder->free(encoder->self);
    }
    encoder->self = NULL;
    encoder->free = NULL;
}

#ifdef __cplusplus
}
#endif
#endif
