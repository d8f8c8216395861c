/* SAM's image encoder (Kirillov et al., ICCV 2023; a ViTDet: Li et al., ECCV 2022) as transformers' SamModel stores it and as
 * segment_anything does. What else such files hold, prompt encoder and mask decoder, is known and not used. */
#include "teachers/sam_impl.h"

#include <stdio.h>
#include <string.h>

#define ALWAYS AGGLO_ROW_ALWAYS
#define NECK   AGGLO_ROW_NECK

static const agglo_layout_row top_hf[] = {
    {"pos_embed", "pos", "1ggd", AGGLO_ROW_TOKEN, ALWAYS, 0},
    {"patch_embed.projection.weight", "patch.weight", "dcpp", AGGLO_ROW_LINEAR, ALWAYS, 0},
    {"patch_embed.projection.bias", "patch.bias", "d", AGGLO_ROW_BIAS, ALWAYS, 0},
    {"neck.conv1.weight", "neck.conv1.weight", "od11", AGGLO_ROW_LINEAR, NECK, 0},
    {"neck.layer_norm1.weight", "neck.norm1.weight", "o", AGGLO_ROW_NORM, NECK, 0},
    {"neck.layer_norm1.bias", "neck.norm1.bias", "o", AGGLO_ROW_BIAS, NECK, 0},
    {"neck.conv2.weight", "neck.conv2.weight", "oo33", AGGLO_ROW_LINEAR, NECK, 0},
    {"neck.layer_norm2.weight", "neck.norm2.weight", "o", AGGLO_ROW_NORM, NECK, 0},
    {"neck.layer_norm2.bias", "neck.norm2.bias", "o", AGGLO_ROW_BIAS, NECK, 0},
};

static const agglo_layout_row block_hf[] = {
    {"layer_norm1.weight", "norm1.weight", "d", AGGLO_ROW_NORM, ALWAYS, 0},
    {"layer_norm1.bias", "norm1.bias", "d", AGGLO_ROW_BIAS, ALWAYS, 0},
    {"attn.qkv.weight", "attn.qkv.weight", "td", AGGLO_ROW_LINEAR, ALWAYS, 0},
    {"attn.qkv.bias", "attn.qkv.bias", "t", AGGLO_ROW_BIAS, ALWAYS, 0},
    {"attn.proj.weight", "attn.proj.weight", "dd", AGGLO_ROW_LINEAR, ALWAYS, 0},
    {"attn.proj.bias", "attn.proj.bias", "d", AGGLO_ROW_BIAS, ALWAYS, 0},
    {"attn.rel_pos_h", "attn.rel_pos_h", "sk", AGGLO_ROW_LINEAR, ALWAYS, 0},
    {"attn.rel_pos_w", "attn.rel_pos_w", "sk", AGGLO_ROW_LINEAR, ALWAYS, 0},
    {"layer_norm2.weight", "norm2.weight", "d", AGGLO_ROW_NORM, ALWAYS, 0},
    {"layer_norm2.bias", "norm2.bias", "d", AGGLO_ROW_BIAS, ALWAYS, 0},
    {"mlp.lin1.weight", "mlp.fc1.weight", "md", AGGLO_ROW_LINEAR, ALWAYS, 0},
    {"mlp.lin1.bias", "mlp.fc1.bias", "m", AGGLO_ROW_BIAS, ALWAYS, 0},
    {"mlp.lin2.weight", "mlp.fc2.weight", "dm", AGGLO_ROW_LINEAR, ALWAYS, 0},
    {"mlp.lin2.bias", "mlp.fc2.bias", "d", AGGLO_ROW_BIAS, ALWAYS, 0},
};

static const agglo_layout_row top_original[] = {
    {"pos_embed", "pos", "1ggd", AGGLO_ROW_TOKEN, ALWAYS, 0},
    {"patch_embed.proj.weight", "patch.weight", "dcpp", AGGLO_ROW_LINEAR, ALWAYS, 0},
    {"patch_embed.proj.bias", "patch.bias", "d", AGGLO_ROW_BIAS, ALWAYS, 0},
    {"neck.0.weight", "neck.conv1.weight", "od11", AGGLO_ROW_LINEAR, NECK, 0},
    {"neck.1.weight", "neck.norm1.weight", "o", AGGLO_ROW_NORM, NECK, 0},
    {"neck.1.bias", "neck.norm1.bias", "o", AGGLO_ROW_BIAS, NECK, 0},
    {"neck.2.weight", "neck.conv2.weight", "oo33", AGGLO_ROW_LINEAR, NECK, 0},
    {"neck.3.weight", "neck.norm2.weight", "o", AGGLO_ROW_NORM, NECK, 0},
    {"neck.3.bias", "neck.norm2.bias", "o", AGGLO_ROW_BIAS, NECK, 0},
};

