/* Teachers: opening a checkpoint as an encoder; see teacher.h. */
#include "teachers/teacher.h"

#include "teachers/vit_encoder_impl.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct teacher {
    agglo_teacher_config config;
    agglo_vit_encoder *vit;
    char **unknown; /* names of tensors that are neither used nor known */
    size_t n_unknown;
} teacher;

agglo_teacher_options agglo_teacher_options_default(void)
{
    return (agglo_teacher_options){.max_batch = 32};
}

static agglo_status encode(void *self, const uint8_t *pixels, const agglo_extent *extents, int batch, int height,
                           int width, float *summary, float *spatial, agglo_err *err)
{
    if (extents != NULL) {
        agglo_fail(err, AGGLO_E_UNSUPPORTED, "the input of %s is never padded", ((teacher *)self)->config.arch);
        return agglo_doing(err, "cannot run the teacher");
    }
    return agglo_vit_encoder_run(((teacher *)self)->vit, pixels, batch, height, width, summary, spatial, err);
}

static void teacher_free(void *self)
{
    teacher *t = (teacher *)self;

    if (t == NULL) {
        return;
    }
    agglo_vit_encoder_free(t->vit);
    for (size_t i = 0; i < t->n_unknown; i++) {
        agglo_free(t->unknown[i]);
    }
    agglo_free(t->unknown);
    agglo_free(t);
}

static const teacher *teacher_of(const agglo_encoder *encoder)
{
    AGGLO_ASSERT(encoder->free == teacher_free);
    return (const teacher *)encoder->self;
}

const agglo_teacher_config *agglo_teacher_config_of(const agglo_encoder *encoder)
{
    return &teacher_of(encoder)->config;
}

size_t agglo_teacher_unknown_count(const agglo_encoder *encoder)
{
    return teacher_of(encoder)->n_unknown;
}

const char *agglo_teacher_unknown_at(const agglo_encoder *encoder, size_t i)
{
    const teacher *t = teacher_of(encoder);

    return i < t->n_unknown ? t->unknown[i] : NULL;
}

int agglo_teacher_plans(const agglo_encoder *encoder)
{
    return agglo_vit_encoder_plans(teacher_of(encoder)->vit);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const agglo_layout_tensor *)a)->name, ((const agglo_layout_tensor *)b)->name);
}

/* Names in the file that the layout does not explain. Sorts `tensors`. */
static agglo_status list_unknown(teacher *t, const agglo_weights *weights, const agglo_layout *layout,
                                 agglo_layout_tensor *tensors, size_t n_tensors, agglo_err *err)
{
    size_t n = agglo_weights_count(weights);

    t->unknown = (char **)agglo_alloc(n, sizeof *t->unknown, err);
    if (t->unknown == NULL) {
        return err->status;
    }
    qsort(tensors, n_tensors, sizeof *tensors, by_name);
    for (size_t i = 0; i < n; i++) {
        const char *name = agglo_weights_at(weights, i)->name;
        agglo_layout_tensor key = {0};
        bool known = false;

        if (strlen(name) < sizeof key.name) {
            memcpy(key.name, name, strlen(name));
            known = bsearch(&key, tensors, n_tensors, sizeof *tensors, by_name) != NULL;
        }
        for (const char *const *p = layout->ignored; !known && *p != NULL; p++) {
            known = strncmp(name, *p, strlen(*p)) == 0;
        }
        if (!known) {
            t->unknown[t->n_unknown] = agglo_strdup(name, err);
            if (t->unknown[t->n_unknown] == NULL) {
                return err->status;
            }
            t->n_unknown++;
        }
    }
    return AGGLO_OK;
}

/* Options against the model; the encoder's configuration with the position rule settled. */
static agglo_status configure(agglo_vit_encoder_config *c, const agglo_teacher_options *options, bool *hub,
                              agglo_err *err)
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
        return agglo_fail(err, AGGLO_E_CONFIG,
                          "there is no visual_projection.weight: only summary \"preproj\" is possible");
    }
    if (!clip && (options->preproj || options->spatial_raw)) {
        return agglo_fail(err, AGGLO_E_CONFIG, "%s is an option of clip teachers, this one is %s",
                          options->preproj ? "summary \"preproj\"" : "spatial_norm", m->arch);
    }
    /* the layouts read so far are all transformers' */
    *hub = options->pos_interp == AGGLO_POS_INTERP_HUB || (options->pos_interp == AGGLO_POS_INTERP_AUTO && clip);
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
    info->preprocess.fit = AGGLO_FIT_CROP;
    info->preprocess.centre = AGGLO_CENTRE_DOWN; /* the layouts read so far are all transformers' */
    info->preprocess.filter = AGGLO_BICUBIC;
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

agglo_status agglo_teacher_open(agglo_encoder *out, agglo_backend *backend, const agglo_teacher_options *options,
                                agglo_err *err)
{
    agglo_weights *weights = NULL;
    agglo_layout_tensor *tensors = NULL;
    agglo_vit_encoder_config config = {0};
    const agglo_layout *layout;
    const char *prefix = NULL;
    teacher *t = NULL;
    agglo_sha256 sha;
    size_t n_tensors = 0;
    bool hub = false;

    *out = (agglo_encoder){0};
    if (agglo_weights_open(&weights, options->weights, err) != AGGLO_OK) {
        goto fail;
    }
    layout = agglo_layout_find(weights, &prefix);
    if (layout == NULL) {
        agglo_fail(err, AGGLO_E_UNSUPPORTED,
                   "no tensor names of a known teacher (CLIP or DINOv2 in transformers' layout)");
        agglo_at(err, "%s", agglo_weights_path(weights));
        goto fail;
    }
    if (agglo_teacher_recognise_in(weights, layout, prefix, options->arch, &config.model, err) != AGGLO_OK) {
        goto fail;
    }
    if (configure(&config, options, &hub, err) != AGGLO_OK) {
        agglo_at(err, "%s", agglo_weights_path(weights));
        goto fail;
    }
    t = (teacher *)agglo_alloc(1, sizeof *t, err);
    if (t == NULL || agglo_layout_expand(layout, &config.model, prefix, &tensors, &n_tensors, err) != AGGLO_OK) {
        goto fail;
    }
    t->config = config.model;
    if (agglo_vit_encoder_new(&t->vit, backend, &config, weights, tensors, n_tensors, err) != AGGLO_OK) {
        agglo_at(err, "%s", agglo_weights_path(weights));
        goto fail;
    }
    if (list_unknown(t, weights, layout, tensors, n_tensors, err) != AGGLO_OK ||
        agglo_weights_fingerprint(weights, &sha, err) != AGGLO_OK) {
        goto fail;
    }
    describe(&out->info, &config, options, hub);
    agglo_hex(sha.bytes, sizeof sha.bytes, out->info.weights);
    out->self = t;
    out->encode = encode;
    out->free = teacher_free;
    agglo_free(tensors);
    agglo_weights_close(weights);
    return AGGLO_OK;
fail:
    teacher_free(t);
    agglo_free(tensors);
    agglo_weights_close(weights);
    return agglo_doing(err, "cannot open teacher");
}
