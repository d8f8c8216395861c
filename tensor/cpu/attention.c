/* Self-attention on the CPU, in blocks of keys and tiles of queries, with the register kernel of the matrix products. Scores are kept
 * transposed, S^T [keys, queries]: the softmax then runs along whole vectors of queries, without sums across lanes, and S^T and its
 * transpose are both operands of a product as they stand.
 *
 * Forward, one task per (image, head, group of queries); per block of keys and tile of queries
 *     S^T = K (scale Q)^T;  m' = max(m, S);  P = exp(S - m');  sum = sum exp(m - m') + P's;  out = out exp(m - m') + P V
 *     at the end out /= sum, lse = m + log(sum)
 * (Milakov and Gimelshein 2018; Dao et al., NeurIPS 2022). Backward, one task per (image, head), so that every gradient has one writer:
 *     P = exp(S - lse);  d_v += P^T d_o;  d_s = P (d_o V^T - rowsum(d_o o));  d_q += scale d_s K;  d_k += d_s^T (scale Q)
 *
 * Scratch does not grow with the number of tokens, but for d_q of BF16 storage, which is summed in F32. Q, K and V are read from the packed
 * rows [N, 3, H, D] once per block or tile; a row's result does not depend on the batch.
 */
#include "tensor/cpu/gemm_impl.h"
#include "tensor/math_inline.h"

#include <math.h>

#define KEYS    256 /* at most, per block; blocks are even */
#define QUERIES 96  /* per tile: a multiple of every GEMM_ROWS and GEMM_COLS */
#define GROUP   (4 * QUERIES)

/* S^T: panels of K by panels of Q */
GEMM_KERNELS(scores_kernel, 1, GEMM_ROWS)
/* S^T's columns as rows: [queries, keys] times panels of [keys, D] */
GEMM_KERNELS(by_query, 1, QUERIES)
/* S^T's rows: [keys, queries] times panels of [queries, D] */
GEMM_KERNELS(by_key, QUERIES, 1)

typedef struct attention_work {
    agglo_backend *be;
    int64_t n, h, d, dim;
    int64_t block, n_groups; /* keys per block, groups of queries */
    int64_t d_vecs, d_cols;  /* D rounded up to whole vectors, to whole panels */
    const agglo_tensor *qkv, *out, *d_out;
    agglo_tensor *to, *d_qkv; /* out or d_qkv, written */
    const float *kept_lse;
    float *lse, scale;
} attention_work;

static int64_t up(int64_t n, int64_t unit)
{
    return agglo_ceil_div(n, unit) * unit;
}

static attention_work work_of(agglo_backend *be, const agglo_tensor *qkv, float scale)
{
    attention_work job = {
        .be = be, .n = qkv->shape[1], .h = qkv->shape[3], .d = qkv->shape[4], .qkv = qkv, .scale = scale};

    job.dim = job.h * job.d;
    job.block = agglo_ceil_div(job.n, agglo_ceil_div(job.n, KEYS));
    job.n_groups = agglo_ceil_div(job.n, GROUP);
    job.d_vecs = up(job.d, GEMM_LANES);
    job.d_cols = up(job.d, GEMM_COLS);
    return job;
}

/* One head's rows of a tensor whose rows (tokens) are `ld` apart, from element `at` on; rows [token] as outer index of [token, D], or, with
 * `by_d`, D as outer index. */
static agglo_cpu_operand rows_of(const agglo_tensor *t, int64_t at, int64_t ld, bool by_d)
{
    const uint8_t *data = (const uint8_t *)t->data + (size_t)at * agglo_dtype_size(t->dtype);

    return (agglo_cpu_operand){data, t->dtype, ld, !by_d};
}

/* Where (image, token, part of q k v, head) starts in qkv. */
static int64_t place(const attention_work *job, int64_t image, int64_t token, int64_t part, int64_t head)
{
    return ((image * job->n + token) * 3 + part) * job->dim + head * job->d;
}

static void multiply(float *x, int64_t n, float factor)
{
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        x[i] *= factor;
    }
}

