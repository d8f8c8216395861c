/* What tensor/ops.h promises of the CPU: a row of a product, a normalised row, an image's attention and its convolutions do not depend on
 * what else is in the batch, bit for bit, in both storage types. Whole batches are compared with every part of them. */
#include "tests/support/support.h"

#include "tensor/backend.h"
#include "tensor/ops.h"
#include "tensor/ops_attention_bias.h"
#include "tensor/ops_conv.h"

#include <math.h>

enum { M = 131, N = 75, K = 1100, IMAGES = 5, TOKENS = 41, HEADS = 2, HEAD_DIM = 24 };

static agglo_backend *be;
static test_random random_stream;

static agglo_tensor tensor(agglo_dtype dtype, int rank, const int64_t *shape, bool draw)
{
    agglo_tensor t = agglo_tensor_of(NULL, dtype, rank, shape);
    agglo_err err = {0};

    t.data = agglo_backend_alloc(be, agglo_tensor_bytes(&t), &err);
    assert_non_null(t.data);
    for (int64_t i = 0; draw && i < agglo_tensor_count(&t); i++) {
        float f = test_random_normal(&random_stream);

        agglo_dtype_from_f32((uint8_t *)t.data + (size_t)i * agglo_dtype_size(dtype), &f, dtype, 1);
    }
    return t;
}

#define TENSOR(dtype, draw, ...)                                                                                       \
    tensor(dtype, (int)AGGLO_COUNT(((const int64_t[]){__VA_ARGS__})), (const int64_t[]){__VA_ARGS__}, draw)

/* `n` of the outermost places from `first` on, as a tensor of its own. */
static agglo_tensor part_of(const agglo_tensor *t, int64_t first, int64_t n)
{
    agglo_tensor part = *t;

    part.data = (uint8_t *)t->data + agglo_tensor_bytes(t) / (size_t)t->shape[0] * (size_t)first;
    part.shape[0] = n;
    return part;
}

static void assert_same(const char *what, const agglo_tensor *whole, int64_t first, const agglo_tensor *part, int64_t n)
{
    size_t row = agglo_tensor_bytes(whole) / (size_t)whole->shape[0];

    if (memcmp((const uint8_t *)whole->data + (size_t)first * row, part->data, (size_t)n * row) != 0) {
        fail_msg("%s: %d from %d on differ from the same in the batch", what, (int)n, (int)first);
    }
}

static void release(agglo_tensor *t, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        agglo_backend_release(be, t[i].data);
    }
}

static void check_rows(agglo_dtype type)
{
    enum { X, W, B, PRE, Y, D_X, NORM_W, NORM_B, NORMED, PART_PRE, PART_Y, PART_D_X, PART_NORMED, COUNT };
    agglo_tensor t[COUNT];

    t[X] = TENSOR(type, true, M, K);
    t[W] = TENSOR(type, true, N, K);
    t[B] = TENSOR(AGGLO_F32, true, N);
    t[NORM_W] = TENSOR(AGGLO_F32, true, K);
    t[NORM_B] = TENSOR(AGGLO_F32, true, K);
    t[PRE] = TENSOR(type, false, M, N);
    t[Y] = TENSOR(type, false, M, N);
    t[D_X] = TENSOR(type, false, M, K);
    t[NORMED] = TENSOR(type, false, M, K);
    t[PART_PRE] = TENSOR(type, false, M, N);
    t[PART_Y] = TENSOR(type, false, M, N);
    t[PART_D_X] = TENSOR(type, false, M, K);
    t[PART_NORMED] = TENSOR(type, false, M, K);

    agglo_linear(be, &t[X], &t[W], &t[B], AGGLO_ACT_GELU, &t[PRE], &t[Y]);
    agglo_linear_bwd_input(be, &t[PRE], &t[W], false, &t[D_X]);
    agglo_layernorm(be, &t[X], &t[NORM_W], &t[NORM_B], 1e-5f, &t[NORMED], NULL, NULL);
    for (int64_t first = 0, n; first < M; first += n) {
        agglo_tensor x, pre, y, d_x, normed, whole_pre;

        n = 1 + (int64_t)(test_random_uniform(&random_stream) * (double)(1 + first / 2));
        n = first + n > M ? M - first : n;
        x = part_of(&t[X], first, n);
        whole_pre = part_of(&t[PRE], first, n);
        pre = part_of(&t[PART_PRE], 0, n);
        y = part_of(&t[PART_Y], 0, n);
        d_x = part_of(&t[PART_D_X], 0, n);
        normed = part_of(&t[PART_NORMED], 0, n);
        agglo_linear(be, &x, &t[W], &t[B], AGGLO_ACT_GELU, &pre, &y);
        agglo_linear_bwd_input(be, &whole_pre, &t[W], false, &d_x);
        agglo_layernorm(be, &x, &t[NORM_W], &t[NORM_B], 1e-5f, &normed, NULL, NULL);
        assert_same("linear's argument", &t[PRE], first, &pre, n);
        assert_same("linear", &t[Y], first, &y, n);
        assert_same("linear's input gradient", &t[D_X], first, &d_x, n);
        assert_same("layernorm", &t[NORMED], first, &normed, n);
    }
    release(t, COUNT);
}

