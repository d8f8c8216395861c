/* What the tests of ingest share: tars of every dialect, small pictures, comparing datasets. */
#ifndef AGGLO_TESTS_MAKE_TAR_H
#define AGGLO_TESTS_MAKE_TAR_H

#include "tests/support/support.h"

#include <archive.h>
#include <archive_entry.h>

#include "ingest/ingest.h"

/* ---- making tars ---- */

typedef struct tar {
    struct archive *archive;
} tar;

static inline tar tar_begin(const char *path, const char *filter, bool gnu)
{
    tar t = {archive_write_new()};

    if (gnu) {
        archive_write_set_format_gnutar(t.archive);
    } else {
        archive_write_set_format_pax(t.archive);
    }
    if (filter != NULL) {
        assert_int_equal(archive_write_add_filter_by_name(t.archive, filter), ARCHIVE_OK);
    }
    archive_write_set_bytes_in_last_block(t.archive, 1);
    assert_int_equal(archive_write_open_filename(t.archive, path), ARCHIVE_OK);
    return t;
}

static inline void tar_add(tar *t, const char *name, const void *data, size_t n)
{
    struct archive_entry *entry = archive_entry_new();

    archive_entry_set_pathname(entry, name);
    archive_entry_set_size(entry, (la_int64_t)n);
    archive_entry_set_filetype(entry, AE_IFREG);
    archive_entry_set_perm(entry, 0644);
    archive_entry_set_mtime(entry, 1700000000, 437641000); /* a fraction: pax writes a header before the member */
    assert_int_equal(archive_write_header(t->archive, entry), ARCHIVE_OK);
    assert_int_equal(archive_write_data(t->archive, data, n), (long)n);
    archive_entry_free(entry);
}

static inline void tar_end(tar *t)
{
    assert_int_equal(archive_write_close(t->archive), ARCHIVE_OK);
    archive_write_free(t->archive);
}

static char *jpeg, *png, *webp; /* small pictures of each kind */
static size_t n_jpeg, n_png, n_webp;

static inline void load_pictures(void **state)
{
    agglo_err err = {0};

    (void)state;
    assert_ok(agglo_file_read(test_fixture("decode/jpeg_420.jpg"), 1 << 20, &jpeg, &n_jpeg, &err));
    assert_ok(agglo_file_read(test_fixture("decode/png_rgb8.png"), 1 << 20, &png, &n_png, &err));
    assert_ok(agglo_file_read(test_fixture("decode/webp_lossy.webp"), 1 << 20, &webp, &n_webp, &err));
}

static inline void free_pictures(void **state)
{
    (void)state;
    agglo_free(jpeg);
    agglo_free(png);
    agglo_free(webp);
}

/* n ordinary samples named PREFIX0000 and up. */
static inline void make_plain(const char *path, const char *filter, bool gnu, const char *prefix, int n)
{
    tar t = tar_begin(path, filter, gnu);

    for (int i = 0; i < n; i++) {
        char name[300], text[64];

        snprintf(name, sizeof name, "%s%04d.jpg", prefix, i);
        tar_add(&t, name, jpeg, n_jpeg);
        snprintf(name, sizeof name, "%s%04d.txt", prefix, i);
        snprintf(text, sizeof text, "caption %d", i);
        tar_add(&t, name, text, strlen(text));
    }
    tar_end(&t);
}

static inline agglo_ingest_options options_for(const char *out)
{
    agglo_ingest_options options = agglo_ingest_options_default();

    options.out = out;
    options.jobs = 2;
    return options;
}

static inline int64_t count_of(const agglo_ingest_report *report, const char *reason)
{
    return json_integer_value(json_object_get(report->rejected, reason));
}

static inline void expect_same_file(const char *a_dir, const char *b_dir, const char *name)
{
    agglo_err err = {0};
    char *a, *b, path[512];
    size_t n_a, n_b;

    snprintf(path, sizeof path, "%s/%s", a_dir, name);
    assert_ok(agglo_file_read(path, (size_t)1 << 30, &a, &n_a, &err));
    snprintf(path, sizeof path, "%s/%s", b_dir, name);
    assert_ok(agglo_file_read(path, (size_t)1 << 30, &b, &n_b, &err));
    assert_int_equal(n_a, n_b);
    assert_memory_equal(a, b, n_a);
    agglo_free(a);
    agglo_free(b);
}

/* All but the seconds in dataset.json; each folder holds n_files entries and no more. */
static inline void expect_same_dataset_of(const char *a, const char *b, size_t n_files)
{
    agglo_err err = {0};
    agglo_arena *arena;
    char **names_a, **names_b;
    size_t n_a, n_b;
    json_t *json[2];
    char name[64];

    assert_ok(agglo_arena_new(&arena, 0, &err));
    assert_ok(agglo_list_dir(test_path(a, "shards"), arena, &names_a, &n_a, &err));
    assert_ok(agglo_list_dir(test_path(b, "shards"), arena, &names_b, &n_b, &err));
    assert_int_equal(n_a, n_b);
    for (size_t i = 0; i < n_a; i++) {
        assert_string_equal(names_a[i], names_b[i]);
        snprintf(name, sizeof name, "shards/%s", names_a[i]);
        expect_same_file(a, b, name);
    }
    expect_same_file(a, b, "index.bin");
    expect_same_file(a, b, "rejects.jsonl");
    for (int k = 0; k < 2; k++) {
        assert_ok(agglo_json_read(test_path(k == 0 ? a : b, "dataset.json"), 1 << 24, &json[k], &err));
        json_object_del(json_object_get(json[k], "report"), "seconds");
    }
    assert_true(json_equal(json[0], json[1]));
    json_decref(json[0]);
    json_decref(json[1]);
    assert_ok(agglo_list_dir(a, arena, &names_a, &n_a, &err));
    assert_int_equal(n_a, n_files); /* nothing temporary is left */
    agglo_arena_free(arena);
}

static inline void expect_same_dataset(const char *a, const char *b)
{
    expect_same_dataset_of(a, b, 4);
}

/* A path that stays: test_path keeps its last results only. */
typedef struct path_text {
    char text[300];
} path_text;

static inline path_text path_in(const char *dir, const char *name)
{
    path_text path;

    snprintf(path.text, sizeof path.text, "%.230s/%.60s", dir, name);
    return path;
}

#endif
