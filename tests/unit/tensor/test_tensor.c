/* Random numbers, elementary functions, backends, slabs and parameters. */
#include "tests/support/support.h"

#include "base/safetensors.h"
#include "tensor/async.h"
#include "tensor/math_inline.h"
#include "tensor/param.h"
#include "tensor/slab.h"

#include <math.h>

/* Random123's known-answer vectors (kat_vectors, philox4x32 10). */
static void test_philox_known_answers(void **state)
{
    static const struct {
        uint32_t counter[4], key[2], out[4];
    } known[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };

    (void)state;
    for (size_t i = 0; i < AGGLO_COUNT(known); i++) {
        uint64_t key = (uint64_t)known[i].key[1] << 32 | known[i].key[0];
        agglo_philox out =
            agglo_philox4x32(key, known[i].counter[0], known[i].counter[1], known[i].counter[2], known[i].counter[3]);

        assert_memory_equal(out.v, known[i].out, sizeof out.v);
    }
}

static void test_uniform_ranges(void **state)
{
    (void)state;
    assert_true(agglo_uniform01(0) == 0.0);
    assert_true(agglo_uniform01(UINT32_MAX) < 1.0);
    assert_int_equal(agglo_uniform_int(UINT32_MAX, 7), 6);
    assert_int_equal(agglo_uniform_int(0, 7), 0);
}

/* The published check values, and accuracy over the whole range against libm in double. */
static void test_elementary_functions(void **state)
{
    double worst_exp = 0.0, worst_cdf = 0.0;

    (void)state;
    assert_float_equal(agglo_gelu(1.5f), 1.3997892f, 2e-7f);
    assert_float_equal(agglo_gelu(-0.7f), -0.1693746f, 1e-7f);
    assert_float_equal(agglo_quick_gelu(1.5f), 1.3916622f, 2e-7f);
    assert_float_equal(agglo_quick_gelu(-0.7f), -0.1631060f, 1e-7f);
    assert_true(agglo_gelu(0.0f) == 0.0f);
    assert_float_equal(agglo_silu(1.0f), 0.7310586f, 2e-7f);
    for (int i = -870000; i <= 880000; i++) {
        float x = (float)i * 1e-4f;
        double exact = exp((double)x);

        worst_exp = fmax(worst_exp, fabs((double)agglo_exp(x) - exact) / exact);
    }
    for (int i = -120000; i <= 120000; i++) {
        float x = (float)i * 1e-4f;

        worst_cdf = fmax(worst_cdf, fabs((double)agglo_normal_cdf(x) - 0.5 * erfc(-(double)x * M_SQRT1_2)));
    }
    printf("exp: relative error %.2g; normal cdf: absolute error %.2g\n", worst_exp, worst_cdf);
    assert_true(worst_exp < 1.2e-7);
    assert_true(worst_cdf < 1.2e-7);
    assert_true(isnan(agglo_exp(NAN)) && isnan(agglo_gelu(NAN)) && isnan(agglo_silu(NAN)) &&
                isnan(agglo_gelu_slope(NAN)));
    assert_true(agglo_exp(-1e30f) > 0.0f && agglo_exp(-1e30f) < 2e-38f);
    assert_true(isfinite(agglo_exp(1e30f)));
    assert_true(agglo_gelu(100.0f) == 100.0f && fabsf(agglo_gelu(-100.0f)) < 1e-15f);
}

