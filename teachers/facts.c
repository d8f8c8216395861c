/* What is stated about a checkpoint, in its metadata and beside it; see facts_impl.h. The JSON dialects are facts_json.c's. */
#include "teachers/facts_impl.h"

#include "teachers/sam_impl.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A configuration with label maps of thousands of classes has some hundred kilobytes. */
enum { MAX_JSON = 4 << 20 };

agglo_status agglo_facts_disagree(agglo_err *err, const char *field, long long said, long long found)
{
    return agglo_fail(err, AGGLO_E_MISMATCH, "%s is stated as %lld, the tensors say %lld", field, said, found);
}

agglo_status agglo_facts_confirm(const json_t *json, const char *key, int found, agglo_err *err)
{
    int64_t said;

    if (json_object_get(json, key) == NULL) {
        return AGGLO_OK;
    }
    if (agglo_json_get_int(json, key, 0, INT64_MAX, &said, err) != AGGLO_OK) {
        return err->status;
    }
    return said == found ? AGGLO_OK : agglo_facts_disagree(err, key, (long long)said, found);
}

agglo_status agglo_facts_set_heads(agglo_facts *known, const agglo_teacher_config *c, int heads, const char *from,
                                   agglo_err *err)
{
    if (known->heads_from != NULL) {
        return AGGLO_OK;
    }
    if (heads < 1 || c->dim % heads != 0) {
        return agglo_fail(err, AGGLO_E_DATA, "dim %d is no multiple of heads %d", c->dim, heads);
    }
    known->heads = heads;
    known->heads_from = from;
    return AGGLO_OK;
}

agglo_status agglo_facts_set_pixels(agglo_facts *known, const float mean[3], const float std[3], const char *from,
                                    agglo_err *err)
{
    if (known->pixels_from != NULL) {
        return AGGLO_OK;
    }
    for (int i = 0; i < 3; i++) {
        if (!isfinite(mean[i]) || !isfinite(std[i]) || !(std[i] > 0.0f)) {
            return agglo_fail(err, AGGLO_E_DATA, "mean %g and std %g of channel %d are not usable", (double)mean[i],
                              (double)std[i], i);
        }
    }
    memcpy(known->mean, mean, sizeof known->mean);
    memcpy(known->std, std, sizeof known->std);
    known->pixels_from = from;
    return AGGLO_OK;
}

/* ---- __metadata__ ---- */

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

static agglo_status read_fields(agglo_facts *known, const agglo_weights *weights, const agglo_teacher_config *c,
                                agglo_err *err)
{
    static const char *const fields[] = {"dim",       "depth", "heads",  "mlp_dim",       "patch",
                                         "image",     "proj",  "window", "global_layers", "neck",
                                         "registers", "act",   "mlp",    "layer_norm_eps"};
    static const char from[] = "__metadata__";
    agglo_teacher_config said = *c;

    snprintf(said.arch, sizeof said.arch, "stated");
    said.heads = 0;
    for (size_t i = 0; i < AGGLO_COUNT(fields); i++) {
        const char *value = agglo_weights_meta(weights, fields[i]);

        if (value == NULL) {
            continue;
        }
        if (agglo_teacher_set(&said, fields[i], value, err) != AGGLO_OK) {
            return err->status = AGGLO_E_DATA;
        }
        if (strcmp(fields[i], "act") == 0) {
            known->act_from = from;
            known->act = said.act;
        } else if (strcmp(fields[i], "layer_norm_eps") == 0) {
            known->eps_from = from;
            known->norm_eps = said.norm_eps;
        }
    }
    if (said.heads > 0 && agglo_facts_set_heads(known, c, said.heads, from, err) != AGGLO_OK) {
        return err->status;
    }
    {
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
            {"neck", said.neck, c->neck},
        };

        for (size_t i = 0; i < AGGLO_COUNT(shapes); i++) {
            if (shapes[i].said != shapes[i].found) {
                return agglo_facts_disagree(err, shapes[i].name, shapes[i].said, shapes[i].found);
            }
        }
    }
    if (strcmp(c->family, "sam") == 0) {
        if (agglo_sam_confirm(c, said.window, said.global_layers, err) != AGGLO_OK) {
            return err->status;
        }
        known->windows_from = from;
        known->window = said.window;
        memcpy(known->global_layers, said.global_layers, sizeof known->global_layers);
    }
    return AGGLO_OK;
}

