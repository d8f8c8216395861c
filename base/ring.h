/* An ordered pipeline: one thread hands jobs out in order, workers do them in parallel, and they are taken back in order.
 *
 *     claim -> fill the slot -> submit ... [workers: work(slot)] ... take -> use the slot -> release
 *
 * Slots are a bounded ring of fixed structs that the ring zeroes once and hands round; whatever a slot points to belongs to the
 * user and may be kept from job to job. Results never depend on the number of workers. Claim and submit belong to one thread,
 * take and release to one thread (it may be the same one).
 */
#ifndef AGGLO_BASE_RING_H
#define AGGLO_BASE_RING_H

#include "base/alloc.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct agglo_ring agglo_ring;

/* A worker's job. What it returns and puts into err comes out of agglo_ring_take for that slot. */
typedef agglo_status (*agglo_ring_work)(void *context, void *slot, int worker, agglo_err *err);

/* n_slots jobs in flight at most (counting one taken and not released), n_workers threads (at least 1). */
agglo_status agglo_ring_new(agglo_ring **out, int n_slots, size_t slot_bytes, int n_workers, agglo_ring_work work,
                            void *context, agglo_err *err);

/* Wait for all jobs, stop the threads. clear (may be NULL) is called on every slot, so that it can free what they hold. */
void agglo_ring_free(agglo_ring *ring, void (*clear)(void *slot));

/* The next slot to fill; blocks while all are in flight. NULL when wait is false and none is free. */
void *agglo_ring_claim(agglo_ring *ring, bool wait);
void agglo_ring_submit(agglo_ring *ring);

/* Jobs submitted and not yet released. */
int agglo_ring_in_flight(const agglo_ring *ring);

/* The oldest job's slot, when its work is done (blocks); NULL in *slot when nothing is in flight. The returned status is that of
 * the job: the slot is valid, and must be released, either way. */
agglo_status agglo_ring_take(agglo_ring *ring, void **slot, agglo_err *err);
void agglo_ring_release(agglo_ring *ring);

#ifdef __cplusplus
}
#endif
#endif
