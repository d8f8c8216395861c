/* What is stated beside the weights: what counts as a statement, who disagrees with whom, what values are refused, and where. Checkpoints are headers over
 * holes: all tensors of a published model are there, without a byte of values on the disk. */
#include "teachers/facts_impl.h"
#include "tests/support/checkpoints.h"

#include <unistd.h>

/* F16 tensors of the model in this layout; `metadata` is a JSON object or NULL. */
static const char *write_holes(const agglo_teacher_config *config, const agglo_layout *layout, const char *metadata)
{
    const char *path = test_path(test_dir(), "x.safetensors");
    agglo_layout_found where = {.layout = layout};
    agglo_layout_tensor *tensors;
    agglo_err err = {0};
    size_t n, most = 1 << 18, used = 8;
    char *text = (char *)agglo_alloc(most, 1, &err);
    long long at = 0;

    assert_non_null(text);
    snprintf(where.prefix, sizeof where.prefix, "%s", layout->prefixes[0]);
    assert_ok(agglo_layout_expand(&where, config, &tensors, &n, &err));
    used += (size_t)snprintf(text + used, most - used, "{\"__metadata__\":%s", metadata != NULL ? metadata : "{}");
    for (size_t i = 0; i < n; i++) {
        long long n_bytes = 2;

        used += (size_t)snprintf(text + used, most - used, ",\"%s\":{\"dtype\":\"F16\",\"shape\":[", tensors[i].name);
        for (int k = 0; k < tensors[i].rank; k++) {
            n_bytes *= tensors[i].shape[k];
            used +=
                (size_t)snprintf(text + used, most - used, "%s%lld", k > 0 ? "," : "", (long long)tensors[i].shape[k]);
        }
        used += (size_t)snprintf(text + used, most - used, "],\"data_offsets\":[%lld,%lld]}", at, at + n_bytes);
        at += n_bytes;
        assert_true(used + 512 < most);
    }
    text[used++] = '}';
    for (int i = 0; i < 8; i++) {
        text[i] = (char)((used - 8) >> (8 * i));
    }
    assert_ok(agglo_file_write(path, text, used, &err));
    assert_int_equal(truncate(path, (off_t)used + at), 0);
    agglo_free(tensors);
    agglo_free(text);
    return path;
}

static agglo_teacher_config named(const char *name)
{
    agglo_teacher_config c;
    agglo_err err = {0};

    assert_ok(agglo_teacher_named(name, &c, &err));
    return c;
}

/* NAME in the folder of these weights. */
static const char *in_folder(const char *weights, const char *name)
{
    agglo_err err = {0};
    char *dir = agglo_path_dir(weights, &err);
    const char *path = test_path(dir, name);

    agglo_free(dir);
    return path;
}

