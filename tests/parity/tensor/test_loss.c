/* The losses against stored targets: every codec's form, map and weighting against the double-precision reference, central
 * differences, 1, 2 and 3 threads, memory in the steady state; tolerances and AGGLO_TEST_DEVICE as in test_ops.c.
 */
#include "tests/parity/tensor/test_device.h"
#include "tests/ref/ref_loss.h"
#include "tests/support/support.h"

#include "tensor/ops.h"

#include <math.h>

#define FORWARD_TOLERANCE    1e-5
#define BACKWARD_TOLERANCE   1e-4
#define BF16_TOLERANCE       1e-2
#define DIFFERENCE_TOLERANCE 1e-4

enum {
    SCALE = 1,      /* per token, F32 */
    SCALE16 = 2,    /* per token, F16 */
    CHANNEL = 4,    /* a scale per channel */
    MATRIX = 8,     /* [K,C] */
    DIAGONAL = 16,  /* [C] */
    CENTRE = 32,    /* [K] */
    OFFSET = 64,    /* [C] */
    VALID = 128,    /* one sample of three is bad, its slot NaN where floats can be */
    SAMPLE = 256,   /* sample weights */
    TOKEN = 512,    /* token weights, some zero */
    VALUES = 1024,  /* of tokens, too */
    BF16 = 2048,    /* predictions */
    NONE = 4096,    /* no sample is valid */
    NO_GRAD = 8192, /* values alone */
};

typedef struct test_case {
    agglo_code code;
    int64_t b, n, k, c;
    int flags;
} test_case;

#define UNIFORM (SCALE16 | CHANNEL)
#define KLT     (MATRIX | OFFSET)
#define STAND   (CENTRE | MATRIX)

static const test_case table[] = {
    {AGGLO_CODE_F32, 1, 1, 5, 5, 0},
    {AGGLO_CODE_F32, 3, 7, 33, 33, VALID | VALUES},
    {AGGLO_CODE_F32, 2, 9, 64, 64, CENTRE | DIAGONAL | SAMPLE},
    {AGGLO_CODE_F32, 4, 5, 24, 24, STAND | VALID | TOKEN},
    {AGGLO_CODE_F16, 5, 1, 513, 513, VALID | VALUES},
    {AGGLO_CODE_F16, 3, 17, 40, 40, TOKEN | VALUES},
    {AGGLO_CODE_F16, 2, 50, 36, 36, STAND | OFFSET | VALID},
    {AGGLO_CODE_F16, 2, 16, 128, 128, BF16 | VALID | SAMPLE | TOKEN | VALUES},
    {AGGLO_CODE_BF16, 2, 16, 65, 65, OFFSET},
    {AGGLO_CODE_BF16, 2, 16, 64, 64, BF16},
    {AGGLO_CODE_I8, 1, 1, 1, 1, SCALE},
    {AGGLO_CODE_I8, 3, 16, 96, 96, SCALE},
    {AGGLO_CODE_I8, 3, 17, 77, 77, UNIFORM | VALID | VALUES},
    {AGGLO_CODE_I8, 2, 9, 64, 64, UNIFORM | BF16},
    {AGGLO_CODE_I8, 2, 9, 48, 48, UNIFORM | CENTRE | DIAGONAL},
    {AGGLO_CODE_I8, 2, 20, 32, 32, SCALE | STAND},
    {AGGLO_CODE_I4, 3, 16, 96, 96, SCALE16},
    {AGGLO_CODE_I4, 3, 5, 33, 33, UNIFORM | VALID | SAMPLE},
    {AGGLO_CODE_I4, 1, 3, 1, 1, SCALE},
    {AGGLO_CODE_I4, 2, 6, 35, 35, UNIFORM | MATRIX},
    {AGGLO_CODE_I4, 2, 6, 64, 64, UNIFORM | BF16},
    {AGGLO_CODE_I8, 1, 1, 3, 8, KLT},
    {AGGLO_CODE_I8, 2, 49, 40, 96, KLT | VALID | VALUES},
    {AGGLO_CODE_I8, 3, 65, 63, 65, KLT | VALID | SAMPLE | TOKEN | VALUES},
    {AGGLO_CODE_I8, 4, 256, 96, 130, KLT | VALID | VALUES}, /* several tiles and rows left out */
    {AGGLO_CODE_I8, 2, 49, 40, 96, KLT | VALID | BF16 | VALUES},
    {AGGLO_CODE_I8, 3, 65, 63, 131, KLT | BF16},
    {AGGLO_CODE_I16, 2, 49, 64, 64, KLT | VALID},
    {AGGLO_CODE_I16, 2, 16, 30, 30, OFFSET}, /* rotated */
    {AGGLO_CODE_I8, 2, 16, 64, 64, OFFSET | BF16 | VALUES},
    {AGGLO_CODE_F16, 2, 49, 40, 96, KLT | VALID},
    {AGGLO_CODE_I8, 3, 4, 16, 16, KLT | NONE | VALUES},
    {AGGLO_CODE_F16, 3, 4, 16, 16, NONE},
    {AGGLO_CODE_I8, 2, 16, 24, 32, KLT | NO_GRAD | VALUES},
    {AGGLO_CODE_F32, 2, 16, 24, 24, NO_GRAD},
    {AGGLO_CODE_F16, 1, 4160, 20, 20, VALUES},
};

