/* Self-attention of packed BF16 qkv[B,N,3,H,D] on tensor cores; formulas in attention.cu, which has the F32 kernels.
 *
 * All products are mma.sync.m16n8k16 (PTX ISA, "Matrix Fragments for mma.m16n8k16"): operands BF16, sums F32. Lane l has g = l / 4 and t = l % 4:
 *
 *     A [16 rows, 16 k]   a0 (g, 2t..)  a1 (g + 8, 2t..)  a2 (g, 2t + 8..)  a3 (g + 8, 2t + 8..)    two neighbouring k in a word
 *     B [16 k, 8 columns] b0 (2t.., g)  b1 (2t + 8.., g)                                           two neighbouring k in a word
 *     C [16 rows, 8 columns] c0, c1 (g, 2t..)  c2, c3 (g + 8, 2t..)                               F32
 *
 * so that two neighbouring C fragments, rounded, are an A fragment: P and d_S never leave the registers. Operands come from shared memory by
 * ldmatrix, whose matrix of 8 rows of 16 bytes gives lane l the words (row l / 4, pair l % 4), with .trans the transposed matrix's. Rows of
 * shared memory are PAD + 8 elements apart, an odd number of 16-byte units for every PAD, so that the 8 rows fall on different banks.
 *
 * Mapping: a block of 4 warps per (image, head, tile of 64 rows), 16 rows to a warp: queries forward and for d_q, keys for d_k and d_v. The other
 * side comes in tiles of columns by cp.async, a tile ahead: forward keys and values have a buffer each, and one is filled while the other is
 * used; backward both have two. The head dimension is padded with zeros to PAD = 32, 64, 96 or 128. Shared memory is at most 71 kB.
 *
 * Bytes moved: forward 2 B H N D (2 + 2 N / 64), keys and values mostly from the second-level cache; 4 B H N^2 D operations forward, 14 backward
 * (both kernels recompute the scores). Every output has one writer and every sum one order: deterministic. Exponentials are base 2 (exp2f, 2 ulp);
 * P and d_S are rounded to BF16 before they are multiplied. Where D is no multiple of 8 or an array is not 16-byte aligned, elements are
 * loaded and stored one by one. Limit: D <= 128.
 */
#include <math.h>

#include "tensor/cuda/kernels.cuh"

typedef __nv_bfloat16 bf16;

#define WARPS   4
#define THREADS (WARPS * WARP)
#define ROWS    (WARPS * 16) /* of a block's tile */
#define LOG2_E  1.44269504f
#define LN_2    0.69314718f

typedef struct mma_work {
    int64_t n, h, d, n_tiles, n_tasks;
    float scale;
    bool vectors; /* of 16 bytes, in all arrays */
    const bf16 *qkv, *d_out;
    const float *lse, *delta;
    bf16 *out, *d_qkv;
    float *lse_out;
} mma_work;

/* Which tile of which head a task is; offsets into qkv and out of its image and head. */
typedef struct place {
    int64_t first;    /* row of the tile */
    int64_t packed;   /* q of row 0; k and v are H D and 2 H D further, rows 3 H D apart */
    int64_t unpacked; /* out of row 0, rows H D apart */
    int64_t rows;     /* lse of row 0 */
} place;

static __device__ inline place place_of(const mma_work &job, int64_t task)
{
    int64_t head = task / job.n_tiles % job.h, image = task / job.n_tiles / job.h, dim = job.h * job.d;
    place at;

    at.first = task % job.n_tiles * ROWS;
    at.packed = image * job.n * 3 * dim + head * job.d;
    at.unpacked = image * job.n * dim + head * job.d;
    at.rows = (image * job.h + head) * job.n;
    return at;
}

/* ---- copies ---- */

