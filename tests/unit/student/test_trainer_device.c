/* The trainer on a device and in BF16: recorded steps against unrecorded ones, steps that overlap, failures with steps under way, ranks,
 * BF16 beside F32, a GPU beside the CPU. AGGLO_TEST_DEVICE names another device than the CPU, which records nothing: there
 * steps submitted ahead are compared with steps one by one.
 */
#include <math.h>
#include <pthread.h>

#include "tests/parity/tensor/test_device.h"
#include "tests/unit/student/trainer_case.h"

enum { EPOCH = 13 }; /* steps */

static const char *device;

static agglo_backend *open_device(const char *name)
{
    agglo_backend *backend;
    agglo_err err = {0};

    assert_ok(agglo_backend_open(&backend, name, 2, &err));
    return backend;
}

static agglo_trainer *make(agglo_backend *backend, agglo_dtype precision, bool unrecorded)
{
    agglo_trainer_config options = agglo_trainer_config_default();
    agglo_student_config config = tiny();
    agglo_trainer *trainer;
    agglo_err err = {0};

    options.precision = precision;
    options.unrecorded = unrecorded;
    options.clip = 1.0;
    assert_ok(agglo_trainer_new(&trainer, backend, &config, heads, 2, &options, &err));
    assert_ok(agglo_trainer_init(trainer, 7, &err));
    return trainer;
}

/* What differs from step to step: learning rate and loss weights. */
static void set_plan(agglo_batch *batch, int64_t step)
{
    batch->plan.step = step;
    batch->plan.lr = 3e-3 * (1.0 + 0.5 * cos((double)step));
    for (size_t i = 0; i < batch->n_teachers; i++) {
        batch->plan.summary_weight[i] = heads[i].summary_weight * (1.0 + 0.25 * (double)(step % 3));
        batch->plan.spatial_weight[i] = heads[i].spatial_weight / (1.0 + 0.125 * (double)(step % 5));
    }
}

/* The shape of a step: two sizes and two types of targets that take turns, and a short batch at the end of each of two epochs. */
static void make_step(agglo_batch *batch, int64_t step)
{
    int shape = (int)(step / 2 % 3);

    make_batch_of(batch, (uint64_t)step, step % EPOCH == EPOCH - 1 ? BATCH - 1 : BATCH, shape == 1 ? 24 : SIZE,
                  shape == 2 ? AGGLO_F16 : AGGLO_F32);
    set_plan(batch, step);
}

static void assert_same_values(agglo_trainer *a, agglo_backend *be_a, agglo_trainer *b, agglo_backend *be_b)
{
    int64_t n[2];
    float *values[2] = {all_values(a, be_a, &n[0]), all_values(b, be_b, &n[1])};

    assert_int_equal(n[0], n[1]);
    assert_memory_equal(values[0], values[1], (size_t)n[0] * sizeof(float));
    agglo_free(values[0]);
    agglo_free(values[1]);
}

/* The same of a batch that is evaluated, of a shape that also trains or of one of its own. */
static void evaluate(agglo_trainer *trainer, int64_t i, agglo_metrics *out)
{
    agglo_batch batch;
    agglo_err err = {0};

    make_batch_of(&batch, 100 + (uint64_t)i, i % 2 == 0 ? BATCH : BATCH + 1, SIZE, AGGLO_F32);
    set_plan(&batch, i);
    assert_ok(agglo_trainer_eval(trainer, &batch, out, &err));
    clear_batch(&batch);
}

/* Recorded and overlapping, with evaluations in between, beside unrecorded and one by one: the same parameters and metrics, bit for
 * bit. */
