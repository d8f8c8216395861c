/* Convolutions: windows laid out as rows and multiplied by cuBLASLt, in pieces that stay in the second-level cache; depthwise ones directly.
 *
 *     gather     y[m,o] = act(rows(x)[m,k] w[o,k]^T + b), k = (ky, kx, c)        lay out, product, then b and act
 *     scatter    cols[m,k] = y[m,o] w[o,k];  x[pixel] = act(sum of its cols + b)  product, collect
 *     weight     d_w[o,k] += y[m,o]^T rows(x)[m,k];  d_b += column sums          lay out, product
 *
 * Mapping: lay_out moves vectors of 16 bytes where channels allow, a thread each, flat, in 32-bit arithmetic (pieces are small). finish and
 * collect have 16 bytes of channels on x and pixels on y: a pixel sums over the taps that reach it, in order, so nothing is added by two threads.
 * Depthwise kernels have channels on x and pixels on y; their weight gradient a block of 32 channels x 8 rows per chunk of pixels and tap.
 * Bytes moved: laid-out rows and cols (k times the pixels) go through the cache, PIECE_BYTES at a time; the rest once.
 * Numerics: sums and cols in F32 whatever the storage type, BF16 rounded once; chunks added in order, in double; deterministic.
 */
#include "tensor/cuda/storage.cuh"

#define PIECE_BYTES ((int64_t)24 << 20)
#define LEAST_PIECE 256 /* rows of a product */
#define SUM_ROWS    8

/* A convolution's shape in 32 bits, channels counted in the units that are moved. */
typedef struct window_shape {
    unsigned c, oh, ow, kw, k;
    int h, w, stride_h, stride_w, pad_h, pad_w;
} window_shape;

static size_t rounded(int64_t n_bytes)
{
    return (size_t)((n_bytes + 255) / 256 * 256);
}

static int64_t at_least(int64_t n, int64_t least)
{
    return n < least ? least : n;
}

static int64_t at_most(int64_t n, int64_t most)
{
    return n > most ? most : n;
}

static const void *offset(const void *p, agglo_dtype dtype, int64_t i)
{
    return (const uint8_t *)p + i * (int64_t)agglo_dtype_size(dtype);
}

static bool pointwise(const agglo_conv_shape *s)
{
    return s->kh == 1 && s->kw == 1 && s->stride_h == 1 && s->stride_w == 1;
}

/* ---- laying windows out ---- */

/* out[i][j] = element j of the window of output pixel m0 + i; n elements of V in all. */
template <typename V>
static __global__ void lay_out_kernel(window_shape s, unsigned m0, unsigned n, V zero, const V *x, V *out)
{
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        unsigned row = i / s.k, j = i - row * s.k, tap = j / s.c, channel = j - tap * s.c;
        unsigned pixel = m0 + row, line = pixel / s.ow, ox = pixel - line * s.ow, image = line / s.oh;
        unsigned oy = line - image * s.oh, ky = tap / s.kw, kx = tap - ky * s.kw;
        int iy = (int)oy * s.stride_h - s.pad_h + (int)ky, ix = (int)ox * s.stride_w - s.pad_w + (int)kx;
        bool inside = iy >= 0 && iy < s.h && ix >= 0 && ix < s.w;

        out[i] = inside ? x[(((int64_t)image * s.h + iy) * s.w + ix) * s.c + channel] : zero;
    }
}

template <typename V>
static void lay_out_units(agglo_cuda *cuda, const agglo_conv_shape *s, int64_t m0, int64_t m, int64_t per_unit, V zero,
                          const void *x, void *out)
{
    window_shape shape = {(unsigned)(s->c / per_unit),
                          (unsigned)s->oh,
                          (unsigned)s->ow,
                          (unsigned)s->kw,
                          (unsigned)(s->kh * s->kw * (s->c / per_unit)),
                          (int)s->h,
                          (int)s->w,
                          (int)s->stride_h,
                          (int)s->stride_w,
                          (int)s->pad_h,
                          (int)s->pad_w};
    int64_t n = m * shape.k;

    lay_out_kernel<V><<<flat_grid(cuda, n), BLOCK, 0, cuda->stream>>>(shape, (unsigned)m0, (unsigned)n, zero,
                                                                      (const V *)x, (V *)out);
    agglo_cuda_launched(cuda, "laying out windows");
}

