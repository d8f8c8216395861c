/* Attention with a bias, a query at a time; see ref_attention_bias.h. */
#include "tests/ref/ref_attention_bias.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct query {
    int64_t n, h, d, image, head, i;
    const double *q;
    double *p; /* [n] logits, then probabilities */
} query;

static const double *row(const query *a, const double *qkv, int64_t part, int64_t j)
{
    return qkv + (((a->image * a->n + j) * 3 + part) * a->h + a->head) * a->d;
}

static double dot(const double *a, const double *b, int64_t n)
{
    double sum = 0.0;

    for (int64_t i = 0; i < n; i++) {
        sum += a[i] * b[i];
    }
    return sum;
}

/* Row of the table that token i against token j takes along y (or x), -1: none. */
static int64_t rel_row(const ref_bias *bias, int64_t i, int64_t j, bool along_y)
{
    i -= bias->n_prefix;
    j -= bias->n_prefix;
    if (i < 0 || j < 0) {
        return -1;
    }
    return along_y ? i / bias->grid_w - j / bias->grid_w + bias->grid_h - 1
                   : i % bias->grid_w - j % bias->grid_w + bias->grid_w - 1;
}

/* Returns the log-sum-exp. */
static double probabilities(const query *a, const double *qkv, double scale, const ref_bias *bias)
{
    double most = -INFINITY, sum = 0.0;

    for (int64_t j = 0; j < a->n; j++) {
        double logit = scale * dot(a->q, row(a, qkv, 1, j), a->d);

        if (bias->table != NULL) {
            logit += bias->table[(a->head * a->n + a->i) * a->n + j];
        } else if (rel_row(bias, a->i, j, true) >= 0) {
            logit += dot(a->q, bias->rel_h + rel_row(bias, a->i, j, true) * a->d, a->d);
            logit += dot(a->q, bias->rel_w + rel_row(bias, a->i, j, false) * a->d, a->d);
        }
        a->p[j] = logit;
        most = fmax(most, logit);
    }
    for (int64_t j = 0; j < a->n; j++) {
        sum += exp(a->p[j] - most);
    }
    for (int64_t j = 0; j < a->n; j++) {
        a->p[j] = exp(a->p[j] - most) / sum;
    }
    return most + log(sum);
}

static double *floats(int64_t n)
{
    double *block = calloc((size_t)n, sizeof *block);

    if (block == NULL) {
        fprintf(stderr, "out of memory\n");
        abort();
    }
    return block;
}

void ref_attention_bias(int64_t b, int64_t n, int64_t h, int64_t d, const double *qkv, double scale,
                        const ref_bias *bias, double *out, double *lse)
{
    query a = {.n = n, .h = h, .d = d, .p = floats(n)};

    for (int64_t t = 0; t < b * n * h; t++) {
        double *o = out + t * d, l;

        a.image = t / h / n;
        a.i = t / h % n;
        a.head = t % h;
        a.q = row(&a, qkv, 0, a.i);
        l = probabilities(&a, qkv, scale, bias);
        if (lse != NULL) {
            lse[(a.image * h + a.head) * n + a.i] = l;
        }
        memset(o, 0, (size_t)d * sizeof *o);
        for (int64_t j = 0; j < n; j++) {
            for (int64_t k = 0; k < d; k++) {
                o[k] += a.p[j] * row(&a, qkv, 2, j)[k];
            }
        }
    }
    free(a.p);
}

static void add(double *to, double factor, const double *from, int64_t n)
{
    for (int64_t k = 0; k < n; k++) {
        to[k] += factor * from[k];
    }
}

void ref_attention_bias_bwd(int64_t b, int64_t n, int64_t h, int64_t d, const double *d_out, const double *qkv,
                            double scale, const ref_bias *bias, double *d_qkv, double *d_rel_h, double *d_rel_w,
                            double *d_table)
{
    query a = {.n = n, .h = h, .d = d, .p = floats(n)};
    double *d_p = floats(n);

    memset(d_qkv, 0, (size_t)(b * n * 3 * h * d) * sizeof *d_qkv);
    for (int64_t t = 0; t < b * n * h; t++) {
        const double *d_o = d_out + t * d;
        double delta = 0.0, *d_q;

        a.image = t / h / n;
        a.i = t / h % n;
        a.head = t % h;
        a.q = row(&a, qkv, 0, a.i);
        d_q = d_qkv + (a.q - qkv);
        probabilities(&a, qkv, scale, bias);
        for (int64_t j = 0; j < n; j++) {
            d_p[j] = dot(d_o, row(&a, qkv, 2, j), d);
            delta += a.p[j] * d_p[j];
            add(d_qkv + (row(&a, qkv, 2, j) - qkv), a.p[j], d_o, d);
        }
        for (int64_t j = 0; j < n; j++) {
            double d_s = a.p[j] * (d_p[j] - delta);

            add(d_q, scale * d_s, row(&a, qkv, 1, j), d);
            add(d_qkv + (row(&a, qkv, 1, j) - qkv), scale * d_s, a.q, d);
            if (d_table != NULL) {
                d_table[(a.head * n + a.i) * n + j] += d_s;
            }
            if (bias->table == NULL && rel_row(bias, a.i, j, true) >= 0) {
                int64_t y = rel_row(bias, a.i, j, true) * d, x = rel_row(bias, a.i, j, false) * d;

                add(d_q, d_s, bias->rel_h + y, d);
                add(d_q, d_s, bias->rel_w + x, d);
                if (d_rel_h != NULL) {
                    add(d_rel_h + y, d_s, a.q, d);
                    add(d_rel_w + x, d_s, a.q, d);
                }
            }
        }
    }
    free(a.p);
    free(d_p);
}
