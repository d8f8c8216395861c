/* The CUDA backend: finding a device, its streams and events, memory, transfers, and recorded steps. */
#include "tensor/cuda/cuda_impl.h"

#include "base/alloc.h"

#include <stdio.h>
#include <string.h>

#define STAGE_BYTES ((size_t)4 << 20)
#define LEAST_MAJOR 8 /* compute capability of the oldest GPU that this build holds machine code for */

/* ---- devices ---- */

/* AGGLO_E_UNSUPPORTED when there is no such GPU that this build runs on. */
static agglo_status find_device(int device, struct cudaDeviceProp *prop, int *n_devices, agglo_err *err)
{
    int driver = 0;
    cudaError_t status = cudaGetDeviceCount(n_devices);

    if (status == cudaErrorInsufficientDriver && cudaDriverGetVersion(&driver) == cudaSuccess && driver == 0) {
        cudaGetLastError();
        return agglo_fail(err, AGGLO_E_UNSUPPORTED, "no NVIDIA driver is installed");
    }
    if (status == cudaErrorNoDevice || status == cudaErrorInsufficientDriver || status == cudaErrorStubLibrary) {
        cudaGetLastError();
        return agglo_fail(err, AGGLO_E_UNSUPPORTED, "%s", cudaGetErrorString(status));
    }
    if (status == cudaSuccess && device >= *n_devices) {
        return agglo_fail(err, AGGLO_E_UNSUPPORTED, "GPU %d was asked for and %d found", device, *n_devices);
    }
    if (status == cudaSuccess) {
        status = cudaGetDeviceProperties(prop, device);
    }
    if (status != cudaSuccess) {
        cudaGetLastError();
        return agglo_fail(err, AGGLO_E_DEVICE, "%s (%s)", cudaGetErrorString(status), cudaGetErrorName(status));
    }
    if (prop->major < LEAST_MAJOR) {
        return agglo_fail(err, AGGLO_E_UNSUPPORTED, "%s has compute capability %d.%d, %d.0 is needed", prop->name,
                          prop->major, prop->minor, LEAST_MAJOR);
    }
    return AGGLO_OK;
}

void agglo_backend_cuda_describe(char *out, size_t n_bytes)
{
    struct cudaDeviceProp prop;
    int n_devices = 0, driver = 0, runtime = 0;
    agglo_err err = {0};

    if (find_device(0, &prop, &n_devices, &err) != AGGLO_OK) {
        snprintf(out, n_bytes, "built in, no device: %s", err.why);
        return;
    }
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    snprintf(out, n_bytes, "built in, %s (sm_%d%d), driver %d.%d, runtime %d.%d", prop.name, prop.major, prop.minor,
             driver / 1000, driver / 10 % 100, runtime / 1000, runtime / 10 % 100);
}

/* ---- what operators call ---- */

agglo_cuda *agglo_cuda_enter(agglo_backend *be)
{
    agglo_cuda *cuda = (agglo_cuda *)be;

    agglo_cuda_ok(cuda, cudaSetDevice(cuda->device), "cudaSetDevice");
    return cuda;
}

bool agglo_cuda_ok(agglo_cuda *cuda, cudaError_t status, const char *what)
{
    agglo_err err = {0};

    if (status == cudaSuccess) {
        return true;
    }
    cudaGetLastError(); /* or the next launch would report it again */
    agglo_fail(&err, status == cudaErrorMemoryAllocation ? AGGLO_E_MEMORY : AGGLO_E_DEVICE, "%s: %s (%s)", what,
               cudaGetErrorString(status), cudaGetErrorName(status));
    agglo_at(&err, "GPU %d", cuda->device);
    agglo_backend_latch(&cuda->base, &err);
    return false;
}

void agglo_cuda_launched(agglo_cuda *cuda, const char *what)
{
    agglo_cuda_ok(cuda, cudaGetLastError(), what);
}

