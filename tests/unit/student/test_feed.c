/* The feed and the held-out evaluation, over a small dataset and cache that are made here: contents and order at
 * any number of workers, samples that are bad, and what must stop a run.
 */
#include <math.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#include "ingest/ingest.h"
#include "student/eval_distill.h"
#include "tests/support/support.h"

#define N_PICTURES 10
#define SHARD      4 /* samples: shards of 4, 4 and 2 */
#define VIEWS      2
#define SIZE       16
#define BATCH      4

typedef struct teacher_spec {
    const char *name, *codec;
    int input, grid, summary_dim, spatial_dim;
} teacher_spec;

/* One at the student's input size and grid, one at another. */
static const teacher_spec specs[2] = {{"near", "fp32", 16, 4, 6, 5}, {"far", "fp16", 24, 3, 7, 9}};

/* What a test asks to be wrong in the cache. */
typedef struct wrongs {
    int teacher; /* -1: nothing */
    uint32_t shard, ordinal;
    bool skip;       /* no record */
    bool damage;     /* a flipped bit in a record */
    bool box, flip;  /* of another view */
    bool hash;       /* of other pixels */
    bool no_unit;    /* the shard was not done */
    bool provenance; /* other weights */
} wrongs;

static const wrongs nothing = {.teacher = -1};

/* ---- a dataset ---- */

static void tar_member(FILE *tar, const char *name, const void *data, size_t n_bytes)
{
    char header[512] = {0}, zeros[512] = {0};
    unsigned sum = 0;

    snprintf(header, 100, "%s", name);
    snprintf(header + 100, 8, "0000644");
    snprintf(header + 108, 8, "0000000");
    snprintf(header + 116, 8, "0000000");
    snprintf(header + 124, 12, "%011o", (unsigned)n_bytes);
    snprintf(header + 136, 12, "00000000000");
    memset(header + 148, ' ', 8);
    header[156] = '0';
    memcpy(header + 257, "ustar\00000", 8);
    for (int i = 0; i < 512; i++) {
        sum += (unsigned char)header[i];
    }
    snprintf(header + 148, 8, "%06o", sum);
    assert_int_equal(fwrite(header, 1, 512, tar), 512);
    assert_int_equal(fwrite(data, 1, n_bytes, tar), n_bytes);
    assert_int_equal(fwrite(zeros, 1, (512 - n_bytes % 512) % 512, tar), (512 - n_bytes % 512) % 512);
}

/* Smooth pictures of different sizes. */
static void make_tar(const char *dir, const char *path)
{
    FILE *tar = fopen(path, "wb");
    char zeros[1024] = {0};
    agglo_err err = {0};

    assert_non_null(tar);
    for (int i = 0; i < N_PICTURES; i++) {
        int width = 30 + 7 * i, height = 64 - 3 * i;
        const char *png = test_path(dir, "one.png");
        uint8_t *rgb = agglo_alloc((size_t)(width * height), 3, &err);
        char name[32], *bytes;
        size_t n_bytes;

        for (int y = 0; y < height; y++) {
            for (int x = 0; x < width; x++) {
                for (int c = 0; c < 3; c++) {
                    rgb[(y * width + x) * 3 + c] = (uint8_t)(128.0 + 100.0 * sin(0.2 * x * (1 + c) + 0.13 * y * i + i));
                }
            }
        }
        assert_ok(agglo_png_write(png, rgb, width, height, &err));
        assert_ok(agglo_file_read(png, 1 << 20, &bytes, &n_bytes, &err));
        snprintf(name, sizeof name, "picture%02d.png", i);
        tar_member(tar, name, bytes, n_bytes);
        agglo_free(bytes);
        agglo_free(rgb);
    }
    assert_int_equal(fwrite(zeros, 1, 1024, tar), 1024);
    assert_int_equal(fclose(tar), 0);
}

static agglo_dataset *make_dataset(const char *dir)
{
    agglo_ingest_options options = agglo_ingest_options_default();
    const char *tar = test_path(dir, "source.tar"), *out = test_path(dir, "data");
    agglo_ingest_report report;
    agglo_dataset *dataset;
    agglo_err err = {0};

    make_tar(dir, tar);
    options.out = out;
    options.shard_samples = SHARD;
    options.jobs = 1;
    assert_ok(agglo_ingest(&tar, 1, &options, &report, &err));
    assert_int_equal(report.samples_kept, N_PICTURES);
    json_decref(report.rejected);
    assert_ok(agglo_dataset_open(&dataset, &out, 1, &err));
    assert_int_equal(agglo_dataset_shards(dataset), 3);
    return dataset;
}

