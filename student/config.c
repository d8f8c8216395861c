/* Named architectures, checks, and the JSON form of a student's configuration. */
#include "student/config.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/yaml.h"

typedef struct vit_size {
    const char *name;
    int64_t dim, depth, heads;
} vit_size;

/* Table 6 of AM-RADIO; mlp_dim is 4 dim throughout. */
static const vit_size vit_sizes[] = {
    {"tiny", 192, 12, 3}, {"small", 384, 12, 6}, {"base", 768, 12, 12}, {"large", 1024, 24, 16}, {"huge", 1280, 32, 16},
};
static const int64_t vit_patches[] = {14, 16, 32};

/* The family first, then sizes by patches in the order of the two tables. */
static const char *const names[] = {
    "vit",          "vit-tiny-14", "vit-tiny-16", "vit-tiny-32", "vit-small-14", "vit-small-16",
    "vit-small-32", "vit-base-14", "vit-base-16", "vit-base-32", "vit-large-14", "vit-large-16",
    "vit-large-32", "vit-huge-14", "vit-huge-16", "vit-huge-32",
};

static const char *const summaries[] = {"cls", "avg"};

const char *const *agglo_student_names(size_t *n)
{
    *n = AGGLO_COUNT(names);
    return names;
}

agglo_status agglo_student_config_by_name(agglo_student_config *out, const char *name, agglo_err *err)
{
    agglo_student_config config = {.family = "vit",
                                   .arch = "vit",
                                   .dim = 384,
                                   .depth = 12,
                                   .heads = 6,
                                   .patch = 16,
                                   .image = 224,
                                   .summary = AGGLO_SUMMARY_CLS,
                                   .head_version = 2};
    const char *nearest;

    for (size_t i = 0; i < AGGLO_COUNT(names); i++) {
        if (strcmp(name, names[i]) != 0) {
            continue;
        }
        if (i > 0) {
            const vit_size *size = &vit_sizes[(i - 1) / AGGLO_COUNT(vit_patches)];

            config.dim = size->dim;
            config.depth = size->depth;
            config.heads = size->heads;
            config.mlp_dim = 4 * size->dim;
            config.patch = vit_patches[(i - 1) % AGGLO_COUNT(vit_patches)];
            snprintf(config.arch, sizeof config.arch, "%s", name);
        }
        *out = config;
        return AGGLO_OK;
    }
    nearest = agglo_nearest(name, names, AGGLO_COUNT(names));
    return agglo_fail(err, AGGLO_E_CONFIG, "unknown student '%s'%s%s%s", name, nearest ? " (did you mean '" : "",
                      nearest ? nearest : "", nearest ? "'?)" : "");
}

static agglo_status in_range(const char *field, int64_t value, int64_t min, int64_t max, agglo_err *err)
{
    if (value < min || value > max) {
        return agglo_fail(err, AGGLO_E_CONFIG, "student.%s is %lld, allowed are %lld to %lld", field, (long long)value,
                          (long long)min, (long long)max);
    }
    return AGGLO_OK;
}

agglo_status agglo_student_config_check(agglo_student_config *config, agglo_err *err)
{
    if (strcmp(config->family, "vit") != 0) {
        return agglo_fail(err, AGGLO_E_CONFIG, "unknown family of students '%s', known is 'vit'", config->family);
    }
    /* mlp_dim and pos_grid follow dim, image and patch, which are checked first so that nothing overflows */
    if (in_range("dim", config->dim, 1, 65536, err) != AGGLO_OK ||
        in_range("depth", config->depth, 1, 1024, err) != AGGLO_OK ||
        in_range("heads", config->heads, 1, config->dim, err) != AGGLO_OK ||
        in_range("patch", config->patch, 1, 1024, err) != AGGLO_OK ||
        in_range("image", config->image, config->patch, 16384, err) != AGGLO_OK) {
        return err->status;
    }
    if (config->mlp_dim == 0) {
        config->mlp_dim = 4 * config->dim;
    }
    if (config->pos_grid == 0) {
        config->pos_grid = config->image / config->patch;
    }
    if (in_range("mlp_dim", config->mlp_dim, 1, 1 << 20, err) != AGGLO_OK ||
        in_range("pos_grid", config->pos_grid, 1, 4096, err) != AGGLO_OK ||
        in_range("registers", config->registers, 0, 4096, err) != AGGLO_OK ||
        in_range("summary", config->summary, AGGLO_SUMMARY_CLS, AGGLO_SUMMARY_AVG, err) != AGGLO_OK ||
        in_range("head_version", config->head_version, 1, 2, err) != AGGLO_OK ||
        in_range("head_hidden", config->head_hidden, 0, 65536, err) != AGGLO_OK ||
        in_range("head_inner", config->head_inner, 0, 64, err) != AGGLO_OK) {
        return err->status;
    }
    if (config->dim % config->heads != 0) {
        return agglo_fail(err, AGGLO_E_CONFIG, "student.dim %lld is not a multiple of student.heads %lld",
                          (long long)config->dim, (long long)config->heads);
    }
    if (config->image % config->patch != 0) {
        return agglo_fail(err, AGGLO_E_CONFIG, "an input of %lld pixels is not a multiple of student.patch %lld",
                          (long long)config->image, (long long)config->patch);
    }
    return AGGLO_OK;
}

