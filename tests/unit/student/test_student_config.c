/* Student configurations: names, checks, JSON, files. */
#include <math.h>

#include "student/model.h"
#include "tests/support/support.h"

/* Parameters of the RADIO form and multiply-accumulates at 224 px, from the spec's tables (heads excluded). */
static void test_named_sizes(void **state)
{
    static const struct {
        const char *name;
        int64_t n_params;
        double gmac;
    } expected[] = {
        {"vit-tiny-14", 6237888, 1.70},     {"vit-tiny-16", 6272448, 1.25},     {"vit-tiny-32", 6714816, 0.31},
        {"vit-small-14", 23092608, 6.12},   {"vit-small-16", 23161728, 4.60},   {"vit-small-32", 24046464, 1.14},
        {"vit-base-14", 88652544, 23.16},   {"vit-base-16", 88790784, 17.56},   {"vit-base-32", 90560256, 4.41},
        {"vit-large-14", 307106816, 81.01}, {"vit-large-16", 307291136, 61.55}, {"vit-large-32", 309650432, 15.38},
        {"vit-huge-14", 635674880, 167.29}, {"vit-huge-16", 635905280, 127.31}, {"vit-huge-32", 638854400, 31.85},
    };
    agglo_err err = {0};

    (void)state;
    for (size_t i = 0; i < AGGLO_COUNT(expected); i++) {
        agglo_student_config config;
        int64_t d, m, n;

        assert_ok(agglo_student_config_by_name(&config, expected[i].name, &err));
        config.pos_grid = 64;
        assert_ok(agglo_student_config_check(&config, &err));
        assert_string_equal(config.arch, expected[i].name);
        assert_true(fabs(agglo_student_mac(&config, 224) * 1e-9 - expected[i].gmac) < 0.006);
        d = config.dim;
        m = config.mlp_dim;
        n = 3 * config.patch * config.patch * d + 64 * 64 * d + d; /* patches, table, CLS */
        n += config.depth * (4 * d * d + 4 * d + 2 * d * m + m + d + 4 * d);
        assert_int_equal(n, expected[i].n_params);
    }
}

static void test_names(void **state)
{
    agglo_student_config config;
    size_t n;
    const char *const *names = agglo_student_names(&n);
    agglo_err err = {0};

    (void)state;
    assert_int_equal(n, 16);
    for (size_t i = 0; i < n; i++) {
        assert_ok(agglo_student_config_by_name(&config, names[i], &err));
        assert_ok(agglo_student_config_check(&config, &err));
    }
    assert_fails(agglo_student_config_by_name(&config, "vit-smal-16", &err), AGGLO_E_CONFIG, "vit-small-16");
    assert_fails(agglo_student_config_by_name(&config, "resnet", &err), AGGLO_E_CONFIG, "resnet");
}

static void test_checks(void **state)
{
    agglo_student_config good, config;
    agglo_err err = {0};

    (void)state;
    assert_ok(agglo_student_config_by_name(&good, "vit", &err));
    config = good;
    assert_ok(agglo_student_config_check(&config, &err));
    assert_int_equal(config.mlp_dim, 4 * config.dim);
    assert_int_equal(config.pos_grid, 14);
#define REFUSED(field, value, text)                                                                                    \
    config = good;                                                                                                     \
    config.field = (value);                                                                                            \
    assert_fails(agglo_student_config_check(&config, &err), AGGLO_E_CONFIG, text)
    REFUSED(dim, 0, "student.dim");
    REFUSED(dim, INT64_MAX, "student.dim");
    REFUSED(heads, 5, "multiple of student.heads");
    REFUSED(image, 225, "multiple of student.patch");
    REFUSED(patch, -1, "student.patch");
    REFUSED(depth, 0, "student.depth");
    REFUSED(registers, -1, "student.registers");
    REFUSED(summary, 2, "student.summary");
    REFUSED(head_version, 3, "student.head_version");
    REFUSED(head_inner, 65, "student.head_inner");
    REFUSED(pos_grid, 5000, "student.pos_grid");
#undef REFUSED
}