static const agglo_loss_config config = {1.5f, 0.9f, 0.1f, 0.75f, 0.3f};
static const ref_target_loss_config ref_config = {1.5, (double)0.9f, (double)0.1f, 0.75, (double)0.3f};
static const char *device;

#define GRAD_SCALE 0.5
#define MAP_SCALE  0.0625f

static bool has(const test_case *c, int flag)
{
    return (c->flags & flag) != 0;
}

/* An array of a case: its bytes for the device, and the doubles that they are. */
typedef struct array {
    size_t n_bytes, n;
    uint8_t *bytes;
    double *value;
} array;

static array array_new(size_t n, size_t n_bytes)
{
    array a = {n_bytes, n, calloc(n_bytes + 1, 1), calloc(n + 1, sizeof(double))};

    assert_non_null(a.bytes);
    assert_non_null(a.value);
    return a;
}

static void array_clear(array *a)
{
    free(a->bytes);
    free(a->value);
}

static array floats(test_random *random, size_t n, agglo_dtype dtype, float sigma, float shift)
{
    array a = array_new(n, n * agglo_dtype_size(dtype));
    float *values = malloc(n * sizeof *values);

    assert_non_null(values);
    test_random_fill(random, values, n, sigma);
    for (size_t i = 0; i < n; i++) {
        values[i] += shift;
    }
    agglo_dtype_from_f32(a.bytes, values, dtype, n);
    agglo_dtype_to_f32(values, a.bytes, dtype, n);
    for (size_t i = 0; i < n; i++) {
        a.value[i] = (double)values[i];
    }
    free(values);
    return a;
}

/* Positive, about `about`. */
static array scales(test_random *random, size_t n, agglo_dtype dtype, float about)
{
    array a = floats(random, n, dtype, 0.1f * about, about);
    return a;
}

/* Weights, a third of them zero where `holes`. */
static array weights(test_random *random, size_t n, bool ones, bool holes)
{
    array a = array_new(n, n * sizeof(float));

    for (size_t i = 0; i < n; i++) {
        float w = ones ? 1.0f : (float)(0.25 + test_random_uniform(random));

        w = holes && i % 3 == 1 ? 0.0f : w;
        memcpy(a.bytes + i * sizeof w, &w, sizeof w);
        a.value[i] = (double)w;
    }
    return a;
}

