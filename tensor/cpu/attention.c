/* Self-attention on the CPU, in blocks of keys and tiles of queries, with the register kernel of the matrix products. Scores are kept
 * transposed, S^T [keys, queries]: the softmax then runs along whole vectors of queries, without sums across lanes, and S^T and its
 * transpose are both operands of a product as they stand.
 *
 * Forward, one task per (image, head, group of queries); per block of keys and tile of queries
 *     S^T = K (scale Q)^T;  m' = max(m, S);  P = exp(S - m');  sum = sum exp(m - m') + P's;  out = out exp(m - m') + P V
 *     at the end out /= sum, lse = m + log(sum)
 * (Milakov and Gimelshein 2018; Dao et al., NeurIPS 2022). Backward, one task per (head, image), so that every gradient has one writer:
 *     P = exp(S - lse);  d_v += P^T d_o;  d_s = P (d_o V^T - rowsum(d_o o));  d_q += scale d_s K;  d_k += d_s^T (scale Q)
 *
 * A bias is added to S before the exponential, and takes its gradient from d_s (attention_bias.c); then a task of the backward pass is a head
 * and a chunk of the images, in order, with a sum of the bias's gradient of its own. Chunks depend on the shape alone.
 *
 * Scratch does not grow with the number of tokens, but for d_q of BF16 storage, which is summed in F32, and the bias's places. Q, K and V are read from the packed
 * rows [N, 3, H, D] once per block or tile; a row's result does not depend on the batch.
 */
#include "tensor/cpu/attention_impl.h"
#include "tensor/math_inline.h"

#include <math.h>

/* A piece of a worker's scratch: where its address goes, and floats. */
typedef struct scratch_part {
    float **place;
    int64_t size;
} scratch_part;

/* Lays parts out one behind the other from `scratch` on; NULL: only counts. The floats that they take. */
static int64_t lay_parts(const scratch_part *parts, size_t n, float *scratch)
{
    int64_t total = 0;

    for (size_t i = 0; i < n; i++) {
        if (scratch != NULL) {
            *parts[i].place = take(&scratch, parts[i].size);
        }
        total += up(parts[i].size, 16);
    }
    return total;
}

/* ---- forward ---- */

typedef struct forward_scratch {
    float *k, *v, *q, *s, *out, *most, *sum, *shrink;
    float *rel, *places, *turned; /* of a bias */
} forward_scratch;

static int64_t forward_parts(const attention_work *job, float *scratch, forward_scratch *at)
{
    int64_t keys = up(job->block, GEMM_ROWS), queries = agglo_min(GROUP, up(job->n, QUERIES));
    attention_bias_floats bias = AGGLO_CPU_NAME(bias_floats)(job);
    const scratch_part parts[] = {
        {&at->k, keys * job->d},
        {&at->v, job->block * job->d_cols},
        {&at->q, queries * job->d},
        {&at->s, keys * QUERIES},
        {&at->out, queries * job->d_vecs},
        {&at->most, GROUP},
        {&at->sum, GROUP},
        {&at->shrink, QUERIES},
        {&at->rel, bias.rel},
        {&at->places, queries / QUERIES * bias.places},
        {&at->turned, bias.turned},
    };

    return lay_parts(parts, AGGLO_COUNT(parts), scratch);
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
    int64_t places_size = AGGLO_CPU_NAME(bias_floats)(job).places;
    forward_scratch at;

    forward_parts(job, agglo_cpu_worker(job->be, worker), &at);
    for (int64_t q = 0; q < n; q += QUERIES) {
        int64_t n_queries = agglo_min(QUERIES, n - q);

        pack_right(job, job->qkv, place(job, image, first + q, 0, head), ld, n_queries, job->scale, at.q + q * job->d);
        if (places_size > 0) {
            AGGLO_CPU_NAME(bias_open)
            (job, first + q, n_queries, at.q + q * job->d, at.rel, at.places + q / QUERIES * places_size);
        }
    }
    for (int64_t key = 0; key < job->n; key += job->block) {
        int64_t n_keys = agglo_min(job->block, job->n - key);

        pack_left(job, job->qkv, place(job, image, key, 1, head), ld, n_keys, at.k);
        pack_tokens(job, job->qkv, place(job, image, key, 2, head), ld, n_keys, 1.0f, at.v);
        for (int64_t q = 0; q < n; q += QUERIES) {
            int64_t n_queries = agglo_min(QUERIES, n - q);
            float *out = at.out + q * job->d_vecs;

            scores(job, n_keys, n_queries, at.k, at.q + q * job->d, at.s);
            if (job->bias != NULL) {
                AGGLO_CPU_NAME(bias_add)
                (job, head, key, n_keys, first + q, n_queries, at.places + q / QUERIES * places_size, at.turned, at.s);
            }
            softmax_tile(n_keys, up(n_queries, GEMM_LANES), key == 0, at.s, at.most + q, at.sum + q, at.shrink);
            for (int64_t i = 0; key > 0 && i < n_queries; i++) {
                multiply(out + i * job->d_vecs, job->d_vecs, at.shrink[i]);
            }
            over_keys(job, n_keys, n_queries, at.s, at.v, out, key > 0);
        }
    }
    write_group(job, &at, image, head, first, n);
}

