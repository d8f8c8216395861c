/* What an ingest has done: in memory while it runs, in the journal for the run that follows a kill, in dataset.json when it is complete.
 *
 *     journal batch: records of samples, shards, rejects, sources and classes since the last one, then a POSITION
 *
 * Whatever the journal has committed is never done again. The open shard's bytes are in its .part file up to the position, which names
 * their hash; where the file does not have them (after a power failure, say), the run goes back to the last position without one.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/log.h"
#include "base/stop.h"
#include "ingest/dataset_impl.h"
#include "ingest/ingest_impl.h"

#define JOURNAL_FILE   ".ingest-unfinished"
#define CONTENTS_FILE  "contents.bin"
#define COMMIT_SECONDS 0.5
#define COMMIT_BYTES   ((size_t)8 << 20)

enum { CONTENT_BYTES = 16, CONTENTS_HEADER = 32, SAMPLE_FIXED = 120, SHARD_RECORD = 24, POSITION_RECORD = 96 };

enum { START = 1, SOURCE, SOURCE_END, SAMPLE, SHARD, REJECT, CLASS, POSITION }; /* types of records */

static const char contents_magic[] = "AGGLOSHA";

/* ---- memory ---- */

static void forget(agglo_ingest_state *s)
{
    agglo_shard_writer_free(s->writer);
    agglo_index_builder_free(s->index);
    agglo_rejects_free(s->rejects);
    agglo_uid_set_free(s->uids);
    agglo_uid_set_free(s->contents);
    json_decref(s->sources);
    json_decref(s->classes);
    json_decref(s->numbers);
    json_decref(s->current);
    s->writer = NULL;
    s->index = NULL;
    s->rejects = NULL;
    s->uids = s->contents = NULL;
    s->sources = s->classes = s->numbers = s->current = NULL;
    s->n_groups = 0;
    s->base[0] = 0;
    s->base_shards = 0;
    s->base_samples = s->base_reject_bytes = 0;
    s->seconds_before = 0;
}

static agglo_status remember_nothing(agglo_ingest_state *s, agglo_err *err)
{
    const agglo_ingest_options *o = s->options;

    forget(s);
    s->report->samples_in = s->report->samples_kept = s->report->samples_rejected = 0;
    s->report->shards_in = s->report->shards_failed = s->report->bytes_in = 0;
    s->sources = json_array();
    s->classes = json_array();
    s->numbers = json_object();
    if (s->sources == NULL || s->classes == NULL || s->numbers == NULL) {
        return agglo_fail(err, AGGLO_E_MEMORY, "no memory for the list of sources");
    }
    if (agglo_index_builder_new(&s->index, err) != AGGLO_OK ||
        agglo_shard_writer_new(&s->writer, s->shards_dir, o->shard_samples, o->shard_bytes, s->index, err) !=
            AGGLO_OK ||
        agglo_rejects_new(&s->rejects, err) != AGGLO_OK || agglo_uid_set_new(&s->uids, 0, err) != AGGLO_OK ||
        (o->dedup && agglo_uid_set_new(&s->contents, 0, err) != AGGLO_OK)) {
        return err->status;
    }
    return AGGLO_OK;
}

static agglo_status remember_class(agglo_ingest_state *s, const char *name, agglo_err *err)
{
    json_int_t number = (json_int_t)json_array_size(s->classes);

    if (json_array_append_new(s->classes, json_string(name)) != 0 ||
        json_object_set_new(s->numbers, name, json_integer(number)) != 0) {
        return agglo_fail(err, AGGLO_E_MEMORY, "no memory for the names of classes");
    }
    return AGGLO_OK;
}

static agglo_status remember_content(agglo_ingest_state *s, const uint8_t content[CONTENT_BYTES], agglo_err *err)
{
    size_t n = (size_t)agglo_index_builder_samples(s->index) * CONTENT_BYTES; /* the sample is in the index by now */

    if (n > s->contents_room) {
        size_t room = s->contents_room * 2 + 65536;
        uint8_t *grown = agglo_realloc(s->content_list, s->contents_room, room, err);

        if (grown == NULL) {
            return err->status;
        }
        s->content_list = grown;
        s->contents_room = room;
    }
    memcpy(s->content_list + n - CONTENT_BYTES, content, CONTENT_BYTES);
    return agglo_uid_set_add(s->contents, content, NULL, err);
}

/* ---- the finished dataset that is added to ---- */

