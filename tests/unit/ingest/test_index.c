/* The index: lookups against a scan, orders against plain sorting, chosen uids, appending, damage, memory that ends. */
#include "tests/support/support.h"

#include "ingest/index_impl.h"

enum { KEY_MAX = 1200 };

/* What went in, to compare with. */
typedef struct expected {
    agglo_index_sample sample;
    char key[KEY_MAX];
} expected;

static agglo_index_builder *new_builder(void)
{
    agglo_err err = {0};
    agglo_index_builder *builder;

    assert_ok(agglo_index_builder_new(&builder, &err));
    return builder;
}

static agglo_index_sample make_sample(test_random *random, const char *key)
{
    agglo_index_sample s = {.key = key, .label = (int64_t)(test_random_u32(random) % 100) - 1};

    test_random_bytes(random, s.uid, sizeof s.uid);
    s.image_offset = test_random_u32(random) % 1000;
    s.image_bytes = 1 + test_random_u32(random) % 1000;
    s.json_offset = test_random_u32(random) % 1000;
    s.json_bytes = test_random_u32(random) % 1000;
    s.caption_offset = test_random_u32(random) % 1000;
    s.caption_bytes = test_random_u32(random) % 1000;
    s.width = 1 + test_random_u32(random) % 5000;
    s.height = 1 + test_random_u32(random) % 5000;
    s.format = (uint8_t)(1 + test_random_u32(random) % 3);
    s.orientation = (uint8_t)(1 + test_random_u32(random) % 8);
    s.has_sha256 = test_random_u32(random) % 2 == 0;
    if (s.has_sha256) {
        test_random_bytes(random, s.sha256.bytes, sizeof s.sha256.bytes);
    }
    return s;
}

static void close_shard(agglo_index_builder *builder, uint8_t mark)
{
    agglo_err err = {0};

    assert_ok(agglo_index_builder_shard(builder, 2000, (agglo_hash128){{mark}}, &err));
}

static void expect_sample(const agglo_index_sample *a, const agglo_index_sample *b)
{
    assert_memory_equal(a->uid, b->uid, 16);
    assert_true(a->image_offset == b->image_offset && a->json_offset == b->json_offset &&
                a->caption_offset == b->caption_offset && a->image_bytes == b->image_bytes &&
                a->json_bytes == b->json_bytes && a->caption_bytes == b->caption_bytes && a->width == b->width &&
                a->height == b->height && a->format == b->format && a->orientation == b->orientation &&
                a->label == b->label && a->has_sha256 == b->has_sha256);
    assert_memory_equal(a->sha256.bytes, b->sha256.bytes, 32);
    assert_string_equal(a->key, b->key);
}

/* Write, open (which validates both orders), compare every sample, look up every uid and key. */
static void expect_index(agglo_index_builder *builder, expected *all, size_t n)
{
    agglo_err err = {0};
    const char *path = test_path(test_dir(), "index.bin");
    agglo_hash128 made, read;
    agglo_index *index;
    uint64_t found;

    assert_ok(agglo_index_builder_fingerprint(builder, &made, &err));
    assert_ok(agglo_index_builder_write(builder, path, &err));
    assert_ok(agglo_index_open(&index, path, &err));
    read = agglo_index_fingerprint(index);
    assert_memory_equal(made.bytes, read.bytes, 16);
    assert_int_equal(agglo_index_samples(index), n);
    for (size_t i = 0; i < n; i++) {
        agglo_index_sample sample;
        uint8_t other[16];

        agglo_index_sample_at(index, i, &sample);
        expect_sample(&sample, &all[i].sample);
        assert_true(agglo_index_find_uid(index, all[i].sample.uid, &found));
        assert_int_equal(found, i);
        memcpy(other, all[i].sample.uid, 16);
        other[i % 16] = (uint8_t)(other[i % 16] ^ 1 << i % 8);
        if (agglo_index_find_uid(index, other, &found)) { /* one that differs in a bit is another one, or none */
            assert_memory_equal(all[found].sample.uid, other, 16);
        }
    }
    for (size_t i = 0; i<n; i += n> 3000 ? 97 : 1) { /* a scan for each */
        uint64_t k = 0;

        for (size_t j = 0; j < n; j++) {
            if (strcmp(all[j].sample.key, all[i].sample.key) == 0) {
                assert_true(agglo_index_find_key(index, all[i].sample.key, k++, &found));
                assert_int_equal(found, j);
            }
        }
        assert_true(k > 0);
        assert_false(agglo_index_find_key(index, all[i].sample.key, k, &found));
    }
    assert_false(agglo_index_find_key(index, "no such key", 0, &found));
    assert_false(agglo_index_find_key(index, "", 0, &found));
    agglo_index_close(index);
}

