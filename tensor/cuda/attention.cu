/* Self-attention of packed qkv[B,N,3,H,D] by tiles with an online softmax: the score matrix never exists. The kernels here are those of F32;
 * BF16 goes to cuDNN (attention_cudnn.c) where it takes the shape, otherwise to attention_mma.cu.
 *
 *     forward     S = scale Q K^T;  out = softmax(S) V;  lse = log sum exp(S)
 *     backward    P = exp(S - lse);  delta = rowsum(d_o o);  d_s = scale P (d_o V^T - delta)
 *                 d_q = d_s K;  d_k = d_s^T Q;  d_v = P^T d_o
 * (Dao et al., FlashAttention, NeurIPS 2022; the backward pass recomputes P.)
 *
 * Mapping: a block of 16 x 16 threads per (image, head, tile of queries), for d_k and d_v per (image, head, tile of keys). A tile of
 * scores is TILE x TILE; thread (tx, ty) has the rows ty M .. ty M + M - 1 and the columns tx, tx + 16, ..., M = TILE / 16, so a row
 * of scores lies in half a warp, which reduces it by shuffles. Products run from shared memory, four deep at a time; rows there are padded
 * by 4 floats, against bank conflicts and so that float4 stays aligned. The head dimension is padded with zeros to PAD = 32, 64, 96 or 128.
 * Forward, and backward up to 64 channels, tiles are 64; backward beyond that 32. Shared memory is at most 88 kB, within what every GPU of
 * compute capability 8 or later gives a block.
 *
 * Bytes moved: forward, 4 B H N D (2 + 2 N / TILE); keys and values mostly from the second-level cache. Bound by F32 arithmetic: 4 B H N^2 D
 * operations forward, 14 backward (two kernels recompute the scores).
 * Numerics: F32 throughout (no tensor cores), the exponential of tensor/math_inline.h. Every output has one writer and every sum one
 * order: deterministic. Limit: D <= 128.
 */
#include <math.h>

#include "tensor/cuda/attention_tiles.cuh"

#define FWD_TILE 64
#define MOST_DIM 128

typedef struct attention_work {
    int64_t n, h, d, n_tiles, n_tasks;
    float scale;
    const float *qkv, *d_out, *lse, *delta;
    float *out, *lse_out, *d_qkv;
} attention_work;

/* Which tile of which head a task is; offsets into qkv and out of its image and head. */
typedef struct place {
    int64_t first;    /* row of the tile */
    int64_t packed;   /* q of row 0; k and v are H D and 2 H D further, rows 3 H D apart */
    int64_t unpacked; /* out of row 0, rows H D apart */
    int64_t rows;     /* lse of row 0 */
} place;

static __device__ inline place place_of(const attention_work &job, int64_t task, int tile)
{
    int64_t head = task / job.n_tiles % job.h, image = task / job.n_tiles / job.h, dim = job.h * job.d;
    place at;

    at.first = task % job.n_tiles * tile;
    at.packed = image * job.n * 3 * dim + head * job.d;
    at.unpacked = image * job.n * dim + head * job.d;
    at.rows = (image * job.h + head) * job.n;
    return at;
}

/* to[TILE][PAD + 4] = rows `first`.. of from[n][d], zeros beyond n and d. */
template <int TILE, int PAD>
static __device__ inline void load_tile(float *to, const float *from, int64_t stride, int64_t first, int64_t n, int d)
{
#pragma unroll 4
    for (int e = (int)threadIdx.x; e < TILE * PAD; e += THREADS) {
        int row = e / PAD, column = e % PAD;

        to[row * (PAD + 4) + column] = first + row < n && column < d ? from[(first + row) * stride + column] : 0.0f;
    }
}

