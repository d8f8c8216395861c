/* Tensor-core products of BF16 with F32 sums: PTX's ldmatrix and mma.m16n8k16 (sm_80 and later), and the products of attention made of
 * them.
 *
 * In a warp, lane = 4 g + t. A product C[16, 8] += A[16, 16] B[16, 8] keeps (PTX ISA, "matrix fragments for mma.m16n8k16"):
 *     A    a[0] (g, 2t..), a[1] (g + 8, 2t..), a[2] (g, 2t + 8..), a[3] (g + 8, 2t + 8..), two neighbouring columns to a register
 *     B    b[0] (2t.., g), b[1] (2t + 8.., g), two neighbouring rows to a register
 *     C    c[0], c[1] (g, 2t..), c[2], c[3] (g + 8, 2t..)
 * so that two neighbouring C of a product are the A of the next. ldmatrix reads four 8 x 8 matrices, whose rows lanes 0-7, 8-15, 16-23 and
 * 24-31 point to; lane has elements (g, 2t), (g, 2t + 1) of each, transposed (2t, g), (2t + 1, g).
 * Rows of tiles in shared memory are PAD + 8 elements apart, an odd multiple of 16 bytes: no bank conflicts.
 */
#ifndef AGGLO_TENSOR_CUDA_MMA_CUH
#define AGGLO_TENSOR_CUDA_MMA_CUH

#include "tensor/cuda/mma_ptx.cuh"

/* s[j] += <16 rows of a, rows 8 j .. 8 j + 7 of b>, j < N: both tiles in shared memory, PAD channels. */
template <int PAD, int N>
static __device__ inline void mma_add_products(float s[N][4], const __nv_bfloat16 *a, const __nv_bfloat16 *b)
{
    const int lane = (int)threadIdx.x % WARP, stride = PAD + 8;

#pragma unroll 4
    for (int x = 0; x < PAD; x += 16) {
        uint32_t fa[4];

        load_matrices(fa, a + lane % 16 * stride + x + lane / 16 * 8);
#pragma unroll
        for (int j = 0; j < N; j += 2) {
            uint32_t fb[4]; /* b[0] and b[1] of rows 8 j.., then of 8 j + 8.. */

            load_matrices(fb, b + (8 * j + lane % 8 + lane / 16 * 8) * stride + x + lane / 8 % 2 * 8);
            mma_bf16(s[j], fa, fb[0], fb[1]);
            mma_bf16(s[j + 1], fa, fb[2], fb[3]);
        }
    }
}

/* The same, written. */
template <int PAD, int N>
static __device__ inline void mma_products(float s[N][4], const __nv_bfloat16 *a, const __nv_bfloat16 *b)
{
#pragma unroll
    for (int j = 0; j < N; j++) {
        s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0.0f;
    }
    mma_add_products<PAD, N>(s, a, b);
}

/* acc[PAD / 8] += p b: p[16, 8 N] as mma_products leaves it, rounded to BF16; b[8 N, PAD] in shared memory. */
template <int PAD, int N>
static __device__ inline void mma_accumulate(float acc[PAD / 8][4], const float p[N][4], const __nv_bfloat16 *b)
{
    const int lane = (int)threadIdx.x % WARP, stride = PAD + 8;

#pragma unroll
    for (int j = 0; j < N; j += 2) {
        const uint32_t fa[4] = {pack_bf16(p[j][0], p[j][1]), pack_bf16(p[j][2], p[j][3]),
                                pack_bf16(p[j + 1][0], p[j + 1][1]), pack_bf16(p[j + 1][2], p[j + 1][3])};

#pragma unroll
        for (int x = 0; x < PAD / 8; x += 2) {
            uint32_t fb[4]; /* b[0] and b[1] of columns 8 x.., then of 8 x + 8.. */

            load_matrices_transposed(fb, b + (8 * j + lane % 16) * stride + 8 * x + lane / 16 * 8);
            mma_bf16(acc[x], fa, fb[0], fb[1]);
            mma_bf16(acc[x + 1], fa, fb[2], fb[3]);
        }
    }
}

/* to[ROWS][PAD + 8] = rows `first`.. of from[n][d], zeros beyond n and d; `wide` where rows are whole 16-byte words. */
template <int ROWS, int PAD, int N_THREADS>
static __device__ inline void mma_load(__nv_bfloat16 *to, const __nv_bfloat16 *from, int64_t stride, int64_t first,
                                       int64_t n, int d, bool wide)
{
    if (wide) {
#pragma unroll 4
        for (int e = (int)threadIdx.x; e < ROWS * PAD / 8; e += N_THREADS) {
            int row = e / (PAD / 8), column = e % (PAD / 8) * 8;
            uint4 word = {0, 0, 0, 0};

            if (first + row < n && column < d) {
                word = *(const uint4 *)&from[(first + row) * stride + column];
            }
            *(uint4 *)&to[row * (PAD + 8) + column] = word;
        }
        return;
    }
    for (int e = (int)threadIdx.x; e < ROWS * PAD; e += N_THREADS) {
        int row = e / PAD, column = e % PAD;

        to[row * (PAD + 8) + column] =
            first + row < n && column < d ? from[(first + row) * stride + column] : __float2bfloat16_rn(0.0f);
    }
}

/* The same of an F32 table, rounded; and with `rest` what the rounding left, so that both together have 16 bits. */
template <int ROWS, int PAD, int N_THREADS>
static __device__ inline void mma_load_f32(__nv_bfloat16 *to, __nv_bfloat16 *rest, const float *from, int first, int n,
                                           int d)
{
    for (int e = (int)threadIdx.x; e < ROWS * PAD; e += N_THREADS) {
        int row = e / PAD, column = e % PAD;
        float x = first + row < n && column < d ? from[(int64_t)(first + row) * d + column] : 0.0f;
        __nv_bfloat16 high = __float2bfloat16_rn(x);

        to[row * (PAD + 8) + column] = high;
        if (rest != NULL) {
            rest[row * (PAD + 8) + column] = __float2bfloat16_rn(x - __bfloat162float(high));
        }
    }
}

/* Rows row0 + g and row0 + g + 8 of a warp's acc, times factor, to to[n][d]. */
template <int PAD>
static __device__ inline void mma_store(__nv_bfloat16 *to, int64_t stride, int64_t row0, int64_t n, int d,
                                        const float acc[PAD / 8][4], float factor0, float factor1)
{
    const int lane = (int)threadIdx.x % WARP;

#pragma unroll
    for (int x = 0; x < PAD / 8; x++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int64_t row = row0 + lane / 4 + e / 2 * 8;
            int column = 8 * x + lane % 4 * 2 + e % 2;

            if (row < n && column < d) {
                to[row * stride + column] = __float2bfloat16_rn(acc[x][e] * (e / 2 == 0 ? factor0 : factor1));
            }
        }
    }
}

#endif
