/* What `agglo bench ops` times: a piece of work on a backend with its operands, made once and run many times. */
#ifndef AGGLO_CLI_BENCH_LOAD_H
#define AGGLO_CLI_BENCH_LOAD_H

#include "tensor/nn/vit_block.h"
#include "tensor/table/op_table.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct agglo_bench_load {
    agglo_backend *backend;
    void (*run)(struct agglo_bench_load *load);
    void (*clear)(struct agglo_bench_load *load); /* what is not in `t`; NULL: nothing */
    double flops, bytes;                          /* of one run */
    agglo_op_case op_case;
    agglo_tensor t[AGGLO_OP_ARRAYS]; /* owned */
    agglo_optim *list;               /* of a case that runs over one; owned */
    bool flag;                       /* product: b is transposed; block: with the backward pass */
    struct agglo_bench_block *block;
} agglo_bench_load;

/* Each fills a load of the caller's, to be cleared whatever came back. Memory is drawn from N(0, 1) or, for other types than floats, bytes. */
agglo_status agglo_bench_case(agglo_bench_load *load, agglo_backend *be, const agglo_op_case *c, agglo_dtype type,
                              agglo_err *err);
agglo_status agglo_bench_product(agglo_bench_load *load, agglo_backend *be, int64_t m, int64_t n, int64_t k,
                                 bool transpose_b, agglo_dtype type, agglo_err *err);
/* Reads n_bytes / 2 and writes as many, with all threads of the backend; with `update` reads two thirds and writes one (y += a x), which
 * fetches no line only to overwrite it. */
agglo_status agglo_bench_move(agglo_bench_load *load, agglo_backend *be, int64_t n_bytes, bool update, agglo_err *err);
/* Work is counted as the model's: the backward pass is twice the forward pass, whatever is computed again. */
agglo_status agglo_bench_vit_block(agglo_bench_load *load, agglo_backend *be, const agglo_vit_block_config *config,
                                   int64_t batch, int64_t tokens, bool backward, agglo_err *err);
void agglo_bench_load_clear(agglo_bench_load *load);

#ifdef __cplusplus
}
#endif
#endif