/* to[row][..] = factor acc for the tile's rows below n and columns below d. */
template <int TILE, int PAD>
static __device__ inline void store_rows(float *to, int64_t stride, int64_t first, int64_t n, int d,
                                         const float acc[TILE / SIDE][PAD / SIDE], const float factor[TILE / SIDE])
{
    const int M = TILE / SIDE, tx = (int)threadIdx.x % SIDE, ty = (int)threadIdx.x / SIDE;

#pragma unroll
    for (int i = 0; i < M; i++) {
        int64_t row = first + ty * M + i;

#pragma unroll
        for (int c = 0; c < PAD / SIDE; c++) {
            int column = 2 * tx + 32 * (c / 2) + c % 2;

            if (row < n && column < d) {
                to[row * stride + column] = acc[i][c] * factor[i];
            }
        }
    }
}

/* ---- forward ---- */

template <int PAD> constexpr size_t forward_bytes()
{
    return (2 * FWD_TILE * (PAD + 4) + FWD_TILE * (FWD_TILE + 4)) * sizeof(float);
}

/* Keys and values take turns in one buffer, so that more blocks fit a multiprocessor. */
template <int PAD> static __global__ __launch_bounds__(THREADS, 2) void attention_kernel(const attention_work job)
{
    const int TILE = FWD_TILE, M = TILE / SIDE, d = (int)job.d;
    const int tx = (int)threadIdx.x % SIDE, ty = (int)threadIdx.x / SIDE;
    const int64_t dim = job.h * job.d;
    extern __shared__ __align__(16) float shared[];
    float *q = shared, *kv = q + TILE * (PAD + 4), *p = kv + TILE * (PAD + 4);

    for (int64_t task = blockIdx.x; task < job.n_tasks; task += gridDim.x) {
        place at = place_of(job, task, TILE);
        const float *qkv = job.qkv + at.packed;
        float acc[M][PAD / SIDE], s[M][M], most[M], sum[M];

        clear<M, PAD / SIDE>(acc);
        softmax_begin<TILE>(most, sum);
        __syncthreads();
        load_tile<TILE, PAD>(q, qkv, 3 * dim, at.first, job.n, d);
        for (int64_t key = 0; key < job.n; key += TILE) {
            __syncthreads(); /* the values before have been used */
            load_tile<TILE, PAD>(kv, qkv + dim, 3 * dim, key, job.n, d);
            __syncthreads();
            tile_products<TILE, PAD>(s, q, kv);
#pragma unroll
            for (int i = 0; i < M; i++) {
#pragma unroll
                for (int j = 0; j < M; j++) {
                    s[i][j] = key + tx + SIDE * j < job.n ? s[i][j] * job.scale : -INFINITY;
                }
            }
            softmax_tile<TILE, PAD>(s, key, job.n, most, sum, acc);
            put_tile<TILE>(p, s);
            __syncthreads(); /* the keys have been used */
            load_tile<TILE, PAD>(kv, qkv + 2 * dim, 3 * dim, key, job.n, d);
            __syncthreads();
            tile_accumulate<TILE, PAD>(acc, p, kv);
        }
        softmax_finish<TILE>(most, sum, job.lse_out, at.rows, at.first, job.n);
        store_rows<TILE, PAD>(job.out + at.unpacked, dim, at.first, job.n, d, acc, sum);
    }
}

/* ---- backward ---- */

/* delta[image, head, row] = <d_out, out>: a warp per row of a head. */
template <typename T>
static __global__ void attention_delta_kernel(int64_t rows, int64_t n, int64_t h, int64_t d, const T *d_out,
                                              const T *out, float *delta)
{
    const int warps = BLOCK / WARP, lane = (int)threadIdx.x % WARP;

    for (int64_t r = (int64_t)blockIdx.x * warps + threadIdx.x / WARP; r < rows; r += (int64_t)gridDim.x * warps) {
        int64_t head = r % h, i = r / h % n, image = r / h / n;
        float sum = 0.0f;

        for (int64_t j = lane; j < d; j += WARP) {
            float u, v;

            load<1>(&u, &d_out[r * d + j]);
            load<1>(&v, &out[r * d + j]);
            sum += u * v;
        }
        sum = warp_sum(sum);
        if (lane == 0) {
            delta[(image * h + head) * n + i] = sum;
        }
    }
}

