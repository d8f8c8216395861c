/* What the tensors of a checkpoint do not tell, and who says it: heads, activation, epsilon, and how pictures are prepared.
 *
 * Sources are asked in turn; the first that states a fact is believed, later ones only fill what is open. What a source states of shapes must be
 * what the tensors say (AGGLO_E_MISMATCH).
 */
#ifndef AGGLO_TEACHERS_FACTS_IMPL_H
#define AGGLO_TEACHERS_FACTS_IMPL_H

#include "base/json.h"
#include "teachers/layout_impl.h"

/* Who says it: a static text ("config.json"), NULL while it is open. */
typedef struct agglo_facts {
    const char *heads_from, *act_from, *eps_from, *pixels_from, *fit_from, *windows_from;
    int heads;
    agglo_act act;
    float norm_eps;
    float mean[3], std[3];
    agglo_fit fit;
    agglo_filter filter;
    int window; /* of SAM, with its global blocks: agglo_sam_confirm has compared them with the tables */
    uint32_t global_layers[AGGLO_TEACHER_MOST_DEPTH / 32];
} agglo_facts;

/* "FIELD is stated as SAID, the tensors say FOUND". */
agglo_status agglo_facts_disagree(agglo_err *err, const char *field, long long said, long long found);

/* An integer member that must be `found` where it is stated. */
agglo_status agglo_facts_confirm(const json_t *json, const char *key, int found, agglo_err *err);

/* State the heads, unless someone has. AGGLO_E_DATA: the width is no multiple of them. */
agglo_status agglo_facts_set_heads(agglo_facts *known, const agglo_teacher_config *c, int heads, const char *from,
                                   agglo_err *err);

/* State mean and std, unless someone has. AGGLO_E_DATA: one is not finite, or a std not above 0. */
agglo_status agglo_facts_set_pixels(agglo_facts *known, const float mean[3], const float std[3], const char *from,
                                    agglo_err *err);

/* __metadata__ as agglo_teacher_write_random leaves it; other files have no "family" there. */
agglo_status agglo_facts_metadata(agglo_facts *known, const agglo_weights *weights, const agglo_teacher_config *c,
                                  agglo_err *err);

/* The JSON files beside the weights, each as STEM.NAME or NAME in their directory: config.json (transformers' or timm's), open_clip_config.json and
 * preprocessor_config.json; that of the layout's own library first. */
agglo_status agglo_facts_beside(agglo_facts *known, const agglo_weights *weights, const agglo_layout *layout,
                                const agglo_teacher_config *c, agglo_err *err);

/* The members of one such file; `root` is an object. Placed by the caller. */
agglo_status agglo_facts_transformers(agglo_facts *known, const json_t *root, const agglo_layout *layout,
                                      const agglo_teacher_config *c, agglo_err *err);
agglo_status agglo_facts_open_clip(agglo_facts *known, const json_t *root, const agglo_layout *layout,
                                   const agglo_teacher_config *c, agglo_err *err);
agglo_status agglo_facts_timm(agglo_facts *known, const json_t *root, const agglo_layout *layout,
                              const agglo_teacher_config *c, agglo_err *err);
agglo_status agglo_facts_preprocessor(agglo_facts *known, const json_t *root, const agglo_layout *layout,
                                      const agglo_teacher_config *c, agglo_err *err);

#endif
