/* What a user may ask of an ingest, and what web data do to it: selection, duplicates, sizes, folders, odd members. */
#include "tests/unit/ingest/make_tar.h"

#include <sys/stat.h>
#include <unistd.h>

#include "base/hash.h"
#include "ingest/sample.h"

static agglo_ingest_report ingest_one(const char *source, const agglo_ingest_options *options)
{
    agglo_ingest_report report;
    agglo_err err = {0};

    assert_ok(agglo_ingest(&source, 1, options, &report, &err));
    return report;
}

static void expect_sum(const agglo_ingest_report *report)
{
    assert_int_equal(report->samples_in, report->samples_kept + report->samples_rejected);
}

static void test_selection(void **state)
{
    path_text dir = path_in(test_dir(), ""), file = path_in(dir.text, "a.tar"), list = path_in(dir.text, "list.txt");
    path_text out = path_in(dir.text, "out"), npy = path_in(dir.text, "list.npy"), out2 = path_in(dir.text, "out2");
    agglo_ingest_options options = options_for(out.text);
    agglo_ingest_report report;
    agglo_err err = {0};
    char text[512] = "# kept\n", key_hash[33];
    uint8_t hashed[16];
    tar t = tar_begin(file.text, NULL, false);

    (void)state;
    for (int i = 0; i < 6; i++) {
        char name[32], json[128];

        snprintf(name, sizeof name, "%d.jpg", i);
        tar_add(&t, name, jpeg, n_jpeg);
        snprintf(json, sizeof json, "{\"uid\": \"%032d\"}", i);
        snprintf(name, sizeof name, "%d.json", i);
        if (i < 5) {
            tar_add(&t, name, json, strlen(json));
        }
    }
    tar_end(&t);
    { /* the last one has no uid of its own: sha256 of key, 0, picture */
        agglo_hasher *hasher;
        agglo_sha256 digest;

        assert_ok(agglo_hasher_new(&hasher, AGGLO_HASH_SHA256, &err));
        assert_ok(agglo_hasher_add(hasher, "5", 2, &err));
        assert_ok(agglo_hasher_add(hasher, jpeg, n_jpeg, &err));
        assert_ok(agglo_hasher_end(hasher, digest.bytes, &err));
        agglo_hasher_free(hasher);
        memcpy(hashed, digest.bytes, 16);
        agglo_hex(hashed, 16, key_hash);
    }
    snprintf(text + strlen(text), sizeof text - strlen(text), "%032d\n%032d\r\n%s\n", 1, 4, key_hash);
    assert_ok(agglo_file_write(list.text, text, strlen(text), &err));
    options.select = list.text;
    report = ingest_one(file.text, &options);
    assert_int_equal(report.samples_kept, 3);
    assert_int_equal(count_of(&report, "not_selected"), 3);
    expect_sum(&report);
    json_decref(report.rejected);

    { /* the same as DataComp writes it */
        static const char head[] =
            "\x93NUMPY\x01\x00\x76\x00{'descr': [('f0', '<u8'), ('f1', '<u8')], 'fortran_order': False, "
            "'shape': (3,), }";
        uint8_t bytes[128 + 48];
        const uint64_t uids[2][2] = {{0, 1}, {0, 4}};

        memset(bytes, ' ', 128);
        memcpy(bytes, head, sizeof head - 1);
        bytes[127] = '\n';
        for (int i = 0; i < 2; i++) {
            agglo_put_le64(bytes + 128 + 16 * i, uids[i][0]);
            agglo_put_le64(bytes + 136 + 16 * i, uids[i][1]);
        }
        for (int k = 0; k < 8; k++) {
            bytes[160 + k] = hashed[7 - k];
            bytes[168 + k] = hashed[15 - k];
        }
        assert_ok(agglo_file_write(npy.text, bytes, sizeof bytes, &err));
    }
    options.select = npy.text;
    options.out = out2.text;
    report = ingest_one(file.text, &options);
    assert_int_equal(report.samples_kept, 3);
    json_decref(report.rejected);
    expect_same_file(out.text, out2.text, "shards/000000.tar");
    /* another list is another dataset */
    options.select = list.text;
    assert_fails(agglo_ingest(&(const char *){file.text}, 1, &options, &report, &err), AGGLO_E_CONFIG, "select");
    json_decref(report.rejected);
}

