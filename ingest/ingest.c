/* The ingest driver. Per source: the headers are read and grouped, then samples go round a ring: this thread submits them in order,
 * workers read, hash and decode, this thread takes them in order and writes. The ring is drained between sources, so that the reject
 * list has one order whatever the number of jobs.
 *
 * Files appear in this order: shards, rejects.jsonl, index.bin, dataset.json; the last one says that the dataset is complete. Until then a
 * marker says that the shards are ours to overwrite: a run that was killed is started over and gives the same bytes.
 */
#include "ingest/ingest.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/log.h"
#include "base/pool.h"
#include "base/ring.h"
#include "base/stop.h"
#include "ingest/dataset_impl.h"
#include "ingest/index.h"
#include "ingest/reject.h"
#include "ingest/sample.h"
#include "ingest/shard_writer.h"
#include "ingest/source_tar.h"

#define MARKER       ".ingest-unfinished"
#define SLOTS_A_JOB  4
#define MAX_MEMBERS  64 /* as sample.c has it */
#define MAX_SET_LOAD 2  /* slots per uid at least */

/* One sample on its way. The buffer grows to the largest sample and stays. */
typedef struct job {
    const agglo_source *source;
    const agglo_group *group;
    agglo_member members[MAX_MEMBERS]; /* ascending by extension as written */
    agglo_out_member out[MAX_MEMBERS];
    size_t n_members, image;
    uint8_t *buffer;
    size_t room;
    agglo_index_sample sample;
    const char *reason; /* NULL: keep it */
    char detail[256];
} job;

typedef struct uid_set {
    uint8_t (*slots)[16];
    uint8_t *used;
    size_t n, n_slots;
} uid_set;

typedef struct ingest {
    const agglo_ingest_options *options;
    agglo_ingest_report *report;
    int n_jobs;
    agglo_decoder **decoders; /* one per worker */
    agglo_ring *ring;
    agglo_grouping *grouping;
    agglo_index_builder *index;
    agglo_shard_writer *writer;
    agglo_rejects *rejects;
    agglo_progress *progress;
    uid_set uids;
    char *shards_dir;
    const char *source_name; /* being read */
} ingest;

agglo_ingest_options agglo_ingest_options_default(void)
{
    agglo_ingest_options options = {
        .shard_samples = 10000,
        .decode = agglo_decode_options_default(),
        .max_image_bytes = (uint64_t)256 << 20,
    };
    return options;
}

/* ---- workers ---- */

static void reject(job *j, const char *reason, const char *detail)
{
    j->reason = reason;
    snprintf(j->detail, sizeof j->detail, "%s", detail);
}

static agglo_status read_members(job *j, agglo_err *err)
{
    size_t total = 0, at = 0;

    for (size_t i = 0; i < j->n_members; i++) {
        if (!agglo_size_add(total, (size_t)j->members[i].n_bytes, &total)) {
            return agglo_fail(err, AGGLO_E_MEMORY, "the sample is too large");
        }
    }
    if (total > j->room) {
        agglo_free(j->buffer);
        j->room = 0;
        j->buffer = agglo_alloc(total, 1, err);
        if (j->buffer == NULL) {
            return err->status;
        }
        j->room = total;
    }
    for (size_t i = 0; i < j->n_members; i++) {
        size_t n = (size_t)j->members[i].n_bytes;

        if (agglo_source_read(j->source, j->members[i].offset, j->buffer + at, n, err) != AGGLO_OK) {
            return err->status;
        }
        j->out[i] = (agglo_out_member){j->members[i].ext, {j->buffer + at, n}};
        at += n;
    }
    return AGGLO_OK;
}

static const agglo_out_member *find_member(const job *j, const char *ext)
{
    for (size_t i = 0; i < j->n_members; i++) {
        if (strcmp(j->out[i].ext, ext) == 0) {
            return &j->out[i];
        }
    }
    return NULL;
}

