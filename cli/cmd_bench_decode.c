/* agglo bench decode: what rendering views costs, beside what the decoding libraries alone need for the same pixels. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "base/pool.h"
#include "base/stop.h"
#include "cli/cli.h"
#include "ingest/bench_decode.h"
#include "ingest/dataset.h"
#include "ingest/render.h"

#define CHUNK        32 /* pictures of one kind of work at a time: what disturbs the machine meets all kinds alike */
#define MIN_ROUNDS   3
#define MAX_ROUNDS   200 /* at most AGGLO_MEDIAN_MOST */
#define MAX_PICTURES 100000

static int64_t size = 224, seconds = 20, limit = 4096;
static const char *boxes_path;

static const agglo_option options[] = {
    {"size", AGGLO_OPTION_INT, &size, "N", "side of the rendered views, pixels (224)", 1, 4096},
    {"seconds", AGGLO_OPTION_INT, &seconds, "N", "time to spend, at least three rounds over the pictures (20)", 1,
     3600},
    {"limit", AGGLO_OPTION_INT, &limit, "N", "use the first N pictures (4096)", 1, MAX_PICTURES},
    {"boxes", AGGLO_OPTION_STRING, &boxes_path, "FILE", "write the crops of the first round, a JSON object a line", 0,
     0},
};

typedef struct picture {
    agglo_sample sample;
    int orientation; /* EXIF's, as applied */
    agglo_view view; /* of the round */
    agglo_box stored;
    int reduce;
} picture;

typedef struct worker {
    agglo_bench_decoder *bench;
    agglo_renderer *renderer;
    agglo_decoder *decoder;
    uint8_t *pixels;
    agglo_status status;
    agglo_err err;
} worker;

typedef enum kind { LIBRARIES, VIEWS, WHOLE, VERIFY, HEADER, N_KINDS } kind;

static const char *const kind_names[N_KINDS] = {"libraries", "views", "whole", "verify", "header"};
static const char *const kind_texts[N_KINDS] = {"libraries alone, the pixels of the views",
                                                "views: decode, crop, resize", "whole pictures decoded",
                                                "whole pictures verified", "headers read"};

typedef struct bench {
    picture *pictures;
    size_t n;
    double n_bytes; /* encoded */
    agglo_pool *pool;
    worker *workers;
    int n_threads;
    kind kind;                                 /* of the parallel loop */
    double single[N_KINDS][MAX_ROUNDS];        /* processor seconds a round */
    double parallel[2][MAX_ROUNDS];            /* seconds: LIBRARIES and VIEWS, all threads */
    double over[MAX_ROUNDS], gain[MAX_ROUNDS]; /* views / libraries; one thread / all threads */
    int n_rounds;
} bench;

static void do_one(bench *b, kind what, size_t i, worker *w)
{
    const picture *p = &b->pictures[i];
    agglo_image_info info;
    agglo_image image;

    if (w->status != AGGLO_OK) {
        return;
    }
    switch (what) {
    case LIBRARIES:
        w->status = agglo_bench_decode(w->bench, p->sample.image, &p->stored, p->reduce, &w->err);
        break;
    case VIEWS:
        w->status = agglo_render_views(w->renderer, p->sample.image, p->sample.width, p->sample.height, &p->view, 1,
                                       AGGLO_VIEW_SCALED, AGGLO_VIEW_FILTER, (int)size, (int)size, w->pixels, &w->err);
        break;
    case WHOLE:
        w->status = agglo_decode(w->decoder, p->sample.image, &image, NULL, &w->err);
        break;
    case VERIFY:
        w->status = agglo_image_verify(w->decoder, p->sample.image, NULL, &w->err);
        break;
    case HEADER:
        w->status = agglo_decoder_probe(w->decoder, p->sample.image, &info, NULL, &w->err);
        break;
    case N_KINDS:
        break;
    }
    if (w->status != AGGLO_OK) {
        agglo_at(&w->err, "sample %s (%u/%u)", p->sample.key, p->sample.shard, p->sample.ordinal);
    }
}

static void body(void *context, int64_t i, int number)
{
    bench *b = context;

    do_one(b, b->kind, (size_t)i, &b->workers[number]);
}

