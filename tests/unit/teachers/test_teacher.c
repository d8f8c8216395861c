/* Opening teachers: every layout and type, hostile and mislabelled checkpoints, memory planned once, batches that do not matter. */
#include <math.h>

#include "tests/support/checkpoints.h"

static agglo_backend *backend;

/* ---- checkpoints made and altered ---- */

static agglo_teacher_config small(const char *family)
{
    agglo_teacher_config c;
    agglo_err err = {0};

    assert_ok(agglo_teacher_named(family, &c, &err));
    c.dim = 32;
    c.depth = 2;
    c.heads = 2;
    c.mlp_dim = 48;
    c.patch = 4;
    c.image = 16;
    c.proj = c.proj > 0 ? 24 : 0;
    return c;
}

static const char *write_small(const char *dir, const char *name, const agglo_teacher_config *config)
{
    const char *path = test_path(dir, name);
    agglo_err err = {0};

    assert_ok(agglo_teacher_write_random(config, 7, path, &err));
    return path;
}

static void convert(agglo_st_tensor *t, agglo_dtype dtype)
{
    const float *values = test_keep_values(t);
    uint8_t *bytes = (uint8_t *)test_keep((size_t)t->n_elements * agglo_dtype_size(dtype));

    agglo_dtype_from_f32(bytes, values, dtype, (size_t)t->n_elements);
    t->data = bytes;
    t->dtype = dtype;
}

static bool to_f16(agglo_st_tensor *t, const char *text)
{
    (void)text;
    convert(t, AGGLO_F16);
    return true;
}

static bool to_bf16(agglo_st_tensor *t, const char *text)
{
    (void)text;
    convert(t, AGGLO_BF16);
    return true;
}

/* float32 holding what bf16 can hold */
static bool rounded_to_bf16(agglo_st_tensor *t, const char *text)
{
    float *values = test_keep_values(t);

    (void)text;
    for (int64_t i = 0; i < t->n_elements; i++) {
        values[i] = agglo_bf16_to_f32(agglo_f32_to_bf16(values[i]));
    }
    return true;
}

static bool rounded_to_f16(agglo_st_tensor *t, const char *text)
{
    float *values = test_keep_values(t);

    (void)text;
    for (int64_t i = 0; i < t->n_elements; i++) {
        values[i] = agglo_f16_to_f32(agglo_f32_to_f16(values[i]));
    }
    return true;
}

static bool not_a_number(agglo_st_tensor *t, const char *text)
{
    if (strcmp(t->name, text) == 0) {
        test_keep_values(t)[t->n_elements / 2] = NAN;
    }
    return true;
}

/* one row less */
static bool shorter(agglo_st_tensor *t, const char *text)
{
    if (strcmp(t->name, text) == 0) {
        t->shape[0]--;
    }
    return true;
}

static bool transposed(agglo_st_tensor *t, const char *text)
{
    if (strcmp(t->name, text) == 0) {
        int64_t rows = t->shape[0];

        t->shape[0] = t->shape[1];
        t->shape[1] = rows;
    }
    return true;
}

static bool renamed(agglo_st_tensor *t, const char *text)
{
    if (strcmp(t->name, text) == 0) {
        t->name = "head.weight";
    }
    return true;
}

static agglo_status open_with(agglo_encoder *out, const char *weights, const char *arch, agglo_err *err)
{
    agglo_teacher_options options = agglo_teacher_options_default();

    options.weights = weights;
    options.arch = arch;
    return agglo_teacher_open(out, backend, &options, err);
}

static agglo_status try_open(const char *weights, const char *arch, agglo_err *err)
{
    agglo_teacher_options options = agglo_teacher_options_default();

    options.weights = weights;
    options.arch = arch;
    return test_try_open(backend, &options, err);
}

static void assert_same_features(const char *a, const char *b)
{
    agglo_err err = {0};
    agglo_encoder first, second;
    size_t n_first, n_second;
    float *x, *y;

    assert_ok(open_with(&first, a, "", &err));
    assert_ok(open_with(&second, b, "", &err));
    x = test_encode(&first, NULL, 3, 20, 16, &n_first);
    y = test_encode(&second, NULL, 3, 20, 16, &n_second);
    assert_int_equal(n_first, n_second);
    assert_memory_equal(x, y, n_first * sizeof *x);
    assert_string_not_equal(first.info.weights, second.info.weights);
    agglo_free(x);
    agglo_free(y);
    agglo_encoder_clear(&first);
    agglo_encoder_clear(&second);
}