static agglo_status make_uid(job *j, agglo_err *err)
{
    const agglo_out_member *json = find_member(j, "json");
    agglo_hasher *hasher = NULL;
    agglo_sha256 digest;
    agglo_bytes image = j->out[j->image].data;

    if (json != NULL && agglo_sidecar_uid(json->data, j->sample.uid)) {
        return AGGLO_OK;
    }
    if (agglo_hasher_new(&hasher, AGGLO_HASH_SHA256, err) == AGGLO_OK &&
        agglo_hasher_add(hasher, j->group->key, strlen(j->group->key) + 1, err) == AGGLO_OK && /* the 0 byte too */
        agglo_hasher_add(hasher, image.data, image.size, err) == AGGLO_OK &&
        agglo_hasher_end(hasher, digest.bytes, err) == AGGLO_OK) {
        memcpy(j->sample.uid, digest.bytes, 16);
    }
    agglo_hasher_free(hasher);
    return err->status;
}

static int by_ext(const void *a, const void *b)
{
    return strcmp(((const agglo_out_member *)a)->ext, ((const agglo_out_member *)b)->ext);
}

/* The picture is named for what it is, and members stand in the order of their extensions. */
static void name_members(job *j, agglo_image_format format)
{
    static const char *const exts[] = {
        [AGGLO_IMAGE_JPEG] = "jpg", [AGGLO_IMAGE_PNG] = "png", [AGGLO_IMAGE_WEBP] = "webp"};
    const char *ext = exts[format];

    j->out[j->image].ext = ext;
    qsort(j->out, j->n_members, sizeof *j->out, by_ext);
    for (size_t i = 0; i < j->n_members; i++) {
        if (j->out[i].ext == ext) { /* the pointer: nothing else holds it */
            j->image = i;
        }
    }
}

/* A foreign failure ends in j->reason; only lack of memory for our own purposes is an error. */
static agglo_status work(void *context, void *slot, int worker, agglo_err *err)
{
    ingest *in = context;
    job *j = slot;
    const agglo_ingest_options *options = in->options;
    const agglo_out_member *cls;
    agglo_image_info info = {0};
    agglo_reason reason = NULL;
    agglo_err bad = {0};
    agglo_bytes encoded;
    int small, large;

    if (j->reason != NULL) {
        return AGGLO_OK;
    }
    if (read_members(j, &bad) != AGGLO_OK) {
        reject(j, bad.status == AGGLO_E_MEMORY ? "out_of_memory" : "unreadable", bad.why);
        return AGGLO_OK;
    }
    encoded = j->out[j->image].data;
    if (agglo_decoder_probe(in->decoders[worker], encoded, &info, &reason, &bad) != AGGLO_OK) {
        reject(j, reason != NULL ? reason : "corrupt", bad.why);
        return AGGLO_OK;
    }
    small = info.width < info.height ? info.width : info.height;
    large = info.width < info.height ? info.height : info.width;
    if (small < options->min_side) {
        snprintf(j->detail, sizeof j->detail, "%d x %d pixels", info.width, info.height);
        j->reason = "too_small";
        return AGGLO_OK;
    }
    if (options->max_aspect > 0 && (double)large > options->max_aspect * (double)small) {
        snprintf(j->detail, sizeof j->detail, "%d x %d pixels", info.width, info.height);
        j->reason = "bad_aspect";
        return AGGLO_OK;
    }
    if (!options->header_only && agglo_image_verify(in->decoders[worker], encoded, &reason, &bad) != AGGLO_OK) {
        reject(j, reason != NULL ? reason : "corrupt", bad.why);
        return AGGLO_OK;
    }
    if (make_uid(j, err) != AGGLO_OK) {
        return err->status;
    }
    cls = find_member(j, "cls");
    j->sample.key = j->group->key;
    j->sample.width = (uint32_t)info.width;
    j->sample.height = (uint32_t)info.height;
    j->sample.format = (uint8_t)info.format;
    j->sample.orientation = (uint8_t)info.orientation;
    j->sample.label = cls == NULL ? -1 : agglo_sidecar_label(cls->data);
    name_members(j, info.format);
    return AGGLO_OK;
}

static void clear_job(void *slot)
{
    agglo_free(((job *)slot)->buffer);
}

/* ---- uids ---- */

static size_t uid_slot(const uid_set *set, const uint8_t uid[16])
{
    size_t at = (size_t)agglo_xxh3_64(uid, 16) & (set->n_slots - 1);

    while (set->used[at] && memcmp(set->slots[at], uid, 16) != 0) {
        at = (at + 1) & (set->n_slots - 1);
    }
    return at;
}

