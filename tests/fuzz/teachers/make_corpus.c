/* Writes the seeds of the fuzz targets for teachers: make_teachers_corpus DIR. A tiny model in every layout, plain and wrapped; a set of two files;
 * the JSON of every library. */
#include "base/log.h"
#include "teachers/layout_impl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static agglo_err err;

static void must(agglo_status status)
{
    char line[1024];

    if (status != AGGLO_OK) {
        fprintf(stderr, "%s\n", agglo_err_line(&err, line, sizeof line));
        exit(1);
    }
}

static void put(const char *dir, const char *sub, const char *name, const void *data, size_t n)
{
    char path[512];

    snprintf(path, sizeof path, "%s/%s", dir, sub);
    must(agglo_make_dirs(path, &err));
    snprintf(path, sizeof path, "%s/%s/%s", dir, sub, name);
    must(agglo_file_write(path, data, n, &err));
}

static void write_model(const char *dir, const char *name, const agglo_layout *layout, const char *outer, int chunk,
                        bool swiglu, int registers, agglo_dtype dtype)
{
    static uint8_t zeros[1 << 16];
    bool clip = strcmp(layout->family, "clip") == 0, sam = strcmp(layout->family, "sam") == 0;
    agglo_layout_found where = {.layout = layout, .chunk = chunk};
    agglo_teacher_config c;
    agglo_layout_tensor *tensors;
    agglo_st_writer *writer;
    char path[512];
    size_t n;

    snprintf(where.outer, sizeof where.outer, "%s", outer);
    snprintf(where.prefix, sizeof where.prefix, "%s%s", outer, layout->prefixes[0]);
    must(agglo_teacher_named(layout->family, &c, &err));
    c.dim = 4;
    c.depth = chunk > 0 || sam ? 2 : 1;
    c.heads = 1;
    c.mlp_dim = 4;
    c.patch = 1;
    c.image = 2;
    c.proj = clip ? 2 : 0;
    c.registers = registers;
    c.swiglu = swiglu;
    if (sam) { /* windows with padding, then a global block; a neck */
        c.image = 3;
        c.window = 2;
        c.neck = 2;
        memset(c.global_layers, 0, sizeof c.global_layers);
        c.global_layers[0] = 2;
    }
    must(agglo_layout_expand(&where, &c, &tensors, &n, &err));
    must(agglo_st_writer_new(&writer, &err));
    for (size_t i = 0; i < n; i++) {
        must(agglo_st_writer_add(writer, tensors[i].name, dtype, tensors[i].rank, tensors[i].shape, zeros, &err));
    }
    snprintf(path, sizeof path, "%s/teacher", dir);
    must(agglo_make_dirs(path, &err));
    snprintf(path, sizeof path, "%s/teacher/%s", dir, name);
    must(agglo_st_writer_write(writer, path, &err));
    agglo_st_writer_free(writer);
    agglo_free(tensors);
}

static size_t small_file(char *out, const char *tensor)
{
    char header[128];
    size_t n = (size_t)snprintf(header, sizeof header,
                                "{\"%s\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", tensor);

    memset(out, 0, 8);
    out[0] = (char)n;
    memcpy(out + 8, header, n);
    out[8 + n] = 7;
    return n + 9;
}

static void write_set(const char *dir, const char *name, const char *index)
{
    char data[1024];
    size_t n = strlen(index), n_first;

    memcpy(data, index, n);
    data[n++] = '\n';
    n_first = small_file(data + n + 4, "a");
    memset(data + n, 0, 4);
    data[n] = (char)n_first;
    n += 4 + n_first;
    n += small_file(data + n, "b");
    put(dir, "weights", name, data, n);
}