static void test_backend_by_name(void **state)
{
    agglo_backend *be = NULL;
    agglo_err err = {0};

    (void)state;
    assert_ok(agglo_backend_open(&be, "cpu", 2, &err));
    assert_non_null(strstr(agglo_backend_describe(be), "2 threads"));
    assert_int_equal(agglo_pool_threads(agglo_backend_pool(be)), 2);
    assert_true(agglo_backend_supports(be, AGGLO_F32));
    assert_false(agglo_backend_supports(be, AGGLO_U8));
    agglo_backend_free(be);
    assert_ok(agglo_backend_open(&be, "auto", 1, &err));
    agglo_backend_free(be);
    assert_fails(agglo_backend_open(&be, "gpu", 1, &err), AGGLO_E_CONFIG, "cannot open device: unknown device");
    assert_null(be);
    assert_fails(agglo_backend_open(&be, "cuda:", 1, &err), AGGLO_E_CONFIG, "cuda:");
    assert_fails(agglo_backend_open(&be, "cuda:x", 1, &err), AGGLO_E_CONFIG, "cuda:x");
    agglo_backend_free(NULL);

    assert_int_equal(setenv("AGGLO_CPU_ISA", "generic", 1), 0);
    assert_ok(agglo_backend_open(&be, "cpu", 1, &err));
    assert_string_equal(agglo_backend_describe(be), "cpu (generic, 1 thread)");
    agglo_backend_free(be);
    assert_int_equal(setenv("AGGLO_CPU_ISA", "z80", 1), 0);
    assert_fails(agglo_backend_open(&be, "cpu", 1, &err), AGGLO_E_CONFIG, "AGGLO_CPU_ISA is \"z80\"");
    assert_int_equal(unsetenv("AGGLO_CPU_ISA"), 0);
}

/* What a build says of its CUDA backend is what it does: open a GPU, or give the reason in one line. */
static void test_cuda_by_name(void **state)
{
    static const char no_device[] = "built in, no device: ";
    agglo_backend *be = NULL;
    agglo_err err = {0};
    char about[320], line[1024], expected[1024];

    (void)state;
    agglo_backend_cuda_describe(about, sizeof about);
    printf("cuda: %s\n", about);
    if (strcmp(about, "not built in") == 0) {
        assert_fails(agglo_backend_open(&be, "cuda", 1, &err), AGGLO_E_CONFIG, "this build has no CUDA backend (cuda)");
    } else if (strncmp(about, no_device, strlen(no_device)) == 0) {
        assert_int_equal(agglo_backend_open(&be, "cuda", 1, &err), AGGLO_E_CONFIG);
        snprintf(expected, sizeof expected, "cannot open the CUDA backend: %s (cuda)", about + strlen(no_device));
        assert_string_equal(agglo_err_line(&err, line, sizeof line), expected);
        assert_null(strchr(line, '\n'));
        agglo_err_clear(&err);
    } else {
        assert_non_null(strstr(about, "built in, "));
        assert_ok(agglo_backend_open(&be, "cuda:0", 1, &err));
        assert_memory_equal(agglo_backend_describe(be), "cuda:0 (", 8);
        assert_null(agglo_backend_pool(be));
        agglo_backend_free(be);
    }
    assert_fails(agglo_backend_open(&be, "cuda:999", 1, &err), AGGLO_E_CONFIG, "(cuda:999)");
    assert_null(be);
    agglo_backend_free(NULL);
}

static void test_memory(void **state)
{
    agglo_backend *be = NULL;
    agglo_err err = {0};
    char text[8] = "feature", back[8];
    uint8_t *block;

    (void)state;
    assert_ok(agglo_backend_open(&be, "cpu", 1, &err));
    for (size_t n = 0; n < 1000; n += 111) {
        block = agglo_backend_alloc(be, n, &err);
        assert_non_null(block);
        assert_int_equal((uintptr_t)block % 256, 0);
        for (size_t i = 0; i < n; i++) {
            assert_int_equal(block[i], 0);
        }
        agglo_backend_release(be, block);
    }
    block = agglo_backend_alloc(be, 16, &err);
    agglo_upload(be, block, text, 8);
    agglo_copy(be, block + 8, block, 8);
    agglo_zero(be, block, 8);
    agglo_download(be, back, block + 8, 8);
    assert_string_equal(back, text);
    assert_int_equal(block[0], 0);
    agglo_backend_release(be, block);
    agglo_backend_release(be, NULL);
    assert_null(agglo_backend_alloc(be, SIZE_MAX - 8, &err));
    assert_int_equal(err.status, AGGLO_E_MEMORY);
    agglo_backend_free(be);
}

