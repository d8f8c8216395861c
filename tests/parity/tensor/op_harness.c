/* The harness; see op_harness.h. A case is checked for
 *   - outputs that agree with the reference, and (on a device) with the CPU backend's,
 *   - gradients that agree with central differences of the reference's forward pass,
 *   - the same bytes from three backends (1, 2 and 3 threads on the CPU),
 *   - inputs that are left alone, and no allocation in the second run.
 */
#include "tests/parity/tensor/op_harness.h"

#include <math.h>

/* The tolerances, of max |a - b| / max |b| over an array.
 *
 * F32: a product or sum of a few thousand terms is off by some ulp (6e-8) times the root of its length; backward passes chain several and
 * cancel. BF16 storage: the reference sees the inputs as they were rounded, so what remains is the rounding of the result to 8 bits
 * (2^-9 = 2e-3 of each element) and of what an operator hands on inside in BF16 (probabilities of attention), three or four such steps. */
static double tolerance_of(const op_test *test, agglo_dtype type)
{
    return type == AGGLO_BF16 ? 1e-2 : test->backward ? 1e-4 : 1e-5;
}

/* Of a directional derivative, relative to |gradient| |direction|: that of the gradient itself; the reference's own central difference is good to 1e-7. */
static double difference_tolerance(agglo_dtype type)
{
    return type == AGGLO_BF16 ? 1e-2 : 1e-4;
}

/* An output of a 16-bit type in a case of F32 storage (casts, losses of stored targets) is rounded once. */
static double rounding(agglo_dtype dtype)
{
    return dtype == AGGLO_BF16 ? 0x1p-8 : dtype == AGGLO_F16 ? 0x1p-11 : 0.0;
}

typedef struct array {
    agglo_op_array like;
    int64_t n;
    double *initial, *ref, *got; /* as drawn, after the reference, after the backend */
    uint8_t *bytes;              /* as drawn, of the dtype */
    uint8_t *first;              /* what the first backend made */
} array;

typedef struct run {
    const op_backends *backends;
    const op_test *test;
    const agglo_op_case *c;
    agglo_dtype type;
    test_random random;
    char text[256];
    array a[AGGLO_OP_ARRAYS];
} run;

double *op_scratch(int64_t n)
{
    double *block = calloc((size_t)n, sizeof *block);

    assert_non_null(block);
    return block;
}

double op_dot(int64_t n, const double *w, const double *y)
{
    double sum = 0.0;

    for (int64_t i = 0; i < n; i++) {
        sum += w[i] * y[i];
    }
    return sum;
}

static bool present(const array *a)
{
    return a->like.role != AGGLO_ARRAY_ABSENT;
}

static bool written(const array *a)
{
    return a->like.role == AGGLO_ARRAY_OUT || a->like.role == AGGLO_ARRAY_INOUT;
}

static size_t size_of(const array *a)
{
    return (size_t)a->n * agglo_dtype_size(a->like.dtype);
}

static bool floating(agglo_dtype dtype)
{
    return dtype == AGGLO_F32 || dtype == AGGLO_F16 || dtype == AGGLO_BF16;
}

static void to_double(double *out, const uint8_t *bytes, agglo_dtype dtype, int64_t n)
{
    size_t size = agglo_dtype_size(dtype);

    for (int64_t i = 0; i < n; i++) {
        const uint8_t *at = bytes + (size_t)i * size;
        uint16_t u16;
        uint32_t u32;
        float f;

        memcpy(&u16, at, size < sizeof u16 ? size : sizeof u16);
        memcpy(&u32, at, size < sizeof u32 ? size : sizeof u32);
        switch (dtype) {
        case AGGLO_F32:
        case AGGLO_F16:
        case AGGLO_BF16:
            agglo_dtype_to_f32(&f, at, dtype, 1);
            out[i] = (double)f;
            break;
        case AGGLO_U8:
        case AGGLO_BOOL:
            out[i] = *at;
            break;
        case AGGLO_I8:
            out[i] = (int8_t)*at;
            break;
        case AGGLO_U16:
            out[i] = u16;
            break;
        case AGGLO_I16:
            out[i] = (int16_t)u16;
            break;
        case AGGLO_U32:
            out[i] = u32;
            break;
        case AGGLO_I32:
            out[i] = (int32_t)u32;
            break;
        default:
            fail_msg("no arrays of %s here", agglo_dtype_name(dtype));
        }
    }
}

