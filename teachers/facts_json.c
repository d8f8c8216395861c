/* The dialects of JSON beside checkpoints: transformers' config.json and preprocessor_config.json, OpenCLIP's open_clip_config.json, timm's
 * config.json. See facts_impl.h. */
#include "teachers/facts_impl.h"
#include "teachers/sam_impl.h"

#include <math.h>
#include <string.h>

static const char from_config[] = "config.json", from_open[] = "open_clip_config.json",
                  from_preprocessor[] = "preprocessor_config.json";

static void set_act(agglo_facts *known, agglo_act act, const char *from)
{
    if (known->act_from == NULL) {
        known->act = act;
        known->act_from = from;
    }
}

static void set_fit(agglo_facts *known, agglo_fit fit, agglo_filter filter, const char *from)
{
    if (known->fit_from == NULL) {
        known->fit = fit;
        known->filter = filter;
        known->fit_from = from;
    }
}

static agglo_status set_eps(agglo_facts *known, const json_t *json, const char *key, const char *from, agglo_err *err)
{
    double eps;

    if (known->eps_from != NULL || json_object_get(json, key) == NULL) {
        return AGGLO_OK;
    }
    if (agglo_json_get_double(json, key, &eps, err) != AGGLO_OK) {
        return err->status;
    }
    if (!((float)eps > 0.0f && (float)eps < 1.0f)) { /* 1e-85 is above 0 and no float */
        return agglo_fail(err, AGGLO_E_DATA, "%s is %g, not between 0 and 1", key, eps);
    }
    known->norm_eps = (float)eps;
    known->eps_from = from;
    return AGGLO_OK;
}

static agglo_status read_triple(const json_t *root, const char *key, float out[3], agglo_err *err)
{
    const json_t *array = NULL;

    if (agglo_json_get_array(root, key, &array, err) != AGGLO_OK) {
        return err->status;
    }
    for (size_t i = 0; i < 3; i++) {
        const json_t *value = json_array_get(array, i);

        if (json_array_size(array) != 3 || !json_is_number(value)) {
            return agglo_fail(err, AGGLO_E_DATA, "%s is not three numbers", key);
        }
        out[i] = (float)json_number_value(value);
    }
    return AGGLO_OK;
}

static agglo_status set_pixels(agglo_facts *known, const json_t *json, const char *mean, const char *std,
                               const char *from, agglo_err *err)
{
    float m[3], s[3];

    if (read_triple(json, mean, m, err) != AGGLO_OK || read_triple(json, std, s, err) != AGGLO_OK) {
        return err->status;
    }
    return agglo_facts_set_pixels(known, m, s, from, err);
}

static agglo_status filter_of(const char *name, agglo_filter *out, agglo_err *err)
{
    if (strcmp(name, "bicubic") == 0) {
        *out = AGGLO_BICUBIC;
    } else if (strcmp(name, "bilinear") == 0) {
        *out = AGGLO_BILINEAR;
    } else {
        return agglo_fail(err, AGGLO_E_UNSUPPORTED, "interpolation is %.32s, known are bicubic and bilinear", name);
    }
    return AGGLO_OK;
}

/* ---- transformers ---- */

/* window_size and global_attn_indexes of a SAM, where they are there; heads, which the tensors tell too. */
static agglo_status sam_windows(agglo_facts *known, const json_t *json, const agglo_teacher_config *c, agglo_err *err)
{
    uint32_t global_layers[AGGLO_TEACHER_MOST_DEPTH / 32] = {0};
    const json_t *list = NULL;
    int64_t window;

    if (agglo_facts_confirm(json, "num_attention_heads", c->heads, err) != AGGLO_OK ||
        (c->neck > 0 && agglo_facts_confirm(json, "output_channels", c->neck, err) != AGGLO_OK)) {
        return err->status;
    }
    if (json_object_get(json, "window_size") == NULL || json_object_get(json, "global_attn_indexes") == NULL) {
        return AGGLO_OK;
    }
    if (agglo_json_get_int(json, "window_size", 0, 512, &window, err) != AGGLO_OK ||
        agglo_json_get_array(json, "global_attn_indexes", &list, err) != AGGLO_OK) {
        return err->status;
    }
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *item = json_array_get(list, i);
        int64_t block = json_is_integer(item) ? json_integer_value(item) : -1;

        if (block < 0 || block >= c->depth || block >= AGGLO_TEACHER_MOST_DEPTH) {
            return agglo_fail(err, AGGLO_E_DATA, "global_attn_indexes holds something that is no block of %d",
                              c->depth);
        }
        global_layers[block / 32] |= 1u << (block % 32);
    }
    if (agglo_sam_confirm(c, (int)window, global_layers, err) == AGGLO_OK && known->windows_from == NULL) {
        known->windows_from = from_config;
        known->window = (int)window;
        memcpy(known->global_layers, global_layers, sizeof known->global_layers);
    }
    return err->status;
}

