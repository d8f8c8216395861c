/* Collectives: the front, and buckets over many tensors; see comm.h. */
#include "tensor/comm.h"

#include "base/alloc.h"
#include "tensor/ops.h"

void agglo_comm_free(agglo_comm *comm)
{
    if (comm != NULL) {
        comm->ops->free(comm);
    }
}

static agglo_status report(const agglo_comm *comm, const char *what, agglo_err *err)
{
    if (err->status != AGGLO_OK) {
        agglo_at(err, "rank %d of %d", comm->rank, comm->size);
        agglo_doing(err, "cannot %s over %s", what, comm->ops->name);
    }
    return err->status;
}

agglo_status agglo_comm_all_reduce(agglo_comm *comm, agglo_backend *be, agglo_tensor *t, agglo_err *err)
{
    AGGLO_ASSERT(t->dtype == AGGLO_F32 && t->data != NULL && agglo_tensor_count(t) >= 1);
    comm->ops->all_reduce(comm, be, t->data, agglo_tensor_count(t), err);
    return report(comm, "sum", err);
}

agglo_status agglo_comm_broadcast(agglo_comm *comm, agglo_backend *be, agglo_tensor *t, int root, agglo_err *err)
{
    AGGLO_ASSERT(t->data != NULL && agglo_tensor_bytes(t) >= 1 && root >= 0 && root < comm->size);
    comm->ops->broadcast(comm, be, t->data, agglo_tensor_bytes(t), root, err);
    return report(comm, "broadcast", err);
}

agglo_status agglo_comm_all_reduce_host(agglo_comm *comm, double *values, int64_t n, agglo_err *err)
{
    AGGLO_ASSERT(n >= 1);
    comm->ops->all_reduce_host(comm, values, n, err);
    return report(comm, "sum", err);
}

agglo_status agglo_comm_barrier(agglo_comm *comm, agglo_err *err)
{
    comm->ops->barrier(comm, err);
    return report(comm, "meet", err);
}

/* ---- buckets ---- */

/* n elements at `data`, which stand at `at` in the buffer. */
typedef struct piece {
    float *data;
    int64_t n, at;
} piece;

typedef struct bucket {
    size_t first, n; /* pieces */
    int64_t n_elements;
} bucket;

struct agglo_buckets {
    agglo_backend *backend;
    piece *pieces;
    bucket *buckets;
    size_t n_pieces, n_buckets;
    float *buffer;
};

/* Fill the tables, or only count where there are none yet. */
static void cut(agglo_buckets *b, const agglo_tensor *tensors, size_t n, int64_t capacity)
{
    int64_t used = capacity; /* of the last bucket: the first piece opens one */

    b->n_pieces = b->n_buckets = 0;
    for (size_t i = 0; i < n; i++) {
        int64_t count = agglo_tensor_count(&tensors[i]);

        for (int64_t first = 0; first < count;) {
            int64_t some;

            if (used == capacity) {
                if (b->buckets != NULL) {
                    b->buckets[b->n_buckets] = (bucket){b->n_pieces, 0, 0};
                }
                b->n_buckets++;
                used = 0;
            }
            some = count - first < capacity - used ? count - first : capacity - used;
            if (b->pieces != NULL) {
                bucket *last = &b->buckets[b->n_buckets - 1];

                b->pieces[b->n_pieces] = (piece){(float *)tensors[i].data + first, some, used};
                last->n++;
                last->n_elements += some;
            }
            b->n_pieces++;
            used += some;
            first += some;
        }
    }
}

