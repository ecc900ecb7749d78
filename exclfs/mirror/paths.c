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

/* The inode that the name leads to in a directory, with a reference. 0, -ESTALE if nothing is there, or -errno. */
static int step_down(struct mirror *mirror, struct inode *directory, const char *name, struct inode **found) {
    struct statx attributes;
    int fd = strcmp(name, "..") == 0 ? -ESTALE : backing_get(mirror, directory);
    if (fd < 0) return fd;
    tree_look_begin(mirror);
    int error = stat_at(fd, name, &attributes);
    if (!error) {
        *found = inode_seen(mirror, directory, name, fd, &attributes, 0);
        if (*found == NULL) error = -ENOMEM;
    }
    tree_end(mirror);
    backing_put(mirror, directory);
    return error == -ENOENT || error == -ENOTDIR ? -ESTALE : error;
}

/* Makes what the path leads to known, with every directory on the way; all with references, the root first. Their
 * number; -ESTALE if nothing is there, or -errno. */
int path_way(struct mirror *mirror, const char *path, struct inode *way[MOST_ABOVE]) {
    char *copy = strdup(path), *rest = copy, *name;
    int number = 1, error = copy == NULL ? -ENOMEM : 0;
    inode_get(way[0] = mirror->root);
    while (!error && (name = strsep(&rest, "/")) != NULL) {
        if (*name == 0 || strcmp(name, ".") == 0) continue;
        error = number < MOST_ABOVE ? step_down(mirror, way[number - 1], name, &way[number]) : -ENAMETOOLONG;
        if (!error) number++;
    }
    free(copy);
    if (!error) return number;
    while (number > 0) inode_put(mirror, way[--number]);
    return error;
}

int path_known(struct mirror *mirror, const char *path, struct inode **found) {
    struct inode **way = calloc(MOST_ABOVE, sizeof *way);
    int number = way == NULL ? -ENOMEM : path_way(mirror, path, way), error = number < 0 ? number : 0;
    if (!error) *found = way[--number];
    while (number > 0) inode_put(mirror, way[--number]);
    free(way);
    return error;
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
    struct inode *inode;
    error = path_known(mirror, path, &inode);
    if (error) return error;
    /* What the requester could reach, and nothing else. */
    if (same_key(inode->key, key_of(&seen)) && same_birth(inode, &seen)) {
        *found = inode;
        return 0;
    }
    inode_put(mirror, inode);
    return -ESTALE;
}

struct path_access {
    int fd, mask;
};

static int try_access(void *argument) {
    const struct path_access *access = argument;
    return syscall(SYS_faccessat2, access->fd, "", access->mask, AT_EMPTY_PATH | AT_EACCESS) ? -errno : 0;
}

int path_access(struct mirror *mirror, struct inode *inode, uid_t uid, gid_t gid, const gid_t *groups, size_t count,
                int mask) {
    struct path_access access = {backing_get(mirror, inode), mask};
    if (access.fd < 0) return access.fd;
    int error = run_as(uid, gid, groups, count, try_access, &access);
    backing_put(mirror, inode);
    return error;
}
