/*
 * The leader: of all workers, the one that reads the next request (the leader/followers pattern).
 *
 * To wake a thread on another processor takes longer than to serve most requests. So whoever has read a request serves it
 * and then reads the next, while the followers sleep; and before the leader sleeps it asks for a moment whether there is
 * something to read, for as long as that has proved worthwhile. One client is served by one thread that hardly sleeps.
 *
 * While the leader serves, a follower takes its place
 *   - at once, if the request is one that takes long (fsync); or if another waits, and fewer workers are at work than half
 *     of the processors (the other half is the clients'), or the backing filesystem has lately kept a worker waiting;
 *   - else after a tick or two, whatever keeps the leader: a disk, another server, a lock. One follower looks every tick,
 *     and stops when nothing has been read for a while. It looks seldom: whoever is put aside for that is late.
 *
 * Only the leader reads, so what it does to a request before it serves is done before anybody reads the next: that is
 * where the release of a file that counts is counted (opens.c).
 */
#include "mirror.h"

#include <poll.h>
#include <sched.h>
#include <sys/resource.h>

enum { SERVES = 1 }; /* beside the address of the worker that leads */
enum { MICROSECOND = 1000, TICK = 5000 * MICROSECOND, MOST_PATIENCE = 30 * MICROSECOND, SLOW = 100 * MICROSECOND };
enum { QUIET_TICKS = 20, REMEMBERED_REQUESTS = 64 };

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static unsigned processors(void) {
    cpu_set_t ours;
    return sched_getaffinity(0, sizeof ours, &ours) ? 1024 : (unsigned)CPU_COUNT(&ours); /* EINVAL: more than fit in */
}

int leader_init(struct mirror *mirror) {
    struct leader *leader = &mirror->leader;
    leader->enough = processors() / 2;
    leader->most_patience = processors() > 1 ? MOST_PATIENCE : 0;
    pthread_condattr_t monotonic;
    int error = pthread_condattr_init(&monotonic);
    if (error) return -error;
    error = pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    if (!error) error = pthread_mutex_init(&leader->lock, NULL);
    if (!error) error = pthread_cond_init(&leader->vacant, NULL);
    if (!error) error = pthread_cond_init(&leader->tick, &monotonic);
    pthread_condattr_destroy(&monotonic);
    return -error;
}

void leader_destroy(struct mirror *mirror) {
    pthread_cond_destroy(&mirror->leader.tick);
    pthread_cond_destroy(&mirror->leader.vacant);
    pthread_mutex_destroy(&mirror->leader.lock);
}

/* ---- who it is -------------------------------------------------------------------------------------------- */

static bool replace(struct leader *leader, uintptr_t from, uintptr_t to) {
    return atomic_compare_exchange_strong(&leader->is, &from, to);
}

/* There is none, or it may be one no longer: a follower is woken, the watcher if there is no other. */
static void wake_one(struct leader *leader) {
    pthread_mutex_lock(&leader->lock);
    pthread_cond_signal(leader->followers > 0 ? &leader->vacant : &leader->tick);
    pthread_mutex_unlock(&leader->lock);
}

static void wake_watcher(struct leader *leader) {
    pthread_mutex_lock(&leader->lock);
    atomic_store(&leader->watcher_asleep, false);
    pthread_cond_signal(&leader->tick);
    pthread_mutex_unlock(&leader->lock);
}

/* Sleeps until something is served again. Whoever begins to serve looks whether the watcher is asleep, after it has said
 * that it serves; the watcher looks whether somebody serves, after it has said that it is asleep. */
static void sleep_well(struct mirror *mirror) {
    struct leader *leader = &mirror->leader;
    atomic_store(&leader->watcher_asleep, true);
    uintptr_t at;
    while (atomic_load(&leader->watcher_asleep) && !atomic_load(&mirror->ended) && (at = atomic_load(&leader->is)) != 0 &&
           !(at & SERVES))
        pthread_cond_wait(&leader->tick, &leader->lock);
    atomic_store(&leader->watcher_asleep, false);
}

static void sleep_for_a_tick(struct leader *leader) {
    uint64_t end = now() + TICK;
    struct timespec until = {.tv_sec = (time_t)(end / 1000000000), .tv_nsec = (long)(end % 1000000000)};
    pthread_cond_timedwait(&leader->tick, &leader->lock, &until);
}

/* Watches the leader until this worker is one. The lock is held. */
static void watch(struct worker *worker) {
    struct mirror *mirror = worker->mirror;
    struct leader *leader = &mirror->leader;
    unsigned long before = atomic_load(&leader->served);
    leader->watched = true;
    for (unsigned quiet = 0; !atomic_load(&mirror->ended) && !replace(leader, 0, (uintptr_t)worker);) {
        if (quiet < QUIET_TICKS) sleep_for_a_tick(leader);
        else sleep_well(mirror);
        uintptr_t at = atomic_load(&leader->is);
        unsigned long served = atomic_load(&leader->served);
        bool unchanged = served == before;
        if (unchanged && at & SERVES && replace(leader, at, (uintptr_t)worker)) break;
        quiet = unchanged && !(at & SERVES) && quiet < QUIET_TICKS ? quiet + 1 : 0;
        before = served;
    }
    leader->watched = false;
    if (leader->followers > 0) pthread_cond_signal(&leader->vacant); /* to watch in its place */
}

