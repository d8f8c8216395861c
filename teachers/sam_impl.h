/* SAM's checkpoints: what their shapes tell; see sam.c. */
#ifndef AGGLO_TEACHERS_SAM_IMPL_H
#define AGGLO_TEACHERS_SAM_IMPL_H

#include "teachers/layout_impl.h"

/* image from the table of positions; heads, window and global blocks from the tables of relative positions; neck. A block whose tables
 * fit the whole grid is taken as global: a window of the grid's own side is the same at the checkpoint's size (agglo_sam_adopt tells them
 * apart for others). The caller adds the place to errors. */
agglo_status agglo_sam_read_shapes(const agglo_weights *weights, const agglo_layout_found *found,
                                   agglo_teacher_config *c, agglo_err *err);

/* Whether a stated pattern (window 0: all blocks are global) has the tables that were found: AGGLO_E_MISMATCH names the block. */
agglo_status agglo_sam_confirm(const agglo_teacher_config *found, int window, const uint32_t *global_layers,
                               agglo_err *err);
/* Take over a pattern that was confirmed. */
void agglo_sam_adopt(agglo_teacher_config *found, int window, const uint32_t *global_layers);

#endif
