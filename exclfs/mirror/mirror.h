/*
 * The mirror: everything that the C sources of this directory share.
 *
 *   mirror       one tree: what it is made of
 *   channel      /dev/fuse: the session, its workers, replies
 *   request      a message of the kernel, taken apart and checked
 *   operations   which function answers which opcode
 *   entries attributes xattrs files directories removals    the operations
 *   listing      the entries of an open directory, from any of them
 *   inodes       the table: every inode that the kernel knows or that is held
 *   places       where an inode was seen last
 *   nested       what of the tree lies on another mount or device than its root
 *   mounts       the mounts that there are
 *   ways         how a directory can be reached by several of them
 *   backing      a descriptor for an inode, from a budget; identity verified
 *   locks        the stripes that make removals and trylocks linearisable
 *   tree         what reaches below a directory: the tree lock, coverage, ancestors
 *   questions    requests that wait for a verdict of the policy
 *   writeback    what did not reach the disk, told once to each
 *   gates        requests that are stopped before or after they are served, for tests
 *   opens        which processes have an inode open, where that counts against removals
 *   paths        a path below the root, looked up as somebody else
 *   identity     an inode told apart from every other, across restarts
 *   requester    doing something as the user who asked for it
 *   module       the Python face
 *
 * Order of locks, outermost first: tree lock > stripe, by address > learning > moving > io lock > key shard > nodeid
 * shard > place lock > budget, mounts. The gates' lock is taken alone. None is held while a request waits for a verdict,
 * or stands at a gate.
 */
#ifndef EXCLFS_MIRROR_H
#define EXCLFS_MIRROR_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#include "fuse_abi.h"

/* ---- requests ------------------------------------------------------------------------------------------- */

enum { BODY_MAX = 1 << 20, MESSAGE_MAX = BODY_MAX + 4096, QUESTION_MAX = 128 << 10 };

/* A request of the kernel. The pointers lead into the message that it was parsed from. */
struct request {
    const struct fuse_in_header *header;
    const void *argument;    /* the fixed part, of the size that the opcode has */
    const char *name;        /* first name, or NULL */
    const char *second_name; /* of a rename; the target of a symlink */
    const void *data;        /* of a write or setxattr */
    size_t data_size;
};

/* 0, or the errno that the request deserves (EINVAL; ENOSYS for an opcode that nobody here answers). */
int request_parse(const void *message, size_t size, struct request *request);

/* ---- inodes --------------------------------------------------------------------------------------------- */

static inline uint64_t mix(uint64_t value) {
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9ULL;
    value = (value ^ (value >> 27)) * 0x94D049BB133111EBULL;
    return value ^ (value >> 31);
}

struct key {
    dev_t dev;
    ino_t ino;
};

/* A file handle, where one is worth taking: bytes is 0 for none. */
enum { HANDLE_MAX = 128 }; /* MAX_HANDLE_SZ */
struct handle {
    int type;
    unsigned bytes;
    unsigned char data[HANDLE_MAX];
};

/* What a mount other than the root's forbids, or is (nested.c). */
enum { READ_ONLY = 1 << 0, NO_SUID = 1 << 1, NO_DEVICES = 1 << 2, NO_EXECUTION = 1 << 3, SERVED = 1 << 4 };

/* One object of the tree as the kernel knows it. There may be millions: benchmarks/memory.py has what one costs. */
struct inode {
    /* Identity: never changes. */
    struct key key;
    int64_t birth_seconds; /* 0 where the filesystem keeps no birth time */
    uint64_t nodeid;
    uint32_t birth_nanoseconds;
    uint32_t generation;
    /* Of a view: the inode whose word and open files are also its own, with a reference. Else NULL. */
    struct inode *primary;
    atomic_ulong mount; /* by which it is reached; that of a directory never changes */

    /* Lifetime: one reference for the kernel while nlookup > 0, one for a non-zero word, one for each child whose
     * place is here, one for each view, one for each request at work. */
    uint64_t nlookup; /* under the key shard */
    struct inode *next_of_key, *next_of_nodeid;
    atomic_uint references;

