/* Log lines and the progress bar share standard error under one mutex. */
#include "base/log.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "base/alloc.h"

static const double redraw_seconds = 0.1, line_seconds = 5.0;

struct agglo_progress {
    char label[64], unit[32], note[96];
    uint64_t total, n;
    double begun, shown, share;
    bool terminal;
};

static atomic_int level_shown = AGGLO_LOG_INFO;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static agglo_progress *drawn; /* the one that owns the last line of the terminal */

double agglo_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void agglo_log_set_level(agglo_log_level level)
{
    atomic_store(&level_shown, (int)level);
}

agglo_log_level agglo_log_get_level(void)
{
    return (agglo_log_level)atomic_load(&level_shown);
}

static void format_seconds(char *out, size_t n, double seconds)
{
    if (seconds < 60) {
        snprintf(out, n, "%.1f s", seconds);
    } else if (seconds < 3600) {
        snprintf(out, n, "%d min %02d s", (int)seconds / 60, (int)seconds % 60);
    } else {
        snprintf(out, n, "%lld h %02lld min", (long long)(seconds / 3600), (long long)(seconds / 60) % 60);
    }
}

/* Caller holds the mutex. */
static void draw(agglo_progress *p, bool last)
{
    double seconds = agglo_now() - p->begun, rate = seconds > 0 ? (double)p->n / seconds : 0;
    double share = p->share > 0 ? p->share : p->total > 0 ? (double)p->n / (double)p->total : 0;
    char bar[32] = "", count[64], time[48], line[512];

    share = share > 1.0 ? 1.0 : share;
    if (p->total > 0) {
        snprintf(count, sizeof count, "%llu/%llu %s", (unsigned long long)p->n, (unsigned long long)p->total, p->unit);
    } else {
        snprintf(count, sizeof count, "%llu %s", (unsigned long long)p->n, p->unit);
    }
    if (!last && share > 0) {
        char left[32];

        format_seconds(left, sizeof left, seconds * (1.0 / share - 1.0));
        snprintf(time, sizeof time, "%s left", left);
    } else {
        format_seconds(time, sizeof time, seconds);
    }
    if (p->terminal && !last && share > 0) {
        enum { WIDTH = 20 };
        int full = (int)(share * WIDTH);

        bar[0] = '[';
        for (int i = 0; i < WIDTH; i++) {
            bar[1 + i] = i < full ? '#' : '.';
        }
        bar[WIDTH + 1] = ']';
        bar[WIDTH + 2] = ' ';
        bar[WIDTH + 3] = '\0';
    }
    snprintf(line, sizeof line, "%s: %s%s, %.1f %s/s, %s%s%s", p->label, bar, count, rate, p->unit, time,
             p->note[0] != '\0' ? ", " : "", p->note);
    if (p->terminal) {
        fprintf(stderr, "\r%s\033[K%s", line, last ? "\n" : "");
    } else {
        fprintf(stderr, "%s\n", line);
    }
    fflush(stderr);
}

void agglo_log(agglo_log_level level, const char *fmt, ...)
{
    va_list args;

    if (level > agglo_log_get_level()) {
        return;
    }
    pthread_mutex_lock(&mutex);
    if (drawn != NULL && drawn->terminal) {
        fputs("\r\033[K", stderr);
    }
    va_start(args, fmt);
    vfprintf(stderr, fmt, args);
    va_end(args);
    fputc('\n', stderr);
    if (drawn != NULL && drawn->terminal) {
        draw(drawn, false);
    }
    pthread_mutex_unlock(&mutex);
}

agglo_progress *agglo_progress_begin(const char *label, const char *unit, uint64_t total)
{
    agglo_err err = {0};
    agglo_progress *p = agglo_alloc(1, sizeof *p, &err);

    if (p == NULL) {
        return NULL;
    }
    snprintf(p->label, sizeof p->label, "%s", label);
    snprintf(p->unit, sizeof p->unit, "%s", unit);
    p->total = total;
    p->begun = p->shown = agglo_now();
    p->terminal = isatty(STDERR_FILENO) == 1;
    pthread_mutex_lock(&mutex);
    if (drawn == NULL) {
        drawn = p;
    }
    pthread_mutex_unlock(&mutex);
    return p;
}

void agglo_progress_add(agglo_progress *p, uint64_t n)
{
    double now;

    if (p == NULL) {
        return;
    }
    now = agglo_now();
    pthread_mutex_lock(&mutex);
    p->n += n;
    if (drawn == p && agglo_log_get_level() >= AGGLO_LOG_INFO &&
        now - p->shown >= (p->terminal ? redraw_seconds : line_seconds)) {
        p->shown = now;
        draw(p, false);
    }
    pthread_mutex_unlock(&mutex);
}

void agglo_progress_total(agglo_progress *p, uint64_t total)
{
    if (p != NULL) {
        pthread_mutex_lock(&mutex);
        p->total = total;
        pthread_mutex_unlock(&mutex);
    }
}

void agglo_progress_share(agglo_progress *p, double share)
{
    if (p != NULL) {
        pthread_mutex_lock(&mutex);
        p->share = share;
        pthread_mutex_unlock(&mutex);
    }
}

void agglo_progress_note(agglo_progress *p, const char *fmt, ...)
{
    va_list args;

    if (p == NULL) {
        return;
    }
    pthread_mutex_lock(&mutex);
    va_start(args, fmt);
    vsnprintf(p->note, sizeof p->note, fmt, args);
    va_end(args);
    pthread_mutex_unlock(&mutex);
}

void agglo_progress_end(agglo_progress *p)
{
    if (p == NULL) {
        return;
    }
    pthread_mutex_lock(&mutex);
    if (drawn == p) {
        if (agglo_log_get_level() >= AGGLO_LOG_INFO) {
            draw(p, true);
        }
        drawn = NULL;
    }
    pthread_mutex_unlock(&mutex);
    agglo_free(p);
}
