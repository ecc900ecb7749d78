/*
 * Identity: what tells an inode from every other, also across a restart of the server.
 *
 * That is its file handle where the filesystem has handles that a privileged server can open: it names the inode and
 * its generation. Elsewhere it is the inode number, the type and the birth time. A path only says where to look first.
 * An inode that is not found again is gone; none is ever taken for another.
 */
#include "mirror.h"

#include <stdio.h>

void identity_of(const struct mirror *mirror, const struct inode *inode, struct identity *identity) {
    *identity = (struct identity){
        .ino = inode->key.ino,
        .birth_seconds = inode->birth_seconds,
        .birth_nanoseconds = inode->birth_nanoseconds,
        .generation = inode->generation,
        .type = inode_type(inode),
        .nested = inode->key.dev != mirror->root->key.dev,
    };
    inode_handle(inode, &identity->handle);
}

static bool is_that(const struct mirror *mirror, const struct inode *inode, const struct identity *identity) {
    struct identity other;
    identity_of(mirror, inode, &other);
    if (other.ino != identity->ino || other.type != identity->type || other.nested != identity->nested) return false;
    if (other.handle.bytes > 0 && identity->handle.bytes > 0)
        return other.handle.type == identity->handle.type && other.handle.bytes == identity->handle.bytes &&
               memcmp(other.handle.data, identity->handle.data, other.handle.bytes) == 0;
    return other.birth_seconds == identity->birth_seconds && other.birth_nanoseconds == identity->birth_nanoseconds;
}

static int found_at(struct mirror *mirror, const struct identity *identity, const char *path, struct inode **found) {
    struct inode *inode;
    int error = path_known(mirror, path, &inode);
    if (error) return error;
    if (is_that(mirror, primary_of(inode), identity)) {
        *found = inode;
        return 0;
    }
    inode_put(mirror, inode);
    return -ESTALE;
}

/* What /proc says of the name of a descriptor. */
static int name_of(struct mirror *mirror, int fd, char path[PATH_MAX]) {
    char number[16];
    snprintf(number, sizeof number, "%d", fd);
    ssize_t size = readlinkat(mirror->proc_self_fd, number, path, PATH_MAX - 1);
    if (size < 0) return -errno;
    path[size] = 0;
    return 0;
}

/* The part of the path below the root of the tree; NULL if it is not below. */
static const char *below_root(const char *root, const char *path) {
    size_t size = strcmp(root, "/") == 0 ? 0 : strlen(root);
    return strncmp(path, root, size) == 0 && path[size] == '/' ? path + size + 1 : NULL;
}

/* Finds the inode of an open handle in the tree. A file that nobody has looked up since the filesystem was mounted has
 * no name yet, which the kernel shows as "/"; then where it lies will be known when it is looked up. */
static int found_by(struct mirror *mirror, const struct identity *identity, int fd, struct inode **found) {
    struct statx attributes;
    char root[PATH_MAX], path[PATH_MAX];
    int error = stat_at(mirror, fd, "", &attributes);
    if (!error && attributes.stx_nlink == 0) error = -ESTALE;
    if (!error) error = name_of(mirror, mirror->source, root);
    if (!error) error = name_of(mirror, fd, path);
    if (error) return error;
    const char *below = below_root(root, path);
    bool nameless = strcmp(path, "/") == 0 && !S_ISDIR(attributes.stx_mode);
    if (!nameless) return below == NULL ? -ESTALE : found_at(mirror, identity, below, found);
    *found = inode_seen(mirror, NULL, "", fd, &attributes, 0);
    return *found == NULL ? -ENOMEM : 0;
}

int identity_restore(struct mirror *mirror, const struct identity *identity, const char *path, struct inode **found) {
    int error = found_at(mirror, identity, path, found);
    bool opens = !identity->nested && identity->handle.bytes > 0 && atomic_load(&mirror->handles);
    if (error != -ESTALE || !opens) return error;
    int fd = backing_open_handle(mirror->source, &identity->handle);
    if (fd < 0) return fd;
    error = found_by(mirror, identity, fd, found);
    close(fd);
    return error;
}
