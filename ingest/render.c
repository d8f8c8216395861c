/* The renderer: decoder, resizer and the geometry between them. */
#include "ingest/render.h"

#include <limits.h>

#include "base/hash.h"
#include "ingest/resize.h"

struct agglo_renderer {
    agglo_decoder *decoder;
    agglo_resizer *resizer;
};

agglo_status agglo_renderer_new(agglo_renderer **out, const agglo_decode_options *options, agglo_err *err)
{
    agglo_renderer *renderer = agglo_alloc(1, sizeof *renderer, err);

    *out = NULL;
    if (renderer == NULL) {
        goto fail;
    }
    if (agglo_decoder_new(&renderer->decoder, options, err) != AGGLO_OK ||
        agglo_resizer_new(&renderer->resizer, err) != AGGLO_OK) {
        goto fail;
    }
    *out = renderer;
    return AGGLO_OK;
fail:
    agglo_renderer_free(renderer);
    return agglo_doing(err, "cannot make a renderer");
}

void agglo_renderer_free(agglo_renderer *renderer)
{
    if (renderer == NULL) {
        return;
    }
    agglo_resizer_free(renderer->resizer);
    agglo_decoder_free(renderer->decoder);
    agglo_free(renderer);
}

agglo_status agglo_render_decode(agglo_renderer *renderer, agglo_bytes encoded, agglo_image *out, agglo_reason *reason,
                                 agglo_err *err)
{
    return agglo_decode(renderer->decoder, encoded, out, reason, err);
}

static void mirror_rows(uint8_t *pixels, int width, int height)
{
    for (int y = 0; y < height; y++) {
        uint8_t *left = pixels + (size_t)y * (size_t)width * 3, *right = left + (size_t)(width - 1) * 3;

        for (; left < right; left += 3, right -= 3) {
            for (int c = 0; c < 3; c++) {
                uint8_t swap = left[c];

                left[c] = right[c];
                right[c] = swap;
            }
        }
    }
}

/* The box of `image` as the resizer takes it: only what lies inside the box enters, but the bytes behind it may be read. */
static agglo_resize_source cut(const agglo_image *image, int x, int y, int w, int h)
{
    size_t stride = (size_t)image->width * 3, offset = (size_t)y * stride + (size_t)x * 3;

    return (agglo_resize_source){
        .rgb = image->rgb + offset,
        .width = w,
        .height = h,
        .stride = stride,
        .readable = (size_t)image->height * stride - offset,
    };
}

/* The pixels of one axis of a region that a box touches: the first, how many, and where in them the box begins and how long it is. */
static void cut_axis(int at, int n, int origin, int reduce, int *first, int *count, double *box_at, double *box_n)
{
    int from = at - origin, to = from + n;

    *first = from / reduce;
    *count = (to + reduce - 1) / reduce - *first;
    *box_at = (double)(from - *first * reduce) / (double)reduce; /* eighths: exact */
    *box_n = (double)n / (double)reduce;
}

static agglo_resize_source cut_region(const agglo_region *region, const agglo_view *view)
{
    agglo_resize_source source = {.stride = region->stride};
    size_t offset;
    int x, y;

    cut_axis(view->x, view->w, region->left, region->reduce, &x, &source.width, &source.box_x, &source.box_w);
    cut_axis(view->y, view->h, region->top, region->reduce, &y, &source.height, &source.box_y, &source.box_h);
    AGGLO_ASSERT(x >= 0 && y >= 0 && source.width <= region->width - x && source.height <= region->height - y);
    offset = (size_t)y * source.stride + (size_t)x * 3;
    source.rgb = region->rgb + offset;
    source.readable = (size_t)(region->height - 1) * source.stride + (size_t)region->width * 3 + 64 - offset;
    return source;
}

static bool lies_in(const agglo_view *view, int width, int height)
{
    return view->x >= 0 && view->y >= 0 && view->w >= 1 && view->h >= 1 && view->w <= width - view->x &&
           view->h <= height - view->y;
}

static agglo_status fail_box(const agglo_view *view, int width, int height, agglo_err *err)
{
    return agglo_fail(err, AGGLO_E_MISMATCH, "the box %d,%d %dx%d does not lie in a picture of %dx%d", view->x, view->y,
                      view->w, view->h, width, height);
}

static agglo_status resize_view(agglo_renderer *renderer, const agglo_resize_source *source, bool flip,
                                agglo_filter filter, int out_w, int out_h, uint8_t *pixels, agglo_err *err)
{
    if (agglo_resize(renderer->resizer, source, filter, out_w, out_h, (agglo_resize_window){0, 0, out_w, out_h}, pixels,
                     (size_t)out_w * 3, err) != AGGLO_OK) {
        return err->status;
    }
    if (flip) {
        mirror_rows(pixels, out_w, out_h);
    }
    return AGGLO_OK;
}

