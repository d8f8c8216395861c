/* What the trainer asks of a backend that works beside the host: in which order uploads, zeroing and recordings are issued, what is recorded
 * when, and what must not be asked with a step under way. The backend is the CPU's with some operators replaced.
 */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "student/checkpoint.h"
#include "student/step_io_impl.h"
#include "student/trainer_impl.h"
#include "tensor/backend_impl.h"
#include "tests/unit/student/trainer_case.h"

static agglo_backend_ops original, spy;
static int n_captures, n_replays, n_live; /* recordings begun, replayed, not freed */
static bool fail_next_loss;
static const char *dir;

/* ---- uploads and zeroing ---- */

enum { MAX_BLOCKS = 4096 };

static struct {
    const void *block;
    int64_t at; /* the clock when it was allocated, and so zeroed */
} blocks[MAX_BLOCKS];
static int n_blocks;
static int64_t now, recorded_at; /* the clock of compute work; and of the event that was recorded last */
static const agglo_event *recorded;
static int n_uploads;

static void *spy_alloc(agglo_backend *be, size_t n_bytes, agglo_err *err)
{
    void *block = original.alloc(be, n_bytes, err);

    assert_true(n_blocks < MAX_BLOCKS);
    blocks[n_blocks].block = block;
    blocks[n_blocks++].at = ++now;
    return block;
}

static void spy_record(agglo_backend *be, agglo_event *event)
{
    original.event_record(be, event);
    recorded = event;
    recorded_at = ++now;
}

/* The block that is written was zeroed before the event that the upload waits for. */
static void spy_upload(agglo_backend *be, void *dst, const void *src, size_t n_bytes, const agglo_event *after,
                       agglo_event *done)
{
    int64_t at = -1;

    for (int i = 0; i < n_blocks; i++) {
        at = blocks[i].block == dst ? blocks[i].at : at;
    }
    assert_true(at > 0);
    assert_true(after != NULL && after == recorded && recorded_at > at);
    n_uploads++;
    original.upload_async(be, dst, src, n_bytes, after, done);
}

/* ---- recordings: nothing is computed in a replay, which is enough to count ---- */

static void spy_begin(agglo_backend *be)
{
    (void)be;
    n_captures++;
}

static agglo_graph *spy_end(agglo_backend *be)
{
    static char graph;

    (void)be;
    n_live++;
    return (agglo_graph *)&graph;
}

static void spy_replay(agglo_backend *be, agglo_graph *graph)
{
    (void)be;
    (void)graph;
    n_replays++;
}

static void spy_graph_free(agglo_backend *be, agglo_graph *graph)
{
    (void)be;
    (void)graph;
    n_live--;
}

static void spy_loss(agglo_backend *be, const agglo_loss_config *config, const agglo_tensor *pred,
                     const agglo_target *target, const agglo_loss_weights *weights, float grad_scale,
                     agglo_tensor *d_pred, const agglo_loss_values *values, agglo_tensor *sums)
{
    if (fail_next_loss) {
        agglo_err err = {0};

        fail_next_loss = false;
        agglo_fail(&err, AGGLO_E_DEVICE, "no memory for the loss");
        agglo_backend_latch(be, &err);
        return;
    }
    original.target_loss(be, config, pred, target, weights, grad_scale, d_pred, values, sums);
}

static agglo_backend *open_spied(void)
{
    agglo_backend *backend;
    agglo_err err = {0};

    assert_ok(agglo_backend_cpu_new(&backend, 2, &err));
    original = spy = *backend->ops;
    spy.alloc = spy_alloc;
    spy.event_record = spy_record;
    spy.upload_async = spy_upload;
    spy.target_loss = spy_loss;
    spy.capture_begin = spy_begin;
    spy.capture_end = spy_end;
    spy.graph_replay = spy_replay;
    spy.graph_free = spy_graph_free;
    backend->ops = &spy;
    n_blocks = n_uploads = n_captures = n_replays = n_live = 0;
    fail_next_loss = false;
    return backend;
}

