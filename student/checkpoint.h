/* Checkpoints: RUN/checkpoint-00001000.safetensors, everything that the next step depends on.
 *
 * One file: parameters under their names, optimiser state as "m/NAME" and "v/NAME"; metadata `format`
 * "agglo-checkpoint", `step`, `recipe` (hash given by the caller), `student`, `heads`, `data` (hash of the tensors).
 * Written under a temporary name, synced, renamed. A run resumed from one equals, byte for byte, a run that never stopped.
 *
 * Parameters of steps that are under way are on the device already, though such a step may still fail and counts only when it is taken: nothing
 * is saved or loaded before all are (asserted).
 */
#ifndef AGGLO_STUDENT_CHECKPOINT_H
#define AGGLO_STUDENT_CHECKPOINT_H

#include "student/trainer.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Write the trainer's state into directory `run` and remove all but the newest `keep` (>= 1) checkpoints there. No step is under way.
 * recipe_hash: text that must be the same on resume. */
agglo_status agglo_checkpoint_save(agglo_trainer *trainer, const char *run, const char *recipe_hash, int keep,
                                   agglo_err *err);

/* Load the newest checkpoint of `run`; *found is false when there is none (nothing is changed then). No step is under way.
 * AGGLO_E_MISMATCH when recipe_hash, student or heads differ. AGGLO_E_DATA when the newest is cut short or
 * any byte of its tensors has changed: it is named, and nothing older is taken in its place unasked; a run from which
 * it is removed goes on from the one before. */
agglo_status agglo_checkpoint_load(agglo_trainer *trainer, const char *run, const char *recipe_hash, bool *found,
                                   agglo_err *err);

/* Step of the newest checkpoint of `run`, -1 when there is none. */
agglo_status agglo_checkpoint_newest(const char *run, int64_t *step, agglo_err *err);

#ifdef __cplusplus
}
#endif
#endif
