/* SAM teachers: every place a checkpoint keeps them, the pattern of windows read off tables, hostile shapes, padding, memory planned once,
 * batches that do not matter. */
#include <math.h>

#include "tests/support/checkpoints.h"

static agglo_backend *backend;

/* A grid of 6, windows of 4 (padded to 8), the second of three blocks global, a neck. */
static agglo_teacher_config small(void)
{
    agglo_teacher_config c;
    agglo_err err = {0};

    assert_ok(agglo_teacher_named("sam", &c, &err));
    c.dim = 32;
    c.depth = 3;
    c.heads = 2;
    c.mlp_dim = 48;
    c.patch = 4;
    c.image = 24;
    c.window = 4;
    c.neck = 12;
    return c;
}

static const char *write_small(const char *dir, const char *name, const agglo_teacher_config *config)
{
    const char *path = test_path(dir, name);
    agglo_err err = {0};

    assert_ok(agglo_teacher_write_random(config, 7, path, &err));
    return path;
}

/* ---- checkpoints altered ---- */

static bool drop_neck(agglo_st_tensor *t, const char *text)
{
    return strstr(t->name, text) == NULL;
}

static bool shorter(agglo_st_tensor *t, const char *text)
{
    if (strcmp(t->name, text) == 0) {
        t->shape[0] -= 2;
    }
    return true;
}

static bool narrower(agglo_st_tensor *t, const char *text)
{
    if (strcmp(t->name, text) == 0) {
        t->shape[t->rank - 1]--;
    }
    return true;
}

static void replace(agglo_st_tensor *t, const char *from, const char *to)
{
    const char *at = strstr(t->name, from);

    if (at != NULL) {
        char *start = (char *)test_keep((size_t)(at - t->name) + strlen(to) + 1);

        memcpy(start, t->name, (size_t)(at - t->name)); /* the rest is zero */
        strcat(start, to);
        t->name = test_keep_name(start, at + strlen(from));
    }
}

/* segment_anything's names, under this prefix */
static bool to_original(agglo_st_tensor *t, const char *text)
{
    static const char *const names[][2] = {{"patch_embed.projection", "patch_embed.proj"},
                                           {"neck.conv1", "neck.0"},
                                           {"neck.layer_norm1", "neck.1"},
                                           {"neck.conv2", "neck.2"},
                                           {"neck.layer_norm2", "neck.3"},
                                           {"layer_norm", "norm"},
                                           {"layers.", "blocks."}};

    replace(t, "vision_encoder.", text);
    for (size_t i = 0; i < AGGLO_COUNT(names); i++) {
        replace(t, names[i][0], names[i][1]);
    }
    return true;
}

static agglo_teacher_options options_of(const char *weights, bool neck)
{
    agglo_teacher_options options = agglo_teacher_options_default();

    options.weights = weights;
    options.neck = neck;
    return options;
}

static agglo_status open_plainly(const char *weights, agglo_err *err)
{
    const agglo_teacher_options options = options_of(weights, false);

    return test_try_open(backend, &options, err);
}

static void assert_same_features(const char *a, const char *b)
{
    agglo_err err = {0};

    for (int neck = 0; neck < 2; neck++) {
        agglo_teacher_options first = options_of(a, neck == 1), second = options_of(b, neck == 1);
        agglo_encoder t, u;
        size_t n, m;
        float *x, *y;

        assert_ok(agglo_teacher_open(&t, backend, &first, &err));
        assert_ok(agglo_teacher_open(&u, backend, &second, &err));
        assert_int_equal(agglo_teacher_file_of(&u)->n_unknown, 0);
        x = test_encode(&t, NULL, 2, 24, 20, &n);
        y = test_encode(&u, NULL, 2, 24, 20, &m);
        assert_int_equal(n, m);
        assert_memory_equal(x, y, n * sizeof *x);
        agglo_free(x);
        agglo_free(y);
        agglo_encoder_clear(&t);
        agglo_encoder_clear(&u);
    }
}

/* ---- tests ---- */

