/* Any text as a JSON file beside weights: the first byte says which kind ('c'onfig of transformers, 'o'pen_clip_config, 't'imm, 'p'reprocessor). Refused with one
 * error, or what it states is usable. */
#include <math.h>

#include "teachers/facts_impl.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct {
        const char *family;
        const agglo_layout *layout;
    } kinds[] = {{"clip", &agglo_layout_clip_hf},
                 {"clip", &agglo_layout_clip_open},
                 {"clip", &agglo_layout_clip_timm},
                 {"dinov2", &agglo_layout_dinov2_hub}};
    json_t *json = NULL;
    agglo_err err = {0};

    if (size < 1 || agglo_json_parse((const char *)data + 1, size - 1, &json, &err) != AGGLO_OK) {
        return 0;
    }
    for (size_t i = 0; i < AGGLO_COUNT(kinds) && json_is_object(json); i++) {
        agglo_facts known = {0};
        agglo_teacher_config c;
        agglo_status status;

        agglo_err_clear(&err);
        AGGLO_ASSERT(agglo_teacher_named(kinds[i].family, &c, &err) == AGGLO_OK);
        status = (data[0] == 'o'   ? agglo_facts_open_clip
                  : data[0] == 't' ? agglo_facts_timm
                  : data[0] == 'p' ? agglo_facts_preprocessor
                                   : agglo_facts_transformers)(&known, json, kinds[i].layout, &c, &err);
        AGGLO_ASSERT(status == err.status && (status == AGGLO_OK || err.why[0] != '\0'));
        AGGLO_ASSERT(status != AGGLO_OK || known.heads_from == NULL || known.heads > 0);
        AGGLO_ASSERT(status != AGGLO_OK || known.eps_from == NULL || (known.norm_eps > 0 && known.norm_eps < 1));
    }
    json_decref(json);
    AGGLO_ASSERT(agglo_alloc_counts().n_live == 0);
    return 0;
}