/* Stored values of [rows,k]. */
static array codes(test_random *random, const test_case *c)
{
    size_t rows = (size_t)(c->b * c->n), k = (size_t)c->k, row_bytes = (size_t)agglo_code_row_bytes(c->code, c->k);
    array a;

    if (c->code <= AGGLO_CODE_BF16) {
        agglo_dtype dtype = c->code == AGGLO_CODE_F32 ? AGGLO_F32 : c->code == AGGLO_CODE_F16 ? AGGLO_F16 : AGGLO_BF16;

        return floats(random, rows * k, dtype, has(c, MATRIX | OFFSET) ? 8.0f : 1.0f, 0.1f);
    }
    a = array_new(rows * k, rows * row_bytes);
    test_random_bytes(random, a.bytes, a.n_bytes);
    for (size_t i = 0; i < rows; i++) {
        for (size_t j = 0; j < k; j++) {
            const uint8_t *row = a.bytes + i * row_bytes;
            int16_t wide;

            if (c->code == AGGLO_CODE_I8) {
                a.value[i * k + j] = (double)(int8_t)row[j];
            } else if (c->code == AGGLO_CODE_I16) {
                memcpy(&wide, row + 2 * j, sizeof wide);
                wide = (int16_t)(wide / 256);
                memcpy(a.bytes + i * row_bytes + 2 * j, &wide, sizeof wide);
                a.value[i * k + j] = (double)wide;
            } else {
                int v = row[j / 2] >> (j % 2 != 0 ? 4 : 0) & 15;

                a.value[i * k + j] = (double)(v < 8 ? v : v - 16);
            }
        }
    }
    return a;
}

/* What a bad sample's slot may hold: NaN. */
static void spoil(const test_case *c, array *q)
{
    size_t row = (size_t)c->n * (size_t)agglo_code_row_bytes(c->code, c->k);

    for (size_t b = 1; c->code <= AGGLO_CODE_BF16 && b < (size_t)c->b; b += 3) {
        memset(q->bytes + b * row, 0xff, row);
    }
}

enum { Q, TOKEN_SCALE, CHANNEL_SCALE, MAT, DIAG, CENT, OFFS, VALIDITY, SAMPLE_W, TOKEN_W, PRED, INPUTS };

typedef struct outputs {
    uint8_t *d_pred;
    float *values[3], sums[AGGLO_LOSS_SUMS];
} outputs;

static void *device_copy(agglo_backend *be, const array *a, bool present)
{
    agglo_err err = {0};
    void *block;

    if (!present) {
        return NULL;
    }
    block = agglo_backend_alloc(be, a->n_bytes, &err);
    assert_non_null(block);
    agglo_upload(be, block, a->bytes, a->n_bytes);
    return block;
}

