/* cuDNN's fused attention through its C backend API: the only file that sees cuDNN.
 *
 * The graph is one operation, SDPA forward (since cuDNN 9.13) or SDPA backward (since 9.17), on BF16 tensors of extents [B,H,N,D] whose strides
 * are those of the packed qkv[B,N,3,H,D] and of out[B,N,H,D], so that nothing is copied. Statistics are [B,H,N,1] F32, the natural
 * logarithm of the sums of exponentials of the scaled scores: agglo's lse. The scale is a float handed over by value when the plan runs.
 *
 *     tensors -> operation -> operation graph -> heuristics -> engine configurations -> execution plan, the first that can be built
 *
 * An engine that says it is not deterministic is passed over, and so is a plan that wants more than MOST_WORKSPACE. A plan is built once per
 * (B, N, H, D, what for) and kept, at most MAX_PLANS of them, the oldest making room unless recorded steps may hold it; that a shape has none is
 * kept too.
 *
 * The library is loaded when BF16 attention is first asked for: a program starts without it. Where the library, an operation or a shape is not
 * supported, or AGGLO_CUDNN in the environment is "off", these functions return false with nothing done, say so once in the debug log, and attention_mma.cu does the work.
 */
#include "tensor/cuda/cuda_impl.h"

#include "base/alloc.h"
#include "base/log.h"

#include <cudnn.h>
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#define LIBRARY        "libcudnn.so.9"
#define SINCE_FORWARD  ((size_t)91300)
#define SINCE_BACKWARD ((size_t)91700)
#define MAX_PLANS      64
#define MAX_CONFIGS    8  /* of each mode of the heuristics */
#define MAX_MADE       48 /* descriptors of one plan */
#define MOST_WORKSPACE ((int64_t)1 << 30)

typedef enum purpose { INFERENCE, FORWARD, BACKWARD } purpose;

/* Names of the tensors in a graph and its variant pack. */
enum { UID_Q = 1, UID_K, UID_V, UID_OUT, UID_LSE, UID_SCALE, UID_D_OUT, UID_D_Q, UID_D_K, UID_D_V, UID_END };

typedef struct plan {
    int64_t b, n, h, d;
    purpose purpose;
    bool used;
    cudnnBackendDescriptor_t plan; /* NULL: cuDNN has none for this shape */
    int64_t workspace;
    cudnnBackendDescriptor_t made[MAX_MADE]; /* all that was made for it, the plan too, in order */
    int n_made;
} plan;

struct agglo_cuda_sdpa {
    void *library;
    size_t version;
    cudnnHandle_t handle;
    bool unusable; /* no library, no symbols or no handle: asked once */
    plan plans[MAX_PLANS];
    int next; /* whose place the next new plan takes */

    size_t (*get_version)(void);
    const char *(*error_string)(cudnnStatus_t);
    cudnnStatus_t (*create)(cudnnHandle_t *);
    cudnnStatus_t (*destroy)(cudnnHandle_t);
    cudnnStatus_t (*set_stream)(cudnnHandle_t, cudaStream_t);
    cudnnStatus_t (*make)(cudnnBackendDescriptorType_t, cudnnBackendDescriptor_t *);
    cudnnStatus_t (*unmake)(cudnnBackendDescriptor_t);
    cudnnStatus_t (*finalize)(cudnnBackendDescriptor_t);
    cudnnStatus_t (*set)(cudnnBackendDescriptor_t, cudnnBackendAttributeName_t, cudnnBackendAttributeType_t, int64_t,
                         const void *);
    cudnnStatus_t (*get)(cudnnBackendDescriptor_t, cudnnBackendAttributeName_t, cudnnBackendAttributeType_t, int64_t,
                         int64_t *, void *);
    cudnnStatus_t (*execute)(cudnnHandle_t, cudnnBackendDescriptor_t, cudnnBackendDescriptor_t);
};

/* ---- the library ---- */

/* POSIX says that dlsym's pointer is a function's where a function was asked for; C has no conversion for it. */
static bool symbol(void *library, const char *name, void *function)
{
    void *address = dlsym(library, name);

    memcpy(function, &address, sizeof address);
    return address != NULL;
}

