/* The table's optimiser: AdamW and the sum of squares of one tensor, d = n; AdamW, norm and average over a list of tensors, d = n_large,
 * large, n_small, small: so many tensors of so many elements each. The tensors of a list lie in one array, each at a multiple of
 * LIST_ALIGN; what stands between them must stay as it is. */
#include "tensor/table/table_impl.h"

#include "base/alloc.h"

#include <math.h>

#define LIST_ALIGN 64

const agglo_adamw_config agglo_table_adamw_config = {1e-2f, 0.9f, 0.999f, 1e-8f, 0.05f, 0.7f, 3};

static double adamw_flops(const agglo_op_case *c)
{
    return 15.0 * (double)c->d[0];
}

static double squares_flops(const agglo_op_case *c)
{
    return 2.0 * (double)c->d[0];
}

/* arrays: p, g, m, v */
static void adamw_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    (void)type; /* masters, gradients and moments are F32 */
    ARRAY(0, INOUT, AGGLO_F32, c->d[0]);
    ARRAY(1, IN, AGGLO_F32, c->d[0]);
    ARRAY(2, INOUT, AGGLO_F32, c->d[0]);
    ARRAY(3, INOUT, AGGLO_F32, c->d[0]);
    a[3].draw = AGGLO_DRAW_SQUARE;
}

static void adamw_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    (void)c;
    agglo_adamw(be, &agglo_table_adamw_config, &t[0], &t[1], &t[2], &t[3]);
}

static void squares_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    ARRAY(0, IN, type, c->d[0]);
    ARRAY(1, INOUT, AGGLO_F32, 1);
}

static void squares_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    (void)c;
    agglo_sum_squares(be, &t[0], &t[1]);
}

/* ---- lists ---- */

static int64_t list_place(int64_t n)
{
    return (n + LIST_ALIGN - 1) / LIST_ALIGN * LIST_ALIGN;
}

int64_t agglo_table_list_count(const agglo_op_case *c)
{
    return c->d[0] + c->d[2];
}

void agglo_table_list_entry(const agglo_op_case *c, int64_t i, int64_t *first, int64_t *n, bool *large)
{
    *large = i < c->d[0];
    *n = *large ? c->d[1] : c->d[3];
    *first = *large ? i * list_place(c->d[1]) : c->d[0] * list_place(c->d[1]) + (i - c->d[0]) * list_place(c->d[3]);
}

static int64_t list_elements(const agglo_op_case *c)
{
    return c->d[0] * c->d[1] + c->d[2] * c->d[3];
}

static int64_t list_extent(const agglo_op_case *c)
{
    return c->d[0] * list_place(c->d[1]) + c->d[2] * list_place(c->d[3]);
}

float agglo_table_list_max_norm(const agglo_op_case *c)
{
    return 0.5f * agglo_table_adamw_config.grad_scale * sqrtf((float)list_elements(c));
}

static agglo_tensor list_tensor(const agglo_tensor *t, int64_t first, int64_t n)
{
    return agglo_tensor_1d(t->data == NULL ? NULL : (uint8_t *)t->data + (size_t)first * agglo_dtype_size(t->dtype),
                           t->dtype, n);
}

/* Of these arrays; those that an operator does not touch may be any. */
static agglo_optim *list_of(agglo_backend *be, const agglo_op_case *c, const agglo_tensor *p, const agglo_tensor *g,
                            const agglo_tensor *m, const agglo_tensor *v, const agglo_tensor *copy,
                            const agglo_tensor *average, agglo_err *err)
{
    static const agglo_tensor none;
    int64_t n_entries = agglo_table_list_count(c);
    agglo_optim_entry *entries = agglo_alloc((size_t)n_entries, sizeof *entries, err);
    agglo_optim *list = NULL;

    for (int64_t i = 0; entries != NULL && i < n_entries; i++) {
        int64_t first, n;
        bool large;

        agglo_table_list_entry(c, i, &first, &n, &large);
        entries[i] = (agglo_optim_entry){.p = list_tensor(p, first, n),
                                         .g = list_tensor(g, first, n),
                                         .m = list_tensor(m, first, n),
                                         .v = list_tensor(v, first, n),
                                         .copy = copy == NULL ? none : list_tensor(copy, first, n),
                                         .average = average == NULL ? none : list_tensor(average, first, n),
                                         .weight_decay = large ? AGGLO_TABLE_LIST_DECAY : 0.0f};
    }
    if (entries != NULL) {
        agglo_optim_new(&list, be, entries, (size_t)n_entries, err);
    }
    agglo_free(entries);
    return list;
}

