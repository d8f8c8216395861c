/* One ViT block, and oneDNN's own matrix product on the same machine, timed when asked to: bench/vit_block_peer.py asks.
 *
 *     agglo_bench_vit_block DEVICE THREADS BATCH TOKENS DIM HEADS MLP
 *
 * First prints one line of JSON: backend, counts of floating point operations of one forward pass (products only), oneDNN's version. Then,
 * for every line of standard input, runs it once and prints seconds on the wall and of processor time:
 *
 *     forward   the block, keeping what backward needs
 *     both      forward and backward (gradients of input and parameters; parameter gradients are added to)
 *     product   dnnl_sgemm, whole, on THREADS threads, for each linear layer's shape: the best rate of them, as seconds that the
 *               block's forward operations would take at it
 *     linear | attention | ...  one operator of the block, for finding where the time goes
 */
#include "tensor/nn/vit_block.h"

#include <oneapi/dnnl/dnnl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

extern void omp_set_num_threads(int n);

typedef struct bench {
    agglo_backend *be;
    agglo_vit_block_config config;
    agglo_params *params;
    agglo_vit_block block;
    agglo_vit_block_kept kept;
    agglo_vit_block_scratch scratch;
    agglo_tensor x, y, d;
    int64_t batch, tokens;
    int n_threads;
    double flops; /* forward */
} bench;

static void must(agglo_status status, const agglo_err *err)
{
    if (status != AGGLO_OK) {
        fprintf(stderr, "agglo_bench_vit_block: %s: %s\n", err->what, err->why);
        exit(1);
    }
}

