/* The registry of teacher architectures: what a name stands for, and families whose fields are set one by one.
 *
 * Names fix shapes; heads and activation are the ones of the checkpoints that the name is known for, and give way to what a
 * checkpoint's own metadata or config.json says.
 */
#ifndef AGGLO_TEACHERS_REGISTRY_H
#define AGGLO_TEACHERS_REGISTRY_H

#include "tensor/encoder.h"
#include "tensor/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

#define AGGLO_TEACHER_MOST_DEPTH 256

typedef struct agglo_teacher_config {
    char family[16]; /* "clip", "dinov2", "sam" */
    char arch[64];   /* a registered name, or the family and its sizes: "clip-128x6-p4" */
    int dim, depth, heads;
    int mlp_dim;      /* width of the MLP inside (of each half with swiglu) */
    int patch, image; /* pixels; the position table has (image / patch)^2 rows for patches */
    int proj;         /* CLIP: width of the projected summary, 0: none */
    int registers;    /* DINOv2: 0 or 4 */
    agglo_act act;    /* of the MLP, GELU or QUICK_GELU; ignored with swiglu */
    bool swiglu;
    float norm_eps;
    float mean[3], std[3]; /* on the 0..1 scale, RGB */
    agglo_fit fit;         /* of a whole picture; distillation crops are square already */
    agglo_filter filter;
    /* SAM alone */
    int window;                                            /* side of the windows in tokens; 0: all blocks are global */
    int neck;                                              /* channels behind the neck; 0: there is none */
    uint32_t global_layers[AGGLO_TEACHER_MOST_DEPTH / 32]; /* bit i: block i attends to the whole grid */
} agglo_teacher_config;

static inline bool agglo_teacher_is_global(const agglo_teacher_config *config, int block)
{
    return (config->global_layers[block / 32] >> (block % 32) & 1) != 0;
}

/* "2,5,8,11" as agglo_teacher_set takes it, cut where out is too short (1024 bytes are enough); returns out. */
char *agglo_teacher_global_text(const agglo_teacher_config *config, char *out, size_t n_bytes);

/* By architecture or family name; a family gives a small default. AGGLO_E_CONFIG names the nearest known name. */
agglo_status agglo_teacher_named(const char *name, agglo_teacher_config *out, agglo_err *err);

/* The k-th registered architecture, NULL behind the last. */
const char *agglo_teacher_name_at(size_t k);
/* Whether `name` is a family ("clip", "dinov2", "sam"), and whether it is a family or a registered architecture. */
bool agglo_teacher_is_family(const char *name);
bool agglo_teacher_is_known(const char *name);

/* Set one field by name (dim, depth, heads, mlp_dim, patch, image, proj, registers, window, neck, global_layers, act, mlp, layer_norm_eps;
 * act: gelu, quick_gelu; mlp: plain, swiglu; global_layers: "2,5,8,11", "" for none; neck also true, for SAM's 256 channels, or false).
 * Of a family's default, setting `dim` also sets heads to dim / 64 (at least 1) and mlp_dim to 4 dim, and setting `depth` makes the
 * last block of every quarter global (the last block alone where depth is no multiple of 4), as in SAM. AGGLO_E_CONFIG. */
agglo_status agglo_teacher_set(agglo_teacher_config *config, const char *field, const char *value, agglo_err *err);

/* AGGLO_OK if the fields make a model of their family; AGGLO_E_CONFIG names the one that does not. Sets `arch` to the registered name with
 * these shapes (of several, that with this image), or to the family and its sizes. Window 0 and all blocks global are the same: either
 * sets the other. */
agglo_status agglo_teacher_check(agglo_teacher_config *config, agglo_err *err);

/* Whether the shapes (not heads, activation; image only where the name stands for one: clip-vit-large-14-336) are those of the architecture `name`;
 * AGGLO_E_CONFIG names the first that differs. */
agglo_status agglo_teacher_matches(const agglo_teacher_config *config, const char *name, agglo_err *err);

/* "gelu", "quick_gelu"; and back, false for an unknown name. */
const char *agglo_teacher_act_name(agglo_act act);
bool agglo_teacher_act_of(const char *name, agglo_act *out);

/* Attention heads of a published model of this family and width: CLIP's table, otherwise width / 64 (at least 1). */
int agglo_teacher_heads_of(const char *family, int dim);

/* All tensors of the vision tower as published (DINOv2's mask token included). */
int64_t agglo_teacher_params(const agglo_teacher_config *config);

/* Multiply-accumulates of matrix products and convolutions for one height x width image, in 1e9. SAM: windows count with their padding,
 * and the neck where there is one (neck 0 in a copy leaves it out). */
double agglo_teacher_gmac(const agglo_teacher_config *config, int height, int width);

#ifdef __cplusplus
}
#endif
#endif
