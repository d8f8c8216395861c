/* The pool's loops and the ordered ring: results that do not depend on the number of threads, errors in their place, no hangs. */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/pool.h"
#include "base/ring.h"
#include "base/stop.h"
#include "tests/support/support.h"

static const int thread_counts[] = {1, 2, 3, 7};

static void pause_us(uint64_t us)
{
    struct timespec t = {0, (long)us * 1000};

    nanosleep(&t, NULL);
}

/* ---- pool ---- */

enum { MAX_N = 4099, MAX_WORKERS = 8 };

typedef struct loop {
    agglo_pool *pool;
    int64_t n;
    atomic_int calls[MAX_N];
    double values[MAX_N];
    atomic_int busy[MAX_WORKERS]; /* bodies that run under this worker's number right now */
    atomic_int clashes;
    atomic_bool others_run;     /* an index other than 0 has begun */
    int inner[MAX_WORKERS][16]; /* nested loops: written without locks under the number of the worker */
} loop;

static void count_call(void *context, int64_t i, int worker)
{
    loop *l = context;

    if (worker < 0 || worker >= agglo_pool_threads(l->pool) || atomic_fetch_add(&l->busy[worker], 1) != 0) {
        atomic_fetch_add(&l->clashes, 1);
    }
    atomic_fetch_add(&l->calls[i], 1);
    l->values[i] = 1.0 / (double)(i + 1);
    atomic_fetch_sub(&l->busy[worker], 1);
}

static void every_index_runs_once(void **state)
{
    static const int64_t sizes[] = {0, 1, 2, 7, 64, MAX_N};
    static double sums[AGGLO_COUNT(sizes)];
    static loop l;
    agglo_err err = {0};

    (void)state;
    for (size_t t = 0; t < AGGLO_COUNT(thread_counts); t++) {
        assert_ok(agglo_pool_new(&l.pool, thread_counts[t], &err));
        assert_int_equal(agglo_pool_threads(l.pool), thread_counts[t]);
        for (size_t s = 0; s < AGGLO_COUNT(sizes); s++) {
            double sum = 0;

            memset(l.calls, 0, sizeof l.calls);
            agglo_pool_for(l.pool, sizes[s], count_call, &l);
            for (int64_t i = 0; i < MAX_N; i++) {
                assert_int_equal(l.calls[i], i < sizes[s]);
                sum += i < sizes[s] ? l.values[i] : 0;
            }
            if (t == 0) {
                sums[s] = sum;
            }
            assert_true(sum == sums[s]); /* bit for bit */
        }
        assert_int_equal(l.clashes, 0);
        agglo_pool_free(l.pool);
    }
    agglo_pool_free(NULL);
}

static void tick(void *context, int64_t i, int worker)
{
    (void)i;
    (void)worker;
    atomic_fetch_add_explicit((atomic_llong *)context, 1, memory_order_relaxed);
}

/* Where a lost wake-up or a straggler of the last round would show. */
static void many_tiny_loops_run(void **state)
{
    agglo_err err = {0};

    (void)state;
    for (size_t t = 0; t < AGGLO_COUNT(thread_counts); t++) {
        long long expected = 0;
        atomic_llong count = 0;
        agglo_pool *pool;

        assert_ok(agglo_pool_new(&pool, thread_counts[t], &err));
        for (int round = 0; round < 3000; round++) {
            agglo_pool_for(pool, round % 5, tick, &count);
            expected += round % 5;
            assert_true(atomic_load(&count) == expected); /* all done when it returns */
            if (round % 500 == 499) {                     /* long enough that the workers fall asleep */
                pause_us(3000);
            }
        }
        agglo_pool_free(pool);
    }
}

typedef struct nested_call {
    loop *l;
    int worker;
} nested_call;

static void inner_body(void *context, int64_t i, int worker)
{
    nested_call *call = context;

    if (worker != call->worker) {
        atomic_fetch_add(&call->l->clashes, 1);
    }
    call->l->inner[worker][i]++; /* a race here is one that ThreadSanitizer sees */
}

static void outer_body(void *context, int64_t i, int worker)
{
    loop *l = context;
    nested_call call = {l, worker};

    if (i > 0) {
        atomic_store(&l->others_run, true);
    }
    while (agglo_pool_threads(l->pool) > 1 && !atomic_load(&l->others_run)) { /* two workers at least take part */
        pause_us(10);
    }
    atomic_fetch_add(&l->calls[i], 1);
    agglo_pool_for(l->pool, 16, inner_body, &call);
    agglo_pool_for(l->pool, 1, inner_body, &call);
}

