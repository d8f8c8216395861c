/* What attention.c and attention_bias.c share on the CPU: products over tiles of packed tokens, and the bias's steps between them. Only files
 * that are compiled per instruction set include this. Scores are kept transposed, S^T [keys, QUERIES]: see attention.c.
 */
#ifndef AGGLO_TENSOR_CPU_ATTENTION_IMPL_H
#define AGGLO_TENSOR_CPU_ATTENTION_IMPL_H

#include "tensor/cpu/gemm_impl.h"

#ifdef AGGLO_CPU_ISA

#define KEYS    256 /* at most, per block; blocks are even */
#define QUERIES 96  /* per tile: a multiple of every GEMM_ROWS and GEMM_COLS */
#define GROUP   (4 * QUERIES)

/* S^T: panels of K by panels of Q */
GEMM_KERNELS(scores_kernel, 1, GEMM_ROWS)
/* S^T's columns as rows: [queries, keys] times panels of [keys, D] */
GEMM_KERNELS(by_query, 1, QUERIES)
/* S^T's rows: [keys, queries] times panels of [queries, D] */
GEMM_KERNELS(by_key, QUERIES, 1)

/* A bias as attention.c's tiles need it. The decomposed kind's tables are one matrix here, rel_h's rows and then rel_w's, divided by the
 * scale that queries come multiplied with. */
typedef struct attention_bias {
    const float *table; /* dense: [H, N, N]; otherwise NULL */
    int64_t n_prefix, grid_h, grid_w, n_rel;
    const float *rel_left, *rel_tokens; /* the matrix as a left operand over D, as a right operand over its rows */
    int64_t partial_size, partial_ld;   /* of one task's sum of the gradient, and of its rows */
} attention_bias;

typedef struct attention_work {
    agglo_backend *be;
    int64_t n, h, d, dim;
    int64_t block, n_groups; /* keys per block, groups of queries */
    int64_t d_vecs, d_cols;  /* D rounded up to whole vectors, to whole panels */
    const agglo_tensor *qkv, *out, *d_out;
    agglo_tensor *to, *d_qkv; /* out or d_qkv, written */
    const float *kept_lse;
    float *lse, scale;
    const attention_bias *bias; /* NULL: none */
    float *partials;            /* sums of the bias's gradient [H, n_chunks, partial_size]; NULL: none is wanted */
    int64_t n_chunks;           /* of the batch: tasks of the backward pass per head */
} attention_work;

static inline int64_t up(int64_t n, int64_t unit)
{
    return agglo_ceil_div(n, unit) * unit;
}

static inline attention_work work_of(agglo_backend *be, const agglo_tensor *qkv, float scale)
{
    attention_work job = {
        .be = be, .n = qkv->shape[1], .h = qkv->shape[3], .d = qkv->shape[4], .qkv = qkv, .scale = scale};

    job.dim = job.h * job.d;
    job.block = agglo_ceil_div(job.n, agglo_ceil_div(job.n, KEYS));
    job.n_groups = agglo_ceil_div(job.n, GROUP);
    job.n_chunks = qkv->shape[0];
    job.d_vecs = up(job.d, GEMM_LANES);
    job.d_cols = up(job.d, GEMM_COLS);
    return job;
}

/* One head's rows of a tensor whose rows (tokens) are `ld` apart, from element `at` on; rows [token] as outer index of [token, D], or, with
 * `by_d`, D as outer index. */
static inline agglo_cpu_operand rows_of(const agglo_tensor *t, int64_t at, int64_t ld, bool by_d)
{
    const uint8_t *data = (const uint8_t *)t->data + (size_t)at * agglo_dtype_size(t->dtype);

    return (agglo_cpu_operand){data, t->dtype, ld, !by_d};
}

/* Where (image, token, part of q k v, head) starts in qkv. */
static inline int64_t place(const attention_work *job, int64_t image, int64_t token, int64_t part, int64_t head)
{
    return ((image * job->n + token) * 3 + part) * job->dim + head * job->d;
}

static inline void multiply(float *x, int64_t n, float factor)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        x[i] *= factor;
    }
}

/* n tokens in panels [d][GEMM_ROWS]: the left operand of a product over D. */
static inline void pack_left(const attention_work *job, const agglo_tensor *t, int64_t at, int64_t ld, int64_t n,
                             float *out)
{
    agglo_cpu_operand in = rows_of(t, at, ld, false);

    for (int64_t i = 0; i < n; i += GEMM_ROWS) {
        gemm_pack(GEMM_ROWS, &in, i, agglo_min(GEMM_ROWS, n - i), 0, job->d, out + i * job->d);
    }
}

