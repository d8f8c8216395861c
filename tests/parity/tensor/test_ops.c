/* Every operator against the double-precision reference: one table of operators x shapes.
 *
 * For each row of the table: outputs agree with the reference (max |a - b| / max |b|), gradients agree with central differences of the
 * reference's forward pass, bytes are the same with 1, 2 and 3 threads, and running it again allocates nothing.
 *
 * AGGLO_TEST_DEVICE in the environment names another device than the CPU; then three backends on it must give the same bytes, and the
 * program is skipped where there is no such device. Tolerances are the same: every backend computes in float32.
 */
#include "tests/parity/tensor/test_device.h"
#include "tests/ref/ref.h"
#include "tests/support/support.h"

#include "tensor/backend.h"
#include "tensor/ops.h"

#include <math.h>

/* float32 against double: forward errors are a few ulp times the root of the reduction's length; backward passes chain several. */
#define FORWARD_TOLERANCE  1e-5
#define BACKWARD_TOLERANCE 1e-4
/* of a directional derivative, relative to |gradient| |direction|; the reference's own central difference is good to 1e-7 */
#define DIFFERENCE_TOLERANCE 1e-4

#define MAX_ARRAYS 9

typedef enum array_role {
    IN,      /* drawn */
    OUT,     /* written: filled with rubbish before */
    INOUT,   /* drawn, then added to */
    DERIVED, /* an input that `prepare` computes */
} array_role;

typedef struct array {
    array_role role;
    agglo_dtype dtype;
    int rank;
    int64_t shape[AGGLO_MAX_RANK];
    double *ref;     /* before and after the reference */
    double *initial; /* as drawn */
    double *got;
    uint8_t *bytes; /* as drawn, of dtype; then the first run's result */
} array;

typedef struct test_case {
    const struct op *op;
    int64_t d[6];
    int flags;
    bool differences; /* compare with central differences */
} test_case;

typedef struct op {
    const char *name;
    bool backward;
    int n_arrays;
    void (*shape)(const test_case *c, array *a);
    void (*prepare)(const test_case *c, double **v);
    void (*run)(agglo_backend *be, const test_case *c, agglo_tensor *t);
    void (*ref)(const test_case *c, double **v, const array *a);
    /* sum(d_y * forward(inputs)) and which array is the gradient of which: [input, gradient], -1 ends */
    double (*loss)(const test_case *c, double **v, const array *a);
    int grads[4][2];
} op;

enum {
    ACT = 7, /* mask: an agglo_act */
    BIAS = 8,
    PRE = 16,
    ACCUMULATE = 32,
    GAMMA = 64,
    POS = 128,
    POS_PER_IMAGE = 256,
    PREFIX = 512,
    F16 = 1024,
    BF16 = 2048,
    SOME_INVALID = 4096,
    ALL_INVALID = 8192,
    WITH_LSE = 16384,
    IN_PLACE = 32768,
};

static void set(array *a, array_role role, int rank, const int64_t *shape)
{
    a->role = role;
    a->dtype = AGGLO_F32;
    a->rank = rank;
    memcpy(a->shape, shape, (size_t)rank * sizeof *shape);
}

#define SET(i, role, ...)                                                                                              \
    set(&a[i], role, (int)AGGLO_COUNT(((const int64_t[]){__VA_ARGS__})), (const int64_t[]){__VA_ARGS__})

static int64_t count(const array *a)
{
    int64_t n = 1;

    for (int i = 0; i < a->rank; i++) {
        n *= a->shape[i];
    }
    return n;
}

static double weighted_sum(int64_t n, const double *w, const double *y)
{
    double sum = 0.0;

    for (int64_t i = 0; i < n; i++) {
        sum += w[i] * y[i];
    }
    return sum;
}

static double *scratch(int64_t n)
{
    double *block = calloc((size_t)n, sizeof *block);

    assert_non_null(block);
    return block;
}

static agglo_act act_of(const test_case *c)
{
    return (agglo_act)(c->flags & ACT);
}

/* ref_act has the order of agglo_act */
static ref_act ref_act_of(const test_case *c)
{
    return (ref_act)(c->flags & ACT);
}

static bool has(const test_case *c, int flag)
{
    return (c->flags & flag) != 0;
}

/* ---- linear: d = m, n, k ---- */

static void linear_shape(const test_case *c, array *a)
{
    SET(0, IN, c->d[0], c->d[2]);
    SET(1, IN, c->d[1], c->d[2]);
    SET(2, IN, c->d[1]);
    SET(3, OUT, c->d[0], c->d[1]);
    SET(4, OUT, c->d[0], c->d[1]);
}

static void linear_run(agglo_backend *be, const test_case *c, agglo_tensor *t)
{
    agglo_linear(be, &t[0], &t[1], has(c, BIAS) ? &t[2] : NULL, act_of(c), has(c, PRE) ? &t[4] : NULL, &t[3]);
    if (!has(c, PRE)) {
        agglo_zero(be, t[4].data, agglo_tensor_bytes(&t[4]));
    }
}

static void linear_ref(const test_case *c, double **v, const array *a)
{
    (void)a;
    memset(v[4], 0, (size_t)(c->d[0] * c->d[1]) * sizeof(double));
    ref_linear(c->d[0], c->d[1], c->d[2], v[0], v[1], has(c, BIAS) ? v[2] : NULL, ref_act_of(c),
               has(c, PRE) ? v[4] : NULL, v[3]);
}

/* arrays: d_y, w, d_x */
static void linear_input_shape(const test_case *c, array *a)
{
    SET(0, IN, c->d[0], c->d[1]);
    SET(1, IN, c->d[1], c->d[2]);
    SET(2, has(c, ACCUMULATE) ? INOUT : OUT, c->d[0], c->d[2]);
    SET(3, IN, c->d[0], c->d[2]); /* x, for the differences */
}

static void linear_input_run(agglo_backend *be, const test_case *c, agglo_tensor *t)
{
    agglo_linear_bwd_input(be, &t[0], &t[1], has(c, ACCUMULATE), &t[2]);
}

static void linear_input_ref(const test_case *c, double **v, const array *a)
{
    (void)a;
    ref_linear_bwd_input(c->d[0], c->d[1], c->d[2], v[0], v[1], has(c, ACCUMULATE), v[2]);
}

static double linear_input_loss(const test_case *c, double **v, const array *a)
{
    double *y = scratch(c->d[0] * c->d[1]), sum;

    (void)a;
    ref_linear(c->d[0], c->d[1], c->d[2], v[3], v[1], NULL, REF_NONE, NULL, y);
    sum = weighted_sum(c->d[0] * c->d[1], v[0], y);
    free(y);
    return sum;
}

/* arrays: d_y, x, d_w, d_b, w, b */
static void linear_weight_shape(const test_case *c, array *a)
{
    SET(0, IN, c->d[0], c->d[1]);
    SET(1, IN, c->d[0], c->d[2]);
    SET(2, INOUT, c->d[1], c->d[2]);
    SET(3, INOUT, c->d[1]);
    SET(4, IN, c->d[1], c->d[2]);
    SET(5, IN, c->d[1]);
}

static void linear_weight_run(agglo_backend *be, const test_case *c, agglo_tensor *t)
{
    agglo_linear_bwd_weight(be, &t[0], &t[1], &t[2], has(c, BIAS) ? &t[3] : NULL);
}