/* ---- a cache ---- */

static agglo_view_config views(void)
{
    agglo_view_config config = agglo_view_config_default();

    config.count = VIEWS;
    config.flip = 0.5;
    return config;
}

static agglo_provenance provenance_of(const teacher_spec *spec, const char *shard)
{
    agglo_view_config config = views();
    agglo_provenance out = {0};

    snprintf(out.shard, sizeof out.shard, "%s", shard);
    agglo_view_fingerprint(&config, out.views);
    memset(out.preprocess, 'a', 32);
    memset(out.decoder, 'b', 32);
    memset(out.weights, 'c', 64);
    snprintf(out.codec, sizeof out.codec, "%s", spec->codec);
    return out;
}

/* Features that tell where they come from; exact in fp16. */
static void features(int teacher, uint32_t shard, uint32_t ordinal, int view, float *out, int n)
{
    for (int i = 0; i < n; i++) {
        out[i] = (float)((teacher * 7 + (int)shard * 5 + (int)ordinal * 3 + view * 11 + i * (i + 2)) % 17 - 8) / 8.0f;
    }
}

static void make_unit(const char *cache, int teacher, const agglo_dataset *dataset, uint32_t shard, const wrongs *wrong)
{
    const teacher_spec *spec = &specs[teacher];
    agglo_decode_options decode = agglo_dataset_decode_options(dataset);
    agglo_view_config config = views();
    agglo_unit_id id = {.group = "main", .shard = shard, .view_first = 0, .view_last = VIEWS - 1};
    agglo_provenance provenance = provenance_of(spec, agglo_dataset_shard(dataset, shard)->fingerprint);
    uint32_t n_samples = agglo_dataset_shard(dataset, shard)->n_samples;
    bool here = wrong->teacher == teacher && wrong->shard == shard;
    agglo_renderer *renderer;
    agglo_unit_writer *writer;
    agglo_err err = {0};
    uint8_t pixels[24 * 24 * 3], bytes[4096];

    if (here && wrong->no_unit) {
        return;
    }
    if (here && wrong->provenance) {
        provenance.weights[5] = 'd';
    }
    snprintf(id.teacher, sizeof id.teacher, "%s", spec->name);
    assert_ok(agglo_renderer_new(&renderer, &decode, &err));
    assert_ok(agglo_unit_writer_new(&writer, cache, NULL, &id, &provenance, sizeof bytes, n_samples * VIEWS, &err));
    for (uint32_t ordinal = 0; ordinal < n_samples; ordinal++) {
        bool this = here && wrong->ordinal == ordinal;
        agglo_sample sample;

        assert_ok(agglo_dataset_sample(dataset, shard, ordinal, &sample, &err));
        if (this && wrong->skip) {
            assert_ok(agglo_unit_writer_skip(writer, ordinal, sample.key, "corrupt", &err));
            continue;
        }
        for (int v = 0; v < VIEWS; v++) {
            float summary[16], spatial[256];
            agglo_view view;
            agglo_record_info info = {.codec = agglo_codec_of(spec->codec),
                                      .grid_h = (uint16_t)spec->grid,
                                      .grid_w = (uint16_t)spec->grid,
                                      .summary_dim = (uint16_t)spec->summary_dim,
                                      .spatial_dim = (uint16_t)spec->spatial_dim,
                                      .input_w = (uint16_t)spec->input,
                                      .input_h = (uint16_t)spec->input};
            size_t n_bytes;

            agglo_view_draw(&config, sample.uid, v, sample.width, sample.height, &view);
            assert_ok(agglo_render_views(renderer, sample.image, sample.width, sample.height, &view, 1,
                                         AGGLO_VIEW_SCALED, AGGLO_BICUBIC, spec->input, spec->input, pixels, &err));
            info.x = view.x + (this && wrong->box);
            info.y = view.y;
            info.w = view.w;
            info.h = view.h;
            info.flip = view.flip != (this && wrong->flip);
            info.pixel_hash = agglo_pixel_hash(pixels, spec->input, spec->input) ^ (this && wrong->hash);
            features(teacher, shard, ordinal, v, summary, spec->summary_dim);
            features(teacher + 4, shard, ordinal, v, spatial, spec->grid * spec->grid * spec->spatial_dim);
            assert_true(agglo_record_max_bytes(&info) <= sizeof bytes);
            assert_ok(agglo_record_encode(&info, summary, spatial, bytes, &n_bytes, &err));
            if (this && wrong->damage) {
                bytes[n_bytes - 1] ^= 1;
            }
            assert_ok(agglo_unit_writer_put(writer, ordinal, v, (agglo_bytes){bytes, n_bytes}, &err));
        }
    }
    assert_ok(agglo_unit_writer_commit(writer, NULL, &err));
    agglo_renderer_free(renderer);
}