static void free_uids(uid_set *set)
{
    agglo_free(set->slots);
    agglo_free(set->used);
}

/* *known: it was there before. */
static agglo_status add_uid(uid_set *set, const uint8_t uid[16], bool *known, agglo_err *err)
{
    size_t at;

    if ((set->n + 1) * MAX_SET_LOAD > set->n_slots) {
        uid_set grown = {.n = set->n, .n_slots = set->n_slots == 0 ? 4096 : set->n_slots * 2};

        grown.slots = agglo_alloc(grown.n_slots, sizeof *grown.slots, err);
        grown.used = agglo_alloc(grown.n_slots, 1, err);
        if (grown.slots == NULL || grown.used == NULL) {
            free_uids(&grown);
            return err->status;
        }
        for (size_t i = 0; i < set->n_slots; i++) {
            if (set->used[i]) {
                at = uid_slot(&grown, set->slots[i]);
                memcpy(grown.slots[at], set->slots[i], 16);
                grown.used[at] = 1;
            }
        }
        free_uids(set);
        *set = grown;
    }
    at = uid_slot(set, uid);
    *known = set->used[at] != 0;
    if (!*known) {
        memcpy(set->slots[at], uid, 16);
        set->used[at] = 1;
        set->n++;
    }
    return AGGLO_OK;
}

/* ---- one source ---- */

/* Take the oldest sample and write it or list it. */
static agglo_status finish_one(ingest *in, agglo_err *err)
{
    void *slot;
    job *j;
    bool known = false;

    if (agglo_ring_take(in->ring, &slot, err) != AGGLO_OK) {
        goto done;
    }
    j = slot;
    if (j->reason == NULL) {
        if (add_uid(&in->uids, j->sample.uid, &known, err) != AGGLO_OK) {
            goto done;
        }
        if (known) {
            char hex[33];

            reject(j, "duplicate_uid", agglo_hex(j->sample.uid, 16, hex));
        }
    }
    if (j->reason != NULL) {
        in->report->samples_rejected++;
        agglo_rejects_add(in->rejects, in->source_name, j->group->key, j->reason, j->detail, err);
    } else if (agglo_shard_writer_add(in->writer, &j->sample, j->out, j->n_members, j->image, err) == AGGLO_OK) {
        in->report->samples_kept++;
    }
    agglo_progress_add(in->progress, 1);
done:
    agglo_ring_release(in->ring);
    return err->status;
}

static agglo_status drain(ingest *in, agglo_err *err)
{
    while (agglo_ring_in_flight(in->ring) > 0) {
        if (finish_one(in, err) != AGGLO_OK) {
            return err->status;
        }
    }
    return AGGLO_OK;
}

static agglo_status visit_member(void *context, const agglo_source_member *member, agglo_err *err)
{
    ingest *in = context;
    const char *reason = NULL;

    if (agglo_stop_check(err) != AGGLO_OK || member->directory) {
        return err->status;
    }
    if (!member->regular) {
        return agglo_rejects_add(in->rejects, in->source_name, member->name, "unsupported_member",
                                 "a link, a device or a sparse file", err);
    }
    if (agglo_grouping_add(in->grouping, member->name, member->offset, member->n_bytes, member->cut, &reason, err) !=
        AGGLO_OK) {
        return err->status;
    }
    if (reason == NULL) {
        return AGGLO_OK;
    }
    return agglo_rejects_add(in->rejects, in->source_name, member->name, reason,
                             strcmp(reason, "unsupported_member") == 0
                                 ? "no key and extension in its name, or too many of one key"
                                 : "the first one of its kind is kept",
                             err);
}

