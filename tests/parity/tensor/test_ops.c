/* Every operator against the double-precision reference: each family of the table (tensor/table) is one test, AGGLO_TEST_FILTER=norm
 * runs one.
 *
 * AGGLO_TEST_DEVICE in the environment names another device than the CPU; then three backends on it must give the same bytes, its
 * results are compared with the CPU backend's too, and the program is skipped where there is no such device. AGGLO_TEST_SLOW, set to
 * anything, runs the rows that take seconds, and those alone.
 */
#include "tests/parity/tensor/op_harness.h"
#include "tests/parity/tensor/test_device.h"

#include <math.h>

#define MAX_FAMILIES 32

static const op_test_family *const families[] = {
    &op_tests_linear, &op_tests_elementwise,    &op_tests_norm,   &op_tests_attention,
    &op_tests_tokens, &op_tests_loss,           &op_tests_optim,  &op_tests_conv,
    &op_tests_maps,   &op_tests_attention_bias, &op_tests_gather, &op_tests_resample,
};

static const char *device; /* as agglo_backend_open takes it */
static op_backends backends;
static unsigned slow; /* AGGLO_USE_SLOW: those rows alone */
static int n_run;     /* cases of all families */

static const op_test *find_test(const char *name)
{
    for (size_t f = 0; f < AGGLO_COUNT(families); f++) {
        for (size_t i = 0; i < families[f]->n; i++) {
            if (strcmp(families[f]->tests[i].name, name) == 0) {
                return &families[f]->tests[i];
            }
        }
    }
    return NULL;
}

static void test_family(void **state)
{
    const agglo_op_family *family = *state;
    bool bf16 = agglo_backend_supports(backends.same[0], AGGLO_BF16);
    int n = 0, n_left_out = 0;

    for (size_t i = 0; i < family->n_cases; i++) {
        const agglo_op_case *c = &family->cases[i];
        const op_test *test = find_test(c->op->name);

        if (test == NULL) {
            fail_msg("%s has no reference here", c->op->name);
        }
        if ((c->use & AGGLO_USE_PARITY) == 0 || (c->use & AGGLO_USE_SLOW) != slow) {
            continue;
        }
        for (unsigned type = AGGLO_OP_F32; type <= AGGLO_OP_BF16; type <<= 1) {
            if ((c->types & type) != 0 && type == AGGLO_OP_BF16 && !bf16) {
                n_left_out++;
            } else if ((c->types & type) != 0) {
                op_case_check(&backends, test, c, type == AGGLO_OP_BF16 ? AGGLO_BF16 : AGGLO_F32, i);
                n++;
            }
        }
    }
    printf("%s: %d cases", family->name, n);
    printf(n_left_out > 0 ? ", %d in BF16 left out, which %s does not compute with\n" : "\n", n_left_out, device);
    n_run += n;
    assert_true(n > 0 || slow != 0); /* not every family has slow ones */
}

/* What is written down is used: a reference without a row in the parity table would check nothing. */
static void test_every_reference_has_a_row(void **state)
{
    size_t n_families;
    const agglo_op_family *const *table = agglo_op_table(&n_families);

    (void)state;
    for (size_t f = 0; f < AGGLO_COUNT(families); f++) {
        for (size_t i = 0; i < families[f]->n; i++) {
            bool found = false;

            for (size_t t = 0; t < n_families; t++) {
                for (size_t j = 0; j < table[t]->n_cases; j++) {
                    const agglo_op_case *c = &table[t]->cases[j];

                    found |= (c->use & AGGLO_USE_PARITY) != 0 && strcmp(c->op->name, families[f]->tests[i].name) == 0;
                }
            }
            if (!found) {
                fail_msg("%s is not in the table", families[f]->tests[i].name);
            }
        }
    }
}

