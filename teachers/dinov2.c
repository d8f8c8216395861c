/* DINOv2 (Oquab et al., TMLR 2024), with and without registers (Darcet et al., ICLR 2024): LayerScale in every block, SwiGLU in the giant,
 * registers behind the class token. As stored by
 *     transformers   Dinov2Model, Dinov2WithRegistersModel
 *     torch-hub      dinov2_vit*14[_reg4]_pretrain; training checkpoints put blocks into chunks */
#include "teachers/layout_impl.h"

/* ---- transformers ---- */

static const agglo_layout_row hf_top[] = {
    {"embeddings.cls_token", "cls", "11d", AGGLO_ROW_TOKEN, AGGLO_ROW_ALWAYS, 0, false},
    {"embeddings.mask_token", NULL, "1d", AGGLO_ROW_TOKEN, AGGLO_ROW_ALWAYS, 0, false},
    {"embeddings.register_tokens", "registers", "1rd", AGGLO_ROW_TOKEN, AGGLO_ROW_REGISTERS, 0, false},
    {"embeddings.position_embeddings", "pos", "1nd", AGGLO_ROW_TOKEN, AGGLO_ROW_ALWAYS, 0, false},
    {"embeddings.patch_embeddings.projection.weight", "patch.weight", "dcpp", AGGLO_ROW_LINEAR, AGGLO_ROW_ALWAYS, 0,
     false},
    {"embeddings.patch_embeddings.projection.bias", "patch.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0, false},
    {"layernorm.weight", "norm.weight", "d", AGGLO_ROW_NORM, AGGLO_ROW_ALWAYS, 0, false},
    {"layernorm.bias", "norm.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0, false},
};

static const agglo_layout_row hf_block[] = {
    {"norm1.weight", "norm1.weight", "d", AGGLO_ROW_NORM, AGGLO_ROW_ALWAYS, 0, false},
    {"norm1.bias", "norm1.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0, false},
    {"attention.attention.query.weight", "attn.qkv.weight", "dd", AGGLO_ROW_LINEAR, AGGLO_ROW_ALWAYS, 0, false},
    {"attention.attention.key.weight", "attn.qkv.weight", "dd", AGGLO_ROW_LINEAR, AGGLO_ROW_ALWAYS, 1, false},
    {"attention.attention.value.weight", "attn.qkv.weight", "dd", AGGLO_ROW_LINEAR, AGGLO_ROW_ALWAYS, 2, false},
    {"attention.attention.query.bias", "attn.qkv.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0, false},
    {"attention.attention.key.bias", "attn.qkv.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 1, false},
    {"attention.attention.value.bias", "attn.qkv.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 2, false},
    {"attention.output.dense.weight", "attn.proj.weight", "dd", AGGLO_ROW_LINEAR, AGGLO_ROW_ALWAYS, 0, false},
    {"attention.output.dense.bias", "attn.proj.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0, false},
    {"layer_scale1.lambda1", "ls1.gamma", "d", AGGLO_ROW_SCALE, AGGLO_ROW_ALWAYS, 0, false},
    {"norm2.weight", "norm2.weight", "d", AGGLO_ROW_NORM, AGGLO_ROW_ALWAYS, 0, false},
    {"norm2.bias", "norm2.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0, false},
    {"mlp.fc1.weight", "mlp.fc1.weight", "md", AGGLO_ROW_LINEAR, AGGLO_ROW_PLAIN, 0, false},
    {"mlp.fc1.bias", "mlp.fc1.bias", "m", AGGLO_ROW_BIAS, AGGLO_ROW_PLAIN, 0, false},
    {"mlp.fc2.weight", "mlp.fc2.weight", "dm", AGGLO_ROW_LINEAR, AGGLO_ROW_PLAIN, 0, false},
    {"mlp.fc2.bias", "mlp.fc2.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_PLAIN, 0, false},
    {"mlp.weights_in.weight", "mlp.fc1.weight", "hd", AGGLO_ROW_LINEAR, AGGLO_ROW_SWIGLU, 0, false},
    {"mlp.weights_in.bias", "mlp.fc1.bias", "h", AGGLO_ROW_BIAS, AGGLO_ROW_SWIGLU, 0, false},
    {"mlp.weights_out.weight", "mlp.fc2.weight", "dm", AGGLO_ROW_LINEAR, AGGLO_ROW_SWIGLU, 0, false},
    {"mlp.weights_out.bias", "mlp.fc2.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_SWIGLU, 0, false},
    {"layer_scale2.lambda1", "ls2.gamma", "d", AGGLO_ROW_SCALE, AGGLO_ROW_ALWAYS, 0, false},
};

static const char *const hf_prefixes[] = {"", NULL};
static const char *const hf_ignored[] = {"classifier.", NULL};

const agglo_layout agglo_layout_dinov2_hf = {
    .name = "transformers",
    .family = "dinov2",
    .prefixes = hf_prefixes,
    .probe = "embeddings.patch_embeddings.projection.weight",
    .block = "encoder.layer.",
    .top = hf_top,
    .n_top = AGGLO_COUNT(hf_top),
    .in_block = hf_block,
    .n_in_block = AGGLO_COUNT(hf_block),
    .ignored = hf_ignored,
    .positions = "embeddings.position_embeddings",
    .mlp_plain = "mlp.fc1.weight",
    .mlp_swiglu = "mlp.weights_in.weight",
    .registers = "embeddings.register_tokens",
    .defaults_act = "gelu",
};

/* The same in memory since transformers 5: what its state_dict says; save_pretrained writes the names above. */
static const agglo_layout_row state_block[] = {
    {"norm1.weight", "norm1.weight", "d", AGGLO_ROW_NORM, AGGLO_ROW_ALWAYS, 0, false},
    {"norm1.bias", "norm1.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0, false},
    {"attention.q_proj.weight", "attn.qkv.weight", "dd", AGGLO_ROW_LINEAR, AGGLO_ROW_ALWAYS, 0, false},
    {"attention.k_proj.weight", "attn.qkv.weight", "dd", AGGLO_ROW_LINEAR, AGGLO_ROW_ALWAYS, 1, false},
    {"attention.v_proj.weight", "attn.qkv.weight", "dd", AGGLO_ROW_LINEAR, AGGLO_ROW_ALWAYS, 2, false},
    {"attention.q_proj.bias", "attn.qkv.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0, false},
    {"attention.k_proj.bias", "attn.qkv.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 1, false},
    {"attention.v_proj.bias", "attn.qkv.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 2, false},
    {"attention.o_proj.weight", "attn.proj.weight", "dd", AGGLO_ROW_LINEAR, AGGLO_ROW_ALWAYS, 0, false},
    {"attention.o_proj.bias", "attn.proj.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0, false},
    {"layer_scale1.lambda1", "ls1.gamma", "d", AGGLO_ROW_SCALE, AGGLO_ROW_ALWAYS, 0, false},
    {"norm2.weight", "norm2.weight", "d", AGGLO_ROW_NORM, AGGLO_ROW_ALWAYS, 0, false},
    {"norm2.bias", "norm2.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0, false},
    {"mlp.fc1.weight", "mlp.fc1.weight", "md", AGGLO_ROW_LINEAR, AGGLO_ROW_PLAIN, 0, false},
    {"mlp.fc1.bias", "mlp.fc1.bias", "m", AGGLO_ROW_BIAS, AGGLO_ROW_PLAIN, 0, false},
    {"mlp.fc2.weight", "mlp.fc2.weight", "dm", AGGLO_ROW_LINEAR, AGGLO_ROW_PLAIN, 0, false},
    {"mlp.fc2.bias", "mlp.fc2.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_PLAIN, 0, false},
    {"mlp.gate_proj.weight", "mlp.fc1.weight", "md", AGGLO_ROW_LINEAR, AGGLO_ROW_SWIGLU, 0, false},
    {"mlp.gate_proj.bias", "mlp.fc1.bias", "m", AGGLO_ROW_BIAS, AGGLO_ROW_SWIGLU, 0, false},
    {"mlp.up_proj.weight", "mlp.fc1.weight", "md", AGGLO_ROW_LINEAR, AGGLO_ROW_SWIGLU, 1, false},
    {"mlp.up_proj.bias", "mlp.fc1.bias", "m", AGGLO_ROW_BIAS, AGGLO_ROW_SWIGLU, 1, false},
    {"mlp.down_proj.weight", "mlp.fc2.weight", "dm", AGGLO_ROW_LINEAR, AGGLO_ROW_SWIGLU, 0, false},
    {"mlp.down_proj.bias", "mlp.fc2.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_SWIGLU, 0, false},
    {"layer_scale2.lambda1", "ls2.gamma", "d", AGGLO_ROW_SCALE, AGGLO_ROW_ALWAYS, 0, false},
};

static const char *const state_marks[] = {"encoder.layer.0.attention.q_proj.weight", NULL};

const agglo_layout agglo_layout_dinov2_state = {
    .name = "transformers",
    .family = "dinov2",
    .prefixes = hf_prefixes,
    .probe = "embeddings.patch_embeddings.projection.weight",
    .marks = state_marks,
    .block = "encoder.layer.",
    .top = hf_top,
    .n_top = AGGLO_COUNT(hf_top),
    .in_block = state_block,
    .n_in_block = AGGLO_COUNT(state_block),
    .ignored = hf_ignored,
    .positions = "embeddings.position_embeddings",
    .mlp_plain = "mlp.fc1.weight",
    .mlp_swiglu = "mlp.gate_proj.weight",
    .swiglu_apart = true,
    .registers = "embeddings.register_tokens",
    .defaults_act = "gelu",
};

/* ---- torch-hub ---- */

static const agglo_layout_row hub_top[] = {
    {"cls_token", "cls", "11d", AGGLO_ROW_TOKEN, AGGLO_ROW_ALWAYS, 0, false},
    {"mask_token", NULL, "1d", AGGLO_ROW_TOKEN, AGGLO_ROW_ALWAYS, 0, false},
    {"register_tokens", "registers", "1rd", AGGLO_ROW_TOKEN, AGGLO_ROW_REGISTERS, 0, false},
    {"pos_embed", "pos", "1nd", AGGLO_ROW_TOKEN, AGGLO_ROW_ALWAYS, 0, false},
    {"patch_embed.proj.weight", "patch.weight", "dcpp", AGGLO_ROW_LINEAR, AGGLO_ROW_ALWAYS, 0, false},
    {"patch_embed.proj.bias", "patch.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0, false},
    {"norm.weight", "norm.weight", "d", AGGLO_ROW_NORM, AGGLO_ROW_ALWAYS, 0, false},
    {"norm.bias", "norm.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0, false},
};

static const agglo_layout_row hub_block[] = {
    {"norm1.weight", "norm1.weight", "d", AGGLO_ROW_NORM, AGGLO_ROW_ALWAYS, 0, false},
    {"norm1.bias", "norm1.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0, false},
    {"attn.qkv.weight", "attn.qkv.weight", "td", AGGLO_ROW_LINEAR, AGGLO_ROW_ALWAYS, 0, false},
    {"attn.qkv.bias", "attn.qkv.bias", "t", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0, false},
    {"attn.proj.weight", "attn.proj.weight", "dd", AGGLO_ROW_LINEAR, AGGLO_ROW_ALWAYS, 0, false},
    {"attn.proj.bias", "attn.proj.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0, false},
    {"ls1.gamma", "ls1.gamma", "d", AGGLO_ROW_SCALE, AGGLO_ROW_ALWAYS, 0, false},
    {"norm2.weight", "norm2.weight", "d", AGGLO_ROW_NORM, AGGLO_ROW_ALWAYS, 0, false},
    {"norm2.bias", "norm2.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0, false},
    {"mlp.fc1.weight", "mlp.fc1.weight", "md", AGGLO_ROW_LINEAR, AGGLO_ROW_PLAIN, 0, false},
    {"mlp.fc1.bias", "mlp.fc1.bias", "m", AGGLO_ROW_BIAS, AGGLO_ROW_PLAIN, 0, false},
    {"mlp.fc2.weight", "mlp.fc2.weight", "dm", AGGLO_ROW_LINEAR, AGGLO_ROW_PLAIN, 0, false},
    {"mlp.fc2.bias", "mlp.fc2.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_PLAIN, 0, false},
    {"mlp.w12.weight", "mlp.fc1.weight", "hd", AGGLO_ROW_LINEAR, AGGLO_ROW_SWIGLU, 0, false},
    {"mlp.w12.bias", "mlp.fc1.bias", "h", AGGLO_ROW_BIAS, AGGLO_ROW_SWIGLU, 0, false},
    {"mlp.w3.weight", "mlp.fc2.weight", "dm", AGGLO_ROW_LINEAR, AGGLO_ROW_SWIGLU, 0, false},
    {"mlp.w3.bias", "mlp.fc2.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_SWIGLU, 0, false},
    {"ls2.gamma", "ls2.gamma", "d", AGGLO_ROW_SCALE, AGGLO_ROW_ALWAYS, 0, false},
};

static const char *const hub_prefixes[] = {"", NULL};
/* CLIP of timm and SAM have the probe's name too, and no LayerScale */
static const char *const hub_marks[] = {"blocks.0.ls1.gamma", "blocks.0.0.ls1.gamma", NULL};
static const char *const hub_ignored[] = {"dino_head.", "ibot_head.", NULL};
static const char *const hub_refused[] = {
    "reg_token", "timm's layout of DINOv2 with registers", "local_cls_norm.", "DINOv3", "storage_tokens", "DINOv3",
    NULL};

const agglo_layout agglo_layout_dinov2_hub = {
    .name = "hub",
    .family = "dinov2",
    .hub = true,
    .prefixes = hub_prefixes,
    .probe = "patch_embed.proj.weight",
    .marks = hub_marks,
    .block = "blocks.",
    .may_chunk = true,
    .top = hub_top,
    .n_top = AGGLO_COUNT(hub_top),
    .in_block = hub_block,
    .n_in_block = AGGLO_COUNT(hub_block),
    .ignored = hub_ignored,
    .refused = hub_refused,
    .positions = "pos_embed",
    .mlp_plain = "mlp.fc1.weight",
    .mlp_swiglu = "mlp.w12.weight",
    .registers = "register_tokens",
    .defaults_act = "gelu",
};
