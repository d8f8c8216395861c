/* YAML recipes: what is refused and how it is said, the tables that fill structs, --set, and printing that reads back. */
#include <math.h>

#include "base/yaml.h"
#include "tests/support/support.h"

typedef struct fixture {
    agglo_arena *arena;
} fixture;

static int open_arena(void **state)
{
    static fixture f;
    agglo_err err = {0};

    *state = &f;
    return agglo_arena_new(&f.arena, 0, &err) == AGGLO_OK ? 0 : -1;
}

static int close_arena(void **state)
{
    agglo_arena_free(((fixture *)*state)->arena);
    return 0;
}

static agglo_arena *arena_of(void **state)
{
    return ((fixture *)*state)->arena;
}

static agglo_yaml *parse(void **state, const char *text)
{
    agglo_err err = {0};
    agglo_yaml *root;

    assert_ok(agglo_yaml_parse(text, strlen(text), "r.yaml", arena_of(state), &root, &err));
    return root;
}

/* ---- parsing ---- */

static void trees_know_their_lines(void **state)
{
    const agglo_yaml *root = parse(state, "# a recipe\n"
                                          "a: 1\n"
                                          "b:\n"
                                          "  - {c: '2', d: }\n"
                                          "  - [x, \"y z\"]\n"
                                          "e: |\n"
                                          "  two\n"
                                          "  lines\n"
                                          "f: ~\n");
    const agglo_yaml *b, *item;

    assert_int_equal(root->kind, AGGLO_YAML_MAP);
    assert_int_equal(root->n, 4);
    assert_string_equal(root->keys[0], "a");
    assert_string_equal(root->items[0].text, "1");
    assert_int_equal(root->items[0].line, 2);
    assert_false(root->items[0].quoted);
    b = agglo_yaml_get(root, "b");
    assert_int_equal(b->kind, AGGLO_YAML_LIST);
    assert_int_equal(b->n, 2);
    item = &b->items[0];
    assert_int_equal(item->kind, AGGLO_YAML_MAP);
    assert_int_equal(item->line, 4);
    assert_true(agglo_yaml_get(item, "c")->quoted);
    assert_null(agglo_yaml_get(item, "d")); /* null */
    assert_null(agglo_yaml_get(item, "x"));
    assert_string_equal(b->items[1].items[1].text, "y z");
    assert_int_equal(b->items[1].line, 5);
    assert_string_equal(agglo_yaml_get(root, "e")->text, "two\nlines\n");
    assert_null(agglo_yaml_get(root, "f"));
    assert_null(agglo_yaml_get(b, "a")); /* not a map */
    assert_string_equal(b->file, "r.yaml");
}

static void an_empty_file_is_an_empty_map(void **state)
{
    static const char *const texts[] = {"", "\n", "# nothing\n", "---\n", "{}"};

    for (size_t i = 0; i < AGGLO_COUNT(texts); i++) {
        const agglo_yaml *root = parse(state, texts[i]);

        assert_true(root->kind == AGGLO_YAML_MAP ? root->n == 0 : agglo_yaml_is_null(root));
    }
}

