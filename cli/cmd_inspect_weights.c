/* agglo inspect weights: what a weights file is. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "student/model.h"
#include "teachers/teacher.h"

/* Which element types the file holds: "f16" or "f16, f32". */
static void dtypes_of(const agglo_weights *weights, char *out, size_t n_bytes)
{
    out[0] = '\0';
    for (size_t i = 0; i < agglo_weights_count(weights); i++) {
        const agglo_st_tensor *t = agglo_weights_at(weights, i);
        size_t used = strlen(out);

        if (strstr(out, t->dtype_text) == NULL && used + strlen(t->dtype_text) + 3 < n_bytes) {
            snprintf(out + used, n_bytes - used, "%s%s", used > 0 ? ", " : "", t->dtype_text);
        }
    }
}

static agglo_status add_student(json_t *object, const agglo_safetensors *st, agglo_err *err)
{
    agglo_student_config config;
    agglo_head_config heads[AGGLO_MAX_HEADS];
    size_t n_heads;
    json_t *fields;

    if (agglo_student_read_config(st, &config, heads, &n_heads, err) != AGGLO_OK) {
        return err->status;
    }
    json_object_set_new(object, "kind", json_string("student"));
    json_object_set_new(object, "arch", json_string(config.arch));
    json_object_set_new(object, "gmac", json_real(agglo_student_mac(&config, config.image) / 1e9));
    fields = agglo_student_config_json(&config, err);
    if (fields != NULL) {
        json_object_set_new(object, "config", fields);
        fields = agglo_head_configs_json(heads, n_heads, err);
    }
    if (fields != NULL) {
        json_object_set_new(object, "heads", fields);
    }
    return err->status;
}

static agglo_status add_teacher(json_t *object, const agglo_weights *weights, agglo_err *err)
{
    agglo_teacher_file file;
    const agglo_teacher_config *c = &file.config;
    json_t *unknown = json_array();

    if (agglo_teacher_recognise(weights, NULL, NULL, &file, err) != AGGLO_OK) {
        json_decref(unknown);
        return err->status;
    }
    json_object_set_new(object, "kind", json_string("teacher"));
    json_object_set_new(object, "arch", json_string(c->arch));
    json_object_set_new(object, "layout", json_string(file.layout));
    json_object_set_new(object, "prefix", json_string(file.prefix));
    json_object_set_new(object, "model_parameters", json_integer(agglo_teacher_params(c)));
    json_object_set_new(object, "gmac", json_real(agglo_teacher_gmac(c, c->image, c->image)));
    json_object_set_new(object, "config",
                        json_pack("{s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:s, s:f}", "family", c->family, "dim",
                                  c->dim, "depth", c->depth, "heads", c->heads, "mlp_dim", c->mlp_dim, "patch",
                                  c->patch, "image", c->image, "proj", c->proj, "registers", c->registers, "act",
                                  c->swiglu ? "swiglu" : agglo_teacher_act_name(c->act), "layer_norm_eps",
                                  (double)c->norm_eps));
    if (strcmp(c->family, "sam") == 0) {
        json_t *config = json_object_get(object, "config");
        char list[1024];

        json_object_set_new(config, "window", json_integer(c->window));
        json_object_set_new(config, "global_layers", json_string(agglo_teacher_global_text(c, list, sizeof list)));
        json_object_set_new(config, "neck", json_integer(c->neck));
    }
    json_object_set_new(
        object, "preprocess",
        json_pack("{s:i, s:s, s:s, s:[f,f,f], s:[f,f,f]}", "size", c->image, "fit", agglo_fit_name(c->fit), "filter",
                  c->filter == AGGLO_BILINEAR ? "bilinear" : "bicubic", "mean", (double)c->mean[0], (double)c->mean[1],
                  (double)c->mean[2], "std", (double)c->std[0], (double)c->std[1], (double)c->std[2]));
    json_object_set_new(object, "said_by",
                        json_pack("{s:s, s:s, s:s}", "heads", file.heads_from, "act",
                                  c->swiglu ? "the tensors" : file.act_from, "pixels", file.pixels_from));
    for (size_t i = 0; i < file.n_unknown; i++) {
        json_array_append_new(unknown, json_string(file.unknown[i]));
    }
    json_object_set_new(object, "unknown", unknown);
    agglo_teacher_file_clear(&file);
    return AGGLO_OK;
}

/* The members of `object`, one a line; in brackets who says so. */
static void print_members(const json_t *object, const json_t *said_by)
{
    const char *key;
    json_t *value;

    json_object_foreach((json_t *)object, key, value)
    {
        char *text = json_is_string(value) ? NULL : json_dumps(value, JSON_ENCODE_ANY | JSON_REAL_PRECISION(6));
        const char *from = json_string_value(json_object_get(said_by, key));

        printf("  %-12s %s%s%s%s\n", key, text != NULL ? text : json_string_value(value), from != NULL ? " (" : "",
               from != NULL ? from : "", from != NULL ? ")" : "");
        free(text);
    }
}

