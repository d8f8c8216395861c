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

agglo_status agglo_webp_open(agglo_bytes encoded, agglo_stored_image *out, agglo_reason *reason, agglo_err *err)
{
    WebPData data = {encoded.data, encoded.size};
    WebPDemuxState state = WEBP_DEMUX_PARSE_ERROR;
    WebPDemuxer *demux = WebPDemuxPartial(&data, &state);
    WebPChunkIterator chunk;
    WebPBitstreamFeatures features;
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
    out->orientation = 0;
    out->lossy = WebPGetFeatures(encoded.data, encoded.size, &features) == VP8_STATUS_OK && features.format == 1;
    if ((flags & EXIF_FLAG) != 0 && WebPDemuxGetChunk(demux, "EXIF", 1, &chunk)) {
        out->orientation = agglo_exif_orientation(chunk.chunk.bytes, chunk.chunk.size);
        WebPDemuxReleaseChunkIterator(&chunk);
    }
    if (out->orientation == 0 && (flags & XMP_FLAG) != 0 && WebPDemuxGetChunk(demux, "XMP ", 1, &chunk)) {
        out->orientation = agglo_xmp_orientation(chunk.chunk.bytes, chunk.chunk.size);
        WebPDemuxReleaseChunkIterator(&chunk);
    }
    out->orientation = out->orientation == 0 ? 1 : out->orientation;
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

/* The one frame, or a box of it (w > 0; of a lossy picture with even x and y). */
static agglo_status still(agglo_bytes encoded, const agglo_stored_image *image, const agglo_stored_region *box,
                          WEBP_CSP_MODE mode, agglo_pixel_buffer *buffer, agglo_reason *reason, agglo_err *err)
{
    WebPDecoderConfig config;
    VP8StatusCode code;
    uint64_t width = box != NULL ? box->w : image->width, height = box != NULL ? box->h : image->height;
    uint64_t chroma_w = (width + 1) / 2, chroma_h = (height + 1) / 2;

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
    config.output.colorspace = mode;
    config.output.is_external_memory = 1;
    if (agglo_pixels_reserve(buffer, height, width * 3, reason, err) != AGGLO_OK) {
        return err->status;
    }
    if (mode == MODE_YUV) {
        config.output.u.YUVA = (WebPYUVABuffer){
            .y = buffer->data,
            .u = buffer->data + width * height,
            .v = buffer->data + width * height + chroma_w * chroma_h,
            .y_stride = (int)width,
            .u_stride = (int)chroma_w,
            .v_stride = (int)chroma_w,
            .y_size = (size_t)(width * height),
            .u_size = (size_t)(chroma_w * chroma_h),
            .v_size = (size_t)(chroma_w * chroma_h),
        };
    } else {
        config.output.u.RGBA.rgba = buffer->data;
        config.output.u.RGBA.stride = (int)width * 3;
        config.output.u.RGBA.size = (size_t)(width * height) * 3;
    }
    if (box != NULL) {
        config.options.use_cropping = 1;
        config.options.crop_left = (int)box->x;
        config.options.crop_top = (int)box->y;
        config.options.crop_width = (int)box->w;
        config.options.crop_height = (int)box->h;
    }
    code = WebPDecode(encoded.data, encoded.size, &config);
    WebPFreeDecBuffer(&config.output);
    return code == VP8_STATUS_OK ? AGGLO_OK : fail_webp(code, reason, err);
}

/* Chroma is interpolated across the edges of the box: two pixels more on each side, from even ones on. */
static void widen(uint32_t *at, uint32_t *n, uint64_t side)
{
    uint64_t to = (uint64_t)*at + *n + 2;

    *at = *at > 2 ? (*at - 2) & ~1u : 0;
    *n = (uint32_t)((to < side ? to : side) - *at);
}

agglo_status agglo_webp_read(agglo_bytes encoded, const agglo_stored_image *image, agglo_stored_region *region,
                             agglo_pixel_buffer *buffer, agglo_reason *reason, agglo_err *err)
{
    agglo_stored_region box = *region;
    agglo_status status;

    if (image->animated) {
        box = (agglo_stored_region){.w = (uint32_t)image->width, .h = (uint32_t)image->height};
        status = agglo_pixels_reserve(buffer, box.h, (uint64_t)box.w * 3, reason, err);
        status = status != AGGLO_OK
                     ? status
                     : first_frame((WebPData){encoded.data, encoded.size}, image, buffer->data, reason, err);
    } else if (region->whole) {
        status = still(encoded, image, NULL, MODE_RGB, buffer, reason, err);
    } else {
        if (image->lossy) {
            widen(&box.x, &box.w, image->width);
            widen(&box.y, &box.h, image->height);
        }
        status = still(encoded, image, &box, MODE_RGB, buffer, reason, err);
    }
    region->stride = (size_t)box.w * 3;
    region->rgb = buffer->data == NULL
                      ? NULL
                      : buffer->data + (region->y - box.y) * region->stride + (size_t)(region->x - box.x) * 3;
    return status;
}

agglo_status agglo_webp_verify(agglo_bytes encoded, const agglo_stored_image *image, agglo_pixel_buffer *buffer,
                               agglo_reason *reason, agglo_err *err)
{
    if (image->animated) {
        agglo_status status = agglo_pixels_reserve(buffer, image->height, image->width * 3, reason, err);

        return status != AGGLO_OK
                   ? status
                   : first_frame((WebPData){encoded.data, encoded.size}, image, buffer->data, reason, err);
    }
    return still(encoded, image, NULL, image->lossy ? MODE_YUV : MODE_RGB, buffer, reason, err);
}
