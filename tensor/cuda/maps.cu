/* Feature maps [B,H,W,C]: pooling, channel-first and channels-last, blocks of channels or tokens, the residual of stochastic depth.
 *
 *     avgpool2d        y = mean over the window;  d_x[pixel] (+)= sum of d_y / window over the windows that hold it
 *     maxpool2d        y = largest, index = where;  d_x[pixel] (+)= sum of d_y over the windows whose index it is
 *     transpose        y[b][j][i] = x[b][i][j]
 *     copy_block       y[i, y_first + j] (+)= x[i, x_first + j]
 *     residual_drop    y = x + scale[b] gamma[j] h;  d_h (+)= scale gamma d_y;  d_gamma[j] += sum of scale d_y h
 *
 * Mapping: pooling has channels on x, pixels on y, images on z; transpose tiles of 32 x 32 through shared memory, 8 rows of threads; copy_block
 * (written) and residual_drop 16 bytes a thread where extents and addresses allow, rows on y. d_gamma: a block of 32 channels x 8 rows per chunk of rows, then the
 * chunks in order (reduce.cu).
 * Bytes moved: each input and output once, pooling windows that overlap from the cache. Numerics: F32; sums in the order of windows;
 * deterministic.
 */
#include "tensor/cuda/storage.cuh"

#define TILE     32
#define SUM_ROWS 8

/* ---- pooling ---- */

typedef struct pool_shape {
    int64_t batch, h, w, c, oh, ow;
    int kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w;
} pool_shape;

static pool_shape pool_of(const agglo_pool2d_config *p, const agglo_tensor *image, const agglo_tensor *out)
{
    pool_shape s = {image->shape[0], image->shape[1], image->shape[2], image->shape[3], out->shape[1], out->shape[2],
                    p->kernel_h,     p->kernel_w,     p->stride_h,     p->stride_w,     p->pad_h,      p->pad_w};

    return s;
}

template <typename T> static __global__ void avgpool_kernel(pool_shape s, const T *x, T *y)
{
    int64_t j = own_column();
    float part = 1.0f / (float)(s.kernel_h * s.kernel_w);

    if (j >= s.c) {
        return;
    }
    PLANE_LOOP(image, s.batch)
    {
        ROW_LOOP(i, s.oh * s.ow)
        {
            int64_t oy = i / s.ow, ox = i - oy * s.ow;
            float sum = 0.0f;

            for (int ky = 0; ky < s.kernel_h; ky++) {
                int64_t line = (image * s.h + oy * s.stride_h + ky) * s.w + ox * s.stride_w;

                for (int kx = 0; kx < s.kernel_w; kx++) {
                    sum += get(&x[(line + kx) * s.c + j]);
                }
            }
            put(&y[(image * s.oh * s.ow + i) * s.c + j], sum * part);
        }
    }
}

static void avgpool2d(agglo_backend *be, const agglo_pool2d_config *config, const agglo_tensor *x, agglo_tensor *y)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    pool_shape s = pool_of(config, x, y);

    WITH_STORAGE(x->dtype, T,
                 avgpool_kernel<T><<<row_grid(s.batch, s.oh * s.ow, s.c), row_block(s.c), 0, cuda->stream>>>(
                     s, (const T *)x->data, (T *)y->data));
    agglo_cuda_launched(cuda, "avgpool2d");
}

template <typename T> static __global__ void maxpool_kernel(pool_shape s, const T *x, T *y, int32_t *index)
{
    int64_t j = own_column();

    if (j >= s.c) {
        return;
    }
    PLANE_LOOP(image, s.batch)
    {
        ROW_LOOP(i, s.oh * s.ow)
        {
            int64_t oy = i / s.ow, ox = i - oy * s.ow, at = (image * s.oh * s.ow + i) * s.c + j;
            int64_t place = -1;
            float most = 0.0f;

            for (int ky = 0; ky < s.kernel_h; ky++) {
                int64_t iy = oy * s.stride_h - s.pad_h + ky;

                for (int kx = 0; iy >= 0 && iy < s.h && kx < s.kernel_w; kx++) {
                    int64_t ix = ox * s.stride_w - s.pad_w + kx;

                    if (ix >= 0 && ix < s.w) {
                        float v = get(&x[((image * s.h + iy) * s.w + ix) * s.c + j]);

                        if (place < 0 || v > most || (v != v && most == most)) {
                            most = v;
                            place = iy * s.w + ix;
                        }
                    }
                }
            }
            put(&y[at], most);
            if (index != NULL) {
                index[at] = (int32_t)place;
            }
        }
    }
}

