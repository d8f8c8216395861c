/* The renderer: Pillow's pixels bit for bit, on synthetic pictures and (hashes) on photographs; both code paths; no allocation in the
 * steady state; every allocation failing once. */
#include "base/hash.h"
#include "ingest/render.h"
#include "ingest/resize.h"
#include "tests/support/support.h"
#include "tests/unit/ingest/pictures.h"

#include <unistd.h>

/* The synthetic pictures of script/fixtures/make_render_fixtures.py. */
static void fill_picture(uint8_t *rgb, uint32_t kind, uint32_t seed, int width, int height)
{
    uint32_t random = seed;

    for (int i = 0; i < width * height * 3; i++) {
        int pixel = i / 3;

        random = random * 1664525u + 1013904223u;
        if (kind == 2) {
            rgb[i] = (uint8_t)(3 * (8 * (pixel / width) + pixel % width) + 5 * (i % 3));
        } else {
            rgb[i] = kind == 0 ? (uint8_t)(random >> 24) : random >> 31 != 0 ? 255 : 0;
        }
    }
}

static agglo_renderer *renderer_new(void)
{
    agglo_decode_options options = agglo_decode_options_default();
    agglo_renderer *renderer = NULL;
    agglo_err err = {0};

    assert_ok(agglo_renderer_new(&renderer, &options, &err));
    return renderer;
}

static void pillow_views(void **state)
{
    agglo_renderer *renderer = renderer_new();
    agglo_err err = {0};
    char *file = NULL;
    size_t n_bytes = 0, at = 0;
    int n = 0;

    (void)state;
    assert_ok(agglo_file_read(test_fixture("render/cases.bin"), 1 << 20, &file, &n_bytes, &err));
    for (; at < n_bytes; n++) {
        uint8_t rgb[64 * 64 * 3], pixels[40 * 40 * 3];
        uint32_t field[12];
        agglo_image image;
        agglo_view view;
        size_t n_out;

        for (int i = 0; i < 12; i++) {
            field[i] = agglo_le32(file + at + (size_t)i * 4);
        }
        at += sizeof field;
        image = (agglo_image){(int)field[2], (int)field[3], rgb};
        view = (agglo_view){(int)field[4], (int)field[5], (int)field[6], (int)field[7], field[8] != 0};
        n_out = (size_t)field[10] * field[11] * 3;
        fill_picture(rgb, field[0], field[1], image.width, image.height);
        assert_ok(agglo_render_image(renderer, &image, &view, field[9] == 0 ? AGGLO_BICUBIC : AGGLO_BILINEAR,
                                     (int)field[10], (int)field[11], pixels, &err));
        if (memcmp(pixels, file + at, n_out) != 0) {
            fail_msg("case %d differs: %dx%d, box %dx%d, to %ux%u", n, image.width, image.height, view.w, view.h,
                     field[10], field[11]);
        }
        at += n_out;
    }
    assert_int_equal(n, 120);
    agglo_free(file);
    agglo_renderer_free(renderer);
}

/* int(side * scale + 0.5) (segment_anything's get_preprocess_shape), and at least 1. */
static int scaled(int side, int longest, int size)
{
    int out = (int)(side * (1.0 * size / longest) + 0.5);

    return out > 0 ? out : 1;
}

/* Padded pictures: the long side fills the input. */
static void check_extent(const agglo_preprocess *pre, const agglo_image *image, agglo_extent extent)
{
    int longest = image->width > image->height ? image->width : image->height;

    if (pre->fit != AGGLO_FIT_PAD) {
        assert_true(extent.width == pre->size && extent.height == pre->size);
        return;
    }
    assert_int_equal(extent.width, scaled(image->width, longest, pre->size));
    assert_int_equal(extent.height, scaled(image->height, longest, pre->size));
}

