/* Moving tokens on the CPU: pixels to patch vectors, prefix tokens and positions, slices, means, resampling of feature maps. */
#include "tensor/cpu/cpu_impl.h"
#include "tensor/math_inline.h"

#include <string.h>

typedef struct token_work {
    int64_t batch, n, n_prefix, c, first;
    int64_t h_in, w_in, h_out, w_out;
    const float *x, *prefix, *pos;
    float *y, *d_prefix, *d_patches, *d_pos;
    bool pos_per_image, accumulate;
    const uint8_t *pixels;
    int64_t patch;
    float table[3][256]; /* (v / 255 - mean) / std of every byte */
} token_work;

static void add_row(float *y, const float *x, int64_t c)
{
#pragma omp simd
    for (int64_t j = 0; j < c; j++) {
        y[j] += x[j];
    }
}

static void put_row(float *y, const float *x, int64_t c, bool accumulate)
{
    if (accumulate) {
        add_row(y, x, c);
    } else {
        memcpy(y, x, (size_t)c * sizeof *y);
    }
}

/* One task per row of patches. */
static void patchify_row(void *context, int64_t index, int worker)
{
    const token_work *job = context;
    int64_t p = job->patch, grid_w = job->w_in / p;
    const uint8_t *pixels = job->pixels + index * p * job->w_in * 3;
    float *out = job->y + index * grid_w * 3 * p * p;

    (void)worker;
    for (int64_t gx = 0; gx < grid_w; gx++) {
        for (int c = 0; c < 3; c++) {
            for (int64_t y = 0; y < p; y++) {
                const uint8_t *row = pixels + (y * job->w_in + gx * p) * 3 + c;

                for (int64_t x = 0; x < p; x++) {
                    *out++ = job->table[c][row[3 * x]];
                }
            }
        }
    }
}

static void patchify(agglo_backend *be, const agglo_tensor *pixels, const float mean[3], const float std[3], int patch,
                     agglo_tensor *patches)
{
    token_work job = {.w_in = pixels->shape[2], .pixels = pixels->data, .y = patches->data, .patch = patch};

    for (int c = 0; c < 3; c++) {
        for (int v = 0; v < 256; v++) {
            job.table[c][v] = ((float)v / 255.0f - mean[c]) / std[c];
        }
    }
    agglo_pool_for(be->pool, pixels->shape[0] * (pixels->shape[1] / patch), patchify_row, &job);
}

static void join_image(void *context, int64_t b, int worker)
{
    const token_work *job = context;
    int64_t n = job->n, c = job->c;
    float *y = job->y + b * (job->n_prefix + n) * c;
    const float *x = job->x + b * n * c,
                *pos = job->pos == NULL ? NULL : job->pos + (job->pos_per_image ? b * n * c : 0);

    (void)worker;
    if (job->n_prefix > 0) {
        memcpy(y, job->prefix, (size_t)(job->n_prefix * c) * sizeof *y);
        y += job->n_prefix * c;
    }
    if (pos == NULL) {
        memcpy(y, x, (size_t)(n * c) * sizeof *y);
        return;
    }
#pragma omp simd
    for (int64_t j = 0; j < n * c; j++) {
        y[j] = x[j] + pos[j];
    }
}

static bool per_image(const agglo_tensor *pos, int64_t batch, int64_t n)
{
    return batch > 1 && agglo_tensor_count(pos) / pos->shape[pos->rank - 1] == batch * n;
}

static void tokens_join(agglo_backend *be, const agglo_tensor *prefix, const agglo_tensor *patches,
                        const agglo_tensor *pos, agglo_tensor *y)
{
    token_work job = {.batch = y->shape[0], .n = patches->shape[1], .c = y->shape[2], .x = patches->data, .y = y->data};

    job.n_prefix = y->shape[1] - job.n;
    if (prefix != NULL) {
        job.prefix = prefix->data;
    }
    if (pos != NULL) {
        job.pos = pos->data;
        job.pos_per_image = per_image(pos, job.batch, job.n);
    }
    agglo_pool_for(be->pool, job.batch, join_image, &job);
}

