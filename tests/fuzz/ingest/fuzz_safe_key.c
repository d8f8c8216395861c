/* Any bytes as a key: what comes out is a harmless relative path. */
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/bytes.h"
#include "ingest/safe_key.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_part(const char *part, size_t n)
{
    AGGLO_ASSERT(n >= 1 && n <= 160 && part[0] != '.');
    AGGLO_ASSERT(n <= 4 || memcmp(part + n - 4, ".npy", 4) != 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char out[AGGLO_SAFE_KEY_BYTES], again[AGGLO_SAFE_KEY_BYTES];
    agglo_err err = {0};
    char *key = agglo_alloc(size + 1, 1, &err);

    if (key == NULL) {
        return 0;
    }
    memcpy(key, data, size); /* a NUL within ends it */
    agglo_safe_key(key, out, sizeof out);
    AGGLO_ASSERT(strlen(out) <= 1000 && strcmp(out, "embed.json") != 0 && strncmp(out, "embed.json/", 11) != 0);
    for (const uint8_t *p = (const uint8_t *)out; *p != '\0';) {
        int n = agglo_utf8_length(p);

        AGGLO_ASSERT(n >= 1 && *p >= 0x20 && *p != 0x7f && *p != '\\');
        p += n;
    }
    for (const char *p = out;;) {
        size_t n = strcspn(p, "/");

        check_part(p, n);
        if (p[n] == '\0') {
            break;
        }
        p += n + 1;
    }
    agglo_safe_key(key, again, sizeof again);
    AGGLO_ASSERT(strlen(out) > 800 || strcmp(out, again) == 0);
    agglo_free(key);
    return 0;
}