bool agglo_cuda_not_capturing(agglo_cuda *cuda, const char *what)
{
    agglo_err err = {0};

    if (!cuda->capturing) {
        return true;
    }
    cuda->breached = true;
    agglo_fail(&err, AGGLO_E_DEVICE, "%s while a step is recorded", what);
    agglo_at(&err, "GPU %d", cuda->device);
    agglo_backend_latch(&cuda->base, &err);
    return false;
}

void *agglo_cuda_reserve(agglo_cuda *cuda, size_t n_bytes)
{
    const size_t unit = (size_t)1 << 20;

    if (n_bytes <= cuda->scratch_bytes) {
        return cuda->scratch;
    }
    if (!agglo_cuda_not_capturing(cuda, "more scratch memory is asked for")) {
        return NULL;
    }
    if (cuda->n_graphs > 0 && n_bytes < 2 * cuda->scratch_bytes) {
        n_bytes = 2 * cuda->scratch_bytes;
    }
    n_bytes = (n_bytes + unit - 1) / unit * unit;
    if (!agglo_cuda_ok(cuda, cudaStreamSynchronize(cuda->stream), "cudaStreamSynchronize")) {
        return NULL;
    }
    cuda->scratch_bytes = 0;
    if (cuda->n_graphs > 0 && cuda->scratch != NULL) {
        AGGLO_ASSERT(cuda->n_outgrown < AGGLO_CUDA_OUTGROWN);
        cuda->outgrown[cuda->n_outgrown++] = cuda->scratch;
    } else if (!agglo_cuda_ok(cuda, cudaFree(cuda->scratch), "cudaFree of scratch")) {
        return NULL;
    }
    cuda->scratch = NULL;
    if (!agglo_cuda_ok(cuda, cudaMalloc(&cuda->scratch, n_bytes), "cudaMalloc of scratch")) {
        cuda->scratch = NULL;
        return NULL;
    }
    cuda->scratch_bytes = n_bytes;
    return cuda->scratch;
}

/* ---- the table ---- */

static bool cuda_supports(const agglo_backend *be, agglo_dtype dtype)
{
    (void)be;
    return dtype == AGGLO_F32 || dtype == AGGLO_BF16;
}

static void cuda_wait(agglo_backend *be)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);

    if (!agglo_cuda_not_capturing(cuda, "waiting for the GPU")) {
        return;
    }
    agglo_cuda_ok(cuda, cudaStreamSynchronize(cuda->copies), "waiting for the GPU");
    agglo_cuda_ok(cuda, cudaStreamSynchronize(cuda->stream), "waiting for the GPU");
    agglo_cuda_launched(cuda, "waiting for the GPU");
}

static void *cuda_alloc(agglo_backend *be, size_t n_bytes, agglo_err *err)
{
    agglo_cuda *cuda = (agglo_cuda *)be;
    size_t free_bytes = 0, total_bytes = 0;
    void *block = NULL;
    cudaError_t status = cudaSetDevice(cuda->device);

    if (cuda->capturing) {
        cuda->breached = true;
        agglo_fail(err, AGGLO_E_DEVICE, "a step is recorded");
        goto fail;
    }
    n_bytes = n_bytes > 0 ? n_bytes : 1; /* nothing still gives a valid pointer */
    if (status == cudaSuccess) {
        status = cudaMalloc(&block, n_bytes);
    }
    if (status == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        cudaMemGetInfo(&free_bytes, &total_bytes);
        agglo_fail(err, AGGLO_E_MEMORY, "%zu bytes asked for, %zu of %zu free", n_bytes, free_bytes, total_bytes);
        goto fail;
    }
    if (status == cudaSuccess) {
        status = cudaMemsetAsync(block, 0, n_bytes, cuda->stream);
    }
    if (status != cudaSuccess) {
        cudaGetLastError();
        cudaFree(block);
        agglo_fail(err, AGGLO_E_DEVICE, "%s (%s)", cudaGetErrorString(status), cudaGetErrorName(status));
        goto fail;
    }
    return block;
fail:
    agglo_at(err, "GPU %d", cuda->device);
    agglo_doing(err, "cannot allocate GPU memory");
    return NULL;
}

