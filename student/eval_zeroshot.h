/* Zero-shot classification: cosine of summaries to given class embeddings (spec teachers.md section 1.6). Where the embeddings come from is not
 * decided here: script/zeroshot-text makes them with a CLIP's text tower.
 */
#ifndef AGGLO_STUDENT_EVAL_ZEROSHOT_H
#define AGGLO_STUDENT_EVAL_ZEROSHOT_H

#include "base/safetensors.h"
#include "tensor/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Class embeddings out of a safetensors file: the tensor `classes` [n, dim] (F32, F16, BF16 or F64; n and dim at most 65,536), and, in the
 * metadata, `names`: a JSON array of texts, or texts with commas between them, of at most 4,096 bytes each. */
typedef struct agglo_class_text {
    int64_t n, dim;
    float *rows;  /* [n, dim], L2-normalised */
    char **names; /* [n]; NULL: the file has none */
} agglo_class_text;

/* AGGLO_E_DATA names what is wrong with the file: a tensor that is missing, of another shape or type, too many rows or channels, a row that is
 * zero or not finite, names that are not as many as rows or too long. The file is not needed afterwards. */
agglo_status agglo_class_text_read(agglo_class_text *out, const agglo_safetensors *st, agglo_err *err);
void agglo_class_text_clear(agglo_class_text *text); /* safe on a zeroed one */

/* The row of a class by its name; -1: none, -2: several. */
int64_t agglo_class_text_find(const agglo_class_text *text, const char *name);

/* queries [n_queries, dim], host, borrowed, normalised here in F32 (a zero row stays zero); rows[n_queries]: the row of each one's class.
 * rank[n_queries] gets how many classes come before it: those more similar, and those as similar of a lower number; top-k counts rank < k.
 * AGGLO_E_DATA for a feature that is not finite (WHERE names the row). */
agglo_status agglo_eval_zeroshot(agglo_backend *backend, const agglo_class_text *text, const float *queries,
                                 const int64_t *rows, int64_t n_queries, int64_t *rank, agglo_err *err);

#ifdef __cplusplus
}
#endif
#endif
