/* LMDB files, written once and then only read: the one file that includes lmdb.h.
 *
 * Writing is append-only (MDB_APPEND packs pages full), in transactions cut by payload bytes and never by time, without syncs until the
 * last. LMDB zeroes the pages that it allocates and writes neither clock nor address, so equal work gives equal bytes.
 * Reading uses a short transaction for every get: with MDB_NOLOCK it takes no lock and writes nothing shared (some 100 ns), and because
 * the file never changes, a value outlives its transaction for as long as the map stands.
 */
#include "cache/lmdb_file.h"

#include <errno.h>
#include <lmdb.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/fs.h"

#define KEY_BYTES         5
#define TRANSACTION_BYTES (UINT64_C(64) << 20)
#define MAP_BYTES_MAX     ((size_t)1 << 46) /* half of the address space that x86-64 gives a process */
#define FILE_MODE         0644

struct agglo_lmdb_writer {
    MDB_env *env;
    MDB_txn *txn;
    MDB_dbi dbi;
    uint64_t n_pending; /* payload bytes in the open transaction */
    char *path;
};

struct agglo_lmdb_reader {
    MDB_env *env;
    MDB_dbi dbi;
    uint64_t n_records;
};

static void put_key(uint8_t key[KEY_BYTES], uint32_t ordinal, int view)
{
    AGGLO_ASSERT(view >= 0 && view <= UINT8_MAX);
    agglo_put_be32(key, ordinal);
    key[4] = (uint8_t)view;
}

/* LMDB's own codes are negative; positive ones are errno. */
static agglo_status lmdb_fail(agglo_err *err, int code)
{
    agglo_status status = code == ENOMEM ? AGGLO_E_MEMORY : code > 0 ? AGGLO_E_IO : AGGLO_E_DATA;

    return agglo_fail(err, status, "%s", mdb_strerror(code));
}

/* ---- writing ---- */

/* Bytes of map that max_records values of max_bytes can need: each in pages of its own and a share of a leaf, the branches above them
 * (fewer than leaves), and for every transaction the pages it rewrites on the way to the last leaf. */
static bool map_bound(size_t max_bytes, uint64_t max_records, size_t *out)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t per_record, payload, n_transactions;

    if (max_bytes > UINT32_MAX || max_records > SIZE_MAX) { /* LMDB holds no longer values */
        return false;
    }
    per_record = ((max_bytes + 16 + page - 1) / page + 3) * page;
    if (!agglo_size_mul(max_bytes, (size_t)max_records, &payload)) {
        return false;
    }
    n_transactions = payload / TRANSACTION_BYTES + 2;
    return agglo_size_mul(per_record, (size_t)max_records, &payload) &&
           agglo_size_mul(n_transactions, 64 * page, &n_transactions) && agglo_size_add(payload, n_transactions, out) &&
           agglo_size_add(*out, 1 << 20, out) && *out <= MAP_BYTES_MAX;
}

agglo_status agglo_lmdb_writer_new(agglo_lmdb_writer **out, const char *path, size_t max_bytes, uint64_t max_records,
                                   agglo_err *err)
{
    agglo_lmdb_writer *writer = agglo_alloc(1, sizeof *writer, err);
    size_t map_bytes;
    int code;

    *out = NULL;
    if (writer == NULL || (writer->path = agglo_strdup(path, err)) == NULL) {
        goto fail;
    }
    if (!map_bound(max_bytes, max_records, &map_bytes)) {
        agglo_fail(err, AGGLO_E_MEMORY, "%llu records of %zu bytes are too much for one file",
                   (unsigned long long)max_records, max_bytes);
        goto fail;
    }
    if ((code = mdb_env_create(&writer->env)) != 0 || (code = mdb_env_set_mapsize(writer->env, map_bytes)) != 0 ||
        (code = mdb_env_open(writer->env, path, MDB_NOSUBDIR | MDB_NOLOCK | MDB_NOSYNC | MDB_NORDAHEAD, FILE_MODE)) !=
            0 ||
        (code = mdb_txn_begin(writer->env, NULL, 0, &writer->txn)) != 0 ||
        (code = mdb_dbi_open(writer->txn, NULL, 0, &writer->dbi)) != 0) {
        lmdb_fail(err, code);
        goto fail;
    }
    *out = writer;
    return AGGLO_OK;
fail:
    agglo_lmdb_writer_abort(writer);
    agglo_at(err, "%s", path);
    return agglo_doing(err, "cannot make LMDB file");
}

