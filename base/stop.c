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

/* The handler has a stack of its own, and only the thread that has this stack takes signals: oneDNN's generated matrix products use the
 * stack pointer to address their workspace, and a signal's frame there (kilobytes of vector registers) would overwrite the heap. */
void agglo_stop_install(void)
{
    static char stack[1 << 16];
    const stack_t own = {.ss_sp = stack, .ss_size = sizeof stack};
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART | SA_ONSTACK};

    AGGLO_ASSERT(sigaltstack(&own, NULL) == 0);
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

void agglo_stop_block_signals(void)
{
    sigset_t both;

    sigemptyset(&both);
    sigaddset(&both, SIGINT);
    sigaddset(&both, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &both, NULL);
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