agglo_status agglo_render_image(agglo_renderer *renderer, const agglo_image *image, const agglo_view *view,
                                agglo_filter filter, int out_w, int out_h, uint8_t *pixels, agglo_err *err)
{
    agglo_resize_source source;

    AGGLO_ASSERT(out_w >= 1 && out_h >= 1);
    if (!lies_in(view, image->width, image->height)) {
        fail_box(view, image->width, image->height, err);
        goto fail;
    }
    source = cut(image, view->x, view->y, view->w, view->h);
    if (resize_view(renderer, &source, view->flip, filter, out_w, out_h, pixels, err) != AGGLO_OK) {
        goto fail;
    }
    return AGGLO_OK;
fail:
    return agglo_doing(err, "cannot render view");
}

int agglo_render_reduce(const agglo_view *view, agglo_view_decode decode, int out_w, int out_h)
{
    int reduce = 1;

    while (decode == AGGLO_VIEW_SCALED && reduce < 8 && view->w / (2 * reduce) >= out_w &&
           view->h / (2 * reduce) >= out_h) {
        reduce *= 2;
    }
    return reduce;
}

agglo_status agglo_render_views(agglo_renderer *renderer, agglo_bytes encoded, int width, int height,
                                const agglo_view *views, int n_views, agglo_view_decode decode, agglo_filter filter,
                                int out_w, int out_h, uint8_t *pixels, agglo_err *err)
{
    const size_t n_pixels = (size_t)out_w * (size_t)out_h * 3;

    AGGLO_ASSERT(out_w >= 1 && out_h >= 1 && n_views >= 1);
    if (agglo_image_format_of(encoded) != AGGLO_IMAGE_JPEG) {
        decode = AGGLO_VIEW_EXACT; /* nothing else is to be had, and all views come from one decoding */
    }
    for (int i = 0; i < n_views; i++) {
        agglo_image_info info;

        if (!lies_in(&views[i], width,
                     height)) { /* the picture's size, if that is what is wrong, is the better message */
            if (agglo_decoder_probe(renderer->decoder, encoded, &info, NULL, err) != AGGLO_OK) {
                return agglo_doing(err, "cannot render views");
            }
            if (info.width != width || info.height != height) {
                agglo_fail(err, AGGLO_E_MISMATCH, "the picture is %dx%d, its views were drawn for %dx%d", info.width,
                           info.height, width, height);
                return agglo_doing(err, "cannot render views");
            }
            fail_box(&views[i], width, height, err);
            agglo_doing(err, "cannot render views");
            return agglo_at(err, "view %d", i);
        }
    }
    for (int reduce = 1; reduce <= 8; reduce *= 2) {
        int left = INT_MAX, top = INT_MAX, right = 0, bottom = 0;
        agglo_region region;

        for (int i = 0; i < n_views; i++) {
            const agglo_view *v = &views[i];

            if (agglo_render_reduce(v, decode, out_w, out_h) == reduce) {
                left = v->x < left ? v->x : left;
                top = v->y < top ? v->y : top;
                right = v->x + v->w > right ? v->x + v->w : right;
                bottom = v->y + v->h > bottom ? v->y + v->h : bottom;
            }
        }
        if (right == 0) {
            continue;
        }
        if (agglo_decode_region(renderer->decoder, encoded, width, height,
                                &(agglo_box){left, top, right - left, bottom - top}, reduce, &region, NULL,
                                err) != AGGLO_OK) {
            return agglo_doing(err, "cannot render views");
        }
        for (int i = 0; i < n_views; i++) {
            agglo_resize_source source;

            if (agglo_render_reduce(&views[i], decode, out_w, out_h) != reduce) {
                continue;
            }
            source = cut_region(&region, &views[i]);
            if (resize_view(renderer, &source, views[i].flip, filter, out_w, out_h, pixels + (size_t)i * n_pixels,
                            err) != AGGLO_OK) {
                agglo_doing(err, "cannot render views");
                return agglo_at(err, "view %d", i);
            }
        }
    }
    return AGGLO_OK;
}

/* Where a centre crop begins when n pixels are left over: Python's round(n / 2) or n // 2. */
static int centre_of(int n, agglo_centre rule)
{
    int q = n / 2;

    return rule == AGGLO_CENTRE_EVEN && n % 2 != 0 ? q + q % 2 : q;
}