static void random_weights_know_themselves(void **state)
{
    const char *dir = test_dir(), *path;
    agglo_teacher_config wrote = small(), read;
    agglo_teacher_options options;
    agglo_encoder t;
    agglo_err err = {0};
    size_t n;
    float *out;

    (void)state;
    wrote.heads = 4;
    wrote.norm_eps = 3e-5f;
    wrote.mean[1] = 0.4f;
    wrote.global_layers[0] = 5;
    assert_ok(agglo_teacher_check(&wrote, &err));
    assert_string_equal(wrote.arch, "sam-32x3-p4-w4");
    path = write_small(dir, "a.safetensors", &wrote);
    assert_ok(test_recognise_config(path, "sam", &read, &err));
    assert_memory_equal(&read.dim, &wrote.dim, sizeof read - offsetof(agglo_teacher_config, dim));
    options = options_of(path, false);
    assert_ok(agglo_teacher_open(&t, backend, &options, &err));
    assert_int_equal(t.info.n_params, agglo_teacher_params(&wrote));
    assert_int_equal(agglo_teacher_file_of(&t)->n_unknown, 0);
    assert_int_equal(t.info.preprocess.size, 24);
    assert_int_equal(t.info.preprocess.fit, AGGLO_FIT_PAD);
    assert_int_equal(t.info.preprocess.filter, AGGLO_BILINEAR);
    assert_string_equal(t.info.options, "neck=0,gelu,w4,e3e-05");
    assert_true(t.info.summary_dim == 32 && t.info.spatial_dim == 32);
    out = test_encode(&t, NULL, 2, 24, 24, &n);
    for (size_t i = 0; i < n; i++) {
        assert_true(isfinite(out[i]) && fabsf(out[i]) < 100.0f);
    }
    agglo_free(out);
    agglo_encoder_clear(&t);
    /* another size is marked; the neck has its own width, the summary not */
    options.size = 32;
    options.neck = true;
    assert_ok(agglo_teacher_open(&t, backend, &options, &err));
    assert_string_equal(t.info.options, "neck=1,gelu,w4,resampled,e3e-05");
    assert_true(t.info.summary_dim == 32 && t.info.spatial_dim == 12);
    agglo_encoder_clear(&t);
}

static void layouts_and_prefixes(void **state)
{
    static const char *const prefixes[] = {"image_encoder.", "sam.image_encoder.", ""};
    agglo_teacher_config config = small();
    const char *dir = test_dir(), *a = write_small(dir, "a.safetensors", &config), *b = test_path(dir, "b.safetensors");

    (void)state;
    test_rewrite(a, b, true, test_add_prefix, "sam.");
    assert_same_features(a, b);
    for (size_t i = 0; i < AGGLO_COUNT(prefixes); i++) {
        test_rewrite(a, b, false, to_original, prefixes[i]);
        assert_same_features(a, b);
    }
}

/* Everything but the act comes from shapes; a window of the grid's side needs a word from the file. */
static void pattern_from_shapes(void **state)
{
    agglo_teacher_config wrote = small(), read;
    const char *dir = test_dir(), *a = write_small(dir, "a.safetensors", &wrote), *b = test_path(dir, "b.safetensors");
    const char *json = test_path(dir, "b.config.json");
    agglo_err err = {0};

    (void)state;
    test_rewrite(a, b, false, NULL, "");
    assert_ok(agglo_teacher_check(&wrote, &err));
    assert_ok(test_recognise_config(b, "", &read, &err));
    assert_memory_equal(&read, &wrote, sizeof read);
    test_rewrite(a, b, false, drop_neck, "neck.");
    assert_ok(test_recognise_config(b, "", &read, &err));
    assert_int_equal(read.neck, 0);

    wrote.window = 6; /* the grid's own side */
    a = write_small(dir, "c.safetensors", &wrote);
    assert_ok(test_recognise_config(a, "", &read, &err));
    assert_int_equal(read.window, 6);
    assert_int_equal(read.global_layers[0], 2);
    test_rewrite(a, b, false, NULL, "");
    assert_ok(test_recognise_config(b, "", &read, &err));
    assert_true(read.window == 0 && read.global_layers[0] == 7);
    test_write_text(json,
                    "{\"model_type\": \"sam\", \"vision_config\": {\"window_size\": 6, \"global_attn_indexes\": [1]}}");
    assert_ok(test_recognise_config(b, "", &read, &err));
    assert_true(read.window == 6 && read.global_layers[0] == 2);
}