static agglo_trainer *make(agglo_backend *backend)
{
    agglo_trainer_config options = agglo_trainer_config_default();
    agglo_student_config config = tiny();
    agglo_trainer *trainer;
    agglo_err err = {0};

    assert_ok(agglo_trainer_new(&trainer, backend, &config, heads, 2, &options, &err));
    assert_ok(agglo_trainer_init(trainer, 7, &err));
    return trainer;
}

static agglo_status run_step(agglo_trainer *trainer, int n, agglo_err *err)
{
    agglo_metrics metrics;
    agglo_batch batch;
    agglo_status status;

    make_batch_of(&batch, 3, n, SIZE, AGGLO_F32);
    batch.plan.step = agglo_trainer_steps(trainer);
    batch.plan.lr = 1e-3;
    status = agglo_trainer_step(trainer, &batch, &metrics, err);
    clear_batch(&batch);
    return status;
}

static void step_of(agglo_trainer *trainer, int n)
{
    agglo_err err = {0};

    assert_ok(run_step(trainer, n, &err));
}

/* The staging block is zeroed on the compute stream: no upload into it overtakes that, neither the first nor that of a larger batch. */
static void test_uploads_come_behind_zeroing(void **state)
{
    agglo_backend *backend = open_spied();
    agglo_trainer *trainer = make(backend);

    (void)state;
    step_of(trainer, 2);
    step_of(trainer, 2);
    step_of(trainer, 5);
    assert_int_equal(n_uploads, 3);
    agglo_trainer_free(trainer);
    agglo_backend_free(backend);
}

/* A shape whose first step failed has nothing that a recording could build upon: its next step runs as it is. */
static void test_failed_first_step(void **state)
{
    agglo_backend *backend = open_spied();
    agglo_trainer *trainer = make(backend);
    agglo_err err = {0};

    (void)state;
    fail_next_loss = true;
    assert_fails(run_step(trainer, 2, &err), AGGLO_E_DEVICE, "training stopped in step 0: no memory for the loss");
    step_of(trainer, 2);
    assert_int_equal(n_captures, 0);
    step_of(trainer, 2);
    assert_int_equal(n_captures, 1);
    step_of(trainer, 2);
    assert_true(n_captures == 1 && n_replays == 1);
    agglo_trainer_free(trainer);
    assert_int_equal(n_live, 0);
    agglo_backend_free(backend);
}

/* Eight shapes are kept; the ninth takes the place of the one that is not used for the longest time. */
static void test_recordings_used_last_are_kept(void **state)
{
    enum { N = AGGLO_TRAINER_RECORDINGS };
    agglo_backend *backend = open_spied();
    agglo_trainer *trainer = make(backend);

    (void)state;
    step_of(trainer, N + 2); /* the largest first: its memory is enough for all */
    for (int n = 1; n <= N; n++) {
        step_of(trainer, n);
        step_of(trainer, n);
    }
    assert_true(n_captures == N && n_replays == 0 && n_live == N);
    for (int n = 1; n <= N; n++) {
        step_of(trainer, n == 3 ? 4 : n); /* all but 3 */
    }
    assert_true(n_captures == N && n_replays == N);
    step_of(trainer, N + 1); /* goes to 3's place */
    assert_true(n_captures == N && n_live == N - 1);
    step_of(trainer, N + 1);
    assert_int_equal(n_captures, N + 1);
    for (int n = 1; n <= N; n++) {
        if (n != 3) {
            step_of(trainer, n);
        }
    }
    assert_int_equal(n_replays, 2 * N - 1);
    step_of(trainer, 3);
    assert_int_equal(n_replays, 2 * N - 1);
    step_of(trainer, 2 * N); /* more memory: all are made again */
    assert_int_equal(n_live, 0);
    agglo_trainer_free(trainer);
    agglo_backend_free(backend);
}

/* ---- what a step under way forbids ---- */

