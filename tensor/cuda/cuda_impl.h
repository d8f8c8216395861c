/* The CUDA backend's inside: its struct, scratch memory, how operators enter and leave, and the launch shapes that they share.
 *
 * One stream per backend orders all operators; a second one has asynchronous uploads (tensor/async.h). An operator checks nothing that ops.c has checked, launches, and latches what the launch
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

#define AGGLO_CUDA_STAGES   4  /* pinned buffers that uploads pass through */
#define AGGLO_CUDA_OUTGROWN 24 /* each at least half as large as the next: more than a GPU has */

typedef struct agglo_cuda_gemm agglo_cuda_gemm;
typedef struct agglo_cuda_sdpa agglo_cuda_sdpa;

typedef struct agglo_cuda {
    agglo_backend base;
    int device, n_multiprocessors;
    cudaStream_t stream, copies; /* operators; asynchronous uploads */
    bool capturing;              /* operators go into a graph */
    bool breached;               /* while it was recorded something was done that may not be */
    void *scratch;               /* on the device; see agglo_cuda_reserve */
    size_t scratch_bytes;
    int n_graphs;                        /* that exist: they know addresses of scratch */
    void *outgrown[AGGLO_CUDA_OUTGROWN]; /* scratch that was replaced while there were graphs */
    int n_outgrown;
    uint8_t *stage[AGGLO_CUDA_STAGES];
    cudaEvent_t stage_free[AGGLO_CUDA_STAGES]; /* the stage's last copy has left it */
    int next_stage;
    agglo_cuda_gemm *gemm;
    agglo_cuda_sdpa *sdpa; /* NULL until BF16 attention is asked for */
} agglo_cuda;

/* Make the backend's device the calling thread's: the first thing that an operator does. */
agglo_cuda *agglo_cuda_enter(agglo_backend *be);

/* Latch `status` unless it is success; `what` names the call or the operator. Returns whether it is success. */
bool agglo_cuda_ok(agglo_cuda *cuda, cudaError_t status, const char *what);

/* After a launch: latch what it, or anything that ran on the device meanwhile, failed with. */
void agglo_cuda_launched(agglo_cuda *cuda, const char *what);

/* False, and a failure latched, while a step is recorded: `what` may not be done then. */
bool agglo_cuda_not_capturing(agglo_cuda *cuda, const char *what);

/* At least n_bytes of device memory for one operator, contents undefined, 256-byte aligned; NULL, failure latched, when there is not
 * enough. Grows only: with shapes that have been seen nothing is allocated. The stream orders one operator's use after another's. */
void *agglo_cuda_reserve(agglo_cuda *cuda, size_t n_bytes);

/* gemm_lt.c: C[m,n] = op(A) op(B) + beta C, row-major and packed, sums in F32; op transposes where the flag says so. A and B of type
 * `in`, C of type `out`: F32 and F32, BF16 and BF16, or BF16 and F32. Deterministic: the algorithm depends on shape and alignment, partial
 * sums never meet in atomics. agglo_cuda_sgemm is all F32. */
agglo_status agglo_cuda_gemm_new(agglo_cuda *cuda, agglo_err *err);
void agglo_cuda_gemm_free(agglo_cuda *cuda); /* half-built is fine */
void agglo_cuda_gemm_of(agglo_cuda *cuda, bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k,
                        agglo_dtype in, const void *a, const void *b, float beta, agglo_dtype out, void *c);
void agglo_cuda_sgemm(agglo_cuda *cuda, bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k,
                      const float *a, const float *b, float beta, float *c);

/* elementwise.cu: pre = y + b, y = act(pre) over y[m,n] of dtype F32 or BF16, as pre; b and pre may be NULL. act is of pre before it is
 * rounded. */
void agglo_cuda_bias_act(agglo_cuda *cuda, agglo_act act, agglo_dtype dtype, int64_t m, int64_t n, const float *b,
                         void *pre, void *y);

/* reduce.cu: out[j] += sum over rows of a[i,j], or of a[i,j] b[i,j] where b is given; a and b of dtype F32 or BF16. */
void agglo_cuda_column_sums(agglo_cuda *cuda, agglo_dtype dtype, int64_t m, int64_t c, const void *a, const void *b,
                            float *out);

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

/* attention_mma.cu: attention of BF16 qkv with at most 128 channels per head; lse may be NULL forward. delta[B,H,N] = <d_out, out> per row of
 * a head. */
void agglo_cuda_attention_mma(agglo_cuda *cuda, const agglo_tensor *qkv, float scale, agglo_tensor *out,
                              agglo_tensor *lse);
void agglo_cuda_attention_mma_bwd(agglo_cuda *cuda, const agglo_tensor *d_out, const agglo_tensor *qkv,
                                  const agglo_tensor *lse, const float *delta, float scale, agglo_tensor *d_qkv);

#ifdef AGGLO_CUDNN
/* attention_cudnn.c: the same by cuDNN. False, with nothing done, where it does not take the shape (other head sizes than multiples of 8 up to 128,
 * arrays that are not 16-byte aligned) or is not there; failures are latched and give true. */
bool agglo_cuda_sdpa_forward(agglo_cuda *cuda, const agglo_tensor *qkv, float scale, agglo_tensor *out,
                             agglo_tensor *lse);
bool agglo_cuda_sdpa_backward(agglo_cuda *cuda, const agglo_tensor *d_out, const agglo_tensor *qkv,
                              const agglo_tensor *out, const agglo_tensor *lse, float scale, agglo_tensor *d_qkv);
void agglo_cuda_sdpa_free(agglo_cuda *cuda); /* none is fine */
#endif

/* Each family enters its operators into the table. */
void agglo_cuda_linear_ops(agglo_backend_ops *ops);
void agglo_cuda_attention_ops(agglo_backend_ops *ops);
void agglo_cuda_elementwise_ops(agglo_backend_ops *ops);
void agglo_cuda_norm_ops(agglo_backend_ops *ops);
void agglo_cuda_tokens_ops(agglo_backend_ops *ops);
void agglo_cuda_loss_ops(agglo_backend_ops *ops);
void agglo_cuda_optim_ops(agglo_backend_ops *ops);

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
