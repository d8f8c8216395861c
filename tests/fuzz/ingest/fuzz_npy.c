/* .npy headers, and lists of uids in either form. What a header says of its data adds up; a list that is taken holds exactly the uids that a
 * plain reading of its bytes finds.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/hash.h"
#include "base/npy.h"
#include "ingest/select.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_header(const agglo_npy_header *h, size_t size)
{
    uint64_t n = 1;
    size_t n_item = 0;

    AGGLO_ASSERT(h->n_header_bytes >= AGGLO_NPY_PREFIX && h->n_header_bytes <= size);
    AGGLO_ASSERT(h->rank >= 0 && h->rank <= AGGLO_NPY_MAX_RANK);
    AGGLO_ASSERT(h->n_fields >= 0 && h->n_fields <= AGGLO_NPY_MAX_FIELDS);
    AGGLO_ASSERT((h->n_fields > 0) == (h->dtype == AGGLO_DTYPE_OTHER));
    for (int k = 0; k < h->n_fields; k++) {
        n_item += agglo_dtype_size(h->fields[k]);
    }
    AGGLO_ASSERT(h->item_bytes == (h->n_fields > 0 ? n_item : agglo_dtype_size(h->dtype)) && h->item_bytes > 0);
    for (int i = 0; i < h->rank; i++) {
        AGGLO_ASSERT(h->shape[i] >= 0);
        n = h->shape[i] == 0 ? 0 : n;
    }
    for (int i = 0; n > 0 && i < h->rank; i++) {
        AGGLO_ASSERT((uint64_t)h->shape[i] <= INT64_MAX / n);
        n *= (uint64_t)h->shape[i];
    }
    AGGLO_ASSERT(h->n_items == n && n <= INT64_MAX / h->item_bytes && h->n_data_bytes == n * h->item_bytes);
}

/* As many lines as hold a uid must be in the set. */
static void check_text(const agglo_uid_set *set, const uint8_t *data, size_t size)
{
    uint64_t n = 0;
    size_t from = 0;

    for (size_t i = 0; i <= size; i++) {
        if (i == size || data[i] == '\n') {
            size_t n_line = i - from;
            char text[33] = "";
            uint8_t uid[16];

            n_line -= n_line > 0 && data[i - 1] == '\r';
            if (n_line == 32) {
                memcpy(text, data + from, 32);
                if (agglo_unhex(text, uid, 16)) {
                    AGGLO_ASSERT(agglo_uid_set_has(set, uid));
                    n++;
                }
            }
            from = i + 1;
        }
    }
    AGGLO_ASSERT(agglo_uid_set_count(set) <= n && (n == 0 || agglo_uid_set_count(set) > 0));
}

static void check_pairs(const agglo_uid_set *set, const uint8_t *data, size_t size)
{
    agglo_npy_header header;
    agglo_err err = {0};

    AGGLO_ASSERT(agglo_npy_parse((agglo_bytes){data, size}, &header, &err) == AGGLO_OK);
    AGGLO_ASSERT(header.n_header_bytes + header.n_data_bytes == size);
    AGGLO_ASSERT(agglo_uid_set_count(set) <= header.n_data_bytes / 16);
    for (size_t at = header.n_header_bytes; at < size; at += 16) {
        char hex[33];
        uint8_t uid[16];

        snprintf(hex, sizeof hex, "%016llx%016llx", (unsigned long long)agglo_le64(data + at),
                 (unsigned long long)agglo_le64(data + at + 8));
        AGGLO_ASSERT(agglo_unhex(hex, uid, 16) && agglo_uid_set_has(set, uid));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int fd = -1;
    agglo_npy_header header;
    agglo_uid_set *set;
    agglo_err err = {0};
    char path[64];

    if (agglo_npy_parse((agglo_bytes){data, size}, &header, &err) == AGGLO_OK) {
        check_header(&header, size);
    } else {
        AGGLO_ASSERT(err.status == AGGLO_E_DATA || err.status == AGGLO_E_UNSUPPORTED);
    }
    fd = fd < 0 ? memfd_create("list", MFD_CLOEXEC) : fd;
    if (fd < 0 || ftruncate(fd, 0) != 0 || pwrite(fd, data, size, 0) != (ssize_t)size) {
        return 0;
    }
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    err = (agglo_err){0};
    if (agglo_select_open(&set, path, &err) == AGGLO_OK) {
        if (agglo_npy_is((agglo_bytes){data, size})) {
            check_pairs(set, data, size);
        } else {
            check_text(set, data, size);
        }
        agglo_uid_set_free(set);
    } else {
        AGGLO_ASSERT(err.status == AGGLO_E_CONFIG && set == NULL);
    }
    return 0;
}
