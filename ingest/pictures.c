/* Pictures out of files, folders, tars and datasets. A source is kept open as long as one of its pictures is in use. */
#include "ingest/pictures.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/arena.h"
#include "base/log.h"
#include "base/stop.h"
#include "ingest/ingest.h"
#include "ingest/sample.h"
#include "ingest/source.h"

typedef struct agglo_pictures_source {
    const char *path; /* the list's */
    int n_in_use;     /* pictures, and the list itself while it reads on */
    agglo_source source;
    agglo_grouping *grouping;  /* of a tar */
    size_t at;                 /* the next group, or file of a folder */
    size_t n_pictures, n_seen; /* of a folder; samples of a dataset */
    char *key;                 /* of a file by itself; NULL: it is another kind, or was given */
    bool is_file;
    uint64_t n_bytes; /* of a file by itself */
    const agglo_dataset *dataset;
    agglo_dataset *own_dataset;
    uint32_t shard, ordinal;
} source;

struct agglo_pictures {
    agglo_arena *texts; /* of the paths */
    char **paths;
    size_t n_paths, at;
    size_t sure_from; /* from this path on, all are single pictures by their names */
    char *spool_dir;
    source *current; /* NULL: none is open */
    const agglo_dataset *dataset;
    const char *dataset_name;
    bool labelled;
    uint64_t n_given, max_name, max_bytes;
    agglo_pictures_report report;
};

/* ---- what is left out ---- */

void agglo_pictures_reject(agglo_pictures *p, const char *path, const char *key, const agglo_err *reason)
{
    char line[1024];

    p->report.n_rejected++;
    agglo_log(AGGLO_LOG_WARN, "left out %s of %s: %s", key, path, agglo_err_line(reason, line, sizeof line));
}

static void reject_because(agglo_pictures *p, const char *path, const char *key, const char *why)
{
    agglo_err reason = {0};

    agglo_fail(&reason, AGGLO_E_DATA, "%s", why);
    agglo_pictures_reject(p, path, key, &reason);
}

/* A path that is not UTF-8 is shown with '?'. */
static json_t *text_of(const char *text)
{
    json_t *out = json_string(text);
    char plain[256];
    size_t n = 0;

    if (out != NULL) {
        return out;
    }
    for (; text[n] != '\0' && n + 1 < sizeof plain; n++) {
        plain[n] = (char)((unsigned char)text[n] < 0x80 ? text[n] : '?');
    }
    plain[n] = '\0';
    return json_string(plain);
}

static void lose(agglo_pictures *p, const char *path, const char *why)
{
    p->report.n_lost++;
    json_array_append_new(p->report.lost, json_pack("{s:o, s:o}", "source", text_of(path), "reason", text_of(why)));
    agglo_log(AGGLO_LOG_WARN, "cannot read all of %s: %s", path, why);
}

/* ---- opening ---- */

static void free_source(source *s)
{
    if (s == NULL) {
        return;
    }
    if (s->dataset == NULL) {
        agglo_source_close(&s->source);
    }
    agglo_dataset_close(s->own_dataset);
    agglo_grouping_free(s->grouping);
    agglo_free(s->key);
    agglo_free(s);
}

static void put_back(source *s)
{
    if (s != NULL && --s->n_in_use == 0) {
        free_source(s);
    }
}

/* A picture by its extension, which begins at the first dot in a tar and at the last one in a folder. */
static bool named_as_picture(const char *name, bool folder)
{
    const char *base = agglo_path_base(name), *dot = folder ? strrchr(base, '.') : strchr(base, '.');

    return dot != NULL && agglo_is_image_ext(dot + 1);
}

/* Whether a folder's file is one of its pictures, and how much of its name is the key. Every picture is one of its own: a.jpg and a.png may
 * stand side by side. */
static bool is_folder_picture(const agglo_source_member *member, size_t *n_key)
{
    const char *dot = strchr(agglo_path_base(member->name), '.'); /* what is hidden is unsupported */

    *n_key = dot != NULL ? (size_t)(dot - member->name) : 0;
    return member->unsupported == NULL && dot != NULL && agglo_is_image_ext(dot + 1);
}

typedef struct visitor {
    agglo_pictures *list;
    source *source;
} visitor;

static agglo_status lose_below(agglo_pictures *p, const char *path, const agglo_source_member *member, agglo_err *err)
{
    char *full = agglo_path_join(path, member->name, err);

    if (full != NULL) {
        lose(p, full, member->unsupported);
    }
    agglo_free(full);
    return err->status;
}

