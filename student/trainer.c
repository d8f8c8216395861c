/* One step: the batch goes up; backbone forward; for every teacher and kind the head forward, the loss with its gradient, the head
 * backward, so that only one head's activations live at a time; backbone backward; sums over ranks; the gradient's norm; AdamW, which clips
 * by it and does nothing where it or the loss is not finite, on the device; the loss sums and the norm come down.
 *
 * What a step runs is `compute` and `update`, two recordings where ranks meet in between, otherwise one. Whatever differs from step to
 * step lies in the input block (step_io_impl.h).
 */
#include "student/trainer.h"

#include <math.h>
#include <string.h>

#include "student/model_impl.h"
#include "student/step_io_impl.h"
#include "tensor/ops_resample.h"

#define RECORDINGS 8 /* shapes whose recordings are kept */

/* One (teacher, kind): the planned memory of a pass through its head. Those of all passes overlap. */
typedef struct head_pass {
    agglo_head_kept kept;
    agglo_tensor out; /* [B*n, C] on the student's grid */
    agglo_tensor matched,
        d_matched; /* [B, n_t, C] on the teacher's grid; the same memory as out and d_out when the grids agree */
    agglo_tensor d_out;
    agglo_tensor target; /* [B, n_t, C] as stored, in the input block */
} head_pass;

/* What a plan depends on. */
typedef struct step_shape {
    int batch, size; /* batch 0: nothing is planned */
    bool train;
    agglo_dtype dtypes[AGGLO_MAX_HEADS][2]; /* of targets */
} step_shape;

/* The recorded step of one shape. The first step of a shape runs as it is: then scratch memory and plans exist. */
typedef struct recording {
    step_shape of;
    bool has_run;
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
    recording recordings[RECORDINGS];
    int next_recording; /* the one to replace */

    agglo_tensor sums;      /* [n_heads * 2, 4], not in the slab: buckets know its address */
    agglo_optim *optim;     /* NULL where nothing is trained */
    agglo_comm *comm;       /* borrowed; NULL: one rank */
    agglo_buckets *buckets; /* all gradients, and the sums */
};

agglo_trainer_config agglo_trainer_config_default(void)
{
    return (agglo_trainer_config){.cos = 0.9,
                                  .smooth_l1 = 0.1,
                                  .smooth_l1_threshold = 1.0,
                                  .beta1 = 0.9,
                                  .beta2 = 0.999,
                                  .eps = 1e-8,
                                  .weight_decay = 0.05};
}

static double mean_of(double sum, double n)
{
    return n > 0.0 ? sum / n : 0.0;
}

double agglo_metrics_summary_cos(const agglo_metrics *metrics, size_t teacher)
{
    return mean_of(metrics->summary[teacher].cos, metrics->summary[teacher].n_tokens);
}

double agglo_metrics_spatial_cos(const agglo_metrics *metrics, size_t teacher)
{
    return mean_of(metrics->spatial[teacher].cos, metrics->spatial[teacher].n_tokens);
}

static agglo_status make_optim(agglo_trainer *trainer, agglo_err *err)
{
    agglo_params *params = agglo_student_params(trainer->student);
    size_t n = agglo_params_count(params);
    agglo_tensor none = {0};
    agglo_optim_entry *entries = agglo_alloc(n, sizeof *entries, err);

    if (entries == NULL) {
        return err->status;
    }
    for (size_t i = 0; i < n; i++) {
        const agglo_param *param = agglo_params_at(params, i);

        entries[i] = (agglo_optim_entry){.p = param->value,
                                         .g = param->grad,
                                         .m = param->m,
                                         .v = param->v,
                                         .copy = agglo_param_has_copy(param) ? param->stored : none,
                                         .weight_decay = param->decay ? (float)trainer->config.weight_decay : 0.0f};
    }
    agglo_optim_new(&trainer->optim, trainer->backend, entries, n, err);
    agglo_free(entries);
    return err->status;
}

