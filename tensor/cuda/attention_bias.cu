/* Self-attention of packed qkv[B,N,3,H,D] with an additive bias, by tiles with an online softmax: neither scores nor bias exist whole.
 *
 *     products    by_row[b,h,i,k] = q_i rel_h[y_i - k + grid_h - 1];  by_column[b,h,i,k] = q_i rel_w[x_i - k + grid_w - 1]   (decomposed)
 *     forward     S = scale Q K^T + bias;  out = softmax(S) V;  lse = log sum exp(S)
 *     backward    P = exp(S - lse);  delta = rowsum(d_o o);  d_s = P (d_o V^T - delta)
 *                 d_q = scale d_s K + through the products;  d_k = scale d_s^T Q;  d_v = P^T d_o
 *                 d_table = sum over images of d_s (dense);  d_by_row, d_by_column: sums of d_s over keys of a row, a column (decomposed),
 *                 d_rel_h[t] = sum over (b, h, i) of d_by_row[.., y_i + grid_h - 1 - t] q_i
 *
 * Mapping: attention_tiles.cuh. A block per (image, head, tile of queries); for d_k and d_v per (image, head, tile of keys); for d_table per
 * (head, tile of queries, tile of keys, chunk of images), which recomputes d_s; for d_rel per (row of a table, chunk of heads). Forward, and
 * backward up to 64 channels, tiles are 64; backward beyond that 32. Shared memory is at most 88 kB.
 *
 * Bytes moved: forward, B H N D s (2 + 2 N / 64) for s bytes of the storage type, 4 B H N (grid_h + grid_w) N / 64 of products, mostly from the
 * second-level cache. Bound by F32 arithmetic: 4 B H N^2 D operations forward, 14 backward, 18 with d_table.
 * BF16 goes to attention_bias_mma.cu, but for grids whose bias does not fit shared memory there.
 * Numerics: F32 arithmetic throughout for F32 and BF16 storage, the exponential of tensor/math_inline.h. Every output has one writer, every
 * sum one order, nothing is atomic: deterministic. Limits: D <= 128, N <= 46,340.
 */
#include <math.h>

#include "tensor/cuda/attention_bias.cuh"
#include "tensor/cuda/attention_tiles.cuh"

#define FWD_TILE    64
#define MOST_CHUNKS 64   /* partial sums of the relative tables */
#define TABLE_TASKS 1024 /* about how many blocks the dense table's gradient is cut into */

/* ---- the products of the decomposed bias ---- */

template <int PAD> constexpr size_t products_bytes()
{
    return 2 * FWD_TILE * (PAD + 4) * sizeof(float);
}

/* One table against a tile of queries: to[row][k] where row's place along the axis, + side - 1 - k, is the table's row. */
template <int PAD>
static __device__ inline void table_products(const bias_work &job, const place &at, const float *q, float *rel,
                                             const float *table, int side, bool along_y, float *to)
{
    const int TILE = FWD_TILE, M = TILE / SIDE, d = (int)job.d;
    const int tx = (int)threadIdx.x % SIDE, ty = (int)threadIdx.x / SIDE;

    for (int t0 = 0; t0 < 2 * side - 1; t0 += TILE) {
        float s[M][M];

        __syncthreads(); /* the rows before have been used */
        load_tile<TILE, PAD>(rel, table, AGGLO_F32, 0, job.d, t0, 2 * side - 1, d);
        __syncthreads();
        tile_products<TILE, PAD>(s, q, rel);
#pragma unroll
        for (int i = 0; i < M; i++) {
            int64_t row = at.first + ty * M + i;
            int token = (int)row - job.n_prefix;
            int own = along_y ? token / job.grid_w : token % job.grid_w;

#pragma unroll
            for (int j = 0; j < M; j++) {
                int k = own + side - 1 - (t0 + tx + SIDE * j);

                if (row < job.n && token >= 0 && k >= 0 && k < side) {
                    to[(at.rows + row) * side + k] = s[i][j];
                }
            }
        }
    }
}

