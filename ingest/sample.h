/* From tar members to samples: webdataset's rule for names (spec data.md section 1.1), and the members of one source shard joined by
 * key wherever they stand in it.
 */
#ifndef AGGLO_INGEST_SAMPLE_H
#define AGGLO_INGEST_SAMPLE_H

#include "base/arena.h"
#include "base/bytes.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum agglo_name_kind {
    AGGLO_NAME_MEMBER, /* key and extension */
    AGGLO_NAME_META,   /* __name__ or __name__/...: not data */
    AGGLO_NAME_NO_KEY, /* no dot in its last part, or nothing before it */
} agglo_name_kind;

/* Where `name` parts: the key is its first *n_key bytes, the extension starts one behind (still in the case of the name). */
agglo_name_kind agglo_name_split(const char *name, size_t *n_key);

/* People's files have dots anywhere, and a name parts at the first: in the last part of a path, in place, those in front of the extension
 * become '_' ("a.b.jpg" is "a_b.jpg"). The extension begins at the last dot, but for a picture's mask, "x.seg.png". */
void agglo_name_join_stem(char *path);

/* What may be the picture of a sample, by its extension (either case); its bytes decide what it really is. */
bool agglo_is_image_ext(const char *ext);

typedef struct agglo_member {
    const char *ext;          /* lower case, no dot */
    uint64_t offset, n_bytes; /* of the data in the source */
    uint32_t next;            /* number + 1 of the next member of its sample, 0: last */
} agglo_member;

typedef struct agglo_group {
    const char *key;
    uint32_t first, last; /* members, numbers + 1 */
    uint32_t n_members;
    uint32_t image;  /* number + 1 of the picture, 0: none */
    bool incomplete; /* one of its members is cut off */
} agglo_group;

typedef struct agglo_grouping agglo_grouping;

/* Empty; reset for every source shard, keeping its memory. */
agglo_status agglo_grouping_new(agglo_grouping **out, agglo_err *err);
void agglo_grouping_free(agglo_grouping *grouping);
void agglo_grouping_reset(agglo_grouping *grouping);

/* Add a member in tar order. *reason: NULL, "duplicate_member", "duplicate_key" or "unsupported_member" (no key in its name, or more
 * than 64 members to a sample). cut: its
 * data are not all there. Names that start a __meta__ are passed over in silence. Fails on lack of memory only. */
agglo_status agglo_grouping_add(agglo_grouping *grouping, const char *name, uint64_t offset, uint64_t n_bytes, bool cut,
                                const char **reason, agglo_err *err);

/* Samples in the order of their first members. */
size_t agglo_grouping_count(const agglo_grouping *grouping);
const agglo_group *agglo_grouping_at(const agglo_grouping *grouping, size_t i);
const agglo_member *agglo_grouping_member(const agglo_grouping *grouping, uint32_t number);

#define AGGLO_SIDECAR_JSON_MAX ((size_t)16 << 20)

/* What ingest takes from a json side-car. */
typedef struct agglo_sidecar {
    bool understood; /* false: no JSON object, or larger than the limit */
    bool has_uid, has_sha256;
    uint8_t uid[16];    /* "uid" where it is 32 hex digits */
    uint8_t sha256[32]; /* "sha256" where it is 64: of the bytes as they were downloaded */
} agglo_sidecar;

/* Byte-order marks and NULs within strings are tolerated, as Python's json takes them. */
void agglo_sidecar_read(agglo_bytes json, agglo_sidecar *out);

/* The class number in a .cls side-car (decimal digits, white space behind), -1 when it is none. */
int64_t agglo_sidecar_label(agglo_bytes cls);

#ifdef __cplusplus
}
#endif
#endif