static void ask_save(agglo_trainer *trainer)
{
    agglo_err err = {0};

    agglo_checkpoint_save(trainer, dir, "recipe", 1, &err);
}

static void ask_load(agglo_trainer *trainer)
{
    agglo_err err = {0};
    bool found;

    agglo_checkpoint_load(trainer, dir, "recipe", &found, &err);
}

static void ask_export(agglo_trainer *trainer)
{
    agglo_err err = {0};

    agglo_trainer_export(trainer, test_path(dir, "student.safetensors"), &err);
}

static bool aborts(void (*ask)(agglo_trainer *trainer), agglo_trainer *trainer)
{
    int status;
    pid_t child;

    fflush(NULL);
    child = fork();
    if (child == 0) {
        signal(SIGABRT, SIG_DFL);
        assert_non_null(freopen("/dev/null", "w", stderr));
        ask(trainer);
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
}

static void test_nothing_is_saved_with_a_step_under_way(void **state)
{
    static void (*const asks[])(agglo_trainer * trainer) = {ask_save, ask_load, ask_export};
    agglo_backend *backend = open_spied();
    agglo_trainer *trainer = make(backend);
    agglo_metrics metrics;
    agglo_batch batch;
    agglo_err err = {0};

    (void)state;
    dir = test_dir();
    make_batch(&batch, 1);
    batch.plan.lr = 1e-3;
    assert_ok(agglo_trainer_submit(trainer, &batch, &err));
    for (size_t i = 0; i < AGGLO_COUNT(asks); i++) {
        assert_true(aborts(asks[i], trainer));
    }
    assert_ok(agglo_trainer_take(trainer, &metrics, &err));
    for (size_t i = 0; i < AGGLO_COUNT(asks); i++) {
        asks[i](trainer);
    }
    assert_true(agglo_path_exists(test_path(dir, "student.safetensors")));
    clear_batch(&batch);
    agglo_trainer_free(trainer);
    agglo_backend_free(backend);
}

/* ---- sizes ---- */

static void test_sizes_that_cannot_be_held(void **state)
{
    agglo_head_config huge[2] = {heads[0], heads[1]};
    agglo_step_layout layout;
    agglo_batch batch;
    agglo_err err = {0};

    (void)state;
    make_batch(&batch, 1);
    assert_ok(agglo_step_layout_of(&layout, &batch, huge, 2, &err));
    assert_int_equal(layout.pixel_bytes, BATCH * SIZE * SIZE * 3);
    assert_int_equal(layout.target_bytes[1][1], BATCH * 3 * 5 * 14 * sizeof(float));
    assert_true(layout.n_bytes >= layout.numbers + sizeof(agglo_adamw_numbers));
    huge[1].spatial_dim = INT64_MAX / 2;
    assert_fails(agglo_step_layout_of(&layout, &batch, huge, 2, &err), AGGLO_E_MEMORY,
                 "a batch of 3 pictures of 16 x 16");
    huge[1].spatial_dim = 14;
    huge[0].grid_h = huge[0].grid_w = INT64_C(1) << 33; /* a product that wraps to 0 */
    assert_fails(agglo_step_layout_of(&layout, &batch, huge, 2, &err), AGGLO_E_MEMORY, "too large");
    huge[0] = heads[0];
    huge[0].summary_dim = huge[1].summary_dim = INT64_MAX / 16; /* each fits, both do not */
    huge[0].spatial_dim = huge[1].spatial_dim = INT64_MAX / 256;
    assert_fails(agglo_step_layout_of(&layout, &batch, huge, 2, &err), AGGLO_E_MEMORY, "too large");
    clear_batch(&batch);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_uploads_come_behind_zeroing),
        cmocka_unit_test(test_failed_first_step),
        cmocka_unit_test(test_recordings_used_last_are_kept),
        cmocka_unit_test(test_nothing_is_saved_with_a_step_under_way),
        cmocka_unit_test(test_sizes_that_cannot_be_held),
    };

    return test_run("trainer_io", tests);
}