static agglo_status load_report(agglo_ingest_state *s, const json_t *root, agglo_err *err)
{
    static const char *const names[] = {"samples_in", "samples_kept",  "samples_rejected",
                                        "shards_in",  "shards_failed", "bytes_in"};
    uint64_t *const values[] = {&s->report->samples_in, &s->report->samples_kept,  &s->report->samples_rejected,
                                &s->report->shards_in,  &s->report->shards_failed, &s->report->bytes_in};
    const json_t *from, *rejected;
    const char *reason;
    json_t *count;

    if (agglo_json_get_object(root, "report", &from, err) != AGGLO_OK ||
        agglo_json_get_object(from, "rejected", &rejected, err) != AGGLO_OK ||
        agglo_json_get_double(from, "seconds", &s->seconds_before, err) != AGGLO_OK) {
        return err->status;
    }
    for (size_t i = 0; i < AGGLO_COUNT(names); i++) {
        int64_t v;

        if (agglo_json_get_int(from, names[i], 0, INT64_MAX, &v, err) != AGGLO_OK) {
            return err->status;
        }
        *values[i] = (uint64_t)v;
    }
    json_object_foreach((json_t *)(uintptr_t)rejected, reason, count)
    {
        if (agglo_rejects_count(s->rejects, reason, (uint64_t)json_integer_value(count), err) != AGGLO_OK) {
            return err->status;
        }
    }
    return AGGLO_OK;
}

/* dataset.json: everything but what stands in the index. */
static agglo_status load_description(agglo_ingest_state *s, const json_t *root, agglo_err *err)
{
    const json_t *options, *sources, *classes, *shards;
    agglo_decode_options decode;
    const char *name;
    uint8_t bytes[16];
    int64_t n;
    size_t i;
    json_t *item;

    if (agglo_dataset_read_options(root, &decode, err) != AGGLO_OK || /* the version, first of all */
        agglo_json_get_object(root, "options", &options, err) != AGGLO_OK ||
        agglo_ingest_same_options(s, options, err) != AGGLO_OK ||
        agglo_json_get_hex(root, "fingerprint", bytes, sizeof bytes, err) != AGGLO_OK ||
        agglo_json_get_int(root, "samples", 0, UINT32_MAX, &n, err) != AGGLO_OK ||
        agglo_json_get_array(root, "shards", &shards, err) != AGGLO_OK ||
        agglo_json_get_array(root, "sources", &sources, err) != AGGLO_OK ||
        agglo_json_get_array(root, "classes", &classes, err) != AGGLO_OK || load_report(s, root, err) != AGGLO_OK) {
        return err->status;
    }
    s->base_samples = (uint64_t)n;
    s->base_shards = (uint32_t)json_array_size(shards);
    json_array_foreach(sources, i, item)
    {
        const char *identity;

        if (agglo_json_get_string(item, "name", &name, err) != AGGLO_OK ||
            agglo_json_get_string(item, "identity", &identity, err) != AGGLO_OK) {
            return err->status;
        }
        json_array_append(s->sources, item);
    }
    json_array_foreach(classes, i, item)
    {
        if (!json_is_string(item)) {
            return agglo_fail(err, AGGLO_E_DATA, "a class without name");
        }
        if (remember_class(s, json_string_value(item), err) != AGGLO_OK) {
            return err->status;
        }
    }
    return AGGLO_OK;
}

static agglo_status load_contents(agglo_ingest_state *s, agglo_mapping *mapping, agglo_err *err)
{
    size_t need = CONTENTS_HEADER + (size_t)s->base_samples * CONTENT_BYTES;
    agglo_hash128 hash;

    if (agglo_map_file(s->contents_path, mapping, err) != AGGLO_OK) {
        return err->status;
    }
    /* a run that was stopped late may have written more of them already */
    if (mapping->size < need || memcmp(mapping->data, contents_magic, 8) != 0 ||
        agglo_le64(mapping->data + 8) != (mapping->size - CONTENTS_HEADER) / CONTENT_BYTES) {
        agglo_fail(err, AGGLO_E_DATA, "%zu bytes do not hold the digests of %llu samples", mapping->size,
                   (unsigned long long)s->base_samples);
        return agglo_at(err, "%s", s->contents_path);
    }
    hash = agglo_xxh3_128(mapping->data + CONTENTS_HEADER, mapping->size - CONTENTS_HEADER);
    if (memcmp(hash.bytes, mapping->data + 16, 16) != 0) {
        agglo_fail(err, AGGLO_E_DATA, "the checksum is wrong: the file is damaged");
        return agglo_at(err, "%s", s->contents_path);
    }
    return AGGLO_OK;
}

/* The first base_shards of the index: a run that was stopped late may have written more already. */
static agglo_status load_index(agglo_ingest_state *s, agglo_err *err)
{
    agglo_index *index = NULL;
    agglo_mapping contents = {0};
    uint64_t size;

    if (agglo_index_open(&index, s->index_path, err) != AGGLO_OK ||
        agglo_file_size(s->rejects_path, &s->base_reject_bytes, err) != AGGLO_OK ||
        (s->options->dedup && load_contents(s, &contents, err) != AGGLO_OK)) {
        goto done;
    }
    for (uint32_t k = 0; k < s->base_shards && k < agglo_index_shards(index); k++) {
        agglo_index_shard shard = agglo_index_shard_at(index, k);

        for (uint64_t i = shard.first_sample; i < shard.first_sample + shard.n_samples; i++) {
            agglo_index_sample sample;

            agglo_index_sample_at(index, i, &sample);
            if (agglo_index_builder_add(s->index, &sample, err) != AGGLO_OK ||
                agglo_uid_set_add(s->uids, sample.uid, NULL, err) != AGGLO_OK ||
                (s->options->dedup &&
                 remember_content(s, contents.data + CONTENTS_HEADER + i * CONTENT_BYTES, err) != AGGLO_OK)) {
                goto done;
            }
        }
        if (agglo_index_builder_shard(s->index, shard.n_bytes, shard.fingerprint, err) != AGGLO_OK) {
            goto done;
        }
    }
    size = agglo_index_builder_samples(s->index);
    if (agglo_index_builder_shards(s->index) != s->base_shards || size != s->base_samples) {
        agglo_fail(err, AGGLO_E_MISMATCH, "it holds %u shards and %llu samples, dataset.json says %u and %llu",
                   agglo_index_builder_shards(s->index), (unsigned long long)size, s->base_shards,
                   (unsigned long long)s->base_samples);
        agglo_at(err, "%s", s->index_path);
    }
done:
    agglo_unmap(&contents);
    agglo_index_close(index);
    return err->status;
}