/* ---- tests ---- */

static void random_weights_know_themselves(void **state)
{
    static const char *const names[] = {"clip", "dinov2", "dinov2"};
    const char *dir = test_dir();
    agglo_err err = {0};

    (void)state;
    for (size_t i = 0; i < AGGLO_COUNT(names); i++) {
        agglo_teacher_config wrote = small(names[i]), read;
        agglo_encoder teacher;
        const char *path;
        agglo_hash128 first, second;
        size_t n;
        float *out;

        wrote.heads = 4; /* not what a table would say */
        wrote.norm_eps = 3e-5f;
        wrote.mean[2] = 0.4f;
        if (i == 0) {
            wrote.act = AGGLO_ACT_QUICK_GELU;
        } else if (i == 2) {
            wrote.registers = 3;
            wrote.swiglu = true;
        }
        assert_ok(agglo_teacher_check(&wrote, &err));
        path = write_small(dir, "a.safetensors", &wrote);
        assert_ok(test_recognise_config(path, "", &read, &err));
        assert_memory_equal(&read.dim, &wrote.dim, sizeof read - offsetof(agglo_teacher_config, dim));
        assert_string_equal(read.arch, wrote.arch);
        assert_ok(open_with(&teacher, path, names[i], &err));
        assert_int_equal(teacher.info.n_params, agglo_teacher_params(&wrote));
        assert_int_equal(agglo_teacher_file_of(&teacher)->n_unknown, 0);
        assert_int_equal(teacher.info.preprocess.size, 16);
        /* CLIP's short side is the crop's, DINOv2's 256 / 224 of it */
        assert_int_equal(teacher.info.preprocess.resize_to, strcmp(wrote.family, "clip") == 0 ? 16 : 18);
        out = test_encode(&teacher, NULL, 2, 16, 16, &n);
        for (size_t k = 0; k < n; k++) {
            assert_true(isfinite(out[k]) && fabsf(out[k]) < 100.0f);
        }
        agglo_free(out);
        agglo_encoder_clear(&teacher);

        assert_ok(agglo_file_xxh3_128(path, &first, NULL, &err));
        path = write_small(dir, "b.safetensors", &wrote);
        assert_ok(agglo_file_xxh3_128(path, &second, NULL, &err));
        assert_memory_equal(first.bytes, second.bytes, sizeof first.bytes);
        assert_ok(agglo_teacher_write_random(&wrote, 8, path, &err));
        assert_ok(agglo_file_xxh3_128(path, &second, NULL, &err));
        assert_memory_not_equal(first.bytes, second.bytes, sizeof first.bytes);
    }
}

static void prefixes_and_types(void **state)
{
    agglo_teacher_config clip = small("clip"), dinov2 = small("dinov2"), registers = dinov2;
    const char *dir = test_dir(), *a, *b = test_path(dir, "b.safetensors"), *c = test_path(dir, "c.safetensors");

    (void)state;
    registers.registers = 4;
    a = write_small(dir, "a.safetensors", &clip);
    test_rewrite(a, b, true, test_cut_prefix, "vision_model.");
    assert_same_features(a, b);
    test_rewrite(a, b, true, to_bf16, "");
    test_rewrite(a, c, true, rounded_to_bf16, "");
    assert_same_features(b, c);
    a = write_small(dir, "d.safetensors", &dinov2);
    test_rewrite(a, b, true, test_add_prefix, "dinov2.");
    assert_same_features(a, b);
    test_rewrite(a, b, true, to_f16, "");
    test_rewrite(a, c, true, rounded_to_f16, "");
    assert_same_features(b, c);
    a = write_small(dir, "r.safetensors", &registers);
    test_rewrite(a, b, true, test_add_prefix, "dinov2_with_registers.");
    assert_same_features(a, b);
}