/* Round doubles to the dtype. */
static void from_double(uint8_t *bytes, const double *values, agglo_dtype dtype, int64_t n)
{
    size_t size = agglo_dtype_size(dtype);

    for (int64_t i = 0; i < n; i++) {
        float f = (float)values[i];

        agglo_dtype_from_f32(bytes + (size_t)i * size, &f, dtype, 1);
    }
}

/* What the case reads, in the array's own precision, and the double that each value is. */
static void draw(run *r, int i)
{
    array *a = &r->a[i];

    a->initial = op_scratch(a->n);
    a->ref = op_scratch(a->n);
    a->got = op_scratch(a->n);
    a->bytes = malloc(size_of(a));
    assert_non_null(a->bytes);
    if (a->like.role == AGGLO_ARRAY_FIXED) {
        memset(a->bytes, 0xff, size_of(a));
        r->c->op->fill(r->c, i, a->bytes);
    } else if (a->like.role == AGGLO_ARRAY_OUT) {
        memset(a->bytes, 0xff, size_of(a)); /* NaN: what is not written shows */
    } else if (!floating(a->like.dtype)) {
        test_random_bytes(&r->random, a->bytes, size_of(a));
    } else {
        for (int64_t j = 0; j < a->n; j++) {
            a->initial[j] = (double)test_random_normal(&r->random);
            a->initial[j] *= a->like.draw == AGGLO_DRAW_SQUARE  ? a->initial[j]
                             : a->like.draw == AGGLO_DRAW_SMALL ? 0.125
                                                                : 1.0;
        }
        from_double(a->bytes, a->initial, a->like.dtype, a->n);
    }
    to_double(a->initial, a->bytes, a->like.dtype, a->n);
}

static void make_arrays(run *r)
{
    double *v[AGGLO_OP_ARRAYS] = {0};
    agglo_op_array like[AGGLO_OP_ARRAYS] = {0};

    r->c->op->shape(r->c, r->type, like);
    for (int i = 0; i < r->c->op->n_arrays; i++) {
        r->a[i].like = like[i];
        if (present(&r->a[i])) {
            r->a[i].n = agglo_op_array_count(&like[i]);
            draw(r, i);
            v[i] = r->a[i].initial;
        }
    }
    if (r->test->prepare != NULL) {
        r->test->prepare(r->c, v);
    }
    for (int i = 0; i < r->c->op->n_arrays; i++) {
        array *a = &r->a[i];

        if (a->like.role == AGGLO_ARRAY_DERIVED) {
            from_double(a->bytes, a->initial, a->like.dtype, a->n);
            to_double(a->initial, a->bytes, a->like.dtype, a->n);
        }
        if (present(a)) {
            memcpy(a->ref, a->initial, (size_t)a->n * sizeof *a->ref);
            v[i] = a->ref;
        }
    }
    r->test->ref(r->c, v);
}

static double relative_error(int64_t n, const double *got, const double *ref)
{
    double worst = 0.0, most = 0.0;

    for (int64_t i = 0; i < n; i++) {
        double d = fabs(got[i] - ref[i]);

        if (!(d <= worst)) { /* also a NaN */
            worst = d;
        }
        most = fmax(most, fabs(ref[i]));
    }
    return worst == 0.0 ? 0.0 : worst / most;
}

static void check_array(const run *r, int i, const double *got, const double *expected, const char *whose)
{
    const array *a = &r->a[i];
    double allowed = tolerance_of(r->test, r->type), error = relative_error(a->n, got, expected);

    allowed = fmax(allowed, rounding(a->like.dtype));
    if (!(error < allowed)) {
        fail_msg("%s: array %d is off %s by %.3g of its largest value, %.0e allowed", r->text, i, whose, error,
                 allowed);
    }
}