/* What the harness and the bench take for granted of a row, those included that only a bench runs. */
static void check_row(const agglo_op_case *row, agglo_dtype type)
{
    const bool bench = row->use == AGGLO_USE_BENCH;
    agglo_op_case c = agglo_op_case_at(row, 2);
    agglo_op_array a[AGGLO_OP_ARRAYS] = {0};
    char text[256];

    agglo_op_case_text(&c, type, text, sizeof text);
    if (strlen(text) + 1 == sizeof text || c.op->n_arrays > AGGLO_OP_ARRAYS || (c.flags & ~c.op->flags) != 0) {
        fail_msg("%s: too long, too many arrays, or flags that the operator does not know", text);
    }
    if (!bench && (row->use & AGGLO_USE_PARITY) == 0) {
        fail_msg("%s: neither for parity nor for a bench, or for both", text);
    }
    for (int i = 0; i < AGGLO_OP_DIMS; i++) {
        if (row->d[i] < 0 && !bench) {
            fail_msg("%s: an extent for each picture of a batch is for benches", text);
        }
    }
    if (bench != (row->label != NULL)) {
        fail_msg("%s: rows for a bench have a label, others have none", text);
    }
    c.op->shape(&c, type, a);
    for (int i = 0; i < c.op->n_arrays; i++) {
        if (a[i].role == AGGLO_ARRAY_ABSENT) {
            continue;
        }
        if (a[i].rank < 1 || a[i].rank > AGGLO_MAX_RANK || agglo_op_array_count(&a[i]) < 1 ||
            (a[i].role == AGGLO_ARRAY_FIXED && c.op->fill == NULL)) {
            fail_msg("%s: array %d has no extents, or nothing that fills it", text, i);
        }
    }
    if (!(agglo_op_case_bytes(&c, type) > 0.0) || !(c.op->flops(&c) >= 0.0)) {
        fail_msg("%s: moves no bytes", text);
    }
}

static void test_rows_are_sound(void **state)
{
    size_t n_families;
    const agglo_op_family *const *table = agglo_op_table(&n_families);

    (void)state;
    for (size_t f = 0; f < n_families; f++) {
        for (size_t i = 0; i < table[f]->n_cases; i++) {
            const agglo_op_case *row = &table[f]->cases[i];

            assert_true(row->types >= 1 && row->types <= (AGGLO_OP_F32 | AGGLO_OP_BF16));
            for (unsigned type = AGGLO_OP_F32; type <= AGGLO_OP_BF16; type <<= 1) {
                if ((row->types & type) != 0) {
                    check_row(row, type == AGGLO_OP_BF16 ? AGGLO_BF16 : AGGLO_F32);
                }
            }
        }
    }
}

/* The product that benches call the machine's best is one. */
static void test_product_alone(void **state)
{
    enum { M = 37, N = 19, K = 23 };
    static double a[M * K], w[N * K], expected[M * N];
    static float a_f[M * K], w_f[N * K], turned[K * N], got[M * N];
    test_random random = test_random_new(98);
    agglo_err err = {0};

    (void)state;
    test_random_fill(&random, a_f, M * K, 1.0f);
    test_random_fill(&random, w_f, N * K, 1.0f);
    for (int i = 0; i < M * K; i++) {
        a[i] = (double)a_f[i];
    }
    for (int i = 0; i < N * K; i++) {
        w[i] = (double)w_f[i];
        turned[i % K * N + i / K] = w_f[i];
    }
    ref_linear(M, N, K, a, w, NULL, REF_NONE, NULL, expected);
    for (int i = 0; i < 6; i++) { /* every backend, both ways */
        agglo_backend *be = backends.same[i / 2];
        bool transposed = i % 2 == 0;
        agglo_tensor ta = agglo_tensor_2d(agglo_backend_alloc(be, sizeof a_f, &err), AGGLO_F32, M, K);
        agglo_tensor tb = agglo_tensor_2d(agglo_backend_alloc(be, sizeof w_f, &err), AGGLO_F32, transposed ? N : K,
                                          transposed ? K : N);
        agglo_tensor tc = agglo_tensor_2d(agglo_backend_alloc(be, sizeof got, &err), AGGLO_F32, M, N);

        agglo_upload(be, ta.data, a_f, sizeof a_f);
        agglo_upload(be, tb.data, transposed ? w_f : turned, sizeof w_f);
        agglo_backend_product(be, &ta, &tb, transposed, &tc);
        agglo_download(be, got, tc.data, sizeof got);
        assert_ok(agglo_backend_check(be, &err));
        for (int j = 0; j < M * N; j++) {
            assert_true(fabs((double)got[j] - expected[j]) < 1e-4);
        }
        agglo_backend_release(be, ta.data);
        agglo_backend_release(be, tb.data);
        agglo_backend_release(be, tc.data);
    }
}

/* Vectors at and below the norm at which the cosine clamps. Gradients there are some 1e8 times those of ordinary rows, so that each
 * row is compared by itself. */
