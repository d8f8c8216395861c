/* Parameter lists: declared, allocated in slabs, initialised from counter-based draws or loaded from safetensors; see param.h. */
#include "tensor/param.h"

#include "base/alloc.h"
#include "base/hash.h"
#include "tensor/ops.h"
#include "tensor/rng.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define STAGE 65536 /* elements converted or drawn on the host at a time */
#define ALIGN 64    /* elements: 256 bytes */

struct agglo_params {
    agglo_backend *backend;
    agglo_param **items; /* each its own block, so that pointers stay valid */
    size_t n, capacity;
    bool trained, allocated;
    agglo_dtype storage;
    float *values, *grads, *m, *v; /* slabs on the backend; grads, m and v have a place for every parameter, */
    uint16_t *copies;              /* values for those that have one, copies for matrices in BF16 */
    size_t grad_bytes;
    float *stage; /* host */
    uint16_t *stage_copy;
};

agglo_status agglo_params_new(agglo_params **out, agglo_backend *backend, bool trained, agglo_err *err)
{
    agglo_params *params = agglo_alloc(1, sizeof *params, err);

    *out = params;
    if (params == NULL) {
        return agglo_doing(err, "cannot make a list of parameters");
    }
    params->backend = backend;
    params->trained = trained;
    params->storage = AGGLO_F32;
    return AGGLO_OK;
}

agglo_status agglo_params_set_storage(agglo_params *params, agglo_dtype storage, agglo_err *err)
{
    AGGLO_ASSERT(params->n == 0 && (storage == AGGLO_F32 || storage == AGGLO_BF16));
    if (!agglo_backend_supports(params->backend, storage)) {
        agglo_fail(err, AGGLO_E_UNSUPPORTED, "%s does not compute with %s", agglo_backend_describe(params->backend),
                   agglo_dtype_name(storage));
        return agglo_doing(err, "cannot make a list of parameters");
    }
    params->storage = storage;
    return AGGLO_OK;
}

agglo_dtype agglo_params_storage(const agglo_params *params)
{
    return params->storage;
}

void agglo_params_free(agglo_params *params)
{
    if (params == NULL) {
        return;
    }
    agglo_backend_release(params->backend, params->v);
    agglo_backend_release(params->backend, params->m);
    agglo_backend_release(params->backend, params->grads);
    agglo_backend_release(params->backend, params->copies);
    agglo_backend_release(params->backend, params->values);
    for (size_t i = 0; i < params->n; i++) {
        agglo_free(params->items[i]);
    }
    agglo_free(params->items);
    agglo_free(params->stage_copy);
    agglo_free(params->stage);
    agglo_free(params);
}

static agglo_param *add(agglo_params *params, const char *name, int rank, const int64_t *shape, agglo_init init,
                        float scale, bool decay, bool matrix, agglo_err *err)
{
    agglo_param *param;
    size_t n_elements = 1;

    AGGLO_ASSERT(!params->allocated && rank >= 0 && rank <= AGGLO_MAX_RANK && init <= AGGLO_INIT_UNIFORM);
    AGGLO_ASSERT(strlen(name) < sizeof param->name && agglo_params_find(params, name) == NULL);
    for (int i = 0; i < rank; i++) {
        if (shape[i] < 1 || !agglo_size_mul(n_elements, (size_t)shape[i], &n_elements)) {
            agglo_fail(err, AGGLO_E_CONFIG, "extent %lld of axis %d is not usable", (long long)shape[i], i);
            goto fail;
        }
    }
    if (params->n == params->capacity) {
        size_t capacity = params->capacity == 0 ? 64 : 2 * params->capacity;
        agglo_param **grown = agglo_realloc(params->items, params->n * sizeof(*grown), capacity * sizeof(*grown), err);

        if (grown == NULL) {
            goto fail;
        }
        params->items = grown;
        params->capacity = capacity;
    }
    param = agglo_alloc(1, sizeof *param, err);
    if (param == NULL) {
        goto fail;
    }
    snprintf(param->name, sizeof param->name, "%s", name);
    param->value = param->grad = param->m = param->v = agglo_tensor_of(NULL, AGGLO_F32, rank, shape);
    param->stored = agglo_tensor_of(NULL, matrix ? params->storage : AGGLO_F32, rank, shape);
    param->init = init;
    param->scale = scale;
    param->decay = decay;
    param->matrix = matrix;
    params->items[params->n++] = param;
    return param;
fail:
    agglo_at(err, "%s", name);
    agglo_doing(err, "cannot declare parameter");
    return NULL;
}

