/* Tar headers are made here rather than by libarchive: their bytes then depend on neither its version nor the locale, and the place of
 * every member is known as it is written. POSIX ustar; a name over 100 bytes gets a PAX header with its path. mtime, uid and gid are 0,
 * the mode 0444, no names: equal samples, equal bytes.
 */
#include "ingest/shard_writer.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

enum {
    BLOCK = 512,
    TAR_END = 1024,
    BUFFER = 1 << 20,
    WRITEBACK =
        8 << 20 /* the system is asked to write that much at a time, so that the sync at the end waits for little */
};

struct agglo_shard_writer {
    char *dir;
    uint64_t max_samples, max_bytes;
    agglo_index_builder *index;
    int fd;     /* of the open shard, -1: none */
    char *part; /* its path */
    agglo_hasher *hasher;
    uint64_t n_bytes, n_samples; /* of the open shard */
    uint64_t n_writeback;        /* bytes that the system was asked to write */
    uint8_t *buffer;             /* the last n_buffered of n_bytes */
    size_t n_buffered;
    uint64_t *keys; /* hashes of its keys, 0: free; a power of two */
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
    w->fd = -1;
    w->dir = agglo_strdup(dir, err);
    w->buffer = w->dir == NULL ? NULL : agglo_alloc(BUFFER, 1, err);
    if (w->buffer == NULL) {
        agglo_shard_writer_free(w);
        return err->status;
    }
    *out = w;
    return AGGLO_OK;
}

void agglo_shard_writer_free(agglo_shard_writer *w)
{
    if (w != NULL) {
        if (w->fd >= 0) {
            close(w->fd);
        }
        agglo_hasher_free(w->hasher);
        agglo_free(w->part);
        agglo_free(w->buffer);
        agglo_free(w->keys);
        agglo_free(w->name);
        agglo_free(w->dir);
        agglo_free(w);
    }
}

static agglo_status flush(agglo_shard_writer *w, agglo_err *err)
{
    if (agglo_fd_write(w->fd, w->buffer, w->n_buffered, err) != AGGLO_OK) {
        return agglo_at(err, "%s", w->part);
    }
    w->n_buffered = 0;
    if (w->n_bytes - w->n_writeback >= WRITEBACK) { /* advice: its failure changes nothing */
        sync_file_range(w->fd, (off_t)w->n_writeback, (off_t)(w->n_bytes - w->n_writeback), SYNC_FILE_RANGE_WRITE);
        w->n_writeback = w->n_bytes;
    }
    return AGGLO_OK;
}

