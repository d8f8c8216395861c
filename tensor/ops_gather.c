/* The front of the operators that move rows: checks of shapes. */
#include "tensor/ops_gather.h"

#include "tensor/ops_check.h"

static int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

static bool windows(const agglo_tensor *x, int64_t wh, int64_t ww, const agglo_tensor *y)
{
    return agglo_ops_stored(x) && agglo_ops_stored(y) && x->dtype == y->dtype && x->rank == 4 && y->rank == 3 &&
           wh >= 1 && ww >= 1 && y->shape[0] == x->shape[0] * ceil_div(x->shape[1], wh) * ceil_div(x->shape[2], ww) &&
           y->shape[1] == wh * ww && y->shape[2] == x->shape[3] && x->data != y->data;
}

void agglo_window_partition(agglo_backend *be, const agglo_tensor *x, int64_t wh, int64_t ww, bool accumulate,
                            agglo_tensor *y)
{
    AGGLO_ASSERT(windows(x, wh, ww, y));
    if (agglo_ops_ready(be)) {
        be->ops->window_partition(be, x, wh, ww, accumulate, y);
    }
}

void agglo_window_merge(agglo_backend *be, const agglo_tensor *y, int64_t wh, int64_t ww, bool accumulate,
                        agglo_tensor *x)
{
    AGGLO_ASSERT(windows(x, wh, ww, y));
    if (agglo_ops_ready(be)) {
        be->ops->window_merge(be, y, wh, ww, accumulate, x);
    }
}

static bool listed(const agglo_tensor *x, const agglo_tensor *index, const agglo_tensor *y)
{
    return agglo_ops_stored(x) && agglo_ops_stored(y) && x->dtype == y->dtype && x->rank == 3 && y->rank == 3 &&
           x->shape[0] == y->shape[0] && x->shape[2] == y->shape[2] && x->data != y->data && agglo_ops_present(index) &&
           index->dtype == AGGLO_I32 &&
           ((index->rank == 1 && index->shape[0] == y->shape[1]) ||
            (index->rank == 2 && index->shape[0] == y->shape[0] && index->shape[1] == y->shape[1]));
}

void agglo_gather_rows(agglo_backend *be, const agglo_tensor *x, const agglo_tensor *index, agglo_tensor *y)
{
    AGGLO_ASSERT(listed(x, index, y));
    if (agglo_ops_ready(be)) {
        be->ops->gather_rows(be, x, index, y);
    }
}

void agglo_scatter_rows(agglo_backend *be, const agglo_tensor *y, const agglo_tensor *index, bool accumulate,
                        agglo_tensor *x)
{
    AGGLO_ASSERT(listed(x, index, y));
    if (agglo_ops_ready(be)) {
        be->ops->scatter_rows(be, y, index, accumulate, x);
    }
}
