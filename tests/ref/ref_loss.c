#include "tests/ref/ref_loss.h"

#include <math.h>
#include <stddef.h>

void ref_target_decode(const ref_target *target, int64_t m, double *t)
{
    int64_t k = target->k, c = target->c;

    for (int64_t i = 0; i < m; i++) {
        for (int64_t j = 0; j < c; j++) {
            double sum = 0.0;

            for (int64_t l = 0; l < k; l++) {
                double u = target->q[i * k + l], w = 0.0;

                u *= target->token_scale == NULL ? 1.0 : target->token_scale[i];
                u *= target->channel_scale == NULL ? 1.0 : target->channel_scale[l];
                u -= target->centre == NULL ? 0.0 : target->centre[l];
                if (target->matrix != NULL) {
                    w = target->matrix[l * c + j];
                } else if (l == j) {
                    w = target->diagonal == NULL ? 1.0 : target->diagonal[j];
                } else {
                    continue;
                }
                sum += u * w;
            }
            t[i * c + j] = target->scale * sum + (target->offset == NULL ? 0.0 : target->offset[j]);
        }
    }
}

double ref_target_loss(const ref_target_loss_config *config, int64_t b, int64_t n, int64_t c, const double *pred,
                       const double *target, const double *valid, const double *sample_weight,
                       const double *token_weight, double grad_scale, double *d_pred, double *const values[3],
                       double *sums)
{
    double weights = 0.0, total = 0.0, all[6] = {0}, t = config->threshold;

    for (int64_t i = 0; i < b * n; i++) {
        weights += (valid == NULL ? 1.0 : valid[i / n]) * (token_weight == NULL ? 1.0 : token_weight[i]);
    }
    for (int64_t i = 0; i < b * n; i++) {
        const double *p = pred + i * c, *q = target + i * c;
        double w = (valid == NULL ? 1.0 : valid[i / n]) * (token_weight == NULL ? 1.0 : token_weight[i]);
        double s = sample_weight == NULL ? 1.0 : sample_weight[i / n];
        double dot = 0.0, pp = 0.0, qq = 0.0, np, nq, cosine, l1 = 0.0, sq = 0.0;

        if (w == 0.0) {
            for (int v = 0; values != NULL && v < 3; v++) {
                values[v][i] = 0.0;
            }
            for (int64_t j = 0; d_pred != NULL && j < c; j++) {
                d_pred[i * c + j] = 0.0;
            }
            continue;
        }
        for (int64_t j = 0; j < c; j++) {
            double d = fabs(p[j] - q[j]);

            dot += p[j] * q[j];
            pp += p[j] * p[j];
            qq += q[j] * q[j];
            l1 += (d < t ? d * d / (2.0 * t) : d - t / 2.0) / (double)c;
            sq += d * d / (double)c;
        }
        np = fmax(sqrt(pp), 1e-8);
        nq = fmax(sqrt(qq), 1e-8);
        cosine = dot / (np * nq);
        if (values != NULL) {
            values[0][i] = cosine;
            values[1][i] = l1;
            values[2][i] = sq;
        }
        all[0] += w * cosine;
        all[1] += w * l1;
        all[4] += w * sq;
        total += w * s * (config->alpha * (1.0 - cosine) + config->beta * l1 + config->squared * sq);
        for (int64_t j = 0; d_pred != NULL && j < c; j++) {
            double d = p[j] - q[j], d_cos = q[j] / (np * nq), d_l1 = fabs(d) < t ? d / t : (d > 0) - (d < 0);

            if (sqrt(pp) >= 1e-8) {
                d_cos -= cosine * p[j] / pp;
            }
            d_pred[i * c + j] =
                grad_scale * config->lambda * w * s / weights *
                (-config->alpha * d_cos + (config->beta * d_l1 + config->squared * 2.0 * d) / (double)c);
        }
    }
    all[2] = weights;
    for (int64_t i = 0; i < b; i++) {
        all[3] += valid == NULL || valid[i] != 0.0 ? 1.0 : 0.0;
    }
    all[5] = weights > 0.0 ? config->lambda * total / weights : 0.0;
    for (int i = 0; sums != NULL && i < 6; i++) {
        sums[i] += all[i];
    }
    return all[5];
}
