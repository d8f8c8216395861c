/* The whole check of one unit: its file against the manifest, then every record against itself, its key and its neighbours. */
#include <inttypes.h>

#include "cache/unit.h"

typedef struct check {
    const agglo_manifest *manifest;
    uint64_t n_records, payload_bytes;
    uint64_t first_key, last_key; /* ordinal << 8 | view */
    agglo_record_info first;      /* all records of a unit have one geometry */
} check;

static agglo_status check_record(void *context, uint32_t ordinal, int view, agglo_bytes bytes, agglo_err *err)
{
    check *c = context;
    const agglo_manifest *m = c->manifest;
    uint64_t key = (uint64_t)ordinal << 8 | (uint64_t)view;
    agglo_record record;

    if (view < m->id.view_first || view > m->id.view_last || ordinal < m->first_ordinal || ordinal > m->last_ordinal) {
        agglo_fail(err, AGGLO_E_DATA,
                   "it lies outside of the unit's samples %" PRIu32 " to %" PRIu32 ", views %d to %d", m->first_ordinal,
                   m->last_ordinal, m->id.view_first, m->id.view_last);
        goto fail;
    }
    if (c->n_records > 0 && key <= c->last_key) {
        agglo_fail(err, AGGLO_E_DATA, "it does not stand behind the record before it");
        goto fail;
    }
    if (agglo_record_parse(bytes, &record, err) != AGGLO_OK) {
        goto fail;
    }
    if (strcmp(agglo_codec_name(record.info.codec), m->provenance.codec) != 0) {
        agglo_fail(err, AGGLO_E_MISMATCH, "codec %s, its manifest says %s", agglo_codec_name(record.info.codec),
                   m->provenance.codec);
        goto fail;
    }
    if (c->n_records == 0) {
        c->first = record.info;
        c->first_key = key;
    }
    if (record.info.grid_h != c->first.grid_h || record.info.grid_w != c->first.grid_w ||
        record.info.summary_dim != c->first.summary_dim || record.info.spatial_dim != c->first.spatial_dim ||
        record.info.input_w != c->first.input_w || record.info.input_h != c->first.input_h) {
        agglo_fail(err, AGGLO_E_MISMATCH, "its geometry is another than the first record's");
        goto fail;
    }
    c->last_key = key;
    c->n_records++;
    c->payload_bytes += bytes.size;
    return AGGLO_OK;
fail:
    return agglo_at(err, "record %" PRIu32 ", view %d", ordinal, view);
}

agglo_status agglo_unit_verify(const char *cache, const agglo_unit_id *id, agglo_err *err)
{
    agglo_unit *unit = NULL;
    check c = {0};
    agglo_status status = agglo_unit_open(&unit, cache, id, NULL, true, err);

    if (status != AGGLO_OK) {
        goto done;
    }
    c.manifest = agglo_unit_manifest(unit);
    status = agglo_unit_each(unit, check_record, &c, err);
    if (status != AGGLO_OK) {
        goto done;
    }
    if (c.n_records != c.manifest->n_records || c.payload_bytes != c.manifest->payload_bytes) {
        status = agglo_fail(err, AGGLO_E_DATA,
                            "%" PRIu64 " records of %" PRIu64 " bytes, its manifest says %" PRIu64 " of %" PRIu64,
                            c.n_records, c.payload_bytes, c.manifest->n_records, c.manifest->payload_bytes);
    } else if (c.first_key >> 8 != c.manifest->first_ordinal || c.last_key >> 8 != c.manifest->last_ordinal) {
        status = agglo_fail(err, AGGLO_E_DATA,
                            "samples %" PRIu64 " to %" PRIu64 ", its manifest says %" PRIu32 " to %" PRIu32,
                            c.first_key >> 8, c.last_key >> 8, c.manifest->first_ordinal, c.manifest->last_ordinal);
    }
done:
    agglo_unit_close(unit);
    return status == AGGLO_OK ? AGGLO_OK : agglo_doing(err, "unit is damaged");
}
