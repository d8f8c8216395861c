/* The ingest driver. One thread walks the sources ahead (unpacking, headers, grouping); workers read, check and hash samples; this thread
 * hands samples out in order, takes them back in order and writes. The ring of samples is drained between sources, so that the rejects
 * have one order whatever the number of jobs.
 */
#include "ingest/ingest.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/log.h"
#include "base/pool.h"
#include "base/ring.h"
#include "base/stop.h"
#include "ingest/dataset_impl.h"
#include "ingest/ingest_impl.h"
#include "ingest/select.h"

enum {
    SLOTS_A_JOB = 4,
    SCANS = 2, /* one source in work, one being walked */
    MAX_NOTES =
        100000, /* dropped members of one source that are listed; a tar of nothing else must not fill the memory */
    KEEP_BYTES = 4 << 20 /* of a job's buffers; larger ones are given back, or memory would follow the largest sample */
};

/* A source that is walked: what it holds, and what of it was dropped already. */
typedef struct scan {
    agglo_ingest_source *from;
    agglo_source source;
    agglo_grouping *grouping;
    agglo_arena *texts; /* of the notes */
    struct note *notes, **last;
    uint64_t n_notes; /* beyond MAX_NOTES they are counted only */
    bool opened;
    const char *reason; /* why it could not be read whole; NULL: it could */
    char detail[256];
} scan;

/* A dropped member. */
typedef struct note {
    struct note *next;
    const char *name, *reason, *detail;
} note;

typedef struct ingest {
    const agglo_ingest_options *options;
    agglo_ingest_report *report;
    agglo_ingest_state state;
    agglo_uid_set *selected;
    agglo_ingest_worker *workers;
    int n_jobs;
    agglo_ring *scans, *samples;
    agglo_progress *progress;
    const char *source_name;          /* being read */
    uint64_t bytes_all, bytes_before; /* of all sources to do; of those before this one */
    double begun;
} ingest;

agglo_ingest_options agglo_ingest_options_default(void)
{
    agglo_ingest_options options = {
        .shard_samples = 10000,
        .decode = agglo_decode_options_default(),
        .max_image_bytes = (uint64_t)256 << 20,
        .max_member_bytes = (uint64_t)16 << 20,
        .max_name = 4096,
    };
    return options;
}

/* ---- walking a source, on a thread of its own ---- */

static agglo_status add_note(scan *s, const char *name, size_t n_name, const char *reason, const char *detail,
                             agglo_err *err)
{
    note *n;

    if (++s->n_notes > MAX_NOTES) {
        return AGGLO_OK;
    }
    n = agglo_arena_take(s->texts, 1, sizeof *n, err);
    if (n == NULL) {
        return err->status;
    }
    *n = (note){NULL, agglo_arena_text(s->texts, name, n_name, err), reason,
                agglo_arena_text(s->texts, detail, strlen(detail), err)};
    if (n->name == NULL || n->detail == NULL) {
        return err->status;
    }
    *s->last = n;
    s->last = &n->next;
    return AGGLO_OK;
}

typedef struct visitor {
    scan *scan;
    const agglo_ingest_options *options;
} visitor;

static agglo_status visit_member(void *context, const agglo_source_member *member, agglo_err *err)
{
    const visitor *v = context;
    size_t n_name = strlen(member->name), n_shown = n_name < 256 ? n_name : 256;
    const char *reason = NULL;

    if (agglo_stop_check(err) != AGGLO_OK || member->directory) {
        return err->status;
    }
    if (member->unsupported != NULL) {
        return add_note(v->scan, member->name, n_shown, "unsupported_member", member->unsupported, err);
    }
    if (n_name > v->options->max_name) {
        char detail[64];

        snprintf(detail, sizeof detail, "a name of %zu bytes", n_name);
        return add_note(v->scan, member->name, n_shown, "name_too_long", detail, err);
    }
    if (agglo_grouping_add(v->scan->grouping, member->name, member->offset, member->n_bytes, member->cut, &reason,
                           err) != AGGLO_OK ||
        reason == NULL) {
        return err->status;
    }
    return add_note(v->scan, member->name, n_shown, reason,
                    strcmp(reason, "unsupported_member") == 0
                        ? "no key and extension in its name, or too many of one key"
                        : "the first one of its kind is kept",
                    err);
}

