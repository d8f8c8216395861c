/* Convolutions on the CPU: windows of a tile of pixels are laid out as rows, oneDNN's matrix product does the rest; forward ones in F32 are
 * oneDNN's own where it has fast code for them (conv_dnnl.c; 20 % faster, backward about as fast); depthwise ones are loops over channels.
 *
 *     gather     y[m,o] = act(rows(x)[m,k] w[o,k]^T + b), k = (ky, kx, c)      tile of pixels m x outputs o to a task
 *     scatter    rows[m,k] = y[m,o] w[o,k], each added where its window lies    block of image rows to a task
 *     weight     d_w[o,k] += y[m,o]^T rows(x)[m,k]                              tile of d_w to a task, and blocks of m where d_w is small
 *
 * Products over long rows run in pieces of k that keep the laid-out rows within PATCH_FLOATS. A scattering task owns its image rows and works
 * out again what its neighbours share with it; there are as few as give the pool MIN_TASKS. Tiles, pieces and blocks depend on the shape
 * only. BF16 is converted to floats tile by tile, weights once per call.
 */
#include "tensor/cpu/storage_impl.h"

#define TILE_ROWS      256
#define TILE_COLS      128
#define MIN_TASKS      16
#define PATCH_FLOATS   (384 * 1024) /* of laid-out rows: what stays in a core's second-level cache, about */
#define WEIGHT_ROWS    128
#define WEIGHT_COLS    1536
#define PACKED_STRIDE  272           /* of transposed rows: not a power of two, or they fall on the same cache sets */
#define BLOCK_FLOATS   (1024 * 1024) /* of image rows that a scattering task owns */
#define LEAST_BLOCK    2048          /* pixels summed apart, and rows of a block of the weight gradient */
#define PLANNED_PIXELS 100           /* of an output map that oneDNN's own convolution is worth */
#define COLUMN_FLOATS  4096

typedef struct conv_work {
    agglo_backend *be;
    const agglo_conv_shape *s;
    agglo_dtype dtype;
    int64_t m, k;                /* pixels of the output, length of a laid-out window */
    int64_t tile_m, tile_n, n_n; /* tiles of the task grid; n_n per row of tiles */
    int64_t piece;               /* of k */
    const void *x, *y_in;        /* image, output side */
    const float *w, *b;
    void *y, *pre;
    agglo_act act;
    bool accumulate;
    int64_t block, n_blocks; /* image rows per task; blocks per image, or blocks of m */
    float *partial;
    float *d_w;
} conv_work;

static size_t floats(int64_t n)
{
    return (size_t)n * sizeof(float);
}

/* Weights as floats: where they stand, or converted into shared scratch, which has `ahead` floats in front of them. */
typedef struct convert_work {
    float *dst;
    const void *src;
    agglo_dtype dtype;
    int64_t n;
} convert_work;

static void convert_piece(void *context, int64_t index, int worker)
{
    const convert_work *job = context;
    int64_t first = index * 65536;

    (void)worker;
    agglo_cpu_load(job->dst + first, job->src, job->dtype, first, agglo_min(65536, job->n - first));
}

static const float *as_floats(agglo_backend *be, const agglo_tensor *t, float *shared)
{
    convert_work job = {shared, t->data, t->dtype, agglo_tensor_count(t)};

    if (t->dtype == AGGLO_F32) {
        return t->data;
    }
    agglo_pool_for(be->pool, agglo_ceil_div(job.n, 65536), convert_piece, &job);
    return shared;
}

/* ---- laying windows out ---- */