/* One task per token place: sums over images have one writer, in order of images. */
static void join_bwd_token(void *context, int64_t t, int worker)
{
    const token_work *job = context;
    int64_t c = job->c, total = job->n_prefix + job->n, i = t - job->n_prefix;

    (void)worker;
    for (int64_t b = 0; b < job->batch; b++) {
        const float *d_y = job->x + (b * total + t) * c;

        if (t < job->n_prefix) {
            if (job->d_prefix != NULL) {
                add_row(job->d_prefix + t * c, d_y, c);
            }
            continue;
        }
        if (job->d_patches != NULL) {
            memcpy(job->d_patches + (b * job->n + i) * c, d_y, (size_t)c * sizeof *d_y);
        }
        if (job->d_pos != NULL) {
            add_row(job->d_pos + ((job->pos_per_image ? b * job->n : 0) + i) * c, d_y, c);
        }
    }
}

static void tokens_join_bwd(agglo_backend *be, const agglo_tensor *d_y, agglo_tensor *d_prefix, agglo_tensor *d_patches,
                            agglo_tensor *d_pos)
{
    token_work job = {.batch = d_y->shape[0], .c = d_y->shape[2], .x = d_y->data};

    if (d_prefix != NULL) {
        job.d_prefix = d_prefix->data;
        job.n = d_y->shape[1] - agglo_tensor_count(d_prefix) / job.c;
    } else if (d_patches != NULL) {
        job.n = d_patches->shape[1];
    } else if (d_pos != NULL) {
        job.n = d_pos->shape[d_pos->rank - 2];
    }
    job.n_prefix = d_y->shape[1] - job.n;
    job.d_patches = d_patches == NULL ? NULL : d_patches->data;
    if (d_pos != NULL) {
        job.d_pos = d_pos->data;
        job.pos_per_image = per_image(d_pos, job.batch, job.n);
    }
    agglo_pool_for(be->pool, d_y->shape[1], join_bwd_token, &job);
}

static void tokens_slice(agglo_backend *be, const agglo_tensor *x, int64_t first, agglo_tensor *y)
{
    int64_t n = y->shape[1], c = y->shape[2], total = x->shape[1];

    (void)be;
    for (int64_t b = 0; b < y->shape[0]; b++) {
        memcpy((float *)y->data + b * n * c, (const float *)x->data + (b * total + first) * c,
               (size_t)(n * c) * sizeof(float));
    }
}

static void tokens_slice_bwd(agglo_backend *be, const agglo_tensor *d_y, int64_t first, bool accumulate,
                             agglo_tensor *d_x)
{
    int64_t n = d_y->shape[1], c = d_y->shape[2], total = d_x->shape[1];

    (void)be;
    for (int64_t b = 0; b < d_y->shape[0]; b++) {
        put_row((float *)d_x->data + (b * total + first) * c, (const float *)d_y->data + b * n * c, n * c, accumulate);
    }
}

static void mean_image(void *context, int64_t b, int worker)
{
    const token_work *job = context;
    int64_t c = job->c;
    float *y = job->y + b * c, inverse = 1.0f / (float)job->n;

    (void)worker;
    memset(y, 0, (size_t)c * sizeof *y);
    for (int64_t i = 0; i < job->n; i++) {
        add_row(y, job->x + (b * job->n + i) * c, c);
    }
    for (int64_t j = 0; j < c; j++) {
        y[j] *= inverse;
    }
}

static void tokens_mean(agglo_backend *be, const agglo_tensor *x, agglo_tensor *y)
{
    token_work job = {.n = x->shape[1], .c = x->shape[2], .x = x->data, .y = y->data};

    agglo_pool_for(be->pool, x->shape[0], mean_image, &job);
}

static void mean_bwd_image(void *context, int64_t b, int worker)
{
    const token_work *job = context;
    int64_t c = job->c;
    const float *d_y = job->x + b * c;
    float inverse = 1.0f / (float)job->n;

    (void)worker;
    for (int64_t i = 0; i < job->n; i++) {
        float *d_x = job->y + (b * job->n + i) * c;

#pragma omp simd
        for (int64_t j = 0; j < c; j++) {
            float d = d_y[j] * inverse;

            d_x[j] = job->accumulate ? d_x[j] + d : d;
        }
    }
}

static void tokens_mean_bwd(agglo_backend *be, const agglo_tensor *d_y, bool accumulate, agglo_tensor *d_x)
{
    token_work job = {.n = d_x->shape[1], .c = d_x->shape[2], .x = d_y->data, .y = d_x->data, .accumulate = accumulate};

    agglo_pool_for(be->pool, d_x->shape[0], mean_bwd_image, &job);
}