static void check_images(agglo_dtype type)
{
    enum { QKV, OUT, LSE, D_OUT, D_QKV, ONE_OUT, ONE_LSE, ONE_D_QKV, COUNT };
    agglo_tensor t[COUNT];
    float scale = 1.0f / sqrtf((float)HEAD_DIM);

    t[QKV] = TENSOR(type, true, IMAGES, TOKENS, 3, HEADS, HEAD_DIM);
    t[D_OUT] = TENSOR(type, true, IMAGES, TOKENS, HEADS, HEAD_DIM);
    t[OUT] = TENSOR(type, false, IMAGES, TOKENS, HEADS, HEAD_DIM);
    t[LSE] = TENSOR(AGGLO_F32, false, IMAGES, HEADS, TOKENS);
    t[D_QKV] = TENSOR(type, false, IMAGES, TOKENS, 3, HEADS, HEAD_DIM);
    t[ONE_OUT] = TENSOR(type, false, 1, TOKENS, HEADS, HEAD_DIM);
    t[ONE_LSE] = TENSOR(AGGLO_F32, false, 1, HEADS, TOKENS);
    t[ONE_D_QKV] = TENSOR(type, false, 1, TOKENS, 3, HEADS, HEAD_DIM);

    agglo_attention(be, &t[QKV], scale, &t[OUT], &t[LSE]);
    agglo_attention_bwd(be, &t[D_OUT], &t[QKV], &t[OUT], &t[LSE], scale, &t[D_QKV]);
    for (int64_t b = 0; b < IMAGES; b++) {
        agglo_tensor qkv = part_of(&t[QKV], b, 1), d_out = part_of(&t[D_OUT], b, 1);

        agglo_attention(be, &qkv, scale, &t[ONE_OUT], &t[ONE_LSE]);
        agglo_attention_bwd(be, &d_out, &qkv, &t[ONE_OUT], &t[ONE_LSE], scale, &t[ONE_D_QKV]);
        assert_same("attention", &t[OUT], b, &t[ONE_OUT], 1);
        assert_same("lse", &t[LSE], b, &t[ONE_LSE], 1);
        assert_same("attention's gradient", &t[D_QKV], b, &t[ONE_D_QKV], 1);
    }
    release(t, COUNT);
}