static agglo_status load_base(agglo_ingest_state *s, bool whole, agglo_err *err)
{
    json_t *root = NULL;
    agglo_hash128 hash;

    if (remember_nothing(s, err) != AGGLO_OK || !agglo_path_exists(s->dataset_path) ||
        agglo_file_xxh3_128(s->dataset_path, &hash, NULL, err) != AGGLO_OK) {
        return err->status;
    }
    agglo_hex(hash.bytes, 16, s->base);
    if (agglo_json_read(s->dataset_path, AGGLO_DATASET_JSON_MAX, &root, err) == AGGLO_OK &&
        load_description(s, root, err) != AGGLO_OK) {
        agglo_at(err, "%s", s->dataset_path);
    }
    json_decref(root);
    return err->status == AGGLO_OK && whole ? load_index(s, err) : err->status;
}

/* ---- the journal ---- */

static void put_sample(uint8_t *p, const agglo_index_sample *sample, const uint8_t content[CONTENT_BYTES])
{
    memcpy(p, sample->uid, 16);
    memcpy(p + 16, sample->sha256.bytes, 32);
    memcpy(p + 48, content, CONTENT_BYTES);
    agglo_put_le64(p + 64, sample->image_offset);
    agglo_put_le64(p + 72, sample->json_offset);
    agglo_put_le64(p + 80, sample->caption_offset);
    agglo_put_le64(p + 88, (uint64_t)sample->label);
    agglo_put_le32(p + 96, sample->image_bytes);
    agglo_put_le32(p + 100, sample->json_bytes);
    agglo_put_le32(p + 104, sample->caption_bytes);
    agglo_put_le32(p + 108, sample->width);
    agglo_put_le32(p + 112, sample->height);
    p[116] = sample->format;
    p[117] = sample->orientation;
    p[118] = sample->has_sha256;
    p[119] = 0;
}

static void get_sample(const uint8_t *p, agglo_index_sample *sample)
{
    *sample = (agglo_index_sample){
        .image_offset = agglo_le64(p + 64),
        .json_offset = agglo_le64(p + 72),
        .caption_offset = agglo_le64(p + 80),
        .label = (int64_t)agglo_le64(p + 88),
        .image_bytes = agglo_le32(p + 96),
        .json_bytes = agglo_le32(p + 100),
        .caption_bytes = agglo_le32(p + 104),
        .width = agglo_le32(p + 108),
        .height = agglo_le32(p + 112),
        .format = p[116],
        .orientation = p[117],
        .has_sha256 = p[118] != 0,
        .key = (const char *)p + SAMPLE_FIXED,
    };
    memcpy(sample->uid, p, 16);
    memcpy(sample->sha256.bytes, p + 16, 32);
}

/* The state as a batch's end has it. */
static void put_position(uint8_t *p, const agglo_ingest_state *s, const agglo_shard_part *part)
{
    const agglo_ingest_report *r = s->report;
    const uint64_t counts[] = {r->samples_in, r->samples_kept,  r->samples_rejected,
                               r->shards_in,  r->shards_failed, r->bytes_in};
    double seconds = s->seconds_before + (agglo_now() - s->begun);

    agglo_put_le64(p, s->n_groups);
    agglo_put_le64(p + 8, part->n_bytes);
    agglo_put_le64(p + 16, part->n_samples);
    memcpy(p + 24, part->hash.bytes, 16);
    for (size_t i = 0; i < AGGLO_COUNT(counts); i++) {
        agglo_put_le64(p + 40 + 8 * i, counts[i]);
    }
    memcpy(p + 88, &seconds, 8);
}

static void get_position(const uint8_t *p, agglo_ingest_state *s, agglo_shard_part *part)
{
    agglo_ingest_report *r = s->report;
    uint64_t *const counts[] = {&r->samples_in, &r->samples_kept,  &r->samples_rejected,
                                &r->shards_in,  &r->shards_failed, &r->bytes_in};

    s->n_groups = agglo_le64(p);
    part->n_bytes = agglo_le64(p + 8);
    part->n_samples = agglo_le64(p + 16);
    memcpy(part->hash.bytes, p + 24, 16);
    for (size_t i = 0; i < AGGLO_COUNT(counts); i++) {
        *counts[i] = agglo_le64(p + 40 + 8 * i);
    }
    memcpy(&s->seconds_before, p + 88, 8);
}