template <int PAD> static __global__ __launch_bounds__(THREADS, 2) void bias_products_kernel(const bias_work job)
{
    extern __shared__ __align__(16) float shared[];
    float *q = shared, *rel = q + FWD_TILE * (PAD + 4);

    for (int64_t task = blockIdx.x; task < job.n_tasks; task += gridDim.x) {
        place at = place_of(job, task, FWD_TILE);

        __syncthreads();
        load_tile<FWD_TILE, PAD>(q, job.qkv, job.dtype, at.packed, 3 * job.h * job.d, at.first, job.n, (int)job.d);
        table_products<PAD>(job, at, q, rel, job.rel_h, job.grid_h, true, job.by_row);
        table_products<PAD>(job, at, q, rel, job.rel_w, job.grid_w, false, job.by_column);
    }
}

/* ---- forward ---- */

template <int PAD> constexpr size_t forward_bytes()
{
    return (2 * FWD_TILE * (PAD + 4) + FWD_TILE * (FWD_TILE + 4)) * sizeof(float);
}

/* Keys and values take turns in one buffer, so that more blocks fit a multiprocessor. */
template <int PAD> static __global__ __launch_bounds__(THREADS, 2) void bias_attention_kernel(const bias_work job)
{
    const int TILE = FWD_TILE, M = TILE / SIDE, d = (int)job.d;
    const int tx = (int)threadIdx.x % SIDE, ty = (int)threadIdx.x / SIDE;
    const int64_t dim = job.h * job.d;
    extern __shared__ __align__(16) float shared[];
    float *q = shared, *kv = q + TILE * (PAD + 4), *p = kv + TILE * (PAD + 4);

    for (int64_t task = blockIdx.x; task < job.n_tasks; task += gridDim.x) {
        place at = place_of(job, task, TILE);
        head_bias bias = bias_of_head(job, at);
        float acc[M][PAD / SIDE], s[M][M], most[M], sum[M];

        clear<M, PAD / SIDE>(acc);
        softmax_begin<TILE>(most, sum);
        __syncthreads();
        load_tile<TILE, PAD>(q, job.qkv, job.dtype, at.packed, 3 * dim, at.first, job.n, d);
        for (int64_t key = 0; key < job.n; key += TILE) {
            __syncthreads(); /* the values before have been used */
            load_tile<TILE, PAD>(kv, job.qkv, job.dtype, at.packed + dim, 3 * dim, key, job.n, d);
            __syncthreads();
            tile_products<TILE, PAD>(s, q, kv);
#pragma unroll
            for (int j = 0; j < M; j++) {
                int64_t column = key + tx + SIDE * j;
                key_place kp = key_place_of(job, (int)column);

#pragma unroll
                for (int i = 0; i < M; i++) {
                    int64_t row = at.first + ty * M + i;

                    s[i][j] = column >= job.n ? -INFINITY
                              : row < job.n   ? s[i][j] * job.scale + bias_at(job, bias, (int)row, kp)
                                              : 0.0f;
                }
            }
            softmax_tile<TILE, PAD>(s, key, job.n, most, sum, acc);
            put_tile<TILE>(p, s);
            __syncthreads(); /* the keys have been used */
            load_tile<TILE, PAD>(kv, job.qkv, job.dtype, at.packed + 2 * dim, 3 * dim, key, job.n, d);
            __syncthreads();
            tile_accumulate<TILE, PAD>(acc, p, kv);
        }
        softmax_finish<TILE>(most, sum, job.lse_out, at.rows, at.first, job.n);
        store_rows<TILE, PAD>(job.out, job.dtype, at.unpacked, dim, at.first, job.n, d, acc, sum);
    }
}

/* ---- backward ---- */

