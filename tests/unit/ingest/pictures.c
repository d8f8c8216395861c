/* See pictures.h. */
#include "tests/unit/ingest/pictures.h"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>

#include <jpeglib.h>
#include <webp/encode.h>

void test_fill_picture(uint8_t *pixels, int width, int height, int n, uint32_t seed)
{
    uint32_t random = seed;

    for (int y = 0; y < height; y++) {
        for (int x = 0; x < width; x++) {
            for (int c = 0; c < n; c++, pixels++) {
                int smooth = (x * (5 + c) + y * (7 - c)) % 256;

                random = random * 1664525u + 1013904223u;
                *pixels = (uint8_t)((x / 13 + y / 9) % 3 == 0   ? smooth
                                    : (x / 13 + y / 9) % 3 == 1 ? (int)(random >> 24)
                                                                : ((x + c) / 3 % 2 == 0 ? 240 : 20));
            }
        }
    }
}

typedef struct failing {
    struct jpeg_error_mgr errors;
    jmp_buf leave;
} failing;

static void leave(j_common_ptr cinfo)
{
    longjmp(((failing *)(void *)cinfo->err)->leave, 1);
}

/* Spectral selection and approximation that stop short of the last bits. */
static const jpeg_scan_info unfinished_script[] = {
    {3, {0, 1, 2}, 0, 0, 0, 1}, {1, {0}, 1, 5, 0, 2},  {1, {1}, 1, 63, 0, 1},
    {1, {2}, 1, 63, 0, 1},      {1, {0}, 6, 63, 0, 2},
};
static const jpeg_scan_info one_by_one_script[] = {{1, {0}, 0, 63, 0, 0}, {1, {1}, 0, 63, 0, 0}, {1, {2}, 0, 63, 0, 0}};

agglo_bytes test_jpeg_make(const test_jpeg *what)
{
    static const uint8_t exif[] = {'E', 'x',  'i', 'f', 0, 0, 'M', 'M', 0, 42, 0, 0, 0, 8, 0, 1,
                                   1,   0x12, 0,   3,   0, 0, 0,   1,   0, 0,  0, 0, 0, 0, 0, 0};
    struct jpeg_compress_struct cinfo = {0};
    failing failure;
    unsigned char *bytes = NULL;
    unsigned long n_bytes = 0;
    size_t row = (size_t)what->width * (size_t)what->components;
    uint8_t *pixels = malloc(row * (size_t)what->height);

    test_fill_picture(pixels, what->width, what->height, what->components, 17);
    cinfo.err = jpeg_std_error(&failure.errors);
    failure.errors.error_exit = leave;
    if (setjmp(failure.leave) != 0) {
        jpeg_destroy_compress(&cinfo);
        free(pixels);
        free(bytes);
        return (agglo_bytes){NULL, 0};
    }
    jpeg_create_compress(&cinfo);
    jpeg_mem_dest(&cinfo, &bytes, &n_bytes);
    cinfo.image_width = (JDIMENSION)what->width;
    cinfo.image_height = (JDIMENSION)what->height;
    cinfo.input_components = what->components;
    cinfo.in_color_space = what->components == 1 ? JCS_GRAYSCALE : what->components == 3 ? JCS_RGB : JCS_CMYK;
    jpeg_set_defaults(&cinfo);
    jpeg_set_quality(&cinfo, what->quality != 0 ? what->quality : 80, TRUE);
    if (what->adobe_ycck) {
        jpeg_set_colorspace(&cinfo, JCS_YCCK);
    }
    for (int c = 0; c < what->components && what->h[0] != 0; c++) {
        cinfo.comp_info[c].h_samp_factor = what->h[c];
        cinfo.comp_info[c].v_samp_factor = what->v[c];
    }
    cinfo.restart_interval = (unsigned)what->restart;
    cinfo.arith_code = what->arithmetic;
    if (what->progressive) {
        jpeg_simple_progression(&cinfo);
    } else if (what->unfinished) {
        cinfo.scan_info = unfinished_script;
        cinfo.num_scans = AGGLO_COUNT(unfinished_script);
    } else if (what->one_by_one) {
        cinfo.scan_info = one_by_one_script;
        cinfo.num_scans = AGGLO_COUNT(one_by_one_script);
    }
    jpeg_start_compress(&cinfo, TRUE);
    if (what->orientation != 0) {
        uint8_t block[sizeof exif];

        memcpy(block, exif, sizeof exif);
        block[25] = (uint8_t)what->orientation;
        jpeg_write_marker(&cinfo, JPEG_APP0 + 1, block, sizeof block);
    }
    while (cinfo.next_scanline < cinfo.image_height) {
        JSAMPROW line = pixels + cinfo.next_scanline * row;

        jpeg_write_scanlines(&cinfo, &line, 1);
    }
    jpeg_finish_compress(&cinfo);
    jpeg_destroy_compress(&cinfo);
    free(pixels);
    return (agglo_bytes){bytes, n_bytes};
}

agglo_bytes test_webp_make(int width, int height, bool lossless, bool alpha, int filter_type, float quality)
{
    WebPConfig config;
    WebPPicture picture;
    WebPMemoryWriter writer;
    uint8_t *pixels = malloc((size_t)(width * height * 4));
    int n = alpha ? 4 : 3;

    WebPMemoryWriterInit(&writer);
    test_fill_picture(pixels, width, height, n, 23);
    if (!WebPConfigInit(&config) || !WebPPictureInit(&picture)) {
        abort();
    }
    config.lossless = lossless;
    config.quality = quality;
    config.filter_type = filter_type;
    config.filter_strength = 60;
    config.autofilter = 0;
    picture.use_argb = lossless;
    picture.width = width;
    picture.height = height;
    picture.writer = WebPMemoryWrite;
    picture.custom_ptr = &writer;
    if (!(alpha ? WebPPictureImportRGBA(&picture, pixels, width * 4)
                : WebPPictureImportRGB(&picture, pixels, width * 3)) ||
        !WebPEncode(&config, &picture)) {
        abort();
    }
    WebPPictureFree(&picture);
    free(pixels);
    return (agglo_bytes){writer.mem, writer.size};
}
