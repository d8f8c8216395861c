/* Feature maps on the CPU: pooling, channel-first and channels-last, blocks of channels or tokens, the residual of stochastic depth. Bound by
 * memory: channels are the vectors, a row of pixels or a run of rows is a task. */
#include "tensor/cpu/storage_impl.h"

#define PIECE      16384 /* elements per task */
#define MAX_BLOCKS 64

/* ---- pooling ---- */

typedef struct pool_work {
    agglo_backend *be;
    const agglo_pool2d_config *p;
    agglo_dtype dtype;
    int64_t h, w, oh, ow, c; /* image, output */
    const void *x;
    void *y;
    int32_t *index_out;
    const int32_t *index;
    bool accumulate;
} pool_work;

static pool_work pool_of(agglo_backend *be, const agglo_pool2d_config *p, const agglo_tensor *image,
                         const agglo_tensor *output)
{
    pool_work job = {.be = be, .p = p, .dtype = image->dtype};

    job.h = image->shape[1];
    job.w = image->shape[2];
    job.c = image->shape[3];
    job.oh = output->shape[1];
    job.ow = output->shape[2];
    return job;
}

static size_t floats(int64_t n)
{
    return (size_t)n * sizeof(float);
}

/* One row of outputs per task. */
static void avg_row(void *context, int64_t index, int worker)
{
    const pool_work *job = context;
    const agglo_pool2d_config *p = job->p;
    int64_t image = index / job->oh, oy = index % job->oh, c = job->c;
    float *restrict sum = agglo_cpu_worker(job->be, worker), *tmp = sum + c;
    float part = 1.0f / (float)(p->kernel_h * p->kernel_w);

    for (int64_t ox = 0; ox < job->ow; ox++) {
        memset(sum, 0, floats(c));
        for (int64_t i = 0; i < (int64_t)p->kernel_h * p->kernel_w; i++) {
            int64_t iy = oy * p->stride_h + i / p->kernel_w, ix = ox * p->stride_w + i % p->kernel_w;
            const float *x = agglo_cpu_row(tmp, job->x, job->dtype, ((image * job->h + iy) * job->w + ix) * c, c);

#pragma omp simd
            for (int64_t j = 0; j < c; j++) {
                sum[j] += x[j];
            }
        }
#pragma omp simd
        for (int64_t j = 0; j < c; j++) {
            sum[j] *= part;
        }
        agglo_cpu_store(job->y, job->dtype, (index * job->ow + ox) * c, c, false, sum);
    }
}

static void avgpool2d(agglo_backend *be, const agglo_pool2d_config *config, const agglo_tensor *x, agglo_tensor *y)
{
    pool_work job = pool_of(be, config, x, y);

    job.x = x->data;
    job.y = y->data;
    if (agglo_cpu_reserve(be, 0, floats(2 * job.c))) {
        agglo_pool_for(be->pool, x->shape[0] * job.oh, avg_row, &job);
    }
}

/* The outputs whose windows hold place i of an axis: [*from, *to), none where they are equal. */
static void windows_over(int64_t i, int64_t kernel, int64_t stride, int64_t pad, int64_t n_out, int64_t *from,
                         int64_t *to)
{
    int64_t first = i + pad - kernel + 1;

    *from = first <= 0 ? 0 : agglo_ceil_div(first, stride);
    *to = agglo_min((i + pad) / stride + 1, n_out);
    *to = *to < *from ? *from : *to;
}

/* One row of the image per task: each pixel sums over the windows that hold it, in order. With indices, those that took it. */
static void pool_bwd_row(void *context, int64_t row, int worker)
{
    const pool_work *job = context;
    const agglo_pool2d_config *p = job->p;
    int64_t image = row / job->h, iy = row % job->h, c = job->c, y0, y1;
    float *restrict sum = agglo_cpu_worker(job->be, worker), *tmp = sum + c;
    float part = job->index != NULL ? 1.0f : 1.0f / (float)(p->kernel_h * p->kernel_w);

    windows_over(iy, p->kernel_h, p->stride_h, p->pad_h, job->oh, &y0, &y1);
    for (int64_t ix = 0; ix < job->w; ix++) {
        int64_t x0, x1;
        int32_t own = (int32_t)(iy * job->w + ix);

        windows_over(ix, p->kernel_w, p->stride_w, p->pad_w, job->ow, &x0, &x1);
        memset(sum, 0, floats(c));
        for (int64_t oy = y0; oy < y1; oy++) {
            for (int64_t ox = x0; ox < x1; ox++) {
                int64_t at = ((image * job->oh + oy) * job->ow + ox) * c;
                const float *d = agglo_cpu_row(tmp, job->x, job->dtype, at, c);
                const int32_t *index = job->index == NULL ? NULL : job->index + at;

                for (int64_t j = 0; j < c; j++) {
                    sum[j] += index == NULL || index[j] == own ? d[j] : 0.0f;
                }
            }
        }
        for (int64_t j = 0; j < c; j++) {
            sum[j] *= part;
        }
        agglo_cpu_store(job->y, job->dtype, (row * job->w + ix) * c, c, job->accumulate, sum);
    }
}

