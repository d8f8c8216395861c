/* The CUDA backend's inside: its struct, scratch memory, how operators enter and leave, and the launch shapes that they share.
 *
 * One stream per backend orders everything. An operator checks nothing that ops.c has checked, launches, and latches what the launch
 * said; what a kernel does wrong later is found at the next launch, download or wait. Work is cut and sums are ordered by shape alone and
 * nothing uses atomics, so that two runs give the same bytes.
 *
 * Seen by C (backend_cuda.c, gemm_lt.c) and by CUDA C++ (the operators, one .cu per family).
 */
#ifndef AGGLO_TENSOR_CUDA_CUDA_IMPL_H
#define AGGLO_TENSOR_CUDA_CUDA_IMPL_H

#include <cuda_runtime_api.h>

#include "tensor/backend_impl.h"

#ifdef __cplusplus
extern "C" {
#endif

#define AGGLO_CUDA_STAGES 4 /* pinned buffers that uploads pass through */

typedef struct agglo_cuda_gemm agglo_cuda_gemm;

typedef struct agglo_cuda {
    agglo_backend base;
    int device, n_multiprocessors;
    cudaStream_t stream;
    void *scratch; /* on the device; see agglo_cuda_reserve */
    size_t scratch_bytes;
    uint8_t *stage[AGGLO_CUDA_STAGES];
    cudaEvent_t stage_free[AGGLO_CUDA_STAGES]; /* the stage's last copy has left it */
    int next_stage;
    agglo_cuda_gemm *gemm;
} agglo_cuda;

/* Make the backend's device the calling thread's: the first thing that an operator does. */
agglo_cuda *agglo_cuda_enter(agglo_backend *be);

/* Latch `status` unless it is success; `what` names the call or the operator. Returns whether it is success. */
bool agglo_cuda_ok(agglo_cuda *cuda, cudaError_t status, const char *what);

/* After a launch: latch what it, or anything that ran on the device meanwhile, failed with. */
void agglo_cuda_launched(agglo_cuda *cuda, const char *what);

/* At least n_bytes of device memory for one operator, contents undefined, 256-byte aligned; NULL, failure latched, when there is not
 * enough. Grows only: with shapes that have been seen nothing is allocated. The stream orders one operator's use after another's. */
void *agglo_cuda_reserve(agglo_cuda *cuda, size_t n_bytes);

/* gemm_lt.c: C[m,n] = op(A) op(B) + beta C, row-major and packed, F32 with F32 arithmetic; op transposes where the flag says so.
 * Deterministic: the algorithm depends on shape and alignment, partial sums never meet in atomics. */
agglo_status agglo_cuda_gemm_new(agglo_cuda *cuda, agglo_err *err);
void agglo_cuda_gemm_free(agglo_cuda *cuda); /* half-built is fine */
void agglo_cuda_sgemm(agglo_cuda *cuda, bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k,
                      const float *a, const float *b, float beta, float *c);

/* elementwise.cu: pre = y + b, y = act(pre) over y[m,n]; b and pre may be NULL. */
void agglo_cuda_bias_act(agglo_cuda *cuda, agglo_act act, int64_t m, int64_t n, const float *b, float *pre, float *y);

/* reduce.cu: out[j] += sum over rows of a[i,j], or of a[i,j] b[i,j] where b is given. */
void agglo_cuda_column_sums(agglo_cuda *cuda, int64_t m, int64_t c, const float *a, const float *b, float *out);

/* reduce.cu: column sums in two stages. The first, which other families write for themselves, leaves one row of partial sums per
 * chunk of rows, partial[n_chunks][n]; this adds them, in order and in double, to the outputs: the first n_out[0] columns to out[0], the
 * rest to out[1]. */
typedef struct agglo_cuda_chunks {
    int64_t n_rows; /* of a chunk */
    int64_t n;
} agglo_cuda_chunks;

agglo_cuda_chunks agglo_cuda_row_chunks(int64_t m);
void agglo_cuda_add_partials(agglo_cuda *cuda, int64_t n_chunks, int64_t n0, float *out0, int64_t n1, float *out1,
                             const float *partial);

/* Each family enters its operators into the table. */
void agglo_cuda_linear_ops(agglo_backend_ops *ops);
void agglo_cuda_attention_ops(agglo_backend_ops *ops);
void agglo_cuda_elementwise_ops(agglo_backend_ops *ops);
void agglo_cuda_reduce_ops(agglo_backend_ops *ops);
void agglo_cuda_norm_ops(agglo_backend_ops *ops);
void agglo_cuda_tokens_ops(agglo_backend_ops *ops);
void agglo_cuda_loss_ops(agglo_backend_ops *ops);
void agglo_cuda_attention_bias_ops(agglo_backend_ops *ops);
void agglo_cuda_gather_ops(agglo_backend_ops *ops);
void agglo_cuda_resample_ops(agglo_backend_ops *ops);

#ifdef __cplusplus
}
#endif

static inline int64_t agglo_cuda_ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

/* The extent of a grid over n pieces of work, kernels striding over what is beyond `most`. */
static inline unsigned agglo_cuda_grid(int64_t n, int64_t most)
{
    return (unsigned)(n < most ? n : most);
}

#endif
