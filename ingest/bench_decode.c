/* Region decoding with the libraries alone: see bench_decode.h. */
#include "ingest/bench_decode.h"

#include <setjmp.h>
#include <stdio.h>

#include <jpeglib.h>
#include <spng.h>
#include <webp/decode.h>
#include <webp/demux.h>

struct agglo_bench_decoder {
    uint8_t *pixels;
    size_t n_bytes;
};

typedef struct leaving {
    struct jpeg_error_mgr errors;
    jmp_buf leave;
} leaving;

agglo_status agglo_bench_decoder_new(agglo_bench_decoder **out, agglo_err *err)
{
    *out = agglo_alloc(1, sizeof **out, err);
    return *out != NULL ? AGGLO_OK : err->status;
}

void agglo_bench_decoder_free(agglo_bench_decoder *bench)
{
    if (bench != NULL) {
        agglo_free(bench->pixels);
        agglo_free(bench);
    }
}

agglo_box agglo_bench_stored_box(const agglo_box *box, int width, int height, int orientation)
{
    const bool turned = orientation >= 5;
    const int stored_w = turned ? height : width, stored_h = turned ? width : height;
    agglo_box out = turned ? (agglo_box){box->y, box->x, box->h, box->w} : *box;

    if (orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8) {
        out.x = stored_w - out.x - out.w;
    }
    if (orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7) {
        out.y = stored_h - out.y - out.h;
    }
    return out;
}

static agglo_status room(agglo_bench_decoder *bench, size_t n_bytes, agglo_err *err)
{
    if (bench->n_bytes < n_bytes) {
        agglo_free(bench->pixels);
        bench->n_bytes = 0;
        bench->pixels = agglo_alloc(n_bytes, 1, err);
        if (bench->pixels == NULL) {
            return err->status;
        }
        bench->n_bytes = n_bytes;
    }
    return AGGLO_OK;
}

static void leave(j_common_ptr cinfo)
{
    longjmp(((leaving *)(void *)cinfo->err)->leave, 1);
}

static void say_nothing(j_common_ptr cinfo)
{
    (void)cinfo;
}

static agglo_status jpeg_region(agglo_bench_decoder *bench, agglo_bytes encoded, const agglo_box *box, int reduce,
                                agglo_err *err)
{
    struct jpeg_decompress_struct cinfo;
    const JDIMENSION r = (JDIMENSION)reduce;
    const JDIMENSION first = (JDIMENSION)box->y / r, end = (JDIMENSION)(box->y + box->h + reduce - 1) / r;
    JDIMENSION left = (JDIMENSION)box->x / r, width = (JDIMENSION)(box->x + box->w + reduce - 1) / r - left;
    leaving errors;
    size_t row;

    cinfo.err = jpeg_std_error(&errors.errors);
    errors.errors.error_exit = leave;
    errors.errors.output_message = say_nothing;
    if (setjmp(errors.leave) != 0) {
        jpeg_destroy_decompress(&cinfo);
        return agglo_fail(err, AGGLO_E_DATA, "libjpeg gives an error");
    }
    jpeg_create_decompress(&cinfo);
    jpeg_mem_src(&cinfo, encoded.data, (unsigned long)encoded.size);
    jpeg_read_header(&cinfo, TRUE);
    cinfo.scale_denom = r;
    cinfo.out_color_space = cinfo.num_components == 4 ? JCS_CMYK : JCS_RGB;
    jpeg_start_decompress(&cinfo);
    jpeg_crop_scanline(&cinfo, &left, &width);
    row = (size_t)width * (size_t)cinfo.output_components;
    if (room(bench, row * (end - first), err) == AGGLO_OK) {
        jpeg_skip_scanlines(&cinfo, first);
        while (cinfo.output_scanline < end) {
            JSAMPROW line = bench->pixels + row * (cinfo.output_scanline - first);

            jpeg_read_scanlines(&cinfo, &line, 1);
        }
    }
    jpeg_destroy_decompress(&cinfo);
    return err->status;
}