/* Which members go along: the picture, and side-cars as long as they fit. The dropped ones are listed when `list` is set. */
static agglo_status choose_members(ingest *in, const agglo_group *group, job *j, bool list, agglo_err *err)
{
    uint64_t total = 0, limit = in->options->max_image_bytes;

    for (uint32_t m = group->first; m != 0;) {
        const agglo_member *member = agglo_grouping_member(in->grouping, m);
        bool image = m == group->image;

        m = member->next;
        if (!image && member->n_bytes > limit - total) {
            if (list) {
                char detail[96];

                snprintf(detail, sizeof detail, "the side-car .%.32s has %llu bytes", member->ext,
                         (unsigned long long)member->n_bytes);
                if (agglo_rejects_add(in->rejects, in->source_name, group->key, "member_too_big", detail, err) !=
                    AGGLO_OK) {
                    return err->status;
                }
            }
            continue;
        }
        total += image ? 0 : member->n_bytes;
        if (j != NULL) {
            j->image = image ? j->n_members : j->image;
            j->members[j->n_members++] = *member;
        }
    }
    return AGGLO_OK;
}

static agglo_status submit_group(ingest *in, const agglo_source *source, const agglo_group *group, agglo_err *err)
{
    job *j = agglo_ring_claim(in->ring, false);

    while (j == NULL) {
        if (finish_one(in, err) != AGGLO_OK) {
            return err->status;
        }
        j = agglo_ring_claim(in->ring, false);
    }
    j->source = source;
    j->group = group;
    j->n_members = 0;
    j->image = 0;
    j->reason = NULL;
    j->detail[0] = 0;
    j->sample = (agglo_index_sample){.label = -1};
    in->report->samples_in++;
    if (group->incomplete) {
        reject(j, "incomplete", "the tar ends within it");
    } else if (group->image == 0) {
        reject(j, "no_image", "none of its members is a picture by its extension");
    } else if (agglo_grouping_member(in->grouping, group->image)->n_bytes > in->options->max_image_bytes) {
        reject(j, "image_too_big", "more encoded bytes than the limit");
    } else {
        choose_members(in, group, j, false, err);
    }
    agglo_ring_submit(in->ring);
    return err->status;
}

static agglo_status fail_shard(ingest *in, const char *reason, const char *detail, agglo_err *err)
{
    in->report->shards_failed++;
    agglo_log(AGGLO_LOG_WARN, "%s: %s (%s)", in->source_name, reason, detail);
    return agglo_rejects_add(in->rejects, in->source_name, NULL, reason, detail, err);
}

/* A source that cannot be opened is listed, not an error. `held`: standard input, spooled before. */
static agglo_status read_source(ingest *in, const char *path, agglo_source *held, agglo_err *err)
{
    agglo_source source;
    agglo_err bad = {0};
    const char *reason;
    char detail[256];
    agglo_status status;

    in->source_name = path;
    in->report->shards_in++;
    if (held != NULL) {
        source = *held;
        held->fd = -1;
    } else if (agglo_source_open(&source, path, in->options->out, &bad) != AGGLO_OK) {
        return fail_shard(in, bad.status == AGGLO_E_NOT_FOUND ? "shard_missing" : "shard_unreadable", bad.why, err);
    }
    in->report->bytes_in += source.n_bytes;
    agglo_grouping_reset(in->grouping);
    status = agglo_source_unpack(&source, in->options->out, err);
    if (status == AGGLO_OK) {
        status = agglo_source_scan(&source, visit_member, in, &reason, detail, err);
    }
    for (size_t i = 0; status == AGGLO_OK && i < agglo_grouping_count(in->grouping); i++) {
        const agglo_group *group = agglo_grouping_at(in->grouping, i);

        status = group->image == 0 ? AGGLO_OK : choose_members(in, group, NULL, true, err);
    }
    for (size_t i = 0; status == AGGLO_OK && i < agglo_grouping_count(in->grouping); i++) {
        status = agglo_stop_check(err);
        if (status == AGGLO_OK) {
            status = submit_group(in, &source, agglo_grouping_at(in->grouping, i), err);
        }
    }
    if (status == AGGLO_OK) {
        status = drain(in, err);
    }
    if (status == AGGLO_OK && reason != NULL) {
        status = fail_shard(in, reason, detail, err);
    }
    if (status != AGGLO_OK) { /* workers still read from it */
        void *slot;
        agglo_err dropped = {0};

        while (agglo_ring_in_flight(in->ring) > 0) {
            agglo_ring_take(in->ring, &slot, &dropped);
            agglo_ring_release(in->ring);
        }
    }
    agglo_source_close(&source);
    return status;
}

/* ---- the dataset directory ---- */