static void broken_checkpoints(void **state)
{
    static const struct {
        test_alter alter;
        const char *name;
        agglo_status status;
        const char *says;
    } table[] = {
        {test_drop, "vision_encoder.pos_embed", AGGLO_E_DATA, "vision_encoder.pos_embed is missing"},
        {test_drop, "vision_encoder.layers.0.attn.rel_pos_h", AGGLO_E_UNSUPPORTED, "known teacher"},
        {test_drop, "vision_encoder.layers.2.attn.rel_pos_h", AGGLO_E_DATA, "layers.2.attn.rel_pos_h is missing"},
        {test_drop, "vision_encoder.layers.2.attn.rel_pos_w", AGGLO_E_DATA,
         "layers.2.attn.rel_pos_w is missing, expected shape [7, 16]"},
        {test_drop, "vision_encoder.neck.conv2.weight", AGGLO_E_DATA,
         "neck.conv2.weight is missing, expected shape [12, 12, 3, 3]"},
        {test_drop, "vision_encoder.layers.1.layer_norm1.weight", AGGLO_E_MISMATCH, "depth is stated as 3"},
        {shorter, "vision_encoder.layers.2.attn.rel_pos_h", AGGLO_E_DATA, "nor those of a window of 4"},
        {shorter, "vision_encoder.layers.1.attn.rel_pos_h", AGGLO_E_DATA, "has 9 rows"},
        {shorter, "vision_encoder.layers.1.attn.rel_pos_w", AGGLO_E_DATA, "has shape [9, 16], expected [11, 16]"},
        {narrower, "vision_encoder.layers.1.attn.rel_pos_h", AGGLO_E_DATA, "layers.1.attn.rel_pos_h"},
        {narrower, "vision_encoder.pos_embed", AGGLO_E_DATA, "[1, grid, grid, dim]"},
        {narrower, "vision_encoder.neck.conv2.weight", AGGLO_E_DATA, "has shape [12, 12, 3, 2]"},
        {shorter, "vision_encoder.layers.0.attn.qkv.bias", AGGLO_E_DATA, "has shape [94], expected [96]"},
    };
    static const struct {
        const char *json;
        agglo_status status;
        const char *says;
    } lies[] = {
        {"{\"hidden_size\": 64}", AGGLO_E_MISMATCH, "hidden_size is stated as 64"},
        {"{\"num_attention_heads\": 12}", AGGLO_E_MISMATCH, "num_attention_heads is stated as 12"},
        {"{\"output_channels\": 256}", AGGLO_E_MISMATCH, "output_channels"},
        {"{\"image_size\": 1024}", AGGLO_E_MISMATCH, "image_size"},
        {"{\"window_size\": 14, \"global_attn_indexes\": [1]}", AGGLO_E_MISMATCH, "windows of side 14"},
        {"{\"window_size\": 4, \"global_attn_indexes\": [2]}", AGGLO_E_MISMATCH, "block 1"},
        {"{\"window_size\": 4, \"global_attn_indexes\": [1, 3]}", AGGLO_E_DATA, "global_attn_indexes"},
        {"{\"window_size\": 4, \"global_attn_indexes\": [-1]}", AGGLO_E_DATA, "global_attn_indexes"},
        {"{\"window_size\": 4, \"global_attn_indexes\": [\"1\"]}", AGGLO_E_DATA, "global_attn_indexes"},
        {"{\"window_size\": 4, \"global_attn_indexes\": 1}", AGGLO_E_DATA, "global_attn_indexes"},
        {"{\"model_type\": \"clip\"}", AGGLO_E_MISMATCH, "model_type is clip"},
    };
    agglo_teacher_config config = small();
    const char *dir = test_dir(), *a = write_small(dir, "a.safetensors", &config), *b = test_path(dir, "b.safetensors");
    agglo_err err = {0};

    (void)state;
    for (size_t i = 0; i < AGGLO_COUNT(table); i++) {
        test_rewrite(a, b, true, table[i].alter, table[i].name);
        assert_fails(open_plainly(b, &err), table[i].status, table[i].says);
    }
    test_rewrite(a, b, false, NULL, "");
    for (size_t i = 0; i < AGGLO_COUNT(lies); i++) {
        test_write_text(test_path(dir, "b.config.json"), lies[i].json);
        assert_fails(open_plainly(b, &err), lies[i].status, lies[i].says);
    }
}