static void maxpool2d(agglo_backend *be, const agglo_pool2d_config *config, const agglo_tensor *x, agglo_tensor *y,
                      agglo_tensor *index)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    pool_shape s = pool_of(config, x, y);

    WITH_STORAGE(x->dtype, T,
                 maxpool_kernel<T><<<row_grid(s.batch, s.oh * s.ow, s.c), row_block(s.c), 0, cuda->stream>>>(
                     s, (const T *)x->data, (T *)y->data, index == NULL ? NULL : (int32_t *)index->data));
    agglo_cuda_launched(cuda, "maxpool2d");
}

/* First output whose window holds place i, and one past the last. */
static __device__ inline int64_t first_over(int64_t i, int kernel, int stride, int pad)
{
    int64_t first = i + pad - kernel + 1;

    return first <= 0 ? 0 : (first + stride - 1) / stride;
}

static __device__ inline int64_t end_over(int64_t i, int stride, int pad, int64_t n_out)
{
    int64_t end = (i + pad) / stride + 1;

    return end < n_out ? end : n_out;
}

/* Without index: the average's. */
template <typename T>
static __global__ void pool_bwd_kernel(pool_shape s, const T *d_y, const int32_t *index, bool accumulate, T *d_x)
{
    int64_t j = own_column();
    float part = index != NULL ? 1.0f : 1.0f / (float)(s.kernel_h * s.kernel_w);

    if (j >= s.c) {
        return;
    }
    PLANE_LOOP(image, s.batch)
    {
        ROW_LOOP(i, s.h * s.w)
        {
            int64_t iy = i / s.w, ix = i - iy * s.w;
            int64_t y1 = end_over(iy, s.stride_h, s.pad_h, s.oh), x1 = end_over(ix, s.stride_w, s.pad_w, s.ow);
            float sum = 0.0f;

            for (int64_t oy = first_over(iy, s.kernel_h, s.stride_h, s.pad_h); oy < y1; oy++) {
                for (int64_t ox = first_over(ix, s.kernel_w, s.stride_w, s.pad_w); ox < x1; ox++) {
                    int64_t at = ((image * s.oh + oy) * s.ow + ox) * s.c + j;

                    sum += index == NULL || index[at] == (int32_t)i ? get(&d_y[at]) : 0.0f;
                }
            }
            put_or_add(&d_x[(image * s.h * s.w + i) * s.c + j], sum * part, accumulate);
        }
    }
}

static void maxpool2d_bwd(agglo_backend *be, const agglo_pool2d_config *config, const agglo_tensor *d_y,
                          const agglo_tensor *index, bool accumulate, agglo_tensor *d_x)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    pool_shape s = pool_of(config, d_x, d_y);

    WITH_STORAGE(
        d_x->dtype, T,
        pool_bwd_kernel<T><<<row_grid(s.batch, s.h * s.w, s.c), row_block(s.c), 0, cuda->stream>>>(
            s, (const T *)d_y->data, index == NULL ? NULL : (const int32_t *)index->data, accumulate, (T *)d_x->data));
    agglo_cuda_launched(cuda, "pooling, backward");
}

static void avgpool2d_bwd(agglo_backend *be, const agglo_pool2d_config *config, const agglo_tensor *d_y,
                          bool accumulate, agglo_tensor *d_x)
{
    maxpool2d_bwd(be, config, d_y, NULL, accumulate, d_x);
}

/* ---- layout ---- */

/* Tiles of m on x, of n on y. */
template <typename V> static __global__ void transpose_kernel(int64_t batch, int64_t m, int64_t n, const V *x, V *y)
{
    __shared__ V tile[TILE][TILE + 1];
    int64_t i0 = (int64_t)blockIdx.x * TILE;

    PLANE_LOOP(b, batch)
    {
        for (int64_t j0 = (int64_t)blockIdx.y * TILE; j0 < n; j0 += (int64_t)gridDim.y * TILE) {
            for (int r = (int)threadIdx.y; r < TILE; r += SUM_ROWS) {
                int64_t i = i0 + r, j = j0 + threadIdx.x;

                if (i < m && j < n) {
                    tile[r][threadIdx.x] = x[(b * m + i) * n + j];
                }
            }
            __syncthreads();
            for (int r = (int)threadIdx.y; r < TILE; r += SUM_ROWS) {
                int64_t i = i0 + threadIdx.x, j = j0 + r;

                if (i < m && j < n) {
                    y[(b * n + j) * m + i] = tile[threadIdx.x][r];
                }
            }
            __syncthreads();
        }
    }
}

