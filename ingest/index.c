/* Reading an index: header, shard table, sample table, lookup by uid (bucket starts, then samples ordered by hash and uid), samples
 * ordered by key, keys. Every field is read with explicit little-endian loads, and only after agglo_index_parse has checked all of them.
 *
 *     0  magic "AGGLOIDX"      24  samples, u64       48  xxh3-128 of all behind the header
 *     8  version, u32          32  key bytes, u64
 *    12  header bytes, u32     40  file bytes, u64
 *    16  shards, u32           20  sample record bytes, u32
 */
#include "ingest/index_impl.h"

#include "ingest/decode.h"

enum {
    AHEAD = 16, /* entries of an order: what they point to is fetched before it is needed */
    HEADER_BYTES = AGGLO_INDEX_HEADER_BYTES,
    SHARD_BYTES = AGGLO_INDEX_SHARD_BYTES,
    SAMPLE_BYTES = AGGLO_INDEX_SAMPLE_BYTES,
    UID_BYTES = AGGLO_INDEX_UID_BYTES,
    KEY_AT = AGGLO_INDEX_KEY_AT
};

struct agglo_index {
    agglo_mapping mapping; /* zeroed for bytes in memory */
    const uint8_t *shards, *samples, *starts, *by_uid, *by_key;
    const char *keys;
    uint64_t n_samples, n_key_bytes;
    uint32_t n_shards;
    unsigned bucket_bits;
    agglo_hash128 fingerprint;
};

static agglo_status broken(agglo_err *err, const char *what, uint64_t i)
{
    return agglo_fail(err, AGGLO_E_DATA, "%s %llu is not valid", what, (unsigned long long)i);
}

static bool inside(uint64_t offset, uint32_t n_bytes, uint64_t limit)
{
    return offset <= limit && n_bytes <= limit - offset;
}

static const uint8_t no_sha256[32];

static bool sample_is_valid(const agglo_index *index, const uint8_t *p, uint64_t tar_bytes, uint64_t key_at)
{
    uint64_t at = agglo_le64(p + KEY_AT);
    uint32_t n_key = agglo_le32(p + 68), width = agglo_le32(p + 72), height = agglo_le32(p + 76);

    /* keys stand in the order of the samples, each with one NUL behind it, and fill their table */
    if (at != key_at || at >= index->n_key_bytes || n_key >= index->n_key_bytes - at || index->keys[at + n_key] != 0 ||
        memchr(index->keys + at, 0, n_key) != NULL) {
        return false;
    }
    return inside(agglo_le64(p + 16), agglo_le32(p + 56), tar_bytes) && agglo_le32(p + 56) > 0 &&
           inside(agglo_le64(p + 24), agglo_le32(p + 60), tar_bytes) &&
           inside(agglo_le64(p + 32), agglo_le32(p + 64), tar_bytes) && width >= 1 && width <= INT32_MAX &&
           height >= 1 && height <= INT32_MAX && p[80] >= AGGLO_IMAGE_JPEG && p[80] <= AGGLO_IMAGE_WEBP && p[81] >= 1 &&
           p[81] <= 8 && (p[82] == AGGLO_INDEX_HAS_SHA256 || (p[82] == 0 && memcmp(p + 88, no_sha256, 32) == 0)) &&
           p[83] == 0 && agglo_le32(p + 84) == 0;
}

static const uint8_t *sample_bytes(const agglo_index *index, uint64_t i)
{
    return index->samples + (size_t)i * SAMPLE_BYTES;
}

static const char *key_of(const agglo_index *index, uint64_t i)
{
    return index->keys + agglo_le64(sample_bytes(index, i) + KEY_AT);
}

/* Shards and samples, every field. */
static agglo_status validate_samples(const agglo_index *index, agglo_err *err)
{
    uint64_t next = 0, key_at = 0;

    for (uint32_t s = 0; s < index->n_shards; s++) {
        const uint8_t *p = index->shards + (size_t)s * SHARD_BYTES;
        agglo_index_shard shard = agglo_index_get_shard(p);

        if (agglo_le32(p + 4) != 0 || shard.first_sample != next || shard.n_samples > index->n_samples - next) {
            return broken(err, "shard", s);
        }
        for (uint64_t i = next; i < next + shard.n_samples; i++) {
            if (!sample_is_valid(index, sample_bytes(index, i), shard.n_bytes, key_at)) {
                return broken(err, "sample", i);
            }
            key_at += (uint64_t)agglo_le32(sample_bytes(index, i) + 68) + 1;
        }
        next += shard.n_samples;
    }
    if (next != index->n_samples || key_at != index->n_key_bytes) {
        return agglo_fail(err, AGGLO_E_DATA, "the shards hold %llu samples of %llu", (unsigned long long)next,
                          (unsigned long long)index->n_samples);
    }
    return AGGLO_OK;
}

