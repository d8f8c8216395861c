/* A set of 16-byte values: uids, or the first halves of sha256 digests. It answers "has this been seen", and nothing about it depends on
 * the order in which its table stands: results are the same on every run.
 */
#ifndef AGGLO_INGEST_UID_SET_H
#define AGGLO_INGEST_UID_SET_H

#include "base/alloc.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Any number of threads may ask, as long as none adds. */
typedef struct agglo_uid_set agglo_uid_set;

/* Empty, with room for `expected` values (0: unknown): 21 1/3 bytes each, and it grows no more until there are so many. A set that grows
 * doubles: 21 to 43 bytes a value, and half as much again while it moves. Values are placed by a hash with a random key, so that nobody
 * who chooses them can make it slow. AGGLO_E_MEMORY; AGGLO_E_IO when the system gives no random bytes. */
agglo_status agglo_uid_set_new(agglo_uid_set **out, uint64_t expected, agglo_err *err);
void agglo_uid_set_free(agglo_uid_set *set); /* NULL is fine */

/* Put `uid` in. *known: it was there before (may be NULL). AGGLO_E_MEMORY leaves the set as it was. Constant time, on average. */
agglo_status agglo_uid_set_add(agglo_uid_set *set, const uint8_t uid[16], bool *known, agglo_err *err);
/* Constant time. */
bool agglo_uid_set_has(const agglo_uid_set *set, const uint8_t uid[16]);
/* How many different values are in it. */
uint64_t agglo_uid_set_count(const agglo_uid_set *set);

#ifdef __cplusplus
}
#endif
#endif