    /* What the policy set: written under the stripe held exclusively. Not of a view. */
    atomic_uint word;
    atomic_uint word_generation;
    atomic_uint frozen; /* questions that must be answered before the word may change */

    /* Of a directory: under which generation of the tree it was looked at, and whether it lies in a directory whose
     * names may not be removed: generation << 1 | covered. */
    atomic_ulong coverage;

    /* Who has it open, where that counts: under its io lock; the numbers change under its stripe held exclusively. Not
     * of a view. */
    struct open_file *opens;
    atomic_uint open_count, open_generation;

    /* Where it was seen last: under the place lock. */
    struct inode *parent;
    char *name; /* in `packed`, or allocated if it has become too long for that */

    /* A descriptor, if it has one: under the budget's lock. */
    struct inode *newer, *older; /* in the order of use */
    int fd;                      /* O_PATH, or -1 */
    unsigned fd_users;

    /* How it is open: under io_lock of the mirror's stripe. */
    int32_t backing_id; /* > 0 while open by passthrough */
    uint32_t passthrough_opens, plain_opens;
    bool backing_is_roots; /* the kernel writes through it with root's rights, else with nobody's */

    bool fd_pinned;        /* with the descriptor: kept until FORGET, for nothing else leads to it any more */
    bool fd_nested;        /* likewise: it keeps another mount than the root's busy, so it is not kept for long */
    bool fd_used;          /* likewise: since somebody looked last whether it still is */
    atomic_bool removed;   /* its last link went through this mirror; not of a view */
    atomic_bool viewed;    /* it has had views */
    atomic_bool has_moved; /* it has been reached by more than one mount, and is no directory */
    atomic_uchar limits;   /* of the mount by which it is reached; of the root's, 0 */
    uint8_t type;          /* S_IFMT bits, shifted */
    uint8_t name_room, handle_bytes;
    int handle_type;
    char packed[]; /* room for the name, and then the handle's data */
};

enum { SHARDS = 64 };

struct shard {
    pthread_mutex_t lock;
    struct inode **buckets;
    size_t size, count;
};

struct inode_table {
    struct shard by_key[SHARDS], by_nodeid[SHARDS];
    atomic_ulong known;
    atomic_ulong most_known; /* since memory was last given back */
    atomic_ulong next_nodeid;
    atomic_uint views; /* that were ever made: while there are none, every inode has one place */
};

/* ---- locks ---------------------------------------------------------------------------------------------- */

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

/* ---- the mirror ----------------------------------------------------------------------------------------- */

enum open_files { OPEN_FILES_OFF, OPEN_FILES_OWN, OPEN_FILES_ALL };

struct settings {
    double entry_timeout, attr_timeout, negative_timeout; /* seconds */
    double decision_timeout;            /* seconds */
    unsigned threads;
    unsigned descriptors; /* the budget of the inode table, and as many again that are pinned */
    unsigned opens;       /* descriptors of open files and directories; 0: as many as the system gives */
    bool passthrough;     /* use it where the kernel has it */
    bool ask_always;
    bool privileged; /* root: may act as the requester, may open by handle */
    enum open_files hold_open; /* whose open files count against removals */
    bool gates; /* requests can be stopped */
    dev_t mounted;             /* st_dev of the mount that is served: never to be entered; 0 if there is none */
};

enum counter {
    C_LOOKUP, C_GETATTR, C_SETATTR, C_READLINK, C_CREATE, C_OPEN, C_READ, C_WRITE, C_RELEASE, C_READDIR, C_REMOVE,
    C_XATTR, C_FORGET, C_OTHER, C_ASKED, C_TIMED_OUT, C_ASKED_AGAIN, COUNTERS
};

/* Inodes that have a descriptor, in the order of use. */
struct order {
    struct inode *newest, *oldest;
    unsigned count;
};

struct question;

/* Inodes of which something could not be written back, the last ones: under the lock. */
enum { FAILURES = 64 };
struct failures {
    pthread_mutex_t lock;
    atomic_uint failures; /* their number so far */
    struct failure {
        struct key key;
        unsigned number;
        int error;
    } last[FAILURES];
};

