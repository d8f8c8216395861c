/* Writes the seeds of this folder's fuzz targets: whole records, manifests and descriptions, and each with one thing wrong.
 *     make_cache_corpus tests/fuzz/cache/corpus
 * The same seeds every time; what fuzzing adds to the corpus stands beside them under names of its own.
 */
#include <stdio.h>
#include <stdlib.h>

#include "base/alloc.h"
#include "base/fs.h"
#include "cache/unit_impl.h"

static const char *root;

static void seed(const char *target, const char *name, const void *data, size_t n)
{
    agglo_err err = {0};
    char *dir = agglo_path_join(root, target, &err), *path = dir != NULL ? agglo_path_join(dir, name, &err) : NULL;
    char line[1024];

    if (path == NULL || agglo_make_dirs(dir, &err) != AGGLO_OK || agglo_file_write(path, data, n, &err) != AGGLO_OK) {
        fprintf(stderr, "%s\n", agglo_err_line(&err, line, sizeof line));
        exit(1);
    }
    agglo_free(path);
    agglo_free(dir);
}

static void records(void)
{
    static const struct {
        const char *name;
        agglo_codec_id codec;
        uint16_t grid_h, grid_w, summary_dim, spatial_dim;
    } whole[] = {
        {"fp32", AGGLO_CODEC_FP32, 1, 2, 3, 2},       {"fp16", AGGLO_CODEC_FP16, 2, 2, 4, 3},
        {"bf16", AGGLO_CODEC_BF16, 2, 1, 1, 5},       {"no_summary", AGGLO_CODEC_FP16, 2, 2, 0, 2},
        {"no_spatial", AGGLO_CODEC_FP16, 0, 9, 4, 7}, {"empty", AGGLO_CODEC_FP32, 0, 0, 0, 0},
    };
    /* one field of "fp16" put wrong: offset, value */
    static const struct {
        const char *name;
        size_t at;
        uint8_t value;
    } wrong[] = {
        {"bad_magic", 0, 'B'},        {"bad_version", 4, 2},        {"bad_codec", 5, 77},
        {"bad_header_size", 6, 65},   {"bad_grid", 8, 3},           {"huge_grid", 9, 0xff},
        {"huge_channels", 15, 0xff},  {"negative_x", 19, 0x80},     {"no_width", 24, 0},
        {"box_overflows", 27, 0x7f},  {"bad_flip", 36, 2},          {"bad_padding", 37, 1},
        {"bad_summary_bytes", 48, 1}, {"bad_spatial_bytes", 52, 1}, {"bad_bytes", 56, 1},
        {"bad_reserved", 60, 1},      {"infinite", 65, 0x7c},
    };
    const float values[16] = {0.5f, -1.0f, 0.0f, -0.0f, 65504.0f, 6e-8f, 3.0f, -0.25f, 1e-3f, 7.0f};
    uint8_t bytes[512];
    agglo_err err = {0};
    size_t n = 0;

    for (size_t i = 0; i < AGGLO_COUNT(whole); i++) {
        agglo_record_info info = {
            .codec = whole[i].codec,
            .grid_h = whole[i].grid_h,
            .grid_w = whole[i].grid_w,
            .summary_dim = whole[i].summary_dim,
            .spatial_dim = whole[i].spatial_dim,
            .x = 5,
            .w = 640,
            .h = 48,
            .flip = i % 2 == 0,
            .input_w = 32,
            .input_h = 32,
            .pixel_hash = 0x0123456789abcdefu,
        };

        AGGLO_ASSERT(agglo_record_max_bytes(&info) <= sizeof bytes);
        AGGLO_ASSERT(agglo_record_encode(&info, values, values, bytes, &n, &err) == AGGLO_OK);
        seed("record", whole[i].name, bytes, n);
        if (whole[i].codec == AGGLO_CODEC_FP16 && whole[i].grid_h == 2 && whole[i].summary_dim == 4) {
            for (size_t k = 0; k < AGGLO_COUNT(wrong); k++) {
                uint8_t held = bytes[wrong[k].at];

                bytes[wrong[k].at] = wrong[k].value;
                seed("record", wrong[k].name, bytes, n);
                bytes[wrong[k].at] = held;
            }
            seed("record", "cut_header", bytes, 63);
            seed("record", "cut_payload", bytes, n - 9);
            seed("record", "longer", bytes, n + 1);
        }
    }
    seed("record", "nothing", bytes, 0);
}

