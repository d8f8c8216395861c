/* What a checkpoint is: shapes of its tensors, then its metadata, config.json, the caller's word and the registry; see teacher.h. */
#include "base/json.h"
#include "base/log.h"
#include "teachers/layout_impl.h"
#include "teachers/teacher.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What shapes do not tell: 0 (or false) until some source says it. */
typedef struct facts {
    int heads;
    bool has_act;
    agglo_act act;
    double norm_eps;
    bool has_mean;
    float mean[3], std[3];
} facts;

static const agglo_st_tensor *find(const agglo_weights *weights, const char *prefix, const char *block,
                                   const char *name)
{
    char full[192];

    snprintf(full, sizeof full, "%s%s%s", prefix, block, name);
    return agglo_weights_find(weights, full);
}

static agglo_status missing(const agglo_weights *weights, const char *prefix, const char *block, const char *name,
                            agglo_err *err)
{
    agglo_fail(err, AGGLO_E_DATA, "tensor %s%s%s is missing", prefix, block, name);
    return agglo_at(err, "%s", agglo_weights_path(weights));
}

/* An extent that becomes an int: bounded here, so that no later product overflows. */
static bool extent(const agglo_st_tensor *t, int axis, int *out)
{
    if (axis >= t->rank || t->shape[axis] < 1 || t->shape[axis] > 1 << 24) {
        return false;
    }
    *out = (int)t->shape[axis];
    return true;
}

static agglo_status odd_shape(const agglo_weights *weights, const agglo_st_tensor *t, const char *expected,
                              agglo_err *err)
{
    char shape[96] = "[";
    size_t used = 1;

    for (int i = 0; i < t->rank && used < sizeof shape - 24; i++) {
        used +=
            (size_t)snprintf(shape + used, sizeof shape - used, "%s%lld", i > 0 ? ", " : "", (long long)t->shape[i]);
    }
    agglo_fail(err, AGGLO_E_DATA, "tensor %s has shape %s], expected %s", t->name, shape, expected);
    return agglo_at(err, "%s", agglo_weights_path(weights));
}

/* dim, patch, depth, mlp_dim, swiglu, image, registers, proj: read off the tensors. */
static agglo_status read_shapes(const agglo_weights *weights, const agglo_layout *layout, const char *prefix,
                                agglo_teacher_config *c, agglo_err *err)
{
    const agglo_st_tensor *probe = find(weights, prefix, "", layout->probe), *t;
    char block[64];
    int rows = 0, grid;

    if (probe->rank != 4 || probe->shape[1] != 3 || probe->shape[2] != probe->shape[3] || !extent(probe, 0, &c->dim) ||
        !extent(probe, 2, &c->patch)) {
        return odd_shape(weights, probe, "[dim, 3, patch, patch]", err);
    }
    c->depth = 0;
    do {
        snprintf(block, sizeof block, "%s%d.", layout->block, c->depth);
        c->depth++;
    } while (c->depth <= 1024 && (find(weights, prefix, block, layout->in_block[0].source) != NULL));
    c->depth--;
    snprintf(block, sizeof block, "%s0.", layout->block);
    if (c->depth == 0) {
        return missing(weights, prefix, block, layout->in_block[0].source, err);
    }
    t = layout->mlp_swiglu != NULL ? find(weights, prefix, block, layout->mlp_swiglu) : NULL;
    c->swiglu = t != NULL;
    if (t == NULL) {
        t = find(weights, prefix, block, layout->mlp_plain);
    }
    if (t == NULL) {
        return missing(weights, prefix, block, layout->mlp_plain, err);
    }
    if (t->rank != 2 || !extent(t, 0, &c->mlp_dim) || (c->swiglu && c->mlp_dim % 2 != 0)) {
        return odd_shape(weights, t, c->swiglu ? "[2 * mlp_dim, dim]" : "[mlp_dim, dim]", err);
    }
    c->mlp_dim = c->swiglu ? c->mlp_dim / 2 : c->mlp_dim;

    t = find(weights, prefix, "", layout->positions);
    if (t == NULL) {
        return missing(weights, prefix, "", layout->positions, err);
    }
    if (t->rank < 2 || !extent(t, t->rank - 2, &rows)) {
        return odd_shape(weights, t, "[1 + grid * grid, dim]", err);
    }
    grid = (int)lround(sqrt((double)(rows - 1)));
    if (grid < 1 || grid * grid != rows - 1 || grid > 8192 / c->patch) {
        return odd_shape(weights, t, "[1 + grid * grid, dim]", err);
    }
    c->image = grid * c->patch;

    c->registers = 0;
    t = layout->registers != NULL ? find(weights, prefix, "", layout->registers) : NULL;
    if (t != NULL && (t->rank != 3 || !extent(t, 1, &c->registers))) {
        return odd_shape(weights, t, "[1, registers, dim]", err);
    }
    c->proj = 0;
    t = layout->projection != NULL ? agglo_weights_find(weights, layout->projection) : NULL;
    if (t != NULL && (t->rank != 2 || !extent(t, 0, &c->proj))) {
        return odd_shape(weights, t, "[proj, dim]", err);
    }
    return AGGLO_OK;
}

