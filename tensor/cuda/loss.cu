/* The losses of pred[B,n,C] against stored targets, values and gradient (formulas: tensor/ops_loss.h, tensor/quant.h).
 *
 *     scale   one block: sum of the tokens' weights and number of samples, in double; from them the factors of the gradient
 *     loss    a warp per token, eight to a block, lanes striding over the channels: decodes the target as it reads it, takes the five
 *             sums (p.t, p.p, t.t, L1, squares) by butterflies, then, from cache, writes the gradient
 *     partial, sums    blocks add the tokens' values in double, 1,024 each; one block adds theirs
 *
 * Where the target's map has a matrix M[K,C], chunks of at most CHUNK_BYTES go through the workspace between scale and partial: `decode`
 * leaves u[rows,K], cuBLASLt multiplies with M, and the loss kernel reads the products, F32, with scale and offset in its prologue. F32
 * predictions have all that in F32 (no TF32). BF16 predictions have u and a copy of M in BF16, padded with zeros to rows of whole 16 bytes,
 * and products added in F32: integers up to 256 are exact there.
 *
 * Bytes moved: pred (2 or 4) and codes (0.5 to 4) once from memory and once from cache, d_pred once; with a matrix 4 (BF16) or 8 more per
 * value of u and 8 per product, most of them in the second-level cache. With 16-byte aligned arrays and K, C divisible by 4, four channels
 * are read at a time. F32, fixed trees, deterministic.
 */
#include "tensor/cuda/kernels.cuh"
#include "tensor/loss_inline.h"

#define ROWS        (BLOCK / WARP)
#define VALUES      3 /* cos, smooth-L1, squared error */
#define CHUNK_BYTES ((int64_t)64 << 20)
#define CHUNK_ROWS  128  /* a chunk is a multiple of it, and at least that many however wide rows are */
#define PIECE       1024 /* tokens whose values a block adds */
#define PARTIAL     4

/* What the first launch leaves for the others. */
typedef struct loss_scale {
    agglo_loss_factors factors; /* of a token of weight 1 */
    float n_samples;
    double lambda;  /* the config's and the weights' */
    double weights; /* sum over tokens */
} loss_scale;

typedef struct loss_weights {
    const float *valid, *sample, *token, *lambda;
    int64_t n; /* tokens per sample */
} loss_weights;

static __device__ inline float weight_of(loss_weights w, int64_t i)
{
    float weight = w.valid == NULL ? 1.0f : w.valid[i / w.n];

    return w.token == NULL ? weight : weight * w.token[i];
}

static __device__ inline float sample_factor(loss_weights w, int64_t i)
{
    return w.sample == NULL ? 1.0f : w.sample[i / w.n];
}

static __global__ void loss_scale_kernel(agglo_loss_config config, float grad_scale, int64_t batch, int64_t c,
                                         loss_weights w, loss_scale *out)
{
    double weights = 0.0, n_samples = 0.0;

    for (int64_t i = threadIdx.x; w.token != NULL && i < batch * w.n; i += blockDim.x) {
        weights += (double)weight_of(w, i);
    }
    for (int64_t b = threadIdx.x; b < batch; b += blockDim.x) {
        float valid = w.valid == NULL ? 1.0f : w.valid[b];

        n_samples += valid != 0.0f ? 1.0 : 0.0;
        weights += w.token == NULL ? (double)valid * (double)w.n : 0.0;
    }
    weights = block_sum(weights);
    n_samples = block_sum(n_samples);
    if (threadIdx.x == 0) {
        double lambda = (double)config.lambda * (w.lambda == NULL ? 1.0 : (double)*w.lambda);
        double per_token = weights > 0.0 ? (double)grad_scale * lambda / weights : 0.0;

        out->factors = agglo_loss_factors_of(per_token, config.alpha, config.beta, config.squared, c);
        out->n_samples = (float)n_samples;
        out->lambda = lambda;
        out->weights = weights;
    }
}

/* ---- reading ---- */