/* n tokens in panels [d][GEMM_COLS]: the right operand of a product over D. */
static inline void pack_right(const attention_work *job, const agglo_tensor *t, int64_t at, int64_t ld, int64_t n,
                              float scale, float *out)
{
    agglo_cpu_operand in = rows_of(t, at, ld, false);

    for (int64_t i = 0; i < n; i += GEMM_COLS) {
        gemm_pack(GEMM_COLS, &in, i, agglo_min(GEMM_COLS, n - i), 0, job->d, out + i * job->d);
    }
    if (scale != 1.0f) {
        multiply(out, up(n, GEMM_COLS) * job->d, scale);
    }
}

/* n tokens in panels [token][GEMM_COLS] over D: the right operand of a product over tokens. */
static inline void pack_tokens(const attention_work *job, const agglo_tensor *t, int64_t at, int64_t ld, int64_t n,
                               float scale, float *out)
{
    agglo_cpu_operand in = rows_of(t, at, ld, true);

    for (int64_t j = 0; j < job->d; j += GEMM_COLS) {
        gemm_pack(GEMM_COLS, &in, j, agglo_min(GEMM_COLS, job->d - j), 0, n, out + j * n);
    }
    if (scale != 1.0f) {
        multiply(out, job->d_cols * n, scale);
    }
}

/* s[key][query] = left . right over D, for whole vectors of queries. */
static inline void scores(const attention_work *job, int64_t n_keys, int64_t n_queries, const float *left,
                          const float *right, float *s)
{
    for (int64_t j = 0; j < n_queries; j += GEMM_COLS) {
        for (int64_t i = 0; i < n_keys; i += GEMM_ROWS) {
            scores_kernel(n_queries - j, job->d, left + i * job->d, right + j * job->d, s + i * QUERIES + j, QUERIES,
                          false);
        }
    }
}

/* c[query][D] (+)= sum over keys of s[key][query] tokens[key][D] */
static inline void over_keys(const attention_work *job, int64_t n_keys, int64_t n_queries, const float *s,
                             const float *tokens, float *c, bool accumulate)
{
    for (int64_t j = 0; j < job->d; j += GEMM_COLS) {
        for (int64_t i = 0; i < n_queries; i += GEMM_ROWS) {
            by_query(job->d - j, n_keys, s + i, tokens + j * n_keys, c + i * job->d_vecs + j, job->d_vecs, accumulate);
        }
    }
}

/* c[key][D] (+)= sum over queries of s[key][query] tokens[query][D] */
static inline void over_queries(const attention_work *job, int64_t n_keys, int64_t n_queries, const float *s,
                                const float *tokens, float *c, bool accumulate)
{
    for (int64_t j = 0; j < job->d; j += GEMM_COLS) {
        for (int64_t i = 0; i < n_keys; i += GEMM_ROWS) {
            by_key(job->d - j, n_queries, s + i * QUERIES, tokens + j * n_queries, c + i * job->d_vecs + j, job->d_vecs,
                   accumulate);
        }
    }
}

/* Part of a worker's scratch. */
static inline float *take(float **scratch, int64_t n)
{
    float *taken = *scratch;

    *scratch += up(n, 16);
    return taken;
}

/* ---- attention.c: the tiles, with the bias that job->bias says ---- */

/* Have scratch for them, and `shared` floats. */
bool AGGLO_CPU_NAME(attention_reserve)(const attention_work *job, bool backward, int64_t shared);
void AGGLO_CPU_NAME(attention_forward)(attention_work *job);
void AGGLO_CPU_NAME(attention_backward)(attention_work *job);

/* ---- attention_bias.c: the bias in a tile ---- */

/* Floats of a worker's arrays, 0 where the kind has none: products of a tile of queries with the matrix of tables; what the tile adds to the
 * scores by rows and by columns of the grid ("places", [grid_h + grid_w, QUERIES]); a part of the dense table, turned. */
typedef struct attention_bias_floats {
    int64_t rel, places, turned;
} attention_bias_floats;
attention_bias_floats AGGLO_CPU_NAME(bias_floats)(const attention_work *job);

/* Work `places` out of a packed tile of n queries (right operand) from `first` on. */
void AGGLO_CPU_NAME(bias_open)(const attention_work *job, int64_t first, int64_t n, const float *right, float *rel,
                               float *places);

/* Add the bias to a tile of scores, in whole vectors of queries; what is beyond n gets none. */
void AGGLO_CPU_NAME(bias_add)(const attention_work *job, int64_t head, int64_t key, int64_t n_keys, int64_t first,
                              int64_t n, const float *places, float *turned, float *s);

/* Add the scores' gradient to d_places, or to the dense kind's partial sum, NULL where none is wanted. */
void AGGLO_CPU_NAME(bias_sum)(const attention_work *job, int64_t key, int64_t n_keys, int64_t first, int64_t n,
                              const float *d_s, float *d_places, float *partial);

/* Of complete d_places: the tile's d_q, before it is scaled, and what its queries (right operand over tokens) add to the partial sum. */
void AGGLO_CPU_NAME(bias_close)(const attention_work *job, int64_t first, int64_t n, const float *d_places,
                                const float *q_tokens, float *rel, float *d_q, float *partial);

#endif
#endif
