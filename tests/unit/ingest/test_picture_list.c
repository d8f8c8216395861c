/* The list of pictures behind embed: what is one, how many there are, and what is named when it is left out. Nothing is decoded. */
#include "tests/unit/ingest/make_tar.h"

#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "ingest/pictures.h"
#include "ingest/sample.h"
#include "ingest/source.h"

static void put_file(const char *path)
{
    agglo_err err = {0};

    assert_ok(agglo_file_write(path, "\xff\xd8\xff\xe0", 4, &err));
}

/* All keys of a list, with '|' behind each; *expected: what the list says after its first picture. */
static agglo_pictures_report keys_of(const char *const *args, size_t n, char *out, size_t n_out, uint64_t *expected)
{
    agglo_pictures_report report;
    agglo_pictures *list;
    agglo_picture picture = {0};
    agglo_err err = {0};
    bool more = true;
    size_t used = 0;

    out[0] = '\0';
    *expected = 0;
    assert_ok(agglo_pictures_new(&list, args, n, test_dir(), &err));
    for (;;) {
        assert_ok(agglo_pictures_next(list, &picture, &more, &err));
        if (!more) {
            break;
        }
        *expected = used == 0 ? agglo_pictures_expected(list) : *expected;
        used += (size_t)snprintf(out + used, n_out - used, "%s|", picture.key);
        assert_true(used < n_out);
        agglo_picture_release(&picture);
    }
    agglo_picture_clear(&picture);
    report = agglo_pictures_report_of(list);
    report.lost = json_deep_copy(report.lost);
    agglo_pictures_free(list);
    return report;
}

static void a_folder_names_what_it_leaves_out(void **state)
{
    const char *dir = test_dir(), *args[] = {dir};
    static const char *const files[] = {"a.b.jpg",     "a.png",      "x.seg.png",    "notes.txt",
                                        ".hidden.jpg", "sub/c.JPEG", "__old__/d.jpg"};
    agglo_pictures_report report;
    agglo_err err = {0};
    uint64_t expected;
    char keys[512];

    (void)state;
    assert_ok(agglo_make_dirs(test_path(dir, "sub"), &err));
    assert_ok(agglo_make_dirs(test_path(dir, "__old__"), &err));
    for (size_t i = 0; i < AGGLO_COUNT(files); i++) {
        put_file(test_path(dir, files[i]));
    }
    report = keys_of(args, 1, keys, sizeof keys, &expected);
    assert_string_equal(keys, "__old__/d|a_b|a|sub/c|");
    assert_int_equal(expected, 4);
    assert_int_equal(report.n_rejected + report.n_lost, 0);
    json_decref(report.lost);

    /* called a picture and none; what no picture is called like stays unsaid */
    assert_int_equal(symlink("nowhere", test_path(dir, "gone.jpg")), 0);
    assert_int_equal(symlink("nowhere", test_path(dir, "gone.txt")), 0);
    assert_int_equal(symlink("nowhere", test_path(dir, ".gone.jpg")), 0);
    assert_int_equal(mkfifo(test_path(dir, "pipe.png"), 0600), 0);
    assert_int_equal(mkfifo(test_path(dir, "pipe"), 0600), 0);
    assert_int_equal(symlink("sub", test_path(dir, "link")), 0);
    report = keys_of(args, 1, keys, sizeof keys, &expected);
    assert_string_equal(keys, "__old__/d|a_b|a|sub/c|");
    assert_int_equal(expected, 4);
    assert_int_equal(report.n_rejected, 2);
    assert_int_equal(report.n_lost, 0);
    json_decref(report.lost);
}

static void a_folder_that_is_not_read_is_lost(void **state)
{
    const char *dir = test_dir(), *args[] = {dir};
    agglo_pictures_report report;
    agglo_err err = {0};
    uint64_t expected;
    char deep[512], keys[512];
    size_t used = (size_t)snprintf(deep, sizeof deep, "deep");

    (void)state;
    put_file(test_path(dir, "a.jpg"));
    for (int i = 0; i < 65; i++) {
        used += (size_t)snprintf(deep + used, sizeof deep - used, "/d");
    }
    assert_ok(agglo_make_dirs(test_path(dir, deep), &err));
    report = keys_of(args, 1, keys, sizeof keys, &expected);
    assert_string_equal(keys, "a|");
    assert_int_equal(report.n_rejected, 0);
    assert_int_equal(report.n_lost, 1);
    assert_non_null(strstr(json_string_value(json_object_get(json_array_get(report.lost, 0), "source")), "deep/d/d"));
    assert_string_equal(json_string_value(json_object_get(json_array_get(report.lost, 0), "reason")),
                        "a folder too deep");
    json_decref(report.lost);
}