static void pillow_whole_pictures(void **state)
{
    agglo_renderer *renderer = renderer_new();
    agglo_err err = {0};
    char *file = NULL;
    size_t n_bytes = 0, at = 0;
    int n = 0;

    (void)state;
    assert_ok(agglo_file_read(test_fixture("render/whole.bin"), 1 << 20, &file, &n_bytes, &err));
    for (; at < n_bytes; n++) {
        agglo_preprocess pre = {.mean = {0.485f, 0.456f, 0.406f}, .std = {0.229f, 0.224f, 0.225f}};
        uint8_t rgb[64 * 64 * 3], pixels[40 * 40 * 3];
        uint32_t field[8];
        agglo_extent extent;
        agglo_image image;
        size_t n_out;

        for (int i = 0; i < 8; i++) {
            field[i] = agglo_le32(file + at + (size_t)i * 4);
        }
        at += sizeof field;
        image = (agglo_image){(int)field[2], (int)field[3], rgb};
        pre.fit = field[4] == 0 ? AGGLO_FIT_CROP : field[4] == 1 ? AGGLO_FIT_SQUASH : AGGLO_FIT_PAD;
        pre.filter = field[5] == 0 ? AGGLO_BICUBIC : AGGLO_BILINEAR;
        pre.size = (int)field[6];
        pre.resize_to = (int)field[7];
        n_out = (size_t)pre.size * (size_t)pre.size * 3;
        fill_picture(rgb, field[0], field[1], image.width, image.height);
        assert_ok(agglo_render_whole_image(renderer, &image, &pre, pixels, &extent, &err));
        check_extent(&pre, &image, extent);
        if (memcmp(pixels, file + at, n_out) != 0) {
            fail_msg("case %d differs: %dx%d, fit %u, size %d of %d", n, image.width, image.height, field[4], pre.size,
                     pre.resize_to);
        }
        at += n_out;
    }
    assert_int_equal(n, 81);
    agglo_free(file);
    agglo_renderer_free(renderer);
}

/* Pillow's `box`: edges within pixels. */
static void pillow_boxes(void **state)
{
    agglo_resizer *resizers[3] = {NULL};
    agglo_err err = {0};
    char *file = NULL;
    size_t n_bytes = 0, at = 0;
    int n = 0;

    (void)state;
    for (int i = 0; i < 3; i++) {
        assert_ok(agglo_resizer_new(&resizers[i], &err));
        agglo_resizer_set_isa(resizers[i], (agglo_resizer_isa)i);
    }
    assert_ok(agglo_file_read(test_fixture("render/boxes.bin"), 1 << 20, &file, &n_bytes, &err));
    for (; at < n_bytes; n++) {
        uint8_t rgb[40 * 40 * 3], pixels[24 * 24 * 3];
        agglo_resize_source source;
        uint32_t field[11];
        int out_w, out_h;

        for (int i = 0; i < 11; i++) {
            field[i] = agglo_le32(file + at + (size_t)i * 4);
        }
        at += sizeof field;
        out_w = (int)field[9];
        out_h = (int)field[10];
        source = (agglo_resize_source){rgb,
                                       (int)field[2],
                                       (int)field[3],
                                       (size_t)field[2] * 3,
                                       (size_t)field[2] * field[3] * 3,
                                       field[4] / 8.0,
                                       field[5] / 8.0,
                                       field[6] / 8.0,
                                       field[7] / 8.0};
        fill_picture(rgb, field[0], field[1], source.width, source.height);
        for (int i = 0; i < 3; i++) {
            assert_ok(agglo_resize(resizers[i], &source, field[8] == 0 ? AGGLO_BICUBIC : AGGLO_BILINEAR, out_w, out_h,
                                   (agglo_resize_window){0, 0, out_w, out_h}, pixels, (size_t)out_w * 3, &err));
            if (memcmp(pixels, file + at, (size_t)(out_w * out_h * 3)) != 0) {
                fail_msg("case %d differs: %dx%d to %dx%d", n, source.width, source.height, out_w, out_h);
            }
        }
        at += (size_t)(out_w * out_h * 3);
    }
    assert_int_equal(n, 48);
    agglo_free(file);
    for (int i = 0; i < 3; i++) {
        agglo_resizer_free(resizers[i]);
    }
}

