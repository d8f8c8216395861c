/* The recipe: one YAML file that says what to distil, from what, into what. Checked against a schema before anything starts: an unknown
 * key is an error with file, line and the nearest known key. Paths are relative to the file.
 */
#ifndef AGGLO_LAUNCH_RECIPE_H
#define AGGLO_LAUNCH_RECIPE_H

#include "base/yaml.h"
#include "schedule/curve.h"
#include "student/trainer.h"

#ifdef __cplusplus
extern "C" {
#endif

#define AGGLO_MAX_TEACHERS 16
#define AGGLO_MAX_GROUPS   8
#define AGGLO_MAX_DATASETS 64

typedef struct agglo_recipe_teacher {
    const char *name;    /* [A-Za-z0-9._-]+: its directory in the cache and its heads' name */
    const char *weights; /* path, resolved */
    const char *arch;    /* "" to recognise it */
    const char *group;   /* view group; "" until checked, then the first one by default */
    int64_t size;        /* input side, 0: the model's own */
    int64_t batch;       /* of the teacher pass, 0: 32 */
    agglo_codec_id codec;
    double cosine; /* to keep, for codec klt */
    double summary_weight, spatial_weight;
    int summary; /* 0: proj, 1: preproj */
    bool spatial_norm;
    bool neck;      /* SAM: spatial behind the neck */
    int pos_interp; /* 0: as the layout of the file says, 1: hub, 2: hf */
    int precision;  /* of the teacher pass, 0: fp32, 1: bf16 */
    int act;        /* 0: as the weights or a config beside them say, 1: gelu, 2: quick_gelu */
} agglo_recipe_teacher;

typedef enum agglo_precision { AGGLO_PRECISION_AUTO, AGGLO_PRECISION_FP32, AGGLO_PRECISION_BF16 } agglo_precision;

typedef struct agglo_recipe_train {
    uint64_t seed;
    int64_t steps, batch, size;
    agglo_curve curve;
    int precision;                  /* agglo_precision */
    int64_t checkpoint_every, keep; /* steps; how many checkpoints stay */
    int64_t log_every;              /* steps per line of metrics.jsonl */
    int64_t window;                 /* shards among which samples are mixed */
    const char *init;               /* path of a run or weights to start from; NULL: random */
} agglo_recipe_train;

/* For `agglo launch`. */
typedef struct agglo_recipe_launch {
    int engine; /* 0: local, 1: slurm */
    int64_t ranks;
    const char *partition, *time;
} agglo_recipe_launch;

typedef struct agglo_recipe {
    agglo_arena *arena; /* owns every text here */
    agglo_yaml *tree;   /* as used: after --set, paths resolved */
    const char *path;
    const char *datasets[AGGLO_MAX_DATASETS];
    size_t n_datasets;
    const char *val, *cache, *val_cache; /* val: NULL when there is none */
    uint64_t seed;
    agglo_view_config groups[AGGLO_MAX_GROUPS];
    size_t n_groups;
    agglo_recipe_teacher teachers[AGGLO_MAX_TEACHERS];
    size_t n_teachers;
    agglo_student_config student; /* its image is train.size unless the recipe says otherwise */
    bool student_image;           /* it does */
    agglo_trainer_config trainer; /* of the sections loss and train */
    agglo_recipe_train train;
    int space, balance; /* 0: native, 0: none */
    agglo_recipe_launch launch;
} agglo_recipe;

/* Read, apply `--set KEY=VALUE` texts in order, check. AGGLO_E_CONFIG with one line. On failure nothing is held; on success the caller
 * frees with agglo_recipe_clear. */
agglo_status agglo_recipe_read(agglo_recipe *out, const char *path, const char *const *sets, size_t n_sets,
                               agglo_err *err);
void agglo_recipe_clear(agglo_recipe *recipe); /* safe on a zeroed one */

/* A student from a map of the fields that the section `student` takes (arch is required), `image` among them. AGGLO_E_CONFIG. */
agglo_status agglo_recipe_student(agglo_student_config *out, const agglo_yaml *map, agglo_err *err);

/* The view group of a teacher. */
const agglo_view_config *agglo_recipe_group(const agglo_recipe *recipe, const agglo_recipe_teacher *teacher);

/* The recipe as used, as YAML: write to RUN/recipe.yaml. Text in the recipe's arena. */
agglo_status agglo_recipe_text(const agglo_recipe *recipe, char **out, agglo_err *err);

#ifdef __cplusplus
}
#endif
#endif
