/* The teacher pass over a dataset: which units are missing, which refuse, and the loop over them; see pass.h. */
#include "teachers/pass.h"

#include "base/log.h"
#include "base/stop.h"
#include "ingest/decode.h"
#include "ingest/render.h"

#include <stdio.h>
#include <string.h>

agglo_teach_options agglo_teach_options_default(void)
{
    return (agglo_teach_options){.codec = AGGLO_CODEC_FP16, .batch = 32};
}

void agglo_teach_report_clear(agglo_teach_report *report)
{
    for (size_t i = 0; i < report->n_failures; i++) {
        agglo_free(report->failures[i]);
    }
    agglo_free(report->failures);
    *report = (agglo_teach_report){0};
}

static void hash_hex(const char *text, char out[33])
{
    agglo_hash128 hash = agglo_xxh3_128(text, strlen(text));

    agglo_hex(hash.bytes, sizeof hash.bytes, out);
}

void agglo_preprocess_fingerprint(const agglo_encoder_info *info, char out[33])
{
    const agglo_preprocess *p = &info->preprocess;
    char text[320];

    /* floats by their bits: no printing of numbers decides */
    snprintf(text, sizeof text, "size %d patch %d filter %d mean %08x %08x %08x std %08x %08x %08x options %s", p->size,
             info->patch, (int)AGGLO_VIEW_FILTER, agglo_f32_bits(p->mean[0]), agglo_f32_bits(p->mean[1]),
             agglo_f32_bits(p->mean[2]), agglo_f32_bits(p->std[0]), agglo_f32_bits(p->std[1]),
             agglo_f32_bits(p->std[2]), info->options);
    hash_hex(text, out);
}

agglo_status agglo_teach_provenance(const agglo_dataset *dataset, uint32_t shard, const agglo_view_config *group,
                                    const agglo_encoder_info *info, agglo_codec_id codec, agglo_provenance *out,
                                    agglo_err *err)
{
    agglo_decode_options decode = agglo_dataset_decode_options(dataset);
    const char *codec_name = agglo_codec_name(codec);

    *out = (agglo_provenance){0};
    if (codec_name == NULL) {
        return agglo_fail(err, AGGLO_E_CONFIG, "unknown codec %d", (int)codec);
    }
    memcpy(out->shard, agglo_dataset_shard(dataset, shard)->fingerprint, sizeof out->shard);
    agglo_view_fingerprint(group, out->views);
    agglo_preprocess_fingerprint(info, out->preprocess);
    agglo_decode_fingerprint(&decode, out->decoder);
    memcpy(out->weights, info->weights, sizeof out->weights);
    snprintf(out->codec, sizeof out->codec, "%s", codec_name);
    return AGGLO_OK;
}

agglo_status agglo_teach_describe(const char *name, const agglo_encoder_info *info, agglo_codec_id codec,
                                  agglo_cache_teacher *out, agglo_err *err)
{
    const char *codec_name = agglo_codec_name(codec);
    int grid = info->preprocess.size / info->patch;

    *out = (agglo_cache_teacher){0};
    if (codec_name == NULL) {
        return agglo_fail(err, AGGLO_E_CONFIG, "unknown codec %d", (int)codec);
    }
    if (name[0] == '\0' || strlen(name) >= sizeof out->name) {
        return agglo_fail(err, AGGLO_E_CONFIG, "the name of a teacher has 1 to %zu characters", sizeof out->name - 1);
    }
    if (info->summary_dim > UINT16_MAX || info->spatial_dim > UINT16_MAX || info->preprocess.size > UINT16_MAX) {
        return agglo_fail(err, AGGLO_E_CONFIG, "%s is too large for a record", info->arch);
    }
    snprintf(out->name, sizeof out->name, "%s", name);
    memcpy(out->arch, info->arch, sizeof out->arch);
    memcpy(out->weights, info->weights, sizeof out->weights);
    agglo_preprocess_fingerprint(info, out->preprocess);
    snprintf(out->codec, sizeof out->codec, "%s", codec_name);
    memcpy(out->options, info->options, sizeof out->options);
    out->input = info->preprocess.size;
    out->patch = info->patch;
    out->grid_h = out->grid_w = grid;
    out->summary_dim = info->summary_dim;
    out->spatial_dim = info->spatial_dim;
    return AGGLO_OK;
}

uint64_t agglo_teach_slots(const agglo_dataset *dataset, size_t n_groups)
{
    return (uint64_t)agglo_dataset_shards(dataset) * n_groups;
}

