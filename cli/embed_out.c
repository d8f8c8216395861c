/* Features to files. In memory stand one picture's features and 16 bytes (in a hash table) for every key that was given out. */
#include "cli/embed_out.h"

#include <stdio.h>
#include <string.h>

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
    uint64_t most, in_file; /* pictures */
    int n_files;
    agglo_st_stream *stream;
    agglo_uid_set *keys;
    json_t *files;
    uint64_t n_bytes;
    uint8_t *values; /* converted */
    int64_t grid;
};

/* ---- keys ---- */

/* Harmless and not given out before. */
static agglo_status own_key(agglo_embed_out *o, const char *key, uint64_t number, char *out, agglo_err *err)
{
    bool known = true;

    agglo_safe_key(key, out, AGGLO_SAFE_KEY_BYTES);
    for (int round = 0; known; round++) {
        size_t n = strlen(out);
        agglo_hash128 hash;

        if (round > 0) {
            AGGLO_ASSERT(n + 24 < AGGLO_SAFE_KEY_BYTES);
            snprintf(out + n, AGGLO_SAFE_KEY_BYTES - n, "~%llu", (unsigned long long)number);
        }
        hash = agglo_xxh3_128(out, strlen(out));
        if (agglo_uid_set_add(o->keys, hash.bytes, &known, err) != AGGLO_OK) {
            return err->status;
        }
        if (known && round == 1) { /* somebody's joke: an earlier picture was called so */
            return agglo_fail(err, AGGLO_E_DATA, "no key is left for it");
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

static agglo_status open_stream(agglo_embed_out *o, agglo_err *err)
{
    char *name = file_name(o, o->n_files + 1, err);
    const char *key;
    json_t *value;

    if (name != NULL && agglo_st_stream_open(&o->stream, name, err) == AGGLO_OK) {
        json_object_foreach((json_t *)(uintptr_t)o->facts, key, value)
        {
            if (err->status == AGGLO_OK) {
                agglo_st_stream_meta(o->stream, key, json_string_value(value), err);
            }
        }
        o->n_files++;
        o->in_file = 0;
    }
    agglo_free(name);
    return err->status;
}

static agglo_status close_stream(agglo_embed_out *o, agglo_err *err)
{
    agglo_st_stream *stream = o->stream;
    char *name = file_name(o, o->n_files, err);

    if (name == NULL) {
        return err->status;
    }
    o->n_bytes += agglo_st_stream_size(stream);
    o->stream = NULL;
    if (agglo_st_stream_commit(stream, err) == AGGLO_OK) {
        json_array_append_new(o->files, json_string(name));
    }
    agglo_free(name);
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
    if (o == NULL || (o->path = agglo_strdup(path, err)) == NULL || agglo_uid_set_new(&o->keys, 0, err) != AGGLO_OK ||
        (o->files = json_array()) == NULL) {
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
        if (open_stream(o, err) != AGGLO_OK) {
            goto fail;
        }
    } else if (agglo_make_dirs(path, err) != AGGLO_OK || write_facts(o, err) != AGGLO_OK) {
        goto fail;
    }
    *out = o;
    return AGGLO_OK;
fail:
    agglo_embed_out_abort(o);
    return err->status == AGGLO_OK ? agglo_fail(err, AGGLO_E_MEMORY, "out of memory for the output") : err->status;
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

static agglo_status put(agglo_embed_out *o, const char *key, const char *what, int rank, const int64_t *shape,
                        agglo_err *err)
{
    char *name = agglo_format(err, "%s%c%s", key, o->folder ? '.' : '/', what), *file, *path, *dir;

    if (name == NULL) {
        return err->status;
    }
    if (!o->folder) {
        agglo_st_stream_add(o->stream, name, o->dtype, rank, shape, o->values, err);
        agglo_free(name);
        return err->status;
    }
    file = agglo_format(err, "%s.npy", name);
    path = file != NULL ? agglo_path_join(o->path, file, err) : NULL;
    dir = path != NULL ? agglo_path_dir(path, err) : NULL;
    if (dir != NULL && agglo_make_dirs(dir, err) == AGGLO_OK &&
        agglo_npy_write(path, o->dtype, rank, shape, o->values, err) == AGGLO_OK) {
        size_t n_bytes = agglo_dtype_size(o->dtype);

        for (int i = 0; i < rank; i++) {
            n_bytes *= (size_t)shape[i];
        }
        o->n_bytes += n_bytes;
    }
    agglo_free(dir);
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
    if (own_key(o, key, number, own, err) != AGGLO_OK) {
        *refused = err->status == AGGLO_E_DATA;
        return *refused ? AGGLO_OK : err->status;
    }
    n_names = spatial != NULL ? 2 : 1;
    if (!o->folder && o->in_file > 0 &&
        ((o->most > 0 && o->in_file == o->most) ||
         !agglo_st_stream_fits(o->stream, n_names, n_names * (strlen(own) + 8))) &&
        (close_stream(o, err) != AGGLO_OK || open_stream(o, err) != AGGLO_OK)) {
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
    if (!o->folder) {
        close_stream(o, err);
    }
    json_array_extend(files, o->files);
    *n_bytes = o->n_bytes;
    agglo_embed_out_abort(o);
    return err->status;
}

void agglo_embed_out_abort(agglo_embed_out *o)
{
    if (o != NULL) {
        agglo_st_stream_abort(o->stream);
        agglo_uid_set_free(o->keys);
        json_decref(o->files);
        agglo_free(o->values);
        agglo_free(o->path);
        agglo_free(o);
    }
}