static agglo_cache *make_cache(const char *dir, const agglo_dataset *dataset, const wrongs *wrong)
{
    const char *path = test_path(dir, "cache");
    agglo_view_config config = views();
    agglo_cache_group group = {.name = "main", .parameters = json_object()};
    agglo_cache *cache;
    agglo_err err = {0};

    agglo_view_fingerprint(&config, group.fingerprint);
    assert_ok(agglo_cache_create(path, &group, 1, &err));
    json_decref(group.parameters);
    for (int t = 0; t < 2; t++) {
        const teacher_spec *spec = &specs[t];
        agglo_provenance provenance = provenance_of(spec, "");
        agglo_cache_teacher teacher = {.input = spec->input,
                                       .patch = spec->input / spec->grid,
                                       .grid_h = spec->grid,
                                       .grid_w = spec->grid,
                                       .summary_dim = spec->summary_dim,
                                       .spatial_dim = spec->spatial_dim};

        snprintf(teacher.name, sizeof teacher.name, "%s", spec->name);
        snprintf(teacher.arch, sizeof teacher.arch, "clip");
        snprintf(teacher.codec, sizeof teacher.codec, "%s", spec->codec);
        memcpy(teacher.weights, provenance.weights, sizeof teacher.weights);
        memcpy(teacher.preprocess, provenance.preprocess, sizeof teacher.preprocess);
        assert_ok(agglo_cache_add_teacher(path, &teacher, &err));
        for (uint32_t shard = 0; shard < agglo_dataset_shards(dataset); shard++) {
            make_unit(path, t, dataset, shard, wrong);
        }
    }
    assert_ok(agglo_cache_open(&cache, path, 0, &err));
    return cache;
}

/* ---- the two together ---- */

typedef struct world {
    const char *dir;
    agglo_dataset *dataset;
    agglo_cache *cache;
    agglo_feed_teacher teachers[2];
    agglo_feed_config config;
} world;

static void open_world(world *w, const wrongs *wrong)
{
    agglo_err err = {0};

    memset(w, 0, sizeof *w);
    w->dir = test_dir();
    w->dataset = make_dataset(w->dir);
    w->cache = make_cache(w->dir, w->dataset, wrong);
    w->config = agglo_feed_config_default();
    w->config.dataset = w->dataset;
    w->config.cache = w->cache;
    w->config.views = views();
    w->config.teachers = w->teachers;
    w->config.n_teachers = 2;
    w->config.batch = BATCH;
    w->config.size = SIZE;
    w->config.check_every = 1;
    for (int t = 0; t < 2; t++) {
        assert_ok(agglo_head_config_of_cache(w->cache, specs[t].name, &w->teachers[t].head, &err));
        w->teachers[t].expected = provenance_of(&specs[t], "");
    }
}

static void close_world(world *w)
{
    agglo_cache_close(w->cache);
    agglo_dataset_close(w->dataset);
}

/* Step `step`: samples taken with a stride, so that shards are mixed; the last step is one short. */
static void plan_step(int64_t step, int n_samples, agglo_plan_sample *samples, agglo_step_plan *plan)
{
    memset(plan, 0, sizeof *plan);
    plan->step = step;
    plan->lr = 0.5;
    plan->samples = samples;
    plan->n_samples = n_samples;
    for (int i = 0; i < n_samples; i++) {
        uint64_t index = (uint64_t)step * BATCH + (uint64_t)i;
        uint32_t at = (uint32_t)(index * 3 % N_PICTURES);

        samples[i] = (agglo_plan_sample){.index = index,
                                         .epoch = index / N_PICTURES,
                                         .shard = at / SHARD,
                                         .ordinal = at % SHARD,
                                         .view = i % 2 == 0 ? AGGLO_VIEW_OF_EPOCH : (int32_t)(index % VIEWS)};
    }
}

