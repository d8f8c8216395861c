/* Batches to the device and results back; see step_io_impl.h. */
#include "student/step_io_impl.h"

#include <string.h>

#define PLACE_ALIGN ((size_t)256)

/* Room for a * b * c elements of `size` bytes behind what is used; false when a size cannot be held. */
static bool place(size_t *used, size_t a, size_t b, size_t c, size_t size, size_t *at, size_t *n_bytes)
{
    size_t n, rounded;

    *at = *used;
    if (!agglo_size_mul(a, b, &n) || !agglo_size_mul(n, c, &n) || !agglo_size_mul(n, size, &n)) {
        return false;
    }
    *n_bytes = n;
    return agglo_size_add(n, PLACE_ALIGN - 1, &rounded) &&
           agglo_size_add(*used, rounded / PLACE_ALIGN * PLACE_ALIGN, used);
}

agglo_status agglo_step_layout_of(agglo_step_layout *layout, const agglo_batch *batch, const agglo_head_config *heads,
                                  size_t n_heads, agglo_err *err)
{
    size_t n = (size_t)batch->batch, side = (size_t)batch->size, *used = &layout->n_bytes, ignored;
    bool fits;

    memset(layout, 0, sizeof *layout);
    fits = place(used, n, side, side, 3, &layout->pixels, &layout->pixel_bytes) &&
           place(used, n_heads, n, 1, sizeof(float), &layout->valid, &ignored);
    for (size_t i = 0; fits && i < n_heads; i++) {
        const agglo_head_config *head = &heads[i];
        const agglo_batch_targets *targets = &batch->targets[i];
        size_t n_tokens;

        fits = agglo_size_mul((size_t)head->grid_h, (size_t)head->grid_w, &n_tokens) &&
               place(used, n, 1, (size_t)head->summary_dim, agglo_dtype_size(targets->summary_dtype),
                     &layout->targets[i][0], &layout->target_bytes[i][0]) &&
               place(used, n, n_tokens, (size_t)head->spatial_dim, agglo_dtype_size(targets->spatial_dtype),
                     &layout->targets[i][1], &layout->target_bytes[i][1]);
    }
    fits = fits && place(used, n_heads, 2, 1, sizeof(float), &layout->weights, &ignored) &&
           place(used, 1, 1, 1, sizeof(agglo_adamw_numbers), &layout->numbers, &ignored);
    return fits ? AGGLO_OK
                : agglo_fail(err, AGGLO_E_MEMORY, "a batch of %d pictures of %d x %d and their targets is too large",
                             batch->batch, batch->size, batch->size);
}

agglo_status agglo_step_io_init(agglo_step_io *io, agglo_backend *backend, agglo_err *err)
{
    memset(io, 0, sizeof *io);
    io->backend = backend;
    io->staging_read = agglo_event_new(backend, err);
    io->results = io->staging_read == NULL
                      ? NULL
                      : agglo_pinned_alloc(backend, AGGLO_TRAINER_MAX_PENDING * sizeof *io->results, err);
    if (io->results == NULL) {
        return err->status;
    }
    memset(io->results, 0, AGGLO_TRAINER_MAX_PENDING * sizeof *io->results);
    for (int i = 0; i < AGGLO_TRAINER_MAX_PENDING; i++) {
        io->result_done[i] = agglo_event_new(backend, err);
        if (io->result_done[i] == NULL) {
            return err->status;
        }
    }
    return AGGLO_OK;
}

static void drop_slots(agglo_step_io *io)
{
    agglo_upload_ring_free(io->ring);
    agglo_backend_release(io->backend, io->staging);
    io->ring = NULL;
    io->staging = NULL;
    io->slot_bytes = 0;
}

void agglo_step_io_clear(agglo_step_io *io)
{
    if (io->backend == NULL) {
        return;
    }
    drop_slots(io);
    for (int i = 0; i < AGGLO_TRAINER_MAX_PENDING; i++) {
        if (io->result_done[i] != NULL) {
            agglo_event_wait(io->backend, io->result_done[i]); /* nothing is on its way to `results` any more */
        }
        agglo_event_free(io->backend, io->result_done[i]);
    }
    agglo_pinned_release(io->backend, io->results);
    agglo_event_free(io->backend, io->staging_read);
    memset(io, 0, sizeof *io);
}

agglo_status agglo_step_io_fit(agglo_step_io *io, size_t n_bytes, agglo_err *err)
{
    if (n_bytes <= io->slot_bytes) {
        return AGGLO_OK;
    }
    drop_slots(io);
    io->ring = agglo_upload_ring_new(io->backend, 2, n_bytes, err);
    io->staging = io->ring == NULL ? NULL : agglo_backend_alloc(io->backend, n_bytes, err);
    if (io->staging == NULL) {
        drop_slots(io);
        return agglo_doing(err, "cannot take memory for batches of %zu bytes", n_bytes);
    }
    io->slot_bytes = n_bytes;
    /* its zeros are work of the compute stream, which the first upload into it must not overtake */
    agglo_event_record(io->backend, io->staging_read);
    return AGGLO_OK;
}

void agglo_step_io_up(agglo_step_io *io, const agglo_step_layout *layout, const agglo_batch *batch,
                      const float *weights, const agglo_adamw_numbers *numbers, void *input)
{
    uint8_t *slot = agglo_upload_ring_take(io->ring);
    size_t n = (size_t)batch->batch;

    AGGLO_ASSERT(layout->n_bytes <= io->slot_bytes);
    memcpy(slot + layout->pixels, batch->pixels, layout->pixel_bytes);
    for (size_t i = 0; i < batch->n_teachers; i++) {
        const agglo_batch_targets *targets = &batch->targets[i];

        memcpy(slot + layout->valid + i * n * sizeof(float), targets->valid, n * sizeof(float));
        memcpy(slot + layout->targets[i][0], targets->summary, layout->target_bytes[i][0]);
        memcpy(slot + layout->targets[i][1], targets->spatial, layout->target_bytes[i][1]);
    }
    memcpy(slot + layout->weights, weights, batch->n_teachers * 2 * sizeof *weights);
    memcpy(slot + layout->numbers, numbers, sizeof *numbers);
    agglo_upload_ring_send(io->ring, 0, layout->n_bytes, io->staging, io->staging_read);
    agglo_upload_ring_join(io->ring);
    agglo_copy(io->backend, input, io->staging, layout->n_bytes);
    agglo_event_record(io->backend, io->staging_read);
}

void agglo_step_io_down(agglo_step_io *io, int at, const agglo_tensor *sums, const agglo_optim *optim)
{
    agglo_step_result *to = &io->results[at];

    AGGLO_ASSERT(agglo_tensor_bytes(sums) <= sizeof to->sums);
    agglo_download_async(io->backend, to->sums, sums->data, agglo_tensor_bytes(sums), io->result_done[at]);
    if (optim != NULL) {
        agglo_grad_state_fetch(io->backend, optim, &to->state, io->result_done[at]);
    }
}

const agglo_step_result *agglo_step_io_wait(agglo_step_io *io, int at)
{
    agglo_event_wait(io->backend, io->result_done[at]);
    return &io->results[at];
}