static void lay_out(agglo_cuda *cuda, const agglo_conv_shape *s, int64_t m0, int64_t m, agglo_dtype dtype,
                    const void *x, void *out)
{
    int64_t per_vector = 16 / (int64_t)agglo_dtype_size(dtype);

    if (s->c % per_vector == 0 && ((uintptr_t)x | (uintptr_t)out) % 16 == 0) {
        lay_out_units<uint4>(cuda, s, m0, m, per_vector, make_uint4(0, 0, 0, 0), x, out);
    } else if (dtype == AGGLO_BF16) {
        lay_out_units<uint16_t>(cuda, s, m0, m, 1, 0, x, out);
    } else {
        lay_out_units<float>(cuda, s, m0, m, 1, 0.0f, x, out);
    }
}

/* Rows of a piece: at most PIECE_BYTES of them, so that its elements fit into 31 bits. */
static int64_t piece_rows(int64_t m, int64_t row_bytes)
{
    return at_most(m, at_least(PIECE_BYTES / row_bytes, LEAST_PIECE));
}

/* ---- gather ---- */

/* pre = sums + b, y = act(pre) */
template <typename T, int N>
static __global__ void finish_kernel(agglo_act act, int64_t m, int64_t n, const float *sums, const float *b, T *pre,
                                     T *y)
{
    int64_t j = own_columns<N>();
    float bias[N];

    if (j >= n) {
        return;
    }
    load_or<N>(bias, b, j, 0.0f);
    TALL_LOOP(i, m)
    {
        float v[N];

        load<N>(v, sums + i * n + j);
#pragma unroll
        for (int k = 0; k < N; k++) {
            v[k] += bias[k];
        }
        if (pre != NULL) {
            store<N>(pre + i * n + j, v);
        }
        act_values<N>(act, v);
        store<N>(y + i * n + j, v);
    }
}

template <typename T>
static __global__ void depthwise_gather_kernel(agglo_conv_shape s, const T *x, const T *w, const float *b,
                                               agglo_act act, bool accumulate, T *pre, T *y)
{
    int64_t j = own_column();

    if (j >= s.c) {
        return;
    }
    float bias = b == NULL ? 0.0f : b[j];

    PLANE_LOOP(image, s.batch)
    {
        ROW_LOOP(i, s.oh * s.ow)
        {
            int64_t oy = i / s.ow, ox = i - oy * s.ow, at = (image * s.oh * s.ow + i) * s.c + j;
            float sum = bias;

            for (int64_t ky = 0; ky < s.kh; ky++) {
                int64_t iy = oy * s.stride_h - s.pad_h + ky;

                for (int64_t kx = 0; iy >= 0 && iy < s.h && kx < s.kw; kx++) {
                    int64_t ix = ox * s.stride_w - s.pad_w + kx;

                    if (ix >= 0 && ix < s.w) {
                        sum +=
                            get(&x[((image * s.h + iy) * s.w + ix) * s.c + j]) * get(&w[(j * s.kh + ky) * s.kw + kx]);
                    }
                }
            }
            if (pre != NULL) {
                put(&pre[at], sum);
            }
            put_or_add(&y[at], act_value(act, sum), accumulate);
        }
    }
}

