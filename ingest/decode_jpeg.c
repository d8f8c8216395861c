/* JPEG by libjpeg-turbo with its defaults (accurate integer DCT, fancy upsampling, block smoothing), which are Pillow's: equal bits.
 *
 * libjpeg goes on after damaged entropy data and paints the rest gray; here the warnings that mean lost data are errors.
 */
#include "ingest/decode_impl.h"

#include <setjmp.h>
#include <stdio.h>

#include <jpeglib.h>

#include <jerror.h>

/* Pixels beside and around what is wanted: chroma is interpolated across the edges of what libjpeg is told to decode, one sample (two
 * pixels) deep; and it is interpolated at all only in rows of more than two samples. */
#define MARGIN    2
#define MIN_WIDTH 16

struct agglo_jpeg {
    struct jpeg_decompress_struct cinfo;
    struct jpeg_error_mgr errors;
    struct jpeg_progress_mgr progress;
    const char *code; /* reason of the failure */
    char text[JMSG_LENGTH_MAX];
    jmp_buf leave;
    int max_scans;
    bool is_open; /* cinfo holds memory */
};

static const char *reason_of(int message)
{
    switch (message) {
    case JWRN_JPEG_EOF:
    case JWRN_HIT_MARKER:
    case JERR_INPUT_EMPTY:
    case JERR_INPUT_EOF:
        return "truncated";
    case JERR_OUT_OF_MEMORY:
        return "out_of_memory";
    case JERR_EMPTY_IMAGE:
        return "zero_size";
    case JERR_IMAGE_TOO_BIG:
        return "too_large";
    case JERR_BAD_PRECISION:
    case JERR_SOF_UNSUPPORTED:
    case JERR_CONVERSION_NOTIMPL:
    case JERR_ARITH_NOTIMPL:
        return "unsupported_format";
    default:
        return "corrupt";
    }
}

static void leave(j_common_ptr cinfo)
{
    agglo_jpeg *session = cinfo->client_data;

    session->code = reason_of(cinfo->err->msg_code);
    cinfo->err->format_message(cinfo, session->text);
    longjmp(session->leave, 1);
}

static void warn(j_common_ptr cinfo, int level)
{
    if (level >= 0) {
        return; /* traces */
    }
    switch (cinfo->err->msg_code) {
    case JWRN_JPEG_EOF:
    case JWRN_HIT_MARKER:
    case JWRN_HUFF_BAD_CODE:
    case JWRN_ARITH_BAD_CODE:
    case JWRN_MUST_RESYNC:
        leave(cinfo);
        break;
    default: /* odd, but no data are missing: bytes between segments, an unknown JFIF version, an odd progression */
        break;
    }
}

static void discard(j_common_ptr cinfo)
{
    (void)cinfo;
}

/* Scans of a file, counted by its markers up to one more than `most`: before the first of them costs anything. */
static int count_scans(agglo_bytes file, int most)
{
    int n = 0;

    for (size_t at = 2; n <= most && file.size - at >= 4;) {
        const uint8_t *p = memchr(file.data + at, 0xff, file.size - at);
        size_t left = p == NULL ? 0 : file.size - (size_t)(p - file.data), length;

        if (left < 4) {
            break;
        }
        at = (size_t)(p - file.data);
        if (p[1] == 0xff || p[1] == 0 || p[1] == 1 ||
            (p[1] >= 0xd0 && p[1] <= 0xd8)) { /* filling, data, restarts: no length */
            at += p[1] == 0xff ? 1 : 2;
            continue;
        }
        if (p[1] == 0xd9) { /* the end */
            break;
        }
        n += p[1] == 0xda;
        length = (size_t)(p[2] << 8 | p[3]) + 2;
        at += length < left ? length : left;
    }
    return n;
}

static void watch_scans(j_common_ptr cinfo)
{
    agglo_jpeg *session = cinfo->client_data;

    if (session->cinfo.input_scan_number > session->max_scans) {
        session->code = "corrupt";
        snprintf(session->text, sizeof session->text, "more than %d scans", session->max_scans);
        longjmp(session->leave, 1);
    }
}

agglo_status agglo_jpeg_new(agglo_jpeg **out, int max_scans, agglo_err *err)
{
    agglo_jpeg *jpeg = agglo_alloc(1, sizeof *jpeg, err);

    *out = jpeg;
    if (jpeg == NULL) {
        return err->status;
    }
    jpeg->max_scans = max_scans;
    return AGGLO_OK;
}

void agglo_jpeg_close(agglo_jpeg *jpeg)
{
    if (jpeg != NULL && jpeg->is_open) {
        jpeg_destroy_decompress(&jpeg->cinfo);
        jpeg->is_open = false;
    }
}

void agglo_jpeg_free(agglo_jpeg *jpeg)
{
    agglo_jpeg_close(jpeg);
    agglo_free(jpeg);
}

