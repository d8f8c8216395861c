/* What a path to weights means, indexes that lie, pickles; fingerprints of one file and of several. */
#include "teachers/weights.h"
#include "tests/support/support.h"

/* One F32 tensor of two elements per name. */
static void write_tensors(const char *path, const char *const *names, size_t n)
{
    static const float values[2] = {1.0f, 2.0f};
    static const int64_t shape[1] = {2};
    agglo_err err = {0};
    agglo_st_writer *writer;

    assert_ok(agglo_st_writer_new(&writer, &err));
    for (size_t i = 0; i < n; i++) {
        assert_ok(agglo_st_writer_add(writer, names[i], AGGLO_F32, 1, shape, values, &err));
    }
    assert_ok(agglo_st_writer_write(writer, path, &err));
    agglo_st_writer_free(writer);
}

static const char *const first[] = {"a", "c"}, *const second[] = {"b"};

/* NAME-0000{1,2}-of-00002 with tensors a, c and b, and their index. */
static const char *write_shards(void)
{
    const char *dir = test_dir();

    write_tensors(test_path(dir, "m-00001-of-00002.safetensors"), first, 2);
    write_tensors(test_path(dir, "m-00002-of-00002.safetensors"), second, 1);
    test_write_text(test_path(dir, "m.safetensors.index.json"),
                    "{\"metadata\": {\"total_size\": 24}, \"weight_map\": {\"a\": \"m-00001-of-00002.safetensors\", "
                    "\"b\": \"m-00002-of-00002.safetensors\", \"c\": \"m-00001-of-00002.safetensors\"}}");
    return dir;
}

static void one_file(void **state)
{
    const char *path = test_path(test_dir(), "x.safetensors");
    agglo_err err = {0};
    agglo_sha256 of_file, of_weights;
    agglo_weights *w;

    (void)state;
    write_tensors(path, first, 2);
    assert_ok(agglo_weights_open(&w, path, &err));
    assert_int_equal(agglo_weights_count(w), 2);
    assert_int_equal(agglo_weights_files(w), 1);
    assert_string_equal(agglo_weights_at(w, 1)->name, "c");
    assert_ptr_equal(agglo_weights_find(w, "a"), agglo_weights_at(w, 0));
    assert_null(agglo_weights_find(w, "b"));
    assert_null(agglo_weights_meta(w, "family"));
    assert_string_equal(agglo_weights_path(w), path);
    assert_string_equal(agglo_path_base(agglo_weights_stem(w)), "x");
    assert_ok(agglo_weights_fingerprint(w, &of_weights, &err));
    assert_ok(agglo_file_sha256(path, &of_file, NULL, &err));
    assert_memory_equal(of_weights.bytes, of_file.bytes, sizeof of_file.bytes);
    agglo_weights_close(w);
    agglo_weights_close(NULL);
}

/* By index, shard and folder: the same set; its fingerprint is that of sha256sum's lines. */
static void several_files(void **state)
{
    static const char *const names[] = {"m.safetensors.index.json", "m-00001-of-00002.safetensors",
                                        "m-00002-of-00002.safetensors", NULL};
    const char *dir = write_shards();
    agglo_err err = {0};
    agglo_sha256 expected, found, of_file[2];
    char text[512], hex[2][65];

    (void)state;
    assert_ok(agglo_file_sha256(test_path(dir, names[1]), &of_file[0], NULL, &err));
    assert_ok(agglo_file_sha256(test_path(dir, names[2]), &of_file[1], NULL, &err));
    snprintf(text, sizeof text, "%s  %s\n%s  %s\n", agglo_hex(of_file[0].bytes, 32, hex[0]), names[1],
             agglo_hex(of_file[1].bytes, 32, hex[1]), names[2]);
    assert_ok(agglo_sha256_of(text, strlen(text), &expected, &err));
    for (size_t i = 0; i < AGGLO_COUNT(names); i++) {
        agglo_weights *w;

        assert_ok(agglo_weights_open(&w, names[i] != NULL ? test_path(dir, names[i]) : dir, &err));
        assert_int_equal(agglo_weights_files(w), 2);
        assert_int_equal(agglo_weights_count(w), 3);
        assert_string_equal(agglo_weights_at(w, 1)->name, "b");
        assert_non_null(agglo_weights_find(w, "c"));
        assert_null(agglo_weights_meta(w, "format"));
        assert_string_equal(agglo_path_base(agglo_weights_path(w)), names[0]);
        assert_string_equal(agglo_path_base(agglo_weights_stem(w)), "m");
        assert_ok(agglo_weights_fingerprint(w, &found, &err));
        assert_memory_equal(found.bytes, expected.bytes, sizeof found.bytes);
        agglo_weights_close(w);
    }
}

