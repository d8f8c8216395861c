/* Tar headers are made here rather than by libarchive: their bytes then depend on neither its version nor the locale, and the place of
 * every member is known as it is written. POSIX ustar; a name over 100 bytes gets a PAX header with its path. mtime, uid and gid are 0,
 * the mode 0444, no names: equal samples, equal bytes.
 */
#include "ingest/shard_writer.h"

#include <stdio.h>

enum { BLOCK = 512, TAR_END = 1024 };

struct agglo_shard_writer {
    char *dir;
    uint64_t max_samples, max_bytes;
    agglo_index_builder *index;
    agglo_new_file *file; /* of the open shard, NULL: none */
    agglo_hasher *hasher;
    uint64_t n_bytes, n_samples; /* of the open shard */
    uint64_t *keys;              /* hashes of its keys, 0: free; a power of two */
    size_t n_slots;
    char *name; /* of the member being written */
    size_t name_room;
};

const char *agglo_shard_name(uint32_t k, char out[32])
{
    snprintf(out, 32, "%06u.tar", k);
    return out;
}

agglo_status agglo_shard_writer_new(agglo_shard_writer **out, const char *dir, uint64_t max_samples, uint64_t max_bytes,
                                    agglo_index_builder *index, agglo_err *err)
{
    agglo_shard_writer *w = agglo_alloc(1, sizeof *w, err);

    *out = NULL;
    if (w == NULL) {
        return err->status;
    }
    w->max_samples = max_samples;
    w->max_bytes = max_bytes;
    w->index = index;
    w->dir = agglo_strdup(dir, err);
    if (w->dir == NULL) {
        agglo_shard_writer_free(w);
        return err->status;
    }
    *out = w;
    return AGGLO_OK;
}

void agglo_shard_writer_free(agglo_shard_writer *w)
{
    if (w != NULL) {
        agglo_new_file_abort(w->file);
        agglo_hasher_free(w->hasher);
        agglo_free(w->keys);
        agglo_free(w->name);
        agglo_free(w->dir);
        agglo_free(w);
    }
}

static agglo_status put(agglo_shard_writer *w, const void *data, size_t n, agglo_err *err)
{
    if (n == 0) {
        return AGGLO_OK;
    }
    if (agglo_hasher_add(w->hasher, data, n, err) != AGGLO_OK ||
        agglo_new_file_write(w->file, data, n, err) != AGGLO_OK) {
        return err->status;
    }
    w->n_bytes += n;
    return AGGLO_OK;
}

static agglo_status put_padding(agglo_shard_writer *w, agglo_err *err)
{
    static const uint8_t zeros[BLOCK];

    return put(w, zeros, (size_t)(-w->n_bytes & (BLOCK - 1)), err);
}

/* `name` is cut at 100 bytes; a longer one stands in a PAX header before this one. */
static agglo_status put_header(agglo_shard_writer *w, const char *name, uint64_t n_bytes, char type, agglo_err *err)
{
    char header[BLOCK] = {0};
    unsigned sum = 0;
    size_t n = strlen(name);

    AGGLO_ASSERT(n_bytes < (uint64_t)1 << 33); /* eleven octal digits */
    memcpy(header, name, n < 100 ? n : 100);
    memcpy(header + 100, "0000444", 8);
    memcpy(header + 108, "0000000", 8);
    memcpy(header + 116, "0000000", 8);
    snprintf(header + 124, 12, "%011llo", (unsigned long long)n_bytes);
    memcpy(header + 136, "00000000000", 12);
    memset(header + 148, ' ', 8);
    header[156] = type;
    memcpy(header + 257,
           "ustar\0"
           "00",
           8);
    for (size_t i = 0; i < BLOCK; i++) {
        sum += (uint8_t)header[i];
    }
    snprintf(header + 148, 8, "%06o", sum); /* and the space that was there */
    return put(w, header, BLOCK, err);
}

/* A PAX record counts its own length's digits. */
static agglo_status put_pax_path(agglo_shard_writer *w, const char *name, agglo_err *err)
{
    char digits[24];
    size_t rest = strlen(" path=\n") + strlen(name), n_digits = 1, total;

    while ((size_t)snprintf(digits, sizeof digits, "%zu", rest + n_digits) != n_digits) {
        n_digits++;
    }
    total = rest + n_digits;
    if (put_header(w, "././@PaxHeader", total, 'x', err) != AGGLO_OK || put(w, digits, n_digits, err) != AGGLO_OK ||
        put(w, " path=", 6, err) != AGGLO_OK || put(w, name, strlen(name), err) != AGGLO_OK ||
        put(w, "\n", 1, err) != AGGLO_OK) {
        return err->status;
    }
    return put_padding(w, err);
}

static agglo_status put_member(agglo_shard_writer *w, const char *key, const agglo_out_member *member, uint64_t *offset,
                               agglo_err *err)
{
    size_t need = strlen(key) + strlen(member->ext) + 2;

    if (w->name_room < need) {
        char *name = agglo_realloc(w->name, w->name_room, need * 2, err);

        if (name == NULL) {
            return err->status;
        }
        w->name = name;
        w->name_room = need * 2;
    }
    snprintf(w->name, w->name_room, "%s.%s", key, member->ext);
    if (need - 1 > 100 && put_pax_path(w, w->name, err) != AGGLO_OK) {
        return err->status;
    }
    if (put_header(w, w->name, member->data.size, '0', err) != AGGLO_OK) {
        return err->status;
    }
    *offset = w->n_bytes;
    if (put(w, member->data.data, member->data.size, err) != AGGLO_OK) {
        return err->status;
    }
    return put_padding(w, err);
}

