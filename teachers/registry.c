/* The registry of teacher architectures; see registry.h. Numbers: open_clip's model_configs, dinov2's hub backbones, segment_anything's
 * build_sam. */
#include "teachers/registry.h"

#include "base/yaml.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* mean, std, fit, filter; then SAM's own */
#define CLIP_PIXELS(fit)                                                                                               \
    {0.48145466f, 0.4578275f, 0.40821073f}, {0.26862954f, 0.26130258f, 0.27577711f}, fit, AGGLO_BICUBIC, 0, 0,         \
    {                                                                                                                  \
        0                                                                                                              \
    }
#define IMAGENET_MEAN                                                                                                  \
    {0.485f, 0.456f, 0.406f},                                                                                          \
    {                                                                                                                  \
        0.229f, 0.224f, 0.225f                                                                                         \
    }
#define IMAGENET_PIXELS                                                                                                \
    IMAGENET_MEAN, AGGLO_FIT_CROP, AGGLO_BICUBIC, 0, 0,                                                                \
    {                                                                                                                  \
        0                                                                                                              \
    }
/* window, neck, and four global blocks of the first 32 */
#define SAM_REST(a, b, c, d)                                                                                           \
    IMAGENET_MEAN, AGGLO_FIT_PAD, AGGLO_BILINEAR, 14, 256,                                                             \
    {                                                                                                                  \
        1u << (a) | 1u << (b) | 1u << (c) | 1u << (d)                                                                  \
    }

/* B and L are known from OpenAI (QuickGELU), the larger ones from LAION-2B (GELU), B/32 at 256 from DataComp (GELU), H/14 at 378 from DFN (QuickGELU,
 * squashed pictures). An architecture at another image size follows the one it is derived from. */
static const agglo_teacher_config archs[] = {
    {"clip", "clip-vit-base-32", 768, 12, 12, 3072, 32, 224, 512, 0, AGGLO_ACT_QUICK_GELU, false, 1e-5f,
     CLIP_PIXELS(AGGLO_FIT_CROP)},
    {"clip", "clip-vit-base-32-256", 768, 12, 12, 3072, 32, 256, 512, 0, AGGLO_ACT_GELU, false, 1e-5f,
     CLIP_PIXELS(AGGLO_FIT_CROP)},
    {"clip", "clip-vit-base-16", 768, 12, 12, 3072, 16, 224, 512, 0, AGGLO_ACT_QUICK_GELU, false, 1e-5f,
     CLIP_PIXELS(AGGLO_FIT_CROP)},
    {"clip", "clip-vit-large-14", 1024, 24, 16, 4096, 14, 224, 768, 0, AGGLO_ACT_QUICK_GELU, false, 1e-5f,
     CLIP_PIXELS(AGGLO_FIT_CROP)},
    {"clip", "clip-vit-large-14-336", 1024, 24, 16, 4096, 14, 336, 768, 0, AGGLO_ACT_QUICK_GELU, false, 1e-5f,
     CLIP_PIXELS(AGGLO_FIT_CROP)},
    {"clip", "clip-vit-huge-14", 1280, 32, 16, 5120, 14, 224, 1024, 0, AGGLO_ACT_GELU, false, 1e-5f,
     CLIP_PIXELS(AGGLO_FIT_CROP)},
    {"clip", "clip-vit-huge-14-378", 1280, 32, 16, 5120, 14, 378, 1024, 0, AGGLO_ACT_QUICK_GELU, false, 1e-5f,
     CLIP_PIXELS(AGGLO_FIT_SQUASH)},
    {"clip", "clip-vit-giant-14", 1408, 40, 16, 6144, 14, 224, 1024, 0, AGGLO_ACT_GELU, false, 1e-5f,
     CLIP_PIXELS(AGGLO_FIT_CROP)},
    {"clip", "clip-vit-bigg-14", 1664, 48, 16, 8192, 14, 224, 1280, 0, AGGLO_ACT_GELU, false, 1e-5f,
     CLIP_PIXELS(AGGLO_FIT_CROP)},
    {"dinov2", "dinov2-small", 384, 12, 6, 1536, 14, 518, 0, 0, AGGLO_ACT_GELU, false, 1e-6f, IMAGENET_PIXELS},
    {"dinov2", "dinov2-base", 768, 12, 12, 3072, 14, 518, 0, 0, AGGLO_ACT_GELU, false, 1e-6f, IMAGENET_PIXELS},
    {"dinov2", "dinov2-large", 1024, 24, 16, 4096, 14, 518, 0, 0, AGGLO_ACT_GELU, false, 1e-6f, IMAGENET_PIXELS},
    {"dinov2", "dinov2-giant", 1536, 40, 24, 4096, 14, 518, 0, 0, AGGLO_ACT_GELU, true, 1e-6f, IMAGENET_PIXELS},
    {"dinov2", "dinov2-small-reg", 384, 12, 6, 1536, 14, 518, 0, 4, AGGLO_ACT_GELU, false, 1e-6f, IMAGENET_PIXELS},
    {"dinov2", "dinov2-base-reg", 768, 12, 12, 3072, 14, 518, 0, 4, AGGLO_ACT_GELU, false, 1e-6f, IMAGENET_PIXELS},
    {"dinov2", "dinov2-large-reg", 1024, 24, 16, 4096, 14, 518, 0, 4, AGGLO_ACT_GELU, false, 1e-6f, IMAGENET_PIXELS},
    {"dinov2", "dinov2-giant-reg", 1536, 40, 24, 4096, 14, 518, 0, 4, AGGLO_ACT_GELU, true, 1e-6f, IMAGENET_PIXELS},
    {"sam", "sam-vit-base", 768, 12, 12, 3072, 16, 1024, 0, 0, AGGLO_ACT_GELU, false, 1e-6f, SAM_REST(2, 5, 8, 11)},
    {"sam", "sam-vit-large", 1024, 24, 16, 4096, 16, 1024, 0, 0, AGGLO_ACT_GELU, false, 1e-6f, SAM_REST(5, 11, 17, 23)},
    {"sam", "sam-vit-huge", 1280, 32, 16, 5120, 16, 1024, 0, 0, AGGLO_ACT_GELU, false, 1e-6f, SAM_REST(7, 15, 23, 31)},
};

