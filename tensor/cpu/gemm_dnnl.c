/* Matrix products by oneDNN: the only file that sees it.
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

void agglo_cpu_sgemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float alpha, const float *a,
                     int64_t lda, const float *b, int64_t ldb, float beta, float *c, int64_t ldc)
{
    dnnl_status_t status;

    if (!single_threaded) {
        omp_set_num_threads(1);
        single_threaded = true;
    }
    status = dnnl_sgemm(transpose_a ? 'T' : 'N', transpose_b ? 'T' : 'N', m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
    /* shapes are checked before: what is left is memory for packing */
    AGGLO_ASSERT(status != dnnl_invalid_arguments);
    if (status != dnnl_success) {
        atomic_store(&failure, (int)status);
    }
}

int agglo_cpu_sgemm_failure(void)
{
    return atomic_exchange(&failure, 0);
}

agglo_backend_library agglo_backend_cpu_library(void)
{
    const dnnl_version_t *version = dnnl_version();
    agglo_backend_library library = {version->major, version->minor, version->patch};

    return library;
}
