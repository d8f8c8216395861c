/* The transformer block as a whole against the reference: forward, backward, central differences, threads, allocation; in F32 and in BF16,
 * where inputs and matrices are rounded first, so that the tolerance is for the block's arithmetic alone.
 * AGGLO_TEST_DEVICE in the environment names another device than the CPU, as for parity_tensor_ops. */
#include "tests/parity/tensor/test_device.h"
#include "tests/ref/ref.h"
#include "tests/support/support.h"

#include "tensor/nn/vit_block.h"

#include <math.h>

/* Of the largest value: BF16 rounds some ten arrays on the way forward and as many back, 2^-9 each; single elements of gradients that
 * cancel through the softmax are off by up to 1.4e-2. As a whole, every array is within 1e-2 of its norm. */
static double forward_tolerance(const agglo_vit_block_config *config)
{
    return config->dtype == AGGLO_BF16 ? 1e-2 : 1e-5;
}

static double backward_tolerance(const agglo_vit_block_config *config)
{
    return config->dtype == AGGLO_BF16 ? 2e-2 : 1e-4;
}

typedef struct block_case {
    int64_t batch, tokens;
    agglo_vit_block_config config;
} block_case;

static const block_case cases[] = {
    {1, 1, {8, 1, 5, AGGLO_ACT_GELU, false, false, 1e-6f, AGGLO_F32}},
    {2, 17, {48, 3, 96, AGGLO_ACT_GELU, false, false, 1e-6f, AGGLO_F32}},
    {2, 10, {40, 5, 30, AGGLO_ACT_QUICK_GELU, false, false, 1e-5f, AGGLO_F32}},
    {2, 17, {48, 3, 64, AGGLO_ACT_GELU, false, true, 1e-6f, AGGLO_F32}},
    {3, 9, {30, 2, 41, AGGLO_ACT_NONE, true, true, 1e-6f, AGGLO_F32}},
    {1, 65, {64, 2, 128, AGGLO_ACT_NONE, true, false, 1e-6f, AGGLO_F32}},
};

static ref_block_config ref_of(const agglo_vit_block_config *c)
{
    ref_block_config out = {c->dim,    c->heads,       c->mlp_dim,         (ref_act)c->act,
                            c->swiglu, c->layer_scale, (double)c->norm_eps};

    return out;
}

static void by_place(const agglo_vit_block *b, agglo_param *out[REF_BLOCK_PARAMS])
{
    agglo_param *const all[REF_BLOCK_PARAMS] = {b->norm1_w, b->norm1_b, b->qkv_w,   b->qkv_b,   b->proj_w,
                                                b->proj_b,  b->ls1,     b->norm2_w, b->norm2_b, b->fc1_w,
                                                b->fc1_b,   b->fc2_w,   b->fc2_b,   b->ls2};

    memcpy(out, all, sizeof all);
}

static double *doubles(int64_t n)
{
    double *block = calloc((size_t)n, sizeof *block);

    assert_non_null(block);
    return block;
}

static void draw(test_random *random, int64_t n, float sigma, float middle, agglo_dtype dtype, float *f, double *d)
{
    for (int64_t i = 0; i < n; i++) {
        f[i] = middle + sigma * test_random_normal(random);
        if (dtype == AGGLO_BF16) {
            f[i] = agglo_bf16_to_f32(agglo_f32_to_bf16(f[i]));
        }
        d[i] = (double)f[i];
    }
}

/* Floats to a tensor of either type and back. */
static void put(agglo_backend *be, const agglo_tensor *t, const float *values)
{
    size_t n = (size_t)agglo_tensor_count(t);
    void *stored = malloc(n * sizeof(float));

    assert_non_null(stored);
    agglo_dtype_from_f32(stored, values, t->dtype, n);
    agglo_upload(be, t->data, stored, agglo_tensor_bytes(t));
    free(stored);
}

static void get(agglo_backend *be, const agglo_tensor *t, float *values)
{
    size_t n = (size_t)agglo_tensor_count(t);
    void *stored = malloc(n * sizeof(float));

    assert_non_null(stored);
    agglo_download(be, stored, t->data, agglo_tensor_bytes(t));
    agglo_dtype_to_f32(values, stored, t->dtype, n);
    free(stored);
}

static void assert_close(const char *what, int64_t n, const float *got, const double *expected, double tolerance)
{
    double worst = 0.0, most = 0.0, squares = 0.0, all = 0.0;

    for (int64_t i = 0; i < n; i++) {
        double d = fabs((double)got[i] - expected[i]);

        squares += d * d;
        all += expected[i] * expected[i];

        if (!(d <= worst)) {
            worst = d;
        }
        most = fmax(most, fabs(expected[i]));
    }
    if (!(worst <= tolerance * most)) {
        fail_msg("%s is off by %.3g of its largest value", what, worst / most);
    }
    if (!(squares <= 1e-4 * all)) {
        fail_msg("%s is off by %.3g of its norm", what, sqrt(squares / all));
    }
}

