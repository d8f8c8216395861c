/* Ingest from synthetic tars of every dialect and damage, and of the real pictures where they are. */
#include "tests/support/support.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/hash.h"
#include "ingest/index.h"
#include "ingest/sample.h"
#include "tests/unit/ingest/make_tar.h"

/* ---- tests ---- */

static void test_names(void **state)
{
    static const struct {
        const char *name, *key;
        agglo_name_kind kind;
    } cases[] = {
        {"000012.jpg", "000012", AGGLO_NAME_MEMBER},
        {"a.b/c.tar.gz", "a.b/c", AGGLO_NAME_MEMBER},
        {"./000.jpg", "./000", AGGLO_NAME_MEMBER},
        {"x.JPG", "x", AGGLO_NAME_MEMBER},
        {"a..b", "a", AGGLO_NAME_MEMBER},
        {"a/b.", "a/b", AGGLO_NAME_MEMBER},
        {"dir/.foo", "dir/", AGGLO_NAME_MEMBER},
        {".foo", "", AGGLO_NAME_NO_KEY},
        {"a/b", "", AGGLO_NAME_NO_KEY},
        {"a.b/c", "", AGGLO_NAME_NO_KEY},
        {"__meta__", "", AGGLO_NAME_META},
        {"__", "", AGGLO_NAME_META},
        {"___", "", AGGLO_NAME_META},
        {"___/x.jpg", "___/x", AGGLO_NAME_MEMBER},
        {"./.jpg", "", AGGLO_NAME_NO_KEY},
        {"a.b/.jpg", "", AGGLO_NAME_NO_KEY},
        {"__m__/x.jpg", "", AGGLO_NAME_META},
        {"__x.jpg", "__x", AGGLO_NAME_MEMBER},
    };

    (void)state;
    for (size_t i = 0; i < AGGLO_COUNT(cases); i++) {
        size_t n = 0;

        assert_int_equal(agglo_name_split(cases[i].name, &n), cases[i].kind);
        if (cases[i].kind == AGGLO_NAME_MEMBER) {
            assert_int_equal(n, strlen(cases[i].key));
        }
    }
}

