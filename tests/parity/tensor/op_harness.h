/* Runs cases of the operator table (tensor/table) against the double-precision reference (tests/ref).
 *
 * The test side of an operator is an op_test, found by the operator's name: one file test_ops_FAMILY.c for each family of the table
 * exports an op_test_family, listed in test_ops.c. A row whose operator has no op_test fails, and so does an op_test without a row.
 */
#ifndef AGGLO_TESTS_PARITY_TENSOR_OP_HARNESS_H
#define AGGLO_TESTS_PARITY_TENSOR_OP_HARNESS_H

#include "tensor/table/op_table.h"
#include "tests/ref/ref.h"
#include "tests/support/support.h"

typedef struct op_test {
    const char *name; /* the operator's */
    bool backward;    /* which tolerance its F32 results have */
    /* Arrays in double, numbered as op->shape numbers them, NULL where absent; those of role OUT hold NaN before `ref`. */
    void (*prepare)(const agglo_op_case *c, double **v); /* fills the arrays of role DERIVED; NULL: there are none */
    void (*ref)(const agglo_op_case *c, double **v);
    /* Loss whose gradients the operator gives: sum(d_y * forward(inputs)) from the drawn arrays; NULL where no row asks for differences. */
    double (*loss)(const agglo_op_case *c, double **v);
    int n_grads;
    int grads[4][2]; /* input, its gradient */
} op_test;

typedef struct op_test_family {
    const op_test *tests;
    size_t n;
} op_test_family;

extern const op_test_family op_tests_linear, op_tests_elementwise, op_tests_norm, op_tests_attention, op_tests_tokens,
    op_tests_loss, op_tests_optim, op_tests_conv, op_tests_maps;
extern const op_test_family op_tests_attention_bias, op_tests_gather, op_tests_resample;

/* The backends of one device that must give the same bytes: on the CPU with 1, 2 and 3 threads. On a device `cpu` is a CPU backend to
 * compare with, otherwise NULL. */
typedef struct op_backends {
    const char *device;
    agglo_backend *same[3], *cpu;
} op_backends;

void op_backends_open(op_backends *backends, const char *device);
void op_backends_close(op_backends *backends);

/* Run one case of a row; fails the test with a line that names the case. `stream` seeds what is drawn. */
void op_case_check(const op_backends *backends, const op_test *test, const agglo_op_case *c, agglo_dtype type,
                   uint64_t stream);

/* ---- for the references ---- */

/* Zeroed; free it. */
double *op_scratch(int64_t n);

/* sum(w * y) */
double op_dot(int64_t n, const double *w, const double *y);

/* ref_act has the order of agglo_act */
static inline ref_act op_ref_act(const agglo_op_case *c)
{
    return (ref_act)agglo_op_act(c);
}

#define OP_TEST_FAMILY(name, tests) const op_test_family op_tests_##name = {tests, AGGLO_COUNT(tests)}

#endif
