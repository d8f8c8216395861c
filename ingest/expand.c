/* Source patterns: braces are spread first ({00000..00127}, {a,b}), then each result is a folder, a glob, or a path. */
#include <glob.h>
#include <stdio.h>

#include "ingest/dataset.h"
#include "ingest/dataset_impl.h"
#include "ingest/ingest.h"
#include "ingest/sample.h"
#include "ingest/source.h"

#define MAX_SOURCES 10000000

typedef struct path_list {
    agglo_arena *arena;
    char **items;
    size_t n, room;
    bool keep_datasets;
} path_list;

static agglo_status append(path_list *list, const char *path, agglo_err *err)
{
    if (list->n == MAX_SOURCES) {
        return agglo_fail(err, AGGLO_E_CONFIG, "more than %d sources", MAX_SOURCES);
    }
    if (list->n == list->room) {
        size_t room = list->room * 2 + 64;
        char **items = agglo_arena_take(list->arena, room, sizeof *items, err);

        if (items == NULL) {
            return err->status;
        }
        if (list->n > 0) {
            memcpy(items, list->items, list->n * sizeof *items);
        }
        list->items = items;
        list->room = room;
    }
    list->items[list->n] = agglo_arena_text(list->arena, path, strlen(path), err);
    return list->items[list->n++] == NULL ? err->status : AGGLO_OK;
}

/* All tars of a folder; how many there are comes out of list->n. */
static agglo_status append_tars(path_list *list, const char *dir, agglo_err *err)
{
    char **names;
    size_t n;

    if (agglo_list_dir(dir, list->arena, &names, &n, err) != AGGLO_OK) {
        return err->status;
    }
    for (size_t i = 0; i < n; i++) {
        char *path;
        agglo_status status;

        if (!agglo_is_tar_name(names[i]) || names[i][0] == '.') {
            continue;
        }
        path = agglo_path_join(dir, names[i], err);
        status = path == NULL ? err->status : append(list, path, err);
        agglo_free(path);
        if (status != AGGLO_OK) {
            return status;
        }
    }
    return AGGLO_OK;
}

/* True when a picture, by its extension, stands in the folder or at most `depth` folders below it. */
static bool holds_pictures(const char *dir, int depth, agglo_err *err)
{
    agglo_arena *arena = NULL;
    char **names;
    size_t n = 0;
    bool found = false;

    if (agglo_arena_new(&arena, 0, err) == AGGLO_OK && agglo_list_dir(dir, arena, &names, &n, err) == AGGLO_OK) {
        for (size_t i = 0; i < n && !found && err->status == AGGLO_OK; i++) {
            const char *dot = strrchr(names[i], '.');

            found = dot != NULL && dot != names[i] && agglo_is_image_ext(dot + 1);
        }
        for (size_t i = 0; i < n && !found && depth > 0 && err->status == AGGLO_OK; i++) {
            char *path = names[i][0] == '.' ? NULL : agglo_path_join(dir, names[i], err);

            found = path != NULL && agglo_path_is_dir(path) && holds_pictures(path, depth - 1, err);
            agglo_free(path);
        }
    }
    agglo_arena_free(arena);
    if (err->status == AGGLO_E_IO || err->status == AGGLO_E_NOT_FOUND) { /* a folder that cannot be read holds none */
        agglo_err_clear(err);
    }
    return found;
}

/* A folder of tars, a dataset, or a folder of pictures, tried in this order. */
static agglo_status append_dir(path_list *list, const char *dir, agglo_err *err)
{
    enum { SEARCH_DEPTH = 4 };
    size_t before = list->n;

    if (append_tars(list, dir, err) != AGGLO_OK || list->n > before) {
        return err->status;
    }
    if (agglo_dataset_is(dir, err)) {
        char *shards = list->keep_datasets ? NULL : agglo_path_join(dir, AGGLO_DATASET_SHARDS, err);

        if (list->keep_datasets) {
            append(list, dir, err);
        } else if (shards != NULL) {
            append_tars(list, shards, err);
        }
        agglo_free(shards);
    }
    if (err->status != AGGLO_OK || list->n > before) {
        return err->status;
    }
    if (holds_pictures(dir, SEARCH_DEPTH, err)) {
        return append(list, dir, err);
    }
    return err->status == AGGLO_OK
               ? agglo_fail(err, AGGLO_E_CONFIG, "the folder %s holds neither tars nor pictures", dir)
               : err->status;
}

/* A pattern without braces. A plain name is taken even when there is no such file: one missing shard costs only itself. */
static agglo_status append_pattern(path_list *list, const char *pattern, agglo_err *err)
{
    glob_t found = {0};
    int code;

    if (strcmp(pattern, "-") == 0) {
        return append(list, pattern, err);
    }
    if (agglo_path_is_dir(pattern)) {
        return append_dir(list, pattern, err);
    }
    if (agglo_path_exists(pattern) || strpbrk(pattern, "*?[") == NULL) {
        return append(list, pattern, err);
    }
    code = glob(pattern, 0, NULL, &found);
    if (code == GLOB_NOMATCH) {
        agglo_fail(err, AGGLO_E_CONFIG, "%s matches no file", pattern);
    } else if (code != 0) {
        agglo_fail(err, code == GLOB_NOSPACE ? AGGLO_E_MEMORY : AGGLO_E_IO, "%s cannot be searched", pattern);
    }
    for (size_t i = 0; code == 0 && i < found.gl_pathc && err->status == AGGLO_OK; i++) {
        if (agglo_path_is_dir(found.gl_pathv[i])) {
            append_dir(list, found.gl_pathv[i], err);
        } else {
            append(list, found.gl_pathv[i], err);
        }
    }
    globfree(&found);
    return err->status;
}