/* Only a file that names transformers' class leaves out that class's defaults. */
static void heads_left_out(void **state)
{
    static const struct {
        const char *json;
        int heads; /* 0: refused */
    } cases[] = {
        {"{}", 6},
        {"{\"hidden_size\": 384}", 6},
        {"{\"architectures\": [\"BertModel\"], \"hidden_size\": 384}", 6},
        {"{\"architectures\": []}", 6},
        {"{\"num_attention_heads\": 3}", 3},
        {"{\"model_type\": \"dinov2\", \"hidden_size\": 384}", 12},
        {"{\"architectures\": [\"Dinov2Model\"], \"hidden_size\": 384}", 12},
        {"{\"model_type\": \"dinov2\", \"hidden_size\": 384, \"num_attention_heads\": 6}", 6},
        {"{\"model_type\": \"dinov2\"}", 0},
        {"{\"architectures\": [\"Dinov2Model\"]}", 0},
    };
    agglo_teacher_config config = named("dinov2-small");
    const char *path = write_holes(&config, &agglo_layout_dinov2_hub, NULL), *json = in_folder(path, "config.json");
    agglo_teacher_file f;
    agglo_err err = {0};

    (void)state;
    for (size_t i = 0; i < AGGLO_COUNT(cases); i++) {
        test_write_text(json, cases[i].json);
        if (cases[i].heads == 0) {
            assert_fails(test_recognise(path, "", "", &f, &err), AGGLO_E_MISMATCH,
                         "hidden_size and num_attention_heads are left out, which means 768 and 12, the tensors are "
                         "384 wide");
            continue;
        }
        assert_ok(test_recognise(path, "", "", &f, &err));
        assert_int_equal(f.config.heads, cases[i].heads);
        assert_string_equal(f.heads_from, strstr(cases[i].json, "num_attention_heads") != NULL || cases[i].heads == 12
                                              ? "config.json"
                                              : "the width, as published models have it");
        assert_string_equal(f.act_from, strstr(cases[i].json, "inov2") != NULL ? "config.json" : "as published");
        agglo_teacher_file_clear(&f);
    }
    /* and so of CLIP's activation, which is a guess then, with a warning */
    config = named("clip");
    path = write_holes(&config, &agglo_layout_clip_hf, NULL);
    test_write_text(in_folder(path, "config.json"), "{\"projection_dim\": 64}");
    assert_ok(test_recognise(path, "", "", &f, &err));
    assert_string_equal(f.act_from, "assumed");
    agglo_teacher_file_clear(&f);
    test_write_text(in_folder(path, "config.json"),
                    "{\"architectures\": [\"CLIPModel\"], \"vision_config\": {\"hidden_size\": 64, "
                    "\"num_attention_heads\": 1}}");
    assert_ok(test_recognise(path, "", "", &f, &err));
    assert_string_equal(f.act_from, "config.json");
    assert_int_equal(f.config.act, AGGLO_ACT_QUICK_GELU);
    agglo_teacher_file_clear(&f);
    test_write_text(in_folder(path, "config.json"), "{\"vision_config\": {\"model_type\": \"siglip_vision_model\"}}");
    assert_fails(test_recognise(path, "", "", &f, &err), AGGLO_E_MISMATCH, "model_type is siglip_vision_model");
}

/* A registered architecture has one number of heads. */
static void arch_disagrees(void **state)
{
    agglo_teacher_config config = named("dinov2-small"), sam = named("sam-vit-base");
    const char *path = write_holes(&config, &agglo_layout_dinov2_hub, NULL), *json = in_folder(path, "config.json");
    agglo_teacher_file f;
    agglo_err err = {0};

    (void)state;
    assert_ok(test_recognise(path, "dinov2-small", "", &f, &err));
    assert_string_equal(f.heads_from, "the architecture asked for");
    assert_int_equal(f.config.heads, 6);
    agglo_teacher_file_clear(&f);
    test_write_text(json, "{\"num_attention_heads\": 12}");
    assert_fails(test_recognise(path, "dinov2-small", "", &f, &err), AGGLO_E_CONFIG,
                 "heads are 12 (config.json), dinov2-small has 6");
    assert_ok(test_recognise(path, "dinov2", "", &f, &err)); /* a family has no number of heads */
    assert_int_equal(f.config.heads, 12);
    agglo_teacher_file_clear(&f);
    sam.heads = 24; /* which its tables tell */
    path = write_holes(&sam, &agglo_layout_sam_original, NULL);
    assert_fails(test_recognise(path, "sam-vit-base", "", &f, &err), AGGLO_E_CONFIG,
                 "heads are 24 (the tensors), sam-vit-base has 12");
    assert_fails(test_recognise(path, "sam-vit-bas", "", &f, &err), AGGLO_E_CONFIG, "did you mean \"sam-vit-base\"?");
}

