/* Any bytes as a safetensors file: refused with one error, or every tensor lies in the file and is found by its name. */
#include <stdlib.h>

#include "base/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *key, *value;
    agglo_safetensors *st;
    agglo_err err = {0};
    size_t n_bytes = 0;

    if (agglo_safetensors_parse(&st, (agglo_bytes){data, size}, "fuzz", &err) != AGGLO_OK) {
        AGGLO_ASSERT(st == NULL && err.status != AGGLO_OK && err.what[0] != '\0' && err.why[0] != '\0');
        AGGLO_ASSERT(agglo_alloc_counts().n_live == 0);
        return 0;
    }
    for (size_t i = 0; i < agglo_safetensors_count(st); i++) {
        const agglo_st_tensor *t = agglo_safetensors_at(st, i);
        int64_t n = 1;

        for (int k = 0; k < t->rank; k++) {
            n *= t->shape[k];
        }
        AGGLO_ASSERT(n == t->n_elements && agglo_safetensors_find(st, t->name) == t);
        AGGLO_ASSERT(t->data >= data + 8 && t->n_bytes <= size && t->data <= data + size - t->n_bytes);
        if (t->dtype != AGGLO_DTYPE_OTHER) {
            AGGLO_ASSERT(t->n_bytes == (size_t)n * agglo_dtype_size(t->dtype));
        }
        n_bytes += t->n_bytes;
    }
    AGGLO_ASSERT(n_bytes == size - 8 - (size_t)agglo_le64(data)); /* no holes, no overlaps */
    for (size_t i = 0; agglo_safetensors_meta_at(st, i, &key, &value); i++) {
        AGGLO_ASSERT(agglo_safetensors_meta(st, key) == value);
    }
    agglo_safetensors_close(st);
    AGGLO_ASSERT(agglo_alloc_counts().n_live == 0);
    return 0;
}
