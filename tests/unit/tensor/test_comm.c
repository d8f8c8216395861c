/* Collectives over the loopback: ranks that are threads, each with a backend of its own. */
#include "tests/support/support.h"

#include "base/alloc.h"
#include "base/stop.h"
#include "tensor/comm.h"

#include <math.h>
#include <pthread.h>

enum { MOST = 4 };

typedef struct rank {
    pthread_t thread;
    agglo_comm *comm;
    void (*body)(struct rank *r);
    agglo_backend *be;
    agglo_status status, second; /* of what was meant to fail */
    float out[64];
    agglo_err err;
} rank;

static void *rank_main(void *context)
{
    rank *r = context;

    agglo_stop_block_signals();
    r->body(r);
    return NULL;
}

/* Run `body` on every rank of a group; what they leave in `ranks` is the caller's to look at. */
static void run_ranks(int size, void (*body)(rank *r), rank *ranks)
{
    agglo_comm *ends[MOST];
    agglo_err err = {0};

    assert_ok(agglo_comm_loopback_new(ends, size, &err));
    for (int i = 0; i < size; i++) {
        memset(&ranks[i], 0, sizeof ranks[i]);
        ranks[i].comm = ends[i];
        ranks[i].body = body;
        assert_ok(agglo_backend_cpu_new(&ranks[i].be, 1, &err));
    }
    for (int i = 0; i < size; i++) {
        assert_int_equal(pthread_create(&ranks[i].thread, NULL, rank_main, &ranks[i]), 0);
    }
    for (int i = 0; i < size; i++) {
        pthread_join(ranks[i].thread, NULL);
        agglo_backend_free(ranks[i].be);
    }
}

static void sound(const rank *ranks, int size)
{
    for (int i = 0; i < size; i++) {
        char line[1024];

        if (ranks[i].err.status != AGGLO_OK) {
            fail_msg("rank %d: %s", i, agglo_err_line(&ranks[i].err, line, sizeof line));
        }
    }
}

static void leave(rank *r)
{
    agglo_comm_free(r->comm);
}

/* ---- single collectives, many times, so that a race would show ---- */

static void collectives(rank *r)
{
    float data[33];
    agglo_tensor t = agglo_tensor_1d(data, AGGLO_F32, 33); /* a CPU backend's memory is the host's */
    double values[2];

    for (int round = 0; round < 200 && r->err.status == AGGLO_OK; round++) {
        for (int i = 0; i < 33; i++) {
            data[i] = (float)(r->comm->rank + 1) * 0.1f + (float)(i * round);
        }
        agglo_comm_all_reduce(r->comm, r->be, &t, &r->err);
        memcpy(r->out, data, 33 * sizeof *data);
        values[0] = 1.0;
        values[1] = (double)r->comm->rank;
        agglo_comm_all_reduce_host(r->comm, values, 2, &r->err);
        r->out[40] = (float)values[0];
        r->out[41] = (float)values[1];
        data[0] = (float)(r->comm->rank * 10 + round);
        agglo_comm_broadcast(r->comm, r->be, &t, round % r->comm->size, &r->err);
        r->out[42] = data[0];
        agglo_comm_barrier(r->comm, &r->err);
    }
    agglo_comm_barrier(r->comm, &r->err); /* or one would leave while others come to the last */
    leave(r);
}

static void test_collectives(void **state)
{
    rank ranks[MOST];

    (void)state;
    for (int size = 1; size <= MOST; size++) {
        run_ranks(size, collectives, ranks);
        sound(ranks, size);
        for (int r = 0; r < size; r++) {
            assert_memory_equal(ranks[r].out, ranks[0].out, sizeof ranks[0].out);
            assert_true(ranks[r].out[40] == (float)size && ranks[r].out[41] == (float)(size * (size - 1) / 2));
            assert_true(ranks[r].out[42] == (float)(199 % size * 10 + 199));
        }
        for (int i = 0; i < 33; i++) {
            double sum = 0.0;

            for (int r = 0; r < size; r++) {
                sum += (double)((float)(r + 1) * 0.1f + (float)(i * 199));
            }
            assert_true(ranks[0].out[i] == (float)sum);
        }
    }
}

/* ---- buckets ---- */

static const int64_t sizes[] = {1, 7, 20, 3, 2};

enum { N = AGGLO_COUNT(sizes), ALL = 33 };

static float value_of(int who, int i)
{
    return (float)(who + 1) + 0.25f * (float)i;
}

/* The tensors lie apart, one element between them that nobody may touch. */
static void fill(float *data, agglo_tensor *tensors, int who)
{
    int at = 0, k = 0;

    for (int i = 0; i < N; i++) {
        tensors[i] = agglo_tensor_1d(data + at, AGGLO_F32, sizes[i]);
        for (int64_t j = 0; j < sizes[i]; j++) {
            data[at++] = value_of(who, k++);
        }
        data[at++] = -77.0f;
    }
}

static void keep(const float *data, float *out)
{
    for (int i = 0, at = 0, k = 0; i < N; i++, at++) {
        for (int64_t j = 0; j < sizes[i]; j++) {
            out[k++] = data[at++];
        }
        out[ALL] += data[at] == -77.0f ? 0.0f : 1.0f;
    }
}

