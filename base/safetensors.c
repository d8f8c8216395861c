/* The safetensors reader, which believes nothing, and the writer.
 *
 *     u64 N, little-endian | N bytes of JSON, padded with spaces | data, tiled by the tensors without holes
 */
#include "base/safetensors_impl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"

enum { PREFIX = AGGLO_ST_PREFIX, MAX_HEADER = AGGLO_ST_MAX_HEADER, MAX_DEPTH = 3 };

static const char metadata_key[] = "__metadata__";

typedef struct dtype_row {
    const char *text;
    agglo_dtype dtype;
    size_t n_bits;
} dtype_row;

static const dtype_row dtype_table[] = {
    {"F32", AGGLO_F32, 32},
    {"F16", AGGLO_F16, 16},
    {"BF16", AGGLO_BF16, 16},
    {"F64", AGGLO_F64, 64},
    {"U8", AGGLO_U8, 8},
    {"I8", AGGLO_I8, 8},
    {"U16", AGGLO_U16, 16},
    {"I16", AGGLO_I16, 16},
    {"U32", AGGLO_U32, 32},
    {"I32", AGGLO_I32, 32},
    {"U64", AGGLO_U64, 64},
    {"I64", AGGLO_I64, 64},
    {"BOOL", AGGLO_BOOL, 8},
    {"C64", AGGLO_DTYPE_OTHER, 64},
    {"F8_E5M2", AGGLO_DTYPE_OTHER, 8},
    {"F8_E4M3", AGGLO_DTYPE_OTHER, 8},
    {"F8_E8M0", AGGLO_DTYPE_OTHER, 8},
    {"F8_E4M3FNUZ", AGGLO_DTYPE_OTHER, 8},
    {"F8_E5M2FNUZ", AGGLO_DTYPE_OTHER, 8},
    {"F6_E2M3", AGGLO_DTYPE_OTHER, 6},
    {"F6_E3M2", AGGLO_DTYPE_OTHER, 6},
    {"F4", AGGLO_DTYPE_OTHER, 4},
};

struct agglo_safetensors {
    char *path;
    agglo_mapping mapping; /* empty over borrowed bytes */
    agglo_bytes bytes;
    json_t *header; /* owns the names, dtype texts and metadata */
    json_t *meta;   /* borrowed from header, or NULL */
    agglo_st_tensor *tensors;
    size_t n_tensors;
    bool hashed;
    agglo_sha256 sha256;
};

/* ---- reading ---- */

/* What a JSON parser would let through and the format does not: a first byte that is not '{', nesting deeper than a shape, a sign
 * on a number (all of them count something), and bytes other than spaces behind the object. */
static agglo_status check_header_text(const char *text, size_t n, agglo_err *err)
{
    bool in_string = false;
    int depth = 0;

    if (n == 0 || text[0] != '{') {
        return agglo_fail(err, AGGLO_E_DATA, "the header does not start with '{'");
    }
    for (size_t i = 0; i < n; i++) {
        char c = text[i];

        if (in_string) {
            if (c == '\\') {
                i++;
            } else if (c == '"') {
                in_string = false;
            }
        } else if (i > 0 && depth == 0) {
            if (c != ' ') {
                return agglo_fail(err, AGGLO_E_DATA, "byte %zu: the header is padded with something else than spaces",
                                  i);
            }
        } else if (c == '"') {
            in_string = true;
        } else if (c == '{' || c == '[') {
            if (++depth > MAX_DEPTH) {
                return agglo_fail(err, AGGLO_E_DATA, "byte %zu: the header is nested too deeply", i);
            }
        } else if (c == '}' || c == ']') {
            depth--;
        } else if (c == '-') {
            return agglo_fail(err, AGGLO_E_DATA, "byte %zu: the header holds a signed number", i);
        }
    }
    return AGGLO_OK;
}

