/* Decoders against Pillow's pixels (script/fixtures/make_decode_fixtures.py), and against bytes that are cut off, damaged or hostile. */
#include "tests/support/support.h"

#include "ingest/decode.h"

static char *read_fixture(const char *name, size_t *n)
{
    agglo_err err = {0};
    char path[64], *bytes;

    snprintf(path, sizeof path, "decode/%s", name);
    assert_ok(agglo_file_read(test_fixture(path), 1 << 20, &bytes, n, &err));
    return bytes;
}

static bool ends_with(const char *name, const char *end)
{
    size_t n = strlen(name), m = strlen(end);

    return n >= m && strcmp(name + n - m, end) == 0;
}

static void expect_pixels(agglo_decoder *decoder, const char *image_name, const char *rgb_name)
{
    agglo_err err = {0};
    agglo_image image;
    agglo_image_info info;
    agglo_decode_options options = agglo_decode_options_default();
    size_t n, n_rgb;
    char *bytes = read_fixture(image_name, &n), *rgb = read_fixture(rgb_name, &n_rgb);

    assert_ok(agglo_decode(decoder, (agglo_bytes){(uint8_t *)bytes, n}, &image, NULL, &err));
    assert_ok(agglo_image_probe((agglo_bytes){(uint8_t *)bytes, n}, &options, &info, NULL, &err));
    assert_int_equal(image.width, agglo_le32(rgb));
    assert_int_equal(image.height, agglo_le32(rgb + 4));
    assert_int_equal(info.width, image.width);
    assert_int_equal(info.height, image.height);
    assert_int_equal(n_rgb, 8 + (size_t)image.width * (size_t)image.height * 3);
    if (memcmp(image.rgb, rgb + 8, n_rgb - 8) != 0) {
        fail_msg("%s: pixels differ from Pillow's", image_name);
    }
    agglo_free(bytes);
    agglo_free(rgb);
}

static void test_pixels_are_pillows(void **state)
{
    agglo_err err = {0};
    agglo_decode_options options = agglo_decode_options_default();
    agglo_decoder *decoder;
    agglo_arena *arena;
    char **names;
    size_t n, n_checked = 0;

    (void)state;
    assert_ok(agglo_arena_new(&arena, 0, &err));
    assert_ok(agglo_decoder_new(&decoder, &options, &err));
    assert_ok(agglo_list_dir(test_fixture("decode"), arena, &names, &n, &err));
    for (size_t i = 0; i < n; i++) {
        char rgb[64];

        if (ends_with(names[i], ".rgb")) {
            continue;
        }
        snprintf(rgb, sizeof rgb, "%.*s.rgb", (int)(strrchr(names[i], '.') - names[i]), names[i]);
        expect_pixels(decoder, names[i], rgb);
        n_checked++;
    }
    assert_true(n_checked >= 45);
    agglo_decoder_free(decoder);
    options.png16_clip = true;
    assert_ok(agglo_decoder_new(&decoder, &options, &err));
    expect_pixels(decoder, "png_gray16.png", "png_gray16.clip.rgb");
    agglo_decoder_free(decoder);
    agglo_arena_free(arena);
}

static void test_exif_is_ignored_when_asked(void **state)
{
    agglo_err err = {0};
    agglo_decode_options options = agglo_decode_options_default();
    agglo_decoder *decoder;
    agglo_image image;
    size_t n, n_rgb;
    char *bytes = read_fixture("jpeg_exif6.jpg", &n), *rgb = read_fixture("jpeg_exif1.rgb", &n_rgb);

    (void)state;
    options.ignore_exif = true;
    assert_ok(agglo_decoder_new(&decoder, &options, &err));
    assert_ok(agglo_decode(decoder, (agglo_bytes){(uint8_t *)bytes, n}, &image, NULL, &err));
    assert_int_equal(image.width, 29);
    assert_memory_equal(image.rgb, rgb + 8, n_rgb - 8);
    agglo_decoder_free(decoder);
    agglo_free(bytes);
    agglo_free(rgb);
}

/* Cut at every length, each file is refused, and as cut off where its header was whole. */
static void test_cut_files_are_refused(void **state)
{
    static const char *const names[] = {
        "jpeg_420.jpg",    "jpeg_progressive.jpg",     "jpeg_restart.jpg",  "png_rgb8.png", "png_rgb8_interlaced.png",
        "webp_lossy.webp", "webp_lossless_alpha.webp", "webp_animated.webp"};
    agglo_err err = {0};
    agglo_decode_options options = agglo_decode_options_default();
    agglo_decoder *decoder;
    agglo_image image;

    (void)state;
    assert_ok(agglo_decoder_new(&decoder, &options, &err));
    for (size_t k = 0; k < AGGLO_COUNT(names); k++) {
        size_t n;
        char *bytes = read_fixture(names[k], &n);

        for (size_t cut = 0; cut < n; cut++) {
            agglo_reason reason = NULL;
            uint8_t *exact = malloc(cut + 1); /* so that a read behind the end is seen by the sanitizer */

            memcpy(exact, bytes, cut);
            if (agglo_decode(decoder, (agglo_bytes){exact, cut}, &image, &reason, &err) == AGGLO_OK) {
                fail_msg("%s cut to %zu of %zu bytes was accepted", names[k], cut, n);
            }
            assert_non_null(reason);
            if (cut == n - 1 || cut == n / 2) {
                assert_string_equal(reason, "truncated");
            }
            agglo_err_clear(&err);
            free(exact);
        }
        agglo_free(bytes);
    }
    agglo_decoder_free(decoder);
}

