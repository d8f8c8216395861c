/* Errors, memory, element types, hashes: what needs neither files nor threads. */
#include <math.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/arena.h"
#include "base/dtype.h"
#include "base/hash.h"
#include "base/npy.h"
#include "tests/support/support.h"

/* ---- err ---- */

static void err_line_is_composed(void **state)
{
    agglo_err err = {0};
    char line[256];

    (void)state;
    assert_string_equal(agglo_err_line(&err, line, sizeof line), "");
    assert_int_equal(agglo_fail(&err, AGGLO_E_DATA, "%d bytes, expected %d", 700, 512), AGGLO_E_DATA);
    assert_string_equal(agglo_err_line(&err, line, sizeof line), "700 bytes, expected 512");
    assert_int_equal(agglo_at(&err, "member '%s'", "a.jpg"), AGGLO_E_DATA);
    assert_string_equal(agglo_err_line(&err, line, sizeof line), "700 bytes, expected 512 (member 'a.jpg')");
    agglo_at(&err, "data/0.tar");
    assert_int_equal(agglo_doing(&err, "cannot read shard"), AGGLO_E_DATA);
    agglo_doing(&err, "ingesting %s", "data");
    agglo_doing(&err, "starting");
    assert_string_equal(agglo_err_line(&err, line, sizeof line),
                        "cannot read shard: 700 bytes, expected 512 (data/0.tar: member 'a.jpg')");
    assert_string_equal(err.trail, "starting; ingesting data");
    /* a new cause forgets the old one */
    agglo_fail(&err, AGGLO_E_IO, "no");
    assert_string_equal(agglo_err_line(&err, line, sizeof line), "no");
    assert_string_equal(err.trail, "");
    agglo_err_clear(&err);
    assert_int_equal(err.status, AGGLO_OK);
}

static void err_texts_are_cut_to_fit(void **state)
{
    agglo_err err = {0};
    char longer[2000], line[1024], tiny[4];

    (void)state;
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = '\0';
    agglo_fail(&err, AGGLO_E_IO, "%s", longer);
    assert_int_equal(strlen(err.why), sizeof err.why - 1);
    agglo_at(&err, "inner");
    agglo_at(&err, "outer %s", longer);
    assert_int_equal(strlen(err.where), sizeof err.where - 1);
    assert_memory_equal(err.where, "outer xxx", 9);
    agglo_doing(&err, "%s", longer);
    assert_int_equal(strlen(err.what), sizeof err.what - 1);
    for (int i = 0; i < 20; i++) {
        agglo_doing(&err, "layer %d %.60s", i, longer);
    }
    assert_int_equal(strlen(err.trail), sizeof err.trail - 1);
    assert_memory_equal(err.trail, "layer 19 xxx", 12);
    agglo_err_line(&err, line, sizeof line);
    assert_int_equal(strlen(line), 127 + 2 + 255 + 2 + 255 + 1);
    assert_string_equal(agglo_err_line(&err, tiny, sizeof tiny), "xxx");
    /* places that fit together are kept whole */
    agglo_fail(&err, AGGLO_E_IO, "no");
    agglo_at(&err, "%.100s", longer);
    agglo_at(&err, "%.153s", longer);
    assert_int_equal(strlen(err.where), 255);
    assert_memory_equal(err.where + 153, ": ", 2);
}

static void err_line_stays_one_line(void **state)
{
    agglo_err err = {0};
    char line[64];

    (void)state;
    agglo_fail(&err, AGGLO_E_DATA, "tensor '%s'", "a\nb\033[2J\177\t\xc3\xa9");
    assert_string_equal(agglo_err_line(&err, line, sizeof line), "tensor 'a?b?[2J??\xc3\xa9'");
}

static void status_names_are_known(void **state)
{
    (void)state;
    assert_string_equal(agglo_status_name(AGGLO_OK), "ok");
    assert_string_equal(agglo_status_name(AGGLO_E_STOPPED), "stopped");
    assert_string_equal(agglo_status_name(AGGLO_E_NOT_FOUND), "not_found");
    assert_string_equal(agglo_status_name((agglo_status)99), "unknown");
}