/* delta[image, head, row] = <d_out, out>: a warp per row of a head. */
static __global__ void bias_delta_kernel(const bias_work job, const void *out, float *delta)
{
    const int warps = BLOCK / WARP, lane = (int)threadIdx.x % WARP;
    const int64_t rows = job.batch * job.n * job.h;

    for (int64_t r = (int64_t)blockIdx.x * warps + threadIdx.x / WARP; r < rows; r += (int64_t)gridDim.x * warps) {
        int64_t head = r % job.h, i = r / job.h % job.n, image = r / job.h / job.n;
        float sum = 0.0f;

        for (int64_t j = lane; j < job.d; j += WARP) {
            sum += element(job.d_out, job.dtype, r * job.d + j) * element(out, job.dtype, r * job.d + j);
        }
        sum = warp_sum(sum);
        if (lane == 0) {
            delta[(image * job.h + head) * job.n + i] = sum;
        }
    }
}

template <int TILE, int PAD> constexpr size_t backward_bytes()
{
    return (4 * TILE * (PAD + 4) + TILE * (TILE + 4) + 2 * TILE) * sizeof(float);
}

/* acc (of d_q) += what comes through one table's products. */
template <int TILE, int PAD>
static __device__ inline void add_through_table(const bias_work &job, const place &at, const float *table, int side,
                                                bool along_y, const float *d_products,
                                                float acc[TILE / SIDE][PAD / SIDE])
{
    const int M = TILE / SIDE, d = (int)job.d, ty = (int)threadIdx.x / SIDE;

#pragma unroll
    for (int i = 0; i < M; i++) {
        int64_t row = at.first + ty * M + i;
        int token = (int)row - job.n_prefix;
        int own = along_y ? token / job.grid_w : token % job.grid_w;

        for (int k = 0; row < job.n && token >= 0 && k < side; k++) {
            const float *rel = table + (int64_t)(own - k + side - 1) * d;
            float g = d_products[(at.rows + row) * side + k];

#pragma unroll
            for (int c = 0; c < PAD / SIDE; c++) {
                acc[i][c] += acc_column(c) < d ? g * rel[acc_column(c)] : 0.0f;
            }
        }
    }
}

/* d_q of a tile of queries, over all keys. */
template <int TILE, int PAD>
static __global__ __launch_bounds__(THREADS, 2) void bias_bwd_queries_kernel(const bias_work job)
{
    const int M = TILE / SIDE, d = (int)job.d, tx = (int)threadIdx.x % SIDE, ty = (int)threadIdx.x / SIDE;
    const int64_t dim = job.h * job.d;
    extern __shared__ __align__(16) float shared[];
    float *q = shared, *d_o = q + TILE * (PAD + 4), *k = d_o + TILE * (PAD + 4), *v = k + TILE * (PAD + 4),
          *w = v + TILE * (PAD + 4);

    for (int64_t task = blockIdx.x; task < job.n_tasks; task += gridDim.x) {
        place at = place_of(job, task, TILE);
        head_bias bias = bias_of_head(job, at);
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
        load_tile<TILE, PAD>(q, job.qkv, job.dtype, at.packed, 3 * dim, at.first, job.n, d);
        load_tile<TILE, PAD>(d_o, job.d_out, job.dtype, at.unpacked, dim, at.first, job.n, d);
        for (int64_t key = 0; key < job.n; key += TILE) {
            float s[M][M], d_p[M][M];

            __syncthreads(); /* the keys and weights before have been used */
            load_tile<TILE, PAD>(k, job.qkv, job.dtype, at.packed + dim, 3 * dim, key, job.n, d);
            load_tile<TILE, PAD>(v, job.qkv, job.dtype, at.packed + 2 * dim, 3 * dim, key, job.n, d);
            __syncthreads();
            tile_products<TILE, PAD>(s, q, k);
            tile_products<TILE, PAD>(d_p, d_o, v);
#pragma unroll
            for (int j = 0; j < M; j++) {
                int64_t column = key + tx + SIDE * j;
                key_place kp = key_place_of(job, (int)column);

#pragma unroll
                for (int i = 0; i < M; i++) {
                    int64_t row = at.first + ty * M + i;
                    bool exists = column < job.n && row < job.n;
                    float logit = exists ? s[i][j] * job.scale + bias_at(job, bias, (int)row, kp) : 0.0f;

                    s[i][j] = exists ? agglo_exp(logit - lse[i]) * (d_p[i][j] - delta[i]) : 0.0f;
                }
            }
            put_tile<TILE>(w, s);
            __syncthreads();
            tile_accumulate<TILE, PAD>(acc, w, k);
            if (job.decomposed) {
                add_to_products(job, at, w, TILE + 4, 0, TILE, TILE, key, (int)threadIdx.x, THREADS);
            }
        }
#pragma unroll
        for (int i = 0; i < M; i++) {
#pragma unroll
            for (int c = 0; c < PAD / SIDE; c++) {
                acc[i][c] *= job.scale;
            }
        }
        __syncthreads(); /* the products' gradients are complete */
        if (job.decomposed) {
            add_through_table<TILE, PAD>(job, at, job.rel_h, job.grid_h, true, job.d_by_row, acc);
            add_through_table<TILE, PAD>(job, at, job.rel_w, job.grid_w, false, job.d_by_column, acc);
        }
        store_rows<TILE, PAD>(job.d_qkv, job.dtype, at.packed, 3 * dim, at.first, job.n, d, acc, one);
    }
}