/* The numbers of spec data.md section 6, on the 8 x 8 ramp 3 * (8 * row + column). */
static void published_ramp(void **state)
{
    static const uint8_t cubic_3[9] = {25, 32, 40, 87, 94, 102, 149, 156, 164};
    static const uint8_t linear_3[9] = {30, 38, 45, 87, 95, 102, 144, 152, 159};
    static const uint8_t cubic_12[12] = {0, 0, 2, 3, 6, 8, 9, 12, 14, 15, 18, 19};
    uint8_t rgb[8 * 8 * 3], out[12 * 12 * 3];
    const agglo_image image = {8, 8, rgb};
    const agglo_view all = {0, 0, 8, 8, false}, mirrored = {0, 0, 8, 8, true};
    agglo_renderer *renderer = renderer_new();
    agglo_err err = {0};

    (void)state;
    for (int i = 0; i < 8 * 8 * 3; i++) {
        rgb[i] = (uint8_t)(3 * (i / 3));
    }
    assert_ok(agglo_render_image(renderer, &image, &all, AGGLO_BICUBIC, 3, 3, out, &err));
    for (int i = 0; i < 27; i++) {
        assert_int_equal(out[i], cubic_3[i / 3]);
    }
    assert_ok(agglo_render_image(renderer, &image, &all, AGGLO_BILINEAR, 3, 3, out, &err));
    for (int i = 0; i < 27; i++) {
        assert_int_equal(out[i], linear_3[i / 3]);
    }
    assert_ok(agglo_render_image(renderer, &image, &all, AGGLO_BICUBIC, 12, 12, out, &err));
    for (int i = 0; i < 36; i++) {
        assert_int_equal(out[i], cubic_12[i / 3]);
    }
    assert_ok(agglo_render_image(renderer, &image, &mirrored, AGGLO_BICUBIC, 12, 12, out, &err));
    for (int i = 0; i < 36; i++) {
        assert_int_equal(out[i], cubic_12[11 - i / 3]);
    }
    agglo_renderer_free(renderer);
}

/* Vector and portable loops agree, windows are windows, and nothing outside the picture is read: sources end where their page of heap
 * does, for AddressSanitizer to see. */
static void paths_and_windows_agree(void **state)
{
    test_random random = test_random_new(3);
    agglo_resizer *fast = NULL, *middle = NULL, *plain = NULL;
    agglo_err err = {0};

    (void)state;
    assert_ok(agglo_resizer_new(&fast, &err));
    assert_ok(agglo_resizer_new(&plain, &err));
    assert_ok(agglo_resizer_new(&middle, &err));
    agglo_resizer_set_isa(middle, AGGLO_RESIZER_AVX2);
    agglo_resizer_set_isa(plain, AGGLO_RESIZER_PORTABLE);
    for (int i = 0; i < 400; i++) {
        uint32_t most = i % 40 == 7 ? 700 : 90; /* with the widest, tens of taps and more */
        int width = 1 + (int)(test_random_u32(&random) % most), height = 1 + (int)(test_random_u32(&random) % most);
        int out_w = 1 + (int)(test_random_u32(&random) % 90), out_h = 1 + (int)(test_random_u32(&random) % 90);
        agglo_filter filter = i % 2 == 0 ? AGGLO_BICUBIC : AGGLO_BILINEAR;
        agglo_resize_window all = {0, 0, out_w, out_h}, part;
        size_t n_in = (size_t)(width * height * 3), n_out = (size_t)(out_w * out_h * 3);
        uint8_t *in = malloc(n_in), *a = malloc(n_out), *b = malloc(n_out), *c;
        agglo_resize_source source = {
            .rgb = in, .width = width, .height = height, .stride = (size_t)width * 3, .readable = n_in};

        if (i % 3 == 0) { /* a box with edges within the outer pixels */
            source.box_x = (double)(test_random_u32(&random) % 8) / 8.0;
            source.box_w =
                (double)width - source.box_x - (width > 1 ? (double)(test_random_u32(&random) % 8) / 8.0 : 0);
            source.box_y = (double)(test_random_u32(&random) % 8) / 8.0;
            source.box_h =
                (double)height - source.box_y - (height > 1 ? (double)(test_random_u32(&random) % 8) / 8.0 : 0);
        }
        test_random_bytes(&random, in, n_in);
        for (size_t k = 0; i % 4 == 1 && k < n_in;
             k++) { /* black and white: overshoots, and many sums that end in a half */
            in[k] = in[k] < 128 ? 0 : 255;
        }
        assert_ok(agglo_resize(fast, &source, filter, out_w, out_h, all, a, (size_t)out_w * 3, &err));
        assert_ok(agglo_resize(plain, &source, filter, out_w, out_h, all, b, (size_t)out_w * 3, &err));
        assert_memory_equal(a, b, n_out);
        memset(a, 0, n_out);
        assert_ok(agglo_resize(middle, &source, filter, out_w, out_h, all, a, (size_t)out_w * 3, &err));
        assert_memory_equal(a, b, n_out);

        part.x = (int)(test_random_u32(&random) % (uint32_t)out_w);
        part.y = (int)(test_random_u32(&random) % (uint32_t)out_h);
        part.w = 1 + (int)(test_random_u32(&random) % (uint32_t)(out_w - part.x));
        part.h = 1 + (int)(test_random_u32(&random) % (uint32_t)(out_h - part.y));
        c = malloc((size_t)(part.w * part.h * 3));
        assert_ok(agglo_resize(fast, &source, filter, out_w, out_h, part, c, (size_t)part.w * 3, &err));
        for (int y = 0; y < part.h; y++) {
            assert_memory_equal(c + y * part.w * 3, a + ((part.y + y) * out_w + part.x) * 3, (size_t)part.w * 3);
        }
        free(in);
        free(a);
        free(b);
        free(c);
    }
    agglo_resizer_free(fast);
    agglo_resizer_free(middle);
    agglo_resizer_free(plain);
}

