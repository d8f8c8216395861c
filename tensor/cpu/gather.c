/* Moving whole rows on the CPU: windows of feature maps, and rows by a list. */
#include "tensor/cpu/cpu_impl.h"

#include <string.h>

typedef struct gather_work {
    agglo_backend *be;
    int64_t height, width, wh, ww, n_down, n_across; /* windows */
    int64_t n, m, c;                                 /* rows of y and x of an image */
    size_t row_bytes;
    bool bf16, accumulate, per_image;
    const uint8_t *from;
    uint8_t *to;
    const int32_t *index;
    const int32_t *start, *order; /* of the list by rows of x: [images][m + 1] and [images][n] */
} gather_work;

static void add_row(uint8_t *to, const uint8_t *from, int64_t c, bool bf16)
{
    float *wide = (float *)to;
    const float *wide_from = (const float *)from;
    uint16_t *narrow = (uint16_t *)to;
    const uint16_t *narrow_from = (const uint16_t *)from;

    if (bf16) {
        for (int64_t j = 0; j < c; j++) {
            narrow[j] = agglo_f32_to_bf16(agglo_bf16_to_f32(narrow[j]) + agglo_bf16_to_f32(narrow_from[j]));
        }
    } else {
#pragma omp simd
        for (int64_t j = 0; j < c; j++) {
            wide[j] += wide_from[j];
        }
    }
}

/* One task per window. */
static void partition_window(void *context, int64_t index, int worker)
{
    const gather_work *job = context;
    int64_t x0 = index % job->n_across * job->ww, y0 = index / job->n_across % job->n_down * job->wh;
    int64_t image = index / job->n_across / job->n_down;
    size_t row = job->row_bytes;

    (void)worker;
    for (int64_t i = 0; i < job->wh * job->ww; i++) {
        int64_t y = y0 + i / job->ww, x = x0 + i % job->ww;
        uint8_t *to = job->to + (size_t)(index * job->wh * job->ww + i) * row;

        if (y >= job->height || x >= job->width) {
            if (!job->accumulate) {
                memset(to, 0, row);
            }
            continue;
        }
        if (job->accumulate) {
            add_row(to, job->from + (size_t)((image * job->height + y) * job->width + x) * row, job->c, job->bf16);
        } else {
            memcpy(to, job->from + (size_t)((image * job->height + y) * job->width + x) * row, row);
        }
    }
}

static void merge_window(void *context, int64_t index, int worker)
{
    const gather_work *job = context;
    int64_t x0 = index % job->n_across * job->ww, y0 = index / job->n_across % job->n_down * job->wh;
    int64_t image = index / job->n_across / job->n_down;
    size_t row = job->row_bytes;

    (void)worker;
    for (int64_t i = 0; i < job->wh * job->ww; i++) {
        int64_t y = y0 + i / job->ww, x = x0 + i % job->ww;
        const uint8_t *from = job->from + (size_t)(index * job->wh * job->ww + i) * row;

        if (y >= job->height || x >= job->width) {
            continue;
        }
        if (job->accumulate) {
            add_row(job->to + (size_t)((image * job->height + y) * job->width + x) * row, from, job->c, job->bf16);
        } else {
            memcpy(job->to + (size_t)((image * job->height + y) * job->width + x) * row, from, row);
        }
    }
}

static gather_work window_work(const agglo_tensor *x, int64_t wh, int64_t ww, bool accumulate)
{
    return (gather_work){.height = x->shape[1],
                         .width = x->shape[2],
                         .wh = wh,
                         .ww = ww,
                         .n_down = agglo_ceil_div(x->shape[1], wh),
                         .n_across = agglo_ceil_div(x->shape[2], ww),
                         .c = x->shape[3],
                         .row_bytes = (size_t)x->shape[3] * agglo_dtype_size(x->dtype),
                         .bf16 = x->dtype == AGGLO_BF16,
                         .accumulate = accumulate};
}

static void window_partition(agglo_backend *be, const agglo_tensor *x, int64_t wh, int64_t ww, bool accumulate,
                             agglo_tensor *y)
{
    gather_work job = window_work(x, wh, ww, accumulate);

    job.from = x->data;
    job.to = y->data;
    agglo_pool_for(be->pool, y->shape[0], partition_window, &job);
}

static void window_merge(agglo_backend *be, const agglo_tensor *y, int64_t wh, int64_t ww, bool accumulate,
                         agglo_tensor *x)
{
    gather_work job = window_work(x, wh, ww, accumulate);

    job.from = y->data;
    job.to = x->data;
    agglo_pool_for(be->pool, y->shape[0], merge_window, &job);
}

static gather_work list_work(agglo_backend *be, const agglo_tensor *x, const agglo_tensor *index, const agglo_tensor *y)
{
    return (gather_work){.be = be,
                         .n = y->shape[1],
                         .m = x->shape[1],
                         .c = x->shape[2],
                         .row_bytes = (size_t)x->shape[2] * agglo_dtype_size(x->dtype),
                         .bf16 = x->dtype == AGGLO_BF16,
                         .per_image = index->rank == 2,
                         .index = index->data};
}

#define ROWS_AT_ONCE 16

