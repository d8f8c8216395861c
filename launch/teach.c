/* Every chosen teacher of a recipe over its datasets; see teach.h. */
#include "launch/teach.h"

#include <string.h>

#include "base/log.h"
#include "teachers/teacher.h"

/* The dataset (val: the held-out one) with the cache that belongs to it. */
typedef struct target {
    agglo_dataset *dataset;
    const char *cache;
    bool val;
} target;

static bool chosen(const agglo_teach_choice *choice, const char *name)
{
    for (size_t i = 0; i < choice->n_teachers; i++) {
        if (strcmp(choice->teachers[i], name) == 0) {
            return true;
        }
    }
    return choice->n_teachers == 0;
}

static agglo_status check_names(const agglo_recipe *recipe, const agglo_teach_choice *choice, agglo_err *err)
{
    const char *names[AGGLO_MAX_TEACHERS];

    for (size_t i = 0; i < recipe->n_teachers; i++) {
        names[i] = recipe->teachers[i].name;
    }
    for (size_t i = 0; i < choice->n_teachers; i++) {
        const char *nearest;
        bool known = false;

        for (size_t k = 0; k < recipe->n_teachers; k++) {
            known |= strcmp(names[k], choice->teachers[i]) == 0;
        }
        if (!known) {
            nearest = agglo_nearest(choice->teachers[i], names, recipe->n_teachers);
            agglo_fail(err, AGGLO_E_CONFIG, "the recipe has no teacher '%s'%s%s%s", choice->teachers[i],
                       nearest != NULL ? ", did you mean '" : "", nearest != NULL ? nearest : "",
                       nearest != NULL ? "'?" : "");
            return agglo_at(err, "%s", recipe->path);
        }
    }
    return AGGLO_OK;
}

/* Every chosen teacher's weights can be opened: refused before the first teacher's hours of work, not after. */
static agglo_status check_weights(const agglo_recipe *recipe, const agglo_teach_choice *choice, agglo_err *err)
{
    for (size_t i = 0; i < recipe->n_teachers; i++) {
        const agglo_recipe_teacher *teacher = &recipe->teachers[i];
        agglo_weights *weights = NULL;

        if (chosen(choice, teacher->name) && agglo_weights_open(&weights, teacher->weights, err) != AGGLO_OK) {
            return agglo_at(err, "teacher %s", teacher->name);
        }
        agglo_weights_close(weights);
    }
    return AGGLO_OK;
}

/* CACHE/datasets.json: where the pictures were, so that `inspect cache` finds them. A hint, rewritten by every pass; no unit depends on it. */
static agglo_status leave_hint(const char *cache, const char *const *datasets, size_t n, agglo_err *err)
{
    json_t *list = json_array(), *object = json_object();
    char *path = agglo_path_join(cache, "datasets.json", err);

    for (size_t i = 0; i < n; i++) {
        json_array_append_new(list, json_string(datasets[i]));
    }
    json_object_set_new(object, "datasets", list);
    if (path != NULL && agglo_make_dirs(cache, err) == AGGLO_OK) {
        agglo_json_write(path, object, err);
    }
    agglo_free(path);
    json_decref(object);
    return err->status;
}

