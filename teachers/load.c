/* Named tensors into parameters; see load.h. */
#include "teachers/load.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

char *agglo_load_shape_text(int rank, const int64_t *shape, char *out, size_t n_bytes)
{
    size_t used = (size_t)snprintf(out, n_bytes, "[");

    for (int i = 0; i < rank && used + 24 < n_bytes; i++) {
        used += (size_t)snprintf(out + used, n_bytes - used, "%s%lld", i > 0 ? ", " : "", (long long)shape[i]);
    }
    snprintf(out + used, n_bytes - used, "]");
    return out;
}

/* Shapes are compared axis by axis; a leading extent of 1 may be missing or extra. */
static bool same_shape(const agglo_st_tensor *t, const agglo_layout_tensor *expected)
{
    const int64_t *a = t->shape, *b = expected->shape;
    int rank_a = t->rank, rank_b = expected->rank;

    for (; rank_a > 0 && rank_a > rank_b && *a == 1; rank_a--) {
        a++;
    }
    for (; rank_b > 0 && rank_b > rank_a && *b == 1; rank_b--) {
        b++;
    }
    return rank_a == rank_b && memcmp(a, b, (size_t)rank_a * sizeof *a) == 0;
}

agglo_status agglo_load_refuse(const agglo_st_tensor *t, const char *name, const char *expected, agglo_err *err)
{
    char shape[160];

    return t == NULL ? agglo_fail(err, AGGLO_E_DATA, "tensor %.140s is missing, expected shape %.64s", name, expected)
                     : agglo_fail(err, AGGLO_E_DATA, "tensor %.140s has shape %s, expected %.64s", name,
                                  agglo_load_shape_text(t->rank, t->shape, shape, sizeof shape), expected);
}

agglo_status agglo_load_refuse_in(const agglo_layout_found *where, int block, const char *source,
                                  const agglo_st_tensor *t, const char *expected, agglo_err *err)
{
    char name[256];

    return agglo_load_refuse(t, agglo_layout_name(where, block, source, name, sizeof name), expected, err);
}

static agglo_status check_one(const agglo_weights *weights, const agglo_layout_tensor *expected,
                              const agglo_st_tensor **out, agglo_err *err)
{
    const agglo_st_tensor *t = agglo_weights_find(weights, expected->name);
    char wanted[128];

    *out = t;
    if (t == NULL || !same_shape(t, expected)) {
        return agglo_load_refuse(t, expected->name,
                                 agglo_load_shape_text(expected->rank, expected->shape, wanted, sizeof wanted), err);
    }
    if (t->dtype != AGGLO_F32 && t->dtype != AGGLO_F16 && t->dtype != AGGLO_BF16 && t->dtype != AGGLO_F64) {
        return agglo_fail(err, AGGLO_E_UNSUPPORTED, "tensor %s is %s, expected F32, F16, BF16 or F64", t->name,
                          t->dtype_text);
    }
    return AGGLO_OK;
}

agglo_status agglo_load_check(const agglo_weights *weights, const agglo_layout_tensor *tensors, size_t n_tensors,
                              agglo_err *err)
{
    const agglo_st_tensor *t;

    for (size_t i = 0; i < n_tensors; i++) {
        if (tensors[i].param[0] != '\0' && check_one(weights, &tensors[i], &t, err) != AGGLO_OK) {
            return err->status;
        }
    }
    return AGGLO_OK;
}

/* [in, out] of a file as [out, in] floats. Finite here, where an element's number is still the file's. */
static agglo_status load_transposed(agglo_params *params, agglo_param *param, const agglo_layout_tensor *expected,
                                    const agglo_st_tensor *t, agglo_err *err)
{
    size_t rows = (size_t)expected->shape[0], cols = (size_t)expected->shape[1];
    float *from = (float *)agglo_alloc(2 * rows * cols, sizeof *from, err), *to;
    agglo_st_tensor view = *t;

    if (from == NULL) {
        return err->status;
    }
    to = from + rows * cols;
    agglo_dtype_to_f32(from, t->data, t->dtype, rows * cols);
    for (size_t i = 0; i < rows * cols; i++) {
        if (!isfinite(from[i])) {
            agglo_fail(err, AGGLO_E_DATA, "element %zu is not finite", i);
            agglo_at(err, "%s", t->name);
            goto done;
        }
        to[i % cols * rows + i / cols] = from[i];
    }
    view.dtype = AGGLO_F32;
    view.rank = 2;
    view.shape[0] = (int64_t)cols;
    view.shape[1] = (int64_t)rows;
    view.data = (const uint8_t *)to;
    view.n_bytes = rows * cols * sizeof *to;
    agglo_param_load_rows(params, param, expected->first_row, &view, err);
done:
    agglo_free(from);
    return err->status;
}

static agglo_status load_one(agglo_params *params, const agglo_weights *weights, const agglo_layout_tensor *expected,
                             agglo_err *err)
{
    agglo_param *param = agglo_params_find(params, expected->param);
    const agglo_st_tensor *t;
    agglo_st_tensor view;

    AGGLO_ASSERT(param != NULL);
    if (check_one(weights, expected, &t, err) != AGGLO_OK) {
        return err->status;
    }
    if (expected->transposed) {
        return load_transposed(params, param, expected, t, err);
    }
    /* the parameter's own rank: a convolution's kernel is a row, leading extents of 1 go */
    view = *t;
    view.rank = param->value.rank;
    view.shape[0] = view.rank == 2 ? t->n_elements / param->value.shape[1] : t->n_elements;
    view.shape[1] = param->value.shape[1];
    return agglo_param_load_rows(params, param, expected->first_row, &view, err);
}

agglo_status agglo_load_params(agglo_params *params, const agglo_weights *weights, const agglo_layout_tensor *tensors,
                               size_t n_tensors, agglo_err *err)
{
    for (size_t i = 0; i < n_tensors; i++) {
        if (tensors[i].param[0] != '\0' && load_one(params, weights, &tensors[i], err) != AGGLO_OK) {
            return err->status;
        }
    }
    return AGGLO_OK;
}