/* Everything that a batch must hold, from its plan. */
static void check_batch(const world *w, const agglo_batch *batch)
{
    agglo_decode_options decode = agglo_dataset_decode_options(w->dataset);
    agglo_view_config config = views();
    agglo_renderer *renderer;
    uint8_t pixels[SIZE * SIZE * 3], zeros[SIZE * SIZE * 3] = {0};
    agglo_err err = {0};

    assert_ok(agglo_renderer_new(&renderer, &decode, &err));
    for (int i = 0; i < BATCH; i++) {
        const agglo_plan_sample *place = &batch->plan.samples[i];
        const uint8_t *found = batch->pixels + i * SIZE * SIZE * 3;
        agglo_sample sample;
        agglo_view view;
        int v;

        if (i >= batch->plan.n_samples) {
            assert_memory_equal(found, zeros, sizeof zeros);
            assert_true(batch->targets[0].valid[i] == 0.0f && batch->targets[1].valid[i] == 0.0f);
            continue;
        }
        assert_ok(agglo_dataset_sample(w->dataset, place->shard, place->ordinal, &sample, &err));
        v = place->view >= 0 ? place->view : agglo_view_of_epoch(&config, sample.uid, place->epoch);
        agglo_view_draw(&config, sample.uid, v, sample.width, sample.height, &view);
        assert_ok(agglo_render_views(renderer, sample.image, sample.width, sample.height, &view, 1, AGGLO_VIEW_SCALED,
                                     AGGLO_BICUBIC, SIZE, SIZE, pixels, &err));
        assert_memory_equal(found, pixels, sizeof pixels);
        for (int t = 0; t < 2; t++) {
            const agglo_batch_targets *targets = &batch->targets[t];
            int n_summary = specs[t].summary_dim, n_spatial = specs[t].grid * specs[t].grid * specs[t].spatial_dim;
            size_t size = agglo_dtype_size(targets->spatial_dtype);
            float expected[256], stored[256];

            assert_true(targets->valid[i] == 1.0f);
            features(t, place->shard, place->ordinal, v, expected, n_summary);
            agglo_dtype_to_f32(stored, (const char *)targets->summary + (size_t)(i * n_summary) * size,
                               targets->summary_dtype, (size_t)n_summary);
            assert_memory_equal(stored, expected, (size_t)n_summary * sizeof(float));
            features(t + 4, place->shard, place->ordinal, v, expected, n_spatial);
            agglo_dtype_to_f32(stored, (const char *)targets->spatial + (size_t)(i * n_spatial) * size,
                               targets->spatial_dtype, (size_t)n_spatial);
            assert_memory_equal(stored, expected, (size_t)n_spatial * sizeof(float));
        }
    }
    agglo_renderer_free(renderer);
}

static void run_batches(const world *w, int n_workers, int n_batches)
{
    agglo_feed_config config = w->config;
    agglo_feed *feed;
    int64_t submitted = 0;
    enum { STEPS = 7 };
    agglo_err err = {0};

    config.n_workers = n_workers;
    config.n_batches = n_batches;
    assert_ok(agglo_feed_new(&feed, &config, &err));
    for (int64_t step = 0; step < STEPS; step++) {
        const agglo_batch *batch;

        while (submitted < STEPS && agglo_feed_room(feed) > 0) {
            agglo_plan_sample samples[BATCH];
            agglo_step_plan plan;

            plan_step(submitted, submitted == STEPS - 1 ? BATCH - 1 : BATCH, samples, &plan);
            agglo_feed_submit(feed, &plan);
            submitted++;
        }
        assert_ok(agglo_feed_take(feed, &batch, &err));
        assert_int_equal(batch->plan.step, step);
        assert_true(batch->plan.lr == 0.5 && batch->wait_s >= 0.0);
        assert_int_equal(batch->n_bad, 0);
        assert_int_equal(batch->n_checked, 2 * batch->plan.n_samples);
        assert_int_equal(batch->targets[1].n_valid, batch->plan.n_samples);
        assert_true(batch->targets[0].summary_dtype == AGGLO_F32 && batch->targets[1].spatial_dtype == AGGLO_F16);
        check_batch(w, batch);
        agglo_feed_release(feed);
    }
    assert_int_equal(agglo_feed_room(feed), n_batches);
    assert_int_equal(agglo_feed_bad(feed), 0);
    agglo_feed_free(feed);
}

static void test_contents(void **state)
{
    world w;

    (void)state;
    open_world(&w, &nothing);
    run_batches(&w, 1, 2);
    run_batches(&w, 3, 4);
    close_world(&w);
}

/* Freed with work in flight. */
static void test_abandoned(void **state)
{
    world w;
    agglo_feed *feed;
    agglo_plan_sample samples[BATCH];
    agglo_step_plan plan;
    agglo_err err = {0};

    (void)state;
    open_world(&w, &nothing);
    w.config.n_workers = 2;
    assert_ok(agglo_feed_new(&feed, &w.config, &err));
    for (int64_t step = 0; agglo_feed_room(feed) > 0; step++) {
        plan_step(step, BATCH, samples, &plan);
        agglo_feed_submit(feed, &plan);
    }
    agglo_feed_free(feed);
    close_world(&w);
}

