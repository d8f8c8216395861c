/* Units: equal work gives equal files, whatever happens to the writer; every damaged bit is noticed; failing allocations and full disks
 * end in one error and leave nothing. */
#include "make_unit.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *lmdb_path(const char *cache)
{
    return test_path(cache, "clip/main-000003-v0-1.lmdb");
}

static const char *json_path(const char *cache)
{
    return test_path(cache, "clip/main-000003-v0-1.json");
}

static void assert_same_file(const char *a, const char *b)
{
    agglo_err err = {0};
    char *x = NULL, *y = NULL;
    size_t n = 0, m = 0;

    assert_ok(agglo_file_read(a, 1 << 28, &x, &n, &err));
    assert_ok(agglo_file_read(b, 1 << 28, &y, &m, &err));
    assert_int_equal(n, m);
    assert_memory_equal(x, y, n);
    agglo_free(x);
    agglo_free(y);
}

/* Run make_unit in a child and wait for it, or kill it after `us` microseconds (negative: never). True when it ended by itself. */
static bool child_makes_unit(const char *cache, uint32_t n_samples, int side, int us)
{
    pid_t pid = fork();
    int status;

    if (pid == 0) {
        agglo_err err = {0};

        _exit(make_unit(cache, NULL, 3, n_samples, side, NULL, &err) == AGGLO_OK ? 0 : 1);
    }
    assert_true(pid > 0);
    if (us >= 0) {
        usleep((useconds_t)us);
        kill(pid, SIGKILL);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status) || WEXITSTATUS(status) == 0);
    return WIFEXITED(status);
}

static void what_was_written_is_read(void **state)
{
    const char *cache = test_dir(), *scratch = test_dir();
    const agglo_unit_id id = make_id(3);
    agglo_provenance provenance = make_provenance();
    static uint8_t record[20000];
    agglo_manifest manifest;
    agglo_unit *unit = NULL;
    agglo_bytes bytes;
    agglo_err err = {0};

    (void)state;
    assert_fails(agglo_manifest_read(cache, &id, &manifest, &err), AGGLO_E_NOT_FOUND, "No such file");
    assert_ok(make_unit(cache, scratch, 3, 20, 20, &manifest, &err));
    assert_int_equal(manifest.n_records, 38);
    assert_int_equal(manifest.n_skipped, 1);
    assert_true(manifest.first_ordinal == 0 && manifest.last_ordinal == 19);
    assert_ok(agglo_unit_open(&unit, cache, &id, &provenance, true, &err));
    for (uint32_t ordinal = 0; ordinal < 20; ordinal++) {
        for (int view = 0; view < 2; view++) {
            size_t n = make_record(ordinal, view, 20, record);

            if (ordinal == 1) {
                assert_fails(agglo_unit_get(unit, ordinal, view, &bytes, &err), AGGLO_E_NOT_FOUND, "no record 1");
                continue;
            }
            assert_ok(agglo_unit_get(unit, ordinal, view, &bytes, &err));
            assert_int_equal(bytes.size, n);
            assert_memory_equal(bytes.data, record, n);
        }
    }
    agglo_unit_close(unit);
    assert_ok(agglo_unit_verify(cache, &id, &err));
    strcpy(provenance.weights, "ff");
    assert_fails(agglo_unit_open(&unit, cache, &id, &provenance, true, &err), AGGLO_E_MISMATCH,
                 "weights: found ee, expected ff");
    assert_null(unit);
}

static void keys_must_ascend(void **state)
{
    const agglo_unit_id id = make_id(3);
    const agglo_provenance provenance = make_provenance();
    agglo_unit_writer *writer = NULL;
    const agglo_bytes bytes = {(const uint8_t *)"abc", 3};
    agglo_err err = {0};

    (void)state;
    assert_ok(agglo_unit_writer_new(&writer, test_dir(), NULL, &id, &provenance, 100, 10, &err));
    assert_ok(agglo_unit_writer_put(writer, 5, 1, bytes, &err));
    assert_fails(agglo_unit_writer_put(writer, 5, 0, bytes, &err), AGGLO_E_CONFIG, "does not stand behind");
    agglo_unit_writer_abort(writer);
}

/* In this process, in another one, small records inside pages, large ones over several transactions. */
static void equal_work_gives_equal_files(void **state)
{
    static const struct {
        uint32_t n_samples;
        int side;
    } sizes[] = {{40, 1}, {700, 3}, {30, 32}, {2600, 32}};

    (void)state;
    for (size_t i = 0; i < AGGLO_COUNT(sizes); i++) {
        const char *dir = test_dir(), *a = test_path(dir, "a"), *b = test_path(dir, "b");
        const agglo_unit_id id = make_id(3);
        agglo_err err = {0};

        assert_ok(make_unit(a, dir, 3, sizes[i].n_samples, sizes[i].side, NULL, &err));
        assert_true(child_makes_unit(b, sizes[i].n_samples, sizes[i].side, -1));
        assert_same_file(lmdb_path(a), lmdb_path(b));
        assert_same_file(json_path(a), json_path(b));
        assert_ok(agglo_unit_verify(b, &id, &err));
        /* the same again over the finished unit changes nothing; other content is refused */
        assert_ok(make_unit(b, NULL, 3, sizes[i].n_samples, sizes[i].side, NULL, &err));
        assert_same_file(lmdb_path(a), lmdb_path(b));
        assert_fails(make_unit(b, NULL, 3, sizes[i].n_samples + 1, sizes[i].side, NULL, &err), AGGLO_E_MISMATCH,
                     "other content");
        assert_same_file(lmdb_path(a), lmdb_path(b));
    }
}

