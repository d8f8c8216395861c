/* agglo inspect cache: what is cached, one record as arrays or as a picture, and whether all of it is whole. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/npy.h"
#include "cache/cache.h"
#include "cli/cli.h"
#include "cli/picture.h"
#include "ingest/dataset.h"
#include "ingest/render.h"

static const char *sample_name, *teacher_name, *group_name, *npy_prefix, *png_path, *dataset_path;
static int64_t view_index;
static bool verify;

static const agglo_option options[] = {
    {"sample", AGGLO_OPTION_STRING, &sample_name, "UID|KEY", "one sample; SHARD/ORDINAL needs no dataset", 0, 0},
    {"view", AGGLO_OPTION_INT, &view_index, "N", "its view, from 0 (0)", 0, 254},
    {"teacher", AGGLO_OPTION_STRING, &teacher_name, "NAME", "only this teacher", 0, 0},
    {"group", AGGLO_OPTION_STRING, &group_name, "NAME", "its view group (the first one)", 0, 0},
    {"npy", AGGLO_OPTION_STRING, &npy_prefix, "PREFIX",
     "write PREFIX.summary.npy and PREFIX.spatial.npy (with --teacher)", 0, 0},
    {"png", AGGLO_OPTION_STRING, &png_path, "FILE", "write the view beside each teacher's principal components", 0, 0},
    {"dataset", AGGLO_OPTION_STRING, &dataset_path, "DATASET",
     "where the pictures are (where the teacher pass read them)", 0, 0},
    {"verify", AGGLO_OPTION_FLAG, &verify, NULL, "check every hash, checksum, count and key", 0, 0},
};

/* ---- the whole ---- */

/* Check one unit; problems are added as lines. */
static void verify_unit(const char *path, const agglo_unit_id *id, json_t *problems)
{
    agglo_err problem = {0};
    char line[1024];

    if (agglo_unit_verify(path, id, &problem) != AGGLO_OK) {
        json_array_append_new(problems, json_string(agglo_err_line(&problem, line, sizeof line)));
    }
}

static json_t *teacher_json(const agglo_cache *cache, const agglo_cache_teacher *teacher, json_t *problems)
{
    uint64_t records = 0, payload = 0, files = 0, units = 0, skipped = 0;
    uint64_t fp16 = 2 * ((uint64_t)teacher->grid_h * (uint64_t)teacher->grid_w * (uint64_t)teacher->spatial_dim +
                         (uint64_t)teacher->summary_dim);

    for (size_t i = 0; i < agglo_cache_units(cache); i++) {
        const agglo_manifest *unit = agglo_cache_unit_at(cache, i);

        if (strcmp(unit->id.teacher, teacher->name) == 0) {
            units++;
            records += unit->n_records;
            payload += unit->payload_bytes;
            files += unit->file_bytes;
            skipped += unit->n_skipped;
            if (verify) {
                verify_unit(agglo_cache_path(cache), &unit->id, problems);
            }
        }
    }
    return json_pack("{s:s, s:s, s:s, s:i, s:[i,i,i], s:i, s:I, s:I, s:I, s:I, s:I, s:f, s:I, s:s, s:s}", "name",
                     teacher->name, "arch", teacher->arch, "codec", teacher->codec, "input", teacher->input, "spatial",
                     teacher->grid_h, teacher->grid_w, teacher->spatial_dim, "summary", teacher->summary_dim, "units",
                     (json_int_t)units, "records", (json_int_t)records, "skipped_samples", (json_int_t)skipped,
                     "record_bytes", (json_int_t)payload, "file_bytes", (json_int_t)files, "bytes_per_view",
                     records > 0 ? (double)payload / (double)records : 0.0, "fp16_bytes_per_view", (json_int_t)fp16,
                     "weights", teacher->weights, "options", teacher->options);
}

