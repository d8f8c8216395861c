/* Self-attention on the CPU: products by oneDNN over tiles of queries, softmax between them.
 *
 * Forward, one task per (image, head, tile of queries), scratch one tile of scores [tile, N]:
 *     S = scale Q K^T;  P = exp(S - max);  out = (P V) / sum P;  lse = max + log(sum P)
 * Backward, one task per (image, head), so that d_k and d_v have one writer, tiles of queries in order, scratch two tiles:
 *     P = exp(S - lse);  d_v += P^T d_o;  d_p = d_o V^T;  d_s = scale P (d_p - rowsum(d_o o));  d_q = d_s K;  d_k += d_s^T Q
 * Q, K and V are read in place from the packed rows [N, 3, H, D].
 */
#include "tensor/cpu/cpu_impl.h"
#include "tensor/math_inline.h"

#include <math.h>

#define TILE_QUERIES 192

typedef struct attention_work {
    agglo_backend *be;
    int64_t n, h, d, tile, n_tiles;
    const float *qkv, *d_out, *kept_out, *kept_lse;
    float *out, *lse, *d_qkv;
    float scale;
} attention_work;

static attention_work work_of(agglo_backend *be, const agglo_tensor *qkv, float scale)
{
    attention_work job = {
        .be = be, .n = qkv->shape[1], .h = qkv->shape[3], .d = qkv->shape[4], .qkv = qkv->data, .scale = scale};

    job.n_tiles = agglo_ceil_div(job.n, TILE_QUERIES);
    job.tile = agglo_ceil_div(job.n, job.n_tiles);
    return job;
}

/* row[j] = exp(row[j] - shift), returning the sum. */
static float exp_row(float *row, int64_t n, float shift)
{
    float sum = 0.0f;

#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < n; j++) {
        float e = agglo_exp(row[j] - shift);

        row[j] = e;
        sum += e;
    }
    return sum;
}

/* In 16 lanes: compilers do not vectorise a plain running maximum, whose result depends on where a NaN comes. One that is missed here makes
 * the sum a NaN all the same. */
static float max_row(const float *row, int64_t n)
{
    float lane[16], most;
    int64_t j = 0;

    for (int l = 0; l < 16; l++) {
        lane[l] = row[0];
    }
    for (; j + 16 <= n; j += 16) {
        for (int l = 0; l < 16; l++) {
            lane[l] = row[j + l] > lane[l] ? row[j + l] : lane[l];
        }
    }
    most = row[0];
    for (int l = 0; l < 16; l++) {
        most = lane[l] > most ? lane[l] : most;
    }
    for (; j < n; j++) {
        most = row[j] > most ? row[j] : most;
    }
    return most;
}

static void forward_tile(void *context, int64_t index, int worker)
{
    const attention_work *job = context;
    int64_t n = job->n, d = job->d, dim = job->h * d, ld = 3 * dim;
    int64_t head = index / job->n_tiles % job->h, image = index / job->n_tiles / job->h;
    int64_t first = index % job->n_tiles * job->tile, rows = agglo_min(job->tile, n - first);
    const float *k = job->qkv + image * n * ld + dim + head * d, *v = k + dim, *q = k - dim + first * ld;
    float *out = job->out + (image * n + first) * dim + head * d;
    float *lse = job->lse == NULL ? NULL : job->lse + (image * job->h + head) * n + first;
    float *scores = agglo_cpu_worker(job->be, worker), *inverse = scores + job->tile * n;

    agglo_cpu_sgemm(false, true, rows, n, d, job->scale, q, ld, k, ld, 0.0f, scores, n);
    for (int64_t i = 0; i < rows; i++) {
        float most = max_row(scores + i * n, n);
        float sum = exp_row(scores + i * n, n, most);

        inverse[i] = 1.0f / sum;
        if (lse != NULL) {
            lse[i] = most + logf(sum);
        }
    }
    agglo_cpu_sgemm(false, false, rows, d, n, 1.0f, scores, n, v, ld, 0.0f, out, dim);
    for (int64_t i = 0; i < rows; i++) {
        for (int64_t j = 0; j < d; j++) {
            out[i * dim + j] *= inverse[i];
        }
    }
}

