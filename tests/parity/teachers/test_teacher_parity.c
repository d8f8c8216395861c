/* Teachers against transformers and OpenCLIP's position rule: tiny models with random weights (every norm, LayerScale and bias random
 * too) in tests/fixtures/teachers, and the two trained teachers of weights/. Made by script/fixtures/make_teacher_fixtures.py. */
#include <math.h>

#include "tests/support/checkpoints.h"

/* Float32 sums in another order: 5e-6 is typical at these depths, a wrong activation or position rule gives 1e-2 and more. */
#define TOLERANCE 1e-4
/* The trained teachers stand in weights/ as float16, the outputs are of the float32 originals: 2^-11 of each weight. */
#define TOLERANCE_F16 1e-2

static agglo_backend *backend;

static const agglo_st_tensor *tensor(const agglo_safetensors *st, const char *group, const char *name, const char *what)
{
    char full[128];
    const agglo_st_tensor *t;

    snprintf(full, sizeof full, "%s%s.%s", group, name, what);
    t = agglo_safetensors_find(st, full);
    if (t == NULL) {
        fail_msg("%s has no %s", agglo_safetensors_path(st), full);
    }
    return t;
}

static void check_outputs(const agglo_encoder *teacher, const agglo_st_tensor *pixels, const agglo_st_tensor *summary,
                          const agglo_st_tensor *spatial, double tolerance, const char *label)
{
    agglo_err err = {0};
    int batch = (int)pixels->shape[0], height = (int)pixels->shape[1], width = (int)pixels->shape[2];
    float *got_summary = (float *)agglo_alloc((size_t)summary->n_elements, sizeof(float), &err);
    float *got_spatial = (float *)agglo_alloc((size_t)spatial->n_elements, sizeof(float), &err);
    uint8_t *copy = (uint8_t *)agglo_alloc(pixels->n_bytes, 1, &err);
    double a, b;

    assert_true(got_summary != NULL && got_spatial != NULL && copy != NULL);
    memcpy(copy, pixels->data, pixels->n_bytes);
    assert_int_equal(summary->shape[1], teacher->info.summary_dim);
    assert_int_equal(spatial->shape[1], height / teacher->info.patch);
    assert_int_equal(spatial->shape[2], width / teacher->info.patch);
    assert_int_equal(spatial->shape[3], teacher->info.spatial_dim);
    assert_ok(teacher->encode(teacher->self, copy, NULL, batch, height, width, got_summary, got_spatial, &err));
    a = test_distance(got_summary, summary);
    b = test_distance(got_spatial, spatial);
    if (a >= tolerance || b >= tolerance) {
        fail_msg("%s: summary differs by %.3g, spatial by %.3g, allowed %.3g", label, a, b, tolerance);
    }
    agglo_free(got_summary);
    agglo_free(got_spatial);
    agglo_free(copy);
}

static void check_case(const char *model, const char *name, agglo_teacher_options options)
{
    agglo_err err = {0};
    agglo_safetensors *st;
    agglo_encoder teacher;
    char path[128], label[160];
    const char *summary = options.preproj ? "preproj" : "summary", *spatial = options.spatial_raw ? "raw" : "spatial";

    snprintf(path, sizeof path, "teachers/%s.safetensors", model);
    options.weights = test_fixture(path);
    snprintf(label, sizeof label, "%s %s batch %d", model, name, options.max_batch);
    assert_ok(agglo_safetensors_open(&st, options.weights, &err));
    assert_ok(agglo_teacher_open(&teacher, backend, &options, &err));
    check_outputs(&teacher, tensor(st, "test.", name, "pixels"), tensor(st, "test.", name, summary),
                  tensor(st, "test.", name, spatial), TOLERANCE, label);
    agglo_encoder_clear(&teacher);
    agglo_safetensors_close(st);
}

static void check_model(const char *model, const char *const *cases, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        agglo_teacher_options options = agglo_teacher_options_default();

        options.pos_interp = strstr(cases[i], "-hub") != NULL  ? AGGLO_POS_INTERP_HUB
                             : strstr(cases[i], "-hf") != NULL ? AGGLO_POS_INTERP_HF
                                                               : AGGLO_POS_INTERP_AUTO;
        check_case(model, cases[i], options);
        options.max_batch = 1; /* the batch of two is cut */
        check_case(model, cases[i], options);
    }
}

