/* The streaming writer of safetensors: data in one temporary file, the header's text in another, joined at the end. */
#include <stdio.h>
#include <string.h>

#include "base/safetensors_impl.h"

enum {
    ALIGN = 4096, /* of the data in the file: what a file system can move by */
    ENTRY_BYTES =
        280 /* of an entry beside its name, at most: the longest dtype, 8 extents and 2 offsets of 20 digits */
};

struct agglo_st_stream {
    char *path;
    agglo_new_file *data, *header;
    bool has_meta, has_tensor;
};

agglo_status agglo_st_stream_open(agglo_st_stream **out, const char *path, agglo_err *err)
{
    static const uint8_t start[AGGLO_ST_PREFIX + 1] = {0, 0, 0, 0, 0, 0, 0, 0, '{'};
    agglo_st_stream *s = agglo_alloc(1, sizeof *s, err);

    *out = NULL;
    if (s == NULL || (s->path = agglo_strdup(path, err)) == NULL ||
        agglo_new_file_open(&s->data, path, NULL, err) != AGGLO_OK ||
        agglo_new_file_open(&s->header, path, NULL, err) != AGGLO_OK ||
        agglo_new_file_write(s->header, start, sizeof start, err) != AGGLO_OK) {
        agglo_st_stream_abort(s);
        return err->status;
    }
    *out = s;
    return AGGLO_OK;
}

static agglo_status put(agglo_st_stream *s, const char *text, size_t n, agglo_err *err)
{
    return agglo_new_file_write(s->header, text, n, err);
}

/* A JSON string, quotes included. */
static agglo_status put_string(agglo_st_stream *s, const char *text, agglo_err *err)
{
    size_t n = strlen(text), used = 0;
    char *out = agglo_alloc(6 * n + 2, 1, err);

    if (out == NULL) {
        return err->status;
    }
    out[used++] = '"';
    for (const char *c = text; *c != '\0'; c++) {
        if ((unsigned char)*c < 0x20) {
            used += (size_t)snprintf(out + used, 7, "\\u%04x", (unsigned)*c);
        } else {
            if (*c == '"' || *c == '\\') {
                out[used++] = '\\';
            }
            out[used++] = *c;
        }
    }
    out[used++] = '"';
    put(s, out, used, err);
    agglo_free(out);
    return err->status;
}

agglo_status agglo_st_stream_meta(agglo_st_stream *s, const char *key, const char *value, agglo_err *err)
{
    const char *before = s->has_meta ? "," : "\"__metadata__\":{";

    AGGLO_ASSERT(!s->has_tensor);
    if (agglo_st_check_text(key, err) != AGGLO_OK || agglo_st_check_text(value, err) != AGGLO_OK) {
        return agglo_at(err, "__metadata__");
    }
    if (put(s, before, strlen(before), err) == AGGLO_OK && put_string(s, key, err) == AGGLO_OK &&
        put(s, ":", 1, err) == AGGLO_OK) {
        put_string(s, value, err);
    }
    s->has_meta = true;
    return err->status;
}

bool agglo_st_stream_fits(const agglo_st_stream *s, size_t n_names, size_t n_bytes)
{
    /* escapes may make a name six times as long; padding and the end take a block */
    uint64_t header = agglo_new_file_size(s->header) - AGGLO_ST_PREFIX, most = AGGLO_ST_MAX_HEADER - ALIGN - 2;

    return header <= most && n_names <= most / ENTRY_BYTES && n_bytes <= most / 6 &&
           n_names * ENTRY_BYTES + 6 * n_bytes <= most - header;
}

