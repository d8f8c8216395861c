/* DINOv2 (Oquab et al., TMLR 2024), with and without registers (Darcet et al., ICLR 2024), as transformers' Dinov2Model and
 * Dinov2WithRegistersModel store it: LayerScale in every block, SwiGLU in the giant, registers behind the class token. */
#include "teachers/layout_impl.h"

static const agglo_layout_row top[] = {
    {"embeddings.cls_token", "cls", "11d", AGGLO_ROW_TOKEN, AGGLO_ROW_ALWAYS, 0},
    {"embeddings.mask_token", NULL, "1d", AGGLO_ROW_TOKEN, AGGLO_ROW_ALWAYS, 0},
    {"embeddings.register_tokens", "registers", "1rd", AGGLO_ROW_TOKEN, AGGLO_ROW_REGISTERS, 0},
    {"embeddings.position_embeddings", "pos", "1nd", AGGLO_ROW_TOKEN, AGGLO_ROW_ALWAYS, 0},
    {"embeddings.patch_embeddings.projection.weight", "patch.weight", "dcpp", AGGLO_ROW_LINEAR, AGGLO_ROW_ALWAYS, 0},
    {"embeddings.patch_embeddings.projection.bias", "patch.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0},
    {"layernorm.weight", "norm.weight", "d", AGGLO_ROW_NORM, AGGLO_ROW_ALWAYS, 0},
    {"layernorm.bias", "norm.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0},
};

static const agglo_layout_row in_block[] = {
    {"norm1.weight", "norm1.weight", "d", AGGLO_ROW_NORM, AGGLO_ROW_ALWAYS, 0},
    {"norm1.bias", "norm1.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0},
    {"attention.attention.query.weight", "attn.qkv.weight", "dd", AGGLO_ROW_LINEAR, AGGLO_ROW_ALWAYS, 0},
    {"attention.attention.key.weight", "attn.qkv.weight", "dd", AGGLO_ROW_LINEAR, AGGLO_ROW_ALWAYS, 1},
    {"attention.attention.value.weight", "attn.qkv.weight", "dd", AGGLO_ROW_LINEAR, AGGLO_ROW_ALWAYS, 2},
    {"attention.attention.query.bias", "attn.qkv.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0},
    {"attention.attention.key.bias", "attn.qkv.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 1},
    {"attention.attention.value.bias", "attn.qkv.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 2},
    {"attention.output.dense.weight", "attn.proj.weight", "dd", AGGLO_ROW_LINEAR, AGGLO_ROW_ALWAYS, 0},
    {"attention.output.dense.bias", "attn.proj.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0},
    {"layer_scale1.lambda1", "ls1.gamma", "d", AGGLO_ROW_SCALE, AGGLO_ROW_ALWAYS, 0},
    {"norm2.weight", "norm2.weight", "d", AGGLO_ROW_NORM, AGGLO_ROW_ALWAYS, 0},
    {"norm2.bias", "norm2.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0},
    {"mlp.fc1.weight", "mlp.fc1.weight", "md", AGGLO_ROW_LINEAR, AGGLO_ROW_PLAIN, 0},
    {"mlp.fc1.bias", "mlp.fc1.bias", "m", AGGLO_ROW_BIAS, AGGLO_ROW_PLAIN, 0},
    {"mlp.fc2.weight", "mlp.fc2.weight", "dm", AGGLO_ROW_LINEAR, AGGLO_ROW_PLAIN, 0},
    {"mlp.fc2.bias", "mlp.fc2.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_PLAIN, 0},
    {"mlp.weights_in.weight", "mlp.fc1.weight", "hd", AGGLO_ROW_LINEAR, AGGLO_ROW_SWIGLU, 0},
    {"mlp.weights_in.bias", "mlp.fc1.bias", "h", AGGLO_ROW_BIAS, AGGLO_ROW_SWIGLU, 0},
    {"mlp.weights_out.weight", "mlp.fc2.weight", "dm", AGGLO_ROW_LINEAR, AGGLO_ROW_SWIGLU, 0},
    {"mlp.weights_out.bias", "mlp.fc2.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_SWIGLU, 0},
    {"layer_scale2.lambda1", "ls2.gamma", "d", AGGLO_ROW_SCALE, AGGLO_ROW_ALWAYS, 0},
};

static const char *const prefixes[] = {"", "dinov2.", "dinov2_with_registers.", NULL};
static const char *const ignored[] = {"classifier.", NULL};

const agglo_layout agglo_layout_dinov2_hf = {
    .family = "dinov2",
    .prefixes = prefixes,
    .probe = "embeddings.patch_embeddings.projection.weight",
    .block = "encoder.layer.",
    .top = top,
    .n_top = AGGLO_COUNT(top),
    .in_block = in_block,
    .n_in_block = AGGLO_COUNT(in_block),
    .ignored = ignored,
    .positions = "embeddings.position_embeddings",
    .mlp_plain = "mlp.fc1.weight",
    .mlp_swiglu = "mlp.weights_in.weight",
    .registers = "embeddings.register_tokens",
    .defaults_act = "gelu",
};
