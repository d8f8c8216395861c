/* Changing a YAML tree (--set) and printing it so that it reads back to an equal one. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/yaml.h"

/* ---- set ---- */

static void mark_as_set(agglo_yaml *node, const char *where)
{
    node->line = 0;
    node->file = where;
    for (size_t i = 0; i < node->n; i++) {
        mark_as_set(&node->items[i], where);
    }
}

/* The value behind "=", read as YAML; messages about it say "--set KEY". */
static agglo_status parse_value(const char *value, const char *where, agglo_arena *arena, agglo_yaml *out,
                                agglo_err *err)
{
    size_t n = strlen(value) + 3;
    char *text = agglo_arena_take(arena, n + 1, 1, err);
    agglo_yaml *root;

    if (text == NULL) {
        return err->status;
    }
    if (strpbrk(value, "\r\n") != NULL) {
        agglo_fail(err, AGGLO_E_CONFIG, "a value is one line");
        return agglo_at(err, "%s", where);
    }
    memcpy(text, "v: ", 3);
    memcpy(text + 3, value, n - 3);
    if (agglo_yaml_parse(text, n, where, arena, &root, err) != AGGLO_OK) {
        return err->status;
    }
    if (root->kind != AGGLO_YAML_MAP || root->n != 1) {
        agglo_fail(err, AGGLO_E_CONFIG, "'%s' is not one value", value);
        return agglo_at(err, "%s", where);
    }
    *out = root->items[0];
    mark_as_set(out, where);
    return AGGLO_OK;
}

static agglo_yaml *member(agglo_yaml *map, const char *key, size_t n)
{
    for (size_t i = 0; i < map->n; i++) {
        if (strlen(map->keys[i]) == n && memcmp(map->keys[i], key, n) == 0) {
            return &map->items[i];
        }
    }
    return NULL;
}

/* A new null member; the arrays are copied, since their spare room is the parser's. The key did not come through the parser: what
 * could not be printed and read back is refused. */