static agglo_status disagree(agglo_err *err, const char *field, long long said, long long found)
{
    return agglo_fail(err, AGGLO_E_MISMATCH, "%s is stated as %lld, the tensors say %lld", field, said, found);
}

static bool parse_three(const char *text, float out[3])
{
    for (int i = 0; i < 3; i++) {
        char *end;

        out[i] = strtof(text, &end);
        if (end == text || *end != (i < 2 ? ',' : '\0')) {
            return false;
        }
        text = end + 1;
    }
    return true;
}

/* __metadata__ as agglo_teacher_write_random leaves it; other files have no "family" there. */
static agglo_status read_metadata(const agglo_weights *weights, const agglo_teacher_config *c, facts *known,
                                  agglo_err *err)
{
    static const char *const fields[] = {"dim",  "depth",     "heads", "mlp_dim", "patch",         "image",
                                         "proj", "registers", "act",   "mlp",     "layer_norm_eps"};
    const char *family = agglo_weights_meta(weights, "family"), *mean = agglo_weights_meta(weights, "mean"),
               *std = agglo_weights_meta(weights, "std");
    agglo_teacher_config said = *c;

    if (family == NULL) {
        return AGGLO_OK;
    }
    if (strcmp(family, c->family) != 0) {
        agglo_fail(err, AGGLO_E_MISMATCH, "family is stated as %.32s, the tensors are a %s's", family, c->family);
        goto fail;
    }
    snprintf(said.arch, sizeof said.arch, "stated");
    said.heads = 0;
    for (size_t i = 0; i < AGGLO_COUNT(fields); i++) {
        const char *value = agglo_weights_meta(weights, fields[i]);

        if (value == NULL) {
            continue;
        }
        if (agglo_teacher_set(&said, fields[i], value, err) != AGGLO_OK) {
            err->status = AGGLO_E_DATA;
            goto fail;
        }
        if (strcmp(fields[i], "act") == 0) {
            known->has_act = true;
            known->act = said.act;
        } else if (strcmp(fields[i], "layer_norm_eps") == 0) {
            known->norm_eps = (double)said.norm_eps;
        }
    }
    known->heads = said.heads;
    if (said.dim != c->dim || said.depth != c->depth || said.mlp_dim != c->mlp_dim || said.patch != c->patch ||
        said.image != c->image || said.proj != c->proj || said.registers != c->registers || said.swiglu != c->swiglu) {
        const struct {
            const char *name;
            int said, found;
        } shapes[] = {
            {"dim", said.dim, c->dim},
            {"depth", said.depth, c->depth},
            {"mlp_dim", said.mlp_dim, c->mlp_dim},
            {"patch", said.patch, c->patch},
            {"image", said.image, c->image},
            {"proj", said.proj, c->proj},
            {"registers", said.registers, c->registers},
            {"mlp (swiglu)", said.swiglu, c->swiglu},
        };

        for (size_t i = 0; i < AGGLO_COUNT(shapes); i++) {
            if (shapes[i].said != shapes[i].found) {
                disagree(err, shapes[i].name, shapes[i].said, shapes[i].found);
                goto fail;
            }
        }
    }
    if (mean != NULL && std != NULL) {
        if (!parse_three(mean, known->mean) || !parse_three(std, known->std)) {
            agglo_fail(err, AGGLO_E_DATA, "mean and std must be three numbers each");
            goto fail;
        }
        known->has_mean = true;
    }
    return AGGLO_OK;
fail:
    return agglo_at(err, "%s: __metadata__", agglo_weights_path(weights));
}

