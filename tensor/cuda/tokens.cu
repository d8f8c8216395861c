/* Moving tokens: pixels to patch vectors, prefix tokens and positions, slices, means.
 *
 *     patchify           u8 [B,H,W,3] -> [B,(H/p)(W/p),3pp], (v / 255 - mean) / std          1 byte in, one element out
 *     tokens_join        prefix [P,C] and patches [B,n,C] + pos -> [B,P+n,C]                  3 accesses an element
 *     tokens_slice       rows first.. of [B,n,C], and back                                     2
 *     tokens_mean        [B,n,C] -> [B,C], and back                                            1
 *
 * Mapping: channels on x, tokens (or pixels of a map) on y, images on z (kernels.cuh); a thread keeps its channel, or its 16 bytes of
 * them where aligned (patchify: one). Sums over images and tokens are one thread's, in order.
 * Numerics: F32 between load and store; patchify in exactly the order of ops.h with correctly rounded operations, so that pixels are the
 * same bytes on every backend. Deterministic, no atomics.
 */
#include "tensor/cuda/kernels.cuh"

/* ---- patchify ---- */

typedef struct pixel_scale {
    float mean[3], std[3];
} pixel_scale;

template <typename T>
static __global__ void patchify_kernel(int64_t batch, int64_t height, int64_t width, int patch, pixel_scale scale,
                                       const uint8_t *pixels, const int32_t *extents, T *patches)
{
    int64_t j = own_column(), grid_w = width / patch, n = height / patch * grid_w, size = (int64_t)3 * patch * patch;
    int channel, y, x;
    float mean, std;

    if (j >= size) {
        return;
    }
    channel = (int)(j / ((int64_t)patch * patch));
    mean = channel == 0 ? scale.mean[0] : channel == 1 ? scale.mean[1] : scale.mean[2];
    std = channel == 0 ? scale.std[0] : channel == 1 ? scale.std[1] : scale.std[2];
    y = (int)(j / patch % patch);
    x = (int)(j % patch);
    PLANE_LOOP(b, batch)
    {
        int64_t right = extents != NULL ? extents[2 * b] : width, below = extents != NULL ? extents[2 * b + 1] : height;

        ROW_LOOP(i, n)
        {
            int64_t row = i / grid_w * patch + y, column = i % grid_w * patch + x;
            float v = 0.0f;

            if (row < below && column < right) {
                v = (float)pixels[((b * height + row) * width + column) * 3 + channel];
                v = __fdiv_rn(__fsub_rn(__fdiv_rn(v, 255.0f), mean), std);
            }
            store<1>(&patches[(b * n + i) * size + j], &v);
        }
    }
}

template <typename T>
static void patchify_of(agglo_cuda *cuda, const agglo_tensor *pixels, const agglo_tensor *extents, pixel_scale scale,
                        int patch, agglo_tensor *patches)
{
    int64_t batch = pixels->shape[0], height = pixels->shape[1], width = pixels->shape[2];
    int64_t size = (int64_t)3 * patch * patch;

    patchify_kernel<T><<<row_grid(batch, height / patch * (width / patch), size), row_block(size), 0, cuda->stream>>>(
        batch, height, width, patch, scale, (const uint8_t *)pixels->data,
        extents != NULL ? (const int32_t *)extents->data : NULL, output_of<T>(patches));
    agglo_cuda_launched(cuda, "patchify");
}

static void patchify(agglo_backend *be, const agglo_tensor *pixels, const agglo_tensor *extents, const float mean[3],
                     const float std[3], int patch, agglo_tensor *patches)
{
    pixel_scale scale;

    for (int c = 0; c < 3; c++) {
        scale.mean[c] = mean[c];
        scale.std[c] = std[c];
    }
    BY_STORAGE(patches, patchify_of, agglo_cuda_enter(be), pixels, extents, scale, patch, patches);
}

/* ---- join ---- */