template <int TILE, int PAD> constexpr size_t backward_bytes()
{
    return (4 * TILE * (PAD + 4) + TILE * (TILE + 4) + 2 * TILE) * sizeof(float);
}

/* d_q of a tile of queries, over all keys. */
template <int TILE, int PAD>
static __global__ __launch_bounds__(THREADS, 2) void attention_bwd_queries_kernel(const attention_work job)
{
    const int M = TILE / SIDE, d = (int)job.d, tx = (int)threadIdx.x % SIDE, ty = (int)threadIdx.x / SIDE;
    const int64_t dim = job.h * job.d;
    extern __shared__ __align__(16) float shared[];
    float *q = shared, *d_o = q + TILE * (PAD + 4), *k = d_o + TILE * (PAD + 4), *v = k + TILE * (PAD + 4),
          *w = v + TILE * (PAD + 4);

    for (int64_t task = blockIdx.x; task < job.n_tasks; task += gridDim.x) {
        place at = place_of(job, task, TILE);
        const float *qkv = job.qkv + at.packed;
        float acc[M][PAD / SIDE], lse[M], delta[M], one[M];

        clear<M, PAD / SIDE>(acc);
#pragma unroll
        for (int i = 0; i < M; i++) {
            int64_t row = at.first + ty * M + i;

            lse[i] = row < job.n ? job.lse[at.rows + row] : 0.0f;
            delta[i] = row < job.n ? job.delta[at.rows + row] : 0.0f;
            one[i] = 1.0f;
        }
        __syncthreads();
        load_tile<TILE, PAD>(q, qkv, 3 * dim, at.first, job.n, d);
        load_tile<TILE, PAD>(d_o, job.d_out + at.unpacked, dim, at.first, job.n, d);
        for (int64_t key = 0; key < job.n; key += TILE) {
            float s[M][M], d_p[M][M];

            __syncthreads(); /* the keys and weights before have been used */
            load_tile<TILE, PAD>(k, qkv + dim, 3 * dim, key, job.n, d);
            load_tile<TILE, PAD>(v, qkv + 2 * dim, 3 * dim, key, job.n, d);
            __syncthreads();
            tile_products<TILE, PAD>(s, q, k);
            tile_products<TILE, PAD>(d_p, d_o, v);
#pragma unroll
            for (int i = 0; i < M; i++) {
#pragma unroll
                for (int j = 0; j < M; j++) {
                    float p = agglo_exp(s[i][j] * job.scale - lse[i]);

                    s[i][j] = key + tx + SIDE * j < job.n ? job.scale * p * (d_p[i][j] - delta[i]) : 0.0f;
                }
            }
            put_tile<TILE>(w, s);
            __syncwarp();
            tile_accumulate<TILE, PAD>(acc, w, k);
        }
        store_rows<TILE, PAD>(job.d_qkv + at.packed, 3 * dim, at.first, job.n, d, acc, one);
    }
}