static void boxes_outside_are_refused(void **state)
{
    static const agglo_view wrong[] = {{-1, 0, 4, 4, false},        {0, 0, 9, 8, false},        {5, 0, 4, 4, false},
                                       {0, 8, 1, 1, false},         {0, 0, 0, 4, false},        {0, 0, 4, 0, false},
                                       {INT32_MAX, 0, 1, 1, false}, {1, 1, INT32_MAX, 1, false}};
    uint8_t rgb[8 * 8 * 3] = {0}, out[12];
    const agglo_image image = {8, 8, rgb};
    agglo_renderer *renderer = renderer_new();
    agglo_err err = {0};

    (void)state;
    for (size_t i = 0; i < AGGLO_COUNT(wrong); i++) {
        assert_fails(agglo_render_image(renderer, &image, &wrong[i], AGGLO_BICUBIC, 2, 2, out, &err), AGGLO_E_MISMATCH,
                     "does not lie in a picture of 8x8");
    }
    agglo_renderer_free(renderer);
}

/* An encoded picture, through agglo_png_write. */
static char *encoded_picture(int width, int height, size_t *n_bytes)
{
    const char *path = test_path(test_dir(), "picture.png");
    uint8_t *rgb = malloc((size_t)(width * height * 3));
    agglo_err err = {0};
    char *png = NULL;

    fill_picture(rgb, 0, 5, width, height);
    assert_ok(agglo_png_write(path, rgb, width, height, &err));
    assert_ok(agglo_file_read(path, 1 << 24, &png, n_bytes, &err));
    free(rgb);
    return png;
}

static void views_of_encoded_pictures(void **state)
{
    size_t n_bytes = 0;
    char *png = encoded_picture(60, 45, &n_bytes);
    const agglo_bytes encoded = {(const uint8_t *)png, n_bytes};
    const agglo_view views[3] = {{0, 0, 60, 45, false}, {10, 3, 20, 31, true}, {59, 44, 1, 1, false}};
    uint8_t rgb[60 * 45 * 3], pixels[3][16 * 16 * 3], one[16 * 16 * 3];
    const agglo_image image = {60, 45, rgb};
    agglo_renderer *renderer = renderer_new();
    agglo_err err = {0};

    (void)state;
    fill_picture(rgb, 0, 5, 60, 45);
    assert_ok(agglo_render_views(renderer, encoded, 60, 45, views, 3, AGGLO_VIEW_SCALED, AGGLO_BICUBIC, 16, 16,
                                 pixels[0], &err));
    for (int i = 0; i < 3; i++) {
        assert_ok(agglo_render_image(renderer, &image, &views[i], AGGLO_BICUBIC, 16, 16, one, &err));
        assert_memory_equal(one, pixels[i], sizeof one);
    }
    assert_fails(agglo_render_views(renderer, encoded, 45, 60, views, 3, AGGLO_VIEW_SCALED, AGGLO_BICUBIC, 16, 16,
                                    pixels[0], &err),
                 AGGLO_E_MISMATCH, "the picture is 60x45");
    assert_fails(agglo_render_views(renderer, (agglo_bytes){encoded.data, n_bytes / 2}, 60, 45, views, 3,
                                    AGGLO_VIEW_SCALED, AGGLO_BICUBIC, 16, 16, pixels[0], &err),
                 AGGLO_E_DATA, "cannot decode picture");
    assert_int_not_equal(agglo_pixel_hash(pixels[0], 16, 16), agglo_pixel_hash(pixels[1], 16, 16));
    assert_int_not_equal(agglo_pixel_hash(pixels[0], 16, 16), agglo_pixel_hash(pixels[0], 8, 32));
    agglo_renderer_free(renderer);
    agglo_free(png);
}

