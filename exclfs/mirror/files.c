/*
 * Files: opening, and everything that is done to an open one.
 *
 * With passthrough the kernel reads and writes the backing file itself and the handle costs no descriptor. One
 * backing id serves all openers of an inode, and the kernel writes with the rights of whoever made it: root's if the
 * first opener is root, else nobody's, without the capabilities that would keep setuid bits or use the reserve. A
 * writer to whom the other would apply has its reads and writes sent here (FOPEN_DIRECT_IO beside FOPEN_PASSTHROUGH).
 * Where passthrough is not to be had the handle has a descriptor of its own. What writes here runs as the requester.
 * An inode is open one way or the other, never both at once: the kernel answers EIO to a mixture.
 */
#include "mirror.h"

#include <sys/ioctl.h>
#include <sys/uio.h>

pthread_mutex_t *io_lock(struct mirror *mirror, const struct inode *inode) {
    return &mirror->io_locks[inode->key.ino % PLACE_LOCKS];
}

bool is_open(struct mirror *mirror, const struct inode *inode) {
    pthread_mutex_t *lock = io_lock(mirror, inode);
    pthread_mutex_lock(lock);
    bool open = inode->passthrough_opens > 0 || inode->plain_opens > 0;
    pthread_mutex_unlock(lock);
    return open;
}

/* ---- passthrough ---------------------------------------------------------------------------------------- */

static int32_t open_backing(struct worker *worker, int fd, bool as_root) {
    struct mirror *mirror = worker->mirror;
    struct exclfs_backing_map map = {.fd = fd};
    if (!as_root && become_nobody(worker, true)) return -1;
    int id = ioctl(mirror->device, EXCLFS_IOC_BACKING_OPEN, &map), error = errno;
    become_server(worker);
    /* Without the privilege, or on a kernel without it, it will never work; a nested filesystem may just not have it. */
    if (id <= 0 && (error == EPERM || error == ENOTTY)) atomic_store(&mirror->passthrough, false);
    return id;
}

/* Settles how the inode is open, and counts it. True for passthrough. */
static bool enter(struct worker *worker, struct inode *inode, int fd, bool roots) {
    struct mirror *mirror = worker->mirror;
    pthread_mutex_t *lock = io_lock(mirror, inode);
    pthread_mutex_lock(lock);
    bool passthrough = inode->passthrough_opens > 0;
    if (!passthrough && inode->plain_opens == 0 && atomic_load(&mirror->passthrough)) {
        inode->backing_id = open_backing(worker, fd, roots);
        inode->backing_is_roots = roots;
        passthrough = inode->backing_id > 0;
    }
    if (passthrough) inode->passthrough_opens++;
    else inode->plain_opens++;
    pthread_mutex_unlock(lock);
    return passthrough;
}

static void leave(struct mirror *mirror, struct inode *inode, bool passthrough) {
    pthread_mutex_t *lock = io_lock(mirror, inode);
    pthread_mutex_lock(lock);
    if (!passthrough) inode->plain_opens--;
    else if (--inode->passthrough_opens == 0) {
        uint32_t id = (uint32_t)inode->backing_id;
        inode->backing_id = 0;
        ioctl(mirror->device, EXCLFS_IOC_BACKING_CLOSE, &id); /* fails only for an id that is not ours */
    }
    pthread_mutex_unlock(lock);
}

/* ---- opening -------------------------------------------------------------------------------------------- */

static void file_free(struct mirror *mirror, struct open_file *file) {
    open_ends(mirror, file);
    leave(mirror, file->inode, file->passthrough);
    int fd = atomic_load(&file->fd);
    if (fd >= 0) {
        close(fd);
        open_closed(mirror);
    }
    inode_put(mirror, file->inode);
    free(file);
}

/* The kernel's own handle does O_DIRECT; the buffers of a worker are not aligned for it. Whether a write appends is
 * said with each one: fcntl() can change it, and what was written to a mapping goes where it belongs. */