/* Twice on one backend; the second run must allocate nothing. The arrays' bytes after it into `got`, malloced. */
static void run_on(const run *r, agglo_backend *be, uint8_t **got)
{
    agglo_tensor t[AGGLO_OP_ARRAYS] = {0};
    agglo_optim *list;
    agglo_err err = {0};
    int n = r->c->op->n_arrays;

    for (int i = 0; i < n; i++) {
        if (present(&r->a[i])) {
            t[i] = agglo_tensor_of(NULL, r->a[i].like.dtype, r->a[i].like.rank, r->a[i].like.shape);
            t[i].data = agglo_backend_alloc(be, agglo_tensor_bytes(&t[i]), &err);
            assert_non_null(t[i].data);
        }
    }
    assert_ok(agglo_op_case_list(be, r->c, t, &list, &err));
    for (int pass = 0; pass < 2; pass++) {
        agglo_alloc_stats before;

        for (int i = 0; i < n; i++) {
            if (present(&r->a[i])) {
                agglo_upload(be, t[i].data, r->a[i].bytes, size_of(&r->a[i]));
            }
        }
        before = agglo_alloc_counts();
        agglo_op_case_run(be, r->c, list, t);
        assert_ok(agglo_backend_check(be, &err));
        if (pass == 1 && agglo_alloc_counts().n_total != before.n_total) {
            fail_msg("%s: allocates in the steady state", r->text);
        }
    }
    agglo_optim_free(list);
    for (int i = 0; i < n; i++) {
        got[i] = NULL;
        if (present(&r->a[i])) {
            got[i] = malloc(size_of(&r->a[i]));
            assert_non_null(got[i]);
            agglo_download(be, got[i], t[i].data, size_of(&r->a[i]));
            agglo_backend_release(be, t[i].data);
        }
    }
    assert_ok(agglo_backend_check(be, &err));
}

static void check_first(run *r)
{
    uint8_t *got[AGGLO_OP_ARRAYS];

    run_on(r, r->backends->same[0], got);
    for (int i = 0; i < r->c->op->n_arrays; i++) {
        array *a = &r->a[i];

        a->first = got[i];
        if (!present(a)) {
            continue;
        }
        if (!written(a)) {
            if (memcmp(got[i], a->bytes, size_of(a)) != 0) {
                fail_msg("%s: array %d, an input, was changed", r->text, i);
            }
            continue;
        }
        to_double(a->got, got[i], a->like.dtype, a->n);
        check_array(r, i, a->got, a->ref, "the reference");
    }
}

static void check_same(const run *r, int which)
{
    uint8_t *got[AGGLO_OP_ARRAYS];

    run_on(r, r->backends->same[which], got);
    for (int i = 0; i < r->c->op->n_arrays; i++) {
        if (got[i] != NULL && memcmp(got[i], r->a[i].first, size_of(&r->a[i])) != 0) {
            fail_msg("%s: array %d differs between %s 1 and %d", r->text, i,
                     strcmp(r->backends->device, "cpu") == 0 ? "threads" : "runs", which + 1);
        }
        free(got[i]);
    }
}

static void check_cpu(const run *r)
{
    uint8_t *got[AGGLO_OP_ARRAYS];

    run_on(r, r->backends->cpu, got);
    for (int i = 0; i < r->c->op->n_arrays; i++) {
        const array *a = &r->a[i];

        if (written(a)) {
            double *cpu = op_scratch(a->n);

            to_double(cpu, got[i], a->like.dtype, a->n);
            check_array(r, i, a->got, cpu, "the CPU backend");
            free(cpu);
        }
        free(got[i]);
    }
}

/* What the backend added to, or wrote as, gradient element i. */
static double gradient(const array *grad, int64_t i)
{
    return grad->got[i] - (grad->like.role == AGGLO_ARRAY_INOUT ? grad->initial[i] : 0.0);
}

