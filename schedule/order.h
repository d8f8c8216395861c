/* The order of samples: closed-form, so that the position in training is one integer.
 *
 * In every epoch the shards are permuted, then the samples are permuted within windows of K consecutive shards of that order (so that
 * reading stays near-sequential: K shards are open at a time). Everything is a function of (seed, epoch, position); nothing depends on
 * threads, workers or ranks, and any position can be computed without those before it.
 *
 *   shards    Fisher-Yates, draw i from Philox(seed; i, 1, epoch lo, epoch hi)
 *   samples   a six-round balanced Feistel network over the window's samples, cycle-walking to its size; round function
 *             Philox(seed; half, 2 + round + 8 * window, epoch lo, epoch hi)
 */
#ifndef AGGLO_SCHEDULE_ORDER_H
#define AGGLO_SCHEDULE_ORDER_H

#include "base/alloc.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct agglo_order agglo_order;

typedef struct agglo_place {
    uint64_t epoch;
    uint32_t shard, ordinal;
} agglo_place;

/* counts[n_shards]: samples of each shard, copied; zero is fine, all zero is AGGLO_E_DATA. window >= 1 shards. */
agglo_status agglo_order_new(agglo_order **out, const uint32_t *counts, uint32_t n_shards, uint64_t seed,
                             uint32_t window, agglo_err *err);
void agglo_order_free(agglo_order *order);

/* Samples of one epoch. */
uint64_t agglo_order_samples(const agglo_order *order);

/* The place at a position >= 0; epoch = position / samples. Keeps the shard permutation of the last epoch asked for: one thread. */
agglo_place agglo_order_at(agglo_order *order, uint64_t position);

#ifdef __cplusplus
}
#endif
#endif