agglo_status agglo_buckets_new(agglo_buckets **out, agglo_backend *be, const agglo_tensor *tensors, size_t n,
                               size_t bucket_bytes, agglo_err *err)
{
    agglo_buckets *b = agglo_alloc(1, sizeof *b, err);
    int64_t capacity = (int64_t)(bucket_bytes / sizeof(float)), total = 0;

    AGGLO_ASSERT(n >= 1 && capacity >= 1);
    *out = NULL;
    if (b == NULL) {
        goto fail;
    }
    b->backend = be;
    for (size_t i = 0; i < n; i++) {
        AGGLO_ASSERT(tensors[i].dtype == AGGLO_F32 && tensors[i].data != NULL && agglo_tensor_count(&tensors[i]) >= 1);
        total += agglo_tensor_count(&tensors[i]);
    }
    capacity = total < capacity ? total : capacity;
    cut(b, tensors, n, capacity);
    b->pieces = agglo_alloc(b->n_pieces, sizeof *b->pieces, err);
    b->buckets = b->pieces != NULL ? agglo_alloc(b->n_buckets, sizeof *b->buckets, err) : NULL;
    b->buffer = b->buckets != NULL ? agglo_backend_alloc(be, (size_t)capacity * sizeof(float), err) : NULL;
    if (b->buffer == NULL) {
        goto fail;
    }
    cut(b, tensors, n, capacity);
    *out = b;
    return AGGLO_OK;
fail:
    agglo_buckets_free(b);
    return agglo_doing(err, "cannot lay out %zu tensors in buckets", n);
}

void agglo_buckets_free(agglo_buckets *buckets)
{
    if (buckets != NULL) {
        agglo_backend_release(buckets->backend, buckets->buffer);
        agglo_free(buckets->buckets);
        agglo_free(buckets->pieces);
        agglo_free(buckets);
    }
}

static void gather(agglo_buckets *b, const bucket *at, float scale)
{
    if (scale != 1.0f) {
        agglo_zero(b->backend, b->buffer, (size_t)at->n_elements * sizeof(float));
    }
    for (size_t i = at->first; i < at->first + at->n; i++) {
        const piece *p = &b->pieces[i];
        agglo_tensor from = agglo_tensor_1d(p->data, AGGLO_F32, p->n);
        agglo_tensor to = agglo_tensor_1d(b->buffer + p->at, AGGLO_F32, p->n);

        if (scale == 1.0f) {
            agglo_copy(b->backend, to.data, from.data, agglo_tensor_bytes(&to));
        } else {
            agglo_axpy(b->backend, scale, &from, &to);
        }
    }
}

static void scatter(agglo_buckets *b, const bucket *at)
{
    for (size_t i = at->first; i < at->first + at->n; i++) {
        const piece *p = &b->pieces[i];

        agglo_copy(b->backend, p->data, b->buffer + p->at, (size_t)p->n * sizeof(float));
    }
}

agglo_status agglo_buckets_sum(agglo_buckets *buckets, agglo_comm *comm, float scale, agglo_err *err)
{
    for (size_t i = 0; i < buckets->n_buckets; i++) {
        const bucket *at = &buckets->buckets[i];
        bool in_place = at->n == 1 && scale == 1.0f;
        agglo_tensor whole =
            agglo_tensor_1d(in_place ? buckets->pieces[at->first].data : buckets->buffer, AGGLO_F32, at->n_elements);

        if (!in_place) {
            gather(buckets, at, scale);
        }
        if (agglo_comm_all_reduce(comm, buckets->backend, &whole, err) != AGGLO_OK) {
            return err->status;
        }
        if (!in_place) {
            scatter(buckets, at);
        }
    }
    return AGGLO_OK;
}

agglo_status agglo_buckets_mean(agglo_buckets *buckets, agglo_comm *comm, double weight, agglo_err *err)
{
    double total = weight;

    AGGLO_ASSERT(weight >= 0.0);
    if (agglo_comm_all_reduce_host(comm, &total, 1, err) != AGGLO_OK) {
        return err->status;
    }
    return agglo_buckets_sum(buckets, comm, total > 0.0 ? (float)(weight / total) : 0.0f, err);
}

agglo_status agglo_buckets_broadcast(agglo_buckets *buckets, agglo_comm *comm, int root, agglo_err *err)
{
    for (size_t i = 0; i < buckets->n_buckets; i++) {
        const bucket *at = &buckets->buckets[i];
        bool in_place = at->n == 1;
        agglo_tensor whole =
            agglo_tensor_1d(in_place ? buckets->pieces[at->first].data : buckets->buffer, AGGLO_F32, at->n_elements);

        if (!in_place && comm->rank == root) {
            gather(buckets, at, 1.0f);
        }
        if (agglo_comm_broadcast(comm, buckets->backend, &whole, root, err) != AGGLO_OK) {
            return err->status;
        }
        if (!in_place && comm->rank != root) {
            scatter(buckets, at);
        }
    }
    return AGGLO_OK;
}
