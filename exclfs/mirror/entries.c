/*
 * Entries: names in directories. Looking one up, forgetting, and everything that makes a new one but an open file.
 *
 * What is made belongs to the requester from its first moment: the system call runs with the requester's fsuid,
 * fsgid and umask, and the backing filesystem applies default ACLs and setgid directories itself.
 */
#include "mirror.h"

#include <stdio.h>

void fill_timeout(double seconds, uint64_t *whole, uint32_t *nanoseconds) {
    *whole = (uint64_t)seconds;
    *nanoseconds = (uint32_t)((seconds - (double)*whole) * 1e9);
}

/* The kernel knows nothing of views: it changes what it remembers of one of them only. So it is told not to believe
 * names in a directory that has several, nor what it knows of such a directory itself. */
void fill_entry(struct mirror *mirror, struct inode *inode, const struct statx *attributes,
                struct fuse_entry_out *entry) {
    *entry = (struct fuse_entry_out){.nodeid = inode->nodeid, .generation = inode->generation};
    struct inode *parent = atomic_load(&mirror->table.views) == 0 ? NULL : inode_parent(mirror, inode);
    bool shared = has_views(inode) || (parent != NULL && has_views(parent));
    if (parent != NULL) inode_put(mirror, parent);
    fill_timeout(shared ? 0 : mirror->settings.entry_timeout, &entry->entry_valid, &entry->entry_valid_nsec);
    fill_timeout(shared ? 0 : mirror->settings.attr_timeout, &entry->attr_valid, &entry->attr_valid_nsec);
    fill_attr(mirror, inode, attributes, &entry->attr);
}

static void reply_entry(struct worker *worker, uint64_t unique, struct inode *inode, const struct statx *attributes) {
    struct fuse_entry_out entry;
    fill_entry(worker->mirror, inode, attributes, &entry);
    if (reply(worker, unique, &entry, sizeof entry)) inode_forget(worker->mirror, inode->nodeid, 1);
}

/* A file handle is being opened: the kernel asks for the inode itself, or for a directory's parent. */
static void lookup_dots(struct worker *worker, const struct request *request, struct inode *inode) {
    struct mirror *mirror = worker->mirror;
    struct inode *found = inode;
    char name[NAME_MAX + 1];
    if (strcmp(request->name, "..") == 0) found = inode_place(mirror, inode, name);
    else inode_get(inode);
    struct statx attributes;
    int error = found == NULL ? -ESTALE : backing_stat(mirror, found, &attributes);
    if (error) reply_error(worker, request->header->unique, -error);
    else {
        inode_looked_up(mirror, found);
        reply_entry(worker, request->header->unique, found, &attributes);
    }
    if (found != NULL) inode_put(mirror, found);
}

/* A name that is not there, which the kernel may believe for a while: then it is an entry without an inode. */
static void reply_missing(struct worker *worker, const struct request *request, int error) {
    double believed = worker->mirror->settings.negative_timeout;
    struct fuse_entry_out nothing = {0};
    fill_timeout(believed, &nothing.entry_valid, &nothing.entry_valid_nsec);
    if (error == ENOENT && request->header->opcode == FUSE_LOOKUP && believed > 0)
        reply(worker, request->header->unique, &nothing, sizeof nothing);
    else
        reply_error(worker, request->header->unique, error);
}

/* Replies with the entry that (parent, name) is now. */
static void reply_found(struct worker *worker, const struct request *request, struct inode *parent, int parent_fd,
                        const char *name) {
    struct statx attributes;
    int error = stat_at(worker->mirror, parent_fd, name, &attributes);
    if (error) {
        reply_missing(worker, request, -error);
        return;
    }
    if (request->header->opcode == FUSE_LOOKUP) listing_missed(worker->mirror, parent);
    struct inode *inode = inode_seen(worker->mirror, parent, name, parent_fd, &attributes, 1);
    if (inode == NULL) {
        reply_error(worker, request->header->unique, ENOMEM);
        return;
    }
    reply_entry(worker, request->header->unique, inode, &attributes);
    inode_put(worker->mirror, inode);
}

/* Runs `make` in the parent directory, then replies with the new entry or the errno. */
static void in_parent(struct worker *worker, const struct request *request, const char *name,
                      int (*make)(struct worker *, const struct request *, int fd)) {
    struct inode *parent = inode_of(worker, request);
    if (parent == NULL) return;
    int fd = backing_get(worker->mirror, parent);
    if (fd < 0) reply_error(worker, request->header->unique, -fd);
    else {
        int error = make == NULL ? 0 : make(worker, request, fd);
        become_server(worker);
        if (error) reply_error(worker, request->header->unique, error);
        else reply_found(worker, request, parent, fd, name);
        backing_put(worker->mirror, parent);
    }
    inode_put(worker->mirror, parent);
}

