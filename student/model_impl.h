/* The inside of a student, for the files of this folder. */
#ifndef AGGLO_STUDENT_MODEL_IMPL_H
#define AGGLO_STUDENT_MODEL_IMPL_H

#include "student/backbone.h"
#include "student/head.h"
#include "student/model.h"

#ifdef __cplusplus
extern "C" {
#endif

struct agglo_student {
    agglo_backend *backend; /* borrowed */
    agglo_student_config config;
    agglo_head_config heads[AGGLO_MAX_HEADS];
    size_t n_heads;
    bool trained;
    char *config_text, *heads_text; /* JSON, for the metadata of files */
    agglo_params *params;
    const agglo_backbone_class *class_;
    void *backbone;
    agglo_head summary[AGGLO_MAX_HEADS], spatial[AGGLO_MAX_HEADS];
};

/* Parameters on the host, all tensors of one kind one behind the other in the order of the list. */
typedef struct agglo_host_params {
    uint8_t *block;
    const void **data; /* [count] */
} agglo_host_params;

typedef enum agglo_param_part { AGGLO_PART_VALUE, AGGLO_PART_M, AGGLO_PART_V } agglo_param_part;

/* Copy one part of every parameter to the host; the caller clears. */
agglo_status agglo_host_params_get(agglo_host_params *out, agglo_student *student, agglo_param_part part,
                                   agglo_err *err);
void agglo_host_params_clear(agglo_host_params *host); /* safe on a zeroed one */

const agglo_tensor *agglo_param_get_part(const agglo_param *param, agglo_param_part part);

/* The metadata that every file of a student has: `format`, `student`, `heads`. */
agglo_status agglo_student_put_meta(const agglo_student *student, agglo_st_writer *writer, const char *format,
                                    agglo_err *err);
/* And back: AGGLO_E_DATA when it is not there or wrong. */
agglo_status agglo_student_get_meta(const agglo_safetensors *st, agglo_student_config *config,
                                    agglo_head_config heads[AGGLO_MAX_HEADS], size_t *n_heads, agglo_err *err);

/* Walk a plan twice, measuring and for real; the slab's memory is kept when it is large enough. */
agglo_status agglo_slab_fit(agglo_slab *slab, agglo_backend *backend, void (*walk)(void *context, agglo_slab *slab),
                            void *context, agglo_err *err);

#ifdef __cplusplus
}
#endif
#endif