enum { LATENCIES = 124 }; /* buckets of microseconds: 0 to 3 each, from there on four to an octave of 32 bits */

struct questions {
    pthread_mutex_t lock;
    struct question *first, *last; /* in the order of asking, which is the order of their deadlines */
    int channel;                   /* our end of the socket pair */
    int wake;                      /* eventfd: something to send, or the end */
    pthread_t thread;
    bool running, stopping;
    unsigned unsent;
    atomic_ulong latencies[LATENCIES]; /* how many verdicts took how long */
};

struct sighting;
struct gate_news;

struct gates {
    _Atomic uint64_t watched;       /* a bit for each opcode that is looked at in any way */
    _Atomic uint64_t before, after; /* those that stop; changed under the lock */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct sighting *standing;         /* let go by number */
    struct sighting *gone, *last_gone; /* let go, for the thread to carry out */
    struct gate_news *first, *last;    /* not taken yet */
    unsigned done;                     /* of these, how many are not of stops */
    unsigned long numbers, untold;
    int news; /* eventfd: there are some */
    pthread_t thread;
    bool running, stopping;
};

enum { LISTINGS = 64 };

/* Directories that were listed, and lookups that listing more of their inodes would have spared (directories.c). */
struct listings {
    atomic_ulong begun_short[LISTINGS]; /* nodeids, each at its own place */
    atomic_uint missed;
};
enum { MOST_WORKERS = 1024 };

struct mirror {
    struct settings settings;
    int device;       /* /dev/fuse */
    int source;       /* the root of the backing tree, O_RDONLY | O_DIRECTORY: also the mount for file handles */
    int proc;         /* /proc */
    int proc_self_fd; /* the working directory of every worker: "17" there is descriptor 17 */
    int finished;     /* eventfd, written when the mount has ended */
    atomic_bool ended;
    atomic_uint workers_left;
    atomic_uint workers;
    atomic_uint away;          /* of them, those that may wait for another server */
    pthread_mutex_t replacing; /* one more thread is made at a time */
    pthread_t threads[MOST_WORKERS];
    bool started;
    sem_t begun; /* posted by each thread that start() makes, once it can serve or has failed to */
    atomic_int begin_error;

    struct {
        dev_t dev;     /* of the root of the tree */
        uint64_t mount; /* by which the root is reached */
        bool local;     /* what its filesystem says of an inode without asking anybody is true */
    } home;
    struct mounts {
        pthread_mutex_t lock;
        int fd; /* /proc/self/mountinfo */
        struct known_mount {
            int id;
            dev_t dev;
            uint8_t limits;
            bool distant;       /* its filesystem may keep us waiting */
            bool local;         /* it asks nobody */
            char *root, *point; /* which of its directories is mounted, and where: both without escapes */
        } *all;
        size_t number;
        unsigned long readings; /* how often the list has been read */
        pthread_mutex_t learning; /* one learns the ways, and others wait until they are known */
        unsigned long learnt;     /* after which of the readings that was */
        uint64_t parts;           /* what of them shows a part of the tree, as a hash */
        struct inode **kept;      /* the directories in the tree where mounts are, each with a reference */
        size_t kept_number;
    } mounts;
    struct nested *nested; /* the devices of the tree other than the root's */
    struct inode_table table;
    struct inode *root;
    struct stripes stripes;
    struct tree tree;
    pthread_mutex_t reading; /* with hold_open: from the reading of a request to the counting of a release */
    pthread_mutex_t place_locks[PLACE_LOCKS];
    pthread_mutex_t io_locks[PLACE_LOCKS];

    struct {
        pthread_mutex_t lock;
        struct order spare, nested, pinned; /* what would be opened again on the root's mount, and on others */
        unsigned limit;                     /* of the first two together, and of the last */
    } budget;
    atomic_uint opens; /* descriptors of open files and directories */

    struct failures writeback;
    struct questions questions;
    struct gates gates;
    struct listings listings;
    atomic_bool handles; /* file handles of the root device can be opened */
    bool flushes;        /* closing a file does something on the root device's filesystem */
    atomic_bool passthrough;
    bool births; /* the backing filesystem's birth times tell inodes apart */
    atomic_ulong counters[COUNTERS];
};

