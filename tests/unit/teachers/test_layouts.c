/* Layouts of published checkpoints: what is recognised, what is told apart, what is refused, and what the files beside the weights say. The fixtures of
 * tests/fixtures/teachers/layouts, altered; that the features are right is test_layout_parity's. */
#include <math.h>

#include "tests/support/checkpoints.h"

static agglo_backend *backend;

/* ---- altered copies of fixtures ---- */

/* The fixture's own tensors without its test cases; `more` (may be NULL) is added as one more F32 [1]. */
static const char *altered(const char *fixture, test_alter alter, const char *text, const char *more)
{
    const char *path = test_path(test_dir(), "x.safetensors");
    char from[160];

    snprintf(from, sizeof from, "teachers/layouts/%s.safetensors", fixture);
    test_copy_checkpoint(&(test_copy){
        .from = test_fixture(from), .to = path, .skip = "test.", .alter = alter, .text = text, .more = more});
    return path;
}

static bool strip_prefix(agglo_st_tensor *t, const char *text)
{
    if (strncmp(t->name, text, strlen(text)) == 0) {
        t->name = test_keep_name("", t->name + strlen(text));
        return true;
    }
    return false;
}

static bool flat(agglo_st_tensor *t, const char *text)
{
    if (strcmp(t->name, text) == 0) {
        t->rank = 1;
        t->shape[0] = t->n_elements;
    }
    return true;
}

static bool not_finite(agglo_st_tensor *t, const char *text)
{
    static float values[4096];

    if (strcmp(t->name, text) == 0) {
        assert_true(t->dtype == AGGLO_F32 && t->n_bytes <= sizeof values);
        memcpy(values, t->data, t->n_bytes);
        values[t->n_elements - 2] = INFINITY;
        t->data = (const uint8_t *)values;
    }
    return true;
}

/* Doubles; the largest float's double stays finite, one of 1e300 does not. */
static bool doubles(agglo_st_tensor *t, const char *text)
{
    static double values[65536];
    static size_t used;

    if (t->dtype != AGGLO_F32) {
        return true;
    }
    used = strcmp(t->name, text) == 0 || used + (size_t)t->n_elements > AGGLO_COUNT(values) ? 0 : used;
    for (int64_t i = 0; i < t->n_elements; i++) {
        float value;

        memcpy(&value, t->data + (size_t)i * 4, 4);
        values[used + (size_t)i] = (double)value;
    }
    if (strcmp(t->name, text) == 0) {
        values[used + 3] = 1e300;
    }
    t->data = (const uint8_t *)(values + used);
    used += (size_t)t->n_elements;
    t->dtype = AGGLO_F64;
    return true;
}

static bool negative_zeros(agglo_st_tensor *t, const char *text)
{
    if (strcmp(t->name, text) == 0) {
        float *values = test_keep_values(t);

        for (int64_t i = 0; i < t->n_elements; i++) {
            values[i] = i % 2 == 0 ? -0.0f : 0.0f;
        }
    }
    return true;
}

static bool classifier_bias(agglo_st_tensor *t, const char *text)
{
    static const float values[24] = {0.0f, 0.5f};

    if (strcmp(t->name, text) == 0) {
        t->data = (const uint8_t *)values;
    }
    return true;
}

static agglo_status recognise(const char *path, const char *act, agglo_teacher_file *out, agglo_err *err)
{
    return test_recognise(path, "", act, out, err);
}

/* STEM.NAME beside x.safetensors */
static const char *beside(const char *weights, const char *name)
{
    static char path[4096];

    snprintf(path, sizeof path, "%.*s.%s", (int)(strlen(weights) - strlen(".safetensors")), weights, name);
    return path;
}

/* ---- which layout ---- */