/* Attention with a bias of either kind over windows: tokens with a prefix, several tiles of queries and blocks of keys. */
static void check_biased(agglo_dtype type, bool dense)
{
    enum { GRID_H = 18, GRID_W = 16, PREFIX = 2, N_ALL = PREFIX + GRID_H * GRID_W };
    enum { QKV, OUT, LSE, D_OUT, D_QKV, REL_H, REL_W, TABLE, D_REL_H, D_REL_W, D_TABLE, ONE_OUT, ONE_LSE, ONE_D_QKV };
    enum { COUNT = ONE_D_QKV + 1 };
    agglo_tensor t[COUNT];
    agglo_bias bias = {.n_prefix = PREFIX, .grid_h = GRID_H, .grid_w = GRID_W};
    agglo_bias_gradient d_bias = {0};
    float scale = 1.0f / sqrtf((float)HEAD_DIM);

    t[QKV] = TENSOR(type, true, IMAGES, N_ALL, 3, HEADS, HEAD_DIM);
    t[D_OUT] = TENSOR(type, true, IMAGES, N_ALL, HEADS, HEAD_DIM);
    t[OUT] = TENSOR(type, false, IMAGES, N_ALL, HEADS, HEAD_DIM);
    t[LSE] = TENSOR(AGGLO_F32, false, IMAGES, HEADS, N_ALL);
    t[D_QKV] = TENSOR(type, false, IMAGES, N_ALL, 3, HEADS, HEAD_DIM);
    t[REL_H] = TENSOR(AGGLO_F32, true, 2 * GRID_H - 1, HEAD_DIM);
    t[REL_W] = TENSOR(AGGLO_F32, true, 2 * GRID_W - 1, HEAD_DIM);
    t[TABLE] = TENSOR(AGGLO_F32, true, HEADS, N_ALL, N_ALL);
    t[D_REL_H] = TENSOR(AGGLO_F32, true, 2 * GRID_H - 1, HEAD_DIM);
    t[D_REL_W] = TENSOR(AGGLO_F32, true, 2 * GRID_W - 1, HEAD_DIM);
    t[D_TABLE] = TENSOR(AGGLO_F32, true, HEADS, N_ALL, N_ALL);
    t[ONE_OUT] = TENSOR(type, false, 1, N_ALL, HEADS, HEAD_DIM);
    t[ONE_LSE] = TENSOR(AGGLO_F32, false, 1, HEADS, N_ALL);
    t[ONE_D_QKV] = TENSOR(type, false, 1, N_ALL, 3, HEADS, HEAD_DIM);
    if (dense) {
        bias = (agglo_bias){.table = &t[TABLE]};
        d_bias.table = &t[D_TABLE];
    } else {
        bias.rel_h = &t[REL_H];
        bias.rel_w = &t[REL_W];
        d_bias = (agglo_bias_gradient){.rel_h = &t[D_REL_H], .rel_w = &t[D_REL_W]};
    }

    agglo_attention_bias(be, &t[QKV], scale, &bias, &t[OUT], &t[LSE]);
    agglo_attention_bias_bwd(be, &t[D_OUT], &t[QKV], &t[OUT], &t[LSE], scale, &bias, &t[D_QKV], &d_bias);
    for (int64_t b = 0; b < IMAGES; b++) {
        agglo_tensor qkv = part_of(&t[QKV], b, 1), d_out = part_of(&t[D_OUT], b, 1);

        agglo_attention_bias(be, &qkv, scale, &bias, &t[ONE_OUT], &t[ONE_LSE]);
        agglo_attention_bias_bwd(be, &d_out, &qkv, &t[ONE_OUT], &t[ONE_LSE], scale, &bias, &t[ONE_D_QKV], &d_bias);
        assert_same("biased attention", &t[OUT], b, &t[ONE_OUT], 1);
        assert_same("its lse", &t[LSE], b, &t[ONE_LSE], 1);
        assert_same("its gradient", &t[D_QKV], b, &t[ONE_D_QKV], 1);
    }
    release(t, COUNT);
}

static void test_biased(void **state)
{
    (void)state;
    for (int dense = 0; dense < 2; dense++) {
        check_biased(AGGLO_F32, dense != 0);
        check_biased(AGGLO_BF16, dense != 0);
    }
}

/* A convolution of every kind that the CPU does differently: by oneDNN, by products, pixel by pixel, depthwise; both ways. */
typedef struct conv_case {
    const char *name;
    bool transposed;
    int64_t h, w, c, o, k;
    int stride, pad;
    bool depthwise;
} conv_case;

