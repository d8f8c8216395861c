/* YAML recipes over libyaml's events; see yaml.h. */
#include "base/yaml.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#include "base/fs.h"

enum { MAX_BYTES = 1 << 20, MAX_DEPTH = 16, MAX_KEYS = 4096, MAX_KEY_BYTES = 200 };

/* ---- parsing ---- */

typedef struct reader {
    yaml_parser_t parser;
    agglo_arena *arena;
    const char *file;
    agglo_err *err;
} reader;

static agglo_status fail_at(reader *r, size_t line, const char *why)
{
    agglo_fail(r->err, AGGLO_E_CONFIG, "%s", why);
    return agglo_at(r->err, "%s:%zu", r->file, line + 1);
}

static agglo_status next(reader *r, yaml_event_t *event)
{
    if (yaml_parser_parse(&r->parser, event)) {
        return AGGLO_OK;
    }
    if (r->parser.error == YAML_MEMORY_ERROR) {
        return agglo_fail(r->err, AGGLO_E_MEMORY, "out of memory reading YAML");
    }
    return fail_at(r, r->parser.problem_mark.line, r->parser.problem != NULL ? r->parser.problem : "not YAML");
}

static agglo_status reserve(reader *r, agglo_yaml *node, size_t *capacity)
{
    size_t more = *capacity > 0 ? 2 * *capacity : 8;
    agglo_yaml *items;
    const char **keys;

    if (node->n < *capacity) {
        return AGGLO_OK;
    }
    items = agglo_arena_take(r->arena, more, sizeof *items, r->err);
    keys = items != NULL ? agglo_arena_take(r->arena, more, sizeof *keys, r->err) : NULL;
    if (keys == NULL) {
        return r->err->status;
    }
    if (node->n > 0) {
        memcpy(items, node->items, node->n * sizeof *items);
        memcpy(keys, node->keys, node->n * sizeof *keys);
    }
    node->items = items;
    node->keys = keys;
    *capacity = more;
    return AGGLO_OK;
}

static agglo_status read_node(reader *r, yaml_event_t *event, int depth, agglo_yaml *out);

static agglo_status read_members(reader *r, int depth, agglo_yaml *out)
{
    yaml_event_type_t end = out->kind == AGGLO_YAML_MAP ? YAML_MAPPING_END_EVENT : YAML_SEQUENCE_END_EVENT;
    size_t capacity = 0;

    for (;;) {
        yaml_event_t event;
        agglo_yaml key;

        if (next(r, &event) != AGGLO_OK) {
            return r->err->status;
        }
        if (event.type == end) {
            yaml_event_delete(&event);
            return AGGLO_OK;
        }
        if (reserve(r, out, &capacity) != AGGLO_OK) {
            yaml_event_delete(&event);
            return r->err->status;
        }
        if (out->kind == AGGLO_YAML_MAP) {
            if (read_node(r, &event, depth, &key) != AGGLO_OK) {
                return r->err->status;
            }
            if (out->n == MAX_KEYS) { /* the search for duplicates below is quadratic */
                return fail_at(r, (size_t)key.line - 1, "a map of too many keys");
            }
            if (key.kind != AGGLO_YAML_SCALAR) {
                return fail_at(r, (size_t)key.line - 1, "a key must be a word");
            }
            if (strlen(key.text) > MAX_KEY_BYTES) { /* escaped and in quotes it must stay below YAML's 1024 */
                return fail_at(r, (size_t)key.line - 1, "a key is too long");
            }
            for (size_t i = 0; i < out->n; i++) {
                if (strcmp(out->keys[i], key.text) == 0) {
                    agglo_yaml_fail(&key, r->err, "key '%s' comes twice, first in line %d", key.text,
                                    out->items[i].line);
                    return r->err->status;
                }
            }
            out->keys[out->n] = key.text;
            if (next(r, &event) != AGGLO_OK) {
                return r->err->status;
            }
        }
        if (read_node(r, &event, depth, &out->items[out->n]) != AGGLO_OK) {
            return r->err->status;
        }
        out->n++;
    }
}

