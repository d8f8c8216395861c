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
#define DECODER_VERSION 2

struct agglo_decoder {
    agglo_decode_options options;
    agglo_jpeg *jpeg;
    agglo_png *png;
    agglo_pixel_buffer stored, upright; /* the second only for turned pictures */
    /* of the picture that is open */
    agglo_bytes encoded;
    agglo_image_format format;
    agglo_stored_image image;
    int turn; /* the orientation to apply */
};

agglo_decode_options agglo_decode_options_default(void)
{
    agglo_decode_options options = {.max_pixels = 178956970, .max_scans = 64};
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

agglo_image_format agglo_image_format_of(agglo_bytes bytes)
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

/* Parse the header of `encoded` and check its sizes: the one picture that is open from now on. */
static agglo_status open_picture(agglo_decoder *decoder, agglo_bytes encoded, agglo_reason *reason, agglo_err *err)
{
    agglo_stored_image *image = &decoder->image;
    agglo_status status = AGGLO_OK;
    const char *other;

    *image = (agglo_stored_image){.orientation = 1};
    decoder->turn = 1;
    decoder->encoded = encoded;
    decoder->format = agglo_image_format_of(encoded);
    switch (decoder->format) {
    case AGGLO_IMAGE_JPEG:
        status = agglo_jpeg_open(decoder->jpeg, encoded, image, reason, err);
        break;
    case AGGLO_IMAGE_PNG:
        status = agglo_png_open(decoder->png, encoded, image, reason, err);
        break;
    case AGGLO_IMAGE_WEBP:
        status = agglo_webp_open(encoded, image, reason, err);
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
    decoder->turn = decoder->options.ignore_exif ? 1 : image->orientation;
    if (image->width == 0 || image->height == 0) {
        return agglo_reject_image(reason, "zero_size", err, "%llu x %llu pixels", (unsigned long long)image->width,
                                  (unsigned long long)image->height);
    }
    /* INT_MAX / 3: a row of RGB must be an int to every library */
    if (image->width > INT_MAX / 3 || image->height > INT_MAX / 3 ||
        image->width > decoder->options.max_pixels / image->height) {
        return agglo_reject_image(reason, "too_large", err, "%llu x %llu pixels, more than %llu",
                                  (unsigned long long)image->width, (unsigned long long)image->height,
                                  (unsigned long long)decoder->options.max_pixels);
    }
    return AGGLO_OK;
}

/* Forget the picture; its pixels stay. */
static void close_picture(agglo_decoder *decoder)
{
    agglo_jpeg_close(decoder->jpeg);
    agglo_png_close(decoder->png);
    decoder->encoded = (agglo_bytes){NULL, 0};
}

static bool is_turned(int orientation)
{
    return orientation >= 5;
}

static bool mirrors_x(int orientation) /* the stored columns run against their upright axis */
{
    return orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
}

static bool mirrors_y(int orientation)
{
    return orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
}

/* The value of a directory entry as TIFF writes numbers: the first one, of any integer type but BYTE (bytes to Pillow). 0: no number. */
static uint32_t entry_value(const uint8_t *data, size_t n_bytes, const uint8_t *e, bool big)
{
    unsigned type = big ? (unsigned)(e[2] << 8 | e[3]) : agglo_le16(e + 2);
    uint32_t count = big ? agglo_be32(e + 4) : agglo_le32(e + 4);
    size_t n = type == 6 ? 1 : type == 3 || type == 8 ? 2 : type == 4 || type == 9 ? 4 : 0;
    const uint8_t *p = e + 8;

    if (n == 0 || count == 0) {
        return 0;
    }
    if (count > 4 / n) { /* too many to stand in the entry: it says where they are */
        size_t at = big ? agglo_be32(p) : agglo_le32(p);

        if (at > n_bytes || n > n_bytes - at) {
            return 0;
        }
        p = data + at;
    }
    return n == 1   ? p[0]
           : n == 2 ? (big ? (uint32_t)(p[0] << 8 | p[1]) : agglo_le16(p))
           : big    ? agglo_be32(p)
                    : agglo_le32(p);
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
        return 0;
    }
    big = memcmp(data, "MM\0*", 4) == 0;
    if (!big && memcmp(data, "II*\0", 4) != 0) {
        return 0;
    }
    at = big ? agglo_be32(data + 4) : agglo_le32(data + 4);
    if (at > n_bytes - 2) {
        return 0;
    }
    n = big ? (size_t)(data[at] << 8 | data[at + 1]) : agglo_le16(data + at);
    at += 2;
    for (; n > 0 && n_bytes - at >= 12; n--, at += 12) {
        const uint8_t *e = data + at;
        unsigned tag = big ? (unsigned)(e[0] << 8 | e[1]) : agglo_le16(e);

        if (tag == 0x0112) {
            uint32_t value = entry_value(data, n_bytes, e, big);

            return value >= 1 && value <= 8 ? (int)value : 1;
        }
    }
    return 0;
}

int agglo_xmp_orientation(const uint8_t *data, size_t n_bytes)
{
    static const char name[] = "tiff:Orientation";
    const size_t n_name = sizeof name - 1;

    for (const uint8_t *p = data, *end = data + n_bytes;; p++) {
        const uint8_t *value;

        p = n_bytes == 0 ? NULL : memmem(p, (size_t)(end - p), name, n_name);
        if (p == NULL) {
            return 0;
        }
        value = p + n_name;
        if (end - value >= 3 && value[0] == '=' && value[1] == '"' && value[2] >= '0' && value[2] <= '9') {
            return value[2] >= '1' && value[2] <= '8' ? value[2] - '0' : 1;
        }
        if (end - value >= 2 && value[0] == '>' && value[1] >= '0' && value[1] <= '9') {
            return value[1] >= '1' && value[1] <= '8' ? value[1] - '0' : 1;
        }
    }
}

/* dst pixel (x, y) = src pixel at origin + x * step_x + y * step_y. In tiles, because the turns by 90 degrees walk src in columns. */
static void turn_upright(const agglo_stored_region *region, int orientation, uint8_t *dst)
{
    enum { TILE = 32 };
    const uint8_t *src = region->rgb;
    ptrdiff_t w = (ptrdiff_t)region->w, h = (ptrdiff_t)region->h, row = (ptrdiff_t)region->stride;
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

    *out = NULL;
    if (decoder == NULL) {
        return err->status;
    }
    decoder->options = *options;
    if (agglo_jpeg_new(&decoder->jpeg, options->max_scans, err) != AGGLO_OK ||
        agglo_png_new(&decoder->png, options->png16_clip, err) != AGGLO_OK) {
        agglo_decoder_free(decoder);
        return err->status;
    }
    *out = decoder;
    return AGGLO_OK;
}

void agglo_decoder_free(agglo_decoder *decoder)
{
    if (decoder != NULL) {
        agglo_jpeg_free(decoder->jpeg);
        agglo_png_free(decoder->png);
        agglo_free(decoder->stored.data);
        agglo_free(decoder->upright.data);
        agglo_free(decoder);
    }
}

agglo_status agglo_pixels_reserve(agglo_pixel_buffer *buffer, uint64_t rows, uint64_t stride, agglo_reason *reason,
                                  agglo_err *err)
{
    size_t n_bytes;

    if (!agglo_size_mul((size_t)rows, (size_t)stride, &n_bytes) ||
        !agglo_size_add(n_bytes, AGGLO_PIXEL_SLACK, &n_bytes)) {
        return agglo_reject_image(reason, "too_large", err, "the pixels do not fit into the address space");
    }
    if (buffer->n_bytes >= n_bytes) {
        return AGGLO_OK;
    }
    agglo_free(buffer->data);
    buffer->n_bytes = 0;
    buffer->data = agglo_alloc(n_bytes, 1, err);
    if (buffer->data == NULL) {
        if (reason != NULL) {
            *reason = "out_of_memory";
        }
        return err->status;
    }
    buffer->n_bytes = n_bytes;
    return AGGLO_OK;
}

agglo_status agglo_image_probe(agglo_bytes encoded, const agglo_decode_options *options, agglo_image_info *out,
                               agglo_reason *reason, agglo_err *err)
{
    agglo_decoder *decoder = NULL;
    agglo_status status;

    *out = (agglo_image_info){.orientation = 1};
    if (agglo_decoder_new(&decoder, options, err) != AGGLO_OK) {
        if (reason != NULL) {
            *reason = "out_of_memory";
        }
        return agglo_doing(err, "cannot read picture");
    }
    status = agglo_decoder_probe(decoder, encoded, out, reason, err);
    agglo_decoder_free(decoder);
    return status;
}

agglo_status agglo_decoder_probe(agglo_decoder *decoder, agglo_bytes encoded, agglo_image_info *out,
                                 agglo_reason *reason, agglo_err *err)
{
    const agglo_stored_image *image = &decoder->image;
    agglo_status status = open_picture(decoder, encoded, reason, err);
    bool turned;

    turned = is_turned(decoder->turn);
    close_picture(decoder);
    *out = (agglo_image_info){.format = decoder->format, .orientation = 1};
    if (status != AGGLO_OK) {
        return agglo_doing(err, "cannot read picture");
    }
    out->orientation = image->orientation;
    out->width = (int)(turned ? image->height : image->width);
    out->height = (int)(turned ? image->width : image->height);
    return AGGLO_OK;
}

/* Pixels of the open picture, which is closed by this. */
static agglo_status read_region(agglo_decoder *decoder, agglo_stored_region *region, agglo_reason *reason,
                                agglo_err *err)
{
    agglo_status status;

    if (decoder->format == AGGLO_IMAGE_JPEG) {
        status = agglo_jpeg_read(decoder->jpeg, region, &decoder->stored, reason, err);
    } else if (decoder->format == AGGLO_IMAGE_PNG) {
        status = agglo_png_read(decoder->png, region, &decoder->stored, reason, err);
    } else {
        status = agglo_webp_read(decoder->encoded, &decoder->image, region, &decoder->stored, reason, err);
    }
    close_picture(decoder);
    if (status == AGGLO_OK && decoder->turn > 1) {
        uint64_t row = (uint64_t)(is_turned(decoder->turn) ? region->h : region->w) * 3;
        uint64_t rows = is_turned(decoder->turn) ? region->w : region->h;

        status = agglo_pixels_reserve(&decoder->upright, rows, row, reason, err);
        if (status == AGGLO_OK) {
            turn_upright(region, decoder->turn, decoder->upright.data);
            region->rgb = decoder->upright.data;
            region->stride = (size_t)row;
        }
    }
    return status;
}

agglo_status agglo_decode(agglo_decoder *decoder, agglo_bytes encoded, agglo_image *out, agglo_reason *reason,
                          agglo_err *err)
{
    agglo_stored_region all = {.reduce = 1, .whole = true};
    bool turned;

    *out = (agglo_image){0};
    if (open_picture(decoder, encoded, reason, err) != AGGLO_OK) {
        goto fail;
    }
    all.w = (uint32_t)decoder->image.width;
    all.h = (uint32_t)decoder->image.height;
    if (read_region(decoder, &all, reason, err) != AGGLO_OK) {
        goto fail;
    }
    turned = is_turned(decoder->turn);
    out->width = (int)(turned ? all.h : all.w);
    out->height = (int)(turned ? all.w : all.h);
    AGGLO_ASSERT(all.stride == (size_t)out->width * 3);
    out->rgb = all.rgb;
    return AGGLO_OK;
fail:
    close_picture(decoder);
    return agglo_doing(err, "cannot decode picture");
}

agglo_status agglo_image_verify(agglo_decoder *decoder, agglo_bytes encoded, agglo_reason *reason, agglo_err *err)
{
    agglo_status status = open_picture(decoder, encoded, reason, err);

    if (status == AGGLO_OK) {
        if (decoder->format == AGGLO_IMAGE_JPEG) {
            status = agglo_jpeg_verify(decoder->jpeg, reason, err);
        } else if (decoder->format == AGGLO_IMAGE_PNG) {
            status = agglo_png_verify(decoder->png, &decoder->stored, reason, err);
        } else {
            status = agglo_webp_verify(encoded, &decoder->image, &decoder->stored, reason, err);
        }
    }
    close_picture(decoder);
    return status == AGGLO_OK ? AGGLO_OK : agglo_doing(err, "cannot decode picture");
}

/* One axis of a region: the pixels of 1 / reduce that overlap [at, at + n), and where the first begins, seen from the upright side. */
static int reduced_axis(int at, int n, int side, bool mirrored, int reduce, uint32_t *first, uint32_t *count)
{
    int from = mirrored ? side - at - n : at, to = from + n;
    int lo = from / reduce, hi = to / reduce + (to % reduce != 0);

    *first = (uint32_t)lo;
    *count = (uint32_t)(hi - lo);
    return mirrored ? side - hi * reduce : lo * reduce;
}

agglo_status agglo_decode_region(agglo_decoder *decoder, agglo_bytes encoded, int width, int height,
                                 const agglo_box *box, int reduce, agglo_region *out, agglo_reason *reason,
                                 agglo_err *err)
{
    const agglo_stored_image *image = &decoder->image;
    agglo_stored_region part = {0};
    int image_w, image_h, orientation;
    bool turned;

    AGGLO_ASSERT(reduce == 1 || reduce == 2 || reduce == 4 || reduce == 8);
    *out = (agglo_region){0};
    if (open_picture(decoder, encoded, reason, err) != AGGLO_OK) {
        goto fail;
    }
    orientation = decoder->turn;
    turned = is_turned(orientation);
    image_w = (int)(turned ? image->height : image->width);
    image_h = (int)(turned ? image->width : image->height);
    if (image_w != width || image_h != height) {
        agglo_fail(err, AGGLO_E_MISMATCH, "the picture is %dx%d, its views were drawn for %dx%d", image_w, image_h,
                   width, height);
        goto fail;
    }
    if (box->x < 0 || box->y < 0 || box->w < 1 || box->h < 1 || box->w > width - box->x || box->h > height - box->y) {
        agglo_fail(err, AGGLO_E_MISMATCH, "the box %d,%d %dx%d does not lie in a picture of %dx%d", box->x, box->y,
                   box->w, box->h, width, height);
        goto fail;
    }
    part.reduce = out->reduce = decoder->format == AGGLO_IMAGE_JPEG ? reduce : 1;
    if (turned) {
        out->top = reduced_axis(box->y, box->h, height, mirrors_x(orientation), out->reduce, &part.x, &part.w);
        out->left = reduced_axis(box->x, box->w, width, mirrors_y(orientation), out->reduce, &part.y, &part.h);
    } else {
        out->left = reduced_axis(box->x, box->w, width, mirrors_x(orientation), out->reduce, &part.x, &part.w);
        out->top = reduced_axis(box->y, box->h, height, mirrors_y(orientation), out->reduce, &part.y, &part.h);
    }
    if (read_region(decoder, &part, reason, err) != AGGLO_OK) {
        goto fail;
    }
    out->width = (int)(turned ? part.h : part.w);
    out->height = (int)(turned ? part.w : part.h);
    out->rgb = part.rgb;
    out->stride = part.stride;
    return AGGLO_OK;
fail:
    close_picture(decoder);
    *out = (agglo_region){0};
    return agglo_doing(err, "cannot decode picture");
}
