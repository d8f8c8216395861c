/* The order of samples: every sample exactly once per epoch, windows respected, positions independent of each other. */
#include "schedule/order.h"
#include "tests/support/support.h"

static void every_sample_once(const uint32_t *counts, uint32_t n_shards, uint32_t window, uint64_t seed)
{
    agglo_err err = {0};
    agglo_order *order = NULL;
    uint64_t n, starts[64] = {0};
    uint8_t *seen;

    assert_ok(agglo_order_new(&order, counts, n_shards, seed, window, &err));
    n = agglo_order_samples(order);
    for (uint32_t i = 0; i < n_shards; i++) {
        starts[i + 1] = starts[i] + counts[i];
    }
    assert_int_equal(n, starts[n_shards]);
    seen = calloc(n, 1);
    assert_non_null(seen);
    for (uint64_t epoch = 0; epoch < 3; epoch++) {
        memset(seen, 0, n);
        for (uint64_t i = 0; i < n; i++) {
            agglo_place place = agglo_order_at(order, epoch * n + i);

            assert_int_equal(place.epoch, epoch);
            assert_true(place.shard < n_shards);
            assert_true(place.ordinal < counts[place.shard]);
            assert_int_equal(seen[starts[place.shard] + place.ordinal]++, 0);
        }
    }
    free(seen);
    agglo_order_free(order);
}

static void test_complete(void **state)
{
    const uint32_t even[] = {64, 64, 64, 64, 64}, odd[] = {1, 0, 97, 3, 0, 1000, 2, 31};
    const uint32_t one[] = {1}, single[] = {777};

    (void)state;
    for (uint32_t window = 1; window < 10; window += 2) {
        every_sample_once(even, 5, window, window);
        every_sample_once(odd, 8, window, 99);
    }
    every_sample_once(one, 1, 1, 0);
    every_sample_once(single, 1, 4, 5);
}

/* With a window of K shards, no more than K shards are met between two window borders. */
static void test_windows(void **state)
{
    agglo_err err = {0};
    agglo_order *order = NULL;
    uint32_t counts[12];

    (void)state;
    for (int i = 0; i < 12; i++) {
        counts[i] = 50;
    }
    assert_ok(agglo_order_new(&order, counts, 12, 7, 3, &err));
    for (int window = 0; window < 4; window++) {
        int met[12] = {0}, n_met = 0;

        for (int i = 0; i < 150; i++) {
            met[agglo_order_at(order, (uint64_t)(window * 150 + i)).shard] = 1;
        }
        for (int i = 0; i < 12; i++) {
            n_met += met[i];
        }
        assert_int_equal(n_met, 3);
    }
    agglo_order_free(order);
}

/* Any position gives the same place whatever was asked before; epochs and seeds differ; samples mix across a window. */
static void test_random_access(void **state)
{
    const uint32_t counts[] = {100, 100, 100, 100};
    agglo_err err = {0};
    agglo_order *a = NULL, *b = NULL, *other = NULL;
    int same_epoch = 0, same_seed = 0, mixed = 0;

    (void)state;
    assert_ok(agglo_order_new(&a, counts, 4, 1, 4, &err));
    assert_ok(agglo_order_new(&b, counts, 4, 1, 4, &err));
    assert_ok(agglo_order_new(&other, counts, 4, 2, 4, &err));
    for (uint64_t i = 0; i < 1200; i++) {
        agglo_place x = agglo_order_at(a, i), y = agglo_order_at(b, 1199 - i);

        y = agglo_order_at(b, i);
        assert_int_equal(x.shard, y.shard);
        assert_int_equal(x.ordinal, y.ordinal);
    }
    for (uint64_t i = 0; i < 400; i++) {
        agglo_place x = agglo_order_at(a, i), next = agglo_order_at(a, 400 + i), z = agglo_order_at(other, i);

        same_epoch += x.shard == next.shard && x.ordinal == next.ordinal;
        same_seed += x.shard == z.shard && x.ordinal == z.ordinal;
        mixed += i > 0 && x.shard != agglo_order_at(a, i - 1).shard;
    }
    assert_true(same_epoch < 12 && same_seed < 12);
    assert_true(mixed > 240);
    agglo_order_free(a);
    agglo_order_free(b);
    agglo_order_free(other);
}

/* Pinned, so that a change of the order (which would break every resumed run) is seen. */
static void test_golden(void **state)
{
    static const uint32_t golden[8][2] = {{0, 0}, {0, 4}, {2, 1}, {0, 1}, {2, 0}, {0, 2}, {0, 3}, {2, 2}};
    const uint32_t counts[] = {5, 7, 3};
    agglo_err err = {0};
    agglo_order *order = NULL;

    (void)state;
    assert_ok(agglo_order_new(&order, counts, 3, 42, 2, &err));
    for (uint64_t i = 0; i < 8; i++) {
        agglo_place place = agglo_order_at(order, i);

        assert_int_equal(place.shard, golden[i][0]);
        assert_int_equal(place.ordinal, golden[i][1]);
    }
    agglo_order_free(order);
}

static void test_no_sample(void **state)
{
    const uint32_t counts[] = {0, 0};
    agglo_err err = {0};
    agglo_order *order = NULL;

    (void)state;
    assert_fails(agglo_order_new(&order, counts, 2, 0, 1, &err), AGGLO_E_DATA, "no sample");
    assert_null(order);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_complete), cmocka_unit_test(test_windows),
                                       cmocka_unit_test(test_random_access), cmocka_unit_test(test_golden),
                                       cmocka_unit_test(test_no_sample)};

    return test_run("order", tests);
}