/* The first failure stays until it is asked for; operators do nothing meanwhile. */
static void test_failure_is_latched(void **state)
{
    float x[8] = {1, 2, 3, 4, 5, 6, 7, 8}, out[1] = {0}, y[8] = {0};
    agglo_tensor tx = agglo_tensor_1d(x, AGGLO_F32, 8), ty = agglo_tensor_1d(y, AGGLO_F32, 8);
    agglo_tensor sum = agglo_tensor_1d(out, AGGLO_F32, 1);
    agglo_backend *be = NULL;
    agglo_err err = {0};

    (void)state;
    assert_ok(agglo_backend_open(&be, "cpu", 1, &err));
    agglo_alloc_fail_after(0);
    agglo_sum_squares(be, &tx, &sum); /* its scratch cannot be had */
    agglo_alloc_fail_after(-1);
    agglo_axpy(be, 1.0f, &tx, &ty);
    assert_true(y[0] == 0.0f);
    assert_fails(agglo_backend_check(be, &err), AGGLO_E_MEMORY, "scratch");
    assert_ok(agglo_backend_check(be, &err));
    agglo_sum_squares(be, &tx, &sum);
    assert_true(out[0] == 204.0f);
    assert_ok(agglo_backend_check(be, &err));
    agglo_backend_free(be);
}

static void test_every_allocation_may_fail(void **state)
{
    agglo_err err = {0};
    int64_t n = 0;

    (void)state;
    for (;; n++) {
        agglo_backend *be = NULL;
        agglo_params *params = NULL;
        agglo_status status;

        agglo_alloc_fail_after(n);
        status = agglo_backend_open(&be, "cpu", 2, &err);
        if (status == AGGLO_OK) {
            status = agglo_params_new(&params, be, true, &err);
        }
        for (int i = 0; status == AGGLO_OK && i < 70; i++) {
            char name[16];

            snprintf(name, sizeof name, "p%d", i);
            if (agglo_params_add(params, name, 2, (const int64_t[]){3, 5}, AGGLO_INIT_ZERO, 0, true, &err) == NULL) {
                status = err.status;
            }
        }
        if (status == AGGLO_OK) {
            status = agglo_params_allocate(params, &err);
        }
        agglo_alloc_fail_after(-1);
        agglo_params_free(params);
        agglo_backend_free(be);
        if (status == AGGLO_OK) {
            break;
        }
        assert_int_equal(status, AGGLO_E_MEMORY);
        assert_int_equal(err.status, AGGLO_E_MEMORY);
        agglo_err_clear(&err);
    }
    assert_true(n > 70);
}

static void test_slab(void **state)
{
    agglo_backend *be = NULL;
    agglo_slab measured, slab = {0};
    agglo_err err = {0};

    (void)state;
    assert_ok(agglo_backend_open(&be, "cpu", 1, &err));
    agglo_slab_free(&slab);
    measured = agglo_slab_measure(be);
    for (int pass = 0; pass < 2; pass++) {
        agglo_slab *s = pass == 0 ? &measured : &slab;
        agglo_tensor a, b, c;
        size_t mark;

        if (pass == 1) {
            assert_ok(agglo_slab_allocate(&slab, &measured, &err));
        }
        a = agglo_slab_take(s, AGGLO_F32, 2, (const int64_t[]){3, 5});
        mark = agglo_slab_mark(s);
        b = agglo_slab_take(s, AGGLO_BF16, 1, (const int64_t[]){1000});
        agglo_slab_rewind(s, mark);
        c = agglo_slab_take(s, AGGLO_F32, 1, (const int64_t[]){7});
        assert_int_equal(a.shape[1], 5);
        assert_int_equal(b.dtype, AGGLO_BF16);
        assert_int_equal(measured.peak, 256 + 2048);
        assert_int_equal(s->used, 512);
        if (pass == 0) {
            assert_null(a.data);
        } else {
            assert_int_equal((uintptr_t)a.data % 256, 0);
            assert_ptr_equal(b.data, c.data);
            assert_ptr_equal((uint8_t *)a.data + 256, b.data);
        }
    }
    agglo_slab_free(&slab);
    agglo_backend_free(be);
}

