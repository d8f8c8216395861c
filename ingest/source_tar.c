/* Tars through libarchive: its reader walks the headers. A member's data stand where the reader is once it has taken in the header
 * (archive_filter_bytes of the innermost filter), so nothing is read twice. What libarchive passes over in silence is looked at here: types
 * that no standard knows (it takes them for plain files), global PAX headers that name a file, bytes behind the end.
 */
#include "ingest/source_impl.h"

#include <errno.h>
#include <stdio.h>
#include <unistd.h>

#include <archive.h>
#include <archive_entry.h>

#include "base/fs.h"

enum {
    SCAN_BLOCK = 16384, /* small, since pictures are stepped over */
    TAR_BLOCK = 512
};

static void end_scan(const char **reason, char detail[256], const char *code, const char *why)
{
    *reason = code;
    snprintf(detail, 256, "%s", why);
}

static uint64_t round_up(uint64_t n)
{
    return (n + TAR_BLOCK - 1) & ~(uint64_t)(TAR_BLOCK - 1);
}

static uint64_t octal(const uint8_t *p, int n)
{
    uint64_t value = 0;

    for (int k = 0; k < n && p[k] >= '0' && p[k] <= '7'; k++) {
        value = value * 8 + (uint64_t)(p[k] - '0');
    }
    return value;
}

/* True when the tar ends before the headers that start at `at` do (a PAX or GNU name header, its body, the member's own). */
static bool ends_in_headers(const agglo_source *source, uint64_t at)
{
    agglo_err ignored = {0};
    uint8_t header[TAR_BLOCK];

    for (int i = 0; i < 4; i++) {
        if (at > source->n_plain || source->n_plain - at < TAR_BLOCK) {
            return true;
        }
        if (agglo_source_read(source, at, header, sizeof header, &ignored) != AGGLO_OK || header[156] == 0 ||
            strchr("xgLK", header[156]) == NULL) {
            return false;
        }
        at += TAR_BLOCK + round_up(octal(header + 124, 12));
    }
    return false;
}

/* One record "LEN KEY=VALUE\n" after the other: true when one of them is `path` or `size`. */
static bool names_a_file(const uint8_t *body, size_t n)
{
    for (size_t at = 0; at < n;) {
        size_t length = 0, k = at;

        while (k < n && body[k] >= '0' && body[k] <= '9' && length < (size_t)1 << 24) {
            length = length * 10 + (size_t)(body[k++] - '0');
        }
        if (k >= n || body[k] != ' ' || length == 0 || length > n - at) {
            return false;
        }
        if (n - k > 6 && (memcmp(body + k, " path=", 6) == 0 || memcmp(body + k, " size=", 6) == 0)) {
            return true;
        }
        at += length;
    }
    return false;
}

/* Look at the headers of one member, which stand in [from, data): *type is that of its own, the last one. False when a global PAX header
 * among them names a file: what follows could be anything. */
static bool check_headers(const agglo_source *source, uint64_t from, uint64_t data, uint8_t *type, agglo_err *err)
{
    enum { MAX_BODY = 1 << 16 };
    uint8_t header[TAR_BLOCK], body[MAX_BODY];

    *type = '0';
    if (data < TAR_BLOCK || agglo_source_read(source, data - TAR_BLOCK, header, sizeof header, err) != AGGLO_OK) {
        return true;
    }
    *type = header[156];
    for (uint64_t at = from; at + TAR_BLOCK < data;) {
        uint64_t n_body;

        if (agglo_source_read(source, at, header, sizeof header, err) != AGGLO_OK) {
            return true;
        }
        n_body = octal(header + 124, 12);
        if (header[156] == 'g' && n_body > 0) {
            size_t n = n_body < MAX_BODY ? (size_t)n_body : MAX_BODY;

            if (at + TAR_BLOCK + n > source->n_plain ||
                agglo_source_read(source, at + TAR_BLOCK, body, n, err) != AGGLO_OK) {
                return true;
            }
            if (n < n_body || names_a_file(body, n)) {
                return false;
            }
        }
        at += TAR_BLOCK + (n_body < source->n_plain ? round_up(n_body) : source->n_plain);
    }
    return true;
}

/* What a member is that is no plain file; NULL: it is one. */
static const char *unsupported_type(struct archive_entry *entry, uint8_t type)
{
    if (archive_entry_hardlink(entry) != NULL || archive_entry_filetype(entry) == AE_IFLNK) {
        return "a link";
    }
    if (archive_entry_sparse_count(entry) > 0 || type == 'S') {
        return "a sparse file";
    }
    if (archive_entry_filetype(entry) != AE_IFREG) {
        return "a device or a pipe";
    }
    return type == '0' || type == '7' || type == 0 ? NULL : "a type of member that is not known";
}

