/* Loads of `agglo bench ops`; see bench_load.h. */
#include "cli/bench_load.h"

#include <math.h>
#include <string.h>

#include "tensor/rng.h"

#define PATTERN 65536 /* values that are drawn; memory is filled with copies of them */

/* N(0, 1) by Box-Muller from Philox, or the squares of such values. */
static void draw(agglo_array_draw how, float *out)
{
    for (uint32_t i = 0; i < PATTERN; i += 2) {
        agglo_philox bits = agglo_philox4x32(1, i, 0, 0, 0);
        double r = sqrt(-2.0 * log(((double)bits.v[0] + 0.5) * 0x1p-32));
        double angle = 2.0 * M_PI * (double)bits.v[1] * 0x1p-32;

        out[i] = (float)(r * cos(angle));
        out[i + 1] = (float)(r * sin(angle));
    }
    for (uint32_t i = 0; how == AGGLO_DRAW_SQUARE && i < PATTERN; i++) {
        out[i] *= out[i];
    }
}

static agglo_status fill(agglo_backend *be, const agglo_tensor *t, agglo_array_draw how, agglo_err *err)
{
    float *values = agglo_alloc(PATTERN, sizeof *values, err);
    uint8_t *bytes = agglo_alloc(PATTERN, sizeof(float), err);
    size_t total = agglo_tensor_bytes(t), size = agglo_dtype_size(t->dtype) * PATTERN;

    if (values != NULL && bytes != NULL) {
        draw(how, values);
        if (t->dtype == AGGLO_F32 || t->dtype == AGGLO_F16 || t->dtype == AGGLO_BF16) {
            agglo_dtype_from_f32(bytes, values, t->dtype, PATTERN);
        } else {
            for (size_t i = 0; i < size; i++) {
                bytes[i] = (uint8_t)(agglo_f32_bits(values[i % PATTERN]) >> 8);
            }
        }
        for (size_t at = 0; at < total; at += size) {
            agglo_upload(be, (uint8_t *)t->data + at, bytes, total - at < size ? total - at : size);
        }
        agglo_backend_check(be, err);
    }
    agglo_free(values);
    agglo_free(bytes);
    return err->status;
}

static agglo_status make(agglo_backend *be, agglo_tensor *t, agglo_array_draw how, agglo_err *err)
{
    t->data = agglo_backend_alloc(be, agglo_tensor_bytes(t), err);
    return t->data == NULL ? err->status : fill(be, t, how, err);
}

void agglo_bench_load_clear(agglo_bench_load *load)
{
    if (load->clear != NULL) {
        load->clear(load);
    }
    agglo_optim_free(load->list);
    for (int i = 0; i < AGGLO_OP_ARRAYS; i++) {
        agglo_backend_release(load->backend, load->t[i].data);
    }
    *load = (agglo_bench_load){.backend = load->backend};
}

/* ---- a case of the table ---- */

static void run_case(agglo_bench_load *load)
{
    agglo_op_case_run(load->backend, &load->op_case, load->list, load->t);
}

static agglo_status fill_fixed(agglo_bench_load *load, int i, agglo_err *err)
{
    size_t n_bytes = agglo_tensor_bytes(&load->t[i]);
    void *host = agglo_alloc(n_bytes, 1, err);

    if (host != NULL) {
        load->op_case.op->fill(&load->op_case, i, host);
        agglo_upload(load->backend, load->t[i].data, host, n_bytes);
        agglo_backend_check(load->backend, err);
        agglo_free(host);
    }
    return err->status;
}

