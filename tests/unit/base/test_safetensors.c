/* The safetensors reader against every rule of the format, and the writer against the reader. */
#include <jansson.h>

#include "base/safetensors.h"
#include "tests/support/support.h"

/* A file in memory: prefix, header, n_data bytes that count up. Returns its size. */
static size_t make_file(unsigned char *out, const char *header, size_t n_data)
{
    size_t n = strlen(header);

    agglo_put_le64(out, n);
    memcpy(out + 8, header, n);
    for (size_t i = 0; i < n_data; i++) {
        out[8 + n + i] = (unsigned char)i;
    }
    return 8 + n + n_data;
}

static void a_written_out_file_is_read(void **state)
{
    static const char header[] = "{\"b\":{\"dtype\":\"F32\",\"shape\":[1,2],\"data_offsets\":[3,11]},\"__metadata__\":{"
                                 "\"z\":\"1\",\"format\":\"pt\"},"
                                 "\"a\\u00e9\\\"{\":{\"shape\":[3],\"data_offsets\":[0,3],\"dtype\":\"U8\"},"
                                 "\"none\":{\"dtype\":\"F8_E4M3\",\"shape\":[0,4],\"data_offsets\":[3,3]},"
                                 "\"one\":{\"dtype\":\"I16\",\"shape\":[],\"data_offsets\":[11,13]},"
                                 "\"six\":{\"dtype\":\"F6_E2M3\",\"shape\":[2,2],\"data_offsets\":[13,16]}}   ";
    const agglo_st_tensor *t;
    unsigned char file[1024];
    const char *key, *value;
    agglo_safetensors *st;
    agglo_err err = {0};
    size_t n = make_file(file, header, 16);

    (void)state;
    assert_ok(agglo_safetensors_parse(&st, (agglo_bytes){file, n}, "x", &err));
    assert_int_equal(agglo_safetensors_count(st), 5);
    assert_string_equal(agglo_safetensors_at(st, 0)->name, "a\xc3\xa9\"{"); /* by name */
    assert_string_equal(agglo_safetensors_at(st, 4)->name, "six");
    t = agglo_safetensors_find(st, "b");
    assert_non_null(t);
    assert_int_equal(t->dtype, AGGLO_F32);
    assert_int_equal(t->rank, 2);
    assert_int_equal(t->shape[1], 2);
    assert_int_equal(t->n_elements, 2);
    assert_int_equal(t->n_bytes, 8);
    assert_ptr_equal(t->data, file + n - 16 + 3); /* unaligned is fine */
    t = agglo_safetensors_find(st, "none");
    assert_int_equal(t->dtype, AGGLO_DTYPE_OTHER);
    assert_string_equal(t->dtype_text, "F8_E4M3");
    assert_int_equal(t->n_bytes, 0);
    t = agglo_safetensors_find(st, "one");
    assert_int_equal(t->rank, 0);
    assert_int_equal(t->n_elements, 1);
    assert_int_equal(agglo_safetensors_find(st, "six")->n_bytes, 3);
    assert_null(agglo_safetensors_find(st, "__metadata__"));
    assert_null(agglo_safetensors_find(st, "bb"));
    assert_string_equal(agglo_safetensors_meta(st, "format"), "pt");
    assert_null(agglo_safetensors_meta(st, "c"));
    assert_true(agglo_safetensors_meta_at(st, 0, &key, &value));
    assert_string_equal(key, "z");
    assert_true(agglo_safetensors_meta_at(st, 1, &key, &value));
    assert_string_equal(value, "pt");
    assert_false(agglo_safetensors_meta_at(st, 2, &key, &value));
    assert_string_equal(agglo_safetensors_path(st), "x");
    agglo_safetensors_close(st);
    agglo_safetensors_close(NULL);

    n = make_file(file, "{}", 0);
    assert_ok(agglo_safetensors_parse(&st, (agglo_bytes){file, n}, "x", &err));
    assert_int_equal(agglo_safetensors_count(st), 0);
    assert_null(agglo_safetensors_find(st, "a"));
    assert_false(agglo_safetensors_meta_at(st, 0, &key, &value));
    agglo_safetensors_close(st);
}

