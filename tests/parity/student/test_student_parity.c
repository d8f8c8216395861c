/* The student against the PyTorch transcription of the published model (script/fixtures/make_student_fixtures.py):
 * features, losses, gradients of every parameter, and a whole AdamW run.
 *
 * Tolerances, relative to the largest magnitude of a tensor: 1e-4 for features and gradients (float32 against
 * float64 over two blocks; measured below 1e-5), 1e-3 for losses of 40 steps (rounding compounds through the
 * updates; measured below 1e-5).
 */
#include <math.h>

#include "student/trainer.h"
#include "tests/support/support.h"

static agglo_backend *backend;

static const agglo_st_tensor *tensor(const agglo_safetensors *st, const char *fmt, ...) AGGLO_PRINTF(2, 3);

static const agglo_st_tensor *tensor(const agglo_safetensors *st, const char *fmt, ...)
{
    char name[160];
    const agglo_st_tensor *found;
    va_list args;

    va_start(args, fmt);
    vsnprintf(name, sizeof name, fmt, args);
    va_end(args);
    found = agglo_safetensors_find(st, name);
    if (found == NULL) {
        fail_msg("the fixture has no %s", name);
    }
    return found;
}

/* Floats of a tensor in a new block. */
static float *floats(const agglo_st_tensor *t)
{
    agglo_err err = {0};
    float *out = agglo_alloc((size_t)t->n_elements, sizeof *out, &err);

    assert_non_null(out);
    agglo_dtype_to_f32(out, t->data, t->dtype, (size_t)t->n_elements);
    return out;
}

static void assert_close(const char *name, const float *found, const float *expected, int64_t n, double tolerance)
{
    double largest = 0.0, worst = 0.0;

    for (int64_t i = 0; i < n; i++) {
        largest = fmax(largest, fabs((double)expected[i]));
        worst = fmax(worst, fabs((double)found[i] - (double)expected[i]));
        if (!isfinite(found[i])) {
            fail_msg("%s[%lld] is not finite", name, (long long)i);
        }
    }
    if (worst > tolerance * largest) {
        fail_msg("%s: differs by %.3g, largest magnitude %.3g", name, worst, largest);
    }
}

static void assert_tensor_close(const agglo_st_tensor *expected, const float *found, double tolerance)
{
    float *values = floats(expected);

    assert_close(expected->name, found, values, expected->n_elements, tolerance);
    agglo_free(values);
}

/* Batch b of a fixture; targets alias copies that clear_batch frees. */
static void read_batch(agglo_batch *batch, const agglo_safetensors *st, int b, const agglo_head_config *heads,
                       size_t n_heads)
{
    const agglo_st_tensor *pixels = tensor(st, "batch.%d.pixels", b), *valid = tensor(st, "batch.%d.valid", b);
    agglo_err err = {0};

    memset(batch, 0, sizeof *batch);
    batch->batch = (int)pixels->shape[0];
    batch->size = (int)pixels->shape[1];
    batch->pixels = agglo_alloc(pixels->n_bytes, 1, &err);
    memcpy(batch->pixels, pixels->data, pixels->n_bytes);
    batch->n_teachers = n_heads;
    for (size_t i = 0; i < n_heads; i++) {
        const agglo_st_tensor *summary = tensor(st, "batch.%d.%s.summary", b, heads[i].name);
        const agglo_st_tensor *spatial = tensor(st, "batch.%d.%s.spatial", b, heads[i].name);
        agglo_batch_targets *to = &batch->targets[i];

        to->summary_dtype = summary->dtype;
        to->spatial_dtype = spatial->dtype;
        to->summary = agglo_alloc(summary->n_bytes, 1, &err);
        to->spatial = agglo_alloc(spatial->n_bytes, 1, &err);
        to->valid = agglo_alloc((size_t)batch->batch, sizeof(float), &err);
        memcpy(to->summary, summary->data, summary->n_bytes);
        memcpy(to->spatial, spatial->data, spatial->n_bytes);
        memcpy(to->valid, valid->data + i * (size_t)batch->batch * sizeof(float), (size_t)batch->batch * sizeof(float));
        batch->plan.summary_weight[i] = heads[i].summary_weight;
        batch->plan.spatial_weight[i] = heads[i].spatial_weight;
    }
}

static void clear_batch(agglo_batch *batch)
{
    for (size_t i = 0; i < batch->n_teachers; i++) {
        agglo_free(batch->targets[i].summary);
        agglo_free(batch->targets[i].spatial);
        agglo_free(batch->targets[i].valid);
    }
    agglo_free(batch->pixels);
}

