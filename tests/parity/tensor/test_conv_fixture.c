/* The operators over feature maps against PyTorch's modules (script/fixtures/make_conv_fixtures.py), with weights as a checkpoint has them.
 *
 * Tolerances, relative to the largest magnitude of a tensor: those of the parity table, 1e-5 forward and 1e-4 backward. Where a batch norm's mean
 * is 300 times its spread, float32 inputs of that size leave 1e-4 of their spread (2^-24 300 and a few steps).
 */
#include "base/safetensors.h"
#include "tensor/ops_conv.h"
#include "tests/parity/tensor/test_device.h"

#include <math.h>

#define FORWARD  1e-5
#define BACKWARD 1e-4
#define MAX_LIVE 32

static const char *device;
static agglo_backend *be;
static agglo_safetensors *st;
static agglo_err err;
static void *live[MAX_LIVE]; /* device memory of the running test */
static int n_live;

static const agglo_st_tensor *find(const char *name, const char *what)
{
    char full[96];

    snprintf(full, sizeof full, "%s.%s", name, what);
    return agglo_safetensors_find(st, full);
}

static const agglo_st_tensor *get(const char *name, const char *what)
{
    const agglo_st_tensor *t = find(name, what);

    if (t == NULL) {
        fail_msg("the fixture has no %s.%s", name, what);
    }
    return t;
}

static int value(const char *name, int i)
{
    int32_t v;

    assert_true(i < get(name, "config")->n_elements);
    memcpy(&v, get(name, "config")->data + (size_t)i * sizeof v, sizeof v);
    return v;
}

/* Zeroed, freed at the test's end. */
static agglo_tensor blank(agglo_dtype dtype, int rank, const int64_t *shape)
{
    agglo_tensor t = agglo_tensor_of(NULL, dtype, rank, shape);

    assert_true(n_live < MAX_LIVE);
    t.data = agglo_backend_alloc(be, agglo_tensor_bytes(&t), &err);
    assert_non_null(t.data);
    live[n_live++] = t.data;
    return t;
}

static agglo_tensor like(const char *name, const char *what)
{
    const agglo_st_tensor *t = get(name, what);

    return blank(t->dtype, t->rank, t->shape);
}

static agglo_tensor load(const char *name, const char *what)
{
    agglo_tensor t = like(name, what);

    agglo_upload(be, t.data, get(name, what)->data, get(name, what)->n_bytes);
    return t;
}

/* Weights [a,b,kh,kw] as the operators have them. */
static agglo_tensor load_weight(const char *name)
{
    const agglo_st_tensor *w = get(name, "w");
    const int64_t *s = w->shape, packed[4] = {s[0], s[2], s[3], s[1]};
    agglo_tensor t = blank(AGGLO_F32, 4, packed);
    void *host = malloc(w->n_bytes);

    assert_non_null(host);
    agglo_conv_weight_pack(host, w->data, sizeof(float), s[0], s[1], s[2], s[3]);
    agglo_upload(be, t.data, host, w->n_bytes);
    free(host);
    return t;
}

static void compare(const char *name, const char *what, const float *got, double tolerance)
{
    const agglo_st_tensor *t = get(name, what);
    double most = 0.0, worst = 0.0;

    for (int64_t i = 0; i < t->n_elements; i++) {
        float expected;

        memcpy(&expected, t->data + (size_t)i * sizeof expected, sizeof expected);
        most = fmax(most, fabs((double)expected));
        worst = fabs((double)got[i] - (double)expected) <= worst ? worst : fabs((double)got[i] - (double)expected);
    }
    if (!(worst <= tolerance * most)) {
        fail_msg("%s.%s is off by %.3g, its largest value is %.3g", name, what, worst, most);
    }
}

static void expect(const char *name, const char *what, const agglo_tensor *t, double tolerance)
{
    float *got = malloc(agglo_tensor_bytes(t));

    assert_non_null(got);
    assert_int_equal(agglo_tensor_count(t), get(name, what)->n_elements);
    agglo_download(be, got, t->data, agglo_tensor_bytes(t));
    assert_ok(agglo_backend_check(be, &err));
    compare(name, what, got, tolerance);
    free(got);
}

/* Gradients of weights, back in the checkpoint's order. */
static void expect_weight(const char *name, const agglo_tensor *d_w)
{
    const int64_t *s = get(name, "w")->shape;
    size_t n_bytes = agglo_tensor_bytes(d_w);
    float *packed = malloc(n_bytes), *got = malloc(n_bytes);

    assert_non_null(packed);
    assert_non_null(got);
    agglo_download(be, packed, d_w->data, n_bytes);
    assert_ok(agglo_backend_check(be, &err));
    agglo_conv_weight_unpack(got, packed, sizeof(float), s[0], s[1], s[2], s[3]);
    compare(name, "d_w", got, BACKWARD);
    free(packed);
    free(got);
}

