/* Any text as a manifest, with its checksum made right where there is room for one. */
#include <inttypes.h>
#include <stdio.h>

#include "base/alloc.h"
#include "base/hash.h"
#include "cache/unit_impl.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    agglo_err err = {0};
    agglo_manifest manifest;
    char *text = agglo_alloc(size + 64, 1, &err);

    if (text == NULL) {
        return 0;
    }
    memcpy(text, data, size);
    agglo_manifest_parse(text, size, &manifest, &err);
    size += (size_t)snprintf(text + size, 64, "  \"checksum\": \"%016" PRIx64 "\"\n}\n", agglo_xxh3_64(text, size));
    agglo_manifest_parse(text, size, &manifest, &err);
    agglo_free(text);
    return 0;
}