/* A thread at work: its buffers, and as whom it runs at the moment. */
struct worker {
    struct mirror *mirror;
    char *in, *out; /* MESSAGE_MAX each */
    uid_t fsuid;
    gid_t fsgid;
    mode_t umask;
    unsigned permitted[2]; /* capabilities that it can have */
    unsigned slot;         /* of the tree lock */
    unsigned given_up;     /* of the first word, those that it does not have at the moment */
    uid_t own_uid;
    gid_t own_gid;
    struct question *verdict; /* PROCEED of this question is being carried out, or NULL */
    struct sighting *sighting; /* of the request at work, if it is watched; goes with its reply or its question */
};

/* mirror.c */
int mirror_new(struct mirror **made, int source, int device, int channel, struct settings settings); /* 0 or -errno */
void mirror_free(struct mirror *mirror); /* its threads have been stopped */

/* paths.c */
enum { MOST_ABOVE = 1 << 16 }; /* directories above an inode; what was moved behind the mount may look like a circle */
int path_way(struct mirror *mirror, const char *path, struct inode *way[MOST_ABOVE]);
int path_known(struct mirror *mirror, const char *path, struct inode **found); /* 0, -ESTALE: nothing is there, -errno */
/* Whether this user may do this (R_OK, W_OK, X_OK) to the inode: 0, -EACCES or -errno. */
int path_access(struct mirror *mirror, struct inode *inode, uid_t uid, gid_t gid, const gid_t *groups, size_t count,
                int mask);
int path_resolve(struct mirror *mirror, const char *path, uid_t uid, gid_t gid, const gid_t *groups, size_t count,
                 struct inode **found);

/* channel.c */
int channel_mount(const char *mountpoint, const char *source, const char *type, unsigned long flags, const char *data);
int channel_start(struct mirror *mirror);
void channel_stop(struct mirror *mirror);
void channel_replace(struct mirror *mirror); /* if every worker may be waiting for another server, there is one more */
int worker_begin(struct worker *worker, struct mirror *mirror); /* 0 or -errno, which start() hears of too */
void worker_end(struct worker *worker);
int reply(struct worker *worker, uint64_t unique, const void *body, size_t size); /* 0 or -errno of the write */
void reply_error(struct worker *worker, uint64_t unique, int error);              /* error: positive errno, or 0 */
void tell_attributes_changed(struct mirror *mirror, uint64_t nodeid);
void negotiate(struct worker *worker, const struct request *request);

/* A window that a lock closes, widened on purpose in a test build. */
static inline void window(void) {
#ifdef EXCLFS_TEST_WINDOW_US
    usleep(EXCLFS_TEST_WINDOW_US);
#endif
}

static inline void count(struct mirror *mirror, enum counter counter) {
    atomic_fetch_add_explicit(&mirror->counters[counter], 1, memory_order_relaxed);
}

/* operations.c: answers one request, or hands it to the policy. */
void serve(struct worker *worker, const struct request *request);

/* inodes.c */
static inline mode_t inode_type(const struct inode *inode) { return (mode_t)inode->type << 12; }
/* The one of all views of an inode that has its word. */
static inline struct inode *primary_of(struct inode *inode) { return inode->primary != NULL ? inode->primary : inode; }
static inline bool has_views(const struct inode *inode) {
    return inode->primary != NULL || atomic_load_explicit(&inode->viewed, memory_order_relaxed);
}
int inodes_init(struct mirror *mirror);
void inodes_destroy(struct mirror *mirror);
bool same_birth(const struct inode *inode, const struct statx *attributes);
/* The primary inode of this key with a new reference, or NULL. attributes, if given, must show the same birth. */
struct inode *inode_by_key(struct mirror *mirror, struct key key, const struct statx *attributes);
struct inode *inode_by_nodeid(struct mirror *mirror, uint64_t nodeid); /* referenced, or NULL */
/* Finds or makes the inode that (parent, name) was just seen to be; fd may be -1. With lookups added to nlookup. */
struct inode *inode_seen(struct mirror *mirror, struct inode *parent, const char *name, int parent_fd,
                         const struct statx *attributes, unsigned lookups);
