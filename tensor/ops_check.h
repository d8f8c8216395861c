/* What the fronts of the operators check tensors with. */
#ifndef AGGLO_TENSOR_OPS_CHECK_H
#define AGGLO_TENSOR_OPS_CHECK_H

#include "tensor/backend_impl.h"

static inline bool agglo_ops_ready(const agglo_backend *be)
{
    return be->failed.status == AGGLO_OK;
}

/* A tensor with memory and no empty axis. */
static inline bool agglo_ops_present(const agglo_tensor *t)
{
    if (t == NULL || t->data == NULL || t->rank < 1 || t->rank > AGGLO_MAX_RANK) {
        return false;
    }
    for (int i = 0; i < t->rank; i++) {
        if (t->shape[i] < 1) {
            return false;
        }
    }
    return true;
}

/* The same, of a storage type: F32 or BF16. */
static inline bool agglo_ops_stored(const agglo_tensor *t)
{
    return agglo_ops_present(t) && (t->dtype == AGGLO_F32 || t->dtype == AGGLO_BF16);
}

#endif