static agglo_yaml *add_member(agglo_yaml *map, const char *key, size_t n, const char *where, agglo_arena *arena,
                              agglo_err *err)
{
    static const char word[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-";
    enum { MAX_NEW_KEY = 64 };
    agglo_yaml *items = agglo_arena_take(arena, map->n + 1, sizeof *items, err);
    const char **keys = items != NULL ? agglo_arena_take(arena, map->n + 1, sizeof *keys, err) : NULL;
    char *name = keys != NULL ? agglo_arena_text(arena, key, n, err) : NULL;

    if (name == NULL) {
        return NULL;
    }
    if (n > MAX_NEW_KEY || strspn(name, word) != n) {
        agglo_fail(err, AGGLO_E_CONFIG, "'%.64s' cannot be a key: letters, digits, '_' and '-' can", name);
        agglo_at(err, "%s", where);
        return NULL;
    }
    if (map->n > 0) {
        memcpy(items, map->items, map->n * sizeof *items);
        memcpy(keys, map->keys, map->n * sizeof *keys);
    }
    keys[map->n] = name;
    items[map->n] = (agglo_yaml){.kind = AGGLO_YAML_SCALAR, .text = "", .file = where};
    map->keys = keys;
    map->items = items;
    return &map->items[map->n++];
}

/* An item of a list by index, or by its member `name`. */
static agglo_yaml *list_item(agglo_yaml *list, const char *key, size_t n)
{
    char *end;
    unsigned long index = strtoul(key, &end, 10);

    if (key[0] >= '0' && key[0] <= '9' && end == key + n) {
        return index < list->n ? &list->items[index] : NULL;
    }
    for (size_t i = 0; i < list->n; i++) {
        agglo_yaml *name = list->items[i].kind == AGGLO_YAML_MAP ? member(&list->items[i], "name", 4) : NULL;

        if (name != NULL && name->kind == AGGLO_YAML_SCALAR && strlen(name->text) == n &&
            memcmp(name->text, key, n) == 0) {
            return &list->items[i];
        }
    }
    return NULL;
}

agglo_status agglo_yaml_set(agglo_yaml *root, const char *assignment, agglo_arena *arena, agglo_err *err)
{
    const char *equals = strchr(assignment, '='), *at = assignment;
    agglo_yaml *node = root, value;
    char where[128];
    char *file;

    if (equals == NULL || equals == assignment) {
        return agglo_fail(err, AGGLO_E_CONFIG, "expected KEY=VALUE, not '%s'", assignment);
    }
    snprintf(where, sizeof where, "--set %.*s", (int)(equals - assignment), assignment);
    file = agglo_arena_text(arena, where, strlen(where), err);
    if (file == NULL || parse_value(equals + 1, file, arena, &value, err) != AGGLO_OK) {
        return err->status;
    }
    for (;;) {
        size_t n = strcspn(at, ".=");

        if (n == 0) {
            agglo_fail(err, AGGLO_E_CONFIG, "'%.*s' has an empty part", (int)(equals - assignment), assignment);
            return agglo_at(err, "%s", where);
        }
        if (agglo_yaml_is_null(node) && !node->quoted) {
            node->kind = AGGLO_YAML_MAP; /* `views:` with nothing behind it */
        }
        if (node->kind == AGGLO_YAML_MAP) {
            agglo_yaml *next = member(node, at, n);

            node = next != NULL ? next : add_member(node, at, n, file, arena, err);
            if (node == NULL) {
                return err->status;
            }
        } else if (node->kind == AGGLO_YAML_LIST) {
            node = list_item(node, at, n);
            if (node == NULL) {
                agglo_fail(err, AGGLO_E_CONFIG, "the list has no item '%.*s'", (int)n, at);
                return agglo_at(err, "%s", where);
            }
        } else {
            agglo_fail(err, AGGLO_E_CONFIG, "there is a value where '%.*s' would be", (int)n, at);
            return agglo_at(err, "%s", where);
        }
        if (at[n] == '=') {
            *node = value;
            return AGGLO_OK;
        }
        at += n + 1;
    }
}

/* ---- print ---- */

/* Text that grows in the arena by doubling. */
typedef struct text {
    agglo_arena *arena;
    char *data;
    size_t n, capacity;
    agglo_err *err;
} text;

static void put(text *out, const char *data, size_t n)
{
    if (out->err->status != AGGLO_OK) {
        return;
    }
    if (out->n + n + 1 > out->capacity) {
        size_t capacity = 2 * (out->n + n + 1);
        char *grown = agglo_arena_take(out->arena, capacity, 1, out->err);

        if (grown == NULL) {
            return;
        }
        if (out->n > 0) {
            memcpy(grown, out->data, out->n);
        }
        out->data = grown;
        out->capacity = capacity;
    }
    memcpy(out->data + out->n, data, n);
    out->n += n;
    out->data[out->n] = '\0';
}

static void puts_to(text *out, const char *data)
{
    put(out, data, strlen(data));
}

/* Bytes of the character at `c` when YAML wants it escaped (controls, line breaks of Unicode, byte order marks, what is no character),
 * 0 otherwise. */
static size_t must_escape(const char *c, unsigned *code)
{
    const unsigned char *p = (const unsigned char *)c;

    *code = p[0];
    if (p[0] < 0x20 || p[0] == 0x7f) {
        return 1;
    }
    if (p[0] == 0xc2 && p[1] < 0xa0) { /* U+0080 to U+009F */
        *code = p[1];
        return 2;
    }
    if ((p[0] == 0xe2 || p[0] == 0xef) && p[1] != '\0' && p[2] != '\0') {
        *code = (p[0] & 0xfu) << 12 | (p[1] & 0x3fu) << 6 | (p[2] & 0x3fu);
        return *code == 0x2028 || *code == 0x2029 || *code == 0xfeff || *code >= 0xfffe ? 3 : 0;
    }
    return 0;
}

/* Plain where it cannot be taken for anything else, otherwise in double quotes. */
static void put_scalar(text *out, const char *data, bool quoted)
{
    static const char safe[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./+-";

    if (!quoted && data[0] != '\0' && strspn(data, safe) == strlen(data) &&
        (data[0] != '-' || (data[1] >= '0' && data[1] <= '9') || data[1] == '.')) {
        puts_to(out, data);
        return;
    }
    if (!quoted && (data[0] == '\0' || strcmp(data, "~") == 0)) {
        puts_to(out, "~");
        return;
    }
    put(out, "\"", 1);
    for (const char *c = data; *c != '\0';) {
        unsigned code;
        size_t n = must_escape(c, &code);
        char escape[16];

        if (n > 0) {
            snprintf(escape, sizeof escape, code < 0x100 ? "\\x%02X" : "\\u%04X", code);
            puts_to(out, escape);
            c += n;
        } else {
            if (*c == '"' || *c == '\\') {
                put(out, "\\", 1);
            }
            put(out, c++, 1);
        }
    }
    put(out, "\"", 1);
}

static void indent(text *out, int depth)
{
    for (int i = 0; i < depth; i++) {
        put(out, "  ", 2);
    }
}

static bool all_scalars(const agglo_yaml *node)
{
    for (size_t i = 0; i < node->n; i++) {
        if (node->items[i].kind != AGGLO_YAML_SCALAR) {
            return false;
        }
    }
    return true;
}

/* A value behind "key:" or "-"; the first member of a map in a list stands behind its dash. */
static void put_node(text *out, const agglo_yaml *node, int depth, bool in_list)
{
    if (node->kind == AGGLO_YAML_SCALAR) {
        puts_to(out, " ");
        put_scalar(out, node->text, node->quoted);
        puts_to(out, "\n");
    } else if (node->n == 0) {
        puts_to(out, node->kind == AGGLO_YAML_MAP ? " {}\n" : " []\n");
    } else if (node->kind == AGGLO_YAML_LIST && all_scalars(node)) {
        puts_to(out, " [");
        for (size_t i = 0; i < node->n; i++) {
            puts_to(out, i > 0 ? ", " : "");
            put_scalar(out, node->items[i].text, node->items[i].quoted);
        }
        puts_to(out, "]\n");
    } else {
        puts_to(out, in_list ? " " : "\n");
        for (size_t i = 0; i < node->n; i++) {
            indent(out, in_list && i == 0 ? 0 : depth);
            if (node->kind == AGGLO_YAML_MAP) {
                put_scalar(out, node->keys[i], node->keys[i][0] == '\0');
                puts_to(out, ":");
            } else {
                puts_to(out, "-");
            }
            put_node(out, &node->items[i], depth + 1, node->kind == AGGLO_YAML_LIST);
        }
    }
}

agglo_status agglo_yaml_print(const agglo_yaml *root, agglo_arena *arena, char **out, agglo_err *err)
{
    text printed = {.arena = arena, .err = err};

    *out = NULL;
    AGGLO_ASSERT(root->kind == AGGLO_YAML_MAP);
    if (root->n == 0) {
        puts_to(&printed, "{}\n");
    }
    for (size_t i = 0; i < root->n; i++) {
        put_scalar(&printed, root->keys[i], root->keys[i][0] == '\0');
        puts_to(&printed, ":");
        put_node(&printed, &root->items[i], 1, false);
    }
    *out = printed.data;
    return err->status;
}