static void check_recorded(agglo_dtype precision)
{
    enum { STEPS = 2 * EPOCH };
    agglo_backend *backend = open_device(device);
    agglo_trainer *plain = make(backend, precision, true), *recorded = make(backend, precision, false);
    agglo_metrics expected[STEPS], got;
    int64_t taken = 0;
    agglo_err err = {0};

    for (int64_t i = 0; i < STEPS; i++) {
        agglo_batch batch;
        bool alone = i == 0;

        if (i % 7 == 3) {
            agglo_metrics evaluated[2];

            assert_ok(agglo_trainer_take(recorded, &got, &err));
            assert_memory_equal(&got, &expected[taken], sizeof got);
            taken++;
            alone = true;
            evaluate(recorded, i, &evaluated[0]);
            evaluate(plain, i, &evaluated[1]);
            assert_memory_equal(&evaluated[0], &evaluated[1], sizeof evaluated[0]);
            assert_true(evaluated[0].loss > 0.0);
        }
        make_step(&batch, i);
        assert_ok(agglo_trainer_step(plain, &batch, &expected[i], &err));
        assert_ok(agglo_trainer_submit(recorded, &batch, &err));
        clear_batch(&batch); /* it is ours again */
        assert_int_equal(agglo_trainer_pending(recorded), alone ? 1 : 2);
        if (!alone) {
            assert_ok(agglo_trainer_take(recorded, &got, &err));
            assert_memory_equal(&got, &expected[taken], sizeof got);
            taken++;
        }
    }
    assert_ok(agglo_trainer_take(recorded, &got, &err));
    assert_memory_equal(&got, &expected[taken], sizeof got);
    assert_int_equal(agglo_trainer_steps(recorded), STEPS);
    assert_int_equal(agglo_trainer_pending(recorded), 0);
    assert_same_values(plain, backend, recorded, backend);
    agglo_trainer_free(recorded);
    agglo_trainer_free(plain);
    agglo_backend_free(backend);
}

static void test_recorded(void **state)
{
    (void)state;
    check_recorded(AGGLO_F32);
}

static void test_recorded_bf16(void **state)
{
    (void)state;
    check_recorded(AGGLO_BF16);
}

/* Nothing is allocated on the host once a shape is recorded. */
static void test_steady_state(void **state)
{
    agglo_backend *backend = open_device(device);
    agglo_trainer *trainer = make(backend, AGGLO_BF16, false);
    agglo_batch batch;
    agglo_metrics metrics;
    int64_t before = 0;
    agglo_err err = {0};

    (void)state;
    make_batch(&batch, 1);
    for (int64_t i = 0; i < 8; i++) {
        before = i == 4 ? agglo_alloc_counts().n_total : before;
        set_plan(&batch, i);
        assert_ok(agglo_trainer_step(trainer, &batch, &metrics, &err));
    }
    assert_int_equal(agglo_alloc_counts().n_total, before);
    clear_batch(&batch);
    agglo_trainer_free(trainer);
    agglo_backend_free(backend);
}

/* Step 3 has a target that is not finite, and is noticed when step 4 has been issued: neither changes anything, the failure names step 3,
 * and the run goes on from there as if they had not been. */
static void test_failure_behind_another_step(void **state)
{
    agglo_backend *backend = open_device(device);
    agglo_trainer *trainer = make(backend, AGGLO_F32, false), *undisturbed = make(backend, AGGLO_F32, true);
    agglo_metrics metrics;
    agglo_batch batch;
    agglo_err err = {0};

    (void)state;
    for (int64_t i = 0; i < 8; i++) {
        make_batch(&batch, (uint64_t)i);
        set_plan(&batch, i);
        assert_ok(agglo_trainer_step(undisturbed, &batch, &metrics, &err));
        if (i == 3) {
            float *value = (float *)batch.targets[1].summary + 4, saved = *value;

            *value = (float)NAN;
            assert_ok(agglo_trainer_submit(trainer, &batch, &err));
            *value = saved;
            batch.plan.step = 4;
            assert_ok(agglo_trainer_submit(trainer, &batch, &err));
            batch.plan.step = 3;
            assert_fails(agglo_trainer_take(trainer, &metrics, &err), AGGLO_E_DATA,
                         "training stopped in step 3: the loss is not finite");
            assert_int_equal(agglo_trainer_steps(trainer), 3);
            assert_int_equal(agglo_trainer_pending(trainer), 0);
        }
        assert_ok(agglo_trainer_step(trainer, &batch, &metrics, &err));
        clear_batch(&batch);
    }
    assert_same_values(trainer, backend, undisturbed, backend);
    agglo_trainer_free(undisturbed);
    agglo_trainer_free(trainer);
    agglo_backend_free(backend);
}

