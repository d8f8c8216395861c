/* What a recipe says of a teacher against what the cache was made with. */
#include "launch/train.h"
#include "tests/support/support.h"

static agglo_cache_teacher cached_as(const char *arch, const char *codec, const char *options)
{
    agglo_cache_teacher t = {.input = 224, .patch = 16};

    snprintf(t.arch, sizeof t.arch, "%s", arch);
    snprintf(t.codec, sizeof t.codec, "%s", codec);
    snprintf(t.options, sizeof t.options, "%s", options);
    return t;
}

static const agglo_recipe_teacher plain = {.name = "t", .arch = "", .codec = AGGLO_CODEC_FP16, .spatial_norm = true};

/* Every edit of a plain teacher, and what is said of it; NULL: it fits. */
#define CHECK(cached, says, ...)                                                                                       \
    do {                                                                                                               \
        agglo_recipe_teacher teacher = plain;                                                                          \
        const char *expected = says;                                                                                   \
        agglo_err err = {0};                                                                                           \
                                                                                                                       \
        __VA_ARGS__;                                                                                                   \
        if (expected == NULL) {                                                                                        \
            assert_ok(agglo_sources_check(&teacher, cached, &err));                                                    \
        } else {                                                                                                       \
            assert_fails(agglo_sources_check(&teacher, cached, &err), AGGLO_E_MISMATCH, expected);                     \
        }                                                                                                              \
    } while (0)

static void test_clip(void **state)
{
    agglo_cache_teacher clip =
        cached_as("clip-vit-base-16", "fp16", "summary=proj,spatial_norm=1,pos=hub,quick_gelu,h12");
    agglo_cache_teacher other =
        cached_as("clip-vit-base-16", "fp16", "summary=preproj,spatial_norm=0,pos=hf,gelu,h12,e1e-06,bf16");

    (void)state;
    CHECK(&clip, NULL, (void)0);
    CHECK(&clip, NULL, teacher.act = 2);
    CHECK(&clip, "act: the cache has quick_gelu, the recipe asks for gelu", teacher.act = 1);
    CHECK(&clip, NULL, teacher.pos_interp = 1);
    CHECK(&clip, "pos_interp: the cache has hub, the recipe asks for hf", teacher.pos_interp = 2);
    CHECK(&clip, "summary: the cache has proj, the recipe asks for preproj", teacher.summary = 1);
    CHECK(&clip, "spatial_norm: the cache has true, the recipe asks for false", teacher.spatial_norm = false);
    CHECK(&clip, "neck: the cache's teacher has no such option, the recipe asks for true", teacher.neck = true);
    CHECK(&clip, "precision: the cache has fp32, the recipe asks for bf16", teacher.precision = 1);
    CHECK(&clip, "codec: the cache has fp16, the recipe asks for fp32", teacher.codec = AGGLO_CODEC_FP32);
    CHECK(&clip, NULL, teacher.size = 224);
    CHECK(&clip, "size: the cache has 224, the recipe asks for 336", teacher.size = 336);
    CHECK(&clip, NULL, teacher.arch = "clip");
    CHECK(&clip, NULL, teacher.arch = "clip-vit-base-16");
    CHECK(&clip, "arch: the cache has clip-vit-base-16, the recipe asks for clip-vit-large-14",
          teacher.arch = "clip-vit-large-14");
    CHECK(&clip, "arch: the cache has clip-vit-base-16, the recipe asks for dinov2", teacher.arch = "dinov2");

    CHECK(&other, "summary: the cache has preproj, the recipe asks for proj", (void)0);
    CHECK(&other, "spatial_norm: the cache has false, the recipe asks for true", teacher.summary = 1);
    CHECK(&other, "precision: the cache has bf16, the recipe asks for fp32", teacher.summary = 1;
          teacher.spatial_norm = false);
    CHECK(&other, NULL, teacher.summary = 1; teacher.spatial_norm = false; teacher.precision = 1);
    CHECK(&other, NULL, teacher.summary = 1; teacher.spatial_norm = false; teacher.precision = 1; teacher.act = 1;
          teacher.pos_interp = 2);
    CHECK(&other, "act: the cache has gelu, the recipe asks for quick_gelu", teacher.summary = 1;
          teacher.spatial_norm = false; teacher.precision = 1; teacher.act = 2);
}

static void test_others(void **state)
{
    agglo_cache_teacher dino = cached_as("dinov2-96x4-p14", "fp16", "pos=hf,gelu,h6");
    agglo_cache_teacher sam = cached_as("sam-48x4-p8-w3", "fp16", "neck=1,gelu,w3,resampled");
    agglo_cache_teacher silent = cached_as("", "fp16", "");

    (void)state;
    CHECK(&dino, NULL, (void)0);
    CHECK(&dino, NULL, teacher.arch = "dinov2");
    CHECK(&dino, "arch: the cache has dinov2-96x4-p14, the recipe asks for dinov2-base", teacher.arch = "dinov2-base");
    CHECK(&dino, "summary: the cache's teacher has no such option, the recipe asks for preproj", teacher.summary = 1);
    CHECK(&dino, "spatial_norm: the cache's teacher has no such option", teacher.spatial_norm = false);
    CHECK(&sam, "neck: the cache has true, the recipe asks for false", (void)0);
    CHECK(&sam, NULL, teacher.neck = true);
    CHECK(&sam, "pos_interp: the cache's teacher has no such option, the recipe asks for hub", teacher.neck = true;
          teacher.pos_interp = 1);
    /* a teacher.json may say nothing */
    CHECK(&silent, NULL, (void)0);
    CHECK(&silent, "act: the cache's teacher has no such option", teacher.act = 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_clip),
        cmocka_unit_test(test_others),
    };

    return test_run("sources", tests);
}