/* out[i][j] = element k0 + j of the window of output pixel m0 + i, zeros outside the image. */
static void lay_out(const agglo_conv_shape *s, const void *x, agglo_dtype dtype, int64_t m0, int64_t m, int64_t k0,
                    int64_t k, float *out)
{
    int64_t line = s->kw * s->c; /* of a window's row */

    for (int64_t i = 0; i < m; i++) {
        int64_t pixel = m0 + i, ox = pixel % s->ow, oy = pixel / s->ow % s->oh, image = pixel / (s->ow * s->oh);
        int64_t ix = ox * s->stride_w - s->pad_w;
        /* columns of a window's row that lie in the image */
        int64_t left = ix < 0 ? agglo_min(-ix * s->c, line) : 0;
        int64_t right = ix + s->kw > s->w ? (s->w - ix) * s->c : line;

        right = right < left ? left : right;
        for (int64_t at = k0; at < k0 + k;) {
            int64_t ky = at / line, from = at - ky * line, to = agglo_min(line, from + k0 + k - at);
            int64_t iy = oy * s->stride_h - s->pad_h + ky;
            bool inside = iy >= 0 && iy < s->h;
            int64_t a = inside ? left : line, b = inside ? right : line;

            a = a < from ? from : agglo_min(a, to);
            b = b < a ? a : agglo_min(b, to);
            for (int64_t j = from; j < a; j++) {
                *out++ = 0.0f;
            }
            if (b > a) {
                agglo_cpu_load(out, x, dtype, ((image * s->h + iy) * s->w + ix) * s->c + a, b - a);
                out += b - a;
            }
            for (int64_t j = b; j < to; j++) {
                *out++ = 0.0f;
            }
            at += to - from;
        }
    }
}

/* One window is one pixel, in order: laying out would copy. */
static bool pointwise(const agglo_conv_shape *s)
{
    return s->kh == 1 && s->kw == 1 && s->stride_h == 1 && s->stride_w == 1 && !s->depthwise;
}

/* ---- gather ---- */

static void finish_row(const conv_work *job, float *row, int64_t n, const float *b, int64_t at)
{
    if (job->pre != NULL) {
        AGGLO_CPU_NAME(bias_act)(AGGLO_ACT_NONE, n, row, b, NULL, row);
        agglo_cpu_store(job->pre, job->dtype, at, n, false, row);
        b = NULL;
    }
    if (b != NULL || job->act != AGGLO_ACT_NONE) {
        AGGLO_CPU_NAME(bias_act)(job->act, n, row, b, NULL, row);
    }
    agglo_cpu_store(job->y, job->dtype, at, n, job->accumulate && job->dtype != AGGLO_F32, row);
}

static void gather_tile(void *context, int64_t index, int worker)
{
    const conv_work *job = context;
    const agglo_conv_shape *s = job->s;
    int64_t m0 = index / job->n_n * job->tile_m, n0 = index % job->n_n * job->tile_n;
    int64_t m = agglo_min(job->tile_m, job->m - m0), n = agglo_min(job->tile_n, s->o - n0);
    bool direct = job->dtype == AGGLO_F32;
    float *laid = agglo_cpu_worker(job->be, worker);
    float *out = direct ? (float *)job->y + m0 * s->o + n0 : laid + job->tile_m * job->piece;
    int64_t ldo = direct ? s->o : job->tile_n;

    for (int64_t k0 = 0; k0 < job->k; k0 += job->piece) {
        int64_t k = agglo_min(job->piece, job->k - k0);
        const float *a = laid;

        if (direct && pointwise(s)) {
            a = (const float *)job->x + m0 * job->k;
        } else {
            lay_out(s, job->x, job->dtype, m0, m, k0, k, laid);
        }
        agglo_cpu_sgemm(false, true, m, n, k, 1.0f, a, k, job->w + n0 * job->k + k0, job->k,
                        k0 > 0 || (direct && job->accumulate) ? 1.0f : 0.0f, out, ldo);
    }
    if (!direct || job->b != NULL || job->pre != NULL || job->act != AGGLO_ACT_NONE) {
        for (int64_t i = 0; i < m; i++) {
            finish_row(job, out + i * ldo, n, job->b == NULL ? NULL : job->b + n0, (m0 + i) * s->o + n0);
        }
    }
}

/* By oneDNN, a band of an image per task; bias and activation while it is in cache. */
typedef struct planned_work {
    const conv_work *job;
    agglo_cpu_conv_plan *plan;
    const void *packed;
} planned_work;

