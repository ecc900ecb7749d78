/*
 * Locks: what makes removals and trylocks of one inode linearisable.
 *
 * A removal holds the stripe of its inode shared from the test of the word to the end of the system call. Setting a
 * word takes the stripe exclusively, so it waits for every removal in flight, and every later one sees the word.
 * Without this a trylock can answer "yes" about an inode that is removed a moment later (DESIGN, section 3).
 *
 * Clearing bits needs no exclusion: a removal that still sees them asks the policy, which knows better.
 *
 * A word that begins to reach below its inode is set with the tree lock around the stripe (tree.c).
 */
#include "mirror.h"

static unsigned stripe_of(struct key key) {
    uint64_t hash = (key.ino ^ ((uint64_t)key.dev << 32 | (uint64_t)key.dev >> 32)) * 0x9E3779B97F4A7C15ULL;
    return (unsigned)(hash >> 32) % STRIPES;
}

int locks_init(struct mirror *mirror) {
    pthread_rwlockattr_t prefer_writer;
    int error = pthread_rwlockattr_init(&prefer_writer);
    if (error) return -error;
    /* glibc's default starves the writer under overlapping readers. */
    error = pthread_rwlockattr_setkind_np(&prefer_writer, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    for (unsigned i = 0; i < STRIPES && !error; i++)
        error = pthread_rwlock_init(&mirror->stripes.lock[i], &prefer_writer);
    pthread_rwlockattr_destroy(&prefer_writer);
    for (unsigned i = 0; i < PLACE_LOCKS && !error; i++) {
        error = pthread_mutex_init(&mirror->place_locks[i], NULL);
        if (!error) error = pthread_mutex_init(&mirror->io_locks[i], NULL);
    }
    if (!error) error = pthread_mutex_init(&mirror->stripes.thaw_lock, NULL);
    if (!error) error = pthread_cond_init(&mirror->stripes.thawed, NULL);
    return -error;
}

void locks_destroy(struct mirror *mirror) {
    for (unsigned i = 0; i < STRIPES; i++) pthread_rwlock_destroy(&mirror->stripes.lock[i]);
    for (unsigned i = 0; i < PLACE_LOCKS; i++) {
        pthread_mutex_destroy(&mirror->place_locks[i]);
        pthread_mutex_destroy(&mirror->io_locks[i]);
    }
    pthread_mutex_destroy(&mirror->stripes.thaw_lock);
    pthread_cond_destroy(&mirror->stripes.thawed);
}

/* The one or two stripes of a removal, by address, each once. */
static unsigned stripes_of(struct key first, const struct key *second, unsigned ordered[2]) {
    ordered[0] = stripe_of(first);
    if (second == NULL) return 1;
    ordered[1] = stripe_of(*second);
    if (ordered[0] == ordered[1]) return 1;
    if (ordered[0] > ordered[1]) {
        unsigned swap = ordered[0];
        ordered[0] = ordered[1];
        ordered[1] = swap;
    }
    return 2;
}

/* A test build leaves the lock out, to show that the race is real and that the tests see it (tests/mount/test_race.py). */
#ifdef EXCLFS_TEST_WITHOUT_STRIPES
static int share(pthread_rwlock_t *lock) { return (void)lock, 0; }
static int release(pthread_rwlock_t *lock) { return (void)lock, 0; }
#else
static int share(pthread_rwlock_t *lock) { return pthread_rwlock_rdlock(lock); }
static int release(pthread_rwlock_t *lock) { return pthread_rwlock_unlock(lock); }
#endif

void stripes_share(struct mirror *mirror, struct key first, const struct key *second) {
    unsigned ordered[2], number = stripes_of(first, second, ordered);
    for (unsigned i = 0; i < number; i++)
        if (share(&mirror->stripes.lock[ordered[i]])) abort(); /* a recursive lock would be a bug of ours */
}

void stripes_release(struct mirror *mirror, struct key first, const struct key *second) {
    unsigned ordered[2], number = stripes_of(first, second, ordered);
    while (number--)
        if (release(&mirror->stripes.lock[ordered[number]])) abort();
}

static int last_link_is_gone(struct mirror *mirror, struct inode *inode) {
    if (atomic_load(&inode->removed)) return -ESTALE;
    struct statx attributes;
    int error = backing_stat(mirror, inode, &attributes);
    if (error) return error == -ENOENT ? -ESTALE : error;
    return attributes.stx_nlink == 0 ? -ESTALE : 0;
}

void stripe_take(struct mirror *mirror, struct key key) {
    if (pthread_rwlock_wrlock(&mirror->stripes.lock[stripe_of(key)])) abort();
}

void stripe_give(struct mirror *mirror, struct key key) {
    if (pthread_rwlock_unlock(&mirror->stripes.lock[stripe_of(key)])) abort();
}

static void word_store(struct mirror *mirror, struct inode *inode, unsigned word) {
    unsigned before = atomic_exchange(&inode->word, word);
    atomic_fetch_add(&inode->word_generation, 1);
    if ((before ^ word) & W_NO_REMOVE_BELOW) {
        if (word & W_NO_REMOVE_BELOW) atomic_fetch_add(&mirror->tree.below, 1);
        else atomic_fetch_sub(&mirror->tree.below, 1);
        tree_changed(mirror);
    }
    if (before == 0 && word != 0) inode_get(inode);
    if (before != 0 && word == 0) inode_put(mirror, inode);
}

static void wait_for_thaw(struct mirror *mirror, struct inode *inode) {
    pthread_mutex_lock(&mirror->stripes.thaw_lock);
    while (atomic_load(&inode->frozen) != 0)
        pthread_cond_wait(&mirror->stripes.thawed, &mirror->stripes.thaw_lock);
    pthread_mutex_unlock(&mirror->stripes.thaw_lock);
}

/* Adds bits, with everything locked that they concern. */
static int word_add(struct mirror *mirror, struct inode *inode, unsigned word, bool wait) {
    pthread_rwlock_t *lock = &mirror->stripes.lock[stripe_of(inode->key)];
    int error = wait ? pthread_rwlock_wrlock(lock) : pthread_rwlock_trywrlock(lock);
    if (error) return error == EBUSY ? -EAGAIN : -error;
    if (atomic_load(&inode->frozen) != 0) error = -EAGAIN;
    if (!error) error = last_link_is_gone(mirror, inode);
    if (!error) word_store(mirror, inode, word);
    pthread_rwlock_unlock(lock);
    return error;
}

/* Sets the word; -ESTALE if the last link is gone, tested under the lock. Without `wait`, -EAGAIN while a removal
 * that shares the stripe is in flight. Callers are serialised by the policy: one thread sets words at a time for an
 * inode. */
int word_set(struct mirror *mirror, struct inode *view, unsigned word, bool wait) {
    struct inode *inode = primary_of(view);
    unsigned before = atomic_load(&inode->word);
    if ((before | word) == before) {
        word_store(mirror, inode, word);
        return 0;
    }
    bool reaches = word & ~before & W_NO_REMOVE_BELOW;
    for (;;) {
        if (reaches && !tree_lock(mirror, wait)) return -EAGAIN;
        int error = word_add(mirror, inode, word, wait);
        if (reaches) tree_unlock(mirror);
        if (error != -EAGAIN || !wait) return error;
        wait_for_thaw(mirror, inode);
    }
}

/* For the last round of a question: until it is answered, no bit is added to the word. Called with the stripe shared. */
void word_freeze(struct inode *inode) { atomic_fetch_add(&inode->frozen, 1); }

void word_thaw(struct mirror *mirror, struct inode *inode) {
    pthread_mutex_lock(&mirror->stripes.thaw_lock);
    if (atomic_fetch_sub(&inode->frozen, 1) == 1) pthread_cond_broadcast(&mirror->stripes.thawed);
    pthread_mutex_unlock(&mirror->stripes.thaw_lock);
}
