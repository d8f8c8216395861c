/* The error line: fixed buffers, no allocation, so that reporting cannot itself fail. */
#include "base/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Put `text` and, before what `buffer` holds, `joint` in front; what does not fit is cut at the end. */
static void prepend(char *buffer, size_t n_bytes, const char *text, const char *joint)
{
    size_t n_old = strlen(buffer), n_text = strlen(text), n_joint = n_old > 0 ? strlen(joint) : 0;
    size_t room = n_bytes - 1;

    n_text = n_text < room ? n_text : room;
    room -= n_text;
    n_joint = n_joint < room ? n_joint : room;
    room -= n_joint;
    n_old = n_old < room ? n_old : room;
    memmove(buffer + n_text + n_joint, buffer, n_old);
    memcpy(buffer, text, n_text);
    memcpy(buffer + n_text, joint, n_joint);
    buffer[n_text + n_joint + n_old] = '\0';
}

agglo_status agglo_fail(agglo_err *err, agglo_status status, const char *why, ...)
{
    va_list args;

    agglo_err_clear(err);
    err->status = status;
    va_start(args, why);
    vsnprintf(err->why, sizeof err->why, why, args);
    va_end(args);
    return status;
}

agglo_status agglo_at(agglo_err *err, const char *where, ...)
{
    char text[256];
    va_list args;

    va_start(args, where);
    vsnprintf(text, sizeof text, where, args);
    va_end(args);
    prepend(err->where, sizeof err->where, text, ": ");
    return err->status;
}

agglo_status agglo_doing(agglo_err *err, const char *what, ...)
{
    char text[128];
    va_list args;

    va_start(args, what);
    vsnprintf(text, sizeof text, what, args);
    va_end(args);
    if (err->what[0] == '\0') {
        snprintf(err->what, sizeof err->what, "%s", text);
    } else {
        prepend(err->trail, sizeof err->trail, text, "; ");
    }
    return err->status;
}

void agglo_err_clear(agglo_err *err)
{
    memset(err, 0, sizeof *err);
}

char *agglo_err_line(const agglo_err *err, char *out, size_t n_bytes)
{
    snprintf(out, n_bytes, "%s%s%s%s%s%s", err->what, err->what[0] ? ": " : "", err->why, err->where[0] ? " (" : "",
             err->where, err->where[0] ? ")" : "");
    for (char *c = out; *c != '\0'; c++) { /* a hostile name must not break the line or steer the terminal */
        *c = (unsigned char)*c < ' ' || *c == 0x7f ? '?' : *c;
    }
    return out;
}

const char *agglo_status_name(agglo_status status)
{
    static const char *const names[] = {"ok",        "io",     "data",   "config",      "mismatch",
                                        "not_found", "memory", "device", "unsupported", "stopped"};

    return (size_t)status < AGGLO_COUNT(names) ? names[status] : "unknown";
}

void agglo_assert_failed(const char *expr, const char *file, int line)
{
    fprintf(stderr, "agglo: bug: %s (%s:%d)\n", expr, file, line);
    abort();
}