agglo_param *agglo_params_add(agglo_params *params, const char *name, int rank, const int64_t *shape, agglo_init init,
                              float scale, bool decay, agglo_err *err)
{
    return add(params, name, rank, shape, init, scale, decay, false, err);
}

agglo_param *agglo_params_add_matrix(agglo_params *params, const char *name, int rank, const int64_t *shape,
                                     agglo_init init, float scale, bool decay, agglo_err *err)
{
    return add(params, name, rank, shape, init, scale, decay, true, err);
}

/* Whether a parameter is to be kept in F32, and whether in BF16, beside F32 or alone. */
static bool keeps_f32(const agglo_params *params, const agglo_param *param)
{
    return params->trained || param->stored.dtype == AGGLO_F32;
}

static bool keeps_bf16(const agglo_param *param)
{
    return param->stored.dtype != AGGLO_F32;
}

/* Elements with what aligns the next parameter. */
static size_t room(const agglo_param *param)
{
    return ((size_t)agglo_tensor_count(&param->value) + ALIGN - 1) / ALIGN * ALIGN;
}

/* n elements of `size` bytes on the backend, zero; none at all is NULL. */
static agglo_status take_slab(agglo_params *params, size_t n, size_t size, void *out, size_t *n_bytes, agglo_err *err)
{
    void *block = NULL;

    if (!agglo_size_mul(n, size, n_bytes)) {
        return agglo_fail(err, AGGLO_E_MEMORY, "more bytes than can be addressed");
    }
    if (n > 0 && (block = agglo_backend_alloc(params->backend, *n_bytes, err)) == NULL) {
        return err->status;
    }
    memcpy(out, &block, sizeof block);
    return AGGLO_OK;
}

agglo_status agglo_params_allocate(agglo_params *params, agglo_err *err)
{
    size_t total = 0, values = 0, copies = 0, ignored;

    AGGLO_ASSERT(!params->allocated);
    for (size_t i = 0; i < params->n; i++) {
        if (!agglo_size_add(total, room(params->items[i]), &total)) {
            agglo_fail(err, AGGLO_E_MEMORY, "more elements than can be addressed");
            goto fail;
        }
        values += keeps_f32(params, params->items[i]) ? room(params->items[i]) : 0;
        copies += keeps_bf16(params->items[i]) ? room(params->items[i]) : 0;
    }
    params->stage = agglo_alloc(STAGE, sizeof *params->stage, err);
    if (params->stage == NULL ||
        (copies > 0 && (params->stage_copy = agglo_alloc(STAGE, sizeof *params->stage_copy, err)) == NULL) ||
        take_slab(params, values, sizeof(float), &params->values, &ignored, err) != AGGLO_OK ||
        take_slab(params, copies, sizeof(uint16_t), &params->copies, &ignored, err) != AGGLO_OK) {
        goto fail;
    }
    if (params->trained) {
        float **slabs[] = {&params->grads, &params->m, &params->v};

        for (size_t i = 0; i < AGGLO_COUNT(slabs); i++) {
            if (take_slab(params, total, sizeof(float), slabs[i], &params->grad_bytes, err) != AGGLO_OK) {
                goto fail;
            }
        }
    }
    total = values = copies = 0;
    for (size_t i = 0; i < params->n; i++) {
        agglo_param *param = params->items[i];
        size_t n = room(param);

        if (keeps_f32(params, param)) {
            param->value.data = params->values + values;
            values += n;
        }
        param->stored.data = param->value.data;
        if (keeps_bf16(param)) {
            param->stored.data = params->copies + copies;
            copies += n;
        }
        if (params->trained) {
            param->grad.data = params->grads + total;
            param->m.data = params->m + total;
            param->v.data = params->v + total;
        }
        total += n;
    }
    params->allocated = true;
    return AGGLO_OK;
fail:
    return agglo_doing(err, "cannot allocate %zu parameters", params->n);
}

size_t agglo_params_count(const agglo_params *params)
{
    return params->n;
}

agglo_param *agglo_params_at(agglo_params *params, size_t i)
{
    AGGLO_ASSERT(i < params->n);
    return params->items[i];
}

agglo_param *agglo_params_find(agglo_params *params, const char *name)
{
    for (size_t i = 0; i < params->n; i++) {
        if (strcmp(params->items[i]->name, name) == 0) {
            return params->items[i];
        }
    }
    return NULL;
}

int64_t agglo_params_elements(const agglo_params *params)
{
    int64_t n = 0;

    for (size_t i = 0; i < params->n; i++) {
        n += agglo_tensor_count(&params->items[i]->value);
    }
    return n;
}

