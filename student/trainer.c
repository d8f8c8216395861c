/* One step: backbone forward; for every teacher and kind the head forward, the loss with its gradient, the head
 * backward, so that only one head's activations live at a time; backbone backward; the check of the loss; the gradient's norm and
 * AdamW, which clips by it and does nothing where it is not finite, on the device; the check of both.
 */
#include "student/trainer.h"

#include <math.h>
#include <string.h>

#include "student/model_impl.h"
#include "tensor/ops_resample.h"

/* One (teacher, kind): the planned memory of a pass through its head. Those of all passes overlap. */
typedef struct head_pass {
    agglo_head_kept kept;
    agglo_tensor out; /* [B*n, C] on the student's grid */
    agglo_tensor matched,
        d_matched; /* [B, n_t, C] on the teacher's grid; the same memory as out and d_out when the grids agree */
    agglo_tensor d_out;
    agglo_tensor target; /* [B, n_t, C] as stored */
} head_pass;

struct agglo_trainer {
    agglo_backend *backend; /* borrowed */
    agglo_student *student;
    agglo_trainer_config config;
    int64_t n_steps;

    agglo_slab slab;
    /* the plan: what it was made for */
    int batch, size;
    bool train;
    agglo_dtype dtypes[AGGLO_MAX_HEADS][2];
    /* and its tensors */
    agglo_tensor pixels, d_summary, d_spatial; /* d_summary [B,d], d_spatial [B,n,d] */
    agglo_tensor valid;                        /* [n_heads, B] */
    agglo_tensor sums;                         /* [n_heads * 2, 4] */
    head_pass passes[AGGLO_MAX_HEADS][2];

