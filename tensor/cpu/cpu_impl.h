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

#define AGGLO_CPU_ALIGN 64 /* of scratch, shared and each worker's: a cache line, and the widest vector */

typedef struct agglo_cpu_convs agglo_cpu_convs;

typedef struct agglo_cpu {
    agglo_backend base;
    uint8_t *block;   /* what scratch lies in */
    uint8_t *scratch; /* [shared | worker 0 | worker 1 | ...], aligned */
    size_t shared_bytes, worker_bytes;
    agglo_cpu_convs *convs; /* conv_dnnl.c's plans; NULL until the first */
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

/* What each worker has. */
static inline size_t agglo_cpu_worker_bytes(const agglo_backend *be)
{
    return ((const agglo_cpu *)be)->worker_bytes;
}

/* agglo_backend_product: oneDNN's product, a slice of rows to a thread. */
void agglo_cpu_product(agglo_backend *be, const agglo_tensor *a, const agglo_tensor *b, bool transpose_b,
                       agglo_tensor *c);

/* gemm_dnnl.c: before oneDNN is called on a thread; after, with what it said; the last of these since this was asked that was not success, 0
 * when all were. */
void agglo_cpu_one_thread(void);
void agglo_cpu_dnnl_status(int status);
int agglo_cpu_dnnl_failure(void);

/* conv_dnnl.c: forward convolutions in F32. A plan is for one image, cut into bands of output rows: pack the weights once, then run bands on any
 * worker, each with scratch of its own; a band's rows of y, [first, first + rows), are then complete. NULL where oneDNN is not the faster. */
typedef struct agglo_cpu_conv_plan agglo_cpu_conv_plan;
agglo_cpu_conv_plan *agglo_cpu_conv_plan_of(agglo_backend *be, const agglo_conv_shape *shape);
int64_t agglo_cpu_conv_bands(const agglo_cpu_conv_plan *plan);
void agglo_cpu_conv_sizes(const agglo_cpu_conv_plan *plan, size_t *packed_bytes, size_t *scratch_bytes);
void agglo_cpu_conv_pack(agglo_backend *be, agglo_cpu_conv_plan *plan, const float *w, void *packed);
void agglo_cpu_conv_band(agglo_backend *be, agglo_cpu_conv_plan *plan, int64_t index, int worker, const float *x,
                         const void *packed, void *scratch, float *y, int64_t *first, int64_t *rows);
void agglo_cpu_convs_free(agglo_cpu_convs *convs);

/* A matrix as it is stored, F32 or BF16: element (outer, k) is data[outer ld + k] where k runs fastest, data[k ld + outer] otherwise. */
typedef struct agglo_cpu_operand {
    const void *data;
    agglo_dtype dtype;
    int64_t ld;
    bool k_fastest;
} agglo_cpu_operand;

/* C[m,n] (+)= A[m,k] B[k,n], sums in F32. `finish`, where given, is called once for every element, in blocks of at most some 100 x 64 that
 * are in cache, when its sum is complete; c NULL leaves it to finish to keep the result: `block` is scratch then.
 * a_sums[m], where given, gets A's row sums added. An element's value depends on its row of A, its column of B and k alone.
 * An A that does not stand in memory as a matrix: a_rows writes elements k0..k0+k of its rows first..first+n as floats [n][k], on any thread.
 * A B that is packed already (b_packed; gemm_pack_b's layout) stands in `packed`, and gemm_worker_floats have been reserved with it: those of
 * the same product, whose `packed` need not be known yet. */
typedef struct agglo_cpu_gemm {
    int64_t m, n, k;
    agglo_cpu_operand a, b;
    void (*a_rows)(const void *rows, int64_t first, int64_t n, int64_t k0, int64_t k, float *out);
    const void *rows;    /* what a_rows is called with */
    bool b_packed;       /* decides how the product is cut, and so what scratch it takes */
    const float *packed; /* with b_packed */
    float *c;
    int64_t ldc;
    bool accumulate; /* to c */
    float *a_sums;
    void (*finish)(void *context, int64_t row, int64_t rows, int64_t col, int64_t cols, float *block, int64_t ld);
    void *context;
} agglo_cpu_gemm;

#define AGGLO_CPU_JOIN2(name, isa) agglo_cpu_##name##_##isa
#define AGGLO_CPU_JOIN(name, isa)  AGGLO_CPU_JOIN2(name, isa)

#ifdef AGGLO_CPU_ISA
#define AGGLO_CPU_NAME(name) AGGLO_CPU_JOIN(name, AGGLO_CPU_ISA)

/* BF16 to F32 and back (to nearest even; a NaN stays one), in vector loops. */
static inline void agglo_cpu_from_bf16(int64_t n, const uint16_t *restrict in, float *restrict out)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        out[i] = agglo_bf16_to_f32(in[i]);
    }
}