/* cache.json with all groups, and teacher.json. */
static agglo_status prepare(const agglo_teach_options *options, const agglo_encoder_info *info, agglo_err *err)
{
    agglo_cache_group *groups = (agglo_cache_group *)agglo_alloc(options->n_groups, sizeof *groups, err);
    agglo_cache_teacher teacher;
    agglo_status status;

    if (groups == NULL) {
        return err->status;
    }
    for (size_t i = 0; i < options->n_groups; i++) {
        const agglo_view_config *v = &options->groups[i];

        snprintf(groups[i].name, sizeof groups[i].name, "%s", v->group);
        agglo_view_fingerprint(v, groups[i].fingerprint);
        /* not the count: views may be added */
        groups[i].parameters = json_pack("{s:I, s:[f,f], s:[f,f], s:f, s:s}", "seed", (json_int_t)v->seed, "scale",
                                         v->scale[0], v->scale[1], "ratio", v->ratio[0], v->ratio[1], "flip", v->flip,
                                         "decode", v->decode == AGGLO_VIEW_EXACT ? "exact" : "scaled");
        if (groups[i].parameters == NULL) {
            agglo_fail(err, AGGLO_E_MEMORY, "out of memory");
            goto done;
        }
    }
    if (agglo_teach_describe(options->teacher, info, options->codec, &teacher, err) == AGGLO_OK &&
        agglo_cache_create(options->cache, groups, options->n_groups, err) == AGGLO_OK) {
        agglo_cache_add_teacher(options->cache, &teacher, err);
    }
done:
    status = err->status;
    for (size_t i = 0; i < options->n_groups; i++) {
        json_decref(groups[i].parameters);
    }
    agglo_free(groups);
    return status;
}

/* The views of one (group, shard) that finished units hold. */
typedef struct coverage {
    uint8_t view[256];
} coverage;

typedef struct pass {
    const agglo_dataset *dataset;
    const agglo_encoder *encoder;
    const agglo_teach_options *options;
    agglo_teach_report *report;
    agglo_cache *cache;
    coverage *covered; /* [n_groups, n_shards] */
    uint32_t n_shards;
} pass;

static bool is_mine(const pass *p, uint64_t slot)
{
    int n_parts = p->options->n_parts > 0 ? p->options->n_parts : 1, part = p->options->part > 0 ? p->options->part : 1;

    return (p->options->first_slot + slot) % (uint64_t)n_parts == (uint64_t)(part - 1);
}

static agglo_status add_failure(pass *p, const agglo_err *failure, agglo_err *err)
{
    agglo_teach_report *r = p->report;
    char line[1024];
    char **grown;

    agglo_err_line(failure, line, sizeof line);
    agglo_log(AGGLO_LOG_WARN, "%s", line);
    grown =
        (char **)agglo_realloc(r->failures, r->n_failures * sizeof *grown, (r->n_failures + 1) * sizeof *grown, err);
    if (grown == NULL) {
        return err->status;
    }
    r->failures = grown;
    r->failures[r->n_failures] = agglo_strdup(line, err);
    if (r->failures[r->n_failures] == NULL) {
        return err->status;
    }
    r->n_failures++;
    r->units_failed++;
    return AGGLO_OK;
}

/* Compare every finished unit of this teacher and these shards; note the views they hold. */
static agglo_status survey(pass *p, agglo_err *err)
{
    const agglo_teach_options *o = p->options;

    for (size_t i = 0; i < agglo_cache_units(p->cache); i++) {
        const agglo_manifest *m = agglo_cache_unit_at(p->cache, i);
        agglo_provenance expected;
        size_t g = 0;

        while (g < o->n_groups && strcmp(m->id.group, o->groups[g].group) != 0) {
            g++;
        }
        if (strcmp(m->id.teacher, o->teacher) != 0 || g == o->n_groups || m->id.shard >= p->n_shards) {
            continue;
        }
        if (agglo_teach_provenance(p->dataset, m->id.shard, &o->groups[g], &p->encoder->info, o->codec, &expected,
                                   err) != AGGLO_OK) {
            return err->status;
        }
        if (agglo_provenance_compare(&m->provenance, &expected, err) != AGGLO_OK) {
            return agglo_at(err, "%s: unit %s/%s-%06u-v%d-%d", o->cache, m->id.teacher, m->id.group, m->id.shard,
                            m->id.view_first, m->id.view_last);
        }
        for (int v = m->id.view_first; v <= m->id.view_last && v < 256; v++) {
            p->covered[g * p->n_shards + m->id.shard].view[v] = 1;
        }
        if (is_mine(p, (uint64_t)g * p->n_shards + m->id.shard)) {
            agglo_err bad = {0};

            p->report->units_present++;
            if (o->verify && agglo_unit_verify(o->cache, &m->id, &bad) != AGGLO_OK &&
                add_failure(p, &bad, err) != AGGLO_OK) {
                return err->status;
            }
        }
    }
    return AGGLO_OK;
}

/* The next run of views in [*first, count) that nothing holds; false when there is none. */
static bool next_gap(const coverage *c, int count, int *first, int *last)
{
    while (*first < count && c->view[*first]) {
        ++*first;
    }
    *last = *first;
    while (*last + 1 < count && !c->view[*last + 1]) {
        ++*last;
    }
    return *first < count;
}

