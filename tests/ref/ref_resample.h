/* The reference of tensor/ops_resample.h and tensor/ops_gather.h; see ref.h. */
#ifndef AGGLO_TESTS_REF_REF_RESAMPLE_H
#define AGGLO_TESTS_REF_REF_RESAMPLE_H

#include <stdbool.h>
#include <stdint.h>

typedef enum ref_resample_mode { REF_NEAREST, REF_BILINEAR, REF_BICUBIC, REF_REFLECT } ref_resample_mode;

typedef struct ref_resample_rule {
    ref_resample_mode mode;
    bool antialias, align_corners;
    double scale_h, scale_w; /* 0: of the sizes */
} ref_resample_rule;

void ref_resample(const ref_resample_rule *rule, int64_t b, int64_t h, int64_t w, int64_t h_out, int64_t w_out,
                  int64_t c, const double *x, double *y);
void ref_resample_bwd(const ref_resample_rule *rule, int64_t b, int64_t h, int64_t w, int64_t h_out, int64_t w_out,
                      int64_t c, const double *d_y, bool accumulate, double *d_x);

/* table[rows,columns,d], boxes[b,4] left, top, width, height */
void ref_crop_grid(int64_t b, int64_t rows, int64_t columns, int64_t h, int64_t w, int64_t d, const double *table,
                   const double *boxes, double *y);
void ref_crop_grid_bwd(int64_t b, int64_t rows, int64_t columns, int64_t h, int64_t w, int64_t d, const double *d_y,
                       const double *boxes, double *d_table);

void ref_window_partition(int64_t b, int64_t h, int64_t w, int64_t wh, int64_t ww, int64_t c, const double *x,
                          bool accumulate, double *y);
void ref_window_merge(int64_t b, int64_t h, int64_t w, int64_t wh, int64_t ww, int64_t c, const double *y,
                      bool accumulate, double *x);
/* index[n] for n_lists 1, index[b,n] for n_lists b */
void ref_gather_rows(int64_t b, int64_t m, int64_t n, int64_t c, const double *x, const double *index, int64_t n_lists,
                     double *y);
void ref_scatter_rows(int64_t b, int64_t m, int64_t n, int64_t c, const double *y, const double *index, int64_t n_lists,
                      bool accumulate, double *x);

#endif