static agglo_status read_tensor(const json_t *entry, agglo_bytes data, agglo_st_tensor *t, agglo_err *err)
{
    const json_t *shape, *offsets;
    const dtype_row *row = NULL;
    int64_t n_elements = 1;
    size_t n_bits;
    json_int_t begin, end;

    if (!json_is_object(entry)) {
        return agglo_fail(err, AGGLO_E_DATA, "its entry is not an object");
    }
    if (json_object_size(entry) != 3) {
        return agglo_fail(err, AGGLO_E_DATA, "its entry has %zu members, expected dtype, shape and data_offsets",
                          json_object_size(entry));
    }
    if (agglo_json_get_string(entry, "dtype", &t->dtype_text, err) != AGGLO_OK ||
        agglo_json_get_array(entry, "shape", &shape, err) != AGGLO_OK ||
        agglo_json_get_array(entry, "data_offsets", &offsets, err) != AGGLO_OK) {
        return err->status;
    }
    for (size_t i = 0; i < AGGLO_COUNT(dtype_table) && row == NULL; i++) {
        row = strcmp(dtype_table[i].text, t->dtype_text) == 0 ? &dtype_table[i] : NULL;
    }
    if (row == NULL) {
        return agglo_fail(err, AGGLO_E_DATA, "unknown dtype '%s'", t->dtype_text);
    }
    t->dtype = row->dtype;
    if (json_array_size(shape) > AGGLO_ST_MAX_RANK) {
        return agglo_fail(err, AGGLO_E_UNSUPPORTED, "%zu dimensions, at most %d are read", json_array_size(shape),
                          AGGLO_ST_MAX_RANK);
    }
    t->rank = (int)json_array_size(shape);
    for (int i = 0; i < t->rank; i++) {
        const json_t *side = json_array_get(shape, (size_t)i);

        if (!json_is_integer(side) || json_integer_value(side) < 0) {
            return agglo_fail(err, AGGLO_E_DATA, "side %d of its shape is not a whole number", i);
        }
        t->shape[i] = json_integer_value(side);
        if (__builtin_mul_overflow(n_elements, t->shape[i], &n_elements)) {
            return agglo_fail(err, AGGLO_E_DATA, "its shape has too many elements");
        }
    }
    t->n_elements = n_elements;
    if (!agglo_size_mul((size_t)n_elements, row->n_bits, &n_bits) || n_bits % 8 != 0) {
        return agglo_fail(err, AGGLO_E_DATA, "%lld elements of %s are not a whole number of bytes",
                          (long long)n_elements, row->text);
    }
    t->n_bytes = n_bits / 8;
    if (json_array_size(offsets) != 2 || !json_is_integer(json_array_get(offsets, 0)) ||
        !json_is_integer(json_array_get(offsets, 1))) {
        return agglo_fail(err, AGGLO_E_DATA, "data_offsets is not a pair of whole numbers");
    }
    begin = json_integer_value(json_array_get(offsets, 0));
    end = json_integer_value(json_array_get(offsets, 1));
    if (begin < 0 || end < begin || (uint64_t)end > data.size) {
        return agglo_fail(err, AGGLO_E_DATA, "data_offsets %lld to %lld do not lie in the %zu bytes of data",
                          (long long)begin, (long long)end, data.size);
    }
    if ((uint64_t)(end - begin) != t->n_bytes) {
        return agglo_fail(err, AGGLO_E_DATA, "data_offsets span %lld bytes, its shape needs %zu",
                          (long long)(end - begin), t->n_bytes);
    }
    t->data = data.data + begin;
    return AGGLO_OK;
}

static int by_place(const void *a, const void *b)
{
    const agglo_st_tensor *x = a, *y = b;

    if (x->data != y->data) {
        return x->data < y->data ? -1 : 1;
    }
    return (x->n_bytes > y->n_bytes) - (x->n_bytes < y->n_bytes);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const agglo_st_tensor *)a)->name, ((const agglo_st_tensor *)b)->name);
}

