/* The resampler: weights, the two passes in portable C, and the same passes with AVX2 and FMA.
 *
 * Pillow's sums are S = sum of W_j v_j with integer weights W of about 22 bits, and a result is (S + 2^21) >> 22. AVX2 has no fast
 * multiplier for such integers, but a fast one for floats, which hold W and v exactly and round only the sums. So the sum is taken in
 * floats, scaled to FRACTION binary places, with a bound on its error; where a result is nearer to a rounding edge than that bound (about one
 * in five thousand) it is computed again in integers. The outcome is the same integers that the portable loops find.
 *
 * The bound: weights are W 2^(FRACTION - 22), exact in a float; an axis qualifies when 255 sum |W| < 511 2^22 for every output, so that
 * partial sums stay below 2^(9 + FRACTION), where half a unit in the last place is 2^(FRACTION - 16); n fused steps are off by at most n
 * of these, and the conversion to an integer by a half. With FRACTION = 16 that is less than n + 1 =: E units. The sum starts at half
 * a level plus E, so the integer q that comes out lies in (exact, exact + 2 E), and when its low FRACTION bits are 2 E or more,
 * q >> FRACTION is the exact result.
 *
 * The horizontal pass takes eight rows at a time, one per lane, turned so that a pixel's channel of all eight is one vector; the vertical
 * pass follows it block by block through a ring of finished rows, so that nothing leaves the second-level cache.
 */
#include "ingest/resize.h"

#include <string.h>

#if defined(__x86_64__)
#define HAVE_AVX2 1
#include <immintrin.h>
#else
#define HAVE_AVX2 0
#endif

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

#define PRECISION 22
#define FRACTION  16
#define MAX_FAST  1000 /* taps up to which the vector loops are used; with more, most results would be computed twice */
#define N_CACHED  16
#define N_LANES   8
#define ROW_PAD   64 /* bytes readable behind a scratch row */

/* The weights of `count` consecutive outputs of one axis. Each output has `taps` slots (a multiple of 4, zero behind its last). */
typedef struct axis_weights {
    double at, span; /* the box, in pixels of `in` */
    int in, out, first, count;
    agglo_filter filter;
    uint64_t used; /* tick of the last use; 0: empty */
    int taps;
    size_t n_outputs_cap, n_slots_cap;
    int32_t *start; /* [count] first input of each output */
    int32_t *n;     /* [count] inputs of each output */
    int32_t *full;  /* [count][taps] */
    float *scaled;  /* the same, times 2^(FRACTION - PRECISION) */
    bool fast;      /* the bound of the vector loops holds */
    int slack;      /* E */
} axis_weights;

struct agglo_resizer {
    axis_weights cache[N_CACHED];
    uint64_t tick;
    size_t n_outputs_max, n_slots_max; /* largest asked for so far: every entry grows to it at once, so growth ends */
    double *kernel;                    /* [taps] of the output in work */
    size_t kernel_cap;
    uint8_t *rows; /* result of the horizontal pass; a block of it under AVX2 */
    size_t rows_cap;
    float *lanes; /* eight source rows, turned */
    size_t lanes_cap;
    float *ring; /* finished rows */
    size_t ring_cap;
    const float **picks; /* [taps] rows of the output in work */
    size_t picks_cap;
    bool avx2;
};

/* ---- weights ---- */