/* N neighbours of a stored row that starts at `row`: q[k..k+N). N is 1, or 4 with k divisible by 4. */
template <int N> static __device__ inline void read_codes(agglo_code code, const uint8_t *row, int64_t k, float *q)
{
    if (N == 4) {
        switch (code) {
        case AGGLO_CODE_F32: {
            float4 v = *(const float4 *)(row + 4 * k);
            q[0] = v.x, q[1] = v.y, q[2] = v.z, q[3] = v.w;
            return;
        }
        case AGGLO_CODE_I8: {
            char4 v = *(const char4 *)(row + k);
            q[0] = (float)v.x, q[1] = (float)v.y, q[2] = (float)v.z, q[3] = (float)v.w;
            return;
        }
        case AGGLO_CODE_I16: {
            short4 v = *(const short4 *)(row + 2 * k);
            q[0] = (float)v.x, q[1] = (float)v.y, q[2] = (float)v.z, q[3] = (float)v.w;
            return;
        }
        case AGGLO_CODE_I4: {
            uchar2 v = *(const uchar2 *)(row + k / 2);
            q[0] = (float)agglo_nibble(v.x, 0), q[1] = (float)agglo_nibble(v.x, 1);
            q[2] = (float)agglo_nibble(v.y, 0), q[3] = (float)agglo_nibble(v.y, 1);
            return;
        }
        default: {
            ushort4 v = *(const ushort4 *)(row + 2 * k);
            unsigned h[4] = {v.x, v.y, v.z, v.w};

            for (int i = 0; i < 4; i++) {
                q[i] = code == AGGLO_CODE_F16 ? agglo_f16_value(h[i]) : agglo_float_of(h[i] << 16);
            }
            return;
        }
        }
    }
    switch (code) {
    case AGGLO_CODE_F32:
        q[0] = ((const float *)row)[k];
        return;
    case AGGLO_CODE_F16:
        q[0] = agglo_f16_value(((const uint16_t *)row)[k]);
        return;
    case AGGLO_CODE_BF16:
        q[0] = agglo_float_of((uint32_t)((const uint16_t *)row)[k] << 16);
        return;
    case AGGLO_CODE_I8:
        q[0] = (float)((const int8_t *)row)[k];
        return;
    case AGGLO_CODE_I16:
        q[0] = (float)((const int16_t *)row)[k];
        return;
    default:
        q[0] = (float)agglo_nibble(row[k / 2], k);
        return;
    }
}

/* A stored target as kernels see it: rows of `stride` bytes. */
typedef struct stored {
    agglo_code code;
    int64_t k, stride;
    const uint8_t *values;
    const void *token_scale;
    bool half_scale;
    const float *channel_scale, *centre;
} stored;

static __device__ inline float scale_of_token(stored s, int64_t i)
{
    if (s.token_scale == NULL) {
        return 1.0f;
    }
    return s.half_scale ? agglo_f16_value(((const uint16_t *)s.token_scale)[i]) : ((const float *)s.token_scale)[i];
}

/* u[k..k+N) of row i, with scales, less the centre. */
template <int N> static __device__ inline void decode(stored s, int64_t i, int64_t k, float scale, float *u)
{
    read_codes<N>(s.code, s.values + i * s.stride, k, u);
    for (int j = 0; j < N; j++) {
        u[j] *= s.channel_scale == NULL ? scale : scale * s.channel_scale[k + j];
        u[j] -= s.centre == NULL ? 0.0f : s.centre[k + j];
    }
}

/* What follows the matrix, or stands in its place. */
typedef struct finish {
    const float *diagonal, *offset;
    float scale;
} finish;

template <int N>
static __device__ inline void read_target(stored s, finish f, int64_t i, int64_t j, float token_scale, float *t)
{
    decode<N>(s, i, j, token_scale, t);
    for (int l = 0; l < N; l++) {
        float factor = f.diagonal == NULL ? f.scale : f.scale * f.diagonal[j + l];

        t[l] = t[l] * factor + (f.offset == NULL ? 0.0f : f.offset[j + l]);
    }
}

