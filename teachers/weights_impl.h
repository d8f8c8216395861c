/* Between weights.c (what a set of files is) and weights_path.c (where they come from). */
#ifndef AGGLO_TEACHERS_WEIGHTS_IMPL_H
#define AGGLO_TEACHERS_WEIGHTS_IMPL_H

#include "teachers/weights.h"

#include <jansson.h>
#include <string.h>

static inline bool agglo_weights_ends_in(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);

    return n >= m && strcmp(text + n - m, end) == 0;
}

/* Open the file that an index names `name` (NULL: the one file there is), into *out. */
typedef agglo_status (*agglo_weights_opener)(void *context, const char *name, agglo_safetensors **out, agglo_err *err);

/* The set that an index (borrowed; NULL: there is one file) describes. */
agglo_status agglo_weights_gather(agglo_weights **out, const char *path, json_t *index, agglo_weights_opener open,
                                  void *context, agglo_err *err);

#endif
