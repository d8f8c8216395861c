/* Resampling, boxes of a position table, and attention with a bias against what PyTorch gives: tests/fixtures/resample, which
 * script/fixtures/make_resample_fixtures.py makes. F32 on the device that AGGLO_TEST_DEVICE names.
 */
#include "tests/parity/tensor/test_device.h"
#include "tests/support/support.h"

#include "base/safetensors.h"
#include "tensor/backend.h"
#include "tensor/ops_attention_bias.h"
#include "tensor/ops_gather.h"
#include "tensor/ops_resample.h"

#include <math.h>

/* of the largest value; the fixtures are float64 results rounded to float32 */
#define FORWARD_TOLERANCE  1e-5
#define BACKWARD_TOLERANCE 1e-4

static const char *device;
static agglo_backend *be;
static agglo_safetensors *st;
static const char *file;

static void open_fixture(const char *name)
{
    agglo_err err = {0};
    char path[128];

    file = name;
    assert_ok(agglo_backend_open(&be, device, 2, &err));
    snprintf(path, sizeof path, "resample/%s.safetensors", name);
    assert_ok(agglo_safetensors_open(&st, test_fixture(path), &err));
}

static void close_fixture(void)
{
    agglo_safetensors_close(st);
    agglo_backend_free(be);
}

static const agglo_st_tensor *stored(int i, const char *what)
{
    char name[64];

    snprintf(name, sizeof name, "%d.%s", i, what);
    return agglo_safetensors_find(st, name);
}

static agglo_tensor fresh(agglo_dtype dtype, int rank, const int64_t *shape)
{
    agglo_tensor t = agglo_tensor_of(NULL, dtype, rank, shape);
    agglo_err err = {0};

    t.data = agglo_backend_alloc(be, agglo_tensor_bytes(&t), &err);
    assert_non_null(t.data);
    return t;
}

/* On the device; the caller gives it back. */
static agglo_tensor take(const agglo_st_tensor *from)
{
    agglo_tensor t;

    assert_non_null(from);
    assert_int_equal(from->dtype, AGGLO_F32);
    t = fresh(AGGLO_F32, from->rank, from->shape);
    agglo_upload(be, t.data, from->data, from->n_bytes);
    return t;
}

static agglo_tensor like(const agglo_st_tensor *from)
{
    assert_non_null(from);
    return fresh(AGGLO_F32, from->rank, from->shape);
}

static void give(agglo_tensor *t)
{
    agglo_backend_release(be, t->data);
    t->data = NULL;
}

/* Compare and give back. */
static void check(agglo_tensor *got, int i, const char *what, double tolerance)
{
    const agglo_st_tensor *expected = stored(i, what);
    float *value = malloc(agglo_tensor_bytes(got));
    double worst = 0.0, most = 0.0;
    agglo_err err = {0};

    assert_non_null(value);
    assert_non_null(expected);
    assert_int_equal(agglo_tensor_count(got), expected->n_elements);
    agglo_download(be, value, got->data, agglo_tensor_bytes(got));
    assert_ok(agglo_backend_check(be, &err));
    for (int64_t j = 0; j < expected->n_elements; j++) {
        float e;
        double d;

        memcpy(&e, expected->data + 4 * j, 4);
        d = fabs((double)value[j] - (double)e);
        worst = d <= worst ? worst : d; /* a NaN too */
        most = fmax(most, fabs((double)e));
    }
    if (!(worst <= tolerance * most)) {
        fail_msg("%s %d.%s is off by %.3g of its largest value, %.0e allowed", file, i, what, worst / most, tolerance);
    }
    free(value);
    give(got);
}

static double number(const agglo_st_tensor *t, int i)
{
    float f;

    memcpy(&f, t->data + 4 * i, 4);
    return (double)f;
}

