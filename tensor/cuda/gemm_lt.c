/* Matrix products by cuBLASLt: the only file that sees it.
 *
 * cuBLASLt is column-major: a packed row-major X[r,c] is its c x r matrix, transposed. So C = op(A) op(B) is asked for as
 * C^T = op(B)^T op(A)^T, which leaves the flags as they are and changes the order of the operands.
 *
 * Arithmetic is true F32 (COMPUTE_TYPE; tensor cores would round operands to TF32, 10 bits of mantissa, and miss the tolerances of the parity
 * tests). An algorithm is asked for once per (shape, flags, alignment) and kept. Split products may meet only in a separate pass over the
 * workspace, never in place, so that results do not depend on timing.
 */
#include "tensor/cuda/cuda_impl.h"

#include "base/alloc.h"

#include <cublasLt.h>

#define COMPUTE_TYPE    CUBLAS_COMPUTE_32F
#define WORKSPACE_BYTES ((size_t)32 << 20)
#define MAX_PLANS       512

typedef struct plan_key {
    int64_t m, n, k;
    uint32_t align_a, align_b, align_c;
    bool transpose_a, transpose_b;
} plan_key;

typedef struct plan {
    plan_key key;
    bool used;
    cublasLtMatmulAlgo_t algo;
} plan;

struct agglo_cuda_gemm {
    cublasLtHandle_t handle;
    void *workspace;
    plan plans[MAX_PLANS]; /* open addressing; a full table starts again from nothing */
    int n_plans;
};

static bool lt_ok(agglo_cuda *cuda, cublasStatus_t status, const plan_key *key)
{
    agglo_err err = {0};

    if (status == CUBLAS_STATUS_SUCCESS) {
        return true;
    }
    agglo_fail(&err, AGGLO_E_DEVICE, "cuBLASLt's product of [%lld, %lld] and [%lld, %lld]: %s", (long long)key->m,
               (long long)key->k, (long long)key->k, (long long)key->n, cublasLtGetStatusString(status));
    agglo_at(&err, "GPU %d", cuda->device);
    agglo_backend_latch(&cuda->base, &err);
    return false;
}

agglo_status agglo_cuda_gemm_new(agglo_cuda *cuda, agglo_err *err)
{
    cublasStatus_t status;
    cudaError_t memory;

    cuda->gemm = agglo_alloc(1, sizeof *cuda->gemm, err);
    if (cuda->gemm == NULL) {
        return err->status;
    }
    status = cublasLtCreate(&cuda->gemm->handle);
    if (status != CUBLAS_STATUS_SUCCESS) {
        cuda->gemm->handle = NULL;
        return agglo_fail(err, AGGLO_E_DEVICE, "cublasLtCreate: %s", cublasLtGetStatusString(status));
    }
    memory = cudaMalloc(&cuda->gemm->workspace, WORKSPACE_BYTES);
    if (memory != cudaSuccess) {
        cuda->gemm->workspace = NULL;
        return agglo_fail(err, AGGLO_E_MEMORY, "cuBLASLt's workspace: %s", cudaGetErrorString(memory));
    }
    return AGGLO_OK;
}

void agglo_cuda_gemm_free(agglo_cuda *cuda)
{
    if (cuda->gemm == NULL) {
        return;
    }
    if (cuda->gemm->handle != NULL) {
        cublasLtDestroy(cuda->gemm->handle);
    }
    cudaFree(cuda->gemm->workspace);
    agglo_free(cuda->gemm);
    cuda->gemm = NULL;
}

/* A product as cuBLASLt sees it: D[n,m] = left[n,k] right[k,m], column-major. */
typedef struct product {
    cublasLtMatmulDescOpaque_t desc;
    cublasLtMatrixLayoutOpaque_t left, right, out;
} product;

