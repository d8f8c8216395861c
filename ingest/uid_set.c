/* Open addressing with linear probing over bare 16-byte slots, at most three quarters full. Sixteen zero bytes mean a free slot; the value
 * of sixteen zero bytes is a flag beside the table. SipHash-1-3 under a random key spreads the values, and a multiplication instead of
 * a mask maps the hash to a slot, so that a table of known size wastes nothing on powers of two.
 */
#include "ingest/uid_set.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>

#include "base/bytes.h"

enum { UID_BYTES = 16, MIN_SLOTS = 64 };

__extension__ typedef unsigned __int128 wide;

struct agglo_uid_set {
    uint8_t *slots; /* [n_slots, 16] */
    uint64_t n_slots, n_used;
    uint64_t key[2];
    bool has_zero;
};

static const uint8_t zero[UID_BYTES];

static uint64_t rotate(uint64_t x, int n)
{
    return x << n | x >> (64 - n);
}

static void sip_round(uint64_t v[4])
{
    v[0] += v[1];
    v[2] += v[3];
    v[1] = rotate(v[1], 13) ^ v[0];
    v[3] = rotate(v[3], 16) ^ v[2];
    v[0] = rotate(v[0], 32);
    v[2] += v[1];
    v[0] += v[3];
    v[1] = rotate(v[1], 17) ^ v[2];
    v[3] = rotate(v[3], 21) ^ v[0];
    v[2] = rotate(v[2], 32);
}

/* SipHash-1-3 (Aumasson and Bernstein 2012) of exactly 16 bytes. */
static uint64_t sip_hash(const uint64_t key[2], const uint8_t uid[UID_BYTES])
{
    uint64_t v[4] = {key[0] ^ 0x736f6d6570736575u, key[1] ^ 0x646f72616e646f6du, key[0] ^ 0x6c7967656e657261u,
                     key[1] ^ 0x7465646279746573u};
    uint64_t words[3] = {agglo_le64(uid), agglo_le64(uid + 8), (uint64_t)UID_BYTES << 56};

    for (int i = 0; i < 3; i++) {
        v[3] ^= words[i];
        sip_round(v);
        v[0] ^= words[i];
    }
    v[2] ^= 0xff;
    sip_round(v);
    sip_round(v);
    sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

/* Where `uid` stands, or the free slot where it belongs. There is always a free one. */
static uint8_t *find_slot(const agglo_uid_set *set, const uint8_t uid[UID_BYTES])
{
    uint64_t at = (uint64_t)((wide)sip_hash(set->key, uid) * set->n_slots >> 64);

    for (;;) {
        uint8_t *slot = set->slots + at * UID_BYTES;

        if (memcmp(slot, uid, UID_BYTES) == 0 || memcmp(slot, zero, UID_BYTES) == 0) {
            return slot;
        }
        at = at + 1 == set->n_slots ? 0 : at + 1;
    }
}

/* Slots for n values at three quarters; false when they cannot be counted. */
static bool slots_for(uint64_t n, uint64_t *n_slots)
{
    if (n > UINT64_MAX / 4) {
        return false;
    }
    *n_slots = n + n / 3 + 2;
    if (*n_slots < MIN_SLOTS) {
        *n_slots = MIN_SLOTS;
    }
    return *n_slots <= SIZE_MAX;
}

static bool is_full(const agglo_uid_set *set)
{
    return set->n_used >= set->n_slots - set->n_slots / 4 - 1;
}

agglo_status agglo_uid_set_new(agglo_uid_set **out, uint64_t expected, agglo_err *err)
{
    agglo_uid_set *set = NULL;
    uint64_t n_slots;

    *out = NULL;
    if (!slots_for(expected, &n_slots)) {
        return agglo_fail(err, AGGLO_E_MEMORY, "%llu uids are more than can be held", (unsigned long long)expected);
    }
    set = agglo_alloc(1, sizeof *set, err);
    if (set == NULL) {
        return err->status;
    }
    set->n_slots = n_slots;
    set->slots = agglo_alloc((size_t)n_slots, UID_BYTES, err);
    if (set->slots == NULL) {
        goto fail;
    }
    if (getrandom(set->key, sizeof set->key, 0) != (ssize_t)sizeof set->key) { /* so few bytes never come in part */
        agglo_fail(err, AGGLO_E_IO, "no random bytes: %s", strerror(errno));
        goto fail;
    }
    *out = set;
    return AGGLO_OK;
fail:
    agglo_uid_set_free(set);
    return err->status;
}

void agglo_uid_set_free(agglo_uid_set *set)
{
    if (set != NULL) {
        agglo_free(set->slots);
        agglo_free(set);
    }
}

static agglo_status grow(agglo_uid_set *set, agglo_err *err)
{
    agglo_uid_set grown = *set;

    if (set->n_slots > SIZE_MAX / 2) {
        return agglo_fail(err, AGGLO_E_MEMORY, "more uids than can be held");
    }
    grown.n_slots = set->n_slots * 2;
    grown.slots = agglo_alloc((size_t)grown.n_slots, UID_BYTES, err);
    if (grown.slots == NULL) {
        return err->status;
    }
    for (uint64_t i = 0; i < set->n_slots; i++) {
        const uint8_t *from = set->slots + i * UID_BYTES;

        if (memcmp(from, zero, UID_BYTES) != 0) {
            memcpy(find_slot(&grown, from), from, UID_BYTES);
        }
    }
    agglo_free(set->slots);
    *set = grown;
    return AGGLO_OK;
}

agglo_status agglo_uid_set_add(agglo_uid_set *set, const uint8_t uid[16], bool *known, agglo_err *err)
{
    bool was_there;

    if (memcmp(uid, zero, UID_BYTES) == 0) {
        was_there = set->has_zero;
        set->has_zero = true;
    } else {
        uint8_t *slot = find_slot(set, uid);

        was_there = memcmp(slot, zero, UID_BYTES) != 0;
        if (!was_there) {
            if (is_full(set)) {
                if (grow(set, err) != AGGLO_OK) {
                    return err->status;
                }
                slot = find_slot(set, uid);
            }
            memcpy(slot, uid, UID_BYTES);
            set->n_used++;
        }
    }
    if (known != NULL) {
        *known = was_there;
    }
    return AGGLO_OK;
}

bool agglo_uid_set_has(const agglo_uid_set *set, const uint8_t uid[16])
{
    if (memcmp(uid, zero, UID_BYTES) == 0) {
        return set->has_zero;
    }
    return memcmp(find_slot(set, uid), zero, UID_BYTES) != 0;
}

uint64_t agglo_uid_set_count(const agglo_uid_set *set)
{
    return set->n_used + set->has_zero;
}