/* One batch of shard 0, view 0. */
static agglo_status take_shard(world *w, agglo_feed **feed, const agglo_batch **batch, agglo_err *err)
{
    agglo_plan_sample samples[BATCH] = {{0}};
    agglo_step_plan plan = {.step = 3, .samples = samples, .n_samples = BATCH};

    for (uint32_t i = 0; i < BATCH; i++) {
        samples[i].index = i;
        samples[i].ordinal = i;
    }
    *feed = NULL;
    if (agglo_feed_new(feed, &w->config, err) != AGGLO_OK) {
        return err->status;
    }
    agglo_feed_submit(*feed, &plan);
    return agglo_feed_take(*feed, batch, err);
}

static void check_one_bad(const wrongs *wrong)
{
    world w;
    agglo_feed *feed;
    const agglo_batch *batch;
    agglo_err err = {0};
    const uint8_t zeros[1024] = {0};

    open_world(&w, wrong);
    assert_ok(take_shard(&w, &feed, &batch, &err));
    assert_int_equal(batch->n_bad, 1);
    assert_int_equal(agglo_feed_bad(feed), 1);
    for (int t = 0; t < 2; t++) {
        const agglo_batch_targets *targets = &batch->targets[t];
        size_t n_bytes =
            (size_t)(specs[t].grid * specs[t].grid * specs[t].spatial_dim) * agglo_dtype_size(targets->spatial_dtype);

        assert_int_equal(targets->n_valid, t == wrong->teacher ? BATCH - 1 : BATCH);
        for (uint32_t i = 0; i < BATCH; i++) {
            bool bad = t == wrong->teacher && i == wrong->ordinal;

            assert_true(targets->valid[i] == (bad ? 0.0f : 1.0f));
            assert_int_equal(memcmp((const char *)targets->spatial + i * n_bytes, zeros, n_bytes) == 0, bad);
        }
    }
    agglo_feed_release(feed);
    agglo_feed_free(feed);
    close_world(&w);
}

static void test_missing_record(void **state)
{
    (void)state;
    check_one_bad(&(wrongs){.teacher = 1, .ordinal = 2, .skip = true});
}

static void test_damaged_record(void **state)
{
    (void)state;
    check_one_bad(&(wrongs){.teacher = 0, .ordinal = 1, .damage = true});
}

/* A picture damaged after ingest costs its slot for every teacher, and nothing else. */
static void test_damaged_picture(void **state)
{
    world w;
    agglo_feed *feed;
    const agglo_batch *batch;
    agglo_sample sample;
    const char *shard;
    char *bytes, *at;
    size_t n_bytes;
    FILE *file;
    uint8_t zeros[SIZE * SIZE * 3] = {0};
    agglo_err err = {0};

    (void)state;
    open_world(&w, &nothing);
    assert_ok(agglo_dataset_sample(w.dataset, 0, 2, &sample, &err));
    shard = agglo_dataset_shard(w.dataset, 0)->path;
    assert_ok(agglo_file_read(shard, 1 << 24, &bytes, &n_bytes, &err));
    at = memmem(bytes, n_bytes, sample.image.data, sample.image.size);
    assert_non_null(at);
    file = fopen(shard, "r+b");
    assert_non_null(file);
    assert_int_equal(fseek(file, at - bytes + (long)sample.image.size / 2, SEEK_SET), 0);
    assert_int_equal(fwrite("damage", 1, 6, file), 6);
    assert_int_equal(fclose(file), 0);
    agglo_free(bytes);

    assert_ok(take_shard(&w, &feed, &batch, &err));
    assert_int_equal(batch->n_bad, 1);
    for (int i = 0; i < BATCH; i++) {
        assert_true(batch->targets[0].valid[i] == (i == 2 ? 0.0f : 1.0f));
        assert_true(batch->targets[1].valid[i] == (i == 2 ? 0.0f : 1.0f));
        assert_int_equal(memcmp(batch->pixels + i * SIZE * SIZE * 3, zeros, sizeof zeros) == 0, i == 2);
    }
    agglo_feed_release(feed);
    agglo_feed_free(feed);
    close_world(&w);
}

/* The file of teacher "far", shard 0 is damaged before the first sample of it is asked for: every sample loses that teacher, in this
 * run and in the next, whatever the number of workers, and keeps the other. */
