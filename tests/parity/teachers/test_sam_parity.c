/* SAM's image encoder against segment_anything and transformers: tiny models with random weights in tests/fixtures/teachers, and one
 * picture from the bytes of its file. Made by script/fixtures/make_sam_fixtures.py. */
#include <math.h>

#include "ingest/render.h"
#include "tests/support/checkpoints.h"

/* 1e-6 is typical; decoding and resizing agree to the byte */
#define TOLERANCE 1e-4

static agglo_backend *backend;

static const agglo_st_tensor *tensor(const agglo_safetensors *st, const char *name, const char *what)
{
    char full[128];
    const agglo_st_tensor *t;

    snprintf(full, sizeof full, "test.%s.%s", name, what);
    t = agglo_safetensors_find(st, full);
    if (t == NULL) {
        fail_msg("%s has no %s", agglo_safetensors_path(st), full);
    }
    return t;
}

typedef struct opened {
    agglo_safetensors *st;
    agglo_encoder teacher;
} opened;

static opened open_model(const char *model, agglo_teacher_options options)
{
    agglo_err err = {0};
    opened o;
    char path[128];

    snprintf(path, sizeof path, "teachers/%s.safetensors", model);
    options.weights = test_fixture(path);
    assert_ok(agglo_safetensors_open(&o.st, options.weights, &err));
    assert_ok(agglo_teacher_open(&o.teacher, backend, &options, &err));
    return o;
}

static void close_model(opened *o)
{
    agglo_encoder_clear(&o->teacher);
    agglo_safetensors_close(o->st);
}

/* Both outputs of an input against the case's. */
static void compare(const opened *o, const char *name, bool neck, const uint8_t *pixels, const agglo_extent *extents,
                    int height, int width)
{
    const agglo_st_tensor *summary = tensor(o->st, name, "summary"),
                          *spatial = tensor(o->st, name, neck ? "neck" : "spatial");
    agglo_err err = {0};
    int batch = (int)spatial->shape[0];
    float *got_summary = (float *)agglo_alloc((size_t)summary->n_elements, sizeof(float), &err);
    float *got_spatial = (float *)agglo_alloc((size_t)spatial->n_elements, sizeof(float), &err);
    double a, b;

    assert_true(got_summary != NULL && got_spatial != NULL);
    assert_int_equal(summary->shape[1], o->teacher.info.summary_dim);
    assert_int_equal(spatial->shape[1], height / o->teacher.info.patch);
    assert_int_equal(spatial->shape[2], width / o->teacher.info.patch);
    assert_int_equal(spatial->shape[3], o->teacher.info.spatial_dim);
    assert_ok(
        o->teacher.encode(o->teacher.self, pixels, extents, batch, height, width, got_summary, got_spatial, &err));
    a = test_distance(got_summary, summary);
    b = test_distance(got_spatial, spatial);
    if (a >= TOLERANCE || b >= TOLERANCE) {
        fail_msg("%s: summary differs by %.3g, spatial by %.3g, allowed %.3g", name, a, b, TOLERANCE);
    }
    printf("%s %s%s: summary %.2g, spatial %.2g\n", agglo_safetensors_path(o->st), name, neck ? " (neck)" : "", a, b);
    agglo_free(got_summary);
    agglo_free(got_spatial);
}

static void check_model(const char *model, const char *const *cases, size_t n)
{
    for (size_t i = 0; i < 2 * n; i++) {
        agglo_teacher_options options = agglo_teacher_options_default();
        const agglo_st_tensor *pixels;
        agglo_err err = {0};
        uint8_t *copy;
        opened o;

        options.neck = i % 2 == 1;
        options.max_batch = i % 2 == 1 ? 1 : 32; /* the batch of two is cut */
        o = open_model(model, options);
        pixels = tensor(o.st, cases[i / 2], "pixels");
        copy = (uint8_t *)agglo_alloc(pixels->n_bytes, 1, &err);
        memcpy(copy, pixels->data, pixels->n_bytes);
        compare(&o, cases[i / 2], options.neck, copy, NULL, (int)pixels->shape[1], (int)pixels->shape[2]);
        agglo_free(copy);
        close_model(&o);
    }
}

static void original(void **state)
{
    static const char *const cases[] = {"native", "large", "small", "rect"};

    (void)state;
    check_model("sam-original", cases, AGGLO_COUNT(cases));
}

static void transformers(void **state)
{
    static const char *const cases[] = {"native", "large"};

    (void)state;
    check_model("sam-hf", cases, AGGLO_COUNT(cases));
}

/* A JPEG, not square: decoded, resized, normalised and padded as transformers' image processor does. */
static void picture(void **state)
{
    agglo_teacher_options options = agglo_teacher_options_default();
    const agglo_decode_options decode = agglo_decode_options_default();
    agglo_renderer *renderer;
    const agglo_st_tensor *jpeg;
    agglo_extent extent;
    agglo_err err = {0};
    uint8_t pixels[56 * 56 * 3];

    (void)state;
    assert_ok(agglo_renderer_new(&renderer, &decode, &err));
    for (int neck = 0; neck < 2; neck++) {
        opened o;

        options.neck = neck == 1;
        o = open_model("sam-hf", options);
        jpeg = tensor(o.st, "picture", "pixels");
        assert_int_equal(o.teacher.info.preprocess.size, 56);
        assert_ok(agglo_render_whole(renderer, (agglo_bytes){jpeg->data, jpeg->n_bytes}, &o.teacher.info.preprocess,
                                     pixels, &extent, &err));
        assert_true(extent.width == 56 && extent.height == 38);
        compare(&o, "picture", options.neck, pixels, &extent, 56, 56);
        close_model(&o);
    }
    agglo_renderer_free(renderer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(original),
        cmocka_unit_test(transformers),
        cmocka_unit_test(picture),
    };
    agglo_err err = {0};
    int n_failed;

    if (agglo_backend_cpu_new(&backend, 0, &err) != AGGLO_OK) {
        fprintf(stderr, "%s\n", err.why);
        return 1;
    }
    test_filter();
    n_failed = _cmocka_run_group_tests("sam_parity", tests, AGGLO_COUNT(tests), NULL, NULL);
    agglo_backend_free(backend);
    return test_finish("sam_parity", n_failed);
}
