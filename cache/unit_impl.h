/* What the writer, the readers and the check of units share: names, and the manifest as text. */
#ifndef AGGLO_CACHE_UNIT_IMPL_H
#define AGGLO_CACHE_UNIT_IMPL_H

#include "base/json.h"
#include "cache/unit.h"

#ifdef __cplusplus
extern "C" {
#endif

#define AGGLO_MANIFEST_MAX_BYTES ((size_t)64 << 20)

/* AGGLO_E_CONFIG when a name has other characters than its kind may have, or the views are no range in 0..255. */
agglo_status agglo_unit_id_check(const agglo_unit_id *id, agglo_err *err);

/* CACHE/TEACHER/GROUP-000123-v0-3SUFFIX in a new string (agglo_free). */
char *agglo_unit_path(const char *cache, const agglo_unit_id *id, const char *suffix, agglo_err *err);

/* Parse "GROUP-000123-v0-3.json", and nothing that this build would not write; `teacher` is set by the caller. */
bool agglo_unit_parse_name(const char *base_name, agglo_unit_id *out);

/* The manifest's bytes in a new string; skipped: array of {ordinal, key, reason}, borrowed. */
agglo_status agglo_manifest_print(const agglo_manifest *manifest, const json_t *skipped, char **out, size_t *n_bytes,
                                  agglo_err *err);

/* Validate every byte. AGGLO_E_DATA. */
agglo_status agglo_manifest_parse(const char *text, size_t n_bytes, agglo_manifest *out, agglo_err *err);

#ifdef __cplusplus
}
#endif
#endif
