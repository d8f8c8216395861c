/* The resampler: weights, the two passes in portable C, and the same passes with AVX2 and FMA or with AVX-512.
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
 * The horizontal pass takes eight or sixteen rows at a time, one per lane, turned so that a pixel's channel of all of them is one vector; the vertical
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
#define MAX_LANES 16
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
    int n_most;     /* the largest n */
    int slack;      /* E */
} axis_weights;

struct agglo_resizer {
    axis_weights cache[N_CACHED];
    uint64_t tick;
    size_t n_outputs_max, n_slots_max; /* largest asked for so far: every entry grows to it at once, so growth ends */
    double *kernel;                    /* [taps] of the output in work */
    size_t kernel_cap;
    uint8_t *rows; /* result of the horizontal pass; a block of it in the vector loops */
    size_t rows_cap;
    float *lanes; /* a block of source rows, turned */
    size_t lanes_cap;
    float *ring; /* finished rows */
    size_t ring_cap;
    const float **picks; /* [taps] rows of the output in work */
    size_t picks_cap;
    bool avx2, avx512;
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
_Static_assert(FRACTION == 16 && 2 * (MAX_FAST + 1) < INT16_MAX, "fractions are compared as 16-bit numbers");

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
    axis->n_most = n_max;
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

/* ---- passes, AVX2 and AVX-512 ---- */

#if HAVE_AVX2
/* The loops over taps are compiled for small counts, where they have no branches to mispredict. Every output takes as many taps as the
 * one that has most; behind its own the weights are zero. */
#define FOR_TAPS(n, call)                                                                                              \
    switch (n) {                                                                                                       \
    case 4:                                                                                                            \
        call(4);                                                                                                       \
        break;                                                                                                         \
    case 5:                                                                                                            \
        call(5);                                                                                                       \
        break;                                                                                                         \
    case 6:                                                                                                            \
        call(6);                                                                                                       \
        break;                                                                                                         \
    case 7:                                                                                                            \
        call(7);                                                                                                       \
        break;                                                                                                         \
    case 8:                                                                                                            \
        call(8);                                                                                                       \
        break;                                                                                                         \
    case 9:                                                                                                            \
        call(9);                                                                                                       \
        break;                                                                                                         \
    default:                                                                                                           \
        call(n);                                                                                                       \
        break;                                                                                                         \
    }

#define N_LANES       8
#define NAME(name)    name##_avx2
#define FAST          __attribute__((target("avx2,fma")))
#define FLOATS        __m256
#define INTS          __m256i
#define V(op)         _mm256_##op
#define AS_INTS(quad) _mm256_broadcastsi128_si256(quad)
#define BLEND(a, b)   _mm256_blend_epi16(a, b, 0xaa)
#define ANY_BELOW(v, limit)                                                                                            \
    (unsigned)_mm256_movemask_epi8(_mm256_cmpeq_epi16(_mm256_min_epu16(v, _mm256_set1_epi16((int16_t)((limit)-1))), v))
#define LOAD_BYTES(p) _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)(p)))
#define IN_ORDER(v)   _mm256_permutevar8x32_epi32(v, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))
#define STORE(p, v)   _mm256_storeu_si256((void *)(p), v)
#include "ingest/resize_loops.inc"

#define N_LANES             16
#define NAME(name)          name##_avx512
#define FAST                __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))
#define FLOATS              __m512
#define INTS                __m512i
#define V(op)               _mm512_##op
#define AS_INTS(quad)       _mm512_broadcast_i32x4(quad)
#define BLEND(a, b)         _mm512_mask_blend_epi16(0xaaaaaaaau, a, b)
#define ANY_BELOW(v, limit) _mm512_cmplt_epu16_mask(v, _mm512_set1_epi16((int16_t)(limit)))
#define LOAD_BYTES(p)       _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)(p)))
#define IN_ORDER(v)         _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), v)
#define STORE(p, v)         _mm512_storeu_si512((void *)(p), v)
#include "ingest/resize_loops.inc"

typedef struct fast_loops {
    int n_lanes;
    void (*horizontal)(const axis_weights *axis, const uint8_t *const *rows, float *lanes, uint8_t *out,
                       size_t out_stride);
    void (*widen)(const uint8_t *in, size_t n, float *out);
    void (*vertical)(const int32_t *full, const float *w, int n_taps, int slack, const float *const *picks, size_t n,
                     uint8_t *out);
} fast_loops;

static const fast_loops loops_avx2 = {8, rows_horizontal_avx2, widen_row_avx2, row_vertical_avx2};
static const fast_loops loops_avx512 = {16, rows_horizontal_avx512, widen_row_avx512, row_vertical_avx512};

static agglo_status reserve_pow2(void *block, size_t *cap, size_t n, size_t size, agglo_err *err)
{
    return reserve(block, cap, n > *cap ? round_up_pow2(n) : 0, size, err);
}

/* Both passes, block by block. across or down may be NULL, not both; rows [first, first + n_rows) of the source are what is needed. */
static agglo_status resize_fast(agglo_resizer *rs, const fast_loops *loops, const axis_weights *across,
                                const axis_weights *down, const agglo_resize_source *source, int first, int n_rows,
                                agglo_resize_window window, uint8_t *out, size_t out_stride, agglo_err *err)
{
    const size_t row_bytes = (size_t)window.w * 3, block_stride = (row_bytes + 127) / 64 * 64;
    const int n_lanes = loops->n_lanes;
    const int last = across != NULL ? across->count - 1 : 0;
    /* the bytes of a source row that are needed */
    const size_t from = (size_t)(across != NULL ? across->start[0] : window.x) * 3;
    const size_t to = across != NULL ? (size_t)(across->start[last] + across->n[last]) * 3 : from + row_bytes;
    const size_t copy_stride = to + 64;
    int ring_rows = down != NULL ? (down->taps + 2 * n_lanes) / n_lanes * n_lanes : 0, emitted = 0;
    size_t n_block = (size_t)n_lanes * block_stride, n_copy = (size_t)n_lanes * copy_stride,
           n_turned = (to - from + 16 + (across != NULL ? (size_t)across->n_most * 3 : 0)) * (size_t)n_lanes,
           n_ring = (size_t)ring_rows * block_stride;

    if (reserve_pow2(&rs->rows, &rs->rows_cap, n_block + n_copy, 1, err) != AGGLO_OK ||
        reserve_pow2(&rs->lanes, &rs->lanes_cap, n_turned, sizeof *rs->lanes, err) != AGGLO_OK ||
        reserve_pow2(&rs->ring, &rs->ring_cap, n_ring + 1, sizeof *rs->ring, err) != AGGLO_OK ||
        reserve_pow2(&rs->picks, &rs->picks_cap, (size_t)ring_rows + 1, sizeof *rs->picks, err) != AGGLO_OK) {
        return err->status;
    }
    for (int y = 0; y < n_rows; y += n_lanes) {
        const uint8_t *rows[MAX_LANES], *finished[MAX_LANES];
        int n_here = n_rows - y < n_lanes ? n_rows - y : n_lanes;

        for (int i = 0; i < n_lanes; i++) { /* behind the last row, the last row again */
            size_t offset = (size_t)(first + y + (i < n_here ? i : n_here - 1)) * source->stride;

            rows[i] = source->rgb + offset;
            if (source->readable - offset < to + 32) { /* too near to the end to read vectors */
                uint8_t *copy = rs->rows + n_block + (size_t)i * copy_stride;

                memcpy(copy + from, rows[i] + from, to - from);
                rows[i] = copy;
            }
        }
        if (across != NULL) {
            loops->horizontal(across, rows, rs->lanes, rs->rows, block_stride);
        }
        for (int i = 0; i < n_here; i++) {
            finished[i] = across != NULL ? rs->rows + (size_t)i * block_stride : rows[i] + from;
            if (down == NULL) {
                memcpy(out + (size_t)(y + i) * out_stride, finished[i], row_bytes);
            } else {
                loops->widen(finished[i], row_bytes, rs->ring + (size_t)((y + i) % ring_rows) * block_stride);
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
            for (int j = down->n[emitted]; j < down->n_most; j++) { /* of weight zero */
                rs->picks[j] = rs->picks[0];
            }
            loops->vertical(down->full + slot, down->scaled + slot, down->n_most, down->slack, rs->picks, row_bytes,
                            out + (size_t)emitted * out_stride);
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
        return resize_fast(rs, rs->avx512 ? &loops_avx512 : &loops_avx2, across, down, source, first, n_rows, window,
                           out, out_stride, err);
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
    agglo_resizer_set_isa(rs, AGGLO_RESIZER_AVX512);
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

void agglo_resizer_set_isa(agglo_resizer *rs, agglo_resizer_isa isa)
{
#if HAVE_AVX2
    rs->avx2 = isa >= AGGLO_RESIZER_AVX2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    rs->avx512 = rs->avx2 && isa >= AGGLO_RESIZER_AVX512 && __builtin_cpu_supports("avx512f") &&
                 __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                 __builtin_cpu_supports("avx512dq");
#else
    (void)isa;
    rs->avx2 = rs->avx512 = false;
#endif
}
