/* A student as a whole: declaration, loading, writing. */
#include <stdio.h>
#include <string.h>

#include "student/model_impl.h"

#define FORMAT "agglo-student"

static const agglo_backbone_class *const classes[] = {&agglo_backbone_vit};

/* One line of JSON; the reference is taken. NULL and error on failure. */
static char *take_line(json_t *json, agglo_err *err)
{
    char *line = json != NULL ? agglo_json_line(json, err) : NULL;

    json_decref(json);
    return line;
}

static agglo_status declare_heads(agglo_student *student, agglo_err *err)
{
    const agglo_student_config *config = &student->config;

    for (size_t i = 0; i < student->n_heads; i++) {
        const agglo_head_config *teacher = &student->heads[i];

        for (int spatial = 0; spatial < 2; spatial++) {
            agglo_head_shape shape = {.version = (int)config->head_version,
                                      .inner = (int)config->head_inner,
                                      .in = config->dim,
                                      .hidden = config->head_hidden,
                                      .out = spatial ? teacher->spatial_dim : teacher->summary_dim};
            char prefix[128];

            if (shape.hidden == 0) {
                shape.hidden = shape.in > shape.out ? shape.in : shape.out;
            }
            snprintf(prefix, sizeof prefix, "%s.%s.", spatial ? "_feature_projections" : "_heads", teacher->name);
            if (agglo_head_declare(spatial ? &student->spatial[i] : &student->summary[i], &shape, prefix,
                                   student->params, err) != AGGLO_OK) {
                return err->status;
            }
        }
    }
    return AGGLO_OK;
}

/* Whether a file holds what its metadata promises, before memory is taken for it: a few bytes can promise terabytes. */
static agglo_status check_tensors(agglo_params *params, const agglo_safetensors *st, agglo_err *err)
{
    for (size_t i = 0; i < agglo_params_count(params); i++) {
        const agglo_param *param = agglo_params_at(params, i);
        const agglo_st_tensor *tensor = agglo_safetensors_find(st, param->name);

        if (tensor == NULL || tensor->n_elements != agglo_tensor_count(&param->value)) {
            if (tensor == NULL) {
                agglo_fail(err, AGGLO_E_NOT_FOUND, "no such tensor, its metadata promises it");
            } else {
                agglo_fail(err, AGGLO_E_MISMATCH, "%lld elements, its metadata promises %lld",
                           (long long)tensor->n_elements, (long long)agglo_tensor_count(&param->value));
            }
            return agglo_at(err, "%s: %s", agglo_safetensors_path(st), param->name);
        }
    }
    return AGGLO_OK;
}

/* st: the file that the parameters will be loaded from, NULL for none. */
static agglo_status make(agglo_student **out, agglo_backend *backend, const agglo_student_config *config,
                         const agglo_head_config *heads, size_t n_heads, bool trained, agglo_dtype storage,
                         const agglo_safetensors *st, agglo_err *err)
{
    agglo_student *student = NULL;

    *out = NULL;
    if (agglo_head_configs_check(heads, n_heads, err) != AGGLO_OK) {
        goto fail;
    }
    student = agglo_alloc(1, sizeof *student, err);
    if (student == NULL) {
        goto fail;
    }
    student->backend = backend;
    student->config = *config;
    student->trained = trained;
    if (n_heads > 0) {
        memcpy(student->heads, heads, n_heads * sizeof *heads);
    }
    student->n_heads = n_heads;
    if (agglo_student_config_check(&student->config, err) != AGGLO_OK) {
        goto fail;
    }
    for (size_t i = 0; i < AGGLO_COUNT(classes); i++) {
        if (strcmp(classes[i]->family, student->config.family) == 0) {
            student->class_ = classes[i];
        }
    }
    AGGLO_ASSERT(student->class_ != NULL);
    student->config_text = take_line(agglo_student_config_json(&student->config, err), err);
    if (student->config_text == NULL) {
        goto fail;
    }
    student->heads_text = take_line(agglo_head_configs_json(student->heads, n_heads, err), err);
    if (student->heads_text == NULL) {
        goto fail;
    }
    if (agglo_params_new(&student->params, backend, trained, err) != AGGLO_OK ||
        agglo_params_set_storage(student->params, storage, err) != AGGLO_OK ||
        student->class_->create(&student->backbone, &student->config, student->params, err) != AGGLO_OK ||
        declare_heads(student, err) != AGGLO_OK ||
        (st != NULL && check_tensors(student->params, st, err) != AGGLO_OK) ||
        agglo_params_allocate(student->params, err) != AGGLO_OK) {
        goto fail;
    }
    *out = student;
    return AGGLO_OK;
fail:
    agglo_student_free(student);
    return agglo_doing(err, "cannot make a student");
}

