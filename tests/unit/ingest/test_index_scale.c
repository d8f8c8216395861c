/* An index of a million samples (or as many as the first argument says): its memory is bounded, every uid is found, and the rates of
 * building, opening and looking up are printed. The clock decides nothing.
 */
#include "tests/support/support.h"

#include "base/log.h"
#include "ingest/index.h"
#include "ingest/uid_set.h"

static uint64_t n_samples = 1000000;

/* As DataComp's: shards of 10,000, keys ascend over shards, within one they stand in another order. */
static void make_sample(uint64_t i, agglo_index_sample *sample, char key[32])
{
    uint64_t shard = i / 10000, row = i % 10000 * 7919 % 10000;
    uint64_t words[2] = {i, 12};
    agglo_hash128 hash = agglo_xxh3_128(words, sizeof words);

    snprintf(key, 32, "%08llu%04llu", (unsigned long long)shard, (unsigned long long)row);
    *sample = (agglo_index_sample){.image_offset = 1024,
                                   .image_bytes = 35000,
                                   .width = 512,
                                   .height = 341,
                                   .format = 1,
                                   .orientation = 1,
                                   .label = -1,
                                   .has_sha256 = true,
                                   .key = key};
    memcpy(sample->uid, hash.bytes, 16);
    memcpy(sample->sha256.bytes, hash.bytes, 16);
}

static void show(const char *what, double seconds, uint64_t n)
{
    printf("%-28s %10.3f s %10.3f us each\n", what, seconds, seconds * 1e6 / (double)n);
    fflush(stdout);
}

static void test_a_million_samples(void **state)
{
    agglo_err err = {0};
    const char *path = test_path(test_dir(), "index.bin");
    agglo_index_builder *builder;
    agglo_index_sample sample;
    agglo_alloc_stats before;
    agglo_uid_set *set;
    agglo_index *index;
    agglo_hash128 fingerprint;
    uint64_t found = 0, sum = 0, at = 0, n_bytes = 0;
    double begun;
    char key[32];

    (void)state;
    agglo_alloc_peak_reset();
    before = agglo_alloc_counts();
    begun = agglo_now();
    assert_ok(agglo_index_builder_new(&builder, &err));
    for (uint64_t i = 0; i < n_samples; i++) {
        make_sample(i, &sample, key);
        assert_ok(agglo_index_builder_add(builder, &sample, &err));
        if (i % 10000 == 9999 || i + 1 == n_samples) {
            assert_ok(agglo_index_builder_shard(builder, (uint64_t)1 << 29, (agglo_hash128){{1}}, &err));
        }
    }
    show("add", agglo_now() - begun, n_samples);
    begun = agglo_now();
    assert_ok(agglo_index_builder_fingerprint(builder, &fingerprint, &err));
    show("sort and hash", agglo_now() - begun, n_samples);
    begun = agglo_now();
    assert_ok(agglo_index_builder_write(builder, path, &err));
    show("write and sync", agglo_now() - begun, n_samples);
    printf("%-28s %10.1f MB, peak %.1f MB\n", "builder", (double)agglo_index_builder_bytes(builder) / 1e6,
           (double)(agglo_alloc_counts().bytes_peak - before.bytes_live) / 1e6);
    agglo_index_builder_free(builder);
    /* for a million a quarter of 1 GiB */
    assert_true(agglo_alloc_counts().bytes_peak - before.bytes_live < 250 * (int64_t)n_samples + (1 << 20));

    assert_ok(agglo_file_size(path, &n_bytes, &err));
    begun = agglo_now();
    assert_ok(agglo_index_open(&index, path, &err));
    show("open and validate", agglo_now() - begun, n_samples);
    printf("%-28s %10.1f MB\n", "file", (double)n_bytes / 1e6);
    begun = agglo_now();
    for (uint64_t i = 0; i < n_samples; i++) {
        at = (at + 7368787) % n_samples; /* a prime: every sample, in no order that memory likes */
        make_sample(at, &sample, key);
        sum += sample.uid[0];
    }
    show("(making uids)", agglo_now() - begun, n_samples);
    begun = agglo_now();
    for (uint64_t i = 0; i < n_samples; i++) {
        at = (at + 7368787) % n_samples;
        make_sample(at, &sample, key);
        assert_true(agglo_index_find_uid(index, sample.uid, &found) && found == at);
    }
    show("find uid, and making it", agglo_now() - begun, n_samples);
    begun = agglo_now();
    for (uint64_t i = 0; i < n_samples; i++) {
        at = (at + 7368787) % n_samples;
        make_sample(at, &sample, key);
        assert_true(agglo_index_find_key(index, key, 0, &found) && found == at);
    }
    show("find key, and making it", agglo_now() - begun, n_samples);
    assert_true(sum > 0);

    begun = agglo_now();
    assert_ok(agglo_uid_set_new(&set, n_samples, &err));
    for (uint64_t i = 0; i < n_samples; i++) {
        bool known = true;

        agglo_index_sample_at(index, i, &sample);
        assert_ok(agglo_uid_set_add(set, sample.uid, &known, &err));
        assert_false(known);
    }
    show("uid set, add", agglo_now() - begun, n_samples);
    begun = agglo_now();
    for (uint64_t i = 0; i < n_samples; i++) {
        agglo_index_sample_at(index, i, &sample);
        assert_true(agglo_uid_set_has(set, sample.uid));
    }
    show("uid set, has", agglo_now() - begun, n_samples);
    agglo_uid_set_free(set);
    agglo_index_close(index);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_a_million_samples)};

    if (argc > 1) {
        n_samples = strtoull(argv[1], NULL, 10);
    }
    return test_run("index scale", tests);
}