static void recognised(void **state)
{
    static const struct {
        const char *fixture, *layout, *prefix, *family;
        bool hub, swiglu;
        int depth, mlp_dim, proj, registers, image, heads;
        const char *act_from;
    } cases[] = {
        {"hf-clip-model", "transformers", "", "clip", false, false, 2, 80, 24, 0, 20, 2, "config.json"},
        {"hf-clip-vision", "transformers", "", "clip", false, false, 2, 80, 0, 0, 20, 2, "config.json"},
        {"open-clip", "open_clip", "", "clip", true, false, 2, 80, 24, 0, 20, 2, "open_clip_config.json"},
        {"open-clip-336", "open_clip", "", "clip", true, false, 2, 48, 24, 0, 224, 2, "open_clip_config.json"},
        {"timm-clip", "timm", "", "clip", true, false, 2, 80, 24, 0, 20, 1, "config.json"},
        {"hub-dinov2", "hub", "", "dinov2", true, false, 2, 96, 0, 0, 30, 1, "as published"},
        {"hub-dinov2-reg", "hub", "", "dinov2", true, false, 2, 96, 0, 4, 30, 1, "as published"},
        {"hub-dinov2-swiglu", "hub", "", "dinov2", true, true, 2, 64, 0, 0, 30, 1, "as published"},
        {"hub-dinov2-chunked", "hub", "teacher.backbone.", "dinov2", true, false, 4, 72, 0, 0, 30, 1, "as published"},
        {"hub-dinov2-518", "hub", "", "dinov2", true, false, 2, 36, 0, 0, 518, 1, "as published"},
    };
    agglo_err err = {0};

    (void)state;
    for (size_t i = 0; i < AGGLO_COUNT(cases); i++) {
        char path[160];
        agglo_teacher_file f;

        snprintf(path, sizeof path, "teachers/layouts/%s.safetensors", cases[i].fixture);
        assert_ok(recognise(test_fixture(path), "", &f, &err));
        assert_string_equal(f.layout, cases[i].layout);
        assert_string_equal(f.prefix, cases[i].prefix);
        assert_string_equal(f.config.family, cases[i].family);
        assert_string_equal(f.act_from, cases[i].act_from);
        assert_int_equal(f.hub, cases[i].hub);
        assert_int_equal(f.config.swiglu, cases[i].swiglu);
        assert_int_equal(f.config.depth, cases[i].depth);
        assert_int_equal(f.config.mlp_dim, cases[i].mlp_dim);
        assert_int_equal(f.config.proj, cases[i].proj);
        assert_int_equal(f.config.registers, cases[i].registers);
        assert_int_equal(f.config.image, cases[i].image);
        assert_int_equal(f.config.heads, cases[i].heads);
        for (size_t k = 0; k < f.n_unknown; k++) { /* text towers are known */
            assert_true(strncmp(f.unknown[k], "test.", 5) == 0);
        }
        agglo_teacher_file_clear(&f);
    }
}

/* Whatever a checkpoint wraps around the names; of a self-distillation's two copies the teacher's. */
static void wrapped(void **state)
{
    static const struct {
        const char *fixture, *prefix;
    } cases[] = {{"hf-clip-model", "module."},     {"hf-clip-vision", "model.vision_tower."},
                 {"open-clip", "module."},         {"timm-clip", "visual.trunk."},
                 {"hub-dinov2", "backbone."},      {"hub-dinov2-reg", "module.teacher.backbone."},
                 {"hub-dinov2-swiglu", "a.b.c.d."}};
    agglo_err err = {0};
    agglo_teacher_file f;
    const char *path;

    (void)state;
    for (size_t i = 0; i < AGGLO_COUNT(cases); i++) {
        path = altered(cases[i].fixture, test_add_prefix, cases[i].prefix, NULL);
        assert_ok(recognise(path, "gelu", &f, &err));
        assert_string_equal(f.prefix, cases[i].prefix);
        assert_int_equal(f.n_unknown, 0);
        agglo_teacher_file_clear(&f);
    }
    assert_ok(recognise(altered("open-clip", strip_prefix, "visual.", NULL), "gelu", &f, &err)); /* the tower alone */
    assert_string_equal(f.layout, "open_clip");
    agglo_teacher_file_clear(&f);
    /* not a prefix: no dot before the name */
    assert_fails(recognise(altered("hub-dinov2", test_add_prefix, "x", NULL), "", &f, &err), AGGLO_E_UNSUPPORTED,
                 "no tensor names of a known teacher");
}

static char twice_name[256];