/* A member that is no plain file, or whose name is no name: what would have been a picture is rejected. Of what is left out by rule (docs/embed.md:
 * hidden files, links to folders) nothing is said. */
static void pass_over(agglo_pictures *p, const source *s, const agglo_source_member *member, const char *why)
{
    bool folder = s->source.folder != NULL, hidden = folder && agglo_path_base(member->name)[0] == '.';
    char name[256];

    snprintf(name, sizeof name, "%.250s", member->name);
    if (!hidden && named_as_picture(member->name, folder)) {
        reject_because(p, s->path, name, why);
    } else {
        agglo_log(AGGLO_LOG_DEBUG, "passed over %s of %s: %s", name, s->path, why);
    }
}

static agglo_status visit(void *context, const agglo_source_member *member, agglo_err *err)
{
    const visitor *v = context;
    agglo_pictures *p = v->list;
    source *s = v->source;
    const char *reason = NULL;
    size_t n_key;

    if (agglo_stop_check(err) != AGGLO_OK || member->directory) {
        return err->status;
    }
    if (member->unread) {
        return lose_below(p, s->path, member, err);
    }
    if (member->unsupported != NULL || strlen(member->name) > p->max_name) {
        pass_over(p, s, member, member->unsupported != NULL ? member->unsupported : "its name is too long");
        return AGGLO_OK;
    }
    if (s->source.folder != NULL) {
        s->n_pictures += is_folder_picture(member, &n_key);
        return AGGLO_OK;
    }
    if (agglo_grouping_add(s->grouping, member->name, member->offset, member->n_bytes, member->cut, &reason, err) ==
            AGGLO_OK &&
        reason != NULL) {
        pass_over(p, s, member,
                  strcmp(reason, "duplicate_key") == 0      ? "a picture of this key came before"
                  : strcmp(reason, "duplicate_member") == 0 ? "a member of this name came before"
                  : agglo_name_split(member->name, &n_key) == AGGLO_NAME_NO_KEY
                      ? "there is nothing before its extension"
                      : "its sample has too many members");
    }
    return err->status;
}

static bool holds_picture(const agglo_source *from)
{
    uint8_t head[64];
    size_t n = from->n_plain < sizeof head ? (size_t)from->n_plain : sizeof head;
    agglo_err ignored = {0};

    return agglo_source_read(from, 0, head, n, &ignored) == AGGLO_OK &&
           agglo_image_format_of((agglo_bytes){head, n}) != AGGLO_IMAGE_UNKNOWN;
}

/* Walk a tar or a folder. What is wrong with it is noted; false: nothing of it can be read, or an error. */
static bool open_walk(agglo_pictures *p, source *s, agglo_err *err)
{
    visitor v = {p, s};
    const char *reason = NULL;
    char detail[256];
    agglo_err bad = {0};

    if (agglo_source_open(&s->source, s->path, p->spool_dir, &bad) != AGGLO_OK) {
        if (bad.status == AGGLO_E_MEMORY || bad.status == AGGLO_E_STOPPED) {
            *err = bad;
        } else {
            lose(p, s->path, bad.why);
        }
        return false;
    }
    if (strcmp(s->path, "-") == 0 && holds_picture(&s->source)) {
        lose(p, s->path, "standard input takes a tar, and this is a picture");
        return false;
    }
    if (agglo_grouping_new(&s->grouping, err) != AGGLO_OK ||
        agglo_source_unpack(&s->source, p->spool_dir, err) != AGGLO_OK ||
        agglo_source_scan(&s->source, visit, &v, &reason, detail, err) != AGGLO_OK) {
        return false;
    }
    if (reason != NULL) {
        lose(p, s->path, detail[0] != '\0' ? detail : reason);
    }
    return true;
}

/* A picture by its first bytes, or at least no tar: then the decoder says what is wrong with it. */
static bool is_picture(agglo_bytes head, const char *name)
{
    return agglo_image_format_of(head) != AGGLO_IMAGE_UNKNOWN ||
           (!agglo_is_tar_name(name) && agglo_packing_of(head) == AGGLO_PACKED_NOT &&
            !(head.size >= 262 && memcmp(head.data + 257, "ustar", 5) == 0));
}

/* The key of a file that is named by itself, as a folder gives it. */
static agglo_status name_file(source *s, agglo_err *err)
{
    size_t n_key;

    s->key = agglo_strdup(agglo_path_base(s->path), err);
    if (s->key != NULL) {
        agglo_name_join_stem(s->key);
        if (agglo_name_split(s->key, &n_key) == AGGLO_NAME_MEMBER) {
            s->key[n_key] = '\0';
        }
    }
    return err->status;
}