/* Consumes the event. */
static agglo_status read_node(reader *r, yaml_event_t *event, int depth, agglo_yaml *out)
{
    size_t line = event->start_mark.line;
    const char *wrong = NULL;

    *out = (agglo_yaml){.line = (int)line + 1, .file = r->file};
    if (event->type == YAML_SCALAR_EVENT) {
        const char *text = (const char *)event->data.scalar.value;

        out->quoted = event->data.scalar.style != YAML_PLAIN_SCALAR_STYLE;
        if (event->data.scalar.anchor != NULL || event->data.scalar.tag != NULL) {
            wrong = "anchors and tags are not allowed";
        } else if (strlen(text) != event->data.scalar.length) {
            wrong = "a text holds a NUL";
        } else {
            out->text = agglo_arena_text(r->arena, text, event->data.scalar.length, r->err);
        }
    } else if (event->type == YAML_MAPPING_START_EVENT || event->type == YAML_SEQUENCE_START_EVENT) {
        bool map = event->type == YAML_MAPPING_START_EVENT;

        out->kind = map ? AGGLO_YAML_MAP : AGGLO_YAML_LIST;
        if (map ? event->data.mapping_start.anchor != NULL || event->data.mapping_start.tag != NULL
                : event->data.sequence_start.anchor != NULL || event->data.sequence_start.tag != NULL) {
            wrong = "anchors and tags are not allowed";
        } else if (depth >= MAX_DEPTH) {
            wrong = "nested too deeply";
        }
    } else {
        wrong = event->type == YAML_ALIAS_EVENT ? "aliases are not allowed" : "unexpected YAML";
    }
    yaml_event_delete(event);
    if (wrong != NULL) {
        return fail_at(r, line, wrong);
    }
    if (out->kind == AGGLO_YAML_SCALAR) {
        return r->err->status;
    }
    return read_members(r, depth + 1, out);
}

static agglo_status read_document(reader *r, agglo_yaml *root)
{
    yaml_event_t event;

    for (;;) {
        yaml_event_type_t type;

        if (next(r, &event) != AGGLO_OK) {
            return r->err->status;
        }
        type = event.type;
        if (type == YAML_STREAM_START_EVENT || type == YAML_DOCUMENT_START_EVENT) {
            yaml_event_delete(&event);
            continue;
        }
        if (type == YAML_STREAM_END_EVENT) { /* an empty file */
            yaml_event_delete(&event);
            return AGGLO_OK;
        }
        break;
    }
    if (read_node(r, &event, 0, root) != AGGLO_OK) {
        return r->err->status;
    }
    for (;;) {
        yaml_event_type_t type;
        size_t line;

        if (next(r, &event) != AGGLO_OK) {
            return r->err->status;
        }
        type = event.type;
        line = event.start_mark.line;
        yaml_event_delete(&event);
        if (type == YAML_STREAM_END_EVENT) {
            return AGGLO_OK;
        }
        if (type == YAML_DOCUMENT_START_EVENT) {
            return fail_at(r, line, "a second document");
        }
    }
}

agglo_status agglo_yaml_parse(const char *text, size_t n_bytes, const char *file, agglo_arena *arena, agglo_yaml **out,
                              agglo_err *err)
{
    reader r = {.arena = arena, .err = err};
    agglo_yaml *root;

    *out = NULL;
    if (n_bytes > MAX_BYTES) {
        agglo_fail(err, AGGLO_E_CONFIG, "%zu bytes, more than %d", n_bytes, (int)MAX_BYTES);
        return agglo_at(err, "%s", file);
    }
    root = agglo_arena_take(arena, 1, sizeof *root, err);
    r.file = root != NULL ? agglo_arena_text(arena, file, strlen(file), err) : NULL;
    if (r.file == NULL) {
        return err->status;
    }
    *root = (agglo_yaml){.kind = AGGLO_YAML_MAP, .line = 1, .file = r.file};
    if (!yaml_parser_initialize(&r.parser)) {
        return agglo_fail(err, AGGLO_E_MEMORY, "out of memory reading YAML");
    }
    yaml_parser_set_input_string(&r.parser, (const unsigned char *)text, n_bytes);
    if (read_document(&r, root) == AGGLO_OK) {
        *out = root;
    }
    yaml_parser_delete(&r.parser);
    return err->status;
}

agglo_status agglo_yaml_read(const char *path, agglo_arena *arena, agglo_yaml **out, agglo_err *err)
{
    size_t n;
    char *text;

    *out = NULL;
    if (agglo_file_read(path, MAX_BYTES, &text, &n, err) == AGGLO_OK) {
        agglo_yaml_parse(text, n, path, arena, out, err);
        agglo_free(text);
    }
    return err->status;
}

/* ---- values ---- */

bool agglo_yaml_is_null(const agglo_yaml *node)
{
    return node->kind == AGGLO_YAML_SCALAR && !node->quoted &&
           (node->text[0] == '\0' || strcmp(node->text, "~") == 0 || strcmp(node->text, "null") == 0);
}

