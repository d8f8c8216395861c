/* The set of uids against a sorted reference, and lists of uids in every form, well-made and not. */
#include "tests/support/support.h"

#include <sys/stat.h>
#include <unistd.h>

#include "base/hash.h"
#include "base/stop.h"
#include "ingest/select.h"

typedef struct uid {
    uint8_t bytes[16];
} uid;

static int by_bytes(const void *a, const void *b)
{
    return memcmp(a, b, 16);
}

static uid *random_uids(size_t n, uint64_t stream)
{
    agglo_err err = {0};
    test_random random = test_random_new(stream);
    uid *uids = agglo_alloc(n, sizeof *uids, &err);

    assert_non_null(uids);
    test_random_bytes(&random, uids, n * sizeof *uids);
    return uids;
}

/* ---- the set ---- */

static void test_set_agrees_with_a_reference(void **state)
{
    enum { N = 20000, KINDS = 6000 };
    agglo_err err = {0};
    test_random random = test_random_new(1);
    uid *kinds = random_uids(KINDS, 2);
    uint8_t *there = agglo_alloc(KINDS, 1, &err);
    agglo_uid_set *set;
    uint64_t n = 0;

    (void)state;
    assert_non_null(there);
    memset(&kinds[0], 0, sizeof kinds[0]); /* the value that free slots hold */
    for (int k = 1; k < 300; k++) {        /* values that differ in few bits */
        memset(&kinds[k], 0, sizeof kinds[k]);
        agglo_put_le16(kinds[k].bytes + k % 15, (uint16_t)k);
    }
    qsort(kinds, KINDS, sizeof *kinds, by_bytes);
    for (int k = 1; k < KINDS; k++) {
        assert_true(memcmp(&kinds[k - 1], &kinds[k], 16) < 0);
    }
    assert_ok(agglo_uid_set_new(&set, 0, &err));
    for (int i = 0; i < N; i++) {
        size_t k = test_random_u32(&random) % KINDS;
        bool known = false;

        assert_int_equal(agglo_uid_set_has(set, kinds[k].bytes), there[k]);
        assert_ok(agglo_uid_set_add(set, kinds[k].bytes, i % 2 == 0 ? &known : NULL, &err));
        assert_true(i % 2 != 0 || known == (there[k] != 0));
        n += there[k] == 0;
        there[k] = 1;
        assert_int_equal(agglo_uid_set_count(set), n);
    }
    assert_true(n > KINDS / 2 && n < KINDS);
    for (size_t k = 0; k < KINDS; k++) { /* through all the growing, nothing came and nothing went */
        assert_int_equal(agglo_uid_set_has(set, kinds[k].bytes), there[k]);
    }
    agglo_uid_set_free(set);
    agglo_uid_set_free(NULL);
    agglo_free(there);
    agglo_free(kinds);
}

static void test_set_of_known_size_is_small_and_does_not_grow(void **state)
{
    static const size_t sizes[] = {0, 1, 2, 3, 47, 48, 49, 50, 51, 1000, 100001, 300000};
    agglo_err err = {0};
    uid *uids = random_uids(300000, 3);

    (void)state;
    for (size_t s = 0; s < AGGLO_COUNT(sizes); s++) {
        agglo_alloc_stats before, after;
        agglo_uid_set *set;

        agglo_alloc_peak_reset();
        before = agglo_alloc_counts();
        assert_ok(agglo_uid_set_new(&set, sizes[s], &err));
        for (size_t i = 0; i < sizes[s]; i++) {
            assert_ok(agglo_uid_set_add(set, uids[i].bytes, NULL, &err));
        }
        after = agglo_alloc_counts();
        assert_int_equal(after.n_total - before.n_total, 2);
        assert_true(after.bytes_peak - before.bytes_live <= 2 * 16 * (int64_t)sizes[s] + 4096);
        agglo_uid_set_free(set);
    }
    agglo_free(uids);
}