/* One task per (image, output row). */
static void resize_row(void *context, int64_t index, int worker)
{
    const token_work *job = context;
    int64_t c = job->c, b = index / job->h_out;
    agglo_bilinear v = agglo_bilinear_at(index % job->h_out, job->h_in, job->h_out);
    const float *map = job->x + b * job->h_in * job->w_in * c;
    const float *row0 = map + v.i0 * job->w_in * c, *row1 = map + v.i1 * job->w_in * c;

    (void)worker;
    for (int64_t ox = 0; ox < job->w_out; ox++) {
        agglo_bilinear u = agglo_bilinear_at(ox, job->w_in, job->w_out);
        const float *a = row0 + u.i0 * c, *bb = row0 + u.i1 * c, *d = row1 + u.i0 * c, *e = row1 + u.i1 * c;
        float *y = job->y + (index * job->w_out + ox) * c;

#pragma omp simd
        for (int64_t j = 0; j < c; j++) {
            y[j] = v.w0 * (u.w0 * a[j] + u.w1 * bb[j]) + v.w1 * (u.w0 * d[j] + u.w1 * e[j]);
        }
    }
}

static token_work resize_work(const agglo_tensor *in, const agglo_tensor *out)
{
    token_work job = {.batch = in->shape[0], .c = in->shape[3]};

    job.h_in = in->shape[1];
    job.w_in = in->shape[2];
    job.h_out = out->shape[1];
    job.w_out = out->shape[2];
    return job;
}

static void resize_bilinear(agglo_backend *be, const agglo_tensor *x, agglo_tensor *y)
{
    token_work job = resize_work(x, y);

    job.x = x->data;
    job.y = y->data;
    agglo_pool_for(be->pool, job.batch * job.h_out, resize_row, &job);
}

#define RESIZE_CHANNELS 128

/* One task per (image, some channels): the scatter has one writer. */
static void resize_bwd_channels(void *context, int64_t index, int worker)
{
    const token_work *job = context;
    int64_t n_blocks = agglo_ceil_div(job->c, RESIZE_CHANNELS), c = job->c;
    int64_t b = index / n_blocks, first = index % n_blocks * RESIZE_CHANNELS, n = agglo_min(RESIZE_CHANNELS, c - first);
    float *map = job->y + b * job->h_in * job->w_in * c + first;

    (void)worker;
    for (int64_t i = 0; !job->accumulate && i < job->h_in * job->w_in; i++) {
        memset(map + i * c, 0, (size_t)n * sizeof *map);
    }
    for (int64_t oy = 0; oy < job->h_out; oy++) {
        agglo_bilinear v = agglo_bilinear_at(oy, job->h_in, job->h_out);

        for (int64_t ox = 0; ox < job->w_out; ox++) {
            agglo_bilinear u = agglo_bilinear_at(ox, job->w_in, job->w_out);
            const float *d_y = job->x + ((b * job->h_out + oy) * job->w_out + ox) * c + first;
            const int64_t at[4] = {v.i0 * job->w_in + u.i0, v.i0 * job->w_in + u.i1, v.i1 * job->w_in + u.i0,
                                   v.i1 * job->w_in + u.i1};
            const float weight[4] = {v.w0 * u.w0, v.w0 * u.w1, v.w1 * u.w0, v.w1 * u.w1};

            for (int k = 0; k < 4; k++) {
                float *d_x = map + at[k] * c, w = weight[k];

#pragma omp simd
                for (int64_t j = 0; j < n; j++) {
                    d_x[j] += w * d_y[j];
                }
            }
        }
    }
}

static void resize_bilinear_bwd(agglo_backend *be, const agglo_tensor *d_y, bool accumulate, agglo_tensor *d_x)
{
    token_work job = resize_work(d_x, d_y);

    job.x = d_y->data;
    job.y = d_x->data;
    job.accumulate = accumulate;
    agglo_pool_for(be->pool, job.batch * agglo_ceil_div(job.c, RESIZE_CHANNELS), resize_bwd_channels, &job);
}

void AGGLO_CPU_NAME(tokens_ops)(agglo_backend_ops *ops)
{
    ops->patchify = patchify;
    ops->tokens_join = tokens_join;
    ops->tokens_join_bwd = tokens_join_bwd;
    ops->tokens_slice = tokens_slice;
    ops->tokens_slice_bwd = tokens_slice_bwd;
    ops->tokens_mean = tokens_mean;
    ops->tokens_mean_bwd = tokens_mean_bwd;
    ops->resize_bilinear = resize_bilinear;
    ops->resize_bilinear_bwd = resize_bilinear_bwd;
}
