/* One step: the batch goes up; backbone forward; for every teacher and kind the head forward, the loss with its gradient, the head
 * backward, so that only one head's activations live at a time; backbone backward; sums over ranks; the gradient's norm; AdamW, which clips
 * by it and does nothing where it or the loss is not finite, on the device; the loss sums and the norm come down.
 *
 * What a step runs is `compute` and `update`, two recordings where ranks meet in between, otherwise one. Whatever differs from step to
 * step lies in the input block (step_io_impl.h).
 */
#include <string.h>

#include "student/trainer_impl.h"
#include "tensor/ops_resample.h"

void agglo_trainer_drop_recordings(agglo_trainer *trainer)
{
    for (int i = 0; i < AGGLO_TRAINER_RECORDINGS; i++) {
        agglo_graph_free(trainer->backend, trainer->recordings[i].compute);
        agglo_graph_free(trainer->backend, trainer->recordings[i].update);
        trainer->recordings[i] = (recording){0};
    }
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

agglo_status agglo_trainer_plan(agglo_trainer *trainer, const agglo_batch *batch, bool train, agglo_err *err)
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
    if (agglo_step_layout_of(&trainer->layout, batch, trainer->student->heads, trainer->student->n_heads, err) !=
            AGGLO_OK ||
        agglo_step_io_fit(&trainer->io, trainer->layout.n_bytes, err) != AGGLO_OK ||
        agglo_slab_fit(&trainer->slab, trainer->backend, walk, trainer, err) != AGGLO_OK) {
        trainer->planned.batch = 0; /* nothing is planned */
        return err->status;
    }
    if (trainer->slab.base != memory) {
        agglo_trainer_drop_recordings(trainer); /* they know addresses of what was there */
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

void agglo_trainer_compute(agglo_trainer *trainer)
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
    agglo_trainer_compute(trainer);
    update(trainer);
}

/* That of the planned shape, or a free place for it: the shape whose last step is the longest ago gives up its own. */
static recording *recording_of(agglo_trainer *trainer)
{
    recording *made = &trainer->recordings[0];

    for (int i = 0; i < AGGLO_TRAINER_RECORDINGS; i++) {
        recording *kept = &trainer->recordings[i];

        if (same_shape(&kept->of, &trainer->planned)) {
            return kept;
        }
        made = kept->used < made->used ? kept : made;
    }
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

agglo_status agglo_trainer_issue(agglo_trainer *trainer, agglo_err *err)
{
    recording *made = recording_of(trainer);

    made->used = ++trainer->n_issued;
    if (trainer->comm == NULL) {
        issue(trainer, made->has_run, &made->compute, compute_and_update);
        return AGGLO_OK;
    }
    issue(trainer, made->has_run, &made->compute, agglo_trainer_compute);
    if (agglo_buckets_sum(trainer->buckets, trainer->comm, 1.0f, err) != AGGLO_OK) {
        return err->status;
    }
    issue(trainer, made->has_run, &made->update, update);
    return AGGLO_OK;
}

void agglo_trainer_issued(agglo_trainer *trainer)
{
    recording_of(trainer)->has_run = true;
}
