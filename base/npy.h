/* .npy files (numpy.lib.format): arrays written in version 1.0, little-endian, C order; headers of versions 1, 2 and 3 read. */
#ifndef AGGLO_BASE_NPY_H
#define AGGLO_BASE_NPY_H

#include "base/dtype.h"
#include "base/fs.h"

#ifdef __cplusplus
extern "C" {
#endif

#define AGGLO_NPY_MAX_RANK   8
#define AGGLO_NPY_MAX_FIELDS 16
/* What agglo_npy_header_size needs to see, and the largest header (with those bytes) that is taken. */
#define AGGLO_NPY_PREFIX     12
#define AGGLO_NPY_HEADER_MAX 65548

/* Write atomically. BF16 is stored as '<u2' (NumPy has no bfloat16). */
agglo_status agglo_npy_write(const char *path, agglo_dtype dtype, int rank, const int64_t *shape, const void *data,
                             agglo_err *err);

/* What a header says. The elements, little-endian and in C order, follow it without gaps. */
typedef struct agglo_npy_header {
    agglo_dtype dtype;                        /* of an element; AGGLO_DTYPE_OTHER: it has fields */
    int n_fields;                             /* 0: a plain array */
    agglo_dtype fields[AGGLO_NPY_MAX_FIELDS]; /* in order, packed; their names are not kept */
    size_t item_bytes;                        /* of an element, all its fields */
    int rank;                                 /* 0: one element */
    int64_t shape[AGGLO_NPY_MAX_RANK];
    uint64_t n_items, n_data_bytes; /* n_data_bytes = n_items * item_bytes */
    size_t n_header_bytes;          /* the data starts here */
} agglo_npy_header;

/* Do these bytes, the first of a file, start a .npy? Six are looked at. */
bool agglo_npy_is(agglo_bytes bytes);

/* How long a header is, from the first AGGLO_NPY_PREFIX bytes (or more) of a file. AGGLO_E_DATA: too few bytes, no .npy, or longer than
 * AGGLO_NPY_HEADER_MAX; AGGLO_E_UNSUPPORTED: another version. */
agglo_status agglo_npy_header_size(agglo_bytes bytes, size_t *n_header_bytes, agglo_err *err);

/* Read a header from the first bytes of a file; all of it must be there, what follows is not looked at, so the caller compares
 * n_data_bytes with what there is. Numbers of 8 to 64 bits, floats, booleans, and structures of up to 16 such fields.
 * AGGLO_E_DATA: not a header, or a shape whose bytes cannot be counted in 63 bits. AGGLO_E_UNSUPPORTED: another version, more
 * dimensions or fields, Fortran order of more than one dimension, big-endian numbers and any other type (objects, texts, complex
 * numbers). `out` is valid on success only. */
agglo_status agglo_npy_parse(agglo_bytes bytes, agglo_npy_header *out, agglo_err *err);

#ifdef __cplusplus
}
#endif
#endif