static void what_recipes_do_not_need_is_refused(void **state)
{
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"a: &x 1\n", "anchors and tags are not allowed (r.yaml:1)"},
        {"b: 1\na: &x {b: 1}\n", "anchors and tags are not allowed (r.yaml:2)"},
        {"a: &x [1]\n", "anchors and tags are not allowed"},
        {"a: !!str 1\n", "anchors and tags are not allowed"},
        {"a: !x {b: 1}\n", "anchors and tags are not allowed"},
        {"&x a: 1\n", "anchors and tags are not allowed"},
        {"a: *x\n", "aliases are not allowed (r.yaml:1)"},
        {"a: 1\nb: *a\n", "aliases are not allowed (r.yaml:2)"},
        {"a: 1\nb: 2\na: 3\n", "key 'a' comes twice, first in line 1 (r.yaml:3)"},
        {"a: {b: 1, b: 2}\n", "key 'b' comes twice"},
        {"a: 1\n'a': 2\n", "key 'a' comes twice"},
        {"[x]: 1\n", "a key must be a word (r.yaml:1)"},
        {"? {a: 1}\n: 2\n", "a key must be a word"},
        {"a: 1\n--- \nb: 2\n", "a second document (r.yaml:2)"},
        {"a: [1, 2\n", "r.yaml:"},
        {"a: 1\n b: 2\n", "r.yaml:2"},
        {"\ta: 1\n", "r.yaml:1"},
        {"a: \"\\0\"\n", "a text holds a NUL (r.yaml:1)"},
        {"a: \xff\n", "r.yaml:1"},
        {"a: [[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]\n", "nested too deeply (r.yaml:1)"},
    };

    for (size_t i = 0; i < AGGLO_COUNT(cases); i++) {
        agglo_err err = {0};
        agglo_yaml *root;

        assert_fails(agglo_yaml_parse(cases[i].text, strlen(cases[i].text), "r.yaml", arena_of(state), &root, &err),
                     AGGLO_E_CONFIG, cases[i].says);
        assert_null(root);
    }
    parse(state, "a: [[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]\n"); /* 15 lists in a map: 16 deep */
}

static void sizes_are_bounded(void **state)
{
    enum { LIMIT = 1 << 20, N_KEYS = 4097 };
    char *text = malloc(LIMIT + 1), *at = text;
    agglo_err err = {0};
    agglo_yaml *root;

    memset(text, ' ', LIMIT + 1);
    memcpy(text, "a: 1 #", 6);
    assert_ok(agglo_yaml_parse(text, LIMIT, "r.yaml", arena_of(state), &root, &err));
    assert_fails(agglo_yaml_parse(text, LIMIT + 1, "r.yaml", arena_of(state), &root, &err), AGGLO_E_CONFIG,
                 "1048577 bytes, more than 1048576 (r.yaml)");
    for (int i = 0; i < N_KEYS; i++) {
        at += sprintf(at, "k%d: 1\n", i);
    }
    assert_fails(agglo_yaml_parse(text, (size_t)(at - text), "r.yaml", arena_of(state), &root, &err), AGGLO_E_CONFIG,
                 "too many keys (r.yaml:4097)");
    memset(text, 'k', 201);
    memcpy(text + 201, ": 1\n", 4);
    assert_fails(agglo_yaml_parse(text, 205, "r.yaml", arena_of(state), &root, &err), AGGLO_E_CONFIG,
                 "a key is too long (r.yaml:1)");
    assert_ok(agglo_yaml_parse(text + 1, 204, "r.yaml", arena_of(state), &root, &err));
    free(text);
}

static void files_are_read_with_their_name(void **state)
{
    const char *path = test_path(test_dir(), "recipe.yaml");
    agglo_err err = {0};
    agglo_yaml *root;

    assert_ok(agglo_file_write(path, "a: 1\nb: [\n", 10, &err));
    assert_fails(agglo_yaml_read(path, arena_of(state), &root, &err), AGGLO_E_CONFIG, path);
    assert_null(root);
    assert_ok(agglo_file_write(path, "a: 1\n", 5, &err));
    assert_ok(agglo_yaml_read(path, arena_of(state), &root, &err));
    assert_string_equal(root->items[0].file, path);
    assert_fails(agglo_yaml_read(test_path(path, "x"), arena_of(state), &root, &err), AGGLO_E_IO, "x");
}

/* ---- scalars ---- */