static void nested_loops_keep_worker_numbers_apart(void **state)
{
    agglo_err err = {0};

    (void)state;
    for (size_t t = 0; t < AGGLO_COUNT(thread_counts); t++) {
        static loop l;
        int total = 0;

        memset(&l, 0, sizeof l);
        assert_ok(agglo_pool_new(&l.pool, thread_counts[t], &err));
        agglo_pool_for(l.pool, 500, outer_body, &l);
        agglo_pool_for(l.pool, 1, outer_body, &l); /* a loop of one runs inline, and so does what it nests */
        for (int w = 0; w < MAX_WORKERS; w++) {
            for (int i = 0; i < 16; i++) {
                total += l.inner[w][i];
            }
        }
        assert_int_equal(total, 501 * 17);
        assert_int_equal(l.clashes, 0);
        /* the nesting has left no trace: the next loop is spread again, and is complete */
        memset(l.calls, 0, sizeof l.calls);
        agglo_pool_for(l.pool, MAX_N, count_call, &l);
        for (int i = 0; i < MAX_N; i++) {
            assert_int_equal(l.calls[i], 1);
        }
        agglo_pool_free(l.pool);
    }
}

static atomic_int n_hooks;

static void count_hook(void)
{
    atomic_fetch_add(&n_hooks, 1);
}

static void *hooked_caller(void *argument)
{
    atomic_llong count = 0;

    for (int i = 0; i < 3; i++) {
        agglo_pool_for(argument, 10, tick, &count);
    }
    return NULL;
}

static void every_thread_calls_the_hook_once(void **state)
{
    agglo_err err = {0};
    agglo_pool *pool;
    pthread_t caller;

    (void)state;
    agglo_pool_on_thread_start(count_hook);
    assert_ok(agglo_pool_new(&pool, 3, &err));
    assert_int_equal(pthread_create(&caller, NULL, hooked_caller, pool), 0);
    pthread_join(caller, NULL);
    agglo_pool_free(pool);
    agglo_pool_on_thread_start(NULL);
    assert_int_equal(n_hooks, 3);
}

static void a_pool_without_memory_is_one_error(void **state)
{
    agglo_err err = {0};
    agglo_pool *pool;

    (void)state;
    for (int n = 0; n < 2; n++) {
        agglo_alloc_fail_after(n);
        assert_fails(agglo_pool_new(&pool, 3, &err), AGGLO_E_MEMORY, "cannot start threads");
        agglo_alloc_fail_after(-1);
        assert_null(pool);
    }
    assert_true(agglo_cores() >= 1);
    assert_ok(agglo_pool_new(&pool, 0, &err));
    assert_int_equal(agglo_pool_threads(pool), agglo_cores());
    agglo_pool_free(pool);
}

/* ---- ring ---- */

typedef struct slot {
    uint64_t job, result;
    char *kept; /* made once per slot, kept from job to job */
} slot;

typedef struct pipeline {
    atomic_int running, most_running, n_done;
    int fail_every; /* 0: never */
    int max_delay_us;
} pipeline;

static agglo_status work(void *context, void *in_slot, int worker, agglo_err *err)
{
    pipeline *p = context;
    slot *s = in_slot;
    uint64_t mixed = s->job * 0x9e3779b97f4a7c15u;
    int running = atomic_fetch_add(&p->running, 1) + 1, most = atomic_load(&p->most_running);

    (void)worker;
    while (running > most && !atomic_compare_exchange_weak(&p->most_running, &most, running)) {
    }
    if (p->max_delay_us > 0) {
        pause_us((mixed >> 32) % (uint64_t)p->max_delay_us);
    }
    if (s->kept == NULL) {
        s->kept = agglo_strdup("kept", err);
    }
    s->result = s->job * s->job;
    atomic_fetch_sub(&p->running, 1);
    atomic_fetch_add(&p->n_done, 1);
    if (p->fail_every > 0 && s->job % (uint64_t)p->fail_every == 0) {
        agglo_fail(err, AGGLO_E_DATA, "job %d", (int)s->job);
        return agglo_doing(err, "working");
    }
    return AGGLO_OK;
}

static void clear_slot(void *in_slot)
{
    agglo_free(((slot *)in_slot)->kept);
}