static const char *const clip_cases[] = {"native", "large-hf", "large-hub", "small-hub", "rect-hf", "rect-hub"};
static const char *const dinov2_cases[] = {"native", "large-hf", "small-hf", "rect-hf", "small-hub", "rect-hub"};

static void clip_gelu(void **state)
{
    (void)state;
    check_model("clip-gelu", clip_cases, AGGLO_COUNT(clip_cases));
}

static void clip_quick_gelu(void **state)
{
    (void)state;
    check_model("clip-quick-gelu", clip_cases, AGGLO_COUNT(clip_cases));
}

static void dinov2_gelu(void **state)
{
    (void)state;
    check_model("dinov2-gelu", dinov2_cases, AGGLO_COUNT(dinov2_cases));
}

static void dinov2_swiglu(void **state)
{
    (void)state;
    check_model("dinov2-swiglu", dinov2_cases, AGGLO_COUNT(dinov2_cases));
}

static void dinov2_registers(void **state)
{
    (void)state;
    check_model("dinov2-reg", dinov2_cases, AGGLO_COUNT(dinov2_cases));
}

/* Without a word from the caller, CLIP resamples as OpenCLIP does and DINOv2 as its layout does. */
static void default_rule(void **state)
{
    (void)state;
    check_case("clip-gelu", "rect-hub", agglo_teacher_options_default());
    check_case("dinov2-gelu", "rect-hf", agglo_teacher_options_default());
    check_case("dinov2-reg", "rect-hf", agglo_teacher_options_default());
}

static void clip_options(void **state)
{
    agglo_teacher_options options = agglo_teacher_options_default();

    (void)state;
    options.preproj = true;
    check_case("clip-gelu", "native", options);
    options.spatial_raw = true;
    check_case("clip-quick-gelu", "native", options);
    options.preproj = false;
    check_case("clip-gelu", "native", options);
}

static void check_trained(const char *name, const char *weights, double tolerance)
{
    agglo_teacher_options options = agglo_teacher_options_default();
    agglo_err err = {0};
    agglo_safetensors *st;
    agglo_encoder teacher;

    options.weights = weights;
    assert_ok(agglo_safetensors_open(&st, test_fixture("teachers/trained.safetensors"), &err));
    assert_ok(agglo_teacher_open(&teacher, backend, &options, &err));
    check_outputs(&teacher, agglo_safetensors_find(st, "pixels"), tensor(st, "", name, "summary"),
                  tensor(st, "", name, "spatial"), tolerance, weights);
    agglo_encoder_clear(&teacher);
    agglo_safetensors_close(st);
}

static void shipped_weights(void **state)
{
    (void)state;
    check_trained("clip-tiny", "weights/clip-tiny.safetensors", TOLERANCE_F16);
    check_trained("dinov2-tiny", "weights/dinov2-tiny.safetensors", TOLERANCE_F16);
}

static void trained_originals(void **state)
{
    const char *clip = test_shared("teachers/clip-tiny.safetensors"),
               *dinov2 = test_shared("teachers/dinov2-tiny.safetensors");

    (void)state;
    if (clip == NULL || dinov2 == NULL) {
        skip();
    }
    check_trained("clip-tiny", clip, TOLERANCE);
    check_trained("dinov2-tiny", dinov2, TOLERANCE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(clip_gelu),     cmocka_unit_test(clip_quick_gelu),  cmocka_unit_test(dinov2_gelu),
        cmocka_unit_test(dinov2_swiglu), cmocka_unit_test(dinov2_registers), cmocka_unit_test(default_rule),
        cmocka_unit_test(clip_options),  cmocka_unit_test(shipped_weights),  cmocka_unit_test(trained_originals),
    };
    agglo_err err = {0};
    int n_failed;

    if (agglo_backend_cpu_new(&backend, 0, &err) != AGGLO_OK) {
        fprintf(stderr, "%s\n", err.why);
        return 1;
    }
    test_filter();
    n_failed = _cmocka_run_group_tests("teacher_parity", tests, AGGLO_COUNT(tests), NULL, NULL);
    agglo_backend_free(backend);
    return test_finish("teacher_parity", n_failed);
}
