/* What a worker does with one sample. Cheap reasons to leave it out come first: the selection by a uid that the side-car names, then the
 * header, then the pixels.
 */
#include <stdio.h>
#include <stdlib.h>

#include "ingest/ingest_impl.h"

static void reject(agglo_ingest_job *j, const char *reason, const char *detail)
{
    j->reason = reason;
    snprintf(j->detail, sizeof j->detail, "%s", detail);
}

/* Room of n bytes in a buffer of the job; what was there is forgotten. */
static agglo_status reserve(uint8_t **buffer, size_t *room, size_t n, agglo_err *err)
{
    if (n > *room) {
        agglo_free(*buffer);
        *room = 0;
        *buffer = agglo_alloc(n, 1, err);
        if (*buffer == NULL) {
            return err->status;
        }
        *room = n;
    }
    return AGGLO_OK;
}

void agglo_ingest_job_clear(agglo_ingest_job *j, size_t keep)
{
    if (j->room > keep) {
        agglo_free(j->buffer);
        j->buffer = NULL;
        j->room = 0;
    }
    if (j->encoded_room > keep) {
        agglo_free(j->encoded);
        j->encoded = NULL;
        j->encoded_room = 0;
    }
}

static agglo_status read_members(agglo_ingest_job *j, agglo_err *err)
{
    size_t total = 0, at = 0;

    for (size_t i = 0; i < j->n_members; i++) {
        if (!agglo_size_add(total, (size_t)j->members[i].n_bytes, &total)) {
            return agglo_fail(err, AGGLO_E_MEMORY, "the sample is too large");
        }
    }
    if (reserve(&j->buffer, &j->room, total, err) != AGGLO_OK) {
        return err->status;
    }
    for (size_t i = 0; i < j->n_members; i++) {
        size_t n = (size_t)j->members[i].n_bytes;

        if (agglo_source_read(j->source, j->members[i].offset, j->buffer + at, n, err) != AGGLO_OK) {
            return err->status;
        }
        j->out[i] = (agglo_out_member){j->members[i].ext, {j->buffer + at, n}};
        at += n;
    }
    return AGGLO_OK;
}

static const agglo_out_member *find_member(const agglo_ingest_job *j, const char *ext)
{
    for (size_t i = 0; i < j->n_members; i++) {
        if (strcmp(j->out[i].ext, ext) == 0) {
            return &j->out[i];
        }
    }
    return NULL;
}

/* The uid of a sample whose side-car names none: the first half of sha256(key, 0, picture). */
static agglo_status hash_uid(agglo_ingest_job *j, agglo_err *err)
{
    agglo_bytes image = j->out[j->image].data;
    agglo_hasher *hasher = NULL;
    agglo_sha256 digest;

    if (agglo_hasher_new(&hasher, AGGLO_HASH_SHA256, err) == AGGLO_OK &&
        agglo_hasher_add(hasher, j->group->key, strlen(j->group->key) + 1, err) == AGGLO_OK && /* the 0 byte too */
        agglo_hasher_add(hasher, image.data, image.size, err) == AGGLO_OK &&
        agglo_hasher_end(hasher, digest.bytes, err) == AGGLO_OK) {
        memcpy(j->sample.uid, digest.bytes, 16);
    }
    agglo_hasher_free(hasher);
    return err->status;
}

static int by_ext(const void *a, const void *b)
{
    return strcmp(((const agglo_out_member *)a)->ext, ((const agglo_out_member *)b)->ext);
}

/* The picture is named for what it is, and members stand in the order of their extensions. */
static void name_members(agglo_ingest_job *j, agglo_image_format format)
{
    static const char *const exts[] = {
        [AGGLO_IMAGE_JPEG] = "jpg", [AGGLO_IMAGE_PNG] = "png", [AGGLO_IMAGE_WEBP] = "webp"};
    const char *ext = exts[format];

    j->out[j->image].ext = ext;
    qsort(j->out, j->n_members, sizeof *j->out, by_ext);
    for (size_t i = 0; i < j->n_members; i++) {
        if (j->out[i].ext == ext) { /* the pointer: nothing else holds it */
            j->image = i;
        }
    }
}

/* The label: of a .cls, else that of the class folder, which then gets a .cls so that the shard says it too. */
static void take_label(agglo_ingest_job *j)
{
    const agglo_out_member *cls = find_member(j, "cls");

    if (cls != NULL) {
        j->sample.label = agglo_sidecar_label(cls->data);
    } else if (j->class_label >= 0) {
        int n = snprintf(j->label_text, sizeof j->label_text, "%lld", (long long)j->class_label);

        j->sample.label = j->class_label;
        j->out[j->n_members++] = (agglo_out_member){"cls", {(const uint8_t *)j->label_text, (size_t)n}};
    }
}

/* Sizes that were asked for; false: rejected. */
static bool size_is_wanted(const agglo_ingest_options *options, const agglo_image_info *info, agglo_ingest_job *j)
{
    int small = info->width < info->height ? info->width : info->height;
    int large = info->width < info->height ? info->height : info->width;

    snprintf(j->detail, sizeof j->detail, "%d x %d pixels", info->width, info->height);
    if (small < options->min_side) {
        j->reason = "too_small";
    } else if (options->max_aspect > 0 && (double)large > options->max_aspect * (double)small) {
        j->reason = "bad_aspect";
    }
    return j->reason == NULL;
}