typedef struct fixture {
    agglo_safetensors *st;
    agglo_trainer *trainer;
    agglo_head_config heads[AGGLO_MAX_HEADS];
    size_t n_heads;
} fixture;

static void open_fixture(fixture *f, const char *path)
{
    agglo_student_config config;
    agglo_trainer_config options = agglo_trainer_config_default();
    agglo_err err = {0};

    assert_ok(agglo_safetensors_open(&f->st, path, &err));
    assert_true(agglo_student_is(f->st));
    assert_ok(agglo_student_read_config(f->st, &config, f->heads, &f->n_heads, &err));
    assert_ok(agglo_trainer_new(&f->trainer, backend, &config, f->heads, f->n_heads, &options, &err));
    assert_ok(agglo_params_load(agglo_student_params(agglo_trainer_student(f->trainer)), f->st, &err));
}

static void close_fixture(fixture *f)
{
    agglo_trainer_free(f->trainer);
    agglo_safetensors_close(f->st);
}

static void check_encoder(const char *path, const agglo_safetensors *st, const char *pixels_name, const char *out)
{
    const agglo_st_tensor *pixels = tensor(st, "%s", pixels_name);
    const agglo_st_tensor *summary = tensor(st, "%s.summary", out), *spatial = tensor(st, "%s.spatial", out);
    agglo_encoder encoder = {0};
    agglo_err err = {0};
    float *found_summary = agglo_alloc((size_t)summary->n_elements, sizeof(float), &err);
    float *found_spatial = agglo_alloc((size_t)spatial->n_elements, sizeof(float), &err);

    assert_ok(agglo_student_open(&encoder, backend, path, NULL, 0, (int)pixels->shape[0], &err));
    assert_int_equal(encoder.info.summary_dim, summary->shape[1]);
    assert_ok(encoder.encode(encoder.self, pixels->data, NULL, (int)pixels->shape[0], (int)pixels->shape[1],
                             (int)pixels->shape[2], found_summary, found_spatial, &err));
    assert_tensor_close(summary, found_summary, 1e-4);
    assert_tensor_close(spatial, found_spatial, 1e-4);
    agglo_encoder_clear(&encoder);
    agglo_free(found_spatial);
    agglo_free(found_summary);
}

static void check_metrics(const fixture *f, const agglo_metrics *m)
{
    float *loss = floats(tensor(f->st, "out.loss")), *values = floats(tensor(f->st, "out.values"));

    assert_true(fabs(m->loss - (double)loss[0]) < 1e-5);
    for (size_t i = 0; i < f->n_heads; i++) {
        const float *v = values + 4 * i; /* summary cos, spatial cos, summary smooth-L1, spatial smooth-L1 */

        assert_true(fabs(agglo_metrics_summary_cos(m, i) - (double)v[0]) < 1e-5);
        assert_true(fabs(agglo_metrics_spatial_cos(m, i) - (double)v[1]) < 1e-5);
        assert_true(fabs(m->summary[i].smooth_l1 / m->summary[i].n_tokens - (double)v[2]) < 1e-5);
        assert_true(fabs(m->spatial[i].smooth_l1 / m->spatial[i].n_tokens - (double)v[3]) < 1e-5);
    }
    agglo_free(values);
    agglo_free(loss);
}

/* Features, losses, and with a learning rate of zero the gradients that a step leaves behind. */
static void check_case(const char *name)
{
    char file[64];
    const char *path;
    fixture f;
    agglo_batch batch;
    agglo_metrics metrics;
    agglo_params *params;
    agglo_err err = {0};
    double sum = 0.0;

    snprintf(file, sizeof file, "student/%s.safetensors", name);
    path = test_fixture(file);
    open_fixture(&f, path);
    read_batch(&batch, f.st, 0, f.heads, f.n_heads);
    check_encoder(path, f.st, "batch.0.pixels", "out");

    assert_ok(agglo_trainer_eval(f.trainer, &batch, &metrics, &err));
    check_metrics(&f, &metrics);
    assert_ok(agglo_trainer_step(f.trainer, &batch, &metrics, &err));
    check_metrics(&f, &metrics);
    params = agglo_student_params(agglo_trainer_student(f.trainer));
    for (size_t i = 0; i < agglo_params_count(params); i++) {
        const agglo_param *param = agglo_params_at(params, i);
        const agglo_st_tensor *expected = tensor(f.st, "grad/%s", param->name);
        float *found = agglo_alloc((size_t)expected->n_elements, sizeof(float), &err);

        assert_int_equal(expected->n_elements, agglo_tensor_count(&param->grad));
        agglo_download(backend, found, param->grad.data, agglo_tensor_bytes(&param->grad));
        assert_tensor_close(expected, found, 1e-4);
        for (int64_t k = 0; k < expected->n_elements; k++) {
            sum += (double)found[k] * (double)found[k];
        }
        agglo_free(found);
    }
    assert_true(fabs(metrics.grad_norm - sqrt(sum)) < 1e-5 * sqrt(sum));
    clear_batch(&batch);
    close_fixture(&f);
}