static void attention(agglo_backend *be, const agglo_tensor *qkv, float scale, agglo_tensor *out, agglo_tensor *lse)
{
    attention_work job = work_of(be, qkv, scale);

    job.out = out->data;
    job.lse = lse == NULL ? NULL : lse->data;
    if (agglo_cpu_reserve(be, 0, (size_t)(job.tile * (job.n + 1)) * sizeof(float))) {
        agglo_pool_for(be->pool, qkv->shape[0] * job.h * job.n_tiles, forward_tile, &job);
    }
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

static void backward_head(void *context, int64_t index, int worker)
{
    const attention_work *job = context;
    int64_t n = job->n, d = job->d, dim = job->h * d, ld = 3 * dim;
    int64_t head = index % job->h, image = index / job->h;
    const float *q = job->qkv + image * n * ld + head * d, *k = q + dim, *v = k + dim;
    float *d_q = job->d_qkv + image * n * ld + head * d, *d_k = d_q + dim, *d_v = d_k + dim;
    const float *out = job->kept_out + image * n * dim + head * d, *d_out = job->d_out + image * n * dim + head * d;
    const float *lse = job->kept_lse + (image * job->h + head) * n;
    float *p = agglo_cpu_worker(job->be, worker), *d_s = p + job->tile * n;

    for (int64_t first = 0; first < n; first += job->tile) {
        int64_t rows = agglo_min(job->tile, n - first);
        const float *tile_q = q + first * ld, *tile_d_out = d_out + first * dim;
        float beta = first == 0 ? 0.0f : 1.0f;

        agglo_cpu_sgemm(false, true, rows, n, d, job->scale, tile_q, ld, k, ld, 0.0f, p, n);
        for (int64_t i = 0; i < rows; i++) {
            exp_row(p + i * n, n, lse[first + i]);
        }
        agglo_cpu_sgemm(true, false, n, d, rows, 1.0f, p, n, tile_d_out, dim, beta, d_v, ld);
        agglo_cpu_sgemm(false, true, rows, n, d, 1.0f, tile_d_out, dim, v, ld, 0.0f, d_s, n);
        for (int64_t i = 0; i < rows; i++) {
            float delta = dot(tile_d_out + i * dim, out + (first + i) * dim, d);

            for (int64_t j = 0; j < n; j++) {
                d_s[i * n + j] = job->scale * p[i * n + j] * (d_s[i * n + j] - delta);
            }
        }
        agglo_cpu_sgemm(false, false, rows, d, n, 1.0f, d_s, n, k, ld, 0.0f, d_q + first * ld, ld);
        agglo_cpu_sgemm(true, false, n, d, rows, 1.0f, d_s, n, tile_q, ld, beta, d_k, ld);
    }
}

static void attention_bwd(agglo_backend *be, const agglo_tensor *d_out, const agglo_tensor *qkv,
                          const agglo_tensor *out, const agglo_tensor *lse, float scale, agglo_tensor *d_qkv)
{
    attention_work job = work_of(be, qkv, scale);

    job.d_out = d_out->data;
    job.kept_out = out->data;
    job.kept_lse = lse->data;
    job.d_qkv = d_qkv->data;
    if (agglo_cpu_reserve(be, 0, (size_t)(2 * job.tile * job.n) * sizeof(float))) {
        agglo_pool_for(be->pool, qkv->shape[0] * job.h, backward_head, &job);
    }
}

void AGGLO_CPU_NAME(attention_ops)(agglo_backend_ops *ops)
{
    ops->attention = attention;
    ops->attention_bwd = attention_bwd;
}
