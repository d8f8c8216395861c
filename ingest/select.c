/* Lists of uids, read in one pass through one buffer. */
#include "ingest/select.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/hash.h"
#include "base/npy.h"
#include "base/stop.h"

enum { BLOCK_BYTES = 1 << 16, UID_BYTES = 16, UID_DIGITS = 32 };

/* The block holds what follows the header of a .npy, and the whole of the largest header. */
_Static_assert(BLOCK_BYTES + 64 >= AGGLO_NPY_HEADER_MAX, "a header fits into the buffer");

typedef struct reader {
    int fd;
    uint64_t file_bytes; /* 0: not a regular file, so nobody knows */
    bool regular, ended;
    uint8_t *buffer; /* [BLOCK_BYTES + 64] */
    size_t at, end;  /* what of it has not been used */
    agglo_uid_set *set;
} reader;

/* Have at least `need` unused bytes in the buffer, unless the file ends before. */
static agglo_status fill(reader *r, size_t need, agglo_err *err)
{
    if (r->end - r->at >= need || r->ended) {
        return AGGLO_OK;
    }
    memmove(r->buffer, r->buffer + r->at, r->end - r->at);
    r->end -= r->at;
    r->at = 0;
    while (r->end < need && !r->ended) {
        ssize_t n;

        if (agglo_stop_check(err) != AGGLO_OK) {
            return err->status;
        }
        n = read(r->fd, r->buffer + r->end, BLOCK_BYTES + 64 - r->end);
        if (n < 0 && errno != EINTR) {
            return agglo_fail(err, AGGLO_E_IO, "%s", strerror(errno));
        }
        r->end += n > 0 ? (size_t)n : 0;
        r->ended = n == 0;
    }
    return AGGLO_OK;
}

static agglo_status bad_line(agglo_err *err, const char *path, uint64_t line, const char *why)
{
    agglo_fail(err, AGGLO_E_CONFIG, "%s", why);
    return agglo_at(err, "%s:%llu", path, (unsigned long long)line);
}

/* One line without its end; n is at most UID_DIGITS + 2, more: the line is longer. */
static agglo_status take_line(reader *r, const char *path, uint64_t line, char *text, size_t n, agglo_err *err)
{
    uint8_t uid[UID_BYTES];
    size_t blanks;

    if (n > 0 && text[n - 1] == '\r') {
        n--;
    }
    text[n] = 0;
    for (blanks = 0; blanks < n && (text[blanks] == ' ' || text[blanks] == '\t');) {
        blanks++;
    }
    if (blanks == n) {
        return AGGLO_OK;
    }
    if (n != UID_DIGITS || !agglo_unhex(text, uid, UID_BYTES)) {
        return bad_line(err, path, line, "not a uid: 32 hex digits were expected, alone on their line");
    }
    return agglo_uid_set_add(r->set, uid, NULL, err);
}

static agglo_status read_text(reader *r, const char *path, agglo_err *err)
{
    enum { ROOM = UID_DIGITS + 2 };
    char text[ROOM + 1];
    size_t n = 0;
    uint64_t line = 1;

    /* no more uids than would fill the file, the last one without an end to its line */
    if (agglo_uid_set_new(&r->set, r->file_bytes / (UID_DIGITS + 1) + 1, err) != AGGLO_OK) {
        return err->status;
    }
    for (;;) {
        if (fill(r, 1, err) != AGGLO_OK) {
            return err->status;
        }
        if (r->at == r->end) { /* the last line may lack its end */
            return n > 0 && text[0] != '#' ? take_line(r, path, line, text, n, err) : AGGLO_OK;
        }
        while (r->at < r->end) {
            char c = (char)r->buffer[r->at++];

            if (c != '\n') {
                if (n < ROOM) {
                    text[n++] = c;
                } else if (text[0] != '#') {
                    return bad_line(err, path, line, "not a uid: 32 hex digits were expected, alone on their line");
                }
                continue;
            }
            if (n > 0 && text[0] != '#' && take_line(r, path, line, text, n, err) != AGGLO_OK) {
                return err->status;
            }
            n = 0;
            line++;
        }
    }
}

static agglo_status bad_npy(agglo_err *err, const char *why)
{
    return agglo_fail(err, AGGLO_E_CONFIG, "the .npy %s", why);
}

