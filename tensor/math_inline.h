/* Elementary functions of the operators, the same on host and device: branch-free float arithmetic that a compiler can turn into
 * vector code, where libm's erff and expf would be a call per element.
 *
 * Errors, which tests/unit/tensor measures: agglo_exp 1.2e-7 relative, agglo_normal_cdf 1.2e-7 absolute. A NaN stays a NaN.
 */
#ifndef AGGLO_TENSOR_MATH_INLINE_H
#define AGGLO_TENSOR_MATH_INLINE_H

#include "base/dtype.h"
#include "tensor/ops.h"
#include "tensor/rng.h"

/* Bit casts by union, which both C and nvcc take for what they are, and vectorisers see through. */
static AGGLO_HD inline float agglo_float_of(uint32_t bits)
{
    union {
        uint32_t u;
        float f;
    } cast;

    cast.u = bits;
    return cast.f;
}

static AGGLO_HD inline uint32_t agglo_bits_of(float x)
{
    union {
        float f;
        uint32_t u;
    } cast;

    cast.f = x;
    return cast.u;
}

static AGGLO_HD inline float agglo_abs(float x)
{
    return agglo_float_of(agglo_bits_of(x) & 0x7fffffffu);
}

/* e^x: x = n ln 2 + r, |r| <= ln 2 / 2, a polynomial in r, n put into the exponent. Clamped to [-87.3, 88.3], so that no result is
 * subnormal or infinite. */
static AGGLO_HD inline float agglo_exp(float x)
{
    const float round = 12582912.0f; /* 1.5 * 2^23: adding it leaves the nearest integer in the low bits */
    float t, n, r, p;

    x = x < -87.3f ? -87.3f : x;
    x = x > 88.3f ? 88.3f : x;
    t = x * 1.44269504f + round;
    n = t - round;
    r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    return p * agglo_float_of((agglo_bits_of(t) - agglo_bits_of(round) + 127u) << 23);
}

static AGGLO_HD inline float agglo_sigmoid(float x)
{
    return 1.0f / (1.0f + agglo_exp(-x));
}

/* Phi(x) = (1 + erf(x / sqrt 2)) / 2. Near zero erf is a polynomial; beyond it erfc(t) = exp(q(t)), whose exponential serves the
 * negative tail without cancellation. */
static AGGLO_HD inline float agglo_normal_cdf(float x)
{
    float a = x * 0.70710678f, t = agglo_abs(a), s = a * a;
    float near_zero, q, tail;

    near_zero = -5.96761703e-4f;
    near_zero = near_zero * s + 4.99119423e-3f;
    near_zero = near_zero * s - 2.67681349e-2f;
    near_zero = near_zero * s + 1.12819925e-1f;
    near_zero = near_zero * s - 3.76125336e-1f;
    near_zero = near_zero * s + 1.28379166e-1f;
    near_zero = 0.5f + 0.5f * (near_zero * a + a);

    t = t > 9.0f ? 9.0f : t;
    s = t * t;
    q = -1.72853470e-5f * t + 3.83197126e-4f;
    q = q * s + (-3.88396438e-3f * t + 2.42546219e-2f);
    q = q * t - 1.06777877e-1f;
    q = q * t - 6.34846687e-1f;
    q = q * t - 1.28717512e-1f;
    q = q * t - t;
    tail = 0.5f * agglo_exp(q);
    tail = x > 0.0f ? 1.0f - tail : tail;
    return agglo_abs(a) > 0.927734375f ? tail : near_zero;
}

static AGGLO_HD inline float agglo_normal_pdf(float x)
{
    return 0.39894228f * agglo_exp(-0.5f * x * x);
}

static AGGLO_HD inline float agglo_gelu(float x)
{
    return x * agglo_normal_cdf(x);
}

static AGGLO_HD inline float agglo_gelu_slope(float x)
{
    return agglo_normal_cdf(x) + x * agglo_normal_pdf(x);
}

static AGGLO_HD inline float agglo_quick_gelu(float x)
{
    return x * agglo_sigmoid(1.702f * x);
}

static AGGLO_HD inline float agglo_quick_gelu_slope(float x)
{
    float s = agglo_sigmoid(1.702f * x);
    return s + 1.702f * x * s * (1.0f - s);
}

static AGGLO_HD inline float agglo_silu(float x)
{
    return x * agglo_sigmoid(x);
}

static AGGLO_HD inline float agglo_silu_slope(float x)
{
    float s = agglo_sigmoid(x);
    return s + x * s * (1.0f - s);
}

/* smoothL1_t(d) and its derivative; threshold 0 gives |d|. */
static AGGLO_HD inline float agglo_smooth_l1(float d, float threshold, float half_inverse)
{
    float a = agglo_abs(d);
    return a < threshold ? d * d * half_inverse : a - 0.5f * threshold;
}

static AGGLO_HD inline float agglo_smooth_l1_slope(float d, float threshold, float inverse)
{
    float sign = d > 0.0f ? 1.0f : (d < 0.0f ? -1.0f : d);
    return agglo_abs(d) < threshold ? d * inverse : sign;
}

/* Two neighbours among n_in, and their weights. */
typedef struct agglo_bilinear {
    int64_t i0, i1;
    float w0, w1;
} agglo_bilinear;

/* The two inputs of output o of n_out along one axis of a box that starts at `start` and extends over `extent` (fractions of the axis
 * from the first to the last of n_in). A box that leaves the axis, or is no number, reads its edges. */
static AGGLO_HD inline agglo_bilinear agglo_crop_at(float start, float extent, int64_t o, int64_t n_in, int64_t n_out)
{
    float part = n_out > 1 ? (float)o / (float)(n_out - 1) : 0.0f, most = (float)(n_in - 1);
    float s = (start + extent * part) * most;
    agglo_bilinear at;

    s = s > 0.0f ? s : 0.0f;
    s = s < most ? s : most;
    at.i0 = (int64_t)s;
    at.i1 = at.i0 + 1 < n_in ? at.i0 + 1 : n_in - 1;
    at.w1 = s - (float)at.i0;
    at.w0 = 1.0f - at.w1;
    return at;
}

/* What of input i `at` reads. */
static AGGLO_HD inline float agglo_bilinear_weight(agglo_bilinear at, int64_t i)
{
    return (at.i0 == i ? at.w0 : 0.0f) + (at.i1 == i ? at.w1 : 0.0f);
}

#endif
