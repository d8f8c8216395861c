/* Datasets, read: dataset.json for the options, index.bin for the places, shards mapped when a sample of theirs is first asked for. */
#include "ingest/dataset.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "ingest/dataset_impl.h"
#include "ingest/index.h"
#include "ingest/shard_writer.h"

typedef struct part {
    json_t *json;
    agglo_index *index;
    uint32_t first_shard;
    char *path;
} part;

typedef struct dataset_shard {
    agglo_shard_info info;
    char *path;
    uint32_t part;                 /* which directory */
    uint64_t first_sample;         /* in that directory */
    _Atomic(const uint8_t *) data; /* the mapping, once someone needed it */
    agglo_status bad;              /* missing, or of another size */
    char why[96];
} dataset_shard;

struct agglo_dataset {
    part *parts;
    dataset_shard *shards;
    size_t n_parts;
    uint32_t n_shards;
    uint64_t n_samples;
    agglo_decode_options options;
};

agglo_status agglo_dataset_read_options(const json_t *root, agglo_decode_options *out, agglo_err *err)
{
    const json_t *options;
    const char *exif, *png16;
    int64_t version, max_pixels;

    if (agglo_json_get_int(root, "agglo_dataset", 0, INT32_MAX, &version, err) != AGGLO_OK) {
        return err->status;
    }
    if (version != AGGLO_DATASET_VERSION) {
        return agglo_fail(err, AGGLO_E_MISMATCH, "dataset version %lld, expected %d", (long long)version,
                          AGGLO_DATASET_VERSION);
    }
    if (agglo_json_get_object(root, "options", &options, err) != AGGLO_OK ||
        agglo_json_get_string(options, "exif", &exif, err) != AGGLO_OK ||
        agglo_json_get_string(options, "png16", &png16, err) != AGGLO_OK ||
        agglo_json_get_int(options, "max_pixels", 1, INT64_MAX, &max_pixels, err) != AGGLO_OK) {
        return err->status;
    }
    *out = agglo_decode_options_default();
    out->ignore_exif = strcmp(exif, "ignore") == 0;
    out->png16_clip = strcmp(png16, "clip") == 0;
    out->max_pixels = (uint64_t)max_pixels;
    if ((!out->ignore_exif && strcmp(exif, "apply") != 0) || (!out->png16_clip && strcmp(png16, "scale") != 0)) {
        return agglo_fail(err, AGGLO_E_DATA, "unknown option value");
    }
    return AGGLO_OK;
}

void agglo_dataset_fingerprint(const agglo_decode_options *options, const agglo_hash128 *index, char out[33])
{
    char text[96], hex[33];
    int n = snprintf(text, sizeof text, "exif %s; png16 %s; index %s", options->ignore_exif ? "ignore" : "apply",
                     options->png16_clip ? "clip" : "scale", agglo_hex(index->bytes, 16, hex));

    AGGLO_ASSERT(n > 0 && (size_t)n < sizeof text);
    agglo_hex(agglo_xxh3_128(text, (size_t)n).bytes, 16, out);
}

/* dataset.json and index.bin are two files, renamed one after the other when sources are added: they must be of one run. */
static agglo_status check_fingerprint(const part *p, const agglo_decode_options *options, agglo_err *err)
{
    agglo_hash128 index = agglo_index_fingerprint(p->index);
    const char *found;
    char expected[33];

    agglo_dataset_fingerprint(options, &index, expected);
    if (agglo_json_get_string(p->json, "fingerprint", &found, err) == AGGLO_OK && strcmp(found, expected) != 0) {
        agglo_fail(
            err, AGGLO_E_MISMATCH,
            "%s and %s are not of one run (fingerprint %s, not %.32s); was an ingest stopped here? Then run it again",
            AGGLO_INDEX_FILE, AGGLO_DATASET_FILE, expected, found);
    }
    return err->status == AGGLO_OK ? AGGLO_OK : agglo_at(err, "%s", p->path);
}

static agglo_status open_part(part *p, const char *path, agglo_decode_options *options, agglo_err *err)
{
    char *file = agglo_path_join(path, AGGLO_DATASET_FILE, err);
    agglo_status status = AGGLO_OK;

    p->path = agglo_strdup(path, err);
    if (file == NULL || p->path == NULL) {
        status = err->status;
    } else if (!agglo_path_exists(file)) {
        status = agglo_fail(err, AGGLO_E_NOT_FOUND, "no complete dataset: %s is missing", AGGLO_DATASET_FILE);
        agglo_at(err, "%s", path);
    } else {
        status = agglo_json_read(file, AGGLO_DATASET_JSON_MAX, &p->json, err);
        if (status == AGGLO_OK) {
            status = agglo_dataset_read_options(p->json, options, err);
            if (status != AGGLO_OK) {
                agglo_at(err, "%s", file);
            }
        }
    }
    agglo_free(file);
    if (status != AGGLO_OK) {
        return status;
    }
    file = agglo_path_join(path, AGGLO_INDEX_FILE, err);
    status = file == NULL ? err->status : agglo_index_open(&p->index, file, err);
    agglo_free(file);
    return status == AGGLO_OK ? check_fingerprint(p, options, err) : status;
}

