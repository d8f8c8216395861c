/* Position tables at another resolution; see pos_interp.h. */
#include "teachers/pos_interp.h"

#include "base/alloc.h"
#include "tensor/resample_axis.h"

#include <string.h>

static agglo_status axis_make(agglo_taps *taps, agglo_pos_rule rule, int in, int out, agglo_err *err)
{
    agglo_taps_key key = {.mode = AGGLO_RESAMPLE_BICUBIC,
                          .antialias = rule == AGGLO_POS_ANTIALIAS,
                          .n_in = in,
                          .n_out = out,
                          .scale = rule == AGGLO_POS_OFFSET ? ((double)out + 0.1) / (double)in : 0.0};

    return agglo_taps_make(taps, &key, err);
}

agglo_status agglo_pos_resample(agglo_pos_rule rule, const float *table, int in_h, int in_w, int dim, int out_h,
                                int out_w, float *out, agglo_err *err)
{
    agglo_taps across = {0}, down = {0};
    double *wide = NULL; /* [in_h, out_w, dim] */
    size_t d = (size_t)dim, n_wide;

    AGGLO_ASSERT(in_h > 0 && in_w > 0 && dim > 0 && out_h > 0 && out_w > 0);
    if (in_h == out_h && in_w == out_w) {
        memcpy(out, table, (size_t)in_h * (size_t)in_w * d * sizeof *out);
        return AGGLO_OK;
    }
    if (!agglo_size_mul((size_t)in_h * (size_t)out_w, d, &n_wide)) {
        agglo_fail(err, AGGLO_E_MEMORY, "a table of %d x %d x %d is too large", in_h, out_w, dim);
        goto fail;
    }
    wide = (double *)agglo_alloc(n_wide, sizeof *wide, err);
    if (wide == NULL || axis_make(&across, rule, in_w, out_w, err) != AGGLO_OK ||
        axis_make(&down, rule, in_h, out_h, err) != AGGLO_OK) {
        goto fail;
    }
    for (int y = 0; y < in_h; y++) {
        for (int o = 0; o < out_w; o++) {
            double *to = wide + ((size_t)y * (size_t)out_w + (size_t)o) * d;

            for (int k = 0; k < across.count[o]; k++) {
                double w = across.weight[o * across.max_taps + k];
                const float *from = table + ((size_t)y * (size_t)in_w + (size_t)(across.first[o] + k)) * d;

                for (size_t c = 0; c < d; c++) {
                    to[c] += w * (double)from[c];
                }
            }
        }
    }
    for (int o = 0; o < out_h; o++) {
        for (int x = 0; x < out_w; x++) {
            float *to = out + ((size_t)o * (size_t)out_w + (size_t)x) * d;

            for (size_t c = 0; c < d; c++) {
                double sum = 0.0;

                for (int k = 0; k < down.count[o]; k++) {
                    size_t row = (size_t)(down.first[o] + k);

                    sum += down.weight[o * down.max_taps + k] * wide[(row * (size_t)out_w + (size_t)x) * d + c];
                }
                to[c] = (float)sum;
            }
        }
    }
    agglo_taps_clear(&across);
    agglo_taps_clear(&down);
    agglo_free(wide);
    return AGGLO_OK;
fail:
    agglo_taps_clear(&across);
    agglo_taps_clear(&down);
    agglo_free(wide);
    return agglo_doing(err, "cannot resample positions");
}