static void planned_band(void *context, int64_t index, int worker)
{
    const planned_work *work = context;
    const conv_work *job = work->job;
    const agglo_conv_shape *s = job->s;
    int64_t n_bands = agglo_cpu_conv_bands(work->plan), image = index / n_bands, first, rows;
    float *y = (float *)job->y + image * s->oh * s->ow * s->o;

    agglo_cpu_conv_band(job->be, work->plan, index % n_bands, worker,
                        (const float *)job->x + image * s->h * s->w * s->c, work->packed,
                        agglo_cpu_worker(job->be, worker), y, &first, &rows);
    if (job->b != NULL || job->pre != NULL || job->act != AGGLO_ACT_NONE) {
        for (int64_t i = first * s->ow; i < (first + rows) * s->ow; i++) {
            finish_row(job, y + i * s->o, s->o, job->b, (image * s->oh * s->ow + i) * s->o);
        }
    }
}

/* Whether it was done. Small maps do not pay for packing the weights. */
static bool conv_gather_planned(conv_work *job, const agglo_tensor *w)
{
    const agglo_conv_shape *s = job->s;
    planned_work work = {job, NULL, NULL};
    size_t packed_bytes, scratch_bytes;

    if (job->dtype != AGGLO_F32 || job->accumulate || pointwise(s) || s->oh * s->ow < PLANNED_PIXELS) {
        return false;
    }
    work.plan = agglo_cpu_conv_plan_of(job->be, s);
    if (work.plan == NULL) {
        return false;
    }
    agglo_cpu_conv_sizes(work.plan, &packed_bytes, &scratch_bytes);
    if (!agglo_cpu_reserve(job->be, packed_bytes, scratch_bytes)) {
        return true;
    }
    work.packed = agglo_cpu_shared(job->be);
    agglo_cpu_conv_pack(job->be, work.plan, w->data, agglo_cpu_shared(job->be));
    agglo_pool_for(job->be->pool, s->batch * agglo_cpu_conv_bands(work.plan), planned_band, &work);
    return true;
}

static void conv_gather_dense(conv_work *job, const agglo_tensor *w)
{
    const agglo_conv_shape *s = job->s;
    int64_t n_m;

    job->tile_m = agglo_min(job->m, TILE_ROWS);
    n_m = agglo_ceil_div(job->m, job->tile_m);
    job->tile_m = agglo_ceil_div(job->m, n_m); /* even tiles */
    job->n_n = agglo_min(agglo_ceil_div(MIN_TASKS, n_m), agglo_ceil_div(s->o, TILE_COLS));
    job->tile_n = agglo_ceil_div(agglo_ceil_div(s->o, job->n_n), 16) * 16;
    job->n_n = agglo_ceil_div(s->o, job->tile_n);
    job->piece = PATCH_FLOATS / job->tile_m;
    job->piece = pointwise(s) && job->dtype == AGGLO_F32 ? job->k : agglo_min(job->k, job->piece);
    if (!agglo_cpu_reserve(job->be, w->dtype == AGGLO_F32 ? 0 : floats(agglo_tensor_count(w)),
                           floats(job->tile_m * (job->piece + job->tile_n)))) {
        return;
    }
    job->w = as_floats(job->be, w, agglo_cpu_shared(job->be));
    agglo_pool_for(job->be->pool, n_m * job->n_n, gather_tile, job);
}

/* ---- scatter ---- */

/* Add laid-out windows of output pixels m0.. to the image rows [row, row_end) of image `image`; kernel rows [ky0, ky1) of each. */
static void add_windows(const agglo_conv_shape *s, const float *laid, int64_t m0, int64_t m, int64_t ky0, int64_t ky1,
                        int64_t row, int64_t row_end, float *block)
{
    int64_t line = s->kw * s->c;

    for (int64_t i = 0; i < m; i++) {
        int64_t ox = (m0 + i) % s->ow, oy = (m0 + i) / s->ow % s->oh, ix = ox * s->stride_w - s->pad_w;
        int64_t left = ix < 0 ? agglo_min(-ix * s->c, line) : 0;
        int64_t right = ix + s->kw > s->w ? (s->w - ix) * s->c : line;

        for (int64_t ky = ky0; ky < ky1; ky++, laid += line) {
            int64_t iy = oy * s->stride_h - s->pad_h + ky;
            int64_t to = ((iy - row) * s->w + ix) * s->c;

            if (iy < row || iy >= row_end) {
                continue;
            }
#pragma omp simd
            for (int64_t j = left; j < right; j++) {
                block[to + j] += laid[j];
            }
        }
    }
}

