/* Sources through libarchive: its tar reader walks the headers, its filters unpack. A member's data stand where the reader is once it has
 * taken in the header (archive_filter_bytes of the innermost filter), so nothing is read twice.
 */
#include "ingest/source_tar.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <archive.h>
#include <archive_entry.h>

#include "base/stop.h"

enum {
    SCAN_BLOCK = 16384, /* small, since pictures are stepped over */
    TAR_BLOCK = 512,
    COPY_BLOCK = 1 << 18,
    STDIN_WAIT_MS = 200, /* between two looks at the stop flag */
    IDENTITY_BLOCK = 65536
};

/* A file without a name, in `dir`. */
static int open_spool(const char *dir, agglo_err *err)
{
    char *path = agglo_format(err, "%s/.tmp-spool-XXXXXX", dir);
    int fd;

    if (path == NULL) {
        return -1;
    }
    fd = mkostemp(path, O_CLOEXEC);
    if (fd < 0) {
        agglo_fail(err, AGGLO_E_IO, "%s", strerror(errno));
        agglo_at(err, "%s", path);
    } else {
        unlink(path);
    }
    agglo_free(path);
    return fd;
}

static agglo_status write_all(int fd, const void *data, size_t n, agglo_err *err)
{
    const uint8_t *p = data;

    while (n > 0) {
        ssize_t done = write(fd, p, n);

        if (done < 0 && errno == EINTR) {
            continue;
        }
        if (done <= 0) {
            return agglo_fail(err, AGGLO_E_IO, "cannot spool: %s", strerror(errno));
        }
        p += done;
        n -= (size_t)done;
    }
    return AGGLO_OK;
}

static agglo_status spool_stdin(agglo_source *out, const char *spool_dir, agglo_err *err)
{
    uint8_t *block = agglo_alloc(COPY_BLOCK, 1, err);

    if (block == NULL) {
        return err->status;
    }
    out->fd = open_spool(spool_dir, err);
    while (out->fd >= 0) {
        struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
        int n_ready = poll(&input, 1, STDIN_WAIT_MS);
        ssize_t n;

        if (agglo_stop_check(err) != AGGLO_OK) {
            break;
        }
        if (n_ready == 0 || (n_ready < 0 && errno == EINTR)) {
            continue;
        }
        n = read(STDIN_FILENO, block, COPY_BLOCK);
        if (n < 0) {
            agglo_fail(err, AGGLO_E_IO, "%s", strerror(errno));
        }
        if (n <= 0 || write_all(out->fd, block, (size_t)n, err) != AGGLO_OK) {
            break;
        }
    }
    agglo_free(block);
    return err->status;
}

agglo_status agglo_source_open(agglo_source *out, const char *path, const char *spool_dir, agglo_err *err)
{
    struct stat info;

    *out = (agglo_source){.fd = -1};
    if (strcmp(path, "-") == 0) {
        if (spool_stdin(out, spool_dir, err) != AGGLO_OK) {
            goto fail;
        }
    } else {
        out->fd = open(path, O_RDONLY | O_CLOEXEC);
        if (out->fd < 0) {
            agglo_fail(err, errno == ENOENT ? AGGLO_E_NOT_FOUND : AGGLO_E_IO, "%s", strerror(errno));
            goto fail;
        }
    }
    if (fstat(out->fd, &info) != 0) {
        agglo_fail(err, AGGLO_E_IO, "%s", strerror(errno));
        goto fail;
    }
    if (!S_ISREG(info.st_mode)) {
        agglo_fail(err, AGGLO_E_IO, "not a regular file");
        goto fail;
    }
    out->n_bytes = (uint64_t)info.st_size;
    out->n_plain = out->n_bytes;
    return AGGLO_OK;
fail:
    agglo_source_close(out);
    agglo_at(err, "%s", path);
    return agglo_doing(err, "cannot open source");
}

void agglo_source_close(agglo_source *source)
{
    if (source->fd >= 0) {
        close(source->fd);
        source->fd = -1;
    }
}