/* FROM..TO, digits only; zero padding when either end has it. */
static bool parse_range(const char *text, size_t n, uint64_t *from, uint64_t *to, int *width)
{
    const char *dots = memmem(text, n, "..", 2);
    uint64_t ends[2] = {0, 0};
    size_t n_digits[2];

    if (dots == NULL) {
        return false;
    }
    n_digits[0] = (size_t)(dots - text);
    n_digits[1] = n - n_digits[0] - 2;
    for (int k = 0; k < 2; k++) {
        const char *p = k == 0 ? text : dots + 2;

        if (n_digits[k] == 0 || n_digits[k] > 18) {
            return false;
        }
        for (size_t i = 0; i < n_digits[k]; i++) {
            if (p[i] < '0' || p[i] > '9') {
                return false;
            }
            ends[k] = ends[k] * 10 + (uint64_t)(p[i] - '0');
        }
    }
    *from = ends[0];
    *to = ends[1];
    *width = 0;
    if ((text[0] == '0' && n_digits[0] > 1) || (dots[2] == '0' && n_digits[1] > 1)) {
        *width = (int)(n_digits[0] > n_digits[1] ? n_digits[0] : n_digits[1]);
    }
    return true;
}

static agglo_status spread_braces(path_list *list, const char *pattern, int depth, agglo_err *err);

static agglo_status spread_one(path_list *list, const char *pattern, size_t n_head, const char *middle, size_t n_middle,
                               const char *tail, int depth, agglo_err *err)
{
    char *joined = agglo_format(err, "%.*s%.*s%s", (int)n_head, pattern, (int)n_middle, middle, tail);
    agglo_status status = joined == NULL ? err->status : spread_braces(list, joined, depth + 1, err);

    agglo_free(joined);
    return status;
}

/* The first pair of braces that says a range or a list is spread, the rest by recursion; inner braces are not nested. */
static agglo_status spread_braces(path_list *list, const char *pattern, int depth, agglo_err *err)
{
    const char *open = strchr(pattern, '{');
    const char *close = open == NULL ? NULL : strchr(open, '}');
    size_t n_head, n_body;
    uint64_t from, to;
    int width;

    if (close == NULL || depth > 16) {
        return append_pattern(list, pattern, err);
    }
    n_head = (size_t)(open - pattern);
    n_body = (size_t)(close - open) - 1;
    if (parse_range(open + 1, n_body, &from, &to, &width)) {
        if ((from > to ? from - to : to - from) >= MAX_SOURCES) {
            return agglo_fail(err, AGGLO_E_CONFIG, "{%.*s} is more than %d sources", (int)n_body, open + 1,
                              MAX_SOURCES);
        }
        for (uint64_t i = from;; i = from > to ? i - 1 : i + 1) {
            char digits[32];
            int n = snprintf(digits, sizeof digits, "%0*llu", width, (unsigned long long)i);

            if (spread_one(list, pattern, n_head, digits, (size_t)n, close + 1, depth, err) != AGGLO_OK || i == to) {
                return err->status;
            }
        }
    }
    if (memchr(open, ',', n_body + 1) == NULL) {
        return append_pattern(list, pattern, err); /* braces that are part of a name */
    }
    for (const char *p = open + 1;;) {
        size_t n = strcspn(p, ",}");

        if (spread_one(list, pattern, n_head, p, n, close + 1, depth, err) != AGGLO_OK || p + n == close) {
            return err->status;
        }
        p += n + 1;
    }
}

static agglo_status expand(path_list list, const char *const *sources, size_t n_sources, char ***paths, size_t *n,
                           agglo_err *err)
{
    size_t n_stdin = 0;

    *paths = NULL;
    *n = 0;
    for (size_t i = 0; i < n_sources; i++) {
        n_stdin += strcmp(sources[i], "-") == 0;
        if (agglo_path_exists(sources[i]) ? append_pattern(&list, sources[i], err) != AGGLO_OK
                                          : spread_braces(&list, sources[i], 0, err) != AGGLO_OK) {
            return agglo_doing(err, "cannot find sources");
        }
    }
    if (n_stdin > 1) {
        agglo_fail(err, AGGLO_E_CONFIG, "standard input is named twice");
        return agglo_doing(err, "cannot find sources");
    }
    *paths = list.items;
    *n = list.n;
    return AGGLO_OK;
}

agglo_status agglo_ingest_expand(const char *const *sources, size_t n_sources, agglo_arena *arena, char ***paths,
                                 size_t *n, agglo_err *err)
{
    return expand((path_list){.arena = arena}, sources, n_sources, paths, n, err);
}

agglo_status agglo_ingest_expand_whole(const char *const *sources, size_t n_sources, agglo_arena *arena, char ***paths,
                                       size_t *n, agglo_err *err)
{
    return expand((path_list){.arena = arena, .keep_datasets = true}, sources, n_sources, paths, n, err);
}
