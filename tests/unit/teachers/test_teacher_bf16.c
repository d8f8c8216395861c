/* Teachers in BF16 beside the same teachers in F32: how far features are off, that they say so, and what they do not depend on.
 * AGGLO_TEST_DEVICE names another device than the CPU; AGGLO_TEST_TEACHERS a list of weights files (separated by ':') to compare as well. */
#include "teachers/pass.h"
#include "teachers/teacher.h"
#include "tests/parity/tensor/test_device.h"
#include "tests/support/support.h"

#include <math.h>

/* Least cosine of BF16 to F32 features: of summaries the worst picture, of spatial features the mean over all tokens. */
#define SUMMARY_COS 0.999
#define SPATIAL_COS 0.995

static const char *device;
static agglo_backend *backend;

static void open_as(agglo_encoder *out, const char *weights, agglo_dtype precision, int max_batch, bool neck)
{
    agglo_teacher_options options = agglo_teacher_options_default();
    agglo_err err = {0};

    options.weights = weights;
    options.precision = precision;
    options.max_batch = max_batch;
    options.neck = neck;
    assert_ok(agglo_teacher_open(out, backend, &options, &err));
}

static double cosine(const float *a, const float *b, size_t n)
{
    double dot = 0.0, aa = 0.0, bb = 0.0;

    for (size_t i = 0; i < n; i++) {
        dot += (double)a[i] * (double)b[i];
        aa += (double)a[i] * (double)a[i];
        bb += (double)b[i] * (double)b[i];
    }
    return dot / sqrt(aa * bb);
}

/* Pictures with structure, not noise alone: a gradient of colour, a disc and some noise. */
static void draw_pixels(uint8_t *pixels, int n, int side)
{
    test_random random = test_random_new(17);

    for (int b = 0; b < n; b++) {
        int cx = (int)(test_random_u32(&random) % (uint32_t)side),
            cy = (int)(test_random_u32(&random) % (uint32_t)side);

        for (int y = 0; y < side; y++) {
            for (int x = 0; x < side; x++) {
                int far = (x - cx) * (x - cx) + (y - cy) * (y - cy) > side * side / 16;

                for (int c = 0; c < 3; c++) {
                    int value = far ? (c == b % 3 ? 255 * x / side : 255 * y / side) : 40 + 60 * c;

                    *pixels++ = (uint8_t)((value + (int)(test_random_u32(&random) % 32)) % 256);
                }
            }
        }
    }
}

typedef struct features {
    size_t n, n_summary, n_tokens, dim;
    float *summary, *spatial;
} features;

static features run(const agglo_encoder *t, int n, int max_batch)
{
    int side = t->info.preprocess.size, grid = side / t->info.patch;
    features f = {(size_t)n, (size_t)t->info.summary_dim, (size_t)(grid * grid), (size_t)t->info.spatial_dim, NULL,
                  NULL};
    size_t n_pixels = (size_t)side * (size_t)side * 3;
    agglo_err err = {0};
    uint8_t *pixels = agglo_alloc((size_t)n, n_pixels, &err);

    f.summary = agglo_alloc(f.n * f.n_summary, sizeof(float), &err);
    f.spatial = agglo_alloc(f.n * f.n_tokens * f.dim, sizeof(float), &err);
    assert_non_null(pixels);
    assert_non_null(f.summary);
    assert_non_null(f.spatial);
    draw_pixels(pixels, n, side);
    for (int first = 0; first < n; first += max_batch) {
        int some = n - first < max_batch ? n - first : max_batch;

        assert_ok(t->encode(t->self, pixels + (size_t)first * n_pixels, NULL, some, side, side,
                            f.summary + (size_t)first * f.n_summary, f.spatial + (size_t)first * f.n_tokens * f.dim,
                            &err));
    }
    agglo_free(pixels);
    return f;
}

static void clear(features *f)
{
    agglo_free(f->summary);
    agglo_free(f->spatial);
}

static void compare(const char *weights, int n_pictures, bool neck)
{
    agglo_encoder f32, bf16;
    features a, b;
    double least = 1.0, sum = 0.0;
    char print[2][33];

    open_as(&f32, weights, AGGLO_F32, 4, neck);
    open_as(&bf16, weights, AGGLO_BF16, 4, neck);
    assert_null(strstr(f32.info.options, "bf16"));
    assert_string_equal(bf16.info.options + strlen(f32.info.options), ",bf16");
    agglo_preprocess_fingerprint(&f32.info, print[0]);
    agglo_preprocess_fingerprint(&bf16.info, print[1]);
    assert_string_not_equal(print[0], print[1]);

    a = run(&f32, n_pictures, 4);
    b = run(&bf16, n_pictures, 4);
    for (size_t i = 0; i < a.n; i++) {
        least = fmin(least, cosine(a.summary + i * a.n_summary, b.summary + i * a.n_summary, a.n_summary));
    }
    for (size_t i = 0; i < a.n * a.n_tokens; i++) {
        sum += cosine(a.spatial + i * a.dim, b.spatial + i * a.dim, a.dim);
    }
    sum /= (double)(a.n * a.n_tokens);
    printf("%s: summary %.6f (worst of %d), spatial %.6f (mean)\n", weights, least, n_pictures, sum);
    if (!(least > SUMMARY_COS && sum > SPATIAL_COS) || (least == 1.0 && sum == 1.0)) {
        fail_msg("%s in BF16: summary %.6f, spatial %.6f", weights, least, sum);
    }
    clear(&a);
    clear(&b);
    agglo_encoder_clear(&f32);
    agglo_encoder_clear(&bf16);
}

