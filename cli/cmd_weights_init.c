/* agglo weights init: a randomly initialised teacher or student. */
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "launch/recipe.h"
#include "student/model.h"
#include "teachers/teacher.h"

static const char *out_path;
static int64_t seed;
static agglo_texts sets;

static const agglo_option options[] = {
    {"set", AGGLO_OPTION_LIST, &sets, "FIELD=VALUE", "one field of the architecture, such as dim=64; may be repeated",
     0, 0},
    {"seed", AGGLO_OPTION_INT, &seed, "N", "of the random values (0)", 0, 9e18},
    {"out", AGGLO_OPTION_STRING, &out_path, "FILE.safetensors", "where to write", 0, 0},
};

static agglo_status init_teacher(const char *arch, agglo_err *err)
{
    agglo_teacher_config config;

    if (agglo_teacher_named(arch, &config, err) != AGGLO_OK) {
        return err->status;
    }
    /* dim and depth first: others follow them unless they are set themselves, in whatever order */
    for (size_t i = 0; i < 2 * sets.n; i++) {
        const char *item = sets.items[i % sets.n], *equals = strchr(item, '=');
        char field[64];

        if (equals == NULL || equals - item >= (long)sizeof field) {
            return agglo_fail(err, AGGLO_E_CONFIG, "--set takes FIELD=VALUE, not '%s'", item);
        }
        snprintf(field, sizeof field, "%.*s", (int)(equals - item), item);
        if ((strcmp(field, "dim") == 0 || strcmp(field, "depth") == 0) == (i < sets.n) &&
            agglo_teacher_set(&config, field, equals + 1, err) != AGGLO_OK) {
            return err->status;
        }
    }
    return agglo_teacher_check(&config, err) == AGGLO_OK
               ? agglo_teacher_write_random(&config, (uint64_t)seed, out_path, err)
               : err->status;
}

/* The fields of a student are those of a recipe's section `student`, and `image`. */
static agglo_status init_student(const char *arch, agglo_err *err)
{
    agglo_student_config config;
    agglo_arena *arena = NULL;
    agglo_yaml *tree;

    if (agglo_arena_new(&arena, 0, err) == AGGLO_OK &&
        agglo_yaml_parse("{}", 2, "--set", arena, &tree, err) == AGGLO_OK) {
        char text[128];

        snprintf(text, sizeof text, "arch=%s", arch);
        agglo_yaml_set(tree, text, arena, err);
        for (size_t i = 0; err->status == AGGLO_OK && i < sets.n; i++) {
            agglo_yaml_set(tree, sets.items[i], arena, err);
        }
        if (err->status == AGGLO_OK && agglo_recipe_student(&config, tree, err) == AGGLO_OK &&
            agglo_student_config_check(&config, err) == AGGLO_OK) {
            agglo_student_write_random(&config, NULL, 0, (uint64_t)seed, out_path, err);
        }
    }
    agglo_arena_free(arena);
    return err->status;
}

static bool is_student(const char *arch)
{
    size_t n;
    const char *const *names = agglo_student_names(&n);

    for (size_t i = 0; i < n; i++) {
        if (strcmp(names[i], arch) == 0) {
            return true;
        }
    }
    return strcmp(arch, "vit") == 0;
}

static agglo_status unknown(const char *arch, agglo_err *err)
{
    const char *names[128];
    size_t n = 0, n_students;
    const char *const *students = agglo_student_names(&n_students);
    const char *nearest;

    for (size_t i = 0; agglo_teacher_name_at(i) != NULL && n < AGGLO_COUNT(names); i++) {
        names[n++] = agglo_teacher_name_at(i);
    }
    for (size_t i = 0; i < n_students && n < AGGLO_COUNT(names); i++) {
        names[n++] = students[i];
    }
    nearest = agglo_nearest(arch, names, n);
    return nearest != NULL
               ? agglo_fail(err, AGGLO_E_CONFIG, "unknown architecture '%s', did you mean '%s'?", arch, nearest)
               : agglo_fail(err, AGGLO_E_CONFIG, "unknown architecture '%s'; families are clip, dinov2, sam and vit",
                            arch);
}

static agglo_status run(agglo_cli *cli, agglo_err *err)
{
    const char *arch = cli->args.items[0];

    if (out_path == NULL) {
        return agglo_fail(err, AGGLO_E_CONFIG, "--out FILE.safetensors is missing");
    }
    if (is_student(arch)) {
        init_student(arch, err);
    } else if (agglo_teacher_is_known(arch)) {
        init_teacher(arch, err);
    } else {
        unknown(arch, err);
    }
    if (err->status != AGGLO_OK) {
        return agglo_doing(err, "cannot make the weights");
    }
    if (cli->json) {
        json_t *object = json_pack("{s:s, s:s, s:I}", "out", out_path, "arch", arch, "seed", (json_int_t)seed);

        agglo_print_json(object);
        json_decref(object);
    } else {
        printf("%s: random %s of seed %lld\n", out_path, arch, (long long)seed);
    }
    return AGGLO_OK;
}

const agglo_command agglo_cmd_weights_init = {
    .name = "weights init",
    .usage = "ARCH [--set FIELD=VALUE]... --seed N --out FILE.safetensors",
    .summary = "write a randomly initialised teacher or student",
    .details = "ARCH is a name (clip-vit-base-32, dinov2-large-reg, sam-vit-base, vit-small-16...) or a family (clip, "
               "dinov2, sam, vit)\n"
               "whose fields are set one by one: dim, depth, heads, mlp_dim, patch, image, proj, registers, act; of "
               "sam window,\n"
               "global_layers=2,5,8,11, neck=CHANNELS. The file says all about itself in its metadata.",
    .example = "agglo weights init clip --set dim=64 --set depth=2 --set patch=8 --set image=32 --seed 1 --out "
               "tiny.safetensors",
    .options = options,
    .n_options = AGGLO_COUNT(options),
    .min_args = 1,
    .max_args = 1,
    .run = run,
};
