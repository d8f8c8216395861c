/* The plain codecs: values as fp32, fp16 or bf16, rounded to nearest even.
 *
 * Stated bounds, for finite x that fit: fp32 exact; fp16 |x' - x| <= max(2^-11 |x|, 2^-25); bf16 |x' - x| <= max(2^-8 |x|, 2^-134).
 */
#include "cache/record_impl.h"

static const struct {
    agglo_codec_id id;
    const char *name;
    agglo_dtype summary, spatial;
} codecs[] = {
    {AGGLO_CODEC_FP32, "fp32", AGGLO_F32, AGGLO_F32},
    {AGGLO_CODEC_FP16, "fp16", AGGLO_F16, AGGLO_F16},
    {AGGLO_CODEC_BF16, "bf16", AGGLO_F16, AGGLO_BF16},
};

const char *agglo_codec_name(agglo_codec_id id)
{
    for (size_t i = 0; i < AGGLO_COUNT(codecs); i++) {
        if (codecs[i].id == id) {
            return codecs[i].name;
        }
    }
    return NULL;
}

agglo_codec_id agglo_codec_of(const char *name)
{
    for (size_t i = 0; i < AGGLO_COUNT(codecs); i++) {
        if (strcmp(codecs[i].name, name) == 0) {
            return codecs[i].id;
        }
    }
    return (agglo_codec_id)0;
}

bool agglo_codec_plain_dtypes(agglo_codec_id codec, agglo_dtype *summary, agglo_dtype *spatial)
{
    for (size_t i = 0; i < AGGLO_COUNT(codecs); i++) {
        if (codecs[i].id == codec) {
            *summary = codecs[i].summary;
            *spatial = codecs[i].spatial;
            return true;
        }
    }
    return false;
}

agglo_status agglo_codec_plain_encode(agglo_dtype dtype, const float *values, size_t n, size_t n_channels,
                                      const char *name, uint8_t *out, agglo_err *err)
{
    /* the least magnitude, as bits, that becomes infinite: 65504 is the largest half, (2 - 2^-8) 2^127 rounds to infinity */
    const uint32_t limit = dtype == AGGLO_F16 ? 0x477fe001u : dtype == AGGLO_BF16 ? 0x7f7f8000u : 0x7f800000u;
    uint32_t largest = 0;

    for (size_t i = 0; i < n; i++) { /* magnitudes order as integers, NaN above all */
        uint32_t bits = agglo_f32_bits(values[i]) & 0x7fffffffu;

        largest = bits > largest ? bits : largest;
    }
    if (largest >= limit) {
        size_t i = 0;

        while ((agglo_f32_bits(values[i]) & 0x7fffffffu) < limit) {
            i++;
        }
        agglo_fail(err, AGGLO_E_DATA, "%g cannot be stored as %s", (double)values[i], agglo_dtype_name(dtype));
        return agglo_at(err, "%s token %zu, channel %zu", name, i / n_channels, i % n_channels);
    }
    agglo_dtype_from_f32(out, values, dtype, n);
    return AGGLO_OK;
}
