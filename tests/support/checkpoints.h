/* Checkpoints for tests of teachers: altered copies, what a file is recognised as, seeded features, and how far features are from a
 * reference. Links agglo_teachers (library agglo_test_checkpoints). */
#ifndef AGGLO_TESTS_SUPPORT_CHECKPOINTS_H
#define AGGLO_TESTS_SUPPORT_CHECKPOINTS_H

#include "teachers/teacher.h"
#include "tests/support/support.h"

/* ---- altered copies ---- */

/* Change a tensor on its way to the copy: name, type, rank, shape, data, all borrowed until the copy is written; false drops it. */
typedef bool (*test_alter)(agglo_st_tensor *t, const char *text);

typedef struct test_copy {
    const char *from, *to;
    bool metadata;    /* copied too */
    const char *skip; /* tensors whose name begins so are left out; NULL: none */
    test_alter alter; /* NULL: none is changed */
    const char *text; /* for alter */
    const char *more; /* one more tensor of this name, F32 [1]; NULL: none */
} test_copy;

void test_copy_checkpoint(const test_copy *copy);

/* The same without skip and more. */
void test_rewrite(const char *from, const char *to, bool metadata, test_alter alter, const char *text);

/* For alterations: memory, start + end as a name, and the tensor's values as floats (it becomes F32), all kept until the copy is written. */
void *test_keep(size_t n_bytes);
const char *test_keep_name(const char *start, const char *end);
float *test_keep_values(agglo_st_tensor *t);
void test_keep_end(void); /* a copy ends so; for who writes without one */

bool test_drop(agglo_st_tensor *t, const char *text);       /* the tensor of this name */
bool test_drop_start(agglo_st_tensor *t, const char *text); /* all whose name begins so */
bool test_add_prefix(agglo_st_tensor *t, const char *text);
bool test_cut_prefix(agglo_st_tensor *t, const char *text);  /* where it is */
bool test_as_integers(agglo_st_tensor *t, const char *text); /* the tensor of this name, its floats called I32 */

/* ---- what a file is ---- */

/* To be cleared when it is AGGLO_OK. */
agglo_status test_recognise(const char *path, const char *arch, const char *act, agglo_teacher_file *out,
                            agglo_err *err);
agglo_status test_recognise_config(const char *path, const char *arch, agglo_teacher_config *out, agglo_err *err);

/* Whether it opens. */
agglo_status test_try_open(agglo_backend *backend, const agglo_teacher_options *options, agglo_err *err);

/* ---- features ---- */

/* Summaries, then spatial, of a batch of seeded pixels: *n floats, to be freed. extents as agglo_encoder.encode takes them. */
float *test_encode(const agglo_encoder *t, const agglo_extent *extents, int batch, int height, int width, size_t *n);

/* max|got - expected| / max|expected| over all elements; all of `got` must be finite, and `expected` not all small. */
double test_distance(const float *got, const agglo_st_tensor *expected);

#endif
