/* agglo embed: a teacher or a student over whole pictures. */
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "cli/cli.h"
#include "cli/embed.h"
#include "cli/embed_out.h"
#include "cli/features.h"

static agglo_model_args args;
static const char *arch, *out_path;
static int64_t batch, most;
static bool summary_only, neck;
static int dtype_option, pos_option, precision_option;

static const agglo_option options[] = {
    AGGLO_MODEL_OPTIONS(args, "a teacher's or a student's safetensors"),
    {"arch", AGGLO_OPTION_STRING, &arch, "NAME", "what the file must be (recognised)", 0, 0},
    {"out", AGGLO_OPTION_STRING, &out_path, "FILE.safetensors|DIR", "one file, or a folder of .npy files", 0, 0},
    {"summary-only", AGGLO_OPTION_FLAG, &summary_only, NULL, "no spatial features", 0, 0},
    {"dtype", AGGLO_OPTION_CHOICE, &dtype_option, "fp32|fp16", "how features are stored (fp32)", 0, 0},
    {"pos-interp", AGGLO_OPTION_CHOICE, &pos_option, "auto|hub|hf",
     "whose rule resamples a teacher's positions at another size (auto)", 0, 0},
    {"precision", AGGLO_OPTION_CHOICE, &precision_option, "fp32|bf16", "what a teacher computes with (fp32)", 0, 0},
    {"neck", AGGLO_OPTION_FLAG, &neck, NULL, "SAM: spatial features behind the neck", 0, 0},
    {"batch", AGGLO_OPTION_INT, &batch, "N", "pictures in one run of the model (32 at 224 pixels)", 1, 4096},
    {"per-file", AGGLO_OPTION_INT, &most, "N", "pictures in one safetensors file (as many as a header takes)", 1, 9e15},
};

static agglo_status take(void *context, const agglo_picture *picture, const float *summary, const float *spatial,
                         bool *refused, agglo_err *err)
{
    return agglo_embed_out_add(context, picture->key, picture->number, summary, spatial, refused, err);
}

/* What the features are of: a new object of texts. */
static json_t *facts_of(const agglo_encoder_info *info)
{
    json_t *facts =
        json_pack("{s:s, s:s, s:s, s:s, s:s, s:s}", "arch", info->arch, "weights_sha256", info->weights, "options",
                  info->options, "fit", agglo_fit_name(info->preprocess.fit), "dtype",
                  dtype_option == 1 ? "fp16" : "fp32", "outputs", summary_only ? "summary" : "summary,spatial");
    char number[16];

    snprintf(number, sizeof number, "%d", info->preprocess.size);
    json_object_set_new(facts, "size", json_string(number));
    if (args.head != NULL) {
        json_object_set_new(facts, "head", json_string(args.head));
    }
    return facts;
}

/* Where streams are spooled: beside the output, which must hold more than they do. */
static char *spool_dir_of(agglo_err *err)
{
    return agglo_path_is_dir(out_path) ? agglo_strdup(out_path, err) : agglo_path_dir(out_path, err);
}

static void print_report(const agglo_cli *cli, const agglo_encoder_info *info, const agglo_pictures_report *report,
                         uint64_t n_done, const json_t *files, uint64_t n_bytes, double seconds)
{
    if (cli->json) {
        json_t *object =
            json_pack("{s:s, s:s, s:i, s:i, s:I, s:I, s:O, s:I, s:O, s:o, s:o}", "out", out_path, "arch", info->arch,
                      "summary_dim", info->summary_dim, "spatial_dim", summary_only ? 0 : info->spatial_dim, "images",
                      (json_int_t)n_done, "rejected", (json_int_t)report->n_rejected, "lost", report->lost, "bytes",
                      (json_int_t)n_bytes, "files", files, "seconds", agglo_json_clock(seconds), "images_per_s",
                      agglo_json_clock(seconds > 0 ? (double)n_done / seconds : 0));

        agglo_print_json(object);
        json_decref(object);
        return;
    }
    printf("%s: %s pictures, %s, %s, %.1f s\n", out_path, agglo_show_int((int64_t)n_done), info->arch,
           agglo_show_bytes((double)n_bytes), seconds);
    for (size_t i = 1; i < json_array_size(files); i++) {
        printf("  and %s\n", json_string_value(json_array_get(files, i)));
    }
    if (report->n_rejected > 0) {
        printf("  %s pictures were left out\n", agglo_show_int((int64_t)report->n_rejected));
    }
    if (report->n_lost > 0) {
        printf("  %s sources could not be read whole\n", agglo_show_int((int64_t)report->n_lost));
    }
}

