/* Image decoding: telling formats apart, size limits, turning upright. The formats themselves are in decode_jpeg.c, decode_png.c and
 * decode_webp.c. Nothing is allocated for a picture before its size has passed the limit.
 */
#include "ingest/decode_impl.h"

#include <limits.h>
#include <stdarg.h>
#include <stdio.h>

#include <jpeglib.h>
#include <spng.h>
#include <webp/decode.h>

#include "base/hash.h"

/* Raised when pixels for equal bytes change; part of every fingerprint that depends on pixels. */
#define DECODER_VERSION 1

struct agglo_decoder {
    agglo_decode_options options;
    uint8_t *stored, *upright; /* the second only for turned pictures */
    size_t stored_bytes, upright_bytes;
};

agglo_decode_options agglo_decode_options_default(void)
{
    agglo_decode_options options = {.max_pixels = 178956970};
    return options;
}

void agglo_decode_fingerprint(const agglo_decode_options *options, char out[33])
{
    char text[160];
    agglo_hash128 hash;
    int n =
        snprintf(text, sizeof text, "decode %d; libjpeg-turbo %d; libwebp %d; libspng %d; exif %s; png16 %s",
                 DECODER_VERSION, LIBJPEG_TURBO_VERSION_NUMBER / 1000000, WebPGetDecoderVersion() >> 16,
                 SPNG_VERSION_MAJOR, options->ignore_exif ? "ignore" : "apply", options->png16_clip ? "clip" : "scale");

    AGGLO_ASSERT(n > 0 && (size_t)n < sizeof text);
    hash = agglo_xxh3_128(text, (size_t)n);
    agglo_hex(hash.bytes, sizeof hash.bytes, out);
}

const char *agglo_image_format_name(agglo_image_format format)
{
    switch (format) {
    case AGGLO_IMAGE_JPEG:
        return "jpeg";
    case AGGLO_IMAGE_PNG:
        return "png";
    case AGGLO_IMAGE_WEBP:
        return "webp";
    case AGGLO_IMAGE_GIF:
        return "gif";
    case AGGLO_IMAGE_UNKNOWN:
        break;
    }
    return "unknown";
}

agglo_status agglo_reject_image(agglo_reason *reason, const char *code, agglo_err *err, const char *why, ...)
{
    char text[200];
    va_list args;

    va_start(args, why);
    vsnprintf(text, sizeof text, why, args);
    va_end(args);
    if (reason != NULL) {
        *reason = code;
    }
    return agglo_fail(err, strcmp(code, "out_of_memory") == 0 ? AGGLO_E_MEMORY : AGGLO_E_DATA, "%s", text);
}

static bool starts(agglo_bytes bytes, size_t at, const char *magic, size_t n)
{
    return bytes.size >= at + n && memcmp(bytes.data + at, magic, n) == 0;
}

static agglo_image_format sniff(agglo_bytes bytes)
{
    if (starts(bytes, 0, "\xff\xd8\xff", 3)) {
        return AGGLO_IMAGE_JPEG;
    }
    if (starts(bytes, 0, "\x89PNG\r\n\x1a\n", 8)) {
        return AGGLO_IMAGE_PNG;
    }
    if (starts(bytes, 0, "RIFF", 4) && starts(bytes, 8, "WEBP", 4)) {
        return AGGLO_IMAGE_WEBP;
    }
    if (starts(bytes, 0, "GIF87a", 6) || starts(bytes, 0, "GIF89a", 6)) {
        return AGGLO_IMAGE_GIF;
    }
    return AGGLO_IMAGE_UNKNOWN;
}

/* Pictures that we know by sight and do not decode. */
static const char *other_format(agglo_bytes bytes)
{
    if (starts(bytes, 0, "BM", 2) && bytes.size >= 26) {
        return "BMP";
    }
    if (starts(bytes, 0, "II*\0", 4) || starts(bytes, 0, "MM\0*", 4)) {
        return "TIFF";
    }
    if (starts(bytes, 4, "ftypavif", 8) || starts(bytes, 4, "ftypavis", 8)) {
        return "AVIF";
    }
    if (starts(bytes, 4, "ftypheic", 8) || starts(bytes, 4, "ftypmif1", 8)) {
        return "HEIF";
    }
    if (starts(bytes, 0, "\xff\x0a", 2) || starts(bytes, 0, "\0\0\0\x0cJXL ", 8)) {
        return "JPEG XL";
    }
    if (starts(bytes, 0, "\0\0\0\x0cjP  ", 8)) {
        return "JPEG 2000";
    }
    return NULL;
}

