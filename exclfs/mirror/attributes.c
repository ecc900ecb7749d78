/*
 * Attributes: what stat, statx and statfs show, and what chmod, chown, truncate and utimensat change.
 */
#include "mirror.h"

#include <stdio.h>
#include <sys/syscall.h>
#include <sys/vfs.h>

enum { EXCLFS_SYS_FCHMODAT2 = 452 }; /* on every architecture; the headers of Debian 12 do not have it */

static uint32_t encode_device(uint32_t major, uint32_t minor) { /* the kernel's new_encode_dev() */
    return (minor & 0xff) | major << 8 | (minor & ~0xffu) << 12;
}

/* Setuid bits and device numbers as the mount of the inode lets them count: to the kernel everything here lies on the
 * mount of exclfs, which may allow what that forbids (nosuid, nodev). */
static mode_t shown_mode(const struct inode *inode, mode_t mode) {
    bool hidden = S_ISREG(mode) && atomic_load_explicit(&inode->limits, memory_order_relaxed) & NO_SUID;
    return hidden ? mode & ~(mode_t)(S_ISUID | S_ISGID) : mode;
}

static bool shows_device(const struct inode *inode, mode_t mode) {
    bool device = S_ISCHR(mode) || S_ISBLK(mode);
    return !(device && atomic_load_explicit(&inode->limits, memory_order_relaxed) & NO_DEVICES);
}

void fill_attr(const struct mirror *mirror, const struct inode *inode, const struct statx *from, struct fuse_attr *to) {
    struct key key = key_of(from);
    *to = (struct fuse_attr){
        .ino = shown_ino(mirror, key.dev, key.ino),
        .size = from->stx_size,
        .blocks = from->stx_blocks,
        .atime = (uint64_t)from->stx_atime.tv_sec,
        .mtime = (uint64_t)from->stx_mtime.tv_sec,
        .ctime = (uint64_t)from->stx_ctime.tv_sec,
        .atimensec = from->stx_atime.tv_nsec,
        .mtimensec = from->stx_mtime.tv_nsec,
        .ctimensec = from->stx_ctime.tv_nsec,
        .mode = shown_mode(inode, from->stx_mode),
        .nlink = from->stx_nlink,
        .uid = from->stx_uid,
        .gid = from->stx_gid,
        .rdev = shows_device(inode, from->stx_mode) ? encode_device(from->stx_rdev_major, from->stx_rdev_minor) : 0,
        .blksize = from->stx_blksize,
    };
}

static void reply_attributes(struct worker *worker, uint64_t unique, const struct inode *inode,
                             const struct statx *attributes) {
    struct fuse_attr_out out = {0};
    fill_timeout(has_views(inode) ? 0 : worker->mirror->settings.attr_timeout, &out.attr_valid, &out.attr_valid_nsec);
    fill_attr(worker->mirror, inode, attributes, &out.attr);
    reply(worker, unique, &out, sizeof out);
}

void op_getattr(struct worker *worker, const struct request *request) {
    struct inode *inode = inode_of(worker, request);
    if (inode == NULL) return;
    struct statx attributes;
    int error = backing_stat(worker->mirror, inode, &attributes);
    if (error) reply_error(worker, request->header->unique, -error);
    else reply_attributes(worker, request->header->unique, inode, &attributes);
    inode_put(worker->mirror, inode);
}

static struct exclfs_sx_time sx_time(struct statx_timestamp from) {
    return (struct exclfs_sx_time){.tv_sec = from.tv_sec, .tv_nsec = from.tv_nsec};
}

void op_statx(struct worker *worker, const struct request *request) {
    struct inode *inode = inode_of(worker, request);
    if (inode == NULL) return;
    struct statx from;
    int error = backing_stat(worker->mirror, inode, &from);
    if (error) reply_error(worker, request->header->unique, -error);
    else {
        struct key key = key_of(&from);
        bool device = shows_device(inode, from.stx_mode);
        struct exclfs_statx_out out = {
            .stat = {.mask = from.stx_mask & STATX_TOLD,
                     .blksize = from.stx_blksize,
                     .attributes = from.stx_attributes,
                     .attributes_mask = from.stx_attributes_mask,
                     .nlink = from.stx_nlink,
                     .uid = from.stx_uid,
                     .gid = from.stx_gid,
                     .mode = (uint16_t)shown_mode(inode, from.stx_mode),
                     .ino = shown_ino(worker->mirror, key.dev, key.ino),
                     .size = from.stx_size,
                     .blocks = from.stx_blocks,
                     .atime = sx_time(from.stx_atime),
                     .btime = sx_time(from.stx_btime),
                     .ctime = sx_time(from.stx_ctime),
                     .mtime = sx_time(from.stx_mtime),
                     .rdev_major = device ? from.stx_rdev_major : 0,
                     .rdev_minor = device ? from.stx_rdev_minor : 0},
        };
        fill_timeout(has_views(inode) ? 0 : worker->mirror->settings.attr_timeout, &out.attr_valid,
                     &out.attr_valid_nsec);
        reply(worker, request->header->unique, &out, sizeof out);
    }
    inode_put(worker->mirror, inode);
}

/* ---- changing them -------------------------------------------------------------------------------------- */

/* fchmodat2 came with Linux 6.6, and takes an O_PATH descriptor as it is. A sandbox may say EPERM to what it does not
 * know. Before it, the calls that take a path work through /proc/self/fd, the worker's own directory. */
