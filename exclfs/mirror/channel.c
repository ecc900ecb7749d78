/*
 * The channel: /dev/fuse, the workers that read from it, and replies.
 *
 * Workers are plain threads without a Python state: no request waits for the interpreter. A worker reads a request when
 * it is its turn (leader.c), serves it to the end or hands it to the policy, and reads the next. The mount has ended when
 * read() says ENODEV, or gives nothing. start() returns when every thread is able to serve: one that cannot is an error
 * there, and never a mount whose first request waits for ever.
 */
#include "mirror.h"

#include <signal.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mount.h>
#include <sys/uio.h>

int channel_mount(const char *mountpoint, const char *source, const char *type, unsigned long flags,
                  const char *data) {
    return mount(source, mountpoint, type, flags, data) ? -errno : 0;
}

/* ---- replies -------------------------------------------------------------------------------------------- */

/* Interrupted, a reply is sent again: only the wake-up signal of the end is no reason to. */
static bool once_more(const struct mirror *mirror) {
    return (errno == EINTR || errno == EAGAIN) && !atomic_load(&mirror->ended);
}

/* The kernel pins the pages that it copies from, each part of a packet for itself: a small reply is one part. */
static ssize_t send_packet(int device, const struct fuse_out_header *header, const void *body, size_t size) {
    enum { SMALL = 1024 };
    _Alignas(SMALL) char packet[SMALL]; /* within one page */
    if (size <= SMALL - sizeof *header) {
        memcpy(packet, header, sizeof *header);
        if (size > 0) memcpy(packet + sizeof *header, body, size);
        return write(device, packet, sizeof *header + size);
    }
    struct iovec parts[2] = {{(void *)(uintptr_t)header, sizeof *header}, {(void *)(uintptr_t)body, size}};
    return writev(device, parts, 2);
}

int reply(struct worker *worker, uint64_t unique, const void *body, size_t size) {
    if (worker->sighting != NULL && gates_withhold(worker, 0, body, size)) return 0;
    struct fuse_out_header header = {.len = (uint32_t)(sizeof header + size), .error = 0, .unique = unique};
    for (;;) {
        if (send_packet(worker->mirror->device, &header, body, size) >= 0) return 0;
        if (!once_more(worker->mirror)) return -errno; /* ENOENT: the request was aborted meanwhile */
    }
}

void reply_error(struct worker *worker, uint64_t unique, int error) {
    if (worker->sighting != NULL && gates_withhold(worker, error, NULL, 0)) return;
    struct fuse_out_header header = {.len = sizeof header, .error = -error, .unique = unique};
    while (write(worker->mirror->device, &header, sizeof header) < 0 && once_more(worker->mirror)) {}
}

/* ---- negotiation ---------------------------------------------------------------------------------------- */

