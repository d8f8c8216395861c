/* What a student is: architecture, summary, heads. Plain data, checked before use, kept as JSON in every weights
 * file. */
#ifndef AGGLO_STUDENT_CONFIG_H
#define AGGLO_STUDENT_CONFIG_H

#include "base/json.h"

#ifdef __cplusplus
extern "C" {
#endif

#define AGGLO_MAX_HEADS     16
#define AGGLO_HEAD_NAME_MAX 64

typedef enum agglo_student_summary {
    AGGLO_SUMMARY_CLS, /* one CLS token in front of registers and patches */
    AGGLO_SUMMARY_AVG, /* no CLS token: mean over the patch tokens */
} agglo_student_summary;

/* Integers are int64_t (and `summary` an int) so that a table of agglo_field fills them. */
typedef struct agglo_student_config {
    char family[16]; /* "vit" */
    char arch[64];   /* "vit-small-16"; the family alone when the fields were given one by one */
    int64_t dim, depth, heads, mlp_dim;
    int64_t patch;
    int64_t image;        /* side of the training input, pixels */
    int64_t pos_grid;     /* side of the position table, patches; 0: image / patch */
    int64_t registers;    /* tokens behind CLS that nothing reads */
    int summary;          /* agglo_student_summary */
    bool final_norm;      /* LayerNorm behind the last block; RADIO has none */
    int64_t head_version; /* 2: residual MLP; 1: plain MLP (spec students.md section 4) */
    int64_t head_hidden;  /* 0: max(in, out) of each head */
    int64_t head_inner;   /* inner layers of a head */
} agglo_student_config;

/* One teacher as the student sees it. */
typedef struct agglo_head_config {
    char name[AGGLO_HEAD_NAME_MAX];
    int64_t summary_dim, spatial_dim;
    int64_t grid_h, grid_w;                /* of the teacher's targets: the head's output is resampled to it */
    double summary_weight, spatial_weight; /* lambda_i and gamma_i of equations 2 and 3 */
} agglo_head_config;

/* A family's defaults ("vit": dim 384, depth 12, heads 6, mlp_dim 0 = 4 dim, patch 16, image 224), or a named one:
 * vit-{tiny,small,base,large,huge}-{14,16,32}. AGGLO_E_CONFIG names the nearest known one. */
agglo_status agglo_student_config_by_name(agglo_student_config *out, const char *name, agglo_err *err);

/* All names that agglo_student_config_by_name takes; static storage. */
const char *const *agglo_student_names(size_t *n);

/* Fill what is derived (mlp_dim 0, pos_grid 0) and check ranges and divisibility: AGGLO_E_CONFIG names the field,
 * found and allowed. */
agglo_status agglo_student_config_check(agglo_student_config *config, agglo_err *err);
/* Names [A-Za-z0-9._-]+, unique; dims and grids positive, weights >= 0.
 * AGGLO_E_CONFIG. */
agglo_status agglo_head_configs_check(const agglo_head_config *heads, size_t n_heads, agglo_err *err);

/* Multiply-accumulates of one image of size x size through the backbone, heads excluded (matrix products and
 * attention). */
double agglo_student_mac(const agglo_student_config *config, int64_t size);

/* As JSON, a new reference, keys in fixed order; NULL and error on lack of memory. Reading checks as above
 * (AGGLO_E_DATA). */
json_t *agglo_student_config_json(const agglo_student_config *config, agglo_err *err);
json_t *agglo_head_configs_json(const agglo_head_config *heads, size_t n_heads, agglo_err *err);
agglo_status agglo_student_config_parse(const json_t *json, agglo_student_config *out, agglo_err *err);
agglo_status agglo_head_configs_parse(const json_t *json, agglo_head_config heads[AGGLO_MAX_HEADS], size_t *n_heads,
                                      agglo_err *err);

#ifdef __cplusplus
}
#endif
#endif