/* 16 bytes to shared memory, zeros where they are not `there`; has come after the wait for its group. */
static __device__ inline void copy_16(bf16 *to, const bf16 *from, bool there)
{
    uint32_t at = (uint32_t)__cvta_generic_to_shared(to);
    int n_bytes = there ? 16 : 0;

    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(n_bytes) : "memory");
}

static __device__ inline void close_group(void)
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Until at most PENDING of this thread's groups are under way. */
template <int PENDING> static __device__ inline void wait_groups(void)
{
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

/* to[N_ROWS][PAD + 8] = rows `first`.. of from[n][d], zeros beyond n and d. The whole block calls. */
template <int N_ROWS, int PAD>
static __device__ inline void load_tile(bf16 *to, const bf16 *from, int64_t stride, int64_t first, const mma_work &job)
{
    if (job.vectors) {
#pragma unroll 2
        for (int e = (int)threadIdx.x; e < N_ROWS * PAD / 8; e += THREADS) {
            int row = e / (PAD / 8), column = e % (PAD / 8) * 8;
            bool there = first + row < job.n && column < job.d;

            copy_16(&to[row * (PAD + 8) + column], there ? from + (first + row) * stride + column : from, there);
        }
        return;
    }
#pragma unroll 1
    for (int e = (int)threadIdx.x; e < N_ROWS * PAD; e += THREADS) {
        int row = e / PAD, column = e % PAD;
        bool there = first + row < job.n && column < job.d;

        to[row * (PAD + 8) + column] = there ? from[(first + row) * stride + column] : __float2bfloat16_rn(0.0f);
    }
}

/* ---- fragments ---- */

static __device__ inline void load_matrices(uint32_t u[4], const bf16 *row)
{
    uint32_t at = (uint32_t)__cvta_generic_to_shared(row);

    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(u[0]), "=r"(u[1]), "=r"(u[2]), "=r"(u[3])
                 : "r"(at)
                 : "memory");
}

static __device__ inline void load_matrices_transposed(uint32_t u[4], const bf16 *row)
{
    uint32_t at = (uint32_t)__cvta_generic_to_shared(row);

    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(u[0]), "=r"(u[1]), "=r"(u[2]), "=r"(u[3])
                 : "r"(at)
                 : "memory");
}

/* A[16 rows, 16 k] from a[row][k]: the four matrices are rows 0 and 8 of k 0, then of k 8. */
template <int PAD> static __device__ inline void load_left(uint32_t u[4], const bf16 *a)
{
    int lane = (int)threadIdx.x % WARP;

    load_matrices(u, a + lane % 16 * (PAD + 8) + lane / 16 * 8);
}

/* B[16 k, 16 columns] from b[column][k]: u[0], u[1] are b0, b1 of columns 0 to 7, u[2], u[3] of columns 8 to 15. */
template <int PAD> static __device__ inline void load_right(uint32_t u[4], const bf16 *b)
{
    int lane = (int)threadIdx.x % WARP;

    load_matrices(u, b + (lane % 8 + lane / 16 * 8) * (PAD + 8) + lane / 8 % 2 * 8);
}

/* The same from b[k][column]. */
template <int PAD> static __device__ inline void load_right_transposed(uint32_t u[4], const bf16 *b)
{
    int lane = (int)threadIdx.x % WARP;

    load_matrices_transposed(u, b + lane % 16 * (PAD + 8) + lane / 16 * 8);
}