agglo_status agglo_source_read(const agglo_source *source, uint64_t offset, void *out, size_t n, agglo_err *err)
{
    uint8_t *p = out;

    while (n > 0) {
        ssize_t done = pread(source->fd, p, n, (off_t)offset);

        if (done < 0 && errno == EINTR) {
            continue;
        }
        if (done <= 0) {
            return agglo_fail(err, AGGLO_E_IO, "%s", done == 0 ? "the file became shorter" : strerror(errno));
        }
        p += done;
        n -= (size_t)done;
        offset += (uint64_t)done;
    }
    return AGGLO_OK;
}

agglo_status agglo_source_identity(const agglo_source *source, agglo_hash128 *out, agglo_err *err)
{
    uint8_t *block = agglo_alloc(8 + 2 * IDENTITY_BLOCK, 1, err);
    size_t n = source->n_bytes < IDENTITY_BLOCK ? (size_t)source->n_bytes : IDENTITY_BLOCK;

    if (block == NULL) {
        return err->status;
    }
    agglo_put_le64(block, source->n_bytes);
    if (agglo_source_read(source, 0, block + 8, n, err) == AGGLO_OK &&
        agglo_source_read(source, source->n_bytes - n, block + 8 + n, n, err) == AGGLO_OK) {
        *out = agglo_xxh3_128(block, 8 + 2 * n);
    }
    agglo_free(block);
    return err->status;
}

static agglo_status copy_plain(agglo_source *source, struct archive *archive, int spool, agglo_err *err)
{
    struct archive_entry *entry;
    uint64_t total = 0;
    int code = archive_read_next_header(archive, &entry);

    while (code == ARCHIVE_OK || code == ARCHIVE_WARN) {
        const void *block;
        size_t n;
        la_int64_t offset;

        code = archive_read_data_block(archive, &block, &n, &offset);
        if (code == ARCHIVE_OK || code == ARCHIVE_WARN) {
            if (write_all(spool, block, n, err) != AGGLO_OK) {
                return err->status;
            }
            total += n;
        }
    }
    if (code != ARCHIVE_EOF) {
        const char *why = archive_error_string(archive);

        snprintf(source->damage, sizeof source->damage, "%s", why == NULL ? "damaged compressed data" : why);
    }
    source->n_plain = total;
    return AGGLO_OK;
}

agglo_status agglo_source_unpack(agglo_source *source, const char *spool_dir, agglo_err *err)
{
    uint8_t head[4] = {0};
    struct archive *archive;
    int spool;

    if (source->n_bytes < sizeof head) {
        return AGGLO_OK;
    }
    if (agglo_source_read(source, 0, head, sizeof head, err) != AGGLO_OK) {
        return err->status;
    }
    if ((head[0] != 0x1f || head[1] != 0x8b) && agglo_le32(head) != 0xfd2fb528u) {
        return AGGLO_OK;
    }
    spool = open_spool(spool_dir, err);
    if (spool < 0) {
        return err->status;
    }
    archive = archive_read_new();
    if (archive == NULL) {
        close(spool);
        return agglo_fail(err, AGGLO_E_MEMORY, "libarchive is out of memory");
    }
    archive_read_support_filter_gzip(archive);
    archive_read_support_filter_zstd(archive);
    archive_read_support_format_raw(archive);
    if (lseek(source->fd, 0, SEEK_SET) < 0 || archive_read_open_fd(archive, source->fd, COPY_BLOCK) != ARCHIVE_OK) {
        const char *why = archive_error_string(archive);

        snprintf(source->damage, sizeof source->damage, "%s", why == NULL ? "damaged compressed data" : why);
        source->n_plain = 0;
    } else {
        copy_plain(source, archive, spool, err);
    }
    archive_read_free(archive);
    close(source->fd);
    source->fd = spool;
    return err->status;
}

static void end_scan(const char **reason, char detail[256], const char *code, const char *why)
{
    *reason = code;
    snprintf(detail, 256, "%s", why);
}

