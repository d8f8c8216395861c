/* Counted allocation over aligned_alloc; see alloc.h. Bytes are counted as the C library rounds them: it is asked for a block's size,
 * so that none has to be kept. */
#include "base/alloc.h"

#include <malloc.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static atomic_llong n_live;
static atomic_llong n_total;
static atomic_llong bytes_live;
static atomic_llong bytes_peak;
static atomic_llong fail_after = -1; /* allocations left before the one that fails; -1: never */

static bool told_to_fail(void)
{
    long long left = atomic_load(&fail_after);

    while (left >= 0) {
        if (atomic_compare_exchange_weak(&fail_after, &left, left - 1)) {
            return left == 0;
        }
    }
    return false;
}

static void count_bytes(void *block)
{
    long long n = (long long)malloc_usable_size(block), live = atomic_fetch_add(&bytes_live, n) + n,
              peak = atomic_load(&bytes_peak);

    while (live > peak && !atomic_compare_exchange_weak(&bytes_peak, &peak, live)) {
    }
}

void *agglo_alloc(size_t count, size_t size, agglo_err *err)
{
    size_t n_bytes;
    void *block;

    if (!agglo_size_mul(count, size, &n_bytes) || n_bytes > PTRDIFF_MAX - AGGLO_ALIGN) {
        agglo_fail(err, AGGLO_E_MEMORY, "%zu x %zu bytes is more than can be addressed", count, size);
        return NULL;
    }
    n_bytes = (n_bytes + AGGLO_ALIGN - 1) / AGGLO_ALIGN * AGGLO_ALIGN;
    if (n_bytes == 0) {
        n_bytes = AGGLO_ALIGN;
    }
    block = told_to_fail() ? NULL : aligned_alloc(AGGLO_ALIGN, n_bytes);
    if (block == NULL) {
        agglo_fail(err, AGGLO_E_MEMORY, "out of memory asking for %zu bytes", n_bytes);
        return NULL;
    }
    memset(block, 0, n_bytes);
    atomic_fetch_add(&n_live, 1);
    atomic_fetch_add(&n_total, 1);
    count_bytes(block);
    return block;
}

void *agglo_realloc(void *block, size_t old_bytes, size_t new_bytes, agglo_err *err)
{
    void *grown = agglo_alloc(new_bytes, 1, err);

    if (grown != NULL && block != NULL) {
        memcpy(grown, block, old_bytes < new_bytes ? old_bytes : new_bytes);
        agglo_free(block);
    }
    return grown;
}

void agglo_free(void *block)
{
    if (block != NULL) {
        atomic_fetch_sub(&n_live, 1);
        atomic_fetch_sub(&bytes_live, (long long)malloc_usable_size(block));
        free(block);
    }
}

char *agglo_strdup(const char *text, agglo_err *err)
{
    size_t n_bytes = strlen(text) + 1;
    char *copy = agglo_alloc(n_bytes, 1, err);

    if (copy != NULL) {
        memcpy(copy, text, n_bytes);
    }
    return copy;
}

char *agglo_format(agglo_err *err, const char *fmt, ...)
{
    va_list args, again;
    char *text = NULL;
    int n;

    va_start(args, fmt);
    va_copy(again, args);
    n = vsnprintf(NULL, 0, fmt, args);
    AGGLO_ASSERT(n >= 0);
    text = agglo_alloc((size_t)n + 1, 1, err);
    if (text != NULL) {
        vsnprintf(text, (size_t)n + 1, fmt, again);
    }
    va_end(again);
    va_end(args);
    return text;
}

bool agglo_size_mul(size_t a, size_t b, size_t *out)
{
    return !__builtin_mul_overflow(a, b, out);
}

bool agglo_size_add(size_t a, size_t b, size_t *out)
{
    return !__builtin_add_overflow(a, b, out);
}

agglo_alloc_stats agglo_alloc_counts(void)
{
    agglo_alloc_stats stats = {atomic_load(&n_live), atomic_load(&n_total), atomic_load(&bytes_live),
                               atomic_load(&bytes_peak)};

    return stats;
}

void agglo_alloc_peak_reset(void)
{
    atomic_store(&bytes_peak, atomic_load(&bytes_live));
}

void agglo_alloc_fail_after(int64_t n)
{
    atomic_store(&fail_after, n);
}