static double kernel_at(agglo_filter filter, double x)
{
    if (x < 0.0) {
        x = -x;
    }
    if (filter == AGGLO_BILINEAR) {
        return x < 1.0 ? 1.0 - x : 0.0;
    }
    if (x < 1.0) { /* Keys, a = -1/2, in Pillow's order of operations */
        return ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1.0;
    }
    return x < 2.0 ? (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5 : 0.0;
}

/* Make *block hold at least n elements; contents are lost when it grows. */
static agglo_status reserve(void *block, size_t *cap, size_t n, size_t size, agglo_err *err)
{
    void **pointer = block;
    void *fresh;

    if (*cap >= n) {
        return AGGLO_OK;
    }
    fresh = agglo_alloc(n, size, err);
    if (fresh == NULL) {
        return err->status;
    }
    agglo_free(*pointer);
    *pointer = fresh;
    *cap = n;
    return AGGLO_OK;
}

static size_t round_up_pow2(size_t n)
{
    size_t p = 256;

    while (p < n) {
        p *= 2;
    }
    return p;
}

static void weights_clear(axis_weights *axis)
{
    agglo_free(axis->start);
    agglo_free(axis->n);
    agglo_free(axis->full);
    agglo_free(axis->scaled);
    memset(axis, 0, sizeof *axis);
}

static agglo_status weights_reserve(agglo_resizer *rs, axis_weights *axis, size_t n_outputs, size_t n_slots,
                                    agglo_err *err)
{
    rs->n_outputs_max = n_outputs > rs->n_outputs_max ? round_up_pow2(n_outputs) : rs->n_outputs_max;
    rs->n_slots_max = n_slots > rs->n_slots_max ? round_up_pow2(n_slots) : rs->n_slots_max;
    if (axis->n_outputs_cap >= n_outputs && axis->n_slots_cap >= n_slots) {
        return AGGLO_OK;
    }
    weights_clear(axis);
    axis->start = agglo_alloc(rs->n_outputs_max, sizeof *axis->start, err);
    axis->n = axis->start == NULL ? NULL : agglo_alloc(rs->n_outputs_max, sizeof *axis->n, err);
    axis->full = axis->n == NULL ? NULL : agglo_alloc(rs->n_slots_max, sizeof *axis->full, err);
    axis->scaled = axis->full == NULL ? NULL : agglo_alloc(rs->n_slots_max, sizeof *axis->scaled, err);
    if (axis->scaled == NULL) {
        weights_clear(axis);
        return err->status;
    }
    axis->n_outputs_cap = rs->n_outputs_max;
    axis->n_slots_cap = rs->n_slots_max;
    return AGGLO_OK;
}

/* One output's weights: kernel values of inputs lo .. lo + n - 1, normalised, in fixed point; slots behind them are zero. Returns the sum
 * of their magnitudes. */
static int64_t output_weights(double *kernel, agglo_filter filter, double centre, double shrink, int lo, int n,
                              int taps, int32_t *full, float *scaled)
{
    double sum = 0.0;
    int64_t magnitude = 0;

    for (int j = 0; j < n; j++) {
        kernel[j] = kernel_at(filter, ((double)(j + lo) - centre + 0.5) * shrink);
        sum += kernel[j];
    }
    for (int j = 0; j < taps; j++) {
        double w = j >= n ? 0.0 : sum != 0.0 ? kernel[j] / sum : kernel[j];
        int32_t fixed = (int32_t)(w * (double)(1 << PRECISION) + (w < 0.0 ? -0.5 : 0.5));

        full[j] = fixed;
        scaled[j] = (float)fixed * 0x1p-6f;
        magnitude += fixed < 0 ? -fixed : fixed;
    }
    return magnitude;
}
_Static_assert(PRECISION - FRACTION == 6, "the float weights are scaled by 2^-6");

#if HAVE_AVX2
/* The same, four inputs at a time: the same operations in the same order on every value, so the same bits. */
__attribute__((target("avx2"))) static int64_t output_weights_avx2(double *kernel, agglo_filter filter, double centre,
                                                                   double shrink, int lo, int n, int taps,
                                                                   int32_t *full, float *scaled)
{
    const __m256d sign = _mm256_set1_pd(-0.0), one = _mm256_set1_pd(1.0), two = _mm256_set1_pd(2.0);
    const __m256d half = _mm256_set1_pd(0.5), unit = _mm256_set1_pd((double)(1 << PRECISION));
    __m256d index = _mm256_add_pd(_mm256_set1_pd((double)lo), _mm256_setr_pd(0.0, 1.0, 2.0, 3.0)), total;
    __m128i magnitude = _mm_setzero_si128();
    double sum = 0.0;

    for (int j = 0; j < n; j += 4) {
        __m256d x =
            _mm256_mul_pd(_mm256_add_pd(_mm256_sub_pd(index, _mm256_set1_pd(centre)), half), _mm256_set1_pd(shrink));
        __m256d k;

        x = _mm256_andnot_pd(sign, x);
        if (filter == AGGLO_BILINEAR) {
            k = _mm256_and_pd(_mm256_sub_pd(one, x), _mm256_cmp_pd(x, one, _CMP_LT_OQ));
        } else {
            __m256d near = _mm256_sub_pd(_mm256_mul_pd(_mm256_set1_pd(-0.5 + 2.0), x), _mm256_set1_pd(-0.5 + 3.0));
            __m256d far = _mm256_add_pd(_mm256_mul_pd(_mm256_sub_pd(x, _mm256_set1_pd(5.0)), x), _mm256_set1_pd(8.0));

            near = _mm256_add_pd(_mm256_mul_pd(_mm256_mul_pd(near, x), x), one);
            far = _mm256_mul_pd(_mm256_sub_pd(_mm256_mul_pd(far, x), _mm256_set1_pd(4.0)), _mm256_set1_pd(-0.5));
            far = _mm256_and_pd(far, _mm256_cmp_pd(x, two, _CMP_LT_OQ));
            k = _mm256_blendv_pd(far, near, _mm256_cmp_pd(x, one, _CMP_LT_OQ));
        }
        _mm256_storeu_pd(kernel + j, k);
        index = _mm256_add_pd(index, _mm256_set1_pd(4.0));
    }
    for (int j = 0; j < n; j++) { /* in order: the sum decides the last bits */
        sum += kernel[j];
    }
    for (int j = n; j < taps; j++) {
        kernel[j] = 0.0;
    }
    total = _mm256_set1_pd(sum != 0.0 ? sum : 1.0);
    for (int j = 0; j < taps; j += 4) {
        __m256d w = _mm256_div_pd(_mm256_loadu_pd(kernel + j), total);
        __m256d nudge = _mm256_or_pd(_mm256_and_pd(_mm256_cmp_pd(w, _mm256_setzero_pd(), _CMP_LT_OQ), sign), half);
        __m128i fixed = _mm256_cvttpd_epi32(_mm256_add_pd(_mm256_mul_pd(w, unit), nudge));

        _mm_storeu_si128((void *)(full + j), fixed);
        _mm_storeu_ps(scaled + j, _mm_mul_ps(_mm_cvtepi32_ps(fixed), _mm_set1_ps(0x1p-6f)));
        magnitude = _mm_add_epi32(magnitude, _mm_abs_epi32(fixed));
    }
    magnitude = _mm_add_epi32(magnitude, _mm_srli_si128(magnitude, 8));
    magnitude = _mm_add_epi32(magnitude, _mm_srli_si128(magnitude, 4));
    return _mm_cvtsi128_si32(magnitude);
}
#endif

/* The weights of outputs [first, first + count) when [at, at + span) of an axis of `in` pixels becomes `out`; borrowed from the cache. */
static agglo_status weights_get(agglo_resizer *rs, int in, double at, double span, int out, int first, int count,
                                agglo_filter filter, const axis_weights **result, agglo_err *err)
{
    const double scale = span / (double)out;
    const double stretch = scale > 1.0 ? scale : 1.0;
    const double support = (filter == AGGLO_BICUBIC ? 2.0 : 1.0) * stretch;
    const double shrink = 1.0 / stretch;
    axis_weights *axis = &rs->cache[0];
    size_t taps = (size_t)(2.0 * support) + 2, n_slots;
    int64_t largest = 0;
    int n_max = 0;

    rs->tick++;
    for (int i = 0; i < N_CACHED; i++) {
        axis_weights *entry = &rs->cache[i];

        if (entry->used != 0 && entry->in == in && entry->at == at && entry->span == span && entry->out == out &&
            entry->first == first && entry->count == count && entry->filter == filter) {
            entry->used = rs->tick;
            *result = entry;
            return AGGLO_OK;
        }
        if (entry->used < axis->used) {
            axis = entry;
        }
    }
    taps = (taps + 3) / 4 * 4;
    axis->used = 0;
    if (!agglo_size_mul(taps, (size_t)count, &n_slots)) {
        return agglo_fail(err, AGGLO_E_MEMORY, "resizing %d to %d pixels needs too many weights", in, out);
    }
    if (weights_reserve(rs, axis, (size_t)count, n_slots, err) != AGGLO_OK) {
        return err->status;
    }
    if (reserve(&rs->kernel, &rs->kernel_cap, taps > rs->kernel_cap ? round_up_pow2(taps) : taps, sizeof *rs->kernel,
                err) != AGGLO_OK) {
        return err->status;
    }
    for (int o = 0; o < count; o++) {
        double centre = at + ((double)(first + o) + 0.5) * scale;
        int lo = (int)(centre - support + 0.5), hi = (int)(centre + support + 0.5);
        size_t slot = (size_t)o * taps;
        int64_t magnitude;
        int n;

        lo = lo < 0 ? 0 : lo;
        hi = hi > in ? in : hi;
        n = hi - lo;
        AGGLO_ASSERT(n >= 1 && (size_t)n <= taps);
#if HAVE_AVX2
        if (rs->avx2) {
            magnitude = output_weights_avx2(rs->kernel, filter, centre, shrink, lo, n, (int)taps, axis->full + slot,
                                            axis->scaled + slot);
        } else
#endif
        {
            magnitude = output_weights(rs->kernel, filter, centre, shrink, lo, n, (int)taps, axis->full + slot,
                                       axis->scaled + slot);
        }
        largest = magnitude > largest ? magnitude : largest;
        n_max = n > n_max ? n : n_max;
        axis->start[o] = lo;
        axis->n[o] = n;
    }
    axis->in = in;
    axis->at = at;
    axis->span = span;
    axis->out = out;
    axis->first = first;
    axis->count = count;
    axis->filter = filter;
    axis->taps = (int)taps;
    axis->fast = n_max <= MAX_FAST && 255 * largest < (int64_t)511 << PRECISION;
    axis->slack = n_max + 1;
    axis->used = rs->tick;
    *result = axis;
    return AGGLO_OK;
}

/* ---- passes, portable ---- */

static uint8_t clip_fixed(int32_t sum)
{
    int32_t v = sum >> PRECISION;

    return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
}

static void row_horizontal(const axis_weights *axis, const uint8_t *in, uint8_t *out)
{
    for (int o = 0; o < axis->count; o++, out += 3) {
        const int32_t *w = axis->full + (size_t)o * (size_t)axis->taps;
        const uint8_t *p = in + (size_t)axis->start[o] * 3;
        int32_t r = 1 << (PRECISION - 1), g = r, b = r;

        for (int j = 0; j < axis->n[o]; j++, p += 3) {
            r += w[j] * p[0];
            g += w[j] * p[1];
            b += w[j] * p[2];
        }
        out[0] = clip_fixed(r);
        out[1] = clip_fixed(g);
        out[2] = clip_fixed(b);
    }
}

/* Bytes [from, n_bytes) of one output row from n rows of weights w. */
static void row_vertical(const int32_t *w, int n, const uint8_t *in, size_t stride, size_t from, size_t n_bytes,
                         uint8_t *out)
{
    enum { BLOCK = 64 };
    int32_t sum[BLOCK];

    for (size_t x = from; x < n_bytes; x += BLOCK) {
        size_t n_block = n_bytes - x < BLOCK ? n_bytes - x : BLOCK;

        for (size_t i = 0; i < n_block; i++) {
            sum[i] = 1 << (PRECISION - 1);
        }
        for (int j = 0; j < n; j++) {
            const uint8_t *p = in + (size_t)j * stride + x;

            for (size_t i = 0; i < n_block; i++) {
                sum[i] += w[j] * p[i];
            }
        }
        for (size_t i = 0; i < n_block; i++) {
            out[x + i] = clip_fixed(sum[i]);
        }
    }
}

/* One value of either pass, exactly: inputs `step` bytes apart. */
static uint8_t exact_value(const int32_t *w, int n, const uint8_t *in, size_t step)
{
    int32_t sum = 1 << (PRECISION - 1);

    for (int j = 0; j < n; j++) {
        sum += w[j] * in[(size_t)j * step];
    }
    return clip_fixed(sum);
}

/* ---- passes, AVX2 and FMA ---- */

#if HAVE_AVX2
#define FAST __attribute__((target("avx2,fma")))

/* Bytes [from, to) of eight rows as floats, one row a lane: lanes[8 * (byte - from)]. Sixteen bytes at a time: up to 15 are read and 15
 * vectors written beyond `to`. */
FAST static void turn_rows(const uint8_t *const rows[N_LANES], size_t from, size_t to, float *lanes)
{
    const __m256i pick = _mm256_setr_epi8(0, -1, -1, -1, 1, -1, -1, -1, 2, -1, -1, -1, 3, -1, -1, -1, /* byte 0 */
                                          0, -1, -1, -1, 1, -1, -1, -1, 2, -1, -1, -1, 3, -1, -1, -1);
    const __m256i pick1 = _mm256_or_si256(pick, _mm256_set1_epi32(4)),
                  pick2 = _mm256_or_si256(pick, _mm256_set1_epi32(8)),
                  pick3 = _mm256_or_si256(pick, _mm256_set1_epi32(12));

    for (size_t x = from; x < to; x += 16, lanes += 16 * N_LANES) {
        __m256i r[4], t[4], v[4];

        for (int i = 0; i < 4; i++) { /* rows i and i + 4 side by side */
            r[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const void *)(rows[i] + x))),
                                           _mm_loadu_si128((const void *)(rows[i + 4] + x)), 1);
        }
        t[0] = _mm256_unpacklo_epi8(r[0], r[2]);
        t[1] = _mm256_unpacklo_epi8(r[1], r[3]);
        t[2] = _mm256_unpackhi_epi8(r[0], r[2]);
        t[3] = _mm256_unpackhi_epi8(r[1], r[3]);
        v[0] = _mm256_unpacklo_epi8(t[0], t[1]); /* rows 0 1 2 3 of bytes 0 to 3 | rows 4 5 6 7 */
        v[1] = _mm256_unpackhi_epi8(t[0], t[1]);
        v[2] = _mm256_unpacklo_epi8(t[2], t[3]);
        v[3] = _mm256_unpackhi_epi8(t[2], t[3]);
        for (int i = 0; i < 4; i++) {
            float *to4 = lanes + i * 4 * N_LANES;

            _mm256_store_ps(to4, _mm256_cvtepi32_ps(_mm256_shuffle_epi8(v[i], pick)));
            _mm256_store_ps(to4 + 8, _mm256_cvtepi32_ps(_mm256_shuffle_epi8(v[i], pick1)));
            _mm256_store_ps(to4 + 16, _mm256_cvtepi32_ps(_mm256_shuffle_epi8(v[i], pick2)));
            _mm256_store_ps(to4 + 24, _mm256_cvtepi32_ps(_mm256_shuffle_epi8(v[i], pick3)));
        }
    }
}

