/* agglo bench teacher: how fast a model runs whole batches, beside what the machine's matrix products would need for the same work. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "base/stop.h"
#include "cli/bench_load.h"
#include "cli/cli.h"
#include "cli/embed.h"
#include "cli/features.h"
#include "tensor/rng.h"

#define MIN_ROUNDS 3

static const char *weights, *arch;
static int64_t size, batch;
static double seconds = 10;
static bool summary_only, lines;
static int precision_option;

static const agglo_option options[] = {
    {"weights", AGGLO_OPTION_STRING, &weights, "FILE", "a teacher's or a student's safetensors", 0, 0},
    {"arch", AGGLO_OPTION_STRING, &arch, "NAME", "without --weights: a random teacher of this architecture", 0, 0},
    {"size", AGGLO_OPTION_INT, &size, "N", "side of the input, pixels (the model's own)", 1, 8192},
    {"batch", AGGLO_OPTION_INT, &batch, "N", "pictures in one run of the model (as embed)", 1, 4096},
    {"precision", AGGLO_OPTION_CHOICE, &precision_option, "fp32|bf16", "what a teacher computes with (fp32)", 0, 0},
    {"seconds", AGGLO_OPTION_DOUBLE, &seconds, "N", "time to spend, at least three rounds (10)", 0.001, 3600},
    {"summary-only", AGGLO_OPTION_FLAG, &summary_only, NULL, "do not hand out spatial features", 0, 0},
    {"lines", AGGLO_OPTION_FLAG, &lines, NULL,
     "run one batch for every line of standard input and print its seconds, of the day and of the processor", 0, 0},
};

typedef struct bench {
    agglo_backend *be;
    agglo_encoder encoder;
    int batch, side;
    uint8_t *pixels;
    float *summary, *spatial;
    bool processor_time; /* one thread on the CPU */
    agglo_bench_load product;
    int64_t bytes_model, bytes_peak; /* of host memory */
} bench;

