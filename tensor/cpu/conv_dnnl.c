/* Forward convolutions by oneDNN, in F32: beside gemm_dnnl.c the only file that sees it.
 *
 * An image is cut into bands of output rows, which are tasks of the pool; a primitive computes a band on the thread that runs it. Bands of one
 * height and padding share a primitive, so a shape has a few: top, middle, bottom, last. Primitives are made once per shape and kept with
 * the backend; weights are packed once per call, as oneDNN wants them. Whether oneDNN has a fast primitive depends on shape and machine alone.
 */
#include "tensor/cpu/cpu_impl.h"

#include "base/alloc.h"

#include <oneapi/dnnl/dnnl.h>

#include <string.h>

#define MAX_PLANS   64  /* a full table starts again from nothing */
#define MAX_KINDS   6   /* of bands of an image */
#define BAND_PIXELS 256 /* at least, but for the last band */

typedef struct band {
    int64_t rows, rows_in, top, bottom; /* output rows, image rows, rows of padding */
    int64_t first, first_in;
} band;

typedef struct kind {
    band like;
    dnnl_primitive_t primitive;
    dnnl_memory_t *src, *dst, *weights, *scratch; /* [n_workers] */
} kind;

struct agglo_cpu_conv_plan {
    agglo_conv_shape shape; /* batch 0: of any */
    bool fast;
    int64_t band_rows;
    kind kinds[MAX_KINDS];
    int n_kinds;
    dnnl_primitive_t pack;
    dnnl_memory_t plain, packed;
    size_t packed_bytes, scratch_bytes;
};

struct agglo_cpu_convs {
    dnnl_engine_t engine;
    dnnl_stream_t *streams; /* [n_workers] */
    int n_workers, n_plans;
    agglo_cpu_conv_plan plans[MAX_PLANS];
};

static band band_at(const agglo_conv_shape *s, int64_t rows, int64_t index)
{
    band b = {.first = index * rows};
    int64_t from, to;

    b.rows = agglo_min(rows, s->oh - b.first);
    from = b.first * s->stride_h - s->pad_h;
    to = (b.first + b.rows - 1) * s->stride_h - s->pad_h + s->kh;
    b.top = from < 0 ? -from : 0;
    b.bottom = to > s->h ? to - s->h : 0;
    b.first_in = from < 0 ? 0 : from;
    b.rows_in = to - from - b.top - b.bottom;
    return b;
}

static bool alike(const band *a, const band *b)
{
    return a->rows == b->rows && a->top == b->top && a->bottom == b->bottom;
}

static void destroy_memory(dnnl_memory_t *list, int n)
{
    for (int i = 0; list != NULL && i < n; i++) {
        if (list[i] != NULL) {
            dnnl_memory_destroy(list[i]);
        }
    }
    agglo_free(list);
}

static void clear_plan(agglo_cpu_conv_plan *plan, int n_workers)
{
    for (int i = 0; i < plan->n_kinds; i++) {
        kind *k = &plan->kinds[i];

        if (k->primitive != NULL) {
            dnnl_primitive_destroy(k->primitive);
        }
        destroy_memory(k->src, n_workers);
        destroy_memory(k->dst, n_workers);
        destroy_memory(k->weights, n_workers);
        destroy_memory(k->scratch, n_workers);
    }
    if (plan->pack != NULL) {
        dnnl_primitive_destroy(plan->pack);
    }
    if (plan->plain != NULL) {
        dnnl_memory_destroy(plan->plain);
    }
    if (plan->packed != NULL) {
        dnnl_memory_destroy(plan->packed);
    }
    memset(plan, 0, sizeof *plan);
}

void agglo_cpu_convs_free(agglo_cpu_convs *convs)
{
    if (convs == NULL) {
        return;
    }
    for (int i = 0; i < convs->n_plans; i++) {
        clear_plan(&convs->plans[i], convs->n_workers);
    }
    for (int i = 0; convs->streams != NULL && i < convs->n_workers; i++) {
        if (convs->streams[i] != NULL) {
            dnnl_stream_destroy(convs->streams[i]);
        }
    }
    agglo_free(convs->streams);
    if (convs->engine != NULL) {
        dnnl_engine_destroy(convs->engine);
    }
    agglo_free(convs);
}

static agglo_cpu_convs *convs_new(int n_workers, agglo_err *err)
{
    agglo_cpu_convs *convs = agglo_alloc(1, sizeof *convs, err);
    bool made;

    if (convs == NULL) {
        return NULL;
    }
    convs->n_workers = n_workers;
    convs->streams = agglo_alloc((size_t)n_workers, sizeof *convs->streams, err);
    made = convs->streams != NULL && dnnl_engine_create(&convs->engine, dnnl_cpu, 0) == dnnl_success;
    for (int i = 0; i < n_workers && made; i++) {
        made = dnnl_stream_create(&convs->streams[i], convs->engine, dnnl_stream_default_flags) == dnnl_success;
    }
    if (made) {
        return convs;
    }
    if (err->status == AGGLO_OK) {
        agglo_fail(err, AGGLO_E_DEVICE, "oneDNN has no engine");
    }
    agglo_cpu_convs_free(convs);
    return NULL;
}