static void test_members_and_their_order(void **state)
{
    agglo_err err = {0};
    const char *dir = test_dir(), *source = test_path(dir, "a.tar"), *out = test_path(dir, "out");
    agglo_ingest_options options = options_for(out);
    agglo_ingest_report report;
    agglo_dataset *dataset;
    agglo_sample sample;
    uint32_t shard, ordinal;
    static const char json[] = "{\"uid\": \"00112233445566778899AABBCCDDEEFF\", \"x\": null}";
    char long_key[200];
    tar t = tar_begin(source, NULL, false);

    (void)state;
    tar_add(&t, "a.txt", "first", 5);
    tar_add(&t, "b.JPG", jpeg, n_jpeg);
    tar_add(&t, "b.json", json, strlen(json));
    tar_add(&t, "a.jpg", png, n_png); /* a png in the clothes of a jpg, away from its text */
    tar_add(&t, "a.cls", "42\n", 3);
    tar_add(&t, "a.cls", "43\n", 3);        /* duplicate_member */
    tar_add(&t, "b.jpg", png, n_png);       /* duplicate_key */
    tar_add(&t, "c.txt", "alone", 5);       /* no_image */
    tar_add(&t, "d.jpg", "<html>", 6);      /* not_an_image */
    tar_add(&t, "e.jpg", jpeg, n_jpeg / 2); /* truncated */
    tar_add(&t, "nokey", "x", 1);           /* unsupported_member */
    tar_add(&t, "f.jpg", webp, n_webp);
    tar_add(&t, "f.json", json, strlen(json)); /* duplicate_uid */
    memset(long_key, 'k', sizeof long_key);
    long_key[150] = 0;
    strcat(long_key, ".webp");
    tar_add(&t, long_key, webp, n_webp);
    long_key[150] = 0;
    tar_end(&t);
    assert_ok(agglo_ingest(&source, 1, &options, &report, &err));
    assert_int_equal(report.samples_in, 7);
    assert_int_equal(report.samples_kept, 3);
    assert_int_equal(report.samples_rejected, 4);
    assert_int_equal(report.shards_failed, 0);
    static const char *const reasons[] = {"duplicate_member", "duplicate_key",      "no_image",     "not_an_image",
                                          "truncated",        "unsupported_member", "duplicate_uid"};
    for (size_t i = 0; i < AGGLO_COUNT(reasons); i++) {
        assert_int_equal(count_of(&report, reasons[i]), 1);
    }
    json_decref(report.rejected);

    assert_ok(agglo_dataset_open(&dataset, &out, 1, &err));
    assert_ok(agglo_dataset_find(dataset, "a", &shard, &ordinal, &err));
    assert_ok(agglo_dataset_sample(dataset, shard, ordinal, &sample, &err));
    assert_int_equal(sample.format, AGGLO_IMAGE_PNG);
    assert_int_equal(sample.label, 42);
    assert_int_equal(sample.caption.size, 5);
    assert_memory_equal(sample.caption.data, "first", 5);
    assert_int_equal(sample.image.size, n_png);
    assert_memory_equal(sample.image.data, png, n_png);
    assert_ok(agglo_dataset_find(dataset, "00112233445566778899aabbccddeeff", &shard, &ordinal, &err));
    assert_ok(agglo_dataset_sample(dataset, shard, ordinal, &sample, &err));
    assert_string_equal(sample.key, "b");
    assert_int_equal(sample.json.size, strlen(json));
    assert_memory_equal(sample.json.data, json, strlen(json));
    assert_ok(agglo_dataset_find(dataset, long_key, &shard, &ordinal, &err));
    assert_ok(agglo_dataset_find(dataset, "0/2", &shard, &ordinal, &err));
    assert_fails(agglo_dataset_find(dataset, "0/3", &shard, &ordinal, &err), AGGLO_E_NOT_FOUND, "0/3");
    assert_fails(agglo_dataset_sample(dataset, 1, 0, &sample, &err), AGGLO_E_NOT_FOUND, "1/0");
    assert_ok(agglo_dataset_shard_verify(dataset, 0, &err));
    agglo_dataset_close(dataset);

    /* the output is itself a source, and nothing is lost */
    source = test_path(out, "shards/000000.tar");
    options = options_for(test_path(dir, "again"));
    assert_ok(agglo_ingest(&source, 1, &options, &report, &err));
    assert_int_equal(report.samples_kept, 3);
    json_decref(report.rejected);
    expect_same_file(out, options.out, "shards/000000.tar");
    expect_same_file(out, options.out, "index.bin");
}

static void test_dialects_give_the_same(void **state)
{
    agglo_err err = {0};
    const char *dir = test_dir();
    static const struct {
        const char *name, *filter;
        bool gnu;
    } kinds[] = {{"pax", NULL, false}, {"gnu", NULL, true}, {"gz", "gzip", false}, {"zst", "zstd", true}};
    char prefix[161], first[256] = "";

    (void)state;
    memset(prefix, 'p', 160); /* long enough for PAX paths and GNU long names */
    prefix[160] = 0;
    for (size_t i = 0; i < AGGLO_COUNT(kinds); i++) {
        char name[64];
        const char *source, *out;
        agglo_ingest_options options;
        agglo_ingest_report report;

        snprintf(name, sizeof name, "%s.tar", kinds[i].name);
        source = test_path(dir, name);
        out = test_path(dir, kinds[i].name);
        options = options_for(out);
        make_plain(source, kinds[i].filter, kinds[i].gnu, prefix, 20);
        assert_ok(agglo_ingest(&source, 1, &options, &report, &err));
        assert_int_equal(report.samples_kept, 20);
        assert_int_equal(report.shards_failed, 0);
        json_decref(report.rejected);
        if (i == 0) {
            snprintf(first, sizeof first, "%s", out);
        } else {
            expect_same_file(first, out, "shards/000000.tar");
            expect_same_file(first, out, "index.bin");
        }
    }
}