/* STEM.SUFFIX of the weights, otherwise SUFFIX in their directory; NULL in *out when there is neither. */
static agglo_status beside(const agglo_weights *weights, const char *suffix, char **out, agglo_err *err)
{
    char *dir = NULL, *path;

    *out = NULL;
    path = agglo_format(err, "%s.%s", agglo_weights_stem(weights), suffix);
    if (path == NULL) {
        return err->status;
    }
    if (!agglo_path_exists(path)) {
        agglo_free(path);
        path = NULL;
        dir = agglo_path_dir(agglo_weights_path(weights), err);
        if (dir == NULL || (path = agglo_path_join(dir, suffix, err)) == NULL) {
            agglo_free(dir);
            return err->status;
        }
        agglo_free(dir);
        if (!agglo_path_exists(path)) {
            agglo_free(path);
            path = NULL;
        }
    }
    *out = path;
    return AGGLO_OK;
}

/* One integer of config.json that the tensors must confirm, where it is stated. */
static agglo_status confirm(const json_t *json, const char *key, int found, agglo_err *err)
{
    int64_t said;

    if (json_object_get(json, key) == NULL) {
        return AGGLO_OK;
    }
    if (agglo_json_get_int(json, key, 0, INT64_MAX, &said, err) != AGGLO_OK) {
        return err->status;
    }
    return said == found ? AGGLO_OK : disagree(err, key, (long long)said, found);
}