/* Without metadata and config.json: named architecture or tables; with config.json: what it says. */
static void sources_of_facts(void **state)
{
    agglo_teacher_config clip = small("clip"), read;
    const char *dir = test_dir(), *a = write_small(dir, "a.safetensors", &clip), *b = test_path(dir, "b.safetensors");
    agglo_err err = {0};

    (void)state;
    test_rewrite(a, b, false, NULL, "");
    assert_ok(test_recognise_config(b, "", &read, &err));
    assert_int_equal(read.heads, 1); /* 32 / 64, at least one */
    assert_int_equal(read.act, AGGLO_ACT_GELU);
    assert_true(read.norm_eps == 1e-5f);

    test_write_text(test_path(dir, "config.json"),
                    "{\"model_type\": \"clip\", \"projection_dim\": 24, \"vision_config\": "
                    "{\"hidden_size\": 32, \"num_attention_heads\": 8, \"layer_norm_eps\": 1e-4}}");
    assert_ok(test_recognise_config(b, "clip", &read, &err));
    assert_int_equal(read.heads, 8);
    assert_int_equal(read.act, AGGLO_ACT_QUICK_GELU); /* transformers' default, which it leaves out */
    assert_true(read.norm_eps == 1e-4f);

    /* the file's own config.json goes before the folder's, the metadata before both */
    test_write_text(test_path(dir, "b.config.json"),
                    "{\"model_type\": \"clip_vision_model\", \"num_attention_heads\": 4, "
                    "\"hidden_act\": \"gelu\"}");
    test_write_text(test_path(dir, "b.preprocessor_config.json"),
                    "{\"image_mean\": [0.5, 0.5, 0.5], \"image_std\": [0.5, 0.5, 0.25]}");
    assert_ok(test_recognise_config(b, "", &read, &err));
    assert_int_equal(read.heads, 4);
    assert_int_equal(read.act, AGGLO_ACT_GELU);
    assert_true(read.mean[0] == 0.5f && read.std[2] == 0.25f);
    assert_ok(test_recognise_config(a, "", &read, &err));
    assert_int_equal(read.heads, 2);
}

static void broken_checkpoints(void **state)
{
    static const struct {
        test_alter alter;
        const char *name;
        agglo_status status;
        const char *says;
    } clip[] = {
        {test_drop, "vision_model.encoder.layers.1.mlp.fc2.bias", AGGLO_E_DATA,
         "vision_model.encoder.layers.1.mlp.fc2.bias is missing, expected shape [32]"},
        {test_drop, "vision_model.embeddings.position_embedding.weight", AGGLO_E_DATA,
         "position_embedding.weight is missing"},
        {test_drop, "vision_model.encoder.layers.0.layer_norm1.weight", AGGLO_E_DATA,
         "layers.0.layer_norm1.weight is missing"},
        {test_drop, "vision_model.embeddings.patch_embedding.weight", AGGLO_E_UNSUPPORTED, "known teacher"},
        {shorter, "vision_model.encoder.layers.1.self_attn.k_proj.weight", AGGLO_E_DATA,
         "k_proj.weight has shape [31, 32], expected [32, 32]"},
        {shorter, "vision_model.embeddings.position_embedding.weight", AGGLO_E_DATA, "has shape [16, 32]"},
        {shorter, "vision_model.post_layernorm.weight", AGGLO_E_DATA, "has shape [31], expected [32]"},
        {transposed, "vision_model.encoder.layers.0.mlp.fc2.weight", AGGLO_E_DATA,
         "has shape [48, 32], expected [32, 48]"},
        {transposed, "visual_projection.weight", AGGLO_E_MISMATCH, "proj is stated as 24"},
        {not_a_number, "vision_model.encoder.layers.1.self_attn.v_proj.weight", AGGLO_E_DATA, "v_proj.weight"},
        {not_a_number, "vision_model.embeddings.class_embedding", AGGLO_E_DATA, "class_embedding"},
        {test_as_integers, "vision_model.pre_layrnorm.bias", AGGLO_E_UNSUPPORTED, "pre_layrnorm.bias is I32"},
        {renamed, "vision_model.pre_layrnorm.bias", AGGLO_E_DATA, "pre_layrnorm.bias is missing"},
    };
    static const struct {
        test_alter alter;
        const char *name;
        agglo_status status;
        const char *says;
    } dinov2[] = {
        {test_drop, "encoder.layer.0.layer_scale1.lambda1", AGGLO_E_DATA, "layer_scale1.lambda1 is missing"},
        {test_drop, "embeddings.register_tokens", AGGLO_E_MISMATCH, "registers is stated as 2, the tensors say 0"},
        {shorter, "encoder.layer.1.mlp.weights_in.weight", AGGLO_E_DATA, "weights_in.weight has shape [95, 32]"},
        {shorter, "encoder.layer.0.mlp.weights_in.weight", AGGLO_E_DATA, "[2 * mlp_dim, dim]"},
        {not_a_number, "embeddings.position_embeddings", AGGLO_E_DATA, "position_embeddings"},
    };
    agglo_teacher_config config = small("clip");
    const char *dir = test_dir(), *a = write_small(dir, "a.safetensors", &config), *b = test_path(dir, "b.safetensors");
    agglo_err err = {0};

    (void)state;
    for (size_t i = 0; i < AGGLO_COUNT(clip); i++) {
        test_rewrite(a, b, true, clip[i].alter, clip[i].name);
        assert_fails(try_open(b, "", &err), clip[i].status, clip[i].says);
    }
    config = small("dinov2");
    config.registers = 2;
    config.swiglu = true;
    a = write_small(dir, "d.safetensors", &config);
    for (size_t i = 0; i < AGGLO_COUNT(dinov2); i++) {
        test_rewrite(a, b, true, dinov2[i].alter, dinov2[i].name);
        assert_fails(try_open(b, "", &err), dinov2[i].status, dinov2[i].says);
    }
    assert_fails(try_open(test_path(dir, "none.safetensors"), "", &err), AGGLO_E_NOT_FOUND, "none.safetensors");
}