static void print_whole(const json_t *object)
{
    json_t *value;
    size_t i;

    printf("%s: cache format %d\n", json_string_value(json_object_get(object, "path")), AGGLO_CACHE_FORMAT);
    json_array_foreach(json_object_get(object, "groups"), i, value)
    {
        char *text = json_dumps(json_object_get(value, "parameters"), JSON_COMPACT);

        printf("  views %-10s %s\n", json_string_value(json_object_get(value, "name")), text != NULL ? text : "");
        free(text);
    }
    printf("  %-14s %-24s %-7s %-12s %8s %10s %12s %12s %10s\n", "teacher", "arch", "codec", "spatial", "units",
           "records", "bytes/view", "fp16/view", "files");
    json_array_foreach(json_object_get(object, "teachers"), i, value)
    {
        const json_t *shape = json_object_get(value, "spatial");
        char spatial[48];

        snprintf(spatial, sizeof spatial, "%lldx%lldx%lld", (long long)json_integer_value(json_array_get(shape, 0)),
                 (long long)json_integer_value(json_array_get(shape, 1)),
                 (long long)json_integer_value(json_array_get(shape, 2)));
        printf("  %-14s %-24s %-7s %-12s %8s %10s %12s %12s %10s\n", json_string_value(json_object_get(value, "name")),
               json_string_value(json_object_get(value, "arch")), json_string_value(json_object_get(value, "codec")),
               spatial, agglo_show_int(json_integer_value(json_object_get(value, "units"))),
               agglo_show_int(json_integer_value(json_object_get(value, "records"))),
               agglo_show_bytes(json_real_value(json_object_get(value, "bytes_per_view"))),
               agglo_show_bytes((double)json_integer_value(json_object_get(value, "fp16_bytes_per_view"))),
               agglo_show_bytes((double)json_integer_value(json_object_get(value, "file_bytes"))));
    }
    json_array_foreach(json_object_get(object, "problems"), i, value)
    {
        printf("  bad: %s\n", json_string_value(value));
    }
    if (json_is_true(json_object_get(object, "verified")) &&
        json_array_size(json_object_get(object, "problems")) == 0) {
        printf("  verified: every hash, checksum, count and key is as it should be\n");
    }
}

static agglo_status inspect_whole(agglo_cli *cli, const agglo_cache *cache, agglo_err *err)
{
    json_t *object = json_object(), *groups = json_array(), *teachers = json_array(), *problems = json_array();

    for (size_t i = 0; i < agglo_cache_groups(cache); i++) {
        const agglo_cache_group *group = agglo_cache_group_at(cache, i);

        json_array_append_new(groups, json_pack("{s:s, s:s, s:O}", "name", group->name, "fingerprint",
                                                group->fingerprint, "parameters", group->parameters));
    }
    for (size_t i = 0; i < agglo_cache_teachers(cache); i++) {
        const agglo_cache_teacher *teacher = agglo_cache_teacher_at(cache, i);

        if (teacher_name == NULL || strcmp(teacher->name, teacher_name) == 0) {
            json_array_append_new(teachers, teacher_json(cache, teacher, problems));
        }
    }
    json_object_set_new(object, "path", json_string(agglo_cache_path(cache)));
    json_object_set_new(object, "format", json_integer(AGGLO_CACHE_FORMAT));
    json_object_set_new(object, "groups", groups);
    json_object_set_new(object, "teachers", teachers);
    json_object_set_new(object, "verified", json_boolean(verify));
    json_object_set(object, "problems", problems);
    if (cli->json) {
        agglo_print_json(object);
    } else {
        print_whole(object);
    }
    if (json_array_size(problems) > 0) {
        agglo_fail(err, AGGLO_E_DATA, "%zu bad units found", json_array_size(problems));
        agglo_at(err, "%s", agglo_cache_path(cache));
    }
    json_decref(problems);
    json_decref(object);
    return err->status;
}

/* ---- one sample ---- */