/* A file of one tensor "w" (or what `header` says) in memory. */
typedef struct file_bytes {
    uint8_t bytes[1024];
    size_t n;
} file_bytes;

static agglo_safetensors *file_of(file_bytes *file, const char *header, const void *data, size_t n_data)
{
    agglo_safetensors *st = NULL;
    agglo_err err = {0};
    size_t n = strlen(header), padded = (n + 7) / 8 * 8;

    assert_true(8 + padded + n_data <= sizeof file->bytes);
    agglo_put_le64(file->bytes, padded);
    memset(file->bytes + 8, ' ', padded);
    memcpy(file->bytes + 8, header, n);
    memcpy(file->bytes + 8 + padded, data, n_data);
    file->n = 8 + padded + n_data;
    assert_ok(agglo_safetensors_parse(&st, (agglo_bytes){file->bytes, file->n}, "weights", &err));
    return st;
}

static void test_params_init(void **state)
{
    enum { N = 100000 };
    static const struct {
        agglo_init init;
        float scale;
        double mean, sigma, least, most;
    } kinds[] = {
        {AGGLO_INIT_ZERO, 5, 0, 0, 0, 0},
        {AGGLO_INIT_ONE, 5, 1, 0, 1, 1},
        {AGGLO_INIT_CONST, 0.25f, 0.25, 0, 0.25, 0.25},
        {AGGLO_INIT_NORMAL, 0.5f, 0, 0.5, -3, 3},
        {AGGLO_INIT_TRUNC_NORMAL, 1.0f, 0, 0.8796, -2, 2}, /* sigma of a normal cut at two sigmas */
        {AGGLO_INIT_UNIFORM, 0.5f, 0, 0.288675, -0.5, 0.5},
    };
    agglo_backend *be = NULL;
    agglo_params *params = NULL, *again = NULL;
    agglo_err err = {0};
    float first = 0.0f;

    (void)state;
    assert_ok(agglo_backend_open(&be, "cpu", 1, &err));
    assert_ok(agglo_params_new(&params, be, false, &err));
    for (size_t i = 0; i < AGGLO_COUNT(kinds); i++) {
        char name[8];

        snprintf(name, sizeof name, "p%zu", i);
        assert_non_null(agglo_params_add(params, name, 2, (const int64_t[]){N / 100, 100}, kinds[i].init,
                                         kinds[i].scale, true, &err));
    }
    assert_ok(agglo_params_allocate(params, &err));
    assert_ok(agglo_params_init(params, 7, &err));
    assert_int_equal(agglo_params_count(params), AGGLO_COUNT(kinds));
    assert_int_equal(agglo_params_elements(params), N * (int64_t)AGGLO_COUNT(kinds));
    for (size_t i = 0; i < AGGLO_COUNT(kinds); i++) {
        const float *p = agglo_params_at(params, i)->value.data;
        double sum = 0.0, squares = 0.0;

        for (int k = 0; k < N; k++) {
            assert_true((double)p[k] >= kinds[i].least && (double)p[k] <= kinds[i].most);
            sum += (double)p[k];
            squares += ((double)p[k] - kinds[i].mean) * ((double)p[k] - kinds[i].mean);
        }
        assert_true(fabs(sum / N - kinds[i].mean) < 5e-3);
        assert_true(fabs(sqrt(squares / N) - kinds[i].sigma) < 5e-3);
    }
    first = ((const float *)agglo_params_find(params, "p3")->value.data)[77777];

    /* a value depends on seed, name and place only, not on its neighbours */
    assert_ok(agglo_params_new(&again, be, false, &err));
    assert_non_null(agglo_params_add(again, "p3", 1, (const int64_t[]){N}, AGGLO_INIT_NORMAL, 0.5f, true, &err));
    assert_ok(agglo_params_allocate(again, &err));
    assert_ok(agglo_params_init(again, 7, &err));
    assert_true(((const float *)agglo_params_at(again, 0)->value.data)[77777] == first);
    assert_ok(agglo_params_init(again, 8, &err));
    assert_true(((const float *)agglo_params_at(again, 0)->value.data)[77777] != first);
    assert_null(agglo_params_at(again, 0)->grad.data);
    agglo_params_free(again);
    agglo_params_free(params);
    agglo_backend_free(be);
}