/* What the sources are: for "the same input again". Standard input is spooled here, into *held: it cannot be read twice, so that a failure
 * there is an error. */
static json_t *describe_sources(const char *const *paths, size_t n, const char *out_dir, agglo_source *held,
                                agglo_err *err)
{
    json_t *list = json_array();

    for (size_t i = 0; i < n; i++) {
        agglo_source source;
        agglo_err bad = {0};
        agglo_hash128 identity = {{0}};
        char hex[33] = "";
        bool is_stdin = strcmp(paths[i], "-") == 0;
        json_t *entry;

        if (agglo_stop_check(err) != AGGLO_OK) {
            break;
        }
        if (agglo_source_open(&source, paths[i], out_dir, is_stdin ? err : &bad) == AGGLO_OK) {
            if (agglo_source_identity(&source, &identity, &bad) == AGGLO_OK) {
                agglo_hex(identity.bytes, 16, hex);
            }
        }
        /* a source that cannot be read has no identity; should it appear later, the input is another one */
        entry =
            json_pack("{s:s%, s:I, s:s}", "name", "?", (size_t)1, "bytes", (json_int_t)source.n_bytes, "identity", hex);
        if (entry != NULL) {
            json_t *name = json_string(agglo_path_base(paths[i]));

            if (name != NULL) { /* not UTF-8: "?" stands for it, the identity tells */
                json_object_set_new(entry, "name", name);
            }
        }
        if (json_array_append_new(list, entry) != 0) {
            agglo_fail(err, AGGLO_E_MEMORY, "no memory for the list of sources");
        }
        if (is_stdin) {
            *held = source;
        } else {
            agglo_source_close(&source);
        }
        if (err->status != AGGLO_OK) {
            break;
        }
    }
    if (err->status != AGGLO_OK) {
        json_decref(list);
        return NULL;
    }
    return list;
}

/* All that decides what is kept and how it is cut. */
static json_t *describe_options(const agglo_ingest_options *o)
{
    return json_pack("{s:s, s:s, s:I, s:s, s:i, s:f, s:I, s:I, s:I}", "exif",
                     o->decode.ignore_exif ? "ignore" : "apply", "png16", o->decode.png16_clip ? "clip" : "scale",
                     "max_pixels", (json_int_t)o->decode.max_pixels, "verify", o->header_only ? "header" : "full",
                     "min_side", o->min_side, "max_aspect", o->max_aspect, "max_image_bytes",
                     (json_int_t)o->max_image_bytes, "shard_samples", (json_int_t)o->shard_samples, "shard_bytes",
                     (json_int_t)o->shard_bytes);
}

static agglo_status fingerprint_of(const json_t *value, char out[33], agglo_err *err)
{
    char *text = agglo_json_line(value, err);
    agglo_hash128 hash;

    if (text == NULL) {
        return err->status;
    }
    hash = agglo_xxh3_128(text, strlen(text));
    agglo_hex(hash.bytes, 16, out);
    agglo_free(text);
    return AGGLO_OK;
}

/* The report of the run that made the dataset. */
static agglo_status load_report(const json_t *root, agglo_ingest_report *report, agglo_err *err)
{
    const json_t *from, *rejected;
    int64_t v[6];
    static const char *const names[] = {"samples_in", "samples_kept",  "samples_rejected",
                                        "shards_in",  "shards_failed", "bytes_in"};

    if (agglo_json_get_object(root, "report", &from, err) != AGGLO_OK ||
        agglo_json_get_object(from, "rejected", &rejected, err) != AGGLO_OK ||
        agglo_json_get_double(from, "seconds", &report->seconds, err) != AGGLO_OK) {
        return err->status;
    }
    for (size_t i = 0; i < AGGLO_COUNT(names); i++) {
        if (agglo_json_get_int(from, names[i], 0, INT64_MAX, &v[i], err) != AGGLO_OK) {
            return err->status;
        }
    }
    report->samples_in = (uint64_t)v[0];
    report->samples_kept = (uint64_t)v[1];
    report->samples_rejected = (uint64_t)v[2];
    report->shards_in = (uint64_t)v[3];
    report->shards_failed = (uint64_t)v[4];
    report->bytes_in = (uint64_t)v[5];
    json_decref(report->rejected);
    report->rejected = json_deep_copy(rejected);
    report->up_to_date = true;
    return report->rejected == NULL ? agglo_fail(err, AGGLO_E_MEMORY, "no memory for the report") : AGGLO_OK;
}