static void linear_weight_ref(const test_case *c, double **v, const array *a)
{
    (void)a;
    ref_linear_bwd_weight(c->d[0], c->d[1], c->d[2], v[0], v[1], v[2], has(c, BIAS) ? v[3] : NULL);
}

static double linear_weight_loss(const test_case *c, double **v, const array *a)
{
    double *y = scratch(c->d[0] * c->d[1]), sum;

    (void)a;
    ref_linear(c->d[0], c->d[1], c->d[2], v[1], v[4], has(c, BIAS) ? v[5] : NULL, REF_NONE, NULL, y);
    sum = weighted_sum(c->d[0] * c->d[1], v[0], y);
    free(y);
    return sum;
}

/* ---- activations: d = n ---- */

static void activate_shape(const test_case *c, array *a)
{
    SET(0, IN, c->d[0]);
    SET(1, OUT, c->d[0]);
}

static void activate_run(agglo_backend *be, const test_case *c, agglo_tensor *t)
{
    if (has(c, IN_PLACE)) {
        agglo_copy(be, t[1].data, t[0].data, agglo_tensor_bytes(&t[0]));
        agglo_activate(be, act_of(c), &t[1], &t[1]);
    } else {
        agglo_activate(be, act_of(c), &t[0], &t[1]);
    }
}

static void activate_ref(const test_case *c, double **v, const array *a)
{
    (void)a;
    ref_activate(c->d[0], ref_act_of(c), v[0], v[1]);
}

/* arrays: x, d_y, d_x */
static void activate_bwd_shape(const test_case *c, array *a)
{
    SET(0, IN, c->d[0]);
    SET(1, IN, c->d[0]);
    SET(2, OUT, c->d[0]);
}

static void activate_bwd_run(agglo_backend *be, const test_case *c, agglo_tensor *t)
{
    if (has(c, IN_PLACE)) {
        agglo_copy(be, t[2].data, t[1].data, agglo_tensor_bytes(&t[1]));
        agglo_activate_bwd(be, act_of(c), &t[0], &t[2], &t[2]);
    } else {
        agglo_activate_bwd(be, act_of(c), &t[0], &t[1], &t[2]);
    }
}

static void activate_bwd_ref(const test_case *c, double **v, const array *a)
{
    (void)a;
    ref_activate_bwd(c->d[0], ref_act_of(c), v[0], v[1], v[2]);
}

static double activate_loss(const test_case *c, double **v, const array *a)
{
    double sum = 0.0;

    (void)a;
    for (int64_t i = 0; i < c->d[0]; i++) {
        sum += v[1][i] * ref_act_value(ref_act_of(c), v[0][i]);
    }
    return sum;
}

/* ---- swiglu: d = m, h ---- */

static void swiglu_shape(const test_case *c, array *a)
{
    SET(0, IN, c->d[0], 2 * c->d[1]);
    SET(1, OUT, c->d[0], c->d[1]);
}

static void swiglu_run(agglo_backend *be, const test_case *c, agglo_tensor *t)
{
    (void)c;
    agglo_swiglu(be, &t[0], &t[1]);
}

static void swiglu_ref(const test_case *c, double **v, const array *a)
{
    (void)a;
    ref_swiglu(c->d[0], c->d[1], v[0], v[1]);
}

/* arrays: u, d_y, d_u */
static void swiglu_bwd_shape(const test_case *c, array *a)
{
    SET(0, IN, c->d[0], 2 * c->d[1]);
    SET(1, IN, c->d[0], c->d[1]);
    SET(2, OUT, c->d[0], 2 * c->d[1]);
}

static void swiglu_bwd_run(agglo_backend *be, const test_case *c, agglo_tensor *t)
{
    (void)c;
    agglo_swiglu_bwd(be, &t[0], &t[1], &t[2]);
}

static void swiglu_bwd_ref(const test_case *c, double **v, const array *a)
{
    (void)a;
    ref_swiglu_bwd(c->d[0], c->d[1], v[0], v[1], v[2]);
}

static double swiglu_loss(const test_case *c, double **v, const array *a)
{
    double *y = scratch(c->d[0] * c->d[1]), sum;

    (void)a;
    ref_swiglu(c->d[0], c->d[1], v[0], y);
    sum = weighted_sum(c->d[0] * c->d[1], v[1], y);
    free(y);
    return sum;
}

/* ---- layernorm: d = m, c ---- */

#define NORM_EPS 1e-5

static void layernorm_shape(const test_case *c, array *a)
{
    SET(0, IN, c->d[0], c->d[1]);
    SET(1, IN, c->d[1]);
    SET(2, IN, c->d[1]);
    SET(3, OUT, c->d[0], c->d[1]);
    SET(4, OUT, c->d[0]);
    SET(5, OUT, c->d[0]);
}

static void layernorm_run(agglo_backend *be, const test_case *c, agglo_tensor *t)
{
    if (has(c, IN_PLACE)) {
        agglo_layernorm(be, &t[0], &t[1], &t[2], (float)NORM_EPS, &t[3], &t[4], &t[5]); /* statistics */
        agglo_copy(be, t[3].data, t[0].data, agglo_tensor_bytes(&t[0]));
        agglo_layernorm(be, &t[3], &t[1], &t[2], (float)NORM_EPS, &t[3], NULL, NULL);
    } else {
        agglo_layernorm(be, &t[0], &t[1], &t[2], (float)NORM_EPS, &t[3], &t[4], &t[5]);
    }
}

static void layernorm_ref(const test_case *c, double **v, const array *a)
{
    (void)a;
    ref_layernorm(c->d[0], c->d[1], v[0], v[1], v[2], NORM_EPS, v[3], v[4], v[5]);
}

/* arrays: d_y, x, w, mean, rstd, d_x, d_w, d_b, b */
static void layernorm_bwd_shape(const test_case *c, array *a)
{
    SET(0, IN, c->d[0], c->d[1]);
    SET(1, IN, c->d[0], c->d[1]);
    SET(2, IN, c->d[1]);
    SET(3, DERIVED, c->d[0]);
    SET(4, DERIVED, c->d[0]);
    SET(5, has(c, ACCUMULATE) ? INOUT : OUT, c->d[0], c->d[1]);
    SET(6, INOUT, c->d[1]);
    SET(7, INOUT, c->d[1]);
    SET(8, IN, c->d[1]);
}

static void layernorm_bwd_prepare(const test_case *c, double **v)
{
    double *y = scratch(c->d[0] * c->d[1]);

    ref_layernorm(c->d[0], c->d[1], v[1], v[2], v[8], NORM_EPS, y, v[3], v[4]);
    free(y);
}

static void layernorm_bwd_run(agglo_backend *be, const test_case *c, agglo_tensor *t)
{
    agglo_layernorm_bwd(be, &t[0], &t[1], &t[2], &t[3], &t[4], has(c, ACCUMULATE), &t[5], &t[6], &t[7]);
}

static void layernorm_bwd_ref(const test_case *c, double **v, const array *a)
{
    (void)a;
    ref_layernorm_bwd(c->d[0], c->d[1], v[0], v[1], v[2], NORM_EPS, has(c, ACCUMULATE), v[5], v[6], v[7]);
}

static double layernorm_loss(const test_case *c, double **v, const array *a)
{
    double *y = scratch(c->d[0] * c->d[1]), sum;

    (void)a;
    ref_layernorm(c->d[0], c->d[1], v[1], v[2], v[8], NORM_EPS, y, NULL, NULL);
    sum = weighted_sum(c->d[0] * c->d[1], v[0], y);
    free(y);
    return sum;
}