static double loss_of(const ref_block_config *config, double *const params[REF_BLOCK_PARAMS], const block_case *c,
                      const double *x, const double *weights)
{
    int64_t n = c->batch * c->tokens * c->config.dim;
    double *y = doubles(n), sum = 0.0;

    ref_block_forward(config, params, c->batch, c->tokens, x, y);
    for (int64_t i = 0; i < n; i++) {
        sum += weights[i] * y[i];
    }
    free(y);
    return sum;
}

/* One random direction through `values`, whose gradient is `grad`. */
static void assert_slope(const char *what, test_random *random, const ref_block_config *config,
                         double *const params[REF_BLOCK_PARAMS], const block_case *c, double *values, int64_t n,
                         const float *grad, const double *x, const double *weights)
{
    double *saved = doubles(n), *direction = doubles(n), h = 1e-5, up, down, dot = 0.0, norm = 0.0, length = 0.0;

    memcpy(saved, values, (size_t)n * sizeof *values);
    for (int64_t i = 0; i < n; i++) {
        direction[i] = (double)test_random_normal(random);
        dot += (double)grad[i] * direction[i];
        norm += (double)grad[i] * (double)grad[i];
        length += direction[i] * direction[i];
        values[i] = saved[i] + h * direction[i];
    }
    up = loss_of(config, params, c, x, weights);
    for (int64_t i = 0; i < n; i++) {
        values[i] = saved[i] - h * direction[i];
    }
    down = loss_of(config, params, c, x, weights);
    memcpy(values, saved, (size_t)n * sizeof *values);
    if (!(fabs((up - down) / (2.0 * h) - dot) <= backward_tolerance(&c->config) * sqrt(norm * length) + 1e-8)) {
        fail_msg("%s: slope %.9g, differences give %.9g", what, dot, (up - down) / (2.0 * h));
    }
    free(saved);
    free(direction);
}

static const char *device; /* as agglo_backend_open takes it */

/* What one run leaves: y, d_x and every gradient, one after the other. */
typedef struct run_result {
    float *values;
    int64_t n, n_y;
} run_result;

static run_result run_block(const block_case *c, int n_threads, const float *x, const float *d_y,
                            float *const weights[])
{
    const agglo_vit_block_config *config = &c->config;
    int64_t n = c->batch * c->tokens * config->dim, at = 0;
    agglo_tensor tx, ty, td;
    agglo_backend *be;
    agglo_params *params;
    agglo_vit_block block;
    agglo_vit_block_kept kept;
    agglo_vit_block_scratch back;
    agglo_slab measured, slab;
    agglo_param *all[REF_BLOCK_PARAMS];
    agglo_err err = {0};
    run_result out = {NULL, 0, n};
    float *again;

    assert_ok(agglo_backend_open(&be, device, n_threads, &err));
    assert_ok(agglo_params_new(&params, be, true, &err));
    assert_ok(agglo_params_set_storage(params, config->dtype, &err));
    assert_ok(agglo_vit_block_declare(&block, config, "blocks.0.", params, &err));
    assert_ok(agglo_params_allocate(params, &err));
    by_place(&block, all);
    for (int i = 0; i < REF_BLOCK_PARAMS; i++) {
        assert_int_equal(all[i] != NULL, config->layer_scale || (i != REF_LS1 && i != REF_LS2));
        if (all[i] != NULL) {
            put(be, &all[i]->value, weights[i]);
        }
    }
    agglo_params_refresh(params);
    out.n = 2 * n + agglo_params_elements(params);
    out.values = malloc((size_t)out.n * sizeof(float));
    assert_non_null(out.values);

    measured = agglo_slab_measure(be);
    for (int pass = 0; pass < 2; pass++) {
        agglo_slab *s = pass == 0 ? &measured : &slab;

        if (pass == 1) {
            assert_ok(agglo_slab_allocate(&slab, &measured, &err));
        }
        tx = agglo_slab_take(s, config->dtype, 3, (const int64_t[]){c->batch, c->tokens, config->dim});
        ty = agglo_slab_take(s, config->dtype, 3, (const int64_t[]){c->batch, c->tokens, config->dim});
        td = agglo_slab_take(s, config->dtype, 3, (const int64_t[]){c->batch, c->tokens, config->dim});
        agglo_vit_block_plan(&kept, config, c->batch, c->tokens, s);
        agglo_vit_block_plan_backward(&back, config, c->batch, c->tokens, s);
    }
    for (int pass = 0; pass < 2; pass++) {
        agglo_alloc_stats before = agglo_alloc_counts();

        agglo_params_zero_grad(params);
        put(be, &tx, x);
        put(be, &td, d_y);
        agglo_vit_block_forward(be, config, &block, &tx, &kept, &ty);
        agglo_vit_block_backward(be, config, &block, &tx, &kept, &back, &td);
        assert_ok(agglo_backend_check(be, &err));
        assert_true(pass == 0 || agglo_alloc_counts().n_total == before.n_total);
    }
    get(be, &ty, out.values);
    get(be, &td, out.values + n);
    at = 2 * n;
    for (int i = 0; i < REF_BLOCK_PARAMS; i++) {
        if (all[i] != NULL) {
            agglo_download(be, out.values + at, all[i]->grad.data, agglo_tensor_bytes(&all[i]->grad));
            at += agglo_tensor_count(&all[i]->grad);
        }
    }
    assert_int_equal(at, out.n);

    /* at inference y may be x */
    agglo_vit_block_forward(be, config, &block, &tx, &kept, &tx);
    again = malloc((size_t)n * sizeof(float));
    assert_non_null(again);
    get(be, &tx, again);
    assert_ok(agglo_backend_check(be, &err));
    assert_memory_equal(again, out.values, (size_t)n * sizeof(float));
    free(again);

    agglo_slab_free(&slab);
    agglo_params_free(params);
    agglo_backend_free(be);
    return out;
}

