/* Rows of either storage type, read and written as floats. */
#ifndef AGGLO_TENSOR_CPU_STORAGE_IMPL_H
#define AGGLO_TENSOR_CPU_STORAGE_IMPL_H

#include "tensor/cpu/cpu_impl.h"

#include <string.h>

#ifdef AGGLO_CPU_ISA /* vector loops: in files that are compiled per instruction set */

/* Element i of an array. */
static inline void *agglo_cpu_at(const void *base, agglo_dtype dtype, int64_t i)
{
    return (uint8_t *)(uintptr_t)base + (size_t)i * (dtype == AGGLO_BF16 ? 2 : 4);
}

/* Elements i .. i + n as floats at dst. */
static inline void agglo_cpu_load(float *restrict dst, const void *base, agglo_dtype dtype, int64_t i, int64_t n)
{
    if (dtype == AGGLO_BF16) {
        const uint16_t *src = (const uint16_t *)base + i;

#pragma omp simd
        for (int64_t j = 0; j < n; j++) {
            dst[j] = agglo_bf16_to_f32(src[j]);
        }
    } else {
        memcpy(dst, (const float *)base + i, (size_t)n * sizeof *dst);
    }
}

/* The same where they stand, if they are floats, else converted into tmp. */
static inline const float *agglo_cpu_row(float *tmp, const void *base, agglo_dtype dtype, int64_t i, int64_t n)
{
    if (dtype == AGGLO_BF16) {
        agglo_cpu_load(tmp, base, dtype, i, n);
        return tmp;
    }
    return (const float *)base + i;
}

/* dst elements i .. i + n (+)= src, rounded once; src may be dst. */
static inline void agglo_cpu_store(void *base, agglo_dtype dtype, int64_t i, int64_t n, bool accumulate,
                                   const float *src)
{
    if (dtype == AGGLO_BF16) {
        uint16_t *dst = (uint16_t *)base + i;

        for (int64_t j = 0; j < n; j++) {
            dst[j] = agglo_f32_to_bf16(accumulate ? agglo_bf16_to_f32(dst[j]) + src[j] : src[j]);
        }
    } else {
        float *dst = (float *)base + i;

        if (accumulate) {
#pragma omp simd
            for (int64_t j = 0; j < n; j++) {
                dst[j] += src[j];
            }
        } else if (dst != src) {
            memcpy(dst, src, (size_t)n * sizeof *dst);
        }
    }
}

#endif
#endif