static void jobs_come_back_in_order_with_their_errors(void **state)
{
    static const int worker_counts[] = {1, 2, 7}, slot_counts[] = {1, 2, 5, 16};

    (void)state;
    for (size_t w = 0; w < AGGLO_COUNT(worker_counts); w++) {
        for (size_t s = 0; s < AGGLO_COUNT(slot_counts); s++) {
            enum { N = 120 };
            pipeline p = {.fail_every = 7, .max_delay_us = 300};
            uint64_t n_submitted = 0;
            agglo_err err = {0};
            agglo_ring *ring;

            assert_ok(agglo_ring_new(&ring, slot_counts[s], sizeof(slot), worker_counts[w], work, &p, &err));
            for (uint64_t n_taken = 0; n_taken < N; n_taken++) {
                agglo_status status;
                void *taken;
                slot *free_slot;

                while (n_submitted < N && (free_slot = agglo_ring_claim(ring, false)) != NULL) {
                    assert_int_equal((uintptr_t)free_slot % 64, 0);
                    free_slot->job = n_submitted++;
                    agglo_ring_submit(ring);
                    assert_true(agglo_ring_in_flight(ring) <= slot_counts[s]);
                }
                assert_int_equal(agglo_ring_in_flight(ring), n_submitted - n_taken);
                status = agglo_ring_take(ring, &taken, &err);
                assert_non_null(taken);
                assert_int_equal(((slot *)taken)->job, n_taken);
                assert_int_equal(((slot *)taken)->result, n_taken * n_taken);
                assert_int_equal(status, n_taken % 7 == 0 ? AGGLO_E_DATA : AGGLO_OK);
                if (status != AGGLO_OK) {
                    char why[32];

                    snprintf(why, sizeof why, "job %d", (int)n_taken);
                    assert_string_equal(err.why, why);
                    assert_string_equal(err.what, "working");
                }
                assert_int_equal(err.status, status);
                agglo_err_clear(&err);
                agglo_ring_release(ring);
            }
            assert_int_equal(agglo_ring_in_flight(ring), 0);
            {
                void *none = &p;

                assert_ok(agglo_ring_take(ring, &none, &err));
                assert_null(none);
            }
            agglo_ring_free(ring, clear_slot);
            assert_int_equal(p.n_done, N);
            assert_true(p.most_running <= worker_counts[w] && p.most_running <= slot_counts[s]);
        }
    }
}

typedef struct feeder {
    agglo_ring *ring;
    uint64_t n;
} feeder;

static void *feed(void *argument)
{
    feeder *f = argument;

    for (uint64_t i = 0; i < f->n; i++) {
        slot *s = agglo_ring_claim(f->ring, true); /* blocks while all are in flight */

        s->job = i;
        agglo_ring_submit(f->ring);
    }
    return NULL;
}

static void one_thread_feeds_while_another_takes(void **state)
{
    pipeline p = {.max_delay_us = 50};
    agglo_err err = {0};
    feeder f = {.n = 1000};
    pthread_t thread;

    (void)state;
    assert_ok(agglo_ring_new(&f.ring, 4, sizeof(slot), 3, work, &p, &err));
    assert_int_equal(pthread_create(&thread, NULL, feed, &f), 0);
    for (uint64_t i = 0; i < f.n;) {
        void *taken;

        assert_ok(agglo_ring_take(f.ring, &taken, &err));
        if (taken == NULL) { /* the feeder is behind */
            pause_us(20);
            continue;
        }
        assert_int_equal(((slot *)taken)->job, i);
        assert_int_equal(((slot *)taken)->result, i * i);
        if (i % 100 == 0) {
            pause_us(500); /* let the ring fill up */
        }
        assert_true(agglo_ring_in_flight(f.ring) <= 4);
        agglo_ring_release(f.ring);
        i++;
    }
    pthread_join(thread, NULL);
    agglo_ring_free(f.ring, clear_slot);
}

static void a_ring_is_freed_with_work_in_flight(void **state)
{
    int64_t n_live = agglo_alloc_counts().n_live;

    (void)state;
    for (int n_jobs = 0; n_jobs <= 6; n_jobs++) {
        pipeline p = {.max_delay_us = 1000};
        agglo_err err = {0};
        agglo_ring *ring;
        void *taken;

        assert_ok(agglo_ring_new(&ring, 6, sizeof(slot), 2, work, &p, &err));
        for (int i = 0; i < n_jobs; i++) {
            slot *s = agglo_ring_claim(ring, false);

            s->job = (uint64_t)i;
            agglo_ring_submit(ring);
        }
        if (n_jobs == 3) { /* and one that is taken and not released */
            assert_ok(agglo_ring_take(ring, &taken, &err));
        }
        if (n_jobs == 4) { /* a slot that is claimed and not submitted */
            assert_non_null(agglo_ring_claim(ring, true));
        }
        if (n_jobs == 6) {
            assert_null(agglo_ring_claim(ring, false));
        }
        agglo_ring_free(ring, clear_slot);
        assert_int_equal(p.n_done, n_jobs); /* it waits for all of them */
        assert_int_equal(agglo_alloc_counts().n_live, n_live);
    }
    agglo_ring_free(NULL, clear_slot);
}