static void test_small_norms(void **state)
{
    enum { N = 6, C = 40 };
    static const double pred_norm[N] = {0.0, 1.0, 3e-9, 1.0, 0.0, 4e-8},
                        target_norm[N] = {1.0, 0.0, 1.0, 3e-9, 0.0, 4e-8};
    const agglo_loss_config *config = &agglo_table_loss_config;
    ref_loss_config ref_config = {(double)config->lambda, (double)config->alpha, (double)config->beta,
                                  (double)config->threshold};
    double pred[N * C], target[N * C], d_ref[N * C], sums_ref[4] = {0};
    float pred_f[N * C], target_f[N * C], d_got[N * C], sums[4] = {0};
    test_random random = test_random_new(99);
    agglo_backend *be = backends.same[0];
    agglo_tensor t[4];
    agglo_err err = {0};

    (void)state;
    for (int i = 0; i < N; i++) {
        for (int j = i * C; j < (i + 1) * C; j++) {
            pred_f[j] = (float)pred_norm[i] * test_random_normal(&random) / sqrtf((float)C);
            target_f[j] = (float)target_norm[i] * (0.5f * pred_f[j] + test_random_normal(&random) / sqrtf((float)C));
            pred[j] = (double)pred_f[j];
            target[j] = (double)target_f[j];
        }
    }
    ref_distill_loss(&ref_config, 1, N, C, pred, target, NULL, 1.0, d_ref, sums_ref);
    t[0] = agglo_tensor_3d(agglo_backend_alloc(be, sizeof pred_f, &err), AGGLO_F32, 1, N, C);
    t[1] = agglo_tensor_3d(agglo_backend_alloc(be, sizeof target_f, &err), AGGLO_F32, 1, N, C);
    t[2] = agglo_tensor_3d(agglo_backend_alloc(be, sizeof d_got, &err), AGGLO_F32, 1, N, C);
    t[3] = agglo_tensor_1d(agglo_backend_alloc(be, sizeof sums, &err), AGGLO_F32, 4);
    agglo_upload(be, t[0].data, pred_f, sizeof pred_f);
    agglo_upload(be, t[1].data, target_f, sizeof target_f);
    agglo_distill_loss(be, config, &t[0], &t[1], NULL, 1.0f, &t[2], &t[3]);
    agglo_download(be, d_got, t[2].data, sizeof d_got);
    agglo_download(be, sums, t[3].data, sizeof sums);
    assert_ok(agglo_backend_check(be, &err));
    for (int i = 0; i < 4; i++) {
        assert_true(fabs((double)sums[i] - sums_ref[i]) < 1e-5);
    }
    for (int i = 0; i < N; i++) {
        double largest = 0.0, worst = 0.0;

        for (int j = i * C; j < (i + 1) * C; j++) {
            assert_true(isfinite(d_got[j]));
            largest = fmax(largest, fabs(d_ref[j]));
            worst = fmax(worst, fabs((double)d_got[j] - d_ref[j]));
        }
        if (worst > 1e-4 * largest) {
            fail_msg("row %d (norms %g, %g): the gradient is off by %g of %g", i, pred_norm[i], target_norm[i], worst,
                     largest);
        }
    }
    for (int i = 0; i < 4; i++) {
        agglo_backend_release(be, t[i].data);
    }
}

static int open_backends(void **state)
{
    (void)state;
    op_backends_open(&backends, device);
    return 0;
}

static int close_backends(void **state)
{
    (void)state;
    op_backends_close(&backends);
    return 0;
}

int main(void)
{
    enum { N_OTHERS = 4 };
    struct CMUnitTest tests[MAX_FAMILIES + N_OTHERS] = {
        cmocka_unit_test(test_rows_are_sound),
        cmocka_unit_test(test_product_alone),
        cmocka_unit_test(test_every_reference_has_a_row),
        cmocka_unit_test(test_small_norms),
    };
    size_t n_families;
    const agglo_op_family *const *table = agglo_op_table(&n_families);
    int n_failed;

    AGGLO_ASSERT(n_families <= MAX_FAMILIES);
    for (size_t i = 0; i < n_families; i++) {
        tests[i + N_OTHERS].name = table[i]->name;
        tests[i + N_OTHERS].test_func = test_family;
        tests[i + N_OTHERS].initial_state = (void *)(uintptr_t)table[i];
    }
    device = test_device();
    slow = getenv("AGGLO_TEST_SLOW") != NULL ? AGGLO_USE_SLOW : 0;
    test_filter();
    n_failed =
        _cmocka_run_group_tests("parity_tensor_ops", tests, n_families + N_OTHERS, open_backends, close_backends);
    if (slow != 0 && n_run == 0) {
        fprintf(stderr, "parity_tensor_ops: no slow case was run\n");
        n_failed++;
    }
    return test_finish("parity_tensor_ops", n_failed);
}
