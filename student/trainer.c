/* The life of a trainer, and steps as their callers see them: submitted, taken, undone where one fails. What a step runs on the device stands in
 * trainer_step.c.
 */
#include "student/trainer_impl.h"

#include <math.h>
#include <string.h>

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

void agglo_trainer_free(agglo_trainer *trainer)
{
    if (trainer != NULL) {
        agglo_trainer_drop_recordings(trainer);
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

agglo_status agglo_trainer_export(agglo_trainer *trainer, const char *path, agglo_err *err)
{
    AGGLO_ASSERT(agglo_trainer_pending(trainer) == 0);
    return agglo_student_export(trainer->student, path, err);
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
    agglo_trainer_drop_recordings(trainer);
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
    if (agglo_trainer_plan(trainer, batch, true, err) != AGGLO_OK ||
        loss_weights(trainer, batch, weights, err) != AGGLO_OK) {
        goto fail;
    }
    numbers = numbers_of(trainer, batch->plan.lr);
    agglo_step_io_up(&trainer->io, &trainer->layout, batch, weights, &numbers, trainer->input.data);
    if (agglo_trainer_issue(trainer, err) != AGGLO_OK) {
        goto fail;
    }
    agglo_step_io_down(&trainer->io, at, &trainer->sums, trainer->optim);
    if (agglo_backend_peek(trainer->backend, err) != AGGLO_OK) {
        goto fail;
    }
    agglo_trainer_issued(trainer);
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
    if (agglo_trainer_plan(trainer, batch, false, err) != AGGLO_OK) {
        goto fail;
    }
    agglo_step_io_up(&trainer->io, &trainer->layout, batch, weights, &none, trainer->input.data);
    agglo_trainer_compute(trainer);
    agglo_step_io_down(&trainer->io, 0, &trainer->sums, NULL);
    read_result(trainer, &of, agglo_step_io_wait(&trainer->io, 0), out);
    if (agglo_backend_peek(trainer->backend, err) != AGGLO_OK) {
        goto fail;
    }
    return AGGLO_OK;
fail:
    return agglo_doing(err, "cannot evaluate a batch");
}