static void scalars_are_strict(void **state)
{
    static const struct {
        const char *text;
        double value;
    } doubles[] = {{"1", 1}, {"-0.5", -0.5}, {"1e-3", 1e-3}, {"+2.", 2}, {".5", 0.5}, {"1E2", 100}, {"007.5", 7.5}};
    static const char *const not_doubles[] = {"'1'", "1,5", "0x10", "inf", "nan", ".nan", "1e",
                                              "+",   ".",   "1 2",  "[1]", "''",  "1_0"};
    static const char *const not_ints[] = {"'1'", "1.0", "1e3", "+1",  "0x10", "--1",
                                           "-a",  "1 ",  "a",   "[1]", "{}",   "\"\""};
    char text[64];
    agglo_err err = {0};
    const char *string;
    int64_t i;
    double d;
    bool b;

    for (size_t k = 0; k < AGGLO_COUNT(doubles); k++) {
        snprintf(text, sizeof text, "v: %s\n", doubles[k].text);
        assert_ok(agglo_yaml_double(&parse(state, text)->items[0], -1000, 1000, &d, &err));
        assert_true(d == doubles[k].value);
    }
    for (size_t k = 0; k < AGGLO_COUNT(not_doubles); k++) {
        snprintf(text, sizeof text, "v: %s\n", not_doubles[k]);
        assert_fails(agglo_yaml_double(&parse(state, text)->items[0], -1000, 1000, &d, &err), AGGLO_E_CONFIG,
                     "expected a number (r.yaml:1)");
    }
    assert_fails(agglo_yaml_double(&parse(state, "v: 2.5")->items[0], 0, 2, &d, &err), AGGLO_E_CONFIG,
                 "2.5 is out of range: 0 to 2");
    assert_fails(agglo_yaml_double(&parse(state, "v: 1e999")->items[0], -INFINITY, INFINITY, &d, &err), AGGLO_E_CONFIG,
                 "out of range");
    for (size_t k = 0; k < AGGLO_COUNT(not_ints); k++) {
        snprintf(text, sizeof text, "v: %s\n", not_ints[k]);
        if (strcmp(not_ints[k], "1 ") != 0) { /* space behind a plain scalar is none of it */
            assert_fails(agglo_yaml_int(&parse(state, text)->items[0], -9, 9, &i, &err), AGGLO_E_CONFIG,
                         "expected a whole number (r.yaml:1)");
        }
    }
    assert_ok(agglo_yaml_int(&parse(state, "v: -9")->items[0], -9, 9, &i, &err));
    assert_int_equal(i, -9);
    assert_ok(agglo_yaml_int(&parse(state, "v: 0")->items[0], -9, 9, &i, &err));
    assert_int_equal(i, 0);
    assert_ok(agglo_yaml_int(&parse(state, "v: -9223372036854775808")->items[0], INT64_MIN, INT64_MAX, &i, &err));
    assert_true(i == INT64_MIN);
    assert_fails(agglo_yaml_int(&parse(state, "v: 9223372036854775808")->items[0], INT64_MIN, INT64_MAX, &i, &err),
                 AGGLO_E_CONFIG, "9223372036854775808 is out of range");
    assert_fails(agglo_yaml_int(&parse(state, "v: 10")->items[0], -9, 9, &i, &err), AGGLO_E_CONFIG,
                 "10 is out of range: -9 to 9 (r.yaml:1)");
    assert_fails(agglo_yaml_int(&parse(state, "v: 007")->items[0], -9, 9, &i, &err), AGGLO_E_CONFIG,
                 "a whole number may not start with 0 (r.yaml:1)");
    assert_fails(agglo_yaml_int(&parse(state, "v: -00")->items[0], -9, 9, &i, &err), AGGLO_E_CONFIG, "start with 0");

    assert_ok(agglo_yaml_bool(&parse(state, "v: true")->items[0], &b, &err));
    assert_true(b);
    assert_ok(agglo_yaml_bool(&parse(state, "v: false")->items[0], &b, &err));
    assert_false(b);
    for (size_t k = 0; k < 5; k++) {
        snprintf(text, sizeof text, "v: %s\n", ((const char *[]){"yes", "'true'", "True", "1", "[true]"})[k]);
        assert_fails(agglo_yaml_bool(&parse(state, text)->items[0], &b, &err), AGGLO_E_CONFIG,
                     "expected true or false");
    }
    assert_ok(agglo_yaml_string(&parse(state, "v: 12")->items[0], &string, &err));
    assert_string_equal(string, "12");
    assert_fails(agglo_yaml_string(&parse(state, "v: [12]")->items[0], &string, &err), AGGLO_E_CONFIG,
                 "expected a text");
    assert_true(agglo_yaml_is_null(&parse(state, "v: null")->items[0]));
    assert_false(agglo_yaml_is_null(&parse(state, "v: ''")->items[0]));
    assert_false(agglo_yaml_is_null(&parse(state, "v: []")->items[0]));
}