/* ---- attention: d = b, n, h, head dim ---- */

static double attention_scale(const test_case *c)
{
    return (double)(float)(1.0 / sqrt((double)c->d[3]));
}

static void attention_shape(const test_case *c, array *a)
{
    SET(0, IN, c->d[0], c->d[1], 3, c->d[2], c->d[3]);
    SET(1, OUT, c->d[0], c->d[1], c->d[2], c->d[3]);
    SET(2, OUT, c->d[0], c->d[2], c->d[1]);
}

static void attention_run(agglo_backend *be, const test_case *c, agglo_tensor *t)
{
    agglo_attention(be, &t[0], (float)attention_scale(c), &t[1], has(c, WITH_LSE) ? &t[2] : NULL);
    if (!has(c, WITH_LSE)) {
        agglo_zero(be, t[2].data, agglo_tensor_bytes(&t[2]));
    }
}

static void attention_ref(const test_case *c, double **v, const array *a)
{
    (void)a;
    memset(v[2], 0, (size_t)(c->d[0] * c->d[1] * c->d[2]) * sizeof(double));
    ref_attention(c->d[0], c->d[1], c->d[2], c->d[3], v[0], attention_scale(c), v[1], has(c, WITH_LSE) ? v[2] : NULL);
}

/* arrays: d_out, qkv, out, lse, d_qkv */
static void attention_bwd_shape(const test_case *c, array *a)
{
    SET(0, IN, c->d[0], c->d[1], c->d[2], c->d[3]);
    SET(1, IN, c->d[0], c->d[1], 3, c->d[2], c->d[3]);
    SET(2, DERIVED, c->d[0], c->d[1], c->d[2], c->d[3]);
    SET(3, DERIVED, c->d[0], c->d[2], c->d[1]);
    SET(4, OUT, c->d[0], c->d[1], 3, c->d[2], c->d[3]);
}

static void attention_bwd_prepare(const test_case *c, double **v)
{
    ref_attention(c->d[0], c->d[1], c->d[2], c->d[3], v[1], attention_scale(c), v[2], v[3]);
}

static void attention_bwd_run(agglo_backend *be, const test_case *c, agglo_tensor *t)
{
    agglo_attention_bwd(be, &t[0], &t[1], &t[2], &t[3], (float)attention_scale(c), &t[4]);
}

static void attention_bwd_ref(const test_case *c, double **v, const array *a)
{
    (void)a;
    ref_attention_bwd(c->d[0], c->d[1], c->d[2], c->d[3], v[0], v[1], attention_scale(c), v[4]);
}

static double attention_loss(const test_case *c, double **v, const array *a)
{
    double *out = scratch(count(&a[0])), sum;

    ref_attention(c->d[0], c->d[1], c->d[2], c->d[3], v[1], attention_scale(c), out, NULL);
    sum = weighted_sum(count(&a[0]), v[0], out);
    free(out);
    return sum;
}

/* ---- residual: d = m, c ---- */

static void residual_shape(const test_case *c, array *a)
{
    SET(0, IN, c->d[0], c->d[1]);
    SET(1, IN, c->d[0], c->d[1]);
    SET(2, IN, c->d[1]);
    SET(3, OUT, c->d[0], c->d[1]);
}

static void residual_run(agglo_backend *be, const test_case *c, agglo_tensor *t)
{
    if (has(c, IN_PLACE)) {
        agglo_copy(be, t[3].data, t[1].data, agglo_tensor_bytes(&t[1]));
        agglo_residual(be, &t[0], &t[3], has(c, GAMMA) ? &t[2] : NULL, &t[3]);
    } else {
        agglo_residual(be, &t[0], &t[1], has(c, GAMMA) ? &t[2] : NULL, &t[3]);
    }
}

static void residual_ref(const test_case *c, double **v, const array *a)
{
    (void)a;
    ref_residual(c->d[0], c->d[1], v[0], v[1], has(c, GAMMA) ? v[2] : NULL, v[3]);
}

/* arrays: d_y, h, gamma, d_h, d_gamma */
static void residual_bwd_shape(const test_case *c, array *a)
{
    SET(0, IN, c->d[0], c->d[1]);
    SET(1, IN, c->d[0], c->d[1]);
    SET(2, IN, c->d[1]);
    SET(3, OUT, c->d[0], c->d[1]);
    SET(4, INOUT, c->d[1]);
}

static void residual_bwd_run(agglo_backend *be, const test_case *c, agglo_tensor *t)
{
    if (has(c, IN_PLACE)) {
        agglo_copy(be, t[3].data, t[0].data, agglo_tensor_bytes(&t[0]));
        agglo_residual_bwd(be, &t[3], &t[1], &t[2], &t[3], &t[4]);
    } else {
        agglo_residual_bwd(be, &t[0], &t[1], &t[2], &t[3], &t[4]);
    }
}

static void residual_bwd_ref(const test_case *c, double **v, const array *a)
{
    (void)a;
    ref_residual_bwd(c->d[0], c->d[1], v[0], v[1], v[2], v[3], v[4]);
}

static double residual_loss(const test_case *c, double **v, const array *a)
{
    double sum = 0.0;

    for (int64_t i = 0; i < count(&a[0]); i++) {
        sum += v[0][i] * v[2][i % c->d[1]] * v[1][i];
    }
    return sum;
}

/* ---- patchify: d = b, height, width, patch ---- */

static const float pixel_mean[3] = {0.48145466f, 0.4578275f, 0.40821073f};
static const float pixel_std[3] = {0.26862954f, 0.26130258f, 0.27577711f};

static void patchify_shape(const test_case *c, array *a)
{
    SET(0, IN, c->d[0], c->d[1], c->d[2], 3);
    a[0].dtype = AGGLO_U8;
    SET(1, OUT, c->d[0], c->d[1] / c->d[3] * (c->d[2] / c->d[3]), 3 * c->d[3] * c->d[3]);
}

static void patchify_run(agglo_backend *be, const test_case *c, agglo_tensor *t)
{
    agglo_patchify(be, &t[0], pixel_mean, pixel_std, (int)c->d[3], &t[1]);
}

static void patchify_ref(const test_case *c, double **v, const array *a)
{
    double mean[3], std[3];
    uint8_t *pixels = malloc((size_t)count(&a[0]));

    assert_non_null(pixels);
    for (int64_t i = 0; i < count(&a[0]); i++) {
        pixels[i] = (uint8_t)v[0][i];
    }
    for (int i = 0; i < 3; i++) {
        mean[i] = (double)pixel_mean[i];
        std[i] = (double)pixel_std[i];
    }
    ref_patchify(c->d[0], c->d[1], c->d[2], c->d[3], pixels, mean, std, v[1]);
    free(pixels);
}

/* ---- tokens: d = b, prefix, n, c (slice: b, total, first, n, c) ---- */

static int64_t pos_images(const test_case *c)
{
    return has(c, POS_PER_IMAGE) ? c->d[0] : 1;
}

static void join_shape(const test_case *c, array *a)
{
    SET(0, IN, c->d[1] > 0 ? c->d[1] : 1, c->d[3]);
    SET(1, IN, c->d[0], c->d[2], c->d[3]);
    SET(2, IN, pos_images(c), c->d[2], c->d[3]);
    SET(3, OUT, c->d[0], c->d[1] + c->d[2], c->d[3]);
}