/* 16 bytes of shapes as fuzz_facts reads them (those that the texts state), then the text. */
static void write_facts(const char *dir, const char *name, const char *text)
{
    enum { DIM = 64, MLP = 256, DEPTH = 2, PATCH = 8, GRID = 8, PROJ = 64, WINDOW = 3, HEADS = 1 };
    uint8_t data[2048] = {0};
    bool clip = strstr(name, "dinov2") == NULL, sam = strncmp(name, "sam", 3) == 0;
    size_t n = strlen(text);

    data[0] = DIM - 1;
    data[4] = MLP - 1;
    data[8] = DEPTH - 1;
    data[10] = PATCH - 1;
    data[11] = GRID - 1;
    data[12] = sam ? 32 : clip ? PROJ : 0;
    data[13] = sam ? WINDOW : 0;
    data[14] = HEADS - 1;
    data[15] = 2; /* the second block of every eight is global */
    if (n > sizeof data - 16) {
        fprintf(stderr, "%s is too long\n", name);
        exit(1);
    }
    memcpy(data + 16, text, n);
    put(dir, "facts", name, data, 16 + n);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name, *text;
    } facts[] = {
        {"transformers", "c{\"model_type\": \"clip\", \"projection_dim\": 64, \"vision_config\": {\"hidden_size\": 64, "
                         "\"hidden_act\": \"gelu\", "
                         "\"num_attention_heads\": 1, \"layer_norm_eps\": 1e-05, \"image_size\": 64}}"},
        {"dinov2", "c{\"model_type\": \"dinov2\", \"use_swiglu_ffn\": false, \"num_register_tokens\": 0, "
                   "\"num_attention_heads\": 1, \"num_hidden_layers\": 2}"},
        {"dinov2-default", "c{\"architectures\": [\"Dinov2Model\"], \"hidden_size\": 64}"},
        {"sam", "c{\"model_type\": \"sam\", \"vision_config\": {\"hidden_size\": 64, \"num_attention_heads\": 1, "
                "\"output_channels\": 32, \"window_size\": 3, \"global_attn_indexes\": [1]}}"},
        {"sam-preprocessor", "p{\"image_processor_type\": \"SamImageProcessor\", \"image_mean\": [0.5, 0.5, 0.5], "
                             "\"image_std\": [0.5, 0.5, 0.5], \"size\": {\"longest_edge\": 64}}"},
        {"open-clip", "o{\"model_cfg\": {\"embed_dim\": 64, \"quick_gelu\": true, \"vision_cfg\": {\"image_size\": 64, "
                      "\"layers\": 2, \"width\": "
                      "64, \"head_width\": 64, \"patch_size\": 8, \"mlp_ratio\": 4.0, \"norm_kwargs\": {\"eps\": "
                      "1e-6}}}, \"preprocess_cfg\": "
                      "{\"mean\": [0.5, 0.5, 0.5], \"std\": [0.5, 0.5, 0.5], \"interpolation\": \"bicubic\", "
                      "\"resize_mode\": \"squash\"}}"},
        {"timm", "t{\"architecture\": \"vit_clip_quickgelu\", \"model_args\": {\"act_layer\": \"quickgelu\", "
                 "\"num_heads\": 2}, "
                 "\"pretrained_cfg\": {\"mean\": [0.5, "
                 "0.5, 0.5], \"std\": [0.5, 0.5, 0.5], \"interpolation\": \"bilinear\", \"crop_mode\": \"squash\"}}"},
        {"preprocessor",
         "p{\"image_mean\": [0.5, 0.5, 0.5], \"image_std\": [0.5, 0.5, 0.5], \"size\": {\"height\": 8, \"width\": 8}, "
         "\"do_center_crop\": false, \"resample\": 3}"},
        {"preprocessor-vit",
         "p{\"feature_extractor_type\": \"ViTFeatureExtractor\", \"image_mean\": [0.5, 0.5, 0.5], "
         "\"image_std\": [0.5, 0.5, 0.5], \"size\": 8, \"crop_size\": {\"height\": 8, \"width\": 8}}"},
    };
    const char *dir;

    if (argc != 2) {
        fprintf(stderr, "usage: make_teachers_corpus DIR\n");
        return 2;
    }
    dir = argv[1];
    write_model(dir, "clip-transformers", &agglo_layout_clip_hf, "", 0, false, 0, AGGLO_F32);
    write_model(dir, "clip-open", &agglo_layout_clip_open, "", 0, false, 0, AGGLO_F32);
    write_model(dir, "clip-open-f16", &agglo_layout_clip_open, "module.", 0, false, 0, AGGLO_F16);
    write_model(dir, "clip-timm", &agglo_layout_clip_timm, "", 0, false, 0, AGGLO_BF16);
    write_model(dir, "dinov2-transformers", &agglo_layout_dinov2_hf, "dinov2.", 0, false, 0, AGGLO_F32);
    write_model(dir, "dinov2-registers", &agglo_layout_dinov2_hf, "", 0, false, 2, AGGLO_F32);
    write_model(dir, "dinov2-hub", &agglo_layout_dinov2_hub, "", 0, true, 0, AGGLO_F32);
    write_model(dir, "dinov2-chunked", &agglo_layout_dinov2_hub, "teacher.backbone.", 1, false, 1, AGGLO_F64);
    write_model(dir, "sam-transformers", &agglo_layout_sam_hf, "", 0, false, 0, AGGLO_F32);
    write_model(dir, "sam-original", &agglo_layout_sam_original, "", 0, false, 0, AGGLO_F16);
    write_set(dir, "good", "{\"weight_map\": {\"a\": \"m-1.safetensors\", \"b\": \"m-2.safetensors\"}}");
    write_set(dir, "elsewhere", "{\"weight_map\": {\"a\": \"../m-1.safetensors\", \"b\": \"m-2.safetensors\"}}");
    write_set(dir, "swapped", "{\"weight_map\": {\"b\": \"m-1.safetensors\", \"a\": \"m-2.safetensors\"}}");
    write_set(dir, "one", "{\"metadata\": {\"total_size\": 2}, \"weight_map\": {\"a\": \"m-1.safetensors\"}}");
    for (size_t i = 0; i < AGGLO_COUNT(facts); i++) {
        write_facts(dir, facts[i].name, facts[i].text);
    }
    return 0;
}