/* ---- ranks ---- */

typedef struct rank {
    agglo_comm *comm;
    agglo_backend *backend;
    agglo_trainer *trainer;
    agglo_metrics metrics[6];
    bool ok;
} rank;

/* Pictures first .. first + n of a batch. */
static agglo_batch slice_of(const agglo_batch *whole, int first, int n)
{
    agglo_batch part = *whole;

    part.batch = n;
    part.pixels += (size_t)first * (size_t)whole->size * (size_t)whole->size * 3;
    for (size_t i = 0; i < whole->n_teachers; i++) {
        agglo_batch_targets *to = &part.targets[i];

        to->summary = (float *)to->summary + first * heads[i].summary_dim;
        to->spatial = (float *)to->spatial + first * heads[i].grid_h * heads[i].grid_w * heads[i].spatial_dim;
        to->valid += first;
    }
    return part;
}

static void *run_rank(void *context)
{
    rank *r = context;
    agglo_err err = {0};

    r->ok = agglo_trainer_set_comm(r->trainer, r->comm, &err) == AGGLO_OK;
    for (int64_t i = 0; r->ok && i < (int64_t)AGGLO_COUNT(r->metrics); i++) {
        agglo_batch whole, part;

        make_batch_of(&whole, (uint64_t)i, 5, SIZE, AGGLO_F32);
        set_plan(&whole, i);
        part = r->comm->rank == 0 ? slice_of(&whole, 0, 2) : slice_of(&whole, 2, 3);
        r->ok = agglo_trainer_step(r->trainer, &part, &r->metrics[i], &err) == AGGLO_OK;
        clear_batch(&whole);
    }
    return NULL;
}

/* Two ranks with two and three pictures of five, one of them not valid for a teacher: the same parameters on both, bit for bit, and, within
 * rounding, those of one rank with all five. */
static void test_ranks(void **state)
{
    agglo_backend *backend = open_device(device);
    agglo_trainer *whole = make(backend, AGGLO_F32, false);
    agglo_comm *comms[2];
    rank ranks[2] = {{0}};
    pthread_t threads[2];
    float *values[3];
    double worst = 0.0, moved = 0.0;
    int64_t n;
    agglo_err err = {0};

    (void)state;
    assert_ok(agglo_comm_loopback_new(comms, 2, &err));
    for (int k = 0; k < 2; k++) {
        ranks[k].comm = comms[k];
        ranks[k].backend = open_device(device);
        ranks[k].trainer = make(ranks[k].backend, AGGLO_F32, false);
    }
    values[2] = all_values(whole, backend, &n);
    for (int k = 0; k < 2; k++) {
        assert_int_equal(pthread_create(&threads[k], NULL, run_rank, &ranks[k]), 0);
    }
    for (int k = 0; k < 2; k++) {
        assert_int_equal(pthread_join(threads[k], NULL), 0);
        assert_true(ranks[k].ok);
    }
    assert_memory_equal(ranks[0].metrics, ranks[1].metrics, sizeof ranks[0].metrics);
    assert_same_values(ranks[0].trainer, ranks[0].backend, ranks[1].trainer, ranks[1].backend);
    for (int64_t i = 0; i < (int64_t)AGGLO_COUNT(ranks[0].metrics); i++) {
        agglo_metrics metrics;
        agglo_batch batch;

        make_batch_of(&batch, (uint64_t)i, 5, SIZE, AGGLO_F32);
        set_plan(&batch, i);
        assert_ok(agglo_trainer_step(whole, &batch, &metrics, &err));
        clear_batch(&batch);
        assert_true(fabs(metrics.loss - ranks[0].metrics[i].loss) < 1e-5 * metrics.loss);
        assert_true(fabs(metrics.grad_norm - ranks[0].metrics[i].grad_norm) < 1e-4 * metrics.grad_norm);
        assert_true(metrics.spatial[1].n_samples == 4.0 && ranks[0].metrics[i].spatial[1].n_samples == 4.0);
    }
    values[0] = all_values(whole, backend, &n);
    values[1] = all_values(ranks[0].trainer, ranks[0].backend, &n);
    for (int64_t i = 0; i < n; i++) {
        worst = fmax(worst, fabs((double)values[0][i] - (double)values[1][i]));
        moved = fmax(moved, fabs((double)values[0][i] - (double)values[2][i]));
    }
    /* AdamW divides by the gradient's own size, so rounding counts for more in elements that have next to none */
    assert_true(worst < 2e-2 * moved);
    for (int k = 0; k < 3; k++) {
        agglo_free(values[k]);
    }
    for (int k = 0; k < 2; k++) {
        agglo_trainer_free(ranks[k].trainer);
        agglo_backend_free(ranks[k].backend);
        agglo_comm_free(comms[k]);
    }
    agglo_trainer_free(whole);
    agglo_backend_free(backend);
}

