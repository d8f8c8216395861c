/* Files that appear only when complete, directories, JSON, the stop flag, and what goes to standard error. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/json.h"
#include "base/log.h"
#include "base/stop.h"
#include "tests/support/support.h"

static void write_file(const char *path, const char *text)
{
    agglo_err err = {0};

    assert_ok(agglo_file_write(path, text, strlen(text), &err));
}

static void assert_content(const char *path, const char *text)
{
    agglo_err err = {0};
    char *data;
    size_t n;

    assert_ok(agglo_file_read(path, 1 << 20, &data, &n, &err));
    assert_int_equal(n, strlen(text));
    assert_string_equal(data, text);
    agglo_free(data);
}

static size_t count_names(const char *dir)
{
    agglo_arena *arena;
    agglo_err err = {0};
    char **names;
    size_t n;

    assert_ok(agglo_arena_new(&arena, 0, &err));
    assert_ok(agglo_list_dir(dir, arena, &names, &n, &err));
    agglo_arena_free(arena);
    return n;
}

/* ---- paths ---- */

static void paths_are_joined_and_cut(void **state)
{
    static const char *const joins[][3] = {{"a", "b", "a/b"},        {"a/", "b", "a/b"}, {"", "b", "b"},
                                           {".", "b", "b"},          {"/", "b", "/b"},   {"a", "/b", "/b"},
                                           {"a/b", "c/d", "a/b/c/d"}};
    static const char *const cuts[][3] = {{"a/b", "a", "b"}, {"b", ".", "b"}, {"/b", "/", "b"}, {"a/b/", "a/b", ""}};
    agglo_err err = {0};

    (void)state;
    for (size_t i = 0; i < AGGLO_COUNT(joins); i++) {
        char *path = agglo_path_join(joins[i][0], joins[i][1], &err);

        assert_string_equal(path, joins[i][2]);
        agglo_free(path);
    }
    for (size_t i = 0; i < AGGLO_COUNT(cuts); i++) {
        char *dir = agglo_path_dir(cuts[i][0], &err);

        assert_string_equal(dir, cuts[i][1]);
        assert_string_equal(agglo_path_base(cuts[i][0]), cuts[i][2]);
        agglo_free(dir);
    }
}

static void directories_are_made_with_their_parents(void **state)
{
    const char *dir = test_dir(), *deep = test_path(dir, "a//b/c/"), *file = test_path(dir, "file");
    agglo_err err = {0};

    (void)state;
    assert_ok(agglo_make_dirs(deep, &err));
    assert_true(agglo_path_is_dir(test_path(dir, "a/b/c")));
    assert_ok(agglo_make_dirs(deep, &err));
    assert_ok(agglo_make_dirs("/", &err));
    assert_ok(agglo_make_dirs(".", &err));
    write_file(file, "x");
    assert_false(agglo_path_is_dir(file));
    assert_true(agglo_path_exists(file));
    assert_fails(agglo_make_dirs(file, &err), AGGLO_E_IO, "cannot make directory: Not a directory");
    assert_fails(agglo_make_dirs(test_path(file, "b"), &err), AGGLO_E_IO, file);
    assert_fails(agglo_make_dirs("", &err), AGGLO_E_IO, "cannot make directory: No such file or directory");
}

static void listings_are_sorted_by_bytes(void **state)
{
    const char *dir = test_dir();
    agglo_arena *arena;
    agglo_err err = {0};
    char **names;
    size_t n;

    (void)state;
    assert_ok(agglo_arena_new(&arena, 0, &err));
    assert_ok(agglo_list_dir(dir, arena, &names, &n, &err));
    assert_int_equal(n, 0);
    for (int i = 0; i < 150; i++) {
        char name[16];
        int fd;

        snprintf(name, sizeof name, "%c%d", "aZ_\xc3"[i % 4], i);
        fd = open(test_path(dir, name), O_CREAT | O_WRONLY, 0666);
        assert_true(fd >= 0);
        close(fd);
    }
    assert_ok(agglo_list_dir(dir, arena, &names, &n, &err));
    assert_int_equal(n, 150);
    for (size_t i = 1; i < n; i++) {
        assert_true(strcmp(names[i - 1], names[i]) < 0);
    }
    assert_int_equal((unsigned char)names[149][0], 0xc3);
    assert_fails(agglo_list_dir(test_path(dir, "none"), arena, &names, &n, &err), AGGLO_E_NOT_FOUND, "cannot list");
    agglo_arena_free(arena);
}

