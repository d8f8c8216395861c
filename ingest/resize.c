/* The resampler: weights, the two passes in portable C, and the same passes with AVX2.
 *
 * A weight W (about 22 bits and sign) does not fit the 16-bit multipliers, which are the fast ones. So it is split,
 *     W = hi * 2^15 + lo,  lo in [0, 2^15),
 * and both halves are summed by vpmaddwd, which multiplies two taps by their weights and adds them. Sums are taken modulo 2^32, where
 * the split is exact; the true sum fits an int32, so the result is the same integer that the portable loop finds.
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
#define SPLIT     15
#define N_CACHED  16
#define ROW_PAD   64 /* bytes readable behind a scratch row */

/* The weights of `count` consecutive outputs of one axis. Each output has `taps` slots (a multiple of 4, zero behind its last). */
typedef struct axis_weights {
    int in, out, first, count;
    agglo_filter filter;
    uint64_t used; /* tick of the last use; 0: empty */
    int taps;
    size_t n_outputs_cap, n_slots_cap;
    int32_t *start; /* [count] first input of each output */
    int32_t *n;     /* [count] inputs of each output */
    int32_t *full;  /* [count][taps] */
    int16_t *hi, *lo;
} axis_weights;

struct agglo_resizer {
    axis_weights cache[N_CACHED];
    uint64_t tick;
    size_t n_outputs_max, n_slots_max; /* largest asked for so far: every entry grows to it at once, so growth ends */
    double *kernel;                    /* [taps] of the output in work */
    size_t kernel_cap;
    uint8_t *rows; /* result of the horizontal pass */
    size_t rows_cap;
    uint8_t *padded; /* one source row with room behind it */
    size_t padded_cap;
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
    agglo_free(axis->hi);
    agglo_free(axis->lo);
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
    axis->hi = axis->full == NULL ? NULL : agglo_alloc(rs->n_slots_max, sizeof *axis->hi, err);
    axis->lo = axis->hi == NULL ? NULL : agglo_alloc(rs->n_slots_max, sizeof *axis->lo, err);
    if (axis->lo == NULL) {
        weights_clear(axis);
        return err->status;
    }
    axis->n_outputs_cap = rs->n_outputs_max;
    axis->n_slots_cap = rs->n_slots_max;
    return AGGLO_OK;
}

/* The weights of outputs [first, first + count) when an axis of `in` pixels becomes `out`; borrowed from the cache. */
static agglo_status weights_get(agglo_resizer *rs, int in, int out, int first, int count, agglo_filter filter,
                                const axis_weights **result, agglo_err *err)
{
    const double scale = (double)in / (double)out;
    const double stretch = scale > 1.0 ? scale : 1.0;
    const double support = (filter == AGGLO_BICUBIC ? 2.0 : 1.0) * stretch;
    const double shrink = 1.0 / stretch;
    axis_weights *axis = &rs->cache[0];
    size_t taps = (size_t)(2.0 * support) + 2, n_slots;

    rs->tick++;
    for (int i = 0; i < N_CACHED; i++) {
        axis_weights *at = &rs->cache[i];

        if (at->used != 0 && at->in == in && at->out == out && at->first == first && at->count == count &&
            at->filter == filter) {
            at->used = rs->tick;
            *result = at;
            return AGGLO_OK;
        }
        if (at->used < axis->used) {
            axis = at;
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
        double centre = ((double)(first + o) + 0.5) * scale, sum = 0.0;
        int lo = (int)(centre - support + 0.5), hi = (int)(centre + support + 0.5);
        size_t slot = (size_t)o * taps;
        int n;

        lo = lo < 0 ? 0 : lo;
        hi = hi > in ? in : hi;
        n = hi - lo;
        AGGLO_ASSERT(n >= 1 && (size_t)n <= taps);
        for (int j = 0; j < n; j++) {
            rs->kernel[j] = kernel_at(filter, ((double)(j + lo) - centre + 0.5) * shrink);
            sum += rs->kernel[j];
        }
        for (size_t j = 0; j < taps; j++) {
            double w = j >= (size_t)n ? 0.0 : sum != 0.0 ? rs->kernel[j] / sum : rs->kernel[j];
            int32_t fixed = (int32_t)(w * (double)(1 << PRECISION) + (w < 0.0 ? -0.5 : 0.5));

            axis->full[slot + j] = fixed;
            axis->hi[slot + j] = (int16_t)(fixed >> SPLIT);
            axis->lo[slot + j] = (int16_t)(fixed & ((1 << SPLIT) - 1));
        }
        axis->start[o] = lo;
        axis->n[o] = n;
    }
    axis->in = in;
    axis->out = out;
    axis->first = first;
    axis->count = count;
    axis->filter = filter;
    axis->taps = (int)taps;
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

/* ---- passes, AVX2 ---- */

#if HAVE_AVX2
/* sum_hi * 2^15 + sum_lo over both lanes, rounded and shifted to 0..255 and beyond: one pixel, 32 bits a channel. */
__attribute__((target("avx2"))) static inline __m128i finish_pixel_avx2(__m256i sum_hi, __m256i sum_lo)
{
    const __m256i sum = _mm256_add_epi32(_mm256_slli_epi32(sum_hi, SPLIT), sum_lo);
    const __m128i total = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));

    return _mm_srai_epi32(_mm_add_epi32(total, _mm_set1_epi32(1 << (PRECISION - 1))), PRECISION);
}