static void test_random_weights(void **state)
{
    static const struct {
        const char *family;
        int depth, heads, registers, proj;
        agglo_act act;
        bool swiglu;
    } table[] = {
        {"clip", 6, 4, 0, 48, AGGLO_ACT_QUICK_GELU, false},
        {"dinov2", 6, 2, 0, 0, AGGLO_ACT_GELU, false},
        {"dinov2", 4, 4, 3, 0, AGGLO_ACT_GELU, true},
    };

    (void)state;
    for (size_t i = 0; i < AGGLO_COUNT(table); i++) {
        agglo_teacher_config config = {0};
        agglo_err err = {0};
        const char *path = test_path(test_dir(), "random.safetensors");

        assert_ok(agglo_teacher_named(table[i].family, &config, &err));
        config.dim = 96;
        config.depth = table[i].depth;
        config.heads = table[i].heads;
        config.mlp_dim = 200;
        config.patch = 8;
        config.image = 56;
        config.registers = table[i].registers;
        config.proj = table[i].proj;
        config.act = table[i].act;
        config.swiglu = table[i].swiglu;
        assert_ok(agglo_teacher_write_random(&config, 3 + i, path, &err));
        compare(path, 6, false);
    }
}

/* Padded windows and global blocks, before the neck and behind it. */
static void test_sam(void **state)
{
    agglo_teacher_config config = {0};
    agglo_err err = {0};
    const char *path = test_path(test_dir(), "sam.safetensors");

    (void)state;
    assert_ok(agglo_teacher_named("sam", &config, &err));
    config.dim = 96;
    config.depth = 6;
    config.heads = 4;
    config.mlp_dim = 200;
    config.patch = 8;
    config.image = 56;
    config.window = 4;
    config.global_layers[0] = 0x24;
    assert_ok(agglo_teacher_write_random(&config, 3, path, &err));
    compare(path, 6, false);
    compare(path, 6, true);
}

static void test_trained_weights(void **state)
{
    (void)state;
    compare("weights/clip-tiny.safetensors", 8, false);
    compare("weights/dinov2-tiny.safetensors", 8, false);
}

static void test_asked_for(void **state)
{
    const char *list = getenv("AGGLO_TEST_TEACHERS");
    char path[512];

    (void)state;
    while (list != NULL && *list != '\0') {
        size_t n = strcspn(list, ":");

        snprintf(path, sizeof path, "%.*s", (int)n, list);
        compare(path, 4, false);
        list += n + (list[n] == ':');
    }
}

/* On the CPU a picture's features do not depend on its batch, in BF16 either; nothing is allocated at a shape that was seen. */
static void test_batches_do_not_matter(void **state)
{
    agglo_encoder t;
    features all, one;
    int64_t before;

    (void)state;
    if (strcmp(device, "cpu") != 0) {
        skip();
    }
    open_as(&t, "weights/clip-tiny.safetensors", AGGLO_BF16, 32, false);
    all = run(&t, 13, 13);
    one = run(&t, 13, 3);
    assert_memory_equal(all.summary, one.summary, all.n * all.n_summary * sizeof(float));
    assert_memory_equal(all.spatial, one.spatial, all.n * all.n_tokens * all.dim * sizeof(float));
    clear(&one);
    before = agglo_alloc_counts().n_total;
    one = run(&t, 13, 13);
    assert_int_equal(agglo_alloc_counts().n_total, before + 3); /* run's own */
    clear(&one);
    clear(&all);
    agglo_encoder_clear(&t);
}

/* An option text as long as it gets still has room for the precision. */
static void test_longest_options(void **state)
{
    agglo_teacher_config config = {0};
    agglo_teacher_options options = agglo_teacher_options_default();
    agglo_encoder t;
    agglo_err err = {0};
    const char *path = test_path(test_dir(), "long.safetensors");

    (void)state;
    assert_ok(agglo_teacher_named("clip", &config, &err));
    config.dim = 112;
    config.depth = 1;
    config.heads = 112;
    config.mlp_dim = 8;
    config.patch = 8;
    config.image = 16;
    config.proj = 8;
    config.act = AGGLO_ACT_QUICK_GELU;
    config.norm_eps = 1.3e-4f;
    assert_ok(agglo_teacher_write_random(&config, 1, path, &err));
    options.weights = path;
    options.preproj = true;
    options.spatial_raw = true;
    options.precision = AGGLO_BF16;
    assert_ok(agglo_teacher_open(&t, backend, &options, &err));
    assert_string_equal(t.info.options, "summary=preproj,spatial_norm=0,pos=hub,quick_gelu,h112,e0.00013,bf16");
    agglo_encoder_clear(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_weights),
        cmocka_unit_test(test_trained_weights),
        cmocka_unit_test(test_sam),
        cmocka_unit_test(test_asked_for),
        cmocka_unit_test(test_batches_do_not_matter),
        cmocka_unit_test(test_longest_options),
    };
    agglo_err err = {0};
    int n_failed;

    device = test_device();
    if (agglo_backend_open(&backend, device, 2, &err) != AGGLO_OK) {
        return 1;
    }
    test_filter();
    n_failed = _cmocka_run_group_tests("teacher_bf16", tests, AGGLO_COUNT(tests), NULL, NULL);
    agglo_backend_free(backend);
    return test_finish("teacher_bf16", n_failed);
}
