/* What an ingest is asked for, compared with what is there: its options, and which of its sources are in already. */
#include <stdio.h>
#include <stdlib.h>

#include "base/stop.h"
#include "ingest/ingest_impl.h"

/* All that decides what is kept and how it is cut. */
json_t *agglo_ingest_describe_options(const agglo_ingest_options *o, agglo_err *err)
{
    char select[33] = "";
    json_t *described;

    if (o->select != NULL) {
        agglo_hash128 hash;

        if (agglo_file_xxh3_128(o->select, &hash, NULL, err) != AGGLO_OK) {
            return NULL;
        }
        agglo_hex(hash.bytes, 16, select);
    }
    described = json_pack("{s:s, s:s, s:I, s:i, s:s, s:i, s:i, s:f, s:b, s:b, s:s, s:I, s:I, s:I, s:I, s:I}", "exif",
                          o->decode.ignore_exif ? "ignore" : "apply", "png16", o->decode.png16_clip ? "clip" : "scale",
                          "max_pixels", (json_int_t)o->decode.max_pixels, "max_scans", o->decode.max_scans, "verify",
                          o->header_only ? "header" : "full", "min_side", o->min_side, "max_side", o->max_side,
                          "max_aspect", o->max_aspect, "dedup", (int)o->dedup, "check_sha256", (int)o->check_sha256,
                          "select", select, "max_image_bytes", (json_int_t)o->max_image_bytes, "max_member_bytes",
                          (json_int_t)o->max_member_bytes, "max_name", (json_int_t)o->max_name, "shard_samples",
                          (json_int_t)o->shard_samples, "shard_bytes", (json_int_t)o->shard_bytes);
    if (described == NULL) {
        agglo_fail(err, AGGLO_E_MEMORY, "no memory for the options");
    }
    return described;
}

/* An option's value for a message. */
static const char *show(const json_t *value, char out[64])
{
    char *text = value == NULL ? NULL : json_dumps(value, JSON_ENCODE_ANY | JSON_REAL_PRECISION(6));

    snprintf(out, 64, "%.60s", text == NULL ? "nothing" : text);
    free(text);
    return out;
}

/* The options of what is there already must be ours. */
agglo_status agglo_ingest_same_options(const agglo_ingest_state *s, const json_t *found, agglo_err *err)
{
    const char *name;
    json_t *value;
    char a[64], b[64];

    json_object_foreach(s->described, name, value)
    {
        const json_t *other = json_object_get(found, name);
        bool same = json_is_number(value)
                        ? json_number_value(value) == json_number_value(other) && json_is_number(other)
                        : json_equal(value, other) != 0;

        if (!same) {
            return agglo_fail(err, AGGLO_E_CONFIG,
                              "it was begun with %s %s, not %s; give the same options, or another folder", name,
                              show(other, a), show(value, b));
        }
    }
    return AGGLO_OK;
}

agglo_status agglo_ingest_describe(agglo_ingest_source *out, const char *path, const char *out_dir, agglo_err *err)
{
    bool is_stdin = strcmp(path, "-") == 0;
    size_t n_path = strlen(path);
    char *trimmed;
    json_t *text;
    agglo_source source;
    agglo_err bad = {0};
    agglo_hash128 identity = {{0}};

    *out = (agglo_ingest_source){.path = path, .name = "?", .held = {.fd = -1}};
    if (agglo_stop_check(err) != AGGLO_OK) {
        return err->status;
    }
    while (n_path > 1 && path[n_path - 1] == '/') { /* "photos/" is photos */
        n_path--;
    }
    trimmed = agglo_format(err, "%.*s", (int)n_path, path);
    if (trimmed == NULL) {
        return err->status;
    }
    text = json_string(agglo_path_base(trimmed));
    if (text != NULL) { /* not UTF-8: "?" stands for it, the identity tells */
        snprintf(out->name, sizeof out->name, "%s", json_string_value(text));
        json_decref(text);
        text = json_string(out->name);
        if (text == NULL) { /* cut within a character */
            strcpy(out->name, "?");
        }
        json_decref(text);
    }
    agglo_free(trimmed);
    if (agglo_source_open(&source, path, out_dir, is_stdin ? err : &bad) != AGGLO_OK) {
        /* without an identity: should it appear later, it is another source */
        return is_stdin || bad.status == AGGLO_E_MEMORY ? (*err = is_stdin ? *err : bad).status : AGGLO_OK;
    }
    out->n_bytes = source.n_bytes;
    if (agglo_source_identity(&source, &identity, &bad) == AGGLO_OK) {
        agglo_hex(identity.bytes, 16, out->identity);
    }
    if (is_stdin) {
        out->held = source;
    } else {
        agglo_source_close(&source);
    }
    return AGGLO_OK;
}

