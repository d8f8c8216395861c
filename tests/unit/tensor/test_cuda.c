/* The CUDA backend beside its operators: memory, transfers larger than the pinned buffers, failures that are latched, threads. Skipped,
 * with the reason, where there is no GPU. */
#include "tests/support/support.h"

#include "tensor/async.h"
#include "tensor/backend.h"
#include "tensor/ops.h"

#include <pthread.h>

static agglo_backend *open_gpu(void)
{
    agglo_backend *be;
    agglo_err err = {0};

    assert_ok(agglo_backend_cuda_new(&be, 0, &err));
    return be;
}

static void test_memory(void **state)
{
    agglo_backend *be = open_gpu();
    agglo_err err = {0};
    uint8_t host[1000];

    (void)state;
    for (size_t n = 0; n <= sizeof host; n += 125) {
        void *block = agglo_backend_alloc(be, n, &err);

        assert_non_null(block);
        assert_int_equal((uintptr_t)block % 256, 0);
        memset(host, 0xff, sizeof host);
        agglo_download(be, host, block, n);
        assert_ok(agglo_backend_check(be, &err));
        for (size_t i = 0; i < n; i++) {
            assert_int_equal(host[i], 0);
        }
        agglo_backend_release(be, block);
    }
    agglo_backend_release(be, NULL);

    /* more than there is: an error that says so, and the backend goes on */
    assert_null(agglo_backend_alloc(be, (size_t)1 << 50, &err));
    assert_fails(err.status, AGGLO_E_MEMORY, "cannot allocate GPU memory: 1125899906842624 bytes asked for");
    assert_ok(agglo_backend_check(be, &err));
    agglo_backend_free(be);
}

/* The caller's memory is its own again when upload returns, however much is under way. */
static void test_transfers(void **state)
{
    const size_t n = ((size_t)37 << 20) + 13;
    agglo_backend *be = open_gpu();
    test_random random = test_random_new(1);
    agglo_err err = {0};
    uint8_t *sent = malloc(n), *kept = malloc(n), *back = malloc(n), *block = agglo_backend_alloc(be, 2 * n, &err);

    (void)state;
    assert_non_null(sent);
    assert_non_null(kept);
    assert_non_null(back);
    assert_non_null(block);
    for (int round = 0; round < 3; round++) {
        test_random_bytes(&random, sent, n);
        memcpy(kept, sent, n);
        agglo_upload(be, block, sent, n);
        memset(sent, 0, n);
        agglo_copy(be, block + n, block, n);
        agglo_zero(be, block, n);
        agglo_download(be, back, block + n, n);
        assert_memory_equal(back, kept, n);
        agglo_download(be, back, block, n);
        assert_memory_equal(back, sent, n);
    }
    assert_ok(agglo_backend_check(be, &err));
    agglo_backend_release(be, block);
    agglo_backend_free(be);
    free(sent);
    free(kept);
    free(back);
}

static void test_failure_is_latched(void **state)
{
    agglo_backend *be = open_gpu();
    agglo_err err = {0};
    float one = 1.0f, got = 0.0f;
    float *block = agglo_backend_alloc(be, 3 * 160 * sizeof(float), &err);
    float *out = agglo_backend_alloc(be, 160 * sizeof(float), &err);
    agglo_tensor qkv = agglo_tensor_of(block, AGGLO_F32, 5, (const int64_t[]){1, 1, 3, 1, 160});
    agglo_tensor attended = agglo_tensor_4d(out, AGGLO_F32, 1, 1, 1, 160);

    (void)state;
    assert_non_null(block);
    assert_non_null(out);
    agglo_attention(be, &qkv, 1.0f, &attended, NULL);
    agglo_upload(be, out, &one, sizeof one); /* does nothing any more */
    assert_fails(agglo_backend_check(be, &err), AGGLO_E_UNSUPPORTED, "160 channels per head");
    assert_ok(agglo_backend_check(be, &err));
    agglo_download(be, &got, out, sizeof got);
    assert_true(got == 0.0f);
    agglo_upload(be, out, &one, sizeof one);
    agglo_download(be, &got, out, sizeof got);
    assert_true(got == 1.0f);
    assert_ok(agglo_backend_check(be, &err));
    agglo_backend_release(be, block);
    agglo_backend_release(be, out);
    agglo_backend_free(be);
}

