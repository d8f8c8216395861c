/* Units: equal work gives equal files, whatever happens to the writer; every damaged bit is noticed; failing allocations and full disks
 * end in one error and leave nothing. */
#include "make_unit.h"

#include <dirent.h>
#include <inttypes.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/hash.h"
#include "cache/unit_impl.h"

static const char *lmdb_path(const char *cache)
{
    return test_path(cache, "clip/main-000003-v0-1.lmdb");
}

static const char *json_path(const char *cache)
{
    return test_path(cache, "clip/main-000003-v0-1.json");
}

static int n_descriptors(void)
{
    DIR *dir = opendir("/proc/self/fd");
    int n = 0;

    assert_non_null(dir);
    while (readdir(dir) != NULL) {
        n++;
    }
    closedir(dir);
    return n;
}

/* Replace the first `from` in the unit's manifest by `to`, and make its checksum right again. */
static void forge_manifest(const char *cache, const char *from, const char *to)
{
    static const char tail[] = "  \"checksum\": \"0123456789abcdef\"\n}\n";
    char *text = NULL, *at, *forged;
    size_t n = 0, n_head;
    agglo_err err = {0};

    assert_ok(agglo_file_read(json_path(cache), 1 << 20, &text, &n, &err));
    at = strstr(text, from);
    assert_non_null(at);
    text[n - (sizeof tail - 1)] = '\0';
    forged = agglo_format(&err, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    assert_non_null(forged);
    n_head = strlen(forged);
    agglo_free(text);
    text = agglo_format(&err, "%s  \"checksum\": \"%016" PRIx64 "\"\n}\n", forged, agglo_xxh3_64(forged, n_head));
    assert_non_null(text);
    assert_ok(agglo_file_write(json_path(cache), text, strlen(text), &err));
    agglo_free(forged);
    agglo_free(text);
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
    } sizes[] = {{40, 1}, {700, 3}, {30, 32}, {2100, 32}}; /* the last: 69 MB, a transaction has at most 64 MiB */

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
        if (sizes[i].n_samples > 1000) {
            continue;
        }
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
        const size_t step = file == 0 && MAKE_UNIT_SANITIZED ? 23 : 1;
        FILE *f;

        assert_ok(agglo_file_read(paths[file], 1 << 20, &bytes, &n, &err));
        f = fopen(paths[file], "r+");
        assert_non_null(f);
        setbuf(f, NULL);
        for (size_t i = 0; i < n; i += step) {
            /* all bits of the manifest, one bit of each byte of the larger file: xxh3 knows no weak bit positions */
            for (int bit = file == 0 ? (int)(i % 8) : 0; bit < (file == 0 ? (int)(i % 8) + 1 : 8); bit++) {
                fseek(f, (long)i, SEEK_SET);
                fputc(bytes[i] ^ 1 << bit, f);
                if (agglo_unit_verify(cache, &id, &err) == AGGLO_OK) {
                    fail_msg("bit %d of byte %zu of file %d was not noticed", bit, i, file);
                }
                if (file == 0 && strstr(err.why, "its manifest says") == NULL) {
                    fail_msg("byte %zu was noticed only by LMDB, which must not see it: %s", i, err.why);
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
    const int n_kills = MAKE_UNIT_SANITIZED ? 16 : 40;
    int n_killed = 0, us_whole;
    struct timespec begin, end;

    (void)state;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    assert_true(child_makes_unit(whole, 200, 16, -1));
    clock_gettime(CLOCK_MONOTONIC, &end);
    us_whole = (int)((end.tv_sec - begin.tv_sec) * 1000000 + (end.tv_nsec - begin.tv_nsec) / 1000);
    for (int i = 0; i < n_kills; i++) {
        char name[32];
        const char *cache;

        snprintf(name, sizeof name, "killed-%d", i);
        cache = test_path(whole, name);
        n_killed += child_makes_unit(cache, 200, 16, us_whole / n_kills * i) ? 0 : 1;
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

/* A manifest may be whole and lie: it names what its unit must have, and its counts must be such that a unit can have them. */
static void lying_manifests(void **state)
{
    static const struct {
        const char *from, *to, *line;
    } cases[] = {
        {"\"records\": 4", "\"records\": 5", "4 records, its manifest says 5"},
        {"\"records\": 4", "\"records\": 3", "4 records, its manifest says 3"},
        {"\"records\": 4", "\"records\": 9223372036854775807", "cannot have 9223372036854775807 records"},
        {"\"records\": 4", "\"records\": -1", "'records' is -1"},
        {"\"records\": 4", "\"records\": 1e3", "'records' is a number"},
        {"\"first_ordinal\": 0", "\"first_ordinal\": 3", "samples 3 to 2"},
        {"\"last_ordinal\": 2", "\"last_ordinal\": 3", "samples 0 to 2, its manifest says 0 to 3"},
        {"\"last_ordinal\": 2", "\"last_ordinal\": 4294967296", "'last_ordinal' is 4294967296"},
        {"\"payload_bytes\": 5", "\"payload_bytes\": 4", "its manifest says 4 of 4"},
        {"\"payload_bytes\": 5", "\"payload_bytes\": 922337203685477", "cannot stand in a file"},
        {"\"file_bytes\": 1", "\"file_bytes\": 92233720368547", "its manifest says 92233720368547"},
        {"\"ordinal\": 1", "\"ordinal\": -1", "skipped[0]"},
        {"\"reason\"", "\"because\"", "skipped[0]"},
        {"\"key\": \"key-1\"", "\"key\": 1", "skipped[0]"},
        {"\"teacher\": \"clip\"", "\"teacher\": \"../clip\"", "cannot name a teacher"},
        {"\"group\": \"main\"", "\"group\": \"../main\"", "cannot name a view group"},
        {"\"shard\": 3", "\"shard\": 4", "it says of itself"},
        {"\"format\": 1", "\"format\": 2", "this build reads 1"},
    };
    const agglo_unit_id id = make_id(3);
    const char *dir = test_dir();
    const int n_open = n_descriptors();

    (void)state;
    for (size_t i = 0; i < AGGLO_COUNT(cases); i++) {
        char line[1024], name[32];
        agglo_err err = {0};
        const char *cache;

        snprintf(name, sizeof name, "%zu", i);
        cache = test_path(dir, name);
        assert_ok(make_unit(cache, NULL, 3, 3, 2, NULL, &err));
        forge_manifest(cache, cases[i].from, cases[i].to);
        assert_int_not_equal(agglo_unit_verify(cache, &id, &err), AGGLO_OK);
        agglo_err_line(&err, line, sizeof line);
        if (err.status == AGGLO_OK || strstr(line, cases[i].line) == NULL) {
            fail_msg("%s: \"%s\" does not say \"%s\"", cases[i].to, line, cases[i].line);
        }
    }
    assert_int_equal(n_descriptors(), n_open);
}

/* What a later version wrote is neither read nor replaced; a damaged manifest is replaced. */
static void a_later_format_is_left_alone(void **state)
{
    const char *cache = test_dir();
    const agglo_unit_id id = make_id(3);
    agglo_err err = {0};

    (void)state;
    assert_ok(make_unit(cache, NULL, 3, 3, 2, NULL, &err));
    forge_manifest(cache, "\"format\": 1", "\"format\": 2");
    assert_fails(make_unit(cache, NULL, 3, 3, 2, NULL, &err), AGGLO_E_UNSUPPORTED, "format 2, this build reads 1");
    assert_fails(agglo_unit_verify(cache, &id, &err), AGGLO_E_UNSUPPORTED, "format 2");
    assert_ok(agglo_file_write(json_path(cache), "{}", 2, &err));
    assert_ok(make_unit(cache, NULL, 3, 3, 2, NULL, &err));
    assert_ok(agglo_unit_verify(cache, &id, &err));
}

/* Bounds whose product no map can have; nothing stays behind. */
static void units_that_are_too_large(void **state)
{
    static const struct {
        size_t max_bytes;
        uint64_t max_records;
    } bounds[] = {{SIZE_MAX, 1},          {SIZE_MAX - 4096, 0},  {100, UINT64_MAX},
                  {1, UINT64_C(1) << 52}, {UINT32_MAX, 1 << 20}, {(size_t)UINT32_MAX + 1, 1}};
    const agglo_unit_id id = make_id(3);
    const agglo_provenance provenance = make_provenance();
    const char *cache = test_dir();
    const int n_open = n_descriptors();
    agglo_arena *arena = NULL;
    agglo_err err = {0};
    char **names;
    size_t n = 0;

    (void)state;
    for (size_t i = 0; i < AGGLO_COUNT(bounds); i++) {
        agglo_unit_writer *writer = NULL;

        assert_fails(agglo_unit_writer_new(&writer, cache, NULL, &id, &provenance, bounds[i].max_bytes,
                                           bounds[i].max_records, &err),
                     AGGLO_E_MEMORY, "too much for one file");
        assert_null(writer);
    }
    assert_ok(agglo_arena_new(&arena, 0, &err));
    assert_ok(agglo_list_dir(test_path(cache, "clip"), arena, &names, &n, &err));
    assert_int_equal(n, 0);
    agglo_arena_free(arena);
    assert_int_equal(n_descriptors(), n_open);
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
        cmocka_unit_test(lying_manifests),
        cmocka_unit_test(a_later_format_is_left_alone),
        cmocka_unit_test(units_that_are_too_large),
    };

    return test_run("unit", tests);
}