/* One backend's answer. */
static outputs run(const test_case *c, int n_threads, const array *in, const char *name)
{
    static const int flag[INPUTS] = {~0,     SCALE | SCALE16, CHANNEL, MATRIX, DIAGONAL, CENTRE,
                                     OFFSET, VALID | NONE,    SAMPLE,  TOKEN,  ~0};
    const int64_t m = c->b * c->n;
    agglo_dtype dtype = has(c, BF16) ? AGGLO_BF16 : AGGLO_F32;
    size_t pred_bytes = (size_t)(m * c->c) * agglo_dtype_size(dtype);
    void *block[INPUTS], *d_block, *value_block[3], *sums_block;
    agglo_tensor pred, d_pred, valid, sample, token, sums, value[3];
    agglo_loss_values values = {NULL, NULL, NULL};
    agglo_loss_weights w = {0};
    agglo_target target;
    agglo_backend *be;
    outputs out = {0};
    agglo_err err = {0};

    assert_ok(agglo_backend_open(&be, device, n_threads, &err));
    for (int i = 0; i < INPUTS; i++) {
        block[i] = device_copy(be, &in[i], c->flags == 0 ? flag[i] == ~0 : (c->flags & flag[i]) != 0 || flag[i] == ~0);
    }
    d_block = agglo_backend_alloc(be, pred_bytes, &err);
    sums_block = agglo_backend_alloc(be, sizeof out.sums, &err);
    assert_true(d_block != NULL && sums_block != NULL);
    for (int i = 0; i < 3; i++) {
        value_block[i] = agglo_backend_alloc(be, (size_t)m * sizeof(float), &err);
        assert_non_null(value_block[i]);
        value[i] = agglo_tensor_2d(value_block[i], AGGLO_F32, c->b, c->n);
    }
    target = agglo_target_scaled(c->code, block[Q], c->b, c->n, c->k, block[TOKEN_SCALE],
                                 has(c, SCALE16) ? AGGLO_F16 : AGGLO_F32, block[CHANNEL_SCALE]);
    target.map = (agglo_map){c->c, MAP_SCALE, block[CENT], block[MAT], block[DIAG], block[OFFS]};
    if (!has(c, MATRIX | OFFSET)) {
        target.map.scale = 1.0f;
    }
    pred = agglo_tensor_3d(block[PRED], dtype, c->b, c->n, c->c);
    d_pred = agglo_tensor_3d(d_block, dtype, c->b, c->n, c->c);
    sums = agglo_tensor_1d(sums_block, AGGLO_F32, AGGLO_LOSS_SUMS);
    valid = agglo_tensor_1d(block[VALIDITY], AGGLO_F32, c->b);
    sample = agglo_tensor_1d(block[SAMPLE_W], AGGLO_F32, c->b);
    token = agglo_tensor_2d(block[TOKEN_W], AGGLO_F32, c->b, c->n);
    w.valid = block[VALIDITY] == NULL ? NULL : &valid;
    w.sample_weight = block[SAMPLE_W] == NULL ? NULL : &sample;
    w.token_weight = block[TOKEN_W] == NULL ? NULL : &token;
    if (has(c, VALUES)) {
        values = (agglo_loss_values){&value[0], &value[1], &value[2]};
    }
    for (int pass = 0; pass < 2; pass++) {
        int64_t before;

        out.sums[0] = 0.25f; /* sums are added to */
        agglo_upload(be, sums_block, out.sums, sizeof out.sums);
        before = agglo_alloc_counts().n_total;
        agglo_target_loss(be, &config, &pred, &target, c->flags == 0 ? NULL : &w, (float)GRAD_SCALE,
                          has(c, NO_GRAD) ? NULL : &d_pred, has(c, VALUES) ? &values : NULL, &sums);
        assert_ok(agglo_backend_check(be, &err));
        if (pass == 1 && agglo_alloc_counts().n_total != before) {
            fail_msg("%s: allocates in the steady state", name);
        }
        if (pass == 0) {
            memset(out.sums, 0, sizeof out.sums);
        }
    }
    out.d_pred = malloc(pred_bytes);
    assert_non_null(out.d_pred);
    agglo_download(be, out.d_pred, d_block, pred_bytes);
    agglo_download(be, out.sums, sums_block, sizeof out.sums);
    for (int i = 0; i < 3; i++) {
        out.values[i] = malloc((size_t)m * sizeof(float));
        assert_non_null(out.values[i]);
        agglo_download(be, out.values[i], value_block[i], (size_t)m * sizeof(float));
        agglo_backend_release(be, value_block[i]);
    }
    for (int i = 0; i < INPUTS; i++) {
        agglo_backend_release(be, block[i]);
    }
    agglo_backend_release(be, d_block);
    agglo_backend_release(be, sums_block);
    agglo_backend_free(be);
    return out;
}

static void outputs_clear(outputs *out)
{
    free(out->d_pred);
    for (int i = 0; i < 3; i++) {
        free(out->values[i]);
    }
}

static void near(const char *name, const char *what, int64_t n, const double *got, const double *ref, double tolerance)
{
    double worst = 0.0, most = 0.0;

    for (int64_t i = 0; i < n; i++) {
        double d = fabs(got[i] - ref[i]);

        worst = !(d <= worst) ? d : worst; /* also a NaN */
        most = fmax(most, fabs(ref[i]));
    }
    if (!(worst <= tolerance * most)) {
        fail_msg("%s: %s is off by %.3g of its largest value, %.0e allowed", name, what, worst / most, tolerance);
    }
}

/* <gradient, direction> against (L(p + h v) - L(p - h v)) / 2h of the reference. */
static void check_differences(const char *name, const test_case *c, test_random *random, const double *pred,
                              const double *target, const double *grad, const array *in)
{
    int64_t n = c->b * c->n * c->c;
    double *direction = calloc((size_t)n, sizeof *direction), *moved = calloc((size_t)n, sizeof *moved), norm = 0.0;

    assert_true(direction != NULL && moved != NULL);
    for (int64_t i = 0; i < n; i++) {
        norm += grad[i] * grad[i];
    }
    for (int trial = 0; trial < 3; trial++) {
        double h = 1e-5, dot = 0.0, length = 0.0, fd, side[2];

        for (int64_t i = 0; i < n; i++) {
            direction[i] = (double)test_random_normal(random);
            dot += grad[i] * direction[i];
            length += direction[i] * direction[i];
        }
        for (int s = 0; s < 2; s++) {
            for (int64_t i = 0; i < n; i++) {
                moved[i] = pred[i] + (s == 0 ? h : -h) * direction[i];
            }
            side[s] = ref_target_loss(&ref_config, c->b, c->n, c->c, moved, target,
                                      has(c, VALID | NONE) ? in[VALIDITY].value : NULL,
                                      has(c, SAMPLE) ? in[SAMPLE_W].value : NULL,
                                      has(c, TOKEN) ? in[TOKEN_W].value : NULL, 1.0, NULL, NULL, NULL);
        }
        fd = GRAD_SCALE * (side[0] - side[1]) / (2.0 * h);
        if (!(fabs(fd - dot) <= DIFFERENCE_TOLERANCE * sqrt(norm * length) + 1e-9)) {
            fail_msg("%s: the gradient along direction %d is %.9g, differences give %.9g", name, trial, dot, fd);
        }
    }
    free(direction);
    free(moved);
}