/* Follows until this worker leads, or the mount has ended. */
static void lead(struct worker *worker) {
    struct mirror *mirror = worker->mirror;
    struct leader *leader = &mirror->leader;
    uintptr_t own = (uintptr_t)worker;
    if (atomic_load(&leader->is) == own || replace(leader, own | SERVES, own)) return;
    pthread_mutex_lock(&leader->lock);
    while (atomic_load(&leader->is) != own && !replace(leader, 0, own) && !atomic_load(&mirror->ended)) {
        if (!leader->watched) watch(worker);
        else {
            leader->followers++;
            pthread_cond_wait(&leader->vacant, &leader->lock);
            leader->followers--;
        }
    }
    pthread_mutex_unlock(&leader->lock);
}

void leader_leaves(struct worker *worker) {
    struct leader *leader = &worker->mirror->leader;
    uintptr_t own = (uintptr_t)worker;
    if (replace(leader, own, 0) || replace(leader, own | SERVES, 0)) wake_one(leader);
}

void leader_relieve(struct mirror *mirror) {
    uintptr_t at = atomic_load(&mirror->leader.is);
    if (at & SERVES && replace(&mirror->leader, at, 0)) wake_one(&mirror->leader);
}

void leader_end(struct mirror *mirror) {
    pthread_mutex_lock(&mirror->leader.lock);
    pthread_cond_broadcast(&mirror->leader.vacant);
    pthread_cond_broadcast(&mirror->leader.tick);
    pthread_mutex_unlock(&mirror->leader.lock);
}

/* ---- reading ---------------------------------------------------------------------------------------------- */

static int wait_for_something(const struct mirror *mirror, int milliseconds) {
    struct pollfd device = {.fd = mirror->device, .events = POLLIN};
    return poll(&device, 1, milliseconds);
}

/* Asks, for as long as patience lasts, before it sleeps. Patience is renewed by a request that comes soon, and halved by
 * one that does not. The device is O_NONBLOCK (channel_start). */
static ssize_t read_patiently(struct worker *worker) {
    struct mirror *mirror = worker->mirror;
    struct leader *leader = &mirror->leader;
    idle_begins(mirror);
    uint64_t began = now(), at = began;
    ssize_t size;
    while ((size = read(mirror->device, worker->in, MESSAGE_MAX)) < 0 && errno == EAGAIN) {
        if (at - began < leader->patience) at = now();
        else {
            int came = wait_for_something(mirror, idle_moment(mirror));
            if (came < 0) return -1;
            if (came == 0) idle_halts(mirror);
        }
    }
    worker->began = now();
    uint64_t waited = worker->began - began;
    /* If this was the last, nobody is left to find out that nothing more is asked. */
    if (atomic_load(&leader->at_work) + 1 >= atomic_load(&mirror->workers)) idle_halts(mirror);
    else idle_ends(mirror, waited);
    if (waited < leader->most_patience) leader->patience = leader->most_patience;
    else leader->patience = leader->patience > MICROSECOND ? leader->patience / 2 : 0;
    return size;
}

/* A test build counts releases when they are served, and each request by another worker, to show that the tests see it
 * (tests/mount/test_hold_open.py). */
#ifdef EXCLFS_TEST_WITHOUT_READING
enum { COUNTS_AS_READ = false, HANDS_ON = true };
#else
enum { COUNTS_AS_READ = true, HANDS_ON = false };
#endif

static bool takes_long(uint32_t opcode) {
    return opcode == FUSE_FSYNC || opcode == FUSE_FSYNCDIR || opcode == FUSE_COPY_FILE_RANGE || opcode == FUSE_FALLOCATE;
}

static bool is_to_be_replaced(struct mirror *mirror, uint32_t opcode) {
    struct leader *leader = &mirror->leader;
    if (HANDS_ON || takes_long(opcode)) return true;
    bool slow = atomic_load_explicit(&leader->slow, memory_order_relaxed) > 0;
    unsigned with_us = atomic_load_explicit(&leader->at_work, memory_order_relaxed);
    return (slow || with_us < leader->enough) && wait_for_something(mirror, 0) != 0;
}

ssize_t leader_read(struct worker *worker) {
    struct mirror *mirror = worker->mirror;
    struct leader *leader = &mirror->leader;
    lead(worker);
    if (atomic_load(&mirror->ended)) return 0;
    ssize_t size = read_patiently(worker);
    if (size <= 0) return size;

    if (COUNTS_AS_READ) open_released(mirror, worker->in, (size_t)size);
    atomic_fetch_add(&leader->served, 1);
    atomic_fetch_add_explicit(&leader->at_work, 1, memory_order_relaxed);
    const struct fuse_in_header *header = (const struct fuse_in_header *)worker->in;
    if (is_to_be_replaced(mirror, (size_t)size < sizeof *header ? 0 : header->opcode)) leader_leaves(worker);
    else {
        atomic_store(&leader->is, (uintptr_t)worker | SERVES);
        if (atomic_load(&leader->watcher_asleep)) wake_watcher(leader);
    }
    return size;
}

/* Whether this thread was put aside, for somebody else to run, since that was asked last. */
static bool was_put_aside(struct worker *worker) {
    struct rusage used;
    if (getrusage(RUSAGE_THREAD, &used)) return false;
    long before = worker->put_aside;
    worker->put_aside = used.ru_nivcsw;
    return before != used.ru_nivcsw;
}

void leader_served(struct worker *worker) {
    struct leader *leader = &worker->mirror->leader;
    atomic_fetch_sub_explicit(&leader->at_work, 1, memory_order_relaxed);
    unsigned slow = atomic_load_explicit(&leader->slow, memory_order_relaxed);
    if (now() - worker->began > SLOW && !was_put_aside(worker)) slow = REMEMBERED_REQUESTS;
    else if (slow > 0) slow--;
    else return;
    atomic_store_explicit(&leader->slow, slow, memory_order_relaxed);
}
