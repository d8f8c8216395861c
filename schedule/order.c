/* See order.h. The permutation of an epoch's shards is kept until another epoch is asked for; all else is computed per position. */
#include "schedule/order.h"

#include "tensor/rng.h"

struct agglo_order {
    uint32_t *counts;
    uint32_t n_shards, window;
    uint64_t seed, n_samples;
    /* of the epoch held in `epoch` */
    uint64_t epoch;
    uint32_t *shards; /* the permuted shards */
    uint64_t *starts; /* [n_shards + 1]: samples before the i-th shard of the permutation */
};

static void permute_shards(agglo_order *order, uint64_t epoch)
{
    for (uint32_t i = 0; i < order->n_shards; i++) {
        order->shards[i] = i;
    }
    for (uint32_t i = order->n_shards; i > 1; i--) {
        agglo_philox draw = agglo_philox4x32(order->seed, i, 1, (uint32_t)epoch, (uint32_t)(epoch >> 32));
        uint32_t j = agglo_uniform_int(draw.v[0], i);
        uint32_t held = order->shards[i - 1];

        order->shards[i - 1] = order->shards[j];
        order->shards[j] = held;
    }
    order->starts[0] = 0;
    for (uint32_t i = 0; i < order->n_shards; i++) {
        order->starts[i + 1] = order->starts[i] + order->counts[order->shards[i]];
    }
    order->epoch = epoch;
}

agglo_status agglo_order_new(agglo_order **out, const uint32_t *counts, uint32_t n_shards, uint64_t seed,
                             uint32_t window, agglo_err *err)
{
    agglo_order *order = agglo_alloc(1, sizeof *order, err);

    *out = NULL;
    AGGLO_ASSERT(window >= 1);
    if (order == NULL) {
        goto fail;
    }
    order->n_shards = n_shards;
    order->window = window;
    order->seed = seed;
    order->counts = agglo_alloc(n_shards, sizeof *order->counts, err);
    order->shards = order->counts != NULL ? agglo_alloc(n_shards, sizeof *order->shards, err) : NULL;
    order->starts = order->shards != NULL ? agglo_alloc((size_t)n_shards + 1, sizeof *order->starts, err) : NULL;
    if (order->starts == NULL) {
        goto fail;
    }
    for (uint32_t i = 0; i < n_shards; i++) {
        order->counts[i] = counts[i];
        order->n_samples += counts[i];
    }
    if (order->n_samples == 0) {
        agglo_fail(err, AGGLO_E_DATA, "there is no sample in %u shards", n_shards);
        goto fail;
    }
    permute_shards(order, 0);
    *out = order;
    return AGGLO_OK;
fail:
    agglo_order_free(order);
    return agglo_doing(err, "cannot order the samples");
}

void agglo_order_free(agglo_order *order)
{
    if (order != NULL) {
        agglo_free(order->starts);
        agglo_free(order->shards);
        agglo_free(order->counts);
        agglo_free(order);
    }
}

uint64_t agglo_order_samples(const agglo_order *order)
{
    return order->n_samples;
}

/* A permutation of [0, n): Feistel over the smallest even number of bits that holds n, walked until it falls inside. */
static uint64_t permute(const agglo_order *order, uint32_t window, uint64_t n, uint64_t i)
{
    uint32_t epoch_lo = (uint32_t)order->epoch, epoch_hi = (uint32_t)(order->epoch >> 32);
    int half = 1;

    while (half < 31 && (uint64_t)1 << (2 * half) < n) {
        half++;
    }
    do {
        uint32_t mask = ((uint32_t)1 << half) - 1;
        uint32_t left = (uint32_t)(i >> half), right = (uint32_t)i & mask;

        for (uint32_t round = 0; round < 6; round++) {
            agglo_philox f = agglo_philox4x32(order->seed, right, 2 + round + 8 * window, epoch_lo, epoch_hi);
            uint32_t next = left ^ (f.v[0] & mask);

            left = right;
            right = next;
        }
        i = (uint64_t)left << half | right;
    } while (i >= n);
    return i;
}

/* The last shard of the permutation that starts at or before `index` and is not empty there. */
static uint32_t shard_of(const agglo_order *order, uint64_t index)
{
    uint32_t lo = 0, hi = order->n_shards; /* starts[lo] <= index < starts[hi] */

    while (hi - lo > 1) {
        uint32_t mid = lo + (hi - lo) / 2;

        if (order->starts[mid] <= index) {
            lo = mid;
        } else {
            hi = mid;
        }
    }
    return lo;
}

agglo_place agglo_order_at(agglo_order *order, uint64_t position)
{
    agglo_place place = {position / order->n_samples, 0, 0};
    uint64_t index = position % order->n_samples, first, last;
    uint32_t window, begin, end, at;

    if (place.epoch != order->epoch) {
        permute_shards(order, place.epoch);
    }
    window = shard_of(order, index) / order->window;
    begin = window * order->window;
    end = order->n_shards - begin > order->window ? begin + order->window : order->n_shards;
    first = order->starts[begin];
    last = order->starts[end];
    index = first + permute(order, window, last - first, index - first);
    at = shard_of(order, index);
    place.shard = order->shards[at];
    place.ordinal = (uint32_t)(index - order->starts[at]);
    return place;
}
