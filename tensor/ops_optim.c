/* Lists of parameters: tables of tensors and chunks on the device; and the optimiser's front, as ops.c. */
#include "tensor/backend_impl.h"
#include "tensor/optim_impl.h"

#include "base/alloc.h"
#include "tensor/optim_inline.h"

static bool filled(const agglo_tensor *t, agglo_dtype dtype, int64_t n)
{
    return t->data != NULL && t->dtype == dtype && agglo_tensor_count(t) == n;
}

static int64_t chunks_of(int64_t n)
{
    return (n + AGGLO_OPTIM_CHUNK - 1) / AGGLO_OPTIM_CHUNK;
}

/* The tables, on the host at `base`, which becomes `device` on the device. */
static void fill(const agglo_optim *optim, const agglo_optim_entry *entries, agglo_optim_tensor *tensors,
                 agglo_optim_chunk *chunks)
{
    int64_t next = 0;

    for (int64_t i = 0; i < optim->n; i++) {
        const agglo_optim_entry *entry = &entries[i];
        int64_t n = agglo_tensor_count(&entry->p);

        tensors[i] = (agglo_optim_tensor){.p = entry->p.data,
                                          .m = entry->m.data,
                                          .v = entry->v.data,
                                          .g = entry->g.data,
                                          .copy = entry->copy.data,
                                          .average = entry->average.data,
                                          .n = n,
                                          .first_chunk = next,
                                          .n_chunks = chunks_of(n),
                                          .weight_decay = entry->weight_decay};
        for (int64_t k = 0; k < tensors[i].n_chunks; k++) {
            chunks[next++] = (agglo_optim_chunk){i, k * AGGLO_OPTIM_CHUNK};
        }
    }
}

agglo_status agglo_optim_new(agglo_optim **out, agglo_backend *be, const agglo_optim_entry *entries, size_t n,
                             agglo_err *err)
{
    size_t tensor_bytes, chunk_bytes, sum_bytes;
    agglo_optim *optim = NULL;
    uint8_t *host = NULL, *device;

    AGGLO_ASSERT(n >= 1);
    *out = NULL;
    optim = agglo_alloc(1, sizeof *optim, err);
    if (optim == NULL) {
        goto fail;
    }
    optim->backend = be;
    optim->n = (int64_t)n;
    for (size_t i = 0; i < n; i++) {
        const agglo_optim_entry *entry = &entries[i];
        int64_t count = agglo_tensor_count(&entry->p);

        AGGLO_ASSERT(count >= 1 && filled(&entry->p, AGGLO_F32, count) && filled(&entry->g, AGGLO_F32, count) &&
                     filled(&entry->m, AGGLO_F32, count) && filled(&entry->v, AGGLO_F32, count));
        AGGLO_ASSERT(entry->copy.data == NULL || filled(&entry->copy, AGGLO_BF16, count));
        AGGLO_ASSERT(entry->average.data == NULL || filled(&entry->average, AGGLO_F32, count));
        optim->n_chunks += chunks_of(count);
        optim->averages = optim->averages || entry->average.data != NULL;
    }
    /* every part is a multiple of 8 bytes */
    tensor_bytes = n * sizeof(agglo_optim_tensor);
    chunk_bytes = (size_t)optim->n_chunks * sizeof(agglo_optim_chunk);
    sum_bytes = ((size_t)optim->n_chunks + n) * sizeof(double);
    host = agglo_alloc(tensor_bytes + chunk_bytes, 1, err);
    if (host == NULL) {
        goto fail;
    }
    fill(optim, entries, (agglo_optim_tensor *)(void *)host, (agglo_optim_chunk *)(void *)(host + tensor_bytes));
    device = agglo_backend_alloc(
        be, tensor_bytes + chunk_bytes + sum_bytes + sizeof(agglo_grad_state) + sizeof(int64_t), err);
    if (device == NULL) {
        goto fail;
    }
    optim->block = device;
    optim->tensors = (const agglo_optim_tensor *)(void *)device;
    optim->chunks = (const agglo_optim_chunk *)(void *)(device + tensor_bytes);
    optim->chunk_sums = (double *)(void *)(device + tensor_bytes + chunk_bytes);
    optim->tensor_sums = optim->chunk_sums + optim->n_chunks;
    optim->state = (agglo_grad_state *)(void *)(optim->tensor_sums + n);
    optim->held = (int64_t *)(void *)(optim->state + 1);
    agglo_upload(be, device, host, tensor_bytes + chunk_bytes);
    agglo_grad_release(be, optim);
    if (agglo_backend_check(be, err) != AGGLO_OK) {
        goto fail;
    }
    agglo_free(host);
    *out = optim;
    return AGGLO_OK;
fail:
    agglo_free(host);
    agglo_optim_free(optim);
    return agglo_doing(err, "cannot make an optimiser over %zu tensors", n);
}

