/* Teachers: the encoders of published CLIP, DINOv2 and SAM checkpoints, recognised from what a file says of itself.
 *
 * Weights are safetensors (teachers/weights.h) in F32, F16, BF16 or F64, in a published layout: CLIP of transformers, OpenCLIP (and OpenAI) or timm,
 * DINOv2 of transformers or torch-hub, SAM of transformers or segment_anything; what a checkpoint wraps around the names ("module.", "teacher.backbone.") does not matter. Shapes
 * come from the tensors; heads, activation and epsilon from the first of these that says them: the file's __metadata__
 * (agglo_teacher_write_random), config.json or open_clip_config.json beside it, the architecture named by the caller, the registry. The pixels' mean and
 * std, and how a picture is fitted, from the same or preprocessor_config.json. Where two of them disagree about a shape, or heads
 * about a registered architecture that is asked for, the file is refused.
 *
 *     summary  CLIP: the class token behind the final norm and the projection;  DINOv2: the class token behind the final norm
 *     spatial  the patch tokens behind the final norm, [height / patch, width / patch, dim]
 * and of SAM: spatial  the tokens of the last block, before the neck; [..., neck channels] behind it by option
 *             summary  the mean of the last block's tokens, [dim], with the neck too
 */
#ifndef AGGLO_TEACHERS_TEACHER_H
#define AGGLO_TEACHERS_TEACHER_H

#include "teachers/pos_interp.h"
#include "teachers/registry.h"
#include "teachers/weights.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Whose rule resamples positions at another input size: that of the original repository (OpenCLIP; torch-hub DINOv2) or that of
 * transformers. AUTO: CLIP the original's, DINOv2 that of the layout the file is in. */
typedef enum agglo_pos_interp { AGGLO_POS_INTERP_AUTO, AGGLO_POS_INTERP_HUB, AGGLO_POS_INTERP_HF } agglo_pos_interp;

typedef struct agglo_teacher_options {
    const char *weights; /* path of a file, an index, a shard or a directory: teachers/weights.h */
    const char *arch;    /* a registered architecture or family that the file must be; NULL or "": recognised */
    int size;            /* side of the input, a multiple of the patch; 0: the image size of the checkpoint */
    /* Images in one run of the model; bounds its memory, larger batches are cut. 0: 32. On the CPU features do not depend on it, bit for bit. */
    int max_batch;
    bool preproj;     /* CLIP: summary before the projection (after the final norm) */
    bool spatial_raw; /* CLIP: spatial tokens before the final norm */
    bool neck;        /* SAM: spatial behind the neck */
    agglo_pos_interp pos_interp;
    const char *act; /* "gelu" or "quick_gelu", whatever is stated or assumed otherwise; NULL or "": as stated */
    /* Storage of activations and of the weights of matrix products: AGGLO_F32 (the default, on every device) or AGGLO_BF16. Other features,
     * so part of info.options: never chosen by the machine. */
    agglo_dtype precision;
} agglo_teacher_options;

/* Projected summary, normalised spatial tokens, native size, batch 32, F32; `weights` is to be filled. */
agglo_teacher_options agglo_teacher_options_default(void);

/* Load a teacher. `backend` is borrowed until agglo_encoder_clear(out). All weights are checked: AGGLO_E_DATA or AGGLO_E_MISMATCH names
 * the tensor, found and expected; AGGLO_E_CONFIG an option that does not fit; AGGLO_E_UNSUPPORTED a file that is no known teacher.
 * info.options holds what changes the features: "summary=proj,spatial_norm=1,pos=hub,gelu,h16" or "neck=0,gelu,w14", with ",e1e-05" behind where epsilon is not
 * the family's and ",bf16" in BF16. encode runs on one thread at a time;
 * heights and widths are free multiples of the patch; memory is planned at the first batch of a shape, then nothing is allocated. */
agglo_status agglo_teacher_open(agglo_encoder *out, agglo_backend *backend, const agglo_teacher_options *options,
                                agglo_err *err);

/* The same from weights that are open already, which need not stay so. */
agglo_status agglo_teacher_open_weights(agglo_encoder *out, agglo_backend *backend, agglo_weights *weights,
                                        const agglo_teacher_options *options, agglo_err *err);

/* What a file is. */
typedef struct agglo_teacher_file {
    agglo_teacher_config config;
    const char *layout; /* whose names: "transformers", "open_clip", "timm", "hub", "segment_anything" */
    bool hub;           /* AGGLO_POS_INTERP_AUTO of DINOv2 means the hub's rule */
    char prefix[64];    /* what stands before all names: "", "module." */
    const char *heads_from, *act_from, *pixels_from; /* who says so: "config.json", "assumed"; static texts */
    char **unknown; /* tensors beside the model's own, neither used nor known (a training head), in order of name */
    size_t n_unknown;
} agglo_teacher_file;

/* From headers: all tensors are there with their shapes and types. No values are read but those of timm's head.bias, zeros of which tell CLIP's projection
 * from a classifier. arch, act: as in the options. AGGLO_E_UNSUPPORTED: it is no
 * teacher that is known. *out is cleared by the caller on success. */
agglo_status agglo_teacher_recognise(const agglo_weights *weights, const char *arch, const char *act,
                                     agglo_teacher_file *out, agglo_err *err);
void agglo_teacher_file_clear(agglo_teacher_file *file);

/* Of an encoder opened here; borrowed. */
const agglo_teacher_file *agglo_teacher_file_of(const agglo_encoder *encoder);

/* How often memory was planned since it was opened (tests: equal shapes plan once). */
int agglo_teacher_plans(const agglo_encoder *encoder);

/* Write a randomly initialised teacher in transformers' layout, F32, with its whole configuration in __metadata__, so that every command
 * recognises the file without being told. A value depends on (seed, tensor name, index) only. `config` passes agglo_teacher_check. */
agglo_status agglo_teacher_write_random(const agglo_teacher_config *config, uint64_t seed, const char *path,
                                        agglo_err *err);

#ifdef __cplusplus
}
#endif
#endif
