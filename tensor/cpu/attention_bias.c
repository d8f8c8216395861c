/* Self-attention with a bias on the CPU: products by oneDNN over tiles of queries, bias and softmax between them.
 *
 * Forward, one task per (image, head, tile of queries), scratch one tile of scores [tile, N]:
 *     S = scale Q K^T + bias;  P = exp(S - max);  out = (P V) / sum P;  lse = max + log(sum P)
 * The decomposed bias of a tile comes from two products, Q rel_h^T [tile, 2 grid_h - 1] and Q rel_w^T, of which each pair of tokens
 * takes the entry of its distance.
 * Backward, one task per (head, chunk of images), images and tiles of queries in order, scratch two tiles:
 *     P = exp(S - lse);  d_v += P^T d_o;  d_p = d_o V^T;  d_s = P (d_p - rowsum(P d_p));  d_q = scale d_s K;  d_k += scale d_s^T Q
 * d_s is the bias's gradient: of a dense table as it is; of the decomposed kind its sums over the keys of a row and of a column are the
 * gradients of the two products, which give more of d_q, and the tables'. Each task has its own sum of the tables' gradient, and these are
 * added in the order of tasks; chunks depend on the shape alone.
 * Rows of q, k, v and d_o are gathered into contiguous F32 scratch, which is also where BF16 is widened.
 */
#include "tensor/cpu/cpu_impl.h"
#include "tensor/math_inline.h"

#include <math.h>
#include <string.h>

#define TILE_QUERIES  128
#define MOST_CHUNKS   16
#define MOST_PARTIALS ((int64_t)1 << 22) /* floats of all tasks' sums */

typedef struct bias_work {
    agglo_backend *be;
    int64_t batch, n, h, d, tile, n_tiles;
    agglo_dtype dtype;
    float scale;
    const void *qkv, *d_out;
    void *out, *d_qkv;
    const float *kept_lse;
    float *lse;

    bool decomposed;
    int64_t n_prefix, grid_h, grid_w, n_rel_h, n_rel_w; /* n_rel: rows of the tables */
    const float *rel_h, *rel_w, *table;

    int64_t n_chunks, partial_size;
    float *partials; /* [h, n_chunks, partial_size]; NULL: no gradient of the bias is wanted */
} bias_work;

static bias_work work_of(agglo_backend *be, const agglo_tensor *qkv, float scale, const agglo_bias *bias)
{
    bias_work job = {.be = be,
                     .batch = qkv->shape[0],
                     .n = qkv->shape[1],
                     .h = qkv->shape[3],
                     .d = qkv->shape[4],
                     .dtype = qkv->dtype,
                     .scale = scale,
                     .qkv = qkv->data,
                     .decomposed = bias->rel_h != NULL};

    job.n_tiles = agglo_ceil_div(job.n, TILE_QUERIES);
    job.tile = agglo_ceil_div(job.n, job.n_tiles);
    if (job.decomposed) {
        job.n_prefix = bias->n_prefix;
        job.grid_h = bias->grid_h;
        job.grid_w = bias->grid_w;
        job.n_rel_h = 2 * bias->grid_h - 1;
        job.n_rel_w = 2 * bias->grid_w - 1;
        job.rel_h = bias->rel_h->data;
        job.rel_w = bias->rel_w->data;
    } else {
        job.table = bias->table->data;
    }
    return job;
}

/* n elements of F32 or BF16 as F32, and back. */
static void widen(float *to, const void *from, agglo_dtype dtype, int64_t n)
{
    if (dtype == AGGLO_BF16) {
        agglo_cpu_from_bf16(n, from, to);
    } else {
        memcpy(to, from, (size_t)n * sizeof *to);
    }
}

static void narrow(void *to, const float *from, agglo_dtype dtype, int64_t n)
{
    if (dtype == AGGLO_BF16) {
        agglo_cpu_to_bf16(n, from, to);
    } else {
        memcpy(to, from, (size_t)n * sizeof *from);
    }
}

/* Floats of the products of a tile with both tables. */
static int64_t rel_size(const bias_work *job)
{
    return job->tile * (job->n_rel_h + job->n_rel_w);
}

/* to[rows][d] = rows of part 0 (q), 1 (k) or 2 (v) of a head, from `first`. */
static void take_rows(const bias_work *job, int64_t image, int64_t head, int part, int64_t first, int64_t rows,
                      float *to)
{
    size_t size = agglo_dtype_size(job->dtype);

    for (int64_t i = 0; i < rows; i++) {
        int64_t at = (((image * job->n + first + i) * 3 + part) * job->h + head) * job->d;

        widen(to + i * job->d, (const uint8_t *)job->qkv + (size_t)at * size, job->dtype, job->d);
    }
}

