/* Moving tokens on the CPU: pixels to patch vectors, prefix tokens and positions, slices, means. Rows of
 * BF16 are converted into scratch of the worker; sums over rows stay in F32 until they are whole. */
#include "tensor/cpu/cpu_impl.h"
#include "tensor/math_inline.h"

#include <string.h>

typedef struct token_work {
    int64_t batch, n, n_prefix, c, first;
    int64_t h_in, w_in; /* of pixels */
    agglo_backend *be;
    const agglo_tensor *x;       /* what is read, of the storage type */
    agglo_tensor *y, *d_patches; /* what is written */
    const float *prefix, *pos;
    float *d_prefix, *d_pos;
    bool pos_per_image, accumulate;
    const uint8_t *pixels;
    const int32_t *extents; /* [batch, 2], width and height of each picture; NULL: whole */
    int64_t patch;
    float table[3][256]; /* (v / 255 - mean) / std of every byte */
    uint16_t table_bf16[3][256];
} token_work;

static void add_row(float *y, const float *x, int64_t c)
{
#pragma omp simd
    for (int64_t j = 0; j < c; j++) {
        y[j] += x[j];
    }
}

/* Scratch of a worker that holds rows of `c` floats; only where rows are not F32. */
static float *scratch_of(const token_work *job, const agglo_tensor *t, int worker)
{
    return t->dtype == AGGLO_F32 ? NULL : agglo_cpu_worker(job->be, worker);
}

/* One task per row of patches. */
static void patchify_row(void *context, int64_t index, int worker)
{
    const token_work *job = context;
    int64_t p = job->patch, grid_w = job->w_in / p, grid_h = job->h_in / p, at = index * grid_w * 3 * p * p;
    const int32_t *extent = job->extents != NULL ? job->extents + index / grid_h * 2 : NULL;
    int64_t right = extent != NULL ? extent[0] : job->w_in, below = extent != NULL ? extent[1] : job->h_in;
    int64_t top = index % grid_h * p;
    const uint8_t *pixels = job->pixels + index * p * job->w_in * 3;
    float *out = job->y->dtype == AGGLO_F32 ? (float *)job->y->data + at : NULL;
    uint16_t *out_bf16 = out == NULL ? (uint16_t *)job->y->data + at : NULL;

    (void)worker;
    for (int64_t gx = 0; gx < grid_w; gx++) {
        for (int c = 0; c < 3; c++) {
            for (int64_t y = 0; y < p; y++) {
                const uint8_t *row = pixels + (y * job->w_in + gx * p) * 3 + c;
                int64_t inside = top + y < below ? agglo_min(p, right - gx * p) : 0, x = 0;

                for (; x < inside; x++) {
                    if (out != NULL) {
                        *out++ = job->table[c][row[3 * x]];
                    } else {
                        *out_bf16++ = job->table_bf16[c][row[3 * x]];
                    }
                }
                for (; x < p; x++) {
                    if (out != NULL) {
                        *out++ = 0.0f;
                    } else {
                        *out_bf16++ = 0;
                    }
                }
            }
        }
    }
}

static void patchify(agglo_backend *be, const agglo_tensor *pixels, const agglo_tensor *extents, const float mean[3],
                     const float std[3], int patch, agglo_tensor *patches)
{
    token_work job = {.h_in = pixels->shape[1],
                      .w_in = pixels->shape[2],
                      .pixels = pixels->data,
                      .extents = extents != NULL ? extents->data : NULL,
                      .y = patches,
                      .patch = patch};

    for (int c = 0; c < 3; c++) {
        for (int v = 0; v < 256; v++) {
            job.table[c][v] = ((float)v / 255.0f - mean[c]) / std[c];
            job.table_bf16[c][v] = agglo_f32_to_bf16(job.table[c][v]);
        }
    }
    agglo_pool_for(be->pool, pixels->shape[0] * (pixels->shape[1] / patch), patchify_row, &job);
}

