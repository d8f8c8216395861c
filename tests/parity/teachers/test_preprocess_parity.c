/* From the bytes of a picture to features, beside published processors and models: transformers' CLIPImageProcessor with CLIPModel and
 * BitImageProcessor with Dinov2Model, OpenCLIP's transform (shortest and squash) with its tower. Pictures, random models and expected values:
 * tests/fixtures/preprocess, made by script/fixtures/make_preprocess_fixtures.py. */
#include <math.h>

#include "base/hash.h"
#include "ingest/render.h"
#include "teachers/teacher.h"
#include "tests/support/support.h"

/* Pixels are equal to the bit; what is left is float32 sums in another order. A crop that is one pixel off gives 0.1. */
#define TOLERANCE 1e-4

static const char *const pictures[] = {"portrait.jpg", "landscape.jpg", "odd.jpg",     "small.jpg", "turned.jpg",
                                       "gray.jpg",     "cmyk.jpg",      "palette.png", "alpha.png", "large.jpg",
                                       "square.jpg",   "panorama.jpg",  "exact.jpg"};

static agglo_backend *backend;
static agglo_safetensors *expected;

/* max|a - b| / max|b| */
static double distance(const float *a, const char *pipeline, const char *picture, const char *what, int64_t n)
{
    const agglo_st_tensor *t;
    double worst = 0.0, largest = 0.0;
    char name[128];
    float *b;

    snprintf(name, sizeof name, "%s.%s.%s", pipeline, picture, what);
    t = agglo_safetensors_find(expected, name);
    assert_non_null(t);
    assert_int_equal(t->n_elements, n);
    b = agglo_alloc((size_t)n, sizeof *b, &(agglo_err){0});
    assert_non_null(b);
    agglo_dtype_to_f32(b, t->data, t->dtype, (size_t)n);
    for (int64_t i = 0; i < n; i++) {
        assert_true(isfinite(a[i]));
        worst = fmax(worst, fabs((double)a[i] - (double)b[i]));
        largest = fmax(largest, fabs((double)b[i]));
    }
    agglo_free(b);
    assert_true(largest > 0.1);
    return worst / largest;
}

static void prepare(const char *picture, const agglo_preprocess *pre, uint8_t *pixels)
{
    agglo_decode_options options = agglo_decode_options_default();
    char path[128];
    agglo_renderer *renderer;
    agglo_mapping file;
    agglo_extent extent;
    agglo_err err = {0};

    snprintf(path, sizeof path, "preprocess/%s", picture);
    assert_ok(agglo_map_file(test_fixture(path), &file, &err));
    assert_ok(agglo_renderer_new(&renderer, &options, &err));
    assert_ok(agglo_render_whole(renderer, (agglo_bytes){file.data, file.size}, pre, pixels, &extent, &err));
    agglo_renderer_free(renderer);
    agglo_unmap(&file);
}

static void check_pixels(const char *pipeline, const char *picture, const uint8_t *pixels, int size)
{
    char name[128], hex[65];
    agglo_sha256 sha;
    agglo_err err = {0};

    snprintf(name, sizeof name, "%s.%s", pipeline, picture);
    assert_ok(agglo_sha256_of(pixels, (size_t)size * (size_t)size * 3, &sha, &err));
    agglo_hex(sha.bytes, sizeof sha.bytes, hex);
    if (strcmp(hex, agglo_safetensors_meta(expected, name)) != 0) {
        fail_msg("%s: the prepared pixels differ", name);
    }
}