/* Draw `redraw` of element i: a uniform of 2^-53 steps in [0, 1) from each half of the four words. */
static void draw(uint64_t seed, uint64_t name, uint64_t i, uint32_t redraw, double u[2])
{
    agglo_philox r = agglo_philox4x32(seed, (uint32_t)name, (uint32_t)(name >> 32), (uint32_t)i,
                                      ((uint32_t)(i >> 32) & 0xffffu) | redraw << 16);

    u[0] = (double)(((uint64_t)r.v[0] << 32 | r.v[1]) >> 11) * 0x1p-53;
    u[1] = (double)(((uint64_t)r.v[2] << 32 | r.v[3]) >> 11) * 0x1p-53;
}

static double normal(uint64_t seed, uint64_t name, uint64_t i, uint32_t redraw)
{
    double u[2];

    draw(seed, name, i, redraw, u);
    return sqrt(-2.0 * log(1.0 - u[0])) * cos(6.283185307179586 * u[1]);
}

static float initial(const agglo_param *param, uint64_t seed, uint64_t name, uint64_t i)
{
    double scale = (double)param->scale, u[2], x;

    switch (param->init) {
    case AGGLO_INIT_ZERO:
        return 0.0f;
    case AGGLO_INIT_ONE:
        return 1.0f;
    case AGGLO_INIT_CONST:
        return param->scale;
    case AGGLO_INIT_NORMAL:
        return (float)(scale * normal(seed, name, i, 0));
    case AGGLO_INIT_TRUNC_NORMAL:
        for (uint32_t redraw = 0; redraw < 0x10000u; redraw++) {
            x = scale * normal(seed, name, i, redraw);
            if (x >= -2.0 && x <= 2.0) {
                return (float)x;
            }
        }
        return 0.0f; /* a scale so large that 65536 draws miss [-2, 2]: not a distribution anyone can want */
    case AGGLO_INIT_UNIFORM:
        draw(seed, name, i, 0, u);
        return (float)(scale * (2.0 * u[0] - 1.0));
    }
    return 0.0f;
}

/* The first n values on the stage become elements first.. of a parameter, in each type that it is kept in. */
static void put(agglo_params *params, const agglo_param *param, size_t first, size_t n)
{
    if (param->value.data != NULL) {
        agglo_upload(params->backend, (float *)param->value.data + first, params->stage, n * sizeof(float));
    }
    if (keeps_bf16(param)) {
        agglo_dtype_from_f32(params->stage_copy, params->stage, param->stored.dtype, n);
        agglo_upload(params->backend, (uint16_t *)param->stored.data + first, params->stage_copy, n * sizeof(uint16_t));
    }
}

agglo_status agglo_params_init(agglo_params *params, uint64_t seed, agglo_err *err)
{
    AGGLO_ASSERT(params->allocated);
    for (size_t k = 0; k < params->n; k++) {
        agglo_param *param = params->items[k];
        size_t n = (size_t)agglo_tensor_count(&param->value);
        uint64_t name = agglo_xxh3_64(param->name, strlen(param->name));

        for (size_t first = 0; first < n; first += STAGE) {
            size_t some = n - first < STAGE ? n - first : STAGE;

            for (size_t i = 0; i < some; i++) {
                params->stage[i] = initial(param, seed, name, first + i);
            }
            put(params, param, first, some);
        }
    }
    if (agglo_backend_check(params->backend, err) != AGGLO_OK) {
        return agglo_doing(err, "cannot initialise parameters");
    }
    return AGGLO_OK;
}

/* "[3, 4]" */
static const char *shape_text(char *out, size_t size, int rank, const int64_t *shape)
{
    size_t used = (size_t)snprintf(out, size, "[");

    for (int i = 0; i < rank && used < size; i++) {
        used += (size_t)snprintf(out + used, size - used, i == 0 ? "%lld" : ", %lld", (long long)shape[i]);
    }
    if (used < size) {
        snprintf(out + used, size - used, "]");
    }
    return out;
}

/* Equal but for one extent of 1 in front. */
static bool same_shape(int rank_a, const int64_t *a, int rank_b, const int64_t *b)
{
    if (rank_a == rank_b + 1 && a[0] == 1) {
        a++;
        rank_a--;
    } else if (rank_b == rank_a + 1 && b[0] == 1) {
        b++;
        rank_b--;
    }
    if (rank_a != rank_b) {
        return false;
    }
    for (int i = 0; i < rank_a; i++) {
        if (a[i] != b[i]) {
            return false;
        }
    }
    return true;
}