static void scatter_block(void *context, int64_t index, int worker)
{
    const conv_work *job = context;
    const agglo_conv_shape *s = job->s;
    int64_t image = index / job->n_blocks, row = index % job->n_blocks * job->block;
    int64_t row_end = agglo_min(row + job->block, s->h), n = (row_end - row) * s->w * s->c;
    int64_t at = (image * s->h + row) * s->w * s->c; /* of the block in the image side */
    /* output rows whose windows reach into the block */
    int64_t oy0 = row + s->pad_h - s->kh + 1, oy1 = (row_end - 1 + s->pad_h) / s->stride_h + 1;
    float *laid = agglo_cpu_worker(job->be, worker), *in = laid + job->tile_m * job->piece * s->kw * s->c;
    float *block = job->dtype == AGGLO_F32 ? (float *)job->y + at : in + job->tile_m * s->o;
    int64_t end;

    oy0 = oy0 <= 0 ? 0 : agglo_ceil_div(oy0, s->stride_h);
    oy1 = agglo_min(oy1, s->oh);
    end = (image * s->oh + oy1) * s->ow;
    if (!job->accumulate) {
        memset(block, 0, floats(n));
    } else if (job->dtype != AGGLO_F32) {
        agglo_cpu_load(block, job->y, job->dtype, at, n);
    }
    for (int64_t m0 = (image * s->oh + oy0) * s->ow; m0 < end; m0 += job->tile_m) {
        int64_t m = agglo_min(job->tile_m, end - m0);
        const float *y = agglo_cpu_row(in, job->y_in, job->dtype, m0 * s->o, m * s->o);

        for (int64_t ky = 0; ky < s->kh; ky += job->piece) {
            int64_t n_ky = agglo_min(job->piece, s->kh - ky), k = n_ky * s->kw * s->c;

            agglo_cpu_sgemm(false, false, m, k, s->o, 1.0f, y, s->o, job->w + ky * s->kw * s->c, job->k, 0.0f, laid, k);
            add_windows(s, laid, m0, m, ky, ky + n_ky, row, row_end, block);
        }
    }
    if (job->b != NULL || job->pre != NULL || job->act != AGGLO_ACT_NONE) {
        conv_work out = *job;

        out.accumulate = false;
        for (int64_t i = 0; i < n; i += s->c) {
            finish_row(&out, block + i, s->c, job->b, at + i);
        }
    } else if (job->dtype != AGGLO_F32) {
        agglo_cpu_store(job->y, job->dtype, at, n, false, block);
    }
}

static void conv_scatter_dense(conv_work *job, const agglo_tensor *w)
{
    const agglo_conv_shape *s = job->s;
    int64_t wanted = agglo_ceil_div(MIN_TASKS, s->batch), least = 4 * s->kh, most = BLOCK_FLOATS / (s->w * s->c);

    job->block = agglo_ceil_div(s->h, wanted);
    job->block = job->block > most ? most : job->block;
    job->block = job->block < least ? least : job->block;
    job->block = agglo_min(job->block, s->h);
    job->n_blocks = agglo_ceil_div(s->h, job->block);
    job->tile_m = agglo_min(TILE_ROWS, s->oh * s->ow);
    job->piece = PATCH_FLOATS / (job->tile_m * s->kw * s->c); /* kernel rows */
    job->piece = job->piece < 1 ? 1 : agglo_min(job->piece, s->kh);
    if (!agglo_cpu_reserve(job->be, w->dtype == AGGLO_F32 ? 0 : floats(agglo_tensor_count(w)),
                           floats(job->tile_m * (job->piece * s->kw * s->c + s->o) +
                                  (job->dtype == AGGLO_F32 ? 0 : job->block * s->w * s->c)))) {
        return;
    }
    job->w = as_floats(job->be, w, agglo_cpu_shared(job->be));
    agglo_pool_for(job->be->pool, s->batch * job->n_blocks, scatter_block, job);
}

/* ---- sums over pixels ---- */

typedef struct sums_work {
    agglo_backend *be;
    const void *x;
    agglo_dtype dtype;
    int64_t m, c, block, n_blocks;
    double *partial; /* [block][c] */
    float *out;
} sums_work;

