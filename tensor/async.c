/* The front of tensor/async.h, and the ring, which is the same on every backend. */
#include "tensor/async.h"

#include "base/alloc.h"
#include "tensor/backend_impl.h"

static bool ready(const agglo_backend *be)
{
    return be->failed.status == AGGLO_OK;
}

agglo_event *agglo_event_new(agglo_backend *backend, agglo_err *err)
{
    return backend->ops->event_new(backend, err);
}

void agglo_event_free(agglo_backend *backend, agglo_event *event)
{
    if (event != NULL) {
        backend->ops->event_free(backend, event);
    }
}

void agglo_event_record(agglo_backend *backend, agglo_event *event)
{
    if (ready(backend)) {
        backend->ops->event_record(backend, event);
    }
}

void agglo_event_join(agglo_backend *backend, const agglo_event *event)
{
    if (ready(backend)) {
        backend->ops->event_join(backend, event);
    }
}

void agglo_event_wait(agglo_backend *backend, const agglo_event *event)
{
    if (ready(backend)) {
        backend->ops->event_wait(backend, event);
    }
}

bool agglo_event_is_done(agglo_backend *backend, const agglo_event *event)
{
    return !ready(backend) || backend->ops->event_is_done(backend, event);
}

void *agglo_pinned_alloc(agglo_backend *backend, size_t n_bytes, agglo_err *err)
{
    return backend->ops->pinned_alloc(backend, n_bytes, err);
}

void agglo_pinned_release(agglo_backend *backend, void *block)
{
    if (block != NULL) {
        backend->ops->pinned_release(backend, block);
    }
}

void agglo_upload_async(agglo_backend *backend, void *dst, const void *src, size_t n_bytes, const agglo_event *after,
                        agglo_event *done)
{
    AGGLO_ASSERT(done != NULL);
    if (ready(backend)) {
        backend->ops->upload_async(backend, dst, src, n_bytes, after, done);
    }
}

void agglo_download_async(agglo_backend *backend, void *dst, const void *src, size_t n_bytes, agglo_event *done)
{
    AGGLO_ASSERT(done != NULL && n_bytes > 0);
    if (ready(backend)) {
        backend->ops->download_async(backend, dst, src, n_bytes, done);
    }
}

bool agglo_backend_captures(const agglo_backend *backend)
{
    return backend->ops->capture_begin != NULL;
}

void agglo_capture_begin(agglo_backend *backend)
{
    if (ready(backend) && agglo_backend_captures(backend)) {
        backend->ops->capture_begin(backend);
    }
}

/* Also after a failure: what was begun has to end. */
agglo_graph *agglo_capture_end(agglo_backend *backend)
{
    return agglo_backend_captures(backend) ? backend->ops->capture_end(backend) : NULL;
}

void agglo_graph_replay(agglo_backend *backend, agglo_graph *graph)
{
    AGGLO_ASSERT(graph != NULL);
    if (ready(backend)) {
        backend->ops->graph_replay(backend, graph);
    }
}

void agglo_graph_free(agglo_backend *backend, agglo_graph *graph)
{
    if (graph != NULL) {
        backend->ops->graph_free(backend, graph);
    }
}

/* ---- the ring ---- */

typedef struct slot {
    uint8_t *block;
    agglo_event *done; /* the last upload from it */
} slot;

struct agglo_upload_ring {
    agglo_backend *backend;
    size_t slot_bytes;
    int n_slots, taken; /* the slot that was taken last */
    slot *slots;
};

void agglo_upload_ring_free(agglo_upload_ring *ring)
{
    if (ring == NULL) {
        return;
    }
    for (int i = 0; ring->slots != NULL && i < ring->n_slots; i++) {
        if (ring->slots[i].done != NULL) {
            agglo_event_wait(ring->backend, ring->slots[i].done);
        }
        agglo_event_free(ring->backend, ring->slots[i].done);
        agglo_pinned_release(ring->backend, ring->slots[i].block);
    }
    agglo_free(ring->slots);
    agglo_free(ring);
}

agglo_upload_ring *agglo_upload_ring_new(agglo_backend *backend, int n_slots, size_t slot_bytes, agglo_err *err)
{
    agglo_upload_ring *ring;

    AGGLO_ASSERT(n_slots > 0 && slot_bytes > 0);
    ring = agglo_alloc(1, sizeof *ring, err);
    if (ring == NULL) {
        goto fail;
    }
    ring->backend = backend;
    ring->slot_bytes = slot_bytes;
    ring->n_slots = n_slots;
    ring->taken = n_slots - 1;
    ring->slots = agglo_alloc((size_t)n_slots, sizeof *ring->slots, err);
    if (ring->slots == NULL) {
        goto fail;
    }
    for (int i = 0; i < n_slots; i++) {
        ring->slots[i].block = agglo_pinned_alloc(backend, slot_bytes, err);
        ring->slots[i].done = ring->slots[i].block == NULL ? NULL : agglo_event_new(backend, err);
        if (ring->slots[i].done == NULL) {
            goto fail;
        }
    }
    return ring;
fail:
    agglo_upload_ring_free(ring);
    agglo_doing(err, "cannot make %d upload slots of %zu bytes", n_slots, slot_bytes);
    return NULL;
}

void *agglo_upload_ring_take(agglo_upload_ring *ring)
{
    ring->taken = (ring->taken + 1) % ring->n_slots;
    agglo_event_wait(ring->backend, ring->slots[ring->taken].done);
    return ring->slots[ring->taken].block;
}

void agglo_upload_ring_send(agglo_upload_ring *ring, size_t offset, size_t n_bytes, void *dst, const agglo_event *after)
{
    const slot *s = &ring->slots[ring->taken];

    AGGLO_ASSERT(offset <= ring->slot_bytes && n_bytes <= ring->slot_bytes - offset);
    if (n_bytes > 0) {
        agglo_upload_async(ring->backend, dst, s->block + offset, n_bytes, after, s->done);
    }
}

void agglo_upload_ring_join(agglo_upload_ring *ring)
{
    agglo_event_join(ring->backend, ring->slots[ring->taken].done);
}