/* Results of one output whose lanes (bits of `lanes`) came too near to a rounding edge. */
static void redo_pixel(const axis_weights *axis, int o, const uint8_t *const rows[N_LANES], unsigned lanes,
                       int32_t q[3][N_LANES])
{
    const int32_t *w = axis->full + (size_t)o * (size_t)axis->taps;

    for (int lane = 0; lane < N_LANES; lane++) {
        for (int c = 0; (lanes >> lane & 1) != 0 && c < 3; c++) {
            q[c][lane] = exact_value(w, axis->n[o], rows[lane] + (size_t)axis->start[o] * 3 + c, 3);
        }
    }
}

/* Eight rows through `axis`: out[8][out_stride]. Writes whole groups of eight pixels: up to 21 bytes more than 3 * count a row. */
FAST static void rows_horizontal(const axis_weights *axis, const uint8_t *const rows[N_LANES], const float *lanes,
                                 uint8_t *out, size_t out_stride)
{
    const __m256i mask = _mm256_set1_epi32((1 << FRACTION) - 1), edge = _mm256_set1_epi32(2 * axis->slack);
    const __m256 start = _mm256_set1_ps((float)((1 << (FRACTION - 1)) + axis->slack));
    const __m256i gather = _mm256_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15, /* bytes to rows */
                                            0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const int origin = axis->start[0], taps = axis->taps;
    const float *w = axis->scaled;

    for (int group = 0; group < axis->count; group += 8, out += 24) {
        __m256i q[24], packed[6];
        int n_group = axis->count - group < 8 ? axis->count - group : 8;

        for (int i = 0; i < n_group; i++, w += taps) {
            const int o = group + i, n = axis->n[o];
            const float *in = lanes + (size_t)(axis->start[o] - origin) * 3 * N_LANES;
            __m256 r = start, g = start, b = start;
            __m256i low;
            unsigned near;

            for (int j = 0; j < n; j++, in += 3 * N_LANES) {
                __m256 weight = _mm256_broadcast_ss(w + j);

                r = _mm256_fmadd_ps(weight, _mm256_load_ps(in), r);
                g = _mm256_fmadd_ps(weight, _mm256_load_ps(in + N_LANES), g);
                b = _mm256_fmadd_ps(weight, _mm256_load_ps(in + 2 * N_LANES), b);
            }
            q[3 * i] = _mm256_cvtps_epi32(r);
            q[3 * i + 1] = _mm256_cvtps_epi32(g);
            q[3 * i + 2] = _mm256_cvtps_epi32(b);
            low = _mm256_min_epi32(_mm256_and_si256(q[3 * i], mask), _mm256_and_si256(q[3 * i + 1], mask));
            low = _mm256_min_epi32(low, _mm256_and_si256(q[3 * i + 2], mask));
            near = (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(edge, low)));
            q[3 * i] = _mm256_srai_epi32(q[3 * i], FRACTION);
            q[3 * i + 1] = _mm256_srai_epi32(q[3 * i + 1], FRACTION);
            q[3 * i + 2] = _mm256_srai_epi32(q[3 * i + 2], FRACTION);
            if (near != 0) {
                int32_t plain[3][N_LANES];

                memcpy(plain, &q[3 * i], sizeof plain);
                redo_pixel(axis, o, rows, near, plain);
                memcpy(&q[3 * i], plain, sizeof plain);
            }
        }
        for (int i = 3 * n_group; i < 24; i++) {
            q[i] = _mm256_setzero_si256();
        }
        for (int i = 0; i < 6; i++) { /* four bytes of each row */
            __m256i low = _mm256_packs_epi32(q[4 * i], q[4 * i + 1]),
                    high = _mm256_packs_epi32(q[4 * i + 2], q[4 * i + 3]);

            packed[i] = _mm256_shuffle_epi8(_mm256_packus_epi16(low, high), gather);
        }
        for (int i = 0; i < 3; i++) {
            __m256i even = _mm256_unpacklo_epi32(packed[2 * i], packed[2 * i + 1]); /* rows 0 1 | 4 5 */
            __m256i odd = _mm256_unpackhi_epi32(packed[2 * i], packed[2 * i + 1]);  /* rows 2 3 | 6 7 */
            __m128i even4 = _mm256_extracti128_si256(even, 1), odd4 = _mm256_extracti128_si256(odd, 1);
            uint8_t *to = out + i * 8;

            _mm_storel_epi64((void *)to, _mm256_castsi256_si128(even));
            _mm_storeh_pd((void *)(to + out_stride), _mm_castsi128_pd(_mm256_castsi256_si128(even)));
            _mm_storel_epi64((void *)(to + 2 * out_stride), _mm256_castsi256_si128(odd));
            _mm_storeh_pd((void *)(to + 3 * out_stride), _mm_castsi128_pd(_mm256_castsi256_si128(odd)));
            _mm_storel_epi64((void *)(to + 4 * out_stride), even4);
            _mm_storeh_pd((void *)(to + 5 * out_stride), _mm_castsi128_pd(even4));
            _mm_storel_epi64((void *)(to + 6 * out_stride), odd4);
            _mm_storeh_pd((void *)(to + 7 * out_stride), _mm_castsi128_pd(odd4));
        }
    }
}

