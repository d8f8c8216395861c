/* Any bytes as class embeddings: refused with one error, or rows of length one and as many names. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "student/eval_zeroshot.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    agglo_safetensors *st;
    agglo_class_text text;
    agglo_err err = {0};

    if (agglo_safetensors_parse(&st, (agglo_bytes){data, size}, "fuzz", &err) != AGGLO_OK) {
        return 0;
    }
    if (agglo_class_text_read(&text, st, &err) != AGGLO_OK) {
        AGGLO_ASSERT(text.rows == NULL && text.names == NULL && err.what[0] != '\0' && err.why[0] != '\0');
    } else {
        AGGLO_ASSERT(text.n >= 1 && text.dim >= 1);
        for (int64_t i = 0; i < text.n; i++) {
            double sum = 0.0;

            for (int64_t c = 0; c < text.dim; c++) {
                sum += (double)text.rows[i * text.dim + c] * (double)text.rows[i * text.dim + c];
            }
            AGGLO_ASSERT(isfinite(sum) && sum > 0.0);
            if (text.names != NULL) {
                int64_t found = agglo_class_text_find(&text, text.names[i]);

                AGGLO_ASSERT(found == i || found == -2);
            }
        }
    }
    agglo_class_text_clear(&text);
    agglo_safetensors_close(st);
    AGGLO_ASSERT(agglo_alloc_counts().n_live == 0);
    return 0;
}