static cublasStatus_t describe(const plan_key *key, product *p)
{
    const cublasOperation_t left = key->transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasOperation_t right = key->transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    const int64_t m = key->m, n = key->n, k = key->k;
    /* extents as stored: B is [n,k] when it is to be transposed, else [k,n]; A is [k,m] or [m,k]; columns come first */
    const int64_t b_cols = key->transpose_b ? k : n, b_rows = key->transpose_b ? n : k;
    const int64_t a_cols = key->transpose_a ? m : k, a_rows = key->transpose_a ? k : m;
    cublasStatus_t status = cublasLtMatmulDescInit(&p->desc, COMPUTE_TYPE, CUDA_R_32F);

    if (status == CUBLAS_STATUS_SUCCESS) {
        status = cublasLtMatmulDescSetAttribute(&p->desc, CUBLASLT_MATMUL_DESC_TRANSA, &left, sizeof left);
    }
    if (status == CUBLAS_STATUS_SUCCESS) {
        status = cublasLtMatmulDescSetAttribute(&p->desc, CUBLASLT_MATMUL_DESC_TRANSB, &right, sizeof right);
    }
    if (status == CUBLAS_STATUS_SUCCESS) {
        status = cublasLtMatrixLayoutInit(&p->left, CUDA_R_32F, (uint64_t)b_cols, (uint64_t)b_rows, b_cols);
    }
    if (status == CUBLAS_STATUS_SUCCESS) {
        status = cublasLtMatrixLayoutInit(&p->right, CUDA_R_32F, (uint64_t)a_cols, (uint64_t)a_rows, a_cols);
    }
    if (status == CUBLAS_STATUS_SUCCESS) {
        status = cublasLtMatrixLayoutInit(&p->out, CUDA_R_32F, (uint64_t)n, (uint64_t)m, n);
    }
    return status;
}

static cublasStatus_t choose(agglo_cuda_gemm *gemm, const plan_key *key, product *p, cublasLtMatmulAlgo_t *algo)
{
    const uint32_t reduction = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    const size_t workspace = WORKSPACE_BYTES;
    const struct {
        cublasLtMatmulPreferenceAttributes_t attribute;
        const void *value;
        size_t size;
    } wishes[] = {
        {CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace},
        {CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reduction, sizeof reduction},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &key->align_b, sizeof key->align_b},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &key->align_a, sizeof key->align_a},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &key->align_c, sizeof key->align_c},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &key->align_c, sizeof key->align_c},
    };
    cublasLtMatmulPreferenceOpaque_t preference;
    cublasLtMatmulHeuristicResult_t found = {0};
    int n_found = 0;
    cublasStatus_t status = cublasLtMatmulPreferenceInit(&preference);

    for (size_t i = 0; i < AGGLO_COUNT(wishes) && status == CUBLAS_STATUS_SUCCESS; i++) {
        status =
            cublasLtMatmulPreferenceSetAttribute(&preference, wishes[i].attribute, wishes[i].value, wishes[i].size);
    }
    if (status == CUBLAS_STATUS_SUCCESS) {
        status = cublasLtMatmulAlgoGetHeuristic(gemm->handle, &p->desc, &p->left, &p->right, &p->out, &p->out,
                                                &preference, 1, &found, &n_found);
    }
    if (status == CUBLAS_STATUS_SUCCESS) {
        status = n_found > 0 ? found.state : CUBLAS_STATUS_NOT_SUPPORTED;
    }
    *algo = found.algo;
    return status;
}

static bool same(const plan_key *a, const plan_key *b)
{
    return a->m == b->m && a->n == b->n && a->k == b->k && a->transpose_a == b->transpose_a &&
           a->transpose_b == b->transpose_b && a->align_a == b->align_a && a->align_b == b->align_b &&
           a->align_c == b->align_c;
}

/* The plan of this key or a free slot for it. */
static plan *slot_of(agglo_cuda_gemm *gemm, const plan_key *key)
{
    uint64_t hash = (uint64_t)key->m;

    hash = hash * 0x9E3779B97F4A7C15u + (uint64_t)key->n;
    hash = hash * 0x9E3779B97F4A7C15u + (uint64_t)key->k;
    hash = hash * 0x9E3779B97F4A7C15u + (key->transpose_a ? 2u : 0u) + (key->transpose_b ? 1u : 0u);
    hash = (hash ^ hash >> 32) * 0x9E3779B97F4A7C15u;
    for (uint64_t i = hash >> 32;; i++) {
        plan *at = &gemm->plans[i % MAX_PLANS];

        if (!at->used || same(&at->key, key)) {
            return at;
        }
    }
}

