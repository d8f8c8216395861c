/* A small unit with contents that depend on nothing but its arguments, for the tests of the cache. */
#ifndef AGGLO_TESTS_UNIT_CACHE_MAKE_UNIT_H
#define AGGLO_TESTS_UNIT_CACHE_MAKE_UNIT_H

#include "cache/unit.h"
#include "tests/support/support.h"

static inline agglo_unit_id make_id(uint32_t shard)
{
    return (agglo_unit_id){.teacher = "clip", .group = "main", .shard = shard, .view_first = 0, .view_last = 1};
}

static inline agglo_provenance make_provenance(void)
{
    return (agglo_provenance){
        .shard = "aa", .views = "bb", .preprocess = "cc", .decoder = "dd", .weights = "ee", .codec = "fp16"};
}

/* The sanitizers make every test ten times as slow: those that repeat one thing many times take every n-th of it. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define MAKE_UNIT_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define MAKE_UNIT_SANITIZED 1
#endif
#endif
#ifndef MAKE_UNIT_SANITIZED
#define MAKE_UNIT_SANITIZED 0
#endif

/* Record of (ordinal, view): grid side x side x 8, one pattern of 256 values over and over; returns its size. */
static inline size_t make_record(uint32_t ordinal, int view, int side, uint8_t *out)
{
    agglo_record_info info = {.codec = AGGLO_CODEC_FP16,
                              .grid_h = (uint16_t)side,
                              .grid_w = (uint16_t)side,
                              .summary_dim = 4,
                              .spatial_dim = 8,
                              .w = 10,
                              .h = 10,
                              .input_w = 32,
                              .input_h = 32,
                              .pixel_hash = ordinal};
    test_random random = test_random_new(ordinal * 256u + (uint32_t)view);
    float summary[4], spatial[32 * 32 * 8];
    agglo_err err = {0};
    size_t n = 0;

    test_random_fill(&random, summary, 4, 1.0f);
    test_random_fill(&random, spatial, 256, 1.0f);
    for (size_t i = 256; i < (size_t)(side * side * 8); i++) {
        spatial[i] = spatial[i - 256];
    }
    assert_ok(agglo_record_encode(&info, summary, spatial, out, &n, &err));
    return n;
}

/* Write n_samples x 2 views; sample 1 is skipped. */
static inline agglo_status make_unit(const char *cache, const char *scratch, uint32_t shard, uint32_t n_samples,
                                     int side, agglo_manifest *manifest, agglo_err *err)
{
    const agglo_unit_id id = make_id(shard);
    const agglo_provenance provenance = make_provenance();
    static uint8_t record[64 + 8 + 32 * 32 * 8 * 2 + 64];
    agglo_unit_writer *writer = NULL;

    if (agglo_unit_writer_new(&writer, cache, scratch, &id, &provenance, sizeof record, 2 * n_samples, err) !=
        AGGLO_OK) {
        return err->status;
    }
    for (uint32_t ordinal = 0; ordinal < n_samples; ordinal++) {
        if (ordinal == 1) {
            if (agglo_unit_writer_skip(writer, ordinal, "key-1", "truncated", err) != AGGLO_OK) {
                goto fail;
            }
            continue;
        }
        for (int view = 0; view < 2; view++) {
            agglo_bytes bytes = {record, make_record(ordinal, view, side, record)};

            if (agglo_unit_writer_put(writer, ordinal, view, bytes, err) != AGGLO_OK) {
                goto fail;
            }
        }
    }
    return agglo_unit_writer_commit(writer, manifest, err);
fail:
    agglo_unit_writer_abort(writer);
    return err->status;
}

#endif
