/* A pool of fixed threads for data-parallel loops.
 *
 * Results must not depend on the number of threads: work is cut by shape, never by thread, and a body writes only what its
 * index owns. `worker` numbers scratch space, nothing else.
 */
#ifndef AGGLO_BASE_POOL_H
#define AGGLO_BASE_POOL_H

#include "base/alloc.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct agglo_pool agglo_pool;

/* n_threads counts the calling thread; 0 means all cores that this process may run on. */
agglo_status agglo_pool_new(agglo_pool **out, int n_threads, agglo_err *err);
void agglo_pool_free(agglo_pool *pool);
int agglo_pool_threads(const agglo_pool *pool);

/* Called once by every thread that will run bodies, the pool's own at their start and the caller's at agglo_pool_for; lets the
 * CPU backend set a library's per-thread state. Must be set before the pool is made. */
void agglo_pool_on_thread_start(void (*hook)(void));

/* Run body(context, i, worker) for i in [0, n), the caller taking part as worker 0; returns when all are done. worker is in
 * [0, agglo_pool_threads). A pool of one runs inline; so does a nested call, under the number of the worker it is made from (the
 * inner pool may not be the smaller one). One caller at a time per pool. */
void agglo_pool_for(agglo_pool *pool, int64_t n, void (*body)(void *context, int64_t index, int worker), void *context);

/* Cores that this process may run on, at least 1. */
int agglo_cores(void);

#ifdef __cplusplus
}
#endif
#endif
