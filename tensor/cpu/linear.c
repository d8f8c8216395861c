/* Linear layers on the CPU: three products (gemm.c), with bias and activation applied to blocks of the output while they are in cache.
 *
 *     y = act(x w^T + b)        A = x [M,K]       B = w^T [K,N]
 *     d_x = d_y w               A = d_y [M,N]     B = w [N,K]
 *     d_w += d_y^T x            A = d_y^T [N,M]   B = x [M,K];   d_b += A's row sums
 *
 * A BF16 output is rounded from the block of F32 sums.
 */
#include "tensor/cpu/gemm_impl.h"
#include "tensor/math_inline.h"

static agglo_cpu_operand operand(const agglo_tensor *t, int64_t ld, bool k_fastest)
{
    return (agglo_cpu_operand){t->data, t->dtype, ld, k_fastest};
}

typedef struct linear_out {
    agglo_act act;
    int64_t n;
    const float *b;
    agglo_tensor *pre, *y;
} linear_out;

static const float zeros[GEMM_COLS];

/* `cols` is a constant where blocks are whole: short loops without a tail. */
#define FINISH(expr)                                                                                                   \
    for (int64_t i = 0; i < rows; i++) {                                                                               \
        _Pragma("omp simd") for (int64_t j = 0; j < cols; j++)                                                         \
        {                                                                                                              \
            float v = sum[i * ld + j] + b[j];                                                                          \
            sum[i * ld + j] = v;                                                                                       \
            y[i * y_ld + j] = (expr);                                                                                  \
        }                                                                                                              \
    }                                                                                                                  \
    break

/* sum += b; y = act(sum). y may be sum. */
GEMM_INLINE void finish_rows(agglo_act act, int64_t rows, int64_t cols, const float *b, float *sum, int64_t ld,
                             float *y, int64_t y_ld)
{
    switch (act) {
    case AGGLO_ACT_NONE:
        FINISH(v);
    case AGGLO_ACT_GELU:
        FINISH(agglo_gelu(v));
    case AGGLO_ACT_QUICK_GELU:
        FINISH(agglo_quick_gelu(v));
    case AGGLO_ACT_SILU:
        FINISH(agglo_silu(v));
    case AGGLO_ACT_RELU:
        FINISH(v < 0.0f ? 0.0f : v);
    }
}

static void finish_block(agglo_act act, int64_t rows, int64_t cols, const float *b, float *sum, int64_t ld, float *y,
                         int64_t y_ld)
{
    if (cols == GEMM_COLS) {
        finish_rows(act, rows, GEMM_COLS, b, sum, ld, y, y_ld);
    } else {
        finish_rows(act, rows, cols, b, sum, ld, y, y_ld);
    }
}

/* y = act(sum + b), pre = sum + b; with pre the sums stand in pre, else in y. */
static void finish_linear(void *context, int64_t row, int64_t rows, int64_t col, int64_t cols, float *block, int64_t ld)
{
    const linear_out *out = context;

    finish_block(out->act, rows, cols, out->b == NULL ? zeros : out->b + col, block, ld,
                 (float *)out->y->data + row * out->n + col, out->n);
}

/* The same with sums in scratch, and BF16 out. */
static void finish_linear_bf16(void *context, int64_t row, int64_t rows, int64_t col, int64_t cols, float *block,
                               int64_t ld)
{
    const linear_out *out = context;
    const float *b = out->b == NULL ? zeros : out->b + col;
    float y[GEMM_COLS];

    for (int64_t i = 0; i < rows; i++) {
        float *sum = block + i * ld;
        int64_t at = (row + i) * out->n + col;

        finish_block(out->act, 1, cols, b, sum, ld, y, GEMM_COLS);
        if (out->pre != NULL) {
            agglo_cpu_to_bf16(cols, sum, (uint16_t *)out->pre->data + at);
        }
        agglo_cpu_to_bf16(cols, y, (uint16_t *)out->y->data + at);
    }
}

static void linear(agglo_backend *be, const agglo_tensor *x, const agglo_tensor *w, const agglo_tensor *b,
                   agglo_act act, agglo_tensor *pre, agglo_tensor *y)
{
    int64_t n = w->shape[0], k = w->shape[1], m = agglo_tensor_count(x) / k;
    linear_out out = {act, n, b == NULL ? NULL : b->data, pre, y};
    agglo_cpu_gemm product = {
        .m = m, .n = n, .k = k, .a = operand(x, k, true), .b = operand(w, k, true), .ldc = n, .context = &out};

    if (y->dtype == AGGLO_BF16) {
        product.finish = finish_linear_bf16;
    } else {
        product.c = pre == NULL ? y->data : pre->data;
        product.finish = b != NULL || act != AGGLO_ACT_NONE || pre != NULL ? finish_linear : NULL;
    }
    AGGLO_CPU_NAME(gemm)(be, &product);
}

typedef struct input_out {
    int64_t k;
    uint16_t *d_x;
    bool accumulate;
} input_out;

static void finish_input_bf16(void *context, int64_t row, int64_t rows, int64_t col, int64_t cols, float *block,
                              int64_t ld)
{
    const input_out *out = context;

    for (int64_t i = 0; i < rows; i++) {
        uint16_t *d_x = out->d_x + (row + i) * out->k + col;
        float *sum = block + i * ld;

        for (int64_t j = 0; out->accumulate && j < cols; j++) {
            sum[j] += agglo_bf16_to_f32(d_x[j]);
        }
        agglo_cpu_to_bf16(cols, sum, d_x);
    }
}

static void linear_bwd_input(agglo_backend *be, const agglo_tensor *d_y, const agglo_tensor *w, bool accumulate,
                             agglo_tensor *d_x)
{
    int64_t n = w->shape[0], k = w->shape[1], m = agglo_tensor_count(d_y) / n;
    input_out out = {k, d_x->data, accumulate};
    agglo_cpu_gemm product = {
        .m = m, .n = k, .k = n, .a = operand(d_y, n, true), .b = operand(w, k, false), .ldc = k, .context = &out};

    if (d_x->dtype == AGGLO_BF16) {
        product.finish = finish_input_bf16;
    } else {
        product.c = d_x->data;
        product.accumulate = accumulate;
    }
    AGGLO_CPU_NAME(gemm)(be, &product);
}

static void linear_bwd_weight(agglo_backend *be, const agglo_tensor *d_y, const agglo_tensor *x, agglo_tensor *d_w,
                              agglo_tensor *d_b)
{
    int64_t n = d_w->shape[0], k = d_w->shape[1], m = agglo_tensor_count(x) / k;
    agglo_cpu_gemm product = {.m = n,
                              .n = k,
                              .k = m,
                              .a = operand(d_y, n, false),
                              .b = operand(x, k, false),
                              .c = d_w->data,
                              .ldc = k,
                              .accumulate = true,
                              .a_sums = d_b == NULL ? NULL : d_b->data};

    AGGLO_CPU_NAME(gemm)(be, &product);
}

void AGGLO_CPU_NAME(linear_ops)(agglo_backend_ops *ops)
{
    ops->linear = linear;
    ops->linear_bwd_input = linear_bwd_input;
    ops->linear_bwd_weight = linear_bwd_weight;
}