/* <gradient that the backend gave, direction> against (L(x + h v) - L(x - h v)) / 2h. */
static void check_differences(run *r, const int pair[2])
{
    const array *in = &r->a[pair[0]], *grad = &r->a[pair[1]];
    int64_t n = in->n;
    double *direction = op_scratch(n), *moved = op_scratch(n), norm = 0.0, *v[AGGLO_OP_ARRAYS];

    for (int i = 0; i < r->c->op->n_arrays; i++) {
        v[i] = r->a[i].initial;
    }
    assert_int_equal(n, grad->n);
    for (int64_t i = 0; i < n; i++) {
        /* of what is stored: a sum that was added to in BF16 is rounded as a whole */
        double d = grad->like.dtype == AGGLO_BF16 ? grad->got[i] : gradient(grad, i);

        norm += d * d;
    }
    for (int trial = 0; trial < 6; trial++) {
        double h = 1e-5, up, down, fd, dot = 0.0, length = 0.0;

        /* all elements at once, then one by one */
        for (int64_t i = 0; i < n; i++) {
            direction[i] = trial < 3 ? (double)test_random_normal(&r->random) : 0.0;
        }
        direction[(int64_t)(test_random_uniform(&r->random) * (double)n)] += trial < 3 ? 0.0 : 1.0;
        for (int64_t i = 0; i < n; i++) {
            dot += gradient(grad, i) * direction[i];
            length += direction[i] * direction[i];
        }
        h /= sqrt(length / (double)(trial < 3 ? n : 1));
        v[pair[0]] = moved;
        for (int64_t i = 0; i < n; i++) {
            moved[i] = in->initial[i] + h * direction[i];
        }
        up = r->test->loss(r->c, v);
        for (int64_t i = 0; i < n; i++) {
            moved[i] = in->initial[i] - h * direction[i];
        }
        down = r->test->loss(r->c, v);
        v[pair[0]] = in->initial;
        fd = (up - down) / (2.0 * h);
        if (!(fabs(fd - dot) <= difference_tolerance(r->type) * sqrt(norm * length) + 1e-9)) {
            fail_msg("%s: gradient %d along direction %d is %.9g, differences give %.9g", r->text, pair[1], trial, dot,
                     fd);
        }
    }
    free(direction);
    free(moved);
}

void op_case_check(const op_backends *backends, const op_test *test, const agglo_op_case *c, agglo_dtype type,
                   uint64_t stream)
{
    run r = {.backends = backends, .test = test, .c = c, .type = type, .random = test_random_new(stream)};
    uint64_t unknown = c->flags & ~c->op->flags;

    agglo_op_case_text(c, type, r.text, sizeof r.text);
    if (unknown != 0) {
        fail_msg("%s: has flags %#llx that the operator does not know", r.text, (unsigned long long)unknown);
    }
    for (int i = 0; i < AGGLO_OP_DIMS; i++) {
        assert_true(c->d[i] >= 0); /* extents per image of a batch are for benches */
    }
    make_arrays(&r);
    check_first(&r);
    check_same(&r, 1);
    check_same(&r, 2);
    if (backends->cpu != NULL && agglo_backend_supports(backends->cpu, type)) {
        check_cpu(&r);
    }
    if ((c->use & AGGLO_USE_DIFFERENCES) != 0) {
        assert_true(test->n_grads > 0 && test->loss != NULL);
        for (int g = 0; g < test->n_grads; g++) {
            if (present(&r.a[test->grads[g][1]])) {
                check_differences(&r, test->grads[g]);
            }
        }
    }
    for (int i = 0; i < c->op->n_arrays; i++) {
        free(r.a[i].initial);
        free(r.a[i].ref);
        free(r.a[i].got);
        free(r.a[i].bytes);
        free(r.a[i].first);
    }
}

void op_backends_open(op_backends *backends, const char *device)
{
    agglo_err err = {0};

    backends->device = device;
    backends->cpu = NULL;
    for (int i = 0; i < 3; i++) {
        assert_ok(agglo_backend_open(&backends->same[i], device, i + 1, &err));
    }
    if (strcmp(device, "cpu") != 0) {
        assert_ok(agglo_backend_open(&backends->cpu, "cpu", 0, &err));
    }
    printf("%s\n", agglo_backend_describe(backends->same[0]));
}

void op_backends_close(op_backends *backends)
{
    for (int i = 0; i < 3; i++) {
        agglo_backend_free(backends->same[i]);
    }
    agglo_backend_free(backends->cpu);
}
