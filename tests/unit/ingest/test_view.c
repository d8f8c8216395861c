/* Views: golden vectors of an independent implementation, properties for every size, and that draws have the distribution they claim. */
#include "ingest/view.h"
#include "tests/support/support.h"

#include <inttypes.h>
#include <math.h>

static agglo_view draw_one(const agglo_view_config *config, uint64_t sample, int index, int width, int height)
{
    uint8_t uid[16] = {0};
    agglo_view view;

    agglo_put_le64(uid, sample);
    agglo_view_draw(config, uid, index, width, height, &view);
    return view;
}

static void golden_vectors(void **state)
{
    FILE *file = fopen(test_fixture("views/golden.txt"), "r");
    char line[512];
    int n = 0;

    (void)state;
    assert_non_null(file);
    while (fgets(line, sizeof line, file) != NULL) {
        agglo_view_config config = agglo_view_config_default();
        char uid_hex[33], scale_lo[32], scale_hi[32], ratio_lo[32], ratio_hi[32], flip[32];
        int index, width, height, want[5];
        uint8_t uid[16];
        agglo_view view;

        if (line[0] == '#') {
            continue;
        }
        assert_int_equal(sscanf(line, "%" SCNu64 " %32s %31s %d %d %d %31s %31s %31s %31s %31s : %d %d %d %d %d",
                                &config.seed, uid_hex, config.group, &index, &width, &height, scale_lo, scale_hi,
                                ratio_lo, ratio_hi, flip, &want[0], &want[1], &want[2], &want[3], &want[4]),
                         16);
        config.scale[0] = strtod(scale_lo, NULL);
        config.scale[1] = strtod(scale_hi, NULL);
        config.ratio[0] = strtod(ratio_lo, NULL);
        config.ratio[1] = strtod(ratio_hi, NULL);
        config.flip = strtod(flip, NULL);
        assert_true(agglo_unhex(uid_hex, uid, 16));
        agglo_view_draw(&config, uid, index, width, height, &view);
        if (view.x != want[0] || view.y != want[1] || view.w != want[2] || view.h != want[3] ||
            view.flip != (want[4] != 0)) {
            fail_msg("drew %d %d %d %d %d for %s", view.x, view.y, view.w, view.h, view.flip, line);
        }
        n++;
    }
    fclose(file);
    assert_int_equal(n, 480);
}

static void boxes_lie_in_the_picture(void **state)
{
    test_random random = test_random_new(1);

    (void)state;
    for (int i = 0; i < 20000; i++) {
        agglo_view_config config = agglo_view_config_default();
        int bits_w = (int)(test_random_u32(&random) % 20), bits_h = (int)(test_random_u32(&random) % 20);
        int width = 1 + (int)(test_random_u32(&random) >> (31 - bits_w)),
            height = 1 + (int)(test_random_u32(&random) >> (31 - bits_h));
        agglo_view view;

        config.seed = test_random_u32(&random);
        config.scale[0] = 1e-6 + 0.5 * test_random_uniform(&random);
        config.scale[1] = config.scale[0] + (1.0 - config.scale[0]) * test_random_uniform(&random);
        config.ratio[0] = exp(6.0 * test_random_uniform(&random) - 3.0);
        config.ratio[1] = config.ratio[0] * exp(2.0 * test_random_uniform(&random));
        view = draw_one(&config, (uint64_t)i, i % 255, width, height);
        assert_true(view.w >= 1 && view.h >= 1 && view.x >= 0 && view.y >= 0);
        assert_true(view.x + view.w <= width && view.y + view.h <= height);
    }
}

/* 20,000 draws from a 1000 x 1000 picture: area and log-ratio are uniform in their ranges, positions are uniform. A mean of n uniform
 * numbers is off by sigma = 1 / sqrt(12 n) = 0.002; 5 sigma are allowed. The first try is taken in 84 % of all draws with these
 * parameters and area and ratio of the others are bent towards what fits, so their means are compared on small areas, which always fit. */
