/* A dataset with its cache, checked against a recipe; see train.h. */
#include <stdio.h>
#include <string.h>

#include "base/fs.h"
#include "base/hash.h"
#include "launch/train.h"
#include "teachers/registry.h"
#include "teachers/weights.h"

/* The weights that the cache was made from against the file that the recipe names, when that file is here. */
static agglo_status check_weights(const agglo_recipe_teacher *teacher, const agglo_cache_teacher *cached,
                                  agglo_err *err)
{
    agglo_weights *weights = NULL;
    agglo_sha256 digest;
    char hex[65];

    if (!agglo_path_exists(teacher->weights)) {
        return AGGLO_OK; /* training needs no teacher: a machine without the weights is fine */
    }
    if (agglo_weights_open(&weights, teacher->weights, err) == AGGLO_OK) {
        agglo_weights_fingerprint(weights, &digest, err);
        agglo_weights_close(weights);
    }
    if (err->status != AGGLO_OK) {
        return err->status;
    }
    agglo_hex(digest.bytes, sizeof digest.bytes, hex);
    if (strcmp(hex, cached->weights) != 0) {
        return agglo_fail(err, AGGLO_E_MISMATCH,
                          "the cache was made from other weights: sha256 %.12s..., the recipe's %s has %.12s...",
                          cached->weights, agglo_path_base(teacher->weights), hex);
    }
    return AGGLO_OK;
}

/* Of the options of a cached teacher (agglo_encoder_info), "summary=proj,pos=hub,gelu": the value behind `key`, which ends in '=', or the first
 * of the `words` (up to NULL) that stands there by itself. NULL: there is none. Text in `out`. */
static const char *option_of(const agglo_cache_teacher *cached, const char *key, const char *const *words,
                             char out[sizeof cached->options])
{
    for (const char *at = cached->options; *at != '\0'; at += *at == ',') {
        size_t n = strcspn(at, ","), skip = key != NULL ? strlen(key) : 0;

        memcpy(out, at, n);
        out[n] = '\0';
        at += n;
        if (key != NULL && strncmp(out, key, skip) == 0) {
            return out + skip;
        }
        for (size_t i = 0; key == NULL && words[i] != NULL; i++) {
            if (strcmp(out, words[i]) == 0) {
                return out;
            }
        }
    }
    return NULL;
}

static agglo_status differs(const char *key, const char *found, const char *wanted, agglo_err *err)
{
    return found != NULL
               ? agglo_fail(err, AGGLO_E_MISMATCH, "%s: the cache has %s, the recipe asks for %s", key, found, wanted)
               : agglo_fail(err, AGGLO_E_MISMATCH, "%s: the cache's teacher has no such option, the recipe asks for %s",
                            key, wanted);
}

/* The architecture that the recipe names is the cached one, or its family. */
static agglo_status check_arch(const char *wanted, const char *found, agglo_err *err)
{
    agglo_teacher_config config;
    size_t n = strlen(wanted);

    if (wanted[0] == '\0' || strcmp(wanted, found) == 0 ||
        (agglo_teacher_is_family(wanted) && strncmp(found, wanted, n) == 0 && found[n] == '-')) {
        return AGGLO_OK;
    }
    /* other names may stand for the same shapes */
    if (agglo_teacher_is_known(found) && agglo_teacher_named(found, &config, err) == AGGLO_OK &&
        agglo_teacher_matches(&config, wanted, err) == AGGLO_OK) {
        return AGGLO_OK;
    }
    agglo_err_clear(err);
    return differs("arch", found, wanted, err);
}

