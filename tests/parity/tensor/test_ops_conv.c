/* References of the convolutions; arrays and extents as in tensor/table/table_conv.c. */
#include "tests/parity/tensor/op_harness.h"
#include "tests/ref/ref_conv.h"

static ref_conv conv_of(const agglo_op_case *c)
{
    ref_conv s = {c->d[0], c->d[1], c->d[2], c->d[3], 0,       0,       c->d[4],
                  c->d[5], c->d[6], c->d[7], c->d[7], c->d[8], c->d[9], c->d[4] == 0};

    s.o = s.depthwise ? s.c : s.o;
    s.oh = (s.h + 2 * s.pad_h - s.kh) / s.stride_h + 1;
    s.ow = (s.w + 2 * s.pad_w - s.kw) / s.stride_w + 1;
    return s;
}

static ref_conv transposed_of(const agglo_op_case *c)
{
    ref_conv s = {c->d[0], c->d[1], c->d[2], c->d[3], 0,       0,       c->d[4],
                  c->d[5], c->d[5], c->d[6], c->d[6], c->d[7], c->d[7], false};

    s.oh = (s.h - 1) * s.stride_h - 2 * s.pad_h + s.kh + c->d[8];
    s.ow = (s.w - 1) * s.stride_w - 2 * s.pad_w + s.kw + c->d[8];
    return s;
}

static int64_t n_output(const ref_conv *s)
{
    return s->b * s->oh * s->ow * s->o;
}

static void conv_ref(const agglo_op_case *c, double **v)
{
    ref_conv s = conv_of(c);

    ref_conv2d(&s, v[0], v[1], v[2], op_ref_act(c), v[4], v[3]);
}

static void conv_input_ref(const agglo_op_case *c, double **v)
{
    ref_conv s = conv_of(c);

    ref_conv2d_bwd_input(&s, v[0], v[1], agglo_op_has(c, AGGLO_OP_ACCUMULATE), v[2]);
}

static double conv_loss(const ref_conv *s, const double *d_y, const double *x, const double *w, const double *b)
{
    double *y = op_scratch(n_output(s)), sum;

    ref_conv2d(s, x, w, b, REF_NONE, NULL, y);
    sum = op_dot(n_output(s), d_y, y);
    free(y);
    return sum;
}

static double conv_input_loss(const agglo_op_case *c, double **v)
{
    ref_conv s = conv_of(c);

    return conv_loss(&s, v[0], v[3], v[1], NULL);
}

static void conv_weight_ref(const agglo_op_case *c, double **v)
{
    ref_conv s = conv_of(c);

    ref_conv2d_bwd_weight(&s, v[0], v[1], v[2], v[3]);
}

static double conv_weight_loss(const agglo_op_case *c, double **v)
{
    ref_conv s = conv_of(c);

    return conv_loss(&s, v[0], v[1], v[4], v[5]);
}

static void transposed_ref(const agglo_op_case *c, double **v)
{
    ref_conv s = transposed_of(c);

    ref_conv_transpose2d(&s, v[0], v[1], v[2], op_ref_act(c), v[4], v[3]);
}

static void transposed_input_ref(const agglo_op_case *c, double **v)
{
    ref_conv s = transposed_of(c);

    ref_conv_transpose2d_bwd_input(&s, v[0], v[1], agglo_op_has(c, AGGLO_OP_ACCUMULATE), v[2]);
}

static double transposed_loss(const ref_conv *s, const double *d_y, const double *x, const double *w, const double *b)
{
    double *y = op_scratch(n_output(s)), sum;

    ref_conv_transpose2d(s, x, w, b, REF_NONE, NULL, y);
    sum = op_dot(n_output(s), d_y, y);
    free(y);
    return sum;
}

static double transposed_input_loss(const agglo_op_case *c, double **v)
{
    ref_conv s = transposed_of(c);

    return transposed_loss(&s, v[0], v[3], v[1], NULL);
}

static void transposed_weight_ref(const agglo_op_case *c, double **v)
{
    ref_conv s = transposed_of(c);

    ref_conv_transpose2d_bwd_weight(&s, v[0], v[1], v[2], v[3]);
}

static double transposed_weight_loss(const agglo_op_case *c, double **v)
{
    ref_conv s = transposed_of(c);

    return transposed_loss(&s, v[0], v[1], v[4], v[5]);
}

#define INPUT_TEST(op, reference, its_loss)                                                                            \
    {                                                                                                                  \
        .name = op, .backward = true, .ref = reference, .loss = its_loss, .n_grads = 1, .grads = { {3, 2} }            \
    }
#define WEIGHT_TEST(op, reference, its_loss)                                                                           \
    {                                                                                                                  \
        .name = op, .backward = true, .ref = reference, .loss = its_loss, .n_grads = 2, .grads = { {4, 2}, {5, 3} }    \
    }

static const op_test tests[] = {
    {.name = "conv2d", .ref = conv_ref},
    INPUT_TEST("conv2d_bwd_input", conv_input_ref, conv_input_loss),
    WEIGHT_TEST("conv2d_bwd_weight", conv_weight_ref, conv_weight_loss),
    {.name = "conv_transpose2d", .ref = transposed_ref},
    INPUT_TEST("conv_transpose2d_bwd_input", transposed_input_ref, transposed_input_loss),
    WEIGHT_TEST("conv_transpose2d_bwd_weight", transposed_weight_ref, transposed_weight_loss),
};

OP_TEST_FAMILY(conv, tests);