/* Short side to resize_to, the other truncated; then the middle. */
static agglo_status whole_crop(agglo_renderer *renderer, const agglo_image *image, const agglo_preprocess *pre,
                               uint8_t *pixels, agglo_err *err)
{
    const agglo_resize_source source = cut(image, 0, 0, image->width, image->height);
    const bool wide = image->width >= image->height;
    const int64_t shorter = wide ? image->height : image->width, longer = wide ? image->width : image->height;
    const int64_t stretched = (int64_t)pre->resize_to * longer / shorter;
    int out_w, out_h;

    AGGLO_ASSERT(pre->resize_to >= pre->size);
    if (stretched > INT32_MAX / 4) {
        return agglo_fail(err, AGGLO_E_DATA, "a picture of %dx%d cannot be resized to a short side of %d", image->width,
                          image->height, pre->resize_to);
    }
    out_w = wide ? (int)stretched : pre->resize_to;
    out_h = wide ? pre->resize_to : (int)stretched;
    return agglo_resize(renderer->resizer, &source, pre->filter, out_w, out_h,
                        (agglo_resize_window){centre_of(out_w - pre->size, pre->centre),
                                              centre_of(out_h - pre->size, pre->centre), pre->size, pre->size},
                        pixels, (size_t)pre->size * 3, err);
}

static int pad_side(int side, int longest, int size)
{
    double scale = (double)size / (double)longest;
    int out = (int)((double)side * scale + 0.5);

    return out < 1 ? 1 : out > size ? size : out;
}

/* Long side to size; the rest, below or right, is the mean colour. */
static agglo_status whole_pad(agglo_renderer *renderer, const agglo_image *image, const agglo_preprocess *pre,
                              uint8_t *pixels, agglo_extent *extent, agglo_err *err)
{
    const agglo_resize_source source = cut(image, 0, 0, image->width, image->height);
    const int longest = image->width > image->height ? image->width : image->height;
    const int out_w = pad_side(image->width, longest, pre->size), out_h = pad_side(image->height, longest, pre->size);
    uint8_t mean[3];

    for (int c = 0; c < 3; c++) {
        mean[c] = (uint8_t)(pre->mean[c] * 255.0f + 0.5f);
    }
    *extent = (agglo_extent){out_w, out_h};
    for (int y = 0; y < pre->size; y++) {
        uint8_t *row = pixels + (size_t)y * (size_t)pre->size * 3;

        for (int x = y < out_h ? out_w : 0; x < pre->size; x++) {
            memcpy(row + (size_t)x * 3, mean, 3);
        }
    }
    return agglo_resize(renderer->resizer, &source, pre->filter, out_w, out_h,
                        (agglo_resize_window){0, 0, out_w, out_h}, pixels, (size_t)pre->size * 3, err);
}

agglo_status agglo_render_whole_image(agglo_renderer *renderer, const agglo_image *image, const agglo_preprocess *pre,
                                      uint8_t *pixels, agglo_extent *extent, agglo_err *err)
{
    const agglo_view all = {0, 0, image->width, image->height, false};
    agglo_status status = AGGLO_OK;

    AGGLO_ASSERT(pre->size >= 1);
    *extent = (agglo_extent){pre->size, pre->size};
    switch (pre->fit) {
    case AGGLO_FIT_CROP:
        status = whole_crop(renderer, image, pre, pixels, err);
        break;
    case AGGLO_FIT_SQUASH:
        status = agglo_render_image(renderer, image, &all, pre->filter, pre->size, pre->size, pixels, err);
        break;
    case AGGLO_FIT_PAD:
        status = whole_pad(renderer, image, pre, pixels, extent, err);
        break;
    }
    return status == AGGLO_OK ? AGGLO_OK : agglo_doing(err, "cannot prepare picture");
}

agglo_status agglo_render_whole(agglo_renderer *renderer, agglo_bytes encoded, const agglo_preprocess *pre,
                                uint8_t *pixels, agglo_extent *extent, agglo_err *err)
{
    agglo_image image;

    if (agglo_decode(renderer->decoder, encoded, &image, NULL, err) != AGGLO_OK) {
        return agglo_doing(err, "cannot prepare picture");
    }
    return agglo_render_whole_image(renderer, &image, pre, pixels, extent, err);
}

uint64_t agglo_pixel_hash(const uint8_t *pixels, int width, int height)
{
    uint8_t text[16];

    agglo_put_le32(text, (uint32_t)width);
    agglo_put_le32(text + 4, (uint32_t)height);
    agglo_put_le64(text + 8, agglo_xxh3_64(pixels, (size_t)width * (size_t)height * 3));
    return agglo_xxh3_64(text, sizeof text);
}