/* ---- the loss ---- */

/* Tokens first..first+m of the batch, whose targets are rows 0..m of `s`; values[VALUES] of every token of the batch. */
template <class Pred, int N>
static __global__ void __launch_bounds__(BLOCK, 4)
    loss_kernel(int64_t first, int64_t m, int64_t c, float threshold, const Pred *pred, stored s, finish f,
                loss_weights w, const loss_scale *scale, Pred *d_pred, float *values)
{
    int lane = (int)threadIdx.x % WARP;
    float inverse = 1.0f / threshold, half_inverse = 0.5f / threshold;
    agglo_loss_factors factors = scale->factors;

    for (int64_t r = (int64_t)blockIdx.x * ROWS + threadIdx.x / WARP; r < m; r += (int64_t)gridDim.x * ROWS) {
        int64_t i = first + r;
        const Pred *p_row = pred + i * c;
        Pred *d_row = d_pred == NULL ? NULL : d_pred + i * c;
        float *value = values + VALUES * i, weight = weight_of(w, i);
        float dot = 0.0f, pp = 0.0f, tt = 0.0f, l1 = 0.0f, sq = 0.0f, token_scale, p[N], t[N];
        agglo_loss_row row;

        if (weight == 0.0f) {
            for (int l = 0; l < N; l++) {
                p[l] = 0.0f;
            }
            for (int64_t j = (int64_t)lane * N; d_row != NULL && j < c; j += WARP * N) {
                store<N>(d_row + j, p);
            }
            if (lane < VALUES) {
                value[lane] = 0.0f;
            }
            continue; /* the whole warp */
        }
        token_scale = scale_of_token(s, r);
        for (int64_t j = (int64_t)lane * N; j < c; j += WARP * N) {
            load<N>(p, p_row + j);
            read_target<N>(s, f, r, j, token_scale, t);
            for (int l = 0; l < N; l++) {
                float d = p[l] - t[l];

                dot += p[l] * t[l];
                pp += p[l] * p[l];
                tt += t[l] * t[l];
                l1 += agglo_smooth_l1(d, threshold, half_inverse);
                sq += d * d;
            }
        }
        dot = warp_sum(dot);
        pp = warp_sum(pp);
        tt = warp_sum(tt);
        l1 = warp_sum(l1);
        sq = warp_sum(sq);
        weight *= sample_factor(w, i);
        row = agglo_loss_row_of(dot, pp, sqrtf(pp), sqrtf(tt), weight * factors.cos);
        if (lane == 0) {
            value[0] = row.cosine;
            value[1] = l1 / (float)c;
            value[2] = sq / (float)c;
        }
        for (int64_t j = (int64_t)lane * N; d_row != NULL && j < c; j += WARP * N) {
            load<N>(p, p_row + j);
            read_target<N>(s, f, r, j, token_scale, t);
            for (int l = 0; l < N; l++) {
                float d = p[l] - t[l];

                p[l] = row.from_target * t[l] + row.from_pred * p[l] +
                       weight * factors.l1 * agglo_smooth_l1_slope(d, threshold, inverse) + weight * factors.sq * d;
            }
            store<N>(d_row + j, p);
        }
    }
}

/* Of PIECE tokens: sums of cos, L1, squares and of the loss; and the values given out. partial[blocks][PARTIAL] */
static __global__ void __launch_bounds__(BLOCK)
    loss_partial_kernel(int64_t m, agglo_loss_config config, loss_weights w, const float *values, float *cos_out,
                        float *l1_out, float *sq_out, double *partial)
{
    int64_t first = (int64_t)blockIdx.x * PIECE, end = first + PIECE < m ? first + PIECE : m;
    double sums[PARTIAL] = {0.0, 0.0, 0.0, 0.0};

    for (int64_t i = first + threadIdx.x; i < end; i += BLOCK) {
        const float *value = values + VALUES * i;
        double weight = (double)weight_of(w, i);

        sums[0] += weight * (double)value[0];
        sums[1] += weight * (double)value[1];
        sums[2] += weight * (double)value[2];
        sums[3] += weight * (double)sample_factor(w, i) *
                   ((double)config.alpha * (1.0 - (double)value[0]) + (double)config.beta * (double)value[1] +
                    (double)config.squared * (double)value[2]);
        if (cos_out != NULL) {
            cos_out[i] = value[0];
        }
        if (l1_out != NULL) {
            l1_out[i] = value[1];
        }
        if (sq_out != NULL) {
            sq_out[i] = value[2];
        }
    }
    for (int k = 0; k < PARTIAL; k++) {
        double sum = block_sum(sums[k]);

        if (threadIdx.x == 0) {
            partial[(int64_t)blockIdx.x * PARTIAL + k] = sum;
        }
    }
}

