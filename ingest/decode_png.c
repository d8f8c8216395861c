/* PNG by libspng: every colour type and depth, interlaced or not; alpha and tRNS are dropped, colour chunks ignored. A critical chunk with
 * a wrong CRC is an error; an ancillary one decides no pixel and is left out.
 */
#include "ingest/decode_impl.h"

#include <spng.h>

#define MAX_CHUNK_CACHE                                                                                                \
    ((size_t)256 << 20) /* ancillary chunks, inflated; libspng wants no chunk to be larger than it */

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

/* SPNG_OK or libspng's error; *out is the caller's to free either way. */
static int begin(agglo_bytes encoded, spng_ctx **out, struct spng_ihdr *header)
{
    spng_ctx *png = spng_ctx_new(0);
    int code;

    *out = png;
    if (png == NULL) {
        return SPNG_EMEM;
    }
    code = spng_set_chunk_limits(png, MAX_CHUNK_CACHE, MAX_CHUNK_CACHE);
    code = code != 0 ? code : spng_set_crc_action(png, SPNG_CRC_ERROR, SPNG_CRC_DISCARD);
    code = code != 0 ? code : spng_set_png_buffer(png, encoded.data, encoded.size);
    return code != 0 ? code : spng_get_ihdr(png, header);
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

/* The eXIf chunk may stand behind the pixels, so the chunks are walked here rather than by the decoder. *ended: there is a whole IEND,
 * which the decoder does not look at to its last byte. */
static int find_orientation(agglo_bytes png, bool *ended)
{
    int orientation = 1;
    bool found = false;

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
        if (!found && memcmp(chunk + 4, "eXIf", 4) == 0 && n <= 0xffff &&
            crc32_of(chunk + 4, n + 4) == agglo_be32(chunk + 8 + n)) {
            orientation = agglo_exif_orientation(chunk + 8, n);
            found = true;
        }
        at += n + 12;
    }
    return orientation;
}

agglo_status agglo_png_probe(agglo_bytes encoded, agglo_stored_image *out, agglo_reason *reason, agglo_err *err)
{
    struct spng_ihdr header = {0};
    spng_ctx *png;
    int code = begin(encoded, &png, &header);
    bool ended;

    spng_ctx_free(png);
    /* libspng refuses sizes that are zero before it says what they are */
    if (code != 0) {
        return fail_png(code, reason, err);
    }
    out->width = header.width;
    out->height = header.height;
    out->orientation = find_orientation(encoded, &ended);
    return AGGLO_OK;
}

/* 16-bit gray as Pillow converts it: what is above 255 becomes 255. Rows of 2 n bytes are spread to 3 n in place, from the end. */
static void clip_gray16(uint8_t *rgb, size_t n_pixels)
{
    for (size_t i = n_pixels; i-- > 0;) {
        uint8_t v = rgb[2 * i] != 0 ? 255 : rgb[2 * i + 1];

        rgb[3 * i] = v;
        rgb[3 * i + 1] = v;
        rgb[3 * i + 2] = v;
    }
}

agglo_status agglo_png_pixels(agglo_bytes encoded, const agglo_stored_image *image, bool png16_clip, uint8_t *rgb,
                              agglo_reason *reason, agglo_err *err)
{
    struct spng_ihdr header = {0};
    spng_ctx *png;
    int code = begin(encoded, &png, &header), format = SPNG_FMT_RGB8;
    size_t n_pixels = (size_t)image->width * (size_t)image->height, n_bytes = 0;
    bool ended, clip = png16_clip && header.color_type == SPNG_COLOR_TYPE_GRAYSCALE && header.bit_depth == 16;

    if (clip) {
        format = SPNG_FMT_RAW; /* big-endian samples */
    }
    code = code != 0 ? code : spng_decoded_image_size(png, format, &n_bytes);
    if (code == 0) {
        AGGLO_ASSERT(n_bytes == n_pixels * (clip ? 2 : 3));
        code = spng_decode_image(png, rgb, n_bytes, format, 0);
    }
    code = code != 0 ? code : spng_decode_chunks(png); /* to the end: a file cut off behind its pixels is cut off */
    spng_ctx_free(png);
    if (code != 0) {
        return fail_png(code, reason, err);
    }
    find_orientation(encoded, &ended);
    if (!ended) {
        return fail_png(SPNG_IO_EOF, reason, err);
    }
    if (clip) {
        clip_gray16(rgb, n_pixels);
    }
    return AGGLO_OK;
}
