/* The bias of self-attention on the CPU: what attention.c's tiles add to their scores, and what they hand back.
 *
 * Dense: the part [queries, keys] of a head's table is turned into panels [keys, GEMM_COLS] and added. Its gradient is d_s; a task sums it
 * turned, [keys, queries], as d_s lies.
 * Decomposed: one product of a tile of queries with both tables, Q [rel_h; rel_w]^T; of its rows each query takes those of its distance to
 * every row and every column of the grid (`places`), so that a key adds two vectors. Backward, d_s summed over the keys of a row and of a column
 * is the gradient of places, which gives more of d_q, and the tables' gradient, in two more products.
 * Tasks' sums of the gradient are added in order of tasks, in double.
 */
#include "tensor/cpu/attention_impl.h"

#include <string.h>

#define MOST_CHUNKS   16
#define MOST_PARTIALS ((int64_t)1 << 22) /* floats of all tasks' sums */

static bool decomposed(const attention_work *job)
{
    return job->bias->table == NULL;
}

attention_bias_floats AGGLO_CPU_NAME(bias_floats)(const attention_work *job)
{
    const attention_bias *bias = job->bias;
    attention_bias_floats none = {0, 0, 0};

    if (bias == NULL) {
        return none;
    }
    if (!decomposed(job)) {
        return (attention_bias_floats){0, 0, job->block * GEMM_COLS};
    }
    return (attention_bias_floats){up(bias->n_rel, GEMM_ROWS) * QUERIES, (bias->grid_h + bias->grid_w) * QUERIES, 0};
}

/* Row of the matrix of tables that a query at row y, or column x, of the grid takes against row, or column, 0: each further key is one less. */
static int64_t row_of(const attention_bias *bias, int64_t place)
{
    return place / bias->grid_w + bias->grid_h - 1;
}

static int64_t column_of(const attention_bias *bias, int64_t place)
{
    return 2 * bias->grid_h - 1 + place % bias->grid_w + bias->grid_w - 1;
}

void AGGLO_CPU_NAME(bias_open)(const attention_work *job, int64_t first, int64_t n, const float *right, float *rel,
                               float *places)
{
    const attention_bias *bias = job->bias;
    float *columns = places + bias->grid_h * QUERIES;

    scores(job, bias->n_rel, n, bias->rel_left, right, rel);
    memset(places, 0, (size_t)((bias->grid_h + bias->grid_w) * QUERIES) * sizeof *places);
    for (int64_t q = first < bias->n_prefix ? bias->n_prefix - first : 0; q < n; q++) {
        const float *row = rel + row_of(bias, first + q - bias->n_prefix) * QUERIES + q;
        const float *column = rel + column_of(bias, first + q - bias->n_prefix) * QUERIES + q;

        for (int64_t y = 0; y < bias->grid_h; y++) {
            places[y * QUERIES + q] = row[-y * QUERIES];
        }
        for (int64_t x = 0; x < bias->grid_w; x++) {
            columns[x * QUERIES + q] = column[-x * QUERIES];
        }
    }
}

static void add_table(const attention_work *job, int64_t head, int64_t key, int64_t n_keys, int64_t first, int64_t n,
                      float *turned, float *s)
{
    agglo_cpu_operand in = {job->bias->table + (head * job->n + first) * job->n, AGGLO_F32, job->n, true};

    for (int64_t q = 0; q < n; q += GEMM_COLS) {
        int64_t cols = agglo_min(GEMM_COLS, up(n - q, GEMM_LANES));

        gemm_pack(GEMM_COLS, &in, q, agglo_min(GEMM_COLS, n - q), key, n_keys, turned);
        for (int64_t i = 0; i < n_keys; i++) {
            for (int64_t j = 0; j < cols; j += GEMM_LANES) {
                float *at = s + i * QUERIES + q + j;

                gemm_store(at, gemm_load(at) + gemm_load(turned + i * GEMM_COLS + j));
            }
        }
    }
}

void AGGLO_CPU_NAME(bias_add)(const attention_work *job, int64_t head, int64_t key, int64_t n_keys, int64_t first,
                              int64_t n, const float *places, float *turned, float *s)
{
    const attention_bias *bias = job->bias;
    int64_t i = key < bias->n_prefix ? bias->n_prefix - key : 0;

    if (!decomposed(job)) {
        add_table(job, head, key, n_keys, first, n, turned, s);
        return;
    }
    for (int64_t at = key + i - bias->n_prefix; i < n_keys; i++, at++) {
        const float *row = places + at / bias->grid_w * QUERIES;
        const float *column = places + (bias->grid_h + at % bias->grid_w) * QUERIES;

        for (int64_t j = 0; j < n; j += GEMM_LANES) {
            float *to = s + i * QUERIES + j;

            gemm_store(to, gemm_load(to) + (gemm_load(row + j) + gemm_load(column + j)));
        }
    }
}

