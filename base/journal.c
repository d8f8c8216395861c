/* Batches are written with one write() each, at a place that only grows; a torn one fails its checksum and is cut off on opening. */
#include "base/journal.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/fs.h"
#include "base/hash.h"

enum { VERSION = 1, HEADER_BYTES = 16, BATCH_HEADER = 16, RECORD_HEADER = 5 };

static const char magic[] = "AGGLOJNL", batch_magic[] = "BTCH";

struct agglo_journal {
    char *path;
    int fd;
    uint64_t end;     /* behind the last whole batch */
    uint8_t *pending; /* header and records of the batch in work */
    size_t n_pending, room;
};

static agglo_status at_path(const agglo_journal *journal, agglo_err *err)
{
    agglo_at(err, "%s", journal->path);
    return agglo_doing(err, "cannot use journal");
}

static agglo_status make_room(agglo_journal *j, size_t more, agglo_err *err)
{
    size_t room = j->room * 2 + 65536;
    uint8_t *grown;

    if (j->room - j->n_pending >= more) {
        return AGGLO_OK;
    }
    room = room - j->n_pending < more ? j->n_pending + more : room;
    grown = agglo_realloc(j->pending, j->room, room, err);
    if (grown == NULL) {
        return err->status;
    }
    j->pending = grown;
    j->room = room;
    return AGGLO_OK;
}

/* The batch at `at`: its records in *records (room for them in *room); false where the journal ends. */
static bool read_batch(const agglo_journal *j, uint64_t at, uint64_t n_file, uint8_t **records, size_t *room, size_t *n,
                       agglo_err *err)
{
    uint8_t header[BATCH_HEADER];

    if (n_file < at || n_file - at < BATCH_HEADER ||
        agglo_fd_read_at(j->fd, at, header, sizeof header, err) != AGGLO_OK || memcmp(header, batch_magic, 4) != 0) {
        return false;
    }
    *n = agglo_le32(header + 4);
    if (*n == 0 || *n > n_file - at - BATCH_HEADER) {
        return false;
    }
    if (*room < *n) {
        uint8_t *grown = agglo_realloc(*records, *room, *n, err);

        if (grown == NULL) {
            return false;
        }
        *records = grown;
        *room = *n;
    }
    return agglo_fd_read_at(j->fd, at + BATCH_HEADER, *records, *n, err) == AGGLO_OK &&
           agglo_xxh3_64(*records, *n) == agglo_le64(header + 8);
}

/* Walk the batches from the first; *end is set behind the last whole one. `visit` may be NULL. */
static agglo_status walk(const agglo_journal *j, uint64_t n_file, agglo_journal_visit visit, void *context,
                         uint64_t *end, agglo_err *err)
{
    uint8_t *records = NULL;
    size_t room = 0, n;

    *end = HEADER_BYTES;
    while (read_batch(j, *end, n_file, &records, &room, &n, err)) {
        uint64_t next = *end + BATCH_HEADER + n;
        size_t at = 0;

        while (visit != NULL && n - at >= RECORD_HEADER && n - at - RECORD_HEADER >= agglo_le32(records + at + 1)) {
            size_t n_payload = agglo_le32(records + at + 1);

            if (visit(context, records[at], (agglo_bytes){records + at + RECORD_HEADER, n_payload}, next, err) !=
                AGGLO_OK) {
                goto done;
            }
            at += RECORD_HEADER + n_payload;
        }
        if (visit != NULL && at != n) {
            agglo_fail(err, AGGLO_E_DATA, "a record that does not fit into its batch at byte %llu",
                       (unsigned long long)*end);
            goto done;
        }
        *end = next;
    }
done:
    agglo_free(records);
    return err->status;
}

static agglo_status start_file(agglo_journal *j, agglo_err *err)
{
    uint8_t header[HEADER_BYTES] = {0};

    memcpy(header, magic, 8);
    agglo_put_le32(header + 8, VERSION);
    if (ftruncate(j->fd, 0) != 0 || lseek(j->fd, 0, SEEK_SET) < 0) {
        return agglo_fail(err, AGGLO_E_IO, "%s", strerror(errno));
    }
    j->end = HEADER_BYTES;
    return agglo_fd_write(j->fd, header, sizeof header, err);
}

static agglo_status check_file(agglo_journal *j, uint64_t n_file, agglo_err *err)
{
    uint8_t header[HEADER_BYTES];
    uint64_t end;

    if (n_file < HEADER_BYTES) { /* new, or killed as it was made */
        return start_file(j, err);
    }
    if (agglo_fd_read_at(j->fd, 0, header, sizeof header, err) != AGGLO_OK) {
        return err->status;
    }
    if (memcmp(header, magic, 8) != 0) {
        return agglo_fail(err, AGGLO_E_DATA, "it is no journal");
    }
    if (agglo_le32(header + 8) != VERSION) {
        return agglo_fail(err, AGGLO_E_MISMATCH, "journal version %u, expected %d", agglo_le32(header + 8), VERSION);
    }
    if (walk(j, n_file, NULL, NULL, &end, err) != AGGLO_OK) {
        return err->status;
    }
    j->end = end;
    return end == n_file ? AGGLO_OK : agglo_journal_cut(j, end, err);
}

