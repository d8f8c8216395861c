/* The metrics file: what a resumed run keeps of it, and what a killed one may leave. */
#include "launch/metrics.h"
#include "tests/support/support.h"

static void add(agglo_metrics_file *file, int64_t done)
{
    const agglo_head_config heads[1] = {{.name = "clip"}};
    agglo_metrics metrics = {.step = done - 1, .lr = 0.5, .loss = 1.25, .n_teachers = 1};
    agglo_err err = {0};

    metrics.summary[0] = (agglo_loss_sums){.cos = 3, .n_tokens = 4, .n_samples = 4};
    metrics.spatial[0] = (agglo_loss_sums){.cos = 2, .n_tokens = 8, .n_samples = 4};
    assert_ok(agglo_metrics_file_add(file, &metrics, heads, 12.345, 0.25, &err));
}

static char *read_text(const char *path)
{
    agglo_err err = {0};
    char *text;
    size_t n;

    assert_ok(agglo_file_read(path, 1 << 20, &text, &n, &err));
    return text;
}

static void test_resume_cuts(void **state)
{
    const char *path = test_path(test_dir(), "metrics.jsonl");
    agglo_metrics_file *file = NULL;
    agglo_err err = {0};
    char *whole, *text;
    FILE *torn;

    (void)state;
    assert_ok(agglo_metrics_file_open(&file, path, 0, &err));
    for (int64_t step = 10; step <= 40; step += 10) {
        add(file, step);
    }
    agglo_metrics_file_close(file);
    whole = read_text(path);
    assert_ptr_equal(strstr(whole, "{\"step\":10,\"loss\":1.25,\"lr\":0.5,"), whole);
    assert_non_null(strstr(whole, "\"teachers\":{\"clip\":{\"summary_cos\":0.75,\"spatial_cos\":0.25}}"));

    /* a line that a killed process wrote half */
    torn = fopen(path, "a");
    assert_non_null(torn);
    fputs("{\"step\":50,\"lo", torn);
    fclose(torn);
    assert_ok(agglo_metrics_file_open(&file, path, 100, &err));
    agglo_metrics_file_close(file);
    text = read_text(path);
    assert_string_equal(text, whole);
    agglo_free(text);

    /* resumed from step 20: what lies behind is written again, to the same bytes */
    assert_ok(agglo_metrics_file_open(&file, path, 20, &err));
    add(file, 30);
    add(file, 40);
    agglo_metrics_file_close(file);
    text = read_text(path);
    assert_string_equal(text, whole);
    agglo_free(text);
    agglo_free(whole);
}

static void test_cannot_open(void **state)
{
    agglo_metrics_file *file = NULL;
    agglo_err err = {0};

    (void)state;
    assert_fails(agglo_metrics_file_open(&file, "/nonexistent/metrics.jsonl", 0, &err), AGGLO_E_IO,
                 "/nonexistent/metrics.jsonl");
    assert_null(file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_resume_cuts), cmocka_unit_test(test_cannot_open)};

    return test_run("metrics", tests);
}
