/* A journal of any bytes: opens to a prefix of whole batches or is refused; what is read twice is the same, and it can be gone on with. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/journal.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct tally {
    uint64_t n, n_bytes, last_end;
} tally;

static agglo_status count(void *context, uint8_t type, agglo_bytes payload, uint64_t end, agglo_err *err)
{
    tally *t = context;

    (void)err;
    t->n++;
    for (size_t i = 0; i < payload.size; i++) { /* every byte can be read */
        t->n_bytes += payload.data[i] + type;
    }
    AGGLO_ASSERT(end >= t->last_end);
    t->last_end = end;
    return AGGLO_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[] = "/tmp/agglo-fuzz-journal-XXXXXX";
    agglo_journal *journal = NULL;
    tally first = {0}, second = {0}, third = {0};
    agglo_err err = {0};
    int fd = mkstemp(path);

    if (fd < 0 || write(fd, data, size) != (ssize_t)size) {
        abort();
    }
    close(fd);
    if (agglo_journal_open(&journal, path, &err) == AGGLO_OK) {
        agglo_status status = agglo_journal_read(journal, count, &first, &err);

        agglo_err_clear(&err);
        if (status == AGGLO_OK) {
            AGGLO_ASSERT(agglo_journal_add(journal, 7, "x", 1, &err) == AGGLO_OK &&
                         agglo_journal_commit(journal, &err) == AGGLO_OK);
            agglo_journal_close(journal);
            AGGLO_ASSERT(agglo_journal_open(&journal, path, &err) == AGGLO_OK);
            AGGLO_ASSERT(agglo_journal_read(journal, count, &second, &err) == AGGLO_OK);
            AGGLO_ASSERT(second.n == first.n + 1 && second.n_bytes == first.n_bytes + 'x' + 7);
            AGGLO_ASSERT(agglo_journal_cut(journal, first.last_end, &err) == AGGLO_OK);
            AGGLO_ASSERT(agglo_journal_read(journal, count, &third, &err) == AGGLO_OK && third.n == first.n);
        }
    }
    agglo_journal_close(journal);
    unlink(path);
    return 0;
}
