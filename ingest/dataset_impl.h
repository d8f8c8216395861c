/* What the writer and the reader of a dataset share: names, version and options of dataset.json. */
#ifndef AGGLO_INGEST_DATASET_IMPL_H
#define AGGLO_INGEST_DATASET_IMPL_H

#include "ingest/dataset.h"

#define AGGLO_DATASET_FILE     "dataset.json"
#define AGGLO_DATASET_SHARDS   "shards"
#define AGGLO_DATASET_VERSION  2
#define AGGLO_DATASET_JSON_MAX ((size_t)1 << 30)

/* Check the version and read the decode options of a dataset.json. */
agglo_status agglo_dataset_read_options(const json_t *root, agglo_decode_options *out, agglo_err *err);

/* The fingerprint of a dataset, hex into out[33]: over what decides its pixels (exif, png16) and its index's fingerprint. */
void agglo_dataset_fingerprint(const agglo_decode_options *options, const agglo_hash128 *index, char out[33]);

#endif
