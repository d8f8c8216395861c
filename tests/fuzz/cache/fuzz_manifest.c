/* Any text as a manifest, with its checksum made right: parsed or refused, and what parses is the same when it is printed and parsed again.
 * The first line is a name of a unit's file too: one that is accepted is the name that the unit would be given. */
#include <inttypes.h>
#include <stdio.h>

#include "base/alloc.h"
#include "base/hash.h"
#include "cache/unit_impl.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void print_and_parse(const agglo_manifest *manifest)
{
    agglo_err err = {0};
    json_t *skipped = json_array();
    agglo_manifest again;
    char *text = NULL;
    size_t n = 0;

    if (agglo_manifest_print(manifest, skipped, &text, &n, &err) == AGGLO_OK) {
        AGGLO_ASSERT(agglo_manifest_parse(text, n, &again, &err) == AGGLO_OK);
        again.n_skipped = manifest->n_skipped; /* the list itself is not kept */
        AGGLO_ASSERT(memcmp(&again, manifest, sizeof again) == 0);
    } else {
        AGGLO_ASSERT(err.status == AGGLO_E_MEMORY);
    }
    agglo_free(text);
    json_decref(skipped);
}

static void parse_name(const char *text, size_t size)
{
    const char *end = memchr(text, '\n', size);
    agglo_err err = {0};
    char *name = agglo_alloc((end != NULL ? (size_t)(end - text) : size) + 1, 1, &err), *path = NULL;
    agglo_unit_id id;

    if (name == NULL) {
        return;
    }
    memcpy(name, text, end != NULL ? (size_t)(end - text) : size);
    if (agglo_unit_parse_name(name, &id)) {
        strcpy(id.teacher, "t");
        AGGLO_ASSERT(agglo_unit_id_check(&id, &err) == AGGLO_OK);
        path = agglo_unit_path("c", &id, ".json", &err);
        AGGLO_ASSERT(path == NULL || strcmp(path + strlen("c/t/"), name) == 0);
    }
    agglo_free(path);
    agglo_free(name);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    agglo_err err = {0};
    agglo_manifest manifest;
    char *text = agglo_alloc(size + 64, 1, &err);

    if (text == NULL) {
        return 0;
    }
    memcpy(text, data, size);
    parse_name(text, size);
    agglo_manifest_parse(text, size, &manifest, &err);
    size += (size_t)snprintf(text + size, 64, "  \"checksum\": \"%016" PRIx64 "\"\n}\n", agglo_xxh3_64(text, size));
    agglo_err_clear(&err);
    if (agglo_manifest_parse(text, size, &manifest, &err) == AGGLO_OK) {
        print_and_parse(&manifest);
    }
    agglo_free(text);
    return 0;
}
