/*
 * The tree: what reaches below a directory.
 *
 * A hold with NO_REMOVE_BELOW refuses the removal of every name below its directory. So that placing one is ordered
 * with every removal below it, and with every rename that carries a directory from one parent to another, there is a
 * lock over the whole tree. Each thread has a slot of its own (of many threads a few share one): a removal shares it,
 * which is one atomic operation that nobody else contends for; who changes the tree takes all of them. The gate lets
 * changers in before removals that come after them.
 *
 * Nothing more is tested while no such hold stands. While one does, each directory remembers whether it is covered,
 * and under which generation of the tree that was found.
 *
 * A directory that is reached by several mounts lies in several directories. It is below each of them: what is said of
 * one way is said of all (ways.c finds them).
 */
#include "mirror.h"

int tree_init(struct mirror *mirror) {
    struct tree *tree = &mirror->tree;
    atomic_store(&tree->generation, 1);
    tree->enforcing = true;
    pthread_rwlockattr_t prefer_writer;
    int error = pthread_rwlockattr_init(&prefer_writer);
    if (error) return -error;
    error = pthread_rwlockattr_setkind_np(&prefer_writer, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    if (!error) error = pthread_rwlock_init(&tree->moving, &prefer_writer);
    pthread_rwlockattr_destroy(&prefer_writer);
    if (!error) error = pthread_mutex_init(&tree->gate, NULL);
    for (unsigned i = 0; i < SLOTS && !error; i++) error = pthread_rwlock_init(&tree->slots[i].lock, NULL);
    return -error;
}

void tree_destroy(struct mirror *mirror) {
    pthread_rwlock_destroy(&mirror->tree.moving);
    pthread_mutex_destroy(&mirror->tree.gate);
    for (unsigned i = 0; i < SLOTS; i++) pthread_rwlock_destroy(&mirror->tree.slots[i].lock);
}

/* ---- the lock ------------------------------------------------------------------------------------------- */

void tree_share(struct worker *worker) {
    struct tree *tree = &worker->mirror->tree;
    if (atomic_load(&tree->changing) > 0) { /* let them go first */
        pthread_mutex_lock(&tree->gate);
        pthread_mutex_unlock(&tree->gate);
    }
    pthread_rwlock_rdlock(&tree->slots[worker->slot].lock);
}

void tree_release(struct worker *worker) { pthread_rwlock_unlock(&worker->mirror->tree.slots[worker->slot].lock); }

bool tree_lock(struct mirror *mirror, bool wait) {
    struct tree *tree = &mirror->tree;
    unsigned taken = 0;
    if (wait) {
        atomic_fetch_add(&tree->changing, 1);
        pthread_mutex_lock(&tree->gate);
        for (; taken < SLOTS; taken++) pthread_rwlock_wrlock(&tree->slots[taken].lock);
        atomic_fetch_sub(&tree->changing, 1);
        return true;
    }
    if (pthread_mutex_trylock(&tree->gate)) return false;
    while (taken < SLOTS && pthread_rwlock_trywrlock(&tree->slots[taken].lock) == 0) taken++;
    if (taken == SLOTS) return true;
    while (taken > 0) pthread_rwlock_unlock(&tree->slots[--taken].lock);
    pthread_mutex_unlock(&tree->gate);
    return false;
}

void tree_unlock(struct mirror *mirror) {
    struct tree *tree = &mirror->tree;
    for (unsigned i = SLOTS; i > 0; i--) pthread_rwlock_unlock(&tree->slots[i - 1].lock);
    pthread_mutex_unlock(&tree->gate);
}

void tree_changed(struct mirror *mirror) { atomic_fetch_add(&mirror->tree.generation, 1); }

void tree_barrier(struct mirror *mirror, bool enforcing) {
    tree_lock(mirror, true);
    mirror->tree.enforcing = enforcing;
    tree_changed(mirror);
    tree_unlock(mirror);
}

/* What a look at the backing tree has found must not be remembered after a directory was moved away from there. The
 * kernel orders its own lookups with renames; those of the control socket by path are ordered here. */
void tree_move_begin(struct mirror *mirror) { pthread_rwlock_wrlock(&mirror->tree.moving); }
void tree_look_begin(struct mirror *mirror) { pthread_rwlock_rdlock(&mirror->tree.moving); }
void tree_end(struct mirror *mirror) { pthread_rwlock_unlock(&mirror->tree.moving); }

/* ---- what lies below what ------------------------------------------------------------------------------- */

/* Of directories that were moved behind the mount, what is remembered may run in a circle. */
static struct inode *step_up(struct mirror *mirror, struct inode *at, unsigned *depth) {
    struct inode *parent = ++*depth > MOST_ABOVE ? NULL : inode_parent(mirror, at);
    inode_put(mirror, at);
    return parent;
}

bool tree_is_circle(struct mirror *mirror, struct inode *directory) {
    unsigned depth = 0;
    inode_get(directory);
    struct inode *at = step_up(mirror, directory, &depth);
    while (at != NULL && at != directory) at = step_up(mirror, at, &depth);
    if (at == NULL) return false;
    inode_put(mirror, at);
    return true;
}

enum { MOST_WAYS = 1024 };

/* A climb by every way: views from which there is still to go up, each with a reference. */
struct climb {
    struct inode *from[MOST_WAYS], *passed[MOST_WAYS];
    unsigned ways, done, passes;
    bool cut_short;
};

/* Goes on from every view of the inode but this one. What was unmounted is no way any more, whoever remembers it. */
static void branch(struct mirror *mirror, struct climb *climb, struct inode *inode, struct inode *but) {
    struct inode *views[MOST_VIEWS];
    unsigned number = inode_views(mirror, inode, views);
    climb->cut_short |= number == MOST_VIEWS;
    for (unsigned i = 0; i < number; i++) {
        bool another = views[i] != but && backing_leads_to(mirror, views[i]);
        climb->cut_short |= another && climb->ways == MOST_WAYS;
        if (another && climb->ways < MOST_WAYS) climb->from[climb->ways++] = views[i];
        else inode_put(mirror, views[i]);
    }
}

/* Comes by an inode that may have views, from each of which a way goes up. False if this has been done before. */
static bool pass(struct mirror *mirror, struct climb *climb, struct inode *at) {
    struct inode *primary = primary_of(at);
    if (!atomic_load(&primary->viewed)) return true;
    for (unsigned i = 0; i < climb->passes; i++)
        if (climb->passed[i] == primary) return false;
    if (climb->passes == MOST_WAYS) return climb->cut_short = true;
    inode_get(climb->passed[climb->passes++] = primary);
    branch(mirror, climb, at, at);
    return true;
}

/* Shows every directory above to `visit`, by the way of the inode itself first, until that says true. Whether it did. */
static bool climb_up(struct mirror *mirror, struct inode *inode, bool (*visit)(void *, struct inode *), void *argument,
                     bool if_cut_short) {
    struct climb climb;
    climb.ways = climb.passes = climb.done = 0;
    climb.cut_short = false;
    if (atomic_load(&primary_of(inode)->viewed)) {
        inode_get(climb.passed[climb.passes++] = primary_of(inode));
        branch(mirror, &climb, inode, NULL);
    }
    if (climb.ways == 0) inode_get(climb.from[climb.ways++] = inode);
    bool found = false;
    while (climb.done < climb.ways) {
        unsigned depth = 0;
        struct inode *at = climb.from[climb.done++];
        while (!found && (at = step_up(mirror, at, &depth)) != NULL) {
            found = visit(argument, at);
            if (!found && !pass(mirror, &climb, at)) break;
        }
        if (depth > MOST_ABOVE) climb.cut_short = true;
        if (at != NULL) inode_put(mirror, at);
    }
    while (climb.passes > 0) inode_put(mirror, climb.passed[--climb.passes]);
    return found || (climb.cut_short && if_cut_short);
}

static bool reaches_below(void *ignored, struct inode *directory) {
    (void)ignored;
    return atomic_load(&primary_of(directory)->word) & W_NO_REMOVE_BELOW;
}

/* Where every directory has one place, what was found of the nearest is true of all between. */
static bool covered_by_one_way(struct mirror *mirror, struct inode *directory, unsigned long generation) {
    unsigned depth = 0;
    bool covered = false;
    struct inode *at = directory;
    inode_get(at);
    while (at != NULL) {
        unsigned long known = atomic_load(&at->coverage);
        bool remembers = known >> 1 == generation;
        covered = remembers ? known & 1 : reaches_below(NULL, at);
        if (depth == MOST_ABOVE) covered = true; /* the policy will look */
        if (covered || remembers) break;
        at = step_up(mirror, at, &depth);
    }
    if (at != NULL) inode_put(mirror, at);
    return covered;
}

bool tree_covers(struct mirror *mirror, struct inode *directory) {
    if (atomic_load(&mirror->tree.below) == 0) return false;
    ways_learn(mirror);
    unsigned long generation = atomic_load(&mirror->tree.generation);
    unsigned long known = atomic_load(&directory->coverage);
    if (known >> 1 == generation) return known & 1;
    bool covered = atomic_load(&mirror->table.views) == 0
                       ? covered_by_one_way(mirror, directory, generation)
                       : reaches_below(NULL, directory) || climb_up(mirror, directory, reaches_below, NULL, true);
    atomic_store(&directory->coverage, generation << 1 | covered);
    return covered;
}

static bool is_the_one(void *wanted, struct inode *directory) { return primary_of(directory) == wanted; }

bool tree_is_below(struct mirror *mirror, struct inode *inode, struct inode *directory) {
    ways_learn(mirror);
    return climb_up(mirror, inode, is_the_one, primary_of(directory), false);
}

struct collected {
    struct inode **above;
    int number;
};

static bool collect(void *argument, struct inode *directory) {
    struct collected *collected = argument;
    if (collected->number == MOST_ABOVE) return true;
    inode_get(collected->above[collected->number++] = directory);
    return false;
}

int tree_ancestors(struct mirror *mirror, struct inode *inode, struct inode *above[MOST_ABOVE]) {
    struct collected collected = {above, 0};
    ways_learn(mirror);
    climb_up(mirror, inode, collect, &collected, false);
    for (int i = 0, j = collected.number - 1; i < j; i++, j--) {
        struct inode *swap = above[i];
        above[i] = above[j];
        above[j] = swap;
    }
    return collected.number;
}
