/* Convolutions on the CPU: windows of pixels are laid out as rows while the matrix product (gemm.c) packs its left operand; forward ones in F32
 * are oneDNN's own where it has fast code for them (conv_dnnl.c), a band of an image at a time; depthwise ones are loops over channels.
 *
 *     gather     y[m,o] = act(rows(x)[m,k] w[o,k]^T + b), k = (ky, kx, c)
 *     scatter    the same the other way round: a pixel of the image side gathers from the output pixels whose windows hold it. Those are the
 *                windows of a convolution of stride 1 over the output side for each remainder of the coordinates over the strides
 *     weight     d_w[o,k] += y[m,o]^T rows(x)[m,k]                              tile of d_w to a task, and blocks of m where d_w is small
 *
 * A pixel of y and of d_x depends on its own image alone, bit for bit. Tiles, pieces and blocks depend on the shape only.
 */
#include "tensor/cpu/gemm_impl.h"
#include "tensor/cpu/storage_impl.h"

#define TILE_ROWS      256 /* pixels at a time, of the weight gradient */
#define TILE_COLS      128
#define MIN_TASKS      16
#define WEIGHT_ROWS    128
#define WEIGHT_COLS    1536
#define LEAST_BLOCK    2048 /* pixels summed apart, and rows of a block of the weight gradient */
#define PLANNED_PIXELS 100  /* of an output map that oneDNN's own convolution is worth */
#define COLUMN_FLOATS  4096

typedef struct conv_work {
    agglo_backend *be;
    const agglo_conv_shape *s;
    agglo_dtype dtype;
    int64_t m, k;         /* pixels of the output, length of a laid-out window */
    int64_t n;            /* channels of what a product writes */
    const void *x, *y_in; /* image, output side */
    const float *w, *b;
    void *y, *pre;
    agglo_act act;
    bool accumulate, in_place;   /* in_place: sums stand in y */
    int64_t tile_m, tile_n, n_n; /* of the weight gradient: tiles of the task grid; n_n per row of tiles */
    int64_t block, n_blocks;     /* pixels or rows per block */
    float *partial;
    float *d_w;
} conv_work;

static size_t floats(int64_t n)
{
    return (size_t)n * sizeof(float);
}

/* ---- windows as rows ---- */

/* Windows over a map [image, h, w, c], in raster order of the images: window (r, q) of rows x cols begins at pixel (r step_h + y, q step_w + x),
 * zeros outside the map. */
typedef struct windows {
    const void *map;
    agglo_dtype dtype;
    int64_t h, w, c, rows, cols, step_h, step_w, y, x, kh, kw;
} windows;

static windows windows_of(const conv_work *job)
{
    const agglo_conv_shape *s = job->s;

    return (windows){job->x,      job->dtype,  s->h,      s->w,      s->c,  s->oh, s->ow,
                     s->stride_h, s->stride_w, -s->pad_h, -s->pad_w, s->kh, s->kw};
}

/* out[i][j] = element k0 + j of window m0 + i */
static void lay_out(const windows *in, int64_t m0, int64_t m, int64_t k0, int64_t k, float *out)
{
    int64_t line = in->kw * in->c; /* of a window's row */
    int64_t q = m0 % in->cols, r = m0 / in->cols % in->rows, image = m0 / (in->rows * in->cols);

    for (int64_t i = 0; i < m; i++) {
        int64_t iy = r * in->step_h + in->y, ix = q * in->step_w + in->x;
        /* columns of a window's row that lie in the map */
        int64_t left = ix < 0 ? agglo_min(-ix * in->c, line) : 0;
        int64_t right = ix + in->kw > in->w ? (in->w - ix) * in->c : line;
        int64_t at = k0;

        right = right < left ? left : right;
        for (int64_t ky = k0 / line; at < k0 + k; ky++) {
            int64_t from = at - ky * line, to = agglo_min(line, from + k0 + k - at);
            bool inside = iy + ky >= 0 && iy + ky < in->h;
            int64_t a = inside ? left : line, b = inside ? right : line;

            a = a < from ? from : agglo_min(a, to);
            b = b < a ? a : agglo_min(b, to);
            for (int64_t j = from; j < a; j++) {
                *out++ = 0.0f;
            }
            if (b > a) {
                agglo_cpu_load(out, in->map, in->dtype, ((image * in->h + iy + ky) * in->w + ix) * in->c + a, b - a);
                out += b - a;
            }
            for (int64_t j = b; j < to; j++) {
                *out++ = 0.0f;
            }
            at += to - from;
        }
        q++;
        r += q == in->cols;
        q = q == in->cols ? 0 : q;
        image += r == in->rows;
        r = r == in->rows ? 0 : r;
    }
}