void negotiate(struct worker *worker, const struct request *request) {
    struct mirror *mirror = worker->mirror;
    const struct fuse_init_in *in = request->argument;
    if (in->major != FUSE_KERNEL_VERSION || in->minor < EXCLFS_FUSE_MINOR_LEAST ||
        request->header->len < sizeof *request->header + sizeof *in) {
        reply_error(worker, request->header->unique, EPROTO);
        return;
    }
    uint64_t offered = in->flags | (in->flags & FUSE_INIT_EXT ? (uint64_t)in->flags2 << 32 : 0);
    uint64_t wanted = FUSE_ASYNC_READ | FUSE_ATOMIC_O_TRUNC | FUSE_EXPORT_SUPPORT | FUSE_BIG_WRITES | FUSE_DONT_MASK |
                      FUSE_AUTO_INVAL_DATA | FUSE_DO_READDIRPLUS | FUSE_READDIRPLUS_AUTO | FUSE_ASYNC_DIO |
                      FUSE_PARALLEL_DIROPS | FUSE_POSIX_ACL | FUSE_MAX_PAGES | FUSE_CACHE_SYMLINKS |
                      FUSE_HANDLE_KILLPRIV_V2 | FUSE_SETXATTR_EXT | FUSE_INIT_EXT | EXCLFS_DIRECT_IO_ALLOW_MMAP;
    if (atomic_load(&mirror->passthrough)) wanted |= EXCLFS_PASSTHROUGH;
    uint16_t background = 64;
    if (mirror->settings.hold_open != OPEN_FILES_OFF) {
        /* A release that waits for its turn in the background is not read before a removal that comes after it. */
        background = UINT16_MAX;
        /* Nor is one that waits for what is read ahead, which keeps a file open after it was closed. */
        wanted &= ~(uint64_t)FUSE_ASYNC_READ;
    }
    uint64_t taken = offered & wanted;
    if (!(taken & EXCLFS_PASSTHROUGH)) atomic_store(&mirror->passthrough, false);

    struct exclfs_init_out out = {
        .major = FUSE_KERNEL_VERSION,
        .minor = EXCLFS_FUSE_MINOR,
        .max_readahead = in->max_readahead,
        .flags = (uint32_t)taken,
        .flags2 = (uint32_t)(taken >> 32),
        .max_background = background,
        .congestion_threshold = (uint16_t)(background / 4 * 3),
        .max_write = BODY_MAX,
        .max_pages = BODY_MAX / 4096,
        .time_gran = 1,
        .max_stack_depth = taken & EXCLFS_PASSTHROUGH ? 1 : 0,
    };
    reply(worker, request->header->unique, &out, sizeof out);
}

/* What the kernel keeps of the inode's attributes is not true any more. It may have forgotten the inode: no matter. */
void tell_attributes_changed(struct mirror *mirror, uint64_t nodeid) {
    struct {
        struct fuse_out_header header;
        struct fuse_notify_inval_inode_out inode;
    } told = {
        .header = {.len = sizeof told, .error = FUSE_NOTIFY_INVAL_INODE},
        .inode = {.ino = nodeid, .off = -1}, /* of its pages nothing */
    };
    if (write(mirror->device, &told, sizeof told) < 0) return;
}

/* ---- workers -------------------------------------------------------------------------------------------- */

int worker_begin(struct worker *worker, struct mirror *mirror) {
    *worker = (struct worker){.mirror = mirror};
    worker->in = malloc(MESSAGE_MAX);
    worker->out = malloc(MESSAGE_MAX);
    worker->slot = atomic_fetch_add(&mirror->tree.threads, 1) % SLOTS;
    bool made = worker->in != NULL && worker->out != NULL;
    int error = made ? requester_begin(worker) : -ENOMEM;
    if (error) {
        worker_end(worker);
        atomic_store(&mirror->begin_error, error);
    }
    sem_post(&mirror->begun);
    return error;
}

void worker_end(struct worker *worker) {
    free(worker->in);
    free(worker->out);
}

/* ENODEV: unmounted. ECONNABORTED: aborted through /sys/fs/fuse. EPERM: it never was a mount. */
static bool is_the_end(int error) {
    return error == ENODEV || error == ECONNABORTED || error == EPERM || error == EBADF;
}

static void loop(struct worker *worker) {
    struct mirror *mirror = worker->mirror;
    while (!atomic_load_explicit(&mirror->ended, memory_order_relaxed)) {
        ssize_t size = leader_read(worker);
        if (size == 0 || (size < 0 && is_the_end(errno))) break;
        if (size < 0) continue; /* EINTR; ENOENT: the request was taken back */
        struct request request;
        int error = request_parse(worker->in, (size_t)size, &request);
        if (!error) serve(worker, &request);
        else if ((size_t)size >= sizeof(struct fuse_in_header))
            reply_error(worker, ((const struct fuse_in_header *)worker->in)->unique, error);
        leader_served(worker);
    }
    leader_leaves(worker);
}

