/* CLIP's vision tower (Radford et al., ICML 2021): class token and positions, a norm before the blocks, a norm behind them, a projection
 * of the class token. As stored by
 *     transformers   CLIPModel, CLIPVisionModel, CLIPVisionModelWithProjection
 *     OpenCLIP       CLIP and CustomTextCLIP, with OpenAI's own names; [Q;K;V] fused, the projection [dim, proj]
 *     timm           VisionTransformer with norm_pre, as of the hub's timm/vit_*_clip_*: the projection is its head */
#include "teachers/layout_impl.h"

/* ---- transformers ---- */

static const agglo_layout_row hf_top[] = {
    {"embeddings.class_embedding", "cls", "d", AGGLO_ROW_TOKEN, AGGLO_ROW_ALWAYS, 0, false},
    {"embeddings.patch_embedding.weight", "patch.weight", "dcpp", AGGLO_ROW_LINEAR, AGGLO_ROW_ALWAYS, 0, false},
    {"embeddings.position_embedding.weight", "pos", "nd", AGGLO_ROW_TOKEN, AGGLO_ROW_ALWAYS, 0, false},
    {"pre_layrnorm.weight", "pre_norm.weight", "d", AGGLO_ROW_NORM, AGGLO_ROW_ALWAYS, 0, false}, /* their spelling */
    {"pre_layrnorm.bias", "pre_norm.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0, false},
    {"post_layernorm.weight", "norm.weight", "d", AGGLO_ROW_NORM, AGGLO_ROW_ALWAYS, 0, false},
    {"post_layernorm.bias", "norm.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0, false},
    {"/visual_projection.weight", "proj.weight", "ed", AGGLO_ROW_LINEAR, AGGLO_ROW_PROJ, 0, false},
};

static const agglo_layout_row hf_block[] = {
    {"layer_norm1.weight", "norm1.weight", "d", AGGLO_ROW_NORM, AGGLO_ROW_ALWAYS, 0, false},
    {"layer_norm1.bias", "norm1.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0, false},
    {"self_attn.q_proj.weight", "attn.qkv.weight", "dd", AGGLO_ROW_LINEAR, AGGLO_ROW_ALWAYS, 0, false},
    {"self_attn.k_proj.weight", "attn.qkv.weight", "dd", AGGLO_ROW_LINEAR, AGGLO_ROW_ALWAYS, 1, false},
    {"self_attn.v_proj.weight", "attn.qkv.weight", "dd", AGGLO_ROW_LINEAR, AGGLO_ROW_ALWAYS, 2, false},
    {"self_attn.q_proj.bias", "attn.qkv.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0, false},
    {"self_attn.k_proj.bias", "attn.qkv.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 1, false},
    {"self_attn.v_proj.bias", "attn.qkv.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 2, false},
    {"self_attn.out_proj.weight", "attn.proj.weight", "dd", AGGLO_ROW_LINEAR, AGGLO_ROW_ALWAYS, 0, false},
    {"self_attn.out_proj.bias", "attn.proj.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0, false},
    {"layer_norm2.weight", "norm2.weight", "d", AGGLO_ROW_NORM, AGGLO_ROW_ALWAYS, 0, false},
    {"layer_norm2.bias", "norm2.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0, false},
    {"mlp.fc1.weight", "mlp.fc1.weight", "md", AGGLO_ROW_LINEAR, AGGLO_ROW_ALWAYS, 0, false},
    {"mlp.fc1.bias", "mlp.fc1.bias", "m", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0, false},
    {"mlp.fc2.weight", "mlp.fc2.weight", "dm", AGGLO_ROW_LINEAR, AGGLO_ROW_ALWAYS, 0, false},
    {"mlp.fc2.bias", "mlp.fc2.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0, false},
};

static const char *const hf_prefixes[] = {"vision_model.", "", NULL};
static const char *const hf_ignored[] = {
    "text_model.", "text_projection.", "logit_scale", "vision_model.embeddings.position_ids", "embeddings.position_ids",
    NULL};

const agglo_layout agglo_layout_clip_hf = {
    .name = "transformers",
    .family = "clip",
    .prefixes = hf_prefixes,
    .probe = "embeddings.patch_embedding.weight",
    .block = "encoder.layers.",
    .top = hf_top,
    .n_top = AGGLO_COUNT(hf_top),
    .in_block = hf_block,
    .n_in_block = AGGLO_COUNT(hf_block),
    .ignored = hf_ignored,
    .positions = "embeddings.position_embedding.weight",
    .mlp_plain = "mlp.fc1.weight",
    .projection = "/visual_projection.weight",
    .defaults_act = "quick_gelu",
};

/* ---- OpenCLIP, OpenAI ---- */

static const agglo_layout_row open_top[] = {
    {"class_embedding", "cls", "d", AGGLO_ROW_TOKEN, AGGLO_ROW_ALWAYS, 0, false},
    {"conv1.weight", "patch.weight", "dcpp", AGGLO_ROW_LINEAR, AGGLO_ROW_ALWAYS, 0, false},
    {"positional_embedding", "pos", "nd", AGGLO_ROW_TOKEN, AGGLO_ROW_ALWAYS, 0, false},
    {"ln_pre.weight", "pre_norm.weight", "d", AGGLO_ROW_NORM, AGGLO_ROW_ALWAYS, 0, false},
    {"ln_pre.bias", "pre_norm.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0, false},
    {"ln_post.weight", "norm.weight", "d", AGGLO_ROW_NORM, AGGLO_ROW_ALWAYS, 0, false},
    {"ln_post.bias", "norm.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0, false},
    {"proj", "proj.weight", "de", AGGLO_ROW_LINEAR, AGGLO_ROW_PROJ, 0, true},
};

static const agglo_layout_row open_block[] = {
    {"ln_1.weight", "norm1.weight", "d", AGGLO_ROW_NORM, AGGLO_ROW_ALWAYS, 0, false},
    {"ln_1.bias", "norm1.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0, false},
    {"attn.in_proj_weight", "attn.qkv.weight", "td", AGGLO_ROW_LINEAR, AGGLO_ROW_ALWAYS, 0, false},
    {"attn.in_proj_bias", "attn.qkv.bias", "t", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0, false},
    {"attn.out_proj.weight", "attn.proj.weight", "dd", AGGLO_ROW_LINEAR, AGGLO_ROW_ALWAYS, 0, false},
    {"attn.out_proj.bias", "attn.proj.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0, false},
    {"ln_2.weight", "norm2.weight", "d", AGGLO_ROW_NORM, AGGLO_ROW_ALWAYS, 0, false},
    {"ln_2.bias", "norm2.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0, false},
    {"mlp.c_fc.weight", "mlp.fc1.weight", "md", AGGLO_ROW_LINEAR, AGGLO_ROW_ALWAYS, 0, false},
    {"mlp.c_fc.bias", "mlp.fc1.bias", "m", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0, false},
    {"mlp.c_proj.weight", "mlp.fc2.weight", "dm", AGGLO_ROW_LINEAR, AGGLO_ROW_ALWAYS, 0, false},
    {"mlp.c_proj.bias", "mlp.fc2.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0, false},
};

static const char *const open_prefixes[] = {"visual.", "", NULL};
/* a ResNet's first convolution has the probe's name too */
static const char *const open_marks[] = {"class_embedding", NULL};
/* the text tower, alone (CustomTextCLIP) or in the open; the last three are numbers in OpenAI's archives */
static const char *const open_ignored[] = {
    "text.",      "positional_embedding", "text_projection",        "logit_scale",
    "logit_bias", "token_embedding.",     "transformer.resblocks.", "ln_final.",
    "attn_mask",  "input_resolution",     "context_length",         "vocab_size",
    NULL};
static const char *const open_refused[] = {"visual.attn_pool", "attentional pooling (CoCa)", NULL};

const agglo_layout agglo_layout_clip_open = {
    .name = "open_clip",
    .family = "clip",
    .hub = true,
    .prefixes = open_prefixes,
    .probe = "conv1.weight",
    .marks = open_marks,
    .block = "transformer.resblocks.",
    .top = open_top,
    .n_top = AGGLO_COUNT(open_top),
    .in_block = open_block,
    .n_in_block = AGGLO_COUNT(open_block),
    .ignored = open_ignored,
    .refused = open_refused,
    .positions = "positional_embedding",
    .mlp_plain = "mlp.c_fc.weight",
    .projection = "proj",
    .defaults_act = "quick_gelu", /* of a config.json of transformers' beside it */
};

/* ---- timm ---- */

static const agglo_layout_row timm_top[] = {
    {"cls_token", "cls", "11d", AGGLO_ROW_TOKEN, AGGLO_ROW_ALWAYS, 0, false},
    {"patch_embed.proj.weight", "patch.weight", "dcpp", AGGLO_ROW_LINEAR, AGGLO_ROW_ALWAYS, 0, false},
    {"pos_embed", "pos", "1nd", AGGLO_ROW_TOKEN, AGGLO_ROW_ALWAYS, 0, false},
    {"norm_pre.weight", "pre_norm.weight", "d", AGGLO_ROW_NORM, AGGLO_ROW_ALWAYS, 0, false},
    {"norm_pre.bias", "pre_norm.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0, false},
    {"norm.weight", "norm.weight", "d", AGGLO_ROW_NORM, AGGLO_ROW_ALWAYS, 0, false},
    {"norm.bias", "norm.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0, false},
    {"head.weight", "proj.weight", "ed", AGGLO_ROW_LINEAR, AGGLO_ROW_PROJ, 0, false},
};

static const agglo_layout_row timm_block[] = {
    {"norm1.weight", "norm1.weight", "d", AGGLO_ROW_NORM, AGGLO_ROW_ALWAYS, 0, false},
    {"norm1.bias", "norm1.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0, false},
    {"attn.qkv.weight", "attn.qkv.weight", "td", AGGLO_ROW_LINEAR, AGGLO_ROW_ALWAYS, 0, false},
    {"attn.qkv.bias", "attn.qkv.bias", "t", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0, false},
    {"attn.proj.weight", "attn.proj.weight", "dd", AGGLO_ROW_LINEAR, AGGLO_ROW_ALWAYS, 0, false},
    {"attn.proj.bias", "attn.proj.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0, false},
    {"norm2.weight", "norm2.weight", "d", AGGLO_ROW_NORM, AGGLO_ROW_ALWAYS, 0, false},
    {"norm2.bias", "norm2.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0, false},
    {"mlp.fc1.weight", "mlp.fc1.weight", "md", AGGLO_ROW_LINEAR, AGGLO_ROW_ALWAYS, 0, false},
    {"mlp.fc1.bias", "mlp.fc1.bias", "m", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0, false},
    {"mlp.fc2.weight", "mlp.fc2.weight", "dm", AGGLO_ROW_LINEAR, AGGLO_ROW_ALWAYS, 0, false},
    {"mlp.fc2.bias", "mlp.fc2.bias", "d", AGGLO_ROW_BIAS, AGGLO_ROW_ALWAYS, 0, false},
};

/* OpenCLIP wraps timm's towers as visual.trunk */
static const char *const timm_prefixes[] = {"", NULL};
static const char *const timm_marks[] = {"norm_pre.weight", NULL};
static const char *const timm_ignored[] = {"head.bias", NULL};
static const char *const timm_refused[] = {"fc_norm.", "a norm behind average pooling", "attn_pool.",
                                           "attention pooling", NULL};

const agglo_layout agglo_layout_clip_timm = {
    .name = "timm",
    .family = "clip",
    .hub = true,
    .prefixes = timm_prefixes,
    .probe = "patch_embed.proj.weight",
    .marks = timm_marks,
    .block = "blocks.",
    .top = timm_top,
    .n_top = AGGLO_COUNT(timm_top),
    .in_block = timm_block,
    .n_in_block = AGGLO_COUNT(timm_block),
    .ignored = timm_ignored,
    .refused = timm_refused,
    .positions = "pos_embed",
    .mlp_plain = "mlp.fc1.weight",
    .projection = "head.weight",
    .projection_bias = "head.bias",
    .defaults_act = "gelu",
};
