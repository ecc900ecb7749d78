/*
 * What locks.c and tree.c share: the stripes, the tree lock, and what lies below what.
 * Included by mirror.h, and by nothing else.
 */
#ifndef EXCLFS_LOCKS_H
#define EXCLFS_LOCKS_H

enum { STRIPES = 1024, PLACE_LOCKS = 256 };

struct stripes {
    pthread_rwlock_t lock[STRIPES];
    pthread_mutex_t thaw_lock;
    pthread_cond_t thawed;
};

enum { SLOTS = 32, CACHE_LINE = 64 };

struct slot {
    _Alignas(CACHE_LINE) pthread_rwlock_t lock;
};

struct tree {
    struct slot slots[SLOTS]; /* a removal shares its own thread's; who changes the tree holds all */
    atomic_uint threads;      /* that have been given a slot */
    pthread_mutex_t gate;     /* one changes the tree at a time */
    atomic_uint changing;     /* that are at the gate: removals let them go first */
    atomic_uint below;        /* inodes whose word has W_NO_REMOVE_BELOW */
    atomic_ulong generation;  /* counts whatever may change what a name lies below */
    pthread_rwlock_t moving;  /* alone: a directory goes to another parent. Shared: a path is looked up */
    bool enforcing;           /* whether a verdict may be no; changed under the lock */
};

/* locks.c */
int locks_init(struct mirror *mirror);
void locks_destroy(struct mirror *mirror);
void stripes_share(struct mirror *mirror, struct key first, const struct key *second);
void stripes_release(struct mirror *mirror, struct key first, const struct key *second);
int word_set(struct mirror *mirror, struct inode *inode, unsigned word, bool wait); /* 0, -EAGAIN, -ESTALE */
void word_freeze(struct inode *inode);
void word_thaw(struct mirror *mirror, struct inode *inode);
void stripe_take(struct mirror *mirror, struct key key); /* exclusively */
void stripe_give(struct mirror *mirror, struct key key);
enum { W_NO_REMOVE_BELOW = 1 << 4 }; /* the one bit of a word that means something here (exclfs/holds/flags.py) */

/* tree.c */
int tree_init(struct mirror *mirror);
void tree_destroy(struct mirror *mirror);
void tree_share(struct worker *worker);
void tree_release(struct worker *worker);
bool tree_lock(struct mirror *mirror, bool wait); /* false: somebody is in, and `wait` is */
void tree_unlock(struct mirror *mirror);
void tree_barrier(struct mirror *mirror, bool enforcing); /* waits; verdicts from before are asked for again */
void tree_changed(struct mirror *mirror);
void tree_move_begin(struct mirror *mirror);
void tree_look_begin(struct mirror *mirror);
void tree_end(struct mirror *mirror); /* of either */
bool tree_covers(struct mirror *mirror, struct inode *directory); /* a name in it is not to be removed unasked */
bool tree_is_below(struct mirror *mirror, struct inode *inode, struct inode *directory);
bool tree_is_circle(struct mirror *mirror, struct inode *directory); /* the places above it lead back to it */
/* The directories above by every way, that by which it was seen last at the end and its parent last of all, each with
 * a reference: their number. */
int tree_ancestors(struct mirror *mirror, struct inode *inode, struct inode *above[MOST_ABOVE]);

#endif
