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

/* `path` ends in ".safetensors": files, the further ones PATH-2.safetensors, ..., which say their number in the metadata (`part`); otherwise a
 * folder. Under the numbered names only what an earlier run wrote is replaced or removed: something else there is AGGLO_E_CONFIG with
 * `most`, or AGGLO_E_MISMATCH of agglo_embed_out_add when the name is needed. facts: object of texts, borrowed; what
 * the features are of, kept as the files' metadata or as embed.json. most: pictures in one file, 0: as many as a header takes. */
agglo_status agglo_embed_out_open(agglo_embed_out **out, const char *path, const agglo_encoder_info *info, bool spatial,
                                  agglo_dtype dtype, uint64_t most, const json_t *facts, agglo_err *err);

/* Write one picture's features (spatial NULL: none) under its key, made harmless and, where another picture had it before, followed by
 * "~" and `number` (and "~2", "~3"... where that is taken too). *refused: a value does not fit the type, or nothing can be written under
 * the key; err then says which. */
agglo_status agglo_embed_out_add(agglo_embed_out *out, const char *key, uint64_t number, const float *summary,
                                 const float *spatial, bool *refused, agglo_err *err);

/* Bring all files under their names, one after the other with nothing between, and remove what an earlier run had more of; their names are
 * appended to `files` (safetensors), bytes counted. Freed whatever happens. */
agglo_status agglo_embed_out_close(agglo_embed_out *out, json_t *files, uint64_t *n_bytes, agglo_err *err);
/* What was under the files' names before stays, all of it, and nothing else; in a folder the pictures that were written stay. NULL is fine. */
void agglo_embed_out_abort(agglo_embed_out *out);

#ifdef __cplusplus
}
#endif
#endif
