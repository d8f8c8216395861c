/* Region decoding: at reduce 1 the same bits as a cut from the whole picture, at any reduction the same bits whatever box is asked for,
 * for every kind of file that the libraries treat differently. And verification: the verdict of decoding, of whole, cut and damaged files.
 */
#include "tests/support/support.h"

#include "ingest/decode.h"
#include "tests/unit/ingest/pictures.h"

#include <jpeglib.h>
#include <setjmp.h>

static agglo_decoder *decoder_new(void)
{
    agglo_decode_options options = agglo_decode_options_default();
    agglo_decoder *decoder = NULL;
    agglo_err err = {0};

    assert_ok(agglo_decoder_new(&decoder, &options, &err));
    return decoder;
}

static int floor_div(int a, int b)
{
    return a >= 0 ? a / b : -((-a + b - 1) / b);
}

/* `box` of `encoded` lies, pixel for pixel, in `whole`, and covers all of the box and no pixel beside it. */
static void expect_box(const char *name, agglo_decoder *decoder, agglo_bytes encoded, int width, int height,
                       const agglo_region *whole, agglo_box box)
{
    agglo_region part;
    agglo_err err = {0};

    assert_ok(agglo_decode_region(decoder, encoded, width, height, &box, whole->reduce, &part, NULL, &err));
    if (part.reduce != whole->reduce || (part.left - whole->left) % part.reduce != 0 ||
        (part.top - whole->top) % part.reduce != 0 ||
        part.left != whole->left + floor_div(box.x - whole->left, part.reduce) * part.reduce ||
        part.top != whole->top + floor_div(box.y - whole->top, part.reduce) * part.reduce ||
        part.left + (part.width - 1) * part.reduce >= box.x + box.w ||
        part.left + part.width * part.reduce < box.x + box.w ||
        part.top + (part.height - 1) * part.reduce >= box.y + box.h ||
        part.top + part.height * part.reduce < box.y + box.h) {
        fail_msg("%s at 1/%d: box %d,%d %dx%d gave %d,%d and %dx%d pixels", name, whole->reduce, box.x, box.y, box.w,
                 box.h, part.left, part.top, part.width, part.height);
    }
    for (int y = 0; y < part.height; y++) {
        size_t row = (size_t)((part.top - whole->top) / part.reduce + y) * whole->stride +
                     (size_t)((part.left - whole->left) / part.reduce) * 3;

        if (memcmp(part.rgb + (size_t)y * part.stride, whole->rgb + row, (size_t)part.width * 3) != 0) {
            fail_msg("%s at 1/%d: box %d,%d %dx%d of %dx%d differs in its row %d", name, whole->reduce, box.x, box.y,
                     box.w, box.h, width, height, y);
        }
    }
}

/* Every left edge with some widths, every top edge with some heights, and boxes at random. */
static void expect_all_boxes(const char *name, agglo_bytes encoded)
{
    static const int sides[] = {1, 2, 19, 10000};
    agglo_decoder *decoder = decoder_new(), *other = decoder_new();
    test_random random = test_random_new(11);
    agglo_err err = {0};
    agglo_image image;
    int n_reduces = agglo_image_format_of(encoded) == AGGLO_IMAGE_JPEG ? 4 : 1;

    assert_ok(agglo_decode(decoder, encoded, &image, NULL, &err));
    for (int k = 0; k < n_reduces; k++) {
        int w = image.width, h = image.height;
        agglo_region whole = {1, 0, 0, w, h, (size_t)w * 3, image.rgb};
        agglo_box box = {0, 0, w, h};

        if (k > 0) {
            assert_ok(agglo_decode_region(decoder, encoded, w, h, &box, 1 << k, &whole, NULL, &err));
        }
        expect_box(name, other, encoded, w, h, &whole, box);
        for (size_t i = 0; i < AGGLO_COUNT(sides); i++) {
            for (box.x = 0; box.x < w; box.x++) {
                box.w = sides[i] < w - box.x ? sides[i] : w - box.x;
                box.y = (int)(test_random_u32(&random) % (uint32_t)h);
                box.h = 1 + (int)(test_random_u32(&random) % (uint32_t)(h - box.y));
                expect_box(name, other, encoded, w, h, &whole, box);
            }
            for (box.y = 0; box.y < h; box.y++) {
                box.h = sides[i] < h - box.y ? sides[i] : h - box.y;
                box.x = (int)(test_random_u32(&random) % (uint32_t)w);
                box.w = 1 + (int)(test_random_u32(&random) % (uint32_t)(w - box.x));
                expect_box(name, other, encoded, w, h, &whole, box);
            }
        }
    }
    agglo_decoder_free(decoder);
    agglo_decoder_free(other);
}

