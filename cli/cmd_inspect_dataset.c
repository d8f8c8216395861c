/* agglo inspect dataset: what a dataset is, one of its samples, and any of that sample's views. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "cli/cli.h"
#include "ingest/render.h"
#include "launch/recipe.h"

static const char *sample_name, *png_path, *recipe_path;
static int64_t view_index = -1;
static bool verify;
static agglo_texts sets;

static const agglo_option options[] = {
    {"sample", AGGLO_OPTION_STRING, &sample_name, "UID|KEY", "one sample; SHARD/ORDINAL where a key is not unique", 0,
     0},
    {"png", AGGLO_OPTION_STRING, &png_path, "FILE", "write the sample's whole upright picture", 0, 0},
    {"recipe", AGGLO_OPTION_STRING, &recipe_path, "FILE", "with --view: the recipe that defines the views", 0, 0},
    {"view", AGGLO_OPTION_INT, &view_index, "N", "this view's box, flip and pixel hash (from 0)", 0, 254},
    {"set", AGGLO_OPTION_LIST, &sets, "KEY=VALUE", "change a recipe key; may be repeated", 0, 0},
    {"verify", AGGLO_OPTION_FLAG, &verify, NULL, "hash every shard and compare with the index", 0, 0},
};

/* ---- the whole ---- */

typedef struct tally {
    uint64_t samples, labelled, captioned, image_bytes, shard_bytes;
    uint64_t formats[AGGLO_IMAGE_GIF + 1];
    int *short_sides; /* [samples], sorted at the end */
    uint32_t bad_shards;
    json_t *problems; /* array of lines */
} tally;

static int by_value(const void *a, const void *b)
{
    int x = *(const int *)a, y = *(const int *)b;

    return (x > y) - (x < y);
}

static void add_problem(tally *t, const agglo_err *problem)
{
    char line[1024];

    json_array_append_new(t->problems, json_string(agglo_err_line(problem, line, sizeof line)));
}

static void count_shard(const agglo_dataset *dataset, uint32_t shard, tally *t)
{
    const agglo_shard_info *info = agglo_dataset_shard(dataset, shard);
    agglo_err problem = {0};

    t->shard_bytes += info->n_bytes;
    if (agglo_dataset_shard_status(dataset, shard, &problem) != AGGLO_OK ||
        (verify && agglo_dataset_shard_verify(dataset, shard, &problem) != AGGLO_OK)) {
        t->bad_shards++;
        add_problem(t, &problem);
        return;
    }
    for (uint32_t i = 0; i < info->n_samples; i++) {
        agglo_sample sample;

        if (agglo_dataset_sample(dataset, shard, i, &sample, &problem) != AGGLO_OK) {
            add_problem(t, &problem);
            continue;
        }
        t->short_sides[t->samples++] = sample.width < sample.height ? sample.width : sample.height;
        t->labelled += sample.label >= 0;
        t->captioned += sample.caption.size > 0;
        t->image_bytes += sample.image.size;
        t->formats[sample.format]++;
    }
}

static json_t *tally_json(const char *path, const agglo_dataset *dataset, const tally *t)
{
    const json_t *description = agglo_dataset_json(dataset, 0), *report = json_object_get(description, "report");
    json_t *formats = json_object();
    json_t *object = json_pack(
        "{s:s, s:I, s:I, s:I, s:I, s:I, s:I}", "path", path, "samples", (json_int_t)agglo_dataset_samples(dataset),
        "shards", (json_int_t)agglo_dataset_shards(dataset), "bytes", (json_int_t)t->shard_bytes, "image_bytes",
        (json_int_t)t->image_bytes, "labelled", (json_int_t)t->labelled, "captioned", (json_int_t)t->captioned);

    for (int i = AGGLO_IMAGE_JPEG; i <= AGGLO_IMAGE_GIF; i++) {
        if (t->formats[i] > 0) {
            json_object_set_new(formats, agglo_image_format_name((agglo_image_format)i),
                                json_integer((json_int_t)t->formats[i]));
        }
    }
    json_object_set(object, "fingerprint", json_object_get(description, "fingerprint"));
    json_object_set_new(object, "formats", formats);
    json_object_set_new(object, "classes", json_deep_copy(json_object_get(description, "classes")));
    if (t->samples > 0) {
        json_object_set_new(object, "short_side",
                            json_pack("{s:i, s:i, s:i}", "min", t->short_sides[0], "median",
                                      t->short_sides[t->samples / 2], "max", t->short_sides[t->samples - 1]));
    }
    if (report != NULL) {
        json_object_set_new(object, "report", json_deep_copy(report));
    }
    json_object_set_new(object, "verified", json_boolean(verify));
    json_object_set_new(object, "bad_shards", json_integer(t->bad_shards));
    json_object_set(object, "problems", t->problems);
    return object;
}

enum { SHOWN_CLASSES = 10 };

