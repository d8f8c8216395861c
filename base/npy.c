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
    agglo_new_file *file;
    char header[512];
    size_t n_bytes = agglo_dtype_size(dtype), used, total;

    used = (size_t)snprintf(header, sizeof header, "%c%s%c%c%c%c{'descr': '%s', 'fortran_order': False, 'shape': (",
                            0x93, "NUMPY", 1, 1, 1, 1, descr(dtype));
    header[7] = 0; /* version 1.0; the length of the rest stands in 8 and 9 */
    AGGLO_ASSERT(rank >= 0 && rank <= 8);
    for (int i = 0; i < rank; i++) {
        used += (size_t)snprintf(header + used, sizeof header - used, i + 1 < rank || rank == 1 ? "%lld, " : "%lld",
                                 (long long)shape[i]);
        AGGLO_ASSERT(agglo_size_mul(n_bytes, (size_t)shape[i], &n_bytes));
    }
    if (rank == 1) {
        used--; /* "(5, )" reads too, "(5,)" is how NumPy writes it */
    }
    used += (size_t)snprintf(header + used, sizeof header - used, "), }");
    total = (used + 1 + 63) / 64 * 64;
    memset(header + used, ' ', total - used - 1);
    header[total - 1] = '\n';
    header[8] = (char)((total - 10) & 255);
    header[9] = (char)((total - 10) >> 8);
    if (agglo_new_file_open(&file, path, NULL, err) != AGGLO_OK) {
        return err->status;
    }
    if (agglo_new_file_write(file, header, total, err) != AGGLO_OK ||
        agglo_new_file_write(file, data, n_bytes, err) != AGGLO_OK) {
        agglo_new_file_abort(file);
        return err->status;
    }
    return agglo_new_file_commit(file, err);
}