void inode_looked_up(struct mirror *mirror, struct inode *inode); /* once more by the kernel */
void inode_get(struct inode *inode);
void inode_put(struct mirror *mirror, struct inode *inode);
void inode_forget(struct mirror *mirror, uint64_t nodeid, uint64_t lookups);
void inode_gone(struct mirror *mirror, struct inode *inode); /* its last link is removed: the key is free again */
/* The inode and all its views, each with a reference: their number, at most `most`. */
enum { MOST_VIEWS = 256 };
unsigned inode_views(struct mirror *mirror, struct inode *inode, struct inode *views[MOST_VIEWS]);
void inode_handle(const struct inode *inode, struct handle *handle);

/* places.c */
void inode_moved(struct mirror *mirror, struct inode *inode, struct inode *parent, const char *name);
void inode_lost(struct mirror *mirror, struct inode *inode); /* nobody knows where it is */
/* A name of the inode went from one directory to another: by whichever views of them it was known. */
void inode_renamed(struct mirror *mirror, struct inode *inode, struct inode *from, const char *name, struct inode *to,
                   const char *new_name);
/* The path below the root, without a leading slash; at most size - 1 bytes, a deeper one begins with "...". */
size_t inode_path(struct mirror *mirror, struct inode *directory, const char *name, char *path, size_t size);
size_t inode_own_path(struct mirror *mirror, struct inode *inode, char *path, size_t size);
/* Where it was seen last; the parent comes with a reference, NULL for the root and for what has no known place. */
struct inode *inode_parent(struct mirror *mirror, struct inode *inode);
struct inode *inode_place(struct mirror *mirror, struct inode *inode, char name[NAME_MAX + 1]);

static inline struct key key_of(const struct statx *attributes) {
    return (struct key){
        .dev = makedev(attributes->stx_dev_major, attributes->stx_dev_minor),
        .ino = attributes->stx_ino,
    };
}

/* Of kernels before 5.8, which do not tell, all mounts are one. */
static inline uint64_t mount_of(const struct statx *attributes) { return attributes->stx_mnt_id; }

static inline bool same_key(struct key a, struct key b) { return a.ino == b.ino && a.dev == b.dev; }

/* backing.c */
#ifndef STATX_MNT_ID_UNIQUE
#define STATX_MNT_ID_UNIQUE 0x4000U /* since Linux 6.8; older ones give the id that can be used again */
#endif
enum { STATX_TOLD = STATX_BASIC_STATS | STATX_BTIME, STATX_WANTED = STATX_TOLD | STATX_MNT_ID_UNIQUE };
int backing_init(struct mirror *mirror);
void backing_destroy(struct mirror *mirror);
int backing_get(struct mirror *mirror, struct inode *inode); /* an O_PATH descriptor, or -errno */
void backing_put(struct mirror *mirror, struct inode *inode);
void backing_drop(struct mirror *mirror, struct inode *inode); /* at the inode's end */
int backing_pin(struct mirror *mirror, struct inode *inode);   /* keep a descriptor until FORGET; 0 or -errno */
void backing_unpin(struct mirror *mirror, struct inode *inode); /* a name leads to it again */
int backing_adopt(struct mirror *mirror, struct inode *inode, int fd); /* pin this one, which we own */
/* As backing_get, where this name just led to it: also if it is not where it was seen last. */
int backing_get_at(struct mirror *mirror, struct inode *inode, int parent_fd, const char *name);
void backing_sweep(struct mirror *mirror); /* closes what keeps other mounts busy and was not used since the last time */
bool backing_must_sweep(struct mirror *mirror);
int backing_reopen(struct mirror *mirror, int fd, int flags);  /* a real descriptor for an O_PATH one */
/* Before a descriptor is opened that stays open with a file or directory: false if there are too many. */
bool open_begins(struct mirror *mirror);
void open_closed(struct mirror *mirror);
bool backing_leads_to(struct mirror *mirror, struct inode *inode); /* the place where it was seen last still does */
int backing_stat(struct mirror *mirror, struct inode *inode, struct statx *attributes);
bool backing_handle(int fd, const char *name, struct handle *handle);
int backing_open_handle(int mount_fd, const struct handle *handle); /* O_PATH, or -errno */

