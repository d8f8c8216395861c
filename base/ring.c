/* The ordered pipeline: counters that only grow name the slots, job i lives in slot i modulo n_slots. */
#include "base/ring.h"

#include <pthread.h>
#include <string.h>

#include "base/stop.h"

enum { SLOT_ALIGN = AGGLO_ALIGN };

typedef struct ring_worker {
    struct agglo_ring *ring;
    pthread_t thread;
    int number;
} ring_worker;

typedef struct ring_job {
    bool done;
    agglo_status status;
    agglo_err err;
} ring_job;

struct agglo_ring {
    uint8_t *slots;
    size_t stride;
    ring_job *jobs;
    ring_worker *workers;
    int n_slots, n_started;
    agglo_ring_work work;
    void *context;
    pthread_mutex_t mutex;
    pthread_cond_t submitted, finished, released;
    /* under the mutex: released <= started <= submitted <= released + n_slots */
    uint64_t n_submitted, n_started_jobs, n_released;
    bool quit;
};

static void *slot_of(const agglo_ring *ring, uint64_t job)
{
    return ring->slots + (size_t)(job % (uint64_t)ring->n_slots) * ring->stride;
}

static ring_job *job_of(const agglo_ring *ring, uint64_t job)
{
    return &ring->jobs[job % (uint64_t)ring->n_slots];
}

static void *worker_main(void *argument)
{
    ring_worker *self = argument;
    agglo_ring *ring = self->ring;

    agglo_stop_block_signals();
    pthread_mutex_lock(&ring->mutex);
    for (;;) {
        ring_job *job;
        void *slot;

        while (!ring->quit && ring->n_started_jobs == ring->n_submitted) {
            pthread_cond_wait(&ring->submitted, &ring->mutex);
        }
        if (ring->n_started_jobs == ring->n_submitted) {
            break; /* asked to quit, and nothing is left to do */
        }
        job = job_of(ring, ring->n_started_jobs);
        slot = slot_of(ring, ring->n_started_jobs);
        ring->n_started_jobs++;
        pthread_mutex_unlock(&ring->mutex);
        job->status = ring->work(ring->context, slot, self->number, &job->err);
        pthread_mutex_lock(&ring->mutex);
        job->done = true;
        pthread_cond_signal(&ring->finished);
    }
    pthread_mutex_unlock(&ring->mutex);
    return NULL;
}

agglo_status agglo_ring_new(agglo_ring **out, int n_slots, size_t slot_bytes, int n_workers, agglo_ring_work work,
                            void *context, agglo_err *err)
{
    agglo_ring *ring = agglo_alloc(1, sizeof *ring, err);

    AGGLO_ASSERT(n_slots >= 1 && n_workers >= 1);
    *out = NULL;
    if (ring == NULL) {
        return agglo_doing(err, "cannot start a pipeline");
    }
    pthread_mutex_init(&ring->mutex, NULL);
    pthread_cond_init(&ring->submitted, NULL);
    pthread_cond_init(&ring->finished, NULL);
    pthread_cond_init(&ring->released, NULL);
    ring->work = work;
    ring->context = context;
    if (!agglo_size_add(slot_bytes, SLOT_ALIGN - 1, &ring->stride)) {
        agglo_fail(err, AGGLO_E_MEMORY, "a slot of %zu bytes", slot_bytes);
        goto fail;
    }
    ring->stride -= ring->stride % SLOT_ALIGN; /* slots never share a cache line */
    ring->slots = agglo_alloc((size_t)n_slots, ring->stride, err);
    if (ring->slots == NULL) {
        goto fail;
    }
    ring->n_slots = n_slots;
    ring->jobs = agglo_alloc((size_t)n_slots, sizeof *ring->jobs, err);
    if (ring->jobs == NULL) {
        goto fail;
    }
    ring->workers = agglo_alloc((size_t)n_workers, sizeof *ring->workers, err);
    if (ring->workers == NULL) {
        goto fail;
    }
    for (int i = 0; i < n_workers; i++) {
        ring_worker *w = &ring->workers[i];
        int status;

        w->ring = ring;
        w->number = i;
        status = pthread_create(&w->thread, NULL, worker_main, w);
        if (status != 0) {
            agglo_fail(err, AGGLO_E_IO, "thread %d of %d: %s", i + 1, n_workers, strerror(status));
            goto fail;
        }
        ring->n_started++;
    }
    *out = ring;
    return AGGLO_OK;
fail:
    agglo_ring_free(ring, NULL);
    return agglo_doing(err, "cannot start a pipeline");
}

