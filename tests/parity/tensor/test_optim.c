/* The optimiser over many tensors against the double-precision reference and against itself one tensor at a time: clipping, the guard
 * of gradients that are not finite, BF16 copies, averages; 1, 2 and 3 threads, memory in the steady state. AGGLO_TEST_DEVICE as in
 * test_ops.c.
 */
#include "tests/parity/tensor/test_device.h"
#include "tests/ref/ref.h"
#include "tests/support/support.h"

#include "base/dtype.h"
#include "tensor/async.h"
#include "tensor/ops.h"

#include <math.h>

enum { N = 6, P = 0, G, M, V, COPY, AVERAGE, ARRAYS };

static const int64_t sizes[N] = {1, 5, AGGLO_OPTIM_CHUNK, AGGLO_OPTIM_CHUNK + 1, 3 * AGGLO_OPTIM_CHUNK - 7, 40001};
static const agglo_adamw_config config = {1e-2f, 0.9f, 0.999f, 1e-8f, 0.0f, 0.7f, 3};
static const char *device;

static float decay_of(int i)
{
    return i % 2 == 0 ? 0.05f : 0.0f;
}

static bool has_copy(int i)
{
    return i != 1;
}

static bool has_average(int i)
{
    return i != 3;
}

/* A list on a backend, and what it starts from. */
typedef struct lists {
    agglo_backend *be;
    agglo_optim *optim;
    agglo_optim_entry entries[N];
    float *host[N][ARRAYS];
} lists;

static void draw(lists *l)
{
    for (int i = 0; i < N; i++) {
        test_random random = test_random_new(500 + (uint64_t)i);

        for (int a = 0; a < ARRAYS; a++) {
            l->host[i][a] = malloc((size_t)sizes[i] * sizeof(float));
            assert_non_null(l->host[i][a]);
            test_random_fill(&random, l->host[i][a], (size_t)sizes[i], a == G || a == M ? 0.1f : 1.0f);
            for (int64_t j = 0; a == V && j < sizes[i]; j++) {
                l->host[i][V][j] = fabsf(l->host[i][V][j]);
            }
        }
    }
}

static agglo_tensor on_device(agglo_backend *be, const float *host, agglo_dtype dtype, int64_t n)
{
    agglo_err err = {0};
    agglo_tensor t = agglo_tensor_1d(NULL, dtype, n);

    t.data = agglo_backend_alloc(be, agglo_tensor_bytes(&t), &err);
    assert_non_null(t.data);
    if (dtype == AGGLO_F32) {
        agglo_upload(be, t.data, host, agglo_tensor_bytes(&t));
    }
    return t;
}

static void open_lists(lists *l, int n_threads)
{
    agglo_err err = {0};

    memset(l, 0, sizeof *l);
    draw(l);
    assert_ok(agglo_backend_open(&l->be, device, n_threads, &err));
    for (int i = 0; i < N; i++) {
        agglo_optim_entry *e = &l->entries[i];

        e->p = on_device(l->be, l->host[i][P], AGGLO_F32, sizes[i]);
        e->g = on_device(l->be, l->host[i][G], AGGLO_F32, sizes[i]);
        e->m = on_device(l->be, l->host[i][M], AGGLO_F32, sizes[i]);
        e->v = on_device(l->be, l->host[i][V], AGGLO_F32, sizes[i]);
        if (has_copy(i)) {
            e->copy = on_device(l->be, NULL, AGGLO_BF16, sizes[i]);
        }
        if (has_average(i)) {
            e->average = on_device(l->be, l->host[i][AVERAGE], AGGLO_F32, sizes[i]);
        }
        e->weight_decay = decay_of(i);
    }
    assert_ok(agglo_optim_new(&l->optim, l->be, l->entries, N, &err));
}

static void close_lists(lists *l)
{
    agglo_optim_free(l->optim);
    for (int i = 0; i < N; i++) {
        agglo_optim_entry *e = &l->entries[i];

        agglo_backend_release(l->be, e->p.data);
        agglo_backend_release(l->be, e->g.data);
        agglo_backend_release(l->be, e->m.data);
        agglo_backend_release(l->be, e->v.data);
        agglo_backend_release(l->be, e->copy.data);
        agglo_backend_release(l->be, e->average.data);
        for (int a = 0; a < ARRAYS; a++) {
            free(l->host[i][a]);
        }
    }
    agglo_backend_free(l->be);
}

static void *fetched(lists *l, const agglo_tensor *t)
{
    void *out = malloc(agglo_tensor_bytes(t));

    assert_non_null(out);
    agglo_download(l->be, out, t->data, agglo_tensor_bytes(t));
    return out;
}