static void sum_block(void *context, int64_t index, int worker)
{
    const sums_work *job = context;
    double *restrict sums = job->partial + index * job->c;
    float *restrict some = agglo_cpu_worker(job->be, worker), *tmp = some + job->c;
    int64_t end = agglo_min((index + 1) * job->block, job->m);

    for (int64_t j = 0; j < job->c; j++) {
        sums[j] = 0.0;
    }
    for (int64_t i0 = index * job->block; i0 < end; i0 += 64) {
        memset(some, 0, floats(job->c));
        for (int64_t i = i0; i < agglo_min(i0 + 64, end); i++) {
            const float *row = agglo_cpu_row(tmp, job->x, job->dtype, i * job->c, job->c);

#pragma omp simd
            for (int64_t j = 0; j < job->c; j++) {
                some[j] += row[j];
            }
        }
        for (int64_t j = 0; j < job->c; j++) {
            sums[j] += (double)some[j];
        }
    }
}

/* out[c] += sums over the rows of x[m,c] */
static void add_sums(agglo_backend *be, const agglo_tensor *x, float *out)
{
    int64_t c = x->shape[x->rank - 1], m = agglo_tensor_count(x) / c;
    sums_work job = {.be = be, .x = x->data, .dtype = x->dtype, .m = m, .c = c, .out = out};

    job.n_blocks = agglo_min(MIN_TASKS, agglo_ceil_div(m, 256));
    job.block = agglo_ceil_div(m, job.n_blocks);
    job.n_blocks = agglo_ceil_div(m, job.block);
    if (!agglo_cpu_reserve(be, (size_t)(job.n_blocks * c) * sizeof(double), floats(2 * c))) {
        return;
    }
    job.partial = agglo_cpu_shared(be);
    agglo_pool_for(be->pool, job.n_blocks, sum_block, &job);
    for (int64_t j = 0; j < c; j++) {
        double sum = (double)out[j];

        for (int64_t i = 0; i < job.n_blocks; i++) {
            sum += job.partial[i * c + j];
        }
        out[j] = (float)sum;
    }
}

/* ---- weight ---- */

/* packed[j][i] = y[m0 + i][n0 + j] */
static void transpose(const conv_work *job, int64_t m0, int64_t m, int64_t n0, int64_t n, float *packed)
{
    int64_t o = job->s->o;

    for (int64_t i0 = 0; i0 < m; i0 += 16) {
        int64_t i1 = agglo_min(i0 + 16, m);

        if (job->dtype == AGGLO_F32) {
            const float *y = (const float *)job->y_in + m0 * o + n0;

            for (int64_t j = 0; j < n; j++) {
                for (int64_t i = i0; i < i1; i++) {
                    packed[j * PACKED_STRIDE + i] = y[i * o + j];
                }
            }
        } else {
            const uint16_t *y = (const uint16_t *)job->y_in + m0 * o + n0;

            for (int64_t j = 0; j < n; j++) {
                for (int64_t i = i0; i < i1; i++) {
                    packed[j * PACKED_STRIDE + i] = agglo_bf16_to_f32(y[i * o + j]);
                }
            }
        }
    }
}

/* Tile (index % tiles) of d_w over block (index / tiles) of the pixels. */
static void weight_tile(void *context, int64_t index, int worker)
{
    const conv_work *job = context;
    const agglo_conv_shape *s = job->s;
    int64_t tiles = agglo_ceil_div(s->o, job->tile_m) * job->n_n, block = index / tiles, tile = index % tiles;
    int64_t o0 = tile / job->n_n * job->tile_m, k0 = tile % job->n_n * job->tile_n;
    int64_t o = agglo_min(job->tile_m, s->o - o0), k = agglo_min(job->tile_n, job->k - k0);
    int64_t end = agglo_min((block + 1) * job->block, job->m);
    float *packed = agglo_cpu_worker(job->be, worker), *laid = packed + job->tile_m * PACKED_STRIDE;
    float *to = job->n_blocks == 1 ? job->d_w : job->partial + block * s->o * job->k;

    for (int64_t m0 = block * job->block; m0 < end; m0 += TILE_ROWS) {
        int64_t m = agglo_min(TILE_ROWS, end - m0), ldl = k;
        const float *rows = laid;

        transpose(job, m0, m, o0, o, packed);
        if (job->dtype == AGGLO_F32 && pointwise(s)) {
            rows = (const float *)job->x + m0 * job->k + k0;
            ldl = job->k;
        } else {
            lay_out(s, job->x, job->dtype, m0, m, k0, k, laid);
        }
        agglo_cpu_sgemm(false, false, o, k, m, 1.0f, packed, PACKED_STRIDE, rows, ldl,
                        job->n_blocks > 1 && m0 == block * job->block ? 0.0f : 1.0f, to + o0 * job->k + k0, job->k);
    }
}

