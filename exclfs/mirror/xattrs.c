/*
 * Extended attributes, through /proc/self/fd: an O_PATH descriptor has no xattr calls of its own.
 *
 * The kernel has checked every name but those in the system namespace, which it leaves to the filesystem. So of
 * these only POSIX ACLs (which it does check) are passed on to be set; the server's privilege must not set an NFSv4
 * ACL for a stranger. Names of exclfs are answered by the policy.
 */
#include "mirror.h"

#include <stdio.h>
#include <sys/xattr.h>

static bool is_exclfs_name(const char *name) {
    return strncmp(name, "user.exclfs.", 12) == 0 || strncmp(name, "system.exclfs.", 14) == 0;
}

static bool may_change(const char *name) {
    return strncmp(name, "system.", 7) != 0 || strcmp(name, "system.posix_acl_access") == 0 ||
           strcmp(name, "system.posix_acl_default") == 0;
}

/* Capabilities of a file count as setuid bits do: not on a mount with nosuid. */
static bool is_hidden(const struct inode *inode, const struct request *request) {
    return request->header->opcode == FUSE_GETXATTR && strcmp(request->name, "security.capability") == 0 &&
           atomic_load_explicit(&inode->limits, memory_order_relaxed) & NO_SUID;
}

/* Runs `call` with the inode's path in /proc/self/fd; replies with an errno unless it has replied itself. */
static void on_inode(struct worker *worker, const struct request *request,
                     int (*call)(struct worker *, const struct request *, const char *path)) {
    struct inode *inode = inode_of(worker, request);
    if (inode == NULL) return;
    int fd = is_hidden(inode, request) ? -ENODATA : backing_get(worker->mirror, inode), error = -fd;
    if (fd >= 0) {
        char number[16];
        snprintf(number, sizeof number, "%d", fd);
        error = call(worker, request, number);
        backing_put(worker->mirror, inode);
    }
    if (error >= 0) reply_error(worker, request->header->unique, error);
    inode_put(worker->mirror, inode);
}

enum { REPLIED = -1 };

static int reply_value(struct worker *worker, const struct request *request, ssize_t size) {
    const struct fuse_getxattr_in *in = request->argument;
    if (size < 0) return errno;
    if (in->size == 0) {
        struct fuse_getxattr_out out = {.size = (uint32_t)size};
        reply(worker, request->header->unique, &out, sizeof out);
    } else
        reply(worker, request->header->unique, worker->out, (size_t)size);
    return REPLIED;
}

static size_t room(const struct request *request) {
    const struct fuse_getxattr_in *in = request->argument;
    return in->size < BODY_MAX ? in->size : BODY_MAX;
}

static int get(struct worker *worker, const struct request *request, const char *path) {
    return reply_value(worker, request, getxattr(path, request->name, worker->out, room(request)));
}

static int list(struct worker *worker, const struct request *request, const char *path) {
    int error = become_lister(worker, request->header);
    if (error) return error;
    ssize_t size = listxattr(path, worker->out, room(request));
    error = errno;
    become_server(worker);
    errno = error;
    return reply_value(worker, request, size);
}

static int set(struct worker *worker, const struct request *request, const char *path) {
    const struct fuse_setxattr_in *in = request->argument;
    int error = become_if_able(worker, request->header);
    if (!error && setxattr(path, request->name, request->data, request->data_size, (int)in->flags)) error = errno;
    become_server(worker);
    if (error) return error;
    if (in->setxattr_flags & FUSE_SETXATTR_ACL_KILL_SGID) { /* the requester is not in the file's group */
        struct stat status;
        if (stat(path, &status)) return errno;
        if (status.st_mode & S_ISGID && chmod(path, status.st_mode & 07777 & ~S_ISGID)) return errno;
    }
    return 0;
}

static int drop(struct worker *worker, const struct request *request, const char *path) {
    (void)worker;
    return removexattr(path, request->name) ? errno : 0;
}

void op_getxattr(struct worker *worker, const struct request *request) {
    if (is_exclfs_name(request->name)) ask_xattr(worker, request);
    else on_inode(worker, request, get);
}

void op_listxattr(struct worker *worker, const struct request *request) { on_inode(worker, request, list); }

void op_setxattr(struct worker *worker, const struct request *request) {
    const struct fuse_setxattr_in *in = request->argument;
    if (in->flags & ~(uint32_t)(XATTR_CREATE | XATTR_REPLACE)) reply_error(worker, request->header->unique, EINVAL);
    else if (is_exclfs_name(request->name)) ask_xattr(worker, request);
    else if (!may_change(request->name)) reply_error(worker, request->header->unique, EOPNOTSUPP);
    else on_inode(worker, request, set);
}

void op_removexattr(struct worker *worker, const struct request *request) {
    if (is_exclfs_name(request->name)) ask_xattr(worker, request);
    else if (!may_change(request->name)) reply_error(worker, request->header->unique, EOPNOTSUPP);
    else on_inode(worker, request, drop);
}
