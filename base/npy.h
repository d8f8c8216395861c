/* .npy files, version 1.0, little-endian, C order: exports and test vectors. */
#ifndef AGGLO_BASE_NPY_H
#define AGGLO_BASE_NPY_H

#include "base/dtype.h"
#include "base/fs.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Write atomically. BF16 is stored as '<u2' (NumPy has no bfloat16). */
agglo_status agglo_npy_write(const char *path, agglo_dtype dtype, int rank, const int64_t *shape, const void *data,
                             agglo_err *err);

#ifdef __cplusplus
}
#endif
#endif
