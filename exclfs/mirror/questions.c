/*
 * Questions: requests that wait for a verdict of the policy.
 *
 * The policy is unmodified pyfuse3 at the other end of a socket pair, so a question is a FUSE request and the answer
 * a FUSE reply. Where FUSE names the parent's nodeid and a name, a question about a removal has what a decision
 * needs: the victim's nodeid, and as its name "PARENT/PATH", the parent's nodeid and the path below the root. The reply
 * is an errno, which goes to the kernel, or 0, which means PROCEED: then the request is served again, by the same code,
 * under this question. The xattrs of exclfs go up as they are, and their replies go back as they are.
 *
 * No worker waits here. A question carries the generation of every word that was tested and of the tree; if one has
 * changed when PROCEED arrives the policy is asked again, and for the last round the words are frozen. A question
 * that finds no answer in time is EBUSY: it fails closed. Once the policy has gone, every question is EBUSY at once. A
 * full channel makes questions wait, never workers.
 *
 * How long each verdict took, from the question being put to its answer being taken, is counted in buckets that are a
 * quarter of an octave wide: exclfs/mirror/latencies.py makes percentiles of them.
 */
#include "mirror.h"

#include <poll.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

static const uint64_t INIT_UNIQUE = UINT64_MAX;

int questions_init(struct mirror *mirror, int channel) {
    struct questions *questions = &mirror->questions;
    questions->channel = channel;
    questions->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (questions->wake < 0) return -errno;
    return -pthread_mutex_init(&questions->lock, NULL);
}

static void wake(struct questions *questions) {
    uint64_t one = 1;
    if (write(questions->wake, &one, sizeof one) < 0 && errno != EAGAIN) abort();
}

void questions_wake(struct mirror *mirror) { wake(&mirror->questions); }

static void question_free(struct mirror *mirror, struct question *question) {
    for (unsigned i = 0; i < TESTED_MAX; i++) {
        struct inode *inode = question->tested[i].inode;
        if (inode == NULL) continue;
        if (question->frozen) word_thaw(mirror, inode);
        inode_put(mirror, inode);
    }
    sighting_drop(question->sighting);
    free(question->packet);
    free(question);
}

/* Under the lock. False if the channel is full now. */
static bool send_up(struct questions *questions, struct question *question) {
    ssize_t sent = send(questions->channel, question->packet, question->packet_size, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0 && (errno == EAGAIN || errno == ENOBUFS || errno == EINTR)) return false;
    question->sent = true; /* an answer that cannot come any more becomes a timeout */
    free(question->packet);
    question->packet = NULL;
    return true;
}

static void ask(struct worker *worker, struct question *question) {
    struct mirror *mirror = worker->mirror;
    struct questions *questions = &mirror->questions;
    count(mirror, C_ASKED);
    question->sighting = worker->sighting;
    worker->sighting = NULL;
    clock_gettime(CLOCK_MONOTONIC, &question->asked);
    question->deadline = question->asked;
    double whole = (double)(time_t)mirror->settings.decision_timeout;
    question->deadline.tv_sec += (time_t)whole;
    question->deadline.tv_nsec += (long)((mirror->settings.decision_timeout - whole) * 1e9);
    if (question->deadline.tv_nsec >= 1000000000L) {
        question->deadline.tv_sec++;
        question->deadline.tv_nsec -= 1000000000L;
    }
    pthread_mutex_lock(&questions->lock);
    if (questions->last != NULL) questions->last->next = question;
    else questions->first = question;
    questions->last = question;
    bool first = questions->first == question;
    if (questions->unsent > 0 || !send_up(questions, question)) {
        questions->unsent++;
        first = true;
    }
    pthread_mutex_unlock(&questions->lock);
    if (first) wake(questions); /* the thread waits for the first deadline, or for room */
}