static agglo_status probe(agglo_bytes encoded, const agglo_decode_options *options, agglo_image_format *format,
                          agglo_stored_image *out, agglo_reason *reason, agglo_err *err)
{
    agglo_status status = AGGLO_OK;
    const char *other;

    *out = (agglo_stored_image){.orientation = 1};
    *format = sniff(encoded);
    switch (*format) {
    case AGGLO_IMAGE_JPEG:
        status = agglo_jpeg_probe(encoded, out, reason, err);
        break;
    case AGGLO_IMAGE_PNG:
        status = agglo_png_probe(encoded, out, reason, err);
        break;
    case AGGLO_IMAGE_WEBP:
        status = agglo_webp_probe(encoded, out, reason, err);
        break;
    case AGGLO_IMAGE_GIF:
        return agglo_reject_image(reason, "unsupported_format", err, "a GIF; JPEG, PNG and WebP are read");
    case AGGLO_IMAGE_UNKNOWN:
        other = other_format(encoded);
        if (other != NULL) {
            return agglo_reject_image(reason, "unsupported_format", err, "%s; JPEG, PNG and WebP are read", other);
        }
        return agglo_reject_image(reason, "not_an_image", err, "%zu bytes that are no picture", encoded.size);
    }
    if (status != AGGLO_OK) {
        return status;
    }
    if (out->width == 0 || out->height == 0) {
        return agglo_reject_image(reason, "zero_size", err, "%llu x %llu pixels", (unsigned long long)out->width,
                                  (unsigned long long)out->height);
    }
    /* INT_MAX / 3: a row of RGB must be an int to every library */
    if (out->width > INT_MAX / 3 || out->height > INT_MAX / 3 || out->width > options->max_pixels / out->height) {
        return agglo_reject_image(reason, "too_large", err, "%llu x %llu pixels, more than %llu",
                                  (unsigned long long)out->width, (unsigned long long)out->height,
                                  (unsigned long long)options->max_pixels);
    }
    return AGGLO_OK;
}

agglo_status agglo_image_probe(agglo_bytes encoded, const agglo_decode_options *options, agglo_image_info *out,
                               agglo_reason *reason, agglo_err *err)
{
    agglo_stored_image stored;
    bool turned;

    *out = (agglo_image_info){.orientation = 1};
    if (probe(encoded, options, &out->format, &stored, reason, err) != AGGLO_OK) {
        return agglo_doing(err, "cannot read picture");
    }
    turned = !options->ignore_exif && stored.orientation >= 5;
    out->orientation = stored.orientation;
    out->width = (int)(turned ? stored.height : stored.width);
    out->height = (int)(turned ? stored.width : stored.height);
    return AGGLO_OK;
}

int agglo_exif_orientation(const uint8_t *data, size_t n_bytes)
{
    bool big;
    size_t at, n;

    if (n_bytes >= 6 && memcmp(data, "Exif\0\0", 6) == 0) {
        data += 6;
        n_bytes -= 6;
    }
    if (n_bytes < 8) {
        return 1;
    }
    big = memcmp(data, "MM\0*", 4) == 0;
    if (!big && memcmp(data, "II*\0", 4) != 0) {
        return 1;
    }
    at = big ? agglo_be32(data + 4) : agglo_le32(data + 4);
    if (at > n_bytes - 2) {
        return 1;
    }
    n = big ? (size_t)(data[at] << 8 | data[at + 1]) : agglo_le16(data + at);
    at += 2;
    for (; n > 0 && n_bytes - at >= 12; n--, at += 12) {
        const uint8_t *e = data + at;
        unsigned tag = big ? (unsigned)(e[0] << 8 | e[1]) : agglo_le16(e);
        unsigned type = big ? (unsigned)(e[2] << 8 | e[3]) : agglo_le16(e + 2);
        uint32_t count = big ? agglo_be32(e + 4) : agglo_le32(e + 4), value;

        if (tag != 0x0112) {
            continue;
        }
        if (count != 1 || (type != 3 && type != 4)) { /* SHORT, as the standard says, or LONG, as some write */
            return 1;
        }
        if (type == 3) {
            value = big ? (uint32_t)(e[8] << 8 | e[9]) : agglo_le16(e + 8);
        } else {
            value = big ? agglo_be32(e + 8) : agglo_le32(e + 8);
        }
        return value >= 1 && value <= 8 ? (int)value : 1;
    }
    return 1;
}

