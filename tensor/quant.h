/* Targets in their stored form: what a teacher said of a batch, as the cache keeps it, and the affine map to what a loss compares with.
 *
 *     stored values    u[b,i,k] = q[b,i,k] * token_scale[b,i] * channel_scale[k]        (scales where given, otherwise 1)
 *     target           t[b,i,:] = scale * ((u[b,i,:] - centre) M) + offset              M: a matrix, a diagonal or the identity
 *
 * One form for all codecs:
 *
 *     fp32, fp16, bf16   q are the values, no scales, M = 1
 *     int8, int4         q are integers, a scale per token and perhaps per channel, M = 1
 *     klt                q are quantised coefficients, scale = the step, M = R [K,C] (the K components kept), offset = the mean:
 *                        z = m + R^T (step q), one matrix product with dequantisation in its prologue
 *     klt, rotated       the same q compared with in the rotated space: M = 1, offset = R m, and the product is left out. Squared
 *                        errors and cosines there are those of the native space as far as K reaches (exactly where K = C); smooth-L1's
 *                        are not
 *     standardised       t' = ((t - centre) W) scale: PHI-S (W a matrix) or per channel (W a diagonal). On top of klt the two
 *                        maps are one: agglo_map_compose
 *
 * A coder that predicts coefficients over the token grid undoes that before: q are the coefficients that its decoder leaves (I16, or F16
 * where they are not integers).
 *
 * Layout: [B, n, K] row-major and packed, the last axis fastest. I4: two values in a byte, even k in the low four bits, two's
 * complement (-8..7); a row of K takes (K + 1) / 2 bytes and the last high nibble of an odd K means nothing. Alignment: an
 * element's own; 16 bytes at the start and K (and C) divisible by 4 let CUDA read four values at a time.
 * Ownership: plain data. Every array lies on the backend's device and is borrowed for the call it is given to.
 */
#ifndef AGGLO_TENSOR_QUANT_H
#define AGGLO_TENSOR_QUANT_H

#include "tensor/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum agglo_code {
    AGGLO_CODE_F32 = 0,
    AGGLO_CODE_F16,
    AGGLO_CODE_BF16,
    AGGLO_CODE_I8,
    AGGLO_CODE_I16,
    AGGLO_CODE_I4,
} agglo_code;

/* t = scale * ((u - centre) M) + offset. */
typedef struct agglo_map {
    int64_t c;             /* channels of t */
    float scale;           /* 1 where there is nothing to scale */
    const float *centre;   /* [K], or NULL: 0 */
    const float *matrix;   /* [K,C], or NULL */
    const float *diagonal; /* [C], or NULL; only without a matrix */
    const float *offset;   /* [C], or NULL: 0 */
} agglo_map;

typedef struct agglo_target {
    agglo_code code;
    int64_t batch, n, k;           /* n tokens a sample (1 for a summary), k stored values a token */
    const void *values;            /* [B,n,K] of `code` */
    const void *token_scale;       /* [B,n] of token_scale_dtype, or NULL */
    agglo_dtype token_scale_dtype; /* AGGLO_F32 or AGGLO_F16 */
    const float *channel_scale;    /* [K], or NULL */
    agglo_map map;
} agglo_target;

/* Bytes of one token's stored values, without scales. */
static inline int64_t agglo_code_row_bytes(agglo_code code, int64_t k)
{
    switch (code) {
    case AGGLO_CODE_F32:
        return 4 * k;
    case AGGLO_CODE_I8:
        return k;
    case AGGLO_CODE_I4:
        return (k + 1) / 2;
    default:
        return 2 * k;
    }
}

/* Stored values without a map: t = u. */
static inline agglo_target agglo_target_codes(agglo_code code, const void *values, int64_t batch, int64_t n, int64_t k)
{
    agglo_target t = {code, batch, n, k, values, NULL, AGGLO_F32, NULL, {k, 1.0f, NULL, NULL, NULL, NULL}};
    return t;
}

/* Of a tensor [B,n,C] in F32, F16 or BF16. */
static inline agglo_target agglo_target_of(const agglo_tensor *t)
{
    agglo_code code = t->dtype == AGGLO_F16    ? AGGLO_CODE_F16
                      : t->dtype == AGGLO_BF16 ? AGGLO_CODE_BF16
                                               : AGGLO_CODE_F32;
    return agglo_target_codes(code, t->data, t->shape[0], t->shape[1], t->shape[2]);
}

/* I8 or I4 with a scale per token, and one per channel where channel_scale is given. */
static inline agglo_target agglo_target_scaled(agglo_code code, const void *values, int64_t batch, int64_t n, int64_t k,
                                               const void *token_scale, agglo_dtype token_scale_dtype,
                                               const float *channel_scale)
{
    agglo_target t = agglo_target_codes(code, values, batch, n, k);

    t.token_scale = token_scale;
    t.token_scale_dtype = token_scale_dtype;
    t.channel_scale = channel_scale;
    return t;
}

/* Coefficients of a transform: t = mean + rotation^T (step q), mean[C], rotation[K,C]. */
static inline agglo_target agglo_target_transform(agglo_code code, const void *values, int64_t batch, int64_t n,
                                                  int64_t k, float step, int64_t c, const float *mean,
                                                  const float *rotation)
{
    agglo_target t = agglo_target_codes(code, values, batch, n, k);

    t.map.c = c;
    t.map.scale = step;
    t.map.matrix = rotation;
    t.map.offset = mean;
    return t;
}

/* The same left in the rotated space: t = step q + rotated_mean, rotated_mean[K] = R m (agglo_map_rotate_mean). */
static inline agglo_target agglo_target_rotated(agglo_code code, const void *values, int64_t batch, int64_t n,
                                                int64_t k, float step, const float *rotated_mean)
{
    agglo_target t = agglo_target_codes(code, values, batch, n, k);

    t.map.scale = step;
    t.map.offset = rotated_mean;
    return t;
}

/* ---- on the host, once per teacher; sums in double ---- */

/* out[K] = R m for rotation[K,C], mean[C]. */
void agglo_map_rotate_mean(int64_t k, int64_t c, const float *rotation, const float *mean, float *out);

/* One transform for two: agglo_target_transform with rotation_out[K,C] and mean_out[C] gives what standardising
 * z = mean + rotation^T c gives, t = ((z - centre) W) scale:
 *     rotation_out = scale * rotation W,   mean_out = scale * (mean - centre) W
 * centre[C] may be NULL. W is `matrix` [C,C], or `diagonal` [C], or neither (the identity). Outputs may not be inputs. K C^2
 * multiplications with a matrix: a second or two for a teacher. AGGLO_E_MEMORY. */
agglo_status agglo_map_compose(int64_t k, int64_t c, const float *rotation, const float *mean, const float *centre,
                               const float *matrix, const float *diagonal, float scale, float *rotation_out,
                               float *mean_out, agglo_err *err);

#ifdef __cplusplus
}
#endif
#endif