/* arrays: p, g, m, v, BF16 copy */
static void many_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    int64_t n = list_extent(c);

    (void)type;
    ARRAY(0, INOUT, AGGLO_F32, n);
    ARRAY(1, IN, AGGLO_F32, n);
    ARRAY(2, INOUT, AGGLO_F32, n);
    ARRAY(3, INOUT, AGGLO_F32, n);
    a[3].draw = AGGLO_DRAW_SQUARE;
    ARRAY_IF(agglo_op_has(c, AGGLO_OP_TO_BF16), 4, INOUT, AGGLO_BF16, n);
}

static agglo_optim *many_list(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t, agglo_err *err)
{
    return list_of(be, c, &t[0], &t[1], &t[2], &t[3], agglo_op_optional(&t[4]), NULL, err);
}

static void many_run(agglo_backend *be, const agglo_op_case *c, agglo_optim *list, agglo_tensor *t)
{
    bool guarded = agglo_op_has(c, AGGLO_OP_GUARD);

    (void)t;
    if (guarded) {
        agglo_grad_norm(be, list);
    }
    agglo_adamw_many(be, &agglo_table_adamw_config,
                     agglo_op_has(c, AGGLO_OP_CLIP) ? agglo_table_list_max_norm(c) : 0.0f, guarded, list);
}

static double many_flops(const agglo_op_case *c)
{
    return (agglo_op_has(c, AGGLO_OP_GUARD) ? 17.0 : 15.0) * (double)list_elements(c);
}

/* three arrays in place, gradients once or twice, copies written alone */
static double many_bytes(const agglo_op_case *c, agglo_dtype type)
{
    (void)type;
    return (28.0 + (agglo_op_has(c, AGGLO_OP_GUARD) ? 4.0 : 0.0) + (agglo_op_has(c, AGGLO_OP_TO_BF16) ? 2.0 : 0.0)) *
           (double)list_elements(c);
}

/* arrays: g, state as norm and first bad tensor: for parity alone, as reading it waits for the device */
static void norm_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    (void)type;
    ARRAY(0, IN, AGGLO_F32, list_extent(c));
    ARRAY_IF((c->use & AGGLO_USE_PARITY) != 0, 1, OUT, AGGLO_F32, 2);
}

static agglo_optim *norm_list(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t, agglo_err *err)
{
    return list_of(be, c, &t[0], &t[0], &t[0], &t[0], NULL, NULL, err);
}

static void norm_run(agglo_backend *be, const agglo_op_case *c, agglo_optim *list, agglo_tensor *t)
{
    (void)c;
    agglo_grad_norm(be, list);
    if (agglo_op_optional(&t[1]) != NULL) {
        agglo_grad_state state;
        float read[2];

        agglo_grad_state_read(be, list, &state);
        read[0] = (float)state.norm;
        read[1] = (float)state.first_bad;
        agglo_upload(be, t[1].data, read, sizeof read);
    }
}

static double norm_flops(const agglo_op_case *c)
{
    return 2.0 * (double)list_elements(c);
}

static double norm_bytes(const agglo_op_case *c, agglo_dtype type)
{
    (void)type;
    return 4.0 * (double)list_elements(c);
}

/* arrays: p, average */
static void ema_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    (void)type;
    ARRAY(0, IN, AGGLO_F32, list_extent(c));
    ARRAY(1, INOUT, AGGLO_F32, list_extent(c));
}

static agglo_optim *ema_list(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t, agglo_err *err)
{
    return list_of(be, c, &t[0], &t[0], &t[0], &t[0], NULL, &t[1], err);
}

static void ema_run(agglo_backend *be, const agglo_op_case *c, agglo_optim *list, agglo_tensor *t)
{
    (void)c;
    (void)t;
    agglo_ema(be, AGGLO_TABLE_EMA_DECAY, list);
}

static double ema_flops(const agglo_op_case *c)
{
    return 3.0 * (double)list_elements(c);
}

static double ema_bytes(const agglo_op_case *c, agglo_dtype type)
{
    (void)type;
    return 12.0 * (double)list_elements(c);
}

#define LIST_DIMS "n_large large n_small small"

