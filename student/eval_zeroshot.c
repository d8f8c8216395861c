/* Class embeddings and the ranks of the true classes, by matrix products on the backend. */
#include "student/eval_zeroshot.h"

#include <string.h>

#include "base/json.h"
#include "student/rows.h"
#include "tensor/ops.h"

/* Bounds of what a file may ask for: 64 MiB of scores, and of queries, at a time. */
enum { QUERY_ROWS = 256, MAX_CLASSES = 65536, MAX_DIM = 65536, MAX_NAME = 4096 };

/* ---- the file ---- */

static agglo_status count_names(const agglo_class_text *text, int64_t n, agglo_err *err)
{
    return n == text->n ? AGGLO_OK
                        : agglo_fail(err, AGGLO_E_DATA, "`names` holds %lld names, `classes` %lld rows", (long long)n,
                                     (long long)text->n);
}

static agglo_status check_length(int64_t i, size_t length, agglo_err *err)
{
    return length <= MAX_NAME
               ? AGGLO_OK
               : agglo_fail(err, AGGLO_E_DATA, "name %lld has %zu bytes, more than %d", (long long)i, length, MAX_NAME);
}

static agglo_status names_of_array(agglo_class_text *text, const char *json, agglo_err *err)
{
    json_t *array = NULL;

    if (agglo_json_parse(json, strlen(json), &array, err) != AGGLO_OK ||
        count_names(text, (int64_t)json_array_size(array), err) != AGGLO_OK) {
        goto done;
    }
    for (int64_t i = 0; i < text->n; i++) {
        const char *name = json_string_value(json_array_get(array, (size_t)i));

        if (name == NULL) {
            agglo_fail(err, AGGLO_E_DATA, "name %lld is not a text", (long long)i);
            goto done;
        }
        if (check_length(i, strlen(name), err) != AGGLO_OK || (text->names[i] = agglo_strdup(name, err)) == NULL) {
            goto done;
        }
    }
done:
    json_decref(array);
    return err->status;
}

static agglo_status names_between_commas(agglo_class_text *text, const char *list, agglo_err *err)
{
    int64_t n = 1;

    for (const char *c = list; *c != '\0'; c++) {
        n += *c == ',';
    }
    if (count_names(text, n, err) != AGGLO_OK) {
        return err->status;
    }
    for (int64_t i = 0; i < n; i++) {
        size_t length = strcspn(list, ",");

        if (check_length(i, length, err) != AGGLO_OK ||
            (text->names[i] = agglo_format(err, "%.*s", (int)length, list)) == NULL) {
            return err->status;
        }
        list += length + (i + 1 < n);
    }
    return AGGLO_OK;
}

static agglo_status read_names(agglo_class_text *text, const agglo_safetensors *st, agglo_err *err)
{
    const char *names = agglo_safetensors_meta(st, "names");

    if (names == NULL) {
        return AGGLO_OK;
    }
    text->names = agglo_alloc((size_t)text->n, sizeof *text->names, err);
    if (text->names == NULL) {
        return err->status;
    }
    return names[0] == '[' ? names_of_array(text, names, err) : names_between_commas(text, names, err);
}

static agglo_status read_rows(agglo_class_text *text, const agglo_safetensors *st, agglo_err *err)
{
    const agglo_st_tensor *t = agglo_safetensors_find(st, "classes");
    agglo_rows_found found;

    if (t == NULL) {
        return agglo_fail(err, AGGLO_E_DATA, "there is no tensor `classes`");
    }
    if (t->rank != 2 || t->shape[0] < 1 || t->shape[1] < 1) {
        return agglo_fail(err, AGGLO_E_DATA, "the tensor `classes` is not [classes, dim]: rank %d, %lld elements",
                          t->rank, (long long)t->n_elements);
    }
    if (t->shape[0] > MAX_CLASSES || t->shape[1] > MAX_DIM) {
        return agglo_fail(err, AGGLO_E_DATA, "the tensor `classes` is [%lld, %lld], at most [%d, %d] are taken",
                          (long long)t->shape[0], (long long)t->shape[1], MAX_CLASSES, MAX_DIM);
    }
    if (!agglo_dtype_is_float(t->dtype)) {
        return agglo_fail(err, AGGLO_E_DATA, "the tensor `classes` is %.16s, not of floats", t->dtype_text);
    }
    text->n = t->shape[0];
    text->dim = t->shape[1];
    text->rows = agglo_alloc((size_t)t->n_elements, sizeof *text->rows, err);
    if (text->rows == NULL) {
        return err->status;
    }
    agglo_dtype_to_f32(text->rows, t->data, t->dtype, (size_t)t->n_elements);
    found = agglo_rows_normalise(text->rows, text->n, text->dim, text->rows);
    if (found.not_finite >= 0 || found.zero >= 0) {
        bool zero = found.not_finite < 0;

        return agglo_fail(err, AGGLO_E_DATA, "row %lld of `classes` is %s",
                          (long long)(zero ? found.zero : found.not_finite), zero ? "zero" : "not finite");
    }
    return AGGLO_OK;
}

