/* Names of members and side-cars: the input is a list of lines, each a member's name; then the whole of it as JSON and as a class. */
#include <stdlib.h>

#include "ingest/sample.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    agglo_bytes bytes = {data, size};
    agglo_grouping *grouping;
    agglo_err err = {0};
    agglo_sidecar sidecar;
    char *text = malloc(size + 1), *line, *rest;

    if (text == NULL || agglo_grouping_new(&grouping, &err) != AGGLO_OK) {
        free(text);
        return 0;
    }
    memcpy(text, data, size);
    text[size] = 0;
    for (line = strtok_r(text, "\n", &rest); line != NULL; line = strtok_r(NULL, "\n", &rest)) {
        const char *reason;

        agglo_grouping_add(grouping, line, 0, 1, false, &reason, &err);
    }
    for (size_t i = 0; i < agglo_grouping_count(grouping); i++) {
        const agglo_group *group = agglo_grouping_at(grouping, i);
        uint32_t n = 0;

        for (uint32_t m = group->first; m != 0; m = agglo_grouping_member(grouping, m)->next) {
            n++;
        }
        AGGLO_ASSERT(n == group->n_members && n > 0);
    }
    agglo_grouping_free(grouping);
    free(text);
    agglo_sidecar_read(bytes, &sidecar);
    agglo_sidecar_label(bytes);
    return 0;
}
