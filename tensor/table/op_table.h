/* The one table of operators x shapes x types: what `agglo bench ops` times and what tests/parity/tensor compares with the reference.
 *
 * An operator says which arrays a case of it has and how to run it on them; a case is an operator with its extents, flags and
 * storage types. Here stands no expected result: the double-precision reference of every operator, found by its name, is the tests'.
 * A family of operators has one file, table_FAMILY.c, which exports one agglo_op_family; op_table.c lists them.
 *
 *   row --agglo_op_case_at(batch)--> case --op->shape(type)--> arrays, filled by whoever runs it by their role --> op->run
 *
 * All of it is constant data; any thread.
 */
#ifndef AGGLO_TENSOR_TABLE_OP_TABLE_H
#define AGGLO_TENSOR_TABLE_OP_TABLE_H

#include "tensor/ops.h"
#include "tensor/ops_attention_bias.h"
#include "tensor/ops_conv.h"
#include "tensor/ops_gather.h"
#include "tensor/ops_resample.h"

#ifdef __cplusplus
extern "C" {
#endif

#define AGGLO_OP_ARRAYS 16 /* most arrays of an operator */
#define AGGLO_OP_DIMS   10 /* most extents of a case */

typedef enum agglo_array_role {
    AGGLO_ARRAY_ABSENT, /* this case has no such array: its tensor has no data (see agglo_op_optional) */
    AGGLO_ARRAY_IN,     /* drawn, read */
    AGGLO_ARRAY_OUT,    /* written */
    AGGLO_ARRAY_INOUT,  /* drawn, then added to or changed */
    AGGLO_ARRAY_DERIVED, /* read; a function of the others that only the reference can tell (statistics of a forward pass). For timing alone it
                            is drawn */
    AGGLO_ARRAY_FIXED, /* read; filled by op->fill (indices, masks) */
    AGGLO_ARRAY_ASIDE, /* drawn, but not read: where gradients are compared with central differences of the forward pass */
} agglo_array_role;

typedef enum agglo_array_draw {
    AGGLO_DRAW_NORMAL, /* N(0, 1) */
    AGGLO_DRAW_SQUARE, /* its square: variances, second moments */
    AGGLO_DRAW_SMALL,  /* an eighth of it: position tables, whose products with a query are not scaled */
} agglo_array_draw;

typedef struct agglo_op_array {
    agglo_array_role role;
    agglo_array_draw draw; /* of floating dtypes; others are uniform bytes */
    agglo_dtype dtype;
    int rank;
    int64_t shape[AGGLO_MAX_RANK];
} agglo_op_array;

/* Flags of a case. Each has one meaning in all operators; op->flags says which an operator knows. The three lowest bits are an
 * agglo_act. A name for each stands in op_table.c, in this order. */
#define AGGLO_OP_ACT           UINT64_C(7)
#define AGGLO_OP_BIAS          (UINT64_C(1) << 3)
#define AGGLO_OP_PRE           (UINT64_C(1) << 4) /* keeps the argument of the activation */
#define AGGLO_OP_ACCUMULATE    (UINT64_C(1) << 5) /* the input gradient is added to */
#define AGGLO_OP_GAMMA         (UINT64_C(1) << 6) /* LayerScale */
#define AGGLO_OP_IN_PLACE      (UINT64_C(1) << 7) /* parity alone: copies first */
#define AGGLO_OP_LSE           (UINT64_C(1) << 8)
#define AGGLO_OP_POS           (UINT64_C(1) << 9)
#define AGGLO_OP_POS_PER_IMAGE (UINT64_C(1) << 10)
#define AGGLO_OP_FROM_F16      (UINT64_C(1) << 11) /* a target or source in this dtype whatever the storage type */
#define AGGLO_OP_FROM_BF16     (UINT64_C(1) << 12)
#define AGGLO_OP_TO_F16        (UINT64_C(1) << 13)
#define AGGLO_OP_TO_BF16       (UINT64_C(1) << 14)
#define AGGLO_OP_SOME_INVALID  (UINT64_C(1) << 15) /* of the samples of a batch */
#define AGGLO_OP_ALL_INVALID   (UINT64_C(1) << 16)
#define AGGLO_OP_CLIP          (UINT64_C(1) << 17) /* gradients, by their norm */
#define AGGLO_OP_GUARD         (UINT64_C(1) << 18) /* the norm is taken, and decides */
#define AGGLO_OP_EXTENTS       (UINT64_C(1) << 19) /* pictures smaller than their input */

/* Storage types of a row: one case for each. */
#define AGGLO_OP_F32  1u
#define AGGLO_OP_BF16 2u

/* What a row is for: its shapes are small and odd for parity, real for a bench, never both. */
#define AGGLO_USE_PARITY      1u
#define AGGLO_USE_DIFFERENCES 2u /* parity, and gradients against central differences */
#define AGGLO_USE_BENCH       4u
#define AGGLO_USE_SLOW        8u /* parity, of which the reference takes seconds */

typedef struct agglo_op agglo_op;

typedef struct agglo_op_case {
    const agglo_op *op;
    int64_t d[AGGLO_OP_DIMS]; /* extents, named by op->dims; in rows for a bench -n stands for n times the batch */
    uint64_t flags;
    unsigned types;    /* AGGLO_OP_F32 | AGGLO_OP_BF16 */
    unsigned use;      /* AGGLO_USE_* */
    const char *label; /* rows for a bench: whose shape it is, "ViT-B qkv" */
} agglo_op_case;

struct agglo_op {
    const char *name;
    const char *dims; /* "m n k" */
    uint64_t flags;   /* that exist */
    int n_arrays;
    /* Set roles, dtypes and extents of a[0..n_arrays), zeroed before. `type` is the storage type: activations, their gradients and the
     * weights of products are of it, everything else is F32 (tensor/ops.h). */
    void (*shape)(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a);
    /* Write array `i`, of role FIXED, at `data` in host memory. NULL: there is none. */
    void (*fill)(const agglo_op_case *c, int i, void *data);
    void (*run)(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t);
    /* Floating-point operations, a multiply-add being two and an activation or other elementary function one. */
    double (*flops)(const agglo_op_case *c);
    /* Bytes moved to and from memory at the least; NULL: every array once for each time it is read or written. */
    double (*bytes)(const agglo_op_case *c, agglo_dtype type);
    /* Operators over lists of parameters: the list is made once of a case's tensors, NULL with `err` filled where that fails, and `run`
     * is NULL. Other operators have neither. */
    agglo_optim *(*list)(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t, agglo_err *err);
    void (*run_list)(agglo_backend *be, const agglo_op_case *c, agglo_optim *list, agglo_tensor *t);
};

typedef struct agglo_op_family {
    const char *name;
    const agglo_op_case *cases;
    size_t n_cases;
} agglo_op_family;

/* All families; static storage. */
const agglo_op_family *const *agglo_op_table(size_t *n_families);

/* The row with its extents multiplied out for this batch. */
agglo_op_case agglo_op_case_at(const agglo_op_case *row, int64_t batch);

/* Make the case's list, where it has one, of its tensors: *list is NULL where it has none. agglo_optim_free it. */
agglo_status agglo_op_case_list(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t, agglo_optim **list,
                                agglo_err *err);

/* Run the operator; `list` as agglo_op_case_list made it. */
void agglo_op_case_run(agglo_backend *be, const agglo_op_case *c, agglo_optim *list, agglo_tensor *t);

/* "linear m=1576 n=2304 k=768 gelu bias bf16" into `out`, cut where it is too long; returns out. */
const char *agglo_op_case_text(const agglo_op_case *c, agglo_dtype type, char *out, size_t size);

double agglo_op_case_bytes(const agglo_op_case *c, agglo_dtype type);

int64_t agglo_op_array_count(const agglo_op_array *a);

static inline bool agglo_op_has(const agglo_op_case *c, uint64_t flag)
{
    return (c->flags & flag) != 0;
}

static inline agglo_act agglo_op_act(const agglo_op_case *c)
{
    return (agglo_act)(c->flags & AGGLO_OP_ACT);
}

/* The tensor, or NULL where the case has no such array. */
static inline agglo_tensor *agglo_op_optional(agglo_tensor *t)
{
    return t->data != NULL ? t : NULL;
}

/* ---- what the rows are run with; the reference takes the same ---- */

#define AGGLO_TABLE_NORM_EPS   1e-5f
#define AGGLO_TABLE_AXPY       (-0.75f)
#define AGGLO_TABLE_MOMENTUM   0.1f
#define AGGLO_TABLE_GRAD_SCALE 0.5f
extern const float agglo_table_pixel_mean[3], agglo_table_pixel_std[3];
extern const agglo_loss_config agglo_table_loss_config, agglo_table_target_config;
#define AGGLO_TABLE_EMA_DECAY  0.75f
#define AGGLO_TABLE_LIST_DECAY 0.05f /* weight decay of a list's large tensors; the small ones have none */
extern const agglo_adamw_config agglo_table_adamw_config;

/* of a row of a list of tensors: how many, and the place of one in the arrays; elements between two belong to none */
int64_t agglo_table_list_count(const agglo_op_case *c);
void agglo_table_list_entry(const agglo_op_case *c, int64_t i, int64_t *first, int64_t *n, bool *large);

/* max_norm of a row that clips: half of the norm that standard normal gradients have, about */
float agglo_table_list_max_norm(const agglo_op_case *c);

/* map.scale of a stored target */
float agglo_table_target_scale(const agglo_op_case *c);

/* of a row of resample or resample_bwd */
agglo_resample_rule agglo_table_resample_rule(const agglo_op_case *c);

/* tokens of a row of attention_bias or attention_bias_bwd */
int64_t agglo_table_bias_tokens(const agglo_op_case *c);

/* 1 / sqrt(head size) */
float agglo_table_attention_scale(int64_t head_dim);

#ifdef __cplusplus
}
#endif
#endif
