/* The teacher pass on a small dataset made here: what a unit holds, killing and resuming, parts, refusals, bad shards. */
#include <errno.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/stop.h"
#include "ingest/ingest.h"
#include "ingest/render.h"
#include "teachers/pass.h"
#include "teachers/teacher.h"
#include "tests/support/support.h"

enum { N_SAMPLES = 13, N_SHARDS = 3, BROKEN = 6 };

static char root[256], dataset_path[300], clip_path[300], other_path[300];

/* ---- a dataset ---- */

static void tar_add(FILE *tar, const char *name, const char *data, size_t n)
{
    char header[512] = {0}, padding[512] = {0};
    unsigned sum = 0;

    snprintf(header, 100, "%s", name);
    snprintf(header + 100, 8, "0000444");
    snprintf(header + 108, 8, "0000000");
    snprintf(header + 116, 8, "0000000");
    snprintf(header + 124, 12, "%011zo", n);
    snprintf(header + 136, 12, "00000000000");
    memset(header + 148, ' ', 8);
    header[156] = '0';
    memcpy(header + 257, "ustar", 6);
    memcpy(header + 263, "00", 2);
    for (size_t i = 0; i < sizeof header; i++) {
        sum += (unsigned char)header[i];
    }
    snprintf(header + 148, 8, "%06o", sum);
    assert_int_equal(fwrite(header, 1, 512, tar), 512);
    assert_int_equal(fwrite(data, 1, n, tar), n);
    n = (512 - n % 512) % 512;
    assert_int_equal(fwrite(padding, 1, n, tar), n);
}

/* PNGs of all sizes: colour ramps under noise. Sample BROKEN is cut off behind its header. */
static void make_tar(const char *path, const char *dir)
{
    FILE *tar = fopen(path, "wb");
    const char *png = test_path(dir, "picture.png");
    char end[1024] = {0};
    agglo_err err = {0};

    assert_non_null(tar);
    for (int i = 0; i < N_SAMPLES; i++) {
        test_random random = test_random_new((uint64_t)i);
        int w = 24 + (int)(test_random_u32(&random) % 70), h = 24 + (int)(test_random_u32(&random) % 70);
        uint8_t *rgb = (uint8_t *)agglo_alloc((size_t)(w * h), 3, &err);
        char name[64], *bytes;
        size_t n;

        for (int k = 0; k < w * h * 3; k++) {
            rgb[k] = (uint8_t)((k % w * 3 + k / w + 40 * i) % 200 + (int)(test_random_u32(&random) % 50));
        }
        assert_ok(agglo_png_write(png, rgb, w, h, &err));
        assert_ok(agglo_file_read(png, 1 << 20, &bytes, &n, &err));
        snprintf(name, sizeof name, "%09d.png", i);
        tar_add(tar, name, bytes, i == BROKEN ? n / 2 : n);
        agglo_free(bytes);
        agglo_free(rgb);
    }
    assert_int_equal(fwrite(end, 1, sizeof end, tar), sizeof end);
    assert_int_equal(fclose(tar), 0);
}

static void make_everything(void)
{
    agglo_ingest_options options = agglo_ingest_options_default();
    agglo_ingest_report report = {0};
    agglo_teacher_config config;
    agglo_err err = {0};
    const char *tar;

    snprintf(root, sizeof root, "%s", test_dir());
    snprintf(dataset_path, sizeof dataset_path, "%s/data", root);
    snprintf(clip_path, sizeof clip_path, "%s/clip.safetensors", root);
    snprintf(other_path, sizeof other_path, "%s/other.safetensors", root);
    tar = test_path(root, "source.tar");
    make_tar(tar, root);
    options.out = dataset_path;
    options.shard_samples = 5;
    options.header_only = true; /* lets the broken picture in */
    options.jobs = 1;
    assert_ok(agglo_ingest(&tar, 1, &options, &report, &err));
    json_decref(report.rejected);
    assert_int_equal(report.samples_kept, N_SAMPLES);
    assert_ok(agglo_teacher_named("clip", &config, &err));
    config.dim = 32;
    config.depth = 2;
    config.heads = 2;
    config.mlp_dim = 64;
    config.patch = 8;
    config.image = 32;
    config.proj = 16;
    assert_ok(agglo_teacher_write_random(&config, 1, clip_path, &err));
    assert_ok(agglo_teacher_write_random(&config, 2, other_path, &err));
}

