/* Hashes: xxh3 for checksums and draws, sha256 for identity. Digests are byte arrays in canonical (big-endian) order. */
#ifndef AGGLO_BASE_HASH_H
#define AGGLO_BASE_HASH_H

#include "base/bytes.h"
#include "base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct agglo_hash128 {
    uint8_t bytes[16];
} agglo_hash128;

typedef struct agglo_sha256 {
    uint8_t bytes[32];
} agglo_sha256;

/* One shot over a span; xxh3 with seed 0. */
uint64_t agglo_xxh3_64(const void *data, size_t n_bytes);
agglo_hash128 agglo_xxh3_128(const void *data, size_t n_bytes);

/* sha256 of a span; AGGLO_E_DEVICE only if libcrypto fails. */
agglo_status agglo_sha256_of(const void *data, size_t n_bytes, agglo_sha256 *out, agglo_err *err);

/* Streaming: new, add..., end (which may be called once; then free). One thread each. */
typedef struct agglo_hasher agglo_hasher;

typedef enum agglo_hash_kind { AGGLO_HASH_XXH3_128, AGGLO_HASH_SHA256 } agglo_hash_kind;

agglo_status agglo_hasher_new(agglo_hasher **out, agglo_hash_kind kind, agglo_err *err);
agglo_status agglo_hasher_add(agglo_hasher *hasher, const void *data, size_t n_bytes, agglo_err *err);
/* Writes 16 or 32 bytes, by kind. */
agglo_status agglo_hasher_end(agglo_hasher *hasher, uint8_t *digest, agglo_err *err);
/* The digest of what was added so far, xxh3-128 only; adding goes on. */
agglo_hash128 agglo_hasher_so_far(const agglo_hasher *hasher);
void agglo_hasher_free(agglo_hasher *hasher);

/* Hash a whole file. *n_bytes (may be NULL) is its size. */
agglo_status agglo_file_xxh3_128(const char *path, agglo_hash128 *out, uint64_t *n_bytes, agglo_err *err);
agglo_status agglo_file_sha256(const char *path, agglo_sha256 *out, uint64_t *n_bytes, agglo_err *err);

/* Lower-case hex of n bytes into out[2n+1]. Returns out. */
char *agglo_hex(const uint8_t *bytes, size_t n, char *out);

/* Parse exactly 2n hex digits (either case) of a NUL-terminated text; false, out undefined, otherwise. */
bool agglo_unhex(const char *text, uint8_t *out, size_t n);

#ifdef __cplusplus
}
#endif
#endif