/* Several views of one JPEG, of different reductions, flipped or not, turned or not: each as it is alone. */
static void views_together_are_views_alone(void **state)
{
    static const agglo_view views[] = {{0, 0, 403, 301, false},    {7, 3, 390, 290, true},  {100, 50, 64, 40, false},
                                       {201, 111, 130, 140, true}, {1, 0, 70, 300, false},  {330, 230, 73, 71, false},
                                       {13, 9, 255, 255, false},   {402, 300, 1, 1, false}, {45, 17, 128, 129, true}};
    enum { N = (int)AGGLO_COUNT(views), SIDE = 32 };
    static uint8_t together[N][SIDE * SIDE * 3], alone[SIDE * SIDE * 3];
    agglo_renderer *renderer = renderer_new();
    agglo_err err = {0};
    unsigned seen = 0;

    (void)state;
    for (int orientation = 1; orientation <= 8; orientation++) {
        bool turned = orientation >= 5;
        const test_jpeg what = {.width = turned ? 301 : 403,
                                .height = turned ? 403 : 301,
                                .components = 3,
                                .h = {2, 1, 1},
                                .v = {2, 1, 1},
                                .orientation = orientation};
        agglo_bytes jpeg = test_jpeg_make(&what);
        agglo_image image;

        for (int decode = AGGLO_VIEW_SCALED; decode <= AGGLO_VIEW_EXACT; decode++) {
            assert_ok(agglo_render_views(renderer, jpeg, 403, 301, views, N, (agglo_view_decode)decode, AGGLO_BICUBIC,
                                         SIDE, SIDE, together[0], &err));
            for (int i = 0; i < N; i++) {
                assert_ok(agglo_render_views(renderer, jpeg, 403, 301, &views[i], 1, (agglo_view_decode)decode,
                                             AGGLO_BICUBIC, SIDE, SIDE, alone, &err));
                assert_memory_equal(together[i], alone, sizeof alone);
                seen |= (unsigned)agglo_render_reduce(&views[i], (agglo_view_decode)decode, SIDE, SIDE);
            }
        }
        /* exact is a cut from the whole picture */
        assert_ok(agglo_render_decode(renderer, jpeg, &image, NULL, &err));
        for (int i = 0; i < N; i++) {
            assert_ok(agglo_render_image(renderer, &image, &views[i], AGGLO_BICUBIC, SIDE, SIDE, alone, &err));
            assert_memory_equal(together[i], alone, sizeof alone);
        }
        free((void *)jpeg.data);
    }
    assert_int_equal(seen, 1 | 2 | 4 | 8);
    agglo_renderer_free(renderer);
}

static void reductions(void **state)
{
    (void)state;
    assert_int_equal(agglo_render_reduce(&(agglo_view){0, 0, 447, 900, false}, AGGLO_VIEW_SCALED, 224, 224), 1);
    assert_int_equal(agglo_render_reduce(&(agglo_view){0, 0, 448, 448, false}, AGGLO_VIEW_SCALED, 224, 224), 2);
    assert_int_equal(agglo_render_reduce(&(agglo_view){0, 0, 448, 448, false}, AGGLO_VIEW_EXACT, 224, 224), 1);
    assert_int_equal(agglo_render_reduce(&(agglo_view){0, 0, 896, 2000, false}, AGGLO_VIEW_SCALED, 224, 224), 4);
    assert_int_equal(agglo_render_reduce(&(agglo_view){0, 0, 9000, 9000, false}, AGGLO_VIEW_SCALED, 224, 224), 8);
}

static void allocates_nothing_when_warm(void **state)
{
    uint8_t *rgb = malloc(200 * 200 * 3), pixels[32 * 32 * 3];
    const agglo_image image = {200, 200, rgb};
    agglo_renderer *renderer = renderer_new();
    agglo_err err = {0};
    int64_t before = 0;

    (void)state;
    fill_picture(rgb, 0, 9, 200, 200);
    for (int i = 0; i < 400; i++) {
        agglo_view view = {0, 0, 200 - i * 7 % 150, 200 - i * 11 % 130, false};

        if (i == 40) {
            before = agglo_alloc_counts().n_total;
        }
        assert_ok(agglo_render_image(renderer, &image, &view, AGGLO_BICUBIC, 32, 32, pixels, &err));
    }
    assert_int_equal(agglo_alloc_counts().n_total, before);
    agglo_renderer_free(renderer);
    free(rgb);
}

