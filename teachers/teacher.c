/* Teachers: opening a checkpoint as an encoder; see teacher.h. */
#include "teachers/teacher.h"

#include "teachers/recognise_impl.h"
#include "teachers/vit_encoder_impl.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

typedef struct teacher {
    agglo_teacher_file file;
    agglo_vit_encoder *vit;
} teacher;

agglo_teacher_options agglo_teacher_options_default(void)
{
    return (agglo_teacher_options){.max_batch = 32};
}

static agglo_status encode(void *self, const uint8_t *pixels, int batch, int height, int width, float *summary,
                           float *spatial, agglo_err *err)
{
    return agglo_vit_encoder_run(((teacher *)self)->vit, pixels, batch, height, width, summary, spatial, err);
}

static void teacher_free(void *self)
{
    teacher *t = (teacher *)self;

    if (t == NULL) {
        return;
    }
    agglo_vit_encoder_free(t->vit);
    agglo_teacher_file_clear(&t->file);
    agglo_free(t);
}

static const teacher *teacher_of(const agglo_encoder *encoder)
{
    AGGLO_ASSERT(encoder->free == teacher_free);
    return (const teacher *)encoder->self;
}

const agglo_teacher_file *agglo_teacher_file_of(const agglo_encoder *encoder)
{
    return &teacher_of(encoder)->file;
}

int agglo_teacher_plans(const agglo_encoder *encoder)
{
    return agglo_vit_encoder_plans(teacher_of(encoder)->vit);
}

/* Options against the model; the encoder's configuration with the position rule settled. */
static agglo_status configure(agglo_vit_encoder_config *c, const agglo_teacher_options *options, bool hub_layout,
                              bool *hub, agglo_err *err)
{
    const agglo_teacher_config *m = &c->model;
    bool clip = strcmp(m->family, "clip") == 0;

    if (options->size < 0 || options->size % m->patch != 0) {
        return agglo_fail(err, AGGLO_E_CONFIG, "size %d is no multiple of the patch %d of %s", options->size, m->patch,
                          m->arch);
    }
    if (options->size > 8192) {
        return agglo_fail(err, AGGLO_E_CONFIG, "size %d is larger than 8192", options->size);
    }
    if (options->max_batch < 0 || options->max_batch > 65536) {
        return agglo_fail(err, AGGLO_E_CONFIG, "batch %d is not from 1 to 65536", options->max_batch);
    }
    if (clip && m->proj == 0 && !options->preproj) {
        return agglo_fail(err, AGGLO_E_CONFIG, "the weights have no projection: only summary \"preproj\" is possible");
    }
    if (!clip && (options->preproj || options->spatial_raw)) {
        return agglo_fail(err, AGGLO_E_CONFIG, "%s is an option of clip teachers, this one is %s",
                          options->preproj ? "summary \"preproj\"" : "spatial_norm", m->arch);
    }
    *hub = options->pos_interp == AGGLO_POS_INTERP_HUB ||
           (options->pos_interp == AGGLO_POS_INTERP_AUTO && (clip || hub_layout));
    if (clip) {
        c->rule = *hub ? AGGLO_POS_ANTIALIAS : AGGLO_POS_PLAIN;
    } else if (m->registers > 0) {
        c->rule = AGGLO_POS_ANTIALIAS;
    } else {
        c->rule = *hub ? AGGLO_POS_OFFSET : AGGLO_POS_PLAIN;
    }
    c->max_batch = options->max_batch > 0 ? options->max_batch : 32;
    c->preproj = options->preproj;
    c->spatial_raw = options->spatial_raw;
    c->pre_norm = clip;
    c->patch_bias = !clip;
    c->layer_scale = !clip;
    return AGGLO_OK;
}

