/* Errors: how every fallible function reports, and the assertion for broken invariants.
 *
 * The world failed (file, data, memory, device): return an agglo_status and fill the caller's agglo_err. The program is wrong
 * (shapes inside an operator): AGGLO_ASSERT, on in every build. Nothing here allocates; an agglo_err lives on the stack.
 *
 *     agglo: WHAT: WHY (WHERE)        the one line that a user sees, printed once, by main
 */
#ifndef AGGLO_BASE_ERR_H
#define AGGLO_BASE_ERR_H

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum agglo_status {
    AGGLO_OK = 0,
    AGGLO_E_IO,          /* the system refused: open, read, write, map */
    AGGLO_E_DATA,        /* foreign bytes are not what their format says */
    AGGLO_E_CONFIG,      /* wrong usage or configuration; nothing was started (exit status 2) */
    AGGLO_E_MISMATCH,    /* two things that must belong together do not: fingerprints, shapes, versions */
    AGGLO_E_NOT_FOUND,   /* a key, tensor, sample or file that was asked for by name */
    AGGLO_E_MEMORY,      /* an allocation failed or would pass a stated limit */
    AGGLO_E_DEVICE,      /* the accelerator or a math library failed */
    AGGLO_E_UNSUPPORTED, /* understood, but this build or version cannot do it */
    AGGLO_E_STOPPED,     /* asked to stop (signal), everything finished so far stands */
} agglo_status;

/* Zero-initialise (`agglo_err err = {0};`). Borrowed by every call, never NULL. */
typedef struct agglo_err {
    agglo_status status;
    char what[128];  /* what was being done, innermost */
    char why[256];   /* the cause: found, expected */
    char where[256]; /* the place, outermost first: file, tensor, line */
    char trail[512]; /* what the layers above were doing, printed under -v */
} agglo_err;

#if defined(__GNUC__) || defined(__clang__)
#define AGGLO_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#define AGGLO_NORETURN          __attribute__((noreturn))
#else
#define AGGLO_PRINTF(fmt, args)
#define AGGLO_NORETURN
#endif

/* At the cause: set status and WHY, forget what `err` held before. Returns `status`, so that `return agglo_fail(...)` reads. */
agglo_status agglo_fail(agglo_err *err, agglo_status status, const char *why, ...) AGGLO_PRINTF(3, 4);

/* A place; outer places are put in front of inner ones, joined by ": ". Returns err->status. */
agglo_status agglo_at(agglo_err *err, const char *where, ...) AGGLO_PRINTF(2, 3);

/* What this layer was doing; the innermost becomes WHAT, the rest join the trail. Returns err->status. */
agglo_status agglo_doing(agglo_err *err, const char *what, ...) AGGLO_PRINTF(2, 3);

/* Forget everything: err becomes AGGLO_OK with empty texts. */
void agglo_err_clear(agglo_err *err);

/* Write "WHAT: WHY (WHERE)" (parts that are empty left out) into out[0..n_bytes), n_bytes >= 1, always terminated; control
 * characters become '?'. Returns out. */
char *agglo_err_line(const agglo_err *err, char *out, size_t n_bytes);

/* Short stable name of a status, "io", "data", ...; static storage. */
const char *agglo_status_name(agglo_status status);

/* Print "agglo: bug: EXPR (FILE:LINE)" and abort. */
AGGLO_NORETURN void agglo_assert_failed(const char *expr, const char *file, int line);

#define AGGLO_ASSERT(expr) ((expr) ? (void)0 : agglo_assert_failed(#expr, __FILE__, __LINE__))

#define AGGLO_COUNT(array) (sizeof(array) / sizeof((array)[0]))

#ifdef __cplusplus
}
#endif
#endif