agglo_status agglo_bench_case(agglo_bench_load *load, agglo_backend *be, const agglo_op_case *c, agglo_dtype type,
                              agglo_err *err)
{
    agglo_op_array a[AGGLO_OP_ARRAYS] = {0};

    *load = (agglo_bench_load){.backend = be, .run = run_case, .op_case = *c};
    load->flops = c->op->flops(c);
    load->bytes = agglo_op_case_bytes(c, type);
    c->op->shape(c, type, a);
    for (int i = 0; i < c->op->n_arrays; i++) {
        if (a[i].role == AGGLO_ARRAY_ABSENT || a[i].role == AGGLO_ARRAY_ASIDE) {
            continue;
        }
        load->t[i] = agglo_tensor_of(NULL, a[i].dtype, a[i].rank, a[i].shape);
        if (make(be, &load->t[i], a[i].draw, err) != AGGLO_OK ||
            (a[i].role == AGGLO_ARRAY_FIXED && fill_fixed(load, i, err) != AGGLO_OK)) {
            return err->status;
        }
    }
    return agglo_op_case_list(be, c, load->t, &load->list, err);
}

/* ---- the library's product ---- */

static void run_product(agglo_bench_load *load)
{
    agglo_backend_product(load->backend, &load->t[0], &load->t[1], load->flag, &load->t[2]);
}

agglo_status agglo_bench_product(agglo_bench_load *load, agglo_backend *be, int64_t m, int64_t n, int64_t k,
                                 bool transpose_b, agglo_dtype type, agglo_err *err)
{
    *load = (agglo_bench_load){.backend = be, .run = run_product, .flag = transpose_b};
    load->flops = 2.0 * (double)m * (double)n * (double)k;
    load->t[0] = agglo_tensor_2d(NULL, type, m, k);
    load->t[1] = transpose_b ? agglo_tensor_2d(NULL, type, n, k) : agglo_tensor_2d(NULL, type, k, n);
    load->t[2] = agglo_tensor_2d(NULL, type, m, n);
    for (int i = 0; i < 3; i++) {
        load->bytes += (double)agglo_tensor_bytes(&load->t[i]);
        if (make(be, &load->t[i], AGGLO_DRAW_NORMAL, err) != AGGLO_OK) {
            return err->status;
        }
    }
    return AGGLO_OK;
}

/* ---- moving bytes ---- */

static void copy_slice(void *context, int64_t index, int worker)
{
    const agglo_bench_load *load = context;
    size_t n = (size_t)agglo_pool_threads(agglo_backend_pool(load->backend)), i = (size_t)index;
    size_t total = agglo_tensor_bytes(&load->t[0]), from = total * i / n, to = total * (i + 1) / n;

    (void)worker;
    memcpy((uint8_t *)load->t[1].data + from, (const uint8_t *)load->t[0].data + from, to - from);
}

static void run_copy(agglo_bench_load *load)
{
    agglo_pool *pool = agglo_backend_pool(load->backend);

    if (pool != NULL) {
        agglo_pool_for(pool, agglo_pool_threads(pool), copy_slice, load);
    } else {
        agglo_copy(load->backend, load->t[1].data, load->t[0].data, agglo_tensor_bytes(&load->t[0]));
    }
}

static void run_update(agglo_bench_load *load)
{
    agglo_axpy(load->backend, 1e-6f, &load->t[0], &load->t[1]);
}

agglo_status agglo_bench_move(agglo_bench_load *load, agglo_backend *be, int64_t n_bytes, bool update, agglo_err *err)
{
    int64_t n = n_bytes / (update ? 3 : 2) / (int64_t)sizeof(float);

    *load = (agglo_bench_load){.backend = be, .run = update ? run_update : run_copy, .flag = update};
    load->bytes = (double)n * (double)sizeof(float) * (update ? 3 : 2);
    for (int i = 0; i < 2; i++) {
        load->t[i] = agglo_tensor_1d(NULL, AGGLO_F32, n);
        if (make(be, &load->t[i], AGGLO_DRAW_NORMAL, err) != AGGLO_OK) {
            return err->status;
        }
    }
    return AGGLO_OK;
}

/* ---- a transformer block ---- */