typedef struct replay {
    agglo_ingest_state *state;
    agglo_shard_part part;
    uint64_t clean; /* end of the last batch that leaves no shard open; 0: none */
    uint64_t n_records;
    bool stale; /* it belongs to a dataset that is complete by now */
} replay;

static agglo_status replay_start(replay *r, agglo_bytes payload, agglo_err *err)
{
    agglo_ingest_state *s = r->state;
    json_t *root = NULL;
    const json_t *options;
    const char *base;
    int64_t n_bytes;

    if (agglo_json_parse((const char *)payload.data, payload.size, &root, err) != AGGLO_OK ||
        agglo_json_get_string(root, "base", &base, err) != AGGLO_OK ||
        agglo_json_get_int(root, "base_reject_bytes", 0, INT64_MAX, &n_bytes, err) != AGGLO_OK ||
        agglo_json_get_object(root, "options", &options, err) != AGGLO_OK) {
        goto done;
    }
    r->stale = strcmp(base, s->base) != 0;
    if (r->stale && s->base[0] == 0) {
        agglo_fail(
            err, AGGLO_E_DATA,
            "an ingest that added to this dataset was stopped, and dataset.json is gone since; remove the folder");
    } else if (!r->stale) {
        s->base_reject_bytes = (uint64_t)n_bytes;
        agglo_ingest_same_options(s, options, err);
    }
done:
    json_decref(root);
    return err->status;
}

static agglo_status replay_sample(agglo_ingest_state *s, agglo_bytes payload, agglo_err *err)
{
    agglo_index_sample sample;

    if (payload.size <= SAMPLE_FIXED || payload.data[payload.size - 1] != 0) {
        return agglo_fail(err, AGGLO_E_DATA, "a sample record of %zu bytes", payload.size);
    }
    get_sample(payload.data, &sample);
    if (agglo_index_builder_add(s->index, &sample, err) != AGGLO_OK ||
        agglo_shard_writer_had_sample(s->writer, sample.key, err) != AGGLO_OK ||
        agglo_uid_set_add(s->uids, sample.uid, NULL, err) != AGGLO_OK) {
        return err->status;
    }
    s->report->samples_resumed++;
    return s->options->dedup ? remember_content(s, payload.data + 48, err) : AGGLO_OK;
}

static agglo_status replay_shard(agglo_ingest_state *s, agglo_bytes payload, agglo_err *err)
{
    agglo_hash128 fingerprint;
    char name[32], *path;
    uint64_t n_bytes, found;

    if (payload.size != SHARD_RECORD) {
        return agglo_fail(err, AGGLO_E_DATA, "a shard record of %zu bytes", payload.size);
    }
    n_bytes = agglo_le64(payload.data);
    memcpy(fingerprint.bytes, payload.data + 8, 16);
    path = agglo_path_join(s->shards_dir, agglo_shard_name(agglo_index_builder_shards(s->index), name), err);
    if (path != NULL && agglo_file_size(path, &found, err) == AGGLO_OK && found != n_bytes) {
        agglo_fail(err, AGGLO_E_DATA, "%llu bytes, %llu were written; remove the folder", (unsigned long long)found,
                   (unsigned long long)n_bytes);
        agglo_at(err, "%s", path);
    }
    agglo_free(path);
    agglo_shard_writer_had_shard(s->writer);
    return err->status == AGGLO_OK ? agglo_index_builder_shard(s->index, n_bytes, fingerprint, err) : err->status;
}

static agglo_status replay_source(agglo_ingest_state *s, agglo_bytes payload, agglo_err *err)
{
    const char *text;

    json_decref(s->current);
    s->current = NULL;
    if (agglo_json_parse((const char *)payload.data, payload.size, &s->current, err) == AGGLO_OK &&
        agglo_json_get_string(s->current, "name", &text, err) == AGGLO_OK) {
        agglo_json_get_string(s->current, "identity", &text, err);
    }
    return err->status;
}

