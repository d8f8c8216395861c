/* Step plans: consecutive steps walk the order without gap or overlap, across epochs. */
#include "schedule/step.h"
#include "tests/support/support.h"

static void test_slots_follow_the_order(void **state)
{
    const uint32_t counts[] = {7, 9, 4};
    agglo_schedule schedule = {.curve = {AGGLO_CURVE_COSINE, 1e-2, 0, 10},
                               .batch = 6,
                               .n_teachers = 2,
                               .summary_weight = {1, 0.1},
                               .spatial_weight = {2, 3}};
    agglo_err err = {0};
    agglo_order *reference = NULL;
    agglo_plan_sample samples[6];
    agglo_step_plan plan;
    int seen[2][20] = {{0}};

    (void)state;
    assert_ok(agglo_order_new(&schedule.order, counts, 3, 3, 2, &err));
    assert_ok(agglo_order_new(&reference, counts, 3, 3, 2, &err));
    for (int64_t t = 0; t < 6; t++) {
        agglo_schedule_step(&schedule, t, samples, &plan);
        assert_int_equal(plan.step, t);
        assert_int_equal(plan.n_samples, 6);
        assert_ptr_equal(plan.samples, samples);
        assert_true(plan.lr == agglo_curve_at(&schedule.curve, t));
        assert_true(plan.summary_weight[1] == 0.1 && plan.spatial_weight[0] == 2 && plan.spatial_weight[1] == 3);
        for (uint64_t i = 0; i < 6; i++) {
            agglo_place place = agglo_order_at(reference, (uint64_t)t * 6 + i);
            uint32_t starts[] = {0, 7, 16};

            assert_int_equal(samples[i].index, (uint64_t)t * 6 + i);
            assert_int_equal(samples[i].epoch, samples[i].index / 20);
            assert_int_equal(samples[i].shard, place.shard);
            assert_int_equal(samples[i].ordinal, place.ordinal);
            assert_int_equal(samples[i].view, AGGLO_VIEW_OF_EPOCH);
            seen[samples[i].epoch][starts[samples[i].shard] + samples[i].ordinal]++;
        }
    }
    for (int i = 0; i < 20; i++) {
        assert_int_equal(seen[0][i], 1);
        assert_true(seen[1][i] <= 1);
    }
    agglo_order_free(schedule.order);
    agglo_order_free(reference);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_slots_follow_the_order)};

    return test_run("step", tests);
}