/* Four taps a turn: each 128-bit lane takes two pixels, (r0 r1)(g0 g1)(b0 b1) as pairs of 16 bits. Reads up to 4 * taps / 4 pixels and 4
 * bytes from the first tap: the caller sees to it that they can be read. */
__attribute__((target("avx2"))) static void row_horizontal_avx2(const axis_weights *axis, const uint8_t *in,
                                                                uint8_t *out)
{
    const __m256i pairs = _mm256_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1, /* taps 0 and 1 */
                                           6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1);
    const __m256i spread = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);

    for (int o = 0; o < axis->count; o++, out += 3) {
        const int16_t *hi = axis->hi + (size_t)o * (size_t)axis->taps;
        const int16_t *lo = axis->lo + (size_t)o * (size_t)axis->taps;
        const uint8_t *p = in + (size_t)axis->start[o] * 3;
        __m256i sum_hi = _mm256_setzero_si256(), sum_lo = sum_hi;
        __m128i total;
        uint32_t packed;

        for (int j = 0; j < axis->n[o]; j += 4, p += 12) {
            __m256i v = _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)p));
            __m256i w_hi = _mm256_castsi128_si256(_mm_loadl_epi64((const void *)(hi + j)));
            __m256i w_lo = _mm256_castsi128_si256(_mm_loadl_epi64((const void *)(lo + j)));

            v = _mm256_shuffle_epi8(v, pairs);
            sum_hi = _mm256_add_epi32(sum_hi, _mm256_madd_epi16(v, _mm256_permutevar8x32_epi32(w_hi, spread)));
            sum_lo = _mm256_add_epi32(sum_lo, _mm256_madd_epi16(v, _mm256_permutevar8x32_epi32(w_lo, spread)));
        }
        total = finish_pixel_avx2(sum_hi, sum_lo);
        total = _mm_packs_epi32(total, total);
        packed = (uint32_t)_mm_cvtsi128_si32(_mm_packus_epi16(total, total));
        out[0] = (uint8_t)packed;
        out[1] = (uint8_t)(packed >> 8);
        out[2] = (uint8_t)(packed >> 16);
    }
}

/* The same for four rows at once: weights are spread once for all of them. */
__attribute__((target("avx2"))) static void rows_horizontal_avx2(const axis_weights *axis, const uint8_t *const in[4],
                                                                 uint8_t *out, size_t out_stride)
{
    const __m256i pairs = _mm256_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1, /* taps 0 and 1 */
                                           6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1);
    const __m256i spread = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);

    for (int o = 0; o < axis->count; o++, out += 3) {
        const int16_t *hi = axis->hi + (size_t)o * (size_t)axis->taps;
        const int16_t *lo = axis->lo + (size_t)o * (size_t)axis->taps;
        size_t at = (size_t)axis->start[o] * 3;
        __m256i hi0 = _mm256_setzero_si256(), hi1 = hi0, hi2 = hi0, hi3 = hi0;
        __m256i lo0 = hi0, lo1 = hi0, lo2 = hi0, lo3 = hi0;
        __m128i four;

        for (int j = 0; j < axis->n[o]; j += 4, at += 12) {
            __m256i w_hi = _mm256_castsi128_si256(_mm_loadl_epi64((const void *)(hi + j)));
            __m256i w_lo = _mm256_castsi128_si256(_mm_loadl_epi64((const void *)(lo + j)));
            __m256i v;

            w_hi = _mm256_permutevar8x32_epi32(w_hi, spread);
            w_lo = _mm256_permutevar8x32_epi32(w_lo, spread);
#define ADD_ROW(row, sum_hi, sum_lo)                                                                                   \
    v = _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)(in[row] + at)));                                    \
    v = _mm256_shuffle_epi8(v, pairs);                                                                                 \
    sum_hi = _mm256_add_epi32(sum_hi, _mm256_madd_epi16(v, w_hi));                                                     \
    sum_lo = _mm256_add_epi32(sum_lo, _mm256_madd_epi16(v, w_lo))
            ADD_ROW(0, hi0, lo0);
            ADD_ROW(1, hi1, lo1);
            ADD_ROW(2, hi2, lo2);
            ADD_ROW(3, hi3, lo3);