static bool load_symbols(agglo_cuda_sdpa *s)
{
    return symbol(s->library, "cudnnGetVersion", &s->get_version) &&
           symbol(s->library, "cudnnGetErrorString", &s->error_string) &&
           symbol(s->library, "cudnnCreate", &s->create) && symbol(s->library, "cudnnDestroy", &s->destroy) &&
           symbol(s->library, "cudnnSetStream", &s->set_stream) &&
           symbol(s->library, "cudnnBackendCreateDescriptor", &s->make) &&
           symbol(s->library, "cudnnBackendDestroyDescriptor", &s->unmake) &&
           symbol(s->library, "cudnnBackendFinalize", &s->finalize) &&
           symbol(s->library, "cudnnBackendSetAttribute", &s->set) &&
           symbol(s->library, "cudnnBackendGetAttribute", &s->get) &&
           symbol(s->library, "cudnnBackendExecute", &s->execute);
}

/* Load cuDNN, or say why not; the backend's struct either way, NULL only where there is no memory for it. */
static agglo_cuda_sdpa *open_library(agglo_cuda *cuda)
{
    agglo_err err = {0};
    agglo_cuda_sdpa *s = cuda->sdpa;
    const char *wanted = getenv("AGGLO_CUDNN");
    cudnnStatus_t status;

    if (s != NULL) {
        return s;
    }
    s = agglo_alloc(1, sizeof *s, &err);
    if (s == NULL) {
        agglo_backend_latch(&cuda->base, &err);
        return NULL;
    }
    cuda->sdpa = s;
    s->unusable = true;
    if (wanted != NULL && strcmp(wanted, "off") == 0) {
        agglo_log(AGGLO_LOG_DEBUG, "attention in BF16 by own kernels: AGGLO_CUDNN is off");
        return s;
    }
    s->library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (s->library == NULL) {
        const char *why = dlerror();

        agglo_log(AGGLO_LOG_DEBUG, "attention in BF16 by own kernels: %s", why == NULL ? LIBRARY " is missing" : why);
        return s;
    }
    if (!load_symbols(s)) {
        agglo_log(AGGLO_LOG_DEBUG, "attention in BF16 by own kernels: %s lacks a function of cuDNN 9", LIBRARY);
        return s;
    }
    s->version = s->get_version();
    if (s->version < SINCE_FORWARD) {
        agglo_log(AGGLO_LOG_DEBUG, "attention in BF16 by own kernels: cuDNN is version %zu, %zu is needed", s->version,
                  SINCE_FORWARD);
        return s;
    }
    status = s->create(&s->handle);
    if (status == CUDNN_STATUS_SUCCESS) {
        status = s->set_stream(s->handle, cuda->stream);
    } else {
        s->handle = NULL;
    }
    if (status != CUDNN_STATUS_SUCCESS) {
        agglo_log(AGGLO_LOG_DEBUG, "attention in BF16 by own kernels: cuDNN does not start: %s",
                  s->error_string(status));
        return s;
    }
    s->unusable = false;
    return s;
}

static void clear_plan(agglo_cuda_sdpa *s, plan *p)
{
    while (p->n_made > 0) { /* what was made later refers to what was made before */
        s->unmake(p->made[--p->n_made]);
    }
    p->plan = NULL;
    p->used = false;
}

void agglo_cuda_sdpa_free(agglo_cuda *cuda)
{
    agglo_cuda_sdpa *s = cuda->sdpa;

    if (s == NULL) {
        return;
    }
    for (int i = 0; i < MAX_PLANS; i++) {
        clear_plan(s, &s->plans[i]);
    }
    if (s->handle != NULL) {
        s->destroy(s->handle);
    }
    if (s->library != NULL) {
        dlclose(s->library);
    }
    agglo_free(s);
    cuda->sdpa = NULL;
}

/* ---- building a plan ---- */

/* The first failure stands; after it nothing is done. */
typedef struct builder {
    agglo_cuda_sdpa *s;
    plan *p;
    cudnnStatus_t status;
} builder;

