/* The two kinds of sources behind ingest/source.h: tars and folders of pictures. */
#ifndef AGGLO_INGEST_SOURCE_IMPL_H
#define AGGLO_INGEST_SOURCE_IMPL_H

#include "ingest/source.h"

/* What `damage` says of bytes that follow the compressed data: nothing is missing. */
#define AGGLO_SOURCE_TRAILING "bytes behind the compressed data are not read"

/* A new file without a name, in `dir`; -1 and error. */
int agglo_open_spool(const char *dir, agglo_err *err);

agglo_status agglo_tar_scan(agglo_source *source, agglo_source_visit visit, void *context, const char **reason,
                            char detail[256], agglo_err *err);

/* Walk the folder: files in the order of their names' bytes, folders where their names stand. *n_bytes: of all files. */
agglo_status agglo_folder_open(agglo_folder **out, const char *path, uint64_t *n_bytes, agglo_err *err);
void agglo_folder_close(agglo_folder *folder); /* NULL is fine */
/* Over the path, size and time of change of every file. */
agglo_hash128 agglo_folder_identity(const agglo_folder *folder);
size_t agglo_folder_files(const agglo_folder *folder);
agglo_status agglo_folder_file(const agglo_folder *folder, size_t number, agglo_source_member *out, char **name,
                               agglo_err *err);
/* The n bytes of file `number`; an error when it has another size by now. Any thread. */
agglo_status agglo_folder_read(const agglo_folder *folder, uint64_t number, void *out, size_t n, agglo_err *err);

#endif