static void transpose(agglo_backend *be, int64_t batch, int64_t m, int64_t n, const agglo_tensor *x, agglo_tensor *y)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    dim3 grid(agglo_cuda_grid(agglo_cuda_ceil_div(m, TILE), MOST_GRID),
              agglo_cuda_grid(agglo_cuda_ceil_div(n, TILE), MOST_PLANE), agglo_cuda_grid(batch, MOST_PLANE));
    dim3 block(TILE, SUM_ROWS);

    if (agglo_dtype_size(x->dtype) == 4) {
        transpose_kernel<uint32_t>
            <<<grid, block, 0, cuda->stream>>>(batch, m, n, (const uint32_t *)x->data, (uint32_t *)y->data);
    } else {
        transpose_kernel<uint16_t>
            <<<grid, block, 0, cuda->stream>>>(batch, m, n, (const uint16_t *)x->data, (uint16_t *)y->data);
    }
    agglo_cuda_launched(cuda, "transpose");
}

/* Extents, strides and places in units of V. */
typedef struct block_shape {
    int64_t rows, cols, x_stride, x_first, y_stride, y_first;
} block_shape;

template <typename V> static __global__ void copy_kernel(block_shape s, const V *x, V *y)
{
    int64_t j = own_column();

    if (j >= s.cols) {
        return;
    }
    TALL_LOOP(i, s.rows)
    {
        y[i * s.y_stride + s.y_first + j] = x[i * s.x_stride + s.x_first + j];
    }
}

template <typename T> static __global__ void add_kernel(block_shape s, const T *x, T *y)
{
    int64_t j = own_column();

    if (j >= s.cols) {
        return;
    }
    TALL_LOOP(i, s.rows)
    {
        put_or_add(&y[i * s.y_stride + s.y_first + j], get(&x[i * s.x_stride + s.x_first + j]), true);
    }
}

static void copy_block(agglo_backend *be, int64_t rows, int64_t cols, const agglo_tensor *x, int64_t x_stride,
                       int64_t x_first, bool accumulate, agglo_tensor *y, int64_t y_stride, int64_t y_first)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    block_shape s = {rows, cols, x_stride, x_first, y_stride, y_first};
    int64_t unit = 16 / (int64_t)agglo_dtype_size(x->dtype); /* elements in 16 bytes */
    bool whole = ((uintptr_t)x->data | (uintptr_t)y->data) % 16 == 0 && cols % unit == 0 && x_stride % unit == 0 &&
                 x_first % unit == 0 && y_stride % unit == 0 && y_first % unit == 0;

    if (accumulate) {
        WITH_STORAGE(x->dtype, T,
                     add_kernel<T><<<tall_grid(cuda, rows, cols), tall_block(cols), 0, cuda->stream>>>(
                         s, (const T *)x->data, (T *)y->data));
    } else if (whole) {
        block_shape u = {rows, cols / unit, x_stride / unit, x_first / unit, y_stride / unit, y_first / unit};

        copy_kernel<uint4><<<tall_grid(cuda, rows, u.cols), tall_block(u.cols), 0, cuda->stream>>>(
            u, (const uint4 *)x->data, (uint4 *)y->data);
    } else {
        WITH_STORAGE(x->dtype, T,
                     copy_kernel<T><<<tall_grid(cuda, rows, cols), tall_block(cols), 0, cuda->stream>>>(
                         s, (const T *)x->data, (T *)y->data));
    }
    agglo_cuda_launched(cuda, "copying a block");
}

/* ---- the residual of stochastic depth: per_sample rows share a scale ---- */

template <typename T, int N>
static __global__ void drop_kernel(int64_t m, int64_t c, int64_t per_sample, const T *x, const T *h, const float *gamma,
                                   const float *scale, T *y)
{
    int64_t j = own_columns<N>();
    float of_channel[N];

    if (j >= c) {
        return;
    }
    load_or<N>(of_channel, gamma, j, 1.0f);
    TALL_LOOP(i, m)
    {
        float s = scale[i / per_sample], v[N], add[N];

        load<N>(v, x + i * c + j);
        load<N>(add, h + i * c + j);
#pragma unroll
        for (int k = 0; k < N; k++) {
            v[k] += s * of_channel[k] * add[k];
        }
        store<N>(y + i * c + j, v);
    }
}

