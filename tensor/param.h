/* Parameters: a named list of tensors on a backend, with gradients and optimiser state when they are trained.
 *
 * A model declares its parameters once (names as in its published checkpoint layout, or ours for students), then allocates them all in
 * one slab, then initialises or loads them. Pointers to agglo_param stay valid for the life of the list.
 *
 * Storage (docs/numerics.md, "Types"): weights of matrix products and convolutions are declared with agglo_params_add_matrix and are read by
 * operators as `stored`, of the list's storage type; everything else is F32.
 *
 *     storage  trained   a matrix has                                       other parameters have
 *     F32      any       value; stored is value                             value; stored is value
 *     BF16     yes       value, the F32 master; stored, its BF16 copy       the same
 *     BF16     no        stored alone, value.data NULL                      the same
 *
 * Copies are value rounded to nearest even, always: agglo_params_init and loading write both, AdamW through agglo_optim_entry.copy, and
 * who writes masters otherwise calls agglo_params_refresh.
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
    agglo_tensor value;      /* F32; data NULL where only `stored` exists */
    agglo_tensor stored;     /* what operators take: value, or a matrix's copy in the storage type */
    agglo_tensor grad, m, v; /* F32; data NULL when not trained */
    agglo_init init;
    float scale;
    bool decay; /* weight decay applies */
    bool matrix;
} agglo_param;

typedef struct agglo_params agglo_params;

agglo_status agglo_params_new(agglo_params **out, agglo_backend *backend, bool trained, agglo_err *err);
void agglo_params_free(agglo_params *params);

/* The storage type, AGGLO_F32 unless set: AGGLO_F32 or AGGLO_BF16, before the first parameter is declared. AGGLO_E_UNSUPPORTED where
 * the backend does not compute with it. */
agglo_status agglo_params_set_storage(agglo_params *params, agglo_dtype storage, agglo_err *err);
agglo_dtype agglo_params_storage(const agglo_params *params);

/* Declare one; only before agglo_params_allocate. NULL and error on failure; a name may come once (asserted). */
agglo_param *agglo_params_add(agglo_params *params, const char *name, int rank, const int64_t *shape, agglo_init init,
                              float scale, bool decay, agglo_err *err);
/* The same for the weights of a matrix product or a convolution, which operators take in the storage type. */
agglo_param *agglo_params_add_matrix(agglo_params *params, const char *name, int rank, const int64_t *shape,
                                     agglo_init init, float scale, bool decay, agglo_err *err);
agglo_status agglo_params_allocate(agglo_params *params, agglo_err *err);

/* Whether a parameter has a copy beside its master. */
static inline bool agglo_param_has_copy(const agglo_param *param)
{
    return param->value.data != NULL && param->stored.data != param->value.data;
}

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

/* Write all copies from their masters, after masters were written by other means than this header's or AdamW's. */
void agglo_params_refresh(agglo_params *params);

/* Set all gradients to zero. */
void agglo_params_zero_grad(agglo_params *params);

#ifdef __cplusplus
}
#endif
#endif