/* Convert a tensor of a file to float and make it elements at.. of a parameter; shapes agree already. */
static agglo_status load_values(agglo_params *params, const agglo_param *param, size_t at,
                                const agglo_st_tensor *tensor, agglo_err *err)
{
    size_t n = (size_t)tensor->n_elements, size = agglo_dtype_size(tensor->dtype);

    if (!agglo_dtype_is_float(tensor->dtype)) {
        return agglo_fail(err, AGGLO_E_MISMATCH, "dtype %s, expected F32, F16, BF16 or F64", tensor->dtype_text);
    }
    for (size_t first = 0; first < n; first += STAGE) {
        size_t some = n - first < STAGE ? n - first : STAGE;

        agglo_dtype_to_f32(params->stage, tensor->data + first * size, tensor->dtype, some);
        for (size_t i = 0; i < some; i++) {
            if (!isfinite(params->stage[i])) {
                return agglo_fail(err, AGGLO_E_DATA, "element %zu is not finite", first + i);
            }
        }
        put(params, param, at + first, some);
    }
    return AGGLO_OK;
}

agglo_status agglo_params_load(agglo_params *params, const agglo_safetensors *st, agglo_err *err)
{
    AGGLO_ASSERT(params->allocated);
    for (size_t i = 0; i < params->n; i++) {
        agglo_param *param = params->items[i];
        const agglo_st_tensor *tensor = agglo_safetensors_find(st, param->name);
        char found[200], expected[200];

        if (tensor == NULL) {
            agglo_fail(err, AGGLO_E_NOT_FOUND, "no such tensor, expected shape %s",
                       shape_text(expected, sizeof expected, param->value.rank, param->value.shape));
            agglo_at(err, "%s", param->name);
            goto fail;
        }
        if (!same_shape(tensor->rank, tensor->shape, param->value.rank, param->value.shape)) {
            agglo_fail(err, AGGLO_E_MISMATCH, "shape %s, expected %s",
                       shape_text(found, sizeof found, tensor->rank, tensor->shape),
                       shape_text(expected, sizeof expected, param->value.rank, param->value.shape));
            agglo_at(err, "%s", param->name);
            goto fail;
        }
        if (load_values(params, param, 0, tensor, err) != AGGLO_OK) {
            agglo_at(err, "%s", param->name);
            goto fail;
        }
    }
    if (agglo_backend_check(params->backend, err) == AGGLO_OK) {
        return AGGLO_OK;
    }
fail:
    agglo_at(err, "%s", agglo_safetensors_path(st));
    return agglo_doing(err, "cannot load weights");
}

agglo_status agglo_param_load_rows(agglo_params *params, agglo_param *param, int64_t first_row,
                                   const agglo_st_tensor *tensor, agglo_err *err)
{
    int64_t cols = param->value.rank == 2 ? param->value.shape[1] : 1, rows, left = param->value.shape[0] - first_row;
    int64_t expected[2] = {0, cols};
    char found_text[200], expected_text[200];

    AGGLO_ASSERT(params->allocated && (param->value.rank == 1 || param->value.rank == 2) && first_row >= 0);
    rows = tensor->n_elements / cols;
    expected[0] = rows;
    if (rows < 1 || rows > left || !same_shape(tensor->rank, tensor->shape, param->value.rank, expected)) {
        expected[0] = left;
        agglo_fail(err, AGGLO_E_MISMATCH, "shape %s, expected at most %s for rows %lld.. of %s",
                   shape_text(found_text, sizeof found_text, tensor->rank, tensor->shape),
                   shape_text(expected_text, sizeof expected_text, param->value.rank, expected), (long long)first_row,
                   param->name);
        goto fail;
    }
    if (load_values(params, param, (size_t)(first_row * cols), tensor, err) == AGGLO_OK) {
        return AGGLO_OK;
    }
fail:
    agglo_at(err, "%s", tensor->name);
    return agglo_doing(err, "cannot load weights");
}

void agglo_params_refresh(agglo_params *params)
{
    AGGLO_ASSERT(params->allocated);
    for (size_t i = 0; i < params->n; i++) {
        agglo_param *param = params->items[i];

        if (agglo_param_has_copy(param)) {
            agglo_cast(params->backend, &param->value, &param->stored);
        }
    }
}

void agglo_params_zero_grad(agglo_params *params)
{
    AGGLO_ASSERT(params->allocated && params->trained);
    agglo_zero(params->backend, params->grads, params->grad_bytes);
}
