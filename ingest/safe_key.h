/* Keys of foreign pictures as names of our files and tensors. */
#ifndef AGGLO_INGEST_SAFE_KEY_H
#define AGGLO_INGEST_SAFE_KEY_H

#include "base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

#define AGGLO_SAFE_KEY_BYTES 1100

/* A key made harmless, into out[n], n >= AGGLO_SAFE_KEY_BYTES: UTF-8, at most 1000 bytes, a relative path of parts that are never empty, never
 * longer than 160 bytes, do not begin with a dot (so neither ".", ".." nor hidden) and do not end in ".npy" and the first of which is not "embed.json" (what stands
 * beside them), without control characters and
 * backslashes. What does not fit becomes '_'; what is too long is cut and gets a hash of what it was. A harmless key of at most 800 bytes
 * stays as it is. */
void agglo_safe_key(const char *key, char *out, size_t n);

#ifdef __cplusplus
}
#endif
#endif