/* n bytes to floats, in eights: up to 7 more are read and written. */
FAST static void widen_row(const uint8_t *in, size_t n, float *out)
{
    for (size_t x = 0; x < n; x += 8) {
        _mm256_store_ps(out + x, _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)(in + x)))));
    }
}

/* One output row of n bytes from the rows picks[0..n_taps): 32 bytes at a time, whole ones only into `out`. */
FAST static void row_vertical_fast(const int32_t *full, const float *w, int n_taps, int slack,
                                   const float *const *picks, size_t n, uint8_t *out)
{
    const __m256i mask = _mm256_set1_epi32((1 << FRACTION) - 1), edge = _mm256_set1_epi32(2 * slack);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256 start = _mm256_set1_ps((float)((1 << (FRACTION - 1)) + slack));

    for (size_t x = 0; x < n; x += 32) {
        __m256 a = start, b = start, c = start, d = start;
        __m256i q[4], low;

        for (int j = 0; j < n_taps; j++) {
            const float *in = picks[j] + x;
            __m256 weight = _mm256_broadcast_ss(w + j);

            a = _mm256_fmadd_ps(weight, _mm256_load_ps(in), a);
            b = _mm256_fmadd_ps(weight, _mm256_load_ps(in + 8), b);
            c = _mm256_fmadd_ps(weight, _mm256_load_ps(in + 16), c);
            d = _mm256_fmadd_ps(weight, _mm256_load_ps(in + 24), d);
        }
        q[0] = _mm256_cvtps_epi32(a);
        q[1] = _mm256_cvtps_epi32(b);
        q[2] = _mm256_cvtps_epi32(c);
        q[3] = _mm256_cvtps_epi32(d);
        low = _mm256_min_epi32(_mm256_min_epi32(_mm256_and_si256(q[0], mask), _mm256_and_si256(q[1], mask)),
                               _mm256_min_epi32(_mm256_and_si256(q[2], mask), _mm256_and_si256(q[3], mask)));
        if (_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(edge, low))) != 0) {
            int32_t plain[32];

            memcpy(plain, q, sizeof plain);
            for (int i = 0; i < 32; i++) {
                if ((plain[i] & ((1 << FRACTION) - 1)) < 2 * slack) {
                    int32_t sum = 1 << (PRECISION - 1);

                    for (int j = 0; j < n_taps; j++) {
                        sum += full[j] * (int32_t)picks[j][x + (size_t)i];
                    }
                    plain[i] = (sum >> PRECISION) * (1 << FRACTION);
                }
            }
            memcpy(q, plain, sizeof plain);
        }
        for (int i = 0; i < 4; i++) {
            q[i] = _mm256_srai_epi32(q[i], FRACTION);
        }
        q[0] = _mm256_packus_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
        q[0] = _mm256_permutevar8x32_epi32(q[0], order);
        if (x + 32 <= n) {
            _mm256_storeu_si256((void *)(out + x), q[0]);
        } else {
            uint8_t rest[32];

            memcpy(rest, &q[0], sizeof rest);
            memcpy(out + x, rest, n - x);
        }
    }
}