static agglo_status replay_record(void *context, uint8_t type, agglo_bytes payload, uint64_t end, agglo_err *err)
{
    replay *r = context;
    agglo_ingest_state *s = r->state;

    if (r->n_records++ == 0 && type != START) {
        return agglo_fail(err, AGGLO_E_DATA, "the journal does not begin with what it is of");
    }
    if (r->stale) {
        return AGGLO_OK;
    }
    switch (type) {
    case START:
        return replay_start(r, payload, err);
    case SOURCE:
        return replay_source(s, payload, err);
    case SOURCE_END:
        if (s->current == NULL) {
            return agglo_fail(err, AGGLO_E_DATA, "the end of a source that was not begun");
        }
        json_array_append_new(s->sources, s->current);
        s->current = NULL;
        s->n_groups = 0;
        return AGGLO_OK;
    case SAMPLE:
        return replay_sample(s, payload, err);
    case SHARD:
        return replay_shard(s, payload, err);
    case REJECT: /* the line stays in the journal until the end */
        if (memchr(payload.data, 0, payload.size) == NULL) {
            return agglo_fail(err, AGGLO_E_DATA, "a reject without reason");
        }
        return agglo_rejects_count(s->rejects, (const char *)payload.data, 1, err);
    case CLASS:
        if (payload.size == 0 || payload.data[payload.size - 1] != 0) {
            return agglo_fail(err, AGGLO_E_DATA, "a class without name");
        }
        return remember_class(s, (const char *)payload.data, err);
    case POSITION:
        if (payload.size != POSITION_RECORD) {
            return agglo_fail(err, AGGLO_E_DATA, "a position of %zu bytes", payload.size);
        }
        get_position(payload.data, s, &r->part);
        r->clean = r->part.n_bytes == 0 ? end : r->clean;
        return AGGLO_OK;
    default:
        return agglo_fail(err, AGGLO_E_DATA, "a record of type %u", type);
    }
}

static agglo_status add_start(agglo_ingest_state *s, agglo_err *err)
{
    json_t *start = json_pack("{s:s, s:I, s:O}", "base", s->base, "base_reject_bytes", (json_int_t)s->base_reject_bytes,
                              "options", s->described);
    char *text = start == NULL ? NULL : agglo_json_line(start, err);

    if (text == NULL) {
        agglo_fail(err, AGGLO_E_MEMORY, "no memory for the journal");
    } else if (agglo_journal_add(s->journal, START, text, strlen(text), err) == AGGLO_OK) {
        agglo_journal_commit(s->journal, err);
    }
    agglo_free(text);
    json_decref(start);
    return err->status;
}

/* Everything that base and journal have, the open shard too. */
static agglo_status take_up(agglo_ingest_state *s, agglo_err *err)
{
    for (int round = 0; round < 3; round++) {
        replay r = {.state = s};
        bool ok = true;

        s->report->samples_resumed = 0;
        if (load_base(s, true, err) != AGGLO_OK || agglo_journal_read(s->journal, replay_record, &r, err) != AGGLO_OK) {
            return err->status;
        }
        if (r.stale) { /* killed between its last two steps */
            ok = false;
            r.clean = 0;
        } else if (agglo_shard_writer_resume(s->writer, &r.part, &ok, err) != AGGLO_OK) {
            return err->status;
        }
        s->has_part = r.part.n_bytes > 0;
        if (ok) {
            return agglo_journal_is_empty(s->journal) ? add_start(s, err) : AGGLO_OK;
        }
        if (!r.stale) {
            agglo_log(AGGLO_LOG_WARN,
                      "the shard that was open when an ingest was stopped is damaged; it is made again");
        }
        if (agglo_journal_cut(s->journal, r.clean, err) != AGGLO_OK) {
            return err->status;
        }
    }
    return agglo_fail(err, AGGLO_E_DATA,
                      "the journal of an ingest that was stopped cannot be taken up; remove the folder");
}

/* ---- opening and closing ---- */

/* Remove what a killed run left: temporary files, and shards and parts behind the ones that count. */
static agglo_status sweep(const agglo_ingest_state *s, const char *dir, bool shards, agglo_err *err)
{
    uint32_t from = agglo_index_builder_shards(s->index);
    agglo_arena *arena = NULL;
    char **names, open_part[48], expected[32];
    size_t n;

    snprintf(open_part, sizeof open_part, ".%s.part", agglo_shard_name(from, expected));
    if (agglo_arena_new(&arena, 0, err) == AGGLO_OK && agglo_list_dir(dir, arena, &names, &n, err) == AGGLO_OK) {
        for (size_t i = 0; i < n && err->status == AGGLO_OK; i++) {
            unsigned long number = strtoul(names[i], NULL, 10);
            size_t length = strlen(names[i]);
            bool stale = agglo_is_temp_name(names[i]);

            if (shards) {
                stale = stale ||
                        (number >= from && number <= UINT32_MAX &&
                         strcmp(agglo_shard_name((uint32_t)number, expected), names[i]) == 0) ||
                        (names[i][0] == '.' && length > 5 && strcmp(names[i] + length - 5, ".part") == 0 &&
                         (!s->has_part || strcmp(names[i], open_part) != 0));
            }
            if (stale) {
                char *path = agglo_path_join(dir, names[i], err);

                if (path != NULL) {
                    unlink(path);
                }
                agglo_free(path);
            }
        }
    }
    agglo_arena_free(arena);
    return err->status;
}

static agglo_status folder_is_free(const agglo_ingest_state *s, agglo_err *err)
{
    agglo_arena *arena = NULL;
    char **names;
    size_t n = 0;

    if (agglo_arena_new(&arena, 0, err) == AGGLO_OK &&
        agglo_list_dir(s->shards_dir, arena, &names, &n, err) == AGGLO_OK && n > 0) {
        agglo_fail(err, AGGLO_E_CONFIG, "the folder is not empty, and what it holds is not from an ingest");
        agglo_at(err, "%s", s->shards_dir);
    }
    agglo_arena_free(arena);
    return err->status;
}

