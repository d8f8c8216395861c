/* The inner loop of matrix products on the CPU, in the vectors of the instruction set that the file is compiled for, and the panels that
 * it reads.
 *
 * A kernel computes GEMM_ROWS x (n_vec GEMM_LANES) elements of C in registers, one multiply-add per element and step of k:
 *
 *     A panel [k][GEMM_ROWS]          B panel [k][GEMM_COLS]
 *
 * so an element of C is one chain of sums over k, whatever rows and columns stand beside it: its value does not depend on the tile, the
 * batch or the thread that it was computed in. Panels hold zeros beyond the matrix's edge.
 *
 * Blocked as in Goto and van de Geijn, "Anatomy of high-performance matrix multiplication" (2008). Only files that are compiled per
 * instruction set include this.
 */
#ifndef AGGLO_TENSOR_CPU_GEMM_IMPL_H
#define AGGLO_TENSOR_CPU_GEMM_IMPL_H

#include "tensor/cpu/cpu_impl.h"

#include <string.h>

#ifdef AGGLO_CPU_ISA

/* registers: GEMM_ROWS x GEMM_VECS sums, GEMM_VECS of B, one of A */
#if defined(__AVX512F__)
#define GEMM_LANES 16
#define GEMM_ROWS  12
#define GEMM_VECS  2
#elif defined(__AVX2__)
#define GEMM_LANES 8
#define GEMM_ROWS  4
#define GEMM_VECS  3
#else
#define GEMM_LANES 4
#define GEMM_ROWS  4
#define GEMM_VECS  2
#endif
#define GEMM_COLS (GEMM_VECS * GEMM_LANES)

typedef float gemm_vec __attribute__((vector_size(GEMM_LANES * sizeof(float))));
typedef float gemm_vec_at __attribute__((vector_size(GEMM_LANES * sizeof(float)), aligned(sizeof(float)), may_alias));
typedef float gemm_vec4 __attribute__((vector_size(4 * sizeof(float))));
typedef float gemm_vec4_at __attribute__((vector_size(4 * sizeof(float)), aligned(sizeof(float)), may_alias));

#define GEMM_INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define GEMM_UNROLL _Pragma("unroll")
#else
#define GEMM_UNROLL _Pragma("GCC unroll 16")
#endif

GEMM_INLINE gemm_vec gemm_load(const float *p)
{
    return *(const gemm_vec_at *)p;
}

GEMM_INLINE void gemm_store(float *p, gemm_vec v)
{
    *(gemm_vec_at *)p = v;
}

/* C[i][j] (+)= sum over p < k of a[p a_step + i a_row] b[p b_step + j], for `rows` rows and n_vec vectors of columns. rows, n_vec, a_row and
 * a_step are constants where this is called. */
GEMM_INLINE void gemm_kernel(int rows, int n_vec, int64_t k, const float *a, int64_t a_row, int64_t a_step,
                             const float *b, int64_t b_step, float *c, int64_t ldc, bool accumulate)
{
    gemm_vec sum[GEMM_ROWS][GEMM_VECS], zero = {0};

    GEMM_UNROLL
    for (int i = 0; i < rows; i++) {
        GEMM_UNROLL
        for (int j = 0; j < n_vec; j++) {
            sum[i][j] = zero;
        }
    }
    for (int64_t p = 0; p < k; p++) {
        gemm_vec right[GEMM_VECS];

        GEMM_UNROLL
        for (int j = 0; j < n_vec; j++) {
            right[j] = gemm_load(b + j * GEMM_LANES);
        }
        GEMM_UNROLL
        for (int i = 0; i < rows; i++) {
            GEMM_UNROLL
            for (int j = 0; j < n_vec; j++) {
                sum[i][j] += a[i * a_row] * right[j];
            }
        }
        a += a_step;
        b += b_step;
    }
    GEMM_UNROLL
    for (int i = 0; i < rows; i++) {
        GEMM_UNROLL
        for (int j = 0; j < n_vec; j++) {
            float *at = c + i * ldc + j * GEMM_LANES;

            gemm_store(at, accumulate ? gemm_load(at) + sum[i][j] : sum[i][j]);
        }
    }
}

