/* Features to files. In memory stand one picture's features, 16 bytes (in a hash table) for every key that was given out, and the names of
 * the files that wait for the end. */
#include "cli/embed_out.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/hash.h"
#include "base/npy.h"
#include "base/safetensors.h"
#include "ingest/safe_key.h"
#include "ingest/uid_set.h"

struct agglo_embed_out {
    char *path; /* of the folder, or of the first file without ".safetensors" */
    bool folder;
    agglo_encoder_info info;
    agglo_dtype dtype;
    bool spatial;
    const json_t *facts;
    uint64_t most, in_file;    /* pictures */
    agglo_st_stream **streams; /* files in their order: all but the last are sealed, none has its name yet */
    int n_files, room;
    agglo_uid_set *keys;
    uint64_t n_bytes;
    uint8_t *values; /* converted */
    int64_t grid;
};

/* ---- keys ---- */

/* Harmless and not given out before. */
static agglo_status own_key(agglo_embed_out *o, const char *key, uint64_t number, char *out, agglo_err *err)
{
    bool known = true;
    size_t n;

    agglo_safe_key(key, out, AGGLO_SAFE_KEY_BYTES);
    n = strlen(out);
    AGGLO_ASSERT(n + 48 < AGGLO_SAFE_KEY_BYTES);
    for (unsigned round = 0; known; round++) {
        agglo_hash128 hash;

        if (round == 1) {
            snprintf(out + n, AGGLO_SAFE_KEY_BYTES - n, "~%llu", (unsigned long long)number);
        } else if (round > 1) { /* an earlier picture was called so: its file had such a name */
            snprintf(out + n, AGGLO_SAFE_KEY_BYTES - n, "~%llu~%u", (unsigned long long)number, round);
        }
        hash = agglo_xxh3_128(out, strlen(out));
        if (agglo_uid_set_add(o->keys, hash.bytes, &known, err) != AGGLO_OK) {
            return err->status;
        }
    }
    return AGGLO_OK;
}

/* ---- files ---- */

static char *file_name(const agglo_embed_out *o, int number, agglo_err *err)
{
    return number == 1 ? agglo_format(err, "%s.safetensors", o->path)
                       : agglo_format(err, "%s-%d.safetensors", o->path, number);
}

#define PART "part" /* in the metadata of further files: their number */

/* Is what stands under this name the further file `number` that an earlier run wrote? Our metadata come first in the header and `part` last in
 * them; a quote within a value would have a backslash before it, so the text cannot be part of one. */
static bool is_part(const char *path, int number)
{
    enum { PREFIX = 8, HEAD = 4096 };
    static const char begin[] = "{\"__metadata__\":{";
    uint8_t head[HEAD];
    char part[32];
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    ssize_t n = fd >= 0 ? pread(fd, head, sizeof head, 0) : -1;

    if (fd >= 0) {
        close(fd);
    }
    snprintf(part, sizeof part, ",\"" PART "\":\"%d\"}", number);
    return n > PREFIX + (ssize_t)sizeof begin && memcmp(head + PREFIX, begin, sizeof begin - 1) == 0 &&
           memmem(head, (size_t)n, part, strlen(part)) != NULL;
}

/* Whether file `number` may take its name: nothing is there, or what an earlier run left. Of others' files none is replaced. */
static agglo_status check_name(const agglo_embed_out *o, int number, const char *path, agglo_status otherwise,
                               agglo_err *err)
{
    struct stat info;

    if (number > 1 && lstat(path, &info) == 0 && !is_part(path, number)) {
        agglo_fail(err, otherwise, "%s is there, and is not file %d of an earlier %s.safetensors", path, number,
                   o->path);
        return agglo_doing(err, "cannot write numbered files");
    }
    return AGGLO_OK;
}

/* Numbered files are wanted: that a name is not ours is better said before the model has run for hours. Looked at are the numbers in their
 * order, up to the first that an earlier run did not write. */
static agglo_status check_names(const agglo_embed_out *o, agglo_err *err)
{
    bool ours = true;

    for (int number = 2; ours && err->status == AGGLO_OK; number++) {
        char *path = file_name(o, number, err);

        ours = path != NULL && is_part(path, number);
        if (path != NULL && !ours) {
            check_name(o, number, path, AGGLO_E_CONFIG, err);
        }
        agglo_free(path);
    }
    return err->status;
}

