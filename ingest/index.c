/* The index file: header, shard table, sample table, samples ordered by uid, samples ordered by key, keys. Every field is read with
 * explicit little-endian loads, and only after agglo_index_parse has checked all of them.
 *
 *     0  magic "AGGLOIDX"      24  samples, u64       48  xxh3-128 of all behind the header
 *     8  version, u32          32  key bytes, u64
 *    12  header bytes, u32     40  file bytes, u64
 *    16  shards, u32           20  sample record bytes, u32
 */
#include "ingest/index.h"

#include <stdlib.h>

#include "ingest/decode.h"

enum {
    VERSION = 1,
    HEADER_BYTES = 64,
    SHARD_BYTES = 40,  /* n_samples u32, zero u32, first u64, bytes u64, fingerprint 16 */
    SAMPLE_BYTES = 88, /* see put_sample */
    MAGIC_BYTES = 8
};

static const char magic[] = "AGGLOIDX";

struct agglo_index_builder {
    uint8_t *samples, *shards;
    char *keys;
    size_t samples_room, shards_room, keys_room, n_keys;
    uint64_t n_samples, first; /* of the open shard */
    uint32_t n_shards;
};

struct agglo_index {
    agglo_mapping mapping; /* zeroed for bytes in memory */
    const uint8_t *shards, *samples, *by_uid, *by_key;
    const char *keys;
    uint64_t n_samples, n_key_bytes;
    uint32_t n_shards;
};

static void put_sample(uint8_t *p, const agglo_index_sample *s, uint64_t key_at, uint32_t key_bytes)
{
    memcpy(p, s->uid, 16);
    agglo_put_le64(p + 16, s->image_offset);
    agglo_put_le64(p + 24, s->json_offset);
    agglo_put_le64(p + 32, s->caption_offset);
    agglo_put_le64(p + 40, (uint64_t)s->label);
    agglo_put_le64(p + 48, key_at);
    agglo_put_le32(p + 56, s->image_bytes);
    agglo_put_le32(p + 60, s->json_bytes);
    agglo_put_le32(p + 64, s->caption_bytes);
    agglo_put_le32(p + 68, key_bytes);
    agglo_put_le32(p + 72, s->width);
    agglo_put_le32(p + 76, s->height);
    memset(p + 80, 0, 8);
    p[80] = s->format;
    p[81] = s->orientation;
}

agglo_status agglo_index_builder_new(agglo_index_builder **out, agglo_err *err)
{
    *out = agglo_alloc(1, sizeof **out, err);
    return *out == NULL ? err->status : AGGLO_OK;
}

void agglo_index_builder_free(agglo_index_builder *builder)
{
    if (builder != NULL) {
        agglo_free(builder->samples);
        agglo_free(builder->shards);
        agglo_free(builder->keys);
        agglo_free(builder);
    }
}

/* Room for `need` bytes, growing by half. */
static agglo_status make_room(void **block, size_t *room, size_t need, agglo_err *err)
{
    size_t more = *room + *room / 2 + 4096;
    void *grown;

    if (need <= *room) {
        return AGGLO_OK;
    }
    more = more < need ? need : more;
    grown = agglo_realloc(*block, *room, more, err);
    if (grown == NULL) {
        return err->status;
    }
    *block = grown;
    *room = more;
    return AGGLO_OK;
}

agglo_status agglo_index_builder_add(agglo_index_builder *b, const agglo_index_sample *sample, agglo_err *err)
{
    size_t n_key = strlen(sample->key);
    void *samples = b->samples, *keys = b->keys;
    agglo_status status;

    if (b->n_samples >= UINT32_MAX) {
        return agglo_fail(err, AGGLO_E_UNSUPPORTED, "a dataset holds at most %u samples; split it", UINT32_MAX);
    }
    status = make_room(&samples, &b->samples_room, (size_t)(b->n_samples + 1) * SAMPLE_BYTES, err);
    b->samples = samples;
    if (status != AGGLO_OK) {
        return status;
    }
    status = make_room(&keys, &b->keys_room, b->n_keys + n_key + 1, err);
    b->keys = keys;
    if (status != AGGLO_OK) {
        return status;
    }
    put_sample(b->samples + b->n_samples * SAMPLE_BYTES, sample, b->n_keys, (uint32_t)n_key);
    memcpy(b->keys + b->n_keys, sample->key, n_key + 1);
    b->n_keys += n_key + 1;
    b->n_samples++;
    return AGGLO_OK;
}

agglo_status agglo_index_builder_shard(agglo_index_builder *b, uint64_t n_bytes, agglo_hash128 fingerprint,
                                       agglo_err *err)
{
    void *shards = b->shards;
    agglo_status status = make_room(&shards, &b->shards_room, ((size_t)b->n_shards + 1) * SHARD_BYTES, err);
    uint8_t *p;

    b->shards = shards;
    if (status != AGGLO_OK) {
        return status;
    }
    p = b->shards + (size_t)b->n_shards * SHARD_BYTES;
    agglo_put_le32(p, (uint32_t)(b->n_samples - b->first));
    agglo_put_le32(p + 4, 0);
    agglo_put_le64(p + 8, b->first);
    agglo_put_le64(p + 16, n_bytes);
    memcpy(p + 24, fingerprint.bytes, 16);
    b->first = b->n_samples;
    b->n_shards++;
    return AGGLO_OK;
}