static void expect_reason(const void *bytes, size_t n, uint64_t max_pixels, const char *expected)
{
    agglo_err err = {0};
    agglo_decode_options options = agglo_decode_options_default();
    agglo_decoder *decoder;
    agglo_image image;
    agglo_reason reason = NULL;

    options.max_pixels = max_pixels;
    assert_ok(agglo_decoder_new(&decoder, &options, &err));
    assert_fails(agglo_decode(decoder, (agglo_bytes){bytes, n}, &image, &reason, &err), AGGLO_E_DATA,
                 "cannot decode picture");
    assert_string_equal(reason, expected);
    assert_null(image.rgb);
    agglo_decoder_free(decoder);
}

static void test_reasons(void **state)
{
    size_t n;
    char *bytes;

    (void)state;
    expect_reason("", 0, 100, "not_an_image");
    expect_reason("<html><body>404</body></html>", 29, 100, "not_an_image");
    expect_reason("GIF89a..........", 16, 100, "unsupported_format");
    expect_reason("II*\0........", 12, 100, "unsupported_format");
    bytes = read_fixture("png_rgb8.png", &n);
    expect_reason(bytes, n, 29 * 21 - 1, "too_large");
    bytes[n / 2] = (char)(bytes[n / 2] ^ 1); /* within the pixels: the CRC tells */
    expect_reason(bytes, n, 1000, "corrupt");
    agglo_free(bytes);
    bytes = read_fixture("png_rgb8.png", &n);
    memset(bytes + 16, 0x7f, 8); /* a size of 2^31 squared, with a wrong CRC: nothing may be allocated for it */
    expect_reason(bytes, n, 1000, "corrupt");
    agglo_free(bytes);
    bytes = read_fixture("jpeg_420.jpg", &n);
    expect_reason(bytes, n, 29 * 21 - 1, "too_large");
    for (size_t i = 0; i + 9 < n; i++) { /* the frame header says 0 columns */
        if ((uint8_t)bytes[i] == 0xff && (uint8_t)bytes[i + 1] == 0xc0) {
            bytes[i + 7] = bytes[i + 8] = 0;
            break;
        }
    }
    expect_reason(bytes, n, 1000, "zero_size");
    agglo_free(bytes);
}

static void test_nothing_is_allocated_twice(void **state)
{
    agglo_err err = {0};
    agglo_decode_options options = agglo_decode_options_default();
    agglo_decoder *decoder;
    agglo_image image;
    agglo_alloc_stats before;
    size_t n;
    char *bytes = read_fixture("jpeg_exif6.jpg", &n);

    (void)state;
    assert_ok(agglo_decoder_new(&decoder, &options, &err));
    assert_ok(agglo_decode(decoder, (agglo_bytes){(uint8_t *)bytes, n}, &image, NULL, &err));
    before = agglo_alloc_counts();
    for (int i = 0; i < 3; i++) {
        assert_ok(agglo_decode(decoder, (agglo_bytes){(uint8_t *)bytes, n}, &image, NULL, &err));
    }
    assert_int_equal(agglo_alloc_counts().n_total, before.n_total);
    agglo_decoder_free(decoder);
    agglo_free(bytes);
}

static void test_png_round_trip(void **state)
{
    agglo_err err = {0};
    agglo_decode_options options = agglo_decode_options_default();
    agglo_decoder *decoder;
    agglo_image image;
    test_random random = test_random_new(3);
    uint8_t rgb[19 * 7 * 3];
    const char *path = test_path(test_dir(), "x.png");
    char *bytes;
    size_t n;

    (void)state;
    test_random_bytes(&random, rgb, sizeof rgb);
    assert_ok(agglo_png_write(path, rgb, 19, 7, &err));
    assert_ok(agglo_file_read(path, 1 << 20, &bytes, &n, &err));
    assert_ok(agglo_decoder_new(&decoder, &options, &err));
    assert_ok(agglo_decode(decoder, (agglo_bytes){(uint8_t *)bytes, n}, &image, NULL, &err));
    assert_int_equal(image.width, 19);
    assert_memory_equal(image.rgb, rgb, sizeof rgb);
    assert_fails(agglo_png_write("/nowhere/x.png", rgb, 19, 7, &err), AGGLO_E_IO, "/nowhere/x.png");
    agglo_decoder_free(decoder);
    agglo_free(bytes);
}

static void test_fingerprint_follows_options(void **state)
{
    agglo_decode_options options = agglo_decode_options_default();
    char a[33], b[33], c[33];

    (void)state;
    agglo_decode_fingerprint(&options, a);
    options.max_pixels = 5; /* a limit decides no pixel */
    agglo_decode_fingerprint(&options, b);
    assert_string_equal(a, b);
    options.ignore_exif = true;
    agglo_decode_fingerprint(&options, b);
    options.png16_clip = true;
    agglo_decode_fingerprint(&options, c);
    assert_string_not_equal(a, b);
    assert_string_not_equal(b, c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pixels_are_pillows),          cmocka_unit_test(test_exif_is_ignored_when_asked),
        cmocka_unit_test(test_cut_files_are_refused),       cmocka_unit_test(test_reasons),
        cmocka_unit_test(test_nothing_is_allocated_twice),  cmocka_unit_test(test_png_round_trip),
        cmocka_unit_test(test_fingerprint_follows_options),
    };

    return test_run("decode", tests);
}