static cudnnBackendDescriptor_t make(builder *b, cudnnBackendDescriptorType_t type)
{
    cudnnBackendDescriptor_t made = NULL;

    if (b->status != CUDNN_STATUS_SUCCESS) {
        return NULL;
    }
    AGGLO_ASSERT(b->p->n_made < MAX_MADE);
    b->status = b->s->make(type, &made);
    if (b->status != CUDNN_STATUS_SUCCESS) {
        return NULL;
    }
    b->p->made[b->p->n_made++] = made;
    return made;
}

static void set(builder *b, cudnnBackendDescriptor_t of, cudnnBackendAttributeName_t name,
                cudnnBackendAttributeType_t type, int64_t n, const void *values)
{
    if (b->status == CUDNN_STATUS_SUCCESS) {
        b->status = b->s->set(of, name, type, n, values);
    }
}

static void set_descriptor(builder *b, cudnnBackendDescriptor_t of, cudnnBackendAttributeName_t name,
                           cudnnBackendDescriptor_t value)
{
    set(b, of, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value);
}

static void finish(builder *b, cudnnBackendDescriptor_t descriptor)
{
    if (b->status == CUDNN_STATUS_SUCCESS) {
        b->status = b->s->finalize(descriptor);
    }
}

static cudnnBackendDescriptor_t tensor(builder *b, int64_t uid, cudnnDataType_t type, const int64_t dims[4],
                                       const int64_t strides[4])
{
    cudnnBackendDescriptor_t t = make(b, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    const int64_t alignment = 16;
    const bool by_value = uid == UID_SCALE, is_virtual = false;

    set(b, t, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &uid);
    set(b, t, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
    set(b, t, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment);
    set(b, t, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, dims);
    set(b, t, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, strides);
    set(b, t, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &is_virtual);
    set(b, t, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &by_value);
    finish(b, t);
    return t;
}

static void attach(builder *b, cudnnBackendDescriptor_t operation, cudnnBackendAttributeName_t name, int64_t uid)
{
    const plan *p = b->p;
    const int64_t dim = p->h * p->d, dims[4] = {p->b, p->h, p->n, p->d};
    const int64_t packed[4] = {p->n * 3 * dim, p->d, 3 * dim, 1}, unpacked[4] = {p->n * dim, p->d, dim, 1};
    const int64_t rows[4] = {p->b, p->h, p->n, 1}, row_strides[4] = {p->h * p->n, p->n, 1, 1};
    const int64_t one[4] = {1, 1, 1, 1};
    cudnnBackendDescriptor_t t;

    switch (uid) {
    case UID_LSE:
        t = tensor(b, uid, CUDNN_DATA_FLOAT, rows, row_strides);
        break;
    case UID_SCALE:
        t = tensor(b, uid, CUDNN_DATA_FLOAT, one, one);
        break;
    case UID_OUT:
    case UID_D_OUT:
        t = tensor(b, uid, CUDNN_DATA_BFLOAT16, dims, unpacked);
        break;
    default:
        t = tensor(b, uid, CUDNN_DATA_BFLOAT16, dims, packed);
        break;
    }
    set_descriptor(b, operation, name, t);
}

static cudnnBackendDescriptor_t forward_operation(builder *b)
{
    cudnnBackendDescriptor_t op = make(b, CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR);

    attach(b, op, CUDNN_ATTR_OPERATION_SDPA_FWD_QDESC, UID_Q);
    attach(b, op, CUDNN_ATTR_OPERATION_SDPA_FWD_KDESC, UID_K);
    attach(b, op, CUDNN_ATTR_OPERATION_SDPA_FWD_VDESC, UID_V);
    attach(b, op, CUDNN_ATTR_OPERATION_SDPA_FWD_ODESC, UID_OUT);
    attach(b, op, CUDNN_ATTR_OPERATION_SDPA_FWD_SCALEDESC, UID_SCALE);
    if (b->p->purpose == FORWARD) {
        attach(b, op, CUDNN_ATTR_OPERATION_SDPA_FWD_STATSDESC, UID_LSE);
    }
    finish(b, op);
    return op;
}

static cudnnBackendDescriptor_t backward_operation(builder *b)
{
    cudnnBackendDescriptor_t op = make(b, CUDNN_BACKEND_OPERATION_SDPA_BWD_DESCRIPTOR);

    attach(b, op, CUDNN_ATTR_OPERATION_SDPA_BWD_QDESC, UID_Q);
    attach(b, op, CUDNN_ATTR_OPERATION_SDPA_BWD_KDESC, UID_K);
    attach(b, op, CUDNN_ATTR_OPERATION_SDPA_BWD_VDESC, UID_V);
    attach(b, op, CUDNN_ATTR_OPERATION_SDPA_BWD_ODESC, UID_OUT);
    attach(b, op, CUDNN_ATTR_OPERATION_SDPA_BWD_DODDESC, UID_D_OUT);
    attach(b, op, CUDNN_ATTR_OPERATION_SDPA_BWD_STATSDESC, UID_LSE);
    attach(b, op, CUDNN_ATTR_OPERATION_SDPA_BWD_SCALEDESC, UID_SCALE);
    attach(b, op, CUDNN_ATTR_OPERATION_SDPA_BWD_DQDESC, UID_D_Q);
    attach(b, op, CUDNN_ATTR_OPERATION_SDPA_BWD_DKDESC, UID_D_K);
    attach(b, op, CUDNN_ATTR_OPERATION_SDPA_BWD_DVDESC, UID_D_V);
    finish(b, op);
    return op;
}

/* Whether the configuration's engine gives the same bytes each time, as far as it says. */
static bool deterministic(builder *b, cudnnBackendDescriptor_t config)
{
    cudnnBackendNumericalNote_t notes[CUDNN_NUMERICAL_NOTE_TYPE_COUNT];
    cudnnBackendDescriptor_t engine = NULL;
    int64_t n = 0;
    bool ok;

    if (b->s->make(CUDNN_BACKEND_ENGINE_DESCRIPTOR, &engine) != CUDNN_STATUS_SUCCESS) {
        return false;
    }
    ok = b->s->get(config, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &n, &engine) ==
             CUDNN_STATUS_SUCCESS &&
         b->s->get(engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE, CUDNN_NUMERICAL_NOTE_TYPE_COUNT,
                   &n, notes) == CUDNN_STATUS_SUCCESS;
    for (int64_t i = 0; ok && i < n; i++) {
        ok = notes[i] != CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC;
    }
    b->s->unmake(engine);
    return ok;
}

/* The execution plan of a configuration becomes the plan's; false where there is none, or it wants too much. */
static bool build_plan(builder *b, cudnnBackendDescriptor_t config)
{
    agglo_cuda_sdpa *s = b->s;
    plan *p = b->p;
    int64_t n = 0;

    p->plan = make(b, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
    set(b, p->plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &s->handle);
    set_descriptor(b, p->plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config);
    finish(b, p->plan);
    if (b->status == CUDNN_STATUS_SUCCESS) {
        b->status = s->get(p->plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &n, &p->workspace);
    }
    if (b->status == CUDNN_STATUS_SUCCESS && p->workspace > MOST_WORKSPACE) {
        b->status = CUDNN_STATUS_NOT_SUPPORTED;
    }
    if (b->status == CUDNN_STATUS_SUCCESS) {
        return true;
    }
    p->plan = NULL;
    return false;
}

static bool choose(builder *b, cudnnBackendDescriptor_t graph, cudnnBackendHeurMode_t mode)
{
    cudnnBackendDescriptor_t heuristics = make(b, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR), configs[MAX_CONFIGS];
    int64_t n = 0;

    for (int i = 0; i < MAX_CONFIGS; i++) {
        configs[i] = make(b, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    }
    set_descriptor(b, heuristics, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph);
    set(b, heuristics, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
    finish(b, heuristics);
    if (b->status == CUDNN_STATUS_SUCCESS) {
        b->status = b->s->get(heuristics, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, MAX_CONFIGS, &n,
                              configs);
    }
    if (b->status != CUDNN_STATUS_SUCCESS) {
        return false;
    }
    b->status = CUDNN_STATUS_NOT_SUPPORTED; /* where there is no configuration */
    for (int64_t i = 0; i < n && i < MAX_CONFIGS; i++) {
        if (!deterministic(b, configs[i])) {
            continue;
        }
        b->status = CUDNN_STATUS_SUCCESS;
        if (build_plan(b, configs[i])) {
            return true;
        }
    }
    return false;
}

static void build(agglo_cuda_sdpa *s, plan *p)
{
    static const char *const names[] = {"attention at inference", "attention", "attention_bwd"};
    builder b = {s, p, CUDNN_STATUS_SUCCESS};
    cudnnBackendDescriptor_t operation, graph;

    operation = p->purpose == BACKWARD ? backward_operation(&b) : forward_operation(&b);
    graph = make(&b, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    set(&b, graph, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &s->handle);
    set_descriptor(&b, graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, operation);
    finish(&b, graph);
    if (b.status == CUDNN_STATUS_SUCCESS && !choose(&b, graph, CUDNN_HEUR_MODE_A)) {
        b.status = CUDNN_STATUS_SUCCESS;
        choose(&b, graph, CUDNN_HEUR_MODE_FALLBACK);
    }
    if (b.status == CUDNN_STATUS_SUCCESS) {
        agglo_log(AGGLO_LOG_DEBUG, "%s of %lld x %lld x %lld x %lld in BF16 by cuDNN %zu", names[p->purpose],
                  (long long)p->b, (long long)p->n, (long long)p->h, (long long)p->d, s->version);
        return;
    }
    clear_plan(s, p);
    agglo_log(AGGLO_LOG_DEBUG, "%s of %lld x %lld x %lld x %lld in BF16 by own kernels: cuDNN %zu says %s",
              names[p->purpose], (long long)p->b, (long long)p->n, (long long)p->h, (long long)p->d, s->version,
              s->error_string(b.status));
}

/* The plan for this shape, built where it is new; NULL where cuDNN has none. */
static plan *plan_of(agglo_cuda *cuda, const agglo_tensor *qkv, purpose what_for)
{
    agglo_cuda_sdpa *s = open_library(cuda);
    plan *p;

    if (s == NULL || s->unusable || (what_for == BACKWARD && s->version < SINCE_BACKWARD)) {
        return NULL;
    }
    for (int i = 0; i < MAX_PLANS; i++) {
        p = &s->plans[i];
        if (p->used && p->purpose == what_for && p->b == qkv->shape[0] && p->n == qkv->shape[1] &&
            p->h == qkv->shape[3] && p->d == qkv->shape[4]) {
            return p->plan != NULL ? p : NULL;
        }
    }
    if (!agglo_cuda_not_capturing(cuda, "a plan of cuDNN is built")) {
        return NULL;
    }
    p = &s->plans[s->next];
    if (p->used && cuda->n_graphs > 0) {
        agglo_log(AGGLO_LOG_DEBUG, "attention in BF16 by own kernels: recorded steps hold all %d plans", MAX_PLANS);
        return NULL;
    }
    if (p->used && !agglo_cuda_ok(cuda, cudaStreamSynchronize(cuda->stream), "cudaStreamSynchronize")) {
        return NULL; /* its last run may still need what it holds */
    }
    s->next = (s->next + 1) % MAX_PLANS;
    clear_plan(s, p);
    p->b = qkv->shape[0];
    p->n = qkv->shape[1];
    p->h = qkv->shape[3];
    p->d = qkv->shape[4];
    p->purpose = what_for;
    build(s, p);
    p->used = true;
    return p->plan != NULL ? p : NULL;
}

/* ---- running it ---- */

/* Run with the tensors at[uid], those that are NULL left out; a failure is latched. */
static void run(agglo_cuda *cuda, const plan *p, void *const at[UID_END])
{
    agglo_cuda_sdpa *s = cuda->sdpa;
    cudnnBackendDescriptor_t pack = NULL;
    void *workspace = NULL, *pointers[UID_END];
    int64_t uids[UID_END], n = 0;
    cudnnStatus_t status;

    if (p->workspace > 0) {
        workspace = agglo_cuda_reserve(cuda, (size_t)p->workspace);
        if (workspace == NULL) {
            return;
        }
    }
    for (int64_t uid = UID_Q; uid < UID_END; uid++) {
        if (at[uid] != NULL) {
            uids[n] = uid;
            pointers[n++] = at[uid];
        }
    }
    status = s->make(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, &pack);
    if (status == CUDNN_STATUS_SUCCESS) {
        status = s->set(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, n, uids);
    }
    if (status == CUDNN_STATUS_SUCCESS) {
        status = s->set(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, n, pointers);
    }
    if (status == CUDNN_STATUS_SUCCESS) {
        status = s->set(pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace);
    }
    if (status == CUDNN_STATUS_SUCCESS) {
        status = s->finalize(pack);
    }
    if (status == CUDNN_STATUS_SUCCESS) {
        status = s->execute(s->handle, p->plan, pack);
    }
    if (pack != NULL) {
        s->unmake(pack);
    }
    if (status != CUDNN_STATUS_SUCCESS) {
        agglo_err err = {0};

        agglo_fail(&err, AGGLO_E_DEVICE, "cuDNN's attention: %s", s->error_string(status));
        agglo_at(&err, "GPU %d", cuda->device);
        agglo_backend_latch(&cuda->base, &err);
    }
}

/* Element `offset` of a BF16 tensor. */
static void *element(const agglo_tensor *t, int64_t offset)
{
    return (uint16_t *)t->data + offset;
}

/* What cuDNN needs of the head size and of an array's address. */
static bool suits(const agglo_tensor *qkv, const void *a, const void *b, const void *c)
{
    return qkv->shape[4] % 8 == 0 && qkv->shape[4] <= 128 &&
           ((uintptr_t)qkv->data | (uintptr_t)a | (uintptr_t)b | (uintptr_t)c) % 16 == 0;
}

bool agglo_cuda_sdpa_forward(agglo_cuda *cuda, const agglo_tensor *qkv, float scale, agglo_tensor *out,
                             agglo_tensor *lse)
{
    const int64_t dim = qkv->shape[3] * qkv->shape[4];
    void *stats = lse == NULL ? NULL : lse->data;
    const plan *p = suits(qkv, out->data, stats, NULL) ? plan_of(cuda, qkv, lse == NULL ? INFERENCE : FORWARD) : NULL;
    void *const at[UID_END] = {
        [UID_Q] = qkv->data,   [UID_K] = element(qkv, dim), [UID_V] = element(qkv, 2 * dim),
        [UID_OUT] = out->data, [UID_LSE] = stats,           [UID_SCALE] = &scale,
    };

    if (p == NULL) {
        return false;
    }
    run(cuda, p, at);
    return true;
}

bool agglo_cuda_sdpa_backward(agglo_cuda *cuda, const agglo_tensor *d_out, const agglo_tensor *qkv,
                              const agglo_tensor *out, const agglo_tensor *lse, float scale, agglo_tensor *d_qkv)
{
    const int64_t dim = qkv->shape[3] * qkv->shape[4];
    const plan *p = suits(qkv, d_out->data, out->data, d_qkv->data) && (uintptr_t)lse->data % 16 == 0
                        ? plan_of(cuda, qkv, BACKWARD)
                        : NULL;
    void *const at[UID_END] = {
        [UID_Q] = qkv->data,
        [UID_K] = element(qkv, dim),
        [UID_V] = element(qkv, 2 * dim),
        [UID_OUT] = out->data,
        [UID_LSE] = lse->data,
        [UID_SCALE] = &scale,
        [UID_D_OUT] = d_out->data,
        [UID_D_Q] = d_qkv->data,
        [UID_D_K] = element(d_qkv, dim),
        [UID_D_V] = element(d_qkv, 2 * dim),
    };

    if (p == NULL) {
        return false;
    }
    run(cuda, p, at);
    return true;
}