/* ---- one pass ---- */

typedef struct job {
    const char *dataset, *cache, *weights, *scratch;
    int batch, threads, views, part, n_parts;
    uint64_t seed;
    agglo_codec_id codec;
    bool verify;
} job;

static job default_job(const char *cache)
{
    return (job){
        .dataset = dataset_path,
        .cache = cache,
        .weights = clip_path,
        .batch = 4,
        .threads = 2,
        .views = 3,
        .codec = AGGLO_CODEC_FP32,
    };
}

static agglo_status teach(const job *j, agglo_teach_report *report, agglo_err *err)
{
    agglo_view_config views = agglo_view_config_default();
    agglo_teacher_options options = agglo_teacher_options_default();
    agglo_teach_options pass = agglo_teach_options_default();
    agglo_backend *backend = NULL;
    agglo_dataset *dataset = NULL;
    agglo_encoder encoder = {0};

    views.count = j->views;
    views.seed = j->seed;
    views.flip = 0.5;
    options.weights = j->weights;
    options.max_batch = j->batch;
    pass.cache = j->cache;
    pass.scratch = j->scratch;
    pass.teacher = "clip";
    pass.codec = j->codec;
    pass.batch = j->batch;
    pass.threads = j->threads;
    pass.groups = &views;
    pass.n_groups = 1;
    pass.part = j->part;
    pass.n_parts = j->n_parts;
    pass.verify = j->verify;
    *report = (agglo_teach_report){0};
    if (agglo_dataset_open(&dataset, &j->dataset, 1, err) == AGGLO_OK &&
        agglo_backend_cpu_new(&backend, j->threads, err) == AGGLO_OK &&
        agglo_teacher_open(&encoder, backend, &options, err) == AGGLO_OK) {
        agglo_teach(dataset, &encoder, &pass, report, err);
    }
    agglo_encoder_clear(&encoder);
    agglo_backend_free(backend);
    agglo_dataset_close(dataset);
    return err->status;
}

static void teach_ok(const job *j, agglo_teach_report *out)
{
    agglo_teach_report report;
    agglo_err err = {0};

    assert_ok(teach(j, &report, &err));
    if (report.n_failures > 0) {
        fail_msg("%s", report.failures[0]);
    }
    *out = report;
    agglo_teach_report_clear(&report);
}

/* ---- caches compared ---- */

/* Every file of cache `a` under the teacher is in `b` with the same bytes, and the other way round (temporary names aside). */
static void assert_same_cache(const char *a, const char *b)
{
    char path[2][400];
    agglo_arena *arena;
    agglo_err err = {0};

    assert_ok(agglo_arena_new(&arena, 0, &err));
    for (int turn = 0; turn < 2; turn++) {
        const char *from = turn == 0 ? a : b, *to = turn == 0 ? b : a;
        char **names;
        size_t n, n_compared = 0;

        snprintf(path[0], sizeof path[0], "%s/clip", from);
        assert_ok(agglo_list_dir(path[0], arena, &names, &n, &err));
        for (size_t i = 0; i < n; i++) {
            agglo_hash128 hash[2];

            if (agglo_is_temp_name(names[i])) {
                continue;
            }
            snprintf(path[0], sizeof path[0], "%s/clip/%s", from, names[i]);
            snprintf(path[1], sizeof path[1], "%s/clip/%s", to, names[i]);
            assert_ok(agglo_file_xxh3_128(path[0], &hash[0], NULL, &err));
            assert_ok(agglo_file_xxh3_128(path[1], &hash[1], NULL, &err));
            assert_memory_equal(hash[0].bytes, hash[1].bytes, sizeof hash[0].bytes);
            n_compared++;
        }
        assert_true(n_compared >= 1 + 2 * N_SHARDS); /* teacher.json; a file and a manifest per shard */
    }
    agglo_arena_free(arena);
}

static const char *new_cache(void)
{
    static int n;
    char name[32];

    snprintf(name, sizeof name, "cache-%d", n++);
    return test_path(root, name);
}

/* ---- tests ---- */