void AGGLO_CPU_NAME(attention_forward)(attention_work *job)
{
    agglo_pool_for(job->be->pool, job->qkv->shape[0] * job->h * job->n_groups, forward_group, job);
}

/* ---- backward ---- */

typedef struct backward_scratch {
    float *k_left, *v_left, *k_tokens;                      /* of a block of keys */
    float *d_k, *d_v;                                       /* their gradients [keys, d_vecs] */
    float *q_right, *d_out_right, *q_tokens, *d_out_tokens; /* of a tile of queries */
    float *p, *d_s, *d_q;                                   /* S^T and its gradient; d_q [QUERIES, d_vecs] */
    float *lse, *delta, *row;
    float *d_q_sums;                         /* [N, D], of BF16 storage */
    float *rel, *places, *d_places, *turned; /* of a bias; places of all tiles */
} backward_scratch;

static int64_t backward_parts(const attention_work *job, float *scratch, backward_scratch *at)
{
    int64_t keys = up(job->block, GEMM_ROWS), d = job->d, tiles = agglo_ceil_div(job->n, QUERIES);
    attention_bias_floats bias = AGGLO_CPU_NAME(bias_floats)(job);
    const scratch_part parts[] = {
        {&at->k_left, keys * d},
        {&at->v_left, keys * d},
        {&at->k_tokens, job->block * job->d_cols},
        {&at->d_k, keys * job->d_vecs},
        {&at->d_v, keys * job->d_vecs},
        {&at->q_right, QUERIES * d},
        {&at->d_out_right, QUERIES * d},
        {&at->q_tokens, QUERIES * job->d_cols},
        {&at->d_out_tokens, QUERIES * job->d_cols},
        {&at->p, keys * QUERIES},
        {&at->d_s, keys * QUERIES},
        {&at->d_q, QUERIES * job->d_vecs},
        {&at->lse, QUERIES},
        {&at->delta, QUERIES},
        {&at->row, 2 * d},
        {&at->d_q_sums, job->d_qkv->dtype == AGGLO_F32 ? 0 : job->n * d},
        {&at->rel, bias.rel},
        {&at->places, tiles * bias.places},
        {&at->d_places, tiles * bias.places},
        {&at->turned, bias.turned},
    };

    return lay_parts(parts, AGGLO_COUNT(parts), scratch);
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

/* Before the blocks of keys: what every tile of queries adds to its scores by its place in the grid. */
static void open_places(const attention_work *job, const backward_scratch *at, int64_t image, int64_t head)
{
    int64_t size = AGGLO_CPU_NAME(bias_floats)(job).places;

    memset(at->d_places, 0, (size_t)(agglo_ceil_div(job->n, QUERIES) * size) * sizeof(float));
    for (int64_t q = 0; size > 0 && q < job->n; q += QUERIES) {
        int64_t n = agglo_min(QUERIES, job->n - q);

        pack_right(job, job->qkv, place(job, image, q, 0, head), 3 * job->dim, n, job->scale, at->q_right);
        AGGLO_CPU_NAME(bias_open)(job, q, n, at->q_right, at->rel, at->places + q / QUERIES * size);
    }
}

/* Behind them: its part of d_q, and of the tables' gradient. */
static void close_places(const attention_work *job, const backward_scratch *at, int64_t image, int64_t head,
                         float *partial)
{
    int64_t size = AGGLO_CPU_NAME(bias_floats)(job).places;

    for (int64_t q = 0; size > 0 && q < job->n; q += QUERIES) {
        int64_t n = agglo_min(QUERIES, job->n - q), place_q = place(job, image, q, 0, head);

        pack_tokens(job, job->qkv, place_q, 3 * job->dim, n, job->scale, at->q_tokens);
        AGGLO_CPU_NAME(bias_close)
        (job, q, n, at->d_places + q / QUERIES * size, at->q_tokens, at->rel, at->d_q, partial);
        add_d_q(job, at, place_q, q, n, true);
    }
}

static void backward_image(const attention_work *job, const backward_scratch *at, int64_t image, int64_t head,
                           float *partial)
{
    int64_t ld = 3 * job->dim, size = job->bias == NULL ? 0 : AGGLO_CPU_NAME(bias_floats)(job).places;

    if (size > 0) {
        open_places(job, at, image, head);
    }
    for (int64_t key = 0; key < job->n; key += job->block) {
        int64_t n_keys = agglo_min(job->block, job->n - key), k = place(job, image, key, 1, head);
        int64_t v = place(job, image, key, 2, head);

        pack_left(job, job->qkv, k, ld, n_keys, at->k_left);
        pack_left(job, job->qkv, v, ld, n_keys, at->v_left);
        pack_tokens(job, job->qkv, k, ld, n_keys, 1.0f, at->k_tokens);
        for (int64_t q = 0; q < job->n; q += QUERIES) {
            int64_t n = agglo_min(QUERIES, job->n - q), tile = q / QUERIES * size;

            load_queries(job, at, image, head, q, n);
            scores(job, n_keys, n, at->k_left, at->q_right, at->p);
            if (job->bias != NULL) {
                AGGLO_CPU_NAME(bias_add)(job, head, key, n_keys, q, n, at->places + tile, at->turned, at->p);
            }
            scores(job, n_keys, n, at->v_left, at->d_out_right, at->d_s);
            softmax_bwd_tile(n_keys, up(n, GEMM_LANES), at->lse, at->delta, at->p, at->d_s);
            if (job->bias != NULL) {
                AGGLO_CPU_NAME(bias_sum)(job, key, n_keys, q, n, at->d_s, at->d_places + tile, partial);
            }
            over_queries(job, n_keys, n, at->p, at->d_out_tokens, at->d_v, q > 0);
            over_queries(job, n_keys, n, at->d_s, at->q_tokens, at->d_k, q > 0);
            over_keys(job, n_keys, n, at->d_s, at->k_tokens, at->d_q, false);
            add_d_q(job, at, place(job, image, q, 0, head), q, n, key > 0);
        }
        write_rows(job, n_keys, at->d_k, job->d_vecs, k);
        write_rows(job, n_keys, at->d_v, job->d_vecs, v);
    }
    if (size > 0) {
        close_places(job, at, image, head, partial);
    }
    if (job->d_qkv->dtype != AGGLO_F32) {
        write_rows(job, job->n, at->d_q_sums, job->d, place(job, image, 0, 0, head));
    }
}

static void backward_chunk(void *context, int64_t index, int worker)
{
    const attention_work *job = context;
    int64_t head = index / job->n_chunks, chunk = index % job->n_chunks, batch = job->qkv->shape[0];
    int64_t images = agglo_ceil_div(batch, job->n_chunks);
    float *partial = job->partials == NULL ? NULL : job->partials + index * job->bias->partial_size;
    backward_scratch at;

    backward_parts(job, agglo_cpu_worker(job->be, worker), &at);
    for (int64_t image = chunk * images; image < agglo_min((chunk + 1) * images, batch); image++) {
        backward_image(job, &at, image, head, partial);
    }
}

void AGGLO_CPU_NAME(attention_backward)(attention_work *job)
{
    agglo_pool_for(job->be->pool, job->h * job->n_chunks, backward_chunk, job);
}

/* ---- the table ---- */

bool AGGLO_CPU_NAME(attention_reserve)(const attention_work *job, bool backward, int64_t shared)
{
    forward_scratch forward;
    backward_scratch back;
    int64_t floats = backward ? backward_parts(job, NULL, &back) : forward_parts(job, NULL, &forward);

    return agglo_cpu_reserve(job->be, (size_t)shared * sizeof(float), (size_t)floats * sizeof(float));
}

static void attention(agglo_backend *be, const agglo_tensor *qkv, float scale, agglo_tensor *out, agglo_tensor *lse)
{
    attention_work job = work_of(be, qkv, scale);

    job.to = out;
    job.lse = lse == NULL ? NULL : lse->data;
    if (AGGLO_CPU_NAME(attention_reserve)(&job, false, 0)) {
        AGGLO_CPU_NAME(attention_forward)(&job);
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
    if (AGGLO_CPU_NAME(attention_reserve)(&job, true, 0)) {
        AGGLO_CPU_NAME(attention_backward)(&job);
    }
}

void AGGLO_CPU_NAME(attention_ops)(agglo_backend_ops *ops)
{
    ops->attention = attention;
    ops->attention_bwd = attention_bwd;
}
