/* Learning-rate curves; see curve.h. */
#include "schedule/curve.h"

#include <math.h>

double agglo_curve_at(const agglo_curve *curve, int64_t t)
{
    const double pi = 3.14159265358979323846;

    if (t < curve->warmup) {
        return curve->base * (double)(t + 1) / (double)curve->warmup;
    }
    if (curve->kind == AGGLO_CURVE_CONSTANT || curve->steps == 0) {
        return curve->base;
    }
    return 0.5 * curve->base * (1.0 + cos(pi * (double)t / (double)curve->steps));
}
