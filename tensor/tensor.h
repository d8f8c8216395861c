/* A tensor: a typed, shaped pointer into memory of one backend. Plain data, contiguous, row-major, last axis fastest. */
#ifndef AGGLO_TENSOR_TENSOR_H
#define AGGLO_TENSOR_TENSOR_H

#include "base/dtype.h"
#include "base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

#define AGGLO_MAX_RANK 5

typedef struct agglo_tensor {
    void *data; /* on the backend's device; borrowed from whoever allocated it */
    agglo_dtype dtype;
    int rank;
    int64_t shape[AGGLO_MAX_RANK];
} agglo_tensor;

/* Wrap memory with `rank` extents. */
static inline agglo_tensor agglo_tensor_of(void *data, agglo_dtype dtype, int rank, const int64_t *shape)
{
    agglo_tensor t = {data, dtype, rank, {1, 1, 1, 1, 1}};

    for (int i = 0; i < rank; i++) {
        t.shape[i] = shape[i];
    }
    return t;
}

static inline agglo_tensor agglo_tensor_1d(void *data, agglo_dtype dtype, int64_t n)
{
    agglo_tensor t = {data, dtype, 1, {n, 1, 1, 1, 1}};
    return t;
}

static inline agglo_tensor agglo_tensor_2d(void *data, agglo_dtype dtype, int64_t rows, int64_t cols)
{
    agglo_tensor t = {data, dtype, 2, {rows, cols, 1, 1, 1}};
    return t;
}

static inline agglo_tensor agglo_tensor_3d(void *data, agglo_dtype dtype, int64_t a, int64_t b, int64_t c)
{
    agglo_tensor t = {data, dtype, 3, {a, b, c, 1, 1}};
    return t;
}

static inline agglo_tensor agglo_tensor_4d(void *data, agglo_dtype dtype, int64_t a, int64_t b, int64_t c, int64_t d)
{
    agglo_tensor t = {data, dtype, 4, {a, b, c, d, 1}};
    return t;
}

static inline agglo_tensor agglo_tensor_5d(void *data, agglo_dtype dtype, int64_t a, int64_t b, int64_t c, int64_t d,
                                           int64_t e)
{
    agglo_tensor t = {data, dtype, 5, {a, b, c, d, e}};
    return t;
}

/* Product of all extents. */
static inline int64_t agglo_tensor_count(const agglo_tensor *t)
{
    int64_t n = 1;

    for (int i = 0; i < t->rank; i++) {
        n *= t->shape[i];
    }
    return n;
}

static inline size_t agglo_tensor_bytes(const agglo_tensor *t)
{
    return (size_t)agglo_tensor_count(t) * agglo_dtype_size(t->dtype);
}

/* The same memory seen as [n / cols, cols] (all leading axes folded into rows). */
static inline agglo_tensor agglo_tensor_rows(const agglo_tensor *t)
{
    int64_t cols = t->shape[t->rank - 1];
    return agglo_tensor_2d(t->data, t->dtype, cols > 0 ? agglo_tensor_count(t) / cols : 0, cols);
}

#ifdef __cplusplus
}
#endif
#endif