static void test_duplicates_and_digests(void **state)
{
    path_text dir = path_in(test_dir(), ""), file = path_in(dir.text, "a.tar"), out = path_in(dir.text, "out");
    path_text second = path_in(dir.text, "b.tar");
    agglo_ingest_options options = options_for(out.text);
    agglo_ingest_report report;
    agglo_dataset *dataset;
    agglo_sample sample;
    agglo_sha256 digest;
    agglo_err err = {0};
    char hex[65], json[256];
    const char *only = out.text, *both[2] = {file.text, second.text};
    tar t = tar_begin(file.text, NULL, false);

    (void)state;
    assert_ok(agglo_sha256_of(png, n_png, &digest, &err));
    agglo_hex(digest.bytes, 32, hex);
    tar_add(&t, "a.jpg", jpeg, n_jpeg);
    tar_add(&t, "b.jpg", jpeg, n_jpeg); /* the same bytes under another key */
    tar_add(&t, "c.png", png, n_png);
    snprintf(json, sizeof json, "{\"sha256\": \"%s\"}", hex);
    tar_add(&t, "c.json", json, strlen(json)); /* the right digest */
    tar_add(&t, "d.webp", webp, n_webp);
    tar_add(&t, "d.json", json, strlen(json)); /* a wrong one */
    tar_end(&t);
    options.dedup = true;
    options.check_sha256 = true;
    report = ingest_one(file.text, &options);
    assert_int_equal(count_of(&report, "duplicate_image"), 1);
    assert_int_equal(count_of(&report, "sha256_mismatch"), 1);
    assert_int_equal(report.samples_kept, 2);
    expect_sum(&report);
    json_decref(report.rejected);
    assert_ok(agglo_dataset_open(&dataset, &only, 1, &err));
    assert_ok(agglo_dataset_sample(dataset, 0, 1, &sample, &err));
    assert_true(sample.has_sha256);
    assert_memory_equal(sample.sha256.bytes, digest.bytes, 32);
    assert_ok(agglo_dataset_sample(dataset, 0, 0, &sample, &err));
    assert_false(sample.has_sha256);
    agglo_dataset_close(dataset);
    /* what was there before counts when more is added */
    t = tar_begin(second.text, NULL, false);
    tar_add(&t, "e.png", png, n_png);
    tar_add(&t, "f.webp", webp, n_webp);
    tar_end(&t);
    assert_ok(agglo_ingest(both, 2, &options, &report, &err));
    assert_int_equal(count_of(&report, "duplicate_image"), 2);
    assert_int_equal(report.samples_kept, 3);
    json_decref(report.rejected);
    /* without being asked, digests of other bytes are no reason: img2dataset re-encodes */
    options = options_for(path_in(dir.text, "free").text);
    report = ingest_one(file.text, &options);
    assert_int_equal(report.samples_kept, 4);
    json_decref(report.rejected);
}

static void test_large_pictures_are_made_smaller(void **state)
{
    path_text dir = path_in(test_dir(), ""), file = path_in(dir.text, "a.tar"), out = path_in(dir.text, "out");
    agglo_ingest_options options = options_for(out.text);
    agglo_ingest_report report;
    agglo_dataset *dataset;
    agglo_decoder *decoder;
    agglo_image image;
    agglo_sample sample;
    agglo_err err = {0};
    const char *only = out.text;
    char *turned;
    size_t n_turned;
    tar t = tar_begin(file.text, NULL, false);

    (void)state;
    assert_ok(agglo_file_read(test_fixture("decode/jpeg_exif6.jpg"), 1 << 20, &turned, &n_turned, &err));
    tar_add(&t, "a.png", png, n_png);
    tar_add(&t, "a.txt", "large", 5);
    tar_add(&t, "b.jpg", turned, n_turned);
    tar_add(&t, "c.jpg", jpeg, n_jpeg / 2);
    tar_end(&t);
    agglo_free(turned);
    options.max_side = 16;
    options.header_only = true; /* what is re-encoded is decoded all the same */
    report = ingest_one(file.text, &options);
    assert_int_equal(report.samples_kept, 2);
    assert_int_equal(count_of(&report, "truncated"), 1);
    json_decref(report.rejected);
    assert_ok(agglo_dataset_open(&dataset, &only, 1, &err));
    assert_ok(agglo_decoder_new(&decoder, &options.decode, &err));
    for (uint32_t i = 0; i < 2; i++) {
        assert_ok(agglo_dataset_sample(dataset, 0, i, &sample, &err));
        assert_int_equal(sample.format, AGGLO_IMAGE_JPEG);
        assert_int_equal(sample.width > sample.height ? sample.width : sample.height, 16);
        assert_ok(agglo_decode(decoder, sample.image, &image, NULL, &err));
        assert_true(image.width == sample.width &&
                    image.height == sample.height); /* upright, and nothing left to turn */
    }
    assert_string_equal(sample.key, "b");
    assert_true(sample.height > sample.width); /* it lay on its side */
    agglo_decoder_free(decoder);
    agglo_dataset_close(dataset);
}

