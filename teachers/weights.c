/* Weights as a set of named tensors: one file, or an index and its files; see weights.h. What a path means is weights_path.c's. */
#include "teachers/weights_impl.h"

#include "base/json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A checkpoint has some hundred tensors and tens of files. */
enum { MAX_FILES = 1000 };

struct agglo_weights {
    char *path, *stem;
    agglo_safetensors **files; /* in order of name */
    size_t n_files;
    const agglo_st_tensor **tensors; /* in order of name; borrowed from the files */
    size_t n_tensors;
    bool hashed;
    agglo_sha256 fingerprint;
};

static int by_tensor_name(const void *a, const void *b)
{
    return strcmp((*(const agglo_st_tensor *const *)a)->name, (*(const agglo_st_tensor *const *)b)->name);
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* ---- the index ---- */

/* A file beside the index and nothing else: no folder, no way up, no hidden file. */
static bool is_plain_name(const char *name)
{
    return name[0] != '\0' && name[0] != '.' && strlen(name) < 256 && strchr(name, '/') == NULL &&
           strchr(name, '\\') == NULL && agglo_weights_ends_in(name, ".safetensors");
}

/* The files that a weight_map names, each once, in order of name; texts are borrowed from the map. */
static agglo_status files_of_map(json_t *map, const char ***out, size_t *n, agglo_err *err)
{
    const char **names = (const char **)agglo_alloc(json_object_size(map), sizeof *names, err), *tensor;
    json_t *value;
    size_t k = 0, n_unique = 0;

    *out = names;
    *n = 0;
    if (names == NULL) {
        return err->status;
    }
    json_object_foreach(map, tensor, value)
    {
        const char *file = json_string_value(value);

        if (file == NULL || !is_plain_name(file)) {
            agglo_fail(err, AGGLO_E_DATA, "\"%.120s\" is not the name of a safetensors file beside the index",
                       file != NULL ? file : "(no text)");
            return agglo_at(err, "weight_map: %.160s", tensor);
        }
        names[k++] = file;
    }
    qsort(names, k, sizeof *names, by_text);
    for (size_t i = 0; i < k; i++) {
        if (n_unique == 0 || strcmp(names[n_unique - 1], names[i]) != 0) {
            names[n_unique++] = names[i];
        }
    }
    if (n_unique > MAX_FILES) {
        return agglo_fail(err, AGGLO_E_DATA, "weight_map names %zu files, at most %d are read", n_unique, MAX_FILES);
    }
    *n = n_unique;
    return AGGLO_OK;
}

static agglo_status find_map(json_t *index, json_t **map, agglo_err *err)
{
    *map = json_is_object(index) ? json_object_get(index, "weight_map") : NULL;
    if (!json_is_object(*map) || json_object_size(*map) == 0) {
        return agglo_fail(err, AGGLO_E_DATA, "there is no weight_map of tensors to files in it");
    }
    return AGGLO_OK;
}

/* What the index says of the tensors against what the files hold: the same names, each in the file it is listed in. */
static agglo_status check_map(const agglo_weights *w, json_t *map, agglo_err *err)
{
    size_t n_found = 0;
    const char *name;
    json_t *value;

    for (size_t f = 0; f < w->n_files; f++) {
        const char *base = agglo_path_base(agglo_safetensors_path(w->files[f]));

        for (size_t i = 0; i < agglo_safetensors_count(w->files[f]); i++) {
            name = agglo_safetensors_at(w->files[f], i)->name;
            value = json_object_get(map, name);
            if (value == NULL) {
                return agglo_fail(err, AGGLO_E_DATA, "%s holds tensor %.120s, which the index does not list", base,
                                  name);
            }
            if (strcmp(json_string_value(value), base) != 0) {
                return agglo_fail(err, AGGLO_E_DATA, "tensor %.120s is in %s, the index lists it in %.60s", name, base,
                                  json_string_value(value));
            }
            n_found++;
        }
    }
    if (n_found == json_object_size(map)) { /* a name comes once in a file, and in one file alone */
        return AGGLO_OK;
    }
    json_object_foreach(map, name, value)
    {
        bool found = false;

        for (size_t f = 0; f < w->n_files && !found; f++) {
            found = agglo_safetensors_find(w->files[f], name) != NULL;
        }
        if (!found) {
            return agglo_fail(err, AGGLO_E_DATA, "tensor %.120s is not in %.60s, where the index lists it", name,
                              json_string_value(value));
        }
    }
    return AGGLO_OK;
}

/* ---- the set ---- */

static agglo_status collect(agglo_weights *w, agglo_err *err)
{
    size_t k = 0;

    for (size_t f = 0; f < w->n_files; f++) {
        w->n_tensors += agglo_safetensors_count(w->files[f]);
    }
    w->tensors = (const agglo_st_tensor **)agglo_alloc(w->n_tensors, sizeof *w->tensors, err);
    if (w->tensors == NULL) {
        return err->status;
    }
    for (size_t f = 0; f < w->n_files; f++) {
        for (size_t i = 0; i < agglo_safetensors_count(w->files[f]); i++) {
            w->tensors[k++] = agglo_safetensors_at(w->files[f], i);
        }
    }
    if (w->n_files > 1) { /* one file's are in order already */
        qsort(w->tensors, w->n_tensors, sizeof *w->tensors, by_tensor_name);
    }
    return AGGLO_OK;
}

static agglo_status set_path(agglo_weights *w, const char *path, agglo_err *err)
{
    static const char *const ends[] = {".safetensors.index.json", ".safetensors"};

    w->path = agglo_strdup(path, err);
    w->stem = w->path != NULL ? agglo_strdup(path, err) : NULL;
    for (size_t i = 0; w->stem != NULL && i < AGGLO_COUNT(ends); i++) {
        if (agglo_weights_ends_in(w->stem, ends[i])) {
            w->stem[strlen(w->stem) - strlen(ends[i])] = '\0';
            break;
        }
    }
    return err->status;
}

agglo_status agglo_weights_gather(agglo_weights **out, const char *path, json_t *index, agglo_weights_opener open,
                                  void *context, agglo_err *err)
{
    agglo_weights *w = (agglo_weights *)agglo_alloc(1, sizeof *w, err);
    const char **names = NULL;
    json_t *map = NULL;
    size_t n = 1;

    *out = NULL;
    if (w == NULL || set_path(w, path, err) != AGGLO_OK) {
        goto fail;
    }
    if (index != NULL && (find_map(index, &map, err) != AGGLO_OK || files_of_map(map, &names, &n, err) != AGGLO_OK)) {
        agglo_at(err, "%s", path);
        goto fail;
    }
    w->files = (agglo_safetensors **)agglo_alloc(n, sizeof(agglo_safetensors *), err);
    if (w->files == NULL) {
        goto fail;
    }
    for (; w->n_files < n; w->n_files++) {
        if (open(context, names != NULL ? names[w->n_files] : NULL, &w->files[w->n_files], err) != AGGLO_OK) {
            goto fail;
        }
    }
    if (map != NULL && check_map(w, map, err) != AGGLO_OK) {
        agglo_at(err, "%s", path);
        goto fail;
    }
    if (collect(w, err) != AGGLO_OK) {
        goto fail;
    }
    agglo_free((void *)names);
    *out = w;
    return AGGLO_OK;
fail:
    agglo_free((void *)names);
    agglo_weights_close(w);
    return agglo_doing(err, "cannot read weights");
}

void agglo_weights_close(agglo_weights *w)
{
    if (w == NULL) {
        return;
    }
    for (size_t f = 0; f < w->n_files; f++) {
        agglo_safetensors_close(w->files[f]);
    }
    agglo_free((void *)w->tensors);
    agglo_free(w->files);
    agglo_free(w->stem);
    agglo_free(w->path);
    agglo_free(w);
}

size_t agglo_weights_count(const agglo_weights *w)
{
    return w->n_tensors;
}

const agglo_st_tensor *agglo_weights_at(const agglo_weights *w, size_t i)
{
    AGGLO_ASSERT(i < w->n_tensors);
    return w->tensors[i];
}

const agglo_st_tensor *agglo_weights_find(const agglo_weights *w, const char *name)
{
    agglo_st_tensor wanted = {.name = name};
    const agglo_st_tensor *key = &wanted;
    const agglo_st_tensor *const *found =
        w->n_tensors > 0 ? (const agglo_st_tensor *const *)bsearch(&key, w->tensors, w->n_tensors, sizeof *w->tensors,
                                                                   by_tensor_name)
                         : NULL;

    return found != NULL ? *found : NULL;
}

const char *agglo_weights_meta(const agglo_weights *w, const char *key)
{
    return w->n_files == 1 ? agglo_safetensors_meta(w->files[0], key) : NULL;
}

const char *agglo_weights_path(const agglo_weights *w)
{
    return w->path;
}

const char *agglo_weights_stem(const agglo_weights *w)
{
    return w->stem;
}

size_t agglo_weights_files(const agglo_weights *w)
{
    return w->n_files;
}

agglo_safetensors *agglo_weights_file(const agglo_weights *w, size_t i)
{
    AGGLO_ASSERT(i < w->n_files);
    return w->files[i];
}

static agglo_status hash_set(agglo_weights *w, agglo_err *err)
{
    agglo_hasher *hasher = NULL;

    if (agglo_hasher_new(&hasher, AGGLO_HASH_SHA256, err) != AGGLO_OK) {
        return err->status;
    }
    for (size_t f = 0; f < w->n_files; f++) {
        const char *name = agglo_path_base(agglo_safetensors_path(w->files[f]));
        agglo_sha256 sha;
        char hex[65];

        if (agglo_safetensors_sha256(w->files[f], &sha, err) != AGGLO_OK ||
            agglo_hasher_add(hasher, agglo_hex(sha.bytes, sizeof sha.bytes, hex), 64, err) != AGGLO_OK ||
            agglo_hasher_add(hasher, "  ", 2, err) != AGGLO_OK ||
            agglo_hasher_add(hasher, name, strlen(name), err) != AGGLO_OK ||
            agglo_hasher_add(hasher, "\n", 1, err) != AGGLO_OK) {
            goto done;
        }
    }
    agglo_hasher_end(hasher, w->fingerprint.bytes, err);
done:
    agglo_hasher_free(hasher);
    return err->status;
}

agglo_status agglo_weights_fingerprint(agglo_weights *w, agglo_sha256 *out, agglo_err *err)
{
    if (!w->hashed && (w->n_files == 1 ? agglo_safetensors_sha256(w->files[0], &w->fingerprint, err)
                                       : hash_set(w, err)) != AGGLO_OK) {
        return err->status;
    }
    w->hashed = true;
    *out = w->fingerprint;
    return AGGLO_OK;
}