template <typename T, int N>
static __global__ void tokens_join_kernel(int64_t batch, int64_t n_prefix, int64_t n, int64_t c, const float *prefix,
                                          const T *x, const float *pos, int64_t pos_stride, T *y)
{
    int64_t j = own_columns<N>();

    if (j >= c) {
        return;
    }
    PLANE_LOOP(b, batch)
    {
        ROW_LOOP(t, n_prefix + n)
        {
            int64_t i = t - n_prefix;
            float v[N], p[N];

            if (i < 0) {
                load<N>(v, &prefix[t * c + j]);
            } else {
                load<N>(v, &x[(b * n + i) * c + j]);
            }
            if (i >= 0 && pos != NULL) {
                load<N>(p, &pos[b * pos_stride + i * c + j]);
#pragma unroll
                for (int k = 0; k < N; k++) {
                    v[k] += p[k];
                }
            }
            store<N>(&y[(b * (n_prefix + n) + t) * c + j], v);
        }
    }
}

/* How far apart the images' tables of positions are: 0 when they share one. */
static int64_t stride_of_positions(const agglo_tensor *pos, int64_t batch, int64_t n)
{
    int64_t c;

    if (pos == NULL) {
        return 0;
    }
    c = pos->shape[pos->rank - 1];
    return batch > 1 && agglo_tensor_count(pos) / c == batch * n ? n * c : 0;
}

template <typename T>
static void tokens_join_of(agglo_cuda *cuda, const float *prefix, const agglo_tensor *patches, const agglo_tensor *pos,
                           agglo_tensor *y)
{
    int64_t batch = y->shape[0], total = y->shape[1], c = y->shape[2], n = patches->shape[1];
    int64_t stride = stride_of_positions(pos, batch, n);

    if (wide<T>(c, prefix, patches->data, input(pos), y->data)) {
        int64_t groups = c / LANES(T);

        tokens_join_kernel<T, LANES(T)><<<row_grid(batch, total, groups), row_block(groups), 0, cuda->stream>>>(
            batch, total - n, n, c, prefix, input_of<T>(patches), input(pos), stride, output_of<T>(y));
    } else {
        tokens_join_kernel<T, 1><<<row_grid(batch, total, c), row_block(c), 0, cuda->stream>>>(
            batch, total - n, n, c, prefix, input_of<T>(patches), input(pos), stride, output_of<T>(y));
    }
    agglo_cuda_launched(cuda, "tokens_join");
}

static void tokens_join(agglo_backend *be, const agglo_tensor *prefix, const agglo_tensor *patches,
                        const agglo_tensor *pos, agglo_tensor *y)
{
    BY_STORAGE(y, tokens_join_of, agglo_cuda_enter(be), input(prefix), patches, pos, y);
}

/* A thread per (token's place, channels), over the images in order. */
template <typename T, int N>
static __global__ void tokens_join_bwd_kernel(int64_t batch, int64_t n_prefix, int64_t n, int64_t c, const T *d_y,
                                              float *d_prefix, T *d_patches, float *d_pos, int64_t pos_stride)
{
    int64_t j = own_columns<N>(), total = n_prefix + n;

    if (j >= c) {
        return;
    }
    ROW_LOOP(t, total)
    {
        int64_t i = t - n_prefix;
        float *sum_to = i >= 0 ? d_pos : d_prefix;
        float sum[N] = {};

        if (sum_to != NULL) {
            sum_to += (i >= 0 ? i : t) * c + j;
        }
        for (int64_t b = 0; b < batch; b++) {
            float d[N];

            load<N>(d, &d_y[(b * total + t) * c + j]);
#pragma unroll
            for (int k = 0; k < N; k++) {
                sum[k] += d[k];
            }
            if (i >= 0 && d_patches != NULL) {
                store<N>(&d_patches[(b * n + i) * c + j], d);
            }
            if (i >= 0 && d_pos != NULL && pos_stride > 0) {
                put<N>(&sum_to[b * pos_stride], d, true);
            }
        }
        if (sum_to != NULL && (i < 0 || pos_stride == 0)) {
            put<N>(sum_to, sum, true);
        }
    }
}

