/* The loopback: ranks that are threads of one process. Each rank stages its part in host memory, all meet, each works out the result from
 * all parts in the order of ranks, and all meet again before a part may change.
 */
#include "tensor/comm.h"

#include "base/alloc.h"

#include <pthread.h>
#include <string.h>

typedef enum call_kind { CALL_SUM, CALL_SUM_HOST, CALL_BROADCAST, CALL_BARRIER } call_kind;

/* What a rank has come to do; all must agree. */
typedef struct call {
    call_kind kind;
    int root;
    size_t n_bytes;
} call;

typedef struct group group;

typedef struct loopback {
    agglo_comm comm;
    group *group;
    call call;
    uint8_t *part, *result; /* staged */
    size_t part_bytes, result_bytes;
} loopback;

struct group {
    pthread_mutex_t mutex;
    pthread_cond_t met;
    int size, n_alive, n_here;
    uint64_t round; /* of meetings */
    bool broken;    /* an end has gone or failed */
    loopback **ends;
};

static void break_up(group *g)
{
    pthread_mutex_lock(&g->mutex);
    g->broken = true;
    pthread_cond_broadcast(&g->met);
    pthread_mutex_unlock(&g->mutex);
}

/* Returns when all are here. */
static agglo_status meet(group *g, agglo_err *err)
{
    uint64_t round;
    bool met;

    pthread_mutex_lock(&g->mutex);
    round = g->round;
    if (!g->broken && ++g->n_here == g->size) {
        g->n_here = 0;
        g->round++;
        pthread_cond_broadcast(&g->met);
    }
    while (g->round == round && !g->broken) {
        pthread_cond_wait(&g->met, &g->mutex);
    }
    met = g->round != round;
    pthread_mutex_unlock(&g->mutex);
    return met ? AGGLO_OK : agglo_fail(err, AGGLO_E_DEVICE, "another rank has left the group");
}

/* Before an end touches what others may still be reading: not in a group that is broken. */
static bool whole(group *g, agglo_err *err)
{
    bool broken;

    pthread_mutex_lock(&g->mutex);
    broken = g->broken;
    pthread_mutex_unlock(&g->mutex);
    if (broken) {
        agglo_fail(err, AGGLO_E_DEVICE, "another rank has left the group");
    }
    return !broken;
}

/* Meet with a call, and see that it is everyone's. */
static agglo_status arrive(loopback *end, call own, agglo_err *err)
{
    group *g = end->group;

    pthread_mutex_lock(&g->mutex);
    end->call = own;
    pthread_mutex_unlock(&g->mutex);
    if (meet(g, err) != AGGLO_OK) {
        return err->status;
    }
    for (int r = 0; r < g->size; r++) {
        const call *other = &g->ends[r]->call; /* nobody's changes before the next meeting */

        if (other->kind != own.kind || other->root != own.root || other->n_bytes != own.n_bytes) {
            agglo_fail(err, AGGLO_E_MISMATCH, "rank %d has come to call %d of %zu bytes, this one to call %d of %zu", r,
                       (int)other->kind, other->n_bytes, (int)own.kind, own.n_bytes);
            break_up(g);
            return err->status;
        }
    }
    return AGGLO_OK;
}

static bool grow(uint8_t **block, size_t *has, size_t n_bytes, agglo_err *err)
{
    uint8_t *grown;

    if (n_bytes <= *has) {
        return true;
    }
    grown = agglo_realloc(*block, *has, n_bytes, err);
    if (grown == NULL) {
        return false;
    }
    *block = grown;
    *has = n_bytes;
    return true;
}

/* Both buffers; breaks the group when there is no memory. */
static bool reserve(loopback *end, size_t n_bytes, agglo_err *err)
{
    if (!whole(end->group, err)) {
        return false;
    }
    if (grow(&end->part, &end->part_bytes, n_bytes, err) && grow(&end->result, &end->result_bytes, n_bytes, err)) {
        return true;
    }
    break_up(end->group);
    return false;
}

/* The backend's data into `part`. */
static agglo_status stage(loopback *end, agglo_backend *be, const void *data, size_t n_bytes, agglo_err *err)
{
    agglo_download(be, end->part, data, n_bytes);
    if (agglo_backend_check(be, err) != AGGLO_OK) {
        break_up(end->group);
    }
    return err->status;
}

static void sum_floats(const loopback *end, int64_t n)
{
    const group *g = end->group;
    float *out = (float *)(void *)end->result;

    for (int64_t i = 0; i < n; i++) {
        double sum = 0.0;

        for (int r = 0; r < g->size; r++) {
            sum += (double)((const float *)(const void *)g->ends[r]->part)[i];
        }
        out[i] = (float)sum;
    }
}

