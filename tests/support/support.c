/* Test support; see support.h. */
#include "tests/support/support.h"

#include <math.h>
#include <unistd.h>

#define MAX_DIRS 64

static char dirs[MAX_DIRS][256];
static int n_dirs;

static void remove_dirs(void)
{
    agglo_err err = {0};

    for (int i = 0; i < n_dirs; i++) {
        agglo_remove_tree(dirs[i], &err);
    }
}

const char *test_dir(void)
{
    const char *base = getenv("TMPDIR");
    char *dir;

    if (n_dirs >= MAX_DIRS) {
        fprintf(stderr, "a test program makes at most %d directories\n", MAX_DIRS);
        abort();
    }
    if (n_dirs == 0) {
        atexit(remove_dirs);
    }
    dir = dirs[n_dirs++];
    snprintf(dir, sizeof dirs[0], "%s/agglo-test-XXXXXX", base ? base : "/tmp");
    if (mkdtemp(dir) == NULL) {
        perror(dir);
        abort();
    }
    return dir;
}

const char *test_path(const char *dir, const char *name)
{
    static char paths[16][1024];
    static int next;
    char *path = paths[next++ % 16];

    snprintf(path, sizeof paths[0], "%s/%s", dir, name);
    return path;
}

void test_write_text(const char *path, const char *text)
{
    agglo_err err = {0};

    assert_ok(agglo_file_write(path, text, strlen(text), &err));
}

const char *test_fixture(const char *name)
{
    return test_path("tests/fixtures", name);
}

const char *test_shared(const char *name)
{
    const char *root = getenv("AGGLO_TEST_DATA");
    const char *path = test_path(root ? root : "../shared/data", name);

    return agglo_path_exists(path) ? path : NULL;
}

void test_skip_all(const char *reason)
{
    printf("skipped: %s\n", reason);
    exit(77);
}

test_random test_random_new(uint64_t stream)
{
    const char *text = getenv("AGGLO_TEST_SEED");
    test_random random = {(text ? strtoull(text, NULL, 10) : 20260101u) * 0x9E3779B97F4A7C15u + stream};

    if (text != NULL) {
        printf("seed %s, stream %llu\n", text, (unsigned long long)stream);
    }
    return random;
}

/* splitmix64, upper half */
uint32_t test_random_u32(test_random *random)
{
    uint64_t z = (random->state += 0x9E3779B97F4A7C15u);

    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return (uint32_t)((z ^ z >> 31) >> 32);
}

double test_random_uniform(test_random *random)
{
    return test_random_u32(random) * 0x1p-32;
}

float test_random_normal(test_random *random)
{
    double u = 1.0 - test_random_uniform(random), v = test_random_uniform(random);

    return (float)(sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v));
}

void test_random_fill(test_random *random, float *out, size_t n, float sigma)
{
    for (size_t i = 0; i < n; i++) {
        out[i] = sigma * test_random_normal(random);
    }
}

void test_random_bytes(test_random *random, void *out, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        ((uint8_t *)out)[i] = (uint8_t)test_random_u32(random);
    }
}

void test_filter(void)
{
    const char *pattern = getenv("AGGLO_TEST_FILTER");

    if (pattern != NULL) {
        cmocka_set_test_filter(pattern);
    }
}

int test_finish(const char *name, int n_failed)
{
    agglo_alloc_stats counts = agglo_alloc_counts();

    if (n_failed == 0 && counts.n_live != 0) {
        fprintf(stderr, "%s: %lld blocks were not freed\n", name, (long long)counts.n_live);
        return 1;
    }
    return n_failed;
}