#define ENTRY(dtype, shape, begin, end)                                                                                \
    "{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" #begin "," #end "]}"
#define U8(begin, end) ENTRY("U8", "[4]", begin, end)

static void every_rule_is_kept(void **state)
{
    static const struct {
        const char *header;
        size_t n_data;
        const char *says;
    } cases[] = {
        {"", 0, "the header does not start with '{'"},
        {" {}", 0, "the header does not start with '{'"},
        {"[]", 0, "the header does not start with '{'"},
        {"{}\n", 0, "byte 2: the header is padded with something else than spaces"},
        {"{} {}", 0, "padded with something else than spaces"},
        {"{} \"", 0, "padded with something else than spaces"},
        {"{\"a\":", 0, "header"},
        {"{\"a\":\"\xff\"}", 0, "header"},
        {"{\"a\\u0000b\":" U8(0, 4) "}", 4, "header"},
        {"{\"a\":" U8(0, 4) ",\"a\":" U8(0, 4) "}", 4, "duplicate"},
        {"{\"a\":" U8(0, 4) ",\"\\u0061\":" U8(0, 4) "}", 4, "duplicate"},
        {"{\"a\":7}", 0, "tensor 'a'"},
        {"{\"a\":7}", 0, "its entry is not an object"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4]}}", 4, "its entry has 2 members"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4],\"more\":1}}", 4, "its entry has 4 members"},
        {"{\"a\":{\"type\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 4, "key 'dtype' is missing"},
        {"{\"a\":{\"dtype\":8,\"shape\":[4],\"data_offsets\":[0,4]}}", 4, "key 'dtype' is an integer"},
        {"{\"a\":" ENTRY("u8", "[4]", 0, 4) "}", 4, "unknown dtype 'u8'"},
        {"{\"a\":" ENTRY("F4", "[3]", 0, 1) "}", 1, "3 elements of F4 are not a whole number of bytes"},
        {"{\"a\":" ENTRY("U8", "4", 0, 4) "}", 4, "key 'shape' is an integer, expected a list"},
        {"{\"a\":" ENTRY("U8", "[-4]", 0, 4) "}", 4, "signed number"},
        {"{\"a\":" ENTRY("U8", "[4]", -1, 3) "}", 4, "signed number"},
        {"{\"a\":" ENTRY("U8", "[-0]", 0, 0) "}", 0, "signed number"},
        {"{\"a\":" ENTRY("U8", "[4.0]", 0, 4) "}", 4, "side 0 of its shape is not a whole number"},
        {"{\"a\":" ENTRY("U8", "[2,4e0]", 0, 8) "}", 8, "side 1 of its shape is not a whole number"},
        {"{\"a\":" ENTRY("U8", "[true]", 0, 1) "}", 1, "side 0 of its shape is not a whole number"},
        {"{\"a\":" ENTRY("U8", "[\"4\"]", 0, 4) "}", 4, "side 0 of its shape is not a whole number"},
        {"{\"a\":" ENTRY("U8", "[4294967296,4294967296]", 0, 4) "}", 4, "its shape has too many elements"},
        {"{\"a\":" ENTRY("U8", "[9223372036854775807,0,9223372036854775807]", 0, 0) "}", 0, NULL},
        {"{\"a\":" ENTRY("F64", "[1152921504606846976]", 0, 0) "}", 0, "not a whole number of bytes"},
        {"{\"a\":" ENTRY("U8", "[18446744073709551620]", 0, 4) "}", 4, "header"},
        {"{\"a\":" ENTRY("U8", "[1,1,1,1,1,1,1,1,4]", 0, 4) "}", 4, "9 dimensions, at most 8"},
        {"{\"a\":" ENTRY("U8", "[[4]]", 0, 4) "}", 4, "nested too deeply"},
        {"{\"a\":{\"b\":{\"c\":{}}}}", 0, "nested too deeply"},
        {"{\"a\":" ENTRY("U8", "[4]", 0, 4.0) "}", 4, "data_offsets is not a pair of whole numbers"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4,4]}}", 4, "data_offsets is not a pair"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[4]}}", 4, "data_offsets is not a pair"},
        {"{\"a\":" U8(0, 5) "}", 5, "data_offsets span 5 bytes, its shape needs 4"},
        {"{\"a\":" U8(1, 4) "}", 4, "data_offsets span 3 bytes, its shape needs 4"},
        {"{\"a\":" U8(4, 0) "}", 4, "data_offsets 4 to 0 do not lie in the 4 bytes of data"},
        {"{\"a\":" U8(1, 5) "}", 4, "data_offsets 1 to 5 do not lie in the 4 bytes of data"},
        {"{\"a\":" U8(9223372036854775804, 9223372036854775807) "}", 4, "do not lie in the 4 bytes"},
        {"{\"a\":" U8(1, 5) "}", 5, "its data starts at 1, the data before it ends at 0"},
        {"{\"a\":" U8(0, 4) ",\"b\":" U8(5, 9) "}", 9, "tensor 'b'"},
        {"{\"a\":" U8(0, 4) ",\"b\":" U8(5, 9) "}", 9, "its data starts at 5, the data before it ends at 4"},
        {"{\"a\":" U8(0, 4) ",\"b\":" U8(3, 7) "}", 7, "its data starts at 3, the data before it ends at 4"},
        {"{\"a\":" U8(0, 4) ",\"b\":" U8(0, 4) "}", 4, "the data before it ends at 4"},
        {"{\"a\":" U8(0, 4) "}", 6, "2 bytes behind the last tensor"},
        {"{}", 1, "1 bytes behind the last tensor"},
        {"{\"a\":" U8(0, 4) ",\"z\":" ENTRY("U8", "[0]", 2, 2) "}", 4, "its data starts at 2"},
        {"{\"__metadata__\":[]}", 0, "__metadata__ is not an object"},
        {"{\"__metadata__\":{\"k\":1}}", 0, "__metadata__: 'k' is not a string"},
        {"{\"__metadata__\":{\"k\":{\"l\":\"m\"}}}", 0, "__metadata__: 'k' is not a string"},
        {"{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}}", 0, "duplicate"},
        {"{\"__metadata__\":{},\"__metadata__\":{}}", 0, "duplicate"},
    };
    unsigned char file[1024];

    (void)state;
    for (size_t c = 0; c < AGGLO_COUNT(cases); c++) {
        agglo_bytes bytes = {file, make_file(file, cases[c].header, cases[c].n_data)};
        agglo_safetensors *st;
        agglo_status status;
        agglo_err err = {0};
        char line[1024];

        status = agglo_safetensors_parse(&st, bytes, "m.safetensors", &err);
        agglo_err_line(&err, line, sizeof line);
        if (cases[c].says == NULL) {
            agglo_safetensors_close(st);
            continue;
        }
        if (status == AGGLO_OK || st != NULL) {
            fail_msg("read: %s", cases[c].header);
        }
        assert_true(status == AGGLO_E_DATA || status == AGGLO_E_UNSUPPORTED);
        if (strstr(line, cases[c].says) == NULL || strstr(line, "cannot read safetensors file: ") != line ||
            strstr(line, "(m.safetensors") == NULL) {
            fail_msg("%s: \"%s\" does not say \"%s\"", cases[c].header, line, cases[c].says);
        }
    }
}