/* A function name(n, k, a, b, c, ldc, accumulate): GEMM_ROWS rows (GEMM_KERNELS_OF: `rows`) and n <= GEMM_COLS columns, of which whole vectors are written; A with
 * these strides, a panel of B. */
#if GEMM_VECS > 2
#define GEMM_KERNEL_3(name, rows, a_row, a_step) GEMM_KERNEL_OF(name, rows, 3, a_row, a_step)
#define GEMM_CALL_3(name)                                                                                              \
    if (n > 2 * GEMM_LANES) {                                                                                          \
        name##_3(k, a, b, c, ldc, accumulate);                                                                         \
    } else
#else
#define GEMM_KERNEL_3(name, rows, a_row, a_step)
#define GEMM_CALL_3(name)
#endif
#define GEMM_KERNEL_OF(name, rows, n_vec, a_row, a_step)                                                               \
    static void name##_##n_vec(int64_t k, const float *a, const float *b, float *c, int64_t ldc, bool accumulate)      \
    {                                                                                                                  \
        gemm_kernel(rows, n_vec, k, a, a_row, a_step, b, GEMM_COLS, c, ldc, accumulate);                               \
    }
#define GEMM_KERNELS(name, a_row, a_step) GEMM_KERNELS_OF(name, GEMM_ROWS, a_row, a_step)
#define GEMM_KERNELS_OF(name, rows, a_row, a_step)                                                                     \
    GEMM_KERNEL_OF(name, rows, 1, a_row, a_step)                                                                       \
    GEMM_KERNEL_OF(name, rows, 2, a_row, a_step)                                                                       \
    GEMM_KERNEL_3(name, rows, a_row, a_step)                                                                           \
    static void name(int64_t n, int64_t k, const float *a, const float *b, float *c, int64_t ldc, bool accumulate)     \
    {                                                                                                                  \
        if (n <= GEMM_LANES) {                                                                                         \
            name##_1(k, a, b, c, ldc, accumulate);                                                                     \
        } else                                                                                                         \
            GEMM_CALL_3(name)                                                                                          \
            {                                                                                                          \
                name##_2(k, a, b, c, ldc, accumulate);                                                                 \
            }                                                                                                          \
    }

GEMM_INLINE void gemm_transpose4(const float *in, int64_t ld, float *out, int64_t out_ld)
{
    gemm_vec4 r0 = *(const gemm_vec4_at *)in, r1 = *(const gemm_vec4_at *)(in + ld);
    gemm_vec4 r2 = *(const gemm_vec4_at *)(in + 2 * ld), r3 = *(const gemm_vec4_at *)(in + 3 * ld);
    gemm_vec4 a = __builtin_shufflevector(r0, r1, 0, 4, 1, 5), b = __builtin_shufflevector(r0, r1, 2, 6, 3, 7);
    gemm_vec4 c = __builtin_shufflevector(r2, r3, 0, 4, 1, 5), d = __builtin_shufflevector(r2, r3, 2, 6, 3, 7);

    *(gemm_vec4_at *)out = __builtin_shufflevector(a, c, 0, 1, 4, 5);
    *(gemm_vec4_at *)(out + out_ld) = __builtin_shufflevector(a, c, 2, 3, 6, 7);
    *(gemm_vec4_at *)(out + 2 * out_ld) = __builtin_shufflevector(b, d, 0, 1, 4, 5);
    *(gemm_vec4_at *)(out + 3 * out_ld) = __builtin_shufflevector(b, d, 2, 3, 6, 7);
}

#if defined(__AVX2__)
typedef float gemm_vec8 __attribute__((vector_size(8 * sizeof(float))));
typedef float gemm_vec8_at __attribute__((vector_size(8 * sizeof(float)), aligned(sizeof(float)), may_alias));