static void trees_are_removed_and_links_are_not_followed(void **state)
{
    const char *dir = test_dir(), *kept = test_path(dir, "kept"), *tree = test_path(dir, "tree");
    agglo_err err = {0};

    (void)state;
    assert_ok(agglo_make_dirs(kept, &err));
    write_file(test_path(kept, "file"), "here");
    assert_ok(agglo_make_dirs(test_path(tree, "a/b"), &err));
    write_file(test_path(tree, "a/b/file"), "x");
    assert_int_equal(symlink(kept, test_path(tree, "a/link")), 0);
    assert_int_equal(symlink("nowhere", test_path(tree, "dangling")), 0);
    assert_int_equal(mkfifo(test_path(tree, "fifo"), 0600), 0);
    assert_ok(agglo_remove_tree(tree, &err));
    assert_false(agglo_path_exists(tree));
    assert_content(test_path(kept, "file"), "here");
    assert_ok(agglo_remove_tree(tree, &err)); /* a missing one is fine */
    assert_int_equal(symlink(kept, tree), 0);
    assert_ok(agglo_remove_tree(tree, &err)); /* a link itself goes, what it names stays */
    assert_false(agglo_path_exists(tree));
    assert_content(test_path(kept, "file"), "here");
}

/* ---- whole files ---- */

static void reads_are_bounded_and_of_regular_files(void **state)
{
    const char *dir = test_dir(), *file = test_path(dir, "file"), *fifo = test_path(dir, "fifo");
    agglo_mapping mapping;
    agglo_err err = {0};
    uint64_t size;
    char *data;
    size_t n;

    (void)state;
    write_file(file, "0123456789");
    assert_ok(agglo_file_read(file, 10, &data, &n, &err));
    assert_string_equal(data, "0123456789");
    agglo_free(data);
    assert_fails(agglo_file_read(file, 9, &data, &n, &err), AGGLO_E_DATA, "10 bytes, more than the 9");
    assert_null(data);
    assert_ok(agglo_file_size(file, &size, &err));
    assert_int_equal(size, 10);
    assert_ok(agglo_map_file(file, &mapping, &err));
    assert_int_equal(mapping.size, 10);
    assert_memory_equal(mapping.data, "0123456789", 10);
    agglo_unmap(&mapping);
    agglo_unmap(&mapping);
    write_file(file, "");
    assert_ok(agglo_map_file(file, &mapping, &err));
    assert_non_null(mapping.data);
    assert_int_equal(mapping.size, 0);
    agglo_unmap(&mapping);

    assert_int_equal(mkfifo(fifo, 0600), 0); /* nobody writes: a read that waited would never return */
    assert_fails(agglo_file_read(fifo, 9, &data, &n, &err), AGGLO_E_IO, "not a regular file");
    assert_fails(agglo_map_file(fifo, &mapping, &err), AGGLO_E_IO, "not a regular file");
    assert_fails(agglo_file_size(dir, &size, &err), AGGLO_E_IO, "not a regular file");
    assert_fails(agglo_file_read(dir, 9, &data, &n, &err), AGGLO_E_IO, "cannot read file");
    assert_fails(agglo_file_read(test_path(dir, "none"), 9, &data, &n, &err), AGGLO_E_NOT_FOUND, "none");
    assert_fails(agglo_file_size(test_path(dir, "none"), &size, &err), AGGLO_E_NOT_FOUND, "none");
    assert_fails(agglo_map_file(test_path(dir, "none"), &mapping, &err), AGGLO_E_NOT_FOUND, "none");
    agglo_unmap(&mapping);
}

/* ---- new files ---- */

