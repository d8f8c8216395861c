/* Self-attention with a bias in BF16 on tensor cores; formulas in attention_bias.cu, fragments in mma.cuh.
 *
 * Mapping: a block of 4 warps per (image, head, tile of 64 queries), for d_k and d_v per (image, head, tile of 64 keys), for d_table per
 * (head, tile of queries, tile of keys, chunk of images); each warp has 16 rows of the tile. Keys come in tiles of 64, in the pass of d_k and
 * d_v queries in tiles of 64 up to 64 channels, 32 up to 96, 16 beyond. Scores stay in registers and become, rounded to BF16, the left factor of the next
 * product. The head dimension is padded with zeros to PAD = 32, 64, 80, 96 or 128.
 * The decomposed bias of a tile of queries, 64 (grid_h + grid_w) floats, is one more product of the block's queries with the tables and
 * stays in shared memory; the pass of d_q leaves it in global memory too, for that of d_k and d_v. What comes back through it to d_q is one
 * more product, of the sums of d_s with the tables. Shared memory: 3 (forward) or 4 tiles of 64 (PAD + 8) BF16, the bias, and a tile of d_s in
 * F32; a grid whose bias does not fit (agglo_cuda_bias_mma_fits) goes to the kernels of attention_bias.cu.
 *
 * Bytes moved: 4 B H N D (1 + N / 64) forward, mostly from the second-level cache. Bound by loads to shared memory and exponentials.
 * Numerics: products of BF16, sums, softmax and bias in F32; P, d_s and the factors of d_q that
 * come through the bias are rounded to BF16 where they enter a product; the tables enter theirs in two halves, 16 bits together.
 * Exponentials are exp2f. Deterministic: one writer, one order, nothing atomic. Not timed: there was no GPU. No kernel
 * spills.
 */
#include <math.h>

#include "tensor/cuda/attention_bias.cuh"
#include "tensor/cuda/mma.cuh"

#define TILE        64
#define MMA_THREADS 128
#define W_STRIDE    (TILE + 1) /* of d_s in shared memory */
#define LOG2E       1.44269504f
#define LN2         0.69314718f
#define MOST_SHARED (160 * 1024) /* a block's, on every GPU of compute capability 8.0 or 9.0 */

typedef __nv_bfloat16 bf16;

/* Floats between rows of the bias in shared memory: odd. */
static __host__ __device__ inline int bias_stride(int side)
{
    return side + 1 - side % 2;
}

template <int PAD> static __host__ __device__ constexpr int tile_elements(int rows)
{
    return rows * (PAD + 8);
}

static __device__ inline const bf16 *bf16_at(const void *x, int64_t offset)
{
    return (const bf16 *)x + offset;
}

static __device__ inline bool is_wide(const bias_work &job)
{
    return job.d % 8 == 0;
}

static __device__ inline int lane_of(void)
{
    return (int)threadIdx.x % WARP;
}

static __device__ inline int warp_of(void)
{
    return (int)threadIdx.x / WARP;
}

/* Over the four lanes that share a row. */
static __device__ inline float quad_max(float x)
{
    for (int step = 1; step <= 2; step *= 2) {
        float other = __shfl_xor_sync(0xffffffffu, x, step);

        x = other > x ? other : x;
    }
    return x;
}

static __device__ inline float quad_sum(float x)
{
    for (int step = 1; step <= 2; step *= 2) {
        x += __shfl_xor_sync(0xffffffffu, x, step);
    }
    return x;
}

/* What follows the tiles in shared memory, of the decomposed bias: a block's rows of both products, and the places of a tile of keys. */
typedef struct shared_bias {
    float *by_row, *by_column;
    int row_stride, column_stride;
    key_place *keys; /* [TILE], of both kinds */
} shared_bias;

static __device__ inline shared_bias bias_in(const bias_work &job, void *shared)
{
    shared_bias bias;

    bias.keys = (key_place *)shared;
    bias.row_stride = bias_stride(job.grid_h);
    bias.column_stride = bias_stride(job.grid_w);
    bias.by_row = (float *)(bias.keys + TILE);
    bias.by_column = bias.by_row + TILE * bias.row_stride;
    return bias;
}