/* A matrix in BF16: a copy beside its master when trained, alone otherwise; what is no matrix stays F32. */
static void test_params_storage(void **state)
{
    const float data[6] = {1, -2, 3.01f, 4, 5, 6}, vector[3] = {1.001f, 2, 3}, ones[6] = {1, 1, 1, 1, 1, 1};
    uint8_t all[36];
    agglo_backend *be = NULL;
    agglo_err err = {0};

    (void)state;
    memcpy(all, data, sizeof data);
    memcpy(all + sizeof data, vector, sizeof vector);
    assert_ok(agglo_backend_open(&be, "cpu", 1, &err));
    for (int trained = 0; trained < 2; trained++) {
        agglo_params *params = NULL;
        agglo_param *w, *b;
        agglo_safetensors *st;
        file_bytes file;
        uint16_t expected[6];

        agglo_dtype_from_f32(expected, data, AGGLO_BF16, 6);
        assert_ok(agglo_params_new(&params, be, trained, &err));
        assert_int_equal(agglo_params_storage(params), AGGLO_F32);
        assert_ok(agglo_params_set_storage(params, AGGLO_BF16, &err));
        w = agglo_params_add_matrix(params, "w", 2, (const int64_t[]){2, 3}, AGGLO_INIT_ONE, 0, true, &err);
        b = agglo_params_add(params, "b", 1, (const int64_t[]){3}, AGGLO_INIT_ONE, 0, false, &err);
        assert_non_null(w);
        assert_non_null(b);
        assert_ok(agglo_params_allocate(params, &err));
        assert_int_equal(w->stored.dtype, AGGLO_BF16);
        assert_int_equal(b->stored.dtype, AGGLO_F32);
        assert_ptr_equal(b->stored.data, b->value.data);
        assert_int_equal(w->value.data != NULL, trained);
        assert_int_equal(agglo_param_has_copy(w), trained);
        assert_false(agglo_param_has_copy(b));

        st = file_of(&file,
                     "{\"w\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},"
                     "\"b\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[24,36]}}",
                     all, sizeof all);
        assert_ok(agglo_params_load(params, st, &err));
        agglo_safetensors_close(st);
        assert_memory_equal(w->stored.data, expected, sizeof expected);
        assert_memory_equal(b->stored.data, vector, sizeof vector);

        st = file_of(&file, "{\"q\":{\"dtype\":\"F32\",\"shape\":[1,3],\"data_offsets\":[0,12]}}", data, 12);
        assert_ok(agglo_param_load_rows(params, w, 1, agglo_safetensors_find(st, "q"), &err));
        agglo_safetensors_close(st);
        memcpy(expected + 3, expected, 6);
        assert_memory_equal(w->stored.data, expected, sizeof expected);
        if (trained) {
            assert_memory_equal(w->value.data, data, 12);
            assert_memory_equal((float *)w->value.data + 3, data, 12);
            memcpy(w->value.data, ones, sizeof ones);
            agglo_params_refresh(params);
        } else {
            assert_ok(agglo_params_init(params, 3, &err));
        }
        agglo_dtype_from_f32(expected, ones, AGGLO_BF16, 6);
        assert_memory_equal(w->stored.data, expected, sizeof expected);
        agglo_params_free(params);
    }
    agglo_backend_free(be);
}