static void interpolate(void **state)
{
    const agglo_st_tensor *parameters;
    int n = 0;

    (void)state;
    open_fixture("interpolate");
    for (; (parameters = stored(n, "rule")) != NULL; n++) {
        /* a scale stands as a float and what the float leaves out */
        agglo_resample_rule rule = {.mode = (agglo_resample_mode)(int)number(parameters, 0),
                                    .antialias = number(parameters, 1) != 0.0,
                                    .align_corners = number(parameters, 2) != 0.0,
                                    .scale_h = number(parameters, 3) + number(parameters, 4),
                                    .scale_w = number(parameters, 5) + number(parameters, 6)};
        agglo_tensor x = take(stored(n, "x")), y = like(stored(n, "y")), d_y = take(stored(n, "d_y")),
                     d_x = like(stored(n, "d_x"));

        agglo_resample(be, &rule, &x, &y);
        agglo_resample_bwd(be, &rule, &d_y, false, &d_x);
        check(&y, n, "y", FORWARD_TOLERANCE);
        check(&d_x, n, "d_x", BACKWARD_TOLERANCE);
        give(&x);
        give(&d_y);
    }
    assert_int_equal(n, 31);
    close_fixture();
}

static void crops(void **state)
{
    int n = 0;

    (void)state;
    open_fixture("crops");
    for (; stored(n, "table") != NULL; n++) {
        agglo_tensor table = take(stored(n, "table")), boxes = take(stored(n, "boxes")), y = like(stored(n, "y")),
                     d_y = take(stored(n, "d_y")), d_table = like(stored(n, "d_table"));

        agglo_crop_grid(be, &table, &boxes, &y);
        agglo_crop_grid_bwd(be, &d_y, &boxes, &d_table);
        check(&y, n, "y", FORWARD_TOLERANCE);
        check(&d_table, n, "d_table", BACKWARD_TOLERANCE);
        give(&table);
        give(&boxes);
        give(&d_y);
    }
    assert_int_equal(n, 3);
    close_fixture();
}

/* A table [L,D] of relative positions as a grid of `side` wants it, [2 side - 1, D], seen as a map of one row for agglo_resample. */
static const agglo_resample_rule linear = {.mode = AGGLO_RESAMPLE_BILINEAR};

static agglo_tensor as_map(agglo_tensor *t)
{
    return agglo_tensor_4d(t->data, AGGLO_F32, 1, t->shape[0], 1, t->shape[1]);
}

static agglo_tensor resampled(agglo_tensor *table, int64_t side)
{
    const int64_t shape[2] = {2 * side - 1, table->shape[1]};
    agglo_tensor out = fresh(AGGLO_F32, 2, shape), from = as_map(table), to = as_map(&out);

    agglo_resample(be, &linear, &from, &to);
    return out;
}

/* Gives d_out back. */
static agglo_tensor resampled_bwd(agglo_tensor *d_out, const agglo_tensor *table)
{
    agglo_tensor d_table = fresh(AGGLO_F32, 2, table->shape), from = as_map(d_out), to = as_map(&d_table);

    agglo_resample_bwd(be, &linear, &from, false, &to);
    give(d_out);
    return d_table;
}

static void decomposed(int i, const agglo_tensor *qkv, const agglo_tensor *d_out, agglo_tensor *out, agglo_tensor *lse,
                       agglo_tensor *d_qkv, float scale)
{
    const agglo_st_tensor *grid = stored(i, "grid");
    agglo_tensor table_h = take(stored(i, "rel_h")), table_w = take(stored(i, "rel_w")), rel_h, rel_w, d_rel_h, d_rel_w;
    agglo_bias bias = {0};
    agglo_bias_gradient d_bias = {0};
    int32_t extents[2];

    memcpy(extents, grid->data, sizeof extents);
    bias.grid_h = extents[0];
    bias.grid_w = extents[1];
    rel_h = resampled(&table_h, bias.grid_h);
    rel_w = resampled(&table_w, bias.grid_w);
    d_rel_h = fresh(AGGLO_F32, 2, rel_h.shape);
    d_rel_w = fresh(AGGLO_F32, 2, rel_w.shape);
    bias.rel_h = &rel_h;
    bias.rel_w = &rel_w;
    d_bias.rel_h = &d_rel_h;
    d_bias.rel_w = &d_rel_w;
    agglo_attention_bias(be, qkv, scale, &bias, out, lse);
    agglo_attention_bias_bwd(be, d_out, qkv, out, lse, scale, &bias, d_qkv, &d_bias);
    d_rel_h = resampled_bwd(&d_rel_h, &table_h);
    d_rel_w = resampled_bwd(&d_rel_w, &table_w);
    if (extents[0] * extents[1] > 1) { /* otherwise all is 0 */
        check(&d_rel_h, i, "d_rel_h", BACKWARD_TOLERANCE);
        check(&d_rel_w, i, "d_rel_w", BACKWARD_TOLERANCE);
    } else {
        give(&d_rel_h);
        give(&d_rel_w);
    }
    give(&table_h);
    give(&table_w);
    give(&rel_h);
    give(&rel_w);
}