uint64_t agglo_index_builder_samples(const agglo_index_builder *builder)
{
    return builder->n_samples;
}

uint32_t agglo_index_builder_shards(const agglo_index_builder *builder)
{
    return builder->n_shards;
}

static agglo_index_shard get_shard(const uint8_t *p)
{
    agglo_index_shard shard = {agglo_le32(p), agglo_le64(p + 8), agglo_le64(p + 16), {{0}}};

    memcpy(shard.fingerprint.bytes, p + 24, 16);
    return shard;
}

agglo_index_shard agglo_index_builder_at(const agglo_index_builder *builder, uint32_t k)
{
    AGGLO_ASSERT(k < builder->n_shards);
    return get_shard(builder->shards + (size_t)k * SHARD_BYTES);
}

static int compare_numbers(uint32_t a, uint32_t b)
{
    return a < b ? -1 : a > b;
}

static int by_uid(const void *a, const void *b, void *context)
{
    const agglo_index_builder *builder = context;
    uint32_t i = *(const uint32_t *)a, j = *(const uint32_t *)b;
    int order = memcmp(builder->samples + (size_t)i * SAMPLE_BYTES, builder->samples + (size_t)j * SAMPLE_BYTES, 16);

    return order != 0 ? order : compare_numbers(i, j);
}

static int by_key(const void *a, const void *b, void *context)
{
    const agglo_index_builder *builder = context;
    uint32_t i = *(const uint32_t *)a, j = *(const uint32_t *)b;
    int order = strcmp(builder->keys + agglo_le64(builder->samples + (size_t)i * SAMPLE_BYTES + 48),
                       builder->keys + agglo_le64(builder->samples + (size_t)j * SAMPLE_BYTES + 48));

    return order != 0 ? order : compare_numbers(i, j);
}

/* The numbers of all samples in this order, as they stand in the file. */
static void sort_samples(agglo_index_builder *b, uint32_t *order, int (*compare)(const void *, const void *, void *))
{
    size_t n = (size_t)b->n_samples;

    for (size_t i = 0; i < n; i++) {
        order[i] = (uint32_t)i;
    }
    qsort_r(order, n, sizeof *order, compare, b);
    for (size_t i = 0; i < n; i++) {
        agglo_put_le32(&order[i], order[i]);
    }
}

agglo_status agglo_index_builder_write(agglo_index_builder *b, const char *path, agglo_err *err)
{
    uint8_t header[HEADER_BYTES] = {0};
    agglo_new_file *file = NULL;
    agglo_hasher *hasher = NULL;
    uint32_t *orders = NULL;
    size_t n = (size_t)b->n_samples, n_shard_bytes = (size_t)b->n_shards * SHARD_BYTES,
           n_sample_bytes = n * SAMPLE_BYTES;
    agglo_hash128 digest;

    AGGLO_ASSERT(b->first == b->n_samples);
    memcpy(header, magic, MAGIC_BYTES);
    agglo_put_le32(header + 8, VERSION);
    agglo_put_le32(header + 12, HEADER_BYTES);
    agglo_put_le32(header + 16, b->n_shards);
    agglo_put_le32(header + 20, SAMPLE_BYTES);
    agglo_put_le64(header + 24, b->n_samples);
    agglo_put_le64(header + 32, b->n_keys);
    agglo_put_le64(header + 40, HEADER_BYTES + n_shard_bytes + n_sample_bytes + n * 8 + b->n_keys);

    orders = agglo_alloc(n * 2 + 1, sizeof *orders, err);
    if (orders == NULL) {
        goto fail;
    }
    sort_samples(b, orders, by_uid);
    sort_samples(b, orders + n, by_key);
    /* the hash stands before what it covers, so it is taken first */
    if (agglo_hasher_new(&hasher, AGGLO_HASH_XXH3_128, err) != AGGLO_OK ||
        agglo_hasher_add(hasher, b->shards, n_shard_bytes, err) != AGGLO_OK ||
        agglo_hasher_add(hasher, b->samples, n_sample_bytes, err) != AGGLO_OK ||
        agglo_hasher_add(hasher, orders, n * 8, err) != AGGLO_OK ||
        agglo_hasher_add(hasher, b->keys, b->n_keys, err) != AGGLO_OK ||
        agglo_hasher_end(hasher, digest.bytes, err) != AGGLO_OK) {
        goto fail;
    }
    memcpy(header + 48, digest.bytes, 16);
    if (agglo_new_file_open(&file, path, NULL, err) != AGGLO_OK ||
        agglo_new_file_write(file, header, sizeof header, err) != AGGLO_OK ||
        agglo_new_file_write(file, b->shards, n_shard_bytes, err) != AGGLO_OK ||
        agglo_new_file_write(file, b->samples, n_sample_bytes, err) != AGGLO_OK ||
        agglo_new_file_write(file, orders, n * 8, err) != AGGLO_OK ||
        agglo_new_file_write(file, b->keys, b->n_keys, err) != AGGLO_OK) {
        goto fail;
    }
    agglo_hasher_free(hasher);
    agglo_free(orders);
    if (agglo_new_file_commit(file, err) != AGGLO_OK) {
        return agglo_doing(err, "cannot write index");
    }
    return AGGLO_OK;
fail:
    agglo_new_file_abort(file);
    agglo_hasher_free(hasher);
    agglo_free(orders);
    return agglo_doing(err, "cannot write index");
}

