/* Records: a 64-byte header, the payloads, and a checksum over both behind them.
 *
 *      0  "AGRC"          4  version u8 | codec u8 | header size u16
 *      8  grid_h u16      10 grid_w u16    12 summary_dim u16    14 spatial_dim u16
 *     16  x i32           20 y i32         24 w i32              28 h i32
 *     32  input_w u16     34 input_h u16   36 flip u8            37 zero u8 x 3
 *     40  pixel hash u64  48 summary bytes u32                   52 spatial bytes u32
 *     56  record bytes u32                 60 zero u32
 *     64  summary, spatial, then xxh3-64 of all that stands before it, u64
 *
 * Little-endian throughout; nothing is read by cast.
 */
#include "cache/record.h"

#include "base/alloc.h"
#include "base/hash.h"
#include "cache/record_impl.h"

enum { HEADER_BYTES = 64, CHECK_BYTES = 8, VERSION = 1 };

static const uint8_t magic[4] = {'A', 'G', 'R', 'C'};

typedef struct record_sizes {
    size_t n_summary, n_spatial; /* values */
    agglo_dtype summary_dtype, spatial_dtype;
    size_t summary, spatial, record; /* bytes */
} record_sizes;

/* What the geometry of `info` needs; false for an unknown codec or a record of 4 GiB or more. */
static bool sizes_of(const agglo_record_info *info, record_sizes *out)
{
    out->n_summary = info->summary_dim;
    return agglo_codec_plain_dtypes(info->codec, &out->summary_dtype, &out->spatial_dtype) &&
           agglo_size_mul((size_t)info->grid_h * info->grid_w, info->spatial_dim, &out->n_spatial) &&
           agglo_size_mul(out->n_summary, agglo_dtype_size(out->summary_dtype), &out->summary) &&
           agglo_size_mul(out->n_spatial, agglo_dtype_size(out->spatial_dtype), &out->spatial) &&
           agglo_size_add(out->summary, out->spatial, &out->record) &&
           agglo_size_add(out->record, HEADER_BYTES + CHECK_BYTES, &out->record) && out->record <= UINT32_MAX;
}

static bool view_is_sane(const agglo_record_info *info)
{
    return info->x >= 0 && info->y >= 0 && info->w >= 1 && info->h >= 1 && info->x <= INT32_MAX - info->w &&
           info->y <= INT32_MAX - info->h && info->input_w >= 1 && info->input_h >= 1;
}

size_t agglo_record_max_bytes(const agglo_record_info *info)
{
    record_sizes sizes;

    return sizes_of(info, &sizes) ? sizes.record : 0;
}

agglo_status agglo_record_encode(const agglo_record_info *info, const float *summary, const float *spatial,
                                 uint8_t *out, size_t *n_bytes, agglo_err *err)
{
    record_sizes sizes;
    uint8_t *payload = out + HEADER_BYTES;

    AGGLO_ASSERT(sizes_of(info, &sizes) && view_is_sane(info));
    memcpy(out, magic, sizeof magic);
    out[4] = VERSION;
    out[5] = (uint8_t)info->codec;
    agglo_put_le16(out + 6, HEADER_BYTES);
    agglo_put_le16(out + 8, info->grid_h);
    agglo_put_le16(out + 10, info->grid_w);
    agglo_put_le16(out + 12, info->summary_dim);
    agglo_put_le16(out + 14, info->spatial_dim);
    agglo_put_le32(out + 16, (uint32_t)info->x);
    agglo_put_le32(out + 20, (uint32_t)info->y);
    agglo_put_le32(out + 24, (uint32_t)info->w);
    agglo_put_le32(out + 28, (uint32_t)info->h);
    agglo_put_le16(out + 32, info->input_w);
    agglo_put_le16(out + 34, info->input_h);
    agglo_put_le32(out + 36, info->flip ? 1 : 0);
    agglo_put_le64(out + 40, info->pixel_hash);
    agglo_put_le32(out + 48, (uint32_t)sizes.summary);
    agglo_put_le32(out + 52, (uint32_t)sizes.spatial);
    agglo_put_le32(out + 56, (uint32_t)sizes.record);
    agglo_put_le32(out + 60, 0);
    if (agglo_codec_plain_encode(sizes.summary_dtype, summary, sizes.n_summary, info->summary_dim, "summary", payload,
                                 err) != AGGLO_OK ||
        agglo_codec_plain_encode(sizes.spatial_dtype, spatial, sizes.n_spatial, info->spatial_dim, "spatial",
                                 payload + sizes.summary, err) != AGGLO_OK) {
        return agglo_doing(err, "cannot encode record");
    }
    agglo_put_le64(out + sizes.record - CHECK_BYTES, agglo_xxh3_64(out, sizes.record - CHECK_BYTES));
    *n_bytes = sizes.record;
    return AGGLO_OK;
}

