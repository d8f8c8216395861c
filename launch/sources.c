/* A dataset with its cache, checked against a recipe; see train.h. */
#include <string.h>

#include "base/fs.h"
#include "base/hash.h"
#include "launch/train.h"
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

/* Whether a word stands among the teacher's options (agglo_encoder_info), which say how the features were computed. */
static bool says(const agglo_cache_teacher *cached, const char *word)
{
    size_t n = strlen(word);

    for (const char *at = cached->options; at != NULL; at = strchr(at, ','), at += at != NULL) {
        if (strncmp(at, word, n) == 0 && (at[n] == '\0' || at[n] == ',')) {
            return true;
        }
    }
    return false;
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
    if (strcmp(cached->codec, agglo_codec_name(teacher->codec)) != 0) {
        return agglo_fail(err, AGGLO_E_MISMATCH, "the cache has codec %s, the recipe %s", cached->codec,
                          agglo_codec_name(teacher->codec));
    }
    if (teacher->size != 0 && teacher->size != cached->input) {
        return agglo_fail(err, AGGLO_E_MISMATCH, "the cache has input size %d, the recipe %d", cached->input,
                          (int)teacher->size);
    }
    if (says(cached, "bf16") != (teacher->precision == 1)) {
        return agglo_fail(err, AGGLO_E_MISMATCH, "the cache has features of precision %s, the recipe asks for %s",
                          says(cached, "bf16") ? "bf16" : "fp32", teacher->precision == 1 ? "bf16" : "fp32");
    }
    if (says(cached, "neck=1") != teacher->neck) {
        return agglo_fail(err, AGGLO_E_MISMATCH, "the cache has features %s the neck, the recipe asks for neck: %s",
                          says(cached, "neck=1") ? "behind" : "before", teacher->neck ? "true" : "false");
    }
    if (check_weights(teacher, cached, err) != AGGLO_OK) {
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