/* The datasets that the teacher pass read, or the one that --dataset names. NULL in *out when none is known. */
static agglo_status open_dataset(const agglo_cache *cache, agglo_dataset **out, agglo_err *err)
{
    const char *paths[64];
    size_t n = 0, i;
    char *hint = NULL;
    json_t *object = NULL, *value;

    *out = NULL;
    if (dataset_path != NULL) {
        return agglo_dataset_open(out, &dataset_path, 1, err);
    }
    hint = agglo_path_join(agglo_cache_path(cache), "datasets.json", err);
    if (hint == NULL || !agglo_path_exists(hint)) {
        goto done;
    }
    if (agglo_json_read(hint, 1 << 20, &object, err) != AGGLO_OK) {
        goto done;
    }
    json_array_foreach(json_object_get(object, "datasets"), i, value)
    {
        if (n < AGGLO_COUNT(paths) && json_is_string(value)) {
            paths[n++] = json_string_value(value);
        }
    }
    if (n > 0 && agglo_path_exists(paths[0])) {
        agglo_dataset_open(out, paths, n, err);
    }
done:
    json_decref(object);
    agglo_free(hint);
    return err->status;
}

/* "SHARD/ORDINAL" without a dataset. */
static bool parse_place(const char *text, uint32_t *shard, uint32_t *ordinal)
{
    char *end;
    unsigned long s, o;

    if (*text < '0' || *text > '9') {
        return false;
    }
    s = strtoul(text, &end, 10);
    if (*end != '/' || end[1] < '0' || end[1] > '9') {
        return false;
    }
    o = strtoul(end + 1, &end, 10);
    *shard = (uint32_t)s;
    *ordinal = (uint32_t)o;
    return *end == '\0' && s <= UINT32_MAX && o <= UINT32_MAX;
}

typedef struct target {
    const agglo_cache_teacher *teacher;
    agglo_record_info info;
    size_t n_bytes;
    float *summary, *spatial; /* owned */
} target;

static agglo_status read_target(agglo_cache *cache, const agglo_cache_teacher *teacher, const char *group,
                                uint32_t shard, uint32_t ordinal, target *out, agglo_err *err)
{
    uint8_t *buffer = NULL;
    size_t capacity = 0;
    agglo_record record;

    out->teacher = teacher;
    if (agglo_cache_read(cache, teacher->name, group, shard, ordinal, (int)view_index, NULL, &buffer, &capacity,
                         &record, err) != AGGLO_OK) {
        goto done;
    }
    out->info = record.info;
    out->n_bytes = record.summary.size + record.spatial.size;
    out->summary = agglo_alloc(record.info.summary_dim, sizeof *out->summary, err);
    out->spatial = out->summary != NULL
                       ? agglo_alloc((size_t)record.info.grid_h * record.info.grid_w * record.info.spatial_dim,
                                     sizeof *out->spatial, err)
                       : NULL;
    if (out->spatial != NULL) {
        agglo_record_decode(&record, out->summary, out->spatial, err);
    }
done:
    agglo_free(buffer);
    return err->status != AGGLO_OK ? agglo_at(err, "teacher %s", teacher->name) : AGGLO_OK;
}

static agglo_status write_npy(const target *t, agglo_err *err)
{
    int64_t summary_shape[] = {t->info.summary_dim};
    int64_t spatial_shape[] = {t->info.grid_h, t->info.grid_w, t->info.spatial_dim};
    char *path = agglo_format(err, "%s.summary.npy", npy_prefix);

    if (path != NULL && agglo_npy_write(path, AGGLO_F32, 1, summary_shape, t->summary, err) == AGGLO_OK) {
        agglo_free(path);
        path = agglo_format(err, "%s.spatial.npy", npy_prefix);
        if (path != NULL) {
            agglo_npy_write(path, AGGLO_F32, 3, spatial_shape, t->spatial, err);
        }
    }
    agglo_free(path);
    return err->status;
}

