/* The trainer: one student, its optimiser, one step per batch.
 *
 * The arithmetic depends on the batch, the parameters and the shapes, never on the number of threads. After a step that failed before its
 * update the parameters are those before it: always where its loss or gradient is not finite, and where memory is missing. A device that
 * fails may do so in the middle of the update, and leaves nothing to go on from: go back to a checkpoint.
 *
 * Steps may overlap: agglo_trainer_submit issues one and returns, agglo_trainer_take waits for the oldest. With two under way a batch
 * goes up to the device, and the next is made, while the one before is computed. A step that fails undoes those behind it: none of them
 * has changed a parameter. On a device the work of a step is recorded at the second batch of a shape and replayed from then on
 * (tensor/async.h), which changes no bit; on the CPU everything happens within submit.
 *
 * Memory: a shape is batch, size and types of the targets. Its first batch plans and allocates what it needs more than those before, the
 * second makes a recording; from the third on nothing is allocated. Of AGGLO_TRAINER_RECORDINGS (8) shapes recordings are kept: one more
 * takes the place of the shape whose last step is the longest ago, so that of more than 8 shapes that come in turn none is ever replayed.
 * All recordings are given up when a shape needs more memory than any before, and when the communicator is set. Evaluations are not
 * recorded.
 *
 * Ranks (agglo_trainer_set_comm): each has a slice of the global batch. A teacher's loss is the mean over the valid samples of all ranks;
 * gradients and loss sums are summed over the ranks between the backward pass and the update, so that all ranks have the same parameters
 * and metrics, bit for bit.
 */
#ifndef AGGLO_STUDENT_TRAINER_H
#define AGGLO_STUDENT_TRAINER_H

#include "student/feed.h"
#include "student/model.h"
#include "tensor/comm.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct agglo_trainer_config {
    double cos, smooth_l1; /* alpha and beta of equation 3: 0.9, 0.1; summaries have the cosine alone */
    double smooth_l1_threshold;
    double beta1, beta2, eps, weight_decay;
    double clip; /* largest norm of the whole gradient; 0: no clipping */
    /* Storage of activations and of what matrix products read: AGGLO_F32 or AGGLO_BF16. Masters, statistics, gradients of parameters and
     * optimiser state are F32 in both, and so is what checkpoints and exports hold. */
    agglo_dtype precision;
    bool unrecorded; /* issue every step operator by operator, on devices too: for comparisons */
} agglo_trainer_config;

/* 0.9, 0.1, threshold 1; AdamW 0.9, 0.999, 1e-8, decay 0.05; no clipping; F32. */
agglo_trainer_config agglo_trainer_config_default(void);

/* Exact sums over the valid tokens of one (teacher, kind); a summary is one token. */
typedef struct agglo_loss_sums {
    double cos, smooth_l1; /* smooth_l1: channel means */
    double n_tokens, n_samples;
} agglo_loss_sums;

typedef struct agglo_metrics {
    int64_t step;
    double lr;
    double loss;      /* equations 2 + 3 with the plan's weights */
    double grad_norm; /* before clipping; 0 from agglo_trainer_eval */
    size_t n_teachers;
    agglo_loss_sums summary[AGGLO_MAX_HEADS], spatial[AGGLO_MAX_HEADS];
} agglo_metrics;

/* Means over what is valid; 0 where nothing is. */
double agglo_metrics_summary_cos(const agglo_metrics *metrics, size_t teacher);
double agglo_metrics_spatial_cos(const agglo_metrics *metrics, size_t teacher);

typedef struct agglo_trainer agglo_trainer;

/* Parameters are zero: agglo_trainer_init, or load a checkpoint. The backend is borrowed. */
agglo_status agglo_trainer_new(agglo_trainer **out, agglo_backend *backend, const agglo_student_config *student,
                               const agglo_head_config *heads, size_t n_heads, const agglo_trainer_config *config,
                               agglo_err *err);
/* One that can only evaluate, parameters from a student's file: no gradients, no optimiser state. `heads` may be
 * some of the file's. */
agglo_status agglo_trainer_new_eval(agglo_trainer **out, agglo_backend *backend, const agglo_student_config *student,
                                    const agglo_head_config *heads, size_t n_heads, const agglo_trainer_config *config,
                                    const agglo_safetensors *st, agglo_err *err);
void agglo_trainer_free(agglo_trainer *trainer);

/* Random parameters of `seed`, optimiser state zero, step 0. */
agglo_status agglo_trainer_init(agglo_trainer *trainer, uint64_t seed, agglo_err *err);

agglo_student *agglo_trainer_student(agglo_trainer *trainer); /* borrowed */

/* agglo_student_export of its student. No step is under way (asserted). */
agglo_status agglo_trainer_export(agglo_trainer *trainer, const char *path, agglo_err *err);

/* Updates made and taken; with no step under way what the next plan's `step` must be. */
int64_t agglo_trainer_steps(const agglo_trainer *trainer);
void agglo_trainer_set_steps(agglo_trainer *trainer,
                             int64_t n_steps); /* after loading a checkpoint; no step is under way */

/* The communicator to sum over, borrowed until the trainer is freed; NULL (as before the first call) or one of size 1: this rank alone.
 * All ranks start from the same parameters. No step is under way. */
agglo_status agglo_trainer_set_comm(agglo_trainer *trainer, agglo_comm *comm, agglo_err *err);

/* Steps submitted and not taken: at most AGGLO_TRAINER_MAX_PENDING. */
#define AGGLO_TRAINER_MAX_PENDING 2
int agglo_trainer_pending(const agglo_trainer *trainer);

/* Forward, backward, update, without waiting for them. The batch is the caller's again on return; its plan's step is the number of
 * steps submitted so far. After a failure those submitted before can still be taken. AGGLO_E_MEMORY, AGGLO_E_DEVICE. */
agglo_status agglo_trainer_submit(agglo_trainer *trainer, const agglo_batch *batch, agglo_err *err);

/* The oldest step under way, there is one. AGGLO_E_DATA, naming the step, when its loss or gradient is not finite; AGGLO_E_DEVICE. After a
 * failure nothing is under way, and the step is that before the failed one; after AGGLO_E_DATA the parameters are, too. */
agglo_status agglo_trainer_take(agglo_trainer *trainer, agglo_metrics *out, agglo_err *err);

/* submit and take; no step is under way. */
agglo_status agglo_trainer_step(agglo_trainer *trainer, const agglo_batch *batch, agglo_metrics *out, agglo_err *err);

/* Losses and cosines of a batch (this rank's), nothing changed. No step is under way. */
agglo_status agglo_trainer_eval(agglo_trainer *trainer, const agglo_batch *batch, agglo_metrics *out, agglo_err *err);

#ifdef __cplusplus
}
#endif
#endif
