/*
 * Paths below the root, looked up as somebody else.
 *
 * A client that passes no descriptor names an object by its path. It is opened in the backing tree by a thread that
 * has become the client, so that nobody learns of, or holds, what he could not have reached himself.
 */
#include "mirror.h"

#include <linux/openat2.h>
#include <sys/syscall.h>

struct path_search {
    int source;
    const char *path;
};

static int search_path(void *argument) {
    const struct path_search *search = argument;
    struct open_how how = {
        .flags = O_PATH | O_NOFOLLOW | O_CLOEXEC,
        .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS,
    };
    int fd = (int)syscall(SYS_openat2, search->source, search->path, &how, sizeof how);
    return fd < 0 ? -errno : fd;
}

/* Makes the inode behind an O_PATH descriptor known, with every directory that leads to it. */
static struct inode *know_path(struct mirror *mirror, const char *path) {
    struct inode *at = mirror->root;
    inode_get(at);
    char *copy = strdup(path), *rest = copy, *name;
    while (copy != NULL && at != NULL && (name = strsep(&rest, "/")) != NULL) {
        if (*name == 0 || strcmp(name, ".") == 0) continue;
        struct statx attributes;
        int fd = backing_get(mirror, at);
        struct inode *next = NULL;
        if (fd >= 0) {
            if (strcmp(name, "..") != 0 && stat_at(fd, name, &attributes) == 0)
                next = inode_seen(mirror, at, name, fd, &attributes, 0);
            backing_put(mirror, at);
        }
        inode_put(mirror, at);
        at = next;
    }
    free(copy);
    return at;
}

/* Finds the inode at the path with this user's rights; it comes with a reference. 0 or -errno. */
int path_resolve(struct mirror *mirror, const char *path, uid_t uid, gid_t gid, const gid_t *groups, size_t count,
                 struct inode **found) {
    struct path_search search = {mirror->source, *path ? path : "."};
    int fd = run_as(uid, gid, groups, count, search_path, &search);
    if (fd < 0) return fd;
    struct statx seen;
    int error = stat_at(fd, "", &seen);
    close(fd);
    if (error) return error;
    struct inode *inode = know_path(mirror, path);
    /* What the requester could reach, and nothing else. */
    if (inode != NULL && same_key(inode->key, key_of(&seen)) && same_birth(inode, &seen)) {
        *found = inode;
        return 0;
    }
    if (inode != NULL) inode_put(mirror, inode);
    return -ESTALE;
}