static agglo_status broken(agglo_err *err, const char *what, uint64_t i)
{
    return agglo_fail(err, AGGLO_E_DATA, "%s %llu is not valid", what, (unsigned long long)i);
}

static bool inside(uint64_t offset, uint32_t n_bytes, uint64_t limit)
{
    return offset <= limit && n_bytes <= limit - offset;
}

static bool sample_is_valid(const agglo_index *index, const uint8_t *p, uint64_t tar_bytes, uint64_t key_at)
{
    uint64_t at = agglo_le64(p + 48);
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
           p[81] <= 8 && p[82] == 0 && p[83] == 0 && agglo_le32(p + 84) == 0;
}

static const uint8_t *sample_bytes(const agglo_index *index, uint64_t i)
{
    return index->samples + (size_t)i * SAMPLE_BYTES;
}

static const char *key_of(const agglo_index *index, uint64_t i)
{
    return index->keys + agglo_le64(sample_bytes(index, i) + 48);
}

/* All offsets and sizes, and both orders; strictly ascending numbers below n_samples are a permutation. */
static agglo_status validate(const agglo_index *index, agglo_err *err)
{
    uint64_t next = 0, key_at = 0;

    for (uint32_t s = 0; s < index->n_shards; s++) {
        const uint8_t *p = index->shards + (size_t)s * SHARD_BYTES;
        agglo_index_shard shard = get_shard(p);

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
    for (uint64_t k = 0; k < index->n_samples; k++) {
        uint32_t u = agglo_le32(index->by_uid + k * 4), v = agglo_le32(index->by_key + k * 4), before;
        int order;

        if (u >= index->n_samples || v >= index->n_samples) {
            return broken(err, "lookup entry", k);
        }
        if (k == 0) {
            continue;
        }
        before = agglo_le32(index->by_uid + (k - 1) * 4);
        if (memcmp(sample_bytes(index, before), sample_bytes(index, u), 16) >= 0) { /* uids are unique */
            return broken(err, "uid lookup entry", k);
        }
        before = agglo_le32(index->by_key + (k - 1) * 4);
        order = strcmp(key_of(index, before), key_of(index, v));
        if (order > 0 || (order == 0 && before >= v)) {
            return broken(err, "key lookup entry", k);
        }
    }
    return AGGLO_OK;
}

static agglo_status read_index(agglo_index *index, agglo_bytes bytes, agglo_err *err)
{
    const uint8_t *p = bytes.data;
    uint64_t n_samples, n_keys, rest;
    agglo_hash128 hash;

    if (bytes.size < HEADER_BYTES || memcmp(p, magic, MAGIC_BYTES) != 0) {
        return agglo_fail(err, AGGLO_E_DATA, "not an index file");
    }
    if (agglo_le32(p + 8) != VERSION) {
        return agglo_fail(err, AGGLO_E_MISMATCH, "index version %u, expected %d", agglo_le32(p + 8), VERSION);
    }
    n_samples = agglo_le64(p + 24);
    n_keys = agglo_le64(p + 32);
    rest = bytes.size - HEADER_BYTES;
    index->n_shards = agglo_le32(p + 16);
    /* every count is bounded by the file before it is multiplied */
    if (agglo_le32(p + 12) != HEADER_BYTES || agglo_le32(p + 20) != SAMPLE_BYTES || agglo_le64(p + 40) != bytes.size ||
        index->n_shards > rest / SHARD_BYTES || n_samples > rest / (SAMPLE_BYTES + 8) || n_samples > UINT32_MAX ||
        n_keys > rest || (uint64_t)index->n_shards * SHARD_BYTES + n_samples * (SAMPLE_BYTES + 8) + n_keys != rest) {
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
    index->by_uid = index->samples + (size_t)n_samples * SAMPLE_BYTES;
    index->by_key = index->by_uid + (size_t)n_samples * 4;
    index->keys = (const char *)index->by_key + (size_t)n_samples * 4;
    return validate(index, err);
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
    return get_shard(index->shards + (size_t)shard * SHARD_BYTES);
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
        .key = key_of(index, i),
    };
    memcpy(out->uid, p, 16);
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
    uint64_t lo = 0, hi = index->n_samples;

    while (lo < hi) {
        uint64_t mid = lo + (hi - lo) / 2;
        uint32_t at = agglo_le32(index->by_uid + mid * 4);
        int order = memcmp(sample_bytes(index, at), uid, 16);

        if (order == 0) {
            *i = at;
            return true;
        }
        if (order < 0) {
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