static size_t bias_bytes(const bias_work *job)
{
    int strides = job->decomposed ? bias_stride(job->grid_h) + bias_stride(job->grid_w) : 0;

    return TILE * (sizeof(key_place) + (size_t)strides * sizeof(float));
}

/* The product of the block's queries with one table: to[row][k] in shared memory and, where `global` is given, in by_row or by_column. `rel`
 * and `rest` are tiles that nobody uses. All threads; the queries need not be complete before. */
template <int PAD>
static __device__ inline void table_products(const bias_work &job, const place &at, const bf16 *q, bf16 *rel,
                                             bf16 *rest, const float *table, int side, bool along_y, float *to,
                                             int stride, float *global)
{
    const int lane = lane_of(), own_row = 16 * warp_of() + lane / 4;

    for (int t0 = 0; t0 < 2 * side - 1; t0 += TILE) {
        float s[TILE / 8][4];

        __syncthreads(); /* the rows before have been used */
        mma_load_f32<TILE, PAD, MMA_THREADS>(rel, rest, table, t0, 2 * side - 1, (int)job.d);
        __syncthreads();
        mma_products<PAD, TILE / 8>(s, q + 16 * warp_of() * (PAD + 8), rest);
        mma_add_products<PAD, TILE / 8>(s, q + 16 * warp_of() * (PAD + 8), rel);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int r = own_row + 8 * half;
            int64_t row = at.first + r;
            int token = (int)row - job.n_prefix;
            int first =
                (along_y ? token / job.grid_w : token % job.grid_w) + side - 1 - t0; /* k of the tile's column 0 */
            bool exists = row < job.n && token >= 0;

#pragma unroll
            for (int j = 0; j < TILE / 8; j++) {
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    int k = first - (8 * j + lane % 4 * 2 + e);

                    if (exists && k >= 0 && k < side) {
                        to[r * stride + k] = s[j][2 * half + e];
                        if (global != NULL) {
                            global[(at.rows + row) * side + k] = s[j][2 * half + e];
                        }
                    }
                }
            }
        }
    }
}

/* Both tables. */
template <int PAD>
static __device__ inline void all_products(const bias_work &job, const place &at, const bf16 *q, bf16 *rel, bf16 *rest,
                                           const shared_bias &bias)
{
    if (job.decomposed) {
        table_products<PAD>(job, at, q, rel, rest, job.rel_h, job.grid_h, true, bias.by_row, bias.row_stride,
                            job.by_row);
        table_products<PAD>(job, at, q, rel, rest, job.rel_w, job.grid_w, false, bias.by_column, bias.column_stride,
                            job.by_column);
    }
}

/* The bias of row r of the block's tile and key j of the tile of keys; both exist. */
static __device__ inline float tile_bias(const bias_work &job, const place &at, const shared_bias &bias, int r, int j)
{
    key_place key = bias.keys[j];
    int row = (int)at.first + r;

    if (!job.decomposed) {
        return job.table[(at.head * job.n + row) * job.n + key.x];
    }
    return key.y >= 0 && row >= job.n_prefix
               ? bias.by_row[r * bias.row_stride + key.y] + bias.by_column[r * bias.column_stride + key.x]
               : 0.0f;
}

static __device__ inline void put_keys(const bias_work &job, const shared_bias &bias, int64_t key)
{
    if (threadIdx.x < TILE) {
        bias.keys[threadIdx.x] = key_place_of(job, (int)(key + threadIdx.x));
    }
}

template <int N> static __device__ inline void clear(float acc[N][4])
{
#pragma unroll
    for (int j = 0; j < N; j++) {
        acc[j][0] = acc[j][1] = acc[j][2] = acc[j][3] = 0.0f;
    }
}

/* ---- forward ---- */