agglo_status agglo_ingest_state_open(agglo_ingest_state *s, agglo_ingest_source *sources, size_t n_sources,
                                     size_t *n_todo, agglo_err *err)
{
    const char *out = s->options->out;
    bool found;

    *n_todo = 0;
    s->begun = s->committed = agglo_now();
    if ((s->described = agglo_ingest_describe_options(s->options, err)) == NULL ||
        (s->dataset_path = agglo_path_join(out, AGGLO_DATASET_FILE, err)) == NULL ||
        (s->journal_path = agglo_path_join(out, JOURNAL_FILE, err)) == NULL ||
        (s->index_path = agglo_path_join(out, AGGLO_INDEX_FILE, err)) == NULL ||
        (s->rejects_path = agglo_path_join(out, AGGLO_REJECTS_FILE, err)) == NULL ||
        (s->contents_path = agglo_path_join(out, CONTENTS_FILE, err)) == NULL ||
        (s->shards_dir = agglo_path_join(out, AGGLO_DATASET_SHARDS, err)) == NULL) {
        return err->status;
    }
    found = agglo_path_exists(s->dataset_path);
    if (!agglo_path_exists(s->journal_path)) {
        bool all = false;

        if (found ? load_base(s, false, err) != AGGLO_OK ||
                        agglo_ingest_knows_all(s, sources, n_sources, &all, err) != AGGLO_OK
                  : folder_is_free(s, err) != AGGLO_OK) {
            return err->status;
        }
        if (all) {
            s->report->up_to_date = true;
            s->report->seconds = s->seconds_before;
            return AGGLO_OK;
        }
    }
    if (agglo_journal_open(&s->journal, s->journal_path, err) != AGGLO_OK || take_up(s, err) != AGGLO_OK ||
        agglo_ingest_match_sources(s, sources, n_sources, n_todo, err) != AGGLO_OK ||
        sweep(s, out, false, err) != AGGLO_OK) {
        return err->status;
    }
    s->report->samples_before = s->base_samples;
    return sweep(s, s->shards_dir, true, err);
}

void agglo_ingest_state_close(agglo_ingest_state *s)
{
    forget(s);
    agglo_journal_close(s->journal);
    agglo_free(s->content_list);
    json_decref(s->described);
    agglo_free(s->dataset_path);
    agglo_free(s->journal_path);
    agglo_free(s->index_path);
    agglo_free(s->rejects_path);
    agglo_free(s->contents_path);
    agglo_free(s->shards_dir);
}

/* ---- the steps of a run ---- */

agglo_status agglo_ingest_commit(agglo_ingest_state *s, bool now, agglo_err *err)
{
    uint8_t position[POSITION_RECORD];
    agglo_shard_part part;
    double clock = agglo_now();

    if (!now && clock - s->committed < COMMIT_SECONDS && agglo_journal_pending(s->journal) < COMMIT_BYTES) {
        return AGGLO_OK;
    }
    if (agglo_shard_writer_flush(s->writer, &part, err) != AGGLO_OK) {
        return err->status;
    }
    put_position(position, s, &part);
    s->committed = clock;
    return agglo_journal_add(s->journal, POSITION, position, sizeof position, err) == AGGLO_OK
               ? agglo_journal_commit(s->journal, err)
               : err->status;
}

agglo_status agglo_ingest_begin_source(agglo_ingest_state *s, const agglo_ingest_source *source, agglo_err *err)
{
    char *text;

    s->current = json_pack("{s:s, s:I, s:s}", "name", source->name, "bytes", (json_int_t)source->n_bytes, "identity",
                           source->identity);
    text = s->current == NULL ? NULL : agglo_json_line(s->current, err);
    if (text == NULL) {
        return agglo_fail(err, AGGLO_E_MEMORY, "no memory for the list of sources");
    }
    agglo_journal_add(s->journal, SOURCE, text, strlen(text), err);
    agglo_free(text);
    s->n_groups = 0;
    s->report->shards_in++;
    s->report->bytes_in += source->n_bytes;
    return err->status;
}

agglo_status agglo_ingest_end_source(agglo_ingest_state *s, agglo_err *err)
{
    json_t *current = s->current;

    s->current = NULL;
    s->n_groups = 0;
    if (json_array_append_new(s->sources, current) != 0) {
        return agglo_fail(err, AGGLO_E_MEMORY, "no memory for the list of sources");
    }
    return agglo_journal_add(s->journal, SOURCE_END, NULL, 0, err) == AGGLO_OK ? agglo_ingest_commit(s, false, err)
                                                                               : err->status;
}

agglo_status agglo_ingest_reject(agglo_ingest_state *s, const char *source, const char *key, const char *reason,
                                 const char *detail, agglo_err *err)
{
    size_t n_reason = strlen(reason) + 1;
    agglo_bytes line;
    uint8_t *record;

    if (agglo_rejects_line(s->rejects, source, key, reason, detail, &line, err) != AGGLO_OK) {
        return err->status;
    }
    record = agglo_alloc(n_reason + line.size, 1, err);
    if (record == NULL) {
        return err->status;
    }
    memcpy(record, reason, n_reason);
    memcpy(record + n_reason, line.data, line.size);
    agglo_journal_add(s->journal, REJECT, record, n_reason + line.size, err);
    agglo_free(record);
    return err->status;
}