/* A dataset that is there already: ours (then nothing is to be done) or another one (never overwritten). */
static agglo_status check_existing(const char *path, const char *fingerprint, agglo_ingest_report *report,
                                   agglo_err *err)
{
    json_t *root = NULL;
    const char *found;

    if (agglo_json_read(path, AGGLO_DATASET_JSON_MAX, &root, err) != AGGLO_OK) {
        return err->status;
    }
    if (agglo_json_get_string(root, "input", &found, err) != AGGLO_OK) {
        agglo_at(err, "%s", path);
    } else if (strcmp(found, fingerprint) != 0) {
        agglo_fail(err, AGGLO_E_CONFIG,
                   "it holds a dataset made of other sources or with other options; remove it or name another");
        agglo_at(err, "%s", path);
    } else {
        load_report(root, report, err);
    }
    json_decref(root);
    return err->status;
}

/* No source may stand where shards are going to be written. */
static agglo_status check_sources(const char *const *paths, size_t n, const char *shards_dir, agglo_err *err)
{
    char *ours = realpath(shards_dir, NULL);
    size_t n_ours = ours == NULL ? 0 : strlen(ours);

    for (size_t i = 0; ours != NULL && i < n; i++) {
        char *theirs = realpath(paths[i], NULL);

        if (theirs != NULL && strncmp(theirs, ours, n_ours) == 0 && theirs[n_ours] == '/') {
            agglo_fail(err, AGGLO_E_CONFIG, "a source stands in the output's own folder of shards");
            agglo_at(err, "%s", paths[i]);
        }
        free(theirs);
        if (err->status != AGGLO_OK) {
            break;
        }
    }
    free(ours);
    return err->status;
}

static agglo_status remove_file(const char *dir, const char *name, agglo_err *err)
{
    char *path = agglo_path_join(dir, name, err);

    if (path != NULL) {
        unlink(path);
        agglo_free(path);
    }
    return err->status;
}

/* Remove what a killed run left: temporary files always, shards (numbered `from` and up) as well. */
static agglo_status sweep(const char *dir, bool shards, uint32_t from, agglo_err *err)
{
    agglo_arena *arena = NULL;
    char **names;
    size_t n;

    if (agglo_arena_new(&arena, 0, err) == AGGLO_OK && agglo_list_dir(dir, arena, &names, &n, err) == AGGLO_OK) {
        for (size_t i = 0; i < n && err->status == AGGLO_OK; i++) {
            unsigned long number = strtoul(names[i], NULL, 10);
            char expected[32];
            bool stale = shards && number >= from && number <= UINT32_MAX &&
                         strcmp(agglo_shard_name((uint32_t)number, expected), names[i]) == 0;

            if (stale || agglo_is_temp_name(names[i])) {
                remove_file(dir, names[i], err);
            }
        }
    }
    agglo_arena_free(arena);
    return err->status;
}

static agglo_status prepare_directory(const ingest *in, agglo_err *err)
{
    char *marker = agglo_path_join(in->options->out, MARKER, err);
    agglo_arena *arena = NULL;
    char **names;
    size_t n;

    if (marker == NULL || agglo_arena_new(&arena, 0, err) != AGGLO_OK ||
        agglo_list_dir(in->shards_dir, arena, &names, &n, err) != AGGLO_OK) {
        goto done;
    }
    if (!agglo_path_exists(marker)) {
        if (n > 0) {
            agglo_fail(err, AGGLO_E_CONFIG, "the folder is not empty, and what it holds is not from an ingest");
            agglo_at(err, "%s", in->shards_dir);
            goto done;
        }
        if (agglo_file_write(marker, "", 0, err) != AGGLO_OK) {
            goto done;
        }
    }
    if (sweep(in->options->out, false, 0, err) == AGGLO_OK) {
        sweep(in->shards_dir, true, 0, err);
    }
done:
    agglo_arena_free(arena);
    agglo_free(marker);
    return err->status;
}