#define CASE(name)                                                                                                     \
    static void test_##name(void **state)                                                                              \
    {                                                                                                                  \
        (void)state;                                                                                                   \
        check_case(#name);                                                                                             \
    }

CASE(cls)
CASE(avg_registers)
CASE(head_v1_inner)
CASE(head_v2_inner)
CASE(resampled_table)
CASE(cut_table)

/* The table resampled and then cut, and the other way round. */
static void test_not_square(void **state)
{
    static const char *const files[2] = {"student/resampled_table.safetensors", "student/cut_table.safetensors"};

    (void)state;
    for (int i = 0; i < 2; i++) {
        const char *path = test_fixture(files[i]);
        agglo_safetensors *st;
        agglo_err err = {0};

        assert_ok(agglo_safetensors_open(&st, path, &err));
        check_encoder(path, st, "wide.pixels", "wide");
        agglo_safetensors_close(st);
    }
}

/* Forty AdamW steps over two batches with a cosine learning rate. */
static void test_adamw_run(void **state)
{
    static const char *const kept[] = {"patch_embed.weight", "pos_embed", "blocks.1.norm2.weight",
                                       "_heads.beta.fc1.weight"};
    const double pi = 3.14159265358979323846;
    fixture f;
    agglo_batch batches[2];
    agglo_metrics metrics;
    agglo_params *params;
    float *losses;
    double lr;
    int64_t n_steps;
    agglo_err err = {0};

    (void)state;
    open_fixture(&f, test_fixture("student/run.safetensors"));
    lr = strtod(agglo_safetensors_meta(f.st, "lr"), NULL);
    n_steps = tensor(f.st, "run.losses")->n_elements;
    losses = floats(tensor(f.st, "run.losses"));
    for (int b = 0; b < 2; b++) {
        read_batch(&batches[b], f.st, b, f.heads, f.n_heads);
    }
    for (int64_t t = 0; t < n_steps; t++) {
        agglo_batch *batch = &batches[t % 2];

        batch->plan.step = t;
        batch->plan.lr = 0.5 * lr * (1.0 + cos(pi * (double)t / (double)n_steps));
        assert_ok(agglo_trainer_step(f.trainer, batch, &metrics, &err));
        if (fabs(metrics.loss - (double)losses[t]) > 1e-3) {
            fail_msg("step %lld: loss %.6f, expected %.6f", (long long)t, metrics.loss, (double)losses[t]);
        }
    }
    params = agglo_student_params(agglo_trainer_student(f.trainer));
    for (size_t i = 0; i < AGGLO_COUNT(kept); i++) {
        const agglo_param *param = agglo_params_find(params, kept[i]);
        float *found = agglo_alloc((size_t)agglo_tensor_count(&param->value), sizeof(float), &err);

        agglo_download(backend, found, param->value.data, agglo_tensor_bytes(&param->value));
        assert_tensor_close(tensor(f.st, "run/%s", kept[i]), found, 1e-3);
        agglo_free(found);
    }
    agglo_free(losses);
    clear_batch(&batches[0]);
    clear_batch(&batches[1]);
    close_fixture(&f);
}

static int setup(void **state)
{
    agglo_err err = {0};

    (void)state;
    return agglo_backend_cpu_new(&backend, 2, &err) == AGGLO_OK ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    agglo_backend_free(backend);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_cls, setup, teardown),
        cmocka_unit_test_setup_teardown(test_avg_registers, setup, teardown),
        cmocka_unit_test_setup_teardown(test_head_v1_inner, setup, teardown),
        cmocka_unit_test_setup_teardown(test_head_v2_inner, setup, teardown),
        cmocka_unit_test_setup_teardown(test_resampled_table, setup, teardown),
        cmocka_unit_test_setup_teardown(test_cut_table, setup, teardown),
        cmocka_unit_test_setup_teardown(test_not_square, setup, teardown),
        cmocka_unit_test_setup_teardown(test_adamw_run, setup, teardown),
    };

    return test_run("student parity", tests);
}
