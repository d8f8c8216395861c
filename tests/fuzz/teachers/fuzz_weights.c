/* Any bytes as a sharded checkpoint: an index, a newline, the length of the first file (u32), two files. Refused with one error, or every tensor is found
 * by its name, once, in the file that the index names. */
#include <string.h>

#include "teachers/weights.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *line = size > 0 ? (const uint8_t *)memchr(data, '\n', size) : NULL;
    agglo_weights_part parts[2] = {{"m-1.safetensors", {0}}, {"m-2.safetensors", {0}}};
    agglo_weights *w;
    agglo_err err = {0};
    agglo_sha256 sha;
    size_t left, n_first;

    if (line == NULL || (left = size - (size_t)(line + 1 - data)) < 4) {
        return 0;
    }
    n_first = agglo_le32(line + 1);
    left -= 4;
    n_first = n_first < left ? n_first : left;
    parts[0].bytes = (agglo_bytes){line + 5, n_first};
    parts[1].bytes = (agglo_bytes){line + 5 + n_first, left - n_first};
    if (agglo_weights_parse(&w, "m.safetensors.index.json", (agglo_bytes){data, (size_t)(line - data)}, parts, 2,
                            &err) != AGGLO_OK) {
        AGGLO_ASSERT(w == NULL && err.status != AGGLO_OK && err.what[0] != '\0' && err.why[0] != '\0');
    } else {
        for (size_t i = 0; i < agglo_weights_count(w); i++) {
            const agglo_st_tensor *t = agglo_weights_at(w, i);
            size_t n = 0;

            AGGLO_ASSERT(agglo_weights_find(w, t->name) == t);
            AGGLO_ASSERT(i == 0 || strcmp(agglo_weights_at(w, i - 1)->name, t->name) < 0);
            for (size_t f = 0; f < agglo_weights_files(w); f++) {
                n += agglo_safetensors_find(agglo_weights_file(w, f), t->name) != NULL;
            }
            AGGLO_ASSERT(n == 1);
        }
        AGGLO_ASSERT(agglo_weights_fingerprint(w, &sha, &err) == AGGLO_OK);
        agglo_weights_close(w);
    }
    AGGLO_ASSERT(agglo_alloc_counts().n_live == 0);
    return 0;
}
