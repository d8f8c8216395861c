/* A backend: memory of one device and the table of operators on it.
 *
 * Operators are called through tensor/ops.h, which checks shapes. They return nothing: the first failure is latched and asked for
 * once per step with agglo_backend_check (CUDA reports late anyway, and model code stays readable); after a failure further
 * operators do nothing. Work is ordered as issued; download and check wait for it. One thread at a time per backend.
 */
#ifndef AGGLO_TENSOR_BACKEND_H
#define AGGLO_TENSOR_BACKEND_H

#include "base/pool.h"
#include "tensor/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct agglo_backend agglo_backend;

/* The CPU backend (own matrix products and vector loops, some convolutions by oneDNN) over n_threads (0: all cores). Its arithmetic depends on shapes and
 * instruction set, not on the number of threads. AGGLO_CPU_ISA in the environment (generic, avx2, avx512) asks for another set than the
 * machine's widest for the own loops; oneDNN's is ONEDNN_MAX_CPU_ISA. */
agglo_status agglo_backend_cpu_new(agglo_backend **out, int n_threads, agglo_err *err);

/* The CUDA backend on GPU `device`, counted from 0, of compute capability 8.0 or later: F32 arithmetic without TF32, BF16 storage with sums in
 * F32, deterministic. Attention in BF16 is cuDNN's where that is installed and takes the shape, unless AGGLO_CUDNN in the environment is
 * "off". AGGLO_E_UNSUPPORTED, with the reason, when it is not built in or there is no such GPU. */
agglo_status agglo_backend_cuda_new(agglo_backend **out, int device, agglo_err *err);

/* One line about this build's CUDA backend: "not built in", "built in, no device: WHY", or "built in, NAME (sm_90), driver 13.0,
 * runtime 13.0" of the first GPU. */
void agglo_backend_cuda_describe(char *out, size_t n_bytes);

/* By name: "cpu", "cuda", "cuda:N", or "auto" (a GPU when this build and machine have one, otherwise the CPU).
 * AGGLO_E_CONFIG for an unknown name, and for one that is not built in or not present. */
agglo_status agglo_backend_open(agglo_backend **out, const char *device, int n_threads, agglo_err *err);

void agglo_backend_free(agglo_backend *backend);

/* "cpu (avx2, 2 threads)"; borrowed. */
const char *agglo_backend_describe(const agglo_backend *backend);

/* Whether values of this dtype can be computed with (F32 everywhere, BF16 where the backend has it). */
bool agglo_backend_supports(const agglo_backend *backend, agglo_dtype dtype);

/* AGGLO_OK, or the first failure since the last check; waits for outstanding work. */
agglo_status agglo_backend_check(agglo_backend *backend, agglo_err *err);

/* The same without waiting: what is known by now. After agglo_event_wait that is all that failed before the event. */
agglo_status agglo_backend_peek(agglo_backend *backend, agglo_err *err);

/* The version of the library behind some of the CPU backend's convolutions (oneDNN), as it was loaded. */
typedef struct agglo_backend_library {
    int major, minor, patch;
} agglo_backend_library;

agglo_backend_library agglo_backend_cpu_library(void);

/* The pool behind the CPU backend's loops; NULL on a device. Lets host work share the cores between operators. */
agglo_pool *agglo_backend_pool(agglo_backend *backend);

/* Device memory, zeroed, 256-byte aligned. NULL and error on failure. The zeros are work of the compute stream, as operators are: an upload on
 * the copy stream (tensor/async.h) has to come behind an event that was recorded since. */
void *agglo_backend_alloc(agglo_backend *backend, size_t n_bytes, agglo_err *err);
void agglo_backend_release(agglo_backend *backend, void *block); /* NULL is fine */

/* Host to device, device to host (waits), device to device, and fill with zero bytes. */
void agglo_upload(agglo_backend *backend, void *dst, const void *src, size_t n_bytes);
void agglo_download(agglo_backend *backend, void *dst, const void *src, size_t n_bytes);
void agglo_copy(agglo_backend *backend, void *dst, const void *src, size_t n_bytes);
void agglo_zero(agglo_backend *backend, void *dst, size_t n_bytes);

/* For measuring alone: c[m,n] = a[m,k] b[k,n], or a[m,k] b[n,k]^T with transpose_b, by the library behind the backend's matrix products and
 * nothing else: no tiles of ours, no bias, no activation. What `agglo bench ops` calls the machine's best. On the CPU (dnnl_sgemm) each
 * thread takes one slice of the rows, so that the order of sums may depend on their number. F32 everywhere; on a device also the other
 * types that it computes with (the CPU computes in F32 whatever the storage). */
void agglo_backend_product(agglo_backend *backend, const agglo_tensor *a, const agglo_tensor *b, bool transpose_b,
                           agglo_tensor *c);

#ifdef __cplusplus
}
#endif
#endif