template <typename T>
static void tokens_join_bwd_of(agglo_cuda *cuda, int64_t n, const agglo_tensor *d_y, float *d_prefix,
                               agglo_tensor *d_patches, agglo_tensor *d_pos)
{
    int64_t batch = d_y->shape[0], total = d_y->shape[1], c = d_y->shape[2];
    int64_t stride = stride_of_positions(d_pos, batch, n);
    T *to = output_of<T>(d_patches);

    if (wide<T>(c, d_y->data, d_prefix, to, output(d_pos))) {
        int64_t groups = c / LANES(T);

        tokens_join_bwd_kernel<T, LANES(T)><<<row_grid(1, total, groups), row_block(groups), 0, cuda->stream>>>(
            batch, total - n, n, c, input_of<T>(d_y), d_prefix, to, output(d_pos), stride);
    } else {
        tokens_join_bwd_kernel<T, 1><<<row_grid(1, total, c), row_block(c), 0, cuda->stream>>>(
            batch, total - n, n, c, input_of<T>(d_y), d_prefix, to, output(d_pos), stride);
    }
    agglo_cuda_launched(cuda, "tokens_join_bwd");
}

static void tokens_join_bwd(agglo_backend *be, const agglo_tensor *d_y, agglo_tensor *d_prefix, agglo_tensor *d_patches,
                            agglo_tensor *d_pos)
{
    int64_t total = d_y->shape[1], c = d_y->shape[2], n = 0;

    if (d_prefix != NULL) {
        n = total - agglo_tensor_count(d_prefix) / c;
    } else if (d_patches != NULL) {
        n = d_patches->shape[1];
    } else if (d_pos != NULL) {
        n = d_pos->shape[d_pos->rank - 2];
    }
    BY_STORAGE(d_y, tokens_join_bwd_of, agglo_cuda_enter(be), n, d_y, output(d_prefix), d_patches, d_pos);
}

/* ---- slice ---- */

/* to[b, to_first + i] (+)= from[b, from_first + i] for n rows of images of to_total and from_total rows. */
template <typename T, int N>
static __global__ void slice_kernel(int64_t batch, int64_t n, int64_t c, const T *from, int64_t from_total,
                                    int64_t from_first, T *to, int64_t to_total, int64_t to_first, bool accumulate)
{
    int64_t j = own_columns<N>();

    if (j >= c) {
        return;
    }
    PLANE_LOOP(b, batch)
    {
        ROW_LOOP(i, n)
        {
            float v[N];

            load<N>(v, &from[(b * from_total + from_first + i) * c + j]);
            put<N>(&to[(b * to_total + to_first + i) * c + j], v, accumulate);
        }
    }
}

template <typename T>
static void slice_of(agglo_cuda *cuda, int64_t batch, int64_t n, int64_t c, const agglo_tensor *from,
                     int64_t from_first, agglo_tensor *to, int64_t to_first, bool accumulate, const char *what)
{
    if (wide<T>(c, from->data, to->data)) {
        int64_t groups = c / LANES(T);

        slice_kernel<T, LANES(T)><<<row_grid(batch, n, groups), row_block(groups), 0, cuda->stream>>>(
            batch, n, c, input_of<T>(from), from->shape[1], from_first, output_of<T>(to), to->shape[1], to_first,
            accumulate);
    } else {
        slice_kernel<T, 1><<<row_grid(batch, n, c), row_block(c), 0, cuda->stream>>>(
            batch, n, c, input_of<T>(from), from->shape[1], from_first, output_of<T>(to), to->shape[1], to_first,
            accumulate);
    }
    agglo_cuda_launched(cuda, what);
}

static void tokens_slice(agglo_backend *be, const agglo_tensor *x, int64_t first, agglo_tensor *y)
{
    BY_STORAGE(x, slice_of, agglo_cuda_enter(be), y->shape[0], y->shape[1], y->shape[2], x, first, y, 0, false,
               "tokens_slice");
}

static void tokens_slice_bwd(agglo_backend *be, const agglo_tensor *d_y, int64_t first, bool accumulate,
                             agglo_tensor *d_x)
{
    BY_STORAGE(d_y, slice_of, agglo_cuda_enter(be), d_y->shape[0], d_y->shape[1], d_y->shape[2], d_y, 0, d_x, first,
               accumulate, "tokens_slice_bwd");
}

/* ---- mean ---- */

