/* Teachers: opening a checkpoint as an encoder; see teacher.h. */
#include "teachers/teacher.h"

#include "base/log.h"
#include "teachers/recognise_impl.h"
#include "teachers/sam_encoder.h"
#include "teachers/vit_encoder_impl.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct teacher {
    agglo_teacher_file file;
    agglo_vit_encoder *vit; /* CLIP, DINOv2 */
    agglo_sam_encoder *sam; /* SAM; NULL for the others */
} teacher;

enum { DEFAULT_BATCH = 32 };

agglo_teacher_options agglo_teacher_options_default(void)
{
    return (agglo_teacher_options){.max_batch = DEFAULT_BATCH};
}

static int images_at_once(const agglo_teacher_options *options)
{
    return options->max_batch > 0 ? options->max_batch : DEFAULT_BATCH;
}

static agglo_status encode(void *self, const uint8_t *pixels, const agglo_extent *extents, int batch, int height,
                           int width, float *summary, float *spatial, agglo_err *err)
{
    teacher *t = (teacher *)self;

    if (t->sam != NULL) {
        return agglo_sam_encoder_run(t->sam, pixels, extents, batch, height, width, summary, spatial, err);
    }
    if (extents != NULL) {
        agglo_fail(err, AGGLO_E_UNSUPPORTED, "the input of %s is never padded", t->file.config.arch);
        return agglo_doing(err, "cannot run the teacher");
    }
    return agglo_vit_encoder_run(t->vit, pixels, batch, height, width, summary, spatial, err);
}

static void teacher_free(void *self)
{
    teacher *t = (teacher *)self;

    if (t == NULL) {
        return;
    }
    agglo_vit_encoder_free(t->vit);
    agglo_sam_encoder_free(t->sam);
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
    const teacher *t = teacher_of(encoder);

    return t->sam != NULL ? agglo_sam_encoder_plans(t->sam) : agglo_vit_encoder_plans(t->vit);
}

/* Options against the model, whatever its family. */
static agglo_status check_options(const agglo_teacher_config *m, const agglo_teacher_options *options, agglo_err *err)
{
    bool clip = strcmp(m->family, "clip") == 0, sam = strcmp(m->family, "sam") == 0;

    AGGLO_ASSERT(options->precision == AGGLO_F32 || options->precision == AGGLO_BF16);
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
    if (!clip && (options->preproj || options->spatial_raw)) {
        return agglo_fail(err, AGGLO_E_CONFIG, "%s is an option of clip teachers, this one is %s",
                          options->preproj ? "summary \"preproj\"" : "spatial_norm", m->arch);
    }
    if (!sam && options->neck) {
        return agglo_fail(err, AGGLO_E_CONFIG, "neck is an option of sam teachers, this one is %s", m->arch);
    }
    if (sam && options->pos_interp != AGGLO_POS_INTERP_AUTO) {
        return agglo_fail(err, AGGLO_E_CONFIG, "pos_interp is no option of sam teachers, which have one rule");
    }
    return AGGLO_OK;
}

