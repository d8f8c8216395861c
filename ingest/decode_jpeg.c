/* JPEG by libjpeg-turbo with its defaults (accurate integer DCT, fancy upsampling, block smoothing), which are Pillow's: equal bits.
 *
 * libjpeg goes on after damaged entropy data and paints the rest gray; here the warnings that mean lost data are errors.
 */
#include "ingest/decode_impl.h"

#include <setjmp.h>
#include <stdio.h>

#include <jpeglib.h>

#include <jerror.h>

/* Progressive files of real encoders have about ten; more is work without pixels. */
#define MAX_SCANS 256

typedef struct jpeg_session {
    struct jpeg_decompress_struct cinfo;
    struct jpeg_error_mgr errors;
    struct jpeg_progress_mgr progress;
    const char *code; /* reason of the failure */
    char text[JMSG_LENGTH_MAX];
    jmp_buf leave;
} jpeg_session;

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
    jpeg_session *session = cinfo->client_data;

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

static void watch_scans(j_common_ptr cinfo)
{
    jpeg_session *session = cinfo->client_data;

    if (session->cinfo.input_scan_number > MAX_SCANS) {
        session->code = "corrupt";
        snprintf(session->text, sizeof session->text, "more than %d scans", MAX_SCANS);
        longjmp(session->leave, 1);
    }
}

static void begin(jpeg_session *session, agglo_bytes encoded)
{
    struct jpeg_decompress_struct *cinfo = &session->cinfo;

    session->cinfo.err = jpeg_std_error(&session->errors);
    session->errors.error_exit = leave;
    session->errors.emit_message = warn;
    session->errors.output_message = discard;
    cinfo->client_data = session;
    jpeg_create_decompress(cinfo);
    session->progress.progress_monitor = watch_scans;
    cinfo->progress = &session->progress;
    jpeg_save_markers(cinfo, JPEG_APP0 + 1, 0xffff);
    jpeg_mem_src(cinfo, encoded.data, (unsigned long)encoded.size);
    jpeg_read_header(cinfo, TRUE);
    if (cinfo->num_components != 1 && cinfo->num_components != 3 && cinfo->num_components != 4) {
        session->code = "unsupported_format";
        snprintf(session->text, sizeof session->text, "%d components; 1, 3 and 4 are read", cinfo->num_components);
        longjmp(session->leave, 1);
    }
}

agglo_status agglo_jpeg_probe(agglo_bytes encoded, agglo_stored_image *out, agglo_reason *reason, agglo_err *err)
{
    jpeg_session session = {.code = NULL};

    if (setjmp(session.leave) != 0) {
        jpeg_destroy_decompress(&session.cinfo);
        return agglo_reject_image(reason, session.code, err, "%s", session.text);
    }
    begin(&session, encoded);
    out->width = session.cinfo.image_width;
    out->height = session.cinfo.image_height;
    out->orientation = 1;
    for (jpeg_saved_marker_ptr m = session.cinfo.marker_list; m != NULL; m = m->next) {
        if (m->marker == JPEG_APP0 + 1 && m->data_length > 6 && memcmp(m->data, "Exif\0\0", 6) == 0) {
            out->orientation = agglo_exif_orientation(m->data, m->data_length);
            break;
        }
    }
    jpeg_destroy_decompress(&session.cinfo);
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

agglo_status agglo_jpeg_pixels(agglo_bytes encoded, const agglo_stored_image *image, uint8_t *rgb, agglo_reason *reason,
                               agglo_err *err)
{
    jpeg_session session = {.code = NULL};
    struct jpeg_decompress_struct *cinfo = &session.cinfo;
    JSAMPARRAY line;
    size_t width = (size_t)image->width;

    if (setjmp(session.leave) != 0) {
        jpeg_destroy_decompress(&session.cinfo);
        return agglo_reject_image(reason, session.code, err, "%s", session.text);
    }
    begin(&session, encoded);
    AGGLO_ASSERT(cinfo->image_width == image->width && cinfo->image_height == image->height);
    cinfo->out_color_space = cinfo->num_components == 4 ? JCS_CMYK : JCS_RGB;
    line = cinfo->mem->alloc_sarray((j_common_ptr)cinfo, JPOOL_IMAGE, cinfo->image_width * 4, 1);
    jpeg_start_decompress(cinfo);
    while (cinfo->output_scanline < cinfo->output_height) {
        uint8_t *row = rgb + (size_t)cinfo->output_scanline * width * 3;

        if (cinfo->num_components == 4) {
            jpeg_read_scanlines(cinfo, line, 1);
            cmyk_row(line[0], row, width);
        } else {
            jpeg_read_scanlines(cinfo, &row, 1);
        }
    }
    jpeg_finish_decompress(
        cinfo); /* reads on to the end marker: a file cut off behind its last row is cut off all the same */
    jpeg_destroy_decompress(cinfo);
    return AGGLO_OK;
}
