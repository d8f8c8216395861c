/* Views: random-resized crops as pure functions of (seed, uid, group, index, size, parameters).
 *
 * Every machine must draw the same boxes, so the path from random words to integers uses nothing but the operations that IEEE 754
 * rounds in one way: + - * / and sqrt on doubles. log and exp are ours (a libm may differ in the last bit between versions), rounding
 * is done on integers, and products are never fused into additions. The results are frozen by golden vectors.
 */
#include "ingest/view.h"

#include <float.h>
#include <math.h>

#include "tensor/rng.h"

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off") /* gcc knows no such STDC pragma */
#endif
#ifdef __FAST_MATH__
#error "view.c decides boxes: it must not be compiled with -ffast-math"
#endif
_Static_assert(FLT_EVAL_METHOD == 0, "boxes are decided in plain doubles: no extended precision");

#define N_TRIES   10
#define DRAW_FLIP 0xffffffffu

/* ln 2 in two parts: the first has its 32 lowest bits zero, so that k * LN2_HI is exact for every exponent k. */
#define LN2_HI  0x1.62e42feep-1
#define LN2_LO  0x1.a39ef35793c76p-33
#define INV_LN2 0x1.71547652b82fep+0

/* Natural logarithm of a finite normal x > 0, within 2 ulp: x = m 2^k with m in [sqrt(1/2), sqrt 2), and
 * ln m = 2 (s + s^3/3 + s^5/5 + ...), s = (m - 1) / (m + 1), |s| < 0.172: eleven terms reach 2^-58. */
static double view_log(double x)
{
    uint64_t bits;
    int exponent;
    double m, s, q, series;

    memcpy(&bits, &x, sizeof bits);
    exponent = (int)(bits >> 52) - 1023;
    bits = (bits & 0x000fffffffffffffu) | 0x3ff0000000000000u;
    memcpy(&m, &bits, sizeof m);
    if (m > 0x1.6a09e667f3bcdp+0) {
        m = m * 0.5;
        exponent++;
    }
    s = (m - 1.0) / (m + 1.0);
    q = s * s;
    series = 0.0;
    for (int n = 23; n >= 3; n -= 2) {
        series = (series + 1.0 / (double)n) * q;
    }
    return (double)exponent * LN2_HI + ((2.0 * s + 2.0 * s * series) + (double)exponent * LN2_LO);
}

/* e^x for |x| < 700, within 2 ulp: x = k ln 2 + r with |r| <= 0.35, Taylor to r^14. */
static double view_exp(double x)
{
    double scaled = x * INV_LN2;
    int k = (int)(scaled < 0.0 ? scaled - 0.5 : scaled + 0.5);
    double r = (x - (double)k * LN2_HI) - (double)k * LN2_LO;
    double sum = 1.0, power;
    uint64_t bits = (uint64_t)(k + 1023) << 52;

    for (int n = 14; n >= 1; n--) {
        sum = 1.0 + sum * r / (double)n;
    }
    memcpy(&power, &bits, sizeof power);
    return sum * power;
}

/* Nearest integer, halves to even, of 0 <= x < 2^53. The fraction is exact: no rounding takes part. */
static int64_t round_even(double x)
{
    int64_t whole = (int64_t)x;
    double fraction = x - (double)whole;

    if (fraction > 0.5 || (fraction == 0.5 && (whole & 1) != 0)) {
        whole++;
    }
    return whole;
}

static int32_t at_least_one(int64_t side)
{
    return side < 1 ? 1 : (int32_t)side;
}

/* The centred box when no try fits: the nearest allowed shape inside the picture, or all of it. */
static void draw_fallback(const agglo_view_config *config, int32_t width, int32_t height, agglo_view *out)
{
    double shape = (double)width / (double)height;

    out->w = width;
    out->h = height;
    if (shape < config->ratio[0]) {
        out->h = at_least_one(round_even((double)width / config->ratio[0]));
    } else if (shape > config->ratio[1]) {
        out->w = at_least_one(round_even((double)height * config->ratio[1]));
    }
    out->y = (height - out->h) / 2;
    out->x = (width - out->w) / 2;
}