static void check_damaged_file(const char *how)
{
    world w;
    const char *path;
    agglo_err err = {0};

    open_world(&w, &nothing);
    path = test_path(w.dir, "cache/far/main-000000-v0-1.lmdb");
    for (int run = 0; run < 2; run++) {
        agglo_feed *feed;
        const agglo_batch *batch;
        agglo_plan_sample samples[BATCH] = {{0}};
        agglo_step_plan plan = {.samples = samples, .n_samples = BATCH};

        for (uint32_t i = 0; i < BATCH; i++) {
            samples[i].index = samples[i].ordinal = i;
        }
        w.config.n_workers = 1 + run;
        assert_ok(agglo_feed_new(&feed, &w.config, &err));
        if (run == 0 && strcmp(how, "gone") == 0) {
            assert_int_equal(unlink(path), 0);
        } else if (run == 0 && strcmp(how, "cut") == 0) {
            assert_int_equal(truncate(path, 4096), 0);
        } else if (run == 0) {
            FILE *file = fopen(path, "r+b");

            assert_non_null(file);
            assert_int_equal(fseek(file, 5000, SEEK_SET), 0);
            assert_int_equal(fwrite("damage", 1, 6, file), 6);
            assert_int_equal(fclose(file), 0);
        }
        for (int k = 0; k < 2; k++) {
            agglo_feed_submit(feed, &plan);
        }
        for (int k = 0; k < 2; k++) {
            assert_ok(agglo_feed_take(feed, &batch, &err));
            assert_int_equal(batch->n_bad, BATCH);
            assert_int_equal(batch->targets[0].n_valid, BATCH);
            assert_int_equal(batch->targets[1].n_valid, 0);
            agglo_feed_release(feed);
        }
        agglo_feed_free(feed);
        agglo_cache_close(w.cache);
        assert_ok(agglo_cache_open(&w.cache, test_path(w.dir, "cache"), 0, &err));
        w.config.cache = w.cache;
    }
    close_world(&w);
}

static void test_damaged_file(void **state)
{
    (void)state;
    check_damaged_file("gone");
    check_damaged_file("cut");
    check_damaged_file("written to");
}

/* No descriptor to open a shard or a unit with: nothing is wrong with any sample, so none is left out and the run stops. */
static void test_failure_that_may_pass(void **state)
{
    agglo_plan_sample samples[BATCH] = {{0}};
    agglo_step_plan plan = {.samples = samples, .n_samples = BATCH};
    struct rlimit usual, none;
    agglo_sample sample;
    world w;
    agglo_err err = {0};
    const char *data;

    (void)state;
    open_world(&w, &nothing);
    data = test_path(w.dir, "data");
    agglo_dataset_close(w.dataset); /* opened again, so that no shard is mapped yet */
    assert_ok(agglo_dataset_open(&w.dataset, &data, 1, &err));
    w.config.dataset = w.dataset;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &usual), 0);
    none = (struct rlimit){.rlim_cur = 0, .rlim_max = usual.rlim_max};
    for (int mapped = 0; mapped < 2; mapped++) {
        agglo_feed *feed;
        const agglo_batch *batch;
        agglo_status status;

        if (mapped) {
            assert_ok(agglo_dataset_sample(w.dataset, 0, 0, &sample, &err));
        }
        assert_ok(agglo_feed_new(&feed, &w.config, &err));
        assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
        agglo_feed_submit(feed, &plan);
        status = agglo_feed_take(feed, &batch, &err);
        assert_int_equal(setrlimit(RLIMIT_NOFILE, &usual), 0);
        assert_int_equal(status, AGGLO_E_IO);
        agglo_err_clear(&err);
        agglo_feed_free(feed);
    }
    close_world(&w);
}

static void check_stops(const wrongs *wrong, uint32_t check_every, agglo_status status, const char *text)
{
    world w;
    agglo_feed *feed;
    const agglo_batch *batch;
    agglo_err err = {0};

    open_world(&w, wrong);
    w.config.check_every = check_every;
    if (status == AGGLO_OK) {
        assert_ok(take_shard(&w, &feed, &batch, &err));
        agglo_feed_release(feed);
    } else {
        assert_fails(take_shard(&w, &feed, &batch, &err), status, text);
    }
    agglo_feed_free(feed);
    close_world(&w);
}