static void a_tar_names_what_it_leaves_out(void **state)
{
    const char *dir = test_dir(), *path = test_path(dir, "a.tar"), *args[] = {path};
    static const char *const names[] = {"x.jpg", "x.jpg", "x.txt",   "x.txt", "y.jpg",
                                        "x.png", ".jpg",  "._x.jpg", "z.jpg"};
    static char longer[4200];
    tar t = tar_begin(path, NULL, false);
    agglo_pictures_report report;
    uint64_t expected;
    char keys[512];

    (void)state;
    for (size_t i = 0; i < AGGLO_COUNT(names); i++) {
        tar_add(&t, names[i], names[i], strlen(names[i]));
    }
    memset(longer, 'n', sizeof longer - 5);
    memcpy(longer + sizeof longer - 5, ".jpg", 5);
    tar_add(&t, longer, "", 0);
    tar_end(&t);
    report = keys_of(args, 1, keys, sizeof keys, &expected);
    assert_string_equal(keys, "x|y|z|");
    assert_int_equal(expected, 3);
    /* the second x.jpg, x.png, .jpg and the long one; nothing is said of the second x.txt and of the finder's ._x.jpg */
    assert_int_equal(report.n_rejected, 4);
    assert_int_equal(report.n_lost, 0);
    json_decref(report.lost);
}

static void the_total_is_known_with_the_last_source(void **state)
{
    const char *dir = test_dir(), *one = test_path(dir, "one"), *two = test_path(dir, "two");
    const char *folders[] = {one, two}, *singles[] = {one, NULL, NULL};
    agglo_pictures_report report;
    agglo_err err = {0};
    uint64_t expected;
    char keys[512];

    (void)state;
    assert_ok(agglo_make_dirs(one, &err));
    assert_ok(agglo_make_dirs(two, &err));
    put_file(test_path(one, "a.jpg"));
    put_file(test_path(one, "b.jpg"));
    put_file(test_path(two, "c.jpg"));
    report = keys_of(folders, 2, keys, sizeof keys, &expected);
    assert_string_equal(keys, "a|b|c|");
    assert_int_equal(expected, 0); /* of the second folder nothing is known yet */
    json_decref(report.lost);
    singles[1] = test_path(two, "c.jpg");
    singles[2] = singles[1];
    report = keys_of(singles, 3, keys, sizeof keys, &expected);
    assert_string_equal(keys, "a|b|c|c|");
    assert_int_equal(expected, 4);
    json_decref(report.lost);
}

static void names_are_told_in_one_place(void **state)
{
    static const char *const tars[] = {"a.tar", "b.tar.gz", "c.tgz", "d.tar.zst", "e.tar.zstd"}, *const others[] = {
                                                                                                     ".tar", "a.gz",
                                                                                                     "a.tar.bz2", "tar",
                                                                                                     "a.tar.jpg"};
    static const struct {
        const char *from, *to;
    } stems[] = {{"a.b.jpg", "a_b.jpg"},
                 {"d.d/a.b.c.jpg", "d.d/a_b_c.jpg"},
                 {"a.b.seg.png", "a_b.seg.png"},
                 {"a.seg.jpg", "a_seg.jpg"},
                 {"plain", "plain"},
                 {".seg.png", "_seg.png"},
                 {"", ""}};
    static const uint8_t gzip[] = {0x1f, 0x8b, 8, 0}, zstd[] = {0x28, 0xb5, 0x2f, 0xfd},
                         skip[] = {0x53, 0x2a, 0x4d, 0x18};

    (void)state;
    for (size_t i = 0; i < AGGLO_COUNT(tars); i++) {
        assert_true(agglo_is_tar_name(tars[i]));
        assert_false(agglo_is_tar_name(others[i]));
    }
    for (size_t i = 0; i < AGGLO_COUNT(stems); i++) {
        char name[32];

        snprintf(name, sizeof name, "%s", stems[i].from);
        agglo_name_join_stem(name);
        assert_string_equal(name, stems[i].to);
    }
    assert_int_equal(agglo_packing_of((agglo_bytes){gzip, 4}), AGGLO_PACKED_GZIP);
    assert_int_equal(agglo_packing_of((agglo_bytes){zstd, 4}), AGGLO_PACKED_ZSTD);
    assert_int_equal(agglo_packing_of((agglo_bytes){skip, 4}), AGGLO_PACKED_ZSTD);
    assert_int_equal(agglo_packing_of((agglo_bytes){zstd, 3}), AGGLO_PACKED_NOT);
    assert_int_equal(agglo_packing_of((agglo_bytes){gzip, 1}), AGGLO_PACKED_NOT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_folder_names_what_it_leaves_out), cmocka_unit_test(a_folder_that_is_not_read_is_lost),
        cmocka_unit_test(a_tar_names_what_it_leaves_out),    cmocka_unit_test(the_total_is_known_with_the_last_source),
        cmocka_unit_test(names_are_told_in_one_place),
    };

    agglo_log_set_level(AGGLO_LOG_ERROR);
    return test_run("picture list", tests);
}