static void test_heads(void **state)
{
    agglo_head_config heads[2] = {{"clip", 8, 8, 2, 2, 1.0, 1.0}, {"dino.v2-g_14", 8, 8, 2, 2, 0.0, 1.0}};
    agglo_err err = {0};

    (void)state;
    assert_ok(agglo_head_configs_check(heads, 2, &err));
    memcpy(heads[1].name, "clip", 5);
    assert_fails(agglo_head_configs_check(heads, 2, &err), AGGLO_E_CONFIG, "two teachers");
    memcpy(heads[1].name, "a/b", 4);
    assert_fails(agglo_head_configs_check(heads, 2, &err), AGGLO_E_CONFIG, "name of teacher 1");
    memcpy(heads[1].name, "sam", 4);
    heads[1].spatial_weight = -0.5;
    assert_fails(agglo_head_configs_check(heads, 2, &err), AGGLO_E_CONFIG, "weights");
    heads[1].spatial_weight = (double)NAN;
    assert_fails(agglo_head_configs_check(heads, 2, &err), AGGLO_E_CONFIG, "weights");
    heads[1].spatial_weight = 1.0;
    heads[1].grid_w = 0;
    assert_fails(agglo_head_configs_check(heads, 2, &err), AGGLO_E_CONFIG, "grid 2x0");
}

static void test_json(void **state)
{
    agglo_student_config config, again;
    agglo_head_config heads[2] = {{"clip", 1024, 1280, 16, 16, 1.0, 0.1}, {"sam", 256, 1280, 64, 64, 0.0, 1.0}};
    agglo_head_config parsed[AGGLO_MAX_HEADS];
    size_t n;
    json_t *json;
    agglo_err err = {0};

    (void)state;
    memset(&config, 0, sizeof config);
    memset(&again, 0, sizeof again);
    assert_ok(agglo_student_config_by_name(&config, "vit-large-14", &err));
    config.summary = AGGLO_SUMMARY_AVG;
    config.registers = 4;
    config.final_norm = true;
    assert_ok(agglo_student_config_check(&config, &err));
    json = agglo_student_config_json(&config, &err);
    assert_non_null(json);
    assert_ok(agglo_student_config_parse(json, &again, &err));
    assert_string_equal(again.arch, config.arch);
    assert_true(again.dim == config.dim && again.depth == config.depth && again.heads == config.heads &&
                again.mlp_dim == config.mlp_dim && again.patch == config.patch && again.image == config.image &&
                again.pos_grid == config.pos_grid && again.registers == 4 && again.summary == AGGLO_SUMMARY_AVG &&
                again.final_norm && again.head_version == 2 && again.head_hidden == 0 && again.head_inner == 0);

    json_object_set_new(json, "heads", json_integer(7));
    assert_fails(agglo_student_config_parse(json, &again, &err), AGGLO_E_DATA, "heads");
    json_object_set_new(json, "heads", json_string("16"));
    assert_fails(agglo_student_config_parse(json, &again, &err), AGGLO_E_DATA, "heads");
    json_object_del(json, "heads");
    assert_fails(agglo_student_config_parse(json, &again, &err), AGGLO_E_DATA, "heads");
    json_decref(json);

    json = agglo_head_configs_json(heads, 2, &err);
    assert_ok(agglo_head_configs_parse(json, parsed, &n, &err));
    assert_int_equal(n, 2);
    for (int i = 0; i < 2; i++) {
        assert_string_equal(parsed[i].name, heads[i].name);
        assert_true(parsed[i].summary_dim == heads[i].summary_dim && parsed[i].spatial_dim == heads[i].spatial_dim &&
                    parsed[i].grid_h == heads[i].grid_h && parsed[i].grid_w == heads[i].grid_w &&
                    parsed[i].summary_weight == heads[i].summary_weight &&
                    parsed[i].spatial_weight == heads[i].spatial_weight);
    }
    for (int i = 0; i < AGGLO_MAX_HEADS; i++) {
        json_array_append_new(json, json_object());
    }
    assert_fails(agglo_head_configs_parse(json, parsed, &n, &err), AGGLO_E_DATA, "at most");
    json_decref(json);
}

