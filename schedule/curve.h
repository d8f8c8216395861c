/* Learning-rate curves: a pure function of the step. */
#ifndef AGGLO_SCHEDULE_CURVE_H
#define AGGLO_SCHEDULE_CURVE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum agglo_curve_kind {
    AGGLO_CURVE_COSINE, /* lr(t) = base / 2 * (1 + cos(pi t / T)), as timm's CosineLRScheduler with lr_min 0 (SGDR without restarts) */
    AGGLO_CURVE_CONSTANT, /* base */
} agglo_curve_kind;

typedef struct agglo_curve {
    agglo_curve_kind kind;
    double base;    /* learning rate */
    int64_t warmup; /* steps: in step t < warmup the rate is base * (t + 1) / warmup */
    int64_t steps;  /* T */
} agglo_curve;

/* The rate of step t in [0, steps). */
double agglo_curve_at(const agglo_curve *curve, int64_t t);

#ifdef __cplusplus
}
#endif
#endif
