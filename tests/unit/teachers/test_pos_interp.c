/* The position resamplers against values published with PyTorch's, and the properties that follow from their definitions. */
#include <math.h>

#include "teachers/pos_interp.h"
#include "tests/support/support.h"

/* v[i] = i^2 / 100 along one axis, constant along the other: 37 -> 16. */
static void check_axis(agglo_pos_rule rule, double at_0, double at_7, double at_15, double digits)
{
    agglo_err err = {0};
    float *table = (float *)agglo_alloc(37 * 37, sizeof *table, &err),
          *out = (float *)agglo_alloc(16 * 16, sizeof *out, &err);

    for (int across = 0; across < 2; across++) {
        for (int y = 0; y < 37; y++) {
            for (int x = 0; x < 37; x++) {
                table[y * 37 + x] = (float)((across ? x * x : y * y) / 100.0);
            }
        }
        assert_ok(agglo_pos_resample(rule, table, 37, 37, 1, 16, 16, out, &err));
        for (int k = 0; k < 16; k++) {
            const float *line = out + (across ? k * 16 : k);
            int step = across ? 1 : 16;

            assert_true(fabs((double)line[0] - at_0) < digits * at_0);
            assert_true(fabs((double)line[7 * step] - at_7) < digits * at_7);
            assert_true(fabs((double)line[15 * step] - at_15) < digits * at_15);
        }
    }
    agglo_free(table);
    agglo_free(out);
}

static void published_values(void **state)
{
    (void)state;
    check_axis(AGGLO_POS_OFFSET, 0.003334, 2.7848, 12.370, 2e-4);
    check_axis(AGGLO_POS_PLAIN, 0.0034078, 2.8215, 12.558, 2e-4);
    check_axis(AGGLO_POS_ANTIALIAS, 0.006664, 2.8363, 12.457, 2e-4);
}

/* A constant stays constant (weights sum to one), also where taps run over the edges, and channels do not mix. */
static void constants_stay(void **state)
{
    static const agglo_pos_rule rules[] = {AGGLO_POS_PLAIN, AGGLO_POS_OFFSET, AGGLO_POS_ANTIALIAS};
    float table[5 * 3 * 2], out[11 * 7 * 2];
    agglo_err err = {0};

    (void)state;
    for (int i = 0; i < 15; i++) {
        table[2 * i] = 3.0f;
        table[2 * i + 1] = -0.25f;
    }
    for (size_t r = 0; r < AGGLO_COUNT(rules); r++) {
        for (int h = 1; h <= 11; h++) {
            for (int w = 1; w <= 7; w++) {
                assert_ok(agglo_pos_resample(rules[r], table, 5, 3, 2, h, w, out, &err));
                for (int i = 0; i < h * w; i++) {
                    assert_true(fabsf(out[2 * i] - 3.0f) < 1e-5f && fabsf(out[2 * i + 1] + 0.25f) < 1e-5f);
                }
            }
        }
    }
}

static void same_size_is_a_copy(void **state)
{
    test_random random = test_random_new(1);
    float table[4 * 6 * 3], out[4 * 6 * 3];
    agglo_err err = {0};

    (void)state;
    test_random_fill(&random, table, AGGLO_COUNT(table), 1.0f);
    assert_ok(agglo_pos_resample(AGGLO_POS_OFFSET, table, 4, 6, 3, 4, 6, out, &err));
    assert_memory_equal(table, out, sizeof table);
}

static void failing_memory(void **state)
{
    float table[9] = {0}, out[16];
    agglo_err err = {0};
    int n = 0;

    (void)state;
    for (;; n++) {
        agglo_alloc_fail_after(n);
        if (agglo_pos_resample(AGGLO_POS_ANTIALIAS, table, 3, 3, 1, 4, 4, out, &err) == AGGLO_OK) {
            break;
        }
        assert_int_equal(err.status, AGGLO_E_MEMORY);
        agglo_err_clear(&err);
    }
    agglo_alloc_fail_after(-1);
    assert_true(n > 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(published_values),
        cmocka_unit_test(constants_stay),
        cmocka_unit_test(same_size_is_a_copy),
        cmocka_unit_test(failing_memory),
    };

    return test_run("pos_interp", tests);
}
