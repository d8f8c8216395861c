/* The inside of the trainer: trainer.c has its life and the steps as its callers see them, trainer_step.c what a step plans, runs and
 * records. */
#ifndef AGGLO_STUDENT_TRAINER_IMPL_H
#define AGGLO_STUDENT_TRAINER_IMPL_H

#include "student/model_impl.h"
#include "student/step_io_impl.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One (teacher, kind): the planned memory of a pass through its head. Those of all passes overlap. */
typedef struct head_pass {
    agglo_head_kept kept;
    agglo_tensor out; /* [B*n, C] on the student's grid */
    agglo_tensor matched,
        d_matched; /* [B, n_t, C] on the teacher's grid; the same memory as out and d_out when the grids agree */
    agglo_tensor d_out;
    agglo_tensor target; /* [B, n_t, C] as stored, in the input block */
} head_pass;

#define AGGLO_TRAINER_RECORDINGS 8 /* shapes whose recordings are kept */

/* What a plan depends on. */
typedef struct step_shape {
    int batch, size; /* batch 0: nothing is planned */
    bool train;
    agglo_dtype dtypes[AGGLO_MAX_HEADS][2]; /* of targets */
} step_shape;

/* The recorded step of one shape. The first step of a shape runs as it is: then scratch memory and plans exist. */
typedef struct recording {
    step_shape of;
    int64_t used;                  /* the number of the step that used it last, from 1; 0: a free place */
    bool has_run;                  /* a step of the shape was issued whole */
    agglo_graph *compute, *update; /* one where no ranks meet between them: compute is both then */
} recording;

/* A step under way: what its metrics need beside its result. */
typedef struct flight {
    int64_t step;
    double lr;
    double weights[AGGLO_MAX_HEADS][2];
} flight;

struct agglo_trainer {
    agglo_backend *backend; /* borrowed */
    agglo_student *student;
    agglo_trainer_config config;
    int64_t n_steps, n_submitted; /* updates taken, and submitted */

    agglo_slab slab;
    /* the plan: what it was made for */
    step_shape planned;
    agglo_step_layout layout;
    /* and its tensors */
    agglo_tensor input;                           /* u8: the block of step_io_impl.h, and what stands in it: */
    agglo_tensor pixels, valid, weights, numbers; /* [B,size,size,3], [n_heads,B], [n_heads,2], AdamW's */
    agglo_tensor d_summary, d_spatial;            /* [B,d], [B,n,d] */
    head_pass passes[AGGLO_MAX_HEADS][2];

    agglo_step_io io;
    flight flights[AGGLO_TRAINER_MAX_PENDING]; /* of step i in place i % AGGLO_TRAINER_MAX_PENDING */
    recording recordings[AGGLO_TRAINER_RECORDINGS];
    int64_t n_issued; /* steps that looked for a recording */

    agglo_tensor sums;      /* [n_heads * 2, 4], not in the slab: buckets know its address */
    agglo_optim *optim;     /* NULL where nothing is trained */
    agglo_comm *comm;       /* borrowed; NULL: one rank */
    agglo_buckets *buckets; /* all gradients, and the sums */
};

/* Plan for batches like this one; nothing to do where that was planned last. Recordings are dropped where the memory that they know is
 * replaced. AGGLO_E_MEMORY, AGGLO_E_DEVICE: nothing is planned then. */
agglo_status agglo_trainer_plan(agglo_trainer *trainer, const agglo_batch *batch, bool train, agglo_err *err);

/* Forward, and in a plan for training backward, up to gradients and sums on the device. */
void agglo_trainer_compute(agglo_trainer *trainer);

/* The whole step as planned: as it is the first time that a shape comes, recorded the second, then replayed. A failure is returned, or
 * latched. */
agglo_status agglo_trainer_issue(agglo_trainer *trainer, agglo_err *err);
/* What was issued last has not failed: the next step of its shape may be recorded. */
void agglo_trainer_issued(agglo_trainer *trainer);

void agglo_trainer_drop_recordings(agglo_trainer *trainer);

#ifdef __cplusplus
}
#endif
#endif
