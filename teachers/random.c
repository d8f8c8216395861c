/* Randomly initialised teachers, for trials and tests; see teacher.h. */
#include "base/hash.h"
#include "base/pool.h"
#include "teachers/layout_impl.h"
#include "teachers/teacher.h"
#include "tensor/rng.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* Elements filled by one call of a pool's body. */
#define CHUNK 65536

/* Normal values in pairs (Box and Muller): counter {pair low, pair high, name low, name high}. */
typedef struct filling {
    uint64_t seed, name;
    float mean, sigma;
    float *out;
    int64_t n;
} filling;

static void fill_chunk(void *context, int64_t index, int worker)
{
    const filling *f = (const filling *)context;
    int64_t first = index * CHUNK, last = first + CHUNK < f->n ? first + CHUNK : f->n;

    (void)worker;
    for (int64_t i = first; i < last; i += 2) {
        uint64_t pair = (uint64_t)i / 2;
        agglo_philox bits = agglo_philox4x32(f->seed, (uint32_t)pair, (uint32_t)(pair >> 32), (uint32_t)f->name,
                                             (uint32_t)(f->name >> 32));
        double radius = sqrt(-2.0 * log(1.0 - agglo_uniform01(bits.v[0])));
        double angle = 6.283185307179586 * agglo_uniform01(bits.v[1]);

        f->out[i] = f->mean + f->sigma * (float)(radius * cos(angle));
        if (i + 1 < last) {
            f->out[i + 1] = f->mean + f->sigma * (float)(radius * sin(angle));
        }
    }
}

static void scale_of(const agglo_layout_tensor *t, filling *f)
{
    int64_t fan_in = 1;

    for (int i = 1; i < t->rank; i++) {
        fan_in *= t->shape[i];
    }
    f->mean = 0.0f;
    switch (t->kind) {
    case AGGLO_ROW_LINEAR:
        f->sigma = 1.0f / sqrtf((float)fan_in);
        break;
    case AGGLO_ROW_TOKEN:
        f->sigma = 0.3f;
        break;
    case AGGLO_ROW_NORM:
        f->mean = 1.0f;
        f->sigma = 0.1f;
        break;
    case AGGLO_ROW_BIAS:
        f->sigma = 0.02f;
        break;
    case AGGLO_ROW_SCALE:
        f->mean = 0.5f;
        f->sigma = 0.1f;
        break;
    }
}

/* Texts of the metadata; the writer borrows them until the file is written. */
typedef struct metadata {
    char numbers[10][16], eps[32], mean[64], std[64], global_layers[1024];
} metadata;

static agglo_status add_metadata(agglo_st_writer *writer, const agglo_teacher_config *c, metadata *m, agglo_err *err)
{
    static const char *const names[10] = {"dim",   "depth", "heads",     "mlp_dim", "patch",
                                          "image", "proj",  "registers", "window",  "neck"};
    const int values[10] = {c->dim,   c->depth, c->heads,     c->mlp_dim, c->patch,
                            c->image, c->proj,  c->registers, c->window,  c->neck};
    bool sam = strcmp(c->family, "sam") == 0;
    const char *const texts[][2] = {
        {"format", "pt"},
        {"family", c->family},
        {"arch", c->arch},
        {"act", agglo_teacher_act_name(c->act)},
        {"mlp", c->swiglu ? "swiglu" : "plain"},
        {"layer_norm_eps", m->eps},
        {"mean", m->mean},
        {"std", m->std},
    };

    snprintf(m->eps, sizeof m->eps, "%.9g", (double)c->norm_eps);
    snprintf(m->mean, sizeof m->mean, "%.9g,%.9g,%.9g", (double)c->mean[0], (double)c->mean[1], (double)c->mean[2]);
    snprintf(m->std, sizeof m->std, "%.9g,%.9g,%.9g", (double)c->std[0], (double)c->std[1], (double)c->std[2]);
    for (size_t i = 0; i < AGGLO_COUNT(texts); i++) {
        if (agglo_st_writer_meta(writer, texts[i][0], texts[i][1], err) != AGGLO_OK) {
            return err->status;
        }
    }
    agglo_teacher_global_text(c, m->global_layers, sizeof m->global_layers);
    if (sam && agglo_st_writer_meta(writer, "global_layers", m->global_layers, err) != AGGLO_OK) {
        return err->status;
    }
    for (size_t i = 0; i < (sam ? 10 : 8); i++) {
        snprintf(m->numbers[i], sizeof m->numbers[i], "%d", values[i]);
        if (agglo_st_writer_meta(writer, names[i], m->numbers[i], err) != AGGLO_OK) {
            return err->status;
        }
    }
    return AGGLO_OK;
}

agglo_status agglo_teacher_write_random(const agglo_teacher_config *config, uint64_t seed, const char *path,
                                        agglo_err *err)
{
    agglo_teacher_config c = *config;
    agglo_layout_found where;
    agglo_layout_tensor *tensors = NULL;
    agglo_st_writer *writer = NULL;
    agglo_pool *pool = NULL;
    float *values = NULL;
    metadata texts;
    size_t n = 0, n_values = 0, used = 0;

    agglo_layout_of_family(c.family, &where);
    if (agglo_teacher_check(&c, err) != AGGLO_OK || agglo_layout_expand(&where, &c, &tensors, &n, err) != AGGLO_OK ||
        agglo_st_writer_new(&writer, err) != AGGLO_OK || agglo_pool_new(&pool, 0, err) != AGGLO_OK) {
        goto fail;
    }
    n_values = (size_t)agglo_teacher_params(&c);
    values = (float *)agglo_alloc(n_values, sizeof *values, err);
    if (values == NULL) {
        goto fail;
    }
    for (size_t i = 0; i < n; i++) {
        const agglo_layout_tensor *t = &tensors[i];
        filling f = {.seed = seed, .name = agglo_xxh3_64(t->name, strlen(t->name)), .out = values + used, .n = 1};

        for (int k = 0; k < t->rank; k++) {
            f.n *= t->shape[k];
        }
        AGGLO_ASSERT((size_t)f.n <= n_values - used);
        scale_of(t, &f);
        agglo_pool_for(pool, (f.n + CHUNK - 1) / CHUNK, fill_chunk, &f);
        if (agglo_st_writer_add(writer, t->name, AGGLO_F32, t->rank, t->shape, f.out, err) != AGGLO_OK) {
            goto fail;
        }
        used += (size_t)f.n;
    }
    AGGLO_ASSERT(used == n_values);
    if (add_metadata(writer, &c, &texts, err) != AGGLO_OK || agglo_st_writer_write(writer, path, err) != AGGLO_OK) {
        goto fail;
    }
    agglo_st_writer_free(writer);
    agglo_pool_free(pool);
    agglo_free(values);
    agglo_free(tensors);
    return AGGLO_OK;
fail:
    agglo_st_writer_free(writer);
    agglo_pool_free(pool);
    agglo_free(values);
    agglo_free(tensors);
    return agglo_doing(err, "cannot write random weights");
}