static const conv_case convs[] = {
    {"3x3, a large map", false, 24, 21, 16, 32, 3, 1, 1, false},
    {"3x3 stride 2", false, 33, 30, 19, 37, 3, 2, 1, false},
    {"3x3, a small map", false, 7, 6, 70, 45, 3, 1, 1, false},
    {"1x1", false, 9, 7, 67, 50, 1, 1, 0, false},
    {"1x1 stride 2", false, 9, 8, 67, 50, 1, 2, 0, false},
    {"patches", false, 32, 48, 3, 71, 16, 16, 0, false},
    {"2x2 stride 2", false, 14, 14, 40, 33, 2, 2, 0, false},
    {"5x5 stride 3", false, 20, 17, 8, 9, 5, 3, 2, false},
    {"depthwise", false, 13, 12, 35, 35, 3, 1, 1, true},
    {"transposed 2x2", true, 7, 7, 40, 33, 2, 2, 0, false},
    {"transposed 3x3", true, 7, 6, 100, 40, 3, 2, 1, false},
};

static void check_conv(const conv_case *c, agglo_dtype type)
{
    enum { X, W, B, PRE, Y, D_X, PART_PRE, PART_Y, PART_D_X, COUNT };
    const agglo_conv2d_config config = {c->stride, c->stride, c->pad, c->pad, c->depthwise ? (int)c->c : 1};
    int64_t oh =
        c->transposed ? (c->h - 1) * c->stride - 2 * c->pad + c->k : (c->h + 2 * c->pad - c->k) / c->stride + 1;
    int64_t ow =
        c->transposed ? (c->w - 1) * c->stride - 2 * c->pad + c->k : (c->w + 2 * c->pad - c->k) / c->stride + 1;
    agglo_tensor t[COUNT];
    char what[64];

    t[X] = TENSOR(type, true, IMAGES, c->h, c->w, c->c);
    t[W] = c->transposed ? TENSOR(type, true, c->c, c->k, c->k, c->o)
                         : TENSOR(type, true, c->o, c->k, c->k, c->depthwise ? 1 : c->c);
    t[B] = TENSOR(AGGLO_F32, true, c->o);
    t[PRE] = TENSOR(type, false, IMAGES, oh, ow, c->o);
    t[Y] = TENSOR(type, false, IMAGES, oh, ow, c->o);
    t[D_X] = TENSOR(type, false, IMAGES, c->h, c->w, c->c);
    t[PART_PRE] = TENSOR(type, false, IMAGES, oh, ow, c->o);
    t[PART_Y] = TENSOR(type, false, IMAGES, oh, ow, c->o);
    t[PART_D_X] = TENSOR(type, false, IMAGES, c->h, c->w, c->c);
    /* the whole batch, then one image, two, and the rest */
    for (int64_t first = -IMAGES, n; first < IMAGES; first += n) {
        agglo_tensor x, pre, y, d_y, d_x;

        n = first < 0 ? IMAGES : first < 2 ? first + 1 : IMAGES - first;
        x = part_of(&t[X], first < 0 ? 0 : first, n);
        d_y = part_of(&t[PRE], first < 0 ? 0 : first, n);
        pre = part_of(&t[first < 0 ? PRE : PART_PRE], 0, n);
        y = part_of(&t[first < 0 ? Y : PART_Y], 0, n);
        d_x = part_of(&t[first < 0 ? D_X : PART_D_X], 0, n);
        if (c->transposed) {
            agglo_conv_transpose2d(be, &config, &x, &t[W], &t[B], AGGLO_ACT_SILU, &pre, &y);
            agglo_conv_transpose2d_bwd_input(be, &config, &d_y, &t[W], false, &d_x);
        } else {
            agglo_conv2d(be, &config, &x, &t[W], &t[B], AGGLO_ACT_SILU, &pre, &y);
            agglo_conv2d_bwd_input(be, &config, &d_y, &t[W], false, &d_x);
        }
        if (first >= 0) {
            snprintf(what, sizeof what, "%s in %s", c->name, agglo_dtype_name(type));
            assert_same(what, &t[PRE], first, &pre, n);
            assert_same(what, &t[Y], first, &y, n);
            assert_same(what, &t[D_X], first, &d_x, n);
        }
    }
    release(t, COUNT);
}