agglo_view_config agglo_view_config_default(void)
{
    return (agglo_view_config){
        .group = "main",
        .seed = 0,
        .count = 4,
        .scale = {0.08, 1.0},
        .ratio = {3.0 / 4.0, 4.0 / 3.0},
        .flip = 0.0,
        .decode = AGGLO_VIEW_SCALED,
    };
}

/* What sets one (picture, group) apart from every other: the two high counter words. */
static uint64_t view_stream(const agglo_view_config *config, const uint8_t uid[16])
{
    uint8_t name[16 + AGGLO_GROUP_NAME_MAX];
    size_t n_group = strnlen(config->group, AGGLO_GROUP_NAME_MAX);

    memcpy(name, uid, 16);
    memcpy(name + 16, config->group, n_group);
    return agglo_xxh3_64(name, 16 + n_group);
}

void agglo_view_draw(const agglo_view_config *config, const uint8_t uid[16], int index, int width, int height,
                     agglo_view *out)
{
    const double area = (double)width * (double)height;
    uint64_t stream;
    double log_lo, log_span;
    bool found = false;

    AGGLO_ASSERT(width >= 1 && height >= 1 && index >= 0);
    AGGLO_ASSERT(config->scale[0] > 0.0 && config->scale[0] <= config->scale[1] && config->scale[1] <= 1.0);
    AGGLO_ASSERT(config->ratio[0] >= 1e-6 && config->ratio[0] <= config->ratio[1] && config->ratio[1] <= 1e6);

    stream = view_stream(config, uid);
    log_lo = view_log(config->ratio[0]);
    log_span = view_log(config->ratio[1]) - log_lo;
    for (uint32_t try = 0; try < N_TRIES && !found; try++) {
        agglo_philox draw =
            agglo_philox4x32(config->seed, try, (uint32_t)index, (uint32_t)stream, (uint32_t)(stream >> 32));
        double target = (config->scale[0] + (config->scale[1] - config->scale[0]) * agglo_uniform01(draw.v[0])) * area;
        double ratio = view_exp(log_lo + log_span * agglo_uniform01(draw.v[1]));
        int64_t w = round_even(sqrt(target * ratio));
        int64_t h = round_even(sqrt(target / ratio));

        /* a side of tiny pictures may round to 0: such a try does not fit either */
        if (w >= 1 && h >= 1 && w <= width && h <= height) {
            out->w = (int32_t)w;
            out->h = (int32_t)h;
            out->y = (int32_t)agglo_uniform_int(draw.v[2], (uint32_t)(height - out->h) + 1);
            out->x = (int32_t)agglo_uniform_int(draw.v[3], (uint32_t)(width - out->w) + 1);
            found = true;
        }
    }
    if (!found) {
        draw_fallback(config, width, height, out);
    }
    out->flip = agglo_uniform01(agglo_philox4x32(config->seed, DRAW_FLIP, (uint32_t)index, (uint32_t)stream,
                                                 (uint32_t)(stream >> 32))
                                    .v[0]) < config->flip;
}

int agglo_view_of_epoch(const agglo_view_config *config, const uint8_t uid[16], uint64_t epoch)
{
    uint64_t count = (uint64_t)config->count;

    AGGLO_ASSERT(config->count >= 1);
    return (int)((agglo_xxh3_64(uid, 16) % count + epoch % count) % count);
}

void agglo_view_fingerprint(const agglo_view_config *config, char out[33])
{
    static const char version[] = "agglo view 2"; /* of the algorithm: raise it when a box or its pixels could change */
    const double numbers[5] = {config->scale[0], config->scale[1], config->ratio[0], config->ratio[1], config->flip};
    uint8_t text[sizeof version + 9 + 8 * AGGLO_COUNT(numbers) + AGGLO_GROUP_NAME_MAX];
    size_t n = sizeof version, n_group = strnlen(config->group, AGGLO_GROUP_NAME_MAX);

    memcpy(text, version, n);
    agglo_put_le64(text + n, config->seed);
    n += 8;
    for (size_t i = 0; i < AGGLO_COUNT(numbers); i++, n += 8) {
        uint64_t bits;

        memcpy(&bits, &numbers[i], sizeof bits);
        agglo_put_le64(text + n, bits);
    }
    text[n++] = (uint8_t)config->decode;
    memcpy(text + n, config->group, n_group);
    agglo_hex(agglo_xxh3_128(text, n + n_group).bytes, 16, out);
}