void AGGLO_CPU_NAME(bias_sum)(const attention_work *job, int64_t key, int64_t n_keys, int64_t first, int64_t n,
                              const float *d_s, float *d_places, float *partial)
{
    const attention_bias *bias = job->bias;
    int64_t i = key < bias->n_prefix ? bias->n_prefix - key : 0;

    if (!decomposed(job)) {
        for (i = 0; partial != NULL && i < n_keys; i++) {
            float *to = partial + (key + i) * bias->partial_ld + first;

            for (int64_t j = 0; j < n; j += GEMM_LANES) {
                gemm_store(to + j, gemm_load(to + j) + gemm_load(d_s + i * QUERIES + j));
            }
        }
        return;
    }
    for (int64_t at = key + i - bias->n_prefix; i < n_keys; i++, at++) {
        float *row = d_places + at / bias->grid_w * QUERIES;
        float *column = d_places + (bias->grid_h + at % bias->grid_w) * QUERIES;

        for (int64_t j = 0; j < n; j += GEMM_LANES) {
            gemm_vec d = gemm_load(d_s + i * QUERIES + j);

            gemm_store(row + j, gemm_load(row + j) + d);
            gemm_store(column + j, gemm_load(column + j) + d);
        }
    }
}

void AGGLO_CPU_NAME(bias_close)(const attention_work *job, int64_t first, int64_t n, const float *d_places,
                                const float *q_tokens, float *rel, float *d_q, float *partial)
{
    const attention_bias *bias = job->bias;
    const float *columns = d_places + bias->grid_h * QUERIES;

    memset(rel, 0, (size_t)(up(bias->n_rel, GEMM_ROWS) * QUERIES) * sizeof *rel);
    for (int64_t q = first < bias->n_prefix ? bias->n_prefix - first : 0; q < n; q++) {
        float *row = rel + row_of(bias, first + q - bias->n_prefix) * QUERIES + q;
        float *column = rel + column_of(bias, first + q - bias->n_prefix) * QUERIES + q;

        for (int64_t y = 0; y < bias->grid_h; y++) {
            row[-y * QUERIES] = d_places[y * QUERIES + q];
        }
        for (int64_t x = 0; x < bias->grid_w; x++) {
            column[-x * QUERIES] = columns[x * QUERIES + q];
        }
    }
    over_keys(job, bias->n_rel, n, rel, bias->rel_tokens, d_q, false);
    if (partial != NULL) {
        over_queries(job, bias->n_rel, n, rel, q_tokens, partial, true);
    }
}

/* ---- sums of tasks ---- */

/* to[r to_ld + c] += factor times the n_tasks partial sums' element, in order: at r row + c col floats into each. */
typedef struct sum_work {
    int64_t n_tasks, stride, rows, cols, row, col, to_ld;
    const float *from;
    double factor;
    float *to;
} sum_work;

static void sum_row(void *context, int64_t index, int worker)
{
    const sum_work *job = context;

    (void)worker;
    for (int64_t c = 0; c < job->cols; c++) {
        const float *from = job->from + index * job->row + c * job->col;
        float *to = job->to + index * job->to_ld + c;
        double sum = 0.0;

        for (int64_t t = 0; t < job->n_tasks; t++) {
            sum += (double)from[t * job->stride];
        }
        *to = (float)((double)*to + job->factor * sum);
    }
}

/* ---- the table ---- */

/* Floats of the matrix of tables in both forms. */
static int64_t matrix_floats(const attention_work *job)
{
    const attention_bias *bias = job->bias;

    return decomposed(job) ? up(up(bias->n_rel, GEMM_ROWS) * job->d, 16) + up(bias->n_rel * job->d_cols, 16) : 0;
}

/* The matrix divided by the scale, and its two forms, into shared scratch. */
static void pack_matrix(const attention_work *job, attention_bias *bias, const agglo_bias *given, float *left)
{
    float *tokens = left + up(up(bias->n_rel, GEMM_ROWS) * job->d, 16);
    int64_t n_h = 2 * bias->grid_h - 1;

    for (int64_t r = 0; r < up(bias->n_rel, GEMM_ROWS); r++) {
        const float *row = r < n_h ? (const float *)given->rel_h->data + r * job->d
                                   : (const float *)given->rel_w->data + (r - n_h) * job->d;

        for (int64_t e = 0; e < job->d_cols; e++) {
            float v = r < bias->n_rel && e < job->d ? row[e] / job->scale : 0.0f;

            if (e < job->d) {
                left[r / GEMM_ROWS * GEMM_ROWS * job->d + e * GEMM_ROWS + r % GEMM_ROWS] = v;
            }
            if (r < bias->n_rel) {
                tokens[e / GEMM_COLS * GEMM_COLS * bias->n_rel + r * GEMM_COLS + e % GEMM_COLS] = v;
            }
        }
    }
    bias->rel_left = left;
    bias->rel_tokens = tokens;
}

