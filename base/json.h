/* JSON over jansson: bounded, strict reading (duplicate keys and trailing text are errors) and typed getters that name what is
 * wrong. json_t is jansson's reference-counted value; functions that return one give a new reference unless they say 'borrowed'. */
#ifndef AGGLO_BASE_JSON_H
#define AGGLO_BASE_JSON_H

#include <jansson.h>

#include "base/fs.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Parse n bytes. AGGLO_E_DATA with line and column. */
agglo_status agglo_json_parse(const char *text, size_t n_bytes, json_t **out, agglo_err *err);

/* Read and parse a file of at most max_bytes. */
agglo_status agglo_json_read(const char *path, size_t max_bytes, json_t **out, agglo_err *err);

/* Write atomically, indented by 2, keys in insertion order, newline at the end. Does not consume `value`. */
agglo_status agglo_json_write(const char *path, const json_t *value, agglo_err *err);

/* One line without a newline, in a new string (agglo_free). */
char *agglo_json_line(const json_t *value, agglo_err *err);

/* Typed members of an object; AGGLO_E_DATA naming the key when it is missing or of another type. Strings are borrowed. */
agglo_status agglo_json_get_string(const json_t *object, const char *key, const char **out, agglo_err *err);
agglo_status agglo_json_get_int(const json_t *object, const char *key, int64_t min, int64_t max, int64_t *out,
                                agglo_err *err);
agglo_status agglo_json_get_double(const json_t *object, const char *key, double *out, agglo_err *err);
agglo_status agglo_json_get_bool(const json_t *object, const char *key, bool *out, agglo_err *err);
agglo_status agglo_json_get_object(const json_t *object, const char *key, const json_t **out, agglo_err *err);
agglo_status agglo_json_get_array(const json_t *object, const char *key, const json_t **out, agglo_err *err);
/* A string of exactly 2n hex digits. */
agglo_status agglo_json_get_hex(const json_t *object, const char *key, uint8_t *out, size_t n, agglo_err *err);

#ifdef __cplusplus
}
#endif
#endif