static void indexes_that_lie(void **state)
{
#define IN_1 "\"m-00001-of-00002.safetensors\""
#define IN_2 "\"m-00002-of-00002.safetensors\""
    static const struct {
        const char *json;
        agglo_status status;
        const char *says;
    } cases[] = {
        {"", AGGLO_E_DATA, "m.safetensors.index.json"},
        {"[]", AGGLO_E_DATA, "no weight_map"},
        {"{}", AGGLO_E_DATA, "no weight_map"},
        {"{\"weight_map\": []}", AGGLO_E_DATA, "no weight_map"},
        {"{\"weight_map\": {}}", AGGLO_E_DATA, "no weight_map"},
        {"{\"weight_map\": {\"a\": 3}}", AGGLO_E_DATA, "(no text)"},
        {"{\"weight_map\": {\"a\": \"\"}}", AGGLO_E_DATA, "is not the name of a safetensors file beside the index"},
        {"{\"weight_map\": {\"a\": \"/etc/m.safetensors\"}}", AGGLO_E_DATA, "/etc/m.safetensors"},
        {"{\"weight_map\": {\"a\": \"../m.safetensors\"}}", AGGLO_E_DATA, "../m.safetensors"},
        {"{\"weight_map\": {\"a\": \"d/m.safetensors\"}}", AGGLO_E_DATA, "d/m.safetensors"},
        {"{\"weight_map\": {\"a\": \"..\\\\m.safetensors\"}}", AGGLO_E_DATA, "is not the name"},
        {"{\"weight_map\": {\"a\": \".safetensors\"}}", AGGLO_E_DATA, "is not the name"},
        {"{\"weight_map\": {\"a\": \"m.bin\"}}", AGGLO_E_DATA, "m.bin"},
        {"{\"weight_map\": {\"a\": \"none.safetensors\"}}", AGGLO_E_NOT_FOUND, "none.safetensors"},
        {"{\"weight_map\": {\"a\": " IN_1 ", \"a\": " IN_2 "}}", AGGLO_E_DATA, "duplicate"},
        {"{\"weight_map\": {\"a\": " IN_1 ", \"c\": " IN_1 ", \"b\": " IN_1 "}}", AGGLO_E_DATA,
         "tensor b is not in m-00001-of-00002.safetensors, where the index lists it"},
        {"{\"weight_map\": {\"a\": " IN_1 "}}", AGGLO_E_DATA,
         "m-00001-of-00002.safetensors holds tensor c, which the index does not list"},
        {"{\"weight_map\": {\"a\": " IN_1 ", \"b\": " IN_1 ", \"c\": " IN_2 "}}", AGGLO_E_DATA,
         "tensor c is in m-00001-of-00002.safetensors, the index lists it in m-00002-of-00002.safetensors"},
        {"{\"weight_map\": {\"a\": " IN_1 ", \"b\": " IN_2 ", \"c\": " IN_1 ", \"d\": " IN_2 "}}", AGGLO_E_DATA,
         "tensor d is not in m-00002-of-00002.safetensors"},
    };
    static const char *const twice[] = {"a", "b"};
    const char *dir = write_shards(), *index = test_path(dir, "m.safetensors.index.json");
    agglo_err err = {0};
    agglo_weights *w;

    (void)state;
    for (size_t i = 0; i < AGGLO_COUNT(cases); i++) {
        test_write_text(index, cases[i].json);
        assert_fails(agglo_weights_open(&w, index, &err), cases[i].status, cases[i].says);
        assert_null(w);
    }
    /* a name in two files, whatever the index says of it */
    write_tensors(test_path(dir, "m-00002-of-00002.safetensors"), twice, 2);
    test_write_text(index, "{\"weight_map\": {\"a\": " IN_1 ", \"b\": " IN_2 ", \"c\": " IN_1 "}}");
    assert_fails(agglo_weights_open(&w, index, &err), AGGLO_E_DATA,
                 "tensor a is in m-00002-of-00002.safetensors, the index lists it in m-00001-of-00002.safetensors");
    /* a broken shard is named, not the index */
    test_write_text(test_path(dir, "m-00002-of-00002.safetensors"), "nothing of the kind");
    assert_fails(agglo_weights_open(&w, index, &err), AGGLO_E_DATA, "m-00002-of-00002.safetensors");
    assert_fails(agglo_weights_open(&w, test_path(dir, "m-00001-of-00009.safetensors"), &err), AGGLO_E_DATA,
                 "m-00002-of-00002.safetensors");
    assert_ok(agglo_remove_tree(index, &err));
    assert_fails(agglo_weights_open(&w, test_path(dir, "m-00001-of-00002.safetensors"), &err), AGGLO_E_NOT_FOUND,
                 "one part of a sharded checkpoint, whose index m.safetensors.index.json is not beside it");
}

static void shard_of_another(void **state)
{
    const char *dir = write_shards(), *other = test_path(dir, "m-00003-of-00002.safetensors");
    agglo_err err = {0};
    agglo_weights *w;

    (void)state;
    write_tensors(other, second, 1);
    assert_fails(agglo_weights_open(&w, other, &err), AGGLO_E_MISMATCH, "does not list this file");
    assert_null(w);
}

