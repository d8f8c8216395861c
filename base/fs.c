/* Paths, reads, mappings, and files that appear only when they are complete. */
#include "base/fs.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static const char temp_prefix[] = ".tmp-";

static agglo_status fail_errno(agglo_err *err, int number)
{
    return agglo_fail(err, number == ENOENT ? AGGLO_E_NOT_FOUND : AGGLO_E_IO, "%s", strerror(number));
}

/* ---- paths ---- */

char *agglo_path_join(const char *dir, const char *name, agglo_err *err)
{
    size_t n = strlen(dir);

    if (name[0] == '/' || n == 0 || strcmp(dir, ".") == 0) {
        return agglo_strdup(name, err);
    }
    return agglo_format(err, "%s%s%s", dir, dir[n - 1] == '/' ? "" : "/", name);
}

char *agglo_path_dir(const char *path, agglo_err *err)
{
    const char *slash = strrchr(path, '/');

    if (slash == NULL) {
        return agglo_strdup(".", err);
    }
    return slash == path ? agglo_strdup("/", err) : agglo_format(err, "%.*s", (int)(slash - path), path);
}

const char *agglo_path_base(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash != NULL ? slash + 1 : path;
}

bool agglo_path_exists(const char *path)
{
    return access(path, F_OK) == 0;
}

bool agglo_path_is_dir(const char *path)
{
    struct stat info;

    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

agglo_status agglo_file_size(const char *path, uint64_t *out, agglo_err *err)
{
    struct stat info;

    if (stat(path, &info) != 0) {
        fail_errno(err, errno);
        return agglo_at(err, "%s", path);
    }
    if (!S_ISREG(info.st_mode)) {
        agglo_fail(err, AGGLO_E_IO, "not a regular file");
        return agglo_at(err, "%s", path);
    }
    *out = (uint64_t)info.st_size;
    return AGGLO_OK;
}

agglo_status agglo_make_dirs(const char *path, agglo_err *err)
{
    char *copy = agglo_strdup(path, err);

    if (copy == NULL) {
        return err->status;
    }
    for (char *at = copy + (copy[0] == '/');; at++) {
        char held = *at;

        if (held != '/' && held != '\0') {
            continue;
        }
        *at = '\0';
        if (mkdir(copy, 0777) != 0 && errno != EEXIST) {
            agglo_fail(err, AGGLO_E_IO, "%s", strerror(errno));
            break;
        }
        *at = held;
        if (held == '\0') {
            break;
        }
    }
    if (err->status == AGGLO_OK && !agglo_path_is_dir(path)) {
        agglo_fail(err, AGGLO_E_IO, "%s", strerror(ENOTDIR));
    }
    agglo_free(copy);
    if (err->status != AGGLO_OK) {
        agglo_at(err, "%s", path);
        agglo_doing(err, "cannot make directory");
    }
    return err->status;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

agglo_status agglo_list_dir(const char *path, agglo_arena *arena, char ***names, size_t *n, agglo_err *err)
{
    DIR *dir = opendir(path);
    char **list = NULL;
    size_t count = 0, capacity = 0;

    *names = NULL;
    *n = 0;
    if (dir == NULL) {
        fail_errno(err, errno);
        goto done;
    }
    for (;;) {
        struct dirent *entry;

        errno = 0;
        entry = readdir(dir);
        if (entry == NULL) {
            if (errno != 0) {
                fail_errno(err, errno);
                goto done;
            }
            break;
        }
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) {
            continue;
        }
        if (count == capacity) { /* the outgrown array stays in the arena; doubling bounds the waste */
            size_t grown = capacity > 0 ? 2 * capacity : 64;
            char **more = agglo_arena_take(arena, grown, sizeof *more, err);

            if (more == NULL) {
                goto done;
            }
            if (count > 0) {
                memcpy(more, list, count * sizeof *list);
            }
            list = more;
            capacity = grown;
        }
        list[count] = agglo_arena_text(arena, entry->d_name, strlen(entry->d_name), err);
        if (list[count] == NULL) {
            goto done;
        }
        count++;
    }
    if (count > 1) {
        qsort(list, count, sizeof *list, by_name);
    }
    *names = list;
    *n = count;
done:
    if (dir != NULL) {
        closedir(dir);
    }
    if (err->status != AGGLO_OK) {
        agglo_at(err, "%s", path);
        agglo_doing(err, "cannot list directory");
    }
    return err->status;
}

/* Empty and remove the directory `name` under the directory `at`. */
static int remove_at(int at, const char *name)
{
    int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    struct dirent *entry;
    DIR *dir;

    if (fd < 0) {
        return errno == ENOTDIR || errno == ELOOP ? unlinkat(at, name, 0) : -1;
    }
    dir = fdopendir(fd);
    if (dir == NULL) {
        close(fd);
        return -1;
    }
    while ((entry = readdir(dir)) != NULL) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0 &&
            remove_at(dirfd(dir), entry->d_name) != 0) {
            int number = errno;

            closedir(dir);
            errno = number;
            return -1;
        }
    }
    closedir(dir);
    return unlinkat(at, name, AT_REMOVEDIR);
}

