/* Ingest that is stopped, killed, damaged, starved of memory, and added to: in the end always the bytes of an undisturbed run. */
#include "tests/unit/ingest/make_tar.h"

#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/hash.h"
#include "base/journal.h"
#include "base/stop.h"

enum { N_SAMPLES = 3000 };

static void *raise_soon(void *context)
{
    usleep(*(unsigned *)context);
    agglo_stop_raise();
    return NULL;
}

/* Run and ask it to stop after that long; true when it was stopped. */
static bool run_stopped(const char *const *sources, size_t n, const agglo_ingest_options *options,
                        unsigned microseconds)
{
    agglo_ingest_report report;
    agglo_err err = {0};
    pthread_t thread;
    agglo_status status;

    assert_int_equal(pthread_create(&thread, NULL, raise_soon, &microseconds), 0);
    status = agglo_ingest(sources, n, options, &report, &err);
    pthread_join(thread, NULL);
    agglo_stop_reset();
    json_decref(report.rejected);
    assert_true(status == AGGLO_OK || status == AGGLO_E_STOPPED);
    return status == AGGLO_E_STOPPED;
}

static uint64_t run_whole(const char *const *sources, size_t n, const agglo_ingest_options *options)
{
    agglo_ingest_report report;
    agglo_err err = {0};

    assert_ok(agglo_ingest(sources, n, options, &report, &err));
    json_decref(report.rejected);
    return report.samples_resumed;
}

/* The report of the whole, however it came about. */
static void expect_same_report(const agglo_ingest_options *a, const agglo_ingest_options *b, const char *const *sources,
                               size_t n)
{
    const agglo_ingest_options *options[2] = {a, b};
    agglo_ingest_report reports[2];
    agglo_err err = {0};

    for (int k = 0; k < 2; k++) {
        assert_ok(agglo_ingest(sources, n, options[k], &reports[k], &err));
        assert_true(reports[k].up_to_date);
    }
    assert_int_equal(reports[0].samples_in, reports[1].samples_in);
    assert_int_equal(reports[0].bytes_in, reports[1].bytes_in);
    assert_int_equal(reports[0].shards_failed, reports[1].shards_failed);
    assert_true(json_equal(reports[0].rejected, reports[1].rejected));
    json_decref(reports[0].rejected);
    json_decref(reports[1].rejected);
}

/* Three sources with everything in them that a run has to remember: rejects of both kinds, out of order members, one cut short. */
static void make_sources(const char *dir, path_text paths[3], const char *sources[3])
{
    agglo_err err = {0};
    char *bytes, *picture = agglo_alloc(n_jpeg + 8, 1, &err);
    size_t n;

    assert_non_null(picture);
    memcpy(picture, jpeg, n_jpeg);
    for (int k = 0; k < 3; k++) {
        char name[16];
        tar t;

        snprintf(name, sizeof name, "%d.tar", k);
        paths[k] = path_in(dir, name);
        sources[k] = paths[k].text;
        t = tar_begin(sources[k], k == 1 ? "gzip" : NULL, k == 2);
        for (int i = 0; i < N_SAMPLES / 3; i++) {
            char text[64];

            snprintf(name, sizeof name, "%d%05d.jpg", k, i);
            agglo_put_le64(picture + n_jpeg,
                           (uint64_t)(k * N_SAMPLES + i - (i % 10 == 9))); /* bytes behind its end, one in ten twice */
            tar_add(&t, name, picture, i % 37 == 5 ? n_jpeg / 2 : n_jpeg + 8);
            snprintf(name, sizeof name, "%d%05d.txt", k, i);
            snprintf(text, sizeof text, "caption %d", i);
            tar_add(&t, name, text, strlen(text));
            if (i % 50 == 3) {
                tar_add(&t, name, text, strlen(text));
            }
        }
        tar_end(&t);
    }
    agglo_free(picture);
    assert_ok(agglo_file_read(sources[2], 1 << 28, &bytes, &n, &err));
    assert_ok(agglo_file_write(sources[2], bytes, n * 2 / 3, &err));
    agglo_free(bytes);
}

