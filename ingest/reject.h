/* Rejects: a line of rejects.jsonl per rejected sample, dropped member or unreadable shard, and the counts of all reasons. */
#ifndef AGGLO_INGEST_REJECT_H
#define AGGLO_INGEST_REJECT_H

#include "base/json.h"

#ifdef __cplusplus
extern "C" {
#endif

#define AGGLO_REJECTS_FILE "rejects.jsonl"

typedef struct agglo_rejects agglo_rejects;

agglo_status agglo_rejects_new(agglo_rejects **out, agglo_err *err);
void agglo_rejects_free(agglo_rejects *rejects); /* NULL is fine */
/* Count a reject and make its line, newline included: the list's until its next one. `reason` is a short code (docs/formats.md); key and
 * detail may be NULL. Bytes that are not UTF-8 are written as U+FFFD; keys and sources are cut at 4096 bytes. */
agglo_status agglo_rejects_line(agglo_rejects *rejects, const char *source, const char *key, const char *reason,
                                const char *detail, agglo_bytes *line, agglo_err *err);
/* Count n rejects whose lines are there already. AGGLO_E_DATA for too many reasons, or a code that is too long. */
agglo_status agglo_rejects_count(agglo_rejects *rejects, const char *reason, uint64_t n, agglo_err *err);
/* reason -> count, keys sorted; a new reference. NULL and error on lack of memory. */
json_t *agglo_rejects_counts(const agglo_rejects *rejects, agglo_err *err);

#ifdef __cplusplus
}
#endif
#endif