agglo_status agglo_student_new(agglo_student **out, agglo_backend *backend, const agglo_student_config *config,
                               const agglo_head_config *heads, size_t n_heads, bool trained, agglo_dtype storage,
                               agglo_err *err)
{
    return make(out, backend, config, heads, n_heads, trained, storage, NULL, err);
}

agglo_status agglo_student_load(agglo_student **out, agglo_backend *backend, const agglo_safetensors *st, bool trained,
                                agglo_err *err)
{
    agglo_student_config config;
    agglo_head_config heads[AGGLO_MAX_HEADS];
    size_t n_heads;

    *out = NULL;
    if (agglo_student_read_config(st, &config, heads, &n_heads, err) != AGGLO_OK ||
        make(out, backend, &config, heads, n_heads, trained, AGGLO_F32, st, err) != AGGLO_OK ||
        agglo_params_load((*out)->params, st, err) != AGGLO_OK) {
        agglo_student_free(*out);
        *out = NULL;
        return agglo_doing(err, "cannot load student");
    }
    return AGGLO_OK;
}

void agglo_student_free(agglo_student *student)
{
    if (student == NULL) {
        return;
    }
    for (size_t i = 0; i < student->n_heads; i++) {
        agglo_head_clear(&student->summary[i]);
        agglo_head_clear(&student->spatial[i]);
    }
    if (student->class_ != NULL) {
        student->class_->free(student->backbone);
    }
    agglo_params_free(student->params);
    agglo_free(student->heads_text);
    agglo_free(student->config_text);
    agglo_free(student);
}

const agglo_student_config *agglo_student_get_config(const agglo_student *student)
{
    return &student->config;
}

const agglo_head_config *agglo_student_heads(const agglo_student *student, size_t *n_heads)
{
    *n_heads = student->n_heads;
    return student->heads;
}

agglo_params *agglo_student_params(agglo_student *student)
{
    return student->params;
}

/* ---- files ---- */

bool agglo_student_is(const agglo_safetensors *st)
{
    const char *format = agglo_safetensors_meta(st, "format");

    return format != NULL && strcmp(format, FORMAT) == 0;
}

agglo_status agglo_student_get_meta(const agglo_safetensors *st, agglo_student_config *config,
                                    agglo_head_config heads[AGGLO_MAX_HEADS], size_t *n_heads, agglo_err *err)
{
    static const char *const keys[2] = {"student", "heads"};
    agglo_status status = AGGLO_OK;

    for (int i = 0; i < 2 && status == AGGLO_OK; i++) {
        const char *text = agglo_safetensors_meta(st, keys[i]);
        json_t *json = NULL;

        if (text == NULL) {
            status = agglo_fail(err, AGGLO_E_DATA, "the metadata has no '%s'", keys[i]);
        } else if ((status = agglo_json_parse(text, strlen(text), &json, err)) == AGGLO_OK) {
            status = i == 0 ? agglo_student_config_parse(json, config, err)
                            : agglo_head_configs_parse(json, heads, n_heads, err);
        }
        json_decref(json);
    }
    return status == AGGLO_OK ? AGGLO_OK : agglo_at(err, "%s", agglo_safetensors_path(st));
}

agglo_status agglo_student_read_config(const agglo_safetensors *st, agglo_student_config *config,
                                       agglo_head_config heads[AGGLO_MAX_HEADS], size_t *n_heads, agglo_err *err)
{
    if (!agglo_student_is(st)) {
        agglo_fail(err, AGGLO_E_DATA, "this file is not a student: its metadata does not say format '%s'", FORMAT);
        return agglo_at(err, "%s", agglo_safetensors_path(st));
    }
    return agglo_student_get_meta(st, config, heads, n_heads, err);
}

agglo_status agglo_student_put_meta(const agglo_student *student, agglo_st_writer *writer, const char *format,
                                    agglo_err *err)
{
    if (agglo_st_writer_meta(writer, "format", format, err) != AGGLO_OK ||
        agglo_st_writer_meta(writer, "student", student->config_text, err) != AGGLO_OK ||
        agglo_st_writer_meta(writer, "heads", student->heads_text, err) != AGGLO_OK) {
        return err->status;
    }
    return AGGLO_OK;
}

