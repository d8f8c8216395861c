/* A tiny student with two teachers, and batches for it. */
#ifndef AGGLO_TESTS_UNIT_STUDENT_TRAINER_CASE_H
#define AGGLO_TESTS_UNIT_STUDENT_TRAINER_CASE_H

#include "student/trainer.h"
#include "tests/support/support.h"

#define BATCH 3
#define SIZE  16

static const agglo_head_config heads[2] = {{"one", 12, 10, 4, 4, 1.0, 1.0}, {"two", 9, 14, 3, 5, 0.3, 2.0}};

static inline agglo_student_config tiny(void)
{
    agglo_student_config config;
    agglo_err err = {0};

    assert_ok(agglo_student_config_by_name(&config, "vit", &err));
    config.dim = 16;
    config.depth = 2;
    config.heads = 2;
    config.patch = 4;
    config.image = SIZE;
    config.registers = 1;
    config.final_norm = true;
    config.head_inner = 1;
    config.pos_grid = 6; /* another than 4, so that it is resampled */
    return config;
}

/* n pictures, targets of a floating dtype. Seeded by `stream`; the second teacher has no target for the second picture. */
static inline void make_batch_of(agglo_batch *batch, uint64_t stream, int n, int size, agglo_dtype dtype)
{
    test_random random = test_random_new(stream);
    size_t n_pixels = (size_t)n * (size_t)size * (size_t)size * 3;
    agglo_err err = {0};

    memset(batch, 0, sizeof *batch);
    batch->batch = n;
    batch->size = size;
    batch->pixels = agglo_alloc(n_pixels, 1, &err);
    test_random_bytes(&random, batch->pixels, n_pixels);
    batch->n_teachers = 2;
    for (int i = 0; i < 2; i++) {
        agglo_batch_targets *to = &batch->targets[i];
        size_t n_values[2] = {(size_t)(n * heads[i].summary_dim),
                              (size_t)(n * heads[i].grid_h * heads[i].grid_w * heads[i].spatial_dim)};
        void **at[2] = {&to->summary, &to->spatial};

        to->summary_dtype = to->spatial_dtype = dtype;
        for (int kind = 0; kind < 2; kind++) {
            float *values = agglo_alloc(n_values[kind], sizeof(float), &err);

            *at[kind] = agglo_alloc(n_values[kind], agglo_dtype_size(dtype), &err);
            test_random_fill(&random, values, n_values[kind], kind == 0 ? 1.0f : 1.5f);
            if (dtype == AGGLO_F32) {
                memcpy(*at[kind], values, n_values[kind] * sizeof(float));
            } else {
                agglo_dtype_from_f32(*at[kind], values, dtype, n_values[kind]);
            }
            agglo_free(values);
        }
        to->valid = agglo_alloc((size_t)n, sizeof(float), &err);
        for (int b = 0; b < n; b++) {
            to->valid[b] = i == 1 && b == 1 ? 0.0f : 1.0f;
        }
        batch->plan.summary_weight[i] = heads[i].summary_weight;
        batch->plan.spatial_weight[i] = heads[i].spatial_weight;
    }
}

static inline void make_batch(agglo_batch *batch, uint64_t stream)
{
    make_batch_of(batch, stream, BATCH, SIZE, AGGLO_F32);
}

static inline void clear_batch(agglo_batch *batch)
{
    for (size_t i = 0; i < batch->n_teachers; i++) {
        agglo_free(batch->targets[i].summary);
        agglo_free(batch->targets[i].spatial);
        agglo_free(batch->targets[i].valid);
    }
    agglo_free(batch->pixels);
}

/* All parameters, one behind the other, in a new block. */
static inline float *all_values(agglo_trainer *trainer, agglo_backend *backend, int64_t *n)
{
    agglo_params *params = agglo_student_params(agglo_trainer_student(trainer));
    agglo_err err = {0};
    float *out;
    int64_t used = 0;

    *n = agglo_params_elements(params);
    out = agglo_alloc((size_t)*n, sizeof *out, &err);
    for (size_t i = 0; i < agglo_params_count(params); i++) {
        const agglo_tensor *value = &agglo_params_at(params, i)->value;

        agglo_download(backend, out + used, value->data, agglo_tensor_bytes(value));
        used += agglo_tensor_count(value);
    }
    return out;
}

#endif
