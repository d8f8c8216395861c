/* The cache directory: descriptions written once, units found and read by many threads with few of them open, mismatches by name. */
#include "make_unit.h"

#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.h"
#include "cache/cache.h"

static const agglo_cache_group main_group = {.name = "main", .fingerprint = "bb"};

static agglo_cache_teacher some_teacher(void)
{
    return (agglo_cache_teacher){.name = "clip",
                                 .arch = "clip-tiny",
                                 .weights = "ee",
                                 .preprocess = "cc",
                                 .codec = "fp16",
                                 .input = 32,
                                 .patch = 4,
                                 .grid_h = 8,
                                 .grid_w = 8,
                                 .summary_dim = 4,
                                 .spatial_dim = 8};
}

/* A cache with `n_shards` units of 8 samples. */
static void fill_cache(const char *dir, uint32_t n_shards)
{
    agglo_cache_teacher teacher = some_teacher();
    agglo_err err = {0};

    assert_ok(agglo_cache_create(dir, &main_group, 1, &err));
    assert_ok(agglo_cache_add_teacher(dir, &teacher, &err));
    for (uint32_t shard = 0; shard < n_shards; shard++) {
        assert_ok(make_unit(dir, NULL, shard, 8, 2, NULL, &err));
    }
}

static const char *some_cache(uint32_t n_shards)
{
    const char *dir = test_dir();

    fill_cache(dir, n_shards);
    return dir;
}

static void descriptions_are_written_once(void **state)
{
    const char *dir = test_dir();
    agglo_cache_group groups[2] = {main_group, {.name = "hires", .fingerprint = "dd"}};
    agglo_cache_teacher teacher = some_teacher();
    agglo_err err = {0};

    (void)state;
    for (int i = 0; i < 2; i++) {
        assert_ok(agglo_cache_create(dir, groups, 1, &err));
        assert_ok(agglo_cache_add_teacher(dir, &teacher, &err));
    }
    assert_fails(agglo_cache_create(dir, groups, 2, &err), AGGLO_E_MISMATCH, "no view group hires");
    strcpy(groups[0].fingerprint, "b0");
    assert_fails(agglo_cache_create(dir, groups, 1, &err), AGGLO_E_MISMATCH, "view group main: found bb, expected b0");
    strcpy(teacher.weights, "e0");
    assert_fails(agglo_cache_add_teacher(dir, &teacher, &err), AGGLO_E_MISMATCH, "weights: found ee, expected e0");
    teacher = some_teacher();
    teacher.grid_h = 9;
    assert_fails(agglo_cache_add_teacher(dir, &teacher, &err), AGGLO_E_MISMATCH, "grid_h: found 8, expected 9");
    strcpy(teacher.name, "../clip");
    assert_fails(agglo_cache_add_teacher(dir, &teacher, &err), AGGLO_E_CONFIG, "cannot name a teacher");
    strcpy(teacher.name, "large");
    teacher.grid_h = teacher.grid_w = teacher.spatial_dim = 2000;
    assert_fails(agglo_cache_add_teacher(dir, &teacher, &err), AGGLO_E_CONFIG, "no record under codec fp16");
    teacher.grid_h = 65536;
    assert_fails(agglo_cache_add_teacher(dir, &teacher, &err), AGGLO_E_CONFIG, "grid_h is 65536");
    assert_false(agglo_path_exists(test_path(dir, "large")));
    groups[1] = groups[0];
    assert_fails(agglo_cache_create(test_path(dir, "a"), groups, 2, &err), AGGLO_E_CONFIG, "stands there twice");
    strcpy(groups[0].name, "../main");
    assert_fails(agglo_cache_create(test_path(dir, "a"), groups, 1, &err), AGGLO_E_CONFIG, "cannot name a view group");
    assert_false(agglo_path_exists(test_path(dir, "a")));
}

