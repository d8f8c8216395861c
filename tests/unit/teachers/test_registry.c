/* The registry against the published sizes (parameters and multiply-accumulates of the vision towers), and its refusals. */
#include <math.h>

#include "teachers/registry.h"
#include "tests/support/support.h"

static void published_sizes(void **state)
{
    static const struct {
        const char *name;
        int64_t params;
        int size;
        double gmac;
    } table[] = {
        {"clip-vit-base-32", 87849216, 224, 4.41},
        {"clip-vit-base-32-256", 87860736, 256, 5.75},
        {"clip-vit-base-16", 86192640, 224, 17.56},
        {"clip-vit-large-14", 303966208, 224, 81.01},
        {"clip-vit-large-14-336", 304293888, 336, 190.96},
        {"clip-vit-huge-14", 632076800, 224, 167.30},
        {"clip-vit-huge-14-378", 632682240, 378, 503.48},
        {"clip-vit-giant-14", 1012645632, 224, 267.03},
        {"clip-vit-bigg-14", 1844907264, 224, 483.75},
        {"dinov2-small", 22056576, 224, 6.12},
        {"dinov2-base", 86580480, 518, 151.57},
        {"dinov2-large", 304368640, 224, 81.01},
        {"dinov2-giant", 1136480768, 224, 299.39},
        {"dinov2-small-reg", 22058112, 224, 6.23},
        {"dinov2-base-reg", 86583552, 518, 152.12},
        {"dinov2-large-reg", 304372736, 518, 508.55},
        {"dinov2-giant-reg", 1136486912, 518, 1789.22},
        {"sam-vit-base", 89670912, 1024, 486.04},
        {"sam-vit-large", 308278272, 1024, 1492.84},
        {"sam-vit-huge", 637026048, 1024, 2980.54},
    };
    agglo_err err = {0};
    size_t n = 0;

    (void)state;
    while (agglo_teacher_name_at(n) != NULL) {
        n++;
    }
    assert_int_equal(n, AGGLO_COUNT(table));
    for (size_t i = 0; i < AGGLO_COUNT(table); i++) {
        agglo_teacher_config c;

        assert_ok(agglo_teacher_named(table[i].name, &c, &err));
        assert_int_equal(agglo_teacher_params(&c), table[i].params);
        assert_true(fabs(agglo_teacher_gmac(&c, table[i].size, table[i].size) - table[i].gmac) < 0.0051);
        assert_ok(agglo_teacher_check(&c, &err));
        assert_string_equal(c.arch, table[i].name); /* its own shapes lead back to its name */
        assert_int_equal(c.heads, agglo_teacher_heads_of(c.family, c.dim));
        assert_false(agglo_teacher_is_family(table[i].name));
    }
    assert_true(agglo_teacher_is_family("clip") && agglo_teacher_is_family("dinov2") && agglo_teacher_is_family("sam"));
}

/* SAM's image encoder without its neck. */
static void without_neck(void **state)
{
    static const struct {
        const char *name;
        int64_t params;
        double gmac;
        const char *global;
    } table[] = {{"sam-vit-base", 88883456, 482.8, "2,5,8,11"},
                 {"sam-vit-large", 307425280, 1489.4, "5,11,17,23"},
                 {"sam-vit-huge", 636107520, 2976.8, "7,15,23,31"}};
    agglo_err err = {0};

    (void)state;
    for (size_t i = 0; i < AGGLO_COUNT(table); i++) {
        agglo_teacher_config c, pattern;

        assert_ok(agglo_teacher_named(table[i].name, &c, &err));
        c.neck = 0;
        assert_int_equal(agglo_teacher_params(&c), table[i].params);
        assert_true(fabs(agglo_teacher_gmac(&c, 1024, 1024) - table[i].gmac) < 0.051);
        pattern = c;
        assert_ok(agglo_teacher_set(&pattern, "global_layers", table[i].global, &err));
        assert_memory_equal(&pattern, &c, sizeof c);
        assert_ok(agglo_teacher_check(&c, &err));
        assert_string_equal(c.arch, table[i].name);
    }
}