static void test_a_stopped_run_goes_on_within_a_shard(void **state)
{
    path_text dir = path_in(test_dir(), ""), whole = path_in(dir.text, "whole"), paths[3];
    agglo_ingest_options options = options_for(whole.text), other;
    const char *sources[3];
    int n_stopped = 0;

    (void)state;
    make_sources(dir.text, paths, sources);
    options.shard_samples = 1000;
    options.dedup = false;
    run_whole(sources, 3, &options);
    for (unsigned delay = 20000; delay < 400000; delay = delay * 3 / 2) {
        char name[32];
        path_text out;

        snprintf(name, sizeof name, "stopped%u", delay);
        out = path_in(dir.text, name);
        other = options;
        other.out = out.text;
        for (unsigned wait = delay; run_stopped(sources, 3, &other, wait);
             wait += wait / 8) { /* each time it gets further */
            n_stopped++;
        }
        expect_same_dataset(whole.text, out.text);
        expect_same_report(&options, &other, sources, 3);
    }
    assert_true(n_stopped >= 3);
}

/* Stop in the middle and see that what was done is not done again. */
static bool stop_in_the_middle(const char *const *sources, size_t n, const agglo_ingest_options *options)
{
    agglo_err err = {0};
    unsigned delay = 40000;

    for (int round = 0; round < 12; round++, delay = delay * 4 / 3) {
        assert_ok(agglo_remove_tree(options->out, &err));
        if (run_stopped(sources, n, options, delay)) {
            agglo_arena *arena;
            char **names, dir[512];
            size_t n_names;
            bool open_part = false;

            snprintf(dir, sizeof dir, "%s/shards", options->out);
            assert_ok(agglo_arena_new(&arena, 0, &err));
            assert_ok(agglo_list_dir(dir, arena, &names, &n_names, &err));
            for (size_t i = 0; i < n_names; i++) {
                open_part |= names[i][0] == '.';
            }
            agglo_arena_free(arena);
            if (open_part && n_names >= 2) {
                return true; /* a finished shard and an open one */
            }
        }
    }
    return false;
}

static void test_a_damaged_journal_or_part_costs_work_only(void **state)
{
    path_text dir = path_in(test_dir(), ""), whole = path_in(dir.text, "whole"), out = path_in(dir.text, "out"),
              paths[3];
    path_text journal = path_in(out.text, ".ingest-unfinished");
    agglo_ingest_options options = options_for(whole.text);
    const char *sources[3];
    char *bytes;
    size_t n;
    agglo_err err = {0};

    (void)state;
    make_sources(dir.text, paths, sources);
    options.shard_samples = 300;
    options.dedup = true; /* the digests must be remembered, too */
    run_whole(sources, 3, &options);
    options.out = out.text;
    for (int kind = 0; kind < 6; kind++) {
        if (!stop_in_the_middle(sources, 3, &options)) {
            continue; /* too fast a machine to be caught between two shards: other tests stop it elsewhere */
        }
        assert_ok(agglo_file_read(journal.text, 1 << 28, &bytes, &n, &err));
        if (kind == 0) { /* as it is */
            assert_true(run_whole(sources, 3, &options) >= 300);
        } else if (kind == 1) { /* a torn tail */
            assert_ok(agglo_file_write(journal.text, bytes, n - 7, &err));
        } else if (kind == 2) { /* a flipped bit in the middle */
            bytes[n / 2] = (char)(bytes[n / 2] ^ 4);
            assert_ok(agglo_file_write(journal.text, bytes, n, &err));
        } else if (kind == 3) { /* a header alone */
            assert_ok(agglo_file_write(journal.text, bytes, 16, &err));
        } else { /* the open shard's bytes are damaged, or gone */
            for (int k = 0; k < 12; k++) {
                char name[64];
                path_text part;
                char *tar_bytes;
                size_t n_tar;

                snprintf(name, sizeof name, "shards/.%06d.tar.part", k);
                part = path_in(out.text, name);
                if (!agglo_path_exists(part.text)) {
                    continue;
                }
                if (kind == 4) {
                    unlink(part.text);
                } else {
                    assert_ok(agglo_file_read(part.text, 1 << 28, &tar_bytes, &n_tar, &err));
                    tar_bytes[n_tar / 3] ^= 1;
                    assert_ok(agglo_file_write(part.text, tar_bytes, n_tar, &err));
                    agglo_free(tar_bytes);
                }
            }
        }
        agglo_free(bytes);
        run_whole(sources, 3, &options);
        expect_same_dataset_of(whole.text, out.text, 5);
    }
}