/* One window is one pixel, in order: laying out would copy. */
static bool pointwise(const agglo_conv_shape *s)
{
    return s->kh == 1 && s->kw == 1 && s->stride_h == 1 && s->stride_w == 1 && s->pad_h == 0 && s->pad_w == 0;
}

/* ---- gather ---- */

/* A row of n sums, of what is written from element `at` on. */
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
    agglo_cpu_store(job->y, job->dtype, at, n, job->accumulate && !job->in_place, row);
}

static bool finishes(const conv_work *job)
{
    return !job->in_place || job->b != NULL || job->pre != NULL || job->act != AGGLO_ACT_NONE;
}

/* In place where sums are floats and lie as the product makes them. */
static void keep_in_place(conv_work *job, agglo_cpu_gemm *product)
{
    job->in_place = job->dtype == AGGLO_F32;
    if (job->in_place) {
        product->c = job->y;
        product->ldc = product->n;
        product->accumulate = job->accumulate;
    }
}

static void finish_pixels(void *context, int64_t row, int64_t rows, int64_t col, int64_t cols, float *block, int64_t ld)
{
    const conv_work *job = context;

    for (int64_t i = 0; i < rows; i++) {
        finish_row(job, block + i * ld, cols, job->b == NULL ? NULL : job->b + col, (row + i) * job->n + col);
    }
}

static void gather_rows(const void *rows, int64_t first, int64_t n, int64_t k0, int64_t k, float *out)
{
    lay_out(rows, first, n, k0, k, out);
}