/* True when the tar ends before the headers that start at `at` do (a PAX or GNU name header, its body, the member's own). */
static bool ends_in_headers(const agglo_source *source, uint64_t at)
{
    agglo_err ignored = {0};
    uint8_t header[TAR_BLOCK];

    for (int i = 0; i < 4; i++) {
        uint64_t n_body = 0;

        if (at > source->n_plain || source->n_plain - at < TAR_BLOCK) {
            return true;
        }
        if (agglo_source_read(source, at, header, sizeof header, &ignored) != AGGLO_OK ||
            strchr("xgLK", header[156]) == NULL || header[156] == 0) {
            return false;
        }
        for (int k = 124; k < 136 && header[k] >= '0' && header[k] <= '7'; k++) {
            n_body = n_body * 8 + (uint64_t)(header[k] - '0');
        }
        at += TAR_BLOCK + ((n_body + TAR_BLOCK - 1) & ~(uint64_t)(TAR_BLOCK - 1));
    }
    return false;
}

agglo_status agglo_source_scan(agglo_source *source, agglo_source_visit visit, void *context, const char **reason,
                               char detail[256], agglo_err *err)
{
    struct archive *archive = archive_read_new();
    struct archive_entry *entry;
    uint64_t next = 0; /* where the last member's blocks end */
    bool ended = false;

    *reason = NULL;
    detail[0] = 0;
    if (archive == NULL) {
        return agglo_fail(err, AGGLO_E_MEMORY, "libarchive is out of memory");
    }
    archive_read_support_format_tar(archive);
    if (lseek(source->fd, 0, SEEK_SET) < 0) {
        archive_read_free(archive);
        return agglo_fail(err, AGGLO_E_IO, "%s", strerror(errno));
    }
    if (archive_read_open_fd(archive, source->fd, SCAN_BLOCK) != ARCHIVE_OK) {
        end_scan(reason, detail, "shard_corrupt", archive_error_string(archive));
        ended = true;
    }
    while (!ended) {
        agglo_source_member member = {0};
        int code = archive_read_next_header(archive, &entry);
        la_int64_t at;

        if (code == ARCHIVE_EOF) {
            break;
        }
        if (code != ARCHIVE_OK && code != ARCHIVE_WARN) {
            const char *why = archive_error_string(archive);
            bool truncated = (why != NULL && strncmp(why, "Truncated", 9) == 0) || ends_in_headers(source, next);

            end_scan(reason, detail, truncated ? "shard_truncated" : "shard_corrupt",
                     why != NULL ? why : (truncated ? "the tar ends within a header" : "damaged header"));
            break;
        }
        at = archive_filter_bytes(archive, 0);
        member.name = archive_entry_pathname(entry);
        if (member.name == NULL) { /* a PAX name that the locale cannot show */
            member.name = archive_entry_pathname_utf8(entry);
        }
        if (member.name == NULL || at < 0 || archive_entry_size(entry) < 0) {
            end_scan(reason, detail, "shard_corrupt", "a member without name or size");
            break;
        }
        member.offset = (uint64_t)at;
        member.n_bytes = (uint64_t)archive_entry_size(entry);
        member.regular = archive_entry_filetype(entry) == AE_IFREG && archive_entry_hardlink(entry) == NULL &&
                         archive_entry_sparse_count(entry) == 0;
        member.directory = archive_entry_filetype(entry) == AE_IFDIR;
        member.cut = member.offset > source->n_plain || member.n_bytes > source->n_plain - member.offset;
        next = member.cut ? source->n_plain
                          : (member.offset + member.n_bytes + TAR_BLOCK - 1) & ~(uint64_t)(TAR_BLOCK - 1);
        if (visit(context, &member, err) != AGGLO_OK) {
            break;
        }
        if (member.cut) {
            snprintf(detail, 256, "the tar ends within %.200s", member.name);
            *reason = "shard_truncated";
            break;
        }
    }
    archive_read_free(archive);
    if (err->status == AGGLO_OK && *reason == NULL && source->damage[0] != 0) {
        end_scan(reason, detail, "shard_truncated", source->damage);
    }
    return err->status;
}