/* What a family is before its fields are set. */
static const agglo_teacher_config families[] = {
    {"clip", "", 64, 2, 1, 256, 8, 64, 64, 0, AGGLO_ACT_GELU, false, 1e-5f, CLIP_PIXELS(AGGLO_FIT_CROP)},
    {"dinov2", "", 64, 2, 1, 256, 8, 64, 0, 0, AGGLO_ACT_GELU, false, 1e-6f, IMAGENET_PIXELS},
    {"sam",
     "",
     64,
     2,
     1,
     256,
     8,
     64,
     0,
     0,
     AGGLO_ACT_GELU,
     false,
     1e-6f,
     IMAGENET_MEAN,
     AGGLO_FIT_PAD,
     AGGLO_BILINEAR,
     3,
     32,
     {1u << 1}},
};

static const agglo_teacher_config *find(const char *name)
{
    for (size_t i = 0; i < AGGLO_COUNT(archs); i++) {
        if (strcmp(archs[i].arch, name) == 0) {
            return &archs[i];
        }
    }
    for (size_t i = 0; i < AGGLO_COUNT(families); i++) {
        if (strcmp(families[i].family, name) == 0) {
            return &families[i];
        }
    }
    return NULL;
}

const char *agglo_teacher_name_at(size_t k)
{
    return k < AGGLO_COUNT(archs) ? archs[k].arch : NULL;
}

bool agglo_teacher_is_family(const char *name)
{
    const agglo_teacher_config *config = find(name);

    return config != NULL && config->arch[0] == '\0';
}

bool agglo_teacher_is_known(const char *name)
{
    return find(name) != NULL;
}

agglo_status agglo_teacher_named(const char *name, agglo_teacher_config *out, agglo_err *err)
{
    const agglo_teacher_config *config = find(name);
    const char *names[AGGLO_COUNT(archs) + AGGLO_COUNT(families)];
    const char *nearest;
    size_t n = 0;

    if (config != NULL) {
        *out = *config;
        return AGGLO_OK;
    }
    for (size_t i = 0; i < AGGLO_COUNT(archs); i++) {
        names[n++] = archs[i].arch;
    }
    for (size_t i = 0; i < AGGLO_COUNT(families); i++) {
        names[n++] = families[i].family;
    }
    nearest = agglo_nearest(name, names, n);
    return nearest != NULL ? agglo_fail(err, AGGLO_E_CONFIG,
                                        "unknown teacher architecture \"%.64s\", did you mean \"%s\"?", name, nearest)
                           : agglo_fail(err, AGGLO_E_CONFIG, "unknown teacher architecture \"%.64s\"", name);
}