/* A random student is a file that knows what it is; equal seeds give equal bytes, and an encoder comes out of it. */
static void test_random_file(void **state)
{
    const char *dir = test_dir(), *a = test_path(dir, "a.safetensors"), *b = test_path(dir, "b.safetensors");
    const char *c = test_path(dir, "c.safetensors");
    agglo_head_config head = {"clip", 12, 10, 3, 3, 1.0, 1.0};
    agglo_student_config config, again;
    agglo_head_config heads[AGGLO_MAX_HEADS];
    agglo_safetensors *st;
    agglo_backend *backend;
    agglo_encoder encoder;
    uint8_t pixels[2 * 8 * 16 * 3];
    float summary[2 * 16], spatial[2 * 8 * 16];
    char *bytes[3];
    size_t sizes[3], n_heads;
    agglo_err err = {0};

    (void)state;
    assert_ok(agglo_student_config_by_name(&config, "vit", &err));
    config.dim = 16;
    config.depth = 1;
    config.heads = 2;
    config.patch = 4;
    config.image = 16;
    assert_ok(agglo_student_write_random(&config, &head, 1, 7, a, &err));
    assert_ok(agglo_student_write_random(&config, &head, 1, 7, b, &err));
    assert_ok(agglo_student_write_random(&config, NULL, 0, 7, c, &err));
    assert_ok(agglo_file_read(a, 1 << 20, &bytes[0], &sizes[0], &err));
    assert_ok(agglo_file_read(b, 1 << 20, &bytes[1], &sizes[1], &err));
    assert_int_equal(sizes[0], sizes[1]);
    assert_memory_equal(bytes[0], bytes[1], sizes[0]);
    agglo_free(bytes[0]);
    agglo_free(bytes[1]);

    assert_ok(agglo_safetensors_open(&st, a, &err));
    assert_true(agglo_student_is(st));
    assert_ok(agglo_student_read_config(st, &again, heads, &n_heads, &err));
    assert_int_equal(n_heads, 1);
    assert_int_equal(again.dim, 16);
    assert_non_null(agglo_safetensors_find(st, "_heads.clip.final.2.weight"));
    assert_non_null(agglo_safetensors_find(st, "_feature_projections.clip.fc1.bias"));
    agglo_safetensors_close(st);

    assert_ok(agglo_backend_cpu_new(&backend, 1, &err));
    memset(pixels, 128, sizeof pixels);
    assert_ok(agglo_student_open(&encoder, backend, c, NULL, 0, 2, &err));
    assert_int_equal(encoder.info.patch, 4);
    assert_int_equal(encoder.info.preprocess.size, 16);
    assert_ok(encoder.encode(encoder.self, pixels, NULL, 2, 8, 16, summary, spatial, &err));
    assert_memory_equal(summary, summary + 16, 16 * sizeof(float)); /* equal pictures */
    assert_fails(encoder.encode(encoder.self, pixels, &(agglo_extent){8, 4}, 1, 8, 16, summary, spatial, &err),
                 AGGLO_E_UNSUPPORTED, "padded");
    assert_fails(encoder.encode(encoder.self, pixels, NULL, 1, 9, 16, summary, spatial, &err), AGGLO_E_CONFIG,
                 "multiples");
    agglo_encoder_clear(&encoder);
    assert_fails(agglo_student_open(&encoder, backend, c, "clip", 0, 2, &err), AGGLO_E_CONFIG, "none");
    assert_fails(agglo_student_open(&encoder, backend, a, "dino", 0, 2, &err), AGGLO_E_CONFIG, "clip");
    assert_fails(agglo_student_open(&encoder, backend, a, NULL, 18, 2, &err), AGGLO_E_CONFIG, "multiple of the patch");
    assert_ok(agglo_student_open(&encoder, backend, a, "clip", 0, 2, &err));
    assert_int_equal(encoder.info.summary_dim, 12);
    assert_int_equal(encoder.info.spatial_dim, 10);
    assert_ok(encoder.encode(encoder.self, pixels, NULL, 2, 8, 16, summary, spatial, &err));
    assert_true(isfinite(spatial[2 * 8 * 10 - 1]));
    agglo_encoder_clear(&encoder);

    /* a few bytes that promise 19 GB: refused before anything is allocated for them */
    {
        static const char header[] =
            "{\"__metadata__\":{\"format\":\"agglo-student\",\"heads\":\"[]\",\"student\":\"{"
            "\\\"family\\\":\\\"vit\\\",\\\"arch\\\":\\\"vit\\\",\\\"dim\\\":4096,\\\"depth\\\":24,\\\"heads\\\":2,"
            "\\\"mlp_dim\\\":16384,\\\"patch\\\":4,\\\"image\\\":16,\\\"pos_grid\\\":4,\\\"registers\\\":0,"
            "\\\"head_version\\\":2,\\\"head_hidden\\\":0,\\\"head_inner\\\":0,\\\"summary\\\":\\\"cls\\\","
            "\\\"final_norm\\\":false}\"}}";
        char file[8 + sizeof header] = {(char)((sizeof header - 1) & 0xff), (char)((sizeof header - 1) >> 8)};

        memcpy(file + 8, header, sizeof header - 1);
        assert_ok(agglo_file_write(c, file, 8 + sizeof header - 1, &err));
        assert_fails(agglo_student_open(&encoder, backend, c, NULL, 0, 2, &err), AGGLO_E_NOT_FOUND,
                     "patch_embed.weight");
    }
    agglo_backend_free(backend);
}

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), k = strlen(end);

    return n >= k && strcmp(text + n - k, end) == 0;
}

