/* The optimiser's arithmetic, the same on host and device (formulas: tensor/ops_optim.h). */
#ifndef AGGLO_TENSOR_OPTIM_INLINE_H
#define AGGLO_TENSOR_OPTIM_INLINE_H

#include <math.h>

#include "tensor/ops_optim.h"
#include "tensor/rng.h"

/* AdamW's step with what is the same for all elements of a tensor. */
typedef struct agglo_adamw_step {
    float beta1, beta2, eps, grad_scale;
    float keep;    /* 1 - lr wd */
    float size;    /* lr / (1 - beta1^t) */
    float inverse; /* 1 / sqrt(1 - beta2^t) */
} agglo_adamw_step;

static AGGLO_HD inline float agglo_adamw_keep(float lr, float weight_decay)
{
    return 1.0f - lr * weight_decay;
}

/* On the host, in double. */
static inline agglo_adamw_step agglo_adamw_step_of(const agglo_adamw_config *config)
{
    double t = (double)config->step;
    agglo_adamw_step step;

    step.beta1 = config->beta1;
    step.beta2 = config->beta2;
    step.eps = config->eps;
    step.grad_scale = config->grad_scale;
    step.keep = agglo_adamw_keep(config->lr, config->weight_decay);
    step.size = (float)((double)config->lr / (1.0 - pow((double)config->beta1, t)));
    step.inverse = (float)(1.0 / sqrt(1.0 - pow((double)config->beta2, t)));
    return step;
}

/* `keep` is the tensor's, and `grad_scale` clipping's, to set. */
static AGGLO_HD inline agglo_adamw_step agglo_adamw_step_from(const agglo_adamw_numbers *numbers)
{
    agglo_adamw_step step;

    step.beta1 = numbers->beta1;
    step.beta2 = numbers->beta2;
    step.eps = numbers->eps;
    step.grad_scale = numbers->grad_scale;
    step.keep = 1.0f;
    step.size = numbers->size;
    step.inverse = numbers->inverse;
    return step;
}

/* The new value of a parameter p whose gradient, unscaled, is g; m and v are updated. */
static AGGLO_HD inline float agglo_adamw_element(agglo_adamw_step step, float p, float g, float *m, float *v)
{
    float d = g * step.grad_scale;
    float m1 = step.beta1 * *m + (1.0f - step.beta1) * d, v1 = step.beta2 * *v + (1.0f - step.beta2) * d * d;

    *m = m1;
    *v = v1;
    return p * step.keep - step.size * m1 / (sqrtf(v1) * step.inverse + step.eps);
}

/* What clipping multiplies gradients with, given the norm of the unscaled gradient. */
static AGGLO_HD inline float agglo_clip_scale(float grad_scale, float max_norm, double norm)
{
    double scaled = norm * (double)(grad_scale < 0.0f ? -grad_scale : grad_scale);

    if (max_norm > 0.0f && scaled > (double)max_norm) {
        return (float)((double)grad_scale * (double)max_norm / scaled);
    }
    return grad_scale;
}

#endif