/* Whether it is a file by itself and not a tar: then it is the one entry. */
static bool open_file(agglo_pictures *p, source *s, bool *lost, agglo_err *err)
{
    uint8_t head[512];
    struct stat info;
    ssize_t n = -1;
    int fd = open(s->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

    *lost = fd < 0 || fstat(fd, &info) != 0 || (S_ISREG(info.st_mode) && (n = pread(fd, head, sizeof head, 0)) < 0);
    if (*lost) {
        lose(p, s->path, strerror(errno));
    } else if (!S_ISREG(info.st_mode)) {
        *lost = true;
        lose(p, s->path, "not a regular file");
    } else {
        s->is_file = is_picture((agglo_bytes){head, (size_t)n}, s->path);
    }
    if (fd >= 0) {
        close(fd);
    }
    if (s->is_file) {
        s->n_bytes = (uint64_t)info.st_size;
        name_file(s, err);
    }
    return s->is_file;
}

/* The shards that cannot be read are lost; each is named once. */
static void open_shards(agglo_pictures *p, source *s)
{
    s->n_pictures = (size_t)agglo_dataset_samples(s->dataset);
    for (uint32_t i = 0; i < agglo_dataset_shards(s->dataset); i++) {
        agglo_err reason = {0};
        char line[1024];

        if (agglo_dataset_shard_status(s->dataset, i, &reason) != AGGLO_OK) {
            lose(p, agglo_dataset_shard(s->dataset, i)->path, agglo_err_line(&reason, line, sizeof line));
        }
    }
}

/* The next source, into p->current; NULL there: it is lost. */
static agglo_status open_next(agglo_pictures *p, agglo_err *err)
{
    source *s = agglo_alloc(1, sizeof *s, err);
    bool lost = false;

    if (s == NULL) {
        return err->status;
    }
    s->n_in_use = 1;
    s->source.fd = -1;
    if (p->dataset != NULL) {
        p->at++;
        s->path = p->dataset_name;
        s->dataset = p->dataset;
        open_shards(p, s);
    } else {
        s->path = p->paths[p->at++];
        if (agglo_dataset_is(s->path, err)) {
            const char *const path = s->path;
            agglo_err bad = {0};

            lost = agglo_dataset_open(&s->own_dataset, &path, 1, &bad) != AGGLO_OK;
            if (bad.status == AGGLO_E_MEMORY) {
                *err = bad;
            } else if (lost) {
                lose(p, s->path, bad.why);
            } else {
                s->dataset = s->own_dataset;
                open_shards(p, s);
            }
        } else if (err->status == AGGLO_OK) {
            bool whole = strcmp(s->path, "-") != 0 && !agglo_path_is_dir(s->path) && open_file(p, s, &lost, err);

            lost = lost || (!whole && err->status == AGGLO_OK && !open_walk(p, s, err));
        }
    }
    if (err->status != AGGLO_OK || lost) {
        put_back(s);
        return err->status;
    }
    p->current = s;
    return AGGLO_OK;
}

/* ---- one by one ---- */

static agglo_status give(agglo_pictures *p, agglo_picture *out, const char *key, agglo_err *err)
{
    size_t n = strlen(key) + 1;

    if (n > out->key_room) {
        agglo_free(out->key);
        out->key_room = 0;
        out->key = agglo_alloc(n + 64, 1, err);
        if (out->key == NULL) {
            return err->status;
        }
        out->key_room = n + 64;
    }
    memcpy(out->key, key, n);
    out->source = p->current->path;
    out->number = ++p->n_given;
    out->from = p->current;
    p->current->n_in_use++;
    return AGGLO_OK;
}

static agglo_status next_of_dataset(agglo_pictures *p, agglo_picture *out, bool *found, agglo_err *err)
{
    source *s = p->current;
    agglo_sample sample;

    for (; s->shard < agglo_dataset_shards(s->dataset); s->shard++, s->ordinal = 0) {
        uint32_t n = agglo_dataset_shard(s->dataset, s->shard)->n_samples;
        agglo_err reason = {0};

        if (agglo_dataset_shard_status(s->dataset, s->shard, &reason) != AGGLO_OK) {
            p->report.n_rejected += n; /* the shard was named */
            s->n_seen += n;
            continue;
        }
        while (s->ordinal < n) {
            agglo_err_clear(&reason);
            s->n_seen++;
            if (agglo_dataset_sample(s->dataset, s->shard, s->ordinal++, &sample, &reason) != AGGLO_OK) {
                char key[64];

                snprintf(key, sizeof key, "%u/%u", s->shard, s->ordinal - 1);
                agglo_pictures_reject(p, s->path, key, &reason);
            } else if (p->labelled && sample.label < 0) {
                p->report.n_unlabelled++;
            } else {
                out->mapped = sample.image;
                out->label = sample.label;
                out->has_decode = true;
                out->decode = agglo_dataset_decode_options(s->dataset);
                *found = true;
                return give(p, out, sample.key, err);
            }
        }
        agglo_dataset_shard_rest(s->dataset, s->shard);
    }
    return AGGLO_OK;
}

static agglo_status next_of_tar(agglo_pictures *p, agglo_picture *out, bool *found, agglo_err *err)
{
    source *s = p->current;

    while (s->at < agglo_grouping_count(s->grouping)) {
        const agglo_group *group = agglo_grouping_at(s->grouping, s->at++);
        const agglo_member *image = group->image != 0 ? agglo_grouping_member(s->grouping, group->image) : NULL;

        if (image == NULL) {
            reject_because(p, s->path, group->key, "none of its members is a picture by its extension");
        } else if (group->incomplete) {
            reject_because(p, s->path, group->key, "the tar ends within it");
        } else if (image->n_bytes > p->max_bytes) {
            reject_because(p, s->path, group->key, "too many encoded bytes");
        } else {
            out->offset = image->offset;
            out->n_bytes = image->n_bytes;
            *found = true;
            return give(p, out, group->key, err);
        }
    }
    return AGGLO_OK;
}

/* A whole file, if it is not too large. */
static agglo_status give_file(agglo_pictures *p, agglo_picture *out, const char *key, uint64_t offset, uint64_t n_bytes,
                              bool *found, agglo_err *err)
{
    if (n_bytes > p->max_bytes) {
        reject_because(p, p->current->path, key, "too many encoded bytes");
        return AGGLO_OK;
    }
    out->offset = offset;
    out->n_bytes = n_bytes;
    *found = true;
    return give(p, out, key, err);
}

static agglo_status next_of_folder(agglo_pictures *p, agglo_picture *out, bool *found, agglo_err *err)
{
    source *s = p->current;

    while (!*found && err->status == AGGLO_OK && s->at < agglo_source_files(&s->source)) {
        agglo_source_member member;
        size_t n_key;
        char *name;

        if (agglo_source_file(&s->source, s->at++, &member, &name, err) == AGGLO_OK &&
            is_folder_picture(&member, &n_key) && strlen(name) <= p->max_name) {
            s->n_seen++;
            name[n_key] = '\0';
            give_file(p, out, name, member.offset, member.n_bytes, found, err);
        }
        agglo_free(name);
    }
    return err->status;
}

static agglo_status next_of_file(agglo_pictures *p, agglo_picture *out, bool *found, agglo_err *err)
{
    source *s = p->current;

    if (s->key != NULL) {
        give_file(p, out, s->key, 0, s->n_bytes, found, err);
        agglo_free(s->key);
        s->key = NULL;
    }
    return err->status;
}

agglo_status agglo_pictures_next(agglo_pictures *p, agglo_picture *out, bool *more, agglo_err *err)
{
    bool found = false;

    AGGLO_ASSERT(out->from == NULL);
    out->label = -1;
    out->has_decode = false;
    out->mapped = (agglo_bytes){NULL, 0};
    *more = false;
    while (!found && err->status == AGGLO_OK && agglo_stop_check(err) == AGGLO_OK) {
        const source *s = p->current;

        if (s == NULL) {
            if (p->at >= p->n_paths) {
                break;
            }
            open_next(p, err);
            continue;
        }
        if (s->dataset != NULL) {
            next_of_dataset(p, out, &found, err);
        } else if (s->is_file) {
            next_of_file(p, out, &found, err);
        } else if (s->source.folder != NULL) {
            next_of_folder(p, out, &found, err);
        } else {
            next_of_tar(p, out, &found, err);
        }
        if (!found && err->status == AGGLO_OK) {
            put_back(p->current);
            p->current = NULL;
        }
    }
    *more = found && err->status == AGGLO_OK;
    return err->status;
}

void agglo_picture_release(agglo_picture *picture)
{
    put_back(picture->from);
    picture->from = NULL;
}

void agglo_picture_clear(agglo_picture *picture)
{
    agglo_picture_release(picture);
    agglo_free(picture->key);
    *picture = (agglo_picture){0};
}

agglo_status agglo_picture_read(const agglo_picture *picture, uint8_t **buffer, size_t *room, agglo_bytes *out,
                                agglo_err *err)
{
    const source *s = picture->from;
    size_t n = (size_t)picture->n_bytes;
    struct stat info;
    int fd;

    if (s->dataset != NULL) {
        *out = picture->mapped;
        return AGGLO_OK;
    }
    if (n > *room) {
        agglo_free(*buffer);
        *room = 0;
        *buffer = agglo_alloc(n, 1, err);
        if (*buffer == NULL) {
            return err->status;
        }
        *room = n;
    }
    *out = (agglo_bytes){*buffer, n};
    if (!s->is_file) {
        return agglo_source_read(&s->source, picture->offset, *buffer, n, err);
    }
    fd = open(s->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &info) != 0) {
        agglo_fail(err, AGGLO_E_IO, "%s", strerror(errno));
    } else if (!S_ISREG(info.st_mode) || (uint64_t)info.st_size != picture->n_bytes) {
        agglo_fail(err, AGGLO_E_IO, "the file has changed");
    } else {
        agglo_fd_read_at(fd, 0, *buffer, n, err);
    }
    if (fd >= 0) {
        close(fd);
    }
    return err->status;
}