/* dst pixel (x, y) = src pixel at origin + x * step_x + y * step_y. In tiles, because the turns by 90 degrees walk src in columns. */
static void turn_upright(const uint8_t *src, uint64_t width, uint64_t height, int orientation, uint8_t *dst)
{
    enum { TILE = 32 };
    ptrdiff_t w = (ptrdiff_t)width, h = (ptrdiff_t)height, row = w * 3;
    ptrdiff_t left = 0, top = 0, right = (w - 1) * 3, bottom = (h - 1) * row;
    ptrdiff_t origin, step_x, step_y, out_w = orientation >= 5 ? h : w, out_h = orientation >= 5 ? w : h;

    switch (orientation) {
    case 2: /* mirrored left to right */
        origin = right + top, step_x = -3, step_y = row;
        break;
    case 3: /* by 180 degrees */
        origin = right + bottom, step_x = -3, step_y = -row;
        break;
    case 4: /* mirrored top to bottom */
        origin = left + bottom, step_x = 3, step_y = -row;
        break;
    case 5: /* transposed */
        origin = left + top, step_x = row, step_y = 3;
        break;
    case 6: /* 90 degrees clockwise */
        origin = left + bottom, step_x = -row, step_y = 3;
        break;
    case 7: /* transposed across the other diagonal */
        origin = right + bottom, step_x = -row, step_y = -3;
        break;
    default: /* 8: 90 degrees counter-clockwise */
        origin = right + top, step_x = row, step_y = -3;
        break;
    }
    for (ptrdiff_t y0 = 0; y0 < out_h; y0 += TILE) {
        for (ptrdiff_t x0 = 0; x0 < out_w; x0 += TILE) {
            ptrdiff_t y1 = y0 + TILE < out_h ? y0 + TILE : out_h, x1 = x0 + TILE < out_w ? x0 + TILE : out_w;

            for (ptrdiff_t y = y0; y < y1; y++) {
                const uint8_t *from = src + origin + x0 * step_x + y * step_y;
                uint8_t *to = dst + (y * out_w + x0) * 3;

                for (ptrdiff_t x = x0; x < x1; x++, to += 3) {
                    to[0] = from[0];
                    to[1] = from[1];
                    to[2] = from[2];
                    from += x + 1 < x1 ? step_x : 0;
                }
            }
        }
    }
}

agglo_status agglo_decoder_new(agglo_decoder **out, const agglo_decode_options *options, agglo_err *err)
{
    agglo_decoder *decoder = agglo_alloc(1, sizeof *decoder, err);

    *out = decoder;
    if (decoder == NULL) {
        return err->status;
    }
    decoder->options = *options;
    return AGGLO_OK;
}

void agglo_decoder_free(agglo_decoder *decoder)
{
    if (decoder != NULL) {
        agglo_free(decoder->stored);
        agglo_free(decoder->upright);
        agglo_free(decoder);
    }
}

/* Room for a picture; what was there is forgotten. */
static agglo_status reserve(uint8_t **buffer, size_t *have, size_t n_bytes, agglo_reason *reason, agglo_err *err)
{
    if (*have >= n_bytes) {
        return AGGLO_OK;
    }
    agglo_free(*buffer);
    *have = 0;
    *buffer = agglo_alloc(n_bytes, 1, err);
    if (*buffer == NULL) {
        if (reason != NULL) {
            *reason = "out_of_memory";
        }
        return err->status;
    }
    *have = n_bytes;
    return AGGLO_OK;
}

agglo_status agglo_decode(agglo_decoder *decoder, agglo_bytes encoded, agglo_image *out, agglo_reason *reason,
                          agglo_err *err)
{
    agglo_stored_image stored;
    agglo_image_format format;
    agglo_status status;
    size_t n_bytes;

    *out = (agglo_image){0};
    if (probe(encoded, &decoder->options, &format, &stored, reason, err) != AGGLO_OK) {
        goto fail;
    }
    if (!agglo_size_mul((size_t)stored.width, (size_t)stored.height, &n_bytes) ||
        !agglo_size_mul(n_bytes, 3, &n_bytes)) {
        agglo_reject_image(reason, "too_large", err, "the pixels do not fit into the address space");
        goto fail;
    }
    if (reserve(&decoder->stored, &decoder->stored_bytes, n_bytes, reason, err) != AGGLO_OK) {
        goto fail;
    }
    if (format == AGGLO_IMAGE_JPEG) {
        status = agglo_jpeg_pixels(encoded, &stored, decoder->stored, reason, err);
    } else if (format == AGGLO_IMAGE_PNG) {
        status = agglo_png_pixels(encoded, &stored, decoder->options.png16_clip, decoder->stored, reason, err);
    } else {
        status = agglo_webp_pixels(encoded, &stored, decoder->stored, reason, err);
    }
    if (status != AGGLO_OK) {
        goto fail;
    }
    out->width = (int)stored.width;
    out->height = (int)stored.height;
    out->rgb = decoder->stored;
    if (stored.orientation > 1 && !decoder->options.ignore_exif) {
        if (reserve(&decoder->upright, &decoder->upright_bytes, n_bytes, reason, err) != AGGLO_OK) {
            goto fail;
        }
        turn_upright(decoder->stored, stored.width, stored.height, stored.orientation, decoder->upright);
        out->rgb = decoder->upright;
        if (stored.orientation >= 5) {
            out->width = (int)stored.height;
            out->height = (int)stored.width;
        }
    }
    return AGGLO_OK;
fail:
    *out = (agglo_image){0};
    return agglo_doing(err, "cannot decode picture");
}