static void join_run(agglo_backend *be, const test_case *c, agglo_tensor *t)
{
    agglo_tensor pos = pos_images(c) == 1 ? agglo_tensor_rows(&t[2]) : t[2];

    agglo_tokens_join(be, c->d[1] > 0 ? &t[0] : NULL, &t[1], has(c, POS) ? &pos : NULL, &t[3]);
}

static void join_ref(const test_case *c, double **v, const array *a)
{
    (void)a;
    ref_tokens_join(c->d[0], c->d[1], c->d[2], c->d[3], v[0], v[1], has(c, POS) ? v[2] : NULL, pos_images(c), v[3]);
}

/* arrays: d_y, d_prefix, d_patches, d_pos, prefix, patches, pos */
static void join_bwd_shape(const test_case *c, array *a)
{
    SET(0, IN, c->d[0], c->d[1] + c->d[2], c->d[3]);
    SET(1, INOUT, c->d[1] > 0 ? c->d[1] : 1, c->d[3]);
    SET(2, OUT, c->d[0], c->d[2], c->d[3]);
    SET(3, INOUT, pos_images(c), c->d[2], c->d[3]);
    SET(4, IN, c->d[1] > 0 ? c->d[1] : 1, c->d[3]);
    SET(5, IN, c->d[0], c->d[2], c->d[3]);
    SET(6, IN, pos_images(c), c->d[2], c->d[3]);
}

static void join_bwd_run(agglo_backend *be, const test_case *c, agglo_tensor *t)
{
    agglo_tensor d_pos = pos_images(c) == 1 ? agglo_tensor_rows(&t[3]) : t[3];

    agglo_tokens_join_bwd(be, &t[0], c->d[1] > 0 ? &t[1] : NULL, &t[2], has(c, POS) ? &d_pos : NULL);
}

static void join_bwd_ref(const test_case *c, double **v, const array *a)
{
    (void)a;
    ref_tokens_join_bwd(c->d[0], c->d[1], c->d[2], c->d[3], v[0], c->d[1] > 0 ? v[1] : NULL, v[2],
                        has(c, POS) ? v[3] : NULL, pos_images(c));
}

static double join_loss(const test_case *c, double **v, const array *a)
{
    double *y = scratch(count(&a[0])), sum;

    ref_tokens_join(c->d[0], c->d[1], c->d[2], c->d[3], v[4], v[5], has(c, POS) ? v[6] : NULL, pos_images(c), y);
    sum = weighted_sum(count(&a[0]), v[0], y);
    free(y);
    return sum;
}

static void slice_shape(const test_case *c, array *a)
{
    SET(0, IN, c->d[0], c->d[1], c->d[4]);
    SET(1, OUT, c->d[0], c->d[3], c->d[4]);
}

static void slice_run(agglo_backend *be, const test_case *c, agglo_tensor *t)
{
    agglo_tokens_slice(be, &t[0], c->d[2], &t[1]);
}

static void slice_ref(const test_case *c, double **v, const array *a)
{
    (void)a;
    ref_tokens_slice(c->d[0], c->d[1], c->d[2], c->d[3], c->d[4], v[0], v[1]);
}

/* arrays: d_y, d_x: rows outside the slice are left alone, so d_x is drawn even when it is written */
static void slice_bwd_shape(const test_case *c, array *a)
{
    SET(0, IN, c->d[0], c->d[3], c->d[4]);
    SET(1, INOUT, c->d[0], c->d[1], c->d[4]);
}

static void slice_bwd_run(agglo_backend *be, const test_case *c, agglo_tensor *t)
{
    agglo_tokens_slice_bwd(be, &t[0], c->d[2], has(c, ACCUMULATE), &t[1]);
}

static void slice_bwd_ref(const test_case *c, double **v, const array *a)
{
    (void)a;
    ref_tokens_slice_bwd(c->d[0], c->d[1], c->d[2], c->d[3], c->d[4], v[0], has(c, ACCUMULATE), v[1]);
}

/* d = b, n, c */
static void mean_shape(const test_case *c, array *a)
{
    SET(0, IN, c->d[0], c->d[1], c->d[2]);
    SET(1, OUT, c->d[0], c->d[2]);
}

static void mean_run(agglo_backend *be, const test_case *c, agglo_tensor *t)
{
    (void)c;
    agglo_tokens_mean(be, &t[0], &t[1]);
}

static void mean_ref(const test_case *c, double **v, const array *a)
{
    (void)a;
    ref_tokens_mean(c->d[0], c->d[1], c->d[2], v[0], v[1]);
}

/* arrays: d_y, d_x, x */
static void mean_bwd_shape(const test_case *c, array *a)
{
    SET(0, IN, c->d[0], c->d[2]);
    SET(1, has(c, ACCUMULATE) ? INOUT : OUT, c->d[0], c->d[1], c->d[2]);
    SET(2, IN, c->d[0], c->d[1], c->d[2]);
}

static void mean_bwd_run(agglo_backend *be, const test_case *c, agglo_tensor *t)
{
    agglo_tokens_mean_bwd(be, &t[0], has(c, ACCUMULATE), &t[1]);
}

static void mean_bwd_ref(const test_case *c, double **v, const array *a)
{
    (void)a;
    ref_tokens_mean_bwd(c->d[0], c->d[1], c->d[2], v[0], has(c, ACCUMULATE), v[1]);
}

static double mean_loss(const test_case *c, double **v, const array *a)
{
    double *y = scratch(count(&a[0])), sum;

    ref_tokens_mean(c->d[0], c->d[1], c->d[2], v[2], y);
    sum = weighted_sum(count(&a[0]), v[0], y);
    free(y);
    return sum;
}

/* ---- resize: d = b, h_in, w_in, h_out, w_out, c ---- */

static void resize_shape(const test_case *c, array *a)
{
    SET(0, IN, c->d[0], c->d[1], c->d[2], c->d[5]);
    SET(1, OUT, c->d[0], c->d[3], c->d[4], c->d[5]);
}

static void resize_run(agglo_backend *be, const test_case *c, agglo_tensor *t)
{
    (void)c;
    agglo_resize_bilinear(be, &t[0], &t[1]);
}

static void resize_ref(const test_case *c, double **v, const array *a)
{
    (void)a;
    ref_resize_bilinear(c->d[0], c->d[1], c->d[2], c->d[3], c->d[4], c->d[5], v[0], v[1]);
}

/* arrays: d_y, d_x, x */
static void resize_bwd_shape(const test_case *c, array *a)
{
    SET(0, IN, c->d[0], c->d[3], c->d[4], c->d[5]);
    SET(1, has(c, ACCUMULATE) ? INOUT : OUT, c->d[0], c->d[1], c->d[2], c->d[5]);
    SET(2, IN, c->d[0], c->d[1], c->d[2], c->d[5]);
}

static void resize_bwd_run(agglo_backend *be, const test_case *c, agglo_tensor *t)
{
    agglo_resize_bilinear_bwd(be, &t[0], has(c, ACCUMULATE), &t[1]);
}

static void resize_bwd_ref(const test_case *c, double **v, const array *a)
{
    (void)a;
    ref_resize_bilinear_bwd(c->d[0], c->d[1], c->d[2], c->d[3], c->d[4], c->d[5], v[0], has(c, ACCUMULATE), v[1]);
}