static void check_block(const block_case *c, uint64_t stream)
{
    test_random random = test_random_new(stream);
    ref_block_config config = ref_of(&c->config);
    int64_t n = c->batch * c->tokens * config.dim, at = 2 * n;
    double *values[REF_BLOCK_PARAMS], *grads[REF_BLOCK_PARAMS], *x = doubles(n), *d_y = doubles(n), *d = doubles(n),
                                                                *y = doubles(n);
    float *weights[REF_BLOCK_PARAMS], *fx = malloc((size_t)n * sizeof *fx), *fd = malloc((size_t)n * sizeof *fd);
    run_result runs[3];

    assert_non_null(fx);
    assert_non_null(fd);
    draw(&random, n, 1.0f, 0.2f, c->config.dtype, fx, x);
    draw(&random, n, 1.0f, 0.0f, c->config.dtype, fd, d_y);
    for (int i = 0; i < REF_BLOCK_PARAMS; i++) {
        int64_t size = ref_block_elements(&config, i);
        bool norm = i == REF_NORM1_W || i == REF_NORM2_W, matrix = size > 3 * config.dim && size > 2 * config.mlp_dim;

        values[i] = doubles(size);
        grads[i] = doubles(size);
        weights[i] = malloc((size_t)size * sizeof(float));
        assert_non_null(weights[i]);
        draw(&random, size, matrix ? 1.0f / sqrtf((float)config.dim) : 0.3f, norm ? 1.0f : 0.0f,
             i == REF_QKV_W || i == REF_PROJ_W || i == REF_FC1_W || i == REF_FC2_W ? c->config.dtype : AGGLO_F32,
             weights[i], values[i]);
    }
    ref_block_forward(&config, values, c->batch, c->tokens, x, y);
    memcpy(d, d_y, (size_t)n * sizeof *d);
    ref_block_backward(&config, values, c->batch, c->tokens, x, d, grads);

    for (int i = 0; i < 3; i++) {
        runs[i] = run_block(c, i + 1, fx, fd, weights);
        assert_memory_equal(runs[i].values, runs[0].values, (size_t)runs[0].n * sizeof(float));
    }
    assert_close("y", n, runs[0].values, y, forward_tolerance(&c->config));
    assert_close("d_x", n, runs[0].values + n, d, backward_tolerance(&c->config));
    assert_slope("x", &random, &config, values, c, x, n, runs[0].values + n, x, d_y);
    for (int i = 0; i < REF_BLOCK_PARAMS; i++) {
        int64_t size = ref_block_elements(&config, i);
        char what[32];

        if (!config.layer_scale && (i == REF_LS1 || i == REF_LS2)) {
            continue;
        }
        snprintf(what, sizeof what, "gradient of parameter %d", i);
        if (c->tokens > 1) { /* softmax over one token: q and k have no gradient but rounding */
            assert_close(what, size, runs[0].values + at, grads[i], backward_tolerance(&c->config));
            assert_slope(what, &random, &config, values, c, values[i], size, runs[0].values + at, x, d_y);
        }
        at += size;
    }
    for (int i = 0; i < REF_BLOCK_PARAMS; i++) {
        free(values[i]);
        free(grads[i]);
        free(weights[i]);
    }
    for (int i = 0; i < 3; i++) {
        free(runs[i].values);
    }
    free(x);
    free(d_y);
    free(d);
    free(y);
    free(fx);
    free(fd);
}

static void test_blocks(void **state)
{
    (void)state;
    for (size_t i = 0; i < AGGLO_COUNT(cases); i++) {
        check_block(&cases[i], i);
    }
}

static void test_blocks_bf16(void **state)
{
    (void)state;
    for (size_t i = 0; i < AGGLO_COUNT(cases); i++) {
        block_case c = cases[i];

        c.config.dtype = AGGLO_BF16;
        check_block(&c, i);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_blocks),
        cmocka_unit_test(test_blocks_bf16),
    };

    device = test_device();
    return test_run("parity_vit_block", tests);
}
