/* The reject list: rejects.jsonl, one object per rejected sample, dropped member or unreadable shard, and the counts of all reasons. */
#ifndef AGGLO_INGEST_REJECT_H
#define AGGLO_INGEST_REJECT_H

#include "base/json.h"

#ifdef __cplusplus
extern "C" {
#endif

#define AGGLO_REJECTS_FILE "rejects.jsonl"

typedef struct agglo_rejects agglo_rejects;

agglo_status agglo_rejects_new(agglo_rejects **out, const char *path, agglo_err *err);
/* One line. `reason` is a code of static storage (docs/formats.md); key and detail may be NULL. Bytes that are not UTF-8 are written as
 * U+FFFD. */
agglo_status agglo_rejects_add(agglo_rejects *rejects, const char *source, const char *key, const char *reason,
                               const char *detail, agglo_err *err);
/* reason -> count, keys sorted; a new reference. NULL and error on lack of memory. */
json_t *agglo_rejects_counts(const agglo_rejects *rejects, agglo_err *err);
/* Make the file appear. */
agglo_status agglo_rejects_commit(agglo_rejects *rejects, agglo_err *err);
/* Free; what was not committed is gone. NULL is fine. */
void agglo_rejects_free(agglo_rejects *rejects);

#ifdef __cplusplus
}
#endif
#endif
