/* The trainer: gradients of the whole model against finite differences, the same bytes at any number of threads,
 * exact resume, nothing allocated in the steady state, and what must stop it.
 */
#include <math.h>

#include "student/checkpoint.h"
#include "tests/unit/student/trainer_case.h"

static agglo_dtype precision; /* of the trainers that `make` makes */

static agglo_trainer *make(agglo_backend *backend, const agglo_student_config *config, uint64_t seed)
{
    agglo_trainer_config options = agglo_trainer_config_default();
    agglo_trainer *trainer;
    agglo_err err = {0};

    options.precision = precision;

    assert_ok(agglo_trainer_new(&trainer, backend, config, heads, 2, &options, &err));
    assert_ok(agglo_trainer_init(trainer, seed, &err));
    return trainer;
}

static void step(agglo_trainer *trainer, agglo_batch *batch, agglo_metrics *metrics)
{
    agglo_err err = {0};

    batch->plan.step = agglo_trainer_steps(trainer);
    batch->plan.lr = 1e-2 / (1.0 + (double)batch->plan.step);
    assert_ok(agglo_trainer_step(trainer, batch, metrics, &err));
}

static double loss_at(agglo_trainer *trainer, const agglo_batch *batch)
{
    agglo_metrics metrics;
    agglo_err err = {0};

    assert_ok(agglo_trainer_eval(trainer, batch, &metrics, &err));
    return metrics.loss;
}

/* Larger than at initialisation, where heads put out next to nothing and the cosine bends too much for finite
 * differences. */
static void fill_params(agglo_trainer *trainer, agglo_backend *backend)
{
    agglo_params *params = agglo_student_params(agglo_trainer_student(trainer));
    test_random random = test_random_new(5);
    agglo_err err = {0};

    for (size_t i = 0; i < agglo_params_count(params); i++) {
        agglo_param *param = agglo_params_at(params, i);
        size_t n = (size_t)agglo_tensor_count(&param->value);
        float *values = agglo_alloc(n, sizeof *values, &err);

        test_random_fill(&random, values, n, 0.15f);
        for (size_t k = 0; param->init == AGGLO_INIT_ONE && k < n; k++) {
            values[k] += 1.0f;
        }
        agglo_upload(backend, param->value.data, values, n * sizeof *values);
        agglo_free(values);
    }
}

/* For every parameter, along a random direction mixed with the gradient, for both kinds of summary. The loss is
 * float32: with h = 0.01 of a unit vector rounding contributes some 5e-5 to the quotient, and the third derivative
 * less than that. */
static void check_gradients(int summary)
{
    agglo_student_config config = tiny();
    agglo_backend *backend;
    agglo_trainer *trainer;
    agglo_params *params;
    agglo_metrics metrics;
    agglo_batch batch;
    test_random random = test_random_new(3);
    agglo_err err = {0};

    config.summary = summary;
    assert_ok(agglo_backend_cpu_new(&backend, 1, &err));
    trainer = make(backend, &config, 5);
    fill_params(trainer, backend);
    params = agglo_student_params(agglo_trainer_student(trainer));
    make_batch(&batch, 1);
    batch.plan.lr = 0.0;
    assert_ok(agglo_trainer_step(trainer, &batch, &metrics, &err));
    for (size_t i = 0; i < agglo_params_count(params); i++) {
        agglo_param *param = agglo_params_at(params, i);
        size_t n = (size_t)agglo_tensor_count(&param->value), n_bytes = n * sizeof(float);
        float *value = agglo_alloc(n, sizeof(float), &err), *grad = agglo_alloc(n, sizeof(float), &err);
        float *direction = agglo_alloc(n, sizeof(float), &err), *moved = agglo_alloc(n, sizeof(float), &err);
        double grad_norm = 0.0, norm = 0.0, expected = 0.0, loss[2];
        const double h = 0.01;

        agglo_download(backend, value, param->value.data, n_bytes);
        agglo_download(backend, grad, param->grad.data, n_bytes);
        for (size_t k = 0; k < n; k++) {
            grad_norm += (double)grad[k] * (double)grad[k];
        }
        grad_norm = sqrt(grad_norm);
        assert_true(grad_norm > 0.0); /* every parameter takes part */
        for (size_t k = 0; k < n; k++) {
            direction[k] = (float)((double)grad[k] / grad_norm) + test_random_normal(&random) / sqrtf((float)n);
            norm += (double)direction[k] * (double)direction[k];
        }
        for (size_t k = 0; k < n; k++) {
            direction[k] = (float)((double)direction[k] / sqrt(norm));
            expected += (double)direction[k] * (double)grad[k];
        }
        for (int side = 0; side < 2; side++) {
            for (size_t k = 0; k < n; k++) {
                moved[k] = value[k] + (float)(side ? h : -h) * direction[k];
            }
            agglo_upload(backend, param->value.data, moved, n_bytes);
            loss[side] = loss_at(trainer, &batch);
        }
        agglo_upload(backend, param->value.data, value, n_bytes);
        if (fabs((loss[1] - loss[0]) / (2.0 * h) - expected) > 2e-4 + 5e-3 * fabs(expected)) {
            fail_msg("%s: slope %.6f, gradient says %.6f", param->name, (loss[1] - loss[0]) / (2.0 * h), expected);
        }
        agglo_free(moved);
        agglo_free(direction);
        agglo_free(grad);
        agglo_free(value);
    }
    clear_batch(&batch);
    agglo_trainer_free(trainer);
    agglo_backend_free(backend);
}