agglo_status agglo_lmdb_writer_put(agglo_lmdb_writer *writer, uint32_t ordinal, int view, agglo_bytes value,
                                   agglo_err *err)
{
    uint8_t key_bytes[KEY_BYTES];
    MDB_val key = {KEY_BYTES, key_bytes}, data = {value.size, (void *)(uintptr_t)value.data};
    int code;

    put_key(key_bytes, ordinal, view);
    if (writer->txn == NULL && (code = mdb_txn_begin(writer->env, NULL, 0, &writer->txn)) != 0) {
        lmdb_fail(err, code);
        goto fail;
    }
    code = mdb_put(writer->txn, writer->dbi, &key, &data, MDB_APPEND);
    if (code == MDB_KEYEXIST) {
        agglo_fail(err, AGGLO_E_CONFIG, "record %u, view %d does not stand behind the one before it", ordinal, view);
        goto fail;
    }
    if (code != 0) {
        lmdb_fail(err, code);
        goto fail;
    }
    writer->n_pending += value.size;
    if (writer->n_pending >= TRANSACTION_BYTES) {
        code = mdb_txn_commit(writer->txn);
        writer->txn = NULL;
        writer->n_pending = 0;
        if (code != 0) {
            lmdb_fail(err, code);
            goto fail;
        }
    }
    return AGGLO_OK;
fail:
    agglo_at(err, "%s", writer->path);
    return agglo_doing(err, "cannot write record");
}

agglo_status agglo_lmdb_writer_finish(agglo_lmdb_writer *writer, agglo_err *err)
{
    MDB_envinfo info;
    MDB_stat stat;
    int code = 0;

    if (writer->txn != NULL) {
        code = mdb_txn_commit(writer->txn);
        writer->txn = NULL;
    }
    if (code != 0 || (code = mdb_env_sync(writer->env, 1)) != 0 || (code = mdb_env_info(writer->env, &info)) != 0 ||
        (code = mdb_env_stat(writer->env, &stat)) != 0) {
        lmdb_fail(err, code);
        goto fail;
    }
    mdb_env_close(writer->env);
    writer->env = NULL;
    /* a last page that LMDB allocated and gave back may never have been written: every page is in the file */
    if (truncate(writer->path, (off_t)((info.me_last_pgno + 1) * stat.ms_psize)) != 0) {
        agglo_fail(err, AGGLO_E_IO, "%s", strerror(errno));
        goto fail;
    }
    agglo_lmdb_writer_abort(writer);
    return AGGLO_OK;
fail:
    agglo_at(err, "%s", writer->path);
    agglo_lmdb_writer_abort(writer);
    return agglo_doing(err, "cannot finish LMDB file");
}

void agglo_lmdb_writer_abort(agglo_lmdb_writer *writer)
{
    if (writer == NULL) {
        return;
    }
    if (writer->txn != NULL) {
        mdb_txn_abort(writer->txn);
    }
    if (writer->env != NULL) {
        mdb_env_close(writer->env);
    }
    agglo_free(writer->path);
    agglo_free(writer);
}

/* ---- reading ---- */

