/* Building an index: records and keys are kept as they will stand in the file, in chunks, so that nothing is copied as it grows. At the
 * end two orders are made:
 *
 *   by uid: a counting sort over the buckets of the lookup table, about one sample each, then each bucket by (hash, uid);
 *   by key: radix sorts of (next 8 bytes of the key, number), again within each run of equal bytes. Keys that come sorted, as they do
 *           from most sources, are only looked through.
 */
#include "ingest/index_impl.h"

#include <stdlib.h>

enum {
    CHUNK_BITS = 13,
    CHUNK_SAMPLES = 1 << CHUNK_BITS,
    FEW = 24,       /* so few are sorted by insertion */
    DEEP_KEY = 1024 /* bytes that keys may share before they are sorted by comparison */
};

typedef struct chunk {
    uint8_t *samples; /* [CHUNK_SAMPLES] records */
    char *keys;
    uint64_t first_key; /* offset of `keys` in the key table */
    size_t n_keys, keys_room;
} chunk;

struct agglo_index_builder {
    chunk *chunks;
    uint8_t *shards;
    size_t n_chunks, chunks_room, shards_room; /* rooms in bytes */
    size_t keys_room;                          /* of all chunks */
    uint64_t n_samples, n_keys, first;         /* first: of the open shard */
    uint32_t n_shards;
    /* made from all that is there, NULL as soon as something is added */
    uint32_t *starts, *uid_order, *key_order; /* little-endian */
    agglo_hash128 fingerprint;
};

/* A key on its way to its place: 8 bytes of it, and whose it is. 12 bytes, not 16. */
typedef struct key_entry {
    uint32_t high, low, i;
} key_entry;

static size_t n_starts(const agglo_index_builder *b)
{
    return ((size_t)1 << agglo_index_bucket_bits(b->n_samples)) + 1;
}

static uint8_t *record_of(const agglo_index_builder *b, uint64_t i)
{
    return b->chunks[i >> CHUNK_BITS].samples + (i & (CHUNK_SAMPLES - 1)) * AGGLO_INDEX_SAMPLE_BYTES;
}

static const char *key_of(const agglo_index_builder *b, uint64_t i)
{
    const chunk *c = &b->chunks[i >> CHUNK_BITS];

    return c->keys + (agglo_le64(record_of(b, i) + AGGLO_INDEX_KEY_AT) - c->first_key);
}

static void put_sample(uint8_t *p, const agglo_index_sample *s, uint64_t key_at, uint32_t key_bytes)
{
    memcpy(p, s->uid, 16);
    agglo_put_le64(p + 16, s->image_offset);
    agglo_put_le64(p + 24, s->json_offset);
    agglo_put_le64(p + 32, s->caption_offset);
    agglo_put_le64(p + 40, (uint64_t)s->label);
    agglo_put_le64(p + AGGLO_INDEX_KEY_AT, key_at);
    agglo_put_le32(p + 56, s->image_bytes);
    agglo_put_le32(p + 60, s->json_bytes);
    agglo_put_le32(p + 64, s->caption_bytes);
    agglo_put_le32(p + 68, key_bytes);
    agglo_put_le32(p + 72, s->width);
    agglo_put_le32(p + 76, s->height);
    memset(p + 80, 0, 40);
    p[80] = s->format;
    p[81] = s->orientation;
    if (s->has_sha256) {
        p[82] = AGGLO_INDEX_HAS_SHA256;
        memcpy(p + 88, s->sha256.bytes, 32);
    }
}

static void unseal(agglo_index_builder *b)
{
    agglo_free(b->starts);
    agglo_free(b->uid_order);
    agglo_free(b->key_order);
    b->starts = b->uid_order = b->key_order = NULL;
}

agglo_status agglo_index_builder_new(agglo_index_builder **out, agglo_err *err)
{
    *out = agglo_alloc(1, sizeof **out, err);
    return *out == NULL ? err->status : AGGLO_OK;
}