/* d_k and d_v of a tile of keys, over all queries. Rows of the tile are keys here, columns queries. */
template <int TILE, int PAD>
static __global__ __launch_bounds__(THREADS, 2) void bias_bwd_keys_kernel(const bias_work job)
{
    const int M = TILE / SIDE, d = (int)job.d, tx = (int)threadIdx.x % SIDE, ty = (int)threadIdx.x / SIDE;
    const int64_t dim = job.h * job.d;
    extern __shared__ __align__(16) float shared[];
    float *q = shared, *d_o = q + TILE * (PAD + 4), *k = d_o + TILE * (PAD + 4), *v = k + TILE * (PAD + 4),
          *w = v + TILE * (PAD + 4), *lse = w + TILE * (TILE + 4), *delta = lse + TILE;

    for (int64_t task = blockIdx.x; task < job.n_tasks; task += gridDim.x) {
        place at = place_of(job, task, TILE);
        head_bias bias = bias_of_head(job, at);
        float d_k[M][PAD / SIDE], d_v[M][PAD / SIDE], factor[M];

        clear<M, PAD / SIDE>(d_k);
        clear<M, PAD / SIDE>(d_v);
        __syncthreads(); /* the keys before have been used */
        load_tile<TILE, PAD>(k, job.qkv, job.dtype, at.packed + dim, 3 * dim, at.first, job.n, d);
        load_tile<TILE, PAD>(v, job.qkv, job.dtype, at.packed + 2 * dim, 3 * dim, at.first, job.n, d);
        for (int64_t query = 0; query < job.n; query += TILE) {
            float s[M][M], d_p[M][M];

            __syncthreads(); /* the queries before have been used */
            load_tile<TILE, PAD>(q, job.qkv, job.dtype, at.packed, 3 * dim, query, job.n, d);
            load_tile<TILE, PAD>(d_o, job.d_out, job.dtype, at.unpacked, dim, query, job.n, d);
            for (int i = (int)threadIdx.x; i < TILE; i += THREADS) {
                lse[i] = query + i < job.n ? job.lse[at.rows + query + i] : 0.0f;
                delta[i] = query + i < job.n ? job.delta[at.rows + query + i] : 0.0f;
            }
            __syncthreads();
            tile_products<TILE, PAD>(s, k, q);
#pragma unroll
            for (int i = 0; i < M; i++) {
                int64_t key = at.first + ty * M + i;
                key_place kp = key_place_of(job, (int)key);

#pragma unroll
                for (int j = 0; j < M; j++) {
                    int64_t row = query + tx + SIDE * j;
                    bool exists = key < job.n && row < job.n;
                    float logit = exists ? s[i][j] * job.scale + bias_at(job, bias, (int)row, kp) : 0.0f;

                    s[i][j] = exists ? agglo_exp(logit - lse[tx + SIDE * j]) : 0.0f;
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
                    s[i][j] *= d_p[i][j] - delta[tx + SIDE * j];
                }
            }
            __syncwarp(); /* P has been used */
            put_tile<TILE>(w, s);
            __syncwarp();
            tile_accumulate<TILE, PAD>(d_k, w, q);
        }
#pragma unroll
        for (int i = 0; i < M; i++) {
            factor[i] = 1.0f;
        }
        store_rows<TILE, PAD>(job.d_qkv, job.dtype, at.packed + 2 * dim, 3 * dim, at.first, job.n, d, d_v, factor);
#pragma unroll
        for (int i = 0; i < M; i++) {
            factor[i] = job.scale;
        }
        store_rows<TILE, PAD>(job.d_qkv, job.dtype, at.packed + dim, 3 * dim, at.first, job.n, d, d_k, factor);
    }
}

