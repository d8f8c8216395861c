/* Zero-shot ranks on hand-made embeddings, and files that lie. */
#include <math.h>

#include "student/eval_zeroshot.h"
#include "tests/support/support.h"

static agglo_backend *backend;

/* A file of class embeddings; names NULL: none. */
static const char *write_text(const char *tensor, agglo_dtype dtype, int rank, const int64_t *shape, const void *data,
                              const char *names)
{
    static int number;
    char name[32];
    const char *path;
    agglo_st_writer *writer;
    agglo_err err = {0};

    snprintf(name, sizeof name, "%d.safetensors", number++);
    path = test_path(test_dir(), name);
    assert_ok(agglo_st_writer_new(&writer, &err));
    if (names != NULL) {
        assert_ok(agglo_st_writer_meta(writer, "names", names, &err));
    }
    assert_ok(agglo_st_writer_add(writer, tensor, dtype, rank, shape, data, &err));
    assert_ok(agglo_st_writer_write(writer, path, &err));
    agglo_st_writer_free(writer);
    return path;
}

static agglo_status read_text(agglo_class_text *out, const char *path, agglo_err *err)
{
    agglo_safetensors *st;
    agglo_status status;

    assert_int_equal(agglo_safetensors_open(&st, path, err), AGGLO_OK);
    status = agglo_class_text_read(out, st, err);
    agglo_safetensors_close(st);
    return status;
}

static void ranks_are_by_cosine(void **state)
{
    /* lengths do not matter; rows 1 and 3 are the same class twice: the lower number comes first */
    const float classes[] = {0, 9, 0, 1, 1, 0, 0, 0, 0.01f, 4, 4, 0};
    const int64_t shape[] = {4, 3}, rows[] = {0, 1, 3, 2, 0};
    const float queries[] = {0, 2, 0, 3, 3, 0, 3, 3, 0, 7, 0, 0, 0, 0, 0};
    int64_t rank[5];
    agglo_class_text text;
    agglo_err err = {0};

    (void)state;
    assert_ok(read_text(
        &text, write_text("classes", AGGLO_F32, 2, shape, classes, "[\"a, b\",\"c\",\"c\",\"\\u00e9\"]"), &err));
    assert_int_equal(text.n, 4);
    assert_int_equal(text.dim, 3);
    assert_true(fabsf(text.rows[1] - 1.0f) < 1e-6f);
    assert_int_equal(agglo_class_text_find(&text, "a, b"), 0);
    assert_int_equal(agglo_class_text_find(&text, "c"), -2);
    assert_int_equal(agglo_class_text_find(&text, "\xc3\xa9"), 3);
    assert_int_equal(agglo_class_text_find(&text, "d"), -1);
    assert_ok(agglo_eval_zeroshot(backend, &text, queries, rows, 5, rank, &err));
    assert_int_equal(rank[0], 0);
    assert_int_equal(rank[1], 0);
    assert_int_equal(rank[2], 1); /* row 1 is as similar */
    assert_int_equal(rank[3], 3); /* orthogonal, as row 0, which comes first; 1 and 3 are nearer */
    assert_int_equal(rank[4], 0); /* a row of zeros is like nothing: the lowest number */
    agglo_class_text_clear(&text);
    agglo_class_text_clear(&text);
}

/* More queries than a block, each with a known answer. */
static void many_queries(void **state)
{
    enum { N = 700, CLASSES = 37, DIM = 19 };
    static float classes[CLASSES * DIM], queries[N * DIM];
    static int64_t rows[N], rank[N], together[N];
    test_random random = test_random_new(3);
    const int64_t shape[] = {CLASSES, DIM};
    agglo_class_text text;
    agglo_err err = {0};

    (void)state;
    test_random_fill(&random, classes, CLASSES * DIM, 1.0f);
    assert_ok(read_text(&text, write_text("classes", AGGLO_F32, 2, shape, classes, NULL), &err));
    assert_null(text.names);
    assert_int_equal(agglo_class_text_find(&text, "a"), -1);
    test_random_fill(&random, queries, N * DIM, 1.0f);
    for (int64_t i = 0; i < N; i++) {
        double cosine[CLASSES];
        int64_t before = 0;

        rows[i] = test_random_u32(&random) % CLASSES;
        for (int64_t k = 0; k < CLASSES; k++) {
            cosine[k] = 0.0;
            for (int64_t c = 0; c < DIM; c++) {
                cosine[k] += (double)text.rows[k * DIM + c] * (double)queries[i * DIM + c];
            }
        }
        for (int64_t k = 0; k < CLASSES; k++) {
            before += cosine[k] > cosine[rows[i]];
        }
        assert_ok(agglo_eval_zeroshot(backend, &text, queries + i * DIM, rows + i, 1, rank + i, &err));
        assert_int_equal(rank[i], before);
    }
    assert_ok(agglo_eval_zeroshot(backend, &text, queries, rows, N, together, &err));
    assert_memory_equal(together, rank, sizeof rank);
    agglo_class_text_clear(&text);
}

