/* The lines are written directly, not through a JSON tree: keys are foreign bytes, which jansson refuses when they are not UTF-8. */
#include "ingest/reject.h"

#include <stdio.h>
#include <stdlib.h>

enum { MAX_REASONS = 64, MAX_REASON = 32, MAX_TEXT = 4096 };

typedef struct reason_count {
    char reason[MAX_REASON];
    uint64_t n;
} reason_count;

struct agglo_rejects {
    reason_count counts[MAX_REASONS];
    size_t n_reasons;
    char *line; /* the one being made */
    size_t n, room;
};

agglo_status agglo_rejects_new(agglo_rejects **out, agglo_err *err)
{
    *out = agglo_alloc(1, sizeof **out, err);
    return *out == NULL ? err->status : AGGLO_OK;
}

void agglo_rejects_free(agglo_rejects *rejects)
{
    if (rejects != NULL) {
        agglo_free(rejects->line);
        agglo_free(rejects);
    }
}

static agglo_status put(agglo_rejects *r, const char *bytes, size_t n, agglo_err *err)
{
    if (r->room - r->n < n) {
        size_t room = (r->n + n) * 2 + 256;
        char *line = agglo_realloc(r->line, r->room, room, err);

        if (line == NULL) {
            return err->status;
        }
        r->line = line;
        r->room = room;
    }
    memcpy(r->line + r->n, bytes, n);
    r->n += n;
    return AGGLO_OK;
}

/* Length of the valid UTF-8 sequence at p (RFC 3629), 0 when there is none. */
static size_t utf8_length(const uint8_t *p)
{
    static const struct {
        uint8_t first_lo, first_hi, second_lo, second_hi;
        size_t n;
    } forms[] = {
        {0xc2, 0xdf, 0x80, 0xbf, 2}, {0xe0, 0xe0, 0xa0, 0xbf, 3}, {0xe1, 0xec, 0x80, 0xbf, 3},
        {0xed, 0xed, 0x80, 0x9f, 3}, {0xee, 0xef, 0x80, 0xbf, 3}, {0xf0, 0xf0, 0x90, 0xbf, 4},
        {0xf1, 0xf3, 0x80, 0xbf, 4}, {0xf4, 0xf4, 0x80, 0x8f, 4},
    };

    if (p[0] < 0x80) {
        return 1;
    }
    for (size_t i = 0; i < AGGLO_COUNT(forms); i++) {
        if (p[0] >= forms[i].first_lo && p[0] <= forms[i].first_hi) {
            size_t k = 2;

            if (p[1] < forms[i].second_lo || p[1] > forms[i].second_hi) {
                return 0;
            }
            while (k < forms[i].n && (p[k] & 0xc0) == 0x80) { /* a NUL ends the walk */
                k++;
            }
            return k == forms[i].n ? k : 0;
        }
    }
    return 0;
}

static agglo_status put_string(agglo_rejects *r, const char *name, const char *text, bool last, agglo_err *err)
{
    char part[32];
    const uint8_t *p = (const uint8_t *)text;

    if (put(r, "\"", 1, err) != AGGLO_OK || put(r, name, strlen(name), err) != AGGLO_OK ||
        put(r, "\": \"", 4, err) != AGGLO_OK) {
        return err->status;
    }
    while (*p != 0 && p - (const uint8_t *)text < MAX_TEXT) {
        size_t n = utf8_length(p), n_out = n;
        const char *from = (const char *)p;

        if (n == 0) {
            from = "\xef\xbf\xbd";
            n = 1;
            n_out = 3;
        } else if (*p < 0x20 || *p == 0x7f) {
            n_out = (size_t)snprintf(part, sizeof part, "\\u%04x", *p);
            from = part;
        } else if (*p == '"' || *p == '\\') {
            n_out = (size_t)snprintf(part, sizeof part, "\\%c", *p);
            from = part;
        }
        if (put(r, from, n_out, err) != AGGLO_OK) {
            return err->status;
        }
        p += n;
    }
    return last ? put(r, "\"}\n", 3, err) : put(r, "\", ", 3, err);
}

agglo_status agglo_rejects_count(agglo_rejects *r, const char *reason, uint64_t n, agglo_err *err)
{
    size_t i = 0;

    while (i < r->n_reasons && strcmp(r->counts[i].reason, reason) != 0) {
        i++;
    }
    if (i == r->n_reasons) {
        if (r->n_reasons == MAX_REASONS || strlen(reason) >= MAX_REASON) {
            return agglo_fail(err, AGGLO_E_DATA, "'%.40s' is no reason that is known", reason);
        }
        strcpy(r->counts[r->n_reasons++].reason, reason);
    }
    r->counts[i].n += n;
    return AGGLO_OK;
}

agglo_status agglo_rejects_line(agglo_rejects *r, const char *source, const char *key, const char *reason,
                                const char *detail, agglo_bytes *line, agglo_err *err)
{
    r->n = 0;
    if (agglo_rejects_count(r, reason, 1, err) != AGGLO_OK || put(r, "{", 1, err) != AGGLO_OK ||
        put_string(r, "source", source, false, err) != AGGLO_OK ||
        put_string(r, "key", key == NULL ? "" : key, false, err) != AGGLO_OK ||
        put_string(r, "reason", reason, false, err) != AGGLO_OK ||
        put_string(r, "detail", detail == NULL ? "" : detail, true, err) != AGGLO_OK) {
        return err->status;
    }
    *line = (agglo_bytes){(const uint8_t *)r->line, r->n};
    return AGGLO_OK;
}

static int by_reason(const void *a, const void *b)
{
    return strcmp(((const reason_count *)a)->reason, ((const reason_count *)b)->reason);
}

json_t *agglo_rejects_counts(const agglo_rejects *rejects, agglo_err *err)
{
    reason_count sorted[MAX_REASONS];
    json_t *object = json_object();

    memcpy(sorted, rejects->counts, sizeof sorted);
    qsort(sorted, rejects->n_reasons, sizeof *sorted, by_reason);
    for (size_t i = 0; i < rejects->n_reasons; i++) {
        if (json_object_set_new(object, sorted[i].reason, json_integer((json_int_t)sorted[i].n)) != 0) {
            json_decref(object);
            object = NULL;
            break;
        }
    }
    if (object == NULL) {
        agglo_fail(err, AGGLO_E_MEMORY, "no memory for the report");
    }
    return object;
}
