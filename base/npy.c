/* .npy: the writer of version 1.0, and the reader of headers: a Python dict literal with exactly the keys descr, fortran_order and shape,
 * in any order, read by a cursor that never passes the end of the header. Format: numpy.lib.format.
 */
#include "base/npy.h"

#include <stdio.h>
#include <string.h>

enum { MAGIC_BYTES = 6, MAX_TYPE = 32 };

static const uint8_t magic[] = {0x93, 'N', 'U', 'M', 'P', 'Y', 1, 0};

static const char *const descrs[] = {
    [AGGLO_F32] = "<f4", [AGGLO_F16] = "<f2", [AGGLO_BF16] = "<u2", [AGGLO_F64] = "<f8", [AGGLO_U8] = "|u1",
    [AGGLO_I8] = "|i1",  [AGGLO_U16] = "<u2", [AGGLO_I16] = "<i2",  [AGGLO_U32] = "<u4", [AGGLO_I32] = "<i4",
    [AGGLO_U64] = "<u8", [AGGLO_I64] = "<i8", [AGGLO_BOOL] = "|b1",
};

static const char *descr(agglo_dtype dtype)
{
    AGGLO_ASSERT((size_t)dtype < AGGLO_COUNT(descrs) && descrs[dtype] != NULL);
    return descrs[dtype];
}

agglo_status agglo_npy_write(const char *path, agglo_dtype dtype, int rank, const int64_t *shape, const void *data,
                             agglo_err *err)
{
    enum { PREFIX = sizeof magic + 2, MAX_RANK = AGGLO_NPY_MAX_RANK, ALIGN = 64 };
    size_t n_bytes = agglo_dtype_size(dtype), n_dims = 0, n_text, n_padded;
    char dims[MAX_RANK * 22 + 1] = "", text[ALIGN * 8];
    uint8_t prefix[PREFIX];
    agglo_new_file *file;

    AGGLO_ASSERT(rank >= 0 && rank <= MAX_RANK);
    for (int i = 0; i < rank; i++) { /* Python's tuple: (), (5,), (5, 6) */
        const char *behind = rank == 1 ? "," : i + 1 < rank ? ", " : "";

        n_dims += (size_t)snprintf(dims + n_dims, sizeof dims - n_dims, "%lld%s", (long long)shape[i], behind);
        AGGLO_ASSERT(shape[i] >= 0 && agglo_size_mul(n_bytes, (size_t)shape[i], &n_bytes));
    }
    n_text = (size_t)snprintf(text, sizeof text, "{'descr': '%s', 'fortran_order': False, 'shape': (%s), }",
                              descr(dtype), dims);
    /* spaces and a newline, so that the data starts at a multiple of 64 */
    n_padded = (PREFIX + n_text + 1 + ALIGN - 1) / ALIGN * ALIGN - PREFIX;
    AGGLO_ASSERT(n_padded <= sizeof text);
    memset(text + n_text, ' ', n_padded - n_text);
    text[n_padded - 1] = '\n';
    memcpy(prefix, magic, sizeof magic);
    agglo_put_le16(prefix + sizeof magic, (uint16_t)n_padded);
    if (agglo_new_file_open(&file, path, NULL, err) != AGGLO_OK) {
        return err->status;
    }
    if (agglo_new_file_write(file, prefix, PREFIX, err) != AGGLO_OK ||
        agglo_new_file_write(file, text, n_padded, err) != AGGLO_OK ||
        agglo_new_file_write(file, data, n_bytes, err) != AGGLO_OK) {
        agglo_new_file_abort(file);
        return err->status;
    }
    return agglo_new_file_commit(file, err);
}

/* ---- reading ---- */

typedef struct cursor {
    const uint8_t *at, *end;
} cursor;

static agglo_status bad_header(agglo_err *err, const char *what)
{
    return agglo_fail(err, AGGLO_E_DATA, "the .npy header is damaged: %s", what);
}

static void skip_blanks(cursor *c)
{
    while (c->at < c->end && (*c->at == ' ' || (*c->at >= '\t' && *c->at <= '\r'))) {
        c->at++;
    }
}

/* Is this character next, behind blanks? Then go behind it. */
static bool take(cursor *c, char wanted)
{
    skip_blanks(c);
    if (c->at == c->end || *c->at != (uint8_t)wanted) {
        return false;
    }
    c->at++;
    return true;
}

