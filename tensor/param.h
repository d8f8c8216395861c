/* Parameters: a named list of tensors on a backend, with gradients and optimiser state when they are trained.
 *
 * A model declares its parameters once (names as in its published checkpoint layout, or ours for students), then allocates them all in
 * one slab, then initialises or loads them. Pointers to agglo_param stay valid for the life of the list.
 */
#ifndef AGGLO_TENSOR_PARAM_H
#define AGGLO_TENSOR_PARAM_H

#include "base/safetensors.h"
#include "tensor/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum agglo_init {
    AGGLO_INIT_ZERO,
    AGGLO_INIT_ONE,
    AGGLO_INIT_CONST,        /* scale */
    AGGLO_INIT_NORMAL,       /* N(0, scale^2) */
    AGGLO_INIT_TRUNC_NORMAL, /* N(0, scale^2) redrawn outside [-2, 2] (absolute, as timm) */
    AGGLO_INIT_UNIFORM,      /* U[-scale, scale] */
} agglo_init;

typedef struct agglo_param {
    char name[128];
    agglo_tensor value;
    agglo_tensor grad, m, v; /* data NULL when not trained */
    agglo_init init;
    float scale;
    bool decay; /* weight decay applies */
} agglo_param;

typedef struct agglo_params agglo_params;

agglo_status agglo_params_new(agglo_params **out, agglo_backend *backend, bool trained, agglo_err *err);
void agglo_params_free(agglo_params *params);

/* Declare one; only before agglo_params_allocate. NULL and error on failure; a name may come once (asserted). */
agglo_param *agglo_params_add(agglo_params *params, const char *name, int rank, const int64_t *shape, agglo_init init,
                              float scale, bool decay, agglo_err *err);
agglo_status agglo_params_allocate(agglo_params *params, agglo_err *err);

size_t agglo_params_count(const agglo_params *params);
agglo_param *agglo_params_at(agglo_params *params, size_t i);
agglo_param *agglo_params_find(agglo_params *params, const char *name); /* NULL: none */
int64_t agglo_params_elements(const agglo_params *params);

/* Fill every parameter from its init: Philox keyed by seed, counter words (xxh3-64 of the name: low, high; element index: low, high
 * 16 bits with the number of the redraw above them): the value of a parameter does not depend on the others. Normal draws by
 * Box-Muller in double. */
agglo_status agglo_params_init(agglo_params *params, uint64_t seed, agglo_err *err);

/* Load by name from a file: every parameter must be there with its shape (an extent of 1 in front may be missing or extra) in F32, F16,
 * BF16 or F64, finite. Errors name the tensor, found and expected. */
agglo_status agglo_params_load(agglo_params *params, const agglo_safetensors *st, agglo_err *err);

/* Rows [first_row, first_row + rows of the tensor) of a 1-D or 2-D parameter from one tensor of a file (fused qkv from q, k, v). */
agglo_status agglo_param_load_rows(agglo_params *params, agglo_param *param, int64_t first_row,
                                   const agglo_st_tensor *tensor, agglo_err *err);

/* Set all gradients to zero. */
void agglo_params_zero_grad(agglo_params *params);

#ifdef __cplusplus
}
#endif
#endif