static void run_case(const test_case *c, uint64_t stream)
{
    test_random random = test_random_new(1000 + stream);
    const size_t m = (size_t)(c->b * c->n), pred_n = m * (size_t)c->c;
    const bool bf16 = has(c, BF16), on_cuda = strncmp(device, "cuda", 4) == 0;
    double tolerance = bf16 && has(c, MATRIX) && on_cuda ? BF16_TOLERANCE : FORWARD_TOLERANCE, *target, *d_ref, *d_got,
           sums_ref[6] = {0.25}, sums_got[6];
    double *values_ref[3], *values_got;
    agglo_dtype dtype = bf16 ? AGGLO_BF16 : AGGLO_F32;
    array in[INPUTS];
    outputs first;
    ref_target ref;
    char name[120];

    snprintf(name, sizeof name, "case %llu: code %d [%lld %lld %lld %lld] flags %d", (unsigned long long)stream,
             (int)c->code, (long long)c->b, (long long)c->n, (long long)c->k, (long long)c->c, c->flags);
    in[Q] = codes(&random, c);
    in[TOKEN_SCALE] =
        scales(&random, m, has(c, SCALE16) ? AGGLO_F16 : AGGLO_F32, c->code == AGGLO_CODE_I4 ? 0.2f : 0.015f);
    in[CHANNEL_SCALE] = scales(&random, (size_t)c->k, AGGLO_F32, 1.0f);
    in[MAT] = floats(&random, (size_t)(c->k * c->c), AGGLO_F32, 1.0f / sqrtf((float)c->k), 0.0f);
    in[DIAG] = scales(&random, (size_t)c->c, AGGLO_F32, 0.7f);
    in[CENT] = floats(&random, (size_t)c->k, AGGLO_F32, 0.3f, 0.0f);
    in[OFFS] = floats(&random, (size_t)c->c, AGGLO_F32, 0.5f, 0.0f);
    in[VALIDITY] = weights(&random, (size_t)c->b, true, has(c, VALID));
    in[SAMPLE_W] = weights(&random, (size_t)c->b, false, false);
    in[TOKEN_W] = weights(&random, m, false, true);
    in[PRED] = floats(&random, pred_n, dtype, 1.0f, 0.0f);
    if (has(c, NONE)) {
        memset(in[VALIDITY].bytes, 0, in[VALIDITY].n_bytes);
        memset(in[VALIDITY].value, 0, in[VALIDITY].n * sizeof(double));
    }
    if (has(c, VALID)) {
        spoil(c, &in[Q]);
    }
    ref = (ref_target){c->k,
                       c->c,
                       in[Q].value,
                       has(c, SCALE | SCALE16) ? in[TOKEN_SCALE].value : NULL,
                       has(c, CHANNEL) ? in[CHANNEL_SCALE].value : NULL,
                       has(c, MATRIX | OFFSET) ? (double)MAP_SCALE : 1.0,
                       has(c, CENTRE) ? in[CENT].value : NULL,
                       has(c, MATRIX) ? in[MAT].value : NULL,
                       has(c, DIAGONAL) ? in[DIAG].value : NULL,
                       has(c, OFFSET) ? in[OFFS].value : NULL};
    target = calloc(pred_n, sizeof *target);
    d_ref = calloc(pred_n, sizeof *d_ref);
    d_got = calloc(pred_n, sizeof *d_got);
    values_got = calloc(m, sizeof *values_got);
    assert_true(target != NULL && d_ref != NULL && d_got != NULL && values_got != NULL);
    for (int i = 0; i < 3; i++) {
        values_ref[i] = calloc(m, sizeof(double));
        assert_non_null(values_ref[i]);
    }
    ref_target_decode(&ref, (int64_t)m, target);
    ref_target_loss(&ref_config, c->b, c->n, c->c, in[PRED].value, target,
                    has(c, VALID | NONE) ? in[VALIDITY].value : NULL, has(c, SAMPLE) ? in[SAMPLE_W].value : NULL,
                    has(c, TOKEN) ? in[TOKEN_W].value : NULL, GRAD_SCALE, d_ref, values_ref, sums_ref);

    first = run(c, 1, in, name);
    for (int i = 0; i < 6; i++) {
        sums_got[i] = (double)first.sums[i];
        near(name, "a sum", 1, &sums_got[i], &sums_ref[i], i == 0 ? 3.0 * tolerance : tolerance);
    }
    for (int v = 0; has(c, VALUES) && v < 3; v++) {
        for (size_t i = 0; i < m; i++) {
            values_got[i] = (double)first.values[v][i];
        }
        near(name, "a token's value", (int64_t)m, values_got, values_ref[v], tolerance);
    }
    if (!has(c, NO_GRAD)) {
        float *got = malloc(pred_n * sizeof *got);

        assert_non_null(got);
        agglo_dtype_to_f32(got, first.d_pred, dtype, pred_n);
        for (size_t i = 0; i < pred_n; i++) {
            d_got[i] = (double)got[i];
        }
        free(got);
        near(name, "the gradient", (int64_t)pred_n, d_got, d_ref, bf16 ? BF16_TOLERANCE : BACKWARD_TOLERANCE);
        if (!bf16 && pred_n < 40000) {
            check_differences(name, c, &random, in[PRED].value, target, d_got, in);
        }
    }
    for (int n_threads = 2; n_threads <= 3; n_threads++) {
        outputs other = run(c, n_threads, in, name);

        assert_memory_equal(first.d_pred, other.d_pred, pred_n * agglo_dtype_size(dtype));
        assert_memory_equal(first.sums, other.sums, sizeof first.sums);
        for (int v = 0; v < 3; v++) {
            assert_memory_equal(first.values[v], other.values[v], m * sizeof(float));
        }
        outputs_clear(&other);
    }
    outputs_clear(&first);
    for (int i = 0; i < INPUTS; i++) {
        array_clear(&in[i]);
    }
    for (int i = 0; i < 3; i++) {
        free(values_ref[i]);
    }
    free(target);
    free(d_ref);
    free(d_got);
    free(values_got);
}

