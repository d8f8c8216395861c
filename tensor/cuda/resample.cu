/* Resampling of feature maps and position grids.
 *
 *     resample        x[P, n_in, S] -> y[P, n_out, S]: y[p,o,j] = sum over k < count[o] of weight[o,k] x[p, first[o] + k, j]
 *     crop_grid       table[R,C,D], boxes[B,4] -> y[B,h,w,D], bilinear, and the gradient of the table
 *
 * A map [B,h,w,C] passes twice through the first: down (P = B, S = w C) and across (P = B rows, S = C), in the order that leaves the smaller
 * F32 map in scratch between; an axis that changes nothing is left out. The backward pass is the same with transposed weights.
 * Mapping: inner elements on x, outputs on y, planes on z (kernels.cuh); a thread sums its taps in order. The gradient of the table gathers:
 * a thread per (cell, channel) visits images, rows and columns in order and adds where their weight is not 0.
 * Bytes moved: per element read and written once a pass, taps from cache. Numerics: F32 sums, F32 or BF16 at the ends. Deterministic.
 */
#include "tensor/cuda/kernels.cuh"

static __global__ void resample_axis_kernel(int64_t planes, agglo_axis axis, int64_t inner, const void *x,
                                            agglo_dtype x_dtype, bool accumulate, void *y, agglo_dtype y_dtype)
{
    int64_t j = own_column();

    if (j >= inner) {
        return;
    }
    PLANE_LOOP(p, planes)
    {
        ROW_LOOP(o, axis.n_out)
        {
            int64_t at = (p * axis.n_in + axis.first[o]) * inner + j, to = (p * axis.n_out + o) * inner + j;
            const float *weight = axis.weight + o * axis.max_taps;
            int n = axis.count[o];
            float sum = 0.0f;

            for (int k = 0; k < n; k++) {
                sum += weight[k] * element(x, x_dtype, at + k * inner);
            }
            set_element(y, y_dtype, to, accumulate ? element(y, y_dtype, to) + sum : sum);
        }
    }
}

static void pass(agglo_cuda *cuda, int64_t planes, const agglo_axis *axis, int64_t inner, const void *x,
                 agglo_dtype x_dtype, bool accumulate, void *y, agglo_dtype y_dtype)
{
    resample_axis_kernel<<<row_grid(planes, axis->n_out, inner), row_block(inner), 0, cuda->stream>>>(
        planes, *axis, inner, x, x_dtype, accumulate, y, y_dtype);
    agglo_cuda_launched(cuda, "resample");
}

static void resample(agglo_backend *be, const agglo_axis *down, const agglo_axis *across, const agglo_tensor *x,
                     bool accumulate, agglo_tensor *y)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    int64_t batch = x->shape[0], c = x->shape[3];
    bool down_first = down->n_out * across->n_in <= down->n_in * across->n_out;
    int64_t between = batch * (down_first ? down->n_out * across->n_in : down->n_in * across->n_out) * c;
    float *scratch;

    if (down->identity) {
        pass(cuda, batch * down->n_in, across, c, x->data, x->dtype, accumulate, y->data, y->dtype);
        return;
    }
    if (across->identity) {
        pass(cuda, batch, down, across->n_in * c, x->data, x->dtype, accumulate, y->data, y->dtype);
        return;
    }
    scratch = (float *)agglo_cuda_reserve(cuda, (size_t)between * sizeof(float));
    if (scratch == NULL) {
        return;
    }
    if (down_first) {
        pass(cuda, batch, down, across->n_in * c, x->data, x->dtype, false, scratch, AGGLO_F32);
        pass(cuda, batch * down->n_out, across, c, scratch, AGGLO_F32, accumulate, y->data, y->dtype);
    } else {
        pass(cuda, batch * down->n_in, across, c, x->data, x->dtype, false, scratch, AGGLO_F32);
        pass(cuda, batch, down, across->n_out * c, scratch, AGGLO_F32, accumulate, y->data, y->dtype);
    }
}

