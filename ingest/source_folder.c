/* A folder of pictures as a source. Names become members as webdataset splits them at the first dot: people's files have dots anywhere, so
 * the last one is taken here ("a.b.jpg" is the member "a_b.jpg"). Links to files are followed, links to folders are not: they may run in
 * circles.
 */
#include "ingest/source_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/arena.h"
#include "base/fs.h"
#include "base/stop.h"
#include "ingest/sample.h"

enum { MAX_DEPTH = 64, LIST_CHUNK = 1 << 20 };

typedef struct folder_file {
    const char *path; /* below the folder */
    uint64_t n_bytes;
    const char *unsupported;
} folder_file;

static const char unreadable[] = "a folder that cannot be read", too_deep[] = "a folder too deep";

struct agglo_folder {
    char *path;
    agglo_arena *texts;
    folder_file *files;
    size_t n, room;
    agglo_hasher *hasher;
    agglo_hash128 identity;
};

static agglo_status add_file(agglo_folder *f, const char *path, const struct stat *info, const char *unsupported,
                             agglo_err *err)
{
    uint8_t numbers[24];
    folder_file *file;

    if (f->n == f->room) {
        size_t room = f->room * 2 + 256;
        folder_file *files = agglo_realloc(f->files, f->room * sizeof *files, room * sizeof *files, err);

        if (files == NULL) {
            return err->status;
        }
        f->files = files;
        f->room = room;
    }
    file = &f->files[f->n];
    *file = (folder_file){agglo_arena_text(f->texts, path, strlen(path), err), (uint64_t)info->st_size, unsupported};
    if (file->path == NULL) {
        return err->status;
    }
    f->n++;
    agglo_put_le64(numbers, file->n_bytes);
    agglo_put_le64(numbers + 8, (uint64_t)info->st_mtim.tv_sec);
    agglo_put_le64(numbers + 16, (uint64_t)info->st_mtim.tv_nsec);
    return agglo_hasher_add(f->hasher, path, strlen(path) + 1, err) == AGGLO_OK
               ? agglo_hasher_add(f->hasher, numbers, sizeof numbers, err)
               : err->status;
}

static agglo_status walk(agglo_folder *f, const char *below, int depth, uint64_t *n_bytes, agglo_err *err)
{
    agglo_arena *list = NULL; /* of this folder's names, gone when it is done */
    char **names, *dir = agglo_path_join(f->path, below, err);
    size_t n;

    if (dir == NULL || agglo_arena_new(&list, LIST_CHUNK, err) != AGGLO_OK) {
        goto done;
    }
    if (agglo_list_dir(dir, list, &names, &n, err) != AGGLO_OK) {
        if (depth > 0 && err->status != AGGLO_E_MEMORY) { /* it costs itself */
            agglo_err_clear(err);
            add_file(f, below, &(struct stat){0}, unreadable, err);
        }
        goto done;
    }
    for (size_t i = 0; i < n && err->status == AGGLO_OK && agglo_stop_check(err) == AGGLO_OK; i++) {
        char *path = below[0] == 0 ? agglo_strdup(names[i], err) : agglo_path_join(below, names[i], err);
        char *full = path == NULL ? NULL : agglo_path_join(f->path, path, err);
        struct stat info, link;

        if (full == NULL) {
            agglo_free(path);
            break;
        }
        if (lstat(full, &link) != 0 || (S_ISLNK(link.st_mode) && stat(full, &info) != 0)) {
            add_file(f, path, &(struct stat){0}, "a link to nothing", err);
        } else if (names[i][0] == '.') {
            add_file(f, path, &link, "a hidden file or folder", err);
        } else if (!S_ISLNK(link.st_mode) && S_ISDIR(link.st_mode)) {
            if (depth == MAX_DEPTH) {
                add_file(f, path, &link, too_deep, err);
            } else {
                walk(f, path, depth + 1, n_bytes, err);
            }
        } else {
            info = S_ISLNK(link.st_mode) ? info : link;
            *n_bytes += S_ISREG(info.st_mode) ? (uint64_t)info.st_size : 0;
            add_file(f, path, &info,
                     S_ISREG(info.st_mode)   ? NULL
                     : S_ISDIR(info.st_mode) ? "a link to a folder"
                                             : "a device, a pipe or a socket",
                     err);
        }
        agglo_free(full);
        agglo_free(path);
    }
done:
    agglo_arena_free(list);
    agglo_free(dir);
    return err->status;
}

agglo_status agglo_folder_open(agglo_folder **out, const char *path, uint64_t *n_bytes, agglo_err *err)
{
    agglo_folder *f = agglo_alloc(1, sizeof *f, err);

    *out = NULL;
    *n_bytes = 0;
    if (f == NULL || (f->path = agglo_strdup(path, err)) == NULL ||
        agglo_arena_new(&f->texts, LIST_CHUNK, err) != AGGLO_OK ||
        agglo_hasher_new(&f->hasher, AGGLO_HASH_XXH3_128, err) != AGGLO_OK ||
        walk(f, "", 0, n_bytes, err) != AGGLO_OK) {
        agglo_folder_close(f);
        return err->status;
    }
    f->identity = agglo_hasher_so_far(f->hasher);
    if (f->n > 0) { /* the list was grown by doubling, and stays for long */
        folder_file *files = agglo_realloc(f->files, f->room * sizeof *files, f->n * sizeof *files, err);

        if (files == NULL) {
            agglo_folder_close(f);
            return err->status;
        }
        f->files = files;
        f->room = f->n;
    }
    *out = f;
    return AGGLO_OK;
}

void agglo_folder_close(agglo_folder *folder)
{
    if (folder != NULL) {
        agglo_hasher_free(folder->hasher);
        agglo_arena_free(folder->texts);
        agglo_free(folder->files);
        agglo_free(folder->path);
        agglo_free(folder);
    }
}

agglo_hash128 agglo_folder_identity(const agglo_folder *folder)
{
    return folder->identity;
}

size_t agglo_folder_files(const agglo_folder *folder)
{
    return folder->n;
}

agglo_status agglo_folder_file(const agglo_folder *folder, size_t number, agglo_source_member *out, char **name,
                               agglo_err *err)
{
    const folder_file *file = &folder->files[number];

    *name = agglo_strdup(file->path, err);
    if (*name != NULL && file->unsupported == NULL) {
        agglo_name_join_stem(*name);
    }
    *out = (agglo_source_member){.name = *name,
                                 .offset = number,
                                 .n_bytes = file->n_bytes,
                                 .unsupported = file->unsupported,
                                 .unread = file->unsupported == unreadable || file->unsupported == too_deep};
    return err->status;
}

agglo_status agglo_folder_read(const agglo_folder *folder, uint64_t number, void *out, size_t n, agglo_err *err)
{
    char *path = agglo_path_join(folder->path, folder->files[number].path, err);
    struct stat info;
    int fd = path == NULL ? -1 : open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

    if (path == NULL) {
        return err->status;
    }
    if (fd < 0 || fstat(fd, &info) != 0) {
        agglo_fail(err, AGGLO_E_IO, "%s", strerror(errno));
    } else if (!S_ISREG(info.st_mode) || (uint64_t)info.st_size != n) {
        agglo_fail(err, AGGLO_E_IO, "the file has changed");
    } else {
        agglo_fd_read_at(fd, 0, out, n, err);
    }
    if (fd >= 0) {
        close(fd);
    }
    agglo_free(path);
    return err->status;
}