/* Uploads from a ring of two slots, more than fit at once, read by operators: what arrives is what was put in. */
static void test_upload_ring(void **state)
{
    enum { COUNT = 1 << 18, ROUNDS = 20 };
    agglo_backend *be = open_gpu();
    agglo_err err = {0};
    agglo_upload_ring *ring = agglo_upload_ring_new(be, 2, COUNT * sizeof(float), &err);
    agglo_event *read = agglo_event_new(be, &err);
    float *block = agglo_backend_alloc(be, COUNT * sizeof(float), &err);
    float *sum = agglo_backend_alloc(be, COUNT * sizeof(float), &err), *got = malloc(COUNT * sizeof *got);
    agglo_tensor x = agglo_tensor_1d(block, AGGLO_F32, COUNT), total = agglo_tensor_1d(sum, AGGLO_F32, COUNT);

    (void)state;
    assert_non_null(ring);
    assert_non_null(read);
    assert_non_null(block);
    assert_non_null(sum);
    assert_non_null(got);
    assert_true(agglo_event_is_done(be, read));
    for (int round = 0; round < ROUNDS; round++) {
        float *slot = agglo_upload_ring_take(ring);

        for (int i = 0; i < COUNT; i++) {
            slot[i] = (float)(round + i % 7);
        }
        agglo_upload_ring_send(ring, 0, COUNT / 2 * sizeof(float), block, read);
        agglo_upload_ring_send(ring, COUNT / 2 * sizeof(float), COUNT / 2 * sizeof(float), block + COUNT / 2, read);
        agglo_upload_ring_join(ring);
        agglo_axpy(be, 1.0f, &x, &total);
        agglo_event_record(be, read);
    }
    agglo_event_wait(be, read);
    assert_true(agglo_event_is_done(be, read));
    agglo_download(be, got, sum, COUNT * sizeof(float));
    assert_ok(agglo_backend_check(be, &err));
    for (int i = 0; i < COUNT; i++) {
        assert_true(got[i] == (float)(ROUNDS * (ROUNDS - 1) / 2 + ROUNDS * (i % 7)));
    }
    free(got);
    agglo_backend_release(be, block);
    agglo_backend_release(be, sum);
    agglo_event_free(be, read);
    agglo_upload_ring_free(ring);
    agglo_backend_free(be);
}

/* A recorded step adds as often as it is replayed, with memory that grows meanwhile; what may not be recorded is latched. */
static void test_capture(void **state)
{
    enum { COUNT = 1000, WIDE = 1 << 19 };
    agglo_backend *be = open_gpu();
    agglo_err err = {0};
    float *block = agglo_backend_alloc(be, WIDE * sizeof(float), &err), got[COUNT];
    float *more = agglo_backend_alloc(be, 2 * WIDE * sizeof(float), &err);
    float *sums = agglo_backend_alloc(be, sizeof(float), &err), ones[COUNT];
    agglo_tensor x = agglo_tensor_1d(block, AGGLO_F32, COUNT), sum = agglo_tensor_1d(sums, AGGLO_F32, 1);
    agglo_tensor d_y = agglo_tensor_2d(block, AGGLO_F32, 1, WIDE), gamma = agglo_tensor_1d(block, AGGLO_F32, WIDE);
    agglo_tensor d_h = agglo_tensor_2d(more, AGGLO_F32, 1, WIDE);
    agglo_tensor d_gamma = agglo_tensor_1d(more + WIDE, AGGLO_F32, WIDE);
    agglo_graph *graph;

    (void)state;
    assert_non_null(block);
    assert_non_null(more);
    assert_non_null(sums);
    assert_true(agglo_backend_captures(be));
    for (int i = 0; i < COUNT; i++) {
        ones[i] = 1.0f;
    }
    agglo_upload(be, block, ones, sizeof ones);
    agglo_sum_squares(be, &x, &sum); /* 1000; scratch for this shape exists now */
    agglo_capture_begin(be);
    agglo_axpy(be, 1.0f, &x, &x);    /* 2, 4, 8 */
    agglo_sum_squares(be, &x, &sum); /* + 4000, + 16000, + 64000 */
    graph = agglo_capture_end(be);
    assert_ok(agglo_backend_check(be, &err));
    assert_non_null(graph);
    agglo_residual_bwd(be, &d_y, &d_y, &gamma, &d_h, &d_gamma); /* needs more scratch than the graph knows */
    agglo_graph_replay(be, graph);
    agglo_graph_replay(be, graph);
    agglo_download(be, got, block, sizeof got);
    assert_ok(agglo_backend_check(be, &err));
    for (int i = 0; i < COUNT; i++) {
        assert_true(got[i] == 8.0f);
    }
    agglo_download(be, got, sums, sizeof(float));
    assert_true(got[0] == 85000.0f);
    agglo_graph_free(be, graph);

    agglo_capture_begin(be);
    agglo_axpy(be, 1.0f, &x, &x);
    agglo_download(be, got, block, sizeof got);
    assert_null(agglo_capture_end(be));
    assert_fails(agglo_backend_check(be, &err), AGGLO_E_DEVICE, "download while a step is recorded");
    agglo_download(be, got, block, sizeof got);
    assert_ok(agglo_backend_check(be, &err));
    assert_true(got[0] == 8.0f); /* nothing of it has run */
    agglo_backend_release(be, block);
    agglo_backend_release(be, more);
    agglo_backend_release(be, sums);
    agglo_backend_free(be);
}

