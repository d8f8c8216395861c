/* Moving whole rows: windows of feature maps, and rows by a list.
 *
 *     window_partition   [B,H,W,C] -> [B nh nw, wh ww, C], zeros beyond the map, and back            2 elements read or written each
 *     gather_rows        y[b,i] = x[b, index[i]]
 *     scatter_rows       x[b,m] (+)= sum over i with index[i] = m of y[b,i]                         + 4 n bytes of list a row, from cache
 *
 * Mapping: channels on x, rows on y, images or windows on z (kernels.cuh). The scatter gathers: a thread per (row of x, channel) reads the
 * list in order, which is the same for all threads of a block, so that every sum has one order and nothing is atomic. It is for lists of
 * some thousands of rows. Numerics: F32 sums, rounded once.
 */
#include "tensor/cuda/kernels.cuh"

typedef struct window_work {
    int64_t n_windows, height, width, wh, ww, n_down, n_across, c;
    agglo_dtype dtype;
    bool accumulate;
} window_work;

template <bool MERGE> static __global__ void window_kernel(window_work job, const void *from, void *to)
{
    int64_t j = own_column();

    if (j >= job.c) {
        return;
    }
    PLANE_LOOP(window, job.n_windows)
    {
        int64_t x0 = window % job.n_across * job.ww, y0 = window / job.n_across % job.n_down * job.wh;
        int64_t image = window / job.n_across / job.n_down;

        ROW_LOOP(i, job.wh * job.ww)
        {
            int64_t y = y0 + i / job.ww, x = x0 + i % job.ww;
            int64_t inside = (window * job.wh * job.ww + i) * job.c + j;
            int64_t whole = ((image * job.height + y) * job.width + x) * job.c + j;
            bool exists = y < job.height && x < job.width;
            int64_t source = MERGE ? inside : whole, target = MERGE ? whole : inside;

            if (!exists && (MERGE || job.accumulate)) {
                continue;
            }
            set_element(to, job.dtype, target,
                        (exists ? element(from, job.dtype, source) : 0.0f) +
                            (job.accumulate ? element(to, job.dtype, target) : 0.0f));
        }
    }
}

template <bool MERGE>
static void move_windows(agglo_backend *be, const agglo_tensor *map, int64_t wh, int64_t ww, bool accumulate,
                         const void *from, void *to)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    window_work job;

    job.height = map->shape[1];
    job.width = map->shape[2];
    job.wh = wh;
    job.ww = ww;
    job.n_down = agglo_cuda_ceil_div(job.height, wh);
    job.n_across = agglo_cuda_ceil_div(job.width, ww);
    job.n_windows = map->shape[0] * job.n_down * job.n_across;
    job.c = map->shape[3];
    job.dtype = map->dtype;
    job.accumulate = accumulate;
    window_kernel<MERGE><<<row_grid(job.n_windows, wh * ww, job.c), row_block(job.c), 0, cuda->stream>>>(job, from, to);
    agglo_cuda_launched(cuda, MERGE ? "window_merge" : "window_partition");
}

static void window_partition(agglo_backend *be, const agglo_tensor *x, int64_t wh, int64_t ww, bool accumulate,
                             agglo_tensor *y)
{
    move_windows<false>(be, x, wh, ww, accumulate, x->data, y->data);
}

static void window_merge(agglo_backend *be, const agglo_tensor *y, int64_t wh, int64_t ww, bool accumulate,
                         agglo_tensor *x)
{
    move_windows<true>(be, x, wh, ww, accumulate, y->data, x->data);
}

static __global__ void gather_rows_kernel(int64_t batch, int64_t n, int64_t m, int64_t c, bool per_image,
                                          agglo_dtype dtype, const void *x, const int32_t *index, void *y)
{
    int64_t j = own_column();

    if (j >= c) {
        return;
    }
    PLANE_LOOP(b, batch)
    {
        ROW_LOOP(i, n)
        {
            int64_t row = index[(per_image ? b * n : 0) + i];

            set_element(y, dtype, (b * n + i) * c + j,
                        row >= 0 && row < m ? element(x, dtype, (b * m + row) * c + j) : 0.0f);
        }
    }
}

static void gather_rows(agglo_backend *be, const agglo_tensor *x, const agglo_tensor *index, agglo_tensor *y)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    int64_t batch = y->shape[0], n = y->shape[1], c = y->shape[2];

    gather_rows_kernel<<<row_grid(batch, n, c), row_block(c), 0, cuda->stream>>>(
        batch, n, x->shape[1], c, index->rank == 2, x->dtype, x->data, (const int32_t *)index->data, y->data);
    agglo_cuda_launched(cuda, "gather_rows");
}

static __global__ void scatter_rows_kernel(int64_t batch, int64_t n, int64_t m, int64_t c, bool per_image,
                                           bool accumulate, agglo_dtype dtype, const void *y, const int32_t *index,
                                           void *x)
{
    int64_t j = own_column();

    if (j >= c) {
        return;
    }
    PLANE_LOOP(b, batch)
    {
        const int32_t *list = index + (per_image ? b * n : 0);

        ROW_LOOP(row, m)
        {
            float sum = accumulate ? element(x, dtype, (b * m + row) * c + j) : 0.0f;

            for (int64_t i = 0; i < n; i++) {
                if (list[i] == row) {
                    sum += element(y, dtype, (b * n + i) * c + j);
                }
            }
            set_element(x, dtype, (b * m + row) * c + j, sum);
        }
    }
}

static void scatter_rows(agglo_backend *be, const agglo_tensor *y, const agglo_tensor *index, bool accumulate,
                         agglo_tensor *x)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    int64_t batch = x->shape[0], m = x->shape[1], c = x->shape[2];

    scatter_rows_kernel<<<row_grid(batch, m, c), row_block(c), 0, cuda->stream>>>(
        batch, y->shape[1], m, c, index->rank == 2, accumulate, x->dtype, y->data, (const int32_t *)index->data,
        x->data);
    agglo_cuda_launched(cuda, "scatter_rows");
}

void agglo_cuda_gather_ops(agglo_backend_ops *ops)
{
    ops->window_partition = window_partition;
    ops->window_merge = window_merge;
    ops->gather_rows = gather_rows;
    ops->scatter_rows = scatter_rows;
}
