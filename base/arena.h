/* Arena: bump allocation for per-sample and per-step data, given back all at once.
 *
 * Grows by chunks and keeps them on rewind, so that a loop that rewinds allocates nothing after its first rounds.
 * One thread at a time.
 */
#ifndef AGGLO_BASE_ARENA_H
#define AGGLO_BASE_ARENA_H

#include "base/alloc.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct agglo_arena agglo_arena;

typedef struct agglo_arena_mark {
    void *chunk;
    size_t used;
} agglo_arena_mark;

/* chunk_bytes: the least size of a chunk (0: 64 KiB). Owned by the caller: agglo_arena_free. */
agglo_status agglo_arena_new(agglo_arena **out, size_t chunk_bytes, agglo_err *err);
void agglo_arena_free(agglo_arena *arena);

/* count * size bytes, zeroed, 64-byte aligned, valid until the arena is rewound below it. NULL and error on failure. */
void *agglo_arena_take(agglo_arena *arena, size_t count, size_t size, agglo_err *err);

/* Copy of n_bytes of `text` with a NUL behind. */
char *agglo_arena_text(agglo_arena *arena, const char *text, size_t n_bytes, agglo_err *err);

agglo_arena_mark agglo_arena_here(const agglo_arena *arena);
void agglo_arena_rewind(agglo_arena *arena, agglo_arena_mark mark);
void agglo_arena_reset(agglo_arena *arena); /* rewind to the start */

#ifdef __cplusplus
}
#endif
#endif