static const agglo_layout_row block_original[] = {
    {"norm1.weight", "norm1.weight", "d", AGGLO_ROW_NORM, ALWAYS, 0},
    {"norm1.bias", "norm1.bias", "d", AGGLO_ROW_BIAS, ALWAYS, 0},
    {"attn.qkv.weight", "attn.qkv.weight", "td", AGGLO_ROW_LINEAR, ALWAYS, 0},
    {"attn.qkv.bias", "attn.qkv.bias", "t", AGGLO_ROW_BIAS, ALWAYS, 0},
    {"attn.proj.weight", "attn.proj.weight", "dd", AGGLO_ROW_LINEAR, ALWAYS, 0},
    {"attn.proj.bias", "attn.proj.bias", "d", AGGLO_ROW_BIAS, ALWAYS, 0},
    {"attn.rel_pos_h", "attn.rel_pos_h", "sk", AGGLO_ROW_LINEAR, ALWAYS, 0},
    {"attn.rel_pos_w", "attn.rel_pos_w", "sk", AGGLO_ROW_LINEAR, ALWAYS, 0},
    {"norm2.weight", "norm2.weight", "d", AGGLO_ROW_NORM, ALWAYS, 0},
    {"norm2.bias", "norm2.bias", "d", AGGLO_ROW_BIAS, ALWAYS, 0},
    {"mlp.lin1.weight", "mlp.fc1.weight", "md", AGGLO_ROW_LINEAR, ALWAYS, 0},
    {"mlp.lin1.bias", "mlp.fc1.bias", "m", AGGLO_ROW_BIAS, ALWAYS, 0},
    {"mlp.lin2.weight", "mlp.fc2.weight", "dm", AGGLO_ROW_LINEAR, ALWAYS, 0},
    {"mlp.lin2.bias", "mlp.fc2.bias", "d", AGGLO_ROW_BIAS, ALWAYS, 0},
};

/* Models made of SAM keep it under "sam."; a bare image encoder has no prefix. */
static const char *const prefixes_hf[] = {"vision_encoder.", "sam.vision_encoder.", NULL};
static const char *const prefixes_original[] = {"image_encoder.", "sam.image_encoder.", "", NULL};
/* a ViT of timm's or DINOv2's own has the patch convolution's name too */
static const char *const marks_hf[] = {"layers.0.attn.rel_pos_h", NULL};
static const char *const marks_original[] = {"blocks.0.attn.rel_pos_h", NULL};
static const char *const ignored[] = {"prompt_encoder.",
                                      "mask_decoder.",
                                      "shared_image_embedding.",
                                      "pixel_mean",
                                      "pixel_std",
                                      "sam.prompt_encoder.",
                                      "sam.mask_decoder.",
                                      "sam.shared_image_embedding.",
                                      "sam.pixel_mean",
                                      "sam.pixel_std",
                                      NULL};

const agglo_layout agglo_layout_sam_hf = {
    .family = "sam",
    .prefixes = prefixes_hf,
    .probe = "patch_embed.projection.weight",
    .marks = marks_hf,
    .block = "layers.",
    .top = top_hf,
    .n_top = AGGLO_COUNT(top_hf),
    .in_block = block_hf,
    .n_in_block = AGGLO_COUNT(block_hf),
    .ignored = ignored,
    .mlp_plain = "mlp.lin1.weight",
    .more = agglo_sam_read_shapes,
    .defaults_act = "gelu",
};

const agglo_layout agglo_layout_sam_original = {
    .family = "sam",
    .prefixes = prefixes_original,
    .probe = "patch_embed.proj.weight",
    .marks = marks_original,
    .block = "blocks.",
    .top = top_original,
    .n_top = AGGLO_COUNT(top_original),
    .in_block = block_original,
    .n_in_block = AGGLO_COUNT(block_original),
    .ignored = ignored,
    .mlp_plain = "mlp.lin1.weight",
    .more = agglo_sam_read_shapes,
    .defaults_act = "gelu",
};

static const agglo_st_tensor *find(const agglo_weights *weights, const char *prefix, const char *block,
                                   const char *name, char full[192])
{
    snprintf(full, 192, "%s%s%s", prefix, block, name);
    return agglo_weights_find(weights, full);
}

