/* Opening a model whatever it is, and its summaries over a labelled dataset. */
#include "cli/features.h"

#include <string.h>

#include "cli/embed.h"
#include "student/model.h"

agglo_encoder_options agglo_encoder_options_default(const char *weights)
{
    agglo_encoder_options options = {.model = agglo_teacher_options_default()};

    options.model.weights = weights;
    return options;
}

agglo_encoder_options agglo_model_args_options(const agglo_model_args *args)
{
    agglo_encoder_options options = agglo_encoder_options_default(args->weights);

    options.head = args->head;
    options.model.act = args->act;
    options.model.size = (int)args->size;
    return options;
}

static agglo_status open_student(agglo_encoder *out, agglo_backend *backend, const agglo_encoder_options *o,
                                 agglo_err *err)
{
    const agglo_teacher_options *m = &o->model;
    const char *alien = m->pos_interp != AGGLO_POS_INTERP_AUTO ? "--pos-interp"
                        : m->act != NULL                       ? "--act"
                        : m->precision != AGGLO_F32            ? "--precision"
                        : m->neck                              ? "--neck"
                        : m->preproj                           ? "--summary"
                        : m->spatial_raw                       ? "--spatial-raw"
                                                               : NULL;

    if (alien != NULL) {
        agglo_fail(err, AGGLO_E_CONFIG, "%s is for teachers, and this is a student", alien);
        return agglo_at(err, "%s", m->weights);
    }
    if (agglo_student_open(out, backend, m->weights, o->head, m->size, m->max_batch > 0 ? m->max_batch : 32, err) !=
        AGGLO_OK) {
        return err->status;
    }
    if (m->arch != NULL && strcmp(m->arch, out->info.arch) != 0 && strcmp(m->arch, out->info.family) != 0) {
        agglo_fail(err, AGGLO_E_CONFIG, "the student is %s, not %s", out->info.arch, m->arch);
        agglo_encoder_clear(out);
        return agglo_at(err, "%s", m->weights);
    }
    return AGGLO_OK;
}

agglo_status agglo_encoder_open(agglo_encoder *out, agglo_backend *backend, const agglo_encoder_options *o,
                                agglo_err *err)
{
    agglo_weights *weights = NULL;

    if (agglo_weights_open(&weights, o->model.weights, err) != AGGLO_OK) {
        return err->status;
    }
    if (agglo_student_is(agglo_weights_file(weights, 0))) {
        open_student(out, backend, o, err);
    } else if (o->head != NULL) {
        agglo_fail(err, AGGLO_E_CONFIG, "--head '%s' asks for a student's head, and this is a teacher", o->head);
        agglo_at(err, "%s", o->model.weights);
    } else {
        agglo_teacher_open_weights(out, backend, weights, &o->model, err);
    }
    agglo_weights_close(weights);
    return err->status;
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