/* The largest power of two up to 256 that divides the address. */
static uint32_t alignment(const void *p)
{
    uintptr_t bits = (uintptr_t)p | 256;

    return (uint32_t)(bits & (~bits + 1));
}

void agglo_cuda_sgemm(agglo_cuda *cuda, bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k,
                      const float *a, const float *b, float beta, float *c)
{
    const plan_key key = {m, n, k, alignment(a), alignment(b), alignment(c), transpose_a, transpose_b};
    const float alpha = 1.0f;
    agglo_cuda_gemm *gemm = cuda->gemm;
    product p;
    plan *found;

    if (!lt_ok(cuda, describe(&key, &p), &key)) {
        return;
    }
    found = slot_of(gemm, &key);
    if (!found->used) {
        cublasLtMatmulAlgo_t algo;

        if (!lt_ok(cuda, choose(gemm, &key, &p, &algo), &key)) {
            return;
        }
        if (gemm->n_plans >= MAX_PLANS * 3 / 4) {
            for (int i = 0; i < MAX_PLANS; i++) {
                gemm->plans[i].used = false;
            }
            gemm->n_plans = 0;
            found = slot_of(gemm, &key);
        }
        found->key = key;
        found->algo = algo;
        found->used = true;
        gemm->n_plans++;
    }
    lt_ok(cuda,
          cublasLtMatmul(gemm->handle, &p.desc, &alpha, b, &p.left, a, &p.right, &beta, c, &p.out, c, &p.out,
                         &found->algo, gemm->workspace, WORKSPACE_BYTES, cuda->stream),
          &key);
}

/* agglo_backend_product */
static void product_alone(agglo_backend *be, const agglo_tensor *a, const agglo_tensor *b, bool transpose_b,
                          agglo_tensor *c)
{
    AGGLO_ASSERT(a->dtype == AGGLO_F32);
    agglo_cuda_sgemm(agglo_cuda_enter(be), false, transpose_b, a->shape[0], c->shape[1], a->shape[1], a->data, b->data,
                     0.0f, c->data);
}

/* ---- the linear operators ---- */

/* y[M,N] = act(x[M,K] w[N,K]^T + b): the product, then one pass over y for bias and activation. */
static void linear(agglo_backend *be, const agglo_tensor *x, const agglo_tensor *w, const agglo_tensor *b,
                   agglo_act act, agglo_tensor *pre, agglo_tensor *y)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    int64_t k = w->shape[1], n = w->shape[0], m = agglo_tensor_count(x) / k;

    agglo_cuda_sgemm(cuda, false, true, m, n, k, x->data, w->data, 0.0f, y->data);
    if (b != NULL || pre != NULL || act != AGGLO_ACT_NONE) {
        agglo_cuda_bias_act(cuda, act, m, n, b == NULL ? NULL : b->data, pre == NULL ? NULL : pre->data, y->data);
    }
}

static void linear_bwd_input(agglo_backend *be, const agglo_tensor *d_y, const agglo_tensor *w, bool accumulate,
                             agglo_tensor *d_x)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    int64_t k = w->shape[1], n = w->shape[0], m = agglo_tensor_count(d_y) / n;

    agglo_cuda_sgemm(cuda, false, false, m, k, n, d_y->data, w->data, accumulate ? 1.0f : 0.0f, d_x->data);
}

static void linear_bwd_weight(agglo_backend *be, const agglo_tensor *d_y, const agglo_tensor *x, agglo_tensor *d_w,
                              agglo_tensor *d_b)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    int64_t n = d_w->shape[0], k = d_w->shape[1], m = agglo_tensor_count(x) / k;

    agglo_cuda_sgemm(cuda, true, false, n, k, m, d_y->data, x->data, 1.0f, d_w->data);
    if (d_b != NULL) {
        agglo_cuda_column_sums(cuda, m, n, d_y->data, NULL, d_b->data);
    }
}

void agglo_cuda_linear_ops(agglo_backend_ops *ops)
{
    ops->product = product_alone;
    ops->linear = linear;
    ops->linear_bwd_input = linear_bwd_input;
    ops->linear_bwd_weight = linear_bwd_weight;
}
