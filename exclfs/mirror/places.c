/*
 * Places: the name by which an inode was seen last, and the directory that it was in.
 *
 * A place is a hint. Whoever follows it verifies what it leads to (backing.c), so that one which has become wrong behind
 * the mount gives ESTALE and never another inode. What was renamed through the mount is known under its new name at
 * once, by whichever mounts its directories are reached.
 */
#include "mirror.h"

#include <stdio.h>

static pthread_mutex_t *place_lock(struct mirror *mirror, const struct inode *inode) {
    return &mirror->place_locks[mix((uintptr_t)inode) % PLACE_LOCKS];
}

/* Sets the place, which had `old` for an allocated name. Under the place lock; false if there is no memory. */
static bool set_name(struct inode *inode, const char *name, char **old) {
    bool fits = strlen(name) <= inode->name_room;
    char *to = fits ? inode->packed : strdup(name);
    if (to == NULL) return false;
    if (inode->name != inode->packed) *old = inode->name;
    inode->name = fits ? strcpy(to, name) : to;
    return true;
}

void inode_moved(struct mirror *mirror, struct inode *inode, struct inode *parent, const char *name) {
    if (inode == mirror->root || inode == parent) return;
    pthread_mutex_t *lock = place_lock(mirror, inode);
    char *old = NULL;
    pthread_mutex_lock(lock);
    struct inode *before = inode->parent;
    bool stays = before == parent && strcmp(inode->name, name) == 0;
    if (!stays && !set_name(inode, name, &old)) stays = true; /* an old hint is verified before it is believed */
    if (!stays) {
        inode_get(parent);
        inode->parent = parent;
    }
    pthread_mutex_unlock(lock);
    free(old);
    if (stays) return;
    /* A hold that begins to reach below after this was looked at changes the tree itself. */
    if (before != parent && inode_type(inode) == S_IFDIR && atomic_load(&mirror->tree.below) > 0) tree_changed(mirror);
    if (before != NULL) inode_put(mirror, before);
    if (!atomic_load(&primary_of(inode)->removed)) backing_unpin(mirror, inode);
}

void inode_lost(struct mirror *mirror, struct inode *inode) {
    pthread_mutex_t *lock = place_lock(mirror, inode);
    pthread_mutex_lock(lock);
    struct inode *before = inode->parent;
    inode->parent = NULL;
    pthread_mutex_unlock(lock);
    if (before != NULL) inode_put(mirror, before);
}

/* The view of this directory by this mount, with a reference; NULL if nobody knows it. */
static struct inode *view_by(struct mirror *mirror, struct inode *directory, uint64_t mount) {
    struct inode *views[MOST_VIEWS], *found = NULL;
    for (unsigned left = inode_views(mirror, directory, views); left > 0;) {
        struct inode *view = views[--left];
        if (found == NULL && atomic_load(&view->mount) == mount) found = view;
        else inode_put(mirror, view);
    }
    return found;
}

/* The name by which this view was known in `parent` has gone to `to`, a directory by whatever mount. */
static void follow(struct mirror *mirror, struct inode *view, struct inode *parent, struct inode *to,
                   const char *new_name) {
    struct inode *there = parent == NULL ? NULL : view_by(mirror, to, atomic_load(&parent->mount));
    if (there != NULL) {
        inode_moved(mirror, view, there, new_name);
        inode_put(mirror, there);
    } else if (inode_type(view) != S_IFDIR && atomic_load(&view->limits) == atomic_load(&to->limits)) {
        atomic_store(&view->mount, atomic_load(&to->mount));
        inode_moved(mirror, view, to, new_name);
    }
}

void inode_renamed(struct mirror *mirror, struct inode *inode, struct inode *from, const char *name, struct inode *to,
                   const char *new_name) {
    if (atomic_load(&mirror->table.views) == 0) {
        inode_moved(mirror, inode, to, new_name);
        return;
    }
    struct inode *views[MOST_VIEWS];
    for (unsigned left = inode_views(mirror, inode, views); left > 0;) {
        struct inode *view = views[--left];
        char at[NAME_MAX + 1];
        struct inode *parent = inode_place(mirror, view, at);
        if (parent == NULL || (primary_of(parent) == primary_of(from) && strcmp(at, name) == 0))
            follow(mirror, view, parent, to, new_name);
        if (parent != NULL) inode_put(mirror, parent);
        inode_put(mirror, view);
    }
}

struct inode *inode_parent(struct mirror *mirror, struct inode *inode) {
    pthread_mutex_t *lock = place_lock(mirror, inode);
    pthread_mutex_lock(lock);
    struct inode *parent = inode->parent;
    if (parent != NULL) inode_get(parent);
    pthread_mutex_unlock(lock);
    return parent;
}

/* Copies the place of an inode; the parent comes with a reference, NULL for the root. */
struct inode *inode_place(struct mirror *mirror, struct inode *inode, char name[NAME_MAX + 1]) {
    pthread_mutex_t *lock = place_lock(mirror, inode);
    pthread_mutex_lock(lock);
    struct inode *parent = inode->parent;
    if (parent != NULL) {
        inode_get(parent);
        snprintf(name, NAME_MAX + 1, "%s", inode->name);
    }
    pthread_mutex_unlock(lock);
    return parent;
}

/* Writes the path from its end; a path that does not fit, or runs in a circle, begins with "...". */
size_t inode_path(struct mirror *mirror, struct inode *directory, const char *name, char *path, size_t size) {
    char *begin = path + size - 1, part[NAME_MAX + 1];
    *begin = 0;
    size_t length = strlen(name);
    if (length > size - 8) length = size - 8;
    begin -= length;
    memcpy(begin, name, length);

    struct inode *at = directory, *parent;
    inode_get(at);
    for (unsigned depth = 0; (parent = inode_place(mirror, at, part)) != NULL; depth++) {
        inode_put(mirror, at);
        at = parent;
        size_t more = strlen(part);
        bool separator = *begin != 0;
        if (depth > 4096 || (size_t)(begin - path) < more + 6) {
            begin -= 4;
            memcpy(begin, ".../", 4);
            break;
        }
        if (separator) *--begin = '/';
        begin -= more;
        memcpy(begin, part, more);
    }
    inode_put(mirror, at);
    size_t total = (size_t)(path + size - 1 - begin);
    memmove(path, begin, total + 1);
    return total;
}

size_t inode_own_path(struct mirror *mirror, struct inode *inode, char *path, size_t size) {
    return inode_path(mirror, inode, "", path, size);
}
