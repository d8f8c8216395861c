/* agglo bench ops: what every operator of the table costs, beside what the machine can do. */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/log.h"
#include "base/stop.h"
#include "cli/bench_load.h"
#include "cli/cli.h"

#define MIN_ROUNDS  3
#define SAMPLE_S    0.004 /* a sample repeats short work for this long */
#define MAX_REPEATS 2000
#define PEAK_S      0.25 /* at most, for each product and move, to find the best */

static double seconds = 0.5;
static int64_t batch_option;
static const char *filter;
static int dtype_option = 2;

static const agglo_option options[] = {
    {"filter", AGGLO_OPTION_STRING, &filter, "TEXT", "only lines that contain TEXT, such as attention or ViT-B", 0, 0},
    {"seconds", AGGLO_OPTION_DOUBLE, &seconds, "N", "time to spend on each, at least three rounds (0.5)", 0.001, 3600},
    {"dtype", AGGLO_OPTION_CHOICE, &dtype_option, "f32|bf16|all", "storage type (all that the device has)", 0, 0},
    {"batch", AGGLO_OPTION_INT, &batch_option, "N", "pictures at a time (8 on the CPU, 64 on a GPU)", 1, 4096},
};

/* ---- what the machine can do ---- */

#define MAX_MOVES 8

typedef struct peak {
    agglo_bench_load load;
    double rate; /* flops or bytes a second */
    int64_t m, n, k;
} peak;

typedef struct bench {
    agglo_backend *be;
    bool processor_time; /* one thread on the CPU: of this thread; otherwise time of day */
    bool on_device;
    int64_t batch;
    peak products[2]; /* F32, BF16 */
    peak moves[MAX_MOVES];
    int n_moves;
    json_t *lines; /* of --json */
    bool json;
    int n_lines;
} bench;

typedef enum bound { COMPUTE, MEMORY } bound;

typedef struct result {
    bound bound;
    int n_rounds;
    double s, best_s, spread, percent, percent_spread;
} result;