static void test_damaged_and_missing_shards_cost_themselves(void **state)
{
    agglo_err err = {0};
    const char *dir = test_dir();
    const char *sources[4] = {test_path(dir, "cut.tar"), test_path(dir, "missing.tar"), test_path(dir, "junk.tar"),
                              test_path(dir, "good.tar")};
    agglo_ingest_options options = options_for(test_path(dir, "out"));
    agglo_ingest_report report;
    char *bytes;
    size_t n;

    (void)state;
    make_plain(sources[0], NULL, false, "cut", 10);
    assert_ok(agglo_file_read(sources[0], 1 << 24, &bytes, &n, &err));
    assert_ok(agglo_file_write(sources[0], bytes, n / 2, &err));
    agglo_free(bytes);
    assert_ok(agglo_file_write(sources[2], "this is not a tar at all", 24, &err));
    make_plain(sources[3], NULL, false, "good", 10);
    assert_ok(agglo_ingest(sources, 4, &options, &report, &err));
    assert_int_equal(report.shards_in, 4);
    assert_int_equal(report.shards_failed, 3);
    assert_true(report.samples_kept >= 14 && report.samples_kept <= 15);
    assert_int_equal(count_of(&report, "shard_truncated"), 1);
    assert_int_equal(count_of(&report, "shard_missing"), 1);
    assert_int_equal(count_of(&report, "shard_corrupt"), 1);
    json_decref(report.rejected);
    /* done before: the same report, and nothing is touched */
    assert_ok(agglo_ingest(sources, 4, &options, &report, &err));
    assert_true(report.up_to_date);
    assert_int_equal(report.shards_failed, 3);
    json_decref(report.rejected);
    /* fewer of the same sources are there already; other options make another dataset */
    assert_ok(agglo_ingest(sources, 3, &options, &report, &err));
    assert_true(report.up_to_date);
    json_decref(report.rejected);
    options.min_side = 5;
    assert_fails(agglo_ingest(sources, 4, &options, &report, &err), AGGLO_E_CONFIG, "min_side 0, not 5");
    json_decref(report.rejected);
}

static void test_one_key_in_two_sources(void **state)
{
    agglo_err err = {0};
    const char *dir = test_dir(), *out = test_path(dir, "out");
    const char *sources[2] = {test_path(dir, "a.tar"), test_path(dir, "b.tar")};
    agglo_ingest_options options = options_for(out);
    agglo_ingest_report report;
    agglo_dataset *dataset;
    uint32_t shard, ordinal;
    tar t;

    (void)state;
    make_plain(sources[0], NULL, false, "", 5);
    t = tar_begin(sources[1], NULL, false);
    tar_add(&t, "new.jpg", jpeg, n_jpeg);
    tar_add(&t, "0003.png", png, n_png);
    tar_end(&t);
    assert_ok(agglo_ingest(sources, 2, &options, &report, &err));
    assert_int_equal(report.samples_kept, 7);
    json_decref(report.rejected);
    assert_ok(agglo_dataset_open(&dataset, &out, 1, &err));
    assert_int_equal(agglo_dataset_shards(dataset), 2);
    assert_int_equal(agglo_dataset_shard(dataset, 0)->n_samples, 6);
    assert_fails(agglo_dataset_find(dataset, "0003", &shard, &ordinal, &err), AGGLO_E_DATA, "0/3 and 1/0");
    agglo_dataset_close(dataset);
}

static void test_limits(void **state)
{
    agglo_err err = {0};
    const char *dir = test_dir(), *source = test_path(dir, "a.tar");
    agglo_ingest_options options = options_for(test_path(dir, "small"));
    agglo_ingest_report report;

    (void)state;
    make_plain(source, NULL, false, "k", 4);
    options.min_side = 22; /* the pictures are 29 x 21 */
    assert_ok(agglo_ingest(&source, 1, &options, &report, &err));
    assert_int_equal(count_of(&report, "too_small"), 4);
    json_decref(report.rejected);
    options = options_for(test_path(dir, "aspect"));
    options.max_aspect = 1.3;
    assert_ok(agglo_ingest(&source, 1, &options, &report, &err));
    assert_int_equal(count_of(&report, "bad_aspect"), 4);
    json_decref(report.rejected);
    options = options_for(test_path(dir, "bytes"));
    options.max_image_bytes = n_jpeg - 1;
    assert_ok(agglo_ingest(&source, 1, &options, &report, &err));
    assert_int_equal(count_of(&report, "image_too_big"), 4);
    json_decref(report.rejected);
}

