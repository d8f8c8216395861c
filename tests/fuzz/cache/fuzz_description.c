/* Any text as cache.json, or (behind a '#') as a teacher.json: the cache opens or is refused, and what opens can be read from. */
#include <stdio.h>
#include <stdlib.h>

#include "base/fs.h"
#include "cache/cache.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char dir[] = "/tmp/agglo-fuzz-XXXXXX";

static void remove_dir(void)
{
    agglo_err err = {0};

    agglo_remove_tree(dir, &err);
}

static const char *in_dir(const char *name)
{
    static char path[256];

    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

/* Not agglo_file_write: syncing would take all the time. */
static void write_file(const char *name, const void *data, size_t size)
{
    FILE *f = fopen(in_dir(name), "wb");

    if (f == NULL || fwrite(data, 1, size, f) != size || fclose(f) != 0) {
        perror(in_dir(name));
        abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char groups[] = "{\"format\": 1, \"groups\": [{\"name\": \"main\", \"fingerprint\": \"00\"}]}";
    static const char teacher[] =
        "{\"format\": 1, \"name\": \"t\", \"arch\": \"a\", \"weights\": \"\", \"preprocess\": \"\", \"codec\": "
        "\"fp16\","
        " \"options\": \"\", \"input\": 32, \"patch\": 4, \"grid_h\": 8, \"grid_w\": 8, \"summary_dim\": 4,"
        " \"spatial_dim\": 8}";
    const bool is_teacher = size > 0 && data[0] == '#';
    agglo_cache *cache = NULL;
    uint8_t *buffer = NULL;
    size_t capacity = 0;
    agglo_record record;
    agglo_err err = {0};

    if (strstr(dir, "XXXXXX") != NULL) {
        if (mkdtemp(dir) == NULL || agglo_make_dirs(in_dir("t"), &err) != AGGLO_OK) {
            perror(dir);
            abort();
        }
        atexit(remove_dir);
    }
    if (is_teacher) {
        write_file("cache.json", groups, sizeof groups - 1);
        write_file("t/teacher.json", data + 1, size - 1);
    } else {
        write_file("cache.json", data, size);
        write_file("t/teacher.json", teacher, sizeof teacher - 1);
    }
    if (agglo_cache_open(&cache, dir, 1, &err) == AGGLO_OK) {
        AGGLO_ASSERT(agglo_cache_teachers(cache) == 1 && agglo_cache_find_teacher(cache, "t") != NULL);
        for (size_t i = 0; i < agglo_cache_groups(cache); i++) {
            const char *group = agglo_cache_group_at(cache, i)->name;

            AGGLO_ASSERT(strchr(group, '/') == NULL && strlen(group) >= 1);
            AGGLO_ASSERT(agglo_cache_read(cache, "t", group, 0, 0, 0, NULL, &buffer, &capacity, &record, &err) ==
                         AGGLO_E_NOT_FOUND);
            agglo_err_clear(&err);
        }
    }
    agglo_cache_close(cache);
    return 0;
}
