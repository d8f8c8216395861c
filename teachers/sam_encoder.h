/* SAM's image encoder: a ViT over the grid of patches, most of whose blocks attend within windows, with decomposed relative positions, and
 * the neck that makes SAM's image embedding of it (segment_anything's ImageEncoderViT; spec teachers.md section 3). Inference only.
 *
 *     summary [dim]                    mean over the tokens of the last block, padding included
 *     spatial [h, w, dim]              those tokens, or [h, w, neck channels] behind the neck; the summary is the same
 *
 * Inputs of another size than the checkpoint's, which the published code refuses, have their absolute positions resampled bicubically
 * (a = -0.75, no antialias) and the relative ones of global blocks linearly, as the published code's own functions do.
 */
#ifndef AGGLO_TEACHERS_SAM_ENCODER_H
#define AGGLO_TEACHERS_SAM_ENCODER_H

#include "teachers/load.h"
#include "tensor/encoder.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct agglo_sam_encoder_config {
    agglo_teacher_config model;
    int max_batch;         /* images in one run; on the CPU also bounded by their tokens, which bounds memory */
    bool neck;             /* spatial is behind it */
    agglo_dtype precision; /* storage of activations and matrices: AGGLO_F32 or AGGLO_BF16 */
} agglo_sam_encoder_config;

typedef struct agglo_sam_encoder agglo_sam_encoder;

/* Declare the parameters and fill them from `weights` (one per entry of `tensors` with a param). `backend` is borrowed. */
agglo_status agglo_sam_encoder_new(agglo_sam_encoder **out, agglo_backend *backend,
                                   const agglo_sam_encoder_config *config, const agglo_weights *weights,
                                   const agglo_layout_tensor *tensors, size_t n_tensors, agglo_err *err);
void agglo_sam_encoder_free(agglo_sam_encoder *encoder);

/* As agglo_encoder.encode. */
agglo_status agglo_sam_encoder_run(agglo_sam_encoder *encoder, const uint8_t *pixels, const agglo_extent *extents,
                                   int batch, int height, int width, float *summary, float *spatial, agglo_err *err);

int agglo_sam_encoder_plans(const agglo_sam_encoder *encoder);

#ifdef __cplusplus
}
#endif
#endif