static int clear(void **state)
{
    (void)state;
    for (int i = 0; i < n_live; i++) {
        agglo_backend_release(be, live[i]);
    }
    n_live = 0;
    return 0;
}

static void run_conv(const char *name, bool transposed)
{
    agglo_conv2d_config config = agglo_conv2d_square(value(name, 0), value(name, 1));
    agglo_act act = (agglo_act)value(name, 4);
    agglo_tensor x = load(name, "x"), w = load_weight(name), y = like(name, "y"), pre = like(name, "y");
    agglo_tensor d_y = load(name, "d_y"), d_x = like(name, "x"), d_w = blank(AGGLO_F32, 4, w.shape), b, d_b;
    bool bias = find(name, "b") != NULL;

    config.groups = value(name, 2);
    if (bias) {
        b = load(name, "b");
        d_b = like(name, "b");
    }
    (transposed ? agglo_conv_transpose2d : agglo_conv2d)(be, &config, &x, &w, bias ? &b : NULL, act, &pre, &y);
    expect(name, "y", &y, FORWARD);
    agglo_activate_bwd(be, act, &pre, &d_y, &d_y);
    if (transposed) {
        agglo_conv_transpose2d_bwd_input(be, &config, &d_y, &w, false, &d_x);
        agglo_conv_transpose2d_bwd_weight(be, &config, &d_y, &x, &d_w, bias ? &d_b : NULL);
    } else {
        agglo_conv2d_bwd_input(be, &config, &d_y, &w, false, &d_x);
        agglo_conv2d_bwd_weight(be, &config, &d_y, &x, &d_w, bias ? &d_b : NULL);
    }
    expect(name, "d_x", &d_x, BACKWARD);
    expect_weight(name, &d_w);
    if (bias) {
        expect(name, "d_b", &d_b, BACKWARD);
    }
    clear(NULL);
}

static void test_convolutions(void **state)
{
    static const char *const names[] = {"stem", "dense", "point", "down", "patch", "depthwise", "depthwise2"};

    (void)state;
    for (size_t i = 0; i < AGGLO_COUNT(names); i++) {
        run_conv(names[i], false);
    }
}

static void test_transposed(void **state)
{
    (void)state;
    run_conv("up", true);
    run_conv("neck", true);
}

static void run_batchnorm(const char *name, double forward, double backward)
{
    agglo_act act = (agglo_act)value(name, 0);
    bool training = value(name, 1) != 0;
    agglo_tensor x = load(name, "x"), w = load(name, "w"), b = load(name, "b"), y = like(name, "y");
    agglo_tensor running_mean = load(name, "mean0"), running_var = load(name, "var0"), mean = like(name, "w");
    agglo_tensor rstd = like(name, "w"), d_y = load(name, "d_y"), d_x = like(name, "x");
    agglo_tensor d_w = like(name, "w"), d_b = like(name, "b");

    if (training) {
        agglo_batchnorm(be, &x, &w, &b, 1e-5f, 0.1f, act, &running_mean, &running_var, &mean, &rstd, &y);
    } else {
        agglo_batchnorm_infer(be, &x, &w, &b, &running_mean, &running_var, 1e-5f, act, &rstd, &y);
    }
    expect(name, "y", &y, forward);
    expect(name, "mean1", &running_mean, FORWARD);
    expect(name, "var1", &running_var, forward);
    agglo_batchnorm_bwd(be, &d_y, &x, &w, &b, training ? &mean : &running_mean, &rstd, act, !training, false, &d_x,
                        &d_w, &d_b);
    expect(name, "d_x", &d_x, backward);
    expect(name, "d_w", &d_w, backward);
    expect(name, "d_b", &d_b, backward);
}

static void test_batchnorm(void **state)
{
    (void)state;
    run_batchnorm("bn_train", FORWARD, BACKWARD);
}

static void test_batchnorm_of_a_large_mean(void **state)
{
    (void)state;
    run_batchnorm("bn_mean", 1e-4, 1e-4);
}

static void test_batchnorm_fixed(void **state)
{
    (void)state;
    run_batchnorm("bn_fixed", FORWARD, BACKWARD);
}