static void conv_gather(agglo_backend *be, const agglo_conv_shape *s, const agglo_tensor *x, const agglo_tensor *w,
                        const agglo_tensor *b, agglo_act act, bool accumulate, agglo_tensor *pre, agglo_tensor *y)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    agglo_dtype dtype = x->dtype;
    int64_t m = s->batch * s->oh * s->ow, k = s->kh * s->kw * s->c, size = (int64_t)agglo_dtype_size(dtype);
    bool finish = b != NULL || pre != NULL || act != AGGLO_ACT_NONE, sums = finish && dtype != AGGLO_F32;
    int64_t step = m;
    size_t laid_bytes = 0, sums_bytes = 0;
    uint8_t *scratch = NULL;

    AGGLO_ASSERT(m <= INT32_MAX);
    if (s->depthwise) {
        WITH_STORAGE(dtype, T,
                     depthwise_gather_kernel<T>
                     <<<row_grid(s->batch, s->oh * s->ow, s->c), row_block(s->c), 0, cuda->stream>>>(
                         *s, (const T *)x->data, (const T *)w->data, input(b), act, accumulate,
                         pre == NULL ? NULL : (T *)pre->data, (T *)y->data));
        agglo_cuda_launched(cuda, "conv2d");
        return;
    }
    if (!pointwise(s)) {
        step = piece_rows(m, k * size);
        laid_bytes = rounded(step * k * size);
    } else if (sums) {
        step = piece_rows(m, s->o * 4);
    }
    sums_bytes = sums ? rounded(step * s->o * 4) : 0;
    if (laid_bytes + sums_bytes > 0) {
        scratch = (uint8_t *)agglo_cuda_reserve(cuda, laid_bytes + sums_bytes);
        if (scratch == NULL) {
            return;
        }
    }
    for (int64_t m0 = 0; m0 < m; m0 += step) {
        int64_t n = at_most(m - m0, step), at = m0 * s->o;
        const void *rows = scratch;
        void *y_at = (void *)offset(y->data, dtype, at), *pre_at = NULL;
        float *out = sums ? (float *)(scratch + laid_bytes) : NULL;

        if (pre != NULL) {
            pre_at = (void *)offset(pre->data, dtype, at);
        }
        if (pointwise(s)) {
            rows = offset(x->data, dtype, m0 * k);
        } else {
            lay_out(cuda, s, m0, n, dtype, x->data, scratch);
        }
        agglo_cuda_gemm_of(cuda, false, true, n, s->o, k, dtype, rows, w->data, accumulate ? 1.0f : 0.0f,
                           sums ? AGGLO_F32 : dtype, sums ? out : y_at);
        if (finish) {
            const float *from = sums ? out : (const float *)y_at;

            WITH_STORAGE(dtype, T,
                         TALL_LAUNCH(cuda, T, n, s->o, finish_kernel, (s->o, from, input(b), pre_at, y_at), act, n,
                                     s->o, from, input(b), (T *)pre_at, (T *)y_at));
            agglo_cuda_launched(cuda, "conv2d");
        }
    }
}

/* ---- scatter ---- */

/* Image rows [row0, row0 + rows) of images [image0, image0 + n_images), from the cols of their output rows [oy0, oy0 + n_oy). */
typedef struct band {
    int64_t image0, n_images, row0, rows, oy0, n_oy;
} band;

template <typename T, int N>
static __global__ void collect_kernel(agglo_conv_shape s, band at, const float *cols, const float *b, agglo_act act,
                                      bool accumulate, T *pre, T *x)
{
    int64_t j = own_columns<N>(), pixels = at.rows * s.w;
    float bias[N];

    if (j >= s.c) {
        return;
    }
    load_or<N>(bias, b, j, 0.0f);
    TALL_LOOP(i, at.n_images * pixels)
    {
        int64_t image = i / pixels, pixel = i - image * pixels, y = pixel / s.w, ix = pixel - y * s.w, iy = at.row0 + y;
        int64_t to = (((at.image0 + image) * s.h + iy) * s.w + ix) * s.c + j;
        float sum[N];

#pragma unroll
        for (int k = 0; k < N; k++) {
            sum[k] = bias[k];
        }
        for (int64_t ky = 0; ky < s.kh; ky++) {
            int64_t down = iy + s.pad_h - ky, oy = down / s.stride_h;

            if (down < 0 || oy * s.stride_h != down || oy >= s.oh) {
                continue;
            }
            for (int64_t kx = 0; kx < s.kw; kx++) {
                int64_t across = ix + s.pad_w - kx, ox = across / s.stride_w;

                if (across >= 0 && ox * s.stride_w == across && ox < s.ow) {
                    int64_t row = (image * at.n_oy + oy - at.oy0) * s.ow + ox;
                    float v[N];

                    load<N>(v, cols + ((row * s.kh + ky) * s.kw + kx) * s.c + j);
#pragma unroll
                    for (int k = 0; k < N; k++) {
                        sum[k] += v[k];
                    }
                }
            }
        }
        if (pre != NULL) {
            store<N>(pre + to, sum);
        }
        act_values<N>(act, sum);
        put<N>(x + to, sum, accumulate);
    }
}