static void assertions_abort(void **state)
{
    int status, both[2];
    char said[256] = "";
    pid_t child;

    (void)state;
    assert_int_equal(pipe(both), 0);
    fflush(NULL);
    child = fork();
    if (child == 0) {
        signal(SIGABRT, SIG_DFL);
        dup2(both[1], STDERR_FILENO);
        AGGLO_ASSERT(1 + 1 == 3);
        _exit(0);
    }
    close(both[1]);
    assert_true(read(both[0], said, sizeof said - 1) > 0);
    close(both[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    assert_memory_equal(said, "agglo: bug: 1 + 1 == 3 (", 24);
}

/* ---- alloc ---- */

static void alloc_is_aligned_zeroed_and_counted(void **state)
{
    agglo_alloc_stats before = agglo_alloc_counts(), now;
    agglo_err err = {0};
    unsigned char *blocks[6];
    static const size_t sizes[6] = {0, 1, 63, 64, 65, 100000};

    (void)state;
    for (int i = 0; i < 6; i++) {
        blocks[i] = agglo_alloc(sizes[i], 1, &err);
        assert_non_null(blocks[i]);
        assert_int_equal((uintptr_t)blocks[i] % AGGLO_ALIGN, 0);
        for (size_t k = 0; k < sizes[i]; k++) {
            assert_int_equal(blocks[i][k], 0);
        }
        if (sizes[i] > 0) { /* so that a later block made of this memory shows whether it was cleared */
            memset(blocks[i], 0xa5, sizes[i]);
        }
    }
    now = agglo_alloc_counts();
    assert_int_equal(now.n_live - before.n_live, 6);
    assert_int_equal(now.n_total - before.n_total, 6);
    for (int i = 0; i < 6; i++) {
        agglo_free(blocks[i]);
    }
    agglo_free(NULL);
    assert_int_equal(agglo_alloc_counts().n_live, before.n_live);
    assert_int_equal(agglo_alloc_counts().n_total, now.n_total);
}

static void alloc_checks_sizes(void **state)
{
    agglo_err err = {0};
    char *text;
    size_t n;

    (void)state;
    assert_null(agglo_alloc(SIZE_MAX / 2, 3, &err));
    assert_int_equal(err.status, AGGLO_E_MEMORY);
    assert_null(agglo_alloc(SIZE_MAX, 1, &err));
    assert_null(agglo_alloc(SIZE_MAX - 64, 1, &err));
    agglo_err_clear(&err);
    text = agglo_alloc(1, 4, &err);
    memcpy(text, "abc", 4);
    assert_null(agglo_realloc(text, 4, SIZE_MAX, &err)); /* the block stands */
    assert_string_equal(text, "abc");
    agglo_err_clear(&err);
    text = agglo_realloc(text, 4, 200, &err);
    assert_string_equal(text, "abc");
    for (int i = 4; i < 200; i++) {
        assert_int_equal(text[i], 0);
    }
    text = agglo_realloc(text, 200, 2, &err);
    assert_memory_equal(text, "ab", 2);
    agglo_free(text);
    text = agglo_realloc(NULL, 0, 8, &err);
    assert_non_null(text);
    agglo_free(text);
    assert_true(agglo_size_mul(1u << 31, 2, &n) && n == (size_t)1 << 32);
    assert_false(agglo_size_mul(SIZE_MAX, 2, &n));
    assert_true(agglo_size_add(SIZE_MAX, 0, &n));
    assert_false(agglo_size_add(SIZE_MAX, 1, &n));
}

static void alloc_fails_when_told_once(void **state)
{
    agglo_err err = {0};
    char *texts[4];

    (void)state;
    agglo_alloc_fail_after(2);
    texts[0] = agglo_strdup("zero", &err);
    texts[1] = agglo_format(&err, "%s-%d", "one", 1);
    texts[2] = agglo_strdup("two", &err);
    assert_int_equal(err.status, AGGLO_E_MEMORY);
    agglo_err_clear(&err);
    texts[3] = agglo_strdup("three", &err);
    agglo_alloc_fail_after(-1);
    assert_string_equal(texts[0], "zero");
    assert_string_equal(texts[1], "one-1");
    assert_null(texts[2]);
    assert_string_equal(texts[3], "three");
    for (int i = 0; i < 4; i++) {
        agglo_free(texts[i]);
    }
}

/* ---- arena ---- */

static void arena_marks_and_rewinds(void **state)
{
    agglo_arena *arena;
    agglo_err err = {0};
    agglo_arena_mark mark;
    unsigned char *first, *second, *again;
    int64_t n_total;

    (void)state;
    assert_ok(agglo_arena_new(&arena, 256, &err));
    first = agglo_arena_take(arena, 10, 10, &err);
    memset(first, 1, 100);
    mark = agglo_arena_here(arena);
    second = agglo_arena_take(arena, 1, 100, &err);
    memset(second, 2, 100);
    assert_true(second >= first + 100);
    agglo_arena_rewind(arena, mark);
    again = agglo_arena_take(arena, 1, 50, &err);
    assert_ptr_equal(again, second);
    for (int i = 0; i < 50; i++) {
        assert_int_equal(again[i], 0); /* zeroed each time */
    }
    assert_int_equal(first[99], 1);
    assert_string_equal(agglo_arena_text(arena, "hello", 4, &err), "hell");
    assert_string_equal(agglo_arena_text(arena, NULL, 0, &err), "");
    agglo_arena_reset(arena);
    assert_ptr_equal(agglo_arena_take(arena, 1, 1, &err), first);

    /* a loop that rewinds allocates nothing after its first rounds, whatever the order of sizes */
    for (int round = 0; round < 50; round++) {
        test_random random = test_random_new(7);

        if (round == 2) {
            n_total = agglo_alloc_counts().n_total;
        }
        agglo_arena_reset(arena);
        for (int i = 0; i < 100; i++) {
            size_t n = test_random_u32(&random) % 1000;
            unsigned char *p = agglo_arena_take(arena, n, 1, &err);

            assert_non_null(p);
            assert_int_equal((uintptr_t)p % AGGLO_ALIGN, 0);
            memset(p, 0xee, n);
        }
    }
    assert_int_equal(agglo_alloc_counts().n_total, n_total);
    agglo_arena_free(arena);
    agglo_arena_free(NULL);
}

/* Blocks taken one after the other never overlap, across rewinds to marks of any depth. */
static void arena_blocks_do_not_overlap(void **state)
{
    enum { N = 64 };
    test_random random = test_random_new(1);
    agglo_arena *arena;
    agglo_err err = {0};
    struct {
        agglo_arena_mark before;
        unsigned char *p;
        size_t n;
    } held[N];
    int depth = 0;

    (void)state;
    assert_ok(agglo_arena_new(&arena, 512, &err));
    for (int step = 0; step < 5000; step++) {
        if (depth == N || (depth > 0 && test_random_u32(&random) % 3 == 0)) {
            int to = (int)(test_random_u32(&random) % (uint32_t)depth);

            agglo_arena_rewind(arena, held[to].before);
            depth = to;
        } else {
            held[depth].before = agglo_arena_here(arena);
            held[depth].n = test_random_u32(&random) % 700;
            held[depth].p = agglo_arena_take(arena, held[depth].n, 1, &err);
            assert_non_null(held[depth].p);
            memset(held[depth].p, depth + 1, held[depth].n);
            depth++;
        }
        for (int i = 0; i < depth; i++) {
            for (size_t k = 0; k < held[i].n; k += 61) {
                assert_int_equal(held[i].p[k], i + 1);
            }
        }
    }
    agglo_arena_free(arena);
}

static void arena_refuses_what_does_not_fit(void **state)
{
    agglo_arena *arena;
    agglo_err err = {0};

    (void)state;
    assert_ok(agglo_arena_new(&arena, 0, &err));
    assert_null(agglo_arena_take(arena, SIZE_MAX, 2, &err));
    assert_int_equal(err.status, AGGLO_E_MEMORY);
    assert_null(agglo_arena_take(arena, SIZE_MAX - 10, 1, &err));
    assert_null(agglo_arena_take(arena, SIZE_MAX - 200, 1, &err));
    agglo_err_clear(&err);
    agglo_alloc_fail_after(0);
    assert_null(agglo_arena_take(arena, 1, 1, &err));
    agglo_alloc_fail_after(-1);
    assert_int_equal(err.status, AGGLO_E_MEMORY);
    agglo_err_clear(&err);
    assert_non_null(agglo_arena_take(arena, 1, 1, &err)); /* it can be used further */
    agglo_arena_free(arena);
    agglo_alloc_fail_after(0);
    assert_fails(agglo_arena_new(&arena, 0, &err), AGGLO_E_MEMORY, "cannot make an arena");
    agglo_alloc_fail_after(-1);
    assert_null(arena);
}

/* ---- dtype ---- */

static float from_half(uint32_t bits, int n_mantissa, int bias)
{
    int n_exponent = 15 - n_mantissa, exponent = (int)(bits >> n_mantissa) & ((1 << n_exponent) - 1);
    double fraction = ldexp((double)(bits & ((1u << n_mantissa) - 1)), -n_mantissa), value;

    if (exponent == (1 << n_exponent) - 1) {
        value = fraction > 0 ? (double)NAN : (double)INFINITY;
    } else {
        value = exponent == 0 ? ldexp(fraction, 1 - bias) : ldexp(1 + fraction, exponent - bias);
    }
    return (float)(bits & 0x8000u ? -value : value);
}

/* Every pattern goes to the value that its fields mean, and back to itself (a NaN to a quiet NaN). */
static void halves_round_trip(void **state)
{
    (void)state;
    for (uint32_t bits = 0; bits < 0x10000; bits++) {
        float f16 = agglo_f16_to_f32((uint16_t)bits), bf16 = agglo_bf16_to_f32((uint16_t)bits);
        float f16_is = from_half(bits, 10, 15), bf16_is = from_half(bits, 7, 127);

        if (isnan(f16_is)) {
            uint16_t back = agglo_f32_to_f16(f16);

            assert_true(isnan(f16) && (back & 0x7e00) == 0x7e00 && (back & 0x8000u) == (bits & 0x8000u));
        } else {
            assert_int_equal(agglo_f32_bits(f16), agglo_f32_bits(f16_is));
            assert_int_equal(agglo_f32_to_f16(f16), bits);
        }
        if (isnan(bf16_is)) {
            assert_true(isnan(bf16));
            assert_int_equal(agglo_f32_to_bf16(bf16), bits | 0x40);
        } else {
            assert_int_equal(agglo_f32_bits(bf16), agglo_f32_bits(bf16_is));
            assert_int_equal(agglo_f32_to_bf16(bf16), bits);
        }
    }
}

/* Between two neighbours: the half way value goes to the even one, a hair more or less to the nearer one. */
static void halves_round_to_nearest_even(void **state)
{
    (void)state;
    for (uint32_t bits = 0; bits < 0x7c00; bits++) {
        uint32_t up = bits + 1, even = bits & 1 ? up : bits;
        /* above the largest finite half the next step would be 2^16 */
        double a = (double)agglo_f16_to_f32((uint16_t)bits);
        double b = up == 0x7c00 ? 65536.0 : (double)agglo_f16_to_f32((uint16_t)up);
        float middle = (float)((a + b) / 2);

        assert_int_equal(agglo_f32_to_f16(middle), even);
        assert_int_equal(agglo_f32_to_f16(-middle), even | 0x8000u);
        assert_int_equal(agglo_f32_to_f16(nextafterf(middle, 0)), bits);
        assert_int_equal(agglo_f32_to_f16(nextafterf(middle, INFINITY)), up);
    }
    for (uint32_t bits = 0; bits < 0x7f80; bits++) {
        uint32_t up = bits + 1, even = bits & 1 ? up : bits, middle = bits << 16 | 0x8000u;

        assert_int_equal(agglo_f32_to_bf16(agglo_bits_f32(middle)), even);
        assert_int_equal(agglo_f32_to_bf16(agglo_bits_f32(middle | 0x80000000u)), even | 0x8000u);
        assert_int_equal(agglo_f32_to_bf16(agglo_bits_f32(middle - 1)), bits);
        assert_int_equal(agglo_f32_to_bf16(agglo_bits_f32(middle + 1)), up);
    }
    assert_int_equal(agglo_f32_to_f16(1e30f), 0x7c00);
    assert_int_equal(agglo_f32_to_f16(-INFINITY), 0xfc00);
    assert_int_equal(agglo_f32_to_f16(1e-30f), 0);
    assert_int_equal(agglo_f32_to_bf16(-INFINITY), 0xff80);
    assert_int_equal(agglo_f32_to_bf16(agglo_bits_f32(0x7f800001)) & 0x7fff, 0x7fc0); /* not infinity */
    assert_int_equal(agglo_f32_to_f16(agglo_bits_f32(0xff800001)), 0xfe00);
}

static void bulk_conversion_is_unaligned_and_little_endian(void **state)
{
    static const float values[] = {0.0f, 1.0f, -2.5f, 65504.0f, 1e-7f};
    enum { N = AGGLO_COUNT(values) };
    unsigned char bytes[1 + 8 * N];
    float back[N];

    (void)state;
    agglo_dtype_from_f32(bytes + 1, values, AGGLO_F16, N);
    assert_int_equal(bytes[3] | bytes[4] << 8, 0x3c00);
    agglo_dtype_to_f32(back, bytes + 1, AGGLO_F16, N);
    for (int i = 0; i < 4; i++) {
        assert_true(back[i] == values[i]);
    }
    agglo_dtype_from_f32(bytes + 1, values, AGGLO_BF16, N);
    assert_int_equal(bytes[3] | bytes[4] << 8, 0x3f80);
    agglo_dtype_to_f32(back, bytes + 1, AGGLO_BF16, N);
    assert_true(back[2] == -2.5f);
    agglo_dtype_from_f32(bytes + 1, values, AGGLO_F32, N);
    agglo_dtype_to_f32(back, bytes + 1, AGGLO_F32, N);
    assert_memory_equal(back, values, sizeof values);
    for (int i = 0; i < N; i++) {
        double d = (double)values[i];

        memcpy(bytes + 1 + 8 * i, &d, 8);
    }
    agglo_dtype_to_f32(back, bytes + 1, AGGLO_F64, N);
    assert_memory_equal(back, values, sizeof values);
    agglo_dtype_to_f32(back, NULL, AGGLO_F32, 0);
    assert_int_equal(agglo_dtype_size(AGGLO_BF16), 2);
    assert_int_equal(agglo_dtype_size(AGGLO_DTYPE_OTHER), 0);
    assert_string_equal(agglo_dtype_name(AGGLO_BF16), "bf16");
}

static void bytes_load_and_store(void **state)
{
    unsigned char b[9] = {0};

    (void)state;
    agglo_put_le64(b + 1, 0x0102030405060708u);
    assert_memory_equal(b + 1, "\x08\x07\x06\x05\x04\x03\x02\x01", 8);
    assert_true(agglo_le64(b + 1) == 0x0102030405060708u);
    assert_int_equal(agglo_le32(b + 1), 0x05060708);
    assert_int_equal(agglo_be32(b + 1), 0x08070605);
    assert_int_equal(agglo_le16(b + 1), 0x0708);
    agglo_put_be32(b + 1, 0xfffefdfc);
    assert_memory_equal(b + 1, "\xff\xfe\xfd\xfc", 4);
    assert_int_equal(agglo_le32(b + 1), 0xfcfdfeff);
}

/* ---- hash ---- */

static void hashes_match_known_vectors(void **state)
{
    agglo_err err = {0};
    agglo_sha256 sha;
    agglo_hash128 hash;
    char hex[65];

    (void)state;
    assert_ok(agglo_sha256_of("abc", 3, &sha, &err));
    assert_string_equal(agglo_hex(sha.bytes, 32, hex),
                        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_ok(agglo_sha256_of("", 0, &sha, &err));
    assert_string_equal(agglo_hex(sha.bytes, 32, hex),
                        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    assert_true(agglo_xxh3_64("", 0) == 0x2d06800538d394c2u);
    hash = agglo_xxh3_128("", 0);
    assert_string_equal(agglo_hex(hash.bytes, 16, hex), "99aa06d3014798d86001c324468d497f");
}

static void hashing_in_pieces_equals_one_shot(void **state)
{
    test_random random = test_random_new(3);
    const char *path = test_path(test_dir(), "file");
    static unsigned char data[3 << 20 | 17];
    agglo_hasher *xxh, *sha;
    agglo_hash128 hash, whole;
    agglo_sha256 digest, whole_sha;
    agglo_err err = {0};
    uint64_t n_bytes = 0;

    (void)state;
    test_random_bytes(&random, data, sizeof data);
    assert_ok(agglo_hasher_new(&xxh, AGGLO_HASH_XXH3_128, &err));
    assert_ok(agglo_hasher_new(&sha, AGGLO_HASH_SHA256, &err));
    for (size_t at = 0, n; at < sizeof data; at += n) {
        n = test_random_u32(&random) % 5000;
        n = n < sizeof data - at ? n : sizeof data - at;
        assert_ok(agglo_hasher_add(xxh, data + at, n, &err));
        assert_ok(agglo_hasher_add(sha, data + at, n, &err));
    }
    assert_ok(agglo_hasher_end(xxh, hash.bytes, &err));
    assert_ok(agglo_hasher_end(sha, digest.bytes, &err));
    agglo_hasher_free(xxh);
    agglo_hasher_free(sha);
    agglo_hasher_free(NULL);
    whole = agglo_xxh3_128(data, sizeof data);
    assert_memory_equal(hash.bytes, whole.bytes, 16);
    assert_ok(agglo_sha256_of(data, sizeof data, &whole_sha, &err));
    assert_memory_equal(digest.bytes, whole_sha.bytes, 32);

    assert_ok(agglo_file_write(path, data, sizeof data, &err));
    assert_ok(agglo_file_xxh3_128(path, &hash, &n_bytes, &err));
    assert_memory_equal(hash.bytes, whole.bytes, 16);
    assert_int_equal(n_bytes, sizeof data);
    assert_ok(agglo_file_sha256(path, &digest, NULL, &err));
    assert_memory_equal(digest.bytes, whole_sha.bytes, 32);
    assert_fails(agglo_file_sha256(test_path(test_dir(), "none"), &digest, NULL, &err), AGGLO_E_NOT_FOUND, "none");
}

static void hex_is_exact(void **state)
{
    unsigned char bytes[4];
    char hex[9];

    (void)state;
    assert_true(agglo_unhex("00fF7a09", bytes, 4));
    assert_memory_equal(bytes, "\x00\xff\x7a\x09", 4);
    assert_string_equal(agglo_hex(bytes, 4, hex), "00ff7a09");
    assert_false(agglo_unhex("00ff7a0", bytes, 4));
    assert_false(agglo_unhex("00ff7a091", bytes, 4));
    assert_false(agglo_unhex("00ff7a0g", bytes, 4));
    assert_false(agglo_unhex("", bytes, 4));
    assert_true(agglo_unhex("", bytes, 0));
}

/* ---- npy ---- */

static void npy_headers_are_exact(void **state)
{
    static const int64_t shape[8] = {2, 3, 4, 1, 1, 1, 1, 1};
    static const struct {
        agglo_dtype dtype;
        int rank;
        const char *text;
    } cases[] = {
        {AGGLO_F32, 0, "{'descr': '<f4', 'fortran_order': False, 'shape': (), }"},
        {AGGLO_F16, 1, "{'descr': '<f2', 'fortran_order': False, 'shape': (2,), }"},
        {AGGLO_BF16, 2, "{'descr': '<u2', 'fortran_order': False, 'shape': (2, 3), }"},
        {AGGLO_I64, 3, "{'descr': '<i8', 'fortran_order': False, 'shape': (2, 3, 4), }"},
        {AGGLO_U8, 8, "{'descr': '|u1', 'fortran_order': False, 'shape': (2, 3, 4, 1, 1, 1, 1, 1), }"},
    };
    static const int64_t wide[2] = {0, INT64_MAX};
    unsigned char data[24 * 8];
    const char *path = test_path(test_dir(), "a.npy");
    agglo_err err = {0};
    size_t n;
    char *file;

    (void)state;
    for (size_t i = 0; i < sizeof data; i++) {
        data[i] = (unsigned char)i;
    }
    for (size_t c = 0; c < AGGLO_COUNT(cases); c++) {
        size_t n_data = agglo_dtype_size(cases[c].dtype), n_text = strlen(cases[c].text), n_header;

        for (int i = 0; i < cases[c].rank; i++) {
            n_data *= (size_t)shape[i];
        }
        assert_ok(agglo_npy_write(path, cases[c].dtype, cases[c].rank, shape, data, &err));
        assert_ok(agglo_file_read(path, 4096, &file, &n, &err));
        assert_memory_equal(file, "\x93NUMPY\x01\x00", 8);
        n_header = 10u + agglo_le16(file + 8);
        assert_int_equal(n_header % 64, 0);
        assert_true(n_header - 10 - n_text <= 64);
        assert_int_equal(n, n_header + n_data);
        assert_memory_equal(file + 10, cases[c].text, n_text);
        for (size_t i = 10 + n_text; i < n_header - 1; i++) {
            assert_int_equal(file[i], ' ');
        }
        assert_int_equal(file[n_header - 1], '\n');
        assert_memory_equal(file + n_header, data, n_data);
        agglo_free(file);
    }
    assert_ok(agglo_npy_write(path, AGGLO_F64, 2, wide, data, &err)); /* no elements */
    assert_ok(agglo_file_read(path, 4096, &file, &n, &err));
    assert_int_equal(n, 128);
    assert_non_null(strstr(file + 10, "'shape': (0, 9223372036854775807), }"));
    agglo_free(file);
    assert_fails(agglo_npy_write(test_path(path, "b.npy"), AGGLO_F32, 0, NULL, data, &err), AGGLO_E_IO, "b.npy");
}

/* Headers as NumPy and others write them, and every way in which one can be wrong. */
static void npy_headers_are_read(void **state)
{
    static const struct {
        const char *text;
        int rank;
        int64_t shape[4];
        agglo_dtype dtype, fields[2];
        int n_fields;
        uint64_t n_items, n_data_bytes;
    } good[] = {
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 257, 1280), }",
         3,
         {1, 257, 1280},
         AGGLO_F32,
         {0},
         0,
         328960,
         1315840},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (), }   \n", 0, {0}, AGGLO_F32, {0}, 0, 1, 4},
        {"{'shape':(5,),'fortran_order':True,'descr':'|u1'}\n", 1, {5}, AGGLO_U8, {0}, 0, 5, 5},
        {"{\"descr\": \"=i8\", \"fortran_order\": False, \"shape\": (2, 3,)}", 2, {2, 3}, AGGLO_I64, {0}, 0, 6, 48},
        {"  {'descr' : '>b1' , 'fortran_order' : False , 'shape' : ( 7 , ) , } ", 1, {7}, AGGLO_BOOL, {0}, 0, 7, 7},
        {"{'descr': '<u2', 'fortran_order': False, 'shape': (4,)}", 1, {4}, AGGLO_U16, {0}, 0, 4, 8},
        {"{'descr': '<f8', 'fortran_order': False, 'shape': (9223372036854775807, 9223372036854775807, 0), }",
         3,
         {INT64_MAX, INT64_MAX, 0},
         AGGLO_F64,
         {0},
         0,
         0,
         0},
        {"{'descr': [('f0', '<u8'), ('f1', '<u8')], 'fortran_order': False, 'shape': (12,), }",
         1,
         {12},
         AGGLO_DTYPE_OTHER,
         {AGGLO_U64, AGGLO_U64},
         2,
         12,
         192},
        {"{'descr': [('it\\'s', '|i1'), (\"\", '<f2'),], 'fortran_order': False, 'shape': (3, 2), }",
         2,
         {3, 2},
         AGGLO_DTYPE_OTHER,
         {AGGLO_I8, AGGLO_F16},
         2,
         6,
         18},
    };
    static const struct {
        const char *text;
        agglo_status status;
        const char *why;
    } bad[] = {
        {"", AGGLO_E_DATA, "no dictionary"},
        {"'descr'", AGGLO_E_DATA, "no dictionary"},
        {"{", AGGLO_E_DATA, "a key was expected"},
        {"{}", AGGLO_E_DATA, "a key is missing"},
        {"{'descr': '<f4', 'shape': (1,)}", AGGLO_E_DATA, "a key is missing"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (1,)} x", AGGLO_E_DATA, "something follows"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'x': 1}", AGGLO_E_DATA, "unknown key"},
        {"{'descr': '<f4', 'fortran_order': False, 'descr': '<f4'}", AGGLO_E_DATA, "twice"},
        {"{'descr': '<f4' 'fortran_order': False, 'shape': (1,)}", AGGLO_E_DATA, "a key was expected"},
        {"{'descr': '<f4, 'fortran_order': False, 'shape': (1,)}", AGGLO_E_UNSUPPORTED, "type '<f4, '"},
        {"{'descr': '<f4", AGGLO_E_DATA, "no type"},
        {"{'descr': 'f4', 'fortran_order': False, 'shape': (1,)}", AGGLO_E_UNSUPPORTED, "type 'f4'"},
        {"{'descr': '', 'fortran_order': False, 'shape': (1,)}", AGGLO_E_UNSUPPORTED, "type ''"},
        {"{'descr': '<c8', 'fortran_order': False, 'shape': (1,)}", AGGLO_E_UNSUPPORTED, "type '<c8'"},
        {"{'descr': '>f4', 'fortran_order': False, 'shape': (1,)}", AGGLO_E_UNSUPPORTED, "type '>f4'"},
        {"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", AGGLO_E_UNSUPPORTED, "type '|O'"},
        {"{'descr': '|f4', 'fortran_order': False, 'shape': (1,)}", AGGLO_E_UNSUPPORTED, "type '|f4'"},
        {"{'descr': '<f4\\", AGGLO_E_DATA, "no type"},
        {"{'descr': '<f\n4', 'fortran_order': False, 'shape': (1,)}", AGGLO_E_DATA, "no type"},
        {"{'descr': [], 'fortran_order': False, 'shape': (1,)}", AGGLO_E_DATA, "no fields"},
        {"{'descr': [('a', '<f4') ('b', '<f4')], 'fortran_order': False, 'shape': (1,)}", AGGLO_E_DATA, "does not end"},
        {"{'descr': [('a')], 'fortran_order': False, 'shape': (1,)}", AGGLO_E_DATA, "without name or type"},
        {"{'descr': [('a', [('b', '<f4')])], 'fortran_order': False, 'shape': (1,)}", AGGLO_E_UNSUPPORTED,
         "plain numbers"},
        {"{'descr': [('a', '|V4')], 'fortran_order': False, 'shape': (1,)}", AGGLO_E_UNSUPPORTED, "type '|V4'"},
        {"{'descr': [('a', '<f4', (2,))], 'fortran_order': False, 'shape': (1,)}", AGGLO_E_UNSUPPORTED,
         "plain numbers"},
        {"{'descr': [('a', '<f4'),('a', '<f4'),('a', '<f4'),('a', '<f4'),('a', '<f4'),('a', '<f4'),('a', '<f4'),('a', "
         "'<f4'),"
         "('a', '<f4'),('a', '<f4'),('a', '<f4'),('a', '<f4'),('a', '<f4'),('a', '<f4'),('a', '<f4'),('a', "
         "'<f4'),('a', '<f4')]",
         AGGLO_E_UNSUPPORTED, "more than 16 fields"},
        {"{'descr': '<f4', 'fortran_order': 0, 'shape': (1,)}", AGGLO_E_DATA, "neither True nor False"},
        {"{'descr': '<f4', 'fortran_order': True, 'shape': (2, 2)}", AGGLO_E_UNSUPPORTED, "Fortran order"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': 1}", AGGLO_E_DATA, "no tuple"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (1)}", AGGLO_E_DATA, "no tuple"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (1 2)}", AGGLO_E_DATA, "does not end"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (,)}", AGGLO_E_DATA, "something else than sizes"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}", AGGLO_E_DATA, "something else than sizes"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (1,1,1,1,1,1,1,1,1)}", AGGLO_E_UNSUPPORTED,
         "more than 8 dim"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (9223372036854775808,)}", AGGLO_E_DATA,
         "something else than sizes"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296)}", AGGLO_E_DATA, "can be counted"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2305843009213693952,)}", AGGLO_E_DATA, "can be counted"},
    };
    static const uint8_t version_4[12] = {0x93, 'N', 'U', 'M', 'P', 'Y', 4},
                         long_1[12] = {0x93, 'N', 'U', 'M', 'P', 'Y', 1, 0, 0xff, 0xff},
                         long_2[12] = {0x93, 'N', 'U', 'M', 'P', 'Y', 2, 0, 1, 0, 1, 0},
                         short_1[12] = {0x93, 'N', 'U', 'M', 'P', 'Y', 1, 0, 0, 0, '{', '}'};
    agglo_err err = {0};
    agglo_npy_header header;
    uint8_t file[1024];
    size_t n_header;

    (void)state;
    for (size_t c = 0; c < AGGLO_COUNT(good) + AGGLO_COUNT(bad); c++) {
        const char *text = c < AGGLO_COUNT(good) ? good[c].text : bad[c - AGGLO_COUNT(good)].text;
        size_t n = strlen(text);

        for (uint8_t version = 1; version <= 3; version++) {
            size_t at = version == 1 ? 10 : 12;
            uint8_t *copy;

            memset(file, 0xff, sizeof file);
            memcpy(file, "\x93NUMPY", 6);
            file[6] = version;
            file[7] = 0;
            agglo_put_le32(file + 8, (uint32_t)n);
            memcpy(file + at, text, n);
            if (at + n < AGGLO_NPY_PREFIX) { /* no real header is so short */
                continue;
            }
            copy = agglo_alloc(at + n, 1, &err);
            assert_non_null(copy);
            memcpy(copy, file, at + n); /* the sanitizer sees a read behind it */
            if (c >= AGGLO_COUNT(good)) {
                assert_fails(agglo_npy_parse((agglo_bytes){copy, at + n}, &header, &err),
                             bad[c - AGGLO_COUNT(good)].status, bad[c - AGGLO_COUNT(good)].why);
                agglo_free(copy);
                continue;
            }
            assert_ok(agglo_npy_parse((agglo_bytes){copy, at + n}, &header, &err));
            assert_int_equal(header.n_header_bytes, at + n);
            assert_int_equal(header.rank, good[c].rank);
            assert_memory_equal(header.shape, good[c].shape, (size_t)good[c].rank * sizeof header.shape[0]);
            assert_int_equal(header.dtype, good[c].dtype);
            assert_int_equal(header.n_fields, good[c].n_fields);
            assert_memory_equal(header.fields, good[c].fields, (size_t)good[c].n_fields * sizeof header.fields[0]);
            assert_int_equal(header.n_items, good[c].n_items);
            assert_int_equal(header.n_data_bytes, good[c].n_data_bytes);
            for (size_t cut = 0; cut < at + n; cut++) {
                assert_fails(agglo_npy_parse((agglo_bytes){copy, cut}, &header, &err), AGGLO_E_DATA, ".npy");
            }
            agglo_free(copy);
        }
    }
    assert_true(agglo_npy_is((agglo_bytes){long_1, 6}));
    assert_false(agglo_npy_is((agglo_bytes){long_1, 5}));
    assert_false(agglo_npy_is((agglo_bytes){long_1 + 1, 11}));
    assert_ok(agglo_npy_header_size((agglo_bytes){long_1, 12}, &n_header, &err));
    assert_int_equal(n_header, 65545);
    assert_fails(agglo_npy_parse((agglo_bytes){long_1, 12}, &header, &err), AGGLO_E_DATA, "ends within its header");
    assert_fails(agglo_npy_header_size((agglo_bytes){long_2, 12}, &n_header, &err), AGGLO_E_DATA, "65549 bytes");
    assert_fails(agglo_npy_parse((agglo_bytes){version_4, 12}, &header, &err), AGGLO_E_UNSUPPORTED, "version 4");
    assert_fails(agglo_npy_parse((agglo_bytes){short_1, 12}, &header, &err), AGGLO_E_DATA, "no dictionary");
}