static void test_gradients_cls(void **state)
{
    (void)state;
    check_gradients(AGGLO_SUMMARY_CLS);
}

static void test_gradients_avg(void **state)
{
    (void)state;
    check_gradients(AGGLO_SUMMARY_AVG);
}

static void test_threads(void **state)
{
    agglo_student_config config = tiny();
    float *first = NULL, *values;
    int64_t n = 0;
    agglo_err err = {0};

    (void)state;
    for (int n_threads = 1; n_threads <= 3; n_threads++) {
        agglo_backend *backend;
        agglo_trainer *trainer;
        agglo_batch batch;
        agglo_metrics metrics;

        assert_ok(agglo_backend_cpu_new(&backend, n_threads, &err));
        trainer = make(backend, &config, 9);
        for (uint64_t i = 0; i < 4; i++) {
            make_batch(&batch, i);
            step(trainer, &batch, &metrics);
            clear_batch(&batch);
        }
        values = all_values(trainer, backend, &n);
        if (first == NULL) {
            first = values;
        } else {
            assert_memory_equal(first, values, (size_t)n * sizeof *values);
            agglo_free(values);
        }
        agglo_trainer_free(trainer);
        agglo_backend_free(backend);
    }
    agglo_free(first);
}

static void test_threads_bf16(void **state)
{
    precision = AGGLO_BF16;
    test_threads(state);
    precision = AGGLO_F32;
}

static void assert_same_files(const char *a, const char *b)
{
    char *bytes[2];
    size_t sizes[2];
    agglo_err err = {0};

    assert_ok(agglo_file_read(a, 1 << 26, &bytes[0], &sizes[0], &err));
    assert_ok(agglo_file_read(b, 1 << 26, &bytes[1], &sizes[1], &err));
    assert_int_equal(sizes[0], sizes[1]);
    assert_memory_equal(bytes[0], bytes[1], sizes[0]);
    agglo_free(bytes[0]);
    agglo_free(bytes[1]);
}

/* Steps up to `until`, batch i in step i. */
static void train(agglo_trainer *trainer, int64_t until)
{
    agglo_metrics metrics;
    agglo_batch batch;

    while (agglo_trainer_steps(trainer) < until) {
        make_batch(&batch, (uint64_t)agglo_trainer_steps(trainer));
        step(trainer, &batch, &metrics);
        clear_batch(&batch);
    }
}