#undef ADD_ROW
        }
        four = _mm_packus_epi16(_mm_packs_epi32(finish_pixel_avx2(hi0, lo0), finish_pixel_avx2(hi1, lo1)),
                                _mm_packs_epi32(finish_pixel_avx2(hi2, lo2), finish_pixel_avx2(hi3, lo3)));
        for (int row = 0; row < 4; row++, four = _mm_srli_si128(four, 4)) {
            uint32_t pixel = (uint32_t)_mm_cvtsi128_si32(four);
            uint8_t *to = out + (size_t)row * out_stride;

            if (o + 1 < axis->count) { /* the fourth byte is the next pixel's, written next */
                memcpy(to, &pixel, 4);
            } else {
                memcpy(to, &pixel, 3);
            }
        }
    }
}

/* Sixteen bytes a turn, two rows at a time; returns how many bytes are done (a multiple of 16). */
__attribute__((target("avx2"))) static size_t row_vertical_avx2(const int16_t *hi, const int16_t *lo, int n,
                                                                const uint8_t *in, size_t stride, size_t n_bytes,
                                                                uint8_t *out)
{
    const __m256i half = _mm256_set1_epi32(1 << (PRECISION - 1));
    size_t x = 0;

    for (; x + 16 <= n_bytes; x += 16) {
        __m256i a_hi = _mm256_setzero_si256(), a_lo = half, b_hi = a_hi, b_lo = half, packed;

        for (int j = 0; j < n; j += 2) {
            /* behind an odd last row the weight is zero: read that row twice */
            const uint8_t *p = in + (size_t)j * stride + x, *q = j + 1 < n ? p + stride : p;
            __m128i v0 = _mm_loadu_si128((const void *)p), v1 = _mm_loadu_si128((const void *)q);
            __m256i a = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(v0, v1));
            __m256i b = _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(v0, v1));
            int32_t pair;
            __m256i w;

            memcpy(&pair, hi + j, sizeof pair);
            w = _mm256_set1_epi32(pair);
            a_hi = _mm256_add_epi32(a_hi, _mm256_madd_epi16(a, w));
            b_hi = _mm256_add_epi32(b_hi, _mm256_madd_epi16(b, w));
            memcpy(&pair, lo + j, sizeof pair);
            w = _mm256_set1_epi32(pair);
            a_lo = _mm256_add_epi32(a_lo, _mm256_madd_epi16(a, w));
            b_lo = _mm256_add_epi32(b_lo, _mm256_madd_epi16(b, w));
        }
        a_lo = _mm256_srai_epi32(_mm256_add_epi32(a_lo, _mm256_slli_epi32(a_hi, SPLIT)), PRECISION);
        b_lo = _mm256_srai_epi32(_mm256_add_epi32(b_lo, _mm256_slli_epi32(b_hi, SPLIT)), PRECISION);
        packed = _mm256_permute4x64_epi64(_mm256_packs_epi32(a_lo, b_lo), 0xd8);
        _mm_storeu_si128((void *)(out + x),
                         _mm_packus_epi16(_mm256_castsi256_si128(packed), _mm256_extracti128_si256(packed, 1)));
    }
    return x;
}
#endif

/* Rows [from, from + n) of `source` through `axis` into out. */
static agglo_status pass_horizontal(agglo_resizer *rs, const axis_weights *axis, const agglo_resize_source *source,
                                    int from, int n, uint8_t *out, size_t out_stride, agglo_err *err)
{
    size_t row_bytes = (size_t)source->width * 3;

    if (rs->avx2 &&
        reserve(&rs->padded, &rs->padded_cap,
                row_bytes + ROW_PAD > rs->padded_cap ? round_up_pow2(row_bytes + ROW_PAD) : 0, 1, err) != AGGLO_OK) {
        return err->status;
    }
    int y = 0;

#if HAVE_AVX2
    /* four rows at a time, while the vector loop may read up to 3 pixels and 4 bytes too far */
    for (; rs->avx2 && y + 4 <= n; y += 4, out += 4 * out_stride) {
        const uint8_t *first = source->rgb + (size_t)(from + y) * source->stride;
        const uint8_t *const rows[4] = {first, first + source->stride, first + 2 * source->stride,
                                        first + 3 * source->stride};

        if (source->readable - (size_t)(from + y + 3) * source->stride < row_bytes + 16) {
            break;
        }
        rows_horizontal_avx2(axis, rows, out, out_stride);
    }
#endif
    for (; y < n; y++, out += out_stride) {
        size_t offset = (size_t)(from + y) * source->stride;
        const uint8_t *row = source->rgb + offset;

#if HAVE_AVX2
        if (rs->avx2) {
            if (source->readable - offset < row_bytes + 16) {
                memcpy(rs->padded, row, row_bytes);
                row = rs->padded;
            }
            row_horizontal_avx2(axis, row, out);
            continue;
        }
#endif
        row_horizontal(axis, row, out);
    }
    return AGGLO_OK;
}