static void test_set_grows_within_its_bounds(void **state)
{
    enum { N = 200000 };
    agglo_err err = {0};
    uid *uids = random_uids(N, 4);
    agglo_alloc_stats before, after;
    agglo_uid_set *set;

    (void)state;
    agglo_alloc_peak_reset();
    before = agglo_alloc_counts();
    assert_ok(agglo_uid_set_new(&set, 0, &err));
    for (size_t i = 0; i < N; i++) {
        assert_ok(agglo_uid_set_add(set, uids[i].bytes, NULL, &err));
        after = agglo_alloc_counts();
        assert_true(after.bytes_live - before.bytes_live <= 43 * (int64_t)(i + 1) + 4096);
    }
    assert_true(after.bytes_peak - before.bytes_live <= 65 * (int64_t)N);
    assert_true(after.n_total - before.n_total < 20);
    agglo_uid_set_free(set);
    agglo_free(uids);
}

static void test_set_without_memory(void **state)
{
    enum { N = 400 };
    agglo_err err = {0};
    uid *uids = random_uids(N, 5);
    int64_t n_live = agglo_alloc_counts().n_live;
    bool done = false;
    int n_failures = 0;

    (void)state;
    for (int64_t n = 0; !done; n++) {
        agglo_uid_set *set;

        agglo_alloc_fail_after(n);
        if (agglo_uid_set_new(&set, 0, &err) != AGGLO_OK) {
            assert_null(set);
            assert_fails(err.status, AGGLO_E_MEMORY, "out of memory");
            n_failures++;
            continue;
        }
        done = true;
        for (size_t i = 0; i < N; i++) {
            if (agglo_uid_set_add(set, uids[i].bytes, NULL, &err) != AGGLO_OK) {
                assert_fails(err.status, AGGLO_E_MEMORY, "out of memory");
                n_failures++;
                done = false;
                /* it is as it was, and goes on */
                assert_int_equal(agglo_uid_set_count(set), i);
                assert_false(agglo_uid_set_has(set, uids[i].bytes));
                assert_true(agglo_uid_set_has(set, uids[i - 1].bytes));
                assert_ok(agglo_uid_set_add(set, uids[i].bytes, NULL, &err));
            }
        }
        assert_int_equal(agglo_uid_set_count(set), N);
        agglo_uid_set_free(set);
    }
    agglo_alloc_fail_after(-1);
    assert_true(n_failures >= 5); /* the set, its slots, and three times that it grew */
    assert_int_equal(agglo_alloc_counts().n_live, n_live);
    agglo_uid_set *set;
    assert_fails(agglo_uid_set_new(&set, UINT64_MAX, &err), AGGLO_E_MEMORY, "more than can be held");
    assert_fails(agglo_uid_set_new(&set, UINT64_MAX / 16, &err), AGGLO_E_MEMORY, "more than can be addressed");
    agglo_free(uids);
}

/* ---- lists ---- */

static const char *write_list(const void *data, size_t n)
{
    agglo_err err = {0};
    static const char *dir;
    static int k;
    const char *path;
    char name[32];

    if (dir == NULL) {
        dir = test_dir();
    }
    snprintf(name, sizeof name, "list%d", k++);
    path = test_path(dir, name);
    assert_ok(agglo_file_write(path, data, n, &err));
    return path;
}

static void expect_uids(const char *path, const char *const *hex, size_t n)
{
    agglo_err err = {0};
    agglo_uid_set *set;
    uint8_t bytes[16];

    assert_ok(agglo_select_open(&set, path, &err));
    assert_int_equal(agglo_uid_set_count(set), n);
    for (size_t i = 0; i < n; i++) {
        assert_true(agglo_unhex(hex[i], bytes, 16));
        assert_true(agglo_uid_set_has(set, bytes));
    }
    agglo_uid_set_free(set);
}

#define UID_A "00112233445566778899aabbccddeeff"
#define UID_B "ffeeddccbbaa99887766554433221100"

static void test_text_lists(void **state)
{
    static const char *const both[] = {UID_A, UID_B};
    static const char *const texts[] = {
        UID_A "\n" UID_B "\n",
        UID_A "\r\n" UID_B "\r\n",
        UID_A "\n" UID_B,
        "# a list\n\n \t\n" UID_B "\n#" UID_A "x\n\r\n00112233445566778899AABBCCDDEEFF\n" UID_B "\r\n# end",
        "#\n" UID_A "\n" UID_B "\r",
    };
    char long_comment[70000];

    (void)state;
    for (size_t i = 0; i < AGGLO_COUNT(texts); i++) {
        expect_uids(write_list(texts[i], strlen(texts[i])), both, 2);
    }
    memset(long_comment, 'c', sizeof long_comment);
    long_comment[0] = '#';
    memcpy(long_comment + sizeof long_comment - 35, "\n" UID_A "\n", 34);
    long_comment[sizeof long_comment - 1] = '#';
    expect_uids(write_list(long_comment, sizeof long_comment), both, 1);
    expect_uids(write_list("", 0), NULL, 0);
    expect_uids(write_list("\n\n# nothing", 11), NULL, 0);
}