static agglo_status put(agglo_shard_writer *w, const void *data, size_t n, agglo_err *err)
{
    if (agglo_hasher_add(w->hasher, data, n, err) != AGGLO_OK) {
        return err->status;
    }
    if (n > BUFFER - w->n_buffered && flush(w, err) != AGGLO_OK) {
        return err->status;
    }
    w->n_bytes += n;
    if (n > BUFFER) {
        return agglo_fd_write(w->fd, data, n, err) == AGGLO_OK ? AGGLO_OK : agglo_at(err, "%s", w->part);
    }
    memcpy(w->buffer + w->n_buffered, data, n);
    w->n_buffered += n;
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

static char *shard_path(const agglo_shard_writer *w, agglo_err *err)
{
    char base[32];

    return agglo_path_join(w->dir, agglo_shard_name(agglo_index_builder_shards(w->index), base), err);
}

/* Set w->part and start a hash. */
static agglo_status begin_shard(agglo_shard_writer *w, agglo_err *err)
{
    char base[32];

    agglo_free(w->part);
    w->part = agglo_format(err, "%s/.%s.part", w->dir, agglo_shard_name(agglo_index_builder_shards(w->index), base));
    agglo_hasher_free(w->hasher);
    w->hasher = NULL;
    return w->part == NULL ? err->status : agglo_hasher_new(&w->hasher, AGGLO_HASH_XXH3_128, err);
}

static agglo_status open_shard(agglo_shard_writer *w, agglo_err *err)
{
    if (begin_shard(w, err) != AGGLO_OK) {
        return err->status;
    }
    w->fd = open(w->part, O_RDWR | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0666);
    if (w->fd < 0) {
        agglo_fail(err, AGGLO_E_IO, "%s", strerror(errno));
        return agglo_at(err, "%s", w->part);
    }
    w->n_bytes = 0;
    w->n_writeback = 0;
    w->n_buffered = 0;
    agglo_shard_writer_had_shard(w);
    return AGGLO_OK;
}

agglo_status agglo_shard_writer_finish(agglo_shard_writer *w, bool *closed, agglo_err *err)
{
    static const uint8_t end[TAR_END];
    agglo_hash128 fingerprint;
    char *path;

    *closed = false;
    if (w->fd < 0) {
        return AGGLO_OK;
    }
    path = shard_path(w, err);
    if (path == NULL || put(w, end, sizeof end, err) != AGGLO_OK || flush(w, err) != AGGLO_OK ||
        agglo_hasher_end(w->hasher, fingerprint.bytes, err) != AGGLO_OK ||
        agglo_sync_rename(w->fd, w->part, path, err) != AGGLO_OK) {
        agglo_free(path);
        return agglo_doing(err, "cannot write shard");
    }
    agglo_free(path);
    close(w->fd);
    w->fd = -1;
    *closed = true;
    return agglo_index_builder_shard(w->index, w->n_bytes, fingerprint, err);
}

agglo_status agglo_shard_writer_flush(agglo_shard_writer *w, agglo_shard_part *out, agglo_err *err)
{
    *out = (agglo_shard_part){0};
    if (w->fd < 0) {
        return AGGLO_OK;
    }
    if (flush(w, err) != AGGLO_OK) {
        return agglo_doing(err, "cannot write shard");
    }
    *out = (agglo_shard_part){w->n_bytes, w->n_samples, agglo_hasher_so_far(w->hasher)};
    return AGGLO_OK;
}

agglo_status agglo_shard_writer_had_sample(agglo_shard_writer *w, const char *key, agglo_err *err)
{
    if (remember_key(w, key_hash(key), err) == AGGLO_OK) {
        w->n_samples++;
    }
    return err->status;
}

void agglo_shard_writer_had_shard(agglo_shard_writer *w)
{
    w->n_samples = 0;
    if (w->keys != NULL) {
        memset(w->keys, 0, w->n_slots * sizeof *w->keys);
    }
}

/* Take in the first n bytes of the part again: the hash goes on behind them. */
static agglo_status read_part(agglo_shard_writer *w, uint64_t n, agglo_err *err)
{
    for (uint64_t at = 0; at < n;) {
        size_t n_block = n - at < BUFFER ? (size_t)(n - at) : BUFFER;

        if (agglo_fd_read_at(w->fd, at, w->buffer, n_block, err) != AGGLO_OK ||
            agglo_hasher_add(w->hasher, w->buffer, n_block, err) != AGGLO_OK) {
            return err->status;
        }
        at += n_block;
    }
    return AGGLO_OK;
}

agglo_status agglo_shard_writer_resume(agglo_shard_writer *w, const agglo_shard_part *part, bool *ok, agglo_err *err)
{
    agglo_err lost = {0};
    agglo_hash128 hash;
    char *path;

    *ok = true;
    if (part->n_bytes == 0) {
        return AGGLO_OK;
    }
    path = shard_path(w, err);
    if (path == NULL || begin_shard(w, err) != AGGLO_OK) {
        agglo_free(path);
        return err->status;
    }
    /* it may have been finished just before the journal could say so: then it is taken up again */
    if (!agglo_path_exists(w->part)) {
        rename(path, w->part);
    }
    agglo_free(path);
    w->fd = open(w->part, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
    *ok = w->fd >= 0 && read_part(w, part->n_bytes, &lost) == AGGLO_OK;
    if (*ok) {
        hash = agglo_hasher_so_far(w->hasher);
        *ok = memcmp(hash.bytes, part->hash.bytes, sizeof hash.bytes) == 0 && w->n_samples == part->n_samples &&
              ftruncate(w->fd, (off_t)part->n_bytes) == 0 && lseek(w->fd, 0, SEEK_END) == (off_t)part->n_bytes;
    }
    w->n_bytes = part->n_bytes;
    w->n_writeback = part->n_bytes;
    w->n_buffered = 0;
    return AGGLO_OK;
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

agglo_status agglo_shard_writer_fit(agglo_shard_writer *w, const char *key, const agglo_out_member *members,
                                    size_t n_members, bool *closed, agglo_err *err)
{
    *closed = false;
    if (w->fd < 0 ||
        (w->n_samples < w->max_samples && !has_key(w, key_hash(key)) &&
         (w->max_bytes == 0 || w->n_bytes + tar_bytes(key, members, n_members) + TAR_END <= w->max_bytes))) {
        return AGGLO_OK;
    }
    return agglo_shard_writer_finish(w, closed, err);
}

agglo_status agglo_shard_writer_add(agglo_shard_writer *w, agglo_index_sample *sample, const agglo_out_member *members,
                                    size_t n_members, size_t image, agglo_err *err)
{
    if ((w->fd < 0 && open_shard(w, err) != AGGLO_OK) || remember_key(w, key_hash(sample->key), err) != AGGLO_OK) {
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
