/* The CPU backend: host memory, a pool of threads, scratch, and the choice of instruction set. */
#include "tensor/cpu/cpu_impl.h"

#include "base/alloc.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MEMORY_ALIGN 256

static void cpu_free(agglo_backend *be)
{
    agglo_cpu *cpu = (agglo_cpu *)be;

    agglo_pool_free(be->pool);
    agglo_cpu_convs_free(cpu->convs);
    agglo_free(cpu->block);
    agglo_free(cpu);
}

static bool cpu_supports(const agglo_backend *be, agglo_dtype dtype)
{
    (void)be;
    return dtype == AGGLO_F32 || dtype == AGGLO_BF16;
}

static void cpu_wait(agglo_backend *be)
{
    /* every operator has finished when it returns; what is left to collect is a product that failed inside one */
    int status = agglo_cpu_dnnl_failure();

    if (status != 0) {
        agglo_err err = {0};

        agglo_fail(&err, AGGLO_E_DEVICE, "oneDNN failed with status %d", status);
        agglo_backend_latch(be, &err);
    }
}

/* A block is aligned up from an allocation whose address is kept right before it. */
static void *cpu_alloc(agglo_backend *be, size_t n_bytes, agglo_err *err)
{
    uint8_t *whole, *block;
    size_t total;

    (void)be;
    if (!agglo_size_add(n_bytes, MEMORY_ALIGN + sizeof whole, &total)) {
        agglo_fail(err, AGGLO_E_MEMORY, "%zu bytes is more than can be addressed", n_bytes);
        return NULL;
    }
    whole = agglo_alloc(total, 1, err);
    if (whole == NULL) {
        return NULL;
    }
    block = whole + sizeof whole;
    block += (MEMORY_ALIGN - (uintptr_t)block % MEMORY_ALIGN) % MEMORY_ALIGN;
    memcpy(block - sizeof whole, &whole, sizeof whole);
    return block;
}

static void cpu_release(agglo_backend *be, void *block)
{
    uint8_t *whole;

    (void)be;
    memcpy(&whole, (uint8_t *)block - sizeof whole, sizeof whole);
    agglo_free(whole);
}

static void cpu_move(agglo_backend *be, void *dst, const void *src, size_t n_bytes)
{
    (void)be;
    memcpy(dst, src, n_bytes);
}

static void cpu_zero(agglo_backend *be, void *dst, size_t n_bytes)
{
    (void)be;
    memset(dst, 0, n_bytes);
}

/* ---- tensor/async.h: everything has happened when it returns ---- */

struct agglo_event {
    char nothing;
};

static agglo_event *cpu_event_new(agglo_backend *be, agglo_err *err)
{
    (void)be;
    return agglo_alloc(1, sizeof(agglo_event), err);
}

static void cpu_event_free(agglo_backend *be, agglo_event *event)
{
    (void)be;
    agglo_free(event);
}

static void cpu_event_record(agglo_backend *be, agglo_event *event)
{
    (void)be;
    (void)event;
}

static void cpu_event_pass(agglo_backend *be, const agglo_event *event)
{
    (void)be;
    (void)event;
}

static bool cpu_event_is_done(agglo_backend *be, const agglo_event *event)
{
    (void)be;
    (void)event;
    return true;
}

static void cpu_upload_async(agglo_backend *be, void *dst, const void *src, size_t n_bytes, const agglo_event *after,
                             agglo_event *done)
{
    (void)after;
    (void)done;
    cpu_move(be, dst, src, n_bytes);
}

static void cpu_download_async(agglo_backend *be, void *dst, const void *src, size_t n_bytes, agglo_event *done)
{
    (void)be;
    (void)done;
    memcpy(dst, src, n_bytes);
}

static size_t aligned(size_t n_bytes)
{
    return (n_bytes + AGGLO_CPU_ALIGN - 1) / AGGLO_CPU_ALIGN * AGGLO_CPU_ALIGN;
}

bool agglo_cpu_reserve(agglo_backend *be, size_t shared_bytes, size_t worker_bytes)
{
    agglo_cpu *cpu = (agglo_cpu *)be;
    size_t total, n_workers = (size_t)agglo_pool_threads(be->pool);
    agglo_err err = {0};

    if (shared_bytes <= cpu->shared_bytes && worker_bytes <= cpu->worker_bytes) {
        return true;
    }
    shared_bytes = shared_bytes > cpu->shared_bytes ? aligned(shared_bytes) : cpu->shared_bytes;
    worker_bytes = worker_bytes > cpu->worker_bytes ? aligned(worker_bytes) : cpu->worker_bytes;
    agglo_free(cpu->block);
    cpu->block = cpu->scratch = NULL;
    cpu->shared_bytes = cpu->worker_bytes = 0;
    if (!agglo_size_mul(worker_bytes, n_workers, &total) || !agglo_size_add(total, shared_bytes, &total) ||
        !agglo_size_add(total, AGGLO_CPU_ALIGN, &total)) {
        agglo_fail(&err, AGGLO_E_MEMORY, "scratch of %zu x %zu bytes is more than can be addressed", n_workers,
                   worker_bytes);
    } else {
        cpu->block = agglo_alloc(total, 1, &err);
    }
    if (cpu->block == NULL) {
        agglo_doing(&err, "cannot allocate scratch of the CPU backend");
        agglo_backend_latch(be, &err);
        return false;
    }
    cpu->scratch = cpu->block + (AGGLO_CPU_ALIGN - (uintptr_t)cpu->block % AGGLO_CPU_ALIGN) % AGGLO_CPU_ALIGN;
    cpu->shared_bytes = shared_bytes;
    cpu->worker_bytes = worker_bytes;
    return true;
}