static void pool_bwd(agglo_backend *be, const agglo_pool2d_config *config, const agglo_tensor *d_y,
                     const agglo_tensor *index, bool accumulate, agglo_tensor *d_x)
{
    pool_work job = pool_of(be, config, d_x, d_y);

    job.x = d_y->data;
    job.index = index == NULL ? NULL : index->data;
    job.y = d_x->data;
    job.accumulate = accumulate;
    if (agglo_cpu_reserve(be, 0, floats(2 * job.c))) {
        agglo_pool_for(be->pool, d_x->shape[0] * job.h, pool_bwd_row, &job);
    }
}

static void avgpool2d_bwd(agglo_backend *be, const agglo_pool2d_config *config, const agglo_tensor *d_y,
                          bool accumulate, agglo_tensor *d_x)
{
    pool_bwd(be, config, d_y, NULL, accumulate, d_x);
}

static void max_row(void *context, int64_t row, int worker)
{
    const pool_work *job = context;
    const agglo_pool2d_config *p = job->p;
    int64_t image = row / job->oh, oy = row % job->oh, c = job->c;
    float *restrict most = agglo_cpu_worker(job->be, worker), *tmp = most + c;
    int32_t *restrict place = (int32_t *)(tmp + c);
    int64_t top = oy * p->stride_h - p->pad_h, y0 = top < 0 ? 0 : top, y1 = agglo_min(top + p->kernel_h, job->h);

    for (int64_t ox = 0; ox < job->ow; ox++) {
        int64_t left = ox * p->stride_w - p->pad_w, x0 = left < 0 ? 0 : left;
        int64_t x1 = agglo_min(left + p->kernel_w, job->w);

        for (int64_t iy = y0; iy < y1; iy++) {
            for (int64_t ix = x0; ix < x1; ix++) {
                const float *x = agglo_cpu_row(tmp, job->x, job->dtype, ((image * job->h + iy) * job->w + ix) * c, c);
                int32_t here = (int32_t)(iy * job->w + ix);

                if (iy == y0 && ix == x0) {
                    memcpy(most, x, floats(c));
                    for (int64_t j = 0; j < c; j++) {
                        place[j] = here;
                    }
                    continue;
                }
#pragma omp simd
                for (int64_t j = 0; j < c; j++) {
                    /* larger, or the first NaN: bitwise, so that there is no branch */
                    int better = (x[j] > most[j]) | ((x[j] != x[j]) & (most[j] == most[j]));

                    most[j] = better ? x[j] : most[j];
                    place[j] = better ? here : place[j];
                }
            }
        }
        agglo_cpu_store(job->y, job->dtype, (row * job->ow + ox) * c, c, false, most);
        if (job->index_out != NULL) {
            memcpy(job->index_out + (row * job->ow + ox) * c, place, (size_t)c * sizeof *place);
        }
    }
}

static void maxpool2d(agglo_backend *be, const agglo_pool2d_config *config, const agglo_tensor *x, agglo_tensor *y,
                      agglo_tensor *index)
{
    pool_work job = pool_of(be, config, x, y);

    job.x = x->data;
    job.y = y->data;
    job.index_out = index == NULL ? NULL : index->data;
    if (agglo_cpu_reserve(be, 0, floats(3 * job.c))) {
        agglo_pool_for(be->pool, x->shape[0] * job.oh, max_row, &job);
    }
}

/* ---- layout ---- */

typedef struct move_work {
    int64_t m, n, n_strips;
    const void *x;
    void *y;
    size_t size;
} move_work;

#define STRIP 64 /* rows of y per task: its part of x and y stay in cache while a row of y is filled */
#define TILE  16 /* rows of x at a time, by way of the stack: rows apart by a power of two fall on the same cache sets */