static void test_bad_text_lists_are_refused_by_line(void **state)
{
    static const struct {
        const char *text, *line;
    } cases[] = {
        {UID_A "\nnot a uid\n", ":2)"},
        {"\n\n0123\n", ":3)"},
        {UID_A UID_B "\n", ":1)"},
        {UID_A "0\n", ":1)"},
        {UID_A "\n" UID_A " \n", ":2)"},
        {" " UID_A "\n", ":1)"},
        {UID_A "\r\r\n", ":1)"},
        {"00112233445566778899aabbccddeefg\n", ":1)"},
        {UID_A "\n# x\n" UID_B "\nend", ":4)"},
        {"{\"uid\": \"" UID_A "\"}", ":1)"},
        {"\xef\xbb\xbf" UID_A "\n", ":1)"},
        {UID_A "," UID_B "\n", ":1)"},
        {" # " UID_A "\n", ":1)"},
    };
    static const char with_nul[] = UID_A "\n0011223344556677\0899aabbccddeeff\n";
    agglo_err err = {0};
    agglo_uid_set *set;

    (void)state;
    for (size_t i = 0; i < AGGLO_COUNT(cases); i++) {
        assert_fails(agglo_select_open(&set, write_list(cases[i].text, strlen(cases[i].text)), &err), AGGLO_E_CONFIG,
                     cases[i].line);
        assert_null(set);
    }
    assert_fails(agglo_select_open(&set, write_list(with_nul, sizeof with_nul - 1), &err), AGGLO_E_CONFIG, ":2)");
    assert_fails(agglo_select_open(&set, "no/such/list", &err), AGGLO_E_CONFIG, "(no/such/list)");
    assert_fails(agglo_select_open(&set, "tests", &err), AGGLO_E_CONFIG, "it is a directory (tests)");
    agglo_stop_raise();
    assert_fails(agglo_select_open(&set, write_list(UID_A, 32), &err), AGGLO_E_STOPPED, "stop");
    agglo_stop_reset();
}

/* A .npy of this version with this header text and these bytes; *n: its size. */
static uint8_t *make_npy(int version, const char *header, const void *data, size_t n_data, size_t *n)
{
    agglo_err err = {0};
    size_t n_text = strlen(header), n_prefix = version == 1 ? 10 : 12;
    uint8_t *file = agglo_alloc(n_prefix + n_text + n_data, 1, &err);

    assert_non_null(file);
    memcpy(file, "\x93NUMPY", 6);
    file[6] = (uint8_t)version;
    if (version == 1) {
        agglo_put_le16(file + 8, (uint16_t)n_text);
    } else {
        agglo_put_le32(file + 8, (uint32_t)n_text);
    }
    memcpy(file + n_prefix, header, n_text);
    memcpy(file + n_prefix + n_text, data, n_data);
    *n = n_prefix + n_text + n_data;
    return file;
}

static const char *write_npy(int version, const char *header, const void *data, size_t n_data)
{
    size_t n;
    uint8_t *file = make_npy(version, header, data, n_data, &n);
    const char *path = write_list(file, n);

    agglo_free(file);
    return path;
}