static void test_sources_are_added(void **state)
{
    path_text dir = path_in(test_dir(), ""), out = path_in(dir.text, "out"), copy = path_in(dir.text, "copy"), paths[3];
    path_text journal = path_in(out.text, ".ingest-unfinished"), first = path_in(out.text, "shards/000000.tar");
    agglo_ingest_options options = options_for(out.text);
    agglo_ingest_report report;
    agglo_dataset *dataset;
    agglo_err err = {0};
    agglo_hash128 before, after;
    const char *sources[3], *only = out.text;
    uint32_t shards;
    agglo_journal *held;

    (void)state;
    make_sources(dir.text, paths, sources);
    options.shard_samples = 700;
    options.dedup = false;
    options.check_sha256 = true;
    assert_ok(agglo_ingest(sources, 1, &options, &report, &err));
    json_decref(report.rejected);
    assert_ok(agglo_file_xxh3_128(first.text, &before, NULL, &err));
    assert_ok(agglo_dataset_open(&dataset, &only, 1, &err));
    shards = agglo_dataset_shards(dataset);
    agglo_dataset_close(dataset);

    /* while one is at work, a second one is refused and nothing happens */
    assert_ok(agglo_journal_open(&held, journal.text, &err));
    assert_fails(agglo_ingest(sources, 3, &options, &report, &err), AGGLO_E_CONFIG, "another process");
    json_decref(report.rejected);
    assert_ok(agglo_journal_remove(held, &err));

    assert_ok(agglo_ingest(sources, 3, &options, &report, &err));
    assert_int_equal(report.shards_in, 3);
    assert_true(report.samples_before > 0 && report.samples_kept > report.samples_before * 2);
    json_decref(report.rejected);
    assert_ok(agglo_file_xxh3_128(first.text, &after, NULL, &err));
    assert_memory_equal(before.bytes, after.bytes, 16);
    assert_ok(agglo_dataset_open(&dataset, &only, 1, &err));
    assert_true(agglo_dataset_shards(dataset) > shards);
    assert_int_equal(agglo_dataset_samples(dataset), report.samples_kept);
    for (uint32_t s = 0; s < agglo_dataset_shards(dataset); s++) {
        assert_ok(agglo_dataset_shard_verify(dataset, s, &err));
    }
    agglo_dataset_close(dataset);

    /* the order in which they are named does not matter, nor does one that is gone since */
    {
        const char *turned[3] = {sources[2], sources[0], sources[1]};
        path_text away = path_in(dir.text, "away");

        assert_int_equal(rename(sources[1], away.text), 0);
        assert_ok(agglo_ingest(turned, 3, &options, &report, &err));
        assert_true(report.up_to_date);
        json_decref(report.rejected);
        assert_int_equal(rename(away.text, sources[1]), 0);
    }

    /* adding, stopped anywhere, ends in the same bytes */
    for (unsigned delay = 10000; delay < 300000; delay *= 2) {
        agglo_ingest_options other = options;

        assert_ok(agglo_remove_tree(copy.text, &err));
        other.out = copy.text;
        assert_ok(agglo_ingest(sources, 1, &other, &report, &err));
        json_decref(report.rejected);
        for (unsigned wait = delay; run_stopped(sources, 3, &other, wait); wait += wait / 8) {
        }
        run_whole(sources, 3, &other);
        expect_same_dataset(out.text, copy.text);
    }
}