static attention_bias bias_of(const attention_work *job, const agglo_bias *given)
{
    attention_bias bias = {.n_prefix = given->n_prefix, .grid_h = given->grid_h, .grid_w = given->grid_w};

    if (given->table != NULL) {
        bias.table = given->table->data;
        bias.partial_ld = up(job->n, GEMM_LANES);
        bias.partial_size = job->n * bias.partial_ld;
    } else {
        bias.n_rel = 2 * (given->grid_h + given->grid_w) - 2;
        bias.partial_ld = job->d_vecs;
        bias.partial_size = up(bias.n_rel, GEMM_ROWS) * bias.partial_ld;
    }
    return bias;
}

static void attention_with_bias(agglo_backend *be, const agglo_tensor *qkv, float scale, const agglo_bias *given,
                                agglo_tensor *out, agglo_tensor *lse)
{
    attention_work job = work_of(be, qkv, scale);
    attention_bias bias = bias_of(&job, given);

    job.bias = &bias;
    job.to = out;
    job.lse = lse == NULL ? NULL : lse->data;
    if (AGGLO_CPU_NAME(attention_reserve)(&job, false, matrix_floats(&job))) {
        if (decomposed(&job)) {
            pack_matrix(&job, &bias, given, agglo_cpu_shared(be));
        }
        AGGLO_CPU_NAME(attention_forward)(&job);
    }
}

static void add_sums(const attention_work *job, const agglo_bias_gradient *d_bias)
{
    const attention_bias *bias = job->bias;
    int64_t n_h = 2 * bias->grid_h - 1;
    sum_work sum = {.stride = bias->partial_size, .from = job->partials, .factor = 1.0};

    if (decomposed(job)) {
        sum.n_tasks = job->h * job->n_chunks;
        sum.rows = n_h;
        sum.cols = sum.to_ld = job->d;
        sum.row = bias->partial_ld;
        sum.col = 1;
        sum.factor = 1.0 / (double)job->scale; /* of the queries in the partial sums */
        sum.to = d_bias->rel_h->data;
        agglo_pool_for(job->be->pool, sum.rows, sum_row, &sum);
        sum.from += n_h * bias->partial_ld;
        sum.rows = bias->n_rel - n_h;
        sum.to = d_bias->rel_w->data;
        agglo_pool_for(job->be->pool, sum.rows, sum_row, &sum);
        return;
    }
    sum.n_tasks = job->n_chunks;
    sum.rows = sum.cols = sum.to_ld = job->n;
    sum.row = 1;
    sum.col = bias->partial_ld;
    for (int64_t head = 0; head < job->h; head++) {
        sum.from = job->partials + head * job->n_chunks * bias->partial_size;
        sum.to = (float *)d_bias->table->data + head * job->n * job->n;
        agglo_pool_for(job->be->pool, sum.rows, sum_row, &sum);
    }
}

static void attention_with_bias_bwd(agglo_backend *be, const agglo_tensor *d_out, const agglo_tensor *qkv,
                                    const agglo_tensor *out, const agglo_tensor *lse, float scale,
                                    const agglo_bias *given, agglo_tensor *d_qkv, const agglo_bias_gradient *d_bias)
{
    attention_work job = work_of(be, qkv, scale);
    attention_bias bias = bias_of(&job, given);
    bool wanted = d_bias->rel_h != NULL || d_bias->table != NULL;
    int64_t matrix, n_partials = 0;

    job.bias = &bias;
    job.d_out = d_out;
    job.out = out;
    job.kept_lse = lse->data;
    job.d_qkv = d_qkv;
    if (wanted) {
        job.n_chunks = agglo_min(MOST_CHUNKS, job.n_chunks);
        while (job.n_chunks > 1 && job.n_chunks * job.h * bias.partial_size > MOST_PARTIALS) {
            job.n_chunks--;
        }
        n_partials = job.n_chunks * job.h * bias.partial_size;
    }
    matrix = matrix_floats(&job);
    if (!AGGLO_CPU_NAME(attention_reserve)(&job, true, matrix + n_partials)) {
        return;
    }
    if (decomposed(&job)) {
        pack_matrix(&job, &bias, given, agglo_cpu_shared(be));
    }
    if (wanted) {
        job.partials = (float *)agglo_cpu_shared(be) + matrix;
        memset(job.partials, 0, (size_t)n_partials * sizeof(float));
    }
    AGGLO_CPU_NAME(attention_backward)(&job);
    if (wanted) {
        add_sums(&job, d_bias);
    }
}

void AGGLO_CPU_NAME(attention_bias_ops)(agglo_backend_ops *ops)
{
    ops->attention_bias = attention_with_bias;
    ops->attention_bias_bwd = attention_with_bias_bwd;
}