static int change_mode(int fd, mode_t mode) {
    if (syscall(EXCLFS_SYS_FCHMODAT2, fd, "", mode, AT_EMPTY_PATH) == 0) return 0;
    if (errno != ENOSYS && errno != EPERM) return errno;
    char number[16];
    snprintf(number, sizeof number, "%d", fd);
    return chmod(number, mode) ? errno : 0;
}

static int change_size(struct worker *worker, const struct request *request, int fd) {
    const struct fuse_setattr_in *in = request->argument;
    int error = become_writer(worker, request->header, in->valid & FATTR_KILL_SUIDGID);
    if (error) return error;
    if (in->valid & FATTR_FH && !worker->mirror->settings.privileged) {
        /* The file may have become read-only since it was opened, which must not matter. */
        int opened = handle_descriptor(worker->mirror, in->fh, true);
        return opened < 0 ? -opened : ftruncate(opened, (off_t)in->size) ? errno : 0;
    }
    if (in->valid & FATTR_FH) {
        /* To the size that the file has already, ftruncate() touches its times everywhere, truncate() not on xfs. */
        int opened = backing_reopen(worker->mirror, fd, O_WRONLY);
        error = opened < 0 ? -opened : ftruncate(opened, (off_t)in->size) ? errno : 0;
        if (opened >= 0) close(opened);
        become_server(worker);
        return error;
    }
    char number[16];
    snprintf(number, sizeof number, "%d", fd);
    error = truncate(number, (off_t)in->size) ? errno : 0;
    become_server(worker);
    return error;
}

static int change_owner(int fd, const struct fuse_setattr_in *in) {
    uid_t uid = in->valid & FATTR_UID ? in->uid : (uid_t)-1;
    gid_t gid = in->valid & FATTR_GID ? in->gid : (gid_t)-1;
    return fchownat(fd, "", uid, gid, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) ? errno : 0;
}

static int change_times(int fd, const struct fuse_setattr_in *in) {
    struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_nsec = UTIME_OMIT}};
    if (in->valid & FATTR_ATIME_NOW) times[0].tv_nsec = UTIME_NOW;
    else if (in->valid & FATTR_ATIME)
        times[0] = (struct timespec){.tv_sec = (time_t)in->atime, .tv_nsec = in->atimensec};
    if (in->valid & FATTR_MTIME_NOW) times[1].tv_nsec = UTIME_NOW;
    else if (in->valid & FATTR_MTIME)
        times[1] = (struct timespec){.tv_sec = (time_t)in->mtime, .tv_nsec = in->mtimensec};
    return utimensat(fd, "", times, AT_EMPTY_PATH) ? errno : 0;
}

static int change(struct worker *worker, const struct request *request, int fd) {
    const struct fuse_setattr_in *in = request->argument;
    int error = 0;
    if (in->valid & (FATTR_UID | FATTR_GID)) error = change_owner(fd, in);
    if (!error && in->valid & FATTR_MODE) error = change_mode(fd, in->mode & 07777);
    if (!error && in->valid & FATTR_SIZE) error = change_size(worker, request, fd);
    if (!error && in->valid & (FATTR_ATIME | FATTR_MTIME)) error = change_times(fd, in);
    return error;
}

void op_setattr(struct worker *worker, const struct request *request) {
    struct inode *inode = inode_of(worker, request);
    if (inode == NULL) return;
    int fd = backing_get(worker->mirror, inode), error = fd < 0 ? -fd : 0;
    if (!error) {
        struct statx attributes;
        error = change(worker, request, fd);
        if (!error) error = -stat_at(worker->mirror, fd, "", &attributes);
        backing_put(worker->mirror, inode);
        if (!error) reply_attributes(worker, request->header->unique, inode, &attributes);
    }
    if (error) reply_error(worker, request->header->unique, error);
    inode_put(worker->mirror, inode);
}

void op_statfs(struct worker *worker, const struct request *request) {
    struct inode *inode = inode_of(worker, request);
    if (inode == NULL) return;
    int fd = backing_get(worker->mirror, inode);
    struct statfs from;
    int error = fd < 0 ? -fd : fstatfs(fd, &from) ? errno : 0;
    if (fd >= 0) backing_put(worker->mirror, inode);
    if (error) reply_error(worker, request->header->unique, error);
    else {
        struct fuse_statfs_out out = {
            .st = {.blocks = from.f_blocks,
                   .bfree = from.f_bfree,
                   .bavail = from.f_bavail,
                   .files = from.f_files,
                   .ffree = from.f_ffree,
                   .bsize = (uint32_t)from.f_bsize,
                   .namelen = (uint32_t)from.f_namelen,
                   .frsize = (uint32_t)from.f_frsize},
        };
        reply(worker, request->header->unique, &out, sizeof out);
    }
    inode_put(worker->mirror, inode);
}

void op_readlink(struct worker *worker, const struct request *request) {
    struct inode *inode = inode_of(worker, request);
    if (inode == NULL) return;
    int fd = backing_get(worker->mirror, inode);
    ssize_t size = fd < 0 ? fd : readlinkat(fd, "", worker->out, PATH_MAX);
    int error = fd < 0 ? -fd : size < 0 ? errno : 0;
    if (fd >= 0) backing_put(worker->mirror, inode);
    if (error) reply_error(worker, request->header->unique, error);
    else reply(worker, request->header->unique, worker->out, (size_t)size);
    inode_put(worker->mirror, inode);
}