static void lying_lengths_are_refused(void **state)
{
    static const uint64_t lengths[] = {3, 100000000, 100000001, INT64_MAX, UINT64_MAX - 8, UINT64_MAX - 7, UINT64_MAX};
    unsigned char file[64];
    agglo_safetensors *st;
    agglo_err err = {0};

    (void)state;
    make_file(file, "{}", 0);
    for (size_t i = 0; i < AGGLO_COUNT(lengths); i++) {
        agglo_put_le64(file, lengths[i]);
        assert_fails(agglo_safetensors_parse(&st, (agglo_bytes){file, 10}, "x", &err), AGGLO_E_DATA, "a header of ");
    }
    for (size_t n = 0; n < 8; n++) {
        assert_fails(agglo_safetensors_parse(&st, (agglo_bytes){file, n}, "x", &err), AGGLO_E_DATA, "too few");
    }
    agglo_put_le64(file, 0);
    assert_fails(agglo_safetensors_parse(&st, (agglo_bytes){file, 8}, "x", &err), AGGLO_E_DATA, "does not start with");
}

/* ---- writing ---- */

static const char *const names[] = {"blocks.0.w",  "blocks.0.b", "a", "\xc3\xa9\xf0\x9f\x98\x80",
                                    "quo\"te\\\n", "zero",       "s", ""};
