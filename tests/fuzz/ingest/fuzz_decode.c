/* Every decoder, by content, with a small limit of pixels. */
#include "ingest/decode.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    agglo_decode_options options = agglo_decode_options_default();
    agglo_decoder *decoder;
    agglo_image image;
    agglo_reason reason = NULL;
    agglo_err err = {0};

    options.max_pixels = 1 << 20;
    options.png16_clip = size % 2 == 1;
    if (agglo_decoder_new(&decoder, &options, &err) == AGGLO_OK) {
        if (agglo_decode(decoder, (agglo_bytes){data, size}, &image, &reason, &err) == AGGLO_OK) {
            AGGLO_ASSERT(image.width > 0 && image.height > 0 && image.rgb != NULL);
        } else {
            AGGLO_ASSERT(reason != NULL);
        }
        agglo_decoder_free(decoder);
    }
    return 0;
}
