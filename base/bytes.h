/* Bytes: explicit little-endian (and big-endian) loads and stores that never rely on alignment, and a borrowed span. */
#ifndef AGGLO_BASE_BYTES_H
#define AGGLO_BASE_BYTES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* A borrowed run of bytes; who lent it says for how long. */
typedef struct agglo_bytes {
    const uint8_t *data;
    size_t size;
} agglo_bytes;

static inline uint16_t agglo_le16(const void *p)
{
    const uint8_t *b = (const uint8_t *)p;
    return (uint16_t)(b[0] | b[1] << 8);
}

static inline uint32_t agglo_le32(const void *p)
{
    const uint8_t *b = (const uint8_t *)p;
    return (uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
}

static inline uint64_t agglo_le64(const void *p)
{
    const uint8_t *b = (const uint8_t *)p;
    return (uint64_t)agglo_le32(b) | (uint64_t)agglo_le32(b + 4) << 32;
}

static inline uint32_t agglo_be32(const void *p)
{
    const uint8_t *b = (const uint8_t *)p;
    return (uint32_t)b[0] << 24 | (uint32_t)b[1] << 16 | (uint32_t)b[2] << 8 | (uint32_t)b[3];
}

static inline void agglo_put_le16(void *p, uint16_t v)
{
    uint8_t *b = (uint8_t *)p;
    b[0] = (uint8_t)v;
    b[1] = (uint8_t)(v >> 8);
}

static inline void agglo_put_le32(void *p, uint32_t v)
{
    agglo_put_le16(p, (uint16_t)v);
    agglo_put_le16((uint8_t *)p + 2, (uint16_t)(v >> 16));
}

static inline void agglo_put_le64(void *p, uint64_t v)
{
    agglo_put_le32(p, (uint32_t)v);
    agglo_put_le32((uint8_t *)p + 4, (uint32_t)(v >> 32));
}

static inline void agglo_put_be32(void *p, uint32_t v)
{
    uint8_t *b = (uint8_t *)p;
    b[0] = (uint8_t)(v >> 24);
    b[1] = (uint8_t)(v >> 16);
    b[2] = (uint8_t)(v >> 8);
    b[3] = (uint8_t)v;
}

/* The length of the UTF-8 sequence at p (NUL-terminated), 0 when it is none: cut, overlong, a surrogate, too large. */
static inline int agglo_utf8_length(const uint8_t *p)
{
    int n = p[0] < 0x80 ? 1 : p[0] < 0xc2 ? 0 : p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : p[0] < 0xf5 ? 4 : 0;

    for (int i = 1; i < n; i++) {
        if ((p[i] & 0xc0) != 0x80) {
            return 0;
        }
    }
    if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f) || (p[0] == 0xf0 && p[1] < 0x90) ||
        (p[0] == 0xf4 && p[1] > 0x8f)) {
        return 0;
    }
    return n;
}

#endif
