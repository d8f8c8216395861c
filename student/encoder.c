/* A student file as an encoder: backbone features or a named head's, any input of whole patches. */
#include <stdio.h>
#include <string.h>

#include "student/model_impl.h"

typedef struct student_encoder {
    agglo_student *student;
    int head; /* -1: backbone */
    agglo_slab slab;
    /* the plan */
    int batch, height, width;
    int64_t n_patch;
    agglo_tensor pixels;
    agglo_head_kept kept_summary, kept_spatial;
    agglo_tensor summary, spatial; /* [B, C_s], [B*n, C_v], of the head */
} student_encoder;

static void walk(void *context, agglo_slab *slab)
{
    student_encoder *e = context;
    agglo_student *student = e->student;
    int64_t rows = e->batch * e->n_patch;
    const int64_t pixels[4] = {e->batch, e->height, e->width, 3};
    size_t mark;

    e->pixels = agglo_slab_take(slab, AGGLO_U8, 4, pixels);
    student->class_->plan(student->backbone, e->batch, e->height, e->width, false, slab);
    if (e->head < 0) {
        return;
    }
    e->summary = (agglo_tensor){0};
    const agglo_head_shape *of_summary = &student->summary[e->head].shape,
                           *of_spatial = &student->spatial[e->head].shape;
    const int64_t summary[2] = {e->batch, of_summary->out}, spatial[2] = {rows, of_spatial->out};

    e->summary = agglo_slab_take(slab, AGGLO_F32, 2, summary);
    e->spatial = agglo_slab_take(slab, AGGLO_F32, 2, spatial);
    mark = agglo_slab_mark(slab);
    agglo_head_plan(&e->kept_summary, of_summary, e->batch, false, slab);
    agglo_slab_rewind(slab, mark);
    agglo_head_plan(&e->kept_spatial, of_spatial, rows, false, slab);
}

static agglo_status plan(student_encoder *e, int batch, int height, int width, agglo_err *err)
{
    int64_t p = e->student->config.patch;

    if (batch == e->batch && height == e->height && width == e->width) {
        return AGGLO_OK;
    }
    e->batch = batch;
    e->height = height;
    e->width = width;
    e->n_patch = (height / p) * (width / p);
    if (agglo_slab_fit(&e->slab, e->student->backend, walk, e, err) != AGGLO_OK) {
        e->batch = 0; /* nothing is planned */
        return err->status;
    }
    return AGGLO_OK;
}

static agglo_status encode(void *self, const uint8_t *pixels, const agglo_extent *extents, int batch, int height,
                           int width, float *summary, float *spatial, agglo_err *err)
{
    student_encoder *e = self;
    agglo_student *student = e->student;
    agglo_backend *be = student->backend;
    agglo_tensor out_summary, out_spatial;
    int64_t p = student->config.patch;

    if (extents != NULL) {
        agglo_fail(err, AGGLO_E_UNSUPPORTED, "a student's input is never padded");
        goto fail;
    }
    if (batch < 1 || height < 1 || width < 1 || height % p != 0 || width % p != 0) {
        agglo_fail(err, AGGLO_E_CONFIG, "%d pictures of %dx%d pixels: sides must be multiples of the patch, %lld",
                   batch, width, height, (long long)p);
        goto fail;
    }
    if (plan(e, batch, height, width, err) != AGGLO_OK) {
        goto fail;
    }
    agglo_upload(be, e->pixels.data, pixels, agglo_tensor_bytes(&e->pixels));
    student->class_->forward(student->backbone, be, &e->pixels, &out_summary, &out_spatial);
    if (e->head >= 0) {
        agglo_tensor rows = agglo_tensor_rows(&out_spatial);

        if (summary != NULL) {
            agglo_head_forward(be, &student->summary[e->head], &out_summary, &e->kept_summary, &e->summary);
        }
        if (spatial != NULL) {
            agglo_head_forward(be, &student->spatial[e->head], &rows, &e->kept_spatial, &e->spatial);
        }
        out_summary = e->summary;
        out_spatial = e->spatial;
    }
    if (summary != NULL) {
        agglo_download(be, summary, out_summary.data, agglo_tensor_bytes(&out_summary));
    }
    if (spatial != NULL) {
        agglo_download(be, spatial, out_spatial.data, agglo_tensor_bytes(&out_spatial));
    }
    if (agglo_backend_check(be, err) != AGGLO_OK) {
        goto fail;
    }
    return AGGLO_OK;
fail:
    return agglo_doing(err, "cannot encode pictures");
}

