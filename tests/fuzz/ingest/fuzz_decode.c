/* Every decoder, by content, with a small limit of pixels. The last eight bytes of the input choose a box and a scale; the decoders see
 * them too, as garbage behind the picture.
 *
 * Verification has the verdict and reason of decoding. A region of a picture that decodes is, at full size, the cut from the whole; and at
 * any scale it is the cut from the region of the whole picture.
 */
#include "ingest/decode.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void same_pixels(const agglo_region *part, const agglo_region *whole)
{
    int x = (part->left - whole->left) / part->reduce, y = (part->top - whole->top) / part->reduce;

    AGGLO_ASSERT(part->reduce == whole->reduce && x >= 0 && y >= 0);
    AGGLO_ASSERT(part->width <= whole->width - x && part->height <= whole->height - y);
    for (int row = 0; row < part->height; row++) {
        AGGLO_ASSERT(memcmp(part->rgb + (size_t)row * part->stride,
                            whole->rgb + (size_t)(y + row) * whole->stride + (size_t)x * 3,
                            (size_t)part->width * 3) == 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    agglo_decode_options options = agglo_decode_options_default();
    agglo_decoder *decoder = NULL, *other = NULL;
    agglo_bytes encoded = {data, size};
    agglo_image image;
    agglo_image_info info;
    agglo_region region, whole;
    agglo_reason reason = NULL, verdict = NULL;
    agglo_err err = {0}, ignored = {0};
    uint8_t choice[8] = {0};
    agglo_status status;

    options.max_pixels = 1 << 18;
    options.max_scans = 20;
    options.png16_clip = size % 2 == 1;
    if (size >= sizeof choice) {
        memcpy(choice, data + size - sizeof choice, sizeof choice);
    }
    if (agglo_decoder_new(&decoder, &options, &err) != AGGLO_OK ||
        agglo_decoder_new(&other, &options, &err) != AGGLO_OK) {
        goto done;
    }
    status = agglo_decode(decoder, encoded, &image, &reason, &err);
    AGGLO_ASSERT((status == AGGLO_OK) == (reason == NULL));
    AGGLO_ASSERT(agglo_image_verify(other, encoded, &verdict, &ignored) == status);
    AGGLO_ASSERT((reason == NULL) == (verdict == NULL) && (reason == NULL || strcmp(reason, verdict) == 0));
    if (agglo_decoder_probe(other, encoded, &info, NULL, &ignored) == AGGLO_OK) {
        int reduce = 1 << choice[0] % 4;
        agglo_box box, all = {0, 0, info.width, info.height};

        box.x = (choice[1] | choice[2] << 8) % info.width;
        box.y = (choice[3] | choice[4] << 8) % info.height;
        box.w = 1 + choice[5] * choice[5] % (info.width - box.x);
        box.h = 1 + choice[6] * choice[6] % (info.height - box.y);
        if (agglo_decode_region(other, encoded, info.width, info.height, &box, reduce, &region, &verdict, &ignored) ==
            AGGLO_OK) {
            if (status == AGGLO_OK) {
                whole = (agglo_region){1, 0, 0, image.width, image.height, (size_t)image.width * 3, image.rgb};
                if (region.reduce == 1 || agglo_decode_region(decoder, encoded, info.width, info.height, &all,
                                                              region.reduce, &whole, NULL, &err) == AGGLO_OK) {
                    same_pixels(&region, &whole);
                }
            }
        } else {
            AGGLO_ASSERT(verdict != NULL && status != AGGLO_OK); /* what is good has good parts */
        }
    } else {
        AGGLO_ASSERT(status != AGGLO_OK);
    }
done:
    agglo_decoder_free(decoder);
    agglo_decoder_free(other);
    return 0;
}