static agglo_status first_failure(const bench *b, agglo_err *err)
{
    for (int i = 0; i < b->n_threads; i++) {
        if (b->workers[i].status != AGGLO_OK) {
            *err = b->workers[i].err;
            return err->status;
        }
    }
    return AGGLO_OK;
}

/* The views of this round, and the same regions as the files store them. */
static void draw(bench *b, int round)
{
    const agglo_view_config views = agglo_view_config_default();

    for (size_t i = 0; i < b->n; i++) {
        picture *p = &b->pictures[i];

        agglo_view_draw(&views, p->sample.uid, round, p->sample.width, p->sample.height, &p->view);
        p->stored = agglo_bench_stored_box(&(agglo_box){p->view.x, p->view.y, p->view.w, p->view.h}, p->sample.width,
                                           p->sample.height, p->orientation);
        p->reduce = p->sample.format == AGGLO_IMAGE_JPEG
                        ? agglo_render_reduce(&p->view, AGGLO_VIEW_SCALED, (int)size, (int)size)
                        : 1;
    }
}

/* Of this thread: what else runs on the machine has a smaller part in it than in the time of day. */
static double processor_time(void)
{
    struct timespec t;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double run_parallel(bench *b, kind what)
{
    double begin = agglo_now();

    b->kind = what;
    agglo_pool_for(b->pool, (int64_t)b->n, body, b);
    return agglo_now() - begin;
}

static agglo_status measure(bench *b, agglo_err *err)
{
    const double begin = agglo_now();
    int round = -1; /* the first warms caches up, memory and clock rates, and counts for nothing */

    for (; round < MIN_ROUNDS || (round < MAX_ROUNDS && agglo_now() - begin < (double)seconds); round++) {
        double spent[N_KINDS] = {0.0}, all[2] = {0.0}, alone = 0.0;

        draw(b, round < 0 ? 0 : round % 255);
        for (size_t at = 0, turn = 0; at < b->n; at += CHUNK, turn++) {
            size_t end = at + CHUNK < b->n ? at + CHUNK : b->n;

            for (size_t k = 0; k < N_KINDS; k++) {
                kind what = (kind)((k + turn + (size_t)(round + 1)) % N_KINDS);
                double started = processor_time(), began = agglo_now();

                for (size_t i = at; i < end; i++) {
                    do_one(b, what, i, &b->workers[0]);
                }
                spent[what] += processor_time() - started;
                alone += what == VIEWS ? agglo_now() - began : 0.0;
            }
        }
        if (b->n_threads > 1) {
            kind first = round % 2 == 0 ? LIBRARIES : VIEWS;

            all[first] = run_parallel(b, first);
            all[1 - first] = run_parallel(b, (kind)(1 - first));
        }
        if (first_failure(b, err) != AGGLO_OK || agglo_stop_check(err) != AGGLO_OK) {
            return err->status;
        }
        if (round < 0) {
            continue;
        }
        for (int k = 0; k < N_KINDS; k++) {
            b->single[k][round] = spent[k];
        }
        b->parallel[LIBRARIES][round] = all[LIBRARIES];
        b->parallel[VIEWS][round] = all[VIEWS];
        b->over[round] = spent[VIEWS] / spent[LIBRARIES];
        b->gain[round] = all[VIEWS] > 0 ? alone / all[VIEWS] : 1;
        b->n_rounds = round + 1;
    }
    return AGGLO_OK;
}

static json_t *rate_json(const bench *b, const double *times)
{
    double spread, middle = agglo_median(times, b->n_rounds, &spread);

    return json_pack("{s:o, s:o, s:o}", "images_per_s", agglo_json_clock((double)b->n / middle), "mb_per_s",
                     agglo_json_clock(b->n_bytes / middle / 1e6), "spread_percent", agglo_json_clock(spread));
}

static void print_json(const bench *b)
{
    json_t *one = json_object(), *out;
    double spread;

    for (int k = 0; k < N_KINDS; k++) {
        json_object_set_new(one, kind_names[k], rate_json(b, b->single[k]));
    }
    out = json_pack("{s:I, s:I, s:I, s:i, s:i, s:o}", "images", (json_int_t)b->n, "bytes", (json_int_t)b->n_bytes,
                    "size", (json_int_t)size, "threads", b->n_threads, "rounds", b->n_rounds, "one_thread", one);
    json_object_set_new(out, "over_libraries_percent",
                        agglo_json_clock(100 * (agglo_median(b->over, b->n_rounds, &spread) - 1)));
    if (b->n_threads > 1) {
        json_object_set_new(out, "all_threads",
                            json_pack("{s:o, s:o}", "libraries", rate_json(b, b->parallel[LIBRARIES]), "views",
                                      rate_json(b, b->parallel[VIEWS])));
        json_object_set_new(out, "scaling_percent",
                            agglo_json_clock(100 * agglo_median(b->gain, b->n_rounds, &spread)));
    }
    agglo_print_json(out);
    json_decref(out);
}

static void print_rate(const bench *b, const char *name, int n_threads, const double *times)
{
    double spread, middle = agglo_median(times, b->n_rounds, &spread);

    printf("%-42s %7d %10.1f %8.1f   +-%.1f %%\n", name, n_threads, (double)b->n / middle, b->n_bytes / middle / 1e6,
           spread);
}

static void print_table(const bench *b)
{
    double spread, over = agglo_median(b->over, b->n_rounds, &spread);

    printf("%s pictures, %s, views of %dx%d, %d rounds\n\n", agglo_show_int((int64_t)b->n),
           agglo_show_bytes(b->n_bytes), (int)size, (int)size, b->n_rounds);
    printf("%-42s %7s %10s %8s   %s\n", "", "threads", "images/s", "MB/s", "spread");
    for (int k = 0; k < N_KINDS; k++) {
        print_rate(b, kind_texts[k], 1, b->single[k]);
    }
    if (b->n_threads > 1) {
        print_rate(b, kind_texts[LIBRARIES], b->n_threads, b->parallel[LIBRARIES]);
        print_rate(b, kind_texts[VIEWS], b->n_threads, b->parallel[VIEWS]);
    }
    printf("\nviews take %.1f %% more time than the libraries alone (+-%.1f %%)\n", 100 * (over - 1), spread);
    if (b->n_threads > 1) {
        double gain = agglo_median(b->gain, b->n_rounds, &spread);

        printf("%d threads render %.1f %% of what one does (+-%.1f %%)\n", b->n_threads, 100 * gain, spread);
    }
}

static agglo_status write_boxes(bench *b, const agglo_dataset *dataset, agglo_err *err)
{
    FILE *file = fopen(boxes_path, "w");
    bool failed;

    if (file == NULL) {
        agglo_fail(err, AGGLO_E_IO, "%s", strerror(errno));
        return agglo_at(err, "%s", boxes_path);
    }
    draw(b, 0);
    for (size_t i = 0; i < b->n; i++) {
        const picture *p = &b->pictures[i];
        json_t *line = json_pack("{s:s, s:I, s:I, s:s, s:i, s:i, s:i, s:i}", "shard",
                                 agglo_dataset_shard(dataset, p->sample.shard)->path, "offset",
                                 (json_int_t)p->sample.image_offset, "bytes", (json_int_t)p->sample.image.size, "key",
                                 p->sample.key, "x", p->view.x, "y", p->view.y, "w", p->view.w, "h", p->view.h);

        if (line == NULL) { /* a path or key that is no UTF-8 cannot stand in JSON */
            agglo_fail(err, AGGLO_E_DATA, "the key or path of sample %u/%u is no UTF-8", p->sample.shard,
                       p->sample.ordinal);
            break;
        }
        json_dumpf(line, file, JSON_COMPACT);
        fputc('\n', file);
        json_decref(line);
    }
    failed = ferror(file) != 0;
    if ((fclose(file) != 0 || failed) && err->status == AGGLO_OK) {
        agglo_fail(err, AGGLO_E_IO, "not all could be written");
    }
    return err->status == AGGLO_OK ? AGGLO_OK : agglo_at(err, "%s", boxes_path);
}

/* The first pictures of the dataset, read once so that their pages are in memory. */
static agglo_status load(bench *b, const agglo_dataset *dataset, agglo_err *err)
{
    const agglo_decode_options decode = agglo_dataset_decode_options(dataset);
    uint64_t n = agglo_dataset_samples(dataset);

    n = n < (uint64_t)limit ? n : (uint64_t)limit;
    b->pictures = agglo_alloc((size_t)n, sizeof *b->pictures, err);
    if (b->pictures == NULL) {
        return err->status;
    }
    for (uint32_t s = 0; s < agglo_dataset_shards(dataset); s++) {
        for (uint32_t i = 0; i < agglo_dataset_shard(dataset, s)->n_samples && b->n < n; i++) {
            picture *p = &b->pictures[b->n++];
            agglo_image_info info;

            if (agglo_dataset_sample(dataset, s, i, &p->sample, err) != AGGLO_OK ||
                agglo_image_probe(p->sample.image, &decode, &info, NULL, err) != AGGLO_OK) {
                return agglo_at(err, "sample %u/%u", s, i);
            }
            p->orientation = decode.ignore_exif ? 1 : info.orientation;
            b->n_bytes += (double)p->sample.image.size;
        }
    }
    return b->n > 0 ? AGGLO_OK : agglo_fail(err, AGGLO_E_DATA, "the dataset has no samples");
}

static agglo_status make_workers(bench *b, int n_threads, const agglo_decode_options *decode, agglo_err *err)
{
    if (agglo_pool_new(&b->pool, n_threads, err) != AGGLO_OK) {
        return err->status;
    }
    b->n_threads = agglo_pool_threads(b->pool);
    b->workers = agglo_alloc((size_t)b->n_threads, sizeof *b->workers, err);
    for (int i = 0; b->workers != NULL && i < b->n_threads; i++) {
        worker *w = &b->workers[i];

        if (agglo_bench_decoder_new(&w->bench, err) != AGGLO_OK ||
            agglo_renderer_new(&w->renderer, decode, err) != AGGLO_OK ||
            agglo_decoder_new(&w->decoder, decode, err) != AGGLO_OK) {
            break;
        }
        w->pixels = agglo_alloc((size_t)(size * size), 3, err);
        if (w->pixels == NULL) {
            break;
        }
    }
    return err->status;
}

static agglo_status run(agglo_cli *cli, agglo_err *err)
{
    agglo_dataset *dataset = NULL;
    agglo_decode_options decode;
    bench *b = agglo_alloc(1, sizeof *b, err);

    if (b == NULL || agglo_dataset_open(&dataset, cli->args.items, cli->args.n, err) != AGGLO_OK) {
        goto done;
    }
    decode = agglo_dataset_decode_options(dataset);
    if (load(b, dataset, err) != AGGLO_OK || make_workers(b, (int)cli->threads, &decode, err) != AGGLO_OK) {
        goto done;
    }
    if (boxes_path != NULL && write_boxes(b, dataset, err) != AGGLO_OK) {
        goto done;
    }
    if (measure(b, err) != AGGLO_OK) {
        goto done;
    }
    if (cli->json) {
        print_json(b);
    } else {
        print_table(b);
    }
done:
    for (int i = 0; b != NULL && b->workers != NULL && i < b->n_threads; i++) {
        agglo_bench_decoder_free(b->workers[i].bench);
        agglo_renderer_free(b->workers[i].renderer);
        agglo_decoder_free(b->workers[i].decoder);
        agglo_free(b->workers[i].pixels);
    }
    if (b != NULL) {
        agglo_free(b->workers);
        agglo_pool_free(b->pool);
        agglo_free(b->pictures);
        agglo_free(b);
    }
    agglo_dataset_close(dataset);
    return err->status != AGGLO_OK ? agglo_doing(err, "cannot bench decoding") : AGGLO_OK;
}

const agglo_command agglo_cmd_bench_decode = {
    .name = "bench decode",
    .usage = "DATASET...",
    .summary = "how fast views are rendered, beside the image libraries alone",
    .details =
        "Random-resized crops as views are drawn by default, new ones every round. 'libraries' is what libjpeg-turbo, "
        "libwebp and\n"
        "libspng need for the same regions at the same scales, without resizing. One thread (its processor time), then "
        "--threads (time of day). Medians "
        "over rounds;\n"
        "spread is half the distance between the quartiles. Every kind of work takes its turn every 32 pictures.",
    .example = "agglo bench decode data/train --threads 2 --seconds 30",
    .options = options,
    .n_options = AGGLO_COUNT(options),
    .min_args = 1,
    .max_args = SIZE_MAX,
    .run = run,
};
