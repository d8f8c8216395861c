/* What a checkpoint is: shapes of its tensors, then what is stated in and beside it, the caller's word and the registry; see teacher.h. */
#include "base/log.h"
#include "teachers/facts_impl.h"
#include "teachers/load.h"
#include "teachers/recognise_impl.h"
#include "teachers/sam_impl.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* An extent that becomes an int: bounded so that sums and small multiples of it stay one. agglo_teacher_check has the limits of a model; products
 * before it are of sides of a grid (at most 8192) or of doubles. */
static bool extent(const agglo_st_tensor *t, int axis, int *out)
{
    if (axis >= t->rank || t->shape[axis] < 1 || t->shape[axis] > 1 << 24) {
        return false;
    }
    *out = (int)t->shape[axis];
    return true;
}

static int count_blocks(const agglo_weights *weights, const agglo_layout_found *f)
{
    int n = 0;

    while (n < 1024 && agglo_layout_get(f, weights, n, f->layout->in_block[0].source) != NULL) {
        n++;
    }
    return n;
}

/* A classifier where the projection would be: its bias is not the zeros that timm puts behind CLIP's. A float's zero is zero bytes, the last
 * of which may hold a sign. */
static bool is_zero(const agglo_st_tensor *t)
{
    size_t size = t->n_elements > 0 ? t->n_bytes / (size_t)t->n_elements : 1;
    bool is_float = t->dtype == AGGLO_F32 || t->dtype == AGGLO_F16 || t->dtype == AGGLO_BF16 || t->dtype == AGGLO_F64;

    for (size_t i = 0; i < t->n_bytes; i++) {
        bool last = is_float && i % size == size - 1;

        if ((t->data[i] & (last ? 0x7f : 0xff)) != 0) {
            return false;
        }
    }
    return true;
}

static agglo_status read_projection(const agglo_weights *weights, const agglo_layout_found *f, agglo_teacher_config *c,
                                    agglo_err *err)
{
    const agglo_layout *layout = f->layout;
    const agglo_st_tensor *t = agglo_layout_get(f, weights, -1, layout->projection),
                          *bias = agglo_layout_get(f, weights, -1, layout->projection_bias);
    bool transposed = false;

    c->proj = 0;
    if (t == NULL || (bias != NULL && !is_zero(bias))) {
        return AGGLO_OK;
    }
    for (size_t i = 0; i < layout->n_top; i++) {
        transposed |= layout->top[i].transposed && strcmp(layout->top[i].source, layout->projection) == 0;
    }
    return t->rank == 2 && extent(t, transposed ? 1 : 0, &c->proj)
               ? AGGLO_OK
               : agglo_load_refuse_in(f, -1, layout->projection, t, transposed ? "[dim, proj]" : "[proj, dim]", err);
}

/* dim, patch, depth, mlp_dim, swiglu, image, registers, proj: read off the tensors. */
static agglo_status read_shapes(const agglo_weights *weights, const agglo_layout_found *f, agglo_teacher_config *c,
                                agglo_err *err)
{
    const agglo_layout *layout = f->layout;
    const agglo_st_tensor *probe = agglo_layout_get(f, weights, -1, layout->probe), *t;
    const char *mlp;
    int rows = 0, grid;
    bool halves; /* both of SwiGLU's in one tensor */

    if (probe->rank != 4 || probe->shape[1] != 3 || probe->shape[2] != probe->shape[3] || !extent(probe, 0, &c->dim) ||
        !extent(probe, 2, &c->patch)) {
        return agglo_load_refuse_in(f, -1, layout->probe, probe, "[dim, 3, patch, patch]", err);
    }
    c->depth = count_blocks(weights, f);
    if (c->depth == 0) {
        return agglo_load_refuse_in(f, 0, layout->in_block[0].source, NULL, "[dim]", err);
    }
    t = agglo_layout_get(f, weights, 0, layout->mlp_swiglu);
    c->swiglu = t != NULL;
    mlp = c->swiglu ? layout->mlp_swiglu : layout->mlp_plain;
    if (t == NULL) {
        t = agglo_layout_get(f, weights, 0, mlp);
    }
    halves = c->swiglu && !layout->swiglu_apart;
    if (t == NULL || t->rank != 2 || !extent(t, 0, &c->mlp_dim) || (halves && c->mlp_dim % 2 != 0)) {
        return agglo_load_refuse_in(f, 0, mlp, t, halves ? "[2 * mlp_dim, dim]" : "[mlp_dim, dim]", err);
    }
    c->mlp_dim = halves ? c->mlp_dim / 2 : c->mlp_dim;
    c->heads = 0; /* until someone says it */
    c->registers = 0;
    c->proj = 0;
    if (layout->read_shapes != NULL) {
        return layout->read_shapes(weights, f, c, err);
    }

    t = agglo_layout_get(f, weights, -1, layout->positions);
    if (t == NULL || t->rank < 2 || !extent(t, t->rank - 2, &rows)) {
        return agglo_load_refuse_in(f, -1, layout->positions, t, "[1 + grid * grid, dim]", err);
    }
    grid = (int)lround(sqrt((double)(rows - 1)));
    if (grid < 1 || grid * grid != rows - 1 || grid > 8192 / c->patch) {
        return agglo_load_refuse_in(f, -1, layout->positions, t, "[1 + grid * grid, dim]", err);
    }
    c->image = grid * c->patch;

    t = agglo_layout_get(f, weights, -1, layout->registers);
    if (t != NULL && (t->rank != 3 || !extent(t, 1, &c->registers))) {
        return agglo_load_refuse_in(f, -1, layout->registers, t, "[1, registers, dim]", err);
    }
    return read_projection(weights, f, c, err);
}