    agglo_optim *optim; /* NULL where nothing is trained */
    float *sums_host;
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
    if (agglo_student_new(&trainer->student, backend, student, heads, n_heads, trained, err) != AGGLO_OK) {
        goto fail;
    }
    trainer->sums_host = agglo_alloc(n_heads * 2, 4 * sizeof *trainer->sums_host, err);
    if (trainer->sums_host == NULL || (trained && make_optim(trainer, err) != AGGLO_OK)) {
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

void agglo_trainer_free(agglo_trainer *trainer)
{
    if (trainer != NULL) {
        agglo_optim_free(trainer->optim);
        agglo_slab_free(&trainer->slab);
        agglo_free(trainer->sums_host);
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
    trainer->n_steps = 0;
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
    trainer->n_steps = n_steps;
}

/* ---- the plan ---- */

static const agglo_head *head_of(const agglo_trainer *trainer, size_t i, int spatial)
{
    return spatial ? &trainer->student->spatial[i] : &trainer->student->summary[i];
}

static void plan_pass(agglo_trainer *trainer, size_t i, int spatial, int64_t grid, agglo_slab *slab)
{
    head_pass *pass = &trainer->passes[i][spatial];
    const agglo_head_shape *shape = &head_of(trainer, i, spatial)->shape;
    const agglo_head_config *teacher = &trainer->student->heads[i];
    int64_t batch = trainer->batch, rows = spatial ? batch * grid * grid : batch;
    bool resized = spatial && (teacher->grid_h != grid || teacher->grid_w != grid);
    int64_t n_target = spatial ? teacher->grid_h * teacher->grid_w : 1;
    const int64_t flat[2] = {rows, shape->out}, target[3] = {batch, n_target, shape->out};

    pass->target = agglo_slab_take(slab, trainer->dtypes[i][spatial], 3, target);
    pass->out = agglo_slab_take(slab, AGGLO_F32, 2, flat);
    pass->matched =
        resized ? agglo_slab_take(slab, AGGLO_F32, 3, target) : agglo_tensor_of(pass->out.data, AGGLO_F32, 3, target);
    if (trainer->train) {
        pass->d_out = agglo_slab_take(slab, AGGLO_F32, 2, flat);
        pass->d_matched = resized ? agglo_slab_take(slab, AGGLO_F32, 3, target)
                                  : agglo_tensor_of(pass->d_out.data, AGGLO_F32, 3, target);
    }
    agglo_head_plan(&pass->kept, shape, rows, trainer->train, slab);
}

static void walk(void *context, agglo_slab *slab)
{
    agglo_trainer *trainer = context;
    agglo_student *student = trainer->student;
    int64_t n_heads = (int64_t)student->n_heads, d = student->config.dim, grid = trainer->size / student->config.patch;
    const int64_t pixels[4] = {trainer->batch, trainer->size, trainer->size, 3};
    const int64_t summary[2] = {trainer->batch, d}, spatial[3] = {trainer->batch, grid * grid, d};
    const int64_t valid[2] = {n_heads, trainer->batch}, sums[2] = {n_heads * 2, 4};
    size_t mark;

    trainer->pixels = agglo_slab_take(slab, AGGLO_U8, 4, pixels);
    trainer->valid = agglo_slab_take(slab, AGGLO_F32, 2, valid);
    trainer->sums = agglo_slab_take(slab, AGGLO_F32, 2, sums);
    student->class_->plan(student->backbone, trainer->batch, trainer->size, trainer->size, trainer->train, slab);
    if (trainer->train) {
        trainer->d_summary = agglo_slab_take(slab, AGGLO_F32, 2, summary);
        trainer->d_spatial = agglo_slab_take(slab, AGGLO_F32, 3, spatial);
    }
    mark = agglo_slab_mark(slab);
    for (size_t i = 0; i < student->n_heads; i++) {
        for (int kind = 0; kind < 2; kind++) {
            plan_pass(trainer, i, kind, grid, slab);
            agglo_slab_rewind(slab, mark);
        }
    }
}

static agglo_status plan(agglo_trainer *trainer, const agglo_batch *batch, bool train, agglo_err *err)
{
    bool same = batch->batch == trainer->batch && batch->size == trainer->size && train == trainer->train;

    AGGLO_ASSERT(batch->n_teachers == trainer->student->n_heads);
    AGGLO_ASSERT(batch->batch >= 1 && batch->size >= 1 && batch->size % trainer->student->config.patch == 0);
    for (size_t i = 0; i < batch->n_teachers; i++) {
        const agglo_batch_targets *targets = &batch->targets[i];

        same =
            same && trainer->dtypes[i][0] == targets->summary_dtype && trainer->dtypes[i][1] == targets->spatial_dtype;
        trainer->dtypes[i][0] = targets->summary_dtype;
        trainer->dtypes[i][1] = targets->spatial_dtype;
    }
    if (same) {
        return AGGLO_OK;
    }
    trainer->batch = batch->batch;
    trainer->size = batch->size;
    trainer->train = train;
    if (agglo_slab_fit(&trainer->slab, trainer->backend, walk, trainer, err) != AGGLO_OK) {
        trainer->batch = 0; /* nothing is planned */
        return err->status;
    }
    return AGGLO_OK;
}

/* ---- a step ---- */

static void run_pass(agglo_trainer *trainer, const agglo_batch *batch, size_t i, int spatial, const agglo_tensor *x,
                     agglo_tensor *d_x)
{
    const agglo_resample_rule bilinear = agglo_resample_bilinear();
    agglo_backend *be = trainer->backend;
    head_pass *pass = &trainer->passes[i][spatial];
    const agglo_head *head = head_of(trainer, i, spatial);
    const agglo_head_config *teacher = &trainer->student->heads[i];
    const agglo_batch_targets *targets = &batch->targets[i];
    const agglo_trainer_config *config = &trainer->config;
    int64_t n_batch = trainer->batch, grid = trainer->size / trainer->student->config.patch, c = head->shape.out;
    agglo_tensor small = agglo_tensor_4d(pass->out.data, AGGLO_F32, n_batch, grid, grid, c);
    agglo_tensor matched = agglo_tensor_4d(pass->matched.data, AGGLO_F32, n_batch, teacher->grid_h, teacher->grid_w, c);
    agglo_tensor valid = agglo_tensor_1d((float *)trainer->valid.data + (int64_t)i * n_batch, AGGLO_F32, n_batch);
    agglo_tensor sums = agglo_tensor_1d((float *)trainer->sums.data + ((int64_t)i * 2 + spatial) * 4, AGGLO_F32, 4);
    agglo_loss_config loss = {
        .lambda = (float)(spatial ? batch->plan.spatial_weight[i] : batch->plan.summary_weight[i]),
        .alpha = spatial ? (float)config->cos : 1.0f,
        .beta = spatial ? (float)config->smooth_l1 : 0.0f,
        .threshold = (float)config->smooth_l1_threshold,
    };
    bool resized = pass->matched.data != pass->out.data;

    agglo_upload(be, pass->target.data, spatial ? targets->spatial : targets->summary,
                 agglo_tensor_bytes(&pass->target));
    agglo_head_forward(be, head, x, &pass->kept, &pass->out);
    if (resized) {
        agglo_resample(be, &bilinear, &small, &matched);
    }
    agglo_distill_loss(be, &loss, &pass->matched, &pass->target, &valid, 1.0f, trainer->train ? &pass->d_matched : NULL,
                       &sums);
    if (trainer->train) {
        if (resized) {
            small.data = pass->d_out.data;
            matched.data = pass->d_matched.data;
            agglo_resample_bwd(be, &bilinear, &matched, false, &small);
        }
        agglo_head_backward(be, head, &pass->d_out, x, &pass->kept, i > 0, d_x);
    }
}

/* Forward, and in training backward, up to gradients and sums on the device. */
static void run(agglo_trainer *trainer, const agglo_batch *batch)
{
    agglo_backend *be = trainer->backend;
    agglo_student *student = trainer->student;
    agglo_tensor summary, spatial, rows, d_rows = {0};

    agglo_upload(be, trainer->pixels.data, batch->pixels, agglo_tensor_bytes(&trainer->pixels));
    for (size_t i = 0; i < student->n_heads; i++) {
        agglo_upload(be, (float *)trainer->valid.data + i * (size_t)trainer->batch, batch->targets[i].valid,
                     (size_t)trainer->batch * sizeof(float));
    }
    agglo_zero(be, trainer->sums.data, agglo_tensor_bytes(&trainer->sums));
    student->class_->forward(student->backbone, be, &trainer->pixels, &summary, &spatial);
    rows = agglo_tensor_rows(&spatial);
    if (trainer->train) {
        agglo_params_zero_grad(student->params);
        d_rows = agglo_tensor_rows(&trainer->d_spatial);
    }
    for (size_t i = 0; i < student->n_heads; i++) {
        run_pass(trainer, batch, i, 0, &summary, &trainer->d_summary);
        run_pass(trainer, batch, i, 1, &rows, &d_rows);
    }
    if (trainer->train) {
        student->class_->backward(student->backbone, be, &trainer->d_summary, &trainer->d_spatial);
    }
}

static double loss_of(const agglo_loss_sums *sums, double weight, double alpha, double beta)
{
    double n = sums->n_tokens;

    return n > 0.0 ? weight * (alpha * (1.0 - sums->cos / n) + beta * sums->smooth_l1 / n) : 0.0;
}

static void read_sums(agglo_trainer *trainer, const agglo_batch *batch, agglo_metrics *out)
{
    size_t n_heads = trainer->student->n_heads;

    memset(out, 0, sizeof *out);
    out->step = batch->plan.step;
    out->lr = batch->plan.lr;
    out->n_teachers = n_heads;
    agglo_download(trainer->backend, trainer->sums_host, trainer->sums.data, agglo_tensor_bytes(&trainer->sums));
    for (size_t i = 0; i < n_heads; i++) {
        for (int spatial = 0; spatial < 2; spatial++) {
            const float *from = trainer->sums_host + (i * 2 + (size_t)spatial) * 4;
            agglo_loss_sums *to = spatial ? &out->spatial[i] : &out->summary[i];

            *to = (agglo_loss_sums){(double)from[0], (double)from[1], (double)from[2], (double)from[3]};
        }
        out->loss += loss_of(&out->summary[i], batch->plan.summary_weight[i], 1.0, 0.0);
        out->loss +=
            loss_of(&out->spatial[i], batch->plan.spatial_weight[i], trainer->config.cos, trainer->config.smooth_l1);
    }
}

/* AdamW with the gradient's norm; AGGLO_E_DATA, naming the first parameter whose gradient is not finite, when nothing was updated. */
static agglo_status update(agglo_trainer *trainer, double lr, double *norm, agglo_err *err)
{
    const agglo_trainer_config *config = &trainer->config;
    const agglo_adamw_config adamw = {.lr = (float)lr,
                                      .beta1 = (float)config->beta1,
                                      .beta2 = (float)config->beta2,
                                      .eps = (float)config->eps,
                                      .grad_scale = 1.0f,
                                      .step = trainer->n_steps + 1};
    agglo_grad_state state;

    agglo_grad_norm(trainer->backend, trainer->optim);
    agglo_adamw_many(trainer->backend, &adamw, (float)config->clip, true, trainer->optim);
    agglo_grad_state_read(trainer->backend, trainer->optim, &state);
    if (agglo_backend_check(trainer->backend, err) != AGGLO_OK) {
        return err->status;
    }
    if (state.first_bad >= 0) {
        return agglo_fail(err, AGGLO_E_DATA, "the gradient of %s is not finite",
                          agglo_params_at(trainer->student->params, (size_t)state.first_bad)->name);
    }
    *norm = state.norm;
    return AGGLO_OK;
}

agglo_status agglo_trainer_step(agglo_trainer *trainer, const agglo_batch *batch, agglo_metrics *out, agglo_err *err)
{
    AGGLO_ASSERT(trainer->student->trained && batch->plan.step == trainer->n_steps);
    if (plan(trainer, batch, true, err) != AGGLO_OK) {
        goto fail;
    }
    run(trainer, batch);
    read_sums(trainer, batch, out);
    if (agglo_backend_check(trainer->backend, err) != AGGLO_OK) {
        goto fail;
    }
    if (!isfinite(out->loss)) {
        agglo_fail(err, AGGLO_E_DATA, "the loss is not finite");
        goto fail;
    }
    if (update(trainer, batch->plan.lr, &out->grad_norm, err) != AGGLO_OK) {
        goto fail;
    }
    trainer->n_steps++;
    return AGGLO_OK;
fail:
    return agglo_doing(err, "training stopped in step %lld", (long long)batch->plan.step);
}

agglo_status agglo_trainer_eval(agglo_trainer *trainer, const agglo_batch *batch, agglo_metrics *out, agglo_err *err)
{
    if (plan(trainer, batch, false, err) != AGGLO_OK) {
        goto fail;
    }
    run(trainer, batch);
    read_sums(trainer, batch, out);
    if (agglo_backend_check(trainer->backend, err) != AGGLO_OK) {
        goto fail;
    }
    return AGGLO_OK;
fail:
    return agglo_doing(err, "cannot evaluate a batch");
}
