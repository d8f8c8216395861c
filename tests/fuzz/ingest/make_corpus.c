/* Writes the seeds of fuzz_index and fuzz_npy: whole files, and each with one thing wrong.
 *     make_ingest_corpus tests/fuzz/ingest/corpus
 * The same seeds every time; what fuzzing adds to the corpus stands beside them under names of its own.
 */
#include <stdio.h>
#include <stdlib.h>

#include "ingest/index.h"

static const char *root;

static void check(agglo_status status, const agglo_err *err)
{
    char line[1024];

    if (status != AGGLO_OK) {
        fprintf(stderr, "%s\n", agglo_err_line(err, line, sizeof line));
        exit(1);
    }
}

static char *place(const char *target, const char *name)
{
    agglo_err err = {0};
    char *dir = agglo_path_join(root, target, &err), *path = dir != NULL ? agglo_path_join(dir, name, &err) : NULL;

    check(err.status, &err);
    check(agglo_make_dirs(dir, &err), &err);
    agglo_free(dir);
    return path;
}

static void seed(const char *target, const char *name, const void *data, size_t n)
{
    agglo_err err = {0};
    char *path = place(target, name);

    check(agglo_file_write(path, data, n, &err), &err);
    agglo_free(path);
}

/* n samples in shards of `per`, every third without a sha256. */
static void index_seed(const char *name, uint32_t n, uint32_t per, const char *prefix)
{
    agglo_index_builder *builder;
    agglo_err err = {0};
    char *path = place("index", name);

    check(agglo_index_builder_new(&builder, &err), &err);
    for (uint32_t i = 0; i < n; i++) {
        char key[64];
        agglo_index_sample sample = {.image_offset = 512,
                                     .image_bytes = 100,
                                     .json_offset = 1024,
                                     .json_bytes = i % 2 * 20,
                                     .width = 29,
                                     .height = 21,
                                     .format = 1,
                                     .orientation = 1,
                                     .label = -1,
                                     .has_sha256 = i % 3 != 0,
                                     .key = key};

        snprintf(key, sizeof key, "%s%u", prefix, (n - i) / 2);
        agglo_put_le32(sample.uid, i * 2654435761u);
        if (sample.has_sha256) {
            memset(sample.sha256.bytes, (int)i, 32);
        }
        check(agglo_index_builder_add(builder, &sample, &err), &err);
        if (i % per == per - 1 || i + 1 == n) {
            check(agglo_index_builder_shard(builder, 4096, (agglo_hash128){{(uint8_t)i}}, &err), &err);
        }
    }
    check(agglo_index_builder_write(builder, path, &err), &err);
    agglo_index_builder_free(builder);
    agglo_free(path);
}

static void indexes(void)
{
    agglo_err err = {0};
    char *path, *bytes;
    size_t n;

    index_seed("none", 0, 1, "");
    index_seed("one", 1, 1, "");
    index_seed("two", 2, 2, "k");
    index_seed("nine", 9, 4, "0000000");
    index_seed("many", 40, 10, "the same eight bytes and more ");
    path = place("index", "nine");
    check(agglo_file_read(path, 1 << 20, &bytes, &n, &err), &err);
    seed("index", "cut", bytes, n - 20);
    bytes[8] = 1;
    seed("index", "version_1", bytes, n);
    agglo_free(bytes);
    agglo_free(path);
}

static void lists(void)
{
    static const struct {
        const char *name, *header;
    } headers[] = {
        {"pairs", "{'descr': [('f0', '<u8'), ('f1', '<u8')], 'fortran_order': False, 'shape': (2,), }    \n"},
        {"rows", "{'descr': '<u8', 'fortran_order': False, 'shape': (2, 2), }\n"},
        {"other_order",
         "{\"shape\": (2,), \"fortran_order\": True, \"descr\": [(\"a\\\"b\", \"=u8\"), ('', '<u8',),],}"},
        {"too_many", "{'descr': '<u8', 'fortran_order': False, 'shape': (3, 2), }\n"},
        {"overflow", "{'descr': '<u8', 'fortran_order': False, 'shape': (9223372036854775807, 2), }\n"},
        {"fortran", "{'descr': '<u8', 'fortran_order': True, 'shape': (2, 2), }\n"},
        {"objects", "{'descr': '|O', 'fortran_order': False, 'shape': (2, 2), }\n"},
        {"floats", "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1, 4), }\n"},
        {"scalar", "{'descr': '|b1', 'fortran_order': False, 'shape': (), }\n"},
        {"inner", "{'descr': [('a', [('b', '<u8')]), ('c', '<u8', (2,))], 'fortran_order': False, 'shape': (2,), }\n"},
        {"open", "{'descr': [('f0', '<u8'), ('f1', '<u8'"},
    };
    static const char text[] = "# uids\r\n\n00112233445566778899aabbccddeeff\n\t \n"
                               "FFEEDDCCBBAA99887766554433221100\r\n00112233445566778899aabbccddeeff",
                      bad[] = "00112233445566778899aabbccddeeff\n0011\n";
    uint8_t file[512];

    for (size_t i = 0; i < AGGLO_COUNT(headers); i++) {
        size_t n_text = strlen(headers[i].header), at = i % 3 == 0 ? 10 : 12;

        memset(file, 0, sizeof file);
        memcpy(file, "\x93NUMPY", 6);
        file[6] = (uint8_t)(1 + i % 3);
        agglo_put_le16(file + 8, (uint16_t)n_text);
        memcpy(file + at, headers[i].header, n_text);
        for (size_t k = 0; k < 32; k++) {
            file[at + n_text + k] = (uint8_t)(k + 1);
        }
        seed("npy", headers[i].name, file, at + n_text + 32);
    }
    seed("npy", "text", text, strlen(text));
    seed("npy", "bad_text", bad, strlen(bad));
    seed("npy", "nothing", "", 0);
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: %s CORPUS\n", argv[0]);
        return 2;
    }
    root = argv[1];
    indexes();
    lists();
    return 0;
}
