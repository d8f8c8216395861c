/* Pictures out, for people to look at: 8-bit RGB PNG by libspng, through a file that appears when it is complete. */
#include "ingest/decode.h"

#include <spng.h>

#include "base/fs.h"

typedef struct sink {
    agglo_new_file *file;
    agglo_err *err;
} sink;

static int write_part(spng_ctx *png, void *user, void *data, size_t n_bytes)
{
    sink *out = user;

    (void)png;
    return agglo_new_file_write(out->file, data, n_bytes, out->err) == AGGLO_OK ? 0 : SPNG_IO_ERROR;
}

agglo_status agglo_png_write(const char *path, const uint8_t *rgb, int width, int height, agglo_err *err)
{
    struct spng_ihdr header = {.bit_depth = 8, .color_type = SPNG_COLOR_TYPE_TRUECOLOR};
    sink out = {.err = err};
    spng_ctx *png = NULL;
    size_t n_bytes;
    int code;

    AGGLO_ASSERT(width > 0 && height > 0);
    header.width = (uint32_t)width;
    header.height = (uint32_t)height;
    if (!agglo_size_mul((size_t)width, (size_t)height, &n_bytes) || !agglo_size_mul(n_bytes, 3, &n_bytes)) {
        agglo_fail(err, AGGLO_E_MEMORY, "%d x %d pixels are too many", width, height);
        agglo_at(err, "%s", path);
        goto fail;
    }
    if (agglo_new_file_open(&out.file, path, NULL, err) != AGGLO_OK) {
        goto fail;
    }
    png = spng_ctx_new(SPNG_CTX_ENCODER);
    code = png == NULL ? SPNG_EMEM : spng_set_png_stream(png, write_part, &out);
    code = code != 0 ? code : spng_set_ihdr(png, &header);
    code = code != 0 ? code : spng_encode_image(png, rgb, n_bytes, SPNG_FMT_PNG, SPNG_ENCODE_FINALIZE);
    spng_ctx_free(png);
    if (code != 0) {
        if (err->status == AGGLO_OK) { /* else the file said it better */
            agglo_fail(err, code == SPNG_EMEM ? AGGLO_E_MEMORY : AGGLO_E_IO, "%s", spng_strerror(code));
            agglo_at(err, "%s", path);
        }
        agglo_new_file_abort(out.file);
        goto fail;
    }
    if (agglo_new_file_commit(out.file, err) != AGGLO_OK) {
        goto fail;
    }
    return AGGLO_OK;
fail:
    return agglo_doing(err, "cannot write picture");
}