static void test_a_run_stopped_in_its_last_steps(void **state)
{
    static const char *const files[] = {"rejects.jsonl", "contents.bin", "index.bin"};
    path_text dir = path_in(test_dir(), ""), old = path_in(dir.text, "old"), done = path_in(dir.text, "done"), paths[3];
    path_text journal = path_in(old.text, ".ingest-unfinished");
    agglo_ingest_options options = options_for(old.text);
    agglo_err err = {0};
    const char *sources[3];
    agglo_dataset *dataset;

    (void)state;
    make_sources(dir.text, paths, sources);
    options.dedup = true;
    options.shard_samples = 500;
    options.out = done.text;
    run_whole(sources, 1, &options);
    run_whole(sources, 3, &options);
    for (size_t n_new = 0; n_new <= AGGLO_COUNT(files); n_new++) {
        const char *path = old.text;
        char *bytes;
        size_t n;

        assert_ok(agglo_remove_tree(old.text, &err));
        options.out = old.text;
        run_whole(sources, 1, &options);
        /* an adding run that did all its samples, and was killed when it had renamed n_new of its files */
        while (!run_stopped(sources, 3, &options, 20000)) {
            assert_ok(agglo_remove_tree(old.text, &err));
            run_whole(sources, 1, &options);
        }
        for (size_t k = 0; k < n_new; k++) {
            assert_ok(agglo_file_read(path_in(done.text, files[k]).text, 1 << 28, &bytes, &n, &err));
            assert_ok(agglo_file_write(path_in(old.text, files[k]).text, bytes, n, &err));
            agglo_free(bytes);
        }
        assert_true(agglo_path_exists(journal.text));
        if (n_new == AGGLO_COUNT(files)) { /* readers see two files that do not belong together */
            assert_fails(agglo_dataset_open(&dataset, &path, 1, &err), AGGLO_E_MISMATCH, "run it again");
        }
        run_whole(sources, 3, &options);
        expect_same_file(done.text, old.text, "rejects.jsonl");
        expect_same_file(done.text, old.text, "contents.bin");
        expect_same_file(done.text, old.text, "index.bin");
    }
    /* killed between dataset.json and the end of the journal: nothing is left to do */
    assert_ok(agglo_remove_tree(old.text, &err));
    run_whole(sources, 1, &options);
    while (!run_stopped(sources, 3, &options, 20000)) {
        assert_ok(agglo_remove_tree(old.text, &err));
        run_whole(sources, 1, &options);
    }
    {
        char *bytes;
        size_t n;

        assert_ok(agglo_file_read(journal.text, 1 << 28, &bytes, &n, &err));
        run_whole(sources, 3, &options);
        assert_ok(agglo_file_write(journal.text, bytes, n, &err));
        agglo_free(bytes);
    }
    run_whole(sources, 3, &options);
    expect_same_file(done.text, old.text, "index.bin");
    expect_same_file(done.text, old.text, "rejects.jsonl");
    assert_false(agglo_path_exists(journal.text));
}

/* Sources that bring nothing new leave the index, and so the fingerprint, as it was: a journal of theirs that outlived its run is stale all
 * the same. And of two sources of one name the one that is missing is not the one that is there. */
static void test_sources_that_add_nothing(void **state)
{
    path_text dir = path_in(test_dir(), ""), out = path_in(dir.text, "out"), paths[3],
              copy = path_in(dir.text, "copy.tar");
    path_text journal = path_in(out.text, ".ingest-unfinished");
    path_text missing = path_in(dir.text, "other/0.tar");
    agglo_ingest_options options = options_for(out.text);
    agglo_ingest_report report;
    agglo_err err = {0};
    const char *sources[3], *both[2], *same_name[2];
    char *bytes;
    size_t n;

    (void)state;
    make_sources(dir.text, paths, sources);
    assert_ok(agglo_file_read(sources[0], 1 << 28, &bytes, &n, &err));
    assert_ok(agglo_file_write(copy.text, bytes, n, &err));
    agglo_free(bytes);
    both[0] = sources[0];
    both[1] = copy.text;
    options.shard_samples = 300;
    for (unsigned wait = 20000;; wait = wait * 3 / 4) {
        assert_ok(agglo_remove_tree(out.text, &err));
        run_whole(sources, 1, &options);
        if (run_stopped(both, 2, &options, wait)) {
            break;
        }
        assert_true(wait > 0);
    }
    assert_ok(agglo_file_read(journal.text, 1 << 28, &bytes, &n, &err));
    run_whole(both, 2, &options);
    assert_ok(agglo_file_write(journal.text, bytes, n, &err));
    agglo_free(bytes);
    same_name[0] = sources[0];
    same_name[1] = copy.text;
    assert_ok(agglo_ingest(same_name, 2, &options, &report, &err));
    assert_int_equal(report.shards_in, 2);
    json_decref(report.rejected);
    assert_ok(agglo_ingest(same_name, 2, &options, &report, &err));
    assert_true(report.up_to_date && report.shards_in == 2);
    json_decref(report.rejected);
    assert_false(agglo_path_exists(journal.text));
    same_name[1] = missing.text;
    assert_ok(agglo_ingest(same_name, 2, &options, &report, &err));
    assert_int_equal(count_of(&report, "shard_missing"), 1);
    assert_int_equal(report.shards_failed, 1);
    json_decref(report.rejected);
}