agglo_status agglo_facts_metadata(agglo_facts *known, const agglo_weights *weights, const agglo_teacher_config *c,
                                  agglo_err *err)
{
    const char *family = agglo_weights_meta(weights, "family"), *mean = agglo_weights_meta(weights, "mean"),
               *std = agglo_weights_meta(weights, "std");
    float m[3], s[3];

    if (family == NULL) {
        return AGGLO_OK;
    }
    if (strcmp(family, c->family) != 0) {
        agglo_fail(err, AGGLO_E_MISMATCH, "family is stated as %.32s, the tensors are a %s's", family, c->family);
    } else if (read_fields(known, weights, c, err) == AGGLO_OK && mean != NULL && std != NULL) {
        if (parse_three(mean, m) && parse_three(std, s)) {
            agglo_facts_set_pixels(known, m, s, "__metadata__", err);
        } else {
            agglo_fail(err, AGGLO_E_DATA, "mean and std must be three numbers each");
        }
    }
    return err->status != AGGLO_OK ? agglo_at(err, "%s: __metadata__", agglo_weights_path(weights)) : AGGLO_OK;
}

/* ---- files beside the weights ---- */

/* STEM.NAME of the weights, otherwise NAME in their directory; NULL in *out when there is neither. */
static agglo_status find_beside(const agglo_weights *weights, const char *name, char **out, agglo_err *err)
{
    char *path = agglo_format(err, "%s.%s", agglo_weights_stem(weights), name), *dir;

    *out = NULL;
    if (path == NULL) {
        return err->status;
    }
    if (!agglo_path_exists(path)) {
        agglo_free(path);
        dir = agglo_path_dir(agglo_weights_path(weights), err);
        path = dir != NULL ? agglo_path_join(dir, name, err) : NULL;
        agglo_free(dir);
        if (path == NULL) {
            return err->status;
        }
    }
    if (agglo_path_exists(path)) {
        *out = path;
    } else {
        agglo_free(path);
    }
    return AGGLO_OK;
}

typedef agglo_status (*reader)(agglo_facts *known, const json_t *root, const agglo_layout *layout,
                               const agglo_teacher_config *c, agglo_err *err);

/* transformers and timm both call theirs config.json */
static agglo_status read_config(agglo_facts *known, const json_t *root, const agglo_layout *layout,
                                const agglo_teacher_config *c, agglo_err *err)
{
    bool timm =
        json_object_get(root, "model_type") == NULL && (json_is_object(json_object_get(root, "pretrained_cfg")) ||
                                                        json_is_string(json_object_get(root, "architecture")));

    return (timm ? agglo_facts_timm : agglo_facts_transformers)(known, root, layout, c, err);
}

static agglo_status read_beside(agglo_facts *known, const agglo_weights *weights, const char *name, reader read,
                                const agglo_layout *layout, const agglo_teacher_config *c, agglo_err *err)
{
    json_t *json = NULL;
    char *path;

    if (find_beside(weights, name, &path, err) != AGGLO_OK || path == NULL) {
        return err->status;
    }
    if (agglo_json_read(path, MAX_JSON, &json, err) == AGGLO_OK) {
        if (!json_is_object(json)) {
            agglo_fail(err, AGGLO_E_DATA, "not a JSON object");
        } else {
            read(known, json, layout, c, err);
        }
        if (err->status != AGGLO_OK) {
            agglo_at(err, "%s", path);
        }
    }
    json_decref(json);
    agglo_free(path);
    return err->status;
}

agglo_status agglo_facts_beside(agglo_facts *known, const agglo_weights *weights, const agglo_layout *layout,
                                const agglo_teacher_config *c, agglo_err *err)
{
    const struct {
        const char *name;
        reader read;
    } config = {"config.json", read_config}, open = {"open_clip_config.json", agglo_facts_open_clip},
      pixels = {"preprocessor_config.json", agglo_facts_preprocessor};
    bool clip = strcmp(c->family, "clip") == 0, open_first = strcmp(layout->name, "open_clip") == 0;

    if (open_first && read_beside(known, weights, open.name, open.read, layout, c, err) != AGGLO_OK) {
        return err->status;
    }
    if (read_beside(known, weights, config.name, config.read, layout, c, err) != AGGLO_OK ||
        read_beside(known, weights, pixels.name, pixels.read, layout, c, err) != AGGLO_OK) {
        return err->status;
    }
    return clip && !open_first ? read_beside(known, weights, open.name, open.read, layout, c, err) : AGGLO_OK;
}