template <int PAD> static __global__ __launch_bounds__(MMA_THREADS, 2) void bias_mma_kernel(const bias_work job)
{
    const int d = (int)job.d, lane = lane_of(), own_row = 16 * warp_of() + lane / 4;
    const int64_t dim = job.h * job.d;
    extern __shared__ __align__(16) uint8_t shared[];
    bf16 *q = (bf16 *)shared, *k = q + tile_elements<PAD>(TILE), *v = k + tile_elements<PAD>(TILE);
    shared_bias bias = bias_in(job, v + tile_elements<PAD>(TILE));

    for (int64_t task = blockIdx.x; task < job.n_tasks; task += gridDim.x) {
        place at = place_of(job, task, TILE);
        const bf16 *qkv = bf16_at(job.qkv, at.packed);
        float acc[PAD / 8][4], most[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};

        clear<PAD / 8>(acc);
        __syncthreads(); /* the task before is done */
        mma_load<TILE, PAD, MMA_THREADS>(q, qkv, 3 * dim, at.first, job.n, d, is_wide(job));
        all_products<PAD>(job, at, q, k, v, bias);
        for (int64_t key = 0; key < job.n; key += TILE) {
            float s[TILE / 8][4];

            __syncthreads(); /* keys and values before have been used */
            mma_load<TILE, PAD, MMA_THREADS>(k, qkv + dim, 3 * dim, key, job.n, d, is_wide(job));
            mma_load<TILE, PAD, MMA_THREADS>(v, qkv + 2 * dim, 3 * dim, key, job.n, d, is_wide(job));
            put_keys(job, bias, key);
            __syncthreads();
            mma_products<PAD, TILE / 8>(s, q + 16 * warp_of() * (PAD + 8), k);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int r = own_row + 8 * half;
                bool exists = at.first + r < job.n;
                float before = most[half], shrink;

                /* logits in powers of two */
#pragma unroll
                for (int j = 0; j < TILE / 8; j++) {
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        int column = 8 * j + lane % 4 * 2 + e;
                        float *x = &s[j][2 * half + e];

                        *x = key + column >= job.n ? -INFINITY
                             : exists              ? (*x * job.scale + tile_bias(job, at, bias, r, column)) * LOG2E
                                                   : 0.0f;
                        most[half] = *x > most[half] ? *x : most[half];
                    }
                }
                most[half] = quad_max(most[half]); /* finite: every tile has a key */
                shrink = exp2f(before - most[half]);
                sum[half] *= shrink;
#pragma unroll
                for (int x = 0; x < PAD / 8; x++) {
                    acc[x][2 * half] *= shrink;
                    acc[x][2 * half + 1] *= shrink;
                }
#pragma unroll
                for (int j = 0; j < TILE / 8; j++) {
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        s[j][2 * half + e] = exp2f(s[j][2 * half + e] - most[half]);
                        sum[half] += s[j][2 * half + e];
                    }
                }
            }
            mma_accumulate<PAD, TILE / 8>(acc, s, v);
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int64_t row = at.first + own_row + 8 * half;

            sum[half] = quad_sum(sum[half]);
            if (job.lse_out != NULL && lane % 4 == 0 && row < job.n) {
                job.lse_out[at.rows + row] = most[half] * LN2 + logf(sum[half]);
            }
        }
        mma_store<PAD>((bf16 *)job.out + at.unpacked, dim, at.first + 16 * warp_of(), job.n, d, acc, 1.0f / sum[0],
                       1.0f / sum[1]);
    }
}

/* ---- backward ---- */

/* s = d_s of the block's queries and a tile of keys, from their products; d_p = those of d_o and v. */
static __device__ inline void score_gradient(const bias_work &job, const place &at, const shared_bias &bias,
                                             int64_t key, const float lse[2], const float delta[2],
                                             float s[TILE / 8][4], const float d_p[TILE / 8][4])
{
    const int lane = lane_of(), own_row = 16 * warp_of() + lane / 4;

#pragma unroll
    for (int j = 0; j < TILE / 8; j++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int column = 8 * j + lane % 4 * 2 + e % 2, r = own_row + e / 2 * 8;
            bool exists = key + column < job.n && at.first + r < job.n;
            float logit = exists ? s[j][e] * job.scale + tile_bias(job, at, bias, r, column) : 0.0f;

            s[j][e] = exists ? exp2f((logit - lse[e / 2]) * LOG2E) * (d_p[j][e] - delta[e / 2]) : 0.0f;
        }
    }
}

static __device__ inline void load_statistics(const bias_work &job, const place &at, float lse[2], float delta[2])
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int64_t row = at.first + 16 * warp_of() + lane_of() / 4 + 8 * half;

        lse[half] = row < job.n ? job.lse[at.rows + row] : 0.0f;
        delta[half] = row < job.n ? job.delta[at.rows + row] : 0.0f;
    }
}