static void gather_some(void *context, int64_t task, int worker)
{
    const gather_work *job = context;
    int64_t n_tasks = agglo_ceil_div(job->n, ROWS_AT_ONCE), b = task / n_tasks, first = task % n_tasks * ROWS_AT_ONCE;
    const int32_t *index = job->index + (job->per_image ? b * job->n : 0);

    (void)worker;
    for (int64_t i = first; i < agglo_min(first + ROWS_AT_ONCE, job->n); i++) {
        uint8_t *to = job->to + (size_t)(b * job->n + i) * job->row_bytes;

        if (index[i] < 0 || index[i] >= job->m) {
            memset(to, 0, job->row_bytes);
        } else {
            memcpy(to, job->from + (size_t)(b * job->m + index[i]) * job->row_bytes, job->row_bytes);
        }
    }
}

static void gather_rows(agglo_backend *be, const agglo_tensor *x, const agglo_tensor *index, agglo_tensor *y)
{
    gather_work job = list_work(be, x, index, y);

    job.from = x->data;
    job.to = y->data;
    agglo_pool_for(be->pool, y->shape[0] * agglo_ceil_div(job.n, ROWS_AT_ONCE), gather_some, &job);
}

/* start[m] .. start[m + 1]: the places in `order` of the entries that name row m, in order of the list. */
static void sort_list(const int32_t *index, int64_t n, int64_t m, int32_t *start, int32_t *order)
{
    memset(start, 0, (size_t)(m + 1) * sizeof *start);
    for (int64_t i = 0; i < n; i++) {
        if (index[i] >= 0 && index[i] < m) {
            start[index[i]]++;
        }
    }
    for (int64_t r = 0, sum = 0; r <= m; r++) {
        sum += start[r];
        start[r] = (int32_t)sum; /* the end of row r */
    }
    for (int64_t i = n - 1; i >= 0; i--) {
        if (index[i] >= 0 && index[i] < m) {
            order[--start[index[i]]] = (int32_t)i;
        }
    }
}

/* n elements of F32 or BF16 as F32, and back. */
static void widen(float *to, const void *from, agglo_dtype dtype, int64_t n)
{
    if (dtype == AGGLO_BF16) {
        agglo_cpu_from_bf16(n, from, to);
    } else {
        memcpy(to, from, (size_t)n * sizeof *to);
    }
}

static void narrow(void *to, const float *from, agglo_dtype dtype, int64_t n)
{
    if (dtype == AGGLO_BF16) {
        agglo_cpu_to_bf16(n, from, to);
    } else {
        memcpy(to, from, (size_t)n * sizeof *from);
    }
}

/* One task per some rows of x, their one writer. */
static void scatter_some(void *context, int64_t task, int worker)
{
    const gather_work *job = context;
    int64_t n_tasks = agglo_ceil_div(job->m, ROWS_AT_ONCE), b = task / n_tasks, first = task % n_tasks * ROWS_AT_ONCE;
    const int32_t *start = job->start + (job->per_image ? b * (job->m + 1) : 0),
                  *order = job->order + (job->per_image ? b * job->n : 0);
    float *sum = agglo_cpu_worker(job->be, worker);

    for (int64_t r = first; r < agglo_min(first + ROWS_AT_ONCE, job->m); r++) {
        uint8_t *to = job->to + (size_t)(b * job->m + r) * job->row_bytes;
        agglo_dtype dtype = job->bf16 ? AGGLO_BF16 : AGGLO_F32;

        if (job->accumulate && start[r] == start[r + 1]) {
            continue;
        }
        memset(sum, 0, (size_t)job->c * sizeof *sum);
        if (job->accumulate) {
            widen(sum, to, dtype, job->c);
        }
        for (int32_t k = start[r]; k < start[r + 1]; k++) {
            const uint8_t *from = job->from + (size_t)(b * job->n + order[k]) * job->row_bytes;
            const float *wide = (const float *)from;
            const uint16_t *half = (const uint16_t *)from;

            if (job->bf16) {
#pragma omp simd
                for (int64_t j = 0; j < job->c; j++) {
                    sum[j] += agglo_bf16_to_f32(half[j]);
                }
            } else {
#pragma omp simd
                for (int64_t j = 0; j < job->c; j++) {
                    sum[j] += wide[j];
                }
            }
        }
        narrow(to, sum, dtype, job->c);
    }
}

static void scatter_rows(agglo_backend *be, const agglo_tensor *y, const agglo_tensor *index, bool accumulate,
                         agglo_tensor *x)
{
    gather_work job = list_work(be, x, index, y);
    int64_t n_lists = job.per_image ? x->shape[0] : 1;
    size_t starts = (size_t)(n_lists * (job.m + 1)), orders = (size_t)(n_lists * job.n);
    int32_t *start, *order;

    job.from = y->data;
    job.to = x->data;
    job.accumulate = accumulate;
    if (!agglo_cpu_reserve(be, (starts + orders) * sizeof(int32_t), (size_t)job.c * sizeof(float))) {
        return;
    }
    start = agglo_cpu_shared(be);
    order = start + starts;
    for (int64_t l = 0; l < n_lists; l++) {
        sort_list(job.index + l * job.n, job.n, job.m, start + l * (job.m + 1), order + l * job.n);
    }
    job.start = start;
    job.order = order;
    agglo_pool_for(be->pool, x->shape[0] * agglo_ceil_div(job.m, ROWS_AT_ONCE), scatter_some, &job);
}

void AGGLO_CPU_NAME(gather_ops)(agglo_backend_ops *ops)
{
    ops->window_partition = window_partition;
    ops->window_merge = window_merge;
    ops->gather_rows = gather_rows;
    ops->scatter_rows = scatter_rows;
}
