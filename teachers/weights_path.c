/* What a path to weights means: a file, an index, a shard, a directory; and what is told apart and refused. See weights.h. */
#include "base/json.h"
#include "base/log.h"
#include "teachers/weights_impl.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define INDEX_END ".safetensors.index.json"
#define FILE_END  ".safetensors"

/* Of an index: some hundred bytes a tensor, some thousand tensors. */
enum { MAX_INDEX = 16 << 20 };

/* ---- files that are not safetensors, but that people have ---- */

static agglo_status refuse(const char *path, const char *what, agglo_err *err)
{
    agglo_fail(err, AGGLO_E_UNSUPPORTED,
               "%s, which is not read: convert it once with script/convert-weights %.60s OUT.safetensors", what,
               agglo_path_base(path));
    return agglo_at(err, "%s", path);
}

/* A pickle runs code when it is read, so it never is. Told by its first bytes, whatever the name: a zip (torch.save since 1.6, TorchScript), or
 * a bare pickle of protocol 2 to 5 (torch.save before). The same bytes may begin the length of a safetensors header; there the ninth is '{'. */
static agglo_status refuse_pickles(const char *path, agglo_err *err)
{
    uint8_t head[9] = {0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n;

    if (fd < 0) {
        agglo_fail(err, errno == ENOENT ? AGGLO_E_NOT_FOUND : AGGLO_E_IO, "%s", strerror(errno));
        return agglo_at(err, "%s", path);
    }
    n = pread(fd, head, sizeof head, 0);
    close(fd);
    if (n < (ssize_t)sizeof head || head[8] == '{') {
        return AGGLO_OK; /* what it is, or is not, the reader says */
    }
    if (memcmp(head, "PK\3\4", 4) == 0) {
        return refuse(path, "a PyTorch archive (a zip with a pickle in it)", err);
    }
    if (head[0] == 0x80 && head[1] >= 2 && head[1] <= 5) {
        return refuse(path, "a pickle of PyTorch's", err);
    }
    return AGGLO_OK;
}

/* ---- opening ---- */

typedef struct on_disk {
    const char *path; /* of the file, or of the index */
    char *dir;
} on_disk;

static agglo_status open_on_disk(void *context, const char *name, agglo_safetensors **out, agglo_err *err)
{
    on_disk *d = (on_disk *)context;
    char *path = name != NULL ? agglo_path_join(d->dir, name, err) : agglo_strdup(d->path, err);

    *out = NULL;
    if (path != NULL && refuse_pickles(path, err) == AGGLO_OK) {
        agglo_safetensors_open(out, path, err);
    }
    agglo_free(path);
    return err->status;
}

static agglo_status open_file(agglo_weights **out, const char *path, agglo_err *err)
{
    on_disk disk = {.path = path};

    return agglo_weights_gather(out, path, NULL, open_on_disk, &disk, err);
}

static agglo_status open_index(agglo_weights **out, const char *path, agglo_err *err)
{
    on_disk disk = {.path = path, .dir = agglo_path_dir(path, err)};
    json_t *index = NULL;

    *out = NULL;
    if (disk.dir != NULL && agglo_json_read(path, MAX_INDEX, &index, err) == AGGLO_OK) {
        agglo_weights_gather(out, path, index, open_on_disk, &disk, err);
    }
    json_decref(index);
    agglo_free(disk.dir);
    return err->status;
}

/* Length of NAME in NAME-00001-of-00003.safetensors, 0 if it is no such name. */
static size_t shard_stem(const char *path)
{
    static const char pattern[] = "-#####-of-#####" FILE_END;
    size_t n = strlen(path), m = sizeof pattern - 1;

    if (n <= m) {
        return 0;
    }
    for (size_t i = 0; i < m; i++) {
        char c = path[n - m + i];

        if (pattern[i] == '#' ? !isdigit((unsigned char)c) : c != pattern[i]) {
            return 0;
        }
    }
    return n - m;
}

static agglo_status open_shard(agglo_weights **out, const char *path, size_t n_stem, agglo_err *err)
{
    char *index = agglo_format(err, "%.*s%s", (int)n_stem, path, INDEX_END);
    bool found = false;

    *out = NULL;
    if (index != NULL && !agglo_path_exists(index)) {
        agglo_fail(err, AGGLO_E_NOT_FOUND, "one part of a sharded checkpoint, whose index %s is not beside it",
                   agglo_path_base(index));
        agglo_at(err, "%s", path);
        agglo_doing(err, "cannot read weights");
    } else if (index != NULL && open_index(out, index, err) == AGGLO_OK) {
        for (size_t f = 0; f < agglo_weights_files(*out) && !found; f++) {
            found = strcmp(agglo_path_base(agglo_safetensors_path(agglo_weights_file(*out, f))),
                           agglo_path_base(path)) == 0;
        }
        if (!found) {
            agglo_fail(err, AGGLO_E_MISMATCH, "the index beside it, %s, does not list this file",
                       agglo_path_base(index));
            agglo_at(err, "%s", path);
            agglo_doing(err, "cannot read weights");
            agglo_weights_close(*out);
            *out = NULL;
        }
    }
    agglo_free(index);
    return err->status;
}

/* ---- directories ---- */

/* "a, b, c" of at most 200 bytes. */
static char *join_names(char *out, size_t n_bytes, char **names, const size_t *which, size_t n)
{
    size_t used = 0;

    out[0] = '\0';
    for (size_t i = 0; i < n && used + 4 < n_bytes; i++) {
        used += (size_t)snprintf(out + used, n_bytes - used, "%s%s", i > 0 ? ", " : "", names[which[i]]);
    }
    return out;
}

/* Which name of a directory is its weights. Shards are the index's. */
static agglo_status choose(const char *dir, char **names, size_t n, const char **out, agglo_err *err)
{
    static const char *const usual[] = {"model" FILE_END, "model" INDEX_END, "open_clip_model" FILE_END,
                                        "open_clip_model" INDEX_END};
    enum { MOST = 8 };
    size_t candidates[MOST], n_candidates = 0;
    const char *pickle = NULL, *shard = NULL;
    char list[200];

    *out = NULL;
    for (size_t i = 0; i < n; i++) {
        if (shard_stem(names[i]) > 0) {
            shard = shard == NULL ? names[i] : shard;
        } else if (agglo_weights_ends_in(names[i], FILE_END) || agglo_weights_ends_in(names[i], INDEX_END)) {
            if (n_candidates < MOST) {
                candidates[n_candidates++] = i;
            }
        } else if (agglo_weights_ends_in(names[i], ".bin") || agglo_weights_ends_in(names[i], ".pth") ||
                   agglo_weights_ends_in(names[i], ".pt")) {
            pickle = names[i];
        }
    }
    for (size_t k = 0; k < AGGLO_COUNT(usual) && *out == NULL; k++) {
        for (size_t i = 0; i < n && *out == NULL;
             i++) { /* not only the first candidates: they are listed, not searched */
            *out = strcmp(names[i], usual[k]) == 0 ? names[i] : NULL;
        }
    }
    if (*out == NULL && n_candidates == 1) {
        *out = names[candidates[0]];
    }
    if (*out != NULL) {
        if (n_candidates > 1) {
            agglo_log(AGGLO_LOG_WARN, "%s: there are %s; %s is read (name the file to read another)", dir,
                      join_names(list, sizeof list, names, candidates, n_candidates), *out);
        }
        return AGGLO_OK;
    }
    if (n_candidates > 1) {
        agglo_fail(err, AGGLO_E_CONFIG, "there are %s: name the file that is meant",
                   join_names(list, sizeof list, names, candidates, n_candidates));
    } else if (shard != NULL) { /* there is no index at all */
        agglo_fail(err, AGGLO_E_NOT_FOUND,
                   "there are parts of a sharded checkpoint, such as %.80s, but no %.*s" INDEX_END, shard,
                   (int)shard_stem(shard), shard);
    } else if (pickle != NULL) {
        agglo_fail(err, AGGLO_E_UNSUPPORTED,
                   "no safetensors file but %.80s, a pickle: convert it once with script/convert-weights", pickle);
    } else {
        agglo_fail(err, AGGLO_E_NOT_FOUND, "no safetensors file in this folder");
    }
    return agglo_at(err, "%s", dir);
}

static agglo_status open_dir(agglo_weights **out, const char *dir, agglo_err *err)
{
    agglo_arena *arena = NULL;
    const char *name;
    char **names, *path = NULL;
    size_t n;

    *out = NULL;
    if (agglo_arena_new(&arena, 0, err) != AGGLO_OK) {
        goto done;
    }
    if (agglo_list_dir(dir, arena, &names, &n, err) != AGGLO_OK || choose(dir, names, n, &name, err) != AGGLO_OK ||
        (path = agglo_path_join(dir, name, err)) == NULL) {
        goto done;
    }
    if (agglo_weights_ends_in(path, INDEX_END)) {
        open_index(out, path, err);
    } else {
        open_file(out, path, err);
    }
done:
    agglo_free(path);
    agglo_arena_free(arena);
    return err->status != AGGLO_OK ? agglo_doing(err, "cannot read weights") : AGGLO_OK;
}

agglo_status agglo_weights_open(agglo_weights **out, const char *path, agglo_err *err)
{
    size_t n_stem = shard_stem(path);

    if (agglo_path_is_dir(path)) {
        return open_dir(out, path, err);
    }
    if (agglo_weights_ends_in(path, INDEX_END)) {
        return open_index(out, path, err);
    }
    return n_stem > 0 ? open_shard(out, path, n_stem, err) : open_file(out, path, err);
}

/* ---- in memory ---- */

typedef struct in_memory {
    const char *path;
    const agglo_weights_part *parts;
    size_t n_parts;
} in_memory;

static agglo_status open_in_memory(void *context, const char *name, agglo_safetensors **out, agglo_err *err)
{
    const in_memory *m = (const in_memory *)context;

    *out = NULL;
    for (size_t i = 0; i < m->n_parts; i++) {
        if (name == NULL || strcmp(m->parts[i].name, name) == 0) {
            return agglo_safetensors_parse(out, m->parts[i].bytes, m->parts[i].name, err);
        }
    }
    agglo_fail(err, AGGLO_E_NOT_FOUND, "No such file or directory");
    return agglo_at(err, "%s: %.120s", m->path, name != NULL ? name : "");
}

agglo_status agglo_weights_parse(agglo_weights **out, const char *path, agglo_bytes index,
                                 const agglo_weights_part *parts, size_t n_parts, agglo_err *err)
{
    in_memory memory = {path, parts, n_parts};
    json_t *json = NULL;

    *out = NULL;
    AGGLO_ASSERT(index.data != NULL || n_parts == 1);
    if (index.data != NULL && agglo_json_parse((const char *)index.data, index.size, &json, err) != AGGLO_OK) {
        agglo_at(err, "%s", path);
        return agglo_doing(err, "cannot read weights");
    }
    agglo_weights_gather(out, path, json, open_in_memory, &memory, err);
    json_decref(json);
    return err->status;
}