static const agglo_op adamw_many = {.name = "adamw_many",
                                    .dims = LIST_DIMS,
                                    .flags = AGGLO_OP_TO_BF16 | AGGLO_OP_CLIP | AGGLO_OP_GUARD,
                                    .n_arrays = 5,
                                    .shape = many_shape,
                                    .list = many_list,
                                    .run_list = many_run,
                                    .flops = many_flops,
                                    .bytes = many_bytes};
static const agglo_op grad_norm = {.name = "grad_norm",
                                   .dims = LIST_DIMS,
                                   .n_arrays = 2,
                                   .shape = norm_shape,
                                   .list = norm_list,
                                   .run_list = norm_run,
                                   .flops = norm_flops,
                                   .bytes = norm_bytes};
static const agglo_op ema = {.name = "ema",
                             .dims = LIST_DIMS,
                             .n_arrays = 2,
                             .shape = ema_shape,
                             .list = ema_list,
                             .run_list = ema_run,
                             .flops = ema_flops,
                             .bytes = ema_bytes};

static const agglo_op adamw = {
    .name = "adamw", .dims = "n", .n_arrays = 4, .shape = adamw_shape, .run = adamw_run, .flops = adamw_flops};
static const agglo_op sum_squares = {.name = "sum_squares",
                                     .dims = "n",
                                     .n_arrays = 2,
                                     .shape = squares_shape,
                                     .run = squares_run,
                                     .flops = squares_flops};

/* the weights of ViT-B's and ViT-Ti's blocks, in as many tensors: four matrices a block, biases and norms */
#define VIT_B  48, 1769472, 148, 768
#define VIT_TI 48, 110592, 148, 192

static const agglo_op_case cases[] = {
    PARITY(&adamw, F32, 0, 1),
    PARITY(&adamw, F32, 0, 40001),
    PARITY(&sum_squares, F32, 0, 1),
    PARITY(&sum_squares, F32, 0, 100003),
    /* one element, a chunk's edges, a chunk of a list that is another tensor's */
    PARITY(&adamw_many, F32, 0, 1, 1, 0, 1),
    PARITY(&adamw_many, F32, AGGLO_OP_TO_BF16, 1, AGGLO_OPTIM_CHUNK, 2, AGGLO_OPTIM_CHUNK + 1),
    PARITY(&adamw_many, F32, AGGLO_OP_GUARD, 2, 40001, 3, 5),
    PARITY(&adamw_many, F32, AGGLO_OP_GUARD | AGGLO_OP_CLIP, 2, 3 * AGGLO_OPTIM_CHUNK - 7, 1, 1),
    PARITY(&adamw_many, F32, AGGLO_OP_GUARD | AGGLO_OP_CLIP | AGGLO_OP_TO_BF16, 3, 20011, 70, 67),
    PARITY(&grad_norm, F32, 0, 1, 1, 0, 1),
    PARITY(&grad_norm, F32, 0, 2, 3 * AGGLO_OPTIM_CHUNK - 7, 1100, 3), /* more tensors than a block has threads */
    PARITY(&ema, F32, 0, 1, 1, 0, 1),
    PARITY(&ema, F32, 0, 2, AGGLO_OPTIM_CHUNK + 1, 5, 130),

    BENCH(&adamw, F32, 0, "ViT-B fc1", 3072 * 768),
    BENCH(&adamw, F32, 0, "ViT-B", 85646592),
    BENCH(&sum_squares, F32, 0, "ViT-B", 85646592),
    BENCH(&adamw_many, F32, 0, "ViT-B", VIT_B),
    BENCH(&adamw_many, F32, AGGLO_OP_TO_BF16, "ViT-B", VIT_B),
    BENCH(&adamw_many, F32, AGGLO_OP_GUARD | AGGLO_OP_CLIP | AGGLO_OP_TO_BF16, "ViT-B", VIT_B),
    BENCH(&adamw_many, F32, AGGLO_OP_GUARD | AGGLO_OP_CLIP, "ViT-Ti", VIT_TI),
    BENCH(&grad_norm, F32, 0, "ViT-B", VIT_B),
    BENCH(&grad_norm, F32, 0, "ViT-Ti", VIT_TI),
    BENCH(&ema, F32, 0, "ViT-B", VIT_B),
    BENCH(&ema, F32, 0, "ViT-Ti", VIT_TI),
};

const agglo_op_family agglo_family_optim = {"optim", cases, AGGLO_COUNT(cases)};
