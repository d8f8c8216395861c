/* From named tensors to parameters on the device: what a layout lists is found, its shape and type compared, its values converted piece by
 * piece as they go to the device (no copy of the whole on the host).
 */
#ifndef AGGLO_TEACHERS_LOAD_H
#define AGGLO_TEACHERS_LOAD_H

#include "teachers/layout_impl.h"
#include "tensor/param.h"

/* Fill every parameter that `tensors` names (an entry without a parameter is passed over). Parameters are allocated, of rank 1 or 2: a tensor of
 * more dimensions is a matrix of its first extent's rows. F32, F16, BF16 and F64 are read; all values must be finite as floats. AGGLO_E_DATA
 * names the tensor that is missing or of another shape, with what was expected, or the element that is not finite; AGGLO_E_UNSUPPORTED
 * one of another type. The place (the file) is the caller's to add. */
agglo_status agglo_load_params(agglo_params *params, const agglo_weights *weights, const agglo_layout_tensor *tensors,
                               size_t n_tensors, agglo_err *err);

#endif