/* nested.c */
int nested_init(struct mirror *mirror);
void nested_destroy(struct mirror *mirror);
void nested_begin(void); /* a thread that serves: other servers know it by its name */
void nested_serve(struct mirror *mirror, uint32_t pid); /* it works for this thread now; 0: for nobody else */
/* What is there, without ever asking our own mount: 0, -ELOOP if it is that, or -errno. */
int stat_at(struct mirror *mirror, int fd, const char *name, struct statx *attributes);
/* What the mount forbids by which (fd, name) was just seen in this directory, which may be NULL. */
uint8_t nested_limits(struct mirror *mirror, struct inode *parent, int fd, const char *name,
                      const struct statx *attributes);
uint64_t shown_ino(const struct mirror *mirror, dev_t dev, ino_t ino);
/* Whether serving this inode to who asks would have one server wait for another that may wait for it. */
bool nested_is_loop(struct mirror *mirror, const struct inode *inode);

/* mounts.c */
int mounts_init(struct mirror *mirror);
void mounts_destroy(struct mirror *mirror);
uint8_t mounts_limits(struct mirror *mirror, int fd); /* of the mount that the descriptor is on */
enum filesystem { LOCAL, OF_A_SERVER, OTHER_FILESYSTEM }; /* asks nobody; asks a process (FUSE); may ask somebody */
enum filesystem mounts_filesystem(struct mirror *mirror, int fd); /* that the descriptor is on */
struct mounts *mounts_lock(struct mirror *mirror);    /* the list as it is now */
int mounts_id(const struct mirror *mirror, int fd);   /* in that list, of the mount that the descriptor is on */

/* ways.c */
void ways_learn(struct mirror *mirror); /* every way to every directory that is reached by several is known */

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

/* questions.c */
enum { TESTED_MAX = 2, ROUNDS = 4 };
struct tested {
    struct inode *inode; /* referenced by the question; NULL: no inode of ours was there */
    struct key key;
    unsigned generation, open_generation;
};
struct question {
    struct question *next;
    uint64_t unique;
    struct timespec asked, deadline;
    bool sent;
    bool frozen; /* the words of `tested` are locked until this is answered */
    unsigned rounds;
    unsigned long tree; /* the generation of the tree when it was asked */
    struct sighting *sighting; /* of the request, if it is watched */
    struct tested tested[TESTED_MAX];
    size_t packet_size, message_size;
    char *packet;   /* what goes up */
    char message[]; /* the request as the kernel sent it */
};
int questions_init(struct mirror *mirror, int channel);
int questions_start(struct mirror *mirror);
void questions_stop(struct mirror *mirror);
void questions_wake(struct mirror *mirror); /* its thread has something to do */
void questions_destroy(struct mirror *mirror);
/* Whether this thread waits for the answer to a question. */
bool questions_await(struct mirror *mirror, uint32_t pid);
/* Each hands the request to the policy; it will be answered or carried out later by the questions' thread. */
void ask_removal(struct worker *worker, const struct request *request, const struct tested tested[TESTED_MAX],
                 unsigned long tree, const char *path, const char *second_path);
void ask_xattr(struct worker *worker, const struct request *request);

