/*
 * Gates: requests that are stopped before they are served, or after it with their reply withheld.
 *
 * C stops, Python selects: an opcode is watched or it is not, and of those that are every request stops until it is let
 * go (exclfs/services/gates.py). What is seen of a request is its sighting. It is news when it stops, on either side,
 * and when it is done; Python takes the news, and answers by a sighting's number.
 *
 * No worker waits here: one that meets a gate leaves a copy of the request, or its finished reply, and reads the next.
 * What is let go before it was served is served by a thread of its own, by the same code as ever, so it meets holds
 * and verdicts as any request. One that nobody watches costs one relaxed load.
 *
 * A request whose thread is to die is let go by itself: before, it fails with EINTR and is never done; after, its reply
 * is sent. The kernel says so once for each request (INTERRUPT), for any signal, and perhaps before the request has
 * come to stand here; so each that stands is looked at when it stops, at an INTERRUPT, and five times a second.
 *
 * When the gates are opened nothing stops any more, and what stood is let go. Once the mount has ended nothing that
 * stood is done any more: whoever asked for it has been told that it failed.
 */
#include "mirror.h"

#include <signal.h>
#include <stdio.h>
#include <sys/eventfd.h>

enum { LOOKS_PER_SECOND = 5, MOST_DONE = 4096, SIGHTING_PATH_MAX = PATH_MAX + NAME_MAX };

#define OPCODE(opcode) (UINT64_C(1) << (opcode))

/* What never stops: the kernel waits for no reply, or goes on to forget what a stop would keep. */
static const uint64_t never = OPCODE(FUSE_FORGET) | OPCODE(FUSE_BATCH_FORGET) | OPCODE(FUSE_RELEASE) |
                              OPCODE(FUSE_RELEASEDIR) | OPCODE(FUSE_FLUSH) | OPCODE(FUSE_INTERRUPT) |
                              OPCODE(FUSE_INIT) | OPCODE(FUSE_DESTROY);

/* Whose reply gives the kernel something that it will give back. */
static const uint64_t gives = OPCODE(FUSE_LOOKUP) | OPCODE(FUSE_SYMLINK) | OPCODE(FUSE_MKNOD) | OPCODE(FUSE_MKDIR) |
                              OPCODE(FUSE_LINK) | OPCODE(FUSE_OPEN) | OPCODE(FUSE_OPENDIR) | OPCODE(FUSE_CREATE) |
                              OPCODE(FUSE_TMPFILE) | OPCODE(FUSE_READDIRPLUS);

enum place { AT_WORK, STANDS_BEFORE, STANDS_AFTER };

struct sighting {
    struct sighting *next;
    uint64_t number, unique;
    uint32_t opcode, pid, uid;
    enum place place;
    bool answered; /* before it was served: nothing was done, and nothing stops it again */
    int answer;    /* what it is let go with: an errno, or 0 */
    char *path, *second_path; /* second_path may be NULL */
    size_t size;
    char *message; /* the request, or its reply, as the kernel sends and takes them; or NULL */
};

int gates_init(struct mirror *mirror) {
    struct gates *gates = &mirror->gates;
    gates->news = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (gates->news < 0) return -errno;
    int error = pthread_mutex_init(&gates->lock, NULL);
    if (!error) error = pthread_cond_init(&gates->changed, NULL);
    return -error;
}

static void sighting_free(struct sighting *sighting) {
    if (sighting == NULL) return;
    free(sighting->path);
    free(sighting->second_path);
    free(sighting->message);
    free(sighting);
}

void sighting_drop(struct sighting *sighting) { sighting_free(sighting); }

/* ---- what a request is about ---------------------------------------------------------------------------- */

static char *path_of(struct mirror *mirror, uint64_t nodeid, const char *name) {
    char path[SIGHTING_PATH_MAX];
    struct inode *inode = inode_by_nodeid(mirror, nodeid);
    if (inode == NULL) return strdup("");
    size_t size = name != NULL ? inode_path(mirror, inode, name, path, sizeof path)
                               : inode_own_path(mirror, inode, path, sizeof path);
    inode_put(mirror, inode);
    return strndup(path, size);
}