static dnnl_memory_t *memories(const agglo_cpu_convs *convs, const dnnl_memory_desc_t *md, agglo_err *err)
{
    dnnl_memory_t *list = agglo_alloc((size_t)convs->n_workers, sizeof *list, err);

    for (int i = 0; list != NULL && i < convs->n_workers; i++) {
        if (dnnl_memory_create(&list[i], md, convs->engine, DNNL_MEMORY_NONE) != dnnl_success) {
            destroy_memory(list, convs->n_workers);
            return NULL;
        }
    }
    return list;
}

/* Primitive and memory of one kind of band. `weights` is the layout to use, on return the one that is used. */
static bool make_kind(const agglo_cpu_convs *convs, const agglo_conv_shape *s, kind *k, dnnl_memory_desc_t *weights,
                      size_t *scratch_bytes, agglo_err *err)
{
    const dnnl_dims_t src = {1, s->c, k->like.rows_in, s->w}, dst = {1, s->o, k->like.rows, s->ow};
    const dnnl_dims_t strides = {s->stride_h, s->stride_w}, before = {k->like.top, s->pad_w},
                      behind = {k->like.bottom, s->pad_w};
    dnnl_memory_desc_t src_md, dst_md;
    const dnnl_memory_desc_t *scratch_md;
    dnnl_convolution_desc_t desc;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_primitive_desc_t pd = NULL;
    const char *name = "";
    bool made = dnnl_memory_desc_init_by_tag(&src_md, 4, src, dnnl_f32, dnnl_nhwc) == dnnl_success &&
                dnnl_memory_desc_init_by_tag(&dst_md, 4, dst, dnnl_f32, dnnl_nhwc) == dnnl_success &&
                dnnl_convolution_forward_desc_init(&desc, dnnl_forward_inference, dnnl_convolution_direct, &src_md,
                                                   weights, NULL, &dst_md, strides, before, behind) == dnnl_success &&
                dnnl_primitive_attr_create(&attr) == dnnl_success &&
                dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user) == dnnl_success &&
                dnnl_primitive_desc_create(&pd, &desc, attr, convs->engine, NULL) == dnnl_success &&
                dnnl_primitive_desc_query(pd, dnnl_query_impl_info_str, 0, (void *)&name) == dnnl_success;

    /* generated code for AVX2 or wider; its products and reference loops are slower than our own tiles */
    if (made && (strncmp(name, "brgconv", 7) == 0 || strncmp(name, "jit:avx", 7) == 0)) {
        scratch_md = dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
        *weights = *dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0);
        *scratch_bytes = dnnl_memory_desc_get_size(scratch_md);
        k->src = memories(convs, &src_md, err);
        k->dst = memories(convs, &dst_md, err);
        k->weights = memories(convs, weights, err);
        k->scratch = memories(convs, scratch_md, err);
        made = k->src != NULL && k->dst != NULL && k->weights != NULL && k->scratch != NULL &&
               dnnl_primitive_create(&k->primitive, pd) == dnnl_success;
    } else {
        made = false;
    }
    if (pd != NULL) {
        dnnl_primitive_desc_destroy(pd);
    }
    if (attr != NULL) {
        dnnl_primitive_attr_destroy(attr);
    }
    return made;
}

static bool make_plan(const agglo_cpu_convs *convs, agglo_cpu_conv_plan *plan, agglo_err *err)
{
    const agglo_conv_shape *s = &plan->shape;
    const dnnl_dims_t dims = {s->o, s->c, s->kh, s->kw};
    dnnl_memory_desc_t plain, weights;
    dnnl_primitive_desc_t pd = NULL;
    bool made;

    plan->band_rows = agglo_min(agglo_ceil_div(BAND_PIXELS, s->ow), s->oh);
    if (dnnl_memory_desc_init_by_tag(&plain, 4, dims, dnnl_f32, dnnl_ohwi) != dnnl_success ||
        dnnl_memory_desc_init_by_tag(&weights, 4, dims, dnnl_f32, dnnl_format_tag_any) != dnnl_success) {
        return false;
    }
    for (int64_t i = 0; i < agglo_ceil_div(s->oh, plan->band_rows); i++) {
        band b = band_at(s, plan->band_rows, i);
        size_t scratch_bytes = 0;
        int at = 0;

        while (at < plan->n_kinds && !alike(&plan->kinds[at].like, &b)) {
            at++;
        }
        if (at < plan->n_kinds) {
            continue;
        }
        if (at == MAX_KINDS || b.rows_in < 1) {
            return false;
        }
        plan->n_kinds++;
        plan->kinds[at].like = b;
        if (!make_kind(convs, s, &plan->kinds[at], &weights, &scratch_bytes, err)) {
            return false;
        }
        plan->scratch_bytes = scratch_bytes > plan->scratch_bytes ? scratch_bytes : plan->scratch_bytes;
    }
    plan->packed_bytes = dnnl_memory_desc_get_size(&weights);
    made =
        dnnl_reorder_primitive_desc_create(&pd, &plain, convs->engine, &weights, convs->engine, NULL) == dnnl_success &&
        dnnl_primitive_create(&plan->pack, pd) == dnnl_success &&
        dnnl_memory_create(&plan->plain, &plain, convs->engine, DNNL_MEMORY_NONE) == dnnl_success &&
        dnnl_memory_create(&plan->packed, &weights, convs->engine, DNNL_MEMORY_NONE) == dnnl_success;
    if (pd != NULL) {
        dnnl_primitive_desc_destroy(pd);
    }
    return made;
}

