/* agglo eval zeroshot: classification by cosine to given class embeddings. */
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "base/stop.h"
#include "cli/cli.h"
#include "cli/features.h"
#include "student/eval_zeroshot.h"

static const char *val_dir, *text_path;
static agglo_model_args args;
static int labels_option;

static const agglo_option options[] = {
    {"val", AGGLO_OPTION_STRING, &val_dir, "DATASET", "labelled pictures to classify", 0, 0},
    AGGLO_MODEL_OPTIONS(args, "a CLIP's, or a student's safetensors"),
    {"text", AGGLO_OPTION_STRING, &text_path, "FILE.safetensors", "class embeddings: `classes` [classes, dim]", 0, 0},
    {"labels", AGGLO_OPTION_CHOICE, &labels_option, "auto|name|number",
     "how a label finds its row: by the name of its class, or as the row's number (auto: by name where dataset and "
     "text have names, else by number)",
     0, 0},
};

/* The names that a dataset gives its labels (folders of pictures have them); an empty array or NULL: none. Borrowed. */
static const json_t *class_names(const agglo_dataset *dataset)
{
    const json_t *names = json_object_get(agglo_dataset_json(dataset, 0), "classes");

    return json_is_array(names) && json_array_size(names) > 0 ? names : NULL;
}

/* How a label becomes a row. */
typedef struct mapping {
    bool by_name;
    int64_t n, *rows; /* of label 0..n-1; rows NULL: the label itself */
} mapping;

static agglo_status map_labels(mapping *map, const agglo_dataset *dataset, const agglo_class_text *text, agglo_err *err)
{
    const json_t *names = class_names(dataset);

    if (labels_option == 1 && (names == NULL || text->names == NULL)) {
        return agglo_fail(err, AGGLO_E_CONFIG, "--labels name: %s has no names of classes",
                          names == NULL ? val_dir : text_path);
    }
    if (labels_option == 0 && (names == NULL) != (text->names == NULL)) {
        agglo_log(
            AGGLO_LOG_WARN,
            "%s names its classes and %s does not: labels are taken as numbers of rows, which must be in the same "
            "order (--labels number says that they are)",
            names != NULL ? val_dir : text_path, names != NULL ? text_path : val_dir);
    }
    map->by_name = labels_option != 2 && names != NULL && text->names != NULL;
    map->n = map->by_name ? (int64_t)json_array_size(names) : text->n;
    if (map->by_name && (map->rows = agglo_alloc((size_t)map->n, sizeof *map->rows, err)) == NULL) {
        return err->status;
    }
    for (int64_t i = 0; map->by_name && i < map->n; i++) {
        const char *name = json_string_value(json_array_get(names, (size_t)i));

        map->rows[i] = name != NULL ? agglo_class_text_find(text, name) : -1;
        if (map->rows[i] < 0) {
            agglo_fail(err, AGGLO_E_MISMATCH,
                       "the text has %s class '%.80s' of the dataset; --labels number takes labels as rows",
                       map->rows[i] == -2 ? "more than one" : "no", name != NULL ? name : "?");
            return agglo_at(err, "%s", text_path);
        }
    }
    return AGGLO_OK;
}

/* Every label of the dataset has a row: known from its index, so before the model runs. */
static agglo_status check_labels(const mapping *map, const agglo_dataset *dataset, agglo_err *err)
{
    for (uint32_t shard = 0; shard < agglo_dataset_shards(dataset); shard++) {
        uint32_t n = agglo_dataset_shard(dataset, shard)->n_samples;
        agglo_err ignored = {0};

        for (uint32_t i = 0; i < n && agglo_dataset_shard_status(dataset, shard, &ignored) == AGGLO_OK; i++) {
            agglo_sample sample;

            if (agglo_dataset_sample(dataset, shard, i, &sample, &ignored) == AGGLO_OK && sample.label >= map->n) {
                agglo_fail(err, AGGLO_E_MISMATCH, "picture %.100s has label %lld, there are %lld classes", sample.key,
                           (long long)sample.label, (long long)map->n);
                return agglo_at(err, "%s", val_dir);
            }
        }
        if (agglo_stop_check(err) != AGGLO_OK) {
            return err->status;
        }
    }
    return AGGLO_OK;
}

/* Labels become rows, in place. */
static void apply(const mapping *map, agglo_features *features)
{
    for (int64_t i = 0; i < features->n; i++) {
        AGGLO_ASSERT(features->labels[i] >= 0 && features->labels[i] < map->n);
        features->labels[i] = map->rows != NULL ? map->rows[features->labels[i]] : features->labels[i];
    }
}

typedef struct score {
    int64_t top1, top5;
    double mean_per_class; /* of the classes that have pictures */
} score;

static agglo_status count(const agglo_features *features, const int64_t *rank, int64_t n_classes, score *out,
                          agglo_err *err)
{
    int64_t *tally = agglo_alloc((size_t)n_classes, 2 * sizeof *tally, err), n_seen = 0;

    if (tally == NULL) {
        return err->status;
    }
    for (int64_t i = 0; i < features->n; i++) {
        out->top1 += rank[i] < 1;
        out->top5 += rank[i] < 5;
        tally[2 * features->labels[i]]++;
        tally[2 * features->labels[i] + 1] += rank[i] < 1;
    }
    for (int64_t k = 0; k < n_classes; k++) {
        if (tally[2 * k] > 0) {
            out->mean_per_class += (double)tally[2 * k + 1] / (double)tally[2 * k];
            n_seen++;
        }
    }
    out->mean_per_class /= (double)n_seen;
    agglo_free(tally);
    return AGGLO_OK;
}