agglo_status agglo_ingest_class(agglo_ingest_state *s, const char *name, size_t n_name, int64_t *label, agglo_err *err)
{
    char *text = agglo_format(err, "%.*s", (int)n_name, name);
    const json_t *known = text == NULL ? NULL : json_object_get(s->numbers, text);

    *label = -1;
    if (text == NULL) {
        return err->status;
    }
    if (known != NULL) {
        *label = json_integer_value(known);
    } else {
        json_t *valid = json_string(text); /* a folder's name that is not UTF-8 names no class */

        if (valid != NULL && remember_class(s, text, err) == AGGLO_OK) {
            *label = (int64_t)json_array_size(s->classes) - 1;
            agglo_journal_add(s->journal, CLASS, text, strlen(text) + 1, err);
        }
        json_decref(valid);
    }
    agglo_free(text);
    return err->status;
}

/* The last closed shard goes into the journal; from here a run can go on even when the next part is lost. */
static agglo_status add_shard(agglo_ingest_state *s, agglo_err *err)
{
    agglo_index_shard shard = agglo_index_builder_at(s->index, agglo_index_builder_shards(s->index) - 1);
    uint8_t record[SHARD_RECORD];

    agglo_put_le64(record, shard.n_bytes);
    memcpy(record + 8, shard.fingerprint.bytes, 16);
    return agglo_journal_add(s->journal, SHARD, record, sizeof record, err) == AGGLO_OK
               ? agglo_ingest_commit(s, true, err)
               : err->status;
}

static agglo_status keep_sample(agglo_ingest_state *s, const char *source, agglo_ingest_job *j, agglo_err *err)
{
    size_t n_key = strlen(j->sample.key) + 1;
    uint8_t *record;
    bool closed;

    if (agglo_shard_writer_fit(s->writer, j->sample.key, j->out, j->n_members, &closed, err) != AGGLO_OK ||
        (closed && add_shard(s, err) != AGGLO_OK) ||
        agglo_shard_writer_add(s->writer, &j->sample, j->out, j->n_members, j->image, err) != AGGLO_OK ||
        agglo_uid_set_add(s->uids, j->sample.uid, NULL, err) != AGGLO_OK ||
        (s->options->dedup && remember_content(s, j->content, err) != AGGLO_OK)) {
        return err->status;
    }
    record = agglo_alloc(SAMPLE_FIXED + n_key, 1, err);
    if (record == NULL) {
        return err->status;
    }
    put_sample(record, &j->sample, j->content);
    memcpy(record + SAMPLE_FIXED, j->sample.key, n_key);
    agglo_journal_add(s->journal, SAMPLE, record, SAMPLE_FIXED + n_key, err);
    agglo_free(record);
    if (err->status == AGGLO_OK && j->bad_json) {
        agglo_ingest_reject(s, source, j->group->key, "bad_json",
                            "it is carried, but no uid and sha256 are known of it", err);
    }
    return err->status;
}

agglo_status agglo_ingest_finish_sample(agglo_ingest_state *s, const char *source, agglo_ingest_job *j, agglo_err *err)
{
    if (j->reason == NULL && agglo_uid_set_has(s->uids, j->sample.uid)) {
        j->reason = "duplicate_uid";
        agglo_hex(j->sample.uid, 16, j->detail);
    }
    if (j->reason == NULL && s->options->dedup && agglo_uid_set_has(s->contents, j->content)) {
        j->reason = "duplicate_image";
        snprintf(j->detail, sizeof j->detail, "an earlier picture has the same bytes");
    }
    if (j->reason == NULL) {
        if (keep_sample(s, source, j, err) != AGGLO_OK) {
            return err->status;
        }
        s->report->samples_kept++;
    } else {
        if (agglo_ingest_reject(s, source, j->group->key, j->reason, j->detail, err) != AGGLO_OK) {
            return err->status;
        }
        s->report->samples_rejected++;
    }
    s->report->samples_in++;
    s->n_groups++;
    return agglo_ingest_commit(s, false, err);
}

/* ---- completing ---- */

static agglo_status copy_line(void *context, uint8_t type, agglo_bytes payload, uint64_t end, agglo_err *err)
{
    const uint8_t *behind;

    (void)end;
    if (type != REJECT) {
        return AGGLO_OK;
    }
    behind = memchr(payload.data, 0, payload.size); /* add and replay have seen to it */
    AGGLO_ASSERT(behind != NULL);
    return agglo_new_file_write(context, behind + 1, payload.size - (size_t)(behind + 1 - payload.data), err);
}

