/* gzip and zstd sources, unpacked into a spool file: members and frames one after the other, checksums compared, skippable frames passed over.
 * What came before damage stays; how an unpacking ended early is noted in source->damage.
 */
#include "ingest/source_impl.h"

#include <stdio.h>
#include <unistd.h>

#include <zlib.h>
#include <zstd.h>

#include "base/fs.h"
#include "base/stop.h"

enum {
    BLOCK = 1 << 18,
    MAX_RATIO = 256,      /* of unpacked to packed bytes, with a GiB free: pictures do not compress, bombs do */
    MAX_WINDOW_LOG = 27,  /* of zstd: 128 MiB of memory */
    GZIP_WINDOW = 15 + 16 /* zlib: the largest window, and a gzip header */
};

typedef struct unpacking {
    agglo_source *source;
    uint64_t at;             /* of the packed bytes: read so far */
    uint8_t *packed, *plain; /* [BLOCK] */
    size_t n_packed, n_used;
    int fd; /* of the spool */
    uint64_t n_plain, limit;
} unpacking;

static void note(unpacking *u, const char *why)
{
    snprintf(u->source->damage, sizeof u->source->damage, "%.120s", why);
}

/* More packed bytes, when the last ones are used up. False: there are none, or they cannot be read. */
static bool fill(unpacking *u, agglo_err *err)
{
    uint64_t left = u->source->n_bytes - u->at;
    agglo_err bad = {0};

    if (u->n_used < u->n_packed) {
        return true;
    }
    u->n_used = 0;
    u->n_packed = left < BLOCK ? (size_t)left : BLOCK;
    if (u->n_packed == 0 || agglo_stop_check(err) != AGGLO_OK) {
        u->n_packed = 0;
        return false;
    }
    if (agglo_fd_read_at(u->source->fd, u->at, u->packed, u->n_packed, &bad) != AGGLO_OK) { /* costs this source only */
        note(u, bad.why);
        u->n_packed = 0;
        return false;
    }
    u->at += u->n_packed;
    return true;
}

/* False: an error, or more than is believed. */
static bool spool(unpacking *u, size_t n, agglo_err *err)
{
    if (agglo_fd_write(u->fd, u->plain, n, err) != AGGLO_OK) {
        agglo_doing(err, "cannot spool a source");
        return false;
    }
    u->n_plain += n;
    if (u->n_plain > u->limit) {
        char why[96];

        snprintf(why, sizeof why, "it unpacks to more than %d times its size", MAX_RATIO);
        note(u, why);
        return false;
    }
    return true;
}

static agglo_status unpack_gzip(unpacking *u, agglo_err *err)
{
    z_stream z = {0};
    bool inside = true, full = false; /* a member is open; the decoder had more to give */
    int code = inflateInit2(&z, GZIP_WINDOW);

    if (code != Z_OK) {
        return agglo_fail(err, AGGLO_E_MEMORY, "zlib is out of memory");
    }
    while (full || fill(u, err)) {
        if (!inside) {
            if (u->packed[u->n_used] != 0x1f) { /* gzip's own rule: zeros and other bytes behind the last member */
                note(u, AGGLO_SOURCE_TRAILING);
                break;
            }
            inflateReset(&z);
            inside = true;
        }
        z.next_in = u->packed + u->n_used;
        z.avail_in = (uInt)(u->n_packed - u->n_used);
        z.next_out = u->plain;
        z.avail_out = BLOCK;
        code = inflate(&z, Z_NO_FLUSH);
        u->n_used = u->n_packed - z.avail_in;
        full = z.avail_out == 0 && code == Z_OK;
        if (!spool(u, BLOCK - z.avail_out, err)) {
            break;
        }
        if (code == Z_STREAM_END) {
            inside = false;
        } else if (code != Z_OK && code != Z_BUF_ERROR) {
            note(u, z.msg != NULL ? z.msg : "damaged gzip data");
            break;
        }
    }
    if (err->status == AGGLO_OK && inside && u->source->damage[0] == 0) {
        note(u, "the gzip data end early");
    }
    inflateEnd(&z);
    return err->status;
}