/* Descriptions come from anywhere: each of these is refused when the cache is opened, by name. */
static void hostile_descriptions(void **state)
{
    static const struct {
        const char *file, *text, *line;
    } cases[] = {
        {"cache.json", "{\"format\": 1, \"groups\": [{\"name\": \"../x\", \"fingerprint\": \"a\"}]}",
         "cannot name a view group"},
        {"cache.json", "{\"format\": 1, \"groups\": [{\"name\": \"\", \"fingerprint\": \"a\"}]}", "view group"},
        {"cache.json",
         "{\"format\": 1, \"groups\": [{\"name\": \"a\", \"fingerprint\": \"a\"}, {\"name\": \"a\", \"fingerprint\": "
         "\"b\"}]}",
         "stands there twice"},
        {"cache.json", "{\"format\": 1, \"groups\": [7]}", "groups[0]"},
        {"cache.json", "{\"format\": 2, \"groups\": []}", "this build reads 1"},
        {"cache.json", "{\"format\": 1, \"groups\": ", "line 1"},
        {"clip/teacher.json", "{\"format\": 1, \"name\": \"../clip\"}", "'arch' is missing"},
        {"clip/teacher.json", "[]", "'format' is missing"},
        {"clip/teacher.json",
         "{\"format\": 1, \"name\": \"../clip\", \"arch\": \"\", \"weights\": \"\", \"preprocess\": \"\", \"codec\": "
         "\"\","
         " \"options\": \"\", \"input\": 1, \"patch\": 1, \"grid_h\": 1, \"grid_w\": 1, \"summary_dim\": 1, "
         "\"spatial_dim\": 1}",
         "it describes teacher ../clip"},
    };

    const char *root = test_dir();

    (void)state;
    for (size_t i = 0; i < AGGLO_COUNT(cases); i++) {
        agglo_cache *cache = NULL;
        char line[1024], name[32];
        agglo_err err = {0};
        const char *dir;

        snprintf(name, sizeof name, "%zu", i);
        dir = test_path(root, name);
        fill_cache(dir, 0);
        assert_ok(agglo_file_write(test_path(dir, cases[i].file), cases[i].text, strlen(cases[i].text), &err));
        assert_int_not_equal(agglo_cache_open(&cache, dir, 0, &err), AGGLO_OK);
        assert_null(cache);
        agglo_err_line(&err, line, sizeof line);
        if (strstr(line, cases[i].line) == NULL || strstr(line, cases[i].file) == NULL) {
            fail_msg("case %zu: \"%s\" does not say \"%s\" and the file", i, line, cases[i].line);
        }
    }
}

/* Temporary names of a killed process with our number, or of another machine's, are neither used nor removed. */
static void taken_temporary_names(void **state)
{
    const char *dir = test_dir();
    agglo_err err = {0};
    char name[64];

    (void)state;
    for (int serial = 0; serial < 100; serial++) {
        snprintf(name, sizeof name, ".tmp-%ld-%d-cache.json", (long)getpid(), serial);
        assert_ok(agglo_file_write(test_path(dir, name), "x", 1, &err));
    }
    assert_ok(agglo_cache_create(dir, &main_group, 1, &err));
    for (int serial = 0; serial < 100; serial++) {
        uint64_t n_bytes = 0;

        snprintf(name, sizeof name, ".tmp-%ld-%d-cache.json", (long)getpid(), serial);
        assert_ok(agglo_file_size(test_path(dir, name), &n_bytes, &err));
        assert_int_equal(n_bytes, 1);
    }
}

/* Eight processes at once, two opinions: those of the winner's succeed, the others are refused. */
static void the_first_description_wins(void **state)
{
    const char *dir = test_dir();
    agglo_cache *cache = NULL;
    agglo_err err = {0};
    pid_t pids[8];
    int winner;

    (void)state;
    for (int i = 0; i < 8; i++) {
        pids[i] = fork();
        if (pids[i] == 0) {
            agglo_cache_group group = main_group;

            strcpy(group.fingerprint, i % 2 == 0 ? "even" : "odd");
            _exit((int)agglo_cache_create(dir, &group, 1, &err));
        }
        assert_true(pids[i] > 0);
    }
    for (int i = 0; i < 8; i++) {
        int status;

        assert_int_equal(waitpid(pids[i], &status, 0), pids[i]);
        assert_true(WIFEXITED(status));
        pids[i] = WEXITSTATUS(status);
    }
    assert_ok(agglo_cache_open(&cache, dir, 0, &err));
    winner = strcmp(agglo_cache_group_at(cache, 0)->fingerprint, "even") == 0 ? 0 : 1;
    for (int i = 0; i < 8; i++) {
        assert_int_equal(pids[i], i % 2 == winner ? AGGLO_OK : AGGLO_E_MISMATCH);
    }
    agglo_cache_close(cache);
}