static agglo_status make(agglo_trainer **out, agglo_backend *backend, const agglo_student_config *student,
                         const agglo_head_config *heads, size_t n_heads, const agglo_trainer_config *config,
                         bool trained, agglo_err *err)
{
    agglo_trainer *trainer = agglo_alloc(1, sizeof *trainer, err);

    *out = NULL;
    if (trainer == NULL) {
        goto fail;
    }
    trainer->backend = backend;
    trainer->config = *config;
    if (n_heads == 0) {
        agglo_fail(err, AGGLO_E_CONFIG, "there is no teacher to learn from");
        goto fail;
    }
    if (agglo_student_new(&trainer->student, backend, student, heads, n_heads, trained, config->precision, err) !=
            AGGLO_OK ||
        agglo_step_io_init(&trainer->io, backend, err) != AGGLO_OK) {
        goto fail;
    }
    trainer->sums = agglo_tensor_2d(NULL, AGGLO_F32, (int64_t)n_heads * 2, 4);
    trainer->sums.data = agglo_backend_alloc(backend, agglo_tensor_bytes(&trainer->sums), err);
    if (trainer->sums.data == NULL || (trained && make_optim(trainer, err) != AGGLO_OK)) {
        goto fail;
    }
    *out = trainer;
    return AGGLO_OK;
fail:
    agglo_trainer_free(trainer);
    return agglo_doing(err, "cannot make a trainer");
}

agglo_status agglo_trainer_new(agglo_trainer **out, agglo_backend *backend, const agglo_student_config *student,
                               const agglo_head_config *heads, size_t n_heads, const agglo_trainer_config *config,
                               agglo_err *err)
{
    return make(out, backend, student, heads, n_heads, config, true, err);
}

agglo_status agglo_trainer_new_eval(agglo_trainer **out, agglo_backend *backend, const agglo_student_config *student,
                                    const agglo_head_config *heads, size_t n_heads, const agglo_trainer_config *config,
                                    const agglo_safetensors *st, agglo_err *err)
{
    if (make(out, backend, student, heads, n_heads, config, false, err) != AGGLO_OK) {
        return err->status;
    }
    if (agglo_params_load((*out)->student->params, st, err) != AGGLO_OK) {
        agglo_trainer_free(*out);
        *out = NULL;
        return agglo_doing(err, "cannot load student");
    }
    return AGGLO_OK;
}

static void drop_recordings(agglo_trainer *trainer)
{
    for (int i = 0; i < RECORDINGS; i++) {
        agglo_graph_free(trainer->backend, trainer->recordings[i].compute);
        agglo_graph_free(trainer->backend, trainer->recordings[i].update);
        trainer->recordings[i] = (recording){0};
    }
}

void agglo_trainer_free(agglo_trainer *trainer)
{
    if (trainer != NULL) {
        drop_recordings(trainer);
        agglo_step_io_clear(&trainer->io);
        agglo_buckets_free(trainer->buckets);
        agglo_optim_free(trainer->optim);
        agglo_slab_free(&trainer->slab);
        agglo_backend_release(trainer->backend, trainer->sums.data);
        agglo_student_free(trainer->student);
        agglo_free(trainer);
    }
}

agglo_status agglo_trainer_init(agglo_trainer *trainer, uint64_t seed, agglo_err *err)
{
    agglo_params *params = agglo_student_params(trainer->student);

    for (size_t i = 0; i < agglo_params_count(params); i++) {
        agglo_param *param = agglo_params_at(params, i);

        agglo_zero(trainer->backend, param->m.data, agglo_tensor_bytes(&param->m));
        agglo_zero(trainer->backend, param->v.data, agglo_tensor_bytes(&param->v));
    }
    agglo_trainer_set_steps(trainer, 0);
    return agglo_params_init(params, seed, err);
}

agglo_student *agglo_trainer_student(agglo_trainer *trainer)
{
    return trainer->student;
}

int64_t agglo_trainer_steps(const agglo_trainer *trainer)
{
    return trainer->n_steps;
}

void agglo_trainer_set_steps(agglo_trainer *trainer, int64_t n_steps)
{
    AGGLO_ASSERT(agglo_trainer_pending(trainer) == 0);
    trainer->n_steps = trainer->n_submitted = n_steps;
}

int agglo_trainer_pending(const agglo_trainer *trainer)
{
    return (int)(trainer->n_submitted - trainer->n_steps);
}