static void encoder_free(void *self)
{
    student_encoder *e = self;

    if (e != NULL) {
        agglo_slab_free(&e->slab);
        agglo_student_free(e->student);
        agglo_free(e);
    }
}

static agglo_status find_head(student_encoder *e, const char *name, agglo_err *err)
{
    agglo_student *student = e->student;
    char known[160] = "";

    e->head = -1;
    if (name == NULL) {
        return AGGLO_OK;
    }
    for (size_t i = 0; i < student->n_heads; i++) {
        size_t used = strlen(known);

        if (strcmp(student->heads[i].name, name) == 0) {
            e->head = (int)i;
            return AGGLO_OK;
        }
        snprintf(known + used, sizeof known - used, "%s%s", i > 0 ? ", " : "", student->heads[i].name);
    }
    return agglo_fail(err, AGGLO_E_CONFIG, "the student has no head '%s'%s%s", name,
                      student->n_heads > 0 ? "; it has " : ", it has none", known);
}

static void fill_info(agglo_encoder_info *info, const student_encoder *e, int size, const agglo_sha256 *weights)
{
    const agglo_student *student = e->student;
    const agglo_student_config *config = &student->config;

    snprintf(info->family, sizeof info->family, "%s", config->family);
    snprintf(info->arch, sizeof info->arch, "%s", config->arch);
    info->patch = (int)config->patch;
    info->summary_dim = (int)config->dim;
    info->spatial_dim = (int)config->dim;
    info->n_params = agglo_params_elements(student->params);
    info->gmac = agglo_student_mac(config, size) * 1e-9;
    info->preprocess.size = size;
    info->preprocess.resize_to = size;
    info->preprocess.fit = AGGLO_FIT_CROP;
    info->preprocess.filter = AGGLO_BICUBIC;
    memcpy(info->preprocess.mean, agglo_student_mean, sizeof info->preprocess.mean);
    memcpy(info->preprocess.std, agglo_student_std, sizeof info->preprocess.std);
    agglo_hex(weights->bytes, sizeof weights->bytes, info->weights);
    snprintf(info->options, sizeof info->options, "head=backbone");
    if (e->head >= 0) {
        const agglo_head_config *head = &student->heads[e->head];

        info->summary_dim = (int)head->summary_dim;
        info->spatial_dim = (int)head->spatial_dim;
        snprintf(info->options, sizeof info->options, "head=%.58s", head->name);
    }
}

agglo_status agglo_student_open(agglo_encoder *out, agglo_backend *backend, const char *path, const char *head,
                                int size, int max_batch, agglo_err *err)
{
    student_encoder *e = agglo_alloc(1, sizeof *e, err);
    agglo_safetensors *st = NULL;
    agglo_sha256 weights;

    memset(out, 0, sizeof *out);
    AGGLO_ASSERT(max_batch >= 1);
    if (e == NULL || agglo_safetensors_open(&st, path, err) != AGGLO_OK ||
        agglo_student_load(&e->student, backend, st, false, err) != AGGLO_OK ||
        agglo_safetensors_sha256(st, &weights, err) != AGGLO_OK) {
        goto fail;
    }
    if (find_head(e, head, err) != AGGLO_OK) {
        agglo_at(err, "%s", path);
        goto fail;
    }
    if (size == 0) {
        size = (int)e->student->config.image;
    }
    if (size < 0 || size % e->student->config.patch != 0) {
        agglo_fail(err, AGGLO_E_CONFIG, "an input of %d pixels is not a multiple of the patch, %lld", size,
                   (long long)e->student->config.patch);
        agglo_at(err, "%s", path);
        goto fail;
    }
    if (plan(e, max_batch, size, size, err) != AGGLO_OK) {
        goto fail;
    }
    fill_info(&out->info, e, size, &weights);
    out->self = e;
    out->encode = encode;
    out->free = encoder_free;
    agglo_safetensors_close(st);
    return AGGLO_OK;
fail:
    agglo_safetensors_close(st);
    encoder_free(e);
    return agglo_doing(err, "cannot open student");
}
