/* Records: every codec's stated bound, every flipped bit, every cut, values that cannot be stored. */
#include "cache/record.h"
#include "tests/support/support.h"

#include <math.h>

static agglo_record_info some_info(agglo_codec_id codec)
{
    return (agglo_record_info){
        .codec = codec,
        .grid_h = 3,
        .grid_w = 5,
        .summary_dim = 7,
        .spatial_dim = 9,
        .x = 11,
        .y = 0,
        .w = 640,
        .h = 1,
        .flip = true,
        .input_w = 224,
        .input_h = 112,
        .pixel_hash = 0x0123456789abcdefu,
    };
}

enum { N_SUMMARY = 7, N_SPATIAL = 3 * 5 * 9, N_BYTES = 4096 };

static size_t encode_some(const agglo_record_info *info, const float *summary, const float *spatial, uint8_t *bytes)
{
    agglo_err err = {0};
    size_t n = 0;

    assert_ok(agglo_record_encode(info, summary, spatial, bytes, &n, &err));
    assert_true(n <= agglo_record_max_bytes(info) && n <= N_BYTES);
    return n;
}

static bool within(double x, double y, double relative, double absolute)
{
    double bound = relative * fabs(x);

    return fabs(x - y) <= (bound > absolute ? bound : absolute);
}

static void round_trips_within_the_stated_bounds(void **state)
{
    static const struct {
        agglo_codec_id codec;
        double relative, absolute;
    } codecs[] = {
        {AGGLO_CODEC_FP32, 0.0, 0.0}, {AGGLO_CODEC_FP16, 0x1p-11, 0x1p-25}, {AGGLO_CODEC_BF16, 0x1p-8, 0x1p-134}};
    test_random random = test_random_new(1);

    (void)state;
    for (int i = 0; i < 600; i++) {
        agglo_record_info info = some_info(codecs[i % 3].codec);
        float summary[N_SUMMARY], spatial[N_SPATIAL], summary_out[N_SUMMARY], spatial_out[N_SPATIAL];
        uint8_t bytes[N_BYTES];
        agglo_record record;
        agglo_err err = {0};
        size_t n;

        test_random_fill(&random, summary, N_SUMMARY, 1.0f);
        test_random_fill(&random, spatial, N_SPATIAL, ldexpf(1.0f, (int)(test_random_u32(&random) % 40) - 28));
        spatial[0] = i % 2 == 0 ? 65504.0f : 0.0f;
        n = encode_some(&info, summary, spatial, bytes);
        assert_ok(agglo_record_parse((agglo_bytes){bytes, n}, &record, &err));
        assert_int_equal(record.info.codec, info.codec);
        assert_int_equal(record.info.grid_h, 3);
        assert_int_equal(record.info.grid_w, 5);
        assert_true(record.info.x == 11 && record.info.y == 0 && record.info.w == 640 && record.info.h == 1 &&
                    record.info.flip);
        assert_true(record.info.input_w == 224 && record.info.input_h == 112 &&
                    record.info.pixel_hash == info.pixel_hash);
        assert_ok(agglo_record_decode(&record, summary_out, spatial_out, &err));
        for (int k = 0; k < N_SUMMARY; k++) {
            assert_true(within((double)summary[k], (double)summary_out[k], i % 3 == 0 ? 0.0 : 0x1p-11,
                               i % 3 == 0 ? 0.0 : 0x1p-25));
        }
        for (int k = 0; k < N_SPATIAL; k++) {
            assert_true(
                within((double)spatial[k], (double)spatial_out[k], codecs[i % 3].relative, codecs[i % 3].absolute));
        }
    }
}

static void every_flipped_bit_and_every_cut_is_noticed(void **state)
{
    agglo_record_info info = some_info(AGGLO_CODEC_FP16);
    float summary[N_SUMMARY] = {1.0f, -2.0f}, spatial[N_SPATIAL] = {0.5f};
    uint8_t bytes[N_BYTES];
    agglo_record record;
    agglo_err err = {0};
    size_t n = encode_some(&info, summary, spatial, bytes);

    (void)state;
    for (size_t bit = 0; bit < 8 * n; bit++) {
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        assert_fails(agglo_record_parse((agglo_bytes){bytes, n}, &record, &err), AGGLO_E_DATA, "cannot read record");
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    for (size_t cut = 0; cut < n; cut++) {
        uint8_t *exact = malloc(cut + 1); /* the end of the block is the end of the record: AddressSanitizer watches */

        memcpy(exact, bytes, cut);
        assert_fails(agglo_record_parse((agglo_bytes){exact, cut}, &record, &err), AGGLO_E_DATA, "cannot read record");
        free(exact);
    }
    assert_ok(agglo_record_parse((agglo_bytes){bytes, n}, &record, &err));
}

static void values_that_cannot_be_stored(void **state)
{
    static const struct {
        agglo_codec_id codec;
        float value;
        bool fits;
    } cases[] = {
        {AGGLO_CODEC_FP32, INFINITY, false}, {AGGLO_CODEC_FP32, NAN, false},      {AGGLO_CODEC_FP32, 3.4e38f, true},
        {AGGLO_CODEC_FP16, 65504.0f, true},  {AGGLO_CODEC_FP16, 65505.0f, false}, {AGGLO_CODEC_FP16, -1e30f, false},
        {AGGLO_CODEC_BF16, 3.4e38f, false},  {AGGLO_CODEC_BF16, -3.38e38f, true}, {AGGLO_CODEC_BF16, -INFINITY, false},
    };

    (void)state;
    for (size_t i = 0; i < AGGLO_COUNT(cases); i++) {
        agglo_record_info info = some_info(cases[i].codec);
        float summary[N_SUMMARY] = {0}, spatial[N_SPATIAL] = {0};
        uint8_t bytes[N_BYTES];
        agglo_err err = {0};
        size_t n = 0;

        spatial[2 * 9 + 4] = cases[i].value;
        if (cases[i].fits) {
            assert_ok(agglo_record_encode(&info, summary, spatial, bytes, &n, &err));
        } else {
            assert_fails(agglo_record_encode(&info, summary, spatial, bytes, &n, &err), AGGLO_E_DATA,
                         "spatial token 2, channel 4");
        }
    }
}

static void codec_names(void **state)
{
    (void)state;
    for (int id = 1; id <= 3; id++) {
        assert_int_equal(agglo_codec_of(agglo_codec_name((agglo_codec_id)id)), id);
    }
    assert_null(agglo_codec_name((agglo_codec_id)200));
    assert_int_equal(agglo_codec_of("fp8"), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_trips_within_the_stated_bounds),
        cmocka_unit_test(every_flipped_bit_and_every_cut_is_noticed),
        cmocka_unit_test(values_that_cannot_be_stored),
        cmocka_unit_test(codec_names),
    };

    return test_run("record", tests);
}