static double seconds(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* In a process of its own, killed after `delay` seconds (0: left alone). Returns whether it ended well by itself. */
static bool teach_in_child(const job *j, double delay)
{
    struct timespec wait = {(time_t)delay, (long)((delay - (double)(time_t)delay) * 1e9)};
    int status;
    pid_t child;

    fflush(NULL);
    child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        agglo_teach_report report;
        agglo_err err = {0};
        agglo_status result = teach(j, &report, &err);

        _exit(result == AGGLO_OK && report.units_failed == 0 ? 0 : 1);
    }
    if (delay > 0.0) {
        nanosleep(&wait, NULL);
        kill(child, SIGKILL);
    }
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    if (!WIFSIGNALED(status) && WEXITSTATUS(status) != 0) {
        fail_msg("the pass in the child failed");
    }
    return !WIFSIGNALED(status);
}

/* What is visible after a kill is whole. */
static size_t verify_visible(const char *path)
{
    agglo_cache *cache;
    agglo_err err = {0};
    size_t n;

    if (!agglo_path_exists(test_path(path, "cache.json"))) {
        return 0;
    }
    assert_ok(agglo_cache_open(&cache, path, 0, &err));
    n = agglo_cache_units(cache);
    for (size_t i = 0; i < n; i++) {
        assert_ok(agglo_unit_verify(path, &agglo_cache_unit_at(cache, i)->id, &err));
    }
    agglo_cache_close(cache);
    return n;
}

/* First of the tests: the parent has no threads yet when it forks. */
static void killed_and_resumed(void **state)
{
    char whole[300], broken[300];
    test_random random = test_random_new(12);
    job j;
    double start, undisturbed;
    int n_kills = 0, n_partial = 0;

    (void)state;
    snprintf(whole, sizeof whole, "%s", new_cache());
    snprintf(broken, sizeof broken, "%s", new_cache());
    j = default_job(whole);
    start = seconds();
    assert_true(teach_in_child(&j, 0.0));
    undisturbed = seconds() - start;
    assert_int_equal(verify_visible(whole), N_SHARDS);
    j.cache = broken;
    for (int i = 0; i < 200 && (n_partial < 3 || n_kills < 3); i++) {
        size_t n_before = verify_visible(broken), n_after;
        double after = undisturbed * (0.1 + 0.9 * test_random_uniform(&random));
        agglo_err err = {0};

        if (n_before == N_SHARDS || i % 8 == 0) {
            assert_ok(agglo_remove_tree(broken, &err));
            n_before = 0;
        }
        start = seconds();
        if (teach_in_child(&j, after)) { /* it was faster than the first one, whose pages were cold */
            undisturbed = seconds() - start < undisturbed ? seconds() - start : undisturbed;
        } else {
            n_kills++;
        }
        n_after = verify_visible(broken);
        assert_true(n_after >= n_before); /* what was finished stays */
        n_partial += n_after > 0 && n_after < N_SHARDS ? 1 : 0;
    }
    assert_true(n_kills > 0);
    assert_true(teach_in_child(&j, 0.0));
    assert_int_equal(verify_visible(broken), N_SHARDS);
    assert_same_cache(whole, broken);
}

