/* Moving tokens: pixels to patch vectors, prefix tokens and positions, slices, means, resampling of feature maps.
 *
 *     patchify           u8 [B,H,W,3] -> [B,(H/p)(W/p),3pp], (v / 255 - mean) / std          5 bytes an element
 *     tokens_join        prefix [P,C] and patches [B,n,C] + pos -> [B,P+n,C]                  12
 *     tokens_slice       rows first.. of [B,n,C], and back                                     8
 *     tokens_mean        [B,n,C] -> [B,C], and back                                            4
 *     resize_bilinear    [B,h,w,C] -> [B,H,W,C], align_corners = false, and back               8, reads from cache
 *
 * Mapping: channels on x, tokens (or pixels of a map) on y, images on z (kernels.cuh); a thread keeps its channel. Sums over images
 * and tokens are one thread's, in order. The backward pass of resampling gathers: a thread visits the outputs that can read its pixel, a
 * range that integer arithmetic bounds from outside, and asks agglo_bilinear_at of each, as the forward pass did.
 * Numerics: F32; patchify in exactly the order of ops.h with correctly rounded operations, so that pixels are the same bytes on every
 * backend. Deterministic, no atomics.
 */
#include "tensor/cuda/kernels.cuh"

/* ---- patchify ---- */

typedef struct pixel_scale {
    float mean[3], std[3];
} pixel_scale;

static __global__ void patchify_kernel(int64_t batch, int64_t height, int64_t width, int patch, pixel_scale scale,
                                       const uint8_t *pixels, float *patches)
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
        ROW_LOOP(i, n)
        {
            int64_t row = i / grid_w * patch + y, column = i % grid_w * patch + x;
            float v = (float)pixels[((b * height + row) * width + column) * 3 + channel];

            patches[(b * n + i) * size + j] = __fdiv_rn(__fsub_rn(__fdiv_rn(v, 255.0f), mean), std);
        }
    }
}

static void patchify(agglo_backend *be, const agglo_tensor *pixels, const float mean[3], const float std[3], int patch,
                     agglo_tensor *patches)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    int64_t batch = pixels->shape[0], height = pixels->shape[1], width = pixels->shape[2];
    int64_t size = (int64_t)3 * patch * patch;
    pixel_scale scale;

    for (int c = 0; c < 3; c++) {
        scale.mean[c] = mean[c];
        scale.std[c] = std[c];
    }
    patchify_kernel<<<row_grid(batch, height / patch * (width / patch), size), row_block(size), 0, cuda->stream>>>(
        batch, height, width, patch, scale, (const uint8_t *)pixels->data, output(patches));
    agglo_cuda_launched(cuda, "patchify");
}

/* ---- join ---- */