agglo_status agglo_remove_tree(const char *path, agglo_err *err)
{
    if (remove_at(AT_FDCWD, path) != 0 && errno != ENOENT) {
        agglo_fail(err, AGGLO_E_IO, "%s", strerror(errno));
        agglo_at(err, "%s", path);
        return agglo_doing(err, "cannot remove");
    }
    return AGGLO_OK;
}

/* ---- whole files ---- */

static agglo_status read_all(int fd, void *data, size_t n_bytes, agglo_err *err)
{
    for (size_t done = 0; done < n_bytes;) {
        ssize_t n = read(fd, (char *)data + done, n_bytes - done);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return agglo_fail(err, AGGLO_E_IO, "%s", strerror(errno));
        }
        if (n == 0) {
            return agglo_fail(err, AGGLO_E_IO, "the file became shorter while it was read");
        }
        done += (size_t)n;
    }
    return AGGLO_OK;
}

static agglo_status open_regular(const char *path, int *fd, uint64_t *size, agglo_err *err)
{
    struct stat info;

    *fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC); /* a FIFO is refused below, not waited for */
    if (*fd < 0 || fstat(*fd, &info) != 0) {
        return fail_errno(err, errno);
    }
    if (!S_ISREG(info.st_mode)) {
        return agglo_fail(err, AGGLO_E_IO, "not a regular file");
    }
    *size = (uint64_t)info.st_size;
    return AGGLO_OK;
}

agglo_status agglo_file_read(const char *path, size_t max_bytes, char **out, size_t *n_bytes, agglo_err *err)
{
    char *data = NULL;
    uint64_t size = 0;
    int fd = -1;

    *out = NULL;
    *n_bytes = 0;
    if (open_regular(path, &fd, &size, err) != AGGLO_OK) {
        goto fail;
    }
    if (size > max_bytes) {
        agglo_fail(err, AGGLO_E_DATA, "%llu bytes, more than the %zu that are allowed here", (unsigned long long)size,
                   max_bytes);
        goto fail;
    }
    data = agglo_alloc((size_t)size + 1, 1, err);
    if (data == NULL || read_all(fd, data, (size_t)size, err) != AGGLO_OK) {
        goto fail;
    }
    close(fd);
    *out = data;
    *n_bytes = (size_t)size;
    return AGGLO_OK;
fail:
    agglo_free(data);
    if (fd >= 0) {
        close(fd);
    }
    agglo_at(err, "%s", path);
    return agglo_doing(err, "cannot read file");
}

agglo_status agglo_file_write(const char *path, const void *data, size_t n_bytes, agglo_err *err)
{
    agglo_new_file *file;

    if (agglo_new_file_open(&file, path, NULL, err) != AGGLO_OK) {
        return err->status;
    }
    if (agglo_new_file_write(file, data, n_bytes, err) != AGGLO_OK) {
        agglo_new_file_abort(file);
        return err->status;
    }
    return agglo_new_file_commit(file, err);
}