agglo_status agglo_trainer_set_comm(agglo_trainer *trainer, agglo_comm *comm, agglo_err *err)
{
    agglo_params *params = trainer->student->params;
    size_t n = agglo_params_count(params);
    agglo_tensor *tensors;

    AGGLO_ASSERT(trainer->student->trained && agglo_trainer_pending(trainer) == 0);
    drop_recordings(trainer);
    agglo_buckets_free(trainer->buckets);
    trainer->buckets = NULL;
    trainer->comm = NULL;
    if (comm == NULL || comm->size == 1) {
        return AGGLO_OK;
    }
    tensors = agglo_alloc(n + 1, sizeof *tensors, err);
    if (tensors != NULL) {
        for (size_t i = 0; i < n; i++) {
            tensors[i] = agglo_params_at(params, i)->grad;
        }
        tensors[n] = trainer->sums;
        agglo_buckets_new(&trainer->buckets, trainer->backend, tensors, n + 1, AGGLO_BUCKET_BYTES, err);
        agglo_free(tensors);
    }
    if (trainer->buckets == NULL) {
        return agglo_doing(err, "cannot train in %d ranks", comm->size);
    }
    trainer->comm = comm;
    return AGGLO_OK;
}

/* ---- the plan ---- */

static const agglo_head *head_of(const agglo_trainer *trainer, size_t i, int spatial)
{
    return spatial ? &trainer->student->spatial[i] : &trainer->student->summary[i];
}

/* A part of the input block; without memory while a slab measures. */
static agglo_tensor part_of(const agglo_tensor *input, size_t at, agglo_dtype dtype, int rank, const int64_t *shape)
{
    return agglo_tensor_of(input->data == NULL ? NULL : (uint8_t *)input->data + at, dtype, rank, shape);
}

static void plan_pass(agglo_trainer *trainer, size_t i, int spatial, int64_t grid, agglo_slab *slab)
{
    head_pass *pass = &trainer->passes[i][spatial];
    const agglo_head_shape *shape = &head_of(trainer, i, spatial)->shape;
    const agglo_head_config *teacher = &trainer->student->heads[i];
    int64_t batch = trainer->planned.batch, rows = spatial ? batch * grid * grid : batch;
    bool resized = spatial && (teacher->grid_h != grid || teacher->grid_w != grid);
    int64_t n_target = spatial ? teacher->grid_h * teacher->grid_w : 1;
    const int64_t flat[2] = {rows, shape->out}, target[3] = {batch, n_target, shape->out};
    agglo_dtype type = shape->dtype;

    pass->target =
        part_of(&trainer->input, trainer->layout.targets[i][spatial], trainer->planned.dtypes[i][spatial], 3, target);
    pass->out = agglo_slab_take(slab, type, 2, flat);
    pass->matched = resized ? agglo_slab_take(slab, type, 3, target) : agglo_tensor_of(pass->out.data, type, 3, target);
    if (trainer->planned.train) {
        pass->d_out = agglo_slab_take(slab, type, 2, flat);
        pass->d_matched =
            resized ? agglo_slab_take(slab, type, 3, target) : agglo_tensor_of(pass->d_out.data, type, 3, target);
    }
    agglo_head_plan(&pass->kept, shape, rows, trainer->planned.train, slab);
}

