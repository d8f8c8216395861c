/* Every layout that teachers are published in against the published code: tiny random models in tests/fixtures/teachers/layouts, made by
 * script/fixtures/make_layout_fixtures.py (transformers, OpenCLIP, timm, facebookresearch/dinov2). */
#include <math.h>

#include "tests/support/checkpoints.h"

/* Float32 sums in another order: 5e-6 is typical at these depths, a wrong activation or position rule gives 1e-2 and more. */
#define TOLERANCE 1e-4

static agglo_backend *backend;

/* As pattern_pixels of the script. */
static uint8_t *pattern_pixels(int height, int width)
{
    agglo_err err = {0};
    uint8_t *out = (uint8_t *)agglo_alloc((size_t)height * (size_t)width * 3, 1, &err), *at = out;

    assert_non_null(out);
    for (int y = 0; y < height; y++) {
        for (int x = 0; x < width; x++) {
            for (int c = 0; c < 3; c++) {
                int value = ((x * x * (c + 1) + y * y * 2 + x * y * 3) / 97 + 31 * c) % 512;

                *at++ = (uint8_t)(value < 256 ? value : 511 - value);
            }
        }
    }
    return out;
}

static const agglo_st_tensor *output(const agglo_safetensors *st, const char *name, const char *what)
{
    char full[128];
    const agglo_st_tensor *t;

    snprintf(full, sizeof full, "test.%s.%s", name, what);
    t = agglo_safetensors_find(st, full);
    if (t == NULL && strcmp(what, "pixels") != 0) {
        fail_msg("%s has no %s", agglo_safetensors_path(st), full);
    }
    return t;
}

/* The outputs in `results` of a case that `options.weights` must give; returns the larger distance. */
static double run_case(const char *results, const char *name, const agglo_teacher_options *options)
{
    agglo_err err = {0};
    agglo_safetensors *st;
    agglo_encoder teacher;
    const agglo_st_tensor *pixels, *summary, *spatial;
    float *got_summary, *got_spatial;
    uint8_t *input;
    int batch, height, width;
    double worst;

    assert_ok(agglo_safetensors_open(&st, results, &err));
    assert_ok(agglo_teacher_open(&teacher, backend, options, &err));
    pixels = output(st, name, "pixels");
    summary = output(st, name, "summary");
    spatial = output(st, name, "spatial");
    batch = (int)spatial->shape[0];
    height = (int)spatial->shape[1] * teacher.info.patch;
    width = (int)spatial->shape[2] * teacher.info.patch;
    assert_int_equal(summary->shape[0], batch);
    assert_int_equal(summary->shape[1], teacher.info.summary_dim);
    assert_int_equal(spatial->shape[3], teacher.info.spatial_dim);
    if (pixels != NULL) {
        assert_true(pixels->shape[0] == batch && pixels->shape[1] == height && pixels->shape[2] == width);
        input = (uint8_t *)agglo_alloc(pixels->n_bytes, 1, &err);
        assert_non_null(input);
        memcpy(input, pixels->data, pixels->n_bytes);
    } else {
        assert_int_equal(batch, 1);
        input = pattern_pixels(height, width);
    }
    got_summary = (float *)agglo_alloc((size_t)summary->n_elements, sizeof(float), &err);
    got_spatial = (float *)agglo_alloc((size_t)spatial->n_elements, sizeof(float), &err);
    assert_true(got_summary != NULL && got_spatial != NULL);
    assert_ok(teacher.encode(teacher.self, input, NULL, batch, height, width, got_summary, got_spatial, &err));
    worst = fmax(test_distance(got_summary, summary), test_distance(got_spatial, spatial));
    if (getenv("AGGLO_TEST_VERBOSE") != NULL) {
        printf("%s %s: %.3g\n", agglo_path_base(results), name, worst);
    }
    agglo_free(got_summary);
    agglo_free(got_spatial);
    agglo_free(input);
    agglo_encoder_clear(&teacher);
    agglo_safetensors_close(st);
    return worst;
}

static const char *layout_fixture(const char *name)
{
    char path[160];

    snprintf(path, sizeof path, "teachers/layouts/%s", name);
    return test_fixture(path);
}

static void check(const char *model, const char *name, agglo_teacher_options options)
{
    char file[96];
    double worst;

    snprintf(file, sizeof file, "%s.safetensors", model);
    options.weights = layout_fixture(file);
    worst = run_case(options.weights, name, &options);
    if (!(worst < TOLERANCE)) {
        fail_msg("%s %s: differs by %.3g, allowed %.3g", model, name, worst, TOLERANCE);
    }
}

/* Cases with -hub or -hf ask for that rule, others leave it to the layout. */
static void check_all(const char *model, const char *const *cases, size_t n, bool preproj)
{
    for (size_t i = 0; i < n; i++) {
        agglo_teacher_options options = agglo_teacher_options_default();

        options.preproj = preproj;
        options.pos_interp = strstr(cases[i], "-hub") != NULL  ? AGGLO_POS_INTERP_HUB
                             : strstr(cases[i], "-hf") != NULL ? AGGLO_POS_INTERP_HF
                                                               : AGGLO_POS_INTERP_AUTO;
        check(model, cases[i], options);
    }
}

