/* Layouts of published checkpoints: which tensors a file holds, their shapes, and which parameter (or rows of one) each fills.
 *
 * One table of rows per layout; the loader walks it to read, the random writer to write. A further layout of a family is a further
 * table. Shapes are letters, one per axis:
 *     d dim   h rows into the MLP (2 mlp_dim with swiglu)   m mlp_dim   c 3   p patch   n 1 + grid^2   r registers   e proj   1 one
 */
#ifndef AGGLO_TEACHERS_LAYOUT_IMPL_H
#define AGGLO_TEACHERS_LAYOUT_IMPL_H

#include "teachers/registry.h"
#include "teachers/weights.h"

typedef enum agglo_row_if {
    AGGLO_ROW_ALWAYS,
    AGGLO_ROW_PROJ,      /* config.proj > 0 */
    AGGLO_ROW_REGISTERS, /* config.registers > 0 */
    AGGLO_ROW_PLAIN,     /* !swiglu */
    AGGLO_ROW_SWIGLU,
} agglo_row_if;

/* What random values suit a tensor. */
typedef enum agglo_row_kind {
    AGGLO_ROW_LINEAR, /* sigma 1 / sqrt(fan in) */
    AGGLO_ROW_TOKEN,  /* class token, registers, positions */
    AGGLO_ROW_NORM,   /* near 1 */
    AGGLO_ROW_BIAS,   /* near 0 */
    AGGLO_ROW_SCALE,  /* LayerScale */
} agglo_row_kind;

typedef struct agglo_layout_row {
    const char *source; /* in the file, behind the prefix (and the block's prefix); a leading '/' means no prefix */
    const char *param;  /* of the encoder (in its block); NULL: known, not used */
    const char *shape;
    agglo_row_kind kind;
    agglo_row_if when;
    int part; /* fills rows [part * shape[0], ...) of the parameter */
} agglo_layout_row;

typedef struct agglo_layout {
    const char *family;
    const char *const *prefixes; /* NULL-terminated; the first is what the writer uses */
    const char *probe;           /* the tensor whose presence tells the layout (with a prefix): the patch convolution */
    const char *block;           /* "encoder.layers.": the number and a dot follow */
    const agglo_layout_row *top, *in_block;
    size_t n_top, n_in_block;
    const char *const *ignored; /* NULL-terminated prefixes of names that are known and not used */
    /* Read what shapes tell into config (family, dim, ... set from the probe already). */
    const char *positions, *mlp_plain, *mlp_swiglu, *registers,
        *projection;          /* sources of further facts, NULL: not in this family */
    const char *defaults_act; /* of transformers' config class, where config.json leaves hidden_act out */
} agglo_layout;

extern const agglo_layout agglo_layout_clip_hf, agglo_layout_dinov2_hf;

/* One tensor of a checkpoint. */
typedef struct agglo_layout_tensor {
    char name[160];
    char param[96]; /* "" : not used */
    int rank;
    int64_t shape[4];
    int64_t first_row;
    agglo_row_kind kind;
} agglo_layout_tensor;

/* All tensors that a model of this config has, in `*out` (agglo_free). */
agglo_status agglo_layout_expand(const agglo_layout *layout, const agglo_teacher_config *config, const char *prefix,
                                 agglo_layout_tensor **out, size_t *n, agglo_err *err);

/* The layout of a file and the prefix of its names (borrowed from the layout); NULL: none that is known. */
const agglo_layout *agglo_layout_find(const agglo_weights *weights, const char **prefix);

/* The layout that the writer uses for a family. */
const agglo_layout *agglo_layout_of_family(const char *family);

/* Recognise a file whose layout is found: shapes, then its metadata, then config.json, then `arch`, then tables (see teacher.h). */
agglo_status agglo_teacher_recognise_in(const agglo_weights *weights, const agglo_layout *layout, const char *prefix,
                                        const char *arch, agglo_teacher_config *out, agglo_err *err);

#endif
