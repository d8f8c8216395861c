/* Any bytes as the weights of a teacher: refused with one error by recognition or by loading, or a model that runs. */
#include <math.h>
#include <string.h>

#include "base/log.h"
#include "teachers/teacher.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static agglo_backend *backend; /* one for all inputs, as long as the process */

static void run(const agglo_encoder *teacher)
{
    enum { MOST = 1 << 16 };
    static uint8_t pixels[MOST];
    static float summary[MOST], spatial[MOST];
    const agglo_encoder_info *info = &teacher->info;
    int side = info->preprocess.size, grid = side / info->patch;
    agglo_err err = {0};

    if ((int64_t)side * side * 3 > MOST || (int64_t)grid * grid * info->spatial_dim > MOST ||
        info->summary_dim > MOST || info->n_params > 1 << 20) {
        return;
    }
    /* finite weights may still overflow: only that it comes back is asked */
    AGGLO_ASSERT(teacher->encode(teacher->self, pixels, NULL, 1, side, side, summary, spatial, &err) == AGGLO_OK);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const agglo_weights_part part = {"x.safetensors", {data, size}};
    agglo_teacher_options options = agglo_teacher_options_default();
    agglo_teacher_file file;
    agglo_encoder teacher;
    agglo_weights *w;
    agglo_err err = {0};
    int64_t before;

    if (backend == NULL) {
        agglo_log_set_level(AGGLO_LOG_ERROR);
        AGGLO_ASSERT(agglo_backend_cpu_new(&backend, 1, &err) == AGGLO_OK);
    }
    before = agglo_alloc_counts().n_live;
    /* a path that nothing lies beside */
    if (agglo_weights_parse(&w, "/dev/null/x.safetensors", (agglo_bytes){0}, &part, 1, &err) != AGGLO_OK) {
        AGGLO_ASSERT(w == NULL && err.why[0] != '\0');
        AGGLO_ASSERT(agglo_alloc_counts().n_live == before);
        return 0;
    }
    if (agglo_teacher_recognise(w, NULL, NULL, &file, &err) == AGGLO_OK) {
        AGGLO_ASSERT(file.config.dim > 0 && file.config.depth > 0 && file.layout != NULL && file.act_from != NULL);
        agglo_teacher_file_clear(&file);
        options.preproj = strcmp(file.config.family, "clip") == 0;
        if (agglo_teacher_open_weights(&teacher, backend, w, &options, &err) == AGGLO_OK) {
            run(&teacher);
            agglo_encoder_clear(&teacher);
        } else {
            AGGLO_ASSERT(err.status != AGGLO_OK && err.why[0] != '\0');
        }
    } else {
        AGGLO_ASSERT(err.status != AGGLO_OK && err.why[0] != '\0');
    }
    agglo_weights_close(w);
    AGGLO_ASSERT(agglo_alloc_counts().n_live <=
                 before + 8); /* the backend keeps workspaces of shapes that it has seen */
    return 0;
}