static double *doubles(const float *x, int64_t n)
{
    double *out = malloc((size_t)n * sizeof *out);

    assert_non_null(out);
    for (int64_t i = 0; i < n; i++) {
        out[i] = (double)x[i];
    }
    return out;
}

static void near(const char *what, int i, int64_t n, const float *got, const double *ref)
{
    double worst = 0.0, most = 0.0;

    for (int64_t j = 0; j < n; j++) {
        double d = fabs((double)got[j] - ref[j]);

        worst = !(d <= worst) ? d : worst;
        most = fmax(most, fabs(ref[j]));
    }
    if (!(worst <= 1e-5 * most)) {
        fail_msg("%s of tensor %d is off by %.3g of its largest value", what, i, worst / most);
    }
}

static double ref_norm(const lists *l)
{
    double sum = 0.0;

    for (int i = 0; i < N; i++) {
        double *g = doubles(l->host[i][G], sizes[i]);

        sum += ref_sum_squares(sizes[i], g);
        free(g);
    }
    return sqrt(sum);
}

/* Clipped to less than the norm, to more, and not at all. */
static void test_step(void **state)
{
    static const float max_norms[] = {2.0f, 1e6f, 0.0f};

    (void)state;
    for (size_t k = 0; k < AGGLO_COUNT(max_norms); k++) {
        agglo_grad_state health = {0};
        agglo_err err = {0};
        double norm, scale = (double)config.grad_scale;
        lists l;

        open_lists(&l, 2);
        norm = ref_norm(&l);
        assert_true(0.7 * norm > 2.0);
        agglo_grad_norm(l.be, l.optim);
        agglo_adamw_many(l.be, &config, max_norms[k], true, l.optim);
        agglo_ema(l.be, 0.75f, l.optim);
        agglo_grad_state_read(l.be, l.optim, &health);
        assert_ok(agglo_backend_check(l.be, &err));
        assert_true(health.first_bad == -1 && fabs(health.norm - norm) < 1e-6 * norm);
        scale = max_norms[k] > 0.0f && scale * norm > (double)max_norms[k] ? (double)max_norms[k] / norm : scale;
        for (int i = 0; i < N; i++) {
            const agglo_optim_entry *e = &l.entries[i];
            ref_adamw_config ref = {(double)config.lr,  (double)config.beta1, (double)config.beta2,
                                    (double)config.eps, (double)decay_of(i),  scale,
                                    config.step};
            double *p = doubles(l.host[i][P], sizes[i]), *g = doubles(l.host[i][G], sizes[i]),
                   *m = doubles(l.host[i][M], sizes[i]), *v = doubles(l.host[i][V], sizes[i]);
            float *got_p = fetched(&l, &e->p), *got_m = fetched(&l, &e->m), *got_v = fetched(&l, &e->v);

            ref_adamw(&ref, sizes[i], p, g, m, v);
            near("the parameter", i, sizes[i], got_p, p);
            near("the first moment", i, sizes[i], got_m, m);
            near("the second moment", i, sizes[i], got_v, v);
            if (has_copy(i)) {
                uint16_t *copy = fetched(&l, &e->copy);

                for (int64_t j = 0; j < sizes[i]; j++) {
                    assert_int_equal(copy[j], agglo_f32_to_bf16(got_p[j]));
                }
                free(copy);
            }
            if (has_average(i)) {
                double *average = doubles(l.host[i][AVERAGE], sizes[i]);
                float *got = fetched(&l, &e->average);

                for (int64_t j = 0; j < sizes[i]; j++) {
                    average[j] = 0.75 * average[j] + 0.25 * p[j];
                }
                near("the average", i, sizes[i], got, average);
                free(average);
                free(got);
            }
            free(p);
            free(g);
            free(m);
            free(v);
            free(got_p);
            free(got_m);
            free(got_v);
        }
        close_lists(&l);
    }
}