static void dense(int i, const agglo_tensor *qkv, const agglo_tensor *d_out, agglo_tensor *out, agglo_tensor *lse,
                  agglo_tensor *d_qkv, float scale)
{
    agglo_tensor table = take(stored(i, "table")), d_table = like(stored(i, "table"));
    agglo_bias bias = {.table = &table};
    agglo_bias_gradient d_bias = {.table = &d_table};

    agglo_attention_bias(be, qkv, scale, &bias, out, lse);
    agglo_attention_bias_bwd(be, d_out, qkv, out, lse, scale, &bias, d_qkv, &d_bias);
    check(&d_table, i, "d_table", BACKWARD_TOLERANCE);
    give(&table);
}

static void attention(void **state)
{
    int n = 0;

    (void)state;
    open_fixture("attention");
    for (; stored(n, "qkv") != NULL; n++) {
        agglo_tensor qkv = take(stored(n, "qkv")), d_out = take(stored(n, "d_y")), out = like(stored(n, "y")),
                     d_qkv = like(stored(n, "d_qkv"));
        const int64_t shape[3] = {qkv.shape[0], qkv.shape[3], qkv.shape[1]};
        agglo_tensor lse = fresh(AGGLO_F32, 3, shape);
        float scale = 1.0f / sqrtf((float)qkv.shape[4]);

        (stored(n, "table") != NULL ? dense : decomposed)(n, &qkv, &d_out, &out, &lse, &d_qkv, scale);
        check(&out, n, "y", FORWARD_TOLERANCE);
        check(&d_qkv, n, "d_qkv", BACKWARD_TOLERANCE);
        give(&qkv);
        give(&d_out);
        give(&lse);
    }
    assert_int_equal(n, 5);
    close_fixture();
}

static void windows(void **state)
{
    const agglo_st_tensor *expected;
    agglo_tensor x, y, back;
    float *got, *whole;
    agglo_err err = {0};

    (void)state;
    open_fixture("attention");
    expected = agglo_safetensors_find(st, "windows.y");
    x = take(agglo_safetensors_find(st, "windows.x"));
    assert_non_null(expected);
    y = fresh(AGGLO_F32, 3, (const int64_t[]){expected->shape[0], 16, expected->shape[3]});
    back = fresh(AGGLO_F32, 4, x.shape);
    agglo_window_partition(be, &x, 4, 4, false, &y);
    agglo_window_merge(be, &y, 4, 4, false, &back);
    got = malloc(expected->n_bytes);
    whole = malloc(agglo_tensor_bytes(&x));
    assert_true(got != NULL && whole != NULL);
    agglo_download(be, got, y.data, expected->n_bytes);
    agglo_download(be, whole, back.data, agglo_tensor_bytes(&x));
    assert_ok(agglo_backend_check(be, &err));
    assert_memory_equal(got, expected->data, expected->n_bytes);
    assert_memory_equal(whole, agglo_safetensors_find(st, "windows.x")->data, agglo_tensor_bytes(&x));
    free(got);
    free(whole);
    give(&x);
    give(&y);
    give(&back);
    close_fixture();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(interpolate),
        cmocka_unit_test(crops),
        cmocka_unit_test(attention),
        cmocka_unit_test(windows),
    };

    device = test_device();
    return test_run("parity_pytorch", tests);
}