/* Tensors of two fixtures (or of one under two prefixes) in one file. */
static const char *both(const char *fixture, const char *prefix_a, const char *prefix_b)
{
    const char *path = test_path(test_dir(), "two.safetensors");
    char from[160];
    agglo_err err = {0};
    agglo_safetensors *st;
    agglo_st_writer *writer;

    snprintf(from, sizeof from, "teachers/layouts/%s.safetensors", fixture);
    assert_ok(agglo_safetensors_open(&st, test_fixture(from), &err));
    assert_ok(agglo_st_writer_new(&writer, &err));
    for (size_t i = 0; i < agglo_safetensors_count(st); i++) {
        const agglo_st_tensor *t = agglo_safetensors_at(st, i);

        if (strncmp(t->name, "test.", 5) != 0) {
            assert_ok(agglo_st_writer_add(writer, test_keep_name(prefix_a, t->name), t->dtype, t->rank, t->shape,
                                          t->data, &err));
            assert_ok(agglo_st_writer_add(writer, test_keep_name(prefix_b, t->name), t->dtype, t->rank, t->shape,
                                          t->data, &err));
        }
    }
    assert_ok(agglo_st_writer_write(writer, path, &err));
    agglo_st_writer_free(writer);
    agglo_safetensors_close(st);
    test_keep_end();
    snprintf(twice_name, sizeof twice_name, "%s", path);
    return twice_name;
}

static void two_towers(void **state)
{
    agglo_err err = {0};
    agglo_teacher_file f;

    (void)state;
    assert_ok(recognise(both("hub-dinov2", "student.backbone.", "teacher.backbone."), "", &f, &err));
    assert_string_equal(f.prefix, "teacher.backbone.");
    assert_true(f.n_unknown > 20 && strncmp(f.unknown[0], "student.", 8) == 0);
    agglo_teacher_file_clear(&f);
    assert_fails(recognise(both("hub-dinov2", "a.", "b."), "", &f, &err), AGGLO_E_UNSUPPORTED,
                 "there are two image towers, at a.patch_embed.proj.weight and b.patch_embed.proj.weight");
}

/* ---- what is refused ---- */

static void refused(void **state)
{
    static const struct {
        const char *fixture;
        test_alter alter;
        const char *text, *more;
        agglo_status status;
        const char *says;
    } cases[] = {
        {"open-clip", test_drop, "visual.transformer.resblocks.1.mlp.c_proj.bias", NULL, AGGLO_E_DATA,
         "visual.transformer.resblocks.1.mlp.c_proj.bias is missing, expected shape [32]"},
        {"open-clip", test_drop, "visual.ln_pre.bias", NULL, AGGLO_E_DATA, "visual.ln_pre.bias is missing"},
        {"open-clip", test_drop, "visual.positional_embedding", NULL, AGGLO_E_DATA, "positional_embedding is missing"},
        {"open-clip", test_drop, "visual.class_embedding", NULL, AGGLO_E_UNSUPPORTED, "known teacher"}, /* a ResNet */
        {"open-clip", flat, "visual.proj", NULL, AGGLO_E_DATA,
         "tensor visual.proj has shape [768], expected [dim, proj]"},
        {"open-clip", flat, "visual.transformer.resblocks.0.attn.in_proj_weight", NULL, AGGLO_E_DATA,
         "in_proj_weight has shape [3072], expected [96, 32]"},
        {"open-clip", test_as_integers, "visual.ln_post.weight", NULL, AGGLO_E_UNSUPPORTED,
         "visual.ln_post.weight is I32"},
        {"open-clip", NULL, "", "visual.attn_pool.probe", AGGLO_E_UNSUPPORTED, "attentional pooling (CoCa)"},
        {"open-clip", NULL, "", "visual.transformer.resblocks.0.ls_1.gamma", AGGLO_E_UNSUPPORTED,
         "visual.transformer.resblocks.0.ls_1.gamma is no part of a clip block as open_clip stores it"},
        {"open-clip", NULL, "", "visual.transformer.resblocks.7.ln_1.weight", AGGLO_E_UNSUPPORTED, "resblocks.7"},
        {"hf-clip-model", NULL, "", "vision_model.encoder.layers.1.layer_scale.gamma", AGGLO_E_UNSUPPORTED,
         "is no part of a clip block as transformers stores it"},
        {"timm-clip", test_drop, "norm_pre.weight", NULL, AGGLO_E_UNSUPPORTED, "known teacher"}, /* a plain ViT */
        {"timm-clip", NULL, "", "fc_norm.weight", AGGLO_E_UNSUPPORTED, "average pooling"},
        {"hub-dinov2", test_drop_start, "blocks.0.ls", NULL, AGGLO_E_UNSUPPORTED, "known teacher"},
        {"hub-dinov2", test_drop, "blocks.0.ls2.gamma", NULL, AGGLO_E_DATA, "blocks.0.ls2.gamma is missing"},
        {"hub-dinov2", test_drop, "blocks.0.norm1.weight", NULL, AGGLO_E_DATA, "blocks.0.norm1.weight is missing"},
        {"hub-dinov2", NULL, "", "reg_token", AGGLO_E_UNSUPPORTED, "timm's layout of DINOv2 with registers"},
        {"hub-dinov2", NULL, "", "storage_tokens", AGGLO_E_UNSUPPORTED, "DINOv3"},
        {"hub-dinov2-reg", flat, "register_tokens", NULL, AGGLO_E_DATA, "[1, registers, dim]"},
        {"hub-dinov2-swiglu", flat, "blocks.1.mlp.w12.weight", NULL, AGGLO_E_DATA,
         "blocks.1.mlp.w12.weight has shape [4096], expected [128, 32]"},
        {"hub-dinov2-chunked", test_drop, "teacher.backbone.blocks.1.3.attn.qkv.bias", NULL, AGGLO_E_DATA,
         "teacher.backbone.blocks.1.3.attn.qkv.bias is missing, expected shape [72]"},
        {"hub-dinov2-chunked", test_drop, "teacher.backbone.blocks.1.2.norm1.weight", NULL, AGGLO_E_UNSUPPORTED,
         "is no part of a dinov2 block"},
        {"hub-dinov2", flat, "patch_embed.proj.weight", NULL, AGGLO_E_DATA, "[dim, 3, patch, patch]"},
    };
    agglo_err err = {0};
    agglo_teacher_file f;

    (void)state;
    for (size_t i = 0; i < AGGLO_COUNT(cases); i++) {
        const char *path = altered(cases[i].fixture, cases[i].alter, cases[i].text, cases[i].more);

        assert_fails(recognise(path, "gelu", &f, &err), cases[i].status, cases[i].says);
    }
}

