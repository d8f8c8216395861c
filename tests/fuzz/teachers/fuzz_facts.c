/* Any text as a JSON file beside any tensors: 16 bytes of shapes, one that says which kind of file ('c'onfig of transformers, 'o'pen_clip_config, 't'imm,
 * 'p'reprocessor), the text. Refused with one error, or what it states is usable. */
#include <math.h>

#include "teachers/facts_impl.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { SHAPES = 16 };

/* What recognition may have read off tensors: within its bounds, not within a model's. */
static void shapes_of(const uint8_t *data, agglo_teacher_config *c)
{
    int grid;

    c->dim = 1 + (int)(agglo_le32(data) & 0xffffff);
    c->mlp_dim = 1 + (int)(agglo_le32(data + 4) & 0xffffff);
    c->depth = 1 + (agglo_le16(data + 8) & 1023);
    c->patch = 1 + data[10];
    grid = 1 + data[11] % (8192 / c->patch);
    c->image = grid * c->patch;
    c->proj = strcmp(c->family, "clip") == 0 ? data[12] : 0;
    c->registers = strcmp(c->family, "dinov2") == 0 ? data[12] : 0;
    c->swiglu = strcmp(c->family, "dinov2") == 0 && data[13] % 2 != 0;
    c->heads = 0;
    if (strcmp(c->family, "sam") == 0) { /* some blocks of the grid's side, the others of the window's */
        c->neck = data[12];
        c->window = data[13];
        c->heads = 1 + data[14];
        memset(c->global_layers, data[15], sizeof c->global_layers);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct {
        const char *family;
        const agglo_layout *layout;
    } kinds[] = {{"clip", &agglo_layout_clip_hf},      {"clip", &agglo_layout_clip_open},
                 {"clip", &agglo_layout_clip_timm},    {"dinov2", &agglo_layout_dinov2_hf},
                 {"dinov2", &agglo_layout_dinov2_hub}, {"sam", &agglo_layout_sam_hf},
                 {"sam", &agglo_layout_sam_original}};
    json_t *json = NULL;
    agglo_err err = {0};

    if (size <= SHAPES ||
        agglo_json_parse((const char *)data + SHAPES + 1, size - SHAPES - 1, &json, &err) != AGGLO_OK) {
        return 0;
    }
    for (size_t i = 0; i < AGGLO_COUNT(kinds) && json_is_object(json); i++) {
        char kind = (char)data[SHAPES];
        agglo_facts known = {0};
        agglo_teacher_config c;
        agglo_status status;

        if (kind == 'o' && strcmp(kinds[i].family, "clip") != 0) {
            continue; /* OpenCLIP's is asked about CLIP alone */
        }
        agglo_err_clear(&err);
        AGGLO_ASSERT(agglo_teacher_named(kinds[i].family, &c, &err) == AGGLO_OK);
        shapes_of(data, &c);
        status = (kind == 'o'   ? agglo_facts_open_clip
                  : kind == 't' ? agglo_facts_timm
                  : kind == 'p' ? agglo_facts_preprocessor
                                : agglo_facts_transformers)(&known, json, kinds[i].layout, &c, &err);
        AGGLO_ASSERT(status == err.status && (status == AGGLO_OK || err.why[0] != '\0'));
        AGGLO_ASSERT(known.heads_from == NULL || (known.heads > 0 && c.dim % known.heads == 0));
        AGGLO_ASSERT(known.eps_from == NULL || (known.norm_eps > 0 && known.norm_eps < 1));
        AGGLO_ASSERT(known.windows_from == NULL || strcmp(kinds[i].family, "sam") == 0);
        for (int k = 0; known.pixels_from != NULL && k < 3; k++) {
            AGGLO_ASSERT(isfinite(known.mean[k]) && known.std[k] > 0 && isfinite(known.std[k]));
        }
        AGGLO_ASSERT(known.fit_from == NULL || (known.fit == AGGLO_FIT_PAD) == (strcmp(kinds[i].family, "sam") == 0));
    }
    json_decref(json);
    AGGLO_ASSERT(agglo_alloc_counts().n_live == 0);
    return 0;
}