/* ---- BF16 beside F32, the device beside the CPU ---- */

/* Loss of each of STEPS steps over the same eight batches, and of an evaluation behind them. */
enum { STEPS = 50 };

static void run_losses(const char *where, agglo_dtype precision, double losses[STEPS])
{
    agglo_backend *backend = open_device(where);
    agglo_trainer *trainer = make(backend, precision, false);
    agglo_batch batches[8];
    agglo_metrics metrics;
    agglo_err err = {0};

    for (uint64_t b = 0; b < 8; b++) {
        make_batch(&batches[b], b);
    }
    for (int64_t i = 0; i < STEPS; i++) {
        agglo_batch *batch = &batches[i % 8];

        batch->plan.step = i;
        batch->plan.lr = 2e-3;
        assert_ok(agglo_trainer_step(trainer, batch, &metrics, &err));
        losses[i] = metrics.loss;
    }
    for (int b = 0; b < 8; b++) {
        clear_batch(&batches[b]);
    }
    agglo_trainer_free(trainer);
    agglo_backend_free(backend);
}

static void assert_near(const char *what, const double a[STEPS], const double b[STEPS], double tolerance)
{
    double worst = 0.0;

    assert_true(b[STEPS - 1] < 0.9 * b[7]); /* it learns */
    for (int i = 0; i < STEPS; i++) {
        worst = fmax(worst, fabs(a[i] - b[i]) / b[i]);
    }
    printf("%s: losses within %.2g over %d steps, from %.4f to %.4f and %.4f\n", what, worst, STEPS, b[7], b[STEPS - 1],
           a[STEPS - 1]);
    if (!(worst <= tolerance)) {
        fail_msg("%s: losses differ by %.3g, %.3g allowed", what, worst, tolerance);
    }
}

/* 50 steps in BF16: every step's loss within 1 % of that in F32. */
static void test_bf16_follows_f32(void **state)
{
    double f32[STEPS], bf16[STEPS];

    (void)state;
    run_losses(device, AGGLO_F32, f32);
    run_losses(device, AGGLO_BF16, bf16);
    assert_true(memcmp(f32, bf16, sizeof f32) != 0);
    assert_near("BF16 and F32", bf16, f32, 1e-2);
}

