/* Tiles of attention in F32: products from shared memory by blocks of 16 x 16 threads, for operands of F32, F16 or BF16 in memory.
 *
 * A tile of scores is TILE x TILE; thread (tx, ty) has the rows ty M .. ty M + M - 1 and the columns tx, tx + 16, ..., M = TILE / 16, so a
 * row of scores lies in half a warp, which reduces it by shuffles. Rows in shared memory are padded by 4 floats, against bank conflicts and
 * so that float4 stays aligned; the head dimension is padded with zeros to PAD = 32, 64, 96 or 128.
 */
#ifndef AGGLO_TENSOR_CUDA_ATTENTION_TILES_CUH
#define AGGLO_TENSOR_CUDA_ATTENTION_TILES_CUH

#include "tensor/cuda/kernels.cuh"

#define SIDE    16 /* the block is SIDE x SIDE threads: two rows of threads to a warp */
#define THREADS 256

/* to[TILE][PAD + 4] = rows `first`.. of from[n][d], which starts at element `offset`; zeros beyond n and d. */
template <int TILE, int PAD>
static __device__ inline void load_tile(float *to, const void *from, agglo_dtype dtype, int64_t offset, int64_t stride,
                                        int64_t first, int64_t n, int d)
{
#pragma unroll 4
    for (int e = (int)threadIdx.x; e < TILE * PAD; e += THREADS) {
        int row = e / PAD, column = e % PAD;

        to[row * (PAD + 4) + column] =
            first + row < n && column < d ? element(from, dtype, offset + (first + row) * stride + column) : 0.0f;
    }
}

/* s[i][j] = <row ty M + i of a, row tx + 16 j of b> */
template <int TILE, int PAD>
static __device__ inline void tile_products(float s[TILE / SIDE][TILE / SIDE], const float *a, const float *b)
{
    const int M = TILE / SIDE, tx = (int)threadIdx.x % SIDE, ty = (int)threadIdx.x / SIDE;

#pragma unroll
    for (int i = 0; i < M; i++) {
#pragma unroll
        for (int j = 0; j < M; j++) {
            s[i][j] = 0.0f;
        }
    }
#pragma unroll 1
    for (int x = 0; x < PAD; x += 4) {
        float4 u[M], v[M];

#pragma unroll
        for (int i = 0; i < M; i++) {
            u[i] = *(const float4 *)&a[(ty * M + i) * (PAD + 4) + x];
            v[i] = *(const float4 *)&b[(tx + SIDE * i) * (PAD + 4) + x];
        }
#pragma unroll
        for (int i = 0; i < M; i++) {
#pragma unroll
            for (int j = 0; j < M; j++) {
                s[i][j] += u[i].x * v[j].x;
                s[i][j] += u[i].y * v[j].y;
                s[i][j] += u[i].z * v[j].z;
                s[i][j] += u[i].w * v[j].w;
            }
        }
    }
}

/* acc[i][2 c + e] += sum over k of w[ty M + i][k] b[k][2 tx + 32 c + e]; rows of w are TILE + 4 apart. */
template <int TILE, int PAD>
static __device__ inline void tile_accumulate(float acc[TILE / SIDE][PAD / SIDE], const float *w, const float *b)
{
    const int M = TILE / SIDE, tx = (int)threadIdx.x % SIDE, ty = (int)threadIdx.x / SIDE;

#pragma unroll 1
    for (int k = 0; k < TILE; k += 4) {
        float u[M][4];

#pragma unroll
        for (int i = 0; i < M; i++) {
            float4 four = *(const float4 *)&w[(ty * M + i) * (TILE + 4) + k];

            u[i][0] = four.x;
            u[i][1] = four.y;
            u[i][2] = four.z;
            u[i][3] = four.w;
        }
#pragma unroll
        for (int l = 0; l < 4; l++) {
#pragma unroll
            for (int c = 0; c < PAD / 32; c++) {
                float2 v = *(const float2 *)&b[(k + l) * (PAD + 4) + 2 * tx + 32 * c];

#pragma unroll
                for (int i = 0; i < M; i++) {
                    acc[i][2 * c] += u[i][l] * v.x;
                    acc[i][2 * c + 1] += u[i][l] * v.y;
                }
            }
        }
    }
}

/* w[ty M + i][tx + 16 j] = s[i][j]. Rows are read back by the half warp that writes them. */
template <int TILE> static __device__ inline void put_tile(float *w, const float s[TILE / SIDE][TILE / SIDE])
{
    const int M = TILE / SIDE, tx = (int)threadIdx.x % SIDE, ty = (int)threadIdx.x / SIDE;

#pragma unroll
    for (int i = 0; i < M; i++) {
#pragma unroll
        for (int j = 0; j < M; j++) {
            w[(ty * M + i) * (TILE + 4) + tx + SIDE * j] = s[i][j];
        }
    }
}