static const struct sampling {
    const char *name;
    int components;
    int h[4], v[4];
} samplings[] = {
    {"4:4:4", 3, {1, 1, 1}, {1, 1, 1}},
    {"4:2:2", 3, {2, 1, 1}, {1, 1, 1}},
    {"4:2:0", 3, {2, 1, 1}, {2, 1, 1}},
    {"4:4:0", 3, {1, 1, 1}, {2, 1, 1}},
    {"4:1:1", 3, {4, 1, 1}, {1, 1, 1}},
    {"4:1:0", 3, {4, 1, 1}, {2, 1, 1}},
    {"mixed", 3, {2, 2, 1}, {2, 1, 2}},
    {"gray", 1, {1}, {1}},
    {"gray 2x2", 1, {2}, {2}},
    {"cmyk", 4, {1, 1, 1, 1}, {1, 1, 1, 1}},
    {"cmyk 4:2:0", 4, {2, 1, 1, 2}, {2, 1, 1, 2}},
    {"chroma finer", 3, {1, 2, 2}, {1, 2, 2}},
};

static void regions_of_jpegs(void **state)
{
    static const int sizes[][2] = {{83, 70}, {33, 16}, {17, 49}, {5, 40}};

    (void)state;
    for (size_t s = 0; s < AGGLO_COUNT(samplings); s++) {
        for (int kind = 0; kind < 6; kind++) {
            test_jpeg what = {.components = samplings[s].components};

            memcpy(what.h, samplings[s].h, sizeof what.h);
            memcpy(what.v, samplings[s].v, sizeof what.v);
            what.progressive = kind == 1;
            what.restart = kind == 2 ? 3 : 0;
            what.unfinished = kind == 3;
            what.one_by_one = kind == 4;
            what.arithmetic = kind == 5;
            what.quality = kind == 0 ? 90 : 60;
            what.adobe_ycck = what.components == 4 && kind == 2;
            if ((kind == 3 || kind == 4) && what.components != 3) {
                continue;
            }
            for (size_t i = 0; i < (kind < 2 ? AGGLO_COUNT(sizes) : 1); i++) {
                char name[64];
                agglo_bytes encoded;

                what.width = sizes[i][0];
                what.height = sizes[i][1];
                snprintf(name, sizeof name, "%s, kind %d", samplings[s].name, kind);
                encoded = test_jpeg_make(&what);
                if (encoded.data == NULL) {
                    assert_int_equal(kind, 5); /* only arithmetic coding may be missing */
                    continue;
                }
                expect_all_boxes(name, encoded);
                free((void *)encoded.data);
            }
        }
    }
}

static void regions_of_turned_jpegs(void **state)
{
    (void)state;
    for (int orientation = 1; orientation <= 8; orientation++) {
        for (int progressive = 0; progressive < 2; progressive++) {
            const test_jpeg what = {.width = 61,
                                    .height = 45,
                                    .components = 3,
                                    .h = {2, 1, 1},
                                    .v = {2, 1, 1},
                                    .progressive = progressive != 0,
                                    .orientation = orientation};
            agglo_bytes encoded = test_jpeg_make(&what);
            char name[64];

            snprintf(name, sizeof name, "orientation %d", orientation);
            expect_all_boxes(name, encoded);
            free((void *)encoded.data);
        }
    }
}

static void regions_of_webps(void **state)
{
    (void)state;
    for (int kind = 0; kind < 12; kind++) {
        bool lossless = kind % 3 == 2, alpha = kind / 3 % 2 != 0;
        agglo_bytes encoded =
            test_webp_make(kind < 6 ? 83 : 40, kind < 6 ? 70 : 41, lossless, alpha, kind % 3 == 1, 40);
        char name[64];

        snprintf(name, sizeof name, "webp kind %d", kind);
        expect_all_boxes(name, encoded);
        free((void *)encoded.data);
    }
}

static char *read_fixture(const char *name, size_t *n)
{
    agglo_err err = {0};
    char path[64], *bytes;

    snprintf(path, sizeof path, "decode/%s", name);
    assert_ok(agglo_file_read(test_fixture(path), 1 << 20, &bytes, n, &err));
    return bytes;
}

/* Calls `body` for every encoded picture among the decoders' fixtures. */
static void for_fixtures(void (*body)(const char *name, agglo_bytes encoded))
{
    agglo_err err = {0};
    agglo_arena *arena;
    char **names;
    size_t n, n_seen = 0;

    assert_ok(agglo_arena_new(&arena, 0, &err));
    assert_ok(agglo_list_dir(test_fixture("decode"), arena, &names, &n, &err));
    for (size_t i = 0; i < n; i++) {
        size_t n_bytes, length = strlen(names[i]);
        char *bytes;

        if (length > 4 && strcmp(names[i] + length - 4, ".rgb") == 0) {
            continue;
        }
        bytes = read_fixture(names[i], &n_bytes);
        body(names[i], (agglo_bytes){(uint8_t *)bytes, n_bytes});
        agglo_free(bytes);
        n_seen++;
    }
    assert_true(n_seen >= 40);
    agglo_arena_free(arena);
}

