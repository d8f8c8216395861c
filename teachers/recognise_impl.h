/* Between recognise.c (what a file is) and teacher.c (opening it). */
#ifndef AGGLO_TEACHERS_RECOGNISE_IMPL_H
#define AGGLO_TEACHERS_RECOGNISE_IMPL_H

#include "teachers/layout_impl.h"
#include "teachers/teacher.h"

/* The parts of agglo_teacher_recognise, for who needs the tensors too: `found` is filled by agglo_layout_find, *tensors is to be freed. Every tensor
 * of the model is there, with its shape and a type that can be read; no value has been looked at but those of timm's head.bias. */
agglo_status agglo_teacher_recognise_in(const agglo_weights *weights, const agglo_layout_found *found, const char *arch,
                                        const char *act, agglo_teacher_file *out, agglo_layout_tensor **tensors,
                                        size_t *n_tensors, agglo_err *err);

#endif
