/* Memory: counted, 64-byte aligned allocation that can be told to fail, and checked size arithmetic.
 *
 * Everything agglo allocates on the host goes through here, so that tests can assert that nothing leaks, that nothing allocates
 * in the steady state, and that every n-th failing allocation ends in one clean error. Thread-safe.
 */
#ifndef AGGLO_BASE_ALLOC_H
#define AGGLO_BASE_ALLOC_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

#define AGGLO_ALIGN 64

/* count * size bytes, zeroed, aligned to AGGLO_ALIGN; the product is checked. A zero size gives a valid pointer.
 * NULL and AGGLO_E_MEMORY in `err` on failure. Free with agglo_free. */
void *agglo_alloc(size_t count, size_t size, agglo_err *err);

/* Grow or shrink a block of agglo_alloc from old_bytes to new_bytes, contents kept, growth zeroed. On failure the old block
 * stays valid and NULL is returned. block may be NULL with old_bytes 0. */
void *agglo_realloc(void *block, size_t old_bytes, size_t new_bytes, agglo_err *err);

/* NULL is fine. */
void agglo_free(void *block);

/* A copy of `text` (NULL and error on failure); free with agglo_free. */
char *agglo_strdup(const char *text, agglo_err *err);

/* snprintf into a new string; free with agglo_free. */
char *agglo_format(agglo_err *err, const char *fmt, ...) AGGLO_PRINTF(2, 3);

/* *out = a * b (or a + b); false when it would overflow. */
bool agglo_size_mul(size_t a, size_t b, size_t *out);
bool agglo_size_add(size_t a, size_t b, size_t *out);

typedef struct agglo_alloc_stats {
    int64_t n_live;     /* blocks allocated and not freed */
    int64_t n_total;    /* allocations since start */
    int64_t bytes_live; /* held by those blocks, as the C library rounds their sizes */
    int64_t bytes_peak; /* most bytes_live since the start or the last agglo_alloc_peak_reset */
} agglo_alloc_stats;

agglo_alloc_stats agglo_alloc_counts(void);

/* Tests: count the peak from here; no other thread allocates meanwhile. */
void agglo_alloc_peak_reset(void);

/* Tests: let the next n allocations succeed and the one after fail, once. n < 0 switches it off. */
void agglo_alloc_fail_after(int64_t n);

#ifdef __cplusplus
}
#endif
#endif