static void test_params_load(void **state)
{
    const float data[6] = {1, -2, 3, 4, 5, 6}, bad[6] = {1, 2, 3, NAN, 5, 6};
    const uint16_t halves[6] = {0x3f80, 0xc000, 0x4040, 0x4080, 0x40a0, 0x40c0};
    file_bytes file;
    agglo_backend *be = NULL;
    agglo_params *params = NULL;
    agglo_param *w;
    agglo_safetensors *st;
    agglo_err err = {0};

    (void)state;
    assert_ok(agglo_backend_open(&be, "cpu", 1, &err));
    assert_ok(agglo_params_new(&params, be, true, &err));
    w = agglo_params_add(params, "w", 2, (const int64_t[]){2, 3}, AGGLO_INIT_ZERO, 0, true, &err);
    assert_non_null(w);
    assert_ok(agglo_params_allocate(params, &err));

    st = file_of(&file, "{\"w\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}}", data, sizeof data);
    assert_ok(agglo_params_load(params, st, &err));
    assert_memory_equal(w->value.data, data, sizeof data);
    agglo_safetensors_close(st);

    agglo_zero(be, w->value.data, sizeof data);
    st =
        file_of(&file, "{\"w\":{\"dtype\":\"BF16\",\"shape\":[1,2,3],\"data_offsets\":[0,12]}}", halves, sizeof halves);
    assert_ok(agglo_params_load(params, st, &err)); /* an extent of 1 in front */
    assert_memory_equal(w->value.data, data, sizeof data);
    agglo_safetensors_close(st);

    st = file_of(&file, "{\"w\":{\"dtype\":\"F32\",\"shape\":[3,2],\"data_offsets\":[0,24]}}", data, sizeof data);
    assert_fails(agglo_params_load(params, st, &err), AGGLO_E_MISMATCH,
                 "cannot load weights: shape [3, 2], expected [2, 3] (weights: w)");
    agglo_safetensors_close(st);

    st = file_of(&file, "{\"v\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}}", data, sizeof data);
    assert_fails(agglo_params_load(params, st, &err), AGGLO_E_NOT_FOUND,
                 "no such tensor, expected shape [2, 3] (weights: w)");
    agglo_safetensors_close(st);

    st = file_of(&file, "{\"w\":{\"dtype\":\"I32\",\"shape\":[2,3],\"data_offsets\":[0,24]}}", data, sizeof data);
    assert_fails(agglo_params_load(params, st, &err), AGGLO_E_MISMATCH, "dtype I32");
    agglo_safetensors_close(st);

    st = file_of(&file, "{\"w\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}}", bad, sizeof bad);
    assert_fails(agglo_params_load(params, st, &err), AGGLO_E_DATA, "element 3 is not finite");
    agglo_safetensors_close(st);

    agglo_zero(be, w->value.data, sizeof data);
    st = file_of(&file, "{\"q\":{\"dtype\":\"F32\",\"shape\":[1,3],\"data_offsets\":[0,12]}}", data, 12);
    assert_ok(agglo_param_load_rows(params, w, 1, agglo_safetensors_find(st, "q"), &err));
    assert_true(((float *)w->value.data)[0] == 0.0f);
    assert_memory_equal((float *)w->value.data + 3, data, 12);
    assert_fails(agglo_param_load_rows(params, w, 2, agglo_safetensors_find(st, "q"), &err), AGGLO_E_MISMATCH, "q");
    agglo_safetensors_close(st);

    ((float *)w->grad.data)[4] = 3.0f;
    agglo_params_zero_grad(params);
    assert_true(((float *)w->grad.data)[4] == 0.0f);
    agglo_params_free(params);
    agglo_backend_free(be);
}