static void npy_files_read_back(void **state)
{
    static const agglo_dtype types[] = {AGGLO_F32, AGGLO_F16, AGGLO_F64, AGGLO_U8,  AGGLO_I8,  AGGLO_U16,
                                        AGGLO_I16, AGGLO_U32, AGGLO_I32, AGGLO_U64, AGGLO_I64, AGGLO_BOOL};
    static const uint8_t data[128];
    const int64_t shape[] = {2, 1, 3, 1, 1, 1, 1, 2};
    const char *path = test_path(test_dir(), "a.npy");
    agglo_err err = {0};
    agglo_npy_header header;
    char *file;
    size_t n;

    (void)state;
    for (size_t t = 0; t < AGGLO_COUNT(types); t++) {
        int rank = (int)t % (AGGLO_NPY_MAX_RANK + 1);

        assert_ok(agglo_npy_write(path, types[t], rank, shape, data, &err));
        assert_ok(agglo_file_read(path, 4096, &file, &n, &err));
        assert_ok(agglo_npy_parse((agglo_bytes){(const uint8_t *)file, n}, &header, &err));
        assert_int_equal(header.dtype, types[t]);
        assert_int_equal(header.rank, rank);
        assert_memory_equal(header.shape, shape, (size_t)rank * sizeof *shape);
        assert_int_equal(header.n_header_bytes + header.n_data_bytes, n);
        agglo_free(file);
    }
}