static agglo_status read_npy(reader *r, agglo_err *err)
{
    agglo_npy_header header;
    size_t n_header;
    bool pairs, rows;

    if (fill(r, AGGLO_NPY_PREFIX, err) != AGGLO_OK) {
        return err->status;
    }
    if (agglo_npy_header_size((agglo_bytes){r->buffer + r->at, r->end - r->at}, &n_header, err) != AGGLO_OK) {
        return err->status = AGGLO_E_CONFIG;
    }
    if (fill(r, n_header, err) != AGGLO_OK) {
        return err->status;
    }
    if (agglo_npy_parse((agglo_bytes){r->buffer + r->at, r->end - r->at}, &header, err) != AGGLO_OK) {
        return err->status = AGGLO_E_CONFIG;
    }
    r->at += header.n_header_bytes;
    pairs = header.n_fields == 2 && header.fields[0] == AGGLO_U64 && header.fields[1] == AGGLO_U64 && header.rank == 1;
    rows = header.n_fields == 0 && header.dtype == AGGLO_U64 && header.rank == 2 && header.shape[1] == 2;
    if (!pairs && !rows) {
        return bad_npy(err, "holds no uids: [n] of two '<u8' fields or [n, 2] of '<u8' was expected");
    }
    if (r->regular && r->file_bytes != header.n_header_bytes + header.n_data_bytes) {
        return agglo_fail(
            err, AGGLO_E_CONFIG, "the .npy says that %llu bytes follow its header, there are %llu",
            (unsigned long long)header.n_data_bytes,
            (unsigned long long)(r->file_bytes < header.n_header_bytes ? 0 : r->file_bytes - header.n_header_bytes));
    }
    /* what no file size bears out is not believed before it has come */
    if (agglo_uid_set_new(&r->set, r->regular ? header.n_data_bytes / UID_BYTES : 0, err) != AGGLO_OK) {
        return err->status;
    }
    for (uint64_t left = header.n_data_bytes / UID_BYTES; left > 0; left--) {
        uint8_t uid[UID_BYTES];

        if (fill(r, UID_BYTES, err) != AGGLO_OK) {
            return err->status;
        }
        if (r->end - r->at < UID_BYTES) {
            return bad_npy(err, "ends before its last uid");
        }
        for (size_t i = 0; i < 8; i++) { /* two little-endian halves, the upper first; a uid is written big-endian */
            uid[i] = r->buffer[r->at + 7 - i];
            uid[8 + i] = r->buffer[r->at + 15 - i];
        }
        r->at += UID_BYTES;
        if (agglo_uid_set_add(r->set, uid, NULL, err) != AGGLO_OK) {
            return err->status;
        }
    }
    if (fill(r, 1, err) != AGGLO_OK) {
        return err->status;
    }
    return r->at == r->end ? AGGLO_OK : bad_npy(err, "goes on behind its last uid");
}

static agglo_status open_list(reader *r, const char *path, agglo_err *err)
{
    struct stat info;

    r->fd = open(path, O_RDONLY | O_CLOEXEC);
    if (r->fd < 0) {
        bool usage = errno == ENOENT || errno == ENOTDIR || errno == EACCES;

        return agglo_fail(err, usage ? AGGLO_E_CONFIG : AGGLO_E_IO, "%s", strerror(errno));
    }
    if (fstat(r->fd, &info) != 0) {
        return agglo_fail(err, AGGLO_E_IO, "%s", strerror(errno));
    }
    if (S_ISDIR(info.st_mode)) {
        return agglo_fail(err, AGGLO_E_CONFIG, "it is a directory");
    }
    r->regular = S_ISREG(info.st_mode);
    r->file_bytes = r->regular ? (uint64_t)info.st_size : 0;
    r->buffer = agglo_alloc(BLOCK_BYTES + 64, 1, err);
    return r->buffer == NULL ? err->status : fill(r, AGGLO_NPY_PREFIX, err);
}

agglo_status agglo_select_open(agglo_uid_set **out, const char *path, agglo_err *err)
{
    reader r = {.fd = -1};
    bool named = false; /* a line was */

    *out = NULL;
    if (open_list(&r, path, err) == AGGLO_OK) {
        if (agglo_npy_is((agglo_bytes){r.buffer, r.end})) {
            read_npy(&r, err);
        } else {
            read_text(&r, path, err);
            named = err->where[0] != 0;
        }
    }
    if (r.fd >= 0) {
        close(r.fd);
    }
    agglo_free(r.buffer);
    if (err->status != AGGLO_OK) {
        agglo_uid_set_free(r.set);
        if (!named) {
            agglo_at(err, "%s", path);
        }
        return agglo_doing(err, "cannot read the list of uids");
    }
    *out = r.set;
    return AGGLO_OK;
}
