/* The renderer: Pillow's pixels bit for bit, on synthetic pictures and (hashes) on photographs; both code paths; no allocation in the
 * steady state; every allocation failing once. */
#include "base/hash.h"
#include "ingest/render.h"
#include "ingest/resize.h"
#include "tests/support/support.h"

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
        assert_ok(agglo_render_whole_image(renderer, &image, &pre, pixels, &err));
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
    agglo_resizer *fast = NULL, *plain = NULL;
    agglo_err err = {0};

    (void)state;
    assert_ok(agglo_resizer_new(&fast, &err));
    assert_ok(agglo_resizer_new(&plain, &err));
    agglo_resizer_portable(plain, true);
    for (int i = 0; i < 400; i++) {
        int width = 1 + (int)(test_random_u32(&random) % 90), height = 1 + (int)(test_random_u32(&random) % 90);
        int out_w = 1 + (int)(test_random_u32(&random) % 90), out_h = 1 + (int)(test_random_u32(&random) % 90);
        agglo_filter filter = i % 2 == 0 ? AGGLO_BICUBIC : AGGLO_BILINEAR;
        agglo_resize_window all = {0, 0, out_w, out_h}, part;
        size_t n_in = (size_t)(width * height * 3), n_out = (size_t)(out_w * out_h * 3);
        uint8_t *in = malloc(n_in), *a = malloc(n_out), *b = malloc(n_out), *c;
        agglo_resize_source source = {in, width, height, (size_t)width * 3, n_in};

        test_random_bytes(&random, in, n_in);
        assert_ok(agglo_resize(fast, &source, filter, out_w, out_h, all, a, (size_t)out_w * 3, &err));
        assert_ok(agglo_resize(plain, &source, filter, out_w, out_h, all, b, (size_t)out_w * 3, &err));
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
    assert_ok(agglo_render_views(renderer, encoded, 60, 45, views, 3, AGGLO_BICUBIC, 16, 16, pixels[0], &err));
    for (int i = 0; i < 3; i++) {
        assert_ok(agglo_render_image(renderer, &image, &views[i], AGGLO_BICUBIC, 16, 16, one, &err));
        assert_memory_equal(one, pixels[i], sizeof one);
    }
    assert_fails(agglo_render_views(renderer, encoded, 45, 60, views, 3, AGGLO_BICUBIC, 16, 16, pixels[0], &err),
                 AGGLO_E_MISMATCH, "the picture is 60x45");
    assert_fails(agglo_render_views(renderer, (agglo_bytes){encoded.data, n_bytes / 2}, 60, 45, views, 3, AGGLO_BICUBIC,
                                    16, 16, pixels[0], &err),
                 AGGLO_E_DATA, "cannot decode picture");
    assert_int_not_equal(agglo_pixel_hash(pixels[0], 16, 16), agglo_pixel_hash(pixels[1], 16, 16));
    assert_int_not_equal(agglo_pixel_hash(pixels[0], 16, 16), agglo_pixel_hash(pixels[0], 8, 32));
    agglo_renderer_free(renderer);
    agglo_free(png);
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
        assert_ok(
            agglo_render_views(renderer, encoded, width, height, &view, 1, AGGLO_BICUBIC, 224, 224, pixels, &err));
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
    };

    return test_run("render", tests);
}
