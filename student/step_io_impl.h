/* What travels between host and device around a training step. Inside the trainer.
 *
 * Up: one block per batch, everything that differs from step to step, at places that depend on the shape alone (agglo_step_layout):
 *
 *     pixels | valid | targets as stored | weights of the losses | numbers of the optimiser
 *
 *     batch -> pinned slot (one of two) -> staging block on the device -> the step's input block
 *              ^ copied by the host        ^ on the copy stream           ^ on the compute stream, behind the step before
 *
 * so that a batch goes up while the step before computes, and the input block, whose addresses a recorded step knows, is always the same.
 * Down: loss sums and the state of the gradient, into one of as many pinned places as steps may be under way, with an event each. On the
 * CPU all of it is plain copies.
 */
#ifndef AGGLO_STUDENT_STEP_IO_IMPL_H
#define AGGLO_STUDENT_STEP_IO_IMPL_H

#include "student/trainer.h"
#include "tensor/async.h"
#include "tensor/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Where things stand in the block, bytes from its start, each at a multiple of 256. */
typedef struct agglo_step_layout {
    size_t pixels, pixel_bytes;         /* u8 [batch, size, size, 3] */
    size_t valid;                       /* F32 [n_heads, batch] */
    size_t targets[AGGLO_MAX_HEADS][2]; /* summary, spatial: [batch, n, C] of their dtype */
    size_t target_bytes[AGGLO_MAX_HEADS][2];
    size_t weights; /* F32 [n_heads, 2] */
    size_t numbers; /* agglo_adamw_numbers */
    size_t n_bytes;
} agglo_step_layout;

/* The layout for batches like this one. AGGLO_E_MEMORY: more bytes than can be addressed. */
agglo_status agglo_step_layout_of(agglo_step_layout *layout, const agglo_batch *batch, const agglo_head_config *heads,
                                  size_t n_heads, agglo_err *err);

/* What a step leaves for the host. */
typedef struct agglo_step_result {
    agglo_grad_state state;
    float sums[AGGLO_MAX_HEADS * 2][4];
} agglo_step_result;

typedef struct agglo_step_io {
    agglo_backend *backend;
    agglo_upload_ring *ring;
    void *staging;
    size_t slot_bytes;
    agglo_event *staging_read;  /* staging may be written: it is zeroed, and the last copy out of it is done */
    agglo_step_result *results; /* pinned [AGGLO_TRAINER_MAX_PENDING] */
    agglo_event *result_done[AGGLO_TRAINER_MAX_PENDING];
} agglo_step_io;

/* The caller clears, after a failure too. */
agglo_status agglo_step_io_init(agglo_step_io *io, agglo_backend *backend, agglo_err *err);
void agglo_step_io_clear(agglo_step_io *io); /* safe on a zeroed one */

/* Memory for blocks of n_bytes; nothing to do where there is enough. */
agglo_status agglo_step_io_fit(agglo_step_io *io, size_t n_bytes, agglo_err *err);

/* Put a batch into a slot and send it to `input` on the device. weights[2 * i + kind] is lambda of teacher i's loss. The batch is the
 * caller's again on return. */
void agglo_step_io_up(agglo_step_io *io, const agglo_step_layout *layout, const agglo_batch *batch,
                      const float *weights, const agglo_adamw_numbers *numbers, void *input);

/* Fetch sums [n_heads * 2, 4] and, where there is an optimiser, its state into place `at`, behind what was issued so far. */
void agglo_step_io_down(agglo_step_io *io, int at, const agglo_tensor *sums, const agglo_optim *optim);
/* What was fetched, when it is there (waits). Failures are latched in the backend. */
const agglo_step_result *agglo_step_io_wait(agglo_step_io *io, int at);

#ifdef __cplusplus
}
#endif
#endif
