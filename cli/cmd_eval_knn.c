/* agglo eval knn: k-nearest-neighbour classification by summaries. */
#include <stdio.h>

#include "cli/cli.h"
#include "cli/features.h"
#include "student/eval_knn.h"

static const char *train_dir, *val_dir;
static agglo_model_args args;
static int64_t k = 20;
static double temperature = 0.07;

static const agglo_option options[] = {
    {"train", AGGLO_OPTION_STRING, &train_dir, "DATASET", "labelled pictures that vote", 0, 0},
    {"val", AGGLO_OPTION_STRING, &val_dir, "DATASET", "labelled pictures to classify", 0, 0},
    AGGLO_MODEL_OPTIONS(args, "a teacher's or a student's safetensors"),
    {"k", AGGLO_OPTION_INT, &k, "N", "neighbours (20)", 1, 100000},
    {"temperature", AGGLO_OPTION_DOUBLE, &temperature, "T", "a neighbour votes exp(similarity / T) (0.07)", 1e-3, 1e3},
};

static agglo_status features_of(agglo_features *out, const agglo_encoder *encoder, const agglo_dataset *dataset,
                                const char *path, int n_workers, agglo_err *err)
{
    if (agglo_features_of(out, encoder, dataset, path, n_workers, err) == AGGLO_OK && out->n == 0) {
        agglo_fail(err, AGGLO_E_DATA, "no picture with a label could be read");
        agglo_doing(err, "cannot classify");
    }
    return err->status != AGGLO_OK ? agglo_at(err, "%s", path) : AGGLO_OK;
}

static agglo_status run(agglo_cli *cli, agglo_err *err)
{
    agglo_knn_config config = agglo_knn_config_default();
    agglo_backend *backend = NULL;
    agglo_encoder_options model = agglo_model_args_options(&args);
    agglo_encoder encoder = {0};
    agglo_dataset *train = NULL, *val = NULL;
    agglo_features bank = {0}, queries = {0};
    int64_t *predicted = NULL, correct = 0;
    int n_workers = cli->threads > 0 ? (int)cli->threads : agglo_cores();
    double top1;

    if (train_dir == NULL || val_dir == NULL || args.weights == NULL) {
        return agglo_fail(err, AGGLO_E_CONFIG, "--%s is missing",
                          train_dir == NULL ? "train DATASET"
                          : val_dir == NULL ? "val DATASET"
                                            : "weights FILE");
    }
    config.k = (int)k;
    config.temperature = temperature;
    if (agglo_dataset_open(&train, &train_dir, 1, err) != AGGLO_OK ||
        agglo_dataset_open(&val, &val_dir, 1, err) != AGGLO_OK ||
        agglo_backend_open(&backend, cli->device, (int)cli->threads, err) != AGGLO_OK ||
        agglo_encoder_open(&encoder, backend, &model, err) != AGGLO_OK ||
        features_of(&bank, &encoder, train, train_dir, n_workers, err) != AGGLO_OK ||
        features_of(&queries, &encoder, val, val_dir, n_workers, err) != AGGLO_OK) {
        goto done;
    }
    predicted = agglo_alloc((size_t)queries.n, sizeof *predicted, err);
    if (predicted == NULL || agglo_eval_knn(backend, &config, bank.summary, bank.labels, bank.n, queries.summary,
                                            queries.n, bank.dim, predicted, err) != AGGLO_OK) {
        goto done;
    }
    for (int64_t i = 0; i < queries.n; i++) {
        correct += predicted[i] == queries.labels[i];
    }
    top1 = (double)correct / (double)queries.n;
    if (cli->json) {
        json_t *object = json_pack(
            "{s:s, s:s, s:f, s:I, s:I, s:I, s:I, s:I, s:f}", "weights", args.weights, "arch", encoder.info.arch, "top1",
            top1, "correct", (json_int_t)correct, "n_train", (json_int_t)bank.n, "n_val", (json_int_t)queries.n,
            "n_bad", (json_int_t)(bank.n_bad + queries.n_bad), "k", (json_int_t)k, "temperature", temperature);

        if (args.head != NULL) {
            json_object_set_new(object, "head", json_string(args.head));
        }
        agglo_print_json(object);
        json_decref(object);
    } else {
        printf("%s%s%s: k-NN top-1 %.4f (%s of %s; bank of %s, k %d)\n", args.weights,
               args.head != NULL ? ", head " : "", args.head != NULL ? args.head : "", top1, agglo_show_int(correct),
               agglo_show_int(queries.n), agglo_show_int(bank.n), config.k);
        if (bank.n_bad + queries.n_bad > 0) {
            printf("  %s pictures could not be read and were left out\n", agglo_show_int(bank.n_bad + queries.n_bad));
        }
    }
    cli->incomplete = bank.n_lost_shards + queries.n_lost_shards > 0;
done:
    agglo_free(predicted);
    agglo_features_clear(&queries);
    agglo_features_clear(&bank);
    agglo_encoder_clear(&encoder);
    agglo_backend_free(backend);
    agglo_dataset_close(val);
    agglo_dataset_close(train);
    return err->status;
}

const agglo_command agglo_cmd_eval_knn = {
    .name = "eval knn",
    .usage = "--train DATASET --val DATASET --weights FILE [--head NAME]",
    .summary = "k-NN top-1 of a teacher or a student",
    .details = "Summaries of whole pictures, L2-normalised; the k most similar pictures of --train vote with "
               "exp(similarity / T).",
    .example = "agglo eval knn --train data/train --val data/val --weights runs/first/student.safetensors",
    .options = options,
    .n_options = AGGLO_COUNT(options),
    .min_args = 0,
    .max_args = 0,
    .run = run,
};