static void test_npy_lists(void **state)
{
    static const char *const both[] = {UID_A, UID_B};
    static const char *const headers[] = {
        "{'descr': [('f0', '<u8'), ('f1', '<u8')], 'fortran_order': False, 'shape': (3,), }     \n",
        "{'shape': (3,), 'fortran_order': True, 'descr': [('upper', '=u8'), ('lower', '<u8',),]}\n",
        "{\"descr\":'<u8',\"fortran_order\":False,\"shape\":(3,2)}",
    };
    uint8_t data[48];

    (void)state;
    agglo_put_le64(data, 0x0011223344556677u);
    agglo_put_le64(data + 8, 0x8899aabbccddeeffu);
    agglo_put_le64(data + 16, 0xffeeddccbbaa9988u);
    agglo_put_le64(data + 24, 0x7766554433221100u);
    memcpy(data + 32, data, 16); /* the first one again */
    for (int version = 1; version <= 3; version++) {
        for (size_t i = 0; i < AGGLO_COUNT(headers); i++) {
            expect_uids(write_npy(version, headers[i], data, sizeof data), both, 2);
        }
    }
    expect_uids(write_npy(1, "{'descr': '<u8', 'fortran_order': False, 'shape': (0, 2), }\n", data, 0), NULL, 0);
}

static void test_hostile_npy_lists_are_refused(void **state)
{
#define PAIRS "{'descr': [('f0', '<u8'), ('f1', '<u8')], 'fortran_order': False, 'shape': "
    static const struct {
        const char *header, *why;
    } cases[] = {
        {PAIRS "(3,), }", "says that 48 bytes follow its header, there are 32"},
        {PAIRS "(1,), }", "says that 16 bytes follow its header, there are 32"},
        {PAIRS "(1000000000000000000,), }", "more elements than can be counted"},
        {PAIRS "(100000000000000000,), }", "says that 1600000000000000000 bytes follow its header, there are 32"},
        {PAIRS "(9223372036854775808,), }", "something else than sizes"},
        {PAIRS "(-2,), }", "something else than sizes"},
        {PAIRS "(2, 1), }", "holds no uids"},
        {PAIRS "(), }", "holds no uids"},
        {PAIRS "(2), }", "no tuple"},
        {PAIRS "(2,)", "a key was expected"},
        {"{'descr': '<u8', 'fortran_order': True, 'shape': (2, 2), }", "Fortran order"},
        {"{'descr': '<u8', 'fortran_order': False, 'shape': (4,), }", "holds no uids"},
        {"{'descr': '<i8', 'fortran_order': False, 'shape': (2, 2), }", "holds no uids"},
        {"{'descr': '>u8', 'fortran_order': False, 'shape': (2, 2), }", "elements of type '>u8'"},
        {"{'descr': '|O', 'fortran_order': False, 'shape': (2, 2), }", "elements of type '|O'"},
        {"{'descr': [('f0', '<u8')], 'fortran_order': False, 'shape': (4,), }", "holds no uids"},
        {"{'descr': [('f0', '<u8'), ('f1', '<u4')], 'fortran_order': False, 'shape': (2,), }", "holds no uids"},
        {"{'descr': [('f0', '<u8', (2,))], 'fortran_order': False, 'shape': (2,), }", "no plain numbers"},
    };
    static const uint8_t huge[12] = {0x93, 'N', 'U', 'M', 'P', 'Y', 2, 0, 0xff, 0xff, 0xff, 0xff};
    uint8_t data[32] = {1};
    agglo_err err = {0};
    agglo_uid_set *set;
    uint8_t *file;
    size_t n;

    (void)state;
    for (size_t i = 0; i < AGGLO_COUNT(cases); i++) {
        assert_fails(agglo_select_open(&set, write_npy(1 + (int)i % 3, cases[i].header, data, sizeof data), &err),
                     AGGLO_E_CONFIG, cases[i].why);
        assert_null(set);
    }
    assert_fails(agglo_select_open(&set, write_list(huge, sizeof huge), &err), AGGLO_E_CONFIG, "4294967307 bytes");
    file = make_npy(1, PAIRS "(2,), }", data, sizeof data, &n);
    for (size_t cut = 6; cut < n; cut++) {
        assert_fails(agglo_select_open(&set, write_list(file, cut), &err), AGGLO_E_CONFIG, "cannot read the list");
    }
    agglo_free(file);
#undef PAIRS
}