/* Whether the class is named, by model_type or, in what older versions saved, by architectures alone: only then is what the file leaves out
 * the class's default. Any other object (an empty one) has left out what it never knew. A model_type of another family is AGGLO_E_MISMATCH. */
static agglo_status names_class(const json_t *json, const agglo_teacher_config *c, bool *named, agglo_err *err)
{
    static const struct {
        const char *family, *start;
    } classes[] = {{"clip", "CLIP"}, {"dinov2", "Dinov2"}, {"sam", "Sam"}};
    const json_t *first = json_array_get(json_object_get(json, "architectures"), 0);
    const char *text = json_string_value(first);

    for (size_t i = 0; i < AGGLO_COUNT(classes) && text != NULL; i++) {
        *named |=
            strcmp(classes[i].family, c->family) == 0 && strncmp(text, classes[i].start, strlen(classes[i].start)) == 0;
    }
    if (json_object_get(json, "model_type") == NULL) {
        return AGGLO_OK;
    }
    if (agglo_json_get_string(json, "model_type", &text, err) != AGGLO_OK) {
        return err->status;
    }
    if (strncmp(text, c->family, strlen(c->family)) != 0) {
        return agglo_fail(err, AGGLO_E_MISMATCH, "model_type is %.48s, the tensors are a %s's", text, c->family);
    }
    *named = true;
    return AGGLO_OK;
}

/* num_attention_heads; left out it is 12 in CLIPVisionConfig and Dinov2Config, which belongs to their default width of 768: a file that
 * leaves both out beside tensors of another width is not theirs. */
static agglo_status transformers_heads(agglo_facts *known, const json_t *json, bool named,
                                       const agglo_teacher_config *c, agglo_err *err)
{
    enum { DEFAULT_WIDTH = 768, DEFAULT_HEADS = 12 };
    int64_t heads = DEFAULT_HEADS;

    if (json_object_get(json, "num_attention_heads") != NULL) {
        if (agglo_json_get_int(json, "num_attention_heads", 1, 1024, &heads, err) != AGGLO_OK) {
            return err->status;
        }
    } else if (!named) {
        return AGGLO_OK;
    } else if (json_object_get(json, "hidden_size") == NULL && c->dim != DEFAULT_WIDTH) {
        return agglo_fail(err, AGGLO_E_MISMATCH,
                          "hidden_size and num_attention_heads are left out, which means %d and %d, the tensors are "
                          "%d wide",
                          DEFAULT_WIDTH, DEFAULT_HEADS, c->dim);
    }
    return agglo_facts_set_heads(known, c, (int)heads, from_config, err);
}