static expected *new_expected(size_t n)
{
    agglo_err err = {0};
    expected *all = agglo_alloc(n, sizeof *all, &err);

    assert_non_null(all);
    return all;
}

static void add(agglo_index_builder *builder, expected *e, test_random *random)
{
    agglo_err err = {0};

    e->sample = make_sample(random, e->key);
    assert_ok(agglo_index_builder_add(builder, &e->sample, &err));
}

/* Every number of samples around the powers of two, where the table of buckets changes its size. */
static void test_small_indexes(void **state)
{
    static const size_t sizes[] = {0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 63, 64, 65, 255, 256, 257};
    test_random random = test_random_new(1);

    (void)state;
    for (size_t s = 0; s < AGGLO_COUNT(sizes); s++) {
        agglo_index_builder *builder = new_builder();
        expected *all = new_expected(sizes[s]);

        close_shard(builder, 1); /* an empty one */
        for (size_t i = 0; i < sizes[s]; i++) {
            snprintf(all[i].key, sizeof all[i].key, "%u", test_random_u32(&random) % 50);
            add(builder, &all[i], &random);
            if (i % 7 == 6) {
                close_shard(builder, (uint8_t)i);
            }
        }
        close_shard(builder, 2);
        expect_index(builder, all, sizes[s]);
        agglo_index_builder_free(builder);
        agglo_free(all);
    }
    agglo_index_builder_free(NULL);
}

/* Keys of every kind that the sorting tells apart; samples beyond one chunk of the builder. */
static void test_orders_of_keys(void **state)
{
    enum { KINDS = 6, N = 9000 };
    test_random random = test_random_new(2);
    expected *all = new_expected(N);

    (void)state;
    for (int kind = 0; kind < KINDS; kind++) {
        size_t n = kind < 2 ? N : 700;
        agglo_index_builder *builder = new_builder();

        for (size_t i = 0; i < n; i++) {
            char *key = all[i].key;

            switch (kind) {
            case 0: /* sorted already */
                snprintf(key, KEY_MAX, "%012zu", i);
                break;
            case 1: /* as DataComp: shards ascend, samples in them do not */
                snprintf(key, KEY_MAX, "%08zu%04u", i / 500, test_random_u32(&random) % 10000);
                break;
            case 2: /* few different ones */
                snprintf(key, KEY_MAX, "same%u", test_random_u32(&random) % 3);
                break;
            case 3: /* short ones, one the beginning of the other, bytes beyond 127 */
                for (size_t k = 0, length = test_random_u32(&random) % 12; k < length; k++) {
                    key[k] = "a\x80\xff"[test_random_u32(&random) % 3];
                    key[k + 1] = 0;
                }
                key[0] = key[0] == 0 ? 'x' : key[0];
                break;
            case 4: /* deeper than the radix sort goes */
                memset(key, 'k', 1100);
                snprintf(key + 1100, KEY_MAX - 1100, "%u", test_random_u32(&random) % 300);
                break;
            default: /* the last one alone is out of order */
                snprintf(key, KEY_MAX, "%06zu", i + 1 < n ? i + 1 : 0);
            }
            add(builder, &all[i], &random);
        }
        close_shard(builder, 1);
        expect_index(builder, all, n);
        agglo_index_builder_free(builder);
        memset(all, 0, N * sizeof *all);
    }
    agglo_free(all);
}

/* The lookup hashes without a secret, so uids can be chosen that fall into one bucket: they are still found. */
static void test_chosen_uids(void **state)
{
    enum { N = 600, BITS = 10 };
    agglo_index_builder *builder = new_builder();
    test_random random = test_random_new(3);
    expected *all = new_expected(N);
    uint64_t n_tried = 0;
    agglo_err err = {0};

    (void)state;
    for (size_t i = 0; i < N; i++) {
        snprintf(all[i].key, sizeof all[i].key, "%zu", i);
        all[i].sample = make_sample(&random, all[i].key);
        if (i > 0) {
            do {
                memset(all[i].sample.uid, 0, 16);
                agglo_put_le64(all[i].sample.uid, n_tried++);
            } while (agglo_index_bucket(agglo_xxh3_64(all[i].sample.uid, 16), BITS) != 5);
        }
        assert_ok(agglo_index_builder_add(builder, &all[i].sample, &err));
    }
    assert_int_equal(agglo_index_bucket_bits(N), BITS);
    close_shard(builder, 1);
    expect_index(builder, all, N);
    agglo_index_builder_free(builder);
    agglo_free(all);
}