static struct question *question_new(const struct request *request, size_t packet_size) {
    size_t size = request->header->len;
    struct question *question = calloc(1, sizeof *question + size);
    if (question == NULL) return NULL;
    question->packet = calloc(1, packet_size);
    if (question->packet == NULL) {
        free(question);
        return NULL;
    }
    question->unique = request->header->unique;
    question->message_size = size;
    memcpy(question->message, request->header, size);
    question->packet_size = packet_size;
    struct fuse_in_header *header = (struct fuse_in_header *)question->packet;
    *header = *request->header;
    header->len = (uint32_t)packet_size;
    header->total_extlen = 0;
    return question;
}

/* The stripes of `tested` are shared by the caller. */
void ask_removal(struct worker *worker, const struct request *request, const struct tested tested[TESTED_MAX],
                 unsigned long tree, const char *path, const char *second_path) {
    bool rename = second_path != NULL;
    size_t fixed = rename ? sizeof(struct fuse_rename2_in) : 0;
    size_t names = strlen(path) + 1 + (rename ? strlen(second_path) + 1 : 0);
    struct question *question = question_new(request, sizeof(struct fuse_in_header) + fixed + names);
    if (question == NULL) {
        reply_error(worker, request->header->unique, ENOMEM);
        return;
    }
    char *at = question->packet + sizeof(struct fuse_in_header);
    struct fuse_in_header *header = (struct fuse_in_header *)question->packet;
    header->nodeid = tested[0].inode != NULL ? tested[0].inode->nodeid : 0;
    if (rename) {
        struct fuse_rename2_in *in = (struct fuse_rename2_in *)at;
        header->opcode = FUSE_RENAME2;
        in->newdir = tested[1].inode != NULL ? tested[1].inode->nodeid : 0;
        in->flags = request->header->opcode == FUSE_RENAME2
                        ? ((const struct fuse_rename2_in *)request->argument)->flags
                        : 0;
        at += fixed;
    }
    at = stpcpy(at, path) + 1;
    if (rename) strcpy(at, second_path);

    question->rounds = worker->verdict != NULL ? worker->verdict->rounds + 1 : 0;
    question->frozen = question->rounds >= ROUNDS;
    question->tree = tree;
    if (question->rounds > 0) count(worker->mirror, C_ASKED_AGAIN);
    for (unsigned i = 0; i < TESTED_MAX; i++) {
        question->tested[i] = tested[i];
        if (tested[i].inode == NULL) continue;
        inode_get(tested[i].inode);
        if (question->frozen) word_freeze(tested[i].inode);
    }
    ask(worker, question);
}

void ask_xattr(struct worker *worker, const struct request *request) {
    const struct fuse_in_header *in = request->header;
    size_t size = in->len;
    /* pyfuse3 speaks the older form of SETXATTR, whose fixed part ends after size and flags. */
    size_t dropped = in->opcode == FUSE_SETXATTR ? sizeof(struct fuse_setxattr_in) - FUSE_COMPAT_SETXATTR_IN_SIZE : 0;
    if (size > QUESTION_MAX) {
        reply_error(worker, in->unique, E2BIG);
        return;
    }
    struct question *question = question_new(request, size - dropped);
    if (question == NULL) {
        reply_error(worker, in->unique, ENOMEM);
        return;
    }
    size_t kept = sizeof *in + (dropped ? FUSE_COMPAT_SETXATTR_IN_SIZE : 0);
    memcpy(question->packet + sizeof *in, (const char *)in + sizeof *in, kept - sizeof *in);
    memcpy(question->packet + kept, (const char *)in + kept + dropped, size - kept - dropped);
    ask(worker, question);
}

/* ---- the thread that hears the answers ------------------------------------------------------------------ */

static struct question *take(struct questions *questions, uint64_t unique) {
    struct question *before = NULL;
    for (struct question *at = questions->first; at != NULL; before = at, at = at->next) {
        if (at->unique != unique) continue;
        if (before != NULL) before->next = at->next;
        else questions->first = at->next;
        if (questions->last == at) questions->last = before;
        if (!at->sent) questions->unsent--;
        return at;
    }
    return NULL;
}

