/* Sources of both kinds: opening, spooling, unpacking, telling one from another. */
#include "ingest/source_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fs.h"
#include "base/stop.h"

enum {
    COPY_BLOCK = 1 << 18,
    STDIN_WAIT_MS = 200, /* between two looks at the stop flag */
    IDENTITY_BLOCK = 65536
};

bool agglo_is_tar_name(const char *name)
{
    static const char *const ends[] = {".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.zstd"};
    size_t n = strlen(name);

    for (size_t i = 0; i < AGGLO_COUNT(ends); i++) {
        size_t m = strlen(ends[i]);

        if (n > m && strcmp(name + n - m, ends[i]) == 0) {
            return true;
        }
    }
    return false;
}

int agglo_open_spool(const char *dir, agglo_err *err)
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

static agglo_status spool(int fd, const void *data, size_t n, agglo_err *err)
{
    return agglo_fd_write(fd, data, n, err) == AGGLO_OK ? AGGLO_OK : agglo_doing(err, "cannot spool a source");
}

static agglo_status spool_stdin(agglo_source *out, const char *spool_dir, agglo_err *err)
{
    uint8_t *block = agglo_alloc(COPY_BLOCK, 1, err);

    if (block == NULL) {
        return err->status;
    }
    out->fd = agglo_open_spool(spool_dir, err);
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
        if (n <= 0 || spool(out->fd, block, (size_t)n, err) != AGGLO_OK) {
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
    if (strcmp(path, "-") != 0 && agglo_path_is_dir(path)) {
        if (agglo_folder_open(&out->folder, path, &out->n_bytes, err) != AGGLO_OK) {
            goto fail;
        }
        return AGGLO_OK;
    }
    if (strcmp(path, "-") == 0) {
        if (spool_stdin(out, spool_dir, err) != AGGLO_OK) {
            goto fail;
        }
    } else {
        out->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
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
    agglo_folder_close(source->folder);
    source->folder = NULL;
}

agglo_status agglo_source_read(const agglo_source *source, uint64_t offset, void *out, size_t n, agglo_err *err)
{
    return source->folder != NULL ? agglo_folder_read(source->folder, offset, out, n, err)
                                  : agglo_fd_read_at(source->fd, offset, out, n, err);
}

agglo_status agglo_source_scan(agglo_source *source, agglo_source_visit visit, void *context, const char **reason,
                               char detail[256], agglo_err *err)
{
    *reason = NULL;
    detail[0] = 0;
    if (source->damage[0] != 0 && source->n_plain == 0) { /* nothing was unpacked: that is why */
        *reason = "shard_corrupt";
        snprintf(detail, 256, "%s", source->damage);
        return AGGLO_OK;
    }
    if (source->folder == NULL) {
        return agglo_tar_scan(source, visit, context, reason, detail, err);
    }
    for (size_t i = 0; i < agglo_folder_files(source->folder) && err->status == AGGLO_OK; i++) {
        agglo_source_member member;
        char *name;

        if (agglo_folder_file(source->folder, i, &member, &name, err) == AGGLO_OK) {
            visit(context, &member, err);
            agglo_free(name);
        }
    }
    return err->status;
}

size_t agglo_source_files(const agglo_source *source)
{
    return source->folder != NULL ? agglo_folder_files(source->folder) : 0;
}

agglo_status agglo_source_file(const agglo_source *source, size_t number, agglo_source_member *out, char **name,
                               agglo_err *err)
{
    return agglo_folder_file(source->folder, number, out, name, err);
}

agglo_status agglo_source_identity(const agglo_source *source, agglo_hash128 *out, agglo_err *err)
{
    uint8_t *block;
    size_t n = source->n_bytes < IDENTITY_BLOCK ? (size_t)source->n_bytes : IDENTITY_BLOCK;

    if (source->folder != NULL) {
        *out = agglo_folder_identity(source->folder);
        return AGGLO_OK;
    }
    block = agglo_alloc(8 + 2 * IDENTITY_BLOCK, 1, err);
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