/* On a GPU: F32 within 1e-3 of the CPU's losses, BF16 within 1 %. */
static void test_device_follows_cpu(void **state)
{
    double cpu[STEPS], gpu[STEPS];

    (void)state;
    if (strcmp(device, "cpu") == 0) {
        skip();
    }
    for (int k = 0; k < 2; k++) {
        run_losses("cpu", k == 0 ? AGGLO_F32 : AGGLO_BF16, cpu);
        run_losses(device, k == 0 ? AGGLO_F32 : AGGLO_BF16, gpu);
        assert_near(k == 0 ? "GPU and CPU, F32" : "GPU and CPU, BF16", gpu, cpu, k == 0 ? 1e-3 : 1e-2);
    }
}

/* The gradient of one step, tensor by tensor: BF16 within 5e-2 of F32's norm, all of it together within 2e-2. */
static void test_bf16_gradients(void **state)
{
    agglo_backend *backend = open_device(device);
    agglo_trainer *trainers[2] = {make(backend, AGGLO_F32, true), make(backend, AGGLO_BF16, true)};
    agglo_params *params[2];
    agglo_metrics metrics[2];
    agglo_batch batch;
    double all = 0.0, all_off = 0.0;
    agglo_err err = {0};

    (void)state;
    make_batch(&batch, 2);
    for (int warm = 0; warm < 6; warm++) { /* off the initial values, where heads put out next to nothing */
        set_plan(&batch, warm);
        assert_ok(agglo_trainer_step(trainers[0], &batch, &metrics[0], &err));
    }
    for (int k = 0; k < 2; k++) {
        params[k] = agglo_student_params(agglo_trainer_student(trainers[k]));
    }
    for (size_t i = 0; i < agglo_params_count(params[0]); i++) {
        agglo_copy(backend, agglo_params_at(params[1], i)->value.data, agglo_params_at(params[0], i)->value.data,
                   agglo_tensor_bytes(&agglo_params_at(params[0], i)->value));
    }
    agglo_params_refresh(params[1]);
    agglo_trainer_set_steps(trainers[1], agglo_trainer_steps(trainers[0]));
    set_plan(&batch, 6);
    batch.plan.lr = 0.0;
    for (int k = 0; k < 2; k++) {
        assert_ok(agglo_trainer_step(trainers[k], &batch, &metrics[k], &err));
    }
    assert_true(fabs(metrics[0].loss - metrics[1].loss) < 1e-2 * metrics[0].loss);
    for (size_t i = 0; i < agglo_params_count(params[0]); i++) {
        const agglo_param *p = agglo_params_at(params[0], i);
        size_t n = (size_t)agglo_tensor_count(&p->grad);
        float *g[2];
        double norm = 0.0, off = 0.0;

        for (int k = 0; k < 2; k++) {
            g[k] = agglo_alloc(n, sizeof(float), &err);
            agglo_download(backend, g[k], agglo_params_at(params[k], i)->grad.data, n * sizeof(float));
        }
        for (size_t j = 0; j < n; j++) {
            double d = (double)g[0][j] - (double)g[1][j];

            norm += (double)g[0][j] * (double)g[0][j];
            off += d * d;
        }
        all += norm;
        all_off += off;
        if (!(sqrt(off) <= 5e-2 * sqrt(norm))) {
            fail_msg("%s: the gradient in BF16 is off by %.3g of its norm", p->name, sqrt(off / norm));
        }
        agglo_free(g[0]);
        agglo_free(g[1]);
    }
    printf("the gradient in BF16 is off by %.3g of its norm\n", sqrt(all_off / all));
    assert_true(sqrt(all_off / all) < 2e-2);
    clear_batch(&batch);
    agglo_trainer_free(trainers[0]);
    agglo_trainer_free(trainers[1]);
    agglo_backend_free(backend);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_recorded),
        cmocka_unit_test(test_recorded_bf16),
        cmocka_unit_test(test_steady_state),
        cmocka_unit_test(test_failure_behind_another_step),
        cmocka_unit_test(test_ranks),
        cmocka_unit_test(test_bf16_gradients),
        cmocka_unit_test(test_bf16_follows_f32),
        cmocka_unit_test(test_device_follows_cpu),
    };

    device = test_device();
    return test_run("trainer_device", tests);
}