/* Whoever waits for an answer has not ended, so its number is nobody else's yet. */
bool questions_await(struct mirror *mirror, uint32_t pid) {
    struct questions *questions = &mirror->questions;
    pthread_mutex_lock(&questions->lock);
    struct question *at = questions->first;
    while (at != NULL && ((const struct fuse_in_header *)at->message)->pid != pid) at = at->next;
    pthread_mutex_unlock(&questions->lock);
    return at != NULL;
}

static bool is_xattr(const struct question *question) {
    uint32_t opcode = ((const struct fuse_in_header *)question->message)->opcode;
    return opcode == FUSE_GETXATTR || opcode == FUSE_SETXATTR || opcode == FUSE_REMOVEXATTR;
}

static unsigned bucket_of(uint32_t microseconds) {
    if (microseconds < 4) return microseconds;
    unsigned octave = 31 - (unsigned)__builtin_clz(microseconds);
    return (octave - 1) << 2 | (microseconds >> (octave - 2) & 3);
}

static void note_latency(struct questions *questions, const struct timespec *asked) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    int64_t took = (now.tv_sec - asked->tv_sec) * 1000000LL + (now.tv_nsec - asked->tv_nsec) / 1000;
    unsigned bucket = bucket_of(took < 0 ? 0 : took > UINT32_MAX ? UINT32_MAX : (uint32_t)took);
    atomic_fetch_add_explicit(&questions->latencies[bucket], 1, memory_order_relaxed);
}

static void take_sighting(struct worker *worker, struct question *question) {
    worker->sighting = question->sighting;
    question->sighting = NULL;
}

static void answer(struct worker *worker, const char *packet, size_t size) {
    struct mirror *mirror = worker->mirror;
    const struct fuse_out_header *header = (const struct fuse_out_header *)packet;
    if (size < sizeof *header || header->len != size || header->unique == 0 || header->unique == INIT_UNIQUE) return;
    pthread_mutex_lock(&mirror->questions.lock);
    struct question *question = take(&mirror->questions, header->unique);
    pthread_mutex_unlock(&mirror->questions.lock);
    if (question == NULL) return; /* it timed out */
    take_sighting(worker, question);
    if (!is_xattr(question)) note_latency(&mirror->questions, &question->asked);

    /* The kernel takes no other errno, and would wait for ever. */
    if (header->error > 0 || header->error <= -512) reply_error(worker, question->unique, EIO);
    else if (header->error != 0) reply_error(worker, question->unique, -header->error);
    else if (is_xattr(question)) reply(worker, question->unique, header + 1, size - sizeof *header);
    else {
        struct request request;
        worker->verdict = question;
        if (request_parse(question->message, question->message_size, &request) == 0) serve(worker, &request);
        worker->verdict = NULL;
    }
    question_free(mirror, question);
}

static void send_waiting(struct questions *questions) {
    pthread_mutex_lock(&questions->lock);
    for (struct question *at = questions->first; at != NULL && questions->unsent > 0; at = at->next) {
        if (at->sent) continue;
        if (!send_up(questions, at)) break;
        questions->unsent--;
    }
    pthread_mutex_unlock(&questions->lock);
}

static long milliseconds_until(const struct timespec *deadline) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (deadline->tv_sec - now.tv_sec) * 1000 + (deadline->tv_nsec - now.tv_nsec) / 1000000;
}

/* Answers what is overdue, which is everything if the policy has gone; gives the milliseconds until the next
 * deadline, or -1. */
static int expire(struct worker *worker, bool gone) {
    struct questions *questions = &worker->mirror->questions;
    for (;;) {
        pthread_mutex_lock(&questions->lock);
        struct question *question = questions->first;
        long left = question == NULL || gone ? 0 : milliseconds_until(&question->deadline);
        if (question != NULL && left <= 0) take(questions, question->unique);
        pthread_mutex_unlock(&questions->lock);
        if (question == NULL) return -1;
        if (left > 0) return left > 60000 ? 60000 : (int)left + 1;
        count(worker->mirror, C_TIMED_OUT);
        take_sighting(worker, question);
        reply_error(worker, question->unique, EBUSY);
        question_free(worker->mirror, question);
    }
}