static void test_table(void **state)
{
    (void)state;
    for (size_t i = 0; i < AGGLO_COUNT(table); i++) {
        run_case(&table[i], i);
    }
}

/* Standardising what a transform decodes is one transform: the composed map, and R m, against the two maps one after the other. */
static void test_compose(void **state)
{
    enum { K = 5, C = 7, M = 3 };
    test_random random = test_random_new(77);
    array q = floats(&random, M * K, AGGLO_F32, 3.0f, 0.0f), r = floats(&random, K * C, AGGLO_F32, 1.0f, 0.0f);
    array mean = floats(&random, C, AGGLO_F32, 1.0f, 0.0f), centre = floats(&random, C, AGGLO_F32, 1.0f, 0.0f);
    array w = floats(&random, C * C, AGGLO_F32, 1.0f, 0.0f), diagonal = floats(&random, C, AGGLO_F32, 1.0f, 0.0f);
    double z[M * C], expected[M * C], got[M * C], composed_r[K * C], composed_mean[C];
    float r_out[K * C], mean_out[C], rotated[K];
    agglo_err err = {0};

    (void)state;
    for (int kind = 0; kind < 3; kind++) {
        ref_target decoded = {K, C, q.value, NULL, NULL, 0.5, NULL, r.value, NULL, mean.value};
        ref_target standard = {
            C,   C, z, NULL, NULL, 2.0, centre.value, kind == 0 ? w.value : NULL, kind == 1 ? diagonal.value : NULL,
            NULL};
        ref_target both = {K, C, q.value, NULL, NULL, 0.5, NULL, composed_r, NULL, composed_mean};

        assert_ok(agglo_map_compose(
            K, C, (const float *)(const void *)r.bytes, (const float *)(const void *)mean.bytes,
            (const float *)(const void *)centre.bytes, kind == 0 ? (const float *)(const void *)w.bytes : NULL,
            kind == 1 ? (const float *)(const void *)diagonal.bytes : NULL, 2.0f, r_out, mean_out, &err));
        for (int i = 0; i < K * C; i++) {
            composed_r[i] = (double)r_out[i];
        }
        for (int i = 0; i < C; i++) {
            composed_mean[i] = (double)mean_out[i];
        }
        ref_target_decode(&decoded, M, z);
        ref_target_decode(&standard, M, expected);
        ref_target_decode(&both, M, got);
        near("compose", "the target", M * C, got, expected, 1e-6);
    }
    agglo_map_rotate_mean(K, C, (const float *)(const void *)r.bytes, (const float *)(const void *)mean.bytes, rotated);
    for (int i = 0; i < K; i++) {
        double sum = 0.0;

        for (int j = 0; j < C; j++) {
            sum += r.value[i * C + j] * mean.value[j];
        }
        assert_true(fabs((double)rotated[i] - sum) < 1e-6 * (1.0 + fabs(sum)));
    }
    array_clear(&q);
    array_clear(&r);
    array_clear(&mean);
    array_clear(&centre);
    array_clear(&w);
    array_clear(&diagonal);
}