/* acc (of d_q) += the gradients of one table's products times the table. All threads. */
template <int PAD>
static __device__ inline void add_through_table(const bias_work &job, const place &at, bf16 *rel, const float *table,
                                                int side, bool along_y, const float *d_products, float acc[PAD / 8][4])
{
    const int lane = lane_of(), own_row = 16 * warp_of() + lane / 4;

    for (int t0 = 0; t0 < 2 * side - 1; t0 += TILE) {
        float s[TILE / 8][4];

        __syncthreads(); /* the rows before have been used */
        mma_load_f32<TILE, PAD, MMA_THREADS>(rel, NULL, table, t0, 2 * side - 1, (int)job.d);
        __syncthreads();
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int64_t row = at.first + own_row + 8 * half;
            int token = (int)row - job.n_prefix;
            int first = (along_y ? token / job.grid_w : token % job.grid_w) + side - 1 - t0;
            bool exists = row < job.n && token >= 0;

#pragma unroll
            for (int j = 0; j < TILE / 8; j++) {
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    int k = first - (8 * j + lane % 4 * 2 + e);

                    s[j][2 * half + e] = exists && k >= 0 && k < side ? d_products[(at.rows + row) * side + k] : 0.0f;
                }
            }
        }
        mma_accumulate<PAD, TILE / 8>(acc, s, rel);
    }
}

template <int PAD> static __global__ __launch_bounds__(MMA_THREADS) void bias_mma_queries_kernel(const bias_work job)
{
    const int d = (int)job.d, lane = lane_of(), own_row = 16 * warp_of() + lane / 4;
    const int64_t dim = job.h * job.d;
    extern __shared__ __align__(16) uint8_t shared[];
    bf16 *q = (bf16 *)shared, *d_o = q + tile_elements<PAD>(TILE), *k = d_o + tile_elements<PAD>(TILE),
         *v = k + tile_elements<PAD>(TILE);
    float *w = (float *)(v + tile_elements<PAD>(TILE));
    shared_bias bias = bias_in(job, w + TILE * W_STRIDE);

    for (int64_t task = blockIdx.x; task < job.n_tasks; task += gridDim.x) {
        place at = place_of(job, task, TILE);
        const bf16 *qkv = bf16_at(job.qkv, at.packed);
        float acc[PAD / 8][4], lse[2], delta[2];

        clear<PAD / 8>(acc);
        load_statistics(job, at, lse, delta);
        __syncthreads(); /* the task before is done */
        mma_load<TILE, PAD, MMA_THREADS>(q, qkv, 3 * dim, at.first, job.n, d, is_wide(job));
        mma_load<TILE, PAD, MMA_THREADS>(d_o, bf16_at(job.d_out, at.unpacked), dim, at.first, job.n, d, is_wide(job));
        all_products<PAD>(job, at, q, k, v, bias);
        for (int64_t key = 0; key < job.n; key += TILE) {
            float s[TILE / 8][4], d_p[TILE / 8][4];

            __syncthreads(); /* keys and values before have been used */
            mma_load<TILE, PAD, MMA_THREADS>(k, qkv + dim, 3 * dim, key, job.n, d, is_wide(job));
            mma_load<TILE, PAD, MMA_THREADS>(v, qkv + 2 * dim, 3 * dim, key, job.n, d, is_wide(job));
            put_keys(job, bias, key);
            __syncthreads();
            mma_products<PAD, TILE / 8>(s, q + 16 * warp_of() * (PAD + 8), k);
            mma_products<PAD, TILE / 8>(d_p, d_o + 16 * warp_of() * (PAD + 8), v);
            score_gradient(job, at, bias, key, lse, delta, s, d_p);
            if (job.decomposed) {
                __syncwarp(); /* this warp's rows of the tile before have been summed */
#pragma unroll
                for (int j = 0; j < TILE / 8; j++) {
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        w[(own_row + e / 2 * 8) * W_STRIDE + 8 * j + lane % 4 * 2 + e % 2] = s[j][e];
                    }
                }
                __syncwarp();
                add_to_products(job, at, w, W_STRIDE, 16 * warp_of(), 16, TILE, key, lane, WARP);
            }
            mma_accumulate<PAD, TILE / 8>(acc, s, k);
        }
#pragma unroll
        for (int x = 0; x < PAD / 8; x++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                acc[x][e] *= job.scale;
            }
        }
        if (job.decomposed) {
            add_through_table<PAD>(job, at, k, job.rel_h, job.grid_h, true, job.d_by_row, acc);
            add_through_table<PAD>(job, at, k, job.rel_w, job.grid_w, false, job.d_by_column, acc);
        }
        mma_store<PAD>((bf16 *)job.d_qkv + at.packed, 3 * dim, at.first + 16 * warp_of(), job.n, d, acc, 1.0f, 1.0f);
    }
}