static uint64_t views_missing(const pass *p)
{
    uint64_t n = 0;

    for (size_t g = 0; g < p->options->n_groups; g++) {
        for (uint32_t s = 0; s < p->n_shards; s++) {
            const coverage *c = &p->covered[g * p->n_shards + s];

            for (int v = 0; v < p->options->groups[g].count && is_mine(p, (uint64_t)g * p->n_shards + s); v++) {
                n += c->view[v] ? 0 : agglo_dataset_shard(p->dataset, s)->n_samples;
            }
        }
    }
    return n;
}

/* The missing units of one (group, shard). */
static agglo_status teach_slot(pass *p, size_t g, uint32_t shard, agglo_progress *progress, agglo_err *err)
{
    const agglo_view_config *group = &p->options->groups[g];
    const coverage *c = &p->covered[g * p->n_shards + shard];
    agglo_unit_id id = {.shard = shard};
    agglo_err failure = {0};
    bool shard_fault;

    snprintf(id.teacher, sizeof id.teacher, "%s", p->options->teacher);
    snprintf(id.group, sizeof id.group, "%s", group->group);
    for (int first = 0, last; next_gap(c, group->count, &first, &last); first = last + 1) {
        id.view_first = first;
        id.view_last = last;
        agglo_err_clear(&failure);
        if (agglo_stop_check(err) != AGGLO_OK) {
            return err->status;
        }
        if (agglo_teach_unit(p->dataset, p->encoder, p->options, &id, group, progress, p->report, &shard_fault,
                             &failure) == AGGLO_OK) {
            p->report->units_done++;
        } else if (!shard_fault) {
            *err = failure;
            return err->status;
        } else if (add_failure(p, &failure, err) != AGGLO_OK) {
            return err->status;
        }
    }
    return AGGLO_OK;
}

static agglo_status check_options(const agglo_teach_options *o, agglo_err *err)
{
    if (o->n_groups == 0) {
        return agglo_fail(err, AGGLO_E_CONFIG, "there is no view group");
    }
    for (size_t g = 0; g < o->n_groups; g++) {
        if (o->groups[g].count < 1 || o->groups[g].count > 255) {
            return agglo_fail(err, AGGLO_E_CONFIG, "group %s has %d views, 1 to 255 are possible", o->groups[g].group,
                              o->groups[g].count);
        }
    }
    if ((o->n_parts != 0 || o->part != 0) && (o->n_parts < 1 || o->part < 1 || o->part > o->n_parts)) {
        return agglo_fail(err, AGGLO_E_CONFIG, "part %d of %d does not exist", o->part, o->n_parts);
    }
    if (o->batch < 0 || o->batch > 65536) {
        return agglo_fail(err, AGGLO_E_CONFIG, "batch %d is not from 1 to 65536", o->batch);
    }
    return AGGLO_OK;
}

agglo_status agglo_teach(const agglo_dataset *dataset, const agglo_encoder *encoder, const agglo_teach_options *options,
                         agglo_teach_report *report, agglo_err *err)
{
    pass p = {.dataset = dataset, .encoder = encoder, .options = options, .report = report};
    agglo_progress *progress = NULL;
    double start = agglo_now();
    uint64_t n_missing;
    char label[96];

    *report = (agglo_teach_report){0};
    p.n_shards = agglo_dataset_shards(dataset);
    if (check_options(options, err) != AGGLO_OK || prepare(options, &encoder->info, err) != AGGLO_OK ||
        agglo_cache_open(&p.cache, options->cache, 0, err) != AGGLO_OK) {
        goto done;
    }
    p.covered = (coverage *)agglo_alloc(options->n_groups * (size_t)p.n_shards, sizeof *p.covered, err);
    if (p.covered == NULL || survey(&p, err) != AGGLO_OK) {
        goto done;
    }
    snprintf(label, sizeof label, "teach %s", options->teacher);
    n_missing = views_missing(&p);
    progress = n_missing > 0 ? agglo_progress_begin(label, "views", n_missing) : NULL;
    for (size_t g = 0; g < options->n_groups && err->status == AGGLO_OK; g++) {
        for (uint32_t s = 0; s < p.n_shards; s++) {
            if (!is_mine(&p, (uint64_t)g * p.n_shards + s)) {
                report->units_elsewhere++;
            } else if (teach_slot(&p, g, s, progress, err) != AGGLO_OK) {
                break;
            }
        }
    }
    agglo_progress_end(progress);
done:
    agglo_free(p.covered);
    agglo_cache_close(p.cache);
    report->seconds = agglo_now() - start;
    return err->status == AGGLO_OK ? AGGLO_OK : agglo_doing(err, "cannot teach %s", options->teacher);
}
