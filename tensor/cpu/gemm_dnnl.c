/* Matrix products by oneDNN, which operators are measured against (agglo_backend_product) and none is made of; with conv_dnnl.c the only file
 * that sees it.
 *
 * The pool cuts the work, so a product runs on the thread that asks for it. oneDNN here is built on OpenMP and would start its own
 * threads: their number is a per-thread setting of the OpenMP runtime, made one at the first product of each thread.
 */
#include "tensor/cpu/cpu_impl.h"

#include <oneapi/dnnl/dnnl.h>

#include <stdatomic.h>

/* of the OpenMP runtime that oneDNN brings; <omp.h> is not installed with every compiler */
extern void omp_set_num_threads(int n);

static _Thread_local bool single_threaded;
static atomic_int failure; /* the last status that was not success, until it is asked for */

void agglo_cpu_one_thread(void)
{
    if (!single_threaded) {
        omp_set_num_threads(1);
        single_threaded = true;
    }
}

void agglo_cpu_dnnl_status(int status)
{
    if (status != dnnl_success) {
        atomic_store(&failure, status);
    }
}

int agglo_cpu_dnnl_failure(void)
{
    return atomic_exchange(&failure, 0);
}

typedef struct slices {
    int64_t m, n, k, n_slices;
    const float *a, *b;
    float *c;
    bool transpose_b;
} slices;

static void product_slice(void *context, int64_t index, int worker)
{
    const slices *s = context;
    int64_t from = s->m * index / s->n_slices, to = s->m * (index + 1) / s->n_slices;

    dnnl_status_t status;

    (void)worker;
    agglo_cpu_one_thread();
    status = dnnl_sgemm('N', s->transpose_b ? 'T' : 'N', to - from, s->n, s->k, 1.0f, s->a + from * s->k, s->k, s->b,
                        s->transpose_b ? s->k : s->n, 0.0f, s->c + from * s->n, s->n);
    /* shapes are checked before: what is left is memory for packing */
    AGGLO_ASSERT(status != dnnl_invalid_arguments);
    agglo_cpu_dnnl_status((int)status);
}

void agglo_cpu_product(agglo_backend *be, const agglo_tensor *a, const agglo_tensor *b, bool transpose_b,
                       agglo_tensor *c)
{
    int64_t m = a->shape[0];
    slices s = {m,       c->shape[1], a->shape[1], agglo_min(m, agglo_pool_threads(be->pool)),
                a->data, b->data,     c->data,     transpose_b};

    agglo_pool_for(be->pool, s.n_slices, product_slice, &s);
}

agglo_backend_library agglo_backend_cpu_library(void)
{
    const dnnl_version_t *version = dnnl_version();
    agglo_backend_library library = {version->major, version->minor, version->patch};

    return library;
}