#define DECLARE_ISA(isa)                                                                                               \
    void agglo_cpu_attention_ops_##isa(agglo_backend_ops *ops);                                                        \
    void agglo_cpu_batchnorm_ops_##isa(agglo_backend_ops *ops);                                                        \
    void agglo_cpu_conv_ops_##isa(agglo_backend_ops *ops);                                                             \
    void agglo_cpu_maps_ops_##isa(agglo_backend_ops *ops);                                                             \
    void agglo_cpu_elementwise_ops_##isa(agglo_backend_ops *ops);                                                      \
    void agglo_cpu_linear_ops_##isa(agglo_backend_ops *ops);                                                           \
    void agglo_cpu_loss_ops_##isa(agglo_backend_ops *ops);                                                             \
    void agglo_cpu_norm_ops_##isa(agglo_backend_ops *ops);                                                             \
    void agglo_cpu_optim_ops_##isa(agglo_backend_ops *ops);                                                            \
    void agglo_cpu_tokens_ops_##isa(agglo_backend_ops *ops);                                                           \
    void agglo_cpu_attention_bias_ops_##isa(agglo_backend_ops *ops);                                                   \
    void agglo_cpu_gather_ops_##isa(agglo_backend_ops *ops);                                                           \
    void agglo_cpu_resample_ops_##isa(agglo_backend_ops *ops)

#define FILL_ISA(isa, ops)                                                                                             \
    do {                                                                                                               \
        agglo_cpu_attention_ops_##isa(ops);                                                                            \
        agglo_cpu_batchnorm_ops_##isa(ops);                                                                            \
        agglo_cpu_conv_ops_##isa(ops);                                                                                 \
        agglo_cpu_maps_ops_##isa(ops);                                                                                 \
        agglo_cpu_elementwise_ops_##isa(ops);                                                                          \
        agglo_cpu_linear_ops_##isa(ops);                                                                               \
        agglo_cpu_loss_ops_##isa(ops);                                                                                 \
        agglo_cpu_norm_ops_##isa(ops);                                                                                 \
        agglo_cpu_optim_ops_##isa(ops);                                                                                \
        agglo_cpu_tokens_ops_##isa(ops);                                                                               \
        agglo_cpu_attention_bias_ops_##isa(ops);                                                                       \
        agglo_cpu_gather_ops_##isa(ops);                                                                               \
        agglo_cpu_resample_ops_##isa(ops);                                                                             \
    } while (0)

DECLARE_ISA(generic);
#ifdef AGGLO_CPU_X86
DECLARE_ISA(avx2);
DECLARE_ISA(avx512);
#endif

/* Enter the operators of the widest instruction set of this machine, or of the one that AGGLO_CPU_ISA in the environment names;
 * returns its name, NULL when there is no such set here. */
static const char *fill_operators(agglo_backend_ops *ops, const char *wanted)
{
    const bool any = wanted == NULL || wanted[0] == '\0';

#ifdef AGGLO_CPU_X86
    __builtin_cpu_init();
    if ((any || strcmp(wanted, "avx512") == 0) && __builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma")) {
        FILL_ISA(avx512, ops);
        return "avx512";
    }
    if ((any || strcmp(wanted, "avx2") == 0) && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        FILL_ISA(avx2, ops);
        return "avx2";
    }
#endif
    if (any || strcmp(wanted, "generic") == 0) {
        FILL_ISA(generic, ops);
        return "generic";
    }
    return NULL;
}

typedef struct cpu_backend {
    agglo_cpu cpu;
    agglo_backend_ops ops;
} cpu_backend;

agglo_status agglo_backend_cpu_new(agglo_backend **out, int n_threads, agglo_err *err)
{
    cpu_backend *made;
    agglo_backend *be;
    const char *isa, *wanted = getenv("AGGLO_CPU_ISA");

    *out = NULL;
    made = agglo_alloc(1, sizeof *made, err);
    if (made == NULL) {
        return agglo_doing(err, "cannot open the CPU backend");
    }
    made->ops = (agglo_backend_ops){
        .free = cpu_free,
        .supports = cpu_supports,
        .wait = cpu_wait,
        .alloc = cpu_alloc,
        .release = cpu_release,
        .upload = cpu_move,
        .download = cpu_move,
        .copy = cpu_move,
        .zero = cpu_zero,
        .event_new = cpu_event_new,
        .event_free = cpu_event_free,
        .event_record = cpu_event_record,
        .event_join = cpu_event_pass,
        .event_wait = cpu_event_pass,
        .event_is_done = cpu_event_is_done,
        .pinned_alloc = cpu_alloc,
        .pinned_release = cpu_release,
        .upload_async = cpu_upload_async,
        .download_async = cpu_download_async,
        .product = agglo_cpu_product,
    };
    be = &made->cpu.base;
    be->ops = &made->ops;
    isa = fill_operators(&made->ops, wanted);
    if (isa == NULL) {
        agglo_fail(err, AGGLO_E_CONFIG, "AGGLO_CPU_ISA is \"%s\", expected generic, avx2 or avx512, as the machine has",
                   wanted);
        cpu_free(be);
        return agglo_doing(err, "cannot open the CPU backend");
    }
    if (agglo_pool_new(&be->pool, n_threads, err) != AGGLO_OK) {
        cpu_free(be);
        return agglo_doing(err, "cannot open the CPU backend");
    }
    snprintf(be->describe, sizeof be->describe, "cpu (%s, %d thread%s)", isa, agglo_pool_threads(be->pool),
             agglo_pool_threads(be->pool) == 1 ? "" : "s");
    *out = be;
    return AGGLO_OK;
}