static int server_flags(uint32_t flags) {
    return (int)flags & ~(O_CREAT | O_EXCL | O_NOCTTY | O_DIRECT | O_NOFOLLOW | O_APPEND | O_TMPFILE);
}

static struct manner manner_of(const struct request *request, uint32_t flags) {
    return (struct manner){
        .flags = server_flags(flags) & ~O_TRUNC, .appends = flags & O_APPEND, .roots = request->header->uid == 0};
}

static bool writes(struct manner how) { return (how.flags & O_ACCMODE) != O_RDONLY; }

/* A file with the append-only attribute (chattr +a) is opened for writing with O_APPEND or not at all. */
static int open_real(struct mirror *mirror, int path, struct manner how) {
    int real = backing_reopen(mirror, path, how.flags);
    return real == -EPERM && how.appends ? backing_reopen(mirror, path, how.flags | O_APPEND) : real;
}

/* Has the handle keep a descriptor: `real`, which it takes, or if that is -1 a new one. 0 or errno. */
static int keep_descriptor(struct mirror *mirror, struct open_file *file, int path, int real) {
    if (real < 0) real = open_real(mirror, path, file->how);
    if (real < 0) return -real;
    if (!open_begins(mirror)) {
        close(real);
        return EMFILE;
    }
    atomic_store(&file->fd, real);
    return 0;
}

/* Makes the handle. Takes `real`, a descriptor opened in this manner, or -1; `path` is an O_PATH descriptor. */
static int file_new(struct worker *worker, struct inode *inode, int path, int real, struct manner how,
                    struct open_file **made) {
    /* Also for passthrough: the kernel would open for writing what must not be, and tell of no reason but EIO. */
    if (real < 0 && writes(how)) {
        real = open_real(worker->mirror, path, how);
        if (real < 0) return -real;
    }
    struct open_file *file = malloc(sizeof *file);
    if (file == NULL) {
        if (real >= 0) close(real);
        return ENOMEM;
    }
    inode_get(inode);
    *file = (struct open_file){.inode = inode, .how = how, .passthrough = enter(worker, inode, path, how.roots)};
    atomic_init(&file->fd, -1);
    writeback_opened(worker->mirror, file);
    int error = 0;
    if (!file->passthrough) error = keep_descriptor(worker->mirror, file, path, real);
    else if (real >= 0) close(real);
    if (error) file_free(worker->mirror, file);
    else *made = file;
    return error;
}

/* Before anybody hears of the handle. Where it lies on a removed inode it is all the same. */
static void count_open(struct worker *worker, const struct request *request, struct open_file *file, int path) {
    struct statx attributes;
    if (worker->mirror->settings.hold_open == OPEN_FILES_OFF || stat_at(worker->mirror, path, "", &attributes)) return;
    open_counts(worker, request, file, attributes.stx_uid);
}

static void fill_open(const struct mirror *mirror, const struct open_file *file, struct exclfs_open_out *out) {
    *out = (struct exclfs_open_out){.fh = (uint64_t)(uintptr_t)file};
    /* Local filesystems have no flush operation: nothing would be done, at the price of a request for each close. */
    if (!mirror->flushes && file->inode->key.dev == mirror->root->key.dev) out->open_flags = FOPEN_NOFLUSH;
    if (file->passthrough) {
        out->open_flags |= EXCLFS_FOPEN_PASSTHROUGH;
        out->backing_id = file->inode->backing_id;
        if (writes(file->how) && file->how.roots != file->inode->backing_is_roots) out->open_flags |= FOPEN_DIRECT_IO;
    }
}

static int truncate_at_open(struct worker *worker, const struct request *request, int path) {
    const struct fuse_open_in *in = request->argument;
    int error = become_writer(worker, request->header, in->open_flags & FUSE_OPEN_KILL_SUIDGID);
    if (error) return error;
    int fd = backing_reopen(worker->mirror, path, (server_flags(in->flags) & ~O_ACCMODE) | O_WRONLY);
    become_server(worker);
    if (fd < 0) return -fd;
    close(fd);
    return 0;
}