static void walk(void *context, agglo_slab *slab)
{
    agglo_trainer *trainer = context;
    agglo_student *student = trainer->student;
    const agglo_step_layout *layout = &trainer->layout;
    int64_t n_heads = (int64_t)student->n_heads, d = student->config.dim, batch = trainer->planned.batch;
    int64_t size = trainer->planned.size, grid = size / student->config.patch;
    const int64_t block[1] = {(int64_t)layout->n_bytes}, pixels[4] = {batch, size, size, 3};
    const int64_t summary[2] = {batch, d}, spatial[3] = {batch, grid * grid, d};
    const int64_t valid[2] = {n_heads, batch}, weights[2] = {n_heads, 2}, numbers[1] = {AGGLO_ADAMW_NUMBERS};
    agglo_dtype type = agglo_params_storage(student->params);
    size_t mark;

    trainer->input = agglo_slab_take(slab, AGGLO_U8, 1, block);
    trainer->pixels = part_of(&trainer->input, layout->pixels, AGGLO_U8, 4, pixels);
    trainer->valid = part_of(&trainer->input, layout->valid, AGGLO_F32, 2, valid);
    trainer->weights = part_of(&trainer->input, layout->weights, AGGLO_F32, 2, weights);
    trainer->numbers = part_of(&trainer->input, layout->numbers, AGGLO_F32, 1, numbers);
    student->class_->plan(student->backbone, batch, size, size, trainer->planned.train, slab);
    if (trainer->planned.train) {
        trainer->d_summary = agglo_slab_take(slab, type, 2, summary);
        trainer->d_spatial = agglo_slab_take(slab, type, 3, spatial);
    }
    mark = agglo_slab_mark(slab);
    for (size_t i = 0; i < student->n_heads; i++) {
        for (int kind = 0; kind < 2; kind++) {
            plan_pass(trainer, i, kind, grid, slab);
            agglo_slab_rewind(slab, mark);
        }
    }
}

static bool same_shape(const step_shape *a, const step_shape *b)
{
    return a->batch == b->batch && a->size == b->size && a->train == b->train &&
           memcmp(a->dtypes, b->dtypes, sizeof a->dtypes) == 0;
}

static agglo_status plan(agglo_trainer *trainer, const agglo_batch *batch, bool train, agglo_err *err)
{
    step_shape wanted = {.batch = batch->batch, .size = batch->size, .train = train};
    const void *memory = trainer->slab.base;

    AGGLO_ASSERT(batch->n_teachers == trainer->student->n_heads);
    AGGLO_ASSERT(batch->batch >= 1 && batch->size >= 1 && batch->size % trainer->student->config.patch == 0);
    for (size_t i = 0; i < batch->n_teachers; i++) {
        wanted.dtypes[i][0] = batch->targets[i].summary_dtype;
        wanted.dtypes[i][1] = batch->targets[i].spatial_dtype;
    }
    if (same_shape(&wanted, &trainer->planned)) {
        return AGGLO_OK;
    }
    trainer->planned = wanted;
    trainer->layout = agglo_step_layout_of(batch, trainer->student->heads, trainer->student->n_heads);
    if (agglo_step_io_fit(&trainer->io, trainer->layout.n_bytes, err) != AGGLO_OK ||
        agglo_slab_fit(&trainer->slab, trainer->backend, walk, trainer, err) != AGGLO_OK) {
        trainer->planned.batch = 0; /* nothing is planned */
        return err->status;
    }
    if (trainer->slab.base != memory) {
        drop_recordings(trainer); /* they know addresses of what was there */
    }
    return AGGLO_OK;
}

/* ---- what a step runs ---- */

static void run_pass(agglo_trainer *trainer, size_t i, int spatial, const agglo_tensor *x, agglo_tensor *d_x)
{
    const agglo_resample_rule bilinear = agglo_resample_bilinear();
    agglo_backend *be = trainer->backend;
    head_pass *pass = &trainer->passes[i][spatial];
    const agglo_head *head = head_of(trainer, i, spatial);
    const agglo_head_config *teacher = &trainer->student->heads[i];
    const agglo_trainer_config *config = &trainer->config;
    int64_t batch = trainer->planned.batch, grid = trainer->planned.size / trainer->student->config.patch;
    int64_t c = head->shape.out, index = (int64_t)i * 2 + spatial;
    agglo_tensor small = agglo_tensor_4d(pass->out.data, pass->out.dtype, batch, grid, grid, c);
    agglo_tensor matched =
        agglo_tensor_4d(pass->matched.data, pass->matched.dtype, batch, teacher->grid_h, teacher->grid_w, c);
    agglo_tensor valid = agglo_tensor_1d((float *)trainer->valid.data + (int64_t)i * batch, AGGLO_F32, batch);
    agglo_tensor lambda = agglo_tensor_1d((float *)trainer->weights.data + index, AGGLO_F32, 1);
    agglo_tensor sums = agglo_tensor_1d((float *)trainer->sums.data + index * 4, AGGLO_F32, 4);
    agglo_loss_config loss = {
        .lambda = 1.0f,
        .alpha = spatial ? (float)config->cos : 1.0f,
        .beta = spatial ? (float)config->smooth_l1 : 0.0f,
        .threshold = (float)config->smooth_l1_threshold,
    };
    agglo_loss_weights weights = {.valid = &valid, .lambda = &lambda};
    agglo_target target = agglo_target_of(&pass->target);
    bool resized = pass->matched.data != pass->out.data;

    agglo_head_forward(be, head, x, &pass->kept, &pass->out);
    if (resized) {
        agglo_resample(be, &bilinear, &small, &matched);
    }
    agglo_target_loss(be, &loss, &pass->matched, &target, &weights, 1.0f,
                      trainer->planned.train ? &pass->d_matched : NULL, NULL, &sums);
    if (trainer->planned.train) {
        if (resized) {
            small.data = pass->d_out.data;
            matched.data = pass->d_matched.data;
            agglo_resample_bwd(be, &bilinear, &matched, false, &small);
        }
        agglo_head_backward(be, head, &pass->d_out, x, &pass->kept, i > 0, d_x);
    }
}