/* d_s of a pair of tiles summed over a chunk of images: partial[chunk][H,N,N], or added to d_table where there is one chunk. */
template <int TILE, int PAD>
static __global__ __launch_bounds__(THREADS, 2) void bias_bwd_table_kernel(const bias_work job, float *d_table)
{
    const int M = TILE / SIDE, d = (int)job.d, tx = (int)threadIdx.x % SIDE, ty = (int)threadIdx.x / SIDE;
    const int64_t dim = job.h * job.d, per_chunk = (job.batch + job.n_chunks - 1) / job.n_chunks;
    extern __shared__ __align__(16) float shared[];
    float *q = shared, *d_o = q + TILE * (PAD + 4), *k = d_o + TILE * (PAD + 4), *v = k + TILE * (PAD + 4);

    for (int64_t task = blockIdx.x; task < job.n_tasks; task += gridDim.x) {
        int64_t key = task % job.n_tiles * TILE, query = task / job.n_tiles % job.n_tiles * TILE;
        int64_t head = task / job.n_tiles / job.n_tiles % job.h, chunk = task / job.n_tiles / job.n_tiles / job.h;
        int64_t end = (chunk + 1) * per_chunk < job.batch ? (chunk + 1) * per_chunk : job.batch;
        float acc[M][M];

        clear<M, M>(acc);
        for (int64_t image = chunk * per_chunk; image < end; image++) {
            place at = place_of_head(job, image, head);
            float s[M][M], d_p[M][M];

            __syncthreads(); /* the image before has been used */
            load_tile<TILE, PAD>(q, job.qkv, job.dtype, at.packed, 3 * dim, query, job.n, d);
            load_tile<TILE, PAD>(d_o, job.d_out, job.dtype, at.unpacked, dim, query, job.n, d);
            load_tile<TILE, PAD>(k, job.qkv, job.dtype, at.packed + dim, 3 * dim, key, job.n, d);
            load_tile<TILE, PAD>(v, job.qkv, job.dtype, at.packed + 2 * dim, 3 * dim, key, job.n, d);
            __syncthreads();
            tile_products<TILE, PAD>(s, q, k);
            tile_products<TILE, PAD>(d_p, d_o, v);
#pragma unroll
            for (int i = 0; i < M; i++) {
                int64_t row = query + ty * M + i;
                float lse = row < job.n ? job.lse[at.rows + row] : 0.0f;
                float delta = row < job.n ? job.delta[at.rows + row] : 0.0f;

#pragma unroll
                for (int j = 0; j < M; j++) {
                    int64_t column = key + tx + SIDE * j;

                    if (row < job.n && column < job.n) {
                        float logit = s[i][j] * job.scale + job.table[(head * job.n + row) * job.n + column];

                        acc[i][j] += agglo_exp(logit - lse) * (d_p[i][j] - delta);
                    }
                }
            }
        }
#pragma unroll
        for (int i = 0; i < M; i++) {
#pragma unroll
            for (int j = 0; j < M; j++) {
                int64_t row = query + ty * M + i, column = key + tx + SIDE * j;
                int64_t cell = (head * job.n + row) * job.n + column;

                if (row < job.n && column < job.n) {
                    if (job.n_chunks == 1) {
                        d_table[cell] += acc[i][j];
                    } else {
                        job.partial[chunk * job.h * job.n * job.n + cell] = acc[i][j];
                    }
                }
            }
        }
    }
}