/* Row i of a head in an array [B,N,H,D]. */
static int64_t row_of(const bias_work *job, int64_t image, int64_t head, int64_t i)
{
    return ((image * job->n + i) * job->h + head) * job->d;
}

/* scores[rows][n] of the queries q, and with `rel` the products with the tables beside. */
static void score_tile(const bias_work *job, int64_t head, int64_t first, int64_t rows, const float *q, const float *k,
                       float *rel, float *scores)
{
    int64_t n = job->n, d = job->d;
    float *across = rel + job->tile * job->n_rel_h;

    agglo_cpu_sgemm(false, true, rows, n, d, job->scale, q, d, k, d, 0.0f, scores, n);
    if (!job->decomposed) {
        const float *bias = job->table + (head * n + first) * n;

#pragma omp simd
        for (int64_t e = 0; e < rows * n; e++) {
            scores[e] += bias[e];
        }
        return;
    }
    agglo_cpu_sgemm(false, true, rows, job->n_rel_h, d, 1.0f, q, d, job->rel_h, d, 0.0f, rel, job->n_rel_h);
    agglo_cpu_sgemm(false, true, rows, job->n_rel_w, d, 1.0f, q, d, job->rel_w, d, 0.0f, across, job->n_rel_w);
    for (int64_t i = 0; i < rows; i++) {
        int64_t place = first + i - job->n_prefix, y = place / job->grid_w, x = place % job->grid_w;
        const float *by_row, *by_column;
        float *row = scores + i * n + job->n_prefix;

        if (place < 0) {
            continue;
        }
        by_row = rel + i * job->n_rel_h + y + job->grid_h - 1;
        by_column = across + i * job->n_rel_w + x + job->grid_w - 1;
        for (int64_t ky = 0; ky < job->grid_h; ky++, row += job->grid_w) {
            float b = by_row[-ky];

#pragma omp simd
            for (int64_t kx = 0; kx < job->grid_w; kx++) {
                row[kx] += b + by_column[-kx];
            }
        }
    }
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

/* In 16 lanes, which compilers vectorise; a NaN that is missed here makes the sum a NaN all the same. */
static float max_row(const float *row, int64_t n)
{
    float lane[16], most = row[0];
    int64_t j = 0;

    for (int l = 0; l < 16; l++) {
        lane[l] = row[0];
    }
    for (; j + 16 <= n; j += 16) {
        for (int l = 0; l < 16; l++) {
            lane[l] = row[j + l] > lane[l] ? row[j + l] : lane[l];
        }
    }
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
    const bias_work *job = context;
    int64_t n = job->n, d = job->d, head = index / job->n_tiles % job->h, image = index / job->n_tiles / job->h;
    int64_t first = index % job->n_tiles * job->tile, rows = agglo_min(job->tile, n - first);
    float *scores = agglo_cpu_worker(job->be, worker), *q = scores + job->tile * n, *k = q + job->tile * d,
          *v = k + n * d, *rel = v + n * d;
    size_t size = agglo_dtype_size(job->dtype);

    if (rows <= 0) {
        return;
    }
    take_rows(job, image, head, 0, first, rows, q);
    take_rows(job, image, head, 1, 0, n, k);
    take_rows(job, image, head, 2, 0, n, v);
    score_tile(job, head, first, rows, q, k, rel, scores);
    for (int64_t i = 0; i < rows; i++) {
        float *row = scores + i * n, most = max_row(row, n), sum = exp_row(row, n, most), inverse = 1.0f / sum;

        if (job->lse != NULL) {
            job->lse[(image * job->h + head) * n + first + i] = most + logf(sum);
        }
#pragma omp simd
        for (int64_t j = 0; j < n; j++) {
            row[j] *= inverse;
        }
    }
    agglo_cpu_sgemm(false, false, rows, d, n, 1.0f, scores, n, v, d, 0.0f, q, d); /* the queries have been used */
    for (int64_t i = 0; i < rows; i++) {
        narrow((uint8_t *)job->out + (size_t)row_of(job, image, head, first + i) * size, q + i * d, job->dtype, d);
    }
}

static void attention_bias(agglo_backend *be, const agglo_tensor *qkv, float scale, const agglo_bias *bias,
                           agglo_tensor *out, agglo_tensor *lse)
{
    bias_work job = work_of(be, qkv, scale, bias);
    int64_t floats = job.tile * (job.n + job.d) + 2 * job.n * job.d + rel_size(&job);

    job.out = out->data;
    job.lse = lse == NULL ? NULL : lse->data;
    if (agglo_cpu_reserve(be, 0, (size_t)floats * sizeof(float))) {
        agglo_pool_for(be->pool, job.batch * job.h * job.n_tiles, forward_tile, &job);
    }
}

/* What goes through the decomposed bias of a tile: its sums over keys into `rel` (as the products lay there), then d_q and the tables. */
static void rel_backward(const bias_work *job, int64_t first, int64_t rows, const float *d_s, const float *q,
                         float *rel, float *d_q, float *partial)
{
    int64_t n = job->n, d = job->d;
    float *across = rel + job->tile * job->n_rel_h;

    memset(rel, 0, (size_t)rel_size(job) * sizeof *rel);
    for (int64_t i = 0; i < rows; i++) {
        int64_t place = first + i - job->n_prefix, y = place / job->grid_w, x = place % job->grid_w;
        const float *row = d_s + i * n + job->n_prefix;
        float *by_row, *by_column;

        if (place < 0) {
            continue;
        }
        by_row = rel + i * job->n_rel_h + y + job->grid_h - 1;
        by_column = across + i * job->n_rel_w + x + job->grid_w - 1;
        for (int64_t ky = 0; ky < job->grid_h; ky++, row += job->grid_w) {
            float sum = 0.0f;

#pragma omp simd reduction(+ : sum)
            for (int64_t kx = 0; kx < job->grid_w; kx++) {
                sum += row[kx];
            }
            by_row[-ky] = sum;
#pragma omp simd
            for (int64_t kx = 0; kx < job->grid_w; kx++) {
                by_column[-kx] += row[kx];
            }
        }
    }
    agglo_cpu_sgemm(false, false, rows, d, job->n_rel_h, 1.0f, rel, job->n_rel_h, job->rel_h, d, 1.0f, d_q, d);
    agglo_cpu_sgemm(false, false, rows, d, job->n_rel_w, 1.0f, across, job->n_rel_w, job->rel_w, d, 1.0f, d_q, d);
    if (partial != NULL) {
        agglo_cpu_sgemm(true, false, job->n_rel_h, d, rows, 1.0f, rel, job->n_rel_h, q, d, 1.0f, partial, d);
        agglo_cpu_sgemm(true, false, job->n_rel_w, d, rows, 1.0f, across, job->n_rel_w, q, d, 1.0f,
                        partial + job->n_rel_h * d, d);
    }
}

static void backward_image(const bias_work *job, int64_t image, int64_t head, float *scratch, float *partial)
{
    int64_t n = job->n, d = job->d;
    float *p = scratch, *d_s = p + job->tile * n, *q = d_s + job->tile * n, *k = q + n * d, *v = k + n * d,
          *d_k = v + n * d, *d_v = d_k + n * d, *d_o = d_v + n * d, *d_q = d_o + job->tile * d,
          *rel = d_q + job->tile * d;
    size_t size = agglo_dtype_size(job->dtype);
    float *const made[2] = {d_k, d_v};

    take_rows(job, image, head, 0, 0, n, q);
    take_rows(job, image, head, 1, 0, n, k);
    take_rows(job, image, head, 2, 0, n, v);
    for (int64_t first = 0; first < n; first += job->tile) {
        int64_t rows = agglo_min(job->tile, n - first);
        float beta = first == 0 ? 0.0f : 1.0f;

        for (int64_t i = 0; i < rows; i++) {
            widen(d_o + i * d, (const uint8_t *)job->d_out + (size_t)row_of(job, image, head, first + i) * size,
                  job->dtype, d);
        }
        score_tile(job, head, first, rows, q + first * d, k, rel, p);
        for (int64_t i = 0; i < rows; i++) {
            exp_row(p + i * n, n, job->kept_lse[(image * job->h + head) * n + first + i]);
        }
        agglo_cpu_sgemm(true, false, n, d, rows, 1.0f, p, n, d_o, d, beta, d_v, d);
        agglo_cpu_sgemm(false, true, rows, n, d, 1.0f, d_o, d, v, d, 0.0f, d_s, n);
        for (int64_t i = 0; i < rows; i++) {
            float delta = 0.0f; /* <d_o, o> as the sum over keys, which loses nothing to the rounding of o */

#pragma omp simd reduction(+ : delta)
            for (int64_t j = 0; j < n; j++) {
                delta += p[i * n + j] * d_s[i * n + j];
            }
#pragma omp simd
            for (int64_t j = 0; j < n; j++) {
                d_s[i * n + j] = p[i * n + j] * (d_s[i * n + j] - delta);
            }
        }
        agglo_cpu_sgemm(false, false, rows, d, n, job->scale, d_s, n, k, d, 0.0f, d_q, d);
        agglo_cpu_sgemm(true, false, n, d, rows, job->scale, d_s, n, q + first * d, d, beta, d_k, d);
        if (job->decomposed) {
            rel_backward(job, first, rows, d_s, q + first * d, rel, d_q, partial);
        } else if (partial != NULL) {
            float *sum = partial + first * n;

#pragma omp simd
            for (int64_t e = 0; e < rows * n; e++) {
                sum[e] += d_s[e];
            }
        }
        for (int64_t i = 0; i < rows; i++) {
            int64_t at = (((image * n + first + i) * 3) * job->h + head) * d;

            narrow((uint8_t *)job->d_qkv + (size_t)at * size, d_q + i * d, job->dtype, d);
        }
    }
    for (int part = 1; part <= 2; part++) {
        for (int64_t i = 0; i < n; i++) {
            int64_t at = (((image * n + i) * 3 + part) * job->h + head) * d;

            narrow((uint8_t *)job->d_qkv + (size_t)at * size, made[part - 1] + i * d, job->dtype, d);
        }
    }
}

static void backward_chunk(void *context, int64_t index, int worker)
{
    const bias_work *job = context;
    int64_t head = index / job->n_chunks, chunk = index % job->n_chunks;
    int64_t images = agglo_ceil_div(job->batch, job->n_chunks);
    float *partial = job->partials == NULL ? NULL : job->partials + index * job->partial_size;

    for (int64_t b = chunk * images; b < agglo_min((chunk + 1) * images, job->batch); b++) {
        backward_image(job, b, head, agglo_cpu_worker(job->be, worker), partial);
    }
}

/* to[e] += sum over the n_tasks partial sums of e, from `from` floats into each, in order. */
typedef struct sum_work {
    int64_t n_tasks, stride, n;
    const float *from;
    float *to;
} sum_work;

#define SUM_PIECE 4096

static void sum_piece(void *context, int64_t index, int worker)
{
    const sum_work *job = context;

    (void)worker;
    for (int64_t e = index * SUM_PIECE; e < agglo_min((index + 1) * SUM_PIECE, job->n); e++) {
        double sum = (double)job->to[e];

        for (int64_t t = 0; t < job->n_tasks; t++) {
            sum += (double)job->from[t * job->stride + e];
        }
        job->to[e] = (float)sum;
    }
}

static void add_partials(agglo_backend *be, int64_t n_tasks, int64_t stride, const float *from, int64_t n, float *to)
{
    sum_work job = {n_tasks, stride, n, from, to};

    agglo_pool_for(be->pool, agglo_ceil_div(n, SUM_PIECE), sum_piece, &job);
}

static void attention_bias_bwd(agglo_backend *be, const agglo_tensor *d_out, const agglo_tensor *qkv,
                               const agglo_tensor *out, const agglo_tensor *lse, float scale, const agglo_bias *bias,
                               agglo_tensor *d_qkv, const agglo_bias_gradient *d_bias)
{
    bias_work job = work_of(be, qkv, scale, bias);
    int64_t floats = 2 * job.tile * job.n + 5 * job.n * job.d + 2 * job.tile * job.d + rel_size(&job);
    int64_t size = job.decomposed ? (job.n_rel_h + job.n_rel_w) * job.d : job.n * job.n, n_partials;
    bool wanted = d_bias->rel_h != NULL || d_bias->table != NULL, in_place;

    (void)out;
    job.d_out = d_out->data;
    job.kept_lse = lse->data;
    job.d_qkv = d_qkv->data;
    job.n_chunks = agglo_min(MOST_CHUNKS, job.batch);
    while (wanted && job.n_chunks > 1 && job.n_chunks * job.h * size > MOST_PARTIALS) {
        job.n_chunks--;
    }
    job.partial_size = size;
    /* a large table has one chunk for each head, which may as well add to where the result goes */
    in_place = wanted && !job.decomposed && job.n_chunks == 1;
    n_partials = wanted && !in_place ? job.n_chunks * job.h * size : 0;
    if (!agglo_cpu_reserve(be, (size_t)n_partials * sizeof(float), (size_t)floats * sizeof(float))) {
        return;
    }
    if (in_place) {
        job.partials = d_bias->table->data;
    } else if (wanted) {
        job.partials = agglo_cpu_shared(be);
        memset(job.partials, 0, (size_t)n_partials * sizeof(float));
    }
    agglo_pool_for(be->pool, job.h * job.n_chunks, backward_chunk, &job);
    if (!wanted || in_place) {
        return;
    }
    if (job.decomposed) {
        int64_t n_h = job.n_rel_h * job.d;

        add_partials(be, job.h * job.n_chunks, size, job.partials, n_h, d_bias->rel_h->data);
        add_partials(be, job.h * job.n_chunks, size, job.partials + n_h, job.n_rel_w * job.d, d_bias->rel_w->data);
        return;
    }
    for (int64_t head = 0; head < job.h; head++) {
        add_partials(be, job.n_chunks, size, job.partials + head * job.n_chunks * size, size,
                     (float *)d_bias->table->data + head * size);
    }
}

void AGGLO_CPU_NAME(attention_bias_ops)(agglo_backend_ops *ops)
{
    ops->attention_bias = attention_bias;
    ops->attention_bias_bwd = attention_bias_bwd;
}