/* Forward, and in training backward, up to gradients and sums on the device. */
static void compute(agglo_trainer *trainer)
{
    agglo_backend *be = trainer->backend;
    agglo_student *student = trainer->student;
    agglo_tensor summary, spatial, rows, d_rows = {0};

    agglo_zero(be, trainer->sums.data, agglo_tensor_bytes(&trainer->sums));
    student->class_->forward(student->backbone, be, &trainer->pixels, &summary, &spatial);
    rows = agglo_tensor_rows(&spatial);
    if (trainer->planned.train) {
        agglo_params_zero_grad(student->params);
        d_rows = agglo_tensor_rows(&trainer->d_spatial);
    }
    for (size_t i = 0; i < student->n_heads; i++) {
        run_pass(trainer, i, 0, &summary, &trainer->d_summary);
        run_pass(trainer, i, 1, &rows, &d_rows);
    }
    if (trainer->planned.train) {
        student->class_->backward(student->backbone, be, &trainer->d_summary, &trainer->d_spatial);
    }
}

static void update(agglo_trainer *trainer)
{
    agglo_grad_norm(trainer->backend, trainer->optim);
    agglo_grad_hold(trainer->backend, &trainer->sums, trainer->optim);
    agglo_adamw_many_at(trainer->backend, &trainer->numbers, true, trainer->optim);
}

static void compute_and_update(agglo_trainer *trainer)
{
    compute(trainer);
    update(trainer);
}

static recording *recording_of(agglo_trainer *trainer)
{
    recording *made;

    for (int i = 0; i < RECORDINGS; i++) {
        if (same_shape(&trainer->recordings[i].of, &trainer->planned)) {
            return &trainer->recordings[i];
        }
    }
    made = &trainer->recordings[trainer->next_recording];
    trainer->next_recording = (trainer->next_recording + 1) % RECORDINGS;
    agglo_graph_free(trainer->backend, made->compute);
    agglo_graph_free(trainer->backend, made->update);
    *made = (recording){.of = trainer->planned};
    return made;
}

/* Run some work of a step: as it is the first time, recorded the second, from the recording after that. */
static void issue(agglo_trainer *trainer, bool has_run, agglo_graph **graph, void (*work)(agglo_trainer *trainer))
{
    if (*graph != NULL) {
        agglo_graph_replay(trainer->backend, *graph);
    } else if (has_run && !trainer->config.unrecorded) {
        agglo_capture_begin(trainer->backend);
        work(trainer);
        *graph = agglo_capture_end(trainer->backend);
    } else {
        work(trainer);
    }
}

static agglo_status issue_step(agglo_trainer *trainer, agglo_err *err)
{
    recording *made = recording_of(trainer);
    bool has_run = made->has_run;

    made->has_run = true;
    if (trainer->comm == NULL) {
        issue(trainer, has_run, &made->compute, compute_and_update);
        return AGGLO_OK;
    }
    issue(trainer, has_run, &made->compute, compute);
    if (agglo_buckets_sum(trainer->buckets, trainer->comm, 1.0f, err) != AGGLO_OK) {
        return err->status;
    }
    issue(trainer, has_run, &made->update, update);
    return AGGLO_OK;
}