static void test_jobs_change_nothing(void **state)
{
    agglo_err err = {0};
    path_text dir = path_in(test_dir(), ""), first = path_in(dir.text, "1"), file = path_in(dir.text, "a.tar");
    const char *source = file.text;

    (void)state;
    make_plain(source, NULL, false, "k", 50);
    for (int jobs = 1; jobs <= 3; jobs++) {
        char name[2] = {(char)('0' + jobs), 0};
        path_text out = path_in(dir.text, name);
        agglo_ingest_options options = options_for(out.text);
        agglo_ingest_report report;

        options.jobs = jobs;
        options.shard_samples = 16;
        assert_ok(agglo_ingest(&source, 1, &options, &report, &err));
        json_decref(report.rejected);
        if (jobs > 1) {
            expect_same_dataset(first.text, out.text);
        }
    }
}

static void test_a_killed_run_goes_on(void **state)
{
    agglo_err err = {0};
    path_text dir = path_in(test_dir(), ""), whole = path_in(dir.text, "whole"), file = path_in(dir.text, "a.tar");
    const char *source = file.text;
    agglo_ingest_options options = options_for(whole.text);
    agglo_ingest_report report;
    uint64_t n_resumed = 0;

    (void)state;
    make_plain(source, NULL, false, "k", 400);
    options.shard_samples = 40;
    assert_ok(agglo_ingest(&source, 1, &options, &report, &err));
    json_decref(report.rejected);
    for (unsigned delay = 0; delay < 120000; delay += 8000) {
        char name[32];
        path_text out;
        pid_t child;

        snprintf(name, sizeof name, "killed%u", delay);
        out = path_in(dir.text, name);
        options.out = out.text;
        child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            agglo_ingest(&source, 1, &options, &report, &err);
            _exit(0);
        }
        usleep(delay);
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
        assert_ok(agglo_ingest(&source, 1, &options, &report, &err));
        n_resumed += report.samples_resumed;
        json_decref(report.rejected);
        expect_same_dataset(whole.text, out.text);
    }
    assert_true(n_resumed > 0);
}

static void test_index_notices_every_flipped_bit(void **state)
{
    agglo_err err = {0};
    const char *dir = test_dir(), *source = test_path(dir, "a.tar"), *out = test_path(dir, "out");
    agglo_ingest_options options = options_for(out);
    agglo_ingest_report report;
    agglo_index *index;
    char *bytes;
    size_t n;

    (void)state;
    make_plain(source, NULL, false, "k", 3);
    assert_ok(agglo_ingest(&source, 1, &options, &report, &err));
    json_decref(report.rejected);
    assert_ok(agglo_file_read(test_path(out, "index.bin"), 1 << 20, &bytes, &n, &err));
    for (size_t bit = 0; bit < n * 8; bit++) {
        bytes[bit / 8] = (char)(bytes[bit / 8] ^ 1 << bit % 8);
        assert_int_not_equal(agglo_index_parse(&index, (agglo_bytes){(uint8_t *)bytes, n}, &err), AGGLO_OK);
        agglo_err_clear(&err);
        bytes[bit / 8] = (char)(bytes[bit / 8] ^ 1 << bit % 8);
    }
    for (size_t cut = 0; cut < n; cut++) {
        assert_int_not_equal(agglo_index_parse(&index, (agglo_bytes){(uint8_t *)bytes, cut}, &err), AGGLO_OK);
        agglo_err_clear(&err);
    }
    assert_ok(agglo_index_parse(&index, (agglo_bytes){(uint8_t *)bytes, n}, &err));
    agglo_index_close(index);
    agglo_free(bytes);
}

