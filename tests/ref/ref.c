/* The reference operators; see ref.h. Nothing here is clever. */
#include "tests/ref/ref.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static double *doubles(int64_t n)
{
    double *block = calloc((size_t)n, sizeof *block);

    if (block == NULL) {
        abort();
    }
    return block;
}

static double sigmoid(double x)
{
    return 1.0 / (1.0 + exp(-x));
}

double ref_act_value(ref_act act, double x)
{
    switch (act) {
    case REF_NONE:
        return x;
    case REF_GELU:
        return 0.5 * x * erfc(-x * M_SQRT1_2);
    case REF_QUICK_GELU:
        return x * sigmoid(1.702 * x);
    case REF_SILU:
        return x * sigmoid(x);
    case REF_RELU:
        return x > 0 ? x : 0;
    }
    abort();
}

double ref_act_slope(ref_act act, double x)
{
    double s;

    switch (act) {
    case REF_NONE:
        return 1.0;
    case REF_GELU:
        return 0.5 * erfc(-x * M_SQRT1_2) + x * exp(-0.5 * x * x) / sqrt(2.0 * M_PI);
    case REF_QUICK_GELU:
        s = sigmoid(1.702 * x);
        return s + 1.702 * x * s * (1.0 - s);
    case REF_SILU:
        s = sigmoid(x);
        return s + x * s * (1.0 - s);
    case REF_RELU:
        return x > 0 ? 1.0 : 0.0;
    }
    abort();
}

void ref_linear(int64_t m, int64_t n, int64_t k, const double *x, const double *w, const double *b, ref_act act,
                double *pre, double *y)
{
    for (int64_t i = 0; i < m; i++) {
        for (int64_t j = 0; j < n; j++) {
            double sum = b == NULL ? 0.0 : b[j];

            for (int64_t l = 0; l < k; l++) {
                sum += x[i * k + l] * w[j * k + l];
            }
            if (pre != NULL) {
                pre[i * n + j] = sum;
            }
            y[i * n + j] = ref_act_value(act, sum);
        }
    }
}

void ref_linear_bwd_input(int64_t m, int64_t n, int64_t k, const double *d_y, const double *w, bool accumulate,
                          double *d_x)
{
    for (int64_t i = 0; i < m; i++) {
        for (int64_t l = 0; l < k; l++) {
            double sum = accumulate ? d_x[i * k + l] : 0.0;

            for (int64_t j = 0; j < n; j++) {
                sum += d_y[i * n + j] * w[j * k + l];
            }
            d_x[i * k + l] = sum;
        }
    }
}

void ref_linear_bwd_weight(int64_t m, int64_t n, int64_t k, const double *d_y, const double *x, double *d_w,
                           double *d_b)
{
    for (int64_t i = 0; i < m; i++) {
        for (int64_t j = 0; j < n; j++) {
            for (int64_t l = 0; l < k; l++) {
                d_w[j * k + l] += d_y[i * n + j] * x[i * k + l];
            }
            if (d_b != NULL) {
                d_b[j] += d_y[i * n + j];
            }
        }
    }
}

void ref_activate(int64_t n, ref_act act, const double *x, double *y)
{
    for (int64_t i = 0; i < n; i++) {
        y[i] = ref_act_value(act, x[i]);
    }
}

void ref_activate_bwd(int64_t n, ref_act act, const double *x, const double *d_y, double *d_x)
{
    for (int64_t i = 0; i < n; i++) {
        d_x[i] = d_y[i] * ref_act_slope(act, x[i]);
    }
}

void ref_swiglu(int64_t m, int64_t h, const double *u, double *y)
{
    for (int64_t i = 0; i < m; i++) {
        for (int64_t j = 0; j < h; j++) {
            y[i * h + j] = ref_act_value(REF_SILU, u[2 * i * h + j]) * u[2 * i * h + h + j];
        }
    }
}

