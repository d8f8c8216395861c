/* safetensors files: mapped and fully validated on opening; written sorted, aligned and atomically.
 *
 * Format: https://github.com/huggingface/safetensors (header length, JSON header, data without holes). The file is hostile: every
 * size and offset is checked before it is used.
 */
#ifndef AGGLO_BASE_SAFETENSORS_H
#define AGGLO_BASE_SAFETENSORS_H

#include "base/dtype.h"
#include "base/fs.h"
#include "base/hash.h"

#ifdef __cplusplus
extern "C" {
#endif

#define AGGLO_ST_MAX_RANK 8

typedef struct agglo_st_tensor {
    const char *name;
    agglo_dtype dtype;
    const char *dtype_text; /* as in the file: "F32", "F8_E4M3" */
    int rank;
    int64_t shape[AGGLO_ST_MAX_RANK];
    int64_t n_elements;
    const uint8_t *data; /* in the mapping; any alignment */
    size_t n_bytes;
} agglo_st_tensor;

typedef struct agglo_safetensors agglo_safetensors;

/* Map and validate. AGGLO_E_DATA names the tensor where there is one. Closed by the caller; tensors are borrowed from it. */
agglo_status agglo_safetensors_open(agglo_safetensors **out, const char *path, agglo_err *err);

/* The same over bytes in memory, borrowed until close (tests, fuzzing). `name` is used in messages. */
agglo_status agglo_safetensors_parse(agglo_safetensors **out, agglo_bytes bytes, const char *name, agglo_err *err);
void agglo_safetensors_close(agglo_safetensors *st);

size_t agglo_safetensors_count(const agglo_safetensors *st);
const agglo_st_tensor *agglo_safetensors_at(const agglo_safetensors *st, size_t i);           /* in order of name */
const agglo_st_tensor *agglo_safetensors_find(const agglo_safetensors *st, const char *name); /* NULL: none */
const char *agglo_safetensors_meta(const agglo_safetensors *st, const char *key);             /* NULL: none */
/* The i-th metadata pair in file order; false behind the last. */
bool agglo_safetensors_meta_at(const agglo_safetensors *st, size_t i, const char **key, const char **value);
const char *agglo_safetensors_path(const agglo_safetensors *st);
/* sha256 of the whole file, lower-case hex, computed at the first call. */
agglo_status agglo_safetensors_sha256(agglo_safetensors *st, agglo_sha256 *out, agglo_err *err);

/* Writing. Tensors and texts are borrowed until the write; texts that are not UTF-8 are refused (AGGLO_E_DATA). */
typedef struct agglo_st_writer agglo_st_writer;

agglo_status agglo_st_writer_new(agglo_st_writer **out, agglo_err *err);
agglo_status agglo_st_writer_meta(agglo_st_writer *writer, const char *key, const char *value, agglo_err *err);
/* A name may come once. data is row-major, of `dtype` (not AGGLO_DTYPE_OTHER). */
agglo_status agglo_st_writer_add(agglo_st_writer *writer, const char *name, agglo_dtype dtype, int rank,
                                 const int64_t *shape, const void *data, agglo_err *err);
/* Equal content gives equal bytes: widest dtype first, then by name; metadata sorted by key; padded to 8. */
agglo_status agglo_st_writer_write(agglo_st_writer *writer, const char *path, agglo_err *err);
void agglo_st_writer_free(agglo_st_writer *writer);

/* Writing what does not fit into memory: tensors go to the file as they come, one behind the other, and the header's text to a second
 * temporary file that is put in front at the end (agglo_new_file_prepend). Memory does not grow with the number of tensors; the header is
 * padded with spaces so that the data begin at a multiple of 4096. Equal calls give equal bytes. */
typedef struct agglo_st_stream agglo_st_stream;

agglo_status agglo_st_stream_open(agglo_st_stream **out, const char *path, agglo_err *err);
/* Before the first tensor. A key may come once: the caller sees to it. AGGLO_E_DATA for texts that are not UTF-8. */
agglo_status agglo_st_stream_meta(agglo_st_stream *stream, const char *key, const char *value, agglo_err *err);
/* Whether a header takes these n_names more tensors, whose names have n_bytes altogether (a format's limit: 100 MB). */
bool agglo_st_stream_fits(const agglo_st_stream *stream, size_t n_names, size_t n_bytes);
/* A name may come once: the caller sees to it. The tensor fits (agglo_st_stream_fits). `data` is not needed afterwards. On a failure the
 * stream is good for agglo_st_stream_abort only. */
agglo_status agglo_st_stream_add(agglo_st_stream *stream, const char *name, agglo_dtype dtype, int rank,
                                 const int64_t *shape, const void *data, agglo_err *err);
/* Bytes so far, header and data. */
uint64_t agglo_st_stream_size(const agglo_st_stream *stream);
/* No tensor comes any more: the file is whole and synced, under its temporary name, and holds no descriptor, so that many can be committed
 * together. Afterwards only commit, abort, size. On a failure only abort. */
agglo_status agglo_st_stream_seal(agglo_st_stream *stream, agglo_err *err);
/* Sealed, if it is not. The file appears under its name, whole and synced. The object is freed whatever happens; on failure nothing remains. */
agglo_status agglo_st_stream_commit(agglo_st_stream *stream, agglo_err *err);
void agglo_st_stream_abort(agglo_st_stream *stream); /* nothing remains; NULL is fine */

#ifdef __cplusplus
}
#endif
#endif