enum { TO_EXECUTE = 0x20 }; /* __FMODE_EXEC of <linux/fs.h>: by execve(2) */

void op_open(struct worker *worker, const struct request *request) {
    const struct fuse_open_in *in = request->argument;
    struct inode *inode = inode_of(worker, request);
    if (inode == NULL) return;
    struct open_file *file = NULL;
    int path = backing_get(worker->mirror, inode), error = path < 0 ? -path : 0;
    if (!error && in->flags & TO_EXECUTE && atomic_load(&inode->limits) & NO_EXECUTION) error = EACCES;
    if (!error && in->flags & O_TRUNC) error = truncate_at_open(worker, request, path);
    if (!error) error = file_new(worker, inode, path, -1, manner_of(request, in->flags), &file);
    if (!error) count_open(worker, request, file, path);
    if (path >= 0) backing_put(worker->mirror, inode);
    if (error) reply_error(worker, request->header->unique, error);
    else {
        struct exclfs_open_out out;
        fill_open(worker->mirror, file, &out);
        if (reply(worker, request->header->unique, &out, sizeof out)) file_free(worker->mirror, file);
    }
    inode_put(worker->mirror, inode);
}

static void reply_created(struct worker *worker, const struct request *request, struct inode *inode,
                          const struct statx *attributes, struct open_file *file) {
    struct {
        struct fuse_entry_out entry;
        struct exclfs_open_out open;
    } out;
    fill_entry(worker->mirror, inode, attributes, &out.entry);
    fill_open(worker->mirror, file, &out.open);
    if (reply(worker, request->header->unique, &out, sizeof out)) {
        file_free(worker->mirror, file);
        inode_forget(worker->mirror, inode->nodeid, 1);
    }
}

/* Turns a descriptor of a new file into an inode and a handle. Takes `real`. */
static int adopt_created(struct worker *worker, const struct request *request, struct inode *parent, int parent_fd,
                         const char *name, int real) {
    const struct fuse_create_in *in = request->argument;
    struct statx attributes;
    int error = -stat_at(worker->mirror, real, "", &attributes);
    struct inode *inode = NULL;
    if (!error) {
        inode = inode_seen(worker->mirror, parent, name, parent_fd < 0 ? real : parent_fd, &attributes, 1);
        if (inode == NULL) error = ENOMEM;
    }
    if (error) {
        close(real);
        return error;
    }
    if (parent_fd < 0) { /* a file without a name: only this descriptor leads to it */
        int kept = fcntl(real, F_DUPFD_CLOEXEC, 0);
        if (kept < 0) error = errno;
        else backing_adopt(worker->mirror, inode, kept);
    }
    struct open_file *file = NULL;
    if (error) close(real);
    else error = file_new(worker, inode, real, real, manner_of(request, in->flags), &file);
    if (error) inode_forget(worker->mirror, inode->nodeid, 1);
    else {
        open_counts(worker, request, file, attributes.stx_uid);
        reply_created(worker, request, inode, &attributes, file);
    }
    inode_put(worker->mirror, inode);
    return error;
}

/* Whether one more descriptor may be kept for an open file, or need not be. */
static bool open_fits(struct mirror *mirror) {
    if (atomic_load(&mirror->passthrough)) return true;
    bool fits = open_begins(mirror);
    if (fits) open_closed(mirror);
    return fits;
}