const char *agglo_teacher_act_name(agglo_act act)
{
    return act == AGGLO_ACT_QUICK_GELU ? "quick_gelu" : "gelu";
}

bool agglo_teacher_act_of(const char *name, agglo_act *out)
{
    if (strcmp(name, "gelu") == 0) {
        *out = AGGLO_ACT_GELU;
    } else if (strcmp(name, "quick_gelu") == 0) {
        *out = AGGLO_ACT_QUICK_GELU;
    } else {
        return false;
    }
    return true;
}

int agglo_teacher_heads_of(const char *family, int dim)
{
    if ((strcmp(family, "clip") == 0 && (dim == 1280 || dim == 1408 || dim == 1664)) ||
        (strcmp(family, "sam") == 0 && dim == 1280)) {
        return 16; /* head width 80, 88, 104 */
    }
    return dim < 64 ? 1 : dim / 64;
}

static void set_global(agglo_teacher_config *config, int block)
{
    config->global_layers[block / 32] |= 1u << (block % 32);
}

/* SAM's own pattern at any depth. */
static void spread_global(agglo_teacher_config *config)
{
    int step = config->depth % 4 == 0 ? config->depth / 4 : config->depth;

    memset(config->global_layers, 0, sizeof config->global_layers);
    for (int block = step - 1; step > 0 && block < config->depth && block < AGGLO_TEACHER_MOST_DEPTH; block += step) {
        set_global(config, block);
    }
}

char *agglo_teacher_global_text(const agglo_teacher_config *config, char *out, size_t n_bytes)
{
    size_t used = 0;

    out[0] = '\0';
    for (int i = 0; i < config->depth && i < AGGLO_TEACHER_MOST_DEPTH && used + 8 < n_bytes; i++) {
        if (agglo_teacher_is_global(config, i)) {
            used += (size_t)snprintf(out + used, n_bytes - used, "%s%d", used > 0 ? "," : "", i);
        }
    }
    return out;
}

static agglo_status set_global_layers(agglo_teacher_config *config, const char *value, agglo_err *err)
{
    const char *at = value;

    memset(config->global_layers, 0, sizeof config->global_layers);
    while (*at != '\0') {
        char *end;
        long block = strtol(at, &end, 10);

        if (end == at || block < 0 || block >= AGGLO_TEACHER_MOST_DEPTH || (*end != ',' && *end != '\0') ||
            (*end == ',' && end[1] == '\0')) {
            return agglo_fail(err, AGGLO_E_CONFIG,
                              "global_layers: \"%.64s\" is not a list of blocks from 0 to %d, such as 2,5,8,11", value,
                              AGGLO_TEACHER_MOST_DEPTH - 1);
        }
        set_global(config, (int)block);
        at = *end == ',' ? end + 1 : end;
    }
    return AGGLO_OK;
}