static void cuda_release(agglo_backend *be, void *block)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);

    if (!agglo_cuda_not_capturing(cuda, "memory is released")) {
        return;
    }
    agglo_cuda_ok(cuda, cudaStreamSynchronize(cuda->copies), "cudaStreamSynchronize");
    agglo_cuda_ok(cuda, cudaStreamSynchronize(cuda->stream), "cudaStreamSynchronize");
    agglo_cuda_ok(cuda, cudaFree(block), "cudaFree");
}

/* Through pinned buffers of our own, so that the caller's memory is its own again on return while the GPU is still at earlier work: what
 * cudaMemcpyAsync does with pageable memory depends on the machine. */
static void cuda_upload(agglo_backend *be, void *dst, const void *src, size_t n_bytes)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);

    if (!agglo_cuda_not_capturing(cuda, "upload")) {
        return;
    }
    for (size_t done = 0; done < n_bytes;) {
        size_t some = n_bytes - done < STAGE_BYTES ? n_bytes - done : STAGE_BYTES;
        int s = cuda->next_stage;

        cuda->next_stage = (s + 1) % AGGLO_CUDA_STAGES;
        if (!agglo_cuda_ok(cuda, cudaEventSynchronize(cuda->stage_free[s]), "upload")) {
            return;
        }
        memcpy(cuda->stage[s], (const uint8_t *)src + done, some);
        if (!agglo_cuda_ok(
                cuda,
                cudaMemcpyAsync((uint8_t *)dst + done, cuda->stage[s], some, cudaMemcpyHostToDevice, cuda->stream),
                "upload") ||
            !agglo_cuda_ok(cuda, cudaEventRecord(cuda->stage_free[s], cuda->stream), "upload")) {
            return;
        }
        done += some;
    }
}

static void cuda_download(agglo_backend *be, void *dst, const void *src, size_t n_bytes)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);

    if (!agglo_cuda_not_capturing(cuda, "download")) {
        return;
    }
    if (agglo_cuda_ok(cuda, cudaMemcpyAsync(dst, src, n_bytes, cudaMemcpyDeviceToHost, cuda->stream), "download")) {
        agglo_cuda_ok(cuda, cudaStreamSynchronize(cuda->stream), "download");
    }
}

static void cuda_copy(agglo_backend *be, void *dst, const void *src, size_t n_bytes)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);

    agglo_cuda_ok(cuda, cudaMemcpyAsync(dst, src, n_bytes, cudaMemcpyDeviceToDevice, cuda->stream), "copy");
}

static void cuda_zero(agglo_backend *be, void *dst, size_t n_bytes)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);

    agglo_cuda_ok(cuda, cudaMemsetAsync(dst, 0, n_bytes, cuda->stream), "zero");
}

/* ---- tensor/async.h: an agglo_event is a cudaEvent_t, an agglo_graph a cudaGraphExec_t ---- */

static void free_outgrown(agglo_cuda *cuda)
{
    while (cuda->n_outgrown > 0) {
        cudaFree(cuda->outgrown[--cuda->n_outgrown]);
    }
}

static cudaEvent_t event_of(const agglo_event *event)
{
    return (cudaEvent_t)(uintptr_t)event;
}

static agglo_event *cuda_event_new(agglo_backend *be, agglo_err *err)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    cudaEvent_t event = NULL;
    cudaError_t status = cudaEventCreateWithFlags(&event, cudaEventDisableTiming);

    if (status != cudaSuccess) {
        cudaGetLastError();
        agglo_fail(err, AGGLO_E_DEVICE, "%s (%s)", cudaGetErrorString(status), cudaGetErrorName(status));
        agglo_at(err, "GPU %d", cuda->device);
        agglo_doing(err, "cannot make an event");
        return NULL;
    }
    return (agglo_event *)event;
}