static agglo_status try_open(const char *weights, bool preproj, agglo_err *err)
{
    agglo_teacher_options options = agglo_teacher_options_default();

    options.weights = weights;
    options.act = "gelu";
    options.preproj = preproj;
    return test_try_open(backend, &options, err);
}

/* Values are looked at when they are loaded: the tensor and the element in the file's own order. */
static void values(void **state)
{
    agglo_err err = {0};

    (void)state;
    assert_fails(try_open(altered("open-clip", not_finite, "visual.proj", NULL), false, &err), AGGLO_E_DATA,
                 "element 766 is not finite");
    assert_fails(try_open(altered("open-clip", not_finite, "visual.proj", NULL), false, &err), AGGLO_E_DATA,
                 "visual.proj");
    assert_fails(try_open(altered("open-clip", not_finite, "visual.transformer.resblocks.1.attn.in_proj_weight", NULL),
                          false, &err),
                 AGGLO_E_DATA, "element 3070 is not finite");
    assert_ok(try_open(altered("hf-clip-vision", doubles, "", NULL), true, &err));
    assert_fails(try_open(altered("hf-clip-vision", doubles, "post_layernorm.bias", NULL), true, &err), AGGLO_E_DATA,
                 "element 3 is not finite");
}

/* timm's head is CLIP's projection with a bias of zeros, or a classifier. */
static void head_that_classifies(void **state)
{
    agglo_err err = {0};
    agglo_teacher_file f;
    const char *path = altered("timm-clip", classifier_bias, "head.bias", NULL);

    (void)state;
    assert_ok(recognise(path, "gelu", &f, &err));
    assert_int_equal(f.config.proj, 0);
    assert_int_equal(f.n_unknown, 1);
    assert_string_equal(f.unknown[0], "head.weight");
    agglo_teacher_file_clear(&f);
    assert_fails(try_open(path, false, &err), AGGLO_E_CONFIG, "no projection: only summary \"preproj\"");
    assert_ok(try_open(path, true, &err));
    assert_ok(recognise(altered("timm-clip", negative_zeros, "head.bias", NULL), "gelu", &f, &err));
    assert_int_equal(f.config.proj, 24);
    agglo_teacher_file_clear(&f);
}