/* d_w += partial[block], in order of blocks */
static void weight_sum(void *context, int64_t index, int worker)
{
    const conv_work *job = context;
    int64_t n = job->s->o * job->k, end = agglo_min((index + 1) * COLUMN_FLOATS, n);

    (void)worker;
    for (int64_t block = 0; block < job->n_blocks; block++) {
        const float *from = job->partial + block * n;

#pragma omp simd
        for (int64_t i = index * COLUMN_FLOATS; i < end; i++) {
            job->d_w[i] += from[i];
        }
    }
}

static void conv_weight_dense(conv_work *job)
{
    const agglo_conv_shape *s = job->s;
    int64_t n_m = agglo_ceil_div(s->o, WEIGHT_ROWS), tiles;

    job->tile_m = agglo_ceil_div(s->o, n_m);
    job->n_n = agglo_min(agglo_ceil_div(MIN_TASKS, n_m), agglo_ceil_div(job->k, TILE_COLS));
    job->n_n = job->n_n * WEIGHT_COLS < job->k ? agglo_ceil_div(job->k, WEIGHT_COLS) : job->n_n;
    job->tile_n = agglo_ceil_div(agglo_ceil_div(job->k, job->n_n), 16) * 16;
    job->n_n = agglo_ceil_div(job->k, job->tile_n);
    tiles = agglo_ceil_div(s->o, job->tile_m) * job->n_n;
    job->n_blocks = agglo_min(agglo_ceil_div(MIN_TASKS, tiles), agglo_ceil_div(job->m, LEAST_BLOCK));
    job->block = agglo_ceil_div(agglo_ceil_div(job->m, job->n_blocks), TILE_ROWS) * TILE_ROWS;
    job->n_blocks = agglo_ceil_div(job->m, job->block);
    if (!agglo_cpu_reserve(job->be, job->n_blocks == 1 ? 0 : floats(job->n_blocks * s->o * job->k),
                           floats(job->tile_m * PACKED_STRIDE + TILE_ROWS * job->tile_n))) {
        return;
    }
    job->partial = agglo_cpu_shared(job->be);
    agglo_pool_for(job->be->pool, tiles * job->n_blocks, weight_tile, job);
    if (job->n_blocks > 1) {
        agglo_pool_for(job->be->pool, agglo_ceil_div(s->o * job->k, COLUMN_FLOATS), weight_sum, job);
    }
}

/* ---- depthwise: w[c,kh,kw] is turned to [kh kw,c] in shared scratch, so that channels are vectors ---- */

static void turn_weights(const conv_work *job, const agglo_tensor *w, float *turned)
{
    int64_t taps = job->s->kh * job->s->kw;

    for (int64_t c = 0; c < job->s->c; c++) {
        for (int64_t t = 0; t < taps; t++) {
            agglo_cpu_load(turned + t * job->s->c + c, w->data, w->dtype, c * taps + t, 1);
        }
    }
}

static void add_products(float *restrict sum, const float *x, const float *w, int64_t c)
{
#pragma omp simd
    for (int64_t j = 0; j < c; j++) {
        sum[j] += x[j] * w[j];
    }
}