static void write_in(const char *dir, const char *name, const void *data, size_t n)
{
    agglo_err err = {0};
    char path[600], *slash;

    snprintf(path, sizeof path, "%s/%s", dir, name);
    slash = strrchr(path, '/');
    *slash = 0;
    assert_ok(agglo_make_dirs(path, &err));
    *slash = '/';
    assert_ok(agglo_file_write(path, data, n, &err));
}

static int64_t label_of(const agglo_dataset *dataset, const char *key)
{
    agglo_err err = {0};
    agglo_sample sample;
    uint32_t shard, ordinal;

    assert_ok(agglo_dataset_find(dataset, key, &shard, &ordinal, &err));
    assert_ok(agglo_dataset_sample(dataset, shard, ordinal, &sample, &err));
    return sample.label;
}

static void test_folders_of_pictures(void **state)
{
    path_text dir = path_in(test_dir(), ""), photos = path_in(dir.text, "photos"), out = path_in(dir.text, "out");
    path_text again = path_in(dir.text, "again"), shard_path = path_in(out.text, "shards/000000.tar");
    agglo_ingest_options options = options_for(out.text);
    agglo_ingest_report report;
    agglo_dataset *dataset;
    agglo_arena *arena;
    agglo_err err = {0};
    const char *only = out.text, *source = photos.text;
    char **paths;
    size_t n;

    (void)state;
    write_in(photos.text, "dogs/IMG.2020.01.JPG", jpeg, n_jpeg);
    write_in(photos.text, "dogs/IMG.2020.01.txt", "a dog", 5);
    write_in(photos.text, "cats/deep/x.png", png, n_png);
    write_in(photos.text, "cats/deep/x.seg.png", png, n_png); /* a mask goes along */
    write_in(photos.text, "cats/y.webp", webp, n_webp);
    write_in(photos.text, "cats/y.cls", "77", 2); /* a label of its own */
    write_in(photos.text, "cats/notes", "no picture", 10);
    write_in(photos.text, ".hidden/z.png", png, n_png);
    write_in(photos.text, "top.png", png, n_png);
    assert_int_equal(symlink("cats", path_in(photos.text, "kittens").text), 0);
    assert_int_equal(symlink("../top.png", path_in(photos.text, "dogs/linked.png").text), 0);
    assert_int_equal(mkfifo(path_in(photos.text, "pipe.png").text, 0600), 0);
    assert_ok(agglo_arena_new(&arena, 0, &err));
    assert_ok(agglo_ingest_expand(&source, 1, arena, &paths, &n, &err));
    assert_int_equal(n, 1);
    assert_string_equal(paths[0], photos.text);
    report = ingest_one(source, &options);
    assert_int_equal(report.samples_kept, 5);
    assert_int_equal(count_of(&report, "unsupported_member"), 4); /* notes, .hidden, kittens, pipe */
    json_decref(report.rejected);
    assert_ok(agglo_dataset_open(&dataset, &only, 1, &err));
    assert_int_equal(label_of(dataset, "cats/deep/x"), 0);
    assert_int_equal(label_of(dataset, "cats/y"), 77);
    assert_int_equal(label_of(dataset, "dogs/IMG_2020_01"), 1);
    assert_int_equal(label_of(dataset, "dogs/linked"), 1);
    assert_int_equal(label_of(dataset, "top"), -1);
    assert_int_equal(json_array_size(json_object_get(agglo_dataset_json(dataset, 0), "classes")), 2);
    agglo_dataset_close(dataset);

    /* the shard says the labels too: read as a tar it gives the same dataset */
    options.out = again.text;
    report = ingest_one(shard_path.text, &options);
    assert_int_equal(report.samples_kept, 5);
    json_decref(report.rejected);
    expect_same_file(out.text, again.text, "index.bin");

    /* more pictures, and a class that sorts before the others: labels stay, it gets the next */
    options.out = out.text;
    write_in(photos.text, "birds/tit.png", jpeg, n_jpeg);
    report = ingest_one(source, &options);
    assert_int_equal(report.samples_kept, 6);
    assert_int_equal(count_of(&report, "duplicate_uid"), 5);
    json_decref(report.rejected);
    assert_ok(agglo_dataset_open(&dataset, &only, 1, &err));
    assert_int_equal(label_of(dataset, "birds/tit"), 2);
    assert_int_equal(label_of(dataset, "dogs/linked"), 1);
    agglo_dataset_close(dataset);

    /* a dataset is a source, a folder of neither is none, and the output may not stand within its source */
    assert_ok(agglo_ingest_expand(&only, 1, arena, &paths, &n, &err));
    assert_int_equal(n, 2);
    source = path_in(photos.text, "dogs").text;
    unlink(path_in(photos.text, "dogs/linked.png").text);
    unlink(path_in(photos.text, "dogs/IMG.2020.01.JPG").text);
    source = test_path(photos.text, "dogs");
    assert_fails(agglo_ingest_expand(&source, 1, arena, &paths, &n, &err), AGGLO_E_CONFIG, "neither tars nor pictures");
    options.out = test_path(photos.text, "out");
    source = photos.text;
    assert_fails(agglo_ingest(&source, 1, &options, &report, &err), AGGLO_E_CONFIG, "stands in this folder");
    json_decref(report.rejected);
    agglo_arena_free(arena);
}