static const agglo_dtype dtypes[] = {AGGLO_F32, AGGLO_F16, AGGLO_BF16, AGGLO_F64, AGGLO_U8,  AGGLO_I8,  AGGLO_U16,
                                     AGGLO_I16, AGGLO_U32, AGGLO_I32,  AGGLO_U64, AGGLO_I64, AGGLO_BOOL};

typedef struct any_tensor {
    const char *name;
    agglo_dtype dtype;
    int rank;
    int64_t shape[AGGLO_ST_MAX_RANK];
    size_t n_bytes;
    unsigned char data[8 * 81];
} any_tensor;

static void make_tensors(test_random *random, any_tensor *tensors, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        any_tensor *t = &tensors[i];

        t->name = names[i];
        t->dtype = dtypes[test_random_u32(random) % AGGLO_COUNT(dtypes)];
        t->rank = (int)(test_random_u32(random) % 5);
        t->n_bytes = agglo_dtype_size(t->dtype);
        for (int k = 0; k < t->rank; k++) {
            t->shape[k] = test_random_u32(random) % 4;
            t->n_bytes *= (size_t)t->shape[k];
        }
        test_random_bytes(random, t->data, t->n_bytes);
    }
}

/* Tensors and metadata in the order of `turn`. */
static agglo_status write_tensors(const char *path, const any_tensor *tensors, size_t n, size_t turn, agglo_err *err)
{
    static const char *const meta[3][2] = {{"format", "pt"}, {"agglo.seed", "7"}, {"caf\xc3\xa9", "\"\\\n\t"}};
    agglo_st_writer *writer;

    if (agglo_st_writer_new(&writer, err) != AGGLO_OK) {
        return err->status;
    }
    for (size_t i = 0; i < 3 && err->status == AGGLO_OK; i++) {
        agglo_st_writer_meta(writer, meta[(i + turn) % 3][0], meta[(i + turn) % 3][1], err);
    }
    for (size_t i = 0; i < n && err->status == AGGLO_OK; i++) {
        const any_tensor *t = &tensors[(i + turn) % n];

        agglo_st_writer_add(writer, t->name, t->dtype, t->rank, t->shape, t->data, err);
    }
    if (err->status == AGGLO_OK) {
        agglo_st_writer_write(writer, path, err);
    }
    agglo_st_writer_free(writer);
    return err->status;
}

