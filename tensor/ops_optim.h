/* The optimiser: AdamW, the gradient's norm, clipping and weight averages over many tensors at once. Included by ops.h.
 *
 * An agglo_optim is a list of parameters with their gradients and state, cut into chunks of AGGLO_OPTIM_CHUNK elements by shape alone;
 * its tables lie on the device, so that each pass is one launch over all tensors, and no pass allocates. What one step of training calls:
 *
 *     agglo_grad_norm(optim)                     norm and health of the whole gradient, left on the device
 *     agglo_adamw_many(optim, config)            clipped by that norm and skipped by that health, without a round trip
 *     agglo_ema(optim, decay)                    where weights are averaged
 *     agglo_grad_state_read(optim, &state)       whenever the host wants to know
 *
 * Where steps are recorded (tensor/async.h), or issued before the outcome of the last one is known:
 *
 *     agglo_grad_norm(optim)
 *     agglo_grad_hold(optim, loss sums)          nothing is updated from the first bad gradient or loss on
 *     agglo_adamw_many_at(optim, numbers)        the step's numbers are on the device; agglo_adamw_numbers_of makes them
 *     agglo_grad_state_fetch(optim, ...)         outside the recording
 */
#ifndef AGGLO_TENSOR_OPS_OPTIM_H
#define AGGLO_TENSOR_OPS_OPTIM_H

#include "tensor/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

#define AGGLO_OPTIM_CHUNK 16384

/* One AdamW step (decoupled decay; Loshchilov and Hutter, ICLR 2019), step counted from 1:
 *   p -= lr wd p;  m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2;  p -= lr (m / (1-b1^t)) / (sqrt(v / (1-b2^t)) + eps)
 * g is multiplied by grad_scale first. */
typedef struct agglo_adamw_config {
    float lr, beta1, beta2, eps, weight_decay, grad_scale;
    int64_t step;
} agglo_adamw_config;

/* Over one tensor. */
void agglo_adamw(agglo_backend *be, const agglo_adamw_config *config, agglo_tensor *p, const agglo_tensor *g,
                 agglo_tensor *m, agglo_tensor *v);

/* One parameter of a list. All have as many elements as p; p, g, m, v and average F32, copy BF16. */
typedef struct agglo_optim_entry {
    agglo_tensor p, g, m, v;
    agglo_tensor copy;    /* p rounded to BF16 by every update; data NULL: none */
    agglo_tensor average; /* of p over steps, agglo_ema; data NULL: none */
    float weight_decay;
} agglo_optim_entry;

typedef struct agglo_optim agglo_optim;

/* Tensors are borrowed for the list's life, `entries` only for the call. n >= 1. Copies and averages are not written yet: the first
 * update writes copies; averages start as what the caller puts there (agglo_copy of p). AGGLO_E_MEMORY, AGGLO_E_DEVICE. */
agglo_status agglo_optim_new(agglo_optim **out, agglo_backend *be, const agglo_optim_entry *entries, size_t n,
                             agglo_err *err);
void agglo_optim_free(agglo_optim *optim); /* NULL is fine */

/* Of the last agglo_grad_norm. */
typedef struct agglo_grad_state {
    double norm;       /* L2, of all gradients; not finite where first_bad >= 0 */
    int64_t first_bad; /* the first entry whose sum of squares is not finite, -1: none; see agglo_grad_hold as well */
} agglo_grad_state;

/* Sums of squares: within 1,024 elements (CPU) or a thread's 64 (CUDA) in F32, over chunks, tensors and the list in double, in fixed
 * order. A gradient whose squares overflow F32 counts as not finite. */
void agglo_grad_norm(agglo_backend *be, agglo_optim *optim);

/* Waits. Read after a failure that is latched, the state is that of no gradient. */
void agglo_grad_state_read(agglo_backend *be, const agglo_optim *optim, agglo_grad_state *out);

/* The same behind the operators issued so far, without waiting: *out is pinned memory (agglo_pinned_alloc) and holds the state when `done`
 * is done. */
struct agglo_event;
void agglo_grad_state_fetch(agglo_backend *be, const agglo_optim *optim, agglo_grad_state *out,
                            struct agglo_event *done);

/* After agglo_grad_norm: where the gradient is not finite, or one of values [n] F32 is not (then first_bad becomes the number of entries),
 * that is held: first_bad stays, and guarded updates do nothing, in this step and all that follow, until agglo_grad_release. So a step may
 * be issued before the host has seen that the one before it failed. */
void agglo_grad_hold(agglo_backend *be, const agglo_tensor *values, agglo_optim *optim);
void agglo_grad_release(agglo_backend *be, agglo_optim *optim);

/* AdamW over the list: weight decay is the entries' (the config's is not looked at). With `guarded`, the last agglo_grad_norm decides,
 * on the device: nothing changes at all where that gradient was not finite, and with max_norm > 0 gradients are multiplied by
 * min(1, max_norm / (|grad_scale| norm)) on top of grad_scale. max_norm without `guarded` is an error of the program. */
void agglo_adamw_many(agglo_backend *be, const agglo_adamw_config *config, float max_norm, bool guarded,
                      agglo_optim *optim);

/* A step's numbers as the device takes them: AGGLO_ADAMW_NUMBERS floats, worked out in double. */
#define AGGLO_ADAMW_NUMBERS 8
typedef struct agglo_adamw_numbers {
    float lr, beta1, beta2, eps, grad_scale, max_norm;
    float size, inverse; /* lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t) */
} agglo_adamw_numbers;

agglo_adamw_numbers agglo_adamw_numbers_of(const agglo_adamw_config *config, float max_norm);

/* agglo_adamw_many, bit for bit, with the numbers in device memory: F32 [AGGLO_ADAMW_NUMBERS]. */
void agglo_adamw_many_at(agglo_backend *be, const agglo_tensor *numbers, bool guarded, agglo_optim *optim);

/* average = decay average + (1 - decay) p, for every entry that has one. */
void agglo_ema(agglo_backend *be, float decay, agglo_optim *optim);

#ifdef __cplusplus
}
#endif
#endif