const agglo_yaml *agglo_yaml_get(const agglo_yaml *map, const char *key)
{
    for (size_t i = 0; map->kind == AGGLO_YAML_MAP && i < map->n; i++) {
        if (strcmp(map->keys[i], key) == 0) {
            return agglo_yaml_is_null(&map->items[i]) ? NULL : &map->items[i];
        }
    }
    return NULL;
}

agglo_status agglo_yaml_fail(const agglo_yaml *node, agglo_err *err, const char *why, ...)
{
    char text[256];
    va_list args;

    va_start(args, why);
    vsnprintf(text, sizeof text, why, args);
    va_end(args);
    agglo_fail(err, AGGLO_E_CONFIG, "%s", text);
    return node->line > 0 ? agglo_at(err, "%s:%d", node->file, node->line) : agglo_at(err, "%s", node->file);
}

agglo_status agglo_yaml_string(const agglo_yaml *node, const char **out, agglo_err *err)
{
    if (node->kind != AGGLO_YAML_SCALAR) {
        return agglo_yaml_fail(node, err, "expected a text");
    }
    *out = node->text;
    return AGGLO_OK;
}

agglo_status agglo_yaml_int(const agglo_yaml *node, int64_t min, int64_t max, int64_t *out, agglo_err *err)
{
    const char *digits = node->kind == AGGLO_YAML_SCALAR ? node->text + (node->text[0] == '-') : "";
    long long value;

    if (node->quoted || digits[0] == '\0' || strspn(digits, "0123456789") != strlen(digits)) {
        return agglo_yaml_fail(node, err, "expected a whole number");
    }
    if (digits[0] == '0' && digits[1] != '\0') { /* octal to some readers of YAML, decimal to others */
        return agglo_yaml_fail(node, err, "a whole number may not start with 0");
    }
    errno = 0;
    value = strtoll(node->text, NULL, 10);
    if (errno != 0 || value < min || value > max) {
        return agglo_yaml_fail(node, err, "%s is out of range: %lld to %lld", node->text, (long long)min,
                               (long long)max);
    }
    *out = value;
    return AGGLO_OK;
}

agglo_status agglo_yaml_double(const agglo_yaml *node, double min, double max, double *out, agglo_err *err)
{
    const char *text = node->kind == AGGLO_YAML_SCALAR ? node->text : "";
    char *end = NULL;
    double value = strtod(text, &end); /* in the C locale: nothing here calls setlocale */

    /* strtod also takes leading space, hexadecimal, inf and nan */
    if (node->quoted || text[0] == '\0' || *end != '\0' || strspn(text, "0123456789+-.eE") != strlen(text)) {
        return agglo_yaml_fail(node, err, "expected a number");
    }
    if (!isfinite(value) || value < min || value > max) {
        return agglo_yaml_fail(node, err, "%s is out of range: %g to %g", text, min, max);
    }
    *out = value;
    return AGGLO_OK;
}

agglo_status agglo_yaml_bool(const agglo_yaml *node, bool *out, agglo_err *err)
{
    bool yes = node->kind == AGGLO_YAML_SCALAR && !node->quoted && strcmp(node->text, "true") == 0;

    if (!yes && (node->kind != AGGLO_YAML_SCALAR || node->quoted || strcmp(node->text, "false") != 0)) {
        return agglo_yaml_fail(node, err, "expected true or false");
    }
    *out = yes;
    return AGGLO_OK;
}

/* ---- structs ---- */

const char *agglo_nearest(const char *word, const char *const *candidates, size_t n)
{
    enum { MAX_WORD = 64 };
    size_t length = strlen(word), best = 0;
    const char *nearest = NULL;

    for (size_t c = 0; c < n && length < MAX_WORD; c++) {
        const char *other = candidates[c];
        size_t row[MAX_WORD + 1], limit = length < 4 ? 1 : 2;

        for (size_t j = 0; j <= length; j++) {
            row[j] = j;
        }
        for (size_t i = 0; other[i] != '\0'; i++) {
            size_t diagonal = row[0];

            row[0] = i + 1;
            for (size_t j = 0; j < length; j++) {
                size_t change = diagonal + (other[i] != word[j]),
                       least = (row[j] < row[j + 1] ? row[j] : row[j + 1]) + 1;

                diagonal = row[j + 1];
                row[j + 1] = change < least ? change : least;
            }
        }
        if (row[length] <= limit && (nearest == NULL || row[length] < best)) {
            best = row[length];
            nearest = other;
        }
    }
    return nearest;
}