agglo_status agglo_record_parse(agglo_bytes bytes, agglo_record *out, agglo_err *err)
{
    const uint8_t *p = bytes.data;
    agglo_record_info *info = &out->info;
    record_sizes sizes;
    uint64_t check;

    memset(out, 0, sizeof *out);
    if (bytes.size < HEADER_BYTES + CHECK_BYTES) {
        agglo_fail(err, AGGLO_E_DATA, "%zu bytes are fewer than a record's header", bytes.size);
        goto fail;
    }
    if (memcmp(p, magic, sizeof magic) != 0) {
        agglo_fail(err, AGGLO_E_DATA, "it does not begin with \"AGRC\"");
        goto fail;
    }
    check = agglo_xxh3_64(p, bytes.size - CHECK_BYTES);
    if (check != agglo_le64(p + bytes.size - CHECK_BYTES)) {
        agglo_fail(err, AGGLO_E_DATA, "checksum %016llx, stored %016llx", (unsigned long long)check,
                   (unsigned long long)agglo_le64(p + bytes.size - CHECK_BYTES));
        goto fail;
    }
    if (p[4] != VERSION || agglo_le16(p + 6) != HEADER_BYTES) {
        agglo_fail(err, AGGLO_E_DATA, "version %u with a header of %u bytes, this build reads version %d with %d", p[4],
                   agglo_le16(p + 6), VERSION, HEADER_BYTES);
        goto fail;
    }
    info->codec = (agglo_codec_id)p[5];
    info->grid_h = agglo_le16(p + 8);
    info->grid_w = agglo_le16(p + 10);
    info->summary_dim = agglo_le16(p + 12);
    info->spatial_dim = agglo_le16(p + 14);
    info->x = (int32_t)agglo_le32(p + 16);
    info->y = (int32_t)agglo_le32(p + 20);
    info->w = (int32_t)agglo_le32(p + 24);
    info->h = (int32_t)agglo_le32(p + 28);
    info->input_w = agglo_le16(p + 32);
    info->input_h = agglo_le16(p + 34);
    info->flip = p[36] == 1;
    info->pixel_hash = agglo_le64(p + 40);
    if (agglo_codec_name(info->codec) == NULL) {
        agglo_fail(err, AGGLO_E_DATA, "codec %u is not known to this build", p[5]);
        goto fail;
    }
    if (agglo_le32(p + 36) > 1 || agglo_le32(p + 60) != 0 || !view_is_sane(info)) {
        agglo_fail(err, AGGLO_E_DATA, "its header is damaged");
        goto fail;
    }
    if (!sizes_of(info, &sizes) || sizes.record != bytes.size || agglo_le32(p + 56) != sizes.record ||
        agglo_le32(p + 48) != sizes.summary || agglo_le32(p + 52) != sizes.spatial) {
        agglo_fail(err, AGGLO_E_DATA, "%zu bytes do not fit its geometry %ux%ux%u + %u", bytes.size, info->grid_h,
                   info->grid_w, info->spatial_dim, info->summary_dim);
        goto fail;
    }
    out->summary_dtype = sizes.summary_dtype;
    out->spatial_dtype = sizes.spatial_dtype;
    out->summary = (agglo_bytes){p + HEADER_BYTES, sizes.summary};
    out->spatial = (agglo_bytes){p + HEADER_BYTES + sizes.summary, sizes.spatial};
    return AGGLO_OK;
fail:
    memset(out, 0, sizeof *out);
    return agglo_doing(err, "cannot read record");
}

/* Values that are not finite cannot have been encoded; a checksum may still hide them. */
static agglo_status check_finite(const float *values, size_t n, const char *name, agglo_err *err)
{
    uint32_t largest = 0;

    for (size_t i = 0; i < n; i++) {
        uint32_t bits = agglo_f32_bits(values[i]) & 0x7fffffffu;

        largest = bits > largest ? bits : largest;
    }
    return largest < 0x7f800000u ? AGGLO_OK
                                 : agglo_fail(err, AGGLO_E_DATA, "its %s holds a value that is not finite", name);
}

agglo_status agglo_record_decode(const agglo_record *record, float *summary, float *spatial, agglo_err *err)
{
    const size_t n_summary = record->summary.size / agglo_dtype_size(record->summary_dtype);
    const size_t n_spatial = record->spatial.size / agglo_dtype_size(record->spatial_dtype);

    if (summary != NULL) {
        agglo_dtype_to_f32(summary, record->summary.data, record->summary_dtype, n_summary);
        if (check_finite(summary, n_summary, "summary", err) != AGGLO_OK) {
            return agglo_doing(err, "cannot decode record");
        }
    }
    if (spatial != NULL) {
        agglo_dtype_to_f32(spatial, record->spatial.data, record->spatial_dtype, n_spatial);
        if (check_finite(spatial, n_spatial, "spatial", err) != AGGLO_OK) {
            return agglo_doing(err, "cannot decode record");
        }
    }
    return AGGLO_OK;
}