/* Bad values are the file's fault, and placed in it. */
static void bad_values(void **state)
{
    static const struct {
        const char *file, *json, *says;
    } cases[] = {
        {"config.json", "{\"num_attention_heads\": 5}", "dim 64 is no multiple of heads 5"},
        {"config.json", "{\"model_type\": \"clip\", \"hidden_size\": 64}", "dim 64 is no multiple of heads 12"},
        {"config.json", "{\"architecture\": \"vit\", \"model_args\": {\"num_heads\": 7}}", "no multiple of heads 7"},
        {"config.json", "{\"architecture\": \"vit\", \"model_args\": {\"num_heads\": 0}}", "num_heads"},
        {"config.json", "{\"architecture\": \"vit\", \"pretrained_cfg\": {\"mean\": [0, 0, 1e99], \"std\": [1, 1, 1]}}",
         "channel 2"},
        {"preprocessor_config.json", "{\"image_mean\": [0, 0, 0], \"image_std\": [1, 0, 1]}",
         "std 0 of channel 1 are not usable"},
        {"preprocessor_config.json", "{\"image_mean\": [0, 0, 0], \"image_std\": [1, 1, -2]}", "std -2 of channel 2"},
        {"open_clip_config.json",
         "{\"model_cfg\": {\"vision_cfg\": {}}, \"preprocess_cfg\": {\"mean\": [0, 0, 0], \"std\": [1, 1, 1e-60]}}",
         "std 0 of channel 2"},
    };
    static const struct {
        const char *json, *says;
    } metadata[] = {
        {"{\"family\":\"clip\",\"heads\":\"5\"}", "dim 64 is no multiple of heads 5"},
        {"{\"family\":\"clip\",\"mean\":\"0,0,0\",\"std\":\"1,1,inf\"}", "std inf of channel 2"},
        {"{\"family\":\"clip\",\"mean\":\"0,0,nan\",\"std\":\"1,1,1\"}", "mean nan and"},
    };
    agglo_teacher_config config = named("clip");
    agglo_teacher_file f;
    agglo_err err = {0};

    (void)state;
    for (size_t i = 0; i < AGGLO_COUNT(cases); i++) {
        const char *path = write_holes(&config, &agglo_layout_clip_hf, NULL), *json = in_folder(path, cases[i].file);

        test_write_text(json, cases[i].json);
        assert_fails(test_recognise(path, "", "", &f, &err), AGGLO_E_DATA, cases[i].says);
        assert_fails(test_recognise(path, "", "", &f, &err), AGGLO_E_DATA, json);
    }
    for (size_t i = 0; i < AGGLO_COUNT(metadata); i++) {
        const char *path = write_holes(&config, &agglo_layout_clip_hf, metadata[i].json);

        assert_fails(test_recognise(path, "", "", &f, &err), AGGLO_E_DATA, metadata[i].says);
        assert_fails(test_recognise(path, "", "", &f, &err), AGGLO_E_DATA, "x.safetensors: __metadata__");
    }
    config.patch = 300; /* the tensors' own, more than a model may have */
    config.image = 600;
    assert_fails(test_recognise(write_holes(&config, &agglo_layout_clip_hf, NULL), "", "", &f, &err), AGGLO_E_DATA,
                 "patch is 300");
}

/* The tensors' width is hostile, and times any ratio no int. */
static void ratio_of_any_width(void **state)
{
    static const struct {
        int dim, mlp_dim;
        const char *json;
        agglo_status status;
    } cases[] = {
        {1 << 24, 1 << 24, "{\"model_cfg\": {\"vision_cfg\": {\"mlp_ratio\": 999.0}}}", AGGLO_E_MISMATCH},
        {1 << 24, 1 << 24, "{\"model_cfg\": {\"vision_cfg\": {\"mlp_ratio\": 1e300}}}", AGGLO_E_MISMATCH},
        {1408, 6144, "{\"model_cfg\": {\"vision_cfg\": {\"mlp_ratio\": 4.3637}}}", AGGLO_OK}, /* 6144.09 */
        {1664, 8192, "{\"model_cfg\": {\"vision_cfg\": {\"mlp_ratio\": 4.9231}}}", AGGLO_OK}, /* 8192.04 */
        {1408, 6145, "{\"model_cfg\": {\"vision_cfg\": {\"mlp_ratio\": 4.3637}}}", AGGLO_E_MISMATCH},
    };
    agglo_teacher_config c = named("clip");
    agglo_err err = {0};

    (void)state;
    for (size_t i = 0; i < AGGLO_COUNT(cases); i++) {
        agglo_facts known = {0};
        json_t *json;

        c.dim = cases[i].dim;
        c.mlp_dim = cases[i].mlp_dim;
        assert_ok(agglo_json_parse(cases[i].json, strlen(cases[i].json), &json, &err));
        assert_int_equal(agglo_facts_open_clip(&known, json, &agglo_layout_clip_open, &c, &err), cases[i].status);
        assert_true(cases[i].status == AGGLO_OK || strstr(err.why, "mlp_ratio") != NULL);
        agglo_err_clear(&err);
        json_decref(json);
    }
}