agglo_status agglo_sources_check(const agglo_recipe_teacher *teacher, const agglo_cache_teacher *cached, agglo_err *err)
{
    static const char *const act_words[] = {"gelu", "quick_gelu", NULL}, *const half_words[] = {"bf16", NULL};
    static const char *const acts[] = {NULL, "gelu", "quick_gelu"}, *const rules[] = {NULL, "hub", "hf"};
    char text[6][sizeof cached->options], size[2][24];
    const char *summary = option_of(cached, "summary=", NULL, text[0]);
    const char *norm = option_of(cached, "spatial_norm=", NULL, text[1]);
    const char *neck = option_of(cached, "neck=", NULL, text[2]);
    /* found NULL: this kind of teacher has no such option; wanted NULL: the recipe leaves it open */
    const struct {
        const char *key, *found, *wanted;
    } said[] = {
        {"codec", cached->codec, agglo_codec_name(teacher->codec)},
        {"size", size[0], teacher->size != 0 ? size[1] : NULL},
        {"summary", summary,
         teacher->summary == 1 ? "preproj"
         : summary != NULL     ? "proj"
                               : NULL},
        {"spatial_norm",
         norm == NULL             ? NULL
         : strcmp(norm, "1") == 0 ? "true"
                                  : "false",
         !teacher->spatial_norm ? "false"
         : norm != NULL         ? "true"
                                : NULL},
        {"neck",
         neck == NULL             ? NULL
         : strcmp(neck, "1") == 0 ? "true"
                                  : "false",
         teacher->neck  ? "true"
         : neck != NULL ? "false"
                        : NULL},
        {"pos_interp", option_of(cached, "pos=", NULL, text[3]), rules[teacher->pos_interp]},
        {"act", option_of(cached, NULL, act_words, text[4]), acts[teacher->act]},
        {"precision", option_of(cached, NULL, half_words, text[5]) != NULL ? "bf16" : "fp32",
         teacher->precision == 1 ? "bf16" : "fp32"},
    };

    snprintf(size[0], sizeof size[0], "%d", cached->input);
    snprintf(size[1], sizeof size[1], "%lld", (long long)teacher->size);
    for (size_t i = 0; i < AGGLO_COUNT(said); i++) {
        if (said[i].wanted != NULL && (said[i].found == NULL || strcmp(said[i].found, said[i].wanted) != 0)) {
            return differs(said[i].key, said[i].found, said[i].wanted, err);
        }
    }
    return check_arch(teacher->arch, cached->arch, err);
}

static agglo_status add_teacher(agglo_sources *sources, const agglo_recipe *recipe, const agglo_recipe_teacher *teacher,
                                agglo_err *err)
{
    agglo_feed_teacher *out = &sources->teachers[sources->n_teachers];
    const agglo_cache_teacher *cached = agglo_cache_find_teacher(sources->cache, teacher->name);
    agglo_decode_options decode = agglo_dataset_decode_options(sources->dataset);

    if (agglo_head_config_of_cache(sources->cache, teacher->name, &out->head, err) != AGGLO_OK) {
        return err->status;
    }
    if (agglo_sources_check(teacher, cached, err) != AGGLO_OK || check_weights(teacher, cached, err) != AGGLO_OK) {
        return err->status;
    }
    out->head.summary_weight = teacher->summary_weight;
    out->head.spatial_weight = teacher->spatial_weight;
    memset(&out->expected, 0, sizeof out->expected);
    agglo_view_fingerprint(agglo_recipe_group(recipe, teacher), out->expected.views);
    agglo_decode_fingerprint(&decode, out->expected.decoder);
    memcpy(out->expected.preprocess, cached->preprocess, sizeof out->expected.preprocess);
    memcpy(out->expected.weights, cached->weights, sizeof out->expected.weights);
    memcpy(out->expected.codec, cached->codec, sizeof out->expected.codec);
    sources->n_teachers++;
    return AGGLO_OK;
}

agglo_status agglo_sources_open(agglo_sources *out, const agglo_recipe *recipe, const char *const *datasets,
                                size_t n_datasets, const char *cache, agglo_err *err)
{
    memset(out, 0, sizeof *out);
    out->views = agglo_recipe_group(recipe, &recipe->teachers[0]);
    for (size_t i = 0; i < recipe->n_teachers; i++) {
        if (agglo_recipe_group(recipe, &recipe->teachers[i]) != out->views) {
            agglo_fail(err, AGGLO_E_CONFIG,
                       "teachers '%s' and '%s' have different view groups; a student sees one at a time",
                       recipe->teachers[0].name, recipe->teachers[i].name);
            agglo_at(err, "%s", recipe->path);
            goto fail;
        }
    }
    if (agglo_dataset_open(&out->dataset, datasets, n_datasets, err) != AGGLO_OK) {
        goto fail;
    }
    if (agglo_dataset_samples(out->dataset) == 0) {
        agglo_fail(err, AGGLO_E_DATA, "the dataset holds no samples");
        agglo_at(err, "%s", datasets[0]);
        goto fail;
    }
    if (agglo_cache_open(&out->cache, cache, 0, err) != AGGLO_OK) {
        goto fail;
    }
    for (size_t i = 0; i < recipe->n_teachers; i++) {
        if (add_teacher(out, recipe, &recipe->teachers[i], err) != AGGLO_OK) {
            agglo_at(err, "teacher %s", recipe->teachers[i].name);
            agglo_at(err, "%s", cache);
            goto fail;
        }
    }
    return AGGLO_OK;
fail:
    agglo_sources_close(out);
    return agglo_doing(err, "cannot open the cached targets");
}

void agglo_sources_close(agglo_sources *sources)
{
    agglo_cache_close(sources->cache);
    agglo_dataset_close(sources->dataset);
    memset(sources, 0, sizeof *sources);
}