static void test_two_of_one_uid_are_refused(void **state)
{
    agglo_index_builder *builder = new_builder();
    test_random random = test_random_new(4);
    expected all[3] = {0};
    agglo_hash128 hash;
    agglo_err err = {0};

    (void)state;
    for (size_t i = 0; i < 3; i++) {
        snprintf(all[i].key, sizeof all[i].key, "%zu", i);
        all[i].sample = make_sample(&random, all[i].key);
        memset(all[i].sample.uid, i == 1 ? 1 : 0xab, 16);
        assert_ok(agglo_index_builder_add(builder, &all[i].sample, &err));
    }
    close_shard(builder, 1);
    assert_fails(agglo_index_builder_fingerprint(builder, &hash, &err), AGGLO_E_DATA,
                 "two samples have the uid abababababababababababababababab");
    assert_fails(agglo_index_builder_write(builder, test_path(test_dir(), "index.bin"), &err), AGGLO_E_DATA,
                 "two samples");
    agglo_index_builder_free(builder);
}

/* n samples in shards of 10, from the `from`-th on: the same every time. */
static void add_range(agglo_index_builder *builder, size_t from, size_t n)
{
    agglo_err err = {0};

    for (size_t i = from; i < from + n; i++) {
        test_random random = test_random_new(1000 + i);
        char key[32];
        agglo_index_sample sample;

        snprintf(key, sizeof key, "%05zu", i * 7919 % 10007);
        sample = make_sample(&random, key);
        assert_ok(agglo_index_builder_add(builder, &sample, &err));
        if (i % 10 == 9) {
            close_shard(builder, (uint8_t)(i / 10));
        }
    }
}

static void test_appending_equals_building_at_once(void **state)
{
    agglo_err err = {0};
    const char *dir = test_dir(), *first = test_path(dir, "first"), *grown = test_path(dir, "grown"),
               *once = test_path(dir, "once");
    agglo_index_builder *builder = new_builder();
    agglo_hash128 before, after;
    agglo_index *index;
    char *a, *b;
    size_t n_a, n_b;

    (void)state;
    add_range(builder, 0, 50);
    assert_ok(agglo_index_builder_write(builder, first, &err));
    assert_ok(agglo_index_builder_fingerprint(builder, &before, &err));
    agglo_index_builder_free(builder);

    builder = new_builder();
    assert_ok(agglo_index_open(&index, first, &err));
    assert_ok(agglo_index_builder_append_index(builder, index, &err));
    agglo_index_close(index);
    assert_int_equal(agglo_index_builder_samples(builder), 50);
    assert_int_equal(agglo_index_builder_shards(builder), 5);
    assert_int_equal(agglo_index_builder_at(builder, 3).first_sample, 30);
    assert_int_equal(agglo_index_builder_at(builder, 3).fingerprint.bytes[0], 3);
    assert_ok(agglo_index_builder_fingerprint(builder, &after, &err));
    assert_memory_equal(before.bytes, after.bytes, 16);
    add_range(builder, 50, 30);
    assert_ok(agglo_index_builder_fingerprint(builder, &after, &err)); /* made anew */
    assert_memory_not_equal(before.bytes, after.bytes, 16);
    assert_ok(agglo_index_builder_write(builder, grown, &err));
    agglo_index_builder_free(builder);

    builder = new_builder();
    add_range(builder, 0, 80);
    assert_ok(agglo_index_builder_write(builder, once, &err));
    agglo_index_builder_free(builder);
    assert_ok(agglo_file_read(grown, 1 << 20, &a, &n_a, &err));
    assert_ok(agglo_file_read(once, 1 << 20, &b, &n_b, &err));
    assert_int_equal(n_a, n_b);
    assert_memory_equal(a, b, n_a);
    assert_ok(agglo_index_open(&index, once, &err));
    assert_int_equal(agglo_index_samples(index), 80);
    agglo_index_close(index);
    agglo_free(a);
    agglo_free(b);
}

static void test_builder_knows_its_bytes(void **state)
{
    agglo_err err = {0};
    int64_t before = agglo_alloc_counts().bytes_live;
    agglo_index_builder *builder = new_builder();
    agglo_hash128 hash;

    (void)state;
    for (size_t i = 0; i < 20000; i += 2000) {
        int64_t counted, said;

        add_range(builder, i, 2000);
        if (i % 4000 == 0) {
            assert_ok(agglo_index_builder_fingerprint(builder, &hash, &err));
        }
        counted = agglo_alloc_counts().bytes_live - before;
        said = (int64_t)agglo_index_builder_bytes(builder);
        assert_true(said <= counted && counted - said < 8192); /* the C library rounds */
    }
    agglo_index_builder_free(builder);
}

static void read_index(size_t n, char **bytes, size_t *n_bytes)
{
    agglo_err err = {0};
    const char *path = test_path(test_dir(), "index.bin");
    agglo_index_builder *builder = new_builder();

    add_range(builder, 0, n);
    assert_ok(agglo_index_builder_write(builder, path, &err));
    agglo_index_builder_free(builder);
    assert_ok(agglo_file_read(path, 1 << 24, bytes, n_bytes, &err));
}