static agglo_status reserve_pow2(void *block, size_t *cap, size_t n, size_t size, agglo_err *err)
{
    return reserve(block, cap, n > *cap ? round_up_pow2(n) : 0, size, err);
}

/* Both passes, block by block. across or down may be NULL, not both; rows [first, first + n_rows) of the source are what is needed. */
static agglo_status resize_fast(agglo_resizer *rs, const axis_weights *across, const axis_weights *down,
                                const agglo_resize_source *source, int first, int n_rows, agglo_resize_window window,
                                uint8_t *out, size_t out_stride, agglo_err *err)
{
    const size_t row_bytes = (size_t)window.w * 3, block_stride = (row_bytes + 63) / 32 * 32;
    const int last = across != NULL ? across->count - 1 : 0;
    /* the bytes of a source row that are needed */
    const size_t from = (size_t)(across != NULL ? across->start[0] : window.x) * 3;
    const size_t to = across != NULL ? (size_t)(across->start[last] + across->n[last]) * 3 : from + row_bytes;
    const size_t copy_stride = to + 64;
    int ring_rows = down != NULL ? (down->taps + 2 * N_LANES) / N_LANES * N_LANES : 0, emitted = 0;
    size_t n_block = N_LANES * block_stride, n_copy = N_LANES * copy_stride, n_lanes = (to - from + 16) * N_LANES,
           n_ring = (size_t)ring_rows * block_stride;

    if (reserve_pow2(&rs->rows, &rs->rows_cap, n_block + n_copy, 1, err) != AGGLO_OK ||
        reserve_pow2(&rs->lanes, &rs->lanes_cap, n_lanes, sizeof *rs->lanes, err) != AGGLO_OK ||
        reserve_pow2(&rs->ring, &rs->ring_cap, n_ring + 1, sizeof *rs->ring, err) != AGGLO_OK ||
        reserve_pow2(&rs->picks, &rs->picks_cap, (size_t)ring_rows + 1, sizeof *rs->picks, err) != AGGLO_OK) {
        return err->status;
    }
    for (int y = 0; y < n_rows; y += N_LANES) {
        const uint8_t *rows[N_LANES], *finished[N_LANES];
        int n_here = n_rows - y < N_LANES ? n_rows - y : N_LANES;

        for (int i = 0; i < N_LANES; i++) { /* behind the last row, the last row again */
            size_t offset = (size_t)(first + y + (i < n_here ? i : n_here - 1)) * source->stride;

            rows[i] = source->rgb + offset;
            if (source->readable - offset < to + 32) { /* too near to the end to read vectors */
                uint8_t *copy = rs->rows + n_block + (size_t)i * copy_stride;

                memcpy(copy + from, rows[i] + from, to - from);
                rows[i] = copy;
            }
        }
        if (across != NULL) {
            turn_rows(rows, from, to, rs->lanes);
            rows_horizontal(across, rows, rs->lanes, rs->rows, block_stride);
        }
        for (int i = 0; i < n_here; i++) {
            finished[i] = across != NULL ? rs->rows + (size_t)i * block_stride : rows[i] + from;
            if (down == NULL) {
                memcpy(out + (size_t)(y + i) * out_stride, finished[i], row_bytes);
            } else {
                widen_row(finished[i], row_bytes, rs->ring + (size_t)((y + i) % ring_rows) * block_stride);
            }
        }
        for (; down != NULL && emitted < down->count && down->start[emitted] + down->n[emitted] - first <= y + n_here;
             emitted++) {
            size_t slot = (size_t)emitted * (size_t)down->taps;
            int at = (down->start[emitted] - first) % ring_rows;

            for (int j = 0; j < down->n[emitted]; j++, at++) {
                at = at == ring_rows ? 0 : at;
                rs->picks[j] = rs->ring + (size_t)at * block_stride;
            }
            row_vertical_fast(down->full + slot, down->scaled + slot, down->n[emitted], down->slack, rs->picks,
                              row_bytes, out + (size_t)emitted * out_stride);
        }
    }
    return AGGLO_OK;
}
#endif