/* ---- what stands beside the weights ---- */

#define VISION "\"vision_cfg\": {\"width\": 32, \"layers\": 2, \"patch_size\": 4, \"mlp_ratio\": 2.5"

static void open_clip_configs(void **state)
{
    static const struct {
        const char *json;
        agglo_status status;
        const char *says;
    } cases[] = {
        {"{}", AGGLO_E_DATA, "model_cfg"},
        {"{\"model_cfg\": {}}", AGGLO_E_DATA, "vision_cfg"},
        {"{\"model_cfg\": {" VISION ", \"width\": 64}}}", AGGLO_E_DATA, "duplicate"},
        {"{\"model_cfg\": {\"vision_cfg\": {\"width\": 64}}}", AGGLO_E_MISMATCH, "width is stated as 64"},
        {"{\"model_cfg\": {\"vision_cfg\": {\"layers\": 12}}}", AGGLO_E_MISMATCH, "layers is stated as 12"},
        {"{\"model_cfg\": {\"vision_cfg\": {\"patch_size\": 16}}}", AGGLO_E_MISMATCH, "patch_size"},
        {"{\"model_cfg\": {\"vision_cfg\": {\"image_size\": 224}}}", AGGLO_E_MISMATCH, "image_size"},
        {"{\"model_cfg\": {\"vision_cfg\": {}}}", AGGLO_E_MISMATCH, "mlp_ratio 4 of width 32 is not the tensors' 80"},
        {"{\"model_cfg\": {" VISION "}}}", AGGLO_E_MISMATCH, "width 32 is no multiple of head_width 64"},
        {"{\"model_cfg\": {\"embed_dim\": 512, " VISION "}}}", AGGLO_E_MISMATCH, "embed_dim is stated as 512"},
        {"{\"model_cfg\": {" VISION ", \"head_width\": 8, \"attentional_pool\": true}}}", AGGLO_E_UNSUPPORTED,
         "attentional_pool"},
        {"{\"model_cfg\": {" VISION ", \"head_width\": 8, \"no_ln_pre\": true}}}", AGGLO_E_UNSUPPORTED, "no_ln_pre"},
        {"{\"model_cfg\": {" VISION ", \"head_width\": 8, \"pool_type\": \"avg\"}}}", AGGLO_E_UNSUPPORTED,
         "pool_type is avg, only tok"},
        {"{\"model_cfg\": {" VISION ", \"head_width\": 8, \"timm_model_name\": \"x\"}}}", AGGLO_E_MISMATCH, "timm"},
        {"{\"model_cfg\": {\"quick_gelu\": 1, " VISION ", \"head_width\": 8}}}", AGGLO_E_DATA, "quick_gelu"},
        {"{\"model_cfg\": {" VISION ", \"head_width\": 8}}, \"preprocess_cfg\": {\"resize_mode\": \"longest\"}}",
         AGGLO_E_UNSUPPORTED, "resize_mode is longest"},
        {"{\"model_cfg\": {" VISION ", \"head_width\": 8}}, \"preprocess_cfg\": {\"interpolation\": \"nearest\"}}",
         AGGLO_E_UNSUPPORTED, "interpolation is nearest"},
        {"{\"model_cfg\": {" VISION ", \"head_width\": 8}}, \"preprocess_cfg\": {\"mean\": [1], \"std\": [1]}}",
         AGGLO_E_DATA, "mean is not three numbers"},
    };
    agglo_err err = {0};
    agglo_teacher_file f;
    const char *path = altered("open-clip", NULL, "", NULL), *json = beside(path, "open_clip_config.json");

    (void)state;
    for (size_t i = 0; i < AGGLO_COUNT(cases); i++) {
        test_write_text(json, cases[i].json);
        assert_fails(recognise(path, "", &f, &err), cases[i].status, cases[i].says);
    }
    test_write_text(
        json, "{\"model_cfg\": {\"embed_dim\": 24, \"quick_gelu\": true, " VISION
              ", \"head_width\": 8, \"norm_kwargs\": {\"eps\": 1e-6}, \"act_kwargs\": {}, \"ls_init_value\": null}}, "
              "\"preprocess_cfg\": {\"mean\": [0.5, 0.5, 0.5], \"std\": [0.25, 0.5, 0.5], \"resize_mode\": "
              "\"squash\", \"interpolation\": \"bilinear\"}}");
    assert_ok(recognise(path, "", &f, &err));
    assert_int_equal(f.config.heads, 4);
    assert_int_equal(f.config.act, AGGLO_ACT_QUICK_GELU);
    assert_true(f.config.norm_eps == 1e-6f && f.config.std[0] == 0.25f);
    assert_int_equal(f.config.fit, AGGLO_FIT_SQUASH);
    assert_int_equal(f.config.filter, AGGLO_BILINEAR);
    assert_string_equal(f.pixels_from, "open_clip_config.json");
    agglo_teacher_file_clear(&f);
    /* absent is false */
    test_write_text(json, "{\"model_cfg\": {" VISION ", \"head_width\": 16}}}");
    assert_ok(recognise(path, "", &f, &err));
    assert_int_equal(f.config.act, AGGLO_ACT_GELU);
    assert_int_equal(f.config.fit, AGGLO_FIT_CROP);
    assert_string_equal(f.act_from, "open_clip_config.json");
    agglo_teacher_file_clear(&f);
}