/* Each record says what its own view, rendered and encoded alone, gives: box, flip, pixel hash, features. */
static void records_are_what_they_say(void **state)
{
    job j = default_job(new_cache());
    agglo_view_config views = agglo_view_config_default();
    agglo_teacher_options options = agglo_teacher_options_default();
    agglo_teach_report report;
    agglo_decode_options decode;
    agglo_backend *backend;
    agglo_dataset *dataset;
    agglo_encoder encoder;
    agglo_renderer *renderer;
    agglo_cache *cache;
    agglo_cache_teacher described;
    agglo_err err = {0};
    uint8_t *buffer = NULL, pixels[32 * 32 * 3];
    size_t capacity = 0;
    int n_records = 0, n_missing = 0;

    (void)state;
    teach_ok(&j, &report);
    assert_int_equal(report.units_done, N_SHARDS);
    assert_int_equal(report.views, 3 * (N_SAMPLES - 1));
    assert_int_equal(report.samples_skipped, 1);
    assert_int_equal(report.spatial_bytes, report.views * 16 * 32 * 4);
    assert_int_equal(report.spatial_fp16_bytes, report.views * 16 * 32 * 2);
    assert_true(report.bytes > report.spatial_bytes + report.views * 16 * 4);

    views.count = 3;
    views.flip = 0.5;
    options.weights = clip_path;
    assert_ok(agglo_dataset_open(&dataset, &j.dataset, 1, &err));
    decode = agglo_dataset_decode_options(dataset);
    assert_ok(agglo_backend_cpu_new(&backend, 1, &err));
    assert_ok(agglo_teacher_open(&encoder, backend, &options, &err));
    assert_ok(agglo_renderer_new(&renderer, &decode, &err));
    assert_ok(agglo_cache_open(&cache, j.cache, 0, &err));
    assert_ok(agglo_teach_describe("clip", &encoder.info, AGGLO_CODEC_FP32, &described, &err));
    assert_string_equal(agglo_cache_find_teacher(cache, "clip")->preprocess, described.preprocess);
    for (uint32_t shard = 0; shard < agglo_dataset_shards(dataset); shard++) {
        agglo_provenance expected;

        assert_ok(agglo_teach_provenance(dataset, shard, &views, &encoder.info, AGGLO_CODEC_FP32, &expected, &err));
        for (uint32_t ordinal = 0; ordinal < agglo_dataset_shard(dataset, shard)->n_samples; ordinal++) {
            for (int v = 0; v < 3; v++) {
                float summary[16], spatial[16 * 32], got_summary[16], got_spatial[16 * 32];
                agglo_sample sample;
                agglo_view view;
                agglo_record record;

                assert_ok(agglo_dataset_sample(dataset, shard, ordinal, &sample, &err));
                agglo_view_draw(&views, sample.uid, v, sample.width, sample.height, &view);
                if (agglo_render_views(renderer, sample.image, sample.width, sample.height, &view, 1, AGGLO_VIEW_SCALED,
                                       AGGLO_BICUBIC, 32, 32, pixels, &err) != AGGLO_OK) {
                    agglo_err_clear(&err);
                    assert_fails(agglo_cache_read(cache, "clip", "main", shard, ordinal, v, &expected, &buffer,
                                                  &capacity, &record, &err),
                                 AGGLO_E_NOT_FOUND, "");
                    n_missing++;
                    continue;
                }
                assert_ok(agglo_cache_read(cache, "clip", "main", shard, ordinal, v, &expected, &buffer, &capacity,
                                           &record, &err));
                assert_true(record.info.x == view.x && record.info.y == view.y && record.info.w == view.w &&
                            record.info.h == view.h && record.info.flip == view.flip);
                assert_true(record.info.pixel_hash == agglo_pixel_hash(pixels, 32, 32));
                assert_ok(encoder.encode(encoder.self, pixels, NULL, 1, 32, 32, summary, spatial, &err));
                assert_ok(agglo_record_decode(&record, got_summary, got_spatial, &err));
                assert_memory_equal(summary, got_summary, sizeof summary);
                assert_memory_equal(spatial, got_spatial, sizeof spatial);
                n_records++;
            }
        }
    }
    assert_int_equal(n_records, 3 * (N_SAMPLES - 1));
    assert_int_equal(n_missing, 3);
    agglo_free(buffer);
    agglo_cache_close(cache);
    agglo_renderer_free(renderer);
    agglo_encoder_clear(&encoder);
    agglo_backend_free(backend);
    agglo_dataset_close(dataset);
}

/* Threads, batch size, scratch folder and parts leave no trace in the files. */
static void equal_work_gives_equal_files(void **state)
{
    char reference[300], scratch[300];
    agglo_teach_report report;
    agglo_err err = {0};
    job j;

    (void)state;
    snprintf(reference, sizeof reference, "%s", new_cache());
    snprintf(scratch, sizeof scratch, "%s/scratch", root);
    assert_ok(agglo_make_dirs(scratch, &err));
    j = default_job(reference);
    teach_ok(&j, &report);
    j = default_job(new_cache());
    j.threads = 1;
    teach_ok(&j, &report);
    assert_same_cache(reference, j.cache);
    j = default_job(new_cache());
    j.threads = 3;
    j.batch = 17;
    j.scratch = scratch;
    teach_ok(&j, &report);
    assert_same_cache(reference, j.cache);

    j = default_job(new_cache());
    j.n_parts = 2;
    j.part = 2;
    teach_ok(&j, &report);
    assert_int_equal(report.units_done, 1);
    assert_int_equal(report.units_elsewhere, 2);
    j.part = 1;
    teach_ok(&j, &report);
    assert_int_equal(report.units_done, 2);
    assert_same_cache(reference, j.cache);
}

