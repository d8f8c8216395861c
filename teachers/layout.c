/* Layouts of published checkpoints: expansion of a layout's table for one model; see layout_impl.h. */
#include "teachers/layout_impl.h"

#include <stdio.h>
#include <string.h>

static const agglo_layout *const layouts[] = {&agglo_layout_clip_hf, &agglo_layout_dinov2_hf};

const agglo_layout *agglo_layout_find(const agglo_weights *weights, const char **prefix)
{
    char name[160];

    for (size_t i = 0; i < AGGLO_COUNT(layouts); i++) {
        for (const char *const *p = layouts[i]->prefixes; *p != NULL; p++) {
            snprintf(name, sizeof name, "%s%s", *p, layouts[i]->probe);
            if (agglo_weights_find(weights, name) != NULL) {
                *prefix = *p;
                return layouts[i];
            }
        }
    }
    return NULL;
}

const agglo_layout *agglo_layout_of_family(const char *family)
{
    for (size_t i = 0; i < AGGLO_COUNT(layouts); i++) {
        if (strcmp(layouts[i]->family, family) == 0) {
            return layouts[i];
        }
    }
    return NULL;
}

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
    }
    return false;
}

static int64_t extent(char letter, const agglo_teacher_config *c)
{
    int64_t grid = c->image / c->patch;

    switch (letter) {
    case 'd':
        return c->dim;
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
    default:
        AGGLO_ASSERT(letter == '1');
        return 1;
    }
}

static void fill(agglo_layout_tensor *t, const agglo_layout_row *row, const agglo_teacher_config *config,
                 const char *prefix, const char *block, const char *param_block)
{
    bool rooted = row->source[0] == '/';

    snprintf(t->name, sizeof t->name, "%s%s%s", rooted ? "" : prefix, block, rooted ? row->source + 1 : row->source);
    if (row->param != NULL) {
        snprintf(t->param, sizeof t->param, "%s%s", param_block, row->param);
    }
    t->rank = (int)strlen(row->shape);
    for (int i = 0; i < t->rank; i++) {
        t->shape[i] = extent(row->shape[i], config);
    }
    t->first_row = row->part * t->shape[0];
    t->kind = row->kind;
}

agglo_status agglo_layout_expand(const agglo_layout *layout, const agglo_teacher_config *config, const char *prefix,
                                 agglo_layout_tensor **out, size_t *n, agglo_err *err)
{
    size_t most = layout->n_top + layout->n_in_block * (size_t)config->depth;
    char block[64] = "", param_block[32] = "";
    size_t k = 0;

    *n = 0;
    *out = (agglo_layout_tensor *)agglo_alloc(most, sizeof **out, err);
    if (*out == NULL) {
        return err->status;
    }
    for (size_t i = 0; i < layout->n_top; i++) {
        if (row_applies(&layout->top[i], config)) {
            fill(&(*out)[k++], &layout->top[i], config, prefix, block, param_block);
        }
    }
    for (int b = 0; b < config->depth; b++) {
        snprintf(block, sizeof block, "%s%d.", layout->block, b);
        snprintf(param_block, sizeof param_block, "blocks.%d.", b);
        for (size_t i = 0; i < layout->n_in_block; i++) {
            if (row_applies(&layout->in_block[i], config)) {
                fill(&(*out)[k++], &layout->in_block[i], config, prefix, block, param_block);
            }
        }
    }
    *n = k;
    return AGGLO_OK;
}
