/* The student model: a backbone and, per teacher, one head for the summary and one for the spatial features.
 *
 * student.safetensors holds the parameters and, in __metadata__, `format` "agglo-student", `student`
 * (agglo_student_config as JSON) and `heads` (list of agglo_head_config as JSON). Names:
 *
 *   patch_embed.weight [d, 3 p p]   pos_embed [1, g g, d]   token [cls + registers, d]   blocks.I.* as in
 * vit_block.h   norm.{weight,bias}
 *   _heads.NAME.* (summary) and _feature_projections.NAME.* (spatial):
 *     version 2: fc1.*, blocks.K.{0,2}.*, final.{0,2}.*      version 1: fc1.*, norm.*, inner.{3K,3K+1}.*, fc2.*
 */
#ifndef AGGLO_STUDENT_MODEL_H
#define AGGLO_STUDENT_MODEL_H

#include "base/safetensors.h"
#include "student/config.h"
#include "tensor/encoder.h"
#include "tensor/param.h"

#ifdef __cplusplus
extern "C" {
#endif

/* CLIP's constants, for every student (spec students.md section 1.2). */
extern const float agglo_student_mean[3], agglo_student_std[3];

typedef struct agglo_student agglo_student;

/* Declare and allocate; parameters are zero until initialised or loaded. trained: with gradients and optimiser
 * state. storage: AGGLO_F32 or AGGLO_BF16, of activations and of what matrix products read (tensor/param.h); with AGGLO_BF16 a student
 * that is not trained has no F32 matrices and cannot be exported. Configurations are checked and copied. AGGLO_E_UNSUPPORTED where the
 * backend does not compute with it. */
agglo_status agglo_student_new(agglo_student **out, agglo_backend *backend, const agglo_student_config *config,
                               const agglo_head_config *heads, size_t n_heads, bool trained, agglo_dtype storage,
                               agglo_err *err);
/* The same in F32 from a file, parameters loaded. AGGLO_E_DATA when it is no student. */
agglo_status agglo_student_load(agglo_student **out, agglo_backend *backend, const agglo_safetensors *st, bool trained,
                                agglo_err *err);
void agglo_student_free(agglo_student *student);

const agglo_student_config *agglo_student_get_config(const agglo_student *student);
const agglo_head_config *agglo_student_heads(const agglo_student *student, size_t *n_heads);
agglo_params *agglo_student_params(agglo_student *student);

/* Whether a file is a student, told by its metadata. */
bool agglo_student_is(const agglo_safetensors *st);

/* Configuration and heads of a student file. AGGLO_E_DATA. */
agglo_status agglo_student_read_config(const agglo_safetensors *st, agglo_student_config *config,
                                       agglo_head_config heads[AGGLO_MAX_HEADS], size_t *n_heads, agglo_err *err);

/* student.safetensors: F32 parameters (the masters) and metadata, atomically; equal parameters give equal bytes. A trainer's student:
 * agglo_trainer_export. */
agglo_status agglo_student_export(agglo_student *student, const char *path, agglo_err *err);

/* A randomly initialised student (heads may be NULL with n_heads 0). The init of a parameter depends on seed and
 * name only. */
agglo_status agglo_student_write_random(const agglo_student_config *config, const agglo_head_config *heads,
                                        size_t n_heads, uint64_t seed, const char *path, agglo_err *err);

/* A student file as an encoder: the backbone's features (head NULL), or those of a named head on the student's own
 * grid. size: side of the input, a multiple of the patch (0: the training size). Memory for max_batch pictures of
 * size x size is planned now; other sides are planned when they come. AGGLO_E_CONFIG for an unknown head, naming
 * those there are, and for a bad size. */
agglo_status agglo_student_open(agglo_encoder *out, agglo_backend *backend, const char *path, const char *head,
                                int size, int max_batch, agglo_err *err);

#ifdef __cplusplus
}
#endif
#endif
