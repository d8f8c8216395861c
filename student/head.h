/* A teacher head: an MLP on rows of student features, forward and backward (spec students.md section 4; RADIO's
 * adaptor_mlp).
 *
 *     u_0 = fc1(x);   g_k = act(norm_k(u_k));   u_{k+1} = linear_k(g_k) [+ u_k];   y = linear_n(g_n)
 *
 * Version 1: ReLU, nothing added. Version 2: exact GELU, u_k added. LayerNorm eps 1e-5.
 */
#ifndef AGGLO_STUDENT_HEAD_H
#define AGGLO_STUDENT_HEAD_H

#include "tensor/ops.h"
#include "tensor/param.h"
#include "tensor/slab.h"

#ifdef __cplusplus
extern "C" {
#endif

#define AGGLO_HEAD_INNER_MAX 64

typedef struct agglo_head_shape {
    int version; /* 1 or 2 */
    int inner;   /* n, 0 .. AGGLO_HEAD_INNER_MAX */
    int64_t in, hidden, out;
    agglo_dtype
        dtype; /* of activations, x and y among them: the storage type of the parameters, set when they are declared */
} agglo_head_shape;

typedef struct agglo_head_stage {
    agglo_param *norm_w, *norm_b;     /* norm_k */
    agglo_param *linear_w, *linear_b; /* linear_k */
} agglo_head_stage;

typedef struct agglo_head {
    agglo_head_shape shape;
    agglo_param *fc1_w, *fc1_b;
    agglo_head_stage *stages; /* [inner + 1], owned */
} agglo_head;

/* Parameters are declared under PREFIX with RADIO's names (see model.h). The stages are freed by agglo_head_clear. */
agglo_status agglo_head_declare(agglo_head *head, const agglo_head_shape *shape, const char *prefix,
                                agglo_params *params, agglo_err *err);
void agglo_head_clear(agglo_head *head); /* safe on a zeroed one */

/* What one pass over `rows` rows keeps. At inference all stages share the memory of the first. */
typedef struct agglo_head_kept {
    agglo_tensor u[AGGLO_HEAD_INNER_MAX + 1], normed[AGGLO_HEAD_INNER_MAX + 1], g[AGGLO_HEAD_INNER_MAX + 1];
    agglo_tensor mean[AGGLO_HEAD_INNER_MAX + 1], rstd[AGGLO_HEAD_INNER_MAX + 1];
    agglo_tensor d_u, d_g; /* only in training */
    bool train;
} agglo_head_kept;

void agglo_head_plan(agglo_head_kept *kept, const agglo_head_shape *shape, int64_t rows, bool train, agglo_slab *slab);

/* x[rows, in] -> y[rows, out] */
void agglo_head_forward(agglo_backend *be, const agglo_head *head, const agglo_tensor *x, agglo_head_kept *kept,
                        agglo_tensor *y);

/* d_y[rows, out]; d_x[rows, in] is written or added to; parameter gradients are added to. x is what forward was
 * given. */
void agglo_head_backward(agglo_backend *be, const agglo_head *head, const agglo_tensor *d_y, const agglo_tensor *x,
                         agglo_head_kept *kept, bool accumulate, agglo_tensor *d_x);

#ifdef __cplusplus
}
#endif
#endif