/* The view as the renderer gives it, then one tile per teacher. */
static agglo_status write_png(const agglo_dataset *dataset, uint32_t shard, uint32_t ordinal, const target *targets,
                              size_t n, agglo_err *err)
{
    enum { SIDE = 224, MAX_TILES = 17 };
    agglo_tile tiles[MAX_TILES];
    uint8_t *pixels[MAX_TILES] = {NULL}, *row = NULL;
    agglo_renderer *renderer = NULL;
    agglo_decode_options decode;
    agglo_sample sample;
    agglo_view view = {targets[0].info.x, targets[0].info.y, targets[0].info.w, targets[0].info.h,
                       targets[0].info.flip};
    size_t n_tiles = 0;
    int width, height;

    if (dataset == NULL) {
        return agglo_fail(err, AGGLO_E_CONFIG, "--png needs the pictures: name their folder with --dataset");
    }
    decode = agglo_dataset_decode_options(dataset);
    pixels[0] = agglo_alloc((size_t)SIDE * SIDE, 3, err);
    if (pixels[0] == NULL || agglo_dataset_sample(dataset, shard, ordinal, &sample, err) != AGGLO_OK ||
        agglo_renderer_new(&renderer, &decode, err) != AGGLO_OK ||
        agglo_render_views(renderer, sample.image, sample.width, sample.height, &view, 1, AGGLO_VIEW_EXACT,
                           AGGLO_VIEW_FILTER, SIDE, SIDE, pixels[0], err) != AGGLO_OK) {
        goto done;
    }
    tiles[n_tiles++] = (agglo_tile){pixels[0], SIDE, SIDE};
    for (size_t i = 0; i < n && n_tiles < MAX_TILES; i++) {
        int64_t n_tok = (int64_t)targets[i].info.grid_h * targets[i].info.grid_w;

        pixels[n_tiles] = agglo_alloc((size_t)n_tok, 3, err);
        if (pixels[n_tiles] == NULL || agglo_picture_pca(targets[i].spatial, n_tok, targets[i].info.spatial_dim,
                                                         pixels[n_tiles], err) != AGGLO_OK) {
            goto done;
        }
        tiles[n_tiles] = (agglo_tile){pixels[n_tiles], targets[i].info.grid_w, targets[i].info.grid_h};
        n_tiles++;
    }
    if (agglo_picture_row(tiles, n_tiles, SIDE, &row, &width, &height, err) == AGGLO_OK) {
        agglo_png_write(png_path, row, width, height, err);
    }
done:
    agglo_free(row);
    for (size_t i = 0; i < MAX_TILES; i++) {
        agglo_free(pixels[i]);
    }
    agglo_renderer_free(renderer);
    return err->status;
}

static json_t *target_json(const target *t)
{
    char hash[17];

    snprintf(hash, sizeof hash, "%016llx", (unsigned long long)t->info.pixel_hash);
    return json_pack("{s:s, s:s, s:[i,i,i,i], s:b, s:[i,i], s:s, s:[i,i,i], s:i, s:I}", "teacher", t->teacher->name,
                     "codec", agglo_codec_name(t->info.codec), "box", t->info.x, t->info.y, t->info.w, t->info.h,
                     "flip", (int)t->info.flip, "input", (int)t->info.input_w, (int)t->info.input_h, "pixel_hash", hash,
                     "spatial", (int)t->info.grid_h, (int)t->info.grid_w, (int)t->info.spatial_dim, "summary",
                     (int)t->info.summary_dim, "payload_bytes", (json_int_t)t->n_bytes);
}

static void print_target(const target *t)
{
    printf("%-14s box %d,%d %dx%d%s, shown at %dx%d, pixel hash %016llx, summary %d, spatial %dx%dx%d, %s in %s\n",
           t->teacher->name, t->info.x, t->info.y, t->info.w, t->info.h, t->info.flip ? " flipped" : "",
           t->info.input_w, t->info.input_h, (unsigned long long)t->info.pixel_hash, t->info.summary_dim,
           t->info.grid_h, t->info.grid_w, t->info.spatial_dim, agglo_show_bytes((double)t->n_bytes),
           agglo_codec_name(t->info.codec));
}