static void cuda_event_free(agglo_backend *be, agglo_event *event)
{
    agglo_cuda_ok(agglo_cuda_enter(be), cudaEventDestroy(event_of(event)), "cudaEventDestroy");
}

static void cuda_event_record(agglo_backend *be, agglo_event *event)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);

    if (agglo_cuda_not_capturing(cuda, "an event")) {
        agglo_cuda_ok(cuda, cudaEventRecord(event_of(event), cuda->stream), "cudaEventRecord");
    }
}

static void cuda_event_join(agglo_backend *be, const agglo_event *event)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);

    if (agglo_cuda_not_capturing(cuda, "an event")) {
        agglo_cuda_ok(cuda, cudaStreamWaitEvent(cuda->stream, event_of(event), 0), "cudaStreamWaitEvent");
    }
}

static void cuda_event_wait(agglo_backend *be, const agglo_event *event)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);

    if (agglo_cuda_not_capturing(cuda, "waiting for an event")) {
        agglo_cuda_ok(cuda, cudaEventSynchronize(event_of(event)), "waiting for an event");
    }
}

static bool cuda_event_is_done(agglo_backend *be, const agglo_event *event)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    cudaError_t status;

    if (!agglo_cuda_not_capturing(cuda, "asking for an event")) {
        return true;
    }
    status = cudaEventQuery(event_of(event));
    if (status == cudaErrorNotReady) {
        cudaGetLastError(); /* not a failure */
        return false;
    }
    agglo_cuda_ok(cuda, status, "cudaEventQuery");
    return true;
}

static void *cuda_pinned_alloc(agglo_backend *be, size_t n_bytes, agglo_err *err)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    void *block = NULL;
    cudaError_t status = cudaHostAlloc(&block, n_bytes > 0 ? n_bytes : 1, cudaHostAllocDefault);

    if (status != cudaSuccess) {
        cudaGetLastError();
        agglo_fail(err, status == cudaErrorMemoryAllocation ? AGGLO_E_MEMORY : AGGLO_E_DEVICE, "%zu bytes: %s (%s)",
                   n_bytes, cudaGetErrorString(status), cudaGetErrorName(status));
        agglo_at(err, "GPU %d", cuda->device);
        agglo_doing(err, "cannot allocate pinned memory");
        return NULL;
    }
    return block;
}

static void cuda_pinned_release(agglo_backend *be, void *block)
{
    agglo_cuda_ok(agglo_cuda_enter(be), cudaFreeHost(block), "cudaFreeHost");
}

static void cuda_upload_async(agglo_backend *be, void *dst, const void *src, size_t n_bytes, const agglo_event *after,
                              agglo_event *done)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);

    if (!agglo_cuda_not_capturing(cuda, "upload") ||
        (after != NULL &&
         !agglo_cuda_ok(cuda, cudaStreamWaitEvent(cuda->copies, event_of(after), 0), "cudaStreamWaitEvent"))) {
        return;
    }
    if (agglo_cuda_ok(cuda, cudaMemcpyAsync(dst, src, n_bytes, cudaMemcpyHostToDevice, cuda->copies), "upload")) {
        agglo_cuda_ok(cuda, cudaEventRecord(event_of(done), cuda->copies), "cudaEventRecord");
    }
}

static void cuda_download_async(agglo_backend *be, void *dst, const void *src, size_t n_bytes, agglo_event *done)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);

    if (agglo_cuda_not_capturing(cuda, "download") &&
        agglo_cuda_ok(cuda, cudaMemcpyAsync(dst, src, n_bytes, cudaMemcpyDeviceToHost, cuda->stream), "download")) {
        agglo_cuda_ok(cuda, cudaEventRecord(event_of(done), cuda->stream), "cudaEventRecord");
    }
}