static agglo_status check_tiling(const agglo_safetensors *st, agglo_bytes data, agglo_err *err)
{
    const uint8_t *at = data.data;

    for (size_t i = 0; i < st->n_tensors; i++) {
        const agglo_st_tensor *t = &st->tensors[i];

        if (t->data != at) {
            agglo_fail(err, AGGLO_E_DATA, "its data starts at %td, the data before it ends at %td", t->data - data.data,
                       at - data.data);
            return agglo_at(err, "tensor '%s'", t->name);
        }
        at += t->n_bytes;
    }
    if (at != data.data + data.size) {
        return agglo_fail(err, AGGLO_E_DATA, "%td bytes behind the last tensor", data.data + data.size - at);
    }
    return AGGLO_OK;
}

static agglo_status read_header(agglo_safetensors *st, agglo_err *err)
{
    agglo_bytes bytes = st->bytes, data;
    const char *name, *text;
    json_t *value;
    uint64_t n;

    if (bytes.size < PREFIX) {
        return agglo_fail(err, AGGLO_E_DATA, "%zu bytes are too few for a safetensors file", bytes.size);
    }
    n = agglo_le64(bytes.data);
    if (n > MAX_HEADER || n > bytes.size - PREFIX) {
        return agglo_fail(err, AGGLO_E_DATA, "a header of %llu bytes in a file of %zu bytes (limit %d)",
                          (unsigned long long)n, bytes.size, MAX_HEADER);
    }
    text = (const char *)bytes.data + PREFIX;
    data = (agglo_bytes){bytes.data + PREFIX + n, bytes.size - PREFIX - (size_t)n};
    if (check_header_text(text, (size_t)n, err) != AGGLO_OK ||
        agglo_json_parse(text, (size_t)n, &st->header, err) != AGGLO_OK) {
        return agglo_at(err, "header");
    }
    st->tensors = agglo_alloc(json_object_size(st->header), sizeof *st->tensors, err);
    if (st->tensors == NULL) {
        return err->status;
    }
    json_object_foreach(st->header, name, value)
    {
        agglo_st_tensor *t = &st->tensors[st->n_tensors];

        if (strcmp(name, metadata_key) == 0) {
            const char *key;
            json_t *item;

            if (!json_is_object(value)) {
                return agglo_fail(err, AGGLO_E_DATA, "%s is not an object", metadata_key);
            }
            json_object_foreach(value, key, item)
            {
                if (!json_is_string(item)) {
                    return agglo_fail(err, AGGLO_E_DATA, "%s: '%s' is not a string", metadata_key, key);
                }
            }
            st->meta = value;
            continue;
        }
        t->name = name;
        if (read_tensor(value, data, t, err) != AGGLO_OK) {
            return agglo_at(err, "tensor '%s'", name);
        }
        st->n_tensors++;
    }
    if (st->n_tensors > 1) {
        qsort(st->tensors, st->n_tensors, sizeof *st->tensors, by_place);
    }
    if (check_tiling(st, data, err) != AGGLO_OK) {
        return err->status;
    }
    if (st->n_tensors > 1) {
        qsort(st->tensors, st->n_tensors, sizeof *st->tensors, by_name);
    }
    return AGGLO_OK;
}

agglo_status agglo_safetensors_parse(agglo_safetensors **out, agglo_bytes bytes, const char *name, agglo_err *err)
{
    agglo_safetensors *st = agglo_alloc(1, sizeof *st, err);

    *out = NULL;
    if (st == NULL) {
        goto fail;
    }
    st->bytes = bytes;
    st->path = agglo_strdup(name, err);
    if (st->path == NULL || read_header(st, err) != AGGLO_OK) {
        goto fail;
    }
    *out = st;
    return AGGLO_OK;
fail:
    agglo_safetensors_close(st);
    agglo_at(err, "%s", name);
    return agglo_doing(err, "cannot read safetensors file");
}