static void alloc_counts_bytes(void **state)
{
    agglo_err err = {0};
    agglo_alloc_stats before, now;
    void *blocks[2];

    (void)state;
    agglo_alloc_peak_reset();
    before = agglo_alloc_counts();
    assert_int_equal(before.bytes_peak, before.bytes_live);
    blocks[0] = agglo_alloc(1000, 100, &err);
    blocks[1] = agglo_alloc(1000, 50, &err);
    now = agglo_alloc_counts();
    assert_true(now.bytes_live - before.bytes_live >= 150000 && now.bytes_live - before.bytes_live < 150000 + 1024);
    agglo_free(blocks[0]);
    now = agglo_alloc_counts();
    assert_true(now.bytes_live - before.bytes_live >= 50000 && now.bytes_live - before.bytes_live < 50000 + 512);
    assert_true(now.bytes_peak - before.bytes_live >= 150000); /* it stays */
    agglo_free(blocks[1]);
    assert_int_equal(agglo_alloc_counts().bytes_live, before.bytes_live);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(err_line_is_composed),
        cmocka_unit_test(err_texts_are_cut_to_fit),
        cmocka_unit_test(err_line_stays_one_line),
        cmocka_unit_test(status_names_are_known),
        cmocka_unit_test(assertions_abort),
        cmocka_unit_test(alloc_is_aligned_zeroed_and_counted),
        cmocka_unit_test(alloc_counts_bytes),
        cmocka_unit_test(alloc_checks_sizes),
        cmocka_unit_test(alloc_fails_when_told_once),
        cmocka_unit_test(arena_marks_and_rewinds),
        cmocka_unit_test(arena_blocks_do_not_overlap),
        cmocka_unit_test(arena_refuses_what_does_not_fit),
        cmocka_unit_test(halves_round_trip),
        cmocka_unit_test(halves_round_to_nearest_even),
        cmocka_unit_test(bulk_conversion_is_unaligned_and_little_endian),
        cmocka_unit_test(bytes_load_and_store),
        cmocka_unit_test(hashes_match_known_vectors),
        cmocka_unit_test(hashing_in_pieces_equals_one_shot),
        cmocka_unit_test(hex_is_exact),
        cmocka_unit_test(npy_headers_are_exact),
        cmocka_unit_test(npy_headers_are_read),
        cmocka_unit_test(npy_files_read_back),
    };

    return test_run("base values", tests);
}
