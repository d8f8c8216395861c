/* Reading a unit. LMDB never sees a file that its manifest's hash does not vouch for. */
#include "cache/unit.h"

#include <inttypes.h>

#include "cache/lmdb_file.h"
#include "cache/unit_impl.h"

struct agglo_unit {
    agglo_manifest manifest;
    agglo_lmdb_reader *lmdb;
    char *path;
};

/* Size, and with verify_hash every byte, against the manifest. */
static agglo_status check_file(const agglo_unit *unit, bool verify_hash, agglo_err *err)
{
    uint64_t n_bytes;
    agglo_hash128 hash;
    char found[33], expected[33];

    if (agglo_file_size(unit->path, &n_bytes, err) != AGGLO_OK) {
        /* its manifest is there, so this is damage, not a unit that is yet to come */
        return err->status = err->status == AGGLO_E_NOT_FOUND ? AGGLO_E_DATA : err->status;
    }
    if (n_bytes != unit->manifest.file_bytes) {
        agglo_fail(err, AGGLO_E_DATA, "%" PRIu64 " bytes, its manifest says %" PRIu64, n_bytes,
                   unit->manifest.file_bytes);
        return agglo_at(err, "%s", unit->path);
    }
    if (!verify_hash) {
        return AGGLO_OK;
    }
    if (agglo_file_xxh3_128(unit->path, &hash, &n_bytes, err) != AGGLO_OK) {
        return err->status;
    }
    if (n_bytes != unit->manifest.file_bytes || memcmp(&hash, &unit->manifest.file_hash, sizeof hash) != 0) {
        agglo_fail(err, AGGLO_E_DATA, "hash %s, its manifest says %s", agglo_hex(hash.bytes, 16, found),
                   agglo_hex(unit->manifest.file_hash.bytes, 16, expected));
        return agglo_at(err, "%s", unit->path);
    }
    return AGGLO_OK;
}

agglo_status agglo_unit_open(agglo_unit **out, const char *cache, const agglo_unit_id *id,
                             const agglo_provenance *expected, bool verify_hash, agglo_err *err)
{
    agglo_unit *unit = agglo_alloc(1, sizeof *unit, err);

    *out = NULL;
    if (unit == NULL || agglo_manifest_read(cache, id, &unit->manifest, err) != AGGLO_OK ||
        (unit->path = agglo_unit_path(cache, id, ".lmdb", err)) == NULL) {
        goto fail;
    }
    if (expected != NULL && agglo_provenance_compare(&unit->manifest.provenance, expected, err) != AGGLO_OK) {
        agglo_at(err, "%s", unit->path);
        goto fail;
    }
    if (check_file(unit, verify_hash, err) != AGGLO_OK ||
        agglo_lmdb_reader_open(&unit->lmdb, unit->path, err) != AGGLO_OK) {
        goto fail;
    }
    if (agglo_lmdb_reader_count(unit->lmdb) != unit->manifest.n_records) {
        agglo_fail(err, AGGLO_E_DATA, "%" PRIu64 " records, its manifest says %" PRIu64,
                   agglo_lmdb_reader_count(unit->lmdb), unit->manifest.n_records);
        agglo_at(err, "%s", unit->path);
        goto fail;
    }
    *out = unit;
    return AGGLO_OK;
fail:
    agglo_unit_close(unit);
    return agglo_doing(err, "cannot open unit");
}

void agglo_unit_close(agglo_unit *unit)
{
    if (unit == NULL) {
        return;
    }
    agglo_lmdb_reader_close(unit->lmdb);
    agglo_free(unit->path);
    agglo_free(unit);
}

const agglo_manifest *agglo_unit_manifest(const agglo_unit *unit)
{
    return &unit->manifest;
}

agglo_status agglo_unit_get(const agglo_unit *unit, uint32_t ordinal, int view, agglo_bytes *out, agglo_err *err)
{
    if (agglo_lmdb_reader_get(unit->lmdb, ordinal, view, out, err) != AGGLO_OK) {
        agglo_at(err, "%s", unit->path);
        return agglo_doing(err, "cannot read record");
    }
    return AGGLO_OK;
}

agglo_status agglo_unit_each(const agglo_unit *unit,
                             agglo_status (*visit)(void *context, uint32_t ordinal, int view, agglo_bytes record,
                                                   agglo_err *err),
                             void *context, agglo_err *err)
{
    if (agglo_lmdb_reader_each(unit->lmdb, visit, context, err) != AGGLO_OK) {
        return agglo_at(err, "%s", unit->path);
    }
    return AGGLO_OK;
}