static void what_is_written_is_read(void **state)
{
    test_random random = test_random_new(11);
    static any_tensor tensors[8];
    const char *dir = test_dir();
    agglo_err err = {0};

    (void)state;
    for (int round = 0; round < 60; round++) {
        const char *path = test_path(dir, "a.safetensors"), *other = test_path(dir, "b.safetensors");
        size_t n = test_random_u32(&random) % (AGGLO_COUNT(names) + 1), n_first, n_second;
        agglo_safetensors *st;
        char *first, *second;

        make_tensors(&random, tensors, n);
        assert_ok(write_tensors(path, tensors, n, 0, &err));
        assert_ok(agglo_safetensors_open(&st, path, &err));
        assert_int_equal(agglo_safetensors_count(st), n);
        for (size_t i = 0; i < n; i++) {
            const agglo_st_tensor *t = agglo_safetensors_find(st, tensors[i].name);

            assert_non_null(t);
            assert_int_equal(t->dtype, tensors[i].dtype);
            assert_int_equal(t->rank, tensors[i].rank);
            assert_memory_equal(t->shape, tensors[i].shape, (size_t)t->rank * sizeof t->shape[0]);
            assert_int_equal(t->n_bytes, tensors[i].n_bytes);
            assert_memory_equal(t->data, tensors[i].data, t->n_bytes);
            /* widest first keeps every tensor aligned to its elements */
            assert_int_equal((uintptr_t)t->data % agglo_dtype_size(t->dtype), 0);
        }
        assert_string_equal(agglo_safetensors_meta(st, "caf\xc3\xa9"), "\"\\\n\t");
        agglo_safetensors_close(st);

        /* equal content, handed over in another order, gives equal bytes */
        assert_ok(write_tensors(other, tensors, n, 1 + (size_t)round % 3, &err));
        assert_ok(agglo_file_read(path, 1 << 20, &first, &n_first, &err));
        assert_ok(agglo_file_read(other, 1 << 20, &second, &n_second, &err));
        assert_int_equal(n_first, n_second);
        assert_memory_equal(first, second, n_first);
        assert_int_equal(agglo_le64(first) % 8, 0);
        assert_memory_equal(first + 8, "{\"__metadata__\":{\"agglo.seed\":", 30);
        agglo_free(first);
        agglo_free(second);
    }
}

/* As write_tensors, as a stream. */
static agglo_status stream_tensors(const char *path, const any_tensor *tensors, size_t n, bool meta, agglo_err *err)
{
    agglo_st_stream *stream;

    if (agglo_st_stream_open(&stream, path, err) != AGGLO_OK) {
        return err->status;
    }
    if (meta && agglo_st_stream_meta(stream, "format", "pt", err) == AGGLO_OK) {
        agglo_st_stream_meta(stream, "caf\xc3\xa9", "\"\\\n\t\x7f", err);
    }
    for (size_t i = 0; i < n && err->status == AGGLO_OK; i++) {
        const any_tensor *t = &tensors[i];

        agglo_st_stream_add(stream, t->name, t->dtype, t->rank, t->shape, t->data, err);
    }
    if (err->status != AGGLO_OK) {
        agglo_st_stream_abort(stream);
        return err->status;
    }
    return agglo_st_stream_commit(stream, err);
}

static void what_is_streamed_is_read(void **state)
{
    test_random random = test_random_new(19);
    static any_tensor tensors[8];
    const char *dir = test_dir(), *path = test_path(dir, "a.safetensors");
    agglo_err err = {0};

    (void)state;
    for (int round = 0; round < 40; round++) {
        size_t n = (size_t)round % (AGGLO_COUNT(names) + 1), n_first, n_second;
        agglo_safetensors *st;
        char *first, *second;

        make_tensors(&random, tensors, n);
        assert_ok(stream_tensors(path, tensors, n, round % 2 == 0, &err));
        assert_ok(agglo_safetensors_open(&st, path, &err));
        assert_int_equal(agglo_safetensors_count(st), n);
        for (size_t i = 0; i < n; i++) {
            const agglo_st_tensor *t = agglo_safetensors_find(st, tensors[i].name);

            assert_non_null(t);
            assert_int_equal(t->dtype, tensors[i].dtype);
            assert_int_equal(t->rank, tensors[i].rank);
            assert_memory_equal(t->shape, tensors[i].shape, (size_t)t->rank * sizeof t->shape[0]);
            assert_int_equal(t->n_bytes, tensors[i].n_bytes);
            assert_memory_equal(t->data, tensors[i].data, t->n_bytes);
        }
        if (round % 2 == 0) {
            assert_string_equal(agglo_safetensors_meta(st, "caf\xc3\xa9"), "\"\\\n\t\x7f");
        }
        agglo_safetensors_close(st);
        assert_ok(agglo_file_read(path, 1 << 20, &first, &n_first, &err));
        assert_int_equal((8 + agglo_le64(first)) % 4096, 0);
        assert_ok(stream_tensors(path, tensors, n, round % 2 == 0, &err));
        assert_ok(agglo_file_read(path, 1 << 20, &second, &n_second, &err));
        assert_int_equal(n_first, n_second);
        assert_memory_equal(first, second, n_first);
        agglo_free(first);
        agglo_free(second);
    }
}