static void wrong_options(void **state)
{
    agglo_teacher_config config = small(), clip;
    const char *dir = test_dir();
    agglo_teacher_options options = options_of(write_small(dir, "a.safetensors", &config), false);
    agglo_encoder t;
    agglo_err err = {0};

    (void)state;
    options.size = 30;
    assert_fails(agglo_teacher_open(&t, backend, &options, &err), AGGLO_E_CONFIG, "multiple of the patch");
    options.size = 0;
    options.preproj = true;
    assert_fails(agglo_teacher_open(&t, backend, &options, &err), AGGLO_E_CONFIG, "preproj");
    options.preproj = false;
    options.pos_interp = AGGLO_POS_INTERP_HF;
    assert_fails(agglo_teacher_open(&t, backend, &options, &err), AGGLO_E_CONFIG, "pos_interp");
    options.pos_interp = AGGLO_POS_INTERP_AUTO;
    options.arch = "sam-vit-base";
    assert_fails(agglo_teacher_open(&t, backend, &options, &err), AGGLO_E_CONFIG, "dim 32, sam-vit-base has 768");
    config.neck = 0;
    options = options_of(write_small(dir, "b.safetensors", &config), true);
    assert_fails(agglo_teacher_open(&t, backend, &options, &err), AGGLO_E_CONFIG, "neck is asked for");
    assert_ok(agglo_teacher_named("clip", &clip, &err));
    options = options_of(write_small(dir, "c.safetensors", &clip), true);
    assert_fails(agglo_teacher_open(&t, backend, &options, &err), AGGLO_E_CONFIG, "neck is an option of sam");
    options.neck = false;
    assert_ok(agglo_teacher_open(&t, backend, &options, &err));
    {
        uint8_t pixels[64 * 64 * 3] = {0};
        float summary[64];

        assert_fails(t.encode(t.self, pixels, &(agglo_extent){64, 32}, 1, 64, 64, summary, NULL, &err),
                     AGGLO_E_UNSUPPORTED, "never padded");
    }
    agglo_encoder_clear(&t);
}

/* ---- the neck in double precision ---- */

static const float *values_of(const agglo_safetensors *st, const char *name)
{
    const agglo_st_tensor *t = agglo_safetensors_find(st, name);

    assert_true(t != NULL && t->dtype == AGGLO_F32 && (uintptr_t)t->data % sizeof(float) == 0);
    return (const float *)(const void *)t->data;
}

/* [n, channels], in place; over the channels of each row */
static void ref_norm(double *x, int n, int channels, double eps, const float *w, const float *b)
{
    for (int i = 0; i < n; i++, x += channels) {
        double mean = 0.0, var = 0.0;

        for (int c = 0; c < channels; c++) {
            mean += x[c] / channels;
        }
        for (int c = 0; c < channels; c++) {
            var += (x[c] - mean) * (x[c] - mean) / channels;
        }
        for (int c = 0; c < channels; c++) {
            x[c] = (x[c] - mean) / sqrt(var + eps) * (double)w[c] + (double)b[c];
        }
    }
}