agglo_status agglo_facts_transformers(agglo_facts *known, const json_t *root, const agglo_layout *layout,
                                      const agglo_teacher_config *c, agglo_err *err)
{
    const json_t *nested = json_object_get(root, "vision_config"), *json = json_is_object(nested) ? nested : root;
    bool clip = strcmp(c->family, "clip") == 0, sam = strcmp(c->family, "sam") == 0;
    const char *text;
    agglo_act act;
    bool swiglu, named = false;

    if (names_class(root, c, &named, err) != AGGLO_OK ||
        (json != root && names_class(json, c, &named, err) != AGGLO_OK)) {
        return err->status;
    }
    if (agglo_facts_confirm(json, "hidden_size", c->dim, err) != AGGLO_OK ||
        agglo_facts_confirm(json, "num_hidden_layers", c->depth, err) != AGGLO_OK ||
        agglo_facts_confirm(json, "patch_size", c->patch, err) != AGGLO_OK ||
        agglo_facts_confirm(json, "image_size", c->image, err) != AGGLO_OK ||
        agglo_facts_confirm(json, "num_register_tokens", c->registers, err) != AGGLO_OK) {
        return err->status;
    }
    if (clip && (agglo_facts_confirm(json, "intermediate_size", c->mlp_dim, err) != AGGLO_OK ||
                 (c->proj > 0 && agglo_facts_confirm(root, "projection_dim", c->proj, err) != AGGLO_OK))) {
        return err->status;
    }
    if (!clip && json_object_get(json, "use_swiglu_ffn") != NULL) {
        if (agglo_json_get_bool(json, "use_swiglu_ffn", &swiglu, err) != AGGLO_OK) {
            return err->status;
        }
        if (swiglu != c->swiglu) {
            return agglo_facts_disagree(err, "use_swiglu_ffn", swiglu, c->swiglu);
        }
    }
    if (sam) {
        if (sam_windows(known, json, c, err) != AGGLO_OK) {
            return err->status;
        }
    } else if (transformers_heads(known, json, named, c, err) != AGGLO_OK) {
        return err->status;
    }
    text = named ? layout->defaults_act : NULL;
    if (json_object_get(json, "hidden_act") != NULL &&
        agglo_json_get_string(json, "hidden_act", &text, err) != AGGLO_OK) {
        return err->status;
    }
    if (text != NULL) {
        if (!agglo_teacher_act_of(text, &act)) {
            return agglo_fail(err, AGGLO_E_UNSUPPORTED, "hidden_act is %.32s, known are gelu and quick_gelu", text);
        }
        set_act(known, act, from_config);
    }
    return set_eps(known, json, "layer_norm_eps", from_config, err);
}

/* What a processor does where preprocessor_config.json says nothing, by the start of its class's name. CLIPFeatureExtractor and the like are
 * older names of the same; DINOv2's is BitImageProcessor. */
typedef struct processor_class {
    const char *start;
    bool crops; /* do_center_crop */
    bool
        squares; /* default_to_square: a size of one number means both sides, not the shorter one; and so does no size */
    agglo_filter filter;
} processor_class;

static agglo_status find_processor(const json_t *root, const processor_class **out, bool *named, agglo_err *err)
{
    static const processor_class known[] = {
        {"CLIP", true, false, AGGLO_BICUBIC},
        {"Bit", true, false, AGGLO_BICUBIC},
        {"ViT", false, true, AGGLO_BILINEAR},
        {"Siglip", false, false, AGGLO_BICUBIC},
    };
    static const char *const keys[] = {"image_processor_type", "feature_extractor_type"};
    const char *text;

    *out = &known[0]; /* CLIP's and DINOv2's own do the same */
    *named = false;
    for (size_t i = 0; i < AGGLO_COUNT(keys) && !*named; i++) {
        if (json_object_get(root, keys[i]) == NULL) {
            continue;
        }
        if (agglo_json_get_string(root, keys[i], &text, err) != AGGLO_OK) {
            return err->status;
        }
        for (size_t k = 0; k < AGGLO_COUNT(known) && !*named; k++) {
            if (strncmp(text, known[k].start, strlen(known[k].start)) == 0) {
                *out = &known[k];
                *named = true;
            }
        }
    }
    return AGGLO_OK;
}

/* One number, {"height", "width"} or {"shortest_edge"}; `fallback` where it is left out. */
static agglo_status read_side(const json_t *root, const char *key, int64_t fallback, int64_t *height, int64_t *width,
                              agglo_err *err)
{
    const json_t *value = json_object_get(root, key);

    *height = *width = fallback;
    if (value == NULL || json_is_null(value)) {
        return AGGLO_OK;
    }
    if (!json_is_object(value)) {
        if (agglo_json_get_int(root, key, 1, 1 << 20, height, err) == AGGLO_OK) {
            *width = *height;
        }
    } else if (json_object_get(value, "shortest_edge") != NULL) {
        if (agglo_json_get_int(value, "shortest_edge", 1, 1 << 20, height, err) == AGGLO_OK) {
            *width = *height;
        }
    } else if (agglo_json_get_int(value, "height", 1, 1 << 20, height, err) == AGGLO_OK) {
        agglo_json_get_int(value, "width", 1, 1 << 20, width, err);
    }
    return err->status != AGGLO_OK ? agglo_at(err, "%s", key) : AGGLO_OK;
}

