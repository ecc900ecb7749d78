/*
 * Rounds of one kind, by many threads of several processes, in a directory of a mount with hold_open=all:
 *
 *     hold_open_rounds DIRECTORY unlink|rename same|other ROUNDS PROCESSES THREADS
 *
 * unlink: write a file, close it, unlink it. rename: read a target and close it, write a temporary file and close it,
 * rename it over the target. "other" has another process do the last step, as soon as it hears of the close.
 * Prints how many rounds there were, and in how many of them the last step failed with EBUSY. Any other error ends it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MOST = 1024 };

/* Two threads, of two processes if one hands over to the other. Shared by all. */
struct pair {
    sem_t closed, removed;
    char file[32], target[32];
};

static struct {
    struct pair pairs[MOST];
    atomic_ulong busy;
} *shared;
static bool renames, hands_over;
static long rounds_each;

static void fail(const char *what) {
    perror(what);
    _exit(1);
}

static void write_and_close(const char *path) {
    int fd = open(path, O_CREAT | O_EXCL | O_WRONLY, 0600);
    if (fd < 0) fail("open");
    if (write(fd, "content", 7) != 7) fail("write");
    if (close(fd)) fail("close");
}

static void read_and_close(const char *path) {
    char text[8];
    int fd = open(path, O_RDONLY);
    if (fd < 0) fail("open");
    if (read(fd, text, sizeof text) < 0) fail("read");
    close(fd);
}

static void begin_round(struct pair *pair) {
    if (renames) read_and_close(pair->target);
    write_and_close(pair->file);
}

/* A file that was refused stays for a moment only: the release is on its way. It must not be in the next round's way. */
static void end_round(struct pair *pair) {
    bool refused = false;
    while (renames ? rename(pair->file, pair->target) : unlink(pair->file)) {
        if (errno != EBUSY) fail(renames ? "rename" : "unlink");
        refused = true;
    }
    if (refused) atomic_fetch_add(&shared->busy, 1);
}

static void *begin(void *argument) {
    struct pair *pair = argument;
    for (long i = 0; i < rounds_each; i++) {
        begin_round(pair);
        if (!hands_over) end_round(pair);
        else if (sem_post(&pair->closed) || sem_wait(&pair->removed)) fail("semaphore");
    }
    return NULL;
}

static void *end(void *argument) {
    struct pair *pair = argument;
    for (long i = 0; i < rounds_each; i++) {
        if (sem_wait(&pair->closed)) fail("semaphore");
        end_round(pair);
        sem_post(&pair->removed);
    }
    return NULL;
}

/* A process whose threads each do this with a pair of their own. */
static void start(void *(*work)(void *), int first, int threads) {
    pid_t child = fork();
    if (child < 0) fail("fork");
    if (child > 0) return;
    pthread_t running[MOST];
    for (int i = 0; i < threads; i++)
        if (pthread_create(&running[i], NULL, work, &shared->pairs[first + i])) fail("thread");
    for (int i = 0; i < threads; i++) pthread_join(running[i], NULL);
    _exit(0);
}

int main(int count, char **words) {
    if (count != 7) return 2;
    renames = strcmp(words[2], "rename") == 0;
    hands_over = strcmp(words[3], "other") == 0;
    int processes = atoi(words[5]), threads = atoi(words[6]), pairs = processes * threads;
    if (pairs < 1 || pairs > MOST) return 2;
    rounds_each = (atol(words[4]) + pairs - 1) / pairs;
    if (chdir(words[1])) fail(words[1]);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) fail("mmap");
    for (int i = 0; i < pairs; i++) {
        struct pair *pair = &shared->pairs[i];
        if (sem_init(&pair->closed, 1, 0) || sem_init(&pair->removed, 1, 0)) fail("semaphore");
        snprintf(pair->file, sizeof pair->file, "%d.file", i);
        snprintf(pair->target, sizeof pair->target, "%d.target", i);
        if (renames) write_and_close(pair->target);
    }
    for (int i = 0; i < processes; i++) {
        start(begin, i * threads, threads);
        if (hands_over) start(end, i * threads, threads);
    }
    int status, failed = 0;
    while (wait(&status) > 0) failed |= status;
    if (failed) return 1;
    printf("%ld %lu\n", rounds_each * pairs, atomic_load(&shared->busy));
    return 0;
}