static void report(const agglo_cli *cli, const agglo_encoder_info *info, const agglo_class_text *text,
                   const agglo_features *features, const score *s, bool by_name)
{
    double n = (double)features->n;

    if (cli->json) {
        json_t *object = json_pack("{s:s, s:s, s:s, s:f, s:f, s:f, s:I, s:I, s:I, s:I, s:I, s:s}", "weights",
                                   args.weights, "arch", info->arch, "text", text_path, "top1", (double)s->top1 / n,
                                   "top5", (double)s->top5 / n, "mean_per_class", s->mean_per_class, "correct",
                                   (json_int_t)s->top1, "n_val", (json_int_t)features->n, "n_bad",
                                   (json_int_t)features->n_bad, "n_unlabelled", (json_int_t)features->n_unlabelled,
                                   "classes", (json_int_t)text->n, "labels", by_name ? "name" : "number");

        if (args.head != NULL) {
            json_object_set_new(object, "head", json_string(args.head));
        }
        agglo_print_json(object);
        json_decref(object);
        return;
    }
    printf("%s%s%s: zero-shot top-1 %.4f, top-5 %.4f, mean per class %.4f (%s of %s; %s classes, labels by %s)\n",
           args.weights, args.head != NULL ? ", head " : "", args.head != NULL ? args.head : "", (double)s->top1 / n,
           (double)s->top5 / n, s->mean_per_class, agglo_show_int(s->top1), agglo_show_int(features->n),
           agglo_show_int(text->n), by_name ? "name" : "number");
    if (features->n_bad > 0) {
        printf("  %s pictures could not be read and were left out\n", agglo_show_int(features->n_bad));
    }
}

static agglo_status read_text(agglo_class_text *text, agglo_err *err)
{
    agglo_safetensors *st = NULL;

    if (agglo_safetensors_open(&st, text_path, err) == AGGLO_OK) {
        agglo_class_text_read(text, st, err);
    }
    agglo_safetensors_close(st);
    return err->status;
}

static agglo_status run(agglo_cli *cli, agglo_err *err)
{
    agglo_encoder_options model = agglo_model_args_options(&args);
    agglo_backend *backend = NULL;
    agglo_encoder encoder = {0};
    agglo_dataset *val = NULL;
    agglo_class_text text = {0};
    agglo_features features = {0};
    int64_t *rank = NULL;
    score s = {0};
    mapping map = {0};

    if (val_dir == NULL || args.weights == NULL || text_path == NULL) {
        return agglo_fail(err, AGGLO_E_CONFIG, "--%s is missing",
                          val_dir == NULL        ? "val DATASET"
                          : args.weights == NULL ? "weights FILE"
                                                 : "text FILE.safetensors");
    }
    if (read_text(&text, err) != AGGLO_OK || agglo_dataset_open(&val, &val_dir, 1, err) != AGGLO_OK ||
        agglo_backend_open(&backend, cli->device, (int)cli->threads, err) != AGGLO_OK ||
        agglo_encoder_open(&encoder, backend, &model, err) != AGGLO_OK) {
        goto done;
    }
    if (text.dim != encoder.info.summary_dim) {
        agglo_fail(err, AGGLO_E_MISMATCH, "the text's embeddings have %lld channels, the model's summary %d",
                   (long long)text.dim, encoder.info.summary_dim);
        agglo_at(err, "%s", text_path);
        goto done;
    }
    if (map_labels(&map, val, &text, err) != AGGLO_OK || check_labels(&map, val, err) != AGGLO_OK ||
        agglo_features_of(&features, &encoder, val, val_dir, cli->threads > 0 ? (int)cli->threads : agglo_cores(),
                          err) != AGGLO_OK) {
        goto done;
    }
    if (features.n == 0) {
        agglo_fail(err, AGGLO_E_DATA, "no picture with a label could be read");
        agglo_doing(err, "cannot classify");
        agglo_at(err, "%s", val_dir);
        goto done;
    }
    apply(&map, &features);
    rank = agglo_alloc((size_t)features.n, sizeof *rank, err);
    if (rank == NULL ||
        agglo_eval_zeroshot(backend, &text, features.summary, features.labels, features.n, rank, err) != AGGLO_OK ||
        count(&features, rank, text.n, &s, err) != AGGLO_OK) {
        goto done;
    }
    report(cli, &encoder.info, &text, &features, &s, map.by_name);
    cli->incomplete = features.n_lost_shards > 0;
done:
    agglo_free(rank);
    agglo_free(map.rows);
    agglo_features_clear(&features);
    agglo_class_text_clear(&text);
    agglo_encoder_clear(&encoder);
    agglo_backend_free(backend);
    agglo_dataset_close(val);
    return err->status;
}

const agglo_command agglo_cmd_eval_zeroshot = {
    .name = "eval zeroshot",
    .usage = "--val DATASET --weights FILE --text FILE.safetensors [--head NAME]",
    .summary = "zero-shot top-1 and top-5 by cosine to class embeddings",
    .details =
        "Summaries of whole pictures beside the rows of the text's `classes`, both L2-normalised; script/zeroshot-text "
        "makes such a file with\n"
        "a CLIP's text tower. A label is the number of its row, or, where the dataset (a folder of pictures) and the "
        "text "
        "both name their\n"
        "classes, finds it by name.",
    .example = "agglo eval zeroshot --val data/val --weights clip/model.safetensors --text imagenet.safetensors",
    .options = options,
    .n_options = AGGLO_COUNT(options),
    .min_args = 0,
    .max_args = 0,
    .run = run,
};