/* The neck's norms have an epsilon of 1e-6 whatever layer_norm_eps is (spec: SamVisionNeck and LayerNorm2d take no other). */
static void neck_has_its_own_epsilon(void **state)
{
    enum { G = 6, N = G * G, D = 32, O = 12 };
    static double first[N * O], second[N * O];
    agglo_teacher_config config = small();
    agglo_teacher_options options;
    agglo_safetensors *st;
    agglo_encoder t;
    agglo_err err = {0};
    const char *path;
    const float *conv1, *conv2;
    double worst = 0.0, largest = 0.0;
    float *tokens = NULL, *neck = NULL;
    size_t n;

    (void)state;
    config.norm_eps = 0.3f;
    path = write_small(test_dir(), "a.safetensors", &config);
    assert_ok(agglo_safetensors_open(&st, path, &err));
    for (int behind = 0; behind < 2; behind++) {
        options = options_of(path, behind == 1);
        assert_ok(agglo_teacher_open(&t, backend, &options, &err));
        *(behind == 0 ? &tokens : &neck) = test_encode(&t, NULL, 1, G * 4, G * 4, &n);
        agglo_encoder_clear(&t);
    }
    assert_int_equal(n, D + N * O);
    conv1 = values_of(st, "vision_encoder.neck.conv1.weight");
    conv2 = values_of(st, "vision_encoder.neck.conv2.weight");
    for (int i = 0; i < N; i++) {
        for (int o = 0; o < O; o++) {
            first[i * O + o] = 0.0;
            for (int d = 0; d < D; d++) {
                first[i * O + o] += (double)tokens[D + i * D + d] * (double)conv1[o * D + d];
            }
        }
    }
    ref_norm(first, N, O, 1e-6, values_of(st, "vision_encoder.neck.layer_norm1.weight"),
             values_of(st, "vision_encoder.neck.layer_norm1.bias"));
    for (int i = 0; i < N * O; i++) {
        int o = i % O, y = i / O / G, x = i / O % G;

        second[i] = 0.0;
        for (int k = 0; k < 9 * O; k++) { /* [c, 3, 3] of conv2's row */
            int c = k / 9, v = y + k / 3 % 3 - 1, u = x + k % 3 - 1;

            if (v >= 0 && v < G && u >= 0 && u < G) {
                second[i] += first[(v * G + u) * O + c] * (double)conv2[o * 9 * O + k];
            }
        }
    }
    ref_norm(second, N, O, 1e-6, values_of(st, "vision_encoder.neck.layer_norm2.weight"),
             values_of(st, "vision_encoder.neck.layer_norm2.bias"));
    for (int i = 0; i < N * O; i++) {
        worst = fmax(worst, fabs((double)neck[D + i] - second[i]));
        largest = fmax(largest, fabs(second[i]));
    }
    if (!(worst < 1e-4 * largest)) {
        fail_msg("the neck differs by %.3g", worst / largest);
    }
    agglo_free(tokens);
    agglo_free(neck);
    agglo_safetensors_close(st);
}

/* What a config.json says of the blocks is part of the identity where tables of both kinds look alike and it changes the features. */
static void pattern_in_options(void **state)
{
    static const struct {
        const char *layers;
        int size;
        const char *options;
    } cases[] = {
        {"[1]", 24, "neck=0,gelu,w6"},
        {"[1]", 32, "neck=0,gelu,w6,resampled,g2"},
        {"[0, 2]", 32, "neck=0,gelu,w6,resampled,g5"},
        {"[0, 1, 2]", 32, "neck=0,gelu,w0,resampled"},
    };
    agglo_teacher_config config = small();
    const char *dir = test_dir(), *b = test_path(dir, "b.safetensors"), *json = test_path(dir, "b.config.json");
    agglo_err err = {0};
    float *features[AGGLO_COUNT(cases)];
    size_t n = 0;

    (void)state;
    config.window = 6;
    test_rewrite(write_small(dir, "a.safetensors", &config), b, false, NULL, "");
    for (size_t i = 0; i < AGGLO_COUNT(cases); i++) {
        agglo_teacher_options options = options_of(b, false);
        agglo_encoder t;
        char text[160];

        snprintf(text, sizeof text,
                 "{\"model_type\": \"sam\", \"vision_config\": {\"window_size\": 6, \"global_attn_indexes\": %s}}",
                 cases[i].layers);
        test_write_text(json, text);
        options.size = cases[i].size;
        assert_ok(agglo_teacher_open(&t, backend, &options, &err));
        assert_string_equal(t.info.options, cases[i].options);
        features[i] = test_encode(&t, NULL, 1, cases[i].size, cases[i].size, &n);
        agglo_encoder_clear(&t);
    }
    assert_memory_not_equal(features[1], features[2], n * sizeof(float));
    for (size_t i = 0; i < AGGLO_COUNT(cases); i++) {
        agglo_free(features[i]);
    }
}