/* Memory is bounded by the file, whichever form it has, and by what has come where no file size is known. */
static void test_lists_take_little_memory(void **state)
{
    enum { N = 100000 };
    agglo_err err = {0};
    uid *uids = random_uids(N, 6);
    char *text = agglo_alloc(N * 33 + 1, 1, &err), header[128];
    const char *paths[2];
    uint64_t n_bytes;

    (void)state;
    assert_non_null(text);
    for (size_t i = 0; i < N; i++) {
        agglo_hex(uids[i].bytes, 16, text + i * 33);
        text[i * 33 + 32] = '\n';
    }
    snprintf(header, sizeof header,
             "{'descr': [('f0', '<u8'), ('f1', '<u8')], 'fortran_order': False, 'shape': (%d,), }\n", N);
    paths[0] = write_list(text, N * 33);
    paths[1] = write_npy(1, header, uids, N * sizeof *uids);
    for (int k = 0; k < 2; k++) {
        agglo_alloc_stats before;
        agglo_uid_set *set;

        assert_ok(agglo_file_size(paths[k], &n_bytes, &err));
        agglo_alloc_peak_reset();
        before = agglo_alloc_counts();
        assert_ok(agglo_select_open(&set, paths[k], &err));
        assert_int_equal(agglo_uid_set_count(set), N);
        assert_true(agglo_alloc_counts().bytes_peak - before.bytes_live <= 2 * (int64_t)n_bytes);
        for (size_t i = 0; i < N; i++) {
            uint8_t swapped[16];

            for (size_t j = 0; j < 16; j++) {
                swapped[j] = uids[i].bytes[k == 0 ? j : j / 8 * 8 + 7 - j % 8];
            }
            assert_true(agglo_uid_set_has(set, swapped));
        }
        agglo_uid_set_free(set);
    }
    agglo_free(text);
    agglo_free(uids);
}

/* A pipe has no size: what its header claims is believed only as it comes. */
static void test_lists_from_a_pipe(void **state)
{
    static const char header[] = "{'descr': '<u8', 'fortran_order': False, 'shape': (100000000000000000, 2), }\n";
    uint8_t data[16] = {1};
    agglo_err err = {0};
    agglo_uid_set *set;
    uint8_t *file;
    size_t n;
    char path[64];
    int ends[2];

    (void)state;
    file = make_npy(1, header, data, sizeof data, &n);
    for (int k = 0; k < 2; k++) {
        assert_int_equal(pipe(ends), 0);
        snprintf(path, sizeof path, "/proc/self/fd/%d", ends[0]);
        if (k == 0) {
            assert_int_equal(write(ends[1], UID_A "\n" UID_B, 65), 65);
            close(ends[1]);
            assert_ok(agglo_select_open(&set, path, &err));
            assert_int_equal(agglo_uid_set_count(set), 2);
            agglo_uid_set_free(set);
        } else {
            assert_int_equal(write(ends[1], file, n), (long)n);
            close(ends[1]);
            assert_fails(agglo_select_open(&set, path, &err), AGGLO_E_CONFIG, "ends before its last uid");
        }
        close(ends[0]);
    }
    agglo_free(file);
}

static void test_lists_without_memory(void **state)
{
    agglo_err err = {0};
    const char *path = write_list(UID_A "\n", 33);
    int64_t n_live = agglo_alloc_counts().n_live, n;

    (void)state;
    for (n = 0;; n++) {
        agglo_uid_set *set;
        agglo_status status;

        agglo_alloc_fail_after(n);
        status = agglo_select_open(&set, path, &err);
        agglo_alloc_fail_after(-1);
        if (status == AGGLO_OK) {
            agglo_uid_set_free(set);
            break;
        }
        assert_null(set);
        assert_fails(status, AGGLO_E_MEMORY, "out of memory");
        assert_int_equal(agglo_alloc_counts().n_live, n_live);
    }
    assert_int_equal(n, 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_set_agrees_with_a_reference),
        cmocka_unit_test(test_set_of_known_size_is_small_and_does_not_grow),
        cmocka_unit_test(test_set_grows_within_its_bounds),
        cmocka_unit_test(test_set_without_memory),
        cmocka_unit_test(test_text_lists),
        cmocka_unit_test(test_bad_text_lists_are_refused_by_line),
        cmocka_unit_test(test_npy_lists),
        cmocka_unit_test(test_hostile_npy_lists_are_refused),
        cmocka_unit_test(test_lists_take_little_memory),
        cmocka_unit_test(test_lists_from_a_pipe),
        cmocka_unit_test(test_lists_without_memory),
    };

    return test_run("uid set", tests);
}