typedef struct agglo_bench_block {
    agglo_vit_block_config config;
    agglo_params *params;
    agglo_vit_block block;
    agglo_vit_block_kept kept;
    agglo_vit_block_scratch scratch;
    agglo_slab slab;
    agglo_tensor x, y, d;
} agglo_bench_block;

static void run_block(agglo_bench_load *load)
{
    agglo_bench_block *b = load->block;

    agglo_vit_block_forward(load->backend, &b->config, &b->block, &b->x, &b->kept, &b->y);
    if (load->flag) {
        agglo_copy(load->backend, b->d.data, load->t[0].data, agglo_tensor_bytes(&b->d)); /* it is changed in place */
        agglo_vit_block_backward(load->backend, &b->config, &b->block, &b->x, &b->kept, &b->scratch, &b->d);
    }
}

static void clear_block(agglo_bench_load *load)
{
    agglo_slab_free(&load->block->slab);
    agglo_params_free(load->block->params);
    agglo_free(load->block);
}

agglo_status agglo_bench_vit_block(agglo_bench_load *load, agglo_backend *be, const agglo_vit_block_config *config,
                                   int64_t batch, int64_t tokens, bool backward, agglo_err *err)
{
    const int64_t shape[] = {batch, tokens, config->dim};
    const double m = (double)(batch * tokens), d = (double)config->dim, mlp = (double)config->mlp_dim;
    agglo_slab measured = agglo_slab_measure(be);
    agglo_bench_block *b = agglo_alloc(1, sizeof *b, err);

    *load = (agglo_bench_load){.backend = be, .run = run_block, .flag = backward};
    if (b == NULL) {
        return err->status;
    }
    load->block = b;
    load->clear = clear_block;
    b->config = *config;
    if (agglo_params_new(&b->params, be, backward, err) != AGGLO_OK ||
        agglo_params_set_storage(b->params, config->dtype, err) != AGGLO_OK ||
        agglo_vit_block_declare(&b->block, config, "block.", b->params, err) != AGGLO_OK ||
        agglo_params_allocate(b->params, err) != AGGLO_OK || agglo_params_init(b->params, 1, err) != AGGLO_OK) {
        return err->status;
    }
    for (int pass = 0; pass < 2; pass++) {
        agglo_slab *slab = pass == 0 ? &measured : &b->slab;

        if (pass == 1 && agglo_slab_allocate(slab, &measured, err) != AGGLO_OK) {
            return err->status;
        }
        b->x = agglo_slab_take(slab, config->dtype, 3, shape);
        b->y = agglo_slab_take(slab, config->dtype, 3, shape);
        agglo_vit_block_plan(&b->kept, config, batch, tokens, slab);
        if (backward) {
            b->d = agglo_slab_take(slab, config->dtype, 3, shape);
            agglo_vit_block_plan_backward(&b->scratch, config, batch, tokens, slab);
        }
    }
    /* qkv and proj 4 d^2, the MLP 2 or, with SwiGLU, 3 d mlp multiply-adds a token; attention 2 n d */
    load->flops = 2.0 * m * (4.0 * d * d + (config->swiglu ? 3.0 : 2.0) * d * mlp + 2.0 * (double)tokens * d);
    load->flops *= backward ? 3.0 : 1.0;
    /* forward: the stored weights, x and y; with the way back: weights twice, and gradients, which are F32, read and written */
    load->bytes = (double)agglo_dtype_size(config->dtype) * ((double)agglo_params_elements(b->params) + 2.0 * m * d);
    if (backward) {
        load->bytes +=
            (double)agglo_params_elements(b->params) * (double)(agglo_dtype_size(config->dtype) + 2 * sizeof(float));
    }
    load->t[0] = agglo_tensor_3d(NULL, config->dtype, batch, tokens, config->dim); /* dL/dy */
    if (make(be, &load->t[0], AGGLO_DRAW_NORMAL, err) != AGGLO_OK) {
        return err->status;
    }
    return fill(be, &b->x, AGGLO_DRAW_NORMAL, err);
}