/* Two epsilons are never the same text, and the longest options fit. */
static void epsilon_in_options(void **state)
{
    static const struct {
        float eps;
        const char *options;
    } cases[] = {{1.01e-5f, "neck=0,gelu,w4,e1.01e-05"},
                 {1.04e-5f, "neck=0,gelu,w4,e1.04e-05"},
                 {1e-5f, "neck=0,gelu,w4,e1e-05"},
                 {1.23456794e-5f, "neck=0,gelu,w4,e1.2345679e-05"}};
    agglo_teacher_config config = small();
    const char *dir = test_dir(), *a;
    agglo_teacher_options options;
    agglo_encoder t;
    agglo_err err = {0};

    (void)state;
    for (size_t i = 0; i < AGGLO_COUNT(cases); i++) {
        config.norm_eps = cases[i].eps;
        options = options_of(write_small(dir, "a.safetensors", &config), false);
        assert_ok(agglo_teacher_open(&t, backend, &options, &err));
        assert_string_equal(t.info.options, cases[i].options);
        agglo_encoder_clear(&t);
    }
    config.dim = 4;
    config.heads = 1;
    config.mlp_dim = 4;
    config.patch = 1;
    config.image = 100;
    config.depth = 70; /* more blocks than digits */
    config.window = 100;
    config.norm_eps = 1.17549449e-38f;
    config.global_layers[0] = 0x55555555;
    a = write_small(dir, "b.safetensors", &config);
    options = options_of(a, true);
    options.size = 99;
    options.act = "quick_gelu";
    options.precision = AGGLO_BF16;
    assert_ok(agglo_teacher_open(&t, backend, &options, &err));
    assert_true(strncmp(t.info.options, "neck=1,quick_gelu,w100,resampled,g", 34) == 0);
    assert_string_equal(t.info.options + 34 + 16, ",e1.1754945e-38,bf16");
    agglo_encoder_clear(&t);
}

/* Padding does not depend on the pixels there, and is not what these pixels would be. */
static void padding(void **state)
{
    agglo_teacher_config config = small();
    agglo_teacher_options options = options_of(write_small(test_dir(), "a.safetensors", &config), false);
    const agglo_extent extents[2] = {{24, 24}, {24, 13}};
    agglo_encoder t;
    agglo_err err = {0};
    test_random random = test_random_new(3);
    enum { N = 24 * 24 * 3, OUT = 36 * 32 };
    uint8_t pixels[2 * N];
    float *first = (float *)agglo_alloc(2 * OUT, sizeof *first, &err);
    float *second = (float *)agglo_alloc(2 * OUT, sizeof *second, &err);

    (void)state;
    assert_ok(agglo_teacher_open(&t, backend, &options, &err));
    test_random_bytes(&random, pixels, sizeof pixels);
    assert_ok(t.encode(t.self, pixels, extents, 2, 24, 24, NULL, first, &err));
    for (int i = 13 * 24 * 3; i < N; i++) {
        pixels[N + i] ^= 0x5a;
    }
    assert_ok(t.encode(t.self, pixels, extents, 2, 24, 24, NULL, second, &err));
    assert_memory_equal(first, second, 2 * OUT * sizeof *first);
    assert_ok(t.encode(t.self, pixels, NULL, 2, 24, 24, NULL, second, &err));
    assert_memory_equal(first, second, OUT * sizeof *first); /* the picture that fills its input */
    assert_memory_not_equal(first + OUT, second + OUT, OUT * sizeof *first);
    agglo_free(first);
    agglo_free(second);
    agglo_encoder_clear(&t);
}

/* One plan per shape; smaller batches and repeated ones neither plan nor allocate. */
static void planned_once(void **state)
{
    agglo_teacher_config config = small();
    agglo_teacher_options options = options_of(write_small(test_dir(), "a.safetensors", &config), true);
    agglo_extent extents[4] = {{24, 20}, {24, 24}, {1, 24}, {24, 1}};
    agglo_encoder t;
    agglo_err err = {0};
    uint8_t pixels[4 * 32 * 24 * 3] = {0};
    float summary[4 * 32], spatial[4 * 48 * 12];
    int64_t before;

    (void)state;
    assert_ok(agglo_teacher_open(&t, backend, &options, &err));
    assert_int_equal(agglo_teacher_plans(&t), 0);
    for (int size = 0; size < 2; size++) {
        int height = size == 0 ? 24 : 32;

        assert_ok(t.encode(t.self, pixels, NULL, 4, height, 24, summary, spatial, &err));
        assert_ok(t.encode(t.self, pixels, extents, 3, height, 24, summary, spatial, &err));
        assert_int_equal(agglo_teacher_plans(&t), 1 + size);
        before = agglo_alloc_counts().n_total;
        for (int i = 0; i < 5; i++) {
            assert_ok(t.encode(t.self, pixels, extents, 4 - i % 3, height, 24, summary, spatial, &err));
            assert_ok(t.encode(t.self, pixels, NULL, 1, height, 24, NULL, spatial, &err));
            assert_ok(t.encode(t.self, pixels, NULL, 1, height, 24, summary, NULL, &err));
        }
        assert_int_equal(agglo_alloc_counts().n_total, before);
        assert_int_equal(agglo_teacher_plans(&t), 1 + size);
    }
    agglo_encoder_clear(&t);
}