void ref_swiglu_bwd(int64_t m, int64_t h, const double *u, const double *d_y, double *d_u)
{
    for (int64_t i = 0; i < m; i++) {
        for (int64_t j = 0; j < h; j++) {
            double gate = u[2 * i * h + j], value = u[2 * i * h + h + j], d = d_y[i * h + j];

            d_u[2 * i * h + j] = d * value * ref_act_slope(REF_SILU, gate);
            d_u[2 * i * h + h + j] = d * ref_act_value(REF_SILU, gate);
        }
    }
}

static void statistics(int64_t c, const double *x, double eps, double *mean, double *rstd)
{
    double sum = 0.0, squares = 0.0;

    for (int64_t j = 0; j < c; j++) {
        sum += x[j];
    }
    *mean = sum / (double)c;
    for (int64_t j = 0; j < c; j++) {
        squares += (x[j] - *mean) * (x[j] - *mean);
    }
    *rstd = 1.0 / sqrt(squares / (double)c + eps);
}

void ref_layernorm(int64_t m, int64_t c, const double *x, const double *w, const double *b, double eps, double *y,
                   double *mean, double *rstd)
{
    for (int64_t i = 0; i < m; i++) {
        double mu, r;

        statistics(c, x + i * c, eps, &mu, &r);
        for (int64_t j = 0; j < c; j++) {
            y[i * c + j] = (x[i * c + j] - mu) * r * w[j] + b[j];
        }
        if (mean != NULL) {
            mean[i] = mu;
        }
        if (rstd != NULL) {
            rstd[i] = r;
        }
    }
}

void ref_layernorm_bwd(int64_t m, int64_t c, const double *d_y, const double *x, const double *w, double eps,
                       bool accumulate, double *d_x, double *d_w, double *d_b)
{
    for (int64_t i = 0; i < m; i++) {
        double mu, r, sum_g = 0.0, sum_gn = 0.0;

        statistics(c, x + i * c, eps, &mu, &r);
        for (int64_t j = 0; j < c; j++) {
            double n = (x[i * c + j] - mu) * r, d = d_y[i * c + j];

            d_w[j] += d * n;
            d_b[j] += d;
            sum_g += d * w[j];
            sum_gn += d * w[j] * n;
        }
        for (int64_t j = 0; j < c; j++) {
            double n = (x[i * c + j] - mu) * r;
            double d = r * (d_y[i * c + j] * w[j] - sum_g / (double)c - n * sum_gn / (double)c);

            d_x[i * c + j] = (accumulate ? d_x[i * c + j] : 0.0) + d;
        }
    }
}

/* Element e of token t's vector `which` (0 q, 1 k, 2 v) in packed qkv[B,N,3,H,D]. */
static int64_t at(int64_t n, int64_t h, int64_t d, int64_t image, int64_t t, int64_t which, int64_t head, int64_t e)
{
    return (((image * n + t) * 3 + which) * h + head) * d + e;
}

/* p[j] = softmax over j of scale q_i . k_j; returns the log-sum-exp. */
static double probabilities(int64_t n, int64_t h, int64_t d, const double *qkv, double scale, int64_t image,
                            int64_t head, int64_t i, double *p)
{
    double most = -INFINITY, sum = 0.0;

    for (int64_t j = 0; j < n; j++) {
        p[j] = 0.0;
        for (int64_t e = 0; e < d; e++) {
            p[j] += scale * qkv[at(n, h, d, image, i, 0, head, e)] * qkv[at(n, h, d, image, j, 1, head, e)];
        }
        most = p[j] > most ? p[j] : most;
    }
    for (int64_t j = 0; j < n; j++) {
        p[j] = exp(p[j] - most);
        sum += p[j];
    }
    for (int64_t j = 0; j < n; j++) {
        p[j] /= sum;
    }
    return most + log(sum);
}

void ref_attention(int64_t b, int64_t n, int64_t h, int64_t d, const double *qkv, double scale, double *out,
                   double *lse)
{
    double *p = doubles(n);

    for (int64_t image = 0; image < b; image++) {
        for (int64_t head = 0; head < h; head++) {
            for (int64_t i = 0; i < n; i++) {
                double l = probabilities(n, h, d, qkv, scale, image, head, i, p);

                if (lse != NULL) {
                    lse[(image * h + head) * n + i] = l;
                }
                for (int64_t e = 0; e < d; e++) {
                    double sum = 0.0;

                    for (int64_t j = 0; j < n; j++) {
                        sum += p[j] * qkv[at(n, h, d, image, j, 2, head, e)];
                    }
                    out[((image * n + i) * h + head) * d + e] = sum;
                }
            }
        }
    }
    free(p);
}