static void create(struct worker *worker, const struct request *request, bool named) {
    const struct fuse_create_in *in = request->argument;
    struct inode *parent = inode_of(worker, request);
    if (parent == NULL) return;
    int fd = backing_get(worker->mirror, parent), error = fd < 0 ? -fd : 0;
    if (!error && !open_fits(worker->mirror)) error = EMFILE; /* before there is a file */
    if (!error) error = become_creator(worker, request->header, in->umask);
    if (!error) {
        /* Always exclusive: a file that came to be behind the mount has not been checked against the requester.
         * ESTALE makes the kernel look the name up again, and check. */
        int flags = server_flags(in->flags) | O_CLOEXEC | (named ? O_CREAT | O_EXCL : O_TMPFILE);
        if (!named) flags |= (int)in->flags & O_EXCL;
        int real = openat(fd, named ? request->name : ".", flags, in->mode & 07777);
        error = real < 0 ? errno : 0;
        become_server(worker);
        if (error == EEXIST && !(in->flags & O_EXCL)) error = ESTALE;
        if (!error)
            error = adopt_created(worker, request, named ? parent : NULL, named ? fd : -1, named ? request->name : "",
                                  real);
    }
    if (error) reply_error(worker, request->header->unique, error);
    if (fd >= 0) backing_put(worker->mirror, parent);
    inode_put(worker->mirror, parent);
}

void op_create(struct worker *worker, const struct request *request) { create(worker, request, true); }
void op_tmpfile(struct worker *worker, const struct request *request) { create(worker, request, false); }

/* ---- open files ----------------------------------------------------------------------------------------- */

int handle_descriptor(struct mirror *mirror, uint64_t fh, bool writable) {
    struct open_file *file = file_of(fh);
    if (writable && !writes(file->how)) return -EBADF;
    int fd = atomic_load(&file->fd);
    if (fd >= 0) return fd;
    int path = backing_get(mirror, file->inode);
    if (path < 0) return path;
    int real = open_real(mirror, path, file->how);
    backing_put(mirror, file->inode);
    if (real < 0) return real;
    if (!open_begins(mirror)) {
        close(real);
        return -EMFILE;
    }
    if (atomic_compare_exchange_strong(&file->fd, &fd, real)) return real;
    open_closed(mirror);
    close(real);
    return fd;
}

static void reply_result(struct worker *worker, const struct request *request, int error) {
    reply_error(worker, request->header->unique, error);
}

void op_read(struct worker *worker, const struct request *request) {
    const struct fuse_read_in *in = request->argument;
    int fd = handle_descriptor(worker->mirror, in->fh, false);
    size_t size = in->size < BODY_MAX ? in->size : BODY_MAX;
    ssize_t done = fd < 0 ? fd : pread(fd, worker->out, size, (off_t)in->offset);
    if (fd < 0) reply_result(worker, request, -fd);
    else if (done < 0) reply_result(worker, request, errno);
    else reply(worker, request->header->unique, worker->out, (size_t)done);
}

/* What was written to a mapping comes from the kernel, by any handle that can write; it clears no setuid bits. */
static int become_writer_of(struct worker *worker, const struct request *request) {
    const struct fuse_write_in *in = request->argument;
    if (in->write_flags & FUSE_WRITE_CACHE) return file_of(in->fh)->how.roots ? 0 : become_nobody(worker, false);
    return become_writer(worker, request->header, in->write_flags & FUSE_WRITE_KILL_SUIDGID);
}

/* What was written to a mapping has been taken from its writer: the kernel tells of an error (at msync and fsync), but
 * takes a part for the whole. So where only a part finds room the rest is tried, and its error is the answer. */
static ssize_t write_all(int fd, const char *data, size_t size, off_t offset) {
    size_t done = 0;
    while (done < size) {
        ssize_t more = pwrite(fd, data + done, size - done, offset + (off_t)done);
        if (more < 0 && errno == EINTR) continue;
        if (more <= 0) return more;
        done += (size_t)more;
    }
    return (ssize_t)done;
}