static void a_new_file_appears_when_committed(void **state)
{
    const char *dir = test_dir(), *path = test_path(dir, "file");
    agglo_new_file *file;
    agglo_err err = {0};

    (void)state;
    for (int round = 0; round < 2; round++) { /* new, then in place of the old one */
        assert_ok(agglo_new_file_open(&file, path, NULL, &err));
        assert_ok(agglo_new_file_write(file, "one ", 4, &err));
        assert_ok(agglo_new_file_write(file, "", 0, &err));
        assert_int_equal(agglo_new_file_size(file), 4);
        assert_true(agglo_is_temp_name(agglo_path_base(agglo_new_file_temp(file))));
        assert_int_equal(agglo_path_exists(path), round);
        assert_ok(agglo_new_file_write(file, round ? "three" : "two", round ? 5 : 3, &err));
        assert_ok(agglo_new_file_commit(file, &err));
        assert_content(path, round ? "one three" : "one two");
        assert_int_equal(count_names(dir), 1);
    }
    assert_ok(agglo_new_file_open(&file, path, NULL, &err));
    assert_ok(agglo_new_file_write(file, "lost", 4, &err));
    agglo_new_file_abort(file);
    agglo_new_file_abort(NULL);
    assert_content(path, "one three");
    assert_int_equal(count_names(dir), 1);
    assert_false(agglo_is_temp_name("file"));
    assert_fails(agglo_new_file_open(&file, test_path(dir, "none/file"), NULL, &err), AGGLO_E_IO,
                 "cannot write file: ");
    assert_null(file);
}

/* By moving bytes where the file system can and the front is whole blocks, by a copy otherwise: equal results. */
static void a_front_goes_before_what_was_written(void **state)
{
    static const size_t fronts[] = {0, 10, 4096, 12288, (1 << 20) + 4096}, bodies[] = {0, 1, 4095, (2 << 20) + 77};
    const char *dir = test_dir(), *path = test_path(dir, "file");
    static uint8_t data[(4 << 20)];
    test_random random = test_random_new(17);
    agglo_new_file *file, *front;
    agglo_err err = {0};
    char *back;
    size_t n;

    (void)state;
    test_random_bytes(&random, data, sizeof data);
    for (size_t i = 0; i < AGGLO_COUNT(fronts) * AGGLO_COUNT(bodies); i++) {
        size_t n_front = fronts[i / AGGLO_COUNT(bodies)], n_body = bodies[i % AGGLO_COUNT(bodies)];

        assert_ok(agglo_new_file_open(&file, path, NULL, &err));
        assert_ok(agglo_new_file_open(&front, path, NULL, &err));
        assert_ok(agglo_new_file_write(file, data + n_front, n_body, &err));
        for (size_t at = 0; at < n_front; at += n_front / 2 + 1) {
            size_t piece = n_front - at < n_front / 2 + 1 ? n_front - at : n_front / 2 + 1;

            assert_ok(agglo_new_file_write(front, data + at + 1, piece, &err)); /* wrong, then put right */
        }
        assert_ok(agglo_new_file_rewrite(front, 0, data, n_front, &err));
        assert_ok(agglo_new_file_prepend(file, front, &err));
        agglo_new_file_abort(front);
        assert_int_equal(agglo_new_file_size(file), n_front + n_body);
        assert_ok(agglo_new_file_write(file, data + n_front + n_body, 5, &err)); /* goes on behind it */
        assert_ok(agglo_new_file_commit(file, &err));
        assert_int_equal(count_names(dir), 1);
        assert_ok(agglo_file_read(path, sizeof data, &back, &n, &err));
        assert_int_equal(n, n_front + n_body + 5);
        assert_memory_equal(back, data, n);
        agglo_free(back);
    }
}

static void a_scratch_file_moves_over_when_committed(void **state)
{
    const char *dir = test_dir(), *scratch = test_dir(), *path = test_path(dir, "file");
    test_random random = test_random_new(5);
    static char data[(1 << 20) + 12345];
    agglo_new_file *file;
    agglo_err err = {0};
    char *back;
    size_t n;

    (void)state;
    test_random_bytes(&random, data, sizeof data);
    assert_ok(agglo_new_file_open(&file, path, scratch, &err));
    assert_memory_equal(agglo_new_file_temp(file), scratch, strlen(scratch));
    assert_ok(agglo_new_file_write(file, data, sizeof data, &err));
    assert_int_equal(count_names(dir), 0);
    assert_ok(agglo_new_file_commit(file, &err));
    assert_int_equal(count_names(scratch), 0);
    assert_int_equal(count_names(dir), 1);
    assert_ok(agglo_file_read(path, 1 << 21, &back, &n, &err));
    assert_int_equal(n, sizeof data);
    assert_memory_equal(back, data, n);
    agglo_free(back);
    /* the final directory goes away meanwhile: one error, nothing remains */
    assert_ok(agglo_new_file_open(&file, test_path(dir, "gone/file"), scratch, &err));
    assert_fails(agglo_new_file_commit(file, &err), AGGLO_E_IO, "gone/file");
    assert_int_equal(count_names(scratch), 0);
}