/* One task per row of the output. */
static void join_row(void *context, int64_t index, int worker)
{
    const token_work *job = context;
    int64_t c = job->c, total = job->n_prefix + job->n, b = index / total, i = index % total - job->n_prefix;
    float *scratch = scratch_of(job, job->y, worker), *y = agglo_cpu_out(job->y, index * c, scratch);

    if (i < 0) {
        memcpy(y, job->prefix + (i + job->n_prefix) * c, (size_t)c * sizeof *y);
    } else {
        const float *x = agglo_cpu_in(job->x, (b * job->n + i) * c, c, scratch);

        if (job->pos != NULL) {
            const float *pos = job->pos + ((job->pos_per_image ? b * job->n : 0) + i) * c;

#pragma omp simd
            for (int64_t j = 0; j < c; j++) {
                y[j] = x[j] + pos[j];
            }
        } else if (y != x) {
            memcpy(y, x, (size_t)c * sizeof *y);
        }
    }
    agglo_cpu_put(job->y, index * c, c, y);
}

static bool per_image(const agglo_tensor *pos, int64_t batch, int64_t n)
{
    return batch > 1 && agglo_tensor_count(pos) / pos->shape[pos->rank - 1] == batch * n;
}

static void tokens_join(agglo_backend *be, const agglo_tensor *prefix, const agglo_tensor *patches,
                        const agglo_tensor *pos, agglo_tensor *y)
{
    token_work job = {.be = be, .batch = y->shape[0], .n = patches->shape[1], .c = y->shape[2], .x = patches, .y = y};

    job.n_prefix = y->shape[1] - job.n;
    if (prefix != NULL) {
        job.prefix = prefix->data;
    }
    if (pos != NULL) {
        job.pos = pos->data;
        job.pos_per_image = per_image(pos, job.batch, job.n);
    }
    if (agglo_cpu_reserve_rows(be, y, 1, job.c)) {
        agglo_pool_for(be->pool, job.batch * y->shape[1], join_row, &job);
    }
}

/* One task per token place: sums over images have one writer, in order of images. */
static void join_bwd_token(void *context, int64_t t, int worker)
{
    const token_work *job = context;
    int64_t c = job->c, total = job->n_prefix + job->n, i = t - job->n_prefix;
    size_t size = agglo_dtype_size(job->x->dtype);
    float *scratch = scratch_of(job, job->x, worker);

    for (int64_t b = 0; b < job->batch; b++) {
        int64_t at = (b * total + t) * c;
        const float *d_y = agglo_cpu_in(job->x, at, c, scratch);

        if (t < job->n_prefix) {
            if (job->d_prefix != NULL) {
                add_row(job->d_prefix + t * c, d_y, c);
            }
            continue;
        }
        if (job->d_patches != NULL) {
            memcpy((uint8_t *)job->d_patches->data + (size_t)((b * job->n + i) * c) * size,
                   (const uint8_t *)job->x->data + (size_t)at * size, (size_t)c * size);
        }
        if (job->d_pos != NULL) {
            add_row(job->d_pos + ((job->pos_per_image ? b * job->n : 0) + i) * c, d_y, c);
        }
    }
}

static void tokens_join_bwd(agglo_backend *be, const agglo_tensor *d_y, agglo_tensor *d_prefix, agglo_tensor *d_patches,
                            agglo_tensor *d_pos)
{
    token_work job = {.be = be, .batch = d_y->shape[0], .c = d_y->shape[2], .x = d_y, .d_patches = d_patches};

    if (d_prefix != NULL) {
        job.d_prefix = d_prefix->data;
        job.n = d_y->shape[1] - agglo_tensor_count(d_prefix) / job.c;
    } else if (d_patches != NULL) {
        job.n = d_patches->shape[1];
    } else if (d_pos != NULL) {
        job.n = d_pos->shape[d_pos->rank - 2];
    }
    job.n_prefix = d_y->shape[1] - job.n;
    if (d_pos != NULL) {
        job.d_pos = d_pos->data;
        job.pos_per_image = per_image(d_pos, job.batch, job.n);
    }
    if (agglo_cpu_reserve_rows(be, d_y, 1, job.c)) {
        agglo_pool_for(be->pool, d_y->shape[1], join_bwd_token, &job);
    }
}

