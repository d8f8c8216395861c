/* Files: paths, whole-file reads with a bound, mappings, and writes that appear only when they are complete. */
#ifndef AGGLO_BASE_FS_H
#define AGGLO_BASE_FS_H

#include "base/alloc.h"
#include "base/arena.h"
#include "base/bytes.h"

#ifdef __cplusplus
extern "C" {
#endif

/* dir + "/" + name (name alone if it is absolute or dir is "" or "."), in a new string. NULL and error on failure. */
char *agglo_path_join(const char *dir, const char *name, agglo_err *err);

/* The directory part of `path` ("." if there is none), in a new string. */
char *agglo_path_dir(const char *path, agglo_err *err);

/* Borrowed pointer into `path`, behind its last slash. */
const char *agglo_path_base(const char *path);

bool agglo_path_exists(const char *path);
bool agglo_path_is_dir(const char *path);

/* Size in bytes of a regular file; AGGLO_E_NOT_FOUND when there is none, AGGLO_E_IO otherwise. */
agglo_status agglo_file_size(const char *path, uint64_t *out, agglo_err *err);

/* Make a directory and its parents; one that exists is fine. */
agglo_status agglo_make_dirs(const char *path, agglo_err *err);

/* Names in a directory (not "." and ".."), sorted by bytes; arrays and texts in `arena`. */
agglo_status agglo_list_dir(const char *path, agglo_arena *arena, char ***names, size_t *n, agglo_err *err);

/* Remove a directory tree (tests, scratch). A missing one is fine. Does not follow links. */
agglo_status agglo_remove_tree(const char *path, agglo_err *err);

/* Read a whole regular file of at most max_bytes; *out is NUL-terminated behind its n_bytes; agglo_free it.
 * AGGLO_E_NOT_FOUND when there is none. */
agglo_status agglo_file_read(const char *path, size_t max_bytes, char **out, size_t *n_bytes, agglo_err *err);

/* Write a whole file under a temporary name beside it, sync it, rename it, sync the directory. */
agglo_status agglo_file_write(const char *path, const void *data, size_t n_bytes, agglo_err *err);

/* All n_bytes to (from) a descriptor, however often the system stops halfway. AGGLO_E_IO; agglo_fd_read_at also where the file ends early. */
agglo_status agglo_fd_write(int fd, const void *data, size_t n_bytes, agglo_err *err);
agglo_status agglo_fd_read_at(int fd, uint64_t offset, void *out, size_t n_bytes, agglo_err *err);

/* fsync `fd` (-1: that was done), rename its file `from` to `to`, fsync the directory of `to`: afterwards `to` is there, whole, even when the power fails. */
agglo_status agglo_sync_rename(int fd, const char *from, const char *to, agglo_err *err);

/* A read-only mapping of a whole file; an empty file maps to {non-NULL, 0}. */
typedef struct agglo_mapping {
    const uint8_t *data;
    size_t size;
} agglo_mapping;

agglo_status agglo_map_file(const char *path, agglo_mapping *out, agglo_err *err);
void agglo_unmap(agglo_mapping *mapping); /* safe on a zeroed one */

/* A file being written: visible under its final name only after commit. The temporary name is ".tmp-<pid>-<n>-BASENAME" in the
 * final directory, or in `scratch` (then commit copies it to the final directory under such a name first). */
typedef struct agglo_new_file agglo_new_file;

agglo_status agglo_new_file_open(agglo_new_file **out, const char *path, const char *scratch, agglo_err *err);
agglo_status agglo_new_file_write(agglo_new_file *file, const void *data, size_t n_bytes, agglo_err *err);
/* Bytes written so far. */
uint64_t agglo_new_file_size(const agglo_new_file *file);
/* Bytes that were written already, once more; offset + n_bytes lies within the file. */
agglo_status agglo_new_file_rewrite(agglo_new_file *file, uint64_t offset, const void *data, size_t n_bytes,
                                    agglo_err *err);
/* Put all that `front` holds in front of what `file` holds. Where the file system can move a file's bytes (ext4, XFS) and front's size is a
 * multiple of 4096 only front is written; otherwise all of it once more, and both stand on the disk for a while. */
agglo_status agglo_new_file_prepend(agglo_new_file *file, const agglo_new_file *front, agglo_err *err);
/* Path of the temporary file (for libraries that write by name); borrowed. */
const char *agglo_new_file_temp(const agglo_new_file *file);
/* It is complete: fsync and close, so that many can wait to be committed together. Afterwards only commit, abort, size. Not with scratch. */
agglo_status agglo_new_file_seal(agglo_new_file *file, agglo_err *err);
/* fsync, rename, fsync the directory. The object is freed whatever happens; on failure nothing remains. */
agglo_status agglo_new_file_commit(agglo_new_file *file, agglo_err *err);
/* Remove the temporary file and free the object; NULL is fine. */
void agglo_new_file_abort(agglo_new_file *file);

/* True for a name that agglo_new_file makes (what a killed process may leave behind; safe to remove when stale). */
bool agglo_is_temp_name(const char *base_name);

#ifdef __cplusplus
}
#endif
#endif