static void print_tally(const json_t *object)
{
    const json_t *sides = json_object_get(object, "short_side"), *rejected;
    const char *name;
    json_t *value;
    size_t i;

    printf("%s: %s samples in %s shards, %s (pictures %s)\n", json_string_value(json_object_get(object, "path")),
           agglo_show_int(json_integer_value(json_object_get(object, "samples"))),
           agglo_show_int(json_integer_value(json_object_get(object, "shards"))),
           agglo_show_bytes((double)json_integer_value(json_object_get(object, "bytes"))),
           agglo_show_bytes((double)json_integer_value(json_object_get(object, "image_bytes"))));
    json_object_foreach(json_object_get(object, "formats"), name, value)
    {
        printf("  %-10s %s\n", name, agglo_show_int(json_integer_value(value)));
    }
    printf("  labelled   %s\n  captioned  %s\n",
           agglo_show_int(json_integer_value(json_object_get(object, "labelled"))),
           agglo_show_int(json_integer_value(json_object_get(object, "captioned"))));
    if (sides != NULL) {
        printf("  short side %lld to %lld pixels, median %lld\n",
               (long long)json_integer_value(json_object_get(sides, "min")),
               (long long)json_integer_value(json_object_get(sides, "max")),
               (long long)json_integer_value(json_object_get(sides, "median")));
    }
    if (json_array_size(json_object_get(object, "classes")) > 0) {
        printf("  classes    %zu:", json_array_size(json_object_get(object, "classes")));
        json_array_foreach(json_object_get(object, "classes"), i, value)
        {
            if (i < SHOWN_CLASSES) {
                printf(" %s", json_string_value(value));
            }
        }
        printf("%s\n", i > SHOWN_CLASSES ? " ..." : "");
    }
    printf("  fingerprint %s\n", json_string_value(json_object_get(object, "fingerprint")));
    rejected = json_object_get(json_object_get(object, "report"), "rejected");
    json_object_foreach((json_t *)rejected, name, value)
    {
        printf("  rejected   %-22s %s\n", name, agglo_show_int(json_integer_value(value)));
    }
    json_array_foreach(json_object_get(object, "problems"), i, value)
    {
        printf("  bad: %s\n", json_string_value(value));
    }
    if (json_is_true(json_object_get(object, "verified")) &&
        json_array_size(json_object_get(object, "problems")) == 0) {
        printf("  every shard has the hash that the index says\n");
    }
}

static agglo_status inspect_whole(agglo_cli *cli, const agglo_dataset *dataset, agglo_err *err)
{
    tally t = {0};
    json_t *object;

    t.short_sides = agglo_alloc((size_t)agglo_dataset_samples(dataset), sizeof *t.short_sides, err);
    if (t.short_sides == NULL) {
        return err->status;
    }
    t.problems = json_array();
    for (uint32_t i = 0; i < agglo_dataset_shards(dataset); i++) {
        count_shard(dataset, i, &t);
    }
    qsort(t.short_sides, (size_t)t.samples, sizeof *t.short_sides, by_value);
    object = tally_json(cli->args.items[0], dataset, &t);
    if (cli->json) {
        agglo_print_json(object);
    } else {
        print_tally(object);
    }
    if (verify && json_array_size(t.problems) > 0) {
        agglo_fail(err, AGGLO_E_DATA, "%zu problems found", json_array_size(t.problems));
        agglo_at(err, "%s", cli->args.items[0]);
    }
    cli->incomplete = t.bad_shards > 0;
    json_decref(object);
    json_decref(t.problems);
    agglo_free(t.short_sides);
    return err->status;
}

/* ---- one sample ---- */

/* Box, flip and pixel hash at the student's size of one view, as the recipe draws it, one object per group. */
static agglo_status add_views(json_t *object, agglo_renderer *renderer, const agglo_sample *sample, agglo_err *err)
{
    agglo_recipe recipe = {0};
    uint8_t *pixels = NULL;

    if (agglo_recipe_read(&recipe, recipe_path, sets.items, sets.n, err) != AGGLO_OK) {
        return err->status;
    }
    for (size_t i = 0; err->status == AGGLO_OK && i < recipe.n_groups; i++) {
        const agglo_view_config *group = &recipe.groups[i];
        int side = (int)recipe.train.size;
        agglo_view view;
        char hash[17];
        json_t *one;

        if (view_index >= group->count) {
            agglo_fail(err, AGGLO_E_CONFIG, "view group '%s' has views 0 to %d, not %d", group->group, group->count - 1,
                       (int)view_index);
            break;
        }
        agglo_view_draw(group, sample->uid, (int)view_index, sample->width, sample->height, &view);
        pixels = agglo_alloc((size_t)side * (size_t)side, 3, err);
        if (pixels == NULL || agglo_render_views(renderer, sample->image, sample->width, sample->height, &view, 1,
                                                 (agglo_view_decode)group->decode, AGGLO_VIEW_FILTER, side, side,
                                                 pixels, err) != AGGLO_OK) {
            break;
        }
        snprintf(hash, sizeof hash, "%016llx", (unsigned long long)agglo_pixel_hash(pixels, side, side));
        one = json_pack("{s:I, s:[i,i,i,i], s:b, s:i, s:s}", "view", (json_int_t)view_index, "box", view.x, view.y,
                        view.w, view.h, "flip", (int)view.flip, "size", side, "pixel_hash", hash);
        if (i == 0) { /* the group that most recipes have stands at the top */
            json_object_update(object, one);
        }
        if (recipe.n_groups > 1) {
            json_t *groups = json_object_get(object, "groups");

            if (groups == NULL) {
                groups = json_object();
                json_object_set_new(object, "groups", groups);
            }
            json_object_set(groups, group->group, one);
        }
        json_decref(one);
        agglo_free(pixels);
        pixels = NULL;
    }
    agglo_free(pixels);
    agglo_recipe_clear(&recipe);
    return err->status;
}