const agglo_tensor *agglo_param_get_part(const agglo_param *param, agglo_param_part part)
{
    return part == AGGLO_PART_VALUE ? &param->value : part == AGGLO_PART_M ? &param->m : &param->v;
}

agglo_status agglo_host_params_get(agglo_host_params *out, agglo_student *student, agglo_param_part part,
                                   agglo_err *err)
{
    size_t n = agglo_params_count(student->params), n_bytes = 0, used = 0;

    memset(out, 0, sizeof *out);
    for (size_t i = 0; i < n; i++) {
        AGGLO_ASSERT(agglo_param_get_part(agglo_params_at(student->params, i), part)->data != NULL);
        n_bytes += agglo_tensor_bytes(agglo_param_get_part(agglo_params_at(student->params, i), part));
    }
    out->block = agglo_alloc(n_bytes, 1, err);
    out->data = out->block != NULL ? agglo_alloc(n, sizeof *out->data, err) : NULL;
    if (out->data == NULL) {
        goto fail;
    }
    for (size_t i = 0; i < n; i++) {
        const agglo_tensor *tensor = agglo_param_get_part(agglo_params_at(student->params, i), part);

        agglo_download(student->backend, out->block + used, tensor->data, agglo_tensor_bytes(tensor));
        out->data[i] = out->block + used;
        used += agglo_tensor_bytes(tensor);
    }
    if (agglo_backend_check(student->backend, err) != AGGLO_OK) {
        goto fail;
    }
    return AGGLO_OK;
fail:
    agglo_host_params_clear(out);
    return err->status;
}

void agglo_host_params_clear(agglo_host_params *host)
{
    agglo_free(host->data);
    agglo_free(host->block);
    memset(host, 0, sizeof *host);
}

agglo_status agglo_student_export(agglo_student *student, const char *path, agglo_err *err)
{
    agglo_host_params host = {0};
    agglo_st_writer *writer = NULL;

    if (agglo_host_params_get(&host, student, AGGLO_PART_VALUE, err) != AGGLO_OK ||
        agglo_st_writer_new(&writer, err) != AGGLO_OK ||
        agglo_student_put_meta(student, writer, FORMAT, err) != AGGLO_OK) {
        goto fail;
    }
    for (size_t i = 0; i < agglo_params_count(student->params); i++) {
        const agglo_param *param = agglo_params_at(student->params, i);

        if (agglo_st_writer_add(writer, param->name, param->value.dtype, param->value.rank, param->value.shape,
                                host.data[i], err) != AGGLO_OK) {
            goto fail;
        }
    }
    if (agglo_st_writer_write(writer, path, err) != AGGLO_OK) {
        goto fail;
    }
    agglo_st_writer_free(writer);
    agglo_host_params_clear(&host);
    return AGGLO_OK;
fail:
    agglo_st_writer_free(writer);
    agglo_host_params_clear(&host);
    return agglo_doing(err, "cannot write student");
}

agglo_status agglo_student_write_random(const agglo_student_config *config, const agglo_head_config *heads,
                                        size_t n_heads, uint64_t seed, const char *path, agglo_err *err)
{
    agglo_backend *backend = NULL;
    agglo_student *student = NULL;
    bool good = agglo_backend_cpu_new(&backend, 1, err) == AGGLO_OK &&
                agglo_student_new(&student, backend, config, heads, n_heads, false, AGGLO_F32, err) == AGGLO_OK &&
                agglo_params_init(student->params, seed, err) == AGGLO_OK &&
                agglo_student_export(student, path, err) == AGGLO_OK;

    agglo_student_free(student);
    agglo_backend_free(backend);
    return good ? AGGLO_OK : err->status;
}

agglo_status agglo_slab_fit(agglo_slab *slab, agglo_backend *backend, void (*walk)(void *context, agglo_slab *slab),
                            void *context, agglo_err *err)
{
    agglo_slab measured = agglo_slab_measure(backend);

    walk(context, &measured);
    if (slab->base == NULL || measured.peak > slab->capacity) {
        agglo_slab_free(slab);
        memset(slab, 0, sizeof *slab);
        if (agglo_slab_allocate(slab, &measured, err) != AGGLO_OK) {
            return err->status;
        }
    }
    slab->used = 0;
    walk(context, slab);
    return AGGLO_OK;
}