agglo_status agglo_teacher_set(agglo_teacher_config *config, const char *field, const char *value, agglo_err *err)
{
    static const char *const names[] = {"dim",   "depth", "heads",         "mlp_dim",       "patch",
                                        "image", "proj",  "registers",     "window",        "neck",
                                        "act",   "mlp",   "global_layers", "layer_norm_eps"};
    int *const fields[] = {&config->dim,   &config->depth, &config->heads,     &config->mlp_dim, &config->patch,
                           &config->image, &config->proj,  &config->registers, &config->window,  &config->neck};
    const char *nearest;
    char *end = NULL;

    if (strcmp(field, "neck") == 0 && (strcmp(value, "true") == 0 || strcmp(value, "false") == 0)) {
        config->neck = value[0] == 't' ? 256 : 0;
        return AGGLO_OK;
    }
    if (strcmp(field, "global_layers") == 0) {
        return set_global_layers(config, value, err);
    }

    for (size_t i = 0; i < AGGLO_COUNT(fields); i++) {
        if (strcmp(field, names[i]) == 0) {
            long number;

            errno = 0;
            number = strtol(value, &end, 10);
            if (errno != 0 || end == value || *end != '\0' || number < 0 || number > 1 << 20) {
                return agglo_fail(err, AGGLO_E_CONFIG, "%s: \"%.32s\" is not a number from 0 to 1048576", field, value);
            }
            *fields[i] = (int)number;
            if (fields[i] == &config->dim && config->arch[0] == '\0') {
                config->heads = agglo_teacher_heads_of(config->family, config->dim);
                config->mlp_dim = 4 * config->dim;
            }
            if (fields[i] == &config->depth && config->arch[0] == '\0' && config->window > 0) {
                spread_global(config);
            }
            return AGGLO_OK;
        }
    }
    if (strcmp(field, "act") == 0) {
        return agglo_teacher_act_of(value, &config->act)
                   ? AGGLO_OK
                   : agglo_fail(err, AGGLO_E_CONFIG, "act: \"%.32s\" is neither gelu nor quick_gelu", value);
    }
    if (strcmp(field, "mlp") == 0) {
        config->swiglu = strcmp(value, "swiglu") == 0;
        return config->swiglu || strcmp(value, "plain") == 0
                   ? AGGLO_OK
                   : agglo_fail(err, AGGLO_E_CONFIG, "mlp: \"%.32s\" is neither plain nor swiglu", value);
    }
    if (strcmp(field, "layer_norm_eps") == 0) {
        double eps = strtod(value, &end);

        if (end == value || *end != '\0' || !((float)eps > 0.0f && (float)eps < 1.0f)) {
            return agglo_fail(err, AGGLO_E_CONFIG, "layer_norm_eps: \"%.32s\" is not a number between 0 and 1", value);
        }
        config->norm_eps = (float)eps;
        return AGGLO_OK;
    }
    nearest = agglo_nearest(field, names, AGGLO_COUNT(names));
    return nearest != NULL
               ? agglo_fail(err, AGGLO_E_CONFIG, "unknown field \"%.32s\" of a %s teacher, did you mean \"%s\"?", field,
                            config->family, nearest)
               : agglo_fail(err, AGGLO_E_CONFIG, "unknown field \"%.32s\" of a %s teacher", field, config->family);
}

static bool shapes_equal(const agglo_teacher_config *a, const agglo_teacher_config *c)
{
    return strcmp(a->family, c->family) == 0 && a->dim == c->dim && a->depth == c->depth && a->mlp_dim == c->mlp_dim &&
           a->patch == c->patch && a->registers == c->registers && a->swiglu == c->swiglu && a->heads == c->heads &&
           (c->proj == 0 || a->proj == c->proj) && a->window == c->window && (c->neck == 0 || a->neck == c->neck) &&
           memcmp(a->global_layers, c->global_layers, sizeof a->global_layers) == 0;
}

/* The registered architecture with these shapes, that with this image before the first; NULL if there is none. */
static const agglo_teacher_config *same_shapes(const agglo_teacher_config *c)
{
    const agglo_teacher_config *first = NULL;

    for (size_t i = 0; i < AGGLO_COUNT(archs); i++) {
        if (shapes_equal(&archs[i], c)) {
            if (archs[i].image == c->image) {
                return &archs[i];
            }
            first = first == NULL ? &archs[i] : first;
        }
    }
    return first;
}

/* Another one stands before it in the table with the same shapes: the name is that of its image size. */
static bool named_by_image(const agglo_teacher_config *known)
{
    for (size_t i = 0; i < AGGLO_COUNT(archs); i++) {
        if (shapes_equal(&archs[i], known)) {
            return archs[i].image != known->image;
        }
    }
    return false;
}

/* Global blocks exist, and are SAM's alone; all of them and a window of 0 go together. */
static agglo_status check_global(agglo_teacher_config *config, agglo_err *err)
{
    bool sam = strcmp(config->family, "sam") == 0;
    int n_global = 0;

    for (int i = 0; i < AGGLO_TEACHER_MOST_DEPTH; i++) {
        if (sam && config->window == 0 && i < config->depth) {
            set_global(config, i);
        }
        if (!agglo_teacher_is_global(config, i)) {
            continue;
        }
        if (!sam) {
            return agglo_fail(err, AGGLO_E_CONFIG, "a %s teacher has no global_layers", config->family);
        }
        if (i >= config->depth) {
            return agglo_fail(err, AGGLO_E_CONFIG, "global_layers names block %d, the last one is %d", i,
                              config->depth - 1);
        }
        n_global++;
    }
    if (n_global == config->depth) {
        config->window = 0;
    }
    return AGGLO_OK;
}

