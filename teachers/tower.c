/* What the encoders of all families have; see tower_impl.h. */
#include "teachers/tower_impl.h"

agglo_status agglo_tower_init(agglo_tower *tower, agglo_backend *backend, const agglo_teacher_config *model,
                              bool layer_scale, agglo_dtype precision, agglo_err *err)
{
    tower->backend = backend;
    tower->block = (agglo_vit_block_config){
        .dim = model->dim,
        .heads = model->heads,
        .mlp_dim = model->mlp_dim,
        .act = model->act,
        .swiglu = model->swiglu,
        .layer_scale = layer_scale,
        .norm_eps = model->norm_eps,
        .dtype = precision,
    };
    if (agglo_params_new(&tower->params, backend, false, err) != AGGLO_OK) {
        return err->status;
    }
    return agglo_params_set_storage(tower->params, precision, err);
}

void agglo_tower_clear(agglo_tower *tower)
{
    agglo_slab_free(&tower->slab);
    agglo_params_free(tower->params);
    tower->params = NULL;
}

agglo_param *agglo_tower_add(agglo_tower *tower, const char *name, bool matrix, int64_t rows, int64_t cols,
                             agglo_err *err)
{
    const int64_t shape[2] = {rows, cols};

    return (matrix ? agglo_params_add_matrix : agglo_params_add)(tower->params, name, cols > 0 ? 2 : 1, shape,
                                                                 AGGLO_INIT_ZERO, 0.0f, false, err);
}

/* Memory and positions for this shape; nothing to do when they are planned. */
static agglo_status plan(agglo_tower *t, const agglo_tower_parts *parts, void *self, int batch, int height, int width,
                         agglo_err *err)
{
    bool same_size = height == t->planned_height && width == t->planned_width;
    agglo_slab measured = agglo_slab_measure(t->backend);

    if (same_size && batch <= t->planned_batch) {
        return AGGLO_OK;
    }
    agglo_slab_free(&t->slab);
    t->slab = (agglo_slab){0};
    t->planned_batch = 0;
    if (!same_size && parts->place(self, height, width, err) != AGGLO_OK) {
        goto fail;
    }
    parts->measure(self, &measured, batch, height, width);
    if (agglo_slab_allocate(&t->slab, &measured, err) != AGGLO_OK) {
        goto fail;
    }
    t->planned_batch = batch;
    t->planned_height = height;
    t->planned_width = width;
    t->n_plans++;
    return AGGLO_OK;
fail:
    t->planned_height = t->planned_width = 0;
    return agglo_doing(err, "cannot plan the teacher for %d images of %d x %d", batch, width, height);
}

agglo_status agglo_tower_run(agglo_tower *t, const agglo_tower_parts *parts, void *self, int patch, int most,
                             size_t n_summary, size_t n_spatial, const uint8_t *pixels, const agglo_extent *extents,
                             int batch, int height, int width, float *summary, float *spatial, agglo_err *err)
{
    size_t n_pixels = (size_t)height * (size_t)width * 3;

    AGGLO_ASSERT(batch >= 1 && most >= 1 && height >= patch && width >= patch);
    AGGLO_ASSERT(height % patch == 0 && width % patch == 0);
    for (int i = 0; extents != NULL && i < batch; i++) {
        AGGLO_ASSERT(extents[i].width >= 1 && extents[i].width <= width);
        AGGLO_ASSERT(extents[i].height >= 1 && extents[i].height <= height);
    }
    for (int first = 0; first < batch; first += most) {
        int n = batch - first < most ? batch - first : most;
        size_t at = (size_t)first;

        if (plan(t, parts, self, n, height, width, err) != AGGLO_OK) {
            return err->status;
        }
        agglo_slab_rewind(&t->slab, 0);
        parts->forward(self, pixels + at * n_pixels, extents != NULL ? extents + first : NULL, n, height, width,
                       summary != NULL ? summary + at * n_summary : NULL,
                       spatial != NULL ? spatial + at * n_spatial : NULL);
        if (agglo_backend_check(t->backend, err) != AGGLO_OK) {
            return agglo_doing(err, "cannot run the teacher");
        }
    }
    return AGGLO_OK;
}

void agglo_tower_give(const agglo_tower *tower, const agglo_tensor *from, const agglo_tensor *f32, float *to)
{
    agglo_tensor out = *from;

    if (from->dtype != AGGLO_F32) {
        out.data = f32->data;
        out.dtype = AGGLO_F32;
        agglo_cast(tower->backend, from, &out);
    }
    agglo_download(tower->backend, to, out.data, agglo_tensor_bytes(&out));
}
