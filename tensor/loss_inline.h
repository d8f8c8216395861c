/* Arithmetic of the losses and of stored targets, the same on host and device (formulas: tensor/ops_loss.h, tensor/quant.h). */
#ifndef AGGLO_TENSOR_LOSS_INLINE_H
#define AGGLO_TENSOR_LOSS_INLINE_H

#include "tensor/math_inline.h"

#define AGGLO_LEAST_NORM 1e-8f

/* The value of F16 bits: scaling by 2^112 moves the exponent bias and makes subnormals right by arithmetic. */
static AGGLO_HD inline float agglo_f16_value(uint32_t h)
{
    uint32_t magnitude = (h & 0x7fffu) << 13;
    float scaled = agglo_float_of(magnitude) * 5.192296858534828e33f; /* 2^112 */
    uint32_t bits = magnitude >= 0x0f800000u ? 0x7f800000u | (magnitude & 0x007fe000u) : agglo_bits_of(scaled);

    return agglo_float_of((h & 0x8000u) << 16 | bits);
}

/* Four bits, two's complement: the low ones of a byte for even k, the high ones for odd. */
static AGGLO_HD inline int agglo_nibble(uint8_t byte, int64_t k)
{
    int v = (k & 1) != 0 ? byte >> 4 : byte & 15;

    return (v ^ 8) - 8;
}

/* What one token's terms weigh in the gradient, its own weight included. */
typedef struct agglo_loss_factors {
    float cos, l1, sq; /* of cos, of smoothL1' of a channel, of p - t of a channel */
} agglo_loss_factors;

/* Of a token whose weight is 1: per_token = grad_scale lambda / sum of weights. */
static AGGLO_HD inline agglo_loss_factors agglo_loss_factors_of(double per_token, float alpha, float beta,
                                                                float squared, int64_t c)
{
    agglo_loss_factors f;

    f.cos = (float)(per_token * (double)alpha);
    f.l1 = (float)(per_token * (double)beta / (double)c);
    f.sq = (float)(per_token * 2.0 * (double)squared / (double)c);
    return f;
}

/* d_pred = from_target t + from_pred p + l1 smoothL1'(p - t) + sq (p - t) */
typedef struct agglo_loss_row {
    float cosine, from_target, from_pred;
} agglo_loss_row;

/* From p.t, p.p, |p|, |t|: d cos / d p = t / (|p| |t|) - cos p / |p|^2; below the least norm |p| is a constant. */
static AGGLO_HD inline agglo_loss_row agglo_loss_row_of(float dot, float pp, float norm_p, float norm_t,
                                                        float cos_factor)
{
    agglo_loss_row row;
    float inverse = norm_p < AGGLO_LEAST_NORM ? 0.0f : 1.0f / pp;

    norm_t = norm_t < AGGLO_LEAST_NORM ? AGGLO_LEAST_NORM : norm_t;
    norm_p = norm_p < AGGLO_LEAST_NORM ? AGGLO_LEAST_NORM : norm_p;
    row.cosine = dot / norm_p / norm_t;
    row.from_target = -cos_factor / norm_p / norm_t;
    row.from_pred = cos_factor * row.cosine * inverse;
    return row;
}

#endif