agglo_status agglo_class_text_read(agglo_class_text *out, const agglo_safetensors *st, agglo_err *err)
{
    *out = (agglo_class_text){0};
    if (read_rows(out, st, err) != AGGLO_OK || read_names(out, st, err) != AGGLO_OK) {
        agglo_class_text_clear(out);
        agglo_at(err, "%s", agglo_safetensors_path(st));
        return agglo_doing(err, "cannot read class embeddings");
    }
    return AGGLO_OK;
}

void agglo_class_text_clear(agglo_class_text *text)
{
    for (int64_t i = 0; text->names != NULL && i < text->n; i++) {
        agglo_free(text->names[i]);
    }
    agglo_free(text->names);
    agglo_free(text->rows);
    *text = (agglo_class_text){0};
}

int64_t agglo_class_text_find(const agglo_class_text *text, const char *name)
{
    int64_t found = -1;

    for (int64_t i = 0; text->names != NULL && i < text->n; i++) {
        if (strcmp(text->names[i], name) == 0) {
            found = found == -1 ? i : -2;
        }
    }
    return found;
}

/* ---- ranks ---- */

typedef struct scorer {
    agglo_backend *backend;
    const agglo_class_text *text;
    float *classes_device, *query_device, *scores_device;
    float *rows, *scores; /* host: [QUERY_ROWS, dim], [QUERY_ROWS, n] */
} scorer;

static agglo_status take(scorer *s, agglo_err *err)
{
    size_t n = (size_t)s->text->n, dim = (size_t)s->text->dim, class_bytes, query_bytes, score_bytes;

    if (!agglo_size_mul(dim, sizeof(float), &query_bytes) || !agglo_size_mul(query_bytes, n, &class_bytes) ||
        !agglo_size_mul(query_bytes, QUERY_ROWS, &query_bytes) ||
        !agglo_size_mul(n, QUERY_ROWS * sizeof(float), &score_bytes)) {
        return agglo_fail(err, AGGLO_E_MEMORY, "%zu classes of %zu channels", n, dim);
    }
    if ((s->classes_device = agglo_backend_alloc(s->backend, class_bytes, err)) == NULL ||
        (s->query_device = agglo_backend_alloc(s->backend, query_bytes, err)) == NULL ||
        (s->scores_device = agglo_backend_alloc(s->backend, score_bytes, err)) == NULL ||
        (s->rows = agglo_alloc(query_bytes, 1, err)) == NULL ||
        (s->scores = agglo_alloc(score_bytes, 1, err)) == NULL) {
        return err->status;
    }
    agglo_upload(s->backend, s->classes_device, s->text->rows, class_bytes);
    return agglo_backend_check(s->backend, err);
}

static int64_t rank_of(const float *scores, int64_t n, int64_t row)
{
    int64_t rank = 0;

    for (int64_t i = 0; i < n; i++) {
        rank += scores[i] > scores[row] || (scores[i] == scores[row] && i < row);
    }
    return rank;
}

static agglo_status score(scorer *s, const float *queries, const int64_t *rows, int64_t first, int64_t n_rows,
                          int64_t *rank, agglo_err *err)
{
    int64_t n = s->text->n, dim = s->text->dim;
    agglo_tensor q = agglo_tensor_2d(s->query_device, AGGLO_F32, n_rows, dim);
    agglo_tensor classes = agglo_tensor_2d(s->classes_device, AGGLO_F32, n, dim);
    agglo_tensor scores = agglo_tensor_2d(s->scores_device, AGGLO_F32, n_rows, n);
    agglo_rows_found found = agglo_rows_normalise(queries + first * dim, n_rows, dim, s->rows);

    if (found.not_finite >= 0) {
        agglo_fail(err, AGGLO_E_DATA, "a feature is not finite");
        return agglo_at(err, "query %lld", (long long)(first + found.not_finite));
    }
    agglo_upload(s->backend, q.data, s->rows, agglo_tensor_bytes(&q));
    agglo_linear(s->backend, &q, &classes, NULL, AGGLO_ACT_NONE, NULL, &scores);
    agglo_download(s->backend, s->scores, scores.data, agglo_tensor_bytes(&scores));
    if (agglo_backend_check(s->backend, err) != AGGLO_OK) {
        return err->status;
    }
    for (int64_t i = 0; i < n_rows; i++) {
        rank[first + i] = rank_of(s->scores + i * n, n, rows[first + i]);
    }
    return AGGLO_OK;
}

agglo_status agglo_eval_zeroshot(agglo_backend *backend, const agglo_class_text *text, const float *queries,
                                 const int64_t *rows, int64_t n_queries, int64_t *rank, agglo_err *err)
{
    scorer s = {.backend = backend, .text = text};

    for (int64_t i = 0; i < n_queries; i++) {
        AGGLO_ASSERT(rows[i] >= 0 && rows[i] < text->n);
    }
    if (take(&s, err) == AGGLO_OK) {
        for (int64_t at = 0; at < n_queries && err->status == AGGLO_OK; at += QUERY_ROWS) {
            score(&s, queries, rows, at, n_queries - at < QUERY_ROWS ? n_queries - at : QUERY_ROWS, rank, err);
        }
    }
    agglo_free(s.scores);
    agglo_free(s.rows);
    agglo_backend_release(backend, s.scores_device);
    agglo_backend_release(backend, s.query_device);
    agglo_backend_release(backend, s.classes_device);
    return err->status == AGGLO_OK ? AGGLO_OK : agglo_doing(err, "cannot classify by text");
}