static void test_convs(void **state)
{
    (void)state;
    for (size_t i = 0; i < AGGLO_COUNT(convs); i++) {
        check_conv(&convs[i], AGGLO_F32);
        check_conv(&convs[i], AGGLO_BF16);
    }
}

/* A scatter whose product is cut otherwise where its weights are packed than where they are not, as the first operator of a backend: its
 * scratch is no larger than it asked for. Its channels are those of a scatter with a few of them alone, bit for bit. */
static void check_first_scatter(agglo_dtype type, int64_t side, int64_t c, int64_t o, int stride)
{
    enum { D_Y, W, D_X, PART_W, PART_D_X, COUNT, SOME = 40 };
    agglo_conv2d_config config = agglo_conv2d_square(stride, 1);
    int64_t out = (side - 1) / stride + 1;
    size_t size = agglo_dtype_size(type);
    agglo_tensor t[COUNT];

    t[D_Y] = TENSOR(type, true, 1, out, out, o);
    t[W] = TENSOR(type, true, o, 3, 3, c);
    t[D_X] = TENSOR(type, false, 1, side, side, c);
    t[PART_W] = TENSOR(type, false, o, 3, 3, SOME);
    t[PART_D_X] = TENSOR(type, false, 1, side, side, SOME);
    for (int64_t i = 0; i < o * 9; i++) {
        memcpy((uint8_t *)t[PART_W].data + (size_t)(i * SOME) * size,
               (const uint8_t *)t[W].data + (size_t)(i * c) * size, SOME * size);
    }
    agglo_conv2d_bwd_input(be, &config, &t[D_Y], &t[W], false, &t[D_X]);
    agglo_conv2d_bwd_input(be, &config, &t[D_Y], &t[PART_W], false, &t[PART_D_X]);
    for (int64_t i = 0; i < side * side; i++) {
        assert_memory_equal((const uint8_t *)t[PART_D_X].data + (size_t)(i * SOME) * size,
                            (const uint8_t *)t[D_X].data + (size_t)(i * c) * size, SOME * size);
    }
    release(t, COUNT);
}

static void test_first_scatter_bf16(void **state)
{
    (void)state;
    check_first_scatter(AGGLO_BF16, 11, 1216, 240, 1);
}

static void test_first_scatter_strided(void **state)
{
    (void)state;
    check_first_scatter(AGGLO_F32, 22, 1152, 640, 2);
}

static void test_rows(void **state)
{
    (void)state;
    check_rows(AGGLO_F32);
    check_rows(AGGLO_BF16);
}

static void test_images(void **state)
{
    (void)state;
    check_images(AGGLO_F32);
    check_images(AGGLO_BF16);
}

static int open_backend(void **state)
{
    agglo_err err = {0};

    (void)state;
    random_stream = test_random_new(5);
    return agglo_backend_cpu_new(&be, 2, &err) == AGGLO_OK ? 0 : -1;
}

static int close_backend(void **state)
{
    agglo_err err = {0};

    (void)state;
    assert_ok(agglo_backend_check(be, &err));
    agglo_backend_free(be);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_rows, open_backend, close_backend),
        cmocka_unit_test_setup_teardown(test_images, open_backend, close_backend),
        cmocka_unit_test_setup_teardown(test_biased, open_backend, close_backend),
        cmocka_unit_test_setup_teardown(test_convs, open_backend, close_backend),
        cmocka_unit_test_setup_teardown(test_first_scatter_bf16, open_backend, close_backend),
        cmocka_unit_test_setup_teardown(test_first_scatter_strided, open_backend, close_backend),
    };

    return test_run("unit_tensor_rows", tests);
}