/* Relaxed: cuBLASLt and cuDNN may do in it what other modes forbid to all threads of the process. */
static void cuda_capture_begin(agglo_backend *be)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);

    if (agglo_cuda_not_capturing(cuda, "recording begins again")) {
        cuda->breached = false;
        cuda->capturing = agglo_cuda_ok(cuda, cudaStreamBeginCapture(cuda->stream, cudaStreamCaptureModeRelaxed),
                                        "cudaStreamBeginCapture");
    }
}

/* Nothing has run so far: the graph is launched once. */
static agglo_graph *cuda_capture_end(agglo_backend *be)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);
    cudaGraph_t graph = NULL;
    cudaGraphExec_t ready = NULL;
    bool ok;

    if (!cuda->capturing) {
        return NULL; /* begin failed */
    }
    cuda->capturing = false;
    ok = agglo_cuda_ok(cuda, cudaStreamEndCapture(cuda->stream, &graph), "cudaStreamEndCapture") &&
         be->failed.status == AGGLO_OK && !cuda->breached;
    if (ok) {
        ok = agglo_cuda_ok(cuda, cudaGraphInstantiate(&ready, graph, 0), "cudaGraphInstantiate") &&
             agglo_cuda_ok(cuda, cudaGraphLaunch(ready, cuda->stream), "cudaGraphLaunch");
    }
    if (graph != NULL) {
        cudaGraphDestroy(graph); /* the executable one does not need it */
    }
    if (!ok && ready != NULL) {
        cudaGraphExecDestroy(ready);
        ready = NULL;
    }
    cuda->n_graphs += ready != NULL ? 1 : 0;
    return (agglo_graph *)ready;
}

static void cuda_graph_replay(agglo_backend *be, agglo_graph *graph)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);

    if (agglo_cuda_not_capturing(cuda, "replay")) {
        agglo_cuda_ok(cuda, cudaGraphLaunch((cudaGraphExec_t)graph, cuda->stream), "cudaGraphLaunch");
    }
}

static void cuda_graph_free(agglo_backend *be, agglo_graph *graph)
{
    agglo_cuda *cuda = agglo_cuda_enter(be);

    agglo_cuda_ok(cuda, cudaStreamSynchronize(cuda->stream), "cudaStreamSynchronize");
    agglo_cuda_ok(cuda, cudaGraphExecDestroy((cudaGraphExec_t)graph), "cudaGraphExecDestroy");
    if (--cuda->n_graphs == 0) {
        free_outgrown(cuda);
    }
}

static void cuda_free(agglo_backend *be)
{
    agglo_cuda *cuda = (agglo_cuda *)be;

    cudaSetDevice(cuda->device);
    if (cuda->copies != NULL) {
        cudaStreamSynchronize(cuda->copies);
        cudaStreamDestroy(cuda->copies);
    }
    if (cuda->stream != NULL) {
        cudaStreamSynchronize(cuda->stream);
    }
    agglo_cuda_gemm_free(cuda);
#ifdef AGGLO_CUDNN
    agglo_cuda_sdpa_free(cuda);
#endif
    for (int s = 0; s < AGGLO_CUDA_STAGES; s++) {
        if (cuda->stage_free[s] != NULL) {
            cudaEventDestroy(cuda->stage_free[s]);
        }
        cudaFreeHost(cuda->stage[s]);
    }
    free_outgrown(cuda);
    cudaFree(cuda->scratch);
    if (cuda->stream != NULL) {
        cudaStreamDestroy(cuda->stream);
    }
    cudaGetLastError();
    agglo_free(cuda);
}

typedef struct cuda_backend {
    agglo_cuda cuda;
    agglo_backend_ops ops;
} cuda_backend;

