/* Any text as a recipe, with a `--set` behind a NUL: refused with its file, or what is printed reads back to an equal tree, and a
 * table takes any map.
 */
#include <stdlib.h>
#include <string.h>

#include "base/yaml.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const choices[] = {"cosine", "linear", NULL};

typedef struct settings {
    const char *name;
    int64_t steps;
    double rate, window[2];
    bool fast;
    int mode;
} settings;

static const agglo_field table[] = {
    {.key = "name", .kind = AGGLO_FIELD_STRING, .offset = offsetof(settings, name)},
    {.key = "steps", .kind = AGGLO_FIELD_INT, .offset = offsetof(settings, steps), .min = -1e30, .max = 1e30},
    {.key = "rate", .kind = AGGLO_FIELD_DOUBLE, .offset = offsetof(settings, rate), .min = 0, .max = 1},
    {.key = "window", .kind = AGGLO_FIELD_RANGE, .offset = offsetof(settings, window), .min = 0, .max = 1},
    {.key = "fast", .kind = AGGLO_FIELD_BOOL, .offset = offsetof(settings, fast)},
    {.key = "mode", .kind = AGGLO_FIELD_CHOICE, .offset = offsetof(settings, mode), .choices = choices},
};

static bool equal(const agglo_yaml *a, const agglo_yaml *b)
{
    if (a->kind != b->kind || a->n != b->n) {
        return false;
    }
    if (a->kind == AGGLO_YAML_SCALAR) {
        return agglo_yaml_is_null(a) ? agglo_yaml_is_null(b) : !agglo_yaml_is_null(b) && strcmp(a->text, b->text) == 0;
    }
    for (size_t i = 0; i < a->n; i++) {
        if ((a->kind == AGGLO_YAML_MAP && strcmp(a->keys[i], b->keys[i]) != 0) || !equal(&a->items[i], &b->items[i])) {
            return false;
        }
    }
    return true;
}

static int depth_of(const agglo_yaml *node)
{
    int deepest = 0;

    for (size_t i = 0; i < node->n; i++) {
        int depth = depth_of(&node->items[i]);

        deepest = depth > deepest ? depth : deepest;
    }
    return deepest + 1;
}

static void use(agglo_yaml *root, agglo_arena *arena)
{
    settings s = {.rate = 0.5};
    agglo_err err = {0};
    agglo_yaml *back;
    char *text;

    if (agglo_yaml_fields(root, "train", table, AGGLO_COUNT(table), &s, NULL, &err) == AGGLO_OK) {
        AGGLO_ASSERT(s.rate >= 0 && s.rate <= 1 && s.window[0] <= s.window[1] && s.mode >= 0 && s.mode < 2);
    }
    agglo_err_clear(&err);
    if (root->kind != AGGLO_YAML_MAP || depth_of(root) > 16) { /* --set can graft a tree deeper than a file may be */
        return;
    }
    AGGLO_ASSERT(agglo_yaml_print(root, arena, &text, &err) == AGGLO_OK);
    AGGLO_ASSERT(agglo_yaml_parse(text, strlen(text), "printed", arena, &back, &err) == AGGLO_OK && equal(root, back));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *zero = size > 0 ? memchr(data, 0, size) : NULL;
    size_t n = zero != NULL ? (size_t)(zero - data) : size;
    agglo_arena *arena;
    agglo_err err = {0};
    agglo_yaml *root;

    if (n > 1 << 14) { /* printing may grow a text towards the limit of a file */
        return 0;
    }
    AGGLO_ASSERT(agglo_arena_new(&arena, 0, &err) == AGGLO_OK);
    if (agglo_yaml_parse((const char *)data, n, "fuzz", arena, &root, &err) != AGGLO_OK) {
        AGGLO_ASSERT(root == NULL && err.status == AGGLO_E_CONFIG && strncmp(err.where, "fuzz:", 5) == 0);
    } else {
        use(root, arena);
        if (zero != NULL && root->kind == AGGLO_YAML_MAP) {
            char *assignment = agglo_arena_text(arena, (const char *)zero + 1, size - n - 1, &err);

            AGGLO_ASSERT(assignment != NULL);
            if (agglo_yaml_set(root, assignment, arena, &err) == AGGLO_OK) {
                use(root, arena);
            }
        }
    }
    agglo_arena_free(arena);
    AGGLO_ASSERT(agglo_alloc_counts().n_live == 0);
    return 0;
}
