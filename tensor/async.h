/* Work that goes on beside the host: events, pinned memory, uploads on a stream of their own, a ring of upload slots, and steps that are
 * recorded once and replayed.
 *
 * Operators are issued on the backend's compute stream, in order. Uploads of this header go on its copy stream, which is ordered against the
 * compute stream by events alone:
 *
 *     fill a slot -> agglo_upload_async(after = "the last reader of dst is done", done) -> agglo_event_join(done) -> operators that read dst
 *
 * agglo_backend_alloc zeroes on the compute stream: where dst has had no reader yet, `after` is an event recorded behind its allocation.
 *
 * On the CPU backend every operator and copy has happened when it returns: events are always done, pinned memory is plain memory, and a
 * captured step has simply run (agglo_backend_captures says so). Code is the same for both.
 *
 * As with operators, one thread at a time per backend, failures are latched (agglo_backend_check), and after one nothing is done; events
 * then count as done, so that nobody waits for ever.
 */
#ifndef AGGLO_TENSOR_ASYNC_H
#define AGGLO_TENSOR_ASYNC_H

#include "tensor/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A point in a stream. One that was never recorded is done. */
typedef struct agglo_event agglo_event;

agglo_event *agglo_event_new(agglo_backend *backend, agglo_err *err); /* NULL and error on failure */
void agglo_event_free(agglo_backend *backend, agglo_event *event);    /* NULL is fine */
void agglo_event_record(agglo_backend *backend, agglo_event *event);  /* here in the compute stream */
void agglo_event_join(agglo_backend *backend,
                      const agglo_event *event); /* operators issued from now on come after it */
void agglo_event_wait(agglo_backend *backend, const agglo_event *event); /* the host waits */
bool agglo_event_is_done(agglo_backend *backend, const agglo_event *event);

/* Host memory that the device can read by itself, not initialised, 256-byte aligned. NULL and error on failure. Free it when the copies from
 * it are done. */
void *agglo_pinned_alloc(agglo_backend *backend, size_t n_bytes, agglo_err *err);
void agglo_pinned_release(agglo_backend *backend, void *block); /* NULL is fine */

/* Copy n_bytes of pinned memory to the device on the copy stream, not before `after` (NULL: at once), and record `done` there. src stays
 * untouched, and dst unread, until `done`. */
void agglo_upload_async(agglo_backend *backend, void *dst, const void *src, size_t n_bytes, const agglo_event *after,
                        agglo_event *done);

/* Copy n_bytes of device memory to pinned memory, behind the operators issued so far, and record `done` in the compute stream. dst is not
 * read until `done`. */
void agglo_download_async(agglo_backend *backend, void *dst, const void *src, size_t n_bytes, agglo_event *done);

/* ---- a ring of slots that uploads leave from ---- */

/* n_slots pieces of pinned memory, taken in turn; a slot can be taken again when the uploads from it are done. */
typedef struct agglo_upload_ring agglo_upload_ring;

agglo_upload_ring *agglo_upload_ring_new(agglo_backend *backend, int n_slots, size_t slot_bytes, agglo_err *err);
void agglo_upload_ring_free(agglo_upload_ring *ring); /* waits for uploads under way; NULL is fine */

/* The next slot, slot_bytes of pinned memory; waits until its last uploads are done. It is the one that send uploads from until the next take. */
void *agglo_upload_ring_take(agglo_upload_ring *ring);

/* Upload n_bytes at `offset` of the slot that was taken last. `after` as in agglo_upload_async. */
void agglo_upload_ring_send(agglo_upload_ring *ring, size_t offset, size_t n_bytes, void *dst,
                            const agglo_event *after);

/* Operators issued from now on come after the uploads from the slot that was taken last. */
void agglo_upload_ring_join(agglo_upload_ring *ring);

/* ---- steps that are recorded once and replayed ---- */

/* A recorded sequence of operators. Rules for what stands between begin and end:
 *   - its shapes have run once before, so that scratch memory, plans and primitives exist: nothing is allocated inside,
 *   - no agglo_upload, agglo_download, agglo_backend_check, alloc or release, no agglo_upload_async or agglo_download_async, no waiting or asking for events: the host
 *     reads nothing; agglo_copy, agglo_zero and operators alone,
 *   - addresses and host values (learning rates, step counts, scales) are those of the recording: what changes from step to step stays outside or in
 *     device memory.
 * A breach is latched as AGGLO_E_DEVICE, and end gives NULL then. */
typedef struct agglo_graph agglo_graph;

/* Whether this backend records at all. If not, what stands between begin and end just runs, and end gives NULL. */
bool agglo_backend_captures(const agglo_backend *backend);

/* Use:  if (graph != NULL) { agglo_graph_replay(be, graph); } else { agglo_capture_begin(be); step(); graph = agglo_capture_end(be); }
 * Either way the step has been issued once when that is over. NULL from end: nothing was recorded, or a failure is latched. */
void agglo_capture_begin(agglo_backend *backend);
agglo_graph *agglo_capture_end(agglo_backend *backend);
void agglo_graph_replay(agglo_backend *backend, agglo_graph *graph);
void agglo_graph_free(agglo_backend *backend, agglo_graph *graph); /* waits for it; NULL is fine */

#ifdef __cplusplus
}
#endif
#endif