static void test_resume(void **state)
{
    agglo_student_config config = tiny();
    const char *dir = test_dir(), *straight = test_path(dir, "straight.safetensors");
    const char *resumed = test_path(dir, "resumed.safetensors"), *run = test_path(dir, "run"),
               *run2 = test_path(dir, "run2");
    agglo_backend *backend;
    agglo_trainer *trainer;
    int64_t newest;
    bool found;
    agglo_err err = {0};

    (void)state;
    assert_ok(agglo_backend_cpu_new(&backend, 2, &err));
    assert_ok(agglo_make_dirs(run, &err));
    assert_ok(agglo_make_dirs(run2, &err));
    trainer = make(backend, &config, 1);
    train(trainer, 9);
    assert_ok(agglo_trainer_export(trainer, straight, &err));
    assert_ok(agglo_checkpoint_save(trainer, run2, "recipe", 1, &err));
    agglo_trainer_free(trainer);

    trainer = make(backend, &config, 1);
    assert_ok(agglo_checkpoint_load(trainer, run, "recipe", &found, &err));
    assert_false(found);
    for (int64_t at = 1; at <= 5; at++) {
        train(trainer, at);
        assert_ok(agglo_checkpoint_save(trainer, run, "recipe", 2, &err));
    }
    agglo_trainer_free(trainer);
    assert_true(agglo_path_exists(test_path(run, "checkpoint-00000005.safetensors")));
    assert_true(agglo_path_exists(test_path(run, "checkpoint-00000004.safetensors")));
    assert_false(agglo_path_exists(test_path(run, "checkpoint-00000003.safetensors")));
    assert_ok(agglo_checkpoint_newest(run, &newest, &err));
    assert_int_equal(newest, 5);

    trainer = make(backend, &config, 77); /* what it starts with must not matter */
    train(trainer, 2);
    assert_ok(agglo_checkpoint_load(trainer, run, "recipe", &found, &err));
    assert_true(found);
    assert_int_equal(agglo_trainer_steps(trainer), 5);
    train(trainer, 9);
    assert_ok(agglo_trainer_export(trainer, resumed, &err));
    assert_same_files(straight, resumed);
    assert_ok(agglo_checkpoint_save(trainer, run, "recipe", 1, &err));
    assert_same_files(test_path(run, "checkpoint-00000009.safetensors"),
                      test_path(run2, "checkpoint-00000009.safetensors"));

    assert_fails(agglo_checkpoint_load(trainer, run, "another recipe", &found, &err), AGGLO_E_MISMATCH, "recipe");
    agglo_trainer_free(trainer);
    config.registers = 2;
    trainer = make(backend, &config, 1);
    assert_fails(agglo_checkpoint_load(trainer, run, "recipe", &found, &err), AGGLO_E_MISMATCH, "student");
    assert_int_equal(agglo_trainer_steps(trainer), 0);
    assert_ok(agglo_file_write(test_path(run, "checkpoint-00000010.safetensors"), "broken", 6, &err));
    assert_fails(agglo_checkpoint_load(trainer, run, "recipe", &found, &err), AGGLO_E_DATA, "checkpoint-00000010");
    agglo_trainer_free(trainer);
    agglo_backend_free(backend);
}

/* In BF16 as in F32: masters are saved, and copies follow from them. */
static void test_resume_bf16(void **state)
{
    precision = AGGLO_BF16;
    test_resume(state);
    precision = AGGLO_F32;
}

/* Behind every step and every load the copies are the masters, rounded. */
static void assert_copies(agglo_trainer *trainer)
{
    agglo_params *params = agglo_student_params(agglo_trainer_student(trainer));
    size_t n_copies = 0;

    for (size_t i = 0; i < agglo_params_count(params); i++) {
        const agglo_param *param = agglo_params_at(params, i);

        if (agglo_param_has_copy(param)) {
            const float *value = param->value.data;
            const uint16_t *stored = param->stored.data;

            for (int64_t k = 0; k < agglo_tensor_count(&param->value); k++) {
                assert_int_equal(stored[k], agglo_f32_to_bf16(value[k]));
            }
            n_copies++;
        }
    }
    assert_true(n_copies > 10);
}

static void test_copies_bf16(void **state)
{
    agglo_student_config config = tiny();
    const char *run = test_dir();
    agglo_backend *backend;
    agglo_trainer *trainer;
    bool found;
    agglo_err err = {0};

    (void)state;
    precision = AGGLO_BF16;
    assert_ok(agglo_backend_cpu_new(&backend, 2, &err));
    trainer = make(backend, &config, 1);
    assert_copies(trainer);
    train(trainer, 3);
    assert_copies(trainer);
    assert_ok(agglo_checkpoint_save(trainer, run, "recipe", 1, &err));
    agglo_trainer_free(trainer);
    trainer = make(backend, &config, 2);
    assert_ok(agglo_checkpoint_load(trainer, run, "recipe", &found, &err));
    assert_copies(trainer);
    agglo_trainer_free(trainer);
    agglo_backend_free(backend);
    precision = AGGLO_F32;
}

