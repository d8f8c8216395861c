/* What the encoders of all families have: parameters, blocks of one shape, memory that is planned once per shape of input, batches that are
 * cut to it. vit_encoder.c and sam_encoder.c hold one and say what is their own.
 */
#ifndef AGGLO_TEACHERS_TOWER_IMPL_H
#define AGGLO_TEACHERS_TOWER_IMPL_H

#include "teachers/registry.h"
#include "tensor/encoder.h"
#include "tensor/nn/vit_block.h"

typedef struct agglo_tower {
    agglo_backend *backend;
    agglo_vit_block_config block;
    agglo_params *params;
    agglo_slab slab;
    int planned_batch, planned_height, planned_width; /* 0: nothing planned */
    int n_plans;
} agglo_tower;

/* What an encoder does in agglo_tower_run; `self` is the encoder. */
typedef struct agglo_tower_parts {
    /* Positions for inputs of height x width pixels: before memory is planned for another size. */
    agglo_status (*place)(void *self, int height, int width, agglo_err *err);
    /* Take all tensors of a run from a slab that only measures. */
    void (*measure)(const void *self, agglo_slab *slab, int batch, int height, int width);
    /* As agglo_encoder.encode, in memory that is planned; failures are the backend's. */
    void (*forward)(void *self, const uint8_t *pixels, const agglo_extent *extents, int batch, int height, int width,
                    float *summary, float *spatial);
} agglo_tower_parts;

/* Of a zeroed tower: the blocks' shape, a list of parameters that stores matrices in `precision`. Cleared on failure too. */
agglo_status agglo_tower_init(agglo_tower *tower, agglo_backend *backend, const agglo_teacher_config *model,
                              bool layer_scale, agglo_dtype precision, agglo_err *err);
void agglo_tower_clear(agglo_tower *tower);

/* Declare a parameter of zeros, [rows] (cols 0) or [rows, cols]; `matrix`: of a product, in the storage type. NULL: out of memory. */
agglo_param *agglo_tower_add(agglo_tower *tower, const char *name, bool matrix, int64_t rows, int64_t cols,
                             agglo_err *err);

/* The batch in runs of at most `most` images, memory planned where the shape or a larger batch wants it. Of one image n_summary and n_spatial
 * floats come out; summary, spatial and extents may be NULL. */
agglo_status agglo_tower_run(agglo_tower *tower, const agglo_tower_parts *parts, void *self, int patch, int most,
                             size_t n_summary, size_t n_spatial, const uint8_t *pixels, const agglo_extent *extents,
                             int batch, int height, int width, float *summary, float *spatial, agglo_err *err);

/* An output to the host as floats; `f32` is memory for them on the device, used where they are of another type. */
void agglo_tower_give(const agglo_tower *tower, const agglo_tensor *from, const agglo_tensor *f32, float *to);

#endif