static agglo_status write_rejects(const agglo_ingest_state *s, agglo_err *err)
{
    agglo_new_file *file = NULL;
    agglo_mapping before = {0};

    if (s->base_reject_bytes > 0 && agglo_map_file(s->rejects_path, &before, err) != AGGLO_OK) {
        return err->status;
    }
    if (before.size < s->base_reject_bytes) {
        agglo_fail(err, AGGLO_E_DATA, "it became shorter");
        agglo_at(err, "%s", s->rejects_path);
    } else if (agglo_new_file_open(&file, s->rejects_path, NULL, err) == AGGLO_OK &&
               agglo_new_file_write(file, before.data, (size_t)s->base_reject_bytes, err) == AGGLO_OK) {
        agglo_journal_read(s->journal, copy_line, file, err);
    }
    if (err->status == AGGLO_OK) {
        agglo_new_file_commit(file, err);
    } else {
        agglo_new_file_abort(file);
    }
    agglo_unmap(&before);
    return err->status;
}

static agglo_status write_contents(const agglo_ingest_state *s, agglo_err *err)
{
    uint8_t header[CONTENTS_HEADER] = {0};
    uint64_t n = agglo_index_builder_samples(s->index);
    agglo_hash128 hash = agglo_xxh3_128(s->content_list, (size_t)n * CONTENT_BYTES);
    agglo_new_file *file = NULL;

    memcpy(header, contents_magic, 8);
    agglo_put_le64(header + 8, n);
    memcpy(header + 16, hash.bytes, 16);
    if (agglo_new_file_open(&file, s->contents_path, NULL, err) != AGGLO_OK ||
        agglo_new_file_write(file, header, sizeof header, err) != AGGLO_OK ||
        agglo_new_file_write(file, s->content_list, (size_t)n * CONTENT_BYTES, err) != AGGLO_OK) {
        agglo_new_file_abort(file);
        return err->status;
    }
    return agglo_new_file_commit(file, err);
}

static json_t *describe_shards(const agglo_index_builder *index)
{
    json_t *list = json_array();

    for (uint32_t k = 0; list != NULL && k < agglo_index_builder_shards(index); k++) {
        agglo_index_shard shard = agglo_index_builder_at(index, k);
        char name[32], hex[33];

        if (json_array_append_new(list, json_pack("{s:s, s:I, s:I, s:s}", "file", agglo_shard_name(k, name), "samples",
                                                  (json_int_t)shard.n_samples, "bytes", (json_int_t)shard.n_bytes,
                                                  "xxh3", agglo_hex(shard.fingerprint.bytes, 16, hex))) != 0) {
            json_decref(list);
            return NULL;
        }
    }
    return list;
}

static agglo_status write_dataset(agglo_ingest_state *s, agglo_err *err)
{
    const agglo_ingest_report *r = s->report;
    char decode[33], fingerprint[33];
    agglo_hash128 index;
    json_t *root, *shards, *rejected;

    if (agglo_index_builder_fingerprint(s->index, &index, err) != AGGLO_OK) {
        return err->status;
    }
    agglo_dataset_fingerprint(&s->options->decode, &index, fingerprint);
    agglo_decode_fingerprint(&s->options->decode, decode);
    shards = describe_shards(s->index);
    rejected = agglo_rejects_counts(s->rejects, err);
    root = json_pack("{s:i, s:s, s:s, s:O, s:I, s:o, s:O, s:O, s:{s:I, s:I, s:I, s:o, s:I, s:I, s:I, s:f}}",
                     "agglo_dataset", AGGLO_DATASET_VERSION, "fingerprint", fingerprint, "decode", decode, "options",
                     s->described, "samples", (json_int_t)r->samples_kept, "shards", shards, "classes", s->classes,
                     "sources", s->sources, "report", "samples_in", (json_int_t)r->samples_in, "samples_kept",
                     (json_int_t)r->samples_kept, "samples_rejected", (json_int_t)r->samples_rejected, "rejected",
                     rejected, "shards_in", (json_int_t)r->shards_in, "shards_failed", (json_int_t)r->shards_failed,
                     "bytes_in", (json_int_t)r->bytes_in, "seconds", round(r->seconds * 10.0) / 10.0);
    if (root == NULL) {
        return agglo_fail(err, AGGLO_E_MEMORY, "no memory for the description of the dataset");
    }
    agglo_json_write(s->dataset_path, root, err);
    json_decref(root);
    return err->status;
}

agglo_status agglo_ingest_complete(agglo_ingest_state *s, agglo_err *err)
{
    agglo_journal *journal = s->journal;
    bool closed;

    if (agglo_shard_writer_finish(s->writer, &closed, err) != AGGLO_OK || (closed && add_shard(s, err) != AGGLO_OK) ||
        agglo_ingest_commit(s, true, err) != AGGLO_OK) {
        return err->status;
    }
    s->report->seconds = s->seconds_before + (agglo_now() - s->begun);
    if (write_rejects(s, err) != AGGLO_OK || (s->options->dedup && write_contents(s, err) != AGGLO_OK) ||
        agglo_index_builder_write(s->index, s->index_path, err) != AGGLO_OK || write_dataset(s, err) != AGGLO_OK) {
        return err->status;
    }
    s->journal = NULL;
    return agglo_journal_remove(journal, err);
}
