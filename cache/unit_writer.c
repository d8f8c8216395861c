/* Writing a unit: an LMDB file under a temporary name, then its final name, then the manifest. */
#include <string.h>

#include "base/fs.h"
#include "cache/lmdb_file.h"
#include "cache/unit_impl.h"

struct agglo_unit_writer {
    agglo_manifest manifest;
    char *cache, *path, *manifest_path;
    agglo_new_file *file;
    agglo_lmdb_writer *lmdb;
    json_t *skipped;
};

agglo_status agglo_unit_writer_new(agglo_unit_writer **out, const char *cache, const char *scratch,
                                   const agglo_unit_id *id, const agglo_provenance *provenance, size_t max_record_bytes,
                                   uint64_t max_records, agglo_err *err)
{
    agglo_unit_writer *writer = NULL;
    char *dir = NULL;

    *out = NULL;
    if (agglo_unit_id_check(id, err) != AGGLO_OK || (writer = agglo_alloc(1, sizeof *writer, err)) == NULL) {
        goto fail;
    }
    writer->manifest.id = *id;
    writer->manifest.provenance = *provenance;
    writer->skipped = json_array();
    if (writer->skipped == NULL) {
        agglo_fail(err, AGGLO_E_MEMORY, "out of memory for a manifest");
        goto fail;
    }
    if ((writer->cache = agglo_strdup(cache, err)) == NULL ||
        (writer->path = agglo_unit_path(cache, id, ".lmdb", err)) == NULL ||
        (writer->manifest_path = agglo_unit_path(cache, id, ".json", err)) == NULL ||
        (dir = agglo_path_dir(writer->path, err)) == NULL || agglo_make_dirs(dir, err) != AGGLO_OK ||
        agglo_new_file_open(&writer->file, writer->path, scratch, err) != AGGLO_OK ||
        agglo_lmdb_writer_new(&writer->lmdb, agglo_new_file_temp(writer->file), max_record_bytes, max_records, err) !=
            AGGLO_OK) {
        goto fail;
    }
    agglo_free(dir);
    *out = writer;
    return AGGLO_OK;
fail:
    agglo_free(dir);
    agglo_unit_writer_abort(writer);
    return agglo_doing(err, "cannot begin unit");
}

agglo_status agglo_unit_writer_put(agglo_unit_writer *writer, uint32_t ordinal, int view, agglo_bytes record,
                                   agglo_err *err)
{
    agglo_manifest *m = &writer->manifest;

    AGGLO_ASSERT(view >= m->id.view_first && view <= m->id.view_last);
    if (agglo_lmdb_writer_put(writer->lmdb, ordinal, view, record, err) != AGGLO_OK) {
        return err->status;
    }
    m->first_ordinal = m->n_records == 0 ? ordinal : m->first_ordinal;
    m->last_ordinal = ordinal;
    m->n_records++;
    m->payload_bytes += record.size;
    return AGGLO_OK;
}

agglo_status agglo_unit_writer_skip(agglo_unit_writer *writer, uint32_t ordinal, const char *key, const char *reason,
                                    agglo_err *err)
{
    /* '?': keys are foreign bytes, and one that is not UTF-8 becomes null rather than an error */
    json_t *entry = json_pack("{s:I, s:s?, s:s?}", "ordinal", (json_int_t)ordinal, "key", NULL, "reason", reason);
    json_t *name = json_string(key);

    if (name != NULL && entry != NULL && json_object_set(entry, "key", name) != 0) {
        json_decref(entry);
        entry = NULL;
    }
    json_decref(name);
    if (entry == NULL || json_array_append_new(writer->skipped, entry) != 0) {
        agglo_fail(err, AGGLO_E_MEMORY, "out of memory for a manifest");
        return agglo_doing(err, "cannot note skipped sample");
    }
    writer->manifest.n_skipped++;
    return AGGLO_OK;
}

/* A finished unit never changes: one of other content under our name is not replaced. A damaged manifest is no unit; one that cannot be
 * read now, or that a later version wrote, may well be one. */
static agglo_status check_present(const agglo_unit_writer *writer, agglo_err *err)
{
    const agglo_manifest *m = &writer->manifest;
    agglo_manifest present;
    agglo_err unreadable = {0};

    if (agglo_manifest_read(writer->cache, &m->id, &present, &unreadable) != AGGLO_OK) {
        if (unreadable.status == AGGLO_E_NOT_FOUND || unreadable.status == AGGLO_E_DATA ||
            unreadable.status == AGGLO_E_MISMATCH) {
            return AGGLO_OK;
        }
        *err = unreadable;
        return err->status;
    }
    if (agglo_provenance_compare(&present.provenance, &m->provenance, err) != AGGLO_OK) {
        return agglo_at(err, "%s", writer->manifest_path);
    }
    if (memcmp(&present.file_hash, &m->file_hash, sizeof present.file_hash) != 0) {
        agglo_fail(err, AGGLO_E_MISMATCH, "the unit exists already, with other content");
        return agglo_at(err, "%s", writer->manifest_path);
    }
    return AGGLO_OK;
}

agglo_status agglo_unit_writer_commit(agglo_unit_writer *writer, agglo_manifest *manifest, agglo_err *err)
{
    agglo_manifest *m = &writer->manifest;
    agglo_lmdb_writer *lmdb = writer->lmdb;
    agglo_new_file *file;
    char *text = NULL;
    size_t n_text = 0;

    writer->lmdb = NULL;
    if (agglo_lmdb_writer_finish(lmdb, err) != AGGLO_OK ||
        agglo_file_xxh3_128(agglo_new_file_temp(writer->file), &m->file_hash, &m->file_bytes, err) != AGGLO_OK ||
        agglo_manifest_print(m, writer->skipped, &text, &n_text, err) != AGGLO_OK ||
        check_present(writer, err) != AGGLO_OK) {
        goto fail;
    }
    file = writer->file;
    writer->file = NULL;
    if (agglo_new_file_commit(file, err) != AGGLO_OK ||
        agglo_file_write(writer->manifest_path, text, n_text, err) != AGGLO_OK) {
        goto fail;
    }
    if (manifest != NULL) {
        *manifest = *m;
    }
    agglo_free(text);
    agglo_unit_writer_abort(writer);
    return AGGLO_OK;
fail:
    agglo_free(text);
    agglo_unit_writer_abort(writer);
    return agglo_doing(err, "cannot finish unit");
}

void agglo_unit_writer_abort(agglo_unit_writer *writer)
{
    if (writer == NULL) {
        return;
    }
    agglo_lmdb_writer_abort(writer->lmdb);
    agglo_new_file_abort(writer->file);
    json_decref(writer->skipped);
    agglo_free(writer->manifest_path);
    agglo_free(writer->path);
    agglo_free(writer->cache);
    agglo_free(writer);
}
