/* Slab: device memory for activations and gradients, planned once per shape and taken in the same order every step.
 *
 * A model walks its takes once with a measuring slab (no memory: tensors get NULL data), allocates the peak, and walks them again for
 * real. Mark and rewind reuse what a block no longer needs. Nothing allocates in the steady state.
 */
#ifndef AGGLO_TENSOR_SLAB_H
#define AGGLO_TENSOR_SLAB_H

#include "tensor/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct agglo_slab {
    agglo_backend *backend;
    uint8_t *base; /* NULL while measuring */
    size_t used, peak, capacity;
} agglo_slab;

/* A measuring slab. */
agglo_slab agglo_slab_measure(agglo_backend *backend);

/* Allocate `measured`'s peak; used starts at 0 again. */
agglo_status agglo_slab_allocate(agglo_slab *slab, const agglo_slab *measured, agglo_err *err);
void agglo_slab_free(agglo_slab *slab); /* safe on a zeroed one */

/* Not zeroed; 256-byte aligned. Asserts that it fits. */
agglo_tensor agglo_slab_take(agglo_slab *slab, agglo_dtype dtype, int rank, const int64_t *shape);

static inline size_t agglo_slab_mark(const agglo_slab *slab)
{
    return slab->used;
}

static inline void agglo_slab_rewind(agglo_slab *slab, size_t mark)
{
    slab->used = mark;
}

#ifdef __cplusplus
}
#endif
#endif
