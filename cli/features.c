/* Opening a model whatever it is, and its summaries over a labelled dataset. */
#include "cli/features.h"

#include <string.h>

#include "cli/embed.h"
#include "student/model.h"

static agglo_status open_student(agglo_encoder *out, agglo_backend *backend, const agglo_encoder_options *o,
                                 agglo_err *err)
{
    if (o->pos_interp != AGGLO_POS_INTERP_AUTO) {
        agglo_fail(err, AGGLO_E_CONFIG, "--pos-interp is for teachers, and this is a student");
        return agglo_at(err, "%s", o->weights);
    }
    if (agglo_student_open(out, backend, o->weights, o->head, o->size, o->max_batch > 0 ? o->max_batch : 32, err) !=
        AGGLO_OK) {
        return err->status;
    }
    if (o->arch != NULL && strcmp(o->arch, out->info.arch) != 0 && strcmp(o->arch, out->info.family) != 0) {
        agglo_fail(err, AGGLO_E_MISMATCH, "the student is %s, not %s", out->info.arch, o->arch);
        agglo_encoder_clear(out);
        return agglo_at(err, "%s", o->weights);
    }
    return AGGLO_OK;
}

agglo_status agglo_encoder_open(agglo_encoder *out, agglo_backend *backend, const agglo_encoder_options *o,
                                agglo_err *err)
{
    agglo_weights *weights = NULL;
    agglo_teacher_options options = agglo_teacher_options_default();
    bool student;

    if (agglo_weights_open(&weights, o->weights, err) != AGGLO_OK) {
        return err->status;
    }
    student = agglo_student_is(agglo_weights_file(weights, 0));
    agglo_weights_close(weights);
    if (student) {
        return open_student(out, backend, o, err);
    }
    if (o->head != NULL) {
        agglo_fail(err, AGGLO_E_CONFIG, "--head '%s' asks for a student's head, and this is a teacher", o->head);
        return agglo_at(err, "%s", o->weights);
    }
    options.weights = o->weights;
    options.arch = o->arch;
    options.size = o->size;
    options.max_batch = o->max_batch;
    options.pos_interp = o->pos_interp;
    return agglo_teacher_open(out, backend, &options, err);
}

static agglo_status keep(void *context, const agglo_picture *picture, const float *summary, const float *spatial,
                         bool *refused, agglo_err *err)
{
    agglo_features *out = context;

    (void)spatial;
    (void)refused;
    (void)err;
    memcpy(out->summary + out->n * out->dim, summary, (size_t)out->dim * sizeof *summary);
    out->labels[out->n++] = picture->label;
    return AGGLO_OK;
}

agglo_status agglo_features_of(agglo_features *out, const agglo_encoder *encoder, const agglo_dataset *dataset,
                               const char *name, int n_workers, agglo_err *err)
{
    agglo_embed_options options = {.n_workers = n_workers, .label = "embed"};
    size_t n_samples = (size_t)agglo_dataset_samples(dataset);
    agglo_pictures *pictures = NULL;
    uint64_t n_done;

    memset(out, 0, sizeof *out);
    out->n_lost_shards = agglo_dataset_lost_shards(dataset);
    out->dim = encoder->info.summary_dim;
    if ((out->summary = agglo_alloc(n_samples * (size_t)out->dim, sizeof *out->summary, err)) != NULL &&
        (out->labels = agglo_alloc(n_samples, sizeof *out->labels, err)) != NULL &&
        agglo_pictures_of_dataset(&pictures, dataset, name, true, err) == AGGLO_OK) {
        agglo_embed(encoder, pictures, &options, keep, out, &n_done, err);
        out->n_bad = (int64_t)agglo_pictures_report_of(pictures).n_rejected;
        out->n_unlabelled = (int64_t)agglo_pictures_report_of(pictures).n_unlabelled;
    }
    agglo_pictures_free(pictures);
    if (err->status != AGGLO_OK) {
        agglo_features_clear(out);
        agglo_doing(err, "cannot embed the dataset");
    }
    return err->status;
}

void agglo_features_clear(agglo_features *features)
{
    agglo_free(features->summary);
    agglo_free(features->labels);
    memset(features, 0, sizeof *features);
}