/* As transformers' processors do it (5.24: CLIP's and Bit's crop 224 x 224 by default, ViT's and Siglip's do not crop; {"height", "width"} squashes
 * in all of them, and a size of one number in ViT's). Held against a model whose own default is the other. */
static void preprocessors(void **state)
{
    static const struct {
        const char *json; /* behind mean and std */
        agglo_fit fit;
        agglo_filter filter;
    } cases[] = {
        {"", AGGLO_FIT_SQUASH, AGGLO_BICUBIC}, /* the registry's */
        {"\"image_processor_type\": \"CLIPImageProcessor\"", AGGLO_FIT_CROP, AGGLO_BICUBIC},
        {"\"feature_extractor_type\": \"CLIPFeatureExtractor\", \"size\": 378, \"crop_size\": 378", AGGLO_FIT_CROP,
         AGGLO_BICUBIC},
        {"\"size\": {\"shortest_edge\": 378}, \"do_center_crop\": true, \"resample\": 2", AGGLO_FIT_CROP,
         AGGLO_BILINEAR},
        {"\"size\": {\"shortest_edge\": 378}", AGGLO_FIT_CROP, AGGLO_BICUBIC},
        {"\"image_processor_type\": \"BitImageProcessor\", \"size\": {\"shortest_edge\": 256}", AGGLO_FIT_CROP,
         AGGLO_BICUBIC},
        {"\"image_processor_type\": \"ViTImageProcessor\", \"size\": {\"shortest_edge\": 378}", AGGLO_FIT_CROP,
         AGGLO_BILINEAR},
        {"\"resample\": 3", AGGLO_FIT_CROP, AGGLO_BICUBIC},
    };
    static const struct {
        const char *json;
        agglo_fit fit;
        agglo_filter filter;
    } cropped[] = {
        {"", AGGLO_FIT_CROP, AGGLO_BICUBIC}, /* the registry's */
        {"\"size\": {\"height\": 64, \"width\": 64}, \"crop_size\": {\"height\": 64, \"width\": 64}", AGGLO_FIT_SQUASH,
         AGGLO_BICUBIC},
        {"\"size\": {\"height\": 64, \"width\": 64}, \"do_center_crop\": true, \"crop_size\": 64", AGGLO_FIT_SQUASH,
         AGGLO_BICUBIC},
        {"\"size\": {\"height\": 224, \"width\": 224}", AGGLO_FIT_SQUASH, AGGLO_BICUBIC},
        {"\"size\": {\"height\": 64, \"width\": 64}, \"do_center_crop\": false", AGGLO_FIT_SQUASH, AGGLO_BICUBIC},
        {"\"image_processor_type\": \"ViTImageProcessorFast\", \"size\": {\"height\": 64, \"width\": 64}",
         AGGLO_FIT_SQUASH, AGGLO_BILINEAR},
        {"\"feature_extractor_type\": \"ViTFeatureExtractor\", \"size\": 64, \"resample\": 3", AGGLO_FIT_SQUASH,
         AGGLO_BICUBIC},
        {"\"image_processor_type\": \"SiglipImageProcessor\", \"size\": {\"height\": 64, \"width\": 64}",
         AGGLO_FIT_SQUASH, AGGLO_BICUBIC},
    };
    static const struct {
        const char *json;
        agglo_status status;
        const char *says;
    } refused[] = {
        /* no crop is stated: CLIP's class crops 224 x 224 of it */
        {"\"image_processor_type\": \"CLIPImageProcessor\", \"size\": {\"height\": 64, \"width\": 64}",
         AGGLO_E_UNSUPPORTED, "squashed to 64 x 64, then cropped to 224 x 224"},
        {"\"size\": {\"height\": 64, \"width\": 72}, \"do_center_crop\": true, \"crop_size\": 64", AGGLO_E_UNSUPPORTED,
         "squashed to 72 x 64, then cropped to 64 x 64"},
        {"\"size\": {\"height\": 64}", AGGLO_E_DATA, "width"},
        {"\"size\": \"64\"", AGGLO_E_DATA, "size"},
        {"\"size\": 0", AGGLO_E_DATA, "size"},
        {"\"size\": 64, \"do_center_crop\": 1", AGGLO_E_DATA, "do_center_crop"},
        {"\"image_processor_type\": 7", AGGLO_E_DATA, "image_processor_type"},
    };
    agglo_teacher_config squash = named("clip-vit-huge-14-378"), crop = named("clip");
    const char *path = write_holes(&squash, &agglo_layout_clip_hf, NULL);
    const char *json = in_folder(path, "preprocessor_config.json");
    char text[512];
    agglo_teacher_config read;
    agglo_err err = {0};

    (void)state;
    for (size_t i = 0; i < AGGLO_COUNT(cases); i++) {
        snprintf(text, sizeof text, "{\"image_mean\": [0, 0, 0], \"image_std\": [1, 1, 1]%s%s}", i > 0 ? ", " : "",
                 cases[i].json);
        test_write_text(json, text);
        assert_ok(test_recognise_config(path, "", &read, &err));
        assert_string_equal(read.arch, "clip-vit-huge-14-378");
        assert_int_equal(read.fit, cases[i].fit);
        assert_int_equal(read.filter, cases[i].filter);
    }
    path = write_holes(&crop, &agglo_layout_clip_hf, NULL);
    json = in_folder(path, "preprocessor_config.json");
    for (size_t i = 0; i < AGGLO_COUNT(cropped); i++) {
        snprintf(text, sizeof text, "{\"image_mean\": [0, 0, 0], \"image_std\": [1, 1, 1]%s%s}", i > 0 ? ", " : "",
                 cropped[i].json);
        test_write_text(json, text);
        assert_ok(test_recognise_config(path, "", &read, &err));
        assert_int_equal(read.fit, cropped[i].fit);
        assert_int_equal(read.filter, cropped[i].filter);
    }
    for (size_t i = 0; i < AGGLO_COUNT(refused); i++) {
        snprintf(text, sizeof text, "{\"image_mean\": [0, 0, 0], \"image_std\": [1, 1, 1], %s}", refused[i].json);
        test_write_text(json, text);
        assert_fails(test_recognise_config(path, "", &read, &err), refused[i].status, refused[i].says);
    }
}