static bool good_name(const char *name, size_t max)
{
    size_t n = strnlen(name, max);

    return n > 0 && n < max && strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-") == n;
}

agglo_status agglo_head_configs_check(const agglo_head_config *heads, size_t n_heads, agglo_err *err)
{
    if (n_heads > AGGLO_MAX_HEADS) {
        return agglo_fail(err, AGGLO_E_CONFIG, "%zu teachers, at most %d are possible", n_heads, AGGLO_MAX_HEADS);
    }
    for (size_t i = 0; i < n_heads; i++) {
        const agglo_head_config *head = &heads[i];

        if (!good_name(head->name, sizeof head->name)) {
            return agglo_fail(err, AGGLO_E_CONFIG,
                              "the name of teacher %zu is not made of letters, digits, '.', '_' and '-'", i);
        }
        for (size_t k = 0; k < i; k++) {
            if (strcmp(heads[k].name, head->name) == 0) {
                return agglo_fail(err, AGGLO_E_CONFIG, "two teachers are called '%s'", head->name);
            }
        }
        if (head->summary_dim < 1 || head->summary_dim > 65535 || head->spatial_dim < 1 || head->spatial_dim > 65535 ||
            head->grid_h < 1 || head->grid_h > 65535 || head->grid_w < 1 || head->grid_w > 65535) {
            return agglo_fail(err, AGGLO_E_CONFIG,
                              "teacher '%s': dims %lld, %lld and grid %lldx%lld must be 1 to 65535", head->name,
                              (long long)head->summary_dim, (long long)head->spatial_dim, (long long)head->grid_h,
                              (long long)head->grid_w);
        }
        if (!(head->summary_weight >= 0.0) || !(head->spatial_weight >= 0.0) || !isfinite(head->summary_weight) ||
            !isfinite(head->spatial_weight)) {
            return agglo_fail(err, AGGLO_E_CONFIG, "teacher '%s': the weights of its losses must be >= 0", head->name);
        }
    }
    return AGGLO_OK;
}

double agglo_student_mac(const agglo_student_config *config, int64_t size)
{
    double n_patch = (double)(size / config->patch) * (double)(size / config->patch);
    double n_tok = n_patch + (config->summary == AGGLO_SUMMARY_CLS ? 1.0 : 0.0) + (double)config->registers;
    double d = (double)config->dim;
    double block = n_tok * (4.0 * d * d + 2.0 * d * (double)config->mlp_dim) + 2.0 * n_tok * n_tok * d;

    return n_patch * 3.0 * (double)(config->patch * config->patch) * d + (double)config->depth * block;
}

/* ---- JSON ---- */

typedef struct int_field {
    const char *key;
    size_t offset;
} int_field;

static const int_field student_ints[] = {
    {"dim", offsetof(agglo_student_config, dim)},
    {"depth", offsetof(agglo_student_config, depth)},
    {"heads", offsetof(agglo_student_config, heads)},
    {"mlp_dim", offsetof(agglo_student_config, mlp_dim)},
    {"patch", offsetof(agglo_student_config, patch)},
    {"image", offsetof(agglo_student_config, image)},
    {"pos_grid", offsetof(agglo_student_config, pos_grid)},
    {"registers", offsetof(agglo_student_config, registers)},
    {"head_version", offsetof(agglo_student_config, head_version)},
    {"head_hidden", offsetof(agglo_student_config, head_hidden)},
    {"head_inner", offsetof(agglo_student_config, head_inner)},
};

static const int_field head_ints[] = {
    {"summary_dim", offsetof(agglo_head_config, summary_dim)},
    {"spatial_dim", offsetof(agglo_head_config, spatial_dim)},
    {"grid_h", offsetof(agglo_head_config, grid_h)},
    {"grid_w", offsetof(agglo_head_config, grid_w)},
};

static bool put_ints(json_t *object, const void *base, const int_field *fields, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        int64_t value;

        memcpy(&value, (const char *)base + fields[i].offset, sizeof value);
        if (json_object_set_new(object, fields[i].key, json_integer(value)) != 0) {
            return false;
        }
    }
    return true;
}

static agglo_status get_ints(const json_t *object, void *base, const int_field *fields, size_t n, agglo_err *err)
{
    for (size_t i = 0; i < n; i++) {
        int64_t value;

        if (agglo_json_get_int(object, fields[i].key, 0, INT32_MAX, &value, err) != AGGLO_OK) {
            return err->status;
        }
        memcpy((char *)base + fields[i].offset, &value, sizeof value);
    }
    return AGGLO_OK;
}