void ref_attention_bwd(int64_t b, int64_t n, int64_t h, int64_t d, const double *d_out, const double *qkv, double scale,
                       double *d_qkv)
{
    double *p = doubles(n), *d_p = doubles(n);

    memset(d_qkv, 0, (size_t)(b * n * 3 * h * d) * sizeof *d_qkv);
    for (int64_t image = 0; image < b; image++) {
        for (int64_t head = 0; head < h; head++) {
            for (int64_t i = 0; i < n; i++) {
                const double *d_o = d_out + ((image * n + i) * h + head) * d;
                double mean = 0.0;

                probabilities(n, h, d, qkv, scale, image, head, i, p);
                for (int64_t j = 0; j < n; j++) {
                    d_p[j] = 0.0;
                    for (int64_t e = 0; e < d; e++) {
                        d_p[j] += d_o[e] * qkv[at(n, h, d, image, j, 2, head, e)];
                        d_qkv[at(n, h, d, image, j, 2, head, e)] += p[j] * d_o[e];
                    }
                    mean += p[j] * d_p[j];
                }
                for (int64_t j = 0; j < n; j++) {
                    double d_s = scale * p[j] * (d_p[j] - mean);

                    for (int64_t e = 0; e < d; e++) {
                        d_qkv[at(n, h, d, image, i, 0, head, e)] += d_s * qkv[at(n, h, d, image, j, 1, head, e)];
                        d_qkv[at(n, h, d, image, j, 1, head, e)] += d_s * qkv[at(n, h, d, image, i, 0, head, e)];
                    }
                }
            }
        }
    }
    free(d_p);
    free(p);
}

void ref_residual(int64_t m, int64_t c, const double *x, const double *h, const double *gamma, double *y)
{
    for (int64_t i = 0; i < m * c; i++) {
        y[i] = x[i] + (gamma == NULL ? 1.0 : gamma[i % c]) * h[i];
    }
}

void ref_residual_bwd(int64_t m, int64_t c, const double *d_y, const double *h, const double *gamma, double *d_h,
                      double *d_gamma)
{
    for (int64_t i = 0; i < m * c; i++) {
        d_gamma[i % c] += d_y[i] * h[i];
        d_h[i] = gamma[i % c] * d_y[i];
    }
}

void ref_patchify(int64_t b, int64_t height, int64_t width, int64_t p, const uint8_t *pixels, const double *extents,
                  const double mean[3], const double std[3], double *patches)
{
    int64_t gh = height / p, gw = width / p;

    for (int64_t image = 0; image < b; image++) {
        for (int64_t row = 0; row < height; row++) {
            for (int64_t col = 0; col < width; col++) {
                for (int64_t c = 0; c < 3; c++) {
                    int64_t token = (image * gh + row / p) * gw + col / p;
                    int64_t element = (c * p + row % p) * p + col % p;
                    double v = pixels[((image * height + row) * width + col) * 3 + c];
                    bool inside =
                        extents == NULL || ((double)col < extents[2 * image] && (double)row < extents[2 * image + 1]);

                    patches[token * 3 * p * p + element] = inside ? (v / 255.0 - mean[c]) / std[c] : 0.0;
                }
            }
        }
    }
}

void ref_tokens_join(int64_t b, int64_t n_prefix, int64_t n, int64_t c, const double *prefix, const double *patches,
                     const double *pos, int64_t pos_images, double *y)
{
    for (int64_t image = 0; image < b; image++) {
        for (int64_t t = 0; t < n_prefix + n; t++) {
            for (int64_t j = 0; j < c; j++) {
                int64_t i = t - n_prefix;
                double *out = &y[(image * (n_prefix + n) + t) * c + j];

                if (i < 0) {
                    *out = prefix[t * c + j];
                } else {
                    *out = patches[(image * n + i) * c + j];
                    *out += pos == NULL ? 0.0 : pos[((pos_images == 1 ? 0 : image) * n + i) * c + j];
                }
            }
        }
    }
}

