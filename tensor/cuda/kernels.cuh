/* What the kernels share: storage types and vectors of them, loops over elements and rows, sums over a warp and a block in a fixed
 * order.
 *
 * Elements and offsets are counted in 64 bits. Grids may be smaller than the work: every kernel strides over the rest (but for channels,
 * which never outnumber a grid).
 *
 * Storage: kernels are templates over T, float or __nv_bfloat16, and over N, the elements that a thread has at once: as many as 16 bytes hold
 * (4 or 8) where every pointer is 16-byte aligned and rows are whole vectors, otherwise 1. The launcher asks `wide` and starts <T, LANES(T)> or
 * <T, 1>: so shape and alignment decide, which in layernorm is the order of sums too. Values are float between load and store.
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

/* The same for a tensor of storage type T. */
template <typename T> static inline const T *input_of(const agglo_tensor *t)
{
    return t == NULL ? NULL : (const T *)t->data;
}

template <typename T> static inline T *output_of(agglo_tensor *t)
{
    return t == NULL ? NULL : (T *)t->data;
}

/* f<T>(...) for the storage type of tensor t. */
#define BY_STORAGE(t, f, ...) ((t)->dtype == AGGLO_BF16 ? f<__nv_bfloat16>(__VA_ARGS__) : f<float>(__VA_ARGS__))

#define LANES(T) ((int)(16 / sizeof(T))) /* of a 16-byte vector */

static inline bool aligned(void)
{
    return true;
}

/* All pointers are 16-byte aligned; NULL is. */
template <typename P, typename... More> static inline bool aligned(P *p, More... more)
{
    return (uintptr_t)p % 16 == 0 && aligned(more...);
}

/* Rows of n elements can be taken as vectors of T. */
template <typename T, typename... Pointers> static inline bool wide(int64_t n, Pointers... pointers)
{
    return n % LANES(T) == 0 && aligned(pointers...);
}

/* A flat loop over n elements: enough blocks to fill the device a few times over. */
static inline dim3 flat_grid(const agglo_cuda *cuda, int64_t n)
{
    return dim3(agglo_cuda_grid(agglo_cuda_ceil_div(n, BLOCK), 16 * (int64_t)cuda->n_multiprocessors));
}

#define FLAT_LOOP(i, n)                                                                                                \
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < (n); i += (int64_t)gridDim.x * blockDim.x)

/* A flat loop over vectors of N, i = 0, N, 2N, ..., and one over the elements that are left. */
#define VECTOR_LOOP(i, n, N)                                                                                           \
    for (int64_t i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * (N); i + (N) <= (n);                           \
         i += (int64_t)gridDim.x * blockDim.x * (N))
#define TAIL_LOOP(i, n, N)                                                                                             \
    for (int64_t i = (n) / (N) * (N) + (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < (n);                        \
         i += (int64_t)gridDim.x * blockDim.x)

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

/* The first of this thread's N neighbouring columns. */
template <int N> static __device__ inline int64_t own_columns(void)
{
    return own_column() * N;
}

/* v[0..N) = p[0..N): one load (two of them for 8 floats) where N > 1, then p is 16-byte aligned (8-byte for 4 BF16). */
template <int N> static __device__ inline void load(float v[N], const float *p)
{
    if constexpr (N == 1) {
        v[0] = p[0];
    } else {
        static_assert(N % 4 == 0, "vectors of four floats");
#pragma unroll
        for (int k = 0; k < N; k += 4) {
            float4 four = *(const float4 *)(p + k);

            v[k] = four.x;
            v[k + 1] = four.y;
            v[k + 2] = four.z;
            v[k + 3] = four.w;
        }
    }
}

/* A BF16 is the upper half of a float; of two in a word the first is the lower. */
static __device__ inline void unpack(float *v, uint32_t two)
{
    v[0] = __uint_as_float(two << 16);
    v[1] = __uint_as_float(two & 0xffff0000u);
}

/* Rounds to nearest even. */
static __device__ inline uint32_t pack(float low, float high)
{
    __nv_bfloat162 two = __floats2bfloat162_rn(low, high);

    return *(const uint32_t *)&two;
}

template <int N> static __device__ inline void load(float v[N], const __nv_bfloat16 *p)
{
    if constexpr (N == 1) {
        v[0] = __bfloat162float(p[0]);
    } else if constexpr (N == 4) {
        uint2 words = *(const uint2 *)p;

        unpack(v, words.x);
        unpack(v + 2, words.y);
    } else {
        static_assert(N == 8, "vectors of eight");
        uint4 words = *(const uint4 *)p;

        unpack(v, words.x);
        unpack(v + 2, words.y);
        unpack(v + 4, words.z);
        unpack(v + 6, words.w);
    }
}

template <int N> static __device__ inline void store(float *p, const float v[N])
{
    if constexpr (N == 1) {
        p[0] = v[0];
    } else {
        static_assert(N % 4 == 0, "vectors of four floats");
#pragma unroll
        for (int k = 0; k < N; k += 4) {
            *(float4 *)(p + k) = make_float4(v[k], v[k + 1], v[k + 2], v[k + 3]);
        }
    }
}

template <int N> static __device__ inline void store(__nv_bfloat16 *p, const float v[N])
{
    if constexpr (N == 1) {
        p[0] = __float2bfloat16_rn(v[0]);
    } else if constexpr (N == 4) {
        *(uint2 *)p = make_uint2(pack(v[0], v[1]), pack(v[2], v[3]));
    } else {
        static_assert(N == 8, "vectors of eight");
        *(uint4 *)p = make_uint4(pack(v[0], v[1]), pack(v[2], v[3]), pack(v[4], v[5]), pack(v[6], v[7]));
    }
}

/* p[0..N) (+)= v */
template <int N, typename T> static __device__ inline void put(T *p, float v[N], bool accumulate)
{
    if (accumulate) {
        float before[N];

        load<N>(before, p);
#pragma unroll
        for (int k = 0; k < N; k++) {
            v[k] += before[k];
        }
    }
    store<N>(p, v);
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
