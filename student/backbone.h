/* A backbone: pixels in, one summary and a grid of spatial features out, and the way back. One table of functions
 * per family. */
#ifndef AGGLO_STUDENT_BACKBONE_H
#define AGGLO_STUDENT_BACKBONE_H

#include "student/config.h"
#include "tensor/ops.h"
#include "tensor/param.h"
#include "tensor/slab.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct agglo_backbone_class {
    const char *family;
    /* Declare the parameters; activations are of the list's storage type (agglo_params_storage). *self is freed by `free`, on failure too. */
    agglo_status (*create)(void **self, const agglo_student_config *config, agglo_params *params, agglo_err *err);
    void (*free)(void *self); /* NULL is fine */
    /* Take memory for batch x (height, width) pixels, multiples of the patch. Called again whenever a shape changes,
     * and twice for each: with a measuring slab and for real. */
    void (*plan)(void *self, int64_t batch, int64_t height, int64_t width, bool train, agglo_slab *slab);
    /* pixels u8 [B,H,W,3] -> summary [B,d] and spatial [B,n,d] of the storage type, in the planned memory, valid until the next call. */
    void (*forward)(void *self, agglo_backend *be, const agglo_tensor *pixels, agglo_tensor *summary,
                    agglo_tensor *spatial);
    /* After forward of a plan to train: adds to the gradients of all parameters. Both arguments, of the storage type, are overwritten. */
    void (*backward)(void *self, agglo_backend *be, agglo_tensor *d_summary, agglo_tensor *d_spatial);
} agglo_backbone_class;

extern const agglo_backbone_class agglo_backbone_vit;

#ifdef __cplusplus
}
#endif
#endif