void ref_tokens_join_bwd(int64_t b, int64_t n_prefix, int64_t n, int64_t c, const double *d_y, double *d_prefix,
                         double *d_patches, double *d_pos, int64_t pos_images)
{
    for (int64_t image = 0; image < b; image++) {
        for (int64_t t = 0; t < n_prefix + n; t++) {
            for (int64_t j = 0; j < c; j++) {
                int64_t i = t - n_prefix;
                double d = d_y[(image * (n_prefix + n) + t) * c + j];

                if (i < 0 && d_prefix != NULL) {
                    d_prefix[t * c + j] += d;
                }
                if (i >= 0 && d_patches != NULL) {
                    d_patches[(image * n + i) * c + j] = d;
                }
                if (i >= 0 && d_pos != NULL) {
                    d_pos[((pos_images == 1 ? 0 : image) * n + i) * c + j] += d;
                }
            }
        }
    }
}

void ref_tokens_slice(int64_t b, int64_t total, int64_t first, int64_t n, int64_t c, const double *x, double *y)
{
    for (int64_t i = 0; i < b * n * c; i++) {
        y[i] = x[(i / (n * c) * total + first) * c + i % (n * c)];
    }
}

void ref_tokens_slice_bwd(int64_t b, int64_t total, int64_t first, int64_t n, int64_t c, const double *d_y,
                          bool accumulate, double *d_x)
{
    for (int64_t i = 0; i < b * n * c; i++) {
        double *d = &d_x[(i / (n * c) * total + first) * c + i % (n * c)];

        *d = (accumulate ? *d : 0.0) + d_y[i];
    }
}

void ref_tokens_mean(int64_t b, int64_t n, int64_t c, const double *x, double *y)
{
    for (int64_t i = 0; i < b * c; i++) {
        double sum = 0.0;

        for (int64_t t = 0; t < n; t++) {
            sum += x[(i / c * n + t) * c + i % c];
        }
        y[i] = sum / (double)n;
    }
}

void ref_tokens_mean_bwd(int64_t b, int64_t n, int64_t c, const double *d_y, bool accumulate, double *d_x)
{
    for (int64_t i = 0; i < b * n * c; i++) {
        d_x[i] = (accumulate ? d_x[i] : 0.0) + d_y[i / (n * c) * c + i % c] / (double)n;
    }
}

double ref_distill_loss(const ref_loss_config *config, int64_t b, int64_t n, int64_t c, const double *pred,
                        const double *target, const double *valid, double grad_scale, double *d_pred, double *sums)
{
    double n_tokens = 0.0, n_samples = 0.0, cosines = 0.0, l1 = 0.0, t = config->threshold;

    for (int64_t image = 0; image < b; image++) {
        if (valid == NULL || valid[image] != 0.0) {
            n_samples += 1.0;
            n_tokens += (double)n;
        }
    }
    for (int64_t i = 0; i < b * n; i++) {
        const double *p = pred + i * c, *q = target + i * c;
        double dot = 0.0, pp = 0.0, qq = 0.0, np, nq, sum = 0.0;
        bool used = valid == NULL || valid[i / n] != 0.0;

        for (int64_t j = 0; j < c; j++) {
            double d = fabs(p[j] - q[j]);

            dot += p[j] * q[j];
            pp += p[j] * p[j];
            qq += q[j] * q[j];
            sum += d < t ? d * d / (2.0 * t) : d - t / 2.0;
        }
        np = fmax(sqrt(pp), 1e-8);
        nq = fmax(sqrt(qq), 1e-8);
        if (used) {
            cosines += dot / (np * nq);
            l1 += sum / (double)c;
        }
        for (int64_t j = 0; d_pred != NULL && j < c; j++) {
            double d = p[j] - q[j], d_cos = q[j] / (np * nq), d_l1 = fabs(d) < t ? d / t : (d > 0) - (d < 0);

            if (sqrt(pp) >= 1e-8) {
                d_cos -= dot / (np * nq) * p[j] / pp;
            }
            d_pred[i * c + j] = 0.0;
            if (used) {
                d_pred[i * c + j] = grad_scale * config->lambda *
                                    (-config->alpha * d_cos / n_tokens + config->beta * d_l1 / (n_tokens * (double)c));
            }
        }
    }
    if (sums != NULL) {
        sums[0] += cosines;
        sums[1] += l1;
        sums[2] += n_tokens;
        sums[3] += n_samples;
    }
    if (n_tokens == 0.0) {
        return 0.0;
    }
    return config->lambda * (config->alpha * (1.0 - cosines / n_tokens) + config->beta * l1 / n_tokens);
}

