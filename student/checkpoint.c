/* Writing, finding and loading checkpoints; see checkpoint.h for the file. */
#include "student/checkpoint.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/hash.h"
#include "student/model_impl.h"

#define FORMAT "agglo-checkpoint"
#define PREFIX "checkpoint-"
#define SUFFIX ".safetensors"

static const char *const part_prefix[] = {"", "m/", "v/"};

/* The step in a checkpoint's file name, -1 for any other name. */
static int64_t step_of_name(const char *name)
{
    const char *digits = name + strlen(PREFIX);
    int64_t step = 0;
    size_t n;

    if (strncmp(name, PREFIX, strlen(PREFIX)) != 0) {
        return -1;
    }
    n = strspn(digits, "0123456789");
    if (n < 8 || n > 18 || strcmp(digits + n, SUFFIX) != 0) {
        return -1;
    }
    for (size_t i = 0; i < n; i++) {
        step = step * 10 + (digits[i] - '0');
    }
    return step;
}

static char *path_of(const char *run, int64_t step, agglo_err *err)
{
    return agglo_format(err, "%s/" PREFIX "%08" PRId64 SUFFIX, run, step);
}

/* Remove all but the newest `keep`, and what a killed writer left behind. */
static agglo_status prune(const char *run, int keep, agglo_err *err)
{
    agglo_arena *arena = NULL;
    char **names, *path;
    size_t n;
    int64_t oldest_kept = INT64_MAX;

    if (agglo_arena_new(&arena, 0, err) != AGGLO_OK || agglo_list_dir(run, arena, &names, &n, err) != AGGLO_OK) {
        goto done;
    }
    for (int k = 0; k < keep; k++) {
        int64_t newest = -1;

        for (size_t i = 0; i < n; i++) {
            int64_t step = step_of_name(names[i]);

            newest = step > newest && step < oldest_kept ? step : newest;
        }
        oldest_kept = newest;
    }
    for (size_t i = 0; i < n; i++) {
        int64_t step = step_of_name(names[i]);

        if ((step < 0 || step >= oldest_kept) && !(agglo_is_temp_name(names[i]) && strstr(names[i], PREFIX) != NULL)) {
            continue;
        }
        path = agglo_path_join(run, names[i], err);
        if (path == NULL) {
            goto done;
        }
        if (unlink(path) != 0 && errno != ENOENT) {
            agglo_fail(err, AGGLO_E_IO, "%s", strerror(errno));
            agglo_at(err, "%s", path);
        }
        agglo_free(path);
    }
done:
    agglo_arena_free(arena);
    return err->status;
}

/* The hash of a checkpoint's tensors, one after the other: values, then m, then v, each in the order of the list. */
static void add_hash(agglo_hash128 *chain, const void *data, size_t n_bytes)
{
    agglo_hash128 both[2] = {*chain, agglo_xxh3_128(data, n_bytes)};

    *chain = agglo_xxh3_128(both, sizeof both);
}

