/* The optimiser over many tensors at once: one launch per pass (tensor/ops_optim.h has the formulas).
 *
 *     adamw, adamw_many   p, m, v from g; a BF16 copy of p      28 bytes an element, 30 with the copy
 *     ema                 average from p                        12
 *     grad_norm           sums of squares of all gradients      4
 *     grad_hold           the flag of bad steps, kept           4 a value, one block
 *     sum_squares         of one tensor                         4
 *
 * A list's table cuts its tensors into chunks of AGGLO_OPTIM_CHUNK elements; a block takes a chunk (blocks stride where there are more
 * chunks than a grid), its threads stride over the elements. The norm and the flag of a gradient that is not finite stay on the device:
 * adamw_many reads them in every thread, so that clipping and skipping need no round trip.
 * grad_norm is three launches: a double per chunk (64 squares a thread in F32, then the fixed tree of block_sum), a block per tensor over
 * its chunks, one block over the tensors. The first bad tensor is found with an atomic minimum of integers, which no order can change.
 * Bound by memory. F32, deterministic.
 */
#include "tensor/cuda/kernels.cuh"
#include "tensor/optim_impl.h"
#include "tensor/optim_inline.h"

static __global__ void adamw_kernel(agglo_adamw_step step, int64_t n, const float *g, float *p, float *m, float *v)
{
    FLAT_LOOP(i, n)
    {
        p[i] = agglo_adamw_element(step, p[i], g[i], &m[i], &v[i]);
    }
}

static void adamw(agglo_backend *be, const agglo_adamw_config *config, agglo_tensor *p, const agglo_tensor *g,
                  agglo_tensor *m, agglo_tensor *v)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    int64_t n = agglo_tensor_count(p);

    adamw_kernel<<<flat_grid(cuda, n), BLOCK, 0, cuda->stream>>>(agglo_adamw_step_of(config), n, input(g), output(p),
                                                                 output(m), output(v));
    agglo_cuda_launched(cuda, "adamw");
}

/* A block's chunk: elements [first, end) of a tensor. */
#define CHUNK_LOOP(index, n_chunks) for (int64_t index = blockIdx.x; index < (n_chunks); index += gridDim.x)

static __device__ inline int64_t chunk_end(const agglo_optim_chunk *at, const agglo_optim_tensor *t)
{
    return at->first + AGGLO_OPTIM_CHUNK < t->n ? at->first + AGGLO_OPTIM_CHUNK : t->n;
}

/* state: NULL where nothing guards. at: the numbers on the device; NULL: those that came along. */
static __global__ void __launch_bounds__(BLOCK)
    adamw_many_kernel(agglo_adamw_numbers numbers, const agglo_adamw_numbers *at, int64_t n_chunks,
                      const agglo_optim_tensor *tensors, const agglo_optim_chunk *chunks, const agglo_grad_state *state)
{
    agglo_adamw_step step;

    if (at != NULL) {
        numbers = *at;
    }
    step = agglo_adamw_step_from(&numbers);
    if (state != NULL) {
        if (state->first_bad >= 0) {
            return;
        }
        step.grad_scale = agglo_clip_scale(step.grad_scale, numbers.max_norm, state->norm);
    }
    CHUNK_LOOP(index, n_chunks)
    {
        agglo_optim_chunk chunk = chunks[index];
        agglo_optim_tensor t = tensors[chunk.tensor];
        int64_t end = chunk_end(&chunk, &t);

        step.keep = agglo_adamw_keep(numbers.lr, t.weight_decay);
        for (int64_t i = chunk.first + threadIdx.x; i < end; i += BLOCK) {
            float m = t.m[i], v = t.v[i], p = agglo_adamw_element(step, t.p[i], t.g[i], &m, &v);

            t.m[i] = m;
            t.v[i] = v;
            t.p[i] = p;
            if (t.copy != NULL) {
                ((__nv_bfloat16 *)t.copy)[i] = __float2bfloat16_rn(p);
            }
        }
    }
}