/* A text in either kind of quotes; what does not fit is left off, which no text that is compared is long enough for. */
static bool take_text(cursor *c, char out[MAX_TYPE])
{
    size_t n = 0;
    uint8_t quote;

    skip_blanks(c);
    if (c->at == c->end || (*c->at != '\'' && *c->at != '"')) {
        return false;
    }
    quote = *c->at++;
    while (c->at < c->end && *c->at != quote) {
        if (*c->at == '\\') { /* only names of fields have these, and names are not kept */
            c->at++;
            if (c->at == c->end) {
                return false;
            }
        }
        if (*c->at < ' ') {
            return false;
        }
        if (n < MAX_TYPE - 1) {
            out[n++] = (char)*c->at;
        }
        c->at++;
    }
    out[n] = 0;
    if (c->at == c->end) {
        return false;
    }
    c->at++;
    return true;
}

static bool take_word(cursor *c, const char *word)
{
    size_t n = strlen(word);

    skip_blanks(c);
    if ((size_t)(c->end - c->at) < n || memcmp(c->at, word, n) != 0) {
        return false;
    }
    c->at += n;
    return true;
}

static bool take_number(cursor *c, int64_t *out)
{
    int64_t value = 0;

    skip_blanks(c);
    if (c->at == c->end || *c->at < '0' || *c->at > '9') {
        return false;
    }
    while (c->at < c->end && *c->at >= '0' && *c->at <= '9') {
        if (__builtin_mul_overflow(value, 10, &value) || __builtin_add_overflow(value, *c->at - '0', &value)) {
            return false;
        }
        c->at++;
    }
    *out = value;
    return true;
}

/* '<f4', '|u1', '=i8' (ours is little-endian), '>b1' (one byte has no order). */
static agglo_status parse_type(const char *text, agglo_dtype *out, agglo_err *err)
{
    if (text[0] != 0 && strchr("<>=|", text[0]) != NULL) {
        for (size_t k = 0; k < AGGLO_COUNT(descrs); k++) {
            bool one_byte = agglo_dtype_size((agglo_dtype)k) == 1;

            if (k != AGGLO_BF16 && strcmp(text + 1, descrs[k] + 1) == 0 &&
                (one_byte || text[0] == '<' || text[0] == '=')) {
                *out = (agglo_dtype)k;
                return AGGLO_OK;
            }
        }
    }
    return agglo_fail(err, AGGLO_E_UNSUPPORTED, "the .npy holds elements of type '%s'", text);
}

/* [('f0', '<u8'), ('f1', '<u8')] behind its bracket. */
static agglo_status parse_fields(cursor *c, agglo_npy_header *out, agglo_err *err)
{
    char text[MAX_TYPE];

    while (!take(c, ']')) {
        if (out->n_fields == AGGLO_NPY_MAX_FIELDS) {
            return agglo_fail(err, AGGLO_E_UNSUPPORTED, "the .npy has more than %d fields", AGGLO_NPY_MAX_FIELDS);
        }
        if (!take(c, '(') || !take_text(c, text) || !take(c, ',')) {
            return bad_header(err, "a field without name or type");
        }
        if (!take_text(c, text)) { /* a title, or fields within fields */
            return agglo_fail(err, AGGLO_E_UNSUPPORTED, "the .npy has fields that are no plain numbers");
        }
        if (parse_type(text, &out->fields[out->n_fields], err) != AGGLO_OK) {
            return err->status;
        }
        out->item_bytes += agglo_dtype_size(out->fields[out->n_fields]);
        out->n_fields++;
        take(c, ',');
        if (!take(c, ')')) { /* a third part is the shape of a field */
            return agglo_fail(err, AGGLO_E_UNSUPPORTED, "the .npy has fields that are no plain numbers");
        }
        if (!take(c, ',')) {
            if (take(c, ']')) {
                break;
            }
            return bad_header(err, "the list of fields does not end");
        }
    }
    return out->n_fields > 0 ? AGGLO_OK : bad_header(err, "no fields");
}

static agglo_status parse_descr(cursor *c, agglo_npy_header *out, agglo_err *err)
{
    char text[MAX_TYPE];

    if (take(c, '[')) {
        out->dtype = AGGLO_DTYPE_OTHER;
        return parse_fields(c, out, err);
    }
    if (!take_text(c, text)) {
        return bad_header(err, "no type");
    }
    if (parse_type(text, &out->dtype, err) != AGGLO_OK) {
        return err->status;
    }
    out->item_bytes = agglo_dtype_size(out->dtype);
    return AGGLO_OK;
}

/* A tuple: (), (5,), (5, 6), (5, 6,). */
static agglo_status parse_shape(cursor *c, agglo_npy_header *out, agglo_err *err)
{
    bool comma = true;

    if (!take(c, '(')) {
        return bad_header(err, "the shape is no tuple");
    }
    while (!take(c, ')')) {
        if (!comma) {
            return bad_header(err, "the shape does not end");
        }
        if (out->rank == AGGLO_NPY_MAX_RANK) {
            return agglo_fail(err, AGGLO_E_UNSUPPORTED, "the .npy has more than %d dimensions", AGGLO_NPY_MAX_RANK);
        }
        if (!take_number(c, &out->shape[out->rank])) {
            return bad_header(err, "the shape holds something else than sizes");
        }
        out->rank++;
        comma = take(c, ',');
    }
    return out->rank == 1 && !comma ? bad_header(err, "the shape is no tuple") : AGGLO_OK;
}

