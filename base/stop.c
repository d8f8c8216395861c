/* The stop flag; see stop.h. */
#include "base/stop.h"

#include <signal.h>
#include <stdatomic.h>
#include <unistd.h>

static atomic_int raised;

static void on_signal(int number)
{
    if (atomic_exchange(&raised, 1) != 0) {
        _exit(128 + number); /* asked twice: at once */
    }
}

void agglo_stop_install(void)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};

    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

void agglo_stop_raise(void)
{
    atomic_store(&raised, 1);
}

bool agglo_stop_raised(void)
{
    return atomic_load(&raised) != 0;
}

void agglo_stop_reset(void)
{
    atomic_store(&raised, 0);
}

agglo_status agglo_stop_check(agglo_err *err)
{
    return agglo_stop_raised() ? agglo_fail(err, AGGLO_E_STOPPED, "stopped by signal") : AGGLO_OK;
}
