/* Beyond kernels.cuh: single elements of the storage types, activations, and launches over many rows that may be short. */
#ifndef AGGLO_TENSOR_CUDA_STORAGE_CUH
#define AGGLO_TENSOR_CUDA_STORAGE_CUH

#include "tensor/cuda/kernels.cuh"

/* Run the statements with `type` standing for the element type of dtype. */
#define WITH_STORAGE(dtype, type, ...)                                                                                 \
    do {                                                                                                               \
        if ((dtype) == AGGLO_BF16) {                                                                                   \
            typedef __nv_bfloat16 type;                                                                                \
            __VA_ARGS__;                                                                                               \
        } else {                                                                                                       \
            typedef float type;                                                                                        \
            __VA_ARGS__;                                                                                               \
        }                                                                                                              \
    } while (0)

/* A loop over rows[i] of n columns for rows that may be short: BLOCK threads take a few rows at once, and so few blocks that a thread keeps
 * what belongs to its column. Columns are counted in what a thread has at once. */
static inline dim3 tall_block(int64_t n)
{
    unsigned x = 1;

    while (x < BLOCK && x < n) {
        x *= 2;
    }
    return dim3(x, BLOCK / x);
}

static inline dim3 tall_grid(const agglo_cuda *cuda, int64_t rows, int64_t n)
{
    dim3 block = tall_block(n);
    int64_t across = agglo_cuda_ceil_div(n, block.x), most = 16 * (int64_t)cuda->n_multiprocessors / across + 1;

    return dim3((unsigned)across,
                agglo_cuda_grid(agglo_cuda_ceil_div(rows, block.y), most < MOST_PLANE ? most : MOST_PLANE));
}

#define TALL_LOOP(i, rows)                                                                                             \
    for (int64_t i = (int64_t)blockIdx.y * blockDim.y + threadIdx.y; i < (rows); i += (int64_t)gridDim.y * blockDim.y)

/* kernel<T, N>(...) over rows x cols, N as many as the pointers and cols allow; `pointers` in parentheses. */
#define TALL_LAUNCH(cuda, T, rows, cols, kernel, pointers, ...)                                                        \
    do {                                                                                                               \
        if (wide<T> pointers) {                                                                                        \
            kernel<T, LANES(T)>                                                                                        \
                <<<tall_grid(cuda, rows, (cols) / LANES(T)), tall_block((cols) / LANES(T)), 0, (cuda)->stream>>>(      \
                    __VA_ARGS__);                                                                                      \
        } else {                                                                                                       \
            kernel<T, 1><<<tall_grid(cuda, rows, cols), tall_block(cols), 0, (cuda)->stream>>>(__VA_ARGS__);           \
        }                                                                                                              \
    } while (0)

#ifdef __CUDACC__

static __device__ inline float get(const float *p)
{
    return *p;
}

static __device__ inline float get(const __nv_bfloat16 *p)
{
    return __bfloat162float(*p);
}

static __device__ inline void put(float *p, float x)
{
    *p = x;
}

static __device__ inline void put(__nv_bfloat16 *p, float x)
{
    *p = __float2bfloat16_rn(x);
}

template <typename T> static __device__ inline void put_or_add(T *p, float x, bool accumulate)
{
    put(p, accumulate ? get(p) + x : x);
}

/* v[0..N) = p[0..N), or `otherwise` where p is NULL */
template <int N> static __device__ inline void load_or(float v[N], const float *p, int64_t i, float otherwise)
{
    if (p != NULL) {
        load<N>(v, p + i);
        return;
    }
#pragma unroll
    for (int k = 0; k < N; k++) {
        v[k] = otherwise;
    }
}

/* v = act(v), the switch outside the loop: it is the same for a whole launch */
template <int N> static __device__ inline void act_values(agglo_act act, float v[N])
{
    switch (act) {
    case AGGLO_ACT_GELU:
#pragma unroll
        for (int k = 0; k < N; k++) {
            v[k] = agglo_gelu(v[k]);
        }
        break;
    case AGGLO_ACT_QUICK_GELU:
#pragma unroll
        for (int k = 0; k < N; k++) {
            v[k] = agglo_quick_gelu(v[k]);
        }
        break;
    case AGGLO_ACT_SILU:
#pragma unroll
        for (int k = 0; k < N; k++) {
            v[k] = agglo_silu(v[k]);
        }
        break;
    case AGGLO_ACT_RELU:
#pragma unroll
        for (int k = 0; k < N; k++) {
            v[k] = v[k] < 0.0f ? 0.0f : v[k];
        }
        break;
    default:
        break;
    }
}

/* d *= act'(v) */
template <int N> static __device__ inline void act_slopes(agglo_act act, const float v[N], float d[N])
{
    switch (act) {
    case AGGLO_ACT_GELU:
#pragma unroll
        for (int k = 0; k < N; k++) {
            d[k] *= agglo_gelu_slope(v[k]);
        }
        break;
    case AGGLO_ACT_QUICK_GELU:
#pragma unroll
        for (int k = 0; k < N; k++) {
            d[k] *= agglo_quick_gelu_slope(v[k]);
        }
        break;
    case AGGLO_ACT_SILU:
#pragma unroll
        for (int k = 0; k < N; k++) {
            d[k] *= agglo_silu_slope(v[k]);
        }
        break;
    case AGGLO_ACT_RELU:
#pragma unroll
        for (int k = 0; k < N; k++) {
            d[k] *= v[k] > 0.0f ? 1.0f : 0.0f;
        }
        break;
    default:
        break;
    }
}

static __device__ inline float act_value(agglo_act act, float v)
{
    act_values<1>(act, &v);
    return v;
}

static __device__ inline float act_slope(agglo_act act, float v)
{
    float d = 1.0f;

    act_slopes<1>(act, &v, &d);
    return d;
}

#endif
#endif
