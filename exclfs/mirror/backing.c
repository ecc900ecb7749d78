/*
 * Backing: a descriptor for an inode of the backing tree.
 *
 * Never one descriptor per known inode: the O_PATH descriptors of the inodes in use come from a budget, in the order
 * of use. One that was closed is opened again by file handle (which needs privilege and cannot reach another inode)
 * or by the place where the inode was seen last; either way the identity is verified before the descriptor is used,
 * so a file that was replaced behind the mount gives ESTALE, never another file's data. What leads to a place is
 * opened in a loop, from the nearest directory that is open: a tree can be deeper than a stack.
 *
 * An inode to which nothing leads any more (its last name was removed, or never existed) keeps its descriptor pinned
 * until the kernel forgets it, or a name leads to it again. Of these there are at most as many as the budget has; beyond
 * that the one that was not used for longest is treated like every other.
 *
 * Open directories, and open files without passthrough, have descriptors of their own, up to a limit: who opens one too
 * many gets EMFILE, and nobody else notices.
 *
 * An open descriptor keeps its mount busy (umount(2), EBUSY), which on the backing tree a path that was only looked at
 * does not. So those on other mounts than the root's are closed once nobody has used them for a while: the thread of the
 * questions sweeps (backing_sweep). Handles are opened on the root's mount, so only what is reached by that has one.
 */
#include "mirror.h"

#include <sched.h>
#include <stdio.h>
#include <sys/syscall.h>

int backing_init(struct mirror *mirror) {
    mirror->budget.limit = mirror->settings.descriptors;
    return -pthread_mutex_init(&mirror->budget.lock, NULL);
}

void backing_destroy(struct mirror *mirror) { pthread_mutex_destroy(&mirror->budget.lock); }

bool backing_handle(int fd, const char *name, struct handle *handle) {
    union {
        struct file_handle handle;
        char space[sizeof(struct file_handle) + MAX_HANDLE_SZ];
    } from;
    from.handle.handle_bytes = HANDLE_MAX;
    int mount;
    if (name_to_handle_at(fd, name, &from.handle, &mount, *name == 0 ? AT_EMPTY_PATH : 0)) return false;
    handle->type = from.handle.handle_type;
    handle->bytes = from.handle.handle_bytes;
    memcpy(handle->data, from.handle.f_handle, handle->bytes);
    return true;
}