static void pass_vertical(const agglo_resizer *rs, const axis_weights *axis, const uint8_t *in, size_t stride,
                          int in_first, size_t n_bytes, uint8_t *out, size_t out_stride)
{
    for (int o = 0; o < axis->count; o++, out += out_stride) {
        const uint8_t *rows = in + (size_t)(axis->start[o] - in_first) * stride;
        size_t slot = (size_t)o * (size_t)axis->taps, done = 0;

#if HAVE_AVX2
        if (rs->avx2) {
            done = row_vertical_avx2(axis->hi + slot, axis->lo + slot, axis->n[o], rows, stride, n_bytes, out);
        }
#else
        (void)rs;
#endif
        row_vertical(axis->full + slot, axis->n[o], rows, stride, done, n_bytes, out);
    }
}

agglo_status agglo_resize(agglo_resizer *rs, const agglo_resize_source *source, agglo_filter filter, int out_w,
                          int out_h, agglo_resize_window window, uint8_t *out, size_t out_stride, agglo_err *err)
{
    const axis_weights *across = NULL, *down = NULL;
    size_t row_bytes = (size_t)window.w * 3, n_bytes;
    int first = window.y, n_rows = window.h;
    agglo_resize_source middle = *source;

    AGGLO_ASSERT(window.x >= 0 && window.y >= 0 && window.w >= 1 && window.h >= 1);
    AGGLO_ASSERT(window.w <= out_w - window.x && window.h <= out_h - window.y);
    if (out_w != source->width &&
        weights_get(rs, source->width, out_w, window.x, window.w, filter, &across, err) != AGGLO_OK) {
        return err->status;
    }
    if (out_h != source->height &&
        weights_get(rs, source->height, out_h, window.y, window.h, filter, &down, err) != AGGLO_OK) {
        return err->status;
    }
    if (down != NULL) { /* the input rows that the second pass will read: starts ascend, and so do ends */
        first = down->start[0];
        n_rows = down->start[window.h - 1] + down->n[window.h - 1] - first;
    }
    if (across != NULL && down == NULL) {
        return pass_horizontal(rs, across, source, first, n_rows, out, out_stride, err);
    }
    if (across != NULL) {
        middle.stride = (row_bytes + 15) / 16 * 16;
        if (!agglo_size_mul(middle.stride, (size_t)n_rows, &n_bytes)) {
            return agglo_fail(err, AGGLO_E_MEMORY, "%d rows of %zu bytes do not fit memory", n_rows, middle.stride);
        }
        if (reserve(&rs->rows, &rs->rows_cap, n_bytes > rs->rows_cap ? round_up_pow2(n_bytes) : 0, 1, err) !=
                AGGLO_OK ||
            pass_horizontal(rs, across, source, first, n_rows, rs->rows, middle.stride, err) != AGGLO_OK) {
            return err->status;
        }
        middle.rgb = rs->rows;
    } else {
        middle.rgb = source->rgb + (size_t)first * source->stride + (size_t)window.x * 3;
    }
    if (down != NULL) {
        pass_vertical(rs, down, middle.rgb, middle.stride, first, row_bytes, out, out_stride);
        return AGGLO_OK;
    }
    for (int y = 0; y < window.h; y++) {
        memcpy(out + (size_t)y * out_stride, middle.rgb + (size_t)y * middle.stride, row_bytes);
    }
    return AGGLO_OK;
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
    agglo_free(rs->padded);
    agglo_free(rs);
}

void agglo_resizer_portable(agglo_resizer *rs, bool portable)
{
#if HAVE_AVX2
    rs->avx2 = !portable && __builtin_cpu_supports("avx2");
#else
    (void)portable;
    rs->avx2 = false;
#endif
}