/* ---- the list ---- */

static agglo_status make(agglo_pictures **out, const char *spool_dir, agglo_err *err)
{
    agglo_ingest_options limits = agglo_ingest_options_default();
    agglo_pictures *p = agglo_alloc(1, sizeof *p, err);

    *out = p;
    if (p == NULL || agglo_arena_new(&p->texts, 0, err) != AGGLO_OK ||
        (p->spool_dir = agglo_strdup(spool_dir, err)) == NULL) {
        return err->status;
    }
    p->max_name = limits.max_name;
    p->max_bytes = limits.max_image_bytes;
    p->report.lost = json_array();
    return p->report.lost != NULL ? AGGLO_OK : agglo_fail(err, AGGLO_E_MEMORY, "out of memory for a report");
}

agglo_status agglo_pictures_new(agglo_pictures **out, const char *const *args, size_t n_args, const char *spool_dir,
                                agglo_err *err)
{
    agglo_pictures *p;

    *out = NULL;
    if (make(&p, spool_dir, err) != AGGLO_OK ||
        agglo_ingest_expand_whole(args, n_args, p->texts, &p->paths, &p->n_paths, err) != AGGLO_OK) {
        agglo_pictures_free(p);
        return err->status;
    }
    p->sure_from = p->n_paths;
    while (p->sure_from > 0 && named_as_picture(p->paths[p->sure_from - 1], true)) {
        p->sure_from--;
    }
    *out = p;
    return AGGLO_OK;
}