/* The library whose layout it is speaks first; the caller's word is above all. */
static void who_is_believed(void **state)
{
    agglo_err err = {0};
    agglo_teacher_file f;
    const char *path = altered("open-clip", NULL, "", NULL);

    (void)state;
    assert_ok(recognise(path, "", &f, &err));
    assert_string_equal(f.act_from, "assumed");
    assert_int_equal(f.config.act, AGGLO_ACT_GELU);
    agglo_teacher_file_clear(&f);
    assert_ok(recognise(path, "quick_gelu", &f, &err));
    assert_string_equal(f.act_from, "asked for");
    assert_int_equal(f.config.act, AGGLO_ACT_QUICK_GELU);
    agglo_teacher_file_clear(&f);
    assert_fails(recognise(path, "relu", &f, &err), AGGLO_E_CONFIG, "neither gelu nor quick_gelu");

    test_write_text(beside(path, "config.json"),
                    "{\"model_type\": \"clip\", \"vision_config\": {\"hidden_size\": 32, \"num_attention_heads\": 4}}");
    assert_ok(recognise(path, "", &f, &err));
    assert_string_equal(f.act_from, "config.json");
    assert_int_equal(f.config.act, AGGLO_ACT_QUICK_GELU);
    assert_int_equal(f.config.heads, 4);
    agglo_teacher_file_clear(&f);
    test_write_text(beside(path, "open_clip_config.json"), "{\"model_cfg\": {" VISION ", \"head_width\": 16}}}");
    assert_ok(recognise(path, "", &f, &err));
    assert_string_equal(f.act_from, "open_clip_config.json");
    assert_int_equal(f.config.act, AGGLO_ACT_GELU);
    assert_int_equal(f.config.heads, 2);
    agglo_teacher_file_clear(&f);
    assert_ok(recognise(path, "quick_gelu", &f, &err));
    assert_int_equal(f.config.act, AGGLO_ACT_QUICK_GELU);
    agglo_teacher_file_clear(&f);
}

static void timm_configs(void **state)
{
    agglo_err err = {0};
    agglo_teacher_file f;
    const char *path = altered("timm-clip", NULL, "", NULL), *json = beside(path, "config.json");

    (void)state;
    test_write_text(
        json, "{\"architecture\": \"vit_base_patch16_clip_quickgelu_224\", \"pretrained_cfg\": {\"mean\": [0.5, 0.5, "
              "0.5], \"std\": [0.5, 0.5, 0.5], \"interpolation\": \"bicubic\", \"crop_mode\": \"squash\"}}");
    assert_ok(recognise(path, "", &f, &err));
    assert_int_equal(f.config.act, AGGLO_ACT_QUICK_GELU);
    assert_int_equal(f.config.heads, 1); /* not transformers' default of 12 */
    assert_int_equal(f.config.fit, AGGLO_FIT_SQUASH);
    assert_true(f.config.mean[0] == 0.5f);
    agglo_teacher_file_clear(&f);
    test_write_text(json, "{\"architecture\": \"vit_base_patch16_clip_224\"}");
    assert_ok(recognise(path, "", &f, &err));
    assert_int_equal(f.config.act, AGGLO_ACT_GELU);
    agglo_teacher_file_clear(&f);
    test_write_text(json,
                    "{\"architecture\": \"vit_base_patch16_clip_224\", \"model_args\": {\"act_layer\": \"relu\"}}");
    assert_fails(recognise(path, "", &f, &err), AGGLO_E_UNSUPPORTED, "act_layer is relu");
    /* timm's word is about its own tensors */
    path = altered("open-clip", NULL, "", NULL);
    test_write_text(beside(path, "config.json"), "{\"architecture\": \"vit_base_patch16_clip_quickgelu_224\"}");
    assert_ok(recognise(path, "", &f, &err));
    assert_string_equal(f.act_from, "assumed");
    agglo_teacher_file_clear(&f);
}