static void residual_drop(agglo_backend *be, const agglo_tensor *x, const agglo_tensor *h, const agglo_tensor *gamma,
                          const agglo_tensor *scale, agglo_tensor *y)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    int64_t c = x->shape[x->rank - 1], m = agglo_tensor_count(x) / c, per_sample = m / x->shape[0];

    WITH_STORAGE(x->dtype, T,
                 TALL_LAUNCH(cuda, T, m, c, drop_kernel, (c, x->data, h->data, input(gamma), y->data), m, c, per_sample,
                             input_of<T>(x), input_of<T>(h), input(gamma), input(scale), output_of<T>(y)));
    agglo_cuda_launched(cuda, "residual_drop");
}

/* partial[chunk][c]; per_sample rows share a scale */
template <typename T>
static __global__ void drop_gamma_kernel(int64_t m, int64_t c, int64_t per_sample, int64_t chunk_rows, const T *d_y,
                                         const T *h, const float *scale, float *partial)
{
    __shared__ float sums[SUM_ROWS][WARP];
    int64_t j = (int64_t)blockIdx.x * WARP + threadIdx.x;
    int64_t first = (int64_t)blockIdx.y * chunk_rows;
    int64_t end = first + chunk_rows < m ? first + chunk_rows : m;
    float sum = 0.0f;

    if (j < c) {
        for (int64_t i = first + threadIdx.y; i < end; i += SUM_ROWS) {
            sum += scale[i / per_sample] * get(&d_y[i * c + j]) * get(&h[i * c + j]);
        }
    }
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && j < c) {
        for (int r = 1; r < SUM_ROWS; r++) {
            sum += sums[r][threadIdx.x];
        }
        partial[(int64_t)blockIdx.y * c + j] = sum;
    }
}

template <typename T, int N>
static __global__ void drop_bwd_kernel(int64_t m, int64_t c, int64_t per_sample, const T *d_y, const float *gamma,
                                       const float *scale, bool accumulate, T *d_h)
{
    int64_t j = own_columns<N>();
    float of_channel[N];

    if (j >= c) {
        return;
    }
    load_or<N>(of_channel, gamma, j, 1.0f);
    TALL_LOOP(i, m)
    {
        float s = scale[i / per_sample], v[N];

        load<N>(v, d_y + i * c + j);
#pragma unroll
        for (int k = 0; k < N; k++) {
            v[k] *= s * of_channel[k];
        }
        put<N>(d_h + i * c + j, v, accumulate);
    }
}

/* d_gamma first: d_h may be d_y. */
static void residual_drop_bwd(agglo_backend *be, const agglo_tensor *d_y, const agglo_tensor *h,
                              const agglo_tensor *gamma, const agglo_tensor *scale, bool accumulate, agglo_tensor *d_h,
                              agglo_tensor *d_gamma)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    int64_t c = d_y->shape[d_y->rank - 1], m = agglo_tensor_count(d_y) / c, per_sample = m / d_y->shape[0];

    if (d_gamma != NULL) {
        agglo_cuda_chunks chunks = agglo_cuda_row_chunks(m);
        float *partial = (float *)agglo_cuda_reserve(cuda, (size_t)(chunks.n * c) * sizeof(float));
        dim3 grid((unsigned)agglo_cuda_ceil_div(c, WARP), (unsigned)chunks.n);

        if (partial == NULL) {
            return;
        }
        WITH_STORAGE(
            d_y->dtype, T,
            drop_gamma_kernel<T><<<grid, dim3(WARP, SUM_ROWS), 0, cuda->stream>>>(
                m, c, per_sample, chunks.n_rows, (const T *)d_y->data, (const T *)h->data, input(scale), partial));
        agglo_cuda_launched(cuda, "residual_drop_bwd");
        agglo_cuda_add_partials(cuda, chunks.n, c, output(d_gamma), 0, NULL, partial);
    }
    WITH_STORAGE(d_y->dtype, T,
                 TALL_LAUNCH(cuda, T, m, c, drop_bwd_kernel, (c, d_y->data, input(gamma), d_h->data), m, c, per_sample,
                             input_of<T>(d_y), input(gamma), input(scale), accumulate, output_of<T>(d_h)));
    agglo_cuda_launched(cuda, "residual_drop_bwd");
}

void agglo_cuda_maps_ops(agglo_backend_ops *ops)
{
    ops->avgpool2d = avgpool2d;
    ops->avgpool2d_bwd = avgpool2d_bwd;
    ops->maxpool2d = maxpool2d;
    ops->maxpool2d_bwd = maxpool2d_bwd;
    ops->transpose = transpose;
    ops->copy_block = copy_block;
    ops->residual_drop = residual_drop;
    ops->residual_drop_bwd = residual_drop_bwd;
}