static void sealed_files_wait_without_a_descriptor(void **state)
{
    enum { N = 40 };
    const char *dir = test_dir(), *open_before = "/proc/self/fd";
    agglo_new_file *files[N];
    agglo_err err = {0};
    size_t n_open = count_names(open_before);
    uint64_t size;

    (void)state;
    for (int i = 0; i < N; i++) {
        char name[16];

        snprintf(name, sizeof name, "f%02d", i);
        assert_ok(agglo_new_file_open(&files[i], test_path(dir, name), NULL, &err));
        assert_ok(agglo_new_file_write(files[i], name, 3, &err));
        assert_ok(agglo_new_file_seal(files[i], &err));
        assert_ok(agglo_new_file_seal(files[i], &err)); /* harmless twice */
        assert_int_equal(agglo_new_file_size(files[i]), 3);
    }
    assert_int_equal(count_names(open_before), n_open);
    assert_int_equal(count_names(dir), N);
    assert_false(agglo_path_exists(test_path(dir, "f00")));
    for (int i = 0; i < N; i += 2) {
        assert_ok(agglo_new_file_commit(files[i], &err));
        agglo_new_file_abort(files[i + 1]);
    }
    assert_int_equal(count_names(dir), N / 2);
    assert_ok(agglo_file_size(test_path(dir, "f38"), &size, &err));
    assert_int_equal(size, 3);
}

static void a_full_disc_is_one_error_with_its_file(void **state)
{
    const char *dir = test_dir(), *path = test_path(dir, "file");
    int full = open("/dev/full", O_RDWR), next;
    agglo_new_file *file;
    agglo_err err = {0};
    char line[1024];

    (void)state;
    if (full < 0) {
        skip();
    }
    next = dup(full); /* the number that the file will get */
    close(next);
    assert_ok(agglo_new_file_open(&file, path, NULL, &err));
    assert_int_equal(dup2(full, next), next);
    close(full);
    assert_int_equal(agglo_new_file_write(file, "text", 4, &err), AGGLO_E_IO);
    snprintf(line, sizeof line, "cannot write file: %s (%s)", strerror(ENOSPC), path);
    assert_string_equal(agglo_err_line(&err, (char[1024]){0}, 1024), line);
    agglo_err_clear(&err);
    agglo_new_file_abort(file);
    assert_int_equal(count_names(dir), 0);
}

static void a_failing_commit_leaves_nothing(void **state)
{
    const char *dir = test_dir(), *path = test_path(dir, "taken");
    agglo_new_file *file;
    agglo_err err = {0};

    (void)state;
    assert_ok(
        agglo_make_dirs(test_path(path, "inner"), &err)); /* a directory that holds something cannot be replaced */
    assert_ok(agglo_new_file_open(&file, path, NULL, &err));
    assert_fails(agglo_new_file_commit(file, &err), AGGLO_E_IO, "cannot write file: ");
    assert_int_equal(count_names(dir), 1);
}

static void links_under_temporary_names_are_not_written_through(void **state)
{
    const char *dir = test_dir(), *victim = test_path(dir, "victim");
    agglo_new_file *file;
    agglo_err err = {0};
    unsigned number;

    (void)state;
    write_file(victim, "mine");
    assert_ok(agglo_new_file_open(&file, test_path(dir, "file"), NULL, &err));
    assert_int_equal(sscanf(agglo_path_base(agglo_new_file_temp(file)), ".tmp-%*d-%u-file", &number), 1);
    agglo_new_file_abort(file);
    for (unsigned i = 1; i < 4; i++) { /* names to come are easy to guess */
        char name[64];

        snprintf(name, sizeof name, ".tmp-%ld-%u-file", (long)getpid(), number + i);
        assert_int_equal(symlink(victim, test_path(dir, name)), 0);
    }
    assert_fails(agglo_new_file_open(&file, test_path(dir, "file"), NULL, &err), AGGLO_E_IO, "cannot write file");
    assert_content(victim, "mine");
}