static void describe(agglo_encoder_info *info, const agglo_vit_encoder_config *c, const agglo_teacher_options *options,
                     bool hub)
{
    const agglo_teacher_config *m = &c->model;
    bool clip = strcmp(m->family, "clip") == 0;
    int size = options->size > 0 ? options->size : m->image, used = 0;
    agglo_teacher_config family = {0};
    agglo_err ignored = {0};

    memcpy(info->family, m->family, sizeof info->family);
    memcpy(info->arch, m->arch, sizeof info->arch);
    info->patch = m->patch;
    info->summary_dim = m->proj > 0 && !c->preproj ? m->proj : m->dim;
    info->spatial_dim = m->dim;
    info->n_params = agglo_teacher_params(m);
    info->gmac = agglo_teacher_gmac(m, size, size);
    info->preprocess.size = size;
    /* CLIP: short side straight to size; DINOv2: 256 for a crop of 224 */
    info->preprocess.resize_to = clip ? size : (int)lround((double)size * 256.0 / 224.0);
    info->preprocess.fit = m->fit;
    info->preprocess.filter = m->filter;
    memcpy(info->preprocess.mean, m->mean, sizeof m->mean);
    memcpy(info->preprocess.std, m->std, sizeof m->std);
    /* what neither the weights' hash nor the input's size tell */
    if (clip) {
        used = snprintf(info->options, sizeof info->options, "summary=%s,spatial_norm=%d,",
                        c->preproj ? "preproj" : "proj", c->spatial_raw ? 0 : 1);
    }
    used += snprintf(info->options + used, sizeof info->options - (size_t)used, "pos=%s,%s,h%d", hub ? "hub" : "hf",
                     agglo_teacher_act_name(m->act), m->heads);
    agglo_teacher_named(m->family, &family, &ignored);
    if (m->norm_eps != family.norm_eps) {
        used += snprintf(info->options + used, sizeof info->options - (size_t)used, ",e%.2g", (double)m->norm_eps);
    }
    AGGLO_ASSERT((size_t)used < sizeof info->options);
}

agglo_status agglo_teacher_open_weights(agglo_encoder *out, agglo_backend *backend, agglo_weights *weights,
                                        const agglo_teacher_options *options, agglo_err *err)
{
    agglo_layout_tensor *tensors = NULL;
    agglo_vit_encoder_config config = {0};
    teacher *t = (teacher *)agglo_alloc(1, sizeof *t, err);
    agglo_layout_found found;
    agglo_sha256 sha;
    size_t n_tensors = 0;
    bool hub = false;

    *out = (agglo_encoder){0};
    if (t == NULL || agglo_layout_find(weights, &found, err) != AGGLO_OK ||
        agglo_teacher_recognise_in(weights, &found, options->arch, options->act, &t->file, &tensors, &n_tensors, err) !=
            AGGLO_OK) {
        goto fail;
    }
    config.model = t->file.config;
    if (configure(&config, options, t->file.hub, &hub, err) != AGGLO_OK ||
        agglo_vit_encoder_new(&t->vit, backend, &config, weights, tensors, n_tensors, err) != AGGLO_OK) {
        agglo_at(err, "%s", agglo_weights_path(weights));
        goto fail;
    }
    if (agglo_weights_fingerprint(weights, &sha, err) != AGGLO_OK) {
        goto fail;
    }
    describe(&out->info, &config, options, hub);
    agglo_hex(sha.bytes, sizeof sha.bytes, out->info.weights);
    out->self = t;
    out->encode = encode;
    out->free = teacher_free;
    agglo_free(tensors);
    return AGGLO_OK;
fail:
    teacher_free(t);
    agglo_free(tensors);
    return agglo_doing(err, "cannot open teacher");
}

agglo_status agglo_teacher_open(agglo_encoder *out, agglo_backend *backend, const agglo_teacher_options *options,
                                agglo_err *err)
{
    agglo_weights *weights = NULL;

    *out = (agglo_encoder){0};
    if (agglo_weights_open(&weights, options->weights, err) != AGGLO_OK) {
        return agglo_doing(err, "cannot open teacher");
    }
    agglo_teacher_open_weights(out, backend, weights, options, err);
    agglo_weights_close(weights);
    return err->status;
}