static ssize_t write_data(int fd, const struct request *request) {
    const struct fuse_write_in *in = request->argument;
    if (in->write_flags & FUSE_WRITE_CACHE)
        return write_all(fd, request->data, request->data_size, (off_t)in->offset);
    struct iovec data = {(void *)(uintptr_t)request->data, request->data_size};
    return pwritev2(fd, &data, 1, (off_t)in->offset, in->flags & O_APPEND ? RWF_APPEND : 0);
}

void op_write(struct worker *worker, const struct request *request) {
    const struct fuse_write_in *in = request->argument;
    int fd = handle_descriptor(worker->mirror, in->fh, true);
    int error = fd < 0 ? -fd : become_writer_of(worker, request);
    ssize_t done = error ? 0 : write_data(fd, request);
    if (!error && done < 0) error = errno;
    become_server(worker);
    if (error) reply_result(worker, request, error);
    else {
        struct fuse_write_out out = {.size = (uint32_t)done};
        reply(worker, request->header->unique, &out, sizeof out);
    }
}

/* close() of a duplicate makes a network filesystem write back, and tells of what failed. */
void op_flush(struct worker *worker, const struct request *request) {
    const struct fuse_flush_in *in = request->argument;
    int fd = handle_descriptor(worker->mirror, in->fh, false), error = fd < 0 ? -fd : 0;
    if (!error) {
        int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
        if (copy < 0 || close(copy)) error = errno;
    }
    reply_result(worker, request, error);
}

void op_release(struct worker *worker, const struct request *request) {
    const struct fuse_release_in *in = request->argument;
    window();
    file_free(worker->mirror, file_of(in->fh));
    reply_result(worker, request, 0);
}

void op_fsync(struct worker *worker, const struct request *request) {
    const struct fuse_fsync_in *in = request->argument;
    bool data_only = in->fsync_flags & FUSE_FSYNC_FDATASYNC;
    reply_result(worker, request, writeback_sync(worker->mirror, file_of(in->fh), data_only));
}

void op_fallocate(struct worker *worker, const struct request *request) {
    const struct fuse_fallocate_in *in = request->argument;
    int fd = handle_descriptor(worker->mirror, in->fh, true);
    int error = fd < 0 ? -fd : become_writer(worker, request->header, false);
    if (!error && fallocate(fd, (int)in->mode, (off_t)in->offset, (off_t)in->length)) error = errno;
    become_server(worker);
    reply_result(worker, request, error);
}

void op_lseek(struct worker *worker, const struct request *request) {
    const struct fuse_lseek_in *in = request->argument;
    int fd = handle_descriptor(worker->mirror, in->fh, false);
    off_t found = fd < 0 ? fd : lseek(fd, (off_t)in->offset, (int)in->whence);
    if (fd < 0) reply_result(worker, request, -fd);
    else if (found < 0) reply_result(worker, request, errno);
    else {
        struct fuse_lseek_out out = {.offset = (uint64_t)found};
        reply(worker, request->header->unique, &out, sizeof out);
    }
}

void op_copy_file_range(struct worker *worker, const struct request *request) {
    const struct fuse_copy_file_range_in *in = request->argument;
    int from = handle_descriptor(worker->mirror, in->fh_in, false);
    int to = handle_descriptor(worker->mirror, in->fh_out, true);
    int error = from < 0 ? -from : to < 0 ? -to : become_writer(worker, request->header, false);
    off_t from_offset = (off_t)in->off_in, to_offset = (off_t)in->off_out;
    size_t size = in->len < (1U << 30) ? in->len : 1U << 30;
    ssize_t done = error ? 0 : copy_file_range(from, &from_offset, to, &to_offset, size, (unsigned)in->flags);
    if (!error && done < 0) error = errno;
    become_server(worker);
    /* The source has been read, which the kernel does not take into account. */
    if (!error) tell_attributes_changed(worker->mirror, file_of(in->fh_in)->inode->nodeid);
    if (error) reply_result(worker, request, error);
    else {
        struct fuse_write_out out = {.size = (uint32_t)done};
        reply(worker, request->header->unique, &out, sizeof out);
    }
}