agglo_status agglo_fd_write(int fd, const void *data, size_t n_bytes, agglo_err *err)
{
    for (size_t done = 0; done < n_bytes;) {
        ssize_t n = write(fd, (const char *)data + done, n_bytes - done);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            return agglo_fail(err, AGGLO_E_IO, "%s", strerror(errno));
        }
        done += (size_t)n;
    }
    return AGGLO_OK;
}

agglo_status agglo_fd_read_at(int fd, uint64_t offset, void *out, size_t n_bytes, agglo_err *err)
{
    for (size_t done = 0; done < n_bytes;) {
        ssize_t n = pread(fd, (char *)out + done, n_bytes - done, (off_t)(offset + done));

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return agglo_fail(err, AGGLO_E_IO, "%s", n == 0 ? "the file ends early" : strerror(errno));
        }
        done += (size_t)n;
    }
    return AGGLO_OK;
}

agglo_status agglo_sync_rename(int fd, const char *from, const char *to, agglo_err *err)
{
    char *dir = agglo_path_dir(to, err);
    int dir_fd = dir == NULL ? -1 : open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (dir != NULL &&
        (dir_fd < 0 || (fd >= 0 && fsync(fd) != 0) || rename(from, to) != 0 ||
         (fsync(dir_fd) != 0 && errno != EINVAL))) { /* some network file systems cannot sync a directory */
        agglo_fail(err, AGGLO_E_IO, "%s", strerror(errno));
    }
    if (dir_fd >= 0) {
        close(dir_fd);
    }
    agglo_free(dir);
    return err->status;
}

agglo_status agglo_map_file(const char *path, agglo_mapping *out, agglo_err *err)
{
    static const uint8_t nothing[1];
    uint64_t size = 0;
    void *data;
    int fd = -1;

    *out = (agglo_mapping){nothing, 0};
    if (open_regular(path, &fd, &size, err) != AGGLO_OK) {
        goto done;
    }
    if (size > SIZE_MAX) {
        agglo_fail(err, AGGLO_E_MEMORY, "%llu bytes cannot be mapped", (unsigned long long)size);
        goto done;
    }
    if (size > 0) {
        data = mmap(NULL, (size_t)size, PROT_READ, MAP_SHARED, fd, 0);
        if (data == MAP_FAILED) {
            agglo_fail(err, AGGLO_E_IO, "%s", strerror(errno));
            goto done;
        }
        *out = (agglo_mapping){data, (size_t)size};
    }
done:
    if (fd >= 0) {
        close(fd);
    }
    if (err->status != AGGLO_OK) {
        agglo_at(err, "%s", path);
        agglo_doing(err, "cannot map file");
    }
    return err->status;
}

void agglo_unmap(agglo_mapping *mapping)
{
    if (mapping->size > 0) {
        munmap((void *)(uintptr_t)mapping->data, mapping->size);
    }
    *mapping = (agglo_mapping){NULL, 0};
}

/* ---- new files ---- */

struct agglo_new_file {
    char *path, *temp;
    int fd;
    bool elsewhere; /* temp is in a scratch directory */
    uint64_t n_bytes;
};

static char *temp_name(const char *dir, const char *path, agglo_err *err)
{
    static atomic_uint counter;
    char *name = agglo_format(err, "%s%ld-%u-%s", temp_prefix, (long)getpid(), atomic_fetch_add(&counter, 1),
                              agglo_path_base(path));
    char *joined = name != NULL ? agglo_path_join(dir, name, err) : NULL;

    agglo_free(name);
    return joined;
}

bool agglo_is_temp_name(const char *base_name)
{
    return strncmp(base_name, temp_prefix, sizeof temp_prefix - 1) == 0;
}

/* A name left by a killed process with this number is stale: truncate it. A link by that name is not ours to write through. */
static int open_temp(const char *path)
{
    return open(path, O_RDWR | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0666);
}

static agglo_status cannot_write(const char *path, agglo_err *err)
{
    agglo_at(err, "%s", path);
    return agglo_doing(err, "cannot write file");
}