static __device__ inline void multiply(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <int N> static __device__ inline void clear(float c[N][4])
{
#pragma unroll
    for (int j = 0; j < N; j++) {
        c[j][0] = c[j][1] = c[j][2] = c[j][3] = 0.0f;
    }
}

/* s[16 rows, COLUMNS] = a[16][PAD] b[COLUMNS][PAD]^T */
template <int PAD, int COLUMNS>
static __device__ inline void scores(float s[COLUMNS / 8][4], const bf16 *a, const bf16 *b)
{
    clear<COLUMNS / 8>(s);
#pragma unroll 2
    for (int k = 0; k < PAD / 16; k++) { /* not all at once: registers */
        uint32_t u[4], v[4];

        load_left<PAD>(u, a + 16 * k);
#pragma unroll
        for (int j = 0; j < COLUMNS / 16; j++) {
            load_right<PAD>(v, b + 16 * j * (PAD + 8) + 16 * k);
            multiply(s[2 * j], u, v[0], v[1]);
            multiply(s[2 * j + 1], u, v[2], v[3]);
        }
    }
}

/* acc[16 rows, PAD] += w[16 rows, COLUMNS] b[COLUMNS][PAD], w rounded to BF16. */
template <int PAD, int COLUMNS>
static __device__ inline void accumulate(float acc[PAD / 8][4], const float w[COLUMNS / 8][4], const bf16 *b)
{
#pragma unroll
    for (int k = 0; k < COLUMNS / 16; k++) {
        const uint32_t u[4] = {pack(w[2 * k][0], w[2 * k][1]), pack(w[2 * k][2], w[2 * k][3]),
                               pack(w[2 * k + 1][0], w[2 * k + 1][1]), pack(w[2 * k + 1][2], w[2 * k + 1][3])};

#pragma unroll
        for (int j = 0; j < PAD / 16; j++) {
            uint32_t v[4];

            load_right_transposed<PAD>(v, b + 16 * k * (PAD + 8) + 16 * j);
            multiply(acc[2 * j], u, v[0], v[1]);
            multiply(acc[2 * j + 1], u, v[2], v[3]);
        }
    }
}

/* Over the four lanes that share a row. */
static __device__ inline float row_max(float x)
{
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

static __device__ inline float row_sum(float x)
{
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

/* Rows first..first + 16 of to = factor acc, below n and d, by way of `stage`: 16 rows of shared memory that only this warp uses. */
template <int PAD>
static __device__ inline void store_rows(bf16 *to, int64_t stride, int64_t first, const mma_work &job, bf16 *stage,
                                         const float acc[PAD / 8][4], float factor0, float factor8)
{
    int lane = (int)threadIdx.x % WARP, g = lane / 4, t = lane % 4;

    __syncwarp();
#pragma unroll
    for (int j = 0; j < PAD / 8; j++) {
        *(uint32_t *)&stage[g * (PAD + 8) + 8 * j + 2 * t] = pack(acc[j][0] * factor0, acc[j][1] * factor0);
        *(uint32_t *)&stage[(g + 8) * (PAD + 8) + 8 * j + 2 * t] = pack(acc[j][2] * factor8, acc[j][3] * factor8);
    }
    __syncwarp();
    if (job.vectors) {
#pragma unroll 2
        for (int e = lane; e < 16 * PAD / 8; e += WARP) {
            int row = e / (PAD / 8), column = e % (PAD / 8) * 8;

            if (first + row < job.n && column < job.d) {
                *(uint4 *)&to[(first + row) * stride + column] = *(const uint4 *)&stage[row * (PAD + 8) + column];
            }
        }
        return;
    }
#pragma unroll 1
    for (int e = lane; e < 16 * PAD; e += WARP) {
        int row = e / PAD, column = e % PAD;

        if (first + row < job.n && column < job.d) {
            to[(first + row) * stride + column] = stage[row * (PAD + 8) + column];
        }
    }
}

/* ---- forward ---- */

#define FORWARD_COLUMNS 64

template <int PAD> constexpr size_t forward_bytes()
{
    return (ROWS + 2 * FORWARD_COLUMNS) * (PAD + 8) * sizeof(bf16);
}

template <int PAD> static __global__ __launch_bounds__(THREADS, 2) void attention_mma_kernel(const mma_work job)
{
    const int COLUMNS = FORWARD_COLUMNS, warp = (int)threadIdx.x / WARP, lane = (int)threadIdx.x % WARP;
    const int g = lane / 4, t = lane % 4;
    const int64_t dim = job.h * job.d;
    const float scale = job.scale * LOG2_E;
    extern __shared__ __align__(16) bf16 shared[];
    bf16 *q = shared, *k = q + ROWS * (PAD + 8), *v = k + COLUMNS * (PAD + 8);
    bf16 *own = q + 16 * warp * (PAD + 8);

    for (int64_t task = blockIdx.x; task < job.n_tasks; task += gridDim.x) {
        place at = place_of(job, task);
        const bf16 *qkv = job.qkv + at.packed;
        float acc[PAD / 8][4], most[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f}; /* rows g and g + 8 */
        uint32_t queries[PAD / 16][4];

        clear<PAD / 8>(acc);
        __syncthreads(); /* the task before is done with shared memory */
        load_tile<ROWS, PAD>(q, qkv, 3 * dim, at.first, job);
        load_tile<COLUMNS, PAD>(k, qkv + dim, 3 * dim, 0, job);
        close_group();
        load_tile<COLUMNS, PAD>(v, qkv + 2 * dim, 3 * dim, 0, job);
        close_group();
        wait_groups<1>();
        __syncthreads();
#pragma unroll
        for (int x = 0; x < PAD / 16; x++) {
            load_left<PAD>(queries[x], own + 16 * x);
        }
        for (int64_t key = 0; key < job.n; key += COLUMNS) {
            float s[COLUMNS / 8][4];

            wait_groups<1>(); /* all but the values */
            __syncthreads();
            clear<COLUMNS / 8>(s);
#pragma unroll
            for (int x = 0; x < PAD / 16; x++) {
#pragma unroll
                for (int j = 0; j < COLUMNS / 16; j++) {
                    uint32_t w[4];

                    load_right<PAD>(w, k + 16 * j * (PAD + 8) + 16 * x);
                    multiply(s[2 * j], queries[x], w[0], w[1]);
                    multiply(s[2 * j + 1], queries[x], w[2], w[3]);
                }
            }
            __syncthreads(); /* the keys have been used */
            if (key + COLUMNS < job.n) {
                load_tile<COLUMNS, PAD>(k, qkv + dim, 3 * dim, key + COLUMNS, job);
            }
            close_group();
#pragma unroll
            for (int r = 0; r < 2; r++) {
                float before = most[r], shrink;

#pragma unroll
                for (int j = 0; j < COLUMNS / 8; j++) {
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        float x = s[j][2 * r + e] * scale;

                        x = key + 8 * j + 2 * t + e < job.n ? x : -INFINITY;
                        s[j][2 * r + e] = x;
                        most[r] = fmaxf(most[r], x);
                    }
                }
                most[r] = row_max(most[r]); /* finite: the tile has a key */
                shrink = exp2f(before - most[r]);
                sum[r] *= shrink; /* of this lane's columns */
#pragma unroll
                for (int j = 0; j < PAD / 8; j++) {
                    acc[j][2 * r] *= shrink;
                    acc[j][2 * r + 1] *= shrink;
                }
#pragma unroll
                for (int j = 0; j < COLUMNS / 8; j++) {
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        s[j][2 * r + e] = exp2f(s[j][2 * r + e] - most[r]);
                        sum[r] += s[j][2 * r + e];
                    }
                }
            }
            wait_groups<1>(); /* all but the next keys */
            __syncthreads();
            accumulate<PAD, COLUMNS>(acc, s, v);
            __syncthreads(); /* the values have been used */
            if (key + COLUMNS < job.n) {
                load_tile<COLUMNS, PAD>(v, qkv + 2 * dim, 3 * dim, key + COLUMNS, job);
            }
            close_group();
        }
#pragma unroll
        for (int r = 0; r < 2; r++) {
            int64_t row = at.first + 16 * warp + g + 8 * r;

            sum[r] = row_sum(sum[r]);
            if (job.lse_out != NULL && t == 0 && row < job.n) {
                job.lse_out[at.rows + row] = (most[r] + log2f(sum[r])) * LN_2;
            }
        }
        store_rows<PAD>(job.out + at.unpacked, dim, at.first + 16 * warp, job, own, acc, 1.0f / sum[0], 1.0f / sum[1]);
    }
}

/* ---- backward ---- */

/* Columns of a tile: narrower for long rows, whose accumulators need the registers. */
#define BACKWARD_COLUMNS(PAD) ((PAD) <= 64 ? 64 : 32)

/* Two tiles of rows, two of columns twice; log-sum-exp and delta of the columns twice. */
template <int PAD> constexpr size_t backward_bytes()
{
    return (2 * ROWS + 4 * BACKWARD_COLUMNS(PAD)) * (PAD + 8) * sizeof(bf16) +
           4 * BACKWARD_COLUMNS(PAD) * sizeof(float);
}

/* d_q of a tile of queries, over all keys. */
template <int PAD>
static __global__ __launch_bounds__(THREADS, 2) void attention_mma_bwd_queries_kernel(const mma_work job)
{
    const int COLUMNS = BACKWARD_COLUMNS(PAD), TILE = COLUMNS * (PAD + 8);
    const int warp = (int)threadIdx.x / WARP, lane = (int)threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    const int64_t dim = job.h * job.d;
    const float scale = job.scale * LOG2_E;
    extern __shared__ __align__(16) bf16 shared[];
    bf16 *q = shared, *d_o = q + ROWS * (PAD + 8), *k = d_o + ROWS * (PAD + 8), *v = k + 2 * TILE;
    bf16 *own_q = q + 16 * warp * (PAD + 8), *own_d_o = d_o + 16 * warp * (PAD + 8);

    for (int64_t task = blockIdx.x; task < job.n_tasks; task += gridDim.x) {
        place at = place_of(job, task);
        const bf16 *qkv = job.qkv + at.packed;
        float acc[PAD / 8][4], lse[2], delta[2]; /* rows g and g + 8 */
        int now = 0;                             /* which of the two buffers */

        clear<PAD / 8>(acc);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            int64_t row = at.first + 16 * warp + g + 8 * r;

            lse[r] = row < job.n ? job.lse[at.rows + row] * LOG2_E : 0.0f;
            delta[r] = row < job.n ? job.delta[at.rows + row] : 0.0f;
        }
        __syncthreads(); /* the task before is done with shared memory */
        load_tile<ROWS, PAD>(q, qkv, 3 * dim, at.first, job);
        load_tile<ROWS, PAD>(d_o, job.d_out + at.unpacked, dim, at.first, job);
        load_tile<COLUMNS, PAD>(k, qkv + dim, 3 * dim, 0, job);
        load_tile<COLUMNS, PAD>(v, qkv + 2 * dim, 3 * dim, 0, job);
        close_group();
        for (int64_t key = 0; key < job.n; key += COLUMNS) {
            float s[COLUMNS / 8][4], d_p[COLUMNS / 8][4];
            const bf16 *keys = k + now * TILE, *values = v + now * TILE;

            now ^= 1;
            if (key + COLUMNS < job.n) {
                load_tile<COLUMNS, PAD>(k + now * TILE, qkv + dim, 3 * dim, key + COLUMNS, job);
                load_tile<COLUMNS, PAD>(v + now * TILE, qkv + 2 * dim, 3 * dim, key + COLUMNS, job);
            }
            close_group();
            wait_groups<1>(); /* all but the next tiles */
            __syncthreads();
            scores<PAD, COLUMNS>(s, own_q, keys);
            scores<PAD, COLUMNS>(d_p, own_d_o, values);
#pragma unroll
            for (int j = 0; j < COLUMNS / 8; j++) {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    float p = exp2f(s[j][e] * scale - lse[e / 2]);

                    p = key + 8 * j + 2 * t + e % 2 < job.n ? p : 0.0f;
                    s[j][e] = job.scale * p * (d_p[j][e] - delta[e / 2]);
                }
            }
            accumulate<PAD, COLUMNS>(acc, s, keys);
            __syncthreads(); /* these tiles have been used */
        }
        store_rows<PAD>(job.d_qkv + at.packed, 3 * dim, at.first + 16 * warp, job, own_q, acc, 1.0f, 1.0f);
    }
}

