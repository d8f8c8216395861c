/* A list of chunks; `current` is the one being filled, those behind it are spare. */
#include "base/arena.h"

#include <string.h>

typedef struct chunk {
    struct chunk *next;
    size_t n_bytes; /* of data */
    size_t used;
    _Alignas(AGGLO_ALIGN) unsigned char data[];
} chunk;

struct agglo_arena {
    chunk *first, *current;
    size_t chunk_bytes;
};

agglo_status agglo_arena_new(agglo_arena **out, size_t chunk_bytes, agglo_err *err)
{
    agglo_arena *arena = agglo_alloc(1, sizeof *arena, err);

    *out = arena;
    if (arena == NULL) {
        return agglo_doing(err, "cannot make an arena");
    }
    arena->chunk_bytes = chunk_bytes ? chunk_bytes : 65536;
    return AGGLO_OK;
}

void agglo_arena_free(agglo_arena *arena)
{
    chunk *next;

    if (arena == NULL) {
        return;
    }
    for (chunk *c = arena->first; c != NULL; c = next) {
        next = c->next;
        agglo_free(c);
    }
    agglo_free(arena);
}

void *agglo_arena_take(agglo_arena *arena, size_t count, size_t size, agglo_err *err)
{
    chunk *c = arena->current;
    size_t n_bytes, total;
    void *block;

    if (!agglo_size_mul(count, size, &n_bytes) || !agglo_size_add(n_bytes, AGGLO_ALIGN - 1, &total)) {
        agglo_fail(err, AGGLO_E_MEMORY, "%zu x %zu bytes is more than can be addressed", count, size);
        return NULL;
    }
    n_bytes = total / AGGLO_ALIGN * AGGLO_ALIGN;
    while (c != NULL && c->n_bytes - c->used < n_bytes) {
        c = c->next;
        if (c != NULL) {
            c->used = 0;
        }
    }
    if (c == NULL) {
        size_t data_bytes = n_bytes > arena->chunk_bytes ? n_bytes : arena->chunk_bytes;

        if (!agglo_size_add(data_bytes, sizeof *c, &total)) {
            agglo_fail(err, AGGLO_E_MEMORY, "%zu bytes is more than can be addressed", data_bytes);
            return NULL;
        }
        c = agglo_alloc(total, 1, err);
        if (c == NULL) {
            return NULL;
        }
        c->n_bytes = data_bytes;
        /* behind the current chunk, before the spare ones that were too small */
        if (arena->current == NULL) {
            arena->first = c;
        } else {
            c->next = arena->current->next;
            arena->current->next = c;
        }
    }
    arena->current = c;
    block = c->data + c->used;
    c->used += n_bytes;
    memset(block, 0, n_bytes);
    return block;
}

char *agglo_arena_text(agglo_arena *arena, const char *text, size_t n_bytes, agglo_err *err)
{
    char *copy = agglo_arena_take(arena, n_bytes + 1, 1, err);

    if (copy != NULL && n_bytes > 0) {
        memcpy(copy, text, n_bytes);
    }
    return copy;
}

agglo_arena_mark agglo_arena_here(const agglo_arena *arena)
{
    agglo_arena_mark mark = {arena->current, arena->current ? arena->current->used : 0};

    return mark;
}

void agglo_arena_rewind(agglo_arena *arena, agglo_arena_mark mark)
{
    if (mark.chunk == NULL) {
        agglo_arena_reset(arena);
        return;
    }
    arena->current = mark.chunk;
    arena->current->used = mark.used;
}

void agglo_arena_reset(agglo_arena *arena)
{
    arena->current = arena->first;
    if (arena->first != NULL) {
        arena->first->used = 0;
    }
}