static uint64_t key_hash(const char *key)
{
    uint64_t hash = agglo_xxh3_64(key, strlen(key));

    return hash == 0 ? 1 : hash;
}

/* True when the open shard has this key (or one with the same hash, which costs a cut and nothing else). */
static bool has_key(const agglo_shard_writer *w, uint64_t hash)
{
    if (w->n_samples == 0) {
        return false;
    }
    for (size_t at = (size_t)hash & (w->n_slots - 1); w->keys[at] != 0; at = (at + 1) & (w->n_slots - 1)) {
        if (w->keys[at] == hash) {
            return true;
        }
    }
    return false;
}

static void insert_key(uint64_t *keys, size_t n_slots, uint64_t hash)
{
    size_t at = (size_t)hash & (n_slots - 1);

    while (keys[at] != 0) {
        at = (at + 1) & (n_slots - 1);
    }
    keys[at] = hash;
}

static agglo_status remember_key(agglo_shard_writer *w, uint64_t hash, agglo_err *err)
{
    if ((w->n_samples + 1) * 2 > w->n_slots) {
        size_t n_slots = w->n_slots == 0 ? 1024 : w->n_slots * 2;
        uint64_t *keys = agglo_alloc(n_slots, sizeof *keys, err);

        if (keys == NULL) {
            return err->status;
        }
        for (size_t i = 0; i < w->n_slots; i++) {
            if (w->keys[i] != 0) {
                insert_key(keys, n_slots, w->keys[i]);
            }
        }
        agglo_free(w->keys);
        w->keys = keys;
        w->n_slots = n_slots;
    }
    insert_key(w->keys, w->n_slots, hash);
    return AGGLO_OK;
}

static agglo_status open_shard(agglo_shard_writer *w, agglo_err *err)
{
    char base[32];
    char *path = agglo_path_join(w->dir, agglo_shard_name(agglo_index_builder_shards(w->index), base), err);

    if (path == NULL || agglo_hasher_new(&w->hasher, AGGLO_HASH_XXH3_128, err) != AGGLO_OK ||
        agglo_new_file_open(&w->file, path, NULL, err) != AGGLO_OK) {
        agglo_free(path);
        return err->status;
    }
    agglo_free(path);
    w->n_bytes = 0;
    w->n_samples = 0;
    if (w->keys != NULL) {
        memset(w->keys, 0, w->n_slots * sizeof *w->keys);
    }
    return AGGLO_OK;
}

agglo_status agglo_shard_writer_finish(agglo_shard_writer *w, agglo_err *err)
{
    static const uint8_t end[TAR_END];
    agglo_new_file *file = w->file;
    agglo_hash128 fingerprint;

    if (file == NULL) {
        return AGGLO_OK;
    }
    if (put(w, end, sizeof end, err) != AGGLO_OK || agglo_hasher_end(w->hasher, fingerprint.bytes, err) != AGGLO_OK) {
        return agglo_doing(err, "cannot write shard");
    }
    agglo_hasher_free(w->hasher);
    w->hasher = NULL;
    w->file = NULL;
    if (agglo_new_file_commit(file, err) != AGGLO_OK) {
        return agglo_doing(err, "cannot write shard");
    }
    return agglo_index_builder_shard(w->index, w->n_bytes, fingerprint, err);
}

static uint64_t tar_bytes(const char *key, const agglo_out_member *members, size_t n)
{
    uint64_t total = 0;

    for (size_t i = 0; i < n; i++) {
        size_t n_name = strlen(key) + 1 + strlen(members[i].ext);

        total += BLOCK + ((members[i].data.size + BLOCK - 1) & ~(uint64_t)(BLOCK - 1));
        total += n_name > 100 ? 2 * BLOCK + n_name : 0; /* near enough */
    }
    return total;
}

agglo_status agglo_shard_writer_add(agglo_shard_writer *w, agglo_index_sample *sample, const agglo_out_member *members,
                                    size_t n_members, size_t image, agglo_err *err)
{
    uint64_t hash = key_hash(sample->key), more = tar_bytes(sample->key, members, n_members);

    if (w->file != NULL && (w->n_samples >= w->max_samples || has_key(w, hash) ||
                            (w->max_bytes > 0 && w->n_bytes + more + TAR_END > w->max_bytes))) {
        if (agglo_shard_writer_finish(w, err) != AGGLO_OK) {
            return err->status;
        }
    }
    if ((w->file == NULL && open_shard(w, err) != AGGLO_OK) || remember_key(w, hash, err) != AGGLO_OK) {
        return agglo_doing(err, "cannot write shard");
    }
    for (size_t i = 0; i < n_members; i++) {
        uint64_t offset = 0;

        if (put_member(w, sample->key, &members[i], &offset, err) != AGGLO_OK) {
            return agglo_doing(err, "cannot write shard");
        }
        if (i == image) {
            sample->image_offset = offset;
            sample->image_bytes = (uint32_t)members[i].data.size;
        } else if (members[i].data.size > 0 && strcmp(members[i].ext, "json") == 0) {
            sample->json_offset = offset;
            sample->json_bytes = (uint32_t)members[i].data.size;
        } else if (members[i].data.size > 0 && strcmp(members[i].ext, "txt") == 0) {
            sample->caption_offset = offset;
            sample->caption_bytes = (uint32_t)members[i].data.size;
        }
    }
    w->n_samples++;
    return agglo_index_builder_add(w->index, sample, err);
}