static void test_patterns(void **state)
{
    agglo_err err = {0};
    const char *dir = test_dir();
    agglo_arena *arena;
    char **paths;
    size_t n;
    char range[512], glob[512], missing[512];
    const char *one;

    (void)state;
    assert_ok(agglo_arena_new(&arena, 0, &err));
    for (int i = 0; i < 12; i++) {
        char name[32];

        snprintf(name, sizeof name, "%05d.tar", i);
        assert_ok(agglo_file_write(test_path(dir, name), "x", 1, &err));
    }
    snprintf(range, sizeof range, "%s/{00003..00010}.tar", dir);
    one = range;
    assert_ok(agglo_ingest_expand(&one, 1, arena, &paths, &n, &err));
    assert_int_equal(n, 8);
    assert_string_equal(agglo_path_base(paths[0]), "00003.tar");
    assert_string_equal(agglo_path_base(paths[7]), "00010.tar");
    snprintf(range, sizeof range, "%s/0000{1,5}.tar", dir);
    assert_ok(agglo_ingest_expand(&one, 1, arena, &paths, &n, &err));
    assert_int_equal(n, 2);
    assert_string_equal(agglo_path_base(paths[1]), "00005.tar");
    snprintf(glob, sizeof glob, "%s/0001*.tar", dir);
    one = glob;
    assert_ok(agglo_ingest_expand(&one, 1, arena, &paths, &n, &err));
    assert_int_equal(n, 2);
    assert_ok(agglo_ingest_expand(&dir, 1, arena, &paths, &n, &err));
    assert_int_equal(n, 12);
    snprintf(missing, sizeof missing, "%s/*.nothing", dir);
    one = missing;
    assert_fails(agglo_ingest_expand(&one, 1, arena, &paths, &n, &err), AGGLO_E_CONFIG, "matches no file");
    agglo_arena_free(arena);
}

static void test_real_pictures(void **state)
{
    agglo_err err = {0};
    const char *shards = test_shared("shards"), *out = test_path(test_dir(), "out");
    agglo_ingest_options options = options_for(out);
    agglo_ingest_report report;
    agglo_dataset *dataset;
    agglo_arena *arena;
    char **paths;
    size_t n;
    int counts[AGGLO_IMAGE_GIF + 1] = {0};

    (void)state;
    if (shards == NULL) {
        skip();
    }
    assert_ok(agglo_arena_new(&arena, 0, &err));
    assert_ok(agglo_ingest_expand(&shards, 1, arena, &paths, &n, &err));
    assert_int_equal(n, 8);
    options.shard_samples = 100;
    assert_ok(agglo_ingest((const char *const *)paths, n, &options, &report, &err));
    assert_int_equal(report.samples_in, 512);
    assert_int_equal(report.samples_kept, 512);
    assert_int_equal(json_object_size(report.rejected), 0);
    json_decref(report.rejected);
    assert_ok(agglo_dataset_open(&dataset, &out, 1, &err));
    assert_int_equal(agglo_dataset_samples(dataset), 512);
    assert_int_equal(agglo_dataset_shards(dataset), 6);
    for (uint32_t s = 0; s < agglo_dataset_shards(dataset); s++) {
        assert_ok(agglo_dataset_shard_verify(dataset, s, &err));
        for (uint32_t i = 0; i < agglo_dataset_shard(dataset, s)->n_samples; i++) {
            agglo_sample sample, again;
            uint32_t shard, ordinal;

            assert_ok(agglo_dataset_sample(dataset, s, i, &sample, &err));
            assert_true(agglo_dataset_find_uid(dataset, sample.uid, &shard, &ordinal));
            assert_true(shard == s && ordinal == i);
            assert_ok(agglo_dataset_find(dataset, sample.key, &shard, &ordinal, &err));
            assert_ok(agglo_dataset_sample(dataset, shard, ordinal, &again, &err));
            assert_true(again.image.data == sample.image.data && again.json.size > 0 && again.label >= 0);
            counts[sample.format]++;
        }
    }
    assert_int_equal(counts[AGGLO_IMAGE_JPEG], 435);
    assert_int_equal(counts[AGGLO_IMAGE_WEBP], 51);
    assert_int_equal(counts[AGGLO_IMAGE_PNG], 26);
    agglo_dataset_close(dataset);
    agglo_arena_free(arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(load_pictures),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_members_and_their_order),
        cmocka_unit_test(test_dialects_give_the_same),
        cmocka_unit_test(test_damaged_and_missing_shards_cost_themselves),
        cmocka_unit_test(test_one_key_in_two_sources),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_jobs_change_nothing),
        cmocka_unit_test(test_a_killed_run_goes_on),
        cmocka_unit_test(test_index_notices_every_flipped_bit),
        cmocka_unit_test(test_patterns),
        cmocka_unit_test(test_real_pictures),
        cmocka_unit_test(free_pictures),
    };

    return test_run("ingest", tests);
}
