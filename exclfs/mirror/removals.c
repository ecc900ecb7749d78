/*
 * Removals: unlink, rmdir and rename, the operations that a hold refuses.
 *
 * Each does the same steps: find which inodes the names lead to, share the tree and their stripes, test their words
 * and what covers their names, and with everything still shared either make the system call or hand the request to the
 * policy. A word of zero concerns no hold, so C decides alone; anything else is Python's to decide. When the policy
 * says PROCEED the same function runs again under that question.
 *
 * A directory that goes from one parent to another takes all its names along. While any hold reaches below its inode
 * that is done with the tree to itself.
 *
 * While a link of an inode goes, a descriptor of it is in use, and if that was the last one it stays pinned: the
 * kernel may still ask about an inode that somebody has open, and nothing else would lead to it. If it was one of
 * several, and no file handle leads to the inode, that is so until another of its names is looked up.
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
    bool opened; /* by another process than the requester's */
    struct statx attributes;
    struct tested tested;
};

static int victim_open(struct worker *worker, struct victim *victim, uint64_t parent, const char *name) {
    *victim = (struct victim){.name = name, .parent_fd = -1, .kept = -1};
    victim->parent = inode_by_nodeid(worker->mirror, parent);
    if (victim->parent == NULL) return ESTALE;
    if (nested_is_loop(worker->mirror, victim->parent)) return ELOOP;
    int fd = backing_get(worker->mirror, victim->parent);
    if (fd < 0) return -fd;
    victim->parent_fd = fd;
    int error = stat_at(worker->mirror, fd, name, &victim->attributes);
    if (error == -ELOOP) return EBUSY; /* our own mount is there: a mountpoint */
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

static void generations(struct tested *tested) {
    tested->generation = atomic_load(&tested->inode->word_generation);
    tested->open_generation = atomic_load(&tested->inode->open_generation);
}

/* Whether something concerns the inode that the name leads to: its word, or an open file. The stripe is shared. */
static bool is_held(struct worker *worker, const struct request *request, struct victim *victim) {
    victim->tested.inode = inode_by_key(worker->mirror, victim->tested.key, &victim->attributes);
    struct inode *inode = victim->tested.inode;
    if (inode == NULL) return false;
    generations(&victim->tested);
    victim->opened = opened_by_another(worker, request, inode);
    return victim->opened || atomic_load(&inode->word) != 0;
}

/* Whether PROCEED was said of just what is there now. */
static bool verdict_covers(struct worker *worker, const struct victim *victim, unsigned i) {
    const struct question *verdict = worker->verdict;
    const struct tested *asked = &verdict->tested[i], *now = &victim->tested;
    if (!victim->exists) return asked->inode == NULL;
    if (asked->inode == NULL || asked->inode != now->inode) return false;
    if (!worker->mirror->tree.enforcing) return true; /* whatever came meanwhile refuses nothing */
    return (!victim->opened || asked->open_generation == now->open_generation) &&
           (verdict->frozen || asked->generation == now->generation);
}

/* Whether something may concern this name: a word, an open file, or a hold on a directory that it lies below. */
static bool concerned(struct worker *worker, const struct request *request, struct victim *victim) {
    return victim->exists && (is_held(worker, request, victim) || tree_covers(worker->mirror, victim->parent));
}

static bool must_ask(struct worker *worker, const struct request *request, struct victim *first, struct victim *second,
                     unsigned long tree) {
    bool asking = concerned(worker, request, first);
    if (second != NULL) asking |= concerned(worker, request, second);
    if (worker->verdict != NULL && worker->verdict->tree == tree && verdict_covers(worker, first, 0) &&
        (second == NULL || verdict_covers(worker, second, 1)))
        return false;
    return asking || worker->mirror->settings.ask_always;
}

/* A question names inodes, so what it is about must be one that the policy can ask back about. */
static void make_known(struct worker *worker, struct victim *victim) {
    if (!victim->exists || victim->tested.inode != NULL) return;
    struct inode *view =
        inode_seen(worker->mirror, victim->parent, victim->name, victim->parent_fd, &victim->attributes, 0);
    if (view == NULL) return;
    inode_get(victim->tested.inode = primary_of(view));
    inode_put(worker->mirror, view);
    generations(&victim->tested);
}

/* PARENT/PATH: the nodeid of the directory that has the name, and its path below the root. */
static void tell(struct worker *worker, struct victim *victim, char *told, size_t size) {
    size_t parent = (size_t)snprintf(told, size, "%llu/", (unsigned long long)victim->parent->nodeid);
    inode_path(worker->mirror, victim->parent, victim->name, told + parent, size - parent);
}

static void ask(struct worker *worker, const struct request *request, struct victim *first, struct victim *second,
                unsigned long tree) {
    char told[PATH_MAX + NAME_MAX], second_told[PATH_MAX + NAME_MAX];
    struct tested tested[TESTED_MAX] = {0};
    make_known(worker, first);
    tested[0] = first->tested;
    tell(worker, first, told, sizeof told);
    if (second != NULL) {
        make_known(worker, second);
        tested[1] = second->tested;
        tell(worker, second, second_told, sizeof second_told);
    }
    ask_removal(worker, request, tested, tree, told, second != NULL ? second_told : NULL);
}

/* Before its name goes: afterwards nothing else may lead to it. */
static void keep(struct worker *worker, struct victim *victim) {
    if (victim->tested.inode == NULL) return;
    victim->kept = backing_get_at(worker->mirror, victim->tested.inode, victim->parent_fd, victim->name);
}

static bool was_its_place(struct mirror *mirror, struct inode *inode, const struct victim *victim) {
    char name[NAME_MAX + 1];
    struct inode *parent = inode_place(mirror, inode, name);
    bool there = parent != NULL && primary_of(parent) == primary_of(victim->parent);
    if (parent != NULL) inode_put(mirror, parent);
    return there && strcmp(name, victim->name) == 0;
}

/* Only now can be told whether that was the last link: names come and go meanwhile. A directory has one. */
static bool was_last_link(struct worker *worker, const struct victim *victim) {
    if (S_ISDIR(victim->attributes.stx_mode)) return true;
    struct statx now;
    if (victim->kept < 0 || stat_at(worker->mirror, victim->kept, "", &now)) return victim->attributes.stx_nlink == 1;
    return now.stx_nlink == 0;
}

/* Its name has gone. */
static void went(struct worker *worker, struct victim *victim) {
    struct mirror *mirror = worker->mirror;
    struct inode *inode = victim->tested.inode;
    if (inode == NULL) return;
    bool last = was_last_link(worker, victim);
    /* One link of several: whoever has it open may ask, and nothing leads there until another name is looked up. */
    bool lost = !last && inode->handle_bytes == 0 && is_open(mirror, inode) && was_its_place(mirror, inode, victim);
    if (victim->kept >= 0 && (last || lost)) backing_pin(mirror, inode);
    if (last) inode_gone(mirror, inode);
}

/* ---- unlink and rmdir ----------------------------------------------------------------------------------- */

static void remove_name(struct worker *worker, const struct request *request, int flags) {
    struct victim victim;
    int error = victim_open(worker, &victim, request->header->nodeid, request->name);
    if (!error) {
        tree_share(worker);
        stripes_share(worker->mirror, victim.tested.key, NULL);
        unsigned long tree = atomic_load(&worker->mirror->tree.generation);
        bool asking = must_ask(worker, request, &victim, NULL, tree);
        if (asking) ask(worker, request, &victim, NULL, tree);
        else {
            window();
            keep(worker, &victim);
            if (unlinkat(victim.parent_fd, request->name, flags)) error = errno;
            else went(worker, &victim);
        }
        stripes_release(worker->mirror, victim.tested.key, NULL);
        tree_release(worker);
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
    if (from->tested.inode != NULL)
        inode_renamed(mirror, from->tested.inode, from->parent, from->name, to->parent, to->name);
    if (to->tested.inode == NULL) return;
    if (flags & RENAME_EXCHANGE) inode_renamed(mirror, to->tested.inode, to->parent, to->name, from->parent, from->name);
    else went(worker, to);
}

/* Whether names go from below one directory to below another. */
static bool moves_names(const struct victim *from, const struct victim *to, unsigned flags) {
    if (from->parent == to->parent) return false;
    return S_ISDIR(from->attributes.stx_mode) ||
           (flags & RENAME_EXCHANGE && to->exists && S_ISDIR(to->attributes.stx_mode));
}

/* Shares the tree; takes it alone to move names while a hold reaches below. Which of the two it was. */
static bool enter_tree(struct worker *worker, bool moving) {
    tree_share(worker);
    if (!moving || atomic_load(&worker->mirror->tree.below) == 0) return false;
    tree_release(worker);
    tree_lock(worker->mirror, true);
    return true;
}

static void leave_tree(struct worker *worker, bool alone) {
    if (alone) tree_unlock(worker->mirror);
    else tree_release(worker);
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
        bool moving = moves_names(&from, &to, flags), alone = enter_tree(worker, moving);
        stripes_share(worker->mirror, from.tested.key, second);
        unsigned long tree = atomic_load(&worker->mirror->tree.generation);
        asking = must_ask(worker, request, &from, &to, tree);
        if (asking) ask(worker, request, &from, &to, tree);
        else {
            window();
            if (to.exists && !(flags & (RENAME_EXCHANGE | RENAME_NOREPLACE))) keep(worker, &to);
            if (moving) tree_move_begin(worker->mirror);
            error = rename_names(worker, request, &from, &to, flags);
            if (!error) renamed(worker, &from, &to, flags);
            if (moving) tree_end(worker->mirror);
        }
        stripes_release(worker->mirror, from.tested.key, second);
        leave_tree(worker, alone);
    }
    if (!asking) reply_error(worker, request->header->unique, error);
    victim_close(worker, &from);
    victim_close(worker, &to);
}
