/* A pool of threads around one loop at a time: indices are handed out by an atomic counter.
 *
 * Workers spin briefly for the next loop before they sleep, since small operators come thousands of times a second.
 */
#include "base/pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "base/stop.h"

enum { MAX_THREADS = 1024, SPINS = 2000 };

typedef struct worker {
    struct agglo_pool *pool;
    pthread_t thread;
    int number;
} worker;

struct agglo_pool {
    int n_threads;
    worker *workers; /* [n_threads - 1] */
    int n_started;
    pthread_mutex_t mutex;
    pthread_cond_t wake;   /* a new loop, or the end */
    pthread_cond_t finish; /* the last worker has left the loop */
    atomic_uint round;     /* counts loops; changes under the mutex */
    bool quit;             /* under the mutex */
    atomic_int n_inside;   /* workers that have not left the loop of this round */
    /* the loop */
    void (*body)(void *context, int64_t index, int worker);
    void *context;
    int64_t n;
    atomic_llong next;
};

static void (*_Atomic start_hook)(void);
static _Thread_local bool inside_body;
static _Thread_local int own_number; /* of the body being run; a nested loop keeps it, so that scratch stays apart */
static _Thread_local bool hook_called;

/* Between two looks at a variable that another thread will change. Gives the core away now and then: there may be fewer of them
 * than threads. */
static void spin_pause(int i)
{
    if (i % 64 == 63) {
        sched_yield();
    } else {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }
}

void agglo_pool_on_thread_start(void (*hook)(void))
{
    atomic_store(&start_hook, hook);
}

static void call_hook(void)
{
    void (*hook)(void) = atomic_load(&start_hook);

    if (hook != NULL && !hook_called) {
        hook_called = true;
        hook();
    }
}

static void run_indices(agglo_pool *pool, int number)
{
    int64_t i;

    inside_body = true;
    own_number = number;
    while ((i = atomic_fetch_add_explicit(&pool->next, 1, memory_order_relaxed)) < pool->n) {
        pool->body(pool->context, i, number);
    }
    inside_body = false;
}

/* Wait until the round differs from `seen`; returns false at the end. */
static bool wait_round(agglo_pool *pool, unsigned seen)
{
    bool quit;

    for (int i = 0; i < SPINS && atomic_load_explicit(&pool->round, memory_order_acquire) == seen; i++) {
        spin_pause(i);
    }
    pthread_mutex_lock(&pool->mutex);
    while (!pool->quit && atomic_load_explicit(&pool->round, memory_order_relaxed) == seen) {
        pthread_cond_wait(&pool->wake, &pool->mutex);
    }
    quit = pool->quit;
    pthread_mutex_unlock(&pool->mutex);
    return !quit;
}

static void *worker_main(void *argument)
{
    worker *self = argument;
    agglo_pool *pool = self->pool;
    unsigned seen = 0;

    agglo_stop_block_signals();
    call_hook();
    while (wait_round(pool, seen)) {
        seen++;
        run_indices(pool, self->number);
        if (atomic_fetch_sub_explicit(&pool->n_inside, 1, memory_order_acq_rel) == 1) {
            pthread_mutex_lock(&pool->mutex);
            pthread_cond_signal(&pool->finish);
            pthread_mutex_unlock(&pool->mutex);
        }
    }
    return NULL;
}

int agglo_cores(void)
{
    cpu_set_t set;

    if (sched_getaffinity(0, sizeof set, &set) != 0) {
        long online = sysconf(_SC_NPROCESSORS_ONLN); /* more than the set can hold */

        return online > 0 && online < MAX_THREADS ? (int)online : MAX_THREADS;
    }
    return CPU_COUNT(&set) > 0 ? CPU_COUNT(&set) : 1;
}

agglo_status agglo_pool_new(agglo_pool **out, int n_threads, agglo_err *err)
{
    agglo_pool *pool = agglo_alloc(1, sizeof *pool, err);

    *out = NULL;
    if (pool == NULL) {
        return agglo_doing(err, "cannot start threads");
    }
    pool->n_threads = n_threads > 0 ? n_threads : agglo_cores();
    if (pool->n_threads > MAX_THREADS) {
        pool->n_threads = MAX_THREADS;
    }
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pthread_cond_init(&pool->finish, NULL);
    pool->workers = agglo_alloc((size_t)pool->n_threads, sizeof *pool->workers, err);
    for (int i = 0; pool->workers != NULL && i < pool->n_threads - 1; i++) {
        worker *w = &pool->workers[i];
        int status;

        w->pool = pool;
        w->number = i + 1;
        status = pthread_create(&w->thread, NULL, worker_main, w);
        if (status != 0) {
            agglo_fail(err, AGGLO_E_IO, "thread %d of %d: %s", i + 2, pool->n_threads, strerror(status));
            break;
        }
        pool->n_started++;
    }
    if (err->status != AGGLO_OK) {
        agglo_pool_free(pool);
        return agglo_doing(err, "cannot start threads");
    }
    *out = pool;
    return AGGLO_OK;
}

void agglo_pool_free(agglo_pool *pool)
{
    if (pool == NULL) {
        return;
    }
    pthread_mutex_lock(&pool->mutex);
    pool->quit = true;
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
    for (int i = 0; i < pool->n_started; i++) {
        pthread_join(pool->workers[i].thread, NULL);
    }
    pthread_cond_destroy(&pool->finish);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->mutex);
    agglo_free(pool->workers);
    agglo_free(pool);
}

int agglo_pool_threads(const agglo_pool *pool)
{
    return pool->n_threads;
}

void agglo_pool_for(agglo_pool *pool, int64_t n, void (*body)(void *context, int64_t index, int worker), void *context)
{
    call_hook();
    if (pool->n_threads == 1 || n <= 1 || inside_body) {
        bool nested = inside_body;
        int number = nested ? own_number : 0;

        AGGLO_ASSERT(number < pool->n_threads); /* nested in a loop of a larger pool */
        inside_body = true;
        own_number = number;
        for (int64_t i = 0; i < n; i++) {
            body(context, i, number);
        }
        inside_body = nested;
        return;
    }
    pthread_mutex_lock(&pool->mutex);
    pool->body = body;
    pool->context = context;
    pool->n = n;
    atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
    atomic_store_explicit(&pool->n_inside, pool->n_threads - 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&pool->round, 1, memory_order_release);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
    run_indices(pool, 0);
    for (int i = 0; i < SPINS && atomic_load_explicit(&pool->n_inside, memory_order_acquire) > 0; i++) {
        spin_pause(i);
    }
    pthread_mutex_lock(&pool->mutex);
    while (atomic_load_explicit(&pool->n_inside, memory_order_acquire) > 0) {
        pthread_cond_wait(&pool->finish, &pool->mutex);
    }
    pthread_mutex_unlock(&pool->mutex);
}