void agglo_optim_free(agglo_optim *optim)
{
    if (optim != NULL) {
        agglo_backend_release(optim->backend, optim->block);
        agglo_free(optim);
    }
}

static bool ready(const agglo_backend *be, const agglo_optim *optim)
{
    AGGLO_ASSERT(optim->backend == be);
    return be->failed.status == AGGLO_OK;
}

void agglo_adamw(agglo_backend *be, const agglo_adamw_config *config, agglo_tensor *p, const agglo_tensor *g,
                 agglo_tensor *m, agglo_tensor *v)
{
    int64_t n = agglo_tensor_count(p);

    AGGLO_ASSERT(config->step >= 1 && n >= 1 && filled(p, AGGLO_F32, n) && filled(g, AGGLO_F32, n));
    AGGLO_ASSERT(filled(m, AGGLO_F32, n) && filled(v, AGGLO_F32, n));
    if (be->failed.status == AGGLO_OK) {
        be->ops->adamw(be, config, p, g, m, v);
    }
}

void agglo_grad_norm(agglo_backend *be, agglo_optim *optim)
{
    if (ready(be, optim)) {
        be->ops->grad_norm(be, optim);
    }
}

void agglo_grad_state_read(agglo_backend *be, const agglo_optim *optim, agglo_grad_state *out)
{
    *out = (agglo_grad_state){0.0, -1};
    if (ready(be, optim)) {
        agglo_download(be, out, optim->state, sizeof *out);
    }
}

void agglo_grad_state_fetch(agglo_backend *be, const agglo_optim *optim, agglo_grad_state *out,
                            struct agglo_event *done)
{
    AGGLO_ASSERT(optim->backend == be);
    agglo_download_async(be, out, optim->state, sizeof *out, done);
}

void agglo_grad_hold(agglo_backend *be, const agglo_tensor *values, agglo_optim *optim)
{
    AGGLO_ASSERT(filled(values, AGGLO_F32, agglo_tensor_count(values)));
    if (ready(be, optim)) {
        be->ops->grad_hold(be, values, optim);
    }
}

void agglo_grad_release(agglo_backend *be, agglo_optim *optim)
{
    const int64_t none = -1;

    if (ready(be, optim)) {
        agglo_upload(be, optim->held, &none, sizeof none);
    }
}

_Static_assert(sizeof(agglo_adamw_numbers) == AGGLO_ADAMW_NUMBERS * sizeof(float), "floats without gaps");

agglo_adamw_numbers agglo_adamw_numbers_of(const agglo_adamw_config *config, float max_norm)
{
    agglo_adamw_step step = agglo_adamw_step_of(config);

    return (agglo_adamw_numbers){.lr = config->lr,
                                 .beta1 = step.beta1,
                                 .beta2 = step.beta2,
                                 .eps = step.eps,
                                 .grad_scale = step.grad_scale,
                                 .max_norm = max_norm,
                                 .size = step.size,
                                 .inverse = step.inverse};
}

void agglo_adamw_many_at(agglo_backend *be, const agglo_tensor *numbers, bool guarded, agglo_optim *optim)
{
    AGGLO_ASSERT(filled(numbers, AGGLO_F32, AGGLO_ADAMW_NUMBERS));
    if (ready(be, optim)) {
        be->ops->adamw_many_at(be, numbers, guarded, optim);
    }
}

void agglo_adamw_many(agglo_backend *be, const agglo_adamw_config *config, float max_norm, bool guarded,
                      agglo_optim *optim)
{
    AGGLO_ASSERT(config->step >= 1 && max_norm >= 0.0f && (guarded || max_norm == 0.0f));
    if (ready(be, optim)) {
        be->ops->adamw_many(be, config, max_norm, guarded, optim);
    }
}

void agglo_ema(agglo_backend *be, float decay, agglo_optim *optim)
{
    AGGLO_ASSERT(decay >= 0.0f && decay <= 1.0f);
    if (optim->averages && ready(be, optim)) {
        be->ops->ema(be, decay, optim);
    }
}