/* The column of acc[.][c]. */
static __device__ inline int acc_column(int c)
{
    return 2 * ((int)threadIdx.x % SIDE) + 32 * (c / 2) + c % 2;
}

/* to[row][..] = factor acc for the tile's rows below n and columns below d; `offset` as in load_tile. */
template <int TILE, int PAD>
static __device__ inline void store_rows(void *to, agglo_dtype dtype, int64_t offset, int64_t stride, int64_t first,
                                         int64_t n, int d, const float acc[TILE / SIDE][PAD / SIDE],
                                         const float factor[TILE / SIDE])
{
    const int M = TILE / SIDE, ty = (int)threadIdx.x / SIDE;

#pragma unroll
    for (int i = 0; i < M; i++) {
        int64_t row = first + ty * M + i;

#pragma unroll
        for (int c = 0; c < PAD / SIDE; c++) {
            if (row < n && acc_column(c) < d) {
                set_element(to, dtype, offset + row * stride + acc_column(c), acc[i][c] * factor[i]);
            }
        }
    }
}

template <int ROWS, int COLUMNS> static __device__ inline void clear(float acc[ROWS][COLUMNS])
{
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            acc[i][c] = 0.0f;
        }
    }
}

/* Over the 16 threads of a row. */
static __device__ inline float row_max(float x)
{
    for (int step = SIDE / 2; step > 0; step /= 2) {
        float other = __shfl_xor_sync(0xffffffffu, x, step);

        x = other > x ? other : x;
    }
    return x;
}

static __device__ inline float row_sum(float x)
{
    for (int step = SIDE / 2; step > 0; step /= 2) {
        x += __shfl_xor_sync(0xffffffffu, x, step);
    }
    return x;
}

/* ---- the softmax of rows whose scores come tile by tile: most and sum of each row so far, sum of this thread's columns alone ---- */

template <int TILE> static __device__ inline void softmax_begin(float most[TILE / SIDE], float sum[TILE / SIDE])
{
#pragma unroll
    for (int i = 0; i < TILE / SIDE; i++) {
        most[i] = -INFINITY;
        sum[i] = 0.0f;
    }
}

/* s, scores of the keys from `key` (-INFINITY beyond n), become exp(s - most); what was summed before shrinks. */
template <int TILE, int PAD>
static __device__ inline void softmax_tile(float s[TILE / SIDE][TILE / SIDE], int64_t key, int64_t n,
                                           float most[TILE / SIDE], float sum[TILE / SIDE],
                                           float acc[TILE / SIDE][PAD / SIDE])
{
    const int M = TILE / SIDE, tx = (int)threadIdx.x % SIDE;

#pragma unroll
    for (int i = 0; i < M; i++) {
        float before = most[i], shrink;

#pragma unroll
        for (int j = 0; j < M; j++) {
            most[i] = s[i][j] > most[i] ? s[i][j] : most[i];
        }
        most[i] = row_max(most[i]);
        shrink = agglo_exp(before - most[i]);
        sum[i] *= shrink;
#pragma unroll
        for (int c = 0; c < PAD / SIDE; c++) {
            acc[i][c] *= shrink;
        }
#pragma unroll
        for (int j = 0; j < M; j++) {
            /* agglo_exp never gives 0: keys that do not exist are left out by hand */
            s[i][j] = key + tx + SIDE * j < n ? agglo_exp(s[i][j] - most[i]) : 0.0f;
            sum[i] += s[i][j];
        }
    }
}

/* sum = 1 / sum over the row; lse_out[rows + row] = log sum exp where lse_out is given, for the tile's rows below n. */
template <int TILE>
static __device__ inline void softmax_finish(const float most[TILE / SIDE], float sum[TILE / SIDE], float *lse_out,
                                             int64_t rows, int64_t first, int64_t n)
{
    const int M = TILE / SIDE, tx = (int)threadIdx.x % SIDE, ty = (int)threadIdx.x / SIDE;

#pragma unroll
    for (int i = 0; i < M; i++) {
        int64_t row = first + ty * M + i;

        sum[i] = row_sum(sum[i]);
        if (lse_out != NULL && tx == 0 && row < n) {
            lse_out[rows + row] = most[i] + logf(sum[i]);
        }
        sum[i] = 1.0f / sum[i];
    }
}

#endif
