/* What commands print: JSON, sizes and counts for people, versions. */
#include <archive.h>
#include <jpeglib.h>
#include <lmdb.h>
#include <math.h>
#include <openssl/crypto.h>
#include <spng.h>
#include <stdio.h>
#include <string.h>
#include <webp/decode.h>
#include <xxhash.h>
#include <yaml.h>
#include <zlib.h>
#include <zstd.h>

#include "cli/cli.h"
#include "tensor/backend.h"

static char *next_buffer(void)
{
    static char buffers[16][48];
    static int next;

    return buffers[next++ % 16];
}

void agglo_print_json(const json_t *value)
{
    json_dumpf(value, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(9) | JSON_ENCODE_ANY);
    putchar('\n');
}

json_t *agglo_json_clock(double value)
{
    return json_real(round(value * 10) / 10);
}

static const char *scaled(double n, const char *const *units, size_t n_units)
{
    char *out = next_buffer();
    size_t unit = 0;

    while (n >= 999.95 && unit + 1 < n_units) {
        n /= 1000;
        unit++;
    }
    snprintf(out, 48, unit == 0 ? "%.0f%s" : "%.1f%s", n, units[unit]);
    return out;
}

const char *agglo_show_bytes(double n)
{
    static const char *const units[] = {" B", " kB", " MB", " GB", " TB", " PB"};

    return scaled(n, units, AGGLO_COUNT(units));
}

const char *agglo_show_count(double n)
{
    static const char *const units[] = {"", " k", " M", " G", " T"};

    return scaled(n, units, AGGLO_COUNT(units));
}

const char *agglo_show_int(int64_t n)
{
    char digits[32], *out = next_buffer(), *to = out;
    int length = snprintf(digits, sizeof digits, "%lld", (long long)n);

    for (int i = 0; i < length; i++) {
        *to++ = digits[i];
        if (digits[i] != '-' && i + 1 < length && (length - 1 - i) % 3 == 0) {
            *to++ = ',';
        }
    }
    *to = '\0';
    return out;
}

static void set_version(json_t *object, const char *name, int a, int b, int c)
{
    json_object_set_new(object, name, json_sprintf("%d.%d.%d", a, b, c));
}

json_t *agglo_version_json(void)
{
    json_t *out = json_object(), *libraries = json_object();
    agglo_backend_library cpu = agglo_backend_cpu_library();
    int major, minor, patch;
    char cuda[320];

    json_object_set_new(out, "agglo", json_string(AGGLO_VERSION));
    set_version(libraries, "onednn", cpu.major, cpu.minor, cpu.patch);
    mdb_version(&major, &minor, &patch);
    set_version(libraries, "lmdb", major, minor, patch);
    json_object_set_new(libraries, "libjpeg-turbo",
                        json_sprintf("%d.%d.%d", LIBJPEG_TURBO_VERSION_NUMBER / 1000000,
                                     LIBJPEG_TURBO_VERSION_NUMBER / 1000 % 1000, LIBJPEG_TURBO_VERSION_NUMBER % 1000));
    major = WebPGetDecoderVersion();
    set_version(libraries, "libwebp", major >> 16, major >> 8 & 255, major & 255);
    json_object_set_new(libraries, "libspng", json_string(spng_version_string()));
    json_object_set_new(libraries, "libarchive", json_string(archive_version_string() + strlen("libarchive ")));
    json_object_set_new(libraries, "zlib", json_string(zlibVersion()));
    json_object_set_new(libraries, "zstd", json_string(ZSTD_versionString()));
    major = (int)XXH_versionNumber();
    set_version(libraries, "xxhash", major / 10000, major / 100 % 100, major % 100);
    json_object_set_new(libraries, "openssl", json_string(OpenSSL_version(OPENSSL_VERSION_STRING)));
    json_object_set_new(libraries, "jansson", json_string(jansson_version_str()));
    json_object_set_new(libraries, "libyaml", json_string(yaml_get_version_string()));
    json_object_set_new(out, "libraries", libraries);
    agglo_backend_cuda_describe(cuda, sizeof cuda);
    json_object_set_new(out, "cuda", json_string(cuda));
    return out;
}

void agglo_print_version(bool json)
{
    json_t *version = agglo_version_json();
    const char *name;
    json_t *value;

    if (json) {
        agglo_print_json(version);
    } else {
        printf("agglo %s\n", AGGLO_VERSION);
        json_object_foreach(json_object_get(version, "libraries"), name, value)
        {
            printf("  %-14s %s\n", name, json_string_value(value));
        }
        printf("  %-14s %s\n", "cuda", json_string_value(json_object_get(version, "cuda")));
    }
    json_decref(version);
}
