/* A teacher's outputs for given pixels, for comparisons with PyTorch at full size (full_size.py):
 *
 *     teacher_outputs WEIGHTS PIXELS.npy OUT        u8 [batch, height, width, 3] -> OUT.summary.npy, OUT.spatial.npy (F32), seconds on stdout
 */
#include "base/log.h"
#include "base/npy.h"
#include "teachers/teacher.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static agglo_err err;

static void must(agglo_status status)
{
    char line[1024];

    if (status != AGGLO_OK) {
        fprintf(stderr, "teacher_outputs: %s\n", agglo_err_line(&err, line, sizeof line));
        exit(1);
    }
}

static void write_npy(const char *out, const char *what, int rank, const int64_t *shape, const float *data)
{
    char path[4096];

    snprintf(path, sizeof path, "%s.%s.npy", out, what);
    must(agglo_npy_write(path, AGGLO_F32, rank, shape, data, &err));
}

int main(int argc, char **argv)
{
    agglo_teacher_options options = agglo_teacher_options_default();
    agglo_backend *backend;
    agglo_encoder teacher;
    agglo_npy_header header;
    agglo_mapping file;
    float *summary, *spatial;
    int64_t shape[4];
    double start;

    if (argc != 4) {
        fprintf(stderr, "usage: teacher_outputs WEIGHTS PIXELS.npy OUT\n");
        return 2;
    }
    must(agglo_map_file(argv[2], &file, &err));
    must(agglo_npy_parse((agglo_bytes){file.data, file.size}, &header, &err));
    if (header.dtype != AGGLO_U8 || header.rank != 4 || header.shape[3] != 3 ||
        header.n_data_bytes != file.size - header.n_header_bytes) {
        fprintf(stderr, "teacher_outputs: %s is not u8 [batch, height, width, 3]\n", argv[2]);
        return 1;
    }
    must(agglo_backend_cpu_new(&backend, 0, &err));
    options.weights = argv[1];
    start = agglo_now();
    must(agglo_teacher_open(&teacher, backend, &options, &err));
    printf("%s: opened in %.1f s\n", teacher.info.arch, agglo_now() - start);
    shape[0] = header.shape[0];
    shape[1] = header.shape[1] / teacher.info.patch;
    shape[2] = header.shape[2] / teacher.info.patch;
    shape[3] = teacher.info.spatial_dim;
    summary = (float *)agglo_alloc((size_t)(shape[0] * teacher.info.summary_dim), sizeof *summary, &err);
    spatial = (float *)agglo_alloc((size_t)(shape[0] * shape[1] * shape[2] * shape[3]), sizeof *spatial, &err);
    must(err.status);
    start = agglo_now();
    must(teacher.encode(teacher.self, file.data + header.n_header_bytes, NULL, (int)shape[0], (int)header.shape[1],
                        (int)header.shape[2], summary, spatial, &err));
    printf("%s: %d images of %d x %d in %.1f s\n", teacher.info.arch, (int)shape[0], (int)header.shape[2],
           (int)header.shape[1], agglo_now() - start);
    write_npy(argv[3], "spatial", 4, shape, spatial);
    shape[1] = teacher.info.summary_dim;
    write_npy(argv[3], "summary", 2, shape, summary);
    agglo_free(summary);
    agglo_free(spatial);
    agglo_encoder_clear(&teacher);
    agglo_backend_free(backend);
    agglo_unmap(&file);
    return 0;
}