agglo_status agglo_checkpoint_save(agglo_trainer *trainer, const char *run, const char *recipe_hash, int keep,
                                   agglo_err *err)
{
    agglo_student *student = agglo_trainer_student(trainer);
    agglo_params *params = student->params;
    agglo_host_params host[3] = {{0}};
    agglo_st_writer *writer = NULL;
    agglo_arena *names = NULL; /* the writer borrows them */
    agglo_hash128 hash = {{0}};
    char *path = NULL, step[32], hash_text[33];

    AGGLO_ASSERT(keep >= 1 && agglo_trainer_pending(trainer) == 0);
    snprintf(step, sizeof step, "%" PRId64, agglo_trainer_steps(trainer));
    path = path_of(run, agglo_trainer_steps(trainer), err);
    if (path == NULL || agglo_arena_new(&names, 0, err) != AGGLO_OK || agglo_st_writer_new(&writer, err) != AGGLO_OK ||
        agglo_student_put_meta(student, writer, FORMAT, err) != AGGLO_OK ||
        agglo_st_writer_meta(writer, "step", step, err) != AGGLO_OK ||
        agglo_st_writer_meta(writer, "recipe", recipe_hash, err) != AGGLO_OK) {
        goto done;
    }
    for (int part = 0; part < 3; part++) {
        if (agglo_host_params_get(&host[part], student, (agglo_param_part)part, err) != AGGLO_OK) {
            goto done;
        }
        for (size_t i = 0; i < agglo_params_count(params); i++) {
            const agglo_param *param = agglo_params_at(params, i);
            const agglo_tensor *tensor = agglo_param_get_part(param, (agglo_param_part)part);
            char text[sizeof param->name + 2];
            char *name;
            int n = snprintf(text, sizeof text, "%s%s", part_prefix[part], param->name);

            name = agglo_arena_text(names, text, (size_t)n, err);
            if (name == NULL || agglo_st_writer_add(writer, name, tensor->dtype, tensor->rank, tensor->shape,
                                                    host[part].data[i], err) != AGGLO_OK) {
                goto done;
            }
            add_hash(&hash, host[part].data[i], agglo_tensor_bytes(tensor));
        }
    }
    agglo_hex(hash.bytes, sizeof hash.bytes, hash_text);
    if (agglo_st_writer_meta(writer, "data", hash_text, err) == AGGLO_OK &&
        agglo_st_writer_write(writer, path, err) == AGGLO_OK) {
        prune(run, keep, err);
    }
done:
    for (int part = 0; part < 3; part++) {
        agglo_host_params_clear(&host[part]);
    }
    agglo_st_writer_free(writer);
    agglo_arena_free(names);
    agglo_free(path);
    return err->status == AGGLO_OK ? AGGLO_OK : agglo_doing(err, "cannot write checkpoint");
}

agglo_status agglo_checkpoint_newest(const char *run, int64_t *step, agglo_err *err)
{
    agglo_arena *arena = NULL;
    char **names;
    size_t n;

    *step = -1;
    if (!agglo_path_is_dir(run)) {
        return AGGLO_OK;
    }
    if (agglo_arena_new(&arena, 0, err) == AGGLO_OK && agglo_list_dir(run, arena, &names, &n, err) == AGGLO_OK) {
        for (size_t i = 0; i < n; i++) {
            int64_t found = step_of_name(names[i]);

            *step = found > *step ? found : *step;
        }
    }
    agglo_arena_free(arena);
    return err->status;
}

/* One metadata text that must equal `expected`. `what` names it for people. */
static agglo_status same_meta(const agglo_safetensors *st, const char *key, const char *what, const char *expected,
                              agglo_err *err)
{
    const char *found = agglo_safetensors_meta(st, key);

    if (found == NULL) {
        return agglo_fail(err, AGGLO_E_DATA, "the metadata has no '%s'", key);
    }
    if (strcmp(found, expected) != 0) {
        return agglo_fail(err, AGGLO_E_MISMATCH, "the checkpoint was made with another %s: %.80s, expected %.80s", what,
                          found, expected);
    }
    return AGGLO_OK;
}

static agglo_status load_moment(agglo_backend *backend, const agglo_safetensors *st, const char *prefix,
                                agglo_param *param, bool upload, agglo_err *err)
{
    agglo_tensor *to = prefix[0] == 'm' ? &param->m : &param->v;
    const agglo_st_tensor *from;
    char name[sizeof param->name + 2];
    bool same;

    snprintf(name, sizeof name, "%s%s", prefix, param->name);
    from = agglo_safetensors_find(st, name);
    if (from == NULL) {
        return agglo_fail(err, AGGLO_E_DATA, "there is no tensor %s", name);
    }
    same = from->dtype == to->dtype && from->rank == to->rank && from->n_bytes == agglo_tensor_bytes(to);
    for (int i = 0; same && i < to->rank; i++) {
        same = from->shape[i] == to->shape[i];
    }
    if (!same) {
        return agglo_fail(err, AGGLO_E_DATA, "tensor %s has not the type and shape of its parameter", name);
    }
    if (upload) {
        agglo_upload(backend, to->data, from->data, from->n_bytes);
    }
    return AGGLO_OK;
}

