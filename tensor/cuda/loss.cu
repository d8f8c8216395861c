/* The distillation loss of pred[B,n,C] against a stored target, values and gradient (tensor/ops.h has the formula).
 *
 *     cos = p.t / (|p| |t|);  L1 = sum_j smoothL1(p - t) / C
 *     d_pred = -a t / (|p| |t|) + a cos p / |p|^2 + b smoothL1'(p - t),   a and b from the weights and the number of valid tokens
 *
 * Three launches: one block counts the valid samples and works out a and b (in double); a warp per token, eight to a block, lanes striding
 * over the channels, takes the four sums and then, from cache, writes the gradient; one block adds the tokens' values in double.
 * Bytes moved: pred (4) and target (2 or 4) once from memory and once from cache, d_pred (4) once. F32, fixed butterflies,
 * deterministic. A 16-bit target is converted as it is read.
 */
#include "tensor/cuda/kernels.cuh"

#define ROWS       (BLOCK / WARP)
#define LEAST_NORM 1e-8f

/* What the first launch leaves for the others. */
typedef struct loss_scale {
    float cos_weight, l1_weight; /* of one valid token's terms in the gradient */
    float n_tokens, n_samples;   /* valid ones */
} loss_scale;

static __global__ void loss_scale_kernel(agglo_loss_config config, float grad_scale, int64_t batch, int64_t n,
                                         int64_t c, const float *valid, loss_scale *out)
{
    double n_valid = 0.0;

    for (int64_t b = threadIdx.x; b < batch; b += blockDim.x) {
        n_valid += valid == NULL || valid[b] != 0.0f ? 1.0 : 0.0;
    }
    n_valid = block_sum(n_valid);
    if (threadIdx.x == 0) {
        double n_tokens = n_valid * (double)n;
        double per_token = n_valid > 0.0 ? (double)grad_scale * (double)config.lambda / n_tokens : 0.0;

        out->cos_weight = (float)(per_token * (double)config.alpha);
        out->l1_weight = (float)(per_token * (double)config.beta / (double)c);
        out->n_tokens = (float)n_tokens;
        out->n_samples = (float)n_valid;
    }
}

/* values[m][2]: cos and mean smooth-L1 of every token. */
static __global__ void loss_kernel(int64_t m, int64_t n, int64_t c, float threshold, const float *pred,
                                   const void *target, agglo_dtype dtype, const float *valid, const loss_scale *scale,
                                   float *d_pred, float *values)
{
    int lane = (int)threadIdx.x % WARP;
    float inverse = 1.0f / threshold, half_inverse = 0.5f / threshold;
    float cos_weight = scale->cos_weight, l1_weight = scale->l1_weight;

    for (int64_t i = (int64_t)blockIdx.x * ROWS + threadIdx.x / WARP; i < m; i += (int64_t)gridDim.x * ROWS) {
        float dot = 0.0f, pp = 0.0f, tt = 0.0f, l1 = 0.0f, norm_p, norm_t, cosine, from_target, from_pred;

        if (valid != NULL && valid[i / n] == 0.0f) {
            for (int64_t j = lane; d_pred != NULL && j < c; j += WARP) {
                d_pred[i * c + j] = 0.0f;
            }
            if (lane == 0) {
                values[2 * i] = values[2 * i + 1] = 0.0f;
            }
            continue; /* the whole warp */
        }
        for (int64_t j = lane; j < c; j += WARP) {
            float p = pred[i * c + j], t = element(target, dtype, i * c + j);

            dot += p * t;
            pp += p * p;
            tt += t * t;
            l1 += agglo_smooth_l1(p - t, threshold, half_inverse);
        }
        dot = warp_sum(dot);
        pp = warp_sum(pp);
        tt = warp_sum(tt);
        l1 = warp_sum(l1);
        norm_p = sqrtf(pp);
        norm_t = sqrtf(tt);
        norm_t = norm_t < LEAST_NORM ? LEAST_NORM : norm_t;
        /* d cos / d pred = target / (|p| |t|) - cos pred / |p|^2; below the least norm |p| is a constant */
        from_pred = norm_p < LEAST_NORM ? 0.0f : 1.0f / pp;
        norm_p = norm_p < LEAST_NORM ? LEAST_NORM : norm_p;
        cosine = dot / norm_p / norm_t;
        if (lane == 0) {
            values[2 * i] = cosine;
            values[2 * i + 1] = l1 / (float)c;
        }
        from_target = -cos_weight / norm_p / norm_t;
        from_pred *= cos_weight * cosine;
        for (int64_t j = lane; d_pred != NULL && j < c; j += WARP) {
            float p = pred[i * c + j], t = element(target, dtype, i * c + j);

            d_pred[i * c + j] =
                from_target * t + from_pred * p + l1_weight * agglo_smooth_l1_slope(p - t, threshold, inverse);
        }
    }
}

static __global__ void loss_sums_kernel(int64_t m, const float *values, const loss_scale *scale, float *sums)
{
    double cosine = 0.0, l1 = 0.0;

    for (int64_t i = threadIdx.x; i < m; i += blockDim.x) {
        cosine += (double)values[2 * i];
        l1 += (double)values[2 * i + 1];
    }
    cosine = block_sum(cosine);
    l1 = block_sum(l1);
    if (threadIdx.x == 0) {
        sums[0] += (float)cosine;
        sums[1] += (float)l1;
        sums[2] += scale->n_tokens;
        sums[3] += scale->n_samples;
    }
}

static void distill_loss(agglo_backend *be, const agglo_loss_config *config, const agglo_tensor *pred,
                         const agglo_tensor *target, const agglo_tensor *valid, float grad_scale, agglo_tensor *d_pred,
                         agglo_tensor *sums)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    int64_t batch = pred->shape[0], n = pred->shape[1], c = pred->shape[2], m = batch * n;
    loss_scale *scale = (loss_scale *)agglo_cuda_reserve(cuda, sizeof *scale + (size_t)(2 * m) * sizeof(float));
    float *values;

    if (scale == NULL) {
        return;
    }
    values = (float *)(scale + 1);
    loss_scale_kernel<<<1, BLOCK, 0, cuda->stream>>>(*config, grad_scale, batch, n, c, input(valid), scale);
    agglo_cuda_launched(cuda, "distill_loss");
    loss_kernel<<<agglo_cuda_grid(agglo_cuda_ceil_div(m, ROWS), MOST_GRID), BLOCK, 0, cuda->stream>>>(
        m, n, c, config->threshold, input(pred), target->data, target->dtype, input(valid), scale, output(d_pred),
        values);
    agglo_cuda_launched(cuda, "distill_loss");
    loss_sums_kernel<<<1, 1024, 0, cuda->stream>>>(m, values, scale, output(sums));
    agglo_cuda_launched(cuda, "distill_loss");
}

void agglo_cuda_loss_ops(agglo_backend_ops *ops)
{
    ops->distill_loss = distill_loss;
}
