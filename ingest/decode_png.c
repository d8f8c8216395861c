/* PNG by libspng: every colour type and depth, interlaced or not; alpha and tRNS are dropped, colour chunks ignored. A critical chunk with
 * a wrong CRC is an error. Ancillary chunks decide no pixel: libspng does not get to see them, and so neither inflates nor keeps them, nor
 * refuses a picture for what they hold.
 */
#include "ingest/decode_impl.h"

#include <spng.h>

static agglo_status fail_png(int code, agglo_reason *reason, agglo_err *err)
{
    const char *why = "corrupt";

    switch (code) {
    case SPNG_IO_EOF:
    case SPNG_EOF:
    case SPNG_EIDAT_TOO_SHORT:
        why = "truncated";
        break;
    case SPNG_EMEM:
        why = "out_of_memory";
        break;
    case SPNG_EWIDTH:
    case SPNG_EHEIGHT:
        why = "zero_size";
        break;
    default:
        break;
    }
    return agglo_reject_image(reason, why, err, "%s", spng_strerror(code));
}

struct agglo_png {
    spng_ctx *spng; /* NULL: nothing is open */
    struct spng_ihdr header;
    agglo_bytes file;
    size_t at, run_end; /* read so far; where the signature or the chunk that is being read ends */
    bool ended;         /* there is a whole IEND */
    bool clip16;        /* 16-bit gray as Pillow does it */
};

agglo_status agglo_png_new(agglo_png **out, bool clip16, agglo_err *err)
{
    agglo_png *png = agglo_alloc(1, sizeof *png, err);

    *out = png;
    if (png == NULL) {
        return err->status;
    }
    png->clip16 = clip16;
    return AGGLO_OK;
}

void agglo_png_close(agglo_png *png)
{
    if (png != NULL) {
        spng_ctx_free(png->spng);
        png->spng = NULL;
    }
}

void agglo_png_free(agglo_png *png)
{
    agglo_png_close(png);
    agglo_free(png);
}

static uint32_t crc32_of(const uint8_t *data, size_t n)
{
    uint32_t crc = UINT32_MAX;

    for (size_t i = 0; i < n; i++) {
        crc ^= data[i];
        for (int bit = 0; bit < 8; bit++) {
            crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
        }
    }
    return ~crc;
}

/* The orientation in an iTXt chunk that holds an uncompressed XMP packet; 0: none. */
static int text_orientation(const uint8_t *data, size_t n)
{
    static const char keyword[] =
        "XML:com.adobe.xmp"; /* and its NUL; then compressed?, method, language NUL, translation NUL, text */
    const uint8_t *end = data + n, *p = data + sizeof keyword + 2;

    if (n < sizeof keyword + 4 || memcmp(data, keyword, sizeof keyword) != 0 || data[sizeof keyword] != 0) {
        return 0;
    }
    for (int k = 0; k < 2 && p != NULL; k++) {
        p = memchr(p, 0, (size_t)(end - p));
        p = p == NULL ? NULL : p + 1;
    }
    return p == NULL ? 0 : agglo_xmp_orientation(p, (size_t)(end - p));
}

/* The eXIf chunk may stand behind the pixels, so the chunks are walked here rather than by the decoder. *ended: there is a whole IEND,
 * which the decoder does not look at to its last byte. Of several eXIf chunks the last counts. */
static int find_orientation(agglo_bytes png, bool *ended)
{
    int from_exif = 0, from_xmp = 0;

    *ended = false;
    for (size_t at = 8; png.size - at >= 12;) {
        const uint8_t *chunk = png.data + at;
        size_t n = agglo_be32(chunk);

        if (n > png.size - at - 12) {
            break;
        }
        if (memcmp(chunk + 4, "IEND", 4) == 0) {
            *ended = true;
            break;
        }
        if (memcmp(chunk + 4, "eXIf", 4) == 0 && n <= 0xffff &&
            crc32_of(chunk + 4, n + 4) == agglo_be32(chunk + 8 + n)) {
            from_exif = agglo_exif_orientation(chunk + 8, n);
        } else if (from_xmp == 0 && memcmp(chunk + 4, "iTXt", 4) == 0) {
            from_xmp = text_orientation(chunk + 8, n);
        }
        at += n + 12;
    }
    return from_exif != 0 ? from_exif : from_xmp != 0 ? from_xmp : 1;
}

/* libspng's source: the file without its ancillary chunks (a small first letter). What is cut off goes through as it is, to be found. */
static int read_critical(spng_ctx *spng, void *user, void *out, size_t n)
{
    agglo_png *png = user;
    uint8_t *to = out;

    (void)spng;
    while (n > 0) {
        size_t n_part = png->run_end - png->at;

        if (n_part == 0) {
            size_t left = png->file.size - png->at;
            const uint8_t *chunk = png->file.data + png->at;
            bool whole = left >= 12 && agglo_be32(chunk) <= left - 12;
            size_t n_chunk = whole ? (size_t)agglo_be32(chunk) + 12 : left;

            if (left == 0) {
                return SPNG_IO_EOF;
            }
            if (whole && (chunk[4] & 0x20) != 0) {
                png->at += n_chunk;
                png->run_end = png->at;
                continue;
            }
            png->run_end = png->at + n_chunk;
            n_part = n_chunk;
        }
        n_part = n_part < n ? n_part : n;
        memcpy(to, png->file.data + png->at, n_part);
        png->at += n_part;
        to += n_part;
        n -= n_part;
    }
    return 0;
}