/* How CLIP's and DINOv2's pictures are fitted. transformers resizes to {"height", "width"} as they stand, so a picture is squashed; what it then
 * crops of the middle is nothing if the crop is of that size, and something that is not done here otherwise. */
static agglo_status read_fit(const json_t *root, const processor_class *p, agglo_fit *out, agglo_err *err)
{
    const json_t *size = json_object_get(root, "size");
    bool crops = p->crops, squashed = p->squares;
    int64_t height, width, crop_height, crop_width;

    if (json_object_get(root, "do_center_crop") != NULL && !json_is_null(json_object_get(root, "do_center_crop")) &&
        agglo_json_get_bool(root, "do_center_crop", &crops, err) != AGGLO_OK) {
        return err->status;
    }
    if (json_is_object(size)) {
        squashed = json_object_get(size, "shortest_edge") == NULL;
    }
    if (read_side(root, "size", 224, &height, &width, err) != AGGLO_OK ||
        read_side(root, "crop_size", 224, &crop_height, &crop_width, err) != AGGLO_OK) {
        return err->status;
    }
    if (squashed && crops && (crop_height != height || crop_width != width)) {
        return agglo_fail(
            err, AGGLO_E_UNSUPPORTED,
            "pictures are squashed to %lld x %lld, then cropped to %lld x %lld (crop_size, or the class's "
            "default, where do_center_crop is not false), which is not supported",
            (long long)width, (long long)height, (long long)crop_width, (long long)crop_height);
    }
    *out = squashed ? AGGLO_FIT_SQUASH : AGGLO_FIT_CROP;
    return AGGLO_OK;
}

agglo_status agglo_facts_preprocessor(agglo_facts *known, const json_t *root, const agglo_layout *layout,
                                      const agglo_teacher_config *c, agglo_err *err)
{
    const json_t *size = json_object_get(root, "size"), *resample = json_object_get(root, "resample");
    bool sam = strcmp(c->family, "sam") == 0, named;
    const processor_class *processor;
    agglo_filter filter;
    agglo_fit fit = AGGLO_FIT_CROP;

    (void)layout;
    if (find_processor(root, &processor, &named, err) != AGGLO_OK) {
        return err->status;
    }
    filter = sam ? AGGLO_BILINEAR : processor->filter;
    if (set_pixels(known, root, "image_mean", "image_std", from_preprocessor, err) != AGGLO_OK) {
        return err->status;
    }
    if (json_is_integer(resample)) { /* Pillow's numbers */
        if (json_integer_value(resample) != 2 && json_integer_value(resample) != 3) {
            return agglo_fail(err, AGGLO_E_UNSUPPORTED, "resample is %lld, known are 2 (bilinear) and 3 (bicubic)",
                              (long long)json_integer_value(resample));
        }
        filter = json_integer_value(resample) == 2 ? AGGLO_BILINEAR : AGGLO_BICUBIC;
    }
    if (sam) { /* size is its longest_edge */
        set_fit(known, AGGLO_FIT_PAD, filter, from_preprocessor);
    } else if (named || size != NULL || json_is_integer(resample)) {
        if (read_fit(root, processor, &fit, err) != AGGLO_OK) {
            return err->status;
        }
        set_fit(known, fit, filter, from_preprocessor);
    }
    return AGGLO_OK;
}

/* ---- OpenCLIP ---- */

