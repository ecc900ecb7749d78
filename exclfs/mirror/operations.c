/*
 * Operations: which function answers which opcode.
 *
 * What is not listed is ENOSYS, which the kernel remembers: it will not ask again. ACCESS is among them on purpose:
 * the mount has default_permissions, so the kernel has checked before it asks.
 */
#include "mirror.h"

typedef void operation(struct worker *, const struct request *);

static const struct {
    operation *serve;
    enum counter counter;
} operations[] = {
    [FUSE_LOOKUP] = {op_lookup, C_LOOKUP},
    [FUSE_FORGET] = {op_forget, C_FORGET},
    [FUSE_BATCH_FORGET] = {op_batch_forget, C_FORGET},
    [FUSE_GETATTR] = {op_getattr, C_GETATTR},
    [EXCLFS_FUSE_STATX] = {op_statx, C_GETATTR},
    [FUSE_SETATTR] = {op_setattr, C_SETATTR},
    [FUSE_READLINK] = {op_readlink, C_READLINK},
    [FUSE_SYMLINK] = {op_symlink, C_CREATE},
    [FUSE_MKNOD] = {op_mknod, C_CREATE},
    [FUSE_MKDIR] = {op_mkdir, C_CREATE},
    [FUSE_LINK] = {op_link, C_CREATE},
    [FUSE_CREATE] = {op_create, C_CREATE},
    [FUSE_TMPFILE] = {op_tmpfile, C_CREATE},
    [FUSE_UNLINK] = {op_unlink, C_REMOVE},
    [FUSE_RMDIR] = {op_rmdir, C_REMOVE},
    [FUSE_RENAME] = {op_rename, C_REMOVE},
    [FUSE_RENAME2] = {op_rename, C_REMOVE},
    [FUSE_OPEN] = {op_open, C_OPEN},
    [FUSE_READ] = {op_read, C_READ},
    [FUSE_WRITE] = {op_write, C_WRITE},
    [FUSE_FLUSH] = {op_flush, C_RELEASE},
    [FUSE_RELEASE] = {op_release, C_RELEASE},
    [FUSE_FSYNC] = {op_fsync, C_OTHER},
    [FUSE_FALLOCATE] = {op_fallocate, C_OTHER},
    [FUSE_LSEEK] = {op_lseek, C_OTHER},
    [FUSE_COPY_FILE_RANGE] = {op_copy_file_range, C_OTHER},
    [FUSE_OPENDIR] = {op_opendir, C_OPEN},
    [FUSE_READDIR] = {op_readdir, C_READDIR},
    [FUSE_READDIRPLUS] = {op_readdirplus, C_READDIR},
    [FUSE_RELEASEDIR] = {op_releasedir, C_RELEASE},
    [FUSE_FSYNCDIR] = {op_fsyncdir, C_OTHER},
    [FUSE_STATFS] = {op_statfs, C_OTHER},
    [FUSE_SETXATTR] = {op_setxattr, C_XATTR},
    [FUSE_GETXATTR] = {op_getxattr, C_XATTR},
    [FUSE_LISTXATTR] = {op_listxattr, C_XATTR},
    [FUSE_REMOVEXATTR] = {op_removexattr, C_XATTR},
};

void serve(struct worker *worker, const struct request *request) {
    uint32_t opcode = request->header->opcode;
    nested_serve(worker->mirror, request->header->pid);
    switch (opcode) {
    case FUSE_INIT:
        negotiate(worker, request);
        return;
    case FUSE_DESTROY:
        reply_error(worker, request->header->unique, 0);
        return;
    case FUSE_INTERRUPT: /* no operation waits for anything but the backing filesystem, a verdict or a gate */
        gates_interrupt(worker->mirror, request);
        return;
    }
    if (opcode >= sizeof operations / sizeof *operations || operations[opcode].serve == NULL) {
        reply_error(worker, request->header->unique, ENOSYS);
        return;
    }
    struct mirror *mirror = worker->mirror;
    if (worker->verdict == NULL && worker->sighting == NULL) { /* it has only come */
        count(mirror, operations[opcode].counter);
        bool watched = atomic_load_explicit(&mirror->gates.watched, memory_order_relaxed) >> opcode & 1;
        if (watched && gates_meet(worker, request)) return;
    }
    operations[opcode].serve(worker, request);
    become_server(worker);
    nested_serve(worker->mirror, 0);
}

struct inode *inode_of(struct worker *worker, const struct request *request) {
    struct inode *inode = inode_by_nodeid(worker->mirror, request->header->nodeid);
    int error = inode == NULL ? ESTALE : nested_is_loop(worker->mirror, inode) ? ELOOP : 0;
    if (!error) return inode;
    reply_error(worker, request->header->unique, error);
    if (inode != NULL) inode_put(worker->mirror, inode);
    return NULL;
}
