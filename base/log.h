/* Log and progress, both to stderr. Only `cli` decides what is shown; layers below may log and report progress, and never print
 * errors. Thread-safe. */
#ifndef AGGLO_BASE_LOG_H
#define AGGLO_BASE_LOG_H

#include "base/err.h"

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum agglo_log_level { AGGLO_LOG_ERROR, AGGLO_LOG_WARN, AGGLO_LOG_INFO, AGGLO_LOG_DEBUG } agglo_log_level;

/* What is shown: AGGLO_LOG_WARN under -q, INFO by default, DEBUG under -v. */
void agglo_log_set_level(agglo_log_level level);
agglo_log_level agglo_log_get_level(void);

/* One line, without its newline. A progress bar on the terminal is taken away and drawn again. */
void agglo_log(agglo_log_level level, const char *fmt, ...) AGGLO_PRINTF(2, 3);

/* Progress of one long piece of work: on a terminal a bar with rate and time left, redrawn at most ten times a second; elsewhere
 * a plain line every five seconds. Silent under -q. At most one at a time is drawn. */
typedef struct agglo_progress agglo_progress;

/* unit: "images", "steps"; total 0 when unknown. Never fails: on lack of memory returns NULL, which every call accepts. */
agglo_progress *agglo_progress_begin(const char *label, const char *unit, uint64_t total);
void agglo_progress_add(agglo_progress *progress, uint64_t n);
/* How much there will be, where that is found out on the way; 0: not known. */
void agglo_progress_total(agglo_progress *progress, uint64_t total);
/* What part of the work is done, 0 to 1, where it is not the count that says so: for the bar and the time left. */
void agglo_progress_share(agglo_progress *progress, double share);
/* A short note behind the bar, such as "loss 0.4312"; replaces the last one. */
void agglo_progress_note(agglo_progress *progress, const char *fmt, ...) AGGLO_PRINTF(2, 3);
/* Leaves one final line with count, time and mean rate, frees. */
void agglo_progress_end(agglo_progress *progress);

/* Seconds on a monotonic clock. */
double agglo_now(void);

#ifdef __cplusplus
}
#endif
#endif