void agglo_index_builder_free(agglo_index_builder *b)
{
    if (b != NULL) {
        unseal(b);
        for (size_t k = 0; k < b->n_chunks; k++) {
            agglo_free(b->chunks[k].samples);
            agglo_free(b->chunks[k].keys);
        }
        agglo_free(b->chunks);
        agglo_free(b->shards);
        agglo_free(b);
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

/* The chunk of the next sample. */
static chunk *next_chunk(agglo_index_builder *b, agglo_err *err)
{
    size_t k = (size_t)(b->n_samples >> CHUNK_BITS);
    void *chunks = b->chunks;
    agglo_status status;

    if (k < b->n_chunks) {
        return &b->chunks[k];
    }
    status = make_room(&chunks, &b->chunks_room, (k + 1) * sizeof *b->chunks, err);
    b->chunks = chunks;
    if (status != AGGLO_OK) {
        return NULL;
    }
    b->chunks[k] = (chunk){.first_key = b->n_keys};
    b->chunks[k].samples = agglo_alloc(CHUNK_SAMPLES, AGGLO_INDEX_SAMPLE_BYTES, err);
    if (b->chunks[k].samples == NULL) {
        return NULL;
    }
    b->n_chunks = k + 1;
    return &b->chunks[k];
}

agglo_status agglo_index_builder_add(agglo_index_builder *b, const agglo_index_sample *sample, agglo_err *err)
{
    size_t n_key = strlen(sample->key), room;
    agglo_status status;
    void *keys;
    chunk *c;

    AGGLO_ASSERT(n_key < UINT32_MAX);
    if (b->n_samples >= UINT32_MAX) {
        return agglo_fail(err, AGGLO_E_UNSUPPORTED, "a dataset holds at most %u samples; split it", UINT32_MAX);
    }
    unseal(b);
    c = next_chunk(b, err);
    if (c == NULL) {
        return err->status;
    }
    keys = c->keys;
    room = c->keys_room;
    status = make_room(&keys, &c->keys_room, c->n_keys + n_key + 1, err);
    c->keys = keys;
    b->keys_room += c->keys_room - room;
    if (status != AGGLO_OK) {
        return status;
    }
    put_sample(record_of(b, b->n_samples), sample, b->n_keys, (uint32_t)n_key);
    memcpy(c->keys + c->n_keys, sample->key, n_key + 1);
    c->n_keys += n_key + 1;
    b->n_keys += n_key + 1;
    b->n_samples++;
    return AGGLO_OK;
}

agglo_status agglo_index_builder_shard(agglo_index_builder *b, uint64_t n_bytes, agglo_hash128 fingerprint,
                                       agglo_err *err)
{
    void *shards = b->shards;
    agglo_status status;
    uint8_t *p;

    if (b->n_shards == UINT32_MAX) {
        return agglo_fail(err, AGGLO_E_UNSUPPORTED, "a dataset holds at most %u shards; split it", UINT32_MAX);
    }
    unseal(b);
    status = make_room(&shards, &b->shards_room, ((size_t)b->n_shards + 1) * AGGLO_INDEX_SHARD_BYTES, err);
    b->shards = shards;
    if (status != AGGLO_OK) {
        return status;
    }
    p = b->shards + (size_t)b->n_shards * AGGLO_INDEX_SHARD_BYTES;
    agglo_put_le32(p, (uint32_t)(b->n_samples - b->first));
    agglo_put_le32(p + 4, 0);
    agglo_put_le64(p + 8, b->first);
    agglo_put_le64(p + 16, n_bytes);
    memcpy(p + 24, fingerprint.bytes, 16);
    b->first = b->n_samples;
    b->n_shards++;
    return AGGLO_OK;
}

agglo_status agglo_index_builder_append_index(agglo_index_builder *b, const agglo_index *index, agglo_err *err)
{
    AGGLO_ASSERT(b->first == b->n_samples); /* no shard is open */
    for (uint32_t s = 0; s < agglo_index_shards(index); s++) {
        agglo_index_shard shard = agglo_index_shard_at(index, s);

        for (uint64_t i = shard.first_sample; i < shard.first_sample + shard.n_samples; i++) {
            agglo_index_sample sample;

            agglo_index_sample_at(index, i, &sample);
            if (agglo_index_builder_add(b, &sample, err) != AGGLO_OK) {
                return err->status;
            }
        }
        if (agglo_index_builder_shard(b, shard.n_bytes, shard.fingerprint, err) != AGGLO_OK) {
            return err->status;
        }
    }
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

agglo_index_shard agglo_index_builder_at(const agglo_index_builder *builder, uint32_t k)
{
    AGGLO_ASSERT(k < builder->n_shards);
    return agglo_index_get_shard(builder->shards + (size_t)k * AGGLO_INDEX_SHARD_BYTES);
}

uint64_t agglo_index_builder_bytes(const agglo_index_builder *b)
{
    uint64_t orders = b->starts == NULL ? 0 : (n_starts(b) + 2 * b->n_samples) * sizeof(uint32_t);

    return sizeof *b + b->chunks_room + b->n_chunks * (uint64_t)CHUNK_SAMPLES * AGGLO_INDEX_SAMPLE_BYTES +
           b->keys_room + b->shards_room + orders;
}

/* ---- the order of uids ---- */

static uint64_t uid_hash(const agglo_index_builder *b, uint64_t i)
{
    return agglo_xxh3_64(record_of(b, i), AGGLO_INDEX_UID_BYTES);
}

static int compare_uids(const void *x, const void *y, void *context)
{
    const agglo_index_builder *b = context;
    uint32_t i = *(const uint32_t *)x, j = *(const uint32_t *)y;
    uint64_t hash_i = uid_hash(b, i), hash_j = uid_hash(b, j);

    if (hash_i != hash_j) {
        return hash_i < hash_j ? -1 : 1;
    }
    return memcmp(record_of(b, i), record_of(b, j), AGGLO_INDEX_UID_BYTES);
}

static agglo_status sort_bucket(agglo_index_builder *b, uint32_t *order, size_t n, agglo_err *err)
{
    if (n > FEW) { /* someone chose these uids */
        qsort_r(order, n, sizeof *order, compare_uids, b);
    } else {
        for (size_t k = 1; k < n; k++) {
            uint32_t i = order[k];
            size_t at = k;

            for (; at > 0 && compare_uids(&order[at - 1], &i, b) > 0; at--) {
                order[at] = order[at - 1];
            }
            order[at] = i;
        }
    }
    for (size_t k = 1; k < n; k++) {
        const uint8_t *uid = record_of(b, order[k]);
        char hex[33];

        if (memcmp(record_of(b, order[k - 1]), uid, AGGLO_INDEX_UID_BYTES) == 0) {
            return agglo_fail(err, AGGLO_E_DATA, "two samples have the uid %s", agglo_hex(uid, 16, hex));
        }
    }
    return AGGLO_OK;
}

static agglo_status sort_uids(agglo_index_builder *b, agglo_err *err)
{
    unsigned bits = agglo_index_bucket_bits(b->n_samples);
    size_t n_buckets = (size_t)1 << bits;
    uint32_t *starts = b->starts, *order = b->uid_order;

    for (uint64_t i = 0; i < b->n_samples; i++) {
        starts[agglo_index_bucket(uid_hash(b, i), bits)]++;
    }
    for (size_t k = 1; k <= n_buckets; k++) { /* now the end of each bucket */
        starts[k] += starts[k - 1];
    }
    for (uint64_t i = b->n_samples; i-- > 0;) { /* and its start, when all are in */
        order[--starts[agglo_index_bucket(uid_hash(b, i), bits)]] = (uint32_t)i;
    }
    for (size_t k = 0; k < n_buckets; k++) {
        if (starts[k + 1] - starts[k] > 1 &&
            sort_bucket(b, order + starts[k], starts[k + 1] - starts[k], err) != AGGLO_OK) {
            return err->status;
        }
    }
    return AGGLO_OK;
}

/* ---- the order of keys ---- */

/* The 8 bytes of a key from `depth` on, zero behind its end: they compare as the keys do. Its first `depth` bytes are not NUL. */
static void load_prefix(const agglo_index_builder *b, key_entry *e, size_t depth)
{
    const uint8_t *key = (const uint8_t *)key_of(b, e->i) + depth;
    uint8_t bytes[8] = {0};

    for (size_t k = 0; k < 8 && key[k] != 0; k++) {
        bytes[k] = key[k];
    }
    e->high = agglo_be32(bytes);
    e->low = agglo_be32(bytes + 4);
}

typedef struct key_context {
    const agglo_index_builder *builder;
    size_t depth; /* bytes that all keys here share */
} key_context;

static int compare_keys(const void *x, const void *y, void *context)
{
    const key_context *c = context;
    uint32_t i = ((const key_entry *)x)->i, j = ((const key_entry *)y)->i;
    int order = strcmp(key_of(c->builder, i) + c->depth, key_of(c->builder, j) + c->depth);

    return order != 0 ? order : (i > j) - (i < j);
}

static unsigned digit(const key_entry *e, int k)
{
    return (k < 4 ? e->low >> 8 * k : e->high >> 8 * (k - 4)) & 255;
}

/* Stable, least significant byte first; bytes that are the same everywhere cost nothing. */
static void sort_by_prefix(key_entry *entries, key_entry *scratch, size_t n)
{
    uint32_t counts[8][256] = {0};
    key_entry *from = entries, *to = scratch;

    for (size_t i = 0; i < n; i++) {
        for (int k = 0; k < 8; k++) {
            counts[k][digit(&entries[i], k)]++;
        }
    }
    for (int k = 0; k < 8; k++) {
        uint32_t next = 0;
        key_entry *swap = from;

        if (counts[k][digit(from, k)] == n) {
            continue;
        }
        for (int v = 0; v < 256; v++) {
            uint32_t count = counts[k][v];

            counts[k][v] = next;
            next += count;
        }
        for (size_t i = 0; i < n; i++) {
            to[counts[k][digit(&from[i], k)]++] = from[i];
        }
        from = to;
        to = swap;
    }
    if (from != entries) {
        memcpy(entries, from, n * sizeof *entries);
    }
}

/* Keys that share their first `depth` bytes. Runs that share 8 more are sorted in turn, at most DEEP_KEY / 8 calls deep. */
static void sort_range(const agglo_index_builder *b, key_entry *entries, key_entry *scratch, size_t n, size_t depth)
{
    key_context context = {b, depth};

    if (n <= FEW) {
        for (size_t k = 1; k < n; k++) {
            key_entry e = entries[k];
            size_t at = k;

            for (; at > 0 && compare_keys(&entries[at - 1], &e, &context) > 0; at--) {
                entries[at] = entries[at - 1];
            }
            entries[at] = e;
        }
        return;
    }
    if (depth >= DEEP_KEY) {
        qsort_r(entries, n, sizeof *entries, compare_keys, &context);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        load_prefix(b, &entries[i], depth);
    }
    sort_by_prefix(entries, scratch, n);
    for (size_t from = 0, to; from < n; from = to) {
        for (to = from + 1; to < n && entries[to].high == entries[from].high && entries[to].low == entries[from].low;) {
            to++;
        }
        if (to - from > 1 && (entries[from].low & 255) != 0) { /* else the keys end here: equal, and in order */
            sort_range(b, entries + from, scratch, to - from, depth + 8);
        }
    }
}

static agglo_status sort_keys(agglo_index_builder *b, agglo_err *err)
{
    size_t n = (size_t)b->n_samples, n_sorted = n > 0;
    key_entry *entries;

    while (n_sorted < n && strcmp(key_of(b, n_sorted - 1), key_of(b, n_sorted)) <= 0) {
        n_sorted++;
    }
    for (size_t i = 0; i < n; i++) {
        b->key_order[i] = (uint32_t)i;
    }
    if (n_sorted == n) {
        return AGGLO_OK;
    }
    entries = agglo_alloc(n, 2 * sizeof *entries, err);
    if (entries == NULL) {
        return err->status;
    }
    for (size_t i = 0; i < n; i++) {
        entries[i].i = (uint32_t)i;
    }
    sort_range(b, entries, entries + n, n, 0);
    for (size_t i = 0; i < n; i++) {
        b->key_order[i] = entries[i].i;
    }
    agglo_free(entries);
    return AGGLO_OK;
}

/* ---- the file ---- */

typedef agglo_status put_bytes(void *context, const void *data, size_t n_bytes, agglo_err *err);

/* All that follows the header, in order. */
static agglo_status put_body(const agglo_index_builder *b, put_bytes *put, void *context, agglo_err *err)
{
    size_t n = (size_t)b->n_samples;

    if (put(context, b->shards, (size_t)b->n_shards * AGGLO_INDEX_SHARD_BYTES, err) != AGGLO_OK) {
        return err->status;
    }
    for (size_t k = 0, left = n; left > 0; k++) {
        size_t here = left < CHUNK_SAMPLES ? left : CHUNK_SAMPLES;

        if (put(context, b->chunks[k].samples, here * AGGLO_INDEX_SAMPLE_BYTES, err) != AGGLO_OK) {
            return err->status;
        }
        left -= here;
    }
    if (put(context, b->starts, n_starts(b) * sizeof *b->starts, err) != AGGLO_OK ||
        put(context, b->uid_order, n * sizeof *b->uid_order, err) != AGGLO_OK ||
        put(context, b->key_order, n * sizeof *b->key_order, err) != AGGLO_OK) {
        return err->status;
    }
    for (size_t k = 0; k < b->n_chunks; k++) {
        if (put(context, b->chunks[k].keys, b->chunks[k].n_keys, err) != AGGLO_OK) {
            return err->status;
        }
    }
    return AGGLO_OK;
}

static agglo_status hash_bytes(void *context, const void *data, size_t n_bytes, agglo_err *err)
{
    return n_bytes == 0 ? AGGLO_OK : agglo_hasher_add(context, data, n_bytes, err);
}

static agglo_status write_bytes(void *context, const void *data, size_t n_bytes, agglo_err *err)
{
    return n_bytes == 0 ? AGGLO_OK : agglo_new_file_write(context, data, n_bytes, err);
}

/* The table and the orders, then the hash over all of it. */
static agglo_status seal(agglo_index_builder *b, agglo_err *err)
{
    agglo_hasher *hasher = NULL;

    if (b->starts != NULL) {
        return AGGLO_OK;
    }
    b->starts = agglo_alloc(n_starts(b), sizeof *b->starts, err);
    b->uid_order = b->starts == NULL ? NULL : agglo_alloc((size_t)b->n_samples, sizeof *b->uid_order, err);
    b->key_order = b->uid_order == NULL ? NULL : agglo_alloc((size_t)b->n_samples, sizeof *b->key_order, err);
    if (b->key_order == NULL || sort_uids(b, err) != AGGLO_OK || sort_keys(b, err) != AGGLO_OK) {
        goto fail;
    }
    for (size_t k = 0; k < n_starts(b); k++) {
        agglo_put_le32(&b->starts[k], b->starts[k]);
    }
    for (uint64_t i = 0; i < b->n_samples; i++) {
        agglo_put_le32(&b->uid_order[i], b->uid_order[i]);
        agglo_put_le32(&b->key_order[i], b->key_order[i]);
    }
    if (agglo_hasher_new(&hasher, AGGLO_HASH_XXH3_128, err) != AGGLO_OK ||
        put_body(b, hash_bytes, hasher, err) != AGGLO_OK ||
        agglo_hasher_end(hasher, b->fingerprint.bytes, err) != AGGLO_OK) {
        goto fail;
    }
    agglo_hasher_free(hasher);
    return AGGLO_OK;
fail:
    agglo_hasher_free(hasher);
    unseal(b);
    return err->status;
}

agglo_status agglo_index_builder_fingerprint(agglo_index_builder *b, agglo_hash128 *out, agglo_err *err)
{
    AGGLO_ASSERT(b->first == b->n_samples);
    if (seal(b, err) != AGGLO_OK) {
        return agglo_doing(err, "cannot make index");
    }
    *out = b->fingerprint;
    return AGGLO_OK;
}

agglo_status agglo_index_builder_write(agglo_index_builder *b, const char *path, agglo_err *err)
{
    uint8_t header[AGGLO_INDEX_HEADER_BYTES] = {0};
    agglo_new_file *file = NULL;

    AGGLO_ASSERT(b->first == b->n_samples);
    if (seal(b, err) != AGGLO_OK) {
        return agglo_doing(err, "cannot make index");
    }
    memcpy(header, AGGLO_INDEX_MAGIC, AGGLO_INDEX_MAGIC_BYTES);
    agglo_put_le32(header + 8, AGGLO_INDEX_VERSION);
    agglo_put_le32(header + 12, AGGLO_INDEX_HEADER_BYTES);
    agglo_put_le32(header + 16, b->n_shards);
    agglo_put_le32(header + 20, AGGLO_INDEX_SAMPLE_BYTES);
    agglo_put_le64(header + 24, b->n_samples);
    agglo_put_le64(header + 32, b->n_keys);
    agglo_put_le64(header + 40, AGGLO_INDEX_HEADER_BYTES + (uint64_t)b->n_shards * AGGLO_INDEX_SHARD_BYTES +
                                    b->n_samples * (AGGLO_INDEX_SAMPLE_BYTES + 8) + n_starts(b) * 4 + b->n_keys);
    memcpy(header + 48, b->fingerprint.bytes, 16);
    if (agglo_new_file_open(&file, path, NULL, err) != AGGLO_OK ||
        agglo_new_file_write(file, header, sizeof header, err) != AGGLO_OK ||
        put_body(b, write_bytes, file, err) != AGGLO_OK) {
        agglo_new_file_abort(file);
        return agglo_doing(err, "cannot write index");
    }
    if (agglo_new_file_commit(file, err) != AGGLO_OK) {
        return agglo_doing(err, "cannot write index");
    }
    return AGGLO_OK;
}