static agglo_status count_items(agglo_npy_header *out, agglo_err *err)
{
    bool fits = true;

    out->n_items = 1;
    for (int i = 0; i < out->rank; i++) {
        if (out->shape[i] == 0) { /* nothing, however large the rest */
            out->n_items = 0;
            out->n_data_bytes = 0;
            return AGGLO_OK;
        }
        fits = fits && !__builtin_mul_overflow(out->n_items, (uint64_t)out->shape[i], &out->n_items);
    }
    fits = fits && !__builtin_mul_overflow(out->n_items, (uint64_t)out->item_bytes, &out->n_data_bytes) &&
           out->n_data_bytes <= INT64_MAX;
    return fits ? AGGLO_OK : bad_header(err, "more elements than can be counted");
}

bool agglo_npy_is(agglo_bytes bytes)
{
    return bytes.size >= MAGIC_BYTES && memcmp(bytes.data, magic, MAGIC_BYTES) == 0;
}

agglo_status agglo_npy_header_size(agglo_bytes bytes, size_t *n_header_bytes, agglo_err *err)
{
    uint64_t n;

    if (!agglo_npy_is(bytes)) {
        return agglo_fail(err, AGGLO_E_DATA, "not a .npy file");
    }
    if (bytes.size < AGGLO_NPY_PREFIX) { /* the shortest header is longer */
        return agglo_fail(err, AGGLO_E_DATA, "the .npy file ends within its header");
    }
    if (bytes.data[6] < 1 || bytes.data[6] > 3) {
        return agglo_fail(err, AGGLO_E_UNSUPPORTED, ".npy version %u, expected 1, 2 or 3", bytes.data[6]);
    }
    n = bytes.data[6] == 1 ? 10u + agglo_le16(bytes.data + 8) : 12 + (uint64_t)agglo_le32(bytes.data + 8);
    if (n > AGGLO_NPY_HEADER_MAX) {
        return agglo_fail(err, AGGLO_E_DATA, "the .npy header has %llu bytes, at most %d are taken",
                          (unsigned long long)n, AGGLO_NPY_HEADER_MAX);
    }
    *n_header_bytes = (size_t)n;
    return AGGLO_OK;
}

agglo_status agglo_npy_parse(agglo_bytes bytes, agglo_npy_header *out, agglo_err *err)
{
    bool has_descr = false, has_order = false, has_shape = false, fortran = false, comma = true;
    char key[MAX_TYPE];
    cursor c;

    *out = (agglo_npy_header){0};
    if (agglo_npy_header_size(bytes, &out->n_header_bytes, err) != AGGLO_OK) {
        return err->status;
    }
    if (bytes.size < out->n_header_bytes) {
        return agglo_fail(err, AGGLO_E_DATA, "the .npy file ends within its header");
    }
    c = (cursor){bytes.data + (bytes.data[6] == 1 ? 10 : 12), bytes.data + out->n_header_bytes};
    if (c.at > c.end || !take(&c, '{')) {
        return bad_header(err, "it is no dictionary");
    }
    while (!take(&c, '}')) {
        bool *seen = NULL;

        if (!comma || !take_text(&c, key) || !take(&c, ':')) {
            return bad_header(err, "a key was expected");
        }
        seen = strcmp(key, "descr") == 0           ? &has_descr
               : strcmp(key, "fortran_order") == 0 ? &has_order
               : strcmp(key, "shape") == 0         ? &has_shape
                                                   : NULL;
        if (seen == NULL || *seen) {
            return bad_header(err, seen == NULL ? "an unknown key" : "a key stands there twice");
        }
        *seen = true;
        if (seen == &has_descr) {
            parse_descr(&c, out, err);
        } else if (seen == &has_shape) {
            parse_shape(&c, out, err);
        } else if (take_word(&c, "True")) {
            fortran = true;
        } else if (!take_word(&c, "False")) {
            bad_header(err, "fortran_order is neither True nor False");
        }
        if (err->status != AGGLO_OK) {
            return err->status;
        }
        comma = take(&c, ',');
    }
    skip_blanks(&c);
    if (c.at != c.end || !has_descr || !has_order || !has_shape) {
        return bad_header(err, c.at != c.end ? "something follows it" : "a key is missing");
    }
    if (fortran && out->rank > 1) {
        return agglo_fail(err, AGGLO_E_UNSUPPORTED, "the .npy is in Fortran order, expected C order");
    }
    return count_items(out, err);
}
