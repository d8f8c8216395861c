/* Layouts of published checkpoints: which one a file is in, and the expansion of its table for one model; see layout_impl.h. */
#include "teachers/layout_impl.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Of a family, the first is what the random writer uses. A file is in the last of those that fit: that with a mark. */
static const agglo_layout *const layouts[] = {
    &agglo_layout_clip_hf,      &agglo_layout_clip_open,  &agglo_layout_clip_timm, &agglo_layout_dinov2_hf,
    &agglo_layout_dinov2_state, &agglo_layout_dinov2_hub, &agglo_layout_sam_hf,    &agglo_layout_sam_original,
};

/* ---- names ---- */

char *agglo_layout_block(const agglo_layout_found *where, int i, char *out, size_t n_bytes)
{
    if (where->chunk > 0) {
        snprintf(out, n_bytes, "%s%d.%d.", where->layout->block, i / where->chunk, i);
    } else {
        snprintf(out, n_bytes, "%s%d.", where->layout->block, i);
    }
    return out;
}

char *agglo_layout_name(const agglo_layout_found *where, int block, const char *source, char *out, size_t n_bytes)
{
    bool rooted = source[0] == '/';
    char start[64] = "";

    if (block >= 0) {
        agglo_layout_block(where, block, start, sizeof start);
    }
    snprintf(out, n_bytes, "%s%s%s", rooted ? where->outer : where->prefix, start, rooted ? source + 1 : source);
    return out;
}

const agglo_st_tensor *agglo_layout_get(const agglo_layout_found *where, const agglo_weights *weights, int block,
                                        const char *source)
{
    char name[256];

    return source != NULL ? agglo_weights_find(weights, agglo_layout_name(where, block, source, name, sizeof name))
                          : NULL;
}

/* ---- which layout ---- */

/* The layout with its probe at this name? */
static bool probe_at(const agglo_weights *weights, const agglo_layout *layout, const char *name,
                     agglo_layout_found *out)
{
    size_t n_name = strlen(name);

    for (const char *const *p = layout->prefixes; *p != NULL; p++) {
        size_t n_tail = strlen(*p) + strlen(layout->probe), n_outer = n_name - n_tail;
        bool marked = layout->marks == NULL;

        if (n_name < n_tail || n_outer >= sizeof out->outer || (n_outer > 0 && name[n_outer - 1] != '.') ||
            strncmp(name + n_outer, *p, strlen(*p)) != 0 || strcmp(name + n_outer + strlen(*p), layout->probe) != 0) {
            continue;
        }
        *out = (agglo_layout_found){.layout = layout};
        memcpy(out->outer, name, n_outer);
        snprintf(out->prefix, sizeof out->prefix, "%s%s", out->outer, *p);
        for (const char *const *m = layout->marks; !marked && *m != NULL; m++) {
            marked = agglo_layout_get(out, weights, -1, *m) != NULL;
        }
        if (marked) {
            return true;
        }
    }
    return false;
}

/* A checkpoint of self-distillation holds two copies; the one that is published and used is the teacher's average. */
static bool is_students(const agglo_layout_found *f)
{
    return strncmp(f->outer, "student.", 8) == 0 || strstr(f->outer, ".student.") != NULL;
}

/* Blocks named "blocks.<chunk>.<block>.", the block counted through: how many are in chunk 0. 0: not so named. */
static int chunk_of(const agglo_weights *weights, const agglo_layout_found *f)
{
    const agglo_layout *layout = f->layout;
    char name[160];
    int n = 0;

    if (!layout->may_chunk) {
        return 0;
    }
    do {
        snprintf(name, sizeof name, "%s0.%d.%s", layout->block, n, layout->in_block[0].source);
    } while (agglo_layout_get(f, weights, -1, name) != NULL && ++n < 1024);
    return n;
}