static void again_and_more_views(void **state)
{
    char more[300];
    job j = default_job(new_cache());
    agglo_teach_report report;
    agglo_cache *cache;
    agglo_err err = {0};

    (void)state;
    snprintf(more, sizeof more, "%s", j.cache);
    j.cache = more;
    teach_ok(&j, &report);
    teach_ok(&j, &report);
    assert_int_equal(report.units_done, 0);
    assert_int_equal(report.units_present, N_SHARDS);
    assert_int_equal(report.views, 0);
    j.views = 5;
    teach_ok(&j, &report);
    assert_int_equal(report.units_done, N_SHARDS);
    assert_int_equal(report.views, 2 * (N_SAMPLES - 1));
    assert_ok(agglo_cache_open(&cache, more, 0, &err));
    assert_int_equal(agglo_cache_units(cache), 2 * N_SHARDS);
    assert_int_equal(agglo_cache_unit_at(cache, 1)->id.view_first, 3);
    assert_int_equal(agglo_cache_unit_at(cache, 1)->id.view_last, 4);
    agglo_cache_close(cache);
    j.verify = true;
    teach_ok(&j, &report);
    assert_int_equal(report.units_present, 2 * N_SHARDS);
}

static void mismatches_are_refused(void **state)
{
    char cache[300];
    agglo_hash128 before, after;
    job j;
    agglo_teach_report report;
    agglo_err err = {0};
    const char *unit;

    (void)state;
    snprintf(cache, sizeof cache, "%s", new_cache());
    j = default_job(cache);
    teach_ok(&j, &report);
    unit = test_path(cache, "clip/main-000001-v0-2.lmdb");
    assert_ok(agglo_file_xxh3_128(unit, &before, NULL, &err));
    j.weights = other_path;
    assert_fails(teach(&j, &report, &err), AGGLO_E_MISMATCH, "weights");
    agglo_teach_report_clear(&report);
    j = default_job(cache);
    j.codec = AGGLO_CODEC_FP16;
    assert_fails(teach(&j, &report, &err), AGGLO_E_MISMATCH, "codec");
    agglo_teach_report_clear(&report);
    j = default_job(cache);
    j.seed = 9;
    assert_fails(teach(&j, &report, &err), AGGLO_E_MISMATCH, "main");
    agglo_teach_report_clear(&report);
    assert_ok(agglo_file_xxh3_128(unit, &after, NULL, &err));
    assert_memory_equal(before.bytes, after.bytes, sizeof before.bytes);
    j = default_job(cache);
    j.part = 3;
    j.n_parts = 2;
    assert_fails(teach(&j, &report, &err), AGGLO_E_CONFIG, "part 3 of 2");
    agglo_teach_report_clear(&report);
}

static void stopping(void **state)
{
    char cache[300];
    job j;
    agglo_teach_report report;
    agglo_err err = {0};

    (void)state;
    snprintf(cache, sizeof cache, "%s", new_cache());
    j = default_job(cache);
    agglo_stop_raise();
    assert_fails(teach(&j, &report, &err), AGGLO_E_STOPPED, "");
    assert_int_equal(report.units_done, 0);
    agglo_teach_report_clear(&report);
    agglo_stop_reset();
    assert_int_equal(verify_visible(cache), 0);
    teach_ok(&j, &report);
    assert_int_equal(report.units_done, N_SHARDS);
}

/* A teacher whose features are not finite for one picture stops that unit, by the picture's name; the others are made. */
static agglo_status poisoned_encode(void *self, const uint8_t *pixels, const agglo_extent *extents, int batch,
                                    int height, int width, float *summary, float *spatial, agglo_err *err)
{
    int *n_calls = (int *)self;

    (void)pixels;
    (void)extents;
    (void)err;
    for (int i = 0; i < batch * 4; i++) {
        summary[i] = 1.0f;
    }
    for (int i = 0; i < batch * (height / 8) * (width / 8) * 4; i++) {
        spatial[i] = 0.5f;
    }
    if (++*n_calls == 1) {
        spatial[7] = (float)(1e30 * 1e30);
    }
    return AGGLO_OK;
}

