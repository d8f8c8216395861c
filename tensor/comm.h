/* Collectives: sums and copies over the ranks of a run, behind a struct of functions, and what is built on them.
 *
 * A communicator is one rank's end of a group. All ranks of a group call the same collectives with the same sizes in the same
 * order; every rank gets the same bytes, and they do not depend on timing (on CPUs: on the number of ranks and their order alone). A
 * collective that failed on one rank may leave others with an error or with results; the group is then of no more use.
 *
 * Here is the loopback: one rank, or several threads of one process, for tests and for a run without a launcher. `launch` makes others
 * by filling struct agglo_comm_ops:
 *
 *   MPI   data of CPU backends is host memory: MPI_Allreduce, MPI_Bcast. For equal bytes on all ranks and in all runs the sum must keep
 *         to one order (reduce to a rank in order and broadcast, or an algorithm that is fixed per size).
 *   NCCL  data of CUDA backends is device memory of the backend's stream; ncclAllReduce, ncclBroadcast on that stream, so that the call
 *         returns at once and what fails later is found by agglo_backend_check. all_reduce_host and barrier go through MPI.
 */
#ifndef AGGLO_TENSOR_COMM_H
#define AGGLO_TENSOR_COMM_H

#include "tensor/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct agglo_comm agglo_comm;

/* Sizes are not zero; size is 1 or more, and with 1 everything may return at once. */
typedef struct agglo_comm_ops {
    const char *name; /* "loopback", "mpi", "nccl" */
    void (*free)(agglo_comm *comm);
    /* data[n] F32 on `be`, replaced by the sum over ranks; ordered behind the work that the backend was given before and before what it
     * is given later. */
    agglo_status (*all_reduce)(agglo_comm *comm, agglo_backend *be, float *data, int64_t n, agglo_err *err);
    /* n_bytes of root's data to all, ordered likewise. */
    agglo_status (*broadcast)(agglo_comm *comm, agglo_backend *be, void *data, size_t n_bytes, int root,
                              agglo_err *err);
    /* Host memory, replaced by the sum over ranks; waits. */
    agglo_status (*all_reduce_host)(agglo_comm *comm, double *values, int64_t n, agglo_err *err);
    /* Returns when every rank is here. */
    agglo_status (*barrier)(agglo_comm *comm, agglo_err *err);
} agglo_comm_ops;

/* Implementations put this first in their own struct. */
struct agglo_comm {
    const agglo_comm_ops *ops;
    int rank, size;
};

/* out[size]: the ends of a group of `size` ranks, each to be used by one thread at a time (size 1: this process alone). Backends of
 * any kind: data passes through host memory. Sums are in double, in the order of ranks. When one end is freed, or fails, ranks that wait in
 * a collective or come to one get AGGLO_E_DEVICE. */
agglo_status agglo_comm_loopback_new(agglo_comm **out, int size, agglo_err *err);
void agglo_comm_free(agglo_comm *comm); /* NULL is fine */

agglo_status agglo_comm_all_reduce(agglo_comm *comm, agglo_backend *be, agglo_tensor *t, agglo_err *err); /* F32 */
agglo_status agglo_comm_broadcast(agglo_comm *comm, agglo_backend *be, agglo_tensor *t, int root, agglo_err *err);
agglo_status agglo_comm_all_reduce_host(agglo_comm *comm, double *values, int64_t n, agglo_err *err);
agglo_status agglo_comm_barrier(agglo_comm *comm, agglo_err *err);

/* ---- many tensors at once ---- */

/* F32 tensors laid out in buckets: pieces of tensors, in order, fill buffers of at most bucket_bytes, and one bucket is one collective. The
 * tensors are borrowed; there is one buffer on the backend. 25 MiB serves most networks. n >= 1. */
typedef struct agglo_buckets agglo_buckets;

#define AGGLO_BUCKET_BYTES ((size_t)25 << 20)

agglo_status agglo_buckets_new(agglo_buckets **out, agglo_backend *be, const agglo_tensor *tensors, size_t n,
                               size_t bucket_bytes, agglo_err *err);
void agglo_buckets_free(agglo_buckets *buckets); /* NULL is fine */

/* Every tensor becomes the sum over ranks of scale * tensor, scale being each rank's own. A rank of scale 1 has pieces that fill a
 * bucket reduced where they lie. */
agglo_status agglo_buckets_sum(agglo_buckets *buckets, agglo_comm *comm, float scale, agglo_err *err);

/* Every tensor becomes the mean over ranks, weighted: sum of weight * tensor / sum of weights (zero where no rank has weight). weight >= 0
 * is each rank's own: 1, or the samples that its gradient is the mean of. One more collective, of one number. */
agglo_status agglo_buckets_mean(agglo_buckets *buckets, agglo_comm *comm, double weight, agglo_err *err);

/* Root's tensors to all. */
agglo_status agglo_buckets_broadcast(agglo_buckets *buckets, agglo_comm *comm, int root, agglo_err *err);

#ifdef __cplusplus
}
#endif
#endif