/* More than is taken of classes, channels, or a name. */
static void sizes_are_bounded(void **state)
{
    static float many[65537];
    static char name[4096 + 64];
    const int64_t rows[] = {65537, 1}, channels[] = {1, 65537}, most[] = {1, 65536}, one[] = {1, 1}, two[] = {2, 1};
    agglo_class_text text;
    agglo_err err = {0};

    (void)state;
    for (size_t i = 0; i < AGGLO_COUNT(many); i++) {
        many[i] = 1.0f;
    }
    assert_fails(read_text(&text, write_text("classes", AGGLO_F32, 2, rows, many, NULL), &err), AGGLO_E_DATA,
                 "is [65537, 1], at most [65536, 65536]");
    assert_fails(read_text(&text, write_text("classes", AGGLO_F32, 2, channels, many, NULL), &err), AGGLO_E_DATA,
                 "is [1, 65537], at most [65536, 65536]");
    assert_ok(read_text(&text, write_text("classes", AGGLO_F32, 2, most, many, NULL), &err));
    agglo_class_text_clear(&text);

    memset(name, 'n', 4096);
    assert_ok(read_text(&text, write_text("classes", AGGLO_F32, 2, one, many, name), &err));
    assert_int_equal(strlen(text.names[0]), 4096);
    agglo_class_text_clear(&text);
    memcpy(name + 4096, "n,b", 4);
    assert_fails(read_text(&text, write_text("classes", AGGLO_F32, 2, two, many, name), &err), AGGLO_E_DATA,
                 "name 0 has 4097 bytes, more than 4096");
    memcpy(name, "[\"a\",\"", 6);
    memcpy(name + 6 + 4090, "nnnnnnn\"]", 10);
    assert_fails(read_text(&text, write_text("classes", AGGLO_F32, 2, two, many, name), &err), AGGLO_E_DATA,
                 "name 1 has 4097 bytes, more than 4096");
}

static void bad_files_are_refused(void **state)
{
    const float rows[] = {1, 2, 0, 0, NAN, 1};
    const int64_t two[] = {2, 2}, one[] = {1, 2}, flat[] = {6}, none[] = {0, 4}, ints[] = {1, 1, 1, 1};
    agglo_class_text text;
    agglo_err err = {0};

    (void)state;
    assert_fails(read_text(&text, write_text("class", AGGLO_F32, 2, two, rows, NULL), &err), AGGLO_E_DATA,
                 "no tensor `classes`");
    assert_fails(read_text(&text, write_text("classes", AGGLO_F32, 1, flat, rows, NULL), &err), AGGLO_E_DATA,
                 "not [classes, dim]");
    assert_fails(read_text(&text, write_text("classes", AGGLO_F32, 2, none, rows, NULL), &err), AGGLO_E_DATA,
                 "not [classes, dim]");
    assert_fails(read_text(&text, write_text("classes", AGGLO_I64, 2, one, ints, NULL), &err), AGGLO_E_DATA,
                 "is I64, not of floats");
    assert_fails(read_text(&text, write_text("classes", AGGLO_F32, 2, two, rows, NULL), &err), AGGLO_E_DATA,
                 "row 1 of `classes` is zero");
    assert_fails(read_text(&text, write_text("classes", AGGLO_F32, 2, one, rows + 4, NULL), &err), AGGLO_E_DATA,
                 "row 0 of `classes` is not finite");
    assert_fails(read_text(&text, write_text("classes", AGGLO_F32, 2, one, rows, "a,b"), &err), AGGLO_E_DATA,
                 "holds 2 names, `classes` 1 rows");
    assert_fails(read_text(&text, write_text("classes", AGGLO_F32, 2, one, rows, "[1]"), &err), AGGLO_E_DATA,
                 "name 0 is not a text");
    assert_fails(read_text(&text, write_text("classes", AGGLO_F32, 2, one, rows, "[\"a\""), &err), AGGLO_E_DATA,
                 "line 1");
    assert_ok(read_text(&text, write_text("classes", AGGLO_F32, 2, one, rows, "plane"), &err));
    assert_string_equal(text.names[0], "plane");
    agglo_class_text_clear(&text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranks_are_by_cosine),
        cmocka_unit_test(many_queries),
        cmocka_unit_test(sizes_are_bounded),
        cmocka_unit_test(bad_files_are_refused),
    };
    agglo_err err = {0};
    int n_failed;

    if (agglo_backend_cpu_new(&backend, 2, &err) != AGGLO_OK) {
        fprintf(stderr, "%s\n", err.why);
        return 1;
    }
    test_filter();
    n_failed = _cmocka_run_group_tests("eval_zeroshot", tests, AGGLO_COUNT(tests), NULL, NULL);
    agglo_backend_free(backend);
    return test_finish("eval_zeroshot", n_failed);
}