/* ---- tables ---- */

typedef struct settings {
    const char *name;
    int64_t steps, any;
    double rate, window[2];
    bool fast;
    int mode;
    int64_t custom;
} settings;

static agglo_status read_custom(const agglo_yaml *node, void *field, void *context, agglo_err *err)
{
    if (node->kind != AGGLO_YAML_LIST) {
        return agglo_yaml_fail(node, err, "expected a list");
    }
    *(int64_t *)field = (int64_t)node->n + *(int *)context;
    return AGGLO_OK;
}

static const char *const modes[] = {"cosine", "linear", "constant", NULL};

static const agglo_field table[] = {
    {.key = "name", .kind = AGGLO_FIELD_STRING, .offset = offsetof(settings, name), .required = true},
    {.key = "steps", .kind = AGGLO_FIELD_INT, .offset = offsetof(settings, steps), .min = 1, .max = 1e6},
    {.key = "any", .kind = AGGLO_FIELD_INT, .offset = offsetof(settings, any), .min = -1e300, .max = 1e300},
    {.key = "rate", .kind = AGGLO_FIELD_DOUBLE, .offset = offsetof(settings, rate), .min = 0, .max = 1},
    {.key = "window", .kind = AGGLO_FIELD_RANGE, .offset = offsetof(settings, window), .min = 0, .max = 1},
    {.key = "fast", .kind = AGGLO_FIELD_BOOL, .offset = offsetof(settings, fast)},
    {.key = "mode", .kind = AGGLO_FIELD_CHOICE, .offset = offsetof(settings, mode), .choices = modes},
    {.key = "custom", .kind = AGGLO_FIELD_CUSTOM, .offset = offsetof(settings, custom), .read = read_custom},
};

static void tables_fill_structs(void **state)
{
    settings s = {.steps = 10, .rate = 0.25, .mode = 2};
    agglo_err err = {0};
    int context = 40;
    const agglo_yaml *root =
        parse(state, "name: n\nany: -9223372036854775808\nwindow: [0.4, 1]\nfast: true\nmode: linear\n"
                     "custom: [1, 2]\nsteps: ~\n");

    assert_ok(agglo_yaml_fields(root, "train", table, AGGLO_COUNT(table), &s, &context, &err));
    assert_string_equal(s.name, "n");
    assert_int_equal(s.steps, 10); /* null keeps the default */
    assert_true(s.any == INT64_MIN);
    assert_true(s.rate == 0.25);
    assert_true(s.window[0] == 0.4 && s.window[1] == 1);
    assert_true(s.fast);
    assert_int_equal(s.mode, 1);
    assert_int_equal(s.custom, 42);
    root = parse(state, "name: n\nany: 9223372036854775807\n");
    assert_ok(agglo_yaml_fields(root, "train", table, AGGLO_COUNT(table), &s, &context, &err));
    assert_true(s.any == INT64_MAX);
}