/* An image's features do not depend on the batch, nor on the number of threads, bit for bit. */
static void batches_and_threads_do_not_matter(void **state)
{
    agglo_teacher_config config = small();
    agglo_teacher_options options = options_of(write_small(test_dir(), "a.safetensors", &config), true);
    agglo_backend *single;
    agglo_encoder t, u;
    agglo_err err = {0};
    enum { B = 7, N = 24 * 20 * 3, S = 32, V = 30 * 12 };
    test_random random = test_random_new(5);
    uint8_t pixels[B * N];
    float *all = (float *)agglo_alloc(B * (S + V), sizeof *all, &err), one[2 * (S + V)];

    (void)state;
    assert_ok(agglo_backend_cpu_new(&single, 1, &err));
    assert_ok(agglo_teacher_open(&t, backend, &options, &err));
    assert_ok(agglo_teacher_open(&u, single, &options, &err));
    test_random_bytes(&random, pixels, sizeof pixels);
    assert_ok(t.encode(t.self, pixels, NULL, B, 24, 20, all, all + B * S, &err));
    for (int i = 0; i < B; i++) {
        const agglo_encoder *of = i % 2 == 0 ? &t : &u;
        int n = i + 1 < B && i % 3 == 0 ? 2 : 1;

        assert_ok(of->encode(of->self, pixels + i * N, NULL, n, 24, 20, one, one + n * S, &err));
        assert_memory_equal(one, all + i * S, (size_t)n * S * sizeof *one);
        assert_memory_equal(one + n * S, all + B * S + i * V, (size_t)n * V * sizeof *one);
    }
    agglo_free(all);
    agglo_encoder_clear(&t);
    agglo_encoder_clear(&u);
    agglo_backend_free(single);
}

static void failing_memory(void **state)
{
    agglo_teacher_config config = small();
    agglo_teacher_options options = options_of(write_small(test_dir(), "a.safetensors", &config), true);
    agglo_err err = {0};
    uint8_t pixels[32 * 24 * 3] = {0};
    float summary[32], spatial[48 * 12];
    int n = 0;

    (void)state;
    for (;; n++) {
        agglo_encoder t;
        agglo_status status;

        agglo_alloc_fail_after(n);
        status = agglo_teacher_open(&t, backend, &options, &err);
        if (status == AGGLO_OK) {
            status = t.encode(t.self, pixels, NULL, 1, 32, 24, summary, spatial, &err);
            agglo_encoder_clear(&t);
        }
        agglo_alloc_fail_after(-1);
        if (status == AGGLO_OK) {
            break;
        }
        assert_int_equal(err.status, AGGLO_E_MEMORY);
        agglo_err_clear(&err);
    }
    assert_true(n > 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_weights_know_themselves),
        cmocka_unit_test(layouts_and_prefixes),
        cmocka_unit_test(pattern_from_shapes),
        cmocka_unit_test(broken_checkpoints),
        cmocka_unit_test(wrong_options),
        cmocka_unit_test(neck_has_its_own_epsilon),
        cmocka_unit_test(pattern_in_options),
        cmocka_unit_test(epsilon_in_options),
        cmocka_unit_test(padding),
        cmocka_unit_test(planned_once),
        cmocka_unit_test(batches_and_threads_do_not_matter),
        cmocka_unit_test(failing_memory),
    };
    agglo_err err = {0};
    int n_failed;

    if (agglo_backend_cpu_new(&backend, 0, &err) != AGGLO_OK) {
        fprintf(stderr, "%s\n", err.why);
        return 1;
    }
    test_filter();
    n_failed = _cmocka_run_group_tests("sam", tests, AGGLO_COUNT(tests), NULL, NULL);
    agglo_backend_free(backend);
    return test_finish("sam", n_failed);
}
