/*
 * Ways: how a directory of the tree can be reached by several mounts.
 *
 * A hold that reaches below a directory reaches whatever can be found below it, by whichever mounts. Which views a
 * directory has is known only of those that somebody has looked up. So while it matters, every mount inside the tree
 * is looked up, and every other place in the tree at which the same directory lies: /proc/self/mountinfo tells both, the
 * mountpoint and which directory of which filesystem is mounted there. They stay known until the list has changed.
 *
 * Filesystems that may keep us waiting are left out: of these the ways that somebody has looked up are known.
 */
#include "mirror.h"

#include <stdio.h>

/* What of `path` lies below `top`; "" for itself, NULL if it does not. */
static const char *below(const char *path, const char *top) {
    size_t size = strcmp(top, "/") == 0 ? 0 : strlen(top);
    if (strncmp(path, top, size) != 0) return NULL;
    if (path[size] == 0) return path + size;
    return path[size] == '/' ? path + size + 1 : NULL;
}

static char *joined(const char *directory, const char *rest) {
    char *path;
    const char *between = *directory != 0 && *rest != 0 && strcmp(directory, "/") != 0 ? "/" : "";
    return asprintf(&path, "%s%s%s", directory, between, rest) < 0 ? NULL : path;
}

/* A part of the tree that one mount shows: of which device, from which of its directories on, and where. */
struct shown {
    dev_t dev;
    char *from, *at; /* in the filesystem; below the root of the tree */
};

/* The part that the mount shows; false if that is none. `root` is the path of the tree's root, on the mount `home`. */
static bool part_of(const struct known_mount *mount, int home, const char *root, struct shown *shown) {
    const char *inside = below(root, mount->point), *at = below(mount->point, root);
    *shown = (struct shown){.dev = mount->dev};
    if (mount->id == home && inside != NULL) {
        shown->from = joined(mount->root, inside);
        shown->at = strdup("");
    } else if (mount->id != home && at != NULL && *at != 0 && !mount->distant) {
        shown->from = strdup(mount->root);
        shown->at = strdup(at);
    }
    if (shown->from != NULL && shown->at != NULL) return true;
    free(shown->from);
    free(shown->at);
    return false;
}

/* All parts, from the list as it is now; their number, and which reading of the list that is. */
static size_t parts(struct mirror *mirror, const char *root, struct shown **shown, unsigned long *reading) {
    int home = mounts_id(mirror, mirror->source);
    struct mounts *mounts = mounts_lock(mirror);
    size_t number = 0;
    *shown = calloc(mounts->number + 1, sizeof **shown);
    for (size_t i = 0; *shown != NULL && i < mounts->number; i++)
        if (part_of(&mounts->all[i], home, root, &(*shown)[number])) number++;
    *reading = mounts->readings;
    pthread_mutex_unlock(&mounts->lock);
    return number;
}

/* Directories that stay known. */
struct kept {
    struct inode **inodes;
    size_t number;
};

static void keep(struct mirror *mirror, struct kept *kept, const char *path) {
    struct inode *found;
    if (path == NULL || path_known(mirror, path, &found)) return; /* nothing is there, or what covers it */
    if ((kept->number & (kept->number - 1)) == 0) {
        struct inode **more = realloc(kept->inodes, (kept->number == 0 ? 1 : kept->number * 2) * sizeof *more);
        if (more == NULL) {
            inode_put(mirror, found);
            return;
        }
        kept->inodes = more;
    }
    kept->inodes[kept->number++] = found;
}

/* Every place at which the first directory of one part lies in another. */
static void keep_all(struct mirror *mirror, struct kept *kept, const struct shown *shown, size_t number) {
    for (size_t i = 0; i < number; i++) {
        keep(mirror, kept, shown[i].at);
        for (size_t j = 0; j < number; j++) {
            const char *rest = i != j && shown[i].dev == shown[j].dev ? below(shown[i].from, shown[j].from) : NULL;
            char *path = rest == NULL ? NULL : joined(shown[j].at, rest);
            if (path != NULL) keep(mirror, kept, path);
            free(path);
        }
    }
}

static void exchange(struct mirror *mirror, struct kept *kept, unsigned long reading) {
    struct mounts *mounts = &mirror->mounts;
    pthread_mutex_lock(&mounts->lock);
    struct kept before = {mounts->kept, mounts->kept_number};
    mounts->kept = kept->inodes;
    mounts->kept_number = kept->number;
    mounts->learnt = reading;
    pthread_mutex_unlock(&mounts->lock);
    for (size_t i = 0; i < before.number; i++) inode_put(mirror, before.inodes[i]);
    free(before.inodes);
}

/* 0 where there is only the mount of the root. */
static uint64_t hash_of(const struct shown *shown, size_t number) {
    if (number <= 1) return 0;
    uint64_t hash = mix(number);
    for (size_t i = 0; i < number; i++) {
        hash = mix(hash ^ shown[i].dev);
        for (const char *at = shown[i].from; *at != 0; at++) hash = mix(hash ^ (unsigned char)*at);
        for (const char *at = shown[i].at; *at != 0; at++) hash = mix(hash ^ (unsigned char)*at);
    }
    return hash;
}

static void learn(struct mirror *mirror) {
    char number[16], root[PATH_MAX];
    snprintf(number, sizeof number, "%d", mirror->source);
    ssize_t size = readlinkat(mirror->proc_self_fd, number, root, sizeof root - 1);
    root[size < 0 ? 0 : size] = 0;
    struct shown *shown;
    unsigned long reading;
    size_t all = parts(mirror, root, &shown, &reading);
    uint64_t hash = hash_of(shown, all);
    if (hash == mirror->mounts.parts) { /* mounts come and go elsewhere all the time */
        pthread_mutex_lock(&mirror->mounts.lock);
        mirror->mounts.learnt = reading;
        pthread_mutex_unlock(&mirror->mounts.lock);
    } else {
        struct kept kept = {NULL, 0};
        keep_all(mirror, &kept, shown, all);
        tree_changed(mirror);
        exchange(mirror, &kept, reading);
        mirror->mounts.parts = hash;
    }
    for (size_t i = 0; i < all; i++) {
        free(shown[i].from);
        free(shown[i].at);
    }
    free(shown);
}

void ways_learn(struct mirror *mirror) {
    struct mounts *mounts = mounts_lock(mirror);
    bool learnt = mounts->learnt == mounts->readings;
    pthread_mutex_unlock(&mounts->lock);
    if (learnt) return;
    pthread_mutex_lock(&mounts->learning);
    pthread_mutex_lock(&mounts->lock);
    learnt = mounts->learnt == mounts->readings; /* by somebody who was faster */
    pthread_mutex_unlock(&mounts->lock);
    if (!learnt) learn(mirror);
    pthread_mutex_unlock(&mounts->learning);
}
