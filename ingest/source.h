/* A source of an ingest: a tar (plain, gzip or zstd, from a file or from standard input), or a folder of pictures. Its members are walked
 * first (names, places, sizes), their data read later, in any order and from any thread. What is compressed, and standard input, is spooled
 * to an unlinked temporary file first.
 */
#ifndef AGGLO_INGEST_SOURCE_H
#define AGGLO_INGEST_SOURCE_H

#include "base/alloc.h"
#include "base/bytes.h"
#include "base/hash.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct agglo_folder agglo_folder;

typedef struct agglo_source {
    int fd;               /* of a tar; -1: closed */
    uint64_t n_bytes;     /* of the file as given, or of all files of the folder */
    uint64_t n_plain;     /* of the tar that `fd` holds now */
    char damage[128];     /* why unpacking ended early; empty: it did not */
    agglo_folder *folder; /* NULL: a tar */
} agglo_source;

/* Open `path`, or spool standard input ("-") into spool_dir. AGGLO_E_NOT_FOUND, AGGLO_E_IO. */
agglo_status agglo_source_open(agglo_source *out, const char *path, const char *spool_dir, agglo_err *err);
void agglo_source_close(agglo_source *source); /* safe on a closed one, not on a zeroed one */

/* A tar by its name: .tar, .tar.gz, .tgz, .tar.zst, .tar.zstd. */
bool agglo_is_tar_name(const char *name);

typedef enum agglo_packing { AGGLO_PACKED_NOT, AGGLO_PACKED_GZIP, AGGLO_PACKED_ZSTD } agglo_packing;

/* How something is compressed, by its first bytes (four of them tell). */
agglo_packing agglo_packing_of(agglo_bytes head);

/* What tells this source from another: of a tar, xxh3-128 of its size, its first and its last 64 KiB; of a folder, of the path, size and
 * time of change of every file. */
agglo_status agglo_source_identity(const agglo_source *source, agglo_hash128 *out, agglo_err *err);

/* Decompress gzip and zstd into spool_dir; anything else stays as it is. Data that are cut off or damaged leave what came before and a note
 * in `damage`. */
agglo_status agglo_source_unpack(agglo_source *source, const char *spool_dir, agglo_err *err);

typedef struct agglo_source_member {
    const char *name;         /* in a folder: the path below it, dots of the last part's stem replaced by '_' */
    uint64_t offset, n_bytes; /* of the data; for agglo_source_read */
    const char *unsupported;  /* NULL: a plain file; else what it is instead */
    bool directory;
    bool cut;    /* the tar ends within it */
    bool unread; /* a folder whose files are not known: it cannot be read, or is too deep; `unsupported` says which */
} agglo_source_member;

/* Called for every member; anything but AGGLO_OK ends the scan. */
typedef agglo_status (*agglo_source_visit)(void *context, const agglo_source_member *member, agglo_err *err);

/* Walk the members. *reason is NULL when the source was whole, else "shard_truncated", "shard_corrupt" or "trailing_data" (bytes behind the
 * end of the tar, which no reader takes), with the cause in detail[256]; what was visited before stands. An error is the visitor's, or
 * AGGLO_E_MEMORY. */
agglo_status agglo_source_scan(agglo_source *source, agglo_source_visit visit, void *context, const char **reason,
                               char detail[256], agglo_err *err);

/* A folder's members one by one, in the order of the scan: how many (0: a tar), and the one of a number below that, whose name is then *name
 * (agglo_free). */
size_t agglo_source_files(const agglo_source *source);
agglo_status agglo_source_file(const agglo_source *source, size_t number, agglo_source_member *out, char **name,
                               agglo_err *err);

/* Read n bytes at a member's offset. Any thread. */
agglo_status agglo_source_read(const agglo_source *source, uint64_t offset, void *out, size_t n, agglo_err *err);

#ifdef __cplusplus
}
#endif
#endif
