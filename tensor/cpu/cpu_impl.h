/* The CPU backend's inside: its struct, scratch memory, and how its operators are compiled once per instruction set.
 *
 * Every file of operators is compiled for the baseline and, on x86-64, for AVX2 and AVX-512, with AGGLO_CPU_ISA naming the set; each
 * exports one function that enters its operators into the table, and agglo_backend_cpu_new picks the widest set that the machine has. (Function
 * multiversioning by the compiler needs ifunc, which sanitizers do not survive at start-up.)
 *
 * Work is cut by shape alone, and sums run in an order fixed by shape, so results are the same for any number of threads.
 */
#ifndef AGGLO_TENSOR_CPU_CPU_IMPL_H
#define AGGLO_TENSOR_CPU_CPU_IMPL_H

#include "tensor/backend_impl.h"

typedef struct agglo_cpu {
    agglo_backend base;
    uint8_t *scratch; /* [shared | worker 0 | worker 1 | ...] */
    size_t scratch_bytes, shared_bytes, worker_bytes;
} agglo_cpu;

/* Have at least shared_bytes for the operator and worker_bytes for each worker, contents undefined; false, failure latched, when there is
 * not enough memory. Grows only: with shapes that have been seen nothing is allocated. */
bool agglo_cpu_reserve(agglo_backend *be, size_t shared_bytes, size_t worker_bytes);

static inline void *agglo_cpu_shared(agglo_backend *be)
{
    return ((agglo_cpu *)be)->scratch;
}

static inline void *agglo_cpu_worker(agglo_backend *be, int worker)
{
    agglo_cpu *cpu = (agglo_cpu *)be;
    return cpu->scratch + cpu->shared_bytes + (size_t)worker * cpu->worker_bytes;
}

/* C[m,n] = alpha op(A) op(B) + beta C, row-major, on the calling thread alone; op transposes where the flag says so. */
void agglo_cpu_sgemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha, const float *a,
                     int64_t lda, const float *b, int64_t ldb, float beta, float *c, int64_t ldc);

/* The status of a product that failed on any thread since the last call, 0 when none did. */
int agglo_cpu_sgemm_failure(void);

#define AGGLO_CPU_JOIN2(name, isa) agglo_cpu_##name##_##isa
#define AGGLO_CPU_JOIN(name, isa)  AGGLO_CPU_JOIN2(name, isa)

#ifdef AGGLO_CPU_ISA
#define AGGLO_CPU_NAME(name) AGGLO_CPU_JOIN(name, AGGLO_CPU_ISA)

void AGGLO_CPU_NAME(attention_ops)(agglo_backend_ops *ops);
void AGGLO_CPU_NAME(elementwise_ops)(agglo_backend_ops *ops);
void AGGLO_CPU_NAME(linear_ops)(agglo_backend_ops *ops);
void AGGLO_CPU_NAME(loss_ops)(agglo_backend_ops *ops);
void AGGLO_CPU_NAME(norm_ops)(agglo_backend_ops *ops);
void AGGLO_CPU_NAME(tokens_ops)(agglo_backend_ops *ops);
void AGGLO_CPU_NAME(attention_bias_ops)(agglo_backend_ops *ops);
void AGGLO_CPU_NAME(gather_ops)(agglo_backend_ops *ops);
void AGGLO_CPU_NAME(resample_ops)(agglo_backend_ops *ops);

/* y[i] = act(x[i] + b[i]), b NULL for none; pre[i] = x[i] + b[i] is kept where pre is given. x, pre and y may be the same row. */
void AGGLO_CPU_NAME(bias_act)(agglo_act act, int64_t n, const float *x, const float *b, float *pre, float *y);
#endif

static inline int64_t agglo_ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

static inline int64_t agglo_min(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

#endif