/* The newest checkpoint cut short, or with any byte changed, is refused by name and leaves the trainer as it was; without it the one
 * before serves. */
static void test_damaged_checkpoint(void **state)
{
    agglo_student_config config = tiny();
    const char *run = test_dir(), *newest = test_path(run, "checkpoint-00000002.safetensors");
    agglo_backend *backend;
    agglo_trainer *trainer;
    float *before, *after;
    char *bytes;
    size_t n_bytes, n_header = 0;
    int64_t n;
    bool found;
    agglo_err err = {0};

    (void)state;
    assert_ok(agglo_backend_cpu_new(&backend, 1, &err));
    trainer = make(backend, &config, 1);
    for (int64_t at = 1; at <= 2; at++) {
        train(trainer, at);
        assert_ok(agglo_checkpoint_save(trainer, run, "recipe", 2, &err));
    }
    agglo_trainer_free(trainer);
    trainer = make(backend, &config, 2);
    before = all_values(trainer, backend, &n);
    assert_ok(agglo_file_read(newest, 1 << 26, &bytes, &n_bytes, &err));
    memcpy(&n_header, bytes, sizeof n_header); /* little-endian, as this machine */
    for (size_t k = 0; k < 40; k++) {
        /* all over the tensors: values, m and v */
        size_t at = 8 + n_header + k * (n_bytes - 8 - n_header - 1) / 39;

        bytes[at] ^= 1;
        assert_ok(agglo_file_write(newest, bytes, n_bytes, &err));
        bytes[at] ^= 1;
        assert_fails(agglo_checkpoint_load(trainer, run, "recipe", &found, &err), AGGLO_E_DATA, "checkpoint-00000002");
        assert_ok(agglo_file_write(newest, bytes, k * n_bytes / 40, &err));
        assert_fails(agglo_checkpoint_load(trainer, run, "recipe", &found, &err), AGGLO_E_DATA, "checkpoint-00000002");
        assert_false(found);
    }
    agglo_free(bytes);
    assert_int_equal(agglo_trainer_steps(trainer), 0);
    after = all_values(trainer, backend, &n);
    assert_memory_equal(before, after, (size_t)n * sizeof *before);
    agglo_free(before);
    agglo_free(after);
    assert_int_equal(remove(newest), 0);
    assert_ok(agglo_checkpoint_load(trainer, run, "recipe", &found, &err));
    assert_true(found);
    assert_int_equal(agglo_trainer_steps(trainer), 1);
    agglo_trainer_free(trainer);
    agglo_backend_free(backend);
}

static void test_steady_state(void **state)
{
    agglo_student_config config = tiny();
    agglo_backend *backend;
    agglo_trainer *trainer;
    agglo_batch batch;
    agglo_metrics metrics;
    agglo_err err = {0};
    int64_t before;

    (void)state;
    assert_ok(agglo_backend_cpu_new(&backend, 2, &err));
    trainer = make(backend, &config, 1);
    make_batch(&batch, 1);
    for (int i = 0; i < 2; i++) {
        step(trainer, &batch, &metrics);
        assert_true(loss_at(trainer, &batch) > 0.0);
    }
    before = agglo_alloc_counts().n_total;
    for (int i = 0; i < 3; i++) {
        step(trainer, &batch, &metrics);
        assert_true(loss_at(trainer, &batch) > 0.0);
    }
    assert_int_equal(agglo_alloc_counts().n_total, before);
    clear_batch(&batch);
    agglo_trainer_free(trainer);
    agglo_backend_free(backend);
}

static void test_steady_state_bf16(void **state)
{
    precision = AGGLO_BF16;
    test_steady_state(state);
    precision = AGGLO_F32;
}

