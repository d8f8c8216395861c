/* What every test program needs: cmocka with its headers in order, temporary directories, seeded random numbers, skipping, and the
 * check that nothing leaked.
 */
#ifndef AGGLO_TESTS_SUPPORT_SUPPORT_H
#define AGGLO_TESTS_SUPPORT_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "base/fs.h"

/* AGGLO_OK expected: prints the error line otherwise. `err` must be in scope. */
#define assert_ok(call)                                                                                                \
    do {                                                                                                               \
        char assert_ok_line[1024];                                                                                     \
        if ((call) != AGGLO_OK) {                                                                                      \
            fail_msg("%s: %s", #call, agglo_err_line(&err, assert_ok_line, sizeof assert_ok_line));                    \
        }                                                                                                              \
    } while (0)

/* A status expected, and a text that the error line must contain (NULL: any). */
#define assert_fails(call, expected, text)                                                                             \
    do {                                                                                                               \
        char assert_fails_line[1024];                                                                                  \
        agglo_status assert_fails_status = (call);                                                                     \
        agglo_err_line(&err, assert_fails_line, sizeof assert_fails_line);                                             \
        if (assert_fails_status != (expected) || err.status != (expected)) {                                           \
            fail_msg("%s: gave %s, expected %s: %s", #call, agglo_status_name(assert_fails_status),                    \
                     agglo_status_name(expected), assert_fails_line);                                                  \
        }                                                                                                              \
        if ((text) != NULL && strstr(assert_fails_line, (text)) == NULL) {                                             \
            fail_msg("%s: \"%s\" does not say \"%s\"", #call, assert_fails_line, (const char *)(text));                \
        }                                                                                                              \
        agglo_err_clear(&err);                                                                                         \
    } while (0)

/* A fresh empty directory, removed when the program ends. Static storage; at most 64 in a program. */
const char *test_dir(void);

/* dir + "/" + name; static storage of the last 16 results. */
const char *test_path(const char *dir, const char *name);

/* A file of this text. */
void test_write_text(const char *path, const char *text);

/* A path under tests/fixtures of the source tree. */
const char *test_fixture(const char *name);

/* A path in the folder of real pictures and teachers beside the checkout, or NULL when it is not there: then test_skip. */
const char *test_shared(const char *name);

/* End the program with status 77 and this reason (only before any test has run: from main). */
void test_skip_all(const char *reason);

/* Seeded stream: the same numbers on every machine. AGGLO_TEST_SEED in the environment changes the seed, which is printed. */
typedef struct test_random {
    uint64_t state;
} test_random;

test_random test_random_new(uint64_t stream);
uint32_t test_random_u32(test_random *random);
double test_random_uniform(test_random *random);        /* [0, 1) */
float test_random_normal(test_random *random);          /* N(0, 1) */
void test_random_fill(test_random *random, float *out, size_t n, float sigma);
void test_random_bytes(test_random *random, void *out, size_t n);

/* Run the group (AGGLO_TEST_FILTER=pattern: only tests whose name matches) with a check after it that every agglo_alloc was freed. */
#define test_run(name, tests)                                                                                          \
    (test_filter(), test_finish(name, _cmocka_run_group_tests(name, tests, sizeof(tests) / sizeof((tests)[0]), NULL, NULL)))

void test_filter(void);
int test_finish(const char *name, int n_failed);

#endif
