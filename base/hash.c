/* xxh3 by xxHash, sha256 by libcrypto; digests in canonical byte order. */
#include "base/hash.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/alloc.h"

struct agglo_hasher {
    agglo_hash_kind kind;
    XXH3_state_t *xxh;
    EVP_MD_CTX *sha;
};

static agglo_hash128 canonical(XXH128_hash_t hash)
{
    XXH128_canonical_t digest;
    agglo_hash128 out;

    XXH128_canonicalFromHash(&digest, hash);
    memcpy(out.bytes, digest.digest, sizeof out.bytes);
    return out;
}

uint64_t agglo_xxh3_64(const void *data, size_t n_bytes)
{
    return XXH3_64bits(data, n_bytes);
}

agglo_hash128 agglo_xxh3_128(const void *data, size_t n_bytes)
{
    return canonical(XXH3_128bits(data, n_bytes));
}

agglo_status agglo_sha256_of(const void *data, size_t n_bytes, agglo_sha256 *out, agglo_err *err)
{
    if (EVP_Digest(data, n_bytes, out->bytes, NULL, EVP_sha256(), NULL) != 1) {
        return agglo_fail(err, AGGLO_E_DEVICE, "libcrypto cannot compute sha256");
    }
    return AGGLO_OK;
}

agglo_status agglo_hasher_new(agglo_hasher **out, agglo_hash_kind kind, agglo_err *err)
{
    agglo_hasher *hasher = agglo_alloc(1, sizeof *hasher, err);

    *out = NULL;
    if (hasher == NULL) {
        return err->status;
    }
    hasher->kind = kind;
    if (kind == AGGLO_HASH_XXH3_128) {
        hasher->xxh = XXH3_createState();
        if (hasher->xxh != NULL) {
            XXH3_128bits_reset(hasher->xxh);
        }
    } else {
        hasher->sha = EVP_MD_CTX_new();
        if (hasher->sha != NULL && EVP_DigestInit_ex(hasher->sha, EVP_sha256(), NULL) != 1) {
            agglo_hasher_free(hasher);
            return agglo_fail(err, AGGLO_E_DEVICE, "libcrypto cannot compute sha256");
        }
    }
    if (hasher->xxh == NULL && hasher->sha == NULL) {
        agglo_hasher_free(hasher);
        return agglo_fail(err, AGGLO_E_MEMORY, "out of memory asking for a hash state");
    }
    *out = hasher;
    return AGGLO_OK;
}

agglo_status agglo_hasher_add(agglo_hasher *hasher, const void *data, size_t n_bytes, agglo_err *err)
{
    if (hasher->kind == AGGLO_HASH_XXH3_128) {
        XXH3_128bits_update(hasher->xxh, data, n_bytes);
    } else if (EVP_DigestUpdate(hasher->sha, data, n_bytes) != 1) {
        return agglo_fail(err, AGGLO_E_DEVICE, "libcrypto cannot compute sha256");
    }
    return AGGLO_OK;
}

agglo_status agglo_hasher_end(agglo_hasher *hasher, uint8_t *digest, agglo_err *err)
{
    if (hasher->kind == AGGLO_HASH_XXH3_128) {
        agglo_hash128 hash = canonical(XXH3_128bits_digest(hasher->xxh));

        memcpy(digest, hash.bytes, sizeof hash.bytes);
    } else if (EVP_DigestFinal_ex(hasher->sha, digest, NULL) != 1) {
        return agglo_fail(err, AGGLO_E_DEVICE, "libcrypto cannot compute sha256");
    }
    return AGGLO_OK;
}

agglo_hash128 agglo_hasher_so_far(const agglo_hasher *hasher)
{
    AGGLO_ASSERT(hasher->kind == AGGLO_HASH_XXH3_128);
    return canonical(XXH3_128bits_digest(hasher->xxh));
}

void agglo_hasher_free(agglo_hasher *hasher)
{
    if (hasher != NULL) {
        XXH3_freeState(hasher->xxh);
        EVP_MD_CTX_free(hasher->sha);
        agglo_free(hasher);
    }
}

static agglo_status hash_file(const char *path, agglo_hash_kind kind, uint8_t *digest, uint64_t *n_bytes,
                              agglo_err *err)
{
    enum { CHUNK = 1 << 20 };
    agglo_hasher *hasher = NULL;
    uint8_t *buffer = NULL;
    uint64_t total = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0) {
        agglo_fail(err, errno == ENOENT ? AGGLO_E_NOT_FOUND : AGGLO_E_IO, "%s", strerror(errno));
        goto done;
    }
    buffer = agglo_alloc(CHUNK, 1, err);
    if (buffer == NULL || agglo_hasher_new(&hasher, kind, err) != AGGLO_OK) {
        goto done;
    }
    for (;;) {
        ssize_t n = read(fd, buffer, CHUNK);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0) {
            agglo_fail(err, AGGLO_E_IO, "%s", strerror(errno));
            goto done;
        }
        if (n == 0) {
            break;
        }
        if (agglo_hasher_add(hasher, buffer, (size_t)n, err) != AGGLO_OK) {
            goto done;
        }
        total += (uint64_t)n;
    }
    agglo_hasher_end(hasher, digest, err);
    if (n_bytes != NULL) {
        *n_bytes = total;
    }
done:
    agglo_hasher_free(hasher);
    agglo_free(buffer);
    if (fd >= 0) {
        close(fd);
    }
    if (err->status != AGGLO_OK) {
        agglo_at(err, "%s", path);
        agglo_doing(err, "cannot hash file");
    }
    return err->status;
}

agglo_status agglo_file_xxh3_128(const char *path, agglo_hash128 *out, uint64_t *n_bytes, agglo_err *err)
{
    return hash_file(path, AGGLO_HASH_XXH3_128, out->bytes, n_bytes, err);
}

agglo_status agglo_file_sha256(const char *path, agglo_sha256 *out, uint64_t *n_bytes, agglo_err *err)
{
    return hash_file(path, AGGLO_HASH_SHA256, out->bytes, n_bytes, err);
}

char *agglo_hex(const uint8_t *bytes, size_t n, char *out)
{
    static const char digits[] = "0123456789abcdef";

    for (size_t i = 0; i < n; i++) {
        out[2 * i] = digits[bytes[i] >> 4];
        out[2 * i + 1] = digits[bytes[i] & 15];
    }
    out[2 * n] = '\0';
    return out;
}

static int nibble(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

bool agglo_unhex(const char *text, uint8_t *out, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        int high = nibble(text[2 * i]), low = high >= 0 ? nibble(text[2 * i + 1]) : -1;

        if (low < 0) {
            return false;
        }
        out[i] = (uint8_t)(high << 4 | low);
    }
    return text[2 * n] == '\0';
}
