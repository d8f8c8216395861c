/* Layouts of published checkpoints: which tensors a file holds, their shapes, and which parameter (or rows of one) each fills.
 *
 * One table of rows per layout; the loader walks it to read, the random writer to write. A further layout of a family is a further
 * table. A tensor's name is
 *     OUTER TOWER NAME            or   OUTER NAME       of a row that begins with '/'
 * where TOWER is one of the layout's prefixes ("vision_model.") and OUTER whatever a checkpoint wrapped around the model ("module.",
 * "teacher.backbone."). Shapes are letters, one per axis:
 *     d dim   t 3 dim   h rows into the MLP (2 mlp_dim with swiglu)   m mlp_dim   c 3   p patch   n 1 + grid^2   r registers   e proj   1 one
 *     g grid   o neck   3 three   k dim / heads   s rows of the block's tables of relative positions
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
    AGGLO_ROW_NECK, /* config.neck > 0 */
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
    int part;        /* fills rows [part * shape[0], ...) of the parameter */
    bool transposed; /* the file holds [in, out], the parameter [out, in] */
} agglo_layout_row;

struct agglo_layout_found;

typedef struct agglo_layout {
    const char *name; /* "transformers", "open_clip", "timm", "hub", "segment_anything" */
    const char *family;
    bool hub;                    /* the original repository's names, so its rule for positions */
    const char *const *prefixes; /* NULL-terminated; the first is what the writer uses */
    const char *probe;           /* the tensor whose presence tells the layout (with a prefix): the patch convolution */
    const char *const
        *marks; /* NULL-terminated: one of these must be there too (with the same prefix); NULL: the probe is enough */
    const char *block; /* "encoder.layers.": the number and a dot follow */
    bool may_chunk;    /* "blocks.": the number of a chunk of blocks may stand before the block's */
    const agglo_layout_row *top, *in_block;
    size_t n_top, n_in_block;
    const char *const *ignored; /* NULL-terminated prefixes of names (behind OUTER) that are known and not used */
    const char *const
        *refused; /* NULL-terminated pairs: a prefix of names (behind OUTER), what has such tensors; NULL: none */
    /* Read what shapes tell into config (family, dim, ... set from the probe already). */
    const char *positions, *mlp_plain, *mlp_swiglu, *registers, *projection,
        *neck;                   /* sources of further facts, NULL: not in this family */
    bool swiglu_apart;           /* mlp_swiglu is one half of the rows, its own tensor */
    const char *projection_bias; /* zero, or the projection is a classifier's (timm); NULL: never there */
    const char *defaults_act;    /* of transformers' config class, where config.json leaves hidden_act out */
    /* The family's own reading of shapes instead of the above, when dim, patch, depth and mlp_dim are known; NULL: none. */
    agglo_status (*read_shapes)(const agglo_weights *weights, const struct agglo_layout_found *found,
                                agglo_teacher_config *config, agglo_err *err);
} agglo_layout;

extern const agglo_layout agglo_layout_clip_hf, agglo_layout_clip_open, agglo_layout_clip_timm;
extern const agglo_layout agglo_layout_dinov2_hf, agglo_layout_dinov2_state, agglo_layout_dinov2_hub;
extern const agglo_layout agglo_layout_sam_hf, agglo_layout_sam_original;

/* The layout of a checkpoint and where the tower's tensors stand in it. */
typedef struct agglo_layout_found {
    const agglo_layout *layout;
    char outer[64];  /* before every name: "", "module." */
    char prefix[96]; /* before the tower's names: outer, then one of the layout's prefixes */
    int chunk;       /* blocks in one chunk, as "blocks.<chunk>.<block>."; 0: not chunked */
} agglo_layout_found;

/* One tensor of a checkpoint. */
typedef struct agglo_layout_tensor {
    char name[160];
    char param[96]; /* "" : not used */
    int rank;
    int64_t shape[4];
    int64_t first_row;
    bool transposed; /* shape is the file's, [in, out] */
    agglo_row_kind kind;
} agglo_layout_tensor;

/* All tensors that a model of this config has, in `*out` (agglo_free). */
agglo_status agglo_layout_expand(const agglo_layout_found *where, const agglo_teacher_config *config,
                                 agglo_layout_tensor **out, size_t *n, agglo_err *err);

/* What a tensor of the table is called: of the tower (block < 0, or a source that begins with '/') or of a block. Returns out. */
char *agglo_layout_name(const agglo_layout_found *where, int block, const char *source, char *out, size_t n_bytes);

/* That tensor; NULL where there is none, and where source is NULL. */
const agglo_st_tensor *agglo_layout_get(const agglo_layout_found *where, const agglo_weights *weights, int block,
                                        const char *source);

/* "encoder.layers.7.": what stands behind the prefix and before the names of block i. */
char *agglo_layout_block(const agglo_layout_found *where, int i, char *out, size_t n_bytes);

/* Find the layout. AGGLO_E_UNSUPPORTED: the names are those of no teacher that is known, of several of them, or of a relative that
 * computes something else. */
agglo_status agglo_layout_find(const agglo_weights *weights, agglo_layout_found *out, agglo_err *err);

/* The layout that the writer uses for a family. */
void agglo_layout_of_family(const char *family, agglo_layout_found *out);

/* Names in the file that the model does not explain: *out (agglo_free) of names borrowed from `weights`, in order. Sorts `tensors`.
 * AGGLO_E_UNSUPPORTED names one that lies inside the model's blocks: it is something that would change the features. */
agglo_status agglo_layout_unknown(const agglo_layout_found *where, const agglo_weights *weights,
                                  agglo_layout_tensor *tensors, size_t n_tensors, const char ***out, size_t *n,
                                  agglo_err *err);

#endif