static agglo_status add_shards(agglo_dataset *d, uint32_t k, agglo_err *err)
{
    part *p = &d->parts[k];
    uint32_t n = agglo_index_shards(p->index);
    dataset_shard *grown;

    if (n > UINT32_MAX - d->n_shards) {
        return agglo_fail(err, AGGLO_E_UNSUPPORTED, "too many shards");
    }
    grown = agglo_realloc(d->shards, d->n_shards * sizeof *grown, ((size_t)d->n_shards + n) * sizeof *grown, err);
    if (grown == NULL) {
        return err->status;
    }
    d->shards = grown;
    p->first_shard = d->n_shards;
    for (uint32_t i = 0; i < n; i++) {
        agglo_index_shard from = agglo_index_shard_at(p->index, i);
        dataset_shard *s = &d->shards[d->n_shards];
        agglo_err missing = {0};
        uint64_t n_bytes = 0;
        char name[32];

        s->path = agglo_format(err, "%s/shards/%s", p->path, agglo_shard_name(i, name));
        if (s->path == NULL) {
            return err->status;
        }
        d->n_shards++;
        s->part = k;
        s->first_sample = from.first_sample;
        s->info = (agglo_shard_info){.path = s->path, .n_samples = from.n_samples, .n_bytes = from.n_bytes};
        agglo_hex(from.fingerprint.bytes, 16, s->info.fingerprint);
        s->bad = agglo_file_size(s->path, &n_bytes, &missing);
        if (s->bad != AGGLO_OK) {
            snprintf(s->why, sizeof s->why, "%.90s", missing.why);
        } else if (n_bytes != from.n_bytes) {
            s->bad = AGGLO_E_DATA;
            snprintf(s->why, sizeof s->why, "%llu bytes, the index says %llu", (unsigned long long)n_bytes,
                     (unsigned long long)from.n_bytes);
        }
    }
    d->n_samples += agglo_index_samples(p->index);
    return AGGLO_OK;
}

bool agglo_dataset_is(const char *path, agglo_err *err)
{
    char *file = agglo_path_join(path, AGGLO_DATASET_FILE, err),
         *shards = agglo_path_join(path, AGGLO_DATASET_SHARDS, err);
    bool is = file != NULL && shards != NULL && agglo_path_exists(file) && agglo_path_is_dir(shards);

    agglo_free(file);
    agglo_free(shards);
    return is;
}

agglo_status agglo_dataset_open(agglo_dataset **out, const char *const *paths, size_t n_paths, agglo_err *err)
{
    agglo_dataset *d = agglo_alloc(1, sizeof *d, err);

    *out = NULL;
    if (d == NULL) {
        goto fail;
    }
    d->options = agglo_decode_options_default();
    d->parts = agglo_alloc(n_paths, sizeof *d->parts, err);
    if (d->parts == NULL) {
        goto fail;
    }
    for (size_t k = 0; k < n_paths; k++) {
        agglo_decode_options options = agglo_decode_options_default();

        d->n_parts = k + 1;
        if (open_part(&d->parts[k], paths[k], &options, err) != AGGLO_OK ||
            add_shards(d, (uint32_t)k, err) != AGGLO_OK) {
            goto fail;
        }
        if (k == 0) {
            d->options = options;
        } else if (options.ignore_exif != d->options.ignore_exif || options.png16_clip != d->options.png16_clip) {
            agglo_fail(err, AGGLO_E_MISMATCH, "exif or png16 differ from those of %s", paths[0]);
            agglo_at(err, "%s", paths[k]);
            goto fail;
        } else if (options.max_pixels > d->options.max_pixels) {
            d->options.max_pixels = options.max_pixels; /* a limit, not a meaning: the larger lets both through */
        }
    }
    *out = d;
    return AGGLO_OK;
fail:
    agglo_dataset_close(d);
    return agglo_doing(err, "cannot open dataset");
}