/* How often a source is in a list, by name and identity and by name alone: "name/identity" and "name" -> count. */
static json_t *count_sources(const json_t *list, agglo_err *err)
{
    json_t *counts = json_object(), *entry;
    size_t i;

    json_array_foreach(list, i, entry)
    {
        const char *name = json_string_value(json_object_get(entry, "name"));
        const char *identity = json_string_value(json_object_get(entry, "identity"));
        char *keys[2] = {agglo_format(err, "%s/%s", name, identity), agglo_format(err, "%s", name)};

        for (int k = 0; k < 2; k++) {
            if (keys[k] != NULL &&
                json_object_set_new(counts, keys[k],
                                    json_integer(1 + json_integer_value(json_object_get(counts, keys[k])))) != 0) {
                agglo_fail(err, AGGLO_E_MEMORY, "no memory for the list of sources");
            }
            agglo_free(keys[k]);
        }
        if (err->status != AGGLO_OK) {
            json_decref(counts);
            return NULL;
        }
    }
    return counts;
}

/* One less of `key` in counts; false when there is none. */
static bool take(json_t *counts, const char *key)
{
    json_int_t n = json_integer_value(json_object_get(counts, key));

    return n > 0 && json_object_set_new(counts, key, json_integer(n - 1)) == 0;
}

/* known[i]: sources[i] is in the list. One that cannot be read now is known by its name, if no other of this name is left over: people
 * remove tars that were ingested. */
static agglo_status find_known(const json_t *list, const agglo_ingest_source *sources, size_t n, bool *known,
                               agglo_err *err)
{
    json_t *counts = count_sources(list, err);

    for (int pass = 0; pass < 2 && counts != NULL; pass++) {
        for (size_t i = 0; i < n && err->status == AGGLO_OK; i++) {
            const agglo_ingest_source *source = &sources[i];
            bool unread = source->identity[0] == 0;
            char *key;

            if (unread != (pass == 1)) {
                continue;
            }
            key = unread ? agglo_format(err, "%s", source->name)
                         : agglo_format(err, "%s/%s", source->name, source->identity);
            known[i] = key != NULL && take(counts, key);
            if (known[i] && !unread) {
                take(counts, source->name);
            }
            agglo_free(key);
        }
    }
    json_decref(counts);
    return err->status;
}

agglo_status agglo_ingest_knows_all(const agglo_ingest_state *s, const agglo_ingest_source *sources, size_t n,
                                    bool *all, agglo_err *err)
{
    bool *known = agglo_alloc(n, sizeof *known, err);

    *all = known != NULL && find_known(s->sources, sources, n, known, err) == AGGLO_OK;
    for (size_t i = 0; *all && i < n; i++) {
        *all = known[i];
    }
    agglo_free(known);
    return err->status;
}

/* Move the sources that are not done to the front, the one in which an earlier run stopped first. */
agglo_status agglo_ingest_match_sources(agglo_ingest_state *s, agglo_ingest_source *sources, size_t n, size_t *n_todo,
                                        agglo_err *err)
{
    bool *known = agglo_alloc(n, sizeof *known, err);
    size_t first = SIZE_MAX;

    *n_todo = 0;
    if (known == NULL || find_known(s->sources, sources, n, known, err) != AGGLO_OK) {
        agglo_free(known);
        return err->status;
    }
    for (size_t i = 0; i < n && err->status == AGGLO_OK; i++) {
        agglo_ingest_source source = sources[i];

        sources[i].held = (agglo_source){.fd = -1}; /* it moves, should it be standard input */
        if (known[i]) {
            agglo_source_close(&source.held);
            continue;
        }
        if (first == SIZE_MAX && s->current != NULL &&
            strcmp(source.name, json_string_value(json_object_get(s->current, "name"))) == 0 &&
            strcmp(source.identity, json_string_value(json_object_get(s->current, "identity"))) == 0) {
            first = *n_todo;
        }
        sources[(*n_todo)++] = source;
    }
    agglo_free(known);
    if (err->status == AGGLO_OK && s->current != NULL) {
        if (first == SIZE_MAX) {
            agglo_fail(err, AGGLO_E_CONFIG,
                       "an ingest was stopped in the source '%.200s', which is not among these; name it again, or "
                       "remove the folder",
                       json_string_value(json_object_get(s->current, "name")));
            agglo_at(err, "%s", s->options->out);
        } else {
            agglo_ingest_source source = sources[first];

            memmove(sources + 1, sources, first * sizeof *sources);
            sources[0] = source;
        }
    }
    return err->status;
}