void ref_adamw(const ref_adamw_config *config, int64_t n, double *p, const double *g, double *m, double *v)
{
    double t = (double)config->step;

    for (int64_t i = 0; i < n; i++) {
        double d = g[i] * config->grad_scale, m_hat, v_hat;

        p[i] -= config->lr * config->weight_decay * p[i];
        m[i] = config->beta1 * m[i] + (1.0 - config->beta1) * d;
        v[i] = config->beta2 * v[i] + (1.0 - config->beta2) * d * d;
        m_hat = m[i] / (1.0 - pow(config->beta1, t));
        v_hat = v[i] / (1.0 - pow(config->beta2, t));
        p[i] -= config->lr * m_hat / (sqrt(v_hat) + config->eps);
    }
}

double ref_sum_squares(int64_t n, const double *x)
{
    double sum = 0.0;

    for (int64_t i = 0; i < n; i++) {
        sum += x[i] * x[i];
    }
    return sum;
}

int64_t ref_block_elements(const ref_block_config *config, int which)
{
    int64_t d = config->dim, h = config->mlp_dim, u = config->swiglu ? 2 * h : h;

    switch (which) {
    case REF_QKV_W:
        return 3 * d * d;
    case REF_QKV_B:
        return 3 * d;
    case REF_PROJ_W:
        return d * d;
    case REF_FC1_W:
        return u * d;
    case REF_FC1_B:
        return u;
    case REF_FC2_W:
        return d * h;
    default:
        return d;
    }
}

/* Everything that one block computes on the way. */
typedef struct block_values {
    double *norm1, *qkv, *attended, *projected, *middle, *norm2, *pre, *hidden, *mlp_out;
} block_values;

static void block_values_free(block_values *v)
{
    free(v->norm1);
    free(v->qkv);
    free(v->attended);
    free(v->projected);
    free(v->middle);
    free(v->norm2);
    free(v->pre);
    free(v->hidden);
    free(v->mlp_out);
}

static block_values block_run(const ref_block_config *config, double *const params[REF_BLOCK_PARAMS], int64_t batch,
                              int64_t tokens, const double *x, double *y)
{
    int64_t d = config->dim, h = config->mlp_dim, u = config->swiglu ? 2 * h : h, m = batch * tokens,
            hd = d / config->heads;
    block_values v = {doubles(m * d), doubles(m * 3 * d), doubles(m * d), doubles(m * d), doubles(m * d),
                      doubles(m * d), doubles(m * u),     doubles(m * h), doubles(m * d)};

    ref_layernorm(m, d, x, params[REF_NORM1_W], params[REF_NORM1_B], config->norm_eps, v.norm1, NULL, NULL);
    ref_linear(m, 3 * d, d, v.norm1, params[REF_QKV_W], params[REF_QKV_B], REF_NONE, NULL, v.qkv);
    ref_attention(batch, tokens, config->heads, hd, v.qkv, 1.0 / sqrt((double)hd), v.attended, NULL);
    ref_linear(m, d, d, v.attended, params[REF_PROJ_W], params[REF_PROJ_B], REF_NONE, NULL, v.projected);
    ref_residual(m, d, x, v.projected, config->layer_scale ? params[REF_LS1] : NULL, v.middle);
    ref_layernorm(m, d, v.middle, params[REF_NORM2_W], params[REF_NORM2_B], config->norm_eps, v.norm2, NULL, NULL);
    ref_linear(m, u, d, v.norm2, params[REF_FC1_W], params[REF_FC1_B], REF_NONE, NULL, v.pre);
    if (config->swiglu) {
        ref_swiglu(m, h, v.pre, v.hidden);
    } else {
        ref_activate(m * h, config->act, v.pre, v.hidden);
    }
    ref_linear(m, d, h, v.hidden, params[REF_FC2_W], params[REF_FC2_B], REF_NONE, NULL, v.mlp_out);
    ref_residual(m, d, v.middle, v.mlp_out, config->layer_scale ? params[REF_LS2] : NULL, y);
    return v;
}