/* ---- steps ---- */

/* Of every loss: the plan's weight, times this rank's share of the valid samples, so that the sum over ranks is the loss of the whole. */
static agglo_status loss_weights(agglo_trainer *trainer, const agglo_batch *batch, float out[AGGLO_MAX_HEADS * 2],
                                 agglo_err *err)
{
    double share[AGGLO_MAX_HEADS], n_valid[AGGLO_MAX_HEADS];

    for (size_t i = 0; i < batch->n_teachers; i++) {
        share[i] = 0.0;
        for (int b = 0; b < batch->batch; b++) {
            share[i] += (double)batch->targets[i].valid[b];
        }
        n_valid[i] = share[i];
    }
    if (trainer->comm != NULL &&
        agglo_comm_all_reduce_host(trainer->comm, n_valid, (int64_t)batch->n_teachers, err) != AGGLO_OK) {
        return err->status;
    }
    for (size_t i = 0; i < batch->n_teachers; i++) {
        share[i] = n_valid[i] > 0.0 ? share[i] / n_valid[i] : 0.0; /* 1 where there is one rank */
        out[2 * i] = (float)(batch->plan.summary_weight[i] * share[i]);
        out[2 * i + 1] = (float)(batch->plan.spatial_weight[i] * share[i]);
    }
    return AGGLO_OK;
}

static agglo_adamw_numbers numbers_of(const agglo_trainer *trainer, double lr)
{
    const agglo_trainer_config *config = &trainer->config;
    const agglo_adamw_config adamw = {.lr = (float)lr,
                                      .beta1 = (float)config->beta1,
                                      .beta2 = (float)config->beta2,
                                      .eps = (float)config->eps,
                                      .grad_scale = 1.0f,
                                      .step = trainer->n_submitted + 1};

    return agglo_adamw_numbers_of(&adamw, (float)config->clip);
}

static double loss_of(const agglo_loss_sums *sums, double weight, double alpha, double beta)
{
    double n = sums->n_tokens;

    return n > 0.0 ? weight * (alpha * (1.0 - sums->cos / n) + beta * sums->smooth_l1 / n) : 0.0;
}

static flight flight_of(const agglo_batch *batch)
{
    flight out = {.step = batch->plan.step, .lr = batch->plan.lr};

    for (size_t i = 0; i < batch->n_teachers; i++) {
        out.weights[i][0] = batch->plan.summary_weight[i];
        out.weights[i][1] = batch->plan.spatial_weight[i];
    }
    return out;
}

static void read_result(const agglo_trainer *trainer, const flight *of, const agglo_step_result *result,
                        agglo_metrics *out)
{
    size_t n_heads = trainer->student->n_heads;

    memset(out, 0, sizeof *out);
    out->step = of->step;
    out->lr = of->lr;
    out->n_teachers = n_heads;
    for (size_t i = 0; i < n_heads; i++) {
        for (int spatial = 0; spatial < 2; spatial++) {
            const float *from = result->sums[i * 2 + (size_t)spatial];
            agglo_loss_sums *to = spatial ? &out->spatial[i] : &out->summary[i];

            *to = (agglo_loss_sums){(double)from[0], (double)from[1], (double)from[2], (double)from[3]};
        }
        out->loss += loss_of(&out->summary[i], of->weights[i][0], 1.0, 0.0);
        out->loss += loss_of(&out->spatial[i], of->weights[i][1], trainer->config.cos, trainer->config.smooth_l1);
    }
}

/* After a failure: nothing is under way, the steps behind the failed one have changed nothing, and the next one may. */
static void recover(agglo_trainer *trainer)
{
    agglo_err ignored = {0};

    agglo_backend_check(trainer->backend, &ignored);
    trainer->n_submitted = trainer->n_steps;
    agglo_grad_release(trainer->backend, trainer->optim);
}

