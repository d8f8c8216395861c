/* Checkpoints for tests of teachers; see checkpoints.h. */
#include "tests/support/checkpoints.h"

#include <math.h>

enum { MOST_KEPT = 1024 };

static void *kept[MOST_KEPT];
static size_t n_kept;

void *test_keep(size_t n_bytes)
{
    agglo_err err = {0};

    assert_true(n_kept < MOST_KEPT);
    kept[n_kept] = agglo_alloc(n_bytes, 1, &err);
    assert_non_null(kept[n_kept]);
    return kept[n_kept++];
}

const char *test_keep_name(const char *start, const char *end)
{
    size_t n_bytes = strlen(start) + strlen(end) + 1;
    char *name = (char *)test_keep(n_bytes);

    snprintf(name, n_bytes, "%s%s", start, end);
    return name;
}

float *test_keep_values(agglo_st_tensor *t)
{
    float *values = (float *)test_keep((size_t)t->n_elements * sizeof *values);

    agglo_dtype_to_f32(values, t->data, t->dtype, (size_t)t->n_elements);
    t->data = (const uint8_t *)values;
    t->dtype = AGGLO_F32;
    return values;
}

void test_keep_end(void)
{
    while (n_kept > 0) {
        agglo_free(kept[--n_kept]);
    }
}

void test_copy_checkpoint(const test_copy *copy)
{
    static const float one = 1.0f;
    static const int64_t shape[1] = {1};
    agglo_err err = {0};
    agglo_safetensors *st;
    agglo_st_writer *writer;
    const char *key, *value;

    assert_ok(agglo_safetensors_open(&st, copy->from, &err));
    assert_ok(agglo_st_writer_new(&writer, &err));
    for (size_t i = 0; copy->metadata && agglo_safetensors_meta_at(st, i, &key, &value); i++) {
        assert_ok(agglo_st_writer_meta(writer, key, value, &err));
    }
    for (size_t i = 0; i < agglo_safetensors_count(st); i++) {
        agglo_st_tensor t = *agglo_safetensors_at(st, i);

        if ((copy->skip == NULL || strncmp(t.name, copy->skip, strlen(copy->skip)) != 0) &&
            (copy->alter == NULL || copy->alter(&t, copy->text))) {
            int64_t n = 1;

            for (int k = 0; k < t.rank; k++) {
                n *= t.shape[k];
            }
            assert_true(n <= t.n_elements); /* there is data for a changed shape */
            assert_ok(agglo_st_writer_add(writer, t.name, t.dtype, t.rank, t.shape, t.data, &err));
        }
    }
    if (copy->more != NULL) {
        assert_ok(agglo_st_writer_add(writer, copy->more, AGGLO_F32, 1, shape, &one, &err));
    }
    assert_ok(agglo_st_writer_write(writer, copy->to, &err));
    agglo_st_writer_free(writer);
    agglo_safetensors_close(st);
    test_keep_end();
}

void test_rewrite(const char *from, const char *to, bool metadata, test_alter alter, const char *text)
{
    test_copy_checkpoint(&(test_copy){.from = from, .to = to, .metadata = metadata, .alter = alter, .text = text});
}

bool test_drop(agglo_st_tensor *t, const char *text)
{
    return strcmp(t->name, text) != 0;
}

bool test_drop_start(agglo_st_tensor *t, const char *text)
{
    return strncmp(t->name, text, strlen(text)) != 0;
}

bool test_add_prefix(agglo_st_tensor *t, const char *text)
{
    t->name = test_keep_name(text, t->name);
    return true;
}

bool test_cut_prefix(agglo_st_tensor *t, const char *text)
{
    if (strncmp(t->name, text, strlen(text)) == 0) {
        t->name = test_keep_name("", t->name + strlen(text));
    }
    return true;
}

bool test_as_integers(agglo_st_tensor *t, const char *text)
{
    if (strcmp(t->name, text) == 0) {
        t->dtype = AGGLO_I32;
    }
    return true;
}

agglo_status test_recognise(const char *path, const char *arch, const char *act, agglo_teacher_file *out,
                            agglo_err *err)
{
    agglo_weights *weights;

    *out = (agglo_teacher_file){0};
    if (agglo_weights_open(&weights, path, err) == AGGLO_OK) {
        agglo_teacher_recognise(weights, arch, act, out, err);
        agglo_weights_close(weights);
    }
    return err->status;
}

agglo_status test_recognise_config(const char *path, const char *arch, agglo_teacher_config *out, agglo_err *err)
{
    agglo_teacher_file file;

    if (test_recognise(path, arch, NULL, &file, err) == AGGLO_OK) {
        *out = file.config;
        agglo_teacher_file_clear(&file);
    }
    return err->status;
}

agglo_status test_try_open(agglo_backend *backend, const agglo_teacher_options *options, agglo_err *err)
{
    agglo_encoder teacher;
    agglo_status status = agglo_teacher_open(&teacher, backend, options, err);

    if (status == AGGLO_OK) {
        agglo_encoder_clear(&teacher);
    }
    return status;
}

float *test_encode(const agglo_encoder *t, const agglo_extent *extents, int batch, int height, int width, size_t *n)
{
    agglo_err err = {0};
    test_random random = test_random_new(99);
    size_t n_pixels = (size_t)(batch * height * width * 3), n_summary = (size_t)(batch * t->info.summary_dim);
    size_t n_spatial = (size_t)(batch * (height / t->info.patch) * (width / t->info.patch) * t->info.spatial_dim);
    uint8_t *pixels = (uint8_t *)agglo_alloc(n_pixels, 1, &err);
    float *out = (float *)agglo_alloc(n_summary + n_spatial, sizeof *out, &err);

    assert_true(pixels != NULL && out != NULL);
    test_random_bytes(&random, pixels, n_pixels);
    assert_ok(t->encode(t->self, pixels, extents, batch, height, width, out, out + n_summary, &err));
    agglo_free(pixels);
    *n = n_summary + n_spatial;
    return out;
}

double test_distance(const float *got, const agglo_st_tensor *expected)
{
    agglo_err err = {0};
    float *values = (float *)agglo_alloc((size_t)expected->n_elements, sizeof *values, &err);
    double worst = 0.0, largest = 0.0;

    assert_non_null(values);
    agglo_dtype_to_f32(values, expected->data, expected->dtype, (size_t)expected->n_elements);
    for (int64_t i = 0; i < expected->n_elements; i++) {
        assert_true(isfinite(got[i]));
        worst = fmax(worst, fabs((double)got[i] - (double)values[i]));
        largest = fmax(largest, fabs((double)values[i]));
    }
    agglo_free(values);
    assert_true(largest > 0.1);
    return worst / largest;
}