static agglo_status check_hash(const agglo_safetensors *st, agglo_params *params, agglo_err *err)
{
    const char *expected = agglo_safetensors_meta(st, "data");
    agglo_hash128 hash = {{0}};
    char found[33];

    for (int part = 0; part < 3; part++) {
        for (size_t i = 0; i < agglo_params_count(params); i++) {
            char name[sizeof agglo_params_at(params, i)->name + 2];
            const agglo_st_tensor *tensor;

            snprintf(name, sizeof name, "%s%s", part_prefix[part], agglo_params_at(params, i)->name);
            tensor = agglo_safetensors_find(st, name);
            if (tensor == NULL) {
                return agglo_fail(err, AGGLO_E_DATA, "there is no tensor %s", name);
            }
            add_hash(&hash, tensor->data, tensor->n_bytes);
        }
    }
    agglo_hex(hash.bytes, sizeof hash.bytes, found);
    if (expected == NULL || strcmp(found, expected) != 0) {
        return agglo_fail(err, AGGLO_E_DATA, "the tensors' hash is %s, the metadata says %.40s", found,
                          expected != NULL ? expected : "nothing");
    }
    return AGGLO_OK;
}

static agglo_status load(agglo_trainer *trainer, const agglo_safetensors *st, const char *recipe_hash, int64_t step,
                         agglo_err *err)
{
    agglo_student *student = agglo_trainer_student(trainer);
    agglo_params *params = student->params;
    char text[32];

    snprintf(text, sizeof text, "%" PRId64, step);
    if (same_meta(st, "format", "format", FORMAT, err) != AGGLO_OK ||
        same_meta(st, "recipe", "recipe", recipe_hash, err) != AGGLO_OK ||
        same_meta(st, "student", "student", student->config_text, err) != AGGLO_OK ||
        same_meta(st, "heads", "set of teachers", student->heads_text, err) != AGGLO_OK ||
        same_meta(st, "step", "step than its name says", text, err) != AGGLO_OK) {
        return err->status;
    }
    /* everything is looked at before anything is changed */
    for (int upload = 0; upload < 2; upload++) {
        for (size_t i = 0; i < agglo_params_count(params); i++) {
            agglo_param *param = agglo_params_at(params, i);

            if (load_moment(student->backend, st, "m/", param, upload, err) != AGGLO_OK ||
                load_moment(student->backend, st, "v/", param, upload, err) != AGGLO_OK) {
                return err->status;
            }
        }
        if (upload == 0 &&
            (check_hash(st, params, err) != AGGLO_OK || agglo_params_load(params, st, err) != AGGLO_OK)) {
            return err->status;
        }
    }
    return agglo_backend_check(student->backend, err);
}

agglo_status agglo_checkpoint_load(agglo_trainer *trainer, const char *run, const char *recipe_hash, bool *found,
                                   agglo_err *err)
{
    agglo_safetensors *st = NULL;
    char *path = NULL;
    int64_t step;

    AGGLO_ASSERT(agglo_trainer_pending(trainer) == 0);
    *found = false;
    if (agglo_checkpoint_newest(run, &step, err) != AGGLO_OK) {
        goto fail;
    }
    if (step < 0) {
        return AGGLO_OK;
    }
    path = path_of(run, step, err);
    if (path == NULL || agglo_safetensors_open(&st, path, err) != AGGLO_OK) {
        goto fail;
    }
    if (load(trainer, st, recipe_hash, step, err) != AGGLO_OK) {
        agglo_at(err, "%s", path);
        goto fail;
    }
    agglo_trainer_set_steps(trainer, step);
    *found = true;
    agglo_safetensors_close(st);
    agglo_free(path);
    return AGGLO_OK;
fail:
    agglo_safetensors_close(st);
    agglo_free(path);
    return agglo_doing(err, "cannot load checkpoint");
}
