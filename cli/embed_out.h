/* Where `agglo embed` puts features: safetensors files written as a stream, or a folder of .npy files. docs/embed.md has the names. */
#ifndef AGGLO_CLI_EMBED_OUT_H
#define AGGLO_CLI_EMBED_OUT_H

#include "base/dtype.h"
#include "base/json.h"
#include "tensor/encoder.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct agglo_embed_out agglo_embed_out;

/* Does this path stand for safetensors files, by its end? Otherwise for a folder. */
bool agglo_embed_out_is_file(const char *path);

/* `path` ends in ".safetensors": files, the further ones PATH-2.safetensors, ...; otherwise a folder. facts: object of texts, borrowed; what
 * the features are of, kept as the files' metadata or as embed.json. most: pictures in one file, 0: as many as a header takes. */
agglo_status agglo_embed_out_open(agglo_embed_out **out, const char *path, const agglo_encoder_info *info, bool spatial,
                                  agglo_dtype dtype, uint64_t most, const json_t *facts, agglo_err *err);

/* Write one picture's features (spatial NULL: none) under its key, made harmless and, where another picture had it before, followed by
 * "~" and `number`. *refused: a value does not fit the type; err then says which. */
agglo_status agglo_embed_out_add(agglo_embed_out *out, const char *key, uint64_t number, const float *summary,
                                 const float *spatial, bool *refused, agglo_err *err);

/* Bring what is open under its name; `files` names are appended (safetensors), bytes counted. Freed whatever happens. */
agglo_status agglo_embed_out_close(agglo_embed_out *out, json_t *files, uint64_t *n_bytes, agglo_err *err);
/* What was under its name before stays, nothing else. NULL is fine. */
void agglo_embed_out_abort(agglo_embed_out *out);

#ifdef __cplusplus
}
#endif
#endif
