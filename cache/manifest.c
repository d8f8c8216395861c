/* Manifests: unit names, provenance, and the JSON beside a unit.
 *
 * The last line but one of a manifest is `  "checksum": "<xxh3-64 of all bytes before this line, hex>"`, the last is `}`: a flipped bit
 * anywhere in the file is noticed, although the file stays JSON for everybody else.
 */
#include <inttypes.h>
#include <string.h>

#include "cache/unit_impl.h"

#define MANIFEST_FORMAT 1
#define CHECKSUM_LINE   "  \"checksum\": \"%016" PRIx64 "\"\n}\n"
#define CHECKSUM_BYTES  (sizeof "  \"checksum\": \"0123456789abcdef\"\n}\n" - 1)

/* ---- names ---- */

static bool only_chars(const char *text, size_t n_max, const char *allowed)
{
    size_t n = strnlen(text, n_max);

    return n >= 1 && n < n_max && strspn(text, allowed) == n;
}

#define LOWER  "abcdefghijklmnopqrstuvwxyz"
#define DIGITS "0123456789"

agglo_status agglo_unit_id_check(const agglo_unit_id *id, agglo_err *err)
{
    if (!only_chars(id->teacher, sizeof id->teacher, LOWER "ABCDEFGHIJKLMNOPQRSTUVWXYZ" DIGITS "._-") ||
        id->teacher[0] == '.') {
        return agglo_fail(err, AGGLO_E_CONFIG,
                          "\"%.64s\" cannot name a teacher (letters, digits, '.', '_', '-'; not '.' first)",
                          id->teacher);
    }
    if (!only_chars(id->group, sizeof id->group, LOWER DIGITS "_")) {
        return agglo_fail(err, AGGLO_E_CONFIG, "\"%.32s\" cannot name a view group (a-z, 0-9, '_')", id->group);
    }
    if (id->view_first < 0 || id->view_first > id->view_last || id->view_last > UINT8_MAX) {
        return agglo_fail(err, AGGLO_E_CONFIG, "views %d to %d are no range in 0 to 255", id->view_first,
                          id->view_last);
    }
    return AGGLO_OK;
}

char *agglo_unit_path(const char *cache, const agglo_unit_id *id, const char *suffix, agglo_err *err)
{
    return agglo_format(err, "%s/%s/%s-%06" PRIu32 "-v%d-%d%s", cache, id->teacher, id->group, id->shard,
                        id->view_first, id->view_last, suffix);
}

bool agglo_unit_parse_name(const char *base_name, agglo_unit_id *out)
{
    char again[128];
    int n_end = 0;

    memset(out, 0, sizeof *out);
    if (sscanf(base_name, "%31[a-z0-9_]-%10" SCNu32 "-v%3d-%3d.json%n", out->group, &out->shard, &out->view_first,
               &out->view_last, &n_end) != 4 ||
        n_end == 0 || base_name[n_end] != '\0') {
        return false;
    }
    snprintf(again, sizeof again, "%s-%06" PRIu32 "-v%d-%d.json", out->group, out->shard, out->view_first,
             out->view_last);
    return strcmp(again, base_name) == 0 && out->view_first >= 0 && out->view_first <= out->view_last &&
           out->view_last <= UINT8_MAX;
}

/* ---- provenance ---- */

/* Its fields by name, in the order in which they are compared and written. */
static const struct {
    const char *name;
    size_t offset, size;
} fields[] = {
    {"shard", offsetof(agglo_provenance, shard), sizeof((agglo_provenance *)0)->shard},
    {"views", offsetof(agglo_provenance, views), sizeof((agglo_provenance *)0)->views},
    {"preprocess", offsetof(agglo_provenance, preprocess), sizeof((agglo_provenance *)0)->preprocess},
    {"decoder", offsetof(agglo_provenance, decoder), sizeof((agglo_provenance *)0)->decoder},
    {"weights", offsetof(agglo_provenance, weights), sizeof((agglo_provenance *)0)->weights},
    {"transform", offsetof(agglo_provenance, transform), sizeof((agglo_provenance *)0)->transform},
    {"codec", offsetof(agglo_provenance, codec), sizeof((agglo_provenance *)0)->codec},
};