/* partial[chunk][t][c]: row t of both tables, rel_h's first, over a chunk of heads of images: a block per (t, chunk), a thread per channel. */
static __global__ void bias_bwd_rel_kernel(const bias_work job)
{
    const int gh = job.grid_h, gw = job.grid_w, n_h = 2 * gh - 1, n_t = n_h + 2 * gw - 1, c = (int)threadIdx.x;
    const int64_t heads = job.batch * job.h, per_chunk = (heads + job.n_chunks - 1) / job.n_chunks;

    for (int64_t task = blockIdx.x; task < n_t * job.n_chunks; task += gridDim.x) {
        int64_t chunk = task / n_t, end = (chunk + 1) * per_chunk < heads ? (chunk + 1) * per_chunk : heads;
        bool along_y = task % n_t < n_h;
        int t = (int)(task % n_t) - (along_y ? 0 : n_h), side = along_y ? gh : gw, across = along_y ? gw : gh;
        int from = t > side - 1 ? t - (side - 1) : 0,
            to = t < side - 1 ? t : side - 1; /* places of queries, both within */
        float sum = 0.0f;

        for (int64_t which = chunk * per_chunk; c < job.d && which < end; which++) {
            place at = place_of_head(job, which / job.h, which % job.h);
            const float *d_products = along_y ? job.d_by_row : job.d_by_column;

            for (int own = from; own <= to; own++) {
#pragma unroll 4
                for (int other = 0; other < across; other++) {
                    int64_t row = job.n_prefix + (along_y ? (int64_t)own * gw + other : (int64_t)other * gw + own);

                    sum += d_products[(at.rows + row) * side + own + side - 1 - t] *
                           element(job.qkv, job.dtype, at.packed + row * 3 * job.h * job.d + c);
                }
            }
        }
        if (c < job.d) {
            job.partial[task * job.d + c] = sum;
        }
    }
}

/* ---- launchers ---- */

template <typename KERNEL, typename... ARGUMENTS>
static void launch(agglo_cuda *cuda, KERNEL *kernel, int64_t n_tasks, size_t shared_bytes, const char *what,
                   ARGUMENTS... arguments)
{
    if (!agglo_cuda_ok(
            cuda, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared_bytes), what)) {
        return;
    }
    kernel<<<agglo_cuda_grid(n_tasks, MOST_GRID), THREADS, shared_bytes, cuda->stream>>>(arguments...);
    agglo_cuda_launched(cuda, what);
}

/* Latches a head dimension or a number of tokens that is too large. */
static bool fits(agglo_cuda *cuda, const bias_work *job)
{
    agglo_err err;

    if (job->d <= MOST_DIM && job->n <= MOST_TOKENS) {
        return true;
    }
    agglo_err_clear(&err);
    agglo_fail(&err, AGGLO_E_UNSUPPORTED,
               "attention of %lld tokens with a bias and %lld channels per head: at most %d and %d on a GPU",
               (long long)job->n, (long long)job->d, MOST_TOKENS, MOST_DIM);
    agglo_backend_latch(&cuda->base, &err);
    return false;
}

