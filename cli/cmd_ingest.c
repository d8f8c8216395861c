/* agglo ingest: webdataset tars in, a clean dataset out. */
#include <stdio.h>

#include "cli/cli.h"
#include "ingest/ingest.h"

static const char *out_dir, *select_file;
static int64_t shard_samples = 10000, min_side, max_side, max_pixels = 178956970, max_scans = 64, max_name = 4096, jobs;
static uint64_t shard_bytes, max_image_bytes = (uint64_t)256 << 20, max_member_bytes = (uint64_t)16 << 20;
static double max_aspect;
static bool dedup, check_sha256;
static int verify, exif, png16;

static const agglo_option options[] = {
    {"out", AGGLO_OPTION_STRING, &out_dir, "DATASET", "folder of the dataset, new or to be added to", 0, 0},
    {"shard-samples", AGGLO_OPTION_INT, &shard_samples, "N", "samples per shard at most (10000)", 1, 1e9},
    {"shard-bytes", AGGLO_OPTION_SIZE, &shard_bytes, "SIZE", "bytes per shard at most (no limit)", 0, 0},
    {"select", AGGLO_OPTION_STRING, &select_file, "FILE",
     "keep these uids only: a text file, one per line, or DataComp's .npy", 0, 0},
    {"dedup", AGGLO_OPTION_FLAG, &dedup, NULL, "of pictures with equal bytes keep the first", 0, 0},
    {"check-sha256", AGGLO_OPTION_FLAG, &check_sha256, NULL, "reject pictures whose sha256 is not what their json says",
     0, 0},
    {"min-side", AGGLO_OPTION_INT, &min_side, "N", "reject pictures with a shorter side, pixels (0)", 0, 65500},
    {"max-side", AGGLO_OPTION_INT, &max_side, "N", "re-encode pictures with a longer side to N pixels, JPEG (never)", 0,
     65500},
    {"max-aspect", AGGLO_OPTION_DOUBLE, &max_aspect, "R", "reject pictures longer than R times their short side", 1,
     1e6},
    {"max-pixels", AGGLO_OPTION_INT, &max_pixels, "N", "reject pictures with more pixels (178956970)", 1, 4e9},
    {"max-image-bytes", AGGLO_OPTION_SIZE, &max_image_bytes, "SIZE", "reject pictures with more encoded bytes (256M)",
     0, 0},
    {"max-member-bytes", AGGLO_OPTION_SIZE, &max_member_bytes, "SIZE", "drop side-cars with more bytes (16M)", 0, 0},
    {"max-name", AGGLO_OPTION_INT, &max_name, "N", "drop members with longer names, bytes (4096)", 1, 1048576},
    {"max-scans", AGGLO_OPTION_INT, &max_scans, "N", "reject progressive JPEGs with more scans (64)", 1, 100000},
    {"verify", AGGLO_OPTION_CHOICE, &verify, "full|header", "decode every picture, or trust its header (full)", 0, 0},
    {"exif", AGGLO_OPTION_CHOICE, &exif, "apply|ignore", "turn pictures upright as EXIF says, or not (apply)", 0, 0},
    {"png16", AGGLO_OPTION_CHOICE, &png16, "scale|clip", "16-bit gray PNG: high byte, or Pillow's clipping (scale)", 0,
     0},
    {"jobs", AGGLO_OPTION_INT, &jobs, "N", "pictures checked at a time (all cores)", 1, 4096},
};

static void print_report(const agglo_ingest_report *report)
{
    const char *reason;
    json_t *count;

    printf("%s: %s samples kept of %s", out_dir, agglo_show_int((int64_t)report->samples_kept),
           agglo_show_int((int64_t)report->samples_in));
    if (report->up_to_date) {
        printf(" (done before; nothing to do)\n");
    } else {
        double seconds = report->seconds > 0.05 ? report->seconds : 0.05;

        printf(", %s in %.1f s (%.1f images/s, %s/s)\n", agglo_show_bytes((double)report->bytes_in), report->seconds,
               (double)report->samples_in / seconds, agglo_show_bytes((double)report->bytes_in / seconds));
    }
    if (report->samples_resumed > 0) {
        printf("  went on behind %s samples of a run that was stopped\n",
               agglo_show_int((int64_t)report->samples_resumed));
    }
    if (report->samples_before > 0 && !report->up_to_date) {
        printf("  added to %s samples\n", agglo_show_int((int64_t)report->samples_before));
    }
    json_object_foreach(report->rejected, reason, count)
    {
        printf("  rejected  %-22s %s\n", reason, agglo_show_int(json_integer_value(count)));
    }
    if (report->shards_failed > 0) {
        printf("  %s of %s source shards could not be read whole; see %s/rejects.jsonl\n",
               agglo_show_int((int64_t)report->shards_failed), agglo_show_int((int64_t)report->shards_in), out_dir);
    }
}

