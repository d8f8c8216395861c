/* Choosing a backend by name, and what all backends share: the latched failure and memory. */
#include "tensor/backend_impl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef AGGLO_CUDA /* otherwise in tensor/cuda */
agglo_status agglo_backend_cuda_new(agglo_backend **out, int device, agglo_err *err)
{
    (void)device;
    *out = NULL;
    return agglo_fail(err, AGGLO_E_UNSUPPORTED, "this build has no CUDA backend");
}

void agglo_backend_cuda_describe(char *out, size_t n_bytes)
{
    snprintf(out, n_bytes, "not built in");
}
#endif

/* "cuda" or "cuda:N". */
static bool is_cuda(const char *device, int *index)
{
    size_t n_digits = strlen(device) > 5 ? strspn(device + 5, "0123456789") : 0;

    *index = 0;
    if (strcmp(device, "cuda") == 0) {
        return true;
    }
    if (strncmp(device, "cuda:", 5) != 0 || n_digits == 0 || n_digits > 6 || device[5 + n_digits] != '\0') {
        return false;
    }
    *index = atoi(device + 5);
    return true;
}

agglo_status agglo_backend_open(agglo_backend **out, const char *device, int n_threads, agglo_err *err)
{
    int index;

    *out = NULL;
    if (strcmp(device, "cpu") == 0) {
        return agglo_backend_cpu_new(out, n_threads, err);
    }
    if (strcmp(device, "auto") == 0) {
        /* only a GPU that is not there leads to the CPU; one that is there and fails is an error */
        if (agglo_backend_cuda_new(out, 0, err) == AGGLO_OK) {
            return AGGLO_OK;
        }
        if (err->status == AGGLO_E_UNSUPPORTED) {
            agglo_err_clear(err);
            return agglo_backend_cpu_new(out, n_threads, err);
        }
    } else if (is_cuda(device, &index)) {
        if (agglo_backend_cuda_new(out, index, err) == AGGLO_OK) {
            return AGGLO_OK;
        }
        if (err->status == AGGLO_E_UNSUPPORTED) { /* to ask for what is not there is wrong usage */
            err->status = AGGLO_E_CONFIG;
        }
    } else {
        agglo_fail(err, AGGLO_E_CONFIG, "unknown device, expected cpu, cuda, cuda:N or auto");
    }
    agglo_at(err, "%s", device);
    return agglo_doing(err, "cannot open device");
}

void agglo_backend_free(agglo_backend *backend)
{
    if (backend != NULL) {
        agglo_resample_cache_free(backend);
        backend->ops->free(backend);
    }
}

const char *agglo_backend_describe(const agglo_backend *backend)
{
    return backend->describe;
}

bool agglo_backend_supports(const agglo_backend *backend, agglo_dtype dtype)
{
    return backend->ops->supports(backend, dtype);
}

void agglo_backend_latch(agglo_backend *be, const agglo_err *err)
{
    if (be->failed.status == AGGLO_OK) {
        be->failed = *err;
    }
}

agglo_status agglo_backend_check(agglo_backend *backend, agglo_err *err)
{
    backend->ops->wait(backend);
    return agglo_backend_peek(backend, err);
}

agglo_status agglo_backend_peek(agglo_backend *backend, agglo_err *err)
{
    if (backend->failed.status == AGGLO_OK) {
        return AGGLO_OK;
    }
    *err = backend->failed;
    agglo_err_clear(&backend->failed);
    return err->status;
}

agglo_pool *agglo_backend_pool(agglo_backend *backend)
{
    return backend->pool;
}

void *agglo_backend_alloc(agglo_backend *backend, size_t n_bytes, agglo_err *err)
{
    return backend->ops->alloc(backend, n_bytes, err);
}

void agglo_backend_release(agglo_backend *backend, void *block)
{
    if (block != NULL) {
        backend->ops->release(backend, block);
    }
}

/* Transfers are skipped like operators once something has failed. */
static bool ready(const agglo_backend *backend, size_t n_bytes)
{
    return n_bytes > 0 && backend->failed.status == AGGLO_OK;
}

void agglo_upload(agglo_backend *backend, void *dst, const void *src, size_t n_bytes)
{
    if (ready(backend, n_bytes)) {
        backend->ops->upload(backend, dst, src, n_bytes);
    }
}

void agglo_download(agglo_backend *backend, void *dst, const void *src, size_t n_bytes)
{
    if (ready(backend, n_bytes)) {
        backend->ops->download(backend, dst, src, n_bytes);
    }
}

void agglo_copy(agglo_backend *backend, void *dst, const void *src, size_t n_bytes)
{
    if (ready(backend, n_bytes)) {
        backend->ops->copy(backend, dst, src, n_bytes);
    }
}

void agglo_zero(agglo_backend *backend, void *dst, size_t n_bytes)
{
    if (ready(backend, n_bytes)) {
        backend->ops->zero(backend, dst, n_bytes);
    }
}