/* Values that are not finite stop the run in that step, and change no parameter. */
static void test_not_finite(void **state)
{
    agglo_student_config config = tiny();
    agglo_backend *backend;
    agglo_trainer *trainer;
    agglo_batch batch;
    agglo_metrics metrics;
    float *before, *after;
    int64_t n;
    agglo_err err = {0};

    (void)state;
    assert_ok(agglo_backend_cpu_new(&backend, 1, &err));
    trainer = make(backend, &config, 1);
    make_batch(&batch, 1);
    step(trainer, &batch, &metrics);
    before = all_values(trainer, backend, &n);
    ((float *)batch.targets[0].spatial)[7] = (float)NAN;
    batch.plan.step = 1;
    assert_fails(agglo_trainer_step(trainer, &batch, &metrics, &err), AGGLO_E_DATA, "step 1");
    assert_int_equal(agglo_trainer_steps(trainer), 1);
    after = all_values(trainer, backend, &n);
    assert_memory_equal(before, after, (size_t)n * sizeof *before);
    agglo_free(after);
    agglo_free(before);
    clear_batch(&batch);
    agglo_trainer_free(trainer);
    agglo_backend_free(backend);
}

/* A sample of weight zero is as if it were not there, whatever its slot holds. */
static void test_weight_zero(void **state)
{
    agglo_student_config config = tiny();
    agglo_backend *backend;
    agglo_trainer *trainer;
    agglo_batch batch;
    agglo_metrics with, without;
    agglo_err err = {0};
    const float saved[2] = {1.0f, 0.0f};

    (void)state;
    assert_ok(agglo_backend_cpu_new(&backend, 1, &err));
    trainer = make(backend, &config, 1);
    make_batch(&batch, 1);
    batch.targets[0].valid[1] = 0.0f;
    assert_ok(agglo_trainer_eval(trainer, &batch, &with, &err));
    assert_true(with.summary[0].n_tokens == 2.0 && with.spatial[0].n_tokens == 2.0 * 16.0);
    memset(batch.pixels + SIZE * SIZE * 3, 0, SIZE * SIZE * 3);
    for (int i = 0; i < 2; i++) {
        int64_t c = heads[i].summary_dim;

        for (int64_t k = 0; k < c; k++) {
            ((float *)batch.targets[i].summary)[c + k] = saved[i];
        }
    }
    assert_ok(agglo_trainer_eval(trainer, &batch, &without, &err));
    assert_memory_equal(&with, &without, sizeof with);

    /* nothing valid at all: no loss, no gradient, only decay */
    for (int i = 0; i < 2; i++) {
        memset(batch.targets[i].valid, 0, BATCH * sizeof(float));
    }
    step(trainer, &batch, &without);
    assert_true(without.loss == 0.0 && without.grad_norm == 0.0 && agglo_metrics_spatial_cos(&without, 0) == 0.0);
    clear_batch(&batch);
    agglo_trainer_free(trainer);
    agglo_backend_free(backend);
}

/* With eps large against the gradient AdamW's first step is proportional to it, so clipping to a tenth of the norm
 * divides the step by ten. */
static void test_clip(void **state)
{
    agglo_student_config config = tiny();
    agglo_trainer_config options = agglo_trainer_config_default();
    agglo_backend *backend;
    agglo_batch batch;
    agglo_metrics metrics;
    double moved[2], norm = 0.0;
    agglo_err err = {0};

    (void)state;
    assert_ok(agglo_backend_cpu_new(&backend, 1, &err));
    make_batch(&batch, 1);
    options.eps = 1e3;
    options.weight_decay = 0.0;
    for (int clipped = 0; clipped < 2; clipped++) {
        agglo_trainer *trainer;
        float *before, *after;
        int64_t n;

        options.clip = clipped ? norm / 10.0 : 0.0;
        assert_ok(agglo_trainer_new(&trainer, backend, &config, heads, 2, &options, &err));
        assert_ok(agglo_trainer_init(trainer, 4, &err));
        before = all_values(trainer, backend, &n);
        batch.plan.step = 0;
        batch.plan.lr = 100.0;
        assert_ok(agglo_trainer_step(trainer, &batch, &metrics, &err));
        norm = metrics.grad_norm;
        after = all_values(trainer, backend, &n);
        moved[clipped] = 0.0;
        for (int64_t i = 0; i < n; i++) {
            double d = (double)after[i] - (double)before[i];

            moved[clipped] += d * d;
        }
        moved[clipped] = sqrt(moved[clipped]);
        agglo_free(after);
        agglo_free(before);
        agglo_trainer_free(trainer);
    }
    assert_true(fabs(moved[0] / moved[1] - 10.0) < 0.05);
    clear_batch(&batch);
    agglo_backend_free(backend);
}