/* tensor/async.h on the CPU: all has happened when it returns, and a step that is to be recorded runs. */
static void test_async_on_the_cpu(void **state)
{
    enum { COUNT = 100 };
    agglo_backend *be;
    agglo_upload_ring *ring;
    agglo_event *event;
    agglo_err err = {0};
    float *block, *slots[3];
    agglo_tensor x;

    (void)state;
    assert_ok(agglo_backend_cpu_new(&be, 1, &err));
    block = agglo_backend_alloc(be, COUNT * sizeof(float), &err);
    event = agglo_event_new(be, &err);
    ring = agglo_upload_ring_new(be, 2, COUNT * sizeof(float), &err);
    assert_non_null(block);
    assert_non_null(event);
    assert_non_null(ring);
    x = agglo_tensor_1d(block, AGGLO_F32, COUNT);
    for (int round = 0; round < 3; round++) {
        slots[round] = agglo_upload_ring_take(ring);
        assert_int_equal((uintptr_t)slots[round] % 256, 0);
        for (int i = 0; i < COUNT; i++) {
            slots[round][i] = (float)(i + round);
        }
        agglo_upload_ring_send(ring, sizeof(float), 10 * sizeof(float), block + 5, round == 0 ? NULL : event);
        agglo_upload_ring_join(ring);
        agglo_event_record(be, event);
        assert_true(agglo_event_is_done(be, event));
        assert_true(block[5] == (float)(1 + round) && block[14] == (float)(10 + round) && block[15] == 0.0f);
    }
    assert_ptr_equal(slots[0], slots[2]);
    assert_ptr_not_equal(slots[0], slots[1]);
    assert_false(agglo_backend_captures(be));
    agglo_capture_begin(be);
    agglo_axpy(be, 1.0f, &x, &x);
    assert_null(agglo_capture_end(be));
    assert_true(block[5] == 6.0f);
    agglo_graph_free(be, NULL);
    agglo_event_free(be, event);
    agglo_event_free(be, NULL);
    agglo_upload_ring_free(ring);
    agglo_upload_ring_free(NULL);
    agglo_backend_release(be, block);
    agglo_backend_free(be);
}

static void test_ring_allocations_may_fail(void **state)
{
    agglo_backend *be;
    agglo_err err = {0};

    (void)state;
    assert_ok(agglo_backend_cpu_new(&be, 1, &err));
    for (int64_t n = 0;; n++) {
        agglo_upload_ring *ring;

        agglo_alloc_fail_after(n);
        ring = agglo_upload_ring_new(be, 3, 100, &err);
        agglo_alloc_fail_after(-1);
        if (ring != NULL) {
            assert_true(n == 8); /* the ring, its slots, and two for each of three */
            agglo_upload_ring_free(ring);
            break;
        }
        assert_fails(err.status, AGGLO_E_MEMORY, "cannot make 3 upload slots of 100 bytes");
        agglo_err_clear(&err);
    }
    agglo_backend_free(be);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_philox_known_answers),
        cmocka_unit_test(test_uniform_ranges),
        cmocka_unit_test(test_elementary_functions),
        cmocka_unit_test(test_backend_by_name),
        cmocka_unit_test(test_cuda_by_name),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_failure_is_latched),
        cmocka_unit_test(test_every_allocation_may_fail),
        cmocka_unit_test(test_async_on_the_cpu),
        cmocka_unit_test(test_ring_allocations_may_fail),
        cmocka_unit_test(test_slab),
        cmocka_unit_test(test_params_init),
        cmocka_unit_test(test_params_load),
        cmocka_unit_test(test_params_storage),
    };

    return test_run("unit_tensor", tests);
}