/* The order of uids strictly ascends by (hash, uid), so it is a permutation and uids are unique; the starts are where its buckets are. */
static agglo_status validate_uids(const agglo_index *index, agglo_err *err)
{
    uint64_t n = index->n_samples, n_buckets = (uint64_t)1 << index->bucket_bits, bucket = 0, before_hash = 0;
    const uint8_t *before = NULL;

    for (uint64_t k = 0; k < n; k++) {
        uint32_t u = agglo_le32(index->by_uid + k * 4);
        const uint8_t *uid;
        uint64_t hash, its;

        if (u >= n) {
            return broken(err, "uid lookup entry", k);
        }
        if (n - k > AHEAD) {
            uint32_t later = agglo_le32(index->by_uid + (k + AHEAD) * 4);

            __builtin_prefetch(sample_bytes(index, later < n ? later : 0));
        }
        uid = sample_bytes(index, u);
        hash = agglo_xxh3_64(uid, UID_BYTES);
        if (before != NULL && (hash < before_hash || (hash == before_hash && memcmp(before, uid, UID_BYTES) >= 0))) {
            return broken(err, "uid lookup entry", k);
        }
        for (its = agglo_index_bucket(hash, index->bucket_bits); bucket <= its; bucket++) {
            if (agglo_le32(index->starts + bucket * 4) != k) {
                return broken(err, "uid lookup bucket", bucket);
            }
        }
        before = uid;
        before_hash = hash;
    }
    for (; bucket <= n_buckets; bucket++) {
        if (agglo_le32(index->starts + bucket * 4) != n) {
            return broken(err, "uid lookup bucket", bucket);
        }
    }
    return AGGLO_OK;
}

/* The order of keys strictly ascends by (key, number): a permutation too. */
static agglo_status validate_keys(const agglo_index *index, agglo_err *err)
{
    uint64_t n = index->n_samples;
    uint32_t before = 0;

    for (uint64_t k = 0; k < n; k++) {
        uint32_t v = agglo_le32(index->by_key + k * 4);
        int order;

        if (v >= n) {
            return broken(err, "key lookup entry", k);
        }
        if (n - k > 2 * AHEAD) { /* the record first, then the key that it names */
            uint32_t far = agglo_le32(index->by_key + (k + 2 * AHEAD) * 4),
                     near = agglo_le32(index->by_key + (k + AHEAD) * 4);

            __builtin_prefetch(sample_bytes(index, far < n ? far : 0) + KEY_AT);
            __builtin_prefetch(key_of(index, near < n ? near : 0));
        }
        order = k == 0 ? -1 : strcmp(key_of(index, before), key_of(index, v));
        if (order > 0 || (order == 0 && before >= v)) {
            return broken(err, "key lookup entry", k);
        }
        before = v;
    }
    return AGGLO_OK;
}

static agglo_status read_index(agglo_index *index, agglo_bytes bytes, agglo_err *err)
{
    const uint8_t *p = bytes.data;
    uint64_t n_samples, n_keys, n_starts, rest;
    agglo_hash128 hash;

    if (bytes.size < HEADER_BYTES || memcmp(p, AGGLO_INDEX_MAGIC, AGGLO_INDEX_MAGIC_BYTES) != 0) {
        return agglo_fail(err, AGGLO_E_DATA, "not an index file");
    }
    if (agglo_le32(p + 8) != AGGLO_INDEX_VERSION) {
        return agglo_fail(err, AGGLO_E_MISMATCH, "index version %u, expected %d; ingest again", agglo_le32(p + 8),
                          AGGLO_INDEX_VERSION);
    }
    n_samples = agglo_le64(p + 24);
    n_keys = agglo_le64(p + 32);
    rest = bytes.size - HEADER_BYTES;
    index->n_shards = agglo_le32(p + 16);
    index->bucket_bits = n_samples > UINT32_MAX ? 0 : agglo_index_bucket_bits(n_samples);
    n_starts = ((uint64_t)1 << index->bucket_bits) + 1;
    /* every count is bounded by the file before it is multiplied */
    if (agglo_le32(p + 12) != HEADER_BYTES || agglo_le32(p + 20) != SAMPLE_BYTES || agglo_le64(p + 40) != bytes.size ||
        index->n_shards > rest / SHARD_BYTES || n_samples > rest / (SAMPLE_BYTES + 8) || n_samples > UINT32_MAX ||
        n_keys > rest ||
        (uint64_t)index->n_shards * SHARD_BYTES + n_samples * (SAMPLE_BYTES + 8) + n_starts * 4 + n_keys != rest) {
        return agglo_fail(err, AGGLO_E_DATA, "%zu bytes do not hold %u shards and %llu samples", bytes.size,
                          index->n_shards, (unsigned long long)n_samples);
    }
    hash = agglo_xxh3_128(p + HEADER_BYTES, (size_t)rest);
    if (memcmp(hash.bytes, p + 48, 16) != 0) {
        return agglo_fail(err, AGGLO_E_DATA, "the checksum is wrong: the file is damaged");
    }
    index->n_samples = n_samples;
    index->n_key_bytes = n_keys;
    index->shards = p + HEADER_BYTES;
    index->samples = index->shards + (size_t)index->n_shards * SHARD_BYTES;
    index->starts = index->samples + (size_t)n_samples * SAMPLE_BYTES;
    index->by_uid = index->starts + (size_t)n_starts * 4;
    index->by_key = index->by_uid + (size_t)n_samples * 4;
    index->keys = (const char *)index->by_key + (size_t)n_samples * 4;
    index->fingerprint = hash;
    if (validate_samples(index, err) != AGGLO_OK || validate_uids(index, err) != AGGLO_OK) {
        return err->status;
    }
    return validate_keys(index, err);
}

