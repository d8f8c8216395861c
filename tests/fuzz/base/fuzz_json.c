/* Any bytes as JSON: refused, or what is printed reads back to an equal value, and the typed getters take any member. */
#include <stdlib.h>

#include "base/json.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void get_all(const json_t *object, const char *key)
{
    agglo_err err = {0};
    uint8_t bytes[4];
    const json_t *node;
    const char *text;
    int64_t i;
    double d;
    bool b;
    int n_fitting = 0;

    n_fitting += agglo_json_get_string(object, key, &text, &err) == AGGLO_OK;
    agglo_err_clear(&err);
    n_fitting += agglo_json_get_double(object, key, &d, &err) == AGGLO_OK;
    agglo_err_clear(&err);
    n_fitting += agglo_json_get_bool(object, key, &b, &err) == AGGLO_OK;
    agglo_err_clear(&err);
    n_fitting += agglo_json_get_object(object, key, &node, &err) == AGGLO_OK;
    agglo_err_clear(&err);
    n_fitting += agglo_json_get_array(object, key, &node, &err) == AGGLO_OK;
    AGGLO_ASSERT(n_fitting <= 1); /* none: null */
    agglo_err_clear(&err);
    if (agglo_json_get_int(object, key, -5, 5, &i, &err) == AGGLO_OK) {
        AGGLO_ASSERT(i >= -5 && i <= 5);
    }
    agglo_err_clear(&err);
    agglo_json_get_hex(object, key, bytes, sizeof bytes, &err);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    agglo_err err = {0};
    json_t *value, *back, *member;
    const char *key;
    char *line;

    if (agglo_json_parse((const char *)data, size, &value, &err) != AGGLO_OK) {
        AGGLO_ASSERT(value == NULL && err.status == AGGLO_E_DATA);
        return 0;
    }
    json_object_foreach(value, key, member)
    {
        get_all(value, key);
    }
    get_all(value, "none");
    line = agglo_json_line(value, &err);
    AGGLO_ASSERT(line != NULL);
    AGGLO_ASSERT(agglo_json_parse(line, strlen(line), &back, &err) == AGGLO_OK && json_equal(value, back));
    json_decref(back);
    json_decref(value);
    agglo_free(line);
    AGGLO_ASSERT(agglo_alloc_counts().n_live == 0);
    return 0;
}