/* Members of vision_cfg that change what is computed; published models leave them out or off. */
static agglo_status refuse_variants(const json_t *vision, agglo_err *err)
{
    static const char *const off[] = {"attentional_pool", "global_average_pool", "no_ln_pre", "ls_init_value",
                                      "qk_norm",          "scaled_cosine_attn",  "act_kwargs"};
    static const struct {
        const char *key, *usual;
    } usual[] = {{"pool_type", "tok"}, {"pos_embed_type", "learnable"}};
    const char *text;

    for (size_t i = 0; i < AGGLO_COUNT(off); i++) {
        const json_t *value = json_object_get(vision, off[i]);

        if (value != NULL && !json_is_null(value) && !json_is_false(value) &&
            !(json_is_object(value) && json_object_size(value) == 0)) {
            return agglo_fail(err, AGGLO_E_UNSUPPORTED, "vision_cfg has %s, which is not supported", off[i]);
        }
    }
    for (size_t i = 0; i < AGGLO_COUNT(usual); i++) {
        if (json_object_get(vision, usual[i].key) == NULL) {
            continue;
        }
        if (agglo_json_get_string(vision, usual[i].key, &text, err) != AGGLO_OK) {
            return err->status;
        }
        if (strcmp(text, usual[i].usual) != 0) {
            return agglo_fail(err, AGGLO_E_UNSUPPORTED, "%s is %.32s, only %s is supported", usual[i].key, text,
                              usual[i].usual);
        }
    }
    return AGGLO_OK;
}

static agglo_status open_clip_tower(agglo_facts *known, const json_t *vision, const agglo_teacher_config *c,
                                    agglo_err *err)
{
    const json_t *size = json_object_get(vision, "image_size"), *norm = json_object_get(vision, "norm_kwargs");
    int64_t head_width = 64;
    double ratio = 4.0;

    if (agglo_facts_confirm(vision, "width", c->dim, err) != AGGLO_OK ||
        agglo_facts_confirm(vision, "layers", c->depth, err) != AGGLO_OK ||
        agglo_facts_confirm(vision, "patch_size", c->patch, err) != AGGLO_OK ||
        (json_is_integer(size) && agglo_facts_confirm(vision, "image_size", c->image, err) != AGGLO_OK) ||
        refuse_variants(vision, err) != AGGLO_OK) {
        return err->status;
    }
    if (json_object_get(vision, "mlp_ratio") != NULL &&
        agglo_json_get_double(vision, "mlp_ratio", &ratio, err) != AGGLO_OK) {
        return err->status;
    }
    if (!(ratio > 0.0 && ratio < 1000.0) || trunc((double)c->dim * ratio) != (double)c->mlp_dim) {
        return agglo_fail(err, AGGLO_E_MISMATCH, "mlp_ratio %g of width %d is not the tensors' %d", ratio, c->dim,
                          c->mlp_dim);
    }
    if (json_object_get(vision, "head_width") != NULL &&
        agglo_json_get_int(vision, "head_width", 1, 16384, &head_width, err) != AGGLO_OK) {
        return err->status;
    }
    if (c->dim % head_width != 0) {
        return agglo_fail(err, AGGLO_E_MISMATCH, "width %d is no multiple of head_width %lld", c->dim,
                          (long long)head_width);
    }
    if (agglo_facts_set_heads(known, c, (int)(c->dim / head_width), from_open, err) != AGGLO_OK) {
        return err->status;
    }
    return norm != NULL ? set_eps(known, norm, "eps", from_open, err) : AGGLO_OK;
}

static agglo_status open_clip_pixels(agglo_facts *known, const json_t *pixels, agglo_err *err)
{
    const char *mode = "shortest", *interpolation = "bicubic";
    agglo_filter filter = AGGLO_BICUBIC;

    if ((json_object_get(pixels, "mean") != NULL &&
         set_pixels(known, pixels, "mean", "std", from_open, err) != AGGLO_OK) ||
        (json_object_get(pixels, "resize_mode") != NULL &&
         agglo_json_get_string(pixels, "resize_mode", &mode, err) != AGGLO_OK) ||
        (json_object_get(pixels, "interpolation") != NULL &&
         agglo_json_get_string(pixels, "interpolation", &interpolation, err) != AGGLO_OK) ||
        filter_of(interpolation, &filter, err) != AGGLO_OK) {
        return err->status;
    }
    if (strcmp(mode, "shortest") != 0 && strcmp(mode, "squash") != 0) {
        return agglo_fail(err, AGGLO_E_UNSUPPORTED, "resize_mode is %.32s, known are shortest and squash", mode);
    }
    set_fit(known, strcmp(mode, "squash") == 0 ? AGGLO_FIT_SQUASH : AGGLO_FIT_CROP, filter, from_open);
    return AGGLO_OK;
}

