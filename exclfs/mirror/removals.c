/*
 * Removals: unlink, rmdir and rename, the operations that a hold refuses.
 *
 * Each does the same steps: find which inodes the names lead to, share their stripes, test their words, and with the
 * stripes still shared either make the system call or hand the request to the policy. A word of zero concerns no
 * hold, so C decides alone; anything else is Python's to decide. When the policy says PROCEED the same function
 * runs again under that question.
 *
 * While a link of an inode goes, a descriptor of it is in use, and if that was the last one it stays pinned: the
 * kernel may still ask about an inode that somebody has open, and nothing else would lead to it.
 */
#include "mirror.h"

#include <stdio.h>
#include <sys/syscall.h>

#ifndef RENAME_NOREPLACE
#define RENAME_NOREPLACE (1 << 0)
#define RENAME_EXCHANGE (1 << 1)
#define RENAME_WHITEOUT (1 << 2)
#endif

/* A name that a removal meets, and what it leads to. */
struct victim {
    struct inode *parent;
    int parent_fd;
    const char *name;
    bool exists;
    int kept; /* a descriptor of the inode, in use until it is known whether this was the last link; or -errno */
    struct statx attributes;
    struct tested tested;
};

static int victim_open(struct worker *worker, struct victim *victim, uint64_t parent, const char *name) {
    *victim = (struct victim){.name = name, .parent_fd = -1, .kept = -1};
    victim->parent = inode_by_nodeid(worker->mirror, parent);
    if (victim->parent == NULL) return ESTALE;
    int fd = backing_get(worker->mirror, victim->parent);
    if (fd < 0) return -fd;
    victim->parent_fd = fd;
    int error = stat_at(fd, name, &victim->attributes);
    victim->exists = error == 0;
    if (victim->exists) victim->tested.key = key_of(&victim->attributes);
    return -error;
}

static void victim_close(struct worker *worker, struct victim *victim) {
    if (victim->kept >= 0) backing_put(worker->mirror, victim->tested.inode);
    if (victim->tested.inode != NULL) inode_put(worker->mirror, victim->tested.inode);
    if (victim->parent_fd >= 0) backing_put(worker->mirror, victim->parent);
    if (victim->parent != NULL) inode_put(worker->mirror, victim->parent);
}

/* Reads the word of the inode that the name leads to. The stripe is shared. */
static unsigned victim_word(struct worker *worker, struct victim *victim) {
    if (!victim->exists) return 0;
    victim->tested.inode = inode_by_key(worker->mirror, victim->tested.key, &victim->attributes);
    if (victim->tested.inode == NULL) return 0;
    victim->tested.generation = atomic_load(&victim->tested.inode->word_generation);
    return atomic_load(&victim->tested.inode->word);
}

/* Whether PROCEED was said of just what is there now. */
static bool verdict_covers(const struct question *verdict, const struct victim *victim, unsigned i) {
    const struct tested *asked = &verdict->tested[i];
    if (!victim->exists) return asked->inode == NULL;
    return asked->inode != NULL && asked->inode == victim->tested.inode &&
           (verdict->frozen || asked->generation == victim->tested.generation);
}

static bool must_ask(struct worker *worker, struct victim *first, struct victim *second) {
    unsigned words = victim_word(worker, first);
    if (second != NULL) words |= victim_word(worker, second);
    const struct question *verdict = worker->verdict;
    if (verdict != NULL && verdict_covers(verdict, first, 0) && (second == NULL || verdict_covers(verdict, second, 1)))
        return false;
    return words != 0 || worker->mirror->settings.ask_always;
}

/* A question names inodes, so what it is about must be one that the policy can ask back about. */
static void make_known(struct worker *worker, struct victim *victim) {
    if (!victim->exists || victim->tested.inode != NULL) return;
    victim->tested.inode =
        inode_seen(worker->mirror, victim->parent, victim->name, victim->parent_fd, &victim->attributes, 0);
    if (victim->tested.inode != NULL)
        victim->tested.generation = atomic_load(&victim->tested.inode->word_generation);
}

static void ask(struct worker *worker, const struct request *request, struct victim *first, struct victim *second) {
    char path[PATH_MAX + NAME_MAX], second_path[PATH_MAX + NAME_MAX];
    struct tested tested[TESTED_MAX] = {0};
    make_known(worker, first);
    tested[0] = first->tested;
    inode_path(worker->mirror, first->parent, first->name, path, sizeof path);
    if (second != NULL) {
        make_known(worker, second);
        tested[1] = second->tested;
        inode_path(worker->mirror, second->parent, second->name, second_path, sizeof second_path);
    }
    ask_removal(worker, request, tested, path, second != NULL ? second_path : NULL);
}