static void a_ring_without_memory_is_one_error(void **state)
{
    int64_t n_live = agglo_alloc_counts().n_live;
    agglo_err err = {0};
    agglo_ring *ring;

    (void)state;
    for (int n = 0; n < 4; n++) {
        agglo_alloc_fail_after(n);
        assert_fails(agglo_ring_new(&ring, 2, 8, 2, work, NULL, &err), AGGLO_E_MEMORY, "cannot start a pipeline");
        agglo_alloc_fail_after(-1);
        assert_null(ring);
        assert_int_equal(agglo_alloc_counts().n_live, n_live);
    }
    assert_fails(agglo_ring_new(&ring, 2, SIZE_MAX - 1, 2, work, NULL, &err), AGGLO_E_MEMORY,
                 "cannot start a pipeline");
}

/* ---- signals ---- */

static bool takes_signals(void)
{
    sigset_t blocked;

    pthread_sigmask(SIG_SETMASK, NULL, &blocked);
    return sigismember(&blocked, SIGINT) == 0 || sigismember(&blocked, SIGTERM) == 0;
}

/* Two indices, two threads: each body waits for the other, so that both threads have one. */
static void meet_and_look(void *context, int64_t i, int worker)
{
    loop *l = context;

    (void)i;
    atomic_fetch_add(&l->calls[0], 1);
    while (atomic_load(&l->calls[0]) < 2) {
        pause_us(100);
    }
    l->inner[worker][0] = takes_signals();
}

static agglo_status look(void *context, void *item, int worker, agglo_err *err)
{
    (void)context;
    (void)worker;
    (void)err;
    *(bool *)item = takes_signals();
    return AGGLO_OK;
}

/* A signal's frame must not land on a stack that generated code has moved into the heap: only the thread with the handler's own stack takes
 * signals. */
static void workers_leave_signals_to_the_main_thread(void **state)
{
    static loop l;
    agglo_err err = {0};
    agglo_ring *ring = NULL;
    void *item;
    pid_t child;
    int status;

    (void)state;
    memset(&l, 0, sizeof l);
    assert_ok(agglo_pool_new(&l.pool, 2, &err));
    agglo_pool_for(l.pool, 2, meet_and_look, &l);
    assert_true(l.inner[0][0]); /* the caller */
    assert_false(l.inner[1][0]);
    agglo_pool_free(l.pool);
    assert_ok(agglo_ring_new(&ring, 1, sizeof(bool), 1, look, NULL, &err));
    assert_non_null(agglo_ring_claim(ring, false));
    agglo_ring_submit(ring);
    assert_ok(agglo_ring_take(ring, &item, &err));
    assert_false(*(bool *)item);
    agglo_ring_release(ring);
    agglo_ring_free(ring, NULL);

    fflush(NULL);
    child = fork();
    if (child == 0) {
        struct sigaction action;
        stack_t stack;

        agglo_stop_install();
        _exit(sigaction(SIGTERM, NULL, &action) != 0 || (action.sa_flags & SA_ONSTACK) == 0 ||
              sigaltstack(NULL, &stack) != 0 || (stack.ss_flags & SS_DISABLE) != 0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_index_runs_once),
        cmocka_unit_test(many_tiny_loops_run),
        cmocka_unit_test(nested_loops_keep_worker_numbers_apart),
        cmocka_unit_test(every_thread_calls_the_hook_once),
        cmocka_unit_test(a_pool_without_memory_is_one_error),
        cmocka_unit_test(jobs_come_back_in_order_with_their_errors),
        cmocka_unit_test(one_thread_feeds_while_another_takes),
        cmocka_unit_test(a_ring_is_freed_with_work_in_flight),
        cmocka_unit_test(a_ring_without_memory_is_one_error),
        cmocka_unit_test(workers_leave_signals_to_the_main_thread),
    };

    return test_run("threads", tests);
}
