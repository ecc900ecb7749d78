/*
 * Opens: which processes have an inode open, where that counts against removals (hold_open).
 *
 * A file counts from before its opener hears of it to the reading of its RELEASE. Adding to the count takes the stripe
 * of the inode exclusively, as a trylock does, so it is ordered with removals. The kernel sends RELEASE without waiting
 * for an answer, but it queues it before close(2) returns. So it is counted where it is read, one reader at a time:
 * a removal that a program asks for after its close is read after it, and never meets that open file.
 *
 * What a process has opened itself concerns its removals no more than a file that nobody has open: a program that
 * replaces files which its own threads open all the time would never see a verdict that is still true.
 */
#include "mirror.h"

#include <stdio.h>
#include <sys/syscall.h>

/* Reads a small file of /proc/PID; 0 or -errno. */
static int read_proc(struct mirror *mirror, pid_t pid, const char *name, char *text, size_t size) {
    char path[64];
    snprintf(path, sizeof path, "%d/%s", pid, name);
    int fd = openat(mirror->proc, path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -errno;
    ssize_t length = read(fd, text, size - 1);
    int error = length < 0 ? -errno : 0;
    close(fd);
    text[length > 0 ? length : 0] = 0;
    return error;
}

/* The process of a thread, as FUSE names it. Most often it is the first one, whose id is the process's. 0 if unknown. */
static pid_t process_of(struct mirror *mirror, pid_t thread) {
    char text[1024];
    if (thread <= 0) return 0;
    if (syscall(SYS_tgkill, thread, thread, 0) == 0 || errno == EPERM) return thread;
    if (read_proc(mirror, thread, "status", text, sizeof text)) return 0;
    const char *line = strstr(text, "\nTgid:");
    return line == NULL ? 0 : (pid_t)strtol(line + 6, NULL, 10);
}

/* Field 22 of proc_pid_stat(5): with the pid, the identity of a process. */
static uint64_t start_time_of(struct mirror *mirror, pid_t pid) {
    char text[1024];
    if (read_proc(mirror, pid, "stat", text, sizeof text)) return 0;
    const char *at = strrchr(text, ')'); /* the name before it may hold anything */
    for (unsigned field = 2; at != NULL && field < 22; field++) at = strchr(at + 1, ' ');
    return at == NULL ? 0 : strtoull(at, NULL, 10);
}

/* The handle counts from now on, if it is of the kind that does. Nobody has been told of it yet. */
void open_counts(struct worker *worker, const struct request *request, struct open_file *file, uid_t owner) {
    struct mirror *mirror = worker->mirror;
    enum open_files counted = mirror->settings.hold_open;
    uid_t uid = request->header->uid;
    if (counted == OPEN_FILES_OFF || (counted == OPEN_FILES_OWN && uid != 0 && uid != owner)) return;
    struct opener opener = {.pid = process_of(mirror, (pid_t)request->header->pid), .uid = uid};
    if (opener.pid == 0) return; /* of a foreign pid namespace: nobody could be named */
    opener.start_time = start_time_of(mirror, opener.pid);
    clock_gettime(CLOCK_REALTIME, &opener.since);

    struct inode *inode = primary_of(file->inode);
    pthread_mutex_t *lock = io_lock(mirror, inode);
    stripe_take(mirror, inode->key);
    pthread_mutex_lock(lock);
    file->opener = opener;
    file->next = inode->opens;
    file->before = &inode->opens;
    if (file->next != NULL) file->next->before = &file->next;
    inode->opens = file;
    atomic_fetch_add(&inode->open_generation, 1);
    atomic_fetch_add(&inode->open_count, 1);
    pthread_mutex_unlock(lock);
    stripe_give(mirror, inode->key);
}

void open_ends(struct mirror *mirror, struct open_file *file) {
    if (mirror->settings.hold_open == OPEN_FILES_OFF) return;
    pthread_mutex_t *lock = io_lock(mirror, file->inode);
    pthread_mutex_lock(lock);
    if (file->opener.pid != 0) {
        *file->before = file->next;
        if (file->next != NULL) file->next->before = file->before;
        file->opener.pid = 0;
        atomic_fetch_sub(&primary_of(file->inode)->open_count, 1);
    }
    pthread_mutex_unlock(lock);
}

void open_released(struct mirror *mirror, const void *message, size_t size) {
    const struct fuse_in_header *header = message;
    const struct fuse_release_in *in = (const void *)(header + 1);
    if (size >= sizeof *header + sizeof *in && header->opcode == FUSE_RELEASE) open_ends(mirror, file_of(in->fh));
}

/* A process with the id of an opener is that opener, or proves that it has died: then nobody could be named. */
bool opened_by_another(struct worker *worker, const struct request *request, struct inode *view) {
    struct inode *inode = primary_of(view);
    if (atomic_load(&inode->open_count) == 0) return false;
    struct mirror *mirror = worker->mirror;
    pid_t own = process_of(mirror, (pid_t)request->header->pid);
    bool found = false;
    pthread_mutex_t *lock = io_lock(mirror, inode);
    pthread_mutex_lock(lock);
    for (const struct open_file *file = inode->opens; file != NULL && !found; file = file->next)
        found = file->opener.pid != own;
    pthread_mutex_unlock(lock);
    return found;
}

size_t openers_of(struct mirror *mirror, struct inode *view, struct opener *openers, size_t size) {
    struct inode *inode = primary_of(view);
    size_t number = 0;
    pthread_mutex_t *lock = io_lock(mirror, inode);
    pthread_mutex_lock(lock);
    for (const struct open_file *file = inode->opens; file != NULL && number < size; file = file->next)
        openers[number++] = file->opener;
    pthread_mutex_unlock(lock);
    return number;
}