static void wrong_recipes_say_where_and_what_was_meant(void **state)
{
    static const struct {
        const char *text, *line;
    } cases[] = {
        {"x: 1\n", "unknown key 'x' in train (r.yaml:1)"},
        {"name: n\nstpes: 3\n", "unknown key 'stpes' in train, did you mean 'steps'? (r.yaml:2)"},
        {"name: n\nNAME: 3\n", "unknown key 'NAME' in train (r.yaml:2)"},
        {"name: n\nmodes: linear\n", "unknown key 'modes' in train, did you mean 'mode'? (r.yaml:2)"},
        {"steps: 3\n", "train needs the key 'name' (r.yaml:1)"},
        {"name: ~\n", "train needs the key 'name' (r.yaml:1)"},
        {"- 1\n", "train must be a map (r.yaml:1)"},
        {"name: n\nsteps: 0\n", "0 is out of range: 1 to 1000000 (steps: r.yaml:2)"},
        {"name: n\nsteps: 9999999999999999999\n",
         "9999999999999999999 is out of range: 1 to 1000000 (steps: r.yaml:2)"},
        {"name: n\nrate: fast\n", "expected a number (rate: r.yaml:2)"},
        {"name: n\nrate: -1\n", "-1 is out of range: 0 to 1 (rate: r.yaml:2)"},
        {"name: [n]\n", "expected a text (name: r.yaml:1)"},
        {"name: n\nwindow: 3\n", "expected a list of two numbers (window: r.yaml:2)"},
        {"name: n\nwindow: [0.1]\n", "expected a list of two numbers (window: r.yaml:2)"},
        {"name: n\nwindow: [0.1, 2]\n", "2 is out of range: 0 to 1 (window: r.yaml:2)"},
        {"name: n\nwindow: [0.5, 0.1]\n", "the range must ascend (window: r.yaml:2)"},
        {"name: n\nfast: yes\n", "expected true or false (fast: r.yaml:2)"},
        {"name: n\nmode: cosin\n",
         "unknown value 'cosin', did you mean 'cosine'? Allowed: cosine, linear, constant (mode: r.yaml:2)"},
        {"name: n\nmode: polynomial\n",
         "unknown value 'polynomial', allowed: cosine, linear, constant (mode: r.yaml:2)"},
        {"name: n\nmode: [linear]\n", "expected one of: cosine, linear, constant (mode: r.yaml:2)"},
        {"name: n\ncustom: 1\n", "expected a list (custom: r.yaml:2)"},
    };

    for (size_t i = 0; i < AGGLO_COUNT(cases); i++) {
        settings s = {0};
        agglo_err err = {0};
        char line[1024];
        int context = 0;

        assert_int_equal(
            agglo_yaml_fields(parse(state, cases[i].text), "train", table, AGGLO_COUNT(table), &s, &context, &err),
            AGGLO_E_CONFIG);
        assert_string_equal(agglo_err_line(&err, line, sizeof line), cases[i].line);
    }
}

static void many_choices_are_cut_not_overrun(void **state)
{
    static char words[60][16];
    static const char *choices[61];
    agglo_field field = {.key = "c", .kind = AGGLO_FIELD_CHOICE, .choices = choices};
    agglo_err err = {0};
    int chosen = -1;

    for (int i = 0; i < 60; i++) {
        snprintf(words[i], sizeof words[i], "choice-%07d", i * 1000);
        choices[i] = words[i];
    }
    assert_fails(agglo_yaml_fields(parse(state, "c: nothing-like-it"), "s", &field, 1, &chosen, NULL, &err),
                 AGGLO_E_CONFIG, "allowed: choice-0000000, choice-0001000, ");
    assert_ok(agglo_yaml_fields(parse(state, "c: choice-0059000"), "s", &field, 1, &chosen, NULL, &err));
    assert_int_equal(chosen, 59);
}