static void conv_gather_dense(conv_work *job, const agglo_tensor *w)
{
    windows in = windows_of(job);
    agglo_cpu_gemm product = {.m = job->m,
                              .n = job->s->o,
                              .k = job->k,
                              .a = {job->x, job->dtype, job->k, true},
                              .b = {w->data, w->dtype, job->k, true},
                              .a_rows = pointwise(job->s) ? NULL : gather_rows,
                              .rows = &in,
                              .context = job};

    job->n = job->s->o;
    keep_in_place(job, &product);
    product.finish = finishes(job) ? finish_pixels : NULL;
    AGGLO_CPU_NAME(gemm)(job->be, &product);
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
    if (finishes(job)) {
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
    job->in_place = true;
    work.packed = agglo_cpu_shared(job->be);
    agglo_cpu_conv_pack(job->be, work.plan, w->data, agglo_cpu_shared(job->be));
    agglo_pool_for(job->be->pool, s->batch * agglo_cpu_conv_bands(work.plan), planned_band, &work);
    return true;
}

/* ---- scatter, where windows tile the image: every pixel is an element of one product ---- */

static bool windows_tile(const agglo_conv_shape *s)
{
    return s->kh == s->stride_h && s->kw == s->stride_w && s->pad_h == 0 && s->pad_w == 0 && s->oh * s->kh == s->h &&
           s->ow * s->kw == s->w;
}

/* Columns of the product are (ky, kx, c). */
static void finish_windows(void *context, int64_t row, int64_t rows, int64_t col, int64_t cols, float *block,
                           int64_t ld)
{
    const conv_work *job = context;
    const agglo_conv_shape *s = job->s;

    for (int64_t i = 0; i < rows; i++) {
        int64_t ox = (row + i) % s->ow, oy = (row + i) / s->ow; /* of all images, one above the other */

        for (int64_t j = 0; j < cols;) {
            int64_t tap = (col + j) / s->c, c = (col + j) % s->c, n = agglo_min(s->c - c, cols - j);
            int64_t pixel = (oy * s->kh + tap / s->kw) * s->w + ox * s->kw + tap % s->kw;

            finish_row(job, block + i * ld + j, n, job->b == NULL ? NULL : job->b + c, pixel * s->c + c);
            j += n;
        }
    }
}

static void conv_scatter_tiled(conv_work *job, const agglo_tensor *w)
{
    agglo_cpu_gemm product = {.m = job->m,
                              .n = job->k,
                              .k = job->s->o,
                              .a = {job->y_in, job->dtype, job->s->o, true},
                              .b = {w->data, w->dtype, job->k, false},
                              .finish = finish_windows,
                              .context = job};

    AGGLO_CPU_NAME(gemm)(job->be, &product);
}

/* ---- scatter otherwise: a pixel of the image side gathers from the windows that hold it ---- */

/* Pixels whose coordinates leave (py, px) over the strides, which the same taps reach. Their windows lie over the output side; a
 * window's rows are the taps ky_last, ky_last - stride_h, ... */
typedef struct phase {
    const conv_work *job;
    windows in;
    int64_t py, px, ky_last, kx_last;
    float *packed; /* weights [(tap, o), c] as a packed operand */
} phase;

/* Taps k < n with k = (p + pad) mod stride: how many, and the last. */
static int64_t taps_of(int64_t p, int64_t pad, int64_t stride, int64_t n, int64_t *last)
{
    int64_t first = (p + pad) % stride, count = first < n ? agglo_ceil_div(n - first, stride) : 0;

    *last = first + (count - 1) * stride;
    return count;
}

static phase phase_of(const conv_work *job, int64_t index)
{
    const agglo_conv_shape *s = job->s;
    phase f = {.job = job, .py = index / s->stride_w, .px = index % s->stride_w};

    f.in = (windows){job->y_in, job->dtype, s->oh, s->ow, s->o, 0, 0, 1, 1, 0, 0, 0, 0};
    f.in.rows = f.py < s->h ? agglo_ceil_div(s->h - f.py, s->stride_h) : 0;
    f.in.cols = f.px < s->w ? agglo_ceil_div(s->w - f.px, s->stride_w) : 0;
    f.in.kh = taps_of(f.py, s->pad_h, s->stride_h, s->kh, &f.ky_last);
    f.in.kw = taps_of(f.px, s->pad_w, s->stride_w, s->kw, &f.kx_last);
    f.in.y = (f.py + s->pad_h - f.ky_last) / s->stride_h;
    f.in.x = (f.px + s->pad_w - f.kx_last) / s->stride_w;
    return f;
}

static void finish_phase(void *context, int64_t row, int64_t rows, int64_t col, int64_t cols, float *block, int64_t ld)
{
    const phase *f = context;
    const conv_work *job = f->job;
    const agglo_conv_shape *s = job->s;

    for (int64_t i = 0; i < rows; i++) {
        int64_t q = (row + i) % f->in.cols, r = (row + i) / f->in.cols % f->in.rows;
        int64_t image = (row + i) / f->in.cols / f->in.rows;
        int64_t pixel = (image * s->h + f->py + r * s->stride_h) * s->w + f->px + q * s->stride_w;

        finish_row(job, block + i * ld, cols, job->b == NULL ? NULL : job->b + col, pixel * s->c + col);
    }
}

/* The same cut with and without f->packed, for the scratch to be sized by. */
static agglo_cpu_gemm phase_product(conv_work *job, phase *f)
{
    const agglo_conv_shape *s = job->s;
    agglo_cpu_gemm product = {.m = s->batch * f->in.rows * f->in.cols,
                              .n = s->c,
                              .k = f->in.kh * f->in.kw * s->o,
                              .a = {job->y_in, job->dtype, s->o, true},
                              .a_rows = pointwise(s) ? NULL : gather_rows,
                              .rows = &f->in,
                              .b_packed = true,
                              .packed = f->packed,
                              .context = f};

    if (s->stride_h == 1 && s->stride_w == 1) {
        keep_in_place(job, &product);
    }
    product.finish = finishes(job) ? finish_phase : NULL;
    return product;
}

/* Packs rows `index` of the weights [o, (ky, kx, c)] for all phases: a row is read as it stands. */
typedef struct pack_work {
    const conv_work *job;
    const agglo_tensor *w;
    const phase *phases;
} pack_work;

static void pack_weights(void *context, int64_t index, int worker)
{
    const pack_work *work = context;
    const agglo_conv_shape *s = work->job->s;
    int64_t o = index;

    (void)worker;
    for (int64_t tap = 0; tap < s->kh * s->kw; tap++) {
        int64_t ky = tap / s->kw, kx = tap % s->kw, at = (o * s->kh * s->kw + tap) * s->c;
        int64_t py = ((ky - s->pad_h) % s->stride_h + s->stride_h) % s->stride_h;
        int64_t px = ((kx - s->pad_w) % s->stride_w + s->stride_w) % s->stride_w;
        const phase *f = &work->phases[py * s->stride_w + px];
        int64_t k = f->in.kh * f->in.kw * s->o;
        int64_t row = ((f->ky_last - ky) / s->stride_h * f->in.kw + (f->kx_last - kx) / s->stride_w) * s->o + o;

        for (int64_t c = 0; c < s->c; c += GEMM_COLS) {
            float *to = f->packed + c * k + row * GEMM_COLS;
            int64_t n = agglo_min(GEMM_COLS, s->c - c);

            agglo_cpu_load(to, work->w->data, work->w->dtype, at + c, n);
            for (; n < GEMM_COLS; n++) {
                to[n] = 0.0f;
            }
        }
    }
}

/* Of a phase that no tap reaches. */
static void finish_unreached(phase *f, int64_t m, float *row)
{
    for (int64_t i = 0; i < m; i++) {
        memset(row, 0, floats(f->job->s->c));
        finish_phase(f, i, 1, 0, f->job->s->c, row, f->job->s->c);
    }
}

static void conv_scatter_dense(conv_work *job, const agglo_tensor *w)
{
    const agglo_conv_shape *s = job->s;
    int64_t n_phases = s->stride_h * s->stride_w, worker = s->c,
            total = agglo_ceil_div(n_phases * (int64_t)sizeof(phase), 4);
    pack_work pack = {job, w, NULL};
    phase *phases;

    total = agglo_ceil_div(total, 16) * 16;
    for (int64_t i = 0; i < n_phases; i++) {
        phase f = phase_of(job, i);
        agglo_cpu_gemm product = phase_product(job, &f);
        int64_t needed = product.m * product.k > 0 ? AGGLO_CPU_NAME(gemm_worker_floats)(&product) : 0;

        worker = needed > worker ? needed : worker;
        total += AGGLO_CPU_NAME(gemm_packed_floats)(s->c, product.k);
    }
    if (!agglo_cpu_reserve(job->be, floats(total), floats(worker))) {
        return;
    }
    phases = agglo_cpu_shared(job->be);
    total = agglo_ceil_div(agglo_ceil_div(n_phases * (int64_t)sizeof(phase), 4), 16) * 16;
    for (int64_t i = 0; i < n_phases; i++) {
        phases[i] = phase_of(job, i);
        phases[i].packed = (float *)agglo_cpu_shared(job->be) + total;
        total += AGGLO_CPU_NAME(gemm_packed_floats)(s->c, phases[i].in.kh * phases[i].in.kw * s->o);
    }
    pack.phases = phases;
    agglo_pool_for(job->be->pool, s->o, pack_weights, &pack);
    for (int64_t i = 0; i < n_phases; i++) {
        agglo_cpu_gemm product = phase_product(job, &phases[i]);

        if (product.m > 0 && product.k > 0) {
            AGGLO_CPU_NAME(gemm)(job->be, &product);
        } else {
            finish_unreached(&phases[i], product.m, agglo_cpu_worker(job->be, 0));
        }
    }
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

/* Tile (index % tiles) of d_w over block (index / tiles) of the pixels. */
static void weight_tile(void *context, int64_t index, int worker)
{
    const conv_work *job = context;
    const agglo_conv_shape *s = job->s;
    const windows in = windows_of(job);
    const agglo_cpu_operand y = {job->y_in, job->dtype, s->o, false};
    int64_t tiles = agglo_ceil_div(s->o, job->tile_m) * job->n_n, block = index / tiles, tile = index % tiles;
    int64_t o0 = tile / job->n_n * job->tile_m, k0 = tile % job->n_n * job->tile_n;
    int64_t o = agglo_min(job->tile_m, s->o - o0), k = agglo_min(job->tile_n, job->k - k0);
    int64_t end = agglo_min((block + 1) * job->block, job->m);
    float *packed = agglo_cpu_worker(job->be, worker), *laid = packed + job->tile_m * TILE_ROWS,
          *panel = laid + job->tile_n * TILE_ROWS;
    float *to = (job->n_blocks == 1 ? job->d_w : job->partial + block * s->o * job->k) + o0 * job->k + k0;

    for (int64_t m0 = block * job->block; m0 < end; m0 += TILE_ROWS) {
        int64_t m = agglo_min(TILE_ROWS, end - m0);
        bool first = job->n_blocks > 1 && m0 == block * job->block;
        agglo_cpu_operand rows = {laid, AGGLO_F32, k, false};

        for (int64_t i = 0; i < o; i += GEMM_ROWS) {
            gemm_pack(GEMM_ROWS, &y, o0 + i, agglo_min(GEMM_ROWS, o - i), m0, m, packed + i * m);
        }
        if (job->dtype == AGGLO_F32 && pointwise(s)) {
            rows = (agglo_cpu_operand){(const float *)job->x + m0 * job->k + k0, AGGLO_F32, job->k, false};
        } else {
            lay_out(&in, m0, m, k0, k, laid);
        }
        for (int64_t j = 0; j < k; j += GEMM_COLS) {
            int64_t n = agglo_min(GEMM_COLS, k - j);

            gemm_pack(GEMM_COLS, &rows, j, n, 0, m, panel);
            AGGLO_CPU_NAME(gemm_panels)(o, n, m, packed, panel, to + j, job->k, !first);
        }
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

    job->tile_m = agglo_ceil_div(agglo_ceil_div(s->o, n_m), GEMM_ROWS) * GEMM_ROWS;
    job->n_n = agglo_min(agglo_ceil_div(MIN_TASKS, n_m), agglo_ceil_div(job->k, TILE_COLS));
    job->n_n = job->n_n * WEIGHT_COLS < job->k ? agglo_ceil_div(job->k, WEIGHT_COLS) : job->n_n;
    job->tile_n = agglo_ceil_div(agglo_ceil_div(job->k, job->n_n), GEMM_COLS) * GEMM_COLS;
    job->n_n = agglo_ceil_div(job->k, job->tile_n);
    tiles = agglo_ceil_div(s->o, job->tile_m) * job->n_n;
    job->n_blocks = agglo_min(agglo_ceil_div(MIN_TASKS, tiles), agglo_ceil_div(job->m, LEAST_BLOCK));
    job->block = agglo_ceil_div(agglo_ceil_div(job->m, job->n_blocks), TILE_ROWS) * TILE_ROWS;
    job->n_blocks = agglo_ceil_div(job->m, job->block);
    if (!agglo_cpu_reserve(job->be, job->n_blocks == 1 ? 0 : floats(job->n_blocks * s->o * job->k),
                           floats(TILE_ROWS * (job->tile_m + job->tile_n + GEMM_COLS)))) {
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
    } else if (windows_tile(s) && !pointwise(s)) {
        conv_scatter_tiled(&job, w);
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