/* Side-cars that are too large are dropped; the picture has a limit of its own. */
static bool fits(const agglo_ingest_options *options, const agglo_group *group, uint32_t number,
                 const agglo_member *member)
{
    return number == group->image || member->n_bytes <= options->max_member_bytes;
}

static agglo_status note_large_members(const agglo_ingest_options *options, scan *s, agglo_err *err)
{
    for (size_t i = 0; i < agglo_grouping_count(s->grouping); i++) {
        const agglo_group *group = agglo_grouping_at(s->grouping, i);

        for (uint32_t m = group->image == 0 ? 0 : group->first; m != 0;) {
            const agglo_member *member = agglo_grouping_member(s->grouping, m);

            if (!fits(options, group, m, member)) {
                char detail[96];

                snprintf(detail, sizeof detail, "the side-car .%.32s has %llu bytes", member->ext,
                         (unsigned long long)member->n_bytes);
                if (add_note(s, group->key, strlen(group->key), "member_too_big", detail, err) != AGGLO_OK) {
                    return err->status;
                }
            }
            m = member->next;
        }
    }
    return AGGLO_OK;
}

/* A source that cannot be opened has a reason and nothing else. */
static agglo_status walk(void *context, void *slot, int worker, agglo_err *err)
{
    const ingest *in = context;
    scan *s = slot;
    visitor v = {s, in->options};
    agglo_err bad = {0};

    (void)worker;
    agglo_grouping_reset(s->grouping);
    agglo_arena_reset(s->texts);
    s->notes = NULL;
    s->last = &s->notes;
    s->n_notes = 0;
    s->opened = false;
    s->reason = NULL;
    s->detail[0] = 0;
    if (s->from->held.fd >= 0) {
        s->source = s->from->held;
        s->from->held.fd = -1;
    } else if (agglo_source_open(&s->source, s->from->path, in->options->out, &bad) != AGGLO_OK) {
        if (bad.status == AGGLO_E_MEMORY) {
            *err = bad;
            return err->status;
        }
        s->reason = bad.status == AGGLO_E_NOT_FOUND ? "shard_missing" : "shard_unreadable";
        snprintf(s->detail, sizeof s->detail, "%s", bad.why);
        s->from->identity[0] = 0; /* whatever it was when it was described: it is read when it is there again */
        s->from->n_bytes = 0;
        return AGGLO_OK;
    }
    s->opened = true;
    if (agglo_source_unpack(&s->source, in->options->out, err) != AGGLO_OK ||
        agglo_source_scan(&s->source, visit_member, &v, &s->reason, s->detail, err) != AGGLO_OK) {
        return err->status;
    }
    return note_large_members(in->options, s, err);
}

/* The ring zeroes its slots; what a scan keeps from source to source is made when its slot is first used. */
static agglo_status start_scan(ingest *in, agglo_ingest_source *source, agglo_err *err)
{
    scan *s = agglo_ring_claim(in->scans, false);

    AGGLO_ASSERT(s != NULL);
    if (s->grouping == NULL) {
        s->source.fd = -1;
        if (agglo_grouping_new(&s->grouping, err) != AGGLO_OK) {
            return err->status;
        }
    }
    if (s->texts == NULL && agglo_arena_new(&s->texts, 0, err) != AGGLO_OK) {
        return err->status;
    }
    s->from = source;
    agglo_ring_submit(in->scans);
    return AGGLO_OK;
}

static void clear_scan(void *slot)
{
    scan *s = slot;

    if (s->grouping != NULL) {
        agglo_source_close(&s->source);
    }
    agglo_grouping_free(s->grouping);
    agglo_arena_free(s->texts);
}

/* ---- samples ---- */

static agglo_status work(void *context, void *slot, int worker, agglo_err *err)
{
    ingest *in = context;

    return agglo_ingest_check(in->options, in->selected, &in->workers[worker], slot, err);
}

static void clear_job(void *slot)
{
    agglo_ingest_job_clear(slot, 0);
}

/* Take the oldest sample and write it or list it. */
static agglo_status finish_one(ingest *in, agglo_err *err)
{
    void *slot;

    if (agglo_ring_take(in->samples, &slot, err) == AGGLO_OK) {
        agglo_ingest_finish_sample(&in->state, in->source_name, slot, err);
        agglo_progress_add(in->progress, 1);
    }
    agglo_ingest_job_clear(slot, KEEP_BYTES);
    agglo_ring_release(in->samples);
    return err->status;
}