agglo_status agglo_provenance_compare(const agglo_provenance *found, const agglo_provenance *expected, agglo_err *err)
{
    for (size_t i = 0; i < AGGLO_COUNT(fields); i++) {
        const char *a = (const char *)found + fields[i].offset, *b = (const char *)expected + fields[i].offset;

        if (strncmp(a, b, fields[i].size) != 0) {
            return agglo_fail(err, AGGLO_E_MISMATCH, "%s: found %s, expected %s", fields[i].name,
                              a[0] == '\0' ? "none" : a, b[0] == '\0' ? "none" : b);
        }
    }
    return AGGLO_OK;
}

/* ---- text ---- */

agglo_status agglo_manifest_print(const agglo_manifest *m, const json_t *skipped, char **out, size_t *n_bytes,
                                  agglo_err *err)
{
    json_t *root = NULL, *provenance = json_object();
    char hash[33], line[CHECKSUM_BYTES + 1];
    const size_t flags = JSON_INDENT(2) | JSON_PRESERVE_ORDER;
    char *text = NULL;
    size_t n;
    int failed = 0;

    *out = NULL;
    for (size_t i = 0; i < AGGLO_COUNT(fields); i++) {
        failed |= json_object_set_new(provenance, fields[i].name,
                                      json_string((const char *)&m->provenance + fields[i].offset));
    }
    root = json_pack("{s:i, s:s, s:s, s:I, s:i, s:i, s:O, s:I, s:I, s:I, s:O, s:I, s:I, s:s}", "format",
                     MANIFEST_FORMAT, "teacher", m->id.teacher, "group", m->id.group, "shard", (json_int_t)m->id.shard,
                     "view_first", m->id.view_first, "view_last", m->id.view_last, "provenance", provenance, "records",
                     (json_int_t)m->n_records, "first_ordinal", (json_int_t)m->first_ordinal, "last_ordinal",
                     (json_int_t)m->last_ordinal, "skipped", skipped, "payload_bytes", (json_int_t)m->payload_bytes,
                     "file_bytes", (json_int_t)m->file_bytes, "file_xxh3_128", agglo_hex(m->file_hash.bytes, 16, hash));
    if (failed != 0 || root == NULL || (n = json_dumpb(root, NULL, 0, flags)) < 4) {
        agglo_fail(err, AGGLO_E_MEMORY, "out of memory for a manifest");
        goto done;
    }
    text = agglo_alloc(n + CHECKSUM_BYTES + 2, 1, err);
    if (text == NULL) {
        goto done;
    }
    if (json_dumpb(root, text, n, flags) != n) {
        agglo_fail(err, AGGLO_E_MEMORY, "out of memory for a manifest");
        goto done;
    }
    /* "...\n}": take the brace away, so that the checksum's line is the last member */
    n -= 2;
    text[n++] = ',';
    text[n++] = '\n';
    snprintf(line, sizeof line, CHECKSUM_LINE, agglo_xxh3_64(text, n));
    memcpy(text + n, line, CHECKSUM_BYTES);
    *n_bytes = n + CHECKSUM_BYTES;
    *out = text;
    text = NULL;
done:
    agglo_free(text);
    json_decref(root);
    json_decref(provenance);
    return *out != NULL ? AGGLO_OK : agglo_doing(err, "cannot write manifest");
}

static agglo_status get_text(const json_t *object, const char *key, char *out, size_t size, agglo_err *err)
{
    const char *text;

    if (agglo_json_get_string(object, key, &text, err) != AGGLO_OK) {
        return err->status;
    }
    if (strlen(text) >= size) {
        return agglo_fail(err, AGGLO_E_DATA, "%s: %zu characters, at most %zu", key, strlen(text), size - 1);
    }
    memset(out, 0, size);
    memcpy(out, text, strlen(text));
    return AGGLO_OK;
}