/* out[p][i] = in[i][p], 8 x 8: pairs of rows are interleaved, pairs of pairs, then the halves change places. */
GEMM_INLINE void gemm_transpose8(const float *in, int64_t ld, float *out, int64_t out_ld)
{
    gemm_vec8 r[8], t[8];

    GEMM_UNROLL
    for (int i = 0; i < 8; i++) {
        r[i] = *(const gemm_vec8_at *)(in + i * ld);
    }
    GEMM_UNROLL
    for (int i = 0; i < 8; i += 2) {
        t[i] = __builtin_shufflevector(r[i], r[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
        t[i + 1] = __builtin_shufflevector(r[i], r[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
    GEMM_UNROLL
    for (int i = 0; i < 8; i += 4) {
        GEMM_UNROLL
        for (int j = 0; j < 2; j++) {
            r[i + 2 * j] = __builtin_shufflevector(t[i + j], t[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            r[i + 2 * j + 1] = __builtin_shufflevector(t[i + j], t[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    }
    GEMM_UNROLL
    for (int j = 0; j < 4; j++) {
        *(gemm_vec8_at *)(out + j * out_ld) = __builtin_shufflevector(r[j], r[j + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        *(gemm_vec8_at *)(out + (j + 4) * out_ld) = __builtin_shufflevector(r[j], r[j + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
}
#endif

#if defined(__AVX512F__)
/* The same, 16 x 16: quarters change places in two steps. */
GEMM_INLINE void gemm_transpose16(const float *in, int64_t ld, float *out, int64_t out_ld)
{
    gemm_vec r[16], t[16];

    GEMM_UNROLL
    for (int i = 0; i < 16; i++) {
        r[i] = gemm_load(in + i * ld);
    }
    GEMM_UNROLL
    for (int i = 0; i < 16; i += 2) {
        t[i] = __builtin_shufflevector(r[i], r[i + 1], 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
        t[i + 1] = __builtin_shufflevector(r[i], r[i + 1], 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
    }
    GEMM_UNROLL
    for (int i = 0; i < 16; i += 4) {
        GEMM_UNROLL
        for (int j = 0; j < 2; j++) {
            r[i + 2 * j] = __builtin_shufflevector(t[i + j], t[i + j + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12,
                                                   13, 28, 29);
            r[i + 2 * j + 1] = __builtin_shufflevector(t[i + j], t[i + j + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26,
                                                       27, 14, 15, 30, 31);
        }
    }
    GEMM_UNROLL
    for (int j = 0; j < 4; j++) {
        gemm_vec a = __builtin_shufflevector(r[j], r[j + 4], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
        gemm_vec b =
            __builtin_shufflevector(r[j], r[j + 4], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
        gemm_vec c =
            __builtin_shufflevector(r[j + 8], r[j + 12], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
        gemm_vec d =
            __builtin_shufflevector(r[j + 8], r[j + 12], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);

        gemm_store(out + j * out_ld,
                   __builtin_shufflevector(a, c, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27));
        gemm_store(out + (j + 4) * out_ld,
                   __builtin_shufflevector(a, c, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31));
        gemm_store(out + (j + 8) * out_ld,
                   __builtin_shufflevector(b, d, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27));
        gemm_store(out + (j + 12) * out_ld,
                   __builtin_shufflevector(b, d, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31));
    }
}
#endif

/* gemm_pack_rows of rows i..i+step of a panel, by blocks that `turn` transposes. */
#define GEMM_PACK_ROWS(step, turn)                                                                                     \
    for (; p + (step) <= k; p += (step)) {                                                                             \
        turn(in + i * ld + p, ld, out + p * width + i, width);                                                         \
    }

/* out[p][i] = in[i][p] for n <= width rows and k columns; out's other columns get zeros. width is a multiple of 4. */
GEMM_INLINE void gemm_pack_rows(int width, int64_t n, int64_t k, const float *in, int64_t ld, float *out)
{
    int64_t step;

    for (int64_t i = 0; i < width; i += step) {
        int64_t p = 0;

        step = 4;
#if defined(__AVX512F__)
        if (i + 16 <= width && i + 16 <= n) {
            step = 16;
            GEMM_PACK_ROWS(16, gemm_transpose16)
        } else
#endif
#if defined(__AVX2__)
            if (i + 8 <= width && i + 8 <= n) {
            step = 8;
            GEMM_PACK_ROWS(8, gemm_transpose8)
        } else
#endif
            if (i + 4 <= n) {
            GEMM_PACK_ROWS(4, gemm_transpose4)
        }
        for (; p < k; p++) {
            for (int64_t q = i; q < i + step; q++) {
                out[p * width + q] = q < n ? in[q * ld + p] : 0.0f;
            }
        }
    }
}

/* out[p][j] = in[p][j] for k rows and n <= width columns; zeros beyond. */
GEMM_INLINE void gemm_pack_cols(int width, int64_t n, int64_t k, const float *in, int64_t ld, float *out)
{
    if (n == width) {
        for (int64_t p = 0; p < k; p++) {
            memcpy(out + p * width, in + p * ld, (size_t)width * sizeof *out);
        }
        return;
    }
    for (int64_t p = 0; p < k; p++) {
        for (int64_t j = 0; j < width; j++) {
            out[p * width + j] = j < n ? in[p * ld + j] : 0.0f;
        }
    }
}

/* Columns first.. of rows k0..k0+k of an F32 operand whose k does not run fastest, as panels [k][width], `n_panels` whole ones: row by row, since
 * rows may lie a page apart. */
GEMM_INLINE void gemm_pack_panels(int width, const agglo_cpu_operand *in, int64_t first, int64_t n_panels, int64_t k0,
                                  int64_t k, float *out)
{
    for (int64_t p = 0; p < k; p++) {
        const float *row = (const float *)in->data + (k0 + p) * in->ld + first;

        for (int64_t j = 0; j < n_panels; j++) {
            memcpy(out + (j * k + p) * width, row + j * width, (size_t)width * sizeof *out);
        }
    }
}

/* Outer rows first..first+n (n <= width) and k rows k0..k0+k of an operand as a panel [k][width], in F32. */
GEMM_INLINE void gemm_pack(int width, const agglo_cpu_operand *in, int64_t first, int64_t n, int64_t k0, int64_t k,
                           float *out)
{
    enum { CHUNK = 64 };
    float rows[GEMM_COLS > GEMM_ROWS ? GEMM_COLS : GEMM_ROWS][CHUNK];

    if (in->dtype == AGGLO_F32) {
        if (in->k_fastest) {
            gemm_pack_rows(width, n, k, (const float *)in->data + first * in->ld + k0, in->ld, out);
        } else {
            gemm_pack_cols(width, n, k, (const float *)in->data + k0 * in->ld + first, in->ld, out);
        }
        return;
    }
    for (int64_t p0 = 0; p0 < k; p0 += CHUNK) {
        int64_t steps = agglo_min(CHUNK, k - p0);
        float *to = out + p0 * width;

        if (in->k_fastest) {
            for (int64_t i = 0; i < n; i++) {
                agglo_cpu_from_bf16(steps, (const uint16_t *)in->data + (first + i) * in->ld + k0 + p0, rows[i]);
            }
            gemm_pack_rows(width, n, steps, rows[0], CHUNK, to);
            continue;
        }
        for (int64_t p = 0; p < steps; p++) {
            agglo_cpu_from_bf16(n, (const uint16_t *)in->data + (k0 + p0 + p) * in->ld + first, to + p * width);
            for (int64_t j = n; j < width; j++) {
                to[p * width + j] = 0.0f;
            }
        }
    }
}

#endif /* AGGLO_CPU_ISA */
#endif