json_t *agglo_student_config_json(const agglo_student_config *config, agglo_err *err)
{
    json_t *object = json_object();

    if (object == NULL || json_object_set_new(object, "family", json_string(config->family)) != 0 ||
        json_object_set_new(object, "arch", json_string(config->arch)) != 0 ||
        !put_ints(object, config, student_ints, AGGLO_COUNT(student_ints)) ||
        json_object_set_new(object, "summary", json_string(summaries[config->summary])) != 0 ||
        json_object_set_new(object, "final_norm", json_boolean(config->final_norm)) != 0) {
        json_decref(object);
        agglo_fail(err, AGGLO_E_MEMORY, "out of memory");
        return NULL;
    }
    return object;
}

json_t *agglo_head_configs_json(const agglo_head_config *heads, size_t n_heads, agglo_err *err)
{
    json_t *list = json_array();
    bool good = list != NULL;

    for (size_t i = 0; good && i < n_heads; i++) {
        json_t *object = json_object();

        good = object != NULL && json_object_set_new(object, "name", json_string(heads[i].name)) == 0 &&
               put_ints(object, &heads[i], head_ints, AGGLO_COUNT(head_ints)) &&
               json_object_set_new(object, "summary_weight", json_real(heads[i].summary_weight)) == 0 &&
               json_object_set_new(object, "spatial_weight", json_real(heads[i].spatial_weight)) == 0;
        good = json_array_append_new(list, object) == 0 && good;
    }
    if (!good) {
        json_decref(list);
        agglo_fail(err, AGGLO_E_MEMORY, "out of memory");
        return NULL;
    }
    return list;
}

static agglo_status get_text(const json_t *object, const char *key, char *out, size_t n_bytes, agglo_err *err)
{
    const char *text;

    if (agglo_json_get_string(object, key, &text, err) != AGGLO_OK) {
        return err->status;
    }
    if (!good_name(text, n_bytes)) {
        return agglo_fail(err, AGGLO_E_DATA, "'%s' is not a name", key);
    }
    snprintf(out, n_bytes, "%s", text);
    return AGGLO_OK;
}

agglo_status agglo_student_config_parse(const json_t *json, agglo_student_config *out, agglo_err *err)
{
    agglo_student_config config = {0};
    const char *summary;

    if (get_text(json, "family", config.family, sizeof config.family, err) != AGGLO_OK ||
        get_text(json, "arch", config.arch, sizeof config.arch, err) != AGGLO_OK ||
        get_ints(json, &config, student_ints, AGGLO_COUNT(student_ints), err) != AGGLO_OK ||
        agglo_json_get_bool(json, "final_norm", &config.final_norm, err) != AGGLO_OK ||
        agglo_json_get_string(json, "summary", &summary, err) != AGGLO_OK) {
        return err->status;
    }
    config.summary = -1;
    for (int i = 0; i < (int)AGGLO_COUNT(summaries); i++) {
        if (strcmp(summary, summaries[i]) == 0) {
            config.summary = i;
        }
    }
    if (agglo_student_config_check(&config, err) != AGGLO_OK) {
        return err->status = AGGLO_E_DATA;
    }
    *out = config;
    return AGGLO_OK;
}

agglo_status agglo_head_configs_parse(const json_t *json, agglo_head_config heads[AGGLO_MAX_HEADS], size_t *n_heads,
                                      agglo_err *err)
{
    agglo_head_config parsed[AGGLO_MAX_HEADS] = {0};
    size_t n = json_array_size(json);

    if (!json_is_array(json) || n > AGGLO_MAX_HEADS) {
        return agglo_fail(err, AGGLO_E_DATA, "heads are not a list of at most %d", AGGLO_MAX_HEADS);
    }
    for (size_t i = 0; i < n; i++) {
        const json_t *object = json_array_get(json, i);

        if (get_text(object, "name", parsed[i].name, sizeof parsed[i].name, err) != AGGLO_OK ||
            get_ints(object, &parsed[i], head_ints, AGGLO_COUNT(head_ints), err) != AGGLO_OK ||
            agglo_json_get_double(object, "summary_weight", &parsed[i].summary_weight, err) != AGGLO_OK ||
            agglo_json_get_double(object, "spatial_weight", &parsed[i].spatial_weight, err) != AGGLO_OK) {
            return agglo_at(err, "heads[%zu]", i);
        }
    }
    if (agglo_head_configs_check(parsed, n, err) != AGGLO_OK) {
        return err->status = AGGLO_E_DATA;
    }
    memcpy(heads, parsed, n * sizeof *heads);
    *n_heads = n;
    return AGGLO_OK;
}