/* Queries of a tile in the pass of d_k and d_v: registers are what is short. */
template <int PAD> static __host__ __device__ constexpr int query_tile()
{
    return PAD <= 64 ? 64 : PAD <= 96 ? 32 : 16;
}

/* Rows of the tile are keys, columns queries. */
template <int PAD> static __global__ __launch_bounds__(MMA_THREADS) void bias_mma_keys_kernel(const bias_work job)
{
    const int QUERIES = query_tile<PAD>(), N = QUERIES / 8;
    const int d = (int)job.d, n = (int)job.n, lane = lane_of(), own_row = 16 * warp_of() + lane / 4;
    const int64_t dim = job.h * job.d;
    extern __shared__ __align__(16) uint8_t shared[];
    bf16 *k = (bf16 *)shared, *v = k + tile_elements<PAD>(TILE), *q = v + tile_elements<PAD>(TILE),
         *d_o = q + tile_elements<PAD>(QUERIES);
    float *lse = (float *)(d_o + tile_elements<PAD>(QUERIES)), *delta = lse + QUERIES;
    key_place *keys = (key_place *)(delta + QUERIES); /* of the block's tile: in registers they would be too many */

    for (int64_t task = blockIdx.x; task < job.n_tasks; task += gridDim.x) {
        place at = place_of(job, task, TILE);
        const bf16 *qkv = bf16_at(job.qkv, at.packed);
        head_bias bias = bias_of_head(job, at);
        const int first = (int)at.first;
        float d_k[PAD / 8][4], d_v[PAD / 8][4];

        clear<PAD / 8>(d_k);
        clear<PAD / 8>(d_v);
        __syncthreads(); /* the task before is done */
        if (threadIdx.x < TILE) {
            keys[threadIdx.x] = key_place_of(job, (int)(at.first + threadIdx.x));
        }
        mma_load<TILE, PAD, MMA_THREADS>(k, qkv + dim, 3 * dim, at.first, job.n, d, is_wide(job));
        mma_load<TILE, PAD, MMA_THREADS>(v, qkv + 2 * dim, 3 * dim, at.first, job.n, d, is_wide(job));
        for (int query = 0; query < n; query += QUERIES) {
            float s[N][4], d_p[N][4];

            __syncthreads(); /* the queries before have been used */
            mma_load<QUERIES, PAD, MMA_THREADS>(q, qkv, 3 * dim, query, job.n, d, is_wide(job));
            mma_load<QUERIES, PAD, MMA_THREADS>(d_o, bf16_at(job.d_out, at.unpacked), dim, query, job.n, d,
                                                is_wide(job));
            if (threadIdx.x < QUERIES) {
                bool exists = query + (int)threadIdx.x < n;

                lse[threadIdx.x] = exists ? job.lse[at.rows + query + threadIdx.x] : 0.0f;
                delta[threadIdx.x] = exists ? job.delta[at.rows + query + threadIdx.x] : 0.0f;
            }
            __syncthreads();
            mma_products<PAD, N>(s, k + 16 * warp_of() * (PAD + 8), q);
#pragma unroll
            for (int j = 0; j < N; j++) {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    int column = 8 * j + lane % 4 * 2 + e % 2;
                    bool exists = query + column < n && first + own_row + e / 2 * 8 < n;
                    float logit =
                        exists ? s[j][e] * job.scale + bias_at(job, bias, query + column, keys[own_row + e / 2 * 8])
                               : 0.0f;

                    s[j][e] = exists ? exp2f((logit - lse[column]) * LOG2E) : 0.0f;
                }
            }
            mma_accumulate<PAD, N>(d_v, s, d_o);
            mma_products<PAD, N>(d_p, v + 16 * warp_of() * (PAD + 8), d_o);
#pragma unroll
            for (int j = 0; j < N; j++) {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    s[j][e] *= d_p[j][e] - delta[8 * j + lane % 4 * 2 + e % 2];
                }
            }
            mma_accumulate<PAD, N>(d_k, s, q);
        }
        at = place_of(job, task, TILE); /* worked out again: kept over the loop, it would not fit the registers */
        mma_store<PAD>((bf16 *)job.d_qkv + at.packed + dim, 3 * dim, at.first + 16 * warp_of(), job.n, d, d_k,
                       job.scale, job.scale);
        mma_store<PAD>((bf16 *)job.d_qkv + at.packed + 2 * dim, 3 * dim, at.first + 16 * warp_of(), job.n, d, d_v, 1.0f,
                       1.0f);
    }
}

