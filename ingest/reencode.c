/* The resizer and libjpeg's compressor behind one call. */
#include "ingest/reencode.h"

#include <setjmp.h>
#include <stdio.h>

#include <jpeglib.h>

#include <jerror.h>

#include "ingest/resize.h"

enum { FIRST_ROOM = 1 << 16 };

struct agglo_reencoder {
    agglo_resizer *resizer;
    uint8_t *pixels, *jpeg;
    size_t room, jpeg_room;
};

typedef struct encode_session {
    struct jpeg_compress_struct cinfo;
    struct jpeg_destination_mgr destination;
    agglo_reencoder *reencoder; /* whose buffer grows */
    struct jpeg_error_mgr errors;
    char text[JMSG_LENGTH_MAX];
    agglo_status status;
    jmp_buf leave;
} encode_session;

agglo_status agglo_reencoder_new(agglo_reencoder **out, agglo_err *err)
{
    agglo_reencoder *r = agglo_alloc(1, sizeof *r, err);

    *out = NULL;
    if (r == NULL || agglo_resizer_new(&r->resizer, err) != AGGLO_OK) {
        agglo_reencoder_free(r);
        return err->status;
    }
    *out = r;
    return AGGLO_OK;
}

void agglo_reencoder_free(agglo_reencoder *reencoder)
{
    if (reencoder != NULL) {
        agglo_resizer_free(reencoder->resizer);
        agglo_free(reencoder->pixels);
        agglo_free(reencoder->jpeg);
        agglo_free(reencoder);
    }
}

static void leave(j_common_ptr cinfo)
{
    encode_session *session = cinfo->client_data;

    cinfo->err->format_message(cinfo, session->text);
    session->status = cinfo->err->msg_code == JERR_OUT_OF_MEMORY ? AGGLO_E_MEMORY : AGGLO_E_UNSUPPORTED;
    longjmp(session->leave, 1);
}

/* ---- libjpeg's destination: the re-encoder's buffer, doubled when it is full (libjpeg's own loses it when encoding fails) ---- */

static void start_output(j_compress_ptr cinfo)
{
    encode_session *session = cinfo->client_data;

    session->destination.next_output_byte = session->reencoder->jpeg;
    session->destination.free_in_buffer = session->reencoder->jpeg_room;
}

static boolean grow_output(j_compress_ptr cinfo) /* all of the buffer is filled when it is called */
{
    encode_session *session = cinfo->client_data;
    agglo_reencoder *r = session->reencoder;
    size_t n = r->jpeg_room, room = n == 0 ? FIRST_ROOM : n * 2;
    agglo_err err = {0};
    uint8_t *grown = agglo_realloc(r->jpeg, n, room, &err);

    if (grown == NULL) {
        snprintf(session->text, sizeof session->text, "out of memory");
        session->status = AGGLO_E_MEMORY;
        longjmp(session->leave, 1);
    }
    r->jpeg = grown;
    r->jpeg_room = room;
    session->destination.next_output_byte = grown + n;
    session->destination.free_in_buffer = room - n;
    return TRUE;
}

static void end_output(j_compress_ptr cinfo)
{
    (void)cinfo;
}

static agglo_status encode(agglo_reencoder *r, const uint8_t *rgb, int width, int height, size_t *n_jpeg,
                           agglo_err *err)
{
    encode_session session = {.reencoder = r};

    session.cinfo.err = jpeg_std_error(&session.errors);
    session.errors.error_exit = leave;
    session.cinfo.client_data = &session;
    if (setjmp(session.leave) != 0) {
        jpeg_destroy_compress(&session.cinfo);
        return agglo_fail(err, session.status, "cannot re-encode: %s", session.text);
    }
    jpeg_create_compress(&session.cinfo);
    session.destination.init_destination = start_output;
    session.destination.empty_output_buffer = grow_output;
    session.destination.term_destination = end_output;
    session.cinfo.dest = &session.destination;
    if (r->jpeg_room == 0) { /* libjpeg wants room before it asks for more */
        grow_output(&session.cinfo);
    }
    session.cinfo.image_width = (JDIMENSION)width;
    session.cinfo.image_height = (JDIMENSION)height;
    session.cinfo.input_components = 3;
    session.cinfo.in_color_space = JCS_RGB;
    jpeg_set_defaults(&session.cinfo);
    jpeg_set_quality(&session.cinfo, AGGLO_REENCODE_QUALITY, TRUE);
    session.cinfo.dct_method = JDCT_ISLOW;
    jpeg_start_compress(&session.cinfo, TRUE);
    while (session.cinfo.next_scanline < session.cinfo.image_height) {
        JSAMPROW row = (JSAMPROW)(uintptr_t)(rgb + (size_t)session.cinfo.next_scanline * (size_t)width * 3);

        jpeg_write_scanlines(&session.cinfo, &row, 1);
    }
    jpeg_finish_compress(&session.cinfo);
    *n_jpeg = (size_t)(session.destination.next_output_byte - r->jpeg);
    jpeg_destroy_compress(&session.cinfo);
    return AGGLO_OK;
}

static int scaled(int side, int longest, int max_side)
{
    int64_t n = ((int64_t)side * max_side * 2 + longest) / (2 * (int64_t)longest);

    return n < 1 ? 1 : (int)n;
}

agglo_status agglo_reencode(agglo_reencoder *r, const agglo_image *image, int max_side, agglo_bytes *encoded,
                            int *width, int *height, agglo_err *err)
{
    const int longest = image->width > image->height ? image->width : image->height;
    const size_t stride = (size_t)image->width * 3;
    const agglo_resize_source source = {
        .rgb = image->rgb,
        .width = image->width,
        .height = image->height,
        .stride = stride,
        .readable = stride * (size_t)image->height,
    };
    size_t n_bytes, n_jpeg = 0;

    AGGLO_ASSERT(max_side >= 1 && max_side <= JPEG_MAX_DIMENSION);
    *width = scaled(image->width, longest, max_side);
    *height = scaled(image->height, longest, max_side);
    n_bytes = (size_t)*width * (size_t)*height * 3;
    if (r->room < n_bytes) {
        agglo_free(r->pixels);
        r->room = 0;
        r->pixels = agglo_alloc(n_bytes, 1, err);
        if (r->pixels == NULL) {
            return err->status;
        }
        r->room = n_bytes;
    }
    if (agglo_resize(r->resizer, &source, AGGLO_BICUBIC, *width, *height, (agglo_resize_window){0, 0, *width, *height},
                     r->pixels, (size_t)*width * 3, err) != AGGLO_OK ||
        encode(r, r->pixels, *width, *height, &n_jpeg, err) != AGGLO_OK) {
        return err->status;
    }
    *encoded = (agglo_bytes){r->jpeg, n_jpeg};
    return AGGLO_OK;
}