static agglo_status read_choice(const agglo_yaml *node, const agglo_field *field, int *out, agglo_err *err)
{
    char allowed[160] = "";
    const char *near;
    size_t n = 0, used = 0;

    for (; field->choices[n] != NULL; n++) {
        if (node->kind == AGGLO_YAML_SCALAR && strcmp(field->choices[n], node->text) == 0) {
            *out = (int)n;
            return AGGLO_OK;
        }
        if (used < sizeof allowed) {
            used +=
                (size_t)snprintf(allowed + used, sizeof allowed - used, "%s%s", n > 0 ? ", " : "", field->choices[n]);
        }
    }
    if (node->kind != AGGLO_YAML_SCALAR) {
        return agglo_yaml_fail(node, err, "expected one of: %s", allowed);
    }
    near = agglo_nearest(node->text, field->choices, n);
    return near != NULL ? agglo_yaml_fail(node, err, "unknown value '%.32s', did you mean '%s'? Allowed: %s",
                                          node->text, near, allowed)
                        : agglo_yaml_fail(node, err, "unknown value '%.32s', allowed: %s", node->text, allowed);
}

/* A limit of a table is a double; one beyond what an int64_t holds means no limit. */
static int64_t int_limit(double limit)
{
    return limit >= 0x1p63 ? INT64_MAX : limit < -0x1p63 ? INT64_MIN : (int64_t)limit;
}

static agglo_status read_field(const agglo_yaml *node, const agglo_field *field, void *at, void *context,
                               agglo_err *err)
{
    double range[2];

    switch (field->kind) {
    case AGGLO_FIELD_STRING:
        return agglo_yaml_string(node, at, err);
    case AGGLO_FIELD_INT:
        return agglo_yaml_int(node, int_limit(field->min), int_limit(field->max), at, err);
    case AGGLO_FIELD_DOUBLE:
        return agglo_yaml_double(node, field->min, field->max, at, err);
    case AGGLO_FIELD_BOOL:
        return agglo_yaml_bool(node, at, err);
    case AGGLO_FIELD_CHOICE:
        return read_choice(node, field, at, err);
    case AGGLO_FIELD_CUSTOM:
        return field->read(node, at, context, err);
    case AGGLO_FIELD_RANGE:
        break;
    }
    if (node->kind != AGGLO_YAML_LIST || node->n != 2) {
        return agglo_yaml_fail(node, err, "expected a list of two numbers");
    }
    if (agglo_yaml_double(&node->items[0], field->min, field->max, &range[0], err) != AGGLO_OK ||
        agglo_yaml_double(&node->items[1], field->min, field->max, &range[1], err) != AGGLO_OK) {
        return err->status;
    }
    if (range[0] > range[1]) {
        return agglo_yaml_fail(node, err, "the range must ascend");
    }
    memcpy(at, range, sizeof range);
    return AGGLO_OK;
}

agglo_status agglo_yaml_fields(const agglo_yaml *map, const char *section, const agglo_field *fields, size_t n_fields,
                               void *base, void *context, agglo_err *err)
{
    if (map->kind != AGGLO_YAML_MAP) {
        return agglo_yaml_fail(map, err, "%s must be a map", section);
    }
    for (size_t i = 0; i < map->n; i++) {
        const char *near = NULL;
        size_t f = 0;

        while (f < n_fields && strcmp(fields[f].key, map->keys[i]) != 0) {
            f++;
        }
        for (size_t c = 0; f == n_fields && c < n_fields; c++) {
            const char *pair[2] = {near, fields[c].key};

            near = near == NULL ? agglo_nearest(map->keys[i], &pair[1], 1) : agglo_nearest(map->keys[i], pair, 2);
        }
        if (f == n_fields) {
            return near != NULL ? agglo_yaml_fail(&map->items[i], err, "unknown key '%s' in %s, did you mean '%s'?",
                                                  map->keys[i], section, near)
                                : agglo_yaml_fail(&map->items[i], err, "unknown key '%s' in %s", map->keys[i], section);
        }
    }
    for (size_t f = 0; f < n_fields; f++) {
        const agglo_yaml *node = agglo_yaml_get(map, fields[f].key);

        if (node == NULL && fields[f].required) {
            return agglo_yaml_fail(map, err, "%s needs the key '%s'", section, fields[f].key);
        }
        if (node != NULL && read_field(node, &fields[f], (char *)base + fields[f].offset, context, err) != AGGLO_OK) {
            return agglo_at(err, "%s", fields[f].key);
        }
    }
    return AGGLO_OK;
}