agglo_status agglo_teacher_check(agglo_teacher_config *config, agglo_err *err)
{
    bool clip = strcmp(config->family, "clip") == 0, sam = strcmp(config->family, "sam") == 0;
    const struct {
        const char *name;
        int value, min, max;
    } limits[] = {
        {"dim", config->dim, 1, 16384},
        {"depth", config->depth, 1, AGGLO_TEACHER_MOST_DEPTH},
        {"heads", config->heads, 1, 1024},
        {"mlp_dim", config->mlp_dim, 1, 65536},
        {"patch", config->patch, 1, 256},
        {"image", config->image, 1, 8192},
        {"proj", config->proj, 0, clip ? 16384 : 0},
        {"registers", config->registers, 0, clip || sam ? 0 : 64},
        {"window", config->window, 0, sam ? 512 : 0},
        {"neck", config->neck, 0, sam ? 4096 : 0},
    };
    const agglo_teacher_config *known;

    for (size_t i = 0; i < AGGLO_COUNT(limits); i++) {
        if (limits[i].value < limits[i].min || limits[i].value > limits[i].max) {
            return agglo_fail(err, AGGLO_E_CONFIG, "%s is %d, a %s teacher takes %d to %d", limits[i].name,
                              limits[i].value, config->family, limits[i].min, limits[i].max);
        }
    }
    if (config->dim % config->heads != 0) {
        return agglo_fail(err, AGGLO_E_CONFIG, "dim %d is no multiple of heads %d", config->dim, config->heads);
    }
    if (config->image % config->patch != 0) {
        return agglo_fail(err, AGGLO_E_CONFIG, "image %d is no multiple of patch %d", config->image, config->patch);
    }
    if ((clip || sam) && config->swiglu) {
        return agglo_fail(err, AGGLO_E_CONFIG, "a %s teacher has no swiglu", config->family);
    }
    if (check_global(config, err) != AGGLO_OK) {
        return err->status;
    }
    if (config->act != AGGLO_ACT_GELU && config->act != AGGLO_ACT_QUICK_GELU) {
        return agglo_fail(err, AGGLO_E_CONFIG, "act is neither gelu nor quick_gelu");
    }
    if (!(config->norm_eps > 0.0f && config->norm_eps < 1.0f)) {
        return agglo_fail(err, AGGLO_E_CONFIG, "layer_norm_eps is %g, not between 0 and 1", (double)config->norm_eps);
    }
    for (int c = 0; c < 3; c++) {
        if (!isfinite(config->mean[c]) || !(config->std[c] > 0.0f) || !isfinite(config->std[c])) {
            return agglo_fail(err, AGGLO_E_CONFIG, "mean and std of the pixels are not usable");
        }
    }
    known = same_shapes(config);
    if (known != NULL) {
        memcpy(config->arch, known->arch, sizeof config->arch);
    } else {
        int used = snprintf(config->arch, sizeof config->arch, "%s-%dx%d-p%d%s", config->family, config->dim,
                            config->depth, config->patch, config->registers > 0 ? "-reg" : "");

        if (sam) {
            snprintf(config->arch + used, sizeof config->arch - (size_t)used, "-w%d", config->window);
        }
    }
    return AGGLO_OK;
}