static double clock_of(clockid_t id)
{
    struct timespec t;

    clock_gettime(id, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static float noise(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return (float)(*state >> 8) / 8388608.0f - 1.0f;
}

static void fill(agglo_backend *be, const agglo_tensor *t)
{
    int64_t n = agglo_tensor_count(t);
    float *values = malloc((size_t)n * sizeof *values);
    uint32_t state = 1;

    if (values == NULL) {
        exit(1);
    }
    for (int64_t i = 0; i < n; i++) {
        values[i] = noise(&state);
    }
    agglo_upload(be, t->data, values, (size_t)n * sizeof *values);
    free(values);
}

static void set_up(bench *b, const char *device)
{
    agglo_err err = {0};
    agglo_slab measured, slab;

    must(agglo_backend_open(&b->be, device, b->n_threads, &err), &err);
    must(agglo_params_new(&b->params, b->be, true, &err), &err);
    must(agglo_vit_block_declare(&b->block, &b->config, "", b->params, &err), &err);
    must(agglo_params_allocate(b->params, &err), &err);
    must(agglo_params_init(b->params, 1, &err), &err);
    measured = slab = agglo_slab_measure(b->be);
    for (int pass = 0; pass < 2; pass++) {
        agglo_slab *s = pass == 0 ? &measured : &slab;
        const int64_t shape[3] = {b->batch, b->tokens, b->config.dim};

        if (pass == 1) {
            must(agglo_slab_allocate(&slab, &measured, &err), &err);
        }
        b->x = agglo_slab_take(s, AGGLO_F32, 3, shape);
        b->y = agglo_slab_take(s, AGGLO_F32, 3, shape);
        b->d = agglo_slab_take(s, AGGLO_F32, 3, shape);
        agglo_vit_block_plan(&b->kept, &b->config, b->batch, b->tokens, s);
        agglo_vit_block_plan_backward(&b->scratch, &b->config, b->batch, b->tokens, s);
    }
    fill(b->be, &b->x);
    fill(b->be, &b->d);
}

static void forward(bench *b)
{
    agglo_vit_block_forward(b->be, &b->config, &b->block, &b->x, &b->kept, &b->y);
}

static void backward(bench *b)
{
    agglo_vit_block_backward(b->be, &b->config, &b->block, &b->x, &b->kept, &b->scratch, &b->d);
}

static void both(bench *b)
{
    forward(b);
    backward(b);
    agglo_copy(b->be, b->d.data, b->x.data, agglo_tensor_bytes(&b->d)); /* or it would grow without bound */
}

/* The operators of the block by themselves. */
static void linear(bench *b)
{
    agglo_linear(b->be, &b->kept.norm2, &b->block.fc1_w->stored, &b->block.fc1_b->value, b->config.act, &b->kept.pre,
                 &b->kept.hidden);
}

static void linear_narrow(bench *b)
{
    agglo_linear(b->be, &b->kept.hidden, &b->block.fc2_w->stored, &b->block.fc2_b->value, AGGLO_ACT_NONE, NULL, &b->y);
}

static void bwd_input(bench *b)
{
    agglo_linear_bwd_input(b->be, &b->kept.pre, &b->block.fc1_w->stored, false, &b->scratch.d_narrow);
}

static void bwd_weight(bench *b)
{
    agglo_linear_bwd_weight(b->be, &b->kept.pre, &b->kept.norm2, &b->block.fc1_w->grad, &b->block.fc1_b->grad);
}

static void attention(bench *b)
{
    agglo_attention(b->be, &b->kept.qkv, 0.125f, &b->kept.attended, &b->kept.lse);
}

static void attention_bwd(bench *b)
{
    agglo_attention_bwd(b->be, &b->kept.attended, &b->kept.qkv, &b->kept.attended, &b->kept.lse, 0.125f,
                        &b->scratch.d_qkv);
}

static void layernorm(bench *b)
{
    agglo_layernorm(b->be, &b->x, &b->block.norm1_w->value, &b->block.norm1_b->value, 1e-6f, &b->kept.norm1,
                    &b->kept.mean1, &b->kept.rstd1);
}

static void layernorm_bwd(bench *b)
{
    agglo_layernorm_bwd(b->be, &b->kept.norm1, &b->x, &b->block.norm1_w->value, &b->kept.mean1, &b->kept.rstd1, false,
                        &b->scratch.d_narrow, &b->block.norm1_w->grad, &b->block.norm1_b->grad);
}

static void activate_bwd(bench *b)
{
    agglo_activate_bwd(b->be, b->config.act, &b->kept.pre, &b->kept.hidden, &b->kept.hidden);
}

static void residual(bench *b)
{
    agglo_residual(b->be, &b->x, &b->kept.middle, NULL, &b->y);
}

static const struct {
    const char *name;
    void (*run)(bench *b);
} runs[] = {
    {"forward", forward},     {"both", both},
    {"linear", linear},       {"linear_narrow", linear_narrow},
    {"bwd_input", bwd_input}, {"bwd_weight", bwd_weight},
    {"attention", attention}, {"attention_bwd", attention_bwd},
    {"layernorm", layernorm}, {"layernorm_bwd", layernorm_bwd},
    {"residual", residual},   {"activate_bwd", activate_bwd},
};

/* Seconds that the block's forward operations would take at the best rate of dnnl_sgemm; and of processor time. */
static void product(bench *b, double out[2])
{
    int64_t m = b->batch * b->tokens, d = b->config.dim, h = b->config.mlp_dim;
    const int64_t shapes[4][2] = {{3 * d, d}, {d, d}, {h, d}, {d, h}}; /* N, K */
    static float *x, *w, *y;
    int64_t widest = 3 * d > h ? 3 * d : h;

    if (x == NULL) {
        uint32_t state = 7;

        x = malloc((size_t)(m * widest) * sizeof(float));
        w = malloc((size_t)(widest * widest) * sizeof(float));
        y = malloc((size_t)(m * widest) * sizeof(float));
        if (x == NULL || w == NULL || y == NULL) {
            exit(1);
        }
        for (int64_t i = 0; i < m * widest; i++) {
            x[i] = y[i] = noise(&state);
        }
        for (int64_t i = 0; i < widest * widest; i++) {
            w[i] = noise(&state);
        }
    }
    omp_set_num_threads(b->n_threads);
    out[0] = out[1] = 1e30;
    for (int i = 0; i < 4; i++) {
        int64_t n = shapes[i][0], k = shapes[i][1];
        double wall = clock_of(CLOCK_MONOTONIC), cpu = clock_of(CLOCK_PROCESS_CPUTIME_ID), share;

        dnnl_sgemm('N', 'T', m, n, k, 1.0f, x, k, w, k, 0.0f, y, n);
        wall = clock_of(CLOCK_MONOTONIC) - wall;
        cpu = clock_of(CLOCK_PROCESS_CPUTIME_ID) - cpu;
        share = b->flops / (2.0 * (double)m * (double)n * (double)k);
        out[0] = wall * share < out[0] ? wall * share : out[0];
        out[1] = cpu * share < out[1] ? cpu * share : out[1];
    }
    omp_set_num_threads(1);
}

int main(int argc, char **argv)
{
    bench b = {.config = {.act = AGGLO_ACT_GELU, .norm_eps = 1e-6f}};
    const dnnl_version_t *version = dnnl_version();
    char line[64];
    double m, d, h;

    if (argc != 8) {
        fprintf(stderr, "usage: agglo_bench_vit_block DEVICE THREADS BATCH TOKENS DIM HEADS MLP\n");
        return 2;
    }
    b.n_threads = atoi(argv[2]);
    b.batch = atoll(argv[3]);
    b.tokens = atoll(argv[4]);
    b.config.dim = atoll(argv[5]);
    b.config.heads = atoll(argv[6]);
    b.config.mlp_dim = atoll(argv[7]);
    m = (double)(b.batch * b.tokens);
    d = (double)b.config.dim;
    h = (double)b.config.mlp_dim;
    b.flops = 2.0 * m * (4.0 * d * d + 2.0 * d * h) + 4.0 * m * (double)b.tokens * d;
    set_up(&b, argv[1]);
    printf("{\"backend\": \"%s\", \"forward_flops\": %.0f, \"onednn\": \"%d.%d.%d\"}\n", agglo_backend_describe(b.be),
           b.flops, version->major, version->minor, version->patch);
    fflush(stdout);
    while (fgets(line, sizeof line, stdin) != NULL) {
        double times[2] = {0.0, 0.0};
        bool known = false;

        line[strcspn(line, "\n")] = '\0';
        if (strcmp(line, "product") == 0) {
            product(&b, times);
            known = true;
        }
        for (size_t i = 0; i < AGGLO_COUNT(runs); i++) {
            if (strcmp(line, runs[i].name) == 0) {
                double wall = clock_of(CLOCK_MONOTONIC), cpu = clock_of(CLOCK_PROCESS_CPUTIME_ID);
                agglo_err err = {0};

                runs[i].run(&b);
                must(agglo_backend_check(b.be, &err), &err);
                times[0] = clock_of(CLOCK_MONOTONIC) - wall;
                times[1] = clock_of(CLOCK_PROCESS_CPUTIME_ID) - cpu;
                known = true;
            }
        }
        if (!known) {
            fprintf(stderr, "agglo_bench_vit_block: no run called \"%s\"\n", line);
            return 2;
        }
        printf("%.9f %.9f\n", times[0], times[1]);
        fflush(stdout);
    }
    return 0;
}
