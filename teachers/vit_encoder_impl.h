/* The vision transformer that CLIP and DINOv2 share: patches, prefix tokens (class token, registers), positions, [a norm], blocks,
 * a norm, and the two outputs. Inference only.
 */
#ifndef AGGLO_TEACHERS_VIT_ENCODER_IMPL_H
#define AGGLO_TEACHERS_VIT_ENCODER_IMPL_H

#include "teachers/layout_impl.h"
#include "teachers/pos_interp.h"
#include "tensor/nn/vit_block.h"

typedef struct agglo_vit_encoder_config {
    agglo_teacher_config model;
    agglo_pos_rule rule;
    int max_batch;
    bool preproj, spatial_raw;
    bool pre_norm, patch_bias, layer_scale; /* what the family has */
    agglo_dtype precision;                  /* storage of activations and matrices: AGGLO_F32 or AGGLO_BF16 */
} agglo_vit_encoder_config;

typedef struct agglo_vit_encoder agglo_vit_encoder;

/* Declare the parameters, fill them from the weights (one tensor per entry with a param), make the prefix rows. */
agglo_status agglo_vit_encoder_new(agglo_vit_encoder **out, agglo_backend *backend,
                                   const agglo_vit_encoder_config *config, const agglo_weights *weights,
                                   const agglo_layout_tensor *tensors, size_t n_tensors, agglo_err *err);
void agglo_vit_encoder_free(agglo_vit_encoder *encoder);

/* As agglo_encoder.encode. */
agglo_status agglo_vit_encoder_run(agglo_vit_encoder *encoder, const uint8_t *pixels, int batch, int height, int width,
                                   float *summary, float *spatial, agglo_err *err);

int agglo_vit_encoder_plans(const agglo_vit_encoder *encoder);

#endif