agglo_status agglo_teacher_matches(const agglo_teacher_config *config, const char *name, agglo_err *err)
{
    agglo_teacher_config known;

    if (agglo_teacher_named(name, &known, err) != AGGLO_OK) {
        return err->status;
    }
    if (strcmp(known.family, config->family) != 0) {
        return agglo_fail(err, AGGLO_E_CONFIG, "the weights are of family %s, %s is of family %s", config->family, name,
                          known.family);
    }
    if (known.arch[0] != '\0') {
        const struct {
            const char *name;
            int found, expected;
        } shapes[] = {
            {"dim", config->dim, known.dim},
            {"depth", config->depth, known.depth},
            {"patch", config->patch, known.patch},
            {"mlp_dim", config->mlp_dim, known.mlp_dim},
            {"proj", config->proj, config->proj > 0 ? known.proj : 0},
            {"registers", config->registers, known.registers},
            {"window", config->window, known.window},
            {"neck", config->neck, config->neck > 0 ? known.neck : 0},
            {"image", config->image, named_by_image(&known) ? known.image : config->image},
        };

        for (size_t i = 0; i < AGGLO_COUNT(shapes); i++) {
            if (shapes[i].found != shapes[i].expected) {
                return agglo_fail(err, AGGLO_E_CONFIG, "the weights have %s %d, %s has %d", shapes[i].name,
                                  shapes[i].found, name, shapes[i].expected);
            }
        }
        if (memcmp(config->global_layers, known.global_layers, sizeof known.global_layers) != 0) {
            return agglo_fail(err, AGGLO_E_CONFIG, "other blocks of the weights are global than of %s", name);
        }
    }
    return AGGLO_OK;
}

/* Side of the square that block i attends to, of a grid of this side. */
static int reach(const agglo_teacher_config *c, int i, int grid)
{
    return agglo_teacher_is_global(c, i) ? grid : c->window;
}

static int64_t sam_params(const agglo_teacher_config *c)
{
    int64_t d = c->dim, h = c->mlp_dim, p = c->patch, g = c->image / c->patch, o = c->neck;
    int64_t sum = 3 * p * p * d + d + g * g * d; /* patches, positions */

    for (int i = 0; i < c->depth; i++) {
        int64_t rows = 2 * (2 * (int64_t)reach(c, i, (int)g) - 1);

        sum +=
            4 * d + 4 * d * d + 4 * d + 2 * h * d + h + d + rows * (d / c->heads); /* norms, qkv, proj, mlp, tables */
    }
    return sum + (o > 0 ? o * d + 9 * o * o + 4 * o : 0);
}

static double sam_gmac(const agglo_teacher_config *c, int grid_h, int grid_w)
{
    double d = c->dim, h = c->mlp_dim, o = c->neck, n = (double)grid_h * (double)grid_w;
    double sum = n * 3.0 * c->patch * c->patch * d + n * (o * d + 9.0 * o * o);

    for (int i = 0; i < c->depth; i++) {
        int across = reach(c, i, grid_w), down = reach(c, i, grid_h);
        int windows = ((grid_w + across - 1) / across) * ((grid_h + down - 1) / down);
        double keys = (double)across * (double)down, tokens = windows * keys;

        sum += tokens * (4.0 * d * d + 2.0 * keys * d + (double)(across + down) * d) + n * 2.0 * d * h;
    }
    return sum * 1e-9;
}

int64_t agglo_teacher_params(const agglo_teacher_config *c)
{
    if (strcmp(c->family, "sam") == 0) {
        return sam_params(c);
    }
    int64_t d = c->dim, h = c->mlp_dim, p = c->patch, g = c->image / c->patch;
    bool clip = strcmp(c->family, "clip") == 0;
    int64_t mlp = c->swiglu ? 2 * h * d + 2 * h + d * h + d : 2 * h * d + h + d;
    int64_t block =
        4 * d + 3 * d * d + 3 * d + d * d + d + mlp + (clip ? 0 : 2 * d); /* norms, qkv, proj, mlp, LayerScale */
    int64_t embed = d + 3 * p * p * d + (1 + g * g) * d;                  /* class token, patches, positions */

    embed += clip ? 2 * d : d + d + (int64_t)c->registers * d; /* pre-norm; patch bias, mask token, registers */
    return embed + c->depth * block + 2 * d + (int64_t)c->proj * d;
}

double agglo_teacher_gmac(const agglo_teacher_config *c, int height, int width)
{
    if (strcmp(c->family, "sam") == 0) {
        return sam_gmac(c, height / c->patch, width / c->patch);
    }
    double d = c->dim, h = c->mlp_dim, n = (double)(height / c->patch) * (double)(width / c->patch);
    double tokens = n + 1.0 + c->registers;
    double block = tokens * (4.0 * d * d + (c->swiglu ? 3.0 : 2.0) * d * h) + 2.0 * tokens * tokens * d;

    return (n * 3.0 * c->patch * c->patch * d + c->depth * block + d * c->proj) * 1e-9;
}