static void test_mismatches(void **state)
{
    (void)state;
    check_stops(&(wrongs){.teacher = 1, .ordinal = 2, .box = true}, 0, AGGLO_E_MISMATCH, "picture02");
    check_stops(&(wrongs){.teacher = 0, .ordinal = 3, .flip = true}, 0, AGGLO_E_MISMATCH, "picture03");
    /* at the student's own size, and rendered again at another; seen only where it is looked for */
    check_stops(&(wrongs){.teacher = 0, .ordinal = 1, .hash = true}, 1, AGGLO_E_MISMATCH, "picture01");
    check_stops(&(wrongs){.teacher = 1, .ordinal = 1, .hash = true}, 1, AGGLO_E_MISMATCH, "picture01");
    check_stops(&(wrongs){.teacher = 1, .ordinal = 1, .hash = true}, 0, AGGLO_OK, NULL);
    check_stops(&(wrongs){.teacher = 1, .shard = 1, .provenance = true}, 1, AGGLO_E_MISMATCH, "weights");
    check_stops(&(wrongs){.teacher = 1, .shard = 2, .no_unit = true}, 1, AGGLO_E_NOT_FOUND, "shard 2");
}

static void test_other_teachers(void **state)
{
    world w;
    agglo_feed *feed;
    agglo_head_config head;
    agglo_err err = {0};

    (void)state;
    open_world(&w, &nothing);
    assert_fails(agglo_head_config_of_cache(w.cache, "clip", &head, &err), AGGLO_E_NOT_FOUND, "near");
    w.teachers[1].head.spatial_dim++;
    assert_fails(agglo_feed_new(&feed, &w.config, &err), AGGLO_E_MISMATCH, "far");
    close_world(&w);
}

/* The n-th allocation fails, for every n: one clean error, nothing leaks, whichever thread met it. */
static void test_out_of_memory(void **state)
{
    world w;
    agglo_feed *feed;
    const agglo_batch *batch;
    agglo_status status = AGGLO_E_MEMORY;
    agglo_err err = {0};

    (void)state;
    open_world(&w, &nothing);
    assert_ok(take_shard(&w, &feed, &batch, &err)); /* the cache keeps the units it opens */
    agglo_feed_free(feed);
    for (int64_t n = 0; status != AGGLO_OK; n++) {
        int64_t live = agglo_alloc_counts().n_live;

        assert_true(n < 2000);
        agglo_err_clear(&err);
        agglo_alloc_fail_after(n);
        status = take_shard(&w, &feed, &batch, &err);
        agglo_alloc_fail_after(-1);
        agglo_feed_free(feed);
        assert_true(status == AGGLO_OK || (status == AGGLO_E_MEMORY && err.status == status));
        assert_int_equal(agglo_alloc_counts().n_live, live);
    }
    close_world(&w);
}

/* Which samples are checked depends on their index alone, at about the asked rate. */
static void test_check_rate(void **state)
{
    world w;
    agglo_feed *feed;
    const agglo_batch *batch;
    agglo_plan_sample samples[BATCH];
    agglo_step_plan plan;
    int n_checked = 0;
    agglo_err err = {0};

    (void)state;
    open_world(&w, &nothing);
    w.config.check_every = 8;
    assert_ok(agglo_feed_new(&feed, &w.config, &err));
    for (int64_t step = 0; step < 64; step++) {
        plan_step(step, BATCH, samples, &plan);
        agglo_feed_submit(feed, &plan);
        assert_ok(agglo_feed_take(feed, &batch, &err));
        n_checked += batch->n_checked / 2;
        agglo_feed_release(feed);
    }
    assert_in_range(n_checked, 16, 64); /* 256 / 8 expected, give or take */
    agglo_feed_free(feed);
    close_world(&w);
}

/* ---- the held-out evaluation ---- */

static double cosine(const float *a, const float *b, int n)
{
    double ab = 0, aa = 0, bb = 0;

    for (int i = 0; i < n; i++) {
        ab += (double)a[i] * (double)b[i];
        aa += (double)a[i] * (double)a[i];
        bb += (double)b[i] * (double)b[i];
    }
    return ab / (sqrt(aa) * sqrt(bb));
}

