/*
 * Idle: what processors do that have nothing to do, while requests come one after the other.
 *
 * A client sleeps until it is answered. If its processor has halted meanwhile, waking it is an interrupt, and in a virtual
 * machine several exits to the host: there that may take longer than all else that a request is. A processor that polls is
 * woken by a write to memory. So while one request follows the other the kernel is told that no processor may take any
 * time to wake (Documentation/power/pm_qos_interface.rst, /dev/cpu_dma_latency), and once nothing has been asked for a
 * moment that it does not matter; it thinks so by itself as soon as the descriptor is closed, however the server ends.
 *
 * That costs all processors of the machine what they would have saved by halting. Where it is worth that is not decided
 * here (exclfs/host/idle.py): without the descriptor nothing happens.
 *
 * Only the leader comes here, so nothing needs a lock.
 */
#include "mirror.h"

enum { SOON = 200000 /* ns */, ENOUGH = 4 /* requests */, MOMENT = 5 /* ms */ };
enum { NO_TIME = 0, ANY_TIME = 2000000000 /* PM_QOS_CPU_LATENCY_DEFAULT_VALUE */ };

static void allow(struct mirror *mirror, int32_t microseconds) {
    struct idle *idle = &mirror->idle;
    idle->polls = microseconds == NO_TIME;
    idle->in_a_row = 0;
    /* It is refused where the machine has no such thing: then processors halt as ever. */
    if (write(mirror->settings.cpu_latency, &microseconds, sizeof microseconds) < 0) idle->polls = false;
}

/* Not as soon as a request has come, for to tell the kernel wakes all that have halted: whoever waits for the answer to
 * the one before has been woken by it. */
void idle_begins(struct mirror *mirror) {
    if (mirror->idle.in_a_row >= ENOUGH) allow(mirror, NO_TIME);
}

void idle_ends(struct mirror *mirror, uint64_t waited) {
    struct idle *idle = &mirror->idle;
    if (mirror->settings.cpu_latency < 0 || idle->polls) return;
    idle->in_a_row = waited < SOON ? idle->in_a_row + 1 : 0;
}

void idle_halts(struct mirror *mirror) {
    mirror->idle.in_a_row = 0;
    if (mirror->idle.polls) allow(mirror, ANY_TIME);
}

int idle_moment(const struct mirror *mirror) { return mirror->idle.polls ? MOMENT : -1; }