/* The number of a further file in a name without its folder; 0: it is none. */
static int number_in(const char *name, const char *base)
{
    size_t n = strlen(base), n_digits = 0;
    int number = 0;

    if (strncmp(name, base, n) != 0 || name[n] != '-' || name[n + 1] == '0') {
        return 0;
    }
    for (const char *digit = name + n + 1; *digit >= '0' && *digit <= '9' && n_digits < 9; digit++, n_digits++) {
        number = 10 * number + (*digit - '0');
    }
    return strcmp(name + n + 1 + n_digits, ".safetensors") == 0 ? number : 0;
}

/* Remove the files of an earlier run that this one has no successor for. */
static agglo_status remove_old(const agglo_embed_out *o, agglo_err *err)
{
    agglo_arena *arena = NULL;
    char **names, *dir = agglo_path_dir(o->path, err);
    size_t n = 0;

    if (dir == NULL || agglo_arena_new(&arena, 0, err) != AGGLO_OK ||
        agglo_list_dir(dir, arena, &names, &n, err) != AGGLO_OK) {
        n = 0;
    }
    for (size_t i = 0; i < n && err->status == AGGLO_OK; i++) {
        int number = number_in(names[i], agglo_path_base(o->path));
        char *path = number > o->n_files ? agglo_path_join(dir, names[i], err) : NULL;

        if (path != NULL && is_part(path, number) && unlink(path) != 0) {
            agglo_fail(err, AGGLO_E_IO, "%s", strerror(errno));
            agglo_at(err, "%s", path);
            agglo_doing(err, "cannot remove a file of an earlier run");
        }
        agglo_free(path);
    }
    agglo_arena_free(arena);
    agglo_free(dir);
    return err->status;
}

static agglo_status open_stream(agglo_embed_out *o, agglo_err *err)
{
    char *name = file_name(o, o->n_files + 1, err), number[16];
    const char *key;
    json_t *value;

    if (o->n_files == o->room) {
        int room = 2 * o->room + 4;
        agglo_st_stream **more =
            agglo_realloc(o->streams, (size_t)o->room * sizeof *more, (size_t)room * sizeof *more, err);

        if (more != NULL) {
            o->streams = more;
            o->room = room;
        }
    }
    if (name != NULL && err->status == AGGLO_OK &&
        check_name(o, o->n_files + 1, name, AGGLO_E_MISMATCH, err) == AGGLO_OK &&
        agglo_st_stream_open(&o->streams[o->n_files], name, err) == AGGLO_OK) {
        agglo_st_stream *stream = o->streams[o->n_files++];

        json_object_foreach((json_t *)(uintptr_t)o->facts, key, value)
        {
            if (err->status == AGGLO_OK) {
                agglo_st_stream_meta(stream, key, json_string_value(value), err);
            }
        }
        snprintf(number, sizeof number, "%d", o->n_files);
        if (o->n_files > 1 && err->status == AGGLO_OK) {
            agglo_st_stream_meta(stream, PART, number, err);
        }
        o->in_file = 0;
    }
    agglo_free(name);
    return err->status;
}

/* The file is full: it waits for the end under its temporary name. */
static agglo_status seal_stream(agglo_embed_out *o, agglo_err *err)
{
    agglo_st_stream *stream = o->streams[o->n_files - 1];

    if (agglo_st_stream_seal(stream, err) == AGGLO_OK) {
        o->n_bytes += agglo_st_stream_size(stream);
    }
    return err->status;
}

/* All files take their names, the first one last; then what an earlier run had more of goes. */
static agglo_status publish(agglo_embed_out *o, json_t *files, agglo_err *err)
{
    for (int i = o->n_files - 1; i >= 0 && err->status == AGGLO_OK; i--) {
        agglo_st_stream *stream = o->streams[i];

        o->streams[i] = NULL;
        agglo_st_stream_commit(stream, err);
    }
    if (err->status != AGGLO_OK || remove_old(o, err) != AGGLO_OK) {
        return err->status;
    }
    for (int number = 1; number <= o->n_files && err->status == AGGLO_OK; number++) {
        char *name = file_name(o, number, err);

        json_array_append_new(files, name != NULL ? json_string(name) : NULL);
        agglo_free(name);
    }
    return err->status;
}

bool agglo_embed_out_is_file(const char *path)
{
    static const char end[] = ".safetensors";
    size_t n = strlen(path), m = sizeof end - 1;

    return n > m && strcmp(path + n - m, end) == 0;
}

