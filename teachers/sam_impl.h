/* SAM's checkpoints: what their shapes tell; see sam.c. */
#ifndef AGGLO_TEACHERS_SAM_IMPL_H
#define AGGLO_TEACHERS_SAM_IMPL_H

#include "teachers/layout_impl.h"

/* image from the table of positions; heads, window and global blocks from the tables of relative positions; neck. A block whose tables
 * fit the whole grid is taken as global: a window of the grid's own side is the same at the checkpoint's size (agglo_sam_adopt tells them
 * apart at others). */
agglo_status agglo_sam_read_shapes(const agglo_weights *weights, const agglo_layout *layout, const char *prefix,
                                   agglo_teacher_config *c, agglo_err *err);

/* Take over `window` and `global_layers` as the file or its config.json states them. AGGLO_E_MISMATCH where tables are of another side. */
agglo_status agglo_sam_adopt(agglo_teacher_config *found, const agglo_teacher_config *said, agglo_err *err);

#endif