static void failing_allocations(void **state)
{
    uint8_t rgb[50 * 40 * 3], pixels[16 * 16 * 3];
    const agglo_image image = {50, 40, rgb};
    const agglo_view view = {1, 2, 40, 30, false};
    agglo_decode_options options = agglo_decode_options_default();
    agglo_status status = AGGLO_E_MEMORY;
    int64_t n;

    (void)state;
    fill_picture(rgb, 0, 9, 50, 40);
    for (n = 0; status != AGGLO_OK; n++) {
        agglo_renderer *renderer = NULL;
        agglo_err err = {0};

        agglo_alloc_fail_after(n);
        status = agglo_renderer_new(&renderer, &options, &err);
        if (status == AGGLO_OK) {
            status = agglo_render_image(renderer, &image, &view, AGGLO_BICUBIC, 16, 16, pixels, &err);
        } else {
            assert_null(renderer);
        }
        agglo_alloc_fail_after(-1);
        assert_true(status == AGGLO_OK || status == AGGLO_E_MEMORY);
        assert_int_equal(status, err.status);
        agglo_renderer_free(renderer);
    }
    assert_true(n > 10);
}

/* Find a member of a tar of plain and PAX headers, as the shards are. */
static agglo_bytes tar_member(agglo_mapping tar, const char *name)
{
    for (size_t at = 0; at + 512 <= tar.size && tar.data[at] != 0;) {
        size_t size = strtoul((const char *)tar.data + at + 124, NULL, 8);

        if (tar.data[at + 156] != 'x' && strcmp((const char *)tar.data + at, name) == 0) {
            assert_true(at + 512 + size <= tar.size);
            return (agglo_bytes){tar.data + at + 512, size};
        }
        at += 512 + (size + 511) / 512 * 512;
    }
    return (agglo_bytes){NULL, 0};
}

static void photographs(void **state)
{
    FILE *file = fopen(test_fixture("render/photos.txt"), "r");
    agglo_renderer *renderer;
    char line[512];
    int n = 0;

    (void)state;
    assert_non_null(file);
    if (test_shared("shards/00000000.tar") == NULL) {
        fclose(file);
        print_message("the folder of real pictures is not there\n");
        skip();
    }
    renderer = renderer_new();
    while (fgets(line, sizeof line, file) != NULL) {
        agglo_view_config config = agglo_view_config_default();
        char shard[32], path[64], member[32], uid_hex[33], want_whole[65], want_view[65], hex[65];
        static uint8_t pixels[224 * 224 * 3];
        int index, width, height, x, y, w, h, flip;
        agglo_mapping tar;
        agglo_bytes encoded;
        agglo_image image;
        agglo_sha256 sha;
        agglo_view view;
        agglo_err err = {0};
        uint8_t uid[16];

        if (line[0] == '#') {
            continue;
        }
        assert_int_equal(sscanf(line, "%31s %31s %32s %lu %d : %d %d %d %d %d %d %d : %64s %64s", shard, member,
                                uid_hex, &config.seed, &index, &width, &height, &x, &y, &w, &h, &flip, want_whole,
                                want_view),
                         14);
        snprintf(path, sizeof path, "shards/%s", shard);
        assert_ok(agglo_map_file(test_shared(path), &tar, &err));
        encoded = tar_member(tar, member);
        assert_non_null(encoded.data);

        config.flip = 0.5;
        assert_true(agglo_unhex(uid_hex, uid, 16));
        agglo_view_draw(&config, uid, index, width, height, &view);
        assert_true(view.x == x && view.y == y && view.w == w && view.h == h && view.flip == (flip != 0));
        assert_ok(agglo_render_decode(renderer, encoded, &image, NULL, &err));
        assert_true(image.width == width && image.height == height);
        assert_ok(agglo_sha256_of(image.rgb, (size_t)width * (size_t)height * 3, &sha, &err));
        if (strcmp(agglo_hex(sha.bytes, 32, hex), want_whole) != 0) {
            fail_msg("%s decodes to other pixels than Pillow's", member);
        }
        assert_ok(agglo_render_views(renderer, encoded, width, height, &view, 1, AGGLO_VIEW_EXACT, AGGLO_BICUBIC, 224,
                                     224, pixels, &err));
        assert_ok(agglo_sha256_of(pixels, sizeof pixels, &sha, &err));
        if (strcmp(agglo_hex(sha.bytes, 32, hex), want_view) != 0) {
            fail_msg("%s renders to other pixels than Pillow's", member);
        }
        agglo_unmap(&tar);
        n++;
    }
    assert_int_equal(n, 41);
    fclose(file);
    agglo_renderer_free(renderer);
}

