/* Slabs: a bump pointer over one block of device memory; see slab.h. */
#include "tensor/slab.h"

#include "base/alloc.h"

#define SLAB_ALIGN 256

agglo_slab agglo_slab_measure(agglo_backend *backend)
{
    agglo_slab slab = {backend, NULL, 0, 0, SIZE_MAX};

    return slab;
}

agglo_status agglo_slab_allocate(agglo_slab *slab, const agglo_slab *measured, agglo_err *err)
{
    agglo_slab made = {measured->backend, NULL, 0, 0, measured->peak};

    *slab = (agglo_slab){0};
    made.base = agglo_backend_alloc(measured->backend, measured->peak, err);
    if (made.base == NULL) {
        return agglo_doing(err, "cannot allocate %zu bytes for activations", measured->peak);
    }
    *slab = made;
    return AGGLO_OK;
}

void agglo_slab_free(agglo_slab *slab)
{
    if (slab->backend != NULL) {
        agglo_backend_release(slab->backend, slab->base);
    }
    *slab = (agglo_slab){0};
}

agglo_tensor agglo_slab_take(agglo_slab *slab, agglo_dtype dtype, int rank, const int64_t *shape)
{
    size_t n_bytes = agglo_dtype_size(dtype), end;
    agglo_tensor t;

    AGGLO_ASSERT(rank >= 0 && rank <= AGGLO_MAX_RANK && n_bytes > 0);
    for (int i = 0; i < rank; i++) {
        AGGLO_ASSERT(shape[i] >= 0 && agglo_size_mul(n_bytes, (size_t)shape[i], &n_bytes));
    }
    AGGLO_ASSERT(agglo_size_add(n_bytes, SLAB_ALIGN - 1, &n_bytes));
    n_bytes = n_bytes / SLAB_ALIGN * SLAB_ALIGN;
    AGGLO_ASSERT(agglo_size_add(slab->used, n_bytes, &end) && end <= slab->capacity);
    t = agglo_tensor_of(slab->base == NULL ? NULL : slab->base + slab->used, dtype, rank, shape);
    slab->used = end;
    if (end > slab->peak) {
        slab->peak = end;
    }
    return t;
}