static size_t bucket_bytes; /* of the test that runs */
static enum { SUM, MEAN, NOTHING, ROOT } what;

static void buckets(rank *r)
{
    agglo_tensor tensors[N];
    float data[ALL + N];
    agglo_buckets *b = NULL;

    fill(data, tensors, r->comm->rank);
    if (agglo_buckets_new(&b, r->be, tensors, N, bucket_bytes, &r->err) == AGGLO_OK) {
        switch (what) {
        case SUM:
            agglo_buckets_sum(b, r->comm, 1.0f, &r->err);
            break;
        case MEAN:
            agglo_buckets_mean(b, r->comm, (double)(3 * r->comm->rank), &r->err);
            break;
        case NOTHING:
            agglo_buckets_mean(b, r->comm, 0.0, &r->err);
            break;
        case ROOT:
            agglo_buckets_broadcast(b, r->comm, r->comm->size - 1, &r->err);
            break;
        }
        keep(data, r->out);
        if (r->err.status == AGGLO_OK) {
            agglo_comm_barrier(r->comm, &r->err);
        }
    }
    agglo_buckets_free(b);
    leave(r);
}

/* Buckets of 8, 40 and 4,000 bytes: tensors are cut, several share one, all share one. */
static void test_buckets(void **state)
{
    static const size_t bytes[] = {8, 40, 4000};
    rank ranks[MOST];

    (void)state;
    for (size_t k = 0; k < AGGLO_COUNT(bytes); k++) {
        for (int size = 2; size <= MOST; size++) {
            for (what = SUM; what <= ROOT; what++) {
                double weights = 1.5 * size * (size - 1);

                bucket_bytes = bytes[k];
                run_ranks(size, buckets, ranks);
                sound(ranks, size);
                for (int i = 0; i < ALL; i++) {
                    double sum = 0.0, mean = 0.0, expected;

                    for (int r = 0; r < size; r++) {
                        sum += (double)value_of(r, i);
                        mean += 3.0 * r * (double)value_of(r, i) / weights;
                    }
                    expected = what == SUM    ? sum
                               : what == MEAN ? mean
                               : what == ROOT ? (double)value_of(size - 1, i)
                                              : 0.0;
                    if (!(fabs((double)ranks[0].out[i] - expected) <= 1e-6 * fabs(expected))) {
                        fail_msg("bucket of %zu, %d ranks, element %d is %g, expected %g", bytes[k], size, i,
                                 (double)ranks[0].out[i], expected);
                    }
                }
                for (int r = 0; r < size; r++) {
                    assert_memory_equal(ranks[r].out, ranks[0].out, ALL * sizeof(float));
                    assert_true(ranks[r].out[ALL] == 0.0f); /* nothing else was touched */
                }
            }
        }
    }
}

/* ---- failures ---- */

/* Rank 1 goes away: the others do not wait for ever, now or later. */
static void deserted(rank *r)
{
    agglo_err second = {0};

    if (r->comm->rank != 1) {
        double x = 1.0;

        r->status = agglo_comm_all_reduce_host(r->comm, &x, 1, &r->err);
        r->second = agglo_comm_barrier(r->comm, &second);
    }
    leave(r);
}

/* Rank 1 comes with another size: everyone learns it. */
static void mismatched(rank *r)
{
    double x[2] = {1.0, 2.0};

    r->status = agglo_comm_all_reduce_host(r->comm, x, r->comm->rank == 1 ? 2 : 1, &r->err);
    leave(r);
}

static void test_failures(void **state)
{
    rank ranks[MOST];

    (void)state;
    run_ranks(3, deserted, ranks);
    assert_int_equal(ranks[0].status, AGGLO_E_DEVICE);
    assert_int_equal(ranks[2].status, AGGLO_E_DEVICE);
    assert_true(ranks[0].second == AGGLO_E_DEVICE && ranks[2].second == AGGLO_E_DEVICE);
    assert_non_null(strstr(ranks[0].err.why, "left the group"));
    assert_non_null(strstr(ranks[2].err.where, "rank 2 of 3"));
    run_ranks(3, mismatched, ranks);
    for (int r = 0; r < 3; r++) {
        assert_int_equal(ranks[r].status, AGGLO_E_MISMATCH);
    }
}

static void test_memory(void **state)
{
    agglo_comm *ends[MOST];
    agglo_err err = {0};
    int n_failed = 0;

    (void)state;
    for (;; n_failed++) {
        agglo_alloc_fail_after(n_failed);
        if (agglo_comm_loopback_new(ends, 3, &err) == AGGLO_OK) {
            break;
        }
        agglo_alloc_fail_after(-1);
        assert_true(err.status == AGGLO_E_MEMORY && ends[0] == NULL);
        agglo_err_clear(&err);
    }
    agglo_alloc_fail_after(-1);
    assert_int_equal(n_failed, 5);
    for (int r = 0; r < 3; r++) {
        agglo_comm_free(ends[r]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_collectives),
        cmocka_unit_test(test_buckets),
        cmocka_unit_test(test_failures),
        cmocka_unit_test(test_memory),
    };

    return test_run("unit_comm", tests);
}