static double now(const bench *b)
{
    struct timespec t;

    if (!b->processor_time) {
        return agglo_now();
    }
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Seconds of one run, the mean of `repeats`; asynchronous work is waited for. */
static double sample(const bench *b, agglo_bench_load *load, int repeats, agglo_err *err)
{
    double begin = now(b);

    for (int i = 0; i < repeats; i++) {
        load->run(load);
    }
    agglo_backend_check(b->be, err);
    return (now(b) - begin) / repeats;
}

/* How often work is repeated in one sample; runs it some times first, which fills caches and allocates. */
static int warm_up(const bench *b, agglo_bench_load *load, agglo_err *err)
{
    double s;

    sample(b, load, 1, err);
    s = sample(b, load, 1, err);
    if (s < SAMPLE_S / 10) {
        s = sample(b, load, 10, err);
    }
    s = s > SAMPLE_S / MAX_REPEATS ? s : SAMPLE_S / MAX_REPEATS;
    return s >= SAMPLE_S ? 1 : (int)(SAMPLE_S / s) + 1;
}

/* The median rate of a product or a move by itself. */
static agglo_status measure_rate(const bench *b, peak *p, double work, agglo_err *err)
{
    double begin = agglo_now(), most = seconds < PEAK_S ? seconds : PEAK_S, times[AGGLO_MEDIAN_MOST], spread;
    int repeats = warm_up(b, &p->load, err), n = 0;

    while (err->status == AGGLO_OK && n < AGGLO_MEDIAN_MOST && (n < MIN_ROUNDS || agglo_now() - begin < most)) {
        times[n++] = sample(b, &p->load, repeats, err);
    }
    if (err->status == AGGLO_OK && agglo_stop_check(err) == AGGLO_OK) {
        p->rate = work / agglo_median(times, n, &spread);
    }
    return err->status;
}

/* The library's fastest product among large ones, kept to run beside the operators. */
static agglo_status find_product(bench *b, agglo_dtype type, peak *best, agglo_err *err)
{
    static const int64_t on_cpu[][3] = {
        {1024, 1024, 1024}, {2048, 2048, 2048}, {1536, 3072, 768}, {1536, 768, 3072}, {3072, 768, 768}};
    static const int64_t on_device[][3] = {
        {4096, 4096, 4096}, {8192, 8192, 8192}, {12608, 3072, 768}, {12608, 768, 3072}, {16384, 4096, 1024}};

    for (size_t i = 0; i < 2 * AGGLO_COUNT(on_cpu); i++) {
        const int64_t *d = b->on_device ? on_device[i / 2] : on_cpu[i / 2];
        peak p = {.m = d[0], .n = d[1], .k = d[2]};

        if (agglo_bench_product(&p.load, b->be, p.m, p.n, p.k, i % 2 != 0, type, err) == AGGLO_OK &&
            measure_rate(b, &p, p.load.flops, err) == AGGLO_OK && p.rate > best->rate) {
            agglo_bench_load_clear(&best->load);
            *best = p;
        } else {
            agglo_bench_load_clear(&p.load);
        }
        if (err->status != AGGLO_OK) {
            return err->status;
        }
    }
    return AGGLO_OK;
}

/* The faster of a copy and an update in place. */
static agglo_status find_move(bench *b, int64_t n_bytes, peak *best, agglo_err *err)
{
    best->load.backend = b->be;
    for (int update = 0; update < 2; update++) {
        peak p = {0};

        if (agglo_bench_move(&p.load, b->be, n_bytes, update == 1, err) == AGGLO_OK &&
            measure_rate(b, &p, p.load.bytes, err) == AGGLO_OK && p.rate > best->rate) {
            agglo_bench_load_clear(&best->load);
            *best = p;
        } else {
            agglo_bench_load_clear(&p.load);
        }
        if (err->status != AGGLO_OK) {
            return err->status;
        }
    }
    return AGGLO_OK;
}

static agglo_status measure_peaks(bench *b, const bool wanted[2], agglo_err *err)
{
    static const int64_t on_cpu[] = {1 << 18, 1 << 20, 1 << 22, 1 << 24, 1 << 26, 1 << 28};
    static const int64_t on_device[] = {1 << 20, 1 << 22, 1 << 24, 1 << 26, 1 << 28, 1 << 30};

    /* the CPU computes in F32 whatever the storage */
    for (int type = 0; type < 2; type++) {
        b->products[type].load.backend = b->be;
        if ((type == 0 ? wanted[0] || !b->on_device : wanted[1] && b->on_device) &&
            find_product(b, type == 0 ? AGGLO_F32 : AGGLO_BF16, &b->products[type], err) != AGGLO_OK) {
            return err->status;
        }
    }
    for (size_t i = 0; i < AGGLO_COUNT(on_cpu); i++) {
        if (find_move(b, b->on_device ? on_device[i] : on_cpu[i], &b->moves[b->n_moves++], err) != AGGLO_OK) {
            return err->status;
        }
    }
    return AGGLO_OK;
}

/* The move of the nearest size: small arrays stay in caches. */
static peak *move_like(bench *b, double bytes)
{
    for (int i = 0; i + 1 < b->n_moves; i++) {
        if (bytes < 2 * b->moves[i].load.bytes) {
            return &b->moves[i];
        }
    }
    return &b->moves[b->n_moves - 1];
}

static peak *product_of(bench *b, agglo_dtype type)
{
    return &b->products[type == AGGLO_BF16 && b->on_device ? 1 : 0];
}

/* ---- one line ---- */

/* The load and its bound take turns, so that what disturbs the machine meets both alike. */
static agglo_status measure(bench *b, agglo_bench_load *load, agglo_dtype type, result *r, agglo_err *err)
{
    peak *move = move_like(b, load->bytes), *product = product_of(b, type), *limit;
    double times[AGGLO_MEDIAN_MOST], percents[AGGLO_MEDIAN_MOST], begin = agglo_now(), ideal;
    int repeats = warm_up(b, load, err), limit_repeats, n = 0;

    r->bound = load->flops / product->rate > load->bytes / move->rate ? COMPUTE : MEMORY;
    limit = r->bound == COMPUTE ? product : move;
    limit_repeats = warm_up(b, &limit->load, err);
    while (err->status == AGGLO_OK && n < AGGLO_MEDIAN_MOST && (n < MIN_ROUNDS || agglo_now() - begin < seconds)) {
        ideal = sample(b, &limit->load, limit_repeats, err);
        ideal *= r->bound == COMPUTE ? load->flops / limit->load.flops : load->bytes / limit->load.bytes;
        if (repeats > 1) {
            sample(b, load, 1, err); /* its operands into the caches, where they were before */
        }
        times[n] = sample(b, load, repeats, err);
        percents[n] = 100 * ideal / times[n];
        r->best_s = n == 0 || times[n] < r->best_s ? times[n] : r->best_s;
        n++;
        agglo_stop_check(err);
    }
    if (err->status != AGGLO_OK) {
        return err->status;
    }
    r->n_rounds = n;
    r->s = agglo_median(times, n, &r->spread);
    r->percent = agglo_median(percents, n, &r->percent_spread);
    return AGGLO_OK;
}

static void print_line(bench *b, const char *label, const char *text, const agglo_bench_load *load, const result *r)
{
    static const char *const bounds[] = {"compute", "memory"};

    b->n_lines++;
    if (b->json) {
        json_array_append_new(
            b->lines,
            json_pack("{s:s, s:s, s:i, s:o, s:o, s:o, s:o, s:o, s:s, s:o, s:o}", "what", text, "label", label, "rounds",
                      r->n_rounds, "us", agglo_json_clock(1e6 * r->s), "best_us", agglo_json_clock(1e6 * r->best_s),
                      "spread_percent", agglo_json_clock(r->spread), "gb_per_s",
                      agglo_json_clock(load->bytes / r->s / 1e9), "gflop_per_s",
                      agglo_json_clock(load->flops / r->s / 1e9), "bound", bounds[r->bound], "percent_of_bound",
                      agglo_json_clock(r->percent), "percent_spread", agglo_json_clock(r->percent_spread)));
        return;
    }
    if (b->n_lines == 1) {
        printf("\n%-22s %-67s %10s %8s %8s %9s  %-7s %6s\n", "", "", "us", "spread", "GB/s",
               b->on_device ? "TFLOP/s" : "GFLOP/s", "bound", "of it");
    }
    printf("%-22s %-67s %10.1f %6.1f %% %8.1f %9.1f  %-7s %4.0f %%\n", label, text, 1e6 * r->s, r->spread,
           load->bytes / r->s / 1e9, load->flops / r->s / (b->on_device ? 1e12 : 1e9), bounds[r->bound], r->percent);
    fflush(stdout);
}

static bool wanted_line(const char *label, const char *text)
{
    return filter == NULL || strstr(label, filter) != NULL || strstr(text, filter) != NULL;
}

/* ---- all lines ---- */

typedef struct block_row {
    const char *label;
    agglo_vit_block_config config;
    int64_t tokens;
} block_row;

static const block_row blocks[] = {
    {"ViT-B block", {768, 12, 3072, AGGLO_ACT_GELU, false, false, 1e-6f, AGGLO_F32}, 197},
    {"ViT-L block", {1024, 16, 4096, AGGLO_ACT_GELU, false, false, 1e-6f, AGGLO_F32}, 197},
    {"ViT-Ti block", {192, 3, 768, AGGLO_ACT_GELU, false, false, 1e-6f, AGGLO_F32}, 197},
};

/* Calls `line` for every line that is asked for; NULL counts them alone. */
static agglo_status each_line(bench *b, const bool types[2], int *n,
                              agglo_status (*line)(bench *b, const agglo_op_case *c, const block_row *block,
                                                   bool backward, agglo_dtype type, const char *label, const char *text,
                                                   agglo_err *err),
                              agglo_err *err)
{
    size_t n_families;
    const agglo_op_family *const *table = agglo_op_table(&n_families);
    char text[256];

    *n = 0;
    for (size_t i = 0; i < 4 * AGGLO_COUNT(blocks); i++) {
        const block_row *row = &blocks[i / 4];
        agglo_dtype type = i % 2 == 0 ? AGGLO_F32 : AGGLO_BF16;
        bool backward = i / 2 % 2 != 0;

        snprintf(text, sizeof text, "%s b=%lld n=%lld d=%lld %s", backward ? "forward and backward" : "forward",
                 (long long)b->batch, (long long)row->tokens, (long long)row->config.dim, agglo_dtype_name(type));
        if (types[i % 2] && wanted_line(row->label, text)) {
            ++*n;
            if (line != NULL && line(b, NULL, row, backward, type, row->label, text, err) != AGGLO_OK) {
                return err->status;
            }
        }
    }
    for (size_t f = 0; f < n_families; f++) {
        for (size_t i = 0; i < 2 * table[f]->n_cases; i++) {
            const agglo_op_case *row = &table[f]->cases[i / 2];
            agglo_op_case c = agglo_op_case_at(row, b->batch);
            unsigned bit = i % 2 == 0 ? AGGLO_OP_F32 : AGGLO_OP_BF16;
            agglo_dtype type = i % 2 == 0 ? AGGLO_F32 : AGGLO_BF16;

            if ((row->use & AGGLO_USE_BENCH) == 0 || (row->types & bit) == 0 || !types[i % 2]) {
                continue;
            }
            agglo_op_case_text(&c, type, text, sizeof text);
            if (wanted_line(row->label, text)) {
                ++*n;
                if (line != NULL && line(b, &c, NULL, false, type, row->label, text, err) != AGGLO_OK) {
                    return err->status;
                }
            }
        }
    }
    return AGGLO_OK;
}

static agglo_status do_line(bench *b, const agglo_op_case *c, const block_row *block, bool backward, agglo_dtype type,
                            const char *label, const char *text, agglo_err *err)
{
    agglo_bench_load load;
    result r = {0};

    if (c != NULL) {
        agglo_bench_case(&load, b->be, c, type, err);
    } else {
        agglo_vit_block_config config = block->config;

        config.dtype = type;
        agglo_bench_vit_block(&load, b->be, &config, b->batch, block->tokens, backward, err);
    }
    if (err->status == AGGLO_OK && measure(b, &load, type, &r, err) == AGGLO_OK) {
        print_line(b, label, text, &load, &r);
    }
    agglo_bench_load_clear(&load);
    return err->status == AGGLO_OK ? AGGLO_OK : agglo_at(err, "%s", text);
}

static void print_head(const bench *b)
{
    static const char *const types[] = {"f32", "bf16"};
    json_t *products = json_array(), *moves = json_array();

    if (!b->json) {
        printf("%s, batch %lld, %s\n", agglo_backend_describe(b->be), (long long)b->batch,
               b->processor_time ? "processor time" : "time of day");
    }
    for (int i = 0; i < 2; i++) {
        const peak *p = &b->products[i];

        if (p->rate <= 0) {
            continue;
        }
        json_array_append_new(products, json_pack("{s:s, s:I, s:I, s:I, s:o}", "dtype", types[i], "m", (json_int_t)p->m,
                                                  "n", (json_int_t)p->n, "k", (json_int_t)p->k, "gflop_per_s",
                                                  agglo_json_clock(p->rate / 1e9)));
        if (!b->json) {
            printf("best product of the library alone: %s %.1f %s (%lld x %lld x %lld%s)\n", types[i],
                   p->rate / (b->on_device ? 1e12 : 1e9), b->on_device ? "TFLOP/s" : "GFLOP/s", (long long)p->m,
                   (long long)p->n, (long long)p->k, p->load.flag ? ", transposed" : "");
        }
    }
    for (int i = 0; i < b->n_moves; i++) {
        const peak *p = &b->moves[i];

        json_array_append_new(moves,
                              json_pack("{s:I, s:s, s:o}", "bytes", (json_int_t)p->load.bytes, "how",
                                        p->load.flag ? "update" : "copy", "gb_per_s", agglo_json_clock(p->rate / 1e9)));
        if (!b->json) {
            printf("%s%s at %.1f GB/s%s", i == 0 ? "memory, read and written: " : ", ", agglo_show_bytes(p->load.bytes),
                   p->rate / 1e9, i + 1 == b->n_moves ? "\n" : "");
        }
    }
    if (b->json) {
        json_t *out = json_pack("{s:s, s:I, s:s, s:o, s:o, s:O}", "backend", agglo_backend_describe(b->be), "batch",
                                (json_int_t)b->batch, "clock", b->processor_time ? "processor" : "wall",
                                "best_products", products, "memory", moves, "lines", b->lines);

        agglo_print_json(out);
        json_decref(out);
    } else {
        json_decref(products);
        json_decref(moves);
    }
}

static agglo_status open_bench(bench *b, const agglo_cli *cli, bool types[2], agglo_err *err)
{
    agglo_pool *pool;

    if (agglo_backend_open(&b->be, cli->device, (int)cli->threads, err) != AGGLO_OK) {
        return err->status;
    }
    pool = agglo_backend_pool(b->be);
    b->on_device = pool == NULL;
    b->processor_time = pool != NULL && agglo_pool_threads(pool) == 1;
    b->batch = batch_option > 0 ? batch_option : b->on_device ? 64 : 8;
    b->json = cli->json;
    b->lines = json_array();
    types[0] = dtype_option != 1;
    types[1] = dtype_option != 0 && agglo_backend_supports(b->be, AGGLO_BF16);
    if (dtype_option == 1 && !types[1]) {
        return agglo_fail(err, AGGLO_E_UNSUPPORTED, "%s has no bf16", agglo_backend_describe(b->be));
    }
    return AGGLO_OK;
}

static agglo_status run(agglo_cli *cli, agglo_err *err)
{
    bench *b = agglo_alloc(1, sizeof *b, err);
    bool types[2];
    int n;

    if (b == NULL || open_bench(b, cli, types, err) != AGGLO_OK || each_line(b, types, &n, NULL, err) != AGGLO_OK) {
        goto done;
    }
    if (n == 0) {
        agglo_fail(err, AGGLO_E_CONFIG, "no line contains --filter '%s'", filter != NULL ? filter : "");
        goto done;
    }
    if (measure_peaks(b, types, err) != AGGLO_OK) {
        goto done;
    }
    if (!b->json) {
        print_head(b);
    }
    if (each_line(b, types, &n, do_line, err) == AGGLO_OK && b->json) {
        print_head(b);
    }
done:
    if (b != NULL && b->be != NULL) {
        for (int i = 0; i < 2; i++) {
            agglo_bench_load_clear(&b->products[i].load);
        }
        for (int i = 0; i < b->n_moves; i++) {
            agglo_bench_load_clear(&b->moves[i].load);
        }
        json_decref(b->lines);
        agglo_backend_free(b->be);
    }
    agglo_free(b);
    return err->status == AGGLO_OK ? AGGLO_OK : agglo_doing(err, "cannot time operators");
}

const agglo_command agglo_cmd_bench_ops = {
    .name = "bench ops",
    .usage = "[--filter TEXT]",
    .summary = "how fast operators and transformer blocks run, beside the machine's own limits",
    .details =
        "Every operator at the shapes of ViT-B, ViT-L, SAM and small students. Medians over rounds; spread is half the "
        "distance between\n"
        "the quartiles. The bound is the larger of two times: operations at the rate of the library's fastest large "
        "matrix product\n"
        "(oneDNN or cuBLASLt alone), bytes at the rate of a copy or an update in place (the faster) of about that "
        "size. "
        "It takes turns with\n"
        "the operator; the last column says how much of the operator's time it explains. One thread on the CPU: "
        "processor time; otherwise\n"
        "time of day.",
    .example = "agglo bench ops --device cpu --threads 1 --filter ViT-B",
    .options = options,
    .n_options = AGGLO_COUNT(options),
    .min_args = 0,
    .max_args = 0,
    .run = run,
};
