/* k-NN against hand-made cases and an obvious double-precision version. */
#include <math.h>

#include "student/eval_knn.h"
#include "tests/support/support.h"

static agglo_backend *backend;

static int64_t classify(const float *bank, const int64_t *labels, int64_t n, const float *query, int64_t dim, int k)
{
    agglo_knn_config config = agglo_knn_config_default();
    int64_t predicted = -1;
    agglo_err err = {0};

    config.k = k;
    assert_ok(agglo_eval_knn(backend, &config, bank, labels, n, query, 1, dim, &predicted, &err));
    return predicted;
}

static void test_nearest(void **state)
{
    /* lengths do not matter: the first row is long but points elsewhere */
    const float bank[] = {100, 0, 0, 0, 0.1f, 0, 0, 0, 3};
    const int64_t labels[] = {4, 9, 2};
    const float queries[] = {5, 1, 0, 0, 2, 1, 0.1f, 0.1f, 0.5f};

    (void)state;
    assert_int_equal(classify(bank, labels, 3, queries, 3, 1), 4);
    assert_int_equal(classify(bank, labels, 3, queries + 3, 3, 1), 9);
    assert_int_equal(classify(bank, labels, 3, queries + 6, 3, 1), 2);
    assert_int_equal(classify(bank, labels, 3, queries, 3, 20), 4); /* k beyond the bank */
}

static void test_votes(void **state)
{
    /* similarities 1, 0.98, 0.98: exp(0.02 / 0.07) = 1.33, so two of class 1 outvote one of class 7 at k = 3, not at k
     * = 2 */
    const float c = 0.98f, s = 0.19899749f;
    const float bank[] = {1, 0, c, s, c, -s};
    const int64_t labels[] = {7, 1, 1};
    const float query[] = {2, 0};

    (void)state;
    assert_int_equal(classify(bank, labels, 3, query, 2, 3), 1);
    assert_int_equal(classify(bank, labels, 3, query, 2, 2), 7);
}

static void test_ties(void **state)
{
    /* equal similarities: the lowest rows are the neighbours; equal votes: the lowest class wins */
    const float bank[] = {1, 0, 1, 0, 1, 0, 1, 0, 0, 1};
    const int64_t labels[] = {5, 3, 3, 5, 0}, other[] = {5, 3, 5, 3, 0};
    const float query[] = {1, 0};

    (void)state;
    assert_int_equal(classify(bank, labels, 5, query, 2, 1), 5);
    assert_int_equal(classify(bank, labels, 5, query, 2, 2), 3);
    assert_int_equal(classify(bank, labels, 5, query, 2, 3), 3);
    assert_int_equal(classify(bank, other, 5, query, 2, 3), 5);
    assert_int_equal(classify(bank, labels, 5, query, 2, 4), 3);
}

static void test_refused(void **state)
{
    agglo_knn_config config = agglo_knn_config_default();
    float bank[] = {1, 0, 0, 1};
    int64_t labels[] = {0, -1}, predicted;
    agglo_err err = {0};

    (void)state;
    assert_fails(agglo_eval_knn(backend, &config, bank, labels, 2, bank, 1, 2, &predicted, &err), AGGLO_E_DATA,
                 "bank row 1");
    assert_fails(agglo_eval_knn(backend, &config, bank, labels, 0, bank, 1, 2, &predicted, &err), AGGLO_E_DATA,
                 "empty");
    labels[1] = 1;
    bank[2] = (float)NAN;
    assert_fails(agglo_eval_knn(backend, &config, bank, labels, 2, bank, 1, 2, &predicted, &err), AGGLO_E_DATA,
                 "bank row 1");
    bank[2] = 0;
    /* a row of zeros is like nothing */
    bank[0] = 0;
    assert_ok(agglo_eval_knn(backend, &config, bank, labels, 2, bank + 2, 1, 2, &predicted, &err));
    assert_int_equal(predicted, 1);
}

/* The obvious way, in double over the same normalised floats. */
static int64_t reference(const float *bank, const int64_t *labels, int64_t n, const float *query, int64_t dim, int k,
                         int n_classes)
{
    double votes[64] = {0}, best_vote = -1.0;
    bool used[4096] = {false};
    int64_t winner = -1;

    for (int i = 0; i < k; i++) {
        double best = -2.0;
        int64_t at = -1;

        for (int64_t r = 0; r < n; r++) {
            double dot = 0, a = 0, b = 0;

            for (int64_t c = 0; c < dim; c++) {
                dot += (double)bank[r * dim + c] * (double)query[c];
                a += (double)bank[r * dim + c] * (double)bank[r * dim + c];
                b += (double)query[c] * (double)query[c];
            }
            dot /= sqrt(a) * sqrt(b);
            if (!used[r] && dot > best) {
                best = dot;
                at = r;
            }
        }
        used[at] = true;
        votes[labels[at]] += exp(best / 0.07);
    }
    for (int i = 0; i < n_classes; i++) {
        if (votes[i] > best_vote) {
            best_vote = votes[i];
            winner = i;
        }
    }
    return winner;
}

/* More rows than one block of the bank, classes that overlap. */
static void test_against_reference(void **state)
{
    enum { N = 2500, Q = 40, DIM = 9, CLASSES = 12 };
    test_random random = test_random_new(11);
    agglo_err err = {0};
    float *bank = agglo_alloc(N * DIM, sizeof *bank, &err), *queries = agglo_alloc(Q * DIM, sizeof *queries, &err);
    int64_t *labels = agglo_alloc(N, sizeof *labels, &err), predicted[Q];
    agglo_knn_config config = agglo_knn_config_default();

    (void)state;
    test_random_fill(&random, bank, N * DIM, 1.0f);
    test_random_fill(&random, queries, Q * DIM, 1.0f);
    for (int i = 0; i < N; i++) {
        labels[i] = test_random_u32(&random) % CLASSES;
        bank[i * DIM + labels[i] % DIM] += 1.5f;
    }
    assert_ok(agglo_eval_knn(backend, &config, bank, labels, N, queries, Q, DIM, predicted, &err));
    for (int i = 0; i < Q; i++) {
        assert_int_equal(predicted[i], reference(bank, labels, N, queries + i * DIM, DIM, config.k, CLASSES));
    }
    agglo_free(labels);
    agglo_free(queries);
    agglo_free(bank);
}

static int setup(void **state)
{
    agglo_err err = {0};

    (void)state;
    return agglo_backend_cpu_new(&backend, 1, &err) == AGGLO_OK ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    agglo_backend_free(backend);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_nearest, setup, teardown),
        cmocka_unit_test_setup_teardown(test_votes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_ties, setup, teardown),
        cmocka_unit_test_setup_teardown(test_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_against_reference, setup, teardown),
    };

    return test_run("eval knn", tests);
}
