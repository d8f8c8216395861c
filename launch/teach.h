/* The teacher pass of a recipe: every teacher over its dataset and its held-out set. */
#ifndef AGGLO_LAUNCH_TEACH_H
#define AGGLO_LAUNCH_TEACH_H

#include "launch/recipe.h"
#include "teachers/pass.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct agglo_teach_choice {
    const char *const *teachers; /* names; none: all of the recipe */
    size_t n_teachers;
    int part, n_parts; /* 0, 0: everything */
    const char *scratch;
    int threads; /* 0: all cores */
    bool verify;
} agglo_teach_choice;

/* What one teacher did over one dataset. */
typedef struct agglo_teach_line {
    const char *teacher; /* borrowed from the recipe */
    bool val;
    char arch[64];
    int grid_h, grid_w, summary_dim, spatial_dim;
    agglo_codec_id codec;
    agglo_teach_report report;
} agglo_teach_line;

typedef struct agglo_teach_result {
    agglo_teach_line lines[2 * AGGLO_MAX_TEACHERS];
    size_t n_lines;
} agglo_teach_result;

/* Run the pass. Each teacher is loaded once. Failed shards are in the reports (status AGGLO_OK); a mismatch, a full disk or a signal ends it.
 * The result is filled on any return; clear it. AGGLO_E_CONFIG for a name that the recipe does not have. */
agglo_status agglo_run_teach(const agglo_recipe *recipe, const agglo_teach_choice *choice, agglo_backend *backend,
                             agglo_teach_result *out, agglo_err *err);
void agglo_teach_result_clear(agglo_teach_result *result);

#ifdef __cplusplus
}
#endif
#endif
