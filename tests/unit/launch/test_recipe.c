/* Recipes: defaults, unions, paths, and one clear line for what is wrong. */
#include "launch/recipe.h"
#include "tests/support/support.h"

static const char *dir;

static const char *write_recipe(const char *text)
{
    const char *path = test_path(dir, "recipe.yaml");
    agglo_err err = {0};

    assert_ok(agglo_file_write(path, text, strlen(text), &err));
    return path;
}

#define MINIMAL                                                                                                        \
    "dataset: data/train\n"                                                                                            \
    "cache: cache\n"                                                                                                   \
    "teachers:\n"                                                                                                      \
    "  - {name: clip, weights: w/clip.safetensors}\n"                                                                  \
    "student: {arch: vit-tiny-16}\n"                                                                                   \
    "train: {steps: 100, batch: 8, size: 224}\n"

static void test_defaults(void **state)
{
    agglo_err err = {0};
    agglo_recipe r;
    char expected[1024];

    (void)state;
    assert_ok(agglo_recipe_read(&r, write_recipe(MINIMAL), NULL, 0, &err));
    assert_int_equal(r.n_datasets, 1);
    snprintf(expected, sizeof expected, "%s/data/train", dir);
    assert_string_equal(r.datasets[0], expected);
    snprintf(expected, sizeof expected, "%s/w/clip.safetensors", dir);
    assert_string_equal(r.teachers[0].weights, expected);
    snprintf(expected, sizeof expected, "%s/cache-val", dir);
    assert_string_equal(r.val_cache, expected);
    assert_null(r.val);
    assert_int_equal(r.n_groups, 1);
    assert_string_equal(r.groups[0].group, "main");
    assert_int_equal(r.groups[0].count, 4);
    assert_true(r.groups[0].scale[0] == 0.08 && r.groups[0].scale[1] == 1.0 && r.groups[0].flip == 0);
    assert_int_equal(r.teachers[0].codec, AGGLO_CODEC_FP16);
    assert_int_equal(r.teachers[0].batch, 32);
    assert_true(r.teachers[0].summary_weight == 1 && r.teachers[0].spatial_weight == 1 && r.teachers[0].spatial_norm);
    assert_true(r.trainer.cos == 0.9 && r.trainer.smooth_l1 == 0.1 && r.trainer.smooth_l1_threshold == 1);
    assert_true(r.trainer.weight_decay == 0.05 && r.trainer.beta1 == 0.9 && r.trainer.beta2 == 0.999);
    assert_true(r.train.curve.base == 1e-3 && r.train.curve.kind == AGGLO_CURVE_COSINE && r.train.curve.steps == 100);
    assert_int_equal(r.student.dim, 192);
    assert_int_equal(r.student.image, 224);
    agglo_recipe_clear(&r);
}