static void the_nearest_word_is_near(void **state)
{
    static const char *const words[] = {"steps", "step", "batch", "lr"};
    char longest[300];

    (void)state;
    assert_string_equal(agglo_nearest("stepps", words, 4), "steps");
    assert_string_equal(agglo_nearest("stp", words, 4), "step");
    assert_string_equal(agglo_nearest("btch", words, 4), "batch");
    assert_string_equal(agglo_nearest("l", words, 4), "lr");
    assert_null(agglo_nearest("optimizer", words, 4));
    assert_null(agglo_nearest("", words, 3));
    assert_null(agglo_nearest("steps", words, 0));
    memset(longest, 's', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    assert_null(agglo_nearest(longest, words, 4));
}

/* ---- set ---- */

static const char *print(void **state, const agglo_yaml *root)
{
    agglo_err err = {0};
    char *text;

    assert_ok(agglo_yaml_print(root, arena_of(state), &text, &err));
    return text;
}

static void set_changes_and_makes_values(void **state)
{
    static const char recipe[] =
        "train:\n  steps: 3\nteachers:\n  - {name: clip, codec: f16}\n  - {name: dino}\nsizes: [1, 2]\nviews:\n";
    static const struct {
        const char *assignment, *path[4], *text;
    } cases[] = {
        {"train.steps=5", {"train", "steps"}, "5"},
        {"train.lr=1e-3", {"train", "lr"}, "1e-3"},
        {"new.deep.key=x", {"new", "deep", "key"}, "x"},
        {"views.count=2", {"views", "count"}, "2"}, /* through a null */
        {"teachers.clip.codec=f32", {"teachers", "0", "codec"}, "f32"},
        {"teachers.1.codec=q8", {"teachers", "1", "codec"}, "q8"},
        {"sizes.1=9", {"sizes", "1"}, "9"},
        {"train.steps=", {"train", "steps"}, ""},
        {"train.name='a=b: c'", {"train", "name"}, "a=b: c"},
        {"train.url=http://x/?a=b", {"train", "url"}, "http://x/?a=b"},
    };
    agglo_err err = {0};

    for (size_t i = 0; i < AGGLO_COUNT(cases); i++) {
        agglo_yaml *root = parse(state, recipe);
        const agglo_yaml *node = root;

        assert_ok(agglo_yaml_set(root, cases[i].assignment, arena_of(state), &err));
        for (size_t k = 0; k < 4 && cases[i].path[k] != NULL; k++) {
            const agglo_yaml *next = NULL;

            for (size_t m = 0; m < node->n && next == NULL; m++) {
                if (node->kind == AGGLO_YAML_LIST ? (size_t)atoi(cases[i].path[k]) == m
                                                  : strcmp(node->keys[m], cases[i].path[k]) == 0) {
                    next = &node->items[m];
                }
            }
            assert_non_null(next);
            node = next;
        }
        assert_int_equal(node->kind, AGGLO_YAML_SCALAR);
        assert_string_equal(node->text, cases[i].text);
        assert_int_equal(node->line, 0);
    }
    {
        agglo_yaml *root = parse(state, recipe);

        assert_ok(agglo_yaml_set(root, "teachers=[{name: sam, size: 2}]", arena_of(state), &err));
        assert_ok(agglo_yaml_set(root, "teachers.sam.size=3", arena_of(state), &err));
        assert_ok(agglo_yaml_set(root, "train={steps: 1}", arena_of(state), &err));
        assert_string_equal(print(state, root),
                            "train:\n  steps: 1\nteachers:\n  - name: sam\n    size: 3\nsizes: [1, 2]\nviews: ~\n");
    }
}

static void set_refuses_what_has_no_place(void **state)
{
    static const struct {
        const char *assignment, *says;
    } cases[] = {
        {"train.steps", "expected KEY=VALUE, not 'train.steps'"},
        {"=5", "expected KEY=VALUE, not '=5'"},
        {"", "expected KEY=VALUE"},
        {"train..steps=1", "has an empty part"},
        {".train=1", "has an empty part"},
        {"train.=1", "has an empty part"},
        {"train.steps.x=1", "there is a value where 'x' would be (--set train.steps.x)"},
        {"teachers.sam.codec=1", "the list has no item 'sam' (--set teachers.sam.codec)"},
        {"teachers.7.codec=1", "the list has no item '7'"},
        {"teachers.99999999999999999999=1", "the list has no item"},
        {"teachers.-1=1", "the list has no item"},
        {"train.steps=[1", "--set train.steps"},
        {"train.steps=a: b", "--set train.steps"},
        {"train.steps=&x 1", "anchors and tags are not allowed"},
        {"train.steps=1\nb: 2", "a value is one line"},
        {"train.steps={a: 1, a: 2}", "key 'a' comes twice"},
        {"train.st\xe9p=1", "cannot be a key: letters, digits, '_' and '-' can (--set train.st\xe9p)"},
        {"a b=1", "'a b' cannot be a key"},
    };
    static const char recipe[] = "train:\n  steps: 3\nteachers:\n  - {name: clip}\n  - 7\n";
    agglo_err err = {0};

    for (size_t i = 0; i < AGGLO_COUNT(cases); i++) {
        assert_fails(agglo_yaml_set(parse(state, recipe), cases[i].assignment, arena_of(state), &err), AGGLO_E_CONFIG,
                     cases[i].says);
    }
    /* a wrong value that was set is blamed on the command line */
    {
        agglo_yaml *root = parse(state, "name: n\n");
        settings s = {0};
        char line[1024];
        int context = 0;

        assert_ok(agglo_yaml_set(root, "steps=many", arena_of(state), &err));
        assert_int_equal(agglo_yaml_fields(root, "train", table, AGGLO_COUNT(table), &s, &context, &err),
                         AGGLO_E_CONFIG);
        assert_string_equal(agglo_err_line(&err, line, sizeof line), "expected a whole number (steps: --set steps)");
    }
}

/* ---- printing ---- */

static bool equal(const agglo_yaml *a, const agglo_yaml *b)
{
    if (a->kind != b->kind || a->n != b->n) {
        return false;
    }
    if (a->kind == AGGLO_YAML_SCALAR) {
        if (agglo_yaml_is_null(a) || agglo_yaml_is_null(b)) {
            return agglo_yaml_is_null(a) && agglo_yaml_is_null(b);
        }
        return strcmp(a->text, b->text) == 0;
    }
    for (size_t i = 0; i < a->n; i++) {
        if ((a->kind == AGGLO_YAML_MAP && strcmp(a->keys[i], b->keys[i]) != 0) || !equal(&a->items[i], &b->items[i])) {
            return false;
        }
    }
    return true;
}

static void random_text(test_random *random, char *out, size_t n)
{
    static const char *const pieces[] = {"a",
                                         "7",
                                         "-",
                                         " ",
                                         ":",
                                         "#",
                                         "'",
                                         "\"",
                                         "\\",
                                         "\n",
                                         "\t",
                                         "~",
                                         "[",
                                         "]",
                                         "{",
                                         "}",
                                         ",",
                                         "null",
                                         "&",
                                         "*",
                                         "!",
                                         "|",
                                         ">",
                                         "%",
                                         "@",
                                         "`",
                                         "?",
                                         ".",
                                         "true",
                                         "\r",
                                         "\x7f",
                                         "\xc3\xa9",
                                         "\xe2\x80\xa8",
                                         "\xc2\x85",
                                         "\xc2\x81",
                                         "\xc2\x9f",
                                         "\xc2\xa0",
                                         "\xef\xbf\xbe",
                                         "\xef\xbf\xbd",
                                         "\xf0\x9f\x98\x80",
                                         "\xef\xbb\xbf",
                                         "--- "};

    out[0] = '\0';
    for (uint32_t i = test_random_u32(random) % 6; i > 0; i--) {
        const char *piece = pieces[test_random_u32(random) % AGGLO_COUNT(pieces)];

        if (strlen(out) + strlen(piece) < n) {
            strcat(out, piece);
        }
    }
}

static agglo_yaml random_tree(test_random *random, agglo_arena *arena, int depth)
{
    agglo_yaml node = {.kind = (agglo_yaml_kind)(depth == 0  ? 2
                                                 : depth > 4 ? 0
                                                             : test_random_u32(random) % 3),
                       .line = 1,
                       .file = "x"};
    agglo_err err = {0};
    char text[64];

    if (node.kind == AGGLO_YAML_SCALAR) {
        random_text(random, text, sizeof text);
        node.quoted = test_random_u32(random) % 2;
        node.text = agglo_arena_text(arena, text, strlen(text), &err);
        return node;
    }
    node.n = test_random_u32(random) % 4;
    node.items = agglo_arena_take(arena, node.n, sizeof *node.items, &err);
    node.keys = agglo_arena_take(arena, node.n, sizeof *node.keys, &err);
    for (size_t i = 0; i < node.n; i++) {
        random_text(random, text, sizeof text - 4);
        if (i > 0) { /* unique, and the first may be empty */
            snprintf(text + strlen(text), 4, "k%d", (int)i);
        }
        node.keys[i] = agglo_arena_text(arena, text, strlen(text), &err);
        node.items[i] = random_tree(random, arena, depth + 1);
    }
    return node;
}

static void what_is_printed_reads_back(void **state)
{
    test_random random = test_random_new(21);

    assert_string_equal(print(state, parse(state, "")), "{}\n");
    assert_string_equal(
        print(state, parse(state, "a: '007'\nb: 007\nc: [ ]\nd: {}\ne: [{f: [1, 2], g: x y}, [[3]]]\n")),
        "a: \"007\"\nb: 007\nc: []\nd: {}\ne:\n  - f: [1, 2]\n    g: \"x y\"\n  - - [3]\n");
    for (int round = 0; round < 3000; round++) {
        agglo_arena_mark mark = agglo_arena_here(arena_of(state));
        agglo_yaml tree = random_tree(&random, arena_of(state), 0), *back;
        agglo_err err = {0};
        const char *text = print(state, &tree), *again;

        if (agglo_yaml_parse(text, strlen(text), "r.yaml", arena_of(state), &back, &err) != AGGLO_OK ||
            !equal(&tree, back)) {
            char line[1024];

            fail_msg("%s: %s", text, agglo_err_line(&err, line, sizeof line));
        }
        again = print(state, back);
        assert_string_equal(again, text);
        agglo_arena_rewind(arena_of(state), mark);
    }
}

static void every_failing_allocation_is_one_clean_error(void **state)
{
    static const char text[] = "a: 1\nb: [1, 2, {c: d}]\n";
    int64_t n_live = agglo_alloc_counts().n_live;
    agglo_status status = AGGLO_E_MEMORY;

    (void)state;
    for (int64_t n = 0; status != AGGLO_OK; n++) {
        agglo_arena *arena;
        agglo_err err = {0};
        agglo_yaml *root;
        char *printed;

        agglo_alloc_fail_after(n);
        status = agglo_arena_new(&arena, 64, &err); /* a chunk for nearly every piece */
        if (status == AGGLO_OK && agglo_yaml_parse(text, sizeof text - 1, "x", arena, &root, &err) == AGGLO_OK &&
            agglo_yaml_set(root, "b.2.e=[1]", arena, &err) == AGGLO_OK) {
            agglo_yaml_print(root, arena, &printed, &err);
        }
        status = err.status;
        agglo_alloc_fail_after(-1);
        agglo_arena_free(arena);
        assert_true(status == AGGLO_OK || status == AGGLO_E_MEMORY);
        assert_int_equal(agglo_alloc_counts().n_live, n_live);
        assert_true(status == AGGLO_OK ? n > 10 : n < 1000);
    }
}

#define WITH_ARENA(test) cmocka_unit_test_setup_teardown(test, open_arena, close_arena)

int main(void)
{
    static const struct CMUnitTest tests[] = {
        WITH_ARENA(trees_know_their_lines),
        WITH_ARENA(an_empty_file_is_an_empty_map),
        WITH_ARENA(what_recipes_do_not_need_is_refused),
        WITH_ARENA(sizes_are_bounded),
        WITH_ARENA(files_are_read_with_their_name),
        WITH_ARENA(scalars_are_strict),
        WITH_ARENA(tables_fill_structs),
        WITH_ARENA(wrong_recipes_say_where_and_what_was_meant),
        WITH_ARENA(many_choices_are_cut_not_overrun),
        WITH_ARENA(the_nearest_word_is_near),
        WITH_ARENA(set_changes_and_makes_values),
        WITH_ARENA(set_refuses_what_has_no_place),
        WITH_ARENA(what_is_printed_reads_back),
        cmocka_unit_test(every_failing_allocation_is_one_clean_error),
    };

    return test_run("yaml", tests);
}