/* One row of output pixels per task; the image rows under it are floats in `lines`. */
static void depthwise_gather_row(void *context, int64_t index, int worker)
{
    const conv_work *job = context;
    const agglo_conv_shape *s = job->s;
    int64_t image = index / s->oh, oy = index % s->oh, c = s->c;
    float *sum = agglo_cpu_worker(job->be, worker), *lines = sum + c;

    for (int64_t ky = 0; job->dtype != AGGLO_F32 && ky < s->kh; ky++) {
        int64_t iy = oy * s->stride_h - s->pad_h + ky;

        if (iy >= 0 && iy < s->h) {
            agglo_cpu_load(lines + ky * s->w * c, job->x, job->dtype, (image * s->h + iy) * s->w * c, s->w * c);
        }
    }
    for (int64_t ox = 0; ox < s->ow; ox++) {
        memset(sum, 0, floats(c));
        for (int64_t ky = 0; ky < s->kh; ky++) {
            int64_t iy = oy * s->stride_h - s->pad_h + ky;
            const float *line = job->dtype == AGGLO_F32 ? (const float *)job->x + (image * s->h + iy) * s->w * c
                                                        : lines + ky * s->w * c;

            if (iy < 0 || iy >= s->h) {
                continue;
            }
            for (int64_t kx = 0; kx < s->kw; kx++) {
                int64_t ix = ox * s->stride_w - s->pad_w + kx;

                if (ix >= 0 && ix < s->w) {
                    add_products(sum, line + ix * c, job->w + (ky * s->kw + kx) * c, c);
                }
            }
        }
        if (job->accumulate) {
            agglo_cpu_store(job->y, job->dtype, (index * s->ow + ox) * c, c, true, sum);
        } else {
            finish_row(job, sum, c, job->b, (index * s->ow + ox) * c);
        }
    }
}

/* One row of image pixels per task: each pixel sums over the windows that hold it. */
static void depthwise_scatter_row(void *context, int64_t index, int worker)
{
    const conv_work *job = context;
    const agglo_conv_shape *s = job->s;
    int64_t image = index / s->h, iy = index % s->h, c = s->c;
    float *sum = agglo_cpu_worker(job->be, worker), *tmp = sum + c;

    for (int64_t ix = 0; ix < s->w; ix++) {
        memset(sum, 0, floats(c));
        for (int64_t ky = 0; ky < s->kh; ky++) {
            int64_t down = iy + s->pad_h - ky, oy = down / s->stride_h;

            if (down < 0 || down % s->stride_h != 0 || oy >= s->oh) {
                continue;
            }
            for (int64_t kx = 0; kx < s->kw; kx++) {
                int64_t across = ix + s->pad_w - kx, ox = across / s->stride_w;

                if (across >= 0 && across % s->stride_w == 0 && ox < s->ow) {
                    add_products(sum,
                                 agglo_cpu_row(tmp, job->y_in, job->dtype, ((image * s->oh + oy) * s->ow + ox) * c, c),
                                 job->w + (ky * s->kw + kx) * c, c);
                }
            }
        }
        agglo_cpu_store(job->y, job->dtype, (index * s->w + ix) * c, c, job->accumulate, sum);
    }
}

/* partial[block][tap][c]: blocks of output rows. */
static void depthwise_weight_block(void *context, int64_t index, int worker)
{
    const conv_work *job = context;
    const agglo_conv_shape *s = job->s;
    int64_t c = s->c, taps = s->kh * s->kw, end = agglo_min((index + 1) * job->block, s->batch * s->oh);
    float *sums = job->partial + index * taps * c, *tmp_y = agglo_cpu_worker(job->be, worker), *tmp_x = tmp_y + c;

    memset(sums, 0, floats(taps * c));
    for (int64_t row = index * job->block; row < end; row++) {
        int64_t image = row / s->oh, oy = row % s->oh;

        for (int64_t ox = 0; ox < s->ow; ox++) {
            const float *d_y = agglo_cpu_row(tmp_y, job->y_in, job->dtype, (row * s->ow + ox) * c, c);

            for (int64_t ky = 0; ky < s->kh; ky++) {
                int64_t iy = oy * s->stride_h - s->pad_h + ky;

                for (int64_t kx = 0; kx < s->kw; kx++) {
                    int64_t ix = ox * s->stride_w - s->pad_w + kx;

                    if (iy >= 0 && iy < s->h && ix >= 0 && ix < s->w) {
                        add_products(sums + (ky * s->kw + kx) * c, d_y,
                                     agglo_cpu_row(tmp_x, job->x, job->dtype, ((image * s->h + iy) * s->w + ix) * c, c),
                                     c);
                    }
                }
            }
        }
    }
}