agglo_status agglo_st_stream_add(agglo_st_stream *s, const char *name, agglo_dtype dtype, int rank,
                                 const int64_t *shape, const void *data, agglo_err *err)
{
    const char *before = s->has_tensor ? "," : s->has_meta ? "}," : "";
    uint64_t begin = agglo_new_file_size(s->data);
    size_t n_bytes = agglo_dtype_size(dtype), used;
    char entry[ENTRY_BYTES];

    AGGLO_ASSERT(rank >= 0 && rank <= AGGLO_ST_MAX_RANK && n_bytes > 0 && strcmp(name, "__metadata__") != 0);
    if (agglo_st_check_text(name, err) != AGGLO_OK) {
        return agglo_at(err, "tensor");
    }
    used = (size_t)snprintf(entry, sizeof entry, ":{\"dtype\":\"%s\",\"shape\":[", agglo_st_dtype_text(dtype));
    for (int i = 0; i < rank; i++) {
        AGGLO_ASSERT(shape[i] >= 0 && agglo_size_mul(n_bytes, (size_t)shape[i], &n_bytes));
        used += (size_t)snprintf(entry + used, sizeof entry - used, "%s%lld", i > 0 ? "," : "", (long long)shape[i]);
    }
    used += (size_t)snprintf(entry + used, sizeof entry - used, "],\"data_offsets\":[%llu,%llu]}",
                             (unsigned long long)begin, (unsigned long long)(begin + n_bytes));
    AGGLO_ASSERT(used < sizeof entry);
    s->has_tensor = true;
    if (put(s, before, strlen(before), err) == AGGLO_OK && put_string(s, name, err) == AGGLO_OK &&
        put(s, entry, used, err) == AGGLO_OK) {
        agglo_new_file_write(s->data, data, n_bytes, err);
    }
    return err->status;
}

uint64_t agglo_st_stream_size(const agglo_st_stream *s)
{
    return agglo_new_file_size(s->data) + (s->header != NULL ? agglo_new_file_size(s->header) : 0);
}

static agglo_status finish_header(agglo_st_stream *s, agglo_err *err)
{
    const char *end = s->has_meta && !s->has_tensor ? "}}" : "}";
    char spaces[ALIGN];
    uint8_t prefix[AGGLO_ST_PREFIX];
    uint64_t size;

    memset(spaces, ' ', sizeof spaces);
    if (put(s, end, strlen(end), err) != AGGLO_OK ||
        put(s, spaces, (ALIGN - agglo_new_file_size(s->header) % ALIGN) % ALIGN, err) != AGGLO_OK) {
        return err->status;
    }
    size = agglo_new_file_size(s->header) - AGGLO_ST_PREFIX;
    AGGLO_ASSERT(size <= AGGLO_ST_MAX_HEADER);
    agglo_put_le64(prefix, size);
    return agglo_new_file_rewrite(s->header, 0, prefix, sizeof prefix, err);
}

static agglo_status cannot_write(const agglo_st_stream *s, agglo_err *err)
{
    return agglo_doing(err, "cannot write safetensors file %s", s->path);
}

agglo_status agglo_st_stream_seal(agglo_st_stream *s, agglo_err *err)
{
    if (s->header == NULL) {
        return AGGLO_OK;
    }
    if (finish_header(s, err) != AGGLO_OK || agglo_new_file_prepend(s->data, s->header, err) != AGGLO_OK ||
        agglo_new_file_seal(s->data, err) != AGGLO_OK) {
        return cannot_write(s, err);
    }
    agglo_new_file_abort(s->header);
    s->header = NULL;
    return AGGLO_OK;
}

agglo_status agglo_st_stream_commit(agglo_st_stream *s, agglo_err *err)
{
    if (agglo_st_stream_seal(s, err) == AGGLO_OK) {
        agglo_new_file *data = s->data;

        s->data = NULL;
        if (agglo_new_file_commit(data, err) != AGGLO_OK) {
            cannot_write(s, err);
        }
    }
    agglo_st_stream_abort(s);
    return err->status;
}

void agglo_st_stream_abort(agglo_st_stream *s)
{
    if (s != NULL) {
        agglo_new_file_abort(s->header);
        agglo_new_file_abort(s->data);
        agglo_free(s->path);
        agglo_free(s);
    }
}