/* The activation that the caller names, or that an architecture's name stands for. Nothing in the weights tells it. */
static agglo_status settle_act(const agglo_weights *weights, const agglo_facts *known, const char *act,
                               agglo_teacher_file *out, agglo_err *err)
{
    agglo_teacher_config *c = &out->config, named;
    const char *path = agglo_weights_path(weights);
    agglo_act chosen;

    c->act = known->act_from != NULL ? known->act : AGGLO_ACT_GELU;
    out->act_from = known->act_from;
    if (act != NULL && act[0] != '\0') {
        if (!agglo_teacher_act_of(act, &chosen)) {
            return agglo_fail(err, AGGLO_E_CONFIG, "act: \"%.32s\" is neither gelu nor quick_gelu", act);
        }
        if (known->act_from != NULL && chosen != known->act) {
            agglo_log(AGGLO_LOG_WARN, "%s: %s states %s, %s is used as asked for", path, known->act_from,
                      agglo_teacher_act_name(known->act), act);
        }
        c->act = chosen;
        out->act_from = "asked for";
        return AGGLO_OK;
    }
    if (known->act_from != NULL) {
        return AGGLO_OK;
    }
    out->act_from = strcmp(c->family, "clip") == 0 ? "assumed" : "as published";
    if (agglo_teacher_is_known(c->arch) && agglo_teacher_named(c->arch, &named, err) == AGGLO_OK) {
        c->act = named.act;
    }
    if (strcmp(c->family, "clip") == 0) {
        agglo_log(AGGLO_LOG_WARN,
                  "%s: nothing states the activation, %s is assumed for %s: OpenAI's, MetaCLIP's and DFN's models are "
                  "quick_gelu, LAION's and DataComp's gelu (act, or a config beside it, tells)",
                  path, agglo_teacher_act_name(c->act), c->arch);
    }
    return AGGLO_OK;
}

/* Of the tensors (SAM's tell them), of a statement, of the registered architecture `arch` (NULL: none is asked for), or of the width. All that
 * say it must agree: a wrong number of heads fits the tensors and gives other features. */
static agglo_status settle_heads(const agglo_facts *known, const char *arch, agglo_teacher_file *out, agglo_err *err)
{
    agglo_teacher_config *c = &out->config, named = {0};

    if (arch != NULL && !agglo_teacher_is_family(arch) && agglo_teacher_named(arch, &named, err) != AGGLO_OK) {
        return err->status;
    }
    if (c->heads != 0) {
        out->heads_from = "the tensors";
        if (known->heads_from != NULL && known->heads != c->heads) {
            return agglo_facts_disagree(err, "heads", known->heads, c->heads);
        }
    } else if (known->heads_from != NULL) {
        out->heads_from = known->heads_from;
        c->heads = known->heads;
    } else if (named.heads != 0) {
        out->heads_from = "the architecture asked for";
        c->heads = named.heads;
    } else {
        out->heads_from = "the width, as published models have it";
        c->heads = agglo_teacher_heads_of(c->family, c->dim);
    }
    if (named.heads != 0 && named.heads != c->heads) {
        return agglo_fail(err, AGGLO_E_CONFIG, "heads are %d (%s), %s has %d", c->heads, out->heads_from, arch,
                          named.heads);
    }
    return AGGLO_OK;
}