static agglo_status unpack_zstd(unpacking *u, agglo_err *err)
{
    ZSTD_DStream *z = ZSTD_createDStream();
    size_t left = 0; /* 0: between two frames */

    if (z == NULL || ZSTD_isError(ZSTD_DCtx_setParameter(z, ZSTD_d_windowLogMax, MAX_WINDOW_LOG))) {
        ZSTD_freeDStream(z);
        return agglo_fail(err, AGGLO_E_MEMORY, "libzstd is out of memory");
    }
    while (fill(u, err)) {
        ZSTD_inBuffer in = {u->packed, u->n_packed, u->n_used};
        ZSTD_outBuffer out = {u->plain, BLOCK, 0};
        bool between = left == 0;

        left = ZSTD_decompressStream(z, &out, &in);
        u->n_used = in.pos;
        if (!spool(u, out.pos, err)) {
            break;
        }
        if (ZSTD_isError(left)) {
            note(u, between && u->n_plain > 0 ? AGGLO_SOURCE_TRAILING : ZSTD_getErrorName(left));
            break;
        }
    }
    /* what the decoder holds when the input has ended */
    while (err->status == AGGLO_OK && u->source->damage[0] == 0 && left != 0) {
        ZSTD_inBuffer in = {u->packed, 0, 0};
        ZSTD_outBuffer out = {u->plain, BLOCK, 0};
        size_t before = left;

        left = ZSTD_decompressStream(z, &out, &in);
        if (!spool(u, out.pos, err)) {
            break;
        }
        if (ZSTD_isError(left) || (out.pos == 0 && left == before)) {
            note(u, "the zstd data end early");
        }
    }
    ZSTD_freeDStream(z);
    return err->status;
}

agglo_packing agglo_packing_of(agglo_bytes head)
{
    uint32_t magic = head.size >= 4 ? agglo_le32(head.data) : 0;

    if (head.size >= 2 && head.data[0] == 0x1f && head.data[1] == 0x8b) {
        return AGGLO_PACKED_GZIP;
    }
    /* a frame, or one that decoders pass over (parallel compressors begin with such) */
    return magic == 0xfd2fb528u || (magic & 0xfffffff0u) == 0x184d2a50u ? AGGLO_PACKED_ZSTD : AGGLO_PACKED_NOT;
}

agglo_status agglo_source_unpack(agglo_source *source, const char *spool_dir, agglo_err *err)
{
    unpacking u = {.source = source, .fd = -1, .limit = source->n_bytes * MAX_RATIO + ((uint64_t)1 << 30)};
    uint8_t head[4];
    agglo_err bad = {0};
    agglo_packing packing;

    if (source->folder != NULL || source->n_bytes < sizeof head) {
        return AGGLO_OK;
    }
    if (agglo_fd_read_at(source->fd, 0, head, sizeof head, &bad) != AGGLO_OK) {
        snprintf(source->damage, sizeof source->damage, "%.120s", bad.why);
        source->n_plain = 0;
        return AGGLO_OK;
    }
    packing = agglo_packing_of((agglo_bytes){head, sizeof head});
    if (packing == AGGLO_PACKED_NOT) {
        return AGGLO_OK;
    }
    u.packed = agglo_alloc(BLOCK, 1, err);
    u.plain = u.packed == NULL ? NULL : agglo_alloc(BLOCK, 1, err);
    if (u.plain != NULL) {
        u.fd = agglo_open_spool(spool_dir, err);
    }
    if (u.fd >= 0 && (packing == AGGLO_PACKED_GZIP ? unpack_gzip(&u, err) : unpack_zstd(&u, err)) == AGGLO_OK) {
        close(source->fd);
        source->fd = u.fd;
        source->n_plain = u.n_plain;
    } else if (u.fd >= 0) {
        close(u.fd);
    }
    agglo_free(u.packed);
    agglo_free(u.plain);
    return err->status;
}
