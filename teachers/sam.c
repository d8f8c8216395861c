/* SAM's image encoder (Kirillov et al., ICCV 2023; a ViTDet: Li et al., ECCV 2022) as transformers' SamModel stores it and as
 * segment_anything does. What else such files hold, prompt encoder and mask decoder, is known and not used. */
#include "teachers/sam_impl.h"

#include "teachers/load.h"

#include <stdio.h>
#include <string.h>

#define ALWAYS AGGLO_ROW_ALWAYS
#define NECK   AGGLO_ROW_NECK

static const agglo_layout_row top_hf[] = {
    {"pos_embed", "pos", "1ggd", AGGLO_ROW_TOKEN, ALWAYS, 0, false},
    {"patch_embed.projection.weight", "patch.weight", "dcpp", AGGLO_ROW_LINEAR, ALWAYS, 0, false},
    {"patch_embed.projection.bias", "patch.bias", "d", AGGLO_ROW_BIAS, ALWAYS, 0, false},
    {"neck.conv1.weight", "neck.conv1.weight", "od11", AGGLO_ROW_LINEAR, NECK, 0, false},
    {"neck.layer_norm1.weight", "neck.norm1.weight", "o", AGGLO_ROW_NORM, NECK, 0, false},
    {"neck.layer_norm1.bias", "neck.norm1.bias", "o", AGGLO_ROW_BIAS, NECK, 0, false},
    {"neck.conv2.weight", "neck.conv2.weight", "oo33", AGGLO_ROW_LINEAR, NECK, 0, false},
    {"neck.layer_norm2.weight", "neck.norm2.weight", "o", AGGLO_ROW_NORM, NECK, 0, false},
    {"neck.layer_norm2.bias", "neck.norm2.bias", "o", AGGLO_ROW_BIAS, NECK, 0, false},
};

/* A block's tensors: the two layouts differ in what their norms are called. */
/* clang-format off */
#define BLOCK(norm)                                                                       \
    {norm "1.weight", "norm1.weight", "d", AGGLO_ROW_NORM, ALWAYS, 0, false},           \
    {norm "1.bias", "norm1.bias", "d", AGGLO_ROW_BIAS, ALWAYS, 0, false},               \
    {"attn.qkv.weight", "attn.qkv.weight", "td", AGGLO_ROW_LINEAR, ALWAYS, 0, false},   \
    {"attn.qkv.bias", "attn.qkv.bias", "t", AGGLO_ROW_BIAS, ALWAYS, 0, false},          \
    {"attn.proj.weight", "attn.proj.weight", "dd", AGGLO_ROW_LINEAR, ALWAYS, 0, false}, \
    {"attn.proj.bias", "attn.proj.bias", "d", AGGLO_ROW_BIAS, ALWAYS, 0, false},        \
    {"attn.rel_pos_h", "attn.rel_pos_h", "sk", AGGLO_ROW_LINEAR, ALWAYS, 0, false},     \
    {"attn.rel_pos_w", "attn.rel_pos_w", "sk", AGGLO_ROW_LINEAR, ALWAYS, 0, false},     \
    {norm "2.weight", "norm2.weight", "d", AGGLO_ROW_NORM, ALWAYS, 0, false},           \
    {norm "2.bias", "norm2.bias", "d", AGGLO_ROW_BIAS, ALWAYS, 0, false},               \
    {"mlp.lin1.weight", "mlp.fc1.weight", "md", AGGLO_ROW_LINEAR, ALWAYS, 0, false},    \
    {"mlp.lin1.bias", "mlp.fc1.bias", "m", AGGLO_ROW_BIAS, ALWAYS, 0, false},           \
    {"mlp.lin2.weight", "mlp.fc2.weight", "dm", AGGLO_ROW_LINEAR, ALWAYS, 0, false},    \
    {"mlp.lin2.bias", "mlp.fc2.bias", "d", AGGLO_ROW_BIAS, ALWAYS, 0, false}
/* clang-format on */

static const agglo_layout_row block_hf[] = {BLOCK("layer_norm")}, block_original[] = {BLOCK("norm")};

static const agglo_layout_row top_original[] = {
    {"pos_embed", "pos", "1ggd", AGGLO_ROW_TOKEN, ALWAYS, 0, false},
    {"patch_embed.proj.weight", "patch.weight", "dcpp", AGGLO_ROW_LINEAR, ALWAYS, 0, false},
    {"patch_embed.proj.bias", "patch.bias", "d", AGGLO_ROW_BIAS, ALWAYS, 0, false},
    {"neck.0.weight", "neck.conv1.weight", "od11", AGGLO_ROW_LINEAR, NECK, 0, false},
    {"neck.1.weight", "neck.norm1.weight", "o", AGGLO_ROW_NORM, NECK, 0, false},
    {"neck.1.bias", "neck.norm1.bias", "o", AGGLO_ROW_BIAS, NECK, 0, false},
    {"neck.2.weight", "neck.conv2.weight", "oo33", AGGLO_ROW_LINEAR, NECK, 0, false},
    {"neck.3.weight", "neck.norm2.weight", "o", AGGLO_ROW_NORM, NECK, 0, false},
    {"neck.3.bias", "neck.norm2.bias", "o", AGGLO_ROW_BIAS, NECK, 0, false},
};