static agglo_status check_refused(const agglo_weights *weights, const agglo_layout_found *f, agglo_err *err)
{
    char start[160];

    for (const char *const *r = f->layout->refused; r != NULL && *r != NULL; r += 2) {
        int n = snprintf(start, sizeof start, "%s%s", f->outer, r[0]);

        for (size_t i = 0; i < agglo_weights_count(weights); i++) {
            const char *name = agglo_weights_at(weights, i)->name;

            if (strncmp(name, start, (size_t)n) == 0) {
                return agglo_fail(err, AGGLO_E_UNSUPPORTED, "tensor %.120s: %s is not supported", name, r[1]);
            }
        }
    }
    return AGGLO_OK;
}

agglo_status agglo_layout_find(const agglo_weights *weights, agglo_layout_found *out, agglo_err *err)
{
    agglo_layout_found f;
    bool found = false;

    for (size_t i = 0; i < agglo_weights_count(weights); i++) {
        const char *name = agglo_weights_at(weights, i)->name;

        for (size_t k = AGGLO_COUNT(layouts); k-- > 0;) {
            if (!probe_at(weights, layouts[k], name, &f)) {
                continue;
            }
            if (found && is_students(&f) == is_students(out)) {
                agglo_fail(err, AGGLO_E_UNSUPPORTED, "there are two image towers, at %s%s and %s%s: which is not known",
                           out->prefix, out->layout->probe, f.prefix, f.layout->probe);
                return agglo_at(err, "%s", agglo_weights_path(weights));
            }
            if (!found || is_students(out)) {
                *out = f;
            }
            found = true;
            break;
        }
    }
    if (!found) {
        agglo_fail(err, AGGLO_E_UNSUPPORTED,
                   "no tensor names of a known teacher (CLIP of transformers, OpenCLIP or timm, DINOv2 of transformers "
                   "or torch-hub, SAM of transformers or segment_anything)");
    } else {
        out->chunk = chunk_of(weights, out);
        check_refused(weights, out, err);
    }
    return err->status != AGGLO_OK ? agglo_at(err, "%s", agglo_weights_path(weights)) : AGGLO_OK;
}

void agglo_layout_of_family(const char *family, agglo_layout_found *out)
{
    *out = (agglo_layout_found){0};
    for (size_t i = 0; i < AGGLO_COUNT(layouts) && out->layout == NULL; i++) {
        if (strcmp(layouts[i]->family, family) == 0) {
            out->layout = layouts[i];
            snprintf(out->prefix, sizeof out->prefix, "%s", layouts[i]->prefixes[0]);
        }
    }
    AGGLO_ASSERT(out->layout != NULL);
}

/* ---- expansion ---- */

static bool row_applies(const agglo_layout_row *row, const agglo_teacher_config *c)
{
    switch (row->when) {
    case AGGLO_ROW_ALWAYS:
        return true;
    case AGGLO_ROW_PROJ:
        return c->proj > 0;
    case AGGLO_ROW_REGISTERS:
        return c->registers > 0;
    case AGGLO_ROW_PLAIN:
        return !c->swiglu;
    case AGGLO_ROW_SWIGLU:
        return c->swiglu;
    case AGGLO_ROW_NECK:
        return c->neck > 0;
    }
    return false;
}

static int64_t extent(char letter, const agglo_teacher_config *c, int index)
{
    int64_t grid = c->image / c->patch;

    switch (letter) {
    case 'd':
        return c->dim;
    case 't':
        return 3 * (int64_t)c->dim;
    case 'h':
        return c->swiglu ? 2 * (int64_t)c->mlp_dim : c->mlp_dim;
    case 'm':
        return c->mlp_dim;
    case 'c':
        return 3;
    case 'p':
        return c->patch;
    case 'n':
        return 1 + grid * grid;
    case 'r':
        return c->registers;
    case 'e':
        return c->proj;
    case 'g':
        return grid;
    case 'o':
        return c->neck;
    case '3':
        return 3;
    case 'k':
        return c->dim / c->heads;
    case 's':
        return 2 * (agglo_teacher_is_global(c, index) ? grid : c->window) - 1;
    default:
        AGGLO_ASSERT(letter == '1');
        return 1;
    }
}