/* The ViT's configuration with the position rule settled. */
static agglo_status configure(agglo_vit_encoder_config *c, const agglo_teacher_options *options, bool hub_layout,
                              bool *hub, agglo_err *err)
{
    const agglo_teacher_config *m = &c->model;
    bool clip = strcmp(m->family, "clip") == 0;

    if (clip && m->proj == 0 && !options->preproj) {
        return agglo_fail(err, AGGLO_E_CONFIG, "the weights have no projection: only summary \"preproj\" is possible");
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
    c->max_batch = images_at_once(options);
    c->precision = options->precision;
    c->preproj = options->preproj;
    c->spatial_raw = options->spatial_raw;
    c->pre_norm = clip;
    c->patch_bias = !clip;
    c->layer_scale = !clip;
    return AGGLO_OK;
}

/* Of any family; returns the input's size. */
static int describe_model(agglo_encoder_info *info, const agglo_teacher_config *m, const agglo_teacher_options *options)
{
    int size = options->size > 0 ? options->size : m->image;

    memcpy(info->family, m->family, sizeof info->family);
    memcpy(info->arch, m->arch, sizeof info->arch);
    info->patch = m->patch;
    info->summary_dim = m->dim;
    info->spatial_dim = m->dim;
    info->n_params = agglo_teacher_params(m);
    info->gmac = agglo_teacher_gmac(m, size, size);
    info->preprocess.size = size;
    info->preprocess.resize_to = size;
    info->preprocess.fit = m->fit;
    info->preprocess.filter = m->filter;
    memcpy(info->preprocess.mean, m->mean, sizeof m->mean);
    memcpy(info->preprocess.std, m->std, sizeof m->std);
    return size;
}

/* The shortest text that reads back as this float: "3e-05". */
static const char *exact(float value, char *out, size_t n_bytes)
{
    for (int n_digits = 1; n_digits <= 9; n_digits++) {
        snprintf(out, n_bytes, "%.*g", n_digits, (double)value);
        if (strtof(out, NULL) == value) {
            break;
        }
    }
    return out;
}

/* Behind `used` characters of the options: an epsilon that is not the family's own, and BF16. */
static void describe_rest(agglo_encoder_info *info, const agglo_teacher_config *m, agglo_dtype precision, int used)
{
    agglo_teacher_config family = {0};
    agglo_err ignored = {0};
    char digits[24];

    agglo_teacher_named(m->family, &family, &ignored);
    if (m->norm_eps != family.norm_eps) {
        used += snprintf(info->options + used, sizeof info->options - (size_t)used, ",e%s",
                         exact(m->norm_eps, digits, sizeof digits));
    }
    if (precision != AGGLO_F32) {
        used += snprintf(info->options + used, sizeof info->options - (size_t)used, ",%s", agglo_dtype_name(precision));
    }
    AGGLO_ASSERT((size_t)used < sizeof info->options);
}

static void describe(agglo_encoder_info *info, const agglo_vit_encoder_config *c, const agglo_teacher_options *options,
                     bool hub, bool hub_layout)
{
    const agglo_teacher_config *m = &c->model;
    bool clip = strcmp(m->family, "clip") == 0;
    int size = describe_model(info, m, options), used = 0;

    info->summary_dim = m->proj > 0 && !c->preproj ? m->proj : m->dim;
    /* CLIP: short side straight to size; DINOv2: 256 for a crop of 224 */
    info->preprocess.resize_to = clip ? size : (int)lround((double)size * 256.0 / 224.0);
    info->preprocess.centre = hub_layout ? AGGLO_CENTRE_EVEN : AGGLO_CENTRE_DOWN;
    /* what neither the weights' hash nor the input's size tell */
    if (clip) {
        used = snprintf(info->options, sizeof info->options, "summary=%s,spatial_norm=%d,",
                        c->preproj ? "preproj" : "proj", c->spatial_raw ? 0 : 1);
    }
    used += snprintf(info->options + used, sizeof info->options - (size_t)used, "pos=%s,%s,h%d", hub ? "hub" : "hf",
                     agglo_teacher_act_name(m->act), m->heads);
    describe_rest(info, m, c->precision, used);
}

/* The global blocks as hexadecimal digits, block 0 the lowest bit; 16 of a hash where there are more than 64. */
static const char *global_digits(const agglo_teacher_config *m, char out[17])
{
    agglo_hash128 hash = agglo_xxh3_128(m->global_layers, sizeof m->global_layers);

    if (m->depth > 64) {
        return agglo_hex(hash.bytes, 8, out);
    }
    snprintf(out, 17, "%llx", (unsigned long long)m->global_layers[1] << 32 | m->global_layers[0]);
    return out;
}

/* SAM: "neck=0,gelu,w14", and "resampled" where the input is not of the size that the published model is for. There, if windows are of the
 * checkpoint's whole grid, ",g24a" tells which blocks are global: a config.json says it then, no table's shape. */
static void describe_sam(agglo_encoder_info *info, const agglo_teacher_config *m, const agglo_teacher_options *options)
{
    int size = describe_model(info, m, options), used;
    agglo_teacher_config without = *m;
    char digits[17];

    without.neck = 0;
    info->gmac = agglo_teacher_gmac(options->neck ? m : &without, size, size);
    info->spatial_dim = options->neck ? m->neck : m->dim;
    used = snprintf(info->options, sizeof info->options, "neck=%d,%s,w%d%s", options->neck ? 1 : 0,
                    agglo_teacher_act_name(m->act), m->window, size != m->image ? ",resampled" : "");
    if (size != m->image && m->window == m->image / m->patch) {
        used += snprintf(info->options + used, sizeof info->options - (size_t)used, ",g%s", global_digits(m, digits));
    }
    describe_rest(info, m, options->precision, used);
}

static agglo_status open_sam(teacher *t, agglo_encoder_info *info, agglo_backend *backend,
                             const agglo_teacher_options *options, const agglo_weights *weights,
                             const agglo_layout_tensor *tensors, size_t n_tensors, agglo_err *err)
{
    const agglo_sam_encoder_config config = {.model = t->file.config,
                                             .max_batch = images_at_once(options),
                                             .neck = options->neck,
                                             .precision = options->precision};

    if (options->neck && t->file.config.neck == 0) {
        return agglo_fail(err, AGGLO_E_CONFIG, "neck is asked for, and the weights have none");
    }
    if (agglo_sam_encoder_new(&t->sam, backend, &config, weights, tensors, n_tensors, err) != AGGLO_OK) {
        return err->status;
    }
    describe_sam(info, &t->file.config, options);
    if (info->preprocess.size != t->file.config.image) {
        agglo_log(
            AGGLO_LOG_INFO,
            "%s at %d instead of %d pixels: positions are resampled, by a rule of ours, features are not those of "
            "a published model",
            info->arch, info->preprocess.size, t->file.config.image);
    }
    return AGGLO_OK;
}

static agglo_status open_vit(teacher *t, agglo_encoder_info *info, agglo_backend *backend,
                             const agglo_teacher_options *options, const agglo_weights *weights,
                             const agglo_layout_tensor *tensors, size_t n_tensors, agglo_err *err)
{
    agglo_vit_encoder_config config = {.model = t->file.config};
    bool hub = false;

    if (configure(&config, options, t->file.hub, &hub, err) != AGGLO_OK ||
        agglo_vit_encoder_new(&t->vit, backend, &config, weights, tensors, n_tensors, err) != AGGLO_OK) {
        return err->status;
    }
    describe(info, &config, options, hub, t->file.hub);
    return AGGLO_OK;
}

agglo_status agglo_teacher_open_weights(agglo_encoder *out, agglo_backend *backend, agglo_weights *weights,
                                        const agglo_teacher_options *options, agglo_err *err)
{
    agglo_layout_tensor *tensors = NULL;
    teacher *t = (teacher *)agglo_alloc(1, sizeof *t, err);
    agglo_layout_found found;
    agglo_sha256 sha;
    size_t n_tensors = 0;
    bool sam;

    *out = (agglo_encoder){0};
    if (t == NULL || agglo_layout_find(weights, &found, err) != AGGLO_OK ||
        agglo_teacher_recognise_in(weights, &found, options->arch, options->act, &t->file, &tensors, &n_tensors, err) !=
            AGGLO_OK) {
        goto fail;
    }
    sam = strcmp(t->file.config.family, "sam") == 0;
    if (check_options(&t->file.config, options, err) != AGGLO_OK ||
        (sam ? open_sam : open_vit)(t, &out->info, backend, options, weights, tensors, n_tensors, err) != AGGLO_OK) {
        agglo_at(err, "%s", agglo_weights_path(weights));
        goto fail;
    }
    if (agglo_weights_fingerprint(weights, &sha, err) != AGGLO_OK) {
        goto fail;
    }
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