/* The n-th allocation fails, for every n: one clean error, nothing leaks. */
static void test_out_of_memory(void **state)
{
    agglo_student_config config = tiny();
    agglo_trainer_config options = agglo_trainer_config_default();
    agglo_backend *backend;
    agglo_trainer *trainer;
    agglo_batch batch;
    agglo_metrics metrics;
    agglo_err err = {0};
    bool done = false;

    (void)state;
    make_batch(&batch, 1);
    for (int64_t n = 0; !done; n++) {
        int64_t live = agglo_alloc_counts().n_live;
        agglo_status status;

        assert_true(n < 2000);
        assert_ok(agglo_backend_cpu_new(&backend, 1, &err)); /* it keeps scratch, so each round has its own */
        agglo_alloc_fail_after(n);
        status = agglo_trainer_new(&trainer, backend, &config, heads, 2, &options, &err);
        if (status == AGGLO_OK) {
            status = agglo_trainer_step(trainer, &batch, &metrics, &err);
            agglo_trainer_free(trainer);
        }
        agglo_alloc_fail_after(-1);
        agglo_backend_free(backend);
        done = status == AGGLO_OK;
        assert_true(done || (status == AGGLO_E_MEMORY && err.status == status));
        if (agglo_alloc_counts().n_live != live) {
            fail_msg("%lld blocks leak when allocation %lld fails", (long long)(agglo_alloc_counts().n_live - live),
                     (long long)n);
        }
        agglo_err_clear(&err);
    }
    clear_batch(&batch);
}

/* The same for checkpoints: a failed save leaves no file behind, a failed load an error. */
static void test_checkpoint_out_of_memory(void **state)
{
    agglo_student_config config = tiny();
    const char *run = test_dir(), *path = test_path(run, "checkpoint-00000000.safetensors");
    agglo_backend *backend;
    agglo_trainer *trainer;
    agglo_status status = AGGLO_E_MEMORY;
    agglo_err err = {0};
    bool found;

    (void)state;
    assert_ok(agglo_backend_cpu_new(&backend, 1, &err));
    trainer = make(backend, &config, 1);
    for (int load = 0; load < 2; load++) {
        for (int64_t n = 0; n == 0 || status != AGGLO_OK; n++) {
            int64_t live = agglo_alloc_counts().n_live;

            assert_true(n < 2000);
            agglo_err_clear(&err);
            agglo_alloc_fail_after(n);
            status = load ? agglo_checkpoint_load(trainer, run, "recipe", &found, &err)
                          : agglo_checkpoint_save(trainer, run, "recipe", 1, &err);
            agglo_alloc_fail_after(-1);
            assert_true(status == AGGLO_OK || (status == AGGLO_E_MEMORY && err.status == status));
            assert_int_equal(agglo_alloc_counts().n_live, live);
            if (load) {
                assert_true(status != AGGLO_OK || found);
            } else if (status != AGGLO_OK && agglo_path_exists(path)) {
                /* written whole, and then the list of old ones could not be had */
                assert_ok((agglo_err_clear(&err), agglo_checkpoint_load(trainer, run, "recipe", &found, &err)));
            }
        }
    }
    agglo_trainer_free(trainer);
    agglo_backend_free(backend);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradients_cls),
        cmocka_unit_test(test_gradients_avg),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_threads_bf16),
        cmocka_unit_test(test_resume),
        cmocka_unit_test(test_resume_bf16),
        cmocka_unit_test(test_copies_bf16),
        cmocka_unit_test(test_damaged_checkpoint),
        cmocka_unit_test(test_steady_state),
        cmocka_unit_test(test_steady_state_bf16),
        cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_weight_zero),
        cmocka_unit_test(test_clip),
        cmocka_unit_test(test_out_of_memory),
        cmocka_unit_test(test_checkpoint_out_of_memory),
    };

    return test_run("trainer", tests);
}