static bool same(const agglo_conv_shape *a, const agglo_conv_shape *b)
{
    return a->h == b->h && a->w == b->w && a->c == b->c && a->oh == b->oh && a->ow == b->ow && a->o == b->o &&
           a->kh == b->kh && a->kw == b->kw && a->stride_h == b->stride_h && a->stride_w == b->stride_w &&
           a->pad_h == b->pad_h && a->pad_w == b->pad_w;
}

agglo_cpu_conv_plan *agglo_cpu_conv_plan_of(agglo_backend *be, const agglo_conv_shape *s)
{
    agglo_cpu *cpu = (agglo_cpu *)be;
    agglo_cpu_conv_plan *plan;
    agglo_err err = {0};

    agglo_cpu_one_thread();
    if (cpu->convs == NULL) {
        cpu->convs = convs_new(agglo_pool_threads(be->pool), &err);
        if (cpu->convs == NULL) {
            agglo_backend_latch(be, &err);
            return NULL;
        }
    }
    for (int i = 0; i < cpu->convs->n_plans; i++) {
        if (same(&cpu->convs->plans[i].shape, s)) {
            return cpu->convs->plans[i].fast ? &cpu->convs->plans[i] : NULL;
        }
    }
    if (cpu->convs->n_plans == MAX_PLANS) {
        for (int i = 0; i < MAX_PLANS; i++) {
            clear_plan(&cpu->convs->plans[i], cpu->convs->n_workers);
        }
        cpu->convs->n_plans = 0;
    }
    plan = &cpu->convs->plans[cpu->convs->n_plans++];
    plan->shape = *s;
    plan->fast = make_plan(cpu->convs, plan, &err);
    if (err.status != AGGLO_OK) {
        agglo_backend_latch(be, &err);
    }
    if (!plan->fast) {
        clear_plan(plan, cpu->convs->n_workers);
        plan->shape = *s; /* remembered as one without */
        return NULL;
    }
    return plan;
}

int64_t agglo_cpu_conv_bands(const agglo_cpu_conv_plan *plan)
{
    return agglo_ceil_div(plan->shape.oh, plan->band_rows);
}

void agglo_cpu_conv_sizes(const agglo_cpu_conv_plan *plan, size_t *packed_bytes, size_t *scratch_bytes)
{
    *packed_bytes = plan->packed_bytes;
    *scratch_bytes = plan->scratch_bytes;
}

static void *unconst(const void *p)
{
    return (void *)(uintptr_t)p;
}

void agglo_cpu_conv_pack(agglo_backend *be, agglo_cpu_conv_plan *plan, const float *w, void *packed)
{
    const dnnl_exec_arg_t args[] = {{DNNL_ARG_FROM, plan->plain}, {DNNL_ARG_TO, plan->packed}};
    dnnl_status_t status;

    agglo_cpu_one_thread();
    dnnl_memory_set_data_handle(plan->plain, unconst(w));
    dnnl_memory_set_data_handle(plan->packed, packed);
    status = dnnl_primitive_execute(plan->pack, ((agglo_cpu *)be)->convs->streams[0], 2, args);
    agglo_cpu_dnnl_status((int)status);
}

void agglo_cpu_conv_band(agglo_backend *be, agglo_cpu_conv_plan *plan, int64_t index, int worker, const float *x,
                         const void *packed, void *scratch, float *y, int64_t *first, int64_t *rows)
{
    const agglo_conv_shape *s = &plan->shape;
    band b = band_at(s, plan->band_rows, index);
    int at = 0;

    agglo_cpu_one_thread();
    while (!alike(&plan->kinds[at].like, &b)) {
        at++;
    }
    {
        const kind *k = &plan->kinds[at];
        const dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, k->src[worker]},
                                        {DNNL_ARG_DST, k->dst[worker]},
                                        {DNNL_ARG_WEIGHTS, k->weights[worker]},
                                        {DNNL_ARG_SCRATCHPAD, k->scratch[worker]}};

        dnnl_memory_set_data_handle(k->src[worker], unconst(x + b.first_in * s->w * s->c));
        dnnl_memory_set_data_handle(k->dst[worker], y + b.first * s->ow * s->o);
        dnnl_memory_set_data_handle(k->weights[worker], unconst(packed));
        dnnl_memory_set_data_handle(k->scratch[worker], scratch);
        agglo_cpu_dnnl_status(
            (int)dnnl_primitive_execute(k->primitive, ((agglo_cpu *)be)->convs->streams[worker], 4, args));
    }
    *first = b.first;
    *rows = b.rows;
}