static bias_work work_of(const agglo_tensor *qkv, float scale, const agglo_bias *bias)
{
    bias_work job = {};

    job.batch = qkv->shape[0];
    job.n = qkv->shape[1];
    job.h = qkv->shape[3];
    job.d = qkv->shape[4];
    job.scale = scale;
    job.dtype = qkv->dtype;
    job.qkv = qkv->data;
    job.decomposed = bias->rel_h != NULL;
    job.n_prefix = (int)bias->n_prefix;
    job.grid_h = (int)bias->grid_h;
    job.grid_w = (int)bias->grid_w;
    job.rel_h = input(bias->rel_h);
    job.rel_w = input(bias->rel_w);
    job.table = input(bias->table);
    return job;
}

static void cut(bias_work *job, int tile)
{
    job->n_tiles = agglo_cuda_ceil_div(job->n, tile);
    job->n_tasks = job->batch * job->h * job->n_tiles;
}

template <int PAD> static void launch_products(agglo_cuda *cuda, bias_work job)
{
    cut(&job, FWD_TILE);
    launch(cuda, bias_products_kernel<PAD>, job.n_tasks, products_bytes<PAD>(), "attention_bias", job);
}

template <int PAD> static void launch_forward(agglo_cuda *cuda, bias_work job)
{
    if (job.decomposed) {
        launch_products<PAD>(cuda, job);
    }
    cut(&job, FWD_TILE);
    launch(cuda, bias_attention_kernel<PAD>, job.n_tasks, forward_bytes<PAD>(), "attention_bias", job);
}

/* Floats of the products of the decomposed bias. */
static int64_t products(const bias_work *job)
{
    return job->decomposed ? job->batch * job->h * job->n * (job->grid_h + job->grid_w) : 0;
}

static void attention_bias(agglo_backend *be, const agglo_tensor *qkv, float scale, const agglo_bias *bias,
                           agglo_tensor *out, agglo_tensor *lse)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    bias_work job = work_of(qkv, scale, bias);

    if (!fits(cuda, &job)) {
        return;
    }
    job.out = out->data;
    job.lse_out = output(lse);
    if (agglo_cuda_bias_mma_fits(&job)) {
        agglo_cuda_bias_mma_forward(cuda, &job);
        return;
    }
    if (job.decomposed) {
        job.by_row = (float *)agglo_cuda_reserve(cuda, (size_t)products(&job) * sizeof(float));
        if (job.by_row == NULL) {
            return;
        }
        job.by_column = job.by_row + job.batch * job.h * job.n * job.grid_h;
    }
    if (job.d <= 32) {
        launch_forward<32>(cuda, job);
    } else if (job.d <= 64) {
        launch_forward<64>(cuda, job);
    } else if (job.d <= 96) {
        launch_forward<96>(cuda, job);
    } else {
        launch_forward<128>(cuda, job);
    }
}

/* The chunks of the bias's gradient, and floats of their partial sums: depend on the shape alone. */
static int64_t cut_gradient(bias_work *job, int tile)
{
    int64_t tiles = agglo_cuda_ceil_div(job->n, tile), most;

    if (job->decomposed) {
        most = job->batch * job->h;
        job->n_chunks = most < MOST_CHUNKS ? most : MOST_CHUNKS;
        return job->n_chunks * (2 * job->grid_h - 1 + 2 * job->grid_w - 1) * job->d;
    }
    most = TABLE_TASKS / (job->h * tiles * tiles);
    most = most < 1 ? 1 : most;
    job->n_chunks = job->batch < most ? job->batch : most;
    return job->n_chunks == 1 ? 0 : job->n_chunks * job->h * job->n * job->n;
}

template <int TILE, int PAD> static void launch_backward(agglo_cuda *cuda, bias_work job, float *d_table)
{
    if (job.decomposed) {
        launch_products<PAD>(cuda, job);
    }
    cut(&job, TILE);
    launch(cuda, bias_bwd_queries_kernel<TILE, PAD>, job.n_tasks, backward_bytes<TILE, PAD>(), "attention_bias_bwd",
           job);
    launch(cuda, bias_bwd_keys_kernel<TILE, PAD>, job.n_tasks, backward_bytes<TILE, PAD>(), "attention_bias_bwd", job);
    if (d_table != NULL) {
        job.n_tasks = job.n_chunks * job.h * job.n_tiles * job.n_tiles;
        launch(cuda, bias_bwd_table_kernel<TILE, PAD>, job.n_tasks, backward_bytes<TILE, PAD>(), "attention_bias_bwd",
               job, d_table);
    }
}

