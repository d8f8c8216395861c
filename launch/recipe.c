/* The schema of a recipe: tables of fields, readers for what is a union, and the checks between keys. */
#include "launch/recipe.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fs.h"
#include "cache/unit.h"

static bool is_name(const char *text, size_t max)
{
    size_t n = strspn(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-");

    return n > 0 && n < max && text[n] == '\0' && text[0] != '.' && text[0] != '-';
}

/* ---- paths ---- */

/* Replace a path scalar by its absolute form, relative to `dir`. */
static agglo_status resolve(agglo_yaml *node, const char *dir, agglo_arena *arena, agglo_err *err)
{
    char *joined;

    if (node->kind == AGGLO_YAML_LIST) {
        for (size_t i = 0; i < node->n; i++) {
            if (resolve(&node->items[i], dir, arena, err) != AGGLO_OK) {
                return err->status;
            }
        }
        return AGGLO_OK;
    }
    if (node->kind != AGGLO_YAML_SCALAR || agglo_yaml_is_null(node)) {
        return AGGLO_OK; /* the schema check names what is wrong */
    }
    joined = agglo_path_join(dir, node->text, err);
    if (joined == NULL) {
        return err->status;
    }
    node->text = agglo_arena_text(arena, joined, strlen(joined), err);
    agglo_free(joined);
    return node->text != NULL ? AGGLO_OK : err->status;
}

static agglo_yaml *member(agglo_yaml *map, const char *key)
{
    for (size_t i = 0; map->kind == AGGLO_YAML_MAP && i < map->n; i++) {
        if (strcmp(map->keys[i], key) == 0) {
            return &map->items[i];
        }
    }
    return NULL;
}

static agglo_status resolve_paths(agglo_recipe *recipe, agglo_err *err)
{
    static const char *const keys[] = {"dataset", "val", "cache", "val_cache"};
    char *relative = agglo_path_dir(recipe->path, err), *dir;
    agglo_yaml *node, *teachers, *train;

    if (relative == NULL) {
        return err->status;
    }
    dir = realpath(relative, NULL);
    agglo_free(relative);
    if (dir == NULL) {
        return agglo_fail(err, AGGLO_E_CONFIG, "the folder of the recipe cannot be found");
    }
    for (size_t i = 0; i < AGGLO_COUNT(keys); i++) {
        node = member(recipe->tree, keys[i]);
        if (node != NULL && resolve(node, dir, recipe->arena, err) != AGGLO_OK) {
            goto done;
        }
    }
    teachers = member(recipe->tree, "teachers");
    for (size_t i = 0; teachers != NULL && teachers->kind == AGGLO_YAML_LIST && i < teachers->n; i++) {
        node = member(&teachers->items[i], "weights");
        if (node != NULL && resolve(node, dir, recipe->arena, err) != AGGLO_OK) {
            goto done;
        }
    }
    train = member(recipe->tree, "train");
    node = train != NULL ? member(train, "init") : NULL;
    if (node != NULL) {
        resolve(node, dir, recipe->arena, err);
    }
done:
    free(dir);
    return err->status;
}

/* ---- views ---- */

static const char *const decode_choices[] = {"scaled", "exact", NULL}; /* agglo_view_decode */

static const agglo_field view_fields[] = {
    {"seed", AGGLO_FIELD_INT, offsetof(agglo_view_config, seed), 0, 0x1p62, NULL, NULL, false},
    {"scale", AGGLO_FIELD_RANGE, offsetof(agglo_view_config, scale), 1e-4, 1, NULL, NULL, false},
    {"ratio", AGGLO_FIELD_RANGE, offsetof(agglo_view_config, ratio), 0.01, 100, NULL, NULL, false},
    {"flip", AGGLO_FIELD_DOUBLE, offsetof(agglo_view_config, flip), 0, 1, NULL, NULL, false},
    {"decode", AGGLO_FIELD_CHOICE, offsetof(agglo_view_config, decode), 0, 0, decode_choices, NULL, false},
};

static agglo_status read_count(const agglo_yaml *node, void *field, void *context, agglo_err *err)
{
    int64_t count;

    (void)context;
    if (agglo_yaml_int(node, 1, 255, &count, err) == AGGLO_OK) {
        *(int *)field = (int)count;
    }
    return err->status;
}

static agglo_status read_group(const agglo_yaml *node, const char *name, agglo_recipe *recipe, agglo_err *err)
{
    agglo_field fields[AGGLO_COUNT(view_fields) + 1];
    agglo_view_config *group;
    const agglo_field count = {"count", AGGLO_FIELD_CUSTOM, offsetof(agglo_view_config, count), 0, 0, NULL, read_count,
                               false};

    if (recipe->n_groups == AGGLO_MAX_GROUPS) {
        return agglo_yaml_fail(node, err, "more than %d view groups", AGGLO_MAX_GROUPS);
    }
    if (strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_") != strlen(name) || strlen(name) >= AGGLO_GROUP_NAME_MAX ||
        name[0] == '\0') {
        return agglo_yaml_fail(node, err, "a view group is named by up to %d of a-z, 0-9 and _, not '%s'",
                               AGGLO_GROUP_NAME_MAX - 1, name);
    }
    group = &recipe->groups[recipe->n_groups++];
    *group = agglo_view_config_default();
    group->seed = recipe->seed;
    snprintf(group->group, sizeof group->group, "%s", name);
    memcpy(fields, view_fields, sizeof view_fields);
    fields[AGGLO_COUNT(view_fields)] = count;
    return agglo_yaml_fields(node, "views", fields, AGGLO_COUNT(fields), group, recipe, err);
}

/* Either the parameters of the group `main`, or a map of groups. */
static agglo_status read_views(const agglo_yaml *node, agglo_recipe *recipe, agglo_err *err)
{
    size_t n_maps = 0;

    if (node != NULL && node->kind != AGGLO_YAML_MAP) {
        return agglo_yaml_fail(node, err, "views takes a map");
    }
    for (size_t i = 0; node != NULL && i < node->n; i++) {
        n_maps += node->items[i].kind == AGGLO_YAML_MAP;
    }
    if (node == NULL || n_maps == 0) {
        agglo_yaml none = {.kind = AGGLO_YAML_MAP, .file = recipe->path};

        return read_group(node != NULL ? node : &none, "main", recipe, err);
    }
    for (size_t i = 0; i < node->n; i++) {
        if (read_group(&node->items[i], node->keys[i], recipe, err) != AGGLO_OK) {
            return err->status;
        }
    }
    return AGGLO_OK;
}

/* ---- teachers ---- */

static agglo_status read_codec(const agglo_yaml *node, void *field, void *context, agglo_err *err)
{
    const char *name;

    (void)context;
    if (agglo_yaml_string(node, &name, err) != AGGLO_OK) {
        return err->status;
    }
    *(agglo_codec_id *)field = agglo_codec_of(name);
    if (*(agglo_codec_id *)field == 0) {
        return agglo_yaml_fail(node, err, "codec '%s' is not one of fp32, fp16, bf16", name);
    }
    return AGGLO_OK;
}

static const char *const summary_choices[] = {"proj", "preproj", NULL};
static const char *const pos_choices[] = {"auto", "hub", "hf", NULL};
static const char *const teacher_precision_choices[] = {"fp32", "bf16", NULL};
static const char *const act_choices[] = {"auto", "gelu", "quick_gelu", NULL};

static const agglo_field teacher_fields[] = {
    {"name", AGGLO_FIELD_STRING, offsetof(agglo_recipe_teacher, name), 0, 0, NULL, NULL, true},
    {"weights", AGGLO_FIELD_STRING, offsetof(agglo_recipe_teacher, weights), 0, 0, NULL, NULL, true},
    {"arch", AGGLO_FIELD_STRING, offsetof(agglo_recipe_teacher, arch), 0, 0, NULL, NULL, false},
    {"group", AGGLO_FIELD_STRING, offsetof(agglo_recipe_teacher, group), 0, 0, NULL, NULL, false},
    {"size", AGGLO_FIELD_INT, offsetof(agglo_recipe_teacher, size), 1, 8192, NULL, NULL, false},
    {"batch", AGGLO_FIELD_INT, offsetof(agglo_recipe_teacher, batch), 1, 65536, NULL, NULL, false},
    {"codec", AGGLO_FIELD_CUSTOM, offsetof(agglo_recipe_teacher, codec), 0, 0, NULL, read_codec, false},
    {"cosine", AGGLO_FIELD_DOUBLE, offsetof(agglo_recipe_teacher, cosine), 0.5, 1, NULL, NULL, false},
    {"summary_weight", AGGLO_FIELD_DOUBLE, offsetof(agglo_recipe_teacher, summary_weight), 0, 1e6, NULL, NULL, false},
    {"spatial_weight", AGGLO_FIELD_DOUBLE, offsetof(agglo_recipe_teacher, spatial_weight), 0, 1e6, NULL, NULL, false},
    {"summary", AGGLO_FIELD_CHOICE, offsetof(agglo_recipe_teacher, summary), 0, 0, summary_choices, NULL, false},
    {"spatial_norm", AGGLO_FIELD_BOOL, offsetof(agglo_recipe_teacher, spatial_norm), 0, 0, NULL, NULL, false},
    {"neck", AGGLO_FIELD_BOOL, offsetof(agglo_recipe_teacher, neck), 0, 0, NULL, NULL, false},
    {"pos_interp", AGGLO_FIELD_CHOICE, offsetof(agglo_recipe_teacher, pos_interp), 0, 0, pos_choices, NULL, false},
    {"precision", AGGLO_FIELD_CHOICE, offsetof(agglo_recipe_teacher, precision), 0, 0, teacher_precision_choices, NULL,
     false},
    {"act", AGGLO_FIELD_CHOICE, offsetof(agglo_recipe_teacher, act), 0, 0, act_choices, NULL, false},
};

static agglo_status read_teacher(const agglo_yaml *node, agglo_recipe *recipe, agglo_err *err)
{
    agglo_recipe_teacher *teacher;

    if (recipe->n_teachers == AGGLO_MAX_TEACHERS) {
        return agglo_yaml_fail(node, err, "more than %d teachers", AGGLO_MAX_TEACHERS);
    }
    teacher = &recipe->teachers[recipe->n_teachers];
    *teacher = (agglo_recipe_teacher){.arch = "",
                                      .group = recipe->groups[0].group,
                                      .batch = 32,
                                      .codec = AGGLO_CODEC_FP16,
                                      .cosine = 0.99,
                                      .summary_weight = 1,
                                      .spatial_weight = 1,
                                      .spatial_norm = true};
    if (agglo_yaml_fields(node, "teachers", teacher_fields, AGGLO_COUNT(teacher_fields), teacher, recipe, err) !=
        AGGLO_OK) {
        return err->status;
    }
    if (!is_name(teacher->name, AGGLO_TEACHER_NAME_MAX)) {
        return agglo_yaml_fail(node, err, "a teacher is named by letters, digits, '.', '_' and '-', not '%s'",
                               teacher->name);
    }
    for (size_t i = 0; i < recipe->n_teachers; i++) {
        if (strcmp(recipe->teachers[i].name, teacher->name) == 0) {
            return agglo_yaml_fail(node, err, "two teachers are named '%s'", teacher->name);
        }
    }
    for (size_t i = 0; i < recipe->n_groups; i++) {
        if (strcmp(recipe->groups[i].group, teacher->group) == 0) {
            recipe->n_teachers++;
            return AGGLO_OK;
        }
    }
    return agglo_yaml_fail(node, err, "teacher '%s' wants view group '%s', which views does not have", teacher->name,
                           teacher->group);
}

static agglo_status read_teachers(const agglo_yaml *node, void *field, void *context, agglo_err *err)
{
    (void)field;
    if (node->kind != AGGLO_YAML_LIST || node->n == 0) {
        return agglo_yaml_fail(node, err, "teachers takes a list of maps");
    }
    for (size_t i = 0; i < node->n; i++) {
        if (read_teacher(&node->items[i], context, err) != AGGLO_OK) {
            return err->status;
        }
    }
    return AGGLO_OK;
}

/* ---- student ---- */

static const char *const student_summary_choices[] = {"cls", "avg", NULL};

static agglo_status already_read(const agglo_yaml *node, void *field, void *context, agglo_err *err)
{
    (void)node;
    (void)field;
    (void)context;
    (void)err;
    return AGGLO_OK;
}

#define STUDENT(member) offsetof(agglo_student_config, member)
static const agglo_field student_fields[] = {
    {"arch", AGGLO_FIELD_CUSTOM, 0, 0, 0, NULL, already_read, true},
    {"dim", AGGLO_FIELD_INT, STUDENT(dim), 1, 16384, NULL, NULL, false},
    {"depth", AGGLO_FIELD_INT, STUDENT(depth), 1, 256, NULL, NULL, false},
    {"heads", AGGLO_FIELD_INT, STUDENT(heads), 1, 256, NULL, NULL, false},
    {"mlp_dim", AGGLO_FIELD_INT, STUDENT(mlp_dim), 1, 65536, NULL, NULL, false},
    {"patch", AGGLO_FIELD_INT, STUDENT(patch), 1, 256, NULL, NULL, false},
    {"image", AGGLO_FIELD_INT, STUDENT(image), 1, 8192, NULL, NULL, false},
    {"pos_grid", AGGLO_FIELD_INT, STUDENT(pos_grid), 1, 1024, NULL, NULL, false},
    {"registers", AGGLO_FIELD_INT, STUDENT(registers), 0, 64, NULL, NULL, false},
    {"summary", AGGLO_FIELD_CHOICE, STUDENT(summary), 0, 0, student_summary_choices, NULL, false},
    {"final_norm", AGGLO_FIELD_BOOL, STUDENT(final_norm), 0, 0, NULL, NULL, false},
    {"head_version", AGGLO_FIELD_INT, STUDENT(head_version), 1, 2, NULL, NULL, false},
    {"head_hidden", AGGLO_FIELD_INT, STUDENT(head_hidden), 1, 65536, NULL, NULL, false},
    {"head_inner", AGGLO_FIELD_INT, STUDENT(head_inner), 0, 16, NULL, NULL, false},
};

/* The architecture fills the defaults of the other fields. */
agglo_status agglo_recipe_student(agglo_student_config *out, const agglo_yaml *map, agglo_err *err)
{
    const agglo_yaml *arch = map->kind == AGGLO_YAML_MAP ? agglo_yaml_get(map, "arch") : NULL;
    const char *name;

    if (arch != NULL) {
        if (agglo_yaml_string(arch, &name, err) != AGGLO_OK) {
            return err->status;
        }
        if (agglo_student_config_by_name(out, name, err) != AGGLO_OK) {
            return agglo_at(err, "%s:%d", arch->file, arch->line);
        }
    }
    return agglo_yaml_fields(map, "student", student_fields, AGGLO_COUNT(student_fields), out, NULL, err);
}

static agglo_status read_student(const agglo_yaml *node, void *field, void *context, agglo_err *err)
{
    agglo_recipe *recipe = context;

    recipe->student_image = node->kind == AGGLO_YAML_MAP && agglo_yaml_get(node, "image") != NULL;
    return agglo_recipe_student(field, node, err);
}

/* ---- loss, train, launch ---- */

static const char *const space_choices[] = {"native", NULL};
static const char *const balance_choices[] = {"none", NULL};

#define RECIPE(member) offsetof(agglo_recipe, member)

static const agglo_field loss_fields[] = {
    {"cos", AGGLO_FIELD_DOUBLE, RECIPE(trainer.cos), 0, 1e6, NULL, NULL, false},
    {"smooth_l1", AGGLO_FIELD_DOUBLE, RECIPE(trainer.smooth_l1), 0, 1e6, NULL, NULL, false},
    {"smooth_l1_threshold", AGGLO_FIELD_DOUBLE, RECIPE(trainer.smooth_l1_threshold), 1e-6, 1e6, NULL, NULL, false},
    {"space", AGGLO_FIELD_CHOICE, RECIPE(space), 0, 0, space_choices, NULL, false},
    {"balance", AGGLO_FIELD_CHOICE, RECIPE(balance), 0, 0, balance_choices, NULL, false},
};

static agglo_status read_loss(const agglo_yaml *node, void *field, void *context, agglo_err *err)
{
    (void)field;
    return agglo_yaml_fields(node, "loss", loss_fields, AGGLO_COUNT(loss_fields), context, context, err);
}

static const char *const schedule_choices[] = {"cosine", "constant", NULL};
static const char *const precision_choices[] = {"auto", "fp32", "bf16", NULL};

static agglo_status refuse_groups(const agglo_yaml *node, void *field, void *context, agglo_err *err)
{
    (void)field;
    (void)context;
    return agglo_yaml_fail(node, err,
                           "this version trains at one size: use train.batch and train.size instead of train.groups");
}

static agglo_status read_betas(const agglo_yaml *node, void *field, void *context, agglo_err *err)
{
    double *betas = field;

    (void)context;
    if (node->kind != AGGLO_YAML_LIST || node->n != 2) {
        return agglo_yaml_fail(node, err, "betas takes [beta1, beta2]");
    }
    for (size_t i = 0; i < 2; i++) {
        if (agglo_yaml_double(&node->items[i], 0, 1 - 1e-9, &betas[i], err) != AGGLO_OK) {
            return err->status;
        }
    }
    return AGGLO_OK;
}

#define TRAIN(member) RECIPE(train.member)
static const agglo_field train_fields[] = {
    {"seed", AGGLO_FIELD_INT, TRAIN(seed), 0, 0x1p62, NULL, NULL, false},
    {"steps", AGGLO_FIELD_INT, TRAIN(steps), 0, 1e12, NULL, NULL, true},
    {"batch", AGGLO_FIELD_INT, TRAIN(batch), 1, 1 << 20, NULL, NULL, true},
    {"size", AGGLO_FIELD_INT, TRAIN(size), 1, 8192, NULL, NULL, true},
    {"groups", AGGLO_FIELD_CUSTOM, 0, 0, 0, NULL, refuse_groups, false},
    {"lr", AGGLO_FIELD_DOUBLE, TRAIN(curve.base), 0, 1e3, NULL, NULL, false},
    {"schedule", AGGLO_FIELD_CHOICE, TRAIN(curve.kind), 0, 0, schedule_choices, NULL, false},
    {"warmup", AGGLO_FIELD_INT, TRAIN(curve.warmup), 0, 1e12, NULL, NULL, false},
    {"weight_decay", AGGLO_FIELD_DOUBLE, RECIPE(trainer.weight_decay), 0, 1e3, NULL, NULL, false},
    {"betas", AGGLO_FIELD_CUSTOM, RECIPE(trainer.beta1), 0, 0, NULL, read_betas, false},
    {"eps", AGGLO_FIELD_DOUBLE, RECIPE(trainer.eps), 1e-30, 1, NULL, NULL, false},
    {"clip", AGGLO_FIELD_DOUBLE, RECIPE(trainer.clip), 0, 1e9, NULL, NULL, false},
    {"precision", AGGLO_FIELD_CHOICE, TRAIN(precision), 0, 0, precision_choices, NULL, false},
    {"checkpoint_every", AGGLO_FIELD_INT, TRAIN(checkpoint_every), 1, 1e12, NULL, NULL, false},
    {"keep", AGGLO_FIELD_INT, TRAIN(keep), 1, 1000, NULL, NULL, false},
    {"log_every", AGGLO_FIELD_INT, TRAIN(log_every), 1, 1e12, NULL, NULL, false},
    {"window", AGGLO_FIELD_INT, TRAIN(window), 1, 1 << 20, NULL, NULL, false},
    {"init", AGGLO_FIELD_STRING, TRAIN(init), 0, 0, NULL, NULL, false},
};

static agglo_status read_train(const agglo_yaml *node, void *field, void *context, agglo_err *err)
{
    agglo_recipe *recipe = context;

    (void)field;
    agglo_yaml_fields(node, "train", train_fields, AGGLO_COUNT(train_fields), recipe, recipe, err);
    recipe->train.curve.steps = recipe->train.steps;
    return err->status;
}

static const char *const engine_choices[] = {"local", "slurm", NULL};

static const agglo_field launch_fields[] = {
    {"engine", AGGLO_FIELD_CHOICE, offsetof(agglo_recipe_launch, engine), 0, 0, engine_choices, NULL, false},
    {"ranks", AGGLO_FIELD_INT, offsetof(agglo_recipe_launch, ranks), 1, 1 << 20, NULL, NULL, false},
    {"partition", AGGLO_FIELD_STRING, offsetof(agglo_recipe_launch, partition), 0, 0, NULL, NULL, false},
    {"time", AGGLO_FIELD_STRING, offsetof(agglo_recipe_launch, time), 0, 0, NULL, NULL, false},
};

static agglo_status read_launch(const agglo_yaml *node, void *field, void *context, agglo_err *err)
{
    return agglo_yaml_fields(node, "launch", launch_fields, AGGLO_COUNT(launch_fields), field, context, err);
}

/* ---- the whole ---- */

/* A path or a list of paths. */
static agglo_status read_datasets(const agglo_yaml *node, void *field, void *context, agglo_err *err)
{
    agglo_recipe *recipe = context;

    (void)field;
    if (node->kind == AGGLO_YAML_LIST) {
        if (node->n == 0 || node->n > AGGLO_MAX_DATASETS) {
            return agglo_yaml_fail(node, err, "dataset takes 1 to %d folders", AGGLO_MAX_DATASETS);
        }
        for (size_t i = 0; i < node->n; i++) {
            if (agglo_yaml_string(&node->items[i], &recipe->datasets[i], err) != AGGLO_OK) {
                return err->status;
            }
        }
        recipe->n_datasets = node->n;
        return AGGLO_OK;
    }
    recipe->n_datasets = 1;
    return agglo_yaml_string(node, &recipe->datasets[0], err);
}

static const agglo_field recipe_fields[] = {
    {"dataset", AGGLO_FIELD_CUSTOM, 0, 0, 0, NULL, read_datasets, true},
    {"val", AGGLO_FIELD_STRING, RECIPE(val), 0, 0, NULL, NULL, false},
    {"cache", AGGLO_FIELD_STRING, RECIPE(cache), 0, 0, NULL, NULL, true},
    {"val_cache", AGGLO_FIELD_STRING, RECIPE(val_cache), 0, 0, NULL, NULL, false},
    {"seed", AGGLO_FIELD_CUSTOM, 0, 0, 0, NULL, already_read, false}, /* read first: the defaults of others */
    {"views", AGGLO_FIELD_CUSTOM, 0, 0, 0, NULL, already_read, false},
    {"teachers", AGGLO_FIELD_CUSTOM, 0, 0, 0, NULL, read_teachers, true},
    {"student", AGGLO_FIELD_CUSTOM, RECIPE(student), 0, 0, NULL, read_student, true},
    {"loss", AGGLO_FIELD_CUSTOM, 0, 0, 0, NULL, read_loss, false},
    {"train", AGGLO_FIELD_CUSTOM, 0, 0, 0, NULL, read_train, true},
    {"launch", AGGLO_FIELD_CUSTOM, RECIPE(launch), 0, 0, NULL, read_launch, false},
};

static agglo_status read_fields(agglo_recipe *recipe, agglo_err *err)
{
    const agglo_yaml *seed = agglo_yaml_get(recipe->tree, "seed");
    int64_t number = 0;

    if (recipe->tree->kind != AGGLO_YAML_MAP) {
        return agglo_yaml_fail(recipe->tree, err, "a recipe is a map of keys");
    }
    if (seed != NULL && agglo_yaml_int(seed, 0, INT64_MAX, &number, err) != AGGLO_OK) {
        return agglo_at(err, "seed");
    }
    recipe->seed = (uint64_t)number;
    recipe->trainer = agglo_trainer_config_default();
    recipe->train = (agglo_recipe_train){.seed = recipe->seed,
                                         .curve = {AGGLO_CURVE_COSINE, 1e-3, 0, 0},
                                         .checkpoint_every = 1000,
                                         .keep = 2,
                                         .log_every = 10,
                                         .window = 8};
    recipe->launch = (agglo_recipe_launch){.ranks = 1, .partition = "", .time = ""};
    if (read_views(agglo_yaml_get(recipe->tree, "views"), recipe, err) != AGGLO_OK) {
        return err->status;
    }
    if (agglo_yaml_fields(recipe->tree, "the recipe", recipe_fields, AGGLO_COUNT(recipe_fields), recipe, recipe, err) !=
        AGGLO_OK) {
        return err->status;
    }
    if (!recipe->student_image) {
        recipe->student.image = recipe->train.size;
    }
    if (agglo_student_config_check(&recipe->student, err) != AGGLO_OK) {
        agglo_at(err, "student");
        return agglo_at(err, "%s", recipe->path);
    }
    if (recipe->val_cache == NULL) { /* the held-out set has a cache of its own, beside the other */
        char *name = agglo_arena_take(recipe->arena, strlen(recipe->cache) + 5, 1, err);

        if (name == NULL) {
            return err->status;
        }
        memcpy(name, recipe->cache, strlen(recipe->cache));
        memcpy(name + strlen(recipe->cache), "-val", 5);
        recipe->val_cache = name;
    }
    return AGGLO_OK;
}

agglo_status agglo_recipe_read(agglo_recipe *out, const char *path, const char *const *sets, size_t n_sets,
                               agglo_err *err)
{
    memset(out, 0, sizeof *out);
    if (agglo_arena_new(&out->arena, 0, err) != AGGLO_OK) {
        goto fail;
    }
    out->path = agglo_arena_text(out->arena, path, strlen(path), err);
    if (out->path == NULL) {
        goto fail;
    }
    if (agglo_yaml_read(path, out->arena, &out->tree, err) != AGGLO_OK) {
        err->status = AGGLO_E_CONFIG; /* a recipe that cannot be read is wrong usage: nothing was started */
        goto fail;
    }
    for (size_t i = 0; i < n_sets; i++) {
        if (agglo_yaml_set(out->tree, sets[i], out->arena, err) != AGGLO_OK) {
            agglo_at(err, "--set %s", sets[i]);
            goto fail;
        }
    }
    if (resolve_paths(out, err) != AGGLO_OK || read_fields(out, err) != AGGLO_OK) {
        goto fail;
    }
    return AGGLO_OK;
fail:
    agglo_recipe_clear(out);
    return agglo_doing(err, "cannot use the recipe");
}

void agglo_recipe_clear(agglo_recipe *recipe)
{
    agglo_arena_free(recipe->arena);
    memset(recipe, 0, sizeof *recipe);
}

const agglo_view_config *agglo_recipe_group(const agglo_recipe *recipe, const agglo_recipe_teacher *teacher)
{
    size_t i = 0;

    while (strcmp(recipe->groups[i].group, teacher->group) != 0) {
        i++;
        AGGLO_ASSERT(i < recipe->n_groups); /* checked on reading */
    }
    return &recipe->groups[i];
}

agglo_status agglo_recipe_text(const agglo_recipe *recipe, char **out, agglo_err *err)
{
    return agglo_yaml_print(recipe->tree, recipe->arena, out, err);
}