void ref_block_forward(const ref_block_config *config, double *const params[REF_BLOCK_PARAMS], int64_t batch,
                       int64_t tokens, const double *x, double *y)
{
    block_values v = block_run(config, params, batch, tokens, x, y);

    block_values_free(&v);
}

void ref_block_backward(const ref_block_config *config, double *const params[REF_BLOCK_PARAMS], int64_t batch,
                        int64_t tokens, const double *x, double *d, double *const grads[REF_BLOCK_PARAMS])
{
    int64_t dim = config->dim, h = config->mlp_dim, u = config->swiglu ? 2 * h : h, m = batch * tokens;
    int64_t hd = dim / config->heads;
    double *y = doubles(m * dim), *branch = doubles(m * dim), *narrow = doubles(m * dim), *d_hidden = doubles(m * h);
    double *d_pre = doubles(m * u), *d_qkv = doubles(m * 3 * dim);
    block_values v = block_run(config, params, batch, tokens, x, y);

    memcpy(branch, d, (size_t)(m * dim) * sizeof *d);
    if (config->layer_scale) {
        ref_residual_bwd(m, dim, d, v.mlp_out, params[REF_LS2], branch, grads[REF_LS2]);
    }
    ref_linear_bwd_weight(m, dim, h, branch, v.hidden, grads[REF_FC2_W], grads[REF_FC2_B]);
    ref_linear_bwd_input(m, dim, h, branch, params[REF_FC2_W], false, d_hidden);
    if (config->swiglu) {
        ref_swiglu_bwd(m, h, v.pre, d_hidden, d_pre);
    } else {
        ref_activate_bwd(m * h, config->act, v.pre, d_hidden, d_pre);
    }
    ref_linear_bwd_weight(m, u, dim, d_pre, v.norm2, grads[REF_FC1_W], grads[REF_FC1_B]);
    ref_linear_bwd_input(m, u, dim, d_pre, params[REF_FC1_W], false, narrow);
    ref_layernorm_bwd(m, dim, narrow, v.middle, params[REF_NORM2_W], config->norm_eps, true, d, grads[REF_NORM2_W],
                      grads[REF_NORM2_B]);

    memcpy(branch, d, (size_t)(m * dim) * sizeof *d);
    if (config->layer_scale) {
        ref_residual_bwd(m, dim, d, v.projected, params[REF_LS1], branch, grads[REF_LS1]);
    }
    ref_linear_bwd_weight(m, dim, dim, branch, v.attended, grads[REF_PROJ_W], grads[REF_PROJ_B]);
    ref_linear_bwd_input(m, dim, dim, branch, params[REF_PROJ_W], false, narrow);
    ref_attention_bwd(batch, tokens, config->heads, hd, narrow, v.qkv, 1.0 / sqrt((double)hd), d_qkv);
    ref_linear_bwd_weight(m, 3 * dim, dim, d_qkv, v.norm1, grads[REF_QKV_W], grads[REF_QKV_B]);
    ref_linear_bwd_input(m, 3 * dim, dim, d_qkv, params[REF_QKV_W], false, narrow);
    ref_layernorm_bwd(m, dim, narrow, x, params[REF_NORM1_W], config->norm_eps, true, d, grads[REF_NORM1_W],
                      grads[REF_NORM1_B]);

    block_values_free(&v);
    free(y);
    free(branch);
    free(narrow);
    free(d_hidden);
    free(d_pre);
    free(d_qkv);
}