template <typename T>
static __global__ void depthwise_scatter_kernel(agglo_conv_shape s, const T *y, const T *w, bool accumulate, T *x)
{
    int64_t j = own_column();

    if (j >= s.c) {
        return;
    }
    PLANE_LOOP(image, s.batch)
    {
        ROW_LOOP(i, s.h * s.w)
        {
            int64_t iy = i / s.w, ix = i - iy * s.w;
            float sum = 0.0f;

            for (int64_t ky = 0; ky < s.kh; ky++) {
                int64_t down = iy + s.pad_h - ky, oy = down / s.stride_h;

                if (down < 0 || oy * s.stride_h != down || oy >= s.oh) {
                    continue;
                }
                for (int64_t kx = 0; kx < s.kw; kx++) {
                    int64_t across = ix + s.pad_w - kx, ox = across / s.stride_w;

                    if (across >= 0 && ox * s.stride_w == across && ox < s.ow) {
                        sum +=
                            get(&y[((image * s.oh + oy) * s.ow + ox) * s.c + j]) * get(&w[(j * s.kh + ky) * s.kw + kx]);
                    }
                }
            }
            put_or_add(&x[(image * s.h * s.w + i) * s.c + j], sum, accumulate);
        }
    }
}

static void conv_scatter(agglo_backend *be, const agglo_conv_shape *s, const agglo_tensor *y, const agglo_tensor *w,
                         const agglo_tensor *b, agglo_act act, bool accumulate, agglo_tensor *pre, agglo_tensor *x)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    agglo_dtype dtype = x->dtype;
    int64_t k = s->kh * s->kw * s->c, line_bytes = s->ow * k * 4; /* of cols of an output row */
    band at = {0, 1, 0, s->h, 0, s->oh};
    float *cols;

    if (s->depthwise) {
        WITH_STORAGE(dtype, T,
                     depthwise_scatter_kernel<T>
                     <<<row_grid(s->batch, s->h * s->w, s->c), row_block(s->c), 0, cuda->stream>>>(
                         *s, (const T *)y->data, (const T *)w->data, accumulate, (T *)x->data));
        agglo_cuda_launched(cuda, "conv2d_bwd_input");
        return;
    }
    if (line_bytes * s->oh <= PIECE_BYTES) {
        at.n_images = at_most(PIECE_BYTES / (line_bytes * s->oh), s->batch);
        cols = (float *)agglo_cuda_reserve(cuda, (size_t)(at.n_images * s->oh * line_bytes));
    } else { /* rows of one image; those that two bands share are worked out twice */
        at.rows = at_most(at_least(PIECE_BYTES / line_bytes * s->stride_h - s->kh, 1), s->h);
        cols = (float *)agglo_cuda_reserve(
            cuda, (size_t)(agglo_cuda_ceil_div(at.rows + s->kh - 1, s->stride_h) * line_bytes));
    }
    if (cols == NULL) {
        return;
    }
    for (int64_t step = at.rows; at.image0 < s->batch;) {
        int64_t first = at.row0 + s->pad_h - s->kh + 1, end;

        at.n_images = at_most(at.n_images, s->batch - at.image0);
        at.rows = at_most(step, s->h - at.row0);
        if (at.rows == s->h) {
            at.oy0 = 0;
            at.n_oy = s->oh;
        } else {
            end = at_most((at.row0 + at.rows - 1 + s->pad_h) / s->stride_h + 1, s->oh);
            at.oy0 = first <= 0 ? 0 : agglo_cuda_ceil_div(first, s->stride_h);
            at.n_oy = at_least(end - at.oy0, 0);
        }
        if (at.n_oy > 0) {
            agglo_cuda_gemm_of(cuda, false, false, at.n_images * at.n_oy * s->ow, k, s->o, dtype,
                               offset(y->data, dtype, (at.image0 * s->oh + at.oy0) * s->ow * s->o), w->data, 0.0f,
                               AGGLO_F32, cols);
        }
        WITH_STORAGE(dtype, T,
                     TALL_LAUNCH(cuda, T, at.n_images * at.rows * s->w, s->c, collect_kernel,
                                 (s->c, cols, input(b), output_of<T>(pre), output_of<T>(x)), *s, at, cols, input(b),
                                 act, accumulate, output_of<T>(pre), output_of<T>(x)));
        agglo_cuda_launched(cuda, "conv2d_bwd_input");
        at.row0 += at.rows;
        if (at.row0 == s->h) {
            at.row0 = 0;
            at.image0 += at.n_images;
        }
    }
}