agglo_status agglo_facts_open_clip(agglo_facts *known, const json_t *root, const agglo_layout *layout,
                                   const agglo_teacher_config *c, agglo_err *err)
{
    const json_t *model, *vision, *pixels = json_object_get(root, "preprocess_cfg");
    bool quick = false;

    (void)layout;
    if (agglo_json_get_object(root, "model_cfg", &model, err) != AGGLO_OK ||
        agglo_json_get_object(model, "vision_cfg", &vision, err) != AGGLO_OK) {
        return err->status;
    }
    if (json_object_get(vision, "timm_model_name") != NULL && strcmp(layout->name, "timm") != 0) {
        return agglo_fail(err, AGGLO_E_MISMATCH, "vision_cfg is of a timm tower, the tensors are not");
    }
    if (c->proj > 0 && agglo_facts_confirm(model, "embed_dim", c->proj, err) != AGGLO_OK) {
        return err->status;
    }
    if (json_object_get(vision, "timm_model_name") == NULL) {
        if (open_clip_tower(known, vision, c, err) != AGGLO_OK ||
            (json_object_get(model, "quick_gelu") != NULL &&
             agglo_json_get_bool(model, "quick_gelu", &quick, err) != AGGLO_OK)) {
            return err->status;
        }
        set_act(known, quick ? AGGLO_ACT_QUICK_GELU : AGGLO_ACT_GELU, from_open); /* absent: false */
    }
    return json_is_object(pixels) ? open_clip_pixels(known, pixels, err) : AGGLO_OK;
}

/* ---- timm ---- */

agglo_status agglo_facts_timm(agglo_facts *known, const json_t *root, const agglo_layout *layout,
                              const agglo_teacher_config *c, agglo_err *err)
{
    const json_t *cfg = json_object_get(root, "pretrained_cfg"), *args = json_object_get(root, "model_args");
    const char *arch = json_string_value(json_object_get(root, "architecture")),
               *act = json_string_value(json_object_get(args, "act_layer")),
               *mode = json_string_value(json_object_get(cfg, "crop_mode")),
               *interpolation = json_string_value(json_object_get(cfg, "interpolation"));
    agglo_filter filter = AGGLO_BICUBIC;
    agglo_act stated;
    int64_t heads;

    if (json_object_get(args, "num_heads") != NULL &&
        (agglo_json_get_int(args, "num_heads", 1, 1024, &heads, err) != AGGLO_OK ||
         agglo_facts_set_heads(known, c, (int)heads, from_config, err) != AGGLO_OK)) {
        return err->status;
    }
    /* of its own tensors only: where timm's name lacks "quickgelu", it computes GELU, whatever OpenAI's own code does with them */
    if (strcmp(c->family, "clip") == 0 && strcmp(layout->name, "timm") == 0) {
        if (act != NULL) {
            if (!agglo_teacher_act_of(strcmp(act, "quickgelu") == 0 ? "quick_gelu" : act, &stated)) {
                return agglo_fail(err, AGGLO_E_UNSUPPORTED, "act_layer is %.32s, known are gelu and quick_gelu", act);
            }
            set_act(known, stated, from_config);
        } else if (arch != NULL) {
            set_act(known, strstr(arch, "quickgelu") != NULL ? AGGLO_ACT_QUICK_GELU : AGGLO_ACT_GELU, from_config);
        }
    }
    if (json_object_get(cfg, "mean") != NULL && set_pixels(known, cfg, "mean", "std", from_config, err) != AGGLO_OK) {
        return err->status;
    }
    if (interpolation != NULL && filter_of(interpolation, &filter, err) != AGGLO_OK) {
        return err->status;
    }
    /* a SAM's input is padded, whatever timm, which uses the encoder as a classifier's trunk, does to a picture */
    if (strcmp(c->family, "sam") != 0 && (mode != NULL || interpolation != NULL)) {
        set_fit(known, mode != NULL && strcmp(mode, "squash") == 0 ? AGGLO_FIT_SQUASH : AGGLO_FIT_CROP, filter,
                from_config);
    }
    return AGGLO_OK;
}