/* What is left behind by a longjmp. */
static agglo_status fail_jpeg(agglo_jpeg *jpeg, agglo_reason *reason, agglo_err *err)
{
    agglo_jpeg_close(jpeg);
    return agglo_reject_image(reason, jpeg->code, err, "%s", jpeg->text);
}

/* In the first EXIF segment, or else in an XMP one. */
static int find_orientation(jpeg_saved_marker_ptr markers)
{
    static const char xmp[] = "http://ns.adobe.com/xap/1.0/"; /* and its NUL */
    int from_exif = 0, from_xmp = 0;
    bool found = false;

    for (jpeg_saved_marker_ptr m = markers; m != NULL; m = m->next) {
        if (m->marker != JPEG_APP0 + 1) {
            continue;
        }
        if (!found && m->data_length > 6 && memcmp(m->data, "Exif\0\0", 6) == 0) {
            from_exif = agglo_exif_orientation(m->data, m->data_length);
            found = true;
        } else if (from_xmp == 0 && m->data_length > sizeof xmp && memcmp(m->data, xmp, sizeof xmp) == 0) {
            from_xmp = agglo_xmp_orientation(m->data + sizeof xmp, m->data_length - sizeof xmp);
        }
    }
    return from_exif != 0 ? from_exif : from_xmp != 0 ? from_xmp : 1;
}

agglo_status agglo_jpeg_open(agglo_jpeg *jpeg, agglo_bytes encoded, agglo_stored_image *out, agglo_reason *reason,
                             agglo_err *err)
{
    struct jpeg_decompress_struct *cinfo = &jpeg->cinfo;

    agglo_jpeg_close(jpeg);
    /* a fresh object for every picture: tables that one leaves behind must not serve the next */
    memset(cinfo, 0, sizeof *cinfo);
    cinfo->err = jpeg_std_error(&jpeg->errors);
    jpeg->errors.error_exit = leave;
    jpeg->errors.emit_message = warn;
    jpeg->errors.output_message = discard;
    cinfo->client_data = jpeg;
    if (setjmp(jpeg->leave) != 0) {
        return fail_jpeg(jpeg, reason, err);
    }
    jpeg->is_open = true;
    jpeg_create_decompress(cinfo);
    jpeg->progress.progress_monitor = watch_scans;
    cinfo->progress = &jpeg->progress;
    jpeg_save_markers(cinfo, JPEG_APP0 + 1, 0xffff);
    jpeg_mem_src(cinfo, encoded.data, (unsigned long)encoded.size);
    jpeg_read_header(cinfo, TRUE);
    if (cinfo->num_components != 1 && cinfo->num_components != 3 && cinfo->num_components != 4) {
        jpeg->code = "unsupported_format";
        snprintf(jpeg->text, sizeof jpeg->text, "%d components; 1, 3 and 4 are read", cinfo->num_components);
        return fail_jpeg(jpeg, reason, err);
    }
    if (cinfo->progressive_mode && count_scans(encoded, jpeg->max_scans) > jpeg->max_scans) {
        jpeg->code = "corrupt";
        snprintf(jpeg->text, sizeof jpeg->text, "more than %d scans", jpeg->max_scans);
        return fail_jpeg(jpeg, reason, err);
    }
    out->width = cinfo->image_width;
    out->height = cinfo->image_height;
    out->orientation = find_orientation(cinfo->marker_list);
    return AGGLO_OK;
}

/* a * b / 255, rounded as Pillow does it */
static int mul255(int a, int b)
{
    int t = a * b + 128;

    return ((t >> 8) + t) >> 8;
}

/* Pillow takes every CMYK JPEG for an inverted one, as Adobe's are, marker or not: what is stored is 255 - ink. */
static void cmyk_row(const uint8_t *cmyk, uint8_t *rgb, size_t n)
{
    for (size_t x = 0; x < n; x++, cmyk += 4, rgb += 3) {
        int nk = cmyk[3]; /* 255 - K */

        for (int c = 0; c < 3; c++) {
            int v = nk - mul255(255 - cmyk[c], nk);

            rgb[c] = (uint8_t)(v < 0 ? 0 : v);
        }
    }
}

/* libjpeg smooths blocks whose scans did not bring all their bits, and looks at their neighbours for it. */
static bool may_smooth(const struct jpeg_decompress_struct *cinfo)
{
    if (!cinfo->progressive_mode || cinfo->coef_bits == NULL) {
        return false;
    }
    for (int c = 0; c < cinfo->num_components; c++) {
        for (int k = 0; k < DCTSIZE2; k++) {
            if (cinfo->coef_bits[c][k] != 0) {
                return true;
            }
        }
    }
    return false;
}

/* jpeg_crop_scanline takes no account of components that are scaled less than the rest and interpolated all the same: with a sampling of
 * 4:1 across, at 1/2. */