static void tokens_slice(agglo_backend *be, const agglo_tensor *x, int64_t first, agglo_tensor *y)
{
    size_t row = (size_t)x->shape[2] * agglo_dtype_size(x->dtype), n = (size_t)y->shape[1] * row;

    (void)be;
    for (int64_t b = 0; b < y->shape[0]; b++) {
        memcpy((uint8_t *)y->data + (size_t)b * n, (const uint8_t *)x->data + (size_t)(b * x->shape[1] + first) * row,
               n);
    }
}

static void slice_bwd_row(void *context, int64_t index, int worker)
{
    const token_work *job = context;
    int64_t c = job->c, at = (index / job->n * job->y->shape[1] + job->first + index % job->n) * c;
    float *scratch = scratch_of(job, job->x, worker), *was_scratch = scratch == NULL ? NULL : scratch + c;
    const float *d_y = agglo_cpu_in(job->x, index * c, c, scratch);
    float *d_x = agglo_cpu_out(job->y, at, was_scratch);

    if (job->accumulate) {
        (void)agglo_cpu_in(job->y, at, c, was_scratch);
        add_row(d_x, d_y, c);
    } else {
        memcpy(d_x, d_y, (size_t)c * sizeof *d_x);
    }
    agglo_cpu_put(job->y, at, c, d_x);
}

static void tokens_slice_bwd(agglo_backend *be, const agglo_tensor *d_y, int64_t first, bool accumulate,
                             agglo_tensor *d_x)
{
    token_work job = {.be = be, .n = d_y->shape[1], .c = d_y->shape[2], .x = d_y, .y = d_x, .first = first};

    job.accumulate = accumulate;
    if (agglo_cpu_reserve_rows(be, d_y, 2, job.c)) {
        agglo_pool_for(be->pool, d_y->shape[0] * job.n, slice_bwd_row, &job);
    }
}

static void mean_image(void *context, int64_t b, int worker)
{
    const token_work *job = context;
    int64_t c = job->c;
    float *scratch = scratch_of(job, job->x, worker), *row = scratch == NULL ? NULL : scratch + c;
    float *y = agglo_cpu_out(job->y, b * c, scratch), inverse = 1.0f / (float)job->n;

    memset(y, 0, (size_t)c * sizeof *y);
    for (int64_t i = 0; i < job->n; i++) {
        add_row(y, agglo_cpu_in(job->x, (b * job->n + i) * c, c, row), c);
    }
    for (int64_t j = 0; j < c; j++) {
        y[j] *= inverse;
    }
    agglo_cpu_put(job->y, b * c, c, y);
}

static void tokens_mean(agglo_backend *be, const agglo_tensor *x, agglo_tensor *y)
{
    token_work job = {.be = be, .n = x->shape[1], .c = x->shape[2], .x = x, .y = y};

    if (agglo_cpu_reserve_rows(be, x, 2, job.c)) {
        agglo_pool_for(be->pool, x->shape[0], mean_image, &job);
    }
}

static void mean_bwd_image(void *context, int64_t b, int worker)
{
    const token_work *job = context;
    int64_t c = job->c;
    float *scratch = scratch_of(job, job->x, worker), *row = scratch == NULL ? NULL : scratch + c;
    const float *d_y = agglo_cpu_in(job->x, b * c, c, scratch);
    float inverse = 1.0f / (float)job->n;

    for (int64_t i = 0; i < job->n; i++) {
        int64_t at = (b * job->n + i) * c;
        const float *was = job->accumulate ? agglo_cpu_in(job->y, at, c, row) : NULL;
        float *d_x = agglo_cpu_out(job->y, at, row);

#pragma omp simd
        for (int64_t j = 0; j < c; j++) {
            float d = d_y[j] * inverse;

            d_x[j] = was != NULL ? was[j] + d : d;
        }
        agglo_cpu_put(job->y, at, c, d_x);
    }
}

static void tokens_mean_bwd(agglo_backend *be, const agglo_tensor *d_y, bool accumulate, agglo_tensor *d_x)
{
    token_work job = {.be = be, .n = d_x->shape[1], .c = d_x->shape[2], .x = d_y, .y = d_x, .accumulate = accumulate};

    if (agglo_cpu_reserve_rows(be, d_y, 2, job.c)) {
        agglo_pool_for(be->pool, d_x->shape[0], mean_bwd_image, &job);
    }
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
}
