/* agglo teach: the teacher pass. */
#include <stdio.h>
#include <stdlib.h>

#include "cli/cli.h"
#include "launch/teach.h"

static agglo_texts teachers, sets;
static const char *part, *scratch;
static bool verify;

static const agglo_option options[] = {
    {"teacher", AGGLO_OPTION_LIST, &teachers, "NAME", "only this teacher of the recipe; may be repeated", 0, 0},
    {"part", AGGLO_OPTION_STRING, &part, "I/N", "only part I of N (from 1) of the units, for N workers", 0, 0},
    {"scratch", AGGLO_OPTION_STRING, &scratch, "DIR", "local folder for units in the making", 0, 0},
    {"verify", AGGLO_OPTION_FLAG, &verify, NULL, "re-read and check the units that exist", 0, 0},
    {"set", AGGLO_OPTION_LIST, &sets, "KEY=VALUE", "change a recipe key; may be repeated", 0, 0},
};

static agglo_status parse_part(agglo_teach_choice *choice, agglo_err *err)
{
    char *end;
    long i, n;

    if (part == NULL) {
        return AGGLO_OK;
    }
    i = strtol(part, &end, 10);
    n = *end == '/' ? strtol(end + 1, &end, 10) : 0;
    if (*end != '\0' || i < 1 || n < i || n > 1000000) {
        return agglo_fail(err, AGGLO_E_CONFIG, "--part takes I/N with 1 <= I <= N, not '%s'", part);
    }
    choice->part = (int)i;
    choice->n_parts = (int)n;
    return AGGLO_OK;
}

static json_t *line_json(const agglo_teach_line *line)
{
    const agglo_teach_report *r = &line->report;
    json_t *failures = json_array();
    json_t *object =
        json_pack("{s:s, s:s, s:s, s:s, s:[i,i,i], s:i}", "teacher", line->teacher, "set",
                  line->val ? "val" : "dataset", "arch", line->arch, "codec", agglo_codec_name(line->codec), "spatial",
                  line->grid_h, line->grid_w, line->spatial_dim, "summary", line->summary_dim);
    const struct {
        const char *name;
        uint64_t value;
    } counts[] = {{"units_done", r->units_done},
                  {"units_present", r->units_present},
                  {"units_failed", r->units_failed},
                  {"units_elsewhere", r->units_elsewhere},
                  {"views", r->views},
                  {"samples_skipped", r->samples_skipped},
                  {"bytes", r->bytes},
                  {"spatial_bytes", r->spatial_bytes},
                  {"spatial_fp16_bytes", r->spatial_fp16_bytes}};

    for (size_t i = 0; i < AGGLO_COUNT(counts); i++) {
        json_object_set_new(object, counts[i].name, json_integer((json_int_t)counts[i].value));
    }
    json_object_set_new(object, "seconds", agglo_json_clock(r->seconds));
    for (size_t i = 0; i < r->n_failures; i++) {
        json_array_append_new(failures, json_string(r->failures[i]));
    }
    json_object_set_new(object, "failures", failures);
    return object;
}

static void print_line(const agglo_teach_line *line)
{
    const agglo_teach_report *r = &line->report;

    printf("%-12s %-8s %s: ", line->teacher, line->val ? "val" : "dataset", line->arch);
    if (r->units_done + r->units_failed + r->units_present + r->units_elsewhere == 0) {
        printf("no samples; nothing to do\n");
    } else if (r->units_done == 0 && r->units_failed == 0) {
        printf("%s units there already; nothing to do\n", agglo_show_int((int64_t)r->units_present));
    } else {
        double views = r->views > 0 ? (double)r->views : 1;

        printf("%s views in %.1f s (%.1f/s); %s a view, of it spatial %dx%dx%d %s in %s (%s in fp16)\n",
               agglo_show_int((int64_t)r->views), r->seconds,
               (double)r->views / (r->seconds > 0.05 ? r->seconds : 0.05), agglo_show_bytes((double)r->bytes / views),
               line->grid_h, line->grid_w, line->spatial_dim, agglo_show_bytes((double)r->spatial_bytes / views),
               agglo_codec_name(line->codec), agglo_show_bytes((double)r->spatial_fp16_bytes / views));
    }
    if (r->units_present > 0 && r->units_done > 0) {
        printf("  %s units were there already\n", agglo_show_int((int64_t)r->units_present));
    }
    if (r->samples_skipped > 0) {
        printf("  %s samples could not be rendered; their units' manifests name them\n",
               agglo_show_int((int64_t)r->samples_skipped));
    }
    for (size_t i = 0; i < r->n_failures; i++) {
        printf("  failed: %s\n", r->failures[i]);
    }
}

static agglo_status run(agglo_cli *cli, agglo_err *err)
{
    agglo_teach_choice choice = {.teachers = teachers.items,
                                 .n_teachers = teachers.n,
                                 .scratch = scratch,
                                 .threads = (int)cli->threads,
                                 .verify = verify};
    agglo_recipe recipe = {0};
    agglo_backend *backend = NULL;
    agglo_teach_result result = {0};
    json_t *lines = json_array();

    if (parse_part(&choice, err) == AGGLO_OK &&
        agglo_recipe_read(&recipe, cli->args.items[0], sets.items, sets.n, err) == AGGLO_OK &&
        agglo_backend_open(&backend, cli->device, (int)cli->threads, err) == AGGLO_OK) {
        agglo_run_teach(&recipe, &choice, backend, &result, err);
    }
    for (size_t i = 0; i < result.n_lines; i++) {
        if (cli->json) {
            json_array_append_new(lines, line_json(&result.lines[i]));
        } else if (err->status == AGGLO_OK || result.lines[i].report.units_done > 0) {
            print_line(&result.lines[i]); /* a pass that was stopped says what it has made */
        }
        cli->incomplete |= result.lines[i].report.units_failed > 0;
    }
    if (cli->json && err->status == AGGLO_OK) {
        json_t *object = json_pack("{s:O}", "teachers", lines);

        agglo_print_json(object);
        json_decref(object);
    }
    json_decref(lines);
    agglo_teach_result_clear(&result);
    agglo_backend_free(backend);
    agglo_recipe_clear(&recipe);
    return err->status;
}

const agglo_command agglo_cmd_teach = {
    .name = "teach",
    .usage = "RECIPE [--teacher NAME]... [--part I/N] [--scratch DIR] [--set KEY=VALUE]...",
    .summary = "run each teacher once over the dataset, into the cache",
    .details = "Every unit (teacher, shard, view group) that is missing is made, for the recipe's dataset and for its "
               "val. A unit that exists\n"
               "is never touched: killed at any moment, started again, the pass goes on. Weights that differ from the "
               "cache's are refused.",
    .example = "agglo teach recipe.yaml --part 1/2",
    .options = options,
    .n_options = AGGLO_COUNT(options),
    .min_args = 1,
    .max_args = 1,
    .run = run,
};