static void test_everything(void **state)
{
    static const char text[] =
        "dataset: [a, /b]\n"
        "val: v\n"
        "cache: c\n"
        "val_cache: cv\n"
        "seed: 7\n"
        "views: {main: {count: 2, flip: 0.5}, wide: {seed: 9, decode: exact, scale: [0.5, 0.9], ratio: [0.5, 2]}}\n"
        "teachers:\n"
        "  - {name: clip, weights: w, size: 32, batch: 4, codec: fp32, cosine: 0.95,\n"
        "     summary_weight: 0.5, spatial_weight: 2, summary: preproj, spatial_norm: false, precision: bf16}\n"
        "  - {name: d2, weights: w2, arch: dinov2-small, group: wide, pos_interp: hf, act: quick_gelu}\n"
        "student: {arch: vit, dim: 64, depth: 2, heads: 2, patch: 8, registers: 4, summary: avg}\n"
        "loss: {cos: 1, smooth_l1: 0, smooth_l1_threshold: 2, space: native, balance: none}\n"
        "train: {seed: 3, steps: 10, batch: 2, size: 64, lr: 3.0e-4, schedule: constant, warmup: 5,\n"
        "        weight_decay: 0.1, betas: [0.8, 0.9], eps: 1.0e-6, clip: 1.5, precision: fp32,\n"
        "        checkpoint_every: 4, keep: 3, log_every: 1, window: 2, init: run0}\n"
        "launch: {engine: slurm, ranks: 64, partition: gpu, time: \"24:00:00\"}\n";
    const char *const sets[] = {"train.lr=5e-4", "teachers.d2.codec=bf16", "teachers.0.batch=9", "views.wide.count=7"};
    agglo_err err = {0};
    agglo_recipe r, again;
    char *printed;

    (void)state;
    assert_ok(agglo_recipe_read(&r, write_recipe(text), sets, 4, &err));
    assert_int_equal(r.n_datasets, 2);
    assert_string_equal(r.datasets[1], "/b");
    assert_int_equal(r.n_groups, 2);
    assert_int_equal(r.groups[0].seed, 7);
    assert_int_equal(r.groups[1].seed, 9);
    assert_int_equal(r.groups[1].count, 7);
    assert_true(r.groups[0].flip == 0.5 && r.groups[1].ratio[1] == 2);
    assert_ptr_equal(agglo_recipe_group(&r, &r.teachers[0]), &r.groups[0]);
    assert_ptr_equal(agglo_recipe_group(&r, &r.teachers[1]), &r.groups[1]);
    assert_int_equal(r.teachers[0].batch, 9);
    assert_int_equal(r.teachers[0].summary, 1);
    assert_false(r.teachers[0].spatial_norm);
    assert_int_equal(r.teachers[0].precision, 1);
    assert_int_equal(r.teachers[1].precision, 0);
    assert_int_equal(r.teachers[1].codec, AGGLO_CODEC_BF16);
    assert_int_equal(r.teachers[1].pos_interp, 2);
    assert_int_equal(r.teachers[0].act, 0);
    assert_int_equal(r.teachers[1].act, 2);
    assert_int_equal(r.student.registers, 4);
    assert_int_equal(r.student.summary, AGGLO_SUMMARY_AVG);
    assert_true(r.trainer.cos == 1 && r.trainer.smooth_l1_threshold == 2 && r.trainer.clip == 1.5);
    assert_true(r.trainer.beta1 == 0.8 && r.trainer.beta2 == 0.9 && r.trainer.eps == 1e-6);
    assert_true(r.train.curve.base == 5e-4 && r.train.curve.kind == AGGLO_CURVE_CONSTANT && r.train.curve.warmup == 5);
    assert_int_equal(r.train.seed, 3);
    assert_int_equal(r.launch.engine, 1);
    assert_int_equal(r.launch.ranks, 64);
    assert_string_equal(r.launch.time, "24:00:00");
    /* the recipe as used reads back to the same */
    assert_ok(agglo_recipe_text(&r, &printed, &err));
    assert_ok(agglo_recipe_read(&again, write_recipe(printed), NULL, 0, &err));
    assert_string_equal(again.datasets[0], r.datasets[0]);
    assert_string_equal(again.teachers[1].weights, r.teachers[1].weights);
    assert_true(again.train.curve.base == 5e-4);
    assert_int_equal(again.groups[1].count, 7);
    assert_string_equal(again.launch.time, "24:00:00");
    agglo_recipe_clear(&again);
    agglo_recipe_clear(&r);
}

