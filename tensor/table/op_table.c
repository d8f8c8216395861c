/* The table of operators: its families, and what every case has. */
#include "tensor/table/table_impl.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const agglo_op_family *const families[] = {
    &agglo_family_linear, &agglo_family_elementwise,    &agglo_family_norm,   &agglo_family_attention,
    &agglo_family_tokens, &agglo_family_loss,           &agglo_family_optim,  &agglo_family_conv,
    &agglo_family_maps,   &agglo_family_attention_bias, &agglo_family_gather, &agglo_family_resample,
};

/* behind the activation's three bits */
static const char *const flag_names[] = {
    "bias",      "pre",    "accumulate", "gamma",        "in-place",    "lse",  "pos",   "pos-each", "from-f16",
    "from-bf16", "to-f16", "to-bf16",    "some-invalid", "all-invalid", "clip", "guard", "extents",
};
static const char *const act_names[] = {NULL, "gelu", "quick-gelu", "silu", "relu"};

const agglo_op_family *const *agglo_op_table(size_t *n_families)
{
    *n_families = AGGLO_COUNT(families);
    return families;
}

agglo_op_case agglo_op_case_at(const agglo_op_case *row, int64_t batch)
{
    agglo_op_case c = *row;

    for (int i = 0; i < AGGLO_OP_DIMS; i++) {
        c.d[i] = c.d[i] < 0 ? -c.d[i] * batch : c.d[i];
    }
    return c;
}

const char *agglo_op_case_text(const agglo_op_case *c, agglo_dtype type, char *out, size_t size)
{
    const char *dims = c->op->dims;
    size_t used = (size_t)snprintf(out, size, "%s", c->op->name);

    for (int i = 0; *dims != '\0' && used < size; i++) {
        int n = (int)strcspn(dims, " ");

        used += (size_t)snprintf(out + used, size - used, " %.*s=%lld", n, dims, (long long)c->d[i]);
        dims += n;
        dims += *dims == ' ';
    }
    if (used < size && agglo_op_act(c) != AGGLO_ACT_NONE) {
        used += (size_t)snprintf(out + used, size - used, " %s", act_names[agglo_op_act(c)]);
    }
    for (size_t i = 0; i < AGGLO_COUNT(flag_names) && used < size; i++) {
        if (agglo_op_has(c, UINT64_C(1) << (i + 3))) {
            used += (size_t)snprintf(out + used, size - used, " %s", flag_names[i]);
        }
    }
    if (used < size) {
        snprintf(out + used, size - used, " %s", agglo_dtype_name(type));
    }
    return out;
}

agglo_status agglo_op_case_list(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t, agglo_optim **list,
                                agglo_err *err)
{
    *list = c->op->list != NULL ? c->op->list(be, c, t, err) : NULL;
    return *list != NULL || c->op->list == NULL ? AGGLO_OK : err->status;
}

void agglo_op_case_run(agglo_backend *be, const agglo_op_case *c, agglo_optim *list, agglo_tensor *t)
{
    if (c->op->run_list != NULL) {
        c->op->run_list(be, c, list, t);
    } else {
        c->op->run(be, c, t);
    }
}

int64_t agglo_op_array_count(const agglo_op_array *a)
{
    int64_t n = 1;

    for (int i = 0; i < a->rank; i++) {
        n *= a->shape[i];
    }
    return n;
}

double agglo_op_case_bytes(const agglo_op_case *c, agglo_dtype type)
{
    agglo_op_array a[AGGLO_OP_ARRAYS] = {0};
    double sum = 0.0;

    if (c->op->bytes != NULL) {
        return c->op->bytes(c, type);
    }
    c->op->shape(c, type, a);
    for (int i = 0; i < c->op->n_arrays; i++) {
        double n_bytes = (double)agglo_op_array_count(&a[i]) * (double)agglo_dtype_size(a[i].dtype);

        switch (a[i].role) {
        case AGGLO_ARRAY_IN:
        case AGGLO_ARRAY_OUT:
        case AGGLO_ARRAY_DERIVED:
        case AGGLO_ARRAY_FIXED:
            sum += n_bytes;
            break;
        case AGGLO_ARRAY_INOUT:
            sum += 2.0 * n_bytes;
            break;
        case AGGLO_ARRAY_ABSENT:
        case AGGLO_ARRAY_ASIDE:
            break;
        }
    }
    return sum;
}

void agglo_table_set(agglo_op_array *a, agglo_array_role role, agglo_dtype dtype, int rank, const int64_t *shape)
{
    a->role = role;
    a->dtype = dtype;
    a->rank = rank;
    memcpy(a->shape, shape, (size_t)rank * sizeof *shape);
}

float agglo_table_attention_scale(int64_t head_dim)
{
    return (float)(1.0 / sqrt((double)head_dim));
}
