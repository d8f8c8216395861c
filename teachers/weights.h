/* The weights of one model as a set of named tensors, in one safetensors file or in several with an index.
 *
 * A path is one of
 *     FILE.safetensors                      one file
 *     NAME.safetensors.index.json           a sharded checkpoint: {"weight_map": {tensor: file}}, as huggingface_hub writes it
 *     NAME-00001-of-00003.safetensors       any shard of one; its index lies beside it
 *     a directory (a downloaded repository) model.safetensors, model.safetensors.index.json, open_clip_model.safetensors, its index, or
 *                                           the only *.safetensors in it, in this order; what else could be meant is logged
 * Files are mapped; nothing of a tensor is read before it is used. Everything in a file is hostile: files of an index lie beside it, hold
 * the tensors that it lists and no others, and no name comes twice.
 */
#ifndef AGGLO_TEACHERS_WEIGHTS_H
#define AGGLO_TEACHERS_WEIGHTS_H

#include "base/safetensors.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct agglo_weights agglo_weights;

/* AGGLO_E_DATA names the file and the tensor; AGGLO_E_UNSUPPORTED a file that is a PyTorch pickle, with the command that converts it;
 * AGGLO_E_NOT_FOUND a file that is missing. Closed by the caller; tensors are borrowed from it. */
agglo_status agglo_weights_open(agglo_weights **out, const char *path, agglo_err *err);
void agglo_weights_close(agglo_weights *weights);

/* A file in memory, under the name that an index gives it. */
typedef struct agglo_weights_part {
    const char *name;
    agglo_bytes bytes;
} agglo_weights_part;

/* The same over bytes in memory, borrowed until close (tests, fuzzing): one part and no index (index.data NULL), or an index and its
 * files. `path` is used in messages and where files beside the weights are looked for. */
agglo_status agglo_weights_parse(agglo_weights **out, const char *path, agglo_bytes index,
                                 const agglo_weights_part *parts, size_t n_parts, agglo_err *err);

size_t agglo_weights_count(const agglo_weights *weights);
const agglo_st_tensor *agglo_weights_at(const agglo_weights *weights, size_t i);           /* in order of name */
const agglo_st_tensor *agglo_weights_find(const agglo_weights *weights, const char *name); /* NULL: none */
/* Metadata of the file; a set of several files has none. NULL: none. */
const char *agglo_weights_meta(const agglo_weights *weights, const char *key);

/* The file, or the index: what messages name. */
const char *agglo_weights_path(const agglo_weights *weights);
/* The path without ".safetensors", "-00001-of-00003.safetensors" or ".safetensors.index.json": STEM.config.json is its configuration. */
const char *agglo_weights_stem(const agglo_weights *weights);

size_t agglo_weights_files(const agglo_weights *weights);
agglo_safetensors *agglo_weights_file(const agglo_weights *weights, size_t i); /* in order of name */

/* What identifies the weights. One file: its sha256. Several: the sha256 of one line per file, in order of name, of its sha256 in hex, two
 * spaces, its name, a newline; that is, of what `sha256sum NAME-*.safetensors` prints. Computed at the first call: reads every byte. */
agglo_status agglo_weights_fingerprint(agglo_weights *weights, agglo_sha256 *out, agglo_err *err);

#ifdef __cplusplus
}
#endif
#endif