/* d_k and d_v of a tile of keys, over all queries. Rows are keys here, columns queries. */
template <int PAD>
static __global__ __launch_bounds__(THREADS, 2) void attention_mma_bwd_keys_kernel(const mma_work job)
{
    const int COLUMNS = BACKWARD_COLUMNS(PAD), TILE = COLUMNS * (PAD + 8);
    const int warp = (int)threadIdx.x / WARP, lane = (int)threadIdx.x % WARP, t = lane % 4;
    const int64_t dim = job.h * job.d;
    const float scale = job.scale * LOG2_E;
    extern __shared__ __align__(16) bf16 shared[];
    bf16 *k = shared, *v = k + ROWS * (PAD + 8), *q = v + ROWS * (PAD + 8), *d_o = q + 2 * TILE;
    float *lse = (float *)(d_o + 2 * TILE), *delta = lse + 2 * COLUMNS;
    bf16 *own_k = k + 16 * warp * (PAD + 8), *own_v = v + 16 * warp * (PAD + 8);

    for (int64_t task = blockIdx.x; task < job.n_tasks; task += gridDim.x) {
        place at = place_of(job, task);
        const bf16 *qkv = job.qkv + at.packed, *d_out = job.d_out + at.unpacked;
        float d_k[PAD / 8][4], d_v[PAD / 8][4];
        int now = 0;

        clear<PAD / 8>(d_k);
        clear<PAD / 8>(d_v);
        __syncthreads(); /* the task before is done with shared memory */
        load_tile<ROWS, PAD>(k, qkv + dim, 3 * dim, at.first, job);
        load_tile<ROWS, PAD>(v, qkv + 2 * dim, 3 * dim, at.first, job);
        load_tile<COLUMNS, PAD>(q, qkv, 3 * dim, 0, job);
        load_tile<COLUMNS, PAD>(d_o, d_out, dim, 0, job);
        close_group();
        for (int64_t query = 0; query < job.n; query += COLUMNS) {
            float s[COLUMNS / 8][4], d_p[COLUMNS / 8][4];
            const bf16 *queries = q + now * TILE, *gradients = d_o + now * TILE;
            float *own_lse = lse + now * COLUMNS, *own_delta = delta + now * COLUMNS;

            now ^= 1;
            if (query + COLUMNS < job.n) {
                load_tile<COLUMNS, PAD>(q + now * TILE, qkv, 3 * dim, query + COLUMNS, job);
                load_tile<COLUMNS, PAD>(d_o + now * TILE, d_out, dim, query + COLUMNS, job);
            }
            close_group();
            for (int i = (int)threadIdx.x; i < COLUMNS; i += THREADS) {
                own_lse[i] = query + i < job.n ? job.lse[at.rows + query + i] * LOG2_E : 0.0f;
                own_delta[i] = query + i < job.n ? job.delta[at.rows + query + i] : 0.0f;
            }
            wait_groups<1>(); /* all but the next tiles */
            __syncthreads();
            scores<PAD, COLUMNS>(s, own_k, queries);
#pragma unroll
            for (int j = 0; j < COLUMNS / 8; j++) {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    int column = 8 * j + 2 * t + e % 2;
                    float p = exp2f(s[j][e] * scale - own_lse[column]);

                    s[j][e] = query + column < job.n ? p : 0.0f;
                }
            }
            accumulate<PAD, COLUMNS>(d_v, s, gradients);
            scores<PAD, COLUMNS>(d_p, own_v, gradients);
#pragma unroll
            for (int j = 0; j < COLUMNS / 8; j++) {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    s[j][e] *= job.scale * (d_p[j][e] - own_delta[8 * j + 2 * t + e % 2]);
                }
            }
            accumulate<PAD, COLUMNS>(d_k, s, queries);
            __syncthreads(); /* these tiles have been used */
        }
        store_rows<PAD>(job.d_qkv + at.packed + dim, 3 * dim, at.first + 16 * warp, job, own_k, d_k, 1.0f, 1.0f);
        store_rows<PAD>(job.d_qkv + at.packed + 2 * dim, 3 * dim, at.first + 16 * warp, job, own_v, d_v, 1.0f, 1.0f);
    }
}