/* The pipeline as the checkpoint is opened, or with another fit and crop. */
static void check_pipeline(const char *pipeline, const char *model, const agglo_preprocess *other)
{
    agglo_teacher_options options = agglo_teacher_options_default();
    char path[128];
    agglo_encoder teacher;
    agglo_preprocess pre;
    agglo_err err = {0};
    int64_t n_spatial;
    int grid;
    uint8_t *pixels;
    float *summary, *spatial;

    snprintf(path, sizeof path, "preprocess/%s.safetensors", model);
    options.weights = test_fixture(path);
    options.size = 224;
    assert_ok(agglo_teacher_open(&teacher, backend, &options, &err));
    pre = teacher.info.preprocess;
    if (other != NULL) {
        pre.fit = other->fit;
        pre.centre = other->centre;
    }
    grid = pre.size / teacher.info.patch;
    n_spatial = (int64_t)grid * grid * teacher.info.spatial_dim;
    pixels = agglo_alloc(1, (size_t)pre.size * (size_t)pre.size * 3, &err);
    summary = agglo_alloc((size_t)teacher.info.summary_dim, sizeof *summary, &err);
    spatial = agglo_alloc((size_t)n_spatial, sizeof *spatial, &err);
    assert_true(pixels != NULL && summary != NULL && spatial != NULL);
    for (size_t i = 0; i < AGGLO_COUNT(pictures); i++) {
        double far_summary, far_spatial;

        prepare(pictures[i], &pre, pixels);
        check_pixels(pipeline, pictures[i], pixels, pre.size);
        assert_ok(teacher.encode(teacher.self, pixels, NULL, 1, pre.size, pre.size, summary, spatial, &err));
        far_summary = distance(summary, pipeline, pictures[i], "summary", teacher.info.summary_dim);
        far_spatial = distance(spatial, pipeline, pictures[i], "spatial", n_spatial);
        if (far_summary > TOLERANCE || far_spatial > TOLERANCE) {
            fail_msg("%s of %s: summary off by %.2e, spatial by %.2e", pipeline, pictures[i], far_summary, far_spatial);
        }
    }
    agglo_free(pixels);
    agglo_free(summary);
    agglo_free(spatial);
    agglo_encoder_clear(&teacher);
}

static void clip_of_transformers(void **state)
{
    (void)state;
    check_pipeline("clip", "clip", NULL);
}

static void dinov2_of_transformers(void **state)
{
    (void)state;
    check_pipeline("dinov2", "dinov2", NULL);
}

static void open_clip_shortest(void **state)
{
    (void)state;
    check_pipeline("open_clip", "clip", &(agglo_preprocess){.fit = AGGLO_FIT_CROP, .centre = AGGLO_CENTRE_EVEN});
}

static void open_clip_squash(void **state)
{
    (void)state;
    check_pipeline("dfn", "clip", &(agglo_preprocess){.fit = AGGLO_FIT_SQUASH});
}

/* The two crop rules are told apart by these pictures: the test above could not pass with one of them alone. */
static void the_crops_differ(void **state)
{
    (void)state;
    assert_string_not_equal(agglo_safetensors_meta(expected, "clip.portrait.jpg"),
                            agglo_safetensors_meta(expected, "open_clip.portrait.jpg"));
    assert_string_equal(agglo_safetensors_meta(expected, "clip.exact.jpg"),
                        agglo_safetensors_meta(expected, "open_clip.exact.jpg"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(clip_of_transformers), cmocka_unit_test(dinov2_of_transformers),
        cmocka_unit_test(open_clip_shortest),   cmocka_unit_test(open_clip_squash),
        cmocka_unit_test(the_crops_differ),
    };
    agglo_err err = {0};
    int n_failed;

    if (agglo_backend_cpu_new(&backend, 0, &err) != AGGLO_OK ||
        agglo_safetensors_open(&expected, test_fixture("preprocess/expected.safetensors"), &err) != AGGLO_OK) {
        fprintf(stderr, "%s\n", err.why);
        return 1;
    }
    test_filter();
    n_failed = _cmocka_run_group_tests("preprocess_parity", tests, AGGLO_COUNT(tests), NULL, NULL);
    agglo_safetensors_close(expected);
    agglo_backend_free(backend);
    return test_finish("preprocess_parity", n_failed);
}
