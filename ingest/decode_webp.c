/* WebP by libwebp: lossy and lossless, alpha dropped, the first frame of an animation composited on its canvas. */
#include "ingest/decode_impl.h"

#include <webp/decode.h>
#include <webp/demux.h>

static agglo_status fail_webp(VP8StatusCode code, agglo_reason *reason, agglo_err *err)
{
    switch (code) {
    case VP8_STATUS_OUT_OF_MEMORY:
        return agglo_reject_image(reason, "out_of_memory", err, "libwebp is out of memory");
    case VP8_STATUS_NOT_ENOUGH_DATA:
    case VP8_STATUS_SUSPENDED:
        return agglo_reject_image(reason, "truncated", err, "the WebP data end early");
    case VP8_STATUS_UNSUPPORTED_FEATURE:
        return agglo_reject_image(reason, "unsupported_format", err, "a WebP feature that libwebp does not know");
    default:
        return agglo_reject_image(reason, "corrupt", err, "damaged WebP data (libwebp status %d)", (int)code);
    }
}

agglo_status agglo_webp_probe(agglo_bytes encoded, agglo_stored_image *out, agglo_reason *reason, agglo_err *err)
{
    WebPData data = {encoded.data, encoded.size};
    WebPDemuxState state = WEBP_DEMUX_PARSE_ERROR;
    WebPDemuxer *demux = WebPDemuxPartial(&data, &state);
    WebPChunkIterator chunk;
    uint32_t flags;

    if (demux == NULL || state != WEBP_DEMUX_DONE) {
        WebPDemuxDelete(demux);
        return fail_webp(state == WEBP_DEMUX_PARSE_ERROR ? VP8_STATUS_BITSTREAM_ERROR : VP8_STATUS_NOT_ENOUGH_DATA,
                         reason, err);
    }
    flags = WebPDemuxGetI(demux, WEBP_FF_FORMAT_FLAGS);
    out->width = WebPDemuxGetI(demux, WEBP_FF_CANVAS_WIDTH);
    out->height = WebPDemuxGetI(demux, WEBP_FF_CANVAS_HEIGHT);
    out->animated = (flags & ANIMATION_FLAG) != 0;
    out->orientation = 1;
    if ((flags & EXIF_FLAG) != 0 && WebPDemuxGetChunk(demux, "EXIF", 1, &chunk)) {
        out->orientation = agglo_exif_orientation(chunk.chunk.bytes, chunk.chunk.size);
        WebPDemuxReleaseChunkIterator(&chunk);
    }
    WebPDemuxDelete(demux);
    return AGGLO_OK;
}

static agglo_status first_frame(WebPData data, const agglo_stored_image *image, uint8_t *rgb, agglo_reason *reason,
                                agglo_err *err)
{
    WebPAnimDecoderOptions options;
    WebPAnimDecoder *decoder = NULL;
    WebPAnimInfo info;
    uint8_t *canvas;
    int timestamp;

    if (!WebPAnimDecoderOptionsInit(&options)) {
        return agglo_fail(err, AGGLO_E_UNSUPPORTED, "libwebpdemux has another version than its headers");
    }
    options.color_mode = MODE_RGBA;
    decoder = WebPAnimDecoderNew(&data, &options);
    if (decoder == NULL) {
        return fail_webp(VP8_STATUS_OUT_OF_MEMORY, reason, err);
    }
    if (!WebPAnimDecoderGetInfo(decoder, &info) || info.canvas_width != image->width ||
        info.canvas_height != image->height || !WebPAnimDecoderGetNext(decoder, &canvas, &timestamp)) {
        WebPAnimDecoderDelete(decoder);
        return fail_webp(VP8_STATUS_BITSTREAM_ERROR, reason, err);
    }
    for (size_t i = 0, n = (size_t)image->width * (size_t)image->height; i < n; i++) {
        memcpy(rgb + 3 * i, canvas + 4 * i, 3);
    }
    WebPAnimDecoderDelete(decoder);
    return AGGLO_OK;
}

agglo_status agglo_webp_pixels(agglo_bytes encoded, const agglo_stored_image *image, uint8_t *rgb, agglo_reason *reason,
                               agglo_err *err)
{
    WebPData data = {encoded.data, encoded.size};
    WebPDecoderConfig config;
    VP8StatusCode code;
    size_t stride = (size_t)image->width * 3;

    if (image->animated) {
        return first_frame(data, image, rgb, reason, err);
    }
    if (!WebPInitDecoderConfig(&config)) {
        return agglo_fail(err, AGGLO_E_UNSUPPORTED, "libwebp has another version than its headers");
    }
    code = WebPGetFeatures(encoded.data, encoded.size, &config.input);
    if (code != VP8_STATUS_OK) {
        return fail_webp(code, reason, err);
    }
    if ((uint64_t)config.input.width != image->width || (uint64_t)config.input.height != image->height) {
        return fail_webp(VP8_STATUS_BITSTREAM_ERROR, reason, err); /* canvas and frame disagree */
    }
    config.output.colorspace = MODE_RGB;
    config.output.is_external_memory = 1;
    config.output.u.RGBA.rgba = rgb;
    config.output.u.RGBA.stride = (int)stride;
    config.output.u.RGBA.size = stride * (size_t)image->height;
    code = WebPDecode(encoded.data, encoded.size, &config);
    WebPFreeDecBuffer(&config.output);
    return code == VP8_STATUS_OK ? AGGLO_OK : fail_webp(code, reason, err);
}