static void only_finished_units_are_listed(void **state)
{
    const char *dir = some_cache(3);
    agglo_cache *cache = NULL;
    agglo_err err = {0};

    (void)state;
    assert_ok(agglo_file_write(test_path(dir, "clip/.tmp-1-2-main-000007-v0-1.json"), "{}", 2, &err));
    assert_ok(agglo_file_write(test_path(dir, "clip/main-000007-v0-1.lmdb"), "x", 1, &err));
    assert_ok(agglo_file_write(test_path(dir, "clip/main-7-v0-1.json"), "{}", 2, &err));
    assert_ok(agglo_file_write(test_path(dir, "clip/main-000008-v0-1.json"), "{}", 2, &err)); /* damaged */
    agglo_log_set_level(AGGLO_LOG_ERROR);
    assert_ok(agglo_cache_open(&cache, dir, 0, &err));
    agglo_log_set_level(AGGLO_LOG_INFO);
    assert_int_equal(agglo_cache_units(cache), 3);
    assert_int_equal(agglo_cache_damaged(cache), 1);
    for (uint32_t i = 0; i < 3; i++) {
        assert_int_equal(agglo_cache_unit_at(cache, i)->id.shard, i);
    }
    assert_int_equal(agglo_cache_find_teacher(cache, "clip")->spatial_dim, 8);
    assert_null(agglo_cache_find_teacher(cache, "sam"));
    agglo_cache_close(cache);
    assert_fails(agglo_cache_open(&cache, test_path(dir, "none"), 0, &err), AGGLO_E_NOT_FOUND, "cache.json");
}

static void refusals_name_their_reason(void **state)
{
    const char *dir = some_cache(2);
    agglo_provenance expected = make_provenance();
    agglo_cache *cache = NULL;
    uint8_t *buffer = NULL;
    size_t capacity = 0;
    agglo_record record;
    agglo_err err = {0};
    FILE *f;

    (void)state;
    f = fopen(test_path(dir, "clip/main-000001-v0-1.lmdb"), "r+");
    assert_non_null(f);
    fseek(f, 9000, SEEK_SET);
    fputc(0x5a, f);
    fclose(f);
    assert_ok(agglo_cache_open(&cache, dir, 0, &err));
    assert_ok(agglo_cache_read(cache, "clip", "main", 0, 2, 1, &expected, &buffer, &capacity, &record, &err));
    assert_int_equal(record.info.pixel_hash, 2);
    assert_fails(agglo_cache_read(cache, "clip", "main", 0, 1, 1, &expected, &buffer, &capacity, &record, &err),
                 AGGLO_E_NOT_FOUND, "no record 1");
    assert_fails(agglo_cache_read(cache, "clip", "main", 5, 0, 1, NULL, &buffer, &capacity, &record, &err),
                 AGGLO_E_NOT_FOUND, "shard 5, view 1");
    assert_fails(agglo_cache_read(cache, "clip", "main", 0, 0, 2, NULL, &buffer, &capacity, &record, &err),
                 AGGLO_E_NOT_FOUND, "view 2");
    for (int i = 0; i < 2; i++) {
        assert_fails(agglo_cache_read(cache, "clip", "main", 1, 0, 0, NULL, &buffer, &capacity, &record, &err),
                     AGGLO_E_DATA, "its manifest says");
    }
    agglo_cache_close(cache);
    assert_int_equal(unlink(test_path(dir, "clip/main-000001-v0-1.lmdb")), 0);
    assert_ok(agglo_cache_open(&cache, dir, 0, &err));
    assert_fails(agglo_cache_read(cache, "clip", "main", 1, 0, 0, NULL, &buffer, &capacity, &record, &err),
                 AGGLO_E_DATA, "No such file");
    strcpy(expected.decoder, "d0");
    assert_fails(agglo_cache_read(cache, "clip", "main", 0, 2, 1, &expected, &buffer, &capacity, &record, &err),
                 AGGLO_E_MISMATCH, "decoder: found dd, expected d0");
    agglo_free(buffer);
    agglo_cache_close(cache);
}

typedef struct reader {
    agglo_cache *cache;
    uint64_t seed;
    int n_wrong;
} reader;