/* d_k and d_v of a tile of keys, over all queries. Rows of the tile are keys here, columns queries. */
template <int TILE, int PAD>
static __global__ __launch_bounds__(THREADS, 2) void attention_bwd_keys_kernel(const attention_work job)
{
    const int M = TILE / SIDE, d = (int)job.d, tx = (int)threadIdx.x % SIDE;
    const int64_t dim = job.h * job.d;
    extern __shared__ __align__(16) float shared[];
    float *q = shared, *d_o = q + TILE * (PAD + 4), *k = d_o + TILE * (PAD + 4), *v = k + TILE * (PAD + 4),
          *w = v + TILE * (PAD + 4), *lse = w + TILE * (TILE + 4), *delta = lse + TILE;

    for (int64_t task = blockIdx.x; task < job.n_tasks; task += gridDim.x) {
        place at = place_of(job, task, TILE);
        const float *qkv = job.qkv + at.packed;
        float d_k[M][PAD / SIDE], d_v[M][PAD / SIDE], one[M];

        clear<M, PAD / SIDE>(d_k);
        clear<M, PAD / SIDE>(d_v);
#pragma unroll
        for (int i = 0; i < M; i++) {
            one[i] = 1.0f;
        }
        __syncthreads(); /* the keys before have been used */
        load_tile<TILE, PAD>(k, qkv + dim, 3 * dim, at.first, job.n, d);
        load_tile<TILE, PAD>(v, qkv + 2 * dim, 3 * dim, at.first, job.n, d);
        for (int64_t query = 0; query < job.n; query += TILE) {
            float s[M][M], d_p[M][M];

            __syncthreads(); /* the queries before have been used */
            load_tile<TILE, PAD>(q, qkv, 3 * dim, query, job.n, d);
            load_tile<TILE, PAD>(d_o, job.d_out + at.unpacked, dim, query, job.n, d);
            for (int i = (int)threadIdx.x; i < TILE; i += THREADS) {
                lse[i] = query + i < job.n ? job.lse[at.rows + query + i] : 0.0f;
                delta[i] = query + i < job.n ? job.delta[at.rows + query + i] : 0.0f;
            }
            __syncthreads();
            tile_products<TILE, PAD>(s, k, q);
#pragma unroll
            for (int i = 0; i < M; i++) {
#pragma unroll
                for (int j = 0; j < M; j++) {
                    float p = agglo_exp(s[i][j] * job.scale - lse[tx + SIDE * j]);

                    s[i][j] = query + tx + SIDE * j < job.n ? p : 0.0f;
                }
            }
            put_tile<TILE>(w, s);
            __syncwarp();
            tile_accumulate<TILE, PAD>(d_v, w, d_o);
            tile_products<TILE, PAD>(d_p, v, d_o);
#pragma unroll
            for (int i = 0; i < M; i++) {
#pragma unroll
                for (int j = 0; j < M; j++) {
                    s[i][j] *= job.scale * (d_p[i][j] - delta[tx + SIDE * j]);
                }
            }
            __syncwarp(); /* P has been used */
            put_tile<TILE>(w, s);
            __syncwarp();
            tile_accumulate<TILE, PAD>(d_k, w, q);
        }
        store_rows<TILE, PAD>(job.d_qkv + at.packed + dim, 3 * dim, at.first, job.n, d, d_k, one);
        store_rows<TILE, PAD>(job.d_qkv + at.packed + 2 * dim, 3 * dim, at.first, job.n, d, d_v, one);
    }
}

/* ---- launchers ---- */

typedef void attention_kernel_function(attention_work job);

static void launch(agglo_cuda *cuda, attention_kernel_function *kernel, attention_work *job, int64_t batch, int tile,
                   size_t shared_bytes, const char *what)
{
    job->n_tiles = agglo_cuda_ceil_div(job->n, tile);
    job->n_tasks = batch * job->h * job->n_tiles;
    if (!agglo_cuda_ok(
            cuda, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared_bytes), what)) {
        return;
    }
    kernel<<<agglo_cuda_grid(job->n_tasks, MOST_GRID), THREADS, shared_bytes, cuda->stream>>>(*job);
    agglo_cuda_launched(cuda, what);
}

/* Latches a head dimension that is too large. */
static bool fits(agglo_cuda *cuda, int64_t d)
{
    agglo_err err;

    if (d <= MOST_DIM) {
        return true;
    }
    agglo_err_clear(&err);
    agglo_fail(&err, AGGLO_E_UNSUPPORTED, "attention with %lld channels per head: at most %d on a GPU", (long long)d,
               MOST_DIM);
    agglo_backend_latch(&cuda->base, &err);
    return false;
}

static attention_work work_of(const agglo_tensor *qkv, float scale)
{
    attention_work job = {};

    job.n = qkv->shape[1];
    job.h = qkv->shape[3];
    job.d = qkv->shape[4];
    job.scale = scale;
    job.qkv = input(qkv);
    return job;
}

static void attention(agglo_backend *be, const agglo_tensor *qkv, float scale, agglo_tensor *out, agglo_tensor *lse)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    attention_work job = work_of(qkv, scale);
    int64_t batch = qkv->shape[0];

    if (!fits(cuda, job.d)) {
        return;
    }