static void test_other_options_and_sources_are_refused(void **state)
{
    path_text dir = path_in(test_dir(), ""), out = path_in(dir.text, "out"), paths[3];
    agglo_ingest_options options = options_for(out.text);
    agglo_ingest_report report;
    agglo_err err = {0};
    const char *sources[3], *last;

    (void)state;
    make_sources(dir.text, paths, sources);
    last = sources[2];
    options.shard_samples = 200;
    if (stop_in_the_middle(sources, 1, &options)) {
        options.max_aspect = 3;
        assert_fails(agglo_ingest(sources, 1, &options, &report, &err), AGGLO_E_CONFIG, "max_aspect 0.0, not 3.0");
        json_decref(report.rejected);
        options.max_aspect = 0;
        assert_fails(agglo_ingest(&last, 1, &options, &report, &err), AGGLO_E_CONFIG, "name it again");
        json_decref(report.rejected);
    }
    run_whole(sources, 1, &options);
}

/* Every allocation in turn fails: one clean error, nothing leaks, and the next run ends as if nothing had happened. */
static void test_every_allocation_may_fail(void **state)
{
    path_text dir = path_in(test_dir(), ""), whole = path_in(dir.text, "whole"), out = path_in(dir.text, "out");
    path_text file = path_in(dir.text, "a.tar");
    agglo_ingest_options options = options_for(whole.text);
    const char *source = file.text;
    agglo_ingest_report report;
    agglo_err err = {0};
    int n_failed = 0;

    (void)state;
    make_plain(source, "gzip", false, "k", 3);
    options.jobs = 1;
    options.shard_samples = 2;
    options.dedup = true;
    options.max_side = 20;
    run_whole(&source, 1, &options);
    options.out = out.text;
    for (int64_t n = 0;; n++) {
        agglo_status status;
        bool unlucky;

        assert_ok(agglo_remove_tree(out.text, &err));
        agglo_alloc_fail_after(n);
        status = agglo_ingest(&source, 1, &options, &report, &err);
        agglo_alloc_fail_after(-1);
        unlucky = count_of(&report, "out_of_memory") > 0; /* it hit a picture: that costs the picture */
        json_decref(report.rejected);
        if (status == AGGLO_OK && !unlucky && n > 20) {
            expect_same_dataset_of(whole.text, out.text, 5);
            if (n > n_failed + 60) { /* far behind the last one that mattered */
                break;
            }
            continue;
        }
        n_failed = (int)n;
        if (status != AGGLO_OK && status != AGGLO_E_MEMORY) {
            char line[1024];

            fail_msg("allocation %lld: %s", (long long)n, agglo_err_line(&err, line, sizeof line));
        }
        agglo_err_clear(&err);
        if (status != AGGLO_OK) {
            run_whole(&source, 1, &options);
            expect_same_dataset_of(whole.text, out.text, 5);
        }
    }
    assert_true(n_failed > 50);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(load_pictures),
        cmocka_unit_test(test_a_stopped_run_goes_on_within_a_shard),
        cmocka_unit_test(test_a_damaged_journal_or_part_costs_work_only),
        cmocka_unit_test(test_sources_are_added),
        cmocka_unit_test(test_a_run_stopped_in_its_last_steps),
        cmocka_unit_test(test_sources_that_add_nothing),
        cmocka_unit_test(test_other_options_and_sources_are_refused),
        cmocka_unit_test(test_every_allocation_may_fail),
        cmocka_unit_test(free_pictures),
    };

    return test_run("ingest_resume", tests);
}