/* partial[chunk][H,N,N], or d_table += where there is one chunk */
template <int PAD>
static __global__ __launch_bounds__(MMA_THREADS) void bias_mma_table_kernel(const bias_work job, float *d_table)
{
    const int d = (int)job.d, lane = lane_of(), own_row = 16 * warp_of() + lane / 4;
    const int64_t dim = job.h * job.d, per_chunk = (job.batch + job.n_chunks - 1) / job.n_chunks;
    extern __shared__ __align__(16) uint8_t shared[];
    bf16 *q = (bf16 *)shared, *d_o = q + tile_elements<PAD>(TILE), *k = d_o + tile_elements<PAD>(TILE),
         *v = k + tile_elements<PAD>(TILE);
    shared_bias bias = bias_in(job, v + tile_elements<PAD>(TILE));

    for (int64_t task = blockIdx.x; task < job.n_tasks; task += gridDim.x) {
        int64_t key = task % job.n_tiles * TILE, query = task / job.n_tiles % job.n_tiles * TILE;
        int64_t head = task / job.n_tiles / job.n_tiles % job.h, chunk = task / job.n_tiles / job.n_tiles / job.h;
        int64_t end = (chunk + 1) * per_chunk < job.batch ? (chunk + 1) * per_chunk : job.batch;
        float acc[TILE / 8][4];

        clear<TILE / 8>(acc);
        for (int64_t image = chunk * per_chunk; image < end; image++) {
            place at = place_of_head(job, image, head);
            const bf16 *qkv = bf16_at(job.qkv, at.packed);
            float s[TILE / 8][4], d_p[TILE / 8][4], lse[2], delta[2];

            at.first = query;
            load_statistics(job, at, lse, delta);
            __syncthreads(); /* the image before has been used */
            mma_load<TILE, PAD, MMA_THREADS>(q, qkv, 3 * dim, query, job.n, d, is_wide(job));
            mma_load<TILE, PAD, MMA_THREADS>(d_o, bf16_at(job.d_out, at.unpacked), dim, query, job.n, d, is_wide(job));
            mma_load<TILE, PAD, MMA_THREADS>(k, qkv + dim, 3 * dim, key, job.n, d, is_wide(job));
            mma_load<TILE, PAD, MMA_THREADS>(v, qkv + 2 * dim, 3 * dim, key, job.n, d, is_wide(job));
            put_keys(job, bias, key);
            __syncthreads();
            mma_products<PAD, TILE / 8>(s, q + 16 * warp_of() * (PAD + 8), k);
            mma_products<PAD, TILE / 8>(d_p, d_o + 16 * warp_of() * (PAD + 8), v);
            score_gradient(job, at, bias, key, lse, delta, s, d_p);
#pragma unroll
            for (int j = 0; j < TILE / 8; j++) {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    acc[j][e] += s[j][e];
                }
            }
        }
#pragma unroll
        for (int j = 0; j < TILE / 8; j++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int64_t row = query + own_row + e / 2 * 8, column = key + 8 * j + lane % 4 * 2 + e % 2;
                int64_t cell = (head * job.n + row) * job.n + column;

                if (row < job.n && column < job.n) {
                    if (job.n_chunks == 1) {
                        d_table[cell] += acc[j][e];
                    } else {
                        job.partial[chunk * job.h * job.n * job.n + cell] = acc[j][e];
                    }
                }
            }
        }
    }
}