static json_t *sample_json(const agglo_sample *sample)
{
    char uid[33], sha256[65];
    json_t *object = json_pack("{s:s, s:s, s:i, s:i, s:s, s:i, s:i, s:I}", "uid", agglo_hex(sample->uid, 16, uid),
                               "key", sample->key, "shard", (int)sample->shard, "ordinal", (int)sample->ordinal,
                               "format", agglo_image_format_name(sample->format), "width", sample->width, "height",
                               sample->height, "bytes", (json_int_t)sample->image.size);

    if (sample->has_sha256) {
        json_object_set_new(object, "sha256", json_string(agglo_hex(sample->sha256.bytes, 32, sha256)));
    }
    if (sample->label >= 0) {
        json_object_set_new(object, "label", json_integer(sample->label));
    }
    if (sample->caption.size > 0) {
        json_t *caption = json_stringn((const char *)sample->caption.data, sample->caption.size);

        if (caption != NULL) { /* a caption that is not UTF-8 is carried, not shown */
            json_object_set_new(object, "caption", caption);
        }
    }
    return object;
}

static void print_sample(const json_t *object)
{
    const char *key;
    json_t *value;

    json_object_foreach((json_t *)object, key, value)
    {
        char *text = json_is_string(value) ? NULL : json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT);

        printf("%-11s %s\n", key, json_is_string(value) ? json_string_value(value) : text);
        free(text);
    }
}

static agglo_status inspect_sample(agglo_cli *cli, const agglo_dataset *dataset, agglo_err *err)
{
    agglo_decode_options decode = agglo_dataset_decode_options(dataset);
    agglo_renderer *renderer = NULL;
    agglo_sample sample;
    uint32_t shard, ordinal;
    json_t *object = NULL;

    if (agglo_dataset_find(dataset, sample_name, &shard, &ordinal, err) != AGGLO_OK ||
        agglo_dataset_sample(dataset, shard, ordinal, &sample, err) != AGGLO_OK ||
        agglo_renderer_new(&renderer, &decode, err) != AGGLO_OK) {
        goto done;
    }
    object = sample_json(&sample);
    if (view_index >= 0 && add_views(object, renderer, &sample, err) != AGGLO_OK) {
        goto done;
    }
    if (png_path != NULL) {
        agglo_image image;

        if (agglo_render_decode(renderer, sample.image, &image, NULL, err) != AGGLO_OK ||
            agglo_png_write(png_path, image.rgb, image.width, image.height, err) != AGGLO_OK) {
            goto done;
        }
        json_object_set_new(object, "png", json_string(png_path));
    }
    if (cli->json) {
        agglo_print_json(object);
    } else {
        print_sample(object);
    }
done:
    json_decref(object);
    agglo_renderer_free(renderer);
    return err->status;
}

static agglo_status run(agglo_cli *cli, agglo_err *err)
{
    agglo_dataset *dataset = NULL;

    if (sample_name == NULL && (png_path != NULL || view_index >= 0)) {
        return agglo_fail(err, AGGLO_E_CONFIG, "--%s needs --sample UID|KEY", png_path != NULL ? "png" : "view");
    }
    if ((view_index >= 0) != (recipe_path != NULL)) {
        return agglo_fail(err, AGGLO_E_CONFIG, "--view N and --recipe FILE go together");
    }
    if (agglo_dataset_open(&dataset, cli->args.items, 1, err) == AGGLO_OK) {
        if (sample_name != NULL) {
            inspect_sample(cli, dataset, err);
        } else {
            inspect_whole(cli, dataset, err);
        }
    }
    agglo_dataset_close(dataset);
    return err->status != AGGLO_OK ? agglo_doing(err, "cannot inspect the dataset") : AGGLO_OK;
}

const agglo_command agglo_cmd_inspect_dataset = {
    .name = "inspect dataset",
    .usage = "PATH [--sample UID|KEY [--png FILE] [--recipe FILE --view N]] [--verify]",
    .summary = "counts, sizes and health of a dataset; one of its samples",
    .details = NULL,
    .example = "agglo inspect dataset data/train --sample 000010042 --recipe recipe.yaml --view 0",
    .options = options,
    .n_options = AGGLO_COUNT(options),
    .min_args = 1,
    .max_args = 1,
    .run = run,
};