static int n_names_in(const char *dir)
{
    agglo_arena *arena = NULL;
    agglo_err err = {0};
    char **found;
    size_t n;

    assert_ok(agglo_arena_new(&arena, 0, &err));
    assert_ok(agglo_list_dir(dir, arena, &found, &n, &err));
    agglo_arena_free(arena);
    return (int)n;
}

/* What was streamed when something failed leaves nothing, and the largest header is known before it is too large. */
static void a_broken_stream_leaves_nothing(void **state)
{
    const char *dir = test_dir(), *path = test_path(dir, "a.safetensors");
    int64_t n_live = agglo_alloc_counts().n_live;
    test_random random = test_random_new(23);
    static any_tensor tensors[4];
    agglo_st_stream *stream;
    agglo_err err = {0};
    float one = 1.0f;
    bool done = false;

    (void)state;
    make_tensors(&random, tensors, 4);
    for (int64_t n = 0; !done; n++) {
        agglo_err_clear(&err);
        agglo_alloc_fail_after(n);
        done = stream_tensors(path, tensors, 4, true, &err) == AGGLO_OK;
        agglo_alloc_fail_after(-1);
        assert_true(done || err.status == AGGLO_E_MEMORY);
        assert_int_equal(n_names_in(dir), done);
        assert_int_equal(agglo_alloc_counts().n_live, n_live);
    }
    assert_ok(agglo_st_stream_open(&stream, path, &err));
    assert_fails(agglo_st_stream_meta(stream, "k", "\xff", &err), AGGLO_E_DATA, "not UTF-8");
    assert_fails(agglo_st_stream_add(stream, "\xc3(", AGGLO_F32, 0, NULL, &one, &err), AGGLO_E_DATA, "not UTF-8");
    assert_true(agglo_st_stream_fits(stream, 2, 2000));
    assert_true(agglo_st_stream_fits(stream, 300000, 900000));
    assert_false(agglo_st_stream_fits(stream, 400000, 0));
    assert_false(agglo_st_stream_fits(stream, 1, 17000000));
    assert_false(agglo_st_stream_fits(stream, SIZE_MAX, SIZE_MAX));
    agglo_st_stream_abort(stream);
    agglo_st_stream_abort(NULL);
    assert_int_equal(n_names_in(dir), 1);
    assert_fails(agglo_st_stream_open(&stream, test_path(dir, "none/a"), &err), AGGLO_E_IO, "none/");
    assert_null(stream);
}

static void the_hash_is_of_the_file(void **state)
{
    const char *path = test_path(test_dir(), "a.safetensors");
    agglo_sha256 of_file, of_st;
    agglo_safetensors *st;
    agglo_err err = {0};

    (void)state;
    assert_ok(write_tensors(path, NULL, 0, 0, &err));
    assert_ok(agglo_file_sha256(path, &of_file, NULL, &err));
    assert_ok(agglo_safetensors_open(&st, path, &err));
    for (int i = 0; i < 2; i++) {
        assert_ok(agglo_safetensors_sha256(st, &of_st, &err));
        assert_memory_equal(of_st.bytes, of_file.bytes, 32);
    }
    agglo_safetensors_close(st);
    assert_fails(agglo_safetensors_open(&st, test_path(test_dir(), "none"), &err), AGGLO_E_NOT_FOUND, "none");
    assert_null(st);
    assert_fails(agglo_safetensors_open(&st, test_dir(), &err), AGGLO_E_IO, "not a regular file");
}

