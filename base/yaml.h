/* YAML recipes: a tree that knows its lines, and a table-driven reader of structs.
 *
 * libyaml parses; the tables below say which keys exist. libcyaml, which does both, has no unions (a path or a list of them, one
 * view group or several) and cannot name the nearest known key, so the schema check is ours. An unknown key is an error with file,
 * line and the nearest known key; so are a duplicate key, a wrong type and a value out of range. Bounded: 1 MiB, depth 16,
 * 4096 keys of 200 bytes in a map; anchors, tags and aliases are refused.
 */
#ifndef AGGLO_BASE_YAML_H
#define AGGLO_BASE_YAML_H

#include "base/arena.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum agglo_yaml_kind { AGGLO_YAML_SCALAR, AGGLO_YAML_LIST, AGGLO_YAML_MAP } agglo_yaml_kind;

typedef struct agglo_yaml {
    agglo_yaml_kind kind;
    int line;                 /* 1-based; 0: from --set */
    bool quoted;              /* a scalar in quotes is a string, whatever it looks like */
    const char *text;         /* scalar */
    struct agglo_yaml *items; /* list items or map values */
    const char **keys;        /* map */
    size_t n;
    const char *file; /* for messages */
} agglo_yaml;

/* Parse; tree and texts live in `arena`. AGGLO_E_CONFIG with "FILE:LINE". An empty file is an empty map. */
agglo_status agglo_yaml_read(const char *path, agglo_arena *arena, agglo_yaml **out, agglo_err *err);
agglo_status agglo_yaml_parse(const char *text, size_t n_bytes, const char *file, agglo_arena *arena, agglo_yaml **out,
                              agglo_err *err);

/* `--set a.b.c=value`: value is YAML (flow style allowed). Missing maps on the way are made; a list is addressed by index or by the
 * `name` member of its items (teachers.clip.codec). AGGLO_E_CONFIG when the path runs through a scalar or the syntax is off. */
agglo_status agglo_yaml_set(agglo_yaml *root, const char *assignment, agglo_arena *arena, agglo_err *err);

/* Block-style YAML of a map, in `arena`; reading it gives an equal tree. */
agglo_status agglo_yaml_print(const agglo_yaml *root, agglo_arena *arena, char **out, agglo_err *err);

/* Member of a map, NULL when missing or null (`~`, `null`). */
const agglo_yaml *agglo_yaml_get(const agglo_yaml *map, const char *key);
bool agglo_yaml_is_null(const agglo_yaml *node);

/* Error at a node: AGGLO_E_CONFIG, WHERE "FILE:LINE". */
agglo_status agglo_yaml_fail(const agglo_yaml *node, agglo_err *err, const char *why, ...) AGGLO_PRINTF(3, 4);

/* Scalars. */
agglo_status agglo_yaml_string(const agglo_yaml *node, const char **out, agglo_err *err);
agglo_status agglo_yaml_int(const agglo_yaml *node, int64_t min, int64_t max, int64_t *out, agglo_err *err);
agglo_status agglo_yaml_double(const agglo_yaml *node, double min, double max, double *out, agglo_err *err);
agglo_status agglo_yaml_bool(const agglo_yaml *node, bool *out, agglo_err *err);

/* A table of fields fills a struct from a map. */
typedef enum agglo_field_kind {
    AGGLO_FIELD_STRING, /* const char *, borrowed from the tree */
    AGGLO_FIELD_INT,    /* int64_t in [min, max] */
    AGGLO_FIELD_DOUBLE, /* double in [min, max] */
    AGGLO_FIELD_RANGE,  /* double[2], both in [min, max], ascending */
    AGGLO_FIELD_BOOL,   /* bool */
    AGGLO_FIELD_CHOICE, /* int: index of one of `choices` */
    AGGLO_FIELD_CUSTOM, /* read(node, field address, context) */
} agglo_field_kind;

typedef struct agglo_field {
    const char *key;
    agglo_field_kind kind;
    size_t offset;
    double min, max;
    const char *const *choices; /* NULL-terminated */
    agglo_status (*read)(const agglo_yaml *node, void *field, void *context, agglo_err *err);
    bool required;
} agglo_field;

/* Read `map` into the struct at `base`. Fields that are missing (or null and not required) keep what they held: fill defaults
 * first. `section` names the map in messages ("train"); a wrong value is placed at its key, to which a table
 * around this one adds its own ("train: steps"). */
agglo_status agglo_yaml_fields(const agglo_yaml *map, const char *section, const agglo_field *fields, size_t n_fields,
                               void *base, void *context, agglo_err *err);

/* The candidate nearest to `word` by edit distance, NULL when none is near enough to suggest. */
const char *agglo_nearest(const char *word, const char *const *candidates, size_t n);

#ifdef __cplusplus
}
#endif
#endif