static double quantile(const int64_t counts[256], double q)
{
    int64_t total = 0, below = 0;
    int level = 0;

    for (int i = 0; i < 256; i++) {
        total += counts[i];
    }
    while ((double)(below + counts[level]) < q * (double)total) {
        below += counts[level++];
    }
    return level;
}

/* What render.h promises of AGGLO_VIEW_SCALED, over the photographs: whole pictures and boxes, at sizes that reduce them by 2, 4 and 8. */
static void scaled_is_near_exact(void **state)
{
    static const int sides[] = {128, 64, 32};
    agglo_renderer *renderer;
    agglo_err err = {0};

    (void)state;
    if (test_shared("shards/00000000.tar") == NULL) {
        print_message("the folder of real pictures is not there\n");
        skip();
    }
    renderer = renderer_new();
    for (size_t k = 0; k < AGGLO_COUNT(sides); k++) {
        static uint8_t exact[128 * 128 * 3], scaled[128 * 128 * 3];
        int64_t counts[256] = {0}, sum = 0, n = 0;
        int side = sides[k], n_views = 0;

        for (int shard = 0; shard < 8; shard++) {
            char path[64];
            agglo_mapping tar;

            snprintf(path, sizeof path, "shards/%08d.tar", shard);
            assert_ok(agglo_map_file(test_shared(path), &tar, &err));
            for (size_t at = 0; at + 512 <= tar.size && tar.data[at] != 0;) {
                size_t size = strtoul((const char *)tar.data + at + 124, NULL, 8);
                agglo_bytes encoded = {tar.data + at + 512, size};
                agglo_image image;
                agglo_view view;

                at += 512 + (size + 511) / 512 * 512;
                if (agglo_image_format_of(encoded) != AGGLO_IMAGE_JPEG ||
                    agglo_render_decode(renderer, encoded, &image, NULL, &err) != AGGLO_OK) {
                    agglo_err_clear(&err);
                    continue;
                }
                view = (agglo_view){image.width / 37, image.height / 41, image.width - image.width / 19,
                                    image.height - image.height / 23, false};
                if (agglo_render_reduce(&view, AGGLO_VIEW_SCALED, side, side) != 256 / side) {
                    continue;
                }
                assert_ok(agglo_render_image(renderer, &image, &view, AGGLO_BICUBIC, side, side, exact, &err));
                assert_ok(agglo_render_views(renderer, encoded, image.width, image.height, &view, 1, AGGLO_VIEW_SCALED,
                                             AGGLO_BICUBIC, side, side, scaled, &err));
                for (int i = 0; i < side * side * 3; i++, n++) {
                    int d = exact[i] > scaled[i] ? exact[i] - scaled[i] : scaled[i] - exact[i];

                    counts[d]++;
                    sum += d;
                }
                n_views++;
            }
            agglo_unmap(&tar);
        }
        print_message("1/%d: %d views, mean difference %.3f, 99.9th percentile %.0f\n", 256 / side, n_views,
                      (double)sum / (double)n, quantile(counts, 0.999));
        assert_true(n_views > 100);
        assert_true((double)sum / (double)n <= AGGLO_SCALED_MEAN);
        assert_true(quantile(counts, 0.999) <= AGGLO_SCALED_P999);
    }
    agglo_renderer_free(renderer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pillow_views),
        cmocka_unit_test(pillow_whole_pictures),
        cmocka_unit_test(published_ramp),
        cmocka_unit_test(paths_and_windows_agree),
        cmocka_unit_test(boxes_outside_are_refused),
        cmocka_unit_test(views_of_encoded_pictures),
        cmocka_unit_test(allocates_nothing_when_warm),
        cmocka_unit_test(failing_allocations),
        cmocka_unit_test(photographs),
        cmocka_unit_test(pillow_boxes),
        cmocka_unit_test(views_together_are_views_alone),
        cmocka_unit_test(reductions),
        cmocka_unit_test(scaled_is_near_exact),
    };

    return test_run("render", tests);
}