static void *work(void *argument) {
    struct mirror *mirror = argument;
    struct worker worker;
    if (worker_begin(&worker, mirror) == 0) {
        loop(&worker);
        worker_end(&worker);
    }
    if (atomic_fetch_sub(&mirror->workers_left, 1) == 1) {
        uint64_t one = 1;
        if (write(mirror->finished, &one, sizeof one) < 0 && errno != EAGAIN) abort();
    }
    return NULL;
}

static void interrupt(int signal) { (void)signal; }

/* One that does not queue: a worker that cannot be woken must not use up what signals the user may have pending. It is
 * ignored by default, and Python does not use it. */
static int wake_signal(void) { return SIGURG; }

static int add_worker(struct mirror *mirror) {
    int error = -pthread_create(&mirror->threads[atomic_load(&mirror->workers)], NULL, work, mirror);
    if (!error) atomic_fetch_add(&mirror->workers, 1);
    return error;
}

void channel_replace(struct mirror *mirror) {
    pthread_mutex_lock(&mirror->replacing);
    unsigned workers = atomic_load(&mirror->workers);
    bool wanted = mirror->started && atomic_load(&mirror->away) >= workers && workers < MOST_WORKERS;
    if (wanted && !atomic_load(&mirror->ended)) {
        atomic_fetch_add(&mirror->workers_left, 1);
        if (add_worker(mirror)) atomic_fetch_sub(&mirror->workers_left, 1); /* not the last: we are one */
    }
    pthread_mutex_unlock(&mirror->replacing);
}

int channel_start(struct mirror *mirror) {
    if (mirror->started) return -EALREADY;
    mirror->started = true;
    int flags = fcntl(mirror->device, F_GETFL);
    if (flags < 0 || fcntl(mirror->device, F_SETFL, flags | O_NONBLOCK)) return -errno; /* read in leader.c */
    struct sigaction quiet = {.sa_handler = interrupt}; /* without SA_RESTART: read() returns */
    if (sigaction(wake_signal(), &quiet, NULL)) return -errno;
    sigset_t all, before;
    sigfillset(&all);
    sigdelset(&all, wake_signal());
    int error = pthread_sigmask(SIG_SETMASK, &all, &before); /* inherited: other signals are the policy's */
    if (error) return -error;
    error = questions_start(mirror);
    if (!error) error = gates_start(mirror);
    unsigned wanted = mirror->settings.threads < MOST_WORKERS ? mirror->settings.threads : MOST_WORKERS;
    atomic_store(&mirror->workers_left, wanted);
    while (!error && atomic_load(&mirror->workers) < wanted) error = add_worker(mirror);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    unsigned beginning = mirror->workers + (mirror->questions.running ? 1 : 0) + (mirror->gates.running ? 1 : 0);
    while (beginning > 0)
        if (sem_wait(&mirror->begun) == 0) beginning--;
    return error ? error : atomic_load(&mirror->begin_error);
}

/* Ends the workers wherever they are. The mount should be gone; if it is not, its users get ENOTCONN when the
 * device is closed. */
void channel_stop(struct mirror *mirror) {
    pthread_mutex_lock(&mirror->replacing);
    atomic_store(&mirror->ended, true); /* from here on there is no other worker */
    pthread_mutex_unlock(&mirror->replacing);
    leader_end(mirror);
    uint64_t wait = 5000000; /* ns */
    for (unsigned i = 0; i < mirror->workers; i++) {
        struct timespec until;
        do {
            for (unsigned j = i; j < mirror->workers; j++) pthread_kill(mirror->threads[j], wake_signal());
            clock_gettime(CLOCK_REALTIME, &until);
            uint64_t nanoseconds = (uint64_t)until.tv_nsec + wait;
            until.tv_sec += (time_t)(nanoseconds / 1000000000);
            until.tv_nsec = (long)(nanoseconds % 1000000000);
            /* Seldom, if the kernel does not let one go. */
            if (wait < 10000000000) wait += wait / 4;
        } while (pthread_timedjoin_np(mirror->threads[i], NULL, &until) == ETIMEDOUT);
    }
    atomic_store(&mirror->workers, 0);
}
