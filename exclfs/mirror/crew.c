/*
 * The crew: which worker reads next.
 *
 * The kernel wakes the readers of /dev/fuse in turn, so several idle readers would hand each request of a single
 * client to another, colder thread. Here one worker at a time waits in read(): it serves what it has read and reads
 * again, while the others are asleep. It calls one of them only when there is more to do than it does: requests were
 * waiting when it took its own, or its own is of a kind that may take long. For what takes long unexpectedly (a cold
 * disk) there is the watch: one of those asleep looks, every few milliseconds while requests come, whether anybody
 * reads; if nobody has since its last look, it does. So no request waits for another's disk for longer than that.
 */
#include "mirror.h"

#include <poll.h>

enum { LOOK_NS = 2000000, LOOKS_UNTIL_SLEEP = 16 };

int crew_init(struct mirror *mirror) {
    struct crew *crew = &mirror->crew;
    int error = pthread_mutex_init(&crew->lock, NULL);
    pthread_condattr_t monotonic;
    if (!error) error = pthread_condattr_init(&monotonic);
    if (!error) error = pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    if (!error) error = pthread_cond_init(&crew->called, NULL);
    if (!error) error = pthread_cond_init(&crew->look, &monotonic);
    pthread_condattr_destroy(&monotonic);
    return -error;
}

void crew_destroy(struct mirror *mirror) {
    pthread_mutex_destroy(&mirror->crew.lock);
    pthread_cond_destroy(&mirror->crew.called);
    pthread_cond_destroy(&mirror->crew.look);
}

static void call_one(struct crew *crew) {
    pthread_mutex_lock(&crew->lock);
    if (crew->asleep > 0) {
        crew->calls++;
        pthread_cond_signal(&crew->called);
    } else if (crew->watching) {
        crew->calls++;
        pthread_cond_signal(&crew->look);
    }
    pthread_mutex_unlock(&crew->lock);
}

static bool answer_call(struct crew *crew) {
    if (crew->calls == 0) return false;
    crew->calls--;
    return true;
}

/* The watch, under the lock: returns when this worker is to read. */
static void watch(struct mirror *mirror) {
    struct crew *crew = &mirror->crew;
    unsigned long seen = atomic_load(&crew->taken);
    unsigned quiet = 0;
    crew->watching = true;
    while (!answer_call(crew) && !atomic_load(&mirror->ended)) {
        if (quiet >= LOOKS_UNTIL_SLEEP) {
            atomic_store(&crew->watch_sleeps, true);
            if (atomic_load(&crew->taken) == seen) pthread_cond_wait(&crew->look, &crew->lock);
            atomic_store(&crew->watch_sleeps, false);
            quiet = 0;
        } else {
            struct timespec until;
            clock_gettime(CLOCK_MONOTONIC, &until);
            until.tv_nsec += LOOK_NS;
            if (until.tv_nsec >= 1000000000) {
                until.tv_sec++;
                until.tv_nsec -= 1000000000;
            }
            pthread_cond_timedwait(&crew->look, &crew->lock, &until);
        }
        unsigned long taken = atomic_load(&crew->taken);
        if (taken != seen) quiet = 0;
        else if (atomic_load(&crew->readers) == 0) break;
        else quiet++;
        seen = taken;
    }
    crew->watching = false;
}

/* Waits until it is this worker's turn to read. */
static void wait_for_turn(struct mirror *mirror) {
    struct crew *crew = &mirror->crew;
    unsigned none = 0;
    if (atomic_compare_exchange_strong(&crew->readers, &none, 1)) return;
    pthread_mutex_lock(&crew->lock);
    if (!crew->watching) watch(mirror);
    else {
        crew->asleep++;
        while (!answer_call(crew) && !atomic_load(&mirror->ended)) pthread_cond_wait(&crew->called, &crew->lock);
        crew->asleep--;
    }
    pthread_mutex_unlock(&crew->lock);
    atomic_fetch_add(&crew->readers, 1);
}

static bool may_take_long(uint32_t opcode) {
    switch (opcode) {
    case FUSE_READ:
    case FUSE_WRITE:
    case FUSE_FSYNC:
    case FUSE_FSYNCDIR:
    case FUSE_FALLOCATE:
    case FUSE_COPY_FILE_RANGE:
        return true;
    default:
        return false;
    }
}

ssize_t crew_read(struct worker *worker) {
    struct mirror *mirror = worker->mirror;
    struct crew *crew = &mirror->crew;
    wait_for_turn(mirror);
    ssize_t size = atomic_load(&mirror->ended) ? 0 : read(mirror->device, worker->in, MESSAGE_MAX);
    int error = errno;
    atomic_fetch_add(&crew->taken, 1);
    if (atomic_fetch_sub(&crew->readers, 1) == 1 && size > 0) {
        struct pollfd more = {.fd = mirror->device, .events = POLLIN};
        if (may_take_long(((const struct fuse_in_header *)worker->in)->opcode) || poll(&more, 1, 0) > 0) call_one(crew);
        else if (atomic_load(&crew->watch_sleeps)) {
            pthread_mutex_lock(&crew->lock);
            pthread_cond_signal(&crew->look);
            pthread_mutex_unlock(&crew->lock);
        }
    }
    errno = error;
    return size;
}

void crew_dismiss(struct mirror *mirror) {
    pthread_mutex_lock(&mirror->crew.lock);
    pthread_cond_broadcast(&mirror->crew.called);
    pthread_cond_broadcast(&mirror->crew.look);
    pthread_mutex_unlock(&mirror->crew.lock);
}