/* Digests of the picture as it came. False: rejected, or an error. */
static bool check_content(const agglo_ingest_options *options, agglo_ingest_job *j, agglo_err *err)
{
    agglo_sha256 digest;

    if (!options->dedup && !(options->check_sha256 && j->sample.has_sha256)) {
        return true;
    }
    if (agglo_sha256_of(j->out[j->image].data.data, j->out[j->image].data.size, &digest, err) != AGGLO_OK) {
        return false;
    }
    memcpy(j->content, digest.bytes, sizeof j->content);
    if (options->check_sha256 && j->sample.has_sha256 && memcmp(digest.bytes, j->sample.sha256.bytes, 32) != 0) {
        char hex[65];

        reject(j, "sha256_mismatch", agglo_hex(digest.bytes, 32, hex));
        return false;
    }
    return true;
}

/* Put a smaller picture in the place of this one. */
static agglo_status shrink(const agglo_ingest_options *options, agglo_ingest_worker *worker, const agglo_image *image,
                           agglo_ingest_job *j, agglo_image_info *info, agglo_err *err)
{
    agglo_bytes encoded;

    if (agglo_reencode(worker->reencoder, image, options->max_side, &encoded, &info->width, &info->height, err) !=
            AGGLO_OK ||
        reserve(&j->encoded, &j->encoded_room, encoded.size, err) != AGGLO_OK) {
        return err->status;
    }
    memcpy(j->encoded, encoded.data, encoded.size);
    j->out[j->image].data = (agglo_bytes){j->encoded, encoded.size};
    info->format = AGGLO_IMAGE_JPEG;
    info->orientation = 1;
    return AGGLO_OK;
}

/* The pixels: verified, and made smaller where that was asked for. False: rejected, or an error. */
static bool check_pixels(const agglo_ingest_options *options, agglo_ingest_worker *worker, agglo_ingest_job *j,
                         agglo_image_info *info, agglo_err *err)
{
    int large = info->width < info->height ? info->height : info->width;
    agglo_bytes encoded = j->out[j->image].data;
    agglo_reason reason = NULL;
    agglo_err bad = {0};
    agglo_image image;
    agglo_status status = AGGLO_OK;

    if (options->max_side > 0 && large > options->max_side) {
        status = agglo_decode(worker->decoder, encoded, &image, &reason, &bad);
        if (status == AGGLO_OK && shrink(options, worker, &image, j, info, err) != AGGLO_OK) {
            return false;
        }
    } else if (!options->header_only) {
        status = agglo_image_verify(worker->decoder, encoded, &reason, &bad);
    }
    if (status != AGGLO_OK) {
        reject(j, reason != NULL ? reason : "corrupt", bad.why);
        return false;
    }
    return true;
}

agglo_status agglo_ingest_check(const agglo_ingest_options *options, const agglo_uid_set *selected,
                                agglo_ingest_worker *worker, agglo_ingest_job *j, agglo_err *err)
{
    const agglo_out_member *json;
    agglo_sidecar sidecar = {0};
    agglo_image_info info = {0};
    agglo_reason reason = NULL;
    agglo_err bad = {0};

    if (j->reason != NULL) {
        return AGGLO_OK;
    }
    if (read_members(j, &bad) != AGGLO_OK) {
        reject(j, bad.status == AGGLO_E_MEMORY ? "out_of_memory" : "unreadable", bad.why);
        return AGGLO_OK;
    }
    json = find_member(j, "json");
    if (json != NULL) {
        agglo_sidecar_read(json->data, &sidecar);
        j->bad_json = !sidecar.understood;
        j->sample.has_sha256 = sidecar.has_sha256;
        memcpy(j->sample.sha256.bytes, sidecar.sha256, sizeof sidecar.sha256);
        memcpy(j->sample.uid, sidecar.uid, sizeof sidecar.uid);
    }
    if (sidecar.has_uid && selected != NULL && !agglo_uid_set_has(selected, j->sample.uid)) {
        reject(j, "not_selected", "");
        return AGGLO_OK;
    }
    if (agglo_decoder_probe(worker->decoder, j->out[j->image].data, &info, &reason, &bad) != AGGLO_OK) {
        reject(j, reason != NULL ? reason : "corrupt", bad.why);
        return AGGLO_OK;
    }
    if (!size_is_wanted(options, &info, j) || !check_content(options, j, err) ||
        !check_pixels(options, worker, j, &info, err)) {
        return err->status;
    }
    if (!sidecar.has_uid && hash_uid(j, err) != AGGLO_OK) {
        return err->status;
    }
    if (!sidecar.has_uid && selected != NULL && !agglo_uid_set_has(selected, j->sample.uid)) {
        reject(j, "not_selected", "");
        return AGGLO_OK;
    }
    j->sample.key = j->group->key;
    j->sample.width = (uint32_t)info.width;
    j->sample.height = (uint32_t)info.height;
    j->sample.format = (uint8_t)info.format;
    j->sample.orientation = (uint8_t)info.orientation;
    take_label(j);
    name_members(j, info.format);
    return AGGLO_OK;
}
