/* The weights of resampling that a backend keeps: bounded, replaced, and clean where memory fails. */
#include "tests/support/support.h"

#include "base/alloc.h"
#include "tensor/backend.h"
#include "tensor/ops_resample.h"

#include <math.h>

static const agglo_resample_rule bicubic = {.mode = AGGLO_RESAMPLE_BICUBIC};

/* Resample ones of 5 x 4 to n x (n + 1): all ones again. */
static agglo_status resample_ones(agglo_backend *be, agglo_tensor *x, agglo_tensor *y, int64_t n, agglo_err *err)
{
    agglo_tensor to = agglo_tensor_4d(y->data, AGGLO_F32, 1, n, n + 1, 1);

    agglo_resample(be, &bicubic, x, &to);
    return agglo_backend_check(be, err);
}

static void fill(agglo_tensor *t, float value)
{
    for (int64_t i = 0; i < agglo_tensor_count(t); i++) {
        ((float *)t->data)[i] = value;
    }
}

static void assert_ones(const agglo_tensor *t, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        assert_true(fabsf(((const float *)t->data)[i] - 1.0f) < 1e-6f);
    }
}

/* More shapes than are kept, twice over: the oldest make room, and a shape that has gone is made again. */
static void many_shapes(void **state)
{
    agglo_backend *be;
    agglo_tensor x, y;
    agglo_err err = {0};
    int64_t live = 0;

    (void)state;
    assert_ok(agglo_backend_open(&be, "cpu", 1, &err));
    x = agglo_tensor_4d(agglo_backend_alloc(be, 80, &err), AGGLO_F32, 1, 5, 4, 1);
    y = agglo_tensor_1d(agglo_backend_alloc(be, (size_t)64 * 64 * 4, &err), AGGLO_F32, 64 * 64);
    fill(&x, 1.0f);
    for (int round = 0; round < 2; round++) {
        for (int64_t n = 1; n <= 2 * AGGLO_RESAMPLE_CACHED - 1; n++) {
            fill(&y, NAN);
            assert_ok(resample_ones(be, &x, &y, n, &err));
            assert_ones(&y, n * (n + 1));
        }
        if (round == 0) {
            live = agglo_alloc_counts().n_live;
        }
    }
    assert_int_equal(agglo_alloc_counts().n_live, live);
    agglo_backend_release(be, x.data);
    agglo_backend_release(be, y.data);
    agglo_backend_free(be);
}

/* The n-th allocation fails: one clean error, and the next call works. */
static void failing_memory(void **state)
{
    agglo_err err = {0};
    bool done = false;
    int n = 0;

    (void)state;
    for (; !done; n++) {
        agglo_backend *be;
        agglo_tensor x, y;

        assert_ok(agglo_backend_open(&be, "cpu", 1, &err));
        x = agglo_tensor_4d(agglo_backend_alloc(be, 80, &err), AGGLO_F32, 1, 5, 4, 1);
        y = agglo_tensor_1d(agglo_backend_alloc(be, 400, &err), AGGLO_F32, 100);
        fill(&x, 1.0f);
        agglo_alloc_fail_after(n);
        done = resample_ones(be, &x, &y, 7, &err) == AGGLO_OK;
        agglo_alloc_fail_after(-1);
        if (!done) {
            assert_int_equal(err.status, AGGLO_E_MEMORY);
            agglo_err_clear(&err);
            assert_ok(resample_ones(be, &x, &y, 7, &err));
        }
        assert_ones(&y, 56);
        agglo_backend_release(be, x.data);
        agglo_backend_release(be, y.data);
        agglo_backend_free(be);
    }
    assert_true(n > 8);
}

/* <transpose(y), x> = <y, forward(x)> for every mode, and weights that leave no output out. */
static void transposes(void **state)
{
    agglo_err err = {0};

    (void)state;
    for (int mode = 0; mode < 3; mode++) {
        for (int variant = 0; variant < (mode == 0 ? 1 : 4); variant++) {
            for (int64_t n_in = 1; n_in <= 9; n_in++) {
                for (int64_t n_out = 1; n_out <= 9; n_out++) {
                    agglo_taps_key key = {
                        (agglo_resample_mode)mode, (variant & 1) != 0, (variant & 2) != 0, n_in, n_out, 0.0};
                    agglo_taps taps, back;
                    double forward[81] = {0}, backward[81] = {0};

                    assert_ok(agglo_taps_make(&taps, &key, &err));
                    assert_ok(agglo_taps_transpose(&back, &taps, &err));
                    for (int64_t o = 0; o < n_out; o++) {
                        double sum = 0.0;

                        for (int k = 0; k < taps.count[o]; k++) {
                            assert_true(taps.first[o] >= 0 && taps.first[o] + k < n_in && k < taps.max_taps);
                            forward[o * n_in + taps.first[o] + k] += taps.weight[o * taps.max_taps + k];
                            sum += taps.weight[o * taps.max_taps + k];
                        }
                        assert_true(fabs(sum - 1.0) < 1e-12);
                    }
                    for (int64_t i = 0; i < n_in; i++) {
                        for (int k = 0; k < back.count[i]; k++) {
                            backward[(back.first[i] + k) * n_in + i] += back.weight[i * back.max_taps + k];
                        }
                    }
                    assert_memory_equal(forward, backward, sizeof forward);
                    agglo_taps_clear(&taps);
                    agglo_taps_clear(&back);
                }
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(many_shapes),
        cmocka_unit_test(failing_memory),
        cmocka_unit_test(transposes),
    };

    return test_run("resample", tests);
}