void agglo_dataset_close(agglo_dataset *d)
{
    if (d == NULL) {
        return;
    }
    for (uint32_t i = 0; i < d->n_shards; i++) {
        dataset_shard *s = &d->shards[i];
        agglo_mapping mapping = {atomic_load(&s->data), (size_t)s->info.n_bytes};

        if (mapping.data != NULL) {
            agglo_unmap(&mapping);
        }
        agglo_free(s->path);
    }
    for (size_t k = 0; k < d->n_parts; k++) {
        json_decref(d->parts[k].json);
        agglo_index_close(d->parts[k].index);
        agglo_free(d->parts[k].path);
    }
    agglo_free(d->shards);
    agglo_free(d->parts);
    agglo_free(d);
}

uint32_t agglo_dataset_shards(const agglo_dataset *dataset)
{
    return dataset->n_shards;
}

uint64_t agglo_dataset_samples(const agglo_dataset *dataset)
{
    return dataset->n_samples;
}

const agglo_shard_info *agglo_dataset_shard(const agglo_dataset *dataset, uint32_t shard)
{
    AGGLO_ASSERT(shard < dataset->n_shards);
    return &dataset->shards[shard].info;
}

agglo_status agglo_dataset_shard_status(const agglo_dataset *dataset, uint32_t shard, agglo_err *err)
{
    if (shard >= dataset->n_shards) {
        return agglo_fail(err, AGGLO_E_NOT_FOUND, "no shard %u among %u", shard, dataset->n_shards);
    }
    if (dataset->shards[shard].bad != AGGLO_OK) {
        agglo_fail(err, dataset->shards[shard].bad, "%s", dataset->shards[shard].why);
        agglo_at(err, "%s", dataset->shards[shard].path);
        return agglo_doing(err, "cannot read shard");
    }
    return AGGLO_OK;
}

uint32_t agglo_dataset_lost_shards(const agglo_dataset *dataset)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < dataset->n_shards; i++) {
        n += dataset->shards[i].bad != AGGLO_OK;
    }
    return n;
}

agglo_status agglo_dataset_shard_verify(const agglo_dataset *dataset, uint32_t shard, agglo_err *err)
{
    const agglo_shard_info *info;
    agglo_hash128 hash;
    char hex[33];

    if (agglo_dataset_shard_status(dataset, shard, err) != AGGLO_OK) {
        return err->status;
    }
    info = &dataset->shards[shard].info;
    if (agglo_file_xxh3_128(info->path, &hash, NULL, err) != AGGLO_OK) {
        return agglo_doing(err, "cannot verify shard");
    }
    if (strcmp(agglo_hex(hash.bytes, 16, hex), info->fingerprint) != 0) {
        agglo_fail(err, AGGLO_E_MISMATCH, "its hash is %s, the index says %s", hex, info->fingerprint);
        agglo_at(err, "%s", info->path);
        return agglo_doing(err, "cannot verify shard");
    }
    return AGGLO_OK;
}

/* Map a shard at its first use; of two threads that race, one keeps its mapping. */
static agglo_status shard_data(dataset_shard *s, const uint8_t **out, agglo_err *err)
{
    const uint8_t *data = atomic_load_explicit(&s->data, memory_order_acquire), *none = NULL;
    agglo_mapping mapping = {0};

    if (data == NULL) {
        if (agglo_map_file(s->path, &mapping, err) != AGGLO_OK) {
            return err->status;
        }
        if (mapping.size != s->info.n_bytes) {
            agglo_unmap(&mapping);
            agglo_fail(err, AGGLO_E_DATA, "the file changed its size");
            return agglo_at(err, "%s", s->path);
        }
        data = mapping.data;
        if (!atomic_compare_exchange_strong(&s->data, &none, mapping.data)) {
            agglo_unmap(&mapping);
            data = none;
        }
    }
    *out = data;
    return AGGLO_OK;
}

void agglo_dataset_shard_rest(const agglo_dataset *dataset, uint32_t shard)
{
    dataset_shard *s = &dataset->shards[shard];
    const uint8_t *data = atomic_load_explicit(&s->data, memory_order_acquire);

    if (data != NULL) {
        madvise((void *)(uintptr_t)data, (size_t)s->info.n_bytes,
                MADV_DONTNEED); /* advice: its failure changes nothing */
    }
}