int backing_open_handle(int mount_fd, const struct handle *handle) {
    union {
        struct file_handle handle;
        char space[sizeof(struct file_handle) + MAX_HANDLE_SZ];
    } from;
    from.handle.handle_type = handle->type;
    from.handle.handle_bytes = handle->bytes;
    memcpy(from.handle.f_handle, handle->data, handle->bytes);
    /* While the number of an inode that has gone is being given to a new one, ext4 says ENOMEM for ESTALE (iget_locked()
     * finds an inode in the state I_CREATING). */
    int fd, tries = 100;
    do fd = open_by_handle_at(mount_fd, &from.handle, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    while (fd < 0 && errno == ENOMEM && tries-- > 0 && sched_yield() == 0);
    return fd < 0 ? -errno : fd;
}

static bool is_inode(const struct inode *inode, const struct statx *attributes) {
    return same_key(inode->key, key_of(attributes)) && same_birth(inode, attributes);
}

/* A directory is also told by the mount: by another one, another name leads up from it. */
static bool is_this(const struct inode *inode, const struct statx *attributes) {
    return is_inode(inode, attributes) &&
           (inode_type(inode) != S_IFDIR || atomic_load(&inode->mount) == mount_of(attributes));
}

/* The descriptor, if it is of what it should be; else it is closed. */
static int verified(struct mirror *mirror, const struct inode *inode, int fd,
                    bool (*is)(const struct inode *, const struct statx *)) {
    struct statx attributes;
    int error = fd < 0 ? fd : stat_at(mirror, fd, "", &attributes);
    if (!error && !is(inode, &attributes)) error = -ESTALE;
    if (error && fd >= 0) close(fd);
    return error ? error : fd;
}

/* ---- the budget, in the order of use; all of it under its lock ------------------------------------------- */

static struct order *order_of(struct mirror *mirror, const struct inode *inode) {
    if (inode->fd_pinned) return &mirror->budget.pinned;
    return inode->fd_nested ? &mirror->budget.nested : &mirror->budget.spare;
}

static void unlink_from_order(struct mirror *mirror, struct inode *inode) {
    struct order *order = order_of(mirror, inode);
    if (inode->newer != NULL) inode->newer->older = inode->older;
    else order->newest = inode->older;
    if (inode->older != NULL) inode->older->newer = inode->newer;
    else order->oldest = inode->newer;
    inode->newer = inode->older = NULL;
    order->count--;
}

static void put_newest(struct mirror *mirror, struct inode *inode) {
    struct order *order = order_of(mirror, inode);
    inode->fd_used = true;
    inode->older = order->newest;
    inode->newer = NULL;
    if (order->newest != NULL) order->newest->newer = inode;
    else order->oldest = inode;
    order->newest = inode;
    order->count++;
}

/* Gives the inode its descriptor. True if somebody has to begin to sweep. */
static bool take_descriptor(struct mirror *mirror, struct inode *inode, int fd) {
    inode->fd = fd;
    inode->fd_nested = atomic_load(&inode->mount) != mirror->home.mount;
    put_newest(mirror, inode);
    return inode->fd_nested && mirror->budget.nested.count == 1;
}

/* Takes it out of the budget, to be closed. */
static int give_up_descriptor(struct mirror *mirror, struct inode *inode) {
    unlink_from_order(mirror, inode);
    int fd = inode->fd;
    inode->fd = -1;
    return fd;
}

static void set_pinned(struct mirror *mirror, struct inode *inode, bool pinned) {
    if (inode->fd_pinned == pinned) return;
    unlink_from_order(mirror, inode);
    inode->fd_pinned = pinned;
    put_newest(mirror, inode);
}

static unsigned number_of(const struct mirror *mirror) {
    return mirror->budget.spare.count + mirror->budget.nested.count;
}

/* Takes descriptors that nobody uses out of the budget until it fits; gives up to `most` of them to be closed. */
static unsigned overdrawn(struct mirror *mirror, int *fds, unsigned most) {
    bool nested_first = mirror->budget.nested.count > mirror->budget.limit / 2;
    unsigned taken = 0;
    for (int round = 0; round < 2; round++) {
        struct order *order = nested_first == (round == 0) ? &mirror->budget.nested : &mirror->budget.spare;
        for (struct inode *inode = order->oldest, *newer;
             inode != NULL && taken < most && number_of(mirror) > mirror->budget.limit; inode = newer) {
            newer = inode->newer;
            if (inode->fd_users == 0) fds[taken++] = give_up_descriptor(mirror, inode);
        }
    }
    return taken;
}

bool backing_must_sweep(struct mirror *mirror) {
    pthread_mutex_lock(&mirror->budget.lock);
    bool must = mirror->budget.nested.count > 0;
    pthread_mutex_unlock(&mirror->budget.lock);
    return must;
}

void backing_sweep(struct mirror *mirror) {
    enum { AT_A_TIME = 64 };
    int fds[AT_A_TIME];
    unsigned taken = 0;
    bool full;
    do {
        pthread_mutex_lock(&mirror->budget.lock);
        full = false;
        for (struct inode *inode = mirror->budget.nested.oldest, *newer; inode != NULL && !full; inode = newer) {
            newer = inode->newer;
            if (inode->fd_users == 0 && !inode->fd_used) fds[taken++] = give_up_descriptor(mirror, inode);
            else inode->fd_used = inode->fd_users > 0;
            full = taken == AT_A_TIME;
        }
        pthread_mutex_unlock(&mirror->budget.lock);
        while (taken > 0) close(fds[--taken]);
    } while (full);
}

/* The descriptor that the inode has, counted as used, or -1. */
static int use_open(struct mirror *mirror, struct inode *inode) {
    pthread_mutex_lock(&mirror->budget.lock);
    int fd = inode->fd;
    if (fd >= 0) {
        inode->fd_users++;
        inode->fd_used = true;
        if (inode->newer != NULL) {
            unlink_from_order(mirror, inode);
            put_newest(mirror, inode);
        }
    }
    pthread_mutex_unlock(&mirror->budget.lock);
    return fd;
}

/* Gives the inode this descriptor, which is verified, and counts it as used. */
static int use_opened(struct mirror *mirror, struct inode *inode, int fd) {
    int surplus[8];
    unsigned close_them = 0;
    bool begins = false;
    pthread_mutex_lock(&mirror->budget.lock);
    if (inode->fd >= 0) { /* somebody else was faster */
        surplus[close_them++] = fd;
        fd = inode->fd;
    } else
        begins = take_descriptor(mirror, inode, fd);
    inode->fd_users++;
    close_them += overdrawn(mirror, surplus + close_them, 7);
    pthread_mutex_unlock(&mirror->budget.lock);
    if (begins) questions_wake(mirror);
    while (close_them--) close(surplus[close_them]);
    return fd;
}

/* What was removed has no name; its primary has its descriptor. */
static int use_primary(struct mirror *mirror, struct inode *inode) {
    struct inode *primary = inode->primary;
    if (primary == NULL || !atomic_load(&primary->removed)) return -ESTALE;
    int fd = use_open(mirror, primary);
    if (fd < 0) return -ESTALE;
    int own = fcntl(fd, F_DUPFD_CLOEXEC, 0), error = -errno;
    backing_put(mirror, primary);
    return own < 0 ? error : use_opened(mirror, inode, own);
}

/* Without the help of any place: the descriptor that there is, or one by file handle. -ESTALE if neither leads there. */
static int use_directly(struct mirror *mirror, struct inode *inode) {
    int fd = use_open(mirror, inode);
    if (fd >= 0) return fd;
    if (inode->handle_bytes == 0) return use_primary(mirror, inode);
    struct handle handle;
    inode_handle(inode, &handle);
    fd = verified(mirror, inode, backing_open_handle(mirror->source, &handle), is_inode);
    if (fd >= 0) return use_opened(mirror, inode, fd);
    return fd == -EMFILE || fd == -ENFILE ? fd : -ESTALE;
}

static int open_at(int parent_fd, const char *name) {
    int fd = openat(parent_fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (fd >= 0) return fd;
    return errno == ENOENT || errno == ENOTDIR ? -ESTALE : -errno;
}

/* By its place in a directory that is in use. */
static int use_by_place(struct mirror *mirror, struct inode *inode, int parent_fd) {
    char name[NAME_MAX + 1];
    struct inode *parent = inode_place(mirror, inode, name);
    if (parent == NULL) return -ESTALE;
    inode_put(mirror, parent);
    int fd = verified(mirror, inode, open_at(parent_fd, name), is_this);
    return fd < 0 ? fd : use_opened(mirror, inode, fd);
}

int backing_get_at(struct mirror *mirror, struct inode *inode, int parent_fd, const char *name) {
    int fd = backing_get(mirror, inode);
    if (fd != -ESTALE) return fd;
    fd = verified(mirror, inode, open_at(parent_fd, name), is_inode);
    return fd < 0 ? fd : use_opened(mirror, inode, fd);
}

enum { DEEPEST = 1 << 20 }; /* hints that lead round in a circle end somewhere */

/* Appends to a list that grows. */
static bool append(struct inode ***list, size_t *length, struct inode *inode) {
    if (*length == DEEPEST) return false;
    if ((*length & (*length - 1)) == 0) { /* full at each power of two */
        struct inode **longer = realloc(*list, (*length == 0 ? 1 : *length * 2) * sizeof **list);
        if (longer == NULL) return false;
        *list = longer;
    }
    (*list)[(*length)++] = inode;
    return true;
}

int backing_get(struct mirror *mirror, struct inode *inode) {
    int fd = use_directly(mirror, inode);
    if (fd != -ESTALE) return fd;

    struct inode **above = NULL, *at = inode; /* those that must be opened first, and are not open */
    size_t depth = 0;
    char name[NAME_MAX + 1];
    while (fd == -ESTALE && (at = inode_place(mirror, at, name)) != NULL) {
        if (append(&above, &depth, at)) fd = use_directly(mirror, at);
        else {
            inode_put(mirror, at);
            break;
        }
    }
    /* The last of them has a descriptor now, or nothing has. */
    while (depth > 0) {
        struct inode *parent = above[--depth];
        int parent_fd = fd;
        if (parent_fd >= 0) {
            fd = use_by_place(mirror, depth > 0 ? above[depth - 1] : inode, parent_fd);
            backing_put(mirror, parent);
        }
        inode_put(mirror, parent);
    }
    free(above);
    return fd;
}

void backing_put(struct mirror *mirror, struct inode *inode) {
    pthread_mutex_lock(&mirror->budget.lock);
    inode->fd_users--;
    pthread_mutex_unlock(&mirror->budget.lock);
}

/* Under the lock, at a moment when spare descriptors can be closed. */
static void pin(struct mirror *mirror, struct inode *inode) {
    set_pinned(mirror, inode, true);
    struct order *pinned = &mirror->budget.pinned;
    struct inode *oldest = pinned->oldest == mirror->root ? pinned->oldest->newer : pinned->oldest;
    if (pinned->count > mirror->budget.limit + 1 && oldest != NULL) set_pinned(mirror, oldest, false);
}

int backing_pin(struct mirror *mirror, struct inode *inode) {
    int fd = backing_get(mirror, inode);
    if (fd < 0) return fd;
    int surplus[2];
    pthread_mutex_lock(&mirror->budget.lock);
    pin(mirror, inode);
    inode->fd_users--;
    unsigned close_them = overdrawn(mirror, surplus, 2);
    pthread_mutex_unlock(&mirror->budget.lock);
    while (close_them--) close(surplus[close_them]);
    return 0;
}

void backing_unpin(struct mirror *mirror, struct inode *inode) {
    pthread_mutex_lock(&mirror->budget.lock);
    if (inode->fd >= 0) set_pinned(mirror, inode, false); /* the next that is opened makes room */
    pthread_mutex_unlock(&mirror->budget.lock);
}

int backing_adopt(struct mirror *mirror, struct inode *inode, int fd) {
    pthread_mutex_lock(&mirror->budget.lock);
    bool taken = inode->fd < 0;
    if (taken) take_descriptor(mirror, inode, fd);
    pin(mirror, inode);
    pthread_mutex_unlock(&mirror->budget.lock);
    if (!taken) close(fd);
    return 0;
}

void backing_drop(struct mirror *mirror, struct inode *inode) {
    pthread_mutex_lock(&mirror->budget.lock);
    int fd = inode->fd;
    if (fd >= 0) {
        unlink_from_order(mirror, inode);
        inode->fd = -1;
    }
    pthread_mutex_unlock(&mirror->budget.lock);
    if (fd >= 0) close(fd);
}

bool open_begins(struct mirror *mirror) {
    unsigned before = atomic_fetch_add(&mirror->opens, 1), most = mirror->settings.opens;
    if (most == 0 || before < most) return true;
    open_closed(mirror);
    return false;
}

void open_closed(struct mirror *mirror) { atomic_fetch_sub(&mirror->opens, 1); }

/* The working directory of every worker is /proc/self/fd, so the number alone is the path. */
int backing_reopen(struct mirror *mirror, int fd, int flags) {
    char number[16];
    snprintf(number, sizeof number, "%d", fd);
    int real = openat(mirror->proc_self_fd, number, (flags & ~(O_NOFOLLOW | O_CREAT | O_EXCL)) | O_CLOEXEC | O_NOCTTY);
    return real < 0 ? -errno : real;
}

/* One system call where the place is still right, and no descriptor of the inode itself. */
int backing_stat(struct mirror *mirror, struct inode *inode, struct statx *attributes) {
    if (inode_type(inode) != S_IFDIR && !atomic_load(&primary_of(inode)->removed)) {
        char name[NAME_MAX + 1];
        struct inode *parent = inode_place(mirror, inode, name);
        if (parent != NULL) {
            int fd = backing_get(mirror, parent);
            int error = fd < 0 ? fd : stat_at(mirror, fd, name, attributes);
            if (fd >= 0) backing_put(mirror, parent);
            inode_put(mirror, parent);
            if (!error && is_this(inode, attributes)) return 0;
        }
    }
    int fd = backing_get(mirror, inode);
    if (fd < 0) return fd;
    int error = stat_at(mirror, fd, "", attributes);
    backing_put(mirror, inode);
    return error;
}

bool backing_leads_to(struct mirror *mirror, struct inode *inode) {
    char name[NAME_MAX + 1];
    struct statx attributes;
    struct inode *parent = inode_place(mirror, inode, name);
    if (parent == NULL) return inode == mirror->root;
    int fd = backing_get(mirror, parent);
    bool leads = fd >= 0 && stat_at(mirror, fd, name, &attributes) == 0 && is_this(inode, &attributes);
    if (fd >= 0) backing_put(mirror, parent);
    inode_put(mirror, parent);
    return leads;
}