/* ---- launchers ---- */

template <int PAD> static size_t forward_bytes(const bias_work *job)
{
    return tile_elements<PAD>(3 * TILE) * sizeof(bf16) + bias_bytes(job);
}

template <int PAD> static size_t queries_bytes(const bias_work *job)
{
    return tile_elements<PAD>(4 * TILE) * sizeof(bf16) + TILE * W_STRIDE * sizeof(float) + bias_bytes(job);
}

template <int PAD> static size_t keys_bytes(void)
{
    return tile_elements<PAD>(2 * TILE + 2 * query_tile<PAD>()) * sizeof(bf16) + 2 * query_tile<PAD>() * sizeof(float) +
           TILE * sizeof(key_place);
}

static bool aligned(const void *x)
{
    return (uintptr_t)x % 16 == 0;
}

bool agglo_cuda_bias_mma_fits(const bias_work *job)
{
    return job->dtype == AGGLO_BF16 && job->d <= MOST_DIM && queries_bytes<MOST_DIM>(job) <= MOST_SHARED &&
           aligned(job->qkv) && aligned(job->d_out);
}

template <typename KERNEL, typename... ARGUMENTS>
static void launch(agglo_cuda *cuda, KERNEL *kernel, int64_t n_tasks, size_t shared_bytes, const char *what,
                   ARGUMENTS... arguments)
{
    if (!agglo_cuda_ok(
            cuda, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared_bytes), what)) {
        return;
    }
    kernel<<<agglo_cuda_grid(n_tasks, MOST_GRID), MMA_THREADS, shared_bytes, cuda->stream>>>(arguments...);
    agglo_cuda_launched(cuda, what);
}

template <int PAD> static void forward(agglo_cuda *cuda, const bias_work *job)
{
    launch(cuda, bias_mma_kernel<PAD>, job->n_tasks, forward_bytes<PAD>(job), "attention_bias", *job);
}

template <int PAD> static void backward(agglo_cuda *cuda, const bias_work *job, float *d_table)
{
    bias_work pairs = *job;

    launch(cuda, bias_mma_queries_kernel<PAD>, job->n_tasks, queries_bytes<PAD>(job), "attention_bias_bwd", *job);
    launch(cuda, bias_mma_keys_kernel<PAD>, job->n_tasks, keys_bytes<PAD>(), "attention_bias_bwd", *job);
    if (d_table != NULL) {
        pairs.n_tasks = job->n_chunks * job->h * job->n_tiles * job->n_tiles;
        launch(cuda, bias_mma_table_kernel<PAD>, pairs.n_tasks, queries_bytes<PAD>(job), "attention_bias_bwd", pairs,
               d_table);
    }
}

static bias_work cut(const bias_work *job)
{
    bias_work out = *job;

    out.n_tiles = agglo_cuda_ceil_div(out.n, TILE);
    out.n_tasks = out.batch * out.h * out.n_tiles;
    return out;
}

void agglo_cuda_bias_mma_forward(agglo_cuda *cuda, const bias_work *job)
{
    bias_work w = cut(job);

    if (job->d <= 32) {
        forward<32>(cuda, &w);
    } else if (job->d <= 64) {
        forward<64>(cuda, &w);
    } else if (job->d <= 80) {
        forward<80>(cuda, &w);
    } else if (job->d <= 96) {
        forward<96>(cuda, &w);
    } else {
        forward<128>(cuda, &w);
    }
}

void agglo_cuda_bias_mma_backward(agglo_cuda *cuda, const bias_work *job, float *d_table)
{
    bias_work w = cut(job);

    if (job->d <= 32) {
        backward<32>(cuda, &w, d_table);
    } else if (job->d <= 64) {
        backward<64>(cuda, &w, d_table);
    } else if (job->d <= 80) {
        backward<80>(cuda, &w, d_table);
    } else if (job->d <= 96) {
        backward<96>(cuda, &w, d_table);
    } else {
        backward<128>(cuda, &w, d_table);
    }
}