agglo_status agglo_journal_open(agglo_journal **out, const char *path, agglo_err *err)
{
    agglo_journal *j = agglo_alloc(1, sizeof *j, err);
    struct stat info, named;

    *out = NULL;
    if (j == NULL) {
        return err->status;
    }
    j->fd = -1;
    j->path = agglo_strdup(path, err);
    if (j->path == NULL) {
        goto fail;
    }
    for (
        ;
        ;) { /* until the file that is locked is the one that has the name: its last owner may have removed it meanwhile */
        j->fd = open(path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0666);
        if (j->fd < 0) {
            agglo_fail(err, AGGLO_E_IO, "%s", strerror(errno));
            goto fail;
        }
        if (flock(j->fd, LOCK_EX | LOCK_NB) != 0) {
            agglo_fail(err, errno == EWOULDBLOCK ? AGGLO_E_CONFIG : AGGLO_E_IO, "%s",
                       errno == EWOULDBLOCK ? "another process is at work here" : strerror(errno));
            goto fail;
        }
        if (fstat(j->fd, &info) != 0) {
            agglo_fail(err, AGGLO_E_IO, "%s", strerror(errno));
            goto fail;
        }
        if (stat(path, &named) == 0 && named.st_ino == info.st_ino && named.st_dev == info.st_dev) {
            break;
        }
        close(j->fd);
    }
    if (check_file(j, (uint64_t)info.st_size, err) != AGGLO_OK) {
        goto fail;
    }
    *out = j;
    return AGGLO_OK;
fail:
    at_path(j, err);
    agglo_journal_close(j);
    return err->status;
}

void agglo_journal_close(agglo_journal *journal)
{
    if (journal != NULL) {
        if (journal->fd >= 0) {
            close(journal->fd); /* and with it the lock */
        }
        agglo_free(journal->pending);
        agglo_free(journal->path);
        agglo_free(journal);
    }
}

agglo_status agglo_journal_remove(agglo_journal *journal, agglo_err *err)
{
    if (unlink(journal->path) != 0 && errno != ENOENT) {
        agglo_fail(err, AGGLO_E_IO, "%s", strerror(errno));
        at_path(journal, err);
    }
    agglo_journal_close(journal);
    return err->status;
}

agglo_status agglo_journal_read(const agglo_journal *journal, agglo_journal_visit visit, void *context, agglo_err *err)
{
    uint64_t end;

    return walk(journal, journal->end, visit, context, &end, err) == AGGLO_OK ? AGGLO_OK : at_path(journal, err);
}

agglo_status agglo_journal_cut(agglo_journal *journal, uint64_t end, agglo_err *err)
{
    end = end < HEADER_BYTES ? HEADER_BYTES : end;
    if (ftruncate(journal->fd, (off_t)end) != 0 || lseek(journal->fd, (off_t)end, SEEK_SET) < 0) {
        agglo_fail(err, AGGLO_E_IO, "%s", strerror(errno));
        return at_path(journal, err);
    }
    journal->end = end;
    return AGGLO_OK;
}

bool agglo_journal_is_empty(const agglo_journal *journal)
{
    return journal->end == HEADER_BYTES;
}

agglo_status agglo_journal_add(agglo_journal *j, uint8_t type, const void *payload, size_t n_bytes, agglo_err *err)
{
    size_t head = j->n_pending == 0 ? BATCH_HEADER : 0;
    uint8_t *p;

    if (n_bytes > UINT32_MAX || j->n_pending + head + RECORD_HEADER + n_bytes > UINT32_MAX) {
        agglo_fail(err, AGGLO_E_UNSUPPORTED, "more than 4 GiB in one batch");
        return at_path(j, err);
    }
    if (make_room(j, head + RECORD_HEADER + n_bytes, err) != AGGLO_OK) {
        return at_path(j, err);
    }
    j->n_pending += head;
    p = j->pending + j->n_pending;
    p[0] = type;
    agglo_put_le32(p + 1, (uint32_t)n_bytes);
    if (n_bytes > 0) {
        memcpy(p + RECORD_HEADER, payload, n_bytes);
    }
    j->n_pending += RECORD_HEADER + n_bytes;
    return AGGLO_OK;
}

size_t agglo_journal_pending(const agglo_journal *journal)
{
    return journal->n_pending;
}

agglo_status agglo_journal_commit(agglo_journal *j, agglo_err *err)
{
    size_t n = j->n_pending;

    if (n == 0) {
        return AGGLO_OK;
    }
    memcpy(j->pending, batch_magic, 4);
    agglo_put_le32(j->pending + 4, (uint32_t)(n - BATCH_HEADER));
    agglo_put_le64(j->pending + 8, agglo_xxh3_64(j->pending + BATCH_HEADER, n - BATCH_HEADER));
    if (lseek(j->fd, (off_t)j->end, SEEK_SET) < 0) {
        agglo_fail(err, AGGLO_E_IO, "%s", strerror(errno));
        return at_path(j, err);
    }
    if (agglo_fd_write(j->fd, j->pending, n, err) != AGGLO_OK) {
        return at_path(j, err);
    }
    j->end += n;
    j->n_pending = 0;
    return AGGLO_OK;
}
