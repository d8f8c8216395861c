/* What the kernels share: loops over elements and rows, sums over a warp and a block in a fixed order, element types.
 *
 * Elements and offsets are counted in 64 bits. Grids may be smaller than the work: every kernel strides over the rest (but for channels,
 * which never outnumber a grid).
 */
#ifndef AGGLO_TENSOR_CUDA_KERNELS_CUH
#define AGGLO_TENSOR_CUDA_KERNELS_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "tensor/cuda/cuda_impl.h"
#include "tensor/math_inline.h"

#define BLOCK      256 /* threads of every block, unless rows are narrower */
#define WARP       32
#define MOST_GRID  0x7fffffff /* blocks along x */
#define MOST_PLANE 65535      /* blocks along y and z */

static inline const float *input(const agglo_tensor *t)
{
    return t == NULL ? NULL : (const float *)t->data;
}

static inline float *output(agglo_tensor *t)
{
    return t == NULL ? NULL : (float *)t->data;
}

/* A flat loop over n elements: enough blocks to fill the device a few times over. */
static inline dim3 flat_grid(const agglo_cuda *cuda, int64_t n)
{
    return dim3(agglo_cuda_grid(agglo_cuda_ceil_div(n, BLOCK), 16 * (int64_t)cuda->n_multiprocessors));
}

#define FLAT_LOOP(i, n)                                                                                                \
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < (n); i += (int64_t)gridDim.x * blockDim.x)

/* A loop over planes[p] of rows[i] of n columns: a thread keeps its column, the grid's y strides over rows and z over planes, so
 * that no element needs a division. */
static inline dim3 row_block(int64_t n)
{
    return dim3(n >= BLOCK ? BLOCK : (unsigned)((n + WARP - 1) / WARP * WARP));
}

static inline dim3 row_grid(int64_t planes, int64_t rows, int64_t n)
{
    return dim3(agglo_cuda_grid(agglo_cuda_ceil_div(n, row_block(n).x), MOST_GRID), agglo_cuda_grid(rows, MOST_PLANE),
                agglo_cuda_grid(planes, MOST_PLANE));
}

#define PLANE_LOOP(p, planes) for (int64_t p = blockIdx.z; p < (planes); p += gridDim.z)
#define ROW_LOOP(i, rows)     for (int64_t i = blockIdx.y; i < (rows); i += gridDim.y)

#ifdef __CUDACC__

static __device__ inline int64_t own_column(void)
{
    return (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
}

/* The same in every lane, by a butterfly: a fixed tree. All lanes call. */
static __device__ inline float warp_sum(float x)
{
    for (int step = WARP / 2; step > 0; step /= 2) {
        x += __shfl_xor_sync(0xffffffffu, x, step);
    }
    return x;
}

static __device__ inline double warp_sum_double(double x)
{
    for (int step = WARP / 2; step > 0; step /= 2) {
        x += __shfl_xor_sync(0xffffffffu, x, step);
    }
    return x;
}

/* Over all threads of a block of whole warps, at most 1024; the result is thread 0's. All threads call, and may call again at once. */
static __device__ inline double block_sum(double x)
{
    __shared__ double of_warp[WARP];
    int warp = (int)threadIdx.x / WARP, lane = (int)threadIdx.x % WARP, n_warps = (int)blockDim.x / WARP;

    x = warp_sum_double(x);
    __syncthreads(); /* the last call's sums have been read */
    if (lane == 0) {
        of_warp[warp] = x;
    }
    __syncthreads();
    return warp == 0 ? warp_sum_double(lane < n_warps ? of_warp[lane] : 0.0) : 0.0;
}

/* Element i of an array of dtype F32, F16 or BF16; the branch is the same for a whole launch. */
static __device__ inline float element(const void *x, agglo_dtype dtype, int64_t i)
{
    switch (dtype) {
    case AGGLO_F16:
        return __half2float(((const __half *)x)[i]);
    case AGGLO_BF16:
        return __bfloat162float(((const __nv_bfloat16 *)x)[i]);
    default:
        return ((const float *)x)[i];
    }
}

static __device__ inline void set_element(void *y, agglo_dtype dtype, int64_t i, float value)
{
    switch (dtype) {
    case AGGLO_F16:
        ((__half *)y)[i] = __float2half_rn(value);
        break;
    case AGGLO_BF16:
        ((__nv_bfloat16 *)y)[i] = __float2bfloat16_rn(value);
        break;
    default:
        ((float *)y)[i] = value;
        break;
    }
}

#endif
#endif