static void lying_configs(void **state)
{
    static const struct {
        const char *json;
        agglo_status status;
        const char *says;
    } table[] = {
        {"{\"hidden_size\": 64}", AGGLO_E_MISMATCH, "hidden_size is stated as 64, the tensors say 32"},
        {"{\"num_hidden_layers\": 3}", AGGLO_E_MISMATCH, "num_hidden_layers is stated as 3"},
        {"{\"patch_size\": 14}", AGGLO_E_MISMATCH, "patch_size"},
        {"{\"image_size\": 224}", AGGLO_E_MISMATCH, "image_size"},
        {"{\"intermediate_size\": 128}", AGGLO_E_MISMATCH, "intermediate_size"},
        {"{\"projection_dim\": 512}", AGGLO_E_MISMATCH, "projection_dim"},
        {"{\"model_type\": \"dinov2\"}", AGGLO_E_MISMATCH, "model_type is dinov2"},
        {"{\"hidden_act\": \"gelu_new\"}", AGGLO_E_UNSUPPORTED, "gelu_new"},
        {"{\"hidden_act\": 3}", AGGLO_E_DATA, "hidden_act"},
        {"{\"num_attention_heads\": 5}", AGGLO_E_DATA, "heads 5"},
        {"{\"num_attention_heads\": 0}", AGGLO_E_DATA, "num_attention_heads"},
        {"{\"num_attention_heads\": 2, \"layer_norm_eps\": -1}", AGGLO_E_DATA, "layer_norm_eps"},
        {"{\"num_attention_heads\": 2, \"layer_norm_eps\": 1e-85}", AGGLO_E_DATA, "layer_norm_eps is 1e-85"},
        {"{\"num_attention_heads\": ", AGGLO_E_DATA, "b.config.json"},
        {"[]", AGGLO_E_DATA, "b.config.json"},
    };
    agglo_teacher_config config = small("clip");
    const char *dir = test_dir(), *a = write_small(dir, "a.safetensors", &config), *b = test_path(dir, "b.safetensors");
    const char *json = test_path(dir, "b.config.json"), *preprocessor = test_path(dir, "b.preprocessor_config.json");
    agglo_err err = {0};

    (void)state;
    test_rewrite(a, b, false, NULL, "");
    for (size_t i = 0; i < AGGLO_COUNT(table); i++) {
        test_write_text(json, table[i].json);
        assert_fails(try_open(b, "", &err), table[i].status, table[i].says);
    }
    test_write_text(json, "{\"num_attention_heads\": 2}");
    assert_ok(try_open(b, "", &err));
    test_write_text(preprocessor, "{\"image_mean\": [0, 0], \"image_std\": [1, 1, 1]}");
    assert_fails(try_open(b, "", &err), AGGLO_E_DATA, "image_mean");
    test_write_text(preprocessor, "{\"image_mean\": [0, 0, 0], \"image_std\": [1, 0, 1]}");
    assert_fails(try_open(b, "", &err), AGGLO_E_DATA, "std 0 of channel 1");
}