agglo_status agglo_safetensors_open(agglo_safetensors **out, const char *path, agglo_err *err)
{
    agglo_mapping mapping;

    *out = NULL;
    if (agglo_map_file(path, &mapping, err) != AGGLO_OK) {
        return agglo_doing(err, "cannot read safetensors file");
    }
    if (agglo_safetensors_parse(out, (agglo_bytes){mapping.data, mapping.size}, path, err) != AGGLO_OK) {
        agglo_unmap(&mapping);
        return err->status;
    }
    (*out)->mapping = mapping;
    return AGGLO_OK;
}

void agglo_safetensors_close(agglo_safetensors *st)
{
    if (st != NULL) {
        agglo_free(st->tensors);
        json_decref(st->header);
        agglo_unmap(&st->mapping);
        agglo_free(st->path);
        agglo_free(st);
    }
}

size_t agglo_safetensors_count(const agglo_safetensors *st)
{
    return st->n_tensors;
}

const agglo_st_tensor *agglo_safetensors_at(const agglo_safetensors *st, size_t i)
{
    AGGLO_ASSERT(i < st->n_tensors);
    return &st->tensors[i];
}

const agglo_st_tensor *agglo_safetensors_find(const agglo_safetensors *st, const char *name)
{
    agglo_st_tensor key = {.name = name};

    return st->n_tensors > 0 ? bsearch(&key, st->tensors, st->n_tensors, sizeof key, by_name) : NULL;
}

const char *agglo_safetensors_meta(const agglo_safetensors *st, const char *key)
{
    return json_string_value(json_object_get(st->meta, key));
}

bool agglo_safetensors_meta_at(const agglo_safetensors *st, size_t i, const char **key, const char **value)
{
    void *at = json_object_iter(st->meta);

    while (at != NULL && i-- > 0) {
        at = json_object_iter_next(st->meta, at);
    }
    if (at == NULL) {
        return false;
    }
    *key = json_object_iter_key(at);
    *value = json_string_value(json_object_iter_value(at));
    return true;
}

const char *agglo_safetensors_path(const agglo_safetensors *st)
{
    return st->path;
}

agglo_status agglo_safetensors_sha256(agglo_safetensors *st, agglo_sha256 *out, agglo_err *err)
{
    if (!st->hashed && agglo_sha256_of(st->bytes.data, st->bytes.size, &st->sha256, err) != AGGLO_OK) {
        return agglo_at(err, "%s", st->path);
    }
    st->hashed = true;
    *out = st->sha256;
    return AGGLO_OK;
}

/* ---- writing ---- */

typedef struct meta_pair {
    const char *key, *value;
} meta_pair;

struct agglo_st_writer {
    agglo_st_tensor *tensors;
    size_t n_tensors, tensor_capacity;
    meta_pair *meta;
    size_t n_meta, meta_capacity;
};

agglo_status agglo_st_writer_new(agglo_st_writer **out, agglo_err *err)
{
    *out = agglo_alloc(1, sizeof **out, err);
    return *out != NULL ? AGGLO_OK : err->status;
}

void agglo_st_writer_free(agglo_st_writer *writer)
{
    if (writer != NULL) {
        agglo_free(writer->tensors);
        agglo_free(writer->meta);
        agglo_free(writer);
    }
}

/* Room for one more behind `n` items; NULL when there is no memory, the old block then stands. */
static void *grow(void *items, size_t n, size_t *capacity, size_t size, agglo_err *err)
{
    size_t more = *capacity > 0 ? 2 * *capacity : 64;
    void *grown;

    if (n < *capacity) {
        return items;
    }
    grown = agglo_realloc(items, *capacity * size, more * size, err);
    if (grown != NULL) {
        *capacity = more;
    }
    return grown;
}