/* gates.c */
enum gate_event { GATE_BEFORE, GATE_AFTER, GATE_DONE };
struct gate_news {
    struct gate_news *next;
    enum gate_event event;
    uint64_t number; /* of the sighting; 0 if it never stopped */
    uint32_t opcode, pid, uid;
    int error;          /* how it was done: an errno, or 0 */
    const char *second; /* path, in `paths`, or NULL */
    char paths[];       /* below the root */
};
int gates_init(struct mirror *mirror);
int gates_start(struct mirror *mirror);
void gates_stop(struct mirror *mirror);
void gates_destroy(struct mirror *mirror);
/* Sees a request whose opcode is watched. True: it has been stopped, or answered. */
bool gates_meet(struct worker *worker, const struct request *request);
/* The reply of the request that the worker's sighting is of. True: it is withheld. */
bool gates_withhold(struct worker *worker, int error, const void *body, size_t size);
void gates_interrupt(struct mirror *mirror, const struct request *request);
void sighting_drop(struct sighting *sighting); /* nobody will answer its request any more; it may be NULL */
/* Which opcodes stop before and after, and of which is told when they are done; a bit for each. */
void gates_watch(struct mirror *mirror, uint64_t before, uint64_t after, uint64_t told);
int gates_let_go(struct mirror *mirror, uint64_t number, int answer); /* 0, -ENOENT, -EINVAL: not after this */
void gates_open(struct mirror *mirror); /* nothing is watched, and all that stand are let go */
/* What has happened, to be freed one by one; `untold` of what was done was dropped before that. */
struct gate_news *gates_news(struct mirror *mirror, unsigned long *untold);

/* requester.c */
int requester_begin(struct worker *worker); /* prepares a thread; 0 or -errno */
int become(struct worker *worker, const struct fuse_in_header *header); /* ids, and no reserve; 0 or errno */
int become_if_able(struct worker *worker, const struct fuse_in_header *header);
int become_creator(struct worker *worker, const struct fuse_in_header *header, mode_t umask);
int become_writer(struct worker *worker, const struct fuse_in_header *header, bool strip);
int become_nobody(struct worker *worker, bool strip);
int become_lister(struct worker *worker, const struct fuse_in_header *header);
void become_server(struct worker *worker); /* back to what the server is */
int run_as(uid_t uid, gid_t gid, const gid_t *groups, size_t count, int (*work)(void *), void *argument);

/* opens.c */
struct opener {
    pid_t pid; /* of the process, not of the thread; 0: this handle counts against nobody */
    uint64_t start_time;
    uid_t uid;
    struct timespec since;
};
struct open_file;
void open_counts(struct worker *worker, const struct request *request, struct open_file *file, uid_t owner);
void open_ends(struct mirror *mirror, struct open_file *file);
void open_released(struct mirror *mirror, const void *message, size_t size); /* what was just read, if it is a RELEASE */
/* Whether another process than the requester's has it open. */
bool opened_by_another(struct worker *worker, const struct request *request, struct inode *inode);
/* The openers of an inode, at most `size`; their number. */
size_t openers_of(struct mirror *mirror, struct inode *inode, struct opener *openers, size_t size);

/* identity.c */
struct identity {
    ino_t ino;
    int64_t birth_seconds;
    uint32_t birth_nanoseconds, generation;
    mode_t type;
    bool nested; /* on another device than the root */
    struct handle handle;
};
void identity_of(const struct mirror *mirror, const struct inode *inode, struct identity *identity);
/* Finds that very inode again; it comes with a reference. 0, -ESTALE if it is not in this tree any more, or -errno. */
int identity_restore(struct mirror *mirror, const struct identity *identity, const char *path, struct inode **found);