#ifdef AGGLO_CUDNN
    if (qkv->dtype == AGGLO_BF16 && agglo_cuda_sdpa_forward(cuda, qkv, scale, out, lse)) {
        return;
    }
#endif
    if (qkv->dtype == AGGLO_BF16) {
        agglo_cuda_attention_mma(cuda, qkv, scale, out, lse);
        return;
    }
    job.out = output(out);
    job.lse_out = output(lse);
    if (job.d <= 32) {
        launch(cuda, attention_kernel<32>, &job, batch, FWD_TILE, forward_bytes<32>(), "attention");
    } else if (job.d <= 64) {
        launch(cuda, attention_kernel<64>, &job, batch, FWD_TILE, forward_bytes<64>(), "attention");
    } else if (job.d <= 96) {
        launch(cuda, attention_kernel<96>, &job, batch, FWD_TILE, forward_bytes<96>(), "attention");
    } else {
        launch(cuda, attention_kernel<128>, &job, batch, FWD_TILE, forward_bytes<128>(), "attention");
    }
}

template <int TILE, int PAD> static void launch_backward(agglo_cuda *cuda, attention_work *job, int64_t batch)
{
    launch(cuda, attention_bwd_queries_kernel<TILE, PAD>, job, batch, TILE, backward_bytes<TILE, PAD>(),
           "attention_bwd");
    launch(cuda, attention_bwd_keys_kernel<TILE, PAD>, job, batch, TILE, backward_bytes<TILE, PAD>(), "attention_bwd");
}

/* In scratch; NULL when there is not enough memory. */
template <typename T>
static float *delta_of(agglo_cuda *cuda, const agglo_tensor *d_out, const agglo_tensor *out, const agglo_tensor *qkv)
{
    int64_t n = qkv->shape[1], h = qkv->shape[3], rows = qkv->shape[0] * n * h;
    float *delta = (float *)agglo_cuda_reserve(cuda, (size_t)rows * sizeof(float));

    if (delta != NULL) {
        attention_delta_kernel<<<agglo_cuda_grid(agglo_cuda_ceil_div(rows, BLOCK / WARP), MOST_GRID), BLOCK, 0,
                                 cuda->stream>>>(rows, n, h, qkv->shape[4], input_of<T>(d_out), input_of<T>(out),
                                                 delta);
        agglo_cuda_launched(cuda, "attention_bwd");
    }
    return delta;
}

static void attention_bwd(agglo_backend *be, const agglo_tensor *d_out, const agglo_tensor *qkv,
                          const agglo_tensor *out, const agglo_tensor *lse, float scale, agglo_tensor *d_qkv)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    attention_work job = work_of(qkv, scale);
    int64_t batch = qkv->shape[0];
    float *delta;

    if (!fits(cuda, job.d)) {
        return;
    }
#ifdef AGGLO_CUDNN
    if (qkv->dtype == AGGLO_BF16 && agglo_cuda_sdpa_backward(cuda, d_out, qkv, out, lse, scale, d_qkv)) {
        return;
    }
#endif
    delta = BY_STORAGE(qkv, delta_of, cuda, d_out, out, qkv);
    if (delta == NULL) {
        return;
    }
    if (qkv->dtype == AGGLO_BF16) {
        agglo_cuda_attention_mma_bwd(cuda, d_out, qkv, lse, delta, scale, d_qkv);
        return;
    }
    job.d_out = input(d_out);
    job.lse = input(lse);
    job.delta = delta;
    job.d_qkv = output(d_qkv);
    if (job.d <= 32) {
        launch_backward<64, 32>(cuda, &job, batch);
    } else if (job.d <= 64) {
        launch_backward<64, 64>(cuda, &job, batch);
    } else if (job.d <= 96) {
        launch_backward<32, 96>(cuda, &job, batch);
    } else {
        launch_backward<32, 128>(cuda, &job, batch);
    }
}

void agglo_cuda_attention_ops(agglo_backend_ops *ops)
{
    ops->attention = attention;
    ops->attention_bwd = attention_bwd;
}