static agglo_status drain(ingest *in, agglo_err *err)
{
    while (agglo_ring_in_flight(in->samples) > 0) {
        if (finish_one(in, err) != AGGLO_OK) {
            return err->status;
        }
    }
    return AGGLO_OK;
}

/* Which members go along, and a reason where none do. */
static void choose_members(const ingest *in, const scan *s, const agglo_group *group, agglo_ingest_job *j)
{
    if (group->incomplete) {
        j->reason = "incomplete";
        snprintf(j->detail, sizeof j->detail, "the tar ends within it");
    } else if (group->image == 0) {
        j->reason = "no_image";
        snprintf(j->detail, sizeof j->detail, "none of its members is a picture by its extension");
    } else if (agglo_grouping_member(s->grouping, group->image)->n_bytes > in->options->max_image_bytes) {
        j->reason = "image_too_big";
        snprintf(j->detail, sizeof j->detail, "%llu encoded bytes",
                 (unsigned long long)agglo_grouping_member(s->grouping, group->image)->n_bytes);
    }
    for (uint32_t m = j->reason != NULL ? 0 : group->first; m != 0;) {
        const agglo_member *member = agglo_grouping_member(s->grouping, m);

        if (fits(in->options, group, m, member)) {
            j->image = m == group->image ? j->n_members : j->image;
            j->members[j->n_members++] = *member;
        }
        m = member->next;
    }
}

static agglo_status submit_group(ingest *in, const scan *s, const agglo_group *group, agglo_err *err)
{
    const char *slash = strchr(group->key, '/');
    agglo_ingest_job *j = agglo_ring_claim(in->samples, false);

    while (j == NULL) {
        if (finish_one(in, err) != AGGLO_OK) {
            return err->status;
        }
        j = agglo_ring_claim(in->samples, false);
    }
    j->source = &s->source;
    j->group = group;
    j->class_label = -1;
    j->n_members = 0;
    j->image = 0;
    j->bad_json = false;
    j->reason = NULL;
    j->detail[0] = 0;
    j->sample = (agglo_index_sample){.label = -1};
    choose_members(in, s, group, j);
    if (j->reason == NULL && s->source.folder != NULL && slash != NULL &&
        agglo_ingest_class(&in->state, group->key, (size_t)(slash - group->key), &j->class_label, err) != AGGLO_OK) {
        return err->status;
    }
    agglo_ring_submit(in->samples);
    return AGGLO_OK;
}

static void show_progress(ingest *in, const scan *s, size_t i, size_t n)
{
    double done = (double)in->bytes_before + (double)s->from->n_bytes * (double)i / (double)n,
           seconds = agglo_now() - in->begun;

    agglo_progress_share(in->progress, in->bytes_all == 0 ? 0 : done / (double)in->bytes_all);
    agglo_progress_note(in->progress, "%.1f MB/s, %llu rejected", seconds > 0 ? done / seconds / 1e6 : 0,
                        (unsigned long long)in->report->samples_rejected);
}

/* ---- one source ---- */

static agglo_status read_source(ingest *in, scan *s, agglo_err *err)
{
    bool resumed = in->state.current != NULL; /* an earlier run listed its members, and did some of its samples */
    size_t n = agglo_grouping_count(s->grouping), from;

    in->source_name = s->from->path;
    if (resumed && !s->opened) {
        agglo_fail(err, AGGLO_E_IO, "a part of it is in already, and it cannot be read any more: %s", s->detail);
        return agglo_at(err, "%s", s->from->path);
    }
    if (!resumed && agglo_ingest_begin_source(&in->state, s->from, err) != AGGLO_OK) {
        return err->status;
    }
    for (const note *m = resumed ? NULL : s->notes; m != NULL; m = m->next) {
        if (agglo_ingest_reject(&in->state, in->source_name, m->name, m->reason, m->detail, err) != AGGLO_OK) {
            return err->status;
        }
    }
    if (!resumed && s->n_notes > MAX_NOTES) {
        char detail[96];

        snprintf(detail, sizeof detail, "%llu more dropped members are not listed",
                 (unsigned long long)(s->n_notes - MAX_NOTES));
        if (agglo_ingest_reject(&in->state, in->source_name, NULL, "more_members", detail, err) != AGGLO_OK) {
            return err->status;
        }
    }
    from = (size_t)in->state.n_groups;
    for (size_t i = from; i < n; i++) {
        if (agglo_stop_check(err) != AGGLO_OK ||
            submit_group(in, s, agglo_grouping_at(s->grouping, i), err) != AGGLO_OK) {
            return err->status;
        }
        if (i % 64 == 0) {
            show_progress(in, s, i, n);
        }
    }
    if (drain(in, err) != AGGLO_OK) {
        return err->status;
    }
    if (s->reason != NULL) {
        agglo_log(AGGLO_LOG_WARN, "%s: %s (%s)", in->source_name, s->reason, s->detail);
        in->report->shards_failed += strcmp(s->reason, "trailing_data") != 0;
        if (agglo_ingest_reject(&in->state, in->source_name, NULL, s->reason, s->detail, err) != AGGLO_OK) {
            return err->status;
        }
    }
    show_progress(in, s, 1, 1);
    in->bytes_before += s->from->n_bytes;
    return agglo_ingest_end_source(&in->state, err);
}