agglo_status agglo_pictures_of_dataset(agglo_pictures **out, const agglo_dataset *dataset, const char *name,
                                       bool labelled, agglo_err *err)
{
    agglo_pictures *p;

    *out = NULL;
    if (make(&p, ".", err) != AGGLO_OK ||
        (p->dataset_name = agglo_arena_text(p->texts, name, strlen(name), err)) == NULL) {
        agglo_pictures_free(p);
        return err->status;
    }
    p->dataset = dataset;
    p->labelled = labelled;
    p->n_paths = 1;
    *out = p;
    return AGGLO_OK;
}

void agglo_pictures_free(agglo_pictures *p)
{
    if (p == NULL) {
        return;
    }
    AGGLO_ASSERT(p->current == NULL || p->current->n_in_use == 1);
    put_back(p->current);
    json_decref(p->report.lost);
    agglo_arena_free(p->texts);
    agglo_free(p->spool_dir);
    agglo_free(p);
}

/* What the open source may still give. */
static uint64_t left_of(const source *s)
{
    return s == NULL                                        ? 0
           : s->is_file                                     ? s->key != NULL
           : s->dataset != NULL || s->source.folder != NULL ? s->n_pictures - s->n_seen
                                                            : agglo_grouping_count(s->grouping) - s->at;
}

uint64_t agglo_pictures_expected(const agglo_pictures *p)
{
    if (p->dataset != NULL && p->at == 0) {
        return agglo_dataset_samples(p->dataset);
    }
    return p->at < p->sure_from ? 0 : p->n_given + left_of(p->current) + (p->n_paths - p->at);
}

agglo_pictures_report agglo_pictures_report_of(const agglo_pictures *p)
{
    return p->report;
}