agglo_status agglo_trainer_submit(agglo_trainer *trainer, const agglo_batch *batch, agglo_err *err)
{
    int at = (int)(trainer->n_submitted % AGGLO_TRAINER_MAX_PENDING);
    float weights[AGGLO_MAX_HEADS * 2];
    agglo_adamw_numbers numbers;

    AGGLO_ASSERT(trainer->student->trained && batch->plan.step == trainer->n_submitted);
    AGGLO_ASSERT(agglo_trainer_pending(trainer) < AGGLO_TRAINER_MAX_PENDING);
    if (plan(trainer, batch, true, err) != AGGLO_OK || loss_weights(trainer, batch, weights, err) != AGGLO_OK) {
        goto fail;
    }
    numbers = numbers_of(trainer, batch->plan.lr);
    agglo_step_io_up(&trainer->io, &trainer->layout, batch, weights, &numbers, trainer->input.data);
    if (issue_step(trainer, err) != AGGLO_OK) {
        goto fail;
    }
    agglo_step_io_down(&trainer->io, at, &trainer->sums, trainer->optim);
    if (agglo_backend_peek(trainer->backend, err) != AGGLO_OK) {
        goto fail;
    }
    trainer->flights[at] = flight_of(batch);
    trainer->n_submitted++;
    return AGGLO_OK;
fail:
    return agglo_doing(err, "training stopped in step %lld", (long long)batch->plan.step);
}

agglo_status agglo_trainer_take(agglo_trainer *trainer, agglo_metrics *out, agglo_err *err)
{
    int at = (int)(trainer->n_steps % AGGLO_TRAINER_MAX_PENDING);
    const agglo_step_result *result;

    AGGLO_ASSERT(agglo_trainer_pending(trainer) > 0);
    result = agglo_step_io_wait(&trainer->io, at);
    if (agglo_backend_peek(trainer->backend, err) != AGGLO_OK) {
        goto fail;
    }
    read_result(trainer, &trainer->flights[at], result, out);
    out->grad_norm = result->state.norm;
    if (!isfinite(out->loss)) {
        agglo_fail(err, AGGLO_E_DATA, "the loss is not finite");
        goto fail;
    }
    if (result->state.first_bad >= 0) {
        size_t bad = (size_t)result->state.first_bad;

        if (bad < agglo_params_count(trainer->student->params)) {
            agglo_fail(err, AGGLO_E_DATA, "the gradient of %s is not finite",
                       agglo_params_at(trainer->student->params, bad)->name);
        } else {
            agglo_fail(err, AGGLO_E_DATA, "a sum of the losses is not finite");
        }
        goto fail;
    }
    trainer->n_steps++;
    return AGGLO_OK;
fail:
    recover(trainer);
    return agglo_doing(err, "training stopped in step %lld", (long long)trainer->flights[at].step);
}

agglo_status agglo_trainer_step(agglo_trainer *trainer, const agglo_batch *batch, agglo_metrics *out, agglo_err *err)
{
    AGGLO_ASSERT(agglo_trainer_pending(trainer) == 0);
    return agglo_trainer_submit(trainer, batch, err) == AGGLO_OK ? agglo_trainer_take(trainer, out, err) : err->status;
}

agglo_status agglo_trainer_eval(agglo_trainer *trainer, const agglo_batch *batch, agglo_metrics *out, agglo_err *err)
{
    const float weights[AGGLO_MAX_HEADS * 2] = {0}; /* of the sums below nothing depends on them */
    const agglo_adamw_numbers none = {0};
    flight of = flight_of(batch);

    AGGLO_ASSERT(agglo_trainer_pending(trainer) == 0);
    if (plan(trainer, batch, false, err) != AGGLO_OK) {
        goto fail;
    }
    agglo_step_io_up(&trainer->io, &trainer->layout, batch, weights, &none, trainer->input.data);
    compute(trainer);
    agglo_step_io_down(&trainer->io, 0, &trainer->sums, NULL);
    read_result(trainer, &of, agglo_step_io_wait(&trainer->io, 0), out);
    if (agglo_backend_peek(trainer->backend, err) != AGGLO_OK) {
        goto fail;
    }
    return AGGLO_OK;
fail:
    return agglo_doing(err, "cannot evaluate a batch");
}