/* A folder holds features of one kind: what embed.json says must be what is about to be written. */
static agglo_status write_facts(const agglo_embed_out *o, agglo_err *err)
{
    char *path = agglo_path_join(o->path, "embed.json", err);
    json_t *there = NULL, *value;
    const char *key;

    if (path != NULL && agglo_path_exists(path) && agglo_json_read(path, 1 << 20, &there, err) == AGGLO_OK) {
        json_object_foreach((json_t *)(uintptr_t)o->facts, key, value)
        {
            const char *old = json_string_value(json_object_get(there, key));

            if (err->status == AGGLO_OK && (old == NULL || strcmp(old, json_string_value(value)) != 0)) {
                agglo_fail(err, AGGLO_E_MISMATCH,
                           "the folder holds features of another kind: %s is %.80s there and %.80s here", key,
                           old != NULL ? old : "not said", json_string_value(value));
                agglo_at(err, "%s", path);
            }
        }
        json_decref(there);
    } else if (path != NULL && err->status == AGGLO_OK) {
        agglo_json_write(path, o->facts, err);
    }
    agglo_free(path);
    return err->status;
}

agglo_status agglo_embed_out_open(agglo_embed_out **out, const char *path, const agglo_encoder_info *info, bool spatial,
                                  agglo_dtype dtype, uint64_t most, const json_t *facts, agglo_err *err)
{
    agglo_embed_out *o = agglo_alloc(1, sizeof *o, err);
    size_t n_values;

    *out = NULL;
    if (o == NULL || (o->path = agglo_strdup(path, err)) == NULL || agglo_uid_set_new(&o->keys, 0, err) != AGGLO_OK) {
        goto fail;
    }
    o->folder = !agglo_embed_out_is_file(path);
    o->info = *info;
    o->spatial = spatial;
    o->dtype = dtype;
    o->most = most;
    o->facts = facts;
    o->grid = info->preprocess.size / info->patch;
    n_values = spatial ? (size_t)(o->grid * o->grid) * (size_t)info->spatial_dim : 0;
    n_values = n_values > (size_t)info->summary_dim ? n_values : (size_t)info->summary_dim;
    o->values = agglo_alloc(n_values, sizeof(float), err);
    if (o->values == NULL) {
        goto fail;
    }
    if (!o->folder) {
        o->path[strlen(path) - strlen(".safetensors")] = '\0';
        if ((most > 0 && check_names(o, err) != AGGLO_OK) || open_stream(o, err) != AGGLO_OK) {
            goto fail;
        }
    } else if (agglo_make_dirs(path, err) != AGGLO_OK || write_facts(o, err) != AGGLO_OK) {
        goto fail;
    }
    *out = o;
    return AGGLO_OK;
fail:
    agglo_embed_out_abort(o);
    return err->status;
}

/* ---- features ---- */

/* Rounded to the type; false: a value became infinite. */
static bool convert(agglo_embed_out *o, const float *values, size_t n)
{
    bool fits = true;

    agglo_dtype_from_f32(o->values, values, o->dtype, n);
    if (o->dtype == AGGLO_F16) {
        for (size_t i = 0; i < n; i++) {
            fits &= (agglo_le16(o->values + 2 * i) & 0x7c00u) != 0x7c00u;
        }
    }
    return fits;
}

/* The folder of a picture's files below o->path, made if need be. What stands there already may be in the way: a file where the key has a
 * folder, a folder where it has a file, names too long for this file system. That is the key's fault (AGGLO_E_DATA), all else the folder's. */
static agglo_status make_room(const agglo_embed_out *o, const char *key, bool spatial, agglo_err *err)
{
    static const char *const ends[] = {"summary", "spatial"};
    struct stat info;

    for (int i = 0; i < 1 + spatial && err->status == AGGLO_OK; i++) {
        char *name = agglo_format(err, "%s.%s.npy", key, ends[i]);
        char *path = name != NULL ? agglo_path_join(o->path, name, err) : NULL;
        char *dir = path != NULL ? agglo_path_dir(path, err) : NULL;
        if (dir != NULL && agglo_make_dirs(dir, err) != AGGLO_OK) {
            bool in_the_way = stat(dir, &info) == 0 || errno == ENOTDIR || errno == ENAMETOOLONG || errno == ELOOP;

            if (in_the_way) {
                agglo_fail(err, AGGLO_E_DATA, "there can be no folder for its key, %.200s", key);
            }
        } else if (dir != NULL) {
            bool there = lstat(path, &info) == 0;

            if (there ? S_ISDIR(info.st_mode) : errno == ENAMETOOLONG) {
                agglo_fail(err, AGGLO_E_DATA, "there can be no file for its key, %.200s", key);
            }
        }
        agglo_free(dir);
        agglo_free(path);
        agglo_free(name);
    }
    return err->status;
}