static void clip_of_transformers(void **state)
{
    static const char *const cases[] = {"native", "rect-hf"};

    (void)state;
    check_all("hf-clip-model", cases, AGGLO_COUNT(cases), false);
    check_all("hf-clip-vision", cases, AGGLO_COUNT(cases), true);
}

static void clip_of_openclip(void **state)
{
    static const char *const cases[] = {"native", "rect-hub", "rect-hf"}, *const large[] = {"336-hub", "336-hf"};

    (void)state;
    check_all("open-clip", cases, AGGLO_COUNT(cases), false);
    check_all("open-clip-quick", cases, AGGLO_COUNT(cases), false);
    check_all("open-clip-336", large, AGGLO_COUNT(large), false);
    check("open-clip", "rect-hub", agglo_teacher_options_default()); /* what AUTO means */
}

static void clip_of_timm(void **state)
{
    static const char *const cases[] = {"native", "rect-hub"};

    (void)state;
    check_all("timm-clip", cases, AGGLO_COUNT(cases), false);
}

/* Names of a state_dict in memory. */
static void dinov2_of_transformers(void **state)
{
    static const char *const cases[] = {"native", "rect"};

    (void)state;
    check_all("hf-dinov2-state", cases, AGGLO_COUNT(cases), false);
    check_all("hf-dinov2-state-swiglu", cases, AGGLO_COUNT(cases), false);
}

/* Rules of positions are the hub's without a word: offset 0.1 without registers, antialias with them. */
static void dinov2_of_the_hub(void **state)
{
    static const char *const cases[] = {"native", "small", "rect", "large"};
    static const char *const published[] = {"518x518", "224x224", "252x196"};

    (void)state;
    check_all("hub-dinov2", cases, AGGLO_COUNT(cases), false);
    check_all("hub-dinov2-reg", cases, AGGLO_COUNT(cases), false);
    check_all("hub-dinov2-swiglu", cases, AGGLO_COUNT(cases), false);
    check_all("hub-dinov2-chunked", cases, AGGLO_COUNT(cases), false);
    check_all("hub-dinov2-518", published, AGGLO_COUNT(published), false);
    check_all("hub-dinov2-reg-518", published + 1, AGGLO_COUNT(published) - 1, false);
}

static void sixteen_bits(void **state)
{
    (void)state;
    check("open-clip-fp16", "native", agglo_teacher_options_default());
    check("open-clip-bf16", "native", agglo_teacher_options_default());
}

/* By the folder, the index and each shard; the same fingerprint by all. */
static void sharded(void **state)
{
    static const char *const names[] = {"sharded", "sharded/model.safetensors.index.json",
                                        "sharded/model-00001-of-00003.safetensors",
                                        "sharded/model-00003-of-00003.safetensors"};

    (void)state;
    for (size_t i = 0; i < AGGLO_COUNT(names); i++) {
        agglo_teacher_options options = agglo_teacher_options_default();

        options.weights = layout_fixture(names[i]);
        assert_true(run_case(layout_fixture("sharded-outputs.safetensors"), "native", &options) < TOLERANCE);
    }
}

/* The tests can fail: another activation or rule is far off. */
static void wrong_choices_show(void **state)
{
    agglo_teacher_options options = agglo_teacher_options_default();

    (void)state;
    options.weights = layout_fixture("open-clip-quick.safetensors");
    options.act = "gelu";
    assert_true(run_case(options.weights, "native", &options) > 1e-3);
    options.act = NULL;
    options.pos_interp = AGGLO_POS_INTERP_HF;
    assert_true(run_case(options.weights, "rect-hub", &options) > 1e-3);
    options.weights = layout_fixture("hub-dinov2-518.safetensors");
    assert_true(run_case(options.weights, "224x224", &options) > 1e-3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(clip_of_transformers),
        cmocka_unit_test(clip_of_openclip),
        cmocka_unit_test(clip_of_timm),
        cmocka_unit_test(dinov2_of_transformers),
        cmocka_unit_test(dinov2_of_the_hub),
        cmocka_unit_test(sixteen_bits),
        cmocka_unit_test(sharded),
        cmocka_unit_test(wrong_choices_show),
    };
    agglo_err err = {0};
    int n_failed;

    if (agglo_backend_cpu_new(&backend, 0, &err) != AGGLO_OK) {
        fprintf(stderr, "%s\n", err.why);
        return 1;
    }
    test_filter();
    n_failed = _cmocka_run_group_tests("layout_parity", tests, AGGLO_COUNT(tests), NULL, NULL);
    agglo_backend_free(backend);
    return test_finish("layout_parity", n_failed);
}
