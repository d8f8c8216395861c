/* The stop flag: raised by SIGINT and SIGTERM (the handler does nothing else) or by a failing worker; polled by loops. */
#ifndef AGGLO_BASE_STOP_H
#define AGGLO_BASE_STOP_H

#include "base/err.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Install the handlers, once, from main. A second signal ends the process at once. */
void agglo_stop_install(void);
/* Leave both signals to the thread that installed the handlers: threads that work for others call it when they start. */
void agglo_stop_block_signals(void);

void agglo_stop_raise(void);
bool agglo_stop_raised(void);
/* Tests only. */
void agglo_stop_reset(void);

/* AGGLO_OK, or AGGLO_E_STOPPED "stopped by signal" in err when the flag is up. */
agglo_status agglo_stop_check(agglo_err *err);

#ifdef __cplusplus
}
#endif
#endif