/* ---- both passes ---- */

static agglo_status resize_portable(agglo_resizer *rs, const axis_weights *across, const axis_weights *down,
                                    const agglo_resize_source *source, int first, int n_rows,
                                    agglo_resize_window window, uint8_t *out, size_t out_stride, agglo_err *err)
{
    const size_t row_bytes = (size_t)window.w * 3;
    agglo_resize_source middle = *source;
    size_t n_bytes;

    middle.rgb = source->rgb + (size_t)first * source->stride + (size_t)window.x * 3;
    if (across != NULL) {
        middle.stride = down != NULL ? row_bytes : out_stride;
        middle.rgb = out;
        if (down != NULL) {
            if (!agglo_size_mul(middle.stride, (size_t)n_rows, &n_bytes)) {
                return agglo_fail(err, AGGLO_E_MEMORY, "%d rows of %zu bytes do not fit memory", n_rows, middle.stride);
            }
            if (reserve(&rs->rows, &rs->rows_cap, n_bytes > rs->rows_cap ? round_up_pow2(n_bytes) : 0, 1, err) !=
                AGGLO_OK) {
                return err->status;
            }
            middle.rgb = rs->rows;
        }
        for (int y = 0; y < n_rows; y++) {
            row_horizontal(across, source->rgb + (size_t)(first + y) * source->stride,
                           (down != NULL ? rs->rows : out) + (size_t)y * middle.stride);
        }
    }
    for (int o = 0; down != NULL && o < down->count; o++) {
        row_vertical(down->full + (size_t)o * (size_t)down->taps, down->n[o],
                     middle.rgb + (size_t)(down->start[o] - first) * middle.stride, middle.stride, 0, row_bytes,
                     out + (size_t)o * out_stride);
    }
    for (int y = 0; across == NULL && down == NULL && y < window.h; y++) {
        memcpy(out + (size_t)y * out_stride, middle.rgb + (size_t)y * middle.stride, row_bytes);
    }
    return AGGLO_OK;
}

