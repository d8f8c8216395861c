/* Learning-rate curves against their formulas. */
#include <math.h>

#include "schedule/curve.h"
#include "tests/support/support.h"

static void close_to(double a, double b)
{
    assert_true(fabs(a - b) <= 1e-15 * (1.0 + fabs(b)));
}

static void test_cosine(void **state)
{
    agglo_curve curve = {AGGLO_CURVE_COSINE, 1e-3, 0, 1000};

    (void)state;
    close_to(agglo_curve_at(&curve, 0), 1e-3);
    close_to(agglo_curve_at(&curve, 500), 0.5e-3);
    close_to(agglo_curve_at(&curve, 250), 0.5e-3 * (1.0 + sqrt(0.5)));
    assert_true(agglo_curve_at(&curve, 999) > 0.0 && agglo_curve_at(&curve, 999) < 1e-8);
    for (int t = 1; t < 1000; t++) {
        assert_true(agglo_curve_at(&curve, t) < agglo_curve_at(&curve, t - 1));
    }
}

static void test_warmup(void **state)
{
    agglo_curve curve = {AGGLO_CURVE_COSINE, 2.0, 4, 100};

    (void)state;
    close_to(agglo_curve_at(&curve, 0), 0.5);
    close_to(agglo_curve_at(&curve, 3), 2.0);
    close_to(agglo_curve_at(&curve, 50), 1.0);
    curve.kind = AGGLO_CURVE_CONSTANT;
    close_to(agglo_curve_at(&curve, 0), 0.5);
    close_to(agglo_curve_at(&curve, 99), 2.0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_cosine), cmocka_unit_test(test_warmup)};

    return test_run("curve", tests);
}