/* timm's config.json beside what timm has too: heads, and of a SAM not how its pictures are fitted. */
static void timm(void **state)
{
    agglo_teacher_config dinov2 = named("dinov2"), sam = named("sam"), read;
    const char *path;
    agglo_teacher_file f;
    agglo_err err = {0};

    (void)state;
    path = write_holes(&dinov2, &agglo_layout_dinov2_hub, NULL);
    test_write_text(in_folder(path, "config.json"),
                    "{\"architecture\": \"vit\", \"model_args\": {\"num_heads\": 4}, \"pretrained_cfg\": "
                    "{\"crop_mode\": \"squash\", \"interpolation\": \"bilinear\"}}");
    assert_ok(test_recognise(path, "", "", &f, &err));
    assert_int_equal(f.config.heads, 4);
    assert_string_equal(f.heads_from, "config.json");
    assert_int_equal(f.config.fit, AGGLO_FIT_SQUASH);
    agglo_teacher_file_clear(&f);
    path = write_holes(&sam, &agglo_layout_sam_original, NULL);
    test_write_text(in_folder(path, "config.json"),
                    "{\"architecture\": \"samvit_base_patch16\", \"pretrained_cfg\": {\"crop_mode\": \"center\", "
                    "\"interpolation\": \"bicubic\", \"mean\": [0.5, 0.5, 0.5], \"std\": [0.5, 0.5, 0.5]}}");
    assert_ok(test_recognise_config(path, "", &read, &err));
    assert_int_equal(read.fit, AGGLO_FIT_PAD);
    assert_int_equal(read.filter, AGGLO_BILINEAR);
    assert_true(read.mean[0] == 0.5f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(heads_left_out),     cmocka_unit_test(arch_disagrees), cmocka_unit_test(bad_values),
        cmocka_unit_test(ratio_of_any_width), cmocka_unit_test(preprocessors),  cmocka_unit_test(timm),
    };

    return test_run("facts", tests);
}