static void wrong_options(void **state)
{
    agglo_teacher_config config = small("clip");
    const char *dir = test_dir(), *a = write_small(dir, "a.safetensors", &config), *b = test_path(dir, "b.safetensors");
    agglo_teacher_options options = agglo_teacher_options_default();
    agglo_encoder teacher;
    agglo_err err = {0};

    (void)state;
    assert_fails(try_open(a, "clip-vit-huge-14", &err), AGGLO_E_CONFIG,
                 "the weights have dim 32, clip-vit-huge-14 has 1280");
    assert_fails(try_open(a, "dinov2", &err), AGGLO_E_CONFIG, "family");
    assert_fails(try_open(a, "clip-vit-huge", &err), AGGLO_E_CONFIG, "unknown teacher architecture");
    options.weights = a;
    options.size = 18;
    assert_fails(agglo_teacher_open(&teacher, backend, &options, &err), AGGLO_E_CONFIG, "multiple of the patch");
    options.size = 0;
    options.max_batch = -1;
    assert_fails(agglo_teacher_open(&teacher, backend, &options, &err), AGGLO_E_CONFIG, "batch");

    config.proj = 0;
    write_small(dir, "b.safetensors", &config);
    assert_fails(try_open(b, "", &err), AGGLO_E_CONFIG, "preproj");
    options = agglo_teacher_options_default();
    options.weights = b;
    options.preproj = true;
    assert_ok(agglo_teacher_open(&teacher, backend, &options, &err));
    assert_string_equal(teacher.info.options, "summary=preproj,spatial_norm=1,pos=hub,gelu,h2");
    assert_int_equal(teacher.info.summary_dim, 32);
    agglo_encoder_clear(&teacher);
    config = small("dinov2");
    options.weights = write_small(dir, "d.safetensors", &config);
    assert_fails(agglo_teacher_open(&teacher, backend, &options, &err), AGGLO_E_CONFIG, "preproj");
}

static void unknown_tensors_are_listed(void **state)
{
    agglo_teacher_config config = small("dinov2");
    const char *dir = test_dir(), *a = write_small(dir, "a.safetensors", &config), *b = test_path(dir, "b.safetensors");
    agglo_encoder teacher;
    agglo_err err = {0};

    (void)state;
    test_rewrite(a, b, true, renamed, "embeddings.mask_token"); /* which is not needed */
    assert_ok(open_with(&teacher, b, "", &err));
    assert_int_equal(agglo_teacher_file_of(&teacher)->n_unknown, 1);
    assert_string_equal(agglo_teacher_file_of(&teacher)->unknown[0], "head.weight");
    agglo_encoder_clear(&teacher);
}

/* One plan per shape; smaller batches and repeated ones neither plan nor allocate. */
static void planned_once(void **state)
{
    agglo_teacher_config config = small("clip");
    const char *path = write_small(test_dir(), "a.safetensors", &config);
    agglo_encoder teacher;
    agglo_err err = {0};
    uint8_t pixels[4 * 24 * 24 * 3] = {0};
    float summary[4 * 24], spatial[4 * 36 * 32];
    int64_t before;

    (void)state;
    assert_ok(open_with(&teacher, path, "", &err));
    assert_int_equal(agglo_teacher_plans(&teacher), 0);
    assert_ok(teacher.encode(teacher.self, pixels, NULL, 4, 16, 16, summary, spatial, &err));
    assert_ok(teacher.encode(teacher.self, pixels, NULL, 3, 16, 16, summary, spatial, &err));
    assert_int_equal(agglo_teacher_plans(&teacher), 1);
    before = agglo_alloc_counts().n_total;
    for (int i = 0; i < 5; i++) {
        assert_ok(teacher.encode(teacher.self, pixels, NULL, 4 - i % 3, 16, 16, summary, spatial, &err));
        assert_ok(teacher.encode(teacher.self, pixels, NULL, 1, 16, 16, NULL, spatial, &err));
        assert_ok(teacher.encode(teacher.self, pixels, NULL, 1, 16, 16, summary, NULL, &err));
    }
    assert_int_equal(agglo_alloc_counts().n_total, before);
    assert_int_equal(agglo_teacher_plans(&teacher), 1);
    assert_ok(teacher.encode(teacher.self, pixels, NULL, 4, 24, 16, summary, spatial, &err));
    assert_int_equal(agglo_teacher_plans(&teacher), 2);
    agglo_encoder_clear(&teacher);
}

