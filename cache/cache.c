/* A cache directory: its description files, written once, and reading through a bounded set of open units. */
#include "cache/cache.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "cache/unit_impl.h"

#define DESCRIPTION_MAX_BYTES ((size_t)16 << 20)
#define DEFAULT_OPEN_UNITS    64
#define GROUPS_MAX            1024

/* ---- description files ---- */

/* Open a new file beside `path`, under a temporary name in *temp (agglo_free). A name that is taken (another machine's process of our number,
 * or one that was killed) is left alone, and the next one tried. -1 on failure. */
static int open_temp(const char *path, char **temp, agglo_err *err)
{
    static atomic_uint serial;
    char *dir = agglo_path_dir(path, err);
    int fd = -1;

    *temp = NULL;
    while (fd < 0 && dir != NULL) {
        *temp = agglo_format(err, "%s/.tmp-%ld-%u-%s", dir, (long)getpid(), atomic_fetch_add(&serial, 1u),
                             agglo_path_base(path));
        if (*temp == NULL) {
            break;
        }
        fd = open(*temp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
        if (fd < 0) {
            int code = errno;

            agglo_free(*temp);
            *temp = NULL;
            if (code != EEXIST) {
                agglo_fail(err, AGGLO_E_IO, "%s", strerror(code));
                break;
            }
        }
    }
    agglo_free(dir);
    return fd;
}

/* Write `text` whole, sync and close. */
static agglo_status write_synced(int fd, const char *text, size_t n, agglo_err *err)
{
    int code;

    while (n > 0) {
        ssize_t done = write(fd, text, n);

        if (done < 0 && errno == EINTR) {
            continue;
        }
        if (done <= 0) {
            break;
        }
        text += done;
        n -= (size_t)done;
    }
    code = n > 0 || fsync(fd) != 0 ? errno : 0;
    if (close(fd) != 0 && code == 0) {
        code = errno;
    }
    return code == 0 ? AGGLO_OK : agglo_fail(err, AGGLO_E_IO, "%s", strerror(code));
}

/* Make `path` hold `root` unless it exists: the first link() wins, and what it linked was whole. */
static agglo_status publish(const char *path, const json_t *root, agglo_err *err)
{
    const size_t flags = JSON_INDENT(2) | JSON_PRESERVE_ORDER, n = json_dumpb(root, NULL, 0, flags);
    char *dir = agglo_path_dir(path, err), *temp = NULL, *text = NULL;
    agglo_status status = AGGLO_E_MEMORY;
    int fd;

    if (dir == NULL || (text = agglo_alloc(n + 1, 1, err)) == NULL) {
        goto done;
    }
    if (n == 0 || json_dumpb(root, text, n, flags) != n) {
        agglo_fail(err, AGGLO_E_MEMORY, "out of memory for a description");
        goto done;
    }
    text[n] = '\n';
    fd = open_temp(path, &temp, err);
    if (fd < 0) {
        status = err->status;
        goto done;
    }
    status = write_synced(fd, text, n + 1, err);
    if (status == AGGLO_OK && link(temp, path) != 0 && errno != EEXIST) {
        status = agglo_fail(err, AGGLO_E_IO, "%s", strerror(errno));
    }
    unlink(temp);
    fd = status == AGGLO_OK ? open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (fd >= 0) {
        fsync(fd); /* some file systems cannot: the name is then as durable as they make it */
        close(fd);
    }
done:
    agglo_free(text);
    agglo_free(temp);
    agglo_free(dir);
    return status == AGGLO_OK ? AGGLO_OK : agglo_at(err, "%s", path);
}

static agglo_status get_text(const json_t *object, const char *key, char *out, size_t size, agglo_err *err)
{
    const char *text;
    agglo_status status = agglo_json_get_string(object, key, &text, err);

    if (status != AGGLO_OK) {
        return status;
    }
    if (strlen(text) >= size) {
        return agglo_fail(err, AGGLO_E_DATA, "%s: %zu characters, at most %zu", key, strlen(text), size - 1);
    }
    memset(out, 0, size);
    memcpy(out, text, strlen(text));
    return AGGLO_OK;
}

static agglo_status check_format(const json_t *root, agglo_err *err)
{
    int64_t format;
    agglo_status status = agglo_json_get_int(root, "format", 0, INT32_MAX, &format, err);

    if (status == AGGLO_OK && format != AGGLO_CACHE_FORMAT) {
        status =
            agglo_fail(err, AGGLO_E_UNSUPPORTED, "format %" PRId64 ", this build reads %d", format, AGGLO_CACHE_FORMAT);
    }
    return status;
}

/* ---- cache.json ---- */

/* Names that a unit's file may carry, each once. */
static agglo_status check_groups(const agglo_cache_group *groups, size_t n_groups, agglo_err *err)
{
    for (size_t i = 0; i < n_groups; i++) {
        agglo_unit_id id = {.teacher = "any"};

        memcpy(id.group, groups[i].name, sizeof id.group);
        if (agglo_unit_id_check(&id, err) != AGGLO_OK) {
            return err->status;
        }
        for (size_t k = 0; k < i; k++) {
            if (strcmp(groups[k].name, groups[i].name) == 0) {
                return agglo_fail(err, AGGLO_E_CONFIG, "view group %s stands there twice", groups[i].name);
            }
        }
    }
    return AGGLO_OK;
}

/* Groups of a parsed cache.json into a new array (agglo_free), parameters borrowed from it. */
static agglo_status parse_groups(const json_t *root, agglo_cache_group **out, size_t *n, agglo_err *err)
{
    const json_t *list;
    agglo_cache_group *groups;

    *out = NULL;
    if (check_format(root, err) != AGGLO_OK || agglo_json_get_array(root, "groups", &list, err) != AGGLO_OK) {
        return err->status;
    }
    *n = json_array_size(list);
    if (*n > GROUPS_MAX) {
        return agglo_fail(err, AGGLO_E_DATA, "%zu view groups, at most %d", *n, GROUPS_MAX);
    }
    groups = agglo_alloc(*n, sizeof *groups, err);
    if (groups == NULL) {
        return err->status;
    }
    for (size_t i = 0; i < *n; i++) {
        json_t *item = json_array_get(list, i);

        if (get_text(item, "name", groups[i].name, sizeof groups[i].name, err) != AGGLO_OK ||
            get_text(item, "fingerprint", groups[i].fingerprint, sizeof groups[i].fingerprint, err) != AGGLO_OK) {
            agglo_free(groups);
            return agglo_at(err, "groups[%zu]", i);
        }
        groups[i].parameters = json_object_get(item, "parameters");
    }
    if (check_groups(groups, *n, err) != AGGLO_OK) {
        agglo_free(groups);
        return err->status = AGGLO_E_DATA;
    }
    *out = groups;
    return AGGLO_OK;
}

static json_t *print_groups(const agglo_cache_group *groups, size_t n_groups)
{
    json_t *list = json_array(), *root;

    for (size_t i = 0; i < n_groups && list != NULL; i++) {
        json_t *item = json_pack("{s:s, s:s, s:O?}", "name", groups[i].name, "fingerprint", groups[i].fingerprint,
                                 "parameters", groups[i].parameters);

        if (item == NULL || json_array_append_new(list, item) != 0) {
            json_decref(list);
            list = NULL;
        }
    }
    root = json_pack("{s:i, s:O}", "format", AGGLO_CACHE_FORMAT, "groups", list);
    json_decref(list);
    return root;
}

agglo_status agglo_cache_create(const char *path, const agglo_cache_group *groups, size_t n_groups, agglo_err *err)
{
    char *file = agglo_path_join(path, "cache.json", err);
    json_t *root = NULL;
    agglo_cache_group *present = NULL;
    size_t n_present = 0;

    if (file == NULL || check_groups(groups, n_groups, err) != AGGLO_OK || agglo_make_dirs(path, err) != AGGLO_OK) {
        goto fail;
    }
    if (!agglo_path_exists(file)) {
        root = print_groups(groups, n_groups);
        if (root == NULL) {
            agglo_fail(err, AGGLO_E_MEMORY, "out of memory for a description");
            goto fail;
        }
        if (publish(file, root, err) != AGGLO_OK) {
            goto fail;
        }
        json_decref(root);
        root = NULL;
    }
    if (agglo_json_read(file, DESCRIPTION_MAX_BYTES, &root, err) != AGGLO_OK) {
        goto fail;
    }
    if (parse_groups(root, &present, &n_present, err) != AGGLO_OK) {
        agglo_at(err, "%s", file);
        goto fail;
    }
    for (size_t i = 0; i < n_groups; i++) {
        size_t k = 0;

        while (k < n_present && strcmp(present[k].name, groups[i].name) != 0) {
            k++;
        }
        if (k == n_present) {
            agglo_fail(err, AGGLO_E_MISMATCH, "the cache has no view group %s, and its groups are fixed",
                       groups[i].name);
            agglo_at(err, "%s", file);
            goto fail;
        }
        if (strcmp(present[k].fingerprint, groups[i].fingerprint) != 0) {
            agglo_fail(err, AGGLO_E_MISMATCH, "view group %s: found %s, expected %s", groups[i].name,
                       present[k].fingerprint, groups[i].fingerprint);
            agglo_at(err, "%s", file);
            goto fail;
        }
    }
    agglo_free(present);
    json_decref(root);
    agglo_free(file);
    return AGGLO_OK;
fail:
    agglo_free(present);
    json_decref(root);
    agglo_free(file);
    return agglo_doing(err, "cannot create cache");
}

/* ---- teacher.json ---- */

#define TEXT_FIELD(name)                                                                                               \
    {                                                                                                                  \
#name, offsetof(agglo_cache_teacher, name), sizeof((agglo_cache_teacher *)0)->name                             \
    }
#define NUMBER_FIELD(name)                                                                                             \
    {                                                                                                                  \
#name, offsetof(agglo_cache_teacher, name), 0                                                                  \
    }

/* Every field of a teacher, in the order in which they are written and compared; size 0: an int. */
static const struct {
    const char *name;
    size_t offset, size;
} teacher_fields[] = {
    TEXT_FIELD(name),     TEXT_FIELD(arch),     TEXT_FIELD(weights),       TEXT_FIELD(preprocess),
    TEXT_FIELD(codec),    TEXT_FIELD(options),  NUMBER_FIELD(input),       NUMBER_FIELD(patch),
    NUMBER_FIELD(grid_h), NUMBER_FIELD(grid_w), NUMBER_FIELD(summary_dim), NUMBER_FIELD(spatial_dim),
};

static agglo_status parse_teacher(const json_t *root, agglo_cache_teacher *out, agglo_err *err)
{
    memset(out, 0, sizeof *out);
    if (check_format(root, err) != AGGLO_OK) {
        return err->status;
    }
    for (size_t i = 0; i < AGGLO_COUNT(teacher_fields); i++) {
        char *field = (char *)out + teacher_fields[i].offset;
        int64_t value;

        if (teacher_fields[i].size > 0) {
            if (get_text(root, teacher_fields[i].name, field, teacher_fields[i].size, err) != AGGLO_OK) {
                return err->status;
            }
        } else {
            if (agglo_json_get_int(root, teacher_fields[i].name, 0, UINT16_MAX, &value, err) != AGGLO_OK) {
                return err->status;
            }
            memcpy(field, &(int){(int)value}, sizeof(int));
        }
    }
    return AGGLO_OK;
}

static agglo_status read_teacher(const char *file, agglo_cache_teacher *out, agglo_err *err)
{
    json_t *root = NULL;
    agglo_status status = agglo_json_read(file, DESCRIPTION_MAX_BYTES, &root, err);

    if (status == AGGLO_OK && (status = parse_teacher(root, out, err)) != AGGLO_OK) {
        agglo_at(err, "%s", file);
    }
    json_decref(root);
    return status;
}

static json_t *print_teacher(const agglo_cache_teacher *teacher)
{
    json_t *root = json_pack("{s:i}", "format", AGGLO_CACHE_FORMAT);

    for (size_t i = 0; i < AGGLO_COUNT(teacher_fields) && root != NULL; i++) {
        const char *field = (const char *)teacher + teacher_fields[i].offset;
        int number = 0;

        if (teacher_fields[i].size == 0) {
            memcpy(&number, field, sizeof number);
        }
        if (json_object_set_new(root, teacher_fields[i].name,
                                teacher_fields[i].size > 0 ? json_string(field) : json_integer(number)) != 0) {
            json_decref(root);
            root = NULL;
        }
    }
    return root;
}

/* What could be written but never read back, or never be filled, is refused before it is written. */
static agglo_status check_teacher(const agglo_cache_teacher *teacher, agglo_err *err)
{
    agglo_unit_id id = {.group = "main"};
    agglo_record_info info = {.codec = agglo_codec_of(teacher->codec)};

    memcpy(id.teacher, teacher->name, sizeof id.teacher);
    if (agglo_unit_id_check(&id, err) != AGGLO_OK) {
        return err->status;
    }
    for (size_t i = 0; i < AGGLO_COUNT(teacher_fields); i++) {
        int number = 0;

        if (teacher_fields[i].size == 0) {
            memcpy(&number, (const char *)teacher + teacher_fields[i].offset, sizeof number);
        }
        if (number < 0 || number > UINT16_MAX) {
            return agglo_fail(err, AGGLO_E_CONFIG, "%s is %d, allowed are 0 to %d", teacher_fields[i].name, number,
                              UINT16_MAX);
        }
    }
    info.grid_h = (uint16_t)teacher->grid_h;
    info.grid_w = (uint16_t)teacher->grid_w;
    info.summary_dim = (uint16_t)teacher->summary_dim;
    info.spatial_dim = (uint16_t)teacher->spatial_dim;
    if (agglo_record_max_bytes(&info) == 0) {
        return agglo_fail(err, AGGLO_E_CONFIG, "no record under codec %s holds %d + %dx%dx%d values", teacher->codec,
                          teacher->summary_dim, teacher->grid_h, teacher->grid_w, teacher->spatial_dim);
    }
    return AGGLO_OK;
}

agglo_status agglo_cache_add_teacher(const char *path, const agglo_cache_teacher *teacher, agglo_err *err)
{
    agglo_cache_teacher present;
    char *dir = NULL, *file = NULL;
    json_t *root = NULL;

    if (check_teacher(teacher, err) != AGGLO_OK || (dir = agglo_path_join(path, teacher->name, err)) == NULL ||
        (file = agglo_path_join(dir, "teacher.json", err)) == NULL || agglo_make_dirs(dir, err) != AGGLO_OK) {
        goto fail;
    }
    if (!agglo_path_exists(file)) {
        root = print_teacher(teacher);
        if (root == NULL) {
            agglo_fail(err, AGGLO_E_MEMORY, "out of memory for a description");
            goto fail;
        }
        if (publish(file, root, err) != AGGLO_OK) {
            goto fail;
        }
    }
    if (read_teacher(file, &present, err) != AGGLO_OK) {
        goto fail;
    }
    for (size_t i = 0; i < AGGLO_COUNT(teacher_fields); i++) {
        const char *a = (const char *)&present + teacher_fields[i].offset,
                   *b = (const char *)teacher + teacher_fields[i].offset;

        if (teacher_fields[i].size > 0 ? strcmp(a, b) != 0 : memcmp(a, b, sizeof(int)) != 0) {
            if (teacher_fields[i].size > 0) {
                agglo_fail(err, AGGLO_E_MISMATCH, "%s: found %s, expected %s", teacher_fields[i].name,
                           a[0] == '\0' ? "none" : a, b[0] == '\0' ? "none" : b);
            } else {
                int found, expected;

                memcpy(&found, a, sizeof found);
                memcpy(&expected, b, sizeof expected);
                agglo_fail(err, AGGLO_E_MISMATCH, "%s: found %d, expected %d", teacher_fields[i].name, found, expected);
            }
            agglo_at(err, "%s", file);
            goto fail;
        }
    }
    json_decref(root);
    agglo_free(file);
    agglo_free(dir);
    return AGGLO_OK;
fail:
    json_decref(root);
    agglo_free(file);
    agglo_free(dir);
    return agglo_doing(err, "cannot add teacher to cache");
}

/* ---- opening ---- */

/* An open unit, or room for one. */
typedef struct slot {
    agglo_unit *unit;  /* NULL while it is being opened */
    size_t index;      /* of its manifest; SIZE_MAX: empty */
    int n_users;       /* copying from it, or opening it */
    uint64_t last_use; /* tick */
} slot;

struct agglo_cache {
    char *path;
    json_t *root; /* cache.json */
    agglo_cache_group *groups;
    agglo_cache_teacher *teachers;
    agglo_manifest *units;
    bool *verified;  /* [n_units] its file was hashed by this process */
    agglo_err **bad; /* [n_units] why a unit was refused: it is not hashed again for every record */
    size_t n_groups, n_teachers, n_units, n_units_cap, n_damaged;
    pthread_mutex_t lock;
    pthread_cond_t changed; /* a slot became usable, or free */
    bool has_lock;
    slot *slots;
    size_t n_slots;
    uint64_t tick;
};

static int compare_units(const void *a, const void *b)
{
    const agglo_unit_id *x = &((const agglo_manifest *)a)->id, *y = &((const agglo_manifest *)b)->id;
    int order = strcmp(x->teacher, y->teacher);

    order = order != 0 ? order : strcmp(x->group, y->group);
    order = order != 0 ? order : (x->shard > y->shard) - (x->shard < y->shard);
    order = order != 0 ? order : (x->view_first > y->view_first) - (x->view_first < y->view_first);
    return order != 0 ? order : (x->view_last > y->view_last) - (x->view_last < y->view_last);
}

/* The manifests in one teacher's directory. One that cannot be read costs its unit only. */
static agglo_status list_units(agglo_cache *cache, const char *teacher, agglo_arena *arena, agglo_err *err)
{
    char *dir = agglo_path_join(cache->path, teacher, err), **names = NULL;
    agglo_status status = dir == NULL ? err->status : AGGLO_OK;
    size_t n_names = 0;

    if (status == AGGLO_OK) {
        status = agglo_list_dir(dir, arena, &names, &n_names, err);
    }
    for (size_t i = 0; i < n_names && status == AGGLO_OK; i++) {
        agglo_err why = {0};
        agglo_manifest manifest;
        agglo_unit_id id;
        char line[1024];

        if (!agglo_unit_parse_name(names[i], &id)) {
            continue;
        }
        memcpy(id.teacher, teacher, strlen(teacher) + 1);
        if (agglo_manifest_read(cache->path, &id, &manifest, &why) != AGGLO_OK) {
            if (why.status == AGGLO_E_MEMORY) {
                *err = why;
                status = why.status;
                break;
            }
            agglo_log(AGGLO_LOG_WARN, "unit left out: %s", agglo_err_line(&why, line, sizeof line));
            cache->n_damaged++;
            continue;
        }
        if (cache->n_units == cache->n_units_cap) {
            size_t cap = cache->n_units_cap == 0 ? 64 : 2 * cache->n_units_cap;
            agglo_manifest *grown =
                agglo_realloc(cache->units, cache->n_units_cap * sizeof *grown, cap * sizeof *grown, err);

            if (grown == NULL) {
                status = err->status;
                break;
            }
            cache->units = grown;
            cache->n_units_cap = cap;
        }
        cache->units[cache->n_units++] = manifest;
    }
    agglo_free(dir);
    return status;
}

/* Directories with a teacher.json are teachers; the file must name its directory. */
static agglo_status list_teachers(agglo_cache *cache, agglo_arena *arena, agglo_err *err)
{
    char **names, file[64 + AGGLO_TEACHER_NAME_MAX];
    size_t n_names;

    if (agglo_list_dir(cache->path, arena, &names, &n_names, err) != AGGLO_OK ||
        (cache->teachers = agglo_alloc(n_names, sizeof *cache->teachers, err)) == NULL) {
        return err->status;
    }
    for (size_t i = 0; i < n_names; i++) {
        agglo_cache_teacher *teacher = &cache->teachers[cache->n_teachers];
        agglo_unit_id id = {.group = "main"};
        agglo_err ignored = {0};
        agglo_status status;
        char *path;

        if (strlen(names[i]) >= sizeof id.teacher) {
            continue;
        }
        memcpy(id.teacher, names[i], strlen(names[i]) + 1);
        snprintf(file, sizeof file, "%s/teacher.json", names[i]);
        if (agglo_unit_id_check(&id, &ignored) != AGGLO_OK) {
            continue;
        }
        path = agglo_path_join(cache->path, file, err);
        if (path == NULL) {
            return err->status;
        }
        if (!agglo_path_exists(path)) {
            agglo_free(path);
            continue;
        }
        status = read_teacher(path, teacher, err);
        if (status == AGGLO_OK && strcmp(teacher->name, names[i]) != 0) {
            agglo_fail(err, AGGLO_E_MISMATCH, "it describes teacher %s", teacher->name);
            status = agglo_at(err, "%s", path);
        }
        agglo_free(path);
        if (status != AGGLO_OK) {
            return status;
        }
        cache->n_teachers++;
        if (list_units(cache, names[i], arena, err) != AGGLO_OK) {
            return err->status;
        }
    }
    return AGGLO_OK;
}

agglo_status agglo_cache_open(agglo_cache **out, const char *path, int max_open_units, agglo_err *err)
{
    agglo_cache *cache = agglo_alloc(1, sizeof *cache, err);
    agglo_arena *arena = NULL;
    char *file = NULL;

    *out = NULL;
    if (cache == NULL || (cache->path = agglo_strdup(path, err)) == NULL ||
        (file = agglo_path_join(path, "cache.json", err)) == NULL || agglo_arena_new(&arena, 0, err) != AGGLO_OK ||
        agglo_json_read(file, DESCRIPTION_MAX_BYTES, &cache->root, err) != AGGLO_OK) {
        goto fail;
    }
    if (parse_groups(cache->root, &cache->groups, &cache->n_groups, err) != AGGLO_OK) {
        agglo_at(err, "%s", file);
        goto fail;
    }
    if (list_teachers(cache, arena, err) != AGGLO_OK) {
        goto fail;
    }
    if (cache->n_units > 0) {
        qsort(cache->units, cache->n_units, sizeof *cache->units, compare_units);
    }
    cache->n_slots = max_open_units > 0 ? (size_t)max_open_units : DEFAULT_OPEN_UNITS;
    if ((cache->verified = agglo_alloc(cache->n_units, sizeof *cache->verified, err)) == NULL ||
        (cache->bad = agglo_alloc(cache->n_units, sizeof *cache->bad, err)) == NULL ||
        (cache->slots = agglo_alloc(cache->n_slots, sizeof *cache->slots, err)) == NULL) {
        goto fail;
    }
    for (size_t i = 0; i < cache->n_slots; i++) {
        cache->slots[i].index = SIZE_MAX;
    }
    pthread_mutex_init(&cache->lock, NULL); /* cannot fail with default attributes */
    pthread_cond_init(&cache->changed, NULL);
    cache->has_lock = true;
    agglo_arena_free(arena);
    agglo_free(file);
    *out = cache;
    return AGGLO_OK;
fail:
    agglo_arena_free(arena);
    agglo_free(file);
    agglo_cache_close(cache);
    return agglo_doing(err, "cannot open cache");
}

void agglo_cache_close(agglo_cache *cache)
{
    if (cache == NULL) {
        return;
    }
    for (size_t i = 0; cache->slots != NULL && i < cache->n_slots; i++) {
        agglo_unit_close(cache->slots[i].unit);
    }
    for (size_t i = 0; cache->bad != NULL && i < cache->n_units; i++) {
        agglo_free(cache->bad[i]);
    }
    if (cache->has_lock) {
        pthread_cond_destroy(&cache->changed);
        pthread_mutex_destroy(&cache->lock);
    }
    agglo_free(cache->slots);
    agglo_free(cache->bad);
    agglo_free(cache->verified);
    agglo_free(cache->units);
    agglo_free(cache->teachers);
    agglo_free(cache->groups);
    json_decref(cache->root);
    agglo_free(cache->path);
    agglo_free(cache);
}

const char *agglo_cache_path(const agglo_cache *cache)
{
    return cache->path;
}

size_t agglo_cache_teachers(const agglo_cache *cache)
{
    return cache->n_teachers;
}

const agglo_cache_teacher *agglo_cache_teacher_at(const agglo_cache *cache, size_t i)
{
    return i < cache->n_teachers ? &cache->teachers[i] : NULL;
}

const agglo_cache_teacher *agglo_cache_find_teacher(const agglo_cache *cache, const char *name)
{
    for (size_t i = 0; i < cache->n_teachers; i++) {
        if (strcmp(cache->teachers[i].name, name) == 0) {
            return &cache->teachers[i];
        }
    }
    return NULL;
}

size_t agglo_cache_groups(const agglo_cache *cache)
{
    return cache->n_groups;
}

const agglo_cache_group *agglo_cache_group_at(const agglo_cache *cache, size_t i)
{
    return i < cache->n_groups ? &cache->groups[i] : NULL;
}

size_t agglo_cache_units(const agglo_cache *cache)
{
    return cache->n_units;
}

const agglo_manifest *agglo_cache_unit_at(const agglo_cache *cache, size_t i)
{
    return i < cache->n_units ? &cache->units[i] : NULL;
}

size_t agglo_cache_damaged(const agglo_cache *cache)
{
    return cache->n_damaged;
}

/* ---- reading ---- */

/* The unit that holds this view: units of one (teacher, group, shard) stand together, found by bisection. SIZE_MAX: none. */
static size_t find_unit(const agglo_cache *cache, const char *teacher, const char *group, uint32_t shard, int view)
{
    size_t low = 0, high = cache->n_units;

    while (low < high) { /* the first that is not before (teacher, group, shard) */
        size_t middle = low + (high - low) / 2;
        const agglo_unit_id *id = &cache->units[middle].id;
        int order = strcmp(id->teacher, teacher);

        order = order != 0 ? order : strcmp(id->group, group);
        if (order < 0 || (order == 0 && id->shard < shard)) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    for (; low < cache->n_units; low++) {
        const agglo_unit_id *id = &cache->units[low].id;

        if (id->shard != shard || strcmp(id->teacher, teacher) != 0 || strcmp(id->group, group) != 0) {
            break;
        }
        if (id->view_first <= view && view <= id->view_last) {
            return low;
        }
    }
    return SIZE_MAX;
}

/* A slot for unit `index`: its own, else an empty one, else the one not used for longest; NULL when all are in use. */
static slot *choose_slot(agglo_cache *cache, size_t index)
{
    slot *best = NULL;

    for (size_t i = 0; i < cache->n_slots; i++) {
        slot *s = &cache->slots[i];

        if (s->index == index) {
            return s;
        }
        if (s->n_users == 0 && (best == NULL || s->last_use < best->last_use)) {
            best = s;
        }
    }
    return best;
}

/* Open unit `index` into a slot and hold it. Opening (and hashing) happens outside of the lock; others who want the same unit wait. */
static agglo_status hold_unit(agglo_cache *cache, size_t index, slot **out, agglo_err *err)
{
    agglo_status status = AGGLO_OK;
    agglo_unit *old, *unit = NULL;
    bool verify;
    slot *s;

    pthread_mutex_lock(&cache->lock);
    for (;;) {
        if (cache->bad[index] != NULL) {
            *err = *cache->bad[index];
            pthread_mutex_unlock(&cache->lock);
            return err->status;
        }
        s = choose_slot(cache, index);
        if (s != NULL && (s->index != index || s->unit != NULL)) {
            break;
        }
        pthread_cond_wait(&cache->changed, &cache->lock);
    }
    s->n_users++;
    s->last_use = ++cache->tick;
    if (s->index == index) {
        pthread_mutex_unlock(&cache->lock);
        *out = s;
        return AGGLO_OK;
    }
    old = s->unit;
    s->unit = NULL;
    s->index = index;
    verify = !cache->verified[index];
    pthread_mutex_unlock(&cache->lock);

    agglo_unit_close(old);
    status = agglo_unit_open(&unit, cache->path, &cache->units[index].id, &cache->units[index].provenance, verify, err);

    pthread_mutex_lock(&cache->lock);
    if (status == AGGLO_OK) {
        s->unit = unit;
        cache->verified[index] = true;
        *out = s;
    } else {
        agglo_err no_memory = {0};

        s->index = SIZE_MAX;
        s->last_use = 0;
        s->n_users--;
        /* lack of memory or descriptors may pass; damage does not */
        if (status != AGGLO_E_MEMORY && status != AGGLO_E_IO) {
            cache->bad[index] = agglo_alloc(1, sizeof *err, &no_memory);
            if (cache->bad[index] != NULL) {
                *cache->bad[index] = *err;
            }
        }
    }
    pthread_cond_broadcast(&cache->changed);
    pthread_mutex_unlock(&cache->lock);
    return status;
}

static void release_unit(agglo_cache *cache, slot *s)
{
    pthread_mutex_lock(&cache->lock);
    if (--s->n_users == 0) {
        pthread_cond_broadcast(&cache->changed);
    }
    pthread_mutex_unlock(&cache->lock);
}

agglo_status agglo_cache_read(agglo_cache *cache, const char *teacher, const char *group, uint32_t shard,
                              uint32_t ordinal, int view, const agglo_provenance *expected, uint8_t **buffer,
                              size_t *capacity, agglo_record *out, agglo_err *err)
{
    size_t index = find_unit(cache, teacher, group, shard, view);
    agglo_bytes bytes = {NULL, 0};
    agglo_status status;
    slot *s = NULL;

    if (index == SIZE_MAX) {
        status = agglo_fail(err, AGGLO_E_NOT_FOUND,
                            "no finished unit of teacher %s holds shard %" PRIu32 ", view %d of group %s", teacher,
                            shard, view, group);
        agglo_at(err, "%s", cache->path);
        goto fail;
    }
    if (expected != NULL &&
        (status = agglo_provenance_compare(&cache->units[index].provenance, expected, err)) != AGGLO_OK) {
        agglo_at(err, "%s: teacher %s, shard %" PRIu32 ", group %s", cache->path, teacher, shard, group);
        goto fail;
    }
    status = hold_unit(cache, index, &s, err);
    if (status != AGGLO_OK) {
        goto fail;
    }
    status = agglo_unit_get(s->unit, ordinal, view, &bytes, err);
    if (status == AGGLO_OK && bytes.size > *capacity) {
        uint8_t *grown = agglo_realloc(*buffer, *capacity, bytes.size, err);

        if (grown == NULL) {
            status = err->status;
        } else {
            *buffer = grown;
            *capacity = bytes.size;
        }
    }
    if (status == AGGLO_OK) {
        memcpy(*buffer, bytes.data, bytes.size);
    }
    release_unit(cache, s);
    if (status == AGGLO_OK) {
        status = agglo_record_parse((agglo_bytes){*buffer, bytes.size}, out, err);
        if (status != AGGLO_OK) {
            agglo_at(err, "%s: teacher %s, shard %" PRIu32 ", group %s, record %" PRIu32 ", view %d", cache->path,
                     teacher, shard, group, ordinal, view);
        }
    }
    if (status == AGGLO_OK) {
        return AGGLO_OK;
    }
fail:
    return agglo_doing(err, "cannot read target");
}