/* Before its name goes: afterwards nothing else may lead to it. */
static void keep(struct worker *worker, struct victim *victim) {
    if (victim->tested.inode != NULL) victim->kept = backing_get(worker->mirror, victim->tested.inode);
}

/* Its name has gone. Only now can be told whether that was the last link: names come and go meanwhile. */
static void went(struct worker *worker, struct victim *victim) {
    struct inode *inode = victim->tested.inode;
    if (inode == NULL) return;
    struct statx now;
    if (victim->kept < 0 || stat_at(victim->kept, "", &now)) now.stx_nlink = victim->attributes.stx_nlink - 1;
    bool last = now.stx_nlink == 0 || S_ISDIR(victim->attributes.stx_mode);
    /* One link of several: pin only if no file handle leads to the inode, and this was perhaps the name we know. */
    if (victim->kept >= 0 && (last || inode->handle == NULL)) backing_pin(worker->mirror, inode);
    if (last) inode_gone(worker->mirror, inode);
}

/* The window between test and system call, widened on purpose in a test build. */
static void window(void) {
#ifdef EXCLFS_TEST_WINDOW_US
    usleep(EXCLFS_TEST_WINDOW_US);
#endif
}

/* ---- unlink and rmdir ----------------------------------------------------------------------------------- */

static void remove_name(struct worker *worker, const struct request *request, int flags) {
    struct victim victim;
    int error = victim_open(worker, &victim, request->header->nodeid, request->name);
    if (!error) {
        stripes_share(worker->mirror, victim.tested.key, NULL);
        bool asking = must_ask(worker, &victim, NULL);
        if (asking) ask(worker, request, &victim, NULL);
        else {
            window();
            keep(worker, &victim);
            if (unlinkat(victim.parent_fd, request->name, flags)) error = errno;
            else went(worker, &victim);
        }
        stripes_release(worker->mirror, victim.tested.key, NULL);
        if (!asking) reply_error(worker, request->header->unique, error);
    } else
        reply_error(worker, request->header->unique, error);
    victim_close(worker, &victim);
}

void op_unlink(struct worker *worker, const struct request *request) { remove_name(worker, request, 0); }
void op_rmdir(struct worker *worker, const struct request *request) { remove_name(worker, request, AT_REMOVEDIR); }

/* ---- rename --------------------------------------------------------------------------------------------- */

static int rename_names(struct worker *worker, const struct request *request, struct victim *from, struct victim *to,
                        unsigned flags) {
    /* A whiteout is a new inode, and belongs to the requester. */
    int error = flags & RENAME_WHITEOUT ? become(worker, request->header) : become_if_able(worker, request->header);
    if (!error && syscall(SYS_renameat2, from->parent_fd, from->name, to->parent_fd, to->name, flags)) error = errno;
    become_server(worker);
    return error;
}

static void renamed(struct worker *worker, struct victim *from, struct victim *to, unsigned flags) {
    struct mirror *mirror = worker->mirror;
    if (from->tested.inode != NULL) inode_moved(mirror, from->tested.inode, to->parent, to->name);
    if (to->tested.inode == NULL) return;
    if (flags & RENAME_EXCHANGE) inode_moved(mirror, to->tested.inode, from->parent, from->name);
    else went(worker, to);
}

void op_rename(struct worker *worker, const struct request *request) {
    const struct fuse_rename2_in *in = request->argument; /* newdir comes first in the older form, too */
    unsigned flags = request->header->opcode == FUSE_RENAME2 ? in->flags : 0;
    struct victim from, to = {.parent_fd = -1, .kept = -1};
    int error = victim_open(worker, &from, request->header->nodeid, request->name);
    if (!error) error = victim_open(worker, &to, in->newdir, request->second_name);
    if (error == ENOENT && from.exists && to.parent_fd >= 0) error = 0; /* a new name */
    if (!error && flags & ~(unsigned)(RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT)) error = EINVAL;
    /* Onto another link of itself, a rename does nothing (POSIX). */
    bool asking = false, nothing = !error && to.exists && same_key(from.tested.key, to.tested.key);
    if (!error && nothing) error = rename_names(worker, request, &from, &to, flags);
    else if (!error) {
        const struct key *second = to.exists ? &to.tested.key : NULL;
        stripes_share(worker->mirror, from.tested.key, second);
        asking = must_ask(worker, &from, &to);
        if (asking) ask(worker, request, &from, &to);
        else {
            window();
            if (to.exists && !(flags & (RENAME_EXCHANGE | RENAME_NOREPLACE))) keep(worker, &to);
            error = rename_names(worker, request, &from, &to, flags);
            if (!error) renamed(worker, &from, &to, flags);
        }
        stripes_release(worker->mirror, from.tested.key, second);
    }
    if (!asking) reply_error(worker, request->header->unique, error);
    victim_close(worker, &from);
    victim_close(worker, &to);
}