agglo_status agglo_dataset_sample(const agglo_dataset *dataset, uint32_t shard_number, uint32_t ordinal,
                                  agglo_sample *out, agglo_err *err)
{
    agglo_index_sample from;
    const uint8_t *data = NULL;
    dataset_shard *s;

    *out = (agglo_sample){.label = -1};
    if (shard_number >= dataset->n_shards || ordinal >= dataset->shards[shard_number].info.n_samples) {
        agglo_fail(err, AGGLO_E_NOT_FOUND, "no sample %u/%u", shard_number, ordinal);
        return agglo_doing(err, "cannot read sample");
    }
    s = &dataset->shards[shard_number];
    if (agglo_dataset_shard_status(dataset, shard_number, err) != AGGLO_OK || shard_data(s, &data, err) != AGGLO_OK) {
        return agglo_doing(err, "cannot read sample");
    }
    agglo_index_sample_at(dataset->parts[s->part].index, s->first_sample + ordinal, &from);
    out->shard = shard_number;
    out->ordinal = ordinal;
    memcpy(out->uid, from.uid, 16);
    out->key = from.key;
    out->image = (agglo_bytes){data + from.image_offset, from.image_bytes};
    out->image_offset = from.image_offset;
    out->format = (agglo_image_format)from.format;
    out->width = (int)from.width;
    out->height = (int)from.height;
    out->label = from.label;
    out->has_sha256 = from.has_sha256;
    out->sha256 = from.sha256;
    out->json = (agglo_bytes){data + from.json_offset, from.json_bytes};
    out->caption = (agglo_bytes){data + from.caption_offset, from.caption_bytes};
    return AGGLO_OK;
}

static void place(const agglo_dataset *d, size_t k, uint64_t i, uint32_t *shard_number, uint32_t *ordinal)
{
    const part *p = &d->parts[k];
    uint32_t s = agglo_index_shard_of(p->index, i);

    *shard_number = p->first_shard + s;
    *ordinal = (uint32_t)(i - agglo_index_shard_at(p->index, s).first_sample);
}

bool agglo_dataset_find_uid(const agglo_dataset *dataset, const uint8_t uid[16], uint32_t *shard_number,
                            uint32_t *ordinal)
{
    uint64_t i;

    for (size_t k = 0; k < dataset->n_parts; k++) {
        if (agglo_index_find_uid(dataset->parts[k].index, uid, &i)) {
            place(dataset, k, i, shard_number, ordinal);
            return true;
        }
    }
    return false;
}

static bool parse_place(const char *name, uint32_t *shard_number, uint32_t *ordinal)
{
    unsigned long values[2];
    char *end;

    for (int k = 0; k < 2; k++) {
        if (*name < '0' || *name > '9') {
            return false;
        }
        values[k] = strtoul(name, &end, 10);
        if (values[k] > UINT32_MAX || *end != (k == 0 ? '/' : 0)) {
            return false;
        }
        name = end + 1;
    }
    *shard_number = (uint32_t)values[0];
    *ordinal = (uint32_t)values[1];
    return true;
}

agglo_status agglo_dataset_find(const agglo_dataset *dataset, const char *name, uint32_t *shard_number,
                                uint32_t *ordinal, agglo_err *err)
{
    uint8_t uid[16];
    uint32_t n_found = 0, shards[2] = {0}, ordinals[2] = {0};

    if (strlen(name) == 32 && agglo_unhex(name, uid, 16) &&
        agglo_dataset_find_uid(dataset, uid, shard_number, ordinal)) {
        return AGGLO_OK;
    }
    for (size_t k = 0; k < dataset->n_parts; k++) {
        uint64_t i;

        for (uint64_t j = 0; n_found < 2 && agglo_index_find_key(dataset->parts[k].index, name, j, &i); j++) {
            place(dataset, k, i, &shards[n_found], &ordinals[n_found]);
            n_found++;
        }
    }
    if (n_found == 1) {
        *shard_number = shards[0];
        *ordinal = ordinals[0];
        return AGGLO_OK;
    }
    if (n_found == 2) {
        agglo_fail(err, AGGLO_E_DATA,
                   "the key is not unique: it is at %u/%u and %u/%u; name the sample by one of these", shards[0],
                   ordinals[0], shards[1], ordinals[1]);
    } else if (parse_place(name, shard_number, ordinal) && *shard_number < dataset->n_shards &&
               *ordinal < dataset->shards[*shard_number].info.n_samples) {
        return AGGLO_OK;
    } else {
        agglo_fail(err, AGGLO_E_NOT_FOUND, "no uid, key or SHARD/ORDINAL of this name");
    }
    agglo_at(err, "%s", name);
    return agglo_doing(err, "cannot find sample");
}

agglo_decode_options agglo_dataset_decode_options(const agglo_dataset *dataset)
{
    return dataset->options;
}

const json_t *agglo_dataset_json(const agglo_dataset *dataset, size_t k)
{
    return k < dataset->n_parts ? dataset->parts[k].json : NULL;
}