/* Distribution and weight decay of every parameter, by its name alone (spec students.md sections 1.2 and 7): linear weights 0.02 and
 * decay; positions and tokens d^-0.5; norms 1, biases 0; none of these decay. */
static void check_initial(int64_t head_version)
{
    agglo_head_config head = {"clip", 48, 40, 3, 3, 1.0, 1.0};
    agglo_student_config config;
    agglo_student *student;
    agglo_backend *backend;
    agglo_params *params;
    agglo_err err = {0};
    int n_of_kind[3] = {0};

    assert_ok(agglo_student_config_by_name(&config, "vit", &err));
    config.dim = 64;
    config.depth = 2;
    config.heads = 2;
    config.patch = 4;
    config.image = 32;
    config.registers = 31;
    config.final_norm = true;
    config.head_version = head_version;
    config.head_inner = 2;
    assert_ok(agglo_backend_cpu_new(&backend, 1, &err));
    assert_ok(agglo_student_new(&student, backend, &config, &head, 1, false, AGGLO_F32, &err));
    params = agglo_student_params(student);
    assert_ok(agglo_params_init(params, 3, &err));
    for (size_t i = 0; i < agglo_params_count(params); i++) {
        const agglo_param *param = agglo_params_at(params, i);
        const float *value = param->value.data; /* the CPU's memory is the host's */
        int64_t n = agglo_tensor_count(&param->value);
        bool table = strcmp(param->name, "pos_embed") == 0 || strcmp(param->name, "token") == 0;
        bool vector = param->value.rank == 1;
        double mean = 0.0, square = 0.0, sigma = table ? 0.125 : 0.02;

        assert_int_equal(param->decay, !table && !vector);
        n_of_kind[table ? 0 : vector ? 1 : 2]++;
        for (int64_t k = 0; k < n; k++) {
            mean += (double)value[k] / (double)n;
            square += (double)value[k] * (double)value[k] / (double)n;
            if (vector && value[k] != (ends_with(param->name, ".bias") ? 0.0f : 1.0f)) {
                fail_msg("%s[%lld] is %g", param->name, (long long)k, (double)value[k]);
            }
        }
        /* 2000 values and more: five standard deviations of the estimates */
        assert_true(vector || n >= 2000);
        if (!vector && (fabs(mean) > 5.0 * sigma / sqrt((double)n) ||
                        fabs(sqrt(square) / sigma - 1.0) > 5.0 / sqrt(2.0 * (double)n))) {
            fail_msg("%s: mean %g, root mean square %g, expected 0 and %g", param->name, mean, sqrt(square), sigma);
        }
    }
    assert_int_equal(n_of_kind[0], 2);
    assert_int_equal(n_of_kind[1], 2 * 8 + 2 + 2 * 10);
    assert_int_equal(n_of_kind[2], 1 + 2 * 4 + 2 * 4);
    agglo_student_free(student);
    agglo_backend_free(backend);
}

static void test_initial(void **state)
{
    (void)state;
    check_initial(1);
    check_initial(2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_named_sizes), cmocka_unit_test(test_names), cmocka_unit_test(test_checks),
        cmocka_unit_test(test_heads),       cmocka_unit_test(test_json),  cmocka_unit_test(test_random_file),
        cmocka_unit_test(test_initial),
    };

    return test_run("student config", tests);
}