static double resize_loss(const test_case *c, double **v, const array *a)
{
    double *y = scratch(count(&a[0])), sum;

    ref_resize_bilinear(c->d[0], c->d[1], c->d[2], c->d[3], c->d[4], c->d[5], v[2], y);
    sum = weighted_sum(count(&a[0]), v[0], y);
    free(y);
    return sum;
}

/* ---- loss: d = b, n, c; arrays: pred, target, valid, d_pred, sums ---- */

#define GRAD_SCALE 0.5

static const agglo_loss_config loss_config = {1.5f, 0.9f, 0.1f, 1.0f, 0.0f};
static const ref_loss_config ref_config = {1.5, (double)0.9f, (double)0.1f, 1.0};

static void loss_shape(const test_case *c, array *a)
{
    SET(0, IN, c->d[0], c->d[1], c->d[2]);
    SET(1, IN, c->d[0], c->d[1], c->d[2]);
    a[1].dtype = has(c, F16) ? AGGLO_F16 : has(c, BF16) ? AGGLO_BF16 : AGGLO_F32;
    SET(2, DERIVED, c->d[0]);
    SET(3, OUT, c->d[0], c->d[1], c->d[2]);
    SET(4, INOUT, 4);
}

static void loss_prepare(const test_case *c, double **v)
{
    for (int64_t b = 0; b < c->d[0]; b++) {
        v[2][b] = has(c, ALL_INVALID) || (has(c, SOME_INVALID) && b % 3 == 1) ? 0.0 : 1.0;
    }
}

static const double *valid_of(const test_case *c, double **v)
{
    return has(c, SOME_INVALID) || has(c, ALL_INVALID) ? v[2] : NULL;
}

static void loss_run(agglo_backend *be, const test_case *c, agglo_tensor *t)
{
    agglo_distill_loss(be, &loss_config, &t[0], &t[1], has(c, SOME_INVALID) || has(c, ALL_INVALID) ? &t[2] : NULL,
                       (float)GRAD_SCALE, &t[3], &t[4]);
}

static void loss_ref(const test_case *c, double **v, const array *a)
{
    (void)a;
    ref_distill_loss(&ref_config, c->d[0], c->d[1], c->d[2], v[0], v[1], valid_of(c, v), GRAD_SCALE, v[3], v[4]);
}

static double loss_loss(const test_case *c, double **v, const array *a)
{
    (void)a;
    return GRAD_SCALE *
           ref_distill_loss(&ref_config, c->d[0], c->d[1], c->d[2], v[0], v[1], valid_of(c, v), 1.0, NULL, NULL);
}

/* ---- optimiser and the rest: d = n ---- */

static void adamw_shape(const test_case *c, array *a)
{
    SET(0, INOUT, c->d[0]);
    SET(1, IN, c->d[0]);
    SET(2, INOUT, c->d[0]);
    SET(3, INOUT, c->d[0]);
    SET(4, DERIVED, c->d[0]);
}

static const agglo_adamw_config adamw_config = {1e-2f, 0.9f, 0.999f, 1e-8f, 0.05f, 0.7f, 3};

static void adamw_run(agglo_backend *be, const test_case *c, agglo_tensor *t)
{
    (void)c;
    agglo_activate(be, AGGLO_ACT_RELU, &t[3], &t[3]); /* second moments are not negative */
    agglo_adamw(be, &adamw_config, &t[0], &t[1], &t[2], &t[3]);
}

static void adamw_ref(const test_case *c, double **v, const array *a)
{
    ref_adamw_config config = {
        (double)adamw_config.lr,  (double)adamw_config.beta1,        (double)adamw_config.beta2,
        (double)adamw_config.eps, (double)adamw_config.weight_decay, (double)adamw_config.grad_scale,
        adamw_config.step};

    (void)a;
    ref_activate(c->d[0], REF_RELU, v[3], v[3]);
    ref_adamw(&config, c->d[0], v[0], v[1], v[2], v[3]);
}

static void squares_shape(const test_case *c, array *a)
{
    SET(0, IN, c->d[0]);
    SET(1, INOUT, 1);
}

static void squares_run(agglo_backend *be, const test_case *c, agglo_tensor *t)
{
    (void)c;
    agglo_sum_squares(be, &t[0], &t[1]);
}

static void squares_ref(const test_case *c, double **v, const array *a)
{
    (void)a;
    v[1][0] += ref_sum_squares(c->d[0], v[0]);
}

static void axpy_shape(const test_case *c, array *a)
{
    SET(0, IN, c->d[0]);
    SET(1, INOUT, c->d[0]);
}

static void axpy_run(agglo_backend *be, const test_case *c, agglo_tensor *t)
{
    (void)c;
    agglo_axpy(be, -0.75f, &t[0], &t[1]);
}

static void axpy_ref(const test_case *c, double **v, const array *a)
{
    (void)a;
    for (int64_t i = 0; i < c->d[0]; i++) {
        v[1][i] += -0.75 * v[0][i];
    }
}

static void cast_shape(const test_case *c, array *a)
{
    SET(0, IN, c->d[0]);
    a[0].dtype = has(c, F16) ? AGGLO_F16 : has(c, BF16) ? AGGLO_BF16 : AGGLO_F32;
    SET(1, OUT, c->d[0]);
}

static void cast_run(agglo_backend *be, const test_case *c, agglo_tensor *t)
{
    (void)c;
    agglo_cast(be, &t[0], &t[1]);
}

static void cast_ref(const test_case *c, double **v, const array *a)
{
    (void)a;
    memcpy(v[1], v[0], (size_t)c->d[0] * sizeof(double));
}

#define END                                                                                                            \
    {                                                                                                                  \
        -1, -1                                                                                                         \
    }

static const op op_linear = {"linear", false, 5, linear_shape, NULL, linear_run, linear_ref, NULL, {END}};
static const op op_linear_bwd_input = {
    "linear_bwd_input", true,         4, linear_input_shape, NULL, linear_input_run, linear_input_ref,
    linear_input_loss,  {{3, 2}, END}};
static const op op_linear_bwd_weight = {
    "linear_bwd_weight",  true, 6, linear_weight_shape, NULL, linear_weight_run, linear_weight_ref, linear_weight_loss,
    {{4, 2}, {5, 3}, END}};
static const op op_activate = {"activate", false, 2, activate_shape, NULL, activate_run, activate_ref, NULL, {END}};
static const op op_activate_bwd = {"activate_bwd",     true,          3,
                                   activate_bwd_shape, NULL,          activate_bwd_run,
                                   activate_bwd_ref,   activate_loss, {{0, 2}, END}};
static const op op_swiglu = {"swiglu", false, 2, swiglu_shape, NULL, swiglu_run, swiglu_ref, NULL, {END}};
static const op op_swiglu_bwd = {"swiglu_bwd",   true,           3,           swiglu_bwd_shape, NULL,
                                 swiglu_bwd_run, swiglu_bwd_ref, swiglu_loss, {{0, 2}, END}};
static const op op_layernorm = {"layernorm",   false, 6,    layernorm_shape, NULL, layernorm_run,
                                layernorm_ref, NULL,  {END}};
static const op op_layernorm_bwd = {"layernorm_bwd",
                                    true,
                                    9,
                                    layernorm_bwd_shape,
                                    layernorm_bwd_prepare,
                                    layernorm_bwd_run,
                                    layernorm_bwd_ref,
                                    layernorm_loss,
                                    {{1, 5}, {2, 6}, {8, 7}, END}};