static void test_other_versions_are_refused_by_name(void **state)
{
    agglo_err err = {0};
    agglo_index *index;
    char *bytes;
    size_t n;

    (void)state;
    read_index(10, &bytes, &n);
    bytes[8] = 1;
    assert_fails(agglo_index_parse(&index, (agglo_bytes){(uint8_t *)bytes, n}, &err), AGGLO_E_MISMATCH,
                 "index version 1, expected 2; ingest again");
    bytes[8] = 3;
    assert_fails(agglo_index_parse(&index, (agglo_bytes){(uint8_t *)bytes, n}, &err), AGGLO_E_MISMATCH,
                 "index version 3, expected 2; ingest again");
    agglo_free(bytes);
}

/* Any byte changed under a checksum made right: what opens all the same can be looked up in full, and orders and buckets never open. */
static void test_changed_bytes_under_a_right_checksum(void **state)
{
    enum { N = 20, BUCKETS = 32 };
    agglo_err err = {0};
    char *bytes;
    size_t n, tables, n_refused = 0;

    (void)state;
    read_index(N, &bytes, &n);
    tables = 64 + 2 * 40 + N * 120;
    for (size_t at = 64; at < n; at++) {
        for (int k = 0; k < 4; k++) {
            static const uint8_t changes[] = {0x01, 0x80, 0xff, 0x02};
            char was = bytes[at];
            agglo_index *index;
            agglo_hash128 hash;

            bytes[at] = (char)(bytes[at] ^ changes[k]);
            hash = agglo_xxh3_128(bytes + 64, n - 64);
            memcpy(bytes + 48, hash.bytes, 16);
            if (agglo_index_parse(&index, (agglo_bytes){(uint8_t *)bytes, n}, &err) == AGGLO_OK) {
                assert_false(at >= tables && at < tables + (BUCKETS + 1 + 2 * N) * 4);
                for (uint64_t i = 0; i < N; i++) {
                    agglo_index_sample sample;
                    uint64_t found;

                    agglo_index_sample_at(index, i, &sample);
                    assert_true(agglo_index_find_uid(index, sample.uid, &found) && found == i);
                    assert_true(agglo_index_find_key(index, sample.key, 0, &found) && found <= i);
                }
                agglo_index_close(index);
            } else {
                assert_int_equal(err.status, AGGLO_E_DATA);
                agglo_err_clear(&err);
                n_refused++;
            }
            bytes[at] = was;
        }
    }
    assert_true(n_refused > (BUCKETS + 1 + 2 * N) * 16);
    agglo_free(bytes);
}

static void test_index_without_memory(void **state)
{
    agglo_err err = {0};
    const char *dir = test_dir(), *path = test_path(dir, "index.bin");
    int64_t n_live = agglo_alloc_counts().n_live, n;
    bool done = false;

    (void)state;
    for (n = 0; !done; n++) {
        agglo_index_builder *builder = NULL;
        agglo_index *index = NULL;
        char key[32];

        agglo_alloc_fail_after(n);
        if (agglo_index_builder_new(&builder, &err) == AGGLO_OK) {
            for (size_t i = 0; err.status == AGGLO_OK && i < 300; i++) {
                test_random random = test_random_new(i);
                agglo_index_sample sample;

                snprintf(key, sizeof key, "%zu", i * 101 % 307);
                sample = make_sample(&random, key);
                agglo_index_builder_add(builder, &sample, &err);
            }
            done = err.status == AGGLO_OK &&
                   agglo_index_builder_shard(builder, 2000, (agglo_hash128){{1}}, &err) == AGGLO_OK &&
                   agglo_index_builder_write(builder, path, &err) == AGGLO_OK &&
                   agglo_index_open(&index, path, &err) == AGGLO_OK;
        }
        agglo_alloc_fail_after(-1);
        if (!done) {
            assert_null(index);
            assert_fails(err.status, AGGLO_E_MEMORY, "out of memory");
        }
        agglo_index_close(index);
        agglo_index_builder_free(builder);
        assert_int_equal(agglo_alloc_counts().n_live, n_live);
    }
    assert_true(n >= 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_small_indexes),
        cmocka_unit_test(test_orders_of_keys),
        cmocka_unit_test(test_chosen_uids),
        cmocka_unit_test(test_two_of_one_uid_are_refused),
        cmocka_unit_test(test_appending_equals_building_at_once),
        cmocka_unit_test(test_builder_knows_its_bytes),
        cmocka_unit_test(test_other_versions_are_refused_by_name),
        cmocka_unit_test(test_changed_bytes_under_a_right_checksum),
        cmocka_unit_test(test_index_without_memory),
    };

    return test_run("index", tests);
}
