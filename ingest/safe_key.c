/* Keys made harmless; see safe_key.h. */
#include "ingest/safe_key.h"

#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/hash.h"

enum { MAX_PART = 160, CUT_PART = 140, MAX_KEY = 1000 };

/* One part of a path, made harmless, at out + used; returns the new length. out has room for MAX_PART more. */
static size_t clean_part(const char *part, size_t n, char *out, size_t used)
{
    size_t begin = used;

    for (size_t i = 0; i < n;) {
        const uint8_t *p = (const uint8_t *)part + i;
        int length = agglo_utf8_length(p); /* the text ends in a NUL, so no sequence reaches behind it */

        if (n >= MAX_PART && used - begin + 4 > CUT_PART) {
            return used + (size_t)snprintf(out + used, 20, "~%016llx", (unsigned long long)agglo_xxh3_64(part, n));
        }
        if (length == 0 || (size_t)length > n - i || *p < 0x20 || *p == 0x7f || *p == '\\' || (i == 0 && *p == '.')) {
            out[used++] = '_';
            i++;
        } else {
            memcpy(out + used, p, (size_t)length);
            used += (size_t)length;
            i += (size_t)length;
        }
    }
    if ((used - begin > 4 && memcmp(out + used - 4, ".npy", 4) == 0) ||
        (begin == 0 && used == 10 && memcmp(out, "embed.json", 10) == 0)) {
        out[used++] = '_';
    }
    return used;
}

void agglo_safe_key(const char *key, char *out, size_t n)
{
    size_t used = 0;

    AGGLO_ASSERT(n >= AGGLO_SAFE_KEY_BYTES);
    for (const char *p = key; *p != '\0';) {
        size_t length = strcspn(p, "/");

        if (length > 0 && !(length == 1 && *p == '.')) {
            if (used + MAX_PART + 40 > MAX_KEY) { /* too long for a path: the rest is a hash */
                used += (size_t)snprintf(out + used, 20, "/~%016llx", (unsigned long long)agglo_xxh3_64(p, strlen(p)));
                break;
            }
            if (used > 0) {
                out[used++] = '/';
            }
            used = clean_part(p, length, out, used);
        }
        p += length + (p[length] == '/');
    }
    if (used == 0) {
        out[used++] = '_';
    }
    out[used] = '\0';
}