static void features_that_are_not_finite(void **state)
{
    int n_calls = 0;
    agglo_encoder encoder = {.self = &n_calls, .encode = poisoned_encode};
    agglo_view_config views = agglo_view_config_default();
    agglo_teach_options pass = agglo_teach_options_default();
    agglo_teach_report report;
    agglo_dataset *dataset;
    const char *path = dataset_path;
    agglo_err err = {0};

    (void)state;
    encoder.info = (agglo_encoder_info){.patch = 8, .summary_dim = 4, .spatial_dim = 4, .preprocess = {.size = 16}};
    snprintf(encoder.info.arch, sizeof encoder.info.arch, "poisoned");
    memset(encoder.info.weights, '0', 64);
    views.count = 1;
    pass.cache = new_cache();
    pass.teacher = "poisoned";
    pass.batch = 64;
    pass.groups = &views;
    pass.n_groups = 1;
    assert_ok(agglo_dataset_open(&dataset, &path, 1, &err));
    assert_ok(agglo_teach(dataset, &encoder, &pass, &report, &err));
    assert_int_equal(report.units_done, N_SHARDS - 1);
    assert_int_equal(report.units_failed, 1);
    assert_non_null(strstr(report.failures[0], "000000000"));
    assert_non_null(strstr(report.failures[0], "view 0"));
    assert_int_equal(verify_visible(pass.cache), N_SHARDS - 1);
    agglo_teach_report_clear(&report);
    agglo_dataset_close(dataset);
}

/* Whichever allocation fails, the pass ends in one error of its own and leaves nothing half-made; the next one completes it. */
static void failing_memory(void **state)
{
    char cache[300];
    job j;
    agglo_teach_report report;
    agglo_err err = {0};
    int n_failed = 0;

    (void)state;
    snprintf(cache, sizeof cache, "%s", new_cache());
    j = default_job(cache);
    for (int n = 0; n < 1000000; n += 1 + n / 12) {
        agglo_status status;

        assert_ok(agglo_remove_tree(cache, &err));
        agglo_alloc_fail_after(n);
        status = teach(&j, &report, &err);
        agglo_alloc_fail_after(-1);
        assert_int_equal(report.units_failed, 0); /* not the shard's fault */
        agglo_teach_report_clear(&report);
        if (status == AGGLO_OK) {
            break;
        }
        assert_int_equal(err.status, AGGLO_E_MEMORY);
        agglo_err_clear(&err);
        verify_visible(cache);
        n_failed++;
    }
    assert_true(n_failed > 20);
    teach_ok(&j, &report);
    assert_int_equal(verify_visible(cache), N_SHARDS);
}

/* Last: it damages the dataset. A flipped byte in one shard costs that shard. */
static void damaged_shard(void **state)
{
    char shard[400];
    job j;
    agglo_teach_report report;
    agglo_err err = {0};
    FILE *file;
    int byte;

    (void)state;
    j = default_job(new_cache());
    snprintf(shard, sizeof shard, "%s/shards/000001.tar", dataset_path);
    assert_int_equal(chmod(shard, 0644), 0);
    file = fopen(shard, "r+b");
    assert_non_null(file);
    fseek(file, 700, SEEK_SET);
    byte = fgetc(file);
    fseek(file, 700, SEEK_SET);
    fputc(byte ^ 1, file);
    assert_int_equal(fclose(file), 0);
    assert_ok(teach(&j, &report, &err));
    assert_int_equal(report.units_done, N_SHARDS - 1);
    assert_int_equal(report.units_failed, 1);
    assert_non_null(strstr(report.failures[0], "000001.tar"));
    agglo_teach_report_clear(&report);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(killed_and_resumed),
        cmocka_unit_test(records_are_what_they_say),
        cmocka_unit_test(equal_work_gives_equal_files),
        cmocka_unit_test(again_and_more_views),
        cmocka_unit_test(mismatches_are_refused),
        cmocka_unit_test(stopping),
        cmocka_unit_test(features_that_are_not_finite),
        cmocka_unit_test(failing_memory),
        cmocka_unit_test(damaged_shard),
    };

    make_everything();
    return test_run("teach", tests);
}