/* Every mistake is AGGLO_E_CONFIG, and the line says what and where. */
static void test_mistakes(void **state)
{
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"", "dataset"},
        {"- a\n- b\n", "recipe.yaml:1"},
        {MINIMAL "lr: 3\n", "unknown key 'lr'"},
        {MINIMAL "los: {}\n", "did you mean 'loss'?"},
        {MINIMAL "los: {}\n", "recipe.yaml:7"},
        {MINIMAL "seed: -1\n", "recipe.yaml:7"},
        {MINIMAL "seed: many\n", "seed"},
        {MINIMAL "views: 3\n", "views takes a map"},
        {MINIMAL "views: {decode: rough}\n", "decode"},
        {MINIMAL "views: {count: 0}\n", "count"},
        {MINIMAL "views: {count: 256}\n", "count"},
        {MINIMAL "views: {scale: [0.9, 0.1]}\n", "scale"},
        {MINIMAL "views: {Main: {count: 2}}\n", "a-z"},
        {MINIMAL "views: {a: {count: 2}, b: 3}\n", "views"},
        {MINIMAL "loss: {space: rotated}\n", "native"},
        {MINIMAL "loss: {cos: .nan}\n", "cos"},
        {MINIMAL "train: {}\n", "twice"},
        {"cache: c\n", "dataset"},
        {"dataset: d\ncache: c\nteachers: []\nstudent: {arch: vit}\ntrain: {steps: 1, batch: 1, size: 16}\n",
         "teachers"},
        {"dataset: d\ncache: c\nteachers: [{name: a/b, weights: w}]\nstudent: {arch: vit}\ntrain: {steps: 1, batch: 1, "
         "size: 16}\n",
         "a/b"},
        {"dataset: d\ncache: c\nteachers: [{name: a, weights: w}, {name: a, weights: w}]\nstudent: {arch: vit}\n"
         "train: {steps: 1, batch: 1, size: 16}\n",
         "two teachers are named 'a'"},
        {"dataset: d\ncache: c\nteachers: [{name: a, weights: w, group: far}]\nstudent: {arch: vit}\n"
         "train: {steps: 1, batch: 1, size: 16}\n",
         "'far'"},
        {"dataset: d\ncache: c\nteachers: [{name: a, weights: w, codec: klt}]\nstudent: {arch: vit}\n"
         "train: {steps: 1, batch: 1, size: 16}\n",
         "fp32, fp16, bf16"},
        {"dataset: d\ncache: c\nteachers: [{name: a, weights: w}]\nstudent: {arch: vit-tiny-15}\n"
         "train: {steps: 1, batch: 1, size: 16}\n",
         "vit-tiny-1"},
        {"dataset: d\ncache: c\nteachers: [{name: a, weights: w}]\nstudent: {arch: vit, patch: 7}\n"
         "train: {steps: 1, batch: 1, size: 16}\n",
         "student"},
        {"dataset: d\ncache: c\nteachers: [{name: a, weights: w}]\nstudent: {arch: vit}\n"
         "train: {steps: 1, size: 16, batch: 1, groups: [{size: 3}]}\n",
         "train.groups"},
    };
    agglo_err err = {0};
    agglo_recipe r;

    (void)state;
    for (size_t i = 0; i < AGGLO_COUNT(cases); i++) {
        assert_fails(agglo_recipe_read(&r, write_recipe(cases[i].text), NULL, 0, &err), AGGLO_E_CONFIG, cases[i].says);
    }
    assert_fails(agglo_recipe_read(&r, test_path(dir, "none.yaml"), NULL, 0, &err), AGGLO_E_CONFIG, "none.yaml");
    assert_fails(agglo_recipe_read(&r, dir, NULL, 0, &err), AGGLO_E_CONFIG, dir);
}

static void test_bad_sets(void **state)
{
    static const struct {
        const char *set, *says;
    } cases[] = {
        {"train.lr", "KEY=VALUE"},
        {"=3", "KEY=VALUE"},
        {"train..lr=3", "empty part"},
        {"train.steps.more=3", "there is a value"},
        {"teachers.5.batch=2", "no item '5'"},
        {"teachers.nobody.batch=2", "no item 'nobody'"},
        {"train.lr=[1", "--set train.lr"},
        {"train.lr=quick", "--set train.lr"},
        {"train.rate=1", "unknown key 'rate'"},
        {"dataset=null", "dataset"},
    };
    agglo_err err = {0};
    agglo_recipe r;

    (void)state;
    for (size_t i = 0; i < AGGLO_COUNT(cases); i++) {
        assert_fails(agglo_recipe_read(&r, write_recipe(MINIMAL), &cases[i].set, 1, &err), AGGLO_E_CONFIG,
                     cases[i].says);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_defaults), cmocka_unit_test(test_everything),
                                       cmocka_unit_test(test_mistakes), cmocka_unit_test(test_bad_sets)};

    dir = test_dir();
    return test_run("recipe", tests);
}