/* What rotated mode promises: with all components kept, cosine and squared error of R p against rotated codes are those of p against what
 * the codes decode to. */
static void test_rotated(void **state)
{
    enum { C = 24, M = 6 };
    test_random random = test_random_new(78);
    array q = array_new(M * C, M * C), mean = floats(&random, C, AGGLO_F32, 1.0f, 0.0f);
    array p = floats(&random, M * C, AGGLO_F32, 1.0f, 0.0f), axis = floats(&random, C, AGGLO_F32, 1.0f, 0.0f);
    float r[C * C], pred[2][M * C], rotated_mean[C], cosine[2][M], squared[2][M];
    const float *mean_f = (const float *)(const void *)mean.bytes;
    double length = 0.0;
    agglo_backend *be;
    agglo_err err = {0};

    (void)state;
    test_random_bytes(&random, q.bytes, q.n_bytes);
    for (int i = 0; i < C; i++) {
        length += axis.value[i] * axis.value[i];
    }
    for (int i = 0; i < C; i++) { /* a reflection */
        for (int j = 0; j < C; j++) {
            r[i * C + j] = (float)((i == j ? 1.0 : 0.0) - 2.0 * axis.value[i] * axis.value[j] / length);
        }
    }
    agglo_map_rotate_mean(C, C, r, mean_f, rotated_mean);
    memcpy(pred[0], p.bytes, sizeof pred[0]);
    for (int i = 0; i < M; i++) {
        agglo_map_rotate_mean(C, C, r, pred[0] + i * C, pred[1] + i * C);
    }
    assert_ok(agglo_backend_open(&be, device, 1, &err));
    for (int rotated = 0; rotated < 2; rotated++) {
        const void *host[4] = {q.bytes, r, rotated ? rotated_mean : mean_f, pred[rotated]};
        const size_t bytes[4] = {q.n_bytes, sizeof r, sizeof rotated_mean, sizeof pred[0]};
        void *block[4];
        float *out = agglo_backend_alloc(be, (2 * M + AGGLO_LOSS_SUMS) * sizeof(float), &err);
        agglo_tensor t, cos_t, sq_t, sums;
        agglo_loss_values values = {&cos_t, NULL, &sq_t};
        agglo_target target;

        assert_non_null(out);
        cos_t = agglo_tensor_1d(out, AGGLO_F32, M);
        sq_t = agglo_tensor_1d(out + M, AGGLO_F32, M);
        sums = agglo_tensor_1d(out + 2 * M, AGGLO_F32, AGGLO_LOSS_SUMS);
        for (int i = 0; i < 4; i++) {
            block[i] = agglo_backend_alloc(be, bytes[i], &err);
            assert_non_null(block[i]);
            agglo_upload(be, block[i], host[i], bytes[i]);
        }
        t = agglo_tensor_3d(block[3], AGGLO_F32, 2, M / 2, C);
        target = rotated ? agglo_target_rotated(AGGLO_CODE_I8, block[0], 2, M / 2, C, 0.02f, block[2])
                         : agglo_target_transform(AGGLO_CODE_I8, block[0], 2, M / 2, C, 0.02f, C, block[2], block[1]);
        agglo_target_loss(be, &config, &t, &target, NULL, 1.0f, NULL, &values, &sums);
        agglo_download(be, cosine[rotated], cos_t.data, sizeof cosine[0]);
        agglo_download(be, squared[rotated], sq_t.data, sizeof squared[0]);
        assert_ok(agglo_backend_check(be, &err));
        for (int i = 0; i < 4; i++) {
            agglo_backend_release(be, block[i]);
        }
        agglo_backend_release(be, out);
    }
    for (int i = 0; i < M; i++) {
        assert_true(fabsf(cosine[0][i] - cosine[1][i]) < 1e-5f);
        assert_true(fabsf(squared[0][i] - squared[1][i]) < 1e-5f * squared[0][i]);
    }
    agglo_backend_free(be);
    array_clear(&q);
    array_clear(&mean);
    array_clear(&p);
    array_clear(&axis);
}

