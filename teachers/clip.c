/* CLIP's vision tower (Radford et al., ICML 2021) as transformers' CLIPModel, CLIPVisionModel and CLIPVisionModelWithProjection
 * store it: class token and positions, a norm before the blocks, a norm behind them, a projection of the class token. */
#include "teachers/layout_impl.h"

static const agglo_layout_row top[] = {
    {"embeddings.class_embedding", "cls", "d", AGGLO_ROW_TOKEN, AGGLO_ROW_ALWAYS, 0},
    {"embeddings.patch_embedding.weight", "patch.weight", "dcpp", AGGLO_ROW_LINEAR, AGGLO_ROW_ALWAYS, 0},
    {"embeddings.position_embedding.weight", "pos", "nd", AGGLO_ROW_TOKEN, AGGLO_ROW_ALWAYS, 0},
    {"pre_layrnorm.weight", "pre_norm.weight", "d", AGGLO_ROW_NORM, AGGLO_ROW_ALWAYS, 0}, /* their spelling */
    {"pre_layrnorm.bias", "pre_norm.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0},
    {"post_layernorm.weight", "norm.weight", "d", AGGLO_ROW_NORM, AGGLO_ROW_ALWAYS, 0},
    {"post_layernorm.bias", "norm.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0},
    {"/visual_projection.weight", "proj.weight", "ed", AGGLO_ROW_LINEAR, AGGLO_ROW_PROJ, 0},
};

static const agglo_layout_row in_block[] = {
    {"layer_norm1.weight", "norm1.weight", "d", AGGLO_ROW_NORM, AGGLO_ROW_ALWAYS, 0},
    {"layer_norm1.bias", "norm1.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0},
    {"self_attn.q_proj.weight", "attn.qkv.weight", "dd", AGGLO_ROW_LINEAR, AGGLO_ROW_ALWAYS, 0},
    {"self_attn.k_proj.weight", "attn.qkv.weight", "dd", AGGLO_ROW_LINEAR, AGGLO_ROW_ALWAYS, 1},
    {"self_attn.v_proj.weight", "attn.qkv.weight", "dd", AGGLO_ROW_LINEAR, AGGLO_ROW_ALWAYS, 2},
    {"self_attn.q_proj.bias", "attn.qkv.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0},
    {"self_attn.k_proj.bias", "attn.qkv.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 1},
    {"self_attn.v_proj.bias", "attn.qkv.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 2},
    {"self_attn.out_proj.weight", "attn.proj.weight", "dd", AGGLO_ROW_LINEAR, AGGLO_ROW_ALWAYS, 0},
    {"self_attn.out_proj.bias", "attn.proj.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0},
    {"layer_norm2.weight", "norm2.weight", "d", AGGLO_ROW_NORM, AGGLO_ROW_ALWAYS, 0},
    {"layer_norm2.bias", "norm2.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0},
    {"mlp.fc1.weight", "mlp.fc1.weight", "md", AGGLO_ROW_LINEAR, AGGLO_ROW_ALWAYS, 0},
    {"mlp.fc1.bias", "mlp.fc1.bias", "m", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0},
    {"mlp.fc2.weight", "mlp.fc2.weight", "dm", AGGLO_ROW_LINEAR, AGGLO_ROW_ALWAYS, 0},
    {"mlp.fc2.bias", "mlp.fc2.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0},
};

static const char *const prefixes[] = {"vision_model.", "", NULL};
static const char *const ignored[] = {
    "text_model.", "text_projection.", "logit_scale", "vision_model.embeddings.position_ids", "embeddings.position_ids",
    NULL};

const agglo_layout agglo_layout_clip_hf = {
    .family = "clip",
    .prefixes = prefixes,
    .probe = "embeddings.patch_embedding.weight",
    .block = "encoder.layers.",
    .top = top,
    .n_top = AGGLO_COUNT(top),
    .in_block = in_block,
    .n_in_block = AGGLO_COUNT(in_block),
    .ignored = ignored,
    .positions = "embeddings.position_embedding.weight",
    .mlp_plain = "mlp.fc1.weight",
    .projection = "visual_projection.weight",
    .defaults_act = "quick_gelu",
};