/* Add to sums[n_sums]. */
static __global__ void loss_sums_kernel(int64_t n_pieces, const double *partial, const loss_scale *scale, float *sums,
                                        int64_t n_sums)
{
    double all[PARTIAL] = {0.0, 0.0, 0.0, 0.0};

    for (int64_t i = threadIdx.x; i < n_pieces; i += blockDim.x) {
        for (int k = 0; k < PARTIAL; k++) {
            all[k] += partial[i * PARTIAL + k];
        }
    }
    for (int k = 0; k < PARTIAL; k++) {
        all[k] = block_sum(all[k]);
    }
    if (threadIdx.x == 0) {
        sums[AGGLO_LOSS_COS] += (float)all[0];
        sums[AGGLO_LOSS_SMOOTH_L1] += (float)all[1];
        sums[AGGLO_LOSS_TOKENS] += (float)scale->weights;
        sums[AGGLO_LOSS_SAMPLES] += scale->n_samples;
        if (n_sums == AGGLO_LOSS_SUMS) {
            sums[AGGLO_LOSS_SQUARED] += (float)all[2];
            sums[AGGLO_LOSS_TOTAL] += scale->weights > 0.0 ? (float)(scale->lambda * all[3] / scale->weights) : 0.0f;
        }
    }
}

/* ---- products ---- */

/* out[m,ld] = u[m,K], zeros beyond K. Rows without weight are zeros: their slots may hold anything. */
template <typename T, int N>
static __global__ void decode_kernel(int64_t first, int64_t m, int64_t ld, stored s, loss_weights w, T *out)
{
    int64_t k = own_columns<N>();

    if (k >= ld) {
        return;
    }
    ROW_LOOP(i, m)
    {
        float u[N] = {};

        if (k < s.k && weight_of(w, first + i) != 0.0f) {
            decode<N>(s, i, k, scale_of_token(s, i), u);
        }
        store<N>(out + i * ld + k, u);
    }
}

template <typename T>
static void launch_decode(agglo_cuda *cuda, int64_t first, int64_t m, int64_t ld, stored s, loss_weights w, T *out)
{
    if (s.k % 4 == 0 && ld % 4 == 0 && aligned(s.values, out)) {
        decode_kernel<T, 4><<<row_grid(1, m, ld / 4), row_block(ld / 4), 0, cuda->stream>>>(first, m, ld, s, w, out);
    } else {
        decode_kernel<T, 1><<<row_grid(1, m, ld), row_block(ld), 0, cuda->stream>>>(first, m, ld, s, w, out);
    }
    agglo_cuda_launched(cuda, "target_loss");
}

/* out[K8,ld] = M[K,C] in BF16, zeros around it. */
static __global__ void matrix_kernel(int64_t k8, int64_t ld, int64_t k, int64_t c, const float *matrix,
                                     __nv_bfloat16 *out)
{
    int64_t j = own_column();

    if (j >= ld) {
        return;
    }
    ROW_LOOP(i, k8)
    {
        out[i * ld + j] = __float2bfloat16_rn(i < k && j < c ? matrix[i * c + j] : 0.0f);
    }
}

/* ---- the operator ---- */