agglo_status agglo_lmdb_reader_open(agglo_lmdb_reader **out, const char *path, agglo_err *err)
{
    agglo_lmdb_reader *reader = agglo_alloc(1, sizeof *reader, err);
    MDB_txn *txn = NULL;
    MDB_envinfo info;
    MDB_stat stat;
    uint64_t n_bytes;
    int code;

    *out = NULL;
    if (reader == NULL || agglo_file_size(path, &n_bytes, err) != AGGLO_OK) {
        goto fail;
    }
    if ((code = mdb_env_create(&reader->env)) != 0 || (code = mdb_env_set_mapsize(reader->env, (size_t)n_bytes)) != 0 ||
        (code = mdb_env_open(reader->env, path, MDB_NOSUBDIR | MDB_NOLOCK | MDB_RDONLY | MDB_NOTLS | MDB_NORDAHEAD,
                             FILE_MODE)) != 0 ||
        (code = mdb_txn_begin(reader->env, NULL, MDB_RDONLY, &txn)) != 0 ||
        (code = mdb_dbi_open(txn, NULL, 0, &reader->dbi)) != 0 || (code = mdb_stat(txn, reader->dbi, &stat)) != 0 ||
        (code = mdb_env_info(reader->env, &info)) != 0) {
        lmdb_fail(err, code);
        goto fail;
    }
    if (info.me_last_pgno >= n_bytes / stat.ms_psize) { /* reading it would be a SIGBUS */
        agglo_fail(err, AGGLO_E_DATA, "%llu bytes, but its pages reach to %llu", (unsigned long long)n_bytes,
                   (unsigned long long)(info.me_last_pgno + 1) * stat.ms_psize);
        goto fail;
    }
    reader->n_records = stat.ms_entries;
    mdb_txn_abort(txn); /* a handle of the main database stays */
    *out = reader;
    return AGGLO_OK;
fail:
    if (txn != NULL) {
        mdb_txn_abort(txn);
    }
    agglo_lmdb_reader_close(reader);
    agglo_at(err, "%s", path);
    return agglo_doing(err, "cannot open LMDB file");
}

void agglo_lmdb_reader_close(agglo_lmdb_reader *reader)
{
    if (reader == NULL) {
        return;
    }
    if (reader->env != NULL) {
        mdb_env_close(reader->env);
    }
    agglo_free(reader);
}

uint64_t agglo_lmdb_reader_count(const agglo_lmdb_reader *reader)
{
    return reader->n_records;
}

agglo_status agglo_lmdb_reader_get(const agglo_lmdb_reader *reader, uint32_t ordinal, int view, agglo_bytes *out,
                                   agglo_err *err)
{
    uint8_t key_bytes[KEY_BYTES];
    MDB_val key = {KEY_BYTES, key_bytes}, data;
    MDB_txn *txn;
    int code;

    *out = (agglo_bytes){NULL, 0};
    put_key(key_bytes, ordinal, view);
    code = mdb_txn_begin(reader->env, NULL, MDB_RDONLY, &txn);
    if (code == 0) {
        code = mdb_get(txn, reader->dbi, &key, &data);
        mdb_txn_abort(txn);
    }
    if (code == MDB_NOTFOUND) {
        return agglo_fail(err, AGGLO_E_NOT_FOUND, "there is no record %u, view %d", ordinal, view);
    }
    if (code != 0) {
        return lmdb_fail(err, code);
    }
    *out = (agglo_bytes){data.mv_data, data.mv_size};
    return AGGLO_OK;
}

agglo_status agglo_lmdb_reader_each(const agglo_lmdb_reader *reader,
                                    agglo_status (*visit)(void *context, uint32_t ordinal, int view, agglo_bytes value,
                                                          agglo_err *err),
                                    void *context, agglo_err *err)
{
    MDB_cursor *cursor = NULL;
    MDB_txn *txn = NULL;
    MDB_val key, data;
    agglo_status status = AGGLO_OK;
    int code;

    if ((code = mdb_txn_begin(reader->env, NULL, MDB_RDONLY, &txn)) == 0 &&
        (code = mdb_cursor_open(txn, reader->dbi, &cursor)) == 0) {
        while (status == AGGLO_OK && (code = mdb_cursor_get(cursor, &key, &data, MDB_NEXT)) == 0) {
            const uint8_t *k = key.mv_data;

            if (key.mv_size != KEY_BYTES) {
                status = agglo_fail(err, AGGLO_E_DATA, "a key has %zu bytes, expected %d", key.mv_size, KEY_BYTES);
            } else {
                status = visit(context, agglo_be32(k), k[4], (agglo_bytes){data.mv_data, data.mv_size}, err);
            }
        }
    }
    if (status == AGGLO_OK && code != MDB_NOTFOUND) {
        status = lmdb_fail(err, code);
    }
    if (cursor != NULL) {
        mdb_cursor_close(cursor);
    }
    if (txn != NULL) {
        mdb_txn_abort(txn);
    }
    return status;
}