static const op op_attention = {"attention",   false, 3,    attention_shape, NULL, attention_run,
                                attention_ref, NULL,  {END}};
static const op op_attention_bwd = {
    "attention_bwd", true,         5, attention_bwd_shape, attention_bwd_prepare, attention_bwd_run, attention_bwd_ref,
    attention_loss,  {{1, 4}, END}};
static const op op_residual = {"residual", false, 4, residual_shape, NULL, residual_run, residual_ref, NULL, {END}};
static const op op_residual_bwd = {"residual_bwd",     true,          5,
                                   residual_bwd_shape, NULL,          residual_bwd_run,
                                   residual_bwd_ref,   residual_loss, {{1, 3}, {2, 4}, END}};
static const op op_patchify = {"patchify", false, 2, patchify_shape, NULL, patchify_run, patchify_ref, NULL, {END}};
static const op op_tokens_join = {"tokens_join", false, 4, join_shape, NULL, join_run, join_ref, NULL, {END}};
static const op op_tokens_join_bwd = {"tokens_join_bwd", true,      7,
                                      join_bwd_shape,    NULL,      join_bwd_run,
                                      join_bwd_ref,      join_loss, {{4, 1}, {5, 2}, {6, 3}, END}};
static const op op_tokens_slice = {"tokens_slice", false, 2, slice_shape, NULL, slice_run, slice_ref, NULL, {END}};
static const op op_tokens_slice_bwd = {"tokens_slice_bwd", true, 2,    slice_bwd_shape, NULL, slice_bwd_run,
                                       slice_bwd_ref,      NULL, {END}};
static const op op_tokens_mean = {"tokens_mean", false, 2, mean_shape, NULL, mean_run, mean_ref, NULL, {END}};
static const op op_tokens_mean_bwd = {"tokens_mean_bwd", true,         3,         mean_bwd_shape, NULL,
                                      mean_bwd_run,      mean_bwd_ref, mean_loss, {{2, 1}, END}};
static const op op_resize = {"resize_bilinear", false, 2, resize_shape, NULL, resize_run, resize_ref, NULL, {END}};
static const op op_resize_bwd = {"resize_bilinear_bwd", true,           3,           resize_bwd_shape, NULL,
                                 resize_bwd_run,        resize_bwd_ref, resize_loss, {{2, 1}, END}};
static const op op_loss = {"distill_loss", true,     5,         loss_shape,   loss_prepare,
                           loss_run,       loss_ref, loss_loss, {{0, 3}, END}};
static const op op_adamw = {"adamw", false, 4, adamw_shape, NULL, adamw_run, adamw_ref, NULL, {END}};
static const op op_sum_squares = {"sum_squares", false, 2, squares_shape, NULL, squares_run, squares_ref, NULL, {END}};
static const op op_axpy = {"axpy", false, 2, axpy_shape, NULL, axpy_run, axpy_ref, NULL, {END}};
static const op op_cast = {"cast", false, 2, cast_shape, NULL, cast_run, cast_ref, NULL, {END}};

static const test_case table[] = {
    {&op_linear, {1, 1, 1}, 0, false},
    {&op_linear, {1, 17, 5}, BIAS | AGGLO_ACT_GELU | PRE, false},
    {&op_linear, {3, 300, 33}, BIAS | AGGLO_ACT_QUICK_GELU | PRE, false},
    {&op_linear, {65, 129, 70}, BIAS, false},
    {&op_linear, {257, 96, 48}, AGGLO_ACT_SILU | PRE, false},
    {&op_linear, {515, 131, 64}, BIAS | AGGLO_ACT_RELU, false},
    {&op_linear, {700, 40, 588}, BIAS | PRE, false},
    {&op_linear_bwd_input, {1, 1, 1}, 0, true},
    {&op_linear_bwd_input, {7, 33, 19}, ACCUMULATE, true},
    {&op_linear_bwd_input, {300, 65, 130}, 0, false},
    {&op_linear_bwd_input, {515, 40, 17}, ACCUMULATE, false},
    {&op_linear_bwd_weight, {1, 1, 1}, BIAS, true},
    {&op_linear_bwd_weight, {31, 19, 23}, BIAS, true},
    {&op_linear_bwd_weight, {600, 130, 33}, 0, false},
    {&op_linear_bwd_weight, {130, 1030, 65}, BIAS, false},
    {&op_linear_bwd_weight, {1000, 24, 300}, BIAS, false},
    {&op_activate, {1}, AGGLO_ACT_GELU, false},
    {&op_activate, {1000}, AGGLO_ACT_NONE, false},
    {&op_activate, {20011}, AGGLO_ACT_GELU, false},
    {&op_activate, {20011}, AGGLO_ACT_GELU | IN_PLACE, false},
    {&op_activate, {20011}, AGGLO_ACT_QUICK_GELU, false},
    {&op_activate, {777}, AGGLO_ACT_SILU | IN_PLACE, false},
    {&op_activate, {777}, AGGLO_ACT_RELU, false},
    {&op_activate_bwd, {1}, AGGLO_ACT_GELU, true},
    {&op_activate_bwd, {1000}, AGGLO_ACT_NONE | IN_PLACE, true},
    {&op_activate_bwd, {20011}, AGGLO_ACT_GELU, true},
    {&op_activate_bwd, {20011}, AGGLO_ACT_QUICK_GELU | IN_PLACE, true},
    {&op_activate_bwd, {777}, AGGLO_ACT_SILU, true},
    {&op_activate_bwd, {777}, AGGLO_ACT_RELU, false}, /* not differentiable where differences might cross 0 */
    {&op_swiglu, {1, 1}, 0, false},
    {&op_swiglu, {37, 171}, 0, false},
    {&op_swiglu, {300, 96}, 0, false},
    {&op_swiglu_bwd, {1, 1}, 0, true},
    {&op_swiglu_bwd, {37, 171}, 0, true},
    {&op_layernorm, {1, 2}, 0, false},
    {&op_layernorm, {5, 17}, IN_PLACE, false},
    {&op_layernorm, {300, 96}, 0, false},
    {&op_layernorm, {33, 768}, 0, false},
    {&op_layernorm, {20, 1408}, IN_PLACE, false},
    {&op_layernorm_bwd, {1, 3}, 0, true},
    {&op_layernorm_bwd, {19, 33}, ACCUMULATE, true},
    {&op_layernorm_bwd, {300, 96}, 0, true},
    {&op_layernorm_bwd, {1100, 40}, ACCUMULATE, false},
    {&op_layernorm_bwd, {5000, 21}, 0, false},
    {&op_layernorm_bwd, {33, 1280}, 0, false},
    {&op_attention, {1, 1, 1, 1}, WITH_LSE, false},
    {&op_attention, {2, 5, 3, 7}, WITH_LSE, false},
    {&op_attention, {2, 65, 3, 32}, WITH_LSE, false},
    {&op_attention, {1, 197, 2, 64}, 0, false},
    {&op_attention, {1, 257, 1, 80}, WITH_LSE, false},
    {&op_attention, {1, 193, 1, 88}, WITH_LSE, false},
    {&op_attention, {1, 301, 1, 104}, WITH_LSE, false},
    {&op_attention, {2, 65, 1, 128}, WITH_LSE, false},
    {&op_attention_bwd, {1, 1, 1, 1}, 0, true},
    {&op_attention_bwd, {2, 5, 3, 7}, 0, true},
    {&op_attention_bwd, {2, 34, 3, 16}, 0, true},
    {&op_attention_bwd, {1, 65, 2, 32}, 0, true},
    {&op_attention_bwd, {1, 197, 1, 64}, 0, false},
    {&op_attention_bwd, {1, 257, 1, 80}, 0, false},
    {&op_attention_bwd, {1, 70, 1, 88}, 0, false},
    {&op_attention_bwd, {1, 301, 1, 104}, 0, false},
    {&op_attention_bwd, {2, 33, 1, 128}, 0, false},
    {&op_residual, {1, 1}, 0, false},
    {&op_residual, {77, 65}, GAMMA, false},
    {&op_residual, {77, 65}, GAMMA | IN_PLACE, false},
    {&op_residual, {300, 96}, IN_PLACE, false},
    {&op_residual_bwd, {1, 1}, 0, true},
    {&op_residual_bwd, {77, 300}, 0, true},
    {&op_residual_bwd, {600, 65}, IN_PLACE, true},
    {&op_residual_bwd, {5000, 35}, 0, false},
    {&op_patchify, {1, 4, 4, 4}, 0, false},
    {&op_patchify, {2, 12, 20, 4}, 0, false},
    {&op_patchify, {3, 28, 42, 14}, 0, false},
    {&op_tokens_join, {1, 0, 1, 1}, 0, false},
    {&op_tokens_join, {3, 1, 16, 33}, POS, false},
    {&op_tokens_join, {3, 5, 7, 20}, POS | POS_PER_IMAGE, false},
    {&op_tokens_join, {2, 2, 9, 12}, 0, false},
    {&op_tokens_join_bwd, {3, 1, 16, 33}, POS, true},
    {&op_tokens_join_bwd, {3, 5, 7, 20}, POS | POS_PER_IMAGE, true},
    {&op_tokens_join_bwd, {2, 0, 9, 12}, 0, false},
    {&op_tokens_slice, {3, 17, 1, 16, 33}, 0, false},
    {&op_tokens_slice, {2, 9, 0, 1, 12}, 0, false},
    {&op_tokens_slice_bwd, {3, 17, 1, 16, 33}, 0, false},
    {&op_tokens_slice_bwd, {2, 9, 0, 1, 12}, ACCUMULATE, false},
    {&op_tokens_mean, {1, 1, 1}, 0, false},
    {&op_tokens_mean, {3, 257, 65}, 0, false},
    {&op_tokens_mean_bwd, {3, 31, 65}, 0, true},
    {&op_tokens_mean_bwd, {2, 9, 12}, ACCUMULATE, true},
    {&op_resize, {1, 1, 1, 3, 2, 1}, 0, false},
    {&op_resize, {2, 4, 5, 9, 7, 33}, 0, false},
    {&op_resize, {2, 9, 7, 4, 5, 16}, 0, false},
    {&op_resize, {1, 16, 16, 16, 16, 8}, 0, false},
    {&op_resize_bwd, {1, 1, 1, 3, 2, 1}, 0, true},
    {&op_resize_bwd, {2, 4, 5, 9, 7, 150}, ACCUMULATE, false},
    {&op_resize_bwd, {2, 9, 7, 4, 5, 16}, 0, true},
    {&op_loss, {1, 1, 5}, 0, true},
    {&op_loss, {5, 1, 513}, F16 | SOME_INVALID, true},
    {&op_loss, {5, 17, 96}, SOME_INVALID, true},
    {&op_loss, {4, 49, 65}, F16, true},
    {&op_loss, {4, 49, 65}, BF16 | SOME_INVALID, true},
    {&op_loss, {3, 4, 10}, ALL_INVALID, false},
    {&op_adamw, {1}, 0, false},
    {&op_adamw, {40001}, 0, false},
    {&op_sum_squares, {1}, 0, false},
    {&op_sum_squares, {100003}, 0, false},
    {&op_axpy, {20011}, 0, false},
    {&op_cast, {20011}, 0, false},
    {&op_cast, {20011}, F16, false},
    {&op_cast, {20011}, BF16, false},
};

