/* The metrics file of a run; see metrics.h. */
#include "launch/metrics.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct agglo_metrics_file {
    FILE *stream;
    char *path;
};

/* Length of the leading lines that are whole and whose step is at most `last`. */
static size_t kept_bytes(const char *text, size_t n_bytes, int64_t last)
{
    size_t kept = 0;

    while (kept < n_bytes) {
        const char *newline = memchr(text + kept, '\n', n_bytes - kept);
        agglo_err ignored = {0};
        json_t *line = NULL;
        int64_t step = -1;
        bool keep;

        if (newline == NULL) {
            break;
        }
        keep = agglo_json_parse(text + kept, (size_t)(newline - text) - kept, &line, &ignored) == AGGLO_OK &&
               agglo_json_get_int(line, "step", 0, INT64_MAX, &step, &ignored) == AGGLO_OK && step <= last;
        json_decref(line);
        if (!keep) {
            break;
        }
        kept = (size_t)(newline - text) + 1;
    }
    return kept;
}

agglo_status agglo_metrics_file_open(agglo_metrics_file **out, const char *path, int64_t resumed_from, agglo_err *err)
{
    agglo_metrics_file *file = agglo_alloc(1, sizeof *file, err);
    char *text = NULL;
    size_t n_bytes = 0;

    *out = NULL;
    if (file == NULL || (file->path = agglo_strdup(path, err)) == NULL) {
        goto fail;
    }
    if (agglo_path_exists(path) && agglo_file_read(path, (size_t)1 << 32, &text, &n_bytes, err) != AGGLO_OK) {
        goto fail;
    }
    if (text != NULL && truncate(path, (off_t)kept_bytes(text, n_bytes, resumed_from)) != 0) {
        agglo_fail(err, AGGLO_E_IO, "%s", strerror(errno));
        goto fail;
    }
    agglo_free(text);
    text = NULL;
    file->stream = fopen(path, "ae");
    if (file->stream == NULL) {
        agglo_fail(err, AGGLO_E_IO, "%s", strerror(errno));
        goto fail;
    }
    *out = file;
    return AGGLO_OK;
fail:
    agglo_free(text);
    agglo_metrics_file_close(file);
    agglo_at(err, "%s", path);
    return agglo_doing(err, "cannot open the metrics");
}

void agglo_metrics_file_close(agglo_metrics_file *file)
{
    if (file != NULL) {
        if (file->stream != NULL) {
            fclose(file->stream);
        }
        agglo_free(file->path);
        agglo_free(file);
    }
}

/* What depends on the clock is kept short. */
static json_t *rounded(double value, double unit)
{
    return json_real(round(value / unit) * unit);
}

agglo_status agglo_metrics_file_add(agglo_metrics_file *file, const agglo_metrics *metrics,
                                    const agglo_head_config *heads, double images_per_s, double data_wait,
                                    agglo_err *err)
{
    json_t *line = json_object(), *teachers = json_object();
    char *text;

    json_object_set_new(line, "step", json_integer(metrics->step + 1));
    json_object_set_new(line, "loss", json_real(metrics->loss));
    json_object_set_new(line, "lr", json_real(metrics->lr));
    json_object_set_new(line, "grad_norm", json_real(metrics->grad_norm));
    for (size_t i = 0; i < metrics->n_teachers; i++) {
        json_t *teacher = json_object();

        json_object_set_new(teacher, "summary_cos", json_real(agglo_metrics_summary_cos(metrics, i)));
        json_object_set_new(teacher, "spatial_cos", json_real(agglo_metrics_spatial_cos(metrics, i)));
        json_object_set_new(teachers, heads[i].name, teacher);
    }
    json_object_set_new(line, "teachers", teachers);
    json_object_set_new(line, "images_per_s", rounded(images_per_s, 0.1));
    json_object_set_new(line, "data_wait", rounded(data_wait, 0.001));
    text = json_dumps(line, JSON_COMPACT | JSON_REAL_PRECISION(9)); /* as precise as the floats behind it */
    json_decref(line);
    if (text == NULL) {
        return agglo_fail(err, AGGLO_E_MEMORY, "out of memory printing the metrics");
    }
    if (fprintf(file->stream, "%s\n", text) < 0 || fflush(file->stream) != 0) {
        agglo_fail(err, AGGLO_E_IO, "%s", strerror(errno));
        agglo_at(err, "%s", file->path);
        agglo_doing(err, "cannot write the metrics");
    }
    free(text);
    return err->status;
}