static void regions_of_fixtures(void **state)
{
    (void)state;
    for_fixtures(expect_all_boxes);
}

/* Of the same picture, a JPEG's pixels at 1 / n are those of libjpeg itself. */
static void reduced_pixels_are_libjpegs(void **state)
{
    const test_jpeg what = {.width = 83, .height = 70, .components = 3, .h = {2, 1, 1}, .v = {2, 1, 1}};
    agglo_bytes encoded = test_jpeg_make(&what);
    agglo_decoder *decoder = decoder_new();

    (void)state;
    for (int reduce = 2; reduce <= 8; reduce *= 2) {
        struct jpeg_decompress_struct cinfo = {0};
        struct jpeg_error_mgr errors;
        agglo_region region;
        agglo_err err = {0};
        uint8_t row[83 * 3], *line = row;

        assert_ok(
            agglo_decode_region(decoder, encoded, 83, 70, &(agglo_box){0, 0, 83, 70}, reduce, &region, NULL, &err));
        cinfo.err = jpeg_std_error(&errors);
        jpeg_create_decompress(&cinfo);
        jpeg_mem_src(&cinfo, encoded.data, (unsigned long)encoded.size);
        jpeg_read_header(&cinfo, TRUE);
        cinfo.scale_denom = (unsigned)reduce;
        jpeg_start_decompress(&cinfo);
        assert_int_equal(region.width, cinfo.output_width);
        assert_int_equal(region.height, cinfo.output_height);
        for (int y = 0; y < region.height; y++) {
            jpeg_read_scanlines(&cinfo, &line, 1);
            assert_memory_equal(region.rgb + (size_t)y * region.stride, row, (size_t)region.width * 3);
        }
        jpeg_destroy_decompress(&cinfo);
    }
    agglo_decoder_free(decoder);
    free((void *)encoded.data);
}

static void wrong_boxes_are_refused(void **state)
{
    static const agglo_box wrong[] = {{-1, 0, 4, 4}, {0, 0, 30, 21}, {0, 21, 1, 1},        {0, 0, 0, 4},
                                      {0, 0, 4, 0},  {28, 0, 2, 1},  {INT32_MAX, 0, 1, 1}, {1, 1, INT32_MAX, 1}};
    agglo_decoder *decoder = decoder_new();
    agglo_region region;
    agglo_err err = {0};
    size_t n;
    char *bytes = read_fixture("jpeg_420.jpg", &n);
    agglo_bytes encoded = {(uint8_t *)bytes, n};

    (void)state;
    for (size_t i = 0; i < AGGLO_COUNT(wrong); i++) {
        assert_fails(agglo_decode_region(decoder, encoded, 29, 21, &wrong[i], 1, &region, NULL, &err), AGGLO_E_MISMATCH,
                     "does not lie in a picture of 29x21");
        assert_null(region.rgb);
    }
    assert_fails(agglo_decode_region(decoder, encoded, 21, 29, &(agglo_box){0, 0, 1, 1}, 1, &region, NULL, &err),
                 AGGLO_E_MISMATCH, "the picture is 29x21");
    agglo_decoder_free(decoder);
    agglo_free(bytes);
}

static void scans_are_limited(void **state)
{
    const test_jpeg what = {
        .width = 40, .height = 40, .components = 3, .h = {2, 1, 1}, .v = {2, 1, 1}, .progressive = true};
    agglo_bytes encoded = test_jpeg_make(&what);
    agglo_decode_options options = agglo_decode_options_default();
    agglo_decoder *decoder;
    agglo_image image;
    agglo_reason reason = NULL;
    agglo_err err = {0};
    char before[33], after[33];

    (void)state;
    assert_int_equal(options.max_scans, 64);
    agglo_decode_fingerprint(&options, before);
    options.max_scans = 9; /* the usual script has ten */
    agglo_decode_fingerprint(&options, after);
    assert_string_equal(before, after);
    assert_ok(agglo_decoder_new(&decoder, &options, &err));
    assert_fails(agglo_decode(decoder, encoded, &image, &reason, &err), AGGLO_E_DATA, "more than 9 scans");
    assert_string_equal(reason, "corrupt");
    assert_fails(agglo_image_verify(decoder, encoded, &reason, &err), AGGLO_E_DATA, "more than 9 scans");
    agglo_decoder_free(decoder);
    options.max_scans = 10;
    assert_ok(agglo_decoder_new(&decoder, &options, &err));
    assert_ok(agglo_decode(decoder, encoded, &image, &reason, &err));
    assert_ok(agglo_image_verify(decoder, encoded, &reason, &err));
    agglo_decoder_free(decoder);
    free((void *)encoded.data);
}

