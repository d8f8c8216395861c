/* A list of parameters as backends see it; see ops_optim.h. */
#ifndef AGGLO_TENSOR_OPTIM_IMPL_H
#define AGGLO_TENSOR_OPTIM_IMPL_H

#include "tensor/ops_optim.h"

typedef struct agglo_optim_tensor {
    float *p, *m, *v;
    const float *g;
    uint16_t *copy; /* NULL: none */
    float *average; /* NULL: none */
    int64_t n;
    int64_t first_chunk, n_chunks;
    float weight_decay;
} agglo_optim_tensor;

typedef struct agglo_optim_chunk {
    int64_t tensor, first; /* element of the tensor */
} agglo_optim_chunk;

/* Pointers are into one block on the device, but for the struct itself. */
struct agglo_optim {
    agglo_backend *backend;
    int64_t n, n_chunks;
    bool averages; /* some entry has one */
    void *block;
    const agglo_optim_tensor *tensors; /* [n] */
    const agglo_optim_chunk *chunks;   /* [n_chunks], in order of tensors and elements */
    double *chunk_sums;                /* [n_chunks] squares */
    double *tensor_sums;               /* [n] */
    agglo_grad_state *state;
    int64_t *held; /* first_bad of the step from which nothing is updated, -1: none */
};

#endif