static inline void agglo_cpu_to_bf16(int64_t n, const float *restrict in, uint16_t *restrict out)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        out[i] = agglo_f32_to_bf16(in[i]);
    }
}

/* Elements first..first+n of a tensor (F32, BF16) in F32: in place, or converted into `scratch`. */
static inline const float *agglo_cpu_in(const agglo_tensor *t, int64_t first, int64_t n, float *scratch)
{
    if (t->dtype == AGGLO_F32) {
        return (const float *)t->data + first;
    }
    agglo_cpu_from_bf16(n, (const uint16_t *)t->data + first, scratch);
    return scratch;
}

/* Where to write elements first.. of a tensor in F32: in place or `scratch`; agglo_cpu_put then rounds what stands in scratch. */
static inline float *agglo_cpu_out(const agglo_tensor *t, int64_t first, float *scratch)
{
    return t->dtype == AGGLO_F32 ? (float *)t->data + first : scratch;
}

static inline void agglo_cpu_put(const agglo_tensor *t, int64_t first, int64_t n, const float *written)
{
    if (t->dtype != AGGLO_F32) {
        agglo_cpu_to_bf16(n, written, (uint16_t *)t->data + first);
    }
}

/* Have scratch for rows of c floats for each worker, where the type is not F32 and so needs it. */
static inline bool agglo_cpu_reserve_rows(agglo_backend *be, const agglo_tensor *t, int64_t n_rows, int64_t c)
{
    return t->dtype == AGGLO_F32 || agglo_cpu_reserve(be, 0, (size_t)(n_rows * c) * sizeof(float));
}

void AGGLO_CPU_NAME(attention_ops)(agglo_backend_ops *ops);
void AGGLO_CPU_NAME(batchnorm_ops)(agglo_backend_ops *ops);
void AGGLO_CPU_NAME(conv_ops)(agglo_backend_ops *ops);
void AGGLO_CPU_NAME(maps_ops)(agglo_backend_ops *ops);
void AGGLO_CPU_NAME(elementwise_ops)(agglo_backend_ops *ops);
void AGGLO_CPU_NAME(linear_ops)(agglo_backend_ops *ops);
void AGGLO_CPU_NAME(loss_ops)(agglo_backend_ops *ops);
void AGGLO_CPU_NAME(norm_ops)(agglo_backend_ops *ops);
void AGGLO_CPU_NAME(optim_ops)(agglo_backend_ops *ops);
void AGGLO_CPU_NAME(tokens_ops)(agglo_backend_ops *ops);
void AGGLO_CPU_NAME(attention_bias_ops)(agglo_backend_ops *ops);
void AGGLO_CPU_NAME(gather_ops)(agglo_backend_ops *ops);
void AGGLO_CPU_NAME(resample_ops)(agglo_backend_ops *ops);

void AGGLO_CPU_NAME(gemm)(agglo_backend *be, const agglo_cpu_gemm *product);

/* Floats of each worker that it reserves. */
int64_t AGGLO_CPU_NAME(gemm_worker_floats)(const agglo_cpu_gemm *product);

/* The parts of it, for products inside a task. B's columns in panels [k][GEMM_COLS], packed over the pool: `n` columns take packed_floats. */
int64_t AGGLO_CPU_NAME(gemm_packed_floats)(int64_t n, int64_t k);
void AGGLO_CPU_NAME(gemm_pack_b)(agglo_backend *be, const agglo_cpu_operand *b, int64_t n, int64_t k, float *packed);
/* C[m,n] = A B on the calling thread, B packed; scratch of tile_floats. The same bits as gemm's. */
int64_t AGGLO_CPU_NAME(gemm_tile_floats)(int64_t m, int64_t k);
void AGGLO_CPU_NAME(gemm_tile)(int64_t m, int64_t n, int64_t k, const agglo_cpu_operand *a, const float *packed,
                               float *c, int64_t ldc, float *scratch);
/* C[m,n] (+)= A B of panels, of gemm_impl.h's widths. */
void AGGLO_CPU_NAME(gemm_panels)(int64_t m, int64_t n, int64_t k, const float *a, const float *b, float *c, int64_t ldc,
                                 bool accumulate);

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