static void print_report_json(const agglo_ingest_report *report)
{
    json_t *object = json_pack(
        "{s:I, s:I, s:I, s:O, s:I, s:I, s:I, s:o, s:b, s:I, s:I}", "samples_in", (json_int_t)report->samples_in,
        "samples_kept", (json_int_t)report->samples_kept, "samples_rejected", (json_int_t)report->samples_rejected,
        "rejected", report->rejected, "shards_in", (json_int_t)report->shards_in, "shards_failed",
        (json_int_t)report->shards_failed, "bytes_in", (json_int_t)report->bytes_in, "seconds",
        agglo_json_clock(report->seconds), "up_to_date", (int)report->up_to_date, "samples_resumed",
        (json_int_t)report->samples_resumed, "samples_before", (json_int_t)report->samples_before);

    agglo_print_json(object);
    json_decref(object);
}

static agglo_status run(agglo_cli *cli, agglo_err *err)
{
    agglo_ingest_options ingest = agglo_ingest_options_default();
    agglo_ingest_report report = {0};
    agglo_arena *arena = NULL;
    char **paths = NULL;
    size_t n = 0;

    if (out_dir == NULL) {
        return agglo_fail(err, AGGLO_E_CONFIG, "--out DATASET is missing");
    }
    ingest.out = out_dir;
    ingest.shard_samples = (uint64_t)shard_samples;
    ingest.shard_bytes = shard_bytes;
    ingest.select = select_file;
    ingest.dedup = dedup;
    ingest.check_sha256 = check_sha256;
    ingest.min_side = (int)min_side;
    ingest.max_side = (int)max_side;
    ingest.max_image_bytes = max_image_bytes;
    ingest.max_member_bytes = max_member_bytes;
    ingest.max_name = (uint64_t)max_name;
    ingest.decode.max_scans = (int)max_scans;
    ingest.max_aspect = max_aspect;
    ingest.header_only = verify == 1;
    ingest.decode.max_pixels = (uint64_t)max_pixels;
    ingest.decode.ignore_exif = exif == 1;
    ingest.decode.png16_clip = png16 == 1;
    ingest.jobs = jobs > 0 ? (int)jobs : (int)cli->threads;
    if (agglo_arena_new(&arena, 0, err) != AGGLO_OK ||
        agglo_ingest_expand(cli->args.items, cli->args.n, arena, &paths, &n, err) != AGGLO_OK) {
        goto done;
    }
    if (agglo_ingest((const char *const *)paths, n, &ingest, &report, err) != AGGLO_OK) {
        goto done;
    }
    if (cli->json) {
        print_report_json(&report);
    } else {
        print_report(&report);
    }
    cli->incomplete = report.shards_failed > 0;
done:
    json_decref(report.rejected);
    agglo_arena_free(arena);
    return err->status;
}

const agglo_command agglo_cmd_ingest = {
    .name = "ingest",
    .usage = "SRC... --out DATASET",
    .summary = "shard pictures into a clean dataset with random access",
    .details =
        "SRC is a webdataset tar (plain, gzip or zstd), a glob, a brace range such as {00000..00127}.tar, a "
        "folder of tars,\n"
        "a folder of pictures (its subfolders are their classes), or - for standard input. What is rejected "
        "stands in\n"
        "DATASET/rejects.jsonl with its reason. A run that was stopped goes on where it was; sources that are in "
        "already\n"
        "are passed over, new ones are added in shards of their own.",
    .example = "agglo ingest 'shards/{00000000..00000007}.tar' --out data/train",
    .options = options,
    .n_options = AGGLO_COUNT(options),
    .min_args = 1,
    .max_args = SIZE_MAX,
    .run = run,
};