agglo_status agglo_new_file_open(agglo_new_file **out, const char *path, const char *scratch, agglo_err *err)
{
    agglo_new_file *file = agglo_alloc(1, sizeof *file, err);
    char *dir = NULL;

    *out = NULL;
    if (file == NULL) {
        return cannot_write(path, err);
    }
    file->fd = -1;
    file->elsewhere = scratch != NULL;
    file->path = agglo_strdup(path, err);
    if (file->path == NULL || (scratch == NULL && (dir = agglo_path_dir(path, err)) == NULL)) {
        goto fail;
    }
    file->temp = temp_name(scratch != NULL ? scratch : dir, path, err);
    if (file->temp == NULL) {
        goto fail;
    }
    file->fd = open_temp(file->temp);
    if (file->fd < 0) {
        agglo_fail(err, AGGLO_E_IO, "%s", strerror(errno));
        goto fail;
    }
    agglo_free(dir);
    *out = file;
    return AGGLO_OK;
fail:
    agglo_free(dir);
    agglo_new_file_abort(file);
    return cannot_write(path, err);
}

agglo_status agglo_new_file_write(agglo_new_file *file, const void *data, size_t n_bytes, agglo_err *err)
{
    if (agglo_fd_write(file->fd, data, n_bytes, err) != AGGLO_OK) {
        return cannot_write(file->path, err);
    }
    file->n_bytes += n_bytes;
    return AGGLO_OK;
}

uint64_t agglo_new_file_size(const agglo_new_file *file)
{
    return file->n_bytes;
}

agglo_status agglo_new_file_rewrite(agglo_new_file *file, uint64_t offset, const void *data, size_t n_bytes,
                                    agglo_err *err)
{
    AGGLO_ASSERT(offset <= file->n_bytes && n_bytes <= file->n_bytes - offset);
    for (size_t done = 0; done < n_bytes;) {
        ssize_t n = pwrite(file->fd, (const char *)data + done, n_bytes - done, (off_t)(offset + done));

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            agglo_fail(err, AGGLO_E_IO, "%s", strerror(errno));
            return cannot_write(file->path, err);
        }
        done += (size_t)n;
    }
    return AGGLO_OK;
}

/* The first n_bytes of one open file to the end of another. */
static agglo_status append_from(int from, uint64_t n_bytes, int to, agglo_err *err)
{
    enum { CHUNK = 1 << 20 };
    uint8_t *buffer = agglo_alloc(CHUNK, 1, err);

    for (uint64_t at = 0; buffer != NULL && at < n_bytes && err->status == AGGLO_OK;) {
        size_t n = n_bytes - at < CHUNK ? (size_t)(n_bytes - at) : CHUNK;

        if (agglo_fd_read_at(from, at, buffer, n, err) == AGGLO_OK) {
            agglo_fd_write(to, buffer, n, err);
        }
        at += n;
    }
    agglo_free(buffer);
    return err->status;
}

/* Everything once more, into a new temporary file that takes the place of the old one. */
static agglo_status prepend_by_copy(agglo_new_file *file, const agglo_new_file *front, agglo_err *err)
{
    char *dir = agglo_path_dir(file->temp, err), *temp = dir != NULL ? temp_name(dir, file->path, err) : NULL;
    int fd = temp != NULL ? open_temp(temp) : -1;

    agglo_free(dir);
    if (temp == NULL) {
        return err->status;
    }
    if (fd < 0) {
        agglo_fail(err, AGGLO_E_IO, "%s", strerror(errno));
    } else if (append_from(front->fd, front->n_bytes, fd, err) == AGGLO_OK &&
               append_from(file->fd, file->n_bytes, fd, err) == AGGLO_OK) {
        char *old = file->temp;
        int old_fd = file->fd;

        file->temp = temp;
        file->fd = fd;
        temp = old;
        fd = old_fd;
    }
    if (fd >= 0) {
        close(fd);
        unlink(temp);
    }
    agglo_free(temp);
    return err->status;
}

