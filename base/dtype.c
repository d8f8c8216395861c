/* Sizes, names and bulk conversion of element types. */
#include "base/dtype.h"

#include "base/bytes.h"
#include "base/err.h"

static const struct {
    const char *name;
    size_t size;
} table[] = {
    [AGGLO_F32] = {"f32", 4},   [AGGLO_F16] = {"f16", 2},
    [AGGLO_BF16] = {"bf16", 2}, [AGGLO_F64] = {"f64", 8},
    [AGGLO_U8] = {"u8", 1},     [AGGLO_I8] = {"i8", 1},
    [AGGLO_U16] = {"u16", 2},   [AGGLO_I16] = {"i16", 2},
    [AGGLO_U32] = {"u32", 4},   [AGGLO_I32] = {"i32", 4},
    [AGGLO_U64] = {"u64", 8},   [AGGLO_I64] = {"i64", 8},
    [AGGLO_BOOL] = {"bool", 1}, [AGGLO_DTYPE_OTHER] = {"other", 0},
};

size_t agglo_dtype_size(agglo_dtype dtype)
{
    return table[dtype].size;
}

const char *agglo_dtype_name(agglo_dtype dtype)
{
    return table[dtype].name;
}

void agglo_dtype_to_f32(float *dst, const void *src, agglo_dtype dtype, size_t n)
{
    const uint8_t *p = src;

    switch (dtype) {
    case AGGLO_F32:
        if (n > 0) {
            memcpy(dst, src, n * sizeof *dst);
        }
        return;
    case AGGLO_F16:
        for (size_t i = 0; i < n; i++) {
            dst[i] = agglo_f16_to_f32(agglo_le16(p + 2 * i));
        }
        return;
    case AGGLO_BF16:
        for (size_t i = 0; i < n; i++) {
            dst[i] = agglo_bf16_to_f32(agglo_le16(p + 2 * i));
        }
        return;
    case AGGLO_F64:
        for (size_t i = 0; i < n; i++) {
            double d;

            memcpy(&d, p + 8 * i, sizeof d);
            dst[i] = (float)d;
        }
        return;
    default:
        agglo_assert_failed("a floating dtype", __FILE__, __LINE__);
    }
}

void agglo_dtype_from_f32(void *dst, const float *src, agglo_dtype dtype, size_t n)
{
    uint8_t *p = dst;

    switch (dtype) {
    case AGGLO_F32:
        if (n > 0) {
            memcpy(dst, src, n * sizeof *src);
        }
        return;
    case AGGLO_F16:
        for (size_t i = 0; i < n; i++) {
            agglo_put_le16(p + 2 * i, agglo_f32_to_f16(src[i]));
        }
        return;
    case AGGLO_BF16:
        for (size_t i = 0; i < n; i++) {
            agglo_put_le16(p + 2 * i, agglo_f32_to_bf16(src[i]));
        }
        return;
    default:
        agglo_assert_failed("a floating dtype", __FILE__, __LINE__);
    }
}
