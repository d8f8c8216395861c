/* Similarities by blocked matrix products on the backend; the k best of every query kept in order while the bank
 * goes by. */
#include "student/eval_knn.h"

#include <math.h>
#include <string.h>

#include "student/rows.h"
#include "tensor/ops.h"

#define QUERY_ROWS 1024
#define BANK_ROWS  1024

typedef struct neighbour {
    float similarity;
    int64_t row;
} neighbour;

typedef struct knn {
    agglo_backend *backend;
    int k;
    int64_t dim;
    float *bank_device, *query_device,
        *scores_device;   /* [BANK_ROWS, dim], [QUERY_ROWS, dim], [QUERY_ROWS, BANK_ROWS] */
    float *rows, *scores; /* host: [max of both, dim], [QUERY_ROWS, BANK_ROWS] */
    neighbour *best;      /* [QUERY_ROWS, k], descending */
    int *n_best;          /* [QUERY_ROWS] */
    double *votes;        /* [k] */
    int64_t *classes;     /* [k] */
} knn;

agglo_knn_config agglo_knn_config_default(void)
{
    return (agglo_knn_config){.k = 20, .temperature = 0.07};
}

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* L2-normalised copies of n rows. `first` is the row's number for messages. */
static agglo_status normalise(const float *from, int64_t n, int64_t dim, const char *what, int64_t first, float *to,
                              agglo_err *err)
{
    agglo_rows_found found = agglo_rows_normalise(from, n, dim, to);

    if (found.not_finite >= 0) {
        agglo_fail(err, AGGLO_E_DATA, "a feature is not finite");
        return agglo_at(err, "%s %lld", what, (long long)(first + found.not_finite));
    }
    return AGGLO_OK;
}

/* Insert behind all that are at least as similar: rows come in ascending order, so equal ones stay in that order. */
static void offer(neighbour *best, int *n, int k, float similarity, int64_t row)
{
    int at = *n;

    if (at == k && similarity <= best[k - 1].similarity) {
        return;
    }
    if (at == k) {
        at--;
    } else {
        (*n)++;
    }
    while (at > 0 && best[at - 1].similarity < similarity) {
        best[at] = best[at - 1];
        at--;
    }
    best[at].similarity = similarity;
    best[at].row = row;
}

static int64_t vote(knn *s, const neighbour *best, int n, const int64_t *labels, double temperature)
{
    int n_classes = 0, winner = 0;

    for (int i = 0; i < n; i++) {
        int64_t label = labels[best[i].row];
        int at = 0;

        while (at < n_classes && s->classes[at] != label) {
            at++;
        }
        if (at == n_classes) {
            s->classes[at] = label;
            s->votes[at] = 0.0;
            n_classes++;
        }
        /* relative to the nearest: the same winner, and exp cannot overflow at a low temperature */
        s->votes[at] += exp(((double)best[i].similarity - (double)best[0].similarity) / temperature);
    }
    for (int i = 1; i < n_classes; i++) {
        if (s->votes[i] > s->votes[winner] || (s->votes[i] == s->votes[winner] && s->classes[i] < s->classes[winner])) {
            winner = i;
        }
    }
    return s->classes[winner];
}

static agglo_status take(knn *s, agglo_err *err)
{
    size_t dim = (size_t)s->dim, k = (size_t)s->k, query_bytes, bank_bytes;

    if (!agglo_size_mul(dim, BANK_ROWS * sizeof(float), &bank_bytes) ||
        !agglo_size_mul(dim, QUERY_ROWS * sizeof(float), &query_bytes)) {
        return agglo_fail(err, AGGLO_E_MEMORY, "features of %lld channels", (long long)s->dim);
    }
    if ((s->bank_device = agglo_backend_alloc(s->backend, bank_bytes, err)) == NULL ||
        (s->query_device = agglo_backend_alloc(s->backend, query_bytes, err)) == NULL ||
        (s->scores_device = agglo_backend_alloc(s->backend, sizeof(float) * QUERY_ROWS * BANK_ROWS, err)) == NULL ||
        (s->rows = agglo_alloc(BANK_ROWS, dim * sizeof(float), err)) == NULL ||
        (s->scores = agglo_alloc(QUERY_ROWS * BANK_ROWS, sizeof(float), err)) == NULL ||
        (s->best = agglo_alloc(k, QUERY_ROWS * sizeof *s->best, err)) == NULL ||
        (s->n_best = agglo_alloc(QUERY_ROWS, sizeof *s->n_best, err)) == NULL ||
        (s->votes = agglo_alloc(k, sizeof *s->votes, err)) == NULL ||
        (s->classes = agglo_alloc(k, sizeof *s->classes, err)) == NULL) {
        return err->status;
    }
    return AGGLO_OK;
}