static agglo_status png_region(agglo_bench_decoder *bench, agglo_bytes encoded, const agglo_box *box, agglo_err *err)
{
    spng_ctx *png = spng_ctx_new(0);
    struct spng_ihdr header;
    size_t row = 0, n_bytes = 0;
    int code = SPNG_EMEM;

    if (png != NULL) {
        code = spng_set_png_buffer(png, encoded.data, encoded.size);
        code = code != 0 ? code : spng_get_ihdr(png, &header);
        code = code != 0 ? code : spng_decoded_image_size(png, SPNG_FMT_RGB8, &n_bytes);
    }
    if (code == 0) {
        row = n_bytes / header.height;
        if (header.interlace_method != SPNG_INTERLACE_NONE) {
            if (room(bench, n_bytes, err) == AGGLO_OK) {
                code = spng_decode_image(png, bench->pixels, n_bytes, SPNG_FMT_RGB8, 0);
            }
        } else if (room(bench, row * (size_t)box->h, err) == AGGLO_OK) {
            code = spng_decode_image(png, NULL, 0, SPNG_FMT_RGB8, SPNG_DECODE_PROGRESSIVE);
            for (int y = 0; code == 0 && y < box->y + box->h; y++) {
                code = spng_decode_row(png, bench->pixels + row * (size_t)(y < box->y ? 0 : y - box->y), row);
            }
            code = code == SPNG_EOI ? 0 : code;
        }
    }
    spng_ctx_free(png);
    return code == 0 ? err->status : agglo_fail(err, AGGLO_E_DATA, "%s", spng_strerror(code));
}

static agglo_status webp_region(agglo_bench_decoder *bench, agglo_bytes encoded, const agglo_box *box, agglo_err *err)
{
    WebPDecoderConfig config;
    VP8StatusCode code = VP8_STATUS_OK;
    uint8_t *canvas;
    int timestamp;

    if (!WebPInitDecoderConfig(&config) ||
        WebPGetFeatures(encoded.data, encoded.size, &config.input) != VP8_STATUS_OK) {
        return agglo_fail(err, AGGLO_E_DATA, "libwebp gives an error");
    }
    if (config.input.has_animation) {
        WebPData data = {encoded.data, encoded.size};
        WebPAnimDecoder *decoder = WebPAnimDecoderNew(&data, NULL);
        bool good = decoder != NULL && WebPAnimDecoderGetNext(decoder, &canvas, &timestamp);

        WebPAnimDecoderDelete(decoder);
        return good ? AGGLO_OK : agglo_fail(err, AGGLO_E_DATA, "libwebp gives an error");
    }
    if (room(bench, (size_t)box->w * (size_t)box->h * 3, err) != AGGLO_OK) {
        return err->status;
    }
    config.options.use_cropping = 1;
    config.options.crop_left = box->x;
    config.options.crop_top = box->y;
    config.options.crop_width = box->w;
    config.options.crop_height = box->h;
    config.output.colorspace = MODE_RGB;
    config.output.is_external_memory = 1;
    config.output.u.RGBA.rgba = bench->pixels;
    config.output.u.RGBA.stride = box->w * 3;
    config.output.u.RGBA.size = (size_t)box->w * (size_t)box->h * 3;
    code = WebPDecode(encoded.data, encoded.size, &config);
    WebPFreeDecBuffer(&config.output);
    return code == VP8_STATUS_OK ? AGGLO_OK : agglo_fail(err, AGGLO_E_DATA, "libwebp gives status %d", (int)code);
}

agglo_status agglo_bench_decode(agglo_bench_decoder *bench, agglo_bytes encoded, const agglo_box *stored, int reduce,
                                agglo_err *err)
{
    switch (agglo_image_format_of(encoded)) {
    case AGGLO_IMAGE_JPEG:
        return jpeg_region(bench, encoded, stored, reduce, err);
    case AGGLO_IMAGE_PNG:
        return png_region(bench, encoded, stored, err);
    case AGGLO_IMAGE_WEBP:
        return webp_region(bench, encoded, stored, err);
    case AGGLO_IMAGE_GIF:
    case AGGLO_IMAGE_UNKNOWN:
        break;
    }
    return agglo_fail(err, AGGLO_E_DATA, "no JPEG, PNG or WebP");
}