/* A process killed at any moment leaves the old file or the new one, whole. */
static void a_killed_process_leaves_no_half_file(void **state)
{
    enum { SIZE = 300000 };
    const char *dir = test_dir(), *path = test_path(dir, "file");
    test_random random = test_random_new(9);
    static char data[SIZE];
    agglo_err err = {0};
    char *back;
    size_t n;

    (void)state;
    assert_ok(agglo_file_write(path, data, SIZE, &err));
    for (int round = 0; round < 12; round++) {
        int status, ready[2];
        pid_t child;
        char byte;

        assert_int_equal(pipe(ready), 0);
        fflush(NULL);
        child = fork();
        if (child == 0) {
            agglo_err child_err = {0};

            for (int i = 0;; i++) {
                agglo_new_file *file;

                memset(data, 'a' + i % 26, SIZE);
                if (agglo_new_file_open(&file, path, NULL, &child_err) != AGGLO_OK) {
                    _exit(1);
                }
                for (size_t at = 0; at < SIZE; at += SIZE / 10) {
                    agglo_new_file_write(file, data + at, SIZE / 10, &child_err);
                    if (write(ready[1], "", 1) != 1) {
                        _exit(1);
                    }
                }
                if (agglo_new_file_commit(file, &child_err) != AGGLO_OK) {
                    _exit(1);
                }
            }
        }
        close(ready[1]);
        for (uint32_t writes = test_random_u32(&random) % 35; writes > 0; writes--) {
            assert_int_equal(read(ready[0], &byte, 1), 1);
        }
        assert_int_equal(kill(child, SIGKILL), 0);
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status));
        close(ready[0]);
        assert_ok(agglo_file_read(path, 1 << 20, &back, &n, &err));
        assert_int_equal(n, SIZE);
        for (size_t i = 1; i < n; i++) {
            assert_int_equal(back[i], back[0]);
        }
        agglo_free(back);
    }
}

static void every_failing_allocation_leaves_nothing(void **state)
{
    const char *dir = test_dir(), *scratch = test_dir();
    int64_t n_live = agglo_alloc_counts().n_live;
    agglo_status status = AGGLO_E_MEMORY;

    (void)state;
    for (int64_t n = 0; status != AGGLO_OK; n++) {
        agglo_new_file *file;
        agglo_err err = {0};

        agglo_alloc_fail_after(n);
        status = agglo_new_file_open(&file, test_path(dir, "file"), scratch, &err);
        if (status == AGGLO_OK) {
            status = agglo_new_file_commit(file, &err);
        }
        agglo_alloc_fail_after(-1);
        assert_true(status == AGGLO_OK || status == AGGLO_E_MEMORY);
        assert_int_equal(err.status, status);
        assert_int_equal(agglo_alloc_counts().n_live, n_live);
        assert_int_equal(count_names(scratch), 0);
        assert_int_equal(count_names(dir), status == AGGLO_OK);
        assert_true(n < 100);
    }
}

/* ---- json ---- */

static void json_getters_say_what_is_wrong(void **state)
{
    static const char text[] =
        "{\"s\":\"x\",\"i\":-3,\"d\":0.5,\"b\":true,\"o\":{},\"a\":[],\"n\":null,\"h\":\"00fF\"}";
    const json_t *node;
    const char *string;
    agglo_err err = {0};
    uint8_t bytes[2];
    json_t *object;
    int64_t i;
    double d;
    bool b;

    (void)state;
    assert_ok(agglo_json_parse(text, sizeof text - 1, &object, &err));
    assert_ok(agglo_json_get_string(object, "s", &string, &err));
    assert_string_equal(string, "x");
    assert_ok(agglo_json_get_int(object, "i", -3, 7, &i, &err));
    assert_int_equal(i, -3);
    assert_ok(agglo_json_get_double(object, "d", &d, &err));
    assert_true(d == 0.5);
    assert_ok(agglo_json_get_double(object, "i", &d, &err));
    assert_true(d == -3);
    assert_ok(agglo_json_get_bool(object, "b", &b, &err));
    assert_true(b);
    assert_ok(agglo_json_get_object(object, "o", &node, &err));
    assert_true(json_is_object(node));
    assert_ok(agglo_json_get_array(object, "a", &node, &err));
    assert_true(json_is_array(node));
    assert_ok(agglo_json_get_hex(object, "h", bytes, 2, &err));
    assert_memory_equal(bytes, "\x00\xff", 2);

    assert_fails(agglo_json_get_string(object, "none", &string, &err), AGGLO_E_DATA, "key 'none' is missing");
    assert_fails(agglo_json_get_string(object, "i", &string, &err), AGGLO_E_DATA,
                 "key 'i' is an integer, expected a string");
    assert_fails(agglo_json_get_int(object, "i", -2, 7, &i, &err), AGGLO_E_DATA, "key 'i' is -3, allowed are -2 to 7");
    assert_fails(agglo_json_get_int(object, "d", 0, 7, &i, &err), AGGLO_E_DATA,
                 "key 'd' is a number, expected an integer");
    assert_fails(agglo_json_get_double(object, "n", &d, &err), AGGLO_E_DATA, "key 'n' is null, expected a number");
    assert_fails(agglo_json_get_bool(object, "o", &b, &err), AGGLO_E_DATA,
                 "key 'o' is an object, expected true or false");
    assert_fails(agglo_json_get_object(object, "a", &node, &err), AGGLO_E_DATA,
                 "key 'a' is a list, expected an object");
    assert_null(node);
    assert_fails(agglo_json_get_array(object, "b", &node, &err), AGGLO_E_DATA, "key 'b' is true, expected a list");
    assert_fails(agglo_json_get_hex(object, "h", bytes, 1, &err), AGGLO_E_DATA, "key 'h' is not 2 hex digits");
    assert_fails(agglo_json_get_hex(object, "s", bytes, 1, &err), AGGLO_E_DATA, "key 's' is not 2 hex digits");
    json_decref(object);
}