/* ---- weight ---- */

/* partial[chunk][c] */
template <typename T>
static __global__ void pixel_sums_kernel(int64_t m, int64_t c, int64_t chunk_rows, const T *x, float *partial)
{
    __shared__ float sums[SUM_ROWS][WARP];
    int64_t j = (int64_t)blockIdx.x * WARP + threadIdx.x;
    int64_t first = (int64_t)blockIdx.y * chunk_rows;
    int64_t end = first + chunk_rows < m ? first + chunk_rows : m;
    float sum = 0.0f;

    if (j < c) {
        for (int64_t i = first + threadIdx.y; i < end; i += SUM_ROWS) {
            sum += get(&x[i * c + j]);
        }
    }
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && j < c) {
        for (int r = 1; r < SUM_ROWS; r++) {
            sum += sums[r][threadIdx.x];
        }
        partial[blockIdx.y * c + j] = sum;
    }
}

/* out[c] += sums over the rows of x[m,c] */
static void add_pixel_sums(agglo_cuda *cuda, const agglo_tensor *x, float *out)
{
    int64_t c = x->shape[x->rank - 1], m = agglo_tensor_count(x) / c;
    agglo_cuda_chunks chunks = agglo_cuda_row_chunks(m);
    float *partial = (float *)agglo_cuda_reserve(cuda, (size_t)(chunks.n * c) * sizeof(float));
    dim3 grid((unsigned)agglo_cuda_ceil_div(c, WARP), (unsigned)chunks.n);

    if (partial == NULL) {
        return;
    }
    WITH_STORAGE(x->dtype, T,
                 pixel_sums_kernel<T>
                 <<<grid, dim3(WARP, SUM_ROWS), 0, cuda->stream>>>(m, c, chunks.n_rows, (const T *)x->data, partial));
    agglo_cuda_launched(cuda, "sums over pixels");
    agglo_cuda_add_partials(cuda, chunks.n, c, out, 0, NULL, partial);
}

/* partial[chunk][tap][c]; taps on z */
template <typename T>
static __global__ void depthwise_weight_kernel(agglo_conv_shape s, int64_t chunk_rows, const T *d_y, const T *x,
                                               float *partial)
{
    __shared__ float sums[SUM_ROWS][WARP];
    int64_t j = (int64_t)blockIdx.x * WARP + threadIdx.x, m = s.batch * s.oh * s.ow;
    int64_t first = (int64_t)blockIdx.y * chunk_rows, ky = blockIdx.z / s.kw, kx = blockIdx.z % s.kw;
    int64_t end = first + chunk_rows < m ? first + chunk_rows : m;
    float sum = 0.0f;

    if (j < s.c) {
        for (int64_t i = first + threadIdx.y; i < end; i += SUM_ROWS) {
            int64_t line = i / s.ow, ox = i - line * s.ow, image = line / s.oh, oy = line - image * s.oh;
            int64_t iy = oy * s.stride_h - s.pad_h + ky, ix = ox * s.stride_w - s.pad_w + kx;

            if (iy >= 0 && iy < s.h && ix >= 0 && ix < s.w) {
                sum += get(&d_y[i * s.c + j]) * get(&x[((image * s.h + iy) * s.w + ix) * s.c + j]);
            }
        }
    }
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && j < s.c) {
        for (int r = 1; r < SUM_ROWS; r++) {
            sum += sums[r][threadIdx.x];
        }
        partial[((int64_t)blockIdx.y * s.kh * s.kw + blockIdx.z) * s.c + j] = sum;
    }
}