static json_t *describe_shards(const agglo_index_builder *index)
{
    json_t *list = json_array();

    for (uint32_t k = 0; k < agglo_index_builder_shards(index); k++) {
        agglo_index_shard shard = agglo_index_builder_at(index, k);
        char name[32], hex[33];

        json_array_append_new(list, json_pack("{s:s, s:I, s:I, s:s}", "file", agglo_shard_name(k, name), "samples",
                                              (json_int_t)shard.n_samples, "bytes", (json_int_t)shard.n_bytes, "xxh3",
                                              agglo_hex(shard.fingerprint.bytes, 16, hex)));
    }
    return list;
}

static agglo_status write_dataset(const ingest *in, const char *path, const char *input, json_t *options,
                                  json_t *sources, agglo_err *err)
{
    const agglo_ingest_report *r = in->report;
    char decode[33];
    json_t *root, *shards = describe_shards(in->index);
    agglo_status status;

    agglo_decode_fingerprint(&in->options->decode, decode);
    root = json_pack("{s:i, s:s, s:s, s:O, s:I, s:o, s:O, s:{s:I, s:I, s:I, s:O, s:I, s:I, s:I, s:f}}", "agglo_dataset",
                     AGGLO_DATASET_VERSION, "input", input, "decode", decode, "options", options, "samples",
                     (json_int_t)r->samples_kept, "shards", shards, "sources", sources, "report", "samples_in",
                     (json_int_t)r->samples_in, "samples_kept", (json_int_t)r->samples_kept, "samples_rejected",
                     (json_int_t)r->samples_rejected, "rejected", r->rejected, "shards_in", (json_int_t)r->shards_in,
                     "shards_failed", (json_int_t)r->shards_failed, "bytes_in", (json_int_t)r->bytes_in, "seconds",
                     r->seconds);
    if (root == NULL) {
        return agglo_fail(err, AGGLO_E_MEMORY, "no memory for the description of the dataset");
    }
    status = agglo_json_write(path, root, err);
    json_decref(root);
    return status;
}

static agglo_status start(ingest *in, agglo_err *err)
{
    char *path = NULL;

    in->n_jobs = in->options->jobs > 0 ? in->options->jobs : agglo_cores();
    in->decoders = agglo_alloc((size_t)in->n_jobs, sizeof *in->decoders, err);
    if (in->decoders == NULL) {
        return err->status;
    }
    for (int i = 0; i < in->n_jobs; i++) {
        if (agglo_decoder_new(&in->decoders[i], &in->options->decode, err) != AGGLO_OK) {
            return err->status;
        }
    }
    if (agglo_ring_new(&in->ring, in->n_jobs * SLOTS_A_JOB, sizeof(job), in->n_jobs, work, in, err) != AGGLO_OK ||
        agglo_grouping_new(&in->grouping, err) != AGGLO_OK || agglo_index_builder_new(&in->index, err) != AGGLO_OK ||
        agglo_shard_writer_new(&in->writer, in->shards_dir, in->options->shard_samples, in->options->shard_bytes,
                               in->index, err) != AGGLO_OK) {
        return err->status;
    }
    path = agglo_path_join(in->options->out, AGGLO_REJECTS_FILE, err);
    if (path != NULL) {
        agglo_rejects_new(&in->rejects, path, err);
    }
    agglo_free(path);
    return err->status;
}

static void end(ingest *in)
{
    agglo_progress_end(in->progress);
    agglo_ring_free(in->ring, clear_job);
    agglo_shard_writer_free(in->writer);
    agglo_index_builder_free(in->index);
    agglo_rejects_free(in->rejects);
    agglo_grouping_free(in->grouping);
    for (int i = 0; in->decoders != NULL && i < in->n_jobs; i++) {
        agglo_decoder_free(in->decoders[i]);
    }
    agglo_free(in->decoders);
    free_uids(&in->uids);
}