/* A copy of `text` with the first `from` replaced, as a seed. */
static void changed(const char *target, const char *name, const char *text, const char *from, const char *to)
{
    const char *at = strstr(text, from);
    agglo_err err = {0};
    char *copy;

    AGGLO_ASSERT(at != NULL);
    copy = agglo_format(&err, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    AGGLO_ASSERT(copy != NULL);
    seed(target, name, copy, strlen(copy));
    agglo_free(copy);
}

static void manifests(void)
{
    static const struct {
        const char *name, *from, *to;
    } wrong[] = {
        {"huge_records", "\"records\": 38", "\"records\": 9223372036854775807"},
        {"negative_records", "\"records\": 38", "\"records\": -38"},
        {"real_records", "\"records\": 38", "\"records\": 38.0"},
        {"no_records", "\"records\": 38,", ""},
        {"huge_shard", "\"shard\": 3", "\"shard\": 4294967296"},
        {"huge_file", "\"file_bytes\": 4096", "\"file_bytes\": 99999999999999999999"},
        {"views_reversed", "\"view_first\": 0", "\"view_first\": 2"},
        {"views_beyond", "\"view_last\": 1", "\"view_last\": 256"},
        {"ordinals_reversed", "\"first_ordinal\": 0", "\"first_ordinal\": 20"},
        {"teacher_path", "\"teacher\": \"clip\"", "\"teacher\": \"../clip\""},
        {"teacher_hidden", "\"teacher\": \"clip\"", "\"teacher\": \".clip\""},
        {"group_path", "\"group\": \"main\"", "\"group\": \"a/b\""},
        {"group_long", "\"group\": \"main\"", "\"group\": \"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\""},
        {"provenance_list", "\"provenance\": {", "\"provenance\": [], \"was\": {"},
        {"skipped_number", "\"skipped\": [", "\"skipped\": [1, "},
        {"skipped_object", "\"skipped\": [", "\"skipped\": {}, \"was\": ["},
        {"hash_short", "\"file_xxh3_128\": \"00", "\"file_xxh3_128\": \""},
        {"format_later", "\"format\": 1", "\"format\": 2"},
        {"twice", "\"shard\": 3", "\"shard\": 3, \"shard\": 3"},
        {"not_utf8", "\"codec\": \"fp16\"", "\"codec\": \"\xff\xfe\""},
        {"surrogate", "\"codec\": \"fp16\"", "\"codec\": \"\\ud800\""},
        {"nul", "\"codec\": \"fp16\"", "\"codec\": \"fp16\\u0000\""},
    };
    agglo_manifest m = {.id = {.teacher = "clip", .group = "main", .shard = 3, .view_first = 0, .view_last = 1},
                        .provenance = {.shard = "aa", .views = "bb", .weights = "ee", .codec = "fp16"},
                        .n_records = 38,
                        .last_ordinal = 19,
                        .n_skipped = 1,
                        .payload_bytes = 4000,
                        .file_bytes = 4096};
    json_t *skipped = json_pack("[{s:i, s:s, s:s}, {s:i, s:n, s:s}]", "ordinal", 1, "key", "000001", "reason",
                                "truncated", "ordinal", 2, "key", "reason", "corrupt");
    agglo_err err = {0};
    char *text = NULL, *tail, deep[4096] = "{\"format\": ";
    size_t n = 0;

    AGGLO_ASSERT(agglo_manifest_print(&m, skipped, &text, &n, &err) == AGGLO_OK);
    seed("manifest", "whole", text, n);
    tail = strstr(text, "  \"checksum\"");
    AGGLO_ASSERT(tail != NULL);
    *tail = '\0'; /* the target appends the checksum */
    seed("manifest", "open", text, strlen(text));
    for (size_t i = 0; i < AGGLO_COUNT(wrong); i++) {
        changed("manifest", wrong[i].name, text, wrong[i].from, wrong[i].to);
    }
    agglo_free(text);
    json_decref(skipped);
    memset(deep + strlen(deep), '[', 3000);
    seed("manifest", "deep", deep, strlen(deep));
    seed("manifest", "nothing", "", 0);
    seed("manifest", "name", "main-000123-v0-3.json", 21);
    seed("manifest", "name_large", "a_1-4294967295-v255-255.json", 28);
    seed("manifest", "name_path", "../main-000123-v0-3.json", 24);
}

static void descriptions(void)
{
    static const char groups[] = "{\"format\": 1, \"groups\": [\n"
                                 "{\"name\": \"main\", \"fingerprint\": \"00ff\", \"parameters\": {\"count\": 4}},\n"
                                 "{\"name\": \"hires\", \"fingerprint\": \"01\"}]}\n";
    static const char teacher[] =
        "#{\"format\": 1, \"name\": \"t\", \"arch\": \"clip\", \"weights\": \"ab\", \"preprocess\": \"cd\",\n"
        "\"codec\": \"fp16\", \"options\": \"\", \"input\": 32, \"patch\": 4, \"grid_h\": 8, \"grid_w\": 8,\n"
        "\"summary_dim\": 4, \"spatial_dim\": 8}\n";

    seed("description", "groups", groups, strlen(groups));
    changed("description", "groups_twice", groups, "hires", "main");
    changed("description", "groups_path", groups, "hires", "../x");
    changed("description", "groups_long", groups, "hires", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa");
    changed("description", "groups_number", groups, "{\"name\": \"hires\"", "7, {\"name\": \"hires\"");
    changed("description", "groups_later", groups, "\"format\": 1", "\"format\": 2");
    seed("description", "groups_none", "{\"format\": 1, \"groups\": []}", 27);
    seed("description", "teacher", teacher, strlen(teacher));
    changed("description", "teacher_path", teacher, "\"name\": \"t\"", "\"name\": \"../t\"");
    changed("description", "teacher_other", teacher, "\"name\": \"t\"", "\"name\": \"u\"");
    changed("description", "teacher_huge", teacher, "\"grid_h\": 8", "\"grid_h\": 65536");
    changed("description", "teacher_negative", teacher, "\"patch\": 4", "\"patch\": -4");
    changed("description", "teacher_text", teacher, "\"patch\": 4", "\"patch\": \"4\"");
    changed("description", "teacher_missing", teacher, "\"codec\": \"fp16\",", "");
    seed("description", "nothing", "", 0);
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: %s CORPUS\n", argv[0]);
        return 2;
    }
    root = argv[1];
    records();
    manifests();
    descriptions();
    return 0;
}