/* A list gives the bytes of its tensors updated one by one, on any number of threads, and allocates nothing. */
static void test_same_bytes(void **state)
{
    agglo_grad_state first = {0};
    agglo_err err = {0};

    (void)state;
    for (int n_threads = 1; n_threads <= 3; n_threads++) {
        agglo_grad_state health;
        int64_t before;
        lists l, single;

        open_lists(&l, n_threads);
        open_lists(&single, 1);
        before = agglo_alloc_counts().n_total;
        agglo_grad_norm(l.be, l.optim);
        agglo_adamw_many(l.be, &config, 0.0f, false, l.optim);
        agglo_ema(l.be, 0.5f, l.optim);
        agglo_grad_state_read(l.be, l.optim, &health);
        assert_int_equal(agglo_alloc_counts().n_total, before);
        first = n_threads == 1 ? health : first;
        assert_memory_equal(&first, &health, sizeof first);
        for (int i = 0; i < N; i++) {
            agglo_adamw_config one = config;
            agglo_optim_entry *e = &single.entries[i];
            agglo_tensor *many[3] = {&l.entries[i].p, &l.entries[i].m, &l.entries[i].v},
                         *alone[3] = {&e->p, &e->m, &e->v};

            one.weight_decay = decay_of(i);
            agglo_adamw(single.be, &one, &e->p, &e->g, &e->m, &e->v);
            for (int a = 0; a < 3; a++) {
                void *x = fetched(&l, many[a]), *y = fetched(&single, alone[a]);

                assert_memory_equal(x, y, agglo_tensor_bytes(many[a]));
                free(x);
                free(y);
            }
        }
        assert_ok(agglo_backend_check(l.be, &err));
        assert_ok(agglo_backend_check(single.be, &err));
        close_lists(&l);
        close_lists(&single);
    }
}

/* One NaN, or one infinity: the first tensor that has one is named, nothing changes; the next sound gradient is used again. */
static void test_guard(void **state)
{
    static const float bad[] = {(float)NAN, (float)INFINITY, -(float)INFINITY};
    agglo_err err = {0};

    (void)state;
    for (size_t k = 0; k < AGGLO_COUNT(bad); k++) {
        agglo_grad_state health;
        lists l;

        open_lists(&l, 2);
        for (int i = 2; i < N; i += 2) {
            agglo_upload(l.be, (float *)l.entries[i].g.data + sizes[i] - 1, &bad[k], sizeof bad[k]);
        }
        agglo_grad_norm(l.be, l.optim);
        agglo_adamw_many(l.be, &config, 1.0f, true, l.optim);
        agglo_grad_state_read(l.be, l.optim, &health);
        assert_true(health.first_bad == 2 && !isfinite(health.norm));
        for (int i = 0; i < N; i++) {
            const agglo_tensor *t[3] = {&l.entries[i].p, &l.entries[i].m, &l.entries[i].v};
            const int array[3] = {P, M, V};

            for (int a = 0; a < 3; a++) {
                void *got = fetched(&l, t[a]);

                assert_memory_equal(got, l.host[i][array[a]], agglo_tensor_bytes(t[a]));
                free(got);
            }
            agglo_upload(l.be, l.entries[i].g.data, l.host[i][G], agglo_tensor_bytes(&l.entries[i].g));
        }
        agglo_grad_norm(l.be, l.optim);
        agglo_adamw_many(l.be, &config, 1.0f, true, l.optim);
        agglo_grad_state_read(l.be, l.optim, &health);
        assert_true(health.first_bad == -1 && isfinite(health.norm));
        for (int i = 0; i < N; i++) {
            float *got = fetched(&l, &l.entries[i].p);

            assert_true(isfinite(got[0]) && got[0] != l.host[i][P][0]);
            free(got);
        }
        assert_ok(agglo_backend_check(l.be, &err));
        close_lists(&l);
    }
}

/* The step's numbers on the device: the bytes of those from the host. */
static void test_numbers_on_device(void **state)
{
    static const float max_norms[] = {2.0f, 0.0f};

    (void)state;
    for (int k = 0; k < 4; k++) {
        float max_norm = max_norms[k / 2];
        bool guarded = k % 2 == 0;
        agglo_adamw_numbers numbers = agglo_adamw_numbers_of(&config, guarded ? max_norm : 0.0f);
        agglo_tensor at;
        agglo_err err = {0};
        lists l, host;

        open_lists(&l, 2);
        open_lists(&host, 2);
        at = on_device(l.be, (const float *)&numbers, AGGLO_F32, AGGLO_ADAMW_NUMBERS);
        agglo_grad_norm(l.be, l.optim);
        agglo_adamw_many_at(l.be, &at, guarded, l.optim);
        agglo_grad_norm(host.be, host.optim);
        agglo_adamw_many(host.be, &config, numbers.max_norm, guarded, host.optim);
        for (int i = 0; i < N; i++) {
            const agglo_optim_entry *a = &l.entries[i], *b = &host.entries[i];
            const agglo_tensor *x[4] = {&a->p, &a->m, &a->v, &a->copy}, *y[4] = {&b->p, &b->m, &b->v, &b->copy};

            for (int j = 0; j < (has_copy(i) ? 4 : 3); j++) {
                void *got = fetched(&l, x[j]), *expected = fetched(&host, y[j]);

                assert_memory_equal(got, expected, agglo_tensor_bytes(x[j]));
                free(got);
                free(expected);
            }
        }
        assert_ok(agglo_backend_check(l.be, &err));
        assert_ok(agglo_backend_check(host.be, &err));
        agglo_backend_release(l.be, at.data);
        close_lists(&l);
        close_lists(&host);
    }
}

