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

enum { MAX_DEPTH = 64, LIST_CHUNK = 1 << 20 };

typedef struct folder_file {
    const char *path; /* below the folder */
    uint64_t n_bytes;
    const char *unsupported;
} folder_file;

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
            add_file(f, below, &(struct stat){0}, "a folder that cannot be read", err);
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
                add_file(f, path, &link, "a folder too deep", err);
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

/* Where the extension of `base` begins (its dot): the last dot, but for the mask of a picture, "x.seg.png". */
static char *extension_of(char *base)
{
    char *dot = strrchr(base, '.');

    if (dot != NULL && dot - base > 4 && strcmp(dot, ".png") == 0 && strncmp(dot - 4, ".seg", 4) == 0) {
        return dot - 4;
    }
    return dot;
}

agglo_status agglo_folder_scan(const agglo_folder *folder, agglo_source_visit visit, void *context, agglo_err *err)
{
    for (size_t i = 0; i < folder->n && err->status == AGGLO_OK; i++) {
        const folder_file *file = &folder->files[i];
        char *name = agglo_strdup(file->path, err);
        agglo_source_member member = {
            .name = name, .offset = i, .n_bytes = file->n_bytes, .unsupported = file->unsupported};

        if (name == NULL) {
            break;
        }
        if (member.unsupported == NULL) {
            char *slash = strrchr(name, '/'), *base = slash == NULL ? name : slash + 1, *end = extension_of(base);

            for (char *c = base; end != NULL && c < end; c++) {
                *c = (char)(*c == '.' ? '_' : *c);
            }
        }
        visit(context, &member, err);
        agglo_free(name);
    }
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
