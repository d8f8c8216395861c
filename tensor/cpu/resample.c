/* Resampling on the CPU: separable weights over maps [B,h,w,C], and boxes of a table.
 *
 * One task per (image, output row). Its input rows are summed with their weights into scratch [w, C] (each a run of w C floats), then each
 * output pixel sums its columns from there. The backward pass is the same with transposed weights. Where the rows are left as they are,
 * F32 is read in place. BF16 is widened as it is read and rounded as it is written.
 */
#include "tensor/cpu/cpu_impl.h"
#include "tensor/math_inline.h"

#include <string.h>

typedef struct resample_work {
    agglo_backend *be;
    const agglo_axis *down, *across;
    int64_t c;
    bool bf16, accumulate;
    const void *x;
    void *y;
} resample_work;

/* to[j] (+)= w x[i0 + j] */
static void add_scaled(float *to, const void *x, bool bf16, int64_t i0, int64_t n, float w, bool first)
{
    const float *wide = (const float *)x + i0;
    const uint16_t *narrow = (const uint16_t *)x + i0;

    if (bf16) {
#pragma omp simd
        for (int64_t j = 0; j < n; j++) {
            to[j] = (first ? 0.0f : to[j]) + w * agglo_bf16_to_f32(narrow[j]);
        }
    } else if (first) {
#pragma omp simd
        for (int64_t j = 0; j < n; j++) {
            to[j] = w * wide[j];
        }
    } else {
#pragma omp simd
        for (int64_t j = 0; j < n; j++) {
            to[j] += w * wide[j];
        }
    }
}

/* to[j] = sum over k < count of w[k] x[i0 + k step + j]; two taps, which bilinear weights are, in one pass */
static void weigh(float *to, const void *x, bool bf16, int64_t i0, int64_t step, int32_t count, const float *w,
                  int64_t n)
{
    int32_t k = 0;

    if (count == 0) {
        memset(to, 0, (size_t)n * sizeof *to);
    } else if (count == 2 && bf16) {
        const uint16_t *a = (const uint16_t *)x + i0, *b = a + step;
        float u = w[0], v = w[1];

#pragma omp simd
        for (int64_t j = 0; j < n; j++) {
            to[j] = u * agglo_bf16_to_f32(a[j]) + v * agglo_bf16_to_f32(b[j]);
        }
        k = 2;
    } else if (count == 2) {
        const float *a = (const float *)x + i0, *b = a + step;
        float u = w[0], v = w[1];

#pragma omp simd
        for (int64_t j = 0; j < n; j++) {
            to[j] = u * a[j] + v * b[j];
        }
        k = 2;
    }
    for (; k < count; k++) {
        add_scaled(to, x, bf16, i0 + k * step, n, w[k], k == 0);
    }
}

/* y[i0 + j] (+)= from[j] */
static void put(void *y, bool bf16, int64_t i0, int64_t n, const float *from, bool accumulate)
{
    float *wide = (float *)y + i0;
    uint16_t *narrow = (uint16_t *)y + i0;

    if (bf16) {
        for (int64_t j = 0; j < n; j++) {
            narrow[j] = agglo_f32_to_bf16((accumulate ? agglo_bf16_to_f32(narrow[j]) : 0.0f) + from[j]);
        }
    } else if (accumulate) {
#pragma omp simd
        for (int64_t j = 0; j < n; j++) {
            wide[j] += from[j];
        }
    } else if (wide != from) {
        memcpy(wide, from, (size_t)n * sizeof *wide);
    }
}

static void resample_row(void *context, int64_t index, int worker)
{
    const resample_work *job = context;
    const agglo_axis *down = job->down, *across = job->across;
    int64_t c = job->c, image = index / down->n_out, o = index % down->n_out, width = across->n_in * c;
    float *scratch = agglo_cpu_worker(job->be, worker), *pixel = scratch + width;
    const float *row = scratch;

    if (down->identity && !job->bf16) {
        row = (const float *)job->x + index * width;
    } else {
        weigh(scratch, job->x, job->bf16, (image * down->n_in + down->first[o]) * width, width, down->count[o],
              down->weight + o * down->max_taps, width);
    }
    if (across->identity) {
        put(job->y, job->bf16, index * width, width, row, job->accumulate);
        return;
    }
    for (int64_t ox = 0; ox < across->n_out; ox++) {
        int64_t at = (index * across->n_out + ox) * c;
        float *to = job->bf16 || job->accumulate ? pixel : (float *)job->y + at;

        weigh(to, row, false, across->first[ox] * c, c, across->count[ox], across->weight + ox * across->max_taps, c);
        put(job->y, job->bf16, at, c, to, job->accumulate);
    }
}