agglo_status agglo_png_open(agglo_png *png, agglo_bytes encoded, agglo_stored_image *out, agglo_reason *reason,
                            agglo_err *err)
{
    int code;

    agglo_png_close(png);
    png->spng = spng_ctx_new(0);
    if (png->spng == NULL) {
        return fail_png(SPNG_EMEM, reason, err);
    }
    png->file = encoded;
    png->at = 0;
    png->run_end = encoded.size < 8 ? encoded.size : 8; /* the signature */
    code = spng_set_png_stream(png->spng, read_critical, png);
    code = code != 0 ? code : spng_get_ihdr(png->spng, &png->header);
    /* libspng refuses sizes that are zero before it says what they are */
    if (code != 0) {
        agglo_png_close(png);
        return fail_png(code, reason, err);
    }
    out->width = png->header.width;
    out->height = png->header.height;
    out->orientation = find_orientation(encoded, &png->ended);
    return AGGLO_OK;
}

/* 16-bit gray as Pillow converts it: what is above 255 becomes 255. A row of 2 n bytes is spread to 3 n in place, from the end. */
static void clip_gray16(uint8_t *rgb, size_t n_pixels)
{
    for (size_t i = n_pixels; i-- > 0;) {
        uint8_t v = rgb[2 * i] != 0 ? 255 : rgb[2 * i + 1];

        rgb[3 * i] = v;
        rgb[3 * i + 1] = v;
        rgb[3 * i + 2] = v;
    }
}

/* To the end of the file: one cut off behind its pixels is cut off all the same. */
static int read_to_end(agglo_png *png)
{
    int code = spng_decode_chunks(png->spng);

    return code == 0 && !png->ended ? SPNG_IO_EOF : code;
}

/* Rows down to the last that is wanted; those above it are overwritten by it. */
static int read_rows(agglo_png *png, const agglo_stored_region *region, int format, uint8_t *rgb, size_t row_bytes)
{
    int code = spng_decode_image(png->spng, NULL, 0, format, SPNG_DECODE_PROGRESSIVE);

    for (uint32_t y = 0; code == 0 && y < region->y + region->h; y++) {
        size_t row = y < region->y ? 0 : y - region->y;

        code = spng_decode_row(png->spng, rgb + row * region->stride, row_bytes);
    }
    return code == SPNG_EOI ? 0 : code; /* what the last row of the picture gives */
}

agglo_status agglo_png_read(agglo_png *png, agglo_stored_region *region, agglo_pixel_buffer *buffer,
                            agglo_reason *reason, agglo_err *err)
{
    size_t width = png->header.width, n_bytes = 0;
    bool clip = png->clip16 && png->header.color_type == SPNG_COLOR_TYPE_GRAYSCALE && png->header.bit_depth == 16;
    bool all = region->whole || png->header.interlace_method != SPNG_INTERLACE_NONE;
    int code, format = clip ? SPNG_FMT_RAW : SPNG_FMT_RGB8; /* raw: big-endian samples */
    uint32_t rows = all ? png->header.height : region->h;

    code = spng_decoded_image_size(png->spng, format, &n_bytes);
    if (code != 0) {
        agglo_png_close(png);
        return fail_png(code, reason, err);
    }
    AGGLO_ASSERT(n_bytes == width * png->header.height * (clip ? 2 : 3));
    region->stride = width * 3;
    if (agglo_pixels_reserve(buffer, rows, region->stride, reason, err) != AGGLO_OK) {
        agglo_png_close(png);
        return err->status;
    }
    if (all) {
        code = spng_decode_image(png->spng, buffer->data, n_bytes, format, 0);
        code = code == 0 && region->whole ? read_to_end(png) : code;
    } else {
        code = read_rows(png, region, format, buffer->data, width * (clip ? 2 : 3));
    }
    agglo_png_close(png);
    if (code != 0) {
        return fail_png(code, reason, err);
    }
    if (clip && all) { /* rows lie behind one another */
        clip_gray16(buffer->data, width * rows);
    }
    for (uint32_t y = 0; clip && !all && y < rows; y++) {
        clip_gray16(buffer->data + y * region->stride, width);
    }
    region->rgb = buffer->data + (all ? region->y * region->stride : 0) + (size_t)region->x * 3;
    return AGGLO_OK;
}

agglo_status agglo_png_verify(agglo_png *png, agglo_pixel_buffer *buffer, agglo_reason *reason, agglo_err *err)
{
    size_t n_bytes = 0;
    int code = spng_decoded_image_size(png->spng, SPNG_FMT_RAW, &n_bytes);

    if (code == 0) {
        n_bytes /= png->header.height;
        if (agglo_pixels_reserve(buffer, 1, n_bytes, reason, err) != AGGLO_OK) {
            agglo_png_close(png);
            return err->status;
        }
        code = spng_decode_image(png->spng, NULL, 0, SPNG_FMT_RAW, SPNG_DECODE_PROGRESSIVE);
        while (code == 0) {
            code = spng_decode_scanline(png->spng, buffer->data, n_bytes);
        }
        code = code == SPNG_EOI ? read_to_end(png) : code;
    }
    agglo_png_close(png);
    return code == 0 ? AGGLO_OK : fail_png(code, reason, err);
}