/* n tokens in panels [d][GEMM_ROWS]: the left operand of a product over D. */
static void pack_left(const attention_work *job, const agglo_tensor *t, int64_t at, int64_t ld, int64_t n, float *out)
{
    agglo_cpu_operand in = rows_of(t, at, ld, false);

    for (int64_t i = 0; i < n; i += GEMM_ROWS) {
        gemm_pack(GEMM_ROWS, &in, i, agglo_min(GEMM_ROWS, n - i), 0, job->d, out + i * job->d);
    }
}

/* n tokens in panels [d][GEMM_COLS]: the right operand of a product over D. */
static void pack_right(const attention_work *job, const agglo_tensor *t, int64_t at, int64_t ld, int64_t n, float scale,
                       float *out)
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
static void pack_tokens(const attention_work *job, const agglo_tensor *t, int64_t at, int64_t ld, int64_t n,
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
static void scores(const attention_work *job, int64_t n_keys, int64_t n_queries, const float *left, const float *right,
                   float *s)
{
    for (int64_t j = 0; j < n_queries; j += GEMM_COLS) {
        for (int64_t i = 0; i < n_keys; i += GEMM_ROWS) {
            scores_kernel(n_queries - j, job->d, left + i * job->d, right + j * job->d, s + i * QUERIES + j, QUERIES,
                          false);
        }
    }
}

/* c[query][D] (+)= sum over keys of s[key][query] tokens[key][D] */
static void over_keys(const attention_work *job, int64_t n_keys, int64_t n_queries, const float *s, const float *tokens,
                      float *c, bool accumulate)
{
    for (int64_t j = 0; j < job->d; j += GEMM_COLS) {
        for (int64_t i = 0; i < n_queries; i += GEMM_ROWS) {
            by_query(job->d - j, n_keys, s + i, tokens + j * n_keys, c + i * job->d_vecs + j, job->d_vecs, accumulate);
        }
    }
}

/* c[key][D] (+)= sum over queries of s[key][query] tokens[query][D] */
static void over_queries(const attention_work *job, int64_t n_keys, int64_t n_queries, const float *s,
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
static float *take(float **scratch, int64_t n)
{
    float *taken = *scratch;

    *scratch += up(n, 16);
    return taken;
}

/* ---- forward ---- */

typedef struct forward_scratch {
    float *k, *v, *q, *s, *out, *most, *sum, *shrink;
} forward_scratch;

static int64_t forward_floats(const attention_work *job)
{
    int64_t keys = up(job->block, GEMM_ROWS), queries = agglo_min(GROUP, up(job->n, QUERIES));

    return up(keys * job->d, 16) + up(job->block * job->d_cols, 16) + up(queries * job->d, 16) +
           up(keys * QUERIES, 16) + up(queries * job->d_vecs, 16) + 2 * GROUP + QUERIES;
}

static forward_scratch forward_parts(const attention_work *job, float *scratch)
{
    int64_t keys = up(job->block, GEMM_ROWS), queries = agglo_min(GROUP, up(job->n, QUERIES));
    forward_scratch parts;

    parts.k = take(&scratch, keys * job->d);
    parts.v = take(&scratch, job->block * job->d_cols);
    parts.q = take(&scratch, queries * job->d);
    parts.s = take(&scratch, keys * QUERIES);
    parts.out = take(&scratch, queries * job->d_vecs);
    parts.most = take(&scratch, GROUP);
    parts.sum = take(&scratch, GROUP);
    parts.shrink = take(&scratch, QUERIES);
    return parts;
}

/* most[q] = max(most[q], s's), sum and s as in the head of the file; shrink[q] = exp(old most - new most). `n` whole vectors of queries.
 * A score that is NaN makes the sum NaN, and with it the row. */
static void softmax_tile(int64_t n_keys, int64_t n, bool first, float *restrict s, float *restrict most,
                         float *restrict sum, float *restrict shrink)
{
    float was[QUERIES];

    for (int64_t j = 0; j < n; j++) {
        was[j] = most[j];
        most[j] = first ? s[j] : most[j];
    }
    for (int64_t i = 0; i < n_keys; i++) {
#pragma omp simd
        for (int64_t j = 0; j < n; j++) {
            float v = s[i * QUERIES + j];

            most[j] = v > most[j] ? v : most[j];
        }
    }
    for (int64_t j = 0; j < n; j++) {
        shrink[j] = first ? 0.0f : agglo_exp(was[j] - most[j]);
        sum[j] = first ? 0.0f : sum[j] * shrink[j];
    }
    for (int64_t i = 0; i < n_keys; i++) {
#pragma omp simd
        for (int64_t j = 0; j < n; j++) {
            float e = agglo_exp(s[i * QUERIES + j] - most[j]);

            s[i * QUERIES + j] = e;
            sum[j] += e;
        }
    }
}

static void write_group(const attention_work *job, const forward_scratch *at, int64_t image, int64_t head,
                        int64_t first, int64_t n)
{
    float *lse = job->lse == NULL ? NULL : job->lse + (image * job->h + head) * job->n + first;

    for (int64_t i = 0; i < n; i++) {
        float *sums = at->out + i * job->d_vecs, inverse = 1.0f / at->sum[i];
        int64_t to = (image * job->n + first + i) * job->dim + head * job->d;
        float *out = agglo_cpu_out(job->to, to, sums);

#pragma omp simd
        for (int64_t j = 0; j < job->d; j++) {
            out[j] = sums[j] * inverse;
        }
        agglo_cpu_put(job->to, to, job->d, out);
        if (lse != NULL) {
            lse[i] = at->most[i] + logf(at->sum[i]);
        }
    }
}

static void forward_group(void *context, int64_t index, int worker)
{
    const attention_work *job = context;
    int64_t group = index % job->n_groups, head = index / job->n_groups % job->h,
            image = index / job->n_groups / job->h;
    int64_t first = group * GROUP, n = agglo_min(GROUP, job->n - first), ld = 3 * job->dim;
    forward_scratch at = forward_parts(job, agglo_cpu_worker(job->be, worker));

    for (int64_t q = 0; q < n; q += QUERIES) {
        pack_right(job, job->qkv, place(job, image, first + q, 0, head), ld, agglo_min(QUERIES, n - q), job->scale,
                   at.q + q * job->d);
    }
    for (int64_t key = 0; key < job->n; key += job->block) {
        int64_t n_keys = agglo_min(job->block, job->n - key);

        pack_left(job, job->qkv, place(job, image, key, 1, head), ld, n_keys, at.k);
        pack_tokens(job, job->qkv, place(job, image, key, 2, head), ld, n_keys, 1.0f, at.v);
        for (int64_t q = 0; q < n; q += QUERIES) {
            int64_t n_queries = agglo_min(QUERIES, n - q);
            float *out = at.out + q * job->d_vecs;

            scores(job, n_keys, n_queries, at.k, at.q + q * job->d, at.s);
            softmax_tile(n_keys, up(n_queries, GEMM_LANES), key == 0, at.s, at.most + q, at.sum + q, at.shrink);
            for (int64_t i = 0; key > 0 && i < n_queries; i++) {
                multiply(out + i * job->d_vecs, job->d_vecs, at.shrink[i]);
            }
            over_keys(job, n_keys, n_queries, at.s, at.v, out, key > 0);
        }
    }
    write_group(job, &at, image, head, first, n);
}

static void attention(agglo_backend *be, const agglo_tensor *qkv, float scale, agglo_tensor *out, agglo_tensor *lse)
{
    attention_work job = work_of(be, qkv, scale);

    job.to = out;
    job.lse = lse == NULL ? NULL : lse->data;
    if (agglo_cpu_reserve(be, 0, (size_t)forward_floats(&job) * sizeof(float))) {
        agglo_pool_for(be->pool, qkv->shape[0] * job.h * job.n_groups, forward_group, &job);
    }
}

/* ---- backward ---- */

typedef struct backward_scratch {
    float *k_left, *v_left, *k_tokens;                      /* of a block of keys */
    float *d_k, *d_v;                                       /* their gradients [keys, d_vecs] */
    float *q_right, *d_out_right, *q_tokens, *d_out_tokens; /* of a tile of queries */
    float *p, *d_s, *d_q;                                   /* S^T and its gradient; d_q [QUERIES, d_vecs] */
    float *lse, *delta, *row;
    float *d_q_sums; /* [N, D], of BF16 storage */
} backward_scratch;

/* With `parts` NULL, only the count. */
static int64_t backward_parts(const attention_work *job, float *scratch, backward_scratch *parts)
{
    int64_t keys = up(job->block, GEMM_ROWS), d = job->d;
    const int64_t sizes[] = {keys * d,
                             keys * d,
                             job->block * job->d_cols,
                             keys * job->d_vecs,
                             keys * job->d_vecs,
                             QUERIES * d,
                             QUERIES * d,
                             QUERIES * job->d_cols,
                             QUERIES * job->d_cols,
                             keys * QUERIES,
                             keys * QUERIES,
                             QUERIES * job->d_vecs,
                             QUERIES,
                             QUERIES,
                             2 * d,
                             job->d_qkv->dtype == AGGLO_F32 ? 0 : job->n * d};
    int64_t total = 0;

    if (parts != NULL) {
        float **const places[] = {&parts->k_left,       &parts->v_left,  &parts->k_tokens,    &parts->d_k,
                                  &parts->d_v,          &parts->q_right, &parts->d_out_right, &parts->q_tokens,
                                  &parts->d_out_tokens, &parts->p,       &parts->d_s,         &parts->d_q,
                                  &parts->lse,          &parts->delta,   &parts->row,         &parts->d_q_sums};

        for (size_t i = 0; i < AGGLO_COUNT(sizes); i++) {
            *places[i] = take(&scratch, sizes[i]);
        }
    }
    for (size_t i = 0; i < AGGLO_COUNT(sizes); i++) {
        total += up(sizes[i], 16);
    }
    return total;
}

static float dot(const float *a, const float *b, int64_t n)
{
    float sum = 0.0f;

#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < n; j++) {
        sum += a[j] * b[j];
    }
    return sum;
}

/* Rows of D sums to the tensor, whose rows are 3 dim apart. */
static void write_rows(const attention_work *job, int64_t n, const float *sums, int64_t ld, int64_t to)
{
    for (int64_t i = 0; i < n; i++, to += 3 * job->dim) {
        if (job->d_qkv->dtype == AGGLO_F32) {
            memcpy((float *)job->d_qkv->data + to, sums + i * ld, (size_t)job->d * sizeof *sums);
        } else {
            agglo_cpu_put(job->d_qkv, to, job->d, sums + i * ld);
        }
    }
}

/* Pack a tile of queries, and put their lse and delta = d_o . o beside each other; what is beyond n is 0. */
static void load_queries(const attention_work *job, const backward_scratch *at, int64_t image, int64_t head,
                         int64_t first, int64_t n)
{
    int64_t q = place(job, image, first, 0, head), o = (image * job->n + first) * job->dim + head * job->d;

    pack_right(job, job->qkv, q, 3 * job->dim, n, job->scale, at->q_right);
    pack_tokens(job, job->qkv, q, 3 * job->dim, n, job->scale, at->q_tokens);
    pack_right(job, job->d_out, o, job->dim, n, 1.0f, at->d_out_right);
    pack_tokens(job, job->d_out, o, job->dim, n, 1.0f, at->d_out_tokens);
    for (int64_t i = 0; i < QUERIES; i++) {
        at->lse[i] = i < n ? job->kept_lse[(image * job->h + head) * job->n + first + i] : 0.0f;
        at->delta[i] = i >= n ? 0.0f
                              : dot(agglo_cpu_in(job->d_out, o + i * job->dim, job->d, at->row),
                                    agglo_cpu_in(job->out, o + i * job->dim, job->d, at->row + job->d), job->d);
    }
}

/* p = exp(p - lse), d_s = p (d_s - delta); `n` whole vectors of queries. */
static void softmax_bwd_tile(int64_t n_keys, int64_t n, const float *restrict lse, const float *restrict delta,
                             float *restrict p, float *restrict d_s)
{
    for (int64_t i = 0; i < n_keys; i++) {
#pragma omp simd
        for (int64_t j = 0; j < n; j++) {
            float e = agglo_exp(p[i * QUERIES + j] - lse[j]);

            p[i * QUERIES + j] = e;
            d_s[i * QUERIES + j] = e * (d_s[i * QUERIES + j] - delta[j]);
        }
    }
}

/* d_q (+)= scale tile, in place or where BF16's are summed. */
static void add_d_q(const attention_work *job, const backward_scratch *at, int64_t place_q, int64_t first, int64_t n,
                    bool accumulate)
{
    bool f32 = job->d_qkv->dtype == AGGLO_F32;

    for (int64_t i = 0; i < n; i++) {
        float *to = f32 ? (float *)job->d_qkv->data + place_q + i * 3 * job->dim : at->d_q_sums + (first + i) * job->d;
        const float *from = at->d_q + i * job->d_vecs;

#pragma omp simd
        for (int64_t j = 0; j < job->d; j++) {
            to[j] = accumulate ? to[j] + job->scale * from[j] : job->scale * from[j];
        }
    }
}

static void backward_head(void *context, int64_t index, int worker)
{
    const attention_work *job = context;
    int64_t head = index % job->h, image = index / job->h, ld = 3 * job->dim;
    backward_scratch at;

    backward_parts(job, agglo_cpu_worker(job->be, worker), &at);
    for (int64_t key = 0; key < job->n; key += job->block) {
        int64_t n_keys = agglo_min(job->block, job->n - key), k = place(job, image, key, 1, head);
        int64_t v = place(job, image, key, 2, head);

        pack_left(job, job->qkv, k, ld, n_keys, at.k_left);
        pack_left(job, job->qkv, v, ld, n_keys, at.v_left);
        pack_tokens(job, job->qkv, k, ld, n_keys, 1.0f, at.k_tokens);
        for (int64_t q = 0; q < job->n; q += QUERIES) {
            int64_t n = agglo_min(QUERIES, job->n - q);

            load_queries(job, &at, image, head, q, n);
            scores(job, n_keys, n, at.k_left, at.q_right, at.p);
            scores(job, n_keys, n, at.v_left, at.d_out_right, at.d_s);
            softmax_bwd_tile(n_keys, up(n, GEMM_LANES), at.lse, at.delta, at.p, at.d_s);
            over_queries(job, n_keys, n, at.p, at.d_out_tokens, at.d_v, q > 0);
            over_queries(job, n_keys, n, at.d_s, at.q_tokens, at.d_k, q > 0);
            over_keys(job, n_keys, n, at.d_s, at.k_tokens, at.d_q, false);
            add_d_q(job, &at, place(job, image, q, 0, head), q, n, key > 0);
        }
        write_rows(job, n_keys, at.d_k, job->d_vecs, k);
        write_rows(job, n_keys, at.d_v, job->d_vecs, v);
    }
    if (job->d_qkv->dtype != AGGLO_F32) {
        write_rows(job, job->n, at.d_q_sums, job->d, place(job, image, 0, 0, head));
    }
}

static void attention_bwd(agglo_backend *be, const agglo_tensor *d_out, const agglo_tensor *qkv,
                          const agglo_tensor *out, const agglo_tensor *lse, float scale, agglo_tensor *d_qkv)
{
    attention_work job = work_of(be, qkv, scale);

    job.d_out = d_out;
    job.out = out;
    job.kept_lse = lse->data;
    job.d_qkv = d_qkv;
    if (agglo_cpu_reserve(be, 0, (size_t)backward_parts(&job, NULL, NULL) * sizeof(float))) {
        agglo_pool_for(be->pool, qkv->shape[0] * job.h, backward_head, &job);
    }
}

void AGGLO_CPU_NAME(attention_ops)(agglo_backend_ops *ops)
{
    ops->attention = attention;
    ops->attention_bwd = attention_bwd;
}