static void print_unknown(const json_t *names)
{
    size_t n = json_array_size(names);

    for (size_t i = 0; i < n && i < 8; i++) {
        printf("  %-12s %s\n", i == 0 ? "unknown" : "", json_string_value(json_array_get(names, i)));
    }
    if (n > 8) {
        printf("  %-12s and %zu more (--json lists them)\n", "", n - 8);
    }
}

static void print_text(const json_t *object)
{
    const json_t *said_by = json_object_get(object, "said_by"), *own = json_object_get(object, "model_parameters");
    const char *prefix = json_string_value(json_object_get(object, "prefix")),
               *pixels_from = json_string_value(json_object_get(said_by, "pixels"));
    json_t *value;

    printf("%s: %s %s\n", json_string_value(json_object_get(object, "path")),
           json_string_value(json_object_get(object, "kind")), json_string_value(json_object_get(object, "arch")));
    printf("  %-12s %s in %s tensors, %s", "parameters",
           agglo_show_int(json_integer_value(json_object_get(object, "parameters"))),
           agglo_show_int(json_integer_value(json_object_get(object, "tensors"))),
           agglo_show_bytes((double)json_integer_value(json_object_get(object, "bytes"))));
    if (json_integer_value(json_object_get(object, "files")) > 1) {
        printf(" in %s files", agglo_show_int(json_integer_value(json_object_get(object, "files"))));
    }
    printf(own != NULL ? "; %s of them the image encoder's\n" : "%s\n",
           own != NULL ? agglo_show_int(json_integer_value(own)) : "");
    printf("  %-12s %s\n", "dtype", json_string_value(json_object_get(object, "dtype")));
    if (prefix != NULL) {
        printf("  %-12s %s%s%s%s\n", "layout", json_string_value(json_object_get(object, "layout")),
               prefix[0] != '\0' ? ", under \"" : "", prefix, prefix[0] != '\0' ? "\"" : "");
    }
    printf("  %-12s %s\n", "sha256", json_string_value(json_object_get(object, "sha256")));
    printf("  %-12s %.4f GFLOP per image\n", "cost", 2 * json_real_value(json_object_get(object, "gmac")));
    print_members(json_object_get(object, "config"), said_by);
    if (pixels_from != NULL) {
        printf("  pictures     (%s)\n", pixels_from);
        print_members(json_object_get(object, "preprocess"), NULL);
        print_unknown(json_object_get(object, "unknown"));
    }
    if (json_object_get(object, "heads") != NULL) {
        size_t i;

        json_array_foreach(json_object_get(object, "heads"), i, value)
        {
            char *text = json_dumps(value, JSON_COMPACT);

            printf("  %-12s %s\n", "head", text);
            free(text);
        }
    }
}

static agglo_status run(agglo_cli *cli, agglo_err *err)
{
    const char *path = cli->args.items[0];
    agglo_weights *weights = NULL;
    agglo_sha256 digest;
    json_t *object = json_object();
    int64_t n_parameters = 0, n_bytes = 0;
    char dtypes[64], hex[65];

    if (agglo_weights_open(&weights, path, err) != AGGLO_OK ||
        agglo_weights_fingerprint(weights, &digest, err) != AGGLO_OK) {
        goto done;
    }
    for (size_t i = 0; i < agglo_weights_count(weights); i++) {
        n_parameters += agglo_weights_at(weights, i)->n_elements;
        n_bytes += (int64_t)agglo_weights_at(weights, i)->n_bytes;
    }
    dtypes_of(weights, dtypes, sizeof dtypes);
    json_object_set_new(object, "path", json_string(agglo_weights_path(weights)));
    if ((agglo_student_is(agglo_weights_file(weights, 0)) ? add_student(object, agglo_weights_file(weights, 0), err)
                                                          : add_teacher(object, weights, err)) != AGGLO_OK) {
        goto done;
    }
    json_object_set_new(object, "parameters", json_integer(n_parameters));
    json_object_set_new(object, "files", json_integer((json_int_t)agglo_weights_files(weights)));
    json_object_set_new(object, "tensors", json_integer((json_int_t)agglo_weights_count(weights)));
    json_object_set_new(object, "bytes", json_integer(n_bytes));
    json_object_set_new(object, "dtype", json_string(dtypes));
    json_object_set_new(object, "sha256", json_string(agglo_hex(digest.bytes, sizeof digest.bytes, hex)));
    if (cli->json) {
        agglo_print_json(object);
    } else {
        print_text(object);
    }
done:
    json_decref(object);
    agglo_weights_close(weights);
    return err->status != AGGLO_OK ? agglo_doing(err, "cannot inspect the weights") : AGGLO_OK;
}

const agglo_command agglo_cmd_inspect_weights = {
    .name = "inspect weights",
    .usage = "WEIGHTS",
    .summary = "architecture, layout, size, dtype, preprocessing and fingerprint of a model's weights",
    .details = "WEIGHTS is a safetensors file, the index or any shard of a sharded checkpoint, or a downloaded "
               "repository. What the tensors\n"
               "do not tell is shown with who says it: a config beside the weights, or the published models' table.",
    .example = "agglo inspect weights weights/clip-tiny.safetensors",
    .options = NULL,
    .n_options = 0,
    .min_args = 1,
    .max_args = 1,
    .run = run,
};