typedef struct loss_work {
    agglo_cuda *cuda;
    int64_t c;
    float threshold;
    const void *pred;
    void *d_pred;
    bool bf16;
    loss_weights weights;
    const loss_scale *scale;
    float *values;
} loss_work;

template <class Pred, int N> static void launch_loss(const loss_work *job, int64_t first, int64_t m, stored s, finish f)
{
    loss_kernel<Pred, N><<<agglo_cuda_grid(agglo_cuda_ceil_div(m, ROWS), MOST_GRID), BLOCK, 0, job->cuda->stream>>>(
        first, m, job->c, job->threshold, (const Pred *)job->pred, s, f, job->weights, job->scale, (Pred *)job->d_pred,
        job->values);
    agglo_cuda_launched(job->cuda, "target_loss");
}

static void run_loss(const loss_work *job, int64_t first, int64_t m, stored s, finish f)
{
    bool four = job->c % 4 == 0 && s.k % 4 == 0 && aligned(job->pred, job->d_pred, s.values);

    if (job->bf16) {
        if (four) {
            launch_loss<__nv_bfloat16, 4>(job, first, m, s, f);
        } else {
            launch_loss<__nv_bfloat16, 1>(job, first, m, s, f);
        }
    } else if (four) {
        launch_loss<float, 4>(job, first, m, s, f);
    } else {
        launch_loss<float, 1>(job, first, m, s, f);
    }
}

/* Rows from `first` on of stored values and scales. */
static stored from_row(stored s, int64_t first)
{
    s.values += first * s.stride;
    if (s.token_scale != NULL) {
        s.token_scale = (const uint8_t *)s.token_scale + first * (s.half_scale ? 2 : 4);
    }
    return s;
}

/* The workspace of products, in bytes from its start: the matrix [k,c] (BF16 alone), u[chunk,k] and products [chunk,c], k and c
 * padded. */
typedef struct product_plan {
    int64_t k, c, chunk;
    size_t u, product, total;
} product_plan;

static size_t to_256(int64_t n_bytes)
{
    return ((size_t)n_bytes + 255) / 256 * 256;
}

static product_plan plan_products(bool bf16, int64_t m, int64_t k, int64_t c)
{
    int64_t size = bf16 ? 2 : 4;
    product_plan plan = {};

    plan.k = bf16 ? agglo_cuda_ceil_div(k, 8) * 8 : k;
    plan.c = bf16 ? agglo_cuda_ceil_div(c, 8) * 8 : c;
    plan.chunk = CHUNK_BYTES / (size * plan.k + 4 * plan.c) / CHUNK_ROWS * CHUNK_ROWS;
    plan.chunk = plan.chunk < CHUNK_ROWS ? CHUNK_ROWS : plan.chunk;
    plan.chunk = plan.chunk < m ? plan.chunk : m;
    plan.u = bf16 ? to_256(plan.k * plan.c * size) : 0;
    plan.product = plan.u + to_256(plan.chunk * plan.k * size);
    plan.total = plan.product + to_256(plan.chunk * plan.c * 4);
    return plan;
}

static void run_products(const loss_work *job, int64_t m, const product_plan *plan, stored s, const agglo_map *map,
                         uint8_t *space)
{
    agglo_cuda *cuda = job->cuda;
    agglo_dtype in = job->bf16 ? AGGLO_BF16 : AGGLO_F32;
    const void *matrix = job->bf16 ? (const void *)space : (const void *)map->matrix;
    float *product = (float *)(space + plan->product);
    finish f = {NULL, map->offset, map->scale};
    stored result = {};

    result.code = AGGLO_CODE_F32;
    result.k = job->c;
    result.stride = 4 * plan->c;
    result.values = (const uint8_t *)product;
    if (job->bf16) {
        matrix_kernel<<<row_grid(1, plan->k, plan->c), row_block(plan->c), 0, cuda->stream>>>(
            plan->k, plan->c, s.k, job->c, map->matrix, (__nv_bfloat16 *)space);
        agglo_cuda_launched(cuda, "target_loss");
    }
    for (int64_t first = 0; first < m; first += plan->chunk) {
        int64_t rows = m - first < plan->chunk ? m - first : plan->chunk;
        uint8_t *u = space + plan->u;

        if (job->bf16) {
            launch_decode(cuda, first, rows, plan->k, from_row(s, first), job->weights, (__nv_bfloat16 *)u);
        } else {
            launch_decode(cuda, first, rows, plan->k, from_row(s, first), job->weights, (float *)u);
        }
        agglo_cuda_gemm_of(cuda, false, false, rows, plan->c, plan->k, in, u, matrix, 0.0f, AGGLO_F32, product);
        run_loss(job, first, rows, result, f);
    }
}

