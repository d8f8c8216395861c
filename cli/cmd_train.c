/* agglo train: a student from the cache. */
#include <stdio.h>

#include "cli/cli.h"
#include "launch/train.h"

static const char *out_dir;
static agglo_texts sets;

static const agglo_option options[] = {
    {"out", AGGLO_OPTION_STRING, &out_dir, "RUN", "folder of the run; goes on where it stopped", 0, 0},
    {"set", AGGLO_OPTION_LIST, &sets, "KEY=VALUE", "change a recipe key, such as train.lr=3e-4; may be repeated", 0, 0},
};

static void print_json(const agglo_recipe *recipe, const agglo_train_result *result)
{
    json_t *object = json_object(), *teachers = json_object();

    json_object_set_new(object, "run", json_string(out_dir));
    json_object_set_new(object, "steps", json_integer(result->steps));
    json_object_set_new(object, "resumed_from", json_integer(result->resumed_from));
    json_object_set_new(object, "up_to_date", json_boolean(result->up_to_date));
    json_object_set_new(object, "bad_samples", json_integer((json_int_t)result->n_bad));
    json_object_set_new(object, "lost_shards", json_integer((json_int_t)result->lost_shards));
    json_object_set_new(object, "seconds", agglo_json_clock(result->seconds));
    json_object_set_new(object, "images_per_s", agglo_json_clock(result->images_per_s));
    json_object_set_new(object, "data_wait", json_real(result->wait_share));
    if (result->last.n_teachers > 0) {
        json_object_set_new(object, "loss", json_real(result->last.loss));
    }
    for (size_t i = 0; i < result->last.n_teachers; i++) {
        json_object_set_new(teachers, recipe->teachers[i].name,
                            json_pack("{s:f, s:f}", "summary_cos", agglo_metrics_summary_cos(&result->last, i),
                                      "spatial_cos", agglo_metrics_spatial_cos(&result->last, i)));
    }
    json_object_set_new(object, "teachers", teachers);
    agglo_print_json(object);
    json_decref(object);
}

static void print_text(const agglo_recipe *recipe, const agglo_train_result *result)
{
    if (result->up_to_date) {
        printf("%s: done before, %s steps; nothing to do\n", out_dir, agglo_show_int(result->steps));
        return;
    }
    printf("%s: %s steps", out_dir, agglo_show_int(result->steps));
    if (result->resumed_from > 0) {
        printf(" (%s of them before)", agglo_show_int(result->resumed_from));
    }
    printf(" in %.1f s, %.1f images/s, %.1f %% of the time waiting for data\n", result->seconds, result->images_per_s,
           100 * result->wait_share);
    if (result->last.n_teachers > 0) {
        printf("  last batch: loss %.4f\n", result->last.loss);
    }
    for (size_t i = 0; i < result->last.n_teachers; i++) {
        printf("  %-16s summary cosine %.4f, spatial cosine %.4f\n", recipe->teachers[i].name,
               agglo_metrics_summary_cos(&result->last, i), agglo_metrics_spatial_cos(&result->last, i));
    }
    if (result->n_bad > 0) {
        printf("  %s slots had a picture or a record missing and weighed nothing\n",
               agglo_show_int((int64_t)result->n_bad));
    }
    if (result->lost_shards > 0) {
        printf("  %s shards of the dataset could not be read\n", agglo_show_int((int64_t)result->lost_shards));
    }
    printf("  weights: %s/student.safetensors\n", out_dir);
}

static agglo_status run(agglo_cli *cli, agglo_err *err)
{
    agglo_recipe recipe = {0};
    agglo_backend *backend = NULL;
    agglo_train_result result = {0};

    if (out_dir == NULL) {
        return agglo_fail(err, AGGLO_E_CONFIG, "--out RUN is missing");
    }
    if (agglo_recipe_read(&recipe, cli->args.items[0], sets.items, sets.n, err) == AGGLO_OK &&
        agglo_backend_open(&backend, cli->device, (int)cli->threads, err) == AGGLO_OK &&
        agglo_run_train(&recipe, out_dir, backend, &result, err) == AGGLO_OK) {
        if (cli->json) {
            print_json(&recipe, &result);
        } else {
            print_text(&recipe, &result);
        }
        cli->incomplete = result.lost_shards > 0 && !result.up_to_date;
    }
    agglo_backend_free(backend);
    agglo_recipe_clear(&recipe);
    return err->status;
}

const agglo_command agglo_cmd_train = {
    .name = "train",
    .usage = "RECIPE --out RUN [--set KEY=VALUE]...",
    .summary = "train a student from the cache",
    .details = "RUN holds recipe.yaml as used, metrics.jsonl, checkpoints and, at the end, student.safetensors. "
               "Started again, it goes on\n"
               "from the last checkpoint and ends with the same bytes as a run that never stopped.",
    .example = "agglo train recipe.yaml --out runs/first --set train.steps=2000",
    .options = options,
    .n_options = AGGLO_COUNT(options),
    .min_args = 1,
    .max_args = 1,
    .run = run,
};
