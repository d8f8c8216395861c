/* From named tensors to parameters on the device: what a layout lists is found, its shape and type compared, its values converted piece by
 * piece as they go to the device (no copy of the whole on the host).
 */
#ifndef AGGLO_TEACHERS_LOAD_H
#define AGGLO_TEACHERS_LOAD_H

#include "teachers/layout_impl.h"
#include "tensor/param.h"

/* Every tensor that `tensors` names for a parameter is there, of its shape (a leading extent of 1 may be missing or extra) and of a type that is read
 * (F32, F16, BF16, F64). AGGLO_E_DATA and AGGLO_E_UNSUPPORTED name the tensor, what it is and what was expected. No value is looked at. */
agglo_status agglo_load_check(const agglo_weights *weights, const agglo_layout_tensor *tensors, size_t n_tensors,
                              agglo_err *err);

/* Fill every parameter that `tensors` names (an entry without a parameter is passed over). Parameters are allocated, of rank 1 or 2: a tensor of
 * more dimensions is a matrix of its first extent's rows. Checks as above; all values must be finite as floats (AGGLO_E_DATA names the tensor and the
 * element). A transposed tensor passes through a copy of itself on the host. The place (the file) is the caller's to add. */
agglo_status agglo_load_params(agglo_params *params, const agglo_weights *weights, const agglo_layout_tensor *tensors,
                               size_t n_tensors, agglo_err *err);

/* AGGLO_E_DATA: "tensor NAME is missing, expected shape EXPECTED" (t NULL), or "has shape ..., expected ...". */
agglo_status agglo_load_refuse(const agglo_st_tensor *t, const char *name, const char *expected, agglo_err *err);
/* The same of what agglo_layout_get gave. */
agglo_status agglo_load_refuse_in(const agglo_layout_found *where, int block, const char *source,
                                  const agglo_st_tensor *t, const char *expected, agglo_err *err);

/* "[3, 4]" into out; returns out. */
char *agglo_load_shape_text(int rank, const int64_t *shape, char *out, size_t n_bytes);

#endif