static unsigned chunk_grid(const agglo_optim *optim)
{
    return agglo_cuda_grid(optim->n_chunks, MOST_GRID);
}

static void many(agglo_backend *be, agglo_adamw_numbers numbers, const agglo_adamw_numbers *at, bool guarded,
                 agglo_optim *optim)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);

    adamw_many_kernel<<<chunk_grid(optim), BLOCK, 0, cuda->stream>>>(numbers, at, optim->n_chunks, optim->tensors,
                                                                     optim->chunks, guarded ? optim->state : NULL);
    agglo_cuda_launched(cuda, "adamw_many");
}

static void adamw_many(agglo_backend *be, const agglo_adamw_config *config, float max_norm, bool guarded,
                       agglo_optim *optim)
{
    many(be, agglo_adamw_numbers_of(config, max_norm), NULL, guarded, optim);
}

static void adamw_many_at(agglo_backend *be, const agglo_tensor *numbers, bool guarded, agglo_optim *optim)
{
    agglo_adamw_numbers none = {};

    many(be, none, (const agglo_adamw_numbers *)numbers->data, guarded, optim);
}

static __global__ void __launch_bounds__(BLOCK)
    ema_kernel(float decay, int64_t n_chunks, const agglo_optim_tensor *tensors, const agglo_optim_chunk *chunks)
{
    CHUNK_LOOP(index, n_chunks)
    {
        agglo_optim_chunk at = chunks[index];
        agglo_optim_tensor t = tensors[at.tensor];
        int64_t end = t.average == NULL ? at.first : chunk_end(&at, &t);

        for (int64_t i = at.first + threadIdx.x; i < end; i += BLOCK) {
            t.average[i] = decay * t.average[i] + (1.0f - decay) * t.p[i];
        }
    }
}

static void ema(agglo_backend *be, float decay, agglo_optim *optim)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);

    ema_kernel<<<chunk_grid(optim), BLOCK, 0, cuda->stream>>>(decay, optim->n_chunks, optim->tensors, optim->chunks);
    agglo_cuda_launched(cuda, "ema");
}

/* ---- sums of squares ---- */

/* Of x[first..end), thread 0's; all threads call. */
static __device__ inline double block_squares(const float *x, int64_t first, int64_t end)
{
    float sum = 0.0f;

    for (int64_t i = first + threadIdx.x; i < end; i += BLOCK) {
        sum += x[i] * x[i];
    }
    return block_sum((double)sum);
}

static __global__ void __launch_bounds__(BLOCK) norm_chunks_kernel(int64_t n_chunks, const agglo_optim_tensor *tensors,
                                                                   const agglo_optim_chunk *chunks, double *chunk_sums)
{
    CHUNK_LOOP(index, n_chunks)
    {
        agglo_optim_chunk at = chunks[index];
        const agglo_optim_tensor *t = &tensors[at.tensor];
        double sum = block_squares(t->g, at.first, chunk_end(&at, t));

        if (threadIdx.x == 0) {
            chunk_sums[index] = sum;
        }
    }
}

static __global__ void __launch_bounds__(BLOCK)
    norm_tensors_kernel(int64_t n, const agglo_optim_tensor *tensors, const double *chunk_sums, double *tensor_sums)
{
    for (int64_t i = blockIdx.x; i < n; i += gridDim.x) {
        const double *own = chunk_sums + tensors[i].first_chunk;
        int64_t n_own = tensors[i].n_chunks;
        double sum = 0.0;

        for (int64_t k = threadIdx.x; k < n_own; k += BLOCK) {
            sum += own[k];
        }
        sum = block_sum(sum);
        if (threadIdx.x == 0) {
            tensor_sums[i] = sum;
        }
    }
}

static __global__ void norm_state_kernel(int64_t n, const double *tensor_sums, agglo_grad_state *state)
{
    __shared__ unsigned long long first_bad;
    double sum = 0.0;

    if (threadIdx.x == 0) {
        first_bad = (unsigned long long)n;
    }
    __syncthreads();
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
        sum += tensor_sums[i];
        if (!isfinite(tensor_sums[i])) {
            atomicMin(&first_bad, (unsigned long long)i);
        }
    }
    sum = block_sum(sum); /* and all threads have been here */
    if (threadIdx.x == 0) {
        state->norm = sqrt(sum);
        state->first_bad = first_bad == (unsigned long long)n ? -1 : (int64_t)first_bad;
    }
}