/* A factor on the device is one in the configuration, bit for bit: the values, gradients and sums of lambda 0.3. */
static void test_lambda_on_device(void **state)
{
    enum { B = 3, TOKENS = 5, C = 19 };
    const float lambda = 0.3f;
    float pred[B * TOKENS * C], stored[B * TOKENS * C], got[2][B * TOKENS * C], sums[2][AGGLO_LOSS_SUMS];
    test_random random = test_random_new(8);
    agglo_backend *be;
    agglo_err err = {0};
    float *block;

    (void)state;
    assert_ok(agglo_backend_open(&be, device, 2, &err));
    block = agglo_backend_alloc(be, 4 * sizeof pred, &err);
    assert_non_null(block);
    test_random_fill(&random, pred, B * TOKENS * C, 1.0f);
    test_random_fill(&random, stored, B * TOKENS * C, 1.0f);
    for (int k = 0; k < 2; k++) {
        const int64_t n = B * TOKENS * C;
        agglo_loss_config loss = {k == 0 ? lambda : 1.0f, 0.9f, 0.1f, 1.0f, 0.2f};
        agglo_tensor p = agglo_tensor_3d(block, AGGLO_F32, B, TOKENS, C), d = p, t = p, total, factor;
        agglo_loss_weights weights = {.lambda = k == 0 ? NULL : &factor};
        agglo_target target;

        t.data = block + n;
        d.data = block + 2 * n;
        total = agglo_tensor_1d(block + 3 * n, AGGLO_F32, AGGLO_LOSS_SUMS);
        factor = agglo_tensor_1d(block + 3 * n + 64, AGGLO_F32, 1);
        target = agglo_target_of(&t);
        agglo_upload(be, p.data, pred, sizeof pred);
        agglo_upload(be, t.data, stored, sizeof stored);
        agglo_upload(be, factor.data, &lambda, sizeof lambda);
        agglo_zero(be, total.data, sizeof sums[k]);
        agglo_target_loss(be, &loss, &p, &target, &weights, 2.0f, &d, NULL, &total);
        agglo_download(be, got[k], d.data, sizeof got[k]);
        agglo_download(be, sums[k], total.data, sizeof sums[k]);
    }
    assert_ok(agglo_backend_check(be, &err));
    assert_memory_equal(got[0], got[1], sizeof got[0]);
    assert_memory_equal(sums[0], sums[1], sizeof sums[0]);
    assert_true(sums[0][AGGLO_LOSS_TOTAL] != 0.0f && got[0][0] != 0.0f);
    agglo_backend_release(be, block);
    agglo_backend_free(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_compose),
        cmocka_unit_test(test_rotated),
        cmocka_unit_test(test_lambda_on_device),
    };

    device = test_device();
    return test_run("parity_tensor_loss", tests);
}