static agglo_status run(agglo_cli *cli, agglo_err *err)
{
    agglo_encoder_options model = agglo_model_args_options(&args);
    agglo_embed_options how = {.batch = (int)batch, .spatial = !summary_only, .label = "embed"};
    agglo_pictures_report report = {0};
    agglo_backend *backend = NULL;
    agglo_encoder encoder = {0};
    agglo_pictures *pictures = NULL;
    agglo_embed_out *out = NULL;
    json_t *facts = NULL, *files = json_array();
    uint64_t n_done = 0, n_bytes = 0;
    double begun = agglo_now();
    char *spool_dir = NULL;

    model.model.arch = arch;
    model.model.max_batch = (int)batch;
    model.model.pos_interp = (agglo_pos_interp)pos_option;
    model.model.precision = precision_option == 1 ? AGGLO_BF16 : AGGLO_F32;
    model.model.neck = neck;
    how.n_workers = cli->threads > 0 ? (int)cli->threads : agglo_cores();
    if (args.weights == NULL || out_path == NULL || out_path[0] == '\0') {
        agglo_fail(err, AGGLO_E_CONFIG, "--%s is missing",
                   args.weights == NULL ? "weights FILE" : "out FILE.safetensors|DIR");
        goto done;
    }
    if (agglo_embed_out_is_file(out_path) && agglo_path_is_dir(out_path)) {
        agglo_fail(err, AGGLO_E_CONFIG, "--out %s is a folder, and its name is a file's", out_path);
        goto done;
    }
    if ((spool_dir = spool_dir_of(err)) == NULL ||
        agglo_pictures_new(&pictures, cli->args.items, cli->args.n, spool_dir, err) != AGGLO_OK ||
        agglo_backend_open(&backend, cli->device, (int)cli->threads, err) != AGGLO_OK ||
        agglo_encoder_open(&encoder, backend, &model, err) != AGGLO_OK) {
        goto done;
    }
    facts = facts_of(&encoder.info);
    if (agglo_embed_out_open(&out, out_path, &encoder.info, !summary_only, dtype_option == 1 ? AGGLO_F16 : AGGLO_F32,
                             (uint64_t)most, facts, err) != AGGLO_OK ||
        agglo_embed(&encoder, pictures, &how, take, out, &n_done, err) != AGGLO_OK) {
        goto done;
    }
    report = agglo_pictures_report_of(pictures);
    cli->incomplete = report.n_lost > 0;
    if (n_done == 0) {
        agglo_fail(err, AGGLO_E_DATA, "none of the pictures could be embedded");
        agglo_doing(err, "cannot write features");
        goto done;
    }
    if (agglo_embed_out_close(out, files, &n_bytes, err) == AGGLO_OK) {
        print_report(cli, &encoder.info, &report, n_done, files, n_bytes, agglo_now() - begun);
    }
    out = NULL;
done:
    agglo_embed_out_abort(out);
    agglo_pictures_free(pictures);
    agglo_encoder_clear(&encoder);
    agglo_backend_free(backend);
    json_decref(facts);
    json_decref(files);
    agglo_free(spool_dir);
    return err->status;
}

const agglo_command agglo_cmd_embed = {
    .name = "embed",
    .usage = "--weights FILE IMAGE|DIR|SHARD|DATASET... --out FILE.safetensors|DIR",
    .summary = "run a teacher or a student over whole pictures",
    .details =
        "Pictures come from files, folders (with all below them), webdataset tars (plain, gzip, zstd; - is standard "
        "input), datasets, globs\n"
        "and brace ranges, and are prepared as the model expects. Each becomes KEY/summary and KEY/spatial in a "
        "safetensors file, or\n"
        "KEY.summary.npy and KEY.spatial.npy in a folder. KEY is the key in the tar or dataset, or the path below the "
        "folder without its\n"
        "extension; one that came before gets ~ and the picture's number. Pictures that cannot be read are named and "
        "left out.\n"
        "Safetensors files appear together when all is done; a run that was stopped begins anew.",
    .example = "agglo embed --weights dinov2-base/model.safetensors photos --out features.safetensors",
    .options = options,
    .n_options = AGGLO_COUNT(options),
    .min_args = 1,
    .max_args = SIZE_MAX,
    .run = run,
};