/* ---- boxes of a table ---- */

typedef struct crop_work {
    int64_t batch, rows, columns, h, w, d;
    agglo_dtype dtype; /* of y and d_y */
} crop_work;

static crop_work crop_work_of(const agglo_tensor *table, const agglo_tensor *y)
{
    crop_work job;

    job.batch = y->shape[0];
    job.rows = table->shape[0];
    job.columns = table->shape[1];
    job.h = y->shape[1];
    job.w = y->shape[2];
    job.d = y->shape[3];
    job.dtype = y->dtype;
    return job;
}

static __global__ void crop_grid_kernel(crop_work job, const float *table, const float *boxes, void *y)
{
    int64_t j = own_column();

    if (j >= job.d) {
        return;
    }
    PLANE_LOOP(b, job.batch)
    {
        const float *box = boxes + b * 4;

        ROW_LOOP(i, job.h * job.w)
        {
            agglo_bilinear v = agglo_crop_at(box[1], box[3], i / job.w, job.rows, job.h);
            agglo_bilinear u = agglo_crop_at(box[0], box[2], i % job.w, job.columns, job.w);
            const float *row0 = table + v.i0 * job.columns * job.d, *row1 = table + v.i1 * job.columns * job.d;
            float value = v.w0 * (u.w0 * row0[u.i0 * job.d + j] + u.w1 * row0[u.i1 * job.d + j]) +
                          v.w1 * (u.w0 * row1[u.i0 * job.d + j] + u.w1 * row1[u.i1 * job.d + j]);

            set_element(y, job.dtype, (b * job.h * job.w + i) * job.d + j, value);
        }
    }
}

static void crop_grid(agglo_backend *be, const agglo_tensor *table, const agglo_tensor *boxes, agglo_tensor *y)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    crop_work job = crop_work_of(table, y);

    crop_grid_kernel<<<row_grid(job.batch, job.h * job.w, job.d), row_block(job.d), 0, cuda->stream>>>(
        job, input(table), input(boxes), y->data);
    agglo_cuda_launched(cuda, "crop_grid");
}

static __global__ void crop_grid_bwd_kernel(crop_work job, const void *d_y, const float *boxes, float *d_table)
{
    int64_t j = own_column();

    if (j >= job.d) {
        return;
    }
    PLANE_LOOP(r, job.rows)
    {
        ROW_LOOP(c, job.columns)
        {
            float sum = 0.0f;

            for (int64_t b = 0; b < job.batch; b++) {
                const float *box = boxes + b * 4;

                for (int64_t oy = 0; oy < job.h; oy++) {
                    float wy = agglo_bilinear_weight(agglo_crop_at(box[1], box[3], oy, job.rows, job.h), r);

                    for (int64_t ox = 0; wy != 0.0f && ox < job.w; ox++) {
                        float wx = agglo_bilinear_weight(agglo_crop_at(box[0], box[2], ox, job.columns, job.w), c);

                        if (wx != 0.0f) {
                            sum += wy * wx * element(d_y, job.dtype, ((b * job.h + oy) * job.w + ox) * job.d + j);
                        }
                    }
                }
            }
            d_table[(r * job.columns + c) * job.d + j] += sum;
        }
    }
}

static void crop_grid_bwd(agglo_backend *be, const agglo_tensor *d_y, const agglo_tensor *boxes, agglo_tensor *d_table)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    crop_work job = crop_work_of(d_table, d_y);

    crop_grid_bwd_kernel<<<row_grid(job.rows, job.columns, job.d), row_block(job.d), 0, cuda->stream>>>(
        job, d_y->data, input(boxes), output(d_table));
    agglo_cuda_launched(cuda, "crop_grid_bwd");
}

void agglo_cuda_resample_ops(agglo_backend_ops *ops)
{
    ops->resample = resample;
    ops->crop_grid = crop_grid;
    ops->crop_grid_bwd = crop_grid_bwd;
}