/* Both paths in the order of the system call's arguments. False if there is no memory. */
static bool tell_paths(struct mirror *mirror, const struct request *request, struct sighting *sighting) {
    uint64_t nodeid = request->header->nodeid;
    const char *name = request->name;
    bool two = true;
    switch (request->header->opcode) {
    case FUSE_RENAME:
    case FUSE_RENAME2: /* newdir comes first in both */
        sighting->path = path_of(mirror, nodeid, name);
        sighting->second_path =
            path_of(mirror, ((const struct fuse_rename_in *)request->argument)->newdir, request->second_name);
        break;
    case FUSE_LINK:
        sighting->path = path_of(mirror, ((const struct fuse_link_in *)request->argument)->oldnodeid, NULL);
        sighting->second_path = path_of(mirror, nodeid, name);
        break;
    case FUSE_COPY_FILE_RANGE:
        sighting->path = path_of(mirror, nodeid, NULL);
        sighting->second_path =
            path_of(mirror, ((const struct fuse_copy_file_range_in *)request->argument)->nodeid_out, NULL);
        break;
    case FUSE_GETXATTR:
    case FUSE_SETXATTR:
    case FUSE_REMOVEXATTR: /* the name is that of the attribute */
    case FUSE_TMPFILE:     /* and here it is none */
        name = NULL;
        /* fall through */
    default:
        two = false;
        sighting->path = path_of(mirror, nodeid, name);
    }
    return sighting->path != NULL && (!two || sighting->second_path != NULL);
}

static struct sighting *sighting_new(struct mirror *mirror, const struct request *request, bool copy) {
    const struct fuse_in_header *header = request->header;
    struct sighting *sighting = calloc(1, sizeof *sighting);
    if (sighting == NULL) return NULL;
    sighting->unique = header->unique;
    sighting->opcode = header->opcode;
    sighting->pid = header->pid;
    sighting->uid = header->uid;
    bool made = tell_paths(mirror, request, sighting);
    if (made && copy) {
        sighting->size = header->len;
        sighting->message = malloc(sighting->size);
        made = sighting->message != NULL;
        if (made) memcpy(sighting->message, header, sighting->size);
    }
    if (made) return sighting;
    sighting_free(sighting);
    return NULL;
}

/* ---- news ----------------------------------------------------------------------------------------------- */

static void ring(int eventfd) {
    uint64_t one = 1;
    if (write(eventfd, &one, sizeof one) < 0 && errno != EAGAIN) abort();
}

/* Under the lock. What is done is not told if nobody has listened for long, or there is no memory; what stops always
 * is, for its record is made here before it stops. */
static struct gate_news *news_new(const struct sighting *sighting, enum gate_event event, int error) {
    size_t first = strlen(sighting->path) + 1;
    size_t second = sighting->second_path != NULL ? strlen(sighting->second_path) + 1 : 0;
    struct gate_news *news = malloc(sizeof *news + first + second);
    if (news == NULL) return NULL;
    *news = (struct gate_news){
        .event = event, .number = sighting->number, .opcode = sighting->opcode, .pid = sighting->pid,
        .uid = sighting->uid, .error = error};
    memcpy(news->paths, sighting->path, first);
    news->second = second > 0 ? news->paths + first : NULL;
    if (second > 0) memcpy(news->paths + first, sighting->second_path, second);
    return news;
}

static void tell(struct gates *gates, struct gate_news *news) {
    if (gates->last != NULL) gates->last->next = news;
    else gates->first = news;
    gates->last = news;
    ring(gates->news);
}

static void tell_done(struct gates *gates, const struct sighting *sighting, int error) {
    struct gate_news *news = gates->done < MOST_DONE ? news_new(sighting, GATE_DONE, error) : NULL;
    if (news == NULL) gates->untold++;
    else {
        gates->done++;
        tell(gates, news);
    }
}

struct gate_news *gates_news(struct mirror *mirror, unsigned long *untold) {
    struct gates *gates = &mirror->gates;
    uint64_t ignored;
    if (read(gates->news, &ignored, sizeof ignored) < 0 && errno != EAGAIN) abort();
    pthread_mutex_lock(&gates->lock);
    struct gate_news *first = gates->first;
    gates->first = gates->last = NULL;
    gates->done = 0;
    *untold = gates->untold;
    gates->untold = 0;
    pthread_mutex_unlock(&gates->lock);
    return first;
}

/* ---- standing ------------------------------------------------------------------------------------------- */

/* Under the lock. False if there is no memory to tell of it. */
static bool stand(struct gates *gates, struct sighting *sighting, enum place place) {
    if (sighting->number == 0) sighting->number = ++gates->numbers;
    struct gate_news *news = news_new(sighting, place == STANDS_BEFORE ? GATE_BEFORE : GATE_AFTER, 0);
    if (news == NULL) return false;
    sighting->place = place;
    sighting->next = gates->standing;
    gates->standing = sighting;
    tell(gates, news);
    pthread_cond_signal(&gates->changed); /* somebody has to look whether it is to die */
    return true;
}

/* Under the lock: takes it from where it stands, to be carried out by the thread. */
static void let_go(struct gates *gates, struct sighting **at, int answer) {
    struct sighting *sighting = *at;
    *at = sighting->next;
    sighting->next = NULL;
    sighting->answer = answer;
    if (gates->last_gone != NULL) gates->last_gone->next = sighting;
    else gates->gone = sighting;
    gates->last_gone = sighting;
    pthread_cond_signal(&gates->changed);
}