static void json_is_strict_and_round_trips(void **state)
{
    static const char *const bad[] = {"",     "{",        "{} x",    "{\"a\":1,\"a\":2}",
                                      "[1,]", "\"\xff\"", "[1e999]", "[99999999999999999999]"};
    static const char text[] = "{\"z\":[0.10000000000000001,1e300,-7],\"a\":\"\xc3\xa9\\n\"}";
    const char *path = test_path(test_dir(), "a.json");
    agglo_err err = {0};
    json_t *value;
    char *line;

    (void)state;
    for (size_t i = 0; i < AGGLO_COUNT(bad); i++) {
        assert_fails(agglo_json_parse(bad[i], strlen(bad[i]), &value, &err), AGGLO_E_DATA, "line 1 column ");
        assert_null(value);
    }
    assert_ok(agglo_json_parse(text, sizeof text - 1, &value, &err));
    assert_ok(agglo_json_write(path, value, &err));
    json_decref(value);
    assert_content(path, "{\n  \"z\": [\n    0.10000000000000001,\n    1.0000000000000001e300,\n    -7\n  ],\n  \"a\": "
                         "\"\xc3\xa9\\n\"\n}\n");
    assert_ok(agglo_json_read(path, 1000, &value, &err));
    line = agglo_json_line(value, &err);
    assert_string_equal(line, "{\"z\":[0.10000000000000001,1.0000000000000001e300,-7],\"a\":\"\xc3\xa9\\n\"}");
    agglo_free(line);
    for (int n = 0; n < 2; n++) {
        agglo_alloc_fail_after(0);
        line = n == 0 ? agglo_json_line(value, &err) : NULL;
        if (n == 1) {
            agglo_json_write(path, value, &err);
        }
        agglo_alloc_fail_after(-1);
        assert_null(line);
        assert_int_equal(err.status, AGGLO_E_MEMORY);
        agglo_err_clear(&err);
    }
    json_decref(value);
    assert_fails(agglo_json_read(path, 10, &value, &err), AGGLO_E_DATA, "more than the 10");
    write_file(path, "{\n\n  oops}");
    assert_fails(agglo_json_read(path, 1000, &value, &err), AGGLO_E_DATA, "cannot parse JSON: line 3 column ");
    assert_fails(agglo_json_read(path, 1000, &value, &err), AGGLO_E_DATA, path);
}

/* ---- stop ---- */

static void the_stop_flag_is_raised_by_hand_and_by_signals(void **state)
{
    static const int signals[] = {SIGINT, SIGTERM};
    agglo_err err = {0};

    (void)state;
    assert_false(agglo_stop_raised());
    assert_ok(agglo_stop_check(&err));
    agglo_stop_raise();
    assert_true(agglo_stop_raised());
    assert_fails(agglo_stop_check(&err), AGGLO_E_STOPPED, "stopped by signal");
    agglo_stop_reset();
    assert_false(agglo_stop_raised());
    for (int i = 0; i < 2; i++) {
        int status;
        pid_t child;

        fflush(NULL);
        child = fork();
        if (child == 0) {
            agglo_stop_install();
            raise(signals[i]);
            if (!agglo_stop_raised()) {
                _exit(1);
            }
            raise(signals[1 - i]); /* the second one ends the process */
            _exit(2);
        }
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), 128 + signals[1 - i]);
    }
}

