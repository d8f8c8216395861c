/* What the files of the table share: short ways to write arrays and rows, and the families. */
#ifndef AGGLO_TENSOR_TABLE_TABLE_IMPL_H
#define AGGLO_TENSOR_TABLE_TABLE_IMPL_H

#include "tensor/table/op_table.h"

#ifdef __cplusplus
extern "C" {
#endif

extern const agglo_op_family agglo_family_linear, agglo_family_elementwise, agglo_family_norm, agglo_family_attention,
    agglo_family_tokens, agglo_family_loss, agglo_family_optim, agglo_family_conv, agglo_family_maps;
extern const agglo_op_family agglo_family_attention_bias, agglo_family_gather, agglo_family_resample;

void agglo_table_set(agglo_op_array *a, agglo_array_role role, agglo_dtype dtype, int rank, const int64_t *shape);

/* ARRAY(i, role without AGGLO_ARRAY_, dtype, extents...) */
#define ARRAY(i, role, dtype, ...)                                                                                     \
    agglo_table_set(&a[i], AGGLO_ARRAY_##role, dtype, (int)AGGLO_COUNT(((const int64_t[]){__VA_ARGS__})),              \
                    (const int64_t[]){__VA_ARGS__})

/* The same where `cond` holds, otherwise absent. */
#define ARRAY_IF(cond, i, role, dtype, ...)                                                                            \
    do {                                                                                                               \
        if (cond) {                                                                                                    \
            ARRAY(i, role, dtype, __VA_ARGS__);                                                                        \
        }                                                                                                              \
    } while (0)

/* An input gradient: written, or added to with the flag. */
#define GRADIENT(i, dtype, ...)                                                                                        \
    do {                                                                                                               \
        ARRAY(i, OUT, dtype, __VA_ARGS__);                                                                             \
        a[i].role = agglo_op_has(c, AGGLO_OP_ACCUMULATE) ? AGGLO_ARRAY_INOUT : AGGLO_ARRAY_OUT;                        \
    } while (0)

/* Rows: PARITY(operator, types, flags, extents...), SLOW the same apart from the others, DIFFER with central differences, BENCH with the
 * shape's owner. */
#define F32  AGGLO_OP_F32
#define BF16 AGGLO_OP_BF16
#define BOTH (AGGLO_OP_F32 | AGGLO_OP_BF16)
#define PARITY(op, types, flags, ...)                                                                                  \
    {                                                                                                                  \
        op, {__VA_ARGS__}, flags, types, AGGLO_USE_PARITY, NULL                                                        \
    }
#define SLOW(op, types, flags, ...)                                                                                    \
    {                                                                                                                  \
        op, {__VA_ARGS__}, flags, types, AGGLO_USE_PARITY | AGGLO_USE_SLOW, NULL                                       \
    }
#define DIFFER(op, types, flags, ...)                                                                                  \
    {                                                                                                                  \
        op, {__VA_ARGS__}, flags, types, AGGLO_USE_PARITY | AGGLO_USE_DIFFERENCES, NULL                                \
    }
#define BENCH(op, types, flags, label, ...)                                                                            \
    {                                                                                                                  \
        op, {__VA_ARGS__}, flags, types, AGGLO_USE_BENCH, label                                                        \
    }
/* In BENCH: n for every image of the batch. */
#define EACH(n) (-(n))

#ifdef __cplusplus
}
#endif
#endif