/* The header is UTF-8. With this known beforehand, jansson can fail for want of memory alone. */
agglo_status agglo_st_check_text(const char *text, agglo_err *err)
{
    for (const uint8_t *p = (const uint8_t *)text; *p != '\0';) {
        int n = agglo_utf8_length(p);

        if (n == 0) {
            agglo_fail(err, AGGLO_E_DATA, "the text is not UTF-8");
            return agglo_at(err, "'%s'", text);
        }
        p += n;
    }
    return AGGLO_OK;
}

const char *agglo_st_dtype_text(agglo_dtype dtype)
{
    size_t i = 0;

    AGGLO_ASSERT(dtype != AGGLO_DTYPE_OTHER);
    while (dtype_table[i].dtype != dtype) {
        i++;
    }
    return dtype_table[i].text;
}

agglo_status agglo_st_writer_meta(agglo_st_writer *writer, const char *key, const char *value, agglo_err *err)
{
    meta_pair *meta;

    if (agglo_st_check_text(key, err) != AGGLO_OK || agglo_st_check_text(value, err) != AGGLO_OK) {
        return agglo_at(err, "%s", metadata_key);
    }
    meta = grow(writer->meta, writer->n_meta, &writer->meta_capacity, sizeof *meta, err);
    if (meta == NULL) {
        return err->status;
    }
    writer->meta = meta;
    meta[writer->n_meta++] = (meta_pair){key, value};
    return AGGLO_OK;
}

agglo_status agglo_st_writer_add(agglo_st_writer *writer, const char *name, agglo_dtype dtype, int rank,
                                 const int64_t *shape, const void *data, agglo_err *err)
{
    agglo_st_tensor t = {.name = name, .dtype = dtype, .rank = rank, .n_elements = 1, .data = data};
    agglo_st_tensor *tensors;

    AGGLO_ASSERT(rank >= 0 && rank <= AGGLO_ST_MAX_RANK && agglo_dtype_size(dtype) > 0);
    if (strcmp(name, metadata_key) == 0) {
        return agglo_fail(err, AGGLO_E_DATA, "a tensor cannot be named %s", metadata_key);
    }
    for (int i = 0; i < rank; i++) {
        AGGLO_ASSERT(shape[i] >= 0 && !__builtin_mul_overflow(t.n_elements, shape[i], &t.n_elements));
        t.shape[i] = shape[i];
    }
    AGGLO_ASSERT(agglo_size_mul((size_t)t.n_elements, agglo_dtype_size(dtype), &t.n_bytes));
    t.dtype_text = agglo_st_dtype_text(dtype);
    if (agglo_st_check_text(name, err) != AGGLO_OK) {
        return agglo_at(err, "tensor");
    }
    tensors = grow(writer->tensors, writer->n_tensors, &writer->tensor_capacity, sizeof *tensors, err);
    if (tensors == NULL) {
        return err->status;
    }
    writer->tensors = tensors;
    tensors[writer->n_tensors++] = t;
    return AGGLO_OK;
}

static int by_width(const void *a, const void *b)
{
    const agglo_st_tensor *x = a, *y = b;
    size_t p = agglo_dtype_size(x->dtype), q = agglo_dtype_size(y->dtype);

    return p != q ? (p > q ? -1 : 1) : strcmp(x->name, y->name);
}

static int by_key(const void *a, const void *b)
{
    return strcmp(((const meta_pair *)a)->key, ((const meta_pair *)b)->key);
}

/* Put `value` (a new reference, NULL: no memory) under a key that is not there yet. */
static agglo_status put(json_t *object, const char *key, json_t *value, agglo_err *err)
{
    if (json_object_get(object, key) != NULL) {
        json_decref(value);
        agglo_fail(err, AGGLO_E_DATA, "the name comes twice");
        return agglo_at(err, "'%s'", key);
    }
    if (value == NULL || json_object_set_new_nocheck(object, key, value) != 0) {
        return agglo_fail(err, AGGLO_E_MEMORY, "out of memory for the header");
    }
    return AGGLO_OK;
}