static agglo_status put(agglo_embed_out *o, const char *key, const char *what, int rank, const int64_t *shape,
                        agglo_err *err)
{
    char *name = agglo_format(err, "%s%c%s", key, o->folder ? '.' : '/', what), *file, *path;

    if (name == NULL) {
        return err->status;
    }
    if (!o->folder) {
        agglo_st_stream_add(o->streams[o->n_files - 1], name, o->dtype, rank, shape, o->values, err);
        agglo_free(name);
        return err->status;
    }
    file = agglo_format(err, "%s.npy", name);
    path = file != NULL ? agglo_path_join(o->path, file, err) : NULL;
    if (path != NULL && agglo_npy_write(path, o->dtype, rank, shape, o->values, err) == AGGLO_OK) {
        size_t n_bytes = agglo_dtype_size(o->dtype);

        for (int i = 0; i < rank; i++) {
            n_bytes *= (size_t)shape[i];
        }
        o->n_bytes += n_bytes;
    }
    agglo_free(path);
    agglo_free(file);
    agglo_free(name);
    return err->status;
}

agglo_status agglo_embed_out_add(agglo_embed_out *o, const char *key, uint64_t number, const float *summary,
                                 const float *spatial, bool *refused, agglo_err *err)
{
    const int64_t shape[] = {o->info.summary_dim}, grid[] = {o->grid, o->grid, o->info.spatial_dim};
    const size_t n_summary = (size_t)o->info.summary_dim, n_spatial = (size_t)(o->grid * o->grid * o->info.spatial_dim);
    char own[AGGLO_SAFE_KEY_BYTES];
    size_t n_names;

    AGGLO_ASSERT((spatial != NULL) == o->spatial);
    /* both are looked at before either is written, so that a refused picture leaves nothing */
    if ((spatial != NULL && !convert(o, spatial, n_spatial)) || !convert(o, summary, n_summary)) {
        agglo_fail(err, AGGLO_E_DATA, "its features do not fit %s", agglo_dtype_name(o->dtype));
        *refused = true;
        return AGGLO_OK;
    }
    if (own_key(o, key, number, own, err) != AGGLO_OK ||
        (o->folder && make_room(o, own, spatial != NULL, err) != AGGLO_OK)) {
        *refused = err->status == AGGLO_E_DATA;
        return *refused ? AGGLO_OK : err->status;
    }
    n_names = spatial != NULL ? 2 : 1;
    if (!o->folder && o->in_file > 0 &&
        ((o->most > 0 && o->in_file == o->most) ||
         !agglo_st_stream_fits(o->streams[o->n_files - 1], n_names, n_names * (strlen(own) + 8))) &&
        (seal_stream(o, err) != AGGLO_OK || open_stream(o, err) != AGGLO_OK)) {
        return err->status;
    }
    o->in_file++;
    if (put(o, own, "summary", 1, shape, err) == AGGLO_OK && spatial != NULL) {
        convert(o, spatial, n_spatial);
        put(o, own, "spatial", 3, grid, err);
    }
    return err->status;
}

agglo_status agglo_embed_out_close(agglo_embed_out *o, json_t *files, uint64_t *n_bytes, agglo_err *err)
{
    if (!o->folder && seal_stream(o, err) == AGGLO_OK) {
        publish(o, files, err);
    }
    *n_bytes = o->n_bytes;
    agglo_embed_out_abort(o);
    return err->status;
}

void agglo_embed_out_abort(agglo_embed_out *o)
{
    if (o != NULL) {
        for (int i = 0; i < o->n_files; i++) {
            agglo_st_stream_abort(o->streams[i]);
        }
        agglo_free(o->streams);
        agglo_uid_set_free(o->keys);
        agglo_free(o->values);
        agglo_free(o->path);
        agglo_free(o);
    }
}