static agglo_status get_u64(const json_t *object, const char *key, int64_t max, uint64_t *out, agglo_err *err)
{
    int64_t value = 0;
    agglo_status status = agglo_json_get_int(object, key, 0, max, &value, err);

    *out = (uint64_t)value;
    return status;
}

static agglo_status get_u32(const json_t *object, const char *key, uint32_t *out, agglo_err *err)
{
    uint64_t value;
    agglo_status status = get_u64(object, key, UINT32_MAX, &value, err);

    *out = (uint32_t)value;
    return status;
}

/* Every sample left out has its place and a reason; its key is null where it was no UTF-8. */
static agglo_status check_skipped(const json_t *skipped, agglo_err *err)
{
    for (size_t i = 0; i < json_array_size(skipped); i++) {
        const json_t *entry = json_array_get(skipped, i), *key = json_object_get(entry, "key");
        const char *reason;
        uint32_t ordinal;

        if (get_u32(entry, "ordinal", &ordinal, err) != AGGLO_OK ||
            agglo_json_get_string(entry, "reason", &reason, err) != AGGLO_OK) {
            return agglo_at(err, "skipped[%zu]", i);
        }
        if (!json_is_null(key) && !json_is_string(key)) {
            agglo_fail(err, AGGLO_E_DATA, "key 'key' is neither a string nor null");
            return agglo_at(err, "skipped[%zu]", i);
        }
    }
    return AGGLO_OK;
}

/* Counts that no unit can have are refused, so that whoever sizes something by them is safe. */
static agglo_status check_counts(const agglo_manifest *m, agglo_err *err)
{
    const uint64_t n_views = (uint64_t)(m->id.view_last - m->id.view_first) + 1;

    if (m->first_ordinal > m->last_ordinal ||
        m->n_records > ((uint64_t)m->last_ordinal - m->first_ordinal + 1) * n_views) {
        return agglo_fail(err, AGGLO_E_DATA,
                          "samples %" PRIu32 " to %" PRIu32 " in %" PRIu64 " views cannot have %" PRIu64 " records",
                          m->first_ordinal, m->last_ordinal, n_views, m->n_records);
    }
    if (m->n_records == 0 ? m->payload_bytes != 0 : m->payload_bytes > m->file_bytes) {
        return agglo_fail(err, AGGLO_E_DATA,
                          "%" PRIu64 " records of %" PRIu64 " bytes cannot stand in a file of %" PRIu64, m->n_records,
                          m->payload_bytes, m->file_bytes);
    }
    return AGGLO_OK;
}

