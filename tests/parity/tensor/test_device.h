/* Which device a parity program runs on. */
#ifndef AGGLO_TESTS_PARITY_TENSOR_TEST_DEVICE_H
#define AGGLO_TESTS_PARITY_TENSOR_TEST_DEVICE_H

#include "tensor/backend.h"
#include "tests/support/support.h"

/* The device that AGGLO_TEST_DEVICE in the environment names, "cpu" where it is not set. From main alone: ends the program with status
 * 77 and the reason where this build or machine has no such device. */
static inline const char *test_device(void)
{
    const char *device = getenv("AGGLO_TEST_DEVICE");
    agglo_backend *be;
    agglo_err err = {0};
    char line[1024];

    if (device == NULL) {
        return "cpu";
    }
    if (agglo_backend_open(&be, device, 1, &err) != AGGLO_OK) {
        agglo_err_line(&err, line, sizeof line);
        if (err.status == AGGLO_E_CONFIG) { /* not built in, or not in this machine */
            test_skip_all(line);
        }
        fprintf(stderr, "%s\n", line);
        exit(1);
    }
    printf("%s\n", agglo_backend_describe(be));
    agglo_backend_free(be);
    return device;
}

#endif