static agglo_status inspect_sample(agglo_cli *cli, agglo_cache *cache, agglo_err *err)
{
    agglo_dataset *dataset = NULL;
    target targets[16];
    size_t n = 0;
    uint32_t shard, ordinal;
    const char *group = group_name != NULL ? group_name : agglo_cache_group_at(cache, 0)->name;

    memset(targets, 0, sizeof targets);
    if (open_dataset(cache, &dataset, err) != AGGLO_OK) {
        goto done;
    }
    if (!parse_place(sample_name, &shard, &ordinal)) {
        if (dataset == NULL) {
            agglo_fail(err, AGGLO_E_CONFIG,
                       "the pictures are not where the teacher pass read them: name their folder with --dataset, "
                       "or the sample as SHARD/ORDINAL");
            goto done;
        }
        if (agglo_dataset_find(dataset, sample_name, &shard, &ordinal, err) != AGGLO_OK) {
            goto done;
        }
    }
    for (size_t i = 0; i < agglo_cache_teachers(cache) && n < AGGLO_COUNT(targets); i++) {
        const agglo_cache_teacher *teacher = agglo_cache_teacher_at(cache, i);

        if ((teacher_name == NULL || strcmp(teacher->name, teacher_name) == 0) &&
            read_target(cache, teacher, group, shard, ordinal, &targets[n++], err) != AGGLO_OK) {
            goto done;
        }
    }
    if (n == 0) {
        agglo_fail(err, AGGLO_E_CONFIG, "the cache has no teacher%s%s", teacher_name != NULL ? " " : "",
                   teacher_name != NULL ? teacher_name : "");
        goto done;
    }
    if ((npy_prefix != NULL && write_npy(&targets[0], err) != AGGLO_OK) ||
        (png_path != NULL && write_png(dataset, shard, ordinal, targets, n, err) != AGGLO_OK)) {
        goto done;
    }
    if (cli->json) {
        json_t *list = json_array(), *object;

        for (size_t i = 0; i < n; i++) {
            json_array_append_new(list, target_json(&targets[i]));
        }
        object = json_pack("{s:i, s:i, s:I, s:s, s:o}", "shard", (int)shard, "ordinal", (int)ordinal, "view",
                           (json_int_t)view_index, "group", group, "targets", list);
        agglo_print_json(object);
        json_decref(object);
    } else {
        printf("sample %u/%u, view %d of group %s\n", shard, ordinal, (int)view_index, group);
        for (size_t i = 0; i < n; i++) {
            print_target(&targets[i]);
        }
    }
done:
    for (size_t i = 0; i < AGGLO_COUNT(targets); i++) {
        agglo_free(targets[i].summary);
        agglo_free(targets[i].spatial);
    }
    agglo_dataset_close(dataset);
    return err->status;
}

static agglo_status run(agglo_cli *cli, agglo_err *err)
{
    agglo_cache *cache = NULL;

    if (sample_name == NULL && (npy_prefix != NULL || png_path != NULL)) {
        return agglo_fail(err, AGGLO_E_CONFIG, "--%s needs --sample UID|KEY", npy_prefix != NULL ? "npy" : "png");
    }
    if (npy_prefix != NULL && teacher_name == NULL) {
        return agglo_fail(err, AGGLO_E_CONFIG, "--npy needs --teacher NAME");
    }
    if (agglo_cache_open(&cache, cli->args.items[0], 0, err) == AGGLO_OK) {
        if (sample_name != NULL) {
            inspect_sample(cli, cache, err);
        } else {
            inspect_whole(cli, cache, err);
        }
    }
    agglo_cache_close(cache);
    return err->status != AGGLO_OK ? agglo_doing(err, "cannot inspect the cache") : AGGLO_OK;
}

const agglo_command agglo_cmd_inspect_cache = {
    .name = "inspect cache",
    .usage = "PATH [--sample UID|KEY --view N [--teacher NAME --npy PREFIX] [--png FILE]] [--verify]",
    .summary = "what is cached, at what size, and whether it is whole",
    .details =
        "--npy writes float32 arrays in native space, [C] and [H,W,C]. --verify exits with 1 and names what is bad.",
    .example = "agglo inspect cache cache --sample 000010042 --view 0 --teacher clip --npy clip --png view.png",
    .options = options,
    .n_options = AGGLO_COUNT(options),
    .min_args = 1,
    .max_args = 1,
    .run = run,
};