/* d_w[c][tap] += sum over chunks, in order */
static __global__ void depthwise_add_kernel(int64_t n_chunks, int64_t c, int64_t taps, const float *partial, float *d_w)
{
    FLAT_LOOP(i, c * taps)
    {
        int64_t j = i / taps, tap = i - j * taps;
        double sum = (double)d_w[i];

        for (int64_t chunk = 0; chunk < n_chunks; chunk++) {
            sum += (double)partial[(chunk * taps + tap) * c + j];
        }
        d_w[i] = (float)sum;
    }
}

static void conv_weight_depthwise(agglo_cuda *cuda, const agglo_conv_shape *s, const agglo_tensor *d_y,
                                  const agglo_tensor *x, float *d_w)
{
    agglo_cuda_chunks chunks = agglo_cuda_row_chunks(s->batch * s->oh * s->ow);
    int64_t taps = s->kh * s->kw;
    float *partial = (float *)agglo_cuda_reserve(cuda, (size_t)(chunks.n * taps * s->c) * sizeof(float));
    dim3 grid((unsigned)agglo_cuda_ceil_div(s->c, WARP), (unsigned)chunks.n, (unsigned)taps);

    if (partial == NULL) {
        return;
    }
    WITH_STORAGE(x->dtype, T,
                 depthwise_weight_kernel<T><<<grid, dim3(WARP, SUM_ROWS), 0, cuda->stream>>>(
                     *s, chunks.n_rows, (const T *)d_y->data, (const T *)x->data, partial));
    agglo_cuda_launched(cuda, "conv2d_bwd_weight");
    depthwise_add_kernel<<<flat_grid(cuda, s->c * taps), BLOCK, 0, cuda->stream>>>(chunks.n, s->c, taps, partial, d_w);
    agglo_cuda_launched(cuda, "conv2d_bwd_weight");
}

static void conv_weight(agglo_backend *be, const agglo_conv_shape *s, const agglo_tensor *d_y, const agglo_tensor *x,
                        agglo_tensor *d_w, agglo_tensor *d_b_y, agglo_tensor *d_b_x)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    agglo_dtype dtype = x->dtype;
    int64_t m = s->batch * s->oh * s->ow, k = s->kh * s->kw * s->c, step = m;
    void *laid = NULL;

    AGGLO_ASSERT(m <= INT32_MAX);
    if (s->depthwise) {
        conv_weight_depthwise(cuda, s, d_y, x, output(d_w));
    } else {
        if (!pointwise(s)) {
            step = piece_rows(m, k * (int64_t)agglo_dtype_size(dtype));
            laid = agglo_cuda_reserve(cuda, (size_t)(step * k) * agglo_dtype_size(dtype));
            if (laid == NULL) {
                return;
            }
        }
        for (int64_t m0 = 0; m0 < m; m0 += step) {
            int64_t n = at_most(m - m0, step);

            if (laid != NULL) {
                lay_out(cuda, s, m0, n, dtype, x->data, laid);
            }
            agglo_cuda_gemm_of(cuda, true, false, s->o, k, n, dtype, offset(d_y->data, dtype, m0 * s->o),
                               laid != NULL ? laid : x->data, 1.0f, AGGLO_F32, d_w->data);
        }
    }
    if (d_b_y != NULL) {
        add_pixel_sums(cuda, d_y, output(d_b_y));
    }
    if (d_b_x != NULL) {
        add_pixel_sums(cuda, x, output(d_b_x));
    }
}

void agglo_cuda_conv_ops(agglo_backend_ops *ops)
{
    ops->conv_gather = conv_gather;
    ops->conv_scatter = conv_scatter;
    ops->conv_weight = conv_weight;
}