/* Which file of a folder is read. */
static void folders(void **state)
{
    static const struct {
        const char *files[4];
        const char *read; /* NULL: refused */
        agglo_status status;
        const char *says;
    } cases[] = {
        {{"model.safetensors", "config.json"}, "model.safetensors", AGGLO_OK, NULL},
        {{"open_clip_model.safetensors"}, "open_clip_model.safetensors", AGGLO_OK, NULL},
        {{"model.safetensors", "open_clip_model.safetensors"}, "model.safetensors", AGGLO_OK, NULL},
        {{"any.safetensors", "pytorch_model.bin"}, "any.safetensors", AGGLO_OK, NULL},
        {{"x.safetensors", "y.safetensors"}, NULL, AGGLO_E_CONFIG, "there are x.safetensors, y.safetensors: name"},
        {{"pytorch_model.bin", "config.json"}, NULL, AGGLO_E_UNSUPPORTED, "pytorch_model.bin, a pickle: convert it"},
        {{"model-00001-of-00002.safetensors"},
         NULL,
         AGGLO_E_NOT_FOUND,
         "there are parts of a sharded checkpoint, such as model-00001-of-00002.safetensors, but no "
         "model.safetensors.index.json"},
        {{"pytorch_model.bin", "x-00001-of-00002.safetensors", "x-00002-of-00002.safetensors"},
         NULL,
         AGGLO_E_NOT_FOUND,
         "such as x-00001-of-00002.safetensors, but no x.safetensors.index.json"},
        {{"config.json"}, NULL, AGGLO_E_NOT_FOUND, "no safetensors file in this folder"},
    };
    agglo_err err = {0};

    (void)state;
    for (size_t i = 0; i < AGGLO_COUNT(cases); i++) {
        const char *dir = test_dir();
        agglo_weights *w;

        for (size_t k = 0; k < 4 && cases[i].files[k] != NULL; k++) {
            write_tensors(test_path(dir, cases[i].files[k]), first, 2);
        }
        if (cases[i].read == NULL) {
            assert_fails(agglo_weights_open(&w, dir, &err), cases[i].status, cases[i].says);
            assert_null(w);
            continue;
        }
        assert_ok(agglo_weights_open(&w, dir, &err));
        assert_string_equal(agglo_path_base(agglo_weights_path(w)), cases[i].read);
        agglo_weights_close(w);
    }
}

/* Told by their bytes, whatever the name; a safetensors file whose header's length looks like one is none. */
static void pickles(void **state)
{
    static const char zip[64] = "PK\3\4\0\0\0\0\0\0archive/data.pkl", old[64] = "\x80\2}q\0(X\5\0\0\0a",
                      newer[64] = "\x80\5\x95\0\0\0\0\0\0\0\0}";
    const char *dir = test_dir(), *path = test_path(dir, "w.safetensors");
    uint8_t lookalike[8 + 0x280 + 16] = {0};
    agglo_err err = {0};
    agglo_weights *w;
    int n;

    (void)state;
    assert_ok(agglo_file_write(path, zip, sizeof zip, &err));
    assert_fails(agglo_weights_open(&w, path, &err), AGGLO_E_UNSUPPORTED,
                 "a PyTorch archive (a zip with a pickle in it), which is not read: convert it once with "
                 "script/convert-weights w.safetensors OUT.safetensors");
    assert_ok(agglo_file_write(path, old, sizeof old, &err));
    assert_fails(agglo_weights_open(&w, path, &err), AGGLO_E_UNSUPPORTED, "a pickle of PyTorch's");
    assert_ok(agglo_file_write(path, newer, sizeof newer, &err));
    assert_fails(agglo_weights_open(&w, path, &err), AGGLO_E_UNSUPPORTED, "a pickle of PyTorch's");
    assert_ok(agglo_file_write(path, zip, 5, &err)); /* too short to be anything */
    assert_fails(agglo_weights_open(&w, path, &err), AGGLO_E_DATA, "too few for a safetensors file");

    lookalike[0] = 0x80; /* a header of 0x280 bytes */
    lookalike[1] = 0x02;
    memset(lookalike + 8, ' ', 0x280);
    n = snprintf((char *)lookalike + 8, 0x280, "{\"a\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,16]}}");
    lookalike[8 + n] = ' ';
    assert_ok(agglo_file_write(path, lookalike, sizeof lookalike, &err));
    assert_ok(agglo_weights_open(&w, path, &err));
    assert_int_equal(agglo_weights_count(w), 1);
    agglo_weights_close(w);
}

static void failing_memory(void **state)
{
    const char *dir = write_shards();
    agglo_err err = {0};
    agglo_weights *w;
    int n = 0;

    (void)state;
    for (;; n++) {
        agglo_status status;

        agglo_alloc_fail_after(n);
        status = agglo_weights_open(&w, dir, &err);
        agglo_alloc_fail_after(-1);
        if (status == AGGLO_OK) {
            break;
        }
        assert_int_equal(err.status, AGGLO_E_MEMORY);
        assert_null(w);
        agglo_err_clear(&err);
    }
    agglo_weights_close(w);
    assert_true(n > 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_file),         cmocka_unit_test(several_files), cmocka_unit_test(indexes_that_lie),
        cmocka_unit_test(shard_of_another), cmocka_unit_test(folders),       cmocka_unit_test(pickles),
        cmocka_unit_test(failing_memory),
    };

    return test_run("weights", tests);
}