#define TRANSPOSE(type)                                                                                                \
    do {                                                                                                               \
        const type *x = (const type *)job->x + batch * m * n + j0;                                                     \
        type *y = (type *)job->y + batch * m * n + j0 * m, tile[TILE][STRIP];                                          \
                                                                                                                       \
        for (int64_t i = 0; i < m; i += TILE) {                                                                        \
            int64_t h = agglo_min(TILE, m - i);                                                                        \
                                                                                                                       \
            for (int64_t r = 0; r < h; r++) {                                                                          \
                memcpy(tile[r], x + (i + r) * n, (size_t)w * sizeof(type));                                            \
            }                                                                                                          \
            for (int64_t j = 0; j < w; j++) {                                                                          \
                for (int64_t r = 0; r < h; r++) {                                                                      \
                    y[j * m + i + r] = tile[r][j];                                                                     \
                }                                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
    } while (0)

static void transpose_strip(void *context, int64_t index, int worker)
{
    const move_work *job = context;
    int64_t batch = index / job->n_strips, m = job->m, n = job->n, j0 = index % job->n_strips * STRIP;
    int64_t w = agglo_min(STRIP, n - j0);

    (void)worker;
    if (job->size == 4) {
        TRANSPOSE(uint32_t);
    } else {
        TRANSPOSE(uint16_t);
    }
}

static void transpose(agglo_backend *be, int64_t batch, int64_t m, int64_t n, const agglo_tensor *x, agglo_tensor *y)
{
    move_work job = {m, n, agglo_ceil_div(n, STRIP), x->data, y->data, agglo_dtype_size(x->dtype)};

    agglo_pool_for(be->pool, batch * job.n_strips, transpose_strip, &job);
}

typedef struct block_work {
    int64_t rows, cols, x_stride, x_first, y_stride, y_first, piece;
    const void *x;
    void *y;
    agglo_dtype dtype;
    bool accumulate;
} block_work;

static void copy_rows(void *context, int64_t index, int worker)
{
    const block_work *job = context;
    int64_t end = agglo_min((index + 1) * job->piece, job->rows);

    (void)worker;
    for (int64_t i = index * job->piece; i < end; i++) {
        int64_t from = i * job->x_stride + job->x_first, to = i * job->y_stride + job->y_first;

        if (!job->accumulate) {
            memcpy(agglo_cpu_at(job->y, job->dtype, to), agglo_cpu_at(job->x, job->dtype, from),
                   (size_t)job->cols * agglo_dtype_size(job->dtype));
        } else if (job->dtype == AGGLO_F32) {
            agglo_cpu_store(job->y, AGGLO_F32, to, job->cols, true, (const float *)job->x + from);
        } else {
            for (int64_t j = 0; j < job->cols; j++) {
                float x;

                agglo_cpu_load(&x, job->x, job->dtype, from + j, 1);
                agglo_cpu_store(job->y, job->dtype, to + j, 1, true, &x);
            }
        }
    }
}

static void copy_block(agglo_backend *be, int64_t rows, int64_t cols, const agglo_tensor *x, int64_t x_stride,
                       int64_t x_first, bool accumulate, agglo_tensor *y, int64_t y_stride, int64_t y_first)
{
    block_work job = {rows,    cols,    x_stride, x_first,   y_stride, y_first, 1 + PIECE / cols,
                      x->data, y->data, x->dtype, accumulate};

    agglo_pool_for(be->pool, agglo_ceil_div(rows, job.piece), copy_rows, &job);
}

/* ---- the residual of stochastic depth ---- */

typedef struct drop_work {
    agglo_backend *be;
    int64_t m, c, per_sample, block;
    const void *x, *h;
    const float *gamma, *scale;
    void *y;
    agglo_dtype dtype;
    bool accumulate;
    float *partial; /* [block][c] */
} drop_work;

static drop_work drop_of(agglo_backend *be, const agglo_tensor *x, const agglo_tensor *h, const agglo_tensor *gamma,
                         const agglo_tensor *scale, agglo_tensor *y)
{
    drop_work job = {.be = be, .x = x->data, .dtype = x->dtype, .scale = scale->data, .y = y->data};

    job.c = x->shape[x->rank - 1];
    job.m = agglo_tensor_count(x) / job.c;
    job.per_sample = job.m / x->shape[0];
    job.h = h == NULL ? NULL : h->data;
    job.gamma = gamma == NULL ? NULL : gamma->data;
    return job;
}

static void drop_rows(void *context, int64_t index, int worker)
{
    const drop_work *job = context;
    int64_t c = job->c, end = agglo_min((index + 1) * job->block, job->m);
    float *tmp = agglo_cpu_worker(job->be, worker);

    for (int64_t i = index * job->block; i < end; i++) {
        const float *x = agglo_cpu_row(tmp, job->x, job->dtype, i * c, c);
        const float *h = agglo_cpu_row(tmp + c, job->h, job->dtype, i * c, c);
        float scale = job->scale[i / job->per_sample];
        float *y = job->dtype == AGGLO_F32 ? (float *)job->y + i * c : tmp;

        if (job->gamma == NULL) {
#pragma omp simd
            for (int64_t j = 0; j < c; j++) {
                y[j] = x[j] + scale * h[j];
            }
        } else {
#pragma omp simd
            for (int64_t j = 0; j < c; j++) {
                y[j] = x[j] + scale * job->gamma[j] * h[j];
            }
        }
        agglo_cpu_store(job->y, job->dtype, i * c, c, false, y);
    }
}

static void residual_drop(agglo_backend *be, const agglo_tensor *x, const agglo_tensor *h, const agglo_tensor *gamma,
                          const agglo_tensor *scale, agglo_tensor *y)
{
    drop_work job = drop_of(be, x, h, gamma, scale, y);

    job.block = 1 + PIECE / job.c;
    if (agglo_cpu_reserve(be, 0, floats(2 * job.c))) {
        agglo_pool_for(be->pool, agglo_ceil_div(job.m, job.block), drop_rows, &job);
    }
}

/* x is d_y here, y is d_h */
static void drop_bwd_rows(void *context, int64_t index, int worker)
{
    const drop_work *job = context;
    int64_t c = job->c, end = agglo_min((index + 1) * job->block, job->m);
    float *restrict d = agglo_cpu_worker(job->be, worker), *tmp = d + c;
    float *restrict sums = job->gamma == NULL ? NULL : job->partial + index * c;

    if (sums != NULL) {
        memset(sums, 0, floats(c));
    }
    for (int64_t i = index * job->block; i < end; i++) {
        const float *d_y = agglo_cpu_row(tmp, job->x, job->dtype, i * c, c);
        float scale = job->scale[i / job->per_sample];

        if (sums == NULL) {
#pragma omp simd
            for (int64_t j = 0; j < c; j++) {
                d[j] = scale * d_y[j];
            }
        } else {
            const float *h = agglo_cpu_row(tmp + c, job->h, job->dtype, i * c, c);

#pragma omp simd
            for (int64_t j = 0; j < c; j++) {
                float s = scale * d_y[j];

                sums[j] += s * h[j];
                d[j] = s * job->gamma[j];
            }
        }
        agglo_cpu_store(job->y, job->dtype, i * c, c, job->accumulate, d);
    }
}

static void residual_drop_bwd(agglo_backend *be, const agglo_tensor *d_y, const agglo_tensor *h,
                              const agglo_tensor *gamma, const agglo_tensor *scale, bool accumulate, agglo_tensor *d_h,
                              agglo_tensor *d_gamma)
{
    drop_work job = drop_of(be, d_y, h, gamma, scale, d_h);
    int64_t n_blocks = agglo_min(MAX_BLOCKS, agglo_ceil_div(job.m, 16));

    job.block = agglo_ceil_div(job.m, n_blocks);
    n_blocks = agglo_ceil_div(job.m, job.block);
    job.accumulate = accumulate;
    if (!agglo_cpu_reserve(be, floats(n_blocks * job.c), floats(3 * job.c))) {
        return;
    }
    job.partial = agglo_cpu_shared(be);
    agglo_pool_for(be->pool, n_blocks, drop_bwd_rows, &job);
    for (int64_t j = 0; gamma != NULL && j < job.c; j++) {
        double sum = (double)((float *)d_gamma->data)[j];

        for (int64_t i = 0; i < n_blocks; i++) {
            sum += (double)job.partial[i * job.c + j];
        }
        ((float *)d_gamma->data)[j] = (float)sum;
    }
}

void AGGLO_CPU_NAME(maps_ops)(agglo_backend_ops *ops)
{
    ops->avgpool2d = avgpool2d;
    ops->avgpool2d_bwd = avgpool2d_bwd;
    ops->maxpool2d = maxpool2d;
    ops->maxpool2d_bwd = pool_bwd;
    ops->transpose = transpose;
    ops->copy_block = copy_block;
    ops->residual_drop = residual_drop;
    ops->residual_drop_bwd = residual_drop_bwd;
}