/* One header and its data by hand: what no library writes. */
static void raw_member(FILE *file, const char *name, char type, const void *data, size_t n)
{
    static const char zeros[512];
    char header[512] = {0};
    unsigned sum = 0;

    snprintf(header, 100, "%s", name);
    memcpy(header + 100, "0000644", 8);
    memcpy(header + 108, "0000000", 8);
    memcpy(header + 116, "0000000", 8);
    snprintf(header + 124, 12, "%011lo", (unsigned long)n);
    memcpy(header + 136, "00000000000", 12);
    memset(header + 148, ' ', 8);
    header[156] = type;
    memcpy(header + 257, "ustar\00000", 8);
    for (int i = 0; i < 512; i++) {
        sum += (uint8_t)header[i];
    }
    snprintf(header + 148, 8, "%06o", sum);
    assert_int_equal(fwrite(header, 1, 512, file), 512);
    assert_int_equal(fwrite(data, 1, n, file), n);
    assert_int_equal(fwrite(zeros, 1, -n & 511, file), -n & 511);
}

static void test_odd_members_cost_themselves(void **state)
{
    path_text dir = path_in(test_dir(), ""), file = path_in(dir.text, "a.tar"), out = path_in(dir.text, "out");
    agglo_ingest_options options = options_for(out.text);
    agglo_ingest_report report;
    static const char zeros[1024], global[] = "52 comment=0123456789012345678901234567890123456789\n",
                                   bad_global[] = "17 path=evil.jpg\n";
    char long_name[300];
    FILE *raw = fopen(file.text, "wb");
    tar t;

    (void)state;
    assert_non_null(raw);
    raw_member(raw, "pax_global_header", 'g', global, sizeof global - 1);
    raw_member(raw, "a.jpg", '0', jpeg, n_jpeg);
    raw_member(raw, "unknown.jpg", 'Z', jpeg, n_jpeg);
    raw_member(raw, "link.jpg", '2', "", 0);
    raw_member(raw, "pipe.jpg", '6', "", 0);
    raw_member(raw, "b.jpg", '7', jpeg, n_jpeg); /* contiguous: a file like any other */
    raw_member(raw, "old.jpg", 0, jpeg, n_jpeg);
    fwrite(zeros, 1, sizeof zeros, raw);
    raw_member(raw, "behind.jpg", '0', jpeg, n_jpeg);
    fclose(raw);
    report = ingest_one(file.text, &options);
    assert_int_equal(report.samples_kept, 3);
    assert_int_equal(count_of(&report, "unsupported_member"), 3);
    assert_int_equal(count_of(&report, "trailing_data"), 1);
    assert_int_equal(report.shards_failed, 0);
    json_decref(report.rejected);

    raw = fopen(file.text, "wb");
    assert_non_null(raw);
    raw_member(raw, "a.jpg", '0', jpeg, n_jpeg);
    raw_member(raw, "pax_global_header", 'g', bad_global, sizeof bad_global - 1);
    raw_member(raw, "b.jpg", '0', jpeg, n_jpeg);
    fwrite(zeros, 1, sizeof zeros, raw);
    fclose(raw);
    options = options_for(path_in(dir.text, "global").text);
    report = ingest_one(file.text, &options);
    assert_int_equal(report.samples_kept, 1);
    assert_int_equal(count_of(&report, "shard_corrupt"), 1);
    json_decref(report.rejected);

    t = tar_begin(file.text, NULL, false);
    memset(long_name, 'n', sizeof long_name);
    strcpy(long_name + 200, ".jpg");
    tar_add(&t, long_name, jpeg, n_jpeg);
    tar_add(&t, "a.jpg", jpeg, n_jpeg);
    tar_add(&t, "a.bin", png, n_png);
    tar_add(&t, "a.json", "{not json", 9);
    tar_end(&t);
    options = options_for(path_in(dir.text, "names").text);
    options.max_name = 199;
    options.max_member_bytes = n_png - 1;
    report = ingest_one(file.text, &options);
    assert_int_equal(report.samples_kept, 1);
    assert_int_equal(count_of(&report, "name_too_long"), 1);
    assert_int_equal(count_of(&report, "member_too_big"), 1);
    assert_int_equal(count_of(&report, "bad_json"), 1);
    json_decref(report.rejected);
}

