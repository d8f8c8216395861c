/* The .npy writer; format: numpy.lib.format, version 1.0. */
#include "base/npy.h"

#include <stdio.h>
#include <string.h>

static const char *descr(agglo_dtype dtype)
{
    static const char *const table[] = {
        [AGGLO_F32] = "<f4", [AGGLO_F16] = "<f2", [AGGLO_BF16] = "<u2", [AGGLO_F64] = "<f8", [AGGLO_U8] = "|u1",
        [AGGLO_I8] = "|i1",  [AGGLO_U16] = "<u2", [AGGLO_I16] = "<i2",  [AGGLO_U32] = "<u4", [AGGLO_I32] = "<i4",
        [AGGLO_U64] = "<u8", [AGGLO_I64] = "<i8", [AGGLO_BOOL] = "|b1",
    };

    AGGLO_ASSERT((size_t)dtype < AGGLO_COUNT(table) && table[dtype] != NULL);
    return table[dtype];
}

agglo_status agglo_npy_write(const char *path, agglo_dtype dtype, int rank, const int64_t *shape, const void *data,
                             agglo_err *err)
{
    static const uint8_t magic[8] = {0x93, 'N', 'U', 'M', 'P', 'Y', 1, 0};
    enum { PREFIX = sizeof magic + 2, MAX_RANK = 8, ALIGN = 64 };
    size_t n_bytes = agglo_dtype_size(dtype), n_dims = 0, n_text, n_padded;
    char dims[MAX_RANK * 22 + 1] = "", text[ALIGN * 8];
    uint8_t prefix[PREFIX];
    agglo_new_file *file;

    AGGLO_ASSERT(rank >= 0 && rank <= MAX_RANK);
    for (int i = 0; i < rank; i++) { /* Python's tuple: (), (5,), (5, 6) */
        const char *behind = rank == 1 ? "," : i + 1 < rank ? ", " : "";

        n_dims += (size_t)snprintf(dims + n_dims, sizeof dims - n_dims, "%lld%s", (long long)shape[i], behind);
        AGGLO_ASSERT(shape[i] >= 0 && agglo_size_mul(n_bytes, (size_t)shape[i], &n_bytes));
    }
    n_text = (size_t)snprintf(text, sizeof text, "{'descr': '%s', 'fortran_order': False, 'shape': (%s), }",
                              descr(dtype), dims);
    /* spaces and a newline, so that the data starts at a multiple of 64 */
    n_padded = (PREFIX + n_text + 1 + ALIGN - 1) / ALIGN * ALIGN - PREFIX;
    AGGLO_ASSERT(n_padded <= sizeof text);
    memset(text + n_text, ' ', n_padded - n_text);
    text[n_padded - 1] = '\n';
    memcpy(prefix, magic, sizeof magic);
    agglo_put_le16(prefix + sizeof magic, (uint16_t)n_padded);
    if (agglo_new_file_open(&file, path, NULL, err) != AGGLO_OK) {
        return err->status;
    }
    if (agglo_new_file_write(file, prefix, PREFIX, err) != AGGLO_OK ||
        agglo_new_file_write(file, text, n_padded, err) != AGGLO_OK ||
        agglo_new_file_write(file, data, n_bytes, err) != AGGLO_OK) {
        agglo_new_file_abort(file);
        return err->status;
    }
    return agglo_new_file_commit(file, err);
}