/* ---- launchers ---- */

typedef void mma_kernel_function(mma_work job);

static void launch(agglo_cuda *cuda, mma_kernel_function *kernel, const mma_work *job, size_t shared_bytes,
                   const char *what)
{
    if (!agglo_cuda_ok(
            cuda, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared_bytes), what)) {
        return;
    }
    kernel<<<agglo_cuda_grid(job->n_tasks, MOST_GRID), THREADS, shared_bytes, cuda->stream>>>(*job);
    agglo_cuda_launched(cuda, what);
}

static mma_work work_of(const agglo_tensor *qkv, float scale)
{
    mma_work job = {};

    job.n = qkv->shape[1];
    job.h = qkv->shape[3];
    job.d = qkv->shape[4];
    job.n_tiles = agglo_cuda_ceil_div(job.n, ROWS);
    job.n_tasks = qkv->shape[0] * job.h * job.n_tiles;
    job.scale = scale;
    job.qkv = input_of<bf16>(qkv);
    return job;
}

void agglo_cuda_attention_mma(agglo_cuda *cuda, const agglo_tensor *qkv, float scale, agglo_tensor *out,
                              agglo_tensor *lse)
{
    mma_work job = work_of(qkv, scale);

    job.out = output_of<bf16>(out);
    job.lse_out = output(lse);
    job.vectors = wide<bf16>(job.d, job.qkv, job.out);
    if (job.d <= 32) {
        launch(cuda, attention_mma_kernel<32>, &job, forward_bytes<32>(), "attention");
    } else if (job.d <= 64) {
        launch(cuda, attention_mma_kernel<64>, &job, forward_bytes<64>(), "attention");
    } else if (job.d <= 96) {
        launch(cuda, attention_mma_kernel<96>, &job, forward_bytes<96>(), "attention");
    } else {
        launch(cuda, attention_mma_kernel<128>, &job, forward_bytes<128>(), "attention");
    }
}

template <int PAD> static void launch_backward(agglo_cuda *cuda, const mma_work *job)
{
    launch(cuda, attention_mma_bwd_queries_kernel<PAD>, job, backward_bytes<PAD>(), "attention_bwd");
    launch(cuda, attention_mma_bwd_keys_kernel<PAD>, job, backward_bytes<PAD>(), "attention_bwd");
}

void agglo_cuda_attention_mma_bwd(agglo_cuda *cuda, const agglo_tensor *d_out, const agglo_tensor *qkv,
                                  const agglo_tensor *lse, const float *delta, float scale, agglo_tensor *d_qkv)
{
    mma_work job = work_of(qkv, scale);

    job.d_out = input_of<bf16>(d_out);
    job.lse = input(lse);
    job.delta = delta;
    job.d_qkv = output_of<bf16>(d_qkv);
    job.vectors = wide<bf16>(job.d, job.qkv, job.d_out, job.d_qkv);
    if (job.d <= 32) {
        launch_backward<32>(cuda, &job);
    } else if (job.d <= 64) {
        launch_backward<64>(cuda, &job);
    } else if (job.d <= 96) {
        launch_backward<96>(cuda, &job);
    } else {
        launch_backward<128>(cuda, &job);
    }
}