static void test_sidecars(void **state)
{
    static const struct {
        const char *json;
        bool understood, has_uid, has_sha256;
    } cases[] = {
        {"{\"uid\": \"00112233445566778899aabbccddeeff\", \"sha256\": null}", true, true, false},
        {"\xef\xbb\xbf{\"uid\": \"00112233445566778899AABBCCDDEEFF\"}", true, true, false},
        {"{\"uid\": \"00112233445566778899aabbccddeef\"}", true, false, false},
        {"{\"uid\": 7, \"clip\": NaN, \"x\": [-Infinity, \"NaN \\\" Infinity\"]}", true, false, false},
        {"{\"a\": NaN, \"uid\": \"00112233445566778899aabbccddeeff\"}", true, true, false},
        {"{\"a\": \"x\\u0000y\", \"sha256\": \"00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\"}",
         true, false, true},
        {"{\"caption\": \"cut \\ud83d\", \"ok\": \"\\ud83d\\ude00\", \"uid\": \"00112233445566778899aabbccddeeff\"}",
         true, true, false},
        {"{\"k\\u0000\": \"a\tb\", \"n\": 123456789012345678901234567890, \"r\": 1e999, \"uid\": "
         "\"00112233445566778899aabbccddeeff\"}",
         true, true, false},
        {"{\"a\": \"\\", false, false, false},
        {"{\"a\": \"\\ud8", false, false, false},
        {"[1, 2]", false, false, false},
        {"{\"a\": nano}", false, false, false},
        {"", false, false, false},
    };

    (void)state;
    for (size_t i = 0; i < AGGLO_COUNT(cases); i++) {
        agglo_sidecar sidecar;

        agglo_sidecar_read((agglo_bytes){(const uint8_t *)cases[i].json, strlen(cases[i].json)}, &sidecar);
        assert_int_equal(sidecar.understood, cases[i].understood);
        assert_int_equal(sidecar.has_uid, cases[i].has_uid);
        assert_int_equal(sidecar.has_sha256, cases[i].has_sha256);
        if (sidecar.has_uid) {
            assert_memory_equal(sidecar.uid, "\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff", 16);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(load_pictures),
        cmocka_unit_test(test_selection),
        cmocka_unit_test(test_duplicates_and_digests),
        cmocka_unit_test(test_large_pictures_are_made_smaller),
        cmocka_unit_test(test_folders_of_pictures),
        cmocka_unit_test(test_odd_members_cost_themselves),
        cmocka_unit_test(test_sidecars),
        cmocka_unit_test(free_pictures),
    };

    return test_run("ingest_options", tests);
}