#define N 100000

/* Two backends on one GPU, and one that another thread uses than the one that opened it. */
typedef struct user {
    agglo_backend *be;
    float *block, *sum;
    float got;
    bool ok;
} user;

static void *use(void *context)
{
    user *u = context;
    agglo_tensor x = agglo_tensor_1d(u->block, AGGLO_F32, N), sum = agglo_tensor_1d(u->sum, AGGLO_F32, 1);
    agglo_err err = {0};

    agglo_axpy(u->be, 1.0f, &x, &x); /* 2 */
    agglo_sum_squares(u->be, &x, &sum);
    agglo_download(u->be, &u->got, u->sum, sizeof u->got);
    u->ok = agglo_backend_check(u->be, &err) == AGGLO_OK;
    return NULL;
}

static void test_threads(void **state)
{
    user users[2] = {0};
    pthread_t threads[2];
    float *ones = malloc(N * sizeof *ones);
    agglo_err err = {0};

    (void)state;
    assert_non_null(ones);
    for (int i = 0; i < N; i++) {
        ones[i] = 1.0f;
    }
    for (int i = 0; i < 2; i++) {
        users[i].be = open_gpu();
        users[i].block = agglo_backend_alloc(users[i].be, N * sizeof(float), &err);
        users[i].sum = agglo_backend_alloc(users[i].be, sizeof(float), &err);
        assert_non_null(users[i].block);
        assert_non_null(users[i].sum);
        agglo_upload(users[i].be, users[i].block, ones, N * sizeof(float));
    }
    for (int i = 0; i < 2; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, use, &users[i]), 0);
    }
    for (int i = 0; i < 2; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        assert_true(users[i].ok);
        assert_true(users[i].got == 4.0f * N);
        agglo_backend_release(users[i].be, users[i].block);
        agglo_backend_release(users[i].be, users[i].sum);
        agglo_backend_free(users[i].be);
    }
    free(ones);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory),      cmocka_unit_test(test_transfers), cmocka_unit_test(test_failure_is_latched),
        cmocka_unit_test(test_upload_ring), cmocka_unit_test(test_capture),   cmocka_unit_test(test_threads),
    };
    agglo_backend *be;
    agglo_err err = {0};

    if (agglo_backend_cuda_new(&be, 0, &err) != AGGLO_OK) {
        char line[1024];

        agglo_err_line(&err, line, sizeof line);
        if (err.status == AGGLO_E_UNSUPPORTED) {
            test_skip_all(line);
        }
        fprintf(stderr, "%s\n", line);
        return 1;
    }
    agglo_backend_free(be);
    return test_run("unit_tensor_cuda", tests);
}