/* Draw what the case reads, in the array's own precision, and the double that each value is. */
static void draw(test_random *random, array *a)
{
    size_t n = (size_t)count(a), size = agglo_dtype_size(a->dtype);
    float *values = malloc(n * sizeof *values);

    assert_non_null(values);
    a->ref = scratch(count(a));
    a->initial = scratch(count(a));
    a->got = scratch(count(a));
    a->bytes = malloc(n * size);
    assert_non_null(a->bytes);
    if (a->dtype == AGGLO_U8) {
        test_random_bytes(random, a->bytes, n);
        for (size_t i = 0; i < n; i++) {
            a->initial[i] = a->bytes[i];
        }
    } else {
        test_random_fill(random, values, n, 1.0f);
        agglo_dtype_from_f32(a->bytes, values, a->dtype, n);
        agglo_dtype_to_f32(values, a->bytes, a->dtype, n);
        for (size_t i = 0; i < n; i++) {
            a->initial[i] = (double)values[i];
        }
    }
    memcpy(a->ref, a->initial, n * sizeof *a->ref);
    free(values);
}

static double relative_error(const array *a)
{
    double worst = 0.0, most = 0.0;

    for (int64_t i = 0; i < count(a); i++) {
        double d = fabs(a->got[i] - a->ref[i]);

        if (!(d <= worst)) { /* also a NaN */
            worst = d;
        }
        most = fmax(most, fabs(a->ref[i]));
    }
    return worst == 0.0 ? 0.0 : worst / most;
}

static void describe(const test_case *c, char *out, size_t size)
{
    snprintf(out, size, "%s [%lld %lld %lld %lld %lld %lld] flags %d", c->op->name, (long long)c->d[0],
             (long long)c->d[1], (long long)c->d[2], (long long)c->d[3], (long long)c->d[4], (long long)c->d[5],
             c->flags);
}

/* <gradient that the backend gave, direction> against (L(x + h v) - L(x - h v)) / 2h. */
static void check_differences(const test_case *c, const array *a, test_random *random, const char *name)
{
    double *v[MAX_ARRAYS];

    for (int i = 0; i < c->op->n_arrays; i++) {
        v[i] = a[i].initial;
    }
    for (int g = 0; c->op->grads[g][0] >= 0; g++) {
        const array *in = &a[c->op->grads[g][0]], *grad = &a[c->op->grads[g][1]];
        int64_t n = count(in);
        double *direction = scratch(n), *moved = scratch(n), norm = 0.0;

        assert_int_equal(n, count(grad));
        for (int64_t i = 0; i < n; i++) {
            double d = grad->got[i] - (grad->role == INOUT ? grad->initial[i] : 0.0);

            norm += d * d;
        }
        for (int trial = 0; trial < 6; trial++) {
            double h = 1e-5, up, down, fd, dot = 0.0, length = 0.0;

            /* all elements at once, then one by one */
            for (int64_t i = 0; i < n; i++) {
                direction[i] = trial < 3 ? (double)test_random_normal(random) : 0.0;
            }
            direction[(int64_t)(test_random_uniform(random) * (double)n)] += trial < 3 ? 0.0 : 1.0;
            for (int64_t i = 0; i < n; i++) {
                dot += (grad->got[i] - (grad->role == INOUT ? grad->initial[i] : 0.0)) * direction[i];
                length += direction[i] * direction[i];
            }
            h /= sqrt(length / (double)(trial < 3 ? n : 1));
            v[c->op->grads[g][0]] = moved;
            for (int64_t i = 0; i < n; i++) {
                moved[i] = in->initial[i] + h * direction[i];
            }
            up = c->op->loss(c, v, a);
            for (int64_t i = 0; i < n; i++) {
                moved[i] = in->initial[i] - h * direction[i];
            }
            down = c->op->loss(c, v, a);
            v[c->op->grads[g][0]] = in->initial;
            fd = (up - down) / (2.0 * h);
            if (!(fabs(fd - dot) <= DIFFERENCE_TOLERANCE * sqrt(norm * length) + 1e-9)) {
                fail_msg("%s: gradient %d along direction %d is %.9g, differences give %.9g", name, g, trial, dot, fd);
            }
        }
        free(direction);
        free(moved);
    }
}