agglo_status agglo_resize(agglo_resizer *rs, const agglo_resize_source *source, agglo_filter filter, int out_w,
                          int out_h, agglo_resize_window window, uint8_t *out, size_t out_stride, agglo_err *err)
{
    const axis_weights *across = NULL, *down = NULL;
    double x = source->box_x, w = source->box_w, y = source->box_y, h = source->box_h;
    int first = window.y, n_rows = window.h;

    AGGLO_ASSERT(window.x >= 0 && window.y >= 0 && window.w >= 1 && window.h >= 1);
    AGGLO_ASSERT(window.w <= out_w - window.x && window.h <= out_h - window.y);
    if (w == 0.0) {
        x = 0.0;
        w = (double)source->width;
    }
    if (h == 0.0) {
        y = 0.0;
        h = (double)source->height;
    }
    AGGLO_ASSERT(x >= 0.0 && y >= 0.0 && w > 0.0 && h > 0.0 && x + w <= source->width && y + h <= source->height);
    if ((out_w != source->width || w != (double)source->width) &&
        weights_get(rs, source->width, x, w, out_w, window.x, window.w, filter, &across, err) != AGGLO_OK) {
        return err->status;
    }
    if ((out_h != source->height || h != (double)source->height) &&
        weights_get(rs, source->height, y, h, out_h, window.y, window.h, filter, &down, err) != AGGLO_OK) {
        return err->status;
    }
    if (down != NULL) { /* the input rows that the second pass will read: starts ascend, and so do ends */
        first = down->start[0];
        n_rows = down->start[window.h - 1] + down->n[window.h - 1] - first;
    }
#if HAVE_AVX2
    if (rs->avx2 && (across != NULL || down != NULL) && (across == NULL || across->fast) &&
        (down == NULL || down->fast)) {
        return resize_fast(rs, across, down, source, first, n_rows, window, out, out_stride, err);
    }
#endif
    return resize_portable(rs, across, down, source, first, n_rows, window, out, out_stride, err);
}

/* ---- life ---- */

agglo_status agglo_resizer_new(agglo_resizer **out, agglo_err *err)
{
    agglo_resizer *rs = agglo_alloc(1, sizeof *rs, err);

    *out = rs;
    if (rs == NULL) {
        return err->status;
    }
    agglo_resizer_portable(rs, false);
    return AGGLO_OK;
}

void agglo_resizer_free(agglo_resizer *rs)
{
    if (rs == NULL) {
        return;
    }
    for (int i = 0; i < N_CACHED; i++) {
        weights_clear(&rs->cache[i]);
    }
    agglo_free(rs->kernel);
    agglo_free(rs->rows);
    agglo_free(rs->lanes);
    agglo_free(rs->ring);
    agglo_free(rs->picks);
    agglo_free(rs);
}

void agglo_resizer_portable(agglo_resizer *rs, bool portable)
{
#if HAVE_AVX2
    rs->avx2 = !portable && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    (void)portable;
    rs->avx2 = false;
#endif
}