void op_lookup(struct worker *worker, const struct request *request) {
    if (request->name[0] == '.' && (request->name[1] == 0 || (request->name[1] == '.' && request->name[2] == 0))) {
        struct inode *inode = inode_of(worker, request);
        if (inode == NULL) return;
        lookup_dots(worker, request, inode);
        inode_put(worker->mirror, inode);
        return;
    }
    in_parent(worker, request, request->name, NULL);
}

void op_forget(struct worker *worker, const struct request *request) {
    const struct fuse_forget_in *in = request->argument;
    inode_forget(worker->mirror, request->header->nodeid, in->nlookup);
}

void op_batch_forget(struct worker *worker, const struct request *request) {
    const struct fuse_batch_forget_in *in = request->argument;
    const struct fuse_forget_one *one = request->data;
    for (uint32_t i = 0; i < in->count; i++) inode_forget(worker->mirror, one[i].nodeid, one[i].nlookup);
}

static int make_directory(struct worker *worker, const struct request *request, int fd) {
    const struct fuse_mkdir_in *in = request->argument;
    int error = become_creator(worker, request->header, in->umask);
    if (error) return error;
    return mkdirat(fd, request->name, in->mode & 07777) ? errno : 0;
}

void op_mkdir(struct worker *worker, const struct request *request) {
    in_parent(worker, request, request->name, make_directory);
}

static int make_node(struct worker *worker, const struct request *request, int fd) {
    const struct fuse_mknod_in *in = request->argument;
    int error = become_creator(worker, request->header, in->umask);
    if (error) return error;
    /* The kernel's new_encode_dev(). */
    dev_t device = makedev((in->rdev & 0xfff00) >> 8, (in->rdev & 0xff) | ((in->rdev >> 12) & 0xfff00));
    return mknodat(fd, request->name, in->mode, device) ? errno : 0;
}

void op_mknod(struct worker *worker, const struct request *request) {
    in_parent(worker, request, request->name, make_node);
}

static int make_symlink(struct worker *worker, const struct request *request, int fd) {
    int error = become(worker, request->header);
    if (error) return error;
    return symlinkat(request->second_name, fd, request->name) ? errno : 0;
}

void op_symlink(struct worker *worker, const struct request *request) {
    in_parent(worker, request, request->name, make_symlink);
}

static int link_to(struct worker *worker, int target, int fd, const char *name) {
    if (linkat(target, "", fd, name, AT_EMPTY_PATH) == 0) return 0;
    if (errno != ENOENT) return errno;
    /* AT_EMPTY_PATH wants CAP_DAC_READ_SEARCH; without it, the name that the descriptor has in /proc. */
    char number[16];
    snprintf(number, sizeof number, "%d", target);
    return linkat(worker->mirror->proc_self_fd, number, fd, name, AT_SYMLINK_FOLLOW) ? errno : 0;
}

/* A file that is reached by two mounts is one nodeid, so FUSE does not tell by which of them it is to be linked. Where
 * it was seen last by another one than the new name's, it is opened by that. */
static int link_by_other_mount(struct worker *worker, int target, int fd, const char *name) {
    struct handle handle;
    if (!worker->mirror->settings.privileged || !backing_handle(target, "", &handle)) return EXDEV;
    int mount = backing_reopen(worker->mirror, fd, O_RDONLY | O_DIRECTORY);
    int same = mount < 0 ? mount : backing_open_handle(mount, &handle);
    int error = same < 0 ? EXDEV : link_to(worker, same, fd, name);
    if (same >= 0) close(same);
    if (mount >= 0) close(mount);
    return error;
}

static int make_link(struct worker *worker, const struct request *request, int fd) {
    const struct fuse_link_in *in = request->argument;
    struct inode *inode = inode_by_nodeid(worker->mirror, in->oldnodeid);
    if (inode == NULL) return ESTALE;
    int target = backing_get(worker->mirror, inode), error = target < 0 ? -target : 0;
    if (!error) {
        error = become_if_able(worker, request->header);
        if (!error) error = link_to(worker, target, fd, request->name);
        if (error == EXDEV && atomic_load(&inode->has_moved))
            error = link_by_other_mount(worker, target, fd, request->name);
        backing_put(worker->mirror, inode);
    }
    inode_put(worker->mirror, inode);
    return error;
}

void op_link(struct worker *worker, const struct request *request) {
    in_parent(worker, request, request->name, make_link);
}