static void every_flipped_bit_is_noticed(void **state)
{
    const char *cache = test_dir(), *paths[2];
    const agglo_unit_id id = make_id(3);
    agglo_err err = {0};

    (void)state;
    assert_ok(make_unit(cache, NULL, 3, 3, 2, NULL, &err));
    paths[0] = lmdb_path(cache);
    paths[1] = json_path(cache);
    for (int file = 0; file < 2; file++) {
        char *bytes = NULL;
        size_t n = 0;
        FILE *f;

        assert_ok(agglo_file_read(paths[file], 1 << 20, &bytes, &n, &err));
        f = fopen(paths[file], "r+");
        assert_non_null(f);
        setbuf(f, NULL);
        for (size_t i = 0; i < n; i++) {
            /* all bits of the manifest, one bit of each byte of the larger file: xxh3 knows no weak bit positions */
            for (int bit = file == 0 ? (int)(i % 8) : 0; bit < (file == 0 ? (int)(i % 8) + 1 : 8); bit++) {
                fseek(f, (long)i, SEEK_SET);
                fputc(bytes[i] ^ 1 << bit, f);
                if (agglo_unit_verify(cache, &id, &err) == AGGLO_OK) {
                    fail_msg("bit %d of byte %zu of file %d was not noticed", bit, i, file);
                }
                agglo_err_clear(&err);
            }
            fseek(f, (long)i, SEEK_SET);
            fputc(bytes[i], f);
        }
        fclose(f);
        assert_ok(agglo_unit_verify(cache, &id, &err));
        assert_int_equal(truncate(paths[file], (off_t)n - 1), 0);
        assert_int_not_equal(agglo_unit_verify(cache, &id, &err), AGGLO_OK);
        agglo_err_clear(&err);
        assert_ok(agglo_file_write(paths[file], bytes, n, &err));
        agglo_free(bytes);
    }
}

static void a_killed_writer_leaves_no_half_unit(void **state)
{
    const char *whole = test_dir();
    const agglo_unit_id id = make_id(3);
    agglo_err err = {0};
    int n_killed = 0;

    (void)state;
    assert_true(child_makes_unit(whole, 200, 16, -1));
    for (int i = 0; i < 40; i++) {
        char name[32];
        const char *cache;

        snprintf(name, sizeof name, "killed-%d", i);
        cache = test_path(whole, name);
        n_killed += child_makes_unit(cache, 200, 16, i * 700) ? 0 : 1;
        if (agglo_path_exists(json_path(cache))) {
            assert_ok(agglo_unit_verify(cache, &id, &err));
        }
        assert_true(child_makes_unit(cache, 200, 16, -1));
        assert_same_file(lmdb_path(whole), lmdb_path(cache));
        assert_same_file(json_path(whole), json_path(cache));
    }
    assert_true(n_killed > 0);
}

static void failing_allocations(void **state)
{
    const char *cache = test_dir();
    const agglo_unit_id id = make_id(3);
    agglo_status status = AGGLO_E_MEMORY;
    agglo_err err = {0};
    int64_t n;

    (void)state;
    for (n = 0; status != AGGLO_OK; n++) {
        agglo_err_clear(&err);
        agglo_alloc_fail_after(n);
        status = make_unit(cache, NULL, 3, 4, 2, NULL, &err);
        agglo_alloc_fail_after(-1);
        assert_true(status == AGGLO_OK || (status == AGGLO_E_MEMORY && err.status == status));
        if (status != AGGLO_OK) {
            assert_false(agglo_path_exists(json_path(cache)));
        }
    }
    assert_true(n > 8);
    status = AGGLO_E_MEMORY;
    for (n = 0; status != AGGLO_OK; n++) {
        agglo_err_clear(&err);
        agglo_alloc_fail_after(n);
        status = agglo_unit_verify(cache, &id, &err);
        agglo_alloc_fail_after(-1);
        assert_true(status == AGGLO_OK || (status == AGGLO_E_MEMORY && err.status == status));
    }
    assert_true(n > 4);
}

/* A limit on file sizes stands in for a full disk. */
static void a_full_disk_leaves_nothing(void **state)
{
    const char *cache = test_dir();
    struct rlimit before, limit;
    agglo_arena *arena = NULL;
    agglo_err err = {0};
    char **names;
    size_t n = 0;

    (void)state;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    limit = before;
    limit.rlim_cur = 300000;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    assert_fails(make_unit(cache, NULL, 3, 60, 32, NULL, &err), AGGLO_E_IO, "cannot finish LMDB file");
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    signal(SIGXFSZ, SIG_DFL);
    assert_ok(agglo_arena_new(&arena, 0, &err));
    assert_ok(agglo_list_dir(test_path(cache, "clip"), arena, &names, &n, &err));
    assert_int_equal(n, 0);
    agglo_arena_free(arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_written_is_read),
        cmocka_unit_test(keys_must_ascend),
        cmocka_unit_test(equal_work_gives_equal_files),
        cmocka_unit_test(every_flipped_bit_is_noticed),
        cmocka_unit_test(a_killed_writer_leaves_no_half_unit),
        cmocka_unit_test(failing_allocations),
        cmocka_unit_test(a_full_disk_leaves_nothing),
    };

    return test_run("unit", tests);
}