static void grad_norm(agglo_backend *be, agglo_optim *optim)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);

    norm_chunks_kernel<<<chunk_grid(optim), BLOCK, 0, cuda->stream>>>(optim->n_chunks, optim->tensors, optim->chunks,
                                                                      optim->chunk_sums);
    agglo_cuda_launched(cuda, "grad_norm");
    norm_tensors_kernel<<<agglo_cuda_grid(optim->n, MOST_GRID), BLOCK, 0, cuda->stream>>>(
        optim->n, optim->tensors, optim->chunk_sums, optim->tensor_sums);
    agglo_cuda_launched(cuda, "grad_norm");
    norm_state_kernel<<<1, 1024, 0, cuda->stream>>>(optim->n, optim->tensor_sums, optim->state);
    agglo_cuda_launched(cuda, "grad_norm");
}

/* One block. */
static __global__ void hold_kernel(int64_t n, const float *values, int64_t n_entries, agglo_grad_state *state,
                                   int64_t *held)
{
    double bad = 0.0;

    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
        bad += isfinite(values[i]) ? 0.0 : 1.0;
    }
    bad = block_sum(bad);
    if (threadIdx.x == 0) {
        if (*held < 0) {
            *held = state->first_bad >= 0 || bad == 0.0 ? state->first_bad : n_entries;
        }
        state->first_bad = *held;
    }
}

static void grad_hold(agglo_backend *be, const agglo_tensor *values, agglo_optim *optim)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);

    hold_kernel<<<1, BLOCK, 0, cuda->stream>>>(agglo_tensor_count(values), input(values), optim->n, optim->state,
                                               optim->held);
    agglo_cuda_launched(cuda, "grad_hold");
}

static __global__ void __launch_bounds__(BLOCK)
    sum_squares_kernel(int64_t n, int64_t n_chunks, const float *x, double *partial)
{
    CHUNK_LOOP(index, n_chunks)
    {
        int64_t first = index * AGGLO_OPTIM_CHUNK;
        double sum = block_squares(x, first, first + AGGLO_OPTIM_CHUNK < n ? first + AGGLO_OPTIM_CHUNK : n);

        if (threadIdx.x == 0) {
            partial[index] = sum;
        }
    }
}

static __global__ void add_chunks_kernel(int64_t n_chunks, const double *partial, float *out)
{
    double sum = 0.0;

    for (int64_t i = threadIdx.x; i < n_chunks; i += blockDim.x) {
        sum += partial[i];
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
        *out = (float)((double)*out + sum);
    }
}

static void sum_squares(agglo_backend *be, const agglo_tensor *x, agglo_tensor *out)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    int64_t n = agglo_tensor_count(x), n_chunks = agglo_cuda_ceil_div(n, AGGLO_OPTIM_CHUNK);
    double *partial = (double *)agglo_cuda_reserve(cuda, (size_t)n_chunks * sizeof(double));

    if (partial == NULL) {
        return;
    }
    sum_squares_kernel<<<agglo_cuda_grid(n_chunks, MOST_GRID), BLOCK, 0, cuda->stream>>>(n, n_chunks, input(x),
                                                                                         partial);
    agglo_cuda_launched(cuda, "sum_squares");
    add_chunks_kernel<<<1, 1024, 0, cuda->stream>>>(n_chunks, partial, output(out));
    agglo_cuda_launched(cuda, "sum_squares");
}

void agglo_cuda_optim_ops(agglo_backend_ops *ops)
{
    ops->adamw = adamw;
    ops->adamw_many = adamw_many;
    ops->adamw_many_at = adamw_many_at;
    ops->ema = ema;
    ops->grad_norm = grad_norm;
    ops->grad_hold = grad_hold;
    ops->sum_squares = sum_squares;
}