static void test_fold(void **state)
{
    agglo_conv2d_config config = agglo_conv2d_square(1, 1);
    agglo_tensor x = load("fold", "x"), w = load_weight("fold"), b = load("fold", "b"), y = like("fold", "y");
    agglo_tensor gamma = load("fold", "gamma"), beta = load("fold", "beta"), mean = load("fold", "mean");
    agglo_tensor var = load("fold", "var");

    (void)state;
    agglo_batchnorm_fold(be, &w, &b, &gamma, &beta, &mean, &var, 1e-5f, &w, &b);
    agglo_conv2d(be, &config, &x, &w, &b, AGGLO_ACT_NONE, NULL, &y);
    expect("fold", "y", &y, FORWARD);
}

/* Channel-first in the fixture: to channels-last, the row norm, and back. */
static void test_layernorm2d(void **state)
{
    const int64_t *s = get("layernorm", "x")->shape, turned[4] = {s[0], s[2], s[3], s[1]};
    int64_t pixels = s[0] * s[2] * s[3];
    agglo_tensor x = load("layernorm", "x"), d_y = load("layernorm", "d_y"), w = load("layernorm", "w");
    agglo_tensor b = load("layernorm", "b"), d_w = like("layernorm", "w"), d_b = like("layernorm", "b");
    agglo_tensor rows = blank(AGGLO_F32, 4, turned), normed = blank(AGGLO_F32, 4, turned);
    agglo_tensor d_rows = blank(AGGLO_F32, 4, turned), d_x = blank(AGGLO_F32, 4, turned);
    agglo_tensor mean = blank(AGGLO_F32, 1, &pixels), rstd = blank(AGGLO_F32, 1, &pixels), out = like("layernorm", "x");

    (void)state;
    agglo_nchw_to_nhwc(be, &x, &rows);
    agglo_layernorm(be, &rows, &w, &b, 1e-6f, &normed, &mean, &rstd);
    agglo_nhwc_to_nchw(be, &normed, &out);
    expect("layernorm", "y", &out, FORWARD);
    agglo_nchw_to_nhwc(be, &d_y, &d_rows);
    agglo_layernorm_bwd(be, &d_rows, &rows, &w, &mean, &rstd, false, &d_x, &d_w, &d_b);
    agglo_nhwc_to_nchw(be, &d_x, &out);
    expect("layernorm", "d_x", &out, BACKWARD);
    expect("layernorm", "d_w", &d_w, BACKWARD);
    expect("layernorm", "d_b", &d_b, BACKWARD);
}

static void test_pooling(void **state)
{
    static const char *const names[] = {"avg", "max"};

    (void)state;
    for (int i = 0; i < 2; i++) {
        const char *name = names[i];
        int kernel = value(name, 0), stride = value(name, 1), pad = value(name, 2);
        agglo_pool2d_config config = {kernel, kernel, stride, stride, pad, pad};
        agglo_tensor x = load(name, "x"), y = like(name, "y"), d_y = load(name, "d_y"), d_x = like(name, "x");

        if (i == 0) {
            agglo_avgpool2d(be, &config, &x, &y);
            agglo_avgpool2d_bwd(be, &config, &d_y, false, &d_x);
        } else { /* ties: the first, as PyTorch has it */
            agglo_tensor index = like(name, "index");
            size_t n_bytes = agglo_tensor_bytes(&index);
            int32_t *got = malloc(n_bytes);

            assert_non_null(got);
            agglo_maxpool2d(be, &config, &x, &y, &index);
            agglo_download(be, got, index.data, n_bytes);
            assert_memory_equal(got, get(name, "index")->data, n_bytes);
            free(got);
            agglo_maxpool2d_bwd(be, &config, &d_y, &index, false, &d_x);
        }
        expect(name, "y", &y, FORWARD);
        expect(name, "d_x", &d_x, BACKWARD);
        clear(NULL);
    }
}

static int open_all(void **state)
{
    (void)state;
    assert_ok(agglo_backend_open(&be, device, 0, &err));
    assert_ok(agglo_safetensors_open(&st, "tests/fixtures/conv/ops.safetensors", &err));
    return 0;
}

static int close_all(void **state)
{
    (void)state;
    agglo_safetensors_close(st);
    agglo_backend_free(be);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_convolutions, clear),
        cmocka_unit_test_teardown(test_transposed, clear),
        cmocka_unit_test_teardown(test_batchnorm, clear),
        cmocka_unit_test_teardown(test_batchnorm_of_a_large_mean, clear),
        cmocka_unit_test_teardown(test_batchnorm_fixed, clear),
        cmocka_unit_test_teardown(test_fold, clear),
        cmocka_unit_test_teardown(test_layernorm2d, clear),
        cmocka_unit_test_teardown(test_pooling, clear),
    };

    device = test_device();
    test_filter();
    return test_finish("parity_conv_fixture",
                       cmocka_run_group_tests_name("parity_conv_fixture", tests, open_all, close_all));
}