static agglo_status run_one(const agglo_recipe *recipe, const agglo_recipe_teacher *teacher,
                            const agglo_encoder *encoder, const agglo_teach_choice *choice, const target *t,
                            uint64_t *first_slot, agglo_teach_result *out, agglo_err *err)
{
    agglo_teach_options options = agglo_teach_options_default();
    agglo_teach_line *line = &out->lines[out->n_lines++];
    const agglo_encoder_info *info = &encoder->info;

    line->teacher = teacher->name;
    line->val = t->val;
    line->codec = teacher->codec;
    memcpy(line->arch, info->arch, sizeof line->arch);
    line->grid_h = line->grid_w = info->preprocess.size / info->patch;
    line->summary_dim = info->summary_dim;
    line->spatial_dim = info->spatial_dim;
    options.cache = t->cache;
    options.scratch = choice->scratch;
    options.teacher = teacher->name;
    options.codec = teacher->codec;
    options.batch = (int)teacher->batch;
    options.threads = choice->threads;
    options.groups = recipe->groups;
    options.n_groups = recipe->n_groups;
    options.part = choice->part;
    options.n_parts = choice->n_parts;
    options.first_slot = *first_slot;
    options.verify = choice->verify;
    *first_slot += agglo_teach_slots(t->dataset, recipe->n_groups);
    agglo_log(AGGLO_LOG_DEBUG, "%s (%s) over %s", teacher->name, info->arch,
              t->val ? "the held-out set" : "the dataset");
    return agglo_teach(t->dataset, encoder, &options, &line->report, err);
}

agglo_status agglo_run_teach(const agglo_recipe *recipe, const agglo_teach_choice *choice, agglo_backend *backend,
                             agglo_teach_result *out, agglo_err *err)
{
    target targets[2] = {{NULL, recipe->cache, false}, {NULL, recipe->val_cache, true}};
    size_t n_targets = recipe->val != NULL ? 2 : 1;
    uint64_t first_slot = 0;

    memset(out, 0, sizeof *out);
    if (check_names(recipe, choice, err) != AGGLO_OK || check_weights(recipe, choice, err) != AGGLO_OK ||
        agglo_dataset_open(&targets[0].dataset, recipe->datasets, recipe->n_datasets, err) != AGGLO_OK ||
        leave_hint(recipe->cache, recipe->datasets, recipe->n_datasets, err) != AGGLO_OK ||
        (n_targets == 2 && (agglo_dataset_open(&targets[1].dataset, &recipe->val, 1, err) != AGGLO_OK ||
                            leave_hint(recipe->val_cache, &recipe->val, 1, err) != AGGLO_OK))) {
        goto done;
    }
    for (size_t i = 0; err->status == AGGLO_OK && i < recipe->n_teachers; i++) {
        const agglo_recipe_teacher *teacher = &recipe->teachers[i];
        agglo_teacher_options options = agglo_teacher_options_default();
        agglo_encoder encoder = {0};

        if (!chosen(choice, teacher->name)) {
            for (size_t k = 0; k < n_targets; k++) {
                first_slot += agglo_teach_slots(targets[k].dataset, recipe->n_groups);
            }
            continue;
        }
        options.weights = teacher->weights;
        options.arch = teacher->arch;
        options.size = (int)teacher->size;
        options.max_batch = (int)teacher->batch;
        options.preproj = teacher->summary == 1;
        options.spatial_raw = !teacher->spatial_norm;
        options.neck = teacher->neck;
        options.pos_interp = (agglo_pos_interp)teacher->pos_interp;
        options.precision = teacher->precision == 1 ? AGGLO_BF16 : AGGLO_F32;
        options.act = teacher->act == 1 ? "gelu" : teacher->act == 2 ? "quick_gelu" : NULL;
        if (agglo_teacher_open(&encoder, backend, &options, err) == AGGLO_OK) {
            for (size_t k = 0; k < n_targets && err->status == AGGLO_OK; k++) {
                run_one(recipe, teacher, &encoder, choice, &targets[k], &first_slot, out, err);
            }
        }
        agglo_encoder_clear(&encoder);
        if (err->status != AGGLO_OK) {
            agglo_at(err, "teacher %s", teacher->name);
        }
    }
done:
    agglo_dataset_close(targets[1].dataset);
    agglo_dataset_close(targets[0].dataset);
    return err->status != AGGLO_OK ? agglo_doing(err, "cannot finish the teacher pass") : AGGLO_OK;
}

void agglo_teach_result_clear(agglo_teach_result *result)
{
    for (size_t i = 0; i < result->n_lines; i++) {
        agglo_teach_report_clear(&result->lines[i].report);
    }
    memset(result, 0, sizeof *result);
}
