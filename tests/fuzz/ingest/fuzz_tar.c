/* Source tars: the scan never names bytes that are not there, whatever the headers say. */
#include <stdio.h>
#include <unistd.h>

#include "ingest/sample.h"
#include "ingest/source.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static agglo_status visit(void *context, const agglo_source_member *member, agglo_err *err)
{
    const agglo_source *source = context;

    (void)err;
    AGGLO_ASSERT(member->cut ||
                 (member->offset <= source->n_plain && member->n_bytes <= source->n_plain - member->offset));
    return AGGLO_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    FILE *file = tmpfile();
    agglo_source source = {.fd = -1, .n_bytes = size, .n_plain = size};
    const char *reason;
    char detail[256];
    agglo_err err = {0};

    if (file != NULL && fwrite(data, 1, size, file) == size && fflush(file) == 0) {
        source.fd = dup(fileno(file));
        if (source.fd >= 0 && agglo_source_unpack(&source, "/tmp", &err) == AGGLO_OK) {
            agglo_source_scan(&source, visit, &source, &reason, detail, &err);
        }
        agglo_source_close(&source);
    }
    if (file != NULL) {
        fclose(file);
    }
    return 0;
}