static const char *device; /* as agglo_backend_open takes it */

static void run_case(agglo_backend *backends[3], const test_case *c, uint64_t stream)
{
    test_random random = test_random_new(stream);
    array a[MAX_ARRAYS] = {0};
    double *v[MAX_ARRAYS], tolerance = c->op->backward ? BACKWARD_TOLERANCE : FORWARD_TOLERANCE;
    uint8_t *first[MAX_ARRAYS] = {0};
    agglo_err err = {0};
    char name[200];

    describe(c, name, sizeof name);
    c->op->shape(c, a);
    for (int i = 0; i < c->op->n_arrays; i++) {
        draw(&random, &a[i]);
        v[i] = a[i].initial;
    }
    if (c->op->prepare != NULL) {
        c->op->prepare(c, v);
    }
    for (int i = 0; i < c->op->n_arrays; i++) {
        if (a[i].role == DERIVED) {
            for (int64_t j = 0; j < count(&a[i]); j++) {
                float value = (float)a[i].initial[j];

                memcpy(a[i].bytes + (size_t)j * sizeof value, &value, sizeof value);
            }
            memcpy(a[i].ref, a[i].initial, (size_t)count(&a[i]) * sizeof(double));
        } else if (a[i].role == OUT) {
            for (int64_t j = 0; j < count(&a[i]); j++) {
                a[i].ref[j] = NAN;
            }
            memset(a[i].bytes, 0xff, (size_t)count(&a[i]) * sizeof(float)); /* NaN: what is not written shows */
        }
    }
    for (int i = 0; i < c->op->n_arrays; i++) {
        v[i] = a[i].ref;
    }
    c->op->ref(c, v, a);

    for (int b = 0; b < 3; b++) {
        agglo_backend *be = backends[b];
        agglo_tensor t[MAX_ARRAYS];
        agglo_alloc_stats before;

        for (int i = 0; i < c->op->n_arrays; i++) {
            t[i] = agglo_tensor_of(NULL, a[i].dtype, a[i].rank, a[i].shape);
            t[i].data = agglo_backend_alloc(be, agglo_tensor_bytes(&t[i]), &err);
            assert_non_null(t[i].data);
        }
        for (int pass = 0; pass < 2; pass++) {
            for (int i = 0; i < c->op->n_arrays; i++) {
                agglo_upload(be, t[i].data, a[i].bytes, agglo_tensor_bytes(&t[i]));
            }
            before = agglo_alloc_counts();
            c->op->run(be, c, t);
            assert_ok(agglo_backend_check(be, &err));
            if (pass == 1 && agglo_alloc_counts().n_total != before.n_total) {
                fail_msg("%s: allocates in the steady state", name);
            }
        }
        for (int i = 0; i < c->op->n_arrays; i++) {
            size_t n_bytes = agglo_tensor_bytes(&t[i]);
            uint8_t *got = malloc(n_bytes);

            assert_non_null(got);
            agglo_download(be, got, t[i].data, n_bytes);
            if (b > 0) {
                if (memcmp(got, first[i], n_bytes) != 0) {
                    fail_msg("%s: array %d differs between %s 1 and %d", name, i,
                             strcmp(device, "cpu") == 0 ? "threads" : "runs", b + 1);
                }
                free(got);
                continue;
            }
            first[i] = got;
            if (a[i].role != OUT && a[i].role != INOUT) {
                assert_memory_equal(got, a[i].bytes, n_bytes); /* inputs are left alone */
                continue;
            }
            for (int64_t j = 0; j < count(&a[i]); j++) {
                float value;

                memcpy(&value, got + (size_t)j * sizeof value, sizeof value);
                a[i].got[j] = (double)value;
            }
            if (!(relative_error(&a[i]) < tolerance)) {
                fail_msg("%s: array %d is off by %.3g of its largest value, %.0e allowed", name, i,
                         relative_error(&a[i]), tolerance);
            }
        }
        for (int i = 0; i < c->op->n_arrays; i++) {
            agglo_backend_release(be, t[i].data);
        }
    }
    if (c->differences) {
        check_differences(c, a, &random, name);
    }
    for (int i = 0; i < c->op->n_arrays; i++) {
        free(a[i].ref);
        free(a[i].initial);
        free(a[i].got);
        free(a[i].bytes);
        free(first[i]);
    }
}

static void test_table(void **state)
{
    agglo_backend *backends[3];
    agglo_err err = {0};

    (void)state;
    for (int i = 0; i < 3; i++) {
        assert_ok(agglo_backend_open(&backends[i], device, i + 1, &err));
    }
    printf("%s\n", agglo_backend_describe(backends[0]));
    for (size_t i = 0; i < AGGLO_COUNT(table); i++) {
        run_case(backends, &table[i], i);
    }
    for (int i = 0; i < 3; i++) {
        agglo_backend_free(backends[i]);
    }
}

/* Vectors at and below the norm at which the cosine clamps. Gradients there are some 1e8 times those of ordinary rows, so that each
 * row is compared by itself. */
static void test_small_norms(void **state)
{
    enum { N = 6, C = 40 };
    static const double pred_norm[N] = {0.0, 1.0, 3e-9, 1.0, 0.0, 4e-8},
                        target_norm[N] = {1.0, 0.0, 1.0, 3e-9, 0.0, 4e-8};
    double pred[N * C], target[N * C], d_ref[N * C], sums_ref[4] = {0};
    float pred_f[N * C], target_f[N * C], d_got[N * C], sums[4] = {0};
    test_random random = test_random_new(99);
    agglo_backend *be;
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
    assert_ok(agglo_backend_open(&be, device, 1, &err));
    t[0] = agglo_tensor_3d(agglo_backend_alloc(be, sizeof pred_f, &err), AGGLO_F32, 1, N, C);
    t[1] = agglo_tensor_3d(agglo_backend_alloc(be, sizeof target_f, &err), AGGLO_F32, 1, N, C);
    t[2] = agglo_tensor_3d(agglo_backend_alloc(be, sizeof d_got, &err), AGGLO_F32, 1, N, C);
    t[3] = agglo_tensor_1d(agglo_backend_alloc(be, sizeof sums, &err), AGGLO_F32, 4);
    agglo_upload(be, t[0].data, pred_f, sizeof pred_f);
    agglo_upload(be, t[1].data, target_f, sizeof target_f);
    agglo_distill_loss(be, &loss_config, &t[0], &t[1], NULL, 1.0f, &t[2], &t[3]);
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
    agglo_backend_free(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_small_norms),
    };

    device = test_device();
    return test_run("parity_tensor_ops", tests);
}