static void families(void **state)
{
    agglo_teacher_config c;
    agglo_err err = {0};

    (void)state;
    assert_ok(agglo_teacher_named("dinov2", &c, &err));
    assert_ok(agglo_teacher_set(&c, "dim", "128", &err));
    assert_int_equal(c.heads, 2);
    assert_int_equal(c.mlp_dim, 512);
    assert_ok(agglo_teacher_set(&c, "heads", "4", &err));
    assert_ok(agglo_teacher_set(&c, "mlp", "swiglu", &err));
    assert_ok(agglo_teacher_set(&c, "registers", "4", &err));
    assert_ok(agglo_teacher_set(&c, "layer_norm_eps", "1e-5", &err));
    assert_ok(agglo_teacher_check(&c, &err));
    assert_string_equal(c.arch, "dinov2-128x2-p8-reg");
    assert_true(c.swiglu && c.norm_eps == 1e-5f);

    assert_ok(agglo_teacher_named("sam", &c, &err));
    assert_ok(agglo_teacher_set(&c, "depth", "8", &err));
    assert_int_equal(c.global_layers[0], 0xaa);
    assert_ok(agglo_teacher_set(&c, "depth", "5", &err));
    assert_int_equal(c.global_layers[0], 0x10);
    assert_ok(agglo_teacher_set(&c, "global_layers", "0,3", &err));
    assert_ok(agglo_teacher_set(&c, "neck", "true", &err));
    assert_ok(agglo_teacher_set(&c, "window", "14", &err));
    assert_ok(agglo_teacher_check(&c, &err));
    assert_true(c.global_layers[0] == 9 && c.neck == 256 && c.window == 14);
    assert_string_equal(c.arch, "sam-64x5-p8-w14");
    assert_true(agglo_teacher_is_global(&c, 3) && !agglo_teacher_is_global(&c, 4));
    assert_ok(agglo_teacher_set(&c, "window", "0", &err));
    assert_ok(agglo_teacher_check(&c, &err));
    assert_int_equal(c.global_layers[0], 0x1f);
}

static void refusals(void **state)
{
    agglo_teacher_config c, ok;
    agglo_err err = {0};

    (void)state;
    assert_fails(agglo_teacher_named("clip-vit-huge-41", &c, &err), AGGLO_E_CONFIG, "clip-vit-huge-14");
    assert_ok(agglo_teacher_named("clip", &ok, &err));
    c = ok;
    assert_fails(agglo_teacher_set(&c, "dims", "64", &err), AGGLO_E_CONFIG, "\"dim\"");
    assert_fails(agglo_teacher_set(&c, "dim", "64x", &err), AGGLO_E_CONFIG, "64x");
    assert_fails(agglo_teacher_set(&c, "depth", "-2", &err), AGGLO_E_CONFIG, "depth");
    assert_fails(agglo_teacher_set(&c, "act", "relu", &err), AGGLO_E_CONFIG, "quick_gelu");
    assert_fails(agglo_teacher_set(&c, "mlp", "moe", &err), AGGLO_E_CONFIG, "swiglu");
    assert_fails(agglo_teacher_set(&c, "layer_norm_eps", "nan", &err), AGGLO_E_CONFIG, "layer_norm_eps");
    c.heads = 3;
    assert_fails(agglo_teacher_check(&c, &err), AGGLO_E_CONFIG, "heads 3");
    c = ok;
    c.image = 63;
    assert_fails(agglo_teacher_check(&c, &err), AGGLO_E_CONFIG, "patch");
    c = ok;
    c.registers = 4;
    assert_fails(agglo_teacher_check(&c, &err), AGGLO_E_CONFIG, "registers");
    c = ok;
    c.depth = 0;
    assert_fails(agglo_teacher_check(&c, &err), AGGLO_E_CONFIG, "depth");
    c = ok;
    c.swiglu = true;
    assert_fails(agglo_teacher_check(&c, &err), AGGLO_E_CONFIG, "swiglu");
    c = ok;
    c.std[1] = 0.0f;
    assert_fails(agglo_teacher_check(&c, &err), AGGLO_E_CONFIG, "std");
    c = ok;
    c.window = 14;
    assert_fails(agglo_teacher_check(&c, &err), AGGLO_E_CONFIG, "window");
    c = ok;
    c.global_layers[0] = 1;
    assert_fails(agglo_teacher_check(&c, &err), AGGLO_E_CONFIG, "global_layers");
    assert_ok(agglo_teacher_named("sam", &c, &err));
    c.global_layers[7] = 1u << 31;
    assert_fails(agglo_teacher_check(&c, &err), AGGLO_E_CONFIG, "block 255");
    assert_fails(agglo_teacher_set(&c, "global_layers", "2,5,", &err), AGGLO_E_CONFIG, "2,5,8,11");
    assert_fails(agglo_teacher_set(&c, "global_layers", "256", &err), AGGLO_E_CONFIG, "256");
    assert_fails(agglo_teacher_set(&c, "global_layers", "1 2", &err), AGGLO_E_CONFIG, "1 2");
    assert_fails(agglo_teacher_set(&c, "global_layers", "-1", &err), AGGLO_E_CONFIG, "-1");
    assert_fails(agglo_teacher_set(&c, "neck", "maybe", &err), AGGLO_E_CONFIG, "maybe");
    assert_fails(agglo_teacher_matches(&ok, "dinov2", &err), AGGLO_E_CONFIG, "family");
    assert_fails(agglo_teacher_matches(&ok, "clip-vit-base-32", &err), AGGLO_E_CONFIG, "dim 64");
    assert_ok(agglo_teacher_matches(&ok, "clip", &err));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(published_sizes),
        cmocka_unit_test(without_neck),
        cmocka_unit_test(families),
        cmocka_unit_test(refusals),
    };

    return test_run("registry", tests);
}
