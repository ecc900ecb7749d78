/*
 * Writeback: what did not reach the disk is told by fsync, once to each who had the file open (errseq_t; fsync(2)).
 *
 * A descriptor tells of what failed since it was opened, or before that and untold. With passthrough the kernel writes
 * by a description of its own, which nobody syncs, and the server has a descriptor only while it syncs: that tells
 * whoever asks first. So it is remembered here which inodes that was about, and the others who have them open are
 * told in their turn. Failures are few, and remembered only as long as there is room: who may have missed one is told EIO.
 */
#include "mirror.h"

int writeback_init(struct mirror *mirror) { return -pthread_mutex_init(&mirror->writeback.lock, NULL); }

void writeback_destroy(struct mirror *mirror) { pthread_mutex_destroy(&mirror->writeback.lock); }

void writeback_opened(struct mirror *mirror, struct open_file *file) {
    file->failures_told = atomic_load(&mirror->writeback.failures);
}

static void remember(struct mirror *mirror, struct key key, int error) { /* under the lock */
    unsigned number = atomic_fetch_add(&mirror->writeback.failures, 1) + 1;
    mirror->writeback.last[number % FAILURES] = (struct failure){.key = key, .number = number, .error = error};
}

/* What the file has not been told yet, or 0. */
static int untold(struct mirror *mirror, const struct open_file *file) { /* under the lock */
    unsigned failures = atomic_load(&mirror->writeback.failures);
    if (failures - file->failures_told > FAILURES) return EIO;
    for (unsigned number = failures; number != file->failures_told; number--) {
        const struct failure *failure = &mirror->writeback.last[number % FAILURES];
        if (same_key(failure->key, file->inode->key)) return failure->error;
    }
    return 0;
}

/* By a descriptor of its own: it can be had of whatever is open, also where writing has been forbidden meanwhile. */
static int sync_inode(struct mirror *mirror, struct inode *inode, bool data_only) {
    int path = backing_get(mirror, inode);
    if (path < 0) return -path;
    int fd = backing_reopen(mirror, path, O_RDONLY);
    backing_put(mirror, inode);
    if (fd < 0) return -fd;
    int error = (data_only ? fdatasync(fd) : fsync(fd)) ? errno : 0;
    close(fd);
    return error;
}

int writeback_sync(struct mirror *mirror, struct open_file *file, bool data_only) {
    if (!file->passthrough) {
        int fd = atomic_load(&file->fd);
        return (data_only ? fdatasync(fd) : fsync(fd)) ? errno : 0;
    }
    int error = sync_inode(mirror, file->inode, data_only);
    if (!error && atomic_load(&mirror->writeback.failures) == file->failures_told) return 0;
    pthread_mutex_lock(&mirror->writeback.lock);
    if (error) remember(mirror, file->inode->key, error);
    else error = untold(mirror, file);
    writeback_opened(mirror, file);
    pthread_mutex_unlock(&mirror->writeback.lock);
    return error;
}