static void draws_are_uniform(void **state)
{
    enum { N = 20000, SIDE = 4000 };
    const double tolerance = 5.0 / sqrt(12.0 * N);
    agglo_view_config config = agglo_view_config_default();
    double area = 0, shape = 0, x = 0, y = 0, flips = 0, area_2 = 0;

    (void)state;
    config.scale[0] = 0.1;
    config.scale[1] = 0.5;
    config.flip = 0.3;
    for (int i = 0; i < N; i++) {
        agglo_view view = draw_one(&config, (uint64_t)i, 1, SIDE, SIDE);
        double a = ((double)view.w * view.h / ((double)SIDE * SIDE) - 0.1) / 0.4;
        double r = (log((double)view.w / view.h) - log(0.75)) / (2.0 * log(4.0 / 3.0));

        assert_true(a > -0.01 && a < 1.01 && r > -0.01 && r < 1.01);
        area += a / N;
        area_2 += a * a / N;
        shape += r / N;
        x += (double)view.x / (SIDE - view.w) / N;
        y += (double)view.y / (SIDE - view.h) / N;
        flips += view.flip ? 1.0 / N : 0.0;
    }
    assert_true(fabs(area - 0.5) < tolerance + 1e-3);
    assert_true(fabs(area_2 - 1.0 / 3.0) < 2.0 * tolerance);
    assert_true(fabs(shape - 0.5) < tolerance + 1e-3);
    assert_true(fabs(x - 0.5) < tolerance);
    assert_true(fabs(y - 0.5) < tolerance);
    assert_true(fabs(flips - 0.3) < 5.0 * sqrt(0.3 * 0.7 / N));
}

static void every_argument_counts(void **state)
{
    agglo_view_config config = agglo_view_config_default(), other = config;
    agglo_view base = draw_one(&config, 7, 0, 5000, 5000), view;
    char fingerprint[33], changed[33];

    (void)state;
    view = draw_one(&config, 7, 0, 5000, 5000);
    assert_true(view.x == base.x && view.y == base.y && view.w == base.w && view.h == base.h);
    view = draw_one(&config, 8, 0, 5000, 5000);
    assert_true(view.x != base.x || view.w != base.w);
    view = draw_one(&config, 7, 1, 5000, 5000);
    assert_true(view.x != base.x || view.w != base.w);
    agglo_view_fingerprint(&config, fingerprint);
    assert_int_equal(strlen(fingerprint), 32);

    other.count = 9; /* views may be added */
    agglo_view_fingerprint(&other, changed);
    assert_string_equal(fingerprint, changed);
    for (int i = 0; i < 8; i++) {
        other = config;
        other.decode = i == 7 ? AGGLO_VIEW_EXACT : AGGLO_VIEW_SCALED;
        other.seed += i == 0;
        strcpy(other.group, i == 1 ? "mains" : "main");
        other.scale[0] += i == 2 ? 0.01 : 0.0;
        other.scale[1] -= i == 3 ? 0.01 : 0.0;
        other.ratio[0] += i == 4 ? 0.01 : 0.0;
        other.ratio[1] += i == 5 ? 0.01 : 0.0;
        other.flip = i == 6 ? 0.5 : 0.0;
        agglo_view_fingerprint(&other, changed);
        assert_string_not_equal(fingerprint, changed);
        if (i < 2) {
            view = draw_one(&other, 7, 0, 5000, 5000);
            assert_true(view.x != base.x || view.w != base.w);
        }
    }
}

static void epochs_go_through_all_views(void **state)
{
    agglo_view_config config = agglo_view_config_default();
    int starts[4] = {0};

    (void)state;
    for (int sample = 0; sample < 400; sample++) {
        uint8_t uid[16] = {0};
        int first;

        agglo_put_le32(uid, (uint32_t)sample);
        first = agglo_view_of_epoch(&config, uid, 0);
        starts[first]++;
        for (uint64_t epoch = 1; epoch < 9; epoch++) {
            assert_int_equal(agglo_view_of_epoch(&config, uid, epoch), (first + (int)epoch) % 4);
        }
    }
    for (int i = 0; i < 4; i++) {
        assert_in_range(starts[i], 60, 140);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_vectors),
        cmocka_unit_test(boxes_lie_in_the_picture),
        cmocka_unit_test(draws_are_uniform),
        cmocka_unit_test(every_argument_counts),
        cmocka_unit_test(epochs_go_through_all_views),
    };

    return test_run("view", tests);
}
