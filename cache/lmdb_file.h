/* One write-once LMDB file: appended to by one writer, then read by anybody, without locks. The only interface to LMDB.
 *
 * Keys are 5 bytes: ordinal (u32, big-endian), view (u8), so LMDB's own order is that of (ordinal, view).
 */
#ifndef AGGLO_CACHE_LMDB_FILE_H
#define AGGLO_CACHE_LMDB_FILE_H

#include "base/bytes.h"
#include "base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- writing ---- */

typedef struct agglo_lmdb_writer agglo_lmdb_writer;

/* Fill the empty (or missing) file at `path`. The map is sized for max_records values of max_bytes; equal bounds and equal puts give equal
 * files. On failure nothing is held, the file may be left half-made. */
agglo_status agglo_lmdb_writer_new(agglo_lmdb_writer **out, const char *path, size_t max_bytes, uint64_t max_records,
                                   agglo_err *err);
/* Keys ascend: AGGLO_E_CONFIG otherwise. */
agglo_status agglo_lmdb_writer_put(agglo_lmdb_writer *writer, uint32_t ordinal, int view, agglo_bytes value,
                                   agglo_err *err);
/* Write out, sync, close. The writer is freed whatever happens. */
agglo_status agglo_lmdb_writer_finish(agglo_lmdb_writer *writer, agglo_err *err);
void agglo_lmdb_writer_abort(agglo_lmdb_writer *writer); /* NULL is fine */

/* ---- reading ---- */

typedef struct agglo_lmdb_reader agglo_lmdb_reader;

/* Map a finished file. LMDB trusts its pages: the caller has verified a hash of the file, or takes the risk. */
agglo_status agglo_lmdb_reader_open(agglo_lmdb_reader **out, const char *path, agglo_err *err);
void agglo_lmdb_reader_close(agglo_lmdb_reader *reader); /* NULL is fine */
uint64_t agglo_lmdb_reader_count(const agglo_lmdb_reader *reader);

/* Borrowed from the map until close. AGGLO_E_NOT_FOUND. Any thread. */
agglo_status agglo_lmdb_reader_get(const agglo_lmdb_reader *reader, uint32_t ordinal, int view, agglo_bytes *out,
                                   agglo_err *err);

/* All values in order of their keys, until `visit` fails. A key of another form is AGGLO_E_DATA. */
agglo_status agglo_lmdb_reader_each(const agglo_lmdb_reader *reader,
                                    agglo_status (*visit)(void *context, uint32_t ordinal, int view, agglo_bytes value,
                                                          agglo_err *err),
                                    void *context, agglo_err *err);

#ifdef __cplusplus
}
#endif
#endif