static agglo_status check_options(const agglo_ingest_options *o, agglo_err *err)
{
    if (o->out == NULL || o->out[0] == 0) {
        return agglo_fail(err, AGGLO_E_CONFIG, "no output folder");
    }
    if (o->shard_samples < 1 || o->shard_samples > UINT32_MAX) {
        return agglo_fail(err, AGGLO_E_CONFIG, "shard samples must be 1 to %u", UINT32_MAX);
    }
    if (o->max_image_bytes < 1 || o->max_image_bytes > UINT32_MAX || o->decode.max_pixels < 1 ||
        o->decode.max_pixels > INT64_MAX || o->shard_bytes > INT64_MAX) {
        return agglo_fail(err, AGGLO_E_CONFIG, "limits of bytes or pixels are out of range");
    }
    return AGGLO_OK;
}

static agglo_status ingest_all(ingest *in, const char *const *paths, size_t n_paths, agglo_source *held,
                               const char *file, const char *input, json_t *options, json_t *sources, double begun,
                               agglo_err *err)
{
    char *index_path;

    if (prepare_directory(in, err) != AGGLO_OK || start(in, err) != AGGLO_OK) {
        return err->status;
    }
    in->progress = agglo_progress_begin("ingest", "images", 0);
    for (size_t i = 0; i < n_paths; i++) {
        bool is_held = held->fd >= 0 && strcmp(paths[i], "-") == 0;

        if (agglo_stop_check(err) != AGGLO_OK || read_source(in, paths[i], is_held ? held : NULL, err) != AGGLO_OK) {
            return err->status;
        }
    }
    in->report->rejected = agglo_rejects_counts(in->rejects, err);
    index_path = agglo_path_join(in->options->out, AGGLO_INDEX_FILE, err);
    if (in->report->rejected == NULL || index_path == NULL || agglo_shard_writer_finish(in->writer, err) != AGGLO_OK ||
        agglo_rejects_commit(in->rejects, err) != AGGLO_OK ||
        agglo_index_builder_write(in->index, index_path, err) != AGGLO_OK) {
        agglo_free(index_path);
        return err->status;
    }
    agglo_free(index_path);
    in->report->seconds = agglo_now() - begun;
    return write_dataset(in, file, input, options, sources, err);
}

agglo_status agglo_ingest(const char *const *paths, size_t n_paths, const agglo_ingest_options *options,
                          agglo_ingest_report *report, agglo_err *err)
{
    ingest in = {.options = options, .report = report};
    agglo_source held = {.fd = -1};
    json_t *described = NULL, *sources = NULL, *both = NULL;
    char *file = NULL;
    char input[33];
    double begun = agglo_now();

    *report = (agglo_ingest_report){0};
    if (check_options(options, err) != AGGLO_OK) {
        goto done;
    }
    in.shards_dir = agglo_path_join(options->out, "shards", err);
    file = agglo_path_join(options->out, AGGLO_DATASET_FILE, err);
    if (in.shards_dir == NULL || file == NULL || agglo_make_dirs(in.shards_dir, err) != AGGLO_OK ||
        check_sources(paths, n_paths, in.shards_dir, err) != AGGLO_OK) {
        goto done;
    }
    described = describe_options(options);
    sources = describe_sources(paths, n_paths, options->out, &held, err);
    if (sources == NULL) {
        goto done;
    }
    both = described == NULL ? NULL : json_pack("[O, O]", described, sources);
    if (both == NULL) {
        agglo_fail(err, AGGLO_E_MEMORY, "no memory for the description of the input");
        goto done;
    }
    if (fingerprint_of(both, input, err) != AGGLO_OK) {
        goto done;
    }
    if (agglo_path_exists(file)) {
        check_existing(file, input, report, err);
    } else {
        ingest_all(&in, paths, n_paths, &held, file, input, described, sources, begun, err);
    }
    if (err->status == AGGLO_OK) {
        remove_file(options->out, MARKER, err);
    }
done:
    if (report->rejected == NULL) { /* filled on any return */
        agglo_err ignored = {0};

        report->rejected = in.rejects == NULL ? json_object() : agglo_rejects_counts(in.rejects, &ignored);
    }
    end(&in);
    agglo_source_close(&held);
    json_decref(described);
    json_decref(sources);
    json_decref(both);
    agglo_free(in.shards_dir);
    agglo_free(file);
    if (err->status != AGGLO_OK) {
        agglo_at(err, "%s", options->out == NULL ? "" : options->out);
        agglo_doing(err, "cannot ingest");
    }
    return err->status;
}