static bool has_sigkill(const char *status, const char *field) {
    const char *at = strstr(status, field);
    return at != NULL && strtoull(at + strlen(field), NULL, 16) & 1ULL << (SIGKILL - 1);
}

/* Whether this thread will die as soon as it may: SIGKILL, or what the kernel has made one of (signal(7)). */
static bool is_to_die(const struct mirror *mirror, uint32_t pid) {
    if (pid == 0) return false; /* of a pid namespace that we cannot see into */
    char name[32], status[4096];
    snprintf(name, sizeof name, "%u/status", pid);
    int fd = openat(mirror->proc, name, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return false;
    ssize_t size = read(fd, status, sizeof status - 1);
    close(fd);
    status[size < 0 ? 0 : size] = 0;
    return has_sigkill(status, "\nSigPnd:") || has_sigkill(status, "\nShdPnd:");
}

/* Under the lock: lets go of those that are to die; of all, or of one request. */
static void look(struct mirror *mirror, uint64_t unique) {
    struct sighting **at = &mirror->gates.standing;
    while (*at != NULL) {
        struct sighting *sighting = *at;
        if ((unique == 0 || sighting->unique == unique) && is_to_die(mirror, sighting->pid))
            let_go(&mirror->gates, at, sighting->place == STANDS_BEFORE ? EINTR : 0);
        else at = &sighting->next;
    }
}

void gates_interrupt(struct mirror *mirror, const struct request *request) {
    const struct fuse_interrupt_in *in = request->argument;
    if (!mirror->gates.running) return;
    pthread_mutex_lock(&mirror->gates.lock);
    look(mirror, in->unique);
    pthread_mutex_unlock(&mirror->gates.lock);
}

bool gates_meet(struct worker *worker, const struct request *request) {
    struct mirror *mirror = worker->mirror;
    struct gates *gates = &mirror->gates;
    uint64_t bit = OPCODE(request->header->opcode);
    struct sighting *sighting = sighting_new(mirror, request, atomic_load(&gates->before) & bit);
    if (sighting == NULL) { /* it might be the one that must not pass */
        reply_error(worker, request->header->unique, ENOMEM);
        return true;
    }
    pthread_mutex_lock(&gates->lock);
    bool stops = sighting->message != NULL && atomic_load(&gates->before) & bit;
    bool told = !stops || stand(gates, sighting, STANDS_BEFORE);
    if (stops && told) look(mirror, sighting->unique); /* its INTERRUPT may have come before it stood here */
    pthread_mutex_unlock(&gates->lock);
    if (stops && told) return true;
    if (!told) {
        sighting_free(sighting);
        reply_error(worker, request->header->unique, ENOMEM);
        return true;
    }
    worker->sighting = sighting;
    return false;
}

bool gates_withhold(struct worker *worker, int error, const void *body, size_t size) {
    struct mirror *mirror = worker->mirror;
    struct gates *gates = &mirror->gates;
    struct sighting *sighting = worker->sighting;
    worker->sighting = NULL;
    uint64_t bit = OPCODE(sighting->opcode);
    struct fuse_out_header header = {
        .len = (uint32_t)(sizeof header + size), .error = -error, .unique = sighting->unique};
    char *message = NULL;
    if (atomic_load(&gates->after) & bit && !sighting->answered) message = malloc(header.len);
    if (message != NULL) {
        memcpy(message, &header, sizeof header);
        if (size > 0) memcpy(message + sizeof header, body, size);
        free(sighting->message);
        sighting->message = message;
        sighting->size = header.len;
    }
    pthread_mutex_lock(&gates->lock);
    bool stands = message != NULL && atomic_load(&gates->after) & bit && stand(gates, sighting, STANDS_AFTER);
    if (stands) look(mirror, header.unique);
    else tell_done(gates, sighting, error);
    pthread_mutex_unlock(&gates->lock);
    if (!stands) sighting_free(sighting);
    return stands;
}

/* ---- letting go ----------------------------------------------------------------------------------------- */

int gates_let_go(struct mirror *mirror, uint64_t number, int answer) {
    struct gates *gates = &mirror->gates;
    int error = -ENOENT;
    pthread_mutex_lock(&gates->lock);
    for (struct sighting **at = &gates->standing; *at != NULL; at = &(*at)->next) {
        if ((*at)->number != number) continue;
        bool kept = answer != 0 && (*at)->place == STANDS_AFTER && gives & OPCODE((*at)->opcode);
        error = kept ? -EINVAL : 0;
        if (!kept) let_go(gates, at, answer);
        break;
    }
    pthread_mutex_unlock(&gates->lock);
    return error;
}

void gates_watch(struct mirror *mirror, uint64_t before, uint64_t after, uint64_t told) {
    struct gates *gates = &mirror->gates;
    if (!gates->running) return;
    pthread_mutex_lock(&gates->lock);
    atomic_store(&gates->before, before & ~never);
    atomic_store(&gates->after, after & ~never);
    atomic_store(&gates->watched, (before | after | told) & ~never);
    pthread_mutex_unlock(&gates->lock);
}

void gates_open(struct mirror *mirror) {
    struct gates *gates = &mirror->gates;
    gates_watch(mirror, 0, 0, 0);
    pthread_mutex_lock(&gates->lock);
    while (gates->standing != NULL) let_go(gates, &gates->standing, 0);
    pthread_mutex_unlock(&gates->lock);
}

static void serve_now(struct worker *worker, struct sighting *sighting) {
    struct request request;
    char *message = sighting->message;
    sighting->message = NULL;
    sighting->place = AT_WORK;
    sighting->answered = sighting->answer != 0;
    worker->sighting = sighting;
    if (sighting->answered) reply_error(worker, sighting->unique, sighting->answer);
    else if (atomic_load(&worker->mirror->workers_left) == 0) { /* aborted: who asked was told that it failed */
        worker->sighting = NULL;
        sighting_free(sighting);
    } else if (request_parse(message, sighting->size, &request) == 0) serve(worker, &request);
    free(message);
}

static void reply_now(struct worker *worker, struct sighting *sighting) {
    struct gates *gates = &worker->mirror->gates;
    const struct fuse_out_header *header = (const struct fuse_out_header *)sighting->message;
    int error = sighting->answer != 0 ? sighting->answer : -header->error;
    pthread_mutex_lock(&gates->lock);
    tell_done(gates, sighting, error);
    pthread_mutex_unlock(&gates->lock);
    if (sighting->answer != 0) reply_error(worker, sighting->unique, error);
    else if (error != 0) reply_error(worker, sighting->unique, error);
    else reply(worker, sighting->unique, header + 1, sighting->size - sizeof *header);
    sighting_free(sighting);
}

/* Under the lock: waits until something is to be done, and takes it; NULL at the end. */
static struct sighting *next_gone(struct mirror *mirror) {
    struct gates *gates = &mirror->gates;
    while (!gates->stopping && gates->gone == NULL) {
        if (gates->standing == NULL) {
            pthread_cond_wait(&gates->changed, &gates->lock);
            continue;
        }
        struct timespec next;
        clock_gettime(CLOCK_REALTIME, &next);
        next.tv_nsec += 1000000000L / LOOKS_PER_SECOND;
        if (next.tv_nsec >= 1000000000L) {
            next.tv_sec++;
            next.tv_nsec -= 1000000000L;
        }
        if (pthread_cond_timedwait(&gates->changed, &gates->lock, &next) == ETIMEDOUT) look(mirror, 0);
    }
    if (gates->stopping) return NULL;
    struct sighting *sighting = gates->gone;
    gates->gone = sighting->next;
    if (gates->gone == NULL) gates->last_gone = NULL;
    sighting->next = NULL;
    return sighting;
}

static void *carry_out(void *argument) {
    struct mirror *mirror = argument;
    struct gates *gates = &mirror->gates;
    struct worker worker;
    if (worker_begin(&worker, mirror)) return NULL;
    for (;;) {
        pthread_mutex_lock(&gates->lock);
        struct sighting *sighting = next_gone(mirror);
        pthread_mutex_unlock(&gates->lock);
        if (sighting == NULL) break;
        if (sighting->place == STANDS_BEFORE) serve_now(&worker, sighting);
        else reply_now(&worker, sighting);
    }
    worker_end(&worker);
    return NULL;
}

int gates_start(struct mirror *mirror) {
    if (!mirror->settings.gates) return 0;
    int error = -pthread_create(&mirror->gates.thread, NULL, carry_out, mirror);
    mirror->gates.running = error == 0;
    return error;
}

/* Ends the thread. Before that of the questions: what it serves may ask one. */
void gates_stop(struct mirror *mirror) {
    struct gates *gates = &mirror->gates;
    if (!gates->running) return;
    pthread_mutex_lock(&gates->lock);
    gates->stopping = true;
    pthread_cond_signal(&gates->changed);
    pthread_mutex_unlock(&gates->lock);
    pthread_join(gates->thread, NULL);
    gates->running = false;
}

static void free_all(struct sighting *first) {
    while (first != NULL) {
        struct sighting *next = first->next;
        sighting_free(first);
        first = next;
    }
}

void gates_destroy(struct mirror *mirror) {
    struct gates *gates = &mirror->gates;
    free_all(gates->standing);
    free_all(gates->gone);
    while (gates->first != NULL) {
        struct gate_news *next = gates->first->next;
        free(gates->first);
        gates->first = next;
    }
    if (gates->news >= 0) close(gates->news);
    pthread_cond_destroy(&gates->changed);
    pthread_mutex_destroy(&gates->lock);
}