static agglo_decoder *verifying, *decoding;

/* Returns whether the bytes are good. */
static bool expect_verdict(const char *name, agglo_bytes encoded)
{
    agglo_err a = {0}, b = {0};
    agglo_reason why_a = "none", why_b = "none";
    agglo_image image;
    agglo_status decoded = agglo_decode(decoding, encoded, &image, &why_a, &a);
    agglo_status verified = agglo_image_verify(verifying, encoded, &why_b, &b);

    if (decoded != verified || strcmp(why_a, why_b) != 0) {
        fail_msg("%s (%zu bytes): decoding says %s (%s), verifying %s (%s)", name, encoded.size, why_a, a.why, why_b,
                 b.why);
    }
    return decoded == AGGLO_OK;
}

static void expect_verdicts(const char *name, agglo_bytes encoded)
{
    test_random random = test_random_new(5);
    int n_bad = 0;

    assert_true(expect_verdict(name, encoded));
    for (size_t cut = 0; cut<encoded.size; cut += encoded.size> 2000 ? 7 : 1) {
        uint8_t *exact = malloc(cut + 1);

        memcpy(exact, encoded.data, cut);
        expect_verdict(name, (agglo_bytes){exact, cut});
        free(exact);
    }
    for (int i = 0; i < 200; i++) {
        uint8_t *damaged = malloc(encoded.size);

        memcpy(damaged, encoded.data, encoded.size);
        for (int k = 0; k <= i % 3; k++) {
            size_t at = test_random_u32(&random) % encoded.size;

            if (i % 2 == 0) {
                damaged[at] = (uint8_t)test_random_u32(&random);
            } else {
                damaged[at] = (uint8_t)(damaged[at] ^ (1u << test_random_u32(&random) % 8));
            }
        }
        n_bad += !expect_verdict(name, (agglo_bytes){damaged, encoded.size});
        free(damaged);
    }
    assert_true(n_bad > 0);
}

static void verdicts_are_decodings(void **state)
{
    (void)state;
    verifying = decoder_new();
    decoding = decoder_new();
    for_fixtures(expect_verdicts);
    for (size_t s = 0; s < AGGLO_COUNT(samplings); s++) {
        for (int kind = 0; kind < 4; kind++) {
            test_jpeg what = {.width = 61, .height = 47, .components = samplings[s].components};
            agglo_bytes encoded;

            memcpy(what.h, samplings[s].h, sizeof what.h);
            memcpy(what.v, samplings[s].v, sizeof what.v);
            what.progressive = kind == 1;
            what.restart = kind == 2 ? 2 : 0;
            what.arithmetic = kind == 3;
            encoded = test_jpeg_make(&what);
            if (encoded.data != NULL) {
                expect_verdicts(samplings[s].name, encoded);
            }
            free((void *)encoded.data);
        }
    }
    agglo_decoder_free(verifying);
    agglo_decoder_free(decoding);
}

/* Damage behind the last row of a box is not read; within, it is an error. */
static void damage_outside_may_pass(void **state)
{
    const test_jpeg what = {.width = 160, .height = 160, .components = 3, .h = {2, 1, 1}, .v = {2, 1, 1}};
    agglo_bytes encoded = test_jpeg_make(&what), cut = {encoded.data, encoded.size * 3 / 4};
    agglo_decoder *decoder = decoder_new();
    agglo_region region;
    agglo_reason reason = NULL;
    agglo_err err = {0};

    (void)state;
    assert_ok(agglo_decode_region(decoder, cut, 160, 160, &(agglo_box){10, 10, 60, 60}, 1, &region, &reason, &err));
    assert_fails(agglo_decode_region(decoder, cut, 160, 160, &(agglo_box){10, 100, 60, 60}, 1, &region, &reason, &err),
                 AGGLO_E_DATA, "cannot decode picture");
    assert_string_equal(reason, "truncated");
    agglo_decoder_free(decoder);
    free((void *)encoded.data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(regions_of_jpegs),
        cmocka_unit_test(regions_of_turned_jpegs),
        cmocka_unit_test(regions_of_webps),
        cmocka_unit_test(regions_of_fixtures),
        cmocka_unit_test(reduced_pixels_are_libjpegs),
        cmocka_unit_test(wrong_boxes_are_refused),
        cmocka_unit_test(scans_are_limited),
        cmocka_unit_test(verdicts_are_decodings),
        cmocka_unit_test(damage_outside_may_pass),
    };

    return test_run("region", tests);
}