static agglo_status all_reduce(agglo_comm *comm, agglo_backend *be, float *data, int64_t n, agglo_err *err)
{
    loopback *end = (loopback *)comm;
    size_t n_bytes = (size_t)n * sizeof *data;

    if (comm->size == 1) {
        return AGGLO_OK;
    }
    if (!reserve(end, n_bytes, err) || stage(end, be, data, n_bytes, err) != AGGLO_OK ||
        arrive(end, (call){CALL_SUM, 0, n_bytes}, err) != AGGLO_OK) {
        return err->status;
    }
    sum_floats(end, n);
    if (meet(end->group, err) == AGGLO_OK) {
        agglo_upload(be, data, end->result, n_bytes);
    }
    return err->status;
}

static agglo_status all_reduce_host(agglo_comm *comm, double *values, int64_t n, agglo_err *err)
{
    loopback *end = (loopback *)comm;
    const group *g = end->group;
    size_t n_bytes = (size_t)n * sizeof *values;
    double *out;

    if (comm->size == 1) {
        return AGGLO_OK;
    }
    if (!reserve(end, n_bytes, err)) {
        return err->status;
    }
    memcpy(end->part, values, n_bytes);
    if (arrive(end, (call){CALL_SUM_HOST, 0, n_bytes}, err) != AGGLO_OK) {
        return err->status;
    }
    out = (double *)(void *)end->result;
    for (int64_t i = 0; i < n; i++) {
        out[i] = 0.0;
        for (int r = 0; r < g->size; r++) {
            out[i] += ((const double *)(const void *)g->ends[r]->part)[i];
        }
    }
    if (meet(end->group, err) == AGGLO_OK) {
        memcpy(values, out, n_bytes);
    }
    return err->status;
}

static agglo_status broadcast(agglo_comm *comm, agglo_backend *be, void *data, size_t n_bytes, int root, agglo_err *err)
{
    loopback *end = (loopback *)comm;

    if (comm->size == 1) {
        return AGGLO_OK;
    }
    if (comm->rank == root && (!reserve(end, n_bytes, err) || stage(end, be, data, n_bytes, err) != AGGLO_OK)) {
        return err->status;
    }
    if (arrive(end, (call){CALL_BROADCAST, root, n_bytes}, err) != AGGLO_OK) {
        return err->status;
    }
    if (comm->rank != root) {
        agglo_upload(be, data, end->group->ends[root]->part, n_bytes);
    }
    return meet(end->group, err);
}

static agglo_status barrier(agglo_comm *comm, agglo_err *err)
{
    loopback *end = (loopback *)comm;

    if (comm->size == 1) {
        return AGGLO_OK;
    }
    if (!whole(end->group, err) || arrive(end, (call){CALL_BARRIER, 0, 0}, err) != AGGLO_OK) {
        return err->status;
    }
    return meet(end->group, err); /* all have seen all calls */
}

static void group_free(group *g)
{
    for (int r = 0; r < g->size; r++) {
        if (g->ends[r] != NULL) {
            agglo_free(g->ends[r]->part);
            agglo_free(g->ends[r]->result);
            agglo_free(g->ends[r]);
        }
    }
    pthread_cond_destroy(&g->met);
    pthread_mutex_destroy(&g->mutex);
    agglo_free(g->ends);
    agglo_free(g);
}

/* Others may still read this end's part: the last one frees them all. */
static void loopback_free(agglo_comm *comm)
{
    group *g = ((loopback *)comm)->group;
    bool last;

    break_up(g);
    pthread_mutex_lock(&g->mutex);
    last = --g->n_alive == 0;
    pthread_mutex_unlock(&g->mutex);
    if (last) {
        group_free(g);
    }
}

static const agglo_comm_ops loopback_ops = {.name = "loopback",
                                            .free = loopback_free,
                                            .all_reduce = all_reduce,
                                            .broadcast = broadcast,
                                            .all_reduce_host = all_reduce_host,
                                            .barrier = barrier};

agglo_status agglo_comm_loopback_new(agglo_comm **out, int size, agglo_err *err)
{
    group *g = agglo_alloc(1, sizeof *g, err);

    AGGLO_ASSERT(size >= 1);
    memset(out, 0, (size_t)size * sizeof(*out));
    if (g == NULL) {
        return agglo_doing(err, "cannot make a group of %d ranks", size);
    }
    pthread_mutex_init(&g->mutex, NULL);
    pthread_cond_init(&g->met, NULL);
    g->ends = agglo_alloc((size_t)size, sizeof(*g->ends), err);
    if (g->ends == NULL) {
        goto fail;
    }
    g->size = g->n_alive = size;
    for (int r = 0; r < size; r++) {
        g->ends[r] = agglo_alloc(1, sizeof *g->ends[r], err);
        if (g->ends[r] == NULL) {
            goto fail;
        }
        g->ends[r]->comm = (agglo_comm){&loopback_ops, r, size};
        g->ends[r]->group = g;
    }
    for (int r = 0; r < size; r++) {
        out[r] = &g->ends[r]->comm;
    }
    return AGGLO_OK;
fail:
    group_free(g);
    return agglo_doing(err, "cannot make a group of %d ranks", size);
}