/* A new reference, NULL: no memory. */
static json_t *header_entry(const agglo_st_tensor *t, size_t begin)
{
    json_t *entry = json_object(), *shape = json_array(), *offsets = json_array();
    bool failed = false;

    /* jansson takes a new value over also when the call fails, and accepts NULL everywhere */
    for (int i = 0; i < t->rank; i++) {
        failed |= json_array_append_new(shape, json_integer(t->shape[i])) != 0;
    }
    failed |= json_array_append_new(offsets, json_integer((json_int_t)begin)) != 0;
    failed |= json_array_append_new(offsets, json_integer((json_int_t)(begin + t->n_bytes))) != 0;
    failed |= json_object_set_new(entry, "dtype", json_string(t->dtype_text)) != 0;
    failed |= json_object_set_new(entry, "shape", shape) != 0;
    failed |= json_object_set_new(entry, "data_offsets", offsets) != 0;
    if (failed) {
        json_decref(entry);
        return NULL;
    }
    return entry;
}

static agglo_status make_header(agglo_st_writer *writer, json_t *header, agglo_err *err)
{
    size_t begin = 0;

    if (writer->n_meta > 0) {
        json_t *meta = json_object();

        if (put(header, metadata_key, meta, err) != AGGLO_OK) {
            return err->status;
        }
        qsort(writer->meta, writer->n_meta, sizeof *writer->meta, by_key);
        for (size_t i = 0; i < writer->n_meta; i++) {
            if (put(meta, writer->meta[i].key, json_string_nocheck(writer->meta[i].value), err) != AGGLO_OK) {
                return agglo_at(err, "%s", metadata_key);
            }
        }
    }
    if (writer->n_tensors > 1) {
        qsort(writer->tensors, writer->n_tensors, sizeof *writer->tensors, by_width);
    }
    for (size_t i = 0; i < writer->n_tensors; i++) {
        const agglo_st_tensor *t = &writer->tensors[i];

        if (put(header, t->name, header_entry(t, begin), err) != AGGLO_OK) {
            return agglo_at(err, "tensor");
        }
        begin += t->n_bytes;
    }
    return AGGLO_OK;
}

agglo_status agglo_st_writer_write(agglo_st_writer *writer, const char *path, agglo_err *err)
{
    static const char spaces[PREFIX] = "        ";
    json_t *header = json_object();
    agglo_new_file *file = NULL;
    uint8_t prefix[PREFIX];
    char *text = NULL;
    size_t n, pad;

    if (header == NULL) {
        agglo_fail(err, AGGLO_E_MEMORY, "out of memory for the header");
        goto done;
    }
    if (make_header(writer, header, err) != AGGLO_OK) {
        goto done;
    }
    text = agglo_json_line(header, err);
    if (text == NULL) {
        goto done;
    }
    n = strlen(text);
    pad = (PREFIX - n % PREFIX) % PREFIX;
    if (n + pad > MAX_HEADER) {
        agglo_fail(err, AGGLO_E_DATA, "the header would be larger than %d bytes", MAX_HEADER);
        goto done;
    }
    agglo_put_le64(prefix, n + pad);
    if (agglo_new_file_open(&file, path, NULL, err) != AGGLO_OK ||
        agglo_new_file_write(file, prefix, sizeof prefix, err) != AGGLO_OK ||
        agglo_new_file_write(file, text, n, err) != AGGLO_OK ||
        agglo_new_file_write(file, spaces, pad, err) != AGGLO_OK) {
        goto done;
    }
    for (size_t i = 0; i < writer->n_tensors; i++) {
        if (agglo_new_file_write(file, writer->tensors[i].data, writer->tensors[i].n_bytes, err) != AGGLO_OK) {
            goto done;
        }
    }
    agglo_new_file_commit(file, err);
    file = NULL;
done:
    agglo_new_file_abort(file);
    agglo_free(text);
    json_decref(header);
    if (err->status != AGGLO_OK) {
        agglo_doing(err, "cannot write safetensors file %s", path);
    }
    return err->status;
}