static void resample(agglo_backend *be, const agglo_axis *down, const agglo_axis *across, const agglo_tensor *x,
                     bool accumulate, agglo_tensor *y)
{
    resample_work job = {.be = be,
                         .down = down,
                         .across = across,
                         .c = x->shape[3],
                         .bf16 = x->dtype == AGGLO_BF16,
                         .accumulate = accumulate,
                         .x = x->data,
                         .y = y->data};

    if (agglo_cpu_reserve(be, 0, (size_t)((across->n_in + 1) * job.c) * sizeof(float))) {
        agglo_pool_for(be->pool, x->shape[0] * down->n_out, resample_row, &job);
    }
}

typedef struct crop_work {
    agglo_backend *be;
    int64_t batch, rows, columns, h, w, d;
    bool bf16;
    const float *table, *boxes; /* table: of the forward pass */
    const void *d_y;
    void *y;
    float *d_table;
} crop_work;

static crop_work crop_work_of(agglo_backend *be, const agglo_tensor *table, const agglo_tensor *boxes,
                              const agglo_tensor *y)
{
    return (crop_work){.be = be,
                       .batch = y->shape[0],
                       .rows = table->shape[0],
                       .columns = table->shape[1],
                       .h = y->shape[1],
                       .w = y->shape[2],
                       .d = y->shape[3],
                       .bf16 = y->dtype == AGGLO_BF16,
                       .boxes = boxes->data};
}

/* One task per (image, row of its grid). */
static void crop_row(void *context, int64_t index, int worker)
{
    const crop_work *job = context;
    int64_t d = job->d;
    const float *box = job->boxes + index / job->h * 4;
    agglo_bilinear v = agglo_crop_at(box[1], box[3], index % job->h, job->rows, job->h);
    const float *row0 = job->table + v.i0 * job->columns * d, *row1 = job->table + v.i1 * job->columns * d;
    float *pixel = agglo_cpu_worker(job->be, worker);

    for (int64_t ox = 0; ox < job->w; ox++) {
        agglo_bilinear u = agglo_crop_at(box[0], box[2], ox, job->columns, job->w);
        const float *a = row0 + u.i0 * d, *b = row0 + u.i1 * d, *e = row1 + u.i0 * d, *f = row1 + u.i1 * d;

#pragma omp simd
        for (int64_t j = 0; j < d; j++) {
            pixel[j] = v.w0 * (u.w0 * a[j] + u.w1 * b[j]) + v.w1 * (u.w0 * e[j] + u.w1 * f[j]);
        }
        put(job->y, job->bf16, (index * job->w + ox) * d, d, pixel, false);
    }
}

static void crop_grid(agglo_backend *be, const agglo_tensor *table, const agglo_tensor *boxes, agglo_tensor *y)
{
    crop_work job = crop_work_of(be, table, boxes, y);

    job.table = table->data;
    job.y = y->data;
    if (agglo_cpu_reserve(be, 0, (size_t)job.d * sizeof(float))) {
        agglo_pool_for(be->pool, job.batch * job.h, crop_row, &job);
    }
}

/* One task per row of the table, its one writer: images, rows and columns of the grid in order. */
static void crop_bwd_row(void *context, int64_t r, int worker)
{
    const crop_work *job = context;
    int64_t d = job->d;
    float *d_row = job->d_table + r * job->columns * d;

    (void)worker;
    for (int64_t b = 0; b < job->batch; b++) {
        const float *box = job->boxes + b * 4;

        for (int64_t oy = 0; oy < job->h; oy++) {
            float wy = agglo_bilinear_weight(agglo_crop_at(box[1], box[3], oy, job->rows, job->h), r);

            for (int64_t ox = 0; wy != 0.0f && ox < job->w; ox++) {
                agglo_bilinear u = agglo_crop_at(box[0], box[2], ox, job->columns, job->w);
                int64_t at = ((b * job->h + oy) * job->w + ox) * d;

                add_scaled(d_row + u.i0 * d, job->d_y, job->bf16, at, d, wy * u.w0, false);
                add_scaled(d_row + u.i1 * d, job->d_y, job->bf16, at, d, wy * u.w1, false);
            }
        }
    }
}

static void crop_grid_bwd(agglo_backend *be, const agglo_tensor *d_y, const agglo_tensor *boxes, agglo_tensor *d_table)
{
    crop_work job = crop_work_of(be, d_table, boxes, d_y);

    job.d_y = d_y->data;
    job.d_table = d_table->data;
    agglo_pool_for(be->pool, job.rows, crop_bwd_row, &job);
}

void AGGLO_CPU_NAME(resample_ops)(agglo_backend_ops *ops)
{
    ops->resample = resample;
    ops->crop_grid = crop_grid;
    ops->crop_grid_bwd = crop_grid_bwd;
}
