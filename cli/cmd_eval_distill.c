/* agglo eval distill: how well a student matches its teachers on held-out pictures. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "launch/train.h"
#include "student/eval_distill.h"

static const char *run_dir, *recipe_path, *dataset_path;
static agglo_texts sets;

static const agglo_option options[] = {
    {"run", AGGLO_OPTION_STRING, &run_dir, "RUN", "folder of a finished run", 0, 0},
    {"recipe", AGGLO_OPTION_STRING, &recipe_path, "RECIPE",
     "the recipe whose val and teachers are used (RUN/recipe.yaml)", 0, 0},
    {"dataset", AGGLO_OPTION_STRING, &dataset_path, "DATASET", "another dataset of the recipe (its val)", 0, 0},
    {"set", AGGLO_OPTION_LIST, &sets, "KEY=VALUE", "change a recipe key; may be repeated", 0, 0},
};

/* Which pictures, with which cache: the held-out set, or the training set when --dataset names it. */
static agglo_status choose(const agglo_recipe *recipe, const char **dataset, const char **cache, agglo_err *err)
{
    char *wanted;

    *dataset = recipe->val;
    *cache = recipe->val_cache;
    if (dataset_path == NULL) {
        if (recipe->val == NULL) {
            agglo_fail(err, AGGLO_E_CONFIG, "the recipe has no val; name one with --dataset");
            return agglo_at(err, "%s", recipe->path);
        }
        return AGGLO_OK;
    }
    wanted = realpath(dataset_path, NULL);
    *dataset = dataset_path;
    for (size_t i = 0; wanted != NULL && i < recipe->n_datasets; i++) {
        char *known = realpath(recipe->datasets[i], NULL);

        if (known != NULL && strcmp(known, wanted) == 0) {
            *cache = recipe->cache;
        }
        free(known);
    }
    free(wanted);
    return AGGLO_OK;
}

static void print_json(const agglo_distill_result *result)
{
    json_t *object = json_object(), *teachers = json_object();

    json_object_set_new(object, "loss", json_real(result->loss));
    json_object_set_new(object, "n_views", json_integer(result->n_views));
    json_object_set_new(object, "n_bad", json_integer(result->n_bad));
    for (size_t i = 0; i < result->n_teachers; i++) {
        const agglo_distill_teacher *t = &result->teachers[i];

        json_object_set_new(teachers, t->name,
                            json_pack("{s:f, s:f, s:f, s:f, s:I}", "summary_cos", t->summary_cos, "spatial_cos",
                                      t->spatial_cos, "summary_loss", t->summary_loss, "spatial_loss", t->spatial_loss,
                                      "n_views", (json_int_t)t->n_views));
    }
    json_object_set_new(object, "teachers", teachers);
    agglo_print_json(object);
    json_decref(object);
}

static void print_text(const char *dataset, const agglo_distill_result *result)
{
    printf("%s on %s views of %s: loss %.4f\n", run_dir, agglo_show_int(result->n_views), dataset, result->loss);
    printf("  %-16s %12s %12s %12s %12s\n", "teacher", "summary cos", "spatial cos", "summary loss", "spatial loss");
    for (size_t i = 0; i < result->n_teachers; i++) {
        const agglo_distill_teacher *t = &result->teachers[i];

        printf("  %-16s %12.4f %12.4f %12.4f %12.4f\n", t->name, t->summary_cos, t->spatial_cos, t->summary_loss,
               t->spatial_loss);
    }
    if (result->n_bad > 0) {
        printf("  %s views had a picture or a record missing and were left out\n", agglo_show_int(result->n_bad));
    }
}

static agglo_status run(agglo_cli *cli, agglo_err *err)
{
    agglo_recipe recipe = {0};
    agglo_sources sources = {0};
    agglo_backend *backend = NULL;
    agglo_distill_result result = {0};
    agglo_feed_config feed = agglo_feed_config_default();
    char *student = NULL, *own_recipe = NULL;
    const char *dataset = NULL, *cache = NULL;

    if (run_dir == NULL) {
        return agglo_fail(err, AGGLO_E_CONFIG, "--run RUN is missing");
    }
    student = agglo_path_join(run_dir, "student.safetensors", err);
    own_recipe = student != NULL ? agglo_path_join(run_dir, "recipe.yaml", err) : NULL;
    if (own_recipe == NULL ||
        agglo_recipe_read(&recipe, recipe_path != NULL ? recipe_path : own_recipe, sets.items, sets.n, err) !=
            AGGLO_OK ||
        choose(&recipe, &dataset, &cache, err) != AGGLO_OK ||
        agglo_sources_open(&sources, &recipe, &dataset, 1, cache, err) != AGGLO_OK ||
        agglo_backend_open(&backend, cli->device, (int)cli->threads, err) != AGGLO_OK) {
        goto done;
    }
    feed.dataset = sources.dataset;
    feed.cache = sources.cache;
    feed.views = *sources.views;
    feed.teachers = sources.teachers;
    feed.n_teachers = sources.n_teachers;
    feed.batch = 32;
    feed.n_workers = cli->threads > 0 ? (int)cli->threads : agglo_cores();
    if (agglo_eval_distill(backend, student, &feed, &recipe.trainer, &result, err) != AGGLO_OK) {
        goto done;
    }
    if (cli->json) {
        print_json(&result);
    } else {
        print_text(dataset, &result);
    }
    cli->incomplete = agglo_dataset_lost_shards(sources.dataset) > 0;
done:
    agglo_backend_free(backend);
    agglo_sources_close(&sources);
    agglo_recipe_clear(&recipe);
    agglo_free(own_recipe);
    agglo_free(student);
    return err->status;
}

const agglo_command agglo_cmd_eval_distill = {
    .name = "eval distill",
    .usage = "--run RUN [--recipe RECIPE] [--dataset DATASET]",
    .summary = "per-teacher losses and cosines on held-out pictures",
    .details = "The student of a run against the cached targets of the recipe's val (which agglo teach makes too), "
               "every view of every\n"
               "picture, in the teachers' native feature space.",
    .example = "agglo eval distill --run runs/first --recipe recipe.yaml",
    .options = options,
    .n_options = AGGLO_COUNT(options),
    .min_args = 0,
    .max_args = 0,
    .run = run,
};