/* ---- log ---- */

/* What `say` writes to standard error; valid until the next call. */
static const char *said(void (*say)(void))
{
    static char text[4096];
    FILE *file = tmpfile();
    int held = dup(STDERR_FILENO);
    size_t n;

    assert_non_null(file);
    assert_true(held >= 0);
    fflush(stderr);
    dup2(fileno(file), STDERR_FILENO);
    say();
    fflush(stderr);
    dup2(held, STDERR_FILENO);
    close(held);
    rewind(file);
    n = fread(text, 1, sizeof text - 1, file);
    text[n] = '\0';
    fclose(file);
    return text;
}

static void say_all_levels(void)
{
    for (int level = AGGLO_LOG_ERROR; level <= AGGLO_LOG_DEBUG; level++) {
        agglo_log((agglo_log_level)level, "level %d", level);
    }
}

static void say_progress(void)
{
    agglo_progress *outer = agglo_progress_begin("teaching", "images", 10);
    agglo_progress *inner = agglo_progress_begin("inner", "things", 0); /* one at a time is drawn */

    agglo_progress_add(inner, 1);
    agglo_progress_add(outer, 4);
    agglo_progress_note(outer, "loss %.1f", 9.5);
    agglo_progress_note(outer, "loss %.1f", 0.5);
    agglo_progress_end(inner);
    agglo_progress_add(outer, 6);
    agglo_progress_end(outer);
}

static void say_progress_without_memory(void)
{
    agglo_progress *progress;

    agglo_alloc_fail_after(0);
    progress = agglo_progress_begin("teaching", "images", 10);
    agglo_alloc_fail_after(-1);
    assert_null(progress);
    agglo_progress_add(progress, 1);
    agglo_progress_note(progress, "x");
    agglo_progress_end(progress);
}

static void the_level_decides_what_is_shown(void **state)
{
    static const char *const shown[] = {"level 0\n", "level 0\nlevel 1\n", "level 0\nlevel 1\nlevel 2\n",
                                        "level 0\nlevel 1\nlevel 2\nlevel 3\n"};
    agglo_log_level before = agglo_log_get_level();
    const char *text;

    (void)state;
    assert_int_equal(before, AGGLO_LOG_INFO);
    for (int level = AGGLO_LOG_ERROR; level <= AGGLO_LOG_DEBUG; level++) {
        agglo_log_set_level((agglo_log_level)level);
        assert_int_equal(agglo_log_get_level(), level);
        assert_string_equal(said(say_all_levels), shown[level]);
    }
    agglo_log_set_level(AGGLO_LOG_WARN);
    assert_string_equal(said(say_progress), "");
    agglo_log_set_level(before);
    text = said(say_progress);
    assert_memory_equal(text, "teaching: 10/10 images, ", 24);
    assert_non_null(strstr(text, " images/s, "));
    assert_non_null(strstr(text, ", loss 0.5\n"));
    assert_ptr_equal(strchr(text, '\n') + 1, text + strlen(text)); /* one line */
    assert_string_equal(said(say_progress_without_memory), "");
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(paths_are_joined_and_cut),
        cmocka_unit_test(directories_are_made_with_their_parents),
        cmocka_unit_test(listings_are_sorted_by_bytes),
        cmocka_unit_test(trees_are_removed_and_links_are_not_followed),
        cmocka_unit_test(reads_are_bounded_and_of_regular_files),
        cmocka_unit_test(a_new_file_appears_when_committed),
        cmocka_unit_test(a_front_goes_before_what_was_written),
        cmocka_unit_test(a_scratch_file_moves_over_when_committed),
        cmocka_unit_test(sealed_files_wait_without_a_descriptor),
        cmocka_unit_test(a_full_disc_is_one_error_with_its_file),
        cmocka_unit_test(a_failing_commit_leaves_nothing),
        cmocka_unit_test(links_under_temporary_names_are_not_written_through),
        cmocka_unit_test(a_killed_process_leaves_no_half_file),
        cmocka_unit_test(every_failing_allocation_leaves_nothing),
        cmocka_unit_test(json_getters_say_what_is_wrong),
        cmocka_unit_test(json_is_strict_and_round_trips),
        cmocka_unit_test(the_stop_flag_is_raised_by_hand_and_by_signals),
        cmocka_unit_test(the_level_decides_what_is_shown),
    };

    return test_run("files", tests);
}