static void preprocessor_configs(void **state)
{
    static const struct {
        const char *json;
        agglo_fit fit;
        agglo_filter filter;
    } cases[] = {
        {"{\"image_mean\": [0.5, 0.5, 0.5], \"image_std\": [0.5, 0.5, 0.5]}", AGGLO_FIT_CROP, AGGLO_BICUBIC},
        {"{\"image_mean\": [0.5, 0.5, 0.5], \"image_std\": [0.5, 0.5, 0.5], \"do_center_crop\": true, \"size\": "
         "{\"shortest_edge\": 256}, \"resample\": 3}",
         AGGLO_FIT_CROP, AGGLO_BICUBIC},
        {"{\"image_mean\": [0.5, 0.5, 0.5], \"image_std\": [0.5, 0.5, 0.5], \"do_center_crop\": false, \"size\": "
         "{\"height\": 378, \"width\": 378}, \"resample\": 2}",
         AGGLO_FIT_SQUASH, AGGLO_BILINEAR},
    };
    agglo_err err = {0};
    agglo_teacher_file f;
    const char *path = altered("hub-dinov2", NULL, "", NULL), *json = beside(path, "preprocessor_config.json");

    (void)state;
    for (size_t i = 0; i < AGGLO_COUNT(cases); i++) {
        test_write_text(json, cases[i].json);
        assert_ok(recognise(path, "", &f, &err));
        assert_int_equal(f.config.fit, cases[i].fit);
        assert_int_equal(f.config.filter, cases[i].filter);
        assert_true(f.config.mean[1] == 0.5f);
        assert_string_equal(f.pixels_from, "preprocessor_config.json");
        agglo_teacher_file_clear(&f);
    }
    test_write_text(json, "{\"image_mean\": [0, 0, 0], \"image_std\": [1, 1, 1], \"resample\": 5}");
    assert_fails(recognise(path, "", &f, &err), AGGLO_E_UNSUPPORTED, "resample is 5");
}

static void failing_memory(void **state)
{
    const char *path = altered("open-clip", NULL, "", NULL);
    agglo_err err = {0};
    int n = 0;

    (void)state;
    test_write_text(beside(path, "open_clip_config.json"), "{\"model_cfg\": {" VISION ", \"head_width\": 16}}}");
    for (;; n++) {
        agglo_status status;

        agglo_alloc_fail_after(n);
        status = try_open(path, false, &err);
        agglo_alloc_fail_after(-1);
        if (status == AGGLO_OK) {
            break;
        }
        assert_int_equal(err.status, AGGLO_E_MEMORY);
        agglo_err_clear(&err);
    }
    assert_true(n > 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(recognised),
        cmocka_unit_test(wrapped),
        cmocka_unit_test(two_towers),
        cmocka_unit_test(refused),
        cmocka_unit_test(values),
        cmocka_unit_test(head_that_classifies),
        cmocka_unit_test(open_clip_configs),
        cmocka_unit_test(who_is_believed),
        cmocka_unit_test(timm_configs),
        cmocka_unit_test(preprocessor_configs),
        cmocka_unit_test(failing_memory),
    };
    agglo_err err = {0};
    int n_failed;

    if (agglo_backend_cpu_new(&backend, 0, &err) != AGGLO_OK) {
        fprintf(stderr, "%s\n", err.why);
        return 1;
    }
    test_filter();
    n_failed = _cmocka_run_group_tests("layouts", tests, AGGLO_COUNT(tests), NULL, NULL);
    agglo_backend_free(backend);
    return test_finish("layouts", n_failed);
}