agglo_status agglo_new_file_prepend(agglo_new_file *file, const agglo_new_file *front, agglo_err *err)
{
    enum { BLOCK = 4096 };
    bool moved = front->n_bytes % BLOCK == 0 && front->n_bytes > 0 && file->n_bytes > 0 &&
                 fallocate(file->fd, FALLOC_FL_INSERT_RANGE, 0, (off_t)front->n_bytes) == 0;

    if (!moved) {
        prepend_by_copy(file, front, err);
    } else if (lseek(file->fd, 0, SEEK_SET) != 0) {
        agglo_fail(err, AGGLO_E_IO, "%s", strerror(errno));
    } else if (append_from(front->fd, front->n_bytes, file->fd, err) == AGGLO_OK && lseek(file->fd, 0, SEEK_END) < 0) {
        agglo_fail(err, AGGLO_E_IO, "%s", strerror(errno));
    }
    if (err->status != AGGLO_OK) {
        return cannot_write(file->path, err);
    }
    file->n_bytes += front->n_bytes;
    return AGGLO_OK;
}

const char *agglo_new_file_temp(const agglo_new_file *file)
{
    return file->temp;
}

/* Copy the finished scratch file to a temporary name beside its final one; from then on that is the temporary file. */
static agglo_status move_from_scratch(agglo_new_file *file, const char *dir, agglo_err *err)
{
    enum { CHUNK = 1 << 20 };
    char *temp = temp_name(dir, file->path, err);
    uint8_t *buffer = temp != NULL ? agglo_alloc(CHUNK, 1, err) : NULL;
    int fd = -1;

    if (buffer == NULL) {
        goto done;
    }
    fd = open_temp(temp);
    if (fd < 0 || lseek(file->fd, 0, SEEK_SET) != 0) {
        agglo_fail(err, AGGLO_E_IO, "%s", strerror(errno));
        goto done;
    }
    for (;;) {
        ssize_t n = read(file->fd, buffer, CHUNK);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            agglo_fail(err, AGGLO_E_IO, "%s", strerror(errno));
            goto done;
        }
        if (n == 0) {
            break;
        }
        if (agglo_fd_write(fd, buffer, (size_t)n, err) != AGGLO_OK) {
            goto done;
        }
    }
    unlink(file->temp);
    close(file->fd);
    agglo_free(file->temp);
    file->temp = temp;
    file->fd = fd;
    temp = NULL;
    fd = -1;
done:
    if (fd >= 0) {
        close(fd);
        unlink(temp);
    }
    agglo_free(temp);
    agglo_free(buffer);
    return err->status;
}

agglo_status agglo_new_file_seal(agglo_new_file *file, agglo_err *err)
{
    int fd = file->fd;

    AGGLO_ASSERT(!file->elsewhere);
    file->fd = -1;
    if (fd >= 0 && fsync(fd) != 0) {
        agglo_fail(err, AGGLO_E_IO, "%s", strerror(errno));
    }
    if (fd >= 0 && close(fd) != 0 && err->status == AGGLO_OK) {
        agglo_fail(err, AGGLO_E_IO, "%s", strerror(errno));
    }
    if (err->status != AGGLO_OK) {
        return cannot_write(file->path, err);
    }
    return AGGLO_OK;
}

agglo_status agglo_new_file_commit(agglo_new_file *file, agglo_err *err)
{
    char *dir = agglo_path_dir(file->path, err);

    if (dir == NULL || (file->elsewhere && move_from_scratch(file, dir, err) != AGGLO_OK) ||
        agglo_sync_rename(file->fd, file->temp, file->path, err) != AGGLO_OK) {
        cannot_write(file->path, err);
    } else {
        agglo_free(file->temp);
        file->temp = NULL; /* renamed: nothing is left to remove */
    }
    agglo_free(dir);
    agglo_new_file_abort(file);
    return err->status;
}

void agglo_new_file_abort(agglo_new_file *file)
{
    if (file == NULL) {
        return;
    }
    if (file->fd >= 0) {
        close(file->fd);
    }
    if (file->temp != NULL) {
        unlink(file->temp);
    }
    agglo_free(file->temp);
    agglo_free(file->path);
    agglo_free(file);
}
