/* Elements of the two storage types as floats, activations, and launching a kernel for the type of a tensor. */
#ifndef AGGLO_TENSOR_CUDA_STORAGE_CUH
#define AGGLO_TENSOR_CUDA_STORAGE_CUH

#include "tensor/cuda/kernels.cuh"

/* Run the statements with `type` standing for the element type. */
#define BY_STORAGE(dtype, type, ...)                                                                                   \
    do {                                                                                                               \
        if ((dtype) == AGGLO_BF16) {                                                                                   \
            typedef __nv_bfloat16 type;                                                                                \
            __VA_ARGS__;                                                                                               \
        } else {                                                                                                       \
            typedef float type;                                                                                        \
            __VA_ARGS__;                                                                                               \
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

static __device__ inline float act_value(agglo_act act, float v)
{
    switch (act) {
    case AGGLO_ACT_GELU:
        return agglo_gelu(v);
    case AGGLO_ACT_QUICK_GELU:
        return agglo_quick_gelu(v);
    case AGGLO_ACT_SILU:
        return agglo_silu(v);
    case AGGLO_ACT_RELU:
        return v < 0.0f ? 0.0f : v;
    default:
        return v;
    }
}

static __device__ inline float act_slope(agglo_act act, float v)
{
    switch (act) {
    case AGGLO_ACT_GELU:
        return agglo_gelu_slope(v);
    case AGGLO_ACT_QUICK_GELU:
        return agglo_quick_gelu_slope(v);
    case AGGLO_ACT_SILU:
        return agglo_silu_slope(v);
    case AGGLO_ACT_RELU:
        return v > 0.0f ? 1.0f : 0.0f;
    default:
        return 1.0f;
    }
}

#endif
#endif