static agglo_status parse_members(const json_t *root, agglo_manifest *out, agglo_err *err)
{
    const json_t *provenance, *skipped;
    uint64_t format = 0, first = 0, last = 0;

    if (get_u64(root, "format", INT32_MAX, &format, err) != AGGLO_OK) {
        return err->status;
    }
    if (format != MANIFEST_FORMAT) {
        return agglo_fail(err, AGGLO_E_UNSUPPORTED, "format %" PRIu64 ", this build reads %d", format, MANIFEST_FORMAT);
    }
    if (get_text(root, "teacher", out->id.teacher, sizeof out->id.teacher, err) != AGGLO_OK ||
        get_text(root, "group", out->id.group, sizeof out->id.group, err) != AGGLO_OK ||
        get_u32(root, "shard", &out->id.shard, err) != AGGLO_OK ||
        get_u64(root, "view_first", UINT8_MAX, &first, err) != AGGLO_OK ||
        get_u64(root, "view_last", UINT8_MAX, &last, err) != AGGLO_OK ||
        agglo_json_get_object(root, "provenance", &provenance, err) != AGGLO_OK) {
        return err->status;
    }
    out->id.view_first = (int)first;
    out->id.view_last = (int)last;
    if (agglo_unit_id_check(&out->id, err) != AGGLO_OK) {
        return err->status = AGGLO_E_DATA;
    }
    for (size_t i = 0; i < AGGLO_COUNT(fields); i++) {
        if (get_text(provenance, fields[i].name, (char *)&out->provenance + fields[i].offset, fields[i].size, err) !=
            AGGLO_OK) {
            return err->status;
        }
    }
    if (get_u64(root, "records", INT64_MAX, &out->n_records, err) != AGGLO_OK ||
        get_u32(root, "first_ordinal", &out->first_ordinal, err) != AGGLO_OK ||
        get_u32(root, "last_ordinal", &out->last_ordinal, err) != AGGLO_OK ||
        agglo_json_get_array(root, "skipped", &skipped, err) != AGGLO_OK ||
        get_u64(root, "payload_bytes", INT64_MAX, &out->payload_bytes, err) != AGGLO_OK ||
        get_u64(root, "file_bytes", INT64_MAX, &out->file_bytes, err) != AGGLO_OK ||
        agglo_json_get_hex(root, "file_xxh3_128", out->file_hash.bytes, 16, err) != AGGLO_OK) {
        return err->status;
    }
    out->n_skipped = (uint32_t)json_array_size(skipped);
    return check_skipped(skipped, err) == AGGLO_OK ? check_counts(out, err) : err->status;
}

agglo_status agglo_manifest_parse(const char *text, size_t n_bytes, agglo_manifest *out, agglo_err *err)
{
    char line[CHECKSUM_BYTES + 1];
    json_t *root = NULL;
    agglo_status status;

    memset(out, 0, sizeof *out);
    if (n_bytes < CHECKSUM_BYTES) {
        return agglo_fail(err, AGGLO_E_DATA, "%zu bytes are too few for a manifest", n_bytes);
    }
    snprintf(line, sizeof line, CHECKSUM_LINE, agglo_xxh3_64(text, n_bytes - CHECKSUM_BYTES));
    if (memcmp(line, text + n_bytes - CHECKSUM_BYTES, CHECKSUM_BYTES) != 0) {
        return agglo_fail(err, AGGLO_E_DATA, "its checksum does not fit it");
    }
    status = agglo_json_parse(text, n_bytes, &root, err);
    if (status == AGGLO_OK) {
        status = parse_members(root, out, err);
        json_decref(root);
    }
    return status;
}

agglo_status agglo_manifest_read(const char *cache, const agglo_unit_id *id, agglo_manifest *out, agglo_err *err)
{
    char *path = NULL, *text = NULL;
    size_t n_bytes = 0;

    memset(out, 0, sizeof *out);
    if (agglo_unit_id_check(id, err) != AGGLO_OK || (path = agglo_unit_path(cache, id, ".json", err)) == NULL ||
        agglo_file_read(path, AGGLO_MANIFEST_MAX_BYTES, &text, &n_bytes, err) != AGGLO_OK) {
        goto fail;
    }
    if (agglo_manifest_parse(text, n_bytes, out, err) != AGGLO_OK) {
        agglo_at(err, "%s", path);
        goto fail;
    }
    if (strcmp(out->id.teacher, id->teacher) != 0 || strcmp(out->id.group, id->group) != 0 ||
        out->id.shard != id->shard || out->id.view_first != id->view_first || out->id.view_last != id->view_last) {
        agglo_fail(err, AGGLO_E_MISMATCH, "it says of itself %s/%s-%06" PRIu32 "-v%d-%d", out->id.teacher,
                   out->id.group, out->id.shard, out->id.view_first, out->id.view_last);
        agglo_at(err, "%s", path);
        goto fail;
    }
    agglo_free(text);
    agglo_free(path);
    return AGGLO_OK;
fail:
    agglo_free(text);
    agglo_free(path);
    return agglo_doing(err, "cannot read manifest");
}