static void give_back(knn *s)
{
    agglo_free(s->classes);
    agglo_free(s->votes);
    agglo_free(s->n_best);
    agglo_free(s->best);
    agglo_free(s->scores);
    agglo_free(s->rows);
    agglo_backend_release(s->backend, s->scores_device);
    agglo_backend_release(s->backend, s->query_device);
    agglo_backend_release(s->backend, s->bank_device);
}

/* The neighbours of one block of queries: the whole bank goes by. */
static agglo_status search(knn *s, const float *bank, int64_t n_bank, const float *queries, int64_t first,
                           int64_t n_rows, agglo_err *err)
{
    agglo_tensor q = agglo_tensor_2d(s->query_device, AGGLO_F32, n_rows, s->dim);

    if (normalise(queries + first * s->dim, n_rows, s->dim, "query", first, s->rows, err) != AGGLO_OK) {
        return err->status;
    }
    agglo_upload(s->backend, q.data, s->rows, agglo_tensor_bytes(&q));
    memset(s->n_best, 0, QUERY_ROWS * sizeof *s->n_best);
    for (int64_t at = 0; at < n_bank; at += BANK_ROWS) {
        int64_t n_cols = smaller(BANK_ROWS, n_bank - at);
        agglo_tensor b = agglo_tensor_2d(s->bank_device, AGGLO_F32, n_cols, s->dim);
        agglo_tensor scores = agglo_tensor_2d(s->scores_device, AGGLO_F32, n_rows, n_cols);

        if (normalise(bank + at * s->dim, n_cols, s->dim, "bank row", at, s->rows, err) != AGGLO_OK) {
            return err->status;
        }
        agglo_upload(s->backend, b.data, s->rows, agglo_tensor_bytes(&b));
        agglo_linear(s->backend, &q, &b, NULL, AGGLO_ACT_NONE, NULL, &scores);
        agglo_download(s->backend, s->scores, scores.data, agglo_tensor_bytes(&scores));
        if (agglo_backend_check(s->backend, err) != AGGLO_OK) {
            return err->status;
        }
        for (int64_t i = 0; i < n_rows; i++) {
            for (int64_t j = 0; j < n_cols; j++) {
                offer(s->best + i * s->k, &s->n_best[i], s->k, s->scores[i * n_cols + j], at + j);
            }
        }
    }
    return AGGLO_OK;
}

agglo_status agglo_eval_knn(agglo_backend *backend, const agglo_knn_config *config, const float *bank,
                            const int64_t *labels, int64_t n_bank, const float *queries, int64_t n_queries, int64_t dim,
                            int64_t *predicted, agglo_err *err)
{
    knn s = {.backend = backend, .dim = dim};

    AGGLO_ASSERT(config->k >= 1 && config->temperature > 0.0 && dim >= 1);
    if (n_bank < 1) {
        agglo_fail(err, AGGLO_E_DATA, "the bank is empty");
        goto fail;
    }
    for (int64_t i = 0; i < n_bank; i++) {
        if (labels[i] < 0) {
            agglo_fail(err, AGGLO_E_DATA, "label %lld is negative", (long long)labels[i]);
            agglo_at(err, "bank row %lld", (long long)i);
            goto fail;
        }
    }
    s.k = (int)smaller(config->k, n_bank);
    if (take(&s, err) != AGGLO_OK) {
        goto fail;
    }
    for (int64_t at = 0; at < n_queries; at += QUERY_ROWS) {
        int64_t n_rows = smaller(QUERY_ROWS, n_queries - at);

        if (search(&s, bank, n_bank, queries, at, n_rows, err) != AGGLO_OK) {
            goto fail;
        }
        for (int64_t i = 0; i < n_rows; i++) {
            predicted[at + i] = vote(&s, s.best + i * s.k, s.n_best[i], labels, config->temperature);
        }
    }
    give_back(&s);
    return AGGLO_OK;
fail:
    give_back(&s);
    return agglo_doing(err, "cannot classify by neighbours");
}