static void conv_depthwise(conv_work *job, const agglo_tensor *w, bool scatter)
{
    const agglo_conv_shape *s = job->s;
    int64_t taps = s->kh * s->kw;

    if (agglo_cpu_reserve(job->be, floats(taps * s->c), floats(2 * s->c + s->kh * s->w * s->c))) {
        job->w = agglo_cpu_shared(job->be);
        turn_weights(job, w, agglo_cpu_shared(job->be));
        agglo_pool_for(job->be->pool, s->batch * (scatter ? s->h : s->oh),
                       scatter ? depthwise_scatter_row : depthwise_gather_row, job);
    }
}

static void conv_weight_depthwise(conv_work *job)
{
    const agglo_conv_shape *s = job->s;
    int64_t n_rows = s->batch * s->oh, taps = s->kh * s->kw;

    job->n_blocks = agglo_min(n_rows, 4 * MIN_TASKS);
    job->block = agglo_ceil_div(n_rows, job->n_blocks);
    job->n_blocks = agglo_ceil_div(n_rows, job->block);
    if (!agglo_cpu_reserve(job->be, floats(job->n_blocks * taps * s->c), floats(2 * s->c))) {
        return;
    }
    job->partial = agglo_cpu_shared(job->be);
    agglo_pool_for(job->be->pool, job->n_blocks, depthwise_weight_block, job);
    for (int64_t c = 0; c < s->c; c++) {
        for (int64_t t = 0; t < taps; t++) {
            double sum = (double)job->d_w[c * taps + t];

            for (int64_t block = 0; block < job->n_blocks; block++) {
                sum += (double)job->partial[(block * taps + t) * s->c + c];
            }
            job->d_w[c * taps + t] = (float)sum;
        }
    }
}

/* ---- the table ---- */

static conv_work work_of(agglo_backend *be, const agglo_conv_shape *s, agglo_dtype dtype)
{
    conv_work job = {.be = be, .s = s, .dtype = dtype};

    job.m = s->batch * s->oh * s->ow;
    job.k = s->kh * s->kw * (s->depthwise ? 1 : s->c);
    return job;
}

static void conv_gather(agglo_backend *be, const agglo_conv_shape *s, const agglo_tensor *x, const agglo_tensor *w,
                        const agglo_tensor *b, agglo_act act, bool accumulate, agglo_tensor *pre, agglo_tensor *y)
{
    conv_work job = work_of(be, s, x->dtype);

    job.x = x->data;
    job.b = b == NULL ? NULL : b->data;
    job.act = act;
    job.accumulate = accumulate;
    job.pre = pre == NULL ? NULL : pre->data;
    job.y = y->data;
    if (s->depthwise) {
        conv_depthwise(&job, w, false);
    } else if (!conv_gather_planned(&job, w)) {
        conv_gather_dense(&job, w);
    }
}

static void conv_scatter(agglo_backend *be, const agglo_conv_shape *s, const agglo_tensor *y, const agglo_tensor *w,
                         const agglo_tensor *b, agglo_act act, bool accumulate, agglo_tensor *pre, agglo_tensor *x)
{
    conv_work job = work_of(be, s, y->dtype);

    job.y_in = y->data;
    job.b = b == NULL ? NULL : b->data;
    job.act = act;
    job.accumulate = accumulate;
    job.pre = pre == NULL ? NULL : pre->data;
    job.y = x->data;
    if (s->depthwise) {
        conv_depthwise(&job, w, true);
    } else {
        conv_scatter_dense(&job, w);
    }
}

static void conv_weight(agglo_backend *be, const agglo_conv_shape *s, const agglo_tensor *d_y, const agglo_tensor *x,
                        agglo_tensor *d_w, agglo_tensor *d_b_y, agglo_tensor *d_b_x)
{
    conv_work job = work_of(be, s, x->dtype);

    job.y_in = d_y->data;
    job.x = x->data;
    job.d_w = d_w->data;
    if (s->depthwise) {
        conv_weight_depthwise(&job);
    } else {
        conv_weight_dense(&job);
    }
    if (d_b_y != NULL) {
        add_sums(be, d_y, d_b_y->data);
    }
    if (d_b_x != NULL) {
        add_sums(be, x, d_b_x->data);
    }
}

void AGGLO_CPU_NAME(conv_ops)(agglo_backend_ops *ops)
{
    ops->conv_gather = conv_gather;
    ops->conv_scatter = conv_scatter;
    ops->conv_weight = conv_weight;
}