/* Before the first question: libfuse answers EIO to whatever comes before INIT. */
static int greet(struct questions *questions) {
    struct {
        struct fuse_in_header header;
        struct fuse_init_in init;
    } hello = {
        .header = {.len = sizeof hello, .opcode = FUSE_INIT, .unique = INIT_UNIQUE},
        .init = {.major = FUSE_KERNEL_VERSION,
                 .minor = FUSE_KERNEL_MINOR_VERSION,
                 .max_readahead = 131072,
                 .flags = FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_DO_READDIRPLUS | FUSE_MAX_PAGES},
    };
    return send(questions->channel, &hello, sizeof hello, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

/* Takes every answer that is there, so that none is late because of what another one led to. False once the policy
 * has gone. */
static bool hear_answers(struct worker *worker) {
    for (;;) {
        ssize_t size = recv(worker->mirror->questions.channel, worker->in, MESSAGE_MAX, MSG_DONTWAIT);
        if (size > 0) answer(worker, worker->in, (size_t)size);
        else if (size == 0) return false;
        else if (errno == EAGAIN) return true;
        else if (errno != EINTR && errno != ECONNRESET) return false; /* after a reset comes what was sent before */
    }
}

enum { SWEEP_MS = 500 }; /* a descriptor on another mount is closed after one to two of these */

static uint64_t milliseconds_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* Sweeps if it is time to; gives the milliseconds until the next time, -1 while there is nothing to sweep. */
static int sweep(struct mirror *mirror, uint64_t *swept) {
    if (!backing_must_sweep(mirror)) return -1;
    uint64_t now = milliseconds_now();
    if (now - *swept >= SWEEP_MS) {
        backing_sweep(mirror);
        *swept = now;
    }
    return SWEEP_MS;
}

static void *hear(void *argument) {
    struct mirror *mirror = argument;
    struct questions *questions = &mirror->questions;
    struct worker worker;
    if (worker_begin(&worker, mirror)) return NULL;
    bool gone = false;
    uint64_t swept = milliseconds_now();
    for (;;) {
        if (!gone) gone = !hear_answers(&worker);
        int timeout = expire(&worker, gone), until_sweep = sweep(mirror, &swept);
        if (timeout < 0 || (until_sweep >= 0 && until_sweep < timeout)) timeout = until_sweep;
        pthread_mutex_lock(&questions->lock);
        bool stopping = questions->stopping, waiting = questions->unsent > 0;
        pthread_mutex_unlock(&questions->lock);
        if (stopping) break;
        struct pollfd fds[2] = {
            {.fd = gone ? -1 : questions->channel, .events = POLLIN | (waiting ? POLLOUT : 0)},
            {.fd = questions->wake, .events = POLLIN},
        };
        if (poll(fds, 2, timeout) < 0) continue;
        if (fds[1].revents) {
            uint64_t ignored;
            if (read(questions->wake, &ignored, sizeof ignored) < 0 && errno != EAGAIN) break;
        }
        if (waiting) send_waiting(questions);
    }
    worker_end(&worker);
    return NULL;
}

int questions_start(struct mirror *mirror) {
    int error = greet(&mirror->questions);
    if (!error) error = -pthread_create(&mirror->questions.thread, NULL, hear, mirror);
    mirror->questions.running = error == 0;
    return error;
}

/* Ends the thread, and lets go of what it had not answered: the kernel answers that when the device is closed. */
void questions_stop(struct mirror *mirror) {
    struct questions *questions = &mirror->questions;
    if (questions->running) {
        pthread_mutex_lock(&questions->lock);
        questions->stopping = true;
        pthread_mutex_unlock(&questions->lock);
        wake(questions);
        pthread_join(questions->thread, NULL);
        questions->running = false;
    }
    while (questions->first != NULL) {
        struct question *question = questions->first;
        questions->first = question->next;
        question_free(mirror, question);
    }
    questions->last = NULL;
}

void questions_destroy(struct mirror *mirror) {
    if (mirror->questions.wake >= 0) close(mirror->questions.wake);
    pthread_mutex_destroy(&mirror->questions.lock);
}