template <typename T, int N>
static __global__ void tokens_mean_kernel(int64_t batch, int64_t n, int64_t c, const T *x, T *y)
{
    int64_t j = own_columns<N>();
    float inverse = 1.0f / (float)n;

    if (j >= c) {
        return;
    }
    ROW_LOOP(b, batch)
    {
        float sum[N] = {};

        for (int64_t i = 0; i < n; i++) {
            float v[N];

            load<N>(v, &x[(b * n + i) * c + j]);
#pragma unroll
            for (int k = 0; k < N; k++) {
                sum[k] += v[k];
            }
        }
#pragma unroll
        for (int k = 0; k < N; k++) {
            sum[k] *= inverse;
        }
        store<N>(&y[b * c + j], sum);
    }
}

template <typename T> static void tokens_mean_of(agglo_cuda *cuda, const agglo_tensor *x, agglo_tensor *y)
{
    int64_t batch = x->shape[0], n = x->shape[1], c = x->shape[2];

    if (wide<T>(c, x->data, y->data)) {
        int64_t groups = c / LANES(T);

        tokens_mean_kernel<T, LANES(T)><<<row_grid(1, batch, groups), row_block(groups), 0, cuda->stream>>>(
            batch, n, c, input_of<T>(x), output_of<T>(y));
    } else {
        tokens_mean_kernel<T, 1>
            <<<row_grid(1, batch, c), row_block(c), 0, cuda->stream>>>(batch, n, c, input_of<T>(x), output_of<T>(y));
    }
    agglo_cuda_launched(cuda, "tokens_mean");
}

static void tokens_mean(agglo_backend *be, const agglo_tensor *x, agglo_tensor *y)
{
    BY_STORAGE(x, tokens_mean_of, agglo_cuda_enter(be), x, y);
}

template <typename T, int N>
static __global__ void tokens_mean_bwd_kernel(int64_t batch, int64_t n, int64_t c, const T *d_y, bool accumulate,
                                              T *d_x)
{
    int64_t j = own_columns<N>();
    float inverse = 1.0f / (float)n;

    if (j >= c) {
        return;
    }
    PLANE_LOOP(b, batch)
    {
        float d[N];

        load<N>(d, &d_y[b * c + j]);
#pragma unroll
        for (int k = 0; k < N; k++) {
            d[k] *= inverse;
        }
        ROW_LOOP(i, n)
        {
            float v[N];

#pragma unroll
            for (int k = 0; k < N; k++) {
                v[k] = d[k];
            }
            put<N>(&d_x[(b * n + i) * c + j], v, accumulate);
        }
    }
}

template <typename T>
static void tokens_mean_bwd_of(agglo_cuda *cuda, const agglo_tensor *d_y, bool accumulate, agglo_tensor *d_x)
{
    int64_t batch = d_x->shape[0], n = d_x->shape[1], c = d_x->shape[2];

    if (wide<T>(c, d_y->data, d_x->data)) {
        int64_t groups = c / LANES(T);

        tokens_mean_bwd_kernel<T, LANES(T)><<<row_grid(batch, n, groups), row_block(groups), 0, cuda->stream>>>(
            batch, n, c, input_of<T>(d_y), accumulate, output_of<T>(d_x));
    } else {
        tokens_mean_bwd_kernel<T, 1><<<row_grid(batch, n, c), row_block(c), 0, cuda->stream>>>(
            batch, n, c, input_of<T>(d_y), accumulate, output_of<T>(d_x));
    }
    agglo_cuda_launched(cuda, "tokens_mean_bwd");
}

static void tokens_mean_bwd(agglo_backend *be, const agglo_tensor *d_y, bool accumulate, agglo_tensor *d_x)
{
    BY_STORAGE(d_y, tokens_mean_bwd_of, agglo_cuda_enter(be), d_y, accumulate, d_x);
}

void agglo_cuda_tokens_ops(agglo_backend_ops *ops)
{
    ops->patchify = patchify;
    ops->tokens_join = tokens_join;
    ops->tokens_join_bwd = tokens_join_bwd;
    ops->tokens_slice = tokens_slice;
    ops->tokens_slice_bwd = tokens_slice_bwd;
    ops->tokens_mean = tokens_mean;
    ops->tokens_mean_bwd = tokens_mean_bwd;
}
