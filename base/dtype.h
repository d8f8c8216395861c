/* Element types, as tensors, safetensors files and stored targets name them, and the two 16-bit float conversions. */
#ifndef AGGLO_BASE_DTYPE_H
#define AGGLO_BASE_DTYPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef enum agglo_dtype {
    AGGLO_F32 = 0,
    AGGLO_F16,
    AGGLO_BF16,
    AGGLO_F64,
    AGGLO_U8,
    AGGLO_I8,
    AGGLO_U16,
    AGGLO_I16,
    AGGLO_U32,
    AGGLO_I32,
    AGGLO_U64,
    AGGLO_I64,
    AGGLO_BOOL,
    AGGLO_DTYPE_OTHER, /* legal in a safetensors file, never computed with (F8_*, F4, C64...) */
} agglo_dtype;

#ifdef __cplusplus
extern "C" {
#endif

/* Bytes of one element; 0 for AGGLO_DTYPE_OTHER. */
size_t agglo_dtype_size(agglo_dtype dtype);

/* "f32", "bf16", ...: static storage. */
const char *agglo_dtype_name(agglo_dtype dtype);

/* Convert n elements of a floating `dtype` (F32, F16, BF16, F64) at src (any alignment) to float. */
void agglo_dtype_to_f32(float *dst, const void *src, agglo_dtype dtype, size_t n);

/* Convert n floats to a floating `dtype` (F32, F16, BF16), round to nearest even. */
void agglo_dtype_from_f32(void *dst, const float *src, agglo_dtype dtype, size_t n);

#ifdef __cplusplus
}
#endif

static inline float agglo_bits_f32(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static inline uint32_t agglo_f32_bits(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

static inline float agglo_bf16_to_f32(uint16_t h)
{
    return agglo_bits_f32((uint32_t)h << 16);
}

/* Whether agglo_dtype_to_f32 takes it: F32, F16, BF16, F64. */
static inline bool agglo_dtype_is_float(agglo_dtype dtype)
{
    return dtype == AGGLO_F32 || dtype == AGGLO_F16 || dtype == AGGLO_BF16 || dtype == AGGLO_F64;
}

/* Round to nearest even; a NaN stays a quiet NaN. */
static inline uint16_t agglo_f32_to_bf16(float f)
{
    uint32_t u = agglo_f32_bits(f);

    if ((u & 0x7fffffffu) > 0x7f800000u) {
        return (uint16_t)(u >> 16 | 0x40u);
    }
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

static inline float agglo_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t magnitude = (uint32_t)(h & 0x7fffu) << 13;

    if (magnitude >= 0x0f800000u) { /* infinity, NaN */
        return agglo_bits_f32(sign | 0x7f800000u | (magnitude & 0x007fe000u));
    }
    /* scaling by 2^112 moves the exponent bias and makes subnormals right by arithmetic */
    return agglo_bits_f32(sign | agglo_f32_bits(agglo_bits_f32(magnitude) * agglo_bits_f32(0x77800000u)));
}

/* Round to nearest even; overflow gives infinity, a NaN stays a quiet NaN. */
static inline uint16_t agglo_f32_to_f16(float f)
{
    uint32_t u = agglo_f32_bits(f);
    uint32_t sign = u >> 16 & 0x8000u;

    u &= 0x7fffffffu;
    if (u > 0x7f800000u) {
        return (uint16_t)(sign | 0x7e00u);
    }
    if (u >= 0x477ff000u) { /* rounds to 2^16 or more */
        return (uint16_t)(sign | 0x7c00u);
    }
    if (u < 0x38800000u) { /* subnormal half: let a float addition do the rounding */
        return (uint16_t)(sign | (agglo_f32_bits(agglo_bits_f32(u) + 0.5f) - 0x3f000000u));
    }
    return (uint16_t)(sign | (u - 0x38000000u + 0xfffu + (u >> 13 & 1u)) >> 13);
}

#endif
