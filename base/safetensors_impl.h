/* What the two writers of safetensors share. */
#ifndef AGGLO_BASE_SAFETENSORS_IMPL_H
#define AGGLO_BASE_SAFETENSORS_IMPL_H

#include "base/safetensors.h"

enum { AGGLO_ST_PREFIX = 8, AGGLO_ST_MAX_HEADER = 100000000 };

/* A header is UTF-8: AGGLO_E_DATA for a text that is not. */
agglo_status agglo_st_check_text(const char *text, agglo_err *err);

/* "F32"; the dtype is not AGGLO_DTYPE_OTHER. */
const char *agglo_st_dtype_text(agglo_dtype dtype);

#endif