static bool miscounts(const struct jpeg_decompress_struct *cinfo)
{
    for (int c = 0; c < cinfo->num_components; c++) {
        const jpeg_component_info *component = &cinfo->comp_info[c];
#if JPEG_LIB_VERSION >= 70
        int size = component->DCT_h_scaled_size, least = cinfo->min_DCT_h_scaled_size;
#else
        int size = component->DCT_scaled_size, least = cinfo->min_DCT_scaled_size;
#endif

        if (size != least && component->h_samp_factor * size != cinfo->max_h_samp_factor * least) {
            return true;
        }
    }
    return false;
}

static void start(agglo_jpeg *jpeg, int reduce)
{
    struct jpeg_decompress_struct *cinfo = &jpeg->cinfo;

    cinfo->out_color_space = cinfo->num_components == 4 ? JCS_CMYK : JCS_RGB;
    cinfo->scale_num = 1;
    cinfo->scale_denom = (unsigned)reduce;
    jpeg_start_decompress(cinfo);
}

/* The region's rows into rgb, as wide as they come. */
static void read_rows(struct jpeg_decompress_struct *cinfo, const agglo_stored_region *region, uint8_t *rgb)
{
    JSAMPARRAY line = NULL;

    if (cinfo->num_components == 4) {
        line = cinfo->mem->alloc_sarray((j_common_ptr)cinfo, JPOOL_IMAGE, cinfo->output_width * 4, 1);
    }
    if (region->y > 0) {
        jpeg_skip_scanlines(cinfo, region->y);
    }
    while (cinfo->output_scanline < region->y + region->h) {
        uint8_t *row = rgb + (size_t)(cinfo->output_scanline - region->y) * region->stride;

        if (line != NULL) {
            jpeg_read_scanlines(cinfo, line, 1);
            cmyk_row(line[0], row, cinfo->output_width);
        } else {
            jpeg_read_scanlines(cinfo, &row, 1);
        }
    }
}

agglo_status agglo_jpeg_read(agglo_jpeg *jpeg, agglo_stored_region *region, agglo_pixel_buffer *buffer,
                             agglo_reason *reason, agglo_err *err)
{
    struct jpeg_decompress_struct *cinfo = &jpeg->cinfo;
    JDIMENSION left, right, width;

    if (setjmp(jpeg->leave) != 0) {
        return fail_jpeg(jpeg, reason, err);
    }
    start(jpeg, region->reduce);
    AGGLO_ASSERT(region->x + region->w <= cinfo->output_width && region->y + region->h <= cinfo->output_height);
    left = 0;
    right = cinfo->output_width;
    if (region->w < cinfo->output_width && !may_smooth(cinfo) && !miscounts(cinfo)) {
        left = region->x > MARGIN ? region->x - MARGIN : 0;
        right = region->x + region->w + MARGIN < right ? region->x + region->w + MARGIN : right;
        if (right - left < MIN_WIDTH) {
            left = right > MIN_WIDTH ? right - MIN_WIDTH : 0;
            right = left + MIN_WIDTH < cinfo->output_width ? left + MIN_WIDTH : cinfo->output_width;
        }
        width = right - left;
        jpeg_crop_scanline(cinfo, &left, &width);
    }
    width = cinfo->output_width;
    region->stride = (size_t)width * 3;
    if (agglo_pixels_reserve(buffer, region->h, region->stride, reason, err) != AGGLO_OK) {
        agglo_jpeg_close(jpeg);
        return err->status;
    }
    region->rgb = buffer->data + (size_t)(region->x - left) * 3;
    read_rows(cinfo, region, buffer->data);
    if (region->whole) { /* on to the end marker: a file cut off behind its last row is cut off all the same */
        jpeg_finish_decompress(cinfo);
    }
    agglo_jpeg_close(jpeg);
    return AGGLO_OK;
}

agglo_status agglo_jpeg_verify(agglo_jpeg *jpeg, agglo_reason *reason, agglo_err *err)
{
    struct jpeg_decompress_struct *cinfo = &jpeg->cinfo;
    JSAMPARRAY line;

    if (setjmp(jpeg->leave) != 0) {
        return fail_jpeg(jpeg, reason, err);
    }
    start(jpeg, 1); /* of a file with several scans this reads all */
    if (!jpeg_has_multiple_scans(cinfo)) {
        line = cinfo->mem->alloc_sarray((j_common_ptr)cinfo, JPOOL_IMAGE, cinfo->output_width * 4, 1);
        if (cinfo->output_height > 1) {
            jpeg_skip_scanlines(cinfo, cinfo->output_height - 1);
        }
        while (cinfo->output_scanline < cinfo->output_height) {
            jpeg_read_scanlines(cinfo, line, 1);
        }
        jpeg_finish_decompress(cinfo);
    }
    agglo_jpeg_close(jpeg);
    return AGGLO_OK;
}