static void bad_texts_are_not_written(void **state)
{
    static const char *const bad[] = {"\xff",
                                      "a\x80",
                                      "\xc3",
                                      "\xc0\xaf",
                                      "\xe0\x9f\xbf",
                                      "\xed\xa0\x80",
                                      "\xf0\x8f\xbf\xbf",
                                      "\xf4\x90\x80\x80",
                                      "\xe2\x82",
                                      "\xf8\x88\x80\x80"};
    const char *path = test_path(test_dir(), "a.safetensors");
    const float one = 1;
    agglo_st_writer *writer;
    agglo_err err = {0};

    (void)state;
    assert_ok(agglo_st_writer_new(&writer, &err));
    for (size_t i = 0; i < AGGLO_COUNT(bad); i++) {
        assert_fails(agglo_st_writer_add(writer, bad[i], AGGLO_F32, 0, NULL, &one, &err), AGGLO_E_DATA, "not UTF-8");
        assert_fails(agglo_st_writer_meta(writer, bad[i], "v", &err), AGGLO_E_DATA, "not UTF-8");
        assert_fails(agglo_st_writer_meta(writer, "k", bad[i], &err), AGGLO_E_DATA, "not UTF-8");
    }
    assert_fails(agglo_st_writer_add(writer, "__metadata__", AGGLO_F32, 0, NULL, &one, &err), AGGLO_E_DATA,
                 "__metadata__");
    /* every first and last character of each length is fine, and jansson agrees */
    assert_ok(agglo_st_writer_add(
        writer,
        "\x01\x7f\xc2\x80\xdf\xbf\xe0\xa0\x80\xed\x9f\xbf\xee\x80\x80\xef\xbf\xbf\xf0\x90\x80\x80\xf4\x8f\xbf\xbf",
        AGGLO_F32, 0, NULL, &one, &err));
    assert_ok(agglo_st_writer_write(writer, path, &err));
    assert_ok(agglo_st_writer_add(writer, "w", AGGLO_F32, 0, NULL, &one, &err));
    assert_ok(agglo_st_writer_add(writer, "w", AGGLO_F32, 0, NULL, &one, &err));
    assert_fails(agglo_st_writer_write(writer, path, &err), AGGLO_E_DATA, "the name comes twice");
    agglo_st_writer_free(writer);
    assert_ok(agglo_st_writer_new(&writer, &err));
    assert_ok(agglo_st_writer_meta(writer, "k", "1", &err));
    assert_ok(agglo_st_writer_meta(writer, "k", "2", &err));
    assert_fails(agglo_st_writer_write(writer, path, &err), AGGLO_E_DATA, "__metadata__: 'k'");
    agglo_st_writer_free(writer);
    agglo_st_writer_free(NULL);
}

/* ---- damage ---- */

