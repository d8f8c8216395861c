/* A journal: records appended in batches, of which a reader sees whole ones only. What was committed survives the process, whatever kills
 * it; after a power failure the journal may end at an earlier batch, never inside one.
 *
 *     "AGGLOJNL", version u32, 0 u32                                          header, 16 bytes
 *     "BTCH", bytes of the records u32, xxh3-64 of them u64, the records      a batch; the first that does not check ends the journal
 *     type u8, bytes u32, payload                                             a record
 *
 * One process at a time: the file is locked while it is open. One thread.
 */
#ifndef AGGLO_BASE_JOURNAL_H
#define AGGLO_BASE_JOURNAL_H

#include "base/bytes.h"
#include "base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct agglo_journal agglo_journal;

/* Open or create `path`; what stands behind the last whole batch is cut off. AGGLO_E_CONFIG when another process has it open, AGGLO_E_DATA
 * when it is no journal, AGGLO_E_MISMATCH when it is one of another version. */
agglo_status agglo_journal_open(agglo_journal **out, const char *path, agglo_err *err);
/* Close; records that were not committed are gone. NULL is fine. */
void agglo_journal_close(agglo_journal *journal);
/* Close and remove the file. */
agglo_status agglo_journal_remove(agglo_journal *journal, agglo_err *err);

/* Called for every record in order; `end` is the place behind the record's batch, for agglo_journal_cut. The payload is borrowed. Anything
 * but AGGLO_OK ends the reading. */
typedef agglo_status (*agglo_journal_visit)(void *context, uint8_t type, agglo_bytes payload, uint64_t end,
                                            agglo_err *err);

agglo_status agglo_journal_read(const agglo_journal *journal, agglo_journal_visit visit, void *context, agglo_err *err);
/* Forget all batches behind `end`, as agglo_journal_read gave it (0: all of them). */
agglo_status agglo_journal_cut(agglo_journal *journal, uint64_t end, agglo_err *err);
bool agglo_journal_is_empty(const agglo_journal *journal);

/* Append to the batch in work; it is in memory until it is committed. A batch holds less than 4 GiB. */
agglo_status agglo_journal_add(agglo_journal *journal, uint8_t type, const void *payload, size_t n_bytes,
                               agglo_err *err);
/* Bytes of the batch in work. */
size_t agglo_journal_pending(const agglo_journal *journal);
/* Write the batch in work; one without records is none. Not synced: see above. */
agglo_status agglo_journal_commit(agglo_journal *journal, agglo_err *err);

#ifdef __cplusplus
}
#endif
#endif