static __global__ void tokens_join_kernel(int64_t batch, int64_t n_prefix, int64_t n, int64_t c, const float *prefix,
                                          const float *x, const float *pos, int64_t pos_stride, float *y)
{
    int64_t j = own_column();

    if (j >= c) {
        return;
    }
    PLANE_LOOP(b, batch)
    {
        ROW_LOOP(t, n_prefix + n)
        {
            int64_t i = t - n_prefix;
            float v;

            if (i < 0) {
                v = prefix[t * c + j];
            } else {
                v = x[(b * n + i) * c + j];
                v = pos == NULL ? v : v + pos[b * pos_stride + i * c + j];
            }
            y[(b * (n_prefix + n) + t) * c + j] = v;
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

static void tokens_join(agglo_backend *be, const agglo_tensor *prefix, const agglo_tensor *patches,
                        const agglo_tensor *pos, agglo_tensor *y)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    int64_t batch = y->shape[0], total = y->shape[1], c = y->shape[2], n = patches->shape[1];

    tokens_join_kernel<<<row_grid(batch, total, c), row_block(c), 0, cuda->stream>>>(
        batch, total - n, n, c, input(prefix), input(patches), input(pos), stride_of_positions(pos, batch, n),
        output(y));
    agglo_cuda_launched(cuda, "tokens_join");
}

/* A thread per (token's place, channel), over the images in order. */
static __global__ void tokens_join_bwd_kernel(int64_t batch, int64_t n_prefix, int64_t n, int64_t c, const float *d_y,
                                              float *d_prefix, float *d_patches, float *d_pos, int64_t pos_stride)
{
    int64_t j = own_column(), total = n_prefix + n;

    if (j >= c) {
        return;
    }
    ROW_LOOP(t, total)
    {
        int64_t i = t - n_prefix;
        float *sum_to = i >= 0 ? d_pos : d_prefix;
        float sum = 0.0f;

        if (sum_to != NULL) {
            sum_to += (i >= 0 ? i : t) * c + j;
        }
        for (int64_t b = 0; b < batch; b++) {
            float d = d_y[(b * total + t) * c + j];

            sum += d;
            if (i >= 0 && d_patches != NULL) {
                d_patches[(b * n + i) * c + j] = d;
            }
            if (i >= 0 && d_pos != NULL && pos_stride > 0) {
                sum_to[b * pos_stride] += d;
            }
        }
        if (sum_to != NULL && (i < 0 || pos_stride == 0)) {
            *sum_to += sum;
        }
    }
}

static void tokens_join_bwd(agglo_backend *be, const agglo_tensor *d_y, agglo_tensor *d_prefix, agglo_tensor *d_patches,
                            agglo_tensor *d_pos)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    int64_t batch = d_y->shape[0], total = d_y->shape[1], c = d_y->shape[2], n = 0;

    if (d_prefix != NULL) {
        n = total - agglo_tensor_count(d_prefix) / c;
    } else if (d_patches != NULL) {
        n = d_patches->shape[1];
    } else if (d_pos != NULL) {
        n = d_pos->shape[d_pos->rank - 2];
    }
    tokens_join_bwd_kernel<<<row_grid(1, total, c), row_block(c), 0, cuda->stream>>>(
        batch, total - n, n, c, input(d_y), output(d_prefix), output(d_patches), output(d_pos),
        stride_of_positions(d_pos, batch, n));
    agglo_cuda_launched(cuda, "tokens_join_bwd");
}

/* ---- slice ---- */

/* to[b, to_first + i] (+)= from[b, from_first + i] for n rows of images of to_total and from_total rows. */
static __global__ void slice_kernel(int64_t batch, int64_t n, int64_t c, const float *from, int64_t from_total,
                                    int64_t from_first, float *to, int64_t to_total, int64_t to_first, bool accumulate)
{
    int64_t j = own_column();

    if (j >= c) {
        return;
    }
    PLANE_LOOP(b, batch)
    {
        ROW_LOOP(i, n)
        {
            float v = from[(b * from_total + from_first + i) * c + j];
            float *at = &to[(b * to_total + to_first + i) * c + j];

            *at = accumulate ? *at + v : v;
        }
    }
}

static void tokens_slice(agglo_backend *be, const agglo_tensor *x, int64_t first, agglo_tensor *y)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    int64_t batch = y->shape[0], n = y->shape[1], c = y->shape[2];

    slice_kernel<<<row_grid(batch, n, c), row_block(c), 0, cuda->stream>>>(batch, n, c, input(x), x->shape[1], first,
                                                                           output(y), n, 0, false);
    agglo_cuda_launched(cuda, "tokens_slice");
}

static void tokens_slice_bwd(agglo_backend *be, const agglo_tensor *d_y, int64_t first, bool accumulate,
                             agglo_tensor *d_x)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    int64_t batch = d_y->shape[0], n = d_y->shape[1], c = d_y->shape[2];

    slice_kernel<<<row_grid(batch, n, c), row_block(c), 0, cuda->stream>>>(batch, n, c, input(d_y), n, 0, output(d_x),
                                                                           d_x->shape[1], first, accumulate);
    agglo_cuda_launched(cuda, "tokens_slice_bwd");
}

/* ---- mean ---- */

static __global__ void tokens_mean_kernel(int64_t batch, int64_t n, int64_t c, const float *x, float *y)
{
    int64_t j = own_column();
    float inverse = 1.0f / (float)n;

    if (j >= c) {
        return;
    }
    ROW_LOOP(b, batch)
    {
        float sum = 0.0f;

        for (int64_t i = 0; i < n; i++) {
            sum += x[(b * n + i) * c + j];
        }
        y[b * c + j] = sum * inverse;
    }
}

static void tokens_mean(agglo_backend *be, const agglo_tensor *x, agglo_tensor *y)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    int64_t batch = x->shape[0], n = x->shape[1], c = x->shape[2];

    tokens_mean_kernel<<<row_grid(1, batch, c), row_block(c), 0, cuda->stream>>>(batch, n, c, input(x), output(y));
    agglo_cuda_launched(cuda, "tokens_mean");
}

static __global__ void tokens_mean_bwd_kernel(int64_t batch, int64_t n, int64_t c, const float *d_y, bool accumulate,
                                              float *d_x)
{
    int64_t j = own_column();
    float inverse = 1.0f / (float)n;

    if (j >= c) {
        return;
    }
    PLANE_LOOP(b, batch)
    {
        float d = d_y[b * c + j] * inverse;

        ROW_LOOP(i, n)
        {
            float *at = &d_x[(b * n + i) * c + j];

            *at = accumulate ? *at + d : d;
        }
    }
}

static void tokens_mean_bwd(agglo_backend *be, const agglo_tensor *d_y, bool accumulate, agglo_tensor *d_x)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    int64_t batch = d_x->shape[0], n = d_x->shape[1], c = d_x->shape[2];

    tokens_mean_bwd_kernel<<<row_grid(batch, n, c), row_block(c), 0, cuda->stream>>>(batch, n, c, input(d_y),
                                                                                     accumulate, output(d_x));
    agglo_cuda_launched(cuda, "tokens_mean_bwd");
}

