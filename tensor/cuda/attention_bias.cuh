/* What the two files of attention with a bias share: a call's work, places in it, and the bias of a pair of tokens. */
#ifndef AGGLO_TENSOR_CUDA_ATTENTION_BIAS_CUH
#define AGGLO_TENSOR_CUDA_ATTENTION_BIAS_CUH

#include "tensor/cuda/kernels.cuh"

#define MOST_DIM    128
#define MOST_TOKENS 46340 /* whose square is below 2^31 */

typedef struct bias_work {
    int64_t batch, n, h, d, n_tiles, n_tasks;
    float scale;
    agglo_dtype dtype;
    const void *qkv, *d_out;
    const float *lse, *delta;
    void *out, *d_qkv;
    float *lse_out;

    bool decomposed;
    int n_prefix, grid_h, grid_w;
    const float *rel_h, *rel_w, *table;
    float *by_row, *by_column;     /* [B,H,N,grid_h], [B,H,N,grid_w] */
    float *d_by_row, *d_by_column; /* their gradients; NULL before the backward pass */
    int64_t n_chunks;
    float *partial; /* of the tables' gradients */
} bias_work;

/* Which tile of which head a task is; offsets into qkv and out of its image and head. */
typedef struct place {
    int64_t first; /* row of the tile */
    int64_t head;
    int64_t packed;   /* q of row 0; k and v are H D and 2 H D further, rows 3 H D apart */
    int64_t unpacked; /* out of row 0, rows H D apart */
    int64_t rows;     /* lse of row 0 */
} place;

static __device__ inline place place_of_head(const bias_work &job, int64_t image, int64_t head)
{
    int64_t dim = job.h * job.d;
    place at;

    at.first = 0;
    at.head = head;
    at.packed = image * job.n * 3 * dim + head * job.d;
    at.unpacked = image * job.n * dim + head * job.d;
    at.rows = (image * job.h + head) * job.n;
    return at;
}

static __device__ inline place place_of(const bias_work &job, int64_t task, int tile)
{
    int64_t which = task / job.n_tiles;
    place at = place_of_head(job, which / job.h, which % job.h);

    at.first = task % job.n_tiles * tile;
    return at;
}

/* What a head's queries read of the bias. Places within it are counted in 32 bits. */
typedef struct head_bias {
    const float *by_row, *by_column; /* or the table and NULL */
} head_bias;

static __device__ inline head_bias bias_of_head(const bias_work &job, const place &at)
{
    head_bias bias;

    bias.by_row = job.decomposed ? job.by_row + at.rows * job.grid_h : job.table + at.head * job.n * job.n;
    bias.by_column = job.decomposed ? job.by_column + at.rows * job.grid_w : NULL;
    return bias;
}

/* A key's place in the grid; y < 0: it has none. In a dense table: x is its column. */
typedef struct key_place {
    int y, x;
} key_place;

static __device__ inline key_place key_place_of(const bias_work &job, int column)
{
    int token = column - job.n_prefix;
    key_place key;

    key.y = job.decomposed && token >= 0 ? token / job.grid_w : -1;
    key.x = !job.decomposed ? column : key.y >= 0 ? token - key.y * job.grid_w : -1;
    return key;
}

/* The bias of a query and a key, both of which exist. */
static __device__ inline float bias_at(const bias_work &job, const head_bias &bias, int row, key_place key)
{
    if (!job.decomposed) {
        return bias.by_row[row * (int)job.n + key.x];
    }
    return key.y >= 0 && row >= job.n_prefix
               ? bias.by_row[row * job.grid_h + key.y] + bias.by_column[row * job.grid_w + key.x]
               : 0.0f;
}

/* Add `rows` rows of a tile w of d_s, from row0 of it, to the gradients of the two products: w's rows are `stride` apart, its `tile`
 * columns the keys from `key`. Threads 0 .. n_threads - 1 call, between two of their barriers. */
static __device__ inline void add_to_products(const bias_work &job, const place &at, const float *w, int stride,
                                              int row0, int rows, int tile, int64_t key, int thread, int n_threads)
{
    const int gh = job.grid_h, gw = job.grid_w;
    const int end = (int)(key + tile < job.n ? key + tile : job.n) - job.n_prefix; /* tokens of the grid */
    const int first = (int)key > job.n_prefix ? (int)key - job.n_prefix : 0;
    const int shift = job.n_prefix - (int)key; /* token -> column of w */
    const int y0 = first / gw, n_y = first < end ? (end - 1) / gw - y0 + 1 : 0;

    for (int e = thread; e < rows * n_y; e += n_threads) {
        int r = row0 + e % rows, y = y0 + e / rows;
        int from = y * gw > first ? y * gw : first, to = (y + 1) * gw < end ? (y + 1) * gw : end;
        int64_t row = at.first + r;
        float sum = 0.0f;

        for (int t = from; t < to; t++) {
            sum += w[r * stride + t + shift];
        }
        if (row < job.n && row >= job.n_prefix) {
            job.d_by_row[(at.rows + row) * gh + y] += sum;
        }
    }
    for (int e = thread; e < rows * gw; e += n_threads) {
        int r = row0 + e / gw, x = e % gw, from = y0 * gw + x;
        int64_t row = at.first + r;
        float sum = 0.0f;

        for (int t = from < first ? from + gw : from; t < end; t += gw) {
            sum += w[r * stride + t + shift];
        }
        if (row < job.n && row >= job.n_prefix) {
            job.d_by_column[(at.rows + row) * gw + x] += sum;
        }
    }
}

/* attention_bias_mma.cu: the BF16 kernels for tensor cores. The caller has made job whole but for tiles and tasks. Whether there is one for
 * this shape: */
bool agglo_cuda_bias_mma_fits(const bias_work *job);
void agglo_cuda_bias_mma_forward(agglo_cuda *cuda, const bias_work *job);
/* d_qkv, and where they are wanted d_by_row and d_by_column (zeroed before) or the chunks' sums of d_table as in attention_bias.cu */
void agglo_cuda_bias_mma_backward(agglo_cuda *cuda, const bias_work *job, float *d_table);

#endif