/* Every flip of every byte of a small file: it parses or is refused, and what parses lies inside the file. */
static void flipped_bytes_are_survived(void **state)
{
    test_random random = test_random_new(12);
    static any_tensor tensors[3];
    const char *path = test_path(test_dir(), "a.safetensors");
    agglo_err err = {0};
    size_t n, n_read = 0;
    char *file;

    (void)state;
    make_tensors(&random, tensors, 3);
    assert_ok(write_tensors(path, tensors, 3, 0, &err));
    assert_ok(agglo_file_read(path, 1 << 20, &file, &n, &err));
    for (size_t i = 0; i < n; i++) {
        for (int flip = 1; flip < 256; flip += i < 8 ? 1 : 7) {
            unsigned char *copy = malloc(n); /* exactly as large, so that ASan sees a read behind it */
            agglo_safetensors *st;

            memcpy(copy, file, n);
            copy[i] = (unsigned char)(copy[i] ^ flip);
            if (agglo_safetensors_parse(&st, (agglo_bytes){copy, n}, "x", &err) == AGGLO_OK) {
                n_read++;
                for (size_t k = 0; k < agglo_safetensors_count(st); k++) {
                    const agglo_st_tensor *t = agglo_safetensors_at(st, k);

                    assert_true(t->data >= copy + 8 && t->data + t->n_bytes <= copy + n);
                    assert_ptr_equal(agglo_safetensors_find(st, t->name), t);
                }
                agglo_safetensors_close(st);
            }
            agglo_err_clear(&err);
            free(copy);
        }
    }
    assert_true(n_read > 0); /* flips in names and data */
    for (size_t cut = 0; cut < n; cut++) {
        agglo_safetensors *st;

        if (agglo_safetensors_parse(&st, (agglo_bytes){(uint8_t *)file, cut}, "x", &err) == AGGLO_OK) {
            fail_msg("a file cut to %zu bytes is read", cut);
        }
        agglo_err_clear(&err);
    }
    agglo_free(file);
}

/* ---- lack of memory ---- */

static int64_t jansson_left = -1, jansson_live;

static void *counted_malloc(size_t n)
{
    if (jansson_left >= 0 && jansson_left-- == 0) {
        return NULL;
    }
    jansson_live++;
    return malloc(n);
}

static void counted_free(void *p)
{
    jansson_live -= p != NULL;
    free(p);
}

static void every_failing_allocation_is_one_clean_error(void **state)
{
    enum { OURS, JANSSON, KINDS };
    test_random random = test_random_new(13);
    static any_tensor tensors[4];
    const char *path = test_path(test_dir(), "a.safetensors");
    int64_t n_live = agglo_alloc_counts().n_live;
    bool written;

    (void)state;
    make_tensors(&random, tensors, 4);
    json_set_alloc_funcs(counted_malloc, counted_free);
    for (int kind = 0; kind < KINDS; kind++) {
        bool done = false;

        for (int64_t n = 0; !done; n++) {
            agglo_safetensors *st = NULL;
            agglo_err err = {0};
            char line[1024];

            if (kind == OURS) {
                agglo_alloc_fail_after(n);
            } else {
                jansson_left = n;
            }
            written = write_tensors(path, tensors, 4, 0, &err) == AGGLO_OK;
            done = written && agglo_safetensors_open(&st, path, &err) == AGGLO_OK;
            agglo_alloc_fail_after(-1);
            jansson_left = -1;
            agglo_safetensors_close(st);
            assert_int_equal(agglo_alloc_counts().n_live, n_live);
            assert_int_equal(jansson_live, 0);
            agglo_err_line(&err, line, sizeof line);
            /* jansson's lexer calls some of its failures a syntax error */
            if (!done && !(kind == JANSSON && written && err.status == AGGLO_E_DATA) &&
                (err.status != AGGLO_E_MEMORY || strstr(line, "out of memory") == NULL)) {
                fail_msg("allocation %d of kind %d: %s", (int)n, kind, line);
            }
            assert_true(done ? n > 10 : n < 1000);
        }
    }
    json_set_alloc_funcs(malloc, free);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_written_out_file_is_read), cmocka_unit_test(every_rule_is_kept),
        cmocka_unit_test(lying_lengths_are_refused),  cmocka_unit_test(what_is_written_is_read),
        cmocka_unit_test(what_is_streamed_is_read),   cmocka_unit_test(a_broken_stream_leaves_nothing),
        cmocka_unit_test(the_hash_is_of_the_file),    cmocka_unit_test(bad_texts_are_not_written),
        cmocka_unit_test(flipped_bytes_are_survived), cmocka_unit_test(every_failing_allocation_is_one_clean_error),
    };

    return test_run("safetensors", tests);
}