static agglo_status read_config_fields(const json_t *root, const agglo_layout *layout, const agglo_teacher_config *c,
                                       facts *known, agglo_err *err)
{
    const json_t *nested = json_object_get(root, "vision_config"), *json = json_is_object(nested) ? nested : root;
    bool clip = strcmp(c->family, "clip") == 0;
    const char *text;
    int64_t heads = 12; /* transformers leaves out what equals its class's defaults */
    double eps;
    bool swiglu;

    if (json_object_get(root, "model_type") != NULL) {
        if (agglo_json_get_string(root, "model_type", &text, err) != AGGLO_OK) {
            return err->status;
        }
        if (strncmp(text, c->family, strlen(c->family)) != 0) {
            return agglo_fail(err, AGGLO_E_MISMATCH, "model_type is %.48s, the tensors are a %s's", text, c->family);
        }
    }
    if (confirm(json, "hidden_size", c->dim, err) != AGGLO_OK ||
        confirm(json, "num_hidden_layers", c->depth, err) != AGGLO_OK ||
        confirm(json, "patch_size", c->patch, err) != AGGLO_OK ||
        confirm(json, "image_size", c->image, err) != AGGLO_OK ||
        confirm(json, "num_register_tokens", c->registers, err) != AGGLO_OK) {
        return err->status;
    }
    if (clip && (confirm(json, "intermediate_size", c->mlp_dim, err) != AGGLO_OK ||
                 (c->proj > 0 && confirm(root, "projection_dim", c->proj, err) != AGGLO_OK))) {
        return err->status;
    }
    if (!clip && json_object_get(json, "use_swiglu_ffn") != NULL) {
        if (agglo_json_get_bool(json, "use_swiglu_ffn", &swiglu, err) != AGGLO_OK) {
            return err->status;
        }
        if (swiglu != c->swiglu) {
            return disagree(err, "use_swiglu_ffn", swiglu, c->swiglu);
        }
    }
    if (known->heads == 0) {
        if (json_object_get(json, "num_attention_heads") != NULL &&
            agglo_json_get_int(json, "num_attention_heads", 1, 1024, &heads, err) != AGGLO_OK) {
            return err->status;
        }
        known->heads = (int)heads;
    }
    if (!known->has_act) {
        text = layout->defaults_act;
        if (json_object_get(json, "hidden_act") != NULL &&
            agglo_json_get_string(json, "hidden_act", &text, err) != AGGLO_OK) {
            return err->status;
        }
        if (!agglo_teacher_act_of(text, &known->act)) {
            return agglo_fail(err, AGGLO_E_UNSUPPORTED, "hidden_act is %.32s, known are gelu and quick_gelu", text);
        }
        known->has_act = true;
    }
    if (known->norm_eps == 0.0 && json_object_get(json, "layer_norm_eps") != NULL) {
        if (agglo_json_get_double(json, "layer_norm_eps", &eps, err) != AGGLO_OK) {
            return err->status;
        }
        if (!(eps > 0.0 && eps < 1.0)) {
            return agglo_fail(err, AGGLO_E_DATA, "layer_norm_eps is %g, not between 0 and 1", eps);
        }
        known->norm_eps = eps;
    }
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

/* config.json and preprocessor_config.json, where they are. */
static agglo_status read_json(const agglo_weights *weights, const agglo_layout *layout, const agglo_teacher_config *c,
                              facts *known, agglo_err *err)
{
    json_t *json = NULL;
    char *path = NULL;

    if (beside(weights, "config.json", &path, err) != AGGLO_OK) {
        goto fail;
    }
    if (path != NULL) {
        if (agglo_json_read(path, 1 << 20, &json, err) != AGGLO_OK) {
            goto fail;
        }
        if (!json_is_object(json)) {
            agglo_fail(err, AGGLO_E_DATA, "not a JSON object");
            agglo_at(err, "%s", path);
            goto fail;
        }
        if (read_config_fields(json, layout, c, known, err) != AGGLO_OK) {
            agglo_at(err, "%s", path);
            goto fail;
        }
        json_decref(json);
        json = NULL;
        agglo_free(path);
        path = NULL;
    }
    if (!known->has_mean) {
        if (beside(weights, "preprocessor_config.json", &path, err) != AGGLO_OK) {
            goto fail;
        }
        if (path != NULL) {
            if (agglo_json_read(path, 1 << 20, &json, err) != AGGLO_OK) {
                goto fail;
            }
            if (read_triple(json, "image_mean", known->mean, err) != AGGLO_OK ||
                read_triple(json, "image_std", known->std, err) != AGGLO_OK) {
                agglo_at(err, "%s", path);
                goto fail;
            }
            known->has_mean = true;
        }
    }
    json_decref(json);
    agglo_free(path);
    return AGGLO_OK;
fail:
    json_decref(json);
    agglo_free(path);
    return err->status;
}

agglo_status agglo_teacher_recognise_in(const agglo_weights *weights, const agglo_layout *layout, const char *prefix,
                                        const char *arch, agglo_teacher_config *out, agglo_err *err)
{
    const char *path = agglo_weights_path(weights);
    agglo_teacher_config named;
    facts known = {0};

    if (agglo_teacher_named(layout->family, out, err) != AGGLO_OK ||
        read_shapes(weights, layout, prefix, out, err) != AGGLO_OK ||
        read_metadata(weights, out, &known, err) != AGGLO_OK ||
        read_json(weights, layout, out, &known, err) != AGGLO_OK) {
        return err->status;
    }
    if (arch != NULL && arch[0] != '\0') {
        if (agglo_teacher_matches(out, arch, err) != AGGLO_OK) {
            return agglo_at(err, "%s", path);
        }
        if (!agglo_teacher_is_family(arch) && agglo_teacher_named(arch, &named, err) == AGGLO_OK) {
            known.heads = known.heads != 0 ? known.heads : named.heads;
            known.act = known.has_act ? known.act : named.act;
            known.has_act = true;
        }
    }
    out->heads = known.heads != 0 ? known.heads : agglo_teacher_heads_of(out->family, out->dim);
    if (known.norm_eps > 0.0) {
        out->norm_eps = (float)known.norm_eps;
    }
    if (known.has_mean) {
        memcpy(out->mean, known.mean, sizeof out->mean);
        memcpy(out->std, known.std, sizeof out->std);
    }
    out->act = known.act;
    if (!known.has_act) {
        out->act = AGGLO_ACT_GELU;
        if (agglo_teacher_check(out, err) != AGGLO_OK) {
            return agglo_at(err, "%s", path);
        }
        if (agglo_teacher_is_known(out->arch) && agglo_teacher_named(out->arch, &named, err) == AGGLO_OK) {
            out->act = named.act;
        }
        if (strcmp(out->family, "clip") == 0) {
            agglo_log(AGGLO_LOG_WARN,
                      "%s: nothing states the activation, %s is assumed for %s (a config.json beside it would tell)",
                      path, agglo_teacher_act_name(out->act), out->arch);
        }
    }
    if (agglo_teacher_check(out, err) != AGGLO_OK) {
        return agglo_at(err, "%s", path);
    }
    return AGGLO_OK;
}

agglo_status agglo_teacher_recognise(const agglo_weights *weights, const char *arch, agglo_teacher_config *out,
                                     agglo_err *err)
{
    const char *prefix = NULL;
    const agglo_layout *layout = agglo_layout_find(weights, &prefix);

    if (layout == NULL) {
        agglo_fail(err, AGGLO_E_UNSUPPORTED,
                   "no tensor names of a known teacher (CLIP or DINOv2 in transformers' layout)");
        agglo_at(err, "%s", agglo_weights_path(weights));
    } else {
        agglo_teacher_recognise_in(weights, layout, prefix, arch, out, err);
    }
    return err->status != AGGLO_OK ? agglo_doing(err, "cannot recognise weights") : AGGLO_OK;
}