/* What is left of the bias's gradient when the passes above have run. */
static void finish_gradient(agglo_cuda *cuda, const bias_work *job, const agglo_bias_gradient *d_bias)
{
    if (d_bias->rel_h != NULL) {
        int64_t n_h = (2 * job->grid_h - 1) * job->d, n_w = (2 * job->grid_w - 1) * job->d;

        bias_bwd_rel_kernel<<<agglo_cuda_grid((n_h + n_w) / job->d * job->n_chunks, MOST_GRID), MOST_DIM, 0,
                              cuda->stream>>>(*job);
        agglo_cuda_launched(cuda, "attention_bias_bwd");
        agglo_cuda_add_partials(cuda, job->n_chunks, n_h, output(d_bias->rel_h), n_w, output(d_bias->rel_w),
                                job->partial);
    } else if (d_bias->table != NULL && job->n_chunks > 1) {
        agglo_cuda_add_partials(cuda, job->n_chunks, job->h * job->n * job->n, output(d_bias->table), 0, NULL,
                                job->partial);
    }
}

static void attention_bias_bwd(agglo_backend *be, const agglo_tensor *d_out, const agglo_tensor *qkv,
                               const agglo_tensor *out, const agglo_tensor *lse, float scale, const agglo_bias *bias,
                               agglo_tensor *d_qkv, const agglo_bias_gradient *d_bias)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    bias_work job = work_of(qkv, scale, bias);
    int64_t rows = job.batch * job.n * job.h, n_products = products(&job);
    int64_t n_partial = cut_gradient(&job, job.d <= 64 ? 64 : 32);
    float *delta;

    if (!fits(cuda, &job)) {
        return;
    }
    delta = (float *)agglo_cuda_reserve(cuda, (size_t)(rows + 2 * n_products + n_partial) * sizeof(float));
    if (delta == NULL) {
        return;
    }
    job.d_out = d_out->data;
    job.lse = input(lse);
    job.delta = delta;
    job.d_qkv = d_qkv->data;
    job.by_row = delta + rows;
    job.by_column = job.by_row + rows * job.grid_h;
    job.d_by_row = job.by_row + n_products;
    job.d_by_column = job.d_by_row + rows * job.grid_h;
    job.partial = job.by_row + 2 * n_products;
    if (!agglo_cuda_ok(cuda, cudaMemsetAsync(job.d_by_row, 0, (size_t)n_products * sizeof(float), cuda->stream),
                       "attention_bias_bwd")) {
        return;
    }
    bias_delta_kernel<<<agglo_cuda_grid(agglo_cuda_ceil_div(rows, BLOCK / WARP), MOST_GRID), BLOCK, 0, cuda->stream>>>(
        job, out->data, delta);
    agglo_cuda_launched(cuda, "attention_bias_bwd");
    if (agglo_cuda_bias_mma_fits(&job)) {
        agglo_cuda_bias_mma_backward(cuda, &job, output(d_bias->table));
    } else if (job.d <= 32) {
        launch_backward<64, 32>(cuda, job, output(d_bias->table));
    } else if (job.d <= 64) {
        launch_backward<64, 64>(cuda, job, output(d_bias->table));
    } else if (job.d <= 96) {
        launch_backward<32, 96>(cuda, job, output(d_bias->table));
    } else {
        launch_backward<32, 128>(cuda, job, output(d_bias->table));
    }
    finish_gradient(cuda, &job, d_bias);
}

void agglo_cuda_attention_bias_ops(agglo_backend_ops *ops)
{
    ops->attention_bias = attention_bias;
    ops->attention_bias_bwd = attention_bias_bwd;
}
