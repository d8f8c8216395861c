/* Philox4x32-10: counter-based random numbers, the same on every machine, host and device.
 *
 * Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). A draw is a pure function of (key, counter):
 * no state to save, no order to keep. Who draws what is fixed by the counter layout that each user documents.
 */
#ifndef AGGLO_TENSOR_RNG_H
#define AGGLO_TENSOR_RNG_H

#include <stdint.h>

#ifdef __CUDACC__
#define AGGLO_HD __host__ __device__
#else
#define AGGLO_HD
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct agglo_philox {
    uint32_t v[4];
} agglo_philox;

/* Ten rounds over counter c0..c3 with a 64-bit key. */
static AGGLO_HD inline agglo_philox agglo_philox4x32(uint64_t key, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3)
{
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    agglo_philox out;

    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0;
        uint64_t p1 = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        uint32_t n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;

        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out.v[0] = c0;
    out.v[1] = c1;
    out.v[2] = c2;
    out.v[3] = c3;
    return out;
}

/* Uniform in [0, 1): exact multiples of 2^-32. */
static AGGLO_HD inline double agglo_uniform01(uint32_t bits)
{
    return (double)bits * 0x1p-32;
}

/* Uniform integer in [0, n), n >= 1: bias below n * 2^-32. */
static AGGLO_HD inline uint32_t agglo_uniform_int(uint32_t bits, uint32_t n)
{
    return (uint32_t)(((uint64_t)bits * n) >> 32);
}

#ifdef __cplusplus
}
#endif
#endif