static agglo_status recognise(const agglo_weights *weights, const agglo_layout_found *found, const char *arch,
                              const char *act, agglo_teacher_file *out, agglo_err *err)
{
    const agglo_layout *layout = found->layout;
    agglo_teacher_config *c = &out->config, named;
    agglo_facts known = {0};
    bool asked = arch != NULL && arch[0] != '\0';

    if (agglo_teacher_named(layout->family, c, err) != AGGLO_OK || read_shapes(weights, found, c, err) != AGGLO_OK) {
        return agglo_at(err, "%s", agglo_weights_path(weights));
    }
    if (agglo_facts_metadata(&known, weights, c, err) != AGGLO_OK ||
        agglo_facts_beside(&known, weights, layout, c, err) != AGGLO_OK) {
        return err->status;
    }
    if (asked && agglo_teacher_matches(c, arch, err) != AGGLO_OK) {
        return agglo_at(err, "%s", agglo_weights_path(weights));
    }
    if (known.windows_from != NULL) {
        agglo_sam_adopt(c, known.window, known.global_layers);
    }
    if (settle_heads(&known, asked ? arch : NULL, out, err) != AGGLO_OK) {
        return agglo_at(err, "%s", agglo_weights_path(weights));
    }
    c->norm_eps = known.eps_from != NULL ? known.norm_eps : c->norm_eps;
    out->pixels_from = known.pixels_from != NULL ? known.pixels_from : "the family's default";
    if (known.pixels_from != NULL) {
        memcpy(c->mean, known.mean, sizeof c->mean);
        memcpy(c->std, known.std, sizeof c->std);
    }
    c->act = AGGLO_ACT_GELU;
    if (agglo_teacher_check(c, err) != AGGLO_OK) { /* names the architecture; what is wrong here is the file's */
        err->status = AGGLO_E_DATA;
        return agglo_at(err, "%s", agglo_weights_path(weights));
    }
    if (settle_act(weights, &known, act, out, err) != AGGLO_OK) {
        return agglo_at(err, "%s", agglo_weights_path(weights));
    }
    if (known.fit_from != NULL) {
        c->fit = known.fit;
        c->filter = known.filter;
    } else if (agglo_teacher_is_known(c->arch) && agglo_teacher_named(c->arch, &named, err) == AGGLO_OK) {
        c->fit = named.fit;
        c->filter = named.filter;
    }
    return AGGLO_OK;
}

agglo_status agglo_teacher_recognise_in(const agglo_weights *weights, const agglo_layout_found *found, const char *arch,
                                        const char *act, agglo_teacher_file *out, agglo_layout_tensor **tensors,
                                        size_t *n_tensors, agglo_err *err)
{
    const char **unknown = NULL;
    size_t n_unknown = 0;

    *out = (agglo_teacher_file){.layout = found->layout->name, .hub = found->layout->hub};
    memcpy(out->prefix, found->outer, sizeof out->prefix);
    *tensors = NULL;
    if (recognise(weights, found, arch, act, out, err) != AGGLO_OK) {
        return err->status;
    }
    if (agglo_layout_expand(found, &out->config, tensors, n_tensors, err) != AGGLO_OK ||
        agglo_load_check(weights, *tensors, *n_tensors, err) != AGGLO_OK ||
        agglo_layout_unknown(found, weights, *tensors, *n_tensors, &unknown, &n_unknown, err) != AGGLO_OK) {
        agglo_at(err, "%s", agglo_weights_path(weights));
        goto done;
    }
    out->unknown = (char **)agglo_alloc(n_unknown, sizeof *out->unknown, err);
    for (; out->unknown != NULL && out->n_unknown < n_unknown; out->n_unknown++) {
        if ((out->unknown[out->n_unknown] = agglo_strdup(unknown[out->n_unknown], err)) == NULL) {
            break;
        }
    }
done:
    agglo_free((void *)unknown);
    if (err->status != AGGLO_OK) {
        agglo_free(*tensors);
        *tensors = NULL;
        agglo_teacher_file_clear(out);
    }
    return err->status;
}

agglo_status agglo_teacher_recognise(const agglo_weights *weights, const char *arch, const char *act,
                                     agglo_teacher_file *out, agglo_err *err)
{
    agglo_layout_tensor *tensors = NULL;
    agglo_layout_found found;
    size_t n_tensors = 0;

    *out = (agglo_teacher_file){0};
    if (agglo_layout_find(weights, &found, err) == AGGLO_OK) {
        agglo_teacher_recognise_in(weights, &found, arch, act, out, &tensors, &n_tensors, err);
    }
    agglo_free(tensors);
    return err->status != AGGLO_OK ? agglo_doing(err, "cannot recognise weights") : AGGLO_OK;
}

void agglo_teacher_file_clear(agglo_teacher_file *file)
{
    for (size_t i = 0; i < file->n_unknown; i++) {
        agglo_free(file->unknown[i]);
    }
    agglo_free(file->unknown);
    file->unknown = NULL;
    file->n_unknown = 0;
}