static void fill(agglo_layout_tensor *t, const agglo_layout_row *row, const agglo_teacher_config *config,
                 const agglo_layout_found *where, const char *param_block, int block)
{
    agglo_layout_name(where, block, row->source, t->name, sizeof t->name);
    if (row->param != NULL) {
        snprintf(t->param, sizeof t->param, "%s%s", param_block, row->param);
    }
    t->rank = (int)strlen(row->shape);
    for (int i = 0; i < t->rank; i++) {
        t->shape[i] = extent(row->shape[i], config, block);
    }
    t->first_row = row->part * t->shape[0];
    t->transposed = row->transposed;
    t->kind = row->kind;
}

agglo_status agglo_layout_expand(const agglo_layout_found *where, const agglo_teacher_config *config,
                                 agglo_layout_tensor **out, size_t *n, agglo_err *err)
{
    const agglo_layout *layout = where->layout;
    size_t most = layout->n_top + layout->n_in_block * (size_t)config->depth;
    char param_block[32] = "";
    size_t k = 0;

    *n = 0;
    *out = (agglo_layout_tensor *)agglo_alloc(most, sizeof **out, err);
    if (*out == NULL) {
        return err->status;
    }
    for (size_t i = 0; i < layout->n_top; i++) {
        if (row_applies(&layout->top[i], config)) {
            fill(&(*out)[k++], &layout->top[i], config, where, param_block, -1);
        }
    }
    for (int b = 0; b < config->depth; b++) {
        snprintf(param_block, sizeof param_block, "blocks.%d.", b);
        for (size_t i = 0; i < layout->n_in_block; i++) {
            if (row_applies(&layout->in_block[i], config)) {
                fill(&(*out)[k++], &layout->in_block[i], config, where, param_block, b);
            }
        }
    }
    *n = k;
    return AGGLO_OK;
}

/* ---- the rest of the file ---- */

static int by_name(const void *a, const void *b)
{
    return strcmp(((const agglo_layout_tensor *)a)->name, ((const agglo_layout_tensor *)b)->name);
}

/* The prefix and the block's word, then a number: a tensor of a block that the model should know. */
static bool in_blocks(const agglo_layout_found *where, const char *name)
{
    size_t n_prefix = strlen(where->prefix), n_block = strlen(where->layout->block);

    return strncmp(name, where->prefix, n_prefix) == 0 &&
           strncmp(name + n_prefix, where->layout->block, n_block) == 0 &&
           isdigit((unsigned char)name[n_prefix + n_block]);
}

agglo_status agglo_layout_unknown(const agglo_layout_found *where, const agglo_weights *weights,
                                  agglo_layout_tensor *tensors, size_t n_tensors, const char ***out, size_t *n,
                                  agglo_err *err)
{
    size_t count = agglo_weights_count(weights), n_outer = strlen(where->outer);
    const char **names = (const char **)agglo_alloc(count, sizeof *names, err);

    *out = names;
    *n = 0;
    if (names == NULL) {
        return err->status;
    }
    qsort(tensors, n_tensors, sizeof *tensors, by_name);
    for (size_t i = 0; i < count; i++) {
        const char *name = agglo_weights_at(weights, i)->name;
        bool within = strncmp(name, where->outer, n_outer) == 0, known = false;
        agglo_layout_tensor key = {0};

        if (strlen(name) < sizeof key.name) {
            memcpy(key.name, name, strlen(name));
            known = bsearch(&key, tensors, n_tensors, sizeof *tensors, by_name) != NULL;
        }
        for (const char *const *p = where->layout->ignored; !known && within && *p != NULL; p++) {
            known = strncmp(name + n_outer, *p, strlen(*p)) == 0;
        }
        if (known) {
            continue;
        }
        if (in_blocks(where, name)) {
            return agglo_fail(err, AGGLO_E_UNSUPPORTED, "tensor %.140s is no part of a %s block as %s stores it", name,
                              where->layout->family, where->layout->name);
        }
        names[(*n)++] = name;
    }
    return AGGLO_OK;
}