static agglo_status refuse(const agglo_weights *weights, const agglo_st_tensor *t, const char *name,
                           const char *expected, agglo_err *err)
{
    if (t == NULL) {
        agglo_fail(err, AGGLO_E_DATA, "tensor %s is missing, expected shape %s", name, expected);
    } else {
        agglo_fail(err, AGGLO_E_DATA, "tensor %s has %d axes of odd extents, expected shape %s", name, t->rank,
                   expected);
    }
    return agglo_at(err, "%s", agglo_weights_path(weights));
}

agglo_status agglo_sam_read_shapes(const agglo_weights *weights, const agglo_layout *layout, const char *prefix,
                                   agglo_teacher_config *c, agglo_err *err)
{
    char name[192], block[64];
    const agglo_st_tensor *t = find(weights, prefix, "", layout->top[0].source, name);
    int64_t grid;

    if (t == NULL || t->rank < 3 || t->rank > 4 || (t->rank == 4 && t->shape[0] != 1) ||
        t->shape[t->rank - 1] != c->dim || t->shape[t->rank - 2] != t->shape[t->rank - 3] ||
        t->shape[t->rank - 2] < 1 || t->shape[t->rank - 2] > 8192 / c->patch) {
        return refuse(weights, t, name, "[1, grid, grid, dim]", err);
    }
    grid = t->shape[t->rank - 2];
    c->image = (int)grid * c->patch;
    c->heads = 0;
    c->window = 0;
    memset(c->global_layers, 0, sizeof c->global_layers);
    for (int i = 0; i < c->depth && i < AGGLO_TEACHER_MOST_DEPTH; i++) {
        int64_t rows, width;

        snprintf(block, sizeof block, "%s%d.", layout->block, i);
        t = find(weights, prefix, block, "attn.rel_pos_h", name);
        if (t == NULL || t->rank != 2 || t->shape[0] < 1 || t->shape[0] > 16383 || t->shape[0] % 2 == 0 ||
            t->shape[1] < 1 || t->shape[1] > c->dim || c->dim % t->shape[1] != 0) {
            return refuse(weights, t, name, "[2 side - 1, dim / heads]", err);
        }
        rows = t->shape[0];
        width = t->shape[1];
        if (c->heads != 0 && c->dim / width != c->heads) {
            agglo_fail(err, AGGLO_E_DATA, "tensor %s is of heads of %lld, block 0 has %d", name, (long long)width,
                       c->dim / c->heads);
            return agglo_at(err, "%s", agglo_weights_path(weights));
        }
        c->heads = (int)(c->dim / width);
        if (rows == 2 * grid - 1) {
            c->global_layers[i / 32] |= 1u << (i % 32);
        } else if (c->window != 0 && rows != 2 * (int64_t)c->window - 1) {
            agglo_fail(
                err, AGGLO_E_DATA,
                "tensor %s has %lld rows: neither those of a global block, %lld, nor those of a window of %d, %d", name,
                (long long)rows, (long long)(2 * grid - 1), c->window, 2 * c->window - 1);
            return agglo_at(err, "%s", agglo_weights_path(weights));
        } else {
            c->window = (int)((rows + 1) / 2);
        }
    }
    t = find(weights, prefix, "", layout->top[3].source, name);
    c->neck = 0;
    if (t != NULL && (t->rank < 2 || t->shape[0] < 1 || t->shape[0] > 4096)) {
        return refuse(weights, t, name, "[channels, dim, 1, 1]", err);
    }
    c->neck = t != NULL ? (int)t->shape[0] : 0;
    return AGGLO_OK;
}

static int table_side(const agglo_teacher_config *c, int i)
{
    return agglo_teacher_is_global(c, i) ? c->image / c->patch : c->window;
}

agglo_status agglo_sam_adopt(agglo_teacher_config *found, const agglo_teacher_config *said, agglo_err *err)
{
    for (int i = 0; i < found->depth && i < AGGLO_TEACHER_MOST_DEPTH; i++) {
        agglo_teacher_config stated = *found;

        stated.window = said->window;
        memcpy(stated.global_layers, said->global_layers, sizeof stated.global_layers);
        if (said->window == 0) { /* all blocks are global, whatever the list says */
            memset(stated.global_layers, 0xff, sizeof stated.global_layers);
        }
        if (table_side(&stated, i) != table_side(found, i)) {
            return agglo_fail(err, AGGLO_E_MISMATCH,
                              "block %d is stated as %s of side %d, its tables of relative positions are for %d", i,
                              agglo_teacher_is_global(&stated, i) ? "global," : "windows", table_side(&stated, i),
                              table_side(found, i));
        }
    }
    found->window = said->window;
    memcpy(found->global_layers, said->global_layers, sizeof found->global_layers);
    return AGGLO_OK;
}