static double clock_of(clockid_t id)
{
    struct timespec t;

    clock_gettime(id, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double now(const bench *b)
{
    return b->processor_time ? clock_of(CLOCK_THREAD_CPUTIME_ID) : agglo_now();
}

/* ---- the model ---- */

/* A random teacher in a file of its own, gone again when it is open. */
static agglo_status open_random(bench *b, agglo_encoder_options *model, agglo_err *err)
{
    const char *base = getenv("TMPDIR");
    agglo_teacher_config config;
    char *dir = agglo_format(err, "%s/agglo-bench-XXXXXX", base != NULL && base[0] != '\0' ? base : "/tmp"),
         *path = NULL;
    agglo_err ignored = {0};

    if (dir == NULL || agglo_teacher_named(arch, &config, err) != AGGLO_OK) {
        agglo_free(dir);
        return err->status;
    }
    if (mkdtemp(dir) == NULL) {
        agglo_fail(err, AGGLO_E_IO, "%s", strerror(errno));
        agglo_at(err, "%s", dir);
        agglo_free(dir);
        return err->status;
    }
    path = agglo_path_join(dir, "random.safetensors", err);
    if (path != NULL && agglo_teacher_write_random(&config, 1, path, err) == AGGLO_OK) {
        model->model.weights = path;
        agglo_encoder_open(&b->encoder, b->be, model, err);
        model->model.weights = NULL;
    }
    agglo_remove_tree(dir, &ignored);
    agglo_free(path);
    agglo_free(dir);
    return err->status;
}

static void draw_pixels(uint8_t *pixels, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        agglo_philox bits = agglo_philox4x32(1, (uint32_t)(i / 16), 0, 0, 0);

        pixels[i] = (uint8_t)(bits.v[i / 4 % 4] >> (8 * (i % 4)));
    }
}

static agglo_status open_model(bench *b, const agglo_cli *cli, agglo_err *err)
{
    agglo_encoder_options model = agglo_encoder_options_default(weights);
    size_t grid, n;

    model.model.arch = arch;
    model.model.size = (int)size;
    model.model.max_batch = (int)batch;
    model.model.precision = precision_option == 1 ? AGGLO_BF16 : AGGLO_F32;

    if (agglo_backend_open(&b->be, cli->device, (int)cli->threads, err) != AGGLO_OK) {
        return err->status;
    }
    agglo_alloc_peak_reset();
    b->bytes_model = agglo_alloc_counts().bytes_live;
    if (weights != NULL ? agglo_encoder_open(&b->encoder, b->be, &model, err) != AGGLO_OK
                        : open_random(b, &model, err) != AGGLO_OK) {
        return err->status;
    }
    b->processor_time = agglo_backend_pool(b->be) != NULL && agglo_pool_threads(agglo_backend_pool(b->be)) == 1;
    b->batch = batch > 0 ? (int)batch : agglo_embed_batch(&b->encoder);
    b->side = b->encoder.info.preprocess.size;
    grid = (size_t)(b->side / b->encoder.info.patch);
    n = (size_t)b->batch;
    b->pixels = agglo_alloc(n, (size_t)b->side * (size_t)b->side * 3, err);
    b->summary = agglo_alloc(n * (size_t)b->encoder.info.summary_dim, sizeof *b->summary, err);
    if (b->pixels == NULL || b->summary == NULL ||
        (!summary_only && (b->spatial = agglo_alloc(n * grid * grid * (size_t)b->encoder.info.spatial_dim,
                                                    sizeof *b->spatial, err)) == NULL)) {
        return err->status;
    }
    draw_pixels(b->pixels, n * (size_t)b->side * (size_t)b->side * 3);
    return AGGLO_OK;
}

static agglo_status run_model(bench *b, agglo_err *err)
{
    return b->encoder.encode(b->encoder.self, b->pixels, NULL, b->batch, b->side, b->side, b->summary, b->spatial, err);
}

/* ---- for others to drive: bench/teacher_peer.py ---- */

static agglo_status serve(bench *b, agglo_err *err)
{
    char line[64];

    printf("{\"arch\": \"%s\", \"batch\": %d, \"size\": %d, \"gmac\": %.6f}\n", b->encoder.info.arch, b->batch, b->side,
           b->encoder.info.gmac);
    fflush(stdout);
    while (err->status == AGGLO_OK && agglo_stop_check(err) == AGGLO_OK && fgets(line, sizeof line, stdin) != NULL) {
        double wall = agglo_now(), processor = clock_of(CLOCK_PROCESS_CPUTIME_ID);

        if (run_model(b, err) == AGGLO_OK) {
            printf("%.9f %.9f\n", agglo_now() - wall, clock_of(CLOCK_PROCESS_CPUTIME_ID) - processor);
            fflush(stdout);
        }
    }
    return err->status;
}

/* ---- measuring ---- */

static double run_product(bench *b, agglo_bench_load *load, agglo_err *err)
{
    double begin = now(b);

    load->run(load);
    agglo_backend_check(b->be, err);
    return now(b) - begin;
}

/* The fastest of some large products of the library alone, as `bench ops` has them, in about a fifth of the time. */
static agglo_status find_product(bench *b, agglo_err *err)
{
    static const int64_t on_cpu[][3] = {{1024, 1024, 1024}, {2048, 2048, 2048}, {1536, 3072, 768}, {1536, 768, 3072}};
    static const int64_t on_device[][3] = {
        {4096, 4096, 4096}, {8192, 8192, 8192}, {12608, 3072, 768}, {12608, 768, 3072}};
    /* the CPU computes in F32 whatever the storage */
    const agglo_dtype type = precision_option == 1 && agglo_backend_pool(b->be) == NULL ? AGGLO_BF16 : AGGLO_F32;
    double best = 0;

    for (size_t i = 0; i < 2 * AGGLO_COUNT(on_cpu) && err->status == AGGLO_OK; i++) {
        const int64_t *d = agglo_backend_pool(b->be) == NULL ? on_device[i / 2] : on_cpu[i / 2];
        agglo_bench_load load = {.backend = b->be};
        double times[9], begin = agglo_now(), spread, rate = 0;
        int n = 0;

        if (agglo_bench_product(&load, b->be, d[0], d[1], d[2], i % 2 != 0, type, err) == AGGLO_OK) {
            run_product(b, &load, err);
            do {
                times[n++] = run_product(b, &load, err);
            } while (n < 9 && agglo_now() - begin < seconds / 40);
            rate = load.flops / agglo_median(times, n, &spread);
        }
        if (err->status == AGGLO_OK && rate > best) {
            best = rate;
            agglo_bench_load_clear(&b->product);
            b->product = load;
        } else {
            agglo_bench_load_clear(&load);
        }
        agglo_stop_check(err);
    }
    return err->status;
}

typedef struct result {
    int n_rounds;
    double s, spread, best_s; /* of a batch */
    double product_rate;      /* flops a second */
    double percent;           /* of the batch's time that its products would need at that rate */
} result;

/* Model and product take turns, so that what disturbs the machine meets both alike. */
static agglo_status measure(bench *b, result *r, agglo_err *err)
{
    static double times[AGGLO_MEDIAN_MOST], rates[AGGLO_MEDIAN_MOST], percents[AGGLO_MEDIAN_MOST];
    const double flops = 2e9 * b->encoder.info.gmac * b->batch;
    double begin = agglo_now(), spread;

    for (r->n_rounds = 0; err->status == AGGLO_OK && r->n_rounds < AGGLO_MEDIAN_MOST &&
                          (r->n_rounds < MIN_ROUNDS || agglo_now() - begin < seconds);
         r->n_rounds++) {
        double started, product = 0;
        int i = r->n_rounds;

        for (int k = 0; k < 3; k++) {
            product += run_product(b, &b->product, err) / 3;
        }
        started = now(b);
        if (run_model(b, err) != AGGLO_OK) {
            break;
        }
        times[i] = now(b) - started;
        rates[i] = b->product.flops / product;
        percents[i] = 100 * flops / rates[i] / times[i];
        r->best_s = i == 0 || times[i] < r->best_s ? times[i] : r->best_s;
        agglo_stop_check(err);
    }
    if (err->status == AGGLO_OK) {
        r->s = agglo_median(times, r->n_rounds, &r->spread);
        r->product_rate = agglo_median(rates, r->n_rounds, &spread);
        r->percent = agglo_median(percents, r->n_rounds, &spread);
    }
    return err->status;
}

static void report(const bench *b, const agglo_cli *cli, const result *r)
{
    const agglo_encoder_info *info = &b->encoder.info;
    const double flops = 2e9 * info->gmac * b->batch, images = b->batch / r->s;

    if (cli->json) {
        json_t *object = json_pack("{s:s, s:s, s:i, s:i, s:f, s:I, s:s, s:i, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:I}",
                                   "backend", agglo_backend_describe(b->be), "arch", info->arch, "size", b->side,
                                   "batch", b->batch, "gmac", info->gmac, "params", (json_int_t)info->n_params, "clock",
                                   b->processor_time ? "processor" : "wall", "rounds", r->n_rounds, "images_per_s",
                                   agglo_json_clock(images), "ms_per_image", agglo_json_clock(1e3 / images),
                                   "best_ms_per_image", agglo_json_clock(1e3 * r->best_s / b->batch), "spread_percent",
                                   agglo_json_clock(r->spread), "gflop_per_s", agglo_json_clock(flops / r->s / 1e9),
                                   "product_gflop_per_s", agglo_json_clock(r->product_rate / 1e9), "percent_of_product",
                                   agglo_json_clock(r->percent), "bytes_peak", (json_int_t)b->bytes_peak);

        agglo_print_json(object);
        json_decref(object);
        return;
    }
    printf("%s, %s\n", agglo_backend_describe(b->be), b->processor_time ? "processor time" : "time of day");
    printf("%s at %d pixels: %.1f M parameters, %.1f GFLOP an image\n", info->arch, b->side,
           (double)info->n_params / 1e6, 2 * info->gmac);
    printf("%8s %10s %10s %8s %9s %9s %9s %12s\n", "batch", "images/s", "ms/image", "spread", "GFLOP/s", "product",
           "of it", "host memory");
    printf("%8d %10.1f %10.1f %6.1f %% %9.1f %9.1f %7.0f %% %12s\n", b->batch, images, 1e3 / images, r->spread,
           flops / r->s / 1e9, r->product_rate / 1e9, r->percent, agglo_show_bytes((double)b->bytes_peak));
}

static agglo_status run(agglo_cli *cli, agglo_err *err)
{
    bench b = {0};
    result r = {0};

    if (weights == NULL && arch == NULL) {
        return agglo_fail(err, AGGLO_E_CONFIG, "--weights FILE or --arch NAME is missing");
    }
    if (lines && cli->json) {
        return agglo_fail(err, AGGLO_E_CONFIG, "--lines and --json do not go together: lines are no JSON object");
    }
    if (open_model(&b, cli, err) != AGGLO_OK || run_model(&b, err) != AGGLO_OK) {
        goto done;
    }
    b.bytes_peak = agglo_alloc_counts().bytes_peak - b.bytes_model;
    if (lines) {
        serve(&b, err);
        goto done;
    }
    b.product.backend = b.be;
    if (find_product(&b, err) == AGGLO_OK && measure(&b, &r, err) == AGGLO_OK) {
        report(&b, cli, &r);
    }
done:
    if (b.be != NULL) {
        b.product.backend = b.be;
        agglo_bench_load_clear(&b.product);
    }
    agglo_free(b.pixels);
    agglo_free(b.summary);
    agglo_free(b.spatial);
    agglo_encoder_clear(&b.encoder);
    agglo_backend_free(b.be);
    return err->status == AGGLO_OK ? AGGLO_OK : agglo_doing(err, "cannot time the model");
}

const agglo_command agglo_cmd_bench_teacher = {
    .name = "bench teacher",
    .usage = "--weights FILE | --arch NAME [--size N] [--batch N]",
    .summary = "how fast a teacher or a student runs",
    .details =
        "Batches of noise, features handed out as embed has them; decoding is not in it. Medians over rounds; spread "
        "is "
        "half the distance\n"
        "between the quartiles. `product` is the rate of the library's fastest large matrix product (as in bench ops), "
        "measured in turns\n"
        "with the model; the last percentage says how much of the model's time its matrix products would need at that "
        "rate. Memory is\n"
        "what this process allocates on the host for the model and its features, at most (on a GPU, weights and activations\n"
        "are not in it). One thread on the CPU: processor time; otherwise time of day.",
    .example = "agglo bench teacher --arch clip-vit-base-16 --batch 8 --threads 1",
    .options = options,
    .n_options = AGGLO_COUNT(options),
    .min_args = 0,
    .max_args = 0,
    .run = run,
};