/* A bare image encoder has no prefix. */
static const char *const prefixes_hf[] = {"vision_encoder.", NULL};
static const char *const prefixes_original[] = {"image_encoder.", "", NULL};
/* a ViT of timm's or DINOv2's own has the patch convolution's name too */
static const char *const marks_hf[] = {"layers.0.attn.rel_pos_h", NULL};
static const char *const marks_original[] = {"blocks.0.attn.rel_pos_h", NULL};
static const char *const ignored[] = {"prompt_encoder.", "mask_decoder.", "shared_image_embedding.",
                                      "pixel_mean",      "pixel_std",     NULL};

const agglo_layout agglo_layout_sam_hf = {
    .name = "transformers",
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
    .positions = "pos_embed",
    .neck = "neck.conv1.weight",
    .mlp_plain = "mlp.lin1.weight",
    .read_shapes = agglo_sam_read_shapes,
    .defaults_act = "gelu",
};

const agglo_layout agglo_layout_sam_original = {
    .name = "segment_anything",
    .family = "sam",
    .hub = true,
    .prefixes = prefixes_original,
    .probe = "patch_embed.proj.weight",
    .marks = marks_original,
    .block = "blocks.",
    .top = top_original,
    .n_top = AGGLO_COUNT(top_original),
    .in_block = block_original,
    .n_in_block = AGGLO_COUNT(block_original),
    .ignored = ignored,
    .positions = "pos_embed",
    .neck = "neck.0.weight",
    .mlp_plain = "mlp.lin1.weight",
    .read_shapes = agglo_sam_read_shapes,
    .defaults_act = "gelu",
};

agglo_status agglo_sam_read_shapes(const agglo_weights *weights, const agglo_layout_found *f, agglo_teacher_config *c,
                                   agglo_err *err)
{
    const agglo_layout *layout = f->layout;
    static const char table[] = "attn.rel_pos_h";
    const agglo_st_tensor *t = agglo_layout_get(f, weights, -1, layout->positions);
    int64_t grid;

    if (t == NULL || t->rank < 3 || t->rank > 4 || (t->rank == 4 && t->shape[0] != 1) ||
        t->shape[t->rank - 1] != c->dim || t->shape[t->rank - 2] != t->shape[t->rank - 3] ||
        t->shape[t->rank - 2] < 1 || t->shape[t->rank - 2] > 8192 / c->patch) {
        return agglo_load_refuse_in(f, -1, layout->positions, t, "[1, grid, grid, dim]", err);
    }
    grid = t->shape[t->rank - 2];
    c->image = (int)grid * c->patch;
    c->window = 0;
    memset(c->global_layers, 0, sizeof c->global_layers);
    for (int i = 0; i < c->depth && i < AGGLO_TEACHER_MOST_DEPTH; i++) {
        int64_t rows, width;

        t = agglo_layout_get(f, weights, i, table);
        if (t == NULL || t->rank != 2 || t->shape[0] < 1 || t->shape[0] > 16383 || t->shape[0] % 2 == 0 ||
            t->shape[1] < 1 || t->shape[1] > c->dim || c->dim % t->shape[1] != 0) {
            return agglo_load_refuse_in(f, i, table, t, "[2 side - 1, dim / heads]", err);
        }
        rows = t->shape[0];
        width = t->shape[1];
        if (c->heads != 0 && c->dim / width != c->heads) {
            return agglo_fail(err, AGGLO_E_DATA, "tensor %.140s is of heads of %lld, block 0 has %d", t->name,
                              (long long)width, c->dim / c->heads);
        }
        c->heads = (int)(c->dim / width);
        if (rows == 2 * grid - 1) {
            c->global_layers[i / 32] |= 1u << (i % 32);
        } else if (c->window != 0 && rows != 2 * (int64_t)c->window - 1) {
            return agglo_fail(
                err, AGGLO_E_DATA,
                "tensor %.100s has %lld rows: neither those of a global block, %lld, nor those of a window of %d, %d",
                t->name, (long long)rows, (long long)(2 * grid - 1), c->window, 2 * c->window - 1);
        } else {
            c->window = (int)((rows + 1) / 2);
        }
    }
    t = agglo_layout_get(f, weights, -1, layout->neck);
    if (t != NULL && (t->rank < 2 || t->shape[0] < 1 || t->shape[0] > 4096)) {
        return agglo_load_refuse_in(f, -1, layout->neck, t, "[channels, dim, 1, 1]", err);
    }
    c->neck = t != NULL ? (int)t->shape[0] : 0;
    return AGGLO_OK;
}

agglo_status agglo_sam_confirm(const agglo_teacher_config *found, int window, const uint32_t *global_layers,
                               agglo_err *err)
{
    int grid = found->image / found->patch;

    for (int i = 0; i < found->depth && i < AGGLO_TEACHER_MOST_DEPTH; i++) {
        bool global = window == 0 || (global_layers[i / 32] >> (i % 32) & 1) != 0;
        int said = global ? grid : window, side = agglo_teacher_is_global(found, i) ? grid : found->window;

        if (said != side) {
            return agglo_fail(err, AGGLO_E_MISMATCH,
                              "block %d is stated as %s of side %d, its tables of relative positions are for %d", i,
                              global ? "global," : "windows", said, side);
        }
    }
    return AGGLO_OK;
}

void agglo_sam_adopt(agglo_teacher_config *found, int window, const uint32_t *global_layers)
{
    found->window = window;
    memcpy(found->global_layers, global_layers, sizeof found->global_layers);
}
