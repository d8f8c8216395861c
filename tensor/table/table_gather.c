/* The table's moving of rows. Windows: d = b, h, w, wh, ww, c. Lists: d = b, m, n, c. */
#include "tensor/table/table_impl.h"

static double no_flops(const agglo_op_case *c)
{
    (void)c;
    return 0.0;
}

static int64_t windows(const agglo_op_case *c)
{
    return c->d[0] * ((c->d[1] + c->d[3] - 1) / c->d[3]) * ((c->d[2] + c->d[4] - 1) / c->d[4]);
}

/* arrays: x, y, and the same tensor aside for the differences */
static void partition_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    ARRAY(0, IN, type, c->d[0], c->d[1], c->d[2], c->d[5]);
    GRADIENT(1, type, windows(c), c->d[3] * c->d[4], c->d[5]);
    ARRAY(2, ASIDE, type, windows(c), c->d[3] * c->d[4], c->d[5]);
}

static void partition_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    agglo_window_partition(be, &t[0], c->d[3], c->d[4], agglo_op_has(c, AGGLO_OP_ACCUMULATE), &t[1]);
}

static void merge_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    ARRAY(0, IN, type, windows(c), c->d[3] * c->d[4], c->d[5]);
    GRADIENT(1, type, c->d[0], c->d[1], c->d[2], c->d[5]);
    ARRAY(2, ASIDE, type, c->d[0], c->d[1], c->d[2], c->d[5]);
}

static void merge_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    agglo_window_merge(be, &t[0], c->d[3], c->d[4], agglo_op_has(c, AGGLO_OP_ACCUMULATE), &t[1]);
}

/* A list with repetitions, gaps and, in each tenth place, an index that names no row. With POS_PER_IMAGE one for every image. */
static void list_shape(const agglo_op_case *c, agglo_op_array *a)
{
    if (agglo_op_has(c, AGGLO_OP_POS_PER_IMAGE)) {
        ARRAY(1, FIXED, AGGLO_I32, c->d[0], c->d[2]);
    } else {
        ARRAY(1, FIXED, AGGLO_I32, c->d[2]);
    }
}

static void list_fill(const agglo_op_case *c, int i, void *data)
{
    int64_t n = c->d[2] * (agglo_op_has(c, AGGLO_OP_POS_PER_IMAGE) ? c->d[0] : 1), m = c->d[1];
    int32_t *index = data;

    (void)i;
    for (int64_t j = 0; j < n; j++) {
        index[j] = (int32_t)(j * j * 7 % m);
        if (j % 10 == 9) {
            index[j] = j % 20 == 9 ? -1 : (int32_t)m;
        }
    }
}

static void gather_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    ARRAY(0, IN, type, c->d[0], c->d[1], c->d[3]);
    list_shape(c, a);
    ARRAY(2, OUT, type, c->d[0], c->d[2], c->d[3]);
}

static void gather_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    (void)c;
    agglo_gather_rows(be, &t[0], &t[1], &t[2]);
}

/* arrays: y, index, x, the forward pass's x aside */
static void scatter_shape(const agglo_op_case *c, agglo_dtype type, agglo_op_array *a)
{
    ARRAY(0, IN, type, c->d[0], c->d[2], c->d[3]);
    list_shape(c, a);
    GRADIENT(2, type, c->d[0], c->d[1], c->d[3]);
    ARRAY(3, ASIDE, type, c->d[0], c->d[1], c->d[3]);
}

static void scatter_run(agglo_backend *be, const agglo_op_case *c, agglo_tensor *t)
{
    agglo_scatter_rows(be, &t[0], &t[1], agglo_op_has(c, AGGLO_OP_ACCUMULATE), &t[2]);
}

static double scatter_flops(const agglo_op_case *c)
{
    return (double)c->d[0] * (double)c->d[2] * (double)c->d[3];
}

#define WINDOW_DIMS "b h w wh ww c"
#define LIST_DIMS   "b m n c"

static const agglo_op window_partition = {.name = "window_partition",
                                          .dims = WINDOW_DIMS,
                                          .flags = AGGLO_OP_ACCUMULATE,
                                          .n_arrays = 3,
                                          .shape = partition_shape,
                                          .run = partition_run,
                                          .flops = no_flops};
static const agglo_op window_merge = {.name = "window_merge",
                                      .dims = WINDOW_DIMS,
                                      .flags = AGGLO_OP_ACCUMULATE,
                                      .n_arrays = 3,
                                      .shape = merge_shape,
                                      .run = merge_run,
                                      .flops = no_flops};
static const agglo_op gather_rows = {.name = "gather_rows",
                                     .dims = LIST_DIMS,
                                     .flags = AGGLO_OP_POS_PER_IMAGE,
                                     .n_arrays = 3,
                                     .shape = gather_shape,
                                     .fill = list_fill,
                                     .run = gather_run,
                                     .flops = no_flops};
static const agglo_op scatter_rows = {.name = "scatter_rows",
                                      .dims = LIST_DIMS,
                                      .flags = AGGLO_OP_ACCUMULATE | AGGLO_OP_POS_PER_IMAGE,
                                      .n_arrays = 4,
                                      .shape = scatter_shape,
                                      .fill = list_fill,
                                      .run = scatter_run,
                                      .flops = scatter_flops};

static const agglo_op_case cases[] = {
    DIFFER(&window_partition, BOTH, 0, 1, 1, 1, 1, 1, 1),
    DIFFER(&window_partition, BOTH, 0, 2, 9, 7, 4, 4, 33),
    DIFFER(&window_partition, BOTH, AGGLO_OP_ACCUMULATE, 2, 9, 7, 4, 3, 16),
    PARITY(&window_partition, F32, 0, 1, 8, 8, 4, 2, 12),
    DIFFER(&window_merge, BOTH, 0, 1, 1, 1, 3, 2, 1),
    DIFFER(&window_merge, BOTH, 0, 2, 9, 7, 4, 4, 33),
    DIFFER(&window_merge, BOTH, AGGLO_OP_ACCUMULATE, 2, 9, 7, 4, 3, 16),
    PARITY(&gather_rows, BOTH, 0, 1, 1, 1, 1),
    PARITY(&gather_rows, BOTH, 0, 3, 31, 40, 33),
    PARITY(&gather_rows, BOTH, AGGLO_OP_POS_PER_IMAGE, 3, 31, 20, 16),
    DIFFER(&scatter_rows, BOTH, 0, 1, 1, 1, 1),
    DIFFER(&scatter_rows, BOTH, 0, 3, 31, 40, 33),
    DIFFER(&scatter_rows, BOTH, AGGLO_OP_ACCUMULATE, 3, 5, 140, 16),
    DIFFER(&scatter_rows, BOTH, AGGLO_OP_ACCUMULATE | AGGLO_OP_POS_PER_IMAGE, 3, 31, 20, 16),

    BENCH(&window_partition, BOTH, 0, "SAM-H", EACH(1), 64, 64, 14, 14, 1280),
    BENCH(&window_merge, BOTH, 0, "SAM-H", EACH(1), 64, 64, 14, 14, 1280),
    BENCH(&gather_rows, BOTH, 0, "ViT-B/16 at 1024, windows", EACH(1), 4096, 4096, 768),
    BENCH(&scatter_rows, BOTH, 0, "ViT-B/16 at 1024, windows", EACH(1), 4096, 4096, 768),
};

const agglo_op_family agglo_family_gather = {"gather", cases, AGGLO_COUNT(cases)};