/* From a bad gradient, or a bad value beside a sound one, on nothing changes, however sound what follows is, until it is released; the state
 * names what came first. Fetched without waiting, it is the same. */
static void test_hold(void **state)
{
    static const float sound[3] = {1.0f, -2.0f, 0.0f};
    static const struct {
        int bad_gradient; /* -1: none */
        bool bad_value;
        int64_t expected;
    } table[] = {{3, false, 3}, {-1, true, N}, {4, true, 4}};
    const float nan = (float)NAN;

    (void)state;
    for (size_t k = 0; k < AGGLO_COUNT(table); k++) {
        agglo_grad_state health, *pinned;
        agglo_event *done;
        agglo_tensor values;
        agglo_err err = {0};
        float *got;
        int at = table[k].bad_gradient;
        lists l;

        open_lists(&l, 2);
        values = on_device(l.be, sound, AGGLO_F32, 3);
        pinned = agglo_pinned_alloc(l.be, sizeof *pinned, &err);
        done = agglo_event_new(l.be, &err);
        assert_non_null(pinned);
        assert_non_null(done);
        for (int step = 0; step < 3; step++) {
            bool bad = step == 1;

            if (at >= 0) {
                agglo_upload(l.be, l.entries[at].g.data, bad ? &nan : l.host[at][G], sizeof nan);
            }
            agglo_upload(l.be, (float *)values.data + 2, bad && table[k].bad_value ? &nan : &sound[2], sizeof nan);
            agglo_grad_norm(l.be, l.optim);
            agglo_grad_hold(l.be, &values, l.optim);
            agglo_adamw_many(l.be, &config, 1.0f, true, l.optim);
            if (step == 0) { /* a sound step: what is held from here on */
                for (int i = 0; i < N; i++) {
                    got = fetched(&l, &l.entries[i].p);
                    assert_true(got[0] != l.host[i][P][0]);
                    memcpy(l.host[i][P], got, (size_t)sizes[i] * sizeof *got);
                    free(got);
                }
            }
            agglo_grad_state_fetch(l.be, l.optim, pinned, done);
            agglo_event_wait(l.be, done);
            assert_ok(agglo_backend_peek(l.be, &err));
            agglo_grad_state_read(l.be, l.optim, &health);
            assert_memory_equal(&health, pinned, sizeof health);
            assert_int_equal(health.first_bad, step == 0 ? -1 : table[k].expected);
        }
        for (int turn = 0; turn < 2; turn++) {
            for (int i = 0; i < N; i++) {
                got = fetched(&l, &l.entries[i].p);
                assert_int_equal(memcmp(got, l.host[i][P], (size_t)sizes[i] * sizeof *got) == 0, turn == 0);
                free(got);
            }
            agglo_grad_release(l.be, l.optim);
            agglo_grad_norm(l.be, l.optim);
            agglo_grad_hold(l.be, &values, l.optim);
            agglo_adamw_many(l.be, &config, 1.0f, true, l.optim);
        }
        assert_ok(agglo_backend_check(l.be, &err));
        agglo_event_free(l.be, done);
        agglo_pinned_release(l.be, pinned);
        agglo_backend_release(l.be, values.data);
        close_lists(&l);
    }
}

/* Every allocation may fail. */
static void test_memory(void **state)
{
    agglo_optim *optim;
    agglo_err err = {0};
    lists l;
    int n_failed = 0;

    (void)state;
    open_lists(&l, 1);
    for (;; n_failed++) {
        agglo_alloc_fail_after(n_failed);
        if (agglo_optim_new(&optim, l.be, l.entries, N, &err) == AGGLO_OK) {
            break;
        }
        agglo_alloc_fail_after(-1);
        assert_true(optim == NULL && err.status == AGGLO_E_MEMORY);
        agglo_err_clear(&err);
    }
    agglo_alloc_fail_after(-1);
    agglo_optim_free(optim);
    assert_true(n_failed >= 2);
    close_lists(&l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_step),  cmocka_unit_test(test_same_bytes),
        cmocka_unit_test(test_guard), cmocka_unit_test(test_numbers_on_device),
        cmocka_unit_test(test_hold),  cmocka_unit_test(test_memory),
    };

    device = test_device();
    return test_run("parity_tensor_optim", tests);
}