static void *read_at_random(void *context)
{
    reader *r = context;
    test_random random = test_random_new(r->seed);
    uint8_t *buffer = NULL;
    size_t capacity = 0;

    for (int i = 0; i < 300; i++) {
        uint32_t shard = test_random_u32(&random) % 6, ordinal = 2 + test_random_u32(&random) % 6;
        int view = (int)(test_random_u32(&random) % 2);
        agglo_record record;
        agglo_err err = {0};

        if (agglo_cache_read(r->cache, "clip", "main", shard, ordinal, view, NULL, &buffer, &capacity, &record, &err) !=
                AGGLO_OK ||
            record.info.pixel_hash != ordinal) {
            r->n_wrong++;
        }
    }
    agglo_free(buffer);
    return NULL;
}

static void many_readers_few_open_units(void **state)
{
    agglo_cache *cache = NULL;
    agglo_err err = {0};

    (void)state;
    assert_ok(agglo_cache_open(&cache, some_cache(6), 2, &err));
    for (int round = 0; round < 2; round++) {
        reader readers[6];
        pthread_t threads[6];

        for (uint64_t i = 0; i < 6; i++) {
            readers[i] = (reader){cache, i, 0};
            assert_int_equal(pthread_create(&threads[i], NULL, read_at_random, &readers[i]), 0);
        }
        for (int i = 0; i < 6; i++) {
            pthread_join(threads[i], NULL);
            assert_int_equal(readers[i].n_wrong, 0);
        }
    }
    agglo_cache_close(cache);
}

static void failing_allocations(void **state)
{
    const char *dir = some_cache(2);
    agglo_status status = AGGLO_E_MEMORY;
    int64_t n;

    (void)state;
    for (n = 0; status != AGGLO_OK; n++) {
        agglo_cache *cache = NULL;
        uint8_t *buffer = NULL;
        size_t capacity = 0;
        agglo_record record;
        agglo_err err = {0};

        agglo_alloc_fail_after(n);
        status = agglo_cache_open(&cache, dir, 0, &err);
        if (status == AGGLO_OK) {
            status = agglo_cache_read(cache, "clip", "main", 1, 3, 0, NULL, &buffer, &capacity, &record, &err);
        }
        agglo_alloc_fail_after(-1);
        assert_true(status == AGGLO_OK || (status == AGGLO_E_MEMORY && err.status == status));
        agglo_free(buffer);
        agglo_cache_close(cache);
    }
    assert_true(n > 15);
}

static bool has_temporary_files(const char *dir)
{
    agglo_arena *arena = NULL;
    agglo_err err = {0};
    char **names;
    bool found = false;
    size_t n = 0;

    assert_ok(agglo_arena_new(&arena, 0, &err));
    assert_ok(agglo_list_dir(dir, arena, &names, &n, &err));
    for (size_t i = 0; i < n; i++) {
        found |= agglo_is_temp_name(names[i]);
    }
    agglo_arena_free(arena);
    return found;
}

static void failing_allocations_of_descriptions(void **state)
{
    const char *root = test_dir();
    const agglo_cache_teacher teacher = some_teacher();
    agglo_status status = AGGLO_E_MEMORY;
    int64_t n;

    (void)state;
    for (n = 0; status != AGGLO_OK; n++) {
        const char *dir;
        agglo_err err = {0};
        char name[32];

        snprintf(name, sizeof name, "%d", (int)n);
        dir = test_path(root, name);
        agglo_alloc_fail_after(n);
        status = agglo_cache_create(dir, &main_group, 1, &err);
        if (status == AGGLO_OK) {
            status = agglo_cache_add_teacher(dir, &teacher, &err);
        }
        agglo_alloc_fail_after(-1);
        assert_true(status == AGGLO_OK || (status == AGGLO_E_MEMORY && err.status == status));
        assert_false(agglo_path_is_dir(dir) && has_temporary_files(dir));
        dir = test_path(dir, "clip");
        assert_false(agglo_path_is_dir(dir) && has_temporary_files(dir));
    }
    assert_true(n > 15);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(descriptions_are_written_once),
        cmocka_unit_test(the_first_description_wins),
        cmocka_unit_test(only_finished_units_are_listed),
        cmocka_unit_test(refusals_name_their_reason),
        cmocka_unit_test(hostile_descriptions),
        cmocka_unit_test(taken_temporary_names),
        cmocka_unit_test(many_readers_few_open_units),
        cmocka_unit_test(failing_allocations),
        cmocka_unit_test(failing_allocations_of_descriptions),
    };

    return test_run("cache", tests);
}