static void target_loss(agglo_backend *be, const agglo_loss_config *config, const agglo_tensor *pred,
                        const agglo_target *target, const agglo_loss_weights *weights, float grad_scale,
                        agglo_tensor *d_pred, const agglo_loss_values *values, agglo_tensor *sums)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    int64_t batch = pred->shape[0], n = pred->shape[1], c = pred->shape[2], m = batch * n, k = target->k;
    const agglo_map *map = &target->map;
    loss_work job = {};
    stored s = {};
    int64_t n_pieces = agglo_cuda_ceil_div(m, PIECE);
    size_t scale_bytes = 256, partial_bytes = to_256(8 * n_pieces * PARTIAL), value_bytes = to_256(4 * VALUES * m),
           head_bytes = scale_bytes + partial_bytes + value_bytes;
    double *partial;
    product_plan plan = {};
    uint8_t *space;

    s.code = target->code;
    s.k = k;
    s.stride = agglo_code_row_bytes(target->code, k);
    s.values = (const uint8_t *)target->values;
    s.token_scale = target->token_scale;
    s.half_scale = target->token_scale_dtype == AGGLO_F16;
    s.channel_scale = target->channel_scale;
    s.centre = map->centre;
    job.cuda = cuda;
    job.c = c;
    job.threshold = config->threshold;
    job.pred = pred->data;
    job.bf16 = pred->dtype == AGGLO_BF16;
    job.d_pred = d_pred == NULL ? NULL : d_pred->data;
    job.weights.n = n;
    if (weights != NULL) {
        job.weights.valid = input(weights->valid);
        job.weights.sample = input(weights->sample_weight);
        job.weights.token = input(weights->token_weight);
        job.weights.lambda = input(weights->lambda);
    }
    if (map->matrix != NULL) {
        plan = plan_products(job.bf16, m, k, c);
    }
    space = (uint8_t *)agglo_cuda_reserve(cuda, head_bytes + plan.total);
    if (space == NULL) {
        return;
    }
    job.scale = (const loss_scale *)space;
    partial = (double *)(space + scale_bytes);
    job.values = (float *)(space + scale_bytes + partial_bytes);
    loss_scale_kernel<<<1, 1024, 0, cuda->stream>>>(*config, grad_scale, batch, c, job.weights, (loss_scale *)space);
    agglo_cuda_launched(cuda, "target_loss");
    if (map->matrix != NULL) {
        run_products(&job, m, &plan, s, map, space + head_bytes);
    } else {
        finish f = {map->diagonal, map->offset, map->scale};

        run_loss(&job, 0, m, s, f);
    }
    loss_partial_kernel<<<(unsigned)n_pieces, BLOCK, 0, cuda->stream>>>(
        m, *config, job.weights, job.values, values == NULL ? NULL : output(values->cos),
        values == NULL ? NULL : output(values->smooth_l1), values == NULL ? NULL : output(values->squared), partial);
    agglo_cuda_launched(cuda, "target_loss");
    loss_sums_kernel<<<1, BLOCK, 0, cuda->stream>>>(n_pieces, partial, job.scale, output(sums),
                                                    agglo_tensor_count(sums));
    agglo_cuda_launched(cuda, "target_loss");
}

void agglo_cuda_loss_ops(agglo_backend_ops *ops)
{
    ops->target_loss = target_loss;
}
