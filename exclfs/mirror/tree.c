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

bool tree_covers(struct mirror *mirror, struct inode *directory) {
    if (atomic_load(&mirror->tree.below) == 0) return false;
    unsigned long generation = atomic_load(&mirror->tree.generation);
    unsigned depth = 0;
    bool covered = false;
    struct inode *at = directory;
    inode_get(at);
    while (at != NULL) {
        unsigned long known = atomic_load(&at->coverage);
        bool remembers = known >> 1 == generation;
        covered = remembers ? known & 1 : atomic_load(&at->word) & W_NO_REMOVE_BELOW;
        if (depth == MOST_ABOVE) covered = true; /* the policy will look */
        if (covered || remembers) break;
        at = step_up(mirror, at, &depth);
    }
    if (at != NULL) inode_put(mirror, at);
    atomic_store(&directory->coverage, generation << 1 | covered);
    return covered;
}

bool tree_is_below(struct mirror *mirror, struct inode *inode, const struct inode *directory) {
    unsigned depth = 0;
    inode_get(inode);
    struct inode *at = step_up(mirror, inode, &depth);
    while (at != NULL && at != directory) at = step_up(mirror, at, &depth);
    if (at == NULL) return false;
    inode_put(mirror, at);
    return true;
}

int tree_ancestors(struct mirror *mirror, struct inode *inode, struct inode *above[MOST_ABOVE]) {
    int number = 0;
    for (struct inode *at = inode; number < MOST_ABOVE; at = above[number++])
        if ((above[number] = inode_parent(mirror, at)) == NULL) break;
    for (int i = 0, j = number - 1; i < j; i++, j--) {
        struct inode *swap = above[i];
        above[i] = above[j];
        above[j] = swap;
    }
    return number;
}