/* the operations: each replies, or hands on */
void op_lookup(struct worker *, const struct request *);
void op_forget(struct worker *, const struct request *);
void op_batch_forget(struct worker *, const struct request *);
void op_getattr(struct worker *, const struct request *);
void op_statx(struct worker *, const struct request *);
void op_setattr(struct worker *, const struct request *);
void op_statfs(struct worker *, const struct request *);
void op_readlink(struct worker *, const struct request *);
void op_symlink(struct worker *, const struct request *);
void op_mknod(struct worker *, const struct request *);
void op_mkdir(struct worker *, const struct request *);
void op_link(struct worker *, const struct request *);
void op_unlink(struct worker *, const struct request *);
void op_rmdir(struct worker *, const struct request *);
void op_rename(struct worker *, const struct request *);
void op_open(struct worker *, const struct request *);
void op_create(struct worker *, const struct request *);
void op_tmpfile(struct worker *, const struct request *);
void op_read(struct worker *, const struct request *);
void op_write(struct worker *, const struct request *);
void op_flush(struct worker *, const struct request *);
void op_release(struct worker *, const struct request *);
void op_fsync(struct worker *, const struct request *);
void op_fallocate(struct worker *, const struct request *);
void op_lseek(struct worker *, const struct request *);
void op_copy_file_range(struct worker *, const struct request *);
void op_opendir(struct worker *, const struct request *);
void op_readdir(struct worker *, const struct request *);
void op_readdirplus(struct worker *, const struct request *);
void op_releasedir(struct worker *, const struct request *);
void op_fsyncdir(struct worker *, const struct request *);
void listing_missed(struct mirror *mirror, uint64_t directory); /* what is in it has been looked up */
void op_setxattr(struct worker *, const struct request *);
void op_getxattr(struct worker *, const struct request *);
void op_listxattr(struct worker *, const struct request *);
void op_removexattr(struct worker *, const struct request *);

/* listing.c */
struct linux_dirent64 { /* getdents64(2) */
    uint64_t d_ino;
    int64_t d_off;
    unsigned short d_reclen;
    unsigned char d_type;
    char d_name[];
};
enum { LISTING_MAX = 32 << 10 };
struct listing {
    int fd;
    uint64_t offset;        /* of the entry that comes next, as the kernel is told */
    uint64_t position;      /* the same, as the filesystem tells */
    uint64_t buffer_begins; /* the position of the first entry in the buffer */
    struct statx_timestamp changed; /* of the directory, before the buffer was read */
    size_t at, end;         /* what of the buffer is still to be told */
    struct stuck *stuck;
    size_t stuck_count;
    char entries[LISTING_MAX] __attribute__((aligned(8)));
};
void listing_begin(struct listing *listing, int fd); /* takes the descriptor */
void listing_end(struct listing *listing);
int listing_seek(struct listing *listing, uint64_t offset); /* 0 or -errno */
const struct linux_dirent64 *listing_next(struct listing *listing, int *error); /* NULL at the end; -errno in *error */
uint64_t listing_offset(struct listing *listing, const struct linux_dirent64 *entry); /* for what comes next */
void listing_take(struct listing *listing, const struct linux_dirent64 *entry, uint64_t offset); /* it is told */

/* An open file: its number for the kernel is where it lies. */
struct manner {
    int flags;    /* those of a descriptor here */
    bool appends; /* with O_APPEND */
    bool roots;   /* by root */
};
struct open_file {
    struct inode *inode;
    struct manner how;
    atomic_int fd; /* -1 for passthrough, until something needs one */
    bool passthrough;
    atomic_uint failures_told;        /* of the mirror's failures to write back, how many it knows of */
    struct opener opener;             /* under the io lock of the inode, as the next two */
    struct open_file *next, **before; /* among the inode's opens */
};
static inline struct open_file *file_of(uint64_t fh) { return (struct open_file *)(uintptr_t)fh; }
pthread_mutex_t *io_lock(struct mirror *mirror, const struct inode *inode);
bool is_open(struct mirror *mirror, const struct inode *inode);

/* writeback.c */
int writeback_init(struct mirror *mirror); /* 0 or -errno */
void writeback_destroy(struct mirror *mirror);
void writeback_opened(struct mirror *mirror, struct open_file *file);
int writeback_sync(struct mirror *mirror, struct open_file *file, bool data_only); /* fsync: 0 or errno */

/* shared by operations */
void fill_attr(const struct mirror *mirror, const struct inode *inode, const struct statx *from, struct fuse_attr *to);
void fill_timeout(double seconds, uint64_t *whole, uint32_t *nanoseconds);
void fill_entry(struct mirror *mirror, struct inode *inode, const struct statx *attributes,
                struct fuse_entry_out *entry);
int handle_descriptor(struct mirror *mirror, uint64_t fh, bool writable); /* of an open file, owned by it; or -errno */

/* The inode that a request is about, with a reference; NULL after an ESTALE reply. */
struct inode *inode_of(struct worker *worker, const struct request *request);

#endif
