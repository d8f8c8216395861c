/* Strict JSON over jansson; see json.h. */
#include "base/json.h"

#include <string.h>

#include "base/hash.h"

agglo_status agglo_json_parse(const char *text, size_t n_bytes, json_t **out, agglo_err *err)
{
    json_error_t error;

    *out = json_loadb(text, n_bytes, JSON_REJECT_DUPLICATES, &error);
    if (*out != NULL) {
        return AGGLO_OK;
    }
    /* jansson has no text for an allocation that fails before it reads anything */
    if (json_error_code(&error) == json_error_out_of_memory || error.text[0] == '\0') {
        return agglo_fail(err, AGGLO_E_MEMORY, "out of memory parsing JSON");
    }
    return agglo_fail(err, AGGLO_E_DATA, "line %d column %d: %s", error.line, error.column, error.text);
}

agglo_status agglo_json_read(const char *path, size_t max_bytes, json_t **out, agglo_err *err)
{
    char *text;
    size_t n_bytes;

    *out = NULL;
    if (agglo_file_read(path, max_bytes, &text, &n_bytes, err) != AGGLO_OK) {
        return err->status;
    }
    agglo_json_parse(text, n_bytes, out, err);
    agglo_free(text);
    if (err->status != AGGLO_OK) {
        agglo_at(err, "%s", path);
        agglo_doing(err, "cannot parse JSON");
    }
    return err->status;
}

/* The printed value and `behind` it, in a new string. */
static char *print(const json_t *value, size_t flags, const char *behind, agglo_err *err)
{
    size_t n_behind = strlen(behind), n, n_again;
    char *text;

    flags |= JSON_ENCODE_ANY | JSON_REAL_PRECISION(17);
    n = json_dumpb(value, NULL, 0, flags);
    text = n > 0 ? agglo_alloc(n + n_behind + 1, 1, err) : NULL;
    n_again = text != NULL ? json_dumpb(value, text, n, flags) : n;
    if (n == 0 || n_again != n) {
        agglo_free(text);
        agglo_fail(err, AGGLO_E_MEMORY, "out of memory printing JSON");
        return NULL;
    }
    if (text != NULL) {
        memcpy(text + n, behind, n_behind);
    }
    return text;
}

agglo_status agglo_json_write(const char *path, const json_t *value, agglo_err *err)
{
    char *text = print(value, JSON_INDENT(2), "\n", err);

    if (text != NULL) {
        agglo_file_write(path, text, strlen(text), err);
    }
    agglo_free(text);
    return err->status;
}

char *agglo_json_line(const json_t *value, agglo_err *err)
{
    return print(value, JSON_COMPACT, "", err);
}

static const char *type_name(json_type type)
{
    static const char *const names[] = {"an object", "a list", "a string", "an integer",
                                        "a number",  "true",   "false",    "null"};

    return names[type];
}

/* The member, or an error that names the key, and what was found where something else is needed. */
static const json_t *member(const json_t *object, const char *key, bool fits, const char *expected, agglo_err *err)
{
    const json_t *value = json_object_get(object, key);

    if (value == NULL) {
        agglo_fail(err, AGGLO_E_DATA, "key '%s' is missing", key);
    } else if (!fits) {
        agglo_fail(err, AGGLO_E_DATA, "key '%s' is %s, expected %s", key, type_name(json_typeof(value)), expected);
        value = NULL;
    }
    return value;
}

#define GET(test, expected) member(object, key, test(json_object_get(object, key)), expected, err)

agglo_status agglo_json_get_string(const json_t *object, const char *key, const char **out, agglo_err *err)
{
    const json_t *value = GET(json_is_string, "a string");

    if (value != NULL) {
        *out = json_string_value(value);
    }
    return err->status;
}

agglo_status agglo_json_get_int(const json_t *object, const char *key, int64_t min, int64_t max, int64_t *out,
                                agglo_err *err)
{
    const json_t *value = GET(json_is_integer, "an integer");
    int64_t number;

    if (value == NULL) {
        return err->status;
    }
    number = json_integer_value(value);
    if (number < min || number > max) {
        return agglo_fail(err, AGGLO_E_DATA, "key '%s' is %lld, allowed are %lld to %lld", key, (long long)number,
                          (long long)min, (long long)max);
    }
    *out = number;
    return AGGLO_OK;
}

agglo_status agglo_json_get_double(const json_t *object, const char *key, double *out, agglo_err *err)
{
    const json_t *value = GET(json_is_number, "a number");

    if (value != NULL) {
        *out = json_number_value(value);
    }
    return err->status;
}

agglo_status agglo_json_get_bool(const json_t *object, const char *key, bool *out, agglo_err *err)
{
    const json_t *value = GET(json_is_boolean, "true or false");

    if (value != NULL) {
        *out = json_is_true(value);
    }
    return err->status;
}

agglo_status agglo_json_get_object(const json_t *object, const char *key, const json_t **out, agglo_err *err)
{
    *out = GET(json_is_object, "an object");
    return err->status;
}

agglo_status agglo_json_get_array(const json_t *object, const char *key, const json_t **out, agglo_err *err)
{
    *out = GET(json_is_array, "a list");
    return err->status;
}

agglo_status agglo_json_get_hex(const json_t *object, const char *key, uint8_t *out, size_t n, agglo_err *err)
{
    const char *text = "";

    if (agglo_json_get_string(object, key, &text, err) == AGGLO_OK &&
        (strlen(text) != 2 * n || !agglo_unhex(text, out, n))) {
        agglo_fail(err, AGGLO_E_DATA, "key '%s' is not %zu hex digits", key, 2 * n);
    }
    return err->status;
}