static cudaError_t make_streams(agglo_cuda *cuda)
{
    cudaError_t status = cudaSetDevice(cuda->device);

    if (status == cudaSuccess) {
        status = cudaStreamCreateWithFlags(&cuda->stream, cudaStreamNonBlocking);
    }
    if (status == cudaSuccess) {
        status = cudaStreamCreateWithFlags(&cuda->copies, cudaStreamNonBlocking);
    }
    for (int s = 0; s < AGGLO_CUDA_STAGES && status == cudaSuccess; s++) {
        status = cudaHostAlloc((void **)&cuda->stage[s], STAGE_BYTES, cudaHostAllocDefault);
        if (status == cudaSuccess) {
            status = cudaEventCreateWithFlags(&cuda->stage_free[s], cudaEventDisableTiming);
        }
    }
    return status;
}

agglo_status agglo_backend_cuda_new(agglo_backend **out, int device, agglo_err *err)
{
    struct cudaDeviceProp prop;
    cuda_backend *made = NULL;
    agglo_cuda *cuda;
    cudaError_t status;
    int n_devices = 0;

    *out = NULL;
    if (find_device(device, &prop, &n_devices, err) != AGGLO_OK) {
        goto fail;
    }
    made = agglo_alloc(1, sizeof *made, err);
    if (made == NULL) {
        goto fail;
    }
    made->ops = (agglo_backend_ops){
        .free = cuda_free,
        .supports = cuda_supports,
        .wait = cuda_wait,
        .alloc = cuda_alloc,
        .release = cuda_release,
        .upload = cuda_upload,
        .download = cuda_download,
        .copy = cuda_copy,
        .zero = cuda_zero,
        .event_new = cuda_event_new,
        .event_free = cuda_event_free,
        .event_record = cuda_event_record,
        .event_join = cuda_event_join,
        .event_wait = cuda_event_wait,
        .event_is_done = cuda_event_is_done,
        .pinned_alloc = cuda_pinned_alloc,
        .pinned_release = cuda_pinned_release,
        .upload_async = cuda_upload_async,
        .download_async = cuda_download_async,
        .capture_begin = cuda_capture_begin,
        .capture_end = cuda_capture_end,
        .graph_replay = cuda_graph_replay,
        .graph_free = cuda_graph_free,
    };
    agglo_cuda_linear_ops(&made->ops);
    agglo_cuda_attention_ops(&made->ops);
    agglo_cuda_elementwise_ops(&made->ops);
    agglo_cuda_norm_ops(&made->ops);
    agglo_cuda_tokens_ops(&made->ops);
    agglo_cuda_loss_ops(&made->ops);
    agglo_cuda_optim_ops(&made->ops);
    agglo_cuda_conv_ops(&made->ops);
    agglo_cuda_batchnorm_ops(&made->ops);
    agglo_cuda_maps_ops(&made->ops);
    agglo_cuda_attention_bias_ops(&made->ops);
    agglo_cuda_gather_ops(&made->ops);
    agglo_cuda_resample_ops(&made->ops);
    cuda = &made->cuda;
    cuda->base.ops = &made->ops;
    cuda->device = device;
    cuda->n_multiprocessors = prop.multiProcessorCount;
    status = make_streams(cuda);
    if (status != cudaSuccess) {
        agglo_fail(err, AGGLO_E_DEVICE, "%s (%s)", cudaGetErrorString(status), cudaGetErrorName(status));
        goto fail;
    }
    if (agglo_cuda_gemm_new(cuda, err) != AGGLO_OK) {
        goto fail;
    }
    snprintf(cuda->base.describe, sizeof cuda->base.describe, "cuda:%d (%.64s, sm_%d%d, %.0f GiB)", device, prop.name,
             prop.major, prop.minor, (double)prop.totalGlobalMem / 1073741824.0);
    *out = &cuda->base;
    return AGGLO_OK;
fail:
    if (made != NULL) {
        cuda_free(&made->cuda.base);
    }
    return agglo_doing(err, "cannot open the CUDA backend");
}
