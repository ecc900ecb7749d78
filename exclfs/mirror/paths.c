/*
 * Paths below the root, looked up as somebody else.
 *
 * A client that passes no descriptor names an object by its path. It is opened in the backing tree by a thread that
 * has become the client, so that nobody learns of, or holds, what he could not have reached himself: name by name, no
 * symlink is followed, and what lies on our own mount is a loop.
 */
#include "mirror.h"

#include <sys/syscall.h>

struct path_search {
    struct mirror *mirror;
    const char *path;
};

/* What the name leads to, which must not be our own mount: asking that would be asking ourselves. */
static int search_step(struct mirror *mirror, int directory, const char *name, bool is_last) {
    if (strcmp(name, "..") == 0) return -EXDEV;
    struct statx attributes;
    int fd = openat(directory, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    int error = fd < 0 ? -errno : stat_at(mirror, fd, "", &attributes);
    if (!error && !is_last && S_ISLNK(attributes.stx_mode)) error = -ELOOP;
    if (error && fd >= 0) close(fd);
    return error ? error : fd;
}

static int search_path(void *argument) {
    const struct path_search *search = argument;
    char *copy = strdup(search->path), *rest = copy, *name;
    int fd = copy == NULL ? -ENOMEM : openat(search->mirror->source, ".", O_PATH | O_CLOEXEC);
    if (copy != NULL && fd < 0) fd = -errno;
    while (fd >= 0 && (name = strsep(&rest, "/")) != NULL) {
        bool is_last = rest == NULL;
        int directory = fd;
        /* A slash at the end asks for a directory, which "." in it can only be found in. */
        if (*name == 0 && !(is_last && name != copy)) continue;
        fd = search_step(search->mirror, directory, *name == 0 ? "." : name, is_last);
        close(directory);
    }
    free(copy);
    return fd;
}

/* The inode that the name leads to in a directory, with a reference. 0, -ESTALE if nothing is there, or -errno. */
static int step_down(struct mirror *mirror, struct inode *directory, const char *name, struct inode **found) {
    struct statx attributes;
    int fd = strcmp(name, "..") == 0 ? -ESTALE : backing_get(mirror, directory);
    if (fd < 0) return fd;
    tree_look_begin(mirror);
    int error = stat_at(mirror, fd, name, &attributes);
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
    struct path_search search = {mirror, path};
    int fd = run_as(uid, gid, groups, count, search_path, &search);
    if (fd < 0) return fd;
    struct statx seen;
    int error = stat_at(mirror, fd, "", &seen);
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