/* Against the student's own encoder, view by view, for the teacher whose grid is the student's. */
static void test_distill(void **state)
{
    world w;
    const char *path;
    agglo_student_config student;
    agglo_trainer_config loss = agglo_trainer_config_default();
    agglo_head_config heads[2];
    agglo_distill_result result, again;
    agglo_backend *backend;
    agglo_encoder encoder;
    agglo_renderer *renderer;
    agglo_decode_options decode;
    agglo_view_config config = views();
    double summary_cos = 0.0, spatial_cos = 0.0;
    int n = 0;
    agglo_err err = {0};

    (void)state;
    open_world(&w, &(wrongs){.teacher = 1, .shard = 1, .ordinal = 2, .skip = true});
    path = test_path(w.dir, "student.safetensors");
    assert_ok(agglo_student_config_by_name(&student, "vit", &err));
    student.dim = 16;
    student.depth = 1;
    student.heads = 2;
    student.patch = 4;
    student.image = SIZE;
    heads[0] = w.teachers[1].head; /* another order than the feed's */
    heads[1] = w.teachers[0].head;
    heads[1].summary_weight = 0.5;
    assert_ok(agglo_student_write_random(&student, heads, 2, 3, path, &err));
    assert_ok(agglo_backend_cpu_new(&backend, 1, &err));
    w.config.size = 0;
    w.config.batch = 3;
    assert_ok(agglo_eval_distill(backend, path, &w.config, &loss, &result, &err));
    assert_int_equal(result.n_teachers, 2);
    assert_int_equal(result.n_views, N_PICTURES * VIEWS);
    assert_int_equal(result.n_bad, VIEWS);
    assert_int_equal(result.teachers[0].n_views, N_PICTURES * VIEWS);
    assert_int_equal(result.teachers[1].n_views, (N_PICTURES - 1) * VIEWS);
    assert_string_equal(result.teachers[0].name, "near");

    decode = agglo_dataset_decode_options(w.dataset);
    assert_ok(agglo_renderer_new(&renderer, &decode, &err));
    assert_ok(agglo_student_open(&encoder, backend, path, "near", 0, 1, &err));
    for (uint32_t shard = 0; shard < 3; shard++) {
        for (uint32_t ordinal = 0; ordinal < agglo_dataset_shard(w.dataset, shard)->n_samples; ordinal++) {
            for (int v = 0; v < VIEWS; v++, n++) {
                float summary[6], spatial[16 * 5], target[16 * 5];
                uint8_t pixels[SIZE * SIZE * 3];
                agglo_sample sample;
                agglo_view view;

                assert_ok(agglo_dataset_sample(w.dataset, shard, ordinal, &sample, &err));
                agglo_view_draw(&config, sample.uid, v, sample.width, sample.height, &view);
                assert_ok(agglo_render_views(renderer, sample.image, sample.width, sample.height, &view, 1,
                                             AGGLO_VIEW_SCALED, AGGLO_BICUBIC, SIZE, SIZE, pixels, &err));
                assert_ok(encoder.encode(encoder.self, pixels, NULL, 1, SIZE, SIZE, summary, spatial, &err));
                features(0, shard, ordinal, v, target, 6);
                summary_cos += cosine(summary, target, 6);
                features(4, shard, ordinal, v, target, 16 * 5);
                for (int i = 0; i < 16; i++) {
                    spatial_cos += cosine(spatial + 5 * i, target + 5 * i, 5) / 16.0;
                }
            }
        }
    }
    assert_true(fabs(result.teachers[0].summary_cos - summary_cos / n) < 1e-5);
    assert_true(fabs(result.teachers[0].spatial_cos - spatial_cos / n) < 1e-5);
    assert_true(fabs(result.teachers[0].summary_loss - (1.0 - summary_cos / n)) < 1e-5);
    assert_true(fabs(result.loss - (0.5 * result.teachers[0].summary_loss + result.teachers[0].spatial_loss +
                                    result.teachers[1].summary_loss + result.teachers[1].spatial_loss)) < 1e-12);

    w.config.n_workers = 3; /* and in batches of another size the same up to rounding */
    w.config.batch = 7;
    assert_ok(agglo_eval_distill(backend, path, &w.config, &loss, &again, &err));
    assert_true(fabs(result.loss - again.loss) < 1e-6);

    memcpy(w.teachers[0].head.name, "none", 5);
    assert_fails(agglo_eval_distill(backend, path, &w.config, &loss, &again, &err), AGGLO_E_NOT_FOUND,
                 "no head 'none'");
    agglo_encoder_clear(&encoder);
    agglo_renderer_free(renderer);
    agglo_backend_free(backend);
    close_world(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_contents),
        cmocka_unit_test(test_abandoned),
        cmocka_unit_test(test_missing_record),
        cmocka_unit_test(test_damaged_record),
        cmocka_unit_test(test_damaged_picture),
        cmocka_unit_test(test_damaged_file),
        cmocka_unit_test(test_failure_that_may_pass),
        cmocka_unit_test(test_mismatches),
        cmocka_unit_test(test_other_teachers),
        cmocka_unit_test(test_check_rate),
        cmocka_unit_test(test_distill),
        cmocka_unit_test(test_out_of_memory),
    };

    return test_run("feed", tests);
}