/* Bytes that are not zero behind the end of the tar, as a second tar would be. */
static bool has_trailing_data(const agglo_source *source, uint64_t at)
{
    agglo_err ignored = {0};
    uint8_t block[SCAN_BLOCK];

    for (uint64_t end = source->n_plain; at < end;) {
        size_t n = end - at < sizeof block ? (size_t)(end - at) : sizeof block;

        if (agglo_source_read(source, at, block, n, &ignored) != AGGLO_OK) {
            return false;
        }
        for (size_t i = 0; i < n; i++) {
            if (block[i] != 0) {
                return true;
            }
        }
        at += n;
    }
    return false;
}

agglo_status agglo_tar_scan(agglo_source *source, agglo_source_visit visit, void *context, const char **reason,
                            char detail[256], agglo_err *err)
{
    struct archive *archive = archive_read_new();
    struct archive_entry *entry;
    bool ended = false;

    if (archive == NULL) {
        return agglo_fail(err, AGGLO_E_MEMORY, "libarchive is out of memory");
    }
    archive_read_support_format_tar(archive);
    if (lseek(source->fd, 0, SEEK_SET) < 0) {
        archive_read_free(archive);
        return agglo_fail(err, AGGLO_E_IO, "%s", strerror(errno));
    }
    if (archive_read_open_fd(archive, source->fd, SCAN_BLOCK) != ARCHIVE_OK) {
        end_scan(reason, detail, "shard_corrupt", archive_error_string(archive));
        ended = true;
    }
    while (!ended) {
        agglo_source_member member = {0};
        int code = archive_read_next_header(archive, &entry);
        agglo_err unread = {0};
        la_int64_t at, header = archive_read_header_position(archive); /* with what PAX and GNU put in front of it */
        uint8_t type;

        if (code == ARCHIVE_EOF) {
            at = archive_filter_bytes(archive, 0); /* behind the two blocks of zeros that end it */
            if (at >= 0 && has_trailing_data(source, (uint64_t)at)) {
                end_scan(reason, detail, "trailing_data", "bytes behind the end of the tar are not read");
            }
            break;
        }
        if (code != ARCHIVE_OK && code != ARCHIVE_WARN) {
            const char *why = archive_error_string(archive);
            bool truncated =
                (why != NULL && strncmp(why, "Truncated", 9) == 0) || ends_in_headers(source, (uint64_t)header);

            end_scan(reason, detail, truncated ? "shard_truncated" : "shard_corrupt",
                     why != NULL ? why : (truncated ? "the tar ends within a header" : "damaged header"));
            break;
        }
        at = archive_filter_bytes(archive, 0);
        member.name = archive_entry_pathname(entry);
        if (member.name == NULL) { /* a PAX name that the locale cannot show */
            member.name = archive_entry_pathname_utf8(entry);
        }
        if (member.name == NULL || at < 0 || archive_entry_size(entry) < 0) {
            end_scan(reason, detail, "shard_corrupt", "a member without name or size");
            break;
        }
        if (!check_headers(source, (uint64_t)header, (uint64_t)at, &type, &unread)) {
            end_scan(reason, detail, "shard_corrupt", "a global PAX header names a file");
            break;
        }
        member.offset = (uint64_t)at;
        member.n_bytes = (uint64_t)archive_entry_size(entry);
        member.unsupported = unsupported_type(entry, type);
        member.directory = archive_entry_filetype(entry) == AE_IFDIR;
        if (member.directory && member.n_bytes > 0) { /* a name that ends in a slash, or a dump of a folder */
            member.directory = false;
            member.unsupported = "a folder with data";
        }
        /* what is no plain file may say another size than it has in the tar */
        member.cut = member.unsupported == NULL && !member.directory &&
                     (member.offset > source->n_plain || member.n_bytes > source->n_plain - member.offset);
        if (visit(context, &member, err) != AGGLO_OK) {
            break;
        }
        if (member.cut) {
            snprintf(detail, 256, "the tar ends within %.200s", member.name);
            *reason = "shard_truncated";
            break;
        }
    }
    archive_read_free(archive);
    if (err->status == AGGLO_OK && source->damage[0] != 0 &&
        (*reason == NULL || strcmp(*reason, "trailing_data") == 0)) {
        end_scan(reason, detail,
                 strcmp(source->damage, AGGLO_SOURCE_TRAILING) == 0 ? "trailing_data" : "shard_truncated",
                 source->damage);
    }
    return err->status;
}