/* ---- resampling ---- */

typedef struct map_sizes {
    int64_t batch, h_in, w_in, h_out, w_out, c;
} map_sizes;

static map_sizes sizes_of(const agglo_tensor *in, const agglo_tensor *out)
{
    map_sizes s;

    s.batch = in->shape[0];
    s.h_in = in->shape[1];
    s.w_in = in->shape[2];
    s.h_out = out->shape[1];
    s.w_out = out->shape[2];
    s.c = in->shape[3];
    return s;
}

static __global__ void resize_kernel(map_sizes s, const float *x, float *y)
{
    int64_t j = own_column();

    if (j >= s.c) {
        return;
    }
    PLANE_LOOP(b, s.batch)
    {
        const float *map = x + b * s.h_in * s.w_in * s.c + j;

        ROW_LOOP(i, s.h_out * s.w_out)
        {
            agglo_bilinear v = agglo_bilinear_at(i / s.w_out, s.h_in, s.h_out);
            agglo_bilinear u = agglo_bilinear_at(i % s.w_out, s.w_in, s.w_out);
            const float *row0 = map + v.i0 * s.w_in * s.c, *row1 = map + v.i1 * s.w_in * s.c;

            y[(b * s.h_out * s.w_out + i) * s.c + j] = v.w0 * (u.w0 * row0[u.i0 * s.c] + u.w1 * row0[u.i1 * s.c]) +
                                                       v.w1 * (u.w0 * row1[u.i0 * s.c] + u.w1 * row1[u.i1 * s.c]);
        }
    }
}

static void resize_bilinear(agglo_backend *be, const agglo_tensor *x, agglo_tensor *y)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    map_sizes s = sizes_of(x, y);

    resize_kernel<<<row_grid(s.batch, s.h_out * s.w_out, s.c), row_block(s.c), 0, cuda->stream>>>(s, input(x),
                                                                                                  output(y));
    agglo_cuda_launched(cuda, "resize_bilinear");
}

/* Outputs first..last are all that may read input i, and some that do not: those with i - 1 <= s < i + 1 where
 * s = (o + 1/2) n_in / n_out - 1/2, two more on each side for rounding, and the ends, whose s is clamped. */
typedef struct readers {
    int64_t first, last;
} readers;

static __device__ inline readers readers_of(int64_t i, int64_t n_in, int64_t n_out)
{
    readers r;

    r.first = (2 * i - 1) * n_out / (2 * n_in) - 2;
    r.last = (2 * i + 3) * n_out / (2 * n_in) + 2;
    r.first = r.first < 0 ? 0 : r.first;
    r.last = r.last > n_out - 1 ? n_out - 1 : r.last;
    return r;
}

/* How much of input i output o reads. */
static __device__ inline float weight_of(int64_t i, int64_t o, int64_t n_in, int64_t n_out)
{
    agglo_bilinear at = agglo_bilinear_at(o, n_in, n_out);

    return (at.i0 == i ? at.w0 : 0.0f) + (at.i1 == i ? at.w1 : 0.0f);
}

static __global__ void resize_bwd_kernel(map_sizes s, const float *d_y, bool accumulate, float *d_x)
{
    int64_t j = own_column();

    if (j >= s.c) {
        return;
    }
    PLANE_LOOP(b, s.batch)
    {
        ROW_LOOP(i, s.h_in * s.w_in)
        {
            int64_t iy = i / s.w_in, ix = i % s.w_in;
            readers v = readers_of(iy, s.h_in, s.h_out), u = readers_of(ix, s.w_in, s.w_out);
            float *at = &d_x[(b * s.h_in * s.w_in + i) * s.c + j];
            float sum = 0.0f;

            for (int64_t oy = v.first; oy <= v.last; oy++) {
                const float *row = d_y + (b * s.h_out + oy) * s.w_out * s.c + j;
                float wy = weight_of(iy, oy, s.h_in, s.h_out);

                if (wy == 0.0f) {
                    continue;
                }
                for (int64_t ox = u.first; ox <= u.last; ox++) {
                    float wx = weight_of(ix, ox, s.w_in, s.w_out);

                    if (wx != 0.0f) {
                        sum += wy * wx * row[ox * s.c];
                    }
                }
            }
            *at = accumulate ? *at + sum : sum;
        }
    }
}

static void resize_bilinear_bwd(agglo_backend *be, const agglo_tensor *d_y, bool accumulate, agglo_tensor *d_x)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    map_sizes s = sizes_of(d_x, d_y);

    resize_bwd_kernel<<<row_grid(s.batch, s.h_in * s.w_in, s.c), row_block(s.c), 0, cuda->stream>>>(
        s, input(d_y), accumulate, output(d_x));
    agglo_cuda_launched(cuda, "resize_bilinear_bwd");
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
    ops->resize_bilinear = resize_bilinear;
    ops->resize_bilinear_bwd = resize_bilinear_bwd;
}