static agglo_status read_sources(ingest *in, agglo_ingest_source *sources, size_t n, agglo_err *err)
{
    size_t started = 0;

    for (size_t i = 0; i < n && err->status == AGGLO_OK; i++) {
        void *slot = NULL;

        for (; started < n && started < i + SCANS; started++) {
            if (start_scan(in, &sources[started], err) != AGGLO_OK) {
                return err->status;
            }
        }
        if (agglo_ring_take(in->scans, &slot, err) == AGGLO_OK) {
            read_source(in, slot, err);
        }
        while (agglo_ring_in_flight(in->samples) > 0) { /* after a failure, workers still read from it */
            agglo_err dropped = {0};
            void *job;

            agglo_ring_take(in->samples, &job, &dropped);
            agglo_ring_release(in->samples);
        }
        agglo_source_close(&((scan *)slot)->source);
        agglo_ring_release(in->scans);
    }
    return err->status;
}

/* ---- all of it ---- */

/* No source may stand where shards are going to be written. */
static agglo_status check_sources(const char *const *paths, size_t n, const char *out, agglo_err *err)
{
    char *ours = realpath(out, NULL);
    size_t n_ours = ours == NULL ? 0 : strlen(ours);

    for (size_t i = 0; ours != NULL && i < n; i++) {
        char *theirs = realpath(paths[i], NULL);

        if (theirs != NULL && strncmp(theirs, ours, n_ours) == 0 && (theirs[n_ours] == '/' || theirs[n_ours] == 0)) {
            agglo_fail(err, AGGLO_E_CONFIG, "a source stands in the output's own folder");
            agglo_at(err, "%s", paths[i]);
        }
        if (theirs != NULL && agglo_path_is_dir(theirs) && strncmp(theirs, ours, strlen(theirs)) == 0 &&
            (ours[strlen(theirs)] == '/' || strcmp(theirs, "/") == 0)) {
            agglo_fail(err, AGGLO_E_CONFIG,
                       "the output stands in this folder of pictures, and would be read as a part of it");
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

static agglo_status check_options(const agglo_ingest_options *o, agglo_err *err)
{
    if (o->out == NULL || o->out[0] == 0) {
        return agglo_fail(err, AGGLO_E_CONFIG, "no output folder");
    }
    if (o->shard_samples < 1 || o->shard_samples > UINT32_MAX) {
        return agglo_fail(err, AGGLO_E_CONFIG, "shard samples must be 1 to %u", UINT32_MAX);
    }
    if (o->max_image_bytes < 1 || o->max_image_bytes > UINT32_MAX || o->max_member_bytes > UINT32_MAX ||
        o->decode.max_pixels < 1 || o->decode.max_pixels > INT64_MAX || o->shard_bytes > INT64_MAX || o->max_name < 1 ||
        o->max_name > 1 << 20) {
        return agglo_fail(err, AGGLO_E_CONFIG, "limits of bytes, names or pixels are out of range");
    }
    if (o->min_side < 0 || o->max_side < 0 || o->max_side > 65500) { /* JPEG's largest */
        return agglo_fail(err, AGGLO_E_CONFIG, "sides must be 0 to 65500");
    }
    if (!(o->max_aspect >= 0)) {
        return agglo_fail(err, AGGLO_E_CONFIG, "max aspect must be a number");
    }
    if (o->max_side > 0 && o->min_side > o->max_side) {
        return agglo_fail(err, AGGLO_E_CONFIG, "min side %d is larger than max side %d", o->min_side, o->max_side);
    }
    return AGGLO_OK;
}

static agglo_status start_workers(ingest *in, agglo_err *err)
{
    in->n_jobs = in->options->jobs > 0 ? in->options->jobs : agglo_cores();
    in->workers = agglo_alloc((size_t)in->n_jobs, sizeof *in->workers, err);
    if (in->workers == NULL) {
        return err->status;
    }
    for (int i = 0; i < in->n_jobs; i++) {
        if (agglo_decoder_new(&in->workers[i].decoder, &in->options->decode, err) != AGGLO_OK ||
            (in->options->max_side > 0 && agglo_reencoder_new(&in->workers[i].reencoder, err) != AGGLO_OK)) {
            return err->status;
        }
    }
    if (agglo_ring_new(&in->scans, SCANS, sizeof(scan), 1, walk, in, err) != AGGLO_OK) {
        return err->status;
    }
    return agglo_ring_new(&in->samples, in->n_jobs * SLOTS_A_JOB, sizeof(agglo_ingest_job), in->n_jobs, work, in, err);
}

static void end(ingest *in)
{
    agglo_progress_end(in->progress);
    agglo_ring_free(in->samples, clear_job);
    agglo_ring_free(in->scans, clear_scan);
    for (int i = 0; in->workers != NULL && i < in->n_jobs; i++) {
        agglo_reencoder_free(in->workers[i].reencoder);
        agglo_decoder_free(in->workers[i].decoder);
    }
    agglo_free(in->workers);
    agglo_uid_set_free(in->selected);
}

static agglo_status ingest_all(ingest *in, agglo_ingest_source *sources, size_t n, agglo_err *err)
{
    if (start_workers(in, err) != AGGLO_OK) {
        return err->status;
    }
    for (size_t i = 0; i < n; i++) {
        in->bytes_all += sources[i].n_bytes;
    }
    in->begun = agglo_now();
    in->progress = agglo_progress_begin("ingest", "images", 0);
    if (read_sources(in, sources, n, err) == AGGLO_OK) {
        agglo_ingest_complete(&in->state, err);
    } else if (err->status == AGGLO_E_STOPPED) { /* between two samples: what is done is kept */
        agglo_err lost = {0};

        agglo_ingest_commit(&in->state, true, &lost);
    }
    return err->status;
}

agglo_status agglo_ingest(const char *const *paths, size_t n_paths, const agglo_ingest_options *options,
                          agglo_ingest_report *report, agglo_err *err)
{
    ingest in = {.options = options, .report = report};
    agglo_ingest_source *sources = NULL;
    size_t n_described = 0, n_todo = 0;
    char *shards_dir = NULL;

    *report = (agglo_ingest_report){0};
    in.state.options = options;
    in.state.report = report;
    if (check_options(options, err) != AGGLO_OK) {
        goto done;
    }
    shards_dir = agglo_path_join(options->out, AGGLO_DATASET_SHARDS, err);
    if (shards_dir == NULL || agglo_make_dirs(shards_dir, err) != AGGLO_OK ||
        check_sources(paths, n_paths, options->out, err) != AGGLO_OK ||
        (sources = agglo_alloc(n_paths, sizeof *sources, err)) == NULL) {
        goto done;
    }
    for (; n_described < n_paths; n_described++) {
        if (agglo_ingest_describe(&sources[n_described], paths[n_described], options->out, err) != AGGLO_OK) {
            goto done;
        }
    }
    /* before anything is begun: a list that is corrected is another list */
    if (options->select != NULL && agglo_select_open(&in.selected, options->select, err) != AGGLO_OK) {
        goto done;
    }
    if (agglo_ingest_state_open(&in.state, sources, n_paths, &n_todo, err) == AGGLO_OK && !report->up_to_date) {
        ingest_all(&in, sources, n_todo, err);
    }
done:
    if (in.state.rejects != NULL) { /* filled on any return */
        agglo_err ignored = {0};

        report->rejected = agglo_rejects_counts(in.state.rejects, &ignored);
    }
    report->rejected = report->rejected == NULL ? json_object() : report->rejected;
    end(&in);
    agglo_ingest_state_close(&in.state);
    for (size_t i = 0; i < n_described; i++) {
        agglo_source_close(&sources[i].held);
    }
    agglo_free(sources);
    agglo_free(shards_dir);
    if (err->status != AGGLO_OK) {
        agglo_at(err, "%s", options->out == NULL ? "" : options->out);
        agglo_doing(err, "cannot ingest");
    }
    return err->status;
}