/* An image's features do not depend on what else is in the batch, nor on the batch's size, bit for bit. */
static void batches_do_not_matter(void **state)
{
    static const char *const models[] = {"weights/clip-tiny.safetensors", "weights/dinov2-tiny.safetensors"};
    enum { N = 37, SIDE = 32 };
    agglo_err err = {0};

    (void)state;
    for (size_t m = 0; m < AGGLO_COUNT(models); m++) {
        test_random random = test_random_new(5);
        agglo_encoder t;
        size_t n_pixels = SIDE * SIDE * 3, n_summary, n_spatial;
        uint8_t *pixels = (uint8_t *)agglo_alloc(N, n_pixels, &err);
        float *all[2], *one[2];

        assert_ok(open_with(&t, models[m], "", &err));
        n_summary = (size_t)t.info.summary_dim;
        n_spatial = (size_t)(SIDE / t.info.patch * (SIDE / t.info.patch) * t.info.spatial_dim);
        test_random_bytes(&random, pixels, N * n_pixels);
        for (int k = 0; k < 2; k++) {
            all[k] = (float *)agglo_alloc(N, (k == 0 ? n_summary : n_spatial) * sizeof(float), &err);
            one[k] = (float *)agglo_alloc(N, (k == 0 ? n_summary : n_spatial) * sizeof(float), &err);
        }
        assert_ok(t.encode(t.self, pixels, NULL, 32, SIDE, SIDE, all[0], all[1], &err));
        for (int first = 0, n = 1; first < 32; first += n, n = n % 7 + 1) {
            n = first + n > 32 ? 32 - first : n;
            assert_ok(t.encode(t.self, pixels + (size_t)first * n_pixels, NULL, n, SIDE, SIDE, one[0], one[1], &err));
            assert_memory_equal(one[0], all[0] + (size_t)first * n_summary, (size_t)n * n_summary * sizeof(float));
            assert_memory_equal(one[1], all[1] + (size_t)first * n_spatial, (size_t)n * n_spatial * sizeof(float));
        }
        for (int k = 0; k < 2; k++) {
            agglo_free(all[k]);
            agglo_free(one[k]);
        }
        agglo_free(pixels);
        agglo_encoder_clear(&t);
    }
}

static void failing_memory(void **state)
{
    agglo_teacher_config config = small("dinov2");
    const char *path = write_small(test_dir(), "a.safetensors", &config);
    agglo_err err = {0};
    int n = 0;

    (void)state;
    for (;; n++) {
        agglo_status status;

        agglo_alloc_fail_after(n);
        status = try_open(path, "", &err);
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
        cmocka_unit_test(prefixes_and_types),
        cmocka_unit_test(sources_of_facts),
        cmocka_unit_test(broken_checkpoints),
        cmocka_unit_test(lying_configs),
        cmocka_unit_test(wrong_options),
        cmocka_unit_test(unknown_tensors_are_listed),
        cmocka_unit_test(planned_once),
        cmocka_unit_test(batches_do_not_matter),
        cmocka_unit_test(failing_memory),
    };
    agglo_err err = {0};
    int n_failed;

    if (agglo_backend_cpu_new(&backend, 0, &err) != AGGLO_OK) {
        fprintf(stderr, "%s\n", err.why);
        return 1;
    }
    test_filter();
    n_failed = _cmocka_run_group_tests("teacher", tests, AGGLO_COUNT(tests), NULL, NULL);
    agglo_backend_free(backend);
    return test_finish("teacher", n_failed);
}