agglo_status agglo_index_parse(agglo_index **out, agglo_bytes bytes, agglo_err *err)
{
    agglo_index *index = agglo_alloc(1, sizeof *index, err);

    *out = NULL;
    if (index == NULL || read_index(index, bytes, err) != AGGLO_OK) {
        agglo_free(index);
        return agglo_doing(err, "cannot read index");
    }
    *out = index;
    return AGGLO_OK;
}

agglo_status agglo_index_open(agglo_index **out, const char *path, agglo_err *err)
{
    agglo_mapping mapping = {0};

    *out = NULL;
    if (agglo_map_file(path, &mapping, err) != AGGLO_OK) {
        return agglo_doing(err, "cannot read index");
    }
    if (agglo_index_parse(out, (agglo_bytes){mapping.data, mapping.size}, err) != AGGLO_OK) {
        agglo_unmap(&mapping);
        return agglo_at(err, "%s", path);
    }
    (*out)->mapping = mapping;
    return AGGLO_OK;
}

void agglo_index_close(agglo_index *index)
{
    if (index != NULL) {
        agglo_unmap(&index->mapping);
        agglo_free(index);
    }
}

agglo_hash128 agglo_index_fingerprint(const agglo_index *index)
{
    return index->fingerprint;
}

uint32_t agglo_index_shards(const agglo_index *index)
{
    return index->n_shards;
}

uint64_t agglo_index_samples(const agglo_index *index)
{
    return index->n_samples;
}

agglo_index_shard agglo_index_shard_at(const agglo_index *index, uint32_t shard)
{
    AGGLO_ASSERT(shard < index->n_shards);
    return agglo_index_get_shard(index->shards + (size_t)shard * SHARD_BYTES);
}

void agglo_index_sample_at(const agglo_index *index, uint64_t i, agglo_index_sample *out)
{
    const uint8_t *p;

    AGGLO_ASSERT(i < index->n_samples);
    p = sample_bytes(index, i);
    *out = (agglo_index_sample){
        .image_offset = agglo_le64(p + 16),
        .json_offset = agglo_le64(p + 24),
        .caption_offset = agglo_le64(p + 32),
        .image_bytes = agglo_le32(p + 56),
        .json_bytes = agglo_le32(p + 60),
        .caption_bytes = agglo_le32(p + 64),
        .width = agglo_le32(p + 72),
        .height = agglo_le32(p + 76),
        .format = p[80],
        .orientation = p[81],
        .label = (int64_t)agglo_le64(p + 40),
        .has_sha256 = p[82] == AGGLO_INDEX_HAS_SHA256,
        .key = key_of(index, i),
    };
    memcpy(out->uid, p, UID_BYTES);
    memcpy(out->sha256.bytes, p + 88, sizeof out->sha256.bytes);
}

uint32_t agglo_index_shard_of(const agglo_index *index, uint64_t i)
{
    uint32_t lo = 0, hi = index->n_shards;

    AGGLO_ASSERT(i < index->n_samples);
    while (hi - lo > 1) { /* the last shard that starts at or before i; empty shards share their start with the next */
        uint32_t mid = lo + (hi - lo) / 2;

        if (agglo_index_shard_at(index, mid).first_sample <= i) {
            lo = mid;
        } else {
            hi = mid;
        }
    }
    return lo;
}

bool agglo_index_find_uid(const agglo_index *index, const uint8_t uid[16], uint64_t *i)
{
    uint64_t hash = agglo_xxh3_64(uid, UID_BYTES), bucket = agglo_index_bucket(hash, index->bucket_bits);
    uint64_t lo = agglo_le32(index->starts + bucket * 4), hi = agglo_le32(index->starts + (bucket + 1) * 4);

    while (lo < hi) { /* one entry or two, unless someone chose the uids */
        uint64_t mid = lo + (hi - lo) / 2, hash_mid;
        uint32_t at = agglo_le32(index->by_uid + mid * 4);
        const uint8_t *p = sample_bytes(index, at);
        int order = memcmp(p, uid, UID_BYTES);

        if (order == 0) {
            *i = at;
            return true;
        }
        hash_mid = agglo_xxh3_64(p, UID_BYTES);
        if (hash_mid < hash || (hash_mid == hash && order < 0)) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    return false;
}

bool agglo_index_find_key(const agglo_index *index, const char *key, uint64_t k, uint64_t *i)
{
    uint64_t lo = 0, hi = index->n_samples;

    while (lo < hi) {
        uint64_t mid = lo + (hi - lo) / 2;

        if (strcmp(key_of(index, agglo_le32(index->by_key + mid * 4)), key) < 0) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    if (k >= index->n_samples - lo) {
        return false;
    }
    *i = agglo_le32(index->by_key + (lo + k) * 4);
    return strcmp(key_of(index, *i), key) == 0;
}