void agglo_ring_free(agglo_ring *ring, void (*clear)(void *slot))
{
    if (ring == NULL) {
        return;
    }
    pthread_mutex_lock(&ring->mutex);
    ring->quit = true;
    pthread_cond_broadcast(&ring->submitted);
    pthread_mutex_unlock(&ring->mutex);
    for (int i = 0; i < ring->n_started; i++) {
        pthread_join(ring->workers[i].thread, NULL);
    }
    for (int i = 0; clear != NULL && i < ring->n_slots; i++) {
        clear(slot_of(ring, (uint64_t)i));
    }
    pthread_cond_destroy(&ring->released);
    pthread_cond_destroy(&ring->finished);
    pthread_cond_destroy(&ring->submitted);
    pthread_mutex_destroy(&ring->mutex);
    agglo_free(ring->workers);
    agglo_free(ring->jobs);
    agglo_free(ring->slots);
    agglo_free(ring);
}

void *agglo_ring_claim(agglo_ring *ring, bool wait)
{
    void *slot = NULL;

    pthread_mutex_lock(&ring->mutex);
    while (wait && ring->n_submitted - ring->n_released == (uint64_t)ring->n_slots) {
        pthread_cond_wait(&ring->released, &ring->mutex);
    }
    if (ring->n_submitted - ring->n_released < (uint64_t)ring->n_slots) {
        slot = slot_of(ring, ring->n_submitted);
    }
    pthread_mutex_unlock(&ring->mutex);
    return slot;
}

void agglo_ring_submit(agglo_ring *ring)
{
    ring_job *job;

    pthread_mutex_lock(&ring->mutex);
    AGGLO_ASSERT(ring->n_submitted - ring->n_released < (uint64_t)ring->n_slots);
    job = job_of(ring, ring->n_submitted);
    job->done = false;
    agglo_err_clear(&job->err);
    ring->n_submitted++;
    pthread_cond_signal(&ring->submitted);
    pthread_mutex_unlock(&ring->mutex);
}

int agglo_ring_in_flight(const agglo_ring *ring)
{
    pthread_mutex_t *mutex = (pthread_mutex_t *)(uintptr_t)&ring->mutex; /* asking changes nothing that a caller sees */
    int n;

    pthread_mutex_lock(mutex);
    n = (int)(ring->n_submitted - ring->n_released);
    pthread_mutex_unlock(mutex);
    return n;
}

agglo_status agglo_ring_take(agglo_ring *ring, void **slot, agglo_err *err)
{
    agglo_status status = AGGLO_OK;

    *slot = NULL;
    pthread_mutex_lock(&ring->mutex);
    if (ring->n_submitted != ring->n_released) {
        ring_job *job = job_of(ring, ring->n_released);

        while (!job->done) {
            pthread_cond_wait(&ring->finished, &ring->mutex);
        }
        *slot = slot_of(ring, ring->n_released);
        status = job->status;
        if (status != AGGLO_OK) {
            *err = job->err;
        }
    }
    pthread_mutex_unlock(&ring->mutex);
    return status;
}

void agglo_ring_release(agglo_ring *ring)
{
    pthread_mutex_lock(&ring->mutex);
    AGGLO_ASSERT(ring->n_released < ring->n_submitted && job_of(ring, ring->n_released)->done);
    ring->n_released++;
    pthread_cond_signal(&ring->released);
    pthread_mutex_unlock(&ring->mutex);
}
